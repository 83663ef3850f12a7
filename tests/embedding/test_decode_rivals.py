"""benchmarks/decode_rivals.py: that it judges and times every contender on the same ids. No times."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from decode_program import Decoder
from llamas import Packed, load_stock, logits_of

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.append(str(BENCHMARKS))

import decode_rivals  # noqa: E402

Tiny = Callable[[str, str], Packed]

# As llama.cpp's prints it, but for the fields that are not read.
FAKE_BENCH = """#!{python}
import json, sys
arguments = dict(zip(sys.argv[1::2], sys.argv[2::2]))
assert arguments["-p"] == "0" and arguments["-t"] == "1" and arguments["-m"].endswith("some.gguf"), arguments
print(json.dumps([{{"build_commit": "abc", "n_gen": int(arguments["-n"]), "avg_ns": 1000000 * int(arguments["-n"])}}]))
"""


def with_tokenizer(model: Path, folder: Path) -> Path:
    """A copy of a model directory that has a tokenizer."""
    from restoration_models import small_tokenizer

    folder.mkdir()
    for path in model.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    small_tokenizer().save_pretrained(folder)  # type: ignore[attr-defined]
    return folder


def test_the_script_runs(decoder: Decoder, tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny("biased", "fp32")
    packed = with_tokenizer(model.packed, tmp_path / "packed")
    dense = with_tokenizer(model.checkpoint, tmp_path / "dense")
    bench, gguf, text, out = (tmp_path / name for name in ("bench", "some.gguf", "text.txt", "run.json"))
    bench.write_text(FAKE_BENCH.format(python=sys.executable))
    bench.chmod(0o700)
    gguf.write_bytes(b"x" * 1000)
    text.write_text(" ".join(f"w{i % 90 + 3}" for i in range(64)))
    decode_rivals.main([
        "--decode", str(decoder.path), "--packed", f"tiny={packed}", "--dense", str(dense),
        "--gguf", str(gguf), "--llama-bench", str(bench), "--text", str(text), "--text-tokens", "64", "--window", "32",
        "--new-tokens", "6", "--threads", "1", "--seconds", "0", "--json", str(out),
    ])  # fmt: skip
    report = json.loads(out.read_text(encoding="utf-8"))
    ours, stock, llama = report["results"]
    assert [one["name"] for one in report["results"]] == ["ours tiny", "transformers dense bf16", "llama.cpp some"]
    assert not any("failed" in one for one in report["results"])
    assert len(ours["new"]) == len(stock["new"]) == 6
    assert ours["zeros"] == "50%"
    for one in (ours, stock):
        assert 0 < one["token_seconds"]["p50"] <= one["token_seconds"]["p95"] <= one["token_seconds"]["p99"]
    assert "token_seconds" not in llama  # llama-bench does not say
    assert llama["perplexity"] is None
    assert llama["seconds"]["median"] == pytest.approx(1e-3)
    assert stock["perplexity"] == pytest.approx(ours["perplexity"], rel=0.05)  # bf16 for fp32
    assert "| llama.cpp some | 0 % | 0 | 1000.0 [1000.0, 1000.0]† | – | – |" in capsys.readouterr().out


def test_percentiles() -> None:
    assert decode_rivals.percentiles([float(i) for i in range(100, 0, -1)]) == {"p50": 50, "p95": 95, "p99": 99}
    assert decode_rivals.percentiles([3.0]) == {"p50": 3, "p95": 3, "p99": 3}


def test_the_programs_nll_is_the_models(decoder: Decoder, tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    from decode_engines import Program

    model, ids = tiny("biased", "fp32"), [1, 5, 9, 2, 7]
    monkeypatch.setenv("RLCC_DECODE", str(decoder.path))
    logits = logits_of(load_stock(model.checkpoint, torch.float32, torch.float64), ids).log_softmax(-1)
    exact = -sum(float(logits[i, token]) for i, token in enumerate(ids[1:]))
    assert [one.name for one in decode_rivals.contenders(
        decode_rivals.parse(["--decode", str(decoder.path), "--packed", f"a={model.packed}", "--huge-pages"])
    )] == ["ours a", "ours a, huge pages"]  # fmt: skip
    engine = Program(str(model.packed), 1, None)
    assert engine.row_nll(ids) == pytest.approx(exact, rel=1e-5)
    assert len(engine.sample(ids, 4)["new"]) == 4


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--packed", "nameless"],
        ["--packed", "a=b", "--gguf", "x.gguf"],
        ["--packed", "a=b", "--decode", "no-such-program"],
    ],
)
def test_calls_that_cannot_run(words: list[str], decoder: Decoder) -> None:
    with pytest.raises(SystemExit):
        decode_rivals.parse(["--decode", str(decoder.path), *words])
