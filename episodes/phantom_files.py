"""Phantoms as files: DICOM as simulated detectors would send it (PS3.3 A.2 CR, A.26 DX), or PNG, with a manifest."""

from __future__ import annotations

import csv
import difflib
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import (
    UID,
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    generate_uid,
)

from .phantom_anatomy import Array
from .phantom_set import PhantomSet

FORMATS = ("dicom", "png")
"""What `write_phantoms` can write."""

COLUMNS = (
    "image",
    "label",
    "patient",
    "study",
    "side",
    "place",
    "severity",
    "view",
    "report",
    "photometric",
    "device",
    "id",
)
"""Columns of the manifest."""


@dataclass(frozen=True, slots=True)
class Device:
    """How one simulated detector stores grey levels 0 and 1, 12 bits in 16.

    Attributes:
        name: Manufacturer's model name.
        sop_class: Storage SOP class.
        photometric: MONOCHROME1 stores bright as small.
        low: Stored value of the darker end of its scale.
        high: Stored value of the other end.
        slope: Rescale Slope.
        intercept: Rescale Intercept.
        function: VOI LUT Function (PS3.3 C.11.2.1.2 and .3).
    """

    name: str
    sop_class: str
    photometric: str
    low: int
    high: int
    slope: float
    intercept: float
    function: str


DEVICES = (
    Device("Phantom CR 1", ComputedRadiographyImageStorage, "MONOCHROME1", 0, 4095, 1.0, 0.0, "LINEAR"),
    Device("Phantom CR 2", ComputedRadiographyImageStorage, "MONOCHROME2", 210, 2890, 0.5, -120.0, "LINEAR"),
    Device("Phantom DX 1", DigitalXRayImageStorageForPresentation, "MONOCHROME2", 64, 4031, 1.0, 0.0, "LINEAR_EXACT"),
    Device("Phantom DX 2", DigitalXRayImageStorageForPresentation, "MONOCHROME1", 1100, 3700, 1.0, -1024.0, "LINEAR"),
)
"""Detectors of the simulated hospital; each patient meets one, whatever the finding."""


def write_phantoms(phantoms: PhantomSet, folder: str | os.PathLike[str], *, format: str = "dicom") -> Path:
    """Write every image and a manifest that names them.

    DICOM files are uncompressed CR or DX with 12 of 16 bits used, MONOCHROME1 or MONOCHROME2 by device, and a window
    that shows exactly the set's grey levels. UIDs follow from seed and id, so the same set gives the same bytes.

    Args:
        phantoms: What `make_phantoms` returned.
        folder: Where to write; made if need be.
        format: "dicom" (`<id>.dcm`) or "png" (8 bits, `<id>.png`).

    Returns:
        Path of `manifest.csv` in the folder, whose `label`, `side`, `place` and `severity` are joined by `|`.

    Raises:
        ValueError: For another format.
    """
    if format not in FORMATS:
        close = difflib.get_close_matches(str(format).lower(), FORMATS, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"format must be one of {', '.join(FORMATS)}, got {format!r}.{hint}")
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, str]] = []
    sides, places, severities = phantoms.sides, phantoms.places, phantoms.severities
    for i, image_id in enumerate(phantoms.ids):
        patient = phantoms.patients[i]
        device = device_of(patient)
        study = generate_uid(entropy_srcs=["radshot study", str(phantoms.seed), image_id])
        if format == "dicom":
            name = f"{image_id}.dcm"
            _dicom(phantoms, i, device, study).save_as(target / name, enforce_file_format=True)
        else:
            name = f"{image_id}.png"
            Image.fromarray(np.rint(phantoms.images[i] * 255.0).astype(np.uint8)).save(target / name)
        rows.append(
            {
                "image": name,
                "label": "|".join(phantoms.names(i)),
                "patient": patient,
                "study": study,
                "side": sides[i],
                "place": places[i],
                "severity": severities[i],
                "view": phantoms.views[i],
                "report": phantoms.reports[i],
                "photometric": device.photometric if format == "dicom" else "MONOCHROME2",
                "device": device.name,
                "id": image_id,
            }
        )
    manifest = target / "manifest.csv"
    with manifest.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return manifest


def device_of(patient: str) -> Device:
    """Return the detector a patient's images come from."""
    return DEVICES[hashlib.sha256(patient.encode()).digest()[0] % len(DEVICES)]


def stored_values(image: Array, device: Device) -> NDArray[np.uint16]:
    """Return the 12-bit values (h, w) in which a device stores grey levels [0, 1]."""
    level = np.float32(1.0) - image if device.photometric == "MONOCHROME1" else image
    return np.rint(level * np.float32(device.high - device.low) + np.float32(device.low)).astype(np.uint16)


def window_of(device: Device) -> tuple[float, float]:
    """Return (centre, width) in modality units that map a device's stored range to 0 and 1 (PS3.3 C.11.2.1.2.1)."""
    low = device.low * device.slope + device.intercept
    high = device.high * device.slope + device.intercept
    if device.function == "LINEAR_EXACT":
        return (low + high) / 2.0, high - low
    return (low + high + 1.0) / 2.0, high - low + 1.0


def _dicom(phantoms: PhantomSet, i: int, device: Device, study: str) -> FileDataset:
    """Return one image as a DICOM dataset."""
    image_id, patient, seed = phantoms.ids[i], phantoms.patients[i], str(phantoms.seed)
    uid = generate_uid(entropy_srcs=["radshot image", seed, image_id])
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID(device.sop_class)
    meta.MediaStorageSOPInstanceUID = uid
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = generate_uid(entropy_srcs=["radshot phantoms"])
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.ImageType = ["DERIVED", "PRIMARY"]
    dataset.SOPClassUID = device.sop_class
    dataset.SOPInstanceUID = uid
    dataset.StudyDate = dataset.ContentDate = "20000101"
    dataset.StudyTime = dataset.ContentTime = "120000"
    dataset.AccessionNumber = ""
    is_dx = device.sop_class == DigitalXRayImageStorageForPresentation
    dataset.Modality = "DX" if is_dx else "CR"
    dataset.Manufacturer = "radshot"
    dataset.ManufacturerModelName = device.name
    dataset.StudyDescription = "Synthetic chest radiograph, no patient"
    dataset.ReferringPhysicianName = ""
    dataset.PatientName = f"Phantom^{patient}"
    dataset.PatientID = patient
    dataset.PatientBirthDate = ""
    dataset.PatientSex = ""
    dataset.BodyPartExamined = "CHEST"
    dataset.ViewPosition = phantoms.views[i]
    dataset.StudyInstanceUID = study
    dataset.SeriesInstanceUID = generate_uid(entropy_srcs=["radshot series", seed, image_id])
    dataset.StudyID = dataset.SeriesNumber = dataset.InstanceNumber = "1"
    dataset.PatientOrientation = ["L", "F"]
    dataset.BurnedInAnnotation = "NO"
    dataset.LossyImageCompression = "00"
    if is_dx:
        _add_dx(dataset, device)
    _add_pixels(dataset, phantoms.images[i], device)
    return dataset


def _add_dx(dataset: Dataset, device: Device) -> None:
    """Add what the DX modules ask for beyond CR (PS3.3 C.8.11)."""
    dataset.PresentationIntentType = "FOR PRESENTATION"
    dataset.ImageLaterality = "U"
    dataset.PixelIntensityRelationship = "LOG"
    dataset.PixelIntensityRelationshipSign = -1 if device.photometric == "MONOCHROME2" else 1
    dataset.PresentationLUTShape = "IDENTITY" if device.photometric == "MONOCHROME2" else "INVERSE"
    dataset.DetectorType = "SCINTILLATOR"
    dataset.ImagerPixelSpacing = [2.4, 2.4]
    region = Dataset()
    region.CodeValue, region.CodingSchemeDesignator, region.CodeMeaning = "51185008", "SCT", "Chest"
    dataset.AnatomicRegionSequence = [region]


def _add_pixels(dataset: Dataset, image: Array, device: Device) -> None:
    """Add stored values, rescale and window."""
    stored = stored_values(image, device)
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = device.photometric
    dataset.Rows, dataset.Columns = stored.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PixelRepresentation = 0
    centre, width = window_of(device)
    dataset.WindowCenter, dataset.WindowWidth = f"{centre:g}", f"{width:g}"
    dataset.VOILUTFunction = device.function
    dataset.RescaleSlope, dataset.RescaleIntercept = f"{device.slope:g}", f"{device.intercept:g}"
    dataset.RescaleType = "US"
    dataset.PixelData = stored.astype("<u2").tobytes()
