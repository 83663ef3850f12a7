"""Settings of a recipe by name: what nothing would read is refused in one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from restorelcc.recipe_settings import Value, set_on_command_line, setting_names, with_settings
from restorelcc.recipes import RECIPES
from restorelcc.restore import restore


@pytest.mark.parametrize("setting", ["learning_rates=0.02", "epochs=2", "steps=3", "evaluations=2", "vectors=spanned"])
def test_the_closed_form_reads_no_training(setting: str) -> None:
    key = setting.partition("=")[0]
    with pytest.raises(ValueError, match=f"compensate with train=none does not read {key}; its settings are sites, "):
        set_on_command_line("compensate", [setting], train="none")
    assert set_on_command_line("compensate", [setting], train="lm").train == "lm"
    kept = set_on_command_line("compensate", ["heldout_share=0.25"], train="none")
    assert kept.training is not None
    assert kept.training.heldout_share == 0.25


@pytest.mark.parametrize(
    ("recipe", "settings", "key"),
    [
        ("compensate", {"epochs": 2, "train": None}, "epochs"),
        ("compensate", {"rank": 4, "components": "mean"}, "rank"),
        ("compensate", {"rank": 4, "components": None}, "rank"),
        ("task", {"train": "lm", "distill": 0.5}, "distill"),
        ("fast", {"epochs": 2}, "epochs"),
        ("best", {"tuning": None, "distill": 0.5}, "distill"),
    ],
)
def test_what_another_setting_leaves_unread(recipe: str, settings: dict[str, Value], key: str) -> None:
    """In whichever order they are written."""
    for given in (settings, dict(reversed(settings.items()))):
        with pytest.raises(ValueError, match=f"(does not read|has no setting) {key}; its settings are"):
            with_settings(RECIPES[recipe], given)
    assert key not in setting_names(with_settings(RECIPES[recipe], {k: v for k, v in settings.items() if k != key}))


def test_components_none_without_training_are_refused_before_any_work() -> None:
    with pytest.raises(ValueError, match="--components none leaves no directions, so no closed form; use --train lm"):
        restore(Path("dense"), Path("pruned"), Path("out"), recipe="compensate", components="none", train="none")


@pytest.mark.parametrize("components", ["mean", "none"])
def test_a_rank_of_components_without_one_is_refused_before_any_work(components: str) -> None:
    with pytest.raises(ValueError, match=f"components {components} have no rank to choose; leave --rank out"):
        restore(Path("dense"), Path("pruned"), Path("out"), recipe="compensate", components=components, rank=3)


@pytest.mark.parametrize("setting", ["probe_tokens=64", "probe_outputs=dense"])
def test_settings_of_scores_that_nobody_makes_are_refused(setting: str) -> None:
    key = setting.partition("=")[0]
    for recipe, heads in (("compensate", None), ("task", None), ("paper", "all")):
        with pytest.raises(ValueError, match=f"{key} is of the scores of heads, and all are taken unscored; add --hea"):
            set_on_command_line(recipe, [setting], heads=heads)
    assert set_on_command_line("compensate", [setting], heads="0.5").heads == "0.5"
    assert set_on_command_line("compensate", [setting], probe="linear").probe == "linear"
    assert set_on_command_line("paper", [setting]).heads == 0.25
    with pytest.raises(ValueError, match=f"best does not read {key}"):
        set_on_command_line("best", [setting])


def test_what_has_an_option_is_named_as_it_is_written() -> None:
    with pytest.raises(ValueError, match="train has an option of its own; write --train none in place of --set"):
        set_on_command_line("compensate", ["train=none"])


def test_scripts_of_own_text_that_is_not_asked_for() -> None:
    with pytest.raises(ValueError, match="scripts of fast is of the rows of own text, and own_text=0 asks for none"):
        set_on_command_line("fast", ["scripts=0.25", "own_text=0"])
    assert set_on_command_line("fast", ["own_text=0"]).own_text == 0
    with pytest.raises(ValueError, match=r"scripts=2 of best: scripts is 2\.0; it is a share of the rows of own text"):
        set_on_command_line("best", ["scripts=2"])
