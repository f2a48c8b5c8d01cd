"""h = x' M^-1 x of every row, in float64."""

import numpy as np
from scipy.linalg import solve_triangular

import dal_native as dn
from benchmarks import common
from dal_native.testing import as_float64


class Leverage:
    params = (common.POOLS, common.DTYPES)
    param_names = ("n, d", "dtype")

    def setup(self, size, dtype):
        self.problem = common.problem(*size, dtype)
        self.pool = self.problem.pool()

    def time_leverage(self, size, dtype):
        dn.leverage(self.pool, self.problem.matrix)

    def time_one_thread(self, size, dtype):
        dn.leverage(self.pool, self.problem.matrix, threads=1)

    def time_numpy(self, size, dtype):
        inverse = np.linalg.inv(np.linalg.cholesky(self.problem.matrix)).T
        x = self.problem.differences
        for start in range(0, len(x), 4096):
            y = as_float64(x[start : start + 4096]) @ inverse
            np.einsum("ij,ij->i", y, y)

    def track_error(self, size, dtype):
        rows = np.arange(0, size[0], max(1, size[0] // 512))
        x = self.pool.take(rows)
        y = solve_triangular(np.linalg.cholesky(self.problem.matrix), x.T, lower=True)
        h = np.einsum("ij,ij->j", y, y)
        return float(np.abs(dn.leverage(self.pool, self.problem.matrix, rows) / h - 1).max())

    track_error.unit = "relative"


class UpdateLeverage:
    params = (common.POOLS,)
    param_names = ("n, d",)

    def setup(self, size):
        self.problem = common.problem(*size)
        self.pool = self.problem.pool()
        self.h = dn.leverage(self.pool, self.problem.matrix)
        self.direction = np.linalg.solve(self.problem.matrix, self.pool.take([0])[0])

    def time_update(self, size):
        dn.update_leverage(self.h, self.pool, self.direction, 0.1)

    def time_numpy(self, size):
        self.h - 0.1 * (self.problem.differences @ self.direction.astype(np.float32)).astype(np.float64) ** 2

    def track_error(self, size):
        x = self.problem.rows()
        exact = np.maximum(self.h - 0.1 * (x @ self.direction) ** 2, 0)
        return float(
            np.abs(dn.update_leverage(self.h, self.pool, self.direction, 0.1) - exact).max() / self.h.max()
        )

    track_error.unit = "relative"
