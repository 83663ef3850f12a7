"""Text from a model, streamed, and how fast it came: what `restorelcc generate` does.

    tokens/s = (new tokens − 1) / (time of the last token − time of the first)        decoding; the prompt is apart

Generation itself is the stock generate() of transformers, or with `compiled` that of `compile_decode`.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from .compensated import compensation_names, compensations
from .compiled_decoding import compile_decode
from .loading import kind_of, load, tokenizer_of
from .models import quiet_transformers
from .token_set import padding_id

__all__ = ["Generated", "generate"]

# Settings of a model that change what generate() chooses.
_STOCK_ONLY = (
    "no_repeat_ngram_size", "bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "forced_bos_token_id",
    "forced_eos_token_id", "sequence_bias", "min_length", "min_new_tokens",
)  # fmt: skip


@dataclass(frozen=True)
class Generated:
    """The text and its times.

    compile_seconds: 0 unless compiled, else what came before the prompt.
    prefill_seconds: from the call to the first new token; tokens_per_second: of the tokens after it, NaN for none.
    """

    model: str
    kind: str
    compensation: str | None
    text: str
    prompt_tokens: int
    new_tokens: int
    prefill_seconds: float
    decode_seconds: float
    compile_seconds: float = 0.0

    @property
    def tokens_per_second(self) -> float:
        """Of decoding."""
        return (self.new_tokens - 1) / self.decode_seconds if self.new_tokens > 1 else float("nan")

    def line(self) -> str:
        """For a person."""
        speed = f", {self.tokens_per_second:.1f} tokens/s" if self.new_tokens > 1 else ""
        compiled = f"compiled in {self.compile_seconds:.1f} s, " if self.compile_seconds else ""
        prompt = f"{self.prompt_tokens} prompt tokens in {self.prefill_seconds:.2f} s"
        return f"{compiled}{prompt}, {self.new_tokens} new tokens{speed}"


class _Clock:
    """The streamer that generate() is given: notes when tokens come and hands them on to `stream`, if any."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._calls = 0
        self.times: list[float] = []

    def put(self, value: Any) -> None:
        """The prompt first, then one token at a time."""
        if self._calls:
            self.times.append(time.perf_counter())
        self._calls += 1
        if self._stream is not None:
            self._stream.put(value)

    def end(self) -> None:
        """After the last token."""
        if self._stream is not None:
            self._stream.end()


def generate(
    spec: str,
    prompt: str,
    *,
    max_new_tokens: int = 128,
    chat: bool | None = None,
    compensation: str | None = None,
    temperature: float = 0.0,
    seed: int = 0,
    stream: bool = False,
    compiled: bool = False,
    huge_pages: bool = False,
) -> Generated:
    """Continues or answers `prompt` with the model `spec` (packed or adapter directory, or MODEL).

    Args:
        max_new_tokens: at most so many; text also ends with the model's end token, and where its context is full.
        chat: put the prompt into the tokenizer's chat template; None: where it has one.
        compensation: a name that a packed model knows, or "none"; None: its default.
        temperature: 0 takes the likeliest token; above, tokens are sampled from softmax(logits / temperature).
        stream: print the text to stdout while it comes.
        compiled: decode by `compile_decode`, compiled before the clock starts.
        huge_pages: hold a packed model's weights in pages of 2 MiB (see `load`).

    Raises:
        ValueError: a model that cannot be loaded, an empty prompt, no chat template, an unknown compensation, a
            prompt that leaves no room in the model's context, or with `compiled` settings that stock generate() alone
            knows.
    """
    tokenizer, model = tokenizer_of(spec), load(spec, huge_pages=huge_pages)
    names = compensation_names(model)
    if compensation is not None and not names:
        raise ValueError(f"{spec} has no compensations to choose from; leave --compensation out")
    given = _prompt_ids(tokenizer, prompt, chat, spec)
    length = int(given["input_ids"].shape[1])
    limit = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if limit is not None and length >= limit:
        raise ValueError(f"the prompt has {length} tokens, but the model's context is {limit}; use a shorter prompt")
    if limit is not None:
        max_new_tokens = min(max_new_tokens, limit - length)
    if temperature > 0:
        how: dict[str, Any] = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    else:
        how = {"do_sample": False, "temperature": None, "top_k": None, "top_p": None}
    choice = nullcontext() if compensation is None else compensations(model, _name(compensation))
    clock = _Clock(_printer(tokenizer) if stream else None)
    compile_seconds = 0.0
    with choice, quiet_transformers():
        if compiled:
            start, decoder = time.perf_counter(), compile_decode(model)
            processors = _processors(model)
            decoder.prepare(1, length + max_new_tokens)
            compile_seconds = time.perf_counter() - start
        torch.manual_seed(seed)
        start = time.perf_counter()
        if compiled:
            ids = decoder.generate(
                **given, max_new_tokens=max_new_tokens, temperature=temperature, processors=processors,
                eos_token_id=model.generation_config.eos_token_id, pad_token_id=padding_id(tokenizer), streamer=clock,
            )  # fmt: skip
        else:
            ids = model.generate(
                **given, **how, max_new_tokens=max_new_tokens, num_beams=1, pad_token_id=padding_id(tokenizer),
                streamer=clock,
            )  # fmt: skip
    new = ids[0, length:]
    first, last = clock.times[0], clock.times[-1]
    return Generated(
        spec, kind_of(spec), compensation, tokenizer.decode(new, skip_special_tokens=True), length, len(new),
        first - start, last - first, compile_seconds,
    )  # fmt: skip


def _processors(model: Any) -> Any:
    """What the model's own generation settings ask for beside the temperature. ValueError where that is not here."""
    from transformers import LogitsProcessorList, RepetitionPenaltyLogitsProcessor

    config = model.generation_config
    strange = [name for name in _STOCK_ONLY if getattr(config, name, None)]
    if strange:
        raise ValueError(f"the model asks for {strange[0]}, which only stock generate() knows; leave --compile out")
    penalty = getattr(config, "repetition_penalty", None)
    return None if penalty in (None, 1.0) else LogitsProcessorList([RepetitionPenaltyLogitsProcessor(penalty)])


def _name(compensation: str) -> str | None:
    return None if compensation == "none" else compensation


def _printer(tokenizer: Any) -> Any:
    from transformers import TextStreamer

    return TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)


def _prompt_ids(tokenizer: Any, prompt: str, chat: bool | None, spec: str) -> dict[str, Any]:
    """input_ids [1, T] and attention_mask of the prompt, in the chat template where that is wanted."""
    template = getattr(tokenizer, "chat_template", None)
    if chat and not template:
        raise ValueError(f"the tokenizer of {spec} has no chat template; use --no-chat")
    with quiet_transformers():
        if template and chat is not False:
            messages = [{"role": "user", "content": prompt}]
            given = tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
        else:
            given = tokenizer(prompt, return_tensors="pt")
    if given["input_ids"].shape[1] == 0:
        raise ValueError("the prompt has no tokens; give some text")
    return {"input_ids": given["input_ids"].long(), "attention_mask": given["attention_mask"]}
