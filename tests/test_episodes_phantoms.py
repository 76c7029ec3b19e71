"""Phantoms: the truth is in the image, in the words and in the files, and the floors stay low."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom.pixels import apply_modality_lut, apply_voi_lut
from skimage.feature import hog

from embeddings import read_image
from episodes import Manifest, phantoms
from episodes.phantom_files import COLUMNS, DEVICES, device_of
from episodes.phantom_reports import TERMS
from episodes.phantom_specs import SPECS
from episodes.phantoms import (
    FINDINGS,
    NO_FINDING,
    SOURCE_FINDINGS,
    UNSEEN_FINDINGS,
    PhantomFinding,
    PhantomSet,
    draw_phantom,
    make_phantoms,
    write_phantoms,
)

DENIAL = re.compile(r"^(No |Neither |Negative for )|shows no | is free of ")
ONE_SIDED = [
    name for name, spec in SPECS.items() if "left" in spec.sides and name not in ("scoliosis", "cardiac device")
]


@pytest.fixture(scope="module")
def everything() -> PhantomSet:
    return make_phantoms((NO_FINDING, *FINDINGS), patients_per_finding=4, images_per_patient=2, seed=5, combined=0.4)


def one(name: str, *, side: str | None = None, place: str | None = None, severity: float = 0.7) -> PhantomFinding:
    spec = SPECS[name]
    return PhantomFinding(name, side or spec.sides[0], place or spec.places[0], severity)


def change(finding: PhantomFinding, patient: int, image: int = 0) -> NDArray[np.float32]:
    """How much each pixel differs from the same patient's healthy chest, noise left out."""
    difference = np.abs(
        draw_phantom([finding], patient=patient, image=image) - draw_phantom([], patient=patient, image=image)
    )
    return np.where(difference > 0.04, difference, 0.0).astype(np.float32)


def test_at_least_fourteen_findings_and_every_one_can_be_drawn_and_told() -> None:
    assert len(FINDINGS) >= 14
    assert NO_FINDING not in FINDINGS
    assert set(SPECS) == set(TERMS) == set(FINDINGS)
    assert set(phantoms._PAINTERS) | set(phantoms._RESHAPERS) == set(FINDINGS)


def test_source_and_unseen_part_the_findings() -> None:
    assert len(UNSEEN_FINDINGS) == 5
    assert not set(SOURCE_FINDINGS) & set(UNSEEN_FINDINGS)
    assert set(SOURCE_FINDINGS) | set(UNSEEN_FINDINGS) == {NO_FINDING, *FINDINGS}


def test_counts_types_and_patients(everything: PhantomSet) -> None:
    n = (len(FINDINGS) + 1) * 4 * 2
    assert len(everything) == n == len(everything.labels) == len(everything.sides) == len(everything.reports)
    assert everything.images.shape == (n, *phantoms.DEFAULT_SIZE)
    assert everything.images.dtype == np.float32
    assert everything.images.min() >= 0.0
    assert everything.images.max() <= 1.0
    assert len(set(everything.ids)) == n
    assert len(set(everything.patients)) == n // 2
    assert all(
        image_id.startswith(patient) for image_id, patient in zip(everything.ids, everything.patients, strict=True)
    )


def test_images_of_a_patient_share_the_finding_but_not_the_exposure(everything: PhantomSet) -> None:
    for i in range(0, len(everything), 2):
        assert everything.patients[i] == everything.patients[i + 1]
        first, second = everything.findings[i], everything.findings[i + 1]
        assert [(f.name, f.side, f.place) for f in first] == [(f.name, f.side, f.place) for f in second]
        assert np.abs(everything.images[i] - everything.images[i + 1]).mean() > 0.01


def test_same_seed_same_images_another_seed_others() -> None:
    first, again, other = (make_phantoms(["mass", NO_FINDING], patients_per_finding=2, seed=s) for s in (3, 3, 4))
    assert np.array_equal(first.images, again.images)
    assert first.reports == again.reports
    assert first.ids == again.ids
    assert not set(first.patients) & set(other.patients)


def test_a_patient_does_not_depend_on_what_else_was_asked_for() -> None:
    alone = make_phantoms(["cavity"], patients_per_finding=2, seed=1)
    among = make_phantoms(["nodule", "cavity"], patients_per_finding=3, seed=1)
    rows = [among.ids.index(image_id) for image_id in alone.ids]
    assert np.array_equal(alone.images, among.images[rows])
    assert alone.reports == tuple(among.reports[row] for row in rows)


def test_a_label_is_text_and_a_tuple_where_findings_are_combined(everything: PhantomSet) -> None:
    assert make_phantoms(["mass", NO_FINDING], patients_per_finding=1).labels == ["mass", NO_FINDING]
    assert all(isinstance(label, tuple) for label in everything.labels)
    assert {len(label) for label in everything.labels} == {1, 2}
    assert sum(len(label) for label in everything.labels) == sum(max(1, len(f)) for f in everything.findings)


def test_sources_never_show_a_finding_that_was_not_asked_for() -> None:
    source = make_phantoms(SOURCE_FINDINGS, patients_per_finding=4, size=(32, 32), seed=0, combined=1.0)
    shown = {finding.name for row in source.findings for finding in row}
    assert shown
    assert shown <= set(SOURCE_FINDINGS)
    assert sum(len(row) == 2 for row in source.findings) == (len(SOURCE_FINDINGS) - 1) * 4


@pytest.mark.parametrize("name", FINDINGS)
def test_every_finding_shows(name: str) -> None:
    for patient in range(3):
        assert (change(one(name), patient) > 0).sum() > 40


@pytest.mark.parametrize("name", ONE_SIDED)
def test_left_is_on_the_right_of_the_image(name: str) -> None:
    for side, other in (("left", "right"), ("right", "left")):
        for place in set(SPECS[name].places):
            shares = []
            for patient in range(4):
                seen = change(one(name, side=side, place=place), patient)
                middle = seen.shape[1] // 2
                half = {"right": seen[:, :middle].sum(), "left": seen[:, middle:].sum()}
                shares.append(half[side] / (half[side] + half[other]))
            assert np.mean(shares) > 0.8


@pytest.mark.parametrize("name", [name for name, spec in SPECS.items() if spec.places == ("upper", "middle", "lower")])
def test_zones_lie_above_one_another(name: str) -> None:
    for patient in range(3):
        heights = []
        for zone in ("upper", "middle", "lower"):
            seen = change(one(name, side="right", place=zone), patient)
            heights.append(float((seen.sum(1) * np.arange(len(seen))).sum() / seen.sum()))
        assert heights[0] + 10 < heights[1] < heights[2] - 10


@pytest.mark.parametrize("name", ["effusion", "mass", "cardiomegaly", "pneumothorax", "miliary nodules", "free air"])
def test_a_severe_finding_changes_more_than_a_mild_one(name: str) -> None:
    mild, severe = (sum(float(change(one(name, severity=s), p).sum()) for p in range(4)) for s in (0.1, 0.95))
    assert severe > 1.15 * mild


def test_air_is_darker_and_density_brighter() -> None:
    healthy = draw_phantom([], patient=1)
    for name, sign in (("consolidation", 1), ("effusion", 1), ("mass", 1), ("free air", -1), ("emphysema", -1)):
        difference = draw_phantom([one(name)], patient=1) - healthy
        assert sign * float(np.where(np.abs(difference) > 0.04, difference, 0.0).sum()) > 0


def sentences(report: str) -> list[str]:
    body = report.removeprefix("FINDINGS: ").replace("IMPRESSION: ", "")
    return [re.sub(r"^\d\) ", "", sentence) for sentence in re.split(r"(?<=\.)\s+", body)]


def test_reports_affirm_what_is_there_and_deny_only_what_is_not(everything: PhantomSet) -> None:
    denied_terms, used_terms = 0, set()
    for report, names in zip(everything.reports, everything.labels, strict=True):
        affirmed = " ".join(s.lower() for s in sentences(report) if not DENIAL.search(s))
        denied = " ".join(s.lower() for s in sentences(report) if DENIAL.search(s))
        for name in FINDINGS:
            said = {term for term in TERMS[name] if term in affirmed}
            used_terms |= said
            if name in names:
                assert said, (name, report)
                assert not any(term in denied for term in TERMS[name]), (name, report)
            else:
                assert not said, (name, report)
                denied_terms += any(term in denied for term in TERMS[name])
    assert denied_terms > 3 * len(everything)
    assert len(used_terms) > 2 * len(FINDINGS)


def test_reports_name_the_side() -> None:
    made = make_phantoms(["mass", "pleural thickening", "chest tube"], patients_per_finding=6, size=(32, 32), seed=2)
    for report, side in zip(made.reports, made.sides, strict=True):
        assert side in report.split("IMPRESSION: ")[1]
        assert {"left": "right", "right": "left"}[side] not in report


def test_dicom_round_trip(tmp_path: Path) -> None:
    made = make_phantoms(["mass", NO_FINDING], patients_per_finding=12, seed=0)
    manifest = write_phantoms(made, tmp_path / "ä b")
    rows = list(csv.DictReader(manifest.read_text(encoding="utf-8").splitlines()))
    assert tuple(rows[0]) == COLUMNS
    seen = set()
    for i, row in enumerate(rows):
        dataset = pydicom.dcmread(manifest.parent / row["image"])
        device = device_of(made.patients[i])
        seen.add((device.name, dataset.PhotometricInterpretation))
        assert (dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation) == (
            16,
            12,
            11,
            0,
        )
        assert dataset.Modality in ("CR", "DX")
        assert dataset.ViewPosition == row["view"]
        assert dataset.PatientID == row["patient"] == made.patients[i]
        assert dataset.StudyInstanceUID == row["study"]
        assert dataset.PhotometricInterpretation == row["photometric"] == device.photometric
        assert list(dataset.PatientOrientation) == ["L", "F"]
        stored = dataset.pixel_array
        assert stored.max() <= 4095
        if row["photometric"] == "MONOCHROME1":  # what pydicom's window puts out has the range of the rescaled 12 bits
            assert np.corrcoef(stored.ravel(), made.images[i].ravel())[0, 1] < -0.99
        low, high = (float(dataset.RescaleSlope) * v + float(dataset.RescaleIntercept) for v in (0, 4095))
        shown = (apply_voi_lut(apply_modality_lut(stored, dataset), dataset) - low) / (high - low)
        shown = 1.0 - shown if row["photometric"] == "MONOCHROME1" else shown
        step = 1.0 / (device.high - device.low)
        np.testing.assert_allclose(shown, made.images[i], atol=0.51 * step + 1e-6)
        np.testing.assert_allclose(read_image(manifest.parent / row["image"]), made.images[i], atol=0.51 * step + 1e-5)
    assert seen == {(device.name, device.photometric) for device in DEVICES}
    assert {device.photometric for device in DEVICES} == {"MONOCHROME1", "MONOCHROME2"}


def test_dicom_says_what_the_standard_asks_for(tmp_path: Path) -> None:
    made = make_phantoms(["nodule"], patients_per_finding=8, images_per_patient=2, size=(48, 40), seed=1)
    files = [pydicom.dcmread(path) for path in sorted(write_phantoms(made, tmp_path).parent.glob("*.dcm"))]
    for keyword in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
        uids = [getattr(file, keyword) for file in files]
        assert len(set(uids)) == len(files)
        assert all(uid.is_valid for uid in uids)
    for file in files:
        assert file.file_meta.MediaStorageSOPInstanceUID == file.SOPInstanceUID
        assert (file.Rows, file.Columns) == (48, 40)
        assert file.BurnedInAnnotation == "NO"
        if file.Modality == "DX":
            assert file.PresentationIntentType == "FOR PRESENTATION"
            assert file.PresentationLUTShape == (
                "INVERSE" if file.PhotometricInterpretation == "MONOCHROME1" else "IDENTITY"
            )


def test_files_are_the_same_bytes_every_time(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        write_phantoms(make_phantoms(["edema"], patients_per_finding=2, seed=9), tmp_path / folder)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert len(names) == 3
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_png_and_manifest(tmp_path: Path, everything: PhantomSet) -> None:
    made = make_phantoms(["nodule", "mass"], patients_per_finding=2, seed=1, combined=1.0)
    manifest = Manifest.read(write_phantoms(made, tmp_path, format="png"), group="patient")
    assert manifest.labels == made.labels
    assert manifest.groups == list(made.patients)
    assert list(manifest.table["report"]) == list(made.reports)
    for path, image in zip(manifest.images, made.images, strict=True):
        np.testing.assert_allclose(np.asarray(Image.open(path)) / 255.0, image, atol=0.51 / 255)


def test_device_view_and_marker_do_not_depend_on_the_finding() -> None:
    """Patient i of one class and patient i of another draw from unrelated streams; shares agree between classes."""
    made = [make_phantoms([name], patients_per_finding=150, size=(32, 32), seed=0) for name in ("mass", "cavity")]
    for part in (
        [np.mean([view == "AP" for view in each.views]) for each in made],
        [np.mean([device_of(p).photometric == "MONOCHROME1" for p in each.patients]) for each in made],
        [float(np.median(each.images.mean((1, 2)))) for each in made],
    ):
        assert abs(part[0] - part[1]) < 0.15


def grey(images: NDArray[np.float32], side: int) -> list[NDArray[np.float32]]:
    return [
        np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR), np.float32)
        for image in images
    ]


def nearest_mean(vectors: NDArray[np.float32], labels: list[str], *, episodes: int = 60) -> float:
    """5-shot accuracy of the nearest class mean by cosine; one image per patient, so shots and queries are disjoint."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    names, rng, right = sorted(set(labels)), np.random.default_rng(0), []
    rows = [np.flatnonzero(np.asarray(labels) == name) for name in names]
    for _ in range(episodes):
        order = [rng.permutation(own) for own in rows]
        means = np.stack([unit[own[:5]].mean(0) for own in order])
        means /= np.linalg.norm(means, axis=1, keepdims=True)
        for i, own in enumerate(order):
            right.append(float(((unit[own[5:]] @ means.T).argmax(1) == i).mean()))
    return float(np.mean(right))


def test_pixels_and_gradients_do_not_solve_the_unseen_findings() -> None:
    made = make_phantoms(UNSEEN_FINDINGS, patients_per_finding=40, seed=0)
    labels = [str(label) for label in made.labels]
    pixels = np.stack([image.ravel() for image in grey(made.images, 32)])
    gradients = np.stack(
        [hog(image, orientations=9, pixels_per_cell=(8, 8), cells_per_block=(2, 2)) for image in grey(made.images, 64)]
    )
    assert nearest_mean(pixels, labels) < 0.5
    assert nearest_mean(gradients.astype(np.float32), labels) < 0.6
    assert nearest_mean(np.eye(5, dtype=np.float32)[np.repeat(np.arange(5), 40)], labels) == 1.0


def test_unknown_names_and_impossible_counts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no finding 'efusion'\. Did you mean 'effusion'\?"):
        make_phantoms(["efusion"], patients_per_finding=1)
    with pytest.raises(ValueError, match=r"no finding 'Pleural_Thickening'\. Did you mean 'pleural thickening'\?"):
        make_phantoms(["Pleural_Thickening"], patients_per_finding=1)
    with pytest.raises(ValueError, match=r"no finding 'xyz'\. Known are no finding, effusion"):
        draw_phantom([PhantomFinding("xyz", "left", "upper", 0.5)])
    with pytest.raises(ValueError, match="findings is empty"):
        make_phantoms([], patients_per_finding=1)
    with pytest.raises(ValueError, match="names 'mass' more than once"):
        make_phantoms(["mass", "mass"], patients_per_finding=1)
    with pytest.raises(ValueError, match="patients_per_finding must be at least 1, got 0"):
        make_phantoms(["mass"], patients_per_finding=0)
    with pytest.raises(ValueError, match="images_per_patient must be at least 1, got -1"):
        make_phantoms(["mass"], patients_per_finding=1, images_per_patient=-1)
    with pytest.raises(ValueError, match="at least 32 pixels each way, got 16 x 160"):
        make_phantoms(["mass"], patients_per_finding=1, size=(16, 160))
    with pytest.raises(ValueError, match=r"between 0 and 1, got 1\.5"):
        make_phantoms(["mass"], patients_per_finding=1, combined=1.5)
    made = make_phantoms(["mass"], patients_per_finding=1, size=(32, 32))
    with pytest.raises(ValueError, match=r"must be one of dicom, png, got 'dicm'\. Did you mean 'dicom'\?"):
        write_phantoms(made, tmp_path, format="dicm")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("side", "up", "side must be one of left, right, both, got 'up'"),
        ("place", "base", "place must be one of upper, middle, lower, got 'base'"),
        ("severity", 1.2, "severity lies between 0 and 1, got 1.2"),
    ],
)
def test_a_finding_where_it_cannot_be_is_refused(field: str, value: object, message: str) -> None:
    given = {"side": "left", "place": "upper", "severity": 0.5, field: value}
    with pytest.raises(ValueError, match=message):
        draw_phantom([PhantomFinding("infiltration", **given)])  # type: ignore[arg-type]
