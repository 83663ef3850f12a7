"""Head scores, and the file they are kept in, with everything needed to make them again.

    scores     [L, H] float64      larger = more worth restoring
    <detail>   [L, H] or [] float64, whatever else the probe reports: half_width, undecided, units, work ...
    metadata   kind "head_scores", version "0", probe, unit, record

`record` is a JSON object: how the probe was called, fingerprints of all that it read, versions, time and memory. Files
from before there were records have none; they are read with an empty one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .artifacts import atomic_write_tensors
from .step_file import read_step_file

__all__ = ["HeadScores"]

_REMEDY = "make one with `restorelcc probe`"
_MOST_RECORD = 1 << 20  # characters; a record has some thousands
_FORMS = ((torch.float64, "L H"), (torch.float64, ""))


@dataclass(frozen=True)
class HeadScores:
    """scores [L, H] float64, larger = more worth restoring; `unit` says what the number means.

    details: further tensors of the probe, float64, [L, H] or a single number. record: plain JSON values.
    """

    kind: str
    unit: str
    scores: Tensor
    details: dict[str, Tensor] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)

    @property
    def undecided(self) -> Tensor | None:
        """bool [L, H]: heads that the probe could not place above or below the cut; None where it does not say."""
        marked = self.details.get("undecided")
        return None if marked is None else marked != 0

    @property
    def numbers(self) -> dict[str, float]:
        """The details that are single numbers."""
        return {key: float(value) for key, value in sorted(self.details.items()) if value.dim() == 0}

    def save(self, path: Path, metadata: Mapping[str, str] | None = None) -> None:
        """Writes the file that load() reads, whole or not at all.

        Raises:
            ValueError: a detail that is neither [L, H] nor a single number, or one named `scores`.
        """
        for key, value in self.details.items():
            if key == "scores" or (value.dim() and value.shape != self.scores.shape):
                raise ValueError(
                    f"the detail {key} has shape {list(value.shape)}; a score file holds details of shape "
                    f"{list(self.scores.shape)} or single numbers, under names of their own"
                )
        tensors = {"scores": self.scores, **{key: value.double() for key, value in self.details.items()}}
        record = json.dumps(self.record, sort_keys=True, allow_nan=False)
        marks = {"kind": "head_scores", "version": "0", "probe": self.kind, "unit": self.unit, "record": record}
        atomic_write_tensors(path, tensors, {**(metadata or {}), **marks})

    @classmethod
    def load(cls, path: Path) -> HeadScores:
        """Raises ValueError when the file is missing, damaged or not a score file of this version."""
        found, metadata = read_step_file(
            path, "head_scores", {"scores": _FORMS[0]}, name="head score", remedy=_REMEDY, marks=("probe", "unit"),
            others=_FORMS,
        )  # fmt: skip
        record = _record(path, metadata.get("record", "{}"))
        return cls(metadata["probe"], metadata["unit"], found.pop("scores"), found, record)


def _record(path: Path, text: str) -> dict[str, Any]:
    if len(text) > _MOST_RECORD:
        raise ValueError(f"{path} has a record of {len(text):,} characters; {_REMEDY}")
    try:
        value = json.loads(text, parse_constant=_finite, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} has a record that is not JSON ({error}); {_REMEDY}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} has a record that is a JSON {type(value).__name__}, not an object; {_REMEDY}")
    return value


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is no finite number")
    return value
