"""`linear_cross_entropy` against torch's plain loss and torch's own chunked one: time, extra memory, error.

    python benchmarks/cross_entropy.py                                     two shapes, bf16
    python benchmarks/cross_entropy.py --shape 1024x49152x576 --dtype float32 --json run.json
    python benchmarks/cross_entropy.py --refcheck                          the errors alone

torch plain    F.cross_entropy((h @ W.T).float(), labels)
torch chunked  F.linear_cross_entropy with its defaults, and with those of its options that were fastest when tried out
               for this shape and pass; its backward is that of the sum, which it forms in the forward pass

W is frozen: backward is the gradient of h. All contenders run in this process on torch's threads, one call of each
in turn; a ratio is that of two neighbouring calls, of which the median is shown with its quartiles. A † says that most
calls lost a hundredth of their time or more to other processes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from alternating import Burst, Samples, Turn, alternate, machine, quartiles, ratio
from cross_entropy_memory import extra_bytes
from cross_entropy_problem import PASSES, Case, Problem, Truth, chunked_names, contender, problem_of, run

from restorelcc import build_info

DEFAULT_SHAPES = ["1024x49152x576", "256x128256x4096"]  # SmolLM2-135M; Llama-3.1-8B, fewer rows
# Relative to the largest value, of the loss and of the gradient: what no right answer exceeds.
WORST = {"float32": 1e-4, "bfloat16": 3e-2, "float16": 4e-3}


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", action="append", metavar="MxVxE", help=f"default: {', '.join(DEFAULT_SHAPES)}")
    parser.add_argument("--dtype", action="append", choices=list(WORST), help="default: bfloat16")
    parser.add_argument("--passes", type=lambda text: text.split(","), default=list(PASSES), help=",".join(PASSES))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=10.0, help="for each contender of each case and pass")
    parser.add_argument("--refcheck", action="store_true", help="the errors against float64 alone, no times")
    parser.add_argument("--no-memory", action="store_true", help="leave out the processes that measure memory")
    parser.add_argument("--chunked", metavar="NAME", help="no trying out: such as 'torch chunked 128 accurate'")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--lock", type=Path, help="hold this lock while a case is measured")
    found = parser.parse_args(arguments)
    shapes = [tuple(int(part) for part in text.split("x")) for text in found.shape or DEFAULT_SHAPES]
    if any(len(shape) != 3 or min(shape) < 1 for shape in shapes):
        parser.error("a shape is MxVxE, such as 1024x49152x576")
    if not set(found.passes) <= set(PASSES):
        parser.error(f"passes are some of {','.join(PASSES)}")
    found.cases = [Case(*shape, dtype) for dtype in found.dtype or ["bfloat16"] for shape in shapes]
    return found


def seconds_of(name: str, problem: Problem, what: str) -> float:
    begin = time.perf_counter()
    run(contender(name), problem, what)
    return time.perf_counter() - begin


def fastest_chunked(case: Case, problem: Problem, what: str) -> tuple[str, dict[str, float]]:
    """Each form twice, its better time; forms far behind after one call are not called again."""
    tried: dict[str, float] = {}
    for name in chunked_names(case):
        tried[name] = seconds_of(name, problem, what)
        if tried[name] < 2 * min(tried.values()):
            tried[name] = min(tried[name], seconds_of(name, problem, what))
    return min(tried, key=lambda name: tried[name]), tried


def measure(options: argparse.Namespace, case: Case, problem: Problem, truth: Truth, what: str) -> dict[str, Any]:
    """Errors, times, ratios and memory of all contenders in one pass of one case."""
    best, tried = (options.chunked, {}) if options.chunked else ("torch chunked auto", {})
    if not options.chunked and not options.refcheck:
        best, tried = fastest_chunked(case, problem, what)
    names = list(dict.fromkeys(["ours", "torch plain", "torch chunked auto", best]))
    found: dict[str, Any] = {"case": vars(case), "pass": what, "tried": tried, "contenders": {}}
    for name in names:
        error = truth.error(run(contender(name), problem, what), what)
        found["contenders"][name] = {"error": error, "right": error <= WORST[case.dtype]}
    if options.refcheck:
        return found
    timed = [name for name in names if found["contenders"][name]["right"]]
    calls: dict[str, list[float]] = {name: [] for name in timed}

    def burst(name: str, of_one_call: Burst) -> dict[str, Any]:
        sample = of_one_call.run(0.0)
        calls[name] += sample["times"]
        return sample

    bursts = {name: partial(burst, name, Burst([partial(run, contender(name), problem, what)])) for name in timed}
    samples = alternate(bursts, [], seconds=options.seconds, turn=Turn(options.lock))
    for name, sample in samples.items():
        record = found["contenders"][name]
        record["seconds"], record["calls"] = sample.summary(), calls[name]
        if name != "ours" and "ours" in samples:
            record["times_ours"] = ratio_to_ours(sample, samples["ours"], calls[name], calls["ours"])
        if not options.no_memory:
            record["extra_bytes"] = extra_bytes(case, name, what, options.threads)
    return found


def ratio_to_ours(rival: Samples, ours: Samples, rival_calls: list[float], our_calls: list[float]) -> dict[str, Any]:
    """Pair by pair; of all calls where too few ran undisturbed, and then it says so."""
    undisturbed = ratio(rival, ours)
    if undisturbed is not None:
        return {**undisturbed, "disturbed": False}
    q1, middle, q3 = quartiles([a / b for a, b in zip(rival_calls, our_calls, strict=True)])
    return {"median": middle, "q1": q1, "q3": q3, "rounds": len(our_calls), "disturbed": True}


def table(found: dict[str, Any]) -> str:
    """Markdown."""
    case = Case(**found["case"])
    lines = [f"**{case}, {found['pass']}**", ""]
    lines += ["| contender | ms, median [quartiles] | times ours | extra MiB | of plain's | error |", "|---" * 6 + "|"]
    plain = found["contenders"]["torch plain"].get("extra_bytes")
    for name, record in found["contenders"].items():
        cells = [name, *[""] * 4, f"{record['error']:.1e}" + ("" if record["right"] else " WRONG")]
        if "seconds" in record:
            s = record["seconds"]
            cells[1] = "{:.1f} [{:.1f}, {:.1f}]".format(*(s[key] * 1e3 for key in ("median", "q1", "q3")))
            cells[1] += " †" if s["disturbed"] else ""
        if "times_ours" in record:
            r = record["times_ours"]
            cells[2] = f"{r['median']:.2f} [{r['q1']:.2f}, {r['q3']:.2f}]" + (" †" if r["disturbed"] else "")
        if "extra_bytes" in record:
            cells[3] = f"{record['extra_bytes'] / 2**20:.1f}"
            cells[4] = f"{record['extra_bytes'] / plain:.1%}" if plain else ""
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def about(options: argparse.Namespace) -> dict[str, Any]:
    command = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return {
        "machine": machine(), "system": platform.platform(), "commit": commit.stdout.strip(), "load": os.getloadavg(),
        "threads": options.threads, "torch": torch.__version__, "isa": build_info()["isa"],
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    header, results = about(options), []
    print(f"{header['machine']}; {header['threads']} threads, torch {header['torch']}, {header['isa']}\n")
    for case in options.cases:
        problem = problem_of(case)
        truth = Truth(problem)
        for what in options.passes:
            results.append(measure(options, case, problem, truth, what))
            print(table(results[-1]), flush=True)
            if options.json:  # after each pass, so that a run that is stopped leaves what it has
                options.json.write_text(json.dumps({**header, "results": results}, indent=1) + "\n", encoding="utf-8")
        del problem, truth
    return 0 if all(c["right"] for found in results for c in found["contenders"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
