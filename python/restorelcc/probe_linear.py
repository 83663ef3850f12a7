"""The paper's linear probe: how well one head's output tells a right answer from a wrong one.

    x   [D]     z_p + c_h at the last token of prompt + answer, in the pruned model
    x   [2 D]   z_p + c_h at the last token of the prompt, in the pruned model, then z_d at the last token of
                prompt + answer, in the dense model                                     where the dense model is given
    t           1 for the positive row of a pair, 0 for the negative one
    w, β        argmin ½ |w|² + Σ over training rows of log(1 + exp(−(2 t − 1)(w·x + β)))           per head
    s_h         share of validation rows with [w·x + β > 0] = t

RestoreLCC (arXiv 2510.21834), section 3.2. The second form is what its authors' code computes: there z_p + c_h is the
same in both rows of a pair, so heads are ranked by the dense model and hardly by what pruning did. The first form needs
no dense model and looks at the pruned one. In both, c_h is the same in every row: the intercept takes it up,
β(z + c) = β(z) − w·c, and no score depends on it. So c is never added (in bf16 that would only cost digits).

Decisions:
- 30 % of the pairs, drawn by the seed, are for validation; the two rows of a pair stay together. (An answer that is
  right in one pair may be the wrong one of another, on the other side of the split.)
- Where the authors take 200 steps of Adam from a random start, the penalised minimum is found; see `logistic`.
- Validation sets are small and ties many. The score is accuracy − (0.001 / rows)·l / (1 + l), l the mean log-loss on
  the validation rows (nats): accuracy first, and the log-loss orders heads that are equal in it. `details` has both.
- No standardisation, as the authors: the penalty then asks more of heads with small outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

from .head_outputs import head_outputs
from .logistic import fit_logistic
from .models import attention_sites
from .pairs import PairSet
from .probe_input import ProbeInput, ProbeResult

__all__ = ["VALIDATION_SHARE", "linear_probe", "score_heads"]

VALIDATION_SHARE = 0.3


def linear_probe(given: ProbeInput) -> ProbeResult:
    """s [L, H]; details: accuracy and log_loss (nats), both on the validation rows.

    Raises:
        ValueError: no pairs, fewer than 2, of another tokenizer, edit=ablate, or head outputs that `memory` does not
            hold.
    """
    pairs = _checked(given)
    rows = len(pairs) * (3 if given.dense is not None else 2)
    answers = given.model if given.dense is None else given.dense
    prompts = None
    with given.progress.task("linear probe", rows) as advance:
        if given.dense is not None:
            last = pairs.positive.response_start - 1
            prompts = head_outputs(given.model, pairs.positive, last, batch=given.batch, advance=advance)
        positive, negative = (
            head_outputs(answers, side, side.lengths - 1, batch=given.batch, advance=advance)
            for side in (pairs.positive, pairs.negative)
        )
    return score_heads(positive, negative, prompts=prompts, seed=given.seed)


def _checked(given: ProbeInput) -> PairSet:
    """The pairs, fit for this probe and this model."""
    pairs = given.pairs
    if pairs is None:
        raise ValueError("the linear probe needs pairs of right and wrong answers, and there are none; give some")
    if given.edit != "inject":
        raise ValueError(f"the linear probe knows no edit={given.edit}; use edit=inject or another probe")
    if len(pairs) < 2:
        raise ValueError(f"the linear probe needs 2 pairs or more, one of them to validate; there is {len(pairs)}")
    pairs.check_model(given.model)
    sites = attention_sites(given.model)
    if given.dense is not None and attention_sites(given.dense) != sites:
        raise ValueError(
            "the dense model has other attention heads than the pruned one; prune a copy of the same model"
        )
    element = next(given.model.parameters()).element_size()
    per_pair = sum(site.inputs for site in sites) * element * (3 if given.dense is not None else 2)
    if per_pair * len(pairs) > given.memory:
        raise ValueError(
            f"the head outputs of {len(pairs):,} pairs take {per_pair * len(pairs) / 2**20:,.0f} MiB, more than the "
            f"{given.memory / 2**20:,.0f} MiB given; use {given.memory // per_pair:,} pairs or more memory"
        )
    return pairs


def score_heads(positive: Tensor, negative: Tensor, *, prompts: Tensor | None = None, seed: int = 0) -> ProbeResult:
    """One probe per head, all fitted at once; see the module.

    Args:
        positive, negative: z [L, H, n, D] at the last token of prompt + right and + wrong answer.
        prompts: z [L, H, n, D] at the last token of the prompt, the same in both rows of a pair; or None.
        seed: of the split into training and validation pairs.

    Raises:
        ValueError: fewer than 2 pairs, or NaN or infinity among the outputs.
    """
    layers, heads, pairs, _ = positive.shape
    held = min(max(round(VALIDATION_SHARE * pairs), 1), pairs - 1)
    if held < 1:
        raise ValueError(f"{pairs} pairs cannot be split into training and validation; give 2 or more")
    order = torch.randperm(pairs, generator=torch.Generator().manual_seed(seed))
    train, validation = order[held:].sort().values, order[:held].sort().values

    def rows(chosen: Tensor) -> tuple[Tensor, Tensor]:
        """x [L·H, 2 m, D or 2 D] of the chosen m pairs, and t [2 m]."""
        sides = [side.flatten(0, 1)[:, chosen] for side in (positive, negative)]
        if prompts is not None:
            before = prompts.flatten(0, 1)[:, chosen]
            sides = [torch.cat((before, side.to(before.dtype)), -1) for side in sides]
        return torch.cat(sides, 1), torch.arange(2 * len(chosen)) < len(chosen)

    fits = fit_logistic(*rows(train))
    x, right = rows(validation)
    margins = fits.margins(x)
    accuracy = ((margins > 0) == right).double().mean(-1)
    log_loss = softplus(torch.where(right, -margins, margins), threshold=40.0).mean(-1)
    scores = accuracy - 1e-3 / (2 * held) * log_loss / (1 + log_loss)
    shape = (layers, heads)
    return ProbeResult(
        scores.reshape(shape), {"accuracy": accuracy.reshape(shape), "log_loss": log_loss.reshape(shape)}
    )
