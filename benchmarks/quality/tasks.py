"""Compensations for tasks, a hundred examples each, beside the sparse model they are for: paired gains in accuracy.

    restorelcc prune MODEL_DIR --pattern 0.6 --data train.jsonl --out pruned
    python benchmarks/quality/tasks.py --dense MODEL_DIR --pruned pruned --task arc_easy=arc.jsonl:bytes \
        --task rte=rte.jsonl:sum --methods dense,pruned,task --seeds 2 --out tasks.jsonl

`bytes` or `sum` says which accuracy counts, before anything is measured: by log-probability per byte of the choice
(lm-eval's acc_norm) or by its sum (acc). Of each file `--test` items, the same for all seeds, are evaluated; examples
are drawn by the seed from the others, of which none has the query of one that is evaluated.

    dense      the model before pruning
    pruned     the sparse model without a compensation
    task       recipe `task`; all of them in one packed model that serves them by name, the sparse model too
    lm         the same with the language-model loss of the right answers instead
    control    the dense model with a compensation learnt the same way: what the examples teach where nothing was lost

One line of JSON for each task, method and seed, with each item's outcome. Lines that are there already are not computed
again, so a killed run goes on where it stopped. The table is printed at the end; `--table` prints it alone.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

import restorelcc
from restorelcc.adapter import adapter_compensation
from restorelcc.artifacts import fingerprint, versions
from restorelcc.compensation import Compensation, apply_compensation
from restorelcc.components import Components
from restorelcc.evaluation import AccuracyGain, accuracy_gain, multiple_choice
from restorelcc.models import load_model, load_tokenizer
from restorelcc.recipes import RECIPES
from restorelcc.restore import restore
from restorelcc.task_training import read_examples, train_for_task
from restorelcc.text import ChoiceItem, load_choices

METRICS = {"sum": "correct", "bytes": "correct_by_bytes"}
SPLIT_SEED = 12345  # of the items that are evaluated
LEARNT = ("task", "lm", "control")
RECIPE = RECIPES["task"]
assert RECIPE.training is not None
assert RECIPE.examples is not None
LM = replace(RECIPE.training, batch_tokens=32)  # answers alone count, a sixth of the tokens: about as many steps


@dataclass(frozen=True)
class Task:
    """name=path:metric of the command line."""

    name: str
    path: Path
    metric: str

    @classmethod
    def parse(cls, given: str) -> Task:
        name, _, rest = given.partition("=")
        path, _, metric = rest.rpartition(":")
        if not name or not path or metric not in METRICS:
            raise ValueError(f"{given!r} is no task; give NAME=FILE.jsonl:bytes or NAME=FILE.jsonl:sum")
        return cls(name, Path(path), metric)

    def split(self, count: int) -> tuple[list[ChoiceItem], list[ChoiceItem]]:
        """(items to evaluate, items to draw examples from)."""
        items = load_choices(self.path)
        order = torch.randperm(len(items), generator=torch.Generator().manual_seed(SPLIT_SEED)).tolist()
        test = [items[index] for index in order[:count]]
        asked = {item.query for item in test}
        rest = [items[index] for index in order[count:] if items[index].query not in asked]
        if len(test) < count or len(rest) < RECIPE.examples:
            raise ValueError(f"{self.path} has {len(items)} items, too few for {count} and {RECIPE.examples} examples")
        return test, rest


class Bench:
    """What all methods of a task get."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.dense, self.pruned = Path(options.dense), Path(options.pruned)
        self.out, self.test = Path(options.out), options.test
        self.work = Path(f"{options.out}.work")
        self.work.mkdir(parents=True, exist_ok=True)
        self.tokenizer = load_tokenizer(self.dense)
        self.models = {"dense": fingerprint(path=self.dense), "pruned": fingerprint(path=self.pruned)}

    def shared(self, task: Task, method: str) -> dict[str, Any]:
        """All that decides a line, beside its task, method and seed."""
        recipe = {"recipe": json.loads(json.dumps(asdict(RECIPE)))} if method in LEARNT else {}
        return {**self.models, "test": self.test, "items": fingerprint(path=task.path), **recipe}

    def done(self, task: Task) -> set[tuple[str, int]]:
        return {
            (line["method"], line["seed"]) for line in read_lines(self.out)
            if line["task"] == task.name and line["shared"] == self.shared(task, line["method"])
        }  # fmt: skip

    def pool(self, task: Task) -> Path:
        """The items that examples are drawn from, as a file that `restore` reads."""
        path = self.work / f"{task.name}.jsonl"
        rows = [{"query": i.query, "choices": i.choices, "gold": i.gold} for i in task.split(self.test)[1]]
        path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        return path

    def learn(self, task: Task, method: str, seed: int) -> tuple[Compensation, dict[str, Any]]:
        """The compensation and how it came about; finished steps of an earlier call are reused."""
        out = self.work / f"{task.name}-{method}-{seed}"
        if method == "control":
            return self.control(task, seed)
        report = restore(
            self.dense, self.pruned, out, recipe=RECIPE, train="lm" if method == "lm" else None, data=self.pool(task),
            training=LM if method == "lm" else None, seed=seed, overwrite=True,
        )  # fmt: skip
        notes = {"heldout": report.heldout, "history": report.history, "timings": report.timings}
        return adapter_compensation(out), notes

    def control(self, task: Task, seed: int) -> tuple[Compensation, dict[str, Any]]:
        """The same examples, directions, units and settings, for the dense model, taught by itself."""
        self.learn(task, "task", seed)
        work = self.work / f"{task.name}-task-{seed}.work"
        examples, _ = read_examples(self.pool(task), self.tokenizer, RECIPE.examples, seed)
        lost = Components.load(work / "components.safetensors")
        settings = replace(RECIPE.training, seed=seed)
        model = load_model(self.dense).model
        heads = torch.ones(lost.unit.shape, dtype=torch.bool)
        found = train_for_task(model, examples, lost, heads, settings, dense=model, objective=RECIPE.task)
        return found.compensation, {"heldout": {"dense": found.heldout_before, "control": found.heldout_after}}

    def run(self, task: Task, methods: list[str], seeds: int) -> Iterator[dict[str, Any]]:
        """One line after the other, of those that are not there yet."""
        done, test = self.done(task), task.split(self.test)[0]
        wanted = [
            (method, seed)
            for method in methods
            for seed in range(seeds if method in LEARNT else 1)
            if (method, seed) not in done
        ]
        learnt: dict[tuple[str, int], tuple[Compensation, dict[str, Any]]] = {}
        for method, seed in wanted:
            if method in LEARNT:
                begin = time.perf_counter()
                compensation, notes = self.learn(task, method, seed)
                learnt[method, seed] = compensation, {**notes, "seconds": time.perf_counter() - begin}
        for source, kinds in ((self.pruned, ("pruned", "task", "lm")), (self.dense, ("dense", "control"))):
            mine = sorted((pair for pair in wanted if pair[0] in kinds), key=lambda pair: pair[0] in LEARNT)
            if not mine:
                continue
            model = load_model(source, dtype=torch.float32).model
            served = {f"{pair[0]}-{pair[1]}": learnt[pair][0] for pair in mine if pair in learnt}
            if source == self.pruned:  # one model, its weights once, serves all
                model = restorelcc.pack_model(model, values="fp32", compensations=served)
            for method, seed in mine:
                name = f"{method}-{seed}" if (method, seed) in learnt else None
                if source == self.dense and name is not None:
                    model = apply_compensation(model, served[name])
                choosing = restorelcc.compensations(model, name) if source == self.pruned and served else nullcontext()
                begin = time.perf_counter()
                with choosing:
                    found = multiple_choice(model, self.tokenizer, test)
                yield {
                    "task": task.name, "method": method, "seed": seed, "metric": task.metric, "items": len(test),
                    "accuracy": found.accuracy, "accuracy_by_bytes": found.accuracy_normalised,
                    "correct": found.correct.int().tolist(),
                    "correct_by_bytes": found.correct_normalised.int().tolist(),
                    "evaluation_seconds": time.perf_counter() - begin,
                    "notes": learnt.get((method, seed), (None, {}))[1], "shared": self.shared(task, method),
                    "versions": versions(),
                }  # fmt: skip


def read_lines(path: Path) -> list[dict[str, Any]]:
    """What earlier calls left; a line that a killed one left half is none."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return lines


def gain(lines: list[dict[str, Any]], base: str) -> AccuracyGain | None:
    """Of one method and task over `base`, seeds and items resampled."""
    reference = [line for line in lines if line["method"] == base]
    mine = [line for line in lines if line["method"] != base]
    if not reference or not mine:
        return None
    key = METRICS[mine[0]["metric"]]
    outcomes = torch.tensor([line[key] for line in mine])
    return accuracy_gain(outcomes, torch.tensor(reference[0][key]))


def table(lines: list[dict[str, Any]]) -> str:
    """Markdown, a row for each task and method; the gain of `control` is over dense, of the others over pruned.

    Of lines of different models, items or recipes the last ones count; a gain is over lines of the same models and
    items.
    """
    last = {(line["task"], line["method"]): line["shared"] for line in lines}
    lines = [line for line in lines if line["shared"] == last[line["task"], line["method"]]]
    measured = ("dense", "pruned", "test", "items")
    rows = [
        "| task | accuracy by | items | method | seeds | accuracy | gain, paired 95 % |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for task in dict.fromkeys(line["task"] for line in lines):
        of_task = [line for line in lines if line["task"] == task]
        for method in dict.fromkeys(line["method"] for line in of_task):
            mine = [line for line in of_task if line["method"] == method]
            base = "dense" if method == "control" else "pruned"
            like = [mine[0]["shared"].get(name) for name in measured]
            found = gain([
                line for line in of_task
                if line["method"] in (method, base) and [line["shared"].get(name) for name in measured] == like
            ], base)  # fmt: skip
            shown = ""
            if found is not None:
                shown = f"{100 * found.value:+.1f} ({100 * found.low:+.1f} to {100 * found.high:+.1f})"
            key = METRICS[mine[0]["metric"]]
            accuracy = sum(sum(line[key]) for line in mine) / sum(line["items"] for line in mine)
            rows.append(
                f"| {task} | {mine[0]['metric']} | {mine[0]['items']} | {method} | {len(mine)} | "
                f"{100 * accuracy:.1f} % | {shown} |"
            )
    return "\n".join(rows)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dense", help="checkpoint directory")
    parser.add_argument("--pruned", help="checkpoint directory")
    parser.add_argument("--task", action="append", default=[], metavar="NAME=FILE.jsonl:bytes|sum", type=Task.parse)
    parser.add_argument("--methods", default="dense,pruned,task")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--test", type=int, default=500, help="items of each file to evaluate")
    parser.add_argument("--table", action="store_true", help="print the table of --out alone")
    parser.add_argument("--out", required=True, help=".jsonl")
    options = parser.parse_args()
    if not options.table:
        methods = options.methods.split(",")
        unknown = set(methods) - {"dense", "pruned", *LEARNT}
        if unknown or not options.dense or not options.pruned or not options.task:
            parser.error(f"give --dense, --pruned and --task, and methods of dense, pruned, {', '.join(LEARNT)}")
        bench = Bench(options)
        if bench.out.is_file() and not bench.out.read_bytes().endswith(b"\n"):
            bench.out.open("a").write("\n")  # a killed run left half a line
        for task in options.task:
            for line in bench.run(task, methods, options.seeds):
                with bench.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
                print(*(line[key] for key in ("task", "method", "seed", "accuracy", "accuracy_by_bytes")), flush=True)
    print(table(read_lines(Path(options.out))))


if __name__ == "__main__":
    main()
