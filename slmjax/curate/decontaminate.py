"""Finds documents that hold an item of an evaluation set, by the share of the item's words in them.

One long n-gram in common (GPT-3 and others: 13 words) is a template or an identity as often as a
copy, and one changed name breaks it. Here short runs of words only point to an item. Then the item
is laid on that place of the document, and its words are counted.
"""

import io
import os
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Bool, Float, Int, UInt64

from slmjax.curate.eval_items import EvalSets, words_and_numbers
from slmjax.curate.eval_runs import COMMON, LEAST, RUN, TELLING, index_arrays
from slmjax.errors import UserError
from slmjax.text.files import write_atomic
from slmjax.text.hashing import Matcher, hash_runs

THRESHOLD = 0.5  # share of an item's words; measured by `python -m slmjax.bench decontaminate`
# Least number of words in a row that count as agreeing where an item is laid on a document: single
# words agree everywhere.
AGREE_IN_ROW = 3
FORMAT = 1  # of the arrays
SCHEME = np.array([FORMAT, RUN, TELLING, COMMON, LEAST])  # an index of another one is refused
# Some 64-bit numbers hold two values: the first in the upper half, the second in the lower one.
LOW = (1 << 32) - 1  # mask of the lower half
MIDDLE = 1 << 31  # added to a lower value that may be negative

# Everything that reading a damaged archive can raise. Changed bytes inside it are noticed by the
# archive's checksums.
UNREADABLE = (
    OSError,
    ValueError,
    LookupError,
    AttributeError,
    EOFError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
)


PerKnownRun = Int[np.ndarray, " known_runs"]
Pointers = Int[np.ndarray, " pointers"]


@dataclass(frozen=True)
class Hit:
    """An item of an evaluation set in a text."""

    set: str  # name of the evaluation set
    item: int  # the item's line; of equal items the first
    # Share of the item's words that the text holds. Names, numbers, single letters and phrases that
    # many items share are not counted.
    coverage: float
    start: int  # the item is in text[start:end]
    end: int


class Match(NamedTuple):
    """How well a passage agrees with a document."""

    words: int  # how many words of the passage agree
    first: int  # the first word of the document that agrees
    last: int  # the last one


def build_index(sets: EvalSets) -> "EvalIndex":
    """Return the index of evaluation sets.

    Args:
      sets: {name: {"path": a .jsonl file, plain or compressed, "fields": the fields whose text is
        the item's}}. The first field is the question: it is judged alone, too, so that a question
        without its answer is found.
    Raises: UserError for a file or field that is not there, a damaged file, or a field without
      text.
    """
    return EvalIndex({"scheme": SCHEME, **index_arrays(sets)})


class EvalIndex:
    """The passages of evaluation sets, and which runs of words point to them."""

    def __init__(self, arrays: Mapping[str, np.ndarray]):
        """Take the arrays that `index_arrays` describes, and the scheme."""
        self.arrays = dict(arrays)
        offsets = self.arrays["offsets"]
        lengths = np.diff(offsets)
        self._matcher = Matcher(self.arrays["runs"])
        # The passage of each word.
        self._passage_of = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
        # How many words of each passage count.
        self._counted = np.zeros(0, np.int64)
        if len(lengths):  # reduceat needs an offset
            self._counted = np.add.reduceat(self.arrays["counts"], offsets[:-1], dtype=np.int64)
        # How far apart the diagonals of one copy may be: words may be put in, left out or moved by
        # half the length of the passage.
        self._slack = lengths // 2 + RUN

    def save(self, path: str | os.PathLike) -> None:
        """Write the index as .npz, whole or not at all."""
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **self.arrays)
        write_atomic(epath.Path(path), buffer.getvalue())

    @classmethod
    def load(cls, path: str | os.PathLike) -> "EvalIndex":
        """Return the index that `save` wrote.

        Raises: UserError for another file, and for one of another version.
        """
        try:
            data = io.BytesIO(epath.Path(path).read_bytes())
            with np.load(data, allow_pickle=False) as file:
                arrays = dict(file)
        except UNREADABLE as error:
            raise UserError(
                f"{path} is no index of evaluation sets ({error}); build it again."
            ) from error
        scheme = arrays.get("scheme")
        if not np.array_equal(scheme, SCHEME):
            raise UserError(
                f"{path} was built by another version (scheme {scheme}, now {SCHEME}); "
                "build it again."
            )
        try:
            return cls(arrays)
        except Exception as error:  # arrays of other types and sizes
            raise UserError(
                f"{path} is no index of evaluation sets ({type(error).__name__}: {error}); "
                "build it again."
            ) from error

    def undecided(self) -> dict[str, tuple[list[int], int]]:
        """Return for each set the items that are not looked for, and how many items it has.

        Such an item, given by its line, is too short or too much like many others.
        """
        sets, lines = self.arrays["undecided"] >> 32, self.arrays["undecided"] & LOW
        result = {}
        for number, name in enumerate(self.arrays["sets"].tolist()):
            size = int(self.arrays["items"][number])
            result[name] = (lines[sets == number].tolist(), size)
        return result

    def find(self, text: str, threshold: float = THRESHOLD) -> Hit | None:
        """Return the item that `text` covers best, if any."""
        return max(self.find_all(text, threshold), key=_certainty, default=None)

    def find_all(self, text: str, threshold: float = THRESHOLD) -> list[Hit]:
        """Return every item of which `text` holds enough words, in order and in one place.

        Enough is the share `threshold` and at least LEAST words. Names and numbers may differ. A
        text also holds an item if it holds the question alone.
        """
        words, starts, ends = words_and_numbers(text)
        places, runs = self._matcher.locate(hash_runs(words, RUN))
        if not len(places):  # as in three of four documents
            return []
        passages, diagonals = self._pointers(places, runs, threshold)
        hits: dict[int, Hit] = {}
        for passage in np.unique(passages).tolist():
            own_diagonals = np.unique(diagonals[passages == passage])
            match = self._best_match(passage, words, own_diagonals)
            if match.words < self._needed(passage, threshold):
                continue
            item = int(self.arrays["item"][passage])
            hit = Hit(
                set=str(self.arrays["sets"][item >> 32]),
                item=item & LOW,
                coverage=match.words / int(self._counted[passage]),
                start=int(starts[match.first]),
                end=int(ends[match.last]),
            )
            # An item may have two passages, its question and all of it: the better hit counts.
            earlier = hits.get(item, hit)
            hits[item] = max(earlier, hit, key=_certainty)
        return list(hits.values())

    def _needed(
        self, passages: int | Int[np.ndarray, " n"], threshold: float
    ) -> np.floating | Float[np.ndarray, " n"]:
        """Return how many words of each passage must agree."""
        return np.maximum(LEAST, threshold * self._counted[passages])

    def _pointers(
        self, places: PerKnownRun, runs: PerKnownRun, threshold: float
    ) -> tuple[Pointers, Pointers]:
        """Return (passage, diagonal) of every pointer to a passage that the document may hold.

        A pointer is a run of the document that a passage holds, too. Its diagonal is its place in
        the document less its place in the passage: the runs of a copy have about the same diagonal.
        The pointers to a passage are returned if enough of them are on diagonals near each other.

        Args:
          places: the words at which a run of the index begins in the document.
          runs: which run of the index that is.
        """
        # Each place becomes as many pointers as its run has words to begin at in the passages. The
        # rows of these words in `at` follow each other, from the run's first row on.
        first_rows = self.arrays["first"]
        first = first_rows[runs]
        counts = first_rows[runs + 1] - first
        pointers_before = np.cumsum(counts) - counts
        rows = np.repeat(first - pointers_before, counts) + np.arange(counts.sum())
        at = self.arrays["at"][rows]
        passages = self._passage_of[at].astype(np.int64)
        place_in_passage = at - self.arrays["offsets"][passages]
        diagonals = np.repeat(places, counts) - place_in_passage
        # Sort by passage, then by diagonal. Both are in one number; diagonals may be negative, so
        # they are moved up by 2^31.
        codes = np.sort((passages << 32) + diagonals + MIDDLE)
        passages = codes >> 32
        diagonals = (codes & LOW) - MIDDLE
        # Enough is one pointer for every six words that must agree, plus one: about as many runs
        # survive in a copy with every sixth word changed. As codes are sorted, enough pointers are
        # near each other if the one `steps` places later is of the same passage and within the
        # slack. Codes of different passages always differ by more than the slack.
        steps = self._needed(passages, threshold) // 6
        ahead = np.arange(len(codes)) + steps.astype(np.int64)
        has_ahead = np.flatnonzero(ahead < len(codes))
        distance = codes[ahead[has_ahead]] - codes[has_ahead]
        is_near = distance <= self._slack[passages[has_ahead]]
        enough = passages[has_ahead[is_near]]
        keep = np.isin(passages, enough)
        return passages[keep], diagonals[keep]

    def _best_match(
        self,
        passage: int,
        words: UInt64[np.ndarray, " words"],
        diagonals: Int[np.ndarray, " diagonals"],
    ) -> Match:
        """Return the best match of a passage that is laid on a document along diagonals.

        Words of a diagonal count if AGREE_IN_ROW or more in a row agree; a name agrees with any
        word. Diagonals within the slack of each other are counted together, as one place.
        """
        begin, end = self.arrays["offsets"][passage : passage + 2]
        own_words = self.arrays["words"][begin:end]
        is_counted = self.arrays["counts"][begin:end]
        is_name = self.arrays["names"][begin:end]
        # Axes from here: [diagonals, words of the passage].
        places = diagonals[:, None] + np.arange(end - begin)
        inside = (places >= 0) & (places < len(words))
        # Clipped places give a wrong word, but they are not inside.
        is_equal = words[np.clip(places, 0, len(words) - 1)] == own_words
        agree = _in_runs(inside & (is_name | is_equal))
        best, last_stop = Match(0, 0, 0), 0
        for first, diagonal in enumerate(diagonals.tolist()):
            # Diagonals first to stop are within the slack of the first one.
            farthest = diagonal + self._slack[passage]
            stop = int(np.searchsorted(diagonals, farthest, "right"))
            if stop == last_stop:  # all of them were in the group before this one
                continue
            last_stop = stop
            covered = agree[first:stop]
            covered_places = places[first:stop]
            # A word of the passage counts once, and so does a word of the document: a phrase that
            # the passage repeats must be there as often.
            passage_words = int((covered.any(0) & is_counted).sum())
            document_words = len(np.unique(covered_places[covered & is_counted]))
            matched = min(passage_words, document_words)
            if matched > best.words:
                document_places = covered_places[covered]
                start, end = document_places.min(), document_places.max()
                best = Match(matched, int(start), int(end))
        return best


def _certainty(hit: Hit) -> tuple[float, int]:
    """Sort key: the larger coverage first, then the longer hit."""
    return hit.coverage, hit.end - hit.start


def _in_runs(
    agree: Bool[np.ndarray, "diagonals words"],
) -> Bool[np.ndarray, "diagonals words"]:
    """Keep the Trues that are among AGREE_IN_ROW or more consecutive Trues of their diagonal."""
    width = agree.shape[1] - AGREE_IN_ROW + 1
    begins_run = np.ones((len(agree), width), bool)
    for k in range(AGREE_IN_ROW):
        begins_run &= agree[:, k : k + width]
    in_run = np.zeros_like(agree)
    for k in range(AGREE_IN_ROW):
        in_run[:, k : k + width] |= begins_run
    return in_run
