"""A recipe with some of its settings changed by name: own_text=0.5, epochs=1, distill=0, ridge=1, refit=none.

    KEY   a field of `Recipe`, of its refit, objective or task, or of the training that it makes
    VALUE a number where it reads as one, `none`, or a word

`refit=none` and `tuning=none` leave that step out; `components=none` and `train=none` are the words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

from .recipes import RECIPES, Recipe
from .training_loop import TrainingSettings

__all__ = ["Value", "parse_settings", "set_on_command_line", "setting_names", "with_settings"]

Value = str | int | float | None
OF_COMPENSATIONS = (  # what recipes that change weights do not read, and what the others do not
    "sites", "probe", "probe_outputs", "heads", "components", "rank", "vectors", "train", "fold", "positions",
    "skip_first", "probe_tokens", "examples",
)  # fmt: skip
OF_SCORES = ("probe_tokens", "probe_outputs")
OF_WEIGHTS = ("refit", "tuning", "own_text", "scripts", "biases")
DECIDING = ("refit", "tuning", "train", "components")  # what else is read follows from these
PARTS = ("refit", "objective", "task")  # their fields are looked up too
OPTIONS = ("sites", "probe", "heads", "components", "rank", "train", "fold", "positions", "examples")  # of `restore`
NOT_SET = ("name", "seed", "objective", "task", "training")  # the seed is one for a whole run, the others no values


def parse_settings(parts: Sequence[str], of: str) -> dict[str, Value]:
    """{"own_text": 0.5} of ["own_text=0.5"]; `of` says whose they are.

    Raises:
        ValueError: what is no KEY=VALUE, or a key twice.
    """
    found: dict[str, Value] = {}
    for part in parts:
        key, equals, value = part.partition("=")
        if not key or not equals or not value:
            raise ValueError(f"{part!r} of {of} is no setting; write KEY=VALUE")
        if key in found:
            raise ValueError(f"{of} sets {key} twice; keep one")
        found[key] = _value(value)
    return found


def _value(text: str) -> Value:
    if text == "none":
        return None
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def set_on_command_line(
    recipe: str, parts: Sequence[str], *, train: str | None = None, heads: str | None = None, probe: str | None = None
) -> Recipe:
    """The recipe of that name with what `--set` says of it; train, heads, probe: what their own options say, if
    anything.

    Raises:
        ValueError: as `parse_settings` and `with_settings`, a key that has an option of its own, or one of scores of
            heads where none are made (see `restore`).
    """
    settings = parse_settings(parts, "--set")
    for key, value in settings.items():
        if key in OPTIONS:
            said = "none" if value is None else value
            raise ValueError(f"{key} has an option of its own; write --{key} {said} in place of --set")
    chosen = RECIPES[recipe]
    if not chosen.changes_weights:  # others refuse the options themselves
        given: dict[str, Any] = {"train": train, "heads": heads, "probe": probe}
        chosen = replace(chosen, **{name: value for name, value in given.items() if value is not None})
        for key in OF_SCORES:
            if key in settings and probe is None and chosen.heads == "all":
                raise ValueError(f"{key} is of the scores of heads, and all are taken unscored; add --heads SHARE")
    return with_settings(chosen, settings)


def with_settings(recipe: Recipe, settings: Mapping[str, Value], *, of: str | None = None) -> Recipe:
    """The recipe with the settings in their place; `of` stands for it in errors.

    Those of the training go to `tuning` where weights are tuned, else to `training`.

    Raises:
        ValueError: an unknown key, a key that the recipe does not read, a value of another type or out of range, or
            settings that leave out every step of a recipe that changes weights.
    """
    name, weights = of or recipe.name, recipe.changes_weights
    for key, value in sorted(settings.items(), key=lambda item: item[0] not in DECIDING):
        holder = _holder(recipe, key, name)
        target = recipe if holder is None else getattr(recipe, holder) or TrainingSettings()
        fitting = _typed(target, key, value, name)
        try:
            changed: Any = replace(target, **{key: fitting})
        except ValueError as error:  # out of range, which the field's own class says
            raise ValueError(f"{key}={value} of {name}: {error}") from error
        recipe = changed if holder is None else replace(recipe, **{holder: changed})
    if settings.get("own_text") == 0 and settings.get("scripts"):
        raise ValueError(f"scripts of {name} is of the rows of own text, and own_text=0 asks for none; leave one out")
    if weights and not recipe.changes_weights:
        raise ValueError(f"{name} leaves nothing to do: it has neither refit nor tuning; keep one of them")
    return recipe


def setting_names(recipe: Recipe) -> list[str]:
    """All keys that `with_settings` takes of this recipe."""
    unread = OF_COMPENSATIONS if recipe.changes_weights else OF_WEIGHTS
    if recipe.tuning is None:
        unread = (*unread, "biases")  # which tuning alone adds
    if _closed_form(recipe):
        unread = (*unread, "vectors")
    if recipe.components in ("mean", "none"):
        unread = (*unread, "rank")
    own = [name for name in _names(recipe) if name not in unread]
    parts = [getattr(recipe, part) for part in _parts(recipe)]
    return [*own, *(name for part in parts for name in _names(part)), *_of_training(recipe)]


def _parts(recipe: Recipe) -> list[str]:
    """Those that this recipe has and reads: an objective is one of the tuning, a task one of learning by choices."""
    unread = [part for part, read in (("objective", recipe.tuning is not None), ("task", recipe.train == "choices"))
              if not read]  # fmt: skip
    return [part for part in PARTS if getattr(recipe, part) is not None and part not in unread]


def _closed_form(recipe: Recipe) -> bool:
    """Whether a compensation is computed and no more than scaled, so that nothing is trained."""
    return not recipe.changes_weights and recipe.train == "none"


def _of_training(recipe: Recipe) -> list[str]:
    """A refit alone and the closed form read of the training only which rows are held out."""
    trained = recipe.tuning is not None if recipe.changes_weights else not _closed_form(recipe)
    return _names(TrainingSettings()) if trained else ["heldout_share"]


def _holder(recipe: Recipe, key: str, name: str) -> str | None:
    """Which part of a recipe has this field; None: the recipe itself."""
    known = setting_names(recipe)
    if key not in known:
        elsewhere = key in (*OF_COMPENSATIONS, *OF_WEIGHTS, *_names(TrainingSettings()))
        problem = "does not read" if elsewhere else "has no setting"
        where = " with train=none" if _closed_form(recipe) and ":" not in name else ""  # a variant's name says so
        raise ValueError(f"{name}{where} {problem} {key}; its settings are {', '.join(known)}")
    if key in _names(recipe):
        return None
    for part in _parts(recipe):
        if key in _names(getattr(recipe, part)):
            return part
    return "tuning" if recipe.tuning is not None else "training"


def _names(holder: Any) -> list[str]:
    return [each.name for each in fields(holder) if each.name not in NOT_SET]


def _typed(holder: Any, key: str, value: Value, name: str) -> Any:
    """The value, if the field may hold one of its type."""
    declared = next(str(each.type) for each in fields(holder) if each.name == key)
    kinds = {kind.strip() for kind in declared.split("|")}
    if value is None and "None" in kinds:
        return None
    if value is None and "str" in kinds:
        return "none"
    if isinstance(value, (int, float)) and declared.startswith("tuple[float"):
        return (float(value),)
    if isinstance(value, int) and "int" in kinds:
        return value
    if isinstance(value, (int, float)) and "float" in kinds:
        return float(value)
    if isinstance(value, str) and "str" in kinds:
        return value
    if value is not None and is_dataclass(getattr(holder, key, None)):
        raise ValueError(f"{key} of {name} is a whole step; leave it out with {key}=none, or set its own keys")
    raise ValueError(f"{key} of {name} is {value!r}; it must be {declared}")
