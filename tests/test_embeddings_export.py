"""Encoders without torch: the same vectors, the same fingerprint, and nothing but what was written."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from embeddings import Archive, EncoderError, Preprocess, SourceStatistics, TorchEncoder, build_backbone, load_encoder
from embeddings import exported_encoder as exported_module
from embeddings.encoders import fingerprint_of
from embeddings.export import export_encoder
from embeddings.exported_encoder import ARRAYS_FILE, DOCUMENT_HASH, MAX_DOCUMENT_BYTES, load_exported
from embeddings.precision import LEAST_COSINE, least_cosine
from embeddings.similarity import SimilarityHead

PACKAGES = {"onnx": "onnxruntime", "openvino": "openvino"}


def images(count: int = 3) -> list[np.ndarray[Any, np.dtype[np.float32]]]:
    rng = np.random.default_rng(0)
    return [rng.random((50, 40), dtype=np.float32) for _ in range(count)]


@pytest.fixture(scope="module")
def encoder() -> TorchEncoder:
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(60, 64))
    statistics = SourceStatistics.of(vectors, [n % 2 for n in range(60)], groups=list(range(60)))
    return TorchEncoder(
        build_backbone("conv4", seed=0),
        Preprocess(size=(32, 32)),
        name="tiny",
        source_mean=vectors.mean(axis=0).astype(np.float32),
        source_statistics=statistics,
    )


@pytest.fixture(scope="module", params=["onnx", "openvino"])
def exported(request: pytest.FixtureRequest, encoder: TorchEncoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    for package in ("onnx", PACKAGES[request.param]):
        if find_spec(package) is None:  # importing OpenVINO to find out would report that to its makers
            pytest.skip(f"{package} is not installed")
    folder = tmp_path_factory.mktemp("export") / request.param
    return export_encoder(encoder, folder, format=request.param, probe=images())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_it_gives_the_same_vectors_under_the_same_fingerprint(exported: Path, encoder: TorchEncoder) -> None:
    loaded = load_encoder(exported)
    assert (loaded.name, loaded.dim, loaded.fingerprint) == (encoder.name, encoder.dim, encoder.fingerprint)
    for batch in (images(1), images(7)):
        assert least_cosine(encoder.encode(batch), loaded.encode(batch)) >= LEAST_COSINE
    np.testing.assert_array_equal(loaded.source_mean, encoder.source_mean)  # type: ignore[arg-type]
    assert loaded.source_statistics is not None and len(loaded.source_statistics) == 2
    assert loaded.encode_loaded([]).shape == (0, encoder.dim)
    assert loaded.spec == str(exported.absolute())  # type: ignore[attr-defined]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_archive_made_by_torch_takes_it(exported: Path, encoder: TorchEncoder, tmp_path: Path) -> None:
    with Archive.open(tmp_path / "a", encoder=encoder) as archive:
        archive.check_encoder(load_encoder(exported))


def test_it_needs_no_torch(exported: Path) -> None:
    script = (
        "import sys, warnings; warnings.simplefilter('ignore'); import numpy as np;"
        "from embeddings import load_encoder;"
        f"print(load_encoder({str(exported)!r}).encode([np.eye(40, dtype=np.float32)]).shape, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "(1, 64) False"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_what_was_changed_is_not_loaded(exported: Path, tmp_path: Path) -> None:
    for path in sorted(exported.iterdir()):
        copy = tmp_path / path.name
        shutil.copytree(exported, copy)
        content = bytearray((copy / path.name).read_bytes())
        content[len(content) // 2] ^= 1
        (copy / path.name).write_bytes(content)
        with pytest.raises(EncoderError, match=r"is not what was written|is no description"):
            load_exported(copy)
        (copy / path.name).write_bytes(b"cos\nsystem\n(S'touch /tmp/pickled'\ntR.")
        with pytest.raises(EncoderError, match=r"is not what was written|is no description"):
            load_exported(copy)
        (copy / path.name).unlink()
        with pytest.raises(EncoderError, match=r"cannot be read|is no description|no such folder|no encoder"):
            load_encoder(copy)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_vectors_that_are_others_are_refused(
    exported: Path, monkeypatch: pytest.MonkeyPatch, encoder: TorchEncoder, tmp_path: Path
) -> None:
    kind = json.loads((exported / "exported.json").read_text())["format"]
    asked = []

    def wrong(contents: Any, *, exact: bool) -> Any:
        asked.append(exact)
        return lambda batch: np.ones((len(batch), encoder.dim), dtype=np.float32)

    monkeypatch.setitem(exported_module.RUNTIMES, kind, wrong)
    with pytest.raises(EncoderError, match="does not give the vectors of tiny on this machine"):
        load_exported(exported)
    assert asked == [False, True]
    with pytest.raises(EncoderError, match="does not give the vectors of tiny"):
        export_encoder(encoder, tmp_path / "new", format=kind, probe=images())
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = json.loads((exported / "exported.json").read_text())["format"]
    monkeypatch.setitem(sys.modules, PACKAGES[kind], None)
    with pytest.raises(EncoderError, match=r"which is not installed: pip install 'radshot\[fast\]'"):
        load_exported(exported)


def test_what_cannot_be_exported_is_said(encoder: TorchEncoder, tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match="exported as one of onnx, openvino; got 'pickle'"):
        export_encoder(encoder, tmp_path / "x", format="pickle", probe=images())  # type: ignore[arg-type]
    with pytest.raises(EncoderError, match=r"Only encoders of a torch network .*; pixels-8 is none"):
        export_encoder(load_encoder("pixels-8"), tmp_path / "x", format="onnx", probe=images())
    with pytest.raises(EncoderError, match="give at least one"):
        export_encoder(encoder, tmp_path / "x", format="onnx", probe=[])
    (tmp_path / "there").mkdir()
    with pytest.raises(EncoderError, match="needs a new folder"):
        export_encoder(encoder, tmp_path / "there", format="onnx", probe=images())


def test_a_network_that_cannot_be_traced_is_said(tmp_path: Path) -> None:
    pytest.importorskip("onnx")

    class Odd(torch.nn.Module):
        dim = 2

        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            if torch.onnx.is_in_onnx_export():
                raise ValueError("never in a graph")
            return batch.flatten(1)[:, :2]

    odd = TorchEncoder(Odd(), Preprocess(size=(8, 8)), name="odd")
    with pytest.raises(EncoderError, match="The network of odd cannot be written as onnx: never in a graph"):
        export_encoder(odd, tmp_path / "x", format="onnx", probe=images())
    assert not list(tmp_path.iterdir())


def rewrite(folder: Path, arrays: dict[str, np.ndarray[Any, Any]] | None = None, **changes: Any) -> Path:
    """Change what describes an export, and make every hash fit again."""
    document = json.loads((folder / "exported.json").read_text()) | changes
    if arrays is not None:
        save_file(arrays, folder / ARRAYS_FILE)
        document["files"][ARRAYS_FILE] = hashlib.sha256((folder / ARRAYS_FILE).read_bytes()).hexdigest()
    del document[DOCUMENT_HASH]
    document[DOCUMENT_HASH] = fingerprint_of(document)
    (folder / "exported.json").write_text(json.dumps(document))
    return folder


def test_how_images_are_prepared_cannot_be_changed(exported: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(exported, tmp_path / "x"))
    document = json.loads((folder / "exported.json").read_text())
    assert document["preprocess"]["fit"] == "pad"  # the probe lies in the folder prepared: it would not show this
    document["preprocess"]["fit"] = "crop"
    (folder / "exported.json").write_text(json.dumps(document))
    with pytest.raises(EncoderError, match=r"exported\.json is not what was written: export it again"):
        load_exported(folder)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[" * 100_000, "recursion"),
        (" " * (MAX_DOCUMENT_BYTES + 1), "larger than 4,194,304 bytes"),
        ('{"format": "onnx", "format_version": 2, "files": {}}', "format 2 of kind 'onnx'; this radshot reads 1"),
        ('{"format": "pickle", "format_version": 1, "files": {}}', "of kind 'pickle'"),
        ('{"format": "onnx", "format_version": 1, "files": {"../a": "0"}}', r"files \['\.\./a'\] instead of"),
        ("[1, 2]", "is no description of an exported encoder"),
    ],
)
def test_a_crafted_description_is_refused(text: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "exported.json").write_text(text)
    with pytest.raises(EncoderError, match=why):
        load_exported(tmp_path)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_crafted_arrays_are_refused(exported: Path, encoder: TorchEncoder, tmp_path: Path) -> None:
    arrays = load_file(exported / ARRAYS_FILE)
    dims = encoder.dim
    cases: dict[str, tuple[dict[str, np.ndarray[Any, Any]], str]] = {
        "empty": ({"probe_images": arrays["probe_images"][:0]}, "it has no probe images"),
        "mean": ({"source_mean": np.zeros(3, dtype=np.float32)}, rf"source_mean must be {dims} numbers; got shape"),
        "statistics": (
            {"statistics.means": np.zeros((2, 3), np.float32), "statistics.variances": np.zeros((2, 3), np.float32)},
            rf"SourceStatistics of {dims} dimensions; got 3",
        ),
        "size": ({"probe_images": arrays["probe_images"][:, :20]}, "does not give the vectors of tiny"),
    }
    for name, (changes, why) in cases.items():
        folder = Path(shutil.copytree(exported, tmp_path / name))
        with pytest.raises(EncoderError, match=why):
            load_exported(rewrite(folder, arrays | changes))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_learnt_comparison_comes_along(exported: Path, encoder: TorchEncoder, tmp_path: Path) -> None:
    kind = json.loads((exported / "exported.json").read_text())["format"]
    learnt = copy.copy(encoder)
    weights = np.linspace(0.1, 1.0, encoder.dim, dtype=np.float32)
    learnt.similarity = SimilarityHead("weighted-l1", {"sign": 1}, {"weights": weights})
    loaded = load_exported(export_encoder(learnt, tmp_path / "x", format=kind, probe=images()))
    assert loaded.similarity is not None
    assert (loaded.similarity.name, loaded.similarity.config) == ("weighted-l1", {"sign": 1})
    np.testing.assert_array_equal(loaded.similarity.tensors["weights"], weights)
    assert load_exported(exported).similarity is None


def test_what_is_not_plain_json_is_not_exported(encoder: TorchEncoder, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    odd = copy.copy(encoder)
    odd.training = {"seed": float("nan")}
    with pytest.raises(EncoderError, match="What describes the encoder tiny is not plain JSON"):
        export_encoder(odd, tmp_path / "x", format="onnx", probe=images())
    assert not list(tmp_path.iterdir())
