"""Decoding with one compiled graph a token: a static cache, one graph for the whole step, a loop of our own around it.

    prefill     the model as it is, on the prompt, into a cache of fixed length
    step        token [B, 1], position [B, 1]  ->  logits [B, V] float32, likeliest token [B, 1]      torch.compile
    loop        until every sequence met an end token, or max_new_tokens

What it replaces: generate() of transformers around an eager model, where some 2,000 small operators a token go through
Python and torch's dispatcher. Stock generate() on the same model goes on working as it did.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .frozen_graphs import MergeProducts, is_tracing_frozen, tracing_frozen
from .joined import JoinedLinear
from .packed import Snapshot
from .row_attention import attention_of_rows

__all__ = ["CompiledDecoder", "compile_decode"]

# A cache is as long as the next of these: each length is a graph of its own, and attention goes over all of it.
CACHE_LENGTHS = tuple(1 << power for power in range(7, 24))
# Rows up to which the head is a sum that inductor writes; a matrix product of torch reads at a fifth of the bandwidth.
HEAD_ROWS = 4


class _HeadOfRows(nn.Linear):
    """A dense head for few rows in a graph: y = Σ_k x_k W[:, k], summed in float32."""

    def forward(self, input: Tensor) -> Tensor:
        """x [..., K] -> y [..., N]"""
        if not is_tracing_frozen() or input.shape[:-1].numel() > HEAD_ROWS:
            return super().forward(input)
        y = (input.unsqueeze(-2).float() * self.weight.float()).sum(-1)
        return (y if self.bias is None else y + self.bias.float()).to(input.dtype)


class CompiledDecoder:
    """Greedy or sampled text from a loaded model, by a compiled step; see `compile_decode`."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self._cache_name = _cache_name(model)
        self._snapshot = Snapshot(*_tensors(model))
        self._families = {id(m.family): m.family for m in model.modules() if isinstance(m, JoinedLinear)}
        # Every guard is skipped: what they would look at is looked at once a call, in _check. Isolated, because torch
        # finds graphs by their code, which all steps share, and without guards would take any of them.
        self._settings: dict[str, Any] = {
            "fullgraph": True,
            "dynamic": False,
            "isolate_recompiles": True,
            "options": {
                "guard_filter_fn": torch.compiler.skip_all_guards_unsafe,
                "post_grad_custom_pre_pass": MergeProducts(),
            },
        }
        self._steps: dict[tuple[int, int, int], Callable[..., tuple[Tensor, Tensor]]] = {}

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        eos_token_id: int | Sequence[int] | None = None,
        pad_token_id: int | None = None,
        processors: Callable[[Tensor, Tensor], Tensor] | None = None,
        streamer: Any = None,
    ) -> Tensor:
        """Ids of prompt and continuation, [B, T + new]; as generate(do_sample=temperature > 0) of the model gives.

        Args:
            input_ids: [B, T], prompts of one length.
            temperature: 0 takes the likeliest token; above, tokens are drawn from softmax(logits / temperature).
            eos_token_id: ends a sequence; None: none does.
            pad_token_id: what follows the end token of a sequence while others go on; None: the end token.
            processors: (ids, logits) -> logits, before a token is chosen: a LogitsProcessorList of transformers.
            streamer: gets the prompt, then each token, as generate() has it.

        Raises:
            ValueError: padded prompts, no tokens, or a model that was changed since `compile_decode`.
        """
        self._check(input_ids, attention_mask, max_new_tokens)
        ends = torch.tensor([] if eos_token_id is None else eos_token_id, dtype=torch.long).reshape(-1)
        pad = pad_token_id if pad_token_id is not None else int(ends[0]) if len(ends) else 0
        batch, length = input_ids.shape
        if streamer is not None:
            streamer.put(input_ids)
        cache, slots = self._cache(length + max_new_tokens)
        inputs = {self._cache_name: cache, "use_cache": True}
        logits = self.model(input_ids=input_ids, logits_to_keep=1, **inputs).logits[:, -1].float()
        token = logits.argmax(-1, keepdim=True)
        found, done = [input_ids], torch.zeros(batch, 1, dtype=torch.bool)
        for position in range(length, length + max_new_tokens):
            if processors is not None:
                logits = processors(torch.cat(found, dim=1), logits)
                token = logits.argmax(-1, keepdim=True)
            if temperature > 0:
                token = torch.multinomial(torch.softmax(logits / temperature, -1), 1)
            if len(ends):
                token = torch.where(done, pad, token)
                done = done | torch.isin(token, ends)
            found.append(token)
            if streamer is not None:
                streamer.put(token[:, 0])
            if position + 1 == length + max_new_tokens or (len(ends) and bool(done.all())):
                break
            logits, token = self._step(token, torch.full((batch, 1), position), cache, slots)
        if streamer is not None:
            streamer.end()
        return torch.cat(found, dim=1)

    @torch.no_grad()
    def prepare(self, batch: int, tokens: int) -> None:
        """Compiles what a batch of so many sequences needs for so many tokens, prompt and new ones together."""
        cache, slots = self._cache(tokens)
        token = torch.zeros(batch, 1, dtype=torch.long)
        self.model(input_ids=token, **{self._cache_name: cache, "use_cache": True})
        self._step(token, torch.ones_like(token), cache, slots)

    @torch.no_grad()
    def step_logits(self, input_ids: Tensor, ids: Tensor) -> Tensor:
        """Logits [B, S, V] float32 of the compiled step, fed ids [B, S] one at a time behind the prompt input_ids."""
        self._check(input_ids, None, 1)
        batch, length = input_ids.shape
        (cache, slots), found = self._cache(length + ids.shape[1]), []
        self.model(input_ids=input_ids, logits_to_keep=1, **{self._cache_name: cache, "use_cache": True})
        for place in range(ids.shape[1]):
            token = ids[:, place : place + 1].contiguous()
            found.append(self._step(token, torch.full((batch, 1), length + place), cache, slots)[0])
        return torch.stack(found, dim=1)

    def _check(self, input_ids: Tensor, attention_mask: Tensor | None, new_tokens: int) -> None:
        if input_ids.dim() != 2 or input_ids.shape[0] == 0 or input_ids.shape[1] == 0 or new_tokens < 1:
            raise ValueError(
                f"input_ids has shape {list(input_ids.shape)} for {new_tokens} new tokens; it must be [B, T] with at "
                "least one token, and at least one new one"
            )
        if attention_mask is not None and not bool(attention_mask.all()):
            raise ValueError(
                "the prompts are padded, which compiled decoding does not support; pass prompts of one length, or use "
                "model.generate"
            )
        tensors = _tensors(self.model)
        if len(tensors) != len(self._snapshot) or not self._snapshot.unchanged(*tensors):
            raise ValueError("the model was changed since compile_decode; call compile_decode again")

    def _cache(self, tokens: int) -> tuple[Any, int]:
        """An empty cache, and how many tokens it holds."""
        from transformers import StaticCache

        slots = next(slots for slots in CACHE_LENGTHS if slots >= tokens)
        return StaticCache(config=self.model.config, max_cache_len=slots), slots

    def _step(self, token: Tensor, position: Tensor, cache: Any, slots: int) -> tuple[Tensor, Tensor]:
        key = (len(token), slots, torch.get_num_threads())
        step = self._steps.get(key)
        if step is not None:
            return step(token, position, cache)
        model, name = self.model, self._cache_name

        def forward(token: Tensor, position: Tensor, cache: Any) -> tuple[Tensor, Tensor]:
            inputs = {name: cache, "use_cache": True}
            logits = model(input_ids=token, position_ids=position, **inputs).logits[:, -1].float()
            return logits, logits.argmax(-1, keepdim=True)

        compiled = torch.compile(forward, **self._settings)
        for family in self._families.values():
            family.merged = family.holds()
        with tracing_frozen(), _head_of_rows(model), attention_of_rows(model):
            result: tuple[Tensor, Tensor] = compiled(token, position, cache)
        self._steps[key] = compiled
        return result


def compile_decode(model: Any) -> CompiledDecoder:
    """A decoder of `model` (of `restorelcc.load`, or a stock one on the CPU), whose step is compiled when first used.

        decoder = restorelcc.compile_decode(restorelcc.load("packed"))
        ids = decoder.generate(tokenizer("...", return_tensors="pt")["input_ids"], max_new_tokens=64)

    A graph is made for each batch size, length of the cache (128, 256, 512, ...) and number of threads; inductor keeps
    what it compiled on disk. Weights must stay as they are; which compensation applies may change between two calls.

    Raises:
        ValueError: a model whose forward takes no cache, or that is not on the CPU.
    """
    device = next(model.parameters()).device
    if device.type != "cpu":
        raise ValueError(f"the model is on {device}, compiled decoding is for the CPU; move it with .cpu()")
    return CompiledDecoder(model)


def _cache_name(model: Any) -> str:
    """What the stock class calls the cache: `cache`, or past_key_values in older releases."""
    parameters = inspect.signature(type(model).forward).parameters
    name = next((name for name in ("cache", "past_key_values") if name in parameters), None)
    if name is None:
        raise ValueError(f"the forward of {type(model).__name__} takes no cache; use model.generate")
    return name


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


@contextmanager
def _head_of_rows(model: Any) -> Iterator[None]:
    """Inside, a dense LM head is traced as a `_HeadOfRows`; its weight stays where it is, and tied."""
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear:
        yield
        return
    head.__class__ = _HeadOfRows
    try:
        yield
    finally:
        head.__class__ = nn.Linear
