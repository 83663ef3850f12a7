"""How many heads and FFN channels structured pruning leaves in each layer, and the stock configuration of that.

    attention = 2 E D H_kv (G + 1)          q, o of G query heads and k, v of one for each of the H_kv groups
    ffn       = 3 E F                       gate, up, down

A stock configuration has one number of each for all layers.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError

from .architectures import attention_sites, prunable_linears
from .fold_target import fold_target, skeleton_of
from .structure import Structure

__all__ = ["LayerSizes", "is_loadable", "layer_sizes", "size_choices", "small_config"]

ROUND_CHANNELS = 8  # kept channels are a multiple of this, so that matrix products stay aligned
_ATTENTION, _FFN = ("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class LayerSizes:
    """G: query heads of one key-value head; H_kv: key-value heads; F: FFN channels; D: head size; E: hidden size."""

    group: int
    key_value_heads: int
    channels: int
    head_dim: int
    width: int

    @property
    def heads(self) -> int:
        """Query heads."""
        return self.group * self.key_value_heads

    @property
    def attention(self) -> int:
        """Weights of q, k, v and o."""
        return 2 * self.width * self.head_dim * self.key_value_heads * (self.group + 1)

    @property
    def ffn(self) -> int:
        """Weights of gate, up and down."""
        return 3 * self.width * self.channels

    def with_kept(self, group: int, key_value_heads: int, channels: int) -> LayerSizes:
        """The same head and hidden size with other numbers."""
        return LayerSizes(group, key_value_heads, channels, self.head_dim, self.width)


def layer_sizes(model: Any) -> LayerSizes:
    """What every decoder layer has.

    Raises:
        ValueError: other projections than the seven, or layers that differ.
    """
    found = set()
    linears = dict(prunable_linears(model))
    kind = type(model).__name__
    for site in attention_sites(model):
        attention = site.name.rpartition(".")[0]
        layer = attention.rpartition(".")[0]
        names = [f"{attention}.{name}" for name in _ATTENTION] + [f"{layer}.mlp.{name}" for name in _FFN]
        if {name for name in linears if name.startswith(f"{layer}.")} != {*names, f"{attention}.o_proj"}:
            raise ValueError(
                f"{layer} of {kind} has other projections than q, k, v, o and gate, up, down, whose rows and columns "
                "structured pruning knows; use --method wanda or sparsegpt"
            )
        key_value_heads = linears[names[1]].out_features // site.head_dim
        if linears[names[0]].out_features != site.inputs or key_value_heads < 1 or site.heads % key_value_heads:
            raise ValueError(f"the heads of {attention} do not share its key-value heads evenly; use --method wanda")
        group, channels = site.heads // key_value_heads, linears[names[-1]].in_features
        found.add(LayerSizes(group, key_value_heads, channels, site.head_dim, site.outputs))
    if len(found) != 1:
        raise ValueError(f"the layers of {kind} differ in heads or channels; use --method wanda or sparsegpt")
    return found.pop()


def small_config(model: Any, sizes: LayerSizes) -> Any:
    """The model's stock configuration with other numbers of heads and channels."""
    config = copy.deepcopy(model.config)
    config.num_attention_heads = sizes.heads
    config.num_key_value_heads = sizes.key_value_heads
    config.head_dim = sizes.head_dim  # stock classes would divide the hidden size by the smaller number of heads
    config.intermediate_size = sizes.channels
    return config


def size_choices(full: LayerSizes, share: float) -> list[LayerSizes]:
    """All that can be left when `share` of the weights goes, most heads first.

    Query heads of every group go, or whole groups, or no heads; channels make up the total, in steps of
    `ROUND_CHANNELS`. Choices whose heads alone are more than the share are not among them.
    """
    heads = [(group, full.key_value_heads) for group in range(full.group, 0, -1)]
    heads += [(full.group, groups) for groups in range(full.key_value_heads - 1, 0, -1)]
    found = []
    for group, groups in heads:
        sizes = full.with_kept(group, groups, full.channels)
        kept = (full.attention + full.ffn) * (1 - share) - sizes.attention
        channels = round(kept / (3 * full.width) / ROUND_CHANNELS) * ROUND_CHANNELS
        if ROUND_CHANNELS <= channels <= full.channels and (sizes != full or channels < full.channels):
            found.append(full.with_kept(group, groups, channels))
    return sorted(found, key=lambda sizes: -sizes.attention)


def is_loadable(model: Any, full: LayerSizes, sizes: LayerSizes) -> bool:
    """Whether the stock class, so configured, has the shapes of the cut model and scales attention as the dense one.

    The configuration must be one that stock tools write and read, and so must the one that has room for biases.
    """
    sites = attention_sites(model)
    kept = [g * full.group + h for g in range(sizes.key_value_heads) for h in range(sizes.group)]
    first = Structure(
        full.head_dim, full.heads, full.key_value_heads, full.channels,
        (tuple(kept),) * len(sites), (tuple(range(sizes.channels)),) * len(sites),
    )  # fmt: skip
    config = small_config(model, sizes)
    try:
        for stored in (config, fold_target(config, everywhere=True).config):  # the latter holds the biases
            stored.validate()  # Llama: the heads must divide the hidden size, even where head_dim says otherwise
        smaller = skeleton_of(config)
    except (ValueError, RuntimeError, StrictDataclassError):
        return False
    projections = {name for name, _ in prunable_linears(model)}
    wanted = {}
    for name, value in model.named_parameters():
        shape, owner = torch.empty_like(value, device="meta"), name.rpartition(".")[0]
        wanted[name] = (first.cut(owner, shape) if owner in projections else shape).shape
    if {name: value.shape for name, value in smaller.named_parameters()} != wanted:
        return False
    attention = [site.name.rpartition(".")[0] for site in sites]
    return all(_scaling(model, name) == _scaling(smaller, name) for name in attention)


def _scaling(model: Any, attention: str) -> Any:
    return getattr(model.get_submodule(attention), "scaling", None)
