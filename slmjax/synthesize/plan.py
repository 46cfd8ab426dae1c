"""The plan of a run: which documents are asked for, and the prompt of each.

A document that is asked for is an item: topic, audience, format, problems and seed passage.
"""

import hashlib
import itertools
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass

from slmjax.synthesize import subjects
from slmjax.textbook.passages import Passage, passage

# What each format asks of a writer; checks.py looks for what is asked here.
FORMATS = {
    "section": (
        "Write a section of a textbook. Begin with a title line that starts with '# ', use two or "
        "three headings that start with '## ', and write connected paragraphs between them."
    ),
    "problems": (
        "Write a set of worked problems. Number them 'Problem 1', 'Problem 2' and so on; after "
        "each, show the working and end with a line 'Answer: ...' that has the answer alone."
    ),
    "reasoning": (
        "Solve a problem step by step. State it first, then write 'Step 1:', 'Step 2:' and so on, "
        "one step a line, and end with a line 'Answer: ...' that has the answer alone."
    ),
    "faq": (
        "Write a list of questions that readers often ask, with answers. Each question is a line "
        "that starts with 'Q:', each answer one that starts with 'A:'. Give at least three."
    ),
    "table": (
        "Write a short introduction and then a table in Markdown, with a header and at least three "
        "rows of the same number of cells, and a sentence that says what can be learnt from it."
    ),
    "dialogue": (
        "Write a conversation between a teacher and a student. Each turn is a line that starts "
        "with 'Teacher:' or 'Student:'. The student asks, makes a mistake once, and understands in "
        "the end. Write at least six turns."
    ),
}
# How a prompt describes each audience, after "Write for".
AUDIENCES = {
    "children": "children of about nine, in short sentences and plain words",
    "students": "school students of about fifteen, who know the basics",
    "undergraduates": "first-year university students, precisely and with the proper terms",
    "adults": "curious adults without training in the subject, who want to use what they learn",
}
# Problems in a document of each format; `reasoning` has one, so that its steps can be many.
PROBLEMS = {"section": 2, "problems": 4, "reasoning": 1, "faq": 3, "table": 4, "dialogue": 2}
# Numbers of problems that each item has for itself; more than any value of PROBLEMS.
PROBLEM_STRIDE = 10
PASSAGE_CHARACTERS = 800  # most of a seed passage in a prompt


@dataclass(frozen=True)
class Item:
    """A document to ask for."""

    number: int  # in the plan, 0-based
    topic: str  # "subject > area > topic", or any text
    aspect: str  # one of subjects.ASPECTS
    audience: str  # a key of AUDIENCES, or the user's own description
    format: str  # a key of FORMATS
    kind: str  # the topic's kind of problem, a key of subjects.KINDS; "" where it has none
    problems: tuple[Passage, ...]  # which the document must hold, in this order; may be empty
    passage: str  # a seed passage, a text from which ideas are taken; "" without one


class DocumentPlan:
    """The items of a run. There are any number; asking for more leaves the earlier ones unchanged.

    A cycle goes through all combinations of topic, audience and format once, in an order of its
    own, so that each comes up equally often. An item's aspect and its passage are drawn at random.

    Args:
      seed: of the run; decides every item.
      topics, audiences, formats: what Item has in the fields of these names.
      passages: texts of which a piece is put into each prompt; empty for none.
      solved: draw problems for every format of a topic that has a kind of problem, not only for
        problem sets and reasoning.
    """

    def __init__(
        self,
        *,
        seed: int,
        topics: Sequence[str],
        audiences: Sequence[str],
        formats: Sequence[str],
        passages: Sequence[str] = (),
        solved: bool = False,
    ):
        self.seed = seed
        self.passages = tuple(passages)
        self.solved = solved
        self.combinations = list(itertools.product(topics, audiences, formats))
        self._kinds = {topic: kind for kind, topic in subjects.KINDS.items()}
        # The cycle that was asked for last, and its order of the combinations.
        self._cycle = -1
        self._order: list[int] = []

    def item(self, number: int) -> Item:
        """Return the item of a number, 0-based; it depends only on number and arguments."""
        cycle, place = divmod(number, len(self.combinations))
        topic, audience, form = self.combinations[self._order_of(cycle)[place]]
        # The order of draws is part of the plan: another order would change every prompt.
        rng = random.Random(f"{self.seed}/item/{number}")
        aspect = rng.choice(subjects.ASPECTS)
        seed_passage = _piece(rng.choice(self.passages), rng) if self.passages else ""
        kind = self._kinds.get(topic, "")
        problems = self._problems(kind, form, number)
        return Item(number, topic, aspect, audience, form, kind, problems, seed_passage)

    def _order_of(self, cycle: int) -> list[int]:
        """Return the positions of the combinations, in the order of a cycle."""
        # Items are asked for in order, so that keeping the last cycle is enough.
        if cycle != self._cycle:
            order = list(range(len(self.combinations)))
            random.Random(f"{self.seed}/cycle/{cycle}").shuffle(order)
            self._cycle, self._order = cycle, order
        return self._order

    def _problems(self, kind: str, form: str, number: int) -> tuple[Passage, ...]:
        """Return the problems of an item; none where its topic or its format has none."""
        if not kind or not (self.solved or form in ("problems", "reasoning")):
            return ()
        # Numbers of their own, so that no two documents share a problem.
        first = PROBLEM_STRIDE * number
        numbers = range(first, first + PROBLEMS[form])
        return tuple(passage(kind, index, seed=self.seed, split="train") for index in numbers)


def prompt(item: Item) -> str:
    """Return the prompt for a teacher that follows instructions; a function of the item alone."""
    # "mathematics > algebra > equations" becomes "equations (in algebra, mathematics)".
    *parents, topic = item.topic.split(" > ")
    context = f" (in {', '.join(reversed(parents))})" if parents else ""
    lines = [
        FORMATS[item.format],
        f"The topic is {topic}{context}.",
        f"Write for {AUDIENCES.get(item.audience, item.audience)}.",
    ]
    if len(item.problems) > 1:
        lines.append("Use exactly these problems, in this order, word for word:")
        for number, problem in enumerate(item.problems, 1):
            lines.append(f"{number}. {problem.prompt}")
    elif item.problems:
        lines += ["Use exactly this problem, word for word:", item.problems[0].prompt]
    else:
        lines.append(f"Write about {item.aspect}.")
    if item.passage:
        lines.append(f"Take ideas, but no sentences, from this passage:\n---\n{item.passage}\n---")
    lines.append(
        "Be correct: every calculation must hold. "
        "Write the text alone, without any remark about it."
    )
    return "\n".join(lines)


def opening(item: Item) -> str:
    """Return how a document begins, for a teacher that continues text: a problem or a title."""
    if item.problems:
        return f"{item.problems[0].prompt}\n"
    topic = item.topic.split(" > ")[-1]
    return f"# {topic.capitalize()}\n\n"


def key(model: str, text: str, parameters: dict) -> str:
    """Return the hash that identifies a request: of model, prompt and parameters.

    It depends on nothing else, so that a request that was paid for is recognised after a change of
    the code.

    Args:
      text: the prompt.
    """
    identity = json.dumps([model, text, parameters], sort_keys=True)
    return hashlib.sha256(identity.encode()).hexdigest()


def _piece(text: str, rng: random.Random) -> str:
    """Return a piece of a text, from one blank to another, at most PASSAGE_CHARACTERS long."""
    # The start is drawn from the whole text and then moved behind the next blank, to a whole word.
    start = rng.randrange(max(1, len(text) - PASSAGE_CHARACTERS))
    blank = text.find(" ", start)
    if start and blank >= 0:
        start = blank + 1
    piece = text[start : start + PASSAGE_CHARACTERS]
    whole_words = piece.rpartition(" ")[0].strip()
    # A piece without blanks, such as a Chinese one, is cut anywhere. For a piece of blanks alone,
    # the text's beginning is taken.
    return whole_words or piece.strip() or text[:PASSAGE_CHARACTERS].strip()
