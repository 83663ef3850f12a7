"""Calibration, training and evaluation text: from a file, from the dense model itself, from CPython's own pages.

load_text(file)          .txt: windows of running text; .jsonl: {"text"} or {"text", "label"}, loss on the answer
write_own_text(model)    the model samples its own text: no data needed
prose_windows()          the documentation that every CPython carries, for evaluation without a file
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .models import quiet_transformers
from .noisy_text import GAP, Noise
from .own_text import write_own_text
from .prose import prose_windows
from .token_set import TokenSet, padding_id
from .windows import answer_row, windows

__all__ = ["ChoiceItem", "TokenSet", "json_lines", "load_choices", "load_text", "prose_windows", "write_own_text"]


def load_text(
    path: Path, tokenizer: Any, *, window: int = 512, max_tokens: int | None = None, seed: int = 0,
    noise: Noise | None = None,
) -> TokenSet:  # fmt: skip
    """The tokens of a text file.

    Args:
        path: UTF-8. `.jsonl`: one object a line, {"text"} (every token counts) or {"text": prompt, "label": answer}
            (only the answer's tokens count; prompt and answer are tokenised as one string, no end of text is added).
            Every other suffix: running text, cut into windows that do not overlap, its ragged tail dropped.
        window: tokens a row. A window begins with what the tokenizer puts before a text (such as <s>), if anything.
            Longer lines of a .jsonl are cut to it; lines whose prompt alone fills it are left out and
            counted in `note`.
        noise: put on the prompts of a `.jsonl`; the answers stay.
        max_tokens: about as many tokens as this (whole rows, at least one), drawn by `seed`, in file order.

    Raises:
        ValueError: no such file, not UTF-8, no text, less than one window (both numbers), a line that is not JSON
            or lacks its field (with its number), or no line with an answer inside the window.
    """
    path = Path(path)
    if window < 2:
        raise ValueError(f"a window of {window} tokens predicts nothing; use 2 or more")
    text = _read(path)
    if path.suffix.lower() == ".jsonl":
        found = _from_lines(path, text, tokenizer, window, noise)
    elif noise is not None:
        raise ValueError(f"noise is for prompts, of which {path} has none; give a .jsonl of text and label")
    else:
        found = windows(text, tokenizer, window=window, name=path.name)
    return found if max_tokens is None else _draw(found, max_tokens, seed)


def _read(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8-sig")  # a byte order mark is no text
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist; give a .txt or .jsonl file") from None
    except IsADirectoryError:
        raise ValueError(f"{path} is a directory; give a .txt or .jsonl file") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start}); convert it first") from None
    if not text.strip():
        raise ValueError(f"{path} is empty; give a file with text")
    return text


def json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of each line of a .jsonl that is not blank.

    Raises:
        ValueError: no such file, not UTF-8, empty, or a line (with its number) that is no JSON object.
    """
    path = Path(path)
    return _objects(path, _read(path))


def _objects(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, object) of each line that is not blank."""
    for number, line in enumerate(text.split("\n"), start=1):  # not splitlines(): U+2028 may stand in a string
        if not line.strip():
            continue
        try:
            value = json.loads(line)
            line.encode() if "\\u" not in line else json.dumps(value, ensure_ascii=False).encode()
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} line {number} is not JSON ({error.msg})") from None
        except RecursionError:
            raise ValueError(f"{path} line {number} is not JSON of this form (nested too deep)") from None
        except UnicodeEncodeError:
            raise ValueError(f"{path} line {number} holds half of a surrogate pair; it is no text") from None
        if not isinstance(value, dict):
            raise ValueError(f"{path} line {number} is a JSON {type(value).__name__}; an object is expected")
        yield number, value


def _from_lines(path: Path, text: str, tokenizer: Any, window: int, noise: Noise | None) -> TokenSet:
    rows: list[list[int]] = []
    starts: list[int] = []
    left_out = lines = 0
    with quiet_transformers():
        for number, value in _objects(path, text):
            fields = [value.get("text"), value.get("label", "")]
            if not all(isinstance(field, str) for field in fields):
                raise ValueError(f'{path} line {number} needs "text" (and may have "label"), both strings')
            lines += 1
            if noise is not None:
                if not fields[1]:
                    raise ValueError(f"noise is for prompts, and {path} line {number} has no label behind one")
                fields[0] = noise.apply(fields[0])
            ids, start = (
                answer_row(tokenizer, fields[0], fields[1]) if fields[1] else (tokenizer(fields[0]).input_ids, 1)
            )
            if len(ids[:window]) > start:
                rows.append(ids[:window])
                starts.append(start)
            else:
                left_out += 1
    if not rows:
        raise ValueError(
            f"none of the {lines} lines of {path} has an answer within {window} tokens; use a larger window"
        )
    note = f"{left_out} of {lines} lines left out: no answer within {window} tokens" if left_out else ""
    return TokenSet.from_rows(rows, pad=padding_id(tokenizer), name=path.name, starts=starts, note=note)


def _draw(found: TokenSet, max_tokens: int, seed: int) -> TokenSet:
    """Whole rows of about max_tokens tokens, drawn by seed, in their old order."""
    if max_tokens < 1:
        raise ValueError(f"max_tokens is {max_tokens}; ask for at least 1")
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(seed))
    total = found.lengths[order].cumsum(0)
    count = max(int((total <= max_tokens).sum()), 1)
    return found if count == len(found) else found.subset(order[:count].sort().values)


@dataclass(frozen=True)
class ChoiceItem:
    """A question with choices; `gold` is the index of the right one.

    `pairs` are (context, continuation) per choice: the continuation is what a model scores. In a sentence with a gap
    ("_", WinoGrande) the choice goes into the context and the rest of the sentence is scored.
    """

    query: str
    choices: tuple[str, ...]
    gold: int

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """(context, continuation) of each choice."""
        parts = at_gap(self.query)
        if parts is not None:
            return [(parts[0] + choice, parts[1]) for choice in self.choices]
        return [(self.query, " " + choice.lstrip()) for choice in self.choices]


def at_gap(query: str) -> tuple[str, str] | None:
    """What stands before and behind the one gap of a sentence, a lone "_" with words behind it, as WinoGrande's; None
    where there is none: get_name and ____ are no gaps."""
    before, *behind = GAP.split(query)
    return (before, behind[0]) if len(behind) == 1 and behind[0].strip() else None


def load_choices(path: Path, *, noise: Noise | None = None) -> list[ChoiceItem]:
    """Multiple-choice items from a .jsonl of {"query", "choices", "gold"}.

    {"premise", "hypothesis", "choices", "gold"} becomes the query
    "<premise>\\nQuestion: <hypothesis> True or False?\\nAnswer:". Queries are taken as they are:
    put a template into the file if the model needs one.

    Raises:
        ValueError: no such file, empty, a bad line (with its number), fewer than 2 choices, gold out of range.
    """
    path = Path(path)
    items = []
    for number, value in json_lines(path):
        query = value.get("query")
        if query is None and "premise" in value and "hypothesis" in value:
            query = f"{value['premise']}\nQuestion: {value['hypothesis']} True or False?\nAnswer:"
        choices, gold = value.get("choices"), value.get("gold")
        if not isinstance(query, str) or not isinstance(choices, list) or type(gold) is not int:
            raise ValueError(
                f'{path} line {number} needs "query" (or "premise" and "hypothesis"), "choices" and "gold"'
            )
        if not all(isinstance(choice, (str, int, float)) and str(choice).strip() for choice in choices):
            raise ValueError(f"{path} line {number} has a choice that is no text or empty")
        if len(choices) < 2 or not 0 <= gold < len(choices):
            raise ValueError(
                f"{path} line {number} has {len(choices)} choices and gold {gold}; give 2 or more, gold from 0"
            )
        if not query.strip():
            raise ValueError(f"{path} line {number} has an empty query; give what the choices follow")
        if noise is not None:
            noisy = noise.apply(query)
            query = noisy if noisy.strip() else query  # a choice needs something that it follows
        items.append(ChoiceItem(query, tuple(str(choice) for choice in choices), gold))
    return items
