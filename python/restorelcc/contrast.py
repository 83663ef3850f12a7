"""The contrast that probes measure: one number, linear in the tokens' NLL.

    s_h = Σ_t a_t (nll_t(edit of head h) − nll_t(base))          nats per token; larger = more worth restoring

    text      a_t = −1 / N                       N counted tokens: the fall of the mean NLL. No pairs needed
    margin    a_t = −1 / (P n_p)  in the right answer of pair p,  +1 / (P n_p)  in its wrong answer:
              the rise of  mean over the P pairs of  [NLL̄(negative) − NLL̄(positive)],  NLL̄ the mean over an answer's
              own n_p tokens, so that long answers weigh no more than short ones

The perplexity contrast of RestoreLCC (arXiv 2510.21834, section 3) lowers the perplexity of right continuations and
raises that of wrong ones: `margin`. With edit=ablate all signs turn: larger = more is lost with that head's part.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .probe_input import CONTRASTS, EDITS, ProbeInput
from .token_set import TokenSet

__all__ = ["ContrastText", "contrast_text", "edit_vectors"]


@dataclass(frozen=True)
class ContrastText:
    """tokens [n, T] and a_t as coefficients [n, T] float64, 0 where nothing counts; unit [n]: rows that belong
    together (a row of text; the two answers of a pair), from 0."""

    tokens: TokenSet
    coefficients: Tensor
    unit: Tensor

    @property
    def units(self) -> int:
        """How many units there are."""
        return int(self.unit.max()) + 1

    def of_units(self, units: Tensor) -> ContrastText:
        """The rows of these units alone; unit i of the result is units[i]. Coefficients stay as they are."""
        place = torch.full((self.units,), -1)
        place[units] = torch.arange(len(units))
        rows = (place[self.unit] >= 0).nonzero().flatten()
        return ContrastText(self.tokens.subset(rows), self.coefficients[rows], place[self.unit[rows]])


def _stacked(first: TokenSet, second: TokenSet) -> TokenSet:
    """The rows of both, padded to one width."""
    width = max(first.ids.shape[1], second.ids.shape[1])
    ids = [torch.nn.functional.pad(rows.ids, (0, width - rows.ids.shape[1])) for rows in (first, second)]
    return TokenSet(
        torch.cat(ids), torch.cat([first.lengths, second.lengths]),
        torch.cat([first.response_start, second.response_start]), first.name,
    )  # fmt: skip


def contrast_text(given: ProbeInput) -> ContrastText:
    """What `given.contrast` measures, for `given.edit`.

    Raises:
        ValueError: an unknown contrast or edit, `margin` without pairs, an answer or a text without tokens to predict.
    """
    for value, allowed, name in ((given.contrast, CONTRASTS, "contrast"), (given.edit, EDITS, "edit")):
        if value not in allowed:
            raise ValueError(f"unknown {name} {value!r}; choose one of {', '.join(allowed)}")
    sign = -1.0 if given.edit == "inject" else 1.0
    if given.contrast == "text":
        if given.tokens.tokens == 0:
            raise ValueError(f"no token of {given.tokens.name} is to be predicted; give longer text")
        counted = (given.tokens.labels != -100).double()
        return ContrastText(given.tokens, sign * counted / given.tokens.tokens, torch.arange(len(given.tokens)))
    if given.pairs is None:
        raise ValueError("the margin contrast needs pairs of right and wrong answers; give --pairs")
    pairs = given.pairs
    tokens = _stacked(pairs.positive, pairs.negative)
    counted = (tokens.labels != -100).double()
    own = counted.sum(1)
    if len(pairs) == 0 or int(own.min()) == 0:
        empty = int((own == 0).sum())
        raise ValueError(f"{empty} of {len(own)} answers have no token to predict; make the pairs again")
    side = torch.cat([torch.full((len(pairs),), sign), torch.full((len(pairs),), -sign)]).double()
    coefficients = counted * (side / (len(pairs) * own))[:, None]
    return ContrastText(tokens, coefficients, torch.arange(len(pairs)).repeat(2))


def edit_vectors(given: ProbeInput) -> tuple[Tensor, Tensor]:
    """(base [L, H·D] installed in the base run, direction [L, H, D] in which an edit moves its head's part), float32.

    Raises:
        ValueError: edit=ablate without a compensation, or one of another shape.
    """
    vectors = given.components.vectors.float()
    if given.edit == "inject":
        return torch.zeros(vectors.shape[0], vectors[0].numel()), vectors
    if given.compensation is None:
        raise ValueError("edit=ablate takes heads out of a restored model; give its compensation")
    if given.compensation.numel() != vectors.numel():
        raise ValueError(
            f"the compensation has {given.compensation.numel()} numbers, the model's heads {vectors.numel()}; "
            "use the one made for this model"
        )
    installed = given.compensation.float().reshape(vectors.shape)
    return installed.flatten(1), -installed
