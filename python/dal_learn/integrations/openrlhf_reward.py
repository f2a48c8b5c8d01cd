"""A reward function for OpenRLHF, as a file for `--reward.remote_url` and under its HTTP form.

dal serve --reward pessimistic.safetensors --encoder offline --write-openrlhf reward.py
... --reward.remote_url reward.py
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dal_native import _validate

from .._files import atomic_write
from .scorer import Estimate, RewardScorer, shared_scorer, text_of

__all__ = ["END_TOKENS", "OpenRLHFReward", "Rewards", "split_query", "write_reward_function"]

#: Prompt and completion.
Pair = tuple[str, str]
#: What may end a decoded completion; OpenRLHF keeps special tokens when it decodes.
END_TOKENS = (
    "</s>",
    "<eos>",
    "<pad>",
    "[PAD]",
    "<|pad|>",
    "<|end|>",
    "<|return|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|end_of_turn|>",
    "<end_of_turn>",
    "<|END_OF_TURN_TOKEN|>",
    "<｜end▁of▁sentence｜>",
)
#: Half the distance of float32 numbers at 1.
_LEAST_CHANCE = 2.0**-24
#: Of a prompt that was cut on the left so many characters must be found again, white space not counted.
_LEAST_OVERLAP = 32


class Rewards(NamedTuple):
    """What is said of a list of completions.

    Attributes
    ----------
    rewards : list of float
    preference : list of float
        1 / (1 + exp(-reward)): the chance that a teacher of rationality 1 prefers the completion to the
        reference point, were this its reward; within 2^-24 of 0 or 1 at most, so that it stays in (0, 1),
        as dynamic filtering wants it, in float32 too.
    mean, standard_deviation : list of float
        As in `Estimate`; 0 for what was not scored.
    unscored : list of float
        1 for an empty completion that was given the reward named for such, else 0.
    """

    rewards: list[float]
    preference: list[float]
    mean: list[float]
    standard_deviation: list[float]
    unscored: list[float]


class OpenRLHFReward:
    """`reward_func(queries, prompts, labels)`: one completion a call, from many threads at once.

    Parameters
    ----------
    scorer : RewardScorer
    end_tokens : sequence of str
        Special tokens that are taken from the end of a completion.
    prompt_prefix, prompt_suffix : str
        What the chat template puts around a prompt; taken away where the encoder sees prompts. Learning saw
        prompts without it.
    unscorable : float, optional
        The reward of an empty completion. Without it one raises, and OpenRLHF, which goes on without a
        reward for that sample, fails soon after.

    Notes
    -----
    OpenRLHF writes errors of a reward function to its log at level info only: look there where rewards are
    missing.

    Examples
    --------
    >>> import numpy as np
    >>> from dal_learn.encoders import HashingEncoder
    >>> from dal_learn.pessimistic_reward import PessimisticReward
    >>> encoder = HashingEncoder(8)
    >>> reward = PessimisticReward(np.ones(8), np.eye(8), 0.5, encoder=encoder.fingerprint)
    >>> function = OpenRLHFReward(RewardScorer(reward, encoder))
    >>> answer = function(["User: why?\\nBot: Because.</s>"], ["User: why?\\nBot:"], [None])
    >>> sorted(answer), len(answer["rewards"])
    (['extra_logs', 'rewards', 'scores'], 1)
    """

    def __init__(
        self,
        scorer: RewardScorer,
        *,
        end_tokens: Sequence[str] = END_TOKENS,
        prompt_prefix: str = "",
        prompt_suffix: str = "",
        unscorable: float | None = None,
    ) -> None:
        if not isinstance(scorer, RewardScorer):
            raise ValueError(f"scorer is a {type(scorer).__name__}; expected a RewardScorer")
        if isinstance(end_tokens, str) or not all(isinstance(x, str) and x for x in end_tokens):
            raise ValueError("end_tokens is not a list of texts")
        for name, given in (("prompt_prefix", prompt_prefix), ("prompt_suffix", prompt_suffix)):
            if not isinstance(given, str):
                raise ValueError(f"{name} is a {type(given).__name__}; expected text")
        self.scorer = scorer
        self.end_tokens = tuple(end_tokens)
        self.prompt_prefix, self.prompt_suffix = prompt_prefix, prompt_suffix
        self.unscorable = None if unscorable is None else _validate.number(unscorable, "unscorable")
        self.__name__ = "reward_func"

    @classmethod
    def of_file(cls, reward: str, encoder: str, *, face: Mapping[str, Any], **options: Any) -> OpenRLHFReward:
        """With the scorer that this process shares: what a file of `write_reward_function` calls.

        Parameters
        ----------
        reward, encoder, **options
            As in `shared_scorer`.
        face : mapping
            Options of this class.

        Returns
        -------
        OpenRLHFReward
        """
        return cls(shared_scorer(reward, encoder, **options), **face)

    def __call__(
        self, queries: Sequence[str], prompts: Sequence[str], labels: Any = None, **columns: Any
    ) -> dict[str, Any]:
        """Rewards of decoded prompts with their completions.

        Parameters
        ----------
        queries : list of str, (k,)
            Prompt and completion, special tokens included.
        prompts : list of str, (k,)
        labels, **columns
            Passed over.

        Returns
        -------
        dict
            "rewards" and "scores" (`Rewards.preference`), and "extra_logs": float32 tensors (k,) where torch
            is loaded, else lists.

        Raises
        ------
        ValueError, TimeoutError
            As `RewardScorer.rewards`, or a query does not begin with its prompt.
        """
        pairs = self.pairs(queries, prompts)
        found = self.scorer.queued(*_columns(pairs)) if any(pairs) else []
        answer = self._rewards(pairs, found)
        logs = {name: _tensor(getattr(answer, name)) for name in LOGGED}
        return {
            "rewards": _tensor(answer.rewards),
            "scores": _tensor(answer.preference),
            "extra_logs": {f"dal_{name}": values for name, values in logs.items()},
        }

    async def rewards_async(self, pairs: Sequence[Pair | None]) -> Rewards:
        """The same numbers for coroutines, from what `pairs` gives."""
        found = await self.scorer.queued_async(*_columns(pairs)) if any(pairs) else []
        return self._rewards(pairs, found)

    def pairs(self, queries: Sequence[str], prompts: Sequence[str]) -> list[Pair | None]:
        """Prompt and completion of each query; None for an empty one whose reward was named.

        Raises
        ------
        ValueError
            As a call.
        """
        if len(queries) != len(prompts):
            raise ValueError(f"prompts has length {len(prompts)}; expected {len(queries)}, as queries")
        pairs: list[Pair | None] = []
        for row, (query, prompt) in enumerate(zip(queries, prompts, strict=True)):
            for name, given in (("queries", query), ("prompts", prompt)):
                if not isinstance(given, str):
                    raise ValueError(f"{name}[{row}] is a {type(given).__name__}; expected text")
            try:
                completion = split_query(query, prompt, self.end_tokens)
                pair = (self._plain(prompt), completion)
            except ValueError as error:
                raise ValueError(f"queries[{row}]: {error}") from None
            empty = text_of(completion) is None
            pairs.append(None if empty and self.unscorable is not None else pair)
        return pairs

    def _plain(self, prompt: str) -> str:
        """The prompt without its template."""
        if self.scorer.text == "response":
            return prompt  # nobody looks at it
        first, last = self.prompt_prefix, self.prompt_suffix
        if len(prompt) < len(first) + len(last) or not (prompt.startswith(first) and prompt.endswith(last)):
            raise ValueError("the prompt does not stand between prompt_prefix and prompt_suffix")
        return prompt[len(first) : len(prompt) - len(last)]

    def _rewards(self, pairs: Sequence[Pair | None], found: Sequence[Estimate]) -> Rewards:
        answers = iter(found)
        fill = math.nan if self.unscorable is None else self.unscorable
        rows = [Estimate(fill, 0.0, 0.0) if pair is None else next(answers) for pair in pairs]
        return Rewards(
            [row.reward for row in rows],
            [_logistic(row.reward) for row in rows],
            [row.mean for row in rows],
            [row.standard_deviation for row in rows],
            [float(pair is None) for pair in pairs],
        )


#: What `Rewards` tells beside the reward itself.
LOGGED = ("mean", "standard_deviation", "unscored")


def _columns(pairs: Sequence[Pair | None]) -> tuple[list[str], list[str]]:
    known = [pair for pair in pairs if pair is not None]
    return [prompt for prompt, _ in known], [completion for _, completion in known]


def _logistic(x: float) -> float:
    """1 / (1 + exp(-x)), kept off 0 and 1 as float32 has them."""
    chance = 1.0 / (1.0 + math.exp(-x)) if x >= 0 else math.exp(x) / (1.0 + math.exp(x))
    return min(max(chance, _LEAST_CHANCE), 1.0 - _LEAST_CHANCE)


def _tensor(values: list[float]) -> Any:
    torch = sys.modules.get("torch")
    return values if torch is None else torch.tensor(values, dtype=torch.float32)


def split_query(query: str, prompt: str, end_tokens: Sequence[str] = END_TOKENS) -> str:
    """The completion in a decoded query.

    Tokens decoded again need not be the same text: a tokenizer may add or drop white space after special
    tokens, and a prompt that is too long has been cut on the left. So what the query begins with may be the
    prompt, the prompt with other white space, or the prompt's last part (32 characters at least).

    Parameters
    ----------
    query : str
        Prompt and completion.
    prompt : str
    end_tokens : sequence of str
        Taken from the end, any number of them.

    Returns
    -------
    str

    Raises
    ------
    ValueError
        The query begins with none of these.

    Examples
    --------
    >>> split_query("<s> Why? Because.</s></s>", "<s>Why?")
    ' Because.'
    """
    start = len(prompt) if query.startswith(prompt) else _end_of_prompt(query, prompt)
    end = len(query)
    while True:
        bare = end
        while bare > start and query[bare - 1].isspace():
            bare -= 1
        token = next((token for token in end_tokens if query.endswith(token, start, bare)), None)
        if token is None:
            return query[start:end]
        end = bare - len(token)


def _end_of_prompt(query: str, prompt: str) -> int:
    """Where the prompt, or what is left of it, ends in the query: white space does not count."""
    places = [place for place, letter in enumerate(query) if not letter.isspace()]
    begun, whole = "".join(query[place] for place in places), "".join(prompt.split())
    size = _overlap(whole, begun)
    if size < min(len(whole), _LEAST_OVERLAP):
        raise ValueError("the query does not begin with its prompt")
    end = places[size - 1] + 1 if size else 0
    space = prompt[len(prompt.rstrip()) :]
    return end + len(space) if query.startswith(space, end) else end


def _overlap(text: str, other: str) -> int:
    """Length of the longest end of `text` that `other` begins with (Knuth, Morris and Pratt 1977)."""
    border = [0] * len(other)
    for k in range(1, len(other)):
        border[k] = _extended(border, other, border[k - 1], other[k])
    size = 0
    for letter in text:
        if size == len(other):
            size = border[size - 1] if size else 0
        size = _extended(border, other, size, letter)
    return size


def _extended(border: list[int], pattern: str, size: int, letter: str) -> int:
    while size and pattern[size] != letter:
        size = border[size - 1]
    return size + 1 if pattern and pattern[size] == letter else 0


_FILE = '''"""Reward function for OpenRLHF."""

# --reward.remote_url {name!r}
from dal_learn.integrations.openrlhf_reward import OpenRLHFReward

reward_func = OpenRLHFReward.of_file(
    {reward!r},
    {encoder!r},
    face={face!r},
{options})
'''


def write_reward_function(
    path: str | os.PathLike[str],
    reward: str | os.PathLike[str],
    encoder: str,
    *,
    face: Mapping[str, Any] | None = None,
    **options: Any,
) -> None:
    """Write the file that OpenRLHF imports; it loads the reward at once, so that a mistake stops the run.

    Parameters
    ----------
    path : str or path
        Ends in ".py". Replaced as a whole.
    reward : str or path
        Its absolute path is written.
    encoder : str
        A local folder is written as its absolute path.
    face : mapping, optional
        Options of `OpenRLHFReward`.
    **options
        Of `shared_scorer`; None is left out.

    Raises
    ------
    ValueError
        The path does not end in ".py", or the reward cannot be used with the encoder.
    """
    if not os.fspath(path).endswith(".py"):
        raise ValueError(f"{path}: expected a name that ends in .py")
    given = {name: value for name, value in sorted(options.items()) if value is not None}
    encoder = os.path.abspath(encoder) if os.path.isdir(encoder) else encoder
    reward = os.path.abspath(reward)
    OpenRLHFReward.of_file(reward, encoder, face=face or {}, **given)
    text = _FILE.format(
        name=os.path.basename(path),
        reward=reward,
        encoder=encoder,
        face=dict(face or {}),
        options="".join(f"    {name}={value!r},\n" for name, value in given.items()),
    )
    with atomic_write(path, "w") as file:
        file.write(text)
