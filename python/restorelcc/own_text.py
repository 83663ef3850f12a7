"""Text that a model writes itself: calibration and training text without any data.

    x_1 ~ uniform over the tokens,   x_{t+1} ~ softmax(logits(x_1..x_t) / temperature)     stock generate(), sampling
    x_1..x_k letters of one script, drawn at random, in a share of the rows; then the same

As in LLM-QAT (Liu et al., arXiv 2305.17888, section 2.1). What comes is as mixed as what the model was trained on:
prose, code, lists, other languages, fragments. That is worth more than how well it reads: weights refitted to answers
to requests, or to continuations of "The" and "In 1994,", serve text of that kind alone (docs/findings.md). A model that
seldom writes other scripts than Latin hardly ever would from one token, and a refit to text without them costs them
more than pruning did; so some rows begin with a run of their letters.
"""

from __future__ import annotations

from typing import Any

import torch

from .artifacts import Progress, SilentProgress
from .models import quiet_transformers
from .token_set import TokenSet, context_of, padding_id
from .windows import prefix_ids

__all__ = ["tokens_beside", "write_own_text"]

# First and last letter; whether words stand apart.
SCRIPTS = {
    "Han": (0x4E00, 0x9FA5, False), "Cyrillic": (0x430, 0x44F, True), "Arabic": (0x627, 0x64A, True),
    "Devanagari": (0x915, 0x939, True), "Hiragana": (0x3041, 0x3093, False), "Hangul": (0xAC00, 0xD7A3, True),
    "Greek": (0x3B1, 0x3C9, True), "Hebrew": (0x5D0, 0x5EA, True), "Thai": (0xE01, 0xE2E, False),
}  # fmt: skip

_RUN = 48  # tokens of random letters, or a quarter of the window
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
        scripts: share of the rows that begin with random letters of one of `SCRIPTS`, those that the tokenizer can
            tell apart in turn; 0 for none.

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
    runs = _Runs(tokenizer, min(_RUN, window // 4), seed)
    rows: list[list[int]] = []
    begins: list[int] = []
    missing, asked, idle = tokens, 0, 0
    with (progress or SilentProgress()).task("writing text", tokens) as advance, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        while missing > 0:
            mean = (tokens - missing) / asked if missing < tokens else 0.75 * window  # predicted tokens a row
            count = min(batch, int(missing / mean) + 2)
            scripted = runs.draw(round(scripts * count))
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
    """Beginnings of rows: `length` tokens of random letters of one script, behind what stands before every text.

    Scripts that the tokenizer does not know, or does not tell apart letter from letter, are left out.
    """

    def __init__(self, tokenizer: Any, length: int, seed: int) -> None:
        self.tokenizer, self.length, self.prefix = tokenizer, length, prefix_ids(tokenizer)
        self.generator = torch.Generator().manual_seed(seed)
        self.scripts = [script for script in SCRIPTS.values() if self._known(*script[:2])]
        self.drawn = 0

    def draw(self, count: int) -> list[list[int]]:
        """The next `count` of them, each of the script behind that of the one before; none where none is known."""
        runs = []
        for _ in range(count if self.scripts else 0):
            runs.append([*self.prefix, *self._run(*self.scripts[self.drawn % len(self.scripts)])])
            self.drawn += 1
        return runs

    def _run(self, first: int, last: int, apart: bool) -> list[int]:
        text = ""
        ids: list[int] = []
        while len(ids) < self.length:
            letters = torch.randint(first, last + 1, (self._between(2, 7),), generator=self.generator).tolist()
            text += "".join(map(chr, letters)) + (" " if apart else "")
            ids = self._ids(text)
        return ids[: self.length]

    def _between(self, least: int, most: int) -> int:
        return int(torch.randint(least, most + 1, (1,), generator=self.generator))

    def _known(self, first: int, last: int) -> bool:
        pair = [self._ids(chr(code)) for code in (first, last)]
        return pair[0] != pair[1] and all(ids and self.tokenizer.unk_token_id not in ids for ids in pair)

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)


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
