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

DOCUMENTS = 10_000  # whose signatures are computed at once


def as_datasketch(index: Index, **options: Any) -> "MinHashLSH":
    """Return a MinHashLSH with the documents of an index, by their numbers.

    Signatures are computed anew from the shingles that the index holds. The LSH answers a query for
    a document with the documents that share a band with it, which `candidates` looks at.

    Args:
      options: further arguments of MinHashLSH, such as storage_config.
    """
    from datasketch import MinHashLSH

    scheme = index.scheme
    shape = (scheme.bands, scheme.rows)
    lsh = MinHashLSH(num_perm=scheme.hashes, params=shape, **options)
    # A session, as Redis and Cassandra take many documents at once.
    with lsh.insertion_session() as session:
        for first in range(0, len(index), DOCUMENTS):
            shingles, counts = index.shingles(first, min(first + DOCUMENTS, len(index)))
            sketches = sketch_shingles(shingles, counts, scheme, signatures=True)
            for number, signature in enumerate(sketches.signatures, first):
                session.insert(number, datasketch_minhash(signature, scheme))
    return lsh


def from_datasketch(
    lsh: "MinHashLSH", scheme: Scheme
) -> tuple[list[Hashable], UInt32[np.ndarray, "documents hashes"]]:
    """Return the keys of a MinHashLSH and the signature of each.

    `minhash.band_hashes` makes of signatures the band hashes that an index holds, so that
    `candidates` finds pairs of both. An LSH holds no shingles: similarities of such pairs are
    estimates, not exact.

    Args:
      scheme: of the signatures. The LSH does not know their seed and shingles: they must agree.
    Raises: UserError for an LSH of another shape or of hashes that are not those of affine32, and
      for one that holds hashes of its bands only.
    """
    if (lsh.b, lsh.r, lsh.h) != (scheme.bands, scheme.rows, scheme.hashes):
        raise UserError(
            f"the MinHashLSH has {lsh.b} bands of {lsh.r} rows within {lsh.h} hashes; expected "
            f"{scheme.bands} bands of {scheme.rows} rows within {scheme.hashes}."
        )
    keys, rows = [], []
    names = lsh.keys.keys()  # not iterable itself
    for key in names:
        bands = b"".join(lsh.keys[key])  # big-endian on a little-endian machine
        if lsh.hashfunc is not None or len(bands) != 4 * scheme.hashes:
            raise UserError(
                "the MinHashLSH does not hold 32-bit signatures; expected MinHashes of the scheme "
                "affine32 and no hashfunc."
            )
        # An LSH pickles keys for stores that take bytes only; its own query loads them, too.
        keys.append(pickle.loads(key) if lsh.prepickle else key)
        signature = np.frombuffer(bands, np.uint32)
        rows.append(signature.byteswap())
    signatures = np.array(rows, np.uint32)
    return keys, signatures.reshape(len(rows), scheme.hashes)
