"""Where a training run stands, in one file, so that a killed run goes on from there and ends with the same bits.

    leaf.<i>        what the optimiser trains, in its order
    adam.<i>.<key>  the optimiser's state of it (exp_avg, exp_avg_sq, step)
    best.<i>        the best state so far, left out while that is the start
    record          the other numbers of the run, as JSON; JSON gives a float back exactly

Before the first step the record is all there is. Disk: up to 16 bytes for every number trained, written at most once in
`seconds`, one tensor in memory at a time. A file that is damaged, of another run or of other shapes counts as none.
"""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from .artifacts import atomic_file
from .packed_file import write_aligned

__all__ = ["Saved", "Standing", "TrainingCheckpoint"]

_KIND, _VERSION = "training run", "0"


@dataclass
class Standing:
    """The numbers of a run. before, best: held-out NLL of the start and of the best state.

    stale: measurements since the best one.
    """

    before: float
    best: float
    step: int = 0
    stale: int = 0
    search: list[dict[str, float]] = field(default_factory=list)
    history: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Saved:
    """What a checkpoint held: tensors are those of the module's first lines, mapped from the file."""

    standing: Standing
    schedule: dict[str, Any]
    tensors: dict[str, Tensor]

    def best(self) -> list[Tensor] | None:
        """The best state; None where that is the start."""
        found = [self.tensors[name].clone() for name in _numbered("best", self.tensors)]
        return found or None

    @torch.no_grad()
    def put(self, optimiser: Optimizer, schedule: LRScheduler) -> None:
        """Gives a new optimiser, its leaves and its schedule what those of the saved run had."""
        leaves = _leaves(optimiser)
        for index, leaf in enumerate(leaves):
            leaf.copy_(self.tensors[f"leaf.{index}"])
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in self.tensors.items():
            if name.startswith("adam."):
                _, index_text, key = name.split(".")
                state.setdefault(int(index_text), {})[key] = value.clone()
        optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
        schedule.load_state_dict(self.schedule)
        for group, rate in zip(optimiser.param_groups, schedule.get_last_lr(), strict=True):
            group["lr"] = rate


class TrainingCheckpoint:
    """A file in which one run is saved from time to time."""

    def __init__(self, path: Path, stamp: str, *, seconds: float = 60.0, leave: int = 0) -> None:
        """stamp: fingerprint of all that goes into the run. seconds: from one save, or from now, to the next.

        leave: bytes that stay free for the result. What is saved must not take the room of what it is saved for.
        """
        self.path, self.stamp, self.seconds, self.leave = path, stamp, seconds, leave
        self._last = time.monotonic()

    def due(self) -> bool:
        """Whether the last save is long enough ago."""
        return time.monotonic() - self._last >= self.seconds

    def save(self, standing: Standing) -> None:
        """The numbers alone, before the first step: some kilobytes."""
        self._write(standing, {}, {})

    def save_run(
        self, standing: Standing, optimiser: Optimizer, schedule: LRScheduler, best: Sequence[Tensor] | None
    ) -> None:
        """All of a run. best: None where that is the start. Where there is no room the run goes on without.

        While one save replaces another both are on the disk.
        """
        tensors = {f"leaf.{index}": leaf for index, leaf in enumerate(_leaves(optimiser))}
        for index, state in optimiser.state_dict()["state"].items():
            tensors |= {f"adam.{index}.{key}": value for key, value in state.items()}
        tensors |= {f"best.{index}": value for index, value in enumerate(best or ())}
        self._write(standing, schedule.state_dict(), tensors)
        self._last = time.monotonic()

    def _write(self, standing: Standing, schedule: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        record = json.dumps({"standing": asdict(standing), "schedule": schedule})
        metadata = {
            "kind": _KIND, "version": _VERSION, "stamp": self.stamp, "record": record,
            "crc32": str(_checksum(record, tensors)),
        }  # fmt: skip
        needed = sum(tensor.nbytes for tensor in tensors.values()) + (self.leave if tensors else 0)
        with suppress(OSError), atomic_file(self.path, needed) as partial:  # a full disk is no reason to stop training
            write_aligned(partial, tensors, metadata)

    def load(self, optimiser: Optimizer, state: Sequence[Tensor]) -> Saved | None:
        """What was saved of this run, where it is whole and has the shapes of the optimiser's leaves and of `state`."""
        try:
            with safe_open(self.path, framework="pt") as file:
                metadata = file.metadata() or {}
                if [metadata.get(key) for key in ("kind", "version", "stamp")] != [_KIND, _VERSION, self.stamp]:
                    return None
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError):
            return None
        record = metadata.get("record", "")
        if metadata.get("crc32") != str(_checksum(record, tensors)) or not _fits(tensors, _leaves(optimiser), state):
            return None
        found = json.loads(record)
        return Saved(Standing(**found["standing"]), found["schedule"], tensors)

    @staticmethod
    def remove(path: Path) -> None:
        """Removes the file, and what a killed save left beside it."""
        for left in (path, *path.parent.glob(f"{path.name}.partial-*")):
            left.unlink(missing_ok=True)


def _leaves(optimiser: Optimizer) -> list[Tensor]:
    return [leaf for group in optimiser.param_groups for leaf in group["params"]]


def _numbered(kind: str, tensors: Mapping[str, Tensor]) -> list[str]:
    """Names `kind`.0, `kind`.1, ... as far as they go."""
    count = sum(name.startswith(f"{kind}.") for name in tensors)
    return [f"{kind}.{index}" for index in range(count)]


def _fits(tensors: Mapping[str, Tensor], leaves: Sequence[Tensor], state: Sequence[Tensor]) -> bool:
    """Whether the tensors are none, or those of a run with such leaves and such a state."""
    shapes = {f"leaf.{index}": leaf.shape for index, leaf in enumerate(leaves)}
    best = {f"best.{index}": value.shape for index, value in enumerate(state)}
    if any(name.startswith("best.") for name in tensors):
        shapes |= best
    plain = {name: value.shape for name, value in tensors.items() if not name.startswith("adam.")}
    if tensors and plain != shapes:
        return False
    return all(
        value.dim() == 0 or value.shape == shapes.get(f"leaf.{name.split('.')[1]}")
        for name, value in tensors.items() if name.startswith("adam.")
    )  # fmt: skip


def _checksum(record: str, tensors: Mapping[str, Tensor]) -> int:
    """CRC-32 of the record and of every tensor's name, type, shape and bytes."""
    found = zlib.crc32(record.encode())
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        found = zlib.crc32(f"{name} {value.dtype} {list(value.shape)}".encode(), found)
        found = zlib.crc32(value.reshape(-1).view(torch.uint8).numpy().data, found)
    return found
