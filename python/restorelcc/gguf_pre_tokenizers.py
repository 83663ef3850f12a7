"""How a tokenizer cuts text before its merges, as llama.cpp names it: structures compared, not results.

    byte-level BPE (GGUF model "gpt2")     a list of patterns, each cutting the pieces of the one before
    SentencePiece BPE (GGUF model "llama") none: spaces become "▁", one more stands in front, merges run over all

llama.cpp has the same lists of patterns built in, by name. A tokenizer.json whose list, normaliser and handling of
whole words are those of a name cuts alike. What is not in the table is refused: a wrong name gives wrong tokens
silently.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .wording import one_line

__all__ = ["known_as", "merge_scores", "refusal"]

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTIONS_AND_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = _CONTRACTIONS_AND_WORDS + r"\p{N}{1,3}" + _REST
_QWEN2 = _CONTRACTIONS_AND_WORDS + r"\p{N}" + _REST
_DIGIT = r"\p{N}"

# (patterns, whether a piece that is a token is taken whole, without merges) -> tokenizer.ggml.pre
_NAMES = {
    ((_GPT2,), False): "gpt-2",
    ((_DIGIT, _GPT2), False): "smollm",
    ((_LLAMA3,), True): "llama-bpe",
    ((_LLAMA3,), False): "smaug-bpe",
    ((_QWEN2,), False): "qwen2",
}
_NFC = (
    "tokenizer.json composes characters first (NFC), llama.cpp does not: text with letters and accents apart is cut "
    "otherwise"
)
_SPACE = "\u2581"
_FRONT = "llama.cpp puts a space before text that begins with a space already; this tokenizer.json does not"
_BEHIND = "llama.cpp puts a space before text behind a special token; this tokenizer.json does not"


def known_as(tokenizer: Mapping[str, Any]) -> tuple[str, str, list[str]]:
    """(tokenizer.ggml.model, tokenizer.ggml.pre, what llama.cpp does otherwise) of a tokenizer.json's object.

    Raises:
        ValueError: a structure that llama.cpp has no name for, or that is not in the table.
    """
    model = tokenizer["model"]
    if model.get("type") != "BPE":
        raise refusal(f"its tokenizer is of type {one_line(model.get('type'), 40)}, not BPE")
    odd = [key for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix") if model.get(key)]
    if odd:
        raise refusal(f"its tokenizer has a {odd[0]}, which llama.cpp does not know")
    whole = bool(model.get("ignore_merges"))
    steps, normal = _steps(tokenizer.get("pre_tokenizer")), tokenizer.get("normalizer")
    if model.get("byte_fallback"):
        spaces = _spaces(steps, normal)
        if spaces is None or whole:
            raise refusal("its tokenizer falls back to bytes and does not treat spaces as Llama 2 does")
        return "llama", "default", spaces
    notes = []
    if normal is not None:
        if normal.get("type") != "NFC":
            raise refusal(f"its tokenizer normalises text ({one_line(normal.get('type'), 40)}), llama.cpp would not")
        notes = [_NFC]
    name = _NAMES.get((_patterns(steps), whole))
    if name is None:
        kinds = " and ".join(one_line(step.get("type"), 40) for step in steps) or "none"
        raise refusal(f"how its tokenizer cuts text ({kinds}) is not among what llama.cpp is known to do")
    return "gpt2", name, notes


def refusal(what: str) -> ValueError:
    """ValueError with what to do about a tokenizer that cannot be described."""
    return ValueError(f"{what}; pass --tokenizer with a GGUF file of the original model, which has one to carry over")


def _steps(pre: Any) -> list[dict[str, Any]]:
    if pre is None:
        return []
    if pre.get("type") == "Sequence":
        return [inner for part in pre["pretokenizers"] for inner in _steps(part)]
    return [dict(pre)]


def _patterns(steps: list[dict[str, Any]]) -> tuple[str, ...]:
    """The regular expressions of byte-level steps, one after another; () when a step is anything else."""
    if not steps or steps[-1].get("type") != "ByteLevel" or steps[-1].get("add_prefix_space"):
        return ()
    found = []
    for step in steps[:-1]:
        if step.get("type") == "Digits" and step.get("individual_digits"):
            found.append(_DIGIT)
        elif step.get("type") == "Split" and step.get("behavior") == "Isolated" and not step.get("invert"):
            found.append(str(step.get("pattern", {}).get("Regex", "")))
        else:
            return ()
    if steps[-1].get("use_regex", True):
        found.append(_GPT2)
    return tuple(found)


def _spaces(steps: list[dict[str, Any]], normal: Any) -> list[str] | None:
    """What llama.cpp does otherwise with spaces; None where they are not SentencePiece's."""
    prepend = {"type": "Prepend", "prepend": _SPACE}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    if not steps and normal == {"type": "Sequence", "normalizers": [prepend, replace]}:
        return []  # one in front of every piece between special tokens, as llama.cpp has it
    schemes = {"first": [_FRONT, _BEHIND], "always": [_FRONT]}
    scheme = schemes.get(str(steps[0].get("prepend_scheme"))) if len(steps) == 1 and normal is None else None
    meta = {"type": "Metaspace", "replacement": _SPACE, "split": False}
    return scheme if scheme is not None and all(steps[0].get(key) == value for key, value in meta.items()) else None


def merge_scores(vocabulary: Mapping[str, int], merges: list[tuple[str, str]]) -> dict[str, float]:
    """Token -> score, such that joining the best scored neighbours is what the merges do; of tokens that are joined.

    SentencePiece joins any two neighbours that make a token, the best score first. Merges are the same when those of
    each token stand together in the list, and no two parts make a token without being a merge: both are checked.

    Raises:
        ValueError: they are not the same, or a byte has no token.
    """
    missing = [f"<0x{byte:02X}>" for byte in range(256) if f"<0x{byte:02X}>" not in vocabulary]
    if missing:
        raise refusal(f"its tokenizer has no token for {len(missing)} bytes, such as {missing[0]}")
    scores: dict[str, float] = {}
    last = None
    for left, right in merges:
        joined = left + right
        if joined not in vocabulary or (joined in scores and joined != last):
            raise refusal(f"its merges, such as {left!r} and {right!r}, are not in the order of their tokens")
        scores.setdefault(joined, -float(len(scores)))
        last = joined
    pairs = set(merges)
    for token in vocabulary:
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            parts = (left in scores or len(left) == 1) and (right in scores or len(right) == 1)
            if parts and (left, right) not in pairs:
                raise refusal(f"its tokenizer does not join {left!r} and {right!r}, which llama.cpp would")
    return scores
