"""Random words that depend on a key alone, and a memory of the latest results of pure functions."""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np
from jaxtyping import Float64, UInt64


def random_bits(count: int, *key: int | str) -> UInt64[np.ndarray, "count"]:
    """Return `count` random 64-bit words that depend on nothing but the key."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    # The raw stream of Philox is the one that numpy promises never to change between versions.
    generator = np.random.Philox(key=int.from_bytes(digest[:16], "little"))
    return generator.random_raw(count)


def unit_floats(bits: UInt64[np.ndarray, "count"]) -> Float64[np.ndarray, "count"]:
    """Return the upper 53 bits of each word as a number in [0, 1)."""
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


class Recent:
    """The latest results of pure functions, by key; safe between threads.

    A copy or a pickle of it starts empty.
    """

    def __init__(self, size: int):
        self._size = size
        self._kept: OrderedDict[Hashable, Any] = OrderedDict()
        # Making one result may ask for another one, so the lock can be taken twice by one thread.
        self._lock = threading.RLock()

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """Return the result for this key; `make` computes it where it is not among the latest."""
        with self._lock:
            if key not in self._kept:
                self._kept[key] = make()
                # The first entry is the one that nobody has asked for the longest.
                if len(self._kept) > self._size:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(key)
            return self._kept[key]

    def __reduce__(self) -> tuple:
        return Recent, (self._size,)
