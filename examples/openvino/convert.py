"""Writes a packed Llama (`restorelcc pack`) as an OpenVINO model: convert.py PACKED OUT --extension LIBRARY.

It needs openvino and numpy; no torch, and not the package restorelcc. OUT is a new directory, whole or absent:
openvino_model.xml and .bin, config.json, generation_config.json and the tokenizer files.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

import openvino as ov
from llama_graph import build
from packed_directory import PackedDirectory, Refusal

_NOT_COPIED = ("restorelcc.json", "packed.safetensors")


def convert(packed: Path, out: Path, extension: Path, compensation: str | None) -> None:
    """Writes the directory `out`. Refusal: what is wrong, in a sentence, and nothing is there."""
    if out.exists():
        raise Refusal(f"{out} exists; give a new directory")
    if not extension.is_file():
        raise Refusal(f"{extension} is no file; build examples/openvino first")
    directory = PackedDirectory(packed, extension)
    model = build(directory, extension, directory.compensation(compensation))
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        for file in packed.iterdir():
            if file.is_file() and file.name not in _NOT_COPIED:
                shutil.copyfile(file, folder / file.name)
        # What is fp32 stays fp32.
        ov.save_model(model, folder / "openvino_model.xml", compress_to_fp16=False)
        folder.chmod(0o777 & ~_umask())
        folder.rename(out)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def main() -> int:
    """The command line: 0, or 2 and a sentence on standard error."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("packed", type=Path, metavar="PACKED", help="directory that `restorelcc pack` wrote")
    parser.add_argument("out", type=Path, metavar="OUT", help="new directory")
    parser.add_argument("--extension", type=Path, required=True, help="librestorelcc_openvino.so, as built here")
    parser.add_argument("--compensation", help='a name, or "none" (default: the model\'s own default)')
    asked = parser.parse_args()
    try:
        convert(asked.packed, asked.out, asked.extension, asked.compensation)
    except (Refusal, OSError) as problem:
        print(f"convert.py: {problem}", file=sys.stderr)
        return 2
    except RuntimeError as problem:  # OpenVINO's exceptions
        print(f"convert.py: OpenVINO refused the model: {problem}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
