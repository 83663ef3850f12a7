"""Contrastive pairs: the same prompt with its right answer and with a wrong one."""

from __future__ import annotations

from dataclasses import dataclass

from .token_set import TokenSet

__all__ = ["PairSet"]


@dataclass(frozen=True)
class PairSet:
    """Row i of `positive` and of `negative` is prompt i with its right and a wrong answer; only answers count.

    Raises:
        ValueError: different numbers of rows.
    """

    positive: TokenSet
    negative: TokenSet
    note: str = ""

    def __post_init__(self) -> None:
        if len(self.positive) != len(self.negative):
            raise ValueError(
                f"{len(self.positive)} positive rows, but {len(self.negative)} negative ones; a pair needs one of each"
            )

    def __len__(self) -> int:
        return len(self.positive)
