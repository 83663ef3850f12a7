"""The demo on a tiny real model: whole, resumable, honest, checked by stock transformers in another process."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from restorelcc.demo import Sizes, demo, stock_check
from restorelcc.demo_report import show
from restorelcc.tensor_file import load_tensors
from restorelcc.training_loop import TrainingSettings

SIZES = Sizes(
    train_tokens=512,
    window=32,
    evaluation_tokens=1024,
    evaluation_window=64,
    new_tokens=4,
    probe_tokens=128,
    training=TrainingSettings(learning_rates=(0.002, 0.004), search_steps=2, batch_tokens=64, evaluations=2),
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
    assert report["verification"]["kernel_error"] <= report["verification"]["budget"]
    assert report["sparsity"]["matrices"] == 5 * 7
    assert report["verification"]["biases"] == 0


def test_weights_change_and_no_mask_does(finished: Path) -> None:
    before, after = (load_file(finished / name / "model.safetensors") for name in ("pruned", "restored"))
    for name, weight in before.items():
        if weight.ndim == 2 and "layers" in name:
            assert torch.equal(weight == 0, after[name] == 0), name
            assert not torch.equal(weight, after[name]), name
        else:
            assert torch.equal(weight, after[name]), name


def test_the_report_tells_refit_tuning_and_control_apart(finished: Path) -> None:
    report = json.loads((finished / "report.json").read_text())
    training = report["training"]
    assert training["start_nll"] > training["refitted_nll"] >= training["restored_nll"]
    assert training["heldout"][0] == [0.0, pytest.approx(training["refitted_nll"], rel=1e-5)]
    assert [row["rate"] for row in training["learning_rates"]] == [0.002, 0.004]
    assert sum(row["chosen"] for row in training["learning_rates"]) == 1
    assert {"refit", "tuning"} <= set(report["step_timings"])
    assert [len(row) for row in report["heads"]["scores"]] == [8] * 5
    nll = {row["key"]: row["nll"] for row in report["results"]}
    assert report["control"]["gain"] == pytest.approx(nll["dense"] - nll["control"])
    control = load_file(finished / "work" / "control" / "model.safetensors")
    assert control.keys() == load_file(finished / "restored" / "model.safetensors").keys()
    assert {row["step"] for row in report["timings"]} >= {"restore", "control", "heads", "stock check"}


def test_a_second_call_computes_nothing(stories_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from restorelcc import demo as module

    def not_again(*_: object, **__: object) -> None:
        raise AssertionError("computed again")

    heavy = ("prune_model", "restore", "train_control", "stock_check", "collect_moments", "token_nll", "training_text")
    for name in heavy:
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


def test_says_what_refit_tuning_and_control_did(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = json.loads((finished / "report.json").read_text())
    show(report, finished / "report.html")
    said = " ".join(capsys.readouterr().out.split())
    assert f"{report['training']['refitted_nll']:.3f} refitted" in said
    assert f"control changes by {-report['control']['gain']:+.3f}" in said
    assert "Masks of 35 matrices: identical" in said


@pytest.mark.parametrize("changed", ["o_proj.weight", "down_proj.weight", "q_proj.weight"])
def test_stock_check_notices_another_model(changed: str, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "restored", tmp_path / "other")
    file = tmp_path / "other" / "model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith(changed))
    tensors[name] = tensors[name] + 0.1 * tensors[name].abs().max()
    save_file(tensors, file, metadata={"format": "pt"})
    found = load_tensors(finished / "work" / "tuning.safetensors", "tuning")
    with pytest.raises(ValueError, match="is not the restored model"):
        stock_check(finished / "pruned", found, tmp_path / "other", torch.arange(1, 17)[None, :], tmp_path)


KILLED = """
import os, signal, sys
from pathlib import Path
from restorelcc import demo, restore_weights
from restorelcc.training_loop import TrainingSettings

def killed(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

restore_weights.tune = killed
demo.demo(Path(sys.argv[1]), model=sys.argv[2], sizes=eval(sys.argv[3], {**vars(demo), **globals()}))
"""


def test_a_killed_demo_goes_on_behind_the_refit(
    stories_path: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from restorelcc import demo as module
    from restorelcc import restore_weights

    def not_again(*_: object, **__: object) -> None:
        raise AssertionError("computed again")

    out = tmp_path / "run"
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-c", KILLED, str(out), str(stories_path), repr(SIZES)]
    assert subprocess.run(command, env=environment, check=False).returncode == -signal.SIGKILL
    assert (out / "work" / "refit.safetensors").is_file()
    assert not (out / "restored").exists()
    monkeypatch.setattr(restore_weights, "refit", not_again)
    for name in ("prune_model", "training_text"):
        monkeypatch.setattr(module, name, not_again)
    report, _ = demo(out, model=str(stories_path), sizes=SIZES)
    assert report["reused"] == ["text", "prune"]
    assert report["results"] == json.loads((finished / "report.json").read_text())["results"]
    for name in ("restored", "work/control"):
        before, after = (load_file(place / name / "model.safetensors") for place in (finished, out))
        assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("broken", ["pruned/model.safetensors", "work/tuning.safetensors", "work/steps.json"])
def test_what_was_damaged_since_is_made_again(
    broken: str, stories_path: Path, finished: Path, tmp_path: Path
) -> None:
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
