"""Every method by its name: a seed in, the restored model and notes on how it came about out.

    dense, pruned                          the ends of the scale
    best, fast, compensate, paper, ...     recipes of `restore`, and parts of them (see `variants`)
    lora, dora, lofit                      peers that train (see `peers`)
    flap-bias, eora                        peers that do not (see `training_free`)
    dense-lora, dense-RECIPE               controls: the dense model given the very same training, which is adaptation
                                           alone; of recipes that tune

All read the same rows of the same file. `own_text` gives a peer what our recipes also learn from, text that the dense
model writes itself, as that share of all text; `distill` their objective.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import peers
import torch
import training_free
from variants import Variant, recipe_of, recipes

from restorelcc.artifacts import fingerprint
from restorelcc.control import tuned_dense
from restorelcc.models import load_model, load_tokenizer
from restorelcc.own_text import load_writer, tokens_beside
from restorelcc.pruning import sparsity_table
from restorelcc.recipes import RECIPES
from restorelcc.restore import restore
from restorelcc.text import TokenSet, load_text, write_own_text
from restorelcc.training_loop import TrainingSettings

Made = tuple[Any, dict[str, Any]]  # the model, and notes
ENDS = ("dense", "pruned")
PEERS: dict[str, dict[str, Any]] = {  # name -> its settings, by default
    "lora": {"rank": 8, "rate": peers.RATE, "own_text": 0.0, "scripts": 0.0, "distill": 0.0},
    "dora": {"rank": 8, "rate": peers.RATE, "own_text": 0.0, "scripts": 0.0, "distill": 0.0},
    "lofit": {"heads": 0.1, "l1": 5e-4, "own_text": 0.0, "scripts": 0.0, "distill": 0.0},
    "flap-bias": {"where": "output", "inputs": "dense", "scale": 1.0, "skip_first": 1},
    "eora": {"rank": 32, "skip_first": 0},
    "dense-lora": {"rank": 8, "rate": peers.RATE, "own_text": 0.0, "scripts": 0.0, "distill": 0.0},
}
SHARED = ("tokens", "epochs")  # settings that every method that trains takes


class Methods:
    """What all methods get; `make` runs one."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.dense, self.pruned = Path(options.dense), Path(options.pruned)
        self.work = Path(f"{options.out}.work")
        best = RECIPES["best"].tuning
        assert best is not None
        self.settings = replace(best, epochs=options.epochs)

    def check(self, variant: Variant) -> None:
        """Raises ValueError where `make` would for a name or a setting."""
        rest = variant.without(*_shared(variant.name))
        if variant.settings.get("scripts") and variant.name in PEERS and not variant.settings.get("own_text"):
            raise ValueError(
                f"scripts of {variant.name} is of the rows of own text, and it has none; add own_text=SHARE"
            )
        if variant.name in ("lora", "dora", "dense-lora") and importlib.util.find_spec("peft") is None:
            raise ValueError(f"{variant.name} needs the package peft; pip install peft, or leave {variant.name} out")
        if variant.name in ENDS:
            rest.take({})
        elif variant.name in PEERS:
            rest.take(self._defaults(variant.name))
        elif self._control(variant) is not None:
            name = variant.name.removeprefix("dense-")
            if recipe_of(replace(rest, name=name))[0].tuning is None:
                raise ValueError(f"{variant.name} is no control: recipe {name} trains nothing of a dense model")
        elif variant.name in recipes():
            recipe_of(rest)
        else:
            names = [*ENDS, *PEERS, *recipes(), "dense-RECIPE"]
            raise ValueError(f"unknown method {variant.name}; choose of {', '.join(names)}")

    def config(self, variant: Variant) -> dict[str, Any]:
        """What plots sort methods by: name, tokens, epochs, and the settings; of a compensation its axes too."""
        self.check(variant)
        rest = variant.without(*SHARED)
        found: dict[str, Any] = {"name": variant.name, "tokens": self._tokens(variant), "epochs": self._epochs(variant)}
        if variant.name in PEERS:
            return {**found, **rest.take(self._defaults(variant.name))}
        if variant.name in recipes():
            recipe, _ = recipe_of(rest)
            if not recipe.changes_weights:
                axes = ("probe", "heads", "components", "rank", "train", "positions")
                sites = {} if recipe.sites == "attention" else {"sites": recipe.sites}  # where results are silent on it
                return {**found, **rest.settings, **sites, **{axis: getattr(recipe, axis) for axis in axes}}
        return {**found, **rest.settings}

    def make(self, variant: Variant, seed: int) -> Made:
        """The model of one method and seed."""
        self.check(variant)
        name, rest = variant.name, variant.without(*SHARED)
        if name in ENDS:
            return load_model(self.dense if name == "dense" else self.pruned, dtype=torch.float32).model, {}
        if name in PEERS:
            return self._peer(variant, rest.take(self._defaults(name)), seed)
        control = self._control(variant)
        if control is not None:
            return self._tuned_dense(variant, replace(rest, name=control), seed)
        return self._ours(variant, rest, seed)

    def _defaults(self, name: str) -> dict[str, Any]:
        given = PEERS[name]
        return {**given, "rank": self.options.rank} if name in ("lora", "dora", "dense-lora") else given

    def _control(self, variant: Variant) -> str | None:
        """The recipe whose control this is."""
        name = variant.name.removeprefix("dense-")
        return name if name != variant.name and variant.name not in PEERS and name in recipes() else None

    def _tokens(self, variant: Variant) -> int:
        return int(variant.settings.get("tokens") or self.options.tokens)

    def _epochs(self, variant: Variant) -> float:
        return float(variant.settings.get("epochs") or self.options.epochs)

    def _text(self, variant: Variant, tokenizer: Any, seed: int) -> TokenSet:
        """The rows that `restore` reads."""
        return load_text(
            Path(self.options.data), tokenizer, window=self.options.window, max_tokens=self._tokens(variant), seed=seed
        )

    def _own_text(self, train: TokenSet, share: float, scripts: float, seed: int) -> TokenSet | None:
        """What the dense model writes itself, as that share of all text; the same text as the recipes'."""
        tokens = tokens_beside(train, share)
        if tokens == 0:
            return None
        window = self.options.window
        stamp = fingerprint(dense=self.dense, tokens=tokens, window=window, scripts=scripts, seed=seed)
        cache = self.work / f"own-{stamp[:16]}.safetensors"
        if not cache.is_file():
            dense = load_writer(self.dense)
            self.work.mkdir(parents=True, exist_ok=True)
            write_own_text(
                dense.model, dense.tokenizer, tokens=tokens, window=window, scripts=scripts, seed=seed
            ).save(cache)
        return TokenSet.load(cache)

    def _ours(self, variant: Variant, rest: Variant, seed: int) -> Made:
        """A recipe of `restore`, loaded back from the stock checkpoint it wrote."""
        base = self.settings if recipes()[variant.name].tuning is not None else TrainingSettings()
        recipe, training = recipe_of(rest, replace(base, epochs=self._epochs(variant)))
        out, work = self.work / f"{variant.text}-{seed}".replace(":", "-").replace(",", "-"), self._seed_work(seed)
        resumed = _begun(work)
        report = restore(
            self.dense, self.pruned, out, recipe=recipe, data=Path(self.options.data), tokens=self._tokens(variant),
            window=self.options.window, training=training, seed=seed, work=work, overwrite=True,
        )  # fmt: skip
        model = load_model(out, dtype=torch.float32).model
        shutil.rmtree(out)
        timings, reused = _with_reused(work, report.timings)
        return model, {
            "heldout": report.heldout, "search": report.search, "timings": timings, "reused_seconds": reused,
            **({"resumed": True} if resumed else {}),
        }  # fmt: skip

    def _seed_work(self, seed: int) -> Path:
        """Where the recipes of one seed leave their steps, so that what several begin with (a refit, moments, head
        scores) is computed once; those of other seeds are removed."""
        work = self.work / f"seed-{seed}"
        for other in self.work.glob("seed-*"):
            if other != work:
                shutil.rmtree(other)
        return work

    def _tuned_dense(self, variant: Variant, rest: Variant, seed: int) -> Made:
        """The control of a recipe (see `restorelcc.control`): same text and own text."""
        recipe, settings = recipe_of(rest, replace(self.settings, epochs=self._epochs(variant)))
        assert settings is not None
        settings = replace(settings, seed=seed)
        text = self._text(variant, load_tokenizer(self.dense), seed)
        train, _ = text.split(settings.heldout_share, seed=seed)
        own = self._own_text(train, recipe.own_text, recipe.scripts, seed)
        model, result = tuned_dense(self.dense, text, recipe, settings, extra=own)
        return model, {
            "heldout": {"pruned": result.heldout_before, "restored": result.heldout_after}, "search": result.search,
        }  # fmt: skip

    def _peer(self, variant: Variant, given: dict[str, Any], seed: int) -> Made:
        loaded = load_model(self.dense if variant.name == "dense-lora" else self.pruned, dtype=torch.float32)
        text = self._text(variant, loaded.tokenizer, seed)
        settings = replace(self.settings, epochs=self._epochs(variant), seed=seed)
        train, _ = text.split(settings.heldout_share, seed=seed)
        if variant.name in ("flap-bias", "eora"):
            dense = load_model(self.dense, dtype=torch.float32).model
            if variant.name == "eora":
                return loaded.model, training_free.eora(loaded.model, dense, train, **given)
            share = settings.heldout_share
            return loaded.model, training_free.flap_bias(
                loaded.model, dense, text, heldout_share=share, seed=seed, **given
            )
        distill = float(given.pop("distill"))
        own, scripts = float(given.pop("own_text")), float(given.pop("scripts"))
        extra = peers.Extra(
            self._own_text(train, own, scripts, seed), distill,
            load_model(self.dense, dtype=torch.float32).model if distill > 0 else None,
        )  # fmt: skip
        if variant.name == "lofit":
            result = peers.lofit(loaded.model, text, settings, extra=extra, **given)
            return loaded.model, {
                "heldout": {"pruned": result.tuning.before, "restored": result.tuning.after},
                "search": result.tuning.search, "selection": result.selection.search,
                "chosen": result.heads.sum(1).tolist(),
            }  # fmt: skip
        found = peers.low_rank(loaded.model, text, settings, dora=variant.name == "dora", extra=extra, **given)
        return loaded.model, {"heldout": {"pruned": found.before, "restored": found.after}, "search": found.search}


def _shared(name: str) -> tuple[str, ...]:
    """Those of `SHARED` that a method reads: what trains nothing has no epochs, the ends of the scale read no text."""
    known = recipes().get(name)
    untrained = name in ("flap-bias", "eora") or (known is not None and known.changes_weights and known.tuning is None)
    return () if name in ENDS else ("tokens",) if untrained else SHARED


def _begun(work: Path) -> bool:
    """Whether a killed call left part of what comes next, whose seconds nobody noted."""
    file = work / "seconds.json"
    known = " ".join(json.loads(file.read_text())) if file.is_file() else ""
    marks = [json.loads(mark.read_text()).get("fingerprint") for mark in work.glob("*.json") if mark != file]
    unfinished = [*work.glob("*.unfinished.safetensors"), *work.glob("*.layers")]
    return bool(unfinished) or any(mark is not None and mark not in known for mark in marks)


def _with_reused(work: Path, timings: dict[str, float]) -> tuple[dict[str, float], float]:
    """(timings as if nothing had been reused, the seconds that reusing saved), by a record in `work`.

    A step is known by the fingerprint beside its file, of all that went into it.
    """
    file = work / "seconds.json"
    known: dict[str, float] = json.loads(file.read_text()) if file.is_file() else {}
    found, saved = dict(timings), 0.0
    for step, now in timings.items():
        mark = work / f"{step.replace(' ', '_')}.json"
        if mark.is_file():
            key = f"{step} {json.loads(mark.read_text())['fingerprint']}"
            known[key] = found[step] = max(known.get(key, 0.0), now)
            saved += known[key] - now
    file.write_text(json.dumps(known))
    return found, saved


def sparsity(path: Path) -> float:
    """Share of the prunable weights of a checkpoint that are zero."""
    table = sparsity_table(path)
    return sum(row["zeros"] for row in table) / sum(row["rows"] * row["columns"] for row in table)
