"""Synthetic frontal chest radiographs, drawn from anatomy, with findings, reports and the truth about them.

They exist so that everything in this library can be tried, taught and tested without a patient's image. What is drawn
is schematic: a good figure on phantoms says that a method works as built, and nothing about its use on people.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from . import phantom_opacities as opacities
from . import phantom_shapes as shapes
from .phantom_anatomy import Anatomy, Array, Chest, Pose
from .phantom_body import attenuation, lay_out
from .phantom_files import write_phantoms
from .phantom_film import expose
from .phantom_reports import write_report
from .phantom_set import PhantomSet
from .phantom_specs import (
    FINDINGS,
    NO_FINDING,
    SOURCE_FINDINGS,
    UNSEEN_FINDINGS,
    PhantomFinding,
    check_finding,
    draw_finding,
    known,
)

DEFAULT_SIZE = (160, 144)
"""Rows and columns of a phantom's image."""

_SMALLEST = 32

_Reshaper = Callable[[Anatomy, PhantomFinding], Anatomy]
_Painter = Callable[[Chest, PhantomFinding, np.random.Generator], None]

_RESHAPERS: dict[str, _Reshaper] = {
    "cardiomegaly": shapes.enlarge_heart,
    "emphysema": shapes.overinflate,
    "scoliosis": shapes.bend_spine,
    "fibrosis": shapes.shrink_lungs,
    "atelectasis": shapes.shrink_lungs,
}

_PAINTERS: dict[str, _Painter] = {
    "effusion": opacities.effusion,
    "pneumothorax": shapes.pneumothorax,
    "consolidation": opacities.consolidation,
    "infiltration": opacities.infiltration,
    "atelectasis": opacities.plate_atelectasis,
    "nodule": opacities.nodule,
    "mass": opacities.mass,
    "cavity": opacities.cavity,
    "edema": opacities.edema,
    "emphysema": shapes.bullae,
    "fibrosis": opacities.fibrosis,
    "bronchiectasis": opacities.bronchiectasis,
    "pleural thickening": shapes.pleural_thickening,
    "hiatal hernia": shapes.hiatal_hernia,
    "miliary nodules": opacities.miliary,
    "rib fractures": shapes.rib_fractures,
    "free air": shapes.free_air,
    "chest tube": shapes.chest_tube,
    "cardiac device": shapes.cardiac_device,
    "calcified granulomas": opacities.granulomas,
    "hilar adenopathy": opacities.adenopathy,
}
"""Every finding has a reshaper, a painter, or both."""


def make_phantoms(
    findings: Iterable[str],
    *,
    patients_per_finding: int,
    images_per_patient: int = 1,
    size: tuple[int, int] = DEFAULT_SIZE,
    seed: int = 0,
    combined: float = 0.0,
) -> PhantomSet:
    """Draw phantoms of the named findings, and of no others.

    Anatomy, pose, exposure, device and words are drawn without regard to the finding. Images of one patient share
    anatomy and findings; position, exposure, noise and, a little, severity differ.

    Args:
        findings: Names from `FINDINGS`, and `NO_FINDING` for healthy chests.
        patients_per_finding: Patients drawn for each name.
        images_per_patient: Images of each patient.
        size: Rows and columns; findings are drawn to be visible from about 64 pixels on.
        seed: The same seed draws the same images; a patient does not depend on which other findings were asked for.
        combined: Share of the patients with a second finding from `findings`.

    Returns:
        The images with their truth, ordered by finding, patient, image.

    Raises:
        ValueError: For an unknown finding, a count below 1, a size below 32 pixels, or a share outside [0, 1].
    """
    names = known(findings)
    for what, count in (("patients_per_finding", patients_per_finding), ("images_per_patient", images_per_patient)):
        if count < 1:
            raise ValueError(f"{what} must be at least 1, got {count}.")
    _check_size(size)
    if not 0.0 <= combined <= 1.0:
        raise ValueError(f"combined is a share of the patients between 0 and 1, got {combined}.")
    images = np.empty((len(names) * patients_per_finding * images_per_patient, *size), dtype=np.float32)
    truth: list[tuple[PhantomFinding, ...]] = []
    patients: list[str] = []
    ids: list[str] = []
    views: list[str] = []
    reports: list[str] = []
    for name in names:
        for number in range(patients_per_finding):
            key = patient_key(seed, name, number)
            shown = _draw_findings(name, names, combined, _stream(key, "findings"))
            for k in range(images_per_patient):
                here = _vary(shown, _stream(key, "severity", k))
                image, view = _draw(here, key, k, size)
                images[len(ids)] = image
                truth.append(here)
                patients.append(f"PH-{key:016x}")
                ids.append(f"PH-{key:016x}-{k}")
                views.append(view)
                reports.append(write_report(here, view, _stream(key, "report", k)))
    return PhantomSet(images, tuple(truth), tuple(patients), tuple(ids), tuple(views), tuple(reports), seed)


def draw_phantom(
    findings: Sequence[PhantomFinding], *, patient: int = 0, image: int = 0, size: tuple[int, int] = DEFAULT_SIZE
) -> Array:
    """Draw one image of one patient with just these findings.

    Args:
        findings: What to draw; empty for the same patient, healthy, in the same position and exposure.
        patient: Decides anatomy and the lesions' details.
        image: Decides position, exposure and noise.
        size: Rows and columns.

    Returns:
        Grey levels in [0, 1], float32 (rows, columns).

    Raises:
        ValueError: For a finding that cannot be drawn as described, or a size below 32 pixels.
    """
    for finding in findings:
        check_finding(finding)
    _check_size(size)
    return _draw(tuple(findings), patient, image, size)[0]


def patient_key(seed: int, name: str, number: int) -> int:
    """Return the 64-bit number from which all of a patient's random streams start."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}/{number}".encode()).digest()[:8], "big")


def _stream(key: int, purpose: str, number: int = 0) -> np.random.Generator:
    """Return the random stream of a patient for one purpose, independent of all the others."""
    digest = hashlib.sha256(f"{key}/{purpose}/{number}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "big")))


def _draw(findings: tuple[PhantomFinding, ...], key: int, k: int, size: tuple[int, int]) -> tuple[Array, str]:
    anatomy = Anatomy.draw(_stream(key, "anatomy"))
    for finding in findings:
        if finding.name in _RESHAPERS:
            anatomy = _RESHAPERS[finding.name](anatomy, finding)
    chest = Chest(size, anatomy, Pose.draw(_stream(key, "pose", k)))
    lay_out(chest, _stream(key, "vessels"))
    for finding in findings:
        if finding.name in _PAINTERS:
            _PAINTERS[finding.name](chest, finding, _stream(key, finding.name))
    return expose(chest, attenuation(chest), _stream(key, "film", k)), chest.pose.view


def _draw_findings(
    name: str, names: tuple[str, ...], combined: float, rng: np.random.Generator
) -> tuple[PhantomFinding, ...]:
    """Draw a patient's findings: the named one and, in the share `combined`, another of the set."""
    if name == NO_FINDING:
        return ()
    first = draw_finding(name, rng)
    others = [other for other in names if other not in (name, NO_FINDING)]
    if not others or rng.random() >= combined:
        return (first,)
    return first, draw_finding(others[int(rng.integers(len(others)))], rng)


def _vary(findings: tuple[PhantomFinding, ...], rng: np.random.Generator) -> tuple[PhantomFinding, ...]:
    """Let the severity differ a little between images of one patient."""
    return tuple(
        PhantomFinding(f.name, f.side, f.place, float(np.clip(f.severity + rng.normal(0.0, 0.06), 0.0, 1.0)))
        for f in findings
    )


def _check_size(size: tuple[int, int]) -> None:
    if min(size) < _SMALLEST:
        raise ValueError(f"size must be at least {_SMALLEST} pixels each way, got {size[0]} x {size[1]}.")


__all__ = [
    "DEFAULT_SIZE",
    "FINDINGS",
    "NO_FINDING",
    "SOURCE_FINDINGS",
    "UNSEEN_FINDINGS",
    "PhantomFinding",
    "PhantomSet",
    "draw_phantom",
    "make_phantoms",
    "write_phantoms",
]
