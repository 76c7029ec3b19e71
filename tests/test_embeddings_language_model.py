"""Training a small BERT on a toy grammar: it learns more than frequencies, repeats itself, and resumes where it was."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from embeddings import EncoderError, TransformersTextEncoder, language_model, load_text_encoder, train_text_encoder
from embeddings.language_model import SPECIAL, hide, learn_tokenizer, one_cycle

FINDINGS = ("effusion", "opacity", "nodule", "mass", "fracture")
PLACES = ("base", "apex", "hilum")


def sentences(count: int, seed: int = 0) -> list[str]:
    """Write sentences that name a finding, a side and a place twice, so that each can be guessed from its other."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        finding, place, side = FINDINGS[rng.integers(5)], PLACES[rng.integers(3)], ("left", "right")[rng.integers(2)]
        size = rng.integers(1, 99)
        made.append(f"A {finding} of {size} mm at the {side} {place}. The {side} {place} shows the {finding}.")
    return made


TINY: dict[str, Any] = {"dim": 16, "layers": 1, "heads": 2, "vocabulary": 200, "epochs": 2, "max_tokens": 32}


def test_it_learns_more_than_frequencies(tmp_path: Path) -> None:
    texts = sentences(300)
    options = {"dim": 32, "heads": 2, "vocabulary": 300, "epochs": 12, "max_tokens": 40}
    encoder = train_text_encoder(texts, tmp_path, **options)
    record, different = encoder.training, len(set(texts))
    assert (record["texts"], record["held_out_texts"]) == (different - different // 10, different // 10)
    assert record["guesses"] > 50
    assert record["masked_accuracy"] > record["frequency_accuracy"] + 0.2
    written = json.loads((tmp_path / "text_encoder.json").read_text())["training"]
    assert written == record == load_text_encoder(tmp_path).training  # type: ignore[attr-defined]
    assert written["options"] == {**options, "layers": 2, "seed": 0}


def test_saved_and_loaded_to_the_bit(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    texts = sentences(40)
    encoder = train_text_encoder(texts, tmp_path / "new" / "bert", **TINY)
    loaded = load_text_encoder(tmp_path / "new" / "bert")
    assert isinstance(encoder, TransformersTextEncoder) and isinstance(loaded, TransformersTextEncoder)
    assert (loaded.fingerprint, loaded.name, loaded.dim) == (encoder.fingerprint, "bert-16", 16)
    assert (loaded.pooling, loaded.max_tokens) == ("mean", 32)
    np.testing.assert_array_equal(loaded.encode(texts), encoder.encode(texts))
    assert encoder.truncated(["left " * 40, "left"]) == [True, False]
    assert encoder.spec == str(tmp_path / "new" / "bert")
    same = load_text_encoder(f"hf:{tmp_path / 'new' / 'bert'}")  # it is a transformers model like any other
    np.testing.assert_array_equal(same.encode(texts), encoder.encode(texts))
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_texts_options_and_seed_decide_the_encoder() -> None:
    texts = sentences(40)
    before = torch.random.get_rng_state()
    first = train_text_encoder(texts, **TINY)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(99)
    again = train_text_encoder([*texts, *texts[:5], " "], **TINY)  # what comes twice counts once
    torch.random.set_rng_state(before)
    assert again.fingerprint == first.fingerprint and again.training == first.training
    assert train_text_encoder(texts, seed=1, **TINY).fingerprint != first.fingerprint


def test_an_interrupted_training_goes_on_to_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts, options = sentences(40), {**TINY, "epochs": 4}
    whole = train_text_encoder(texts, **options)
    monkeypatch.setattr(language_model, "STATE_SECONDS", 0.0)
    epochs: list[int] = []
    original = language_model._Training.one_epoch

    def stopping(self: Any, advance: Any) -> float:
        epochs.append(self.epoch)
        if epochs == [0, 1, 2]:
            raise KeyboardInterrupt
        return original(self, advance)

    monkeypatch.setattr(language_model._Training, "one_epoch", stopping)
    with pytest.raises(KeyboardInterrupt):
        train_text_encoder(texts, tmp_path, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["training.safetensors"]
    resumed = train_text_encoder(texts, tmp_path, **options)
    assert epochs == [0, 1, 2, 2, 3]
    assert (resumed.fingerprint, resumed.training) == (whole.fingerprint, whole.training)
    assert not (tmp_path / "training.safetensors").exists()
    # a state of another training, or none at all, is of no use and does no harm
    (tmp_path / "training.safetensors").write_bytes(b"cut short")
    assert train_text_encoder(texts, tmp_path, **options).fingerprint == whole.fingerprint
    epochs.clear()
    with pytest.raises(KeyboardInterrupt):
        train_text_encoder(texts, tmp_path, **options)
    epochs.clear()
    train_text_encoder(texts, tmp_path, **{**options, "epochs": 2})
    assert epochs == [0, 1]


def test_the_vocabulary_is_the_same_in_every_process() -> None:
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefghé-3"), rng.integers(2, 8))) for _ in range(200)]
    texts = [" ".join(rng.choice(words, 12)) for _ in range(100)]
    code = (
        "import json, sys; from embeddings.language_model import learn_tokenizer; "
        "print(json.dumps(learn_tokenizer(json.load(sys.stdin), 150, 32).get_vocab(), sort_keys=True))"
    )
    ask = [sys.executable, "-c", code]
    other = subprocess.run(ask, input=json.dumps(texts), capture_output=True, text=True, check=True, timeout=120)
    found = learn_tokenizer(texts, 150, 32).get_vocab()
    assert json.loads(other.stdout) == found and len(found) == 150
    assert [found[token] for token in SPECIAL] == [0, 1, 2, 3, 4]


def test_rare_letters_do_not_fill_the_vocabulary() -> None:
    texts = ["effusion " * 5 + "".join(chr(0x4E00 + 30 * i + j) for j in range(30)) for i in range(20)]
    tokenizer = learn_tokenizer(texts, 100, 32)
    assert len(tokenizer) <= 100
    assert tokenizer.tokenize("Effusion") == ["effusion"] and tokenizer.tokenize("é") == ["e"]
    assert set(tokenizer.tokenize(chr(0x4E00 + 599))) == {"[UNK]"}


def test_tokens_are_hidden_as_devlin_et_al_did() -> None:
    size, words = 1000, torch.arange(200_000).reshape(1000, 200) % 995 + 5
    words[:, 0], words[:, -1], words[::2, -5:] = 2, 3, 0
    shown, wanted = hide(words, size, torch.Generator().manual_seed(0))
    asked, special = wanted != -100, words < 5
    assert torch.equal(wanted[asked], words[asked]) and not (asked & special).any()
    assert torch.equal(shown[~asked], words[~asked])
    share = asked.sum() / (~special).sum()
    masked, kept = (shown == 4)[asked].float().mean(), (shown == words)[asked].float().mean()
    other = asked & (shown != 4) & (shown != words)
    assert share == pytest.approx(0.15, abs=0.005)
    assert masked == pytest.approx(0.8, abs=0.01) and kept == pytest.approx(0.1, abs=0.01)
    assert int(shown[other].min()) == 5 and int(shown[other].max()) == size - 1
    assert (hide(words, size, torch.Generator().manual_seed(0), always=True)[0] == 4).sum() == asked.sum()


def test_at_least_one_token_is_asked() -> None:
    tokens = torch.tensor([[2, 3, 0], [2, 9, 3]])
    for seed in range(10):
        _, wanted = hide(tokens, 10, torch.Generator().manual_seed(seed))
        assert wanted.flatten().tolist() == [-100, -100, -100, -100, 9, -100]


def test_the_rate_follows_one_cycle() -> None:
    rates = [one_cycle(step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([1e-4 * (step + 1) for step in range(10)])
    assert max(rates) == rates[9] == rates[10] == 1e-3
    assert rates[55] == pytest.approx(1e-3 * (1 + math.cos(math.pi / 2)) / 2)
    assert all(later < earlier for earlier, later in pairwise(rates[10:])) and rates[99] < 1e-6
    assert one_cycle(0, 1) == 1e-3


def test_long_texts_are_learnt_in_pieces() -> None:
    tokenizer = learn_tokenizer(["left right"] * 5, 50, 6)
    pieces = language_model._pieces(["left right " * 3, "", "left"], tokenizer, 6)
    left, right = (tokenizer.convert_tokens_to_ids(word) for word in ("left", "right"))
    assert pieces == [[2, left, right, left, right, 3], [2, left, right, 3], [2, left, 3]]


def test_progress_is_on_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    train_text_encoder(sentences(20), progress=True, **TINY)
    captured = capfd.readouterr()
    assert captured.out == "" and "Learning" in captured.err and "2/2" in captured.err


def test_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for options, message in (
        ({"dim": 0}, "dim must be a whole number from 1 to 4,096; got 0"),
        ({"epochs": 1.5}, r"epochs must be a whole number from 1 to 100,000; got 1.5"),
        ({"vocabulary": 10}, "vocabulary must be a whole number from 50 to 200,000; got 10"),
        ({"dim": 10, "heads": 4}, "dim must be a multiple of heads; got 10 and 4"),
    ):
        with pytest.raises(EncoderError, match=message):
            train_text_encoder(sentences(20), **{**TINY, **options})
    with pytest.raises(EncoderError, match="A language model needs at least 10 different texts; got 9"):
        train_text_encoder(sentences(9) * 10, **TINY)
    with pytest.raises(EncoderError, match=r"write train_text_encoder\(\[text\]\)"):
        train_text_encoder("one text", **TINY)
    with pytest.raises(EncoderError, match="None of the 20 different texts holds a letter or a digit"):
        train_text_encoder([chr(1) * n for n in range(1, 21)], **TINY)
    (tmp_path / "file").touch()
    with pytest.raises(EncoderError, match="cannot be made: File exists"):
        train_text_encoder(sentences(20), tmp_path / "file", **TINY)
    monkeypatch.setattr(language_model, "STATE_SECONDS", 0.0)
    (tmp_path / "training.safetensors").mkdir()
    with pytest.raises(EncoderError, match=r"The state of the training cannot be written to .*: Is a directory"):
        train_text_encoder(sentences(20), tmp_path, **TINY)
    monkeypatch.setattr(language_model, "PEAK_RATE", 1e30)
    with pytest.raises(EncoderError, match="The loss is no longer finite in epoch"):
        train_text_encoder(sentences(60), **TINY)
