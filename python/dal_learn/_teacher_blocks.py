"""The parameters of teachers, psi = (log|beta| of every cell, position biases): prior, curvature in blocks.

Teachers meet only through theta, so every matrix over psi is block diagonal, one block per teacher, padded to
the largest with ones on the diagonal. With tau = `scale` and rho = `correlation` the prior is

    Cov(b_jcw, b_jc'w') = (tau^2 + drift^2 min(w, w')) (rho + (1 - rho) [c = c'])
    Var(bias_j)         = position_bias^2

a walk from round 0; rho is what the categories of a teacher have in common.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["BlockFactor", "TeacherBlocks"]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


class BlockFactor:
    """A positive definite block-diagonal matrix, ready to solve with.

    Parameters
    ----------
    blocks : TeacherBlocks
        Which parameter sits where.
    matrices : ndarray, (J, s, s)

    Raises
    ------
    numpy.linalg.LinAlgError
        A block is not positive definite.
    """

    def __init__(self, blocks: TeacherBlocks, matrices: Floats) -> None:
        self.blocks, self.matrices = blocks, matrices
        if matrices.shape[1] == 1:
            if matrices.min(initial=1.0) <= 0:
                raise np.linalg.LinAlgError("a block is not positive")
        else:
            self.factor = np.linalg.cholesky(matrices)

    def solve(self, right: Floats) -> Floats:
        """Matrix^-1 right, (P, k)."""
        if self.matrices.shape[1] == 1:
            return np.asarray(right / self.matrices[self.blocks.block, 0, 0][:, None])
        solved = np.linalg.solve(self.matrices, self.blocks.gathered(right))
        return np.asarray(solved[self.blocks.block, self.blocks.slot])

    def log_det(self) -> float:
        if self.matrices.shape[1] == 1:
            return float(np.log(self.matrices).sum())
        return 2 * float(np.log(np.diagonal(self.factor, axis1=1, axis2=2)).sum())

    def inverse_diagonal(self) -> Floats:
        """Diagonal of the inverse, (P,)."""
        if self.matrices.shape[1] == 1:
            return np.asarray(1 / self.matrices[self.blocks.block, 0, 0])
        diagonal = np.diagonal(np.linalg.inv(self.matrices), axis1=1, axis2=2)
        return np.asarray(diagonal[self.blocks.block, self.blocks.slot])


@dataclass(frozen=True)
class TeacherBlocks:
    """Where every parameter of psi sits, and the prior's precision.

    Parameters
    ----------
    block, slot : ndarray of int64, (P,)
        Teacher and place in the teacher's block of each parameter.
    prior : ndarray, (J, s, s)
        Precision; the identity on padding.
    n_cells : int
        The first so many parameters are logarithms of rationalities.
    """

    block: Integers
    slot: Integers
    prior: Floats
    n_cells: int

    @classmethod
    def of(
        cls,
        teacher: Integers,
        category: Integers,
        window: Integers,
        biased: Integers,
        *,
        scale: float,
        correlation: float,
        drift: float,
        position_bias: float,
    ) -> TeacherBlocks:
        """Blocks of cells (teacher, category, window), and of one bias for each teacher in `biased`.

        Parameters
        ----------
        teacher, category, window : ndarray of int64, (K,)
            Of each cell; K may be 0.
        biased : ndarray of int64
            Teachers with a position bias.
        scale, correlation, drift, position_bias : float
            tau, rho, standard deviation of a step of the walk, and of a bias.

        Returns
        -------
        TeacherBlocks

        Examples
        --------
        >>> j, c, w = np.array([0, 0, 1]), np.array([0, 1, 0]), np.zeros(3, int)
        >>> none = np.zeros(0, int)
        >>> b = TeacherBlocks.of(
        ...     j, c, w, none, scale=1.0, correlation=0.5, drift=0.0, position_bias=0.0
        ... )
        >>> np.linalg.inv(b.prior)[0].round(6).tolist()
        [[1.0, 0.5], [0.5, 1.0]]
        """
        owner = np.concatenate([teacher, biased])
        _, block = np.unique(owner, return_inverse=True)
        slot = _position_within(block)
        n_blocks, size = int(block.max(initial=-1)) + 1, int(slot.max(initial=0)) + 1
        covariance = np.broadcast_to(np.eye(size), (n_blocks, size, size)).copy()
        kind = np.concatenate([category, np.full(len(biased), -1)])
        when = np.concatenate([window, np.zeros(len(biased), np.int64)])
        at = np.full((n_blocks, size), -1)
        at[block, slot] = np.arange(len(owner))
        filled = at >= 0
        c, w = np.where(filled, kind[at], -2), np.where(filled, when[at], 0)
        cells = filled & (c >= 0)
        both = cells[:, :, None] & cells[:, None, :]
        walked = scale**2 + drift**2 * np.minimum(w[:, :, None], w[:, None, :])
        shared = walked * (correlation + (1 - correlation) * (c[:, :, None] == c[:, None, :]))
        covariance[both] = shared[both]
        bias = filled & (c == -1)
        covariance[bias, :] = np.eye(size)[np.nonzero(bias)[1]] * position_bias**2
        prior = 1 / covariance if size == 1 else np.linalg.inv(covariance)
        return cls(block, slot, (prior + prior.transpose(0, 2, 1)) / 2, len(teacher))

    @property
    def size(self) -> int:
        """P."""
        return len(self.block)

    @property
    def partner(self) -> Integers:
        """The bias of each cell's teacher, as an index into psi: (n_cells,); -1 where there is none."""
        owner = np.full(self.prior.shape[0], -1)
        owner[self.block[self.n_cells :]] = np.arange(self.n_cells, self.size)
        return owner[self.block[: self.n_cells]]

    def anchor(self, held: bool) -> Floats:
        """1 for the logarithms of rationalities if their sum is held at 0, else 0: (P,)."""
        return (np.arange(self.size) < self.n_cells * held).astype(np.float64)

    def gathered(self, values: Floats) -> Floats:
        """Rows (P, k) in their places, zeros on padding: (J, s, k)."""
        out = np.zeros((*self.prior.shape[:2], values.shape[1]))
        out[self.block, self.slot] = values
        return out

    def applied(self, psi: Floats) -> Floats:
        """Prior precision times psi, (P,)."""
        if self.prior.shape[1] == 1:
            return np.asarray(self.prior[self.block, 0, 0] * psi)
        product = self.prior @ self.gathered(psi[:, None])
        return np.asarray(product[self.block, self.slot, 0])

    def factor(self, diagonal: Floats, coupling: Floats, partner: Integers) -> BlockFactor:
        """Prior precision plus curvature: `diagonal` (P,), and `coupling` (n,) of cell n with bias `partner`.

        Raises
        ------
        numpy.linalg.LinAlgError
            The sum is not positive definite.
        """
        matrices = self.prior.copy()
        matrices[self.block, self.slot, self.slot] += diagonal
        if len(coupling):
            block, a, b = self.block[: len(coupling)], self.slot[: len(coupling)], self.slot[partner]
            matrices[block, a, b] += coupling
            matrices[block, b, a] += coupling
        return BlockFactor(self, matrices)


def _position_within(group: Integers) -> Integers:
    """0, 1, 2, ... within each group, in order of appearance."""
    order = np.argsort(group, kind="stable")
    start = np.flatnonzero(np.diff(group[order], prepend=-1))
    position = np.empty(len(group), np.int64)
    position[order] = np.arange(len(group)) - np.repeat(start, np.diff(start, append=len(group)))
    return position
