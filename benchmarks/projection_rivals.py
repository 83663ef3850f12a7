"""One projection against its rivals, side by side: torch dense, torch CSR, numpy, OpenVINO and DeepSparse beside ours.

    python benchmarks/projection_rivals.py                         4096x4096 and 11008x4096, half of the weights pruned
    python benchmarks/projection_rivals.py --ops grad_x --rows 1,16,256,1024
    python benchmarks/projection_rivals.py --isa avx2 --rows 1     ours held to AVX2, torch held to it and not

Contenders run in turns, each engine in a process of its own (see alternating.py), weights cold for 16 rows or fewer.
A result that is not close to float64 is not timed. What a rival needs to be installed: docs/rivals.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from alternating import Samples, Turn, Worker, WorkerError, alternate, machine, ratio
from projection_problem import Case
from shapes import SHAPES

HERE = Path(__file__).parent
DEFAULT_SHAPES = ("4096x4096", "11008x4096")
CSR_ROWS = NATIVE_ROWS = (1, 4)
MIXED_GROUPS, MIXED_ROWS = 64, 16
OPS = ("forward", "grad_x", "mixed")
AVX2 = {"RLCC_ISA": "avx2", "ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}


@dataclass(frozen=True)
class Contender:
    """process: which worker runs it. kind: what the worker is asked for. against: ours that its ratio is to."""

    process: str
    kind: str
    against: str
    ops: tuple[str, ...] = ("forward",)
    rows: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.process} {self.kind}"

    def takes(self, case: Case, op: str) -> bool:
        """Whether it runs this case."""
        return op in self.ops and (not self.rows or case.rows in self.rows)


CONTENDERS = (
    Contender("ours", "fp32", "ours fp32", ("forward", "grad_x")),
    Contender("ours", "bf16", "ours bf16", OPS),
    Contender("ours", "fp16", "ours fp16", ("forward", "grad_x")),
    Contender("ours", "int8", "ours int8", OPS),
    Contender("torch", "fp32", "ours fp32", ("forward", "grad_x")),
    Contender("torch", "bf16", "ours bf16", ("forward", "grad_x")),
    Contender("torch", "bf16 native", "ours bf16", rows=NATIVE_ROWS),
    Contender("torch", "fp32 csr", "ours fp32", rows=CSR_ROWS),
    Contender("torch unrestricted", "fp32", "ours fp32", ("forward", "grad_x")),
    Contender("torch unrestricted", "bf16", "ours bf16", ("forward", "grad_x")),
    Contender("numpy", "fp32", "ours fp32"),
    Contender("openvino", "fp32", "ours fp32"),
    Contender("openvino", "bf16", "ours bf16"),
    Contender("openvino", "int8", "ours int8"),
    Contender("openvino", "int8 dynamic", "ours int8"),
    Contender("deepsparse", "fp32", "ours fp32"),
)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", action="append", metavar="NxK|NAME", help="or MODEL-LAYER of shapes.txt; repeatable")
    parser.add_argument("--rows", type=_numbers, default=[1, 4, 16, 256, 1024], help="default: 1,4,16,256,1024")
    parser.add_argument("--patterns", type=lambda text: text.split(","), default=["0.5"], help="default: 0.5")
    parser.add_argument("--ops", type=_ops, default=["forward"], help=f"some of {','.join(OPS)}; default: forward")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=1.0, help="for each contender of each case")
    parser.add_argument("--cold-mb", type=int, default=256, help="distinct weights to go round, for 16 rows or fewer")
    parser.add_argument("--isa", choices=["avx2"], help="hold ours and torch to it; torch runs unrestricted as well")
    parser.add_argument("--huge-pages", action="store_true", help="large tensors of torch and ours in huge pages")
    parser.add_argument("--only", default="", metavar="REGEX", help="contenders, such as 'ours|torch'")
    parser.add_argument("--openvino-python", type=Path, help="default: this one, where openvino is installed in it")
    parser.add_argument("--deepsparse-python", type=Path, help="the Python (<= 3.11) of an environment with deepsparse")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--lock", type=Path, help="hold this lock while a case is measured")
    parser.add_argument("--realtime", action="store_true", help="measured before all else, see alternating.py; as root")
    found = parser.parse_args(arguments)
    found.shapes = [shape(text) for text in found.shape or DEFAULT_SHAPES]
    return found


def _numbers(text: str) -> list[int]:
    numbers = [int(part) for part in text.split(",")]
    if min(numbers) < 1:
        raise argparse.ArgumentTypeError("numbers start at 1")
    return numbers


def _ops(text: str) -> list[str]:
    chosen = text.split(",")
    if not set(chosen) <= set(OPS):
        raise argparse.ArgumentTypeError(f"choose among {', '.join(OPS)}")
    return chosen


def shape(text: str) -> tuple[int, int]:
    """(N, K) of "4096x4096" or of a name in shapes.txt, such as "Qwen2.5-7B-q_proj"."""
    sizes = re.fullmatch(r"(\d+)x(\d+)", text)
    if sizes:
        return int(sizes[1]), int(sizes[2])
    named = [s for s in SHAPES if text in (f"{s.model}-{s.layer}", str(s))]
    if not named:
        raise argparse.ArgumentTypeError(f"{text} is neither NxK nor MODEL-LAYER of shapes.txt")
    return named[0].outputs, named[0].inputs


class Rivals:
    """The worker processes, started when first needed; one that cannot be started is reported and left out."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._workers: dict[str, Worker] = {}
        self.about: dict[str, str] = {}
        self.missing: dict[str, str] = {}

    def worker(self, process: str) -> Worker | None:
        """The worker, or None where it is missing."""
        if process in self.missing:
            return None
        if process not in self._workers:
            try:
                self._workers[process] = self._start(process)
            except WorkerError as error:
                self.missing[process] = str(error)
                return None
        return self._workers[process]

    def _start(self, process: str) -> Worker:
        options = self._options
        python = {"openvino": options.openvino_python, "deepsparse": options.deepsparse_python}.get(process)
        if process == "deepsparse" and python is None:
            raise WorkerError("deepsparse needs a Python of its own; see --deepsparse-python")
        environment = {"OMP_NUM_THREADS": str(options.threads), "PYTHONPATH": ""}
        if options.isa == "avx2" and process in ("ours", "torch"):
            environment |= AVX2
        if options.huge_pages:
            environment["THP_MEM_ALLOC_ENABLE"] = "1"  # torch's own switch
        engine = process.split()[0]
        command = [str(python or sys.executable), str(HERE / "projection_engines.py"), engine]
        worker = Worker(process, command, environment)
        try:
            about = worker.ask("start", threads=options.threads)
        except WorkerError:
            worker.close()
            raise
        self.about |= {f"{what} ({process})" if " " in process else what: value for what, value in about.items()}
        return worker

    def close(self) -> None:
        """Ends all of them."""
        for worker in self._workers.values():
            worker.close()


def contenders(options: argparse.Namespace, case: Case, op: str) -> Iterator[Contender]:
    """Who runs this case."""
    for one in CONTENDERS:
        if one.process == "torch unrestricted" and not options.isa:
            continue
        if options.isa and one.process in ("openvino", "deepsparse"):  # which cannot be held to it
            continue
        if one.takes(case, op) and re.search(options.only, one.name):
            yield one


def cases(options: argparse.Namespace) -> Iterator[tuple[str, list[Case]]]:
    """(op, cases that are timed together): of "mixed", the same product with and without a comp_index."""
    for op in options.ops:
        for pattern in options.patterns:
            for outputs, inputs in options.shapes:
                for rows in [MIXED_ROWS] if op == "mixed" else options.rows:
                    name = "grad_x" if op == "grad_x" else "forward"
                    groups = (0, MIXED_GROUPS) if op == "mixed" else (0,)
                    yield op, [Case(outputs, inputs, pattern, rows, name, g, options.cold_mb << 20) for g in groups]


def measure(rivals: Rivals, options: argparse.Namespace, op: str, together: list[Case]) -> list[dict[str, Any]]:
    """Prepares, checks and times the contenders of cases that belong together; one record each."""
    records: dict[str, dict[str, Any]] = {}
    bursts = {}
    used: set[str] = set()
    length = max(0.02, min(0.1, options.seconds / 5))
    for case in together:
        for one in contenders(options, case, op):
            worker = rivals.worker(one.process)
            if worker is None:
                continue
            name = f"{one.name} G={case.groups}" if op == "mixed" else one.name
            key = f"{one.kind}/{case.groups}"
            record = {"op": op, **asdict(case), "contender": name, "threads": options.threads, "isa": options.isa}
            record["against"] = f"{one.against} G=0" if op == "mixed" else one.against
            records[name] = record
            used.add(one.process)
            try:
                record |= worker.ask("prepare", kind=one.kind, key=key, case=asdict(case))
            except WorkerError as error:
                record["failed"] = str(error)
                continue
            bursts[name] = partial(worker.ask, "burst", key=key, seconds=length)
    turn, active = Turn(options.lock, options.realtime), [w for w in map(rivals.worker, sorted(used)) if w is not None]
    samples: dict[str, Samples] = alternate(bursts, active, seconds=options.seconds, turn=turn) if bursts else {}
    for name, found in samples.items():
        records[name]["seconds"] = found.summary()
        ours = samples.get(records[name]["against"])
        if ours is not None and ours is not found:
            records[name]["times_ours"] = ratio(found, ours)
    for worker in active:
        worker.ask("drop")
    return list(records.values())


def duration(seconds: dict[str, Any]) -> str:
    """ "1,403 [1,391, 1,418] µs", with a dagger where it was disturbed."""
    scale, unit = (1e6, "µs") if seconds["median"] < 0.01 else (1e3, "ms")
    digits = 0 if unit == "µs" and seconds["median"] >= 1e-4 else 1
    middle, q1, q3 = (f"{seconds[key] * scale:,.{digits}f}" for key in ("median", "q1", "q3"))
    return f"{middle} [{q1}, {q3}] {unit}{'†' if seconds['disturbed'] else ''}"


def tables(records: Sequence[dict[str, Any]]) -> str:
    """Markdown: a table for each op, shape and pattern; contenders down, rows of x across; the ratio to ours behind."""
    lines: list[str] = []
    groups = list(dict.fromkeys((r["op"], r["outputs"], r["inputs"], r["pattern"], r["threads"]) for r in records))
    for group in groups:
        op, outputs, inputs, pattern, threads = group
        chosen = [r for r in records if (r["op"], r["outputs"], r["inputs"], r["pattern"], r["threads"]) == group]
        rows = sorted({r["rows"] for r in chosen})
        lines += [f"**{op}, {outputs} × {inputs}, {pattern} pruned, {threads} threads**", ""]
        lines += ["| contender | " + " | ".join(f"M = {m}" for m in rows) + " |", "|---" * (len(rows) + 1) + "|"]
        for name in dict.fromkeys(r["contender"] for r in chosen):
            cells = {r["rows"]: _cell(r) for r in chosen if r["contender"] == name}
            lines.append(f"| {name} | " + " | ".join(cells.get(m, "") for m in rows) + " |")
        lines.append("")
    return "\n".join(lines)


def _cell(record: dict[str, Any]) -> str:
    if "seconds" not in record:
        return "failed"
    times = record.get("times_ours")
    return duration(record["seconds"]) + (f" **{times['median']:.2f}×**" if times else "")


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    rivals = Rivals(options)
    records: list[dict[str, Any]] = []
    try:
        for op, together in cases(options):
            found = measure(rivals, options, op, together)
            records += found
            for record in found:
                what = f"{record['op']} {record['outputs']}x{record['inputs']} M={record['rows']} {record['contender']}"
                print(f"{what}: {record.get('failed') or _cell(record)}", file=sys.stderr)
            if options.json:  # after each case, so that a run that is stopped leaves what it has
                options.json.write_text(json.dumps(report(rivals, options, records), indent=1) + "\n", encoding="utf-8")
    finally:
        rivals.close()
    text = tables(records)
    for process, why in rivals.missing.items():
        text += f"{process}: not measured: {why}\n"
    print(text)
    if options.markdown:
        options.markdown.write_text(text, encoding="utf-8")


def report(rivals: Rivals, options: argparse.Namespace, records: list[dict[str, Any]]) -> dict[str, Any]:
    """What --json writes."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(command, cwd=HERE, capture_output=True, text=True, check=False)
    return {
        "machine": machine(), "system": platform.platform(), "python": platform.python_version(),
        "commit": commit.stdout.strip(), "load": os.getloadavg(), "threads": options.threads, "isa": options.isa,
        "huge_pages": options.huge_pages, "about": rivals.about, "missing": rivals.missing, "results": records,
    }  # fmt: skip


if __name__ == "__main__":
    main()
