"""What cuobjdump says of the kernels in an object or a library: resources and machine instructions (SASS)."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

HOW_TO_GET_CUOBJDUMP = (
    "put it on PATH, name it in CUOBJDUMP, or `pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm` "
    "(a CUDA toolkit has both)"
)


class ToolError(Exception):
    """A tool is missing, or does not do what it should; the sentence says what to do."""


@dataclass(frozen=True)
class Instruction:
    """One line of SASS: `@!P0 BRA 0x140` at its address."""

    address: int
    guard: str  # "", "@P0", "@!UP1"
    opcode: str  # with its modifiers: "LDG.E.128.CONSTANT"
    operands: str

    @property
    def target(self) -> int | None:
        """The address that the last operand names, for instructions that jump."""
        found = re.search(r"0x([0-9a-f]+)$", self.operands)
        return int(found[1], 16) if found else None


@dataclass
class Kernel:
    """One kernel as compiled for one architecture."""

    symbol: str
    architecture: str  # "sm_80"
    name: str = ""  # demangled, without namespaces and parameters: "sparse_linear_decode<1, 1>"
    registers: int = 0
    stack: int = 0  # bytes
    shared: int = 0  # bytes, static
    local: int = 0  # bytes
    instructions: list[Instruction] = field(default_factory=list)


def find_cuobjdump() -> str:
    """CUOBJDUMP, PATH, then the PyPI wheel of this interpreter."""
    wheel = Path(sysconfig.get_path("purelib")) / "nvidia"
    places = [os.environ.get("CUOBJDUMP"), shutil.which("cuobjdump"), "/usr/local/cuda/bin/cuobjdump"]
    places += [str(path) for path in sorted(wheel.glob("*/bin/cuobjdump"))]
    for place in places:
        if place and Path(place).is_file():
            return place
    raise ToolError(f"cuobjdump was not found: {HOW_TO_GET_CUOBJDUMP}")


def _lines(command: list[str]) -> Iterator[str]:
    """The output line by line as it comes: the SASS of all kernels is hundreds of megabytes."""
    beside = str(Path(command[0]).resolve().parent)  # where the wheel of nvdisasm puts it; cuobjdump looks in PATH
    environment = {**os.environ, "PATH": os.pathsep.join([os.environ.get("PATH", os.defpath), beside])}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        yield from process.stdout
        errors = process.stderr.read()
    if process.returncode != 0:
        raise ToolError(f"{' '.join(command)} failed: {errors.strip()}")


_ARCHITECTURE = re.compile(r"^arch = (\w+)")
_RESOURCES_OF = re.compile(r"^ Function ([\w$.]+):")
_FUNCTION = re.compile(r"^\s+Function : ([\w$.]+)")
_INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:(@!?U?P[T0-9]+)\s+)?([A-Z][\w.]*)\s*([^;]*?)\s*;")


def _own_shared(counted: int, architecture: str) -> int:
    """Without the 1 KB per block that the system keeps: from sm_90 on it is counted where any is used."""
    return max(counted - 1024, 0) if int(re.sub(r"\D", "", architecture)) >= 90 else counted


def parse_resources(lines: Iterable[str]) -> list[Kernel]:
    """Kernels without instructions, from `cuobjdump -res-usage`."""
    kernels: list[Kernel] = []
    architecture = symbol = ""
    for line in lines:
        if found := _ARCHITECTURE.match(line):
            architecture = found[1]
        elif found := _RESOURCES_OF.match(line):
            symbol = found[1]
        elif symbol and "REG:" in line:
            if not architecture:
                raise ToolError("a bare cubin does not say its architecture here: give the object or the library")
            numbers = {key: int(value) for key, value in re.findall(r"(\w+):(\d+)", line)}
            kernels.append(
                Kernel(
                    symbol,
                    architecture,
                    registers=numbers["REG"],
                    stack=numbers["STACK"],
                    shared=_own_shared(numbers["SHARED"], architecture),
                    local=numbers["LOCAL"],
                )
            )
            symbol = ""
    return kernels


def parse_instructions(lines: Iterable[str]) -> dict[tuple[str, str], list[Instruction]]:
    """(architecture, symbol) -> instructions, from `cuobjdump -sass`."""
    functions: dict[tuple[str, str], list[Instruction]] = {}
    architecture = ""
    current: list[Instruction] = []
    for line in lines:
        if found := _INSTRUCTION.match(line):
            current.append(Instruction(int(found[1], 16), found[2] or "", found[3], found[4]))
        elif found := _ARCHITECTURE.match(line):
            architecture = found[1]
        elif found := _FUNCTION.match(line):
            current = functions.setdefault((architecture, found[1]), [])
    return functions


def short_name(demangled: str) -> str:
    """`void a::(anonymous namespace)::f<(int)1, true>(a::P)` -> `f<1, true>`."""
    text = re.sub(r"\((?:int|unsigned int|bool|long)\)(?=-?[\w])", "", demangled.replace("(anonymous namespace)::", ""))
    depth = 0
    for end, letter in enumerate(text):  # the parameters begin at the first parenthesis outside of <>
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0:
            text = text[:end]
            break
    return re.sub(r"\b\w+::", "", text).removeprefix("void ")


def demangle(symbols: list[str]) -> list[str]:
    """By c++filt, which comes with every host compiler that nvcc works with."""
    if shutil.which("c++filt") is None:
        raise ToolError("c++filt was not found: install binutils")
    done = subprocess.run(["c++filt"], input="\n".join(symbols), capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def read_kernels(path: Path, cuobjdump: str) -> list[Kernel]:
    """Every kernel of every architecture in an object or a library."""
    kernels = parse_resources(_lines([cuobjdump, "-res-usage", str(path)]))
    instructions = parse_instructions(_lines([cuobjdump, "-sass", str(path)]))
    names = demangle([kernel.symbol for kernel in kernels])
    for kernel, name in zip(kernels, names, strict=True):
        kernel.name = short_name(name)
        kernel.instructions = instructions.get((kernel.architecture, kernel.symbol), [])
        if not kernel.instructions:
            raise ToolError(f"{cuobjdump} -sass {path} shows no instructions of {kernel.name}, {kernel.architecture}")
    return kernels
