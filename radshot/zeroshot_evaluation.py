"""`radshot zeroshot evaluate`: zero-shot answers on labelled images, one label each or several."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import JsonOption, Refused, command, exit_code, note, out, print_table, refused_json, write_json
from .manifest_options import Group, Image, Manifests, Where
from .words import Describe, Model

if TYPE_CHECKING:
    from zeroshot import ZeroShotModel

    from .words import WithTexts


@command
def evaluate_command(
    folder: Model,
    manifests: Manifests,
    describe: Describe,
    label: Annotated[str, typer.Option(metavar="COLUMN", help="Label column.")] = "label",
    group: Group = None,
    where: Where = None,
    image: Image = "image",
    encoder: Annotated[str | None, typer.Option(metavar="ENC", help="The image encoder, if it has moved.")] = None,
    seed: Annotated[int, typer.Option(metavar="N", min=0)] = 0,
    json_file: JsonOption = None,
) -> int:
    """Measure zero-shot answers on labelled images.

    Class-balanced accuracy with an interval over patients; where the model
    knows which classes it has seen and others are described too, accuracy on
    seen (S) and unseen (U) images, their harmonic mean (H) and the area under
    the seen-unseen curve (AUSUC). Images with several labels get AUROC and
    average precision per class and F1 at k.
    """
    from zeroshot import ZeroShotClassifier

    from .words import descriptions_of, is_built_in, open_model, read_with_texts

    descriptions = descriptions_of(describe)
    model, chosen = open_model(folder, encoder)
    classifier = ZeroShotClassifier(model).describe(descriptions, leave_out=is_built_in(describe))
    for remark in classifier.remarks_:
        note(remark)
    data = read_with_texts(manifests, chosen, text=(), label=label, group=group, where=where, image=image)
    several = any(isinstance(entry, tuple) and len(entry) > 1 for entry in data.labels or ())
    result = _measure_several(classifier, data) if several else _measure_single(classifier, model, data, seed)
    write_json(json_file, {**result, "refused": refused_json(data.refused)})
    return exit_code(len(data.images), len(data.refused))


def _measure_single(classifier: Any, model: ZeroShotModel, data: WithTexts, seed: int) -> dict[str, Any]:
    import numpy as np

    from episodes import patient_bootstrap
    from zeroshot import evaluate_generalized

    names = [str(name) for name in classifier.classes_]
    labels = [entry if isinstance(entry, str) else (entry or ("",))[0] for entry in data.labels or ()]
    kept = [i for i, name in enumerate(labels) if name in names]
    others = sorted({name for name in labels if name and name not in names})
    if others:
        note(f"{len(labels) - len(kept):,} images are of classes that are not described: {', '.join(others[:5])}.")
    if not kept:
        raise Refused("None of the images is of a described class: check --label and --describe.")
    scores = classifier.scores(data.vectors[kept])
    truth = [labels[i] for i in kept]
    codes = np.array([names.index(name) for name in truth])
    owners = list(range(len(kept))) if data.groups is None else [data.groups[i] for i in kept]
    patients = np.unique(np.asarray(owners, dtype=object).astype(str), return_inverse=True)[1]
    found = patient_bootstrap(scores.argmax(axis=1) == codes, codes, patients, seed=seed)
    out.print(
        f"{len(found.classes)} classes, {len(kept):,} images, {len(set(owners)):,} patients: balanced accuracy "
        f"{found.estimate:.3f} [{found.low:.3f}, {found.high:.3f}] (chance {1 / len(names):.2f})"
    )
    print_table(
        ("accuracy", "95%", "images", "class"),
        [
            (f"{estimate:.3f}", f"[{low:.3f}, {high:.3f}]", f"{count}", names[code])
            for code, estimate, low, high, count in zip(
                found.classes, found.class_estimate, found.class_low, found.class_high, found.queries, strict=True
            )
        ],
        numbers=("accuracy", "95%", "images"),
    )
    absent = [name for code, name in enumerate(names) if code not in found.classes]
    if absent:
        note(f"No image of {', '.join(absent)}: these compete and cannot be scored.")
    result: dict[str, Any] = {
        "balanced_accuracy": found.estimate,
        "interval": [found.low, found.high],
        "classes": dict(zip((names[code] for code in found.classes), found.class_estimate.tolist(), strict=True)),
        "without_images": absent,
    }
    seen = set(model.seen) & set(names)
    present = {names[code] for code in found.classes}
    if seen & present and present - seen:
        plain = model.shared.scores(data.vectors[kept], classifier.space_.vectors)
        report = evaluate_generalized(plain, truth, names, seen, gamma=model.gamma or 0.0, groups=owners, seed=seed)
        out.print(str(report))
        result["generalized"] = {
            "gamma": report.gamma,
            **{
                key: [part.estimate, part.low, part.high]
                for key, part in (
                    ("S", report.seen),
                    ("U", report.unseen),
                    ("H", report.harmonic),
                    ("AUSUC", report.area),
                )
            },
        }
    return result


def _measure_several(classifier: Any, data: WithTexts) -> dict[str, Any]:
    from episodes.label_states import label_states
    from zeroshot import multilabel_scores

    names = [str(name) for name in classifier.classes_]
    _, states = label_states(data.labels or [], names)
    scores = (
        classifier.presence(data.vectors) if classifier.space_.absent is not None else classifier.scores(data.vectors)
    )
    found = multilabel_scores(scores, states, names, ks=[k for k in (1, 2, 3) if k <= len(names)])
    print_table(
        ("AUROC", "AP", "class"),
        [(f"{found.auroc[name]:.3f}", f"{found.average_precision[name]:.3f}", name) for name in found.auroc],
        numbers=("AUROC", "AP"),
    )
    if found.mean_auroc is not None and found.mean_average_precision is not None:
        out.print(
            f"mean AUROC {found.mean_auroc:.3f}, mAP {found.mean_average_precision:.3f}, "
            + ", ".join(f"F1@{k} {value:.3f}" for k, value in found.f1_at.items())
        )
    for title, group in (("No image of", found.without_positives), ("Every image has", found.without_negatives)):
        if group:
            note(f"{title} {', '.join(group)}: counted, not scored.")
    return {
        "auroc": found.auroc,
        "average_precision": found.average_precision,
        "mean_auroc": found.mean_auroc,
        "mean_average_precision": found.mean_average_precision,
        "f1_at": {str(k): value for k, value in found.f1_at.items()},
        "without_positives": list(found.without_positives),
    }
