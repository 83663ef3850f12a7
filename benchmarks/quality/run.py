"""Every way to give a pruned model its quality back, on the same rows, evaluated row by row.

    restorelcc prune MODEL --pattern 2:4 --data train.jsonl --out pruned
    python benchmarks/quality/run.py --dense MODEL_DIR --pruned pruned --data train.jsonl \
        --text answers=valid.jsonl --text other=wiki.txt --methods best,fast,lora --seeds 3 --out quality.jsonl
    python benchmarks/quality/table.py quality.jsonl

One line of JSON for each method, seed and text, with the NLL of each row: what intervals are made of. Lines that are
there already are not computed again, so a killed run goes on where it stopped. Peers need `pip install peft`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import peers
import torch

from restorelcc.artifacts import fingerprint, versions
from restorelcc.evaluation import token_nll
from restorelcc.models import load_model, load_tokenizer
from restorelcc.recipes import RECIPES, Recipe
from restorelcc.restore import restore
from restorelcc.text import TokenSet, load_text, prose_windows
from restorelcc.training_loop import TrainingSettings


def recipes() -> dict[str, Recipe]:
    """Ours, and what they are worth without one of their parts."""
    best = RECIPES["best"]
    assert best.tuning is not None
    parts = {
        "tune": replace(best, refit=None), "tune-lm": replace(best, refit=None, objective=type(best.objective)()),
        "best-lm": replace(best, objective=type(best.objective)()),
        "fast-own": replace(RECIPES["fast"], own_text=0.0),
    }  # fmt: skip
    return {**RECIPES, **{name: replace(recipe, name=name) for name, recipe in parts.items()}}


class Bench:
    """What all methods get."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.dense, self.pruned = Path(options.dense), Path(options.pruned)
        self.work = Path(f"{options.out}.work")
        best = RECIPES["best"].tuning
        assert best is not None
        self.settings = replace(best, epochs=options.epochs)

    def ours(self, name: str, seed: int) -> tuple[Any, dict[str, Any]]:
        """A recipe of `restore`, loaded back from the stock checkpoint it wrote."""
        options, recipe = self.options, recipes()[name]
        out = self.work / f"{name}-{seed}"
        training = self.settings if recipe.tuning is not None else None
        report = restore(
            self.dense, self.pruned, out, recipe=recipe, data=Path(options.data), tokens=options.tokens,
            window=options.window, training=training, seed=seed, overwrite=True,
        )  # fmt: skip
        model = load_model(out, dtype=torch.float32).model
        shutil.rmtree(out)
        shutil.rmtree(out.with_name(out.name + ".work"))
        return model, {"heldout": report.heldout, "search": report.search, "timings": report.timings}

    def low_rank(self, path: Path, seed: int, *, dora: bool = False) -> tuple[Any, dict[str, Any]]:
        """A peer, on the rows that `restore` reads."""
        options = self.options
        loaded = load_model(path, dtype=torch.float32)
        text = load_text(
            Path(options.data), loaded.tokenizer, window=options.window, max_tokens=options.tokens, seed=seed
        )
        settings = TrainingSettings(**{**vars(self.settings), "learning_rates": peers.RATES, "seed": seed})
        found = peers.low_rank(loaded.model, text, settings, rank=options.rank, dora=dora)
        return loaded.model, {"heldout": {"pruned": found.before, "restored": found.after}, "search": found.search}

    def methods(self) -> dict[str, Callable[[int], tuple[Any, dict[str, Any]]]]:
        """name -> the model of a seed, and what is to be kept of how it came about."""

        def plain(path: Path) -> Callable[[int], tuple[Any, dict[str, Any]]]:
            return lambda _: (load_model(path, dtype=torch.float32).model, {})

        found: dict[str, Callable[[int], tuple[Any, dict[str, Any]]]] = {
            "dense": plain(self.dense), "pruned": plain(self.pruned),
            "lora": lambda seed: self.low_rank(self.pruned, seed),
            "dora": lambda seed: self.low_rank(self.pruned, seed, dora=True),
            "dense-lora": lambda seed: self.low_rank(self.dense, seed),
        }  # fmt: skip
        for name in recipes():
            found[name] = lambda seed, name=name: self.ours(name, seed)  # type: ignore[misc]
        return found


def evaluation_texts(options: argparse.Namespace, tokenizer: Any) -> dict[str, TokenSet]:
    """name -> rows; `prose` is the documentation that every CPython carries."""
    texts = {}
    for given in options.text:
        name, _, path = given.partition("=")
        texts[name] = load_text(
            Path(path), tokenizer, window=options.window, max_tokens=options.eval_tokens, seed=options.eval_seed
        )
    texts["prose"] = prose_windows(tokenizer, window=options.window, max_tokens=options.eval_tokens)
    return texts


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dense", required=True)
    parser.add_argument("--pruned", required=True)
    parser.add_argument("--data", required=True, help="text to calibrate and train on, the same for all")
    parser.add_argument("--text", action="append", default=[], metavar="NAME=PATH", help="to evaluate on")
    parser.add_argument("--methods", default="dense,pruned,fast,best,lora")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=24576)
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--epochs", type=float, default=2.0)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--eval-tokens", type=int, default=12288)
    parser.add_argument("--eval-seed", type=int, default=1)
    parser.add_argument("--out", required=True, help=".jsonl")
    options = parser.parse_args()
    bench, out = Bench(options), Path(options.out)
    texts = evaluation_texts(options, load_tokenizer(bench.dense))
    shared = {
        "dense": fingerprint(path=bench.dense), "pruned": fingerprint(path=bench.pruned), "tokens": options.tokens,
        "window": options.window, "epochs": options.epochs, "rank": options.rank,
    }  # fmt: skip
    done = set()
    if out.is_file():
        lines = [json.loads(line) for line in out.read_text().splitlines()]
        done = {(line["method"], line["seed"]) for line in lines if line["shared"] == shared}
    known = bench.methods()
    for seed in range(options.seeds):
        for name in options.methods.split(","):
            if name not in known:
                parser.error(f"unknown method {name}; choose of {', '.join(known)}")
            if (name, seed) in done or (seed and name in ("dense", "pruned")):
                continue
            begin = time.perf_counter()
            model, notes = known[name](seed)
            seconds = time.perf_counter() - begin
            rows = {}
            for text, found in texts.items():
                nll = token_nll(model, found, batch=8)
                rows[text] = {
                    "nll_sum": nll.nll_sum.tolist(), "count": nll.count.tolist(), "rows": found.fingerprint()
                }
            record = {
                "method": name, "seed": seed, "shared": shared, "seconds": seconds, "texts": rows, **notes,
                "versions": versions(),
            }  # fmt: skip
            with out.open("a") as file:
                file.write(json.dumps(record) + "\n")
            means = {text: sum(row["nll_sum"]) / sum(row["count"]) for text, row in rows.items()}
            print(name, seed, f"{seconds:.0f} s", {text: round(mean, 4) for text, mean in means.items()}, flush=True)


if __name__ == "__main__":
    main()
