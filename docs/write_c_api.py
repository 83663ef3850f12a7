"""Writes docs/c_api.md from the headers in csrc/include/restorelcc: their comments, declarations and structs.

    python docs/write_c_api.py            writes the page
    python docs/write_c_api.py --check    says whether it is up to date

What the headers say once for many functions stands beside each of them here: ownership, memory, threads. A function
that no rule below speaks of stops the script.
"""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HEADERS = ("restorelcc.h", "params.h", "model.h", "cuda.h")
PAGE = ROOT / "docs" / "c_api.md"

_BORROWS = "Borrows every array for the call and keeps none; the caller owns inputs and outputs."
_ELEMENTS = "Arrays at multiples of their element's size, strides in elements."
_ANY = "Any thread, any number at once; callers that write to the same output wait for each other themselves."
_OPEN = "Any thread, any number at once on one model, without locks."
_MODEL = "What it hands out belongs to the model and is valid until rlcc_model_close(); not to be written to."

# A pattern of function names -> (ownership, memory and units, threads). The first that matches counts.
RULES: tuple[tuple[str, tuple[str, str, str]], ...] = (
    ("rlcc_last_error", (
        "The library's; valid until this thread's next call.", "UTF-8, ends with a 0.", "Each thread has its own.")),
    ("rlcc_build_info", (
        "The library's; valid until this thread's next call of it.", "UTF-8, ends with a 0.", _ANY)),
    ("rlcc_isa", ("The library's, for ever.", "ASCII, ends with a 0.", _ANY)),
    ("rlcc_kernels", ("The rows are the library's, for ever.", "count is a number of rows.", _ANY)),
    ("rlcc_force_isa", (
        "Keeps nothing of the string.", "-", "Any thread; calls in flight keep the instruction set they began with.")),
    ("rlcc_(set|get)_num_threads", (
        "-", "A number of threads, the calling one among them.",
        "Any thread; calls in flight keep the threads they began with.")),
    ("rlcc_parallel_for", (
        "Hands context to the task as it is; keeps nothing.", "Items.", "Any thread, also inside a task.")),
    ("rlcc_pack_count|rlcc_pack", (
        _BORROWS, f"{_ELEMENTS} values at a multiple of 16 bytes; value_count in elements, padding included.", _ANY)),
    ("rlcc_unpack|rlcc_packed_validate", (
        _BORROWS, f"{_ELEMENTS} weight.values may lie at any multiple of its element's size.", _ANY)),
    ("rlcc_model_open", (
        "*model is the caller's, to be given to rlcc_model_close().",
        "Allots tables of names alone; tensors that the file does not align are copied.",
        "Any thread; several may open one directory at once.")),
    ("rlcc_model_close", (
        "Takes the model; all that it handed out ends.", "-", "Once, when no other thread uses the model.")),
    ("rlcc_model_get_config|rlcc_model_(tensor|weight|compensation)(_at)?", (
        _MODEL,
        "Fills the caller's struct. values and tensors at multiples of 16 bytes (tensors where their size is one); "
        "masks and offsets of 8; sizes in elements, bytes where the field says so.", _OPEN)),
    ("rlcc_model_.*", ("-", "A number, or an index from 0.", _OPEN)),
    ("rlcc_cuda_pack_2to4(_counts)?", (
        _BORROWS, "Host memory; counts in elements (values) and 32-bit words (metadata).", _ANY)),
    ("rlcc_cuda_.*_workspace", (
        "Borrows params for the call; arrays are not looked at.", "bytes of device memory.", _ANY)),
    ("rlcc_cuda_.*", (
        "Borrows device memory until the stream has passed the call; the workspace is the caller's.",
        "Device memory of the current device; the workspace at a multiple of 16 bytes, its size in bytes.",
        "Any thread; calls that may overlap in time need a workspace each. Work is ordered by the stream alone.")),
    ("rlcc_(sparse_linear|dense_linear|head_moments|linear_cross_entropy|head_contrast).*_reference", (
        _BORROWS, f"{_ELEMENTS} Row m begins m strides behind the first.",
        f"{_ANY} Runs on the calling thread alone.")),
    ("rlcc_(sparse_linear|dense_linear|head_moments|linear_cross_entropy|head_contrast).*", (
        _BORROWS, f"{_ELEMENTS} Row m begins m strides behind the first.",
        f"{_ANY} Runs on params.parallel, else on the library's pool.")),
)  # fmt: skip

_INTRODUCTION = """# The C ABI

Written by `docs/write_c_api.py` from the headers in `csrc/include/restorelcc`; change those.
[embedding.md](embedding.md) shows how to link and call it, [format.md](format.md) draws the packed weight and the
packed model.

Every function is `extern "C"`, C99, and begins with `rlcc_`; the shared library exports nothing else. One that returns
`rlcc_status` leaves its outputs as they were unless it says `RLCC_OK` (rlcc_model_open sets *model to null), and then
`rlcc_last_error()` has a sentence; no exception and no `exit()` crosses the border. `RLCC_OUT_OF_MEMORY` may come from
every one of them.

A caller's own thread pool goes into `params.parallel`, and on CUDA a caller's own stream into the last argument: see
[the caller's threads](embedding.md#threads-of-your-own) and [the caller's stream](embedding.md#a-stream-of-your-own).
"""


@dataclass
class Block:
    """A comment and what it speaks of: functions, or one struct, enumeration or constant."""

    comment: str
    code: str

    @property
    def functions(self) -> list[str]:
        """Names of those that it declares."""
        return functions_of(self.code)

    @property
    def title(self) -> str:
        """What stands above it on the page."""
        if self.functions:
            return ", ".join(f"`{name}`" for name in self.functions)
        patterns = (r"^} (\w+);", r"^typedef [^{]*\(\*(\w+)\)", r"^typedef [^{(]*?(\w+);", r"^#define (\w+)")
        named = [name for pattern in patterns for name in re.findall(pattern, self.code, flags=re.M)]
        return ", ".join(f"`{name}`" for name in dict.fromkeys(named))


def functions_of(text: str) -> list[str]:
    """Names of the functions that `text` declares."""
    return re.findall(r"^RLCC_API[^;(]*?\b(rlcc_\w+)\(", text, flags=re.M)


def blocks_of(text: str) -> tuple[str, list[Block]]:
    """(the header's leading comment, its blocks).

    A comment speaks of the statements behind it, up to a blank line or the next comment.
    """
    leading, at = _comment(text, 0)
    found: list[Block] = []
    comment, open_block = "", False
    while at < len(text):
        blank = re.compile(r"\s*").match(text, at)
        assert blank is not None
        if blank[0].count("\n") > 1:
            comment, open_block = "", False
        at = blank.end()
        if text.startswith("/*", at):
            comment, at = _comment(text, at)
            open_block = False
        elif text.startswith("#define RLCC_", at) and not text.startswith("#define RLCC_API", at):
            line, at = _line(text, at)
            open_block = _add(found, comment, line, open_block)
        elif re.compile(r"#|}|extern \"C\" {").match(text, at):
            line, at = _line(text, at)
        elif at < len(text):
            code, at = _statement(text, at)
            open_block = _add(found, comment, code, open_block)
    return leading, found


def _add(found: list[Block], comment: str, code: str, open_block: bool) -> bool:
    if open_block:
        found[-1].code += f"\n{code}"
    else:
        found.append(Block(comment, code))
    return True


def _comment(text: str, at: int) -> tuple[str, int]:
    end = text.index("*/", at)
    return text[at + 2 : end], end + 2


def _line(text: str, at: int) -> tuple[str, int]:
    """The rest of a line, with the comment that ends it, on however many lines."""
    end = text.index("\n", at)
    if text.rfind("/*", at, end) > text.rfind("*/", at, end):
        end = text.index("\n", text.index("*/", end))
    return text[at:end].rstrip(), end


def _statement(text: str, at: int) -> tuple[str, int]:
    """A declaration up to its semicolon, and the comment behind it."""
    end, depth = at, 0
    while depth > 0 or text[end] != ";":
        if text.startswith("/*", end):
            end = text.index("*/", end) + 1
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        end += 1
    behind, end_of_line = _line(text, end)
    return text[at:end] + behind, end_of_line


def prose(comment: str) -> str:
    """The text of a comment; what is indented in it stays as it stands."""
    lines = [re.sub(r"^ ?\* ?", "", line.rstrip()) for line in comment.strip().splitlines()]
    out: list[str] = []
    drawing = False
    for line in lines:
        indented = line.startswith("  ") and not re.match(r" *- ", line)
        if indented != drawing and line:
            out += ["", "```text"] if indented else ["```", ""]
            drawing = indented
        out.append(line if drawing else line.strip())
    if drawing:
        out.append("```")
    text = re.sub(r"\n{3,}", "\n\n", "\n".join(out)).strip()
    return re.sub(r"\n+```(\n|$)", r"\n```\1", text)


def facts(name: str) -> tuple[str, str, str]:
    """(ownership, memory and units, threads) of a function."""
    for pattern, found in RULES:
        if re.fullmatch(pattern, name):
            return found
    raise SystemExit(f"write_c_api: no rule speaks of {name}; add one")


def page() -> str:
    """The whole of docs/c_api.md."""
    out = [_INTRODUCTION]
    for header in HEADERS:
        leading, blocks = blocks_of((ROOT / "csrc" / "include" / "restorelcc" / header).read_text(encoding="utf-8"))
        out += [f"## restorelcc/{header}\n", prose(leading) + "\n"]
        for block in blocks:
            out += [f"### {block.title}\n", f"```c\n{block.code}\n```\n"]
            if block.comment:
                out.append(prose(block.comment) + "\n")
            known = dict.fromkeys(facts(name) for name in block.functions)
            for fact in known:
                of = [name for name in block.functions if facts(name) == fact]
                lead = "" if len(known) == 1 else f"{', '.join(f'`{name}`' for name in of)}: "
                kinds = ("Ownership", "Memory and units", "Threads")
                said = [f"**{kind}.** {text}" for kind, text in zip(kinds, fact, strict=True) if text != "-"]
                out.append(lead + " ".join(said) + "\n")
    return "\n".join(out)


def main() -> int:
    """The command line; 1 where the page is not up to date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    text = page()
    if not parser.parse_args().check:
        PAGE.write_text(text, encoding="utf-8")
    elif not PAGE.exists() or PAGE.read_text(encoding="utf-8") != text:
        print("docs/c_api.md is not what the headers say; run python docs/write_c_api.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
