"""Running the result as verbs: pack writes the packed model, generate streams text from any model."""

from __future__ import annotations

from pathlib import Path

import click

from restorelcc.cli_options import (
    LM_HEADS,
    VALUES,
    choice_option,
    emit,
    make_progress,
    number_option,
    path_option,
    refuse_existing,
    reporting_options,
    seeded_options,
)


@click.command()
@click.argument("model")
@path_option("--out", "Directory of the packed model.")
@choice_option("--values", VALUES, "Type of the surviving weights; the rest of the model has it too (int8: bf16).")
@choice_option("--lm-head", LM_HEADS, "As the rest of the model, or rounded to int8.")
@click.option(
    "--compensation", "compensations", multiple=True, metavar="[NAME=]DIR",
    help="Adapter directory, restored checkpoint or compensation file; repeat it to serve several side by side.",
)  # fmt: skip
@click.option("--overwrite", is_flag=True, help="Replace what is at --out.")
@reporting_options
def pack(model: str, out: Path, values: str, lm_head: str, compensations: tuple[str, ...], overwrite: bool,
         as_json: bool, quiet: bool) -> None:  # fmt: skip
    """Write the pruned or restored MODEL with its zeros packed away, ready to run.

    The one compensation without a NAME applies by default. Embeddings stay dense.
    """
    from dataclasses import asdict

    from restorelcc.pack_checkpoint import pack_checkpoint, parse_compensations

    refuse_existing(out, overwrite)
    report = pack_checkpoint(
        model, out, values=values, lm_head=lm_head, compensations=parse_compensations(compensations),
        overwrite=overwrite, progress=make_progress(quiet),
    )  # fmt: skip
    emit(as_json, {**asdict(report), "sparsity": report.sparsity, "model": model}, report.lines())


@click.command()
@click.argument("model")
@click.argument("prompt")
@number_option("--max-new-tokens", 128, "Stop after so many; the end of the model's context stops too.")
@click.option("--chat/--no-chat", default=None, help="Use the chat template; default: where the tokenizer has one.")
@click.option("--compensation", metavar="NAME|none", help="Of a packed model with several; default: its default one.")
@click.option(
    "--temperature", type=click.FloatRange(min=0), default=0.0, show_default=True, help="0: the likeliest token."
)
@click.option("--compile", "compiled", is_flag=True, help="Compile decoding first; needs a C++ compiler.")
@click.option("--huge-pages", is_flag=True, help="Copy a packed model into pages of 2 MiB: faster, not shared.")
@seeded_options
def generate(model: str, prompt: str, max_new_tokens: int, chat: bool | None, compensation: str | None,
             temperature: float, compiled: bool, huge_pages: bool, seed: int, as_json: bool,
             quiet: bool) -> None:  # fmt: skip
    """Answer PROMPT with MODEL, a packed or an adapter directory: text to stdout as it comes, tokens/s to stderr.

    With --json the text comes at the end, in the object.
    """
    from dataclasses import asdict

    from restorelcc.generation import generate as run

    result = run(
        model, prompt, max_new_tokens=max_new_tokens, chat=chat, compensation=compensation, temperature=temperature,
        seed=seed, stream=not as_json, compiled=compiled, huge_pages=huge_pages,
    )  # fmt: skip
    if as_json:
        emit(True, {**asdict(result), "tokens_per_second": result.tokens_per_second, "seed": seed}, [])
    elif not quiet:
        click.echo(result.line(), err=True)


def register(group: click.Group) -> None:
    """Add the two verbs to the command line."""
    for verb in (pack, generate):
        group.add_command(verb)
