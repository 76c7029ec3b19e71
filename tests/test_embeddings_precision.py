"""bfloat16 only where it gives nearly the vectors of float32, and a sentence that says what was chosen and why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from embeddings import Archive, EncoderError, Preprocess, TorchEncoder, build_backbone, embed_archive, load_encoder
from embeddings import precision as precision_module
from embeddings.precision import LEAST_COSINE, faster, has_bfloat16, keep_memory, least_cosine


@pytest.fixture(scope="module")
def encoder() -> Any:
    return load_encoder("untrained:conv4")


def probe(encoder: Any, count: int = 6) -> list[Any]:
    rng = np.random.default_rng(0)
    return [encoder.load(rng.random((40, 40), dtype=np.float32)) for _ in range(count)]


def test_bfloat16_is_close_and_says_so(encoder: Any) -> None:
    images = probe(encoder)
    encode, report = faster(encoder, images, precision="bfloat16")
    exact, fast = encoder.encode_loaded(images), encode(images)
    assert fast.dtype == np.float32 and fast.shape == exact.shape
    assert report.chosen == "bfloat16" and report.cosine is not None
    assert LEAST_COSINE <= report.cosine == pytest.approx(least_cosine(exact, fast))
    assert "Vectors are computed in bfloat16; their cosine with float32 is at least 0.9" in str(report)
    assert not np.array_equal(exact, fast)
    assert encode([]).shape == (0, encoder.dim)
    np.testing.assert_array_equal(encoder.encode_loaded(images), exact)  # the encoder itself is as it was
    assert next(encoder.network.parameters()).dtype == torch.float32


def test_float32_can_be_asked_for(encoder: Any) -> None:
    images = probe(encoder)
    encode, report = faster(encoder, images, precision="float32")
    np.testing.assert_array_equal(encode(images), encoder.encode_loaded(images))
    assert (report.chosen, str(report)) == ("float32", "Vectors are computed in float32.")


def test_a_network_that_bfloat16_changes_stays_in_float32() -> None:
    class Picky(torch.nn.Module):
        dim = 4

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            fine = torch.sin(images.flatten(1)[:, :4] * 4000)
            return fine.float() if images.dtype == torch.float32 else fine

    encoder = TorchEncoder(Picky(), Preprocess(size=(8, 8)), name="picky")
    images = probe(encoder)
    encode, report = faster(encoder, images, precision="bfloat16")
    assert report.chosen == "float32"
    assert "one of 6 probe images has a cosine of only" in str(report)
    np.testing.assert_array_equal(encode(images), encoder.encode_loaded(images))


def test_a_network_that_gives_nothing_finite_or_does_not_run_stays_in_float32() -> None:
    class Odd(torch.nn.Module):
        dim = 4

        def __init__(self, fails: bool) -> None:
            super().__init__()
            self.fails = fails

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            if images.dtype == torch.bfloat16:
                if self.fails:
                    raise RuntimeError("no kernel for this type\nand more")
                return images.flatten(1)[:, :4] * float("nan")
            return images.flatten(1)[:, :4]

    sentences = {False: "has a cosine of only nan", True: "does not run in bfloat16 (no kernel for this type)"}
    for fails, sentence in sentences.items():
        encoder = TorchEncoder(Odd(fails), Preprocess(size=(8, 8)), name="odd")
        _, report = faster(encoder, probe(encoder), precision="bfloat16")
        assert report.chosen == "float32"
        assert sentence in str(report)


def test_auto_takes_what_the_machine_is_faster_at(encoder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    images = probe(encoder)
    monkeypatch.setattr(precision_module, "has_bfloat16", lambda device: False)
    assert "no instructions for bfloat16" in str(faster(encoder, images)[1])
    monkeypatch.setattr(precision_module, "has_bfloat16", lambda device: True)
    for gains, chosen in (((3.0, 1.0), "bfloat16"), ((1.0, 1.0), "float32")):
        seconds = iter(gains)
        monkeypatch.setattr(precision_module, "_seconds", lambda encode, images, left=seconds: next(left))
        report = faster(encoder, images)[1]
        assert report.chosen == chosen
    assert "bfloat16 is only 1.00 times as fast here" in str(report)
    assert has_bfloat16(torch.device("cpu")) in (True, False)
    keep_memory()


def test_without_bfloat16_channels_come_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision_module, "has_bfloat16", lambda device: False)
    layouts: list[bool] = []

    class Watched(torch.nn.Module):
        def __init__(self, usual: bool) -> None:
            super().__init__()
            self.inner, self.usual = build_backbone("conv4", in_channels=3, seed=0), usual

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            layouts.append(images.is_contiguous())
            rows: torch.Tensor = self.inner(images.contiguous())
            if self.usual:  # view() raises for any other layout
                return rows + 0 * images.view(len(images), -1)[:, :1]
            return rows

    for usual in (False, True):
        watched = TorchEncoder(Watched(usual), Preprocess(size=(40, 40), channels=3), name="watched")
        images = probe(watched)
        encode, report = faster(watched, images)
        assert "no instructions for bfloat16" in str(report)
        layouts.clear()
        np.testing.assert_allclose(encode(images), watched.encode_loaded(images), rtol=1e-3, atol=1e-5)
        assert layouts == [usual, True]


def test_other_encoders_are_used_as_they_are() -> None:
    pixels = load_encoder("pixels-8")
    encode, report = faster(pixels, [])
    assert encode == pixels.encode_loaded and str(report) == ""
    with pytest.raises(EncoderError, match="precision must be one of auto, float32, bfloat16; got 'half'"):
        faster(pixels, [], precision="half")  # type: ignore[arg-type]


def test_least_cosine_against_a_loop() -> None:
    rng = np.random.default_rng(1)
    a = rng.normal(size=(7, 5)).astype(np.float32)
    b = (a + 0.1 * rng.normal(size=a.shape)).astype(np.float32)
    slow = min(float(x @ y / np.sqrt((x @ x) * (y @ y))) for x, y in zip(a.astype(float), b.astype(float), strict=True))
    assert least_cosine(a, b) == pytest.approx(slow)
    assert least_cosine(a * 0, b * 0) == 1.0
    assert least_cosine(a, b * 0) == 0.0
    assert np.isnan(least_cosine(a, b * np.nan))


def test_a_job_says_how_its_vectors_were_computed(tmp_path: Path, encoder: Any) -> None:
    (tmp_path / "s").mkdir()
    for seed in range(3):
        pixels = np.random.default_rng(seed).integers(0, 256, (30, 30), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "s" / f"{seed}.png")
    fast = embed_archive(tmp_path / "s", encoder, tmp_path / "a", workers=0, precision="bfloat16")
    exact = embed_archive(tmp_path / "s", encoder, tmp_path / "b", workers=0, precision="float32")
    assert "bfloat16" in fast.precision and "float32" in exact.precision
    with Archive.open(tmp_path / "a") as first, Archive.open(tmp_path / "b") as second:
        assert least_cosine(second.vectors, first.vectors) >= LEAST_COSINE
        assert not np.array_equal(first.vectors, second.vectors)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_bfloat16_on_cuda_is_close() -> None:
    encoder: Any = load_encoder("untrained:conv4", device="cuda")
    images = probe(encoder, 40)
    encode, report = faster(encoder, images, precision="bfloat16")
    assert report.chosen == "bfloat16"
    for batch in (images, images[:3], images):
        assert least_cosine(encoder.encode_loaded(batch), encode(batch)) >= LEAST_COSINE


def test_an_archive_keeps_to_what_it_was_begun_with(
    tmp_path: Path, encoder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "s").mkdir()
    for seed in range(4):
        pixels = np.random.default_rng(seed).integers(0, 256, (30, 30), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "s" / f"{seed}.png")
        if seed == 1:
            embed_archive(tmp_path / "s", encoder, tmp_path / "a", workers=0, precision="bfloat16")
    monkeypatch.setattr(precision_module, "has_bfloat16", lambda device: False)
    again = embed_archive(tmp_path / "s", encoder, tmp_path / "a", workers=0)
    assert "bfloat16" in again.precision
    embed_archive(tmp_path / "s", encoder, tmp_path / "b", workers=0, precision="bfloat16")
    with Archive.open(tmp_path / "a") as first, Archive.open(tmp_path / "b") as second:
        assert first.get_note("precision") == "bfloat16"
        assert least_cosine(first.vectors, second.vectors) > 1 - 1e-6
