"""The result in another tool's format, as a verb: export writes a GGUF file for llama.cpp."""

from __future__ import annotations

from pathlib import Path

import click

from restorelcc.cli_options import (
    EXPORT_FORMATS,
    GGUF_TYPES,
    choice_option,
    emit,
    make_progress,
    own_choice_option,
    path_option,
    refuse_existing,
    reporting_options,
)


@click.command()
@click.argument("directory", type=click.Path(path_type=Path), metavar="DIR")
@choice_option("--format", EXPORT_FORMATS, "For llama.cpp.")
@path_option("--out", "The file to write.")
@own_choice_option("--type", GGUF_TYPES, "Of matrices; default: what the checkpoint stores.")
@click.option("--tokenizer", metavar="MODEL", help="Where the tokenizer comes from: the GGUF of the original model.")
@click.option("--overwrite", is_flag=True, help="Replace what is at --out.")
@reporting_options
def export(directory: Path, format: str, out: Path, type: str | None, tokenizer: str | None, overwrite: bool,
           as_json: bool, quiet: bool) -> None:  # fmt: skip
    """Write the stock Llama checkpoint DIR, restored or not, as one file for another tool.

    Its biases carry what was restored. Its zeros stay zeros, and are stored and multiplied as any other weight.
    """
    from dataclasses import asdict

    from restorelcc.gguf_export import export_gguf

    refuse_existing(out, overwrite, directory, file=True)
    report = export_gguf(
        directory, out, kind=type, tokenizer=tokenizer, overwrite=overwrite, progress=make_progress(quiet)
    )
    emit(as_json, {**asdict(report), "sparsity": report.sparsity, "format": format}, report.lines())


def register(group: click.Group) -> None:
    """Add the verb to the command line."""
    group.add_command(export)
