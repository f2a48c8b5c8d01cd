"""A fitted reward as a folder for ``AutoModelForSequenceClassification.from_pretrained`` (extra ``hf``).

    logits[:, 0] = phi' theta,  phi the base model's last hidden state at the last token that is not padding

That is the linear map which reward trainers, TRL's GRPO and RLOO and reward servers expect behind a name.
"""

from __future__ import annotations

import contextlib
import copy
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dal_native import _validate

from .._files import sync_to_disk
from ..encoders import HuggingFaceEncoder, get_encoder, quietly, text_form_of
from ..pessimistic_reward import PessimisticReward

__all__ = ["SAMPLES", "save_reward_model_directory"]

#: Texts of several lengths on which the saved folder is compared with the encoder.
SAMPLES = ("Yes.", "No, because the premise is wrong.", "Two and two are four, as everybody knows. " * 3)
#: Largest difference of a logit, in units of |phi| |theta|: float32 arithmetic in another order.
_TOLERANCE = 1e-4
_KINDS = ("mean", "least_favourable")


def save_reward_model_directory(
    directory: str | os.PathLike[str],
    base_model: HuggingFaceEncoder | str | os.PathLike[str],
    reward: PessimisticReward,
    tokenizer: Any = None,
    *,
    kind: str = "mean",
    samples: Sequence[str] = SAMPLES,
) -> Path:
    """Write the base model with the reward as its head: one folder, as ``from_pretrained`` wants it.

    Parameters
    ----------
    directory : str or path
        To be made; an empty folder is taken too. It appears when it is complete and checked, or not at all.
    base_model : HuggingFaceEncoder, str or path
        The encoder that the reward was fitted on, with ``pooling="last"``; or its model, by name or folder.
    reward : PessimisticReward
        It must name that encoder.
    tokenizer : PreTrainedTokenizer, optional
        Stored in place of the encoder's (one with a chat template, say); must split texts in the same way.
    kind : {"mean", "least_favourable"}, default "mean"
        Which linear reward: the estimate, or the least favourable reward of a policy (see Notes).
    samples : sequence of str
        Texts on which the folder, loaded back, must agree with the encoder.

    Returns
    -------
    Path
        The folder: safetensors weights with ``score.weight`` (1, d) and no bias, in float32; the tokenizer;
        a configuration with ``num_labels=1`` and the padding token, whose entry ``dal_native`` says what the
        head is.

    Raises
    ------
    ValueError
        The reward was fitted on another encoder, or other pooling; the kind is not known of this reward; the
        model's classification head is not a bias-free score of the last token; the folder, loaded back, does
        not agree with the encoder.
    FileExistsError
        `directory` exists and is not an empty folder.
    ImportError
        The extra is not installed.

    Notes
    -----
    A *pessimistic* reward is not linear in phi, since its penalty is a norm, and no such folder can hold it:
    hand `dal_learn.integrations.trl_reward` or `PessimisticRewardHead` to the trainer instead. The least
    favourable reward theta of a pessimistic policy with a temperature tau > 0 is linear, and the policy that
    maximises E phi' theta - tau KL(pi | base) is the pessimistic one: but only with the same tau, the same
    base policy and the same prompts and weights. Under another tau, or in best-of-n, it optimises something
    else.

    Logits are phi' theta and not (phi - nu)' theta: the same up to a constant, which comparisons, and
    advantages within a prompt, do not see. The folder scores the tokens that it is given, from the first to
    the last; the features of the fit came from the text form that the reward names, split by the tokenizer
    with the special tokens that it adds, and cut at the encoder's limit. TRL, given the folder, scores prompt
    and completion run together, without special tokens and uncut: where that is something else, use
    `dal_learn.integrations.trl_reward`, which scores what was fitted. While the folder is compared with the
    encoder the model is in memory twice.

    Examples
    --------
    >>> from dal_learn.integrations.reward_directory import save_reward_model_directory
    >>> save_reward_model_directory("reward-model", "folder/of/a/model", reward)  # doctest: +SKIP
    PosixPath('reward-model')
    """
    transformers = _validate.require("transformers", "hf", "a reward model's folder")
    if not isinstance(reward, PessimisticReward):
        raise ValueError(
            f"reward is a {type(reward).__name__}; expected a PessimisticReward (from_model makes one)"
        )
    encoder = _encoder(base_model)
    text = _text_form(reward, encoder)
    theta = _theta(reward, _validate.one_of(kind, "kind", _KINDS))
    facts = {"kind": kind, "encoder": reward.encoder, "text": text}
    if isinstance(samples, str) or not len(samples):
        raise ValueError(f"samples is {samples!r}; expected a list of texts, at least one")
    with _new_folder(directory) as folder:
        with quietly(transformers):
            chosen = copy.deepcopy(encoder.tokenizer if tokenizer is None else tokenizer)
            model = _with_head(transformers, encoder, theta)
            _set_padding(chosen, model, samples)
            model.config.dal_native = facts
            model.save_pretrained(folder)
            chosen.save_pretrained(folder)
            got = _scores(transformers, folder, samples)
        _compare(got, encoder.encode(samples), theta, type(model).__name__)
    return Path(directory)


def _encoder(base_model: HuggingFaceEncoder | str | os.PathLike[str]) -> HuggingFaceEncoder:
    given = f"a {type(base_model).__name__}"
    encoder: object = base_model
    if isinstance(base_model, str | os.PathLike):
        given, encoder = repr(os.fspath(base_model)), get_encoder(base_model)
    if not isinstance(encoder, HuggingFaceEncoder):
        raise ValueError(
            f"base_model is {given}; expected a HuggingFaceEncoder, or a Hugging Face model's name or folder"
        )
    return encoder


def _text_form(reward: PessimisticReward, encoder: HuggingFaceEncoder) -> str | None:
    """What the encoder saw of completions when the reward was fitted; None where the reward does not say."""
    if encoder.pooling != "last":
        raise ValueError(
            f"base_model pools by {encoder.pooling!r}; expected 'last': a score head sits on the last token"
        )
    if reward.encoder == encoder.fingerprint:
        return None
    form = None if reward.encoder is None else text_form_of(reward.encoder, encoder)
    if form is None:
        raise ValueError(
            f"reward was fitted on encoder {reward.encoder!r}; expected that of base_model, pooling included "
            f"({encoder.fingerprint!r}): on other features it means nothing"
        )
    return form


def _theta(reward: PessimisticReward, kind: str) -> NDArray[np.float64]:
    theta = reward.coef if kind == "mean" else reward.least_favourable_reward
    if theta is None:
        raise ValueError("kind is 'least_favourable'; expected a reward that holds one: see with_policy")
    return theta


@contextlib.contextmanager
def _new_folder(directory: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary folder beside `directory`, flushed and renamed to it at the end, or removed."""
    target = Path(os.path.realpath(directory))
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise FileExistsError(f"{os.fspath(directory)} exists; expected a new or an empty folder")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{target.parent} does not exist; expected the folder to write into")
    temporary = target.with_name(f".{target.name[:200]}.{secrets.token_hex(6)}.tmp")
    temporary.mkdir()
    try:
        yield temporary
        for path in temporary.rglob("*"):
            sync_to_disk(path)
        sync_to_disk(temporary)
        os.rename(temporary, target)  # over an empty folder, never over a file or a full one
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_to_disk(target.parent)


def _with_head(transformers: Any, encoder: HuggingFaceEncoder, theta: NDArray[np.float64]) -> Any:
    """The encoder's network under the architecture's classification head, its weight theta."""
    import torch

    network = encoder.network
    config = copy.deepcopy(network.config)
    config.num_labels = 1
    architectures = transformers.AutoModelForSequenceClassification
    try:
        with torch.device("meta"):  # shapes only: the weights are those of the encoder
            model = architectures.from_config(config)
    except ValueError:
        raise ValueError(
            f"base_model is a {type(network).__name__}, which has no sequence classification; "
            "expected a causal language model"
        ) from None
    head: Any = getattr(model, "score", None)
    inner = getattr(model, model.base_model_prefix, None)
    linear = isinstance(head, torch.nn.Linear) and head.bias is None and head.weight.shape == (1, len(theta))
    if not linear or type(inner) is not type(network):
        raise ValueError(
            f"{type(model).__name__} has no bias-free score of the last token over {len(theta)} features; "
            "expected an architecture with one, as causal language models have"
        )
    setattr(model, model.base_model_prefix, network)
    head.weight = torch.nn.Parameter(torch.tensor(theta[None, :], dtype=torch.float32))
    return model.eval()


def _set_padding(tokenizer: Any, model: Any, samples: Sequence[str]) -> None:
    """A padding token that no text ends with: the score sits on the last token that is not padding."""
    import torch

    if tokenizer.pad_token_id is None and tokenizer.eos_token_id is not None:
        tokenizer.pad_token = tokenizer.eos_token
    rows = [tokenizer(text)["input_ids"] for text in samples]
    if not all(rows):
        raise ValueError(f"samples[{rows.index([])}] has no token; expected texts")
    ends = {ids[-1] for ids in rows}
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id in ends:
        tokenizer.pad_token = None
        tokenizer.add_special_tokens({"pad_token": "<|padding|>"})
    if tokenizer.pad_token_id >= model.get_input_embeddings().num_embeddings:
        prefix = model.base_model_prefix
        setattr(model, prefix, copy.deepcopy(getattr(model, prefix)))  # the encoder keeps its own
        with torch.random.fork_rng(
            devices=[]
        ):  # new rows are drawn: the same always, and no one else's stream
            torch.manual_seed(0)
            model.resize_token_embeddings(tokenizer.pad_token_id + 1, mean_resizing=False)
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id


def _scores(transformers: Any, folder: Path, samples: Sequence[str]) -> NDArray[np.float32]:
    """What a trainer gets from the folder, for all samples in one padded batch."""
    import torch

    source = {"local_files_only": True, "trust_remote_code": False}
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **source)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder, use_safetensors=True, **source
    )
    batch = tokenizer(list(samples), padding=True, return_tensors="pt")
    with torch.inference_mode():
        return np.asarray(model.eval()(**batch).logits[:, 0].numpy())


def _compare(
    got: NDArray[np.float32], features: NDArray[np.float32], theta: NDArray[np.float64], name: str
) -> None:
    wanted = features.astype(np.float64) @ theta
    size = np.linalg.norm(features.astype(np.float64), axis=1) * np.linalg.norm(theta)
    away = np.abs(got - wanted)
    if not (away <= _TOLERANCE * size).all():
        k = int(np.argmax(away - _TOLERANCE * size))
        raise ValueError(
            f"{name} gives {got[k]:g} to sample {k} where the encoder's features give {wanted[k]:g}; "
            "expected a score of the last token, and a tokenizer that splits texts as the encoder's"
        )
