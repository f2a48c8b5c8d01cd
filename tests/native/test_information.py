"""The information matrix under rank-one updates, and the Cython factor routines beneath it."""

import importlib.util
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import scipy.linalg

import dal_native as dn
from dal_native import _linalg
from dal_native import testing as t

SIZES_D = (1, 2, 3, 7, 8, 9, 16, 33, 65)


def spd(d, seed=0, power=0.0):
    """A symmetric matrix with eigenvalues from 1 down to 10^-power."""
    q = np.linalg.qr(np.random.default_rng(seed).standard_normal((d, d)))[0]
    a = (q * 10.0 ** np.linspace(0, -power, d)) @ q.T
    return (a + a.T) / 2


@pytest.mark.parametrize("d", SIZES_D)
@pytest.mark.parametrize("power", [0, 4, 8])
def test_cholesky(d, power):
    a = spd(d, d, power)
    before = a.copy()
    factor = _linalg.cholesky(a)
    assert (a == before).all()
    assert (np.triu(factor, 1) == 0).all()
    assert np.abs(factor @ factor.T - a).max() <= t.tolerance(d) * np.abs(a).max()
    assert factor == pytest.approx(
        scipy.linalg.cholesky(a, lower=True), rel=t.tolerance(d, 10.0**power), abs=1e-15
    )
    assert _linalg.log_det(factor) == pytest.approx(
        float(t.oracle_log_det(a)), rel=t.tolerance(d, 10.0**power)
    )


@pytest.mark.parametrize("d", SIZES_D)
def test_solve_and_inverse(d):
    a = spd(d, d, 2)
    factor = _linalg.cholesky(a)
    inverse = _linalg.triangular_inverse(factor)
    assert (np.triu(inverse, 1) == 0).all()
    assert inverse @ factor == pytest.approx(np.eye(d), abs=t.tolerance(d, 100))
    b = np.random.default_rng(d).standard_normal((5, d))
    before = b.copy()
    tight = {"rel": 1e-9, "abs": 1e-11}
    assert _linalg.solve(factor, b) == pytest.approx(np.linalg.solve(a, b.T).T, **tight)
    assert _linalg.solve_lower(factor, b) == pytest.approx(b @ inverse.T, **tight)
    assert _linalg.solve_lower_transposed(factor, b) == pytest.approx(b @ inverse, **tight)
    assert _linalg.solve(factor, b[0]).shape == (1, d)
    assert _linalg.solve(factor, np.zeros((0, d))).shape == (0, d)
    assert (b == before).all()


@pytest.mark.parametrize("d", SIZES_D)
def test_rank_one_update_of_the_factor(d):
    rng = np.random.default_rng(d)
    a = spd(d, d, 3)
    factor = _linalg.cholesky(a)
    for scale in (1.0, 0.0, 1e-9, 1e6):
        x = scale * rng.standard_normal(d)
        a = a + np.outer(x, x)
        _linalg.update(factor, x)
        assert (np.diag(factor) > 0).all()
        assert (np.triu(factor, 1) == 0).all()
        assert np.abs(factor @ factor.T - a).max() <= t.tolerance(d) * np.abs(a).max()


def test_status_is_raised_as_linalgerror():
    with pytest.raises(np.linalg.LinAlgError, match=r"not positive definite \(leading minor of order 2\)"):
        _linalg.cholesky(np.array([[1.0, 2.0], [2.0, 1.0]]))
    with pytest.raises(np.linalg.LinAlgError, match="not positive definite"):
        _linalg.cholesky(np.full((2, 2), np.nan))
    with pytest.raises(np.linalg.LinAlgError, match="diagonal is zero in row 1"):
        _linalg.triangular_inverse(np.diag([1.0, 0.0]))
    with pytest.raises(np.linalg.LinAlgError, match="updated information matrix is not positive definite"):
        _linalg.update(np.eye(2), np.array([np.inf, 1.0]))


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError, match=r"factor has shape \(2, 3\); expected a square of side 2"):
        _linalg.cholesky(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="right-hand sides have 3 columns; expected 2"):
        _linalg.solve(np.eye(2), np.zeros((1, 3)))
    with pytest.raises(ValueError, match="expected a square of side 3"):
        _linalg.update(np.eye(2), np.zeros(3))
    with pytest.raises(ValueError, match="not a square"):
        _linalg.log_det(np.zeros((0, 0)))


def test_other_cython_modules_can_cimport_the_routines(tmp_path):
    """The .pxd ships with the package, and what it declares is really exported."""
    pytest.importorskip("Cython")
    (tmp_path / "peer.pyx").write_text(
        "from dal_native._linalg cimport lower_log_det\n"
        "def log_det(double[:, ::1] factor):\n"
        "    return lower_log_det(&factor[0, 0], <int>factor.shape[0])\n"
    )
    script = """
        from Cython.Build import cythonize
        from setuptools import Extension, setup
        setup(script_args=["-q", "build_ext", "--inplace"], name="peer", packages=[],
              ext_modules=cythonize([Extension("peer", ["peer.pyx"])], language_level=3, quiet=True))
    """
    build = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], cwd=tmp_path, capture_output=True, text=True
    )
    assert build.returncode == 0, build.stderr
    spec = importlib.util.spec_from_file_location("peer", next(tmp_path.glob("peer.*so")))
    peer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(peer)
    assert peer.log_det(np.diag([1.0, np.e])) == pytest.approx(2.0)


# ------------------------------------------------------------------------------------ InformationMatrix


@pytest.mark.parametrize("d", SIZES_D)
def test_updates_follow_the_definition(d, backend):
    rng = np.random.default_rng(d)
    M = dn.InformationMatrix(np.eye(d))
    expected = np.eye(d)
    for k in range(20):
        x, w = rng.standard_normal(d), rng.uniform(0, 0.25) if k else 0.0
        M.add(x, w)
        expected = expected + w * np.outer(x, x)
    condition = np.linalg.cond(expected)
    assert pytest.approx(expected, rel=1e-14, abs=1e-14) == M.matrix
    assert M.factor @ M.factor.T == pytest.approx(expected, rel=1e-13, abs=1e-13)
    assert M.inverse @ expected == pytest.approx(np.eye(d), abs=4 * t.tolerance(d, condition))
    assert M.log_det == pytest.approx(float(t.oracle_log_det(expected)), rel=1e-12, abs=1e-13)
    pool = rng.standard_normal((10, d))
    assert M.leverage(pool, backend=backend) == pytest.approx(
        t.oracle_leverage(pool, expected).astype(float), rel=t.tolerance(d, condition)
    )
    b = rng.standard_normal((3, d))
    assert M.solve(b) == pytest.approx(np.linalg.solve(expected, b.T).T, rel=1e-9, abs=1e-12)
    assert (M.solve(b[0]) == M.solve(b)[0]).all()
    assert M.refactorisations == 0


@pytest.mark.parametrize("power", [0.0, 6.0])
def test_long_chains_of_updates_do_not_drift(power):
    """2,000 updates: factor and inverse stay those of a fresh factorisation, by refactorising every 256."""
    d = 24
    rng = np.random.default_rng(1)
    M = dn.InformationMatrix(spd(d, 2, power))
    worst = 0.0
    for _ in range(2000):
        M.add(rng.standard_normal(d) * 10.0 ** rng.uniform(-3, 1), rng.uniform(0, 0.25))
        worst = max(worst, M.drift)
    assert worst <= 1e-9
    assert M.refactorisations >= 2000 // 256
    fresh = dn.InformationMatrix(M.matrix)
    assert M.log_det == pytest.approx(fresh.log_det, rel=1e-12)
    assert M.factor == pytest.approx(fresh.factor, rel=1e-8, abs=1e-10 * np.abs(fresh.factor).max())
    assert M.inverse == pytest.approx(fresh.inverse, rel=1e-7, abs=1e-9 * np.abs(fresh.inverse).max())


def test_drift_beyond_tolerance_makes_a_new_factorisation():
    """Sherman-Morrison loses digits on a nearly singular matrix; the drift is seen and repaired at once."""
    M = dn.InformationMatrix(np.diag([1.0, 1e-12]) + 1e-13)
    for _ in range(5):
        M.add([1.0, 1.0], 1e3)
    assert M.refactorisations > 0
    x = np.array([[1.0, 1.0]])
    expected = t.oracle_leverage(x, M.matrix).astype(float)
    assert M.leverage(x) == pytest.approx(expected, rel=1e-3)


def test_leverages_of_a_chain_of_sherman_morrison_updates(backend):
    """1,000 updates of the leverages stay within 1e-9 of the leverages of a fresh factor."""
    rng = np.random.default_rng(4)
    x = rng.standard_normal((200, 12))
    M = dn.InformationMatrix(np.eye(12))
    h = M.leverage(x, backend=backend)
    for k in range(1000):
        i, w = k % 200, 0.25
        direction = M.solve(x[i])
        h = dn.update_leverage(h, x, direction, w / (1 + w * x[i] @ direction), backend=backend)
        M.add(x[i], w)
    assert h == pytest.approx(t.oracle_leverage(x, M.matrix).astype(float), abs=1e-9)


def test_refused_additions_leave_the_matrix_alone():
    M = dn.InformationMatrix(np.eye(2))
    for difference, weight, error, words in [
        ([1.0], 1.0, ValueError, "difference has length 1; expected 2"),
        ([1.0, np.nan], 1.0, ValueError, "difference is not finite at 1"),
        ([1.0, 1.0], -1.0, ValueError, "weight is -1; expected a number of at least 0"),
        ([1.0, 1.0], np.inf, ValueError, "weight is inf; expected a finite number"),
        ([1e200, 1.0], 1.0, np.linalg.LinAlgError, "the updated information matrix is not finite"),
    ]:
        with pytest.raises(error, match=words):
            M.add(difference, weight)
    assert (M.matrix == np.eye(2)).all()
    assert (M.factor == np.eye(2)).all()
    assert (M.inverse == np.eye(2)).all()
    assert M.log_det == 0.0


def test_refused_matrices():
    for values, error, words in [
        (np.ones((2, 3)), ValueError, r"matrix has shape \(2, 3\); expected square"),
        (np.zeros((0, 0)), ValueError, "matrix is empty"),
        (np.ones(3), ValueError, "matrix has 1 dimensions"),
        ([[1.0, 2.0], [0.0, 1.0]], ValueError, "matrix is not symmetric"),
        ([[1.0, np.inf], [np.inf, 1.0]], ValueError, "matrix is not finite"),
        (-np.eye(2), np.linalg.LinAlgError, "not positive definite"),
        (np.zeros((2, 2)), np.linalg.LinAlgError, "not positive definite"),
    ]:
        with pytest.raises(error, match=words):
            dn.InformationMatrix(values)
    M = dn.InformationMatrix(np.eye(2))
    with pytest.raises(ValueError, match="right has 3 columns; expected 2"):
        M.solve(np.zeros(3))
    with pytest.raises(ValueError, match=r"M has shape \(2, 2\); expected \(3, 3\)"):
        M.leverage(np.eye(3))


def test_views_are_for_reading_and_the_argument_is_copied():
    a = np.eye(2)
    M = dn.InformationMatrix(a)
    a[0, 0] = 5.0
    assert M.matrix[0, 0] == 1.0
    for view in (M.matrix, M.factor, M.inverse):
        with pytest.raises(ValueError, match="read-only"):
            view[0, 0] = 2.0
    assert repr(M).startswith("InformationMatrix(d=2, log_det=0")


def test_float32_matrices_with_rounding_asymmetry_are_accepted():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((100, 5)).astype(np.float32)
    a = np.eye(5, dtype=np.float32) + x.T @ (x * np.float32(0.3))
    a[0, 1] *= np.float32(1 + 2e-7)
    M = dn.InformationMatrix(a)
    assert (M.matrix == M.matrix.T).all()


def test_the_inverse_factor_is_kept_as_long_as_the_factor_and_no_longer():
    cpu = pytest.importorskip("dal_native._backends.cpu")
    before = set(cpu._inverses)
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((20, 5))
    M = dn.InformationMatrix(np.eye(5) + rows.T @ rows)
    first = M.leverage(rows, backend="cpu")
    assert len(cpu._inverses) == len(before) + 1
    assert np.array_equal(dn.leverage(rows, M, backend="cpu"), first)
    assert np.array_equal(dn.leverage(rows, M.matrix, backend="cpu"), first)  # a factor of its own, let go
    assert len(cpu._inverses) == len(before) + 1
    M.add(rows[0], 2.0)
    assert M.factor is M.factor and set(cpu._inverses) == before
    expected = np.sum(rows.T * np.linalg.solve(M.matrix, rows.T), axis=0)
    assert np.allclose(M.leverage(rows, backend="cpu"), expected, rtol=1e-12)
    assert (M.leverage(rows[:1], backend="cpu") < first[:1]).all()
    assert len(cpu._inverses) == len(before) + 1
    del M
    assert set(cpu._inverses) == before
