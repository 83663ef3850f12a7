"""The exact probe against the loop it replaces, on one pruned model, in turns.

    naive    for each layer: all its heads' edits as one batch through the whole stock model, logits, cross_entropy
    exact    restorelcc.contrast_engine.head_contrasts

    restorelcc prune MODEL --pattern 2:4 --out pruned
    restorelcc moments --dense MODEL --pruned pruned --out m.safetensors
    python benchmarks/contrast_probe.py pruned m.safetensors --rows 8 --json probe.json

Both take the same rows, one batch of rows after the other, naive and exact in turns; both have one batch of rows and
all edits of a layer in flight. Printed: the ratio of times batch by batch, how far the scores are apart, attribution
in forward passes and its rank correlation, and how well `adaptive` settles who is in the best share for what time.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from restorelcc.artifacts import SilentProgress
from restorelcc.compensation import sparse_output_projections
from restorelcc.components import lost_components
from restorelcc.contrast_engine import edited_compensation, head_contrasts
from restorelcc.models import load_model, load_tokenizer
from restorelcc.moments import Moments
from restorelcc.ops import compensation_rows
from restorelcc.probe_adaptive import adaptive
from restorelcc.probe_agreement import decided_agreement, spearman
from restorelcc.probe_attribution import attribution
from restorelcc.probe_input import ProbeInput
from restorelcc.probes import select_heads
from restorelcc.text import load_text
from restorelcc.token_set import TokenSet


@torch.no_grad()
def naive_contrasts(model: Any, batch: TokenSet, vectors: Tensor) -> Tensor:
    """[L, H] float64: the same contrasts by whole forwards, the heads of one layer as one batch."""
    projections = sparse_output_projections(model)
    layers, heads, _ = vectors.shape
    labels = batch.labels[:, 1:]
    counted = labels != -100

    def losses(copies: int) -> Tensor:
        logits = model(
            input_ids=batch.ids.repeat(copies, 1), attention_mask=batch.attention_mask.repeat(copies, 1),
            use_cache=False,
        ).logits[:, :-1]  # fmt: skip
        logits = logits.reshape(copies, len(batch), *logits.shape[1:])[:, counted]
        nll = nn.functional.cross_entropy(
            logits.flatten(0, 1).float(), labels[counted].repeat(copies), reduction="none"
        )
        return nll.reshape(copies, -1).double().mean(1)

    base = losses(1)
    found = []
    for layer in range(layers):
        comp = edited_compensation(torch.zeros(vectors[0].numel()), vectors[layer], torch.arange(heads), "inject")
        rows = compensation_rows(comp, projections[layer].packed).repeat_interleave(len(batch), 0)[:, None]
        handle = projections[layer].register_forward_hook(lambda _, __, y, rows=rows: y + rows.to(y.dtype))
        try:
            found.append(losses(heads) - base)
        finally:
            handle.remove()
    return torch.stack(found)


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    begin = time.perf_counter()
    value = call()
    return time.perf_counter() - begin, value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pruned", type=Path)
    parser.add_argument("moments", type=Path)
    parser.add_argument("--rows", type=int, default=8, help="rows of the text beside the moments")
    parser.add_argument("--text", type=Path, help=".txt or .jsonl to use instead, in windows of --window tokens")
    parser.add_argument("--window", type=int, default=96)
    parser.add_argument("--width", type=int, default=1 << 30, help="rows of at most so many tokens")
    parser.add_argument("--batch", type=int, default=2, help="rows at once")
    parser.add_argument("--naive-rows", type=int, help="rows that the naive loop runs too; all by default")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--share", type=float, default=0.25, help="whose members the adaptive probe settles")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()

    if given.text is None:
        beside = given.moments.name.removesuffix(".safetensors") + ".text.safetensors"
        text = TokenSet.load(given.moments.with_name(beside))
    else:
        text = load_text(given.text, load_tokenizer(given.pruned), window=given.window)
    tokens = text.subset((text.lengths <= given.width).nonzero().flatten()[: given.rows])
    lost = lost_components(Moments.load(given.moments))
    model = load_model(given.pruned, dtype=getattr(torch, given.dtype)).model
    vectors = lost.vectors.float()
    report: dict[str, Any] = {
        "cpu": platform.processor() or platform.machine(), "threads": torch.get_num_threads(), "dtype": given.dtype,
        "rows": len(tokens), "counted_tokens": tokens.tokens, "positions": int(tokens.lengths.sum()),
        "heads": vectors[..., 0].numel(),
    }  # fmt: skip
    tokens = tokens.subset(tokens.lengths.argsort(descending=True, stable=True))  # rows of like length together
    batches = list(tokens.batches(given.batch))
    with torch.no_grad():
        for batch in batches[:1]:
            model(input_ids=batch.ids, attention_mask=batch.attention_mask, use_cache=False)
    forward, exact_times, naive_times, exact, naive = [], [], [], [], []
    weights, naive_batches = [], -(-(given.naive_rows or len(tokens)) // given.batch)
    for number, batch in enumerate(batches):
        with torch.no_grad():
            forward.append(
                timed(lambda: model(input_ids=batch.ids, attention_mask=batch.attention_mask, use_cache=False))[0]  # noqa: B023
            )
        seconds, run = timed(lambda: head_contrasts(model, batch, vectors))  # noqa: B023
        exact_times.append(seconds)
        exact.append(run.delta[..., 0])
        weights.append(float(run.weight[0]))
        if number < naive_batches:
            seconds, scores = timed(lambda: naive_contrasts(model, batch, vectors))  # noqa: B023
            naive_times.append(seconds)
            naive.append(scores)
            print(f"row {number * given.batch}: naive {seconds:.1f} s, exact {exact_times[-1]:.1f} s", flush=True)
    total = sum(score * weight for score, weight in zip(exact, weights, strict=True)) / sum(weights)
    ratios = [a / b for a, b in zip(naive_times, exact_times, strict=False)]
    both = torch.stack(naive), torch.stack(exact[: len(naive)])
    seconds, first_order = timed(
        lambda: attribution(ProbeInput(model, tokens, lost, batch=given.batch, progress=SilentProgress()))
    )
    settled_seconds, settled = timed(lambda: adaptive(ProbeInput(model, tokens, lost, share=given.share)))
    undecided = settled.details["undecided"] != 0
    report |= {
        "adaptive": {
            "seconds": settled_seconds, "exact_seconds": sum(exact_times),
            "work": float(settled.details["work"]), "undecided": float(undecided.double().mean()),
            "agreement_of_the_others": decided_agreement(
                settled.details["inside"] != 0, undecided, select_heads(-total, given.share)
            ),
        },
        "naive_over_exact": {"median": statistics.median(ratios), "each": ratios},
        "naive_seconds_per_row": statistics.median(naive_times) / given.batch,
        "exact_seconds_per_row": statistics.median(exact_times) / given.batch,
        "forward_seconds": sum(forward), "attribution_seconds": seconds,
        "attribution_in_forward_passes": seconds / sum(forward),
        "attribution_spearman": spearman(first_order.scores, -total),
        "exact_against_naive": {
            "spearman": spearman(both[0].mean(0), both[1].mean(0)),
            "largest_difference": float((both[0] - both[1]).abs().max()),
            "largest_contrast": float(both[0].abs().max()),
        },
    }  # fmt: skip
    print(json.dumps(report, indent=1))
    if given.json:
        given.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
