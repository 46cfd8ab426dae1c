"""A seeded procedural textbook: a corpus that needs no data and no network for a first run.

Every passage is a question, its working and an answer line, and is a pure function of (seed, split,
kind, index).

What "held out" means here. A held-out passage
  - gives at least one number that no training passage contains anywhere (`RESERVED_NUMBERS`, nine
    of the two-digit numbers), so that its operands never stood together before; none of the nine
    has to be computed;
  - names only people and invented words that no training passage names (one in five is reserved);
  - is, once in five or six, worded by a template of its kind that no training passage uses.
All of this is made of pieces that training shows: digits, syllables, words. Names and numbers come
back in the working, where a model that copies from its context knows them and one that counts
n-grams does not.
"""

import os
import random
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from slmjax.textbook.draw import RESERVED_NUMBERS, Draw
from slmjax.textbook.record_files import first_different, write_or_keep
from slmjax.textbook.templates import KINDS, TEMPLATES

SPLITS = ("train", "heldout")
VERSION = 1  # counts up when the same seed would write other passages
GUESSED_FROM = 500  # training passages of a kind in which its answers are counted, for guessing

_ANSWER = re.compile(r"Answer: ([^\n]+?)\.(?:\n|$)")
_INTEGER = re.compile(r"\d+")


@dataclass(frozen=True)
class Passage:
    """One passage: `text` is prompt + working + answer line.

    Attributes:
      template: name of the problem and number of the wording.
      operands, names: those that were drawn, in order.
      choices: the answers that the prompt offers; none where the question is open.
      fields: {name: value} of the template's blanks; mistakes.py changes some of them.
    """

    text: str
    prompt: str
    answer: str
    kind: str
    template: str
    operands: tuple[int, ...]
    names: tuple[str, ...]
    choices: tuple[str, ...]
    fields: dict = field(hash=False)


@dataclass(frozen=True)
class Question:
    """A held-out prompt, its exact answer, and the chance of guessing it (see `questions`)."""

    prompt: str
    answer: str
    chance: float


def passage(kind: str, index: int, *, seed: int, split: str) -> Passage:
    """Return the passage number `index` of a kind: a pure function of its arguments.

    Args:
      kind: one of KINDS.
      index: 0, 1, ...; different indices may, rarely, give the same passage: see `documents`.
      seed: of the whole corpus.
      split: "train" or "heldout".
    Raises: ValueError on an unknown kind or split; AssertionError where the two computations of a
      problem's answer disagree.
    """
    if kind not in TEMPLATES or split not in SPLITS:
        known = f"kinds: {', '.join(KINDS)}; splits: {', '.join(SPLITS)}"
        raise ValueError(f"no textbook passages of {kind!r} and {split!r}; {known}")
    heldout = split == "heldout"
    # Seeded by a string: Python hashes it the same way in every process and version.
    rng = random.Random(f"{seed}/{split}/{kind}/{index}")
    # A template's number is its place among all of its kind, also those for held-out passages.
    numbered = enumerate(TEMPLATES[kind])
    usable = [(number, item) for number, item in numbered if heldout or not item.heldout]
    number, template = rng.choice(usable)
    while True:
        draw = Draw(rng, heldout)
        problem = template.problem(draw)
        prompt = template.prompt.format_map(problem.fields)
        working = template.working.format_map(problem.fields)
        text = f"{prompt}\n{working}\nAnswer: {problem.answer}."
        if _fits_split(text, draw, heldout):  # else it is drawn again
            break
    answer, again = str(problem.answer), str(problem.again)
    if answer != again:
        raise AssertionError(f"two computations disagree, {answer} and {again}, on: {text}")
    return Passage(
        text,
        prompt,
        answer,
        kind,
        template=f"{template.problem.__name__}-{number}",
        operands=tuple(draw.numbers),
        names=tuple(draw.names),
        choices=problem.choices,
        fields=problem.fields,
    )


def documents(kind: str, count: int, *, seed: int, split: str) -> Iterator[Passage]:
    """Yield the first `count` different passages of a kind.

    Raises: ValueError where there are not so many.
    """

    def numbered(index: int) -> Passage:
        return passage(kind, index, seed=seed, split=split)

    what = f"{split} passages of the kind {kind}"
    return first_different(numbered, lambda item: item.text, count, what)


def questions(kind: str, count: int, seed: int) -> list[Question]:
    """Return the first `count` held-out passages of a kind as questions.

    A model writes the working and "Answer: X." after the prompt. The chance of a question is that
    of the better of two guessers. One always gives the problem's most frequent answer among
    GUESSED_FROM training passages. The other picks at random from the answers that the prompt
    offers (its names, or yes and no).
    """
    constant_guess = _constant_guess(kind, seed)
    asked = []
    for item in documents(kind, count, seed=seed, split="heldout"):
        chance = constant_guess[_problem_of(item)]
        if item.choices:
            chance = max(chance, 1 / len(item.choices))
        asked.append(Question(item.prompt, item.answer, chance))
    return asked


def extract_answer(generated: str) -> str | None:
    """Return what the first complete answer line says ("Answer: 42." gives "42"), or None."""
    match = _ANSWER.search(generated)
    return match.group(1) if match else None


def write_corpus(
    folder: str | os.PathLike, *, seed: int, train_per_kind: int, heldout_per_kind: int
) -> dict[str, dict[str, str]]:
    """Write `<kind>.jsonl` and `<kind>.heldout.jsonl`, one {"text", "id", "template"} a line.

    Files that the same arguments have written before are kept if they are unchanged.
    Returns: kind -> {"path": training file, "heldout": held-out file}, as `config.data.sources`
      takes it.
    """
    folder = Path(folder)
    settings = {
        "version": VERSION,
        "seed": seed,
        "train_per_kind": train_per_kind,
        "heldout_per_kind": heldout_per_kind,
    }
    sources: dict[str, dict[str, str]] = {}
    files: dict[Path, Iterator[dict]] = {}
    for kind in KINDS:
        train, heldout = folder / f"{kind}.jsonl", folder / f"{kind}.heldout.jsonl"
        sources[kind] = {"path": str(train), "heldout": str(heldout)}
        files[train] = _records(kind, train_per_kind, seed, "train")
        files[heldout] = _records(kind, heldout_per_kind, seed, "heldout")
    write_or_keep(folder / "textbook.json", settings, files)
    return sources


def _records(kind: str, count: int, seed: int, split: str) -> Iterator[dict]:
    """Yield the records of the first `count` passages of a kind."""
    for number, item in enumerate(documents(kind, count, seed=seed, split=split)):
        yield {"text": item.text, "id": f"{kind}/{split}/{number}", "template": item.template}


def _fits_split(text: str, draw: Draw, heldout: bool) -> bool:
    """Whether a drawn text may be in its split.

    In training no reserved number occurs at all. In a held-out passage at least one is given, and
    none has to be computed.
    """
    reserved = set(RESERVED_NUMBERS).intersection(map(int, _INTEGER.findall(text)))
    if not heldout:
        return not reserved
    return bool(reserved) and reserved.issubset(draw.numbers)


def _problem_of(item: Passage) -> str:
    """Return the name of the problem, without the number of the wording."""
    return item.template.rsplit("-", 1)[0]


@cache
def _constant_guess(kind: str, seed: int) -> dict[str, float]:
    """Return problem -> share of its most frequent answer among training passages."""
    answers: dict[str, Counter] = {}
    for item in documents(kind, GUESSED_FROM, seed=seed, split="train"):
        answers.setdefault(_problem_of(item), Counter())[item.answer] += 1
    shares = {}
    for problem, counts in answers.items():
        shares[problem] = max(counts.values()) / counts.total()
    return shares
