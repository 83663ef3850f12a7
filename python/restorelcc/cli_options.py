"""Options and printing that several verbs share; no verb and no heavy import lives here."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from restorelcc.artifacts import Progress

# The libraries' own lists stand in modules that import torch; a test keeps these equal to them.
METHODS = ("wanda", "sparsegpt", "magnitude", "structured")
PROBES = ("attribution", "adaptive", "perplexity", "linear", "random")
RECIPES = ("best", "fast", "compensate", "paper", "task")
COMPONENTS = ("svd", "autoencoder", "mean", "random", "none")
TRAINERS = ("lm", "choices", "none")
SITES = ("attention", "ffn", "both")
FOLDS = ("o_proj", "none")
POSITIONS = ("all", "last", "response")
CONTRASTS = ("text", "margin")
EDITS = ("inject", "ablate")
SIMILARITIES = ("auto", "tfidf", "embeddings")
VALUES = ("bf16", "fp32", "fp16", "int8")
LM_HEADS = ("dense", "int8")
EXPORT_FORMATS = ("gguf",)
GGUF_TYPES = ("f32", "f16", "bf16")
NOISES = ("none", "typos", "case", "drop")
DTYPES = ("float32", "stored")
PICTURES = (".png", ".svg")
_UNITS = {"B": 1, **{f"{letter}B": 1000**power for power, letter in enumerate("KMGT", start=1)},
          **{f"{letter}IB": 1024**power for power, letter in enumerate("KMGT", start=1)}}  # fmt: skip

Verb = Callable[..., Any]


def path_option(
    name: str, text: str, *, required: bool = True, exists: bool = False, directory: bool = False
) -> Callable[[Verb], Verb]:
    """A file or directory; `exists`: refused when it is not there; `directory`: refused when it is a file."""
    kind = click.Path(path_type=Path, exists=exists, file_okay=not directory)
    return click.option(name, type=kind, required=required, metavar="PATH", help=text)


def choice_option(name: str, values: Sequence[str], text: str) -> Callable[[Verb], Verb]:
    """One of `values`, the first by default; a wrong one is refused with the list."""
    return click.option(name, type=click.Choice(values), default=values[0], show_default=True, help=text)


def own_choice_option(name: str, values: Sequence[str], text: str) -> Callable[[Verb], Verb]:
    """One of `values`; the recipe's own where it is not given."""
    return click.option(name, type=click.Choice(values), default=None, help=text)


def number_option(name: str, default: int, text: str, least: int = 1) -> Callable[[Verb], Verb]:
    """A whole number of at least `least` that fits into 64 bits."""
    kind = click.IntRange(min=least, max=2**63 - 1)
    return click.option(name, type=kind, default=default, show_default=True, help=text)


def as_bytes(context: click.Context, parameter: click.Parameter, value: str) -> int:
    """An amount of memory such as 512MB, 2GB (powers of 1000) or 1.5GiB (of 1024) in bytes; an option's callback."""
    shown = repr(value[:40])
    found = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,15})?) *([A-Za-z]+)", value.strip(), flags=re.ASCII)
    unit = _UNITS.get(found[2].upper()) if found is not None else None
    if found is None or unit is None:
        message = f"{shown} is no amount of memory; give a number and a unit such as 512MB or 2GB"
        raise click.BadParameter(message, context, parameter)
    size = int(float(found[1]) * unit)
    if not 0 < size < 2**63:
        message = f"{shown} is {'nothing' if size == 0 else 'more than any machine has'}; give an amount such as 2GB"
        raise click.BadParameter(message, context, parameter)
    return size


def reporting_options(verb: Verb) -> Verb:
    """--json and --quiet."""
    verb = click.option("--quiet", is_flag=True, help="No progress bars.")(verb)
    return click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout, nothing else.")(verb)


def writing_options(verb: Verb) -> Verb:
    """--overwrite, --seed, --json and --quiet."""
    verb = click.option("--overwrite", is_flag=True, help="Replace what is at --out.")(verb)
    return seeded_options(verb)


def seeded_options(verb: Verb) -> Verb:
    """--seed, --json and --quiet."""
    return number_option("--seed", 0, "Of every random choice.", least=0)(reporting_options(verb))


def text_options(verb: Verb) -> Verb:
    """--data, --tokens and --window."""
    verb = number_option("--window", 256, "Tokens per row of text.", least=2)(verb)
    verb = number_option("--tokens", 16384, "Tokens of text to use.")(verb)
    return path_option("--data", ".txt, or .jsonl with text (and label); default: the dense model writes its own.",
                 required=False, exists=True)(verb)  # fmt: skip


components_option = choice_option(
    "--components", COMPONENTS, "Directions: of the lost activation, by a seed, or none."
)
heads_option = click.option(
    "--heads", default="all", show_default=True, metavar="all|SHARE", help="Heads that get a vector."
)
trainer_option = choice_option(
    "--train", ("lm", "none"), "Language-model loss, or none: the closed form with a line search."
)
fold_option = choice_option("--fold", FOLDS, "Into the output projection's bias (a stock checkpoint), or an adapter.")
pruned_option = path_option("--pruned", "Checkpoint directory of the pruned model.", exists=True, directory=True)

moments_option = path_option("--moments", "File left by `restorelcc moments`.", exists=True)


def make_progress(quiet: bool) -> Progress:
    """Bars on stderr, or nothing."""
    from restorelcc.artifacts import RichProgress, SilentProgress

    return SilentProgress() if quiet else RichProgress()


def emit(as_json: bool, result: Mapping[str, Any], lines: Sequence[str]) -> None:
    """One JSON object (not-a-number becomes null), or a few lines for a person."""
    if as_json:
        click.echo(json.dumps(_plain(result), allow_nan=False))
    else:
        for line in lines:
            click.echo(line)


def memory_lines(peak: int) -> list[str]:
    """What the run took at most, in a line for a person; none where the system does not tell (0 bytes)."""
    return [f"peak memory {peak / 1e9:.1f} GB"] if peak else []


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if value - value == 0 else None
    return value if isinstance(value, (str, int, bool, type(None))) else str(value)


def as_directory(spec: str, beside: Path, progress: Progress) -> Path:
    """`spec` as a plain checkpoint directory; a GGUF file or hub model is converted once, to `beside`."""
    from restorelcc.artifacts import fingerprint
    from restorelcc.models import import_model, resolve_model
    from restorelcc.resume import is_finished, mark_finished

    if (Path(spec) / "config.json").is_file():
        return Path(spec)
    source = resolve_model(spec)
    file = source.path / source.gguf_file if source.path is not None and source.gguf_file else None
    stamp, mark = fingerprint(spec=spec, file=file), beside.with_name(beside.name + ".source.json")
    if (beside / "config.json").is_file() and is_finished(mark, stamp, beside):
        return beside
    if beside.is_dir():
        if not mark.is_file():
            raise ValueError(f"{beside} is where {spec} would be converted to, and was not made by this; move it away")
        shutil.rmtree(beside)
    directory = import_model(spec, beside, progress=progress)
    mark_finished(mark, stamp, directory)
    return directory


def refuse_existing(out: Path, overwrite: bool, *inputs: str | Path, file: bool = False) -> None:
    """Before any work, not after it; also an output that is, holds or stands inside one of its inputs."""
    from restorelcc.output_places import refuse_inputs, refuse_place

    refuse_inputs(out, *(Path(given) for given in inputs if Path(given).exists()))
    if file and out.is_dir():
        raise ValueError(f"{out} is a directory; pass the name of a file")
    used = out.is_file() or (out.is_dir() and any(out.iterdir()))
    if used and not overwrite:
        raise ValueError(f"{out} exists; pass --overwrite or another --out")
    if not file:
        refuse_place(out)


def text_beside(moments: Path) -> Path:
    """Where `moments` leaves the text that `probe` and `train` read."""
    return moments.with_name(moments.name.removesuffix(".safetensors") + ".text.safetensors")


def text_of(moments: Path) -> Path:
    """The text that a moments file was made of: beside it, or where `restore` leaves it in its work directory."""
    beside, restored = text_beside(moments), moments.with_name("text.safetensors")
    return restored if moments.name == "moments.safetensors" and restored.is_file() and not beside.exists() else beside
