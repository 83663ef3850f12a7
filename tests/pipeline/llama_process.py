"""llama.cpp itself, where RLCC_LLAMA_PYTHON names a Python that has llama-cpp-python; else the test is skipped."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

WORKER = Path(__file__).resolve().parents[2] / "benchmarks" / "llama_cpp_logits.py"


def ask_llama_cpp(file: Path, ids: Tensor, texts: list[str], folder: Path) -> tuple[Tensor, list[list[int]]]:
    """(logits [T, V] of one row of ids, with a float32 cache; the texts' token ids)."""
    python = os.environ.get("RLCC_LLAMA_PYTHON")
    if python is None:
        pytest.skip("needs llama.cpp: set RLCC_LLAMA_PYTHON to a Python with llama-cpp-python (docs/gguf.md)")
    job = folder / "job.json"
    asked = {"model": str(file), "rows": [ids.tolist()], "texts": texts, "threads": 1, "out": str(folder)}
    job.write_text(json.dumps({**asked, "float32_cache": True}))
    done = subprocess.run([python, str(WORKER), str(job)], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answer = json.loads(job.with_suffix(".answer.json").read_text())
    return torch.from_numpy(np.load(folder / "0.npy")), answer["texts"]
