"""A heat map as a DICOM Secondary Capture image (PS3.3 A.8.1) beside the image it is about, by highdicom."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embeddings import ImageError, image_identity

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

    from fewshot.heatmaps import Explanation, HeatMap

#: Number of the new series, far from those a scanner gives.
SERIES_NUMBER = 9901
#: "Source image for image processing operation", the purpose of the reference (PS3.16, context group 7202).
SOURCE_PURPOSE = ("121322", "DCM", "Source image for image processing operation")
#: A text of value representation LO has at most 64 characters, ST at most 1,024 (PS3.5 6.2).
LONGEST_LO, LONGEST_ST = 64, 1024


def write_heatmaps(
    explanation: Explanation, source: str | os.PathLike[str] | None, folder: str | os.PathLike[str], *, name: str
) -> list[Path]:
    """Write the maps of an answer as `<name>-<kind>.png` and, where the query is a DICOM file, `.dcm` as well.

    Args:
        explanation: The maps.
        source: The query's file, or None where there is none.
        folder: Made where it is missing.
        name: The beginning of the files' names.

    Returns:
        The files, in the order they were written.

    Raises:
        ImportError: The query is a DICOM file and highdicom is missing; the message names the install command, and the
            PNG files are written all the same.
        OSError: A file cannot be written.
    """
    from fewshot.heatmap_pictures import annotated, write_png

    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    written = [
        write_png(target / f"{name}-{heatmap.kind}.png", annotated(explanation.image, heatmap))
        for heatmap in explanation.maps
    ]
    if source is not None and image_identity(source).sop_instance_uid is not None:
        written += write_secondary_captures(explanation, source, [path.with_suffix(".dcm") for path in written])
    return written


def write_secondary_captures(explanation: Explanation, source: str | os.PathLike[str], paths: list[Path]) -> list[Path]:
    """Write each map as a Secondary Capture in one new series of the source's study.

    Patient and study are the source's; series and instances have UIDs of their own, and each refers to the source
    image. What is shown, and that it is for research, stands below the picture (Burned In Annotation is YES) and in
    Derivation Description and Image Comments.

    Args:
        explanation: The maps.
        source: The DICOM file of the query. Another kind of file is refused: a Secondary Capture without a patient
            could be filed with the wrong one.
        paths: One file per map.

    Returns:
        `paths`.

    Raises:
        ImageError: The source is no DICOM file, or has no study or instance to refer to.
        ImportError: highdicom is missing.
        OSError: A file cannot be written.
    """
    new_uid = _highdicom().UID
    series = new_uid()
    with warnings.catch_warnings():  # of values that break the standard; they are the source's, and copied as they are
        warnings.simplefilter("ignore")
        header = _header(source)
        for number, (heatmap, path) in enumerate(zip(explanation.maps, paths, strict=True), start=1):
            capture = secondary_capture(explanation, heatmap, header, series=series, number=number)
            capture.save_as(path, enforce_file_format=True)
    return paths


def secondary_capture(
    explanation: Explanation, heatmap: HeatMap, header: Dataset, *, series: str, number: int
) -> Dataset:
    """One map as a Secondary Capture data set.

    Args:
        explanation: Whose map it is.
        heatmap: One of its maps.
        header: The source's header.
        series: UID of the new series.
        number: Instance number.

    Returns:
        The data set, with its file meta information.
    """
    import numpy as np
    from pydicom.dataset import Dataset
    from pydicom.uid import ExplicitVRLittleEndian

    from fewshot.heatmap_pictures import WARNING, annotated

    highdicom = _highdicom()
    orientation = _orientation(header)
    described = _described(heatmap)
    capture: Dataset = highdicom.sc.SCImage(
        pixel_array=np.ascontiguousarray(annotated(explanation.image, heatmap)),
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=orientation or ("L", "P"),
        study_instance_uid=header.StudyInstanceUID,
        series_instance_uid=series,
        series_number=SERIES_NUMBER,
        sop_instance_uid=highdicom.UID(),
        instance_number=number,
        manufacturer="radshot",
        series_description=f"radshot heat maps: {WARNING}"[:LONGEST_LO],
        transfer_syntax_uid=ExplicitVRLittleEndian,
        specific_character_set="ISO_IR 192",
    )
    if orientation is None:
        capture.PatientOrientation = None  # type 2C: empty where it is unknown
    for keyword in (
        "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "IssuerOfPatientID", "StudyID", "StudyDate",
        "StudyTime", "StudyDescription", "AccessionNumber", "ReferringPhysicianName", "Laterality", "PatientAge",
    ):  # fmt: skip
        if keyword in header:
            setattr(capture, keyword, header.get(keyword))
    capture.ImageType = ["DERIVED", "SECONDARY", "OTHER"]
    capture.BurnedInAnnotation = "YES"
    capture.DerivationDescription = f"{WARNING}. {described}"[:LONGEST_ST]
    capture.ImageComments = WARNING
    if header.get("LossyImageCompression") == "01":  # once lossy, always lossy (PS3.3 C.7.6.1.1.5)
        capture.LossyImageCompression = "01"
        for keyword in ("LossyImageCompressionRatio", "LossyImageCompressionMethod"):
            if keyword in header:
                setattr(capture, keyword, header.get(keyword))
    purpose = Dataset()
    purpose.CodeValue, purpose.CodingSchemeDesignator, purpose.CodeMeaning = SOURCE_PURPOSE
    reference = Dataset()
    reference.ReferencedSOPClassUID = header.SOPClassUID
    reference.ReferencedSOPInstanceUID = header.SOPInstanceUID
    reference.PurposeOfReferenceCodeSequence = [purpose]
    frames = int(header.get("NumberOfFrames") or 1)
    if frames > 1:  # read_image takes the middle one; frames are numbered from 1
        reference.ReferencedFrameNumber = frames // 2 + 1
    capture.SourceImageSequence = [reference]
    return capture


def _described(heatmap: HeatMap) -> str:
    kind = "Grad-CAM" if heatmap.kind == "grad-cam" else "Occlusion sensitivity"
    asked = f"{heatmap.label}" if heatmap.against is None else f"{heatmap.label} rather than {heatmap.against}"
    measure = "score" if heatmap.against is None else "margin"
    return f"{kind} of a few-shot answer: {asked} ({measure} {heatmap.score:.3f}); {heatmap.verdict}."


def _header(source: str | os.PathLike[str]) -> Dataset:
    """The header of a DICOM file that a derived image can refer to."""
    from pydicom import dcmread
    from pydicom.errors import InvalidDicomError

    name = os.fspath(source)
    if image_identity(source).sop_instance_uid is None:  # raises ImageError for a damaged file
        raise ImageError(str(name), "is no DICOM image, so a Secondary Capture would have no patient: write a PNG")
    try:
        header = dcmread(name, stop_before_pixels=True, force=True)
    except (InvalidDicomError, OSError) as error:
        raise ImageError(str(name), f"its DICOM header cannot be read ({type(error).__name__})") from error
    missing = [key for key in ("StudyInstanceUID", "SOPClassUID", "SOPInstanceUID") if not header.get(key)]
    if missing:
        raise ImageError(str(name), f"has no {missing[0]}, to which a Secondary Capture must refer")
    return header


def _orientation(header: Dataset) -> tuple[str, str] | None:
    """The directions of the image's rows and columns: as written, else from Image Orientation (Patient), else None."""
    written = header.get("PatientOrientation")
    if written and len(written) == 2 and all(written):
        return str(written[0]), str(written[1])
    cosines = header.get("ImageOrientationPatient")
    if not cosines or len(cosines) != 6:
        return None
    letters = (("L", "R"), ("P", "A"), ("H", "F"))  # towards growing, falling x, y, z (PS3.3 C.7.6.1.1.1)

    def direction(vector: list[float]) -> str:
        axes = sorted((axis for axis in range(3) if abs(vector[axis]) > 0.2), key=lambda axis: -abs(vector[axis]))
        return "".join(letters[axis][vector[axis] < 0] for axis in axes)

    values = [float(value) for value in cosines]
    return direction(values[:3]), direction(values[3:])


def _highdicom() -> Any:
    try:
        import highdicom
    except ImportError as error:
        raise ImportError("A DICOM Secondary Capture needs highdicom: pip install 'radshot[dicom]'") from error
    return highdicom
