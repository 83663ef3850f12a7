"""compute-sanitizer over a short matrix of checks, in processes of their own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from on_device.verdict import Verdict

TOOLS = ("memcheck", "racecheck", "synccheck")
FOUND = 99  # the exit status that says that the tool, not the program, found something
TIMEOUT_SECONDS = 1800


def find() -> str | None:
    """On the path, or in a toolkit beside nvcc."""
    places = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")] + ["/usr/local/cuda"]
    return shutil.which("compute-sanitizer") or next(
        (str(found) for place in places if place and (found := Path(place, "bin", "compute-sanitizer")).exists()), None
    )


def check(program: str | None, arguments: Sequence[str], verdict: Verdict) -> dict[str, Any]:
    """Each tool over `python arguments`. Allocations are torch's smallest possible ones, so that a read behind an
    array is a read behind an allocation.
    """
    if program is None:
        verdict.skip("compute-sanitizer", "it is not on the path and not in CUDA_HOME/bin")
        return {}
    summaries: dict[str, Any] = {}
    for tool in TOOLS:
        command = [program, "--tool", tool, "--error-exitcode", str(FOUND), sys.executable, *arguments]
        try:
            ran = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=TIMEOUT_SECONDS,
                env={**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            verdict.add("compute-sanitizer", tool, f"did not end within {TIMEOUT_SECONDS} s")
            continue
        output = ran.stdout + ran.stderr
        summary = re.findall(r"^=+ (\w+ SUMMARY: .*)$", output, flags=re.MULTILINE)
        summaries[tool] = {"exit_status": ran.returncode, "summary": summary}
        problem = None
        if ran.returncode != 0:
            reports = [line for line in output.splitlines() if line.startswith("=====")]
            first = " / ".join(" ".join(line.strip("= ").split()) for line in (reports or output.splitlines())[:6])
            problem = f"{'; '.join(summary) or f'exit status {ran.returncode}'}: {first[:600]}"
        verdict.add("compute-sanitizer", tool, problem)
    return summaries
