"""Loss and gradients of the heterogeneous Bradley-Terry model, one pass over the labels."""

import numpy as np

import dal_native as dn
from benchmarks import common


class BradleyTerry:
    params = (common.LABELS,)
    param_names = ("T, d",)

    def setup(self, size):
        self.x, self.choice, teacher, self.reward = common.labels(*size)
        self.rationality = np.random.default_rng(4).lognormal(0.0, 0.5, common.TEACHERS)[teacher]
        self.pool = dn.Pool(self.x)

    def by_numpy(self):
        t = self.rationality * (self.x @ self.reward)
        residual = 1 / (1 + np.exp(-t)) - self.choice
        loss = (np.logaddexp(0, -t) * self.choice + np.logaddexp(0, t) * (1 - self.choice)).sum()
        return loss, (residual * self.rationality) @ self.x

    def time_loss_and_gradients(self, size):
        dn.bradley_terry_loss(self.pool, self.choice, self.reward, self.rationality)

    def time_numpy(self, size):
        self.by_numpy()

    def track_error(self, size):
        loss, gradient, _ = dn.bradley_terry_loss(self.pool, self.choice, self.reward, self.rationality)
        expected, expected_gradient = self.by_numpy()
        return float(
            max(abs(loss / expected - 1), np.abs(gradient - expected_gradient).max() / np.abs(gradient).max())
        )

    track_error.unit = "relative"
