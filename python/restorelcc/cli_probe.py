"""The verb `probe`: head scores by one probe, their picture, and the comparison of several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from restorelcc.cli_options import (
    CONTRASTS,
    DTYPES,
    EDITS,
    PICTURES,
    PROBES,
    SIMILARITIES,
    Verb,
    as_bytes,
    as_directory,
    choice_option,
    components_option,
    emit,
    make_progress,
    moments_option,
    number_option,
    path_option,
    pruned_option,
    refuse_existing,
    text_of,
    writing_options,
)

if TYPE_CHECKING:
    from restorelcc.artifacts import Progress
    from restorelcc.probe_compare import CompareSettings
    from restorelcc.probe_sources import ProbeSources
    from restorelcc.score_file import HeadScores

_WHOLE = click.IntRange(min=1, max=2**63 - 1)
_FOR_COMPARE = ("seeds", "train_steps", "train_tokens", "eval_text", "eval_tokens")
_FOR_ONE = ("probe", "edit", "compensation", "heat_map")


def _whole_option(name: str, text: str) -> Callable[[Verb], Verb]:
    return click.option(name, type=_WHOLE, metavar="N", help=text)


@click.command()
@pruned_option
@moments_option
@choice_option("--probe", PROBES, "How heads are scored.")
@components_option
@choice_option("--contrast", CONTRASTS, "The change of the NLL on text, or of the margin between right and wrong.")
@choice_option("--edit", EDITS, "Give one head of the pruned model its part, or take it out of a restored one.")
@path_option("--compensation", "For ablate: a file of `restorelcc train`, or an adapter.", required=False, exists=True)
@path_option("--pairs", ".jsonl with text and label, or query, choices and gold.", required=False, exists=True)
@click.option("--dense", metavar="MODEL", help="For linear: answers' outputs from this model, as its authors do.")
@_whole_option("--max-pairs", "At most so many pairs, drawn by --seed.")
@number_option("--window", 256, "Tokens per row of a pair.", least=2)
@choice_option("--similarity", SIMILARITIES, "By which wrong answers are chosen; auto: embeddings where installed.")
@click.option("--share", type=float, default=0.25, show_default=True, help="Of heads that will be chosen.")
@_whole_option("--tokens", "Of the text to read.  [default: 4096; perplexity: 1024; --compare: the least of them]")
@click.option(
    "--memory", callback=as_bytes, metavar="SIZE", default="2GB", show_default=True, help="To use beside the model."
)
@choice_option("--dtype", DTYPES, "To compute in; stored: the checkpoint's, for half the memory and noisy scores.")
@path_option("--heat-map", ".png or .svg of the scores.", required=False)
@click.option("--compare", metavar="PROBE,...", help="Compare these: agreement, cost, and worth after training.")
@number_option("--seeds", 3, "With --compare: training runs per choice of heads.")
@_whole_option("--train-steps", "With --compare: at most so many.")
@_whole_option("--train-tokens", "With --compare: of text to train on.")
@path_option("--eval-text", "With --compare: text of another kind to measure on.", required=False, exists=True)
@number_option("--eval-tokens", 8192, "With --compare: of that text.")
@path_option("--out", "Head score file; with --compare a directory.")
@writing_options
def probe(pruned: Path, moments: Path, probe: str, components: str, contrast: str, edit: str,
          compensation: Path | None, pairs: Path | None, dense: str | None, max_pairs: int | None, window: int,
          similarity: str, share: float, tokens: int | None, memory: int, dtype: str, heat_map: Path | None,
          compare: str | None, seeds: int, train_steps: int | None, train_tokens: int | None, eval_text: Path | None,
          eval_tokens: int, out: Path, overwrite: bool, seed: int, as_json: bool, quiet: bool) -> None:  # fmt: skip
    """Step 2: score every head; larger means more worth restoring.

    With --compare, several probes at once, and what the heads that each one chooses are worth after the same
    training. Steps leave their files in OUT.work; a killed comparison, repeated, goes on from there.
    """
    from restorelcc.probe_sources import SourceFiles, check_choices, read_sources

    kinds = [probe] if compare is None else _names(compare)
    _refuse_unread(_FOR_COMPARE if compare is None else _FOR_ONE, compare)
    check_choices(
        kinds, contrast=contrast, edit=edit, pairs=pairs is not None, compensation=compensation is not None,
        dense=dense is not None,
    )  # fmt: skip
    _check_share(share)
    text = text_of(moments)
    inputs = [path for path in (pruned, moments, text, compensation, pairs, eval_text) if path is not None]
    refuse_existing(out, overwrite, *inputs, file=compare is None)
    if heat_map is not None:
        _check_picture(heat_map, overwrite, out, *inputs)
    progress = make_progress(quiet)
    whole = None if dense is None else as_directory(dense, moments.with_suffix(".dense"), progress)
    given = read_sources(
        SourceFiles(
            pruned, moments, text, components, compensation, pairs, whole, max_pairs, window, similarity, seed, dtype
        )
    )
    if compare is not None:
        from restorelcc.probe_compare import CompareSettings

        settings = CompareSettings(
            tuple(kinds), contrast, share, seeds, seed, tokens, train_tokens, train_steps, memory
        )
        _compare(given, out, settings, eval_text, eval_tokens, overwrite, as_json, progress)
        return
    from restorelcc import probes

    place = out.resolve().parent
    place.mkdir(parents=True, exist_ok=True)  # states that do not fit into memory go there
    scores = probes.head_scores(
        probe, given.model, given.text.first(tokens or probes.probe_tokens(probe)), given.components, seed=seed,
        progress=progress, pairs=given.pairs, contrast=contrast, edit=edit, compensation=given.compensation,
        share=share, memory=memory, scratch=place, dense=given.dense, record=given.record,
    )  # fmt: skip
    scores.save(out)
    if heat_map is not None:
        _draw(scores, share, heat_map)
    result = {
        "out": out, "probe": scores.kind, "unit": scores.unit, "scores": scores.scores.tolist(),
        "details": {key: value.tolist() for key, value in scores.details.items()}, "record": scores.record,
        "heat_map": heat_map,
    }  # fmt: skip
    emit(as_json, result, _lines(scores, share, out, heat_map))


def _names(compare: str) -> list[str]:
    """The probes of --compare."""
    names = [name.strip() for name in compare.split(",")]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or not all(names):
        what = f"names {twice[0]!r} twice" if twice and twice[0] else "has an empty name"
        raise ValueError(f"--compare {compare[:80]!r} {what}; give a list such as perplexity,attribution,random")
    return names


def _refuse_unread(options: Sequence[str], compare: str | None) -> None:
    """What was given and would not be read: options of the comparison without --compare, of one probe with it."""
    context = click.get_current_context()
    for name in options:
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            shown = f"--{name.replace('_', '-')}"
            raise ValueError(
                f"{shown} is for --compare; add that or leave {shown} out"
                if compare is None else f"--compare reads no {shown}; leave one of the two out"
            )  # fmt: skip


def _compare(
    given: ProbeSources, out: Path, settings: CompareSettings, eval_text: Path | None, eval_tokens: int,
    overwrite: bool, as_json: bool, progress: Progress,
) -> None:  # fmt: skip
    from restorelcc import probe_compare, probe_compare_tables
    from restorelcc.text import load_text

    other = None
    if eval_text is not None:
        window = int(given.text.ids.shape[1])
        other = load_text(eval_text, given.tokenizer, window=window, max_tokens=eval_tokens, seed=settings.seed)
        other.check_model(given.model)
    report = probe_compare.compare_probes(
        given, out, settings, eval_text=other, overwrite=overwrite, progress=progress
    )
    if as_json:
        emit(True, report, [])
    else:
        probe_compare_tables.show(report, [f"{out}: report.json, table.md, scores and heat maps"])


def _check_share(share: float) -> None:
    from torch import zeros

    from restorelcc.probes import select_heads

    try:
        select_heads(zeros(1, 1), share)
    except ValueError:
        raise ValueError(f"--share is {share:g}; give a number greater than 0 and at most 1") from None


def _check_picture(heat_map: Path, overwrite: bool, *others: Path) -> None:
    """Before any work: the file's form, its place, and whether pictures can be drawn at all."""
    import importlib.util

    if heat_map.suffix.lower() not in PICTURES:
        raise ValueError(f"--heat-map {heat_map} is neither .png nor .svg; end its name in one of them")
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError("--heat-map needs matplotlib; run: pip install matplotlib")
    refuse_existing(heat_map, overwrite, *others, file=True)
    if heat_map.resolve() == others[0].resolve():
        raise ValueError(f"--heat-map and --out are both {heat_map}; give two names")


def _draw(scores: HeadScores, share: float, path: Path) -> None:
    from restorelcc import heat_map, probes

    heat_map.save_heat_map(
        path, scores.scores.tolist(), scores.unit, title=heat_map.title_of(scores),
        chosen=probes.select_heads(scores.scores, share).tolist(),
        undecided=scores.undecided.tolist() if scores.undecided is not None else None,
    )  # fmt: skip


def _lines(scores: HeadScores, share: float, out: Path, heat_map: Path | None) -> Sequence[str]:
    best = int(scores.scores.argmax())
    layer, head = divmod(best, scores.scores.shape[1])
    memory: dict[str, Any] = scores.record["memory_used"]
    lines = [
        f"{out}: best head is layer {layer} head {head} with {float(scores.scores.flatten()[best]):.4g} "
        f"({scores.unit})",
        f"{scores.record['seconds']:.1f} s, peak {memory['peak'] / 1e6:,.0f} MB "
        f"({max(0, memory['peak'] - memory['before']) / 1e6:,.0f} MB more than before)",
    ]
    if scores.undecided is not None:
        lines.append(
            f"{int(scores.undecided.sum())} of {scores.scores.numel()} heads are undecided: their interval holds the "
            f"cut of the best {share:.0%}"
        )
    return lines if heat_map is None else [*lines, f"{heat_map}: heat map"]


def register(group: click.Group) -> None:
    """Add the verb to the command line."""
    group.add_command(probe)
