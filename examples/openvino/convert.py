"""Writes a packed Llama (`restorelcc pack`) as an OpenVINO model: convert.py PACKED OUT --extension LIBRARY.

It needs openvino and numpy; no torch, and not the package restorelcc. OUT is a new directory, whole or absent:
openvino_model.xml and .bin, config.json, generation_config.json and the tokenizer files.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

import openvino as ov
from llama_graph import build
from packed_directory import PackedDirectory, RefusedError

_NOT_COPIED = ("restorelcc.json", "packed.safetensors")
_CONSTANT = re.compile(r'(<data element_type="\w+"[^<>]* )offset="(\d+)" size="(\d+)"')
_ALIGNMENT = 64  # bytes


def convert(packed: Path, out: Path, extension: Path, compensation: str | None) -> None:
    """Writes the directory `out`. RefusedError: what is wrong, in a sentence, and nothing is there."""
    if out.exists():
        raise RefusedError(f"{out} exists; give a new directory")
    if not extension.is_file():
        raise RefusedError(f"{extension} is no file; build examples/openvino first")
    directory = PackedDirectory(packed, extension)
    model = build(directory, extension, directory.compensation(compensation))
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        for file in packed.iterdir():
            if file.is_file() and file.name not in _NOT_COPIED:
                shutil.copyfile(file, folder / file.name)
        # What is fp32 stays fp32.
        ov.save_model(model, folder / "unaligned.xml", compress_to_fp16=False)
        _align(folder / "unaligned", folder / "openvino_model")
        folder.chmod(0o777 & ~_umask())
        folder.rename(out)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _align(saved: Path, out: Path) -> None:
    """saved.xml and .bin become out.xml and .bin, whose constants begin at multiples of 64 bytes.

    OpenVINO writes one constant right behind the other. Then most weights would be copied when the model is read, and
    once more by the plugin; aligned ones stay where the file is mapped.
    """
    old, new = saved.with_suffix(".bin"), out.with_suffix(".bin")
    moved: dict[tuple[int, int], int] = {}
    with old.open("rb") as source, new.open("wb") as target:

        def move(found: re.Match[str]) -> str:
            place = int(found[2]), int(found[3])
            if place not in moved:
                target.write(bytes(-target.tell() % _ALIGNMENT))
                moved[place] = target.tell()
                source.seek(place[0])
                target.write(source.read(place[1]))
            return f'{found[1]}offset="{moved[place]}" size="{found[3]}"'

        text = _CONSTANT.sub(move, saved.with_suffix(".xml").read_text(encoding="utf-8"))
    out.with_suffix(".xml").write_text(text, encoding="utf-8")
    for suffix in (".xml", ".bin"):
        saved.with_suffix(suffix).unlink()


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
    except (RefusedError, OSError) as problem:
        print(f"convert.py: {problem}", file=sys.stderr)
        return 2
    except RuntimeError as problem:  # OpenVINO's exceptions
        print(f"convert.py: OpenVINO refused the model: {problem}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
