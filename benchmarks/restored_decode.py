"""What restoring costs a token: the packed restored model against the packed pruned one, in turns.

    restorelcc pack pruned --out pruned.packed && restorelcc pack restored --out restored.packed
    python benchmarks/restored_decode.py pruned.packed restored.packed [--compiled]

Both decode greedily, one sequence. A round is A B C C B A, C being the pruned model loaded a second time: C against A
is what this machine's noise alone makes of no difference, and the figure to hold B against A to. A ratio is of the sums
of a round; printed are the median over rounds and its 95 % interval by bootstrap.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from alternating import machine
from torch import Tensor

import restorelcc
from restorelcc.compiled_decoding import compile_decode
from restorelcc.loading import tokenizer_of

DRAWS = 10000


def decoder(path: Path, prompt: Tensor, new_tokens: int, compiled: bool) -> Callable[[], float]:
    """Seconds of one continuation of the prompt, the prompt's own pass included."""
    model: Any = restorelcc.load(path)
    model.generation_config.eos_token_id = None  # so many tokens, whatever they are
    ours = compile_decode(model) if compiled else None

    def run() -> float:
        begin = time.perf_counter()
        with torch.inference_mode():
            if ours is not None:
                ours.generate(prompt, max_new_tokens=new_tokens)
            else:
                model.generate(
                    input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=new_tokens,
                    do_sample=False, pad_token_id=0,
                )  # fmt: skip
        return time.perf_counter() - begin

    return run


def interval(ratios: list[float]) -> tuple[float, float, float]:
    """(median, and the 2.5 % and 97.5 % quantiles of the medians of resampled rounds)."""
    draws = np.random.default_rng(0).choice(ratios, (DRAWS, len(ratios)))
    low, high = np.quantile(np.median(draws, 1), (0.025, 0.975))
    return statistics.median(ratios), float(low), float(high)


@click.command()
@click.argument("pruned", type=click.Path(path_type=Path, exists=True))
@click.argument("restored", type=click.Path(path_type=Path, exists=True))
@click.option("--compiled", is_flag=True, help="By compile_decode rather than stock generate().")
@click.option("--prompt", default="Write a long story about a fisherman and the sea.", show_default=True)
@click.option("--new-tokens", default=16, show_default=True)
@click.option("--rounds", default=40, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write samples and settings.")
def main(pruned: Path, restored: Path, compiled: bool, prompt: str, new_tokens: int, rounds: int, threads: int,
         json_path: Path | None) -> None:  # fmt: skip
    for path in (pruned, restored):
        if not (path / "packed.safetensors").is_file():
            raise click.UsageError(f"{path} is no packed model; make one with `restorelcc pack {path} --out DIR`")
    torch.set_num_threads(threads)
    ids = tokenizer_of(pruned)(prompt, return_tensors="pt")["input_ids"]
    first, second, again = (decoder(path, ids, new_tokens, compiled) for path in (pruned, restored, pruned))
    for run in (first, second, again):
        run()
    samples = [[run() for run in (first, second, again, again, second, first)] for _ in range(rounds)]
    sums = [(a + f, b + e, c + d) for a, b, c, d, e, f in samples]
    print(f"{machine()}, {threads} threads, torch {torch.__version__}, {restorelcc.build_info()['isa']}")
    per_token = [1e3 * statistics.median(times) / (2 * new_tokens) for times in zip(*sums, strict=True)]
    print(f"ms a token, the prompt's pass included: pruned {per_token[0]:.2f}, restored {per_token[1]:.2f}")
    found = {}
    for name, place in (("restored / pruned", 1), ("pruned again / pruned", 2)):
        middle, low, high = found[name] = interval([times[place] / times[0] for times in sums])
        print(f"{name}: {middle:.4f} ({low:.4f} to {high:.4f}), {rounds} rounds")
    if json_path is not None:
        settings = {"compiled": compiled, "prompt": prompt, "new_tokens": new_tokens, "threads": threads}
        json_path.write_text(json.dumps({"machine": machine(), **settings, "ratios": found, "seconds": samples}))


if __name__ == "__main__":
    main()
