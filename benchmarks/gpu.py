"""One command on a machine with an NVIDIA GPU: builds, checks everything on the device, and times it.

    python benchmarks/gpu.py --json gpu.json --png gpu.png          (--quick: a short run)

1. builds librestorelcc for the device's architecture (build/gpu; --skip-build takes what is there),
2. says what the device is: name, driver, clocks,
3. instructions: each PTX wrapper against its definition, the metadata layout of mma.sp first,
4. ops: every CUDA op over ragged shapes, types and patterns against the library's own float64 reference, twice (the
   same bits) and from a captured graph (the same bits),
5. sanitizer: compute-sanitizer's memcheck, racecheck and synccheck over a short matrix, where the tool is present,
6. times: every kernel and its rivals in turns between CUDA events, the second-level cache cold, against the roof of
   the same run (copy bandwidth, cuBLAS product).

Needs torch with CUDA (for memory, events, and as a rival), nvcc and cmake; no installed restorelcc. The exit status
is 0; 1 where something is wrong; 2 where nothing could be run, with one sentence. --emulator PATH runs the same code
on the emulator of tests/simt (make test-cuda builds it): its times mean nothing.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from on_device import build, grad_comp_cases, instructions, linear_cases, loss_cases, moments_cases, sanitizer
from on_device.abi import ROOT, Library
from on_device.device import CudaDevice, Device, DeviceLostError, EmulatedDevice, NoDeviceError, Queue
from on_device.problem import check
from on_device.stopwatch import measured_roof
from on_device.times import hold
from on_device.verdict import Verdict

PARTS = ("instructions", "ops", "sanitizer", "times")
CASES = (linear_cases, grad_comp_cases, loss_cases, moments_cases)


@dataclass(frozen=True)
class Options:
    """As on the command line."""

    only: tuple[str, ...] = PARTS
    ops: str = ""
    quick: bool = False
    seconds: float = 1.0


def versions(library: Library) -> dict[str, Any]:
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": commit.stdout.strip() or None, "python": platform.python_version(), "torch": torch.__version__,
        "cuda_of_torch": torch.version.cuda, "library": json.loads(library.build_info()),
    }  # fmt: skip


def check_ops(queue: Queue, options: Options, verdict: Verdict) -> None:
    """Every op that the headers declare; one without cases is a problem."""
    for op in queue.library.interface.cuda_ops():
        if not re.search(options.ops, op):
            continue
        cases = next((module for module in CASES if op in module.OPS), None)
        if cases is None:
            verdict.add(op, "all", "no file of benchmarks/on_device has cases for this op")
            continue
        for make in cases.problems(queue.library, op, options.quick):
            check(make(), queue, verdict)
        print(f"  {op}: {verdict.checks[op]} cases", flush=True)


def sanitized_arguments() -> list[str]:
    """What compute-sanitizer runs: this very script, the quick checks. No graphs: with exact allocations there are
    none.
    """
    return [str(Path(__file__)), "--skip-build", "--quick", "--no-graphs", "--only", "instructions", "--only", "ops"]


def run(device: Device, libraries: build.Libraries, options: Options) -> tuple[dict[str, Any], Verdict]:
    """All parts; what the JSON says."""
    library, verdict = Library(libraries.product), Verdict()
    queue = Queue(library, device)
    report: dict[str, Any] = {"device": device.describe(), "versions": versions(library)}
    print(json.dumps(report["device"], indent=2), flush=True)
    try:
        run_parts(queue, libraries, options, report, verdict)
    except DeviceLostError as error:
        verdict.add("device", "lost", str(error))
    report["checks"] = verdict.as_json()
    print("\n".join(verdict.lines()), flush=True)
    return report, verdict


def run_parts(
    queue: Queue, libraries: build.Libraries, options: Options, report: dict[str, Any], verdict: Verdict
) -> None:
    """In this order: what would make all later numbers wrong comes first. Fills report and verdict."""
    device = queue.device
    if "instructions" in options.only:
        wrappers = instructions.Instructions(libraries.instructions, device)
        instructions.check(wrappers, verdict)
        report["mma_error_in_units_of_2^-24"] = instructions.rounding_of_mma(wrappers)
    if "ops" in options.only:
        check_ops(queue, options, verdict)
    if "sanitizer" in options.only:
        program = None if device.emulated else sanitizer.find()
        report["sanitizer"] = sanitizer.check(program, sanitized_arguments(), verdict)
    if "times" in options.only:
        report |= timed(queue, options, verdict)


def timed(queue: Queue, options: Options, verdict: Verdict) -> dict[str, Any]:
    """The roof, then every contest under it, then the roof again: a device that has grown hot says so."""
    roof = measured_roof(queue.device, seconds=options.seconds, quick=options.quick)
    print(f"roof of this run: {json.dumps({k: v for k, v in vars(roof.roof).items() if k != 'name'})}", flush=True)
    times = hold(
        queue, roof.roof, verdict, quick=options.quick, seconds=options.seconds,
        chosen=lambda op: re.search(options.ops, op) is not None, said=lambda line: print(line, flush=True),
    )  # fmt: skip
    again = measured_roof(queue.device, seconds=options.seconds, quick=options.quick)
    roofs = {"roof": vars(roof.roof), "roof_details": roof.details, "roof_afterwards": vars(again.roof)}
    weights = "half pruned at random places; 2:4 for the 2:4 rows"
    return {**roofs, "times": times, "cold_cache": True, "weights": weights}


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PARTS, action="append", help="this part; may be given several times")
    parser.add_argument("--op", default="", metavar="REGEX", help="ops (checked and timed) whose name matches")
    parser.add_argument("--quick", action="store_true", help="few cases, few shapes, short bursts")
    parser.add_argument("--seconds", type=float, help="of measuring per contest (default 2, with --quick 0.3)")
    parser.add_argument("--json", type=Path, help="writes everything that was found")
    parser.add_argument("--png", type=Path, help="draws what was timed")
    parser.add_argument("--build", type=Path, default=ROOT / "build" / "gpu", help="build folder (default build/gpu)")
    parser.add_argument("--skip-build", action="store_true", help="takes what is in the build folder")
    parser.add_argument("--no-graphs", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--emulator", type=Path, metavar="LIBRARY", help="librlcc_cuda_simt.so in place of a device")
    return parser.parse_args(arguments)


def prepared(arguments: argparse.Namespace) -> tuple[Device, build.Libraries]:
    """The device first: without one nothing is built."""
    if arguments.emulator is not None:
        if not arguments.emulator.exists():
            raise NoDeviceError(f"{arguments.emulator} is not there; make test-cuda builds it.")
        return EmulatedDevice(arguments.emulator), build.Libraries(arguments.emulator, arguments.emulator)
    device = CudaDevice(graphs=not arguments.no_graphs)
    if arguments.skip_build:
        return device, build.built(arguments.build)
    return device, build.build(arguments.build, device.architecture)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parsed(arguments)
    try:
        device, libraries = prepared(options)
    except (NoDeviceError, build.BuildError) as error:
        print(error, file=sys.stderr)
        return 2
    seconds = options.seconds if options.seconds is not None else (0.3 if options.quick else 2.0)
    chosen = Options(tuple(options.only or PARTS), options.op, options.quick, seconds)
    report, verdict = run(device, libraries, chosen)
    report["arguments"] = list(arguments if arguments is not None else sys.argv[1:])
    for line in written(report, options):
        print(line)
    return 0 if verdict.passed else 1


def written(report: dict[str, Any], options: argparse.Namespace) -> Iterator[str]:
    """Writes the files that were asked for."""
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        yield f"wrote {options.json}"
    if options.png is not None:
        from on_device.picture import draw

        yield f"wrote {options.png}" if draw(report, options.png) else "nothing was timed, so nothing is drawn"


if __name__ == "__main__":
    sys.exit(main())
