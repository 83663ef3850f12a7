"""What every probe is given and what it gives back. No probe lives here.

A probe looks at one contrast of the NLL (see `contrast`):

    text      s_h = mean NLL(base) − mean NLL(edit h), over the counted tokens of `tokens`
    margin    s_h = M(edit h) − M(base),   M = mean over pairs of [NLL̄(negative) − NLL̄(positive)]

NLL̄ is the mean over an answer's own tokens, so that long answers weigh as much as short ones. Both are in nats per
token, and in both larger means that the edit helps.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from .artifacts import Progress, SilentProgress
from .components import Components
from .token_set import TokenSet

if TYPE_CHECKING:
    from .pairs import PairSet

__all__ = ["CONTRASTS", "EDITS", "ProbeInput", "ProbeResult"]

CONTRASTS = ("text", "margin")
EDITS = ("inject", "ablate")


@dataclass(frozen=True)
class ProbeInput:
    """Everything a probe may look at. `model` is the pruned model; its output projections get replaced.

    tokens: text of the `text` contrast. pairs: positive and negative answers, for the `margin` contrast and the
    linear probe. edit: `inject` gives one head its lost component in the pruned model; `ablate` takes one head's
    part out of `compensation` [L, H, D], which all other heads keep. share: of heads that will be chosen (a probe may
    settle no more than who is among them). memory: bytes that a probe may use beside the model. scratch: a folder for
    what does not fit into them. dense: the model before pruning, for the linear probe as the paper's authors have it.
    """

    model: nn.Module
    tokens: TokenSet
    components: Components
    seed: int = 0
    batch: int = 4
    progress: Progress = field(default_factory=SilentProgress)
    pairs: PairSet | None = None
    contrast: str = "text"
    edit: str = "inject"
    compensation: Tensor | None = None
    share: float = 0.25
    memory: int = 2 << 30
    scratch: Path | None = None
    dense: nn.Module | None = None


@dataclass(frozen=True)
class ProbeResult:
    """scores [L, H] float64; details: further tensors a probe reports, such as the half-width of an interval."""

    scores: Tensor
    details: dict[str, Tensor] = field(default_factory=dict)
