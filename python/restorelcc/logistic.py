"""Many small logistic regressions at once, each with its own features and all with the same labels.

    f_b(w, β) = ½ |w|² + C Σ_i log(1 + exp(−y_i (w·x_bi + β))),   y_i = ±1        w, β = argmin f_b, for every problem b

The objective of scikit-learn's LogisticRegression with its defaults (C = 1; the intercept β is not penalised), float64.
Newton's method, batched over problems:

    p = σ(Xw + β)    g = C Xᵀ(p − t) + w    H = C Xᵀ diag(p(1 − p)) X + I    (w, β) += s·d,   d = −H⁻¹ g

- H costs D times what g costs, so it is formed anew only where the step before did too little with the old one; a
  step is right with any positive H, since s is halved until f falls. At w = 0 the Hessian is the largest that f has.
- Xw is kept and moved by s·Xd, so that trying another s reads no features.
- Features are centred, which only moves the intercept and which keeps H well conditioned.
- Problems go through in chunks that fit a processor's cache; nothing of all problems is held but what is given.

A problem is done when its decrement √(gᵀH⁻¹g) is at most `tolerance`. Since H ⪰ I in w, the decrement bounds |w − w*|
up to second order; one more step is taken then, so what is returned is nearer still. Features of astronomical size
leave so much rounding in g that the decrement stops falling earlier; the last one is reported.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

__all__ = ["LogisticFits", "fit_logistic"]

CHUNK_BYTES = 8 << 20  # of features in float64; measured: the products are twice as fast from the cache
REFRESH = 0.1  # a Hessian costs about four gradients: form it when a step gains less than one digit
MOST_STEPS = 500
MOST_HALVINGS = 60
PATIENCE = 10  # steps without half the best decrement: rounding has the word
WORST_DECREMENT = 1e-3


@dataclass(frozen=True)
class LogisticFits:
    """weight [B, D] and intercept [B], float64; decrement [B] at the last look; steps: most of any problem."""

    weight: Tensor
    intercept: Tensor
    decrement: Tensor
    steps: int

    def margins(self, features: Tensor) -> Tensor:
        """x·w + β [B, n] float64 of features [B, n, D]; positive means label 1."""
        parts = [
            torch.baddbmm(self.intercept[part, None, None], features[part].double(), self.weight[part, :, None])
            for part in _chunks(features)
        ]
        return torch.cat(parts).squeeze(-1)


def fit_logistic(features: Tensor, labels: Tensor, *, C: float = 1.0, tolerance: float = 1e-8) -> LogisticFits:
    """argmin f_b for B problems; see the module for f.

    Args:
        features: [B, n, D], any floating type. labels: bool [n].
        C: weight of the data against the penalty, as in scikit-learn.
        tolerance: of the decrement.

    Extra memory is a few chunks, not a copy of the features. The same bits come out for the same input and threads.

    Raises:
        ValueError: shapes that do not fit, labels that are all the same, C or tolerance not positive, NaN or infinity
            among the features, or a problem that does not come to its end (features of astronomical size).
    """
    if features.dim() != 3 or labels.shape != features.shape[1:2]:
        raise ValueError(
            f"features {list(features.shape)} and labels {list(labels.shape)} do not fit; give [B, n, D] and [n]"
        )
    if not (labels.any() and not labels.all()):
        raise ValueError(f"all {len(labels)} labels are the same; there is nothing to tell apart")
    if not (C > 0 and tolerance > 0):
        raise ValueError(f"C is {C} and tolerance {tolerance}; both must be greater than 0")
    problems, _, size = features.shape
    weight = torch.empty(problems, size, dtype=torch.float64)
    intercept, decrement = torch.empty(2, problems, dtype=torch.float64)
    steps = 0
    targets = labels.double()
    room: Tensor | None = None
    for part in _chunks(features):
        if room is None:  # two blocks for all chunks: fresh pages would cost as much as the products
            room = torch.ones(2, part.stop, features.shape[1], size + 1, dtype=torch.float64)
        x, scratch = room[:, : part.stop - part.start]
        x[..., :-1] = features[part]
        mean = x[..., :-1].mean(1, keepdim=True)
        bad = int((~torch.isfinite(mean)).sum())  # one NaN or infinity makes its column's mean one
        if bad:
            raise ValueError(f"{bad} columns of the features hold NaN or infinity; they cannot be fitted")
        x[..., :-1] -= mean
        found, decrement[part], taken = _newton(x, scratch, targets, C, tolerance)
        weight[part] = found[:, :-1]
        intercept[part] = found[:, -1] - (mean.squeeze(1) * weight[part]).sum(-1)
        steps = max(steps, taken)
    return LogisticFits(weight, intercept, decrement, steps)


def _chunks(features: Tensor) -> Iterator[slice]:
    """Slices of problems whose features fill CHUNK_BYTES, one at least."""
    problems, rows, size = features.shape
    step = max(1, CHUNK_BYTES // (8 * rows * (size + 1)))
    for begin in range(0, problems, step):
        yield slice(begin, min(begin + step, problems))


def _newton(x: Tensor, scratch: Tensor, targets: Tensor, C: float, tolerance: float) -> tuple[Tensor, Tensor, int]:
    """(w with β behind it [B, D + 1], decrement [B], steps) for x [B, n, D + 1] whose last column is 1."""
    problems, _, size = x.shape
    penalty = torch.ones(size, dtype=x.dtype)
    penalty[-1] = 0
    sign = 1 - 2 * targets  # −y
    w = x.new_zeros(problems, size)
    margin = x.new_zeros(problems, x.shape[1])
    value = _value(margin, w, sign, penalty, C)
    factor: Tensor | None = None
    before = best = torch.full((problems,), torch.inf, dtype=x.dtype)
    idle = 0
    for step in range(MOST_STEPS):
        p = margin.sigmoid()
        g = C * torch.bmm((p - targets)[:, None], x).squeeze(1) + penalty * w
        if factor is None:
            factor = _factor(x, scratch, p, penalty, C)
        d = -torch.cholesky_solve(g[..., None], factor).squeeze(-1)
        slope = (g * d).sum(-1)
        decrement = (-slope).clamp(min=0).sqrt()
        open_ = decrement > tolerance
        idle = 0 if bool((open_ & (decrement < 0.5 * best)).any()) else idle + 1
        best = torch.minimum(best, decrement)
        if not open_.any() or (idle > PATIENCE and bool((decrement < WORST_DECREMENT).all())):
            return w + d, decrement, step
        moved = torch.bmm(x, d[..., None]).squeeze(-1)
        length, value = _shorten(value, slope, margin, moved, w, d, sign, penalty, C)
        w = w + length[:, None] * d
        margin = margin + length[:, None] * moved
        if bool((open_ & (decrement > REFRESH * before)).any()) or bool((length < 1).any()):
            factor = None
        before = decrement
    raise ValueError(
        f"a logistic regression did not come to its end in {MOST_STEPS} steps: its decrement is still "
        f"{float(decrement.max()):.3g} and its features reach {float(x.abs().max()):.3g}; scale them"
    )


def _value(margin: Tensor, w: Tensor, sign: Tensor, penalty: Tensor, C: float) -> Tensor:
    """f [B] where the margins Xw + β are [B, n]."""
    misfit = softplus(sign * margin, threshold=40.0).sum(-1)
    value: Tensor = C * misfit + 0.5 * (penalty * w * w).sum(-1)
    return value


def _factor(x: Tensor, scratch: Tensor, p: Tensor, penalty: Tensor, C: float) -> Tensor:
    """Cholesky factor of H [B, D + 1, D + 1]; a ridge is added where rounding leaves H not positive."""
    torch.mul(x, (C * p * (1 - p))[..., None], out=scratch)
    hessian = torch.bmm(scratch.mT, x)
    diagonal = hessian.diagonal(dim1=-2, dim2=-1)
    diagonal += penalty
    scale = diagonal.amax(-1, keepdim=True)
    diagonal[:, -1] += 1e-12 * scale[:, 0]  # where every p is 0 or 1, nothing else holds the intercept
    ridge = 1e-14
    while True:
        factor: Tensor
        factor, failed = torch.linalg.cholesky_ex(hessian)
        if not failed.any():
            return factor
        if ridge > 1:  # more than H itself: it is not finite
            raise ValueError(f"the features reach {float(x.abs().max()):.3g}, too much to be fitted; scale them")
        diagonal += ridge * scale * (failed > 0)[:, None]
        ridge *= 100


def _shorten(
    value: Tensor, slope: Tensor, margin: Tensor, moved: Tensor, w: Tensor, d: Tensor, sign: Tensor, penalty: Tensor,
    C: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(s [B], f there): the longest of 1, ½, ¼ ... with f(s) <= f(0) + 10⁻⁴ s·slope, up to the rounding of f."""
    length = torch.ones_like(value)
    slack = 1e-13 * (1 + value)
    for _ in range(MOST_HALVINGS):
        new = _value(margin + length[:, None] * moved, w + length[:, None] * d, sign, penalty, C)
        short = ~(new <= value + 1e-4 * length * slope + slack)
        if not short.any():
            break
        length = torch.where(short, 0.5 * length, length)
    return length, new
