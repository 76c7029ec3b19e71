"""What is held out of a training: no patient on both sides, held-out classes unseen, honest fallbacks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from episodes import EpisodeSampler
from fewshot import TrainingConfig, TrainingError
from fewshot.validation import LEAST_TRAINING_CLASSES, ValidationPlan, plan_validation


def source(classes: int, patients: int, images: int = 2) -> tuple[list[str], list[str]]:
    """`patients` of each class with `images` each."""
    labels = [f"c{c:02}" for c in range(classes) for _ in range(patients * images)]
    groups = [f"c{c}p{p}" for c in range(classes) for p in range(patients) for _ in range(images)]
    return labels, groups


def as_sets(labels: Sequence[Hashable]) -> list[set[Hashable]]:
    return [{x} if isinstance(x, str) else set(x or ()) for x in labels]


def owners(groups: Sequence[Hashable] | None, rows: Sequence[int]) -> set[Hashable]:
    return {i if groups is None else groups[i] for i in rows}


def patients_of(sets: Sequence[set[Hashable]], groups: Sequence[Hashable], rows: Sequence[int]) -> dict[Hashable, int]:
    found: dict[Hashable, set[Hashable]] = defaultdict(set)
    for i in rows:
        for label in sets[i]:
            found[label].add(groups[i])
    return {label: len(who) for label, who in found.items()}


def check(plan: ValidationPlan, labels: Sequence[Hashable], groups: Sequence[Hashable] | None) -> None:
    """What must hold of every plan, whatever the data."""
    sets = as_sets(labels)
    train, validation = plan.train.tolist(), plan.validation.tolist()
    assert not owners(groups, train) & owners(groups, validation)
    assert len(train) + len(validation) + plan.dropped == len(labels)
    assert not set(train) & set(validation)
    assert len(plan.validation_labels) == len(validation)
    if plan.kind == "classes":
        held = set(plan.held_out)
        assert len(held) >= 2
        assert not any(sets[i] & held for i in train)
        for i, counted in zip(validation, plan.validation_labels, strict=True):
            assert set(counted) == sets[i] & held != set()
    else:
        assert plan.held_out == ()
        assert [set(x) for x in plan.validation_labels] == [sets[i] for i in validation]
    if plan.kind == "none":
        assert plan.validation.size == 0 and plan.validation_n_way == 0


@given(
    data=st.data(),
    n_classes=st.integers(1, 14),
    n_patients=st.integers(1, 40),
    n_images=st.integers(1, 120),
    k_shot=st.integers(1, 3),
    share=st.sampled_from([0.1, 0.2, 0.5, 0.9]),
    kind=st.sampled_from(["auto", "classes", "patients", "none"]),
    known=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_no_patient_is_ever_on_both_sides(
    data: st.DataObject,
    n_classes: int,
    n_patients: int,
    n_images: int,
    k_shot: int,
    share: float,
    kind: str,
    known: bool,
) -> None:
    rng = data.draw(st.randoms(use_true_random=False))
    labels = [
        tuple(f"c{rng.randrange(n_classes)}" for _ in range(rng.choice([0, 1, 1, 1, 2, 3]))) for _ in range(n_images)
    ]
    groups = [f"p{rng.randrange(n_patients)}" for _ in range(n_images)] if known else None
    config = TrainingConfig(validation=kind, k_shot=k_shot, validation_share=share, seed=rng.randrange(100))
    try:
        plan = plan_validation(labels, groups, config)
    except TrainingError:
        assert kind in ("classes", "patients")
        return
    assert kind == "auto" or plan.kind == kind
    check(plan, labels, groups)
    sets, who = as_sets(labels), groups if groups is not None else list(range(n_images))
    trained = patients_of(sets, who, plan.train.tolist())
    if plan.kind == "patients":  # whatever qualified before qualifies still
        before = patients_of(sets, who, range(n_images))
        assert all(trained.get(label, 0) > k_shot for label, count in before.items() if count > k_shot)
    if plan.validation_n_way:
        seen = patients_of(
            [set(x) for x in plan.validation_labels], [who[i] for i in plan.validation], range(len(plan.validation))
        )
        assert sum(count > k_shot for count in seen.values()) >= plan.validation_n_way >= 2
    assert plan.n_way == max(2, min(20, sum(count > k_shot for count in trained.values())))


@given(seed=st.integers(0, 500))
@settings(max_examples=30, deadline=None)
def test_validation_episodes_hold_only_held_out_classes_though_images_carry_others(seed: int) -> None:
    labels, groups = source(12, 8)
    labels = [(label, "everywhere") for label in labels]  # every image carries a class that is trained on too
    config = TrainingConfig(k_shot=2, seed=seed)
    plan = plan_validation(labels, groups, config)
    assume(plan.kind == "classes" and "everywhere" not in plan.held_out)
    sampler = EpisodeSampler(
        plan.validation_labels, plan.validation_n_way, 2, 3, groups=[groups[i] for i in plan.validation], n_episodes=5
    )
    assert set(sampler.classes) == set(plan.held_out)


def test_a_share_of_the_classes_is_held_out() -> None:
    labels, groups = source(20, 8)
    plan = plan_validation(labels, groups, TrainingConfig())
    assert (plan.kind, len(plan.held_out), plan.n_way, plan.validation_n_way) == ("classes", 4, 16, 4)
    assert plan.dropped == 0
    check(plan, labels, groups)
    assert plan_validation(labels, groups, TrainingConfig()).held_out == plan.held_out
    others = {plan_validation(labels, groups, TrainingConfig(seed=s)).held_out for s in range(5)}
    assert len(others) > 1
    wide = plan_validation(*source(60, 8), TrainingConfig())
    assert (wide.n_way, wide.validation_n_way, len(wide.held_out)) == (20, 5, 12)
    assert plan_validation(labels, groups, TrainingConfig(n_way=7)).n_way == 7


def test_patients_of_held_out_classes_are_dropped_from_training_and_counted() -> None:
    labels, groups = source(12, 8, images=1)
    for c in range(11):  # every class's first patient has an image of the next class, too
        labels.append(f"c{c + 1:02}")
        groups.append(f"c{c}p0")
    plan = plan_validation(labels, groups, TrainingConfig(validation_share=0.01))
    check(plan, labels, groups)
    assert plan.kind == "classes" and plan.dropped > 0
    assert plan.describe() == {
        "kind": "classes",
        "held_out_classes": [str(x) for x in plan.held_out],
        "images": len(plan.validation),
        "n_way": 2,
        "images_dropped_with_validation_patients": plan.dropped,
    }


def test_few_classes_fall_back_to_patients() -> None:
    labels, groups = source(LEAST_TRAINING_CLASSES + 1, 15)
    plan = plan_validation(labels, groups, TrainingConfig())
    assert plan.kind == "patients" and plan.dropped == 0
    check(plan, labels, groups)
    assert len(owners(groups, plan.validation.tolist())) == 9 * 6  # k + 1 of each class, more than a fifth
    more = plan_validation(*source(3, 100), TrainingConfig())
    assert len(owners(source(3, 100)[1], more.validation.tolist())) == 3 * 20
    assert (more.n_way, more.validation_n_way) == (3, 3)


def test_few_patients_fall_back_to_nothing_held_out() -> None:
    labels, groups = source(4, 11)
    plan = plan_validation(labels, groups, TrainingConfig())
    assert plan.kind == "none" and len(plan.train) == len(labels)
    check(plan, labels, groups)


def test_one_class_with_many_patients_is_no_validation() -> None:
    labels, groups = source(1, 50)
    assert plan_validation(labels, groups, TrainingConfig()).kind == "none"


def test_a_class_that_fills_no_validation_episode_gives_up_none_of_its_patients() -> None:
    labels, groups = source(3, 20)
    labels += ["rare"] * 7
    groups += [f"r{i}" for i in range(7)]
    plan = plan_validation(labels, groups, TrainingConfig())
    assert plan.kind == "patients"
    assert "rare" not in {labels[i] for i in plan.validation}


def test_what_was_asked_for_by_name_is_done_or_refused() -> None:
    labels, groups = source(3, 8)
    message = (
        r"^Holding classes out needs at least 4 classes of 6 patients, 2 of them to train on after the patients of the "
        r"others are left out; 3 qualify: hold out 'patients' or 'none', or lower k_shot\.$"
    )
    with pytest.raises(TrainingError, match=message):
        plan_validation(labels, groups, TrainingConfig(validation="classes"))
    message = (
        r"^Holding patients out needs at least 2 classes of 12 patients, half of them to train on; the patients per "
        r"class are \{'c00': 8, 'c01': 8, 'c02': 8\}: hold out 'none', or lower k_shot\.$"
    )
    with pytest.raises(TrainingError, match=message):
        plan_validation(labels, groups, TrainingConfig(validation="patients"))
    small = plan_validation(*source(4, 8), TrainingConfig(validation="classes"))
    assert (len(small.held_out), small.n_way, small.validation_n_way) == (2, 2, 2)


def test_images_without_a_label_are_of_no_class() -> None:
    labels, groups = source(12, 8)
    labels += [None] * 40
    groups += [f"n{i}" for i in range(40)]
    for seed in range(10):
        plan = plan_validation(labels, groups, TrainingConfig(seed=seed))
        assert None not in plan.held_out
        check(plan, labels, groups)


def test_unknown_patients_are_one_per_image() -> None:
    labels, _ = source(3, 10)
    plan = plan_validation(labels, None, TrainingConfig())
    assert plan.kind == "patients"
    check(plan, labels, None)
