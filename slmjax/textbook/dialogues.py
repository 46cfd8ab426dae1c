"""Dialogues and right/wrong pairs from the textbook: data for alignment without any files.

Every record is a pure function of (seed, split, index). Held-out records are made of held-out
passages, so that their names, their invented words and one of their numbers are in no training
record (see passages.py).

Nothing but the result tells the two answers of a pair apart. Both draw their opening from the same
few, so that either is as often the longer one and has the same first words.
"""

import os
import random
from pathlib import Path

from slmjax.textbook import passages
from slmjax.textbook.mistakes import wrong_solution
from slmjax.textbook.passages import KINDS, Passage, passage
from slmjax.textbook.record_files import first_different, write_or_keep

VERSION = 1  # counts up when the same seed would write other records
# The passages begin at these numbers, far behind those that a base model has read.
FIRST_OF_DIALOGUES, FIRST_OF_PAIRS = 10_000_000, 20_000_000
# Shares of the dialogues with a second question, and with a system turn.
TWO_QUESTIONS, WITH_SYSTEM = 0.25, 0.25
# Share of the pairs whose answers have the same opening. Where results differ in length, so do
# these answers; with this share about a third of all pairs have answers of the same length.
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
    return _write(folder, "dialogues", {"seed": seed, "train": train, "heldout": heldout})


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
    return _write(folder, "pairs", {"seed": seed, "train": train, "heldout": heldout})


def textbook_dialogue(index: int, *, seed: int, split: str) -> dict:
    """Return the dialogue number `index`, {"messages": [{"role", "content"}, ...]}.

    Raises: ValueError on an unknown split.
    """
    rng = random.Random(f"{seed}/{split}/dialogues/{index}")
    kinds = rng.sample(KINDS, 2 if rng.random() < TWO_QUESTIONS else 1)
    messages = []
    if rng.random() < WITH_SYSTEM:
        messages.append({"role": "system", "content": rng.choice(SYSTEM_TURNS)})
    for kind, before in zip(kinds, (BEFORE_FIRST, BEFORE_SECOND)):
        item = passage(kind, FIRST_OF_DIALOGUES + index, seed=seed, split=split)
        answer = _solution(rng.choice(OPENINGS), _working(item), item.answer)
        messages.append({"role": "user", "content": rng.choice(before) + _question(item)})
        messages.append({"role": "assistant", "content": answer})
    return {"messages": messages}


def textbook_pair(index: int, *, seed: int, split: str) -> dict[str, str]:
    """Return the pair number `index`, {"prompt", "chosen", "rejected"}.

    Raises: ValueError on an unknown split.
    """
    rng = random.Random(f"{seed}/{split}/pairs/{index}")
    item = passage(rng.choice(KINDS), FIRST_OF_PAIRS + index, seed=seed, split=split)
    # Either order of two openings has the same chance.
    opening = other_opening = rng.choice(OPENINGS)
    if rng.random() >= SAME_OPENING:
        other_opening = rng.choice([other for other in OPENINGS if other != opening])
    return {
        "prompt": rng.choice(BEFORE_FIRST) + _question(item),
        "chosen": _solution(opening, _working(item), item.answer),
        "rejected": _solution(other_opening, *wrong_solution(item, rng)),
    }


_RECORDS = {"dialogues": textbook_dialogue, "pairs": textbook_pair}


def _write(folder: str | os.PathLike, name: str, arguments: dict[str, int]) -> dict[str, str]:
    """Write both files of _RECORDS[name]; `arguments` are those of `write_dialogues`."""
    folder = Path(folder)
    train, heldout = folder / f"{name}.jsonl", folder / f"{name}.heldout.jsonl"
    settings = {"version": VERSION, "passages": passages.VERSION} | arguments
    files = {}
    for path, split in ((train, "train"), (heldout, "heldout")):
        files[path] = _numbered(name, arguments[split], arguments["seed"], split)
    write_or_keep(folder / f"{name}.json", settings, files)
    return {"path": str(train), "heldout": str(heldout)}


def _numbered(name: str, count: int, seed: int, split: str):
    """Yield the first different records, with their ids."""

    def record(index: int) -> dict:
        return _RECORDS[name](index, seed=seed, split=split)

    different = first_different(record, repr, count, f"{split} {name}")
    for number, fields in enumerate(different):
        yield fields | {"id": f"{name}/{split}/{number}"}


def _question(item: Passage) -> str:
    """Return a prompt without the words that only a book uses."""
    return item.prompt.replace(" In use:", "")


def _working(item: Passage) -> str:
    text = item.text.removeprefix(f"{item.prompt}\n")
    return text.removesuffix(f"\nAnswer: {item.answer}.")


def _solution(opening: str, working: str, answer: str) -> str:
    return f"{opening}{working}\nAnswer: {answer}."
