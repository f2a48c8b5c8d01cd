r"""The reward that the labels can vouch for, one completion at a time: what a training stack plugs in.

With the estimate theta, its information matrix M, a radius gamma and a reference point nu,

    mean = (phi - nu)'theta,  standard deviation = |phi - nu|_{M^-1},  lower bound = mean - gamma * deviation

for the features phi of a completion. The lower bound is not linear in phi, so it travels as these four and
not as a row of weights.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

import dal_native as dn
from dal_native import _validate
from dal_native.information import as_matrix

from ._files import FileFormatError
from ._reward_file import HEAD, PESSIMISTIC, REWARD, form_of, read_tensors, write_tensors
from .reward import RewardModel

__all__ = ["PessimisticReward", "RewardEstimates"]

Floats = NDArray[np.float64]


class RewardEstimates(NamedTuple):
    """What is known of the reward of some completions, relative to the reference point.

    Attributes
    ----------
    mean, standard_deviation, lower_bound : ndarray, (k,)
    """

    mean: Floats
    standard_deviation: Floats
    lower_bound: Floats


@dataclass(frozen=True, eq=False)
class PessimisticReward:
    """Mean, standard deviation and lower bound of the reward of completions.

    Parameters
    ----------
    coef : array_like, (d,)
        The estimate theta.
    information : array_like, (d, d), or InformationMatrix
        M, ridge included, on the scale of `coef`.
    radius : float
        gamma, finite and at least 0: see `confidence_radius`. A result that says which assumption it makes
        (`assumption`) hands that on.
    reference : array_like, (d,), optional
        nu; 0 by default. Labels of pairs determine differences only, so that a bound means "better than nu by
        at least".
    encoder : str, optional
        Fingerprint of the encoder that the features come from.
    least_favourable_reward : array_like, (d,), optional
        Of a policy with a temperature (see `pessimistic_policy`): a linear stand-in, for that temperature,
        base policy and prompts.
    assumption : str, optional
        What the radius rests on, one sentence.

    Attributes
    ----------
    d : int

    Raises
    ------
    ValueError
        A shape does not fit, a number is not finite or out of range.
    numpy.linalg.LinAlgError
        M is not positive definite.

    Notes
    -----
    Nothing changes after the constructor: one object may serve many threads at once. A completion's numbers
    have the same bits whatever it is batched with.

    Examples
    --------
    >>> reward = PessimisticReward([1.0, 0.9], np.diag([1.0, 100.0]), radius=1.0)
    >>> reward.lower_bound([[1.0, 0.0], [0.0, 1.0]])
    array([0. , 0.8])
    """

    coef: Floats
    information: Floats
    radius: float
    reference: Floats = None  # type: ignore[assignment]  # zeros take the place of None below
    encoder: str | None = None
    least_favourable_reward: Floats | None = None
    assumption: str | None = None
    _matrix: dn.InformationMatrix = field(init=False, repr=False)

    def __post_init__(self) -> None:
        coef = _validate.floats(self.coef, "coef", 1)
        d = len(coef)
        information = as_matrix(self.information, d)
        nu = np.zeros(d) if self.reference is None else _vector(self.reference, d, "reference")
        worst = self.least_favourable_reward
        fixed: dict[str, Any] = {
            "coef": _kept(coef),
            "information": _kept(information),
            "radius": _radius(self.radius),
            "reference": _kept(nu),
            "least_favourable_reward": None
            if worst is None
            else _kept(_vector(worst, d, "least_favourable_reward")),
            "encoder": _text(self.encoder, "encoder"),
            "assumption": _text(self.assumption or getattr(self.radius, "assumption", None), "assumption"),
            "_matrix": dn.InformationMatrix(information),
        }
        for name, value in fixed.items():
            object.__setattr__(self, name, value)

    def __reduce__(self) -> tuple[Any, ...]:
        """As its arguments: arrays that went through a pickle could be written to."""
        return type(self), tuple(getattr(self, one.name) for one in fields(self) if one.init)

    @property
    def d(self) -> int:
        """Number of features."""
        return len(self.coef)

    @property
    def factor(self) -> Floats:
        """Lower Cholesky factor of M, (d, d)."""
        return np.asarray(self._matrix.factor)

    @classmethod
    def from_model(
        cls,
        model: RewardModel,
        radius: float,
        reference: ArrayLike | None = None,
        encoder: str | None = None,
    ) -> PessimisticReward:
        """From a fitted model: its estimate, its information, the encoder that it remembers.

        Parameters
        ----------
        model : RewardModel
            Fitted.
        radius, reference
            As for the class.
        encoder : str, optional
            By default the fingerprint that the model was saved with.

        Returns
        -------
        PessimisticReward

        Raises
        ------
        ValueError
            The model is not fitted, or an argument does not fit.

        Examples
        --------
        >>> model = RewardModel().fit([[1.0]], [1])
        >>> reward = PessimisticReward.from_model(model, 2.0)
        >>> bool(reward.lower_bound([[1.0]]) == model.lower_bound([[1.0]], 2.0))
        True
        """
        model._require_fitted()
        stored = encoder if encoder is not None else getattr(model, "encoder_", None)
        return cls(model.coef_, model.information_, radius, reference, stored)  # type: ignore[arg-type]

    def with_policy(self, least_favourable_reward: ArrayLike) -> PessimisticReward:
        """The same with a policy's least favourable reward beside it.

        Examples
        --------
        >>> reward = PessimisticReward([1.0], [[1.0]], 1.0).with_policy([0.5])
        >>> reward.least_favourable_reward
        array([0.5])
        """
        worst = _vector(least_favourable_reward, self.d, "least_favourable_reward")
        return replace(self, least_favourable_reward=worst)

    # ------------------------------------------------------------------------------------------ numbers

    def estimates(self, features: Any) -> RewardEstimates:
        """Mean, standard deviation and lower bound in one pass.

        Parameters
        ----------
        features : array_like (k, d), or Pool
            phi of the completions, in any storage type of `dal_native.Pool`; of a pool of the completions of
            prompts, every completion.

        Returns
        -------
        RewardEstimates

        Raises
        ------
        ValueError
            Wrong shape, not finite, or so large that a product overflows.

        Examples
        --------
        >>> PessimisticReward([2.0], [[4.0]], 1.0, reference=[1.0]).estimates([[3.0]])._asdict()
        {'mean': array([4.]), 'standard_deviation': array([1.]), 'lower_bound': array([3.])}
        """
        rows = self._rows(features)
        mean, deviation = np.empty(len(rows)), np.empty(len(rows))
        for start, stop, block in rows.blocks():
            away = dn.Pool(block - self.reference)
            mean[start:stop] = dn.margin(away, self.coef)
            deviation[start:stop] = np.sqrt(dn.leverage(away, self._matrix))
        return RewardEstimates(mean, deviation, self._bound(mean, deviation))

    def mean(self, features: Any) -> Floats:
        """(phi - nu)'theta of completions, (k,): the estimate alone.

        Examples
        --------
        >>> PessimisticReward([2.0], [[4.0]], 1.0).mean([[3.0]])
        array([6.])
        """
        return self._product(features, self.coef)

    def standard_deviation(self, features: Any) -> Floats:
        """|phi - nu|_{M^-1} of completions, (k,).

        Examples
        --------
        >>> PessimisticReward([2.0], [[4.0]], 1.0).standard_deviation([[3.0]])
        array([1.5])
        """
        return self.estimates(features).standard_deviation

    def lower_bound(self, features: Any) -> Floats:
        """(phi - nu)'theta - radius |phi - nu|_{M^-1} of completions, (k,).

        Examples
        --------
        >>> PessimisticReward([2.0], [[4.0]], 1.0).lower_bound([[3.0]])
        array([4.5])
        """
        return self.estimates(features).lower_bound

    def least_favourable(self, features: Any) -> Floats:
        """(phi - nu)'theta_LF of completions, (k,), theta_LF the policy's least favourable reward.

        Raises
        ------
        ValueError
            There is none.

        Examples
        --------
        >>> PessimisticReward([2.0], [[4.0]], 1.0).with_policy([0.5]).least_favourable([[3.0]])
        array([1.5])
        """
        if self.least_favourable_reward is None:
            raise ValueError("no least favourable reward is known; expected one of pessimistic_policy")
        return self._product(features, self.least_favourable_reward)

    def _bound(self, mean: Floats, deviation: Floats) -> Floats:
        """mean - gamma * deviation, (k,)."""
        with np.errstate(over="ignore"):
            bound = mean - self.radius * deviation
        if not np.isfinite(bound).all():
            row = int(np.argmin(np.isfinite(bound)))
            raise ValueError(f"the lower bound of row {row} overflows; expected a smaller radius or features")
        return np.asarray(bound)

    def _product(self, features: Any, theta: Floats) -> Floats:
        """(phi - nu)'theta, subtracted row by row."""
        rows = self._rows(features)
        product = np.empty(len(rows))
        for start, stop, block in rows.blocks():
            product[start:stop] = dn.margin(block - self.reference, theta)
        return product

    def _rows(self, features: Any) -> dn.Pool:
        rows = features if isinstance(features, dn.Pool) else dn.Pool(features)
        if rows.prompt_offsets is not None:
            rows = rows.completions
        if rows.d != self.d:
            raise ValueError(f"features have {rows.d} columns; expected {self.d}, as the reward")
        return rows

    # -------------------------------------------------------------------------------------------- files

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write as safetensors with JSON metadata.

        The tensors are `score.weight` (1, d), `information`, `factor`, `reference` and, where known,
        `least_favourable_reward`, all float64.

        Parameters
        ----------
        path : str or path
            Replaced as a whole, or not at all.

        Examples
        --------
        >>> import tempfile, pathlib
        >>> target = pathlib.Path(tempfile.mkdtemp()) / "pessimistic.safetensors"
        >>> PessimisticReward([2.0], [[4.0]], 1.0, encoder="abc").save(target)
        >>> PessimisticReward.load(target, encoder="abc").radius
        1.0
        """
        tensors = {
            HEAD: self.coef[None, :],
            "information": self.information,
            "factor": self.factor,
            "reference": self.reference,
        }
        if self.least_favourable_reward is not None:
            tensors["least_favourable_reward"] = self.least_favourable_reward
        facts = {"radius": self.radius, "encoder": self.encoder, "assumption": self.assumption}
        write_tensors(path, tensors, facts, PESSIMISTIC)

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], encoder: str | None = None, radius: float | None = None
    ) -> PessimisticReward:
        """Read what `save` wrote, or a fitted model's file together with a radius.

        Parameters
        ----------
        path : str or path
        encoder : str, optional
            Fingerprint of the encoder in use: a reward made with another one is refused.
        radius : float, optional
            Takes the place of the stored one and of its assumption; needed for the file of a `RewardModel`,
            which has none.

        Returns
        -------
        PessimisticReward

        Raises
        ------
        FileFormatError
            Not such a file, damaged, from a newer version, or made with another encoder.
        ValueError
            No radius is known.
        """
        if radius is not None:
            _radius(radius)  # what is wrong with it is not the file's fault
        if form_of(path) == REWARD.name:
            if radius is None:
                raise ValueError(
                    f"{path}: holds a fitted reward without a radius; expected radius to be given"
                )
            return cls.from_model(RewardModel.load(path, encoder=encoder), radius)
        tensors, facts = read_tensors(path, PESSIMISTIC)
        stored = facts.get("encoder")
        if encoder is not None and stored != encoder:
            raise FileFormatError(
                path,
                None,
                f"made with encoder {stored!r}, expected {encoder!r}: the features would not mean the same",
            )
        try:
            return cls(
                _head(tensors),
                tensors["information"],
                facts["radius"] if radius is None else radius,
                tensors["reference"],
                stored,
                tensors.get("least_favourable_reward"),
                facts.get("assumption") if radius is None else None,
            )
        except KeyError as error:
            raise FileFormatError(path, None, f"{error.args[0]} is missing") from None
        except (ValueError, np.linalg.LinAlgError) as error:
            raise FileFormatError(path, None, str(error)) from None


def _head(tensors: dict[str, Floats]) -> Floats:
    head = tensors[HEAD]
    if head.ndim != 2 or len(head) != 1:
        raise ValueError(f"{HEAD} has shape {head.shape}; expected one row")
    return np.asarray(head[0])


def _vector(values: Any, d: int, name: str) -> Floats:
    vector = np.asarray(_validate.floats(values, name, 1))
    _validate.length(vector, d, name, "feature")
    return vector


def _radius(value: Any) -> float:
    """A finite number of at least 0, or an object that stands for one."""
    given = float(value) if hasattr(value, "assumption") else value
    return _validate.number(given, "radius", 0.0)


def _text(value: Any, name: str) -> str | None:
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{name} is a {type(value).__name__}; expected text")
    return value


def _kept(array: Floats) -> Floats:
    """A copy that nobody writes to."""
    copy = np.array(array, np.float64)
    copy.setflags(write=False)
    return copy
