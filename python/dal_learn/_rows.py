"""The rows of a fit, read as they are stored, and the few passes that a fit makes over them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import scipy.linalg
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
    pools : sequence of dal_native.Pool
        What is stored, each in its own type, one after the other: later batches are not copied together.
    """

    def __init__(self, pools: Sequence[Any]) -> None:
        self.pools = tuple(pools)
        self.start = np.concatenate([[0], np.cumsum([len(pool) for pool in pools])])
        self.n, self.d = int(self.start[-1]), int(pools[0].d)

    def _parts(self) -> Iterator[tuple[Any, slice]]:
        for pool, start in zip(self.pools, self.start.tolist(), strict=False):
            if len(pool):
                yield pool, slice(start, start + len(pool))

    def margin(self, theta: Floats) -> Floats:
        """x'theta of every row, (U,)."""
        return np.concatenate([np.zeros(0), *(dn.margin(pool, theta) for pool, _ in self._parts())])

    def weighted_sum(self, weight: Floats) -> Floats:
        """sum_t w_t x_t, (d,)."""
        total = np.zeros(self.d)
        for pool, part in self._parts():
            total += dn.weighted_sum(pool, weight[part])
        return total

    def sum_by_cell(self, weight: Floats, cell: Integers, n_cells: int, row: Integers | None) -> Floats:
        """Entry t adds w_t x_row[t] to its cell: (n_cells, d)."""
        total = np.zeros((n_cells, self.d))
        for pool, part in self._parts():
            if row is None:
                total += dn.weighted_sum_by_cell(pool, weight[part], cell[part], n_cells)
                continue
            mine = slice(None) if len(self.pools) == 1 else (row >= part.start) & (row < part.stop)
            total += dn.weighted_sum_by_cell(pool, weight[mine], cell[mine], n_cells, row[mine] - part.start)
        return total

    def gram(self, weight: Floats, single: bool = False) -> Floats:
        """sum_t w_t x_t x_t', (d, d)."""
        total, precision = np.zeros((self.d, self.d)), "single" if single else "double"
        for pool, part in self._parts():
            total += dn.information_matrix(pool, weight[part], ridge=0.0, signed=True, precision=precision)
        return total

    def leverage(self, lower: Floats, single: bool = False) -> Floats:
        """x'(L L')^-1 x of every row, (U,)."""
        factor, precision = np.ascontiguousarray(lower), "single" if single else "double"
        parts = [
            leverage_from_factor(pool, factor, None, precision, "auto", None) for pool, _ in self._parts()
        ]
        return np.concatenate([np.zeros(0), *parts])

    def hessian_vector(self, weight: Floats, vector: Floats) -> Floats:
        """sum_t w_t x_t (x_t'v), (d,)."""
        total = np.zeros(self.d)
        for pool, part in self._parts():
            total += dn.hessian_vector(pool, weight[part], vector)
        return total

    def take(self, index: Integers) -> Floats:
        """Some rows in float64, (k, d)."""
        if len(self.pools) == 1:
            return np.asarray(self.pools[0].take(index))
        out = np.empty((len(index), self.d))
        for pool, part in self._parts():
            mine = (index >= part.start) & (index < part.stop)
            out[mine] = pool.take(index[mine] - part.start)
        return out

    def turned(self) -> tuple[Rows, Floats] | None:
        """With fewer rows than features: rows of as many coordinates as there are rows, and the axes."""
        if self.n >= self.d or self.n == 0:
            return None
        basis, triangle = scipy.linalg.qr(self.take(np.arange(self.n)).T, mode="economic", check_finite=False)
        return Rows([dn.Pool(np.ascontiguousarray(triangle.T))]), basis
