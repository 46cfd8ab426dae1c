"""Digests of batches, to compare what different processes have read."""

import hashlib
from collections.abc import Iterable, Mapping

import numpy as np


def row_hashes(arrays: Mapping[str, np.ndarray]) -> list[str]:
    """Return a digest of each row over all arrays of a batch, the same on every machine."""
    columns = []
    for name, array in sorted(arrays.items()):
        columns.append((name, np.ascontiguousarray(array, array.dtype.newbyteorder("<"))))
    hashes = []
    for row in range(len(columns[0][1])):
        digest = hashlib.sha256()
        for name, array in columns:
            digest.update(f"{name} {array.dtype.str} {array[row].shape} ".encode())
            digest.update(array[row].tobytes())
        hashes.append(digest.hexdigest())
    return hashes


def combine_hashes(hashes: Iterable[str]) -> str:
    """Return the digest of a global batch from its rows' digests in global order."""
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


def batch_hash(arrays: Mapping[str, np.ndarray]) -> str:
    """Return the digest of a batch that one process holds whole."""
    return combine_hashes(row_hashes(arrays))
