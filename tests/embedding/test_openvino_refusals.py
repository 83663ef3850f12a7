"""What examples/openvino refuses: one sentence, no crash, and nothing half written."""

from __future__ import annotations

import json
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from llamas import Packed
from openvino_host import Host
from test_openvino_example import product_case

Tiny = Callable[[str, str], Packed]
IDS = [1, 5, 9]


def refused_conversion(host: Host, packed: Path, out: Path, *words: object, says: str) -> None:
    there = sorted(out.parent.iterdir()) if out.parent.is_dir() else []
    done = host.convert(packed, out, *words)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert done.stderr.startswith("convert.py: ")
    assert says in done.stderr
    assert (sorted(out.parent.iterdir()) if out.parent.is_dir() else []) == there


def test_conversions(host: Host, tiny: Tiny, tmp_path: Path) -> None:
    model, out = tiny("biased", "fp32"), tmp_path / "out"
    refused_conversion(host, tmp_path / "nothing", out, says="nothing")
    refused_conversion(host, model.checkpoint, out, says="restorelcc.json")
    refused_conversion(host, model.packed, out, "--compensation", "lore", says='no compensation "lore"; it has law')
    refused_conversion(host, model.packed, out, "--extension", tmp_path / "no.so", says="no.so is no file")
    (tmp_path / "text.so").write_text("text")
    refused_conversion(host, model.packed, out, "--extension", tmp_path / "text.so", says="no library of restorelcc")
    out.mkdir()
    refused_conversion(host, model.packed, out, says="exists; give a new directory")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"hidden_act": "gelu"}, "gelu"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}}, "yarn"),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4}}, "no factor"),
        ({"num_hidden_layers": 4}, "packed.safetensors"),
    ],
)
def test_configurations(change: dict[str, Any], says: str, host: Host, tiny: Tiny, tmp_path: Path) -> None:
    packed = shutil.copytree(tiny("biased", "fp32").packed, tmp_path / "packed")
    config = json.loads((packed / "config.json").read_text())
    (packed / "config.json").write_text(json.dumps({**config, **change}))
    refused_conversion(host, packed, tmp_path / "out", says=says)


def test_another_family(host: Host, tmp_path: Path) -> None:
    from restoration_models import random_pair

    from restorelcc.pack_checkpoint import pack_checkpoint

    pack_checkpoint(str(random_pair("qwen3", tmp_path / "pair")[1]), tmp_path / "packed", values="fp32")
    refused_conversion(host, tmp_path / "packed", tmp_path / "out", says="qwen3")


def test_a_damaged_packed_weight_is_not_converted(host: Host, tiny: Tiny, tmp_path: Path) -> None:
    packed = shutil.copytree(tiny("biased", "fp32").packed, tmp_path / "packed")
    file = packed / "packed.safetensors"
    raw = bytearray(file.read_bytes())
    begin = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:begin])
    first = header["model.layers.1.mlp.down_proj.row_offsets"]["data_offsets"][0] + begin
    raw[first + 8 : first + 16] = (2**40).to_bytes(8, "little")
    file.write_bytes(raw)
    refused_conversion(host, packed, tmp_path / "out", says="model.layers.1.mlp.down_proj")


# Lies in a converted model: (input of the operation, bytes that are written over its own, the sentence).
DAMAGES = {
    "mask beyond the last column": (1, 16, b"\xff" * 8, "column"),
    "more survivors than values": (1, 0, b"\xff" * 16, "row_offsets"),
    "offset far away": (3, 8, (2**60).to_bytes(8, "little"), "row_offsets"),
    "negative offset": (3, 0, b"\xff" * 8, "row_offsets"),
}
MODULE = "model.layers.1.self_attn.o_proj"


def layer_of(model: ET.Element, name: str) -> ET.Element:
    return next(one for one in model.iter("layer") if one.get("name") == name)


def constant_of(model: ET.Element, layer: ET.Element, port: int) -> ET.Element:
    """The <data> of the constant that comes in at that port."""
    edge = next(
        one for one in model.iter("edge") if (one.get("to-layer"), one.get("to-port")) == (layer.get("id"), str(port))
    )
    source = next(one for one in model.iter("layer") if one.get("id") == edge.get("from-layer"))
    data = source.find("data")
    assert data is not None
    return data


@pytest.fixture(scope="module")
def converted(host: Host, tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return host.converted(tiny("biased", "fp32").packed, tmp_path_factory.mktemp("converted") / "ov")


def refused_run(host: Host, model: Path, folder: Path, *says: str) -> None:
    """By Python when the model is read, and by the program in C++, without a crash."""
    done = host.ask(folder, "logits", model=str(model), ids=IDS, batches=[3])
    assert done.returncode == 1, (done.returncode, done.stderr)
    again = host.run(host.program, host.extension, model, "1,5,9", 2)
    assert (again.returncode, again.stdout) == (2, ""), again.stderr
    for text in (done.stderr, again.stderr):
        assert "RlccSparseLinear" in text
        for word in says:
            assert word in text


@pytest.mark.parametrize("which", DAMAGES)
def test_a_damaged_converted_weight(which: str, host: Host, converted: Path, tmp_path: Path) -> None:
    port, at, new, says = DAMAGES[which]
    model = shutil.copytree(converted, tmp_path / "ov")
    tree = ET.parse(model / "openvino_model.xml").getroot()
    data = constant_of(tree, layer_of(tree, MODULE), port)
    begin = int(data.get("offset", "")) + at
    raw = bytearray((model / "openvino_model.bin").read_bytes())
    raw[begin : begin + len(new)] = new
    (model / "openvino_model.bin").write_bytes(raw)
    # Constants of the same bytes are stored once: offsets may be an earlier layer's too.
    refused_run(host, model, tmp_path, ".self_attn.o_proj: ", says)


@pytest.mark.parametrize(
    ("attribute", "value", "says"),
    [
        ("rows", "1000000", "must have"),
        ("rows", "-1", "rows"),
        ("columns", "4611686018427387904", "columns"),
        ("columns", "70", "columns"),
        ("values", "int9", "fp32, bf16, fp16 or int8"),
        ("values", "int8", "multiple of 16"),
    ],
)
def test_attributes_that_lie(
    attribute: str, value: str, says: str, host: Host, converted: Path, tmp_path: Path
) -> None:
    model = shutil.copytree(converted, tmp_path / "ov")
    tree = ET.parse(model / "openvino_model.xml")
    data = layer_of(tree.getroot(), MODULE).find("data")
    assert data is not None
    assert data.get(attribute) != value
    data.set(attribute, value)
    tree.write(model / "openvino_model.xml")
    refused_run(host, model, tmp_path, MODULE, says)


def test_a_model_without_its_extension(host: Host, converted: Path) -> None:
    read = f"import openvino as ov; ov.Core().read_model({str(converted / 'openvino_model.xml')!r})"
    done = host.run(host.python, "-c", read)
    assert done.returncode == 1
    assert "RlccSparseLinear" in done.stderr


@pytest.mark.parametrize("which", ["constants", "inputs"])
@pytest.mark.parametrize("damage", ["mask", "offset", "short"])
def test_the_operation_alone(damage: str, which: str, host: Host, tmp_path: Path) -> None:
    """Constants are refused when the op is made, inputs when it runs."""
    import restorelcc

    packed = restorelcc.pack(torch.randn(70, 200) * (torch.rand(70, 200) < 0.5))
    case = product_case(packed, torch.randn(1, 3, 200), None, tmp_path / "case", **{"as": [which]})
    path = case["parts"][{"mask": 0, "offset": 2, "short": 1}[damage]]
    part = np.load(path).copy()
    if damage == "short":
        part = part[:-256]
    else:
        part[24:32] = 255
    np.save(path, part)
    refused_product(host, case, tmp_path)


def refused_product(host: Host, case: Any, folder: Path, says: str = "") -> None:
    done = host.ask(folder, "product", cases=[case])
    assert done.returncode == 1, (done.returncode, done.stderr)
    assert "RlccSparseLinear some.module: " in done.stderr
    assert says in done.stderr


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"columns": 300}, "mask has 2240 bytes, must have 2800"),
        ({"rows": 71}, "must have"),
        ({"values": "int8"}, "it has 4 inputs"),
        ({"values": ""}, "must be fp32"),
    ],
)
def test_attributes_of_the_operation_alone(change: dict[str, Any], says: str, host: Host, tmp_path: Path) -> None:
    import restorelcc

    packed = restorelcc.pack(torch.randn(70, 200) * (torch.rand(70, 200) < 0.5))
    case = product_case(packed, torch.randn(1, 3, 200), None, tmp_path / "case")
    refused_product(host, {**case, "attributes": {**case["attributes"], **change}}, tmp_path, says)
