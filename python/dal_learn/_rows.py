"""The rows of a fit, read as they are stored, and the few passes that a fit makes over them."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.linalg
import scipy.sparse
from numpy.typing import NDArray

import dal_native as dn
from dal_native.information import leverage_from_factor

__all__ = ["Rows"]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


class Rows:
    """U rows x of d features: differences, or completions with pairs that are formed block by block.

    Parameters
    ----------
    pool : dal_native.Pool
        What is stored, in its own type.
    """

    def __init__(self, pool: Any) -> None:
        self.pool, self.n, self.d = pool, len(pool), int(pool.d)

    def margin(self, theta: Floats) -> Floats:
        """x'theta of every row, (U,)."""
        return np.asarray(dn.margin(self.pool, theta))

    def weighted_sum(self, weight: Floats) -> Floats:
        """sum_t w_t x_t, (d,)."""
        total = np.zeros(self.d)
        for start, stop, block in self.pool.blocks():
            total += weight[start:stop] @ block
        return total

    def sum_by_cell(self, weight: Floats, cell: Integers, n_cells: int, row: Integers | None) -> Floats:
        """Entry t adds w_t x_row[t] to its cell: (n_cells, d)."""
        total = np.zeros((n_cells, self.d))
        row = np.arange(self.n) if row is None else row
        pick = scipy.sparse.csc_array((weight, (cell, row)), shape=(n_cells, self.n))
        for start, stop, block in self.pool.blocks():
            total += pick[:, start:stop] @ block
        return total

    def gram(self, weight: Floats, single: bool = False) -> Floats:
        """sum_t w_t x_t x_t', (d, d)."""
        if weight.min(initial=0.0) >= 0:
            return np.asarray(dn.information_matrix(self.pool, weight, ridge=0.0))
        total = np.zeros((self.d, self.d))
        for start, stop, block in self.pool.blocks():
            total += (block.T * weight[start:stop]) @ block
        return total

    def leverage(self, lower: Floats, single: bool = False) -> Floats:
        """x'(L L')^-1 x of every row, (U,)."""
        return np.asarray(leverage_from_factor(self.pool, np.ascontiguousarray(lower), None, "auto", None))

    def hessian_vector(self, weight: Floats, vector: Floats) -> Floats:
        """sum_t w_t x_t (x_t'v), (d,)."""
        total = np.zeros(self.d)
        for start, stop, block in self.pool.blocks():
            total += (weight[start:stop] * (block @ vector)) @ block
        return total

    def squares(self) -> Floats:
        """|x|^2 of every row, (U,)."""
        out = np.empty(self.n)
        for start, stop, block in self.pool.blocks():
            out[start:stop] = np.einsum("ij,ij->i", block, block)
        return out

    def take(self, index: Integers) -> Floats:
        """Some rows in float64, (k, d)."""
        return np.asarray(self.pool.take(index))

    def turned(self) -> tuple[Rows, Floats] | None:
        """With fewer rows than features: rows of as many coordinates as there are rows, and the axes."""
        if self.n >= self.d or self.n == 0:
            return None
        basis, triangle = scipy.linalg.qr(self.take(np.arange(self.n)).T, mode="economic", check_finite=False)
        return Rows(dn.Pool(np.ascontiguousarray(triangle.T))), basis
