"""What every head owes a comparison set, whatever it computes."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from embeddings.source_statistics import SourceStatistics
from fewshot.class_scores import ClassScores
from fewshot.distribution_calibration import DistributionCalibratedClassifier
from fewshot.gaussian import GaussianClassifier
from fewshot.linear import LinearProbe, RidgeClassifier
from fewshot.neighbors import NeighborClassifier
from fewshot.prototypes import PrototypeClassifier
from fewshot.siamese import SiameseClassifier
from fewshot.soft_kmeans import SoftKMeansClassifier
from fewshot.svm import SupportVectorClassifier


def source(d: int) -> SourceStatistics:
    rng = np.random.default_rng(77)
    return SourceStatistics(rng.normal(size=(6, d)), rng.uniform(0.3, 1.0, size=(6, d)), np.full(6, 9))


def distribution_calibrated(d: int = 8, **options: object) -> DistributionCalibratedClassifier:
    return DistributionCalibratedClassifier(source(d), **options)


#: Name -> maker of a fresh head for vectors of d dimensions.
HEADS: dict[str, Callable[[int], ClassScores]] = {
    "prototypes": lambda d: PrototypeClassifier(),
    "prototypes-euclidean": lambda d: PrototypeClassifier(metric="euclidean"),
    "nearest": lambda d: NeighborClassifier(k=1),
    "neighbors": lambda d: NeighborClassifier(k=3),
    "siamese": lambda d: SiameseClassifier(),
    "linear": lambda d: LinearProbe(),
    "linear, any length": lambda d: LinearProbe(normalize=False),
    "ridge": lambda d: RidgeClassifier(),
    "ridge, any length": lambda d: RidgeClassifier(normalize=False),
    "svm": lambda d: SupportVectorClassifier(),
    "svm, rbf": lambda d: SupportVectorClassifier(kernel="rbf"),
    "svm, rbf, any length": lambda d: SupportVectorClassifier(kernel="rbf", normalize=False),
    "gaussian": lambda d: GaussianClassifier(),
    "gaussian, fixed": lambda d: GaussianClassifier(0.2, normalize=False),
    "distribution-calibrated": lambda d: distribution_calibrated(d),
    "distribution-calibrated, any length": lambda d: distribution_calibrated(d, normalize=False, power=1.0),
    "soft-k-means": lambda d: SoftKMeansClassifier(),
    "soft-k-means, euclidean": lambda d: SoftKMeansClassifier(metric="euclidean", temperature=4.0, n_iterations=2),
}
EVERY = pytest.mark.parametrize("name", HEADS)
INDUCTIVE = pytest.mark.parametrize("name", [name for name in HEADS if not name.startswith("soft-k-means")])
#: A copy of an image is another vote for k neighbours, which say so.
COUNTS_PATIENTS = pytest.mark.parametrize("name", [name for name in HEADS if name != "neighbors"])
#: The nearest image stays the nearest however often it is there; all others average.
AVERAGES = pytest.mark.parametrize("name", [n for n in HEADS if n not in ("neighbors", "nearest", "siamese")])
#: Heads that measure angles, to which a vector without direction says nothing.
LENGTH_MATTERS = ("any length", "euclidean", "fixed")

Task = tuple[np.ndarray, list[str], list[str], list[str], np.ndarray]


def task(n: int = 26, d: int = 8, classes: int = 3, apart: float = 1.0, seed: int = 0) -> Task:
    """Vectors, labels, ids, patients (some with several images, some in two classes), and queries."""
    rng = np.random.default_rng(seed)
    targets = np.concatenate([np.arange(classes), rng.integers(classes, size=n - classes)])
    means = apart * rng.normal(size=(classes, d))
    vectors = (means[targets] + rng.normal(size=(n, d))).astype(np.float32)
    labels = [f"class {c}" for c in targets.tolist()]
    groups = [f"p{rng.integers(12)}" for _ in range(n)]
    queries = rng.normal(size=(9, d)).astype(np.float32)
    return vectors, labels, [f"image {i:03}" for i in rng.permutation(n)], groups, queries


def chosen(rows: list[int], vectors: np.ndarray, *lists: list[str]) -> list[object]:
    return [vectors[rows], *([values[i] for i in rows] for values in lists)]


@EVERY
@pytest.mark.parametrize("classes", [2, 4])
def test_classes_far_apart_are_told_apart(name: str, classes: int) -> None:
    rng = np.random.default_rng(1)
    means = np.eye(classes, 8) * 6
    targets = np.repeat(np.arange(classes), 4)
    vectors = means[targets] + 0.3 * rng.normal(size=(len(targets), 8))
    queries = means[targets] + 0.3 * rng.normal(size=(len(targets), 8))
    labels = [f"{'zyxw'[c]}" for c in targets]
    clf = HEADS[name](8)
    assert clf.fit(vectors, labels) is clf
    assert clf.classes_.tolist() == sorted(set(labels))
    scores, decisions = clf.scores(queries), clf.decide(queries)
    assert scores.shape == (len(queries), classes) and scores.dtype == np.float64
    assert clf.predict(queries).tolist() == labels == [d.label for d in decisions]
    assert clf.classes_[scores.argmax(axis=1)].tolist() == labels
    for row, decision in zip(scores.tolist(), decisions, strict=True):
        ranked = sorted(row, reverse=True)
        assert decision.score == pytest.approx(ranked[0], abs=1e-6)
        assert decision.margin == pytest.approx(ranked[0] - ranked[1], abs=1e-6) and decision.margin > 0
        assert decision.probability is None and decision.reason is None and decision.runner_up != decision.label
        assert {n.label for n in decision.evidence} == {decision.label}


@EVERY
@pytest.mark.parametrize(("d", "seed"), [(3, 0), (8, 1), (200, 2)])
def test_the_order_of_registration_changes_no_bit(name: str, d: int, seed: int) -> None:
    vectors, labels, ids, groups, queries = task(d=d, seed=seed)
    clf = HEADS[name](d).fit(vectors, labels, ids=ids, groups=groups)
    for order in (np.random.default_rng(seed).permutation(26).tolist(), list(range(26))[::-1]):
        x, y, names, patients = chosen(order, vectors, labels, ids, groups)
        other = HEADS[name](d).fit(x, y, ids=names, groups=patients)
        assert np.array_equal(other.scores(queries), clf.scores(queries))
        assert other.decide(queries) == clf.decide(queries)


@EVERY
def test_removing_a_patient_equals_never_having_had_it(name: str) -> None:
    vectors, labels, ids, groups, queries = task(seed=3)
    kept = [i for i, group in enumerate(groups) if group != groups[4]]
    assert len(kept) < 26
    x, y, names, patients = chosen(kept, vectors, labels, ids, groups)
    never = HEADS[name](8).fit(x, y, ids=names, groups=patients)
    clf = HEADS[name](8).fit(vectors, labels, ids=ids, groups=groups)
    assert not np.array_equal(clf.scores(queries), never.scores(queries))  # the patient did count
    clf.fit(x, y, ids=names, groups=patients)
    assert np.array_equal(clf.scores(queries), never.scores(queries))
    assert clf.decide(queries) == never.decide(queries)


@INDUCTIVE
@pytest.mark.parametrize("d", [3, 8, 200])
def test_company_changes_no_bit(name: str, d: int) -> None:
    vectors, labels, ids, groups, queries = task(d=d, seed=4)
    clf = HEADS[name](d).fit(vectors, labels, ids=ids, groups=groups)
    assert clf.transductive is False
    together = clf.scores(queries)
    assert np.array_equal(np.concatenate([clf.scores(query[None]) for query in queries]), together)
    assert np.array_equal(clf.scores(np.repeat(queries, 40, axis=0))[::40], together)
    assert np.array_equal(clf.scores(np.asfortranarray(queries)[::-1])[::-1], together)
    assert [clf.decide(query[None])[0] for query in queries] == clf.decide(queries)


@COUNTS_PATIENTS
@pytest.mark.parametrize("classes", [2, 3])
def test_a_patient_counts_once_however_many_images_it_has(name: str, classes: int) -> None:
    vectors, labels, ids, _, queries = task(n=14, classes=classes, seed=5)
    groups = [f"p{i}" for i in range(14)]
    once = HEADS[name](8).fit(vectors, labels, ids=ids, groups=groups)
    more = [0] * 9 + [5] * 3
    x, y, _, patients = chosen([*range(14), *more], vectors, labels, ids, groups)
    names = ids + [f"copy {i}" for i in range(12)]
    copies = HEADS[name](8).fit(x, y, ids=names, groups=patients)
    assert copies.scores(queries) == pytest.approx(once.scores(queries), rel=1e-4, abs=1e-4)


@AVERAGES
def test_images_of_unknown_patients_count_each(name: str) -> None:
    vectors, labels, ids, _, queries = task(n=14, seed=5)
    once = HEADS[name](8).fit(vectors, labels, ids=ids)
    more = [*range(14), *[0] * 9]
    x, y = chosen(more, vectors, labels)
    copies = HEADS[name](8).fit(x, y, ids=ids + [f"copy {i}" for i in range(9)], groups=[None] * 23)
    assert np.abs(copies.scores(queries) - once.scores(queries)).max() > 1e-3


@EVERY
def test_one_image_per_class_is_enough(name: str) -> None:
    clf = HEADS[name](8).fit(np.eye(3, 8) * 4, ["a", "b", "c"])
    queries = np.eye(3, 8)[[2, 0, 1]] * 4 + 0.2
    assert clf.predict(queries).tolist() == ["c", "a", "b"]
    assert np.isfinite(clf.scores(queries)).all()


@EVERY
@pytest.mark.parametrize("n", [1, 3])
def test_a_single_class_is_always_the_answer(name: str, n: int) -> None:
    rng = np.random.default_rng(6)
    clf = HEADS[name](8).fit(rng.normal(size=(n, 8)), ["only"] * n)
    queries = rng.normal(size=(5, 8))
    assert clf.predict(queries).tolist() == ["only"] * 5
    assert clf.scores(queries).shape == (5, 1) and np.isfinite(clf.scores(queries)).all()
    for decision in clf.decide(queries):
        assert (decision.label, decision.margin, decision.runner_up) == ("only", None, None)
        assert len(decision.evidence) == (1 if name == "nearest" else n) and decision.counter_evidence == ()


@EVERY
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_broken_query_is_left_out_and_changes_nothing(name: str, bad: float) -> None:
    vectors, labels, ids, groups, queries = task(seed=7)
    clf = HEADS[name](8).fit(vectors, labels, ids=ids, groups=groups)
    broken = np.insert(queries, 3, bad, axis=0)
    assert clf.predict(broken)[3] is None
    decision = clf.decide(broken)[3]
    assert (decision.label, decision.score) == (None, None) and "NaN or infinity" in str(decision.reason)
    assert np.isnan(clf.scores(broken)[3]).all()
    assert np.array_equal(np.delete(clf.scores(broken), 3, axis=0), clf.scores(queries))
    assert clf.decide(broken)[4:] == clf.decide(queries)[3:]


@EVERY
def test_a_query_without_direction_gets_no_arbitrary_label(name: str) -> None:
    vectors, labels, ids, groups, queries = task(seed=8)
    clf = HEADS[name](8)
    clf.center = np.full(8, 0.5)
    clf.fit(vectors, labels, ids=ids, groups=groups)
    decision = clf.decide(np.full((1, 8), 0.5))[0]
    if any(word in name for word in LENGTH_MATTERS):
        assert decision.label is not None
    else:
        assert decision.label is None and "no direction" in str(decision.reason)
        assert np.isnan(clf.scores([[0.5] * 8])).all()
    aimless = np.insert(queries, 0, 0.5, axis=0)
    if not clf.transductive or decision.label is None:
        assert np.array_equal(clf.scores(aimless)[1:], clf.scores(queries))


@EVERY
def test_what_is_alike_everywhere_is_still_answered(name: str) -> None:
    clf = HEADS[name](8).fit(np.ones((4, 8)), ["b", "a", "b", "a"])
    assert np.isfinite(clf.scores(np.ones((2, 8)))).all() and clf.decide(np.ones((1, 8)))[0].label in ("a", "b")
    support = np.concatenate([np.zeros((1, 8)), np.eye(8)[:3]])
    clf.fit(support, ["a", "a", "b", "b"])  # a row without direction
    assert np.isfinite(clf.scores(np.eye(8))).all()


@EVERY
@pytest.mark.parametrize(
    "labels", [["b", "a", "c"], [7, 3, 5], [("right", 2), ("left", 1), ("left", 0)], ["a", 1, 2], [2.5, 1.5, -1.0]]
)
def test_labels_come_back_as_they_were_given(name: str, labels: list[object]) -> None:
    clf = HEADS[name](8).fit(np.eye(3, 8) * 4, labels)
    queries = np.eye(3, 8) * 4 + 0.2
    answers = [d.label for d in clf.decide(queries)]
    assert answers == labels == list(clf.predict(queries))
    assert [type(answer) for answer in answers] == [type(label) for label in labels]


@EVERY
def test_no_queries_no_answers(name: str) -> None:
    clf = HEADS[name](8).fit(np.eye(3, 8), ["a", "b", "c"])
    assert clf.decide(np.empty((0, 8))) == [] and clf.predict(np.empty((0, 8))).shape == (0,)
    assert clf.scores(np.empty((0, 8))).shape == (0, 3)


@EVERY
def test_the_centre_is_subtracted(name: str) -> None:
    vectors, labels, ids, groups, queries = task(seed=9)
    center = np.random.default_rng(2).normal(size=8).round(2)
    plain = HEADS[name](8).fit(vectors, labels, ids=ids, groups=groups)
    moved = HEADS[name](8)
    moved.center = center
    if isinstance(moved, DistributionCalibratedClassifier):
        own = source(8)
        moved.source = SourceStatistics(own.means + center, own.variances, own.patients)
    moved.fit(vectors + center, labels, ids=ids, groups=groups)
    assert moved.scores(queries + center) == pytest.approx(plain.scores(queries), abs=1e-4, rel=1e-4)


@EVERY
def test_errors(name: str) -> None:
    clf = HEADS[name](8)
    with pytest.raises(ValueError, match=rf"^This {type(clf).__name__} has no support yet: call fit first\.$"):
        clf.predict(np.eye(8))
    with pytest.raises(ValueError, match=r"^The comparison set is empty: register at least one image before asking\.$"):
        clf.fit(np.empty((0, 8)), [])
    clf.fit(np.eye(3, 8), ["a", "b", "c"])
    for ask in (clf.predict, clf.decide, clf.scores):
        with pytest.raises(ValueError, match=r"^Query vectors have 3 dimensions, the comparison set has 8: were both"):
            ask(np.eye(3))
    clf.n_evidence = -1
    with pytest.raises(ValueError, match=r"^n_evidence must be a whole number of at least 0; got -1\.$"):
        clf.fit(np.eye(3, 8), ["a", "b", "c"])
    clf.n_evidence, clf.center = 2, [1.0]
    with pytest.raises(ValueError, match=r"^The centre must have shape \(8,\) like the vectors; got \(1,\)\.$"):
        clf.fit(np.eye(3, 8), ["a", "b", "c"])


@pytest.mark.parametrize(
    ("clf", "message"),
    [
        (LinearProbe(0.0), r"^C must be a finite number above 0; got 0\.0\.$"),
        (LinearProbe(True), r"^C must be a finite number above 0; got True\.$"),
        (RidgeClassifier(-1.0), r"^penalty must be a finite number above 0; got -1\.0\.$"),
        (RidgeClassifier(math.inf), r"^penalty must be a finite number above 0; got inf\.$"),
        (SupportVectorClassifier("1"), r"^C must be a finite number above 0; got '1'\.$"),
        (SupportVectorClassifier(gamma=math.nan), r"^gamma must be a finite number above 0; got nan\.$"),
        (SupportVectorClassifier(kernel="poly"), r"^kernel must be one of linear, rbf; got 'poly'\.$"),
        (GaussianClassifier(0.0), r"^shrinkage must be 'auto' or a share above 0 and at most 1; got 0\.0\.$"),
        (GaussianClassifier(1.5), r"^shrinkage must be 'auto' or a share above 0 and at most 1; got 1\.5\.$"),
        (GaussianClassifier("full"), r"^shrinkage must be 'auto' or a share above 0 and at most 1; got 'full'\.$"),
        (SoftKMeansClassifier(n_iterations=-1), r"^n_iterations must be a whole number of at least 0; got -1\.$"),
        (SoftKMeansClassifier(n_iterations=1.5), r"^n_iterations must be a whole number of at least 0; got 1\.5\.$"),
        (SoftKMeansClassifier(temperature=0), r"^temperature must be a finite number above 0; got 0\.$"),
        (SoftKMeansClassifier(metric="dot"), r"^metric must be 'cosine' or 'euclidean'; got 'dot'\.$"),
        (distribution_calibrated(n_nearest=0), r"^n_nearest must be a whole number of at least 1; got 0\.$"),
        (distribution_calibrated(alpha=0.0), r"^alpha must be a finite number above 0; got 0\.0\.$"),
        (distribution_calibrated(power=-0.5), r"^power must be a finite number above 0; got -0\.5\.$"),
        (distribution_calibrated(9), r"^The source statistics have 9 dimensions, the comparison set has 8: were both"),
        (
            DistributionCalibratedClassifier(),
            r"^DistributionCalibratedClassifier needs the statistics of the encoder's source classes "
            r"\(SourceStatistics\) and got none: give source=SourceStatistics\.of\(\.\.\.\), or take another head\.$",
        ),
    ],
)
def test_options_that_cannot_be_meant(clf: ClassScores, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        clf.fit(np.eye(2, 8), ["a", "b"])
