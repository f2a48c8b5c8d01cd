"""Our fit of the peers' problems, as `Learnt`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import dal_learn as dl
from benchmarks.reward_peers.problems import Comparisons, Differences, Learnt, logistic


def facts(model: dl.RewardModel) -> dict[str, Any]:
    return {
        "iterations": int(model.n_iter_),
        "converged": bool(model.converged_),
        "gradient_in_sd": float(model.gradient_norm_),
        "ridge": float(model.ridge_),
        "rationality_scale": float(model.rationality_scale_),
        "lapse": float(model.lapse_),
    }


def _learnt(model: dl.RewardModel, chance: Callable[[], np.ndarray], log_rationality: np.ndarray) -> Learnt:
    known = None if model.method == "homogeneous" else log_rationality
    return Learnt(model.coef_, chance, known, known, lambda: facts(model))


def on_items(given: Comparisons, **options: Any) -> Callable[[], Learnt]:
    """What fits scores of items: a linear reward of which item it is. The rows are made beforehand."""
    rows, held = _one_hot(given.pair, given.items), _one_hot(given.held_pair, given.items)

    def fit() -> Learnt:
        model = dl.RewardModel(given.ridge, **options)
        model.fit(rows, given.choice, given.teacher, n_teachers=given.teachers)

        def chance() -> np.ndarray:
            return np.asarray(model.predict_proba(held, given.held_teacher)[:, 1])

        return _learnt(model, chance, np.log(np.abs(model.rationality_[:, 0])))

    return fit


def _one_hot(pair: np.ndarray, items: int) -> np.ndarray:
    rows, each = np.zeros((len(pair), items)), np.arange(len(pair))
    rows[each, pair[:, 1]] += 1
    rows[each, pair[:, 0]] -= 1
    return rows


def on_differences(
    given: Differences, knows: str = "teacher x category", averaged: bool = False, **options: Any
) -> Callable[[], Learnt]:
    """What fits theta.

    Parameters
    ----------
    given : Differences
    knows : {"nothing", "teacher", "teacher x category"}
        What the rationality may depend on.
    averaged : bool
        Predict with the mean chance over the posterior of theta in place of the chance at its mean: for a
        margin u of variance h, s(beta u / sqrt(1 + pi beta^2 h / 8)) (MacKay 1992). Not with ties or sides.
    **options
        Of `RewardModel`.
    """
    rows = given.asked()
    by_category = knows == "teacher x category"
    category, held_category = (
        (c if by_category else np.zeros_like(c)) for c in (given.category, given.held_category)
    )
    kinds = given.categories if by_category else 1
    if knows == "nothing":
        options = {"method": "homogeneous", **options}

    def fit() -> Learnt:
        model = dl.RewardModel(**{"ridge": given.ridge, **options})
        labels = (rows, given.choice, given.teacher, category)
        model.fit(*labels, n_teachers=given.teachers, n_categories=kinds, side=given.side)
        log_rationality = np.log(np.abs(model.rationality_))
        log_rationality = np.repeat(log_rationality, given.categories // kinds, axis=1).ravel()

        def chance() -> np.ndarray:
            held = np.asarray(given.rows)[given.held_conversation]
            side = given.held_side if model.position_bias else None
            found = model.predict_proba(held, given.held_teacher, held_category, side)
            if averaged:
                beta = model.rationality_[given.held_teacher, held_category]
                variance = np.einsum("ij,ji->i", held, np.linalg.solve(model.information_, held.T))
                return logistic(beta * (held @ model.coef_) / np.sqrt(1 + np.pi / 8 * beta**2 * variance))
            return np.asarray(found[:, -1] / (found[:, 0] + found[:, -1]))  # given that it is no tie

        return _learnt(model, chance, log_rationality)

    return fit
