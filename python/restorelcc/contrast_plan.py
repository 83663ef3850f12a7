"""How many rows and edits at once fit into a budget of memory. Pure arithmetic: nothing is run.

A row of T tokens in flight costs about T (10 E + 4 I + 6 K) elements (residual stream, norms, the feed-forward
network's two branches and their product, q, k, v, z and the attention's output) and T² for its mask; where the stock
class must make logits, 2 T V more in fp32. The base keeps T (E + K) elements per layer and row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .architectures import attention_sites
from .lm_head import language_head

__all__ = ["ContrastPlan", "RowCost", "contrast_plan", "plan_batches", "row_cost"]

_WIDE_ENOUGH = 4096  # tokens a batch: more at once is no faster, the weights are read rarely enough


@dataclass(frozen=True)
class RowCost:
    """Bytes of one row: in flight through a layer, and kept of the base for all layers."""

    flight: int
    states: int


@dataclass(frozen=True)
class ContrastPlan:
    """rows: of a base batch. edits: that continue together, rows x edits at once. spill: whether states go to files."""

    rows: int
    edits: int
    spill: bool


def row_cost(model: Any, length: int) -> RowCost:
    """The cost of a row of `length` tokens of `model`."""
    config = model.config.get_text_config(decoder=True)
    site = attention_sites(model)[0]
    hidden = site.outputs
    inner = next((int(value) for name in ("intermediate_size", "ffn_dim", "ffn_hidden_size")
                  if isinstance(value := getattr(config, name, None), int)), 4 * hidden)  # fmt: skip
    bytes_each = next(model.parameters()).element_size()
    flight = length * (10 * hidden + 4 * inner + 6 * site.inputs) * bytes_each + 4 * length * length
    if not language_head(model).last:
        flight += 8 * length * int(config.vocab_size)
    return RowCost(flight, int(config.num_hidden_layers) * length * (hidden + site.inputs) * bytes_each)


def plan_batches(cost: RowCost, *, rows: int, length: int, edits: int, memory: int) -> ContrastPlan:
    """The largest batch that is of use and fits: all edits of a layer for as many rows as can be.

    Args:
        rows, length: of the text. edits: the most that one layer has. memory: bytes.

    Raises:
        ValueError: one row with one edit does not fit.
    """
    if cost.flight > memory:
        raise ValueError(
            f"a row of {length} tokens needs about {cost.flight / 1e6:,.1f} MB, but only {memory / 1e6:,.1f} MB are "
            "allowed; allow more memory or use shorter rows"
        )
    fit = max(1, memory // cost.flight)  # rows in flight
    if fit < edits:
        return ContrastPlan(1, fit, spill=cost.states + fit * cost.flight > memory)
    wide = max(1, _WIDE_ENOUGH // (edits * length))
    batch = max(1, min(rows, fit // edits, wide))
    return ContrastPlan(batch, edits, spill=batch * (cost.states + edits * cost.flight) > memory)


def contrast_plan(model: Any, length: int, rows: int, edits: int, memory: int) -> ContrastPlan:
    """`plan_batches` for `rows` rows of `model` of at most `length` tokens."""
    return plan_batches(row_cost(model, length), rows=rows, length=length, edits=edits, memory=memory)
