"""The pessimistic policy over pools of completions."""

import numpy as np

import dal_learn as dl


class PessimisticPolicy:
    params = ([(8, 4, 6), (500, 8, 64), (5_000, 8, 128)], [0.0, 0.2])
    param_names = ("prompts, completions each, d", "temperature")

    def setup(self, size, temperature):
        prompts, each, d = size
        rng = np.random.default_rng(5)
        self.completions = rng.standard_normal((prompts * each, d)).astype(np.float32)
        self.offsets = np.arange(prompts + 1) * each
        self.reward = rng.standard_normal(d)
        seen = rng.standard_normal((4 * d, d)) * np.arange(1, d + 1) ** -0.75
        self.matrix = np.eye(d) + seen.T @ seen

    def solve(self, temperature):
        return dl.pessimistic_policy(
            self.completions, self.offsets, self.reward, self.matrix, 1.0,
            temperature=temperature, tol=0.0, rtol=1e-3,
        )  # fmt: skip

    def time_solve(self, size, temperature):
        self.solve(temperature)

    def time_greedy_numpy(self, size, temperature):
        (self.completions @ self.reward).reshape(size[0], size[1]).argmax(1)

    def peakmem_solve(self, size, temperature):
        self.solve(temperature)

    def track_relative_gap(self, size, temperature):
        found = self.solve(temperature)
        return float(found.duality_gap / found.scale)

    track_relative_gap.unit = "of what greedy expects to win"

    def track_reads(self, size, temperature):
        return self.solve(temperature).reads

    track_reads.unit = "reads"
