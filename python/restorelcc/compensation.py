"""Compensation vectors, and the hooked model that applies them.

    y = W_o z + W_o c        one constant vector c [H·D] per layer, every token, W_o of the pruned model

RestoreLCC (arXiv 2510.21834) eq. 9. In the hooked model each output projection is a `SparseLinear` that reads
only the surviving weights and adds W_o c in float32; `fold` turns the same vectors into biases.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from .artifacts import atomic_write_tensors
from .models import attention_sites, get_module, replace_module
from .sparse_linear import SparseLinear
from .step_file import read_step_file

__all__ = ["Compensation", "apply_compensation", "check_fits", "sparse_output_projections"]

_FIELDS = {"vectors": (torch.float32, "L K"), "heads": (torch.bool, "L H")}


@dataclass(frozen=True)
class Compensation:
    """vectors [L, H·D] float32, zero outside the chosen `heads` [L, H]; `sites` name the output projections."""

    vectors: Tensor
    heads: Tensor
    sites: list[str]
    metadata: dict[str, str] = field(default_factory=dict)

    def _contents(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        marks = {"kind": "compensation", "version": "0", "sites": json.dumps(self.sites)}
        return {"vectors": self.vectors, "heads": self.heads}, {**self.metadata, **marks}

    def save(self, path: Path) -> None:
        """Writes the file that load() reads, whole or not at all."""
        atomic_write_tensors(path, *self._contents())

    def to_bytes(self) -> bytes:
        """What save() writes."""
        tensors, metadata = self._contents()
        return save(tensors, metadata=metadata)

    @classmethod
    def load(cls, path: Path) -> Compensation:
        """Raises ValueError when the file is missing, damaged or not a compensation file of this version."""
        remedy = "make one with `restorelcc restore`"
        found, metadata = read_step_file(
            path, "compensation", _FIELDS, name="compensation", remedy=remedy, marks=("sites",)
        )
        layers, inputs, heads = *found["vectors"].shape, found["heads"].shape[1]
        try:
            sites = json.loads(metadata.pop("sites"))
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"{path} names its projections in no readable list; {remedy}") from error
        named = isinstance(sites, list) and all(isinstance(site, str) for site in sites)
        if not named or len(sites) != layers or inputs % heads:
            raise ValueError(
                f"{path} does not fit itself: {layers} vectors of {inputs}, {heads} heads, "
                f"projections {str(sites)[:60]}; {remedy}"
            )
        return cls(found["vectors"], found["heads"], sites, metadata)


def sparse_output_projections(model: nn.Module) -> list[SparseLinear]:
    """Replaces every attention output projection of `model`, in place, by a `SparseLinear` with comp = 0 [K].

    The gradient of a layer's `comp` is Σ_tokens dL/dz, [H·D], because comp is added at every token.
    Projections that are `SparseLinear` already are kept (their comp is set to 0).
    """
    projections = []
    for site in attention_sites(model):
        module = get_module(model, site.name)
        if not isinstance(module, SparseLinear):
            assert isinstance(module, nn.Linear)
            module = SparseLinear.from_linear(module, comp=torch.zeros(site.inputs))
            replace_module(model, site.name, module)
        assert module.comp is not None
        with torch.no_grad():
            module.comp.zero_()
        module.requires_grad_(False)
        projections.append(module)
    return projections


def check_fits(model: nn.Module, compensation: Compensation) -> None:
    """Refuses a compensation of another model; `model` may be a skeleton without storage.

    Raises:
        ValueError: the model's output projections or heads are not the ones the compensation was made for.
    """
    sites = attention_sites(model)
    theirs = [(site.name, site.inputs, site.heads) for site in sites]
    inputs, heads = compensation.vectors.shape[1], compensation.heads.shape[1]
    if theirs != [(name, inputs, heads) for name in compensation.sites]:
        raise ValueError(
            f"the compensation was made for {len(compensation.sites)} projections of {inputs} inputs and {heads} "
            f"heads, the model has {len(sites)} projections of {sites[0].inputs} inputs and {sites[0].heads} heads; "
            "use the pruned model it was made from"
        )


def apply_compensation(model: nn.Module, compensation: Compensation) -> nn.Module:
    """The hooked model: `model` with c in every output projection, in place; returns it.

    Raises:
        ValueError: the model's output projections are not the ones the compensation was made for.
    """
    check_fits(model, compensation)
    for projection, vector in zip(sparse_output_projections(model), compensation.vectors, strict=True):
        assert projection.comp is not None
        with torch.no_grad():
            projection.comp.copy_(vector)
    return model
