"""Held-out text: which groups are held out, and which held-out documents training has seen all the same."""

import functools
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int, UInt64

SHINGLE = 13  # words; the length that GPT-3 (Brown et al. 2020, appendix C) used to find test text in training text
MAX_BYTES = 10_000_000  # of a source; more would cost evaluation time and tell no more
KEPT = 4096
PART = 1 << 20  # characters whose shingles are made at once
PIECE = 1 << 16  # characters hashed at once: the tables of powers then stay in the processor's cache
ALONE = ((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x3400, 0x9FFF))  # scripts without spaces
GROUP = np.dtype([("id", "<u8"), ("bytes", "<i8"), ("documents", "<i8")])


def group_id(group: str, seed: int) -> int:
    """A 64-bit hash that orders groups at random by `seed`; a group of two sources has one id, so it falls on one side in both."""
    return int.from_bytes(hashlib.blake2b(f"{seed}\n{group}".encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


class GroupCounter:
    """Bytes and documents of the groups of a file, of which only those that can ever be held out are kept.

    Groups are taken in the order of their ids until MAX_BYTES, so what comes after four times that in one file cannot be reached.
    """

    def __init__(self) -> None:
        self._groups: dict[int, list[int]] = {}
        self._limit, self._full = 1 << 64, 8 * KEPT
        self.complete = True

    def add(self, group: int, size: int) -> None:
        """Count one document of `size` bytes."""
        if group >= self._limit:
            return
        entry = self._groups.setdefault(group, [0, 0])
        entry[0] += size
        entry[1] += 1
        if len(self._groups) > self._full:
            self._prune()
            self._full = max(8 * KEPT, 2 * len(self._groups))

    def table(self) -> np.ndarray:
        """Sorted by id, dtype GROUP."""
        return np.array([(group, *entry) for group, entry in sorted(self._groups.items())], GROUP)

    def _prune(self) -> None:
        table = self.table()
        keep = max(KEPT, int(np.searchsorted(np.cumsum(table["bytes"]), 4 * MAX_BYTES)) + 1)
        if keep < len(table):
            self._limit, self.complete = int(table["id"][keep]), False
            self._groups = {int(group): [int(size), int(count)] for group, size, count in table[:keep]}


@dataclass(frozen=True)
class Choice:
    """Held-out group ids of each source, and a sentence for each source where the choice is not what the settings asked for."""

    groups: dict[str, UInt64[np.ndarray, " groups"]]
    warnings: tuple[str, ...]


def choose_groups(tables: Mapping[str, np.ndarray], totals: Mapping[str, int], share: float) -> Choice:
    """Choose groups in the order of their ids until `share` of a source's bytes, at most MAX_BYTES, at least one and never over half.

    Args:
      tables: of each source, its groups (dtype GROUP; a group may be in several rows, one for each file).
      totals: bytes of each source.
    A group that is held out in one source is held out in all, unless that would take more than half of a source's groups.
    """
    own, warnings, merged = {}, [], {name: _merge(table) for name, table in tables.items()}
    if share <= 0:
        return Choice({name: np.zeros(0, np.uint64) for name in tables}, ())
    for name, groups in merged.items():
        own[name] = _take(groups, totals[name], share)
        if len(groups) < 2:
            warnings.append(f"source '{name}' is a single group, so nothing of it is held out")
        elif not len(own[name]):
            warnings.append(f"each group of source '{name}' is over half of its text or over {MAX_BYTES:,} bytes, so nothing is held out")
    union = np.unique(np.concatenate([np.zeros(0, np.uint64), *own.values()]))
    out = {}
    for name, groups in merged.items():
        wider = np.intersect1d(groups["id"], union)
        out[name] = wider if 2 * len(wider) <= len(groups) else own[name]
        if len(out[name]) < len(wider):
            warnings.append(f"source '{name}' trains on groups that another source holds out; holding out all would leave less than half")
    return Choice(out, tuple(warnings))


def _merge(table: np.ndarray) -> np.ndarray:
    ids, inverse = np.unique(table["id"], return_inverse=True)
    out = np.zeros(len(ids), GROUP)
    out["id"] = ids
    np.add.at(out["bytes"], inverse, table["bytes"])
    np.add.at(out["documents"], inverse, table["documents"])
    return out


def _take(groups: np.ndarray, total: int, share: float) -> np.ndarray:
    limit, target = min(MAX_BYTES, total / 2), min(MAX_BYTES, share * total)
    taken, size = [], 0
    for group, count, _ in groups:
        if size >= target or len(taken) + 1 > len(groups) // 2:
            break
        if size + count <= limit:
            taken.append(group)
            size += count
    return np.array(taken, np.uint64)


def shingles(text: str) -> UInt64[np.ndarray, " n"]:
    """64-bit hashes of every run of 13 words (lower case, letters and digits only); of a shorter text one hash of all its words."""
    return np.concatenate(list(shingle_parts(text)))


def shingle_parts(text: str) -> Iterator[UInt64[np.ndarray, " n"]]:
    """`shingles` in parts, so that a long text needs little memory."""
    carried, counted, start = np.zeros(0, np.uint64), 0, 0
    while start < len(text):
        end = start + PART
        while end < min(len(text), start + 2 * PART) and text[end].isalnum():
            end += 1
        words = np.concatenate([carried, hash_words(text[start:end])[0]])
        if len(words) >= SHINGLE:
            counted += 1
            yield hash_runs(words, SHINGLE)
        carried, start = words[-(SHINGLE - 1) :], end
    if not counted and len(carried):
        yield hash_runs(carried, len(carried))
    elif not counted:
        digest = hashlib.blake2b(text.strip().encode("utf-8", "surrogatepass"), digest_size=8).digest()
        yield np.frombuffer(digest, np.uint64)


def hash_words(text: str) -> tuple[UInt64[np.ndarray, " words"], Int[np.ndarray, " words"], Int[np.ndarray, " words"]]:
    """Hashes of the words (lower case, letters and digits only), and where in `text.lower()` each begins and ends."""
    pieces, start = [(np.zeros(0, np.uint64), np.zeros(0, np.int64), np.zeros(0, np.int64))], 0
    while start < len(text):
        end = start + PIECE
        while end < min(len(text), start + 2 * PIECE) and text[end].isalnum():  # a longer word is cut
            end += 1
        words, starts, ends = _words(text[start:end])
        pieces.append((words, starts + start, ends + start))
        start = end
    words, starts, ends = map(np.concatenate, zip(*pieces))
    return words, starts, ends


def hash_runs(words: UInt64[np.ndarray, " words"], width: int) -> UInt64[np.ndarray, " runs"]:
    """A hash of each run of `width` words; there are words - width + 1, or none."""
    out = np.full(max(0, len(words) - width + 1), width, np.uint64)
    for k in range(width):
        out = out * _Q + words[k : k + len(out)]
    return mix(out)


class Matcher:
    """Finds which of many hashes belong to a fixed set: a byte table rejects nearly all, a binary search decides the rest."""

    def __init__(self, hashes: UInt64[np.ndarray, " m"]):
        """`hashes` are sorted and unique."""
        self._hashes = hashes
        bits = min(27, max(10, int(16 * len(hashes)).bit_length()))
        self._shift = np.uint64(64 - bits)
        self._table = np.zeros(1 << bits, bool)
        self._table[(hashes >> self._shift).astype(np.int64)] = True

    def find(self, hashes: UInt64[np.ndarray, " n"]) -> Int[np.ndarray, " hits"]:
        """Positions in the set of those that are in it."""
        return self.locate(hashes)[1]

    def locate(self, hashes: UInt64[np.ndarray, " n"]) -> tuple[Int[np.ndarray, " hits"], Int[np.ndarray, " hits"]]:
        """Which of `hashes` are in the set (their positions, ascending), and the position in the set of each."""
        likely = np.flatnonzero(self._table[(hashes >> self._shift).astype(np.int64)])
        if not len(likely):
            return likely, likely
        place = np.minimum(np.searchsorted(self._hashes, hashes[likely]), len(self._hashes) - 1)
        found = self._hashes[place] == hashes[likely]
        return likely[found], place[found]


def seen_in_training(text: str, matcher: Matcher, seen: Bool[np.ndarray, " m"]) -> bool:
    """Whether more than half of a held-out text's shingles are marked in `seen` (over the matcher's set)."""
    places = matcher.find(shingles(text))
    return 2 * int(seen[places].sum()) > len(places)


_P, _Q = 0x9E3779B97F4A7C15, np.uint64(0xD1B54A32D192ED03)  # odd, so they have inverses modulo 2^64


@functools.cache
def _tables() -> tuple[np.ndarray, ...]:
    """Of each 16-bit code point: a random number, whether it is in words, whether it is a word alone (scripts without spaces)."""
    code = np.random.PCG64(13).random_raw(1 << 16)
    inside = np.array([chr(c).isalnum() for c in range(1 << 16)])
    alone = np.zeros(1 << 16, bool)
    for first, last in ALONE:
        alone[first : last + 1] = inside[first : last + 1]
    return code, inside, alone


@functools.cache
def _powers(bits: int) -> tuple[np.ndarray, np.ndarray]:
    """P^i and P^-i modulo 2^64 for i < 2^bits."""
    one = np.ones(1, np.uint64)
    return tuple(np.cumprod(np.concatenate([one, np.full((1 << bits) - 1, base, np.uint64)])) for base in (_P, pow(_P, -1, 1 << 64)))


def _words(text: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each word a hash (sum of code times P^position over its letters, a difference of prefix sums divided by P^start) and bounds."""
    points = np.frombuffer(text.lower().encode("utf-32-le", "surrogatepass"), np.uint32) & 0xFFFF
    code, inside, alone = _tables()
    word = np.concatenate([[False], inside[points], [False]])
    cut = np.concatenate([[False], alone[points], [False]])
    border = ~word[:-1] | ~word[1:] | cut[:-1] | cut[1:]
    starts = np.flatnonzero(word[1:-1] & border[:-1])
    ends = np.flatnonzero(word[1:-1] & border[1:]) + 1
    power, inverse = _powers(max(10, len(points).bit_length()))
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(code[points] * power[: len(points)])])
    return mix((sums[ends] - sums[starts]) * inverse[starts]), starts, ends


def mix(x: UInt64[np.ndarray, "..."]) -> UInt64[np.ndarray, "..."]:
    """Spread the low bits' structure over all bits (the finalizer of splitmix64)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
