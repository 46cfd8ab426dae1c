"""Random numbers that depend on a key alone, and a cache for results of pure functions."""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np
from jaxtyping import Float64, UInt64


def random_bits(count: int, *key: int | str) -> UInt64[np.ndarray, "count"]:
    """Return `count` random 64-bit numbers that depend on nothing but the key."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    # numpy promises that the raw stream of a bit generator never changes between versions. It does
    # not promise this of np.random.Generator's distributions.
    generator = np.random.Philox(key=int.from_bytes(digest[:16], "little"))
    return generator.random_raw(count)


def unit_floats(bits: UInt64[np.ndarray, "count"]) -> Float64[np.ndarray, "count"]:
    """Return random numbers in [0, 1) from random 64-bit numbers."""
    # A float64 holds 53 bits: the upper ones of the 64.
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


class Recent:
    """A cache of the `size` most recently used results of pure functions; safe between threads.

    A copy or a pickle of it starts empty.
    """

    def __init__(self, size: int):
        self._size = size
        self._kept: OrderedDict[Hashable, Any] = OrderedDict()
        # `make` may call `get` for another key, so a thread can take the lock again.
        self._lock = threading.RLock()

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """Return the result for this key; `make` computes it where it is not in the cache."""
        with self._lock:
            if key not in self._kept:
                self._kept[key] = make()
                # The first entry is the least recently used.
                if len(self._kept) > self._size:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(key)
            return self._kept[key]

    def __reduce__(self) -> tuple:
        return Recent, (self._size,)
