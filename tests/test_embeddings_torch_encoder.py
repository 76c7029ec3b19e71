"""TorchEncoder and its checkpoints: equal after reloading, refused when anything was changed, and never run as code."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import stat
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from embeddings import (
    Encoder,
    EncoderError,
    Preprocess,
    SimilarityHead,
    SourceStatistics,
    TorchEncoder,
    build_backbone,
    load_checkpoint,
    load_encoder,
)
from embeddings import checkpoint as checkpoint_module
from embeddings.checkpoint import MAX_SIMILARITY_BYTES, MAX_SIMILARITY_TENSORS, MAX_STATISTICS_BYTES

IMAGES = [np.random.default_rng(seed).random((40, 50)) for seed in range(7)]
SMALL = Preprocess(size=(32, 32))


def small_encoder(**options: Any) -> TorchEncoder:
    return TorchEncoder(build_backbone("conv4", width=8, seed=0), SMALL, name="small", device="cpu", **options)


def test_vectors_are_the_networks_own() -> None:
    encoder = small_encoder()
    assert (encoder.name, encoder.dim, encoder.source_mean) == ("small", 8, None)
    assert isinstance(encoder, Encoder)
    vectors = encoder.encode(IMAGES, batch_size=3)
    assert vectors.shape == (7, 8) and vectors.dtype == np.float32
    network = build_backbone("conv4", width=8, seed=0).eval()
    for image, vector in zip(IMAGES, vectors, strict=True):
        with torch.inference_mode():
            alone = network(torch.from_numpy(SMALL(image.astype(np.float32)))[None])[0].numpy()
        np.testing.assert_allclose(vector, alone, rtol=1e-4, atol=1e-6)
    assert encoder.encode([]).shape == (0, 8)


def test_batch_mates_do_not_matter_beyond_rounding() -> None:
    encoder = small_encoder()
    whole = encoder.encode(IMAGES)
    np.testing.assert_allclose(encoder.encode(IMAGES[::-1])[::-1], whole, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(encoder.encode(IMAGES), whole)


def test_a_training_network_is_used_in_evaluation_mode_and_left_training() -> None:
    network = build_backbone("conv4", width=8, seed=0).train()
    encoder = TorchEncoder(network, SMALL, name="small", device="cpu")
    np.testing.assert_array_equal(encoder.encode(IMAGES), small_encoder().encode(IMAGES))
    assert network.training and encoder.fingerprint == small_encoder().fingerprint


def test_loader_pickles_without_the_network() -> None:
    encoder = small_encoder()
    sent = pickle.dumps(encoder.loader)
    assert len(sent) < 1000
    np.testing.assert_array_equal(pickle.loads(sent)(IMAGES[0]), encoder.load(IMAGES[0]))


# --- checkpoints ----------------------------------------------------------------------------------------------------


def test_saved_and_loaded_encoders_are_the_same(tmp_path: Path) -> None:
    mean = np.arange(8, dtype=np.float32)
    encoder = small_encoder(source_mean=mean, training={"seed": 3, "data": "phantoms"})
    folder = encoder.save(tmp_path / "ein Ordner é" / "enc")
    assert sorted(path.name for path in folder.iterdir()) == ["encoder.json", weights_of(folder).name]
    assert encoder.spec == str(folder)
    loaded = load_encoder(folder, device="cpu")
    assert isinstance(loaded, TorchEncoder)
    assert (loaded.fingerprint, loaded.name, loaded.spec) == (encoder.fingerprint, "small", str(folder))
    assert loaded.training == {"seed": 3, "data": "phantoms"} and loaded.preprocess == SMALL
    np.testing.assert_array_equal(loaded.source_mean, mean)
    np.testing.assert_array_equal(loaded.encode(IMAGES), encoder.encode(IMAGES))
    assert load_checkpoint(str(folder)).save(tmp_path / "again").is_dir()


def test_saving_again_replaces_the_checkpoint_and_keeps_other_files(tmp_path: Path) -> None:
    small_encoder().save(tmp_path)
    (tmp_path / "history.csv").write_text("kept")
    other = TorchEncoder(build_backbone("conv4", width=4, seed=1), SMALL, name="other", device="cpu")
    other.save(tmp_path)
    assert load_checkpoint(tmp_path).fingerprint == other.fingerprint
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "encoder.json",
        "history.csv",
        weights_of(tmp_path).name,
    ]


def test_fingerprint_covers_weights_configuration_and_preprocessing() -> None:
    prints = {small_encoder().fingerprint}
    prints.add(TorchEncoder(build_backbone("conv4", width=8, seed=1), SMALL, name="x", device="cpu").fingerprint)
    prints.add(TorchEncoder(build_backbone("conv4", width=8, seed=0), Preprocess((40, 40)), name="x").fingerprint)
    prints.add(TorchEncoder(build_backbone("conv4", width=8, pooling="max", seed=0), SMALL, name="x").fingerprint)
    assert len(prints) == 4
    assert small_encoder(source_mean=np.zeros(8), training={"a": 1}).fingerprint in prints


def weights_of(folder: Path) -> Path:
    (path,) = folder.glob("weights*.safetensors")
    return path


@pytest.mark.parametrize("step", range(4))
def test_a_save_that_stops_anywhere_leaves_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    first = small_encoder()
    first.save(tmp_path / "enc")
    other = TorchEncoder(build_backbone("conv4", width=8, seed=5), SMALL, name="other", device="cpu")
    done: list[str] = []

    def counted(name: str) -> Callable[..., Any]:
        real = getattr(Path, name)

        def call(self: Path, *args: Any, **options: Any) -> Any:
            if self.parent == tmp_path / "enc":
                if len(done) >= step:
                    raise KeyboardInterrupt  # and nothing is put in order afterwards either
                done.append(name)
            return real(self, *args, **options)

        return call

    with monkeypatch.context() as patch:
        for name in ("replace", "unlink"):
            patch.setattr(Path, name, counted(name))
        with pytest.raises(KeyboardInterrupt):
            other.save(tmp_path / "enc")
    assert load_checkpoint(tmp_path / "enc").fingerprint == (first if step < 2 else other).fingerprint
    other.save(tmp_path / "enc")
    assert load_checkpoint(tmp_path / "enc").fingerprint == other.fingerprint
    assert weights_of(tmp_path / "enc").exists()


def test_a_checkpoint_of_format_1_is_read(tmp_path: Path) -> None:
    folder = small_encoder().save(tmp_path / "enc")
    weights_of(folder).rename(folder / "weights.safetensors")
    change_json(folder, format_version=1)
    assert load_checkpoint(folder).fingerprint == small_encoder().fingerprint
    small_encoder().save(folder)
    assert weights_of(folder).name != "weights.safetensors"


@pytest.mark.parametrize("version", [2, 3])
def test_a_checkpoint_without_statistics_of_an_older_format_is_read(tmp_path: Path, version: int) -> None:
    mean, head = np.arange(8, dtype=np.float32), ATTENTION if version == 3 else None
    folder = small_encoder(source_mean=mean, similarity=head).save(tmp_path / "enc")
    change_json(folder, format_version=version)
    loaded = load_checkpoint(folder)
    assert loaded.fingerprint == small_encoder().fingerprint and loaded.source_statistics is None
    assert (loaded.similarity is None) == (head is None)
    np.testing.assert_array_equal(loaded.source_mean, mean)
    assert described(loaded.save(folder))["format_version"] == 4
    assert load_checkpoint(folder).fingerprint == loaded.fingerprint


def test_a_spec_outlives_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    encoder = small_encoder()
    encoder.save("enc")
    assert encoder.spec == load_checkpoint("enc").spec == load_encoder("enc").spec == str(tmp_path / "enc")
    np.savez("v.npz", ids=np.array(["a"]), vectors=np.ones((1, 2)))
    assert load_encoder("vectors:v.npz").spec == f"vectors:{tmp_path / 'v.npz'}"


def change_json(folder: Path, **fields: Any) -> None:
    path = folder / "encoder.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps(document | fields))


class Bomb:
    """Pickled, it would leave a file behind when loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.mark,))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: weights_of(f).unlink(), r"has no weights-[0-9a-f]{12}\.safetensors"),
        (lambda f: weights_of(f).write_bytes(b""), "is not a safetensors file, or was cut short"),
        (lambda f: cut(weights_of(f), 100), "is not a safetensors file, or was cut short"),
        (lambda f: cut(f / "encoder.json", 9), "is not JSON, or was cut short"),
        (lambda f: flip(weights_of(f)), "is not the file that encoder.json was saved with"),
        (lambda f: (f / "encoder.json").write_text("[" * 100_000), "is not JSON, or was cut short"),
        (lambda f: (f / "encoder.json").write_text("[]"), "lacks format_version and kind"),
        (lambda f: (f / "encoder.json").write_bytes(b" " * (5 * 2**20)), "is larger than 4,194,304 bytes"),
        (lambda f: change_json(f, format_version=5), "has format 5, this radshot reads up to 4: upgrade radshot"),
        (lambda f: change_json(f, weights_sha256="/a/b/weights"), "weights_sha256 is no SHA-256"),
        (lambda f: change_json(f, preprocess={"size": [0, 0]}), "is no checkpoint description"),
        (lambda f: change_json(f, preprocess=SMALL.to_json() | {"fit": "crop"}), "one of its files was changed"),
        (lambda f: change_json(f, fingerprint="0" * 64), "has fingerprint .*, its encoder.json says 000000000000"),
        (lambda f: change_json(f, backbone={"name": "conv4", "width": 9}), "do not fit the backbone"),
        (lambda f: change_json(f, backbone={"name": "conv4", "width": 10**9}), "width must be a whole number"),
        (lambda f: change_json(f, backbone={"name": "conv4", "seed": 1}), "is no checkpoint description"),
        (lambda f: change_json(f, backbone={"name": "os.system"}), "There is no backbone 'os.system'"),
        (lambda f: change_json(f, backbone=[1]), "is no checkpoint description"),
    ],
)
def test_a_damaged_checkpoint_is_one_sentence(tmp_path: Path, damage: Callable[[Path], Any], message: str) -> None:
    folder = small_encoder().save(tmp_path / "enc")
    damage(folder)
    with pytest.raises(EncoderError, match=message) as caught:
        load_encoder(folder)
    assert "\n" not in str(caught.value)


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-5] ^= 4
    path.write_bytes(data)


def test_no_pickle_is_ever_loaded(tmp_path: Path) -> None:
    folder, mark = small_encoder().save(tmp_path / "enc"), tmp_path / "mark"
    weights = weights_of(folder)
    torch.save({"a": Bomb(mark)}, weights)
    zipped = weights.read_bytes()
    plain = pickle.dumps(Bomb(mark))
    for costume in (plain, zipped, struct.pack("<Q", len(plain)) + plain, struct.pack("<Q", 2**62) + b"{}"):
        for name in (weights.name, "encoder.json"):
            small_encoder().save(folder)
            (folder / name).write_bytes(costume)
            with pytest.raises(EncoderError, match=r"is not a safetensors file|is not JSON"):
                load_encoder(folder)
    assert not mark.exists()
    pickle.loads(plain)
    assert mark.exists()  # the bomb would have worked


# --- learnt comparisons ----------------------------------------------------------------------------------------------

ATTENTION = SimilarityHead("attention", {"temperature": 0.1})
WEIGHTED = SimilarityHead(
    "weighted-l1",
    {"unit_length": True, "shape": (2, 4), "of": {"10": 1.5, "2": None}},
    {"weight": np.arange(8, dtype=np.float32), "bias": np.array(0.25, dtype=np.float32)},
)


@pytest.mark.parametrize("head", [ATTENTION, WEIGHTED], ids=lambda head: head.name)
def test_a_learnt_comparison_travels_with_its_encoder(tmp_path: Path, head: SimilarityHead) -> None:
    encoder = small_encoder(similarity=head)
    assert encoder.fingerprint == small_encoder().fingerprint
    found = load_checkpoint(encoder.save(tmp_path)).similarity
    assert found is not None and found.name == head.name
    assert found.config == json.loads(json.dumps(head.config))
    assert found.tensors.keys() == head.tensors.keys()
    for name, tensor in head.tensors.items():
        assert found.tensors[name].dtype == np.float32 and found.tensors[name].shape == tensor.shape
        np.testing.assert_array_equal(found.tensors[name], tensor)
    again = TorchEncoder(build_backbone("conv4", width=8, seed=0), SMALL, name="again", similarity=found)
    hashes = {described(encoder.save(tmp_path / "a"))["similarity_sha256"] for encoder in (encoder, again)}
    assert len(hashes) == 1  # what was loaded is saved under the same hash
    assert load_checkpoint(small_encoder().save(tmp_path)).similarity is None
    assert "similarity_sha256" not in described(tmp_path)


def described(folder: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((folder / "encoder.json").read_text())
    return document


def drop_fields(folder: Path, *names: str) -> None:
    kept = {key: value for key, value in described(folder).items() if key not in names}
    (folder / "encoder.json").write_text(json.dumps(kept))


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    """Change the weights as one would who knows the hash of the file, but not that of the comparison."""
    tensors = load_file(weights_of(folder))
    change(tensors)
    weights_of(folder).unlink()
    save_file(tensors, folder / "new")
    sha256 = hashlib.sha256((folder / "new").read_bytes()).hexdigest()
    (folder / "new").rename(folder / f"weights-{sha256[:12]}.safetensors")
    change_json(folder, weights_sha256=sha256)


@pytest.mark.parametrize(
    "change",
    [
        lambda f: change_json(f, similarity={"name": "attention", "config": {"temperature": 0.5}}),
        lambda f: change_json(f, similarity={"name": "attention", "config": {}}),
        lambda f: change_json(f, similarity={"name": "weighted-l1", "config": {"temperature": 0.1}}),
        lambda f: change_json(f, similarity={"name": "attention", "config": {"temperature": 0.1}, "more": 1}),
        lambda f: change_json(f, similarity={"name": "attention", "config": [["temperature", 0.1]]}),
        lambda f: change_json(f, similarity={"name": "attention"}),
        lambda f: change_json(f, similarity={"name": "attention", "config": {"temperature": float("nan")}}),
        lambda f: change_json(f, similarity=[1]),
        lambda f: change_json(f, similarity=None),
        lambda f: change_json(f, similarity_sha256="0" * 64),
        lambda f: drop_fields(f, "similarity"),
        lambda f: drop_fields(f, "similarity_sha256"),
        lambda f: change_tensors(f, lambda tensors: tensors.update({"similarity.weight": torch.ones(8)})),
    ],
)
def test_a_comparison_that_was_changed_is_refused(tmp_path: Path, change: Callable[[Path], Any]) -> None:
    folder = small_encoder(similarity=ATTENTION).save(tmp_path / "enc")
    change(folder)
    message = (
        r"The comparison in .*enc is not the one that was saved with the encoder \(its similarity_sha256 differs\)"
    )
    with pytest.raises(EncoderError, match=message) as caught:
        load_encoder(folder, device="cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors["similarity.weight"].add_(1),
        lambda tensors: tensors.update({"similarity.bias": torch.ones(1)}),
        lambda tensors: tensors.update({"similarity.scale": tensors.pop("similarity.weight")}),
        lambda tensors: tensors.pop("similarity.bias"),
        lambda tensors: tensors.update({"similarity.more": torch.ones(1)}),
    ],
)
def test_weights_of_a_comparison_that_were_changed_are_refused(tmp_path: Path, change: Callable[[Any], Any]) -> None:
    folder = small_encoder(similarity=WEIGHTED).save(tmp_path)
    change_tensors(folder, lambda tensors: None)
    assert load_checkpoint(folder).similarity is not None  # what the change itself does not break
    change_tensors(folder, change)
    with pytest.raises(EncoderError, match="is not the one that was saved with the encoder"):
        load_checkpoint(folder)


def test_weights_of_a_comparison_that_nothing_describes_are_refused(tmp_path: Path) -> None:
    folder = small_encoder(similarity=WEIGHTED).save(tmp_path)
    drop_fields(folder, "similarity", "similarity_sha256")
    with pytest.raises(EncoderError, match="is not the one that was saved with the encoder"):
        load_checkpoint(folder)


def test_a_crafted_comparison_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = np.zeros(1, dtype=np.float32)
    many = SimilarityHead("x", {}, {f"t{i}": tiny for i in range(MAX_SIMILARITY_TENSORS + 1)})
    large = SimilarityHead("x", {}, {"t": np.zeros(MAX_SIMILARITY_BYTES // 4 + 1, dtype=np.float32)})
    just = SimilarityHead("x", {}, {f"t{i}": tiny for i in range(MAX_SIMILARITY_TENSORS)})
    assert load_checkpoint(small_encoder(similarity=just).save(tmp_path)).similarity is not None
    allowed = "at most 64 tensors and 67,108,864 bytes are allowed, and it has"
    for head, found in ((many, "65 and 260"), (large, "1 and 67,108,868")):
        with pytest.raises(EncoderError, match=rf"^The comparison 'x' cannot be saved: {allowed} {found}\.$"):
            small_encoder(similarity=head).save(tmp_path / "none")
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint_module, "MAX_SIMILARITY_TENSORS", 10**9)
            patch.setattr(checkpoint_module, "MAX_SIMILARITY_BYTES", 10**9)
            folder = small_encoder(similarity=head).save(tmp_path / "crafted")
        with pytest.raises(
            EncoderError, match=rf"The comparison in .* is none that radshot saved: {allowed} {found}\.$"
        ):
            load_checkpoint(folder)
    folder = small_encoder(similarity=WEIGHTED).save(tmp_path)
    change_tensors(folder, lambda tensors: tensors.update({"similarity.bias": torch.ones(1, dtype=torch.complex64)}))
    with pytest.raises(EncoderError, match=r"its weights are float32, and 'bias' is torch\.complex64\.$"):
        load_checkpoint(folder)
    with pytest.raises(EncoderError, match="What describes the comparison 'x' is not plain JSON"):
        small_encoder(similarity=SimilarityHead("x", {"t": np.float32(1)})).save(tmp_path)


# --- statistics of the source's classes -------------------------------------------------------------------------------

STATISTICS = SourceStatistics(
    np.arange(24, dtype=np.float32).reshape(3, 8), np.full((3, 8), 0.25, dtype=np.float32), np.array([6, 7, 8000])
)


def test_source_statistics_travel_with_their_encoder(tmp_path: Path) -> None:
    encoder = small_encoder(source_statistics=STATISTICS, similarity=ATTENTION)
    assert encoder.source_statistics is STATISTICS
    assert encoder.fingerprint == small_encoder().fingerprint
    loaded = load_checkpoint(encoder.save(tmp_path))
    assert loaded.fingerprint == encoder.fingerprint and loaded.similarity is not None
    again = load_checkpoint(loaded.save(tmp_path / "again"))
    for found in (loaded.source_statistics, again.source_statistics):
        assert found is not None
        for name, array in STATISTICS.to_arrays().items():
            assert found.to_arrays()[name].dtype == array.dtype
            np.testing.assert_array_equal(found.to_arrays()[name], array)
    np.testing.assert_array_equal(loaded.encode(IMAGES), small_encoder().encode(IMAGES))
    assert load_checkpoint(small_encoder().save(tmp_path)).source_statistics is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("source_statistics.patients"), r"they are means .*, and it has means .*, variances .*\)\.$"),
        (lambda t: t.update({"source_statistics.more": torch.ones(1)}), r"and it has .*, more \(torch\.float32\), "),
        (lambda t: wide(t, "means", torch.complex64), r"it has means \(torch\.complex64\)"),
        (lambda t: wide(t, "variances", torch.bfloat16), r"variances \(torch\.bfloat16\)\.$"),
        (lambda t: wide(t, "patients", torch.float32), r"it has means .*, patients \(torch\.float32\), "),
        (lambda t: t["source_statistics.means"].mul_(float("nan")), "must be finite; they hold NaN or infinity"),
        (lambda t: t["source_statistics.variances"].neg_(), r"must be at least 0; the least is -0\.25"),
        (lambda t: t["source_statistics.patients"].zero_(), "Source patients must be 3 whole numbers of at least 1"),
        (lambda t: t.update({"source_statistics.means": torch.ones(2, 8)}), r"the means' shape \(2, 8\); got \(3, 8\)"),
        (lambda t: t.update({"source_statistics.means": torch.ones(8)}), r"got an array of shape \(8,\)"),
    ],
)
def test_source_statistics_that_are_none_are_refused(
    tmp_path: Path, change: Callable[[Any], Any], message: str
) -> None:
    folder = small_encoder(source_statistics=STATISTICS).save(tmp_path)
    change_tensors(folder, lambda tensors: None)
    assert load_checkpoint(folder).source_statistics is not None  # what the change itself does not break
    change_tensors(folder, change)
    with pytest.raises(EncoderError, match=message) as caught:
        load_checkpoint(folder)
    assert str(caught.value).startswith(f"The source statistics in {folder} are none that radshot saved: ")
    assert "\n" not in str(caught.value)


def wide(tensors: dict[str, torch.Tensor], name: str, kind: torch.dtype) -> None:
    tensors[f"source_statistics.{name}"] = tensors[f"source_statistics.{name}"].to(kind)


def test_source_statistics_of_other_vectors_are_refused(tmp_path: Path) -> None:
    message = "source_statistics must be SourceStatistics of 8 dimensions; got "
    other = SourceStatistics(np.zeros((2, 3)), np.ones((2, 3)), np.array([6, 6]))
    with pytest.raises(EncoderError, match=rf"^{message}3 dimensions\.$"):
        small_encoder(source_statistics=other)
    with pytest.raises(EncoderError, match=rf"^{message}\[1\.0\]\.$"):
        small_encoder(source_statistics=[1.0])
    folder = small_encoder(source_statistics=STATISTICS).save(tmp_path)
    change_tensors(folder, lambda t: [wide_rows(t, name) for name in ("means", "variances")])
    with pytest.raises(EncoderError, match=rf"^{message}16 dimensions\.$"):
        load_checkpoint(folder)


def wide_rows(tensors: dict[str, torch.Tensor], name: str) -> None:
    tensors[f"source_statistics.{name}"] = tensors[f"source_statistics.{name}"].repeat(1, 2)


def test_source_statistics_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = MAX_STATISTICS_BYTES // (8 * (2 * 4 + 1)) + 1  # 8 numbers a row, twice, and a count
    rows = np.zeros((count, 8), dtype=np.float32)
    large = SourceStatistics(rows, rows, np.full(count, 6))
    allowed = "at most 67,108,864 bytes are allowed, and they have 67,108,896"
    with pytest.raises(EncoderError, match=rf"^The source statistics cannot be saved: {allowed}\.$"):
        small_encoder(source_statistics=large).save(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_module, "MAX_STATISTICS_BYTES", 10**9)
        folder = small_encoder(source_statistics=large).save(tmp_path / "crafted")
    with pytest.raises(EncoderError, match=rf"none that radshot saved: {allowed}\.$"):
        load_checkpoint(folder)


def test_what_cannot_be_saved(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(
        EncoderError, match=r"The encoder 'mine' cannot be saved: its network \(Sequential\) was not made"
    ):
        TorchEncoder(module, SMALL, name="mine").save(tmp_path)
    encoder = small_encoder()
    with torch.no_grad():
        next(iter(encoder.network.parameters())).add_(1.0)
    with pytest.raises(EncoderError, match="The weights of 'small' changed since the encoder was made"):
        encoder.save(tmp_path)
    with pytest.raises(EncoderError, match="is not plain JSON"):
        small_encoder(training={"path": Path("x")}).save(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(EncoderError, match="cannot be written"):
        small_encoder().save(tmp_path / "file" / "enc")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# --- modules of the user's ------------------------------------------------------------------------------------------


class Colour(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 5, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.first(images).amax(dim=(2, 3))


def test_a_users_module_is_an_encoder() -> None:
    encoder = load_encoder(Colour().eval(), device="cpu")
    assert (encoder.name, encoder.dim) == ("Colour", 5)
    assert encoder.encode(IMAGES).shape == (7, 5)
    assert load_encoder(nn.Sequential(nn.Flatten(), nn.Linear(96 * 96, 3))).dim == 3


def test_modules_that_do_not_make_vectors() -> None:
    with pytest.raises(EncoderError, match=r"must map \(n, C, H, W\) to \(n, d\); for n = 1 it made \(1, 2, 94, 94\)"):
        load_encoder(nn.Conv2d(1, 2, 3))
    with pytest.raises(
        EncoderError, match=r"Sequential does not take images of 1 x 96 x 96 \(.*\): make a TorchEncoder"
    ):
        load_encoder(nn.Sequential(nn.Flatten(), nn.Linear(7, 3)))
    with pytest.raises(EncoderError, match="first convolution takes 4 channels; an image here has 1 or 3"):
        load_encoder(nn.Conv2d(4, 2, 3))
    liar = nn.Sequential(nn.Flatten(), nn.Linear(32 * 32, 3))
    liar.dim = 4  # type: ignore[assignment]
    with pytest.raises(EncoderError, match="says dim = 4 and makes vectors of 3 dimensions"):
        TorchEncoder(liar, SMALL, name="liar")
    with pytest.raises(EncoderError, match=r"source_mean must be 8 finite numbers; got shape \(3,\)"):
        small_encoder(source_mean=np.zeros(3))


def test_devices() -> None:
    with pytest.raises(EncoderError, match='device must be "auto", "cpu", "cuda" or "cuda:<number>"; got \'gpu\''):
        load_encoder("untrained:conv4", device="gpu")
    with pytest.raises(EncoderError, match=r"There is no device 'cuda:99' here: torch sees [0-9]+ CUDA devices"):
        load_encoder("untrained:conv4", device="cuda:99")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_cuda_agrees_with_the_cpu(tmp_path: Path) -> None:
    folder = small_encoder().save(tmp_path / "enc")
    cuda = load_checkpoint(folder)
    assert cuda.device.type == "cuda" and cuda.fingerprint == small_encoder().fingerprint
    np.testing.assert_allclose(cuda.encode(IMAGES), small_encoder().encode(IMAGES), rtol=1e-2, atol=1e-3)


def test_untrained_networks_repeat() -> None:
    first, again, other = (load_encoder(f"untrained:conv4{seed}", device="cpu") for seed in ("", "@0", "@1"))
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert again.name == "untrained:conv4@0"


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_both_files_get_the_mode_that_the_umask_gives(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        small_encoder().save(tmp_path / "saved")
    finally:
        os.umask(before)
    modes = {path.name.split("-")[0]: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "saved").iterdir()}
    assert modes == {"encoder.json": 0o666 & ~umask, "weights": 0o666 & ~umask}
