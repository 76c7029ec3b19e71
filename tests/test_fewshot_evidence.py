"""What would change an answer, against brute force: every subset is fitted anew."""

from __future__ import annotations

import doctest
import itertools
from collections.abc import Hashable, Sequence

import numpy as np
import pytest

import fewshot.evidence
from fewshot.evidence import Counterfactual, what_would_change
from fewshot.neighbors import NeighborClassifier
from fewshot.prototypes import PrototypeClassifier
from fewshot.siamese import SiameseClassifier


def task(seed: int, n: int = 15, d: int = 4) -> tuple[np.ndarray, list[str], list[str], list[str], np.ndarray]:
    """Three classes, some patients with two images; one patient in two classes."""
    rng = np.random.default_rng(seed)
    labels = ["abc"[i % 3] for i in range(n)]
    centers = rng.normal(size=(3, d))
    vectors = (centers[[i % 3 for i in range(n)]] + rng.normal(size=(n, d))).astype(np.float32)
    patients = [f"p{i % 3}{i // 6}" for i in range(n - 1)] + ["p00"]
    return vectors, labels, [f"i{i:02}" for i in rng.permutation(n)], patients, rng.normal(size=d).astype(np.float32)


HEADS = {
    "prototypes": PrototypeClassifier,
    "nearest": lambda: NeighborClassifier(k=1),
    "neighbours": lambda: NeighborClassifier(k=3),
    "siamese": SiameseClassifier,
}


def answer(
    make: object, vectors: np.ndarray, labels: Sequence[str], ids: Sequence[str], patients: Sequence[str],
    query: np.ndarray, without: Sequence[str] = (),
) -> tuple[Hashable, dict[Hashable, float]]:  # fmt: skip
    kept = [i for i in range(len(labels)) if patients[i] not in without]
    head = make()  # type: ignore[operator]
    head.fit(vectors[kept], [labels[i] for i in kept], ids=[ids[i] for i in kept], groups=[patients[i] for i in kept])
    scores = dict(zip(head.classes_.tolist(), head.scores(query[None])[0].tolist(), strict=True))
    return head.predict(query[None]).tolist()[0], scores


def lead(scores: dict[Hashable, float], winner: Hashable) -> float:
    return scores[winner] - max(score for label, score in scores.items() if label != winner)


@pytest.mark.parametrize("name", list(HEADS))
def test_every_removal_against_a_fit_that_never_saw_the_patient(name: str) -> None:
    make = HEADS[name]
    flipped = 0
    for seed in range(12):
        vectors, labels, ids, patients, query = task(seed)
        found = what_would_change(make, vectors, labels, query, ids=ids, groups=patients)
        winner, scores = answer(make, vectors, labels, ids, patients, query)
        assert found.label == winner and found.margin == lead(scores, winner)
        assert [r.patient for r in found.removals] == list(
            dict.fromkeys(p for _, p in sorted(zip(ids, patients, strict=True)))
        )
        changes = {}
        for removal in found.removals:
            assert removal.ids == tuple(sorted(i for i, p in zip(ids, patients, strict=True) if p == removal.patient))
            label, left = answer(make, vectors, labels, ids, patients, query, [removal.patient])
            assert removal.label == label and removal.margin == lead(left, winner)
            assert removal.change == removal.margin - found.margin
            changes[removal.patient] = removal.change
        expected = {p for p in changes if answer(make, vectors, labels, ids, patients, query, [p])[0] != winner}
        assert {r.patient for r in found.flips} == expected
        assert abs(found.strongest.change) == max(abs(change) for change in changes.values())
        assert [r.change for r in found.flips] == sorted(r.change for r in found.flips)
        flipped += bool(expected)
        worst = min(changes.values())
        assert found.reach == (None if worst >= 0 else pytest.approx(found.margin / -worst))
    assert 0 < flipped < 12 or name == "nearest"


def flips(data: tuple[np.ndarray, list[str], list[str], list[str], np.ndarray], without: Sequence[str]) -> bool:
    return answer(PrototypeClassifier, *data, without)[0] != answer(PrototypeClassifier, *data)[0]


def test_the_patients_needed_flip_the_answer_and_no_single_one_does() -> None:
    several = 0
    for seed in range(40):
        data = task(seed, n=24)
        vectors, labels, ids, patients, query = data
        found = what_would_change(PrototypeClassifier, vectors, labels, query, ids=ids, groups=patients)
        own = sorted({p for p, label in zip(patients, labels, strict=True) if label == found.label})

        smallest = next(
            (k for k in range(1, len(own)) for some in itertools.combinations(own, k) if flips(data, some)), None
        )
        if found.needed is None:
            continue
        taken = [r.patient for r in found.needed]
        assert smallest is not None and len(taken) >= smallest and set(taken) <= set(own)
        assert flips(data, taken) and not flips(data, taken[:-1])
        assert (len(taken) == 1) == (smallest == 1)
        several += len(taken) > 1
    assert several >= 3


def test_it_is_bounded() -> None:
    vectors = [[1.0, 0.1 * i] for i in range(6)] + [[0.0, 1.0]] * 2
    labels, query = ["a"] * 6 + ["b"] * 2, [1.0, 0.2]
    fits = []

    def make() -> PrototypeClassifier:
        fits.append(1)
        return PrototypeClassifier()

    found = what_would_change(make, vectors, labels, query, most_removed=2)
    assert found.needed is None and len(fits) == 1 + 8 + 5 + 4
    assert "nor would that of up to 2 of its patients" in found.sentence


def test_sentences() -> None:
    support = [[1.0, 0.0], [0.0, 1.0], [0.3, 1.0], [0.2, 1.0]]
    found = what_would_change(
        PrototypeClassifier, support, ["a", "a", "b", "b"], [0.8, 0.6], groups=["p", "q", "r", None]
    )
    assert found.sentence == "'a' leads 'b' by 0.214, and without patient 'p' the answer would be 'b'."
    assert found.removals[3].patient is None and found.removals[3].ids == ("3",)
    support = [[1.0, 0.05], [1.0, 0.1], [0.0, 1.0], [0.8, 1.0], [0.8, 1.0]]
    found = what_would_change(PrototypeClassifier, support, ["a", "a", "a", "b", "b"], [1.0, 0.0], groups=list("vwxyz"))
    assert found.flips == () and [r.patient for r in found.needed] == ["v", "w"]
    assert "but it takes the removal of 2 patients of 'a' (patient 'v', patient 'w')" in found.sentence


def test_a_class_of_one_patient_and_a_set_of_one_class() -> None:
    found = what_would_change(PrototypeClassifier, [[1.0, 0.0], [0.0, 1.0]], ["a", "b"], [1.0, 0.1])
    assert [(r.label, r.margin, r.change) for r in found.removals] == [("b", None, None), ("a", None, None)]
    assert [r.ids for r in found.flips] == [("0",)] and found.needed is None and found.strongest is None
    only = what_would_change(PrototypeClassifier, [[1.0, 0.0], [0.0, 1.0]], ["a", "a"], [1.0, 0.1])
    assert only.sentence == "'a' is the only class, so that no other answer is possible."
    assert only.flips == () and only.margin is None and only.runner_up is None
    single = what_would_change(PrototypeClassifier, [[1.0, 0.0]], ["a"], [1.0, 0.1])
    assert [(r.label, r.margin) for r in single.removals] == [(None, None)]


class Picky(PrototypeClassifier):
    """A head that needs two classes."""

    def fit(self, vectors: object, labels: Sequence[Hashable], **options: object) -> Picky:
        if len(set(labels)) < 2:
            raise ValueError("two classes are needed.")
        super().fit(vectors, labels, **options)  # type: ignore[arg-type]
        return self


def test_a_head_that_cannot_be_fitted_to_the_rest_has_no_answer_there() -> None:
    found = what_would_change(Picky, [[1.0, 0.0], [0.9, 0.0], [0.0, 1.0]], ["a", "a", "b"], [1.0, 0.1])
    assert [r.label for r in found.removals] == ["a", "a", None]
    assert found.sentence == "'a' leads 'b' by 0.896, and without image '2' there would be no answer."
    with pytest.raises(ValueError, match=r"^two classes are needed\.$"):
        what_would_change(Picky, [[1.0, 0.0]], ["a"], [1.0, 0.1])


def test_no_answer_hangs_on_nothing() -> None:
    found = what_would_change(PrototypeClassifier, [[1.0, 0.0], [0.0, 1.0]], ["a", "b"], [0.0, 0.0])
    assert found == Counterfactual(None, None, None, (), None, None, None, found.sentence, ())
    assert found.sentence == "There is no answer to this image, so that nothing is known of what would change it."


def test_the_order_of_registration_changes_nothing() -> None:
    vectors, labels, ids, patients, query = task(3)
    found = what_would_change(PrototypeClassifier, vectors, labels, query, ids=ids, groups=patients)
    order = np.random.default_rng(0).permutation(len(labels)).tolist()
    moved = what_would_change(
        PrototypeClassifier,
        vectors[order],
        [labels[i] for i in order],
        query,
        ids=[ids[i] for i in order],
        groups=[patients[i] for i in order],
    )
    assert moved == found


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"^what_would_change looks at one query at a time; got 2\.$"):
        what_would_change(PrototypeClassifier, [[1.0]], ["a"], [[1.0], [2.0]])
    with pytest.raises(ValueError, match=r"^most_removed must be a whole number of at least 1; got 0\.$"):
        what_would_change(PrototypeClassifier, [[1.0]], ["a"], [1.0], most_removed=0)


def test_the_example_in_the_docs_runs() -> None:
    result = doctest.testmod(fewshot.evidence)
    assert result.attempted >= 4 and result.failed == 0
