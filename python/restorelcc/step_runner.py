"""Steps that leave a file each, and are not made again while that file and all that went into it are the same."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from .resume import code_stamp, is_finished, mark_finished
from .training_checkpoint import TrainingCheckpoint

__all__ = ["Steps"]

Value = TypeVar("Value")


class Steps:
    """Files of finished steps in a work directory, each beside the fingerprint of what went into it.

    save_seconds: from one save inside a step to the next.
    """

    save_seconds = 60.0

    def __init__(self, work: Path, timings: dict[str, float]) -> None:
        self.work, self.timings = work, timings
        work.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Notes how long what stands inside took."""
        begin = time.perf_counter()
        yield
        self.timings[name] = time.perf_counter() - begin

    def run(
        self, name: str, stamp: str, make: Callable[[Path], Value], load: Callable[[Path], Value], *beside: Path
    ) -> Value:
        """make(path) writes the step's file (and those `beside`) and returns its value, unless a finished one has
        this stamp and its files are as they were left."""
        path, mark = self.work / f"{name}.safetensors", self.work / f"{name}.json"
        with self.timed(name):
            if is_finished(mark, stamp, path, *beside):
                value = load(path)
            else:
                value = make(path)
                mark_finished(mark, stamp, path, *beside)
            TrainingCheckpoint.remove(self._within(name))
        return value

    def checkpoint(self, name: str, stamp: str, *, leave: int = 0) -> TrainingCheckpoint:
        """Where `make` of the step may save how far it is; `run` removes it when the step is finished.

        leave: bytes of the disk that it must not take.
        """
        return TrainingCheckpoint(self._within(name), stamp + code_stamp(), seconds=self.save_seconds, leave=leave)

    def _within(self, name: str) -> Path:
        return self.work / f"{name}.unfinished.safetensors"
