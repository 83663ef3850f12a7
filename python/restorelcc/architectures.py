"""Where the decoder layers, attention outputs and prunable matrices of a stock Hugging Face model are.

    y[M, N] = concat_h(z_h)[M, H*D] @ W_o[N, H*D]^T        one `AttentionSite` per decoder layer

Facts are read from the stock modules (`in_features`, `config.num_attention_heads`); the only table here is that of
the names under which stock classes keep their layers and output projections. No model code stands here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from .artifacts import read_json
from .packed import DENSE_DTYPES
from .structure import Structure

__all__ = [
    "AttentionSite", "attention_sites", "check_pair", "decoder_layers", "ffn_outputs", "get_module", "layers_left_out",
    "prunable_linears", "prunable_weights", "record_layer_calls", "replace_module",
]  # fmt: skip

LAYERS = (
    "model.layers",  # llama, mistral, qwen2, qwen3, gemma, phi3, olmo, ...
    "model.decoder.layers",  # opt
    "gpt_neox.layers",
    "transformer.h",  # gpt2, falcon, bloom
    "model.language_model.layers",  # text part of a multimodal model
)
OUTPUT_PROJECTIONS = (
    "self_attn.o_proj",  # llama, mistral, qwen2, qwen3, gemma, ...
    "self_attn.out_proj",  # opt
    "self_attn.dense",  # phi
    "attention.dense",  # gpt_neox
    "self_attention.dense",  # falcon, bloom
    "attn.c_proj",  # gpt2: a Conv1D, refused below
)
FFN_OUTPUTS = (
    "mlp.down_proj",  # llama, mistral, qwen2, qwen3, gemma, phi3, olmo, ...
    "fc2",  # opt
    "mlp.fc2",  # phi
    "mlp.dense_4h_to_h",  # gpt_neox, falcon, bloom
    "mlp.c_proj",  # gpt2: a Conv1D, refused below; starcoder2
)
LEAST_SPARSITY = 0.01  # below this a "pruned" model is taken for a dense one


@dataclass(frozen=True)
class AttentionSite:
    """The output projection of one layer's attention: N = `outputs` rows, K = `inputs` = H*D columns."""

    layer: int
    name: str
    heads: int
    head_dim: int
    inputs: int
    outputs: int


def get_module(model: nn.Module, name: str) -> nn.Module:
    """The submodule `name` ("model.layers.3.self_attn.o_proj"). Raises ValueError when there is none."""
    try:
        return model.get_submodule(name)
    except AttributeError:
        raise ValueError(f"{type(model).__name__} has no module named {name}") from None


def replace_module(model: nn.Module, name: str, new: nn.Module) -> None:
    """Puts `new` in the place of the submodule `name`. Raises ValueError when there is none."""
    get_module(model, name)
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, new)


def decoder_layers(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """(name, list) of the decoder layers, such as ("model.layers", ModuleList).

    Raises:
        ValueError: the class keeps its layers under a name that is not in the table.
    """
    for name in LAYERS:
        try:
            found = model.get_submodule(name)
        except AttributeError:
            continue
        if isinstance(found, nn.ModuleList) and len(found) > 0:
            return name, found
    raise ValueError(
        f"no decoder layers found in {type(model).__name__}; looked for {', '.join(LAYERS)}; "
        "use a decoder-only model such as Llama, Mistral, Qwen, Gemma, OPT or GPT-NeoX"
    )


def attention_sites(model: nn.Module) -> list[AttentionSite]:
    """The attention output projections, one per decoder layer, in order.

    K is the projection's `in_features`, H is `config.num_attention_heads`, D = K / H; so a head size that is not
    hidden_size / H, and grouped-query attention, need no special case.

    Raises:
        ValueError: a layer without a known output projection; a Conv1D (GPT-2); K not divisible by H.
    """
    prefix, layers = decoder_layers(model)
    config: Any = model.config
    heads = int(config.get_text_config(decoder=True).num_attention_heads)
    sites = []
    for index, layer in enumerate(layers):
        local, projection = _output_projection(layer, f"{prefix}.{index}", type(model).__name__)
        inputs, outputs = int(projection.in_features), int(projection.out_features)
        if inputs % heads:
            raise ValueError(
                f"{prefix}.{index}.{local} has {inputs} inputs, not a multiple of the {heads} heads of the "
                "configuration; models with a different number of heads per layer are not supported"
            )
        sites.append(AttentionSite(index, f"{prefix}.{index}.{local}", heads, inputs // heads, inputs, outputs))
    return sites


def ffn_outputs(model: nn.Module) -> list[tuple[str, int]]:
    """(name, outputs E) of the last projection of each decoder layer's FFN, in order.

    Raises:
        ValueError: a layer without a known one (a mixture of experts has several); a Conv1D (GPT-2).
    """
    prefix, layers = decoder_layers(model)
    found = []
    for index, layer in enumerate(layers):
        name = f"{prefix}.{index}"
        local, projection = _projection(layer, name, type(model).__name__, FFN_OUTPUTS, "single FFN's last projection")
        found.append((f"{name}.{local}", int(projection.out_features)))
    return found


def _output_projection(layer: nn.Module, name: str, model: str) -> tuple[str, Any]:
    return _projection(layer, name, model, OUTPUT_PROJECTIONS, "attention output projection")


def _projection(layer: nn.Module, name: str, model: str, known: tuple[str, ...], what: str) -> tuple[str, Any]:
    """(name inside the layer, module) of the first of the `known` ones that is there."""
    for local in known:
        try:
            found = layer.get_submodule(local)
        except AttributeError:
            continue
        if isinstance(found, Conv1D):
            raise ValueError(
                f"{name}.{local} is a Conv1D, which stores its weight transposed; {model} is not supported, "
                "use a model whose projections are nn.Linear"
            )
        if hasattr(found, "in_features") and hasattr(found, "out_features"):  # nn.Linear or a stand-in for one
            return local, found
    raise ValueError(f"no {what} found in {name} of {model}; looked for {', '.join(known)}")


def prunable_linears(model: nn.Module) -> list[tuple[str, nn.Linear]]:
    """(name, Linear) of every nn.Linear inside the decoder layers, in order; never embeddings or the LM head.

    Raises:
        ValueError: a decoder layer holds a matrix outside of nn.Linear (Conv1D of GPT-2, fused experts), which
            would silently stay dense.
    """
    prefix, layers = decoder_layers(model)
    found = [(f"{prefix}.{name}", module) for name, module in layers.named_modules() if isinstance(module, nn.Linear)]
    known = {f"{name}.weight" for name, _ in found}
    for name, parameter in layers.named_parameters():
        if parameter.dim() > 1 and f"{prefix}.{name}" not in known:
            raise ValueError(
                f"{prefix}.{name} of shape {list(parameter.shape)} is not the weight of an nn.Linear; "
                f"{type(model).__name__} is not supported, use a model whose projections are nn.Linear"
            )
    return found


class _TakenApartError(Exception):
    """The stock loop took the first of what a layer returned: its layers return tuples."""


_in_tuples: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()  # whether a model's loop expects tuples of layers


class _CallRecorder(nn.Module):
    """Stands in for a decoder layer: notes what it is called with and hands the hidden state on."""

    def __init__(self, layer: nn.Module, first: _CallRecorder | None, tuples: bool) -> None:
        """first: what stands in for layer 0. tuples: hand the state on as the first of a tuple."""
        super().__init__()
        object.__setattr__(self, "_layer", layer)  # hidden from nn.Module: attributes are read through, no more
        object.__setattr__(self, "_first", first)
        self.tuples, self.shape = tuples, torch.Size()
        self.call: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(object.__getattribute__(self, "_layer"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        hidden: Tensor = args[0] if args else kwargs["hidden_states"]
        self.shape, first = hidden.shape, object.__getattribute__(self, "_first")
        if first is not None and self.shape != first.shape:
            raise _TakenApartError
        self.call = (args[1:], {key: value for key, value in kwargs.items() if key != "hidden_states"})
        return (hidden,) if self.tuples else hidden


class _Answering(_CallRecorder):
    """Stands in for the last layer, and answers with `output`, whatever it is called with."""

    output: Any = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return (self.output,) if self.tuples and not isinstance(self.output, tuple) else self.output


def _recorders(layers: Any, tuples: bool) -> list[_CallRecorder]:
    first = _CallRecorder(layers[0], None, tuples)
    return [first, *(_CallRecorder(layer, first, tuples) for layer in layers[1:])]


@contextmanager
def layers_left_out(model: Any) -> Iterator[Callable[[Any], None]]:
    """Inside, a forward of `model` computes no layer; the last one gives what the yielded function was given."""
    prefix, layers = decoder_layers(model)
    if model not in _in_tuples:
        record_layer_calls(model, torch.zeros(1, 2, dtype=torch.long), torch.ones(1, 2, dtype=torch.long))
    tuples = _in_tuples[model]
    last = _Answering(layers[-1], None, tuples)
    replace_module(model, prefix, nn.ModuleList([*_recorders(layers, tuples)[:-1], last]))
    try:
        yield lambda output: setattr(last, "output", output)
    finally:
        replace_module(model, prefix, layers)


@torch.no_grad()
def record_layer_calls(model: Any, ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, list[Any]]:
    """(hidden state [B, T, E] that enters layer 0, per layer the (args, kwargs) its stock model passes).

    A stock forward of the base model, with the layers replaced for its duration by recorders: so masks, positions and
    rotary tables are those of the stock class. `layer(hidden, *args, **kwargs)` then runs one layer.
    """
    try:
        found = _record(model, ids, attention_mask, _in_tuples.setdefault(model, False))
    except _TakenApartError:  # Falcon, Bloom
        _in_tuples[model] = True
        found = _record(model, ids, attention_mask, True)
    return found


def _record(model: Any, ids: Tensor, attention_mask: Tensor, tuples: bool) -> tuple[Tensor, list[Any]]:
    prefix, layers = decoder_layers(model)
    recorders = _recorders(layers, tuples)
    entered: list[Tensor] = []
    handle = recorders[0].register_forward_pre_hook(
        lambda _, args, kwargs: entered.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
    )
    replace_module(model, prefix, nn.ModuleList(recorders))
    try:
        model.base_model(input_ids=ids, attention_mask=attention_mask, use_cache=False)
    finally:
        handle.remove()
        replace_module(model, prefix, layers)
    return entered[0], [recorder.call for recorder in recorders]


def prunable_weights(source: Path | nn.Module) -> Iterator[tuple[str, Tensor]]:
    """(name, weight [N, K]) of the prunable matrices of a model, or of a checkpoint directory, read one at a time.

    Raises:
        ValueError: the directory is not a readable checkpoint.
    """
    if isinstance(source, nn.Module):
        for name, linear in prunable_linears(source):
            yield name, linear.weight.detach()
        return
    yield from _stored_weights(Path(source))


def _stored_weights(path: Path) -> Iterator[tuple[str, Tensor]]:
    from transformers import AutoConfig, AutoModelForCausalLM

    from .models import load_model, plain_errors

    with plain_errors(path), torch.device("meta"):
        config = AutoConfig.from_pretrained(path, local_files_only=True)
        stock: Any = AutoModelForCausalLM
        names = [name for name, _ in prunable_linears(stock.from_config(config))]
    files = tensor_files(path)
    if any(f"{name}.weight" not in files for name in names):  # stored under older names: the stock loader knows them
        yield from prunable_weights(load_model(path).model)
        return
    for name in names:
        yield name, stored_tensor(files[f"{name}.weight"], f"{name}.weight")


def stored_tensor(file: Path, name: str) -> Tensor:
    """The tensor `name` in a weight file. Raises ValueError when the file is missing or damaged, or lacks it."""
    if not file.is_file():
        raise ValueError(f"{file} does not exist, though the index names it; copy the checkpoint again")
    try:
        with safe_open(file, framework="pt") as tensors:
            value: Tensor = tensors.get_tensor(name)
            return value
    except SafetensorError as error:
        raise ValueError(f"{file} is truncated or not a safetensors file ({error}); copy it again") from error


def tensor_files(path: Path) -> dict[str, Path]:
    """Tensor name -> file, from the index of a sharded checkpoint or the header of a single file."""
    index = path / "model.safetensors.index.json"
    if index.is_file():
        names = read_json(index).get("weight_map")
        if not isinstance(names, dict) or not all(isinstance(file, str) for file in names.values()):
            raise ValueError(f"{index} has no weight_map of tensors to files; copy the checkpoint again")
        outside = [file for file in names.values() if Path(file).name != file or file in ("", "..")]
        if outside:
            raise ValueError(f"{index} names {outside[0]!r}, which is no plain file name; copy the checkpoint again")
        return {name: path / file for name, file in names.items()}
    single = path / "model.safetensors"
    if not single.is_file():
        return {}
    try:
        with safe_open(single, framework="pt") as tensors:
            return dict.fromkeys(tensors.keys(), single)
    except SafetensorError as error:
        raise ValueError(f"{single} is truncated or not a safetensors file ({error}); copy it again") from error


def check_pair(dense: Path | nn.Module, pruned: Path | nn.Module, structure: Structure | None = None) -> None:
    """Refuses two models that cannot be a dense model and its pruned copy.

    Args:
        dense, pruned: loaded models or checkpoint directories (directories are read one matrix at a time).
        structure: what the pruned one kept, where heads or channels were removed; it needs no zeros then.

    Raises:
        ValueError: another vocabulary size; other matrices or shapes; NaN or infinity in a parameter of either (named);
            a pruned model with fewer than 1% zeros in its prunable matrices, or with the weights of the dense one,
            or stored in another type than float32, bfloat16 or float16.
    """
    sizes = [_vocabulary(model) for model in (dense, pruned)]
    if sizes[0] != sizes[1]:
        raise ValueError(f"the dense model has {sizes[0]} tokens and the pruned one {sizes[1]}; prune a copy of it")
    zeros = total = changed = 0
    checked: set[str] = set()
    theirs = prunable_weights(pruned)
    for name, weight in prunable_weights(dense):
        if structure is not None:
            weight = structure.cut(name, weight)
        other, matrix = next(theirs, ("no matrix", weight))
        if other != name or matrix.shape != weight.shape:
            raise ValueError(
                f"the dense model has {name} {list(weight.shape)} where the pruned one has {other} "
                f"{list(matrix.shape)}; prune a copy of the same model"
            )
        if matrix.dtype not in DENSE_DTYPES:
            raise ValueError(
                f"the pruned model stores {name} as {matrix.dtype}; "
                "save it as torch.float32, torch.bfloat16 or torch.float16 first"
            )
        for role, values in (("dense", weight), ("pruned", matrix)):
            _refuse_not_finite(name, role, values)
        checked.add(f"{name}.weight")
        zeros += int((matrix == 0).sum())
        total += matrix.numel()
        changed += not torch.equal(weight.float(), matrix.float())
    extra = next(theirs, None)
    if extra is not None:
        raise ValueError(f"the pruned model has {extra[0]}, the dense one has not; prune a copy of the same model")
    for role, model in (("dense", dense), ("pruned", pruned)):
        for name, values in _parameters(model, checked):
            _refuse_not_finite(name, role, values)
    if structure is not None:
        return
    if zeros < LEAST_SPARSITY * total:
        raise ValueError(
            f"the pruned model has {zeros:,} zeros in {total:,} prunable weights ({zeros / max(total, 1):.2%}); "
            "it is not pruned, pass the pruned checkpoint or prune it first"
        )
    if not changed:
        raise ValueError(
            "the dense and the pruned model have the same prunable weights; there is nothing to restore, "
            "pass the model before pruning as the dense one"
        )


def _refuse_not_finite(name: str, role: str, values: Tensor) -> None:
    bad = values.numel() - int(torch.isfinite(values).sum())
    if bad:
        raise ValueError(f"{name} of the {role} model has {bad} NaN or infinite weights; it cannot be used")


def _parameters(model: Path | nn.Module, known: Collection[str]) -> Iterator[tuple[str, Tensor]]:
    """Embeddings, norms, biases, the LM head: all but `known`. Of a directory by name, since files hold buffers too, of
    which old ones mask with infinity."""
    if isinstance(model, nn.Module):
        yield from ((name, value.detach()) for name, value in model.named_parameters() if name not in known)
        return
    for name, file in tensor_files(Path(model)).items():
        if name not in known and name.endswith((".weight", ".bias")):
            value = stored_tensor(file, name)
            if value.is_floating_point():
                yield name, value


def _vocabulary(model: Path | nn.Module) -> int:
    if isinstance(model, nn.Module):
        config: Any = model.config
    else:
        from transformers import AutoConfig

        from .models import plain_errors

        with plain_errors(model):
            config = AutoConfig.from_pretrained(model, local_files_only=True)
    return int(config.get_text_config(decoder=True).vocab_size)
