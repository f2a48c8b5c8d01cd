"""Passes over the completions of prompts: each prompt's best, the softmax of its rewards, mean features."""

import json
import os
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dal_native as dn
from dal_native import testing as t

COUNTS = {
    "singles": [1] * 9,
    "pairs": [2] * 33,
    "one prompt": [17],
    "ragged": [1, 5, 1, 2, 31, 1, 7, 64, 65, 3, 8, 8, 1],
    "beyond a run": [2, 1100, 1, 1024, 1025, 3],
    "beyond a task": [5000, 1, 4097],
    "many": [8] * 700,
}
storage = pytest.mark.parametrize("dtype_name", t.DTYPES)
LEVELS = dn.capabilities()["simd"]["available"]


class Case:
    """A pool of completions with every argument that a pass can take."""

    def __init__(self, counts, d, dtype_name="float64", seed=0, kind="isotropic"):
        rng = np.random.default_rng(seed)
        counts = np.asarray(counts)
        self.offsets = np.concatenate([[0], np.cumsum(counts)])
        n, prompts = int(self.offsets[-1]), len(counts)
        self.stored = t.make_problem(kind, n, d, seed=seed, dtype_name=dtype_name).differences
        self.phi = t.as_float64(self.stored)
        self.pool = dn.Pool.from_completions(self.stored, self.offsets)
        self.reward = rng.standard_normal(d)
        self.weight = rng.uniform(0.1, 2.0, prompts) / prompts
        self.groups = np.unique([0, prompts // 5, prompts // 3, prompts])
        self.groups = np.insert(self.groups, 1, self.groups[1])  # one without a prompt
        self.allowed = rng.random(n) < 0.6
        self.allowed[self.offsets[:-1] + rng.integers(0, counts)] = True
        base = rng.exponential(size=n) * self.allowed
        self.base = base / self.spread(np.add.reduceat(base, self.offsets[:-1]))

    def spread(self, of_prompts):
        return np.repeat(of_prompts, np.diff(self.offsets))

    def best(self, pool=None, **options):
        options = {"prompt_groups": self.groups, "allowed": self.allowed, **options}
        return dn.best_completions(self.pool if pool is None else pool, self.reward, self.weight, **options)

    def softmax(self, pool=None, temperature=0.7, **options):
        options = {"prompt_groups": self.groups, **options}
        pool = self.pool if pool is None else pool
        return dn.softmax_completions(pool, self.reward, temperature, self.base, self.weight, **options)

    def by_group(self, of_prompts):
        """Sums of rows of prompts over each group."""
        return np.array(
            [of_prompts[a:b].sum(axis=0) for a, b in zip(self.groups, self.groups[1:], strict=False)]
        )

    def streamed(self, path, working_memory):
        rows = self.stored
        if rows.dtype.names:
            entry = {"dtype": "BF16", "shape": rows.shape, "data_offsets": [0, rows.nbytes]}
            head = json.dumps({"embedding": entry}).encode()
            path = path.with_suffix(".safetensors")
            path.write_bytes(len(head).to_bytes(8, "little") + head + rows.tobytes())
        else:
            np.save(path, rows)
        return dn.Pool.open(path, prompt_offsets=self.offsets, working_memory=working_memory)


def bits(results):
    return [np.asarray(a).tobytes() for a in results]


def sums_close(got, expected, sizes, d, terms):
    """Sums of many terms, within the rounding of their sizes."""
    assert got.shape == expected.shape
    assert (np.abs(got - expected) <= (t.tolerance(d) + terms * 1e-16) * sizes + 1e-300).all()


# ---------------------------------------------------------------------------------------- best completions


@storage
@pytest.mark.parametrize("shape", COUNTS)
@pytest.mark.parametrize("d", [1, 16, 33])
def test_best_is_the_definition(backend, shape, d, dtype_name):
    case = Case(COUNTS[shape], d, dtype_name, seed=d)
    row, best, mean = case.best(backend=backend)
    of_all, groups = np.ones(len(case.weight)), np.arange(len(case.weight) + 1)
    true_row, true_best, _ = t.oracle_best_completions(
        case.phi, case.offsets, case.reward, of_all, groups, case.allowed
    )
    u = t.oracle_margin(case.phi, case.reward)
    size = np.abs(case.phi) @ np.abs(case.reward)
    near = t.tolerance(d) * case.spread(np.maximum.reduceat(size, case.offsets[:-1]))[row]
    assert (np.abs(best - true_best) <= near).all()
    assert (u[row] >= true_best - near).all() and case.allowed[row].all()
    assert (case.offsets[:-1] <= row).all() and (row < case.offsets[1:]).all()
    same = (row == true_row).mean()
    assert same == 1.0 or len(np.unique(u)) < len(u)
    chosen = case.weight[:, None] * case.phi[row]
    exact, sizes = case.by_group(chosen.astype(np.longdouble)), case.by_group(np.abs(chosen))
    sums_close(mean, exact, sizes, d, len(row))


@storage
@pytest.mark.parametrize("shape", COUNTS)
def test_best_is_the_first_largest_margin_to_the_bit(backend, shape, dtype_name):
    case = Case(COUNTS[shape], 19, dtype_name, kind="duplicates")
    row, best, _ = case.best(backend=backend)
    u = dn.margin(case.pool.completions, case.reward, backend=backend)
    allowed = np.where(case.allowed, u, -np.inf)
    assert (best == np.maximum.reduceat(allowed, case.offsets[:-1])).all()
    first = [a + int(np.argmax(allowed[a:b])) for a, b in zip(case.offsets, case.offsets[1:], strict=False)]
    assert row.tolist() == first


@storage
@pytest.mark.parametrize("counts", [[1] * 40, [3, 2000, 4], [8] * 9, [5000]])
def test_equal_completions_tie_to_the_first_row(backend, counts, dtype_name):
    offsets = np.concatenate([[0], np.cumsum(counts)])
    values = np.random.default_rng(0).standard_normal(21)
    values = values.round() if backend == "reference" else values  # BLAS has bits for each position
    rows = t.store(np.tile(values, (offsets[-1], 1)), dtype_name)
    pool = dn.Pool.from_completions(rows, offsets)
    row, best, _ = dn.best_completions(pool, np.arange(21.0), backend=backend)
    assert row.tolist() == offsets[:-1].tolist()
    assert len(set(best.tolist())) == 1


def test_defaults(backend):
    case = Case(COUNTS["ragged"], 5)
    prompts = len(case.weight)
    plain = dn.best_completions(case.pool, case.reward, backend=backend)
    spelt = dn.best_completions(
        case.pool, case.reward, np.full(prompts, 1 / prompts), prompt_groups=[0, prompts],
        allowed=np.ones(len(case.phi), int), backend=backend,
    )  # fmt: skip
    assert bits(plain) == bits(spelt)
    assert plain[2][0] == pytest.approx(case.phi[plain[0]].mean(axis=0))


def test_a_group_for_each_prompt(backend):
    case = Case(COUNTS["beyond a run"], 6)
    row, _, mean = case.best(prompt_groups=np.arange(len(case.weight) + 1), backend=backend)
    assert mean == pytest.approx(case.weight[:, None] * case.phi[row], rel=1e-15)


def test_no_prompts(backend):
    pool = dn.Pool.from_completions(np.empty((0, 3)), [0])
    row, best, mean = dn.best_completions(pool, [1.0, 2.0, 3.0], backend=backend)
    assert (row.shape, best.shape, mean.tolist()) == ((0,), (0,), [[0.0, 0.0, 0.0]])
    assert dn.best_completions(pool, [1.0, 2.0, 3.0], prompt_groups=[0], backend=backend)[2].shape == (0, 3)


# ------------------------------------------------------------------------------------------------ softmax


@storage
@pytest.mark.parametrize("shape", COUNTS)
@pytest.mark.parametrize(("d", "temperature"), [(1, 0.5), (16, 3.0), (33, 0.05)])
def test_softmax_is_the_definition(backend, shape, d, dtype_name, temperature):
    case = Case(COUNTS[shape], d, dtype_name, seed=d)
    log_z, expected, mean, pi = case.softmax(temperature=temperature, backend=backend)
    true_z, true_expected, true_mean, true_pi = t.oracle_softmax_completions(
        case.phi, case.offsets, case.reward, temperature, case.base
    )
    size = (np.abs(case.phi) @ np.abs(case.reward)).max()  # of the rewards and what they are added up from
    rounding = t.tolerance(d) * (1 + size / temperature)  # of a logit, and so relative to a probability
    assert (np.abs(log_z - true_z) <= rounding).all()
    assert (np.abs(pi - true_pi) <= 2 * rounding * true_pi + 1e-300).all()
    assert (np.abs(expected - true_expected) <= 2 * rounding * size).all()
    exact = case.by_group(case.weight[:, None] * true_mean)
    largest = np.maximum.reduceat(np.abs(case.phi), case.offsets[:-1], axis=0)
    assert (np.abs(mean - exact) <= 4 * rounding * case.by_group(case.weight[:, None] * largest)).all()


def test_softmax_of_extreme_rewards(backend):
    """Rewards far apart and far from zero, low and high temperatures."""
    pool = dn.Pool.from_completions([[1e6], [1e6 + 1], [-1e6], [5.0], [-1e300], [1e300]], [0, 3, 4, 6])
    log_z, expected, mean, pi = dn.softmax_completions(pool, [1.0], 1.0, backend=backend)
    e = np.exp(1.0)
    assert pi == pytest.approx([1 / (1 + e), e / (1 + e), 0, 1, 0, 1], rel=1e-14)
    assert log_z == pytest.approx([1e6 + np.log((1 + e) / 3), 5, 1e300], rel=1e-14)
    assert expected == pytest.approx([1e6 + e / (1 + e), 5, 1e300], rel=1e-14)
    assert mean == pytest.approx(np.array([[(expected / 3).sum()]]), rel=1e-14)
    cold = dn.softmax_completions(pool, [1e-3], 1e-7, backend=backend)
    assert cold[3].tolist() == [0, 1, 0, 1, 0, 1]
    hot = dn.softmax_completions(pool, [1e-300], 1e300, backend=backend)
    assert hot[3] == pytest.approx([1 / 3, 1 / 3, 1 / 3, 1, 0.5, 0.5])


@pytest.mark.parametrize("counts", [[3, 1, 8, 40], [3, 3000, 2]])
def test_gradient_of_log_partition_is_the_mean(backend, counts):
    case = Case(counts, 4)
    temperature = 0.8

    def value(theta):
        log_z, *_ = dn.softmax_completions(
            case.pool, theta.astype(float), temperature, case.base, backend=backend
        )
        return temperature * case.weight @ log_z

    mean = dn.softmax_completions(case.pool, case.reward, temperature, case.base, case.weight)[2][0]
    assert mean == pytest.approx(t.finite_difference(value, case.reward, 1e-3).astype(float), rel=1e-8)


@storage
@pytest.mark.parametrize("shape", COUNTS)
def test_softmax_laws(backend, shape, dtype_name):
    case = Case(COUNTS[shape], 11, dtype_name)
    log_z, expected, mean, pi = case.softmax(backend=backend)
    first = case.offsets[:-1]
    assert np.add.reduceat(pi, first) == pytest.approx(np.ones(len(first)), rel=1e-12)
    assert ((pi == 0) >= (case.base == 0)).all() and (pi >= 0).all()
    assert case.weight @ expected == pytest.approx(float(mean.sum(axis=0) @ case.reward), rel=1e-9, abs=1e-9)
    u = dn.margin(case.pool.completions, case.reward)
    divergence = np.add.reduceat(
        pi * np.log(np.where(pi > 0, pi, 1) / np.where(case.base > 0, case.base, 1)), first
    )
    assert 0.7 * log_z == pytest.approx(expected - 0.7 * divergence, rel=1e-10, abs=1e-12)
    top = np.maximum.reduceat(np.where(case.base > 0, u, -np.inf), first)
    assert (expected <= top + 1e-12 * np.abs(top)).all()


def test_the_limit_of_low_temperature_is_the_best(backend):
    case = Case(COUNTS["beyond a run"], 9)
    log_z, expected, mean, pi = case.softmax(temperature=1e-9, backend=backend)
    row, best, best_mean = case.best(backend=backend)
    assert np.flatnonzero(pi).tolist() == row.tolist()
    assert expected == pytest.approx(best) and 1e-9 * log_z == pytest.approx(best)
    assert mean == pytest.approx(best_mean)


@pytest.mark.parametrize("order", ["rising", "falling", "forbidden first"])
def test_a_large_prompt_in_any_order(backend, order):
    """Parts of one prompt are brought together, whichever holds the largest reward; some forbid all."""
    u = np.linspace(-400.0, 400.0, 9001)
    base = np.full(9001, 1.0)
    if order == "falling":
        u = u[::-1].copy()
    if order == "forbidden first":
        base[:6000] = 0.0
    base /= base.sum()
    phi = np.stack([u, np.cos(u)], axis=1)
    pool = dn.Pool.from_completions(phi, [0, 9001])
    log_z, expected, mean, pi = dn.softmax_completions(pool, [1.0, 0.0], 2.0, base, backend=backend)
    z, true_expected, true_mean, true_pi = t.oracle_softmax_completions(
        phi, [0, 9001], np.array([1.0, 0.0]), 2.0, base
    )
    assert log_z == pytest.approx(z.astype(float), rel=1e-13)
    assert expected == pytest.approx(true_expected.astype(float), rel=1e-12)
    assert mean == pytest.approx(true_mean.astype(float), rel=1e-12)
    assert pi == pytest.approx(true_pi.astype(float), rel=1e-11, abs=1e-300)


def test_softmax_defaults(backend):
    case = Case(COUNTS["beyond a run"], 5)
    prompts, counts = len(case.weight), np.diff(case.offsets)
    plain = dn.softmax_completions(case.pool, case.reward, 1.5, backend=backend)
    spelt = dn.softmax_completions(
        case.pool, case.reward, 1.5, np.repeat(1 / counts, counts), np.full(prompts, 1 / prompts),
        prompt_groups=[0, prompts], backend=backend,
    )  # fmt: skip
    assert bits(plain) == bits(spelt)


def test_softmax_of_no_prompts(backend):
    pool = dn.Pool.from_completions(np.empty((0, 3)), [0])
    log_z, expected, mean, pi = dn.softmax_completions(pool, np.ones(3), 1.0, np.empty(0), backend=backend)
    assert (log_z.shape, expected.shape, mean.tolist(), pi.shape) == ((0,), (0,), [[0.0] * 3], (0,))


# ------------------------------------------------------------------------------- threads, levels, backends


def every_pass(case, pool=None, **options):
    softmax = case.softmax(pool, **options)
    return *case.best(pool, **options), *softmax


@storage
@pytest.mark.parametrize("shape", ["ragged", "beyond a run", "beyond a task", "many"])
@pytest.mark.parametrize("d", [3, 40])
def test_same_bits_for_any_number_of_threads(backend, shape, d, dtype_name):
    case = Case(COUNTS[shape], d, dtype_name)
    one = bits(every_pass(case, threads=1, backend=backend))
    for threads in (2, 3, 7):
        assert bits(every_pass(case, threads=threads, backend=backend)) == one


def test_same_bits_over_many_tasks():
    """Sums are added some tasks at a time: enough of them for several times, prompts of all sizes between."""
    counts = np.random.default_rng(1).integers(1, 40, 3000)
    counts[[7, 800, 801, 2999]] = 3000, 70, 900, 260
    case = Case(counts, 256, "float16")
    one = every_pass(case, threads=1)
    for threads in (2, 5):
        assert bits(every_pass(case, threads=threads)) == bits(one)
    for a, b in zip(one, every_pass(case, backend="reference"), strict=True):
        assert np.allclose(a, b, rtol=1e-11, atol=1e-12)


@storage
@pytest.mark.parametrize("shape", COUNTS)
@pytest.mark.parametrize("working_memory", [64 * 24, 1 << 15, 1 << 24])
def test_streamed_as_in_memory(tmp_path, backend, shape, dtype_name, working_memory):
    case = Case(COUNTS[shape], 24, dtype_name)
    streamed = case.streamed(tmp_path / "x.npy", working_memory)
    got, expected = every_pass(case, streamed, backend=backend), every_pass(case, backend=backend)
    if backend == "cpu":
        assert bits(got) == bits(expected)
        assert bits(every_pass(case, streamed, threads=5)) == bits(expected)
    for a, b in zip(got, expected, strict=True):
        assert np.allclose(a, b, rtol=1e-12, atol=1e-12)


@settings(max_examples=40)
@given(
    counts=st.lists(st.sampled_from([1, 2, 3, 8, 63, 64, 65, 130, 1030]), min_size=1, max_size=12),
    d=st.integers(1, 70),
    dtype_name=st.sampled_from(t.DTYPES),
    seed=st.integers(0, 2**32 - 1),
    cuts=st.lists(st.integers(0, 12), max_size=4),
    threads=st.integers(1, 4),
)
def test_backends_agree(counts, d, dtype_name, seed, cuts, threads):
    case = Case(counts, d, dtype_name, seed=seed)
    case.groups = np.array([0, *sorted(min(c, len(counts)) for c in cuts), len(counts)])
    for a, b in zip(every_pass(case, threads=threads), every_pass(case, backend="reference"), strict=True):
        assert np.allclose(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("level", LEVELS)
def test_every_simd_level(run_python, level):
    script = """
        import numpy as np, dal_native as dn
        rng = np.random.default_rng(2)
        offsets = np.concatenate([[0], np.cumsum(rng.integers(1, 90, 60))])
        rows = rng.integers(-4, 5, (offsets[-1], 45)).astype(np.float32)  # sums without rounding
        pool = dn.Pool.from_completions(rows, offsets)
        row, best, mean = dn.best_completions(pool, rng.integers(-3, 4, 45) * 1.0, np.ones(60), backend="cpu")
        print(row.tolist(), best.tolist(), mean.tolist())
        for a in dn.softmax_completions(pool, rng.standard_normal(45) / 9, 0.5, backend="cpu"):
            print([f"{x:.9g}" for x in a.ravel()])  # sums are rounded in each level's own order
    """
    assert run_python(script, DAL_NATIVE_SIMD=level) == run_python(script, DAL_NATIVE_SIMD="generic")


# ----------------------------------------------------------------------------------------------- files


@pytest.mark.skipif(not os.path.exists("/proc/self/io"), reason="counts bytes by /proc/self/io")
def test_each_byte_of_a_file_is_read_once(tmp_path, run_python):
    script = f"""
        import numpy as np, dal_native as dn
        rng = np.random.default_rng(0)
        counts = [*rng.integers(1, 12, 3000), 9000, 1]
        offsets = np.concatenate([[0], np.cumsum(counts)])
        rows = rng.standard_normal((offsets[-1], 64), np.float32)
        np.save({str(tmp_path / "x.npy")!r}, rows)
        pool = dn.Pool.open({str(tmp_path / "x.npy")!r}, prompt_offsets=offsets, working_memory=1 << 20)
        def taken():
            return int(open("/proc/self/io").read().split()[1])
        reward = np.ones(64)
        calls = [
            lambda: dn.best_completions(pool, reward, prompt_groups=[0, 5, 3002]),
            lambda: dn.softmax_completions(pool, reward, 1.0, prompt_groups=[0, 5, 3002]),
        ]
        for call in calls:
            before = taken()
            call()
            print((taken() - before - rows.nbytes) / rows.nbytes)
    """
    for more in run_python(script).split():
        assert 0 <= float(more) < 0.01


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("rows", [[4], [699, 650], [3000, 2999]])
def test_the_first_nonfinite_row_is_named(tmp_path, backend, bad, threads, rows):
    case = Case([8] * 100 + [3000], 24, "float32")
    case.stored[rows, 5] = bad
    streamed = case.streamed(tmp_path / "x.npy", 1 << 16)
    for call in (case.best, case.softmax):
        with pytest.raises(
            ValueError, match=f"holds NaN or infinity, first in row {min(rows)}; expected finite"
        ):
            call(streamed, backend=backend, threads=threads)


def test_a_file_that_changed_is_refused(tmp_path, backend):
    case = Case([8] * 10, 24, "float32")
    streamed = case.streamed(tmp_path / "x.npy", 1 << 16)
    every_pass(case, streamed, backend=backend)
    with open(tmp_path / "x.npy", "ab") as file:
        file.write(b"more")
    for call in (case.best, case.softmax):
        with pytest.raises(ValueError, match="bytes now and had"):
            call(streamed, backend=backend)


# -------------------------------------------------------------------------------------------- refusals

POOL = dn.Pool.from_completions([[0.0, 1.0], [2.0, 0.0], [3.0, 1.0]], [0, 2, 3])
R = [1.0, 1.0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dn.best_completions(dn.Pool([[1.0]]), [1.0]), "pool holds differences; expected a pool of"),
        (lambda: dn.best_completions([[1.0]], [1.0]), "pool is of type list; expected a pool of"),
        (
            lambda: dn.best_completions(dn.Pool.from_pairs([[1.0], [2.0]], [[0, 1]]), [1.0]),
            "expected a pool of the completions of prompts",
        ),
        (lambda: dn.best_completions(POOL, [1.0]), "reward has length 1; expected 2"),
        (lambda: dn.best_completions(POOL, [np.nan, 1.0]), "reward is not finite at 0"),
        (lambda: dn.best_completions(POOL, R, [1.0]), "prompt_weight has length 1; expected 2, one for each"),
        (lambda: dn.best_completions(POOL, R, [1.0, np.inf]), "prompt_weight is not finite at 1"),
        (
            lambda: dn.best_completions(POOL, R, prompt_groups=[]),
            "prompt_groups must start at 0 and end at 2",
        ),
        (lambda: dn.best_completions(POOL, R, prompt_groups=[0, 1]), "must start at 0 and end at 2"),
        (lambda: dn.best_completions(POOL, R, prompt_groups=[1, 2]), "must start at 0 and end at 2"),
        (lambda: dn.best_completions(POOL, R, prompt_groups=[0, 5, 2]), "prompt_groups falls after 1"),
        (lambda: dn.best_completions(POOL, R, prompt_groups=[0.0, 2.0]), "prompt_groups has dtype float64"),
        (lambda: dn.best_completions(POOL, R, allowed=[True, True]), "allowed has length 2; expected 3"),
        (lambda: dn.best_completions(POOL, R, allowed=[0, 0, 1]), "prompt 0 has no allowed completion"),
        (lambda: dn.best_completions(POOL, R, allowed=[0, 1, False]), "prompt 1 has no allowed completion"),
        (lambda: dn.best_completions(POOL, R, allowed=[0, 1, 2]), "allowed holds numbers other than 0 and 1"),
        (lambda: dn.best_completions(POOL, R, allowed=[0.0, 1.0, 1.0]), "allowed has dtype float64"),
        (lambda: dn.best_completions(POOL, R, allowed=[[True] * 3]), "allowed has 2 dimensions"),
        (lambda: dn.best_completions(POOL, R, backend="numba"), "which this version does not have"),
        (lambda: dn.best_completions(POOL, R, threads=0), "threads is 0; expected"),
        (lambda: dn.softmax_completions(dn.Pool([[1.0]]), [1.0], 1.0), "pool holds differences; expected"),
        (lambda: dn.softmax_completions(POOL, [1.0], 1.0), "reward has length 1; expected 2"),
        (lambda: dn.softmax_completions(POOL, R, 0.0), "temperature is 0; expected a positive number"),
        (lambda: dn.softmax_completions(POOL, R, -1.0), "temperature is -1; expected"),
        (lambda: dn.softmax_completions(POOL, R, np.inf), "temperature is inf; expected a finite"),
        (lambda: dn.softmax_completions(POOL, R, "1"), "temperature is '1'; expected a finite"),
        (lambda: dn.softmax_completions(POOL, R, 1.0, [0.5, 0.5]), "base_policy has length 2; expected 3"),
        (lambda: dn.softmax_completions(POOL, R, 1.0, [1.5, -0.5, 1.0]), "base_policy holds -0.5; expected"),
        (lambda: dn.softmax_completions(POOL, R, 1.0, [0.5, 0.5, 0.9]), "sums to 0.9 in prompt 1"),
        (lambda: dn.softmax_completions(POOL, R, 1.0, [0.0, 0.0, 1.0]), "sums to 0 in prompt 0"),
        (lambda: dn.softmax_completions(POOL, R, 1.0, [1e308] * 3), "base_policy holds 1e\\+308; expected"),
        (lambda: dn.softmax_completions(POOL, R, 1.0, [0.5, np.nan, 1.0]), "base_policy is not finite at 1"),
        (lambda: dn.softmax_completions(POOL, R, 1.0, None, [1.0]), "prompt_weight has length 1; expected 2"),
        (
            lambda: dn.softmax_completions(POOL, R, 1.0, prompt_groups=[0, 1]),
            "prompt_groups must start at 0 and end at 2",
        ),
        (lambda: dn.softmax_completions(POOL, R, 1e-310), "the softmax of prompt 0 is not finite"),
        (lambda: dn.leverage(POOL, np.eye(2), reference=R), "reference is given for pairs"),
        (
            lambda: dn.leverage(dn.Pool.from_pairs(np.eye(2), [[0, 1]]), np.eye(2), reference=R),
            "reference is given for pairs",
        ),
        (lambda: dn.leverage(np.eye(2), np.eye(2), reference=[1.0]), "reference has length 1; expected 2"),
        (lambda: dn.leverage(np.eye(2), np.eye(2), reference=[1.0, np.nan]), "reference is not finite at 1"),
        (lambda: dn.leverage(np.eye(2), np.eye(2), reference=[[1.0, 1.0]]), "reference has 2 dimensions"),
        (lambda: dn.Pool([[1.0]]).completions, "this pool holds differences; completions are known"),
    ],
)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("counts", [[2, 3, 1], [2, 3000, 5, 2000]])
@pytest.mark.parametrize("threads", [1, 4])
def test_a_reward_that_overflows_is_refused_by_name(backend, counts, threads):
    phi = np.ones((sum(counts), 3))
    phi[sum(counts) // 2 :] = [1e300, 1.0, -1e300]
    pool = dn.Pool.from_completions(phi, np.concatenate([[0], np.cumsum(counts)]))
    with pytest.raises(ValueError, match=f"the reward of completion {sum(counts) // 2} is not finite"):
        dn.best_completions(pool, [1e10, 1.0, 1e10], backend=backend, threads=threads)
    with pytest.raises(ValueError, match=f"the reward of completion {sum(counts) // 2} is not finite"):
        dn.softmax_completions(pool, [1e10, 1.0, 1e10], 1.0, backend=backend, threads=threads)
    with pytest.raises(ValueError, match="a weighted sum of completions is not finite"):
        weight = np.full(len(counts), 1e10)
        dn.softmax_completions(pool, [1.0, 1.0, 0.5], 1.0, None, weight, backend=backend, threads=threads)
    with pytest.raises(ValueError, match="a weighted sum of completions is not finite"):
        dn.best_completions(
            pool, [1.0, 1.0, 0.5], np.full(len(counts), 1e10), backend=backend, threads=threads
        )


def test_the_binding_checks_what_it_is_given():
    from dal_native import _kernels
    from dal_native._backends import cpu

    view, row, best, mean = cpu._view(POOL), np.empty(2, np.int64), np.empty(2), np.empty((1, 2))
    good = [view, np.ones(2), np.ones(2), np.array([0, 2]), np.ones(3, np.uint8), row, best, mean, 1]
    _kernels.best_completions(*good)
    for at, bad in [
        (0, cpu._view(dn.Pool([[1.0, 2.0]]))),
        (1, np.ones(3)),
        (2, np.ones(3)),
        (3, np.array([0, 1])),
        (3, np.array([1, 2])),
        (3, np.array([0, 3, 2])),
        (3, np.empty(0, np.int64)),
        (4, np.ones(2, np.uint8)),
        (4, np.array([0, 0, 1], np.uint8)),
        (5, np.empty(3, np.int64)),
        (6, np.empty(1)),
        (7, np.empty((2, 2))),
        (8, 0),
    ]:
        with pytest.raises(ValueError):
            _kernels.best_completions(*[bad if k == at else a for k, a in enumerate(good)])
    good = [view, np.ones(2), 1.0, np.array([0.5, 0.5, 1.0]), np.ones(2), np.array([0, 2])]
    good += [np.empty(2), np.empty(2), np.empty((1, 2)), np.empty(3), 1]
    _kernels.softmax_completions(*good)
    for at, bad in [
        (0, cpu._view(dn.Pool([[1.0, 2.0]]))),
        (1, np.ones(3)),
        (2, 0.0),
        (2, np.nan),
        (2, np.inf),
        (3, np.ones(2)),
        (3, np.array([1.0, 0.0, 0.0])),
        (3, np.array([1.0, np.nan, 1.0])),
        (3, np.array([2.0, -1.0, 1.0])),
        (4, np.ones(3)),
        (5, np.array([0, 1])),
        (6, np.empty(1)),
        (7, np.empty(3)),
        (8, np.empty((2, 2))),
        (9, np.empty(2)),
        (10, 0),
    ]:
        with pytest.raises(ValueError):
            _kernels.softmax_completions(*[bad if k == at else a for k, a in enumerate(good)])
    with pytest.raises(ValueError, match="reference: expected a pool of rows"):
        _kernels.leverage(view, np.eye(2), None, False, np.ones(2), np.empty(1), 1)


# --------------------------------------------------------------------------------------- the rows themselves


@storage
@pytest.mark.parametrize("streamed", [False, True])
def test_completions_as_rows(tmp_path, backend, dtype_name, streamed):
    case = Case(COUNTS["ragged"], 24, dtype_name)
    pool = case.streamed(tmp_path / "x.npy", 1 << 16) if streamed else case.pool
    rows = pool.completions
    assert (len(rows), rows.d, rows.dtype_name, len(pool)) == (len(case.phi), 24, dtype_name, len(case.pool))
    assert rows.stored() is pool.stored()
    assert (rows.take([5, 0]) == case.phi[[5, 0]]).all()
    assert (rows.block(0, len(rows)) == case.phi).all()
    u = dn.margin(rows, case.reward, backend=backend)
    of_rows = dn.margin(dn.Pool(case.stored), case.reward, backend=backend)
    assert (u == of_rows).all() if backend == "cpu" else np.allclose(u, of_rows, rtol=1e-13, atol=1e-13)
    h = dn.leverage(rows, np.eye(24), backend=backend)
    assert h == pytest.approx((case.phi**2).sum(axis=1), rel=1e-12)
    with pytest.raises(ValueError, match="holds differences"):
        _ = rows.completions


# ------------------------------------------------------------------------------------- leverages of rows


@storage
@pytest.mark.parametrize("d", [1, 7, 16, 33])
@pytest.mark.parametrize("streamed", [False, True])
def test_leverage_with_a_reference(tmp_path, backend, d, dtype_name, streamed):
    case = Case(COUNTS["ragged"], d, dtype_name, seed=d)
    matrix = t.make_problem("power_law", 10, d, seed=1).matrix
    pool = case.streamed(tmp_path / "x.npy", 64 * d + (1 << 12)) if streamed else case.pool
    rows, some = pool.completions, np.array([3, 0, 3, 40])
    expected = t.oracle_leverage(case.phi.astype(np.longdouble) - case.reward, matrix).astype(float)
    close = {"rel": t.tolerance(d, np.linalg.cond(matrix)), "abs": 0.0}
    options = {"reference": case.reward, "backend": backend}
    assert dn.leverage(rows, matrix, **options) == pytest.approx(expected, **close)
    assert dn.leverage(rows, matrix, some, **options) == pytest.approx(expected[some], **close)
    assert dn.InformationMatrix(matrix).leverage(rows, **options) == pytest.approx(expected, **close)
    single = dn.leverage(rows, matrix, precision="single", **options)
    assert single == pytest.approx(expected, rel=1e-4 * np.sqrt(np.linalg.cond(matrix)))
    assert (dn.leverage(rows, matrix, reference=np.zeros(d), backend=backend) == pytest.approx(
        dn.leverage(rows, matrix, backend=backend), **close
    ))  # fmt: skip


@pytest.mark.parametrize("precision", ["double", "single"])
def test_a_reference_far_away_costs_no_digits(backend, precision):
    """Completions that agree with the reference in their leading digits: what is left is what counts."""
    rng = np.random.default_rng(0)
    nu = 1e8 * rng.standard_normal(20)
    phi = nu + rng.standard_normal((50, 20))
    exact = t.oracle_leverage(phi.astype(np.longdouble) - nu, np.eye(20)).astype(float)
    h = dn.leverage(phi, np.eye(20), reference=nu, precision=precision, backend=backend)
    assert h == pytest.approx(exact, rel=1e-13 if precision == "double" else 1e-5)
    assert dn.leverage(nu[None], np.eye(20), reference=nu, backend=backend).tolist() == [0.0]


def test_leverage_with_a_reference_has_the_same_bits_for_any_number_of_threads(backend):
    case = Case(COUNTS["many"], 33, "float32")
    one, *more = (
        dn.leverage(case.pool.completions, np.eye(33), reference=case.reward, backend=backend, threads=k)
        for k in (1, 2, 5)
    )
    assert all(one.tobytes() == h.tobytes() for h in more)


# ---------------------------------------------------------------------------------------------- long calls

LONG = """
    import signal, sys, threading, time
    import numpy as np, dal_native as dn

    rows = np.ones((1 << 21, 16), np.float32)
    pool = dn.Pool.from_completions(rows, {offsets})
    reward = np.ones(16)

    def calls():
        while True:
            dn.{operation}

    threading.Timer(0.3, lambda: signal.raise_signal(signal.SIGINT)).start()
    start = time.perf_counter()
    try:
        calls()
    except KeyboardInterrupt:
        assert time.perf_counter() - start < 20
    row, best, mean = dn.best_completions(pool, reward)
    print(best.max())
"""


@pytest.mark.parametrize("offsets", ["np.arange(0, (1 << 21) + 1, 8)", "[0, 1 << 21]"])
@pytest.mark.parametrize(
    "operation", ["best_completions(pool, reward)", "softmax_completions(pool, reward, 1.0)"]
)
def test_ctrl_c(run_python, offsets, operation):
    assert run_python(LONG.format(offsets=offsets, operation=operation)) == "16.0\n"


def share_of_the_longest_wait(call):
    """How long another Python thread has to wait at most while one call runs, as a share of the call."""
    done, took = threading.Event(), []

    def work():
        start = time.perf_counter()
        call()
        took.append(time.perf_counter() - start)
        done.set()

    thread = threading.Thread(target=work)
    thread.start()
    longest, last = 0.0, time.perf_counter()
    while not done.is_set():
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
        time.sleep(0)
    thread.join()
    return longest / took[0]


def test_the_gil_is_released():
    """A call that held it would keep the other thread waiting for all of its time, every time."""
    pool = dn.Pool.from_completions(np.ones((1 << 20, 16), np.float32), [0, 1 << 20])
    for call in (
        lambda: dn.best_completions(pool, np.ones(16), threads=1),
        lambda: dn.softmax_completions(pool, np.ones(16), 1.0, threads=1),
    ):
        assert min(share_of_the_longest_wait(call) for _ in range(5)) < 0.5
