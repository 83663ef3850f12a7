"""Text that a model writes itself: calibration and training text without any data.

    x_1..x_k = a start,   x_{t+1} ~ softmax(logits(x_1..x_t) / temperature)         stock generate(), plain sampling

Two kinds of start (`STARTS`), each for what it is good at:

    anything    one random token, temperature 1. What comes is as mixed as what the model was trained on: prose, code,
                lists, other languages, fragments. As in LLM-QAT (Liu et al., arXiv 2305.17888, section 2.1). Weights
                that are fitted to it serve text of any kind (docs/findings.md).
    answers     a request in the chat template, or an opening such as "In 1994," where there is none, temperature 0.8:
                connected prose of a few kinds. At temperature 1 one unlikely token throws a model of 135M parameters
                off for the rest of a row; at 0.8 this is rare.
"""

from __future__ import annotations

from typing import Any

import torch

from .artifacts import Progress, SilentProgress
from .models import quiet_transformers
from .token_set import TokenSet, context_of, padding_id
from .windows import prefix_ids

__all__ = ["OPENINGS", "REQUESTS", "STARTS", "write_own_text"]

STARTS = {"anything": 1.0, "answers": 0.8}  # kind of start -> temperature

REQUESTS = (
    "Tell me a short story about a fisherman.", "Explain how rain forms.", "What makes a healthy breakfast?",
    "Write a letter to an old friend.", "Describe a city at night.", "Who was Marie Curie?",
    "Give me advice on learning to cook.", "Why do people keep dogs?", "Write a news report about a flood.",
    "How does a bicycle work?", "Describe your favourite season.", "What caused the fall of the Roman Empire?",
    "Write a speech for a wedding.", "Explain gravity to a child.", "Tell me about the history of tea.",
    "How do plants grow?", "Write a review of a restaurant.", "What is a good plan for a day in the mountains?",
    "Tell a story about two sisters and a secret.", "Explain what inflation means.", "How do vaccines work?",
    "Describe a storm at sea.", "What should I know before I buy a house?", "Write an essay about friendship.",
    "How do bees make honey?", "Explain the rules of football.", "Tell me about the planets.",
    "Write a complaint to a railway company.", "Why is sleep important?", "Describe an old library.",
    "How did people travel two hundred years ago?", "Write a dialogue between a teacher and a pupil.",
    "What does a judge do?", "Tell a story about a lost key.", "How can a family save water?",
    "Explain how a computer stores a photograph.", "Describe a market in the morning.",
    "What is the difference between weather and climate?", "Write a job application for a gardener.",
    "Who built the pyramids, and why?", "How does the heart work?", "Tell me about life in the desert.",
    "Write the first page of a novel.", "What can we learn from failure?", "Explain how bread is baked.",
    "Describe a journey by train.", "Why do languages change?", "Write a report about a school garden.",
)  # fmt: skip
OPENINGS = (
    "The", "In the", "A", "It is", "When", "There are", "This", "For many years,", "Once upon a time,", "As",
    "If you", "We", "He", "She", "They", "One of the", "After", "Most people", "According to", "In 1994,",
    "How", "Although", "My", "During the", "At first", "What is", "To", "On the", "By", "Many", "Since", "The first",
    "Scientists", "Yesterday,", "Water", "Children", "The history of", "I", "Each", "While",
)  # fmt: skip
_SHORTEST = 8  # tokens; shorter rows say nothing and are dropped
_ROUNDS_WITHOUT_TEXT = 4


def write_own_text(
    model: Any,
    tokenizer: Any,
    *,
    tokens: int = 16384,
    window: int = 256,
    batch: int | None = None,
    seed: int = 0,
    start: str = "answers",
    temperature: float | None = None,
    progress: Progress | None = None,
) -> TokenSet:
    """Text sampled from `model`, at least `tokens` predicted tokens of it.

    Args:
        tokens: predicted tokens wanted; whole rows, so a little more comes.
        window: tokens a row at most. A row that the model ends earlier is kept with its length and its end of text.
        batch: rows sampled at once. A step reads all weights whatever the rows, so many at once are cheap (measured on
            a 135M model: a step of 96 rows takes 1.16 times one of 64). None: as many as fit into 2 GiB of keys and
            values, at most 128.
        seed: the text is a function of the model, the arguments and this; the global generator is left as it was.
        start: `anything`: a row continues a random token that stands in it. `answers`: with a chat template a row is
            the answer to one of `REQUESTS` (the request itself is left out); without one it is the continuation of one
            of `OPENINGS`, which stands in the row.
        temperature: of the sampling; 1 is the model's own distribution. By default that of the kind of start.

    Returns:
        TokenSet with response_start 1.

    Raises:
        ValueError: an unknown kind of start, sizes or a temperature that are not positive, a window beyond the model's
            context, or a model that ends every row at once.
    """
    if start not in STARTS:
        raise ValueError(f"unknown start {start!r}; choose one of {', '.join(STARTS)}")
    temperature = STARTS[start] if temperature is None else temperature
    if batch is None:
        batch = rows_at_once(model.config, window)
    if window < 2 * _SHORTEST:
        raise ValueError(
            f"text that the model writes needs a window of {2 * _SHORTEST} tokens or more, not {window}; "
            "use a larger one, or give text in a file"
        )
    if tokens < 1 or batch < 1 or not temperature > 0:
        raise ValueError(
            f"tokens={tokens}, batch={batch}, temperature={temperature}: need tokens >= 1, batch >= 1 and a positive "
            "temperature"
        )
    limit = context_of(model)
    if limit is not None and window > limit:
        raise ValueError(f"rows of {window} tokens, but the model's context is {limit}; use a smaller window")
    starts = _random_tokens(model, tokenizer) if start == "anything" else _starts(tokenizer)
    order = torch.randperm(len(starts), generator=torch.Generator().manual_seed(seed)).tolist()
    rows: list[list[int]] = []
    missing, asked, idle = tokens, 0, 0
    with (progress or SilentProgress()).task("writing text", tokens) as advance, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        while missing > 0:
            mean = (tokens - missing) / asked if missing < tokens else 0.75 * window  # predicted tokens a row
            count = min(batch, int(missing / mean) + 2)
            picked = [starts[order[(asked + index) % len(order)]] for index in range(count)]
            asked += count
            before = missing
            for row in _continue(model, tokenizer, picked, window, temperature):
                if missing > 0 and len(row) >= _SHORTEST:
                    rows.append(row)
                    missing -= len(row) - 1
            advance(before - max(missing, 0))
            idle = idle + 1 if missing == before else 0
            if idle == _ROUNDS_WITHOUT_TEXT:
                raise ValueError(f"the model ended {idle} rounds of texts at once; give text in a file instead")
    return TokenSet.from_rows(rows, pad=padding_id(tokenizer), name="text written by the dense model")


def rows_at_once(config: Any, window: int) -> int:
    """Rows whose keys and values, float32 over `window` tokens and a request before them, fit into 2 GiB; 1 to 128."""
    text = config.get_text_config(decoder=True)
    heads = int(text.num_attention_heads)
    groups = int(getattr(text, "num_key_value_heads", None) or heads)
    size = int(getattr(text, "head_dim", None) or text.hidden_size // heads)
    row = 2 * 4 * int(text.num_hidden_layers) * groups * size * (window + 64)  # bytes
    return max(1, min(128, (2 << 30) // row))


def _starts(tokenizer: Any) -> list[tuple[list[int], list[int]]]:
    """(what the model is given, what of it stands in the row) for each request or opening."""
    prefix = prefix_ids(tokenizer)
    if getattr(tokenizer, "chat_template", None):
        given = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": request}], add_generation_prompt=True, tokenize=True, return_dict=False
            )
            for request in REQUESTS
        ]
        return [(list(ids), prefix) for ids in given]
    openings = [prefix + tokenizer(text, add_special_tokens=False).input_ids for text in OPENINGS]
    return [(ids, ids) for ids in openings]


def _random_tokens(model: Any, tokenizer: Any) -> list[tuple[list[int], list[int]]]:
    """As `_starts`, for every token that both know and that is no mark."""
    prefix, marks = prefix_ids(tokenizer), set(tokenizer.all_special_ids)
    known = min(len(tokenizer), int(model.config.get_text_config(decoder=True).vocab_size))
    return [(row, row) for token in range(known) if token not in marks for row in [[*prefix, token]]]


@torch.no_grad()
def _continue(
    model: Any, tokenizer: Any, starts: list[tuple[list[int], list[int]]], window: int, temperature: float
) -> list[list[int]]:
    """Rows of at most `window` tokens: one stock generate() over the left-padded batch."""
    pad, ends = padding_id(tokenizer), _end_ids(model)
    width = max(len(given) for given, _ in starts)
    shown = min(len(row) for _, row in starts)
    ids = torch.tensor([[pad] * (width - len(given)) + given for given, _ in starts])
    mask = torch.tensor([[0] * (width - len(given)) + [1] * len(given) for given, _ in starts])
    with quiet_transformers():
        out = model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=window - shown, do_sample=True, temperature=temperature,
            top_k=0, top_p=1.0, repetition_penalty=1.0, num_beams=1, pad_token_id=pad,
        )  # fmt: skip
    rows = []
    for (_, row), written in zip(starts, out[:, width:].tolist(), strict=True):
        end = next((index + 1 for index, token in enumerate(written) if token in ends), len(written))
        rows.append((row + written[:end])[:window])
    return rows


def _end_ids(model: Any) -> set[int]:
    end = model.generation_config.eos_token_id
    return set() if end is None else {end} if isinstance(end, int) else set(end)
