"""Constants and last step of all word hashes, the same for numpy and for the compiled kernels."""

from typing import no_type_check

import numpy as np

# The bases of two polynomial hashes: of the letters of a word, and of the words of a run. Both are
# odd, so that they have inverses modulo 2^64.
LETTER_BASE = 0x9E3779B97F4A7C15
WORD_BASE = np.uint64(0xD1B54A32D192ED03)


@no_type_check  # numba compiles this function as it is: nothing may be wrapped around it
def mix(x):
    """Return a uint64, or an array of them, whose every bit depends on all bits of x.

    Source: the finalizer of splitmix64 (Steele et al. 2014).
    """
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
