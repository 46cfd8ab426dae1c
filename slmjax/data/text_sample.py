"""A random sample of text, decided by content and seed alone, for training a tokenizer."""

import hashlib
import heapq

from slmjax.text.records import Document

# Characters of a piece. Documents are cut, so that one long book cannot be the whole sample.
PIECE = 32_768


class TextSample:
    """A random sample of a text's pieces: those with the smallest hashes.

    Args:
      budget: characters of the sample, which exceeds it by less than one piece; 0: no sample.
      seed: part of the hashes.
    """

    def __init__(self, budget: int, seed: int):
        self._budget = budget
        self._seed_bytes = seed.to_bytes(8, "little", signed=True)
        # Characters of all pieces in the heap.
        self._size = 0
        # (minus the hash, line of the document, start of the piece in it, group, text), so that the
        # piece with the largest hash comes first.
        self._heap: list[tuple[int, int, int, int, str]] = []

    def add(self, document: Document, group: int) -> None:
        """Cut a document into pieces and take those whose hash is small enough.

        Args:
          group: id of the document's group.
        """
        if not self._budget:
            return
        for start in range(0, len(document.text), PIECE):
            piece_hash = self._hash(document.key, start)
            # Most pieces of a large file are left out here. (A full sample has a first piece.)
            is_full = self._size >= self._budget
            if is_full and piece_hash >= -self._heap[0][0]:
                continue
            piece = document.text[start : start + PIECE]
            heapq.heappush(self._heap, (-piece_hash, document.line, start, group, piece))
            self._size += len(piece)
            self._drop_excess()

    def pieces(self) -> list[tuple[int, str]]:
        """Return (group, text) of the sample's pieces in the order of their hashes."""
        return [(group, text) for *_, group, text in sorted(self._heap, reverse=True)]

    def _hash(self, key: int, start: int) -> int:
        # A document's key is a hash of its text, so the sample does not depend on names of files.
        content = key.to_bytes(8, "little") + start.to_bytes(8, "little") + self._seed_bytes
        return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")

    def _drop_excess(self) -> None:
        """Drop the pieces with the largest hashes as long as the others fill the budget."""
        while self._size - len(self._heap[0][-1]) >= self._budget:
            *_, dropped = heapq.heappop(self._heap)
            self._size -= len(dropped)
