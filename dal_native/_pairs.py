"""Which pairs may be asked, and when two are worth the same: what searches in Python share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from dal_native.selection import SelectionProblem

Integers = NDArray[np.int64]

#: Objectives within this relative distance of the largest are tied: the smallest (conversation, teacher)
#: wins.
TIE = 1e-12
#: t* = argmax t^2 s'(t), the root of t tanh(t / 2) = 2.
PEAK = 2.3993572805154676


def admissible_pairs(p: SelectionProblem, rows: Integers, category: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Pairs of these conversations that the problem allows at the batch's start: (k, m)."""
    allowed: NDArray[np.bool_] = p.available.T[category] != 0
    if p.candidate_offsets is not None and p.candidate_teacher is not None:
        listed = np.zeros_like(allowed)
        for k, i in enumerate(rows.tolist()):
            listed[k, p.candidate_teacher[p.candidate_offsets[i] : p.candidate_offsets[i + 1]]] = True
        allowed &= listed
    if p.blocked is not None:
        allowed[p.blocked[rows] != 0] = False
    if p.exclude_conversation is not None and p.exclude_offsets is not None and p.exclude_teacher is not None:
        for k in np.flatnonzero(np.isin(rows, p.exclude_conversation)).tolist():
            at = int(np.searchsorted(p.exclude_conversation, rows[k]))
            allowed[k, p.exclude_teacher[p.exclude_offsets[at] : p.exclude_offsets[at + 1]]] = False
    return allowed
