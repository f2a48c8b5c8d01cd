"""Conformance: every operation, backend, storage type and awkward size, against the definitions."""

from functools import cache

import numpy as np
import pytest

import dal_native as dn
from dal_native import testing as t

SIZES_N = (0, 1, 2, 17, 64, 65, 130)
SIZES_D = (1, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64, 65)
KINDS = {
    1: "isotropic",
    2: "heavy_tails",
    17: "power_law",
    64: "duplicates",
    65: "clustered",
    130: "power_law",
}

shapes = pytest.mark.parametrize("d", SIZES_D)
storage = pytest.mark.parametrize("dtype_name", t.DTYPES)


@cache
def case(n, d, dtype_name):
    """A problem, with the condition of its matrix."""
    p = t.make_problem(KINDS.get(n, "isotropic"), n, d, dtype_name=dtype_name, seed=1000 * n + d)
    return p, float(np.linalg.cond(p.matrix))


@cache
def true_leverage(n, d, dtype_name):
    p, _ = case(n, d, dtype_name)
    return t.oracle_leverage(p.rows(), p.matrix)


def close(got, expected, relative, scale=None):
    """Every element within ``relative`` of its expected size, or of the size of the terms that made it."""
    scale = np.abs(expected) if scale is None else scale
    assert got.shape == expected.shape
    assert (np.abs(got - expected) <= relative * scale + 1e-300).all()


@storage
@shapes
def test_margin(backend, dtype_name, d):
    for n in SIZES_N:
        p, _ = case(n, d, dtype_name)
        x = p.rows()
        u = dn.margin(p.pool(), p.reward, backend=backend)
        close(u, t.oracle_margin(x, p.reward), t.tolerance(d), np.abs(x) @ np.abs(p.reward))


@storage
@shapes
def test_leverage(backend, dtype_name, d):
    for n in SIZES_N:
        p, condition = case(n, d, dtype_name)
        expected = true_leverage(n, d, dtype_name)
        close(dn.leverage(p.pool(), p.matrix, backend=backend), expected, t.tolerance(d, condition))
        if n:
            some = np.array([n - 1, 0, n // 2, 0])
            h = dn.leverage(p.pool(), p.matrix, conversations=some, backend=backend)
            close(h, expected[some], t.tolerance(d, condition))
            h = dn.leverage(p.pool(), p.matrix, some, precision="single", backend=backend)
            close(h, expected[some], 1e-6 * condition)
        h = dn.leverage(p.pool(), p.matrix, precision="single", backend=backend)
        close(h, expected, 1e-6 * condition)


@storage
@shapes
def test_information_gain(backend, dtype_name, d):
    for n in SIZES_N:
        p, condition = case(n, d, dtype_name)
        index = np.unique([0, n // 3, n - 1]) if n else np.zeros(0, np.int64)
        got = dn.information_gain(p.pool(), p.reward, p.rationality, p.matrix, index, backend=backend)
        x, c = p.rows()[index], p.category[index]
        expected = t.oracle_gain(x, c, p.reward, p.rationality, p.matrix)
        # the relative error of a weight is t = beta u times that of u
        bend = 1 + np.abs(p.rationality).max() * float(np.max(np.abs(x) @ np.abs(p.reward), initial=0.0))
        close(got, expected, t.tolerance(d, condition * bend), np.maximum(np.abs(expected), 1e-3))


@storage
@shapes
def test_information_matrix(backend, dtype_name, d):
    for n in SIZES_N:
        p, _ = case(n, d, dtype_name)
        x, w = p.rows(), np.random.default_rng(n).uniform(0, 1, n)
        got = dn.information_matrix(p.pool(), w, ridge=0.5, backend=backend)
        size = (np.abs(x) * w[:, None]).T @ np.abs(x) + 0.5
        close(got, t.oracle_information_matrix(x, w, 0.5), t.tolerance(n + 8), size)
        assert (got == got.T).all()
        single = dn.information_matrix(p.pool(), w, ridge=0.5, precision="single", backend=backend)
        close(single, got, 1e-7 * (n + 8), size)
        assert (single == single.T).all()


def test_information_matrix_of_signed_weights(backend):
    p, _ = case(130, 33, "float32")
    x, w = p.rows(), np.random.default_rng(0).normal(0, 1, 130)
    got = dn.information_matrix(p.pool(), w, ridge=0.0, signed=True, backend=backend)
    close(
        got,
        t.oracle_information_matrix(x, w, 0.0),
        t.tolerance(130),
        (np.abs(x) * np.abs(w)[:, None]).T @ np.abs(x),
    )
    assert np.linalg.eigvalsh(got)[0] < 0


@storage
@pytest.mark.parametrize("n", [255, 256, 257, 1023, 1024, 1025, 2500])
def test_information_matrix_of_many_labels(backend, dtype_name, n):
    """Around the ends of blocks and of stretches."""
    p = t.make_problem("isotropic", n, 19, dtype_name=dtype_name, seed=n)
    x, w = p.rows(), np.random.default_rng(n).uniform(0, 1, n)
    expected = t.oracle_information_matrix(x, w, 0.0)
    size = (np.abs(x) * w[:, None]).T @ np.abs(x)
    for precision, allowed in (("double", t.tolerance(n)), ("single", 1e-6)):
        one, *more = (
            dn.information_matrix(p.pool(), w, 0.0, precision=precision, backend=backend, threads=k)
            for k in (1, 2, 7)
        )
        close(one, expected, allowed, size)
        assert all(m.tobytes() == one.tobytes() for m in more)


@storage
@shapes
def test_weighted_sum(backend, dtype_name, d):
    for n in SIZES_N:
        p, _ = case(n, d, dtype_name)
        x, w = p.rows(), np.random.default_rng(n).normal(0, 1, n)
        got = dn.weighted_sum(p.pool(), w, backend=backend)
        expected = t.oracle_weighted_sum_by_cell(x, w, np.zeros(n, int), 1)[0]
        close(got, expected, t.tolerance(n), np.abs(w) @ np.abs(x))


@storage
@shapes
def test_hessian_vector(backend, dtype_name, d):
    """The matrix, formed, times the vector."""
    for n in SIZES_N:
        p, _ = case(n, d, dtype_name)
        x, w = p.rows(), np.random.default_rng(n).normal(0, 1, n)
        got = dn.hessian_vector(p.pool(), w, p.reward, backend=backend)
        expected = t.oracle_information_matrix(x, w, 0.0) @ p.reward.astype(np.longdouble)
        close(got, expected, t.tolerance(n + d), (np.abs(w) * (np.abs(x) @ np.abs(p.reward))) @ np.abs(x))


@storage
@shapes
@pytest.mark.parametrize("cells", [1, 3, 40])
def test_weighted_sum_by_cell(backend, dtype_name, d, cells):
    for n in SIZES_N:
        p, _ = case(n, d, dtype_name)
        x, rng = p.rows(), np.random.default_rng(n)
        for row in (None, rng.integers(0, n, 2 * n) if n else np.zeros(0, int)):
            entries = x if row is None else x[row]
            w, cell = rng.normal(0, 1, len(entries)), rng.integers(0, cells, len(entries))
            got = dn.weighted_sum_by_cell(p.pool(), w, cell, cells, row, backend=backend)
            expected = t.oracle_weighted_sum_by_cell(entries, w, cell, cells)
            size = t.oracle_weighted_sum_by_cell(np.abs(entries), np.abs(w), cell, cells).astype(float)
            close(got, expected, t.tolerance(n), size)


@storage
@shapes
def test_update_leverage(backend, dtype_name, d):
    """After asking one pair, Sherman-Morrison gives the leverages of the new matrix."""
    for n in SIZES_N[1:]:
        p, condition = case(n, d, dtype_name)
        x, w = p.rows()[n // 2], 0.2
        direction = np.linalg.solve(p.matrix, x)
        h = dn.leverage(p.pool(), p.matrix, backend=backend)
        before = h.copy()
        got = dn.update_leverage(h, p.pool(), direction, w / (1 + w * x @ direction), backend=backend)
        expected = t.oracle_leverage(p.rows(), p.matrix + w * np.outer(x, x))
        close(got, expected, 4 * t.tolerance(d, condition), before)
        assert (h == before).all()
        assert (got <= before).all()


@storage
@shapes
@pytest.mark.parametrize("n", SIZES_N)
def test_bradley_terry_loss(backend, dtype_name, d, n):
    p, _ = case(n, d, dtype_name)
    rng = np.random.default_rng(n + d)
    x = p.rows()
    y, b, v = rng.choice([0.0, 0.3, 0.5, 1.0], n), rng.normal(0, 1, n), rng.uniform(0, 2, n)
    args = (y, p.reward, b, v)
    loss, gradient, b_gradient = dn.bradley_terry_loss(p.pool(), *args, backend=backend)
    assert loss == pytest.approx(float(t.oracle_loss(x, *args)), rel=t.tolerance(d + n), abs=1e-300)
    expected = t.finite_difference(lambda theta: t.oracle_loss(x, y, theta, b, v), p.reward)
    size = np.abs(x * (v * b)[:, None]).sum(axis=0) + 1e-300
    assert (np.abs(gradient - expected) <= 1e-9 * size * (1 + np.abs(x).max(initial=0)) ** 4).all()
    few = slice(0, 3)  # finite differences cost a loss each
    expected = t.finite_difference(lambda beta: t.oracle_loss(x[few], y[few], p.reward, beta, v[few]), b[few])
    steep = (1 + np.abs(x[few] @ p.reward)) ** 5
    assert (np.abs(b_gradient[few] - expected) <= 1e-9 * v[few] * steep).all()


@pytest.mark.parametrize("n", SIZES_N)
@pytest.mark.parametrize("m", [1, 2, 5, 33, 100])
def test_best_teacher(backend, n, m):
    rng = np.random.default_rng(n + 1000 * m)
    margin = rng.standard_normal(n) * 10.0 ** rng.integers(-3, 4, n)
    margin[: n // 8] = 0.0
    margin = np.clip(margin, -20, 20)  # beyond, weights underflow: see the next test
    category = rng.integers(0, 3, n)
    rationality = np.minimum(rng.lognormal(0, 1, (m, 3)), 30) * rng.choice([-1, 1], (m, 3))
    rationality[rng.random((m, 3)) < 0.1] = 0.0
    rationality[m // 2] = rationality[0]  # equal teachers: the first
    for available in (None, rng.random((m, 3)) < 0.5, np.zeros((m, 3), bool)):
        teacher, weight = dn.best_teacher(margin, category, rationality, available, backend=backend)
        expected_teacher, expected_weight = t.oracle_best_teacher(margin, category, rationality, available)
        assert teacher.tolist() == expected_teacher
        assert weight == pytest.approx(expected_weight, rel=1e-11, abs=1e-300)


def test_teachers_whose_weights_all_underflow_are_tied(backend):
    teacher, weight = dn.best_teacher(
        [2000.0, 1e300], None, [1.0, 2.0, 3.0], [False, True, True], backend=backend
    )
    assert teacher.tolist() == [1, 1]
    assert weight.tolist() == [0.0, 0.0]


def test_probability_and_weight_at_extremes(backend):
    u = np.array([0.0, -0.0, 5e-324, 1e-8, 1.0, 2.39936, 36.0, 36.7, 700.0, 745.0, 746.0, 1e6, 1e300])
    u = np.concatenate([u, -u])
    for beta in (0.0, 1e-3, 1.0, -1.0, 30.0):
        p = dn.choice_probability(u, beta, backend=backend)
        w = dn.choice_weight(u, beta, backend=backend)
        assert p == pytest.approx(t.oracle_probability(u, beta).astype(float), rel=1e-13, abs=1e-307)
        # e = exp(-t) is as good as t: half an ulp of t = 700 is 1e-13 of e
        assert w == pytest.approx(t.oracle_weight(u, beta).astype(float), rel=3e-13, abs=1e-307)
        assert (w <= beta**2 / 4).all()
        assert ((p >= 0) & (p <= 1)).all()


@pytest.mark.parametrize("operation", [dn.choice_probability, dn.choice_weight])
def test_broadcasting(backend, operation):
    u, beta = np.linspace(-2, 2, 65)[:, None], np.array([0.5, 1.0, 3.0])
    got = operation(u, beta, backend=backend)
    assert got.shape == (65, 3)
    assert (got == operation(np.repeat(u, 3, 1), np.tile(beta, (65, 1)), backend=backend)).all()
    assert operation(1.0, 2.0, backend=backend).shape == ()
    assert operation(np.zeros((0, 3)), beta, backend=backend).shape == (0, 3)


def everything(p, backend, threads):
    """Every operation on one problem: bytes."""
    pool = p.pool()
    n = len(pool)
    rng = np.random.default_rng(5)
    options = {"backend": backend, "threads": threads}
    u = dn.margin(pool, p.reward, **options)
    h = dn.leverage(pool, p.matrix, **options)
    y, b = rng.random(n), rng.random(n)
    loss, gradient, b_gradient = dn.bradley_terry_loss(pool, y, p.reward, b, **options)
    teacher, weight = dn.best_teacher(u, p.category, p.rationality, **options)
    batch = dn.select_batch(pool, p.reward, p.rationality, p.matrix, 12, **options)
    results = {
        "margin": u,
        "leverage": h,
        "leverage in single precision": dn.leverage(pool, p.matrix, precision="single", **options),
        "some leverages": dn.leverage(pool, p.matrix, rng.integers(0, n, 100), **options),
        "update": dn.update_leverage(h, pool, p.reward, 0.01, **options),
        "information gain": dn.information_gain(pool, p.reward, p.rationality, p.matrix, **options),
        "information matrix": dn.information_matrix(pool, weight, **options),
        "weighted sum": dn.weighted_sum(pool, weight - 0.1, **options),
        "Hessian times vector": dn.hessian_vector(pool, weight - 0.1, p.reward, **options),
        "weighted sum by cell": dn.weighted_sum_by_cell(pool, weight - 0.1, p.category, 3, **options),
        "weighted sum of rows": dn.weighted_sum_by_cell(
            pool, y, p.category, 3, rng.integers(0, n, n), **options
        ),
        "loss": np.array(loss),
        "gradient": gradient,
        "rationality gradient": b_gradient,
        "probability": dn.choice_probability(u, 1.3, **options),
        "weight": dn.choice_weight(u, 1.3, **options),
        "teacher": teacher,
        "best weight": weight,
        "conversations": batch.conversation,
        "teachers": batch.teacher,
        "gain": batch.gain,
        "certificate": np.array(list(batch.certificate.values())),
    }
    return {name: np.asarray(a).tobytes() for name, a in results.items()}


@storage
@pytest.mark.parametrize(("n", "d"), [(130, 7), (5000, 33)])
def test_same_bits_for_any_number_of_threads(backend, dtype_name, n, d):
    p = t.make_problem("power_law", n, d, dtype_name=dtype_name)
    one = everything(p, backend, 1)
    for threads in (2, 7):
        many = everything(p, backend, threads)
        assert [name for name in one if one[name] != many[name]] == []


@pytest.mark.parametrize("dtype_name", ["float64", "float16"])
def test_backends_agree_on_a_larger_problem(dtype_name):
    p = t.make_problem("power_law", 20000, 40, m=23, labels=300, dtype_name=dtype_name)
    pool = p.pool()
    condition = np.linalg.cond(p.matrix)
    h = [dn.leverage(pool, p.matrix, backend=b) for b in ("reference", "cpu")]
    assert h[1] == pytest.approx(h[0], rel=t.tolerance(40, condition))
    batch = [
        dn.select_batch(pool, p.reward, p.rationality, p.matrix, 25, backend=b) for b in ("reference", "cpu")
    ]
    assert (batch[0].conversation == batch[1].conversation).all()
    assert (batch[0].teacher == batch[1].teacher).all()
    assert batch[1].gain == pytest.approx(batch[0].gain, rel=1e-11)
    assert batch[1].certificate == pytest.approx(batch[0].certificate, rel=1e-7)


@pytest.mark.parametrize("offset", range(0, 64, 4))
def test_alignment_of_the_rows_changes_nothing(backend, offset):
    """Rows that start anywhere within a cache line give the same picks and the same gains."""
    p = t.make_problem("isotropic", 65, 9, dtype_name="float32")
    buffer = np.zeros(p.differences.nbytes + 128, np.uint8)
    start = -buffer.ctypes.data % 64 + offset
    moved = buffer[start : start + p.differences.nbytes].view(np.float32).reshape(65, 9)
    moved[:] = p.differences
    arguments = (p.reward, p.rationality, p.matrix, 9)
    here = dn.select_batch(p.pool(), *arguments, backend=backend)
    there = dn.select_batch(dn.Pool(moved, p.category), *arguments, backend=backend)
    assert here.conversation.tolist() == there.conversation.tolist()
    assert here.gain.tobytes() == there.gain.tobytes()


@pytest.mark.parametrize("power", [0, 2, 4, 8, 12])
def test_leverage_of_an_ill_conditioned_matrix(backend, power):
    """The error of a leverage grows with the condition of M, and not faster."""
    d = 12
    rng = np.random.default_rng(power)
    q = np.linalg.qr(rng.standard_normal((d, d)))[0]
    matrix = (q * 10.0 ** np.linspace(0, -power, d)) @ q.T
    matrix = (matrix + matrix.T) / 2
    x = rng.standard_normal((40, d))
    close(dn.leverage(x, matrix, backend=backend), t.oracle_leverage(x, matrix), t.tolerance(d, 10.0**power))


def test_a_singular_matrix_is_refused(backend):
    singular = np.ones((3, 3))
    with pytest.raises(np.linalg.LinAlgError, match="not positive definite"):
        dn.leverage(np.eye(3), singular, backend=backend)
    with pytest.raises(np.linalg.LinAlgError, match="not positive definite"):
        dn.select_batch(np.eye(3), np.zeros(3), [1.0], np.diag([1.0, 1.0, 0.0]), 1, backend=backend)
    with pytest.raises(np.linalg.LinAlgError, match="not positive definite"):
        dn.information_gain(np.eye(3), np.zeros(3), [1.0], -np.eye(3), backend=backend)
