"""The whole of benchmarks/quality on a tiny real model: every kind of method, all measures, resume, table, pictures."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "quality"
METHODS = (
    "dense,pruned", "best:own_text=0", "dense-best:own_text=0",
    "compensate:probe=random,heads=0.25,components=random,rank=4",
    "compensate:probe=random,heads=0.5,components=random,rank=4",
    "compensate:probe=random,heads=0.25,components=mean", "lofit:heads=0.25", "lofit:heads=0.25,tokens=512",
    "flap-bias", "eora:rank=4",
)  # fmt: skip
STORIES = (
    ("Once upon a time, there was a {} who", " lived in a small house with a big {} and was very happy."),
    ("Lily saw a red {} in the park and", " wanted to play with it. Her mom said yes, but the {} was sad."),
    ("One day, Tom and his {} went to", " the shop. They saw a {} and smiled. It was a good day."),
)
THINGS = ("cat", "dog", "ball", "bird", "tree", "boat", "bear", "car", "girl", "boy", "hat", "star")


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    torch.set_num_threads(1)
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


@pytest.fixture
def arguments(stories_pair: tuple[Path, Path], tmp_path: Path) -> list[str]:
    """Of run.py, without methods: files of a few sentences, everything small."""

    def lines(name: str, begin: int) -> Path:
        file, text = tmp_path / name, ""
        for place in range(begin, begin + 36):
            prompt, answer = STORIES[place % 3]
            thing, other = THINGS[place % 12], THINGS[(place * 5 + 1) % 12]
            text += json.dumps({"text": prompt.format(thing), "label": answer.format(other)}) + "\n"
        file.write_text(text)
        return file

    items = [
        {"query": f"Once upon a time there was a {thing}. The {thing} was", "choices": ["sad.", "zq kx v."], "gold": 0}
        for thing in THINGS
    ]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    dense, pruned = stories_pair
    valid = lines("valid.jsonl", 100)
    return [
        "--dense", str(dense), "--pruned", str(pruned), "--data", str(lines("train.jsonl", 0)), "--text",
        f"answers={valid}", "--choices", f"items={tmp_path / 'items.jsonl'}", "--choice-items", "8", "--noise", "typos",
        "--noisy-choices", "--noise-rate", "0.5", "--answers", str(valid), "--prompts", "4", "--new-tokens", "6",
        "--tokens", "1024", "--window", "64", "--epochs", "1", "--eval-tokens", "256", "--out",
        str(tmp_path / "q.jsonl"),
    ]  # fmt: skip


@pytest.fixture
def stories_pair(stories: Any, tmp_path: Path) -> tuple[Path, Path]:
    from restorelcc.models import save_checkpoint
    from restorelcc.pruning import prune_model

    save_checkpoint(stories.model, stories.tokenizer, tmp_path / "dense")
    prune_model(stories.model, method="magnitude", pattern="2:4")
    save_checkpoint(stories.model, stories.tokenizer, tmp_path / "pruned")
    return tmp_path / "dense", tmp_path / "pruned"


def test_everything_runs_resumes_and_is_drawn(
    module: Callable[[str], Any], arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = module("run"), tmp_path / "q.jsonl"
    run.main([*arguments, "--methods", *METHODS, "--seeds", "1"])
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    names = [line["method"] for line in lines]
    assert len(names) == 11
    assert set(lines[0]["texts"]) == {"answers", "answers+typos", "prose"}
    assert set(lines[0]["choices"]) == {"items", "items+typos"}
    assert lines[0]["shared"]["sparsity"] == pytest.approx(0.5)
    nll = {
        line["method"]: sum(line["texts"]["answers"]["nll_sum"]) / sum(line["texts"]["answers"]["count"])
        for line in lines
    }
    for name in set(names) - {"dense", "pruned"}:
        assert nll[name] < nll["pruned"], f"{name} gained nothing"
    assert nll["dense-best:own_text=0"] < nll["dense"]
    assert sum(lines[0]["choices"]["items"]["correct"]) == 8  # gibberish is less likely
    by_name = {line["method"]: line for line in lines}
    assert by_name["lofit:heads=0.25,tokens=512"]["config"]["tokens"] == 512
    assert sum(by_name["lofit:heads=0.25"]["chosen"]) == 10
    assert by_name["eora:rank=4"]["extra_weights"] > 0

    before = out.read_bytes()
    run.main([*arguments, "--methods", *METHODS, "--seeds", "1"])
    assert out.read_bytes() == before
    run.main([*arguments, "--methods", "dense", "flap-bias", "--seeds", "2"])
    added = out.read_text()[len(before.decode()) :].splitlines()
    assert [(line["method"], line["seed"]) for line in map(json.loads, added)] == [("flap-bias", 1)]
    alone = tmp_path / "alone.jsonl"
    run.main([*arguments[:-1], str(alone), "--methods", "flap-bias", "--first-seed", "1", "--seeds", "1"])
    (line,) = map(json.loads, alone.read_text().splitlines())
    assert line["texts"] == json.loads(added[0])["texts"]

    found = module("table").tables(module("table").read_lines([out]), "flap-bias")
    assert "### pruned: 50.0 % of the weights are zero; learnt from 1024 tokens of train.jsonl, 1 epochs" in found
    for title in ("**answers**", "**answers+typos**", "**prose**", "**items**: 8 items", "4 prompts, greedily"):
        assert title in found
    assert "| flap-bias | 2 |" in found

    read = module("table").read_lines([out])
    pictures = module("plots").draw_all(read, tmp_path / "plots", texts=["answers", "prose"])
    made = {path.name for path in pictures}
    assert made == {"methods.png", "choices.png", "tokens.png", "heads.png", "components.png"}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pictures)
    call = [str(out), "--out", str(tmp_path / "named"), "--form", "svg", "--label", "Bias=flap-bias"]
    module("plots").main([*call, "--label", "Ours, no own text=best:own_text=0"])
    drawn = (tmp_path / "named" / "methods.svg").read_text()
    assert "Ours, no own text" in drawn
    assert "lofit" not in drawn
    with pytest.raises(SystemExit):
        module("plots").main([*call, "--label", "Other=nothing"])
    said = capsys.readouterr().err
    assert "--label 'Other=nothing' is no TEXT=METHOD of the lines; they hold best:own_text=0" in said
    capsys.readouterr()


def test_peers_say_what_they_need_before_any_work(
    module: Callable[[str], Any], arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    run, found = module("run"), importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "peft" else found(name))
    with pytest.raises(SystemExit):
        run.main([*arguments, "--methods", "best,lora"])
    assert "lora needs the package peft; pip install peft, or leave lora out" in capsys.readouterr().err
    assert not (tmp_path / "q.jsonl").exists()


def test_a_model_that_is_no_directory(
    module: Callable[[str], Any], arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments[arguments.index("--pruned") + 1] = "nothere"
    with pytest.raises(SystemExit):
        module("run").main([*arguments, "--methods", "fast"])
    assert "error: nothere does not exist" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ("best,lroa", "unknown method lroa; choose of dense, pruned, lora, dora, lofit"),
        ("flap-bias:rank=3", "flap-bias has no setting rank .*; it has where, inputs, scale, skip_first"),
        ("dense-fast", "dense-fast is no control: recipe fast trains nothing of a dense model"),
        ("dense:rank=3", "dense has no setting rank"),
        ("dense:tokens=1", "dense has no setting tokens"),
        ("eora:epochs=5", "eora has no setting epochs"),
        ("fast:epochs=5", "fast:epochs=5 does not read epochs"),
        ("lofit:scripts=0.5", "scripts of lofit is of the rows of own text, and it has none; add own_text=SHARE"),
        ("compensate:heads=0.5,depth=2", "compensate:heads=0.5,depth=2 has no setting depth"),
        ("best:vectors=spanned", "best:vectors=spanned does not read vectors; its settings are refit, "),
        ("compensate:own_text=0.5", "compensate:own_text=0.5 does not read own_text; its settings are sites, "),
        ("compensate:vectors=beta", "unknown vectors 'beta'; choose one of free, spanned"),
        ("compensate:components=none,vectors=spanned", "no directions, so they span no vector"),
    ],
)
def test_wrong_methods_are_refused_before_any_work(
    module: Callable[[str], Any], arguments: list[str], methods: str, message: str, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    with pytest.raises(SystemExit):
        module("run").main([*arguments, "--methods", methods])
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "q.jsonl").exists()


def test_data_that_cannot_be_read_is_one_sentence(
    module: Callable[[str], Any], arguments: list[str], tmp_path: Path
) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    arguments[arguments.index("--data") + 1] = str(tmp_path / "empty.jsonl")
    with pytest.raises(SystemExit, match=r"flap-bias of seed 0: .*empty.jsonl is empty; give a file with text"):
        module("run").main([*arguments, "--methods", "flap-bias", "--seeds", "1"])
    assert not (tmp_path / "q.jsonl").exists()
