"""The whole job on a real model: prune SmolLM2-135M, restore it, compare, write a report.

    dense -> text -> pruned -> restored -> control -> stock check -> heads -> evaluation -> report.json, report.html

All text that is calibrated or trained on is written by the dense model; the evaluation text never is. Every step's
result is recorded in OUT/work beside the fingerprint of what went into it, so that a repeated call computes only what
is missing or has changed.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from ._native import build_info
from .artifacts import (
    Progress,
    SilentProgress,
    atomic_write_json,
    atomic_write_tensors,
    fingerprint,
    versions,
)  # fmt: skip
from .components import lost_components
from .control import train_control
from .demo_report import assemble
from .evaluation import NllResult, greedy_samples, token_nll
from .models import (
    import_model,
    load_model,
    load_tokenizer,
    prunable_linears,
    replace_module,
    resolve_model,
    save_checkpoint,
)
from .moments import collect_moments
from .packed import pack
from .probes import head_scores
from .pruning import prune_model, rounded_survivors, sparsity_table
from .recipes import RECIPES
from .report import write_report
from .restore import restore, training_text
from .resume import code_stamp, contents, only_call, read_record
from .sparse_linear import SparseLinear
from .tensor_file import load_tensors
from .text import TokenSet, prose_windows
from .training_loop import TrainingSettings
from .tuning import TuningObjective

__all__ = ["FULL", "QUICK", "Sizes", "demo"]

METHOD, PATTERN, RECIPE = "wanda", "2:4", RECIPES["best"]
PROMPTS = (
    "The capital of France is",
    "Photosynthesis is the process by which",
    "To make a cup of tea, first",
)


@dataclass(frozen=True)
class Sizes:
    """How much text each step gets, in tokens; rows have `window` tokens. training: of the tuning and the control."""

    train_tokens: int
    window: int
    evaluation_tokens: int
    evaluation_window: int
    new_tokens: int
    probe_tokens: int
    training: TrainingSettings


FULL = Sizes(12288, 256, 10240, 512, 32, 2048, TrainingSettings(learning_rates=(0.0005, 0.001), patience=6))
QUICK = Sizes(2048, 64, 2048, 256, 12, 512, TrainingSettings(learning_rates=(0.0005,), evaluations=3))


class _Ledger:
    """Finished steps: name -> fingerprint of the inputs, seconds it took, result; one JSON file."""

    def __init__(self, path: Path, advance: Callable[[int], None]) -> None:
        self.path, self.advance = path, advance
        steps = read_record(path).get("steps")
        self.steps: dict[str, Any] = steps if isinstance(steps, dict) else {}
        self.used: list[str] = []
        self.reused: list[str] = []

    def run(
        self, name: str, inputs: dict[str, Any], outputs: Sequence[Path], make: Callable[[], dict[str, Any] | None]
    ) -> dict[str, Any]:
        """The recorded result when inputs, outputs and the record itself are as they were left, else make()'s."""
        stamp, record = fingerprint(**inputs), self.steps.get(name)
        self.used.append(name)
        if isinstance(record, dict) and record.get("seal") == _seal(stamp, record, outputs):
            self.reused.append(name)
        else:
            begin = time.perf_counter()
            result = make() or {}
            record = {"seconds": time.perf_counter() - begin, "result": result}
            record["seal"] = _seal(stamp, record, outputs)
            self.steps[name] = record
            atomic_write_json(self.path, {"steps": self.steps})
        self.advance(1)
        value: dict[str, Any] = record["result"]
        return value

    def timings(self) -> list[dict[str, Any]]:
        return [{"step": name, "seconds": self.steps[name]["seconds"]} for name in self.used]


def _seal(stamp: str, record: dict[str, Any], outputs: Sequence[Path]) -> str:
    """Of a step's inputs, its result and its outputs: a record changed by anything else is not reused."""
    kept = {key: record.get(key) for key in ("seconds", "result")}
    return fingerprint(inputs=stamp, record=json.dumps(kept, sort_keys=True), outputs=contents(*outputs))


def demo(
    out: Path = Path("runs/demo"),
    *,
    quick: bool = False,
    seed: int = 0,
    overwrite: bool = False,
    model: str = "smollm2-135m",
    sizes: Sizes | None = None,
    progress: Progress | None = None,
) -> tuple[dict[str, Any], Path]:
    """Prune `model` with Wanda 2:4, restore it, and compare dense, pruned, restored and control.

    Args:
        out: gets dense/, pruned/, restored/ (stock checkpoints), work/, report.json and report.html.
        quick: less text everywhere.
        overwrite: forget finished steps and begin again.
        model: any MODEL; a checkpoint directory is used where it stands.
        sizes: amounts of text; `FULL` or `QUICK` by default.

    Returns:
        the report, and the path of its page.

    Raises:
        ValueError: the restored checkpoint is not what the sparse kernels compute, or a mask changed.
        MissingExtraError: the demo's model or a report package is not installed.
    """
    sizes, progress = sizes or (QUICK if quick else FULL), progress or SilentProgress()
    out = Path(out)
    source = resolve_model(model)
    if out.is_file():
        raise ValueError(f"{out} is a file; pass another --out")
    work = out / "work"
    code = code_stamp()
    with only_call(out, out):
        if overwrite or (work.is_dir() and not _made_by(work, code)):
            shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True, exist_ok=True)
        atomic_write_json(work / "code.json", {"fingerprint": code})
        with progress.task("demo", 11) as advance:
            run = _Run(out, work, source, sizes, seed, _Ledger(work / "steps.json", advance), progress)
            record = run.all()
        report = assemble(
            record, note=source.note or model, quick=quick, timings=run.ledger.timings(), reused=run.ledger.reused,
            settings={"method": METHOD, "pattern": PATTERN, "recipe": RECIPE.name, "seed": seed, **_flat(sizes)},
            versions=_versions(),
            created=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"), seed=seed,
            reproduce="make demo QUICK=1" if quick else "make demo",
        )  # fmt: skip
        return report, write_report(report, out)


@dataclass
class _Run:
    out: Path
    work: Path
    source: Any
    sizes: Sizes
    seed: int
    ledger: _Ledger
    progress: Progress

    def all(self) -> dict[str, Any]:
        """Every step in order; returns what the report needs."""
        sizes, ledger, work = self.sizes, self.ledger, self.work
        pruned, restored, control = self.out / "pruned", self.out / "restored", work / "control"
        dense = self._dense()
        text = self._text(dense)
        ids = text.fingerprint()
        ledger.run(
            "prune",
            {"dense": dense, "text": ids, "method": METHOD, "pattern": PATTERN},
            [pruned],
            lambda: self._prune(dense, text, pruned),
        )
        training = {"recipe": asdict(RECIPE), "training": asdict(sizes.training), "seed": self.seed}
        restoration = ledger.run(
            "restore",
            {"dense": dense, "pruned": pruned, "text": ids, **training},
            [restored, self._tuned],
            lambda: self._restore(dense, pruned, restored),
        )
        ledger.run(
            "control", {"dense": dense, "text": ids, **training}, [control],
            lambda: self._control(dense, text, control),
        )  # fmt: skip
        prose = prose_windows(load_tokenizer(dense), window=sizes.evaluation_window, max_tokens=sizes.evaluation_tokens)
        check = ledger.run(
            "stock check",
            {"pruned": pruned, "tuned": self._tuned, "restored": restored, "prose": prose.fingerprint()},
            [],
            lambda: stock_check(pruned, load_tensors(self._tuned, "tuning"), restored, prose.ids[:2, :96], work),
        )
        heads = ledger.run(
            "heads", {"dense": dense, "pruned": pruned, "text": ids, "tokens": sizes.probe_tokens}, [],
            lambda: self._heads(dense, pruned, text),
        )  # fmt: skip
        measured = {}
        for key, path in (("dense", dense), ("pruned", pruned), ("restored", restored), ("control", control)):
            prompts = [] if key == "control" else list(PROMPTS)
            measured[key] = ledger.run(
                f"evaluate {key}",
                {"model": path, "prose": prose.fingerprint(), "prompts": prompts, "new": sizes.new_tokens}, [],
                partial(_measure, path, prose, prompts, sizes.new_tokens, self.progress),
            )  # fmt: skip
        _, heldout = text.split(sizes.training.heldout_share, seed=self.seed)
        return {
            "restoration": restoration, "check": check, "heads": heads, "measured": measured, "prompts": list(PROMPTS),
            "prose": {"name": prose.name, "tokens": prose.tokens, "windows": len(prose.ids),
                      "window": sizes.evaluation_window},
            "text": {"name": text.name, "tokens": text.tokens - heldout.tokens, "heldout_tokens": heldout.tokens},
            "new_tokens": sizes.new_tokens,
        }  # fmt: skip

    def _dense(self) -> Path:
        source = self.source
        if source.path is not None and source.gguf_file is None:
            self.ledger.advance(1)
            return Path(source.path)
        dense = self.out / "dense"
        file = source.path / source.gguf_file if source.path is not None else None

        def make() -> None:
            shutil.rmtree(dense, ignore_errors=True)
            import_model(source.spec, dense, progress=self.progress)

        self.ledger.run("dense", {"spec": source.spec, "file": file}, [dense], make)
        return dense

    def _text(self, dense: Path) -> TokenSet:
        """The dense model's own text; the same call inside `restore` then finds it in the cache."""
        cache = self.work / "text.safetensors"
        inputs = {"dense": dense, "tokens": self.sizes.train_tokens, "window": self.sizes.window, "seed": self.seed,
                  "scripts": RECIPE.scripts}  # fmt: skip

        def make() -> None:
            training_text(dense, data=None, tokens=self.sizes.train_tokens, window=self.sizes.window, seed=self.seed,
                          cache=cache, scripts=RECIPE.scripts, progress=self.progress)  # fmt: skip

        self.ledger.run("text", inputs, [cache], make)
        return TokenSet.load(cache)

    def _prune(self, dense: Path, text: TokenSet, pruned: Path) -> None:
        loaded = load_model(dense)
        prune_model(
            loaded.model, loaded.tokenizer, method=METHOD, pattern=PATTERN, calibration=text, progress=self.progress
        )
        save_checkpoint(loaded.model, loaded.tokenizer, pruned, overwrite=True)

    def _restore(self, dense: Path, pruned: Path, restored: Path) -> dict[str, Any]:
        report = restore(
            dense, pruned, restored, recipe=RECIPE, tokens=self.sizes.train_tokens, window=self.sizes.window,
            training=self.sizes.training, seed=self.seed, work=self.work, overwrite=True, progress=self.progress,
        )  # fmt: skip
        return report.to_dict()

    @property
    def _tuned(self) -> Path:
        """Where `restore` leaves every weight and bias that it found."""
        return self.work / "tuning.safetensors"

    def _control(self, dense: Path, text: TokenSet, control: Path) -> None:
        """By NLL: on text of its own the restored model learns from the distance to the dense one, which is 0 here."""
        settings = replace(self.sizes.training, seed=self.seed)
        recipe = replace(RECIPE, objective=TuningObjective())
        train_control(dense, control, text, recipe, settings, overwrite=True, progress=self.progress)

    def _heads(self, dense: Path, pruned: Path, text: TokenSet) -> dict[str, Any]:
        """What each head lost by pruning, first order: a diagnosis that decides nothing (see `probe_attribution`)."""
        part, file = text.first(self.sizes.probe_tokens), self.work / "moments.safetensors"
        moments = collect_moments(dense, pruned, part, out=file, progress=self.progress)
        lost = lost_components(moments, kind="mean")  # the probe reads c_h = mean(ΔZ) alone, which any basis gives
        scores = head_scores("attribution", load_model(pruned).model, part, lost, progress=self.progress)
        file.unlink()
        unit = "predicted fall of the NLL, nats per token"
        return {"scores": scores.scores.tolist(), "unit": unit, "tokens": part.tokens}


def _measure(path: Path, prose: TokenSet, prompts: list[str], new_tokens: int, progress: Progress) -> dict[str, Any]:
    loaded = load_model(path)
    nll: NllResult = token_nll(loaded.model, prose, progress=progress)
    samples = greedy_samples(loaded.model, loaded.tokenizer, prompts, new_tokens) if prompts else []
    return {
        "nll_sum": nll.nll_sum.tolist(), "count": nll.count.tolist(), "samples": samples,
        "sparsity": sparsity_table(loaded.model),
    }  # fmt: skip


def _on_sparse_kernels(pruned: Path, found: Mapping[str, Tensor]) -> Any:
    """The pruned model with the weights and biases in `found`, every projection a `SparseLinear`: no stock class of a
    restored checkpoint takes part."""
    model = load_model(pruned).model
    for name, linear in prunable_linears(model):
        weight, bias, dtype = found[f"{name}.weight"], found.get(f"{name}.bias"), linear.weight.dtype
        kept = rounded_survivors(weight, weight != 0, dtype).to(dtype)
        replace_module(model, name, SparseLinear(pack(kept), None if bias is None else bias.to(dtype)))
    return model.requires_grad_(False)


def stock_check(
    pruned: Path, found: Mapping[str, Tensor], restored: Path, ids: Tensor, work: Path
) -> dict[str, Any]:  # fmt: skip
    """Logits of the restored checkpoint in a process without restorelcc, against the sparse kernels' here, which run
    what the restoration `found` for the pruned one.

    Budget: |kernels − stock float64| <= 2 max|stock − stock float64| + 1e-5 max|logit|.

    Raises:
        ValueError: outside the budget, or the other process failed.
    """
    sparse = _on_sparse_kernels(pruned, found)
    with torch.no_grad():
        ours = sparse(ids, use_cache=False).logits.double()
    ids_file, out_file = work / "check_ids.safetensors", work / "check_logits.safetensors"
    atomic_write_tensors(ids_file, {"ids": ids}, {})
    program = Path(__file__).with_name("stock_check.py")
    command = [sys.executable, "-I", str(program), str(restored), str(ids_file), str(out_file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ValueError(f"stock transformers could not run {restored} in a process of its own: {last}")
    with safe_open(out_file, framework="pt") as file:
        stock, exact = file.get_tensor("logits").double(), file.get_tensor("logits64")
        transformers = file.metadata()["transformers"]
    for path in (ids_file, out_file):
        path.unlink()
    kernel_error, stock_error = float((ours - exact).abs().max()), float((stock - exact).abs().max())
    largest = float(exact.abs().max())
    budget = 2 * stock_error + 1e-5 * largest
    if not kernel_error <= budget:
        raise ValueError(
            f"{restored} is not the restored model: logits differ by {kernel_error:.3g}, budget {budget:.3g}"
        )
    return {
        "transformers": transformers, "logits": exact.numel(), "kernel_error": kernel_error, "within_budget": True,
        "biases": sum(name.endswith(".bias") for name in found),
        "stock_error": stock_error, "budget": budget, "largest_logit": largest,
    }  # fmt: skip


def _versions() -> dict[str, str]:
    found = versions()
    torch_isa = found.pop("isa")
    return {**found, "isa of torch": torch_isa, "isa of the sparse kernels": str(build_info()["isa"])}


def _made_by(work: Path, code: str) -> bool:
    mark = work / "code.json"
    return read_record(mark).get("fingerprint") == code


def _flat(sizes: Sizes) -> dict[str, Any]:
    values = asdict(sizes)
    training = values.pop("training")
    return {**values, **{f"training {key}": json.dumps(value) for key, value in training.items() if key != "seed"}}
