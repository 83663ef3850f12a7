"""A whole model against its rivals: size, tokens a second and perplexity of each, side by side.

    python benchmarks/whole_model_rivals.py --llama-python LLAMA/bin/python

Ours is the pruned and restored model, packed; the rivals are stock transformers on the dense model, and llama.cpp on
GGUF files of it. What is not there yet is made in --work first: the pruned, restored and packed models by restorelcc's
command line, the GGUF files by llama.cpp's own quantiser. How to install llama.cpp: docs/rivals.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import exp
from pathlib import Path
from typing import Any

from alternating import Samples, Turn, Worker, WorkerError, alternate, first_in_line, holding, machine, ratio

HERE = Path(__file__).parent
PROMPT = "Write a long story about a fisherman."
GGUF_KINDS = ("F32", "BF16", "F16", "Q8_0", "Q4_0")
AGAINST = "ours int8"  # whose tokens/s the others' are compared with


@dataclass(frozen=True)
class Contender:
    """engine: of whole_model_engines.py. dtype: what a stock checkpoint is loaded as. zeros: of its projections."""

    name: str
    engine: str
    path: Path
    dtype: str | None = None
    zeros: str = "0 %"

    @property
    def weight_bytes(self) -> int:
        """Of the file, or the weight files of the directory."""
        files = [self.path] if self.path.is_file() else self.path.glob("*.safetensors")
        return sum(file.stat().st_size for file in files)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="the dense MODEL; llama.cpp needs it as a GGUF file")
    parser.add_argument("--pattern", default="0.5")
    parser.add_argument("--train-tokens", type=int, default=4096, help="of its own text, to prune and restore with")
    parser.add_argument("--work", type=Path, default=Path("runs/rivals"), help="models are made here, and reused")
    parser.add_argument("--llama-python", type=Path, help="the Python of an environment with llama-cpp-python")
    parser.add_argument("--text", type=Path, help="of the perplexity; default: the prose that `restorelcc eval` takes")
    parser.add_argument("--tokens", type=int, default=10240, help="of that text")
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=10.0, help="of decoding for each contender")
    parser.add_argument("--only", default="", metavar="REGEX", help="contenders")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--lock", type=Path, help="hold this lock while measuring")
    parser.add_argument("--realtime", action="store_true", help="measured before all else, see alternating.py; as root")
    return parser.parse_args(arguments)


def restorelcc(*words: str | Path) -> None:
    """One call of the command line."""
    print("restorelcc", *words, file=sys.stderr)
    subprocess.run([sys.executable, "-m", "restorelcc", *map(str, words), "--quiet"], check=True, stdout=sys.stderr)


def our_models(options: argparse.Namespace) -> list[Contender]:
    """Dense in bf16, and packed in bf16 and int8; made where they are missing."""
    import torch

    from restorelcc.models import load_model, save_checkpoint

    work: Path = options.work
    dense, pruned, restored = work / "dense-bf16", work / "pruned", work / "restored"
    packed, packed8 = work / "packed-bf16", work / "packed-int8"
    text = ("--tokens", str(options.train_tokens))
    if not dense.exists():
        loaded = load_model(options.model, dtype=torch.bfloat16)
        save_checkpoint(loaded.model, loaded.tokenizer, dense)
    if not pruned.exists():
        restorelcc("prune", options.model, "--method", "wanda", "--pattern", options.pattern, *text, "--out", pruned)
    if not restored.exists():
        restorelcc("restore", "--dense", options.model, "--pruned", pruned, "--recipe", "compensate", *text,
                   "--out", restored)
    pack = ("pack", pruned, "--compensation", restored, "--out")
    if not packed.exists():
        restorelcc(*pack, packed)
    if not packed8.exists():
        restorelcc(*pack, packed8, "--values", "int8", "--lm-head", "int8")
    share = f"{float(options.pattern):.0%}" if ":" not in options.pattern else options.pattern
    return [
        Contender("transformers dense bf16", "stock", dense, "bfloat16"),
        Contender("ours bf16", "stock", packed, zeros=share),
        Contender(AGAINST, "stock", packed8, zeros=share),
        Contender("ours bf16, compiled", "compiled", packed, zeros=share),
        Contender("ours int8, compiled", "compiled", packed8, zeros=share),
    ]


def llama_models(options: argparse.Namespace) -> list[Contender]:
    """The GGUF file as it is, and what llama.cpp's quantiser makes of it; empty without --llama-python."""
    from restorelcc.models import resolve_model

    source = resolve_model(options.model)
    if options.llama_python is None or source.path is None or source.gguf_file is None:
        return []
    original = source.path / source.gguf_file
    whole = options.work / "F32.gguf"
    found = []
    for kind in GGUF_KINDS:
        out = options.work / f"{kind}.gguf"
        if not out.exists():
            worker = llama(options)
            try:
                partial_file = out.with_suffix(".partial")
                given = str(original if kind == "F32" else whole)
                worker.ask("quantise", source=given, out=str(partial_file), kind=kind, threads=options.threads)
                partial_file.rename(out)
            finally:
                worker.close()
        found.append(Contender(f"llama.cpp {kind}", "llama", out))
    return [*found, Contender(f"llama.cpp {original.name.split('.')[-2]}, the original file", "llama", original)]


def llama(options: argparse.Namespace) -> Worker:
    """A worker of the other environment."""
    command = [str(options.llama_python), str(HERE / "whole_model_engines.py"), "llama"]
    return Worker("llama", command, {"PYTHONPATH": ""})


def contenders(options: argparse.Namespace) -> list[Contender]:
    """Everyone who runs; another of ours is one more line here."""
    return [one for one in (*our_models(options), *llama_models(options)) if re.search(options.only, one.name)]


def text_rows(options: argparse.Namespace) -> tuple[str, list[list[int]], list[int]]:
    """(name of the text, its windows, the prompt) as token ids, by the dense model's tokenizer.

    Every contender gets these very ids, so none of them tokenises, adds a beginning of text or moves a window.
    """
    from restorelcc.models import load_tokenizer
    from restorelcc.text import load_text, prose_windows

    tokenizer = load_tokenizer(options.work / "dense-bf16")
    if options.text is None:
        rows = prose_windows(tokenizer, window=options.window, max_tokens=options.tokens)
    else:
        rows = load_text(options.text, tokenizer, window=options.window, max_tokens=options.tokens)
    if options.text is not None and bool((rows.response_start != 1).any()):
        raise SystemExit("a text with labels cannot be used: every token of a row counts here")
    ids = [row[:length].tolist() for row, length in zip(rows.ids, rows.lengths.tolist(), strict=True)]
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": PROMPT}], add_generation_prompt=True, return_dict=True
    )["input_ids"] if tokenizer.chat_template else tokenizer(PROMPT).input_ids  # fmt: skip
    return rows.name, ids, list(prompt)


def start(one: Contender, options: argparse.Namespace, about: dict[str, str]) -> Worker:
    """A process that has loaded the model."""
    if one.engine == "llama":
        worker = llama(options)
    else:
        command = [sys.executable, str(HERE / "whole_model_engines.py"), one.engine]
        worker = Worker(one.name, command, {"OMP_NUM_THREADS": str(options.threads)})
    try:
        about |= worker.ask("start", path=str(one.path), threads=options.threads, dtype=one.dtype)
    except WorkerError:
        worker.close()
        raise
    return worker


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    options.work.mkdir(parents=True, exist_ok=True)
    chosen = contenders(options)
    name, rows, prompt = text_rows(options)
    predicted = sum(len(row) - 1 for row in rows)
    about: dict[str, str] = {}
    records: dict[str, dict[str, Any]] = {}
    workers: dict[str, Worker] = {}
    try:
        for one in chosen:
            record = {"name": one.name, "zeros": one.zeros, "weight_bytes": one.weight_bytes}
            records[one.name] = record
            try:
                workers[one.name] = start(one, options, about)
                with holding(options.lock), first_in_line([workers[one.name]], options.realtime):
                    nats = sum(workers[one.name].ask("nll", ids=row)["nll"] for row in rows)
                    warm = workers[one.name].ask("generate", prompt=prompt, new_tokens=options.new_tokens)
            except WorkerError as error:
                record["failed"] = str(error)
                continue
            record |= {"nll": nats / predicted, "perplexity": exp(nats / predicted), "new": warm["new"]}
            print(f"{one.name}: perplexity {record['perplexity']:.3f}", file=sys.stderr)
        bursts = {
            key: partial(worker.ask, "generate", prompt=prompt, new_tokens=options.new_tokens)
            for key, worker in workers.items()
            if "failed" not in records[key]
        }
        turn = Turn(options.lock, options.realtime)
        samples = alternate(bursts, workers.values(), seconds=options.seconds, turn=turn)
    finally:
        for worker in workers.values():
            worker.close()
    add_speeds(records, samples)
    where = f"{predicted:,} tokens of {name}, in {len(rows)} windows of {options.window}"
    text = table(list(records.values()), where, options.threads)
    print(text)
    if options.markdown:
        options.markdown.write_text(text, encoding="utf-8")
    if options.json:
        report = {
            "machine": machine(), "system": platform.platform(), "python": platform.python_version(),
            "load": os.getloadavg(), "threads": options.threads, "about": about, "text": name, "predicted": predicted,
            "windows": len(rows), "prompt_tokens": len(prompt), "new_tokens": options.new_tokens,
            "train_tokens": options.train_tokens, "results": list(records.values()),
        }  # fmt: skip
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def add_speeds(records: dict[str, dict[str, Any]], samples: dict[str, Samples]) -> None:
    """Seconds a token, and how many times as long as AGAINST a token takes."""
    for key, found in samples.items():
        records[key]["seconds"] = found.summary()
        if AGAINST in samples and key != AGAINST:
            records[key]["times_ours"] = ratio(found, samples[AGAINST])


def table(records: Sequence[dict[str, Any]], text: str, threads: int) -> str:
    """Markdown."""
    percentiles = any("token_seconds" in record for record in records)
    latency = " a token, ms: p50 / p95 / p99 |" if percentiles else ""
    lines = [
        f"{threads} threads; perplexity on {text}", "",
        f"| model | zeros | weights, MB | tokens/s, median [quartiles] |{latency} perplexity |",
        "|---|---|---|---|---|" + "---|" * percentiles,
    ]  # fmt: skip
    for record in records:
        size = f"{record['weight_bytes'] / 1e6:,.0f}"
        if "failed" in record or "seconds" not in record:
            lines.append(f"| {record['name']} | {record['zeros']} | {size} | failed | |{' |' * percentiles}")
            continue
        seconds = record["seconds"]
        middle, low, high = (f"{1 / seconds[key]:.1f}" for key in ("median", "q3", "q1"))
        speed = f"{middle} [{low}, {high}]{'†' if seconds['disturbed'] else ''}"
        judged = "–" if record["perplexity"] is None else f"{record['perplexity']:.2f}"
        single = record.get("token_seconds")
        if percentiles:
            speed += " | " + (" / ".join(f"{1e3 * value:.1f}" for value in single.values()) if single else "–")
        lines.append(f"| {record['name']} | {record['zeros']} | {size} | {speed} | {judged} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
