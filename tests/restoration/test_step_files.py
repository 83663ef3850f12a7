"""Files that the steps leave, damaged in every way a stranger could: one sentence from Python, never another error."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from restoration_models import random_pair
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from restorelcc import load
from restorelcc.adapter import save_adapter
from restorelcc.compensation import Compensation
from restorelcc.components import Components, lost_components
from restorelcc.models import check_pair, load_model, save_checkpoint
from restorelcc.moments import Moments
from restorelcc.probes import HeadScores, head_scores
from restorelcc.text import TokenSet
from restorelcc.training import closed_form, train_compensation

LAYERS, HEADS, SIZE = 2, 4, 8


def moments(layers: int = LAYERS, heads: int = HEADS, size: int = SIZE) -> Moments:
    z = torch.randn(9, layers, heads, size, dtype=torch.float64)
    gram = torch.einsum("tlhd,tlhe->lhde", z, z)
    return Moments(torch.full((layers,), 9), z.sum(0), gram, {"positions": "all"})


def text(rows: int = 4, largest: int = 96) -> TokenSet:
    ids = torch.randint(3, largest, (rows, 12))
    return TokenSet(ids, torch.full((rows,), 12), torch.ones(rows, dtype=torch.long), "random")


def compensation() -> Compensation:
    names = [f"model.layers.{i}.self_attn.o_proj" for i in range(LAYERS)]
    heads = torch.ones(LAYERS, HEADS, dtype=torch.bool)
    return Compensation(torch.randn(LAYERS, HEADS * SIZE), heads, names)


KINDS: dict[str, tuple[Callable[[], Any], Callable[[Path], Any]]] = {
    "moments": (moments, Moments.load),
    "components": (lambda: lost_components(moments()), Components.load),
    "scores": (lambda: HeadScores("random", "none", torch.rand(LAYERS, HEADS).double()), HeadScores.load),
    "compensation": (compensation, Compensation.load),
    "text": (text, TokenSet.load),
}


def contents(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata())  # noqa: SIM118


def refused(path: Path, reader: Callable[[Path], Any], said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        reader(path)
    assert path.name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_file_is_read_again(kind: str, tmp_path: Path) -> None:
    make, reader = KINDS[kind]
    path = tmp_path / "a.safetensors"
    make().save(path)
    reader(path)


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_that_are_no_file(kind: str, tmp_path: Path) -> None:
    make, reader = KINDS[kind]
    path = tmp_path / "a.safetensors"
    make().save(path)
    whole = path.read_bytes()
    half, huge = whole[: len(whole) // 2], struct.pack("<Q", 1 << 62)
    for data in (b"", whole[:8], half, whole[:-1], whole + b"x", huge, b"x" * 99):
        path.write_bytes(data)
        refused(path, reader, "truncated or not a safetensors file")
    path.unlink()
    refused(path, reader, "does not exist")
    path.mkdir()
    refused(path, reader, "is a directory")


@pytest.mark.parametrize("kind", KINDS)
def test_tensors_of_another_shape_type_or_value(kind: str, tmp_path: Path) -> None:
    make, reader = KINDS[kind]
    path = tmp_path / "a.safetensors"
    make().save(path)
    tensors, marks = contents(path)
    for key, value in tensors.items():
        wrong = {
            f"lacks {key}": None,
            f"holds {key} as torch.float16": value.half(),
            f"holds {key} as torch.complex64": value.to(torch.complex64),
            f"{key} of shape": value[None],
            f"{key} of shape .*0": value[:0],
        }
        if value.is_floating_point():
            broken = value.clone()
            broken.view(-1)[-1] = float("nan")
            wrong[f"1 NaN or infinite values in {key}"] = broken
            broken = value.clone()
            broken.view(-1)[0] = float("inf")
            wrong[f"1 NaN or infinite values in {key} "[:-1]] = broken
        for said, other in wrong.items():
            changed = {name: tensor for name, tensor in {**tensors, key: other}.items() if tensor is not None}
            save_file(changed, path, metadata=marks)
            refused(path, reader, said)


@pytest.mark.parametrize("kind", ["moments", "components", "compensation", "text"])
def test_tensors_that_do_not_fit_each_other(kind: str, tmp_path: Path) -> None:
    make, reader = KINDS[kind]
    path = tmp_path / "a.safetensors"
    make().save(path)
    tensors, marks = contents(path)
    for key, value in tensors.items():
        save_file({**tensors, key: value[:-1].contiguous()}, path, metadata=marks)
        refused(path, reader, "of shape")


@pytest.mark.parametrize(("kind", "mark"), [
    ("compensation", "sites"), ("scores", "probe"), ("scores", "unit"), ("components", "components"),
])  # fmt: skip
def test_marks_that_are_missing(kind: str, mark: str, tmp_path: Path) -> None:
    make, reader = KINDS[kind]
    path = tmp_path / "a.safetensors"
    make().save(path)
    tensors, marks = contents(path)
    save_file(tensors, path, metadata={key: value for key, value in marks.items() if key != mark})
    refused(path, reader, f"lacks {mark}")


@pytest.mark.parametrize("sites", ["5", "[1,{", '{"a": 1}', "[1, 2]", '["one"]'])
def test_projections_that_are_no_list_of_names(sites: str, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    compensation().save(path)
    tensors, marks = contents(path)
    save_file(tensors, path, metadata={**marks, "sites": sites})
    refused(path, Compensation.load, "projections")


def test_negative_numbers_where_there_are_none(tmp_path: Path) -> None:
    found, words = moments(), text()
    Moments(-found.count, found.total, found.gram, {}).save(tmp_path / "m.safetensors")
    refused(tmp_path / "m.safetensors", Moments.load, "negative count")
    words.save(tmp_path / "t.safetensors")
    tensors, marks = contents(tmp_path / "t.safetensors")
    save_file({**tensors, "ids": -tensors["ids"]}, tmp_path / "t.safetensors", metadata=marks)
    refused(tmp_path / "t.safetensors", TokenSet.load, "a token id is 0 or more")


@pytest.mark.parametrize("step", ["probe", "train", "closed form"])
@pytest.mark.parametrize(("lost", "words", "said"), [
    ((3, HEADS, SIZE), 96, "are of 3 layers with 4 heads of size 8, the model has 2 with 4 of size 8"),
    ((LAYERS, HEADS, 4), 96, "size 4"),
    ((LAYERS, HEADS, SIZE), 5000, "made with another tokenizer"),
])  # fmt: skip
def test_files_of_another_model(
    step: str, lost: tuple[int, int, int], words: int, said: str, tmp_path: Path
) -> None:
    _, pruned = random_pair("llama-gqa", tmp_path)
    model, found, rows = load_model(pruned).model, lost_components(moments(*lost)), text(largest=words)
    heads = torch.ones(found.unit.shape, dtype=torch.bool)
    calls: dict[str, Callable[[], object]] = {
        "probe": lambda: head_scores("attribution", model, rows, found),
        "train": lambda: train_compensation(model, rows, found, heads),
        "closed form": lambda: closed_form(model, rows, found, heads),
    }
    with pytest.raises(ValueError, match=said):
        calls[step]()


def test_an_adapter_of_another_model_is_not_written(tmp_path: Path) -> None:
    _, pruned = random_pair("llama-head-dim", tmp_path)
    with pytest.raises(ValueError, match=r"2 projections of 32 inputs and 4 heads, the model has 2 projections of 48"):
        save_adapter(pruned, compensation(), tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize(("changed", "said"), [
    ({"base_model": None}, "names no pruned model"), ({"base_model": 7}, "names no pruned model"),
    ({"base_model": "a\0b"}, "names no pruned model"), ({"base_model": "../../etc/no-such-model"}, "is gone"),
    ({"base_model": "x" * 200}, "is gone"), ({"sites": ["x"]}, "not of one adapter"), ({"inputs": "7"}, "not of one"),
    ({"format": []}, "this release reads"), ({"version": "0"}, "this release reads"),
])  # fmt: skip
def test_adapter_configurations(changed: dict[str, Any], said: str, tmp_path: Path) -> None:
    _, pruned = random_pair("llama-gqa", tmp_path)
    adapter = tmp_path / "adapter"
    save_adapter(pruned, compensation(), adapter)
    record = adapter / "adapter_config.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), **changed}))
    with pytest.raises(ValueError, match=said):
        load(adapter)


@pytest.mark.parametrize("content", ["", "[]", "7", "{", "[" * 100_000, "\0"])
def test_adapter_configurations_that_are_no_json(content: str, tmp_path: Path) -> None:
    _, pruned = random_pair("llama-gqa", tmp_path)
    adapter = tmp_path / "adapter"
    save_adapter(pruned, compensation(), adapter)
    (adapter / "adapter_config.json").write_text(content)
    with pytest.raises(ValueError, match=r"adapter_config\.json"):
        load(adapter)
    (adapter / "adapter_config.json").unlink()
    (adapter / "adapter_config.json").mkdir()
    with pytest.raises(ValueError, match=r"no config\.json"):
        load(adapter)


def test_shards_and_layers_that_do_not_fit(tmp_path: Path) -> None:
    """An index that names no files, files outside, or files that are gone; a configuration with too few layers."""
    dense, pruned = random_pair("llama-gqa", tmp_path)
    names = dict.fromkeys(contents(dense / "model.safetensors")[0], "model.safetensors")
    index = dense / "model.safetensors.index.json"
    for value, said in (
        ({}, "no weight_map"),
        ({"weight_map": 3}, "no weight_map"),
        ({"weight_map": dict.fromkeys(names, 5)}, "no weight_map"),
        ({"weight_map": dict.fromkeys(names, "../../x")}, "no plain file name"),
        ({"weight_map": dict.fromkeys(names, "gone.safetensors")}, "gone.safetensors does not exist"),
    ):  # fmt: skip
        index.write_text(json.dumps(value))
        with pytest.raises(ValueError, match=said):
            check_pair(dense, pruned)
    index.unlink()
    check_pair(dense, pruned)
    config = dense / "config.json"
    config.write_text(config.read_text().replace('"num_hidden_layers": 2', '"num_hidden_layers": 1'))
    with pytest.raises(ValueError, match="asks for 1 layers"):
        load_model(dense)


def test_types_of_a_pair(tmp_path: Path) -> None:
    dense, pruned = random_pair("llama-gqa", tmp_path)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        loaded = load_model(pruned, dtype=dtype)
        save_checkpoint(loaded.model, loaded.tokenizer, tmp_path / str(dtype))
    check_pair(dense, tmp_path / "torch.bfloat16")
    check_pair(dense, tmp_path / "torch.float16")
    with pytest.raises(ValueError, match=r"as torch\.float64; save it as torch\.float32, torch\.bfloat16 or"):
        check_pair(dense, tmp_path / "torch.float64")
    with pytest.raises(ValueError, match="nothing to restore"):
        check_pair(pruned, pruned)
