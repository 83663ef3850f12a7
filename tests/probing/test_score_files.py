"""Score files: what goes in comes out, older ones are read, damaged ones are refused in one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from restorelcc.score_file import HeadScores

LAYERS, HEADS = 3, 5
RECORD: dict[str, Any] = {"probe": "adaptive", "seed": 3, "text": {"tokens": 7, "sha": "ab"}, "pairs": None, "s": 0.5}


def scores(**details: Tensor) -> HeadScores:
    return HeadScores("adaptive", "nats per token", torch.randn(LAYERS, HEADS).double(), details, dict(RECORD))


def contents(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata())  # noqa: SIM118


def refused(path: Path, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        HeadScores.load(path)
    assert path.name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_scores_details_and_record_come_back(tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    undecided = torch.rand(LAYERS, HEADS) > 0.5
    made = scores(half_width=torch.rand(LAYERS, HEADS).double(), undecided=undecided, work=torch.tensor(0.125))
    made.save(path, {"note": "mine"})
    found = HeadScores.load(path)
    assert (found.kind, found.unit, found.record) == (made.kind, made.unit, RECORD)
    assert torch.equal(found.scores, made.scores)
    assert set(found.details) == {"half_width", "undecided", "work"}
    assert all(value.dtype == torch.float64 for value in found.details.values())
    assert torch.equal(found.details["half_width"], made.details["half_width"])
    assert found.undecided is not None
    assert torch.equal(found.undecided, undecided)
    assert found.numbers == {"work": 0.125}
    assert contents(path)[1]["note"] == "mine"


def test_nothing_said_is_nothing_read(tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    HeadScores("random", "uniform", torch.rand(LAYERS, HEADS).double()).save(path)
    found = HeadScores.load(path)
    assert (found.details, found.record, found.undecided, found.numbers) == ({}, {}, None, {})


def test_a_file_from_before_there_were_records(tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    values = torch.rand(LAYERS, HEADS).double()
    marks = {"kind": "head_scores", "version": "0", "probe": "attribution", "unit": "nats per token"}
    save_file({"scores": values}, path, metadata=marks)
    found = HeadScores.load(path)
    assert torch.equal(found.scores, values)
    assert (found.kind, found.details, found.record) == ("attribution", {}, {})


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ("", "not JSON"), ("{", "not JSON"), ('{"a": NaN}', "NaN is no finite number"), ("[" * 99999, "not JSON"),
        ('{"a": 1e999}', "1e999 is no finite number"), ("[1]", "a JSON list, not an object"), ("7", "a JSON int"),
        ("null", "a JSON NoneType"), ('{"a": ' + "9" * 5000 + "}", "not JSON"),
        ('"' + "x" * (1 << 20) + '"', "1,048,578 characters"),
    ],
)  # fmt: skip
def test_records_that_are_none(record: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    scores().save(path)
    tensors, marks = contents(path)
    save_file(tensors, path, metadata={**marks, "record": record})
    refused(path, said)


@pytest.mark.parametrize(
    ("detail", "said"),
    [
        (torch.rand(LAYERS, HEADS), "holds extra as torch.float32"),
        (torch.zeros(LAYERS, HEADS, dtype=torch.int64), "holds extra as torch.int64"),
        (torch.rand(LAYERS, HEADS + 1).double(), r"extra of shape \[3, 6\]"),
        (torch.rand(HEADS, LAYERS).double(), r"extra of shape \[5, 3\]"),
        (torch.rand(HEADS).double(), r"extra of shape \[5\]"),
        (torch.rand(LAYERS, HEADS, 1).double(), r"extra of shape \[3, 5, 1\]"),
        (torch.full((LAYERS, HEADS), float("nan")).double(), "15 NaN or infinite values in extra"),
        (torch.tensor(float("inf")).double(), "1 NaN or infinite values in extra"),
    ],
)
def test_details_that_are_none(detail: Tensor, said: str, tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    scores().save(path)
    tensors, marks = contents(path)
    save_file({**tensors, "extra": detail}, path, metadata=marks)
    refused(path, said)


def test_a_truncated_file(tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    scores(half_width=torch.rand(LAYERS, HEADS)).save(path)
    whole = path.read_bytes()
    for cut in (0, 7, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        refused(path, "truncated or not a safetensors file")


def test_what_could_not_be_read_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    for bad in ({"per_unit": torch.rand(LAYERS, HEADS, 4)}, {"scores": torch.rand(LAYERS, HEADS)}):
        with pytest.raises(ValueError, match="score file holds details of shape"):
            scores(**bad).save(path)
    with pytest.raises(ValueError, match="JSON"):
        HeadScores("random", "none", torch.rand(2, 2).double(), {}, {"a": float("nan")}).save(path)
    assert not path.exists()


def test_the_record_is_plain_json_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "s.safetensors"
    scores().save(path)
    assert json.loads(contents(path)[1]["record"]) == RECORD
