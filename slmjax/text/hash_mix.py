"""The constants and the finalizer of all word hashes, shared by the numpy and the compiled path."""

from typing import no_type_check

import numpy as np

# Odd, so that both have inverses modulo 2^64.
LETTER_BASE = 0x9E3779B97F4A7C15  # a letter's place in a word counts by powers of this factor
WORD_BASE = np.uint64(0xD1B54A32D192ED03)  # a word's place in a run, likewise


@no_type_check  # numba compiles this function as it is: nothing may be wrapped around it
def mix(x):
    """Return uint64 values, or one, with the low bits' structure spread over all bits.

    Source: the finalizer of splitmix64 (Steele et al. 2014).
    """
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
