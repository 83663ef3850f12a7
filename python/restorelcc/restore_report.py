"""What a restoration reports: `report.json` in its work directory, and what `restorelcc restore --json` prints."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["RestoreReport"]


@dataclass
class RestoreReport:
    """What was done and what came of it.

    heldout: means on the held-out training rows, in `heldout_unit`.
    """

    recipe: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    heldout: dict[str, float] = field(default_factory=dict)
    heldout_unit: str = "NLL, nats per token"
    fold: dict[str, Any] = field(default_factory=dict)
    head_scores: dict[str, list[list[float]]] = field(default_factory=dict)
    score_units: dict[str, str] = field(default_factory=dict)
    selected: list[list[bool]] = field(default_factory=list)
    history: list[dict[str, float]] = field(default_factory=list)
    search: list[dict[str, float]] = field(default_factory=list)
    sparsity: list[dict[str, Any]] = field(default_factory=list)
    text: dict[str, Any] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    peak_rss_bytes: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON values."""
        return asdict(self)
