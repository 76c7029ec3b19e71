"""Fixtures every test file may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images named by RADSHOT_DATA; the test is skipped where it is absent."""
    named = os.environ.get("RADSHOT_DATA")
    if not named:
        pytest.skip("RADSHOT_DATA is not set: the real images are not on this machine")
    folder = Path(named)
    if not folder.is_dir():
        pytest.skip(f"RADSHOT_DATA names {named}, which is no folder")
    return folder.resolve()
