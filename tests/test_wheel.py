"""What is shipped: exactly the five packages, their typing markers and the page's template, and no tests."""

from __future__ import annotations

import zipfile
from configparser import ConfigParser
from pathlib import Path, PurePosixPath

import pytest

PACKAGES = {"embeddings", "episodes", "fewshot", "zeroshot", "radshot"}
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel as hatchling, the build backend, makes it from this source tree."""
    builders = pytest.importorskip("hatchling.builders.wheel", reason="hatchling comes with the extra `dev`")
    target = tmp_path_factory.mktemp("wheel")
    (built,) = builders.WheelBuilder(str(ROOT)).build(directory=str(target))
    return zipfile.ZipFile(built)


def test_the_wheel_holds_exactly_the_five_packages(wheel: zipfile.ZipFile) -> None:
    tops = {PurePosixPath(name).parts[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == PACKAGES
    assert len(tops) == len(PACKAGES) + 1
    assert not [name for name in wheel.namelist() if "test" in PurePosixPath(name).name]


def test_every_module_of_the_source_is_in_the_wheel(wheel: zipfile.ZipFile) -> None:
    sources = {path.relative_to(ROOT).as_posix() for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    assert {name for name in wheel.namelist() if name.endswith(".py")} == sources


def test_typing_markers_and_the_template_are_shipped(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    assert {f"{package}/py.typed" for package in PACKAGES} <= names
    folders = (ROOT / "radshot" / "templates", ROOT / "episodes" / "templates")
    templates = {path.relative_to(ROOT).as_posix() for folder in folders for path in folder.iterdir()}
    assert {"radshot/templates/demo.html", "episodes/templates/report.html"} <= templates
    assert templates <= names


def test_the_command_and_the_licence_are_shipped(wheel: zipfile.ZipFile) -> None:
    (info,) = {PurePosixPath(name).parts[0] for name in wheel.namelist() if ".dist-info/" in name}
    entries = ConfigParser()
    entries.read_string(wheel.read(f"{info}/entry_points.txt").decode())
    assert dict(entries["console_scripts"]) == {"radshot": "radshot.cli:main"}
    assert f"{info}/licenses/LICENSE" in wheel.namelist()
    assert "Name: radshot\n" in wheel.read(f"{info}/METADATA").decode()
