"""Contrastive pairs: the same prompt with its right answer and with a wrong one.

    negative of row i = argmax over answers a_j ≠ a_i of  similarity(a_i, a_j)      prompt-answer rows: the whole file
                      = the same over the wrong choices of the question             multiple choice

RestoreLCC (arXiv 2510.21834), section 3.2: a wrong answer that is like the right one asks more of a head. What is kept
equal, so that only the content of the answers can tell the two rows apart:

- Answers that are byte-identical once surrounding white space is gone are one answer, and never each other's negative.
- A negative gets the white space around the positive it stands for.
- Both rows have the same prompt tokens: where the two joint strings are tokenised differently across the border, the
  tokens in question count as answer, in both rows.
- In a sentence with a gap the prompt is what stands before the gap; both answers run to the end of the sentence.
- A pair whose rows are the same within the window holds no contrast and is left out, as is a row without an answer, or
  without any different one. `note` counts them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .artifacts import atomic_write_tensors
from .models import quiet_transformers
from .similarity import SIMILARITIES, Similarity, choose_similarity, nearest
from .step_file import read_step_file
from .text import ChoiceItem, at_gap, json_lines, load_choices
from .token_set import TokenSet, padding_id
from .windows import answer_row

__all__ = ["SIMILARITIES", "PairSet", "contrastive_pairs"]

_FIELDS = {
    "positive_ids": (torch.int64, "n T"), "positive_lengths": (torch.int64, "n"), "positive_start": (torch.int64, "n"),
    "negative_ids": (torch.int64, "n S"), "negative_lengths": (torch.int64, "n"), "negative_start": (torch.int64, "n"),
}  # fmt: skip


@dataclass(frozen=True)
class PairSet:
    """Row i of `positive` and of `negative` is prompt i with its right and a wrong answer; only answers count.

    note: what was left out while making it, or "". similarity: by what the wrong answers were chosen, in words.

    Raises:
        ValueError: different numbers of rows.
    """

    positive: TokenSet
    negative: TokenSet
    note: str = ""
    similarity: str = ""

    def __post_init__(self) -> None:
        if len(self.positive) != len(self.negative):
            raise ValueError(
                f"{len(self.positive)} positive rows, but {len(self.negative)} negative ones; a pair needs one of each"
            )

    def __len__(self) -> int:
        return len(self.positive)

    def check_model(self, model: Any) -> None:
        """Raises ValueError when a token id is none of `model`'s vocabulary, or a row longer than its context."""
        self.positive.check_model(model)
        self.negative.check_model(model)

    def subset(self, rows: torch.Tensor | Sequence[int]) -> PairSet:
        """The pairs with these indices, in this order."""
        return PairSet(self.positive.subset(rows), self.negative.subset(rows), self.note, self.similarity)

    def fingerprint(self) -> str:
        """sha256 over both sides' tokens."""
        both = self.positive.fingerprint() + self.negative.fingerprint()
        return hashlib.sha256(both.encode()).hexdigest()

    def save(self, path: Path) -> None:
        """Writes a safetensors file, whole or not at all."""
        sides = {"positive": self.positive, "negative": self.negative}
        tensors: dict[str, torch.Tensor] = {}
        for name, side in sides.items():
            tensors |= {f"{name}_ids": side.ids, f"{name}_lengths": side.lengths, f"{name}_start": side.response_start}
        metadata = {
            "kind": "pairs", "version": "0", "name": self.positive.name, "note": self.note,
            "similarity": self.similarity, "fingerprint": self.fingerprint(),
        }  # fmt: skip
        atomic_write_tensors(path, tensors, metadata)

    @classmethod
    def load(cls, path: Path) -> PairSet:
        """Raises ValueError when the file is missing, damaged, changed or not a pair file of this version."""
        remedy = "make the pairs again"
        found, metadata = read_step_file(
            path, "pairs", _FIELDS, name="pair", remedy=remedy, marks=("name", "note", "similarity", "fingerprint")
        )
        try:
            sides = [
                TokenSet(found[f"{s}_ids"], found[f"{s}_lengths"], found[f"{s}_start"], metadata["name"])
                for s in ("positive", "negative")
            ]
        except ValueError as error:
            raise ValueError(f"{path} is damaged: {error}; {remedy}") from error
        pairs = cls(sides[0], sides[1], metadata["note"], metadata["similarity"])
        if pairs.fingerprint() != metadata["fingerprint"]:
            raise ValueError(f"{path} is damaged: its tokens are not those of its fingerprint; {remedy}")
        return pairs


@dataclass(frozen=True)
class _Question:
    """prompt + before + answer + behind is a row; `right` and `others` index the stripped answers (None: all)."""

    prompt: str
    right: int
    before: str
    behind: str
    others: tuple[int, ...] | None


class _Answers:
    """Stripped answers, each once, in the order they are first met."""

    def __init__(self) -> None:
        self._known: dict[str, int] = {}

    def add(self, text: str) -> int:
        """Its index."""
        return self._known.setdefault(text.strip(), len(self._known))

    @property
    def texts(self) -> list[str]:
        """All of them."""
        return list(self._known)


def contrastive_pairs(
    source: Path | str | Sequence[Mapping[str, Any] | ChoiceItem], tokenizer: Any, *, window: int,
    max_pairs: int | None = None, seed: int = 0, similarity: str = "auto",
) -> PairSet:  # fmt: skip
    """Pairs of a file or of rows; see the module for what is kept equal and what is left out.

    Args:
        source: a .jsonl of {"text": prompt, "label": answer} or of {"query", "choices", "gold"} (see `load_choices`);
            or such objects, or `ChoiceItem`s.
        window: tokens a row, prompt included; longer rows are cut, as `load_text` cuts them.
        max_pairs: at most as many pairs, drawn by `seed`, in file order. Wrong answers come from the whole file.
        similarity: `auto`, `tfidf`, `embeddings` or the directory of a sentence-transformers model; see `similarity`.

    Time is O(rows drawn × words in the file) at worst; memory O(words in the file).

    Raises:
        ValueError: no such file, a line that lacks its fields (with its number), a bad number, an unknown similarity,
            or no pair at all (with the reasons and their counts).
        MissingExtraError: `similarity` asks for a package that is not installed.
    """
    if window < 2:
        raise ValueError(f"a window of {window} tokens predicts nothing; use 2 or more")
    if max_pairs is not None and max_pairs < 1:
        raise ValueError(f"max_pairs is {max_pairs}; ask for at least 1")
    answers = _Answers()
    name = Path(source).name if isinstance(source, (str, Path)) else "rows"
    questions = [_of_choices(item, answers) if isinstance(item, ChoiceItem) else _of_text(item, answers)
                 for item in _rows(source)]  # fmt: skip
    measured = choose_similarity(answers.texts, similarity) if answers.texts else None
    order = torch.randperm(len(questions), generator=torch.Generator().manual_seed(seed)).tolist()
    made: dict[int, tuple[list[int], list[int], int]] = {}
    left_out: dict[str, int] = {}
    looked = 0
    with quiet_transformers():
        for index in order:
            if max_pairs is not None and len(made) == max_pairs:
                break
            looked += 1
            pair = _pair(questions[index], answers.texts, measured, tokenizer, window)
            if isinstance(pair, str):
                left_out[pair] = left_out.get(pair, 0) + 1
            else:
                made[index] = pair
    reasons = ", ".join(f"{left_out[reason]} {reason}" for reason in sorted(left_out))
    note = f"{looked - len(made)} of {looked} rows left out: {reasons}" if left_out else ""
    if not made:
        raise ValueError(f"{name} gives no pair; {note or 'it has no rows'}; use other rows or a larger window")
    right, wrong, starts = zip(*(made[index] for index in sorted(made)), strict=True)
    positive, negative = (
        TokenSet.from_rows(rows, pad=padding_id(tokenizer), name=name, starts=starts) for rows in (right, wrong)
    )
    return PairSet(positive, negative, note, measured.name if measured is not None else "")


def _rows(source: Path | str | Sequence[Mapping[str, Any] | ChoiceItem]) -> Sequence[Mapping[str, Any] | ChoiceItem]:
    """The rows of a file, checked, or what was given, checked."""
    if isinstance(source, (str, Path)):
        path = Path(source)
        numbered = list(json_lines(path))
        if numbered and {"choices", "gold"} <= numbered[0][1].keys():
            return load_choices(path)
        for number, value in numbered:
            _check_text(value, f"{path} line {number}")
        return [value for _, value in numbered]
    for number, row in enumerate(source):
        if not isinstance(row, ChoiceItem):
            _check_text(row, f"row {number}")
    return source


def _check_text(value: Mapping[str, Any], name: str) -> None:
    if not isinstance(value.get("text"), str) or not isinstance(value.get("label", ""), str):
        raise ValueError(
            f'{name} needs "text" (the prompt) and "label" (its answer), both strings, '
            'or "query", "choices" and "gold" in every line'
        )


def _of_text(row: Mapping[str, Any], answers: _Answers) -> _Question | None:
    """None where the row has no answer."""
    label: str = row.get("label", "")
    bare = label.strip()
    if not bare:
        return None
    before, behind = label[: len(label) - len(label.lstrip())], label[len(label.rstrip()) :]
    return _Question(row["text"], answers.add(bare), before, behind, None)


def _of_choices(item: ChoiceItem, answers: _Answers) -> _Question:
    """A gap of the sentence is filled by the choice; else the choice follows the query after a blank."""
    known = [answers.add(choice) for choice in item.choices]
    others = tuple(known[: item.gold] + known[item.gold + 1 :])
    parts = at_gap(item.query)
    if parts is not None:
        return _Question(parts[0], known[item.gold], "", parts[1], others)
    return _Question(item.query, known[item.gold], " ", "", others)


def _pair(
    question: _Question | None, texts: Sequence[str], measured: Similarity | None, tokenizer: Any, window: int
) -> tuple[list[int], list[int], int] | str:
    """(positive ids, negative ids, first token of the answers), or why there is no pair."""
    if question is None or measured is None:
        return "without an answer"
    wrong = nearest(measured.row(question.right), question.right, question.others)
    if wrong is None:
        return "without a different answer"
    (positive, starts), (negative, others) = (
        answer_row(tokenizer, question.prompt, question.before + texts[index] + question.behind)
        for index in (question.right, wrong)
    )
    positive, negative = positive[:window], negative[:window]
    start = min(starts, others, len(positive), len(negative))
    while positive[:start] != negative[:start]:
        start -= 1
    if start == 0:
        return "whose prompt has no token of its own"
    if start in (len(positive), len(negative)) or positive == negative:
        return f"without different answers within {window} tokens"
    return positive, negative, start
