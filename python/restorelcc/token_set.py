"""Rows of token ids, and which of them count in a loss.

ids [n, T] right-padded, lengths [n], response_start [n]
token i of a row is predicted, and counts, when  response_start <= i < length      (i >= 1)
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .artifacts import atomic_write_tensors
from .step_file import read_step_file

__all__ = ["TokenSet", "context_of", "join_rows", "padding_id"]

_FIELDS = {"ids": (torch.int64, "n T"), "lengths": (torch.int64, "n"), "response_start": (torch.int64, "n")}


def padding_id(tokenizer: object) -> int:
    """The id that pads: the tokenizer's own, or that of its end of text, or 0 (padding is masked everywhere)."""
    for name in ("pad_token_id", "eos_token_id"):
        found = getattr(tokenizer, name, None)
        if found is not None:
            return int(found)
    return 0


def context_of(model: Any) -> int | None:
    """The most tokens that the model takes, or None when its configuration does not say."""
    limit = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None


@dataclass(frozen=True)
class TokenSet:
    """Text as token ids; see the module for the letters.

    ids: int64 [n, T], right-padded. lengths: int64 [n], 1..T. response_start: int64 [n], >= 1, the first token whose
    loss counts (1 in plain text). name: where the text is from. note: what was left out while making it, or "".

    Raises:
        ValueError: shapes that do not fit, or lengths or response_start out of range.
    """

    ids: Tensor
    lengths: Tensor
    response_start: Tensor
    name: str
    note: str = ""

    def __post_init__(self) -> None:
        rows, width = self.ids.shape
        if self.lengths.shape != (rows,) or self.response_start.shape != (rows,):
            raise ValueError(
                f"{rows} rows of ids, but lengths {list(self.lengths.shape)} and "
                f"response_start {list(self.response_start.shape)}; each needs [{rows}]"
            )
        if rows and (int(self.lengths.min()) < 1 or int(self.lengths.max()) > width):
            raise ValueError(
                f"lengths run from {int(self.lengths.min())} to {int(self.lengths.max())}; they must be 1 to {width}"
            )
        if rows and int(self.response_start.min()) < 1:
            raise ValueError("response_start must be at least 1: nothing predicts the first token")
        if rows and int(self.ids.min()) < 0:
            raise ValueError(f"ids hold {int(self.ids.min())}; a token id is 0 or more")

    def __len__(self) -> int:
        return int(self.ids.shape[0])

    @property
    def attention_mask(self) -> Tensor:
        """int64 [n, T]: 1 on tokens, 0 on padding."""
        return (torch.arange(self.ids.shape[1])[None, :] < self.lengths[:, None]).long()

    @property
    def labels(self) -> Tensor:
        """int64 [n, T]: ids, with -100 where no loss counts; unshifted, the stock models shift."""
        index = torch.arange(self.ids.shape[1])[None, :]
        counts = (index < self.lengths[:, None]) & (index >= self.response_start[:, None])
        return torch.where(counts, self.ids, -100)

    @property
    def tokens(self) -> int:
        """Number of predicted tokens."""
        return int((self.lengths - self.response_start).clamp(min=0).sum())

    def check_model(self, model: Any) -> None:
        """Raises ValueError when a token id is none of `model`'s vocabulary, or a row longer than its context."""
        size, limit = int(model.config.get_text_config(decoder=True).vocab_size), context_of(model)
        if limit is not None and len(self) and int(self.lengths.max()) > limit:
            raise ValueError(
                f"rows of {int(self.lengths.max())} tokens, but the model's context is {limit}; use a smaller window"
            )
        if len(self) and int(self.ids.max()) >= size:
            raise ValueError(
                f"{self.name or 'the text'} holds token {int(self.ids.max())}, but the model knows {size}; "
                "it was made with another tokenizer, make the text again"
            )

    def subset(self, rows: Tensor | Sequence[int]) -> TokenSet:
        """The rows with these indices, in this order; T stays."""
        index = torch.as_tensor(rows, dtype=torch.long)
        return TokenSet(self.ids[index], self.lengths[index], self.response_start[index], self.name, self.note)

    def first(self, tokens: int) -> TokenSet:
        """The first rows that hold at most `tokens` predicted tokens, and at least one row."""
        before = (self.lengths - self.response_start).clamp(min=0).cumsum(0)
        return self.subset(range(max(1, int((before <= tokens).sum()))))

    def split(self, fraction: float, seed: int) -> tuple[TokenSet, TokenSet]:
        """(train, held out): disjoint rows, about `fraction` of them held out and at least one in each.

        Raises:
            ValueError: fewer than 2 rows, or a fraction outside of (0, 1).
        """
        rows = len(self)
        if rows < 2 or not 0 < fraction < 1:
            raise ValueError(f"cannot hold out {fraction} of {rows} rows; give 2 rows or more and a share in (0, 1)")
        held = min(max(round(rows * fraction), 1), rows - 1)
        order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
        return self.subset(order[held:].sort().values), self.subset(order[:held].sort().values)

    def batches(self, size: int) -> Iterator[TokenSet]:
        """Batches of `size` rows in order, each no wider than its longest row."""
        if size < 1:
            raise ValueError(f"a batch needs at least 1 row, not {size}")
        for begin in range(0, len(self), size):
            lengths = self.lengths[begin : begin + size]
            width = int(lengths.max())
            ids, start = self.ids[begin : begin + size, :width], self.response_start[begin : begin + size]
            yield TokenSet(ids, lengths, start, self.name, self.note)

    def fingerprint(self) -> str:
        """sha256 over ids, lengths and response_start."""
        digest = hashlib.sha256(str(tuple(self.ids.shape)).encode())
        for tensor in (self.ids, self.lengths, self.response_start):
            digest.update(tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def save(self, path: Path) -> None:
        """Writes a safetensors file, whole or not at all."""
        tensors = {"ids": self.ids, "lengths": self.lengths, "response_start": self.response_start}
        metadata = {"kind": "tokens", "version": "0", "name": self.name, "note": self.note}
        atomic_write_tensors(path, tensors, metadata)

    @classmethod
    def load(cls, path: Path) -> TokenSet:
        """Raises ValueError when the file is missing, damaged or not a token file of this version."""
        found, metadata = read_step_file(path, "tokens", _FIELDS, name="token", remedy="make the text again")
        try:
            return cls(**found, name=metadata.get("name", ""), note=metadata.get("note", ""))
        except ValueError as error:
            raise ValueError(f"{path} is damaged: {error}") from error

    @classmethod
    def from_rows(
        cls, rows: Sequence[Sequence[int]], *, pad: int, name: str, starts: Sequence[int] | None = None, note: str = ""
    ) -> TokenSet:
        """Right-pads rows of ids. Raises ValueError when there is no row or an empty one."""
        if not rows or min(len(row) for row in rows) == 0:
            raise ValueError(f"{name} has no tokens; give some text")
        lengths = torch.tensor([len(row) for row in rows])
        ids = torch.full((len(rows), int(lengths.max())), pad)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = torch.as_tensor(row)
        start = torch.ones(len(rows), dtype=torch.long) if starts is None else torch.as_tensor(starts)
        return cls(ids, lengths, start, name, note)


def join_rows(*sets: TokenSet) -> TokenSet:
    """The rows of all sets, one set after the other, as wide as the widest; shorter rows are padded with 0."""
    width = max(found.ids.shape[1] for found in sets)
    ids = [torch.nn.functional.pad(found.ids, (0, width - found.ids.shape[1])) for found in sets]
    return TokenSet(
        torch.cat(ids), torch.cat([found.lengths for found in sets]),
        torch.cat([found.response_start for found in sets]), " + ".join(found.name for found in sets),
    )  # fmt: skip
