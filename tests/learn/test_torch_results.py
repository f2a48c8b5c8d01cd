"""Policies over completions that are torch tensors: the same numbers, as torch tensors."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import dal_learn as dl
import dal_native as dn

torch = pytest.importorskip("torch", reason="extra 'torch' is not installed")

RNG = np.random.default_rng(4)
PHI = RNG.normal(size=(30, 4)).astype(np.float32)
OFFSETS = [0, 1, 9, 30]
THETA, M, RADIUS = RNG.normal(size=4), 20.0 * np.eye(4), 1.0


def same(found, plain):
    """Field by field: torch where the plain result has NumPy, otherwise equal."""
    for part in dataclasses.fields(plain):
        mine, theirs = getattr(found, part.name), getattr(plain, part.name)
        if isinstance(theirs, np.ndarray):
            assert isinstance(mine, torch.Tensor), part.name
            assert mine.numpy().dtype == theirs.dtype
            assert (mine.numpy() == theirs).all(), part.name
        else:
            np.testing.assert_equal(mine, theirs)  # nan where nobody asked for it


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize(
    ("call", "options"),
    [
        (dl.pessimistic_policy, {"M": M, "radius": RADIUS, "reference": "mean"}),
        (dl.pessimistic_policy, {"M": M, "radius": RADIUS, "reference": "base", "temperature": 0.3}),
        (dl.greedy_policy, {"M": M, "radius": RADIUS}),
    ],
)
def test_policies(call, options, pooled):
    def result(phi, made):
        given = (dn.Pool.from_completions(phi, OFFSETS), None) if pooled else (phi, OFFSETS)
        return call(*given, made(THETA), **{**options, "M": made(M)})

    same(result(torch.tensor(PHI), torch.tensor), result(PHI, np.asarray))


def test_a_policy_of_torch_ranks_completions():
    reward = dl.PessimisticReward(THETA, M, RADIUS)
    for by in ("lower_bound", "mean"):
        same(
            dl.best_of_n(torch.tensor(PHI), OFFSETS, reward, by=by), dl.best_of_n(PHI, OFFSETS, reward, by=by)
        )
    abstained = dl.best_of_n(torch.tensor(PHI), OFFSETS, reward, abstain=True).abstained
    assert isinstance(abstained, torch.Tensor) and abstained.dtype == torch.bool
    policies = [
        dl.pessimistic_policy(phi, OFFSETS, THETA, M, RADIUS, temperature=0.3)
        for phi in (torch.tensor(PHI), PHI)
    ]
    found, plain = (dl.best_of_n(PHI, OFFSETS, reward, by=policy) for policy in policies)
    assert (found.choice == plain.choice).all()


@pytest.mark.parametrize("reference", [None, "mean"])
def test_bounds_and_means(reference):
    options = {"reference": reference}
    found = dl.lower_confidence_bound(torch.tensor(PHI), THETA, M, RADIUS, **options)
    assert isinstance(found, torch.Tensor)
    assert (found.numpy() == dl.lower_confidence_bound(PHI, THETA, M, RADIUS, **options)).all()
    uniform = dl.greedy_policy(PHI, OFFSETS, THETA).probability
    mean = dl.mean_features(torch.tensor(PHI), OFFSETS, torch.tensor(uniform))
    assert isinstance(mean, torch.Tensor)
    assert (mean.numpy() == dl.mean_features(PHI, OFFSETS, uniform)).all()


def test_a_fit_takes_torch_and_stays_with_numpy():
    """scikit-learn's convention: fitted attributes are NumPy arrays."""
    choice = (PHI[:, 0] > 0).astype(float)
    plain = dl.RewardModel().fit(PHI, choice)
    for given in (torch.tensor(PHI), dn.Pool(torch.tensor(PHI))):
        model = dl.RewardModel().fit(given, torch.tensor(choice))
        assert isinstance(model.coef_, np.ndarray)
        assert (model.coef_ == plain.coef_).all()
        assert (model.information_ == plain.information_).all()


def test_completions_at_the_kernels(backend):
    pools = [dn.Pool.from_completions(phi, OFFSETS) for phi in (torch.tensor(PHI), PHI)]
    for call, rest in ((dn.best_completions, ()), (dn.softmax_completions, (0.5,))):
        found, plain = (call(pool, THETA, *rest, backend=backend) for pool in pools)
        for mine, theirs in zip(found, plain, strict=True):
            assert isinstance(mine, torch.Tensor)
            assert isinstance(theirs, np.ndarray)
            assert (mine.numpy() == theirs).all()
