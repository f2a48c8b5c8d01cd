"""Pessimistic rewards of texts: in one batch, and one at a time from 64 threads or from an event loop.

Encoder "table" looks its vectors up, so that what is left is the scorer's own work; "hashing" is the cheapest
real one. ``python -m benchmarks.scorer`` prints rows per second and the time of one call.
"""

import asyncio
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

import dal_learn as dl
from dal_learn.encoders import HashingEncoder
from dal_learn.integrations.scorer import RewardScorer

THREADS = 64


class Table:
    """An encoder whose vectors are known."""

    independent = True

    def __init__(self, texts, d):
        self.name, self.dimension, self.fingerprint = "table", d, f"table/{d}"
        vectors = np.random.default_rng(0).standard_normal((len(texts), d)).astype(np.float32)
        self.vectors = dict(zip(texts, vectors / np.float32(np.sqrt(d)), strict=True))

    def encode(self, texts, progress=None):
        return np.stack([self.vectors[words] for words in texts])


class RewardOfTexts:
    params = ([(64, 16), (2_048, 256), (2_048, 512)], ["table", "hashing"])
    param_names = ("completions, d", "encoder")

    def setup(self, size, encoder):
        rows, d = size
        self.texts = [f"{k}: {'a few words of an answer. ' * 12}" for k in range(rows)]
        self.prompts = ["Why?"] * rows
        chosen = Table(self.texts, d) if encoder == "table" else HashingEncoder(d)
        rng = np.random.default_rng(1)
        seen = rng.standard_normal((4 * d, d))
        reward = dl.PessimisticReward(
            rng.standard_normal(d), np.eye(d) + seen.T @ seen, 1.0, encoder=chosen.fingerprint
        )
        self.scorer = RewardScorer(reward, chosen, cache_bytes=0)
        self.pool = ThreadPoolExecutor(THREADS)
        self.scorer.rewards(self.prompts[:1], self.texts[:1])

    def teardown(self, size, encoder):
        self.pool.shutdown()

    def batch(self):
        return self.scorer.rewards(self.prompts, self.texts)

    def threads(self):
        return list(self.pool.map(self.scorer.reward, self.prompts, self.texts))

    def loop(self):
        async def together():
            calls = map(self.scorer.reward_async, self.prompts, self.texts)
            return await asyncio.gather(*calls)

        return asyncio.run(together())

    def one(self):
        return self.scorer.rewards(self.prompts[:1], self.texts[:1])

    def one_queued(self):
        return [self.scorer.reward(self.prompts[0], self.texts[0])]

    def unbatched(self):
        """What callers of one completion at a time would get without a queue."""
        return [self.scorer.rewards([p], [w])[0] for p, w in zip(self.prompts, self.texts, strict=True)]

    def numpy(self):
        """The definition, for the whole batch."""
        reward, encoder = self.scorer.reward_model, self.scorer.encoder
        x = encoder.encode(self.texts).astype(np.float64)
        deviation = np.sqrt(np.einsum("kd,kd->k", x, np.linalg.solve(reward.information, x.T).T))
        return x @ reward.coef - reward.radius * deviation

    def time_batch(self, size, encoder):
        self.batch()

    def time_threads(self, size, encoder):
        self.threads()

    def time_loop(self, size, encoder):
        self.loop()

    def time_one(self, size, encoder):
        self.one()

    def time_one_queued(self, size, encoder):
        self.one_queued()

    def time_batch_numpy(self, size, encoder):
        self.numpy()

    def track_error(self, size, encoder):
        """Against the definition, and infinite where company changes a bit."""
        found = self.batch()
        if not found == self.threads() == self.loop() or self.one() + found[1:] != found:
            return np.inf
        return float(np.abs(np.array(found) - self.numpy()).max())


def main(repeats=5):
    for size in RewardOfTexts.params[0][1:]:
        for encoder in RewardOfTexts.params[1]:
            bench = RewardOfTexts()
            bench.setup(size, encoder)
            error = bench.track_error(size, encoder)
            print(f"{size[0]} completions, d = {size[1]}, encoder {encoder}: error {error:.1e}")
            for name in ("batch", "threads", "loop", "unbatched", "numpy", "one", "one_queued"):
                seconds = []
                for _ in range(20 * repeats if name.startswith("one") else repeats):
                    start = time.perf_counter()
                    getattr(bench, name)()
                    seconds.append(time.perf_counter() - start)
                middle = sorted(seconds)[len(seconds) // 2]
                each = (
                    f"{1e3 * middle:.2f} ms" if name.startswith("one") else f"{size[0] / middle:,.0f} rows/s"
                )
                print(f"  {name:12} {each}")
            bench.teardown(size, encoder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
