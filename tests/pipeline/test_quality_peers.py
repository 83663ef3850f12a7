"""The peers of benchmarks/quality: their equations against float64, and what they promise on a tiny real model."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from restorelcc.evaluation import token_nll
from restorelcc.models import attention_sites, get_module, prunable_linears
from restorelcc.pruning import prune_model
from restorelcc.text import TokenSet, write_own_text
from restorelcc.training_loop import TrainingSettings

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks" / "quality"


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module


@pytest.fixture
def pair(stories: Any) -> tuple[Any, Any, TokenSet]:
    """(dense, pruned 2:4 by magnitude, text that the dense model wrote)."""
    text = write_own_text(stories.model, stories.tokenizer, tokens=1600, window=64, seed=0)
    pruned = copy.deepcopy(stories.model)
    prune_model(pruned, method="magnitude", pattern="2:4")
    return stories.model, pruned, text


def weights(model: Any) -> dict[str, Tensor]:
    return {name: linear.weight.detach().double().clone() for name, linear in prunable_linears(model)}


def inputs_of(model: Any, text: TokenSet, name: str) -> Tensor:
    """x of one projection at every position, [n, T, K] float64, one row at a time."""
    seen: list[Tensor] = []
    handle = get_module(model, name).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        for row in range(len(text)):
            part = text.subset([row])
            model(input_ids=part.ids, attention_mask=part.attention_mask)
    handle.remove()
    return torch.cat(seen).double()


def test_flap_biases_are_what_was_pruned_times_mean_inputs(module: Any, pair: tuple[Any, Any, TokenSet]) -> None:
    dense, pruned, text = pair
    before = weights(pruned)
    notes = module("training_free").flap_bias(pruned, dense, text, heldout_share=0.1, seed=0)
    train, _ = text.split(0.1, seed=0)
    assert notes == {"biases": 2 * len(attention_sites(dense)), "scale": 1.0}
    for name in ("model.layers.1.self_attn.o_proj", "model.layers.3.mlp.down_proj"):
        keep = train.attention_mask.bool()
        keep[:, 0] = False
        mean = inputs_of(dense, train, name)[keep].mean(0)
        expected = (weights(dense)[name] - before[name]) @ mean
        torch.testing.assert_close(get_module(pruned, name).bias.double(), expected, rtol=1e-4, atol=1e-6)
    assert get_module(pruned, "model.layers.1.self_attn.q_proj").bias is None
    other = copy.deepcopy(pruned)
    assert module("training_free").flap_bias(other, dense, text, where="attention")["biases"] == 5
    assert all(torch.equal(weight, before[name]) for name, weight in weights(pruned).items())


def test_flap_undoes_pruning_where_inputs_are_constant(module: Any, pair: tuple[Any, Any, TokenSet]) -> None:
    """Rows of one and the same token: all positions see the same inputs, which the mean then is."""
    dense, _, _ = pair
    rows = TokenSet.from_rows([[7] * 12] * 4, pad=0, name="constant")
    pruned = copy.deepcopy(dense)
    name = "model.layers.2.mlp.down_proj"
    linear = get_module(pruned, name)
    linear.weight.copy_(torch.where(torch.rand(linear.weight.shape) < 0.5, 0.0, linear.weight))
    harmed = abs(token_nll(pruned, rows).mean - token_nll(dense, rows).mean)
    assert harmed > 1e-3
    module("training_free").flap_bias(pruned, dense, rows, where="all", skip_first=0, heldout_share=0.25)
    spread = inputs_of(dense, rows, name).flatten(0, 1).std(0).max()
    assert float(spread) < 1e-4, "the inputs are not constant, the test shows nothing"
    assert token_nll(pruned, rows).mean == pytest.approx(token_nll(dense, rows).mean, abs=1e-4)


def test_flap_means_leave_out_padding_and_position_0(module: Any, stories: Any) -> None:
    rows = TokenSet.from_rows([[1, 5, 6, 7], [1, 9]], pad=0, name="x")
    name = "model.layers.0.self_attn.q_proj"
    xs = inputs_of(stories.model, rows, name)
    found = module("training_free").mean_inputs(stories.model, rows)[name]
    torch.testing.assert_close(found, torch.cat([xs[0, 1:], xs[1, 1:2]]).mean(0), rtol=1e-5, atol=1e-7)
    with pytest.raises(ValueError, match="no token of 2 rows is left behind the first 4"):
        module("training_free").mean_inputs(stories.model, rows, skip_first=4)


def test_flap_with_a_search_is_no_worse_than_pruned(module: Any, pair: tuple[Any, Any, TokenSet]) -> None:
    dense, pruned, text = pair
    _, heldout = text.split(0.1, seed=3)
    before = token_nll(pruned, heldout).mean
    notes = module("training_free").flap_bias(pruned, dense, text, where="all", scale="search", seed=3)
    assert len(notes["search"]) == 7
    after = token_nll(pruned, heldout).mean
    assert after == pytest.approx(min(row["heldout_nll"] for row in notes["search"]), rel=1e-4)
    assert after <= before + 1e-6
    with pytest.raises(ValueError, match="unknown where 'here' of flap-bias; choose one of attention, output, all"):
        module("training_free").flap_bias(pruned, dense, text, where="here")


@pytest.mark.parametrize("shape", [(7, 12), (12, 7), (5, 5)])
def test_eora_factors_are_those_of_the_paper(module: Any, shape: tuple[int, int]) -> None:
    """Against the literal restatement: eigh of the covariance, SVD of what it scales, and the inverse."""
    lost = torch.randn(shape, dtype=torch.float64)
    x = torch.randn(200, shape[1], dtype=torch.float64) * torch.linspace(0.1, 5, shape[1], dtype=torch.float64)
    gram = x.T @ x
    values, vectors = torch.linalg.eigh(gram)
    root = vectors @ torch.diag(values.sqrt())
    left, sizes, right = torch.linalg.svd(lost @ root, full_matrices=False)
    for rank in (1, 3):
        up, down = module("training_free").eigenspace_factors(lost, gram, rank)
        assert (up.shape, down.shape) == ((shape[0], rank), (rank, shape[1]))
        expected = left[:, :rank] @ torch.diag(sizes[:rank]) @ right[:rank] @ torch.linalg.inv(root)
        torch.testing.assert_close(up @ down, expected, rtol=1e-8, atol=1e-8)
        error = ((lost - up @ down) @ x.T).square().sum()
        torch.testing.assert_close(error, sizes[rank:].square().sum(), rtol=1e-8, atol=1e-8)
        plain, plain_sizes, plain_right = torch.linalg.svd(lost, full_matrices=False)
        unaware = plain[:, :rank] @ torch.diag(plain_sizes[:rank]) @ plain_right[:rank]
        assert error < 0.99 * ((lost - unaware) @ x.T).square().sum()
    up, down = module("training_free").eigenspace_factors(lost, gram, 99)
    torch.testing.assert_close(up @ down, lost, rtol=1e-8, atol=1e-8)


def test_eora_of_full_rank_is_the_dense_model(module: Any, pair: tuple[Any, Any, TokenSet]) -> None:
    dense, pruned, text = pair
    before, sparse = token_nll(dense, text).mean, token_nll(pruned, text).mean
    halfway = copy.deepcopy(pruned)
    costs = module("training_free").eora(halfway, dense, text, rank=8)
    cost = 8 * sum(sum(weight.shape) for weight in weights(dense).values())
    assert costs["extra_weights"] == cost
    assert costs["extra_share"] == pytest.approx(cost / sum(int((w != 0).sum()) for w in weights(pruned).values()))
    assert before < token_nll(halfway, text).mean < sparse - 0.2 * (sparse - before)
    module("training_free").eora(pruned, dense, text, rank=10_000)
    assert token_nll(pruned, text).mean == pytest.approx(before, abs=1e-3)
    name = "model.layers.2.mlp.up_proj.linear"
    assert float((get_module(pruned, name).weight == 0).double().mean()) >= 0.5


def test_peers_learn_the_objective_of_ours(
    module: Any, pair: tuple[Any, Any, TokenSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    """s (1 − a) NLL of the given rows' labels + a_t KL of every token, a_t = 1 on own text; all logits in float64."""
    peers = module("peers")
    dense, pruned, text = pair
    given = text.subset(range(8))
    given = TokenSet(given.ids, given.lengths, torch.full((8,), 9), "a prompt in front")
    own = text.subset(range(8, 16))
    seen: list[tuple[TokenSet, Any, float]] = []
    ours = peers.objective_loss

    def spy(model: Any, head: Any, batch: TokenSet, teacher: Any, mark: Any, objective: Any, theirs: Any) -> Any:
        loss = ours(model, head, batch, teacher, mark, objective, theirs)
        assert theirs is None  # pruning left the head alone
        seen.append((batch, mark, float(loss.detach())))
        return loss

    monkeypatch.setattr(peers, "objective_loss", spy)
    settings = TrainingSettings(batch_tokens=4000, steps=1)
    peers.lofit(copy.deepcopy(pruned), given, settings, extra=peers.Extra(own, 0.3, dense))
    batch, mark, found = seen[0]  # of the start, where all that is trained is zero
    width = batch.ids.shape[1]
    held = {tuple(row.tolist()) for row in given.ids[:, :width]}
    assert mark.tolist() == [tuple(row.tolist()) in held for row in batch.ids]
    assert 0 < int(mark.sum()) < len(mark)
    with torch.no_grad():
        arguments = {"input_ids": batch.ids, "attention_mask": batch.attention_mask}
        student = pruned(**arguments).logits.double().log_softmax(-1)
        theirs = dense(**arguments).logits.double().log_softmax(-1)
    kl = (theirs.exp() * (theirs - student)).sum(-1)
    tokens, labels = batch.attention_mask.bool(), batch.labels[mark, 1:]
    nll = -student[mark, :-1].gather(-1, labels.clamp(min=0)[..., None])[..., 0][labels != -100].mean()
    share = batch.lengths[mark].sum() / batch.lengths.sum()
    weight = torch.where(mark, 0.3, 1.0)[:, None].double()
    assert found == pytest.approx(float(share * 0.7 * nll + (weight * kl)[tokens].mean()), rel=1e-5)


def test_lora_learns_from_more_text_and_the_dense_model(module: Any, pair: tuple[Any, Any, TokenSet]) -> None:
    pytest.importorskip("peft")
    peers = module("peers")
    dense, pruned, text = pair
    some, more = text.subset(range(10)), text.subset(range(10, len(text)))
    settings = TrainingSettings(epochs=2.0, batch_tokens=128)
    plain = peers.low_rank(copy.deepcopy(pruned), some, settings, rank=4)
    taught = peers.low_rank(copy.deepcopy(pruned), some, settings, rank=4, extra=peers.Extra(more, 0.5, dense))
    assert plain.after < plain.before
    assert taught.before == plain.before  # the same held-out rows
    assert taught.after < plain.after
    assert taught.history[-1]["step"] > plain.history[-1]["step"]


def test_lofit_finds_the_harmed_head_and_trains_its_bias_alone(module: Any, stories: Any) -> None:
    text = write_own_text(stories.model, stories.tokenizer, tokens=1600, window=64, seed=0)
    harmed, layer, head = copy.deepcopy(stories.model), 2, 5
    site = attention_sites(harmed)[layer]
    columns = slice(head * site.head_dim, (head + 1) * site.head_dim)
    get_module(harmed, site.name).weight[:, columns] *= -2  # which A = -1.5 would undo
    start = weights(harmed)
    settings = TrainingSettings(epochs=3.0, batch_tokens=128)
    _, heldout = text.split(settings.heldout_share, seed=settings.seed)
    before = token_nll(harmed, heldout).mean
    found = module("peers").lofit(harmed, text, settings, heads=1 / 40)
    assert found.heads.nonzero().tolist() == [[layer, head]]
    assert found.norms.argmax() == layer * 8 + head
    assert found.tuning.before == pytest.approx(before, rel=1e-5)
    assert found.tuning.after <= before
    assert token_nll(harmed, heldout).mean == pytest.approx(found.tuning.after, rel=1e-4)
    outside = found.offsets.clone()
    outside[layer, columns] = 0
    assert not outside.any()
    expected = start[site.name] @ found.offsets[layer].double()
    torch.testing.assert_close(get_module(harmed, site.name).bias.double(), expected, rtol=1e-4, atol=1e-6)
    assert all(torch.equal(weight, start[name]) for name, weight in weights(harmed).items())


def test_the_penalty_of_lofit_makes_scaling_sparse(module: Any, pair: tuple[Any, Any, TokenSet]) -> None:
    _, pruned, text = pair
    settings = TrainingSettings(epochs=2.0, batch_tokens=128)
    free = module("peers").lofit(copy.deepcopy(pruned), text, settings, l1=0.0)
    held = module("peers").lofit(copy.deepcopy(pruned), text, settings, l1=0.05)
    assert float(held.norms.sum()) < 0.7 * float(free.norms.sum())
    assert int(free.heads.sum()) == 4  # a tenth of 40
