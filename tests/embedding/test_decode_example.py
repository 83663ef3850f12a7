"""examples/decode against stock transformers in float64: logits of every position, and what it says greedily.

Budgets. fp32: |ours − float64| ≤ twice the worst that stock fp32 is off on the same tokens, plus 16 roundings of the
largest logit: both compute in fp32, in other orders. bf16: the program stores activations in bf16 but rounds less often
than the stock bf16 model (nothing between a product and its residual, or inside norm, rotation, attention and SwiGLU),
so the root mean square error of a position's logits may be 1.1 times the stock model's at the median position and 1.5
times at the tenth worst of a hundred; usually it is below. The worst position is no measure in bf16: a prompt of random
tokens has some where a rounding of one layer turns the next one's attention, and which model falls there is chance.
Greedy: where float64's two best tokens are further apart than twice the budget, ours is the best one.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from decode_program import Decoder, written
from llamas import KINDS, VOCABULARY, Packed, compensate, load_stock, logits_of, rounded_to_int8
from torch import Tensor

TOKENS = 200
Tiny = Callable[[str, str], Packed]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # a model so small only waits for more; put back by the fixture of all tests


def some_ids(count: int = TOKENS, vocabulary: int = VOCABULARY, seed: int = 5) -> list[int]:
    drawn: list[int] = torch.randint(3, vocabulary, (count,), generator=torch.Generator().manual_seed(seed)).tolist()
    return drawn


def worst(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).abs().max())


def error_of_positions(found: Tensor, exact: Tensor) -> Tensor:
    """[T] root mean square over the vocabulary"""
    return (found - exact).square().mean(dim=-1).sqrt()


def fp32_budget(
    model: Packed, ids: list[int], exact: Tensor, path: Path | None = None, name: str | None = None
) -> float:
    stored = model.dtype if path is None else torch.float32
    stock = load_stock(path or model.checkpoint, stored, torch.float32)
    if name is not None:
        compensate(stock, model.compensations[name])
    return 2 * worst(logits_of(stock, ids), exact) + 16 * 2.0**-24 * float(exact.abs().max())


def exact_logits(model: Packed, ids: list[int], name: str | None = None) -> Tensor:
    stock = load_stock(model.checkpoint, model.dtype, torch.float64)
    return logits_of(stock if name is None else compensate(stock, model.compensations[name]), ids)


@pytest.mark.parametrize("kind", KINDS)
def test_logits_in_fp32(kind: str, decoder: Decoder, tiny: Tiny, tmp_path: Path) -> None:
    model, ids = tiny(kind, "fp32"), some_ids()
    exact = exact_logits(model, ids)
    budget = fp32_budget(model, ids, exact)
    assert budget < 1e-3 * float(exact.std())
    for batch in (TOKENS, 37, 1):  # panels; blocks of the cache that begin anywhere; one token at a time
        ours = decoder.logits(model.packed, ids, tmp_path / "logits", "--batch", batch, "--compensation", "none")
        assert worst(ours, exact) <= budget, batch


@pytest.mark.parametrize("isa", ["scalar", "avx2", "avx512f", "avx512vbmi2", "avx512bf16"])
def test_every_instruction_set(isa: str, decoder: Decoder, tiny: Tiny, tmp_path: Path) -> None:
    model, ids = tiny("biased", "fp32"), some_ids()
    if decoder.run(model.packed, "--prompt-ids", "1", "--tokens", 1, isa=isa).returncode == 2:
        pytest.skip(f"this CPU or build has no {isa}")
    exact = exact_logits(model, ids)
    for batch in (64, 1):
        ours = decoder.logits(model.packed, ids, tmp_path / "logits", "--batch", batch, isa=isa)
        assert worst(ours, exact) <= fp32_budget(model, ids, exact)


@pytest.mark.parametrize("values", ["fp16", "bf16"])
@pytest.mark.parametrize("kind", ["biased", "wide-heads"])
def test_half_precision_values_with_fp32_activations(
    kind: str, values: str, decoder: Decoder, tiny: Tiny, tmp_path: Path
) -> None:
    model, ids = tiny(kind, values), some_ids()
    exact = exact_logits(model, ids)
    for batch in (TOKENS, 1):
        ours = decoder.logits(
            model.packed, ids, tmp_path / "logits", "--batch", batch, "--activations", "fp32", "--cache", "fp32"
        )
        assert worst(ours, exact) <= fp32_budget(model, ids, exact)


@pytest.mark.parametrize("kind", ["biased", "wide-heads", "plain", "partly-dense"])
def test_bf16_is_as_close_as_stock_bf16(kind: str, decoder: Decoder, tiny: Tiny, tmp_path: Path) -> None:
    model, ids = tiny(kind, "bf16"), some_ids()
    exact = exact_logits(model, ids)
    check_bf16(decoder, model, ids, exact, tmp_path)


def check_bf16(decoder: Decoder, model: Packed, ids: list[int], exact: Tensor, tmp_path: Path) -> None:
    stock = logits_of(load_stock(model.checkpoint, torch.bfloat16, torch.bfloat16), ids)
    places = torch.tensor([0.5, 0.9], dtype=torch.float64)
    allowed = torch.tensor([1.1, 1.5]) * error_of_positions(stock, exact).quantile(places)
    for batch in (64, 1):
        ours = decoder.logits(model.packed, ids, tmp_path / "logits", "--batch", batch)
        found = error_of_positions(ours, exact).quantile(places)
        assert bool((found <= allowed).all()), f"{found} > {allowed} with --batch {batch}"


def test_int8_is_the_rounded_model(decoder: Decoder, tiny: Tiny, tmp_path: Path) -> None:
    """With more than 16 tokens at once x is not rounded, and int8 values are just weights."""
    model, ids = tiny("biased", "int8"), some_ids()
    rounded = rounded_to_int8(model.checkpoint, tmp_path)
    exact = logits_of(load_stock(rounded, torch.float32, torch.float64), ids)
    ours = decoder.logits(model.packed, ids, tmp_path / "logits", "--batch", TOKENS)
    assert worst(ours, exact) <= fp32_budget(model, ids, exact, rounded)


@pytest.mark.parametrize("values", ["int8", "int8+head"])
def test_int8_token_by_token(values: str, decoder: Decoder, tiny: Tiny, tmp_path: Path) -> None:
    """x is rounded to 8 bits in every product here: an error of some 0.5 % each, 4 % of the spread of the logits."""
    model, ids = tiny("biased", values), some_ids()
    exact = logits_of(load_stock(rounded_to_int8(model.checkpoint, tmp_path), torch.float32, torch.float64), ids)
    ours = decoder.logits(model.packed, ids, tmp_path / "logits", "--batch", 1)
    assert float((ours - exact).square().mean().sqrt()) <= 0.04 * float(exact.std())


@pytest.mark.parametrize("kind", ["biased", "plain"])
def test_a_compensation_by_name(kind: str, decoder: Decoder, tiny: Tiny, tmp_path: Path) -> None:
    model, ids = tiny(kind, "fp32"), some_ids()
    exact = exact_logits(model, ids, "law")
    budget = fp32_budget(model, ids, exact, name="law")
    for batch in (TOKENS, 1):
        ours = decoder.logits(model.packed, ids, tmp_path / "logits", "--compensation", "law", "--batch", batch)
        assert worst(ours, exact) <= budget
    assert worst(exact_logits(model, ids), exact) > 100 * budget


@pytest.mark.parametrize(
    ("kind", "words"), [("biased", ()), ("wide-heads", ("--threads", 3)), ("plain", ("--batch", 5))]
)
def test_greedy_tokens(kind: str, words: tuple[object, ...], decoder: Decoder, tiny: Tiny) -> None:
    check_greedy(decoder, tiny(kind, "fp32"), some_ids(9), words, new=60)


def check_greedy(decoder: Decoder, model: Packed, prompt: list[int], words: tuple[object, ...], new: int) -> None:
    report = decoder.generate(model.packed, prompt, new, *words)
    ids = [*prompt, *report["ids"]]
    assert len(report["ids"]) == new
    exact = exact_logits(model, ids[:-1])
    budget = fp32_budget(model, ids[:-1], exact)
    best = exact[len(prompt) - 1 :].topk(2, dim=-1)
    clear = best.values[:, 0] - best.values[:, 1] > 2 * budget
    assert int(clear.sum()) > new // 2
    assert torch.equal(torch.tensor(report["ids"])[clear], best.indices[:, 0][clear])


def test_the_text_ends_with_an_end_token(decoder: Decoder, tiny: Tiny, tmp_path: Path) -> None:
    model = tiny("biased", "fp32")
    said = decoder.generate(model.packed, [1, 5, 9], 8)["ids"]
    copy = tmp_path / "ends"
    copy.mkdir()
    for path in model.packed.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    settings = json.loads((copy / "generation_config.json").read_text())
    (copy / "generation_config.json").write_text(json.dumps({**settings, "eos_token_id": [said[2], 319]}))
    done = decoder.run(copy, "--prompt-ids", "1,5,9", "--tokens", 8)
    assert done.stdout.strip() == written(said[: said.index(said[2]) + 1])
    assert decoder.generate(copy, [1, 5, 9], 8)["ids"] == said  # --ignore-eos


def test_the_report_adds_up(decoder: Decoder, tiny: Tiny) -> None:
    report = decoder.generate(tiny("biased", "bf16").packed, [1, 5, 9], 12, "--threads", 2)
    assert report["prompt_tokens"] == 3
    assert len(report["ids"]) == report["new_tokens"] == 12
    assert len(report["all_token_seconds"]) == 11
    times = sorted(report["all_token_seconds"])
    assert report["token_seconds"] == {"p50": times[5], "p95": times[10], "p99": times[10]}
    assert report["tokens_per_second"] == pytest.approx(11 / sum(times), rel=1e-3)
    assert report["activations"] == report["cache"] == "bf16"
    assert report["threads"] == 2
    started = report["process_start_to_first_token_seconds"]
    assert started is None or started >= report["first_token_seconds"] - 0.02


def test_times_of_no_tokens_are_null(decoder: Decoder, tiny: Tiny, tmp_path: Path) -> None:
    model = tiny("biased", "bf16").packed
    one = decoder.generate(model, [1, 5, 9], 1)
    assert one["first_token_seconds"] > 0
    assert one["tokens_per_second"] is None
    assert one["token_seconds"] == {"p50": None, "p95": None, "p99": None}
    done = decoder.run(model, "--prompt-ids", "1,5,9", "--logits", tmp_path / "out", "--report", "json")
    assert json.loads(done.stdout)["first_token_seconds"] is None
    done = decoder.run(model, "--prompt-ids", "1,5,9", "--logits", tmp_path / "out")
    assert "token" not in done.stderr


def test_the_same_ids_for_any_number_of_threads(decoder: Decoder, tiny: Tiny, tmp_path: Path) -> None:
    model, ids = tiny("wide-heads", "bf16"), some_ids()
    one = decoder.logits(model.packed, ids, tmp_path / "logits", "--threads", 1)
    for threads in (2, 5):
        assert torch.equal(decoder.logits(model.packed, ids, tmp_path / "logits", "--threads", threads), one)


@pytest.mark.parametrize(("kind", "values"), [("biased", "bf16"), ("plain", "int8+head"), ("partly-dense", "fp32")])
def test_huge_pages_change_no_bit(kind: str, values: str, decoder: Decoder, tiny: Tiny, tmp_path: Path) -> None:
    model, ids = tiny(kind, values).packed, some_ids(40)
    if decoder.run(model, "--prompt-ids", "1", "--tokens", 1, "--huge-pages").returncode == 2:
        pytest.skip("this system gives no huge pages to who asks for them")
    mapped = decoder.logits(model, ids, tmp_path / "logits", "--batch", 25)
    assert torch.equal(decoder.logits(model, ids, tmp_path / "logits", "--batch", 25, "--huge-pages"), mapped)
    assert decoder.generate(model, ids, 9, "--huge-pages")["ids"] == decoder.generate(model, ids, 9)["ids"]


def test_a_prompt_from_a_file(decoder: Decoder, tiny: Tiny, tmp_path: Path) -> None:
    model = tiny("biased", "fp32").packed
    (tmp_path / "ids.txt").write_text(" 1, 5\n9\n")
    from_file = decoder.run(model, "--prompt-file", tmp_path / "ids.txt", "--tokens", 5)
    assert from_file.returncode == 0
    assert from_file.stdout == decoder.run(model, "--prompt-ids", "1,5,9", "--tokens", 5).stdout


def test_a_real_model(decoder: Decoder, real: Packed, tmp_path: Path) -> None:
    """Logits of 200 tokens of SmolLM2-135M in bf16 and fp32, its text, and that nothing of its size is copied."""
    ids = some_ids(vocabulary=49152)
    exact = exact_logits(real, ids)
    check_bf16(decoder, real, ids, exact, tmp_path)
    ours = decoder.logits(real.packed, ids, tmp_path / "logits", "--activations", "fp32")
    assert worst(ours, exact) <= fp32_budget(real, ids, exact)
    check_greedy(decoder, real, [1, 4093, 198, 9], ("--activations", "fp32"), new=24)
    memory = decoder.generate(real.packed, ids[:50], 50)["memory_bytes"]
    if memory["anonymous"] is None:
        pytest.skip("this system does not say what memory a process has")
    assert memory["anonymous"] - memory["cache"] <= 20e6
