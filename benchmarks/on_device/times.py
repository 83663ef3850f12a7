"""Which contests are held, and what the JSON says of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from shapes import SHAPES

from on_device.contests import Contest, LinearShape, Weights, gradients, linear, row_sums
from on_device.device import CudaDevice, Queue, ask_nvidia_smi
from on_device.floors import Roof
from on_device.loss_contests import LossShape, MomentsShape, contrasts, losses, moments
from on_device.stopwatch import in_turns, ratio
from on_device.verdict import Verdict

LAYERS = (
    ("Llama-2-7B", "q_proj"), ("Llama-2-7B", "gate_up_proj"), ("Llama-2-7B", "down_proj"), ("SmolLM2-135M", "q_proj"),
    ("SmolLM2-135M", "gate_up_proj"),
)  # fmt: skip
ROWS = (1, 2, 4, 8, 16, 17, 32, 64, 128, 256, 512, 1024, 2048, 4096)
GRADIENT_ROWS = (16, 256, 2048)
LOSSES = (LossShape("Llama-2-7B", 2048, 32000, 4096), LossShape("SmolLM2-135M", 2048, 49152, 576))
MOMENTS = (MomentsShape("Llama-2-7B", 4096, 32, 128), MomentsShape("SmolLM2-135M", 4096, 9, 64))


def contests(queue: Queue, quick: bool) -> Iterator[Contest]:
    """One after the other, so that the tensors of one are gone before those of the next are made. On the emulator tiny
    ones, to run the same code.
    """
    ops = set(queue.library.interface.cuda_ops())
    tiny = queue.device.emulated
    named = {(shape.model, shape.layer): (shape.outputs, shape.inputs) for shape in SHAPES}
    chosen = LAYERS[:1] + LAYERS[-1:] if quick else LAYERS
    layers = [(f"{model} {layer}", *named[model, layer]) for model, layer in chosen]
    rows: tuple[int, ...] = (1, 16, 256) if quick else ROWS
    gradient_rows: tuple[int, ...] = (256,) if quick else GRADIENT_ROWS
    if tiny:
        layers, rows, gradient_rows = [("tiny", 40, 128)], (1, 17), (5,)
    for name, N, K in layers:
        weights = Weights(queue, N, K)
        for M in rows:
            yield linear(queue, weights, LinearShape(name, N, K, M))
        for M in gradient_rows:
            yield from gradients(queue, weights, LinearShape(name, N, K, M))
            if "sparse_linear_grad_comp" in ops:
                yield row_sums(queue, LinearShape(name, N, K, M))
    if {"linear_cross_entropy", "linear_cross_entropy_backward"} <= ops:
        for shape in [LossShape("tiny", 5, 70, 16)] if tiny else LOSSES[1:] if quick else LOSSES:
            yield from losses(queue, shape)
    if "head_contrast" in ops:
        shape = LossShape("tiny", 5, 70, 16) if tiny else LossShape("SmolLM2-135M", 512, 49152, 576)
        yield contrasts(queue, shape, 2 if tiny else 9)
    if "head_moments" in ops:
        for moments_shape in [MomentsShape("tiny", 20, 2, 8)] if tiny else MOMENTS:
            yield moments(queue, moments_shape)


def hold(
    queue: Queue, roof: Roof, verdict: Verdict, *, quick: bool, seconds: float, chosen: Callable[[str], bool],
    said: Callable[[str], None] = lambda _: None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Times every contest. A contender of ours that is wrong is a problem of the verdict and is not timed; a rival
    that is wrong is refused.
    """
    results = []
    for contest in contests(queue, quick):
        if not chosen(contest.op):
            continue
        title = f"{contest.op} {' '.join(f'{name}={value}' for name, value in contest.shape.items())}"
        for name in list(contest.contenders):
            try:
                wrong = contest.wrong(name)
            except RuntimeError as error:
                wrong = " ".join(str(error).split())[:300]
            if contest.contenders[name].ours:
                verdict.add("timed", f"{title}: {name}", wrong)
            if wrong is not None:
                contest.refused[name] = f"wrong result: {wrong}"
                del contest.contenders[name]
        for name, why in contest.refused.items():
            if name.startswith("ours") and not why.startswith("wrong result"):
                verdict.add("timed", f"{title}: {name}", why)
        if contest.contenders:
            results.append({**_held(contest, queue, roof, seconds), "title": title})
            said(f"{title}: ran" if queue.device.emulated else _line(results[-1]))
    return results


def _held(contest: Contest, queue: Queue, roof: Roof, seconds: float) -> dict[str, Any]:
    calls = {name: contender.call for name, contender in contest.contenders.items()}
    samples = in_turns(queue.device, calls, seconds=seconds)
    device = queue.device
    rows: dict[str, Any] = {}
    for name, contender in contest.contenders.items():
        summary, cost = samples[name].summary(), contender.cost
        rows[name] = {
            "seconds": summary, "bytes": cost.bytes, "flops": cost.flops, "unit": cost.unit,
            "floor_seconds": cost.seconds(roof), "bound": cost.bound(roof),
            "share_of_floor": cost.seconds(roof) / summary["median"],
        }  # fmt: skip
        if contest.baseline in samples and name != contest.baseline:
            rows[name]["over_ours"] = ratio(samples[name], samples[contest.baseline])
    return {
        "op": contest.op, "shape": dict(contest.shape), "contenders": rows, "refused": contest.refused,
        "baseline": contest.baseline,
        "nvidia_smi": ask_nvidia_smi(device.place.index or 0) if isinstance(device, CudaDevice) else {},
    }  # fmt: skip


def _line(result: dict[str, Any]) -> str:
    parts = [result["title"]]
    for name, row in result["contenders"].items():
        s = row["seconds"]
        over = f", {row['over_ours']['median']:.2f}x ours" if "over_ours" in row else ""
        parts.append(
            f"    {name}: {s['median'] * 1e6:,.2f} [{s['q1'] * 1e6:,.2f}, {s['q3'] * 1e6:,.2f}] µs, "
            f"{100 * row['share_of_floor']:.0f} % of the {row['bound']} floor{over}"
        )
    return "\n".join(parts + [f"    {name}: not timed: {why}" for name, why in result["refused"].items()])
