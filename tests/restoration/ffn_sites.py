"""Compensations of FFN outputs, and the float64 model that they are compared with: stock modules and hooks alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from restorelcc.compensation import Compensation
from restorelcc.models import load_model
from restorelcc.sites import chained, model_sites, places_of

IDS = torch.randint(3, 96, (2, 17), generator=torch.Generator().manual_seed(0))


def some_vectors(path: Path, sites: str, scale: float = 0.5, seed: int = 1) -> Compensation:
    """Random vectors at these sites of the checkpoint, large enough to change what it says."""
    model, generator = load_model(path).model, torch.Generator().manual_seed(seed)
    parts = []
    for place in places_of(sites):
        found = model_sites(model, place)
        vectors = scale * torch.randn(len(found), found[0].width, generator=generator)
        heads = torch.ones(len(found), found[0].units, dtype=torch.bool)
        parts.append(Compensation(vectors, heads, [site.name for site in found], place=place))
    return chained(parts)


def down_projections(model: Any) -> list[nn.Module]:
    """The last projection of each FFN, by the names that the stock classes give them."""
    ends = ("mlp.down_proj", "mlp.dense_4h_to_h", "layers.0.fc2", "layers.1.fc2")
    return [module for name, module in model.named_modules() if name.endswith(ends)]


def exact_logits(path: Path, compensation: Compensation, ids: Tensor = IDS) -> Tensor:
    """[B, T, V] float64: the stock model in float64, z + c into o_proj and y + c out of down_proj by hooks."""
    model = load_model(path, dtype=torch.float64).model
    for part in compensation.parts:
        for name, vector in zip(part.sites, part.vectors.double(), strict=True):
            module = model.get_submodule(name)
            if part.place == "ffn":
                module.register_forward_hook(lambda _, __, y, vector=vector: y + vector)
            else:
                module.register_forward_pre_hook(lambda _, args, vector=vector: (args[0] + vector,))
    with torch.no_grad():
        found: Tensor = model(input_ids=ids).logits
    return found


def float_logits(model: Any, ids: Tensor = IDS) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=ids).logits
    return found
