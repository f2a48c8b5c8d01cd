"""Weighted sums of rows, by cell too, and a Hessian times a vector: one read of the rows each."""

import numpy as np
import scipy.sparse

import dal_native as dn
from benchmarks import common

CELLS = 400


class WeightedSum:
    params = (common.LABELS,)
    param_names = ("T, d",)

    def setup(self, size):
        self.x = common.labels(*size)[0]
        rng = np.random.default_rng(3)
        self.weight, self.cell = rng.standard_normal(size[0]), rng.integers(0, CELLS, size[0])
        self.vector, self.pool = rng.standard_normal(size[1]), dn.Pool(self.x)

    def by_numpy(self):
        entry = (self.weight, (self.cell, np.arange(len(self.x))))
        return scipy.sparse.csr_array(entry, shape=(CELLS, len(self.x))) @ self.x

    def time_weighted_sum(self, size):
        dn.weighted_sum(self.pool, self.weight)

    def time_weighted_sum_numpy(self, size):
        self.weight @ self.x

    def time_by_cell(self, size):
        dn.weighted_sum_by_cell(self.pool, self.weight, self.cell, CELLS)

    def time_by_cell_scipy(self, size):
        self.by_numpy()

    def time_hessian_vector(self, size):
        dn.hessian_vector(self.pool, self.weight, self.vector)

    def time_hessian_vector_numpy(self, size):
        (self.weight * (self.x @ self.vector)) @ self.x

    def track_error(self, size):
        found = dn.weighted_sum_by_cell(self.pool, self.weight, self.cell, CELLS)
        exact = dn.weighted_sum_by_cell(self.pool, self.weight, self.cell, CELLS, backend="reference")
        return float(np.abs(found - exact).max() / np.abs(exact).max())

    track_error.unit = "relative"
