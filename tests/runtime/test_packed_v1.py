"""Version 1 of the packed format is frozen: what was written then is read now, and written the same way."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from write_packed_v1 import IDS

import restorelcc
from restorelcc.packed_model import save_packed

FOLDER = Path(__file__).with_name("packed_v1")


@pytest.mark.parametrize("values", ["bf16", "int8"])
def test_a_model_of_version_1_is_read(values: str) -> None:
    expected = load_file(FOLDER / f"{values}.safetensors")
    model = restorelcc.load(FOLDER / values)
    ids = torch.tensor(IDS)
    with torch.no_grad():
        found = {"logits": model(input_ids=ids).logits}
        with restorelcc.compensations(model, ["task"]):
            found["logits of task"] = model(input_ids=ids).logits
    for name, logits in found.items():
        wanted = expected.pop(name).float()
        # bf16 sums of another instruction set or thread count; a bit read wrongly changes the logits by their own size
        torch.testing.assert_close(logits.float(), wanted, rtol=0.0, atol=0.05 * float(wanted.abs().max()))
    assert float((found["logits of task"] - found["logits"]).abs().max()) > 0.5
    assert len(expected) == 2 * 7 + (values == "int8")
    for name, weight in expected.items():
        module = model.get_submodule(name.removesuffix(".weight"))
        assert torch.equal(module.packed.unpack(), weight)


@pytest.mark.parametrize("values", ["bf16", "int8"])
def test_the_same_bytes_are_written(values: str, tmp_path: Path) -> None:
    save_packed(restorelcc.load(FOLDER / values), None, tmp_path / "again")
    for name in ("packed.safetensors", "restorelcc.json"):
        assert (tmp_path / "again" / name).read_bytes() == (FOLDER / values / name).read_bytes()
    assert json.loads((FOLDER / values / "restorelcc.json").read_text())["version"] == 1
