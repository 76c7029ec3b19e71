"""Indiana University's chest X-rays with reports, as Open-i publishes them (Demner-Fushman et al., JAMIA 23, 2016)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree

import pandas as pd

from .chestxray14 import NO_FINDING, Missing, existing_folder, rows_found
from .errors import ManifestError, UnknownColumn, did_you_mean, listed
from .manifest import SEPARATOR, Manifest

SECTIONS = ("indication", "comparison", "findings", "impression")
"""Sections of a report, in reading order; each is a column."""

UNINDEXED = frozenset({"no indexing", "technical quality of image unsatisfactory"})
"""Headings that say nothing of the chest; an image with no other is unlabelled, which is not the same as healthy."""

TABLES = ("indiana_reports.csv", "indiana_projections.csv")
"""The two tables of the collection's copy on Kaggle."""

SUFFIXES = {"png": ".png", "dicom": ".dcm"}

_IMAGE = re.compile(r"(?:CXR)?(\d+)_(?:\d+_)?(IM-.+)")
"""`CXR1_1_IM-0001-3001` in a report and among PNG files, `1_IM-0001-3001` among DICOM files."""


@dataclass(frozen=True, slots=True)
class _Report:
    number: str
    place: str
    major: tuple[str, ...]
    automatic: tuple[str, ...]
    sections: dict[str, str]
    images: tuple[str, ...]


def read_openi(
    folder: str | os.PathLike[str], *, missing: Missing = "error", prefer: Literal["png", "dicom"] = "png"
) -> Manifest:
    """Read the Indiana University collection from the folder its archives were unpacked into.

    Reports are the XML files with root `eCitation` (published as `ecgen-radiology/1.xml` and so on), images PNG files
    (`NLMCXR_png/CXR1_1_IM-0001-3001.png`) or DICOM files (`NLMCXR_dcm/1/1_IM-0001-3001.dcm`); both are found wherever
    they lie in the folder. Without XML files, `indiana_reports.csv` and `indiana_projections.csv` serve instead;
    beside them, the latter still gives the projections. Reports without images give no rows.

    Args:
        folder: The folder.
        missing: What to do about images that reports name and the folder lacks: refuse ("error") or leave them out
            ("skip").
        prefer: Which file to take where an image is there both ways.

    Returns:
        A manifest with one row per image, all text, empty where nothing is known: `image` (path in the folder),
        `patient` (the report's number, since the files name no other), `label` (major MeSH headings up to their first
        `/`, joined by `|`; "normal" alone is "No Finding"; empty, so unlabelled, where the report was
        not indexed), `indication`, `comparison`, `findings`, `impression`, `report` (the sections under their
        headings), `projection` (Frontal or Lateral; the XML files do not say), `mesh` and `automatic` (headings as
        published, joined by `|`).

    Raises:
        ManifestError: No such folder, no reports, a damaged one or one that declares a document type, a report
            that is there twice, or missing images.
    """
    root = existing_folder(folder)
    if prefer not in SUFFIXES:
        raise ManifestError(f"prefer must be 'png' or 'dicom'; got {prefer!r}.")
    files = sorted(_files(root))
    tables = {base: name for name in reversed(files) if (base := Path(name).name.lower()) in TABLES}
    reports = [report for name in files if name.lower().endswith(".xml") if (report := _read_xml(root, name))]
    projections = _read_projections(root, tables[TABLES[1]]) if TABLES[1] in tables else []
    if not reports:
        for name in TABLES:
            if tables and name not in tables:
                raise ManifestError(f"{root} holds {next(iter(tables))} without {name}; put both there.")
        if not tables:
            raise ManifestError(
                f"{root} holds no report: neither XML files with root 'eCitation' (ecgen-radiology) nor {TABLES[0]} "
                f"and {TABLES[1]}."
            )
        reports = _read_tables(root, tables[TABLES[0]], projections)
    _refuse_repeats(reports)
    reports.sort(key=lambda report: (not report.number.isdecimal(), report.number.zfill(12)))
    view = {_key(name): projection for _, name, projection in projections}
    rows = [(image, report) for report in reports for image in report.images]
    if not rows:
        raise ManifestError(f"None of the {len(reports):,} reports in {root} names an image.")
    names = [image for image, _ in rows]
    paths = _image_paths(names, files, prefer)
    kept = rows_found(names, paths, missing=missing, table="the reports", folder=root)
    table = pd.DataFrame(
        [_row(paths[rows[i][0]], rows[i][1], view.get(_key(rows[i][0]), "")) for i in kept], dtype=object
    )
    return Manifest(table, root, label="label", group="patient", allow_unlabelled=True, source=root.name)


def _row(path: str, report: _Report, projection: str) -> dict[str, str]:
    heads = dict.fromkeys(head for term in report.major if (head := term.split("/")[0].strip()))
    findings = [head for head in heads if head.lower() not in (*UNINDEXED, "normal")]
    if not findings and any(head.lower() == "normal" for head in heads):
        findings = [NO_FINDING]
    return {
        "image": path,
        "patient": report.number,
        "label": SEPARATOR.join(findings),
        **report.sections,
        "report": "\n".join(f"{name.upper()}: {report.sections[name]}" for name in SECTIONS if report.sections[name]),
        "projection": projection,
        "mesh": SEPARATOR.join(report.major),
        "automatic": SEPARATOR.join(report.automatic),
    }


def _files(root: Path) -> Iterator[str]:
    """Yield every file below a folder as a path in it, linked folders included, each once, hidden files left out."""
    visited: set[str] = set()
    for here, folders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(here)
        if real in visited:
            folders.clear()
            continue
        visited.add(real)
        folders.sort()
        inside = Path(here).relative_to(root).as_posix()
        shown = (name for name in names if not name.startswith("."))
        yield from shown if inside == "." else (f"{inside}/{name}" for name in shown)


def _key(name: str) -> str:
    """Return what the names of one image have in common: `1_IM-0001-3001`."""
    stem = _stem(name)
    match = _IMAGE.fullmatch(stem)
    return f"{match[1]}_{match[2]}" if match else stem


def _stem(name: str) -> str:
    """Return a file's name without folders and without `.png`, `.dcm` or `.dcm.png`."""
    stem = name.rsplit("/", 1)[-1]
    for suffix in SUFFIXES.values():
        if stem.lower().endswith(suffix):
            stem = stem[: -len(suffix)]
    return stem


def _image_paths(wanted: Sequence[str], files: Sequence[str], prefer: str) -> dict[str, str]:
    """Return image -> path, found by its very name, else by what its names have in common."""
    names_of = []
    for suffix in sorted(SUFFIXES.values(), key=lambda suffix: suffix != SUFFIXES[prefer]):
        pictures = [name for name in reversed(files) if name.lower().endswith(suffix)]
        names_of.append({_key(name): name for name in pictures} | {_stem(name): name for name in pictures})
    found: dict[str, str] = {}
    for image in wanted:
        for paths in names_of:
            path = paths.get(_stem(image)) or paths.get(_key(image))
            if path is not None:
                found.setdefault(image, path)
    return found


class _NoDocumentType(ElementTree.TreeBuilder):
    """Builds a tree, and stops at a document type declaration: without one no entity can be declared."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        """Refuse, in whatever encoding the declaration came."""
        raise ManifestError("")


def _read_xml(root: Path, name: str) -> _Report | None:
    """Read one report, or return None for an XML file that is something else."""
    parser = ElementTree.XMLParser(target=_NoDocumentType())
    try:
        parser.feed((root / name).read_bytes())
        tree = parser.close()
    except ManifestError:
        raise ManifestError(
            f"{name} in {root} declares a document type, where entities may hide; reports have none, so it is refused."
        ) from None
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise ManifestError(f"{name} in {root} is not readable XML: {error}.") from None
    if tree.tag != "eCitation":
        return None
    named = tree.find("uId")
    number = ("" if named is None else named.get("id", "").strip()) or Path(name).stem
    sections: dict[str, list[str]] = {section: [] for section in SECTIONS}
    for part in tree.iter("AbstractText"):
        section = part.get("Label", "").strip().lower()
        if section in sections:
            sections[section].append(_text(part))
    return _Report(
        number=number.removeprefix("CXR"),
        place=name,
        major=_terms(tree, "major"),
        automatic=_terms(tree, "automatic"),
        sections={section: " ".join(filter(None, parts)) for section, parts in sections.items()},
        images=tuple(dict.fromkeys(name for part in tree.iter("parentImage") if (name := part.get("id", "").strip()))),
    )


def _text(part: ElementTree.Element) -> str:
    """Return all text of an element, white space brought to single blanks."""
    return " ".join("".join(part.itertext()).split())


def _terms(tree: ElementTree.Element, kind: str) -> tuple[str, ...]:
    return tuple(term for part in tree.iterfind(f".//MeSH/{kind}") if (term := _text(part)))


def _read_projections(root: Path, name: str) -> list[tuple[str, str, str]]:
    """Return (report, image, projection) for each row of the table of projections."""
    table = Manifest.read(root / name, label=None, group="uid", image="filename").table
    _need(table, ("projection",), name)
    return [
        (uid.strip(), Path(image.strip()).name, projection.strip())
        for uid, image, projection in table[["uid", "filename", "projection"]].itertuples(index=False, name=None)
    ]


def _read_tables(root: Path, name: str, projections: Sequence[tuple[str, str, str]]) -> list[_Report]:
    """Return the reports of the collection's copy in tables."""
    table = Manifest.read(root / name, label=None, image="uid").table
    _need(table, ("MeSH", *SECTIONS), name)
    images: dict[str, list[str]] = {uid.strip(): [] for uid in table["uid"]}
    for uid, image, _ in projections:
        if uid not in images:
            raise ManifestError(f"{TABLES[1]} gives the image {image!r} to report {uid}, which {TABLES[0]} lacks.")
        images[uid].append(image)
    return [
        _Report(
            number=uid.strip(),
            place=name,
            major=tuple(term.strip() for term in mesh.split(";") if term.strip()),
            automatic=(),
            sections={section: " ".join(text.split()) for section, text in zip(SECTIONS, texts, strict=True)},
            images=tuple(dict.fromkeys(images[uid.strip()])),
        )
        for uid, mesh, *texts in table[["uid", "MeSH", *SECTIONS]].itertuples(index=False, name=None)
    ]


def _need(table: pd.DataFrame, columns: Sequence[str], name: str) -> None:
    known = [str(column) for column in table.columns]
    for column in columns:
        if column not in known:
            raise UnknownColumn(f"{name} has no column {column!r}; it has {listed(known)}{did_you_mean(column, known)}")


def _refuse_repeats(reports: Sequence[_Report]) -> None:
    first: dict[str, str] = {}
    for report in reports:
        if report.number in first:
            places = " and ".join(dict.fromkeys((first[report.number], report.place)))
            raise ManifestError(f"Report {report.number} is there twice, in {places}; keep one copy.")
        first[report.number] = report.place
