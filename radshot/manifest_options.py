"""The options by which `train` and `evaluate` are told what their images, labels and patients are."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Manifests = Annotated[
    list[Path],
    typer.Argument(metavar="MANIFEST", help="CSV or Parquet tables with a column of image paths.", show_default=False),
]
Label = Annotated[
    list[str],
    typer.Option(
        metavar="COLUMN",
        help="Label column. In a cell, '|' stands between several labels; 'a+b' joins two columns into one label. "
        "With several manifests, give it once, or once for each.",
    ),
]
Group = Annotated[
    str | None,
    typer.Option(
        metavar="COLUMN",
        help="Patient column; by default the first of patient, patient_id, split_group; 'none' for none.",
    ),
]
Where = Annotated[str | None, typer.Option(metavar="EXPR", help="Use only rows that meet a condition.")]
Image = Annotated[str, typer.Option(metavar="COLUMN", help="Column of image paths, relative to the manifest.")]
HEAD_HELP = (
    "How to decide: auto (chosen on the support), prototypes, prototypes-euclidean, nearest, neighbors, linear, ridge, "
    "ridge-lengths, svm, gaussian, distribution-calibrated, soft-k-means (transductive); siamese, matching or relation "
    "where the encoder was trained so."
)
