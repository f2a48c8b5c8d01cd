"""A reward function for the GRPO and RLOO trainers of TRL.

scorer = RewardScorer.load("pessimistic.safetensors", "offline")
trainer = GRPOTrainer(model, reward_funcs=TRLReward(scorer), ...)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from .scorer import RewardScorer

__all__ = ["TRLReward"]


class TRLReward:
    """What `reward_funcs` takes: lists in, one number for each completion out.

    Parameters
    ----------
    scorer : RewardScorer
    name : str, optional
        Under which the trainer logs it; "dal_" and the scorer's kind by default.

    Notes
    -----
    An empty completion, or one that is not text, gives None: the trainer leaves it out. Everything else that
    goes wrong is raised. Nothing here needs the main thread.

    Logged are, with every call and on every rank: the texts that were not scored, the mean standard deviation
    of those that were (0 where there is none), and the seconds that the call took; and for the table of
    completions the estimate and its standard deviation.

    Advantages are centred within a group, so that what a prompt's completions have in common drops out.

    Examples
    --------
    >>> import numpy as np
    >>> from dal_learn.encoders import HashingEncoder
    >>> from dal_learn.pessimistic_reward import PessimisticReward
    >>> encoder = HashingEncoder(8)
    >>> reward = PessimisticReward(np.ones(8), np.eye(8), 0.5, encoder=encoder.fingerprint)
    >>> function = TRLReward(RewardScorer(reward, encoder))
    >>> function.__name__, [x is None for x in function(prompts=["?", "?"], completions=["Yes.", ""])]
    ('dal_lower_bound', [False, True])
    """

    def __init__(self, scorer: RewardScorer, name: str | None = None) -> None:
        if not isinstance(scorer, RewardScorer):
            raise ValueError(f"scorer is a {type(scorer).__name__}; expected a RewardScorer")
        self.scorer = scorer
        self.__name__ = f"dal_{scorer.kind}" if name is None else name

    def __call__(
        self,
        *,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Any] | None = None,
        trainer_state: Any = None,
        log_extra: Callable[[str, list[Any]], object] | None = None,
        log_metric: Callable[[str, float], object] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        """Rewards of completions, as the trainer asks for them.

        Parameters
        ----------
        prompts, completions : list of str or of lists of messages, (k,)
        log_extra, log_metric : callable, optional
            The trainer's.
        completion_ids, trainer_state, **columns
            Passed over.

        Returns
        -------
        list of float or None, (k,)

        Raises
        ------
        ValueError, TimeoutError
            As `RewardScorer.rewards`.
        """
        start = time.perf_counter()
        found = self.scorer.estimates(prompts, completions, unscorable="none")
        scored = [one for one in found if one is not None]
        if log_metric is not None:
            deviation = sum(one.standard_deviation for one in scored) / max(1, len(scored))
            log_metric(f"{self.__name__}/unscored", float(len(found) - len(scored)))
            log_metric(f"{self.__name__}/standard_deviation", deviation)
            log_metric(f"{self.__name__}/seconds", time.perf_counter() - start)
        if log_extra is not None:
            log_extra(f"{self.__name__}/estimate", [None if one is None else one.mean for one in found])
            log_extra(
                f"{self.__name__}/standard_deviation",
                [None if one is None else one.standard_deviation for one in found],
            )
        return [None if one is None else one.reward for one in found]
