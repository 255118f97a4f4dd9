"""Fixtures that many tests share."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real samples; a test that needs it skips, saying so, where it is missing (never in CI)."""
    folder = Path(os.environ.get("KARMA_REAL_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        message = f"real samples are missing: set KARMA_REAL_DATA to their folder (looked in {folder})"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return folder
