"""A fixed random part of a source's documents, chosen by their content alone."""

import functools
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64, UInt64

from slmjax.data.shards import Integer, ShardSet
from slmjax.text.hash_mix import mix

# Added to a document's key before hashing, so that the choice has nothing to do with the choice of
# held-out text, which uses the same keys.
SALT = np.uint64(0x5851F42D4C957F2D)


class ShardPart:
    """A part of a ShardSet's documents, numbered anew; it reads as a ShardSet does.

    A document belongs to the part by a hash of its content. So the part is the same for every seed
    and in every prepared folder, equal documents are in it together, and a larger fraction holds
    all of a smaller one.

    Args:
      shards: all documents.
      fraction: of the documents that are kept, in (0, 1].
    """

    def __init__(self, shards: ShardSet, fraction: float):
        self._shards = shards
        self._fraction = fraction
        self.kind, self.chat = shards.kind, shards.chat
        # [kept]: numbers of the documents in `shards`.
        self._numbers = np.flatnonzero(is_kept(shards.keys, fraction))

    def __len__(self) -> int:
        return len(self._numbers)

    @property
    def tokens(self) -> int:
        """See ShardSet."""
        return int(self.lengths.sum())

    @functools.cached_property
    def lengths(self) -> Int64[np.ndarray, " docs"]:
        """See ShardSet."""
        return self._shards.lengths[self._numbers]

    @functools.cached_property
    def scores(self) -> Float64[np.ndarray, " docs"]:
        """See ShardSet."""
        return self._shards.scores[self._numbers]

    @property
    def fingerprint(self) -> str:
        """See ShardSet; the fraction is a part of it."""
        return f"{self._shards.fingerprint} {self._fraction!r}"

    def read(self, doc: Integer, offset: Integer, count: Integer) -> Any:
        """See ShardSet."""
        return self._shards.read(self._numbers[doc], offset, count)

    def name(self, doc: Integer) -> str:
        """See ShardSet."""
        return self._shards.name(self._numbers[doc])


def is_kept(keys: UInt64[np.ndarray, " docs"], fraction: float) -> np.ndarray:
    """Return for each document whether it belongs to the part. See ShardPart."""
    if fraction >= 1:
        return np.ones(len(keys), bool)
    with np.errstate(over="ignore"):  # sums of hashes wrap
        hashes = mix(keys + SALT)
    return hashes < np.uint64(int(fraction * 2**64))
