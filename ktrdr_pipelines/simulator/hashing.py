"""Random numbers by position: the hash of a counter, never the next of a sequence.

Any bar can so be computed alone, and again, whatever was computed before.

Source: the finalizer of SplitMix64, https://prng.di.unimi.it/splitmix64.c (public domain).
"""

from hashlib import blake2b

import numpy as np
import numpy.typing as npt

from ktrdr_pipelines.simulator.hours import Ints

Words = npt.NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E37_79B9_7F4A_7C15)
_FIRST = np.uint64(0xBF58_476D_1CE4_E5B9)
_SECOND = np.uint64(0x94D0_49BB_1331_11EB)

GAUSS_SD = 65_536 * (4 / 12) ** 0.5
"""Standard deviation of ``gauss``: four uniform numbers of 16 bits."""


def hash_key(*parts: str | int) -> np.uint64:
    """Return the key of one random stream, which its name decides."""
    digest = blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return np.uint64(int.from_bytes(digest, "big"))


def words(key: np.uint64, counters: Ints) -> Words:
    """Return 64 random bits for each counter."""
    mixed = counters.astype(np.uint64)
    mixed *= _GOLDEN
    mixed += key
    for shift, factor in ((30, _FIRST), (27, _SECOND)):
        mixed ^= mixed >> np.uint64(shift)
        mixed *= factor
    mixed ^= mixed >> np.uint64(31)
    return mixed


def bits(random: Words, low: int, count: int) -> Ints:
    """Return ``count`` bits of each word, from bit ``low`` on, as whole numbers."""
    field = random >> np.uint64(low)
    field &= np.uint64((1 << count) - 1)
    return field.view(np.int64)


def gauss(random: Words) -> Ints:
    """Return a nearly normal whole number for each word: mean 0, deviation ``GAUSS_SD``."""
    total = bits(random, 0, 16)
    for low in (16, 32, 48):
        total += bits(random, low, 16)
    total -= 2 * 65_535
    return total
