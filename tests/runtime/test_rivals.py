"""The comparisons of benchmarks/ with other libraries: that they check results, keep turns and still run. No times."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.append(str(BENCHMARKS))

import alternating  # noqa: E402
import projection_rivals  # noqa: E402
import whole_model_rivals  # noqa: E402
from projection_engines import Contenders  # noqa: E402
from projection_problem import Case, bfloat16_values, problem, pruned_weight  # noqa: E402
from whole_model_engines import Model  # noqa: E402


def test_options_name_shapes_by_size_and_by_layer() -> None:
    options = projection_rivals.parse(["--shape", "8x16", "--shape", "Llama-2-7B-gate_up_proj", "--rows", "1,4"])
    assert options.shapes == [(8, 16), (11008, 4096)]
    assert options.rows == [1, 4]
    with pytest.raises(SystemExit):
        projection_rivals.parse(["--ops", "forward,backward"])


def test_bfloat16_is_rounded_as_torch_does() -> None:
    values = torch.randn(1000) * torch.logspace(-30, 30, 1000)
    assert torch.equal(torch.from_numpy(bfloat16_values(values.numpy())), values.bfloat16().float())


@pytest.mark.parametrize("pattern", ["0.5", "2:4"])
def test_weights_are_pruned(pattern: str) -> None:
    weight = pruned_weight(64, 128, pattern)
    assert (weight == 0).mean() == pytest.approx(0.5, abs=0.03)
    if pattern == "2:4":
        assert ((weight.reshape(-1, 4) != 0).sum(1) <= 2).all()


@pytest.mark.parametrize("op", ["forward", "grad_x"])
def test_a_wrong_result_is_refused(op: str) -> None:
    given = problem(Case(64, 128, "0.5", 20, op))
    weight = given.weight.astype("float64")
    right = given.given @ weight.T + given.bias if op == "forward" else given.given @ weight
    assert given.check(right, "fp32", "fp32")["error"] < 1e-9
    for kind in ("fp32", "bf16", "int8"):
        wrong = right.copy()
        wrong[-1, 3] += 2 * given.allowed(kind, "bf16" if kind == "int8" else kind)
        with pytest.raises(ValueError, match="from float64"):
            given.check(wrong, kind, "bf16" if kind == "int8" else kind)


KINDS = {"ours": ["fp32", "bf16", "fp16", "int8"], "torch": ["fp32", "bf16 native", "fp32 csr"]}


@pytest.mark.parametrize(("engine", "kinds"), KINDS.items())
def test_engines_are_right_on_every_weight(engine: str, kinds: list[str]) -> None:
    worker = Contenders(engine)
    worker.start(threads=1)
    try:
        for kind in kinds:
            for case in ({}, {"op": "grad_x"}, {"groups": 3}):
                if engine == "torch" and (case.get("groups") or "csr" in kind):
                    continue
                shape = {"outputs": 40, "inputs": 130, "pattern": "0.5", "rows": 3, "cold_bytes": 1 << 16}
                report = worker.prepare(kind, "a", {**shape, **case})
                assert report["error"] <= report["allowed"]
                assert len(worker.burst("a", 0.0)["times"]) == 1
        assert worker.drop() == {}
    finally:
        torch.set_grad_enabled(True)


def burst(*times: float, interrupted: tuple[int, ...] = ()) -> dict[str, Any]:
    return {"times": times, "interrupted": interrupted, "idle": 0.0}


def test_disturbed_calls_do_not_count_and_are_no_ground_for_a_ratio() -> None:
    ours, rival, unlucky = alternating.Samples(), alternating.Samples(), alternating.Samples()
    for _ in range(alternating.LEAST_BURSTS):
        ours.add(burst(1.0, 1.0, 50.0, interrupted=(2,)))
        rival.add(burst(2.0, 2.0))
        unlucky.add(burst(9.0, interrupted=(0,)))
    assert ours.summary()["median"] == ours.summary()["q3"] == 1.0
    assert alternating.ratio(rival, ours) == {"median": 2.0, "q1": 2.0, "q3": 2.0, "rounds": alternating.LEAST_BURSTS}
    assert alternating.ratio(unlucky, ours) is None
    assert unlucky.summary()["disturbed"]
    assert "†" in projection_rivals.duration(unlucky.summary())


def test_contenders_take_turns() -> None:
    order: list[str] = []

    def of(name: str) -> Callable[[], dict[str, Any]]:
        def run() -> dict[str, Any]:
            order.append(name)
            return burst(1.0)

        return run

    alternating.alternate({"a": of("a"), "b": of("b")}, [], seconds=0.0)
    assert order == ["a", "b"] * alternating.LEAST_BURSTS


def test_a_worker_reports_what_it_cannot_do() -> None:
    worker = alternating.Worker("x", [sys.executable, str(BENCHMARKS / "projection_engines.py"), "deepsparse"])
    try:
        with pytest.raises(alternating.WorkerError, match="KeyError"):
            worker.ask("burst", key="never prepared", seconds=0.0)
    finally:
        worker.close()
    gone = alternating.Worker("y", [sys.executable, "-c", ""])
    with pytest.raises(alternating.WorkerError, match="exit code 0"):
        gone.ask("start", threads=1)
    gone.close()


def test_the_script_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run.json"
    projection_rivals.main([
        "--shape", "64x128", "--rows", "1", "--seconds", "0.01", "--threads", "1", "--cold-mb", "1", "--ops",
        "forward,mixed", "--only", "ours (bf|int)", "--json", str(out), "--markdown", str(tmp_path / "run.md"),
    ])  # fmt: skip
    report = json.loads(out.read_text(encoding="utf-8"))
    assert [r["contender"] for r in report["results"]] == [
        "ours bf16", "ours int8", "ours bf16 G=0", "ours int8 G=0", "ours bf16 G=64", "ours int8 G=64",
    ]  # fmt: skip
    assert all("failed" not in r and r["seconds"]["median"] > 0 for r in report["results"])
    assert "| ours bf16 |" in capsys.readouterr().out


def test_stock_models_are_judged_and_timed(pruned: Callable[[str], Path]) -> None:
    from restorelcc.models import load_model

    path = pruned("llama-head-dim")
    worker = Model("stock")
    assert "transformers" in worker.start(str(path), 1, "float32")
    ids = [1, 5, 9, 2, 7]
    model = load_model(path, dtype=torch.float32).model
    logits = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    exact = -sum(float(logits[i, token]) for i, token in enumerate(ids[1:]))
    assert worker.nll(ids)["nll"] == pytest.approx(exact, rel=1e-5)
    sample = worker.generate(ids, 6)
    assert len(sample["new"]) == 6
    assert sample["times"][0] > 0


def test_the_table_of_whole_models(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"x" * 2_000_000)
    one = whole_model_rivals.Contender("some", "llama", file)
    seconds = {"median": 0.02, "q1": 0.01, "q3": 0.04, "disturbed": True}
    records = [
        {"name": one.name, "zeros": "0 %", "weight_bytes": one.weight_bytes, "seconds": seconds, "perplexity": 17.5},
        {"name": "other", "zeros": "50 %", "weight_bytes": 5, "failed": "why"},
    ]
    text = whole_model_rivals.table(records, "3 tokens", 2)
    assert "| some | 0 % | 2 | 50.0 [25.0, 100.0]† | 17.50 |" in text
    assert "| other | 50 % | 0 | failed | |" in text
