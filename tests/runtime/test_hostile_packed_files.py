"""A packed directory that is damaged, mixed up or written to do harm: one sentence, never a read out of bounds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ffn_sites import some_vectors
from runtime_cases import skip_unless_packable, some_compensation
from safetensors.torch import load_file, save_file

import restorelcc
from restorelcc.models import load_model
from restorelcc.pack_checkpoint import pack_checkpoint
from restorelcc.packed_file import write_aligned
from restorelcc.packed_model import save_packed

MATRIX, JOINED = "model.layers.1.self_attn.o_proj", "model.layers.0.self_attn.q_proj+k_proj+v_proj"
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def good(pruned: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    some_compensation(pruned("llama-gqa"), 1).save(folder / "law.safetensors")
    pack_checkpoint(
        str(pruned("llama-gqa")), folder / "packed", values="fp32", compensations={"law": folder / "law.safetensors"}
    )
    return folder / "packed"


@pytest.fixture
def packed(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "packed"))


def change_record(directory: Path, **changes: Any) -> None:
    file = directory / "restorelcc.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def change_config(directory: Path, **changes: Any) -> None:
    file = directory / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def change_tensors(packed: Path, change: Callable[[Tensors], Any]) -> None:
    tensors = load_file(packed / "packed.safetensors")
    change(tensors)
    (packed / "packed.safetensors").unlink()
    save_file(tensors, packed / "packed.safetensors")


def put(name: str, value: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Tensors], Any]:
    def change(tensors: Tensors) -> None:
        tensors[name] = value(tensors[name].clone()).contiguous()

    return change


def matrix(**changes: Any) -> list[dict[str, Any]]:
    other = {"name": "model.layers.0.mlp.down_proj", "rows": 32, "columns": 48, "nonzero": 768}
    return [{"name": MATRIX, "rows": 32, "columns": 32, "nonzero": 512, **changes}, other]


RECORDS: list[tuple[dict[str, Any], str]] = [
    ({"version": 0}, "version 0; this release reads"),
    ({"format": "other"}, "format 'other'"),
    ({"values": "int3"}, "values is 'int3', not one of bf16"),
    ({"values": ["bf16"]}, "not one of bf16"),
    ({"values": "bf16"}, "the record says torch.bfloat16"),
    ({"packed": 3}, "packed is a int, not a list"),
    ({"packed": [3]}, "a matrix is a int"),
    ({"packed": matrix(rows=-1)}, "has the sizes"),
    ({"packed": matrix(rows="32")}, "has the sizes"),
    ({"packed": matrix(rows=33), "joined": []}, "as 33 x 32, its config.json has 32 x 32"),
    ({"packed": matrix(name="lm_head"), "joined": []}, "no such matrix"),
    ({"packed": matrix(name="model.layers.9.self_attn.o_proj"), "joined": []}, "no such matrix"),
    ({"packed": [*matrix(), *matrix()]}, "a matrix is listed twice"),
    ({"packed": matrix(), "joined": []}, "is not packed; pack the model again"),
    ({"packed": matrix(), "joined": [], "compensations": []}, "tensors, such as|lacks"),
    ({"compensations": "law"}, "compensations is a str, not a list"),
    ({"compensations": ["law", "tax"]}, "lacks the tensor compensation.tax"),
    ({"compensations": ["../law"]}, "cannot name a compensation"),
    ({"compensations": [1]}, "is not a string"),
    ({"compensations": []}, "tensors that the model has no place for, such as compensation.law"),
    ({"joined": 3}, "joined is a int, not a list"),
    ({"joined": [3]}, "joined has 3, not a list of names"),
    ({"joined": [[MATRIX]]}, "joined has .*, not a list of names"),
    ({"joined": [[MATRIX, 3]]}, "joined has .*, not a list of names"),
    ({"joined": [[MATRIX, "model.norm"]]}, "cannot be one: not packed, or of different columns"),
    ({"joined": [[MATRIX, "model.layers.0.mlp.down_proj"]]}, "cannot be one: not packed, or of different columns"),
    ({"joined": [[MATRIX, "model.layers.0.mlp.up_proj"]] * 2}, "a matrix is joined twice"),
    ({"joined": [[MATRIX, "model.layers.0.mlp.up_proj"]]}, "has compensations for .*o_proj, which is joined"),
    ({"joined": []}, "lacks the tensor model.layers.0.self_attn.q_proj.mask"),
    ({"default": "tax"}, "with the default 'tax'"),
]


@pytest.mark.parametrize(("changes", "words"), RECORDS, ids=[words for _, words in RECORDS])
def test_a_wrong_record_is_refused(changes: dict[str, Any], words: str, packed: Path) -> None:
    change_record(packed, **changes)
    with pytest.raises(ValueError, match=words):
        restorelcc.load(packed)


@pytest.mark.parametrize("key", ["values", "packed", "dense", "joined", "compensations", "default", "format"])
def test_a_record_without_an_entry_is_refused(key: str, packed: Path) -> None:
    file = packed / "restorelcc.json"
    record = json.loads(file.read_text())
    del record[key]
    file.write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"lacks|has format None"):
        restorelcc.load(packed)


HUGE = 1 << 40
TENSORS: list[tuple[Callable[[Tensors], Any], str]] = [
    (lambda t: t.pop(f"{MATRIX}.mask"), "lacks the tensor"),
    (lambda t: t.pop("model.norm.weight"), "lacks 1 tensors, such as model.norm.weight"),
    (lambda t: t.pop("model.embed_tokens.weight"), "lacks"),
    (lambda t: t.update(extra=torch.zeros(1)), "no place for, such as extra"),
    (put("model.norm.weight", lambda v: v[:8]), r"of shape \[8\], the model needs \[32\]"),
    (put("model.norm.weight", lambda v: v.bfloat16()), "as torch.bfloat16"),
    (put(f"{MATRIX}.shape", lambda v: v * 2), r"the record says \[32, 32\]"),
    (put(f"{MATRIX}.shape", lambda v: v[:1]), r"the record says \[32, 32\]"),
    (put(f"{MATRIX}.shape", lambda v: v.float()), "the record says"),
    (put(f"{MATRIX}.mask", lambda v: v[:8]), "is damaged: mask has shape"),
    (put(f"{MATRIX}.mask", lambda v: v.flatten()), "is damaged: mask has shape"),
    (put(f"{MATRIX}.mask", lambda v: v.double()), "is damaged"),
    (put(f"{MATRIX}.mask", lambda v: torch.full_like(v, -1)), "is damaged"),
    (put(f"{MATRIX}.values", lambda v: v[:16]), "is damaged"),
    (put(f"{MATRIX}.values", lambda v: v.double()), "the values of .* as torch.float64"),
    (put(f"{MATRIX}.values", lambda v: v[None]), "is damaged"),
    (put(f"{MATRIX}.row_offsets", lambda v: v + HUGE), "is damaged: .*row_offsets"),
    (put(f"{MATRIX}.row_offsets", lambda v: -v), "is damaged: .*row_offsets"),
    (put(f"{MATRIX}.row_offsets", lambda v: v + 1), "is damaged: .*row_offsets"),
    (put(f"{MATRIX}.row_offsets", lambda v: v.flip(0)), "is damaged: .*row_offsets"),
    (put(f"{MATRIX}.row_offsets", lambda v: v[:4]), "is damaged: .*row_offsets"),
    (put(f"{JOINED}.shape", lambda v: v - 1), r"the record says \[64, 32\]"),
    (put(f"{JOINED}.row_offsets", lambda v: v.flip(0)), r"k_proj\+v_proj is damaged: .*row_offsets"),
    (put(f"{JOINED}.values", lambda v: v[:16]), r"k_proj\+v_proj is damaged"),
    (put("compensation.law", lambda v: v[:1]), r"holds compensation.law as torch.float32 \[1, 32\]"),
    (put("compensation.law", lambda v: v * float("nan")), "NaN or infinite"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "words"), TENSORS, ids=[f"{n}-{words}" for n, (_, words) in enumerate(TENSORS)])
def test_wrong_tensors_are_refused(change: Callable[[Tensors], Any], words: str, packed: Path) -> None:
    change_tensors(packed, change)
    with pytest.raises(ValueError, match=words):
        restorelcc.load(packed)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("name", ["packed.safetensors", "restorelcc.json", "config.json"])
def test_a_truncated_file_is_refused(name: str, share: float, packed: Path) -> None:
    data = (packed / name).read_bytes()
    (packed / name).write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ValueError, match=r"truncated|not JSON|cannot be loaded"):
        restorelcc.load(packed)


def test_a_missing_file_is_named(packed: Path) -> None:
    (packed / "packed.safetensors").unlink()
    with pytest.raises(ValueError, match=r"packed\.safetensors does not exist"):
        restorelcc.load(packed)
    (packed / "config.json").unlink()
    with pytest.raises(ValueError, match=r"cannot be loaded"):
        restorelcc.load(packed)


@pytest.mark.parametrize(
    "changes", [{"hidden_size": 64}, {"num_hidden_layers": 1}, {"num_hidden_layers": 3}, {"num_hidden_layers": 10**9},
                {"vocab_size": 10**15}, {"model_type": "opt"},
                {"num_key_value_heads": 4}, {"vocab_size": 97}, {"model_type": "no_such"}, {"attention_bias": True}],
    ids=str,
)  # fmt: skip
def test_the_configuration_of_another_model_is_refused(changes: dict[str, Any], packed: Path) -> None:
    change_config(packed, **changes)
    with pytest.raises(ValueError, match=r"pack it again|cannot be loaded|pack the model again"):
        restorelcc.load(packed)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop(f"{MATRIX}.scales"), "lacks the tensor"),
        (put(f"{MATRIX}.scales", lambda v: v[:1]), "is damaged"),
        (put(f"{MATRIX}.scales", lambda v: v.double()), "is damaged"),
    ],
    ids=["gone", "short", "double"],
)
def test_wrong_scales_are_refused(
    change: Callable[[Tensors], Any], words: str, pruned: Callable[[str], Path], tmp_path: Path
) -> None:
    skip_unless_packable("int8")
    pack_checkpoint(str(pruned("llama-gqa")), tmp_path / "packed", values="int8")
    change_tensors(tmp_path / "packed", change)
    with pytest.raises(ValueError, match=words):
        restorelcc.load(tmp_path / "packed")


def test_random_damage_is_refused_or_harmless(packed: Path) -> None:
    """Flip bytes anywhere in the file: loading refuses, or gives a model that runs."""
    noise = torch.Generator().manual_seed(3)
    original = (packed / "packed.safetensors").read_bytes()
    ids = torch.tensor([[1, 2, 3]])
    refused = 0
    for _ in range(40):
        data = bytearray(original)
        for place in torch.randint(len(data), (8,), generator=noise).tolist():
            data[place] ^= 0xFF
        (packed / "packed.safetensors").unlink()
        (packed / "packed.safetensors").write_bytes(data)
        try:
            model = restorelcc.load(packed)
        except ValueError:
            refused += 1
            continue
        with torch.no_grad():
            model(input_ids=ids)
    assert refused > 0


def test_a_file_of_another_writer_is_read(good: Path, packed: Path) -> None:
    change_tensors(packed, lambda tensors: None)  # written by safetensors itself, in its own order
    ids = torch.tensor([[1, 5, 9]])
    with torch.no_grad():
        assert torch.equal(restorelcc.load(packed)(input_ids=ids).logits, restorelcc.load(good)(input_ids=ids).logits)


def test_every_tensor_is_aligned_for_its_size(tmp_path: Path) -> None:
    tensors = {
        "a": torch.ones(3, dtype=torch.int64), "b": torch.ones(16), "c": torch.ones(5, dtype=torch.bfloat16),
        "d": torch.tensor(2.0), "e": torch.ones(0, 4), "f": torch.ones(4, 6).T, "g": torch.tensor([True]),
    }  # fmt: skip
    write_aligned(tmp_path / "x.safetensors", tensors, {"k": "v"})
    data = (tmp_path / "x.safetensors").read_bytes()
    size = int.from_bytes(data[:8], "little")
    assert (8 + size) % 64 == 0
    header = json.loads(data[8 : 8 + size])
    assert header["b"]["data_offsets"] == [0, 64]
    for name, tensor in load_file(tmp_path / "x.safetensors").items():
        assert torch.equal(tensor, tensors[name])
        assert header[name]["data_offsets"][0] % tensor.element_size() == 0
    with pytest.raises(ValueError, match="cannot hold"):
        write_aligned(tmp_path / "y.safetensors", {"z": torch.ones(1, dtype=torch.complex64)}, {})


def test_a_packed_model_is_no_checkpoint_to_prune(packed: Path) -> None:
    with pytest.raises(ValueError, match="is a packed model, which is for running"):
        load_model(packed)


@pytest.mark.parametrize(("change", "words"), [
    (lambda t: t.pop("ffn_compensation.law"), r"lacks the tensor ffn_compensation\.law"),
    (lambda t: t.pop("compensation.tax"), r"lacks the tensor compensation\.tax"),
    (lambda t: t.update({"ffn_compensation.x": torch.zeros(2, 32)}), r"no place for, such as ffn_compensation\.x"),
    (put("ffn_compensation.law", lambda v: v[:1]), r"ffn_compensation\.law as torch\.float32 \[1, 32\]"),
    (put("ffn_compensation.law", lambda v: v.half()), "as torch.float16"),
    (put("ffn_compensation.law", lambda v: v * float("inf")), "NaN or infinite"),
])  # fmt: skip
def test_wrong_vectors_of_ffns_are_refused(
    change: Callable[[Tensors], Any], words: str, pruned: Callable[[str], Path], tmp_path: Path
) -> None:
    source = pruned("llama-gqa")
    given = {"law": some_vectors(source, "both"), "tax": some_vectors(source, "attention")}
    model = restorelcc.pack_model(load_model(source).model, values="fp32", compensations=given)
    save_packed(model, None, tmp_path / "packed")
    restorelcc.load(tmp_path / "packed")
    change_tensors(tmp_path / "packed", change)
    with pytest.raises(ValueError, match=words):
        restorelcc.load(tmp_path / "packed")


def test_vectors_of_an_ffn_that_is_not_packed_are_refused(pruned: Callable[[str], Path], tmp_path: Path) -> None:
    source, place = pruned("llama-gqa"), tmp_path / "packed"
    given = {"law": some_vectors(source, "ffn")}
    save_packed(restorelcc.pack_model(load_model(source).model, values="fp32", compensations=given), None, place)
    record = json.loads((place / "restorelcc.json").read_text())
    change_record(place, packed=[entry for entry in record["packed"] if not entry["name"].endswith("1.mlp.down_proj")])
    with pytest.raises(ValueError, match=r"but model\.layers\.1\.mlp\.down_proj is not packed; pack the model again"):
        restorelcc.load(place)
    other = {"law": some_vectors(pruned("opt"), "ffn")}
    with pytest.raises(ValueError, match=r"the compensation law has vectors \[2, 32\] for 2 projections"):
        restorelcc.pack_model(load_model(source).model, values="fp32", compensations=other)
