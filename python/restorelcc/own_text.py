"""Text that a model writes itself: calibration and training text without any data.

    x_1 ~ uniform over the tokens,   x_{t+1} ~ softmax(logits(x_1..x_t) / temperature)     stock generate(), sampling

As in LLM-QAT (Liu et al., arXiv 2305.17888, section 2.1). What comes is as mixed as what the model was trained on:
prose, code, lists, other languages, fragments. That is worth more than how well it reads: weights refitted to answers
to requests, or to continuations of "The" and "In 1994,", serve text of that kind alone (docs/findings.md).
"""

from __future__ import annotations

from typing import Any

import torch

from .artifacts import Progress, SilentProgress
from .models import quiet_transformers
from .token_set import TokenSet, context_of, padding_id
from .windows import prefix_ids

__all__ = ["tokens_beside", "write_own_text"]

_SHORTEST = 8  # tokens; shorter rows say nothing and are dropped
_ROUNDS_WITHOUT_TEXT = 4


def write_own_text(
    model: Any,
    tokenizer: Any,
    *,
    tokens: int = 16384,
    window: int = 256,
    batch: int | None = None,
    seed: int = 0,
    temperature: float = 1.0,
    progress: Progress | None = None,
) -> TokenSet:
    """Text sampled from `model`, at least `tokens` predicted tokens of it.

    Args:
        tokens: predicted tokens wanted; whole rows, so a little more comes.
        window: tokens a row at most. A row that the model ends earlier is kept with its length and its end of text.
        batch: rows sampled at once. A step reads all weights whatever the rows, so many at once are cheap (measured on
            a 135M model: a step of 96 rows takes 1.16 times one of 64). None: as many as fit into 2 GiB of keys and
            values, at most 128.
        seed: the text is a function of the model, the arguments and this; the global generator is left as it was.
        temperature: of the sampling; 1 is the model's own distribution.

    Returns:
        TokenSet whose response_start lies behind the random token, which nothing foretells.

    Raises:
        ValueError: sizes or a temperature that are not positive, a window beyond the model's context, or a model that
            ends every row at once.
    """
    if batch is None:
        batch = rows_at_once(model.config, window)
    if window < 2 * _SHORTEST:
        raise ValueError(
            f"text that the model writes needs a window of {2 * _SHORTEST} tokens or more, not {window}; "
            "use a larger one, or give text in a file"
        )
    if tokens < 1 or batch < 1 or not temperature > 0:
        raise ValueError(
            f"tokens={tokens}, batch={batch}, temperature={temperature}: need tokens >= 1, batch >= 1 and a positive "
            "temperature"
        )
    limit = context_of(model)
    if limit is not None and window > limit:
        raise ValueError(f"rows of {window} tokens, but the model's context is {limit}; use a smaller window")
    starts = _starts(model, tokenizer)
    begin = len(starts[0])
    order = torch.randperm(len(starts), generator=torch.Generator().manual_seed(seed)).tolist()
    rows: list[list[int]] = []
    missing, asked, idle = tokens, 0, 0
    with (progress or SilentProgress()).task("writing text", tokens) as advance, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        while missing > 0:
            mean = (tokens - missing) / asked if missing < tokens else 0.75 * window  # predicted tokens a row
            count = min(batch, int(missing / mean) + 2)
            picked = [starts[order[(asked + index) % len(order)]] for index in range(count)]
            asked += count
            before = missing
            for row in _continue(model, tokenizer, picked, window, temperature):
                if missing > 0 and len(row) >= _SHORTEST:
                    rows.append(row)
                    missing -= len(row) - begin
            advance(before - max(missing, 0))
            idle = idle + 1 if missing == before else 0
            if idle == _ROUNDS_WITHOUT_TEXT:
                raise ValueError(f"the model ended {idle} rounds of texts at once; give text in a file instead")
    return TokenSet.from_rows(
        rows, pad=padding_id(tokenizer), name="text written by the dense model", starts=[begin] * len(rows)
    )


def tokens_beside(given: TokenSet, share: float) -> int:
    """Tokens of own text that are `share` of all beside those of `given`: |given| share / (1 − share).

    Raises:
        ValueError: a share that is negative, or 1 and more.
    """
    if not 0 <= share < 1:
        raise ValueError(f"own_text is {share}; it is a share of all text, 0 or more and below 1")
    return round(int(given.lengths.sum()) * share / (1 - share))


def rows_at_once(config: Any, window: int) -> int:
    """Rows whose keys and values, float32 over `window` tokens, fit into 2 GiB; 1 to 128."""
    text = config.get_text_config(decoder=True)
    heads = int(text.num_attention_heads)
    groups = int(getattr(text, "num_key_value_heads", None) or heads)
    size = int(getattr(text, "head_dim", None) or text.hidden_size // heads)
    row = 2 * 4 * int(text.num_hidden_layers) * groups * size * window  # bytes
    return max(1, min(128, (2 << 30) // row))


def _starts(model: Any, tokenizer: Any) -> list[list[int]]:
    """What rows begin with: every token that both know and that is no mark, behind what stands before every text."""
    prefix, marks = prefix_ids(tokenizer), set(tokenizer.all_special_ids)
    known = min(len(tokenizer), int(model.config.get_text_config(decoder=True).vocab_size))
    return [[*prefix, token] for token in range(known) if token not in marks]


@torch.no_grad()
def _continue(
    model: Any, tokenizer: Any, starts: list[list[int]], window: int, temperature: float
) -> list[list[int]]:
    """Rows of at most `window` tokens, each with its start: one stock generate(); all starts are of one length."""
    ids, ends = torch.tensor(starts), _end_ids(model)
    with quiet_transformers():
        out = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=window - ids.shape[1], do_sample=True,
            temperature=temperature, top_k=0, top_p=1.0, repetition_penalty=1.0, num_beams=1,
            pad_token_id=padding_id(tokenizer),
        )  # fmt: skip
    begin = ids.shape[1]
    rows = []
    for row in out.tolist():
        end = next((index + 1 for index, token in enumerate(row) if index >= begin and token in ends), len(row))
        rows.append(row[:end])
    return rows


def _end_ids(model: Any) -> set[int]:
    end = model.generation_config.eos_token_id
    return set() if end is None else {end} if isinstance(end, int) else set(end)
