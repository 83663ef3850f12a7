"""A method's name with settings of its own: `compensate:probe=linear,heads=0.25,components=mean,rank=8`.

    name[:key=value,...]      name: of a recipe, a part of one or a peer      key: of that method, or tokens, epochs

So that every axis of an ablation is one command. Values are numbers where they read as numbers, `none`, or words.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

from restorelcc.recipes import RECIPES, Recipe
from restorelcc.training import check_vectors
from restorelcc.training_loop import TrainingSettings

Value = str | int | float | None
OF_COMPENSATIONS = (  # what recipes that change weights do not read, and what the others do not
    "sites", "probe", "probe_outputs", "heads", "components", "rank", "vectors", "train", "fold", "positions", "skip_first",
    "probe_tokens", "examples", "task", "training",
)  # fmt: skip
OF_WEIGHTS = ("refit", "objective", "tuning", "own_text", "biases")
PARTS = ("refit", "objective", "tuning")  # settings of a recipe that are dataclasses; their keys are looked up too


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
    settings: dict[str, Value] = {}
    for part in rest.split(",") if colon else []:
        key, equals, value = part.partition("=")
        if not key or not equals or not value:
            raise ValueError(f"{part!r} of {text} is no setting; write NAME:KEY=VALUE,KEY=VALUE")
        if key in settings:
            raise ValueError(f"{text} sets {key} twice; keep one")
        settings[key] = _value(value)
    if not name:
        raise ValueError(f"{text!r} names no method; write NAME or NAME:KEY=VALUE")
    return Variant(text, name, settings)


def _value(text: str) -> Value:
    if text == "none":
        return None
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


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

    Keys are the fields of `Recipe` and of its refit, objective and tuning settings: compensate:components=mean,
    compensate:sites=both, best:distill=0, fast:ridge=1. `refit=none` and `tuning=none` leave that step out;
    `components=none` is the word.

    Raises:
        ValueError: an unknown name or key, a value of another type, or a key that the recipe does not read.
    """
    known = recipes()
    if variant.name not in known:
        raise ValueError(f"unknown recipe {variant.name}; choose one of {', '.join(known)}")
    recipe = known[variant.name]
    unread = OF_COMPENSATIONS if recipe.changes_weights else OF_WEIGHTS
    for key, value in variant.settings.items():
        if key in unread:
            raise ValueError(f"recipe {variant.name} does not read {key} (of {variant.text}); leave it out")
        holder = _holder(variant, recipe, key)
        if holder is None:
            recipe = replace(recipe, **{key: _typed(variant, recipe, key, value)})
        elif holder == "training":
            settings = settings or TrainingSettings()
            settings = replace(settings, **{key: _typed(variant, settings, key, value)})
        else:
            part = getattr(recipe, holder)
            recipe = replace(recipe, **{holder: replace(part, **{key: _typed(variant, part, key, value)})})
    check_vectors(recipe.vectors, recipe.components)
    return replace(recipe, name=variant.text), settings


def _holder(variant: Variant, recipe: Recipe, key: str) -> str | None:
    """Which part of a recipe has this field; None: the recipe itself, `training`: the settings of the training."""
    if key in _names(recipe):
        return None
    for part in ("refit", "objective"):
        if getattr(recipe, part) is not None and key in _names(getattr(recipe, part)):
            return part
    if key in _names(TrainingSettings()):
        return "training"
    parts = [getattr(recipe, part) for part in ("refit", "objective") if getattr(recipe, part) is not None]
    known = [name for holder in (recipe, *parts, TrainingSettings()) for name in _names(holder)]
    raise ValueError(f"{variant.name} has no setting {key} (of {variant.text}); it has {', '.join(known)}")


def _names(holder: Any) -> list[str]:
    return [each.name for each in fields(holder) if each.name not in ("name", "seed")]


def _typed(variant: Variant, holder: Any, key: str, value: Value) -> Any:
    """The value, if the field may hold one of its type."""
    declared = next(str(each.type) for each in fields(holder) if each.name == key)
    kinds = {kind.strip() for kind in declared.split("|")}
    if value is None and "None" in kinds:
        return None
    if value is None and "str" in kinds:
        return "none"  # a word: components=none, train=none, fold=none
    if isinstance(value, (int, float)) and declared.startswith("tuple[float"):
        return (float(value),)
    if isinstance(value, int) and "int" in kinds:
        return value
    if isinstance(value, (int, float)) and "float" in kinds:
        return float(value)
    if isinstance(value, str) and "str" in kinds:
        return value
    if value is not None and is_dataclass(getattr(holder, key, None)):
        raise ValueError(f"{key} of {variant.text} is a whole step; leave it out with {key}=none, or set its own keys")
    raise ValueError(f"{key} of {variant.text} is {value!r}; it must be {declared}")
