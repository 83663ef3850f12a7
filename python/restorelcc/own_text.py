"""Text that a model writes itself: calibration and training text without any data.

    x_1 ~ uniform over the tokens,   x_{t+1} ~ softmax(logits(x_1..x_t) / temperature)     stock generate(), sampling
    x_1..x_16 ~ uniform over the tokens of one script, in a share of the rows; then the same

As in LLM-QAT (Liu et al., arXiv 2305.17888, section 2.1). What comes is as mixed as what the model was trained on:
prose, code, lists, other languages, fragments. That is worth more than how well it reads: weights refitted to answers
to requests, or to continuations of "The" and "In 1994,", serve text of that kind alone (docs/findings.md). A model that
seldom writes another script than Latin goes back to it from a single token of another, and a refit to text without a
script can cost it more than pruning did; so a share of the rows may begin with a run of tokens of one other script.
"""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

import torch

from .artifacts import Progress, SilentProgress
from .models import LoadedModel, load_model, quiet_transformers
from .token_set import TokenSet, context_of, padding_id
from .windows import prefix_ids

__all__ = ["load_writer", "tokens_beside", "write_own_text", "writer_of"]

_RUN = 16  # tokens of one script that a row begins with, or a quarter of the window
_FEWEST = 16  # tokens of a script, for it to count
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
    scripts: float = 0.0,
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
        scripts: share of the rows that begin with random tokens of one script, any but the commonest of the vocabulary
            that has 16 tokens or more; 0 for none.

    Returns:
        TokenSet whose response_start lies behind what was drawn at random, which nothing foretells.

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
    if not 0 <= scripts <= 1:
        raise ValueError(f"scripts is {scripts}; it is a share of the rows, 0 to 1")
    limit = context_of(model)
    if limit is not None and window > limit:
        raise ValueError(f"rows of {window} tokens, but the model's context is {limit}; use a smaller window")
    starts = _starts(model, tokenizer)
    order = torch.randperm(len(starts), generator=torch.Generator().manual_seed(seed)).tolist()
    runs = _Runs(tokenizer, starts, min(_RUN, window // 4), seed) if scripts else None
    rows: list[list[int]] = []
    begins: list[int] = []
    missing, asked, idle = tokens, 0, 0
    with (progress or SilentProgress()).task("writing text", tokens) as advance, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        while missing > 0:
            mean = (tokens - missing) / asked if missing < tokens else 0.75 * window  # predicted tokens a row
            count = min(batch, int(missing / mean) + 2)
            scripted = [] if runs is None else runs.draw(round(scripts * count))
            picked = [starts[order[(asked + index) % len(order)]] for index in range(count - len(scripted))]
            asked += count
            before = missing
            for group in (scripted, picked):
                for row in _continue(model, tokenizer, group, window, temperature):
                    begin = len(group[0])
                    if missing > 0 and len(row) >= max(_SHORTEST, begin + 1):
                        rows.append(row)
                        begins.append(begin)
                        missing -= len(row) - begin
            advance(before - max(missing, 0))
            idle = idle + 1 if missing == before else 0
            if idle == _ROUNDS_WITHOUT_TEXT:
                raise ValueError(f"the model ended {idle} rounds of texts at once; give text in a file instead")
    return TokenSet.from_rows(
        rows, pad=padding_id(tokenizer), name="text written by the dense model", starts=begins
    )


def load_writer(dense: Path) -> LoadedModel:
    """The dense model to write with: in its stored type, but float16 as float32, as its activations may overflow."""
    return writer_of(load_model(dense))


def writer_of(loaded: LoadedModel) -> LoadedModel:
    """As `load_writer`, of a model that is loaded and stays as it is."""
    if loaded.model.dtype != torch.float16:
        return loaded
    return load_model(loaded.source, dtype=torch.float32)


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


class _Runs:
    """Beginnings of rows: `length` tokens of one script, behind what stands before every text."""

    def __init__(self, tokenizer: Any, starts: list[list[int]], length: int, seed: int) -> None:
        self.prefix, self.length = starts[0][:-1], length
        self.generator = torch.Generator().manual_seed(seed)
        self.scripts = _other_scripts(tokenizer, [start[-1] for start in starts])

    def draw(self, count: int) -> list[list[int]]:
        """So many of them, each of a script drawn at random; none where there is but one script."""
        runs = []
        for _ in range(count if self.scripts else 0):
            tokens = self.scripts[self._below(len(self.scripts), 1)[0]]
            runs.append([*self.prefix, *(tokens[index] for index in self._below(len(tokens), self.length))])
        return runs

    def _below(self, limit: int, count: int) -> list[int]:
        drawn: list[int] = torch.randint(limit, (count,), generator=self.generator).tolist()
        return drawn


def _other_scripts(tokenizer: Any, tokens: list[int]) -> list[list[int]]:
    """The tokens of each script but the commonest one, where it has `_FEWEST` or more: letters of that script alone.

    A letter's script is the first word of its Unicode name: CYRILLIC SMALL LETTER A, CJK UNIFIED IDEOGRAPH-4E00.
    """
    found: dict[str, list[int]] = {}
    for token in tokens:
        text = tokenizer.decode([token]).strip()
        names = {unicodedata.name(letter, "").partition(" ")[0] for letter in text}
        if text.isalpha() and len(names) == 1:
            found.setdefault(names.pop(), []).append(token)
    commonest = max(found, key=lambda name: len(found[name]), default="")
    return [held for name, held in sorted(found.items()) if name != commonest and len(held) >= _FEWEST]


@torch.no_grad()
def _continue(
    model: Any, tokenizer: Any, starts: list[list[int]], window: int, temperature: float
) -> list[list[int]]:
    """Rows of at most `window` tokens, each with its start: one stock generate(); all starts are of one length."""
    if not starts:
        return []
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
