"""load_encoder, the floors without a network, vectors made elsewhere, fingerprints, and an import without torch."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import embeddings
from embeddings import (
    Encoder,
    EncoderError,
    HogEncoder,
    ImageError,
    PixelEncoder,
    PrecomputedEncoder,
    Preprocess,
    SourceStatistics,
    UnknownEncoder,
    load_encoder,
    read_image,
)
from embeddings.encoders import fingerprint_of

IMAGES = [np.random.default_rng(seed).random((40, 50)) for seed in range(5)]


def test_the_package_exports_what_it_lists() -> None:
    for name in embeddings.__all__:
        assert getattr(embeddings, name) is not None
    assert set(embeddings.__all__) <= set(dir(embeddings))
    assert sorted(embeddings.__all__) == sorted(embeddings._HOMES)
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = embeddings.nonsense


def test_floors_and_images_leave_torch_out() -> None:
    code = (
        "import sys, numpy as np, embeddings\n"
        "from embeddings import load_encoder, PrecomputedEncoder, Preprocess, read_image\n"
        "image = np.random.default_rng(0).random((40, 50))\n"
        "for spec in ('pixels-32', 'hog-64'):\n"
        "    encoder = load_encoder(spec)\n"
        "    encoder.encode([image])\n"
        "try:\n"
        "    load_encoder('nowhere')\n"
        "except embeddings.EncoderError:\n"
        "    pass\n"
        "sys.exit('torch' in sys.modules or 'faiss' in sys.modules)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], check=False).returncode == 0


def test_pixels_are_the_resized_grey_levels() -> None:
    encoder = load_encoder("pixels-16")
    assert (encoder.name, encoder.dim, encoder.source_mean) == ("pixels-16", 256, None)
    expected = Preprocess(size=(16, 16)).resize(read_image(IMAGES[0])).ravel()
    np.testing.assert_allclose(encoder.encode(IMAGES)[0], expected, atol=1e-6)
    assert isinstance(encoder, Encoder)


def test_hog_is_dalal_and_triggs_on_64_by_64() -> None:
    encoder = load_encoder("hog-64")
    assert encoder.dim == 7 * 7 * 36
    vectors = encoder.encode(IMAGES)
    assert vectors.shape == (5, 1764) and vectors.dtype == np.float32
    # gradients alone count: a darker copy of the image has the same histograms
    np.testing.assert_allclose(encoder.encode([IMAGES[0] * 0.5])[0], vectors[0], atol=1e-3)
    # each block of four cells has length one after clipping
    np.testing.assert_allclose(np.linalg.norm(vectors.reshape(5, 49, 36), axis=2), 1.0, atol=1e-3)
    # vertical edges fill the bin of horizontal gradients
    stripes = np.tile(np.repeat([0.0, 1.0], 8), (64, 4))
    histogram = encoder.encode([stripes]).reshape(-1, 9).sum(axis=0)
    assert histogram[[0, 8]].sum() > 0.99 * histogram.sum()


def test_batches_do_not_matter_and_order_is_kept() -> None:
    for spec in ("pixels-8", "hog-16"):
        encoder = load_encoder(spec)
        whole = encoder.encode(IMAGES)
        np.testing.assert_array_equal(encoder.encode(IMAGES, batch_size=2), whole)
        np.testing.assert_array_equal(encoder.encode_loaded([encoder.load(image) for image in IMAGES]), whole)
        assert encoder.encode([]).shape == (0, encoder.dim)


def test_loaders_pickle_into_workers() -> None:
    for encoder in (PixelEncoder(8), HogEncoder(16)):
        loader = pickle.loads(pickle.dumps(encoder.loader))
        np.testing.assert_array_equal(loader(IMAGES[0]), encoder.load(IMAGES[0]))


def test_a_single_image_goes_in_a_list(tmp_path: Path) -> None:
    for single in (IMAGES[0], "a.png", Path("a.png")):
        with pytest.raises(
            EncoderError, match=r"encode takes a list of images and got a single one: write encode\(\[image\]\)"
        ):
            PixelEncoder().encode(single)  # type: ignore[arg-type]
    with pytest.raises(EncoderError, match="batch_size must be at least 1; got 0"):
        PixelEncoder().encode(IMAGES, batch_size=0)
    with pytest.raises(ImageError, match="there is no such file"):
        PixelEncoder().encode([tmp_path / "none.png"])


def test_fingerprints_tell_encoders_apart_and_repeat() -> None:
    prints = [encoder.fingerprint for encoder in (PixelEncoder(8), PixelEncoder(16), HogEncoder(16), HogEncoder(24))]
    assert len(set(prints)) == 4 and all(len(text) == 64 for text in prints)
    assert PixelEncoder(8).fingerprint == prints[0]
    a, b = np.arange(4.0), np.arange(3)
    assert fingerprint_of({"x": 1, "y": 2}, {"a": a, "b": b}) == fingerprint_of({"y": 2, "x": 1}, {"b": b, "a": a})
    assert fingerprint_of({}, {"a": a.astype(">f8")}) == fingerprint_of({}, {"a": a.astype("<f8")})
    different = [{"a": a + 1}, {"b": a}, {"a": a.reshape(2, 2)}, {"a": a.astype(np.float32)}, {"a": a, "b": b}]
    assert len({fingerprint_of({}, arrays) for arrays in [{"a": a}, *different]}) == 6


def test_an_encoder_is_handed_back() -> None:
    encoder = PixelEncoder(8)
    assert load_encoder(encoder) is encoder


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("pixel-32", "There is no encoder 'pixel-32' and no such folder; .* Did you mean 'pixels-32'?"),
        ("pixels-1", "pixels-N takes N from 2 to 512; got 1"),
        ("hog-60", "hog-N takes multiples of 8 from 16 to 512; got 60"),
        ("untrained:conv9", "There is no backbone 'conv9'; .* Did you mean 'conv4'?"),
        ("untrained:conv4@x", "The seed in 'untrained:conv4@x' must be a whole number of at most 9 digits; got 'x'"),
        ("vectors:none.npz", "There is no file of vectors 'none.npz'"),
        (7, "An encoder is named by .*; got int"),
    ],
)
def test_wrong_specs(spec: object, message: str) -> None:
    with pytest.raises(EncoderError, match=message):
        load_encoder(spec)


def test_a_mistyped_name_can_be_told_from_a_broken_encoder() -> None:
    for spec in ("pixel-32", "pixels-1", "hog-60", "untrained:conv9"):
        with pytest.raises(UnknownEncoder):
            load_encoder(spec)


def test_folders_and_files_that_are_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(EncoderError, match=r"has no encoder.json: it is not a checkpoint"):
        load_encoder(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(EncoderError, match=r'holds a transformers model, not an own checkpoint: write "hf:'):
        load_encoder(tmp_path)
    with pytest.raises(EncoderError, match=r"is a file; a checkpoint is the folder that holds encoder.json"):
        load_encoder(tmp_path / "config.json")


# --- vectors made elsewhere -----------------------------------------------------------------------------------------

IDS = ["a.png", "deep/b.png", "1.2.3"]
VECTORS = np.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]], dtype=np.float32)


def test_rows_are_found_by_id_path_or_end_of_path() -> None:
    encoder = PrecomputedEncoder(IDS, VECTORS)
    assert encoder.dim == 2
    found = encoder.encode(["1.2.3", "/scans/deep/b.png", Path("deep/b.png"), "x/a.png"])
    np.testing.assert_array_equal(found, VECTORS[[2, 1, 1, 0]])
    with pytest.raises(ImageError, match=r"b.png: none of the 3 vectors made elsewhere has this id or path"):
        encoder.encode(["b.png"])
    with pytest.raises(ImageError, match="looked up by id or path; an array has neither"):
        encoder.encode([IMAGES[0]])
    assert pickle.loads(pickle.dumps(encoder.loader))("a.png").tolist() == [1.0, 0.0]


def test_a_dicom_file_is_found_by_its_uid(tmp_path: Path) -> None:
    import pydicom
    from pydicom.uid import ExplicitVRLittleEndian

    ds = pydicom.Dataset()
    ds.file_meta = pydicom.dataset.FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID, ds.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1", "1.2.3"
    ds.save_as(tmp_path / "file", enforce_file_format=True)
    np.testing.assert_array_equal(PrecomputedEncoder(IDS, VECTORS).encode([tmp_path / "file"]), VECTORS[[2]])
    Image.fromarray(np.zeros((3, 3), np.uint8)).save(tmp_path / "other.png")
    with pytest.raises(ImageError, match="none of the 3 vectors"):
        PrecomputedEncoder(IDS, VECTORS).encode([tmp_path / "other.png"])


def test_vectors_made_elsewhere_may_bring_their_source() -> None:
    dim = VECTORS.shape[1]
    source = SourceStatistics(np.zeros((2, dim)), np.ones((2, dim)), np.array([6, 9]))
    encoder = PrecomputedEncoder(IDS, VECTORS, source_mean=np.ones(dim), source_statistics=source)
    assert encoder.source_statistics is source and PrecomputedEncoder(IDS, VECTORS).source_statistics is None
    assert encoder.fingerprint == PrecomputedEncoder(IDS, VECTORS).fingerprint
    other = SourceStatistics(np.zeros((2, dim + 1)), np.ones((2, dim + 1)), np.array([6, 9]))
    message = f"source_statistics must be SourceStatistics of {dim} dimensions; got {dim + 1} dimensions"
    with pytest.raises(EncoderError, match=message):
        PrecomputedEncoder(IDS, VECTORS, source_statistics=other)


def test_the_order_of_rows_does_not_matter_to_the_fingerprint() -> None:
    same = PrecomputedEncoder(IDS[::-1], VECTORS[::-1], name="other").fingerprint
    assert PrecomputedEncoder(IDS, VECTORS).fingerprint == same
    assert PrecomputedEncoder(IDS, VECTORS + 1).fingerprint != same


def test_vectors_from_mappings_and_files(tmp_path: Path) -> None:
    import pandas as pd

    table = pd.DataFrame({"id": IDS, "x": VECTORS[:, 0], "y": VECTORS[:, 1]})
    np.savez(tmp_path / "v.npz", ids=np.array(IDS), vectors=VECTORS)
    table.to_csv(tmp_path / "v.csv", index=False)
    table.to_parquet(tmp_path / "v.parquet")
    expected = load_encoder(dict(zip(IDS, VECTORS, strict=True)))
    for suffix in ("npz", "csv", "parquet"):
        encoder = load_encoder(f"vectors:{tmp_path / f'v.{suffix}'}")
        np.testing.assert_array_equal(encoder.encode(IDS), VECTORS)
        assert encoder.fingerprint == expected.fingerprint
    pd.DataFrame({"id": ["007"], "x": [1.0]}).to_csv(tmp_path / "zeros.csv", index=False)
    assert load_encoder(f"vectors:{tmp_path / 'zeros.csv'}").encode(["007"]).tolist() == [[1.0]]


def test_files_that_hold_no_vectors(tmp_path: Path) -> None:
    np.savez(tmp_path / "objects.npz", ids=np.array(["a"], dtype=object), vectors=VECTORS[:1])
    (tmp_path / "junk.npz").write_bytes(pickle.dumps({"ids": IDS}))
    (tmp_path / "nokey.csv").write_text("name,x\na,1\n")
    (tmp_path / "words.csv").write_text("id,x\na,b\n")
    (tmp_path / "v.pkl").write_bytes(b"x")
    for name, message in {
        "objects.npz": "is no file of ids and vectors",
        "junk.npz": "is no file of ids and vectors",
        "nokey.csv": "has no column id, image, path to tell whose vector a row is",
        "words.csv": "is no file of ids and vectors",
        "v.pkl": r"Vectors are read from .npz, .csv and .parquet files",
    }.items():
        with pytest.raises(EncoderError, match=message):
            load_encoder(f"vectors:{tmp_path / name}")


def test_ids_and_vectors_must_fit_together() -> None:
    with pytest.raises(EncoderError, match="There are 2 ids for 3 vectors"):
        PrecomputedEncoder(IDS[:2], VECTORS)
    with pytest.raises(EncoderError, match=r"The id 'a' has two vectors \(rows 0 and 2\)"):
        PrecomputedEncoder(["a", "b", "a"], VECTORS)
    with pytest.raises(EncoderError, match=r"Vectors must have shape \(n, d\) with at least one row; got \(0, 2\)"):
        PrecomputedEncoder([], np.zeros((0, 2)))
    with pytest.raises(EncoderError, match=r"The vector of 'deep/b.png' \(row 1\) holds NaN"):
        PrecomputedEncoder(IDS, [[1.0, 0.0], [0.0, float("nan")], [0.5, 0.5]])
