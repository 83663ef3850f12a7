"""Where a bias can live in a stock checkpoint, decided by building stock classes, before anything is trained.

    o_proj_bias      the class has that bias at every output projection, or can be told to (`attention_bias`)
    llama_reexport   the same function as a Llama with `attention_bias` (Mistral, Qwen2, no sliding window)
    v_proj_bias      c in the value projection's bias: attention weights sum to 1, so z + c = Σ a_t (v_t + c)
    adapter          no stock class is known that computes the same with one

A vector of an FFN is the bias of its last projection, which Llama has with `mlp_bias` (and so Mistral and Qwen2), OPT
and GPT-NeoX have anyway, and Qwen3 and Gemma cannot have: there is no other place for it, so those get an adapter.

Asked for `everywhere`, biases at all projections inside the decoder layers that a stock class can have.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .models import attention_sites, plain_errors, prunable_linears
from .sites import ATTENTION, FFN, model_sites

__all__ = ["FoldTarget", "fold_target", "skeleton_of", "stored_config", "value_projection"]

# Configurations that a Llama with attention_bias reproduces exactly when there is no sliding window.
_LLAMA_TWINS = ("mistral", "qwen2")
_LLAMA_FIELDS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "hidden_act", "max_position_embeddings", "initializer_range", "rms_norm_eps", "use_cache",
    "pad_token_id", "bos_token_id", "eos_token_id", "tie_word_embeddings", "rope_parameters", "attention_dropout",
)  # fmt: skip


@dataclass(frozen=True)
class FoldTarget:
    """Where W_o c, and an FFN's c, can live.

    kind: `o_proj_bias` (the stock class has, or can be told to have, that bias), `down_proj_bias` (the same of FFNs
    alone), `output_biases` (of both), `llama_reexport` (the same function as a Llama with these biases), `v_proj_bias`
    (with the FFNs' beside it, where those are asked for), `adapter` (no place in a stock checkpoint), or `unchanged`
    (nobody asked).
    new_parameters: biases that the target class has and the source has not; they start at zero.
    tied: how many neighbouring heads must share one c: those that read the same values, for `v_proj_bias`.
    """

    kind: str
    reason: str
    config: Any
    new_parameters: list[str] = field(default_factory=list)
    tied: int = 1

    @property
    def biased(self) -> list[str]:
        """Names of the projections inside the decoder layers that have a bias in the target."""
        return [name for name, linear in prunable_linears(skeleton_of(self.config)) if linear.bias is not None]


def skeleton_of(config: Any) -> nn.Module:
    """The stock class of `config`, without storage."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model: nn.Module = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    return model


def stored_config(path: Path) -> Any:
    """The stock configuration of a checkpoint directory; ValueError when there is none."""
    from transformers import AutoConfig

    with plain_errors(path):
        return AutoConfig.from_pretrained(path, local_files_only=True)


def has_sliding_window(config: Any) -> bool:
    if getattr(config, "sliding_window", None) is None:
        return False
    kinds = getattr(config, "layer_types", None)
    return kinds is None or any(kind != "full_attention" for kind in kinds)


def _as_llama(config: Any, attention: bool, ffn: bool) -> Any:
    from transformers import LlamaConfig

    fields = {name: copy.deepcopy(getattr(config, name)) for name in _LLAMA_FIELDS if hasattr(config, name)}
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    llama = LlamaConfig(**fields, head_dim=head_dim, attention_bias=attention, mlp_bias=ffn)
    llama.architectures = ["LlamaForCausalLM"]
    llama.dtype = getattr(config, "dtype", None)
    return llama


_SWITCHES = {ATTENTION: "attention_bias", FFN: "mlp_bias"}  # of a configuration, for the biases of a place
_KINDS = {(ATTENTION,): "o_proj_bias", (FFN,): "down_proj_bias", (ATTENTION, FFN): "output_biases"}
_OUTPUTS = {
    (ATTENTION,): "its attention output projections", (FFN,): "the last projections of its FFNs",
    (ATTENTION, FFN): "its attention output projections and the last projections of its FFNs",
}  # fmt: skip


def fold_target(
    source: Path | Any, *, everywhere: bool = False, places: Sequence[str] = (ATTENTION,)
) -> FoldTarget:
    """Chooses where a compensation of this architecture can be folded; decides by building stock classes.

    Args:
        source: a checkpoint directory, or its stock configuration.
        everywhere: not only the biases that are needed, but those of all projections that a class can have.
        places: attention, ffn or both: where the compensation has vectors.

    Raises:
        ValueError: an architecture whose output projections are unknown.
    """
    config = stored_config(source) if isinstance(source, Path) else source
    skeleton = skeleton_of(config)
    places = tuple(places)
    names = set(dict(skeleton.named_parameters()))
    needed = {place: [f"{site.name}.bias" for site in model_sites(skeleton, place)] for place in places}
    outputs = [name for biases in needed.values() for name in biases]
    asked = tuple(_SWITCHES) if everywhere else places
    told = [_SWITCHES[place] for place in asked if hasattr(config, _SWITCHES[place])]
    if all(name in names for name in outputs) and not (everywhere and told):
        return FoldTarget(_KINDS[places], f"{config.model_type} has a bias at {_each(places)}", config)
    added: list[str] = []
    if told:
        changed = copy.deepcopy(config)
        for switch in told:
            setattr(changed, switch, True)
        added = _added(changed, names)
        if all(name in names or name in added for name in outputs) and all(name.endswith(".bias") for name in added):
            return FoldTarget(_KINDS[places], f"{config.model_type} with {' and '.join(told)}", changed, added)
    if config.model_type in _LLAMA_TWINS:
        if has_sliding_window(config):
            return _in_values(config, skeleton, places) or FoldTarget(
                "adapter",
                f"this {config.model_type} model uses a sliding window of {config.sliding_window} tokens, which the "
                "Llama class it would be re-exported as lacks; the compensation is written as an adapter directory",
                config,
            )
        # where the class has biases at its q, k and v projections, a Llama has them with attention_bias alone
        attention = ATTENTION in places or any(name.endswith(".q_proj.bias") for name in names)
        llama = _as_llama(config, attention, everywhere or FFN in places)
        reason = f"{config.model_type} is a Llama with {' and '.join(_SWITCHES[place] for place in places)}"
        return FoldTarget("llama_reexport", reason, llama, _added(llama, names))
    lacking = tuple(place for place, biases in needed.items() if not {*biases} <= {*names, *added})
    return _in_values(config, skeleton, places) or FoldTarget(
        "adapter",
        f"the stock {config.model_type} class has no bias at {_OUTPUTS[lacking or places]}, and no stock class "
        "is known that computes the same with one; the compensation is written as an adapter directory",
        config,
    )


def _each(places: tuple[str, ...]) -> str:
    return "every output projection" if places == (ATTENTION,) else _OUTPUTS[places]


def _in_values(config: Any, skeleton: nn.Module, places: tuple[str, ...]) -> FoldTarget | None:
    """The biases of the value projections, where every layer has one, split into heads as the output projection is.

    An FFN has no such projection: None where one needs a bias that the class has not.
    """
    names = dict(skeleton.named_parameters())
    ffn = model_sites(skeleton, FFN) if FFN in places else []
    if ATTENTION not in places or any(f"{site.name}.bias" not in names for site in ffn):
        return None
    tied = set()
    for site in attention_sites(skeleton):
        try:
            values: Any = skeleton.get_submodule(value_projection(site.name))
        except AttributeError:
            return None
        if getattr(values, "bias", None) is None or values.out_features % site.head_dim:
            return None
        groups = values.out_features // site.head_dim
        if site.heads % groups:
            return None
        tied.add(site.heads // groups)
    if len(tied) != 1:
        return None
    shared = tied.pop()
    return FoldTarget(
        "v_proj_bias",
        f"{config.model_type} has a bias at its value projections and none at its output projections; "
        f"{shared} heads share each",
        config, tied=shared,
    )  # fmt: skip


def value_projection(output: str) -> str:
    """The name of the value projection beside an output projection."""
    return f"{output.rpartition('.')[0]}.v_proj"


def _added(config: Any, names: set[str]) -> list[str]:
    """Parameters of the class of `config` that are not among `names`."""
    return sorted(set(dict(skeleton_of(config).named_parameters())) - names)
