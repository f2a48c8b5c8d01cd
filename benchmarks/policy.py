"""The pessimistic policy over pools of completions."""

import numpy as np

import dal_learn as dl


class PessimisticPolicy:
    params = ([(8, 4, 6), (500, 8, 64), (5_000, 8, 128)],)
    param_names = ("prompts, completions each, d",)

    def setup(self, size):
        prompts, each, d = size
        rng = np.random.default_rng(5)
        self.completions = rng.standard_normal((prompts * each, d)).astype(np.float32)
        self.offsets = np.arange(prompts + 1) * each
        self.reward = rng.standard_normal(d)
        seen = rng.standard_normal((4 * d, d))
        self.matrix = np.eye(d) + seen.T @ seen

    def solve(self):
        return dl.pessimistic_policy(self.completions, self.offsets, self.reward, self.matrix, 1.0, tol=1e-3)

    def time_solve(self, size):
        self.solve()

    def time_greedy_numpy(self, size):
        (self.completions @ self.reward).reshape(size[0], size[1]).argmax(1)

    def track_duality_gap(self, size):
        return float(self.solve().duality_gap)

    track_duality_gap.unit = "reward"
