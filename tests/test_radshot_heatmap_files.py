"""Heat maps on disk: a Secondary Capture belongs to its query's patient and study, and says what it is."""

from __future__ import annotations

import sys
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset

from embeddings import ImageError, Preprocess, TorchEncoder, build_backbone, read_image
from episodes import SOURCE_FINDINGS, make_phantoms
from episodes.phantom_files import write_phantoms
from fewshot import PrototypeClassifier
from fewshot.heatmap_pictures import annotated
from fewshot.heatmaps import Explanation, explain_image
from radshot.heatmap_files import _orientation, write_heatmaps, write_secondary_captures


@pytest.fixture(scope="module")
def query(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DICOM file of a synthetic patient."""
    folder = tmp_path_factory.mktemp("phantoms")
    drawn = make_phantoms(SOURCE_FINDINGS[:2], patients_per_finding=1, images_per_patient=1, size=(64, 80), seed=0)
    write_phantoms(drawn, folder)
    return sorted(folder.rglob("*.dcm"))[0]


@lru_cache
def explained(path: Path) -> Explanation:
    network = build_backbone("conv4", width=8, seed=0)
    encoder = TorchEncoder(network, Preprocess(size=(48, 48)), name="small")
    image = read_image(path)
    head = PrototypeClassifier().fit(encoder.encode([image[::-1].copy(), image.T.copy()]), ["flipped", "turned"])
    return explain_image(encoder, head, path)


def test_a_secondary_capture_beside_its_source(query: Path, tmp_path: Path) -> None:
    found = explained(query)
    paths = write_heatmaps(found, query, tmp_path / "maps", name="a")
    names = [path.name for path in paths]
    assert names == ["a-grad-cam.png", "a-occlusion.png", "a-grad-cam.dcm", "a-occlusion.dcm"]
    source = pydicom.dcmread(query)
    written = [pydicom.dcmread(path) for path in paths[2:]]
    for number, (capture, heatmap) in enumerate(zip(written, found.maps, strict=True), start=1):
        for keyword in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyDate"):
            assert capture.get(keyword) == source.get(keyword), keyword
        assert (
            capture.SOPClassUID == pydicom.uid.SecondaryCaptureImageStorage == capture.file_meta.MediaStorageSOPClassUID
        )
        assert capture.file_meta.MediaStorageSOPInstanceUID == capture.SOPInstanceUID
        assert capture.SeriesInstanceUID != source.SeriesInstanceUID and capture.Modality == "OT"
        assert capture.InstanceNumber == number and capture.BurnedInAnnotation == "YES"
        assert list(capture.ImageType) == ["DERIVED", "SECONDARY", "OTHER"]
        (reference,) = capture.SourceImageSequence
        assert reference.ReferencedSOPInstanceUID == source.SOPInstanceUID
        assert reference.ReferencedSOPClassUID == source.SOPClassUID
        assert reference.PurposeOfReferenceCodeSequence[0].CodeValue == "121322"
        assert "Research use, not a medical device" in capture.DerivationDescription
        assert heatmap.verdict in capture.DerivationDescription and found.label in capture.DerivationDescription
        assert capture.ImageComments == "Research use, not a medical device"
        picture = annotated(found.image, heatmap)
        assert np.array_equal(capture.pixel_array, picture)
        grey = np.asarray(Image.fromarray(picture).convert("L"), dtype=np.float32) / 255
        assert np.abs(read_image(paths[1 + number]) - grey).max() < 0.01
    assert written[0].SeriesInstanceUID == written[1].SeriesInstanceUID
    assert written[0].SOPInstanceUID != written[1].SOPInstanceUID


def test_a_query_without_header_gets_a_png_and_is_no_secondary_capture(query: Path, tmp_path: Path) -> None:
    picture = tmp_path / "query.png"
    Image.fromarray((read_image(query) * 255).astype(np.uint8)).save(picture)
    found = explained(picture)
    paths = write_heatmaps(found, picture, tmp_path / "maps", name="q")
    assert [path.suffix for path in paths] == [".png", ".png"] and all(path.is_file() for path in paths)
    assert [path.suffix for path in write_heatmaps(found, None, tmp_path / "none", name="q")] == [".png", ".png"]
    with pytest.raises(
        ImageError, match="is no DICOM image, so a Secondary Capture would have no patient: write a PNG"
    ):
        write_secondary_captures(found, picture, [tmp_path / "x.dcm", tmp_path / "y.dcm"])


def test_a_source_without_a_study_is_refused(query: Path, tmp_path: Path) -> None:
    header = pydicom.dcmread(query)
    del header.StudyInstanceUID
    header.save_as(tmp_path / "lost.dcm")
    with pytest.raises(ImageError, match="has no StudyInstanceUID, to which a Secondary Capture must refer"):
        write_secondary_captures(explained(query), tmp_path / "lost.dcm", [tmp_path / "x.dcm", tmp_path / "y.dcm"])


def test_a_name_in_another_character_set_stays_readable(query: Path, tmp_path: Path) -> None:
    header = pydicom.dcmread(query)
    header.SpecificCharacterSet, header.PatientName = "ISO_IR 100", "Müller^Zoë"
    header.save_as(tmp_path / "named.dcm")
    paths = [tmp_path / "x.dcm", tmp_path / "y.dcm"]
    write_secondary_captures(explained(query), tmp_path / "named.dcm", paths)
    assert str(pydicom.dcmread(paths[0]).PatientName) == "Müller^Zoë"


def test_values_that_break_the_standard_are_copied_in_silence(query: Path, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        header = pydicom.dcmread(query)
        header.StudyDate, header.PatientAge = "0095.07.24", "42"
        header.save_as(tmp_path / "odd.dcm")
    paths = [tmp_path / "x.dcm", tmp_path / "y.dcm"]
    write_secondary_captures(explained(query), tmp_path / "odd.dcm", paths)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert str(pydicom.dcmread(paths[0]).PatientAge) == "42"


def test_what_was_lossy_stays_so_and_the_middle_frame_is_named(query: Path, tmp_path: Path) -> None:
    header = pydicom.dcmread(query)
    header.LossyImageCompression, header.LossyImageCompressionRatio = "01", "10"
    header.NumberOfFrames = 5
    header.save_as(tmp_path / "lossy.dcm")
    paths = [tmp_path / "x.dcm", tmp_path / "y.dcm"]
    write_secondary_captures(explained(query), tmp_path / "lossy.dcm", paths)
    capture = pydicom.dcmread(paths[0])
    assert capture.LossyImageCompression == "01" and "NumberOfFrames" not in capture
    assert capture.SourceImageSequence[0].ReferencedFrameNumber == 3


def test_a_missing_highdicom_is_one_sentence_and_the_png_files_are_there(
    query: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(ImportError, match=r"needs highdicom: pip install 'radshot\[dicom\]'"):
        write_heatmaps(explained(query), query, tmp_path / "maps", name="a")
    assert sorted(path.name for path in (tmp_path / "maps").iterdir()) == ["a-grad-cam.png", "a-occlusion.png"]


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"PatientOrientation": ["L", "F"]}, ("L", "F")),
        ({"ImageOrientationPatient": [1, 0, 0, 0, 1, 0]}, ("L", "P")),
        ({"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]}, ("P", "F")),
        ({"ImageOrientationPatient": [0.8, -0.6, 0, 0, 0, -1]}, ("LA", "F")),
        ({}, None),
    ],
)
def test_orientation_is_the_sources(fields: dict[str, Any], wanted: tuple[str, str] | None) -> None:
    header = Dataset()
    for keyword, value in fields.items():
        setattr(header, keyword, value)
    assert _orientation(header) == wanted
