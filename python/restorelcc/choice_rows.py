"""Multiple-choice items as rows of tokens, in which the choices of an item share its context.

    row of an item      [ context  choice_1  choice_2 ... ]      a choice's tokens have the positions behind the context
    a token sees        the context before it, and its own choice before it                attention mask [n, 1, T, T]
    score_j           = Σ log p(token | context, choice_j before it)     over the tokens of choice j, nats

What it replaces: a row for each choice, the context in each of them (2.5 times the tokens on ARC Easy). That is still
done where a stock class does not compute the same in shared rows, which it is asked once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from .fold_target import has_sliding_window
from .lm_head import head_input, language_head, logit_losses
from .models import quiet_transformers
from .text import ChoiceItem
from .token_set import TokenSet
from .windows import answer_row

__all__ = ["ChoiceBatch", "ChoiceSet", "choice_scores", "shares_contexts"]


@dataclass(frozen=True)
class _Question:
    """rows: the ids of context + choice, for each choice, and where the choice starts; sizes: its UTF-8 bytes."""

    rows: tuple[tuple[list[int], int], ...]
    sizes: tuple[int, ...]
    gold: int

    @property
    def shared(self) -> int:
        """How many ids all rows begin with, at most to where a choice starts."""
        first = self.rows[0][0]
        count = min(start for _, start in self.rows)
        while any(ids[:count] != first[:count] for ids, _ in self.rows):
            count -= 1
        return count

    @property
    def length(self) -> int:
        """Tokens of a row that shares the context."""
        return self.shared + sum(len(ids) - self.shared for ids, _ in self.rows)


@dataclass(frozen=True)
class ChoiceBatch:
    """One forward pass, S scores in it.

    ids [n, T]; attention [n, T] of 0 and 1, or [n, 1, T, T] to be added; positions [n, T], or None: the model's own.
    once [n, T]: tokens, those of a context once. source [M] into n·T: where token m is predicted; labels [M]: what it
    is; scored [M]: the score it belongs to. sizes [S]: bytes; spans: first and behind the last score of each item;
    gold: which of them is right, counted from the span's first.
    """

    ids: Tensor
    attention: Tensor
    positions: Tensor | None
    once: Tensor
    source: Tensor
    labels: Tensor
    scored: Tensor
    sizes: Tensor
    spans: tuple[tuple[int, int], ...]
    gold: tuple[int, ...]

    @property
    def arguments(self) -> dict[str, Any]:
        """Of the stock forward."""
        own = {} if self.positions is None else {"position_ids": self.positions}
        return {"input_ids": self.ids, "attention_mask": self.attention, "use_cache": False, **own}


@dataclass(frozen=True)
class ChoiceSet:
    """Items as tokens, ready to be scored."""

    questions: tuple[_Question, ...]

    @classmethod
    def of(cls, items: Sequence[ChoiceItem], tokenizer: Any) -> ChoiceSet:
        """Context and choice are tokenised as one string (see `answer_row`)."""
        made = []
        with quiet_transformers():
            for item in items:
                rows = tuple(answer_row(tokenizer, context, choice) for context, choice in item.pairs)
                sizes = tuple(max(len(choice.strip().encode()), 1) for _, choice in item.pairs)
                made.append(_Question(rows, sizes, item.gold))
        return cls(tuple(made))

    def __len__(self) -> int:
        return len(self.questions)

    @property
    def tokens(self) -> int:
        """Of all rows that share contexts."""
        return sum(question.length for question in self.questions)

    def subset(self, chosen: Sequence[int]) -> ChoiceSet:
        """The items with these indices, in this order."""
        return ChoiceSet(tuple(self.questions[index] for index in chosen))

    def by_sum(self) -> ChoiceSet:
        """The same, the choices of an item having the same size: their summed log-probabilities are what compares."""
        return ChoiceSet(tuple(
            replace(question, sizes=(round(sum(question.sizes) / len(question.sizes)),) * len(question.sizes))
            for question in self.questions
        ))  # fmt: skip

    def split(self, fraction: float, seed: int) -> tuple[ChoiceSet, ChoiceSet]:
        """(train, held out): disjoint items, about `fraction` of them held out and at least one in each."""
        count = len(self)
        held = min(max(round(count * fraction), 1), count - 1)
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
        return self.subset(sorted(order[held:])), self.subset(sorted(order[:held]))

    def right_answers(self, *, pad: int, name: str) -> TokenSet:
        """The rows with the right choice; its tokens count."""
        rows, starts = zip(*(question.rows[question.gold] for question in self.questions), strict=True)
        return TokenSet.from_rows(rows, pad=pad, name=name, starts=starts)

    def check_model(self, model: Any) -> None:
        """Raises ValueError when a token id is none of `model`'s vocabulary, or a row longer than its context."""
        rows = [ids for question in self.questions for ids, _ in question.rows]
        TokenSet.from_rows(rows, pad=0, name="multiple choice").check_model(model)

    def by_length(self) -> list[int]:
        """Indices of the items, the shortest first: batches of neighbours hold little padding."""
        return sorted(range(len(self)), key=lambda index: self.questions[index].length)

    def batch(self, model: Any) -> ChoiceBatch:
        """All items in one batch for `model`."""
        return _shared_rows(self.questions, model.dtype) if shares_contexts(model) else _own_rows(self.questions)

    def batches(self, model: Any, size: int) -> Iterator[ChoiceBatch]:
        """Batches of `size` items, in order."""
        for begin in range(0, len(self), size):
            yield self.subset(range(begin, min(begin + size, len(self)))).batch(model)


def _shared_rows(questions: Sequence[_Question], dtype: torch.dtype) -> ChoiceBatch:
    width, count = max(question.length for question in questions), len(questions)
    ids = torch.zeros(count, width, dtype=torch.long)
    positions, owner = torch.zeros_like(ids), torch.full_like(ids, -2)  # -1: context, -2: padding
    source, labels, scored = [], [], []
    first = 0
    for row, question in enumerate(questions):
        shared, end = question.shared, question.shared
        ids[row, :shared] = torch.tensor(question.rows[0][0][:shared])
        positions[row, :shared], owner[row, :shared] = torch.arange(shared), -1
        for choice, (own, start) in enumerate(question.rows):
            behind = len(own) - shared
            ids[row, end : end + behind] = torch.tensor(own[shared:])
            positions[row, end : end + behind] = torch.arange(shared, len(own))
            owner[row, end : end + behind] = choice
            for place in range(start, len(own)):  # predicted by the token before it: the context's last, or its own
                before = place - 1 if place <= shared else end + place - 1 - shared
                source.append(row * width + before)
            labels += own[start:]
            scored += [first + choice] * (len(own) - start)
            end += behind
        first += len(question.rows)
    earlier = torch.ones(width, width, dtype=torch.bool).tril()
    seen = earlier & ((owner[:, None, :] == -1) | (owner[:, None, :] == owner[:, :, None]))  # [n, T, T]
    seen |= torch.eye(width, dtype=torch.bool)  # padding sees itself: a softmax of nothing would be NaN
    attention = torch.zeros(count, 1, width, width, dtype=dtype)
    attention.masked_fill_(~seen[:, None], torch.finfo(dtype).min)
    return _batch(questions, ids, attention, positions, owner > -2, source, labels, scored)


def _own_rows(questions: Sequence[_Question]) -> ChoiceBatch:
    rows = [row for question in questions for row in question.rows]
    ids = torch.zeros(len(rows), max(len(own) for own, _ in rows), dtype=torch.long)
    attention, once = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
    source, labels, scored = [], [], []
    shared = [question.shared if choice else 0 for question in questions for choice in range(len(question.rows))]
    for row, (own, start) in enumerate(rows):
        ids[row, : len(own)] = torch.tensor(own)
        attention[row, : len(own)] = 1
        once[row, shared[row] : len(own)] = True
        source += [row * ids.shape[1] + place - 1 for place in range(start, len(own))]
        labels += own[start:]
        scored += [row] * (len(own) - start)
    return _batch(questions, ids, attention, None, once, source, labels, scored)


def _batch(
    questions: Sequence[_Question], ids: Tensor, attention: Tensor, positions: Tensor | None, once: Tensor,
    source: list[int], labels: list[int], scored: list[int],
) -> ChoiceBatch:  # fmt: skip
    spans: list[tuple[int, int]] = []
    sizes: list[int] = []
    for question in questions:
        spans.append((len(sizes), len(sizes) + len(question.sizes)))
        sizes += question.sizes
    return ChoiceBatch(
        ids, attention, positions, once, torch.tensor(source), torch.tensor(labels), torch.tensor(scored),
        torch.tensor(sizes, dtype=torch.float32), tuple(spans), tuple(question.gold for question in questions),
    )  # fmt: skip


def choice_scores(model: Any, batch: ChoiceBatch) -> tuple[Tensor, Tensor | None]:
    """(score [S] float32 nats, h [n, T, E] that enters the LM head); h is None where the class does more behind it.

    Where gradients are on they flow into the model.
    """
    head = language_head(model)
    if head.last:
        with head_input(model) as seen:
            model(**batch.arguments)
        nll = head.losses(seen[0].flatten(0, 1)[batch.source], batch.labels)
    else:
        nll = logit_losses(model(**batch.arguments).logits.flatten(0, 1)[batch.source], batch.labels)
    total = torch.zeros(len(batch.sizes), dtype=torch.float32)
    return total.index_add(0, batch.scored, -nll.float()), seen[0] if head.last else None


_sharing: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
_ASKED = _Question((([1, 2, 3, 1, 2], 3), ([1, 2, 3, 2, 1, 1], 3), ([1, 2, 3, 3], 3)), (1, 1, 1), 0)
_CLOSE = {torch.float32: 1e-3}  # nats, of scores of about 30; a wrong mask or position is off by more
_CLOSE_16_BITS = 0.2


def shares_contexts(model: Any) -> bool:
    """Whether the stock class scores choices the same in rows that share contexts; asked once per model."""
    if model not in _sharing:
        if has_sliding_window(model.config.get_text_config(decoder=True)):
            _sharing[model] = False
        else:
            try:
                _sharing[model] = _gives_the_same(model)
            except (TypeError, ValueError, RuntimeError, IndexError):  # a class that takes no such mask or positions
                return False
    return _sharing[model]


@torch.no_grad()
def _gives_the_same(model: Any) -> bool:
    shared, _ = choice_scores(model, _shared_rows([_ASKED], model.dtype))
    own, _ = choice_scores(model, _own_rows([_ASKED]))
    return bool(((shared - own).abs() <= _CLOSE.get(model.dtype, _CLOSE_16_BITS)).all())
