"""What a repeated call reuses: nothing that was damaged since, and never while another call works there."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from restorelcc import cli
from restorelcc import moments as moments_module
from restorelcc.artifacts import atomic_directory
from restorelcc.layer_pairs import LayerPair
from restorelcc.moments import Moments, collect_moments
from restorelcc.restore import restore
from restorelcc.resume import is_finished, mark_finished, only_call, read_record
from restorelcc.text import TokenSet


def run(pair: tuple[Path, Path], words: Path, out: Path, **more: Any) -> dict[str, torch.Tensor]:
    restore(*pair, out, recipe="compensate", heads=0.5, data=words, tokens=256, window=16, overwrite=True, **more)
    return load_file(out / "compensation.safetensors")


def flip(path: Path) -> None:
    """One bit of the last kilobyte, the size and the header stay."""
    data = bytearray(path.read_bytes())
    data[-9] ^= 0x20
    path.write_bytes(data)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def other_types(path: Path) -> None:
    path.write_text(json.dumps([1, "two"]))


@pytest.mark.parametrize("name", [
    "text.safetensors", "text.json", "moments.safetensors", "moments.json", "scores_attribution.safetensors",
    "scores_attribution.json", "compensation.safetensors", "compensation.json", "training.json",
])  # fmt: skip
@pytest.mark.parametrize("damage", [flip, truncate, other_types, Path.unlink])
def test_damaged_step_files_are_made_again(
    name: str, damage: Callable[[Path], None], pair: tuple[Path, Path], words: Path, tmp_path: Path
) -> None:
    want = run(pair, words, tmp_path / "out", train="none")
    damage(tmp_path / "out.work" / name)
    got = run(pair, words, tmp_path / "out", train="none")
    assert torch.equal(want["vectors"], got["vectors"])


@pytest.mark.parametrize("damaged", ["progress.json", "layer_0000.safetensors", "hidden_pruned_1.f32"])
@pytest.mark.parametrize("damage", [truncate, other_types, Path.unlink])
def test_killed_moments_with_damaged_scratch_begin_again(
    damaged: str,
    damage: Callable[[Path], None],
    pair: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ids = torch.randint(3, 96, (4, 12), generator=torch.Generator().manual_seed(0))
    tokens = TokenSet(ids, torch.full((4,), 12), torch.ones(4, dtype=torch.long), "random")
    want = collect_moments(*pair, tokens, out=tmp_path / "whole.safetensors")
    stock = moments_module._one_layer

    def killed(pair: LayerPair, *rest: Any) -> Any:
        if pair.index == 1:
            raise KeyboardInterrupt
        return stock(pair, *rest)

    out = tmp_path / "killed.safetensors"
    monkeypatch.setattr(moments_module, "_one_layer", killed)
    with pytest.raises(KeyboardInterrupt):
        collect_moments(*pair, tokens, out=out)
    monkeypatch.undo()
    damage(tmp_path / "killed.safetensors.work" / damaged)
    collect_moments(*pair, tokens, out=out)
    got = Moments.load(out)
    assert torch.equal(want.total, got.total)
    assert torch.equal(want.gram, got.gram)
    assert sorted(os.listdir(tmp_path)) == ["killed.safetensors", "whole.safetensors"]


def test_two_calls_in_one_place(pair: tuple[Path, Path], words: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with only_call(tmp_path / "out.work", out), pytest.raises(ValueError, match="another process is making"):
        run(pair, words, out)
    assert sorted(os.listdir(tmp_path)) == ["words.txt"]
    run(pair, words, out, train="none")


def test_a_directory_that_appeared_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def make() -> None:
        with atomic_directory(out) as partial:
            (partial / "late").write_text("2")
            out.mkdir()
            (out / "first").write_text("1")

    with pytest.raises(ValueError, match="appeared while"):
        make()
    assert os.listdir(out) == ["first"]
    assert os.listdir(tmp_path) == ["out"]


def test_an_output_that_is_a_file(pair: tuple[Path, Path], words: Path) -> None:
    with pytest.raises(ValueError, match=r"words\.txt"):
        run(pair, words, words)


def test_records(tmp_path: Path) -> None:
    file, mark = tmp_path / "a", tmp_path / "a.json"
    assert read_record(mark) == {}
    file.write_text("1")
    assert not is_finished(mark, "stamp", file)
    mark_finished(mark, "stamp", file)
    assert is_finished(mark, "stamp", file)
    assert not is_finished(mark, "other", file)
    file.write_text("22")
    assert not is_finished(mark, "stamp", file)
    file.unlink()
    assert not is_finished(mark, "stamp", file)


def test_what_another_version_left_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, mark = tmp_path / "step.bin", tmp_path / "step.json"
    file.write_bytes(b"made")
    mark_finished(mark, "stamp", file)
    assert is_finished(mark, "stamp", file)
    monkeypatch.setattr("restorelcc.resume.code_stamp", lambda: "of another version")
    assert not is_finished(mark, "stamp", file)


def test_a_refused_second_call_converts_no_model(
    pair: tuple[Path, Path], words: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would replace the converted dense model that the first call reads, layer by layer."""
    monkeypatch.setattr(cli, "as_directory", lambda *_: pytest.fail("a model was converted"))
    work = tmp_path / "out.work"
    work.mkdir()
    with only_call(work, tmp_path / "out"):
        found = CliRunner().invoke(
            cli.cli, ["restore", "--dense", str(pair[0]), "--pruned", str(pair[1]), "--out", str(tmp_path / "out"),
                      "--data", str(words)],
        )  # fmt: skip
    assert found.exit_code != 0
    assert "another process is making" in f"{found.output}{found.exception}"
