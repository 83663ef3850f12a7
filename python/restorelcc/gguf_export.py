"""A stock Llama checkpoint as a GGUF file that llama.cpp loads: what `restorelcc export --format gguf` does.

    y = W x + bias       for each of the seven projections: W in the type asked for, bias in float32

Nothing is changed but the order of q's and k's rows (see gguf_llama) and the rounding to that type. Zeros stay zeros,
and llama.cpp stores and multiplies them as any other weight. Tensors go through memory one at a time.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .adapter import is_adapter
from .architectures import stored_tensor
from .artifacts import Progress, SilentProgress, atomic_file
from .fold_target import stored_config
from .gguf_llama import FileTensor, LlamaNumbers, file_tensors, llama_numbers, rope_pairs, stored_tensors
from .gguf_vocabulary import Vocabulary, carried_vocabulary, stock_vocabulary
from .models import ModelSource, load_tokenizer, resolve_model
from .output_places import refuse_inputs
from .packed_record import is_packed
from .pruning import rounded_survivors

__all__ = ["GGUF_TYPES", "GgufReport", "export_gguf"]

# name -> (type of the matrices, LlamaFileType of the file, GGMLQuantizationType of the matrices)
_TYPES = {"f32": (torch.float32, 0, 0), "f16": (torch.float16, 1, 1), "bf16": (torch.bfloat16, 32, 30)}
GGUF_TYPES = tuple(_TYPES)
_ROPE_FACTORS = "rope_freqs.weight"


@dataclass(frozen=True)
class GgufReport:
    """What was written. zeros, weights: of the matrices inside the layers. biases: tensors, by what they belong to.

    Biases of zeros are left out.
    """

    out: Path
    type: str
    tensors: int
    biases: dict[str, int]
    zeros: int
    weights: int
    bytes: int
    tokenizer: str
    notes: tuple[str, ...]

    @property
    def sparsity(self) -> float:
        """Share of zeros, 0 to 1."""
        return self.zeros / max(self.weights, 1)

    def lines(self) -> list[str]:
        """For a person."""
        biases = ", ".join(f"{count} of {part}" for part, count in self.biases.items()) or "none"
        return [
            f"{self.out}: {self.tensors} tensors, matrices in {self.type}, {self.bytes:,} bytes; "
            f"tokenizer: {self.tokenizer}",
            f"biases: {biases}",
            f"{self.sparsity:.1%} of the layers' weights are zero; llama.cpp stores and multiplies them as any other",
            *self.notes,
        ]


def export_gguf(
    source: Path, out: Path, *, kind: str | None = None, tokenizer: str | None = None, overwrite: bool = False,
    progress: Progress | None = None,
) -> GgufReport:  # fmt: skip
    """Writes the checkpoint directory `source` to the GGUF file `out`, whole or not at all.

    Args:
        kind: f32, f16 or bf16, of matrices; None: what the checkpoint stores (f32 where it mixes types).
        tokenizer: MODEL whose tokenizer is taken (a GGUF file's is carried over as it is); None: the checkpoint's own.
        overwrite: replace an existing `out`.

    Raises:
        ValueError: no stock checkpoint of a Llama that llama.cpp computes, or no tokenizer that it can be told of (see
            `llama_numbers`, `file_tensors`, `stock_vocabulary`); values that are no finite numbers, or too large for
            the type; `out` exists.
        OSError: no space left; nothing is left behind.
    """
    source, out = Path(source).expanduser(), Path(out)
    _refuse_other_kinds(source)
    refuse_inputs(out, source, *([Path(tokenizer)] if tokenizer and Path(tokenizer).exists() else []))
    if out.is_file() and not overwrite:
        raise ValueError(f"{out} exists; pass --overwrite or another --out")
    if kind is not None and kind not in _TYPES:
        raise ValueError(f"the type {kind!r} is none of {', '.join(_TYPES)}")
    config = stored_config(source)
    numbers = llama_numbers(config)
    plan = [tensor for tensor in file_tensors(config, stored_tensors(source)) if not _adds_nothing(tensor)]
    kind = kind or _kind_of(plan)
    vocabulary = _vocabulary(source, tokenizer, config)
    needed = sum(_bytes(tensor, kind) for tensor in plan)
    with atomic_file(out, needed) as partial:
        writer = _writer(partial, source, kind, numbers, vocabulary)
        try:
            zeros, weights = _write(writer, plan, kind, numbers, progress or SilentProgress())
        except OSError as error:
            if error.errno is None:  # numpy's, of a disk that is full
                raise OSError(errno.ENOSPC, str(error)) from error
            raise
        finally:
            writer.close()
        size = partial.stat().st_size
    biases: dict[str, int] = {}
    for tensor in plan:
        if tensor.name.endswith(".bias"):
            part = tensor.name.split(".")[-2]
            biases[part] = biases.get(part, 0) + 1
    count = len(plan) + (numbers.rope_factors is not None)
    return GgufReport(out, kind, count, biases, zeros, weights, size, vocabulary.about, vocabulary.notes)


def _refuse_other_kinds(source: Path) -> None:
    if is_packed(source):
        raise ValueError(f"{source} is a packed model; export the checkpoint that it was packed from")
    if is_adapter(source):
        raise ValueError(
            f"{source} is an adapter directory; fold it first: restorelcc fold --pruned ITS_MODEL --compensation "
            f"{source / 'adapter_model.safetensors'} --out RESTORED, and export RESTORED"
        )
    if not (source / "config.json").is_file():
        raise ValueError(f"{source} has no config.json; pass the directory of a stock Hugging Face checkpoint")


def _adds_nothing(tensor: FileTensor) -> bool:
    """A bias of zeros, such as a fold of o_proj leaves at q, k and v: llama.cpp needs none, and adds none then."""
    return tensor.name.endswith(".bias") and not bool(stored_tensor(tensor.stored.file, tensor.source).any())


def _kind_of(plan: list[FileTensor]) -> str:
    stored = {tensor.stored.dtype for tensor in plan if tensor.is_matrix}
    names = [name for name, (dtype, _, _) in _TYPES.items() if stored == {dtype}]
    return names[0] if names else "f32"


def _vocabulary(source: Path, tokenizer: str | None, config: Any) -> Vocabulary:
    own = ModelSource(str(source), source, None, None, "")
    if tokenizer is None:
        return stock_vocabulary(own, config)
    place = Path(tokenizer).expanduser()
    if (place / "tokenizer.json").is_file():
        return stock_vocabulary(ModelSource(tokenizer, place, None, None, ""), config)
    given = resolve_model(tokenizer)
    if given.path is None:
        raise ValueError(f"--tokenizer {tokenizer} is no local file or directory; pass a GGUF file or a directory")
    if given.gguf_file is None:
        return stock_vocabulary(given, config)
    return carried_vocabulary(given, int(config.vocab_size), _own_tokens(own))


def _own_tokens(own: ModelSource) -> Mapping[str, int] | None:
    """Token -> id of the checkpoint's tokenizer; None where it has none."""
    assert own.path is not None
    if not any((own.path / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        return None
    return {str(token): int(number) for token, number in load_tokenizer(own).get_vocab().items()}


def _bytes(tensor: FileTensor, kind: str) -> int:
    item = _TYPES[kind][0].itemsize if tensor.is_matrix else 4
    return int(np.prod(tensor.stored.shape, dtype=np.int64)) * item


def _writer(partial: Path, source: Path, kind: str, numbers: LlamaNumbers, vocabulary: Vocabulary) -> Any:
    """A writer with all fields, before any tensor."""
    import gguf

    package: Any = gguf
    writer = package.GGUFWriter(partial, "llama")
    writer.add_type("model")
    writer.add_name(source.resolve().name)
    writer.add_file_type(_TYPES[kind][1])
    writer.add_quantization_version(package.GGML_QUANT_VERSION)
    writer.add_context_length(numbers.context)
    writer.add_embedding_length(numbers.hidden)
    writer.add_block_count(numbers.layers)
    writer.add_feed_forward_length(numbers.channels)
    writer.add_head_count(numbers.heads)
    writer.add_head_count_kv(numbers.key_value_heads)
    writer.add_key_length(numbers.head_dim)
    writer.add_value_length(numbers.head_dim)
    writer.add_rope_dimension_count(numbers.head_dim)
    writer.add_rope_freq_base(numbers.rope_base)
    if numbers.rope_scale != 1.0:
        writer.add_rope_scaling_type(package.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(numbers.rope_scale)
    writer.add_layer_norm_rms_eps(numbers.norm_eps)
    writer.add_vocab_size(numbers.vocabulary)
    vocabulary.write(writer)
    return writer


def _write(
    writer: Any, plan: list[FileTensor], kind: str, numbers: LlamaNumbers, progress: Progress
) -> tuple[int, int]:
    """The header, the fields and the tensors, one at a time; (zeros, weights) of the layers' matrices."""
    import gguf

    package: Any = gguf
    matrix = package.GGMLQuantizationType(_TYPES[kind][2])
    vector = package.GGMLQuantizationType.F32
    factors = numbers.rope_factors
    if factors is not None:
        writer.add_tensor_info(_ROPE_FACTORS, list(factors.shape), np.dtype(np.float32), factors.numel() * 4, vector)
    for tensor in plan:
        raw = matrix if tensor.is_matrix else vector
        writer.add_tensor_info(
            tensor.name, list(tensor.stored.shape), np.dtype(np.float32), _bytes(tensor, kind), raw_dtype=raw
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    if factors is not None:
        writer.write_tensor_data(factors.numpy())
    zeros = weights = 0
    with progress.task("export", len(plan)) as advance:
        for tensor in plan:
            value = stored_tensor(tensor.stored.file, tensor.source)
            if tensor.is_matrix and ".layers." in tensor.source:
                zeros += int((value == 0).sum())
                weights += value.numel()
            writer.write_tensor_data(_as_array(value, tensor, kind))
            advance(1)
    return zeros, weights


def _as_array(value: Tensor, tensor: FileTensor, kind: str) -> Any:
    """The bytes of a tensor in the file: rows in their order, in its type (bfloat16 as the bits of int16)."""
    dtype = _TYPES[kind][0] if tensor.is_matrix else torch.float32
    bad = value.numel() - int(torch.isfinite(value).sum())
    if bad:
        raise ValueError(f"{tensor.source} holds {bad} NaN or infinite values; such a model cannot be exported")
    rounded = value.to(dtype)
    if tensor.is_matrix and ".layers." in tensor.source:  # what survived pruning stays different from 0
        rounded = rounded_survivors(value.float(), value != 0, dtype).to(dtype)
    large = value.numel() - int(torch.isfinite(rounded).sum())
    if large:
        raise ValueError(
            f"{tensor.source} holds {large} values above {torch.finfo(dtype).max:.5g}, the largest of {kind}; "
            "export it as bf16 or f32"
        )
    if tensor.rope_heads:
        rounded = rope_pairs(rounded, tensor.rope_heads)
    rounded = rounded.contiguous()
    return (rounded.view(torch.int16) if dtype == torch.bfloat16 else rounded).numpy()
