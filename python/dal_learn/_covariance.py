"""Covariance of (theta, psi) from the anchored information, and what follows for cells without labels."""

from __future__ import annotations

import numpy as np
import scipy.linalg
from numpy.typing import NDArray

from ._teacher_blocks import BlockFactor

__all__ = ["JointCovariance", "prior_covariance"]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


class JointCovariance:
    """Inverse of [[M, P'], [P, D]] within anchor'psi = 0, without ever forming its P x P corner.

    Parameters
    ----------
    information : ndarray, (d, d)
        M.
    cross : ndarray, (P, d)
    own : BlockFactor
        D.
    anchor : ndarray, (P,)
        1 for the parameters whose sum is held at 0, else 0.

    Attributes
    ----------
    top : ndarray, (d, d)
        Covariance of theta.
    side : ndarray, (P, d)
        Covariance of psi with theta.
    """

    def __init__(self, information: Floats, cross: Floats, own: BlockFactor, anchor: Floats) -> None:
        self.own = own
        scaled = own.solve(cross) if len(cross) else cross  # D^-1 P
        schur = information - cross.T @ scaled
        lower = scipy.linalg.cholesky(schur, lower=True)
        self.top = _inverse(lower)
        self.log_det = 2 * float(np.log(np.diag(lower)).sum()) + (own.log_det() if len(cross) else 0.0)
        self.half = scipy.linalg.solve_triangular(lower, scaled.T, lower=True)  # corner: D^-1 + half'half
        self.side = -(self.top @ scaled.T).T
        self.total, self.spread = np.zeros(len(cross)), 1.0
        if anchor.any():
            self.total = own.solve(anchor[:, None])[:, 0] + self.half.T @ (
                self.half @ anchor
            )  # corner anchor
            self.spread = float(anchor @ self.total)
            lean = self.side.T @ anchor  # (theta, psi) covariance, times the anchor
            self.side = self.side - np.outer(self.total, lean) / self.spread
            self.top = self.top - np.outer(lean, lean) / self.spread
            self.log_det += np.log(self.spread)

    def variance(self) -> Floats:
        """Of psi, (P,)."""
        variance = self.own.inverse_diagonal() + np.einsum("ij,ij->j", self.half, self.half)
        return np.asarray(np.maximum(variance - self.total**2 / self.spread, 0.0))

    def corner(self, index: Integers) -> Floats:
        """Covariance of some of psi, (k, k)."""
        pick = np.zeros((len(self.total), len(index)))
        pick[index, np.arange(len(index))] = 1.0
        half = self.half[:, index]
        corner = self.own.solve(pick)[index] + half.T @ half
        corner -= np.outer(self.total[index], self.total[index]) / self.spread
        return np.asarray((corner + corner.T) / 2)


def prior_covariance(
    category: Integers,
    window: Integers,
    other_category: Integers,
    other_window: Integers,
    scale: float,
    correlation: float,
    drift: float,
) -> Floats:
    """Prior covariance of log|beta| between cells of one teacher, (k, l); see `_teacher_blocks`.

    Parameters
    ----------
    category, window : ndarray of int64, (k,)
    other_category, other_window : ndarray of int64, (l,)
    scale, correlation, drift : float

    Returns
    -------
    ndarray, (k, l)
    """
    same = category[:, None] == other_category[None, :]
    walked = scale**2 + drift**2 * np.minimum(window[:, None], other_window[None, :])
    return np.asarray(walked * (correlation + (1 - correlation) * same))


def _inverse(lower: Floats) -> Floats:
    """(L L')^-1, exactly symmetric."""
    inverse = scipy.linalg.cho_solve((lower, True), np.eye(len(lower)))
    return np.asarray((inverse + inverse.T) / 2)
