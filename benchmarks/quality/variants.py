"""A method's name with settings of its own: `compensate:probe=linear,heads=0.25,components=mean,rank=8`.

    name[:key=value,...]      name: of a recipe, a part of one or a peer      key: of that method, or tokens, epochs

So that every axis of an ablation is one command. Values are numbers where they read as numbers, `none`, or words.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from restorelcc.recipe_settings import Value, parse_settings, with_settings
from restorelcc.recipes import RECIPES, Recipe
from restorelcc.training import check_vectors
from restorelcc.training_loop import TrainingSettings


@dataclass(frozen=True)
class Variant:
    """text: as it was asked for, which is its name in files and tables. settings: key -> value."""

    text: str
    name: str
    settings: dict[str, Value] = field(default_factory=dict)

    def take(self, defaults: Mapping[str, Any]) -> dict[str, Any]:
        """`defaults` with the settings in their place.

        Raises:
            ValueError: a key that is not among them.
        """
        for key in self.settings:
            if key not in defaults:
                raise ValueError(f"{self.name} has no setting {key} (of {self.text}); it has {', '.join(defaults)}")
        return {**defaults, **self.settings}

    def without(self, *keys: str) -> Variant:
        """The variant less these settings."""
        return replace(self, settings={key: value for key, value in self.settings.items() if key not in keys})


def parse_methods(text: str) -> list[Variant]:
    """The variants of "name,name:key=value,key=value,name": a part with "=" and no ":" belongs to the name before it.

    Raises:
        ValueError: a setting before any name, an empty name, or one variant twice.
    """
    found: list[list[str]] = []
    for part in text.split(","):
        if "=" in part and ":" not in part:
            if not found or ":" not in found[-1][0]:
                raise ValueError(f"the setting {part} of --methods follows no name; write NAME:{part}")
            found[-1].append(part)
        else:
            found.append([part])
    variants = [_variant(",".join(parts)) for parts in found]
    names = [variant.text for variant in variants]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{twice[0]} is asked for {names.count(twice[0])} times; name each method once")
    return variants


def _variant(text: str) -> Variant:
    name, colon, rest = text.partition(":")
    settings = parse_settings(rest.split(",") if colon else [], text)
    if not name:
        raise ValueError(f"{text!r} names no method; write NAME or NAME:KEY=VALUE")
    return Variant(text, name, settings)


def recipes() -> dict[str, Recipe]:
    """Ours, and what they are worth without one of their parts."""
    best = RECIPES["best"]
    assert best.tuning is not None
    parts = {
        "tune": replace(best, refit=None), "tune-lm": replace(best, refit=None, objective=type(best.objective)()),
        "best-lm": replace(best, objective=type(best.objective)()),
        "fast-own": replace(RECIPES["fast"], own_text=0.0),
    }  # fmt: skip
    return {**RECIPES, **{name: replace(recipe, name=name) for name, recipe in parts.items()}}


def recipe_of(variant: Variant, settings: TrainingSettings | None = None) -> tuple[Recipe, TrainingSettings | None]:
    """(the recipe of that name with the settings in their place, the training settings likewise).

    Keys: see `restorelcc.recipe_settings`. compensate:components=mean, compensate:sites=both, best:distill=0.

    Raises:
        ValueError: an unknown name or key, a value of another type, or a key that the recipe does not read.
    """
    known = recipes()
    if variant.name not in known:
        raise ValueError(f"unknown recipe {variant.name}; choose one of {', '.join(known)}")
    recipe = known[variant.name]
    if settings is not None:
        recipe = replace(recipe, **{"training" if recipe.tuning is None else "tuning": settings})
    recipe = with_settings(recipe, variant.settings, of=variant.text)
    check_vectors(recipe.vectors, recipe.components)
    return replace(recipe, name=variant.text), recipe.tuning or recipe.training
