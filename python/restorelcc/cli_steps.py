"""The steps of restore as verbs of their own: moments, train, fold; each leaves a file for the next.

Step 2, `probe`, has a file of its own.
"""

from __future__ import annotations

from pathlib import Path

import click

from restorelcc.cli_options import (
    POSITIONS,
    SITES,
    as_directory,
    choice_option,
    components_option,
    emit,
    fold_option,
    heads_option,
    make_progress,
    moments_option,
    number_option,
    own_choice_option,
    path_option,
    pruned_option,
    refuse_existing,
    text_beside,
    text_of,
    text_options,
    trainer_option,
    writing_options,
)


@click.command()
@click.option("--dense", required=True, metavar="MODEL", help="The model before pruning.")
@pruned_option
@path_option("--out", "Moments file; the text used is left beside it as .text.safetensors.")
@choice_option("--sites", SITES, "Of what attention heads lost, of what FFN outputs lost, or of both.")
@choice_option("--positions", POSITIONS, "Tokens that enter the moments; the first token never does.")
@number_option("--samples", 0, "Tokens whose lost activation is kept, for --components autoencoder.", least=0)
@text_options
@writing_options
def moments(dense: str, pruned: Path, out: Path, sites: str, positions: str, samples: int, data: Path | None,
            tokens: int, window: int, overwrite: bool, seed: int, as_json: bool, quiet: bool) -> None:  # fmt: skip
    """Step 1: stream text through both models and keep the moments of what each head, or FFN, lost."""
    from restorelcc import models
    from restorelcc import moments as module
    from restorelcc.restore import training_text
    from restorelcc.sites import ATTENTION, FFN
    from restorelcc.structure import refuse_structured

    refuse_existing(out, overwrite, dense, pruned, *([] if data is None else [data]), file=True)
    refuse_structured(pruned, "restorelcc moments")
    progress = make_progress(quiet)
    directory = as_directory(dense, out.with_suffix(".dense"), progress)
    models.check_pair(models.load_model(directory).model, models.load_model(pruned).model)
    text = training_text(
        directory, data=data, tokens=tokens, window=window, seed=seed, cache=text_beside(out), progress=progress
    )
    found = module.collect_moments(
        directory, pruned, text, out=out, sites=sites, positions=positions, samples=samples, seed=seed,
        progress=progress,
    )  # fmt: skip
    layers, counted = len(found.count), int(found.count[0])
    heads = sum(int(part.total.shape[1]) for part in found.parts if part.place == ATTENTION)
    result = {"out": out, "text": text_beside(out), "sites": sites, "layers": layers, "heads": heads,
              "counted_tokens": counted}  # fmt: skip
    units = [f"{heads} heads"] * (ATTENTION in found.places) + ["1 FFN"] * (FFN in found.places)
    emit(as_json, result, [f"{out}: moments of {layers} x {' and '.join(units)} over {counted} tokens"])


@click.command()
@pruned_option
@moments_option
@path_option(
    "--scores", "File left by `restorelcc probe`; needed when --heads is a share.", required=False, exists=True
)
@own_choice_option("--sites", SITES, "Of what the moments hold; all of it by default.")
@heads_option
@components_option
@click.option("--rank", type=click.IntRange(min=1), metavar="N", help="How many directions a head has.")
@trainer_option
@fold_option
@path_option("--out", "Compensation file.")
@writing_options
def train(pruned: Path, moments: Path, scores: Path | None, sites: str | None, heads: str, components: str,
          rank: int | None, train: str, fold: str, out: Path, overwrite: bool, seed: int, as_json: bool,
          quiet: bool) -> None:  # fmt: skip
    """Step 3: learn one vector per chosen head, or per FFN, the weights frozen."""
    from restorelcc import fold_target, models, probes, training
    from restorelcc.components import lost_components
    from restorelcc.moments import Moments
    from restorelcc.sites import FFN, chained, places_of
    from restorelcc.text import TokenSet

    refuse_existing(out, overwrite, pruned, moments, text_of(moments), *([scores] if scores else []), file=True)
    found = Moments.load(moments)
    found = chained([found.part(place, moments) for place in (found.places if sites is None else places_of(sites))])
    lost = lost_components(found, kind=components, rank=rank, seed=seed, progress=make_progress(quiet))
    if lost.where == FFN and (scores is not None or heads != "all"):
        raise ValueError(
            f"{'--heads ' + heads if scores is None else '--scores'} is of heads, and only FFNs get vectors here; "
            "leave it out or choose --sites both"
        )
    if scores is not None:
        values = probes.HeadScores.load(scores).scores
    elif heads == "all":
        values = lost.unit
    else:
        raise ValueError(f"--heads {heads} needs --scores, a file left by `restorelcc probe`; or use --heads all")
    if values.shape != lost.unit.shape:
        raise ValueError(f"{scores} has {tuple(values.shape)} heads, {moments} has {tuple(lost.unit.shape)}")
    chosen = probes.select_heads(values, heads)
    model, rows = models.load_model(pruned).model, TokenSet.load(text_of(moments))
    progress = make_progress(quiet)
    tied = fold_target.fold_target(model.config, places=lost.places).tied if fold == "o_proj" else 1
    if train == "lm":
        settings = training.TrainingSettings(seed=seed)
        learned = training.train_compensation(model, rows, lost, chosen, settings, tied=tied, progress=progress)
    else:
        learned = training.closed_form(model, rows, lost, chosen, tied=tied, seed=seed, progress=progress)
    learned.compensation.save(out)
    result = {
        "out": out, "heads": int(chosen.sum()), "heldout_before": learned.heldout_before,
        "heldout_after": learned.heldout_after, "history": learned.history, "search": learned.search,
    }  # fmt: skip
    emit(as_json, result, [
        *(["Nothing was gained on held-out rows."] if learned.heldout_after >= learned.heldout_before else []),
        f"{out}: NLL {learned.heldout_before:.4f} before, {learned.heldout_after:.4f} after, on held-out rows",
    ])  # fmt: skip


@click.command()
@pruned_option
@path_option("--compensation", "File left by `restorelcc train`.", exists=True)
@fold_option
@path_option("--out", "Directory of the restored checkpoint.")
@click.option("--overwrite", is_flag=True, help="Replace what is at --out.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout, nothing else.")
def fold(pruned: Path, compensation: Path, fold: str, out: Path, overwrite: bool, as_json: bool) -> None:
    """Step 4: write the restored checkpoint and prove that no zero changed."""
    from dataclasses import asdict

    from restorelcc import adapter
    from restorelcc import fold as fold_module
    from restorelcc.compensation import Compensation

    refuse_existing(out, overwrite, pruned, compensation)
    learned = Compensation.load(compensation)
    if fold == "none":
        adapter.save_adapter(pruned, learned, out, overwrite=overwrite)
        emit(as_json, {"out": out, "kind": "adapter"}, [f"{out}: adapter directory"])
        return
    report = fold_module.fold(pruned, learned, out, overwrite=overwrite)
    emit(as_json, {"out": out, **asdict(report)}, [
        f"{out}: {report.biases} biases ({report.reason}); masks of {report.matrices_compared} matrices identical"
    ])  # fmt: skip


def register(group: click.Group) -> None:
    """Add the three verbs to the command line."""
    for verb in (moments, train, fold):
        group.add_command(verb)
