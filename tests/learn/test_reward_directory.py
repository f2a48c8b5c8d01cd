"""A reward model's folder: what transformers loads from it gives the encoder's features times theta."""

from __future__ import annotations

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="extra 'hf' is not installed")
transformers = pytest.importorskip("transformers", reason="extra 'hf' is not installed")

from dal_learn import PessimisticReward, RewardModel, pessimistic_policy  # noqa: E402
from dal_learn.encoders import feature_fingerprint, get_encoder  # noqa: E402
from dal_learn.integrations.reward_directory import SAMPLES, save_reward_model_directory  # noqa: E402

WORDS = ["[UNK]", "[EOS]", "[PAD]", "yes", "no", "because", "the", "premise", "is", "wrong", ".", ","]
TEXTS = ["yes", "no , because the premise is wrong .", "the premise", "yes . yes . no .", "wrong"]
SIZE = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def write_tokenizer(folder, padding="[PAD]", ends_with_eos=False):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = Tokenizer(models.WordLevel({word: k for k, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    if ends_with_eos:
        words.post_processor = processors.TemplateProcessing(single="$A [EOS]", special_tokens=[("[EOS]", 1)])
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="[UNK]", eos_token="[EOS]", pad_token=padding, model_max_length=64
    ).save_pretrained(folder)


def llama():
    return transformers.LlamaConfig(
        vocab_size=len(WORDS), num_key_value_heads=2, max_position_embeddings=64, **SIZE
    )


def write_model(folder, config):
    torch.manual_seed(0)
    transformers.AutoModel.from_config(config).save_pretrained(folder)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    write_tokenizer(folder)
    write_model(folder, llama())
    return folder


@pytest.fixture(scope="module")
def encoder(base):
    return get_encoder(base)


def a_reward(encoder, text=None, **options):
    d = encoder.dimension
    name = encoder.fingerprint if text is None else feature_fingerprint(encoder, text)
    theta = np.random.default_rng(3).normal(size=d)
    return PessimisticReward(theta, np.eye(d), 1.0, np.full(d, 0.1), name, **options)


def logits(folder, texts, side):
    """As a trainer does it: the folder's name is all that it knows."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    assert (model.config.num_labels, model.score.bias) == (1, None)
    assert model.score.weight.shape == (1, SIZE["hidden_size"])
    assert model.config.pad_token_id == tokenizer.pad_token_id is not None
    batch = tokenizer(texts, padding=True, padding_side=side, return_tensors="pt")
    with torch.no_grad():
        return model.eval()(**batch).logits[:, 0].numpy()


# ----------------------------------------------------------------------------------------------- agreement


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("text", [None, "response", "prompt+response"])
def test_logits_are_features_times_theta(base, encoder, tmp_path, side, text):
    reward = a_reward(encoder, text)
    made = save_reward_model_directory(tmp_path / "out", base, reward)
    assert made == tmp_path / "out"
    np.testing.assert_allclose(
        logits(made, TEXTS, side), encoder.encode(TEXTS) @ reward.coef, rtol=1e-4, atol=1e-5
    )
    config = json.loads((made / "config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    assert config["dal_native"] == {"kind": "mean", "encoder": reward.encoder, "text": text}
    names = {path.name for path in made.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
    assert not any(name.endswith((".bin", ".pt", ".pkl")) for name in names)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_from_labels_to_the_least_favourable_reward_of_a_policy(encoder, tmp_path):
    """End to end: features, a fit, a policy with a temperature, its linear reward as a folder."""
    phi = encoder.encode(TEXTS)
    pairs = [(a, b) for a in range(5) for b in range(5) if a != b]
    model = RewardModel().fit([phi[b] - phi[a] for a, b in pairs], [float(a < b) for a, b in pairs])
    policy = pessimistic_policy(
        phi, [0, 2, 5], model.coef_, model.information_, 1.0, reference="base", temperature=0.5
    )
    reward = PessimisticReward.from_model(model, 1.0, policy.reference, encoder.fingerprint)
    reward = reward.with_policy(policy.least_favourable_reward)
    folder = save_reward_model_directory(tmp_path / "lf", encoder, reward, kind="least_favourable")
    found = logits(folder, TEXTS, "right").astype(float)
    np.testing.assert_allclose(found, phi @ policy.least_favourable_reward, rtol=1e-4, atol=1e-5)
    # the policy is the softmax under these logits, at its own temperature
    odds = np.exp(found / 0.5)
    softmax = np.concatenate([odds[:2] / odds[:2].sum(), odds[2:] / odds[2:].sum()])
    np.testing.assert_allclose(policy.probability, softmax, atol=1e-3)
    assert json.loads((folder / "config.json").read_text())["dal_native"]["kind"] == "least_favourable"
    with pytest.raises(ValueError, match="expected a reward that holds one"):
        save_reward_model_directory(tmp_path / "no", encoder, a_reward(encoder), kind="least_favourable")


@pytest.mark.parametrize("ends_with_eos", [False, True])
def test_the_padding_token_is_never_the_end_of_a_text(tmp_path, ends_with_eos):
    """Without a padding token trainers take the end token; where texts end with it, that would hide it."""
    base = tmp_path / "base"
    base.mkdir()
    write_tokenizer(base, None, ends_with_eos)
    write_model(base, llama())
    encoder = get_encoder(base)
    before = {name: tensor.clone() for name, tensor in encoder.network.state_dict().items()}
    reward = a_reward(encoder)
    folder = save_reward_model_directory(tmp_path / "out", encoder, reward)
    wanted = encoder.encode(TEXTS) @ reward.coef
    for side in ("left", "right"):
        np.testing.assert_allclose(logits(folder, TEXTS, side), wanted, rtol=1e-4, atol=1e-5)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert tokenizer.pad_token == ("<|padding|>" if ends_with_eos else "[EOS]")
    assert encoder.tokenizer.pad_token is None  # what was handed in is as it was
    after = encoder.network.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_other_architectures_with_such_a_head(base, tmp_path):
    folder = tmp_path / "gpt2"
    folder.mkdir()
    write_tokenizer(folder)
    write_model(
        folder,
        transformers.GPT2Config(
            vocab_size=len(WORDS),
            n_embd=16,
            n_layer=1,
            n_head=2,
            n_positions=64,
            bos_token_id=1,
            eos_token_id=1,
        ),
    )
    encoder = get_encoder(folder)
    reward = a_reward(encoder)
    made = save_reward_model_directory(tmp_path / "out", encoder, reward)
    np.testing.assert_allclose(
        logits(made, TEXTS, "right"), encoder.encode(TEXTS) @ reward.coef, rtol=1e-4, atol=1e-5
    )


def test_a_base_model_stored_in_bfloat16_is_scored_in_float32(tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    write_tokenizer(base)
    torch.manual_seed(0)
    transformers.AutoModel.from_config(llama()).to(torch.bfloat16).save_pretrained(base)
    encoder = get_encoder(base)
    reward = a_reward(encoder)
    made = save_reward_model_directory(tmp_path / "out", encoder, reward)
    np.testing.assert_allclose(
        logits(made, TEXTS, "right"), encoder.encode(TEXTS) @ reward.coef, rtol=1e-4, atol=1e-5
    )


def test_another_tokenizer_that_splits_alike(encoder, base, tmp_path):
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    made = save_reward_model_directory(tmp_path / "out", encoder, a_reward(encoder), tokenizer)
    assert transformers.AutoTokenizer.from_pretrained(made).chat_template == tokenizer.chat_template
    write_tokenizer(tmp_path, ends_with_eos=True)
    other = transformers.AutoTokenizer.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="a tokenizer that splits texts as the encoder's"):
        save_reward_model_directory(tmp_path / "no", encoder, a_reward(encoder), other)
    assert not (tmp_path / "no").exists()


def test_the_same_bytes_again_and_no_draw_from_anybodys_stream(tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    write_tokenizer(base, None, ends_with_eos=True)  # a row is added to the embedding
    write_model(base, llama())
    encoder = get_encoder(base)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    made = [save_reward_model_directory(tmp_path / name, encoder, a_reward(encoder)) for name in "ab"]
    assert torch.rand(1) == expected
    first, second = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in made)
    assert first == second


# ------------------------------------------------------------------------------------------------ refusals


def refused(error, words, directory, *arguments, **options):
    """Refused in one line, with nothing left behind."""
    before = sorted(path.name for path in directory.parent.iterdir())
    with pytest.raises(error, match=words) as caught:
        save_reward_model_directory(directory, *arguments, **options)
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in directory.parent.iterdir()) == before


def test_rewards_of_other_features_are_refused(base, encoder, tmp_path):
    out = tmp_path / "out"
    reward = a_reward(encoder)
    words = "was fitted on encoder .*; expected that of base_model"
    refused(ValueError, words, out, get_encoder(base, max_tokens=5), reward)
    refused(ValueError, words, out, encoder, PessimisticReward(reward.coef, np.eye(16), 1.0))
    mean = get_encoder(base, pooling="mean")
    refused(ValueError, "pools by 'mean'; expected 'last'", out, mean, a_reward(mean))
    refused(ValueError, words, out, base, a_reward(mean))
    refused(ValueError, "kind is 'lower_bound'", out, encoder, reward, kind="lower_bound")
    refused(
        ValueError, "base_model is 'hashing:16'; expected a HuggingFaceEncoder", out, "hashing:16", reward
    )
    for samples in ("yes", []):
        refused(ValueError, "samples is", out, encoder, reward, samples=samples)
    refused(ValueError, r"samples\[1\] has no token", out, encoder, reward, samples=["yes", " "])
    refused(ValueError, "base_model is a LlamaModel", out, encoder.network, reward)
    refused(ValueError, "reward is a RewardModel; expected a PessimisticReward", out, encoder, RewardModel())


def test_an_occupied_place_is_refused(encoder, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("full", "file"):
        refused(
            FileExistsError, "expected a new or an empty folder", tmp_path / name, encoder, a_reward(encoder)
        )
    assert (tmp_path / "full" / "mine.txt").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    assert save_reward_model_directory(tmp_path / "empty", encoder, a_reward(encoder)).name == "empty"
    with pytest.raises(FileNotFoundError, match="does not exist"):
        save_reward_model_directory(tmp_path / "no" / "such", encoder, a_reward(encoder))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            lambda: transformers.BertConfig(vocab_size=len(WORDS), **SIZE),
            "BertForSequenceClassification has no bias-free score of the last token over 16 features",
        ),
        (
            lambda: transformers.T5Config(
                vocab_size=len(WORDS), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2
            ),
            "T5ForSequenceClassification has no|has no sequence classification",
        ),
    ],
)
def test_heads_of_another_kind_are_refused(tmp_path, config, words):
    folder = tmp_path / "base"
    folder.mkdir()
    write_tokenizer(folder)
    write_model(folder, config())
    encoder = get_encoder(folder)
    refused(ValueError, words, tmp_path / "out", encoder, a_reward(encoder))


def test_what_the_folder_gives_is_compared_with_the_encoder(encoder, tmp_path, monkeypatch):
    """An architecture that scores another token has the right tensors and the wrong logits."""
    cls = transformers.LlamaForSequenceClassification
    forward = cls.forward

    def first_token(self, input_ids=None, attention_mask=None, **options):
        return forward(self, input_ids=input_ids[:, :1], attention_mask=attention_mask[:, :1], **options)

    monkeypatch.setattr(cls, "forward", first_token)
    refused(
        ValueError,
        "LlamaForSequenceClassification gives .* expected a score of the last token",
        tmp_path / "out",
        encoder,
        a_reward(encoder),
        samples=TEXTS,
    )


def test_a_failure_half_way_leaves_nothing(encoder, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(transformers.PreTrainedTokenizerFast, "save_pretrained", fail)
    refused(OSError, "No space left", tmp_path / "out", encoder, a_reward(encoder))


def test_the_samples_differ_in_length():
    assert len({len(text) for text in SAMPLES}) == len(SAMPLES) >= 3
