"""A whole model, one sequence: tokens/s of decoding, stock transformers against the packed model, in turns.

    python benchmarks/whole_model.py RESTORED --packed DIR [--packed-int8 DIR] --json run.json

RESTORED is the stock checkpoint that the packed directories were made of (`restorelcc pack RESTORED --out DIR`, and
with `--values int8 --lm-head int8`). Contenders take turns, A B C A B C; a sample is the tokens after the second one
over the time from the second to the last. First each is checked: its logits along one text, against the checkpoint in
fp32.
"""

from __future__ import annotations

import fcntl
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

import restorelcc
from restorelcc.compiled_decoding import CompiledDecoder, compile_decode
from restorelcc.loading import tokenizer_of

# A contender in 16 bits may be this much further from fp32 than stock bf16 is, on average over all logits.
BUDGET = 1.25
WARM_TOKENS = 4


class Times:
    """A streamer that notes when tokens come."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def put(self, value: Tensor) -> None:
        self.at.append(time.perf_counter())

    def end(self) -> None:
        pass

    def tokens_per_second(self) -> float:
        first = 2  # 0 is the prompt, 1 the token of the prefill
        return (len(self.at) - 1 - first) / (self.at[-1] - self.at[first])


class StockCompiled:
    """What a user of transformers writes: a static cache, and torch.compile of the forward, guards and all."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.name = compile_decode(model)._cache_name
        self.step = torch.compile(self._forward, fullgraph=True, dynamic=False)

    def _forward(self, token: Tensor, position: Tensor, cache: Any) -> tuple[Tensor, Tensor]:
        inputs = {self.name: cache, "use_cache": True}
        logits = self.model(input_ids=token, position_ids=position, **inputs).logits[:, -1].float()
        return logits, logits.argmax(-1, keepdim=True)

    @torch.no_grad()
    def run(self, prompt: Tensor, new_tokens: int, streamer: Any, given: Tensor | None = None) -> list[Tensor]:
        from transformers import StaticCache

        length = prompt.shape[1]
        cache = StaticCache(config=self.model.config, max_cache_len=128 * -(-(length + new_tokens) // 128))
        streamer.put(prompt)
        logits = self.model(input_ids=prompt, **{self.name: cache, "use_cache": True}).logits[:, -1].float()
        token, found = logits.argmax(-1, keepdim=True), []
        streamer.put(token)
        for place in range(new_tokens - 1):
            if given is not None:
                token = given[:, place : place + 1].contiguous()
            logits, token = self.step(token, torch.full((1, 1), length + place), cache)
            found.append(logits.clone())
            streamer.put(token)
        return found


@dataclass
class Contender:
    """Who decodes, and what was found."""

    name: str
    bytes: int
    decode: Callable[[Any, int], Any]  # (streamer, new tokens)
    logits: Callable[[Tensor], Tensor]  # continuation [1, S] -> [S, V]
    checked: bool  # 16 bits: held to the budget
    first_seconds: float = 0.0
    error: float = 0.0
    agreement: float = 0.0
    rates: list[float] = field(default_factory=list)


def eager(name: str, model: Any, prompt: Tensor, *, checked: bool = True) -> Contender:
    def decode(streamer: Any, new_tokens: int) -> Any:
        with torch.no_grad():
            return model.generate(
                input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=new_tokens, do_sample=False,
                eos_token_id=None, pad_token_id=0, streamer=streamer,
            )  # fmt: skip

    def logits(text: Tensor) -> Tensor:
        name = compile_decode(model)._cache_name
        with torch.no_grad():  # token by token, since int8 products round x for few rows only
            cache, found = model(input_ids=prompt, use_cache=True)[name], []
            for place in range(text.shape[1]):
                output = model(input_ids=text[:, place : place + 1], use_cache=True, **{name: cache})
                found.append(output.logits[0].float())
            return torch.cat(found)

    return Contender(name, weight_bytes(model), decode, logits, checked)


def stock_compiled(name: str, model: Any, prompt: Tensor) -> Contender:
    compiled = StockCompiled(model)
    return Contender(
        name, weight_bytes(model), lambda streamer, n: compiled.run(prompt, n, streamer),
        lambda text: torch.cat(compiled.run(prompt, text.shape[1] + 1, Times(), text)), True,
    )  # fmt: skip


def ours_compiled(name: str, model: Any, prompt: Tensor, *, checked: bool = True) -> Contender:
    decoder: CompiledDecoder = compile_decode(model)
    return Contender(
        name, weight_bytes(model), lambda streamer, n: decoder.generate(prompt, max_new_tokens=n, streamer=streamer),
        lambda text: decoder.step_logits(prompt, text)[0], checked,
    )  # fmt: skip


def weight_bytes(model: Any) -> int:
    """Of parameters and buffers; what several names share counts once."""
    return sum({t.data_ptr(): t.nbytes for t in (*model.parameters(), *model.buffers())}.values())


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    fields = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line) if info.exists() else {}
    known = {key.strip(): value.strip() for key, value in fields.items()}
    name = known.get("model name", platform.processor() or platform.machine())
    return f"{name}, family {known.get('cpu family', '?')}, model {known.get('model', '?')}"


def stock(path: Path, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, dtype=dtype, local_files_only=True).eval().requires_grad_(False)


def check(contenders: list[Contender], restored: Path, prompt: Tensor, new_tokens: int) -> None:
    """Logits of each along the text that the checkpoint writes in fp32. SystemExit where one is too far from it."""
    reference = eager("reference", stock(restored, torch.float32), prompt)
    text = reference.decode(None, new_tokens)[:, prompt.shape[1] :]
    wanted = torch.log_softmax(reference.logits(text), -1)
    for contender in contenders:
        begin = time.perf_counter()
        contender.decode(Times(), WARM_TOKENS)
        contender.first_seconds = time.perf_counter() - begin
        found = torch.log_softmax(contender.logits(text), -1)
        contender.error = float((found - wanted).abs().mean())
        contender.agreement = float((found.argmax(-1) == wanted.argmax(-1)).float().mean())
        print(f"{contender.name}: {contender.error:.4f} from fp32", file=sys.stderr, flush=True)
    limit = BUDGET * contenders[0].error
    wrong = [contender.name for contender in contenders if contender.checked and contender.error > limit]
    if wrong:
        raise SystemExit(f"{', '.join(wrong)}: further from fp32 than {limit:.4f}; nothing was timed")


def table(contenders: list[Contender]) -> str:
    first = statistics.median(contenders[0].rates)
    lines = [
        "| contender | tokens/s, median (least to most) | of stock eager | weights | first call | mean error, nats "
        "| top-1 |",
        "|---|---|---|---|---|---|---|",
    ]
    for c in contenders:
        median = statistics.median(c.rates)
        lines.append(
            f"| {c.name} | {median:.1f} ({min(c.rates):.1f} to {max(c.rates):.1f}) | {median / first:.2f} | "
            f"{c.bytes / 1e6:.0f} MB | {c.first_seconds:.1f} s | {c.error:.4f} | {c.agreement:.0%} |"
        )
    return "\n".join(lines)


@contextmanager
def in_turn(path: Path | None) -> Iterator[None]:
    """Holds the lock file, where one is given, so that measurements on one machine do not overlap."""
    if path is None:
        yield
        return
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@click.command()
@click.argument("restored", type=click.Path(path_type=Path, exists=True))
@click.option("--packed", type=click.Path(path_type=Path, exists=True), required=True, help="bf16 values.")
@click.option("--packed-int8", type=click.Path(path_type=Path, exists=True), help="int8 values and head.")
@click.option("--prompt", default="Write a long story about a fisherman and the sea.", show_default=True)
@click.option("--new-tokens", default=64, show_default=True)
@click.option("--rounds", default=7, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--only", multiple=True, help="Part of a name; the first contender always runs.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write samples and settings.")
@click.option("--turns", type=click.Path(path_type=Path), help="Hold this lock file while a round runs.")
def main(restored: Path, packed: Path, packed_int8: Path | None, prompt: str, new_tokens: int, rounds: int,
         threads: int, only: tuple[str, ...], json_path: Path | None, turns: Path | None) -> None:  # fmt: skip
    torch.set_num_threads(threads)
    ids = tokenizer_of(restored)(prompt, return_tensors="pt")["input_ids"]
    dense, ours = stock(restored, torch.bfloat16), restorelcc.load(packed)
    int8 = restorelcc.load(packed_int8) if packed_int8 else None
    makers: dict[str, Callable[[str], Contender]] = {
        "stock eager, dense bf16": lambda name: eager(name, dense, ids),
        "stock compiled, dense bf16": lambda name: stock_compiled(name, dense, ids),
        "compile_decode, dense bf16": lambda name: ours_compiled(name, dense, ids),
        "eager, packed bf16": lambda name: eager(name, ours, ids),
        "compile_decode, packed bf16": lambda name: ours_compiled(name, ours, ids),
    }
    if int8 is not None:
        makers["eager, packed int8, head int8"] = lambda name: eager(name, int8, ids, checked=False)
        makers["compile_decode, packed int8, head int8"] = lambda name: ours_compiled(name, int8, ids, checked=False)
    names = [name for place, name in enumerate(makers) if not place or not only or any(part in name for part in only)]
    contenders = [makers[name](name) for name in names]
    check(contenders, restored, ids, new_tokens)
    for _ in range(rounds):
        with in_turn(turns):
            for contender in contenders:
                times = Times()
                contender.decode(times, new_tokens)
                contender.rates.append(times.tokens_per_second())
    machine = f"{cpu_name()}, {threads} threads, torch {torch.__version__}, {restorelcc.build_info()['isa']}"
    print(f"{machine}; {ids.shape[1]} prompt tokens, {new_tokens} new ones, {rounds} rounds\n\n{table(contenders)}")
    if json_path is not None:
        found = [{k: v for k, v in vars(c).items() if k not in ("decode", "logits")} for c in contenders]
        settings = {"prompt": prompt, "new_tokens": new_tokens, "rounds": rounds, "threads": threads}
        json_path.write_text(json.dumps({"machine": machine, **settings, "contenders": found}, indent=1))


if __name__ == "__main__":
    main()
