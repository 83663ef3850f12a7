"""What every model is measured by: text row by row, multiple choice item by item, written answers prompt by prompt.

    texts     --text NAME=FILE, prose of CPython's documentation, --languages de,fr (see `languages`)
    choices   --choices NAME=FILE, a seeded part of its items
    noise     every prompted text (with --noisy-choices the choices too) once more as NAME+typos, NAME+case, NAME+drop
    answers   --answers FILE, written greedily (see `answers`)

All are the same for all models of a run, and intervals come from the numbers of each row, item and prompt.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import languages
import torch
from answers import Prompts, load_prompts, measured_answers

from restorelcc.artifacts import fingerprint
from restorelcc.evaluation import multiple_choice, predicted_bytes, token_nll
from restorelcc.models import load_model
from restorelcc.noisy_text import NOISES, Noise
from restorelcc.text import ChoiceItem, TokenSet, load_choices, load_text, prose_windows

BATCH = 8
CHOICE_BATCH = 32  # rows of choices are short


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that this file reads."""
    parser.add_argument("--text", action="append", default=[], metavar="NAME=PATH", help="to evaluate on")
    parser.add_argument("--choices", action="append", default=[], metavar="NAME=PATH", help="multiple choice, .jsonl")
    parser.add_argument("--choice-items", type=int, default=300, help="items of each, drawn by --eval-seed")
    parser.add_argument("--noise", action="append", default=[], choices=NOISES, help="on the prompts of --text")
    parser.add_argument("--noisy-choices", action="store_true", help="on the questions of --choices too")
    parser.add_argument("--noise-rate", type=float, default=0.1, help="share of the words that are hit")
    parser.add_argument("--languages", default="", metavar="de,fr,...", help="of installed message catalogues")
    parser.add_argument("--catalogues", type=Path, action="append", default=[], help="where they are looked for")
    parser.add_argument("--answers", type=Path, metavar="PATH", help=".jsonl of prompts to answer, with references")
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--eval-tokens", type=int, default=12288, help="of each text")
    parser.add_argument("--eval-seed", type=int, default=1)


@dataclass(frozen=True)
class Measures:
    """What there is to measure; `measure` gives the part of a line of results."""

    texts: dict[str, TokenSet]
    sizes: dict[str, int]
    choices: dict[str, list[ChoiceItem]]
    prompts: Prompts | None
    judge: Any
    tokenizer: Any
    new_tokens: int

    def fingerprint(self) -> str:
        """Of everything that is measured."""
        return fingerprint(
            texts={name: rows.fingerprint() for name, rows in self.texts.items()},
            choices={name: _fingerprint(items) for name, items in self.choices.items()},
            answers=None if self.prompts is None else [self.prompts.fingerprint(), self.new_tokens],
        )  # fmt: skip

    def measure(self, model: Any) -> dict[str, Any]:
        """texts, choices and answers of one model, as numbers of each row, item and prompt."""
        found: dict[str, Any] = {"texts": {}, "choices": {}}
        for name, rows in self.texts.items():
            nll = token_nll(model, rows, batch=BATCH)
            found["texts"][name] = {
                "nll_sum": nll.nll_sum.tolist(), "count": nll.count.tolist(), "rows": rows.fingerprint(),
                "bytes": self.sizes[name],
            }  # fmt: skip
        for name, items in self.choices.items():
            answer = multiple_choice(model, self.tokenizer, items, batch=CHOICE_BATCH)
            found["choices"][name] = {
                "correct": answer.correct.int().tolist(), "normalised": answer.correct_normalised.int().tolist(),
                "items": _fingerprint(items),
            }  # fmt: skip
        if self.prompts is not None:
            found["answers"] = measured_answers(
                model, self.judge, self.tokenizer, self.prompts, new_tokens=self.new_tokens
            )
        return found


def load_measures(options: argparse.Namespace, dense: Path, tokenizer: Any) -> Measures:
    """What the options of `add_options` ask for.

    Raises:
        ValueError: an option that is no NAME=PATH, a name twice, or an unreadable file.
    """
    texts: dict[str, TokenSet] = {}
    choices: dict[str, list[ChoiceItem]] = {}
    kinds: list[Noise | None] = [None]
    kinds += [Noise(kind, options.noise_rate, options.eval_seed) for kind in options.noise]

    def put(found: dict[str, Any], name: str, value: Any) -> None:
        if name in found:
            raise ValueError(f"two things to measure are named {name}; give each a name of its own")
        found[name] = value

    def load(path: Path, noise: Noise | None = None) -> TokenSet:
        return load_text(
            path, tokenizer, window=options.window, max_tokens=options.eval_tokens, seed=options.eval_seed, noise=noise
        )

    for name, path in map(_named, options.text):
        for noise in kinds if path.suffix.lower() == ".jsonl" else kinds[:1]:
            put(texts, _with(name, noise), load(path, noise))
    put(texts, "prose", prose_windows(tokenizer, window=options.window, max_tokens=options.eval_tokens))
    folders = options.catalogues or languages.FOLDERS
    for language in filter(None, options.languages.split(",")):
        file = Path(f"{options.out}.{language}.txt")
        file.write_text(languages.translated_text(language, folders), encoding="utf-8")
        put(texts, language, load(file))
        file.unlink()
    for name, path in map(_named, options.choices):
        for noise in kinds if options.noisy_choices else kinds[:1]:
            items = load_choices(path, noise=noise)
            order = torch.randperm(len(items), generator=torch.Generator().manual_seed(options.eval_seed))
            put(choices, _with(name, noise), [items[place] for place in order[: options.choice_items].sort().values])
    prompts = None
    if options.answers is not None:
        prompts = load_prompts(
            options.answers, tokenizer, count=options.prompts, window=options.window, seed=options.eval_seed
        )
    return Measures(
        texts, {name: predicted_bytes(rows, tokenizer) for name, rows in texts.items()}, choices, prompts,
        load_model(dense, dtype=torch.float32).model if prompts is not None else None, tokenizer, options.new_tokens,
    )  # fmt: skip


def _named(given: str) -> tuple[str, Path]:
    name, equals, path = given.partition("=")
    if not name or not equals or not path:
        raise ValueError(f"{given!r} is no NAME=PATH; write for example answers=valid.jsonl")
    return name, Path(path)


def _with(name: str, noise: Noise | None) -> str:
    return name if noise is None else f"{name}+{noise.kind}"


def _fingerprint(items: list[ChoiceItem]) -> str:
    return fingerprint(items=[[item.query, list(item.choices), item.gold] for item in items])
