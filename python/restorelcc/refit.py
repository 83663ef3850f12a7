"""Refit: the surviving weights solved anew, so that the pruned model follows the dense one on its own inputs.

    min over W, b under the mask:   Σ_m ‖ t_m − W x_m − b ‖²  +  ρ ḡ ‖W − W°‖²

    x   what enters the projection in the pruned model, whose earlier projections are refitted already
    t   W_d x_d + b_d, what the dense model's projection gives on its own input; for those that add to the residual
        stream, h_d + W_d x_d + b_d − h_p, so that they also take back what the stream lost before
    W°  the pruned weights;  ḡ  the mean over k of Σ_m x_mk²

No zero changes: a row is solved on its surviving columns alone (see `masked_least_squares`). The layers are visited in
order, one pair resident; only x xᵀ and t xᵀ of one group of projections are kept at a time. Least squares towards the
dense layer's outputs: as in AdaPrune and SparseGPT's reconstruction, but on inputs of the pruned model, and towards the
dense residual stream. A bias that is there is solved for as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .artifacts import Progress, SilentProgress, fingerprint
from .layer_pairs import DENSE, PRUNED, LayerPair, PairBatch, stream_pairs
from .layers import LayerStream, run_layer
from .masked_least_squares import masked_least_squares
from .models import attention_sites, decoder_layers
from .projection_taps import projection_groups, tapped, tapping
from .pruning import rounded_survivors
from .step_file import Fields
from .structure import Structure
from .text import TokenSet

__all__ = ["RefitSettings", "refit"]

# Of what a dense layer's projections give for all text. No more than that is kept from the first group's pass for the
# other groups; where it is more, it is computed anew for each of them.
_KEPT_BYTES = 1 << 30


@dataclass(frozen=True)
class RefitSettings:
    """ridge: ρ. batch: rows at once. iterations, tolerance: of the conjugate gradients (see `masked_least_squares`)."""

    ridge: float = 0.2
    iterations: int = 40
    tolerance: float = 1e-2
    batch: int = 4

    def __post_init__(self) -> None:
        if not 0 < self.ridge < math.inf:
            raise ValueError(f"ridge is {self.ridge}; it must be more than 0")
        if not 0 < self.tolerance < 1:
            raise ValueError(f"tolerance is {self.tolerance}; it must lie between 0 and 1, both left out")
        for name, count in (("iterations", self.iterations), ("batch", self.batch)):
            if count < 1:
                raise ValueError(f"{name} is {count}; it must be 1 or more")


def refit(
    dense: Path,
    pruned: Path,
    tokens: TokenSet,
    *,
    work: Path,
    structure: Structure | None = None,
    settings: RefitSettings | None = None,
    progress: Progress | None = None,
) -> dict[str, Tensor]:
    """name -> tensor of what changed: every projection's weight, and its bias where it has one.

    Args:
        dense, pruned: checkpoint directories with the same shapes, but for what `structure` says.
        tokens: calibration text; position 0 counts, padding does not.
        work: a directory of this step alone. Finished layers stand there, behind which a killed call goes on.
        structure: the heads and channels that the pruned model kept, where it has fewer than the dense one. Targets
            are then the kept rows of t; those of o_proj and down_proj are whole, so that the kept columns also take
            over what the removed ones gave.

    The tensors are of the types that the pruned checkpoint stores, and mapped from files in `work`, which may be
    removed meanwhile. No zero of a weight changes, and none is added. Memory: one layer of each model, the embeddings,
    x xᵀ and t xᵀ of one group of projections, 1 GiB of the dense layer's outputs; docs/recipes.md has the formula.
    Time: about 3.3 forward passes of one model over the text (4.5 where those outputs are more than that), and up to
    `iterations` products of 2 N K² for each projection.

    Raises:
        ValueError: models of different shape, text that is not for them, activations that are not finite, or layers
            that call a projection more than once.
    """
    settings = settings or RefitSettings()
    streams = (LayerStream(dense), LayerStream(pruned))
    tokens.check_model(streams[DENSE].model)
    sites = attention_sites(streams[DENSE].model)
    stamp = fingerprint(dense=Path(dense), pruned=Path(pruned), ids=tokens.fingerprint(), settings=asdict(settings))

    def visit(pair: LayerPair) -> dict[str, Tensor]:
        return _LayerRefit(pair, sites[pair.index].name, streams[PRUNED].stored_dtype, structure, settings).run()

    parts = stream_pairs(
        streams, tokens, visit, work=work, stamp=stamp, fields=lambda index: _fields(streams[PRUNED], index),
        batch=settings.batch, task="refit", progress=progress or SilentProgress(),
    )  # fmt: skip
    prefix = streams[PRUNED].prefix
    return {f"{prefix}.{index}.{name}": value for index, part in enumerate(parts) for name, value in part.items()}


def _fields(pruned: LayerStream, index: int) -> Fields:
    """What a layer's file holds: the refitted tensors, of the types that the pruned checkpoint stores."""
    fields = {}
    for place, (name, linear) in enumerate(_linears(decoder_layers(pruned.model)[1][index])):
        full = f"{pruned.prefix}.{index}.{name}"
        fields[f"{name}.weight"] = (pruned.stored_dtype(f"{full}.weight"), f"N{place} K{place}")
        if _has_bias(linear):
            fields[f"{name}.bias"] = (pruned.stored_dtype(f"{full}.bias"), f"N{place}")
    return fields


def _linears(layer: nn.Module) -> list[tuple[str, nn.Linear]]:
    return [(name, module) for name, module in layer.named_modules() if isinstance(module, nn.Linear)]


def _has_bias(linear: Any) -> bool:
    return linear.bias is not None


class _Sums:
    """Σ x xᵀ, Σ x and, for each projection of a group, Σ t xᵀ and Σ t, in float64."""

    def __init__(self) -> None:
        self.count = 0
        self.gram: Any = 0
        self.x: Any = 0
        self.cross: dict[str, Any] = {}
        self.t: dict[str, Any] = {}

    def add(self, x: Tensor, targets: dict[str, Tensor]) -> None:
        self.count += x.shape[0]
        self.gram = _added(self.gram, x.T @ x)
        self.x = self.x + x.double().sum(0)
        for name, t in targets.items():
            self.cross[name] = _added(self.cross.get(name, 0), t.T @ x)
            self.t[name] = self.t.get(name, 0) + t.double().sum(0)


def _added(total: Any, value: Tensor) -> Tensor:
    """total + value in float64; a sum that is there already takes it in, since a second one of this size is dear."""
    wide = value.double()
    return total.add_(wide) if isinstance(total, Tensor) else total + wide


class _LayerRefit:
    """One layer: its groups of projections in the order in which the stock layer calls them."""

    def __init__(
        self, pair: LayerPair, site: str, stored: Callable[[str], torch.dtype],
        structure: Structure | None, settings: RefitSettings,
    ) -> None:  # fmt: skip
        self.pair, self.stored, self.settings = pair, stored, settings
        self.structure = structure
        self.attention = site.removeprefix(pair.name + ".")
        first = next(pair.batches())
        self.groups = projection_groups(pair.layers[PRUNED], first.entered[PRUNED], first.calls[PRUNED])
        self.ffn = self.groups[-1][-1]
        self.adds = self._adds_to_stream(first)
        self.later = [name for group in self.groups[1:] for name in group]
        outputs = sum(linear.out_features for name, linear in _linears(pair.layers[DENSE]) if name in self.later)
        # by the row at which a batch begins; None: too much
        self.kept: dict[int, dict[str, Tensor]] | None = {} if 4 * outputs * pair.token_count <= _KEPT_BYTES else None

    def run(self) -> dict[str, Tensor]:
        made: dict[str, Tensor] = {}
        pruned = self.pair.layers[PRUNED]
        for group in self.groups:
            sums = self._sums(group)
            for name in group:
                linear: Any = pruned.get_submodule(name)
                weight, bias = self._solved(name, linear, sums)
                linear.weight.copy_(weight)
                made[f"{name}.weight"] = weight.to(self._stored(f"{name}.weight"))
                if bias is not None:
                    linear.bias = nn.Parameter(bias, requires_grad=False)
                    made[f"{name}.bias"] = bias.to(self._stored(f"{name}.bias"))
        for batch in self.pair.batches():  # the dense one's output was handed on already
            self.pair.run(PRUNED, batch)
        return made

    def _stored(self, name: str) -> torch.dtype:
        return self.stored(f"{self.pair.name}.{name}")

    def _adds_to_stream(self, batch: PairBatch) -> bool:
        """Whether h + y_attention + y_ffn is what the layer gives: not where outputs are scaled or normalised first."""
        layer, entered, call = self.pair.layers[DENSE], batch.entered[DENSE], batch.calls[DENSE]
        _, ys = tapped(layer, entered, call, outputs=(self.attention, self.ffn))
        out = run_layer(layer, entered, call)
        if any(y.numel() != out.numel() for y in ys.values()):
            return False
        added = entered + sum(y.reshape(out.shape) for y in ys.values())
        return torch.allclose(out, added, rtol=1e-3, atol=1e-4 * float(out.abs().max()))

    def _sums(self, group: list[str]) -> _Sums:
        sums = _Sums()
        last = self.ffn in group
        beside = (self.attention,) if last and self.attention not in group else ()
        for batch in self.pair.batches():
            theirs = self._dense_outputs(batch, (*group, *beside), last)
            xs, ours = tapped(
                self.pair.layers[PRUNED], batch.entered[PRUNED], batch.calls[PRUNED], inputs=group[:1], outputs=beside
            )
            keep = batch.mask
            behind = (batch.entered[DENSE] - batch.entered[PRUNED])[keep] if self.adds else None
            targets = {}
            for name in group:
                t = theirs[name]
                rows = None if self.structure is None else self.structure.rows(self.pair.index, name)
                t = t if rows is None else t[:, rows]
                if behind is not None and name in (self.attention, self.ffn):
                    t = t + behind
                    for other in beside:
                        t = t + (theirs[other] - ours[other].reshape(*keep.shape, -1)[keep])
                targets[name] = t
            sums.add(xs[group[0]].reshape(*keep.shape, -1)[keep], targets)
        return sums

    def _dense_outputs(self, batch: PairBatch, names: Sequence[str], last: bool) -> dict[str, Tensor]:
        """y [tokens, N] of these projections; one pass of each batch also hands the dense layer's output on."""
        if self.kept is None:
            return self._run_dense(batch, names, whole=last)
        if batch.begin in self.kept:
            return self.kept[batch.begin]
        found = self._run_dense(batch, (*names, *self.later), whole=True)
        self.kept[batch.begin] = {name: found[name] for name in self.later}
        return found

    def _run_dense(self, batch: PairBatch, names: Sequence[str], *, whole: bool) -> dict[str, Tensor]:
        layer, keep = self.pair.layers[DENSE], batch.mask
        if whole:
            with tapping(layer, outputs=names) as (_, ys):
                self.pair.run(DENSE, batch)
        else:
            ys = tapped(layer, batch.entered[DENSE], batch.calls[DENSE], outputs=names)[1]
        return {name: y.reshape(*keep.shape, -1)[keep] for name, y in ys.items()}

    def _solved(self, name: str, linear: Any, sums: _Sums) -> tuple[Tensor, Tensor | None]:
        """(weight, bias) of the types that the checkpoint stores, as float32; no bias where it has none."""
        settings, full = self.settings, f"{self.pair.name}.{name}"
        gram, cross, t = sums.gram, sums.cross[name], sums.t[name]
        if _has_bias(linear):  # the best bias leaves the same problem on what differs from the means
            gram = gram - torch.outer(sums.x, sums.x) / sums.count
            cross = cross - torch.outer(t, sums.x) / sums.count
        diagonal = gram.diagonal().clamp(min=0)
        ridge = settings.ridge * diagonal.mean().expand_as(diagonal)
        start = linear.weight
        try:
            solution = masked_least_squares(
                gram.float(),
                cross.float(),
                start != 0,
                start,
                ridge.float(),
                tolerance=settings.tolerance,
                iterations=settings.iterations,
            )
        except ValueError as error:
            raise ValueError(f"{full} cannot be refitted: {error}") from error
        dtype = self._stored(f"{name}.weight")
        weight = rounded_survivors(solution.weight, start != 0, dtype)
        if not _has_bias(linear):
            return weight, None
        bias = (t - weight.double() @ sums.x) / sums.count
        return weight, bias.to(dtype).float()
