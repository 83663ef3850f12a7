"""Small tokenizers of the kinds that a GGUF file can hold, and of some that it cannot."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from transformers import PreTrainedTokenizerFast

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
SPECIAL = ["<|end|>", "<s>", "<pad>"]
MERGES = [("h", "e"), ("l", "l"), ("he", "ll"), ("Ġ", "w"), ("hell", "o"), ("1", "2")]


def bytes_with(pattern: str | None, digits: bool = False) -> Any:
    """Byte-level steps: digits apart, then the pattern (None: the one that ByteLevel has itself)."""
    steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if digits else []
    if pattern is not None:
        steps.append(pre_tokenizers.Split(Regex(pattern), "isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None))
    return steps[0] if len(steps) == 1 else pre_tokenizers.Sequence(steps)


# What text is made of where its cut matters, as bytes are spelled, and a merge of any two of it.
CUT_TEXT = "ab1s '!.\n\téA"
CUT_MERGES = [(a, b) for a in "ab1sĠ'!.ĊĉA" for b in "ab1sĠ'!.ĊĉA"]


def byte_level(
    steps: Any = None, *, whole: bool = False, begin: bool = False, normalizer: Any = None,
    merges: list[tuple[str, str]] = MERGES, **names: Any,
) -> Any:  # fmt: skip
    """A byte-level BPE of 3 special tokens, 256 bytes, and a token for each merge."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*SPECIAL, *letters, *("".join(pair) for pair in merges)]
    stock = Tokenizer(BPE({token: i for i, token in enumerate(tokens)}, merges, ignore_merges=whole))
    stock.pre_tokenizer = bytes_with(None) if steps is None else steps
    stock.decoder = decoders.ByteLevel()
    if normalizer is not None:
        stock.normalizer = normalizer
    if begin:
        stock.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    names = {"eos_token": "<|end|>", "bos_token": "<s>", "pad_token": "<pad>", **names}
    return PreTrainedTokenizerFast(tokenizer_object=stock, **names)


def sentencepiece(merges: list[tuple[str, str]] | None = None, spaces: Any = None, drop: str = "") -> Any:
    """A SentencePiece BPE with all byte tokens; `merges` as converters list them unless they are given."""
    first = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    letters = ["▁", *"abcehtxyz"]
    joined = ["th", "he", "▁t", "the", "▁the", "▁a", "ab", "bc", "abc"]
    tokens = [token for token in [*first, *joined, *letters] if token != drop]
    if merges is None:
        known = {*letters, *joined}
        merges = [
            (token[:cut], token[cut:])
            for token in joined
            for cut in range(1, len(token))
            if token[:cut] in known and token[cut:] in known
        ]
    stock = Tokenizer(
        BPE({token: i for i, token in enumerate(tokens)}, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    if spaces is None:
        stock.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        stock.pre_tokenizer = spaces
    stock.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    made = PreTrainedTokenizerFast(tokenizer_object=stock, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    made.add_tokens([AddedToken("<tool>", special=False)])
    return made


def joined_by_score(text: str, tokens: list[str], scores: list[float]) -> list[int]:
    """What llama.cpp does with SentencePiece: the best scored neighbours are joined first, then bytes for the rest."""
    best = {token: (scores[i], i) for i, token in enumerate(tokens)}
    pieces = list("▁" + text.replace(" ", "▁"))
    while True:
        pairs = [(best[a + b][0], -i) for i, (a, b) in enumerate(pairwise(pieces)) if a + b in best]
        if not pairs:
            break
        at = -max(pairs)[1]
        pieces[at : at + 2] = [pieces[at] + pieces[at + 1]]
    found = []
    for piece in pieces:
        names = [piece] if piece in best else [f"<0x{byte:02X}>" for byte in piece.encode()]
        found += [best[name][1] for name in names]
    return found
