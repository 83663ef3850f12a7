"""Comparing probes: what is measured, on which rows, how it resumes, and what is reported."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_calls import invoke, refuse, succeed
from small_pair import HEADS, LAYERS, ROWS, WORDS, SmallPair, sentence, small_pair

from restorelcc import probe_compare
from restorelcc.evaluation import token_nll
from restorelcc.models import load_model
from restorelcc.pairs import PairSet
from restorelcc.probe_agreement import decided_agreement, overlap, spearman
from restorelcc.probe_compare import CompareSettings, compare_probes, pairs_apart
from restorelcc.probe_sources import ProbeSources, SourceFiles, read_sources
from restorelcc.score_file import HeadScores
from restorelcc.text import TokenSet

ALL = ("linear", "perplexity", "attribution", "adaptive", "random")
QUICK = CompareSettings(ALL, seeds=3, train_steps=2, seed=4)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> SmallPair:
    return small_pair(tmp_path_factory.mktemp("pair"))


def sources(files: SmallPair, pairs: bool = True) -> ProbeSources:
    return read_sources(SourceFiles(files.pruned, files.moments, files.text, pairs=files.pairs if pairs else None))


def other_text() -> TokenSet:
    generator = torch.Generator().manual_seed(9)
    ids = torch.randint(3, WORDS, (3, 12), generator=generator)
    return TokenSet(ids, torch.full((3,), 12), torch.ones(3, dtype=torch.long), "other words")


@pytest.fixture(scope="module")
def undisturbed(files: SmallPair, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """(report, directory) of a comparison of all probes."""
    out = tmp_path_factory.mktemp("compare") / "out"
    return compare_probes(sources(files), out, QUICK, eval_text=other_text()), out


def timeless(report: dict[str, Any]) -> Any:
    """The report without what differs from run to run."""
    return json.loads(json.dumps(report), object_hook=lambda found: {
        key: value for key, value in found.items() if key not in ("seconds", "memory_used", "versions")
    })  # fmt: skip


def test_the_directory_holds_everything(undisturbed: tuple[dict[str, Any], Path]) -> None:
    report, out = undisturbed
    names = {"report.json", "table.md"} | {f"{kind}.{form}" for kind in ALL for form in ("png", "safetensors")}
    assert {path.name for path in out.iterdir()} == names
    assert timeless(json.loads((out / "report.json").read_text())) == timeless(report)
    for kind in ALL:
        assert (out / f"{kind}.png").read_bytes().startswith(b"\x89PNG")
        assert HeadScores.load(out / f"{kind}.safetensors").scores.tolist() == report["probes"][kind]["scores"]
    table = (out / "table.md").read_text()
    for words in ("| untouched | 0 |", "| random |", "| all | 8 |", "Spearman", "Shared heads of the best 25%"):
        assert words in table


def test_numbers_follow_from_the_runs(undisturbed: tuple[dict[str, Any], Path]) -> None:
    report, _ = undisturbed
    assert list(report["worth"]) == [*ALL, "all"]
    for choice, found in report["worth"].items():
        runs = report["runs"][choice]
        assert [run["seed"] for run in runs] == [4, 5, 6]
        assert {run["heads"] for run in runs} == {LAYERS * HEADS if choice == "all" else 2}
        assert found["heads"] == runs[0]["heads"]
        for text in ("heldout", "other"):
            nll = [run["texts"][text]["nll"] for run in runs]
            against = [run["texts"][text]["nll"] for run in report["runs"]["random"]]
            assert found[text]["nll"]["values"] == nll
            assert found[text]["nll"]["mean"] == pytest.approx(sum(nll) / 3)
            assert found[text]["nll"]["std"] == pytest.approx(statistics.stdev(nll))
            assert found[text]["perplexity"]["mean"] == pytest.approx(sum(map(math.exp, nll)) / 3)
            paired = [a - b for a, b in zip(nll, against, strict=True)]
            assert found[text]["nll_minus_random"]["values"] == paired
            assert found[text]["nll_minus_random"]["std"] == pytest.approx(statistics.stdev(paired))
    assert report["worth"]["random"]["heldout"]["nll_minus_random"]["values"] == [0.0] * 3
    assert report["spearman"]["perplexity"]["perplexity"] == pytest.approx(1)
    assert report["overlap"]["linear"]["random"] == report["overlap"]["random"]["linear"]


def test_the_pruned_model_is_measured_as_it_is(undisturbed: tuple[dict[str, Any], Path], files: SmallPair) -> None:
    report, _ = undisturbed
    model = load_model(files.pruned).model
    _, heldout = TokenSet.load(files.text).split(0.2, seed=4)
    for name, rows in (("heldout", heldout), ("other", other_text())):
        assert report["pruned"][name]["nll"] == pytest.approx(token_nll(model, rows).mean, rel=1e-5)
        assert report["texts"][name]["fingerprint"] == rows.fingerprint()
        assert report["pruned"][name]["tokens"] == rows.tokens


def test_a_run_does_not_depend_on_those_before_it(
    undisturbed: tuple[dict[str, Any], Path], files: SmallPair, tmp_path: Path
) -> None:
    report, _ = undisturbed
    settings = CompareSettings(("random", "perplexity"), seeds=2, train_steps=2, seed=4, tokens=QUICK.tokens)
    alone = compare_probes(sources(files, pairs=False), tmp_path / "out", settings, eval_text=other_text())
    for choice in ("random", "perplexity", "all"):
        assert timeless({"r": alone["runs"][choice]}) == timeless({"r": report["runs"][choice][:2]})


def test_random_draws_a_new_choice_per_seed(
    files: SmallPair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[torch.Tensor] = []
    stock = probe_compare.train_compensation

    def watched(model: Any, rows: TokenSet, components: Any, heads: torch.Tensor, *rest: Any, **more: Any) -> Any:
        trained.append(heads)
        return stock(model, rows, components, heads, *rest, **more)

    monkeypatch.setattr(probe_compare, "train_compensation", watched)
    settings = CompareSettings(("random",), seeds=3, train_steps=1)
    report = compare_probes(sources(files, pairs=False), tmp_path / "out", settings)
    drawn = [heads for heads in trained if not bool(heads.all())]
    assert len(drawn) == len({str(heads.tolist()) for heads in drawn}) == 3
    assert drawn[0].tolist() == report["probes"]["random"]["chosen"]
    assert report["worth"]["random"]["heldout"]["nll_minus_random"]["mean"] == 0


def test_held_out_rows_are_seen_by_neither_probe_nor_training(
    files: SmallPair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, list[TokenSet]] = {"probe": [], "training": [], "judged": []}

    def watch(name: str, label: str) -> None:
        stock = getattr(probe_compare, name)
        place = 2 if name == "head_scores" else 1

        def watched(*arguments: Any, **more: Any) -> Any:
            seen[label].append(arguments[place])
            return stock(*arguments, **more)

        monkeypatch.setattr(probe_compare, name, watched)

    watch("head_scores", "probe")
    watch("train_compensation", "training")
    watch("token_nll", "judged")
    settings = CompareSettings(("attribution", "random"), seeds=2, train_steps=1, seed=1)
    compare_probes(sources(files, pairs=False), tmp_path / "out", settings)
    rows = {label: {str(row) for found in sets for row in found.ids.tolist()} for label, sets in seen.items()}
    assert len(rows["judged"]) == ROWS // 5
    assert len(rows["training"]) == ROWS - ROWS // 5
    assert rows["probe"] <= rows["training"]
    assert not rows["judged"] & rows["training"]


@pytest.mark.parametrize("fall", [("head_scores", 2), ("train_compensation", 1), ("train_compensation", 6)])
def test_a_killed_comparison_goes_on(
    fall: tuple[str, int], undisturbed: tuple[dict[str, Any], Path], files: SmallPair, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    calls = {"head_scores": 0, "train_compensation": 0}
    limit: dict[str, int] = {fall[0]: fall[1]}

    def counted(name: str) -> Callable[..., Any]:
        stock = getattr(probe_compare, name)

        def call(*arguments: Any, **more: Any) -> Any:
            if calls[name] == limit.get(name):
                raise KeyboardInterrupt
            calls[name] += 1
            return stock(*arguments, **more)

        return call

    for name in calls:
        monkeypatch.setattr(probe_compare, name, counted(name))
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        compare_probes(sources(files), out, QUICK, eval_text=other_text())
    assert not out.exists()
    assert calls[fall[0]] == fall[1]
    limit.clear()
    report = compare_probes(sources(files), out, QUICK, eval_text=other_text())
    assert timeless(report) == timeless(undisturbed[0])
    finished = list(out.with_name("out.work").glob("run_*.mark.json"))
    assert calls["head_scores"] == len(ALL)  # none of the finished ones again
    assert calls["train_compensation"] == len(finished)
    before = dict(calls)
    again = compare_probes(sources(files), out, QUICK, eval_text=other_text(), overwrite=True)
    assert calls == before
    assert timeless(again) == timeless(report)
    (out.with_name("out.work") / "scores_random.safetensors").write_bytes(b"damaged")
    compare_probes(sources(files), out, QUICK, eval_text=other_text(), overwrite=True)
    assert calls["head_scores"] == before["head_scores"] + 1
    assert calls["train_compensation"] == before["train_compensation"]


def test_equal_choices_are_trained_once(files: SmallPair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    stock = probe_compare.train_compensation

    def counted(*arguments: Any, **more: Any) -> Any:
        calls.append(arguments)
        return stock(*arguments, **more)

    monkeypatch.setattr(probe_compare, "train_compensation", counted)
    settings = CompareSettings(("attribution", "random"), seeds=2, train_steps=1, share=1.0)
    report = compare_probes(sources(files, pairs=False), tmp_path / "out", settings)
    assert len(calls) == 2
    assert report["runs"]["attribution"] == report["runs"]["all"] == report["runs"]["random"]


def test_bounds_of_the_training(files: SmallPair, tmp_path: Path) -> None:
    settings = CompareSettings(("random",), seeds=1, train_steps=1, train_tokens=1)
    report = compare_probes(sources(files, pairs=False), tmp_path / "out", settings)
    assert report["texts"]["training"]["rows"] == 2
    assert {run["steps"] for runs in report["runs"].values() for run in runs} == {1}
    assert report["worth"]["all"]["heldout"]["nll"]["std"] is None
    with pytest.raises(ValueError, match="at least one probe and one seed"):
        compare_probes(sources(files, pairs=False), tmp_path / "no", CompareSettings(("random",), seeds=0))
    with pytest.raises(ValueError, match="training of 0 steps learns nothing"):
        compare_probes(sources(files, pairs=False), tmp_path / "no", CompareSettings(("random",), train_steps=0))
    assert not (tmp_path / "no").exists()


def test_too_little_text_is_said(files: SmallPair, tmp_path: Path) -> None:
    given = sources(files, pairs=False)
    short = ProbeSources(given.model, given.tokenizer, given.text.subset([0, 1]), given.components)
    with pytest.raises(ValueError, match="2 rows of text are too few to compare probes on"):
        compare_probes(short, tmp_path / "out", CompareSettings(("random",), seeds=1))
    assert not (tmp_path / "out").exists()


def test_pairs_that_show_held_out_rows_are_left_out() -> None:
    def rows(*ids: list[int]) -> TokenSet:
        return TokenSet.from_rows(ids, pad=0, name="rows", starts=[2] * len(ids))

    long = list(range(20, 30))
    heldout = rows([5, 6, 7], [8, 9, *long])
    right = rows([5, 6, 7, 8], [5, 6], [1, 2, 3], [1, 2, 4], [1, 2, 5])
    wrong = rows([5, 6, 90], [5, 6, 91], [1, 2, *long], [1, 2, 7], [1, 2, *long, 3])
    kept = pairs_apart(PairSet(right, wrong), heldout)
    assert kept.positive.ids[:, :3].tolist() == [[1, 2, 4], [1, 2, 5]]
    assert kept.negative.lengths.tolist() == [3, 13]
    whole = PairSet(right.subset([3]), wrong.subset([3]))
    assert pairs_apart(whole, heldout) is whole
    with pytest.raises(ValueError, match="all 2 pairs are rows that are held out"):
        pairs_apart(PairSet(right.subset([0, 2]), wrong.subset([0, 2])), heldout)


def test_the_verb_compares(files: SmallPair, tmp_path: Path) -> None:
    text = tmp_path / "other.txt"
    text.write_text(" ".join(sentence(30) for _ in range(4)))
    arguments = ("probe", *files.arguments, "--compare", "perplexity, random", "--seeds", 2, "--train-steps", 1,
                 "--eval-text", text, "--eval-tokens", 30, "--tokens", 50)  # fmt: skip
    report = succeed(*arguments, "--out", tmp_path / "a")
    assert report["settings"]["probes"] == ["perplexity", "random"]
    assert report["texts"]["other"]["tokens"] <= 30
    assert report["texts"]["probe"]["tokens"] <= 50
    assert report["files"]["pruned"]["path"] == str(files.pruned)
    refuse(*arguments, "--out", tmp_path / "a", words="--overwrite")
    shown = invoke(*arguments, "--out", tmp_path / "b")
    assert shown.exit_code == 0, shown.output
    for words in ("untouched", "perplexity", "random", "all", "Spearman", f"{tmp_path / 'b'}: report.json"):
        assert words in shown.stdout
    assert max(map(len, shown.stdout.splitlines())) <= 120
    assert json.loads((tmp_path / "b" / "report.json").read_text())["spearman"] == report["spearman"]


def test_spearman_shares_the_ranks_of_ties() -> None:
    def plain(a: torch.Tensor, b: torch.Tensor) -> float:
        def ranks(x: torch.Tensor) -> torch.Tensor:
            return torch.stack([(x < v).sum() + ((x == v).sum() - 1) / 2 for v in x]).double()

        return float(torch.corrcoef(torch.stack([ranks(a), ranks(b)]))[0, 1])

    a, b = torch.randint(0, 6, (40,)).double(), torch.randint(0, 9, (40,)).double()
    assert spearman(a, b) == pytest.approx(plain(a, b), abs=1e-12)
    x = torch.randn(5, 7).double()
    assert spearman(x, x.exp()) == pytest.approx(1)
    assert spearman(x, -x) == pytest.approx(-1)
    assert spearman(x, torch.zeros_like(x)) is None
    with pytest.raises(ValueError, match=r"\[5, 7\] and \[7, 5\]"):
        spearman(x, x.T)


def test_overlap_and_agreement() -> None:
    a = torch.tensor([[True, True, False, False]])
    b = torch.tensor([[True, False, True, False]])
    assert overlap(a, b) == 0.5
    nobody, everybody = torch.zeros_like(a), torch.ones_like(a)
    assert decided_agreement(a, nobody, b) == 0.5
    assert decided_agreement(a, torch.tensor([[False, True, True, False]]), b) == 1
    assert decided_agreement(a, everybody, b) is None
