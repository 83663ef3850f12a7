"""A packed model opened from C is the one that restorelcc.load opens, in every tensor, weight and setting."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from c_model import CModel
from ffn_sites import some_vectors
from runtime_cases import ALL_VALUES, skip_unless_packable
from safetensors.torch import load_file, save_file

import restorelcc
from restorelcc import _native
from restorelcc.compensated import CompensatedLinear
from restorelcc.models import load_model
from restorelcc.packed_model import pack_model, save_packed
from restorelcc.sparse_linear import SparseLinear

pytestmark = pytest.mark.skipif(not _native.available(), reason="the compiled library is not there")

PACKED_V1 = Path(__file__).with_name("packed_v1")

# checkpoint, values, LM head, places of the compensations
CASES = [(kind, values, "dense", None) for kind in ("llama-gqa", "llama-head-dim") for values in ALL_VALUES] + [
    ("llama-attention-bias", "bf16", "int8", None),
    ("llama-head-dim", "bf16", "int8", None),  # tied to the embedding, which stays as it is
    ("llama-mha-untied", "int8", "int8", "both"),
    ("llama-gqa", "bf16", "dense", "attention"),
    ("llama-gqa", "fp32", "dense", "ffn"),
    ("qwen3", "bf16", "dense", "both"),
    ("mistral", "fp16", "int8", None),
    ("opt", "fp32", "dense", "attention"),
    ("gpt_neox", "bf16", "dense", None),
]


def packed(source: Path, out: Path, values: str, head: str, sites: str | None) -> Path:
    names = () if sites is None else ("law", "tax")
    given = {name: some_vectors(source, str(sites), seed=seed) for seed, name in enumerate(names)}
    model = pack_model(
        load_model(source).model, values=values, lm_head=head, compensations=given, default="tax" if given else None
    )
    save_packed(model, None, out)
    return out


def check_same(directory: Path) -> None:
    model = restorelcc.load(directory)
    stored = load_file(directory / "packed.safetensors")
    with CModel(directory) as found:
        left = check_weights(model, found, stored)
        tensors = found.tensors()
        state = model.state_dict()
        for name, tensor in tensors.items():
            assert tensor.dtype == stored[name].dtype
            assert torch.equal(tensor, stored[name]), name
            assert torch.equal(tensor, state[name]), name
        assert left == set(tensors) | compensation_names(model, found)
        check_config(model, found.config(), directory)


def check_weights(model: Any, found: CModel, stored: dict[str, torch.Tensor]) -> set[str]:
    """Returns the names of what is stored beside the weights."""
    record = model.packed_record
    matrices = [*record.packed, *([] if record.head is None else [record.head])]
    weights, left = found.weights(), set(stored)
    assert list(weights) == [matrix.name for matrix in matrices]
    for name, weight in weights.items():
        module = model.get_submodule(name)
        assert weight["trusted"] == 1
        assert torch.equal(weight["dense"], module.packed.unpack()), name
        for part in ("mask", "values", "row_offsets", "scales"):
            key = f"{weight['joined']}.{part}"
            assert (weight[part] is None) == (key not in stored)
            if weight[part] is not None:
                assert weight[part].dtype == stored[key].dtype, key
                assert torch.equal(weight[part], stored[key]), key
            left.discard(key)
        left.discard(f"{weight['joined']}.shape")
    return left


def compensation_names(model: Any, found: CModel) -> set[str]:
    """The tensors that hold compensations, after a comparison of each with the loaded model's."""
    record, modules = model.packed_record, [m for m in model.modules() if isinstance(m, CompensatedLinear)]
    compensations = found.compensations()
    assert tuple(compensations) == record.compensations
    assert found.default_compensation() == record.default
    names = set()
    for row, (name, places) in enumerate(compensations.items()):
        assert set(places) == {module.place for module in modules}
        for place, vectors in places.items():
            expected = torch.stack([module.vectors[row] for module in modules if module.place == place])
            assert torch.equal(vectors, expected), (name, place)
            names.add(f"{'ffn_' if place == 'ffn' else ''}compensation.{name}")
    return names


def check_config(model: Any, config: dict[str, Any], directory: Path) -> None:
    stock, text = model.config, (directory / "config.json").read_bytes()
    assert config["json"].encode() == text
    assert config["json_bytes"] == len(text)
    assert config["model_type"] == stock.model_type
    assert config["architecture"] == (stock.architectures[0] if stock.architectures else None)
    assert config["values"] == model.packed_record.values
    kv_heads = getattr(stock, "num_key_value_heads", None) or stock.num_attention_heads
    sizes = {
        "hidden_size": stock.hidden_size, "layers": stock.num_hidden_layers, "heads": stock.num_attention_heads,
        "kv_heads": kv_heads, "vocabulary": stock.vocab_size, "max_positions": stock.max_position_embeddings,
        "head_dim": getattr(stock, "head_dim", None) or stock.hidden_size // stock.num_attention_heads,
        "intermediate_size": getattr(stock, "intermediate_size", None) or stock.ffn_dim,
    }  # fmt: skip
    assert {key: config[key] for key in sizes} == sizes
    assert config["norm_eps"] == (getattr(stock, "rms_norm_eps", None) or getattr(stock, "layer_norm_eps", 0.0))
    rope = getattr(stock, "rope_parameters", None) or {}
    assert (config["rope_theta"], config["rope_type"]) == (rope.get("rope_theta", 0.0), rope.get("rope_type"))
    named = ("hidden_act", "activation_function")
    assert config["activation"] == next(getattr(stock, key) for key in named if hasattr(stock, key))
    for key in ("attention_bias", "mlp_bias"):
        assert config[key] == int(bool(getattr(stock, key, False)))
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    tied = not isinstance(head, SparseLinear) and head.weight is embedding.weight
    assert config["tied_head"] == int(tied)
    assert config["bos_token"] == (-1 if stock.bos_token_id is None else stock.bos_token_id)
    ends = model.generation_config.eos_token_id
    ends = stock.eos_token_id if ends is None else ends
    assert config["eos_tokens"] == ([] if ends is None else [ends] if isinstance(ends, int) else ends)


@pytest.mark.parametrize(("kind", "values", "head", "sites"), CASES, ids=lambda value: str(value))
def test_c_opens_what_python_opens(
    kind: str, values: str, head: str, sites: str | None, pruned: Callable[[str], Path], tmp_path: Path
) -> None:
    skip_unless_packable(values)
    check_same(packed(pruned(kind), tmp_path / "packed", values, head, sites))


@pytest.mark.parametrize("values", ["bf16", "int8"])
def test_c_opens_version_1(values: str) -> None:
    check_same(PACKED_V1 / values)


def test_c_opens_a_file_of_another_writer(pruned: Callable[[str], Path], tmp_path: Path) -> None:
    """safetensors itself keeps no multiples of 16 bytes: values are copied."""
    directory = packed(pruned("llama-gqa"), tmp_path / "packed", "bf16", "int8", "both")
    tensors = load_file(directory / "packed.safetensors")
    (directory / "packed.safetensors").unlink()
    save_file(tensors, directory / "packed.safetensors")
    check_same(directory)


def test_several_end_tokens(pruned: Callable[[str], Path], tmp_path: Path) -> None:
    directory = packed(pruned("llama-gqa"), tmp_path / "packed", "bf16", "dense", None)
    file = directory / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "eos_token_id": [5, 2, 9]}))
    check_same(directory)
    file.unlink()
    with CModel(directory) as found:
        assert found.config()["eos_tokens"] == [2]


def test_c_refuses_in_the_words_of_the_library(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"restorelcc\.json does not exist"):
        CModel(tmp_path)
