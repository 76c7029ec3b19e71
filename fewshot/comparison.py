"""The comparison set: the labelled support images a deployment decides against, stored so that nothing is lost."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from embeddings import Archive, ImageError, UnknownId, printable

from .deployment_store import withdraw
from .outliers import OutlierReport, snapshot_outliers
from .priors import Words
from .registration import CALIBRATION, ROLES, SUPPORT, Candidate, Registration, read_candidates, role_of, sort_out

if TYPE_CHECKING:
    from embeddings import Encoder, Snapshot
    from episodes import Manifest


#: Images embedded at once.
ENCODE_BATCH = 64
#: The note that holds what words say about the classes.
WORDS = "words"


class ComparisonSet:
    """n labelled support images per class, kept on disk with their vectors and their provenance.

    Images of other patients can be set aside for calibration (`role="calibration"`): they are stored and erased like
    all others, and no answer is ever decided from them.

    Open one with `ComparisonSet.open`. Every property reads the newest committed version, also one another process
    wrote; where others may write between two properties, take both from one `snapshot`. Rows come in id order, so that
    a set from which an image was removed equals a set that never held it.

    Example:
        >>> cases = ComparisonSet.open("cases/", encoder=encoder)                                    # doctest: +SKIP
        >>> cases.register("pneumocystis", ["a.dcm", "b.dcm"], patients=["p1", "p2"])                # doctest: +SKIP
        >>> PrototypeClassifier().fit(cases.vectors, cases.labels, ids=cases.ids)                    # doctest: +SKIP
    """

    def __init__(self, archive: Archive, encoder: Encoder | None = None) -> None:
        self.archive = archive
        self.encoder = encoder
        self._parts: tuple[int, Snapshot, Snapshot] | None = None

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, encoder: Encoder | None = None) -> ComparisonSet:
        """Open the set in a folder; with an encoder, make it if there is none.

        Args:
            path: The set's folder.
            encoder: What turns images into vectors; needed to register, not to read.

        Returns:
            The set.

        Raises:
            ArchiveError: No set there and no encoder to make one, or the folder holds something else, an
                archive of embedded images for one.
            EncoderMismatch: The set's vectors were made by another encoder.
        """
        return cls(Archive.open(path, encoder=encoder, kind="comparison set"), encoder)

    # -- reading -------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Number of support images."""
        return len(self.snapshot)

    @property
    def snapshot(self) -> Snapshot:
        """The support in one version of the set: ids, vectors and metadata that belong together."""
        return self.parts()[0]

    @property
    def calibration(self) -> Snapshot:
        """The images set aside for calibration, in one version of the set."""
        return self.parts()[1]

    def parts(self) -> tuple[Snapshot, Snapshot]:
        """The support and the images set aside for calibration, both of one version."""
        whole = self.archive.snapshot()
        if self._parts is None or self._parts[0] != whole.version:
            aside = np.array([role_of(row) == CALIBRATION for row in whole.metadata], dtype=np.bool_)
            support = whole.take(np.flatnonzero(~aside)) if aside.any() else whole
            self._parts = whole.version, support, whole.take(np.flatnonzero(aside))
        return self._parts[1], self._parts[2]

    @property
    def ids(self) -> list[str]:
        """Image ids, sorted."""
        return list(self.snapshot.ids)

    @property
    def vectors(self) -> NDArray[np.float32]:
        """float32 (n, d), as the encoder made them, in the order of `ids`."""
        return self.snapshot.vectors

    @property
    def labels(self) -> list[str]:
        """Class of each image, in the order of `ids`."""
        return [str(row["label"]) for row in self.snapshot.metadata]

    @property
    def patients(self) -> list[str | None]:
        """Patient of each image, in the order of `ids`; None where unknown."""
        return [row.get("patient") for row in self.snapshot.metadata]

    @property
    def classes(self) -> list[str]:
        """The distinct labels, sorted."""
        return sorted(set(self.labels))

    @property
    def shots(self) -> dict[str, int]:
        """Patients per class; an image without a known patient counts as one."""
        owners: dict[str, set[str]] = {}
        snapshot = self.snapshot
        for name, row in zip(snapshot.ids, snapshot.metadata, strict=True):
            patient = row.get("patient")
            owners.setdefault(str(row["label"]), set()).add(
                f"image {name}" if patient is None else f"patient {patient}"
            )
        return {label: len(owners[label]) for label in sorted(owners)}

    def provenance(self, image_id: str) -> dict[str, Any]:
        """Where a support image came from: file, content hash, patient, label, when, by which encoder.

        Raises:
            KeyError: No such image.
        """
        whole = self.archive.snapshot()
        if image_id in whole.positions:
            return dict(whole.metadata[whole.positions[image_id]])
        raise KeyError(f"The comparison set has no image {image_id!r}.")

    def outliers(self) -> OutlierReport:
        """Which support images are probably mislabelled or do not belong; nothing is changed.

        Images set aside for calibration are not looked at. The encoder's source mean is subtracted; a set opened
        without its encoder is judged without.
        """
        return snapshot_outliers(self.snapshot, center=None if self.encoder is None else self.encoder.source_mean)

    # -- changing ------------------------------------------------------------------------------------------------

    def register(
        self,
        label: str,
        images: Sequence[str | os.PathLike[str]],
        *,
        patients: Sequence[str | None] | None = None,
        ids: Sequence[str] | None = None,
        role: str = "support",
        on_error: str = "raise",
    ) -> Registration:
        """Add support images of one class, in one step that happens wholly or not at all.

        Args:
            label: The class; a new one is made by its first image.
            images: Image files.
            patients: Their patients, aligned, kept as text; where None, NaN or blank a DICOM file's PatientID is taken,
                else unknown.
            ids: Their ids, aligned; by default the SOPInstanceUID, else the path as given.
            role: "support" decides answers; "calibration" is set aside to calibrate a deployment on, and must be of
                patients who do not support the set.
            on_error: "raise" stops at the first image that cannot be taken, before anything is stored; "report"
                takes the others and lists it.

        Returns:
            What became of each image, and which of those registered look mislabelled; none is refused for that.

        Raises:
            ImageError: An image that cannot be taken (with "raise"): unreadable, or registered under another label
                or for another patient, its id belongs to another image, or its patient has the other role.
            ValueError: No encoder, an empty label, an unknown role, lists of unequal length, an image that is no file.
            ArchiveError: The set cannot be written; nothing was stored.
        """
        if isinstance(images, (str, os.PathLike)):
            raise ValueError("images must be a list of files; got one path. Put it in a list.")
        return self._register([label] * len(images), images, patients, ids, on_error, role=role)

    def register_manifest(self, manifest: Manifest, *, role: str = "support", on_error: str = "report") -> Registration:
        """Add every row of a manifest: its image, label and group (patient). Ids are the paths in the manifest.

        Args:
            manifest: Single-label.
            role: As for `register`.
            on_error: As for `register`.

        Returns:
            What became of each row.

        Raises:
            ValueError: A row with several labels or none.
            ImageError: As for `register`.
        """
        labels = []
        for row, label in enumerate(manifest.labels, start=1):
            if not isinstance(label, str):
                given: tuple[str, ...] = () if label is None else tuple(label)
                if len(given) != 1:
                    raise ValueError(
                        f"A support image has one class; row {row} of the manifest has {len(given)}"
                        + (f": {', '.join(given)}." if given else ".")
                    )
                label = given[0]
            labels.append(label)
        names = [str(name) for name in manifest.table[manifest.image_column]]
        patients = None if manifest.groups is None else [str(group) for group in manifest.groups]
        return self._register(labels, list(manifest.images), patients, None, on_error, names, role=role)

    @property
    def words(self) -> Words | None:
        """What words say about its classes, or None where nothing was described.

        Raises:
            ValueError: The set was embedded anew since with another encoder than they were aligned with.
        """
        document = self.archive.get_note(WORDS)
        found = None if document is None else Words.from_json(document)
        if found is not None:
            self._check_words(found)
        return found

    def describe(self, words: Words | None) -> None:
        """Let words speak for classes from now on, with or without shots; what was deployed before stays as it was.

        Args:
            words: For all classes that are to have any; None takes every word away.

        Raises:
            ValueError: They were aligned with another encoder than the set's.
        """
        if words is not None:
            self._check_words(words)
        self.archive.set_note(WORDS, None if words is None else words.to_json())

    def remove(self, *, id: str | None = None, patient: str | None = None, label: str | None = None) -> tuple[str, ...]:
        """Remove an image, a patient or a class; every later answer equals never having had it.

        Images set aside for calibration are removed likewise. What deployments had fitted to the images is erased, and
        is fitted again to the rest when they are opened.

        Args:
            id: One image's id.
            patient: All images of a patient.
            label: All images of a class, and what words say of it; a deployment keeps its words until made anew.

        Returns:
            The removed ids.

        Raises:
            UnknownId: Nothing matches.
            ValueError: None, or more than one, of the three was given.
        """
        given = [name for name, value in (("id", id), ("patient", patient), ("label", label)) if value is not None]
        if len(given) != 1:
            raise ValueError(f"Name one of id, patient or label to remove; got {', '.join(given) or 'none'}.")
        words = self.archive.get_note(WORDS)
        if label is not None and words is not None and label in words["priors"]:
            left = {name: prior for name, prior in words["priors"].items() if name != label}
            self.archive.set_note(WORDS, {**words, "priors": left} if left else None)
            if label not in self.classes:
                return ()
        with self.archive.writing():  # nobody may add to a class between the look and the removal
            if patient is not None:
                removed = self.forget(patient=patient)[0]
            else:
                removed = self.forget(ids=[id] if id is not None else self._ids_of(label))[0]
        self.archive.purge()
        return removed

    def forget(self, *, ids: Sequence[str] | None = None, patient: str | None = None) -> tuple[tuple[str, ...], int]:
        """Remove images without erasing their bytes yet, and withdraw what deployments had fitted to them.

        Args:
            ids: Image ids.
            patient: Or a patient.

        Returns:
            The removed ids, and how many deployments will be fitted again without them.

        Raises:
            UnknownId: Nothing matches; what an interrupted removal left on the disk is erased all the same.
        """
        with self.archive.writing():
            withdrawn = withdraw(self, ids=ids, patient=patient)
            try:
                return self.archive.remove(ids=ids, patient=patient), withdrawn
            except UnknownId:
                self.archive.purge()
                raise

    def _check_words(self, words: Words) -> None:
        sizes = {words.center.shape[0], *(prior.vectors.shape[1] for prior in words.priors.values())}
        if words.encoder != self.archive.encoder_fingerprint or sizes != {self.archive.dim}:
            raise ValueError(
                f"The words were aligned with another encoder ({words.encoder[:12]}) than that of the set "
                f"({self.archive.encoder_fingerprint[:12]}): fit them with that one and describe the classes again."
            )

    def _ids_of(self, label: str | None) -> list[str]:
        whole = self.archive.snapshot()
        own = [name for name, row in zip(whole.ids, whole.metadata, strict=True) if row["label"] == label]
        if not own:
            close = difflib.get_close_matches(str(label), self.classes, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise UnknownId(
                f"The comparison set has no class {label!r}; it has {', '.join(self.classes) or 'none'}.{hint}"
            )
        return own

    def close(self) -> None:
        """Let go of the files."""
        self.archive.close()

    def __enter__(self) -> ComparisonSet:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    # -- inside --------------------------------------------------------------------------------------------------

    def _register(
        self,
        labels: Sequence[str],
        images: Sequence[str | os.PathLike[str]],
        patients: Sequence[str | None] | None,
        ids: Sequence[str] | None,
        on_error: str,
        names: Sequence[str] | None = None,
        *,
        role: str = "support",
    ) -> Registration:
        encoder = self._required_encoder()
        if role not in ROLES:
            raise ValueError(f"role must be {' or '.join(map(repr, ROLES))}; got {role!r}.")
        if on_error not in ("raise", "report"):
            raise ValueError(f"on_error must be 'raise' or 'report'; got {on_error!r}.")
        for kind, values in (("patients", patients), ("ids", ids)):
            if values is not None and len(values) != len(images):
                raise ValueError(f"{len(images)} images need {len(images)} {kind}; got {len(values)}.")
        for label in labels:
            if not isinstance(label, str) or not label.strip():
                raise ValueError(f"A label must be a non-empty string; got {label!r}.")
        candidates, refused = read_candidates(encoder, labels, images, patients, ids, names, on_error, role=role)
        vectors = self._encode(candidates)
        bad = ~np.isfinite(vectors).all(axis=1)
        refused += [(candidates[i].path, "its vector holds NaN or infinity") for i in np.flatnonzero(bad)]
        rows = {id(candidates[i]): vectors[i] for i in np.flatnonzero(~bad)}
        with self.archive.writing():  # nobody may register in between: what is decided here is what is stored
            new, duplicates, clashes = sort_out(self.archive.snapshot(), [c for c in candidates if id(c) in rows])
            refused += clashes
            if refused and on_error == "raise":
                raise ImageError(*refused[0])
            registered: tuple[str, ...] = ()
            if new:
                registered = self.archive.add(
                    [c.id for c in new],
                    np.stack([rows[id(c)] for c in new]),
                    metadata=[self._metadata(c) for c in new],
                    hashes=[c.sha256 for c in new],
                ).added
            after = self.snapshot
        if not registered or role != SUPPORT:
            return Registration(registered, tuple(duplicates), tuple(refused))
        report = snapshot_outliers(after, center=encoder.source_mean, only=registered)
        scores = tuple((image.id, image.score) for image in report.images)
        return Registration(registered, tuple(duplicates), tuple(refused), report.suspects, scores)

    def _encode(self, candidates: Sequence[Candidate]) -> NDArray[np.float32]:
        """Vectors (n, d) of the candidates, in batches."""
        encoder = self._required_encoder()
        parts = [np.empty((0, encoder.dim), dtype=np.float32)]
        for start in range(0, len(candidates), ENCODE_BATCH):
            parts.append(encoder.encode_loaded([c.prepared for c in candidates[start : start + ENCODE_BATCH]]))
        return np.concatenate(parts)

    def _required_encoder(self) -> Encoder:
        if self.encoder is None:
            raise ValueError("This comparison set was opened without an encoder, which registering images needs.")
        return self.encoder

    def _metadata(self, candidate: Candidate) -> dict[str, Any]:
        return {
            "label": candidate.label,
            "patient": candidate.patient,
            "path": printable(Path(candidate.path).absolute()),
            "sha256": candidate.sha256,
            "registered_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "encoder": self.encoder.fingerprint if self.encoder is not None else None,
            **({} if candidate.role == SUPPORT else {"role": candidate.role}),
        }
