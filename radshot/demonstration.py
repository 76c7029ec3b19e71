"""`radshot demo`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from .console import DONE, JsonOption, Refused, command, err, out, write_json, write_text

#: The demo's machine-readable result and its page.
RESULT, PAGE = "demo.json", "report.html"


@command
def demo_command(
    folder: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to write to; new or empty.")] = Path(
        "demo"
    ),
    seed: Annotated[int, typer.Option(min=0, help="Of phantoms, training and choice of support.")] = 0,
    json_file: JsonOption = None,
) -> int:
    """Show the whole path on synthetic radiographs, without any download: train, register, ask, deploy, embed, search.

    Writes DICOM phantoms, the trained encoder, a deployed comparison set, an archive, demo.json and report.html to DIR.
    A few minutes on two cores.
    """
    from .demo import run_demo
    from .demo_page import render

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise Refused(f"The demo needs a new or empty folder, and '{folder}' is not: remove it or give another --out.")
    began = time.monotonic()
    result = run_demo(folder, seed=seed, say=lambda line: err.print(line), progress=True)
    summary = result.summary
    write_text(folder / PAGE, render(result))
    summary["seconds"] = round(time.monotonic() - began, 1)
    write_json(folder / RESULT, summary)
    write_json(json_file, summary)
    fewshot, baselines = summary["fewshot"], summary["baselines"]
    low, high = fewshot["interval"]
    out.print(
        f"{summary['n_way']}-way {summary['k_shot']}-shot on findings never trained on, "
        f"{fewshot['query_patients']} query patients: accuracy {fewshot['accuracy']:.3f} [{low:.3f}, {high:.3f}]"
    )
    for name, floor in baselines.items():
        low, high = floor["interval"]
        out.print(f"  the same with {name}: {floor['accuracy']:.3f} [{low:.3f}, {high:.3f}]")
    for line in deployment_lines(summary["deployment"]):
        out.print(line)
    for line in words_lines(summary["words"]):
        out.print(line)
    rows, found = summary["archive"]["rows"], summary["search"]
    out.print(f"{rows:,} images archived, precision at 5 {found['precision_at_5']:.3f} (chance {found['chance']:.2f})")
    out.print(f"{summary['seconds']:.0f} seconds; see {folder / PAGE}")
    return DONE


def deployment_lines(found: dict[str, Any]) -> list[str]:
    """What the deployment's figures say, for the terminal; what was not calibrated is left out."""
    calibrated = sum(found["calibration_patients"].values())
    first, second = [], []
    given, error, sets, strange = (
        found[name] for name in ("accuracy_of_labels", "calibration_error", "sets", "none_of_these")
    )
    if given is not None:
        first.append(f"{given['value']:.3f} of the labels right")
    if error["after"] is not None:
        first.append(f"calibration error {error['after']:.3f} (raw softmax {error['before']:.3f})")
    if sets is not None:
        size = f"{sets['mean_size']:.2f} of {sets['of_classes']} classes"
        second.append(f"{sets['promised']:.0%} sets ({size}) hold the truth for {sets['coverage']['value']:.3f}")
    known, unknown = strange["known"]["value"], strange["unknown"]["answered_none_of_these"]["value"]
    second.append(f"none of these: {known:.3f} of known patients, {unknown:.3f} of a finding taken out")
    head = (
        f"deployed ({found['head']}, {calibrated} other patients to calibrate on), {found['patients']} patients asked"
    )
    return [f"{head}: {', '.join(first)}" if first else head, f"  {'; '.join(second)}"]


def words_lines(found: dict[str, Any]) -> list[str]:
    """What words did, for the terminal."""
    low, high = found["interval"]
    general = found["generalized"]
    lines = [
        f"known by words alone, {len(found['unseen'])} findings on a side: accuracy {found['accuracy']:.3f} "
        f"[{low:.3f}, {high:.3f}] (chance {found['chance']:.2f}); against {len(found['seen'])} seen ones too: "
        f"S {general['S'][0]:.3f}, U {general['U'][0]:.3f}, H {general['H'][0]:.3f}"
    ]
    points = [
        f"{point['k_shot']}: {point['both'][0]:.3f}"
        + (f" ({point['shots alone'][0]:.3f} without words)" if "shots alone" in point else "")
        for point in found["curve"]
    ]
    return [*lines, f"  words and shots together, by shots: {', '.join(points)}"]
