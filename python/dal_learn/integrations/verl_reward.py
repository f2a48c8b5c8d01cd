"""A reward function for verl: one completion a call, from threads, an event loop or Ray actors.

    reward.custom_reward_function.path=pkg://dal_learn.integrations.verl_reward
    reward.custom_reward_function.name=compute_score_async
    +reward.custom_reward_function.reward_kwargs.reward=/absolute/pessimistic.safetensors
    +reward.custom_reward_function.reward_kwargs.encoder=offline

`compute_score_async` waits for others on the event loop, so that all calls of a worker are answered together;
`compute_score` does so from threads, and is the one for the reward manager "remote".
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from dal_native import _validate

from .scorer import Estimate, RewardScorer, shared_scorer, text_of

__all__ = ["compute_score", "compute_score_async"]


def compute_score(
    data_source: Any = None,
    solution_str: str | None = None,
    ground_truth: Any = None,
    extra_info: Mapping[str, Any] | None = None,
    *,
    reward: str | None = None,
    encoder: str | None = None,
    kind: str = "lower_bound",
    radius: float | None = None,
    text: str | None = None,
    prompt_key: str = "prompt",
    unscorable: float | None = None,
    deadline: float | None = None,
    scorer_options: Mapping[str, Any] | None = None,
    **others: Any,
) -> dict[str, float]:
    """The reward of one completion.

    Parameters
    ----------
    solution_str : str
        The completion, decoded.
    extra_info : mapping
        Must hold the prompt under `prompt_key` where the encoder sees prompts: text, or a list of messages.
    reward, encoder, kind, radius, text, deadline
        Of `shared_scorer`; through `reward_kwargs`.
    prompt_key : str, default "prompt"
    unscorable : float, optional
        The reward of an empty completion; without it one raises.
    scorer_options : mapping, optional
        More options of `RewardScorer`, such as {"reproducible": False}.
    data_source, ground_truth, **others
        Passed over.

    Returns
    -------
    dict
        "score", which verl takes, and "dal_mean", "dal_standard_deviation", "dal_unscored", "dal_seconds",
        which it logs: the same keys for every completion.

    Raises
    ------
    ValueError
        No reward or encoder is named, the prompt is not there, or as `RewardScorer.rewards`.
    TimeoutError
        The deadline passed.
    """
    start = time.perf_counter()
    options = {"kind": kind, "radius": radius, "text": text, "deadline": deadline, **(scorer_options or {})}
    scorer = _scorer(reward, encoder, options)
    if unscorable is not None and text_of(solution_str) is None:
        return _answer(None, unscorable, start)
    found = scorer.queued([_prompt(scorer, extra_info, prompt_key)], [solution_str])[0]
    return _answer(found, found.reward, start)


async def compute_score_async(
    data_source: Any = None,
    solution_str: str | None = None,
    ground_truth: Any = None,
    extra_info: Mapping[str, Any] | None = None,
    *,
    reward: str | None = None,
    encoder: str | None = None,
    kind: str = "lower_bound",
    radius: float | None = None,
    text: str | None = None,
    prompt_key: str = "prompt",
    unscorable: float | None = None,
    deadline: float | None = None,
    scorer_options: Mapping[str, Any] | None = None,
    **others: Any,
) -> dict[str, float]:
    """`compute_score` as a coroutine; the same arguments, answer and errors."""
    start = time.perf_counter()
    options = {"kind": kind, "radius": radius, "text": text, "deadline": deadline, **(scorer_options or {})}
    scorer = _scorer(reward, encoder, options)
    if unscorable is not None and text_of(solution_str) is None:
        return _answer(None, unscorable, start)
    found = (await scorer.queued_async([_prompt(scorer, extra_info, prompt_key)], [solution_str]))[0]
    return _answer(found, found.reward, start)


def _scorer(reward: str | None, encoder: str | None, options: Mapping[str, Any]) -> RewardScorer:
    for name, given in (("reward", reward), ("encoder", encoder)):
        if not isinstance(given, str):
            raise ValueError(f"{name} is {given!r}; expected it in reward_kwargs of custom_reward_function")
    assert reward is not None and encoder is not None
    return shared_scorer(reward, encoder, **{name: x for name, x in options.items() if x is not None})


def _prompt(scorer: RewardScorer, extra_info: Mapping[str, Any] | None, key: str) -> Any:
    if scorer.text == "response":
        return ""  # nobody looks at it
    if extra_info is None or key not in extra_info:
        there = ", ".join(sorted(map(str, extra_info or {}))) or "nothing"
        raise ValueError(
            f"extra_info has no {key!r} (it holds {there}), but the encoder sees prompts; "
            "put it into extra_info, or name its key by prompt_key in reward_kwargs"
        )
    return extra_info[key]


def _answer(found: Estimate | None, reward: float, start: float) -> dict[str, float]:
    return {
        "score": _validate.number(reward, "unscorable"),
        "dal_mean": 0.0 if found is None else found.mean,
        "dal_standard_deviation": 0.0 if found is None else found.standard_deviation,
        "dal_unscored": float(found is None),
        "dal_seconds": time.perf_counter() - start,
    }
