"""Every way to give a pruned model its quality back, on the same rows, evaluated row by row.

    restorelcc prune MODEL --pattern 2:4 --data train.jsonl --out pruned
    python benchmarks/quality/run.py --dense MODEL_DIR --pruned pruned --data train.jsonl \
        --text answers=valid.jsonl --text other=wiki.txt --methods best,fast,lora --seeds 3 --out quality.jsonl
    python benchmarks/quality/table.py quality.jsonl
    python benchmarks/quality/plots.py quality.jsonl --out plots

Methods take settings: --methods compensate:probe=linear,heads=0.25 lora:rank=32 (see `variants`). One line of JSON
for each method and seed, with the NLL of each row: what intervals are made of. Lines that are there already are not
computed again, so a killed run goes on where it stopped. LoRA and DoRA need `pip install peft`. How everything is
measured, and commands with their times: README.md beside this file.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from measures import add_options, load_measures
from methods import ENDS, Methods, sparsity
from table import read_lines
from variants import parse_methods

from restorelcc.artifacts import fingerprint, versions
from restorelcc.models import load_tokenizer


def parser() -> argparse.ArgumentParser:
    """What is asked for."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--dense", required=True)
    made.add_argument("--pruned", required=True)
    made.add_argument("--data", required=True, help="text to calibrate and train on, the same for all")
    made.add_argument(
        "--methods", nargs="+", default=["dense,pruned,fast,best,lora"], metavar="NAME[:KEY=VALUE,...]",
        help="one word each, or more with commas between them",
    )  # fmt: skip
    made.add_argument("--seeds", type=int, default=3, help="how many")
    made.add_argument("--first-seed", type=int, default=0, help="so that each core can have its own call and file")
    made.add_argument("--tokens", type=int, default=24576)
    made.add_argument("--window", type=int, default=256)
    made.add_argument("--epochs", type=float, default=2.0)
    made.add_argument("--rank", type=int, default=8, help="of LoRA and DoRA")
    made.add_argument("--out", required=True, help=".jsonl")
    add_options(made)
    return made


def main(arguments: list[str] | None = None) -> None:
    """See the module."""
    made = parser()
    options = made.parse_args(arguments)
    if options.seeds < 1 or options.first_seed < 0:
        made.error(f"--seeds {options.seeds} --first-seed {options.first_seed}: give 1 or more, from 0 or more on")
    methods, out = Methods(options), Path(options.out)
    try:
        variants = parse_methods(",".join(options.methods))
        configs = {variant.text: methods.config(variant) for variant in variants}
        measures = load_measures(options, methods.dense, load_tokenizer(methods.dense))
        shared = {
            "dense": fingerprint(path=methods.dense), "pruned": fingerprint(path=methods.pruned),
            "tokens": options.tokens, "window": options.window, "epochs": options.epochs, "rank": options.rank,
            "data": Path(options.data).name, "contents": fingerprint(path=Path(options.data)),
            "pruned_name": methods.pruned.name, "sparsity": sparsity(methods.pruned),
            "measures": measures.fingerprint(),
        }  # fmt: skip
    except ValueError as error:
        made.error(str(error))
    done = set()
    if out.is_file() and out.stat().st_size:
        done = {(line["method"], line["seed"]) for line in read_lines([out]) if line.get("shared") == shared}
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        for variant in variants:
            if (variant.text, seed) in done or (seed != options.first_seed and variant.name in ENDS):
                continue
            begin, work = time.perf_counter(), time.process_time()
            try:
                model, notes = methods.make(variant, seed)
            except ValueError as error:
                raise SystemExit(f"{variant.text} of seed {seed}: {error}") from error
            seconds, cpu_seconds = time.perf_counter() - begin, time.process_time() - work
            found = measures.measure(model)
            record = {
                "method": variant.text, "seed": seed, "shared": shared, "config": configs[variant.text],
                "seconds": seconds + notes.pop("reused_seconds", 0.0), "cpu_seconds": cpu_seconds,
                "measure_seconds": time.perf_counter() - begin - seconds,
                "measure_cpu_seconds": time.process_time() - work - cpu_seconds, **found, **notes,
                "versions": versions(),
            }  # fmt: skip
            with out.open("a") as file:
                file.write(json.dumps(record) + "\n")
            print(variant.text, seed, f"{record['seconds']:.0f} s", _line(found), flush=True)


def _line(found: dict[str, Any]) -> str:
    parts = [
        f"{name} {sum(rows['nll_sum']) / sum(rows['count']):.4f}" for name, rows in found["texts"].items()
    ]  # fmt: skip
    parts += [
        f"{name} {100 * sum(items['correct']) / len(items['correct']):.1f} %"
        for name, items in found["choices"].items()
    ]
    return ", ".join(parts)


if __name__ == "__main__":
    main()
