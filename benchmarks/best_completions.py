"""The best completion of each prompt, and the softmax of its rewards, with mean features: one read each."""

import numpy as np
from scipy.special import softmax

import dal_native as dn

EACH, GROUPS = 8, 16


class Completions:
    """Rows of a few completions for each prompt, in single precision, and the NumPy way to both results."""

    params = ([(20, 16), (10_000, 64), (100_000, 512)],)
    param_names = ("completions, d",)

    def setup(self, size):
        n, d = size
        n -= n % EACH
        rng = np.random.default_rng(4)
        self.rows = rng.standard_normal((n, d), np.float32)
        self.offsets = np.arange(0, n + 1, EACH)
        self.groups = np.linspace(0, len(self.offsets) - 1, GROUPS + 1).astype(np.int64)
        self.reward = rng.standard_normal(d) / np.sqrt(d)
        self.pool = dn.Pool.from_completions(self.rows, self.offsets)

    def rewards(self, dtype):
        return (self.rows.astype(dtype, copy=False) @ self.reward.astype(dtype)).reshape(-1, EACH)

    def groups_of(self, of_prompts):
        """Sums over groups of prompts, each prompt with equal weight."""
        weighted = of_prompts.astype(np.float64) * (EACH / len(self.rows))
        return np.stack(
            [weighted[a:b].sum(axis=0) for a, b in zip(self.groups, self.groups[1:], strict=False)]
        )


class BestCompletions(Completions):
    def by_numpy(self, dtype=np.float32):
        row = self.rewards(dtype).argmax(axis=1) + self.offsets[:-1]
        return row, self.groups_of(self.rows[row])

    def best(self, **options):
        return dn.best_completions(self.pool, self.reward, **options)

    def time_best(self, size):
        self.best()

    def time_best_of_groups(self, size):
        self.best(prompt_groups=self.groups)

    def time_one_thread(self, size):
        self.best(threads=1)

    def time_numpy(self, size):
        self.by_numpy()

    def time_numpy_product(self, size):
        """One read: what the pass is measured against."""
        self.rows @ self.reward.astype(np.float32)

    def track_error(self, size):
        row, _, mean = self.best(prompt_groups=self.groups)
        own, exact = self.by_numpy(np.float64)
        assert (row == own).all()
        return float(np.abs(mean - exact).max() / np.abs(exact).max())

    track_error.unit = "relative"


class SoftmaxCompletions(Completions):
    def by_numpy(self, dtype=np.float32):
        pi = softmax(self.rewards(dtype).astype(np.float64), axis=1)
        mean = np.einsum("pa,pad->pd", pi.astype(dtype), self.rows.reshape(*pi.shape, -1).astype(dtype))
        return pi.ravel(), self.groups_of(mean)

    def softmax(self, **options):
        return dn.softmax_completions(self.pool, self.reward, 1.0, **options)

    def time_softmax(self, size):
        self.softmax()

    def time_softmax_of_groups(self, size):
        self.softmax(prompt_groups=self.groups)

    def time_one_thread(self, size):
        self.softmax(threads=1)

    def time_numpy(self, size):
        self.by_numpy()

    def track_error(self, size):
        _, _, mean, pi = self.softmax(prompt_groups=self.groups)
        own, exact = self.by_numpy(np.float64)
        return float(max(np.abs(pi - own).max(), np.abs(mean - exact).max() / np.abs(exact).max()))

    track_error.unit = "relative"
