"""A stock Llama checkpoint as llama.cpp's architecture "llama": names of tensors, order of rows, numbers.

    model.layers.N.self_attn.{q,k,v,o}_proj  ->  blk.N.attn_{q,k,v,output}        .weight and .bias
    model.layers.N.mlp.{gate,up,down}_proj   ->  blk.N.ffn_{gate,up,down}         .weight and .bias

All seven biases are optional tensors there, each added to its product, so what a restoration put into them stays.

transformers turns rows i and i + D/2 of a head [D, K] together, llama.cpp rows 2i and 2i + 1, by the same angle:

    row 2i + s of a head of the file  =  row i + s D/2 of the checkpoint,   s = 0, 1;   q and k, weights and biases

Both rows of q and k move alike, so that q·k stays; v and o are in the order they have.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .architectures import tensor_files
from .fold_target import skeleton_of
from .wording import one_line

__all__ = [
    "FileTensor", "LlamaNumbers", "StoredTensor", "file_tensors", "llama_numbers", "rope_pairs", "stored_tensors",
]  # fmt: skip

MOST_LAYERS = 512  # LLAMA_MAX_LAYERS of llama.cpp
_TIED = "lm_head.weight"
_FLOATS = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}  # as safetensors calls them


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of the checkpoint: its file, type and shape, as the file's header says."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]


@dataclass(frozen=True)
class FileTensor:
    """A tensor of the GGUF file, and the checkpoint's that it is made of. rope_heads: see `rope_pairs`; 0: as it is."""

    name: str
    source: str
    stored: StoredTensor
    rope_heads: int = 0

    @property
    def is_matrix(self) -> bool:
        """Whether it takes the type that was asked for; llama.cpp wants vectors in float32."""
        return len(self.stored.shape) == 2


@dataclass(frozen=True)
class LlamaNumbers:
    """What llama.cpp reads beside the tensors.

    rope_scale: positions are divided by it (type linear). rope_factors: [D/2] float32, angles are divided by them
    (type llama3); None: there are none.
    """

    context: int
    hidden: int
    layers: int
    channels: int
    heads: int
    key_value_heads: int
    head_dim: int
    vocabulary: int
    norm_eps: float
    rope_base: float
    rope_scale: float
    rope_factors: Tensor | None
    tied: bool


def llama_numbers(config: Any) -> LlamaNumbers:
    """From a stock configuration.

    Raises:
        ValueError: another architecture, or a Llama that llama.cpp's graph does not compute: another activation,
            scaling of positions, an odd head size, heads that do not share key-value heads evenly, too many layers.
    """
    if config.model_type != "llama":
        raise ValueError(
            f"this is a {one_line(config.model_type, 40)} model, and only Llama is exported; a Mistral or Qwen2 "
            "without sliding window becomes a Llama where `restorelcc fold` or `restore` gives it biases"
        )
    if config.hidden_act not in ("silu", "swish"):
        raise ValueError(f"its activation is {one_line(config.hidden_act, 40)}; llama.cpp computes silu for a Llama")
    heads, shared = int(config.num_attention_heads), int(config.num_key_value_heads)
    if heads < 1 or shared < 1:
        raise ValueError(f"it has {heads} heads and {shared} key-value heads; config.json is damaged")
    head_dim = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    if head_dim % 2:
        raise ValueError(f"its heads have {head_dim} dimensions; llama.cpp turns them in pairs, so it must be even")
    if heads % shared:
        raise ValueError(f"{heads} heads cannot share {shared} key-value heads evenly; config.json is damaged")
    if not 0 < config.num_hidden_layers <= MOST_LAYERS:
        raise ValueError(f"it has {config.num_hidden_layers} layers; llama.cpp takes 1 to {MOST_LAYERS}")
    try:
        base, scale, factors = _positions(config, head_dim)
    except (KeyError, TypeError, ArithmeticError) as error:
        raise ValueError(
            f"its rope_parameters are damaged ({type(error).__name__}: {one_line(error)}); correct config.json"
        ) from error
    if not (0 < base < math.inf and 0 < scale < math.inf) or (factors is not None and not _positive(factors)):
        raise ValueError("its rope_parameters are no positive finite numbers; correct config.json")
    return LlamaNumbers(
        context=int(config.max_position_embeddings), hidden=int(config.hidden_size),
        layers=int(config.num_hidden_layers), channels=int(config.intermediate_size), heads=heads,
        key_value_heads=shared, head_dim=head_dim, vocabulary=int(config.vocab_size),
        norm_eps=float(config.rms_norm_eps), rope_base=base, rope_scale=scale, rope_factors=factors,
        tied=bool(config.tie_word_embeddings),
    )  # fmt: skip


def _positions(config: Any, head_dim: int) -> tuple[float, float, Tensor | None]:
    """(base, what positions are divided by, what each pair's angle is divided by)."""
    rope = config.rope_parameters
    kind = rope.get("rope_type", "default") if isinstance(rope, Mapping) else None
    if kind not in ("default", "linear", "llama3"):
        raise ValueError(
            f"its positions are scaled as {one_line(repr(kind), 40)}; the export knows default, linear and llama3"
        )
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise ValueError(
            f"it turns a share of {one_line(rope['partial_rotary_factor'], 40)} of each head; llama.cpp turns a "
            "Llama's heads whole"
        )
    base = float(rope["rope_theta"])
    if kind == "linear":
        return base, float(rope["factor"]), None
    if kind == "default":
        return base, 1.0, None
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = base ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    return base, 1.0, (plain / scaled.double()).float()


def _positive(values: Tensor) -> bool:
    return bool((torch.isfinite(values) & (values > 0)).all())


def rope_pairs(value: Tensor, heads: int) -> Tensor:
    """Rows of `value` [heads * D, ...] in llama.cpp's order: row 2i + s of each head is row i + s D/2 of the given."""
    half = value.shape[0] // heads // 2
    return value.reshape(heads, 2, half, *value.shape[1:]).transpose(1, 2).reshape(value.shape)


def stored_tensors(path: Path) -> dict[str, StoredTensor]:
    """Name -> tensor of a checkpoint directory; only headers are read.

    Raises:
        ValueError: no safetensors there, a damaged or missing file, or an index that names what a file lacks.
    """
    files = tensor_files(path)
    if not files:
        raise ValueError(f"{path} holds no model.safetensors; save the model with transformers as safetensors")
    found = {}
    for file in sorted(set(files.values())):
        names = [name for name, place in files.items() if place == file]
        if not file.is_file():
            raise ValueError(f"{file} does not exist, though the index names it; copy the checkpoint again")
        try:
            with safe_open(file, framework="pt") as tensors:
                for name in names:
                    view = tensors.get_slice(name)
                    found[name] = _stored(file, name, view.get_dtype(), tuple(view.get_shape()))
        except SafetensorError as error:
            raise ValueError(
                f"{file} is truncated or not a safetensors file ({one_line(error)}); copy it again"
            ) from error
    return found


def _stored(file: Path, name: str, kind: str, shape: tuple[int, ...]) -> StoredTensor:
    if kind not in _FLOATS:
        raise ValueError(
            f"{file} stores {one_line(name, 80)} as {kind}; a float32, bfloat16 or float16 checkpoint is needed"
        )
    return StoredTensor(file, _FLOATS[kind], shape)


def file_tensors(config: Any, stored: Mapping[str, StoredTensor]) -> list[FileTensor]:
    """The tensors of the GGUF file in order, each with what it is made of.

    Raises:
        ValueError: the checkpoint lacks a parameter of the stock class, has one of another shape, or holds one that
            the class does not have (it would be lost).
    """
    import gguf

    numbers = llama_numbers(config)
    wanted = dict(skeleton_of(config).named_parameters())
    lacking = [name for name in wanted if name not in stored]
    if lacking:
        raise ValueError(
            f"the checkpoint lacks {len(lacking)} tensors, such as {lacking[0]}; load it with transformers and save it "
            "again"
        )
    # rotary tables stand in old checkpoints; a head that is tied is the embedding
    allowed = {*wanted, *([_TIED] if numbers.tied else [])}
    other = [name for name in stored if name not in allowed and not name.endswith("rotary_emb.inv_freq")]
    if other:
        raise ValueError(
            f"the checkpoint holds {one_line(other[0], 80)}, which the stock Llama class of its config.json has no "
            "place for; weights and configuration are not of the same model"
        )
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, numbers.layers)
    heads = {"q_proj": numbers.heads, "k_proj": numbers.key_value_heads}
    found = []
    for source, parameter in wanted.items():
        if stored[source].shape != tuple(parameter.shape):
            raise ValueError(
                f"the checkpoint holds {source} of shape {list(stored[source].shape)}, its config.json asks for "
                f"{list(parameter.shape)}; weights and configuration are not of the same model"
            )
        name = names.get_name(source, (".weight", ".bias"))
        if name is None:
            raise ValueError(f"GGUF has no name for {source} of a Llama; it cannot be exported")
        found.append(FileTensor(name, source, stored[source], heads.get(source.split(".")[-2], 0)))
    return found
