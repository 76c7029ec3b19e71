"""`radshot demo`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

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
    """Show the whole path on synthetic radiographs, without any download: train, register, ask, embed, search.

    Writes DICOM phantoms, the trained encoder, a comparison set, an archive, demo.json and report.html to DIR.
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
    rows, found = summary["archive"]["rows"], summary["search"]
    out.print(f"{rows:,} images archived, precision at 5 {found['precision_at_5']:.3f} (chance {found['chance']:.2f})")
    out.print(f"{summary['seconds']:.0f} seconds; see {folder / PAGE}")
    return DONE
