"""Does it help to pool the images of one patient? One image alone against all of the patient's, over patients.

    RADSHOT_DATA=... python benchmarks/studies.py

Phantoms with three images per patient, and covid_chestxray (T2) where a patient has two images or more, by raw pixels
and by radshot's default encoder. Prototypes of k patients per class; the other patients with several images are asked
about: each image alone (the mean over a patient's images, what one drawn at random would score), and all together by
the mean and by the maximum of their scores. Differences are paired, and patients are resampled.
"""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from task_vectors import PHANTOM_PATIENTS, RUNS, TaskVectors, encoder_of, load

from episodes import UNSEEN_FINDINGS, make_phantoms, paired_difference, patient_bootstrap
from fewshot import PrototypeClassifier
from fewshot.studies import decide_studies, study_names
from radshot.demo import SIZE

#: Supports drawn of each setting.
SUPPORTS = 60
SHOTS = (1, 5)
IMAGES_PER_PATIENT = 3
#: A seed that neither training nor the other benchmarks have seen.
PHANTOM_SEED = 202


def phantoms(encoder: str) -> TaskVectors:
    """Phantoms of unseen findings, three images of each patient, by the encoder of the phantoms."""
    path = Path(RUNS) / "vectors" / f"phantom-studies-{encoder}.npz"
    if not path.exists():
        drawn = make_phantoms(
            UNSEEN_FINDINGS,
            patients_per_finding=PHANTOM_PATIENTS // 3,
            images_per_patient=IMAGES_PER_PATIENT,
            size=SIZE,
            seed=PHANTOM_SEED,
        )
        made = encoder_of("phantoms", encoder)
        center = np.empty(0, np.float32) if made.source_mean is None else made.source_mean
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(
            path,
            vectors=made.encode(list(drawn.images)),
            center=center,
            labels=np.array([drawn.names(i)[0] for i in range(len(drawn))]),
            groups=np.array([str(patient) for patient in drawn.patients]),
        )
    with np.load(path) as file:
        center = file["center"] if file["center"].size else None
        return TaskVectors(file["vectors"], list(file["labels"].tolist()), list(file["groups"].tolist()), center)


def outcomes(task: TaskVectors, k_shot: int) -> dict[str, NDArray[np.float64]]:
    """Right or wrong for each query patient of each support, alone and pooled, with its class and its number."""
    rng = np.random.default_rng(k_shot)
    owner: dict[Hashable, dict[Hashable, list[int]]] = {}
    patients = task.groups or []
    for i, (label, patient) in enumerate(zip(task.labels, patients, strict=True)):
        owner.setdefault(label, {}).setdefault(patient, []).append(i)
    classes = [label for label, own in owner.items() if len(own) > k_shot]
    number = {patient: i for i, patient in enumerate(dict.fromkeys(patients))}
    rows: dict[str, list[float]] = {name: [] for name in ("alone", "mean", "max", "class", "patient")}
    for _ in range(SUPPORTS):
        support: list[int] = []
        barred: set[Hashable] = set()
        for label in classes:
            free = [patient for patient in owner[label] if patient not in barred]
            for p in rng.permutation(len(free))[:k_shot].tolist():
                own = owner[label][free[p]]
                support.append(own[rng.integers(len(own))])
                barred.add(free[p])
        head = PrototypeClassifier(center=task.center, n_evidence=0)
        head.fit(task.vectors[support], [task.labels[i] for i in support])
        asked = [
            (code, patient, own)
            for code, label in enumerate(classes)
            for patient, own in owner[label].items()
            if patient not in barred and len(own) > 1
        ]
        images = [i for _, _, own in asked for i in own]
        studies = [number for number, (_, _, own) in enumerate(asked) for _ in own]
        alone = head.predict(task.vectors[images]) == np.array([task.labels[i] for i in images])
        truth = [classes[code] for code, _, _ in asked]
        for how in ("mean", "max"):
            decided = decide_studies(head, task.vectors[images], studies, how=how)
            rows[how] += [float(d.label == label) for d, label in zip(decided, truth, strict=True)]
        for study in study_names(studies):
            rows["alone"].append(float(alone[np.array(studies) == study].mean()))
        rows["class"] += [code for code, _, _ in asked]
        rows["patient"] += [number[patient] for _, patient, _ in asked]
    return {name: np.array(values) for name, values in rows.items()}


def main() -> None:
    """Measure and print."""
    print("| images | encoder | patients per class | asked about | one image | mean of scores | maximum |")
    print("|---|---|---|---|---|---|---|")
    differences = []
    for encoder in ("pixels", "default"):
        for name, task in (
            ("phantoms, 3 images", phantoms(encoder)),
            ("covid_chestxray, 2 or more", load("T2", encoder)),
        ):
            for k_shot in SHOTS:
                found = outcomes(task, k_shot)
                classes, patients = found["class"].astype(int), found["patient"].astype(int)
                cells = []
                for how in ("alone", "mean", "max"):
                    share = patient_bootstrap(found[how], classes, patients)
                    cells.append(f"{share.estimate:.3f} [{share.low:.3f}, {share.high:.3f}]")
                    if how != "alone":
                        pair = paired_difference(
                            found[how], found["alone"], classes, patients, names=(how, "one image")
                        )
                        differences.append(f"{name}, {encoder}, {k_shot} patient(s) per class: {pair}")
                asked = len(np.unique(patients))
                print(f"| {name} | {encoder} | {k_shot} | {asked} | " + " | ".join(cells) + " |", flush=True)
    print("\n" + "\n".join(differences))


if __name__ == "__main__":
    main()
