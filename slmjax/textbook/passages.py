"""A seeded procedural textbook: the corpus that comes with the library, so that a first run needs no data and no network.

Every passage is a question, its working and an answer line, and is a pure function of (seed, split, kind, index).

What "held out" means here. A held-out passage
  - gives at least one number that no training passage contains anywhere (`RESERVED_NUMBERS`, nine of the two-digit numbers), so that its
    operands never stood together before; none of the nine has to be computed;
  - names only people and invented words that no training passage names (one in five is reserved);
  - is, once in five or six, worded by a template of its kind that no training passage uses.
All of this is made of pieces that training shows: digits, syllables, words. Names and numbers come back in the working, where a model that
copies from its context knows them and one that counts n-grams does not.
"""

import hashlib
import json
import os
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from slmjax.text.files import write_atomic
from slmjax.textbook.draw import RESERVED_NUMBERS, Draw, Template
from slmjax.textbook.number_kinds import COMPARISON, SEQUENCES, UNIT_CONVERSION, WORD_PROBLEMS
from slmjax.textbook.word_kinds import DEFINITIONS, LOGIC

TEMPLATES: dict[str, tuple[Template, ...]] = {
    "word_problems": WORD_PROBLEMS,
    "units": UNIT_CONVERSION,
    "comparison": COMPARISON,
    "sequences": SEQUENCES,
    "logic": LOGIC,
    "definitions": DEFINITIONS,
}
KINDS: tuple[str, ...] = tuple(TEMPLATES)
SPLITS = ("train", "heldout")
VERSION = 1  # counts up when the same seed would write other passages

_ANSWER = re.compile(r"Answer: ([^\n]+?)\.(?:\n|$)")
_INTEGER = re.compile(r"\d+")


@dataclass(frozen=True)
class Passage:
    """One passage: `text` is prompt + working + answer line; `choices` are the answers that the prompt offers (none: an open question)."""

    text: str
    prompt: str
    answer: str
    kind: str
    template: str
    operands: tuple[int, ...]
    names: tuple[str, ...]
    choices: tuple[str, ...]


@dataclass(frozen=True)
class Question:
    """A held-out prompt, its exact answer, and the chance of guessing it (see `questions`)."""

    prompt: str
    answer: str
    chance: float


def passage(kind: str, index: int, *, seed: int, split: str) -> Passage:
    """The passage number `index` of a kind: a pure function of its arguments.

    Args:
      kind: one of KINDS.
      index: 0, 1, ...; different indices may, rarely, give the same passage: see `documents`.
      seed: of the whole corpus.
      split: "train" or "heldout".
    Raises: ValueError on an unknown kind or split.
    """
    if kind not in TEMPLATES or split not in SPLITS:
        raise ValueError(
            f"no textbook passages of {kind!r} and {split!r}; kinds: {', '.join(KINDS)}; splits: {', '.join(SPLITS)}"
        )
    heldout = split == "heldout"
    rng = random.Random(f"{seed}/{split}/{kind}/{index}")
    usable = [
        (i, template)
        for i, template in enumerate(TEMPLATES[kind])
        if heldout or not template.heldout
    ]
    number, template = rng.choice(usable)
    while True:
        draw = Draw(rng, heldout)
        problem = template.problem(draw)
        prompt = template.prompt.format_map(problem.fields)
        text = f"{prompt}\n{template.working.format_map(problem.fields)}\nAnswer: {problem.answer}."
        if _belongs(text, draw, heldout):
            break
    if str(problem.answer) != str(problem.again):
        raise AssertionError(
            f"two computations disagree, {problem.answer} and {problem.again}, on: {text}"
        )
    return Passage(
        text,
        prompt,
        str(problem.answer),
        kind,
        f"{template.problem.__name__}-{number}",
        tuple(draw.numbers),
        tuple(draw.names),
        problem.choices,
    )


def documents(kind: str, count: int, *, seed: int, split: str) -> Iterator[Passage]:
    """The first `count` different passages of a kind."""
    seen: set[str] = set()
    index = 0
    while len(seen) < count:
        if (found := passage(kind, index, seed=seed, split=split)).text not in seen:
            seen.add(found.text)
            yield found
        index += 1
        if index > 100 * count + 10_000:
            raise ValueError(
                f"the textbook has fewer than {count} different {split} passages of the kind {kind}"
            )


def write_corpus(
    folder: str | os.PathLike, *, seed: int, train_per_kind: int, heldout_per_kind: int
) -> dict[str, dict[str, str]]:
    """Write `<kind>.jsonl` and `<kind>.heldout.jsonl`, one {"text", "id", "template"} a line; the same arguments again reuse what is there.

    Returns: kind -> {"path": training file, "heldout": held-out file}, as `config.data.sources` takes it.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    made = {
        "version": VERSION,
        "seed": seed,
        "train_per_kind": train_per_kind,
        "heldout_per_kind": heldout_per_kind,
    }
    files = {
        kind: {
            "path": str(folder / f"{kind}.jsonl"),
            "heldout": str(folder / f"{kind}.heldout.jsonl"),
        }
        for kind in KINDS
    }
    stamp = folder / "textbook.json"
    paths = [Path(path) for pair in files.values() for path in pair.values()]
    if _read_stamp(stamp) == made | {"sha256": _digest(paths)}:
        return files
    stamp.unlink(missing_ok=True)
    for kind, pair in files.items():
        for path, split, count in (
            (pair["path"], "train", train_per_kind),
            (pair["heldout"], "heldout", heldout_per_kind),
        ):
            lines = (
                json.dumps(
                    {"text": found.text, "id": f"{kind}/{split}/{i}", "template": found.template}
                )
                for i, found in enumerate(documents(kind, count, seed=seed, split=split))
            )
            write_atomic(Path(path), "".join(line + "\n" for line in lines))
    write_atomic(stamp, json.dumps(made | {"sha256": _digest(paths)}))
    return files


def _read_stamp(stamp: Path) -> Any:
    """What `write_corpus` has written last; None where nothing says so."""
    try:
        return json.loads(stamp.read_text())
    except (OSError, ValueError, RecursionError):
        return None


def _digest(paths: Sequence[Path]) -> str:
    """Of files that are all there; "" where one is not."""
    digest = hashlib.sha256()
    for path in paths:
        if not path.exists():
            return ""
        digest.update(path.read_bytes())
    return digest.hexdigest()


def questions(kind: str, count: int, seed: int) -> list[Question]:
    """The first `count` held-out passages of a kind as questions; a model writes the working and "Answer: X." after the prompt.

    The chance of a question is the better of two guessers that know only what sort of problem it is: one says what is most often the answer
    of such problems among 500 training passages, the other picks one of the answers that the prompt offers (its names, or yes and no).
    """
    constant = _constant_guess(kind, seed)
    return [
        Question(
            found.prompt,
            found.answer,
            max(constant[_problem(found)], 1 / len(found.choices) if found.choices else 0.0),
        )
        for found in documents(kind, count, seed=seed, split="heldout")
    ]


def extract_answer(generated: str) -> str | None:
    """What stands in the first complete answer line ("Answer: 42." gives "42"), or None."""
    match = _ANSWER.search(generated)
    return match.group(1) if match else None


def _belongs(text: str, draw: Draw, heldout: bool) -> bool:
    """Training: no reserved number at all. Held out: at least one is given, and none has to be computed."""
    reserved = set(RESERVED_NUMBERS).intersection(map(int, _INTEGER.findall(text)))
    return bool(reserved) and reserved.issubset(draw.numbers) if heldout else not reserved


def _problem(found: Passage) -> str:
    return found.template.rsplit("-", 1)[0]


@cache
def _constant_guess(kind: str, seed: int) -> dict[str, float]:
    """Problem -> share of its most frequent answer among training passages."""
    answers: dict[str, Counter] = {}
    for found in documents(kind, 500, seed=seed, split="train"):
        answers.setdefault(_problem(found), Counter())[found.answer] += 1
    return {problem: max(counts.values()) / counts.total() for problem, counts in answers.items()}
