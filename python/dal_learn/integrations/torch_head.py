"""The pessimistic reward as a torch module, to sit on a model's hidden states (extra ``torch``).

mean               m = (phi - nu)' theta
standard deviation s = |phi - nu|_{M^-1} = |L^-1 (phi - nu)|,  M = L L', L lower Cholesky
lower bound        m - radius s
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from .._files import FileFormatError, atomic_write
from .._reward_file import form_of
from ..pessimistic_reward import PessimisticReward

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["HeadEstimates", "PessimisticRewardHead"]

#: The largest file that is read: a factor of 16,384 features.
_LARGEST = 2**30 + 2**20
_WORKING = (torch.float32, torch.float64)
#: Tensors of a head, and how many axes each has.
_AXES = {"score.weight": 2, "factor": 2, "radius": 0, "reference": 1, "fingerprint": 1}
#: Bytes of a fingerprint.
_LONGEST_NAME = 4096


class HeadEstimates(NamedTuple):
    """What the labels say of some features, from one pass.

    Attributes
    ----------
    mean, standard_deviation, lower_bound : Tensor, (...)
        Of the reward relative to the reference point.
    """

    mean: Tensor
    standard_deviation: Tensor
    lower_bound: Tensor


class _Score(nn.Module):
    """theta as the bias-free linear head of the usual reward models: ``weight``, (1, d)."""

    weight: Tensor

    def __init__(self, weight: Tensor, trainable: bool) -> None:
        super().__init__()
        if trainable:
            self.weight = nn.Parameter(weight)
        else:
            self.register_buffer("weight", weight)


class PessimisticRewardHead(nn.Module):
    """Reward, its standard deviation and its lower bound, from hidden states.

    Parameters
    ----------
    coef : array_like, (d,)
        The estimate theta.
    information : array_like, (d, d), or InformationMatrix
        M, ridge included; only its Cholesky factor is kept.
    radius : float
        Standard deviations between mean and lower bound, at least 0: see `dal_learn.confidence_radius`.
    reference : array_like, (d,), optional
        The reference point nu, in the units of the hidden states; zero by default.
    encoder : str, optional
        Fingerprint of the encoder that made the features of the fit. It travels in the `state_dict`, and a
        state saved for another encoder is refused.
    trainable : bool, default False
        Whether theta is a parameter. By default nothing is: the head is what the labels said.
    dtype : torch.dtype, default torch.float32
        float32 or float64: the precision of the tensors, of the arithmetic and of the answers.
    device : torch.device, optional

    Raises
    ------
    ValueError
        A shape does not fit, or a number is not finite or out of range.
    numpy.linalg.LinAlgError
        The information matrix is not positive definite.

    Notes
    -----
    Hidden states may have any floating dtype; they are the data as stored, and all arithmetic is in the
    head's own precision, also within autocast. `half` and `bfloat16`, or moving a whole model to such a
    dtype, leave the head in float32: rounded to eight bits the factor would vouch for nothing.

    With u the unit roundoff (2^-24 in float32), and |.| entry by entry, the standard deviation s = |z| is
    within about u (|w| + (d + 2) s) of exact, w = |L^-1| ((d + 1) |L| |z| + |nu| + |phi - nu|), and the mean
    within u (|nu| + (d + 2) |phi - nu|)' |theta|. The difference is taken before it is whitened, so that
    nothing cancels later. Squares of s that leave the range of the dtype (in float32 s below 1e-19 or above
    1e19) come out as 0 or infinity. On CUDA this asks for products not cut to TF32, which is torch's default.

    Differentiable in the features. At phi = nu, where the norm has a kink, the gradient of s is 0: one of
    its subgradients. NaN or infinity in a hidden state makes its bound NaN or minus infinity, never a number;
    looking for them would make the host wait for the device.

    Of a padded batch of sequences take the state of the last token, as the encoder with ``pooling="last"``
    does: ``head(states[torch.arange(k), mask.sum(dim=1) - 1])``.

    Examples
    --------
    >>> head = PessimisticRewardHead([1.0, 0.0], [[1.0, 0.0], [0.0, 4.0]], radius=1.0)
    >>> head(torch.tensor([[2.0, 0.0], [2.0, 2.0], [0.0, 0.0]]))
    tensor([ 0.0000, -0.2361,  0.0000])
    """

    factor: Tensor
    radius: Tensor
    reference: Tensor
    fingerprint: Tensor

    def __init__(
        self,
        coef: ArrayLike,
        information: Any,
        radius: float,
        reference: ArrayLike | None = None,
        *,
        encoder: str | None = None,
        trainable: bool = False,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        reward = PessimisticReward(coef, information, radius, reference, encoder)  # type: ignore[arg-type]
        if dtype not in _WORKING:
            raise ValueError(f"dtype is {dtype}; expected torch.float32 or torch.float64")

        def kept(values: Any) -> Tensor:
            return torch.tensor(np.asarray(values), dtype=dtype, device=device)

        self.score = _Score(kept(reward.coef[None, :]), trainable)
        self.register_buffer("factor", kept(reward.factor))
        self.register_buffer("radius", kept(reward.radius))
        self.register_buffer("reference", kept(reward.reference))
        self.register_buffer("fingerprint", _as_bytes(encoder).to(device))

    @classmethod
    def from_reward(cls, reward: PessimisticReward, **options: Any) -> PessimisticRewardHead:
        """The head of a fitted pessimistic reward.

        Parameters
        ----------
        reward : PessimisticReward
        **options
            trainable, dtype, device: see the class.

        Returns
        -------
        PessimisticRewardHead

        Raises
        ------
        ValueError
            As for the class.

        Examples
        --------
        >>> PessimisticRewardHead.from_reward(reward).d  # doctest: +SKIP
        384
        """
        return cls(
            reward.coef,
            reward.information,
            reward.radius,
            reward.reference,
            encoder=reward.encoder,
            **options,
        )

    @property
    def d(self) -> int:
        """Number of features."""
        return int(self.factor.shape[0])

    @property
    def encoder(self) -> str | None:
        """Fingerprint of the encoder, or None where it was not said."""
        return bytes(self.fingerprint.tolist()).decode("utf-8", "replace") or None

    def extra_repr(self) -> str:
        """For `repr`."""
        return f"d={self.d}"

    def forward(self, hidden: Tensor) -> Tensor:
        """Lower bounds: `lower_bound`.

        Parameters
        ----------
        hidden : Tensor, (..., d)

        Returns
        -------
        Tensor, (...)

        Raises
        ------
        ValueError
            The last axis does not have d features, or the dtype is not a floating one.

        Examples
        --------
        >>> float(PessimisticRewardHead([1.0], [[4.0]], 1.0)(torch.tensor([2.0])))
        1.0
        """
        return self.estimates(hidden).lower_bound

    def lower_bound(self, hidden: Tensor) -> Tensor:
        """Rewards less `radius` standard deviations, (...): see `estimates`.

        Examples
        --------
        >>> float(PessimisticRewardHead([1.0], [[4.0]], 1.0).lower_bound(torch.tensor([2.0])))
        1.0
        """
        return self.estimates(hidden).lower_bound

    def mean(self, hidden: Tensor) -> Tensor:
        """Rewards relative to the reference, (...): see `estimates`.

        Examples
        --------
        >>> float(PessimisticRewardHead([1.0], [[4.0]], 1.0).mean(torch.tensor([2.0])))
        2.0
        """
        return self._mean(self._difference(hidden))

    def standard_deviation(self, hidden: Tensor) -> Tensor:
        """Standard deviations of the rewards, (...): see `estimates`.

        Examples
        --------
        >>> float(PessimisticRewardHead([1.0], [[4.0]], 1.0).standard_deviation(torch.tensor([2.0])))
        1.0
        """
        return self._deviation(self._difference(hidden))

    def estimates(self, hidden: Tensor) -> HeadEstimates:
        """Mean, standard deviation and lower bound from one pass.

        Parameters
        ----------
        hidden : Tensor, (..., d)
            Of any floating dtype.

        Returns
        -------
        HeadEstimates
            Three tensors, (...), in the head's precision, on its device.

        Raises
        ------
        ValueError
            The last axis does not have d features, or the dtype is not a floating one.

        Examples
        --------
        >>> PessimisticRewardHead([1.0], [[4.0]], 1.0).estimates(torch.tensor([2.0])).mean
        tensor(2.)
        """
        difference = self._difference(hidden)
        mean, standard_deviation = self._mean(difference), self._deviation(difference)
        return HeadEstimates(mean, standard_deviation, mean - self.radius * standard_deviation)

    def _difference(self, hidden: Tensor) -> Tensor:
        if hidden.ndim == 0 or hidden.shape[-1] != self.d:
            raise ValueError(
                f"hidden has shape {tuple(hidden.shape)}; expected {self.d} features along the last axis"
            )
        if not hidden.is_floating_point():
            raise ValueError(f"hidden has dtype {hidden.dtype}; expected a floating dtype")
        return hidden.to(self.factor.dtype) - self.reference

    def _mean(self, difference: Tensor) -> Tensor:
        with _full_precision(difference):
            return difference @ self.score.weight[0]

    def _deviation(self, difference: Tensor) -> Tensor:
        with _full_precision(difference):
            # rows: z' L' = (phi - nu)'
            rows = difference.reshape(-1, self.d)
            z = torch.linalg.solve_triangular(self.factor.mT, rows, upper=True, left=False)
            square = z.square().sum(-1)
            # at the kink a constant takes the root's place, and the gradient is 0 instead of 0 / 0
            at_reference = square == 0
            root = torch.where(at_reference, torch.ones_like(square), square).sqrt()
            length = torch.where(at_reference, torch.zeros_like(square), root)
            return length.reshape(difference.shape[:-1])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        def moved(tensor: Tensor) -> Tensor:
            after = fn(tensor)
            narrowed = after.is_floating_point() and after.dtype not in _WORKING
            return tensor.to(after.device) if narrowed else after

        return cast(Any, super())._apply(moved, recurse)  # which torch does not annotate

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *arguments: Any, **options: Any
    ) -> None:
        """Refuse another encoder's state, another size or a rounded one, before anything is written."""
        state = {name: state_dict[prefix + name] for name in _AXES if prefix + name in state_dict}
        own = {"score.weight": self.score.weight, **dict(self.named_buffers(recurse=False))}
        for name, tensor in state.items():
            if name == "fingerprint":
                continue
            if tensor.shape != own[name].shape:
                raise ValueError(
                    f"{prefix}{name} has shape {tuple(tensor.shape)}; expected {tuple(own[name].shape)}"
                )
            if tensor.dtype not in _WORKING:
                raise ValueError(f"{prefix}{name} has dtype {tensor.dtype}; expected float32 or float64")
        if "fingerprint" in state:
            if not _is_name(state["fingerprint"]):
                raise ValueError(f"{prefix}fingerprint is not a row of bytes of an encoder's name")
            _check_encoder(_as_text(state["fingerprint"]), self.encoder)
            self.fingerprint = torch.empty_like(state["fingerprint"], device=self.fingerprint.device)
        super()._load_from_state_dict(state_dict, prefix, *arguments, **options)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the `state_dict` as safetensors, atomically.

        Parameters
        ----------
        path : str or path

        Raises
        ------
        OSError
            The file cannot be written.

        Examples
        --------
        >>> import tempfile, pathlib
        >>> target = pathlib.Path(tempfile.mkdtemp()) / "head.safetensors"
        >>> PessimisticRewardHead([1.0], [[4.0]], 1.0).save(target)
        >>> PessimisticRewardHead.load(target).d
        1
        """
        from safetensors.torch import save

        state = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        with atomic_write(path, "wb") as file:
            file.write(save(state, metadata={"format": "pt"}))

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        encoder: str | None = None,
        *,
        trainable: bool = False,
        device: torch.device | str | None = None,
    ) -> PessimisticRewardHead:
        """Read what `save` wrote, or `PessimisticReward.save`; nothing in the file is ever run.

        Parameters
        ----------
        path : str or path
        encoder : str, optional
            Fingerprint of the encoder whose features will be scored: a head of another is refused.
        trainable, device
            See the class.

        Returns
        -------
        PessimisticRewardHead
            With the same bits as the one saved; in float32 where a `PessimisticReward` was.

        Raises
        ------
        FileFormatError
            Not such a file, damaged, or too large.
        ValueError
            The head was saved for another encoder.

        Examples
        --------
        >>> PessimisticRewardHead.load("head.safetensors", encoder.fingerprint)  # doctest: +SKIP
        """
        try:
            form_of(path)
        except FileFormatError:
            pass  # no reward's file: a head's has the metadata that torch's readers look for
        else:
            reward = PessimisticReward.load(path, encoder)
            return cls.from_reward(reward, trainable=trainable, device=device)
        state = _read_state(path)
        _check_encoder(_as_text(state["fingerprint"]), encoder)
        d = len(state["reference"])
        head = cls(np.zeros(d), np.eye(d), 0.0, trainable=trainable, dtype=state["factor"].dtype)
        head.load_state_dict(state)
        return head.to(device) if device is not None else head


def _full_precision(tensor: Tensor) -> torch.autocast:
    """Autocast would carry out the products in half precision."""
    known = torch.amp.is_autocast_available(tensor.device.type)
    return torch.autocast(tensor.device.type if known else "cpu", enabled=False)


def _as_bytes(encoder: str | None) -> Tensor:
    """A fingerprint as a tensor, which is all that safetensors and a `state_dict` can carry."""
    return torch.tensor(list((encoder or "").encode()), dtype=torch.uint8)


def _is_name(fingerprint: Tensor) -> bool:
    row = fingerprint.dtype == torch.uint8 and fingerprint.ndim == 1
    return row and fingerprint.numel() <= _LONGEST_NAME


def _as_text(fingerprint: Tensor) -> str | None:
    return bytes(fingerprint.tolist()).decode("utf-8", "replace") or None


def _check_encoder(saved: str | None, expected: str | None) -> None:
    if expected is not None and saved != expected:
        raise ValueError(
            f"this head was saved for the encoder {saved or '(not named)'}; expected {expected}: "
            "its rewards mean nothing on the features of another"
        )


def _read_state(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a head's file, checked before anything is made of them."""
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise FileFormatError(path, None, "no such file")
    if Path(path).stat().st_size > _LARGEST:
        raise FileFormatError(path, None, f"larger than {_LARGEST} bytes, expected a reward head")
    try:
        with safe_open(path, framework="pt") as file:
            if set(file.keys()) != set(_AXES):
                raise FileFormatError(path, None, f"expected the tensors {', '.join(_AXES)}")
            state = {name: file.get_tensor(name) for name in _AXES}
    except (SafetensorError, OSError) as error:
        raise FileFormatError(path, None, f"not a safetensors file ({error})") from None
    d, dtype = state["reference"].numel(), state["factor"].dtype
    shapes = {"score.weight": (1, d), "factor": (d, d), "radius": (), "reference": (d,)}
    for name, shape in shapes.items():
        tensor = state[name]
        if d == 0 or tensor.shape != shape or tensor.dtype != dtype or dtype not in _WORKING:
            raise FileFormatError(
                path, None, f"{name} has shape {tuple(tensor.shape)} and dtype {tensor.dtype}"
            )
        if not torch.isfinite(tensor).all():
            raise FileFormatError(path, None, f"{name} holds NaN or infinity")
    if not _is_name(state["fingerprint"]):
        raise FileFormatError(path, None, "the encoder's fingerprint is not a row of bytes")
    if (
        not (state["factor"].diagonal() > 0).all()
        or state["factor"].triu(1).any()
        or not state["radius"] >= 0
    ):
        raise FileFormatError(path, None, "factor or radius is out of range")
    return state
