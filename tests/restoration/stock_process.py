"""Stock transformers in a process of its own, which never sees restorelcc; one for all tests that ask, as its imports
take longer than what it is asked."""

from __future__ import annotations

import atexit
import functools
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor

PROGRAM = """
import json, sys, torch
from transformers import AutoModelForCausalLM
torch.set_num_threads(1)
for line in sys.stdin:
    checkpoint, ids, out = json.loads(line)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32, local_files_only=True).eval()
    with torch.no_grad():
        torch.save(model(input_ids=torch.load(ids)).logits, out)
    intruders = [name for name in sys.modules if "restorelcc" in name]
    print(json.dumps([type(model).__name__, sum(p.numel() for p in model.parameters()), intruders]), flush=True)
"""


@functools.cache
def _process() -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-I", "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip

    def end() -> None:
        process.communicate()

    atexit.register(end)
    return process


def stock_logits(checkpoint: Path, ids: Tensor) -> tuple[Tensor, str, int]:
    """(logits [n, T, V], class name, parameters) of a checkpoint that stock transformers loads in float32."""
    with tempfile.TemporaryDirectory() as folder:
        given, found = Path(folder) / "ids.pt", Path(folder) / "logits.pt"
        torch.save(ids, given)
        process = _process()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps([str(checkpoint), str(given), str(found)]) + "\n")
        process.stdin.flush()
        answer = process.stdout.readline()
        assert answer, f"the stock process ended at {checkpoint}"
        name, parameters, intruders = json.loads(answer)
        assert not intruders, "stock means stock"
        return torch.load(found), name, parameters
