"""How large the confidence set is: from the chance of missing the truth to a radius."""

from __future__ import annotations

import numpy as np
from scipy.special import chdtri, ndtri

from dal_native import _validate

__all__ = ["confidence_radius"]


def confidence_radius(
    d: int,
    delta: float,
    kind: str = "ellipsoid",
    ridge: float | None = None,
    reward_norm: float | None = None,
) -> float:
    """Radius of the confidence set, in standard errors of the fit.

    Parameters
    ----------
    d : int
        Number of features.
    delta : float
        Probability, in (0, 1), that the truth may lie outside; at most 0.5 for ``kind="policy"``.
    kind : {"ellipsoid", "policy"}
        "ellipsoid": sqrt(chi2_d(1 - delta)), holds for all policies at once, also for one chosen from the
        labels. "policy": the one-sided normal quantile, holds only for one policy fixed before the labels
        were seen.
    ridge, reward_norm : float, optional
        The ridge lambda inside M and a bound S >= |theta*|: adds sqrt(lambda) S, the bias of the ridge,
        without which coverage falls far below nominal while labels are few. Give both or neither.

    Returns
    -------
    float
        The radius, in units of |.|_M.

    Raises
    ------
    ValueError
        An argument is out of range, or only one of `ridge` and `reward_norm` is given.

    Notes
    -----
    Asymptotic in the number of labels, and unproved where the pairs were chosen adaptively.

    Examples
    --------
    >>> round(confidence_radius(2, 0.05), 4)
    2.4477
    >>> round(confidence_radius(2, 0.05, kind="policy"), 4)
    1.6449
    """
    d = _validate.whole(d, "d", 1)
    kind = _validate.one_of(kind, "kind", ("ellipsoid", "policy"))
    delta = _validate.number(delta, "delta")
    largest = 0.5 if kind == "policy" else 1.0
    if not 0.0 < delta <= largest or delta == 1.0:
        raise ValueError(
            f"delta is {delta:g}; expected a probability in (0, {largest:g}{']' if kind == 'policy' else ')'}"
        )
    if (ridge is None) != (reward_norm is None):
        raise ValueError("ridge and reward_norm must be given together; expected both or neither")
    radius = float(np.sqrt(chdtri(d, delta))) if kind == "ellipsoid" else float(-ndtri(delta))
    if ridge is not None:
        radius += float(np.sqrt(_validate.number(ridge, "ridge", 0.0))) * _validate.number(
            reward_norm, "reward_norm", 0.0
        )
    return radius
