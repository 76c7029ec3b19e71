"""TF-IDF text encoder against a slow loop, on disk and back to the bit; what load_text_encoder says it cannot find."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from embeddings import EncoderError, TextEncoder, TfidfTextEncoder, UnknownEncoder, load_text_encoder
from embeddings.tfidf import _signed

FINDINGS = ("pleural effusion", "pneumothorax", "lung nodule", "rib fracture", "cardiomegaly", "consolidation")
SIDES = ("left", "right")


def reports(count: int = 60, seed: int = 0) -> list[str]:
    """Write short reports that mention one finding and deny another."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        there, absent = rng.choice(len(FINDINGS), 2, replace=False)
        side, size = SIDES[rng.integers(2)], rng.integers(3, 9)
        made.append(f"{size} mm {FINDINGS[there]} on the {side}. No {FINDINGS[absent]}; no other finding.")
    return made


@pytest.fixture(scope="module")
def encoder() -> TfidfTextEncoder:
    return TfidfTextEncoder(dim=12).fit(reports())


def terms_of(text: str, least: int, most: int) -> list[str]:
    words = re.findall(r"\w+", text.casefold())
    return [" ".join(words[i : i + n]) for n in range(least, most + 1) for i in range(len(words) - n + 1)]


@pytest.mark.parametrize("sublinear", [True, False])
def test_rows_are_those_of_a_slow_loop(sublinear: bool) -> None:
    texts = reports()
    encoder = TfidfTextEncoder(dim=10, ngrams=(1, 2), min_count=3, sublinear=sublinear, seed=1).fit(texts)
    documents = [terms_of(text, 1, 2) for text in texts]
    frequency = {term: sum(term in found for found in documents) for found in documents for term in found}
    vocabulary = sorted(term for term, count in frequency.items() if count >= 3)
    assert encoder.vocabulary == tuple(vocabulary)
    weights = np.zeros((len(texts), len(vocabulary)))
    for i, found in enumerate(documents):
        for j, term in enumerate(vocabulary):
            if count := found.count(term):
                weight = 1 + math.log(count) if sublinear else count
                weights[i, j] = weight * (1 + math.log((1 + len(texts)) / (1 + frequency[term])))
        weights[i] /= math.sqrt(sum(value * value for value in weights[i]))
    _, _, directions = np.linalg.svd(weights, full_matrices=False)
    expected = weights @ directions[:10].T
    rows = encoder.encode(texts)
    assert rows.dtype == np.float32 and rows.shape == (60, encoder.dim) == (60, 10)
    # an exact decomposition leaves the signs open, and the randomised one is exact to the last directions but one
    signs = np.sign((rows * expected).sum(axis=0))
    np.testing.assert_allclose(rows[:, :8], (expected * signs)[:, :8], atol=5e-3)
    components = encoder._learnt.components if encoder._learnt else np.empty(0)
    np.testing.assert_allclose(rows, weights @ components.T, atol=1e-6)
    np.testing.assert_allclose(components @ components.T, np.eye(10), atol=1e-5)


def test_two_fits_agree_and_each_option_counts() -> None:
    first = TfidfTextEncoder(dim=12).fit(reports())
    assert TfidfTextEncoder(dim=12).fit(reports()).fingerprint == first.fingerprint
    others: list[TfidfTextEncoder] = [
        TfidfTextEncoder(dim=11),
        TfidfTextEncoder(dim=12, ngrams=(1, 1)),
        TfidfTextEncoder(dim=12, min_count=9),
        TfidfTextEncoder(dim=12, sublinear=False),
    ]
    assert len({first.fingerprint, *(other.fit(reports()).fingerprint for other in others)}) == 5
    assert first.fit(reports(seed=1)).fingerprint != TfidfTextEncoder(dim=12).fit(reports()).fingerprint


def test_signs_do_not_hang_on_rounding() -> None:
    rows = np.array([[0.5, -0.5, 0.1], [-0.5, 0.5 + 1e-12, 0.1], [0.1, 0.2, -0.9]])
    expected = np.array([[0.5, -0.5, 0.1], [0.5, -0.5, -0.1], [-0.1, -0.2, 0.9]])
    np.testing.assert_allclose(_signed(rows), expected)
    np.testing.assert_allclose(_signed(-rows), expected)


def test_a_row_does_not_depend_on_its_batch(encoder: TfidfTextEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = reports(30, seed=5)
    together = encoder.encode(texts)
    np.testing.assert_array_equal(together, np.concatenate([encoder.encode([text]) for text in texts]))
    monkeypatch.setattr("embeddings.tfidf._TEXTS_AT_ONCE", 7)
    np.testing.assert_array_equal(together, encoder.encode(texts))


def test_case_and_composition_of_letters_do_not_count() -> None:
    encoder = TfidfTextEncoder(dim=4, min_count=1).fit(["épanchement pleural", "STRASSE frei", "straße 1"])
    rows = encoder.encode(["E\u0301PANCHEMENT Pleural", "épanchement pleural", "strasse", "Straße"])
    np.testing.assert_array_equal(rows[0], rows[1])
    np.testing.assert_array_equal(rows[2], rows[3])


def test_unknown_words_give_zeros_and_are_told(encoder: TfidfTextEncoder) -> None:
    texts = ["zebra crossing", "", "zebra with effusion", " ... "]
    assert encoder.known(texts) == [False, False, True, False]
    assert [bool(row.any()) for row in encoder.encode(texts)] == [False, False, True, False]
    assert encoder.truncated([*texts, "word " * 10_000]) == [False] * 5
    assert encoder.encode([]).shape == (0, 12) and encoder.known([]) == [] and encoder.truncated([]) == []


def test_few_texts_allow_fewer_dimensions_and_it_says_so() -> None:
    texts = ["left effusion", "right effusion", "left nodule"]
    encoder = TfidfTextEncoder(min_count=1, ngrams=(1, 1)).fit(texts)
    assert (encoder.dim, encoder.reduced, encoder.options.dim) == (3, True, 128)
    assert encoder.encode(texts).shape == (3, 3)
    doubled = TfidfTextEncoder(min_count=1, ngrams=(1, 1)).fit(texts * 2)  # six texts, and three directions
    assert doubled.dim == 3
    single = TfidfTextEncoder(min_count=1).fit(["effusion"])
    assert single.dim == 1 and single.encode(["effusion", "nodule"]).tolist() == [[1.0], [0.0]]
    assert not TfidfTextEncoder(dim=2, min_count=1).fit(texts).reduced


def test_texts_of_one_finding_lie_together(encoder: TfidfTextEncoder) -> None:
    rows = encoder.encode(["pleural effusion", "effusion, pleural", "rib fracture"])
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    assert rows[0] @ rows[1] > 0.5 > rows[0] @ rows[2]


def test_saved_and_loaded_to_the_bit(encoder: TfidfTextEncoder, tmp_path: Path) -> None:
    assert encoder.save(tmp_path / "new" / "words") == tmp_path / "new" / "words"
    loaded = load_text_encoder(tmp_path / "new" / "words")
    assert isinstance(loaded, TfidfTextEncoder) and isinstance(loaded, TextEncoder)
    assert (loaded.fingerprint, loaded.name, loaded.dim) == (encoder.fingerprint, "tfidf-12", 12)
    assert (loaded.options, loaded.vocabulary) == (encoder.options, encoder.vocabulary)
    assert loaded.spec == encoder.spec == str(tmp_path / "new" / "words")
    texts = [*reports(20, seed=9), "zebra"]
    np.testing.assert_array_equal(loaded.encode(texts), encoder.encode(texts))
    assert loaded.known(texts) == encoder.known(texts)
    assert load_text_encoder(loaded) is loaded
    loaded.save(tmp_path / "again")
    for name in ("text_encoder.json", "weights.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "new" / "words" / name).read_bytes()


def test_saving_again_replaces_the_encoder_and_nothing_else(encoder: TfidfTextEncoder, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    encoder.save(tmp_path)
    document = json.loads((tmp_path / "text_encoder.json").read_text())
    (tmp_path / "old.bin").write_text("of the encoder before")
    (tmp_path / "text_encoder.json").write_text(json.dumps({**document, "files": {**document["files"], "old.bin": ""}}))
    TfidfTextEncoder(dim=5).fit(reports()).save(tmp_path)
    assert load_text_encoder(tmp_path).dim == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", "text_encoder.json", "weights.safetensors"]
    modes = {(tmp_path / name).stat().st_mode for name in ("text_encoder.json", "weights.safetensors")}
    assert len(modes) == 1


def change(folder: Path, **fields: Any) -> None:
    path = folder / "text_encoder.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_what_was_changed_on_disk_is_refused(encoder: TfidfTextEncoder, tmp_path: Path) -> None:
    encoder.save(tmp_path)
    whole = (tmp_path / "text_encoder.json").read_text()
    words = list(encoder.vocabulary)
    for fields, message in (
        ({"vocabulary": [*words[:-1], "zzz"]}, "is not what was saved: its text_encoder.json was changed"),
        ({"vocabulary": words[:-1]}, r"none that was saved: \d+ terms, weights"),
        ({"vocabulary": [words[0], *words[:-1]]}, "none that was saved: Duplicate term"),
        ({"vocabulary": []}, "its vocabulary is no list of terms"),
        ({"options": {"dim": 12, "ngrams": [2, 1]}}, "none that was saved: ngrams must be"),
        ({"format_version": 2}, "has format 2, this radshot reads 1: upgrade radshot"),
        ({"kind": "pickle"}, "is no description of a text encoder, or was cut short"),
        ({"files": {"../weights.safetensors": "0"}}, "is no description of a text encoder.*lie elsewhere"),
        ({"files": {"gone.safetensors": "0"}}, "gone.safetensors cannot be read: No such file or directory"),
        ({"files": {}, "options": None}, "none that was saved"),
    ):
        (tmp_path / "text_encoder.json").write_text(whole)
        change(tmp_path, **fields)
        with pytest.raises(EncoderError, match=message) as caught:
            load_text_encoder(tmp_path)
        assert "\n" not in str(caught.value)
    (tmp_path / "text_encoder.json").write_text(whole[:-40])
    with pytest.raises(EncoderError, match="is no description of a text encoder, or was cut short"):
        load_text_encoder(tmp_path)
    (tmp_path / "text_encoder.json").write_text(whole)
    tensors = load_file(tmp_path / "weights.safetensors")
    save_file({**tensors, "idf": tensors["idf"] + 1}, tmp_path / "weights.safetensors")
    with pytest.raises(EncoderError, match=r"is not the file text_encoder.json was saved with: one of the two was"):
        load_text_encoder(tmp_path)
    change(tmp_path, files={})
    with pytest.raises(EncoderError, match="is not what was saved"):
        load_text_encoder(tmp_path)
    save_file({**tensors, "idf": tensors["idf"].astype(np.float32)}, tmp_path / "weights.safetensors")
    with pytest.raises(EncoderError, match="weights of float32 and components of float32"):
        load_text_encoder(tmp_path)


def test_larger_descriptions_are_neither_written_nor_read(
    encoder: TfidfTextEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder.save(tmp_path / "a")
    monkeypatch.setattr("embeddings.text_files.MAX_JSON_BYTES", 200)
    with pytest.raises(EncoderError, match="larger than 200 bytes"):
        load_text_encoder(tmp_path / "a")
    with pytest.raises(EncoderError, match=r"too many terms to be saved in .*: raise min_count"):
        encoder.save(tmp_path / "b")
    assert list((tmp_path / "b").iterdir()) == []


def test_wrong_options_and_texts_are_refused(encoder: TfidfTextEncoder, tmp_path: Path) -> None:
    anything: Any = TfidfTextEncoder
    for options, message in (
        ({"dim": 0}, "dim must be a whole number of at least 1; got 0"),
        ({"min_count": 0.5}, r"min_count must be a whole number of at least 1; got 0.5"),
        ({"seed": -1}, "seed must be a whole number of at least 0; got -1"),
        ({"ngrams": (2, 1)}, r"ngrams must be the least and the most words of a term, from 1 to 5; got \(2, 1\)"),
        ({"sublinear": 1}, "sublinear must be True or False; got 1"),
    ):
        with pytest.raises(EncoderError, match=message):
            anything(**options)
    texts: Any
    for texts, message in (
        ("one text", r"encode takes a list of texts and got a single one: write encode\(\[text\]\)"),
        (["a", None], r"encode takes a list of texts; number 1 is NoneType \(None\)"),
        (7, "encode takes a list of texts; got int"),
        (["a", "\ud800"], "number 1 holds half a character"),
    ):
        with pytest.raises(EncoderError, match=message):
            encoder.encode(texts)
    for few in ([], ["a"], ["a b", "c d"], ["", " "]):
        with pytest.raises(EncoderError, match=f"No word occurs in at least 2 of the {len(few)} texts"):
            TfidfTextEncoder().fit(few)
    with pytest.raises(EncoderError, match=r"has learnt no words yet: call fit\(texts\) first"):
        TfidfTextEncoder().encode(["a"])
    (tmp_path / "file").touch()
    with pytest.raises(EncoderError, match=r"cannot be written: (Not a directory|File exists)"):
        encoder.save(tmp_path / "file")
    assert "not fitted" in repr(TfidfTextEncoder()) and "tfidf-12" in repr(encoder)


def test_what_cannot_be_found_is_named(encoder: TfidfTextEncoder, tmp_path: Path) -> None:
    encoder.save(tmp_path / "chest-words")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").touch()
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "encoder.json").touch()
    for spec, message in (
        (tmp_path / "chest-word", "There is no text encoder .*Did you mean '.*/chest-words'?"),
        ("nothing-of-the-kind", "There is no text encoder 'nothing-of-the-kind' and no such folder; one is named by"),
        (tmp_path, "has no text_encoder.json: it is no text encoder"),
        (tmp_path / "model", 'holds a transformers model: write "hf:.*/model"'),
        (tmp_path / "images", "holds an encoder of images, not of texts: use load_encoder"),
        (tmp_path / "chest-words" / "text_encoder.json", "is a file; a text encoder is the folder that holds"),
        ("tfidf-128", r"a TF-IDF encoder is fitted, TfidfTextEncoder\(\).fit\(texts\)"),
        (
            "hf:some/model#maen",
            "The pooling after '#' is one of mean, cls, last, pooler; got 'maen'. Did you mean",
        ),
        (3, "A text encoder is named by .*; got int"),
        (TfidfTextEncoder, "A text encoder is named by"),
    ):
        anything: Any = spec
        with pytest.raises(EncoderError, match=message) as caught:
            load_text_encoder(anything)
        assert "\n" not in str(caught.value)
    with pytest.raises(UnknownEncoder):
        load_text_encoder("nothing-of-the-kind")
