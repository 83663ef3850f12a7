"""Where real text, choice sets and a tiny real model for development lie: beside the project, or nowhere."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def shared(*parts: str) -> Path:
    """A file of the development data beside the project; the test is skipped where it is absent."""
    base = Path(os.environ.get("RLCC_SHARED", ROOT.parent / "shared"))
    path = base.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"needs {'/'.join(parts)} of the development data, which is not beside the project")
    return path
