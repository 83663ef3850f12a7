"""Masked tuning and its objectives: against dense autograd, on small random models and a real one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from restoration_models import random_pair
from test_moments import ragged_tokens
from torch import Tensor, nn
from transformers import GraniteConfig, GraniteForCausalLM

from restorelcc import tuning
from restorelcc.distillation import distillation_losses, other_head
from restorelcc.lm_head import head_input, language_head
from restorelcc.models import load_model, prunable_linears
from restorelcc.packed import PackedWeight
from restorelcc.pruning import prune_model
from restorelcc.recipe_settings import set_on_command_line
from restorelcc.restore import restore
from restorelcc.sparse_linear import SparseLinear
from restorelcc.text import TokenSet, write_own_text
from restorelcc.training_loop import TrainingSettings
from restorelcc.tuning import TuningObjective, check_teacher, objective_loss, teacher_states, tune

SHORT = TrainingSettings(learning_rates=(0.01,), epochs=2.0, batch_tokens=64, evaluations=4, heldout_share=0.2)


def plain_distillation(student: Tensor, teacher: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    p = torch.log_softmax(nn.functional.linear(teacher, weight, bias), -1)
    q = torch.log_softmax(nn.functional.linear(student, weight, bias), -1)
    return (p.exp() * (p - q)).sum(-1)


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(("rows", "vocabulary"), [(1, 2), (5, 33), (70, 300)])
def test_distillation_and_its_gradient(
    rows: int, vocabulary: int, with_bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("restorelcc.distillation._BLOCK_ELEMENTS", 32 * vocabulary)  # several blocks, the last ragged
    student, teacher = 2 * torch.randn(rows, 8), 2 * torch.randn(rows, 8)
    weight, bias = torch.randn(vocabulary, 8), torch.randn(vocabulary) if with_bias else None
    student.requires_grad_(True)
    upstream = torch.rand(rows)
    got = distillation_losses(student, teacher, weight, bias)
    (gradient,) = torch.autograd.grad((got * upstream).sum(), student)
    exact = student.detach().double().requires_grad_(True)
    want = plain_distillation(exact, teacher.double(), weight.double(), None if bias is None else bias.double())
    (want_gradient,) = torch.autograd.grad((want * upstream).sum(), exact)
    assert float((got.detach() - want.detach()).abs().max()) <= 1e-5 * max(1.0, float(want.detach().abs().max()))
    assert float((gradient - want_gradient).abs().max()) <= 1e-5 * max(1.0, float(want_gradient.abs().max()))


def test_a_teacher_with_a_head_of_its_own() -> None:
    """A pruned model that was trained since has another head; the teacher keeps the dense one."""
    student, teacher = (2 * torch.randn(5, 8)).requires_grad_(True), 2 * torch.randn(5, 8)
    ours, theirs = (torch.randn(33, 8), torch.randn(33)), (torch.randn(33, 8), None)
    got = distillation_losses(student, teacher, *ours, theirs)
    (gradient,) = torch.autograd.grad(got.sum(), student)
    p = torch.log_softmax(teacher @ theirs[0].T, -1)
    want = (p.exp() * (p - torch.log_softmax(nn.functional.linear(student, *ours), -1))).sum(-1)
    (want_gradient,) = torch.autograd.grad(want.sum(), student)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradient, want_gradient, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r"teacher's head \[30, 8\] torch.float32 is not like the student's \[33, 8\]"):
        distillation_losses(student, teacher, *ours, (torch.randn(30, 8), None))


def test_tuning_learns_from_the_dense_model_s_own_head(tmp_path: Path) -> None:
    dense, pruned = random_pair("llama-gqa", tmp_path)
    teacher, student, tokens = load_model(dense).model, load_model(pruned).model, ragged_tokens(96, rows=4)
    head = language_head(student)
    assert other_head(teacher, student) is None
    states, given = teacher_states(teacher, tokens), torch.zeros(4, dtype=torch.bool)
    same = objective_loss(student, head, tokens, states, given, TuningObjective(1.0))
    with torch.no_grad():
        head.module.weight.mul_(2.0)  # the student's logits are other ones now, the teacher's are not
    theirs = other_head(teacher, student)
    assert theirs is not None
    assert torch.equal(theirs[0], teacher.lm_head.weight)
    with head_input(student) as seen:
        student(input_ids=tokens.ids, attention_mask=tokens.attention_mask)
    real = tokens.attention_mask.bool()
    p = torch.log_softmax(teacher.lm_head(states[real]), -1)
    want = (p.exp() * (p - torch.log_softmax(student.lm_head(seen[0][real]), -1))).sum(-1).mean()
    got = objective_loss(student, head, tokens, states, given, TuningObjective(1.0), theirs)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    assert abs(float(got - same)) > 1e-3


def test_distillation_of_the_same_states_is_zero_and_wrong_shapes_are_refused() -> None:
    states, weight = torch.randn(4, 8), torch.randn(20, 8)
    assert float(distillation_losses(states, states, weight).abs().max()) <= 1e-6
    with pytest.raises(ValueError, match=r"student \[4, 8\], teacher \[3, 8\] and head \[20, 8\] do not fit"):
        distillation_losses(states, states[:3], weight)
    with pytest.raises(ValueError, match="use one type"):
        distillation_losses(states, states.bfloat16(), weight)


def test_a_teacher_that_scales_its_logits_is_refused_before_any_work(tmp_path: Path) -> None:
    """Granite divides W h by a number, which a KL made of W h would not know."""
    config = GraniteConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, logits_scaling=8.0, pad_token_id=0,
    )  # fmt: skip
    tokens = TokenSet(torch.ones(2, 8, dtype=torch.long), torch.full((2,), 8), torch.ones(2, dtype=torch.long), "x")
    with pytest.raises(ValueError, match="GraniteForCausalLM scales or caps its logits, which distillation does not"):
        teacher_states(GraniteForCausalLM(config), tokens)
    GraniteForCausalLM(config).save_pretrained(tmp_path / "granite")
    with pytest.raises(ValueError, match=r"GraniteForCausalLM scales or caps its logits.*--set distill=0"):
        check_teacher(tmp_path / "granite")


@pytest.mark.parametrize("kind", ["llama-gqa", "opt", "opt-projected", "gpt_neox", "falcon", "bloom"])
def test_a_teacher_whose_head_is_plain_is_taken(kind: str, tmp_path: Path) -> None:
    dense, _ = random_pair(kind, tmp_path)
    check_teacher(dense)
    assert language_head(load_model(dense).model).plain


def test_teacher_states_are_what_enters_the_head(tmp_path: Path) -> None:
    dense, _ = random_pair("llama-gqa", tmp_path)
    model, tokens = load_model(dense).model, ragged_tokens(96)
    states = teacher_states(model, tokens, batch=2)
    with torch.no_grad():
        logits = model(input_ids=tokens.ids, attention_mask=tokens.attention_mask).logits
    real = tokens.attention_mask.bool()
    torch.testing.assert_close(model.lm_head(states)[real], logits[real], rtol=1e-4, atol=1e-4)
    assert not bool(states[~real].any())


@pytest.mark.parametrize("kind", ["llama-gqa", "opt", "gpt_neox"])
@pytest.mark.parametrize(
    ("objective", "own"),
    [(TuningObjective(), 0), (TuningObjective(0.7, 0.5), 0), (TuningObjective(0.7), 2), (TuningObjective(1.0), 0),
     (TuningObjective(0.3), 6), (TuningObjective(0.0, 2.0), 0), (TuningObjective(1.0, 2.0), 2)],
)  # fmt: skip
def test_the_gradient_is_that_of_dense_autograd_under_the_mask(
    kind: str, objective: TuningObjective, own: int, tmp_path: Path
) -> None:
    """The last `own` rows are the dense model's own: they have the distillation alone, at full weight."""
    dense, pruned = random_pair(kind, tmp_path)
    teacher, tokens = load_model(dense).model, ragged_tokens(96, rows=6)
    plain = load_model(pruned).model.double()
    for _, linear in prunable_linears(plain):
        linear.weight.requires_grad_(True)
        if linear.bias is None:
            linear.bias = nn.Parameter(torch.zeros(linear.out_features, dtype=torch.float64))
        linear.bias.requires_grad_(True)
    states = teacher_states(teacher, tokens)
    with head_input(plain) as seen:
        plain(input_ids=tokens.ids, attention_mask=tokens.attention_mask)
    real, head = tokens.attention_mask.bool(), plain.get_output_embeddings()
    ours, theirs = seen[0][real], states[real].double()
    given = len(tokens) - own
    loss = nn.functional.cross_entropy(head(seen[0][:given, :-1]).flatten(0, 1), tokens.labels[:given, 1:].flatten())
    share = float(tokens.lengths[:given].sum() / tokens.lengths.sum())
    total = (1 - objective.distill) * share * loss if given else ours.new_zeros(())
    weight = torch.tensor([objective.distill] * given + [1.0] * own).repeat_interleave(tokens.lengths)
    kl = plain_distillation(ours, theirs, head.weight, head.bias)
    if objective.distill:
        total = total + (weight * kl).mean()
    total = total + objective.hidden * (ours - theirs).square().sum() / theirs.square().sum()
    total.backward()

    model = load_model(pruned).model
    survivors = tuning._Survivors(model, [name for name, _ in prunable_linears(model)])
    task = tuning._Task(model, survivors, objective, tokens, states if objective.needs_teacher else None, given)
    for leaf in survivors.leaves:
        leaf.requires_grad_(True)
    got = task.loss(list(range(len(tokens))))
    got.backward()
    assert float(got.detach()) == pytest.approx(float(total.detach()), rel=1e-5)
    for name, linear in prunable_linears(plain):
        module = survivors.modules[name]
        packed = module.packed
        ours_now = PackedWeight(packed.mask, module.values.grad, packed.row_offsets, packed.shape).unpack()
        want = linear.weight.grad * (linear.weight != 0)
        scale = max(float(want.abs().max()), 1e-9)
        assert float((ours_now - want).abs().max()) <= 1e-4 * scale, name
        bias_scale = max(float(linear.bias.grad.abs().max()), 1e-9)
        if name.endswith("k_proj"):  # softmax does not see a shift of all keys: its gradient is rounding and no more
            continue
        assert float((module.bias.grad - linear.bias.grad).abs().max()) <= 1e-4 * bias_scale, name


@pytest.mark.parametrize("biased", [False, True])
def test_the_optimiser_keeps_state_for_survivors_and_biases_alone(biased: bool, tmp_path: Path) -> None:
    """Two numbers of Adam for each survivor and bias, and for the padding of the packed form, where both stay 0:

    each row's float32 values end at a multiple of 4 (16 bytes), each matrix's with 16 more (64 bytes).
    """
    dense, _ = random_pair("llama-gqa", tmp_path)
    model = load_model(dense).model
    prune_model(model, method="magnitude", pattern="0.7")  # rows of a different number of survivors each
    kept = {name: (linear.weight != 0).sum(1) for name, linear in prunable_linears(model)}
    weights = sum(linear.weight.numel() for _, linear in prunable_linears(model))
    survivors = tuning._Survivors(model, list(kept) if biased else [])
    task = tuning._Task(model, survivors, TuningObjective(), ragged_tokens(96), None)
    trainer = tuning._Trainer(task, 0.01, 3)
    for rows in ([0, 1], [2], [3, 4]):
        trainer.step(rows)

    nnz = int(sum(count.sum() for count in kept.values()))
    padding = sum(int((-count % 4).sum()) + 16 for count in kept.values())
    biases = sum(len(count) for count in kept.values()) if biased else 0
    states = list(trainer.optimiser.state.values())
    assert padding > 16 * len(kept), "no row is padded, so this shows nothing"
    for name in ("exp_avg", "exp_avg_sq"):
        assert sum(state[name].numel() for state in states) == nnz + padding + biases, name
        assert sum(int((state[name] != 0).sum()) for state in states) <= nnz + biases, name
    assert {name for state in states for name in state} == {"step", "exp_avg", "exp_avg_sq"}
    assert nnz + padding + biases < 0.6 * weights
    assert not any(parameter.grad is not None for parameter in model.parameters())


@pytest.fixture(scope="module")
def own_text(stories_pair: tuple[Path, Path]) -> TokenSet:
    """What the dense model writes itself: 24 windows of 64 tokens."""
    loaded = load_model(stories_pair[0])
    return write_own_text(loaded.model, loaded.tokenizer, tokens=1536, window=64, seed=0)


def test_tuning_lowers_the_heldout_nll_and_keeps_the_mask(stories_pair: tuple[Path, Path], own_text: TokenSet) -> None:
    dense, pruned = stories_pair
    before = dict(prunable_linears(load_model(pruned).model))
    model = load_model(pruned).model
    result = tune(
        model, own_text, biased=list(before), dense=load_model(dense).model, objective=TuningObjective(0.5),
        settings=SHORT,
    )  # fmt: skip
    assert result.heldout_after < result.heldout_before - 0.1
    for name, linear in before.items():
        assert torch.equal(result.tensors[f"{name}.weight"] != 0, linear.weight != 0), name
        module = model.get_submodule(name)
        assert isinstance(module, SparseLinear)
        assert torch.equal(module.packed.unpack(), result.tensors[f"{name}.weight"])
        assert not module.values.requires_grad


@torch.no_grad()
def hidden_distance(model: nn.Module, tokens: TokenSet, states: Tensor) -> float:
    """‖h − h_d‖² / ‖h_d‖² over the tokens that are no padding."""
    with head_input(model) as seen:
        model(input_ids=tokens.ids, attention_mask=tokens.attention_mask)
    real = tokens.attention_mask.bool()
    theirs = states[real].double()
    return float((seen[0][real].double() - theirs).square().sum() / theirs.square().sum())


def test_the_distance_of_hidden_states_falls_by_its_weight(tmp_path: Path) -> None:
    dense, pruned = random_pair("llama-gqa", tmp_path)
    loaded = load_model(dense)
    words = write_own_text(loaded.model, loaded.tokenizer, tokens=768, window=24, seed=0)
    other = write_own_text(loaded.model, loaded.tokenizer, tokens=192, window=24, seed=1)
    states = teacher_states(loaded.model, other)
    found = {"pruned": hidden_distance(load_model(pruned).model, other, states)}
    for hidden in (0.0, 4.0):
        model = load_model(pruned).model
        result = tune(model, words, dense=loaded.model, objective=TuningObjective(0.0, hidden), settings=SHORT)
        assert result.heldout_after < result.heldout_before
        found[f"{hidden:g}"] = hidden_distance(model, other, states)
    assert found["4"] < 0.9 * found["pruned"], found
    assert found["4"] < 0.9 * found["0"], found  # which the loss of the labels alone would not do


def test_restore_takes_the_distance_of_hidden_states_as_a_setting(tmp_path: Path) -> None:
    dense, pruned = random_pair("llama-gqa", tmp_path)
    loaded = load_model(dense)
    other = write_own_text(loaded.model, loaded.tokenizer, tokens=192, window=24, seed=1)
    states = teacher_states(loaded.model, other)
    found = []
    for hidden in ("0", "4"):
        recipe = set_on_command_line("best", ["refit=none", f"hidden={hidden}"])
        out = tmp_path / f"hidden{hidden}"
        report = restore(dense, pruned, out, recipe=recipe, tokens=768, window=24, training=SHORT)
        assert report.settings["objective"] == {"distill": 1.0, "hidden": float(hidden)}  # no --data: all is own text
        found.append(hidden_distance(load_model(out).model, other, states))
    assert found[1] < 0.8 * hidden_distance(load_model(pruned).model, other, states), found
    assert found[1] < 0.98 * found[0], found  # the distillation alone brings it down by a quarter


def test_repeats_bit_for_bit_and_a_hopeless_rate_returns_the_start(
    stories_pair: tuple[Path, Path], own_text: TokenSet
) -> None:
    _, pruned = stories_pair
    runs = [tune(load_model(pruned).model, own_text, settings=SHORT).tensors for _ in range(2)]
    assert runs[0].keys() == runs[1].keys()
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])
    wild = TrainingSettings(learning_rates=(10.0,), batch_tokens=256, evaluations=4)
    result = tune(load_model(pruned).model, own_text, settings=wild)
    assert result.heldout_after == result.heldout_before
    for name, linear in prunable_linears(load_model(pruned).model):
        assert torch.equal(result.tensors[f"{name}.weight"], linear.weight)


def test_refused(tmp_path: Path) -> None:
    _, pruned = random_pair("llama-gqa", tmp_path)
    tokens = ragged_tokens(96)
    with pytest.raises(ValueError, match="distillation needs the dense model"):
        tune(load_model(pruned).model, tokens, objective=TuningObjective(0.5))
    with pytest.raises(ValueError, match=r"distill is 1\.5; it must lie between 0 and 1"):
        TuningObjective(1.5)
    with pytest.raises(ValueError, match="distillation needs the dense model"):
        tune(load_model(pruned).model, tokens, objective=TuningObjective(0.0, 0.5))
    for hidden in (-0.5, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"hidden is {hidden}; it must be a finite number, 0 or more"):
            TuningObjective(0.0, hidden)
    with pytest.raises(ValueError, match="at least 2 rows"):
        tune(load_model(pruned).model, tokens.subset([0]))
