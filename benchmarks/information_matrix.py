"""M = ridge I + sum w x x' in float64, rows as stored."""

import numpy as np

import dal_native as dn
from benchmarks import common


class InformationMatrix:
    params = (common.LABELS,)
    param_names = ("T, d",)

    def setup(self, size):
        self.x = common.labels(*size)[0]
        self.weight = np.random.default_rng(3).uniform(0.01, 0.25, size[0])

    def time_information_matrix(self, size):
        dn.information_matrix(self.x, self.weight)

    def time_numpy(self, size):
        wide = self.x.astype(np.float64)
        np.eye(size[1]) + (wide * self.weight[:, None]).T @ wide

    def peakmem_information_matrix(self, size):
        dn.information_matrix(self.x, self.weight)

    def track_error(self, size):
        wide = self.x.astype(np.float64)
        exact = np.eye(size[1]) + (wide * self.weight[:, None]).T @ wide
        return float(np.abs(dn.information_matrix(self.x, self.weight) - exact).max() / np.abs(exact).max())

    track_error.unit = "relative"
