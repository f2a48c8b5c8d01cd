"""Train a language model with TRL on a reward that knows what it does not know.

    python docs/examples/train_grpo.py                      a tiny model made on the spot, nothing downloaded
    python docs/examples/train_grpo.py --model FOLDER --data prompts.jsonl --reward pessimistic.safetensors \
        --encoder offline --output trained                  your own

Needs the extra trl: pip install 'dal-native[trl]'. The reward is a file of dal_learn.PessimisticReward, or of
a fitted dal_learn.RewardModel together with --radius. Of the data, one JSON object a line, "prompt" is what
the model is asked; every other column is handed to the reward function, as TRL does it.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

try:
    import torch
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from transformers import PreTrainedTokenizerFast as FastTokenizer
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer
except ImportError as error:
    raise SystemExit(f"training needs the extra trl: pip install 'dal-native[trl]' ({error})") from None

import dal_learn as dl
from dal_learn.encoders import HashingEncoder, feature_fingerprint
from dal_learn.integrations.scorer import KINDS, RewardScorer
from dal_learn.integrations.trl_reward import TRLReward

TRAINERS = {"grpo": (GRPOTrainer, GRPOConfig), "rloo": (RLOOTrainer, RLOOConfig)}


@dataclass
class Options:
    """Of a run; the defaults suit the tiny model."""

    trainer: str = "grpo"
    steps: int = 25
    batch: int = 64  # completions a step
    generations: int = 8  # completions a prompt
    tokens: int = 12  # of a completion, at most
    least_tokens: int = 4  # at least: a model with random weights may end at once
    learning_rate: float = 1e-2
    temperature: float = 1.0
    beta: float = 0.0  # weight of the divergence from the model as it was
    seed: int = 0
    samples: int = 256  # completions to compare before and after


@dataclass
class Summary:
    """Mean over sampled completions of what the labels say of them."""

    mean: float
    standard_deviation: float
    lower_bound: float
    standard_error: float  # of the mean lower bound

    def __str__(self) -> str:
        return (
            f"estimate {self.mean:7.3f}   standard deviation {self.standard_deviation:6.3f}   "
            f"lower bound {self.lower_bound:7.3f} +- {self.standard_error:.3f}"
        )


# ------------------------------------------------------------------------------------------- the training run


def train(
    model: Any, tokenizer: Any, rows: list[dict[str, Any]], reward: Any, options: Options, output: str
) -> Any:
    """Train the model in place; the trainer. `reward` is whatever TRL takes: here a TRLReward."""
    trainer_class, config_class = TRAINERS[options.trainer]
    settings = config_class(
        output_dir=output,
        max_steps=options.steps,
        per_device_train_batch_size=options.batch,
        num_generations=options.generations,
        max_completion_length=options.tokens,
        generation_kwargs={"min_new_tokens": options.least_tokens},
        learning_rate=options.learning_rate,
        temperature=options.temperature,
        lr_scheduler_type="constant",
        beta=options.beta,
        seed=options.seed,
        logging_steps=max(1, options.steps // 4),
        save_strategy="no",
        report_to=[],
        use_cpu=not torch.cuda.is_available(),
        bf16=torch.cuda.is_available(),
        disable_tqdm=True,
    )
    trainer = trainer_class(
        model=model,
        reward_funcs=reward,
        args=settings,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    trainer.train()
    return trainer


def sample(model: Any, tokenizer: Any, prompts: list[str], options: Options) -> tuple[list[str], list[str]]:
    """Prompts, each as often as needed, and a completion of each, drawn from the model."""
    asked = [prompts[k % len(prompts)] for k in range(options.samples)]
    completions: list[str] = []
    torch.manual_seed(options.seed + 1)
    model.eval()
    for start in range(0, len(asked), options.batch):
        batch = tokenizer(
            asked[start : start + options.batch], padding=True, padding_side="left", return_tensors="pt"
        ).to(model.device)
        with torch.inference_mode():
            found = model.generate(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                do_sample=True,
                temperature=options.temperature,
                top_k=0,
                min_new_tokens=options.least_tokens,
                max_new_tokens=options.tokens,
                pad_token_id=tokenizer.pad_token_id,
            )
        new = found[:, batch["input_ids"].shape[1] :]
        completions += tokenizer.batch_decode(new, skip_special_tokens=True)
    return asked, completions


def summary(scorer: RewardScorer, prompts: list[str], completions: list[str]) -> Summary:
    """What the labels say of the completions; empty ones are left out, as in training."""
    found = [one for one in scorer.estimates(prompts, completions, unscorable="none") if one is not None]
    mean, deviation = np.array([(one.mean, one.standard_deviation) for one in found]).T
    bound = mean - scorer.reward_model.radius * deviation
    error = float(bound.std(ddof=1) / np.sqrt(len(bound)))
    return Summary(float(mean.mean()), float(deviation.mean()), float(bound.mean()), error)


def run(
    model: Any,
    tokenizer: Any,
    rows: list[dict[str, Any]],
    scorer: RewardScorer,
    options: Options,
    output: str,
) -> tuple[Summary, Summary]:
    """Train on the scorer's reward; what the labels say of samples before and after."""
    prompts = [row["prompt"] for row in rows]
    before = summary(scorer, *sample(model, tokenizer, prompts, options))
    train(model, tokenizer, rows, TRLReward(scorer), options, output)
    after = summary(scorer, *sample(model, tokenizer, prompts, options))
    print(f"{options.trainer} on {scorer.kind}, {options.steps} steps of {options.batch} completions")
    print(f"  before  {before}")
    print(f"  after   {after}")
    return before, after


# ---------------------------------------------------------------------------------------------- the tiny one


def tiny_words(size: int = 96) -> list[str]:
    """The most frequent words of this package's own sources: the text that is always at hand."""
    folder = Path(dl.__file__).parent
    text = " ".join(path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.py")))
    count = Counter(re.findall(r"[a-z]{3,}", text.lower()))
    return sorted(sorted(count, key=lambda word: (-count[word], word))[:size])


def tiny_model(words: list[str], seed: int = 0) -> tuple[Any, Any]:
    """A causal model with random weights, and a tokenizer of whole words."""
    special = ["<pad>", "<end>", "<unknown>"]
    vocabulary = {word: k for k, word in enumerate([*special, *words])}
    splitter = Tokenizer(models.WordLevel(vocabulary, unk_token="<unknown>"))
    splitter.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = FastTokenizer(
        tokenizer_object=splitter, pad_token="<pad>", eos_token="<end>", unk_token="<unknown>"
    )
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=128,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config), tokenizer


def tiny_reward(
    words: list[str], seed: int = 0, labels: int = 1500
) -> tuple[dl.PessimisticReward, HashingEncoder]:
    """A reward fitted to simulated answers about texts that use half of the words only."""
    rng = np.random.default_rng(seed)
    encoder = HashingEncoder(256)
    known = rng.permutation(words)[: len(words) // 2]
    phi = encoder.encode([" ".join(rng.choice(known, 12)) for _ in range(2 * labels)]).astype(np.float64)
    taste = rng.normal(size=encoder.dimension)
    difference = phi[labels:] - phi[:labels]
    margin = difference @ taste
    choice = (rng.random(labels) < 1.0 / (1.0 + np.exp(-4.0 * margin))).astype(float)
    model = dl.RewardModel().fit(difference, choice)
    reward = dl.PessimisticReward.from_model(
        model,
        dl.confidence_radius(encoder.dimension, 0.1),
        phi.mean(axis=0),
        feature_fingerprint(encoder, "response"),
    )
    return reward, encoder


def tiny_prompts(words: list[str], seed: int = 0, size: int = 32) -> list[dict[str, Any]]:
    """Prompts of three words, with a column that TRL hands on."""
    rng = np.random.default_rng(seed)
    return [{"prompt": " ".join(rng.choice(words, 3)), "number": k} for k in range(size)]


def tiny(options: Options) -> dict[str, tuple[Summary, Summary]]:
    """The plain and the pessimistic reward on the same tiny model: (before, after) of each.

    Pessimism ends where the labels vouch for more: words that nobody was asked about become rare. That costs
    estimated reward, and here true reward as well: the simulated taste has the form that was fitted, so that
    the estimate goes on being right where no label is.
    """
    torch.set_num_threads(1)  # so little work only waits for further ones
    words = tiny_words()
    reward, encoder = tiny_reward(words)
    found = {}
    for kind in ("mean", "lower_bound"):
        model, tokenizer = tiny_model(words)
        with tempfile.TemporaryDirectory() as folder:
            scorer = RewardScorer(reward, encoder, kind=kind)
            found[kind] = run(model, tokenizer, tiny_prompts(words), scorer, options, folder)
    return found


# ------------------------------------------------------------------------------------------------- your own


def read_prompts(path: str) -> list[dict[str, Any]]:
    """Of a file of JSON lines."""
    with open(path, encoding="utf-8") as file:
        rows = [json.loads(line) for line in file if line.strip()]
    if not rows or not all(isinstance(row, dict) and isinstance(row.get("prompt"), str) for row in rows):
        raise ValueError(f'{path}: expected one JSON object a line, each with a text "prompt"')
    return rows


def own(arguments: argparse.Namespace, options: Options) -> None:
    output = Path(arguments.output)
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise ValueError(f"{output} exists; expected --output to be a new or an empty folder")
    rows = read_prompts(arguments.data)
    scorer = RewardScorer.load(
        arguments.reward, arguments.encoder, radius=arguments.radius, kind=arguments.kind
    )
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    model = AutoModelForCausalLM.from_pretrained(arguments.model, use_safetensors=True)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    run(model, tokenizer, rows, scorer, options, arguments.output)
    model.save_pretrained(arguments.output)
    tokenizer.save_pretrained(arguments.output)
    print(f"written: {arguments.output}")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    defaults = Options()
    parser.add_argument("--model", help="folder or name of a causal language model; a tiny one by default")
    parser.add_argument("--data", help="JSON lines with a text 'prompt'")
    parser.add_argument("--reward", help="safetensors file of a PessimisticReward or RewardModel")
    parser.add_argument("--radius", type=float, help="in place of the reward's own")
    parser.add_argument("--encoder", default="offline", help="the encoder that the reward was fitted on")
    parser.add_argument("--kind", choices=KINDS, default="lower_bound")
    parser.add_argument("--trainer", choices=sorted(TRAINERS), default=defaults.trainer)
    parser.add_argument("--steps", type=int, default=defaults.steps)
    parser.add_argument("--batch", type=int, default=defaults.batch, help="completions a step")
    parser.add_argument("--generations", type=int, default=defaults.generations, help="completions a prompt")
    parser.add_argument("--tokens", type=int, help="most new tokens: 12 for the tiny model, else 256")
    parser.add_argument("--learning-rate", type=float, help="1e-2 for the tiny model, else 1e-6")
    parser.add_argument("--temperature", type=float, default=defaults.temperature, help="of sampling")
    parser.add_argument(
        "--beta",
        type=float,
        default=defaults.beta,
        help="weight of the divergence from the model as it was; with least_favourable, its temperature",
    )
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--samples", type=int, default=defaults.samples, help="drawn before and after")
    parser.add_argument("--output", default="trained", help="folder for the trained model")
    arguments = parser.parse_args(argv)
    is_tiny = arguments.model is None
    if not is_tiny and (arguments.data is None or arguments.reward is None):
        parser.error("--model needs --data and --reward")
    options = Options(
        trainer=arguments.trainer,
        steps=arguments.steps,
        batch=arguments.batch,
        generations=arguments.generations,
        tokens=arguments.tokens or (defaults.tokens if is_tiny else 256),
        least_tokens=defaults.least_tokens if is_tiny else 1,
        learning_rate=arguments.learning_rate or (defaults.learning_rate if is_tiny else 1e-6),
        temperature=arguments.temperature,
        beta=arguments.beta,
        seed=arguments.seed,
        samples=arguments.samples,
    )
    if is_tiny:
        tiny(options)
        return
    try:
        own(arguments, options)
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
