"""`radshot quarantine`: refused files with their reasons, and what takes them off the list."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from radshot.cli import app


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    source = tmp_path / "s"
    source.mkdir()
    for seed in range(3):
        pixels = np.random.default_rng(seed).integers(0, 256, (16, 16), dtype=np.uint8)
        Image.fromarray(pixels).save(source / f"{seed}.png")
    (source / "cut.png").write_bytes((source / "0.png").read_bytes()[:100])
    (source / "empty.dcm").write_bytes(b"")
    (source / "void.dcm").write_bytes(b"")
    assert run("embed", source, "--encoder", "pixels-8", "--archive", tmp_path / "a").exit_code == 1
    return tmp_path / "a"


def test_it_lists_files_with_stage_and_reason(archive: Path, tmp_path: Path) -> None:
    done = run("quarantine", archive, "--json", tmp_path / "q.json")
    assert done.exit_code == 0
    assert re.search(r"cut\.png +ends early: its image data are truncated", done.output)
    assert "3 files refused" in done.output
    refused: list[dict[str, Any]] = json.loads((tmp_path / "q.json").read_text())["refused"]
    assert [Path(one["path"]).name for one in refused] == ["cut.png", "empty.dcm", "void.dcm"]
    assert {one["stage"] for one in refused} == {"read"}


def test_it_counts_reasons(archive: Path) -> None:
    done = run("quarantine", archive, "--reasons")
    assert "    2  read   the file is empty (0 bytes)" in done.output
    assert "    1  read   ends early: its image data are truncated" in done.output


def test_a_file_that_succeeds_leaves_the_list(archive: Path, tmp_path: Path) -> None:
    source = tmp_path / "s"
    (source / "cut.png").write_bytes((source / "0.png").read_bytes())
    Image.fromarray(np.eye(16, dtype=np.uint8) * 255).save(source / "empty.dcm", format="PNG")
    assert run("embed", source, "--encoder", "pixels-8", "--archive", archive).exit_code == 1
    done = run("quarantine", archive)
    assert "1 file refused" in done.output
    assert "void.dcm" in done.output and "cut.png" not in done.output


def test_there_must_be_an_archive(tmp_path: Path) -> None:
    done = run("quarantine", tmp_path / "none")
    assert done.exit_code == 3
    assert "There is no archive at" in done.output
