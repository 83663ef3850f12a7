"""English prose that every CPython carries: the language reference in `pydoc_data.topics`.

It makes an evaluation possible without any file. The pages are reStructuredText rendered as plain text; what is no
prose (headings, grammar, code, tables, signatures) is dropped paragraph by paragraph.
"""

from __future__ import annotations

import re
from typing import Any

from .token_set import TokenSet
from .windows import windows

__all__ = ["prose_paragraphs", "prose_windows"]

_LEAST_WORDS = 12


def prose_windows(tokenizer: Any, *, window: int = 512, max_tokens: int | None = None) -> TokenSet:
    """Windows of the prose in CPython's `pydoc_data.topics`, in alphabetical order of the topics.

    With CPython 3.11 and the tokenizer of SmolLM2 this makes 79 windows of 512: about 40,000 tokens.

    The topics differ a little between Python versions, so compare numbers only within one version; the set's name
    carries the version.

    Args:
        window: tokens a row.
        max_tokens: at most this many tokens (whole rows, at least one), the first ones.

    Raises:
        ValueError: this Python has no `pydoc_data`, or less text than one window.
    """
    import platform

    name = f"prose of the CPython {platform.python_version()} documentation"
    found = windows("\n\n".join(prose_paragraphs()), tokenizer, window=window, name=name)
    if max_tokens is None:
        return found
    return found.subset(range(min(len(found), max(1, max_tokens // window))))


def prose_paragraphs() -> list[str]:
    """The paragraphs, each on one line, without markup; a repeated paragraph only once.

    Raises:
        ValueError: this Python was built without `pydoc_data`.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise ValueError("this Python has no pydoc_data; give a text file instead") from None
    found: dict[str, None] = {}
    for topic in sorted(topics):
        for block in re.split(r"\n\s*\n", topics[topic]):
            text = _plain(block)
            if text is not None:
                found.setdefault(text)
    return list(found)


def _plain(block: str) -> str | None:
    """The block as one line of prose, or None when it is not prose."""
    lines = block.strip("\n").split("\n")
    indent = len(lines[0]) - len(lines[0].lstrip())
    if indent > 4 or any(re.fullmatch(r"\s*[*=~^+|-]{3,}.*", line) for line in lines):  # code, headings, tables
        return None
    if any(mark in block for mark in ("::=", ">>>", "...  ", "| ", "==")) or re.search(r"\S {3,}\S", block):
        return None
    text = " ".join(re.sub(r"(?<=\w)-\n\s*(?=\w)", "-", "\n".join(lines)).split())
    text = re.sub(r"^(\*|\d+\.|\[\d+\]) +", "", text)  # list marks
    text = re.sub(r" ?\[\d+\]", "", text)  # footnote marks
    text = re.sub(r"\*\*?([^*\s][^*]*?)\*\*?", r"\1", text)  # emphasis
    text = re.sub(r'"([\w.()-]+(?: [\w.()-]+)*)"', r"\1", text)  # code quotes around names
    if not re.match(r"[A-Z]", text) or not re.search(r"[.!?]$", text):
        return None
    words = text.split()
    plain = sum(bool(re.fullmatch(r"[(“]?[A-Za-z][A-Za-z’'-]*[)”]?[.,;:!?]?", word)) for word in words)
    return text if len(words) >= _LEAST_WORDS and plain >= 0.85 * len(words) else None
