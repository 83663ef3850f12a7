"""benchmarks/llama_cpp_check.py with a stand-in for llama-cpp-python that computes the file's graph in float64."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from gguf_tokenizers import byte_level
from transformers import LlamaConfig, LlamaForCausalLM

from restorelcc.models import save_checkpoint

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path.append(str(BENCHMARKS))

import llama_cpp_check  # noqa: E402
from llama_cpp_check import Agreement  # noqa: E402

STAND_IN = """
import sys
sys.path.append({tests!r})
import torch
from gguf_graph import GgufFile

__version__, GGML_TYPE_F32 = "a stand-in", 0


class Llama:
    def __init__(self, *, model_path, type_k=1, type_v=1, **settings):
        assert settings["logits_all"] and not settings["flash_attn"] and settings["n_ctx"] == settings["n_batch"] == 16
        self.file, self.exact, self.scores = GgufFile(model_path), type_k == type_v == 0, None

    def reset(self):
        self.scores = None

    def eval(self, tokens):
        logits = self.file.logits(torch.tensor(tokens)).float()
        {fault}
        self.scores = (logits if self.exact else logits.half().float()).numpy()

    def tokenize(self, text, add_bos, special):
        from tokenizers import Tokenizer
        assert not add_bos and not special
        return Tokenizer.from_file({model!r}).encode(text.decode(), add_special_tokens=False).ids{cut}
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    torch.manual_seed(2)
    config = LlamaConfig(
        vocab_size=265, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, attention_bias=True, mlp_bias=True,
    )  # fmt: skip
    made = LlamaForCausalLM(config)
    for parameter in made.parameters():
        parameter.data.normal_(std=0.4)
    save_checkpoint(made, byte_level(), tmp_path / "model")
    (tmp_path / "text.txt").write_text("he said hello 12 times\n\n" * 40)
    return tmp_path / "model"


def run(model: Path, monkeypatch: pytest.MonkeyPatch, *, fault: str = "", cut: str = "", **more: str) -> int:
    place = model.parent / "stand_in"
    place.mkdir()
    text = STAND_IN.format(tests=str(Path(__file__).parent), model=str(model / "tokenizer.json"), fault=fault, cut=cut)
    (place / "llama_cpp.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(place))
    options = {"text": model.parent / "text.txt", "window": 16, "tokens": 64, "json": model.parent / "r.json", **more}
    return llama_cpp_check.main([str(model), *(f"--{name}={value}" for name, value in options.items())])


def test_a_right_file_passes(model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(model, monkeypatch, markdown=str(model.parent / "r.md")) == 0
    result = json.loads((model.parent / "r.json").read_text())
    exact, *rounded = result["cases"]
    assert exact["name"] == "f32, cache float32"
    assert exact["error"] <= 1e-5 * exact["largest"]
    assert exact["same_top"] == exact["tokens"] == 64
    assert [case["name"] for case in rounded] == [f"{kind}, cache float16" for kind in ("f32", "bf16", "f16")]
    for case in rounded:
        assert exact["error"] < case["error"]
        assert exact["kl_sum"] < case["kl_sum"] < 1
        assert case["nll_sum"] == pytest.approx(result["stock_nll_sum"], rel=0.05)
    assert rounded[1]["error"] > rounded[2]["error"], "bfloat16 has fewer digits"
    assert result["alike"] == result["texts"] == 40
    said = capsys.readouterr().out
    assert "40 of 40 texts are cut alike; tokenizer: byte-level BPE (gpt-2)" in said
    assert (model.parent / "r.md").read_text().startswith("| file | largest error")


def test_wrong_logits_and_another_cut_fail(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(model, monkeypatch, fault="logits[3, 5] += 0.02", cut="[1:]", types="f32") == 1
    said = capsys.readouterr().out
    assert "FAILED: f32, cache float32: logits differ by" in said
    assert "FAILED: 40 of 40 texts are cut otherwise than by the stock tokenizer" in said


def test_a_file_that_cannot_be_read_is_said(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match=r"llama.cpp did not read .*f32.gguf \(f32, cache float32\): ValueError: no"):
        run(model, monkeypatch, fault='raise ValueError("no")')


def test_types_that_are_not_there_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        llama_cpp_check.parse(["model", "--types", "f32,q8_0"])
    assert "--types has q8_0; give some of f32, bf16, f16" in capsys.readouterr().err


def test_the_divergence_is_the_definition() -> None:
    stock, theirs = torch.randn(5, 7), torch.randn(5, 7)
    ids = torch.tensor([1, 2, 3, 4, 5])
    found = Agreement("x")
    found.add(ids, stock, theirs)
    p, q = (logits.double().softmax(-1) for logits in (stock, theirs))
    assert found.kl_sum == pytest.approx(float((p * (p / q).log()).sum()))
    assert found.nll_sum == pytest.approx(-sum(float(q[i, ids[i + 1]].log()) for i in range(4)))
    assert found.same_top == int((stock.argmax(-1) == theirs.argmax(-1)).sum())
    theirs[0, 0] = torch.nan
    found.add(ids, stock, theirs)
    assert found.error == torch.inf, "no number passes no budget"
