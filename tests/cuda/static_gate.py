"""The static gate: what the compiled kernels must and must not contain, read from the machine code. Needs no GPU.

    python tests/cuda/static_gate.py build/core/librestorelcc.so [--table docs/gate.md]

Takes objects and libraries. Every kernel found must have a budget in budgets.json and keep it on every
architecture; every budget must have a kernel. Prints a table in Markdown, and one sentence per violation; the exit
status is 0, 1 (violations) or 2 (could not look).
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from control_flow import UncountableError, all_loops, blocks_of, longest_way, loops_of
from sass import Kernel, ToolError, find_cuobjdump, read_kernels

BUDGETS = Path(__file__).with_name("budgets.json")

# A multiprocessor of each architecture (CUDA C++ Programming Guide, "Technical Specifications per Compute Capability"):
# warps, blocks, KB of shared memory. All have 64 K registers, given out to warps by 256, and keep 1 KB of shared memory
# per block for themselves.
MULTIPROCESSORS = {
    "sm_80": (64, 32, 164),
    "sm_86": (48, 16, 100),
    "sm_89": (48, 24, 100),
    "sm_90": (64, 32, 228),
    "sm_100": (64, 32, 228),
}


@dataclass(frozen=True)
class Around:
    """The loop around the main loop: what one turn of it covers."""

    weights: int  # dense weights, per lane
    main_turns: int  # of the main loop
    other_turns: int  # of each other loop inside
    limit: float
    every_other: tuple[str, ...] = ()  # instructions of what is done in every second turn only


@dataclass(frozen=True)
class LoopBudget:
    """What the main loop (the innermost loop with most marked instructions) may issue per dense weight."""

    weights: int  # dense weights that one turn of one lane covers
    limit: float  # instructions per dense weight
    why: str  # where `weights` comes from
    marker: str = "FFMA"
    marked: int = 0  # markers in a turn, which is checked; 0: one per dense weight
    avoid: tuple[str, ...] = ()  # instructions that only rare ways have
    around: Around | None = None
    architectures: tuple[str, ...] = ()  # that the limits hold on; empty: all. The counts are shown for all.


@dataclass(frozen=True)
class Budget:
    """What one kernel may use and must contain. Instructions: what to call them -> regular expression."""

    kernel: str  # pattern as of file names: "head_moments_tile<*, true>"
    why: str
    threads: int  # per block, for the count of resident warps
    registers: int  # at most
    shared: int = 0  # static bytes, exactly
    # Bytes per block at launch, for the count of resident warps; where kernels of one budget differ: by patterns of
    # their names.
    dynamic_shared: int | Mapping[str, int] = 0
    warps: int = 0  # resident per multiprocessor, at least
    required: Mapping[str, str] = field(default_factory=dict)
    forbidden: Mapping[str, str] = field(default_factory=dict)
    loop: LoopBudget | None = None

    def dynamic_shared_of(self, kernel: str) -> int:
        """Of the first pattern that matches."""
        if isinstance(self.dynamic_shared, int):
            return self.dynamic_shared
        found = [count for pattern, count in self.dynamic_shared.items() if fnmatch.fnmatchcase(kernel, pattern)]
        if not found:
            raise ToolError(f"budgets: {self.kernel}: dynamic_shared has no pattern for {kernel}")
        return found[0]


@dataclass(frozen=True)
class Budgets:
    """The whole data file."""

    architectures: tuple[str, ...]
    forbidden: Mapping[str, str]  # in every kernel
    kernels: tuple[Budget, ...]


@dataclass
class Measured:
    """What the table shows of one kernel on one architecture."""

    kernel: Kernel
    budget: Budget
    warps: int
    counts: list[int]  # of each required instruction
    main: float | None = None  # instructions per dense weight
    around: float | None = None


@dataclass
class Verdict:
    """All that was measured, and a sentence for each violation."""

    measured: list[Measured] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)


Made = TypeVar("Made", Budget, LoopBudget, Around)


def _make(made: type[Made], given: Mapping[str, Any]) -> Made:
    unknown = given.keys() - {one.name for one in fields(made)}
    if unknown:
        raise ToolError(f"budgets: {made.__name__} has no {', '.join(sorted(unknown))}")
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
    try:
        return made(**values)
    except TypeError as error:
        raise ToolError(f"budgets: {given.get('kernel', made.__name__)}: {error}") from error


def read_budgets(path: Path) -> Budgets:
    """budgets.json, with every key known."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        kernels = []
        for given in data["kernels"]:
            entry = dict(given)
            if "loop" in entry:
                loop = dict(entry["loop"])
                if "around" in loop:
                    loop["around"] = _make(Around, loop["around"])
                entry["loop"] = _make(LoopBudget, loop)
            kernels.append(_make(Budget, entry))
        return Budgets(tuple(data["architectures"]), dict(data["forbidden"]), tuple(kernels))
    except (OSError, ValueError, KeyError) as error:
        raise ToolError(f"{path} cannot be used: {error!r}") from error


def resident_warps(architecture: str, threads: int, registers: int, shared: int) -> int:
    """Warps of one kernel that a multiprocessor holds at a time."""
    warps, blocks, kilobytes = MULTIPROCESSORS[architecture]
    block_warps = -(-threads // 32)
    warp_registers = -(-registers * 32 // 256) * 256
    by_registers = 65536 // 4 // warp_registers * 4 // block_warps  # each quarter has its own registers
    by_shared = kilobytes * 1024 // (-(-(shared + 1024) // 128) * 128)
    return min(warps // block_warps, blocks, by_registers, by_shared) * block_warps


def count_loop(kernel: Kernel, loop: LoopBudget) -> tuple[float, float | None]:
    """Instructions per dense weight: of the main loop alone, and with its share of the loop around it."""
    blocks = blocks_of(kernel.instructions)
    marks = re.compile(loop.marker)
    marked = [sum(bool(marks.match(one.opcode)) for one in block.instructions) for block in blocks]
    innermost = [  # loops inside of them that have no mark are their own (a ragged edge, read one by one)
        (sum(marked[index] for index in inner.blocks), inner, outer)
        for inner, outer in all_loops(loops_of(blocks))
        if not any(marked[index] for deeper in inner.inner for index in deeper.blocks)
    ]
    most = max((count for count, _, _ in innermost), default=0)
    if most == 0:
        raise UncountableError(f"no loop has {loop.marker}")
    main = around = 0.0
    for count, inner, outer in innermost:
        if 2 * count < most:  # the remainder of something unrolled
            continue
        way = longest_way(blocks, inner, loop.marker, list(loop.avoid), others=None)
        if way.marked != (loop.marked or loop.weights):
            raise UncountableError(
                f"a turn has {way.marked} {loop.marker}, where covering {loop.weights} weights "
                f"takes {loop.marked or loop.weights}"
            )
        main = max(main, way.instructions / loop.weights)
        if loop.around:
            if outer is None:
                raise UncountableError("there is no loop around the main loop")
            turns = {inner.head: loop.around.main_turns}
            avoids = [loop.avoid, (*loop.avoid, *loop.around.every_other)]  # two turns, one after the other
            ways = [longest_way(blocks, outer, loop.marker, list(a), turns, loop.around.other_turns) for a in avoids]
            around = max(around, sum(one.instructions for one in ways) / 2 / loop.around.weights)
    return main, around if loop.around else None


def _check_loop(measured: Measured, loop: LoopBudget) -> list[str]:
    kernel = measured.kernel
    try:
        measured.main, measured.around = count_loop(kernel, loop)
    except UncountableError as error:
        return [f"its main loop cannot be counted: {error}"]
    if loop.architectures and kernel.architecture not in loop.architectures:
        return []
    said = []
    if measured.main > loop.limit:
        said.append(f"{measured.main:.2f} instructions per dense weight in the main loop, allowed are {loop.limit:g}")
    if loop.around and measured.around is not None and measured.around > loop.around.limit:
        said.append(
            f"{measured.around:.2f} instructions per dense weight with the loop around the main loop, "
            f"allowed are {loop.around.limit:g}"
        )
    return said


def _check(kernel: Kernel, budget: Budget, forbidden: Mapping[str, str]) -> tuple[Measured, list[str]]:
    def count(pattern: str) -> int:
        wanted = re.compile(pattern)
        return sum(bool(wanted.match(one.opcode)) for one in kernel.instructions)

    shared = kernel.shared + budget.dynamic_shared_of(kernel.name)
    warps = resident_warps(kernel.architecture, budget.threads, kernel.registers, shared)
    measured = Measured(kernel, budget, warps, [count(pattern) for pattern in budget.required.values()])
    said = []
    if kernel.registers > budget.registers:
        said.append(f"{kernel.registers} registers, allowed are {budget.registers}")
    if kernel.stack:
        said.append(f"a stack of {kernel.stack} bytes (spilled registers, or an array indexed at run time)")
    if kernel.local:
        said.append(f"{kernel.local} bytes of local memory")
    if kernel.shared != budget.shared:
        said.append(f"{kernel.shared} bytes of static shared memory, the budget says {budget.shared}")
    if warps < budget.warps:
        said.append(f"{warps} resident warps on a multiprocessor, at least {budget.warps} are asked for")
    for name, found in zip(budget.required, measured.counts, strict=True):
        if found == 0:
            said.append(f"no {name}, which it must have")
    for name, pattern in {**forbidden, **budget.forbidden}.items():
        if found := count(pattern):
            said.append(f"{found} {name}, which it must not have")
    if budget.loop:
        said += _check_loop(measured, budget.loop)
    return measured, said


def judge(kernels: list[Kernel], budgets: Budgets) -> Verdict:
    """Holds every kernel against its budget, which is the first whose pattern matches."""
    verdict = Verdict()
    found: dict[str, set[str]] = {budget.kernel: set() for budget in budgets.kernels}
    for kernel in kernels:
        where = f"{kernel.architecture} {kernel.name}"
        budget = next((one for one in budgets.kernels if fnmatch.fnmatchcase(kernel.name, one.kernel)), None)
        if kernel.architecture not in budgets.architectures:
            verdict.violations.append(f"{where}: budgets.json does not name this architecture.")
        elif budget is None:
            verdict.violations.append(f"{where}: it has no budget.")
        else:
            found[budget.kernel].add(kernel.architecture)
            measured, said = _check(kernel, budget, budgets.forbidden)
            verdict.measured.append(measured)
            verdict.violations += [f"{where}: {sentence}." for sentence in said]
    for pattern, architectures in found.items():
        verdict.violations += [
            f"{architecture} {pattern}: no kernel of this name was compiled."
            for architecture in budgets.architectures
            if architecture not in architectures
        ]
    return verdict


def _together(values: list[str]) -> str:
    return values[0] if len(set(values)) == 1 else " / ".join(values)


def table(verdict: Verdict, architectures: tuple[str, ...]) -> str:
    """One row per kernel in Markdown; where architectures differ, all values in their order."""
    lines = [
        f"Values of {', '.join(architectures)}, in this order; one value where all agree.",
        "",
        "| kernel | registers | shared bytes: static + dynamic | warps per SM | must have | per dense weight |",
        "|---|---|---|---|---|---|",
    ]
    rows: dict[str, list[Measured]] = {}
    order = {name: index for index, name in enumerate(architectures)}
    for one in sorted(verdict.measured, key=lambda one: (one.kernel.name, order[one.kernel.architecture])):
        rows.setdefault(one.kernel.name, []).append(one)
    for name, row in rows.items():
        budget = row[0].budget
        required = [
            f"{required_name} {_together([str(one.counts[index]) for one in row])}"
            for index, required_name in enumerate(budget.required)
        ]
        per_weight = ""
        if budget.loop:
            per_weight = _together(["?" if one.main is None else f"{one.main:.2f}" for one in row])
            if budget.loop.around:
                around = ["?" if one.around is None else f"{one.around:.2f}" for one in row]
                per_weight += f"; with the loop around: {_together(around)}"
        cells = [
            f"`{name}`",
            _together([str(one.kernel.registers) for one in row]),
            f"{_together([str(one.kernel.shared) for one in row])} + {budget.dynamic_shared_of(name)}",
            _together([str(one.warps) for one in row]),
            ", ".join(required),
            per_weight,
        ]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Reads, judges, prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("objects", nargs="+", type=Path, help="objects or libraries that hold kernels")
    parser.add_argument("--budgets", type=Path, default=BUDGETS)
    parser.add_argument("--architectures", nargs="+", help="look at these only (for a build of fewer)")
    parser.add_argument("--table", type=Path, help="write the table here too")
    options = parser.parse_args(arguments)
    try:
        budgets = read_budgets(options.budgets)
        cuobjdump = find_cuobjdump()
        kernels = [kernel for path in options.objects for kernel in read_kernels(path, cuobjdump)]
    except ToolError as error:
        print(f"static gate: {error}", file=sys.stderr)
        return 2
    if options.architectures:
        budgets = Budgets(tuple(options.architectures), budgets.forbidden, budgets.kernels)
        kernels = [kernel for kernel in kernels if kernel.architecture in options.architectures]
    verdict = judge(kernels, budgets)
    text = table(verdict, budgets.architectures)
    print(text)
    if options.table:
        options.table.write_text(text, encoding="utf-8")
    for sentence in verdict.violations:
        print(f"violation: {sentence}", file=sys.stderr)
    print(f"static gate: {len(verdict.measured)} kernels, {len(verdict.violations)} violations")
    return 1 if verdict.violations or not kernels else 0


if __name__ == "__main__":
    sys.exit(main())
