"""The most informative teacher of each conversation, O(log m) from the sorted rationalities."""

import numpy as np

import dal_native as dn


class BestTeacher:
    params = ([256, 100_000], [5, 100, 1_000])
    param_names = ("n", "m")

    def setup(self, n, m):
        rng = np.random.default_rng(2)
        self.margin, self.category = rng.standard_normal(n) * 3, rng.integers(0, 4, n)
        self.rationality = rng.lognormal(0.0, 0.7, (m, 4))

    def every_teacher(self, stop):
        weight = np.empty(stop)
        for start in range(0, stop, 4096):
            part = slice(start, min(start + 4096, stop))
            t = self.rationality.T[self.category[part]] * self.margin[part, None]
            weight[part] = (t**2 / (2 + 2 * np.cosh(np.clip(t, -700, 700)))).max(1) / self.margin[part] ** 2
        return weight

    def time_best_teacher(self, n, m):
        dn.best_teacher(self.margin, self.category, self.rationality)

    def time_numpy(self, n, m):
        self.every_teacher(n)

    def track_error(self, n, m):
        weight = dn.best_teacher(self.margin, self.category, self.rationality)[1]
        return float(np.abs(weight[:1000] / self.every_teacher(min(n, 1000)) - 1).max())

    track_error.unit = "relative"
