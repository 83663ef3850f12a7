"""Tasks of lm-evaluation-harness through its Python API, on models that are loaded already.

acc         argmax_j  Σ log p(choice_j | context)                                      of equal scores the first
acc_norm    argmax_j  Σ log p(choice_j | context) / characters of choice_j             the space before it not counted
acc_bytes   argmax_j  Σ log p(choice_j | context) / UTF-8 bytes of choice_j            as `evaluation.multiple_choice`

Prompts, examples, metrics and seeds are the harness's own; log-softmax is in float32 whatever the model's type. The
package is optional (restorelcc[harness]) and is imported when tasks are loaded, not before.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import logging
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .artifacts import Progress, SilentProgress
from .evaluation import accuracy_gain
from .models import MissingExtraError, quiet_transformers
from .wording import one_line

__all__ = ["HarnessSettings", "HarnessTasks", "TaskResult", "score_gains"]

_REQUESTS = ("loglikelihood", "loglikelihood_rolling", "generate_until")  # what a task may ask of a model
_RESAMPLES = 1000  # of standard errors that are not those of a mean


@dataclass(frozen=True)
class HarnessSettings:
    """Which tasks, and how much of them.

    names: of tasks, groups or tags. folder: with YAML tasks of one's own. shots: examples put before each question; the
    task's own number, or else 0, when None. limit: only the first so many items of each task.
    """

    names: tuple[str, ...]
    folder: Path | None = None
    shots: int | None = None
    limit: int | None = None


@dataclass(frozen=True)
class TaskResult:
    """What the harness found on one task, or on a group of tasks.

    values, stderr: by metric; one behind a filter is called "metric,filter". stderr lacks what has none.
    scores: [items] float64 by metric, of those that are a mean over items; none of a group. Models are paired by them.
    """

    items: int | None
    shots: int | None
    version: str
    values: dict[str, float]
    stderr: dict[str, float]
    scores: dict[str, Tensor] = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Without the scores."""
        metrics = {name: {"value": value, "stderr": self.stderr.get(name)} for name, value in self.values.items()}
        return {"items": self.items, "shots": self.shots, "version": self.version, "metrics": metrics}


def score_gains(
    mine: Mapping[str, TaskResult], other: Mapping[str, TaskResult], *, seed: int = 0
) -> dict[str, dict[str, dict[str, float]]]:
    """mean(mine) − mean(other) over the same items, by task and metric, as `accuracy_gain` has it."""
    return {
        task: {
            name: asdict(accuracy_gain(score, other[task].scores[name], seed=seed))
            for name, score in found.scores.items() if name in other[task].scores
        }
        for task, found in mine.items() if found.scores
    }  # fmt: skip


class HarnessTasks:
    """Tasks with their data, loaded once: every model answers the same items with the same examples before them.

    Raises:
        MissingExtraError: lm_eval is not installed.
        ValueError: no such task, or one whose data cannot be had.
    """

    def __init__(self, settings: HarnessSettings, *, progress: Progress | None = None) -> None:
        if importlib.util.find_spec("lm_eval") is None:
            raise MissingExtraError(
                "tasks of lm-evaluation-harness need the package lm_eval, which is not installed: "
                "pip install --no-build-isolation '.[harness]' in the checkout, or give items of your own with "
                "--choices"
            )
        if not settings.names:
            raise ValueError("no task of lm-evaluation-harness is named; give some such as arc_easy,piqa")
        if settings.folder is not None and not settings.folder.is_dir():
            raise ValueError(f"{settings.folder} is no directory; give one with YAML tasks")
        self.settings = settings
        self.version = str(importlib.import_module("lm_eval").__version__)
        self._tasks: dict[str, Any] = {"tasks": {}, "groups": {}}
        with _as_the_harness(), (progress or SilentProgress()).task("harness tasks", len(settings.names)) as advance:
            manager = _manager(settings)
            for name in settings.names:
                found = self._load(manager, name)
                for kind, loaded in self._tasks.items():
                    loaded.update(found.get(kind, {}))
                advance(1)
        for name, task in self._tasks["tasks"].items():
            if getattr(task, "UNSAFE_CODE", False):
                raise ValueError(f"{name} runs code that the model writes; use lm_eval itself, in a sandbox, for it")
            self._set_shots(task)

    def _load(self, manager: Any, name: str) -> dict[str, Any]:
        if name not in manager.task_index:
            near = difflib.get_close_matches(name, manager.all_tasks)
            where = f"nor {self.settings.folder} a YAML that can be read" if self.settings.folder is not None else ""
            raise ValueError(
                f"lm-evaluation-harness {self.version} has no task {one_line(name)!r} {where}".rstrip()
                + (f"; did you mean {' or '.join(near)}?" if near else "; `lm_eval ls tasks` lists them")
            )
        try:
            found: dict[str, Any] = manager.load([name])
        except OSError as error:  # what datasets raises for a file or hub that is not there is one
            raise ValueError(
                f"the data of task {name} cannot be had: {one_line(error)}; check the path or the connection, "
                "or give tasks with data of your own by --harness-tasks"
            ) from error
        except Exception as error:  # a task may run any code
            raise ValueError(f"task {name} cannot be loaded: {_said(error)}") from error
        return found

    def _set_shots(self, task: Any) -> None:
        """As simple_evaluate: a task that says 0 itself keeps it."""
        own, wanted = task.get_config("num_fewshot"), self.settings.shots
        if own is None or (wanted is not None and own != 0):
            task.set_config(key="num_fewshot", value=wanted or 0)

    def measure(
        self, model: Any, tokenizer: Any, *, batch: int = 4, progress: Progress | None = None
    ) -> dict[str, TaskResult]:
        """Results by task and group, in the harness's order.

        Args:
            model, tokenizer: whatever `restorelcc.load` and `tokenizer_of` give.
            batch: rows at once; their logits are held, which `multiple_choice` does not do.

        Raises:
            ValueError: a task does not run on this model.
        """
        stock, defaults = importlib.import_module("lm_eval"), importlib.import_module("lm_eval.defaults")
        with _as_the_harness():
            lm = importlib.import_module("lm_eval.models.huggingface").HFLM(
                pretrained=model, tokenizer=tokenizer, batch_size=batch, softmax_dtype="float32"
            )
            for kind in _REQUESTS:
                setattr(lm, kind, _counted(lm, getattr(lm, kind), progress or SilentProgress()))
            for task in self._tasks["tasks"].values():
                task.set_fewshot_seed(seed=defaults.DEFAULT_OTHER_SEED)  # so that each model gets the same examples
            try:
                found = stock.evaluate(lm, self._tasks, limit=self.settings.limit, bootstrap_iters=_RESAMPLES)
            except Exception as error:
                names = ", ".join(self.settings.names)
                raise ValueError(f"lm-evaluation-harness cannot run {names}: {_said(error)}") from error
        rows = {**found["results"], **found.get("groups", {})}
        results = {name: _task_result(name, row, found) for name, row in rows.items()}
        return {name: result for name, result in results.items() if result.values}  # some groups have no metric


def _manager(settings: HarnessSettings) -> Any:
    """Of the folder alone where it has all the tasks: reading the harness's own 15 000 takes ten seconds and more."""
    kind = importlib.import_module("lm_eval.tasks").TaskManager
    if settings.folder is None:
        return kind()
    own = kind(include_path=str(settings.folder), include_defaults=False)
    return own if set(settings.names) <= set(own.all_subtasks) else kind(include_path=str(settings.folder))


def _task_result(name: str, row: Mapping[str, Any], found: Mapping[str, Any]) -> TaskResult:
    values: dict[str, float] = {}
    stderr: dict[str, float] = {}
    for key, value in row.items():
        metric, comma, chosen = key.partition(",")
        if comma and isinstance(value, Real):
            kept = stderr if metric.endswith("_stderr") else values
            kept[_metric(metric.removesuffix("_stderr"), chosen)] = float(value)
    scores: dict[str, list[float]] = {}
    for sample in found["samples"].get(name, []):
        for metric in sample["metrics"]:
            if isinstance(sample[metric], Real):
                scores.setdefault(_metric(metric, sample["filter"]), []).append(float(sample[metric]))
    means = {metric: torch.tensor(score, dtype=torch.float64) for metric, score in scores.items()}
    return TaskResult(
        row.get("sample_len"), found["n-shot"].get(name), str(found["versions"].get(name, "")), values, stderr,
        {metric: score for metric, score in means.items()
         if metric in values and abs(float(score.mean()) - values[metric]) < 1e-9},
    )  # fmt: skip


def _metric(name: str, chosen: str) -> str:
    return name if chosen == "none" else f"{name},{chosen}"


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(error)}"


class _Answered:
    """What the harness calls after each request, in place of its cache."""

    def __init__(self, advance: Callable[[int], None]) -> None:
        self._advance = advance

    def add_partial(self, *_: Any) -> None:
        self._advance(1)


def _counted(lm: Any, answer: Callable[..., Any], progress: Progress) -> Callable[[Any], Any]:
    """`answer`, a method of `lm`, with our bar over its requests in place of its own."""

    def run(requests: Sequence[Any]) -> Any:
        with progress.task("harness", len(requests)) as advance:
            lm.set_cache_hook(_Answered(advance))
            return answer(requests, disable_tqdm=True)

    return run


@contextmanager
def _as_the_harness() -> Iterator[None]:
    """Its seeds, and nothing printed by it or by datasets; as before after.

    TQDM_DISABLE=1, which the command line sets, turns its bars off, save one of perplexity tasks that nothing does.
    """
    datasets, defaults = importlib.import_module("datasets"), importlib.import_module("lm_eval.defaults")
    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets")]
    levels, bars = [logger.level for logger in loggers], not datasets.are_progress_bars_disabled()
    drawn, drawn_numpy = random.getstate(), np.random.get_state()
    with quiet_transformers(), torch.random.fork_rng(devices=[]):
        random.seed(defaults.DEFAULT_RANDOM_SEED)
        np.random.seed(defaults.DEFAULT_OTHER_SEED)
        torch.manual_seed(defaults.DEFAULT_OTHER_SEED)
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        datasets.disable_progress_bars()
        try:
            yield
        finally:
            random.setstate(drawn)
            np.random.set_state(drawn_numpy)
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
            if bars:
                datasets.enable_progress_bars()
