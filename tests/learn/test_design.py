"""Designs: what every method must keep to, and what each one is."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy import sparse

import dal_native as dn
from dal_learn import design

N, M, C, D = 60, 5, 2, 4


def make_state(*, candidates=None, asked=(), capacity=None, seed=0, **changes):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((N, D)) * np.array([2.0, 1.0, 0.5, 0.25])
    category = np.arange(N) % C
    reward = rng.standard_normal(D)
    rationality = np.exp(rng.standard_normal((M, C)))
    asked = np.array(asked, np.int64).reshape(-1, 2)
    pool = dn.Pool(x, category=category)
    beta = rationality[asked[:, 1], category[asked[:, 0]]]
    weight = dn.choice_weight(x[asked[:, 0]] @ reward, beta)
    state = design.DesignState(
        pool=pool,
        category=category,
        reward=reward,
        rationality=rationality,
        matrix=dn.information_matrix(x[asked[:, 0]], weight, ridge=0.5),
        admissible=design.Admissible(N, M, candidates, asked, capacity),
        ridge=0.5,
        truth=(reward * 1.1, rationality * 0.9),
    )
    return dataclasses.replace(state, **changes)


def some_candidates(seed=1, share=0.3):
    return sparse.csr_matrix(np.random.default_rng(seed).random((N, M)) < share)


def pairs_of(picks):
    return list(zip(picks.conversation.tolist(), picks.teacher.tolist(), strict=True))


@pytest.mark.parametrize("name", design.METHODS)
def test_every_method_keeps_the_rules(name):
    allowed = some_candidates()
    rows, columns = allowed.nonzero()
    asked = np.stack([rows[::4], columns[::4]], axis=1)
    capacity = np.array([2, 3, 0, 9, 9])
    state = make_state(candidates=allowed, asked=asked, capacity=capacity)
    picks = design.METHODS[name](state, 8, design.random_stream(3, name))
    pairs = pairs_of(picks)
    assert len(pairs) == 8 == len(set(pairs))
    assert all(allowed[i, j] for i, j in pairs)
    assert not set(pairs) & set(map(tuple, asked.tolist()))
    assert len(set(picks.conversation.tolist())) == 8  # no conversation twice in a batch
    assert (np.bincount(picks.teacher, minlength=M) <= capacity).all()
    assert picks.gain.shape == (8,) and (picks.gain >= 0).all()


@pytest.mark.parametrize("name", design.METHODS)
def test_every_method_repeats_itself_and_depends_on_its_stream_alone(name):
    first = design.METHODS[name](make_state(), 6, design.random_stream(3, name, 1))
    again = design.METHODS[name](make_state(), 6, design.random_stream(3, name, 1))
    assert pairs_of(first) == pairs_of(again)
    assert first.gain.tobytes() == again.gain.tobytes()


@pytest.mark.parametrize("name", design.METHODS)
def test_every_method_ends_when_pairs_run_out(name):
    few = sparse.csr_matrix((np.ones(3, bool), ([4, 9, 9], [0, 1, 2])), shape=(N, M))
    state = make_state(candidates=few, asked=[(9, 1)])
    picks = design.METHODS[name](state, 10, design.random_stream(0))
    assert sorted(pairs_of(picks)) == [(4, 0), (9, 2)]
    exhausted = make_state(candidates=few, asked=[(9, 1), (9, 2), (4, 0)])
    assert len(design.METHODS[name](exhausted, 10, design.random_stream(0)).conversation) == 0


@pytest.mark.parametrize("name", design.METHODS)
def test_gain_is_the_difference_of_log_determinants(name):
    state = make_state(asked=[(0, 0), (1, 3)])
    picks = design.METHODS[name](state, 7, design.random_stream(5))
    matrix = state.matrix.copy()
    for i, j, gain in zip(picks.conversation, picks.teacher, picks.gain, strict=True):
        x = state.pool.take([i])[0]
        t = state.rationality[j, state.category[i]] * (x @ state.reward)
        weight = state.rationality[j, state.category[i]] ** 2 / (2 + 2 * np.cosh(t))
        before = np.linalg.slogdet(matrix)[1]
        matrix += weight * np.outer(x, x)
        assert gain == pytest.approx(np.linalg.slogdet(matrix)[1] - before, abs=1e-10)


def test_dual_gains_most_of_all_methods_in_its_first_pick():
    state = make_state()
    best = design.dual(state, 1, design.random_stream(0)).gain[0]
    for name, method in design.METHODS.items():
        assert method(state, 1, design.random_stream(1)).gain[0] <= best + 1e-12, name


def dense_optimistic(state, size, interval):
    """The rule as it is written down: every pair at every step, the largest weight over its interval."""
    x = state.pool.take(np.arange(N))
    u = np.abs(x @ state.reward)
    grid = np.exp(np.linspace(0, 1, 4001))[None, None, :] - 1
    share = grid / grid.max()
    low, high = (interval[:, state.category, k][:, :, None] for k in (0, 1))
    beta = low + (high - low) * share
    w = (beta**2 / (2 + 2 * np.cosh(beta * u[None, :, None]))).max(axis=2).T
    matrix, chosen = state.matrix.copy(), []
    free = np.ones((N, M), bool)
    for _ in range(size):
        h = np.einsum("ij,ij->i", x @ np.linalg.inv(matrix), x)
        i, j = np.unravel_index(np.argmax(np.where(free, w * h[:, None], -1.0)), w.shape)
        chosen.append((int(i), int(j)))
        free[i] = False
        matrix += w[i, j] * np.outer(x[i], x[i])
    return chosen


def test_the_optimistic_criterion_takes_the_best_rationality_of_each_interval():
    state = make_state(asked=[(0, 0), (1, 3)])
    spread = np.random.default_rng(4).uniform(0.1, 1.0, (M, C, 1))
    interval = state.rationality[:, :, None] * np.exp(spread * np.array([-1.0, 1.0]))
    hopeful = dataclasses.replace(state, criterion="optimistic", rationality_interval=interval)
    picks = design.dual(hopeful, 6, design.random_stream(0))
    expected = dense_optimistic(dataclasses.replace(state, admissible=design.Admissible(N, M)), 6, interval)
    assert pairs_of(picks) == expected != pairs_of(design.dual(state, 6, design.random_stream(0)))
    x = state.pool.take(picks.conversation)
    beta = state.rationality[picks.teacher, state.category[picks.conversation]]
    own = design.sequential_gain(x, dn.choice_weight(x @ state.reward, beta), state.matrix)
    assert picks.gain == pytest.approx(own)
    narrow = dataclasses.replace(hopeful, rationality_interval=np.repeat(state.rationality[:, :, None], 2, 2))
    assert pairs_of(design.dual(narrow, 6, None)) == pairs_of(design.dual(state, 6, None))
    truth = design.oracle(hopeful, 6, None)  # has nothing to hope for
    assert pairs_of(truth) == pairs_of(design.oracle(state, 6, None))


def make_joint(state, seed=6):
    """A^-1 of theta and the cells of all teachers but the last, from made-up labels, and A itself."""
    rng = np.random.default_rng(seed)
    cells = [(j, c) for j in range(M - 1) for c in range(C)]
    a = np.eye(D + len(cells)) * 2.0
    for k, (j, c) in enumerate(cells):
        x, u = rng.standard_normal(D), rng.standard_normal()
        g = np.zeros(len(a))
        g[:D], g[D + k] = state.rationality[j, c] * x, u
        a += 0.2 * np.outer(g, g)
    table = np.full((M, C), -1)
    for k, place in enumerate(cells):
        table[place] = k
    return dn.JointInformation.from_inverse(np.linalg.inv(a), D, table, 0.3), a


def label_vector(state, size, table, i, j):
    """g and v of a label, by their definitions."""
    x, c = state.pool.take([i])[0], state.category[i]
    u, beta = float(x @ state.reward), float(state.rationality[j, c])
    g = np.zeros(size)
    g[:D], g[D + table[j, c]] = beta * x, u
    return g, 1 / (2 + 2 * np.cosh(beta * u))


def test_the_joint_covariance_after_labels_is_the_inverse_of_their_information():
    state = make_state()
    joint, a = make_joint(state)
    pairs = [(3, 0), (7, 2), (8, M - 1), (3, 1), (10, M - 1)]  # the last teacher had no labels yet
    table = joint.cell.copy()
    a = np.block([[a, np.zeros((len(a), 2))], [np.zeros((2, len(a))), np.eye(2) / 0.3]])
    table[M - 1, state.category[8]], table[M - 1, state.category[10]] = len(a) - D - 2, len(a) - D - 2
    assert state.category[8] == state.category[10]
    a = a[:-1, :-1]
    i, j = map(np.array, zip(*pairs, strict=True))
    for pair in pairs:
        g, v = label_vector(state, len(a), table, *pair)
        a += v * np.outer(g, g)
    x, cell = state.pool.take(i), np.stack([j, state.category[i]], axis=1)
    after = design.joint_after(joint, x, x @ state.reward, state.rationality[cell[:, 0], cell[:, 1]], cell)
    inverse = np.linalg.inv(a)
    assert after.theta == pytest.approx(inverse[:D, :D], abs=1e-12)
    assert after.cross == pytest.approx(inverse[:D, D:], abs=1e-12)
    assert after.rationality == pytest.approx(inverse[D:, D:], abs=1e-12)
    assert after.cell.tolist() == table.tolist()
    nobody = np.zeros(0), np.zeros(0), np.zeros((0, 2), np.int64)
    same = design.joint_after(joint, np.zeros((0, D)), *nobody)
    assert same.theta.tolist() == joint.theta.tolist() and same.cell.tolist() == joint.cell.tolist()


def test_the_nuisance_criterion_is_what_it_says():
    """Greedy over what each label adds to log det of theta's block of A^-1, by dense determinants."""
    state = make_state()
    joint, a = make_joint(state)
    open_to = np.array([4] * (M - 1) + [0])  # those with labels
    state = dataclasses.replace(
        state, criterion="nuisance", joint=joint, admissible=design.Admissible(N, M, capacity=open_to)
    )
    picks = design.dual(state, 4, design.random_stream(0))
    free, expected = np.ones(N, bool), []
    for _ in range(4):
        best = (-1.0, 0, 0)
        for i in np.flatnonzero(free):
            for j in range(M - 1):
                g, v = label_vector(state, len(a), joint.cell, i, j)
                after = a + v * np.outer(g, g)
                gain = np.linalg.slogdet(after)[1] - np.linalg.slogdet(after[D:, D:])[1]
                best = max(best, (gain, -i, -j))
        i, j = -best[1], -best[2]
        g, v = label_vector(state, len(a), joint.cell, i, j)
        a, free[i] = a + v * np.outer(g, g), False
        expected.append((i, j))
    assert pairs_of(picks) == expected
    assert picks.d_efficiency is None and (picks.gain > 0).all()


def test_oracle_needs_a_truth():
    with pytest.raises(ValueError, match="only a simulation"):
        design.oracle(make_state(truth=None), 3, design.random_stream(0))


def test_oracle_with_the_truth_as_estimate_is_the_dual_rule():
    asked = [(0, 0), (1, 3)]
    state = make_state(asked=asked)
    state = dataclasses.replace(state, truth=(state.reward, state.rationality))
    oracle = design.oracle(state, 6, design.random_stream(0))
    assert pairs_of(oracle) == pairs_of(design.dual(state, 6, design.random_stream(0)))


def test_best_fixed_teacher_sends_everything_to_one_teacher_and_fills_up():
    state = make_state()
    ability = state.rationality @ (np.bincount(state.category) / N)
    picks = design.best_fixed_teacher(state, 9, design.random_stream(2))
    assert set(picks.teacher.tolist()) == {int(np.argmax(ability))}
    order = np.argsort(-ability)
    capacity = np.full(M, 2)
    state = make_state(capacity=capacity)
    filled = design.best_fixed_teacher(state, 5, design.random_stream(2))
    assert filled.teacher.tolist() == [order[0]] * 2 + [order[1]] * 2 + [order[2]]


def test_best_fixed_teacher_prefers_who_can_answer_the_whole_batch():
    state = make_state()
    ability = state.rationality @ (np.bincount(state.category) / N)
    best, second = np.argsort(-ability)[:2]
    allowed = np.ones((N, M), bool)
    allowed[2:, best] = False
    picks = design.best_fixed_teacher(
        make_state(candidates=sparse.csr_matrix(allowed)), 9, design.random_stream(2)
    )
    assert set(picks.teacher.tolist()) == {int(second)}


@pytest.mark.parametrize("sparse_candidates", [False, True])
def test_top_b_is_the_largest_products_scored_once(sparse_candidates):
    candidates = some_candidates(share=0.5) if sparse_candidates else None
    allowed = candidates.toarray() if sparse_candidates else np.ones((N, M), bool)
    asked = [(i, j) for i in range(0, N, 3) for j in range(M) if allowed[i, j]][:40]
    state = make_state(candidates=candidates, asked=asked)
    x = state.pool.take(np.arange(N))
    h = np.einsum("ij,ij->i", x @ np.linalg.inv(state.matrix), x)
    beta = state.rationality[:, state.category].T
    w = beta**2 / (2 + 2 * np.cosh(beta * (x @ state.reward)[:, None]))
    w[~allowed] = -1.0
    w[tuple(np.array(asked).T)] = -1.0
    product = w.max(axis=1) * h
    expected = np.argsort(-np.where(w.max(axis=1) > 0, product, -1.0), kind="stable")[:8]
    picks = design.top_b(state, 8, design.random_stream(0))
    assert picks.conversation.tolist() == expected.tolist()
    assert picks.teacher.tolist() == w[expected].argmax(axis=1).tolist()


def test_uncertainty_and_apo_order_conversations_as_they_say():
    state = make_state()
    x = state.pool.take(np.arange(N))
    least = np.argsort(np.abs(x @ state.reward), kind="stable")[:6]
    assert design.uncertainty(state, 6, design.random_stream(0)).conversation.tolist() == least.tolist()
    h = np.einsum("ij,ij->i", x @ np.linalg.inv(state.matrix), x)
    assert design.apo(state, 6, design.random_stream(0)).conversation.tolist() == np.argsort(-h)[:6].tolist()


def test_theta_free_does_not_look_at_theta():
    one = design.theta_free(make_state(asked=[(3, 1)]), 6, design.random_stream(0))
    state = make_state(asked=[(3, 1)])
    other = design.theta_free(
        dataclasses.replace(state, reward=-5 * state.reward), 6, design.random_stream(0)
    )
    assert pairs_of(one) == pairs_of(other)


def test_seed_design_deals_evenly_and_asks_every_conversation_once_first():
    i, j = design.seed_design(design.Admissible(N, M), N, design.random_stream(0))
    assert sorted(i.tolist()) == list(range(N))
    assert np.bincount(j, minlength=M).tolist() == [N // M] * M
    i, j = design.seed_design(design.Admissible(2, 3), 100, design.random_stream(0))
    assert len(set(zip(i.tolist(), j.tolist(), strict=True))) == len(i) == 6


def test_admissible_counts_and_refusals():
    allowed = design.Admissible(3, 4, asked=[(1, 2), (1, 0), (1, 2)])
    assert allowed.teachers(1).tolist() == [1, 3]
    assert allowed.conversations(2).tolist() == [0, 2]
    assert allowed.count().tolist() == [4, 2, 4]
    assert allowed.count_of_teachers().tolist() == [2, 3, 2, 3]
    assert allowed.total() == 10
    table = sparse.csr_matrix((np.ones(4, bool), ([0, 0, 2, 2], [1, 3, 0, 1])), shape=(3, 4))
    few = design.Admissible(3, 4, table, asked=[(0, 3), (1, 1)])
    assert few.teachers(0).tolist() == [1] and few.teachers(1).tolist() == []
    assert few.conversations(1).tolist() == [0, 2]
    assert few.count().tolist() == [1, 0, 2]
    assert few.count_of_teachers().tolist() == [1, 2, 0, 0]
    with pytest.raises(ValueError, match="asked holds a pair outside"):
        design.Admissible(3, 4, asked=[(3, 0)])
    with pytest.raises(ValueError, match=r"candidates has shape \(2, 2\), expected \(3, 4\)"):
        design.Admissible(3, 4, np.ones((2, 2)))
    with pytest.raises(ValueError, match=r"capacity has shape \(2,\), expected \(4,\)"):
        design.Admissible(3, 4, capacity=[1, 1])


def test_random_stream_keeps_its_keys_apart():
    keys = [(1,), (1, 0), ("1",), ("1", 0), (1, "0"), ("10",), (10,)]
    draws = {int(design.random_stream(*key).integers(2**62)) for key in keys}
    assert len(draws) == len(keys)


def test_sequential_gain_of_nothing():
    assert design.sequential_gain(np.zeros((0, D)), np.zeros(0), np.eye(D)).shape == (0,)
