"""Compiled decoding: the logits and the text of the same model in eager mode, and one sentence where it cannot."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_calls import refuse, succeed
from runtime_cases import IDS, greedy, logits, some_compensation, stock
from torch import Tensor

import restorelcc
from restorelcc.adapter import save_adapter
from restorelcc.compiled_decoding import CompiledDecoder, compile_decode
from restorelcc.models import load_model, save_checkpoint
from restorelcc.pack_checkpoint import pack_checkpoint

# torch's own, when inductor is imported.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")

needs_compiler = pytest.mark.skipif(
    all(shutil.which(name) is None for name in ("g++", "clang++", "c++")), reason="torch.compile needs a C++ compiler"
)


@pytest.fixture(scope="module")
def path(pruned: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen2, whose joined q, k and v have biases, in fp32 with two compensations that apply by name."""
    source, at = pruned("qwen2"), tmp_path_factory.mktemp("compiled")
    named = {}
    for seed, name in enumerate(("law", "tax"), 1):
        save_adapter(source, some_compensation(source, seed), at / name)
        named[name] = at / name
    pack_checkpoint(str(source), at / "packed", values="fp32", compensations=named)
    return at / "packed"


@pytest.fixture(scope="module")
def decoder(path: Path) -> CompiledDecoder:
    """One graph for batch 1 and one for batch 3, shared by the tests."""
    return compile_decode(restorelcc.load(path))


def expected_logits(model: Any, prompt: Tensor, text: Tensor) -> Tensor:
    return logits(model, torch.cat([prompt, text], 1))[:, prompt.shape[1] :].float()


@needs_compiler
def test_the_text_and_the_logits_of_eager(decoder: CompiledDecoder) -> None:
    prompt = IDS[:1]
    ids = decoder.generate(prompt, max_new_tokens=12)
    assert torch.equal(ids, greedy(decoder.model, prompt))
    text = ids[:, prompt.shape[1] :]
    torch.testing.assert_close(
        decoder.step_logits(prompt, text), expected_logits(decoder.model, prompt, text), rtol=1e-4, atol=1e-4
    )


@needs_compiler
def test_each_sequence_with_its_own_compensation(decoder: CompiledDecoder) -> None:
    """The choice changes between two calls of one graph."""
    text = torch.arange(9).reshape(3, 3) + 10
    for names in (["law", "tax", None], [None, "law", "law"]):
        with restorelcc.compensations(decoder.model, names):
            found, wanted = decoder.step_logits(IDS, text), expected_logits(decoder.model, IDS, text)
            assert torch.equal(decoder.generate(IDS, max_new_tokens=6), greedy(decoder.model, max_new_tokens=6))
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@needs_compiler
def test_siblings_are_one_product_in_the_graph(decoder: CompiledDecoder) -> None:
    layers = decoder.model.config.num_hidden_layers
    assert products_of_a_step(decoder) == 4 * layers  # q+k+v, o, gate+up, down


@needs_compiler
def test_two_decoders_do_not_take_each_others_graphs(decoder: CompiledDecoder, path: Path) -> None:
    other = restorelcc.load(path)
    other.lm_head.weight.mul_(-1)
    for each in (compile_decode(other), decoder):
        ids = each.generate(IDS[:1], max_new_tokens=4)
        assert torch.equal(ids, greedy(each.model, IDS[:1], max_new_tokens=4))


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama-gqa", "opt"])
def test_other_architectures(kind: str, pruned: Callable[[str], Path], tmp_path: Path) -> None:
    pack_checkpoint(str(pruned(kind)), tmp_path / "packed", values="fp32")
    model = restorelcc.load(tmp_path / "packed")
    ids = compile_decode(model).generate(IDS[:1], max_new_tokens=5)
    assert torch.equal(ids, greedy(model, IDS[:1], max_new_tokens=5))


def products_of_a_step(decoder: CompiledDecoder) -> int:
    """How often one compiled step calls the op."""
    from torch.profiler import ProfilerActivity, profile

    decoder.prepare(1, 8)
    cache, slots = decoder._cache(8)
    one = torch.ones(1, 1, dtype=torch.long)
    with torch.no_grad():
        decoder.model(input_ids=one, use_cache=True, **{decoder._cache_name: cache})
        with profile(activities=[ProfilerActivity.CPU]) as run:
            decoder._step(one, one, cache, slots)
    return sum(event.name == "restorelcc::sparse_linear_inference" for event in run.events())


@needs_compiler
@pytest.mark.slow
def test_bf16_with_an_int8_head_stays_in_its_budget(pruned: Callable[[str], Path], tmp_path: Path) -> None:
    """|compiled − fp32| is at most twice |eager − fp32|."""
    source, text = pruned("llama-gqa"), torch.arange(10, 22)[None]
    exact = expected_logits(stock(source, torch.float32), IDS[:1], text)
    pack_checkpoint(str(source), tmp_path / "packed", values="bf16", lm_head="int8")
    model = restorelcc.load(tmp_path / "packed")
    error = (expected_logits(model, IDS[:1], text) - exact).abs().mean()
    assert (compile_decode(model).step_logits(IDS[:1], text) - exact).abs().mean() <= 2 * error


@needs_compiler
def test_ends_sampling_and_processors(decoder: CompiledDecoder) -> None:
    prompt = IDS[:1]
    plain = decoder.generate(prompt, max_new_tokens=12)[0]
    end = int(plain[len(IDS[0]) + 3])
    stopped = decoder.generate(prompt, max_new_tokens=12, eos_token_id=[end])[0]
    assert int(stopped[-1]) == end
    assert torch.equal(stopped, plain[: len(stopped)])
    assert end not in plain[len(IDS[0]) : len(stopped) - 1]

    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(decoder.generate(prompt, max_new_tokens=12, temperature=2.0))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])

    from transformers import RepetitionPenaltyLogitsProcessor

    ids = decoder.generate(prompt, max_new_tokens=12, processors=RepetitionPenaltyLogitsProcessor(1.5))
    assert torch.equal(ids, greedy(decoder.model, prompt, repetition_penalty=1.5))


def test_what_it_refuses(path: Path) -> None:
    model = restorelcc.load(path)
    decoder, mask = compile_decode(model), torch.ones_like(IDS)
    mask[0, :2] = 0
    with pytest.raises(ValueError, match="the prompts are padded, which compiled decoding does not support"):
        decoder.generate(IDS, mask)
    with pytest.raises(ValueError, match="at least one new one"):
        decoder.generate(IDS, max_new_tokens=0)
    model.lm_head.weight.mul_(2)
    with pytest.raises(ValueError, match="the model was changed since compile_decode"):
        decoder.generate(IDS)
    with pytest.raises(ValueError, match="takes no cache"):
        compile_decode(torch.nn.Linear(2, 2))


@needs_compiler
def test_stock_generate_is_as_before(path: Path, decoder: CompiledDecoder) -> None:
    """Tracing leaves nothing behind: not in the head's class, not in the attention."""
    decoder.generate(IDS[:1], max_new_tokens=2)
    assert type(decoder.model.lm_head) is torch.nn.Linear
    assert decoder.model.config._attn_implementation == "sdpa"
    assert torch.equal(greedy(decoder.model), greedy(restorelcc.load(path)))


@needs_compiler
def test_generate_compile_on_the_command_line(pruned: Callable[[str], Path], tmp_path: Path) -> None:
    source = pruned("llama-gqa")
    some_compensation(source, 1).save(tmp_path / "law.safetensors")
    named = {"law": tmp_path / "law.safetensors"}
    pack_checkpoint(str(source), tmp_path / "packed", values="fp32", compensations=named)
    ask = ("generate", tmp_path / "packed", "w5 w6 w7", "--max-new-tokens", "6", "--compensation", "law")
    compiled, plain = succeed(*ask, "--compile"), succeed(*ask)
    assert compiled["text"] == plain["text"]
    assert compiled["compile_seconds"] > 0 == plain["compile_seconds"]

    loaded = load_model(source)
    loaded.model.generation_config.no_repeat_ngram_size = 2
    save_checkpoint(loaded.model, loaded.tokenizer, tmp_path / "strict")
    words = "asks for no_repeat_ngram_size, which only stock generate() knows; leave --compile out"
    refuse("generate", tmp_path / "strict", "w5", "--compile", words=words)
