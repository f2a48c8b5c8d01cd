"""How likely an answer is, as a sum of softplus functions: every outcome model is one declared piece.

With t = beta u + bias, sp(t) = log(1 + e^t), s = sp' and a label y in [0, 1] the log likelihood is

    l(t) = constant + A t - sum_k a_k sp(t + shift_k)

    logistic      l = y t - sp(t)
    lapses        l = log(eps/2) + y sp(t + k) + (1 - y) (sp(t - k) + k) - sp(t),     k = log((2 - eps) / eps)
    Rao-Kupper    l = A (t - sp(t - eta)) - B sp(t + eta) + tie (log(e^(2 eta) - 1) - eta) - y eta,
                  A = y + tie, B = 1 - y + tie over wins y of b, 1 - y of a, and ties (y = 1/2: A = B = 1)

so that Gaussian means of l and of its derivatives follow from five moments of the softplus.

P. V. Rao and L. L. Kupper, *Ties in paired-comparison experiments*, J. Amer. Statist. Assoc. 62 (1967).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import scipy.optimize
from numpy.typing import NDArray

import dal_native as dn

__all__ = ["Lapsing", "Link", "Logistic", "RaoKupper", "Terms"]

Floats = NDArray[np.float64]

_LEAST_LAPSE, _MOST_LAPSE = 1e-6, 0.9
_LAPSES = 10.0  # prior Beta(1, 10) of a share to be fitted: 0.07 in the median, 0.26 at most in 19 of 20
_LEAST_THRESHOLD, _MOST_THRESHOLD = 1e-9, 20.0


class Moments(NamedTuple):
    """Means under t ~ N(mean, sd^2): E sp(t), E s(t), E s'(t), E t s'(t), E t^2 s'(t)."""

    softplus: Floats
    logistic: Floats
    slope: Floats
    slope_1: Floats
    slope_2: Floats


def softplus_moments(mean: Floats, sd: Floats) -> Moments:
    return Moments(*dn.softplus_moments(mean, sd))


@dataclass(frozen=True)
class Terms:
    """E l, E l', E l'', E t l', E t^2 l'', E t l'' of each answer."""

    likelihood: Floats
    first: Floats
    second: Floats
    first_1: Floats
    second_2: Floats
    second_1: Floats


class Link(Protocol):
    """One outcome model.

    Attributes
    ----------
    shape : float or None
        The model's own parameter.
    free : bool
        Whether it is to be fitted.
    concave : bool
        Whether l'' is never positive.
    log_prior : float
        Of the shape, up to a constant; 0 where it is not fitted.
    """

    @property
    def shape(self) -> float | None: ...
    @property
    def free(self) -> bool: ...
    @property
    def concave(self) -> bool: ...
    @property
    def log_prior(self) -> float: ...

    def terms(self, mean: Floats, sd: Floats, label: Floats) -> Terms:
        """Means under t ~ N(mean, sd^2) of the log likelihood and its derivatives."""
        ...

    def fitted(self, mean: Floats, sd: Floats, label: Floats, weight: Floats) -> Link:
        """The same model with the shape that makes sum weight E l largest."""
        ...

    def held(self) -> Link:
        """The same model with its shape no longer to be fitted."""
        ...

    def fisher(self, t: Floats) -> Floats:
        """Fisher information of one answer on t."""
        ...


class Logistic:
    """Two outcomes, no more parameters.

    Examples
    --------
    >>> terms = Logistic().terms(np.array([0.0]), np.array([0.0]), np.array([1.0]))
    >>> float(terms.first[0]), float(terms.second[0])
    (0.5, -0.25)
    """

    shape: float | None = None
    free = False
    concave = True
    log_prior = 0.0

    def terms(self, mean: Floats, sd: Floats, label: Floats) -> Terms:
        # Look at every answer from the side that lost: then a sure answer's l = -sp(t) keeps its last digits.
        side = np.where(label > 0.5, -1.0, 1.0)
        y, mu = np.where(label > 0.5, 1 - label, label), side * mean
        centre = softplus_moments(mu, sd)
        tilt = mu * centre.logistic + sd * sd * centre.slope  # E t s(t), by Stein's identity
        return Terms(
            y * mu - centre.softplus,
            side * (y - centre.logistic),
            -centre.slope,
            y * mu - tilt,
            -centre.slope_2,
            -side * centre.slope_1,
        )

    def fitted(self, mean: Floats, sd: Floats, label: Floats, weight: Floats) -> Link:
        return self

    def held(self) -> Link:
        return self

    def fisher(self, t: Floats) -> Floats:
        e = np.exp(-np.abs(t))
        return np.asarray(e / (1 + e) ** 2)


class Lapsing:
    """A share of the answers is given by a coin: P = lapse/2 + (1 - lapse) s(t).

    Where no teacher is ever sure, |t| small, a lapse and a smaller rationality say the same, and the prior
    Beta(1, 10) decides.

    Parameters
    ----------
    shape : float
        The share, in (0, 1).
    free : bool
        Fit it.

    Examples
    --------
    >>> terms = Lapsing(0.5).terms(np.array([40.0]), np.array([0.0]), np.array([0.0]))
    >>> round(float(np.exp(terms.likelihood[0])), 6)
    0.25
    """

    concave = False

    def __init__(self, shape: float, free: bool = False) -> None:
        self.shape, self.free = shape, free

    @property
    def log_prior(self) -> float:
        return (_LAPSES - 1) * float(np.log1p(-self.shape)) if self.free else 0.0

    def terms(self, mean: Floats, sd: Floats, label: Floats) -> Terms:
        side = np.where(label > 0.5, -1.0, 1.0)
        y, mu, variance = np.where(label > 0.5, 1 - label, label), side * mean, sd * sd
        centre = softplus_moments(mu, sd)
        tilt = mu * centre.logistic + variance * centre.slope
        k = _odds(self.shape)
        parts = [(y, softplus_moments(mu + k, sd), k), (1 - y, softplus_moments(mu - k, sd), -k)]
        likelihood = np.log(self.shape / 2) + (1 - y) * k - centre.softplus
        first, second, first_1 = -centre.logistic, -centre.slope, -tilt
        second_1, second_2 = -centre.slope_1, -centre.slope_2
        for share, at, shift in parts:  # t = (t + shift) - shift in the weighted means
            likelihood = likelihood + share * at.softplus
            first = first + share * at.logistic
            second = second + share * at.slope
            first_1 = first_1 + share * (mu * at.logistic + variance * at.slope)
            second_1 = second_1 + share * (at.slope_1 - shift * at.slope)
            second_2 = second_2 + share * (at.slope_2 - 2 * shift * at.slope_1 + shift * shift * at.slope)
        return Terms(likelihood, side * first, second, first_1, second_2, side * second_1)

    def fitted(self, mean: Floats, sd: Floats, label: Floats, weight: Floats) -> Link:
        if not self.free:
            return self

        def slope(eps: float) -> float:
            k = _odds(eps)
            up, down = softplus_moments(mean + k, sd).logistic, softplus_moments(mean - k, sd).logistic
            change = label * up + (1 - label) * (1 - down)
            told = float(weight @ (1 / eps - 2 / (eps * (2 - eps)) * change))
            return told - (_LAPSES - 1) / (1 - eps)

        return Lapsing(_root(slope, _LEAST_LAPSE, _MOST_LAPSE), True)

    def held(self) -> Link:
        return Lapsing(self.shape)

    def fisher(self, t: Floats) -> Floats:
        """p'^2 / (p (1 - p))."""
        e = np.exp(-np.abs(t))
        slope = e / (1 + e) ** 2
        chance = self.shape / 2 + (1 - self.shape) * e / (1 + e)  # of the less likely answer
        return np.asarray((1 - self.shape) ** 2 * slope**2 / (chance * (1 - chance)))


class RaoKupper:
    """Three outcomes: b wins with s(t - eta), a with s(-t - eta), else a tie (a label of exactly 1/2).

    Parameters
    ----------
    shape : float
        eta, above 0.
    free : bool
        Fit it.

    Examples
    --------
    >>> terms = RaoKupper(1.0).terms(np.zeros(3), np.zeros(3), np.array([0.0, 0.5, 1.0]))
    >>> np.exp(terms.likelihood).sum().round(12)
    np.float64(1.0)
    """

    concave = True
    log_prior = 0.0

    def __init__(self, shape: float, free: bool = False) -> None:
        self.shape, self.free = shape, free

    def terms(self, mean: Floats, sd: Floats, label: Floats) -> Terms:
        eta, variance = self.shape, sd * sd
        tie = label == 0.5
        wins, losses = np.where(tie, 1.0, label), np.where(tie, 1.0, 1 - label)
        # -sp(t + eta) for a's side; t - sp(t - eta) = eta - sp(-(t - eta)) for b's: both keep their digits
        low, high = softplus_moments(eta - mean, sd), softplus_moments(mean + eta, sd)
        likelihood = -wins * low.softplus - losses * high.softplus + tie * _log_expm1(2 * eta)
        first = wins * low.logistic - losses * high.logistic
        second = -wins * low.slope - losses * high.slope
        first_1 = wins * (mean * low.logistic - variance * low.slope)
        first_1 = first_1 - losses * (mean * high.logistic + variance * high.slope)
        # low is a law of r = eta - t: t = eta - r; high one of r = t + eta: t = r - eta
        second_1 = -wins * (eta * low.slope - low.slope_1) - losses * (high.slope_1 - eta * high.slope)
        second_2 = -wins * (eta**2 * low.slope - 2 * eta * low.slope_1 + low.slope_2)
        second_2 = second_2 - losses * (high.slope_2 - 2 * eta * high.slope_1 + eta**2 * high.slope)
        return Terms(likelihood, first, second, first_1, second_2, second_1)

    def fitted(self, mean: Floats, sd: Floats, label: Floats, weight: Floats) -> Link:
        if not self.free:
            return self
        tie = label == 0.5
        wins, losses = weight * np.where(tie, 1.0, label), weight * np.where(tie, 1.0, 1 - label)
        ties = float(weight @ tie)

        def slope(eta: float) -> float:
            low, high = softplus_moments(eta - mean, sd).logistic, softplus_moments(mean + eta, sd).logistic
            return float(2 * ties / -np.expm1(-2 * eta) - wins @ low - losses @ high)

        return RaoKupper(_root(slope, _LEAST_THRESHOLD, _MOST_THRESHOLD), True)

    def held(self) -> Link:
        return RaoKupper(self.shape)

    def fisher(self, t: Floats) -> Floats:
        """-E l'' over the three outcomes."""
        low, high = _logistic(self.shape - t), _logistic(t + self.shape)
        b, a = 1 - low, 1 - high
        return np.asarray((1 - a) * low * b + (1 - b) * high * a)


def _odds(eps: float) -> float:
    return float(np.log(2 - eps) - np.log(eps))


def _log_expm1(x: float) -> float:
    """log(e^x - 1) for x > 0."""
    return float(x + np.log(-np.expm1(-x)))


def _logistic(t: Floats) -> Floats:
    e = np.exp(-np.abs(t))
    return np.asarray(np.where(t >= 0, 1.0, e) / (1 + e))


def _root(slope: object, low: float, high: float) -> float:
    """Where a falling slope is 0, or the end it points to."""
    assert callable(slope)
    if slope(low) <= 0:
        return low
    if slope(high) >= 0:
        return high
    return float(scipy.optimize.brentq(slope, low, high, xtol=1e-13, rtol=1e-13))
