"""The record of a training on disk while it runs: a CSV file, and TensorBoard's event file where it is wanted."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .training_config import TrainingError

#: The CSV file in a training's folder: one line per validation.
LOG_FILE = "training.csv"
#: The folder of TensorBoard's event files in it.
TENSORBOARD_FOLDER = "tensorboard"


class TrainingLog:
    """Appends each validation's figures to `LOG_FILE`, and each step's loss and these figures to TensorBoard.

    Args:
        folder: The training's folder, or None to write nothing.
        tensorboard: Whether to write for TensorBoard too.

    Raises:
        TrainingError: TensorBoard is wanted and not installed.
    """

    def __init__(self, folder: Path | None, *, tensorboard: bool = False) -> None:
        self._path = None if folder is None else folder / LOG_FILE
        self._writer: Any = None
        self._rows = 0
        if tensorboard:
            if folder is None:
                raise TrainingError("TensorBoard's files need a folder: give out.")
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise TrainingError(
                    "TensorBoard is not installed: pip install 'radshot[tensorboard]', or leave it out."
                ) from None
            self._writer = SummaryWriter(folder / TENSORBOARD_FOLDER)

    def begin(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Start the CSV file with what an interrupted training already has."""
        self._rows = 0
        for record in history:
            self._write(record)

    def step(self, episode: int, stage: str, *, loss: float, learning_rate: float) -> None:
        """One step's loss and rate."""
        if self._writer is not None:
            self._writer.add_scalar(f"{stage}/step_loss", loss, episode)
            self._writer.add_scalar(f"{stage}/learning_rate", learning_rate, episode)

    def validated(self, record: Mapping[str, Any]) -> None:
        """One entry of a training's history."""
        self._write(record)
        if self._writer is not None:
            for name in ("loss", "train_accuracy", "validation_accuracy"):
                if record[name] is not None:
                    self._writer.add_scalar(f"{record['stage']}/{name}", record[name], record["episode"])
            self._writer.flush()

    def close(self) -> None:
        """Finish the files."""
        if self._writer is not None:
            self._writer.close()

    def _write(self, record: Mapping[str, Any]) -> None:
        if self._path is None:
            return
        try:
            with self._path.open("a" if self._rows else "w", newline="", encoding="utf-8") as stream:
                writer = csv.DictWriter(stream, list(record))
                if not self._rows:
                    writer.writeheader()
                writer.writerow(record)
        except OSError as error:
            raise TrainingError(f"The log {self._path} cannot be written: {error.strerror or error}.") from error
        self._rows += 1
