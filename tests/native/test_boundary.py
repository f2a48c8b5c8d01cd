"""Bad input to the operations: one clear sentence each. (Those of pools and batches: beside their tests.)"""

import numpy as np
import pytest

import dal_native as dn

X = np.eye(3)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: dn.margin(X, [1.0, 2.0]), "reward has length 2; expected 3, one for each feature"),
        (lambda: dn.margin(X > 0, np.ones(3)), "differences has dtype bool"),
        (
            lambda: dn.margin(np.full((2, 3), np.nan), np.ones(3)),
            "differences holds NaN or infinity, first in row 0",
        ),
        (lambda: dn.margin(X, None), "reward has 0 dimensions"),
        (
            lambda: dn.margin(X, np.ones(3), backend="numba"),
            "backend is 'numba', which this version does not have",
        ),
        (
            lambda: dn.margin(X, np.ones(3), threads=-2),
            "threads is -2; expected a whole number of at least 1",
        ),
        (lambda: dn.margin(X, np.ones(3), threads=True), "threads is True"),
        (
            lambda: dn.choice_weight([0.0, 1.0], [1.0, 2.0, 3.0]),
            r"margin \(2,\) and rationality \(3,\) do not broadcast",
        ),
        (lambda: dn.choice_weight([np.nan], 1.0), r"margin is not finite at 0 \(nan\)"),
        (lambda: dn.choice_weight(1.0, np.inf), "rationality is not finite"),
        (lambda: dn.choice_weight(1.0, 1e200), r"rationality exceeds 1e\+100 in size"),
        (lambda: dn.choice_probability("a", 1.0), "margin has dtype <U1; expected real numbers"),
        (lambda: dn.choice_probability([True], 1.0), "margin has dtype bool; expected real numbers"),
        (lambda: dn.choice_probability([1j], 1.0), "margin has dtype complex128"),
        (lambda: dn.choice_probability([object()], 1.0), "margin has dtype object"),
        (lambda: dn.best_teacher([[0.0]], None, [1.0]), "margin has 2 dimensions"),
        (lambda: dn.best_teacher([0.0, 1.0], [0], [1.0]), "category has length 1; expected 2"),
        (lambda: dn.best_teacher([0.0], [-1], [1.0]), "category holds -1"),
        (lambda: dn.best_teacher([0.0], [1], [[1.0]]), r"rationality has 1 categories \(shape \(1, 1\)\)"),
        (lambda: dn.best_teacher([0.0], None, []), "rationality has no teachers"),
        (lambda: dn.best_teacher([0.0], None, [1.0], [[True, True]]), r"available has shape \(1, 2\)"),
        (lambda: dn.best_teacher([np.inf], None, [1.0]), r"margin is not finite at 0 \(inf\)"),
        (lambda: dn.leverage(X, np.eye(2)), r"M has shape \(2, 2\); expected \(3, 3\)"),
        (lambda: dn.leverage(X, np.ones(3)), "M has 1 dimensions"),
        (
            lambda: dn.leverage(X, np.triu(np.ones((3, 3)))),
            "M is not symmetric; expected an information matrix",
        ),
        (lambda: dn.leverage(X, np.full((3, 3), np.inf)), "M is not finite"),
        (lambda: dn.leverage(X, X, [3]), "conversations holds 3; expected conversations between 0 and 2"),
        (lambda: dn.leverage(X, X, [-1]), "conversations holds -1"),
        (lambda: dn.leverage(X, X, [0.5]), "conversations has dtype float64; expected integers"),
        (lambda: dn.leverage(X, X, [True, False, True]), "conversations has dtype bool; expected integers"),
        (lambda: dn.leverage(X, X, 1), "conversations has 0 dimensions"),
        (lambda: dn.leverage(X, X, np.array([2**63], np.uint64)), f"conversations holds {2**63}"),
        (lambda: dn.information_gain(X, np.ones(2), [1.0], X), "reward has length 2"),
        (lambda: dn.information_gain(X, np.ones(3), [[]], X), "rationality has 0 categories"),
        (lambda: dn.information_gain(X, np.ones(3), [1.0], X, [7]), "conversations holds 7"),
        (
            lambda: dn.information_matrix(X, [1.0, 1.0]),
            "weight has length 2; expected 3, one for each conversation",
        ),
        (
            lambda: dn.information_matrix(X, [1.0, -1.0, 1.0]),
            "weight is negative at 1; expected weights of at least 0",
        ),
        (lambda: dn.information_matrix(X, [1.0, np.nan, 1.0]), r"weight is not finite at 1 \(nan\)"),
        (lambda: dn.information_matrix(X, 1.0, precision="half"), "precision is 'half'; expected one of"),
        (lambda: dn.leverage(X, X, precision=2), "precision is 2; expected one of 'double', 'single'"),
        (lambda: dn.information_matrix(X, np.ones((3, 1))), "weight has 2 dimensions"),
        (lambda: dn.information_matrix(X, 1.0, ridge=-1.0), "ridge is -1; expected a number of at least 0"),
        (lambda: dn.information_matrix(X, 1.0, ridge=np.nan), "ridge is nan; expected a finite number"),
        (lambda: dn.information_matrix(X, 1.0, ridge=None), "ridge is None; expected a finite number"),
        (lambda: dn.information_matrix(X, 1.0, ridge=True), "ridge is True; expected a finite number"),
        (
            lambda: dn.weighted_sum(X, [1.0]),
            "weight has length 1; expected 3, one for each conversation",
        ),
        (lambda: dn.weighted_sum(X, [[1.0]]), "weight has 2 dimensions"),
        (lambda: dn.weighted_sum(1e300 * X, [1e300, 0, 0]), "the weighted sum is not finite"),
        (lambda: dn.hessian_vector(X, np.ones(3), [1.0]), "vector has length 1; expected 3"),
        (lambda: dn.hessian_vector(X, [1.0], np.ones(3)), "weight has length 1; expected 3"),
        (lambda: dn.weighted_sum_by_cell(X, [1.0], [0], 1), "weight has length 1; expected 3"),
        (lambda: dn.weighted_sum_by_cell(X, np.ones(3), [0], 1), "cell has length 1; expected 3"),
        (
            lambda: dn.weighted_sum_by_cell(X, np.ones(3), [0, 1, 2], 2),
            "cell holds 2; expected cells between",
        ),
        (lambda: dn.weighted_sum_by_cell(X, [1.0], [0], 1, row=[3]), "row holds 3; expected conversations"),
        (lambda: dn.weighted_sum_by_cell(X, [1.0], [0], 1, row=[0, 1]), "row has length 2; expected 1"),
        (lambda: dn.weighted_sum_by_cell(X, [1.0], [0], 1.5, row=[0]), "n_cells is 1.5; expected a whole"),
        (lambda: dn.update_leverage([1.0], X, np.ones(3), 0.1), "leverage has length 1; expected 3"),
        (lambda: dn.update_leverage(np.ones(3), X, np.ones(2), 0.1), "direction has length 2; expected 3"),
        (lambda: dn.update_leverage(np.ones(3), X, np.ones(3), -0.1), "coefficient is -0.1"),
        (lambda: dn.update_leverage(np.ones(3), X, np.ones(3), np.inf), "coefficient is inf"),
        (
            lambda: dn.bradley_terry_loss(X, [0, 1], np.ones(3), 1.0),
            "choice has length 2; expected 3, one for each label",
        ),
        (lambda: dn.bradley_terry_loss(X, [0, 1, 2], np.ones(3), 1.0), r"choice is outside \[0, 1\] at 2"),
        (
            lambda: dn.bradley_terry_loss(X, [0, 1, np.nan], np.ones(3), 1.0),
            r"choice is not finite at 2 \(nan\)",
        ),
        (lambda: dn.bradley_terry_loss(X, [0, 1, 1], np.ones(2), 1.0), "reward has length 2"),
        (
            lambda: dn.bradley_terry_loss(X, [0, 1, 1], np.ones(3), [1.0]),
            "rationality has length 1; expected 3",
        ),
        (
            lambda: dn.bradley_terry_loss(X, [0, 1, 1], np.ones(3), 1.0, [1, -1, 1]),
            "sample_weight is negative at 1",
        ),
        (lambda: dn.bradley_terry_loss(X, [0, 1, 1], np.ones(3), 1.0, [1.0]), "sample_weight has length 1"),
        (lambda: dn.set_threads(0), "threads is 0; expected a whole number of at least 1"),
        (lambda: dn.use_backend("fast"), "backend is 'fast'; expected one of 'auto', 'cpu', 'reference'"),
    ],
)
def test_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", [0, 8, 16])
def test_a_number_that_is_not_finite_is_found_anywhere(backend, bad, where):
    """First, middle, last; in every argument that is an array of numbers."""
    x = np.random.default_rng(0).standard_normal((17, 17))
    spoilt = np.ones(17)
    spoilt[where] = bad
    matrix = np.eye(17)
    matrix[where, where] = bad
    good = np.ones(17)
    options = {"backend": backend}
    for call in (
        lambda: dn.margin(x, spoilt, **options),
        lambda: dn.choice_weight(spoilt, 1.0, **options),
        lambda: dn.choice_probability(1.0, spoilt, **options),
        lambda: dn.best_teacher(spoilt, None, [1.0], **options),
        lambda: dn.best_teacher(good, None, spoilt, **options),
        lambda: dn.leverage(x, matrix, **options),
        lambda: dn.information_matrix(x, spoilt, **options),
        lambda: dn.weighted_sum(x, spoilt, **options),
        lambda: dn.hessian_vector(x, good, spoilt, **options),
        lambda: dn.weighted_sum_by_cell(x, spoilt, np.zeros(17, int), 1, **options),
        lambda: dn.update_leverage(spoilt, x, good, 0.0, **options),
        lambda: dn.update_leverage(good, x, spoilt, 0.0, **options),
        lambda: dn.bradley_terry_loss(x, good, good, spoilt, **options),
        lambda: dn.bradley_terry_loss(x, good, good, 1.0, spoilt, **options),
        lambda: dn.select_batch(x, good, spoilt, np.eye(17), 1, **options),
    ):
        with pytest.raises(ValueError, match=rf"is not finite at \(?{where}"):
            call()


def test_tiny_numbers_are_kept(backend):
    """Subnormals and negative zeros are numbers like any other."""
    tiny = 5e-324
    assert dn.margin([[tiny, -0.0]], [1.0, 1.0], backend=backend)[0] == tiny
    assert dn.leverage([[1e-160, 0.0]], np.eye(2), backend=backend)[0] == 1e-160 * 1e-160
    assert dn.information_matrix([[1.0]], [tiny], ridge=0.0, backend=backend)[0, 0] == pytest.approx(
        tiny, abs=tiny
    )
    x = np.array([[1e-5], [1e-7]], np.float16)  # subnormal in float16
    assert dn.margin(x, [1.0], backend=backend).tolist() == x.astype(float).ravel().tolist()


def test_results_do_not_share_memory_with_arguments(backend):
    h = np.ones(3)
    out = dn.update_leverage(h, X, np.ones(3), 0.5, backend=backend)
    assert not np.shares_memory(h, out)
    same = np.eye(3)
    assert dn.leverage(same, same, backend=backend).tolist() == [1.0, 1.0, 1.0]  # one array as both arguments
    assert (same == np.eye(3)).all()


def test_lists_integers_and_float32_arguments(backend):
    expected = dn.leverage(np.eye(2), 2 * np.eye(2), backend=backend)
    for M in (
        [[2, 0], [0, 2]],
        np.array([[2, 0], [0, 2]], np.int8),
        2 * np.eye(2, dtype=np.float32),
        np.asfortranarray(2 * np.eye(2)),
        (2 * np.eye(4))[::2, ::2],
    ):
        assert (dn.leverage([[1, 0], [0, 1]], M, backend=backend) == expected).all()
    assert dn.margin([[1, 2]], (3, 4), backend=backend).tolist() == [11.0]


def test_more_threads_than_are_ever_of_use_are_taken(backend):
    for many in (2000, 2**40, 2**70):
        assert dn.margin(X, [1.0, 2.0, 3.0], threads=many, backend=backend).tolist() == [1.0, 2.0, 3.0]


def test_bindings_take_arrays_as_they_are_or_not_at_all():
    """Rows that are not what their name says, or not aligned, are refused: never reinterpreted."""
    from dal_native import _kernels

    def margin(rows=X, reward=None, out=None):
        pool = _kernels.PoolView(rows, "float64", None, None, None)
        _kernels.margin(
            pool, np.ones(3) if reward is None else reward, np.empty(3) if out is None else out, 1
        )

    def misaligned(*shape):
        numbers = int(np.prod(shape))
        return np.zeros(8 * numbers + 1, np.uint8)[1:].view(np.float64).reshape(shape)

    margin()
    for refused, words in (
        ({"rows": X.astype(np.int64)}, "rows: dtype does not fit float64"),
        ({"rows": X.astype(">f8")}, "rows: dtype does not fit float64"),
        ({"rows": misaligned(3, 3)}, "rows: must be aligned"),
        ({"reward": misaligned(3)}, "reward: must be aligned"),
        ({"out": misaligned(3)}, "out: must be aligned"),
    ):
        with pytest.raises(ValueError, match=words):
            margin(**refused)
    with pytest.raises(TypeError, match="incompatible"):
        margin(reward=np.ones(3, ">f8"))
