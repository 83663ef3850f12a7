"""Runs examples/decode and reads what it writes."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

PROGRAM = "decode.exe" if os.name == "nt" else "decode"


@dataclass(frozen=True)
class Decoder:
    path: Path

    def run(self, *words: object, isa: str | None = None) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, **({} if isa is None else {"RLCC_ISA": isa})}
        return subprocess.run(
            [str(self.path), *map(str, words)],
            capture_output=True,
            text=True,
            env=environment,
            check=False,
            timeout=300,
        )

    def logits(self, model: Path, ids: Sequence[int], out: Path, *words: object, isa: str | None = None) -> Tensor:
        """[T, V] float64, teacher-forced."""
        done = self.run(model, "--prompt-ids", written(ids), "--logits", out, *words, isa=isa)
        assert done.returncode == 0, done.stderr
        assert [path.name for path in out.parent.glob(f"{out.name}*")] == [out.name]
        return torch.from_numpy(np.fromfile(out, dtype="<f4")).view(len(ids), -1).double()

    def generate(self, model: Path, ids: Sequence[int], tokens: int, *words: object) -> dict[str, Any]:
        """The report, new tokens as `ids`; not ended by an end token."""
        given = ("--prompt-ids", written(ids), "--tokens", tokens, "--ignore-eos", "--report", "json")
        done = self.run(model, *given, *words)
        assert done.returncode == 0, done.stderr
        report: dict[str, Any] = json.loads(done.stdout)
        return report


def written(ids: Sequence[int]) -> str:
    return ",".join(map(str, ids))
