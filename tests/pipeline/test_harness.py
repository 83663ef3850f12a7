"""lm-evaluation-harness on local tasks: the answers of `--choices` for every kind of model, mistakes as one line."""

from __future__ import annotations

import importlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_calls import invoke, refuse, succeed

from restorelcc import harness
from restorelcc.adapter import save_adapter
from restorelcc.compensation import Compensation
from restorelcc.evaluation import accuracy_gain, multiple_choice
from restorelcc.harness import HarnessSettings, HarnessTasks
from restorelcc.loading import load, tokenizer_of
from restorelcc.models import attention_sites, load_model
from restorelcc.text import load_choices

installed = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None,
    reason="lm_eval is not installed; pip install '.[harness]' (620 MB)",
)

QUERIES = (
    "Once upon a time there was a little", "Lily loved to play with her", "One day the dog ran", "Tim was very",
    "The cat sat on the", "Mom said:", "They went to the park and saw a big", "He wanted to eat the",
)  # fmt: skip
# Ragged, of one token and of many. “ is one character, one token and three bytes: by bytes it wins, by characters not.
CHOICES = (
    ("girl", "boy who was sad", "ö"), ("dog", "dog in the park", "éééé"), ("away", "away from home and", "sad"),
    ("happy", "happy and sad", "ö é"), ("mat", "big red chair", "é"), ("No", "I love you", "We can go home", "“"),
    ("tree", "bird in the tree", "ball"), ("cake", "cake, but it was not", "big é"),
)  # fmt: skip
SETTINGS = "  - metric: acc\n  - metric: acc_norm\n  - metric: acc_bytes\n"


def write_task(folder: Path, name: str, items: list[dict[str, Any]], more: str = "") -> Path:
    """A YAML task of these items in `folder`, and the .jsonl that it and --choices read."""
    folder.mkdir(exist_ok=True)
    data = folder / f"{name}.jsonl"
    data.write_text("\n".join(json.dumps(item) for item in items), encoding="utf-8")
    (folder / f"{name}.yaml").write_text(
        f"task: {name}\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {data}\n"
        f"  cache_dir: {folder / 'cache'}\noutput_type: multiple_choice\ntest_split: test\n"
        "doc_to_text: '{{query}}'\ndoc_to_choice: '{{choices}}'\ndoc_to_target: gold\n"
        f"metric_list:\n{SETTINGS}{more}"
    )
    return data


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tasks `stories` (its items for --choices beside it) and `shown`, which knows examples."""
    folder = tmp_path_factory.mktemp("harness") / "tasks"
    items = [
        {"query": query, "choices": list(choices), "gold": (index + turn) % len(choices)}
        for index, (query, choices) in enumerate(zip(QUERIES, CHOICES, strict=True))
        for turn in range(3)
    ]
    write_task(folder, "stories", items)
    write_task(folder, "shown", items, "fewshot_split: test\n")
    return folder


@pytest.fixture(scope="module")
def pruned(stories_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("models") / "pruned"
    succeed("prune", stories_path, "--method", "magnitude", "--pattern", "2:4", "--out", out)
    return out


@pytest.fixture(scope="module")
def kinds(stories_path: Path, pruned: Path) -> dict[str, Path]:
    """A directory of each kind that eval takes: stock, adapter, packed in float32, and packed in int8 with its head."""
    sites, at = attention_sites(load_model(pruned).model), pruned.parent
    vectors = torch.randn(len(sites), sites[0].inputs, generator=torch.Generator().manual_seed(1))
    heads = torch.ones(len(sites), sites[0].heads, dtype=torch.bool)
    save_adapter(pruned, Compensation(vectors, heads, [site.name for site in sites]), at / "adapter")
    named = ("--compensation", f"law={at / 'adapter'}", "--quiet")
    succeed("pack", pruned, "--out", at / "packed", "--values", "fp32", *named)
    succeed("pack", pruned, "--out", at / "small", "--values", "int8", "--lm-head", "int8", "--quiet")
    return {"stock": stories_path, "adapter": at / "adapter", "packed": at / "packed", "small": at / "small"}


def measured(path: Path, folder: Path, name: str = "stories", **settings: Any) -> harness.TaskResult:
    found = HarnessTasks(HarnessSettings((name,), folder, **settings)).measure(load(path), tokenizer_of(path))
    assert list(found) == [name]
    return found[name]


@installed
@pytest.mark.parametrize("kind", ["stock", "adapter", "packed", "small"])
def test_the_harness_answers_as_choices_does(kind: str, kinds: dict[str, Path], tasks: Path) -> None:
    """Item by item: acc is our accuracy, acc_bytes our accuracy by length."""
    found = measured(kinds[kind], tasks)
    items = load_choices(tasks / "stories.jsonl")
    ours = multiple_choice(load(kinds[kind]), tokenizer_of(kinds[kind]), items)
    assert found.items == len(items) == 24
    assert found.scores["acc"].bool().tolist() == ours.correct.tolist()
    assert found.scores["acc_bytes"].bool().tolist() == ours.correct_normalised.tolist()
    assert found.values["acc"] == pytest.approx(ours.accuracy)
    assert found.values["acc_bytes"] == pytest.approx(ours.accuracy_normalised)
    assert found.stderr["acc"] == pytest.approx(ours.stderr, rel=1e-6)
    assert ours.correct.tolist() != ours.correct_normalised.tolist()  # items that tell one from the other


@installed
def test_acc_norm_is_by_characters_and_ours_by_bytes(stories_path: Path, tasks: Path, tmp_path: Path) -> None:
    found = measured(stories_path, tasks)
    assert found.scores["acc_norm"].tolist() != found.scores["acc_bytes"].tolist()
    plain = [json.loads(line) for line in (tasks / "stories.jsonl").read_text(encoding="utf-8").splitlines()]
    plain = [item for item in plain if "".join(item["choices"]).isascii()]
    assert plain
    write_task(tmp_path / "ascii", "plain", plain)
    ascii_alone = measured(stories_path, tmp_path / "ascii", "plain")
    assert ascii_alone.scores["acc_norm"].tolist() == ascii_alone.scores["acc_bytes"].tolist()


@installed
@pytest.mark.parametrize("shots", [None, 2])
def test_results_are_those_of_simple_evaluate(stories: Any, tasks: Path, shots: int | None) -> None:
    """Examples, seeds and limit as the harness's own entry has them; twice, as two models would be measured."""
    asked = HarnessTasks(HarnessSettings(("shown",), tasks, shots=shots, limit=10))
    first, second = (asked.measure(stories.model, stories.tokenizer)["shown"] for _ in range(2))
    stock = importlib.import_module("lm_eval")
    manager = importlib.import_module("lm_eval.tasks").TaskManager(include_path=str(tasks), include_defaults=False)
    lm = importlib.import_module("lm_eval.models.huggingface").HFLM(
        pretrained=stories.model, tokenizer=stories.tokenizer, batch_size=4
    )
    theirs = stock.simple_evaluate(lm, tasks=["shown"], num_fewshot=shots, limit=10, task_manager=manager)
    rows = theirs["samples"]["shown"]
    for found in (first, second):
        for metric, score in found.scores.items():
            assert score.tolist() == [row[metric] for row in rows]
            assert found.values[metric] == theirs["results"]["shown"][f"{metric},none"]
            assert found.stderr[metric] == theirs["results"]["shown"][f"{metric}_stderr,none"]
    assert set(first.scores) == {"acc", "acc_norm", "acc_bytes"}
    assert (first.items, first.shots) == (10, shots or 0)
    assert ("\n\n" in rows[0]["arguments"][0][0]) == bool(shots)


@installed
def test_eval_pairs_models_by_items(kinds: dict[str, Path], pruned: Path, tasks: Path) -> None:
    call = (
        *("eval", kinds["packed"], "--compensation", "law", "--against", kinds["stock"], "--against", pruned),
        *("--harness", "stories,shown", "--harness-tasks", tasks, "--harness-shots", "1"),
        *("--tokens", "128", "--window", "64", "--quiet"),
    )
    result = succeed(*call, "--choices", tasks / "stories.jsonl")
    assert result["harness"]["limit"] is None
    for model in result["models"]:
        assert list(model["harness"]) == ["stories", "shown"]
        assert [model["harness"][name]["shots"] for name in ("stories", "shown")] == [1, 1]
    gains = result["differences"][1]["harness"]["shown"]
    law, other = (
        measured(path, tasks, "shown", shots=1).scores["acc"] for path in (pruned.parent / "adapter", pruned)
    )
    expected = accuracy_gain(law, other)
    assert gains["acc"] == {"value": expected.value, "low": expected.low, "high": expected.high}
    told = invoke(*call)
    assert told.exit_code == 0, told.output
    assert f"{pruned}, shown: acc " in told.stdout
    assert f"shown acc_norm against {pruned}: " in told.stdout
    assert "on 24 items, 1 examples before each" in told.stdout


@installed
def test_a_model_against_itself_gains_nothing(stories_path: Path, tasks: Path) -> None:
    result = succeed(
        *("eval", stories_path, "--against", stories_path, "--harness", "shown", "--harness-tasks", tasks),
        *("--harness-shots", "2", "--harness-limit", "8", "--tokens", "128", "--window", "64", "--quiet"),
    )
    for gain in result["differences"][0]["harness"]["shown"].values():
        assert gain == {"value": 0, "low": 0, "high": 0}
    assert result["models"][0]["harness"]["shown"]["items"] == 8


@installed
def test_a_perplexity_has_a_value_but_no_pairs(stories_path: Path, tmp_path: Path) -> None:
    write_task(tmp_path, "rolling", [{"query": "Lily went to the park."}, {"query": "The dog ran away."}])
    text = (tmp_path / "rolling.yaml").read_text().split("output_type")[0]
    (tmp_path / "rolling.yaml").write_text(
        f"{text}output_type: loglikelihood_rolling\ntest_split: test\ndoc_to_text: ''\ndoc_to_target: '{{{{query}}}}'\n"
        "metric_list:\n  - metric: bits_per_byte\n"
    )
    found = measured(stories_path, tmp_path, "rolling")
    assert found.values["bits_per_byte"] > 0
    assert found.scores == {}


@installed
def test_groups_and_tags_stand_for_their_tasks(
    stories: Any, tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = [json.loads(line) for line in (tasks / "stories.jsonl").read_text(encoding="utf-8").splitlines()]
    write_task(tmp_path, "short", items[:6], "tag: tagged\n")
    write_task(tmp_path, "long", items[6:], "tag: tagged\n")
    (tmp_path / "both.yaml").write_text(
        "group: both\ntask: [short, long]\naggregate_metric_list:\n  - metric: acc\n    weight_by_size: true\n"
    )
    stock = harness._manager  # the harness's own tasks would take ten seconds to read
    monkeypatch.setattr(harness, "_manager", lambda settings: stock(HarnessSettings(("short",), settings.folder)))
    tagged = HarnessTasks(HarnessSettings(("tagged",), tmp_path)).measure(stories.model, stories.tokenizer)
    assert set(tagged) == {"short", "long"}
    found = HarnessTasks(HarnessSettings(("both",), tmp_path)).measure(stories.model, stories.tokenizer)
    assert set(found) == {"both", "short", "long"}
    assert (found["both"].items, found["both"].scores) == (24, {})
    every = torch.cat([found[name].scores["acc"] for name in tagged])
    assert found["both"].values["acc"] == pytest.approx(float(every.mean()))
    assert set(harness.score_gains(found, found)) == {"short", "long"}


@installed
def test_mistakes_are_one_line(
    stories_path: Path, tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stock = harness._manager  # reading all tasks of the harness would take ten seconds for each call
    monkeypatch.setattr(harness, "_manager", lambda settings: stock(HarnessSettings(("stories",), settings.folder)))
    call = ("eval", stories_path, "--quiet", "--harness-tasks", tasks, "--harness")
    refuse(*call, "storeis", words="no task 'storeis'")
    refuse(*call, "storeis", words="did you mean stories?")
    refuse(*call, ",", words="no task of lm-evaluation-harness is named")
    refuse(*call, "stories", "--noise", "typos", "--choices", tasks / "stories.jsonl", words="noise")
    refuse("eval", stories_path, "--harness-limit", "3", words="belong to --harness")
    refuse("eval", stories_path, "--harness", "stories", "--harness-tasks", tasks / "none", words="does not exist")
    (write_task(tmp_path, "stories", [{"query": "a", "choices": ["b", "c"], "gold": 0}])).unlink()
    lost = ("eval", stories_path, "--quiet", "--harness", "stories", "--harness-tasks", tmp_path)
    refuse(*lost, words="the data of task stories cannot be had: ")
    write_task(tmp_path, "stories", [{"query": "a", "choices": ["b", "c"], "gold": 0}], "fewshot_split: train\n")
    refuse(*lost, "--harness-shots", "2", words="stories")


@pytest.mark.slow
@installed
def test_an_unknown_task_is_looked_for_among_the_harness_own(tasks: Path) -> None:
    with pytest.raises(ValueError, match=r"no task 'arc_eazy'.*; did you mean .*arc_easy"):
        HarnessTasks(HarnessSettings(("arc_eazy",), tasks))


def test_without_the_package_it_is_one_line(stories_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stock = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "lm_eval" else stock(name, *rest)
    )
    refuse("eval", stories_path, "--harness", "arc_easy", words="pip install --no-build-isolation '.[harness]'")


def test_nothing_of_it_is_imported_before_a_task_is_named() -> None:
    code = "import sys, restorelcc.harness; sys.exit(bool({'lm_eval', 'datasets', 'pandas'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@installed
def test_the_command_prints_results_alone(stories_path: Path, tasks: Path) -> None:
    """In a process of its own: bars and advice of the harness are fixed when it is imported."""
    call = ("eval", stories_path, "--harness", "stories", "--harness-tasks", tasks, "--tokens", "64", "--window", "64")
    done = subprocess.run(
        [sys.executable, "-m", "restorelcc", *map(str, call), "--quiet"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 3  # the text, the model, its task
