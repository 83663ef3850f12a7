"""More contenders of whole_model_engines.py, all programs: `python decode_engines.py ENGINE`.

program: examples/decode on a packed model. $RLCC_DECODE names it. program-huge: the same with --huge-pages.
llama-bench: llama.cpp's own benchmark on a GGUF file. $LLAMA_BENCH names it. It judges no text.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import whole_model_engines
from alternating import serve
from whole_model_engines import ENGINES, Model


def _output(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ValueError(f"{Path(command[0]).name} ended with {done.returncode}: {done.stderr.strip()[-300:]}")
    return done.stdout


class Program:
    """A process a call: what it took to start is not counted, for it says itself what each token took.

    dtype: what activations are stored in, if not the default of the program.
    """

    switches: tuple[str, ...] = ()

    def __init__(self, path: str, threads: int, dtype: str | None) -> None:
        stored = () if dtype is None else ("--activations", dtype)
        self._command = [os.environ["RLCC_DECODE"], path, "--threads", str(threads), *stored, *self.switches]
        self._report = self._run([1], 1)

    def _run(self, prompt: list[int], new_tokens: int) -> dict[str, Any]:
        given = ["--prompt-ids", ",".join(map(str, prompt)), "--tokens", str(new_tokens), "--ignore-eos"]
        report: dict[str, Any] = json.loads(_output([*self._command, *given, "--report", "json"]))
        return report

    def about(self) -> dict[str, str]:
        return {"our instruction set": self._report["isa"]}

    def row_nll(self, ids: list[int]) -> float:
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "logits"
            _output([*self._command, "--prompt-ids", ",".join(map(str, ids)), "--logits", str(out)])
            logits = np.fromfile(out, dtype="<f4").reshape(len(ids), -1)[:-1].astype(np.float64)
        top = logits.max(axis=1)
        lse = top + np.log(np.exp(logits - top[:, None]).sum(axis=1))
        return float((lse - logits[np.arange(len(ids) - 1), ids[1:]]).sum())

    def sample(self, prompt: list[int], new_tokens: int) -> dict[str, Any]:
        report = self._run(prompt, new_tokens)
        times = report["all_token_seconds"]
        waited = report["waited_seconds"]
        disturbed = waited is None or waited > 0.01 * sum(times)
        return {**_sample(sum(times) / len(times), disturbed, report["ids"]), "steps": times}


class HugeProgram(Program):
    """With the weights copied into pages of 2 MiB."""

    switches = ("--huge-pages",)


class LlamaBench:
    """Generates after an empty prompt. It does not say whether its threads waited, so all of it counts as disturbed."""

    def __init__(self, path: str, threads: int, dtype: str | None) -> None:
        self._command = [os.environ["LLAMA_BENCH"], "-m", path, "-t", str(threads), "-ngl", "0"]
        self._about = self._run(1)

    def _run(self, new_tokens: int) -> dict[str, Any]:
        found = json.loads(_output([*self._command, "-p", "0", "-n", str(new_tokens), "-r", "1", "-o", "json"]))
        one: dict[str, Any] = found[0]
        return one

    def about(self) -> dict[str, str]:
        return {"llama-bench": f"build {self._about.get('build_commit', '?')}"}

    def row_nll(self, ids: list[int]) -> float:
        raise ValueError("llama-bench judges no text")

    def sample(self, prompt: list[int], new_tokens: int) -> dict[str, Any]:
        nanoseconds = self._run(new_tokens)["avg_ns"]
        return _sample(nanoseconds * 1e-9 / new_tokens, True, [])


def _sample(seconds: float, disturbed: bool, new: list[int]) -> dict[str, Any]:
    """As Model.generate; processor seconds are another process's."""
    return {
        "times": [seconds], "interrupted": [0] if disturbed else [], "idle": 0.0, "new": new, "cpu_seconds": 0.0
    }  # fmt: skip


class ProgramModel(Model):
    """A Model whose engine takes its own samples."""

    def generate(self, prompt: list[int], new_tokens: int) -> dict[str, Any]:
        """One sample: seconds a token, after the first."""
        found: dict[str, Any] = self._engine.sample(prompt, new_tokens)
        return found


def main() -> None:
    # Engines of the table generate() by themselves; these do not, and are asked for samples instead.
    ENGINES.update({"program": Program, "program-huge": HugeProgram, "llama-bench": LlamaBench})  # type: ignore[dict-item]
    assert whole_model_engines.ENGINES is ENGINES
    serve(ProgramModel(sys.argv[1]).handlers())


if __name__ == "__main__":
    main()
