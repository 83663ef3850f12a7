"""Text that a model writes itself: calibration and training text without any data.

x_1..x_k = an opening,   x_{t+1} ~ softmax(logits(x_1..x_t) / temperature)         stock generate(), plain sampling
"""

from __future__ import annotations

from typing import Any

import torch

from .artifacts import Progress, SilentProgress
from .models import quiet_transformers
from .token_set import TokenSet, padding_id
from .windows import prefix_ids

__all__ = ["OPENINGS", "write_own_text"]

OPENINGS = (
    "The", "In the", "A", "It is", "When", "There are", "This", "For many years,", "Once upon a time,", "As",
    "If you", "We", "He", "She", "They", "One of the", "After", "Most people", "According to", "In 1994,",
    "How", "Although", "My", "During the", "At first", "What is", "To", "On the", "By", "Many", "Since", "The first",
    "Scientists", "Yesterday,", "Water", "Children", "The history of", "I", "Each", "While",
)  # fmt: skip
_ROUNDS_WITHOUT_TEXT = 4


def write_own_text(
    model: Any,
    tokenizer: Any,
    *,
    tokens: int = 16384,
    window: int = 256,
    batch: int = 64,
    seed: int = 0,
    temperature: float = 1.0,
    progress: Progress | None = None,
) -> TokenSet:
    """Text sampled from `model`, at least `tokens` predicted tokens of it.

    Args:
        tokens: predicted tokens wanted; whole rows, so a little more may come.
        window: tokens a row at most, its opening included. A row ends early at the model's end of text.
        batch: rows sampled at once.
        seed: the text is a function of the model, the arguments and this; the global generator is left as it was.
        temperature: of the sampling; 1 is the model's own distribution.

    Returns:
        TokenSet with response_start 1.

    Raises:
        ValueError: sizes or a temperature that are not positive, or a model that ends every row at once.
    """
    if tokens < 1 or window < 8 or batch < 1 or not temperature > 0:
        raise ValueError(
            f"tokens={tokens}, window={window}, batch={batch}, temperature={temperature}: "
            "need tokens >= 1, window >= 8, batch >= 1 and a positive temperature"
        )
    rows: list[list[int]] = []
    missing, idle = tokens, 0
    order = torch.randperm(len(OPENINGS), generator=torch.Generator().manual_seed(seed)).tolist()
    with (progress or SilentProgress()).task("writing text", tokens) as advance, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        begin = 0
        while missing > 0:
            count = min(batch, -(-missing // (window - 1)) + 2)
            openings = [OPENINGS[order[(begin + index) % len(order)]] for index in range(count)]
            begin += count
            gained = 0
            for row in _continue(model, tokenizer, openings, window, temperature):
                if missing > 0 and len(row) >= 8:
                    rows.append(row)
                    gained += len(row) - 1
                    missing -= len(row) - 1
            advance(min(gained, gained + missing))
            idle = idle + 1 if gained == 0 else 0
            if idle == _ROUNDS_WITHOUT_TEXT:
                raise ValueError(f"the model ended {idle * count} texts at once; give text in a file instead")
    return TokenSet.from_rows(rows, pad=padding_id(tokenizer), name="text written by the dense model")


@torch.no_grad()
def _continue(model: Any, tokenizer: Any, openings: list[str], window: int, temperature: float) -> list[list[int]]:
    """The openings continued up to `window` tokens: one stock generate() over the left-padded batch."""
    prefix, pad = prefix_ids(tokenizer), padding_id(tokenizer)
    starts = [prefix + tokenizer(text, add_special_tokens=False).input_ids for text in openings]
    width = max(map(len, starts))
    ids = torch.tensor([[pad] * (width - len(start)) + start for start in starts])
    mask = torch.tensor([[0] * (width - len(start)) + [1] * len(start) for start in starts])
    with quiet_transformers():
        out = model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=window - width, do_sample=True, temperature=temperature,
            top_k=0, top_p=1.0, repetition_penalty=1.0, num_beams=1, pad_token_id=pad,
        )  # fmt: skip
    ends = _end_ids(model)
    rows = []
    for start, row in zip(starts, out.tolist(), strict=True):
        written = row[width:]
        end = next((index + 1 for index, token in enumerate(written) if token in ends), len(written))
        rows.append(start + written[:end])
    return rows


def _end_ids(model: Any) -> set[int]:
    end = model.generation_config.eos_token_id
    return set() if end is None else {end} if isinstance(end, int) else set(end)
