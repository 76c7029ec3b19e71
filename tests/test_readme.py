"""The README's Python runs as it stands, on a small stand-in for what `make demo` leaves behind."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from embeddings import load_encoder
from episodes import SOURCE_FINDINGS, UNSEEN_FINDINGS, make_phantoms, write_phantoms

README = Path(__file__).parent.parent / "README.md"


def test_python_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.S)
    assert len(blocks) >= 2
    phantoms = make_phantoms(UNSEEN_FINDINGS, patients_per_finding=7, images_per_patient=2, size=(64, 64), seed=0)
    write_phantoms(phantoms, tmp_path / "demo" / "unseen", format="dicom")
    source = make_phantoms(SOURCE_FINDINGS[:10], patients_per_finding=6, images_per_patient=1, size=(64, 64), seed=1)
    write_phantoms(source, tmp_path / "demo" / "source", format="dicom")
    for seed, folder in ((2, "reported"), (3, "sides")):
        sided = make_phantoms(["mass", "nodule"], patients_per_finding=20, size=(64, 64), seed=seed)
        write_phantoms(sided, tmp_path / "demo" / folder, format="dicom")
    encoder = load_encoder("untrained:conv4")
    encoder.save(tmp_path / "demo" / "encoder")  # type: ignore[attr-defined]
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(README), "exec"), names)
    decision = names["decision"]
    assert decision.label in ("cavity", "effusion") and decision.probability is None  # type: ignore[attr-defined]


def test_every_command_of_the_readme_exists() -> None:
    from radshot.cli import app

    known = {entry.name for entry in (*app.registered_commands, *app.registered_groups)}
    used = set(re.findall(r"^radshot (\w+)", README.read_text(encoding="utf-8"), flags=re.M))
    assert used and used <= known


def test_make_targets_of_the_readme_exist() -> None:
    makefile = (README.parent / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"^make (\w+)", README.read_text(encoding="utf-8"), flags=re.M)):
        assert re.search(rf"^{target}:", makefile, flags=re.M), target
