"""How good written answers are, without a model that judges them: each prompt answered greedily, and of each answer

    rouge_l      F1 of the longest common subsequence of words with the reference answer
    chrf         F2 of character 1- to 6-grams with it
    judged       Σ NLL and tokens under the dense model, given the prompt, beside those of the reference answer
    repetition   share of its word 4-grams that it has had before;  distinct: share of its word 2-grams that are new

No number stands alone: an answer that repeats itself is likely under any model, so `judged` means something only where
`repetition` is near that of the dense model's own answers, and overlap with one reference is coarse.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from restorelcc.artifacts import fingerprint
from restorelcc.evaluation import token_nll
from restorelcc.models import quiet_transformers
from restorelcc.text import json_lines
from restorelcc.token_set import TokenSet, padding_id
from restorelcc.windows import answer_row

ORDERS = range(1, 7)  # of characters, chrF
BETA = 2.0  # recall counts as much as precision four times


def words(text: str) -> list[str]:
    """Runs of letters and digits, in lower case."""
    return re.findall(r"\w+", text.lower())


def rouge_l(answer: str, reference: str) -> float:
    """F1 = 2 l / (n + m) of the longest common subsequence, l words, of answers of n and m words; 0 where one is empty.

    As ROUGE-L of a sentence (Lin 2004) with β = 1, no stemming.
    """
    ours, theirs = words(answer), words(reference)
    if not ours or not theirs:
        return 0.0
    row = [0] * (len(theirs) + 1)  # longest common subsequence of the words so far and theirs[:j]
    for word in ours:
        before = row
        row = [0] * len(before)
        for place, other in enumerate(theirs, start=1):
            row[place] = before[place - 1] + 1 if word == other else max(before[place], row[place - 1])
    return 2 * row[-1] / (len(ours) + len(theirs))


def chrf(answer: str, reference: str) -> float:
    """chrF (Popović 2015), 0 to 1: P and R are means over the orders that both have; F = (1 + β²) P R / (β² P + R).

    White space is left out, as sacrebleu does, whose sentence scores these are (over 100).
    """
    ours, theirs = "".join(answer.split()), "".join(reference.split())
    precisions, recalls = [], []
    for order in ORDERS:
        mine, other = _grams(ours, order), _grams(theirs, order)
        if mine and other:
            shared = sum((mine & other).values())
            precisions.append(shared / sum(mine.values()))
            recalls.append(shared / sum(other.values()))
    if not precisions or not sum(precisions):
        return 0.0
    precision, recall = sum(precisions) / len(precisions), sum(recalls) / len(recalls)
    return (1 + BETA**2) * precision * recall / (BETA**2 * precision + recall)


def _grams(sequence: Sequence[str], order: int) -> Counter[Any]:
    return Counter(tuple(sequence[place : place + order]) for place in range(len(sequence) - order + 1))


def repetition(text: str, order: int = 4) -> float:
    """Share of the word n-grams that occurred before in the same text; 0 where there is none."""
    grams = _grams(words(text), order)
    count = sum(grams.values())
    return (count - len(grams)) / count if count else 0.0


@dataclass(frozen=True)
class Prompts:
    """What is asked, and the reference answers; `rows` are both together, loss on the reference."""

    texts: list[str]
    references: list[str]
    rows: TokenSet

    def fingerprint(self) -> str:
        """Of what is asked and of the references."""
        return fingerprint(texts=self.texts, references=self.references)


def load_prompts(path: Path, tokenizer: Any, *, count: int, window: int, seed: int) -> Prompts:
    """`count` lines of a .jsonl of {"text": prompt, "label": answer}, drawn by `seed`, in file order.

    Prompts that leave no room for an answer within `window` tokens are left out.

    Raises:
        ValueError: an unreadable file, a line without both, or no line that fits.
    """
    pairs, rows, starts = [], [], []
    for number, value in json_lines(path):
        prompt, answer = value.get("text"), value.get("label")
        if not isinstance(prompt, str) or not isinstance(answer, str) or not answer:
            raise ValueError(f'{path} line {number} needs "text" and "label" to ask for an answer; give both')
        pairs.append((prompt, answer))
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed)).tolist()
    chosen: list[int] = []
    with quiet_transformers():
        for place in order:
            ids, start = answer_row(tokenizer, *pairs[place])
            if len(chosen) < count and start < window // 2:
                chosen.append(place)
    chosen.sort()
    if not chosen:
        raise ValueError(f"none of the {len(pairs)} prompts of {path} is shorter than {window // 2} tokens")
    with quiet_transformers():
        for place in chosen:
            ids, start = answer_row(tokenizer, *pairs[place])
            rows.append(ids[:window])
            starts.append(start)
    text = TokenSet.from_rows(rows, pad=padding_id(tokenizer), name="reference answers", starts=starts)
    return Prompts([pairs[place][0] for place in chosen], [pairs[place][1] for place in chosen], text)


@torch.no_grad()
def greedy_answers(model: Any, tokenizer: Any, prompts: Sequence[str], *, new_tokens: int, batch: int = 32
) -> tuple[list[str], TokenSet]:  # fmt: skip
    """(answers, rows of prompt and answer with the loss on the answer): stock generate(), left-padded, no sampling.

    Prompts of one length side by side, so that little is padded. The end of text is part of the answer's tokens.
    """
    with quiet_transformers():
        given = [list(tokenizer(prompt).input_ids) for prompt in prompts]
    pad = padding_id(tokenizer)
    end = model.generation_config.eos_token_id
    ends = set() if end is None else {end} if isinstance(end, int) else set(end)
    written: list[list[int]] = [[] for _ in given]
    order = sorted(range(len(given)), key=lambda place: (len(given[place]), place))
    for begin in range(0, len(order), batch):
        places = order[begin : begin + batch]
        width = max(len(given[place]) for place in places)
        ids = torch.tensor([[pad] * (width - len(given[place])) + given[place] for place in places])
        mask = torch.tensor([[0] * (width - len(given[place])) + [1] * len(given[place]) for place in places])
        with quiet_transformers():
            out = model.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=new_tokens, do_sample=False, num_beams=1,
                temperature=None, top_p=None, top_k=None, repetition_penalty=1.0, pad_token_id=pad,
            )[:, width:].tolist()  # fmt: skip
        for place, row in zip(places, out, strict=True):
            stop = next((index + 1 for index, token in enumerate(row) if token in ends), len(row))
            written[place] = row[:stop]
    texts = tokenizer.batch_decode(written, skip_special_tokens=True)
    rows = [[*ids, *answer] for ids, answer in zip(given, written, strict=True)]
    starts = [max(len(ids), 1) for ids in given]
    return texts, TokenSet.from_rows(rows, pad=pad, name="answers", starts=starts)


def measured_answers(model: Any, judge: Any, tokenizer: Any, prompts: Prompts, *, new_tokens: int) -> dict[str, Any]:
    """A list of each measure, one number for each prompt, and the answers themselves."""
    texts, rows = greedy_answers(model, tokenizer, prompts.texts, new_tokens=new_tokens)
    judged, reference = token_nll(judge, rows, batch=8), token_nll(judge, prompts.rows, batch=8)
    pairs = list(zip(texts, prompts.references, strict=True))
    return {
        "prompts": prompts.fingerprint(), "new_tokens": new_tokens, "texts": texts,
        "rouge_l": [rouge_l(*pair) for pair in pairs], "chrf": [chrf(*pair) for pair in pairs],
        "repetition": [repetition(text) for text in texts], "distinct": [1 - repetition(text, 2) for text in texts],
        "judged_sum": judged.nll_sum.tolist(), "judged_count": judged.count.tolist(),
        "reference_sum": reference.nll_sum.tolist(), "reference_count": reference.count.tolist(),
    }  # fmt: skip
