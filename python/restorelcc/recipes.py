"""The recipes of `restore`: which steps, with which settings. Expected times and gains: docs/recipes.md.

    best         refit of the surviving weights, then tuning under the mask with distillation
    fast         refit alone: no training
    compensate   lost component compensation: one vector per head, the weights untouched
    paper        the same after RestoreLCC's authors' code: their linear probe, a quarter of the heads, components of
                 what was lost at the end of each prompt
    task         the same from a few multiple-choice items of one task; several serve one sparse model

`best` is the default. Every recipe keeps every zero, and none adds more than biases.
"""

from __future__ import annotations

from dataclasses import dataclass

from .refit import RefitSettings
from .task_training import TaskObjective
from .training_loop import TrainingSettings
from .tuning import TuningObjective

__all__ = ["DEFAULT", "RECIPES", "Recipe"]

DEFAULT = "best"
BIASES = ("all", "outputs", "none")
PROBE_OUTPUTS = ("pruned", "dense")


@dataclass(frozen=True)
class Recipe:
    """refit, tuning: None leaves the step out. own_text: share that the dense model writes of what they learn from.

    scripts: share of the rows of own text that begin with random tokens of one script (see `write_own_text`).

    biases: where tuning adds biases that the pruned model has not: all (every projection whose stock class can have
    one), outputs (the last projections of attention and FFN alone; where the class has one switch for all, the
    others stay zero, which packing leaves out) or none.
    examples: so many items of a task are all that is learnt from, with the objective `task` where `train` is `choices`.
    probe_outputs: whose head outputs at the end of an answer the linear probe tells right from wrong by: those of the
    pruned model, or of the dense one, as the authors' code does (see `probe_linear`).
    vectors: free, c = Σ β_i v_i + b, or spanned, c = Σ β_i v_i, of the components alone.
    training: of a compensation. sites: where it has vectors, attention, ffn or both. The rest is of the compensation,
    where the recipe makes one: see `restore`.
    """

    name: str
    refit: RefitSettings | None = None
    objective: TuningObjective | None = None
    tuning: TrainingSettings | None = None
    own_text: float = 0.5
    scripts: float = 0.0
    biases: str = "all"
    sites: str = "attention"
    probe: str = "attribution"
    probe_outputs: str = "pruned"
    heads: str | float = "all"
    components: str = "svd"
    rank: int | None = None
    vectors: str = "free"
    train: str = "lm"
    fold: str = "o_proj"
    positions: str = "all"
    skip_first: int = 1
    probe_tokens: int | None = None
    examples: int | None = None
    task: TaskObjective | None = None
    training: TrainingSettings | None = None

    def __post_init__(self) -> None:
        if self.biases not in BIASES:
            raise ValueError(f"biases is {self.biases}; it must be one of {', '.join(BIASES)}")
        if not 0 <= self.own_text < 1:
            raise ValueError(f"own_text is {self.own_text}; it is a share of all text, 0 or more and below 1")
        if not 0 <= self.scripts <= 1:
            raise ValueError(f"scripts is {self.scripts}; it is a share of the rows of own text, 0 to 1")
        for name, least in (("skip_first", 0), ("probe_tokens", 1), ("rank", 1)):
            count = getattr(self, name)
            if count is not None and count < least:
                raise ValueError(f"{name} is {count}; it must be {least} or more")
        if self.probe_outputs not in PROBE_OUTPUTS:
            raise ValueError(f"probe_outputs is {self.probe_outputs}; it must be one of {', '.join(PROBE_OUTPUTS)}")

    @property
    def changes_weights(self) -> bool:
        """Whether surviving weights change, rather than vectors being added to outputs of heads or FFNs."""
        return self.refit is not None or self.tuning is not None


RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            "best", RefitSettings(), TuningObjective(distill=0.3),
            TrainingSettings(learning_rates=(0.001,), epochs=2.0, patience=6), own_text=0.667,  # docs/findings.md
            scripts=0.125, biases="none",
        ),
        Recipe("fast", RefitSettings(), scripts=0.125),
        Recipe("compensate"),
        Recipe("paper", probe="linear", probe_outputs="dense", heads=0.25, positions="last"),
        Recipe(
            "task", train="choices", fold="none", probe_tokens=256, examples=100, task=TaskObjective(),
            training=TrainingSettings(
                learning_rates=(0.025,), epochs=2.0, batch_tokens=256, heldout_share=0.2, evaluations=4
            ),
        ),
    )
}  # fmt: skip
