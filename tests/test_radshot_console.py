"""Files that commands write: whole, in one step, and open to whom the umask lets read them."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from radshot.console import write_json, write_text


@pytest.fixture(params=[0o022, 0o027, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_files_get_the_mode_that_the_umask_gives(tmp_path: Path, umask: int) -> None:
    write_text(tmp_path / "deep" / "page.html", "one")
    write_json(tmp_path / "result.json", {"a": 1})
    for path in (tmp_path / "deep" / "page.html", tmp_path / "result.json"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


def test_a_file_is_replaced_whole_or_stays(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    write_text(path, "old")
    write_text(path, "half \udcff a name")
    assert path.read_text(encoding="utf-8") == "half \\udcff a name"
    folder = tmp_path / "taken"
    folder.mkdir()
    (folder / "inside").touch()
    with pytest.raises(OSError, match="taken"):
        write_text(folder, "new")
    assert sorted(item.name for item in tmp_path.iterdir()) == ["page.html", "taken"]
