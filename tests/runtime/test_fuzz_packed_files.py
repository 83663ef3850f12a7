"""A short run of the harness in tests/fuzz that garbles packed models on disk; the long one is `make fuzz-files`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HARNESS = Path(__file__).resolve().parents[1] / "fuzz" / "packed_files.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(HARNESS), *arguments], capture_output=True, text=True, check=False)


def test_garbled_packed_models_are_refused_or_harmless(tmp_path: Path) -> None:
    done = run("--mutations", "300", "--seed", "7", "--save", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "300 mutations" in done.stdout
    assert " 0 failed" in done.stdout
    assert list(tmp_path.iterdir()) == []
