"""What a policy chooses in every prompt, beside the greedy one: for the command line and the report."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .best_of import BestOfN, best_of_n
from .conversations import Conversations
from .pessimistic_reward import PessimisticReward
from .policy import PessimisticPolicy, PolicyNotConverged, greedy_policy, mean_features, pessimistic_policy
from .radius import Radius, nominal_radius
from .reward import RewardModel

__all__ = ["REFERENCES", "Choices", "choices_of", "mean_completion", "policy_for", "ranked_rows"]

Floats = NDArray[np.float64]
Progress = Callable[[int, float], object]
Integers = NDArray[np.int64]

#: Reference point: name on the command line -> what `best_of_n` calls it, and words for a report.
REFERENCES: dict[str, tuple[str | int, str]] = {
    "mean": ("mean", "mean of each prompt's completions"),
    "first": (0, "first completion of each prompt"),
    "none": ("reward", "none: a reward of 0"),
}

#: Prompts in a figure, and in the table of the most uncertain ones.
_DRAWN, _LISTED = 400, 10
#: Characters of a prompt in that table.
_SHOWN = 200


@dataclass(frozen=True, eq=False)
class Choices:
    """The pessimistic policy and the greedy one for the same prompts.

    Attributes
    ----------
    summary : dict
        For results.json and the report.
    rows : list of dict
        One for each prompt.
    reward : PessimisticReward
        With the radius and the reference used, and with a temperature its least favourable reward.
    """

    summary: dict[str, Any]
    rows: list[dict[str, Any]]
    reward: PessimisticReward


def choices_of(
    conversations: Conversations,
    model: RewardModel | PessimisticReward,
    *,
    delta: float = 0.1,
    radius: float | Radius | None = None,
    reward_norm: float | None = None,
    reference: str = "mean",
    temperature: float = 0.0,
    truth: Floats | None = None,
    encoder: str | None = None,
    progress: Progress | None = None,
) -> Choices | None:
    """The pessimistic policy beside the greedy one.

    Parameters
    ----------
    conversations : Conversations
        Every prompt and completion is used, also those held out.
    model : RewardModel or PessimisticReward
        Fitted; or a reward with a radius of its own, which needs none of the next three.
    delta, radius : float
        Radius of the ellipsoid, from its probability of missing the truth or set by hand.
    reward_norm : float, optional
        S >= abs(theta): the radius is sqrt(chi2_d(1 - delta)) + sqrt(ridge) S, the second term for the
        ridge's pull towards 0 (0 leaves it out, and coverage may fall far below nominal where theta is
        longer than the prior expects); by default `radius.posterior_reward_norm`.
    reference : {"mean", "first", "none"}
        The reference point: each prompt's mean, its first completion (the answer in use), or 0.
    temperature : float
        Of the KL penalty against the uniform policy; 0 for none.
    truth : ndarray, (d,), optional
        The true reward, in a simulation.
    encoder : str, optional
        Fingerprint of what made the vectors.
    progress : callable, optional
        Called as progress(reads, gap) while the policy is sought.

    Returns
    -------
    Choices or None
        None where only differences are known.

    Raises
    ------
    ValueError
        An argument is out of range.
    """
    c = conversations
    if c.completions is None or c.prompt_offsets is None:
        return None
    if radius is not None and not np.isfinite(float(radius)):
        raise ValueError(f"radius is {radius!r}, expected a finite number of at least 0")
    given: Any = radius  # a number, or what stands for one
    if isinstance(model, PessimisticReward):
        reward = model if radius is None else replace(model, radius=given, assumption=None)
    else:
        given = nominal_radius(model, delta, reward_norm=reward_norm) if radius is None else radius
        reward = PessimisticReward.from_model(model, given, encoder=encoder)
    claimed = given if isinstance(given, Radius) else None
    gamma = reward.radius
    greedy = greedy_policy(
        c.completions,
        c.prompt_offsets,
        reward.coef,
        M=reward.information,
        radius=gamma,
        **_against(c, reference, 0.0),
    )
    tol = 1e-4 * max(1.0, abs(greedy.value))
    careful = policy_for(c, reward, reference, temperature, tol, progress)
    reward = replace(reward, reference=careful.reference)
    if temperature > 0:
        reward = reward.with_policy(careful.least_favourable_reward)
    ranked = best_of_n(c.completions, c.prompt_offsets, reward, reference=REFERENCES[reference][0])
    summary: dict[str, Any] = {
        "radius": gamma,
        "delta": None if claimed is None else claimed.delta,
        "reward_norm": None if claimed is None else claimed.reward_norm,
        "assumption": reward.assumption,
        "reference": REFERENCES[reference][1],
        "temperature": temperature,
        "prompts": len(c.prompt_offsets) - 1,
        "completions": len(c.completions),
        "prompts_where_choices_differ": int((careful.choice != greedy.choice).sum()),
        "prompts_vouched_for": int((ranked.lower_bound[_rows(c, careful)] > 0).sum()),
        "pessimistic": _figures(c, careful, truth),
        "greedy": _figures(c, greedy, truth),
        "drawn": _drawn(c, reward, reference, careful, greedy),
        "most_uncertain": _most_uncertain(c, ranked, careful, greedy),
    }
    return Choices(summary, _choice_rows(c, ranked, careful, greedy), reward)


def policy_for(
    c: Conversations,
    reward: PessimisticReward,
    reference: str,
    temperature: float = 0.0,
    tol: float = 1e-4,
    progress: Progress | None = None,
) -> PessimisticPolicy:
    """The pessimistic policy under a reward and its radius; a missed tolerance stands in `duality_gap`.

    Parameters
    ----------
    c : Conversations
        With completions.
    reward : PessimisticReward
    reference, temperature
        As for `choices_of`.
    tol, progress
        As for `pessimistic_policy`.

    Returns
    -------
    PessimisticPolicy
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PolicyNotConverged)
        return pessimistic_policy(
            c.completions,
            c.prompt_offsets,
            reward.coef,
            reward.information,
            reward.radius,
            temperature=temperature,
            tol=tol,
            progress=progress,
            **_against(c, reference, temperature),
        )


def _against(c: Conversations, reference: str, temperature: float) -> dict[str, Any]:
    """The reference point, as the solvers take it."""
    assert c.completions is not None and c.prompt_offsets is not None
    if reference != "first":
        return {"reference": None if reference == "none" else reference}
    first = np.zeros(len(c.completions))
    first[c.prompt_offsets[:-1]] = 1.0
    if temperature > 0:  # the penalty's base policy is another one
        return {"reference": mean_features(c.completions, c.prompt_offsets, first)}
    return {"reference": "base", "base_policy": first}


def mean_completion(c: Conversations) -> Floats | None:
    """Average over prompts of their mean completion, (d,); None where only differences are known.

    Examples
    --------
    >>> mean_completion(Conversations.from_completions([[0.0], [2.0], [5.0]], [0, 2, 3]))
    array([3.])
    """
    if c.completions is None or c.prompt_offsets is None:
        return None
    counts = np.diff(c.prompt_offsets)
    return np.asarray(mean_features(c.completions, c.prompt_offsets, np.repeat(1.0 / counts, counts)))


def _rows(c: Conversations, policy: PessimisticPolicy) -> Integers:
    """Row of each prompt's choice."""
    assert c.prompt_offsets is not None
    return np.asarray(c.prompt_offsets[:-1] + policy.choice)


def _figures(c: Conversations, policy: PessimisticPolicy, truth: Floats | None) -> dict[str, Any]:
    """Estimated value and its lower bound; the true loss where the truth is known."""
    assert c.completions is not None and c.prompt_offsets is not None
    figures: dict[str, Any] = {
        "value": policy.value,
        "lower_bound": policy.lower_bound,
        "duality_gap": policy.duality_gap if np.isfinite(policy.duality_gap) else None,
        "gold_wins": _gold_wins(c, _rows(c, policy)),
    }
    if truth is not None:
        best = greedy_policy(c.completions, c.prompt_offsets, truth, reference=policy.reference)
        x = mean_features(c.completions, c.prompt_offsets, policy.probability) - policy.reference
        figures["true_value"] = float(x @ truth)
        figures["true_loss"] = best.value - figures["true_value"]
    return figures


def _gold_wins(c: Conversations, chosen: Integers) -> float | None:
    """Share of the gold comparisons with a chosen completion that it wins (ties out)."""
    assert c.pairs is not None and c.completions is not None
    pick = np.zeros(len(c.completions), bool)
    pick[chosen] = True
    known = (c.gold == 0.0) | (c.gold == 1.0)
    one = known & (pick[c.pairs[:, 0]] != pick[c.pairs[:, 1]])
    if not one.any():
        return None
    return float((pick[c.pairs[one, 1]] == (c.gold[one] == 1.0)).sum() / one.sum())


def _drawn(
    c: Conversations,
    reward: PessimisticReward,
    reference: str,
    careful: PessimisticPolicy,
    greedy: PessimisticPolicy,
) -> dict[str, dict[str, list[float]]]:
    """Estimate and lower bound of both policies, mixtures as they are, in some prompts at even distances."""
    n_prompts = len(careful.choice)
    shown = np.unique(np.linspace(0, n_prompts - 1, min(n_prompts, _DRAWN)).round().astype(np.int64))
    drawn = {}
    for name, policy in (("pessimistic", careful), ("greedy", greedy)):
        away = np.stack([_above_reference(c, reward, reference, policy.probability, p) for p in shown])
        found = replace(reward, reference=None).estimates(away)  # type: ignore[arg-type]  # None: 0
        drawn[name] = {"estimate": found.mean.tolist(), "lower_bound": found.lower_bound.tolist()}
    return drawn


def _above_reference(
    c: Conversations, reward: PessimisticReward, reference: str, probability: Floats, p: int
) -> Floats:
    """sum_a pi(a|p) phi(p, a) - nu_p, (d,)."""
    assert c.completions is not None and c.prompt_offsets is not None
    here = slice(int(c.prompt_offsets[p]), int(c.prompt_offsets[p + 1]))
    phi = c.completions[here].astype(np.float64)
    nu = {"mean": phi.mean(axis=0), "first": phi[0], "none": np.zeros(c.d)}[reference]
    return np.asarray(probability[here] @ (phi - nu))


def _most_uncertain(
    c: Conversations, ranked: BestOfN, careful: PessimisticPolicy, greedy: PessimisticPolicy
) -> list[dict[str, Any]]:
    """Prompts where the labels say least about the answer that the estimate would give."""
    taken = _rows(c, greedy)
    order = np.argsort(-ranked.standard_deviation[taken], kind="stable")[:_LISTED]
    rows = []
    for p in order.tolist():
        row = {
            "prompt": p,
            "text": None if c.texts is None else c.texts.prompts[p][:_SHOWN],
            "estimate": float(ranked.mean[taken[p]]),
            "standard_deviation": float(ranked.standard_deviation[taken[p]]),
            "lower_bound": float(ranked.lower_bound[taken[p]]),
            "changed": bool(careful.choice[p] != greedy.choice[p]),
        }
        rows.append(row)
    return rows


def _choice_rows(
    c: Conversations, ranked: BestOfN, careful: PessimisticPolicy, greedy: PessimisticPolicy
) -> list[dict[str, Any]]:
    rows = []
    for p, at in enumerate(_rows(c, careful).tolist()):
        row: dict[str, Any] = {
            "prompt": p,
            "choice": int(careful.choice[p]),
            "probability": float(careful.probability[at]),
            "mean": float(ranked.mean[at]),
            "standard_deviation": float(ranked.standard_deviation[at]),
            "lower_bound": float(ranked.lower_bound[at]),
        }
        if c.texts is not None:
            row["prompt_text"] = c.texts.prompts[p]
            row["choice_id"] = c.texts.completion_ids[at]
            row["choice_text"] = c.texts.completions[at]
        rows.append({**row, "greedy_choice": int(greedy.choice[p])})
    return rows


def ranked_rows(c: Conversations, ranked: BestOfN) -> list[dict[str, Any]]:
    """One row for each prompt of a ranking: the choice, and every completion from best to worst.

    Parameters
    ----------
    c : Conversations
        The ones ranked.
    ranked : BestOfN

    Returns
    -------
    list of dict
        ``choice`` is None where the ranking abstained.
    """
    assert c.prompt_offsets is not None
    rows = []
    for p, (first, last) in enumerate(zip(c.prompt_offsets[:-1], c.prompt_offsets[1:], strict=True)):
        at = (first + ranked.order[first:last]).tolist()
        row: dict[str, Any] = {
            "prompt": p,
            "choice": None if ranked.choice[p] < 0 else int(ranked.choice[p]),
            "vouched": bool(ranked.vouched[p]),
            "order": ranked.order[first:last].tolist(),
            "mean": ranked.mean[at].tolist(),
            "standard_deviation": ranked.standard_deviation[at].tolist(),
            "lower_bound": ranked.lower_bound[at].tolist(),
        }
        if c.texts is not None:
            row["prompt_text"] = c.texts.prompts[p]
            row["ids"] = [c.texts.completion_ids[k] for k in at]
        rows.append(row)
    return rows
