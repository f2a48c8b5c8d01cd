"""Random numbers that depend on a counter only: the same cell gets the same number in any order, at any time.

Philox4x32-10 of Salmon, Moraes, Dror and Shaw, *Parallel random numbers: as easy as 1, 2, 3* (SC 2011).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["philox", "uniform"]

_MULTIPLIER = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)


def philox(counter: NDArray[np.uint64], key: tuple[int, int]) -> NDArray[np.uint64]:
    """Ten rounds of Philox4x32.

    Parameters
    ----------
    counter : ndarray of uint64, (4, k)
        Four words of 32 bits for each of k counters.
    key : (int, int)
        Two words of 32 bits.

    Returns
    -------
    ndarray of uint64, (4, k)
        Four random words of 32 bits each.

    Examples
    --------
    >>> [hex(word) for word in philox(np.zeros((4, 1), np.uint64), (0, 0))[:, 0].tolist()]
    ['0x6627e8d5', '0xe169c58d', '0xbc57ac4c', '0x9b00dbd8']
    """
    a, b, c, e = counter
    left, right = key
    for _ in range(10):
        first, second = _MULTIPLIER[0] * a, _MULTIPLIER[1] * c
        a, b, c, e = (
            (second >> _SHIFT) ^ b ^ np.uint64(left),
            second & _LOW,
            (first >> _SHIFT) ^ e ^ np.uint64(right),
            first & _LOW,
        )
        left, right = (left + _WEYL[0]) & 0xFFFFFFFF, (right + _WEYL[1]) & 0xFFFFFFFF
    return np.stack([a, b, c, e])


def uniform(
    seed: int, conversation: ArrayLike, teacher: ArrayLike, repetition: ArrayLike = 0
) -> NDArray[np.float64]:
    """A uniform number in [0, 1) for each (conversation, teacher, repetition), in steps of 2**-53.

    Parameters
    ----------
    seed : int
        0 up to 2**64 - 1.
    conversation, teacher, repetition : array_like of int
        0 or more; conversations below 2**63, the others below 2**32. They broadcast.

    Returns
    -------
    ndarray of float64

    Examples
    --------
    >>> a = uniform(7, [3, 1], [0, 0])
    >>> bool(a[0] == uniform(7, 3, 0)), bool(a[0] == a[1])
    (True, False)
    """
    i, j, r = np.broadcast_arrays(
        *(np.asarray(part, dtype=np.uint64) for part in (conversation, teacher, repetition))
    )
    counter = np.stack([i & _LOW, i >> _SHIFT, j & _LOW, r & _LOW]).reshape(4, -1)
    words = philox(counter, (seed & 0xFFFFFFFF, seed >> 32))
    bits = (words[0] << _SHIFT | words[1]) >> np.uint64(11)
    return np.asarray(bits * 2.0**-53).reshape(i.shape)
