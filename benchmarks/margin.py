"""u = X theta."""

import numpy as np

import dal_native as dn
from benchmarks import common
from dal_native.testing import as_float64


class Margin:
    params = (common.POOLS, common.DTYPES)
    param_names = ("n, d", "dtype")

    def setup(self, size, dtype):
        self.problem = common.problem(*size, dtype)
        self.pool = self.problem.pool()

    def time_margin(self, size, dtype):
        dn.margin(self.pool, self.problem.reward)

    def time_numpy(self, size, dtype):
        as_float64(self.problem.differences) @ self.problem.reward

    def track_error(self, size, dtype):
        x = as_float64(self.problem.differences)
        scale = np.linalg.norm(x, axis=1).max() * np.linalg.norm(self.problem.reward)
        return float(
            np.abs(dn.margin(self.pool, self.problem.reward) - x @ self.problem.reward).max() / scale
        )

    track_error.unit = "relative"
