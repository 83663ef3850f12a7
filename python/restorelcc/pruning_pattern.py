"""How many weights stay: a share of a row, of a matrix or of each group of M columns, and which mask that is."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Pattern", "layer_patterns"]


@dataclass(frozen=True)
class Pattern:
    """How many weights stay: a fraction (unstructured), or `keep` of every `group` columns of a row (N:M)."""

    text: str
    fraction: float  # share of weights pruned
    keep: int = 0
    group: int = 0  # 0: unstructured

    @classmethod
    def parse(cls, text: str) -> Pattern:
        """ "0.5" prunes half of the weights; "2:4" keeps 2 of every 4 neighbours along a row.

        Raises:
            ValueError: neither form, a fraction outside of (0, 1), or N:M with N not in 1..M-1.
        """
        known = f"unknown pattern {text!r}; "
        pair = re.fullmatch(r"([0-9]+):([0-9]+)", text.strip())
        if pair:
            keep, group = int(pair[1]), int(pair[2])
            if not 0 < keep < group:
                raise ValueError(f"{known}N:M keeps N of every M weights and needs 0 < N < M, such as 2:4 or 4:8")
            return cls(text.strip(), 1 - keep / group, keep, group)
        try:
            fraction = float(text)
        except ValueError:
            raise ValueError(f"{known}give the share of weights to prune, such as 0.5, or N:M, such as 2:4") from None
        if not 0 < fraction < 1:
            raise ValueError(f"{known}the share of weights to prune lies between 0 and 1, such as 0.5")
        return cls(text.strip(), fraction)

    @property
    def sparsity(self) -> float:
        """Share of zeros this pattern makes."""
        return self.fraction

    def mask(self, scores: Tensor, *, compare: str = "row") -> Tensor:
        """Keep-mask [N, K] bool: the highest scores of each comparison group stay.

        Ties keep the lowest column (then row) index, so the mask is a function of the scores alone.

        Args:
            scores: [N, K], finite or infinite, not NaN.
            compare: "row" or "matrix", for unstructured patterns; int(size * fraction) weights of each group go.

        Raises:
            ValueError: K not divisible by M; NaN in the scores; another `compare`.
        """
        if compare not in ("row", "matrix"):
            raise ValueError(f"unknown comparison {compare!r}; scores are compared per row or per matrix")
        rows, columns = scores.shape
        if bool(torch.isnan(scores).any()):
            raise ValueError(f"{int(torch.isnan(scores).sum())} of the {scores.numel()} scores are NaN")
        if self.group:
            if columns % self.group:
                raise ValueError(
                    f"{columns} columns are not divisible by {self.group}, which pattern {self.text} needs; "
                    "use an unstructured pattern such as 0.5"
                )
            highest = _highest_by_pairs if self.group <= _MOST_PAIRED else _highest
            return highest(scores.reshape(-1, self.group), self.keep).reshape(rows, columns)
        grouped = scores if compare == "row" else scores.reshape(1, -1)
        size = grouped.shape[1]
        return _highest(grouped, size - int(size * self.fraction)).reshape(rows, columns)


def _highest(scores: Tensor, keep: int) -> Tensor:
    """Mask of the `keep` highest entries of each row [R, C]; of equal ones the first. O(C) a row, no sort."""
    if keep == scores.shape[1]:
        return torch.ones_like(scores, dtype=torch.bool)
    threshold = scores.kthvalue(scores.shape[1] - keep + 1, dim=1, keepdim=True).values
    above, equal = scores > threshold, scores == threshold
    open_places = keep - above.sum(1, keepdim=True)
    return above | (equal & (equal.cumsum(1) <= open_places))


_MOST_PAIRED = 16  # columns, up to which every pair compared takes less time than a threshold sought (4: a quarter)


def _highest_by_pairs(scores: Tensor, keep: int) -> Tensor:
    """The same as `_highest` for short rows: those places that fewer than `keep` others are ahead of."""
    places = scores.T.contiguous()
    ahead = torch.zeros(places.shape, dtype=torch.uint8)
    for right in range(1, len(places)):
        for left in range(right):
            wins = places[left] >= places[right]
            ahead[right] += wins
            ahead[left] += ~wins
    return (ahead < keep).T.contiguous()


def layer_patterns(text: str | Pattern, layers: int) -> list[Pattern]:
    """One pattern for each of `layers` decoder layers: "0.5" for all of them, or "0.3,0.4,...", as many as layers.

    Raises:
        ValueError: a pattern that `Pattern.parse` refuses, or another number of them.
    """
    if isinstance(text, Pattern):
        return [text] * layers
    parts = [Pattern.parse(part) for part in text.split(",")]
    if len(parts) not in (1, layers):
        raise ValueError(
            f"{len(parts)} patterns for {layers} decoder layers; give one for all, or one for each, first layer first"
        )
    return parts * layers if len(parts) == 1 else parts
