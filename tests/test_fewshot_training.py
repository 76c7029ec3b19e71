"""Episodic training: it learns, repeats itself, keeps its best weights, and says what is wrong in one sentence."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from embeddings import (
    Augmentation,
    EncoderError,
    ImageError,
    Preprocess,
    SourceStatistics,
    TorchEncoder,
    build_backbone,
    load_encoder,
    read_image,
)
from episodes import EpisodeError, EpisodeSampler, evaluate
from fewshot import PrototypeClassifier, Training, TrainingConfig, TrainingError, make_head, train
from fewshot.devices import Devices
from fewshot.layout import Source
from fewshot.pixels import grey_statistics
from fewshot.stage import Stage

SIDE = 32
SMALL = TrainingConfig(
    method="prototypical",
    backbone_config={"width": 16},
    k_shot=2,
    n_query=3,
    episodes=60,
    validation_every=20,
    validation_episodes=40,
    learning_rate=5e-3,
    precision="float32",
)
QUICK = replace(SMALL, episodes=6, validation_every=2, validation_episodes=10)


def gratings(classes: int = 12, patients: int = 8, seed: int = 0) -> tuple[np.ndarray, list[str], list[str]]:
    """Stripes whose direction and width are the class, their place and grey level each patient's own."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    images, labels, groups = [], [], []
    for c in range(classes):
        angle, frequency = math.pi * (c % 6) / 6, 3 + 3 * (c // 6)
        for p in range(patients):
            for _ in range(2):
                wave = np.sin(
                    2 * math.pi * (frequency * (rows * math.sin(angle) + columns * math.cos(angle)) + rng.random())
                )
                grey = 0.5 + 0.1 * rng.normal() + 0.25 * wave + 0.1 * rng.normal(size=wave.shape)
                images.append((grey.clip(0, 1) * 255).astype(np.uint8))
                labels.append(f"c{c:02}")
                groups.append(f"c{c}p{p}")
    return np.stack(images), labels, groups


IMAGES, LABELS, GROUPS = gratings()


def run(config: TrainingConfig = QUICK, **options: object) -> Training:
    return train(IMAGES, LABELS, groups=GROUPS, config=config, device="cpu", **options)


@pytest.fixture(scope="module")
def learnt() -> Training:
    return run(SMALL)


def accuracy_on_unseen(encoder: TorchEncoder, held_out: list[str]) -> float:
    """Accuracy on new patients of the classes that were held out, through the encoder's own front door."""
    images, labels, groups = gratings(seed=77)
    which = [i for i, label in enumerate(labels) if label in held_out]
    vectors = encoder.encode([images[i] for i in which])
    labels, groups = [labels[i] for i in which], [groups[i] for i in which]
    sampler = EpisodeSampler(labels, 2, 2, 5, groups=groups, n_episodes=60)
    return evaluate(PrototypeClassifier(center=encoder.source_mean), vectors, labels, sampler).accuracy


def test_it_learns_classes_it_never_saw(learnt: Training) -> None:
    validation = learnt.summary["validation"]
    assert (validation["kind"], validation["n_way"]) == ("classes", 2)
    assert learnt.best_accuracy is not None and learnt.best_accuracy > 0.85
    assert learnt.history[-1]["loss"] < 0.7 * math.log(learnt.summary["n_way"])
    assert accuracy_on_unseen(learnt.encoder, validation["held_out_classes"]) > 0.85
    assert not set(validation["held_out_classes"]) & set(learnt.summary["classes"])


def test_permuted_labels_give_chance() -> None:
    order = np.random.default_rng(3).permutation(len(LABELS) // 2)  # patients keep their two images
    labels = [LABELS[2 * i] for i in order for _ in range(2)]
    config = replace(SMALL, validation="classes", validation_share=0.4, validation_episodes=100)
    training = train(IMAGES, labels, groups=GROUPS, config=config, device="cpu")
    chance = 1 / training.summary["validation"]["n_way"]
    last = training.history[-1]["validation_accuracy"]
    assert abs(float(last or 0) - chance) < 0.12


def test_two_runs_with_one_seed_agree_and_another_seed_differs() -> None:
    once, again, other = run(), run(), run(replace(QUICK, seed=1))
    assert once.encoder.fingerprint == again.encoder.fingerprint != other.encoder.fingerprint
    assert np.array_equal(once.encoder.source_mean, again.encoder.source_mean)
    assert [{**h, "seconds": 0} for h in once.history] == [{**h, "seconds": 0} for h in again.history]


def test_the_global_generators_are_neither_used_nor_moved() -> None:
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002 - the very thing that must not matter
    torch_before, numpy_before = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002
    once = run()
    assert torch.equal(torch.get_rng_state(), torch_before)
    numpy_after = np.random.get_state()  # noqa: NPY002
    assert np.array_equal(numpy_before[1], numpy_after[1]) and numpy_before[2:] == numpy_after[2:]
    torch.manual_seed(6)
    assert run().encoder.fingerprint == once.encoder.fingerprint


def test_a_saved_checkpoint_makes_the_same_vectors(tmp_path: Path) -> None:
    training = run(out=tmp_path / "out" / "encoder")
    loaded = load_encoder(tmp_path / "out" / "encoder", device="cpu")
    assert loaded.fingerprint == training.encoder.fingerprint
    given = list(IMAGES[:10])
    assert np.array_equal(loaded.encode(given), training.encoder.encode(given))
    assert np.array_equal(loaded.source_mean, training.encoder.source_mean)
    document = json.loads((tmp_path / "out" / "encoder" / "encoder.json").read_text())
    assert document["training"]["config"]["seed"] == 0
    assert document["training"]["best_episode"] == training.best_episode
    assert len(document["training"]["history"]) == len(training.history) == 3


def test_the_source_mean_is_the_mean_of_what_was_trained_on(learnt: Training) -> None:
    held = set(learnt.summary["validation"]["held_out_classes"])
    seen = [image for image, label in zip(IMAGES, LABELS, strict=True) if label not in held]
    assert learnt.summary["images"] == len(seen)
    assert np.allclose(learnt.encoder.encode(seen).mean(0), learnt.encoder.source_mean, atol=1e-5)


def same(found: SourceStatistics | None, expected: SourceStatistics, **close: float) -> bool:
    pairs = () if found is None else zip(found.to_arrays().values(), expected.to_arrays().values(), strict=True)
    return found is not None and all(np.allclose(one, other, **close) for one, other in pairs)


def test_the_statistics_of_what_was_trained_on_travel_to_the_head_that_borrows_from_them(learnt: Training) -> None:
    held = set(learnt.summary["validation"]["held_out_classes"])
    seen = [i for i, label in enumerate(LABELS) if label not in held]
    vectors = learnt.encoder.encode([IMAGES[i] for i in seen])
    labels, groups = [LABELS[i] for i in seen], [GROUPS[i] for i in seen]
    found = learnt.encoder.source_statistics
    assert found is not None and found.patients.tolist() == [8] * (12 - len(held))
    assert same(found, SourceStatistics.of(vectors, labels, groups=groups), atol=1e-5)
    head = make_head("distribution-calibrated", center=learnt.encoder.source_mean, source=found)
    sampler = EpisodeSampler(labels, 2, 2, 5, groups=groups, n_episodes=20)
    assert evaluate(head, vectors, labels, sampler).accuracy > 0.85


def test_a_saved_checkpoint_has_the_same_statistics_and_cases_leave_none(tmp_path: Path) -> None:
    kept = run(out=tmp_path / "a").encoder.source_statistics
    assert kept is not None and same(load_encoder(tmp_path / "a").source_statistics, kept, rtol=0, atol=0)
    cases = train(IMAGES, GROUPS, config=replace(QUICK, k_shot=1, n_query=1, n_way=2), device="cpu", out=tmp_path / "b")
    assert cases.encoder.source_mean is not None and cases.encoder.source_statistics is None
    assert load_encoder(tmp_path / "b").source_statistics is None
    alone = train(IMAGES, None, config=replace(QUICK, method="simclr", validation="none", batch_size=8), device="cpu")
    assert alone.encoder.source_statistics is None


def play(monkeypatch: pytest.MonkeyPatch, accuracies: list[float], error: float = 0.0) -> list[dict[str, torch.Tensor]]:
    """Make the validations return given accuracies, and note the weights at each."""
    states: list[dict[str, torch.Tensor]] = []

    def validate(self: Stage) -> tuple[float, float]:
        states.append({k: v.clone() for k, v in self.network.backbone.state_dict().items()})
        return accuracies[len(states) - 1], error

    monkeypatch.setattr(Stage, "_validate", validate)
    return states


def test_the_best_weights_are_kept_and_not_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    states = play(monkeypatch, [0.2, 0.9, 0.4])
    training = run()
    assert (training.best_episode, training.best_accuracy, training.stopped_early) == (4, 0.9, False)
    kept = training.encoder.network.state_dict()
    assert all(torch.equal(kept[k], states[1][k]) for k in kept)
    assert not all(torch.equal(kept[k], states[2][k]) for k in kept)


def test_later_weights_are_kept_unless_worse_by_more_than_a_standard_error(monkeypatch: pytest.MonkeyPatch) -> None:
    play(monkeypatch, [0.2, 0.9, 0.88, 0.87, 0.86], error=0.03)
    training = run(replace(QUICK, episodes=10))
    assert (training.best_episode, training.best_accuracy) == (8, 0.87)


@pytest.mark.parametrize(
    ("accuracies", "patience", "validations", "best"),
    [
        ([0.5, 0.4, 0.3, 0.9, 0.9], 2, 3, 2),
        ([0.5, 0.4, 0.6, 0.5, 0.7], 2, 5, 10),
        ([1.0, 1.0, 1.0, 1.0, 1.0], 2, 3, 6),  # saturation is no progress; of equals the later is kept
        ([0.5, 0.4, 0.3, 0.2, 0.1], 0, 5, 2),
        ([0.0, 0.0, 0.0, 0.0, 0.0], 4, 5, 10),
    ],
)
def test_early_stopping(
    monkeypatch: pytest.MonkeyPatch, accuracies: list[float], patience: int, validations: int, best: int
) -> None:
    states = play(monkeypatch, accuracies)
    training = run(replace(QUICK, episodes=10, patience=patience))
    assert (len(training.history), training.best_episode) == (validations, best)
    assert training.stopped_early == (validations < 5 or patience == 4)
    assert training.best_accuracy == accuracies[best // 2 - 1]
    kept = training.encoder.network.state_dict()
    assert all(torch.equal(kept[k], states[best // 2 - 1][k]) for k in kept)


@pytest.mark.parametrize(("episodes", "per_step"), [(1, 1), (2, 1), (3, 1), (7, 2), (2, 5), (10, 4)])
def test_exactly_the_episodes_asked_for_are_trained_on(episodes: int, per_step: int) -> None:
    training = run(replace(QUICK, episodes=episodes, episodes_per_step=per_step, validation_every=100))
    assert [entry["episode"] for entry in training.history] == [episodes]


def test_without_validation_the_last_weights_are_kept() -> None:
    training = run(replace(QUICK, validation="none"))
    assert training.best_accuracy is None and training.best_episode == 6
    assert [entry["validation_accuracy"] for entry in training.history] == [None] * 3
    assert training.summary["images"] == len(IMAGES)


def test_bfloat16_trains_too() -> None:
    training = run(replace(QUICK, precision="bf16", validation="none"))
    assert all(math.isfinite(float(entry["loss"] or 0)) for entry in training.history)
    assert next(training.encoder.network.parameters()).dtype == torch.float32
    # The mean to subtract is that of the vectors the encoder makes, not of their bfloat16 shadows.
    assert np.allclose(
        training.encoder.encode(list(IMAGES)).mean(0), training.encoder.source_mean, rtol=1e-5, atol=1e-6
    )


def test_cosine_trains_too() -> None:
    assert run(replace(SMALL, metric="cosine", episodes=40)).best_accuracy > 0.8


def test_several_labels_per_image_and_unlabelled_images() -> None:
    labels = [(label, "odd") if i % 4 == 1 else (label,) for i, label in enumerate(LABELS)]
    labels[0] = ()
    config = replace(QUICK, validation="patients")
    training = train(IMAGES, labels, groups=GROUPS, config=config, device="cpu")
    assert "odd" in training.summary["classes"] and len(training.summary["classes"]) == 13
    # Beside "odd" no more than 11 others keep enough patients to themselves: fewer ways are taken, and said.
    assert 2 <= training.summary["n_way"] < 13
    with pytest.raises(EpisodeError, match="could not be drawn"):
        train(IMAGES, labels, groups=GROUPS, config=replace(config, n_way=13), device="cpu")


def files(folder: Path, n: int) -> list[Path]:
    paths = [folder / f"{i}.png" for i in range(n)]
    for path, image in zip(paths, IMAGES[:n], strict=True):
        Image.fromarray(image).save(path)
    return paths


def test_unreadable_images_are_listed_and_the_others_trained_on(tmp_path: Path) -> None:
    paths = files(tmp_path, len(IMAGES))
    paths[5].write_bytes(b"")
    paths[40].write_text("no image")
    paths[100].unlink()
    config = replace(QUICK, image_size=SIDE)
    training = train(paths, LABELS, groups=GROUPS, config=config, device="cpu")
    assert [name for name, _ in training.refused] == [str(paths[i]) for i in (5, 40, 100)]
    for name, reason in training.refused:
        with pytest.raises(ImageError) as error:
            read_image(name)
        assert error.value.reason == reason
    good = [i for i in range(len(IMAGES)) if i not in (5, 40, 100)]
    same = train(IMAGES[good], [LABELS[i] for i in good], groups=[GROUPS[i] for i in good], config=config, device="cpu")
    assert same.encoder.fingerprint == training.encoder.fingerprint
    as_array = train(np.array([str(p) for p in paths]), LABELS, groups=GROUPS, config=config, device="cpu")
    assert as_array.encoder.fingerprint == training.encoder.fingerprint


def test_when_no_image_can_be_read_training_says_so(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    with pytest.raises(
        TrainingError, match=r"^None of the 3 training images could be read; the first: .*0\.png: .+\.$"
    ):
        train(paths, ["a", "b", "c"], config=QUICK)
    with pytest.raises(TrainingError, match=r"^None of the 0 training images could be read\.$"):
        train([], [], config=QUICK)


def test_starting_from_a_checkpoint_continues_from_its_weights(tmp_path: Path, learnt: Training) -> None:
    learnt.encoder.save(tmp_path / "first")
    config = replace(QUICK, episodes=1, learning_rate=1e-9, weight_decay=0.0, augmentation=None)
    for init in (tmp_path / "first", learnt.encoder):
        training = run(config, init=init)
        assert training.summary["config"]["backbone_config"]["width"] == 16
        assert training.encoder.preprocess == learnt.encoder.preprocess
        for key, value in learnt.encoder.network.named_parameters():
            assert torch.allclose(dict(training.encoder.network.named_parameters())[key], value, atol=1e-6)
    fingerprint = learnt.encoder.fingerprint
    assert run(QUICK, init=learnt.encoder).encoder.fingerprint != fingerprint
    assert load_encoder(tmp_path / "first").fingerprint == fingerprint  # the one it started from is left alone


def test_starting_from_an_encoder_of_three_channels_and_means() -> None:
    preprocess = Preprocess(size=(SIDE, SIDE), channels=3, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    start = TorchEncoder(build_backbone("conv4", in_channels=3, width=8, seed=0), preprocess, name="rgb", device="cpu")
    source = Source(IMAGES, preprocess, tuple((label,) for label in LABELS), tuple(GROUPS))
    stage = Stage(source, start.network, QUICK, Devices("cpu"), [])
    expected = preprocess.normalise(IMAGES[:4])
    assert np.allclose(stage._batch(np.arange(4), augment=False).numpy(), expected, atol=1e-6)
    assert run(QUICK, init=start).encoder.preprocess == preprocess


def test_starting_from_what_does_not_fit(tmp_path: Path, learnt: Training) -> None:
    with pytest.raises(TrainingError, match=r"^Pixels are \(16, 16\), the encoder to start from takes \(32, 32\)\.$"):
        train(IMAGES[:, ::2, ::2], LABELS, groups=GROUPS, config=QUICK, init=learnt.encoder)
    with pytest.raises(
        TrainingError,
        match=r"^Training starts from conv4-prototypical, whose backbone is 'conv4', and the configuration asks for "
        r"'resnet18': leave one of the two out\.$",
    ):
        run(replace(QUICK, backbone="resnet18", backbone_config={}), init=learnt.encoder)
    with pytest.raises(
        TrainingError,
        match=r"^Training can start only from a checkpoint with weights; pixels-16 is a pixels-16 encoder\.$",
    ):
        run(init="pixels-16")
    with pytest.raises(EncoderError, match="nowhere"):
        run(init=tmp_path / "nowhere")


def test_a_loss_that_is_no_longer_finite_stops_the_training() -> None:
    with pytest.raises(
        TrainingError, match=r"^The loss became (nan|inf) after \d+ episodes: lower the learning rate \(1e\+38\)\.$"
    ):
        run(replace(QUICK, learning_rate=1e38, validation="none", episodes=20))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"method": "siamse"},
            r"^method must be one of prototypical, siamese, .*; got 'siamse'\. Did you mean 'siamese'\?$",
        ),
        ({"metric": "euclid"}, r"^metric must be one of euclidean, cosine; got 'euclid'\. Did you mean 'euclidean'\?$"),
        ({"validation": "patient"}, r"^validation must be one of .*; got 'patient'\. Did you mean 'patients'\?$"),
        ({"contrast": "max"}, r"^contrast must be one of none, minmax, percentile; got 'max'\."),
        ({"precision": "fp16"}, r"^precision must be one of auto, bf16, float32; got 'fp16'\."),
        ({"image_size": 8}, r"^image_size must be a whole number of at least 16; got 8\.$"),
        ({"k_shot": 0}, r"^k_shot must be a whole number of at least 1; got 0\.$"),
        ({"k_shot": 2.5}, r"^k_shot must be a whole number of at least 1; got 2\.5\.$"),
        ({"n_query": "5"}, r"^n_query must be a whole number of at least 1; got '5'\.$"),
        ({"n_way": 1}, r"^n_way must be a whole number of at least 2; got 1\.$"),
        ({"episodes": 0}, r"^episodes must be a whole number of at least 1; got 0\.$"),
        ({"patience": -1}, r"^patience must be a whole number of at least 0; got -1\.$"),
        ({"seed": -1}, r"^seed must be a whole number of at least 0; got -1\.$"),
        ({"validation_share": 1.0}, r"^validation_share must lie between 0 and 1; got 1\.0\.$"),
        ({"learning_rate": 0.0}, r"^learning_rate must be above 0; got 0\.0\.$"),
        ({"temperature": 0.0}, r"^temperature must be above 0; got 0\.0\.$"),
        ({"learning_rate": math.nan}, r"^learning_rate must be above 0; got nan\.$"),
        ({"image_size": 100_000}, r"^image_size must be at most 4,096; got 100,000\.$"),
        ({"seed": 2**70}, r"^seed must be at most 9,223,372,036,854,775,807; got "),
        ({"temperature": "x"}, r"^temperature must be a number; got 'x'\.$"),
        ({"backbone_config": None}, r"^backbone_config must hold options of the backbone, .*; got None\.$"),
        ({"backbone_config": {"seed": 3}}, r"^backbone_config must hold options .* without 'name' and 'seed'; got "),
        ({"weight_decay": -0.1}, r"^weight_decay must not be negative; got -0\.1\.$"),
    ],
)
def test_options_that_cannot_be_meant(options: dict[str, object], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        TrainingConfig(**options)


def test_inputs_that_cannot_be_meant(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"^2 images need as many labels and groups; got 1 labels\.$"):
        train(IMAGES[:2], ["a"])
    with pytest.raises(TrainingError, match=r"^2 images need as many labels and groups; got 2 labels and 3 groups\.$"):
        train(IMAGES[:2], ["a", "b"], groups=["p", "q", "r"])
    with pytest.raises(
        TrainingError, match=r"^Pixels must be uint8 of shape \(n, h, w\); got float64 of shape \(2, 4\)"
    ):
        train(np.zeros((2, 4)), ["a", "b"])
    with pytest.raises(EncoderError, match=r"^There is no backbone 'conv5'; .* Did you mean 'conv4'\?$"):
        run(replace(QUICK, backbone="conv5"))
    with pytest.raises(TrainingError, match=r"^device must be 'auto', 'cpu' or 'cuda'; got 'gpu'\.$"):
        train(IMAGES, LABELS, config=QUICK, device="gpu")
    with pytest.raises(TrainingError, match=r"^There is no device 'cuda:99' here: torch sees \d+ of CUDA\.$"):
        train(IMAGES, LABELS, config=QUICK, device="cuda:99")
    (tmp_path / "file").touch()
    with pytest.raises(TrainingError, match=r"^The checkpoint folder .*file/out cannot be made: .+\.$"):
        run(out=tmp_path / "file" / "out")


def test_what_does_not_fit_the_backbone_is_found_before_the_training() -> None:
    config = replace(QUICK, backbone_config={"width": 8, "pooling": "flatten", "image_size": 64})
    with pytest.raises(TrainingError, match=r"of 32 x 32 pixels, and was built for 128 numbers: do its image_"):
        run(config)
    assert run(replace(config, backbone_config={"width": 8, "pooling": "flatten"}, image_size=SIDE)).encoder.dim == 32
    with pytest.raises(TrainingError, match=r"^The backbone does not take images of 32 x 32 pixels: .+\.$"):
        run(replace(QUICK, backbone_config={"width": 8, "depth": 8}))
    for device in ("mps", "meta"):
        with pytest.raises(TrainingError, match=rf"^device must be 'auto', 'cpu' or 'cuda'; got '{device}'\.$"):
            train(IMAGES, LABELS, config=QUICK, device=device)


def test_a_configuration_that_is_none() -> None:
    with pytest.raises(TrainingError, match=r"^config must be a TrainingConfig; got dict\.$"):
        train(IMAGES, LABELS, config={"episodes": 3})  # type: ignore[arg-type]


def test_labels_and_patients_that_are_not_there() -> None:
    with pytest.raises(TrainingError, match=r"^Every image needs its patient, or none of them: image 0 has None\.$"):
        train(IMAGES, LABELS, groups=[None] * len(LABELS), config=replace(QUICK, method="supervised"))
    for labels in ([None] * len(LABELS), ["a"] * len(LABELS)):
        with pytest.raises(TrainingError, match=r"^Supervised training needs at least 2 classes; .* have [01]\.$"):
            train(IMAGES, labels, config=replace(QUICK, method="supervised", validation="none"), device="cpu")


def test_self_supervision_looks_at_images_without_a_label_too() -> None:
    config = replace(QUICK, method="simclr", validation="none", batch_size=16)
    source = Source(IMAGES, Preprocess(size=(SIDE, SIDE)), (("a",), *[()] * (len(IMAGES) - 1)), None)
    stage = Stage(source, build_backbone("conv4", width=8, seed=0), config, Devices("cpu"), [])
    assert {int(row) for i in range(100) for row in stage.layout.batches.draw(i).rows} == set(range(len(IMAGES)))


def test_multilabel_training_takes_fewer_ways_where_no_image_lacks_them_all() -> None:
    config = replace(QUICK, method="multilabel", validation="none")
    labels = [(label, f"odd{i % 2}") for i, label in enumerate(LABELS)]
    training = train(IMAGES, labels, groups=GROUPS, config=config, device="cpu")
    assert 1 <= training.summary["n_way"] < 14
    with pytest.raises(EpisodeError, match="could not be drawn"):
        train(IMAGES, labels, groups=GROUPS, config=replace(config, n_way=14), device="cpu")


def test_too_few_classes_or_patients_for_the_episodes() -> None:
    with pytest.raises(EpisodeError, match="50-way 2-shot"):
        run(replace(QUICK, n_way=50))
    with pytest.raises(EpisodeError, match="needs 2 classes of at least 41 patients"):
        run(replace(QUICK, k_shot=40))


def test_a_configuration_becomes_plain_json() -> None:
    plain = json.loads(json.dumps(TrainingConfig(backbone_config={"width": 8}).to_dict()))
    assert plain["augmentation"]["horizontal_flip"] == 0.0
    assert TrainingConfig(**{**plain, "augmentation": Augmentation(**plain["augmentation"])}).to_dict() == plain


def test_the_progress_bar_goes_to_standard_error_and_only_when_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    run()
    assert capsys.readouterr() == ("", "")
    run(progress=True)
    out, err = capsys.readouterr()
    assert out == "" and "this will take" not in err  # six steps are too few to tell
    assert "prototypical, conv4 of 7,248 weights: 6 episodes (10-way" in err


def test_grey_statistics_against_numpy() -> None:
    mean, std = grey_statistics(IMAGES)
    assert (mean, std) == (pytest.approx(IMAGES.mean() / 255), pytest.approx(IMAGES.std() / 255))
