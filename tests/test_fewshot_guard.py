"""Another distribution's package of the same name is named in one sentence, not met as an AttributeError later."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("foreign", ["embeddings", "episodes"])
@pytest.mark.parametrize("package", ["fewshot", "zeroshot"])
@pytest.mark.parametrize("kind", ["package", "module"])
def test_a_foreign_package_is_named(tmp_path: Path, package: str, foreign: str, kind: str) -> None:
    if kind == "package":
        (tmp_path / foreign).mkdir()
        home = tmp_path / foreign / "__init__.py"
    else:
        home = tmp_path / f"{foreign}.py"
    home.write_text("__version__ = '0.0.8'\n")
    code = f"import sys; sys.path[:0] = [{str(tmp_path)!r}]; sys.path.append({str(ROOT)!r})\nimport {package}"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"ImportError: {package} needs radshot's own package '{foreign}', but Python found another one at {home}: "
        f"uninstall the distribution that owns it, then reinstall radshot."
    )


def test_ours_is_taken(tmp_path: Path) -> None:
    code = f"import sys; sys.path[:0] = [{str(ROOT)!r}]\nimport fewshot, zeroshot"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
