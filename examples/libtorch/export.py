"""A packed model as one file that libtorch runs, by AOTInductor: ids [1, T] int64 -> logits [1, T, V] float32.

    python examples/libtorch/export.py packed model.pt2

See README.md.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

FORMAT = "1"  # of what main.cpp reads from the package's metadata


class RefusalError(Exception):
    """What is wrong with the call, as one sentence."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise RefusalError(f"{message}; see --help")


def parse(words: list[str] | None) -> argparse.Namespace:
    """The command line; None: that of the process."""
    parser = _Parser(prog="export.py", description="Compiles a packed model for libtorch.")
    parser.add_argument("packed", type=Path, help="directory that `restorelcc pack` wrote")
    parser.add_argument("out", type=Path, help="the package, NAME.pt2")
    parser.add_argument("--most-tokens", type=int, metavar="N", help="the longest input; all positions by default")
    parser.add_argument("--compensation", metavar="NAME", help="one of the model's, or none; its own by default")
    return parser.parse_args(words)


def load(path: Path) -> Any:
    """The packed model in the directory `path`."""
    import restorelcc
    from restorelcc.packed_record import is_packed

    if not is_packed(path):
        raise RefusalError(f"{path} is not a packed model; `restorelcc pack MODEL --out DIR` makes one")
    return restorelcc.load(path)


def export(model: Any, most_tokens: int, compensation: str | None) -> Any:
    """The graph, with the compensation of that name; None: with what the model does by itself."""
    import restorelcc
    from restorelcc.logits_export import export_logits

    if compensation is None:
        chosen: Any = nullcontext()
    else:
        chosen = restorelcc.compensations(model, None if compensation == "none" else compensation)
    with chosen:
        return export_logits(model, most_tokens=most_tokens)


def compile_package(program: Any, out: Path, metadata: dict[str, str]) -> None:
    """Writes the package: whole or not at all."""
    import torch

    # A directory and not another name, for the package's own folders are named after the file.
    with TemporaryDirectory(prefix=f".{out.stem}.partial.", dir=out.parent) as folder:
        partial = Path(folder) / out.name
        settings = {
            "aot_inductor.metadata": metadata,
            "cpp.dynamic_threads": True,  # else every loop is of this process's number of threads for ever
        }
        torch._inductor.aoti_compile_and_package(program, package_path=str(partial), inductor_configs=settings)
        partial.replace(out)


def run(words: list[str] | None) -> None:
    """Checks the call before anything is loaded, then does what it says."""
    options = parse(words)
    out: Path = options.out
    if out.suffix != ".pt2":
        raise RefusalError(f"the package is called {out.name}; its name must end in .pt2")
    if out.exists():
        raise RefusalError(f"{out} is there already; remove it, or give another name")
    if not out.parent.is_dir():
        raise RefusalError(f"there is no directory {out.parent} to write {out.name} into")
    try:
        from restorelcc.logits_export import positions_of

        model = load(options.packed)
        positions = positions_of(model, options.most_tokens)
        program = export(model, positions, options.compensation)
    except (ValueError, ImportError) as error:
        raise RefusalError(str(error)) from error
    sizes = {"vocabulary": str(model.config.vocab_size), "positions": str(positions)}
    compile_package(program, out, {"restorelcc": FORMAT, **sizes})
    print(f"{out}: {out.stat().st_size:,} bytes, 1 to {positions} tokens")


def main(words: list[str] | None = None) -> int:
    """0: written. 2: a call or a model that cannot be exported. 1: what went wrong in the compiler or on the disk."""
    try:
        run(words)
    except RefusalError as refusal:
        print(f"export.py: {refusal}", file=sys.stderr)
        return 2
    except Exception as error:  # of torch's code generator, of the C++ compiler that it calls, of the disk
        print(f"export.py: {type(error).__name__}: {' '.join(str(error).split())[:600]}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
