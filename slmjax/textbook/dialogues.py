"""Dialogues and right/wrong pairs from the textbook: data for alignment without any files.

Every record is a pure function of (seed, split, index). Held-out records are made of held-out
passages, so that their names, their invented words and one of their numbers are in no training
record (see passages.py).

Only the result tells the two answers of a pair apart. Both draw their opening from the same few, so
that neither length nor first words show which one is right.
"""

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from random import Random

from slmjax.text.conversations import ASSISTANT, SYSTEM, USER
from slmjax.textbook import passages
from slmjax.textbook.mistakes import wrong_solution
from slmjax.textbook.passages import KINDS, Passage, passage
from slmjax.textbook.record_files import first_different, write_or_keep

VERSION = 1  # counts up when the same seed would write other records
# The passages begin at these numbers, far behind those that a base model has read.
FIRST_OF_DIALOGUES, FIRST_OF_PAIRS = 10_000_000, 20_000_000
# Shares of the dialogues with a second question, and with a system turn.
TWO_QUESTIONS, WITH_SYSTEM = 0.25, 0.25
# Share of the pairs whose two answers have the same opening. Where results differ in length, so do
# these answers; about a third of all pairs have answers of the same length.
SAME_OPENING = 0.45

SYSTEM_TURNS = (
    "Give the working first, then the answer.",
    "Show how you get the result. The answer comes last.",
    "You solve short problems. Write the working and then the answer.",
)
# What the user says before the first question, and before the second.
BEFORE_FIRST = ("", "", "Can you help me? ", "I have a question. ", "Please work this out. ")
BEFORE_SECOND = ("", "Thank you. ", "Thanks. Here is the next one. ", "And this one? ")
# The assistant's first line, before the working.
OPENINGS = ("", "Let us see.\n", "Here is how I get it.\n")


def write_dialogues(
    folder: str | os.PathLike, *, seed: int, train: int, heldout: int
) -> dict[str, str]:
    """Write dialogues.jsonl and dialogues.heldout.jsonl, one {"messages", "id"} a line.

    Files that the same arguments have written before are kept if they are unchanged.

    Args:
      train, heldout: how many dialogues.
    Returns: {"path": training file, "heldout": held-out file}, a source of `config.data.sources`.
    Raises: ValueError where the textbook has fewer.
    """
    counts = {"train": train, "heldout": heldout}
    return _write(folder, "dialogues", textbook_dialogue, seed, counts)


def write_pairs(
    folder: str | os.PathLike, *, seed: int, train: int, heldout: int
) -> dict[str, str]:
    """Write pairs.jsonl and pairs.heldout.jsonl, one {"prompt", "chosen", "rejected", "id"} a line.

    Files that the same arguments have written before are kept if they are unchanged.

    Args:
      train, heldout: how many pairs.
    Returns: {"path": training file, "heldout": held-out file}, a source of `config.data.sources`.
    Raises: ValueError where the textbook has fewer.
    """
    counts = {"train": train, "heldout": heldout}
    return _write(folder, "pairs", textbook_pair, seed, counts)


def textbook_dialogue(index: int, *, seed: int, split: str) -> dict:
    """Return the dialogue number `index`, {"messages": [{"role", "content"}, ...]}.

    Raises: ValueError on an unknown split.
    """
    rng = Random(f"{seed}/{split}/dialogues/{index}")
    befores = [BEFORE_FIRST]
    if rng.random() < TWO_QUESTIONS:
        befores.append(BEFORE_SECOND)
    kinds = rng.sample(KINDS, len(befores))
    messages = []
    if rng.random() < WITH_SYSTEM:
        messages.append(_turn(SYSTEM, rng.choice(SYSTEM_TURNS)))
    for kind, before in zip(kinds, befores):
        item = passage(kind, FIRST_OF_DIALOGUES + index, seed=seed, split=split)
        question = rng.choice(before) + _question(item)
        answer = rng.choice(OPENINGS) + _solution(item)
        messages.append(_turn(USER, question))
        messages.append(_turn(ASSISTANT, answer))
    return {"messages": messages}


def textbook_pair(index: int, *, seed: int, split: str) -> dict[str, str]:
    """Return the pair number `index`, {"prompt", "chosen", "rejected"}.

    Raises: ValueError on an unknown split.
    """
    rng = Random(f"{seed}/{split}/pairs/{index}")
    kind = rng.choice(KINDS)
    item = passage(kind, FIRST_OF_PAIRS + index, seed=seed, split=split)
    # Either order of two openings has the same chance.
    opening, other_opening = rng.sample(OPENINGS, 2)
    if rng.random() < SAME_OPENING:
        other_opening = opening
    working, answer = wrong_solution(item, rng)
    return {
        "prompt": rng.choice(BEFORE_FIRST) + _question(item),
        "chosen": opening + _solution(item),
        "rejected": f"{other_opening}{working}\nAnswer: {answer}.",
    }


def _write(
    folder: str | os.PathLike,
    name: str,
    record: Callable[..., dict],
    seed: int,
    counts: dict[str, int],
) -> dict[str, str]:
    """Write the training file and the held-out file of one sort of records.

    Args:
      record: returns the record of an index; it takes the seed and the split as keywords.
      counts: {split: how many records}.
    """
    folder = Path(folder)
    train = folder / f"{name}.jsonl"
    heldout = folder / f"{name}.heldout.jsonl"
    settings = {
        "version": VERSION,
        "passages": passages.VERSION,
        "seed": seed,
        **counts,
    }
    files = {}
    for split, path in {"train": train, "heldout": heldout}.items():
        record_of_index = partial(record, seed=seed, split=split)
        files[path] = _numbered(record_of_index, counts[split], f"{name}/{split}")
    write_or_keep(folder / f"{name}.json", settings, files)
    return {"path": str(train), "heldout": str(heldout)}


def _numbered(record: Callable[[int], dict], count: int, name: str) -> Iterator[dict]:
    """Yield the first different records, with ids that begin with `name`."""
    different = first_different(record, repr, count, f"records of {name}")
    for number, fields in enumerate(different):
        yield fields | {"id": f"{name}/{number}"}


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _question(item: Passage) -> str:
    """Return a prompt without the words that only a book uses."""
    return item.prompt.replace(" In use:", "")


def _solution(item: Passage) -> str:
    """Return the right working and answer line."""
    return item.text.removeprefix(f"{item.prompt}\n")
