"""The tokenizer of a GGUF file: taken over from another one field by field, or described from a tokenizer.json.

    tokenizer.ggml.model, .pre                 how text is cut and joined (see gguf_pre_tokenizers)
    tokenizer.ggml.tokens, .token_type         one a row of the embedding; a row without a token is [PADi], unused
    tokenizer.ggml.merges | .scores            byte-level BPE | SentencePiece
    tokenizer.ggml.{bos,eos,...}_token_id, .add_{bos,eos}_token, tokenizer.chat_template
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .gguf_pre_tokenizers import known_as, merge_scores, refusal
from .models import ModelSource, load_tokenizer, plain_errors
from .wording import one_line

__all__ = ["Field", "Vocabulary", "carried_vocabulary", "stock_vocabulary"]

_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6  # gguf.TokenType


@dataclass(frozen=True)
class Field:
    """A key of the file; kind and item are gguf.GGUFValueType, item that of an array's elements."""

    key: str
    value: Any
    kind: Any
    item: Any = None


@dataclass(frozen=True)
class Vocabulary:
    """fields: all of the tokenizer. about: what it is, in words. notes: where llama.cpp differs from stock."""

    fields: tuple[Field, ...]
    about: str
    notes: tuple[str, ...] = ()

    def write(self, writer: Any) -> None:
        """Adds the fields to a gguf.GGUFWriter."""
        for field in self.fields:
            writer.add_key_value(field.key, field.value, field.kind, field.item)


def carried_vocabulary(source: ModelSource, rows: int, own: Mapping[str, int] | None) -> Vocabulary:
    """Every tokenizer field of the GGUF file `source`, as it is.

    Args:
        rows: of the embedding: as many tokens there must be.
        own: token -> id of the checkpoint's own tokenizer, where it has one: the ordinary tokens must be the same.

    Raises:
        ValueError: a damaged file, one without a tokenizer, or one of another model.
    """
    import gguf

    package: Any = gguf
    with plain_errors(source.spec):
        reader = package.GGUFReader(source.location + "/" + str(source.gguf_file))
        found = [
            Field(key, field.contents(), field.types[0], field.types[-1] if len(field.types) > 1 else None)
            for key, field in reader.fields.items()
            if key.startswith("tokenizer.")
        ]
    fields = tuple(field for field in found if field.value != [])  # an empty list cannot be written
    by_key = {field.key: field.value for field in fields}
    tokens, kinds = by_key.get("tokenizer.ggml.tokens"), by_key.get("tokenizer.ggml.token_type")
    if not isinstance(tokens, list) or "tokenizer.ggml.model" not in by_key:
        raise ValueError(f"{source.spec} holds no tokenizer; pass the GGUF file of the whole model")
    if len(tokens) != rows:
        raise ValueError(
            f"the tokenizer of {source.spec} has {len(tokens)} tokens and the embedding {rows} rows; "
            "it belongs to another model"
        )
    ordinary = [number for number in range(rows) if kinds is None or kinds[number] == _NORMAL]
    other = [number for number in ordinary if own is not None and own.get(tokens[number]) != number]
    if other:
        raise ValueError(
            f"token {other[0]} of {source.spec} is {one_line(repr(tokens[other[0]]), 40)}, which is none or another of "
            f"the checkpoint's own tokenizer ({len(other)} tokens differ); it belongs to another model"
        )
    pre = by_key.get("tokenizer.ggml.pre", "default")
    return Vocabulary(fields, f"carried over from {source.spec} ({one_line(pre, 40)})")


def stock_vocabulary(source: ModelSource, config: Any) -> Vocabulary:
    """From the Hugging Face tokenizer of `source`, as the stock loader makes it.

    Raises:
        ValueError: no tokenizer, one that is not described by a tokenizer.json, one that llama.cpp cannot be told of
            (see `known_as`), tokens beyond the embedding, or no end token.
    """
    tokenizer = load_tokenizer(source)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise refusal(f"the tokenizer of {source.spec} has no tokenizer.json")
    described = json.loads(backend.to_str())
    model, pre, notes = known_as(described)
    rows = int(config.vocab_size)
    vocabulary = {str(token): int(number) for token, number in tokenizer.get_vocab().items()}
    beyond = [(number, token) for token, number in vocabulary.items() if not 0 <= number < rows]
    if beyond:
        number, token = min(beyond)  # the vocabulary comes in no order
        raise ValueError(
            f"the tokenizer has {one_line(repr(token), 40)} as token {number} and the embedding has "
            f"{rows} rows; give the embedding rows for all tokens"
        )
    added = dict(tokenizer.added_tokens_decoder)
    tokens, kinds = _tokens(vocabulary, added, described["model"], rows)
    if len(set(tokens)) < rows:
        raise refusal("its tokenizer has a token that is named like an unused row")
    if any(token.lstrip or token.rstrip or token.single_word for token in added.values()):
        notes.append("some added tokens take the spaces beside them in tokenizer.json; in llama.cpp they do not")
    parts = [tuple(part.split(" ", 1) if isinstance(part, str) else part) for part in described["model"]["merges"]]
    merges = [(str(left), str(right)) for left, right in parts]
    extra = _joining(model, vocabulary, merges, tokens)
    fields = (*_head(model, pre, tokens, kinds), *extra, *_special(tokenizer, config, vocabulary))
    return Vocabulary(fields, f"{'byte-level' if model == 'gpt2' else 'SentencePiece'} BPE ({pre})", tuple(notes))


def _tokens(
    vocabulary: Mapping[str, int], added: Mapping[int, Any], model: Mapping[str, Any], rows: int
) -> tuple[list[str], list[int]]:
    """Text and kind of every row."""
    tokens = [f"[PAD{number}]" for number in range(rows)]
    kinds = [_UNUSED] * rows
    falls_back = bool(model.get("byte_fallback"))
    for token, number in vocabulary.items():
        tokens[number], kinds[number] = token, _NORMAL
        if falls_back and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            kinds[number] = _BYTE
    for number, token in added.items():
        if number < rows:
            kinds[number] = _CONTROL if token.special else _USER
    unknown = vocabulary.get(str(model.get("unk_token")))
    if falls_back and unknown is not None:
        kinds[unknown] = _UNKNOWN
    return tokens, kinds


def _head(model: str, pre: str, tokens: list[str], kinds: list[int]) -> list[Field]:
    import gguf

    keys, kind = gguf.Keys.Tokenizer, gguf.GGUFValueType
    return [
        Field(keys.MODEL, model, kind.STRING),
        Field(keys.PRE, pre, kind.STRING),
        Field(keys.LIST, tokens, kind.ARRAY, kind.STRING),
        Field(keys.TOKEN_TYPE, kinds, kind.ARRAY, kind.INT32),
    ]


def _joining(
    model: str, vocabulary: Mapping[str, int], merges: list[tuple[str, str]], tokens: list[str]
) -> list[Field]:
    """Scores of a SentencePiece tokenizer, merges of a byte-level one."""
    import gguf

    keys, kind = gguf.Keys.Tokenizer, gguf.GGUFValueType
    if model == "llama":
        scores = merge_scores(vocabulary, merges)
        return [
            Field(keys.SCORES, [scores.get(token, 0.0) for token in tokens], kind.ARRAY, kind.FLOAT32),
            Field(keys.ADD_PREFIX, True, kind.BOOL),
        ]
    if any(" " in part for pair in merges for part in pair):
        raise refusal("its merges have spaces in them")
    joined = [f"{left} {right}" for left, right in merges]
    if not joined:
        raise refusal("its tokenizer has no merges, and llama.cpp loads none without")
    return [Field(keys.MERGES, joined, kind.ARRAY, kind.STRING), Field(keys.ADD_PREFIX, False, kind.BOOL)]


def _special(tokenizer: Any, config: Any, vocabulary: Mapping[str, int]) -> list[Field]:
    """Ids of special tokens, which of them text gets, and the chat template."""
    import gguf

    keys, kind = gguf.Keys.Tokenizer, gguf.GGUFValueType
    end = _first(tokenizer.eos_token_id, config.eos_token_id)
    if end is None:
        raise ValueError("the tokenizer names no end token (eos_token), and llama.cpp would take token 11; name one")
    # llama.cpp has no "none": without a beginning it would call token 11 one, and the end token is what never begins
    begin = _first(tokenizer.bos_token_id, config.bos_token_id, end)
    ids = {keys.BOS_ID: begin, keys.EOS_ID: end}
    ids |= {keys.UNK_ID: tokenizer.unk_token_id, keys.PAD_ID: tokenizer.pad_token_id}
    before, after = _around(tokenizer, vocabulary)
    if before not in ([], [begin]) or after not in ([], [end]):
        raise refusal(f"its tokenizer puts tokens {before} before and {after} after text, llama.cpp only begin and end")
    fields = [Field(key, int(number), kind.UINT32) for key, number in ids.items() if number is not None]
    fields += [Field(keys.ADD_BOS, bool(before), kind.BOOL), Field(keys.ADD_EOS, bool(after), kind.BOOL)]
    template = tokenizer.chat_template
    if isinstance(template, Mapping):
        template = template.get("default")
    return [*fields, *([Field(keys.CHAT_TEMPLATE, template, kind.STRING)] if template else [])]


def _first(*numbers: Any) -> int | None:
    """The first id there is; the first of a list of ids."""
    for number in numbers:
        if isinstance(number, list | tuple):
            number = number[0] if number else None
        if number is not None:
            return int(number)
    return None


def _around(tokenizer: Any, vocabulary: Mapping[str, int]) -> tuple[list[int], list[int]]:
    """The ids that the stock tokenizer puts before and after a text."""
    letters = sorted(token for token in vocabulary if len(token) == 1 and token.isascii() and token.isalnum())
    letter = letters[0] if letters else "a"
    bare = list(tokenizer(letter, add_special_tokens=False)["input_ids"])
    whole = list(tokenizer(letter)["input_ids"])
    if not bare or len(whole) < len(bare):
        raise refusal(f"its tokenizer has no token for {letter!r}")
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return whole[:start], whole[start + len(bare) :]
    raise refusal("its tokenizer changes a text that special tokens are added to")
