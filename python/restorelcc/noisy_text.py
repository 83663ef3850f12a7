"""Prompts as people type them: typing errors, casing, words left out; by a seed, so that models read the same.

    typos   of a word: two neighbouring letters swapped, one left out, one doubled, or one replaced by a neighbour key
    case    a word in capitals, or its first letter the other way
    drop    a word left out

Each word is hit with the given probability; the gap of a sentence that a choice fills stays. What is asked for is the
answer to the noisy prompt; it stays as it is.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

__all__ = ["GAP", "NOISES", "Noise"]

NOISES = ("typos", "case", "drop")
GAP = re.compile(r"(?<!\w)_(?!\w)")  # that a choice fills; without it an item would be another kind of item
_KEYS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")


@dataclass(frozen=True)
class Noise:
    """kind: of `NOISES`. rate: share of the words that are hit, 0 to 1.

    Raises:
        ValueError: an unknown kind or a rate outside of 0..1.
    """

    kind: str
    rate: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in NOISES:
            raise ValueError(f"unknown noise {self.kind!r}; choose one of {', '.join(NOISES)}")
        if not 0 <= self.rate <= 1:
            raise ValueError(f"the noise rate is {self.rate}; it is a share of the words, 0 to 1")

    def apply(self, text: str) -> str:
        """`text` with the noise; the same for the same text, kind, rate and seed. White space stays."""
        draw = random.Random(f"{self.kind}/{self.rate}/{self.seed}/{text}")
        parts = re.split(r"(\s+)", text)
        for place, word in enumerate(parts):
            hit = place % 2 == 0 and any(letter.isalpha() for letter in word) and draw.random() < self.rate
            if hit and not GAP.search(word):
                parts[place] = {"typos": _mistyped, "case": _recased, "drop": _dropped}[self.kind](word, draw)
        return "".join(parts)


def _mistyped(word: str, draw: random.Random) -> str:
    places = [place for place, letter in enumerate(word) if letter.isalpha()]
    place = draw.choice(places)
    kind = draw.choice(("swap", "omit", "double", "neighbour"))
    if kind == "swap" and place + 1 < len(word) and word[place + 1].isalpha():
        return word[:place] + word[place + 1] + word[place] + word[place + 2 :]
    if kind == "omit" and len(places) > 1:
        return word[:place] + word[place + 1 :]
    letter = word[place]
    row = next((row for row in _KEYS if letter.lower() in row), None)
    if kind == "neighbour" and row is not None:
        at = row.index(letter.lower())
        other = row[at - 1] if at and (draw.random() < 0.5 or at + 1 == len(row)) else row[at + 1]
        return word[:place] + (other.upper() if letter.isupper() else other) + word[place + 1 :]
    return word[:place] + letter + word[place:]


def _recased(word: str, draw: random.Random) -> str:
    if draw.random() < 0.5:
        return word.upper() if word != word.upper() else word.lower()
    place = next(place for place, letter in enumerate(word) if letter.isalpha())
    return word[:place] + word[place].swapcase() + word[place + 1 :]


def _dropped(_: str, __: random.Random) -> str:
    return ""
