"""What was checked, and what was found wrong: for the screen, the JSON and the exit status."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Verdict:
    """checks: of each kind ("instruction", "sparse_linear"), how many. problems: (kind, case, sentence)."""

    checks: Counter[str] = field(default_factory=Counter)
    problems: list[tuple[str, str, str]] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    worst: dict[str, float] = field(default_factory=dict)  # of each op: the largest error, as a share of its budget

    def add(self, kind: str, case: str, problem: str | None) -> None:
        """One check; problem is None where it passed."""
        self.checks[kind] += 1
        if problem is not None:
            self.problems.append((kind, case, problem))

    def error(self, kind: str, share: float) -> None:
        """An error as a share of what is allowed."""
        self.worst[kind] = max(self.worst.get(kind, 0.0), share)

    def skip(self, what: str, why: str) -> None:
        """Something that could not be looked at here."""
        self.skipped.append((what, why))

    @property
    def passed(self) -> bool:
        return not self.problems

    def lines(self) -> list[str]:
        """For the screen."""
        lines = []
        for kind, count in self.checks.items():
            wrong = sum(found == kind for found, _, _ in self.problems)
            share = f", largest error {self.worst[kind]:.2g} of what is allowed" if kind in self.worst else ""
            lines.append(f"{kind}: {count - wrong} of {count} checks passed{share}")
        lines += [f"  WRONG {kind}: {case}: {problem}" for kind, case, problem in self.problems[:40]]
        if len(self.problems) > 40:
            lines.append(f"  ... and {len(self.problems) - 40} more, in the JSON")
        return lines + [f"  skipped: {what}: {why}" for what, why in self.skipped]

    def as_json(self) -> dict[str, Any]:
        return {
            "passed": self.passed,
            "checks": dict(self.checks),
            "problems": [dict(zip(("kind", "case", "problem"), found, strict=True)) for found in self.problems],
            "skipped": [{"what": what, "why": why} for what, why in self.skipped],
            "largest_error_of_allowed": self.worst,
        }
