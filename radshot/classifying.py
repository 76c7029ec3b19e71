"""`radshot classify`: ask a comparison set, or the deployment made of it, about images or whole studies."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .answers import answer, print_decisions
from .console import (
    JsonOption,
    Refused,
    Usage,
    command,
    exit_code,
    list_refused,
    note,
    one_line,
    write_json,
)
from .manifest_options import HEAD_HELP
from .sets import SetFolder

if TYPE_CHECKING:
    from embeddings import Encoder, Snapshot
    from episodes import Decision
    from fewshot import ComparisonSet, Deployment, Head

#: Characters of an image's name that its heat maps' names begin with.
NAME_LENGTH = 40


@command
def classify_command(
    folder: SetFolder,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE", help="Images to ask about.", show_default=False)],
    head: Annotated[
        str | None,
        typer.Option(metavar="NAME", help=f"Decide by all of the set with this head, not by a deployment. {HEAD_HELP}"),
    ] = None,
    deployment: Annotated[
        int | None, typer.Option(metavar="N", help="Ask this deployment, not the one that answers.")
    ] = None,
    study: Annotated[
        list[str] | None,
        typer.Option(metavar="ID", help="Study of each image in turn; repeat it. One answer per study."),
    ] = None,
    by_study: Annotated[
        bool, typer.Option("--by-study", help="One answer per study, by the DICOM files' StudyInstanceUID.")
    ] = False,
    why: Annotated[bool, typer.Option("--why", help="Say what would change each answer.")] = False,
    heatmap: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write where each image speaks for its answer: PNG, and DICOM for DICOM."),
    ] = None,
    encoder: Annotated[str | None, typer.Option(metavar="ENC", help="The set's encoder, if it has moved.")] = None,
    json_file: JsonOption = None,
) -> int:
    """Ask a comparison set about images.

    The answer is a label or "none of these", how clear it is, and the support
    images that spoke for it. A set that was deployed (radshot deploy) answers
    with a calibrated probability and the classes that cannot be ruled out;
    otherwise the score is a similarity and no probability.

    \b
    Examples
      radshot classify cases new.dcm
      radshot classify cases frontal.dcm lateral.dcm --by-study
      radshot classify cases *.png --head nearest --json answers.json
    """
    from fewshot import ComparisonSet

    from .inputs import check_heads, encode_readable, encoder_of

    if head is not None:
        check_heads([head])
        if deployment is not None:
            raise Usage("--head decides by the whole set and --deployment by a deployment: give one of the two.")
    if study is not None and by_study:
        raise Usage("--study names the studies and --by-study reads them from the files: give one of the two.")
    if study is not None and not all(name.strip() for name in study):
        raise Usage("--study names a study, and one of the names is empty.")
    if study is not None and len(study) != len(images):
        raise Usage(f"--study repeats once per image, in order: {len(images)} images, {len(study)} studies.")
    with ComparisonSet.open(folder) as cases:
        if not len(cases.snapshot) and cases.archive.get_note("words") is None:
            raise Refused(f"The comparison set '{folder}' is empty: register at least one image before asking.")
        chosen = encoder_of(cases.archive, encoder)
        asked = _whom(cases, chosen, head, deployment)
    for remark in asked.remarks:
        note(remark)
    vectors, kept, refused = encode_readable(chosen, images)
    studies = _studies(images, kept, study, by_study)
    decisions = asked.decide(vectors, studies) if kept else []
    members = _members(studies)
    names = list(members)
    seen = _seen(images, kept, asked.support)
    if decisions:
        print_decisions([_shown(images, kept, members[name], name) for name in names], decisions)
    list_refused(refused)
    _warn(images, seen, asked)
    places: dict[int, dict[str, Any]] = {}  # answers in the order of the arguments, a study at its first image
    for name, decision in zip(names, decisions, strict=True):
        own = [kept[i] for i in members[name]]
        entry = answer(
            [images[i] for i in own], decision, asked.support, registered=any(seen[i].registered for i in own)
        )
        if study is not None or by_study:
            entry["study"] = name
        if why and decision.label is not None:
            entry["why"] = _why(asked, vectors[members[name]], _shown(images, kept, members[name], name))
        places[own[0]] = entry
    reasons = dict(refused)
    for i in set(range(len(images))) - set(kept):
        places[i] = {"image": str(images[i]), "label": None, "error": reasons[str(images[i])]}
    write_json(json_file, [places[i] for i in sorted(places)])
    if heatmap is not None and kept:
        _write_heatmaps(heatmap, [images[i] for i in kept], chosen, asked)
    return exit_code(len(decisions), len(refused))


@dataclass(frozen=True, eq=False)
class Asked:
    """Who answers: a deployment, or a head fitted to the whole set.

    Attributes:
        head: The fitted head.
        support: The images it decides by.
        deployment: The deployment, or None.
        make: Makes a fresh head of the same kind.
        remarks: What the user should know first.
    """

    head: Head
    support: Snapshot
    deployment: Deployment | None
    make: Any
    remarks: tuple[str, ...]

    def decide(self, vectors: Any, studies: Sequence[Hashable]) -> list[Decision]:
        """One decision per study."""
        if self.deployment is not None:
            return self.deployment.decide_studies(vectors, studies)
        from fewshot import decide_studies

        return decide_studies(self.head, vectors, studies)


def _whom(cases: ComparisonSet, encoder: Encoder, head: str | None, number: int | None) -> Asked:
    """The deployment that answers, else the head asked for or chosen, fitted to the whole set."""
    from fewshot import AutoClassifier, has_deployment, heads_for, make_head, open_deployment
    from fewshot.registry import COMPARED_HEADS, DEFAULT_HEAD, WORDS_HEAD

    if number is not None or (head is None and has_deployment(cases)):
        try:
            found = open_deployment(cases, number, encoder=encoder)
        except (LookupError, ValueError) as error:
            raise Refused(f"{error} Without a deployment asks --head.") from None
        snapshot = cases.snapshot
        remarks = list(found.remarks)
        later = int((snapshot.since > found.set_version).sum())
        if later:
            remarks.append(f"{later:,} image(s) registered since deployment {found.number} take no part: deploy anew.")
        support = snapshot.take([snapshot.positions[name] for name in found.support_ids])
        return Asked(found.head, support, found, found.make, tuple(remarks))
    snapshot = cases.snapshot
    try:
        words = cases.words if head in (None, WORDS_HEAD) or not len(snapshot) else None
    except ValueError as error:
        raise Refused(str(error)) from None
    name = head or (DEFAULT_HEAD if words is None else WORDS_HEAD)
    remarks = []
    described = cases.archive.get_note("words")
    if described is not None and name != WORDS_HEAD:
        alone = sorted(set(described["priors"]) - set(cases.classes))
        said = f"; known by words only, and left out: {', '.join(alone)}" if alone else ""
        remarks.append(f"{name} decides by images alone{said}")
    trained = heads_for(encoder.similarity)[len(COMPARED_HEADS) :]
    if trained and name not in trained:
        remarks.append(f"the encoder was trained with a head of its own: --head {trained[0]}")

    def make() -> Head:
        return make_head(
            name,
            center=encoder.source_mean,
            similarity=encoder.similarity,
            source=encoder.source_statistics,
            words=words,
        )

    labels = [str(row["label"]) for row in snapshot.metadata]
    patients = [row.get("patient") for row in snapshot.metadata]
    try:
        fitted = make()
        fitted.fit(snapshot.vectors, labels, ids=snapshot.ids, groups=patients)
    except ValueError as error:
        raise Refused(str(error)) from None
    if isinstance(fitted, AutoClassifier):
        remarks.append(f"the head was chosen: {fitted.choice_.reason}")
        name = fitted.choice_.name  # what would change the answer is asked of this head, not of the choice
    if fitted.transductive:
        remarks.append(f"{name} is transductive: the answer to an image depends on the others asked about with it.")
    return Asked(fitted, snapshot, None, make, tuple(remarks))


def _studies(images: Sequence[Path], kept: Sequence[int], study: list[str] | None, by_study: bool) -> list[Hashable]:
    """The study of each image that was read; every image its own where none is asked for."""
    if study is not None:
        return [study[i] for i in kept]
    if not by_study:
        return list(range(len(kept)))
    from embeddings import image_identity

    found: list[Hashable] = []
    for i in kept:
        uid = image_identity(images[i]).metadata.get("study_uid")
        if uid is None:
            note(f"{one_line(images[i])} has no StudyInstanceUID and is a study of its own.")
        found.append(uid or f"image {images[i]}")
    return found


def _members(studies: Sequence[Hashable]) -> dict[Hashable, list[int]]:
    members: dict[Hashable, list[int]] = {}
    for i, name in enumerate(studies):
        members.setdefault(name, []).append(i)
    return members


def _shown(images: Sequence[Path], kept: Sequence[int], own: Sequence[int], name: Hashable) -> str:
    """What to call a study: its image, or its name and how many images it has."""
    if len(own) == 1:
        return str(images[kept[own[0]]])
    return f"{name} ({len(own)} images)"


@dataclass(frozen=True)
class _Seen:
    """Whether an image asked about is itself in the set (the id), or its patient is."""

    registered: str | None
    patient: bool


def _seen(images: Sequence[Path], kept: Sequence[int], support: Snapshot) -> dict[int, _Seen]:
    from embeddings import image_identity

    by_content = dict(zip(support.hashes, support.ids, strict=True))
    supporters = {row.get("patient") for row in support.metadata} - {None}
    found = {}
    for i in kept:
        identity = image_identity(images[i])
        uid = identity.sop_instance_uid
        own = uid if uid in support.positions else by_content.get(identity.sha256)
        found[i] = _Seen(own, identity.patient_id in supporters)
    return found


def _warn(images: Sequence[Path], seen: dict[int, _Seen], asked: Asked) -> None:
    for i, found in seen.items():
        if found.registered is not None:
            own = one_line(found.registered)
            note(f"{one_line(images[i])} is itself registered (id {own}): this answer is no evidence.")
        elif found.patient:
            note(f"{one_line(images[i])} is of a patient who supports the set: the answer leans on that patient.")
    labels = sorted({str(row["label"]) for row in asked.support.metadata})
    if seen and len(labels) == 1:
        note(f"Only one class is registered, {one_line(labels[0])!r}: no other answer is possible.")


def _why(asked: Asked, vectors: Any, shown: str) -> list[str]:
    """What would change the answer to each image of a study, in words."""
    from fewshot import what_would_change

    sentences = []
    support = asked.support
    for vector in vectors:
        found = what_would_change(
            asked.make,
            support.vectors,
            [str(row["label"]) for row in support.metadata],
            vector,
            ids=support.ids,
            groups=[row.get("patient") for row in support.metadata],
        )
        sentences.append(found.sentence)
        note(f"{one_line(shown)}: {one_line(found.sentence)}")
    return sentences


def _write_heatmaps(folder: Path, images: Sequence[Path], encoder: Encoder, asked: Asked) -> None:
    """Say for each image where it speaks for its answer; the names number the images in the order asked."""
    from fewshot import PrototypeClassifier
    from fewshot.heatmaps import explain_image

    from .heatmap_files import write_heatmaps

    support = asked.support
    means = PrototypeClassifier(center=encoder.source_mean).fit(
        support.vectors, [str(row["label"]) for row in support.metadata], ids=support.ids
    )
    for number, image in enumerate(images, start=1):
        stem = "".join(sign if sign.isalnum() or sign in "-_." else "_" for sign in image.stem)[:NAME_LENGTH]
        try:
            found = explain_image(encoder, asked.head, image, prototypes=means)
            written = write_heatmaps(found, image, folder, name=f"{number:03}-{stem}")
        except (ValueError, ImportError, OSError) as error:  # the answers stand whatever becomes of the pictures
            note(f"{one_line(image)}: no heat map, or not all: {error}")
            continue
        agreement = found.maps[0].agreement
        agree = "" if agreement is None else f", agreement of Grad-CAM and occlusion {agreement:+.2f}"
        note(
            f"{one_line(image)}: heat maps for {one_line(found.label)!r} in {', '.join(p.name for p in written)}{agree}"
        )
