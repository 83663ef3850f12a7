"""How good a model is on given text: token NLL, multiple choice, and how much of a gap was closed.

nll(x_i)  = −log softmax(logits(x_<i))[x_i]                      nats, float32, summed in float64 (see `lm_head`)
gap       = (NLL_pruned − NLL_restored) / (NLL_pruned − NLL_dense)    on the same tokens
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .artifacts import Progress, SilentProgress
from .choice_rows import ChoiceSet, choice_scores
from .lm_head import token_losses
from .models import quiet_transformers
from .text import ChoiceItem
from .token_set import TokenSet, padding_id

__all__ = [
    "AccuracyGain", "ChoiceResult", "GapClosed", "NllResult", "accuracy_gain", "check_counted", "gap_closed",
    "greedy_samples", "multiple_choice", "predicted_bytes", "row_sums", "token_nll",
]  # fmt: skip


@dataclass(frozen=True)
class NllResult:
    """Negative log-likelihood per row: nll_sum [n] float64 nats, count [n] int64 predicted tokens."""

    nll_sum: Tensor
    count: Tensor

    @property
    def mean(self) -> float:
        """Nats per predicted token, over all rows."""
        return float(self.nll_sum.sum() / self.count.sum())

    @property
    def perplexity(self) -> float:
        """exp(mean); infinite when that overflows."""
        return math.exp(self.mean) if self.mean < 700 else math.inf

    def bits_per_byte(self, size: int) -> float:
        """Σ nll / ln 2 over `size` bytes of text: what models with different tokenizers can be compared by."""
        return float(self.nll_sum.sum()) / math.log(2) / size


def predicted_bytes(tokens: TokenSet, tokenizer: Any) -> int:
    """UTF-8 bytes of the text of the predicted tokens: of each row's text, less that of what is not predicted."""

    def size(ends: Tensor) -> int:
        rows = [ids[:end].tolist() for ids, end in zip(tokens.ids, ends.tolist(), strict=True)]
        with quiet_transformers():
            texts = tokenizer.batch_decode(rows, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return sum(len(text.encode()) for text in texts)

    return size(tokens.lengths) - size(tokens.response_start.minimum(tokens.lengths))


@torch.no_grad()
def token_nll(model: Any, tokens: TokenSet, *, batch: int = 4, progress: Progress | None = None) -> NllResult:
    """NLL of the counted tokens of each row (see `TokenSet.labels`).

    Args:
        tokens: ids [n, T].
        batch: rows at once. Logits are never held, whatever the batch (see `lm_head`).

    Raises:
        ValueError: no token counts, or rows longer than the model's context.
    """
    check_counted(model, tokens)
    sums = []
    with (progress or SilentProgress()).task("perplexity", len(tokens)) as advance:
        for part in tokens.batches(batch):
            sums.append(row_sums(model, part))
            advance(len(part))
    return NllResult(torch.cat(sums), (tokens.lengths - tokens.response_start).clamp(min=0))


def check_counted(model: Any, tokens: TokenSet) -> None:
    """Raises ValueError when no token counts, or a row is longer than the model's context."""
    if tokens.tokens == 0:
        raise ValueError(f"no token of {tokens.name} is to be predicted; give longer text")
    tokens.check_model(model)


def row_sums(model: Any, part: TokenSet) -> Tensor:
    """Σ nll [n] float64 of one batch."""
    rows = (part.labels[:, 1:] != -100).nonzero()[:, 0]
    total = torch.zeros(len(part), dtype=torch.float64)
    return total.index_add_(0, rows, token_losses(model, part).double()) if rows.numel() else total


@dataclass(frozen=True)
class ChoiceResult:
    """accuracy by summed log-probability, accuracy_normalised by log-probability per byte, stderr of accuracy.

    correct, correct_normalised: bool [n], by the one and by the other.
    """

    accuracy: float
    accuracy_normalised: float
    stderr: float
    correct: Tensor
    correct_normalised: Tensor


@torch.no_grad()
def multiple_choice(
    model: Any, tokenizer: Any, items: Sequence[ChoiceItem], *, batch: int = 4, progress: Progress | None = None
) -> ChoiceResult:
    """Accuracy of choosing the likeliest continuation: argmax Σ log p, and argmax Σ log p / bytes.

    Of equal scores the first choice wins. batch: items at once; the choices of one share its context (`choice_rows`).

    Raises:
        ValueError: no items, or an item longer than the model's context.
    """
    if not items:
        raise ValueError("there are no multiple-choice items; give a file with at least one")
    asked = ChoiceSet.of(items, tokenizer)
    asked.check_model(model)
    plain, normalised = torch.zeros(len(items), dtype=torch.bool), torch.zeros(len(items), dtype=torch.bool)
    order = asked.by_length()
    done = 0
    with (progress or SilentProgress()).task("multiple choice", len(items)) as advance:
        for part in asked.subset(order).batches(model, batch):
            score = choice_scores(model, part)[0].double()
            for (begin, end), gold in zip(part.spans, part.gold, strict=True):
                plain[order[done]] = int(score[begin:end].argmax()) == gold
                normalised[order[done]] = int((score[begin:end] / part.sizes[begin:end]).argmax()) == gold
                done += 1
            advance(len(part.gold))
    accuracy = float(plain.double().mean())
    stderr = math.sqrt(accuracy * (1 - accuracy) / max(len(items) - 1, 1))
    return ChoiceResult(accuracy, float(normalised.double().mean()), stderr, plain, normalised)


@dataclass(frozen=True)
class AccuracyGain:
    """value: share of items right, less that of the other model, with its paired bootstrap 95% interval."""

    value: float
    low: float
    high: float


def accuracy_gain(mine: Tensor, other: Tensor, *, resamples: int = 10000, seed: int = 0) -> AccuracyGain:
    """mean(mine) − mean(other) over the same items, and its bootstrap over items (percentiles 2.5 and 97.5).

    Args:
        mine, other: bool [n] of one seed, or [S, n] of S seeds of which each resample draws S, and items for all.

    Raises:
        ValueError: different items.
    """
    if mine.shape[-1] != other.shape[-1] or not mine.numel():
        raise ValueError(f"{mine.shape[-1]} and {other.shape[-1]} answers do not pair; measure both on the same items")
    difference = mine.double().reshape(-1, mine.shape[-1]) - other.double().reshape(-1, other.shape[-1])  # [S, n]
    generator = torch.Generator().manual_seed(seed)
    seeds, items = difference.shape
    drawn = torch.empty(resamples, dtype=torch.float64)
    for index in range(resamples):  # one at a time: [resamples, n] picks of long files would be gigabytes
        rows = difference[torch.randint(seeds, (seeds,), generator=generator)].mean(0)
        drawn[index] = rows[torch.randint(items, (items,), generator=generator)].mean()
    return AccuracyGain(float(difference.mean()), *_interval(drawn))


@dataclass(frozen=True)
class GapClosed:
    """value: share of the gap closed (1: as good as dense; NaN where pruning lost nothing), with its 95% interval.

    improvement: NLL_pruned − NLL_restored in nats per token (above 0: better), with its 95% interval.
    """

    value: float
    low: float
    high: float
    improvement: float
    improvement_low: float
    improvement_high: float


def gap_closed(
    dense: NllResult, pruned: NllResult, restored: NllResult, *, resamples: int = 2000, seed: int = 0
) -> GapClosed:
    """(NLL_p − NLL_r) / (NLL_p − NLL_d) and its paired bootstrap over rows (percentiles 2.5 and 97.5).

    Resamples in which pruning lost nothing have no gap and are left out of the interval of `value`.

    Raises:
        ValueError: the three were not measured on the same rows.
    """
    if not (torch.equal(dense.count, pruned.count) and torch.equal(dense.count, restored.count)):
        raise ValueError(
            f"the results cover {[int(r.count.sum()) for r in (dense, pruned, restored)]} tokens in "
            f"{[len(r.count) for r in (dense, pruned, restored)]} rows; measure all three on the same text"
        )
    rows = len(dense.count)
    sums = torch.stack([dense.nll_sum, pruned.nll_sum, restored.nll_sum])  # [3, n]
    picks = torch.randint(rows, (resamples, rows), generator=torch.Generator().manual_seed(seed))
    weights = torch.zeros(resamples, rows, dtype=torch.float64)
    weights.scatter_add_(1, picks, torch.ones_like(picks, dtype=torch.float64))
    drawn = (weights @ sums.T) / (weights @ dense.count.double())[:, None]  # [R, 3] nats per token
    mean_d, mean_p, mean_r = (result.mean for result in (dense, pruned, restored))
    better = drawn[:, 1] - drawn[:, 2]
    gap = drawn[:, 1] - drawn[:, 0]
    value = (mean_p - mean_r) / (mean_p - mean_d) if mean_p > mean_d else math.nan
    low, high = _interval((better / gap)[gap > 0]) if mean_p > mean_d else (math.nan, math.nan)
    return GapClosed(value, low, high, mean_p - mean_r, *_interval(better))


def _interval(values: Tensor) -> tuple[float, float]:
    ends = torch.quantile(values, torch.tensor([0.025, 0.975], dtype=values.dtype))
    return float(ends[0]), float(ends[1])


@torch.no_grad()
def greedy_samples(model: Any, tokenizer: Any, prompts: Sequence[str], max_new_tokens: int = 48) -> list[str]:
    """What the model continues each prompt with, greedily: stock generate(), one prompt at a time (no padding)."""
    texts = []
    for prompt in prompts:
        with quiet_transformers():
            given = tokenizer(prompt, return_tensors="pt")
            out = model.generate(
                input_ids=given.input_ids, attention_mask=given.attention_mask, max_new_tokens=max_new_tokens,
                do_sample=False, num_beams=1, temperature=None, top_p=None, top_k=None,
                pad_token_id=padding_id(tokenizer),
            )  # fmt: skip
        texts.append(tokenizer.decode(out[0, given.input_ids.shape[1] :], skip_special_tokens=True))
    return texts
