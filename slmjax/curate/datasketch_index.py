"""Near-duplicate indices to and from datasketch's MinHashLSH (in memory, Redis, Cassandra)."""

import pickle
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt32

from slmjax.curate.index import Index
from slmjax.curate.minhash import Scheme, datasketch_minhash, sketch_shingles
from slmjax.errors import UserError

if TYPE_CHECKING:
    from datasketch import MinHashLSH

DOCUMENTS_AT_ONCE = 10_000  # documents whose signatures are computed at once


def as_datasketch(index: Index, **options: Any) -> "MinHashLSH":
    """Return a MinHashLSH of an index; its keys are the numbers of the documents.

    Signatures are computed anew from the shingles that the index holds. A query of the LSH returns
    the documents that share a band; `candidates` pairs documents by the same bands.

    Args:
      options: further arguments of MinHashLSH, such as storage_config.
    """
    from datasketch import MinHashLSH

    scheme = index.scheme
    bands_and_rows = (scheme.bands, scheme.rows)
    lsh = MinHashLSH(num_perm=scheme.hashes, params=bands_and_rows, **options)
    # A session buffers insertions: Redis and Cassandra take many documents at once.
    with lsh.insertion_session() as session:
        for first in range(0, len(index), DOCUMENTS_AT_ONCE):
            stop = min(first + DOCUMENTS_AT_ONCE, len(index))
            shingles, counts = index.shingles(first, stop)
            sketches = sketch_shingles(shingles, counts, scheme, signatures=True)
            for number, signature in enumerate(sketches.signatures, first):
                session.insert(number, datasketch_minhash(signature, scheme))
    return lsh


def from_datasketch(
    lsh: "MinHashLSH", scheme: Scheme
) -> tuple[list[Hashable], UInt32[np.ndarray, "documents hashes"]]:
    """Return the keys of a MinHashLSH and the signature of each.

    `minhash.band_hashes` turns these signatures into the band hashes that an index holds, so that
    `candidates` finds pairs across both. An LSH holds no shingles: the similarity of such a pair
    can be estimated, not computed exactly.

    Args:
      scheme: with the seed and the n-grams of the signatures. The LSH does not hold these two, so
        they cannot be checked.
    Raises: UserError for an LSH with other bands or rows, for hashes that are not those of
      affine32, and for an LSH that holds hashes of its bands only.
    """
    if (lsh.b, lsh.r, lsh.h) != (scheme.bands, scheme.rows, scheme.hashes):
        raise UserError(
            f"the MinHashLSH has {lsh.b} bands of {lsh.r} rows within {lsh.h} hashes; expected "
            f"{scheme.bands} bands of {scheme.rows} rows within {scheme.hashes}."
        )
    keys, rows = [], []
    stored_keys = lsh.keys.keys()  # lsh.keys itself cannot be iterated
    for key in stored_keys:
        bands = b"".join(lsh.keys[key])  # bytes in the other order than this machine's
        if lsh.hashfunc is not None or len(bands) != 4 * scheme.hashes:
            raise UserError(
                "the MinHashLSH does not hold 32-bit signatures; expected MinHashes of the scheme "
                "affine32 and no hashfunc."
            )
        # For stores that take bytes only an LSH pickles its keys. Like its own query we load them.
        keys.append(pickle.loads(key) if lsh.prepickle else key)
        signature = np.frombuffer(bands, np.uint32)
        rows.append(signature.byteswap())
    signatures = np.array(rows, np.uint32)
    return keys, signatures.reshape(len(rows), scheme.hashes)
