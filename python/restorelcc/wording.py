"""What a file says, so that it can stand in a sentence of ours: a file may hold anything."""

from __future__ import annotations

__all__ = ["one_line"]


def one_line(said: object, most: int = 200) -> str:
    """str(said) on one printable line of at most `most` characters: "a\\nb" becomes "a b", an escape code "\\x1b"."""
    text = " ".join(str(said)[: 8 * most].split())
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return text if len(text) <= most else f"{text[: most - 3]}..."
