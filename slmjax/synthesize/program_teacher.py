"""The embedded teacher: it draws problems, solves them by computation, and writes them up in every format, with no model and no network.

Problems, working and answers are those of the embedded textbook (slmjax/textbook/passages.py), its training split: each answer was computed
in two ways, and what the textbook holds out (names, numbers, wordings) stays held out here too.
"""

import random
import re
from collections.abc import Callable

from slmjax.synthesize.lessons import CLOSINGS, GREETINGS, LESSONS, Lesson
from slmjax.synthesize.plan import Item
from slmjax.textbook.passages import VERSION, Passage

MODEL = f"slmjax-program-{VERSION}.1"  # the second number counts changes of what is written here and in lessons.py
DATE = "2026-11-28"  # of that version: a text is a function of version and seed, so that it has no other date
LICENCE = "written by slmjax's own program (Apache-2.0); holds no text of others"


def write_document(item: Item, seed: int) -> str:
    """The document of an item with problems: a pure function of both arguments."""
    rng = random.Random(f"{seed}/program/{item.number}")
    return _FORMATS[item.format](item, LESSONS[item.kind], rng)


def working(found: Passage) -> str:
    """The lines between question and answer."""
    return found.text.removeprefix(found.prompt + "\n").removesuffix(f"\nAnswer: {found.answer}.")


def worked_steps(found: Passage) -> list[str]:
    """The working, a step at a time: sentences, equations that stand in a row, and what follows from them."""
    pieces = [
        piece
        for sentence in re.split(r"(?<=\.) (?=[A-Z0-9])", working(found))
        for piece in re.split(
            r",? and (?=\d+ [-+x/] \d+ =)|, (?=\d+ [-+x/] \d+ =)|, (?=so )", sentence
        )
    ]
    return [piece[0].upper() + piece[1:].rstrip(".") + "." for piece in pieces]


def _intro(item: Item, lesson: Lesson, rng: random.Random, sentences: int) -> str:
    """Some of a lesson's ideas in a row, after a sentence for the audience."""
    greeting = [rng.choice(GREETINGS[item.audience])] if item.audience in GREETINGS else []
    return " ".join(
        [
            *greeting,
            *(lesson.ideas[i] for i in sorted(rng.sample(range(len(lesson.ideas)), sentences))),
        ]
    )


def _solved(found: Passage) -> str:
    return f"{found.prompt}\n{working(found)}\nAnswer: {found.answer}."


def _section(item: Item, lesson: Lesson, rng: random.Random) -> str:
    first, *rest = item.problems
    pick = rng.choice
    parts = [
        f"# {pick(lesson.titles)}",
        _intro(item, lesson, rng, 3),
        f"## {pick(('How it is done', 'The method', 'What to do'))}",
    ]
    parts += [
        f"{pick(lesson.methods)} {pick(('Here is an example.', 'Look at this one.', 'An example shows it.'))}",
        _solved(first),
    ]
    parts += [
        f"## {pick(('What to look out for', 'A common mistake', 'Take care'))}",
        pick(lesson.mistakes),
    ]
    for found in rest:
        parts += [
            pick(
                (
                    "With that in mind, try the next one.",
                    "Now one more.",
                    "The next problem is of the same sort.",
                )
            ),
            _solved(found),
        ]
    return "\n\n".join([*parts, pick(CLOSINGS)])


def _problems(item: Item, lesson: Lesson, rng: random.Random) -> str:
    parts = [
        f"# {rng.choice(lesson.titles)}: {rng.choice(('problems', 'exercises', 'practice'))}",
        _intro(item, lesson, rng, 1),
    ]
    parts += [f"Problem {i}\n{_solved(found)}" for i, found in enumerate(item.problems, 1)]
    return "\n\n".join([*parts, f"{rng.choice(lesson.methods)} {rng.choice(lesson.mistakes)}"])


def _reasoning(item: Item, lesson: Lesson, rng: random.Random) -> str:
    (found,) = item.problems
    lines = [
        f"Problem: {found.prompt}",
        "",
        f"{rng.choice(lesson.methods)} {rng.choice(('Step by step:', 'One step after the other:'))}",
    ]
    lines += [f"Step {i}: {step}" for i, step in enumerate(worked_steps(found), 1)]
    lines.append(
        f"{rng.choice(('Before we finish', 'To be sure', 'One more look'))}: {rng.choice(lesson.checks)}"
    )
    return "\n".join([*lines, f"Answer: {found.answer}."])


def _faq(item: Item, lesson: Lesson, rng: random.Random) -> str:
    general = [("What is the main idea?", lesson.ideas), ("How do I begin?", lesson.methods)]
    general += [
        ("What goes wrong most often?", lesson.mistakes),
        ("How can I check my answer?", lesson.checks),
    ]
    asked = [(question, rng.choice(told)) for question, told in rng.sample(general, 2)]
    asked += [
        (found.prompt, f"{working(found)} Answer: {found.answer}.") for found in item.problems
    ]
    title = f"{rng.choice(lesson.titles)}: {rng.choice(('questions and answers', 'what readers often ask', 'frequent questions'))}"
    return "\n\n".join([title, *(f"Q: {question}\nA: {told}" for question, told in asked)])


def _table(item: Item, lesson: Lesson, rng: random.Random) -> str:
    header = rng.choice(
        (
            "| Problem | Working | Answer |",
            "| Question | How it is found | Result |",
            "| Question | Working | Result |",
        )
    )
    rows = [
        f"| {found.prompt} | {working(found)} | Answer: {found.answer}. |"
        for found in item.problems
    ]
    last = rng.choice(
        (
            "The rows have one thing in common.",
            "Read down the middle column.",
            "Each row is found in the same way.",
        )
    )
    table = "\n".join([header, "| --- | --- | --- |", *rows])
    return "\n\n".join(
        [_intro(item, lesson, rng, 2), table, f"{last} {rng.choice(lesson.methods)}"]
    )


def _dialogue(item: Item, lesson: Lesson, rng: random.Random) -> str:
    pick = rng.choice
    lines = [
        f"Teacher: {_intro(item, lesson, rng, 1)}",
        f"Student: {pick(('How do I begin?', 'What do I do first?', 'Where do I start?'))}",
    ]
    lines.append(f"Teacher: {pick(lesson.methods)}")
    lines.append(
        f"Student: {pick(('What could go wrong?', 'I made a mistake here before. What was it?', 'What should I look out for?'))}"
    )
    lines.append(f"Teacher: {pick(lesson.mistakes)}")
    for found in item.problems:
        lines.append(f"Teacher: {pick(('Try this.', 'Here is one.', 'Now this.'))} {found.prompt}")
        lines.append(
            f"Student: {pick(('I see.', 'Then I can do it.', 'Let me think.'))} {working(found)} Answer: {found.answer}."
        )
    return "\n".join(
        [
            *lines,
            f"Teacher: {pick(('Right.', 'Well done.', 'That is correct.'))} {pick(lesson.checks)}",
        ]
    )


_FORMATS: dict[str, Callable[[Item, Lesson, random.Random], str]] = {
    "section": _section,
    "problems": _problems,
    "reasoning": _reasoning,
    "faq": _faq,
    "table": _table,
    "dialogue": _dialogue,
}
