"""ZeroShotModel and ZeroShotClassifier: fitted, kept to the bit, refused when damaged, and what they answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from embeddings import EncoderError, EncoderMismatch, PrecomputedEncoder, TfidfTextEncoder
from zeroshot import (
    DescriptionError,
    Prompts,
    RidgeAlignment,
    ZeroShotClassifier,
    ZeroShotError,
    ZeroShotModel,
    mark_all,
    prompts_for,
)
from zeroshot.linear_map import unit_rows
from zeroshot.model import FEWEST_TEXTS, FORMAT, MODEL_FILE, PRIOR_SHOTS

DIM = 10
FINDINGS = ("effusion", "nodule", "fracture", "pneumothorax")
LOOKS = np.random.default_rng(21).normal(size=(4, DIM))
SAID = {
    "effusion": ["Large effusion.", "Effusion on the left."],
    "nodule": ["Small nodule.", "Nodule on the right."],
    "fracture": "Fracture on the right.",
}


def world(n: int = 80, seed: int = 0) -> tuple[NDArray[np.float32], list[str], list[str]]:
    """Images of a finding each, with a report that says it and denies another."""
    rng = np.random.default_rng([11, seed])
    codes = rng.integers(0, 4, n)
    images = LOOKS[codes] + 0.6 * rng.normal(size=(n, DIM)) + 1
    texts = [
        f"{('Small', 'Large')[rng.integers(2)]} {FINDINGS[code]} on the {('left', 'right')[rng.integers(2)]}. "
        f"No {FINDINGS[(code + 1 + rng.integers(3)) % 4]}."
        for code in codes
    ]
    return images.astype(np.float32), texts, [FINDINGS[code] for code in codes]


@pytest.fixture(scope="module")
def encoder() -> PrecomputedEncoder:
    return PrecomputedEncoder(["x"], np.zeros((1, DIM), dtype=np.float32), name="made elsewhere")


@pytest.fixture(scope="module")
def text_encoder() -> TfidfTextEncoder:
    return TfidfTextEncoder(dim=24).fit(mark_all(world()[1]))


@pytest.fixture(scope="module")
def model(encoder: PrecomputedEncoder, text_encoder: TfidfTextEncoder) -> ZeroShotModel:
    images, texts, _ = world()
    return ZeroShotModel.fit(images, texts, encoder=encoder, text_encoder=text_encoder, denials=True)


def saved(model: ZeroShotModel, folder: Path) -> Path:
    model.save(folder)
    return folder


def change(folder: Path, **facts: Any) -> None:
    document = json.loads((folder / MODEL_FILE).read_text(encoding="utf-8"))
    (folder / MODEL_FILE).write_text(json.dumps({**document, **facts}), encoding="utf-8")


# -- the model ---------------------------------------------------------------------------------------------------------


def test_it_is_the_alignment_of_the_images_that_have_a_text(
    encoder: PrecomputedEncoder, text_encoder: TfidfTextEncoder
) -> None:
    images, texts, _ = world()
    texts[3], texts[7], texts[9] = "", "zebra", None  # type: ignore[call-overload]
    found = ZeroShotModel.fit(
        images, texts, encoder=encoder, text_encoder=text_encoder, alignment="ridge-to-text", denials=True
    )
    kept = [i for i in range(80) if i not in (3, 7, 9)]
    words = text_encoder.encode(mark_all([texts[i] for i in kept]))
    expected = RidgeAlignment(direction="to-text").fit(images[kept], words).map_
    np.testing.assert_array_equal(found.shared.scores(images, words), expected.scores(images, words))
    back = RidgeAlignment().fit(images[kept], words).map_
    np.testing.assert_array_equal(found.to_image.texts(words), back.texts(words))
    assert found.facts == {"images": 77, "images_without_text": 3}
    assert (found.encoder, found.encoder_name) == (encoder.fingerprint, "made elsewhere")
    assert (found.alignment, found.dim, found.gamma, found.prior_shots) == ("ridge-to-text", DIM, None, PRIOR_SHOTS)
    own = ZeroShotModel.fit(images, texts, encoder=encoder, text_encoder=text_encoder, alignment=RidgeAlignment())
    assert own.alignment == "RidgeAlignment" and not own.denials


def test_what_is_usual_is_the_mean_and_spread_of_scores_over_the_images(model: ZeroShotModel) -> None:
    images = world()[0]
    directions = np.random.default_rng(0).normal(size=(3, model.shared.images(images).shape[1]))
    scores = model.shared.images(images) @ directions.T
    found = model.unusual(scores, directions)
    for c in range(3):
        column = scores[:, c].tolist()
        mean = sum(column) / len(column)
        spread = (sum((value - mean) ** 2 for value in column) / (len(column) - 1)) ** 0.5
        np.testing.assert_allclose(found[:, c], [(value - mean) / spread for value in column], atol=1e-9)


def test_texts_to_look_for_and_what_words_predict(model: ZeroShotModel, text_encoder: TfidfTextEncoder) -> None:
    rows = model.text_vectors(["No effusion.", "Large nodule."])
    np.testing.assert_array_equal(rows, text_encoder.encode(["No noteffusion.", "Large nodule."]))
    assert not model.encode_texts(["zebra"]).any()
    with pytest.raises(ZeroShotError, match=r"The text to look for is empty"):
        model.text_vectors(["Large nodule.", " "])
    with pytest.raises(ZeroShotError, match=r"The text encoder 'tfidf-\d+' knows no word of 'zebra' that matters"):
        model.text_vectors(["zebra"])
    priors = model.image_priors(model.space(SAID))
    assert list(priors) == list(SAID)
    phrases, vectors = priors["nodule"]
    assert phrases == tuple(SAID["nodule"]) and vectors.shape == (2, DIM) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    images, _, labels = world(seed=1)
    own = np.array(labels) == "nodule"
    closeness = unit_rows(images - model.to_image.image_mean) @ vectors.mean(axis=0)
    assert closeness[own].mean() > closeness[~own].mean() + 0.4


def test_it_is_saved_and_loaded_to_the_bit(model: ZeroShotModel, tmp_path: Path) -> None:
    made = model.with_settings(gamma=0.123456789012345, prior_shots=2.5, seen=["effusion", "nodule"])
    assert (model.gamma, model.seen) == (None, ())  # a model is not changed
    again = ZeroShotModel.load(saved(made, tmp_path / "m"))
    images, texts, _ = world(seed=1)
    for name in ("encoder", "encoder_name", "alignment", "gamma", "prior_shots", "seen", "denials", "facts", "dim"):
        assert getattr(again, name) == getattr(made, name), name
    assert again.text_encoder.fingerprint == made.text_encoder.fingerprint
    words = made.encode_texts(texts)
    assert np.array_equal(again.encode_texts(texts), words)
    assert again.shared.scores(images, words).tobytes() == made.shared.scores(images, words).tobytes()
    assert again.to_image.texts(words).tobytes() == made.to_image.texts(words).tobytes()
    assert again.typical is not None and made.typical is not None
    assert [part.tobytes() for part in again.typical] == [part.tobytes() for part in made.typical]
    one, two = (ZeroShotClassifier(part).describe(SAID).decide(images) for part in (made, again))
    assert one == two
    assert saved(again, tmp_path / "n").joinpath(MODEL_FILE).read_bytes() == (tmp_path / "m" / MODEL_FILE).read_bytes()


def test_a_model_saved_over_another_replaces_it_whole(
    model: ZeroShotModel, encoder: PrecomputedEncoder, tmp_path: Path
) -> None:
    images, texts, _ = world(seed=4)
    saved(model, tmp_path)
    other = TfidfTextEncoder(dim=8).fit(texts)
    second = ZeroShotModel.fit(images, texts, encoder=encoder, text_encoder=other, alignment="ridge")
    saved(second, tmp_path)
    assert len(list(tmp_path.glob("alignment-*.safetensors"))) == 1
    again = ZeroShotModel.load(tmp_path)
    assert again.text_encoder.fingerprint == other.fingerprint and again.alignment == "ridge"


def test_every_byte_of_the_weights_is_looked_at(model: ZeroShotModel, tmp_path: Path) -> None:
    (weights,) = saved(model, tmp_path).glob("alignment-*.safetensors")
    whole = weights.read_bytes()
    for place in (0, 9, len(whole) // 2, len(whole) - 1):
        weights.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(
            ZeroShotError, match=r"weights of the model in '.*' are not those that were written: fit it"
        ):
            ZeroShotModel.load(tmp_path)
    weights.write_bytes(whole[:-8])
    with pytest.raises(ZeroShotError, match=r"are not those that were written"):
        ZeroShotModel.load(tmp_path)
    weights.write_bytes(whole)
    assert ZeroShotModel.load(tmp_path).dim == DIM


def test_a_newer_format_is_refused(model: ZeroShotModel, tmp_path: Path) -> None:
    change(saved(model, tmp_path), format=FORMAT + 1)
    with pytest.raises(ZeroShotError, match=r"has format 2, written by a newer radshot; this one reads up to format 1"):
        ZeroShotModel.load(tmp_path)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "JSONDecodeError"),
        (b'{"format": 1', "JSONDecodeError"),
        (b'{"format": 1}', "KeyError"),
        (b"[1, 2]", "TypeError"),
        (b'{"format": "one"}', "TypeError"),
        (b'{"format": 1, "encoder": "\xff"}', "UnicodeDecodeError"),
    ],
)
def test_a_damaged_description_is_refused_in_one_sentence(
    model: ZeroShotModel, tmp_path: Path, content: bytes, why: str
) -> None:
    saved(model, tmp_path)
    (tmp_path / MODEL_FILE).write_bytes(content)
    with pytest.raises(ZeroShotError, match=rf"The model in '.*' cannot be read \({why}\): fit it anew"):
        ZeroShotModel.load(tmp_path)


def test_settings_that_are_no_numbers_are_refused(model: ZeroShotModel, tmp_path: Path) -> None:
    change(saved(model, tmp_path), gamma="much")
    with pytest.raises(ZeroShotError, match=r"The model in '.*' cannot be read \(ValueError\): fit it anew"):
        ZeroShotModel.load(tmp_path)


def test_a_folder_without_a_model_and_a_text_encoder_that_was_changed(model: ZeroShotModel, tmp_path: Path) -> None:
    with pytest.raises(ZeroShotError, match=r"'.*none' holds no zero-shot model: make one with `radshot zeroshot fit"):
        ZeroShotModel.load(tmp_path / "none")
    folder = saved(model, tmp_path / "m")
    (text,) = folder.glob("text-*")
    TfidfTextEncoder(dim=4).fit(world(seed=5)[1]).save(text)
    with pytest.raises(ZeroShotError, match=r"The text encoder in '.*' is not the one the model was fitted with"):
        ZeroShotModel.load(folder)
    (text / "weights.safetensors").write_bytes(b"0" * 40)
    with pytest.raises(EncoderError, match=r"weights\.safetensors"):
        ZeroShotModel.load(folder)


def test_a_model_that_is_written_over_keeps_one_text_encoder(model: ZeroShotModel, tmp_path: Path) -> None:
    saved(model, tmp_path)
    (before,) = tmp_path.glob("text-*")
    other = TfidfTextEncoder(dim=4).fit(world(seed=5)[1])
    (tmp_path / f"text-{other.fingerprint[:12]}").mkdir()  # what a kill while writing another leaves behind
    assert ZeroShotModel.load(tmp_path).text_encoder.fingerprint == model.text_encoder.fingerprint
    model.save(tmp_path)
    assert list(tmp_path.glob("text-*")) == [before]


def test_weights_that_do_not_fit_together_are_refused(model: ZeroShotModel, tmp_path: Path) -> None:
    import hashlib

    (weights,) = saved(model, tmp_path).glob("alignment-*.safetensors")
    arrays = load_tensors(weights.read_bytes())
    del arrays["shared.text_mean"]
    content = save_tensors(arrays)
    weights.write_bytes(content)
    change(tmp_path, sha256=hashlib.sha256(content).hexdigest())
    with pytest.raises(ZeroShotError, match=r"An alignment holds the array 'text_mean'; this one does not"):
        ZeroShotModel.load(tmp_path)


def test_another_encoder_is_refused(model: ZeroShotModel, encoder: PrecomputedEncoder) -> None:
    model.check_encoder(encoder)
    other = PrecomputedEncoder(["x"], np.ones((1, DIM), dtype=np.float32), name="another")
    with pytest.raises(
        EncoderMismatch, match=r"aligned with the encoder 'made elsewhere' \(.{12}\), this is 'another' "
    ):
        model.check_encoder(other)


def test_what_cannot_be_learnt_from_is_refused(encoder: PrecomputedEncoder, text_encoder: TfidfTextEncoder) -> None:
    images, texts, _ = world()

    def fit(rows: Any, said: Any, alignment: str = "cca") -> ZeroShotModel:
        return ZeroShotModel.fit(rows, said, encoder=encoder, text_encoder=text_encoder, alignment=alignment)

    with pytest.raises(ZeroShotError, match=r"80 images need 80 texts; got 79"):
        fit(images, texts[:-1])
    with pytest.raises(ZeroShotError, match=rf"at least {FEWEST_TEXTS} images with a text .*; 9 of 80 have one"):
        fit(images, [*texts[:9], *["zebra"] * 71])
    with pytest.raises(
        ZeroShotError, match=r"Image vectors have 9 dimensions, those of the encoder 'made elsewhere' ha"
    ):
        fit(images[:, :9], texts)
    with pytest.raises(ZeroShotError, match=r"There is no alignment 'cac'; .* Did you mean 'cca'\?"):
        fit(images, texts, "cac")


# -- the classifier ----------------------------------------------------------------------------------------------------


def test_an_image_gets_the_class_whose_words_are_most_similar(model: ZeroShotModel) -> None:
    clf = ZeroShotClassifier(model)
    assert clf.describe(SAID) is clf and clf.classes_.tolist() == list(SAID)
    images, _, labels = world(200, seed=2)
    kept = [i for i, label in enumerate(labels) if label in SAID]
    scores = clf.scores(images)
    np.testing.assert_array_equal(scores, model.shared.scores(images, model.space(SAID).vectors))
    assert np.mean(clf.predict(images[kept]) == np.array(labels)[kept]) > 0.8
    permuted = np.random.default_rng(0).permutation(kept)
    assert np.mean(clf.predict(images[permuted]) == np.array(labels)[kept]) < 0.5
    for image, row, decision in zip(images[:9], scores, clf.decide(images[:9]), strict=False):
        first, second, _ = sorted(range(3), key=lambda c, row=row: -row[c])
        assert (decision.label, decision.runner_up) == (clf.classes_[first], clf.classes_[second])
        assert decision.probability is None and decision.reason is None
        assert decision.score == row[first] and decision.margin == row[first] - row[second]
        said = SAID[str(decision.label)]
        phrases = [said] if isinstance(said, str) else said
        closeness = {
            text: float(model.shared.scores(image[None], unit_rows(model.encode_texts([text])))[0, 0])
            for text in phrases
        }
        expected = sorted(closeness, key=lambda text: -closeness[text])
        assert [found.id for found in decision.evidence] == expected
        assert [found.similarity for found in decision.evidence] == pytest.approx([closeness[t] for t in expected])
        assert {found.label for found in decision.evidence} == {decision.label}
        assert {found.label for found in decision.counter_evidence} == {decision.runner_up}


def test_an_answer_does_not_depend_on_who_else_is_asked_about(model: ZeroShotModel) -> None:
    images = world(20, seed=2)[0]
    clf = ZeroShotClassifier(model).describe(SAID)
    for image, decision in zip(images, clf.decide(images), strict=True):
        alone = clf.decide(image[None])[0]
        assert (alone.label, alone.runner_up) == (decision.label, decision.runner_up)
        assert alone.score == pytest.approx(decision.score, abs=1e-12)


def test_classes_are_added_replaced_and_never_half(model: ZeroShotModel) -> None:
    clf = ZeroShotClassifier(model).describe(SAID)
    before = clf.scores(world(5)[0])
    with pytest.raises(DescriptionError, match=r"knows no word of the description of 'okapi'"):
        clf.describe({"pneumothorax": "Large pneumothorax.", "okapi": "zebra"})
    with pytest.raises(DescriptionError, match=r"The class 'okapi' has no text"):
        clf.describe({"okapi": ""})
    assert clf.classes_.tolist() == list(SAID) and np.array_equal(clf.scores(world(5)[0]), before)
    clf.describe({"pneumothorax": "Large pneumothorax."}).describe({"nodule": "Nodule on the left."})
    assert clf.classes_.tolist() == [*SAID, "pneumothorax"]
    assert clf.space_.phrases["nodule"] == ("Nodule on the left.",)
    assert np.array_equal(clf.scores(world(5)[0])[:, [0, 2]], before[:, [0, 2]])
    assert clf.remarks_ == clf.space_.remarks == ()
    clf.describe({"nodule": "Nodule, fracture."})
    assert "names another class, 'fracture'" in clf.remarks_[0]


def test_a_small_lead_is_uncertain_and_an_image_that_was_not_embedded_has_no_answer(model: ZeroShotModel) -> None:
    images = world(60, seed=3)[0]
    images[4, 2] = np.nan
    plain = ZeroShotClassifier(model).describe(SAID)
    sure = ZeroShotClassifier(model, least_margin=0.2, n_evidence=1).describe(SAID)
    uncertain = 0
    for number, (one, two) in enumerate(zip(plain.decide(images), sure.decide(images), strict=True)):
        if number == 4:
            assert one.label is two.label is one.score is one.margin is None and one.evidence == ()
            assert "nothing can be said about the image" in (one.reason or "")
            continue
        assert one.margin is not None and (one.score, one.margin) == (two.score, two.margin)
        assert two.label == (None if one.margin < 0.2 else one.label)
        assert len(two.evidence) == 1
        if two.label is None:
            uncertain += 1
            assert (
                two.reason == f"Uncertain: it is only {one.margin:.3f} nearer to {one.label!r} than to another class."
            )
    assert 0 < uncertain < 50
    assert np.isnan(plain.scores(images)[4]).all() and not np.isnan(np.delete(plain.scores(images), 4, 0)).any()
    assert plain.predict(images)[4] is None


def test_gamma_is_taken_off_seen_classes_where_others_compete(model: ZeroShotModel) -> None:
    images = world(9, seed=2)[0]
    plain = ZeroShotClassifier(model).describe(SAID).scores(images)

    def scores(used: ZeroShotModel, **options: Any) -> NDArray[np.float64]:
        return ZeroShotClassifier(used, **options).describe(SAID).scores(images)

    lowered = plain - [0.25, 0, 0.25]
    own = model.with_settings(gamma=0.25, seen=["effusion", "fracture", "not described"])
    np.testing.assert_array_equal(scores(own), lowered)
    np.testing.assert_array_equal(scores(model, seen={"effusion", "fracture"}, gamma=0.25), lowered)
    np.testing.assert_array_equal(scores(own, gamma=0.0), plain)
    np.testing.assert_array_equal(scores(own, seen=["nodule"], gamma=-1.0), plain - [0, -1, 0])
    np.testing.assert_array_equal(scores(model, seen=["nodule"]), plain)  # no gamma was chosen
    np.testing.assert_array_equal(scores(own, seen=list(SAID)), plain)  # with all of them seen nothing is uneven
    np.testing.assert_array_equal(scores(own, seen=["okapi"]), plain)


def test_presence_is_the_lead_of_presence_over_absence_in_spreads_of_the_usual(model: ZeroShotModel) -> None:
    images, _, labels = world(120, seed=2)
    images[5] = np.nan
    clf = ZeroShotClassifier(model).describe({name: prompts_for(name) for name in FINDINGS})
    found = clf.presence(images)
    assert found.shape == (120, 4) and np.isnan(found[5]).all()
    learnt, space = model.shared.images(world()[0]), clf.space_
    assert space.absent is not None
    there, absent = model.shared.texts(space.vectors), model.shared.texts(space.absent)
    for c, name in enumerate(FINDINGS):
        usual = [float(row @ there[c] - row @ absent[c]) for row in learnt]
        mean = sum(usual) / len(usual)
        spread = (sum((value - mean) ** 2 for value in usual) / (len(usual) - 1)) ** 0.5
        image = model.shared.images(images[:1])[0]
        assert found[0, c] == pytest.approx((image @ there[c] - image @ absent[c] - mean) / spread, rel=1e-6)
        own = np.array([label == name for label in labels])
        own[5] = False
        other = ~own
        other[5] = False
        assert np.mean(found[own, c][:, None] > found[other, c][None]) > 0.8  # AUROC


def test_what_cannot_be_asked_is_refused(model: ZeroShotModel) -> None:
    images = world(5)[0]
    clf = ZeroShotClassifier(model)
    for ask in (clf.scores, clf.decide, clf.predict, clf.presence):
        with pytest.raises(ZeroShotError, match=r"No class is described yet: call describe first"):
            ask(images)
    with pytest.raises(ZeroShotError, match=r"No class is described yet"):
        _ = clf.remarks_
    clf.describe({"effusion": prompts_for("effusion"), "nodule": Prompts(("Small nodule.",))})
    with pytest.raises(DescriptionError, match=r"The class 'nodule' has no absent form, which several labels"):
        clf.presence(images)
    for wrong in (images[:, :9], images[0]):
        with pytest.raises(
            ZeroShotError, match=r"must have shape \(n, 10\), as the encoder 'made elsewhere' makes them"
        ):
            clf.decide(wrong)


def test_a_single_class_has_no_margin(model: ZeroShotModel) -> None:
    decision = ZeroShotClassifier(model, least_margin=0.5).describe({"nodule": "Small nodule."}).decide(world(1)[0])[0]
    assert decision.label == "nodule" and decision.margin is None and decision.runner_up is None
    assert decision.counter_evidence == ()
