"""The verb `probe`: what it writes and says, that the record is enough to repeat it, and mistakes as one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest
import torch
from cli_calls import invoke, refuse, succeed
from small_pair import HEADS, LAYERS, ROWS, SmallPair, sentence, small_pair

from restorelcc import cli_options, probe_input, similarity
from restorelcc.adapter import save_adapter
from restorelcc.compensation import Compensation
from restorelcc.components import lost_components
from restorelcc.models import load_model, save_checkpoint
from restorelcc.moments import Moments
from restorelcc.probes import HeadScores, head_scores
from restorelcc.resume import contents
from restorelcc.text import TokenSet


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> SmallPair:
    return small_pair(tmp_path_factory.mktemp("pair"))


def test_choices_are_those_of_the_library() -> None:
    assert cli_options.CONTRASTS == probe_input.CONTRASTS
    assert cli_options.EDITS == probe_input.EDITS
    assert cli_options.SIMILARITIES == similarity.SIMILARITIES


@pytest.mark.parametrize("probe", cli_options.PROBES)
def test_every_probe_leaves_scores_a_record_and_a_picture(probe: str, files: SmallPair, tmp_path: Path) -> None:
    out, picture = tmp_path / "s.safetensors", tmp_path / "s.svg"
    pairs = ("--pairs", files.pairs) if probe == "linear" else ()
    found = succeed("probe", *files.arguments, "--probe", probe, "--out", out, "--heat-map", picture, *pairs)
    saved = HeadScores.load(out)
    assert saved.scores.shape == (LAYERS, HEADS)
    assert found["scores"] == saved.scores.tolist()
    assert found["record"] == saved.record
    assert set(found["details"]) == set(saved.details)
    assert probe in picture.read_text()
    record = saved.record
    assert record["files"]["pruned"] == {"path": str(files.pruned), "sha256": contents(files.pruned)}
    assert record["files"]["moments"]["sha256"] == contents(files.moments)
    assert record["text"]["fingerprint"] == TokenSet.load(files.text).fingerprint()
    assert (record["probe"], record["share"], record["seed"], record["memory"]) == (probe, 0.25, 0, 2 * 10**9)
    assert record["versions"]["threads"] == str(torch.get_num_threads())
    assert record["seconds"] > 0
    assert record["memory_used"]["peak"] >= record["memory_used"]["before"]


@pytest.mark.parametrize("edit", ["inject", "ablate"])
@pytest.mark.parametrize("probe", ["perplexity", "adaptive"])
def test_the_record_is_enough_to_make_the_scores_again(
    probe: str, edit: str, files: SmallPair, tmp_path: Path
) -> None:
    out = tmp_path / "s.safetensors"
    given = ("--compensation", files.compensation) if edit == "ablate" else ()
    succeed("probe", *files.arguments, "--probe", probe, "--out", out, "--contrast", "margin", "--pairs", files.pairs,
            "--edit", edit, *given, "--max-pairs", "7", "--window", "16", "--seed", "3", "--share", "0.5",
            "--memory", "3MB", "--tokens", "40")  # fmt: skip
    saved = HeadScores.load(out)
    record = saved.record
    from restorelcc.pairs import contrastive_pairs

    loaded = load_model(Path(record["files"]["pruned"]["path"]))
    text = TokenSet.load(files.text)
    rows = text.subset(range(record["text"]["rows"]))
    assert rows.fingerprint() == record["text"]["fingerprint"]
    assert rows.tokens <= 40 < text.tokens
    pairs = contrastive_pairs(Path(record["files"]["pairs"]["path"]), loaded.tokenizer, **record["pair_settings"])
    assert len(pairs) == record["pairs"]["pairs"] == 7
    assert pairs.fingerprint() == record["pairs"]["fingerprint"]
    compensation = None
    if edit == "ablate":
        compensation = Compensation.load(Path(record["files"]["compensation"]["path"])).vectors
    components = lost_components(Moments.load(Path(record["files"]["moments"]["path"])), kind=record["components"])
    again = head_scores(
        record["probe"], loaded.model, rows, components, seed=record["seed"], batch=record["batch"], pairs=pairs,
        contrast=record["contrast"], edit=record["edit"], compensation=compensation, share=record["share"],
        memory=record["memory"],
    )  # fmt: skip
    assert torch.equal(again.scores, saved.scores)
    for key in ("components_fingerprint", "compensation_fingerprint", "pairs", "text"):
        assert again.record[key] == record[key]


def test_an_adapter_holds_a_compensation_too(files: SmallPair, tmp_path: Path) -> None:
    learned = Compensation.load(files.compensation)
    save_adapter(files.pruned, learned, tmp_path / "adapter")
    arguments = ("probe", *files.arguments, "--edit", "ablate", "--probe", "perplexity")
    one = succeed(*arguments, "--compensation", files.compensation, "--out", tmp_path / "a")
    other = succeed(*arguments, "--compensation", tmp_path / "adapter", "--out", tmp_path / "b")
    assert one["scores"] == other["scores"]
    refuse(*arguments, "--compensation", files.pruned, "--out", tmp_path / "c", words="is no adapter directory")


def test_tokens_bound_what_is_read(files: SmallPair, tmp_path: Path) -> None:
    text = TokenSet.load(files.text)
    for asked, rows in ((1, 1), (10**9, ROWS)):
        found = succeed("probe", *files.arguments, "--tokens", asked, "--out", tmp_path / f"{asked}")
        assert found["record"]["text"]["rows"] == rows
    assert text.first(text.tokens - 1).tokens < text.tokens


def test_scores_are_computed_in_float32_whatever_is_stored(files: SmallPair, tmp_path: Path) -> None:
    loaded = load_model(files.pruned)
    save_checkpoint(loaded.model.bfloat16(), loaded.tokenizer, tmp_path / "half")
    common = ("probe", "--pruned", tmp_path / "half", "--moments", files.moments, "--quiet")
    default = succeed(*common, "--out", tmp_path / "a")
    stored = succeed(*common, "--dtype", "stored", "--out", tmp_path / "b")
    assert (default["record"]["dtype"], stored["record"]["dtype"]) == ("float32", "bfloat16")
    assert default["scores"] != stored["scores"]


def test_the_work_directory_of_restore_will_do(files: SmallPair, tmp_path: Path) -> None:
    data = tmp_path / "text.jsonl"
    data.write_text("".join(json.dumps({"text": sentence(14)}) + "\n" for _ in range(8)))
    succeed("restore", "--dense", files.dense, "--pruned", files.pruned, "--out", tmp_path / "r", "--data", data,
            "--recipe", "compensate", "--train", "none", "--quiet")  # fmt: skip
    moments = tmp_path / "r.work" / "moments.safetensors"
    found = succeed("probe", "--pruned", files.pruned, "--moments", moments, "--out", tmp_path / "s", "--quiet")
    text = TokenSet.load(moments.with_name("text.safetensors"))
    assert found["record"]["text"]["fingerprint"] == text.fingerprint()


def test_states_that_do_not_fit_go_beside_the_output(
    files: SmallPair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from restorelcc import contrast_run

    arguments = ("probe", *files.arguments, "--probe", "perplexity")
    whole = succeed(*arguments, "--out", tmp_path / "whole")
    places = []
    stock = contrast_run.tempfile.TemporaryDirectory

    def watched(*, dir: Path, prefix: str) -> object:
        places.append(dir)
        return stock(dir=dir, prefix=prefix)

    monkeypatch.setattr(contrast_run.tempfile, "TemporaryDirectory", watched)
    new = tmp_path / "new" / "folder"
    spilt = succeed(*arguments, "--memory", "50kB", "--out", new / "s")
    assert places
    assert set(places) == {new.resolve()}
    assert [path.name for path in new.iterdir()] == ["s"]
    torch.testing.assert_close(torch.tensor(spilt["scores"]), torch.tensor(whole["scores"]), atol=1e-5, rtol=1e-4)


def test_what_a_person_reads(files: SmallPair, tmp_path: Path) -> None:
    result = invoke("probe", *files.arguments, "--probe", "adaptive", "--out", tmp_path / "s",
                    "--heat-map", tmp_path / "s.png")  # fmt: skip
    assert result.exit_code == 0, result.output
    first, cost, undecided, picture = result.stdout.splitlines()
    scores = HeadScores.load(tmp_path / "s")
    layer, head = divmod(int(scores.scores.argmax()), HEADS)
    assert f"best head is layer {layer} head {head} " in first
    assert " s, peak " in cost
    assert undecided.startswith(f"{int(scores.details['undecided'].sum())} of {LAYERS * HEADS} heads are undecided")
    assert picture.endswith("s.png: heat map")
    loud = [argument for argument in files.arguments if argument != "--quiet"]
    assert "contrasts" in invoke("probe", *loud, "--probe", "perplexity", "--out", tmp_path / "t").stderr


MISTAKES = [
    (["--probe", "best"], "'attribution'"),
    (["--contrast", "both"], "'text', 'margin'"),
    (["--edit", "swap"], "'inject', 'ablate'"),
    (["--contrast", "margin"], "give some with --pairs"),
    (["--probe", "linear"], "give some with --pairs"),
    (["--pairs", "PAIRS"], "--pairs is read by"),
    (["--contrast", "margin", "--pairs", "TEXT"], "is not JSON"),
    (["--contrast", "margin", "--pairs", "EMPTY"], "is empty"),
    (["--contrast", "margin", "--pairs", "LABELS"], "line 1 needs"),
    (["--contrast", "margin", "--pairs", "PAIRS", "--window", "4"], "gives no pair"),
    (["--contrast", "margin", "--pairs", "PAIRS", "--max-pairs", "0"], "--max-pairs"),
    (["--contrast", "margin", "--pairs", "nowhere.jsonl"], "nowhere.jsonl"),
    (["--edit", "ablate"], "give its compensation with --compensation"),
    (["--compensation", "COMPENSATION"], "--compensation is read by --edit ablate"),
    (["--edit", "ablate", "--compensation", "MOMENTS"], "is not a compensation file"),
    (["--edit", "ablate", "--compensation", "OTHER"], "the compensation was made for 2 projections of 16 inputs"),
    (["--probe", "linear", "--pairs", "PAIRS", "--edit", "ablate", "--compensation", "COMPENSATION"], "knows no edit"),
    (["--dense", "DENSE"], "--dense is read by the linear probe"),
    (["--share", "0"], "--share is 0"),
    (["--share", "1.5"], "--share is 1.5"),
    (["--share", "nan"], "--share is nan"),
    (["--tokens", "0"], "--tokens"),
    (["--memory", "lots"], "'lots' is no amount of memory"),
    (["--memory", "2"], "'2' is no amount of memory"),
    (["--memory", "-1GB"], "is no amount of memory"),
    (["--memory", "1e9B"], "is no amount of memory"),
    (["--memory", "２GB"], "is no amount of memory"),
    (["--memory", "0.2B"], "'0.2B' is nothing"),
    (["--memory", "99999999TB"], "more than any machine has"),
    (["--probe", "perplexity", "--memory", "1kB"], "allow more memory or use shorter rows"),
    (["--probe", "linear", "--pairs", "PAIRS", "--memory", "1kB"], "more memory"),
    (["--heat-map", "map.pdf"], "neither .png nor .svg"),
    (["--heat-map", "MOMENTS"], "neither .png nor .svg"),
    (["--heat-map", "THERE"], "exists; pass --overwrite"),
    (["--out", "MOMENTS", "--overwrite"], "read to make it"),
    (["--out", "PAIRS", "--contrast", "margin", "--pairs", "PAIRS", "--overwrite"], "read to make it"),
    (["--out", "DENSE"], "is a directory"),
    (["--out", "SAME", "--heat-map", "SAME"], "--heat-map and --out are both"),
    (["--seeds", "4"], "--seeds is for --compare"),
    (["--train-steps", "4"], "--train-steps is for --compare"),
    (["--eval-text", "LABELS"], "--eval-text is for --compare"),
    (["--compare", "best,random"], "unknown probe 'best'; choose one of attribution"),
    (["--compare", "random,random"], "names 'random' twice"),
    (["--compare", "random,"], "has an empty name"),
    (["--compare", ""], "has an empty name"),
    (["--compare", "linear,random"], "give some with --pairs"),
    (["--compare", "random", "--probe", "random"], "--compare reads no --probe"),
    (["--compare", "random", "--edit", "ablate"], "--compare reads no --edit"),
    (["--compare", "random", "--heat-map", "map.png"], "--compare reads no --heat-map"),
    (["--compare", "random", "--seeds", "0"], "--seeds"),
    (["--compare", "random", "--out", "MOMENTS", "--overwrite"], "read to make it"),
]


@pytest.mark.parametrize(("arguments", "words"), MISTAKES, ids=[" ".join(case[0]) for case in MISTAKES])
def test_mistakes_are_one_line(arguments: list[str], words: str, files: SmallPair, tmp_path: Path) -> None:
    labels, empty, other, there = (tmp_path / name for name in ("l.jsonl", "e.jsonl", "other", "there.png"))
    labels.write_text(json.dumps({"text": "w4", "label": 7}) + "\n")
    empty.write_text("")
    there.write_text("mine")
    sites = Compensation.load(files.compensation).sites
    Compensation(torch.zeros(2, 16), torch.ones(2, 2, dtype=torch.bool), sites).save(other)
    names = {
        "PAIRS": files.pairs, "TEXT": files.text, "MOMENTS": files.moments, "COMPENSATION": files.compensation,
        "DENSE": files.dense, "LABELS": labels, "EMPTY": empty, "OTHER": other, "THERE": there,
        "SAME": tmp_path / "same.png",
    }  # fmt: skip
    given = [names.get(argument, argument) for argument in arguments]
    if "--out" not in given:
        given += ["--out", tmp_path / "out"]
    before = {path: contents(path) for path in (files.moments, files.pairs, files.text)}
    refuse("probe", *files.arguments, *given, words=words)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "same.png").exists()
    assert there.read_text() == "mine"
    assert {path: contents(path) for path in before} == before


@pytest.mark.parametrize(("text", "size"), [
    ("512MB", 512 * 10**6), ("2GB", 2 * 10**9), ("2 gb", 2 * 10**9), ("1.5GiB", 3 << 29), ("64KiB", 1 << 16),
    ("7B", 7), ("3kB", 3000), ("1TB", 10**12), (" 2GB ", 2 * 10**9),
])  # fmt: skip
def test_amounts_of_memory(text: str, size: int) -> None:
    command = click.Command("c", params=[click.Option(["--memory"])])
    context = click.Context(command)
    assert cli_options.as_bytes(context, command.params[0], text) == size
