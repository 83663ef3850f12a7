"""Prints what one pass of one contender holds at most beside its inputs and its result, in bytes.

A fresh process for each (see extra_bytes): what another pass left in the allocator would hide this one's. The kernels
are loaded by a small problem first. Linux alone: the peak of resident memory is reset through /proc.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import torch
from cross_entropy_problem import Case, contender, problem_of, run


def extra_bytes(case: Case, name: str, what: str, threads: int) -> int:
    """Of this pass, measured in a process of its own."""
    request = json.dumps({"case": asdict(case), "name": name, "what": what, "threads": threads})
    found = subprocess.run([sys.executable, __file__, request], capture_output=True, text=True, check=False)
    if found.returncode != 0:
        raise RuntimeError(f"{name}, {case}, {what}: {found.stderr.strip().splitlines()[-1:]}")
    return int(found.stdout.split()[-1])


def _resident(field: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def main() -> None:
    request = json.loads(sys.argv[1])
    case, what = Case(**request["case"]), request["what"]
    torch.set_num_threads(request["threads"])
    chosen = contender(request["name"])
    small = problem_of(replace(case, rows=min(case.rows, 8), vocabulary=min(case.vocabulary, 512)))
    problem = problem_of(case)
    run(chosen, small, what)
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before = _resident("VmRSS")
    result = run(chosen, problem, what)
    print(_resident("VmHWM") - before - result.numel() * result.element_size())


if __name__ == "__main__":
    main()
