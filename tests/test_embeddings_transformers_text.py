"""TransformersTextEncoder on tiny models saved in the library's own format: poolings, padding, length, refusals."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from embeddings import EncoderError, TextEncoder, TransformersTextEncoder, load_text_encoder

WORDS = ["no", "small", "large", "left", "right", "pleural", "effusion", "nodule", "of", "the", "a", "mm", "in"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TEXTS = ["no effusion", "small left pleural effusion of the right", "nodule", "", "zebra nodule " * 3]
SIZE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
VOCABULARY = len(SPECIAL) + len(WORDS)


def tokenizer_of(**options: Any) -> Any:
    make: Any = transformers.BertTokenizer
    return make(vocab={word: i for i, word in enumerate([*SPECIAL, *WORDS])}, **options)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save tiny models of several families, each with a tokenizer."""
    root = tmp_path_factory.mktemp("models")
    config: Any = {**SIZE, "vocab_size": VOCABULARY, "pad_token_id": 0}
    text = {**config, "max_position_embeddings": 12, "bos_token_id": 2, "eos_token_id": 3}
    vision = {**SIZE, "image_size": 16, "patch_size": 8}
    clip = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=6)
    siglip = transformers.SiglipConfig(text_config={**text, "projection_size": 16}, vision_config=vision)
    bert: Any = transformers.BertConfig(**config, max_position_embeddings=20)
    roberta: Any = transformers.RobertaConfig(**config, max_position_embeddings=12)
    gpt2: Any = transformers.GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=20)
    t5: Any = transformers.T5Config(vocab_size=VOCABULARY, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for name, model, tokenizer in (
            ("bert", transformers.BertModel(bert), tokenizer_of()),
            ("bert_for_masks", transformers.BertForMaskedLM(bert), tokenizer_of()),
            ("roberta", transformers.RobertaModel(roberta), tokenizer_of()),
            ("gpt2", transformers.GPT2Model(gpt2), tokenizer_of()),
            ("t5", transformers.T5Model(t5), tokenizer_of()),
            ("clip", transformers.CLIPModel(clip), tokenizer_of(model_max_length=12)),
            ("siglip", transformers.SiglipModel(siglip), tokenizer_of(model_max_length=12)),
            ("vit", transformers.ViTModel(transformers.ViTConfig(**vision)), tokenizer_of()),
        ):
            model.save_pretrained(root / name)
            tokenizer.save_pretrained(root / name)
    return root


def numbers(text: str) -> list[int]:
    """Tokenise by hand: one number a word, between [CLS] and [SEP]."""
    return [2, *([*SPECIAL, *WORDS].index(word) if word in WORDS else 1 for word in text.split()), 3]


@pytest.mark.parametrize("pooling", ["mean", "cls", "last", "pooler", None])
@pytest.mark.parametrize("name", ["bert", "gpt2", "t5"])
def test_poolings_are_those_of_a_slow_loop(models: Path, name: str, pooling: str | None) -> None:
    spec = f"hf:{models / name}" + (f"#{pooling}" if pooling else "")
    if pooling == "pooler" and name != "bert":
        with pytest.raises(EncoderError, match=r'has no pooled output of its own: use "mean" or "cls"'):
            load_text_encoder(spec)
        return
    encoder = load_text_encoder(spec, device="cpu")
    assert isinstance(encoder, TransformersTextEncoder) and isinstance(encoder, TextEncoder)
    assert (encoder.pooling, encoder.dim, encoder.name) == (pooling or "mean", 16, f"hf:{models / name}")
    assert encoder.spec == f"hf:{models / name}#{pooling or 'mean'}"
    rows = encoder.encode(TEXTS)
    assert rows.shape == (5, 16) and rows.dtype == np.float32
    model: Any = transformers.AutoModel.from_pretrained(models / name).eval()
    reads = model.encoder if name == "t5" else model
    with torch.inference_mode():
        for text, row in zip(TEXTS, rows, strict=True):
            output = reads(input_ids=torch.tensor([numbers(text)]))  # alone, so that nothing is padded
            tokens = list(output.last_hidden_state[0])
            if pooling == "pooler":
                expected = output.pooler_output[0]
            else:
                expected = {"cls": tokens[0], "last": tokens[-1]}.get(pooling or "", sum(tokens) / len(tokens))
            np.testing.assert_allclose(row, expected.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "dim"), [("clip", 6), ("siglip", 16)])
def test_models_of_images_and_texts_give_their_text_features(models: Path, name: str, dim: int) -> None:
    encoder = load_text_encoder(f"hf:{models / name}")
    assert isinstance(encoder, TransformersTextEncoder)
    assert (encoder.pooling, encoder.dim, encoder.max_tokens) == ("text_features", dim, 12)
    model: Any = transformers.AutoModel.from_pretrained(models / name).eval()
    with torch.inference_mode():
        for text, row in zip(TEXTS, encoder.encode(TEXTS), strict=True):
            tokens = numbers(text)
            if name == "siglip":  # trained on texts padded to the full length, without a mask
                tokens += [0] * (12 - len(tokens))
            expected = model.get_text_features(input_ids=torch.tensor([tokens])).pooler_output[0]
            np.testing.assert_allclose(row, expected.numpy(), rtol=1e-4, atol=1e-5)
    with pytest.raises(EncoderError, match=r"The pooling of .* is one of text_features; got 'mean'"):
        load_text_encoder(f"hf:{models / name}#mean")


def test_length_is_what_model_and_tokenizer_allow_and_longer_texts_are_told(models: Path) -> None:
    lengths = {"bert": 20, "roberta": 11, "gpt2": 20, "t5": 512, "clip": 12}  # RoBERTa counts from behind its padding
    for name, length in lengths.items():
        encoder = load_text_encoder(f"hf:{models / name}")
        assert isinstance(encoder, TransformersTextEncoder) and encoder.max_tokens == length
        fits, too_long = "nodule " * (length - 2), "nodule " * (length - 1)
        assert encoder.truncated([fits, too_long, ""]) == [False, True, False] and encoder.truncated([]) == []
        rows = encoder.encode([fits, too_long, too_long + " effusion"])
        np.testing.assert_allclose(rows[1:], rows[[0, 0]], rtol=1e-5, atol=1e-6)
    model: Any = transformers.AutoModel.from_pretrained(models / "bert")
    shorter = TransformersTextEncoder(model, tokenizer_of(), max_tokens=4)
    assert shorter.truncated(["a nodule", "a small nodule"]) == [False, True]
    assert shorter.fingerprint != TransformersTextEncoder(model, tokenizer_of()).fingerprint
    for wanted in (2, 21, 4.0):
        anything: Any = wanted
        with pytest.raises(EncoderError, match=f"must be at least 3 and at most 20; got {wanted}"):
            TransformersTextEncoder(model, tokenizer_of(), max_tokens=anything)


def test_batches_change_nothing_but_rounding(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = load_text_encoder(f"hf:{models / 'bert'}")
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, rng.integers(0, 15))) for _ in range(40)]
    together = encoder.encode(texts)
    np.testing.assert_array_equal(encoder.encode(texts), together)
    monkeypatch.setattr("embeddings.transformers_text._TOKENS_AT_ONCE", 30)
    np.testing.assert_allclose(encoder.encode(texts), together, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(encoder.encode(texts[::-1])[::-1], together, rtol=1e-4, atol=1e-6)
    assert encoder.encode([]).shape == (0, 16)


def test_threads_share_an_encoder(models: Path) -> None:
    encoder = load_text_encoder(f"hf:{models / 'bert'}")
    expected = encoder.encode(TEXTS)

    def ask(number: int) -> bool:
        told = encoder.truncated(["nodule " * 30, "nodule"]) == [True, False]
        return told and np.allclose(encoder.encode(TEXTS), expected, atol=1e-6)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(ask, range(24)))


def test_fingerprints_repeat_and_know_pooling_weights_and_words(models: Path, tmp_path: Path) -> None:
    # the absent pooler of the masked model is random each time it is loaded, and must not count
    for name in ("bert", "bert_for_masks", "clip"):
        assert len({load_text_encoder(f"hf:{models / name}").fingerprint for _ in range(2)}) == 1
    first = load_text_encoder(f"hf:{models / 'bert'}")
    assert load_text_encoder(f"hf:{models / 'bert'}#mean").fingerprint == first.fingerprint
    assert load_text_encoder(f"hf:{models / 'bert'}#cls").fingerprint != first.fingerprint
    first.encode(["nodule " * 50])  # leaves a truncation in the tokenizer
    first.save(tmp_path / "saved")
    shutil.copytree(models / "bert", tmp_path / "copy")
    assert load_text_encoder(f"hf:{tmp_path / 'copy'}").fingerprint == first.fingerprint
    words = (tmp_path / "copy" / "tokenizer.json").read_text()
    (tmp_path / "copy" / "tokenizer.json").write_text(words.replace("nodule", "module"))
    assert load_text_encoder(f"hf:{tmp_path / 'copy'}").fingerprint != first.fingerprint
    with pytest.raises(EncoderError, match=r'has no pooled output of its own: use "mean" or "cls"'):
        load_text_encoder(f"hf:{models / 'bert_for_masks'}#pooler")


@pytest.mark.parametrize("name", ["bert", "bert_for_masks", "gpt2", "t5", "clip"])
def test_saved_and_loaded_to_the_bit(models: Path, tmp_path: Path, name: str) -> None:
    encoder = load_text_encoder(f"hf:{models / name}")
    assert encoder.save(tmp_path / "a") == tmp_path / "a"
    loaded = load_text_encoder(tmp_path / "a")
    assert isinstance(loaded, TransformersTextEncoder) and isinstance(encoder, TransformersTextEncoder)
    assert (loaded.fingerprint, loaded.name, loaded.dim) == (encoder.fingerprint, encoder.name, encoder.dim)
    assert (loaded.pooling, loaded.max_tokens) == (encoder.pooling, encoder.max_tokens)
    assert loaded.spec == str(tmp_path / "a") and encoder.spec == str(tmp_path / "a")
    np.testing.assert_array_equal(loaded.encode(TEXTS), encoder.encode(TEXTS))
    loaded.save(tmp_path / "b")
    assert load_text_encoder(tmp_path / "b").fingerprint == encoder.fingerprint
    assert not [path for path in (tmp_path / "a").iterdir() if path.suffix not in (".json", ".safetensors")]
    assert "fingerprint" in repr(loaded)


def test_what_was_changed_on_disk_is_refused(models: Path, tmp_path: Path) -> None:
    load_text_encoder(f"hf:{models / 'bert'}").save(tmp_path)
    path = tmp_path / "text_encoder.json"
    document = json.loads(path.read_text())
    for fields, message in (
        ({"pooling": "cls"}, "is not what was saved: its description was changed"),
        ({"pooling": "all"}, "The pooling of .* is one of mean, cls, last, pooler; got 'all'"),
        ({"max_tokens": 10}, "is not what was saved: its description was changed"),
        ({"max_tokens": 99}, "must be at least 3 and at most 20; got 99"),
        ({"training": 3}, "is none that was saved"),
    ):
        path.write_text(json.dumps({**document, **fields}))
        with pytest.raises(EncoderError, match=message):
            load_text_encoder(tmp_path)
    del document["identity"]
    path.write_text(json.dumps(document))
    with pytest.raises(EncoderError, match=r"is none that was saved \('identity'\)"):
        load_text_encoder(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((models / "gpt2" / "model.safetensors").read_bytes())
    with pytest.raises(EncoderError, match=r"model.safetensors is not the file text_encoder.json was saved with"):
        load_text_encoder(tmp_path)


def test_refusals(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(EncoderError, match=r'"hf:" needs a hub id or a folder'):
        load_text_encoder("hf:")
    with pytest.raises(EncoderError, match="There is no folder 'nobody/nothing', and no model of that id"):
        load_text_encoder("hf:nobody/nothing#cls")
    with pytest.raises(EncoderError, match="is no text model"):
        load_text_encoder(f"hf:{models / 'vit'}")
    model = tmp_path / "model"
    shutil.copytree(models / "bert", model)
    (model / "tokenizer.json").unlink()
    (model / "tokenizer_config.json").unlink()
    with pytest.raises(EncoderError, match="has no tokenizer that can be loaded") as caught:
        load_text_encoder(f"hf:{model}")
    assert "\n" not in str(caught.value)
    tokenizer_of().save_pretrained(model)
    tensors = load_file(model / "model.safetensors")
    gone = next(key for key in sorted(tensors) if "pooler" not in key)
    save_file({k: v for k, v in tensors.items() if k != gone}, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EncoderError, match="lacks 1 weights of its model"):
        load_text_encoder(f"hf:{model}")
    (model / "model.safetensors").unlink()
    torch.save({}, model / "pytorch_model.bin")
    with pytest.raises(EncoderError, match="has no safetensors weights; pickled weights are never loaded"):
        load_text_encoder(f"hf:{model}")


def test_a_tokenizer_of_another_model_is_found_out(models: Path) -> None:
    model: Any = transformers.AutoModel.from_pretrained(models / "bert")
    tokenizer = tokenizer_of()
    tokenizer.add_tokens(["fibrosis"])
    encoder = TransformersTextEncoder(model, tokenizer, name="mixed")
    with pytest.raises(EncoderError, match=f"makes token {VOCABULARY}, and the model knows {VOCABULARY}"):
        encoder.encode(["fibrosis"])
    with pytest.raises(EncoderError, match=r"write encode\(\[text\]\)"):
        encoder.encode("one text")


def test_loading_and_saving_are_silent(models: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    encoder = load_text_encoder(f"hf:{models / 'bert_for_masks'}")
    encoder.truncated(["nodule " * 1000])
    encoder.save(tmp_path)
    load_text_encoder(tmp_path).encode(["nodule " * 1000])
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")
