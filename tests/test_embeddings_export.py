"""Encoders without torch: the same vectors, the same fingerprint, and nothing but what was written."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from embeddings import Archive, EncoderError, Preprocess, SourceStatistics, TorchEncoder, build_backbone, load_encoder
from embeddings import exported_encoder as exported_module
from embeddings.export import export_encoder
from embeddings.exported_encoder import load_exported
from embeddings.precision import LEAST_COSINE, least_cosine

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
    pytest.importorskip("onnx")
    pytest.importorskip(PACKAGES[request.param])
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
    import shutil

    for path in sorted(exported.iterdir()):
        copy = tmp_path / path.name
        shutil.copytree(exported, copy)
        content = bytearray((copy / path.name).read_bytes())
        content[len(content) // 2] ^= 1
        (copy / path.name).write_bytes(content)
        with pytest.raises(EncoderError, match=r"is not what was written|is no description|cannot be loaded|vectors"):
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
