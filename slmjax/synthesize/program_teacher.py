"""The embedded teacher: it draws, solves and writes up problems, without model or network.

Problems, working and answers are training passages of the embedded textbook
(slmjax/textbook/passages.py). Names, numbers and wordings that the textbook holds out for its test
questions do not appear here either.
"""

import random
import re
from collections.abc import Callable
from typing import Any

from slmjax.synthesize.lessons import CLOSINGS, GREETINGS, LESSONS, Lesson
from slmjax.synthesize.plan import Item
from slmjax.synthesize.teachers import Answer, Teacher, TeacherRequest
from slmjax.textbook.passages import VERSION, Passage

# The second number counts changes of what this file and lessons.json write for the same seed.
MODEL = f"slmjax-program-{VERSION}.1"
# The date of the version: a document depends on version and seed, not on when it is asked for.
DATE = "2026-11-28"
LICENCE = "written by slmjax's own program (Apache-2.0); holds no text of others"
MAX_TOKENS = 4096  # more than any document has; a request reserves as many


class ProgramTeacher(Teacher):
    """The embedded teacher. It counts one token for every four bytes of a document."""

    name, model, licence, date = "program", MODEL, LICENCE, DATE

    def __init__(self, seed: int):
        self.seed = seed

    def parameters(self, item: Item) -> dict[str, Any]:
        # What the program writes depends on these, and on the item's problems and their kind, which
        # are in the prompt. max_tokens has no influence; nor have the item's aspect and passage.
        return {
            "seed": self.seed,
            "number": item.number,
            "format": item.format,
            "audience": item.audience,
            "max_tokens": MAX_TOKENS,
        }

    async def ask(self, request: TeacherRequest) -> Answer:
        text = write_document(request.item, self.seed)
        # (0, ...): nothing is paid for the prompt, which the program does not read.
        return Answer(text, "stop", (0, len(text.encode()) // 4))


def write_document(item: Item, seed: int) -> str:
    """Return the document of an item that has problems: a pure function of both arguments."""
    rng = random.Random(f"{seed}/program/{item.number}")
    write = _FORMATS[item.format]
    return write(item, LESSONS[item.kind], rng)


def working(problem: Passage) -> str:
    """Return how a problem is solved: the lines between its question and its answer."""
    after_question = problem.text.removeprefix(problem.prompt + "\n")
    return after_question.removesuffix(f"\nAnswer: {problem.answer}.")


def worked_steps(problem: Passage) -> list[str]:
    """Return the working as single steps: sentences, equations and conclusions."""
    steps = []
    for sentence in re.split(r"(?<=\.) (?=[A-Z0-9])", working(problem)):
        # A sentence is split before each equation that follows a comma or "and", and before ", so".
        pieces = re.split(r",? and (?=\d+ [-+x/] \d+ =)|, (?=\d+ [-+x/] \d+ =)|, (?=so )", sentence)
        for piece in pieces:
            steps.append(piece[0].upper() + piece[1:].rstrip(".") + ".")
    return steps


# In the functions below the order of draws from `rng` is part of the format: another order would
# write other documents for the same seed.


def _section(item: Item, lesson: Lesson, rng: random.Random) -> str:
    first, *others = item.problems
    pick = rng.choice
    parts = [f"# {pick(lesson.titles)}", _introduction(item, lesson, rng, sentences=3)]

    parts.append(f"## {pick(('How it is done', 'The method', 'What to do'))}")
    method = pick(lesson.methods)
    example = pick(("Here is an example.", "Look at this one.", "An example shows it."))
    parts += [f"{method} {example}", first.text]

    parts.append(f"## {pick(('What to look out for', 'A common mistake', 'Take care'))}")
    parts.append(pick(lesson.mistakes))
    transitions = (
        "With that in mind, try the next one.",
        "Now one more.",
        "The next problem is of the same sort.",
    )
    for problem in others:
        parts += [pick(transitions), problem.text]
    parts.append(pick(CLOSINGS))
    return "\n\n".join(parts)


def _problems(item: Item, lesson: Lesson, rng: random.Random) -> str:
    title = rng.choice(lesson.titles)
    parts = [f"# {title}: {rng.choice(('problems', 'exercises', 'practice'))}"]
    parts.append(_introduction(item, lesson, rng, sentences=1))
    for number, problem in enumerate(item.problems, 1):
        parts.append(f"Problem {number}\n{problem.text}")
    parts.append(f"{rng.choice(lesson.methods)} {rng.choice(lesson.mistakes)}")
    return "\n\n".join(parts)


def _reasoning(item: Item, lesson: Lesson, rng: random.Random) -> str:
    (problem,) = item.problems
    lines = [f"Problem: {problem.prompt}", ""]
    method = rng.choice(lesson.methods)
    lines.append(f"{method} {rng.choice(('Step by step:', 'One step after the other:'))}")
    for number, step in enumerate(worked_steps(problem), 1):
        lines.append(f"Step {number}: {step}")
    ending = rng.choice(("Before we finish", "To be sure", "One more look"))
    lines.append(f"{ending}: {rng.choice(lesson.checks)}")
    lines.append(f"Answer: {problem.answer}.")
    return "\n".join(lines)


def _faq(item: Item, lesson: Lesson, rng: random.Random) -> str:
    general = [
        ("What is the main idea?", lesson.ideas),
        ("How do I begin?", lesson.methods),
        ("What goes wrong most often?", lesson.mistakes),
        ("How can I check my answer?", lesson.checks),
    ]
    entries = []
    for question, replies in rng.sample(general, 2):
        entries.append(f"Q: {question}\nA: {rng.choice(replies)}")
    for problem in item.problems:
        entries.append(f"Q: {problem.prompt}\nA: {_in_one_line(problem)}")
    title = rng.choice(lesson.titles)
    subtitle = rng.choice(("questions and answers", "what readers often ask", "frequent questions"))
    return "\n\n".join([f"{title}: {subtitle}", *entries])


def _table(item: Item, lesson: Lesson, rng: random.Random) -> str:
    headers = (
        "| Problem | Working | Answer |",
        "| Question | How it is found | Result |",
        "| Question | Working | Result |",
    )
    rows = [rng.choice(headers), "| --- | --- | --- |"]
    for problem in item.problems:
        rows.append(f"| {problem.prompt} | {working(problem)} | Answer: {problem.answer}. |")
    conclusions = (
        "The rows have one thing in common.",
        "Read down the middle column.",
        "Each row is found in the same way.",
    )
    conclusion = rng.choice(conclusions)
    introduction = _introduction(item, lesson, rng, sentences=2)
    return "\n\n".join(
        [introduction, "\n".join(rows), f"{conclusion} {rng.choice(lesson.methods)}"]
    )


def _dialogue(item: Item, lesson: Lesson, rng: random.Random) -> str:
    pick = rng.choice
    first_questions = ("How do I begin?", "What do I do first?", "Where do I start?")
    second_questions = (
        "What could go wrong?",
        "I made a mistake here before. What was it?",
        "What should I look out for?",
    )
    turns = [
        f"Teacher: {_introduction(item, lesson, rng, sentences=1)}",
        f"Student: {pick(first_questions)}",
        f"Teacher: {pick(lesson.methods)}",
        f"Student: {pick(second_questions)}",
        f"Teacher: {pick(lesson.mistakes)}",
    ]
    for problem in item.problems:
        task = pick(("Try this.", "Here is one.", "Now this."))
        turns.append(f"Teacher: {task} {problem.prompt}")
        reaction = pick(("I see.", "Then I can do it.", "Let me think."))
        turns.append(f"Student: {reaction} {_in_one_line(problem)}")
    praise = pick(("Right.", "Well done.", "That is correct."))
    turns.append(f"Teacher: {praise} {pick(lesson.checks)}")
    return "\n".join(turns)


_FORMATS: dict[str, Callable[[Item, Lesson, random.Random], str]] = {
    "section": _section,
    "problems": _problems,
    "reasoning": _reasoning,
    "faq": _faq,
    "table": _table,
    "dialogue": _dialogue,
}


def _introduction(item: Item, lesson: Lesson, rng: random.Random, sentences: int) -> str:
    """Return a greeting of the audience and so many of the lesson's ideas, in their order."""
    parts = []
    if item.audience in GREETINGS:  # an audience that the user describes has none
        parts.append(rng.choice(GREETINGS[item.audience]))
    positions = rng.sample(range(len(lesson.ideas)), sentences)
    parts += [lesson.ideas[position] for position in sorted(positions)]
    return " ".join(parts)


def _in_one_line(problem: Passage) -> str:
    return f"{working(problem)} Answer: {problem.answer}."
