"""Finds documents that hold an item of an evaluation set, by how much of the item's text they hold.

One long n-gram in common (GPT-3 and others: 13 words) is a template or an identity as often as a copy, and one changed name breaks it. Here
short runs of words only point to an item; then the item is laid on that place of the document and its words are counted.
"""

import io
import os
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from etils import epath

from slmjax.curate.eval_items import Passages, number_words, read_passages
from slmjax.errors import UserError
from slmjax.text.files import write_atomic
from slmjax.text.hashing import Matcher, hash_runs

RUN = 5  # words that point to an item,
TELLING = 2  # of them at least so many that are no names, numbers or single letters
COMMON = 64  # a run that is in more items than this is a template ("which of the following is") and tells nothing
LEAST = 13  # words that must agree (no names, numbers or template); GPT-3's length of an overlap: shorter ones are common phrases
THRESHOLD = 0.5  # share of an item's words; measured by `python -m slmjax.bench decontaminate`
TOUCH = 3  # words in a row that must agree where the item is laid on the document; single words agree everywhere
SCHEME = np.array([1, RUN, TELLING, COMMON, LEAST])  # what an index depends on
LOW = (1 << 32) - 1  # an item is its set's position and, in this half, its line


@dataclass(frozen=True)
class Hit:
    """Item `item` (its line; of equal items the first) of set `set`: the share `coverage` of its words is in text[start:end].

    Names, numbers, single letters and phrases that many items share are not counted.
    """

    set: str
    item: int
    coverage: float
    start: int
    end: int


class EvalIndex:
    """The passages of evaluation sets, and which runs of words point to them."""

    def __init__(self, arrays: Mapping[str, np.ndarray]):
        """`arrays` as `build_index` and `load` give them."""
        self.arrays = dict(arrays)
        offsets = self.arrays["offsets"]
        self._matcher = Matcher(self.arrays["runs"])
        self._passage_of = np.repeat(np.arange(len(offsets) - 1, dtype=np.int32), np.diff(offsets))
        self._counted = (
            np.add.reduceat(self.arrays["counts"], offsets[:-1], dtype=np.int64)
            if len(offsets) > 1
            else offsets[:0]
        )
        self._slack = np.diff(offsets) // 2 + RUN

    def save(self, path: str | os.PathLike) -> None:
        """Write the index as .npz, whole or not at all."""
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **self.arrays)
        write_atomic(epath.Path(path), buffer.getvalue())

    @classmethod
    def load(cls, path: str | os.PathLike) -> "EvalIndex":
        """Read what `save` wrote. Raises: UserError for what is no such file, or was written by another version."""
        try:
            with np.load(io.BytesIO(epath.Path(path).read_bytes()), allow_pickle=False) as file:
                arrays = dict(file)
        # Whatever a damaged archive can raise; its content has checksums.
        except (
            OSError,
            ValueError,
            LookupError,
            AttributeError,
            EOFError,
            RuntimeError,
            zipfile.BadZipFile,
            zlib.error,
        ) as error:
            raise UserError(
                f"{path} is no index of evaluation sets ({error}); build it again."
            ) from error
        if not np.array_equal(arrays.get("scheme"), SCHEME):
            raise UserError(
                f"{path} was built by another version (scheme {arrays.get('scheme')}, now {SCHEME}); build it again."
            )
        try:
            return cls(arrays)
        except Exception as error:  # arrays of other types and sizes
            raise UserError(
                f"{path} is no index of evaluation sets ({type(error).__name__}: {error}); build it again."
            ) from error

    def undecided(self) -> dict[str, tuple[list[int], int]]:
        """Of each set: lines of the items that are too short, or too like many others, to be decided; and how many items it has."""
        places, lines = self.arrays["undecided"] >> 32, self.arrays["undecided"] & LOW
        names, items = self.arrays["sets"].tolist(), self.arrays["items"].tolist()
        return {
            name: (lines[places == place].tolist(), items[place])
            for place, name in enumerate(names)
        }

    def find(self, text: str, threshold: float = THRESHOLD) -> Hit | None:
        """The item that `text` covers best, if any."""
        return max(self.find_all(text, threshold), key=_surest, default=None)

    def find_all(self, text: str, threshold: float = THRESHOLD) -> list[Hit]:
        """Every item of which `text` holds the share `threshold`, and at least LEAST words, in order and in one place.

        Names and numbers may be others. An item is covered by its question alone, too.
        """
        words, starts, ends = number_words(text)
        where, place = self._matcher.locate(hash_runs(words, RUN))
        if not len(where):  # as in three of four documents
            return []
        passages, diagonals = self._pointed(where, place, threshold)
        hits: dict[int, Hit] = {}
        for passage in np.unique(passages).tolist():
            matched, first, last = self._lay(
                passage, words, np.unique(diagonals[passages == passage])
            )
            if matched >= self._needed(passage, threshold):
                item, coverage = (
                    int(self.arrays["item"][passage]),
                    matched / int(self._counted[passage]),
                )
                hit = Hit(
                    str(self.arrays["sets"][item >> 32]),
                    item & LOW,
                    coverage,
                    int(starts[first]),
                    int(ends[last]),
                )
                hits[item] = max(hits.get(item, hit), hit, key=_surest)
        return list(hits.values())

    def _needed(self, passages: Any, threshold: float) -> Any:
        return np.maximum(LEAST, threshold * self._counted[passages])

    def _pointed(
        self, where: np.ndarray, place: np.ndarray, threshold: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Passages that enough runs of one place in the document point to; each such run's diagonal: its place less that in the passage.

        Enough is one for every six words that must agree, and one more: about as many are left whole when every sixth word is another.
        """
        first = self.arrays["first"][place]
        counts = self.arrays["first"][place + 1] - first
        rows = np.repeat(first - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())
        at = self.arrays["at"][rows]
        passages = self._passage_of[at].astype(np.int64)
        diagonals = np.repeat(where, counts) - (at - self.arrays["offsets"][passages])
        code = np.sort((passages << 32) + diagonals + (1 << 31))
        passages, diagonals = code >> 32, (code & LOW) - (1 << 31)
        ahead = np.arange(len(code)) + (self._needed(passages, threshold) // 6).astype(np.int64)
        inside = np.flatnonzero(ahead < len(code))
        near = inside[code[ahead[inside]] - code[inside] <= self._slack[passages[inside]]]
        keep = np.isin(passages, passages[near])
        return passages[keep], diagonals[keep]

    def _lay(self, passage: int, words: np.ndarray, diagonals: np.ndarray) -> tuple[int, int, int]:
        """(words that agree, first and last such place in the document) where they are most.

        Beside names, which agree with anything, TOUCH words in a row must agree on a diagonal. Words may be put in, left out or moved by
        half the length of the passage: the diagonals that count together are no further apart.
        """
        begin, end = self.arrays["offsets"][passage : passage + 2]
        own, counts, free = (self.arrays[name][begin:end] for name in ("words", "counts", "names"))
        place = diagonals[:, None] + np.arange(end - begin)
        inside = (place >= 0) & (place < len(words))
        agree = inside & (free | (words[np.clip(place, 0, len(words) - 1)] == own))
        rows = _in_runs(agree)
        best, last = (0, 0, 0), 0
        for first, diagonal in enumerate(diagonals.tolist()):
            stop = int(np.searchsorted(diagonals, diagonal + self._slack[passage], "right"))
            if stop == last:
                continue
            last, covered = stop, rows[first:stop]
            places = place[first:stop]
            matched = min(
                int((covered.any(0) & counts).sum()), len(np.unique(places[covered & counts]))
            )
            if matched > best[0]:
                best = (matched, int(places[covered].min()), int(places[covered].max()))
        return best


def _surest(hit: Hit) -> tuple[float, int]:
    return hit.coverage, hit.end - hit.start


def build_index(sets: Mapping[str, Mapping[str, Any]]) -> EvalIndex:
    """The index of {name: {"path": a .jsonl file, plain or compressed, "fields": the fields whose text is the item's}}.

    The first field is what is asked: it is judged alone, too, so that a question without its answer is found.
    Raises: UserError for a file or field that is not there, a damaged file, or a field that holds no text.
    """
    found = read_passages(sets, LEAST)
    lengths = np.diff(found.offsets)
    passage_of = np.repeat(np.arange(len(lengths)), lengths)
    first_text = np.unique(np.append(-1, found.origins[:, 2]), return_index=True)[1][1:] - 1
    items = (found.origins[:, 0] << 32) + found.origins[:, 1]
    runs, at = _rare_runs(found, passage_of, items[first_text])
    counts = np.zeros(len(found.words), bool)
    for k in range(RUN):
        counts[at + k] = True
    counts &= found.telling
    alike = np.bincount(found.origins[:, 2] + 1, minlength=1)[1:]
    enough = (np.bincount(passage_of, counts, len(lengths)) >= LEAST) & (alike <= COMMON)
    keep = enough[passage_of]
    runs, at = runs[keep[at]], (np.cumsum(keep) - 1)[at[keep[at]]]
    runs, first = np.unique(runs, return_index=True)
    decided = items[(found.origins[:, 2] >= 0) & np.append(enough, False)[found.origins[:, 2]]]
    return EvalIndex(
        {
            "scheme": SCHEME,
            "words": found.words[keep],
            "names": found.names[keep],
            "counts": counts[keep],
            "offsets": np.cumsum(np.append(0, lengths[enough])),
            "item": items[first_text][enough],
            "runs": runs,
            "first": np.append(first, len(at)),
            "at": at.astype(np.int32),
            "sets": np.array(list(sets), np.str_),
            "items": np.bincount(np.unique(items) >> 32, minlength=len(sets)),
            "undecided": np.setdiff1d(items, decided),
        }
    )


def _rare_runs(
    found: Passages, passage_of: np.ndarray, items: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Hashes, ascending, of the runs of RUN words that at most COMMON items hold, and where in the row of words each begins."""
    runs = hash_runs(found.words, RUN)
    told = np.append(0, np.cumsum(found.telling))
    inside = passage_of[RUN - 1 :] == passage_of[: len(runs)]
    at = np.flatnonzero(inside & (told[RUN:] - told[:-RUN] >= TELLING))
    at = at[np.argsort(runs[at], kind="stable")]
    kind = np.cumsum(np.append(False, runs[at[1:]] != runs[at[:-1]]))[: len(at)]
    item = items[passage_of[at]]
    order = np.lexsort((item, kind))
    new = np.append(
        True, (kind[order][1:] != kind[order][:-1]) | (item[order][1:] != item[order][:-1])
    )[: len(at)]
    at = at[(np.bincount(kind[order][new]) <= COMMON)[kind]]
    return runs[at], at


def _in_runs(agree: np.ndarray) -> np.ndarray:
    """Of each row, the places that are within TOUCH or more True in a row."""
    width = agree.shape[1] - TOUCH + 1
    whole = np.ones((len(agree), width), bool)
    for k in range(TOUCH):
        whole &= agree[:, k : k + width]
    out = np.zeros_like(agree)
    for k in range(TOUCH):
        out[:, k : k + width] |= whole
    return out
