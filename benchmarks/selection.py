"""Exact greedy batches of (conversation, teacher) pairs, beside what a careful NumPy user writes."""

import numpy as np

import dal_native as dn
from benchmarks import common


def numpy_loop(p, size):
    """One product with the whole pool in float32, then one read of it per pick."""
    x, matrix = p.differences, p.matrix
    margin = (x @ p.reward.astype(np.float32)).astype(np.float64)
    weight, teacher = np.zeros(len(x)), np.zeros(len(x), np.int64)
    for start in range(0, len(x), 4096):
        part = slice(start, min(start + 4096, len(x)))
        beta = p.rationality.T[p.category[part]]
        w = beta**2 / (2 + 2 * np.cosh(np.clip(beta * margin[part, None], -700, 700)))
        teacher[part] = w.argmax(1)
        weight[part] = w.max(1)
    inverse = np.linalg.inv(matrix)
    half = np.linalg.cholesky(inverse).astype(np.float32)
    h = np.concatenate([((x[s : s + 4096] @ half) ** 2).sum(1) for s in range(0, len(x), 4096)]).astype(
        np.float64
    )
    picks = []
    for _ in range(size):
        i = int(np.argmax(weight * h))
        v = inverse @ x[i].astype(np.float64)
        a = weight[i] / (1 + weight[i] * (x[i] @ v))
        inverse -= a * np.outer(v, v)
        h -= a * (x @ v.astype(np.float32)).astype(np.float64) ** 2
        picks.append((i, int(teacher[i])))
        weight[i] = 0
    return picks


class SelectBatch:
    params = (common.POOLS, [16, 64], [200, 2_000], ["power_law", "isotropic"])
    param_names = ("n, d", "batch", "labels", "spectrum")
    timeout = 300

    def setup(self, size, batch, labels, kind):
        self.problem = common.problem(*size, kind=kind, labels=labels)
        self.arguments = common.arguments(self.problem)

    def time_select(self, size, batch, labels, kind):
        dn.select_batch(*self.arguments, batch)

    def time_one_thread(self, size, batch, labels, kind):
        dn.select_batch(*self.arguments, batch, threads=1)

    def time_numpy_loop(self, size, batch, labels, kind):
        numpy_loop(self.problem, batch)

    def peakmem_select(self, size, batch, labels, kind):
        dn.select_batch(*self.arguments, batch)

    def track_reads(self, size, batch, labels, kind):
        return common.seconds(lambda: dn.select_batch(*self.arguments, batch)) / common.read_seconds(
            self.problem.differences
        )

    track_reads.unit = "reads of the pool"

    def track_rows_rescored(self, size, batch, labels, kind):
        return dn.select_batch(*self.arguments, batch).counters["rows_rescored"] / size[0]

    track_rows_rescored.unit = "share of the pool"

    def track_same_picks(self, size, batch, labels, kind):
        chosen = dn.select_batch(*self.arguments, batch)
        return float(
            list(zip(chosen.conversation, chosen.teacher, strict=True)) == numpy_loop(self.problem, batch)
        )

    track_same_picks.unit = "1: the picks of the float32 NumPy loop"


class SelectDtypes:
    params = (common.POOLS, common.DTYPES)
    param_names = ("n, d", "dtype")

    def setup(self, size, dtype):
        self.arguments = common.arguments(common.problem(*size, dtype))

    def time_select(self, size, dtype):
        dn.select_batch(*self.arguments, 64)
