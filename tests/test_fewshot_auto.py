"""AutoClassifier: judged by hand on patients it has not seen, alike in any order; the default where none can be."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from fewshot import AutoClassifier, PrototypeClassifier
from fewshot.auto import CANDIDATES, LEAST_GAIN, TEMPERATURES
from fewshot.linear import RidgeClassifier
from fewshot.neighbors import NeighborClassifier
from fewshot.siamese import SiameseClassifier


def blobs(
    n_classes: int = 3, shots: int = 5, dim: int = 12, spread: float = 0.8, seed: int = 0
) -> tuple[NDArray[np.float32], list[str]]:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(n_classes, dim))
    rows = [centres[c] + spread * rng.normal(size=dim) for c in range(n_classes) for _ in range(shots)]
    return np.array(rows, dtype=np.float32), [f"c{c}" for c in range(n_classes) for _ in range(shots)]


def nuisance(shots: int = 8, seed: int = 0) -> tuple[NDArray[np.float32], list[str]]:
    """Two classes told apart by a small direction beside a large one that says nothing: means are misled by it."""
    rng = np.random.default_rng(seed)
    rows, labels = [], []
    for c in range(2):
        for _ in range(shots):
            rows.append([0.6 * rng.normal() + 0.5 * c, 0.3 * (2 * c - 1) + 0.02 * rng.normal(), 1.0, 0.0])
            labels.append(f"c{c}")
    return np.array(rows, dtype=np.float32), labels


def trial_by_hand(make: object, vectors: NDArray[np.float32], labels: list[str], patients: list[str]) -> tuple:
    """Log-loss and accuracy with every patient left out in turn, in the space the vectors came in."""
    classes = sorted(set(labels))
    weight = {}
    for label in classes:
        own = {p for p, name in zip(patients, labels, strict=True) if name == label}
        for patient in own:
            images = sum(p == patient and name == label for p, name in zip(patients, labels, strict=True))
            weight[patient, label] = 1 / len(own) / images
    held = {}
    for patient in dict.fromkeys(patients):
        rest = [i for i in range(len(labels)) if patients[i] != patient]
        head = make(None, 0).fit(vectors[rest], [labels[i] for i in rest], groups=[patients[i] for i in rest])
        for i in range(len(labels)):
            if patients[i] == patient:
                held[i] = dict(zip(head.classes_.tolist(), head.scores(vectors[i : i + 1])[0], strict=True))
    gaps = [max(s.values()) - s[c] for i in range(len(labels)) for s in (held[i],) for c in s]
    unit = sum(gaps) / len(gaps)
    best = np.inf
    for temperature in TEMPERATURES:
        loss = total = 0.0
        for i, label in enumerate(labels):
            w = weight[patients[i], label]
            z = np.array([held[i][c] for c in held[i]]) / (unit * temperature)
            z -= z.max()
            loss += w * (np.log(np.exp(z).sum()) - z[list(held[i]).index(label)])
            total += w
        best = min(best, loss / total)
    right = sum(weight[patients[i], labels[i]] * (max(held[i], key=held[i].get) == labels[i]) for i in held)
    return best, right / len(classes)


def test_trials_are_those_of_leaving_every_patient_out_by_hand() -> None:
    vectors, labels = blobs(shots=4, dim=40)  # fewer images than dimensions: judged in rotated coordinates
    patients = [f"p{i // 2 if i < 4 else i}" for i in range(len(labels))]  # two patients with two images each
    found = AutoClassifier().fit(vectors, labels, groups=patients).choice_
    assert [trial.name for trial in found.trials] == list(CANDIDATES)
    for trial in found.trials:
        loss, accuracy = trial_by_hand(CANDIDATES[trial.name], vectors, labels, patients)
        assert trial.log_loss == pytest.approx(loss, rel=1e-4)
        assert trial.accuracy == pytest.approx(accuracy)
    assert found.patients == len(set(patients))


def test_means_are_taken_where_they_win_and_ridge_where_they_mislead() -> None:
    vectors, labels = nuisance()
    chosen = AutoClassifier(candidates={"prototypes": CANDIDATES["prototypes"], "ridge": CANDIDATES["ridge"]})
    chosen.fit(vectors, labels)
    assert chosen.choice_.name == "ridge"
    assert isinstance(chosen.head_, RidgeClassifier)
    means, ridge = chosen.choice_.trials
    assert ridge.log_loss < means.log_loss - LEAST_GAIN
    assert f"log-loss {ridge.log_loss:.3f} against {means.log_loss:.3f} of prototypes" in chosen.choice_.reason
    near = {"ridge": CANDIDATES["ridge"], "nearest": lambda center, n: SiameseClassifier(center=center)}
    rng = np.random.default_rng(3)
    corners = np.array([[1, 1], [-1, -1], [1, -1], [-1, 1]], dtype=np.float32)  # a class is two opposite corners
    points = np.concatenate([corners + 0.1 * rng.normal(size=(4, 2)) for _ in range(6)]).astype(np.float32)
    xor = AutoClassifier(candidates=near).fit(points, ["same", "same", "other", "other"] * 6)
    assert xor.choice_.name == "nearest"
    assert xor.predict([[0.9, 1.1], [-1, 0.9]]).tolist() == ["same", "other"]


def test_answers_are_those_of_the_head_it_took() -> None:
    vectors, labels = blobs(seed=4)
    queries = blobs(seed=5)[0]
    center = vectors.mean(axis=0)
    chosen = AutoClassifier(center=center, n_evidence=2).fit(vectors, labels)
    own = CANDIDATES[chosen.choice_.name](center, 2).fit(vectors, labels)
    assert np.array_equal(chosen.scores(queries), own.scores(queries))
    assert chosen.decide(queries) == own.decide(queries)
    assert chosen.predict(queries).tolist() == own.predict(queries).tolist()
    assert chosen.classes_.tolist() == sorted(set(labels))


def test_order_of_registration_changes_nothing() -> None:
    vectors, labels = blobs(seed=6)
    ids = [f"i{i:02}" for i in range(len(labels))]
    first = AutoClassifier().fit(vectors, labels, ids=ids)
    turned = np.random.default_rng(0).permutation(len(labels))
    second = AutoClassifier().fit(vectors[turned], [labels[i] for i in turned], ids=[ids[i] for i in turned])
    assert first.choice_ == second.choice_
    assert np.array_equal(first.scores(vectors), second.scores(vectors))


def test_images_of_one_patient_do_not_vouch_for_each_other() -> None:
    rng = np.random.default_rng(1)
    faces = rng.normal(size=(12, 8))  # what is the patient's own says nothing of the class
    vectors = np.repeat(faces, 3, axis=0).astype(np.float32) + 0.001 * rng.normal(size=(36, 8)).astype(np.float32)
    labels = [f"c{i % 2}" for i in range(12) for _ in range(3)]
    patients = [f"p{i}" for i in range(12) for _ in range(3)]
    both = {"ridge": CANDIDATES["ridge"], "nearest": lambda center, n: NeighborClassifier(k=1, center=center)}
    by_patient = AutoClassifier(candidates=both).fit(vectors, labels, groups=patients).choice_
    by_image = AutoClassifier(candidates=both).fit(vectors, labels).choice_
    assert by_image.trials[1].accuracy == 1.0  # its twin is always the nearest
    assert by_patient.trials[1].accuracy < 0.8


def test_one_shot_takes_the_default_and_says_so() -> None:
    vectors, labels = blobs(shots=1)
    found = AutoClassifier().fit(vectors, labels)
    assert isinstance(found.head_, PrototypeClassifier)
    assert found.choice_.trials == ()
    assert "with one patient per class nothing can be left out" in found.choice_.reason
    twice = np.repeat(vectors, 2, axis=0)  # two images of one patient are one shot
    same = AutoClassifier().fit(twice, [x for x in labels for _ in "ab"], groups=[x for x in labels for _ in "ab"])
    assert same.choice_ == found.choice_
    ridge_only = AutoClassifier(candidates={"ridge": CANDIDATES["ridge"]}).fit(vectors, labels)
    assert ridge_only.choice_.name == "ridge"


def test_a_class_of_one_patient_is_passed_over_and_the_others_are_judged() -> None:
    vectors, labels = blobs(n_classes=3, shots=4)
    kept = [i for i, label in enumerate(labels) if label != "c2" or i == len(labels) - 1]
    found = AutoClassifier().fit(vectors[kept], [labels[i] for i in kept])
    assert found.choice_.patients == 8
    assert len(found.choice_.trials) == len(CANDIDATES)


def test_a_single_class_is_answered_with() -> None:
    vectors, _ = blobs(n_classes=1, shots=3)
    found = AutoClassifier().fit(vectors, ["only"] * 3)
    assert found.predict(vectors).tolist() == ["only"] * 3
    assert "single class" in found.choice_.reason


def test_no_candidates_and_no_support_are_refused() -> None:
    with pytest.raises(ValueError, match="candidates must name at least one head; got none"):
        AutoClassifier(candidates={}).fit([[1.0]], ["a"])
    with pytest.raises(ValueError, match="call fit first"):
        AutoClassifier().predict([[1.0]])
    with pytest.raises(ValueError, match="comparison set is empty"):
        AutoClassifier().fit(np.empty((0, 2)), [])
