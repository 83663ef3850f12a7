"""Strings to rows of token ids, as the tokenizer itself would begin them.

windows:     text -> [prefix + next (T - len(prefix)) ids], [prefix + next ...], ...     the ragged tail dropped
answer_row:  prompt + answer -> ids of the joint string, and the first id that reaches into the answer
"""

from __future__ import annotations

from typing import Any

from .models import quiet_transformers
from .token_set import TokenSet, padding_id

__all__ = ["answer_row", "windows"]


def windows(text: str, tokenizer: Any, *, window: int, name: str) -> TokenSet:
    """Windows of `window` tokens that do not overlap; each begins with the tokenizer's own prefix (such as <s>).

    Raises:
        ValueError: no text, or less than one window.
    """
    prefix = prefix_ids(tokenizer)
    with quiet_transformers():  # text longer than the model's context is what we cut, no reason to warn
        ids = tokenizer(text, add_special_tokens=False).input_ids
    if not ids:
        raise ValueError(f"{name} has no tokens; give some text")
    step = window - len(prefix)
    if step < 1 or len(ids) < step:
        raise ValueError(
            f"{name} has {len(ids) + len(prefix)} tokens, fewer than one window of {window}; use a smaller window"
        )
    rows = [prefix + ids[begin : begin + step] for begin in range(0, len(ids) - step + 1, step)]
    return TokenSet.from_rows(rows, pad=padding_id(tokenizer), name=name)


def prefix_ids(tokenizer: Any) -> list[int]:
    """What the tokenizer puts before every text: [bos] or nothing."""
    bare = tokenizer("a", add_special_tokens=False).input_ids
    full = tokenizer("a").input_ids
    return [] if len(full) == len(bare) else full[: full.index(bare[0])]


def answer_row(tokenizer: Any, prompt: str, answer: str) -> tuple[list[int], int]:
    """(ids of prompt + answer, index of the first id that reaches into the answer, at least 1).

    Tokenised as one string, so the border is where a stock run would have it; a token that straddles it counts as
    answer. Slow tokenizers, which know no character offsets, get the two parts tokenised one after the other.
    """
    if getattr(tokenizer, "is_fast", False):
        joint = tokenizer(prompt + answer, return_offsets_mapping=True)
        ends = [end for _, end in joint.offset_mapping]
        start = next((index for index, end in enumerate(ends) if end > len(prompt)), len(ends))
        return list(joint.input_ids), max(start, 1)
    head = list(tokenizer(prompt).input_ids)
    return head + list(tokenizer(answer, add_special_tokens=False).input_ids), max(len(head), 1)
