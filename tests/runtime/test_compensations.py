"""Several compensations in one model: a mixed batch is the separate runs, and a wrong choice is refused."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ffn_sites import exact_logits, some_vectors
from runtime_cases import IDS, greedy, logits, some_compensation, stock

import restorelcc
from restorelcc.adapter import save_adapter
from restorelcc.compensated import CompensatedLinear, CompensationChoice
from restorelcc.compensation import apply_compensation
from restorelcc.fold import fold
from restorelcc.models import load_model
from restorelcc.pack_checkpoint import pack_checkpoint
from restorelcc.packed_model import save_packed

KINDS = ("llama-gqa", "llama-head-dim", "qwen2-sliding", "opt", "gpt_neox")


@pytest.fixture(scope="module")
def served(pruned: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """kind -> a packed fp32 model with the compensations law, medicine (adapters) and code (a file)."""
    made: dict[str, Path] = {}

    def build(kind: str) -> Path:
        if kind not in made:
            folder = tmp_path_factory.mktemp("served")
            for seed, name in enumerate(("law", "medicine"), start=1):
                save_adapter(pruned(kind), some_compensation(pruned(kind), seed), folder / name)
            some_compensation(pruned(kind), 3).save(folder / "code.safetensors")
            places = {"law": folder / "law", "medicine": folder / "medicine", "code": folder / "code.safetensors"}
            pack_checkpoint(str(pruned(kind)), folder / "packed", values="fp32", compensations=places)
            made[kind] = folder / "packed"
        return made[kind]

    return build


def choose(model: Any, names: Any, run: Callable[[], torch.Tensor]) -> torch.Tensor:
    with restorelcc.compensations(model, names):
        return run()


@pytest.mark.parametrize("kind", KINDS)
def test_each_compensation_is_the_hooked_model(kind: str, served: Any, pruned: Any) -> None:
    model = restorelcc.load(served(kind))
    assert restorelcc.compensation_names(model) == ["law", "medicine", "code"]
    plain = logits(stock(pruned(kind), torch.float32))
    bound = 1e-4 * float(plain.abs().max())
    torch.testing.assert_close(logits(model), plain, rtol=1e-4, atol=bound)  # none by default: none was unnamed
    for seed, name in enumerate(("law", "medicine", "code"), start=1):
        hooked = apply_compensation(load_model(pruned(kind)).model, some_compensation(pruned(kind), seed))
        found = choose(model, name, lambda: logits(model))
        torch.testing.assert_close(found, logits(hooked), rtol=1e-4, atol=bound)
        assert float((found - plain).abs().max()) > 100 * bound  # the choice is felt


@pytest.mark.parametrize("kind", KINDS)
def test_a_mixed_batch_is_its_separate_runs(kind: str, served: Any) -> None:
    model = restorelcc.load(served(kind))
    names = ["medicine", None, "law"]
    mixed = choose(model, names, lambda: logits(model))
    text = choose(model, names, lambda: greedy(model))
    for place, name in enumerate(names):
        alone = choose(model, [name], lambda place=place: logits(model, IDS[place : place + 1]))
        torch.testing.assert_close(mixed[place], alone[0], rtol=1e-5, atol=1e-5 * float(alone.abs().max()))
        spoken = choose(model, name, lambda place=place: greedy(model, IDS[place : place + 1]))
        assert torch.equal(text[place], spoken[0])


def test_the_same_rows_give_the_same_bits(served: Any) -> None:
    """Rows of a projection do not depend on their neighbours: same batch, other choice beside it, same bits."""
    model = restorelcc.load(served("llama-gqa"))
    one = choose(model, ["law", "medicine", None], lambda: logits(model))
    other = choose(model, ["law", None, "code"], lambda: logits(model))
    assert torch.equal(one[0], other[0])
    assert not torch.equal(one[1], other[1])


def test_beams_and_returned_sequences_take_the_compensation_of_their_sequence(served: Any) -> None:
    model = restorelcc.load(served("llama-gqa"))
    settings = {"num_beams": 3, "num_return_sequences": 2, "max_new_tokens": 6, "length_penalty": 0.0}
    together = choose(model, ["law", "code"], lambda: greedy(model, IDS[:2], **settings))
    for place, name in enumerate(("law", "code")):
        alone = choose(model, name, lambda place=place: greedy(model, IDS[place : place + 1], **settings))
        assert torch.equal(together[2 * place : 2 * place + 2], alone)


def test_one_without_a_name_is_the_default(pruned: Any, tmp_path: Path) -> None:
    source = pruned("llama-gqa")
    fold(source, some_compensation(source, 5), tmp_path / "restored")
    pack_checkpoint(str(source), tmp_path / "packed", values="fp32", compensations={"default": tmp_path / "restored"})
    model, expected = restorelcc.load(tmp_path / "packed"), logits(stock(tmp_path / "restored", torch.float32))
    bound = 1e-4 * float(expected.abs().max())
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=bound)
    plain = choose(model, None, lambda: logits(model))
    torch.testing.assert_close(plain, logits(stock(source, torch.float32)), rtol=1e-4, atol=bound)


def test_an_adapter_directory_packs_with_its_compensation(pruned: Any, tmp_path: Path) -> None:
    source = pruned("qwen2-sliding")  # no stock checkpoint has a place for the bias
    save_adapter(source, some_compensation(source, 6), tmp_path / "adapter")
    report = pack_checkpoint(str(tmp_path / "adapter"), tmp_path / "packed", values="fp32")
    assert report.default == "default"
    expected = logits(restorelcc.load(tmp_path / "adapter"))
    found = logits(restorelcc.load(tmp_path / "packed"))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_the_choice_ends_with_the_block_and_nests(served: Any) -> None:
    model = restorelcc.load(served("opt"))
    before = logits(model)
    with restorelcc.compensations(model, "law"):
        law = logits(model)
        with restorelcc.compensations(model, [None, "law", "code"]):
            assert torch.equal(logits(model)[1], law[1])
        assert torch.equal(logits(model), law)
        with pytest.raises(RuntimeError, match="stop"), restorelcc.compensations(model, "code"):
            raise RuntimeError("stop")
        assert torch.equal(logits(model), law)
    assert torch.equal(logits(model), before)


def test_what_does_not_fit_is_refused(served: Any, pruned: Any) -> None:
    model = restorelcc.load(served("llama-gqa"))
    with (
        pytest.raises(ValueError, match=r"no compensation 'tax' in this model; it has law, medicine, code"),
        restorelcc.compensations(model, ["law", "tax"]),
    ):
        pass
    with pytest.raises(ValueError, match="chosen for 2 sequences, the batch has 3"):
        choose(model, ["law", None], lambda: logits(model))
    with pytest.raises(ValueError, match="no compensation was chosen"), restorelcc.compensations(model, []):
        pass
    plain = restorelcc.pack_model(load_model(pruned("llama-gqa")).model)
    assert restorelcc.compensation_names(plain) == []
    with pytest.raises(ValueError, match="no compensations to choose from"), restorelcc.compensations(plain, "law"):
        pass


def test_copies_choose_for_themselves(served: Any) -> None:
    model = restorelcc.load(served("llama-gqa"))
    twin = copy.deepcopy(model)
    assert twin.save_pretrained.args[0] is twin
    before = logits(model)
    with restorelcc.compensations(twin, "law"):
        assert torch.equal(logits(model), before)
        assert not torch.equal(logits(twin), before)
        thawed = pickle.loads(pickle.dumps(twin.model.layers[0].self_attn.o_proj))
    assert thawed.choice.names == ("law", "medicine", "code")


def test_compensations_survive_saving(served: Any, tmp_path: Path) -> None:
    model = restorelcc.load(served("gpt_neox"))
    save_packed(model, None, tmp_path / "again")
    again = restorelcc.load(tmp_path / "again")
    for name in ("law", None, "code"):
        assert torch.equal(choose(again, name, lambda: logits(again)), choose(model, name, lambda: logits(model)))


def test_a_compiled_projection_follows_the_choice() -> None:
    choice = CompensationChoice(["a", "b"])
    layer = CompensatedLinear(restorelcc.pack(torch.eye(64)), None, torch.randn(2, 64), choice).requires_grad_(False)
    compiled, x = torch.compile(layer, backend="aot_eager"), torch.randn(2, 3, 64)
    for names in (["a", None], ["b", "a"], [None]):
        with choice.picking(names), torch.no_grad():
            torch.testing.assert_close(compiled(x), layer(x))


def test_flat_rows_and_inference_mode() -> None:
    choice = CompensationChoice(["a", "b"])
    vectors = torch.tensor([[1.0] * 4, [2.0] * 4])
    layer = CompensatedLinear(restorelcc.pack(torch.eye(4)), None, vectors, choice)
    with choice.picking(["b", None]):
        with torch.inference_mode():
            assert layer(torch.zeros(4, 4)).tolist() == [[2.0] * 4] * 2 + [[0.0] * 4] * 2
        x = torch.zeros(4, 4, requires_grad=True)
        layer(x).sum().backward()  # the index kept from inference mode serves autograd
        assert x.grad is not None
        with pytest.raises(ValueError, match="the batch has 3"):
            layer(torch.zeros(3, 4))
    assert layer(torch.zeros(2, 4), comp_index=torch.tensor([1, 2])).tolist() == [[1.0] * 4, [2.0] * 4]
    with pytest.raises(ValueError, match="2 names and vectors of shape"):
        CompensatedLinear(restorelcc.pack(torch.eye(4)), None, torch.ones(1, 4), choice)


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_of_ffns_are_served_beside_those_of_heads(kind: str, pruned: Any, tmp_path: Path) -> None:
    """heads alone, FFNs alone, both: each against the stock model in float64 with hooks, and mixed in one batch."""
    source, given = pruned(kind), {}
    for seed, sites in enumerate(("attention", "ffn", "both"), start=1):
        given[sites] = some_vectors(source, sites, seed=seed)
        given[sites].save(tmp_path / sites)
    places = {sites: tmp_path / sites for sites in given}
    pack_checkpoint(str(source), tmp_path / "packed", values="fp32", compensations=places)
    model = restorelcc.load(tmp_path / "packed")
    plain = logits(stock(source, torch.float32))
    bound = 1e-4 * float(plain.abs().max())
    torch.testing.assert_close(logits(model), plain, rtol=1e-4, atol=bound)
    alone = {}
    for name, compensation in given.items():
        alone[name] = choose(model, name, lambda: logits(model))
        exact = exact_logits(source, compensation, IDS)
        torch.testing.assert_close(alone[name].double(), exact, rtol=1e-4, atol=1e-4 * float(exact.abs().max()))
        assert float((alone[name] - plain).abs().max()) > 100 * bound
    mixed = choose(model, ["ffn", None, "both"], lambda: logits(model))
    for row, wanted in enumerate((alone["ffn"], plain, alone["both"])):
        torch.testing.assert_close(mixed[row], wanted[row], rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))
    save_packed(model, None, tmp_path / "again")
    again = restorelcc.load(tmp_path / "again")
    for name in given:
        assert torch.equal(choose(again, name, lambda: logits(again)), alone[name])


@pytest.mark.parametrize("values", ["bf16", "int8"])
def test_vectors_of_ffns_are_never_rounded(values: str, pruned: Any) -> None:
    source = pruned("llama-gqa")
    given = some_vectors(source, "ffn")
    model = restorelcc.pack_model(load_model(source).model, values=values, compensations={"a": given}, default="a")
    for layer, vector in enumerate(given.vectors):
        module = model.model.layers[layer].mlp.down_proj
        assert module.shift.dtype == torch.float32
        assert torch.equal(module.shift, torch.stack([torch.zeros(32), vector]))
        y = module(torch.zeros(1, 1, 48, dtype=torch.bfloat16))[0, 0]
        assert torch.equal(y, vector.bfloat16())


def test_a_compiled_ffn_projection_follows_the_choice() -> None:
    choice, x = CompensationChoice(["a", "b"]), torch.randn(2, 3, 64)
    layer = CompensatedLinear(restorelcc.pack(torch.eye(64)), None, torch.randn(2, 64), choice, "ffn")
    compiled = torch.compile(layer.requires_grad_(False), backend="aot_eager")
    for names in (["a", None], ["b", "a"], [None]):
        with choice.picking(names), torch.no_grad():
            torch.testing.assert_close(compiled(x), layer(x))
