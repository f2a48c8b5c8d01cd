"""Exact greedy batches of (conversation, teacher) pairs in seconds and in reads of the pool, along every
axis of the problem: size, batch, labels, teachers, spectrum, storage type, constraints, completions, cold
and warm. The outside baseline is what a careful NumPy user writes.
"""

import tempfile
from pathlib import Path

import numpy as np

import dal_native as dn
from benchmarks import common
from benchmarks.peers.numpy_loop import numpy_loop

#: One size for the axes other than size; the first is for tests.
SIZES = [(256, 8), (200_000, 256)]
BATCH = 64


class _Selection:
    """What is measured of every selection: a subclass's setup prepares the problem."""

    timeout = 600

    def prepare(self, problem, batch=BATCH, **options):
        self.problem, self.batch, self.options = problem, batch, options
        self.arguments = common.arguments(problem)
        self.rows = self.arguments[0].rows  # what a read is of

    def select(self, **more):
        return dn.select_batch(*self.arguments, self.batch, **self.options, **more)

    def time_select(self, *_):
        self.select()

    def peakmem_select(self, *_):
        self.select()

    def track_reads_select(self, *_):
        return common.reads(self.select, self.rows)

    track_reads_select.unit = "reads of the pool"

    def track_rows_rescored(self, *_):
        return self.select().counters["rows_rescored"] / len(self.arguments[0])

    track_rows_rescored.unit = "share of the pool"

    def track_d_efficiency(self, *_):
        return self.select().d_efficiency

    track_d_efficiency.unit = "certified share of the best possible"


class SelectBatch(_Selection):
    """Pools beside the NumPy loop."""

    params = (common.POOLS, [16, 64], [200, 2_000], ["power_law", "isotropic"])
    param_names = ("n, d", "batch", "labels", "spectrum")

    def setup(self, size, batch, labels, kind):
        self.prepare(common.pool_problem(*size, labels=labels, kind=kind), batch)

    def time_one_thread(self, *_):
        self.select(threads=1)

    def time_numpy_loop(self, *_):
        numpy_loop(self.problem, self.batch)

    def track_reads_one_thread(self, *_):
        return common.reads(lambda: self.select(threads=1), self.problem.differences)

    track_reads_one_thread.unit = "reads of the pool"

    def track_reads_numpy_loop(self, *_):
        return common.reads(lambda: numpy_loop(self.problem, self.batch), self.problem.differences, 1)

    track_reads_numpy_loop.unit = "reads of the pool"

    def track_same_picks(self, *_):
        chosen = self.select()
        pairs = list(zip(chosen.conversation.tolist(), chosen.teacher.tolist(), strict=True))
        return float(pairs == numpy_loop(self.problem, self.batch))

    track_same_picks.unit = "1: the picks of the float32 NumPy loop"


class SelectPools(_Selection):
    """Conversations and features, each alone."""

    params = ([(256, 8), (20_000, 256), (500_000, 256), (200_000, 32), (200_000, 768)],)
    param_names = ("n, d",)

    def setup(self, size):
        self.prepare(common.pool_problem(*size))


class SelectBatchSizes(_Selection):
    params = (SIZES, [1, 16, 256, 1024])
    param_names = ("n, d", "batch")

    def setup(self, size, batch):
        self.prepare(common.pool_problem(*size), batch)


class SelectTeachers(_Selection):
    """Their number, alone and with a cost each, where the best one depends on the leverage too."""

    params = (SIZES, [1, 10, 1_000, 10_000], [False, True])
    param_names = ("n, d", "teachers", "costs")

    def setup(self, size, teachers, costs):
        rng = np.random.default_rng(2)
        options = {"cost": rng.lognormal(0.0, 0.5, (teachers, common.CATEGORIES))} if costs else {}
        self.prepare(common.pool_problem(*size, m=teachers), **options)


class SelectLabels(_Selection):
    params = (SIZES, [0, 100, 1_000, 10_000, 100_000], ["power_law", "isotropic"])
    param_names = ("n, d", "labels", "spectrum")

    def setup(self, size, labels, kind):
        self.prepare(common.pool_problem(*size, labels=labels, kind=kind))


class SelectSpectra(_Selection):
    params = (SIZES, list(common.SPECTRA), [200, 20_000])
    param_names = ("n, d", "spectrum", "labels")

    def setup(self, size, kind, labels):
        self.prepare(common.pool_problem(*size, labels=labels, kind=kind))


class SelectDtypes(_Selection):
    """A read is of the pool as stored: half precision has half the bytes."""

    params = (SIZES, common.DTYPES)
    param_names = ("n, d", "dtype")

    def setup(self, size, dtype):
        self.prepare(common.pool_problem(*size, dtype=dtype))


class SelectConstraints(_Selection):
    """What is allowed and what it costs to ask."""

    params = (SIZES, ["available", "capacity", "cost", "exclude", "candidates", "repeats", "optimism"])
    param_names = ("n, d", "constraint")

    def setup(self, size, constraint):
        rng = np.random.default_rng(2)
        n, m, c = size[0], common.TEACHERS, common.CATEGORIES
        options = {
            "available": lambda: rng.random((m, c)) < 0.7,
            "capacity": lambda: np.ones(m, np.int64),
            "cost": lambda: rng.lognormal(0.0, 0.5, (m, c)),
            "exclude": lambda: np.stack([rng.integers(0, n, 2_000), rng.integers(-1, m, 2_000)], axis=1),
            "candidates": lambda: np.stack([rng.integers(0, n, 5 * n), rng.integers(0, m, 5 * n)], axis=1),
            "repeats": lambda: 4,
            "optimism": lambda: 1.0,
        }
        self.prepare(common.pool_problem(*size), **{constraint: options[constraint]()})


class SelectCriteria(_Selection):
    """What a pair is worth: the rationality as it is, or the best in an interval around it."""

    params = (SIZES, ["plug_in", "optimistic"])
    param_names = ("n, d", "criterion")

    def setup(self, size, criterion):
        problem = common.pool_problem(*size)
        options = {"criterion": criterion}
        if criterion == "optimistic":
            beta = np.abs(problem.rationality)
            options["rationality_interval"] = np.stack([beta / 1.5, beta * 1.5], axis=-1)
        self.prepare(problem, **options)


class SelectNuisance:
    """D_s: the rationalities are a nuisance, estimated by the same labels; beside the plug-in."""

    params = ([(256, 8, 5), (50_000, 64, 20), (200_000, 128, 100)], [0, 2_000])
    param_names = ("n, d, teachers", "labels")
    timeout = 600

    def setup(self, size, labels):
        n, d, m = size
        self.problem = common.pool_problem(n, d, labels=labels, m=m)
        self.joint = common.joint_information(self.problem, labels)
        self.arguments = common.arguments(self.problem)

    def time_select(self, *_):
        dn.select_batch(*self.arguments, BATCH, criterion="nuisance", joint=self.joint)

    def time_plug_in(self, *_):
        dn.select_batch(*self.arguments, BATCH)

    def peakmem_select(self, *_):
        self.time_select()

    def track_refreshes(self, *_):
        batch = dn.select_batch(*self.arguments, BATCH, criterion="nuisance", joint=self.joint)
        return batch.counters["refreshes"] / len(self.arguments[0])

    track_refreshes.unit = "share of the pool"


class SelectCompletions(_Selection):
    """Pairs of the completions of each prompt; a read is of the completions."""

    params = ([(32, 4, 8), (20_000, 16, 256), (5_000, 64, 256)],)
    param_names = ("prompts, completions, d",)

    def setup(self, size):
        self.prepare(common.completion_problem(*size))


class SelectFiles(_Selection):
    """A pool streamed from a .npy file that the system keeps in memory; a read is of rows in memory."""

    params = (SIZES, ["float32", "float16"], [1, 16])
    param_names = ("n, d", "dtype", "working memory, MB")

    def setup(self, size, dtype, megabytes):
        self.prepare(common.pool_problem(*size, dtype=dtype))
        self.folder = tempfile.TemporaryDirectory()
        path = Path(self.folder.name) / "pool.npy"
        np.save(path, self.rows)
        pool = dn.Pool.open(path, self.problem.category, working_memory=megabytes << 20)
        self.arguments = (pool, *self.arguments[1:])

    def teardown(self, *_):
        self.folder.cleanup()


class SelectorRounds:
    """A round from a Selector that has seen the pool, after a refit that moved M and theta."""

    params = (SIZES, [200, 2_000, 20_000], list(common.SPECTRA))
    param_names = ("n, d", "labels", "spectrum")
    number, warmup_time, timeout = 1, 0, 600

    def setup(self, size, labels, kind):
        self.problem = common.pool_problem(*size, labels=labels, kind=kind)
        self.rounds = common.Rounds(self.problem.pool(), self.problem)
        self.rounds.refit(self.rounds.select(BATCH))

    def time_round(self, *_):
        self.rounds.select(BATCH)

    def peakmem_round(self, *_):
        self.rounds.select(BATCH)

    def track_reads_round(self, *_):
        found = []
        for _round in range(3):
            unit = common.read_seconds(self.problem.differences)
            batch, took = common.timed(lambda: self.rounds.select(BATCH))
            found.append(took / unit)
            self.rounds.refit(batch)
        return sorted(found)[1]

    track_reads_round.unit = "reads of the pool"

    def track_same_picks(self, *_):
        warm = self.rounds.select(BATCH)
        r = self.rounds
        cold = dn.select_batch(r.pool, r.reward, r.rationality, r.matrix, BATCH)
        return float(
            np.array_equal(warm.conversation, cold.conversation)
            and np.array_equal(warm.teacher, cold.teacher)
        )

    track_same_picks.unit = "1: the picks of a cold start"
