"""Laws that hold for any problem, on problems that Hypothesis makes up."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import dal_native as dn
from dal_native import testing as t

BACKENDS = ("reference", "cpu")
backends = st.sampled_from(BACKENDS)
seeds = st.integers(0, 2**32 - 1)
numbers = st.floats(-10, 10, width=32)


def small_problem(seed, n=12, d=4, m=5):
    rng = np.random.default_rng(seed)
    kind = str(rng.choice(t.KINDS[:-1]))
    return t.make_problem(kind, n, int(rng.integers(1, d + 1)), m, 2, seed=seed)


def picks_of(batch):
    return list(zip(batch.conversation.tolist(), batch.teacher.tolist(), strict=True))


def select(p, size, backend, **more):
    return dn.select_batch(p.pool(), p.reward, p.rationality, p.matrix, size, backend=backend, **more)


@given(backends, seeds)
def test_gain_is_monotone_in_weight_times_leverage(backend, seed):
    p = small_problem(seed)
    h = dn.leverage(p.pool(), p.matrix, backend=backend)
    u = dn.margin(p.pool(), p.reward, backend=backend)
    w = dn.choice_weight(u[:, None], p.rationality.T[p.category], backend=backend)
    g = dn.information_gain(p.pool(), p.reward, p.rationality, p.matrix, backend=backend)
    order = np.argsort((w * h[:, None]).ravel())
    sorted_gain = g.ravel()[order]
    assert (np.diff(sorted_gain) >= -1e-9 * (1 + sorted_gain[1:])).all()
    assert g == pytest.approx(np.log1p(w * h[:, None]), rel=1e-9, abs=1e-12)


@given(backends, seeds, st.floats(0, 10))
def test_leverage_only_falls_and_the_determinant_lemma_holds(backend, seed, w):
    p = small_problem(seed)
    x = p.rows()[0]
    M = dn.InformationMatrix(p.matrix)
    before, log_det = M.leverage(p.pool(), backend=backend), M.log_det
    M.add(x, w)
    after = M.leverage(p.pool(), backend=backend)
    assert (after <= before * (1 + 1e-9) + 1e-12).all()
    assert M.log_det - log_det == pytest.approx(np.log1p(w * before[0]), rel=1e-8, abs=1e-11)
    assert after[0] == pytest.approx(before[0] / (1 + w * before[0]), rel=1e-8, abs=1e-11)


@given(backends, seeds)
def test_leverage_is_that_of_the_labelled_rows(backend, seed):
    """With M of the rows themselves the weighted leverages add up to at most d."""
    p = small_problem(seed)
    w = np.random.default_rng(seed).uniform(0, 1, len(p.category))
    M = dn.information_matrix(p.pool(), w, ridge=1e-3, backend=backend)
    h = dn.leverage(p.pool(), M, backend=backend)
    d = p.matrix.shape[0]
    assert np.sum(w * h) <= d * (1 + 1e-9)
    assert np.sum(w * h) == pytest.approx(d - 1e-3 * np.trace(np.linalg.inv(M)), rel=1e-6, abs=1e-6)


@given(
    backends,
    hnp.arrays(np.float64, st.integers(1, 8), elements=numbers),
    hnp.arrays(np.float64, st.tuples(st.integers(1, 6), st.just(2)), elements=numbers),
    seeds,
)
def test_best_teacher_is_the_brute_force_one(backend, margin, rationality, seed):
    """Ties, zeros, equal rationalities and absent teachers included."""
    rng = np.random.default_rng(seed)
    category = rng.integers(0, 2, len(margin))
    for available in (None, rng.random(rationality.shape) < 0.6):
        teacher, weight = dn.best_teacher(margin, category, rationality, available, backend=backend)
        expected_teacher, expected_weight = t.oracle_best_teacher(margin, category, rationality, available)
        assert teacher.tolist() == expected_teacher
        assert weight == pytest.approx(expected_weight, rel=1e-11, abs=1e-300)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_most_rational_teacher_is_not_always_the_best(backend):
    """The weight of a margin u peaks at beta = t* / |u|, t* tanh(t* / 2) = 2."""
    beta = np.linspace(0.01, 20, 4000)
    peak = 2.39936
    assert peak * np.tanh(peak / 2) == pytest.approx(2, abs=1e-5)
    for u in (0.3, 1.0, -5.0):
        teacher, _ = dn.best_teacher([u], None, beta, backend=backend)
        assert beta[teacher[0]] == pytest.approx(peak / abs(u), abs=0.01)


@given(backends, seeds, st.sampled_from([0.25, 0.5, 2.0, 8.0]))
def test_scale_of_reward_against_rationality_changes_no_pick(backend, seed, a):
    """(a theta, beta / a, M / a^2) is the same problem; powers of two are exact in floating point."""
    p = small_problem(seed)
    scaled = t.Problem(p.differences, p.category, p.rationality / a, a * p.reward, p.matrix / a**2)
    one, other = select(p, 6, backend), select(scaled, 6, backend)
    assert picks_of(one) == picks_of(other)
    assert other.gain == pytest.approx(one.gain, rel=1e-12)


@given(backends, seeds)
def test_permuting_the_rows_permutes_the_picks(backend, seed):
    p = t.make_problem("isotropic", 15, 3, 4, 2, seed=seed)  # no equal rows
    order = np.random.default_rng(seed).permutation(15)
    moved = t.Problem(p.differences[order], p.category[order], p.rationality, p.reward, p.matrix)
    one, other = select(p, 6, backend), select(moved, 6, backend)
    assert order[other.conversation].tolist() == one.conversation.tolist()
    assert other.teacher.tolist() == one.teacher.tolist()
    assert (other.gain == one.gain).all()


@given(backends, seeds)
def test_permuting_the_teachers_permutes_the_picks(backend, seed):
    p = t.make_problem("isotropic", 10, 3, 5, 2, seed=seed)
    order = np.random.default_rng(seed).permutation(5)
    moved = t.Problem(p.differences, p.category, p.rationality[order], p.reward, p.matrix)
    one, other = select(p, 6, backend), select(moved, 6, backend)
    assert other.conversation.tolist() == one.conversation.tolist()
    assert order[other.teacher].tolist() == one.teacher.tolist()


@given(backends, seeds)
def test_the_sign_of_a_difference_changes_nothing(backend, seed):
    """Swapping the two completions of conversations swaps no pick."""
    p = small_problem(seed)
    sign = np.random.default_rng(seed).choice([-1.0, 1.0], (len(p.category), 1))
    flipped = t.Problem(p.differences * sign, p.category, p.rationality, p.reward, p.matrix)
    one, other = select(p, 6, backend), select(flipped, 6, backend)
    assert picks_of(one) == picks_of(other)
    assert (one.gain == other.gain).all()


@given(backends, seeds, st.integers(1, 5))
def test_a_batch_is_the_beginning_of_a_longer_one(backend, seed, size):
    p = small_problem(seed)
    one, longer = select(p, size, backend), select(p, size + 3, backend)
    assert picks_of(longer)[:size] == picks_of(one)
    assert (longer.gain[: len(one)] == one.gain).all()


@given(backends, seeds)
def test_gains_fall_along_the_batch_and_add_up_to_the_log_det(backend, seed):
    p = small_problem(seed)
    batch = select(p, 8, backend)
    assert (np.diff(batch.gain) <= 1e-9 * batch.gain[:-1] + 1e-15).all()
    M = dn.InformationMatrix(p.matrix)
    before = M.log_det
    u = dn.margin(p.pool(), p.reward)
    for i, j in picks_of(batch):
        M.add(p.rows()[i], float(dn.choice_weight(u[i], p.rationality[j, p.category[i]])))
    assert batch.log_det_gain == pytest.approx(M.log_det - before, rel=1e-8, abs=1e-10)
    assert 0 < batch.d_efficiency <= 1


@given(backends, seeds)
def test_loss_is_convex_and_symmetric(backend, seed):
    """Swapping the completions and the answers leaves the loss; it is convex along any line in theta."""
    rng = np.random.default_rng(seed)
    x, y, b = rng.standard_normal((9, 3)), rng.random(9), rng.normal(0, 2, 9)
    a, c = rng.standard_normal(3), rng.standard_normal(3)

    def loss(x, y, theta):
        return dn.bradley_terry_loss(x, y, theta, b, backend=backend)[0]

    assert loss(-x, 1 - y, a) == pytest.approx(loss(x, y, a), rel=1e-12)
    assert loss(x, y, (a + c) / 2) <= (loss(x, y, a) + loss(x, y, c)) / 2 + 1e-12


@given(backends, st.floats(-800, 800), st.floats(-3, 3))
def test_probabilities_of_both_answers_add_up_to_one(backend, u, beta):
    p = dn.choice_probability([u, -u], beta, backend=backend)
    assert p.sum() == pytest.approx(1.0, rel=1e-15)
    w = dn.choice_weight(u, beta, backend=backend)
    assert w == pytest.approx(beta**2 * p[0] * p[1], rel=1e-12, abs=1e-300)
