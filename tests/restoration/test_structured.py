"""Structured pruning: the smaller model against the dense one with zeros, what it chose, and its restoration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from restoration_models import random_pair
from stock_process import stock_logits
from test_moments import ragged_tokens
from test_refit import inputs_of, put
from torch import Tensor, nn

from restorelcc.evaluation import token_nll
from restorelcc.models import check_pair, load_model, prunable_linears, save_checkpoint
from restorelcc.pruning import masks_equal, prune_model
from restorelcc.recipes import RECIPES
from restorelcc.refit import RefitSettings, refit
from restorelcc.restore import restore
from restorelcc.structure import STRUCTURE_FILE, Structure, read_structure
from restorelcc.structured import prune_structured
from restorelcc.structured_sizes import layer_sizes, size_choices
from restorelcc.text import write_own_text
from restorelcc.training_loop import TrainingSettings

WITH_BIASES = ("llama-gqa", "llama-mha-untied", "llama-head-dim", "llama-attention-bias", "mistral", "qwen2")
KINDS = (*WITH_BIASES, "mistral-sliding", "qwen2-sliding", "qwen3")


def dense_model(kind: str, folder: Path) -> Any:
    return load_model(random_pair(kind, folder)[0]).model


def pruned_pair(kind: str, folder: Path, **choices: Any) -> tuple[Path, Path]:
    dense, _ = random_pair(kind, folder)
    loaded = load_model(dense)
    made, structure, _ = prune_structured(
        loaded.model, **{"share": 0.3, "calibration": ragged_tokens(96, rows=12), **choices}
    )
    save_checkpoint(made, loaded.tokenizer, folder / "small", extra_files={STRUCTURE_FILE: structure.to_json()})
    return dense, folder / "small"


def restated(
    model: Any, tokens: Any, groups_kept: int, per_group: int, channels_kept: int
) -> tuple[Structure, dict[str, Tensor]]:
    """(what stays, W[:, removed] mean[removed] + bias), token by token and column by column as in the equations."""
    xs, _, _ = inputs_of(model, tokens)
    first = torch.cat([torch.arange(int(length)) == 0 for length in tokens.lengths])
    config = model.config
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    group = config.num_attention_heads // config.num_key_value_heads
    heads, channels, biases = [], [], {}
    for layer in range(config.num_hidden_layers):
        for part in ("self_attn.o_proj", "mlp.down_proj"):
            name = f"model.layers.{layer}.{part}"
            x, linear = xs[name], model.get_submodule(name)
            score = [
                float(((x[:, j] - x[:, j].mean()) ** 2).sum() * (linear.weight[:, j].double() ** 2).sum())
                for j in range(x.shape[1])
            ]
            if part == "mlp.down_proj":
                kept = sorted(sorted(range(len(score)), key=lambda j: -score[j])[:channels_kept])
                channels.append(tuple(kept))
            else:
                means = [sum(score[h * size : (h + 1) * size]) / size for h in range(config.num_attention_heads)]
                members = {g: range(g * group, (g + 1) * group) for g in range(config.num_key_value_heads)}
                best = sorted(members, key=lambda g: -sum(means[h] for h in members[g]))[:groups_kept]
                chosen = sorted(h for g in best for h in sorted(members[g], key=lambda h: -means[h])[:per_group])
                heads.append(tuple(chosen))
                kept = [h * size + d for h in chosen for d in range(size)]
            mean = x[~first].mean(0)
            gone = [j for j in range(x.shape[1]) if j not in kept]
            bias = sum((linear.weight[:, j].double() * mean[j] for j in gone), torch.zeros(x.shape[0] * 0 + 32))
            biases[f"{name}.bias"] = bias if linear.bias is None else bias + linear.bias
    sizes = (size, config.num_attention_heads, config.num_key_value_heads, config.intermediate_size)
    return Structure(*sizes, tuple(heads), tuple(channels)), biases


@pytest.mark.parametrize("heads", [2, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_the_smaller_model_is_the_dense_one_without_what_went(kind: str, heads: int, tmp_path: Path) -> None:
    """Choice, biases and function, on ragged text."""
    model, tokens = dense_model(kind, tmp_path), ragged_tokens(96, rows=12)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    made, structure, report = prune_structured(model, share=0.3, calibration=tokens, heads=heads, batch=5)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items()), "dense model changed"
    groups = report.key_value_heads
    assert report.heads == heads
    expected, biases = restated(model, tokens, groups, heads // groups, report.channels)
    assert structure == expected
    places = 2 if kind in WITH_BIASES else 1 if kind == "qwen3" else 0  # o_proj and down_proj, o_proj, none
    assert report.biases == 2 * (places if heads == 2 else places // 2)
    for name, bias in biases.items():
        ours = made.get_submodule(name.removesuffix(".bias")).bias
        assert (ours is not None) == (places == 2 or (places == 1 and heads == 2 and "o_proj" in name))
        if ours is not None:
            torch.testing.assert_close(ours.double(), bias.double(), rtol=1e-4, atol=1e-5)
    assert bool(report.notes) == (kind not in WITH_BIASES)
    for name, linear in prunable_linears(model):
        kept = structure.columns(int(name.split(".")[2]), name)
        if kept is not None:
            gone = torch.ones(linear.in_features, dtype=torch.bool)
            gone[kept] = False
            linear.weight[:, gone] = 0.0
            ours = made.get_submodule(name)
            if ours.bias is not None:
                linear.bias = nn.Parameter(ours.bias.clone(), requires_grad=False)
    with torch.no_grad():
        wanted, got = (
            found(input_ids=tokens.ids, attention_mask=tokens.attention_mask).logits for found in (model, made)
        )
    real = tokens.attention_mask.bool()
    torch.testing.assert_close(got[real], wanted[real], rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))
    weights = [sum(linear.weight.numel() for _, linear in prunable_linears(found)) for found in (model, made)]
    assert report.share == pytest.approx(1 - weights[1] / weights[0])
    assert abs(report.share - 0.3) <= 0.5 * 8 * 3 * 32 / (weights[0] / 2) + 1e-9


def test_position_0_counts_in_the_scores_and_not_in_the_means(tmp_path: Path) -> None:
    """A channel that is large at the first token alone stays; its mean, were it removed, would not know that token."""
    model, tokens = dense_model("llama-gqa", tmp_path), ragged_tokens(96, rows=12)
    tokens.ids[:, 0] = 5
    embedding = model.model.embed_tokens.weight
    embedding[5] = 0
    embedding[5, 3] = 100.0  # RMSNorm makes it sqrt(32) in this channel
    embedding[:5, 3], embedding[6:, 3] = 0, 0
    mlp = model.model.layers[0].mlp
    model.model.layers[0].self_attn.o_proj.weight.zero_()
    for matrix in (mlp.gate_proj.weight, mlp.up_proj.weight):
        matrix[7] = 0
        matrix[7, 3] = 1.0
    tokens.ids[:, 1:][tokens.ids[:, 1:] == 5] = 6
    _, structure, _ = prune_structured(model, share=0.3, calibration=tokens)
    assert 7 in structure.kept_channels[0]
    mlp.down_proj.weight[:, 7] = 1e-9
    made, structure, _ = prune_structured(model, share=0.3, calibration=tokens)
    assert 7 not in structure.kept_channels[0]
    mlp.down_proj.weight[:, 7] = 1.0
    assert float(made.model.layers[0].mlp.down_proj.bias.abs().max()) < 1.0


def test_padding_reaches_nothing(tmp_path: Path) -> None:
    model, tokens = dense_model("llama-gqa", tmp_path), ragged_tokens(96, rows=12)
    other = ragged_tokens(96, rows=12)
    other.ids[tokens.attention_mask == 0] = 9
    found = [prune_structured(model, share=0.3, calibration=text) for text in (tokens, other)]
    assert found[0][1] == found[1][1]
    assert all(torch.equal(a, b) for a, b in zip(found[0][0].parameters(), found[1][0].parameters(), strict=True))


def test_heads_that_do_nothing_go(tmp_path: Path) -> None:
    """One head of each group has no way out: removing these costs nothing, so it is chosen over channels alone."""
    model = dense_model("llama-gqa", tmp_path)
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight[:, 0:8] = 0
        layer.self_attn.o_proj.weight[:, 24:32] = 0
    made, structure, report = prune_structured(model, share=0.2, calibration=ragged_tokens(96, rows=12))
    assert structure.kept_heads == ((1, 2), (1, 2))
    assert (report.heads, report.key_value_heads, made.config.head_dim) == (2, 2, 8)


def test_whole_groups_go_where_they_do_nothing(tmp_path: Path) -> None:
    model = dense_model("llama-gqa", tmp_path)
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight[:, 0:16] = 0
    made, structure, _ = prune_structured(model, share=0.2, calibration=ragged_tokens(96, rows=12))
    assert structure.kept_heads == ((2, 3), (2, 3))
    assert structure.kept_key_value_heads(0) == (1,)
    assert made.config.num_key_value_heads == 1
    assert list(made.model.layers[0].self_attn.k_proj.weight.shape) == [8, 32]


def test_the_choices_meet_the_share(tmp_path: Path) -> None:
    full = layer_sizes(dense_model("llama-gqa", tmp_path))
    for share in (0.1, 0.2, 0.5):
        choices = size_choices(full, share)
        for sizes in choices:
            real = 1 - (sizes.attention + sizes.ffn) / (full.attention + full.ffn)
            assert abs(real - share) <= 4 * 3 * 32 / (full.attention + full.ffn)
            assert sizes.channels % 8 == 0
        assert len({(sizes.group, sizes.key_value_heads) for sizes in choices}) == len(choices)


@pytest.mark.parametrize(
    ("kind", "choices", "message"),
    [
        ("llama-gqa", {"share": 0.0}, "lies between 0 and 1"),
        ("llama-gqa", {"share": 0.001}, "cannot be made of whole heads and 8 channels"),
        ("llama-gqa", {"share": 0.99}, "cannot be made of whole heads and 8 channels"),
        ("llama-gqa", {"share": 0.3, "heads": 3}, "3 heads in each layer are no choice when 30.00% .* choose of 2, 4"),
        ("llama-mha-untied", {"share": 0.3, "heads": 3}, "cannot be told to have 3 heads of size 8"),  # 32 % 3
        ("llama-gqa", {"share": 0.3, "calibration": None}, "needs calibration text"),
        ("opt", {"share": 0.3}, r"layers\.0 of OPTForCausalLM has other projections than q, k, v, o"),
        ("gpt_neox", {"share": 0.3}, "has other projections than q, k, v, o"),
    ],
)
def test_refused(kind: str, choices: dict[str, Any], message: str, tmp_path: Path) -> None:
    model = dense_model(kind, tmp_path)
    with pytest.raises(ValueError, match=message):
        prune_structured(model, **{"calibration": ragged_tokens(96, rows=4), **choices})


def test_broken_weights_are_refused(tmp_path: Path) -> None:
    model = dense_model("llama-gqa", tmp_path)
    model.model.layers[1].mlp.up_proj.weight[0, 0] = float("inf")
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.up_proj has 1 NaN or infinite"):
        prune_structured(model, share=0.3, calibration=ragged_tokens(96, rows=4))


# ---- the file --------------------------------------------------------------------------------------------------------

GOOD: dict[str, Any] = {
    "kind": "structure", "version": 0, "head_dim": 8, "heads": 4, "key_value_heads": 2, "channels": 10,
    "kept_heads": [[0, 3], [1, 2]], "kept_channels": [[0, 9], [4, 5]],
}  # fmt: skip


def test_the_file_comes_back_as_it_was(tmp_path: Path) -> None:
    (tmp_path / STRUCTURE_FILE).write_text(json.dumps(GOOD))
    found = read_structure(tmp_path)
    assert found is not None
    assert json.loads(found.to_json()) == GOOD
    assert found.rows(0, "self_attn.q_proj").tolist() == [*range(8), *range(24, 32)]
    assert found.rows(1, "self_attn.v_proj").tolist() == list(range(16))
    assert found.columns(1, "mlp.down_proj").tolist() == [4, 5]
    assert found.rows(0, "self_attn.o_proj") is None
    assert found.columns(0, "self_attn.q_proj") is None
    assert read_structure(tmp_path / "elsewhere") is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "moments"}, "no structure file"),
        ({"version": 1}, "no structure file of version 0"),
        ({"version": False}, "no structure file of version 0"),
        ({"heads": None}, "whole numbers"),
        ({"heads": True}, "whole numbers"),
        ({"heads": 4.0}, "whole numbers"),
        ({"kept_heads": {"0": [0]}}, "whole numbers"),
        ({"kept_heads": [[0, "3"], [1, 2]]}, "whole numbers"),
        ({"kept_heads": [0, 3]}, "whole numbers"),
        ({"heads": 0}, "between 1 and"),
        ({"head_dim": 10**30}, "between 1 and"),
        ({"key_value_heads": 3}, "cannot share 3 key-value heads"),
        ({"kept_heads": [[0, 3]]}, "heads of 1 layers and the channels of 2"),
        ({"kept_heads": [], "kept_channels": []}, "0 layers"),
        ({"kept_heads": [[0, 4], [1, 2]]}, "no rising list of numbers below 4"),
        ({"kept_heads": [[-1, 3], [1, 2]]}, "no rising list"),
        ({"kept_heads": [[3, 0], [1, 2]]}, "no rising list"),
        ({"kept_heads": [[0, 0], [1, 2]]}, "no rising list"),
        ({"kept_heads": [[], []]}, "no rising list"),
        ({"kept_heads": [[0, 1, 2], [0, 1, 2]]}, "different numbers of the heads that share"),
        ({"kept_heads": [[0, 1], [1, 2]]}, "different numbers of the heads that share"),
        ({"kept_heads": [[0], [1, 2]]}, "layer 0 keeps 1 heads and layer 1 keeps 2"),
        ({"kept_channels": [[0, 9], [4]]}, "layer 0 keeps 2 channels and layer 1 keeps 1"),
        ({"kept_channels": [[0, 10], [4, 5]]}, "no rising list of numbers below 10"),
    ],
)
def test_hostile_files_are_refused_in_one_sentence(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / STRUCTURE_FILE).write_text(json.dumps({**GOOD, **change}))
    with pytest.raises(ValueError, match=message) as caught:
        read_structure(tmp_path)
    assert "prune again, or copy the file" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / STRUCTURE_FILE).write_text('{"kind": ')
    with pytest.raises(ValueError, match="truncated or not JSON"):
        read_structure(tmp_path)


def test_pairs_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    dense, small = pruned_pair("llama-gqa", tmp_path)
    structure = read_structure(small)
    check_pair(dense, small, structure)
    other, _ = random_pair("llama-head-dim", tmp_path / "other")
    with pytest.raises(ValueError, match="is of one with 32 rows; pass the dense model it was made from"):
        check_pair(other, small, structure)
    with pytest.raises(ValueError, match="where the pruned one has"):
        check_pair(dense, dense, structure)
    assert structure is not None
    short = Structure(8, 4, 2, 48, structure.kept_heads[:1], structure.kept_channels[:1])
    with pytest.raises(ValueError, match="lists 1 layers"):
        check_pair(dense, small, short)


# ---- restoration -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama-gqa", "qwen2", "qwen3"])
def test_every_projection_solves_its_least_squares(kind: str, tmp_path: Path) -> None:
    """Towards the dense rows of what was kept; o_proj and down_proj towards all that the dense ones give."""
    heads = {"heads": 2}
    dense, small = pruned_pair(kind, tmp_path, **heads)
    structure, tokens = read_structure(small), ragged_tokens(96, rows=12)
    assert structure is not None
    assert len(structure.kept_heads[0]) == 2
    settings = RefitSettings(ridge=0.02, iterations=500, tolerance=1e-7, batch=4)
    got = refit(dense, small, tokens, work=tmp_path / "work", structure=structure, settings=settings)
    before = dict(prunable_linears(load_model(small).model))
    _, targets, theirs = inputs_of(load_model(dense).model, tokens)
    ours, outputs, hidden = inputs_of(put(load_model(small).model, got), tokens)
    size = structure.head_dim
    for name, linear in before.items():
        layer, leaf = int(name.split(".")[2]), name.rpartition(".")[2]
        attention = name.rsplit(".", 2)[0] + ".self_attn.o_proj"
        x, t = ours[name], targets[name].clone()
        if leaf in ("o_proj", "down_proj"):
            t += theirs[layer][0] - hidden[layer][0]
            t += targets[attention] - outputs[attention] if leaf == "down_proj" else 0
        elif leaf in ("gate_proj", "up_proj"):
            t = t[:, list(structure.kept_channels[layer])]
        else:
            kept = structure.kept_heads[layer] if leaf == "q_proj" else structure.kept_key_value_heads(layer)
            t = torch.cat([t[:, h * size : (h + 1) * size] for h in kept], 1)
        if linear.bias is not None:
            x, t = x - x.mean(0), t - t.mean(0)
        gram, cross, start = x.T @ x, t.T @ x, linear.weight.double()
        weight = got[f"{name}.weight"].double()
        left = cross - weight @ gram - settings.ridge * gram.diagonal().mean() * (weight - start)
        first = float((cross - start @ gram).norm())  # none in layer 0, whose inputs are the dense ones
        assert float(left.norm()) <= 2e-3 * first + 1e-5 * float(cross.norm()), name


SMALL: dict[str, Any] = {"tokens": 2500, "window": 64}


@pytest.fixture(scope="module")
def real_pair(stories: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Any]:
    """(dense, structured by a fifth, held-out text of the dense model's own) of the real small model."""
    folder = tmp_path_factory.mktemp("structured")
    loaded = load_model(stories)
    save_checkpoint(loaded.model, loaded.tokenizer, folder / "dense")
    text = write_own_text(loaded.model, loaded.tokenizer, tokens=5000, window=96, seed=0, temperature=1.0)
    calibration, held = text.split(0.4, seed=0)
    made, structure, report = prune_structured(loaded.model, share=0.2, calibration=calibration, heads=4)
    assert (report.heads, report.biases) == (4, 10)  # of two projections in five layers
    save_checkpoint(made, loaded.tokenizer, folder / "small", extra_files={STRUCTURE_FILE: structure.to_json()})
    return folder / "dense", folder / "small", held


def nll(path: Path, held: Any) -> float:
    return token_nll(load_model(path).model, held).mean


@pytest.mark.parametrize("recipe", ["fast", "best"])
def test_restored_is_better_than_pruned(recipe: str, real_pair: tuple[Path, Path, Any], tmp_path: Path) -> None:
    dense, small, held = real_pair
    tuned = TrainingSettings(learning_rates=(0.004,), batch_tokens=256, evaluations=3) if recipe == "best" else None
    report = restore(dense, small, tmp_path / "out", recipe=recipe, training=tuned, **SMALL)
    assert report.heldout["restored"] < report.heldout["pruned"]
    found = [nll(path, held) for path in (dense, small, tmp_path / "out")]
    assert found[1] - found[2] > 0.3 * (found[1] - found[0])
    assert read_structure(tmp_path / "out") == read_structure(small)
    masks_equal(small, tmp_path / "out")


def test_means_help(real_pair: tuple[Path, Path, Any]) -> None:
    _, small, held = real_pair
    model = load_model(small).model
    with_means = token_nll(model, held).mean
    for name, linear in prunable_linears(model):
        if linear.bias is not None:
            assert bool(linear.bias.any()) == name.endswith(("o_proj", "down_proj"))
            linear.bias.zero_()
    assert with_means < token_nll(model, held).mean - 0.05


def test_a_stock_process_loads_it(real_pair: tuple[Path, Path, Any]) -> None:
    """Nothing of ours in that process: the same logits, and physically fewer weights."""
    dense, small, held = real_pair
    ids = held.ids[:1, :20]
    logits, _, parameters = stock_logits(small, ids)
    with torch.no_grad():
        wanted = load_model(small).model(input_ids=ids).logits
    torch.testing.assert_close(logits, wanted, rtol=1e-5, atol=1e-5)
    assert parameters < 0.85 * sum(p.numel() for p in load_model(dense).model.parameters())


def test_zeros_on_top_stay(real_pair: tuple[Path, Path, Any], tmp_path: Path) -> None:
    """A structured checkpoint that is pruned once more keeps its file, and restore keeps both."""
    dense, small, held = real_pair
    loaded = load_model(small)
    prune_model(loaded.model, None, method="wanda", pattern="0.3", calibration=held)
    structure = read_structure(small)
    assert structure is not None
    both = tmp_path / "both"
    save_checkpoint(loaded.model, loaded.tokenizer, both, extra_files={STRUCTURE_FILE: structure.to_json()})
    restore(dense, both, tmp_path / "out", recipe="fast", **SMALL)
    masks_equal(both, tmp_path / "out")
    assert nll(tmp_path / "out", held) < nll(both, held)


@pytest.mark.parametrize("recipe", [name for name, recipe in RECIPES.items() if not recipe.changes_weights])
def test_vectors_for_heads_are_refused(recipe: str, real_pair: tuple[Path, Path, Any], tmp_path: Path) -> None:
    dense, small, _ = real_pair
    prompts = tmp_path / "text.jsonl"
    prompts.write_text("".join(json.dumps({"text": "One day,", "label": f" {i} cats sat"}) + "\n" for i in range(40)))
    with pytest.raises(ValueError, match=f"recipe {recipe} compares .* restore it with --recipe best or fast"):
        restore(dense, small, tmp_path / "out", recipe=recipe, data=prompts, **SMALL)
    assert not (tmp_path / "out").exists()
