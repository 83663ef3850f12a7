"""The fold: a compensation becomes a bias, so that stock tools load the restored model and no zero is lost.

    y = W_o z + W_o c  =  W_o z + bias,      bias = W_o c  [N]  (+ the bias that was there)

Exact up to rounding. W_o c is computed once in float32 and added after the product; z + c is never formed (in
bf16, rounding z + c loses 17 % of |W_o c| when |c| is 1 % of |z|). Where the bias can live depends on the
architecture, so the target is chosen before any training.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import ops
from .artifacts import refuse_inputs
from .compensation import Compensation, check_fits
from .models import attention_sites, load_model, plain_errors, save_checkpoint
from .packed import pack
from .pruning import masks_equal, sparsity_table

__all__ = ["FoldReport", "FoldTarget", "fold", "fold_target", "skeleton_of", "stored_config"]

FOLDS = ("o_proj", "none")

# Configurations that a Llama with attention_bias reproduces exactly when there is no sliding window.
_LLAMA_TWINS = ("mistral", "qwen2")
_LLAMA_FIELDS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "hidden_act", "max_position_embeddings", "initializer_range", "rms_norm_eps", "use_cache",
    "pad_token_id", "bos_token_id", "eos_token_id", "tie_word_embeddings", "rope_parameters", "attention_dropout",
)  # fmt: skip


@dataclass(frozen=True)
class FoldTarget:
    """Where W_o c can live.

    kind: `o_proj_bias` (the stock class has, or can be told to have, that bias), `llama_reexport` (the same
    function as a Llama with attention_bias), or `adapter` (no place in a stock checkpoint).
    new_parameters: biases that the target class has and the source has not; they start at zero.
    """

    kind: str
    reason: str
    config: Any
    new_parameters: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class FoldReport:
    """What the fold wrote: target kind, biases, and the proof that the masks are the same bit by bit."""

    kind: str
    reason: str
    biases: int
    matrices_compared: int
    zeros: int


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


def _sliding_window(config: Any) -> bool:
    if getattr(config, "sliding_window", None) is None:
        return False
    kinds = getattr(config, "layer_types", None)
    return kinds is None or any(kind != "full_attention" for kind in kinds)


def _as_llama(config: Any) -> Any:
    from transformers import LlamaConfig

    fields = {name: copy.deepcopy(getattr(config, name)) for name in _LLAMA_FIELDS if hasattr(config, name)}
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    llama = LlamaConfig(**fields, head_dim=head_dim, attention_bias=True, mlp_bias=False)
    llama.architectures = ["LlamaForCausalLM"]
    llama.dtype = getattr(config, "dtype", None)
    return llama


def fold_target(source: Path | Any) -> FoldTarget:
    """Chooses where a compensation of this architecture can be folded; decides by building stock classes.

    Args:
        source: a checkpoint directory, or its stock configuration.

    Raises:
        ValueError: an architecture whose attention output projections are unknown.
    """
    config = stored_config(source) if isinstance(source, Path) else source
    skeleton = skeleton_of(config)
    names = dict(skeleton.named_parameters())
    sites = attention_sites(skeleton)
    if all(f"{site.name}.bias" in names for site in sites):
        return FoldTarget("o_proj_bias", f"{config.model_type} has a bias at every output projection", config)
    if hasattr(config, "attention_bias"):
        changed = copy.deepcopy(config)
        changed.attention_bias = True
        target = skeleton_of(changed)
        added = sorted(set(dict(target.named_parameters())) - set(names))
        has_bias = all(f"{site.name}.bias" in added for site in sites)
        if has_bias and all(name.endswith(".bias") for name in added):
            return FoldTarget("o_proj_bias", f"{config.model_type} with attention_bias", changed, added)
    if config.model_type in _LLAMA_TWINS:
        if _sliding_window(config):
            return FoldTarget(
                "adapter",
                f"this {config.model_type} model uses a sliding window of {config.sliding_window} tokens, which the "
                "Llama class it would be re-exported as lacks; the compensation is written as an adapter directory",
                config,
            )
        llama = _as_llama(config)
        added = sorted(set(dict(skeleton_of(llama).named_parameters())) - set(names))
        return FoldTarget("llama_reexport", f"{config.model_type} is a Llama with attention_bias", llama, added)
    return FoldTarget(
        "adapter",
        f"the stock {config.model_type} class has no bias at its attention output projections, and no stock class "
        "is known that computes the same with one; the compensation is written as an adapter directory",
        config,
    )


def fold(pruned: Path, compensation: Compensation, out: Path, *, overwrite: bool = False) -> FoldReport:
    """Writes `pruned` with W_o c folded into its output projections' biases, as a stock checkpoint, to `out`.

    Args:
        pruned: checkpoint directory of the pruned model.
        compensation: vectors c [L, H·D].
        out: directory; written under a temporary name and renamed when it is whole. The masks are proven first.

    Raises:
        ValueError: the architecture has no place for the bias (the sentence says what to do), the compensation
            belongs to another model, or a mask changed.
    """
    refuse_inputs(out, pruned)
    loaded = load_model(pruned)
    model, tokenizer = loaded.model, loaded.tokenizer
    target = fold_target(model.config)
    if target.kind == "adapter":
        raise ValueError(f"cannot fold into {pruned}: {target.reason}; use --fold none")
    sites = attention_sites(model)
    check_fits(model, compensation)
    state = dict(model.state_dict())
    weights: dict[str, Tensor] = {site.name: model.get_submodule(site.name).weight.detach() for site in sites}
    dtype = weights[sites[0].name].dtype
    shapes = dict(skeleton_of(target.config).named_parameters())
    for name in target.new_parameters:
        state[name] = torch.zeros(shapes[name].shape, dtype=dtype)
    for site, vector in zip(sites, compensation.vectors, strict=True):
        bias = ops.sparse_linear(vector[None, :].float(), pack(weights[site.name].float()))[0]
        name = f"{site.name}.bias"
        state[name] = (state[name].float() + bias).to(dtype)

    if target.new_parameters:
        from transformers import AutoModelForCausalLM

        generation = model.generation_config
        with torch.device("meta"):
            folded: Any = AutoModelForCausalLM.from_config(target.config, dtype=dtype)  # type: ignore[no-untyped-call]
        folded.load_state_dict(state, assign=True, strict=False)
        folded.tie_weights()
        folded.generation_config = generation
        left = [name for name, parameter in folded.named_parameters() if parameter.is_meta]
        if left:
            raise ValueError(f"{len(left)} parameters of the folded model got no value, the first is {left[0]}")
    else:
        model.load_state_dict(state)
        folded = model
    zeros, matrices = _prove_masks(pruned, folded)
    save_checkpoint(
        folded, tokenizer, out, extra_files={"compensation.safetensors": compensation.to_bytes()}, overwrite=overwrite
    )
    return FoldReport(target.kind, target.reason, len(sites), matrices, zeros)


def _prove_masks(pruned: Path, restored: nn.Module) -> tuple[int, int]:
    """(zeros, matrices) of the prunable weights, after proving that both models have the same masks."""
    masks_equal(pruned, restored)
    table = sparsity_table(restored)
    return sum(int(row["zeros"]) for row in table), len(table)
