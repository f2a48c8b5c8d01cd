"""What the labels say of reward and rationalities together, for batches where the latter are a nuisance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dal_native import _validate

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class JointInformation:
    """Covariance A^-1 of (theta, rationalities), A their joint information where the scale is held fixed.

    One label of teacher j in category c adds v g g' to A, with g = (beta x, u e_k), v = s(beta u) s(-beta u)
    and k the cell of (j, c): coordinates are the reward and beta itself, not its logarithm (from log beta,
    multiply the rows and columns of a cell by its beta).

    Parameters
    ----------
    theta : array_like, (d, d)
        Of the reward; positive definite.
    cross : array_like, (d, K)
        Between the reward and the rationality of each cell.
    rationality : array_like, (K, K)
        Of the rationalities; may be singular along the direction that fixes the scale.
    cell : array_like of int, (m, C) or (m,)
        Where teacher j in category c stands among the K; -1: a cell without labels so far, independent of
        everything else. Cells may be shared; with (m,) a teacher has one in all categories.
    prior_variance : float or array_like, (m, C) or (m,), optional
        Variance of the rationality of cells without labels, at least 0; needed where there are any.

    Raises
    ------
    ValueError
        For arrays that do not fit together, by name.

    Examples
    --------
    >>> import dal_native as dn, numpy as np
    >>> joint = dn.JointInformation(np.eye(2), np.zeros((2, 1)), [[0.3]], [[0], [-1]], prior_variance=0.5)
    >>> joint.theta.shape, joint.cross.shape
    ((2, 2), (2, 1))
    """

    theta: Any
    cross: Any
    rationality: Any
    cell: Any
    prior_variance: Any = None

    def __post_init__(self) -> None:
        theta = _validate.symmetric(self.theta, None, "theta")
        cross = _validate.floats(self.cross, "cross", 2)
        _validate.length(cross, len(theta), "cross", "feature")
        cells = cross.shape[1]
        rationality = _validate.floats(self.rationality, "rationality", 2)
        if rationality.shape != (cells, cells):
            raise ValueError(
                f"rationality has shape {rationality.shape}; expected ({cells}, {cells}), as cross says"
            )
        if cells:
            rationality = _validate.symmetric(rationality, cells, "rationality")
        cell = _validate.integers(self.cell, "cell", (1, 2))
        if cell.size == 0:
            raise ValueError(f"cell is empty (shape {cell.shape}); expected one entry for each teacher")
        if int(cell.min()) < -1 or int(cell.max()) >= cells:
            bad = int(cell.min()) if int(cell.min()) < -1 else int(cell.max())
            raise ValueError(f"cell holds {bad}; expected cells between 0 and {cells - 1}, or -1")
        kept: dict[str, Any] = {"theta": theta, "cross": cross, "rationality": rationality, "cell": cell}
        kept["prior_variance"] = _prior_variance(self.prior_variance, cell)
        for name, value in kept.items():
            object.__setattr__(self, name, value)

    @classmethod
    def from_inverse(cls, inverse: Any, d: int, cell: Any, prior_variance: Any = None) -> JointInformation:
        """The same from A^-1 in one piece, (d + K, d + K): the d coordinates of the reward first.

        Examples
        --------
        >>> import dal_native as dn, numpy as np
        >>> dn.JointInformation.from_inverse(np.eye(3), 2, [0]).rationality
        array([[1.]])
        """
        whole = _validate.symmetric(inverse, None, "inverse")
        d = _validate.whole(d, "d", 1)
        if d > len(whole):
            raise ValueError(f"inverse has shape {whole.shape}; expected at least d = {d} rows")
        return cls(whole[:d, :d], whole[:d, d:], whole[d:, d:], cell, prior_variance)


def _prior_variance(values: Any, cell: Integers) -> Floats | None:
    """As many as cells, or None where none is asked for."""
    if values is None:
        if int(cell.min()) < 0:
            raise ValueError("prior_variance is None; expected a variance, because cell holds -1")
        return None
    variance = _validate.floats(values, "prior_variance", (0, 1, 2))
    if variance.ndim not in (0, cell.ndim) or variance.shape not in ((), cell.shape):
        raise ValueError(
            f"prior_variance has shape {variance.shape}; expected a number or {cell.shape}, as cell"
        )
    if float(variance.min()) < 0.0:
        raise ValueError(f"prior_variance holds {float(variance.min()):g}; expected at least 0")
    return np.ascontiguousarray(np.broadcast_to(variance, cell.shape))
