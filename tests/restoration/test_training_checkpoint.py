"""Training that goes on where it was killed: the same bits as undisturbed, fewer steps, and nothing reused that is not
of this very run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from restorelcc import artifacts, training, tuning
from restorelcc.artifacts import SilentProgress
from restorelcc.recipes import RECIPES
from restorelcc.restore import restore
from restorelcc.step_runner import Steps
from restorelcc.training_checkpoint import Standing, TrainingCheckpoint
from restorelcc.training_loop import LoopResult, TrainingSettings, fit, schedule

SETTINGS = TrainingSettings(learning_rates=(0.02, 0.05), search_steps=3, evaluations=8, patience=4)
TARGETS = [torch.tensor([1.0, 1.0 + step / 7, 0.8]) for step in range(24)]
SEARCH = 2 * 3


class Killed(BaseException):
    """What no code catches, as a kill."""


class Pull:
    """Two leaves pulled to targets beyond what is held out at 0.5: the best state lies in the middle of the run."""

    steps = 0  # of all trainers

    def __init__(self, rate: float, steps: int, leaves: list[Tensor], killed_at: int) -> None:
        self.leaves, self.killed_at = leaves, killed_at
        with torch.no_grad():
            for leaf in leaves:
                leaf.zero_()
        self.optimiser = torch.optim.Adam(leaves, lr=rate, betas=(0.9, 0.95))
        self.schedule = schedule(self.optimiser, steps)

    def install(self) -> None:
        pass

    def state(self) -> list[Tensor]:
        return [leaf.detach().clone() for leaf in self.leaves]

    def step(self, batch: Tensor) -> float:
        if Pull.steps == self.killed_at:
            raise Killed
        Pull.steps += 1
        self.optimiser.zero_grad()
        loss = (self.leaves[0] - batch).square().sum() + (self.leaves[1] * batch[0] - 1).square().sum()
        loss.backward()
        self.optimiser.step()
        self.schedule.step()
        return float(loss.detach())


class Told(SilentProgress):
    """Notes total and advances of the task."""

    total: int
    advances: list[int]

    @contextmanager
    def task(self, description: str, total: int) -> Iterator[Callable[[int], None]]:
        assert description == "training"
        self.total, self.advances = total, []
        yield self.advances.append


def run(
    path: Path | None, *, stamp: str = "this run", killed_at: int = -1, size: int = 3, heldout: float = 0.5,
    settings: TrainingSettings = SETTINGS, seconds: float = 0.0, progress: SilentProgress | None = None,
) -> LoopResult:  # fmt: skip
    Pull.steps = 0
    leaves = [torch.zeros(size, requires_grad=True), torch.zeros(1, requires_grad=True)]
    return fit(
        lambda rate, steps: Pull(rate, steps, leaves, killed_at), [target[:size] for target in TARGETS],
        lambda: float((leaves[0].detach() - heldout).square().sum()), settings, progress or Told(),
        None if path is None else TrainingCheckpoint(path, stamp, seconds=seconds),
    )  # fmt: skip


def kill(path: Path, at: int, **more: Any) -> None:
    with pytest.raises(Killed):
        run(path, killed_at=at, **more)


def equal(ours: LoopResult, theirs: LoopResult) -> bool:
    return all(map(torch.equal, ours.state, theirs.state)) and (
        replace(ours, state=[]) == replace(theirs, state=[])
    )  # fmt: skip


def saved_step(killed_at: int) -> int:
    """Steps that a repeated call need not make: whole trials of the search, or all up to the last measurement."""
    return killed_at // 3 * 3


@pytest.mark.parametrize(("heldout", "kept"), [(0.5, "in the middle"), (-1.0, "the start"), (9.0, "the last")])
def test_killed_at_any_step_it_ends_with_the_same_bits(heldout: float, kept: str, tmp_path: Path) -> None:
    want = run(None, heldout=heldout)
    made = Pull.steps
    best = min(want.history, key=lambda row: row["heldout_nll"])["step"]
    last = want.history[-1]["step"]
    assert kept == ("the start" if best == 0 else "the last" if best == last else "in the middle")
    assert made == SEARCH + last
    assert (last < len(TARGETS)) == (kept == "the start"), "patience ends the run that never gains"
    for at in range(made):
        path = tmp_path / f"{at}.safetensors"
        kill(path, at, heldout=heldout)
        got = run(path, heldout=heldout)
        assert equal(got, want), at
        assert Pull.steps == made - saved_step(at), at


def test_killed_again_and_again(tmp_path: Path) -> None:
    want = run(None)
    for at in (4, 5, 4, 7):
        kill(tmp_path / "run", at)
    assert equal(run(tmp_path / "run"), want)
    assert Pull.steps == SEARCH + len(TARGETS) - 3 - 3 - 3 - 6


def test_it_saves_no_more_often_than_asked(tmp_path: Path) -> None:
    path = tmp_path / "run"
    kill(path, 20, seconds=3600.0)
    with safe_open(path, framework="pt") as file:
        assert list(file.keys()) == []
    want = run(None)
    assert equal(run(path), want)
    assert Pull.steps == len(TARGETS), "the search is saved at once"


def test_the_bar_counts_measurements_and_goes_on_in_the_right_place(tmp_path: Path) -> None:
    whole = Told()
    run(None, progress=whole)
    assert whole.total == sum(whole.advances) == 1 + 2 * (3 + 1) + len(TARGETS) + 8
    kill(tmp_path / "run", 20)
    rest = Told()
    run(tmp_path / "run", progress=rest)
    assert rest.total == sum(rest.advances) == whole.total
    assert rest.advances[0] == 1 + 2 * (3 + 1) + 12 + 4


@pytest.mark.parametrize("patience", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("evaluations", [5, 8])
def test_the_bar_of_a_run_that_patience_ends_is_full(patience: int, evaluations: int, tmp_path: Path) -> None:
    """With 5 measurements a run ends with an odd number of steps behind the last full stretch."""
    settings = replace(SETTINGS, patience=patience, evaluations=evaluations)
    whole = Told()
    result = run(None, heldout=-1.0, settings=settings, progress=whole)
    assert len(result.history) == 1 + min(patience, evaluations)
    assert sum(whole.advances) == whole.total
    if patience > 1:  # killed behind the first measurement
        kill(tmp_path / "run", SEARCH + -(-len(TARGETS) // evaluations), heldout=-1.0, settings=settings)
        rest = Told()
        run(tmp_path / "run", heldout=-1.0, settings=settings, progress=rest)
        assert sum(rest.advances) == rest.total == whole.total


def flip_data(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-2] ^= 0x10
    path.write_bytes(data)


def flip_record(path: Path) -> None:
    """A digit of the best NLL: the JSON stays whole."""
    data = path.read_bytes()
    at = data.index(rb"\"best\": 0.") + len(rb"\"best\": 0.")
    path.write_bytes(data[:at] + (b"1" if data[at : at + 1] == b"0" else b"0") + data[at + 1 :])


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def of_another_kind(path: Path) -> None:
    path.write_text(json.dumps([1, "two"]))


@pytest.mark.parametrize("damage", [
    flip_data, flip_record, truncate, of_another_kind, Path.unlink, lambda path: path.write_bytes(b""),
])  # fmt: skip
def test_a_damaged_checkpoint_counts_as_none(damage: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "run"
    want = run(None)
    made = Pull.steps
    kill(path, 20)
    damage(path)
    assert equal(run(path), want)
    assert Pull.steps == made


@pytest.mark.parametrize("other", [{"stamp": "another run"}, {"size": 2}])
def test_another_run_counts_as_none(other: dict[str, Any], tmp_path: Path) -> None:
    want = run(None, size=other.get("size", 3))
    made = Pull.steps
    kill(tmp_path / "run", 20)
    assert equal(run(tmp_path / "run", **other), want)
    assert Pull.steps == made


def test_where_nothing_can_be_written_it_trains_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert equal(run(tmp_path / "file" / "run"), run(None))


@pytest.mark.parametrize(("free", "saved"), [(1000 + 300 - 1, False), (1000 + 300, True)])
def test_it_leaves_the_room_of_the_result(
    free: int, saved: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """75 float32 numbers, not stepped yet: 300 bytes."""
    optimiser = torch.optim.Adam([torch.zeros(75, requires_grad=True)])
    checkpoint = TrainingCheckpoint(tmp_path / "run", "this run", leave=1000)
    monkeypatch.setattr(artifacts, "_free_bytes", lambda _: free)
    checkpoint.save_run(Standing(1.0, 1.0, step=1), optimiser, schedule(optimiser, 2), None)
    assert (tmp_path / "run").exists() == saved
    monkeypatch.setattr(artifacts, "_free_bytes", lambda _: 0)
    checkpoint.save(Standing(1.0, 1.0, search=[{"learning_rate": 0.5}]))
    found = checkpoint.load(optimiser, [torch.zeros(75)])
    assert found is not None, "the numbers alone take next to nothing"
    assert found.standing.search


# ---- in restore --------------------------------------------------------------------------------------------------

QUICK: dict[str, Any] = {
    "tokens": 512, "window": 16,
    "training": TrainingSettings(
        learning_rates=(0.002, 0.004), search_steps=2, batch_tokens=48, evaluations=4, patience=4
    ),
}  # fmt: skip
RECIPE = replace(RECIPES["best"], refit=None, own_text=0.0)


@pytest.fixture
def items(tmp_path: Path) -> Path:
    lines = [
        {"query": f"w{5 + i} w{30 + i} w{7 + i}", "choices": [f"w{40 + i % 7}", f"w{50 + i % 5} w9"], "gold": i % 2}
        for i in range(40)
    ]
    path = tmp_path / "items.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


class Counted:
    """Steps of a module's trainers; after `killed_at` of them the run dies."""

    def __init__(self, owner: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps, self.killed_at = 0, -1
        stock = owner._Trainer.step

        def step(trainer: Any, batch: Any) -> float:
            if self.steps == self.killed_at:
                raise Killed
            self.steps += 1
            loss: float = stock(trainer, batch)
            return loss

        monkeypatch.setattr(owner._Trainer, "step", step)

    def of(self, make: Callable[[], Any]) -> int:
        self.steps = 0
        make()
        return self.steps


def tensors(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= {f"{path.name}:{name}": value for name, value in load_file(path).items()}
    return found


def same(ours: Path, theirs: Path) -> bool:
    a, b = tensors(ours), tensors(theirs)
    assert a
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(("recipe", "step", "owner"), [
    (RECIPE, "tuning", tuning), ("compensate", "compensation", training), ("task", "compensation", training),
])  # fmt: skip
def test_restore_goes_on_inside_its_training(
    recipe: Any, step: str, owner: Any, pair: tuple[Path, Path], words: Path, items: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    counted = Counted(owner, monkeypatch)
    monkeypatch.setattr(Steps, "save_seconds", 0.0)
    data = items if recipe == "task" else words
    settings = replace(QUICK["training"], epochs=2.0 if recipe == "task" else 1.0)

    def call(name: str, **more: Any) -> Any:
        return restore(*pair, tmp_path / name, recipe=recipe, data=data, **{**QUICK, "training": settings, **more})

    report = call("whole")
    made = counted.steps
    length = made - 2 * 2
    every = -(-length // 4)
    assert report.history[-1]["step"] == length >= 8, "patience ends nothing here"
    counted.steps, counted.killed_at = 0, 4 + 2 * every + 1
    with pytest.raises(Killed):
        call("killed")
    counted.killed_at = -1
    unfinished = tmp_path / "killed.work" / f"{step}.unfinished.safetensors"
    (left := unfinished.with_name(f"{unfinished.name}.partial-1")).write_text("killed while it saved")
    kept = unfinished.read_bytes()
    assert counted.of(lambda: call("killed")) == length - 2 * every
    assert same(tmp_path / "killed", tmp_path / "whole")
    assert not unfinished.exists()
    assert not left.exists()

    assert counted.of(lambda: call("seed 1", seed=1)) == made
    (tmp_path / "other.work").mkdir()
    (tmp_path / "other.work" / unfinished.name).write_bytes(kept)
    assert counted.of(lambda: call("other", seed=1)) == made, "of another seed, so not of this run"
    assert same(tmp_path / "other", tmp_path / "seed 1")
    assert not same(tmp_path / "other", tmp_path / "whole")


def test_on_a_disk_with_room_for_the_result_alone_tuning_ends_with_it(
    pair: tuple[Path, Path], words: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Steps, "save_seconds", 0.0)
    saves: list[bool] = []
    stock = TrainingCheckpoint.save_run

    def save(checkpoint: TrainingCheckpoint, *rest: Any) -> None:
        stock(checkpoint, *rest)
        saves.append(any("adam" in name for name in load_file(checkpoint.path)))

    monkeypatch.setattr(TrainingCheckpoint, "save_run", save)

    def taken(*places: Path) -> int:
        return sum(file.stat().st_size for place in places for file in place.rglob("*") if file.is_file())

    restore(*pair, tmp_path / "whole", recipe=RECIPE, data=words, **QUICK)
    assert saves
    assert all(saves)
    saves.clear()
    disk = taken(tmp_path, *pair) + taken(tmp_path / "whole", tmp_path / "whole.work") + 20_000
    monkeypatch.setattr(artifacts, "_free_bytes", lambda _: disk - taken(tmp_path, *pair))
    restore(*pair, tmp_path / "tight", recipe=RECIPE, data=words, **QUICK)
    assert saves
    assert not any(saves)
    assert same(tmp_path / "tight", tmp_path / "whole")


KILLED = """
import sys, time
from dataclasses import replace
from pathlib import Path
from restorelcc.recipes import RECIPES
from restorelcc.restore import restore
from restorelcc.step_runner import Steps
from restorelcc.training_checkpoint import TrainingCheckpoint
from restorelcc.training_loop import TrainingSettings
Steps.save_seconds = 0.0
stock = TrainingCheckpoint.save_run
def save(*arguments):
    stock(*arguments)
    Path(sys.argv[5]).touch()
    time.sleep(600)
TrainingCheckpoint.save_run = save
dense, pruned, out, words = map(Path, sys.argv[1:5])
restore(dense, pruned, out, recipe=replace(RECIPES["best"], own_text=0.0), data=words, tokens=512, window=16,
        training=TrainingSettings(learning_rates=(0.002, 0.004), search_steps=2, batch_tokens=48, evaluations=4,
                                  patience=4))
"""


def test_a_killed_process_is_gone_on_from(
    pair: tuple[Path, Path], words: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL behind the first save of the tuning; refit and search are not made again either."""
    counted = Counted(tuning, monkeypatch)
    recipe = replace(RECIPES["best"], own_text=0.0)
    restore(*pair, tmp_path / "whole", recipe=recipe, data=words, **QUICK)
    length = counted.steps - 2 * 2
    at = tmp_path / "saved"
    command = [sys.executable, "-c", KILLED, *map(str, pair), str(tmp_path / "killed"), str(words), str(at)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=environment)
    while process.poll() is None and not at.exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    counted.steps = 0
    restore(*pair, tmp_path / "killed", recipe=recipe, data=words, **QUICK)
    assert counted.steps == length - -(-length // 4)
    assert same(tmp_path / "killed", tmp_path / "whole")
