"""The demo on a tiny real model: whole, resumable, honest, checked by stock transformers in another process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from restorelcc.demo import Sizes, demo, stock_check
from restorelcc.demo_report import show
from restorelcc.training import TrainingSettings

SIZES = Sizes(
    train_tokens=512,
    window=32,
    evaluation_tokens=1024,
    evaluation_window=64,
    new_tokens=4,
    training=TrainingSettings(learning_rates=(0.05,), evaluations=2),
)


@pytest.fixture(scope="module")
def finished(stories_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "run"
    demo(out, model=str(stories_path), sizes=SIZES)
    return out


def test_leaves_stock_checkpoints_and_a_report(finished: Path) -> None:
    report = json.loads((finished / "report.json").read_text())
    for name in ("pruned", "restored"):
        assert (finished / name / "config.json").is_file()
    assert "<svg" in (finished / "report.html").read_text(encoding="utf-8")
    nll = {row["key"]: row["nll"] for row in report["results"]}
    assert set(nll) == {"dense", "pruned", "restored", "control"}
    gap = report["gap"]
    assert gap["improvement"] == pytest.approx(nll["pruned"] - nll["restored"])
    assert gap["value"] == pytest.approx(gap["improvement"] / (nll["pruned"] - nll["dense"]))
    assert gap["low"] <= gap["value"] <= gap["high"]
    assert report["sparsity"]["identical"] is True
    assert report["sparsity"]["overall"] == pytest.approx(0.5)
    assert report["verification"]["within_budget"] is True
    assert report["verification"]["hooked_error"] <= report["verification"]["budget"]


def test_a_second_call_computes_nothing(stories_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from restorelcc import demo as module

    def not_again(*_: object, **__: object) -> None:
        raise AssertionError("computed again")

    for name in ("prune_model", "restore", "train_control", "token_nll", "training_text"):
        monkeypatch.setattr(module, name, not_again)
    before = json.loads((finished / "report.json").read_text())
    report, _ = module.demo(finished, model=str(stories_path), sizes=SIZES)
    assert len(report["reused"]) == len(report["timings"])
    assert report["results"] == before["results"]


def test_says_first_when_it_is_worse(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = json.loads((finished / "report.json").read_text())
    report["gap"]["improvement"] = -0.5
    show(report, finished / "report.html")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("WORSE THAN ITS INPUT")


def test_stock_check_notices_another_model(finished: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for file in (finished / "restored").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    name = next(name for name in tensors if name.endswith("o_proj.bias"))
    tensors[name] = tensors[name] + 0.5
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="is not the restored model"):
        stock_check(finished / "pruned", tmp_path, torch.arange(1, 17)[None, :], tmp_path)


@pytest.mark.parametrize("broken", ["pruned/model.safetensors", "work/components.safetensors", "work/steps.json"])
def test_what_was_damaged_since_is_made_again(
    broken: str, stories_path: Path, finished: Path, tmp_path: Path
) -> None:
    import shutil

    again = tmp_path / "again"
    shutil.copytree(finished, again)
    if broken.endswith(".json"):
        record = json.loads((again / broken).read_text())
        record["steps"]["evaluate dense"]["result"]["nll_sum"] = ["a"]
        record["steps"]["prune"] = [1]
        (again / broken).write_text(json.dumps(record))
    else:
        (again / broken).write_bytes((again / broken).read_bytes()[:1000])
    before = json.loads((finished / "report.json").read_text())
    report, _ = demo(again, model=str(stories_path), sizes=SIZES)
    assert report["results"] == before["results"]
    assert 0 < len(report["reused"]) < len(report["timings"])


def test_the_demo_has_one_writer(stories_path: Path, tmp_path: Path) -> None:
    from restorelcc.resume import only_call

    with only_call(tmp_path, tmp_path), pytest.raises(ValueError, match="another process is making"):
        demo(tmp_path, model=str(stories_path), sizes=SIZES)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        demo(tmp_path / "file", model=str(stories_path), sizes=SIZES)


def test_quick_is_the_share_of_the_text_that_the_help_says() -> None:
    from click.testing import CliRunner

    from restorelcc.cli import cli
    from restorelcc.demo import FULL, QUICK

    assert FULL.train_tokens == 6 * QUICK.train_tokens
    assert "A sixth of the text" in " ".join(CliRunner().invoke(cli, ["demo", "--help"]).output.split())
