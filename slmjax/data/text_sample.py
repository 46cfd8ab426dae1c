"""A random sample of text, decided by content and seed alone, for training a tokenizer."""

import hashlib
import heapq

from slmjax.text.records import Document

# Characters of a piece, so that one long book cannot be the whole sample.
PIECE = 32_768


class TextSample:
    """The pieces of text with the smallest hashes, as many as fill a number of characters.

    Args:
      budget: characters; the sample exceeds it by less than one piece. 0: no sample.
      seed: part of the hashes.
    """

    def __init__(self, budget: int, seed: int):
        self._budget = budget
        self._seed = seed.to_bytes(8, "little", signed=True)
        # Characters of all pieces in the heap.
        self._size = 0
        # (minus the hash, line, start in the document, group, text): the largest hash comes first.
        self._heap: list[tuple[int, int, int, int, str]] = []

    def add(self, document: Document, group: int) -> None:
        """Offer the pieces of a document."""
        if not self._budget:
            return
        for start in range(0, len(document.text), PIECE):
            order = self._hash(document.key, start)
            # Most pieces of a large file end here. (A full budget means that there is a heap.)
            if self._size >= self._budget and order >= -self._heap[0][0]:
                continue
            piece = document.text[start : start + PIECE]
            heapq.heappush(self._heap, (-order, document.line, start, group, piece))
            self._size += len(piece)
            self._drop_what_is_too_much()

    def pieces(self) -> list[tuple[int, str]]:
        """Return (group, text) in the order of their hashes."""
        return [(group, text) for *_, group, text in sorted(self._heap, reverse=True)]

    def _hash(self, key: int, start: int) -> int:
        # The key is a hash of the text: the order does not depend on files or places.
        tag = key.to_bytes(8, "little") + start.to_bytes(8, "little") + self._seed
        return int.from_bytes(hashlib.blake2b(tag, digest_size=8).digest(), "little")

    def _drop_what_is_too_much(self) -> None:
        """Drop the pieces with the largest hashes while the budget is full without them."""
        while self._size - len(self._heap[0][-1]) >= self._budget:
            *_, dropped = heapq.heappop(self._heap)
            self._size -= len(dropped)
