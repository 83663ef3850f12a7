"""Runs examples/openvino in the Python that has OpenVINO, where there is one; else the test is skipped."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
WORKER = Path(__file__).with_name("openvino_worker.py")
EXAMPLE = ROOT / "examples" / "openvino"
BUILD = ROOT / "build" / "openvino"
Done = subprocess.CompletedProcess[str]


@dataclass(frozen=True)
class Host:
    """A Python that has openvino, and what examples/openvino builds; where a test needs them they are there."""

    python: str
    extension: Path
    program: Path

    def run(self, *words: object) -> Done:
        return subprocess.run(list(map(str, words)), capture_output=True, text=True, check=False, timeout=600)

    def convert(self, packed: Path, out: Path, *words: object) -> Done:
        return self.run(
            self.python, EXAMPLE / "convert.py", packed, out, "--extension", self.extension, *words
        )  # fmt: skip

    def converted(self, packed: Path, out: Path, compensation: str = "none") -> Path:
        done = self.convert(packed, out, "--compensation", compensation)
        assert done.returncode == 0, done.stderr
        assert sorted(path.name for path in out.parent.iterdir()) == [out.name]
        return out

    def ask(self, folder: Path, task: str, **job: Any) -> Done:
        """One task of openvino_worker.py; its arrays are folder/found.<which>.npy."""
        path = folder / "job.json"
        path.write_text(
            json.dumps({"task": task, "extension": str(self.extension), "out": str(folder / "found"), **job})
        )
        return self.run(self.python, WORKER, path)

    def arrays(self, folder: Path, which: Sequence[object], task: str, **job: Any) -> list[Tensor]:
        done = self.ask(folder, task, **job)
        assert done.returncode == 0, done.stderr
        return [torch.from_numpy(np.load(folder / f"found.{one}.npy")) for one in which]

    def logits(self, model: Path, ids: Sequence[int], folder: Path, batches: Sequence[int]) -> list[Tensor]:
        """[T, V] float64, teacher-forced, for each batch size."""
        found = self.arrays(folder, batches, "logits", model=str(model), ids=list(ids), batches=list(batches))
        return [one.double() for one in found]


def find_host() -> Host:
    given = os.environ.get("RLCC_OPENVINO_PYTHON")
    if given is None and importlib.util.find_spec("openvino") is None:
        pytest.skip("needs OpenVINO: set RLCC_OPENVINO_PYTHON to a Python with openvino (docs/embedding.md)")
    folder = Path(os.environ.get("RLCC_OPENVINO_BUILD", BUILD))
    extension, program = folder / "librestorelcc_openvino.so", folder / "continue_text"
    for file in (extension, program):
        if not file.is_file():
            pytest.skip(f"{file} is not built; docs/embedding.md, OpenVINO, has the commands")
    return Host(given or sys.executable, extension, program)
