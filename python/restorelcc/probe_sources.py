"""What probes read, from files: checked against each other before any work, each with its fingerprint.

    pruned checkpoint + moments + the text beside them        always
    pairs of right and wrong answers                          for contrast=margin and the linear probe
    compensation                                              for edit=ablate
    dense model                                               for the linear probe as the paper's authors have it
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .adapter import adapter_compensation, is_adapter
from .compensation import Compensation, check_fits
from .components import Components, lost_components
from .models import load_model
from .moments import Moments
from .pairs import PairSet, contrastive_pairs
from .probe_input import CONTRASTS, EDITS
from .probes import PROBES
from .resume import contents
from .sites import ATTENTION
from .text import TokenSet

__all__ = ["ProbeSources", "SourceFiles", "check_choices", "read_sources"]


@dataclass(frozen=True)
class SourceFiles:
    """Where everything is, and how pairs are made of their file (see `contrastive_pairs`).

    compensation: a file of `restorelcc train`, or an adapter directory. dtype: that the models compute in, "float32" or
    "stored", the checkpoint's: in bfloat16 most heads' contrasts are smaller than the rounding of the activations.
    """

    pruned: Path
    moments: Path
    text: Path
    components: str = "svd"
    compensation: Path | None = None
    pairs: Path | None = None
    dense: Path | None = None
    max_pairs: int | None = None
    window: int = 256
    similarity: str = "auto"
    seed: int = 0
    dtype: str = "float32"


@dataclass(frozen=True)
class ProbeSources:
    """All of it, loaded. record: the files' names and fingerprints, for the record of the scores."""

    model: nn.Module
    tokenizer: Any
    text: TokenSet
    components: Components
    pairs: PairSet | None = None
    compensation: Tensor | None = None
    dense: nn.Module | None = None
    record: dict[str, Any] = field(default_factory=dict)


def check_choices(
    kinds: Sequence[str], *, contrast: str, edit: str, pairs: bool, compensation: bool, dense: bool = False
) -> None:
    """Whether these probes can run on what is there; loads nothing.

    Raises:
        ValueError: an unknown probe, contrast or edit; something that is needed and missing, or given and not read.
    """
    for kind in kinds:
        if kind not in PROBES:
            raise ValueError(f"unknown probe {kind!r}; choose one of {', '.join(PROBES)}")
    for value, allowed, name in ((contrast, CONTRASTS, "contrast"), (edit, EDITS, "edit")):
        if value not in allowed:
            raise ValueError(f"unknown {name} {value!r}; choose one of {', '.join(allowed)}")
    if contrast == "margin" and not pairs:
        raise ValueError("the margin contrast compares right and wrong answers; give some with --pairs FILE.jsonl")
    if "linear" in kinds and not pairs:
        raise ValueError("the linear probe tells right answers from wrong ones; give some with --pairs FILE.jsonl")
    if pairs and contrast == "text" and "linear" not in kinds:
        raise ValueError("--pairs is read by --contrast margin and by the linear probe; ask for one of them")
    if dense and "linear" not in kinds:
        raise ValueError("--dense is read by the linear probe alone; ask for that or leave it out")
    if edit == "ablate" and not compensation:
        raise ValueError(
            "edit=ablate takes heads out of a restored model; give its compensation with --compensation, "
            "a file of `restorelcc train` or an adapter directory"
        )
    if compensation and edit != "ablate":
        raise ValueError("--compensation is read by --edit ablate alone; ask for that or leave it out")
    if edit == "ablate" and "linear" in kinds:
        raise ValueError("the linear probe knows no edit=ablate; use --edit inject or another probe")


def read_sources(files: SourceFiles) -> ProbeSources:
    """Everything that `files` names.

    Raises:
        ValueError: a file that is missing, damaged or of another model; a file of pairs that gives none.
    """
    moments = Moments.load(files.moments).part(ATTENTION, files.moments)
    components = lost_components(moments, kind=files.components)
    text = TokenSet.load(files.text)
    found = None if files.compensation is None else _compensation(files.compensation)
    dtype = None if files.dtype == "stored" else torch.float32
    loaded = load_model(files.pruned, dtype=dtype)
    components.check_model(loaded.model)
    text.check_model(loaded.model)
    if found is not None:
        if found.where != ATTENTION:
            raise ValueError(
                f"{files.compensation} has vectors of the sites {found.where}, and probes keep those of heads alone; "
                "give a compensation of --sites attention"
            )
        check_fits(loaded.model, found)
    pairs = None
    if files.pairs is not None:
        pairs = contrastive_pairs(
            files.pairs, loaded.tokenizer, window=files.window, max_pairs=files.max_pairs, seed=files.seed,
            similarity=files.similarity,
        )  # fmt: skip
    named = {
        "pruned": files.pruned, "moments": files.moments, "compensation": files.compensation, "pairs": files.pairs,
        "dense": files.dense,
    }  # fmt: skip
    record: dict[str, Any] = {
        "files": {
            name: {"path": str(path), "sha256": contents(path)} for name, path in named.items() if path is not None
        }
    }
    record["dtype"] = str(loaded.model.dtype).removeprefix("torch.")
    if pairs is not None:
        record["pair_settings"] = {
            "max_pairs": files.max_pairs, "window": files.window, "seed": files.seed, "similarity": files.similarity,
        }  # fmt: skip
    return ProbeSources(
        loaded.model, loaded.tokenizer, text, components, pairs, None if found is None else found.vectors,
        None if files.dense is None else load_model(files.dense, dtype=dtype).model, record,
    )  # fmt: skip


def _compensation(path: Path) -> Compensation:
    if is_adapter(path):
        return adapter_compensation(path)
    if path.is_dir():
        raise ValueError(
            f"{path} is no adapter directory; --compensation takes one, or a file of `restorelcc train` (a folded "
            "checkpoint holds its compensation in biases, from which heads cannot be told apart)"
        )
    return Compensation.load(path)
