"""What is asked for: items (topic x audience x format x seed passage), each a function of seed and number, and their prompts."""

import hashlib
import json
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from slmjax.errors import UserError, nearest
from slmjax.synthesize import subjects
from slmjax.text.readers import read_documents
from slmjax.text.records import Document
from slmjax.text.source_files import list_files
from slmjax.text.sources import parse_sources
from slmjax.textbook.passages import Passage, passage

# What each format asks of a writer; checks.py looks for what is asked here.
FORMATS = {
    "section": "Write a section of a textbook. Begin with a title line that starts with '# ', use two or three headings that start with "
    "'## ', and write connected paragraphs between them.",
    "problems": "Write a set of worked problems. Number them 'Problem 1', 'Problem 2' and so on; after each, show the working and end with "
    "a line 'Answer: ...' that has the answer alone.",
    "reasoning": "Solve a problem step by step. State it first, then write 'Step 1:', 'Step 2:' and so on, one step a line, and end with a "
    "line 'Answer: ...' that has the answer alone.",
    "faq": "Write a list of questions that readers often ask, with answers. Each question is a line that starts with 'Q:', each answer one "
    "that starts with 'A:'. Give at least three.",
    "table": "Write a short introduction and then a table in Markdown, with a header and at least three rows of the same number of cells, "
    "and a sentence that says what can be learnt from it.",
    "dialogue": "Write a conversation between a teacher and a student. Each turn is a line that starts with 'Teacher:' or 'Student:'. The "
    "student asks, makes a mistake once, and understands in the end. Write at least six turns.",
}
AUDIENCES = {
    "children": "children of about nine, in short sentences and plain words",
    "students": "school students of about fifteen, who know the basics",
    "undergraduates": "first-year university students, precisely and with the proper terms",
    "adults": "curious adults without training in the subject, who want to use what they learn",
}
PROBLEMS = {"section": 2, "problems": 4, "reasoning": 1, "faq": 3, "table": 4, "dialogue": 2}
"""Problems that a document of each format has; `reasoning` has one, so that its steps can be many."""
PASSAGE_CHARACTERS = 800
PASSAGES, PASSAGE_KEPT = 10_000, 20_000
"""Seed passages that are kept in memory, and characters of each."""


@dataclass(frozen=True)
class Item:
    """A document to ask for. kind: of the embedded problems, "" where the topic has none; passage: a seed, "" without."""

    number: int
    topic: str
    aspect: str
    audience: str
    format: str
    kind: str
    problems: tuple[Passage, ...]
    passage: str


class DocumentPlan:
    """Item `number` of a run, for any number: more documents leave the earlier ones as they are.

    The product of topics, audiences and formats is gone through in a seeded order, again and again, so that each combination comes up
    equally often; a topic's aspect and the seed passage are drawn.

    Args:
      passages: texts of which a piece is put into the prompt; empty: none.
      solved: draw problems with known answers for every format of a topic that has them, not only for problem sets and reasoning.
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
        self.seed, self.passages, self.solved = seed, tuple(passages), solved
        self.combinations = [
            (topic, audience, form)
            for topic in topics
            for audience in audiences
            for form in formats
        ]
        self._kinds = {topic: kind for kind, topic in subjects.KINDS.items()}
        self._order: tuple[int, list[int]] = (-1, [])

    def item(self, number: int) -> Item:
        """The item of a number, 0-based."""
        cycle, place = divmod(number, len(self.combinations))
        if self._order[0] != cycle:
            order = list(range(len(self.combinations)))
            random.Random(f"{self.seed}/cycle/{cycle}").shuffle(order)
            self._order = (cycle, order)
        topic, audience, form = self.combinations[self._order[1][place]]
        rng = random.Random(f"{self.seed}/item/{number}")
        aspect = rng.choice(subjects.ASPECTS)
        seeded = _piece(rng.choice(self.passages), rng) if self.passages else ""
        kind = self._kinds.get(topic, "")
        wanted = (
            PROBLEMS[form] if kind and (self.solved or form in ("problems", "reasoning")) else 0
        )
        # A stride of ten is more than any document has, so that no two documents share a number.
        drawn = tuple(
            passage(kind, 10 * number + i, seed=self.seed, split="train") for i in range(wanted)
        )
        return Item(number, topic, aspect, audience, form, kind, drawn, seeded)


def prompt(item: Item) -> str:
    """What a teacher that follows instructions is told; a function of the item alone."""
    *area, topic = item.topic.split(" > ")
    about = f"The topic is {topic}" + (f" (in {', '.join(reversed(area))})." if area else ".")
    lines = [
        FORMATS[item.format],
        about,
        f"Write for {AUDIENCES.get(item.audience, item.audience)}.",
    ]
    if item.problems:
        many = len(item.problems) > 1
        lines.append(
            f"Use exactly {'these problems, in this order' if many else 'this problem'}, word for word:"
        )
        lines += [
            f"{i}. {found.prompt}" if many else found.prompt
            for i, found in enumerate(item.problems, 1)
        ]
    else:
        lines.append(f"Write about {item.aspect}.")
    if item.passage:
        lines.append(f"Take ideas, but no sentences, from this passage:\n---\n{item.passage}\n---")
    lines.append(
        "Be correct: every calculation must hold. Write the text alone, without any remark about it."
    )
    return "\n".join(lines)


def opening(item: Item) -> str:
    """The beginning of the document, for a teacher that continues text: the problem, or a title."""
    return (
        f"{item.problems[0].prompt}\n"
        if item.problems
        else f"# {item.topic.split(' > ')[-1].capitalize()}\n\n"
    )


def key(model: str, text: str, parameters: dict) -> str:
    """What a request is known by: a hash of model, prompt and parameters, and of nothing else, so that it survives changes of the code."""
    return hashlib.sha256(
        json.dumps([model, text, parameters], sort_keys=True).encode()
    ).hexdigest()


def read_topics(value: str) -> list[str]:
    """The topics of a file, one a line ("subject > area > topic" or any text; # begins a comment); "" is the subject tree.

    Raises: UserError for a file that is missing, not UTF-8 or has no topic.
    """
    if not value:
        return subjects.topics()
    try:
        lines = Path(os.path.expanduser(value)).read_text("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        told = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise UserError(
            f"config.synthesize.topics: '{value}' cannot be read: {told}; expected a file with a topic on each line."
        ) from error
    found = list(
        dict.fromkeys(
            line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")
        )
    )
    if not found:
        raise UserError(
            f"config.synthesize.topics: '{value}' has no topic; expected one on each line."
        )
    return found


def read_seeds(value: str) -> list[str]:
    """Texts for seed passages: the first documents of a file, folder or pattern, as data.sources has them; "" is none.

    Raises: UserError for what cannot be read, and for a source most of whose records cannot be used.
    """
    out: list[str] = []
    for source in parse_sources(value):
        before, faults = len(out), []
        where = f"config.synthesize.passages.{source.name}"
        for file in list_files(replace(source, name=where)):
            for found in read_documents(file, replace(source, name=where)):
                if isinstance(found, Document):
                    out.append(found.text[:PASSAGE_KEPT])
                else:
                    faults.append(f"{file.name} line {found.line}: {found.reason}: {found.detail}")
                if len(out) == PASSAGES:
                    return out
        used = len(out) - before
        if not used and not faults:
            raise UserError(
                f"config.synthesize.passages: the files of '{source.name}' hold no record."
            )
        if not used or len(faults) > used:
            raise UserError(
                f"config.synthesize.passages: {len(faults)} of {len(faults) + used} records of "
                f"'{source.name}' cannot be used ({faults[0].rstrip('. ')})."
            )
    return out


def chosen(name: str, value: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """Names out of `known`, given as a sequence or with commas.

    Raises: UserError naming the first unknown one.
    """
    names = tuple(
        part.strip()
        for part in (value.split(",") if isinstance(value, str) else value)
        if part.strip()
    )
    for found in names:
        if found not in known:
            raise UserError(
                f"config.synthesize.{name}: there is no '{found}'; there are {', '.join(known)}.{nearest(found, known)}"
            )
    if not names:
        raise UserError(f"config.synthesize.{name} is empty; name some of {', '.join(known)}.")
    return names


def _piece(text: str, rng: random.Random) -> str:
    """A piece of a text, from one blank or line end to another."""
    start = rng.randrange(max(1, len(text) - PASSAGE_CHARACTERS))
    blank = text.find(" ", start)
    if start and blank >= 0:
        start = blank + 1
    piece = text[start : start + PASSAGE_CHARACTERS]
    return piece.rpartition(" ")[0].strip() or piece.strip() or text[:PASSAGE_CHARACTERS].strip()
