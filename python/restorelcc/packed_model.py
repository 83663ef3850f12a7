"""The packed model: pruned projections as bitmask weights, in memory and on disk.

    y = W_o z + P[g] + b, every other projection y = W x + b        W [N, K] stored as a bit a weight and its survivors

`pack_model` puts SparseLinear modules into a loaded stock model, `save_packed` writes it, `load_packed` builds it again
from the mapped file without ever holding a dense projection. Embeddings and norms stay dense, and so does the LM head
unless it is asked for as int8: then it is packed with all its weights, which costs a bit a weight more than dense int8.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .architectures import LEAST_SPARSITY, get_module, prunable_linears, replace_module
from .artifacts import Progress, SilentProgress, atomic_directory
from .compensated import CompensatedLinear, CompensationChoice
from .compensation import Compensation
from .joined import join, joinable, joint_name, joint_weight
from .layout import choose_layout
from .models import make_generation_config_valid, quiet_transformers
from .packed import PackedWeight, pack
from .packed_file import PackedFile, write_aligned
from .packed_record import DTYPES, FORMAT, PACKED_FILE, VERSION, Matrix, PackedRecord, check_name
from .pruning import rounded_survivors
from .sites import ATTENTION, FFN, chained, model_sites
from .skeleton import build_skeleton, check_configuration, check_matrix
from .sparse_linear import SparseLinear
from .wording import one_line

__all__ = ["LM_HEADS", "load_packed", "pack_model", "save_packed"]

LM_HEADS = ("dense", "int8")

_VECTORS = {ATTENTION: "compensation", FFN: "ffn_compensation"}  # what their names begin with in the file
_REQUIRED = ("mask", "values", "row_offsets", "shape")
_pack: Callable[..., PackedWeight] = pack


def pack_model(
    model: Any,
    *,
    values: str = "bf16",
    lm_head: str = "dense",
    compensations: Mapping[str, Compensation] | None = None,
    default: str | None = None,
    progress: Progress | None = None,
) -> Any:
    """Replaces the pruned projections of a loaded stock model by SparseLinear modules, in place; returns it.

    Args:
        values: bf16, fp32, fp16: the survivors' type and that of the whole model; int8: survivors in int8 with scales,
            the rest of the model in bf16.
        lm_head: dense, or int8: rounded like int8 values (an embedding tied to it stays as it is).
        compensations: name -> c of the same pruned model, of heads, FFNs or both. The projections that add them are
            packed whatever their zeros.
        default: the name that applies when `compensations(...)` chooses none.

    A projection with so few zeros that it is faster dense stays dense (`model.packed_record.dense` lists them; see
    `layout.choose_layout`).

    Raises:
        ValueError: a model that is not pruned, a compensation of another model, weights that the values cannot hold.
    """
    given = {check_name(name): compensation for name, compensation in (compensations or {}).items()}
    if values not in DTYPES:
        raise ValueError(f"values is {values!r}; it must be one of {', '.join(DTYPES)}")
    if lm_head not in LM_HEADS:
        raise ValueError(f"lm_head is {lm_head!r}; it must be one of {', '.join(LM_HEADS)}")
    linears = prunable_linears(model)
    vectors = _site_vectors(model, given)
    choice = CompensationChoice(list(given), default)
    matrices = [_matrix(name, linear) for name, linear in linears]
    dtype = DTYPES[values]
    stored = torch.int8 if values == "int8" else dtype
    pays = {m.name for m in matrices if choose_layout(m.rows, m.columns, m.nonzero, stored).kind == "bitmask"}
    if not any(matrix.sparsity >= LEAST_SPARSITY for matrix in matrices if matrix.name in pays):
        most = max((matrix.sparsity for matrix in matrices), default=0.0)
        raise ValueError(
            f"none of the {len(matrices)} matrices has zeros enough to be faster packed (the most is {most:.1%}); "
            "packing pays for a pruned model, prune it first"
        )
    packed, dense = [], []
    with (progress or SilentProgress()).task("pack", len(matrices)) as advance:
        for matrix, (name, linear) in zip(matrices, linears, strict=True):
            if name in pays or name in vectors:
                weight = _pack_weight(linear.weight.detach(), values, name)
                bias = None if linear.bias is None else _narrowed(linear.bias.detach(), dtype, f"{name}.bias")
                replace_module(model, name, _projection(weight, bias, vectors.get(name), choice))
                packed.append(matrix)
            else:
                dense.append(matrix)
            advance(1)
    joined = _join_siblings(model, [matrix.name for matrix in packed])
    head = None if lm_head == "dense" else _pack_head(model, dtype)
    _convert_rest(model, dtype)
    record = PackedRecord(values, tuple(packed), tuple(dense), tuple(given), default, head, joined)
    return _finish(model, record)


def _matrix(name: str, linear: nn.Linear) -> Matrix:
    return Matrix(name, linear.out_features, linear.in_features, int((linear.weight != 0).sum()))


def _head_of(model: Any) -> tuple[str, nn.Linear]:
    """(name, module) of the stock LM head. ValueError where it is no nn.Linear."""
    head = model.get_output_embeddings()
    name = next((name for name, module in model.named_modules() if module is head), "")
    if not isinstance(head, nn.Linear):
        raise ValueError(f"the LM head of {type(model).__name__} is no nn.Linear; leave it dense")
    return name, head


def _pack_head(model: Any, dtype: torch.dtype) -> Matrix:
    name, linear = _head_of(model)
    matrix = _matrix(name, linear)
    bias = None if linear.bias is None else _narrowed(linear.bias.detach(), dtype, f"{name}.bias")
    weight = _pack(linear.weight.detach(), values="int8")
    replace_module(model, name, SparseLinear(weight, bias).requires_grad_(False))
    return matrix


def _pack_weight(weight: Tensor, values: str, name: str) -> PackedWeight:
    if values == "int8":
        return _pack(weight, values="int8")
    dtype = DTYPES[values]
    _narrowed(weight, dtype, name)
    return _pack(rounded_survivors(weight.float(), weight != 0, dtype).to(dtype))


def _narrowed(values: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """`values` in dtype; ValueError where one becomes infinite."""
    narrow = values.to(dtype)
    lost = int(torch.isfinite(values).sum()) - int(torch.isfinite(narrow).sum())
    if lost:
        short = next(key for key, known in DTYPES.items() if known == dtype)
        raise ValueError(
            f"{name} has {lost} weights that {short} cannot hold (the largest is "
            f"{float(values[torch.isfinite(values)].abs().max()):.3g}); pack with values of a wider range"
        )
    return narrow


def _site_vectors(model: Any, compensations: Mapping[str, Compensation]) -> dict[str, tuple[str, Tensor]]:
    """Projection -> (place, c [G, width]) of the given compensations, checked against the model; empty without any.

    A compensation without vectors at a place where another has some has zeros there.
    """
    found: dict[str, tuple[str, Tensor]] = {}
    places = {place for compensation in compensations.values() for place in compensation.places}
    for place in sorted(places):
        sites = model_sites(model, place)
        names, width = [site.name for site in sites], sites[0].width
        stacked = []
        for name, compensation in compensations.items():
            part = next((part for part in compensation.parts if part.place == place), None)
            vectors = torch.zeros(len(names), width) if part is None else part.vectors.float()
            if part is not None and (part.sites != names or list(vectors.shape) != [len(names), width]):
                raise ValueError(
                    f"the compensation {name} has vectors {list(vectors.shape)} for {len(part.sites)} projections, the "
                    f"model has {len(names)} of {width} {'inputs' if place == ATTENTION else 'outputs'}; use the "
                    "pruned model it was made from"
                )
            if not bool(torch.isfinite(vectors).all()):
                raise ValueError(f"the compensation {name} has NaN or infinite entries; make it again")
            stacked.append(vectors)
        rows = torch.stack(stacked, dim=1)
        found |= {name: (place, vectors) for name, vectors in zip(names, rows, strict=True)}
    return found


def _projection(
    packed: PackedWeight, bias: Tensor | None, vectors: tuple[str, Tensor] | None, choice: CompensationChoice
) -> SparseLinear:
    if vectors is None:
        return SparseLinear(packed, bias).requires_grad_(False)
    place, rows = vectors
    return CompensatedLinear(packed, bias, rows, choice, place).requires_grad_(False)


def _join_siblings(model: Any, packed: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Puts the weights of q, k and v, and of gate and up, into one each; returns the names that were joined."""
    joined = []
    for family in joinable(packed):
        members: list[Any] = [get_module(model, name) for name in family]
        if any(isinstance(member, CompensatedLinear) for member in members):
            continue
        if len({(member.in_features, member.bias is None) for member in members}) == 1:
            joint = joint_weight(members)
            _place_joined(model, family, joint, [member.bias for member in members])
            joined.append(family)
    return tuple(joined)


def _place_joined(model: Any, family: Sequence[str], joint: PackedWeight, biases: Sequence[Tensor | None]) -> None:
    stock: list[Any] = [get_module(model, name) for name in family]
    sizes = [linear.out_features for linear in stock]
    for name, member in zip(family, join(joint, sizes, biases), strict=True):
        replace_module(model, name, member)


def _convert_rest(model: nn.Module, dtype: torch.dtype) -> None:
    """Every parameter outside of the packed projections in dtype; buffers stay what the stock class made them."""
    converted: dict[int, nn.Parameter] = {}
    for place, module in model.named_modules():
        if isinstance(module, SparseLinear):
            continue
        for leaf, parameter in module._parameters.items():
            if parameter is not None and parameter.is_floating_point() and parameter.dtype != dtype:
                if id(parameter) not in converted:  # tied ones stay tied
                    converted[id(parameter)] = nn.Parameter(
                        _narrowed(parameter.detach(), dtype, f"{place}.{leaf}"), requires_grad=False
                    )  # fmt: skip
                module._parameters[leaf] = converted[id(parameter)]


def _finish(model: Any, record: PackedRecord) -> Any:
    model.config.dtype = record.dtype
    model.packed_record = record
    # The stock method would write a checkpoint that stock loaders take, with the projections made up at random.
    model.save_pretrained = partial(_save_pretrained, model)
    return model.eval().requires_grad_(False)


def _save_pretrained(model: Any, save_directory: str | Path) -> None:
    save_packed(model, None, Path(save_directory))


def save_packed(model: Any, tokenizer: Any, out: Path, *, overwrite: bool = False) -> None:
    """Writes a model that `pack_model` or `load_packed` made; whole or not at all. tokenizer: may be None.

    Raises:
        ValueError: a model that is not packed, or `out` is there already (see `atomic_directory`).
        OSError: no space left; nothing is left behind.
    """
    record = getattr(model, "packed_record", None)
    if not isinstance(record, PackedRecord):
        raise ValueError(f"this {type(model).__name__} is not packed; call pack_model first")
    tensors = _tensors(model, record)
    needed = sum(tensor.nbytes for tensor in tensors.values())
    with atomic_directory(out, overwrite=overwrite, needed=needed) as partial_directory, quiet_transformers():
        record.write(partial_directory)
        write_aligned(partial_directory / PACKED_FILE, tensors, {"format": FORMAT, "version": str(VERSION)})
        model.config.save_pretrained(partial_directory)
        if getattr(model, "generation_config", None) is not None:
            make_generation_config_valid(model)
            model.generation_config.save_pretrained(partial_directory)
        if tokenizer is not None:
            tokenizer.save_pretrained(partial_directory)


def _tensors(model: Any, record: PackedRecord) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    own: set[str] = set()  # of the packed projections, under names that are not stock
    compensated: dict[str, list[Tensor]] = {}
    together = {name for family in record.joined for name in family}
    for matrix in (*record.packed, *([] if record.head is None else [record.head])):
        module = get_module(model, matrix.name)
        if not isinstance(module, SparseLinear):
            raise ValueError(f"{matrix.name} is no longer packed; call pack_model on the stock model again")
        if matrix.name not in together:
            tensors |= {f"{matrix.name}.{key}": tensor for key, tensor in module.packed.to_tensors().items()}
        own |= {f"{matrix.name}.{key}" for key in module.state_dict() if key != "bias"}
        if isinstance(module, CompensatedLinear):
            compensated.setdefault(module.place, []).append(module.vectors)
    for name in getattr(model, "zero_biases", ()):  # which the class has and nothing computes
        projection: Any = get_module(model, name)
        tensors[f"{name}.bias"] = torch.zeros(projection.out_features, dtype=record.dtype)
    for family in record.joined:
        members: list[Any] = [get_module(model, name) for name in family]
        joint = joint_weight(members)
        tensors |= {f"{joint_name(family)}.{key}": tensor for key, tensor in joint.to_tensors().items()}
    for place, vectors in compensated.items():
        for row, name in enumerate(record.compensations):
            tensors[f"{_VECTORS[place]}.{name}"] = torch.stack([of_layer[row] for of_layer in vectors])
    stock = {name: tensor for name, tensor in _stock_tensors(model).items() if name not in own}
    found = {get_module(model, matrix.name).values.dtype for matrix in record.packed}
    wanted = {record.value_dtype, record.dtype}
    if not found | {stock[name].dtype for name, _ in model.named_parameters() if name in stock} <= wanted:
        raise ValueError(
            f"the model was converted since it was packed as {record.values}; pack the checkpoint again with the "
            "--values that are wanted"
        )
    return tensors | stock


def _stock_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters, a tied one under its first name only, and persistent buffers."""
    every = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    found: dict[str, Tensor] = {name: parameter.detach() for name, parameter in model.named_parameters()}
    return found | {name: buffer for name, buffer in model.state_dict().items() if name not in every}


def load_packed(path: str | Path, *, huge_pages: bool = False) -> Any:
    """The packed model in the directory `path`: a stock class in evaluation mode whose projections are SparseLinear.

    The stock class is built without storage; weights are used where the file is mapped, so only what a forward pass
    touches becomes resident. The file must not be changed in place while the model is used. With huge_pages they are
    copied into memory of large pages instead (see `restorelcc.load`).

    Raises:
        ValueError: a file is missing, truncated, of another version or of another model; the sentence says which.
    """
    path = Path(path).expanduser()
    record = PackedRecord.read(path)
    check_configuration(path)
    with PackedFile(path / PACKED_FILE, huge_pages=huge_pages) as file:
        try:
            model = build_skeleton(path, record, file)
            _place_packed(model, record, file)
            if record.head is not None:
                _place_head(model, record.head, record, file)
            _place_stock(model, record, file)
        except ValueError as error:  # of a part that does not know where its input comes from
            if str(path) in str(error):
                raise
            raise ValueError(f"{path} cannot be loaded: {one_line(error, 400)}") from error
        file.finish()
    return _finish(model, record)


def _place_packed(model: Any, record: PackedRecord, file: PackedFile) -> None:
    linears = dict(prunable_linears(model))
    vectors, choice = _stored_vectors(model, record, file), CompensationChoice(record.compensations, record.default)
    matrices = {matrix.name: matrix for matrix in record.packed}
    for family in record.joined:
        members = [matrices.pop(name) for name in family]
        if not vectors.keys().isdisjoint(family):
            raise ValueError(f"{file.path.parent} has compensations for {family[0]}, which is joined; pack it again")
        biases = _used([_stored_bias(matrix, linears.get(matrix.name), record, file) for matrix in members])
        rows = sum(matrix.rows for matrix in members)
        whole = Matrix(joint_name(family), rows, members[0].columns, sum(matrix.nonzero for matrix in members))
        _place_joined(model, family, _stored_weight(whole, record.value_dtype, file), biases)
    for matrix in matrices.values():
        (bias,) = _used([_stored_bias(matrix, linears.get(matrix.name), record, file)])
        weight = _stored_weight(matrix, record.value_dtype, file)
        replace_module(model, matrix.name, _projection(weight, bias, vectors.pop(matrix.name, None), choice))
    model.zero_biases = [
        matrix.name for matrix in record.packed
        if linears[matrix.name].bias is not None and get_module(model, matrix.name).bias is None
    ]  # fmt: skip
    if vectors:
        raise ValueError(
            f"{file.path.parent} has compensations, but {min(vectors)} is not packed; pack the model again"
        )


def _used(biases: Sequence[Tensor | None]) -> list[Tensor | None]:
    """None in place of biases of zeros, which a switch that gives o_proj its bias gives q, k and v too.

    Of projections that are joined: of all or of none.
    """
    nothing = all(bias is None or not bool(bias.any()) for bias in biases)
    return [None for _ in biases] if nothing else list(biases)


def _place_head(model: Any, matrix: Matrix, record: PackedRecord, file: PackedFile) -> None:
    name, linear = _head_of(model)
    bias = _stored_bias(matrix, linear if name == matrix.name else None, record, file)
    weight = _stored_weight(matrix, torch.int8, file)
    replace_module(model, name, SparseLinear(weight, bias).requires_grad_(False))


def _stored_bias(matrix: Matrix, linear: nn.Linear | None, record: PackedRecord, file: PackedFile) -> Tensor | None:
    """The bias of the stock projection that `matrix` replaces, after a look at whether it can."""
    check_matrix(matrix, linear, file.path.parent)
    assert linear is not None
    return None if linear.bias is None else file.take_as(f"{matrix.name}.bias", linear.bias.shape, record.dtype)


def _stored_weight(matrix: Matrix, value_dtype: torch.dtype, file: PackedFile) -> PackedWeight:
    keys = [*_REQUIRED, "scales"] if value_dtype == torch.int8 else list(_REQUIRED)
    tensors = {key: file.take(f"{matrix.name}.{key}") for key in keys}
    if tensors["shape"].dtype != torch.int64 or tensors["shape"].tolist() != [matrix.rows, matrix.columns]:
        raise ValueError(
            f"{file.path} holds {matrix.name} as {one_line(tensors['shape'].tolist())}, the record says "
            f"[{matrix.rows}, {matrix.columns}]; its files are not of one model, pack it again"
        )
    if tensors["values"].dtype != value_dtype:
        raise ValueError(
            f"{file.path} holds the values of {matrix.name} as {tensors['values'].dtype}, the record says "
            f"{value_dtype}; its files are not of one model, pack it again"
        )
    if tensors["values"].data_ptr() % 16:  # a file of another writer
        tensors["values"] = tensors["values"].clone()
    try:
        return PackedWeight.from_tensors(tensors)
    except (ValueError, RuntimeError, TypeError, KeyError) as error:
        raise ValueError(f"{file.path}: {matrix.name} is damaged: {error}; copy or pack the model again") from error


def _stored_vectors(model: Any, record: PackedRecord, file: PackedFile) -> dict[str, tuple[str, Tensor]]:
    if not record.compensations:
        return {}
    held = {place: [f"{start}.{name}" in file for name in record.compensations] for place, start in _VECTORS.items()}
    # where one has vectors at a place all have; where a file has none at all, what it lacks are those of attention
    places = [place for place, there in held.items() if any(there)] or [ATTENTION]
    stored: dict[str, list[Compensation]] = {name: [] for name in record.compensations}
    for place in places:
        sites = model_sites(model, place)
        for name, parts in stored.items():
            vectors = file.take_as(f"{_VECTORS[place]}.{name}", (len(sites), sites[0].width), torch.float32)
            parts.append(Compensation(vectors, torch.empty(0), [site.name for site in sites], place=place))
    return _site_vectors(model, {name: chained(parts) for name, parts in stored.items()})


def _place_stock(model: Any, record: PackedRecord, file: PackedFile) -> None:
    """Gives every parameter and persistent buffer outside of the packed projections what the file holds."""
    own = {id(module) for module in model.modules() if isinstance(module, SparseLinear)}
    for prefix, module in list(model.named_modules()):
        if id(module) in own:
            continue
        dot = f"{prefix}." if prefix else ""
        for leaf, parameter in module._parameters.items():
            if parameter is not None and f"{dot}{leaf}" in file:
                dtype = record.dtype if parameter.is_floating_point() else parameter.dtype
                value = file.take_as(f"{dot}{leaf}", parameter.shape, dtype)
                module._parameters[leaf] = nn.Parameter(value, requires_grad=False)
        for leaf, buffer in module._buffers.items():
            if buffer is not None and leaf not in module._non_persistent_buffers_set:
                module._buffers[leaf] = file.take_as(f"{dot}{leaf}", buffer.shape, buffer.dtype)
    if any(parameter.is_meta for parameter in model.parameters()):
        model.tie_weights()
    empty = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if empty:
        raise ValueError(f"{file.path} lacks {len(empty)} tensors, such as {empty[0]}; copy or pack the model again")
