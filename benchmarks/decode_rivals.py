"""Speed and perplexity of examples/decode against its rivals: interleaved, on equal threads, on the same token ids.

    python benchmarks/decode_rivals.py --packed bf16=packed --packed int8=packed8 --dense dense \\
      --gguf BF16.gguf --gguf Q8_0.gguf --llama-python LLAMA/bin/python --json run.json --markdown run.md

Ours are packed models, decoded by the C++ program (build it with `make test-cpp`). Rivals are stock transformers on the
dense checkpoint in bf16, and llama.cpp on GGUF files: through llama-cpp-python (--llama-python), or by a llama-bench
binary (--llama-bench), which gives no perplexity. Each is a process of its own, and they take turns A B C A B C; the
first of ours is what the others are compared with. docs/rivals.md says how to install llama.cpp. whole_model_rivals.py
makes the GGUF files, and compares the ways from Python.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import sys
from collections.abc import Sequence
from functools import partial
from math import ceil, exp
from pathlib import Path
from typing import Any

from alternating import Turn, Worker, WorkerError, alternate, holding, machine, ratio
from whole_model_rivals import PROMPT, Contender, table

HERE = Path(__file__).parent
PROGRAM = HERE.parent / "build" / "core" / "examples" / "decode" / "decode"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    named = "NAME=DIR"
    parser.add_argument("--packed", action="append", default=[], metavar=named, help="ours; more than one may be given")
    parser.add_argument("--huge-pages", action="store_true", help="ours also with the weights in pages of 2 MiB")
    parser.add_argument("--dense", type=Path, help="the dense checkpoint, for stock transformers in bf16")
    parser.add_argument("--gguf", action="append", default=[], type=Path, metavar="FILE", help="for llama.cpp")
    parser.add_argument("--decode", type=Path, default=PROGRAM, help="the program; default: %(default)s")
    parser.add_argument("--llama-python", type=Path, help="the Python of an environment with llama-cpp-python")
    parser.add_argument("--llama-bench", type=Path, help="llama.cpp's benchmark program")
    parser.add_argument("--text", type=Path, help="of the perplexity; default: the prose that `restorelcc eval` takes")
    parser.add_argument("--text-tokens", type=int, default=2044, help="of that text; 0: no perplexity")
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=10.0, help="of decoding for each contender")
    parser.add_argument("--only", default="", metavar="REGEX", help="contenders")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--lock", type=Path, help="hold this lock while measuring")
    options = parser.parse_args(arguments)
    for given in options.packed:
        if not re.fullmatch(r"[^=]+=.+", given):
            parser.error(f"--packed is {given!r}, must be {named}")
    if not options.packed:
        parser.error("nothing of ours to compare: give --packed NAME=DIR")
    if options.gguf and options.llama_python is None and options.llama_bench is None:
        parser.error("GGUF files need --llama-python or --llama-bench")
    if not options.decode.is_file():
        parser.error(f"{options.decode} is not built; `make test-cpp` builds it")
    return options


def zeros_of(packed: Path) -> str:
    """The share of zeros in the packed matrices."""
    matrices = json.loads((packed / "restorelcc.json").read_text(encoding="utf-8"))["packed"]
    weights = sum(matrix["rows"] * matrix["columns"] for matrix in matrices)
    return f"{1 - sum(matrix['nonzero'] for matrix in matrices) / max(weights, 1):.0%}"


def contenders(options: argparse.Namespace) -> list[Contender]:
    """Ours first."""
    found = []
    for given in options.packed:
        name, _, path = given.partition("=")
        zeros = zeros_of(Path(path))
        found.append(Contender(f"ours {name}", "program", Path(path), zeros=zeros))
        if options.huge_pages:
            found.append(Contender(f"ours {name}, huge pages", "program-huge", Path(path), zeros=zeros))
    if options.dense is not None:
        found.append(Contender("transformers dense bf16", "stock", options.dense, "bfloat16"))
    engine = "llama" if options.llama_python is not None else "llama-bench"
    found += [Contender(f"llama.cpp {path.stem}", engine, path) for path in options.gguf]
    return [one for one in found if re.search(options.only, one.name)]


def start(one: Contender, options: argparse.Namespace, about: dict[str, str]) -> Worker:
    """A process that has loaded the model, or runs a program that does."""
    python = options.llama_python if one.engine == "llama" else sys.executable
    others = ("stock", "llama")
    script = "whole_model_engines.py" if one.engine in others else "decode_engines.py"
    environment = {"OMP_NUM_THREADS": str(options.threads), "RLCC_DECODE": str(options.decode)}
    if one.engine == "llama":
        environment["PYTHONPATH"] = ""
    if options.llama_bench is not None:
        environment["LLAMA_BENCH"] = str(options.llama_bench)
    worker = Worker(one.name, [str(python), str(HERE / script), one.engine], environment)
    try:
        about |= worker.ask("start", path=str(one.path), threads=options.threads, dtype=one.dtype)
    except WorkerError:
        worker.close()
        raise
    return worker


def token_ids(options: argparse.Namespace, tokenizer_of: Path) -> tuple[str, list[list[int]], list[int]]:
    """(name of the text, its windows, the prompt), by the tokenizer that the packed model holds."""
    from restorelcc.models import load_tokenizer
    from restorelcc.text import load_text, prose_windows

    tokenizer = load_tokenizer(tokenizer_of)
    name, windows = "", []
    if options.text_tokens > 0:
        sizes = {"window": options.window, "max_tokens": options.text_tokens}
        rows = (
            prose_windows(tokenizer, **sizes) if options.text is None else load_text(options.text, tokenizer, **sizes)
        )
        name = rows.name
        windows = [row[:length].tolist() for row, length in zip(rows.ids, rows.lengths.tolist(), strict=True)]
    said = [{"role": "user", "content": PROMPT}]
    prompt = (
        tokenizer.apply_chat_template(said, add_generation_prompt=True, return_dict=True)["input_ids"]
        if tokenizer.chat_template
        else tokenizer(PROMPT).input_ids
    )
    return name, windows, list(prompt)


def judge(worker: Worker, windows: list[list[int]]) -> dict[str, float]:
    """nll and perplexity, where the contender can judge a text."""
    predicted = sum(len(row) - 1 for row in windows)
    if predicted == 0:
        return {}
    try:
        nats = sum(worker.ask("nll", ids=row)["nll"] for row in windows)
    except WorkerError as error:
        if "judges no text" in str(error):
            return {}
        raise
    return {"nll": nats / predicted, "perplexity": exp(nats / predicted)}


def take(worker: Worker, steps: list[float], **request: Any) -> dict[str, Any]:
    """A sample; the seconds of its single tokens, where the contender says them, go to `steps`."""
    reply = worker.ask("generate", **request)
    steps += reply.pop("steps", [])
    return reply


def percentiles(steps: Sequence[float]) -> dict[str, float]:
    """Of the seconds of single tokens: the value that so many per cent of them do not exceed."""
    in_order = sorted(steps)
    return {f"p{share}": in_order[max(ceil(share / 100 * len(in_order)) - 1, 0)] for share in (50, 95, 99)}


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    chosen = contenders(options)
    if not chosen:
        raise SystemExit(f"--only {options.only!r} leaves nobody")
    tokenizer_of = Path(options.packed[0].partition("=")[2])
    name, windows, prompt = token_ids(options, tokenizer_of)
    about: dict[str, str] = {}
    records: dict[str, dict[str, Any]] = {}
    workers: dict[str, Worker] = {}
    try:
        for one in chosen:
            record = {"name": one.name, "zeros": one.zeros, "weight_bytes": one.weight_bytes, "perplexity": None}
            records[one.name] = record
            try:
                workers[one.name] = start(one, options, about)
                with holding(options.lock):
                    record |= judge(workers[one.name], windows)
                    warm = workers[one.name].ask("generate", prompt=prompt, new_tokens=options.new_tokens)
            except WorkerError as error:
                record["failed"] = str(error)
                print(f"{one.name}: {error}", file=sys.stderr)
                continue
            record["new"] = warm["new"]
            print(f"{one.name}: perplexity {record['perplexity']}", file=sys.stderr)
        steps: dict[str, list[float]] = {key: [] for key in workers}
        bursts = {
            key: partial(take, worker, steps[key], prompt=prompt, new_tokens=options.new_tokens)
            for key, worker in workers.items()
            if "failed" not in records[key]
        }
        samples = alternate(bursts, workers.values(), seconds=options.seconds, turn=Turn(options.lock))
    finally:
        for worker in workers.values():
            worker.close()
    against = next((one.name for one in chosen if one.name in samples), None)
    for key, found in samples.items():
        records[key]["seconds"] = found.summary()
        if steps[key]:
            records[key]["token_seconds"] = percentiles(steps[key])
        if key != against and against is not None:
            records[key]["times_ours"] = ratio(found, samples[against])
    predicted = sum(len(row) - 1 for row in windows)
    where = f"{predicted:,} tokens of {name}, in {len(windows)} windows of {options.window}" if windows else "nothing"
    text = table(list(records.values()), where, options.threads)
    print(text)
    if options.markdown:
        options.markdown.write_text(text, encoding="utf-8")
    if options.json:
        report = {
            "machine": machine(), "system": platform.platform(), "load": os.getloadavg(), "threads": options.threads,
            "about": about, "text": name, "predicted": predicted, "windows": len(windows),
            "prompt_tokens": len(prompt), "new_tokens": options.new_tokens, "against": against,
            "results": list(records.values()),
        }  # fmt: skip
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
