"""The torch head: the kernels' numbers to rounding, differentiable everywhere, and its files."""

from __future__ import annotations

import copy
import io

import numpy as np
import pytest
from scipy.linalg import cholesky, solve_triangular

import dal_native as dn

torch = pytest.importorskip("torch", reason="extra 'torch' is not installed")

from dal_learn import PessimisticReward, RewardModel  # noqa: E402
from dal_learn._files import FileFormatError  # noqa: E402
from dal_learn.integrations.torch_head import HeadEstimates, PessimisticRewardHead  # noqa: E402

RADIUS = 1.7


def problem(d, spread=3.0, seed=0):
    """theta, M with eigenvalues over `spread` decades, nu."""
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.normal(size=(d, d)))
    M = (basis * np.logspace(0.0, spread, d)) @ basis.T
    return rng.normal(size=d), 0.5 * (M + M.T), rng.normal(size=d)


def stored(d, k=50, dtype=torch.float32, seed=1):
    return torch.tensor(np.random.default_rng(seed).normal(size=(k, d)), dtype=dtype)


def exact(hidden, theta, M, nu):
    """Mean and standard deviation of the stored numbers by the float64 kernels."""
    difference = hidden.double().numpy() - nu
    return dn.margin(difference, theta), np.sqrt(dn.leverage(difference, M))


def rounding(hidden, theta, M, nu, dtype):
    """How far arithmetic in `dtype` may lead, to first order, for the mean and the standard deviation.

    With |.| entry by entry: nu, theta and L are rounded once (u each), the difference once; a product of d
    numbers adds d u; the triangular solve is the exact solution of (L + E) z = phi - nu with
    |E| <= d u |L|, so with L's own rounding |dz| <= u |L^-1| ((d + 1) |L| |z| + |nu| + |phi - nu|);
    squaring, summing and the root add (d + 2) u s.
    """
    d, u = len(theta), torch.finfo(dtype).eps / 2
    difference = hidden.double().numpy() - nu
    factor = cholesky(M, lower=True)
    inverse = np.abs(solve_triangular(factor, np.eye(d), lower=True))
    z = np.abs(solve_triangular(factor, difference.T, lower=True))
    moved = inverse @ ((d + 1) * np.abs(factor) @ z + (np.abs(nu) + np.abs(difference)).T)
    s = np.linalg.norm(z, axis=0)
    mean = (np.abs(nu) + (d + 2) * np.abs(difference)) @ np.abs(theta)
    return u * mean, u * (np.linalg.norm(moved, axis=0) + (d + 2) * s)


# --------------------------------------------------------------------------------------------- the numbers


@pytest.mark.parametrize("d", [1, 3, 8, 33, 130])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_agrees_with_the_kernels_to_rounding(d, dtype):
    """The hidden states are the data as stored; the head's own precision is all that is lost."""
    theta, M, nu = problem(d)
    hidden = stored(d, dtype=dtype)
    working = torch.float64 if dtype == torch.float64 else torch.float32
    head = PessimisticRewardHead(theta, M, RADIUS, nu, dtype=working)
    got = head.estimates(hidden)
    assert isinstance(got, HeadEstimates)
    mean, sd = exact(hidden, theta, M, nu)
    mean_error, sd_error = rounding(hidden, theta, M, nu, working)
    if working == torch.float64:  # the kernels round as well
        mean_error, sd_error = 2 * mean_error, 2 * sd_error
    assert all(part.dtype == working and part.shape == (50,) for part in got)
    assert (np.abs(got.mean.numpy() - mean) <= mean_error).all()
    assert (np.abs(got.standard_deviation.numpy() - sd) <= sd_error).all()
    allowed = mean_error + RADIUS * sd_error + 3 * torch.finfo(working).eps * (np.abs(mean) + RADIUS * sd)
    assert (np.abs(got.lower_bound.numpy() - (mean - RADIUS * sd)) <= allowed).all()
    assert (sd_error < 0.02 * sd).all()  # the bound says something


def test_close_to_the_reference_nothing_cancels():
    """The difference is taken before it is whitened: relative precision holds a hair away from nu."""
    theta, M, nu = problem(16)
    nu = nu.astype(np.float32).astype(np.float64)
    step = 2.0**-20 * np.abs(nu).max()
    hidden = torch.tensor(nu + step * np.eye(16), dtype=torch.float32)
    head = PessimisticRewardHead(theta, M, RADIUS, nu)
    _, sd = exact(hidden, theta, M, nu)
    np.testing.assert_allclose(head.standard_deviation(hidden).numpy(), sd, rtol=2e-5)


def test_the_head_of_a_fitted_reward(tmp_path):
    theta, M, nu = problem(7)
    reward = PessimisticReward(theta, M, RADIUS, nu, encoder="abc")
    reward.save(tmp_path / "reward.safetensors")
    for made in (reward, PessimisticReward.load(tmp_path / "reward.safetensors")):
        head = PessimisticRewardHead.from_reward(made, dtype=torch.float64)
        assert (head.d, head.encoder) == (7, "abc")
        hidden = stored(7, dtype=torch.float64)
        for ours, theirs in zip(head.estimates(hidden), reward.estimates(hidden), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-11, atol=1e-11)


def test_a_rewards_own_file_is_read_as_well(tmp_path):
    theta, M, nu = problem(7)
    path = tmp_path / "reward.safetensors"
    PessimisticReward(theta, M, RADIUS, nu, encoder="abc").save(path)
    head = PessimisticRewardHead.load(path, "abc", trainable=True)
    assert head.score.weight.requires_grad
    assert head.encoder == "abc"
    same = PessimisticRewardHead(theta, M, RADIUS, nu)
    assert torch.equal(head(stored(7)), same(stored(7)))
    with pytest.raises(ValueError, match="made with encoder 'abc', expected 'other'"):
        PessimisticRewardHead.load(path, "other")
    RewardModel().fit(np.eye(2), [0, 1]).save(path)
    with pytest.raises(ValueError, match="expected radius to be given"):
        PessimisticRewardHead.load(path)


def test_the_parts_agree_and_shapes_follow():
    theta, M, nu = problem(5)
    head = PessimisticRewardHead(theta, M, RADIUS, nu)
    hidden = stored(5, 24)
    whole = head.estimates(hidden)
    assert torch.equal(head(hidden), whole.lower_bound)
    assert torch.equal(head.lower_bound(hidden), whole.lower_bound)
    assert torch.equal(head.mean(hidden), whole.mean)
    assert torch.equal(head.standard_deviation(hidden), whole.standard_deviation)
    np.testing.assert_allclose(head(hidden.reshape(2, 3, 4, 5)).flatten(), whole.lower_bound, rtol=1e-5)
    assert head(hidden[0]).shape == ()
    assert head(hidden[:0]).shape == (0,)
    assert head(hidden.reshape(2, 12, 5).mT.contiguous().mT).shape == (2, 12)


def test_radius_zero_and_no_reference_is_the_plain_reward():
    theta, M, _ = problem(4)
    head = PessimisticRewardHead(theta, M, 0.0, dtype=torch.float64)
    hidden = stored(4, dtype=torch.float64)
    np.testing.assert_allclose(head(hidden), hidden.numpy() @ theta, rtol=1e-13)


# --------------------------------------------------------------------------------------------- derivatives


def test_gradients_are_those_of_the_definition():
    theta, M, nu = problem(6)
    head = PessimisticRewardHead(theta, M, RADIUS, nu, dtype=torch.float64)
    hidden = stored(6, 3, torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(head, (hidden,))
    assert torch.autograd.gradgradcheck(head, (hidden,))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_never_passes_for_a_bound(bad):
    theta, M, nu = problem(4)
    hidden = stored(4, 3)
    clean = PessimisticRewardHead(theta, M, RADIUS, nu)(hidden)
    hidden[1, 2] = bad
    bound = PessimisticRewardHead(theta, M, RADIUS, nu)(hidden)
    assert torch.equal(bound[[0, 2]], clean[[0, 2]])
    for radius in (RADIUS, 0.0):
        bad_bound = PessimisticRewardHead(theta, M, radius, nu)(hidden)[1]
        assert bad_bound.isnan() or bad_bound == -float("inf")


def test_at_the_reference_the_gradient_is_a_subgradient_and_never_nan():
    """At the kink s has every |g|_M <= 1 as a subgradient: 0 is one, so the lower bound's is theta."""
    theta, M, nu = problem(6)
    nu = nu.astype(np.float32).astype(np.float64)
    head = PessimisticRewardHead(theta, M, RADIUS, nu)
    hidden = torch.tensor(np.stack([nu, nu + 1.0]), dtype=torch.float32, requires_grad=True)
    bound = head(hidden)
    assert bound[0] == 0.0
    (first,) = torch.autograd.grad(bound.sum(), hidden, create_graph=True)
    assert torch.equal(first[0], head.score.weight[0])
    assert torch.isfinite(first).all()
    (second,) = torch.autograd.grad(first.square().sum(), hidden)
    assert torch.isfinite(second).all()
    assert torch.equal(second[0], torch.zeros(6))
    assert second[1].any()


def test_works_under_torch_func():
    theta, M, nu = problem(4)
    head = PessimisticRewardHead(theta, M, RADIUS, nu)
    hidden = stored(4, 7)
    np.testing.assert_allclose(torch.func.vmap(head)(hidden), head(hidden), rtol=1e-5)
    hidden[0] = torch.tensor(nu, dtype=torch.float32)
    each = torch.func.vmap(torch.func.grad(head))(hidden)
    together = torch.autograd.grad(head(hidden.requires_grad_()).sum(), hidden)[0]
    np.testing.assert_allclose(each, together, rtol=1e-4, atol=1e-6)


def test_a_policy_can_climb_it():
    """What it is for: gradient ascent on the features reaches the maximum over a ball."""
    theta, M, _ = problem(3, spread=1.0)
    head = PessimisticRewardHead(theta, M, 0.3)
    hidden = torch.zeros(3, requires_grad=True)
    optimiser = torch.optim.SGD([hidden], lr=0.1)
    for _ in range(50):
        optimiser.zero_grad()
        (-head(hidden)).backward()
        optimiser.step()
    assert head(hidden) > 1.0


# --------------------------------------------------------------------------------------- a module like others


def test_nothing_is_a_parameter_unless_asked_for():
    theta, M, nu = problem(3)
    assert list(PessimisticRewardHead(theta, M, RADIUS, nu).parameters()) == []
    head = PessimisticRewardHead(theta, M, RADIUS, nu, trainable=True)
    assert [name for name, _ in head.named_parameters()] == ["score.weight"]
    head(stored(3)).sum().backward()
    assert torch.isfinite(head.score.weight.grad).all()
    assert head.score.weight.shape == (1, 3)
    names = {"score.weight", "factor", "radius", "reference", "fingerprint"}
    assert set(head.state_dict()) == set(PessimisticRewardHead(theta, M, 1.0).state_dict()) == names


@pytest.mark.parametrize("narrow", [torch.bfloat16, torch.float16])
def test_narrow_dtypes_leave_the_head_in_float32(narrow):
    theta, M, nu = problem(8)
    head = PessimisticRewardHead(theta, M, RADIUS, nu, trainable=True)
    hidden = stored(8, dtype=narrow)
    before = head(hidden).detach()
    model = torch.nn.ModuleDict({"body": torch.nn.Linear(8, 8), "head": head}).to(narrow)
    assert model["body"].weight.dtype == narrow
    assert {t.dtype for t in head.state_dict().values()} == {torch.float32, torch.uint8}
    assert torch.equal(head(hidden), before)
    assert head.double()(hidden).dtype == torch.float64
    assert head.float().factor.dtype == torch.float32
    assert head.to("meta").factor.device.type == "meta"


def test_autocast_does_not_reach_the_arithmetic():
    theta, M, nu = problem(33)
    head = PessimisticRewardHead(theta, M, RADIUS, nu)
    hidden = stored(33)
    plain = head.estimates(hidden)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = head.estimates(hidden)
        assert (hidden @ hidden.mT).dtype == torch.bfloat16
    assert all(torch.equal(a, b) for a, b in zip(plain, inside, strict=True))


def test_copies_are_independent():
    theta, M, nu = problem(3)
    head = PessimisticRewardHead(theta, M, RADIUS, nu, encoder="abc")
    twin = copy.deepcopy(head)
    twin.reference.zero_()
    assert head.reference.any()
    assert twin.encoder == "abc"
    theta[:] = 0.0
    assert head.score.weight.any()  # nor does it share memory with what it was made of


def test_it_takes_torch_arrays_and_an_information_matrix():
    theta, M, nu = problem(3)
    plain = PessimisticRewardHead(theta, M, RADIUS, nu)
    other = PessimisticRewardHead(torch.tensor(theta), dn.InformationMatrix(M), RADIUS, torch.tensor(nu))
    assert torch.equal(plain(stored(3)), other(stored(3)))


# ------------------------------------------------------------------------------------------------ its files


def test_a_saved_head_has_the_same_bits(tmp_path):
    theta, M, nu = problem(9)
    for dtype in (torch.float32, torch.float64):
        head = PessimisticRewardHead(theta, M, RADIUS, nu, encoder="e" * 64, dtype=dtype)
        head.save(tmp_path / "head.safetensors")
        again = PessimisticRewardHead.load(tmp_path / "head.safetensors", "e" * 64)
        assert again.encoder == "e" * 64
        assert again.factor.dtype == dtype
        assert torch.equal(head(stored(9)), again(stored(9)))
    assert [path.name for path in tmp_path.iterdir()] == ["head.safetensors"]
    assert PessimisticRewardHead.load(
        tmp_path / "head.safetensors", trainable=True
    ).score.weight.requires_grad


def test_a_head_saved_for_another_encoder_is_refused(tmp_path):
    theta, M, nu = problem(2)
    path = tmp_path / "head.safetensors"
    PessimisticRewardHead(theta, M, RADIUS, nu, encoder="one").save(path)
    with pytest.raises(ValueError, match="saved for the encoder one; expected two"):
        PessimisticRewardHead.load(path, "two")
    other = PessimisticRewardHead(theta + 1, M, RADIUS, nu, encoder="two")
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(ValueError, match="saved for the encoder one; expected two"):
        other.load_state_dict(PessimisticRewardHead.load(path).state_dict())
    assert all(torch.equal(before[name], tensor) for name, tensor in other.state_dict().items())
    PessimisticRewardHead(theta, M, RADIUS, nu).save(path)
    with pytest.raises(ValueError, match="not named"):
        PessimisticRewardHead.load(path, "two")


def test_the_state_travels_inside_a_models_checkpoint():
    from safetensors.torch import load, save

    theta, M, nu = problem(4)
    head = PessimisticRewardHead(theta, M, RADIUS, nu, encoder="mine")
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), head)
    bare = torch.nn.Sequential(torch.nn.Linear(4, 4), PessimisticRewardHead(np.zeros(4), np.eye(4), 0.0))
    bare.load_state_dict(load(save(model.state_dict())))
    assert bare[1].encoder == "mine"
    assert torch.equal(model(stored(4)), bare(stored(4)))
    small = torch.nn.Sequential(torch.nn.Linear(4, 4), PessimisticRewardHead(np.zeros(3), np.eye(3), 0.0))
    with pytest.raises(ValueError, match=r"1\.score\.weight has shape \(1, 4\); expected \(1, 3\)"):
        small.load_state_dict(model.state_dict())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"factor": torch.eye(2, dtype=torch.bfloat16)}, "factor has dtype torch.bfloat16"),
        ({"factor": torch.eye(2, dtype=torch.int64)}, "factor has dtype torch.int64"),
        ({"fingerprint": torch.ones(3)}, "fingerprint is not a row of bytes"),
        ({"fingerprint": torch.ones(2, 2, dtype=torch.uint8)}, "fingerprint is not a row of bytes"),
    ],
)
@pytest.mark.parametrize("assign", [False, True])
def test_rounded_and_damaged_states_are_refused_before_anything_is_written(changes, words, assign):
    head = PessimisticRewardHead([1.0, 2.0], np.eye(2), 1.0)
    other = PessimisticRewardHead([3.0, 4.0], np.eye(2), 2.0).state_dict()
    with pytest.raises(ValueError, match=words):
        head.load_state_dict({**other, **changes}, assign=assign)
    assert head.score.weight.tolist() == [[1.0, 2.0]] and float(head.radius) == 1.0


def spoiled(change):
    """A head's file with its tensors changed."""
    from safetensors.torch import save

    state = PessimisticRewardHead([1.0, 2.0], np.eye(2), 1.0, encoder="x").state_dict()
    change(state)
    return save(state)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "not a safetensors file"),
        (b"garbage, and more of it", "not a safetensors file"),
        (spoiled(lambda s: s.pop("factor")), "expected the tensors"),
        (spoiled(lambda s: s.update(more=torch.ones(1))), "expected the tensors"),
        (spoiled(lambda s: s.update(factor=torch.ones(2, 3))), "factor has shape"),
        (spoiled(lambda s: s.update(radius=torch.tensor(1.0).bfloat16())), "radius has .* torch.bfloat16"),
        (spoiled(lambda s: s.update(reference=torch.zeros(0))), "score.weight has shape"),
        (spoiled(lambda s: s.update(reference=torch.tensor([1.0, float("nan")]))), "reference holds NaN"),
        (spoiled(lambda s: s.update(radius=torch.tensor(-1.0))), "out of range"),
        (spoiled(lambda s: s.update(factor=-torch.eye(2))), "out of range"),
        (spoiled(lambda s: s.update(factor=torch.ones(2, 2))), "out of range"),
        (spoiled(lambda s: s.update(fingerprint=torch.ones(3))), "row of bytes"),
        (spoiled(lambda s: s.update(fingerprint=torch.zeros(5000, dtype=torch.uint8))), "row of bytes"),
    ],
)
def test_damaged_files_are_refused(tmp_path, raw, words):
    path = tmp_path / "head.safetensors"
    path.write_bytes(raw)
    with pytest.raises(FileFormatError, match=words):
        PessimisticRewardHead.load(path)


def test_pickles_and_missing_files_are_refused(tmp_path):
    path = tmp_path / "head.pt"
    buffer = io.BytesIO()
    torch.save(PessimisticRewardHead([1.0], [[1.0]], 1.0).state_dict(), buffer)
    path.write_bytes(buffer.getvalue())
    with pytest.raises(FileFormatError, match="not a safetensors file"):
        PessimisticRewardHead.load(path)
    with pytest.raises(FileFormatError, match="no such file"):
        PessimisticRewardHead.load(tmp_path / "nothing")


# ------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("hidden", "words"),
    [
        (torch.zeros(2, 4), r"hidden has shape \(2, 4\); expected 3 features"),
        (torch.zeros(()), "expected 3 features"),
        (torch.zeros(2, 3, dtype=torch.int64), "hidden has dtype torch.int64"),
        (torch.zeros(2, 3, dtype=torch.complex64), "hidden has dtype torch.complex64"),
    ],
)
def test_wrong_hidden_states_are_refused(hidden, words):
    head = PessimisticRewardHead(np.zeros(3), np.eye(3), 1.0)
    for method in (head, head.mean, head.standard_deviation, head.lower_bound, head.estimates):
        with pytest.raises(ValueError, match=words):
            method(hidden)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"coef": [1.0, np.nan]}, "coef is not finite"),
        ({"information": np.eye(3)}, r"M has shape \(3, 3\)"),
        ({"information": -np.eye(2)}, "positive definite"),
        ({"radius": -1.0}, "radius is -1"),
        ({"radius": np.nan}, "radius is nan"),
        ({"radius": np.inf}, "radius is inf"),
        ({"reference": [1.0]}, "reference has length 1"),
        ({"dtype": torch.bfloat16}, "dtype is torch.bfloat16"),
    ],
)
def test_wrong_arguments_are_refused(change, words):
    arguments = {"coef": [1.0, 2.0], "information": np.eye(2), "radius": 1.0, **change}
    with pytest.raises((ValueError, np.linalg.LinAlgError), match=words):
        PessimisticRewardHead(**arguments)
