"""Contenders in turns, A B C A B C, each between two events, each with a cold second-level cache; the roof of the
same run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from alternating import quartiles

from on_device.device import Device
from on_device.floors import Roof
from on_device.problem import TORCH

WARM_UP_CALLS = 3
LEAST_ROUNDS = 7


@dataclass(frozen=True)
class Samples:
    """Seconds a call, one per round."""

    seconds: tuple[float, ...]

    def summary(self) -> dict[str, Any]:
        q1, middle, q3 = quartiles(self.seconds)
        return {"median": middle, "q1": q1, "q3": q3, "least": min(self.seconds), "rounds": len(self.seconds)}


def in_turns(
    device: Device, calls: Mapping[str, Callable[[], Any]], *, seconds: float, most_rounds: int = 200, cold: bool = True
) -> dict[str, Samples]:
    """Round after round until `seconds` have passed. The order turns round by one each time, so that nobody always
    follows the same neighbour (whose heat, or whose clocks, it would inherit).
    """
    names = list(calls)
    found: dict[str, list[float]] = {name: [] for name in names}
    for name in names:
        for _ in range(WARM_UP_CALLS):
            calls[name]()
    device.wait()
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds < LEAST_ROUNDS or (time.perf_counter() < end and rounds < most_rounds):
        for name in names[rounds % len(names) :] + names[: rounds % len(names)]:
            found[name].append(device.seconds(calls[name], cold=cold))
        rounds += 1
    return {name: Samples(tuple(times)) for name, times in found.items()}


def ratio(rival: Samples, ours: Samples) -> dict[str, float]:
    """Rival's time over ours, round by round: what slowed the device in a round slowed both."""
    q1, middle, q3 = quartiles([a / b for a, b in zip(rival.seconds, ours.seconds, strict=True)])
    return {"median": middle, "q1": q1, "q3": q3}


@dataclass(frozen=True)
class Measured:
    """The roof, and how it was found."""

    roof: Roof
    details: Mapping[str, Any]


def measured_roof(device: Device, *, seconds: float, quick: bool) -> Measured:
    """Bandwidth: the faster of a copy (read and written) and a sum (read) over memory that no cache holds. Tensor
    cores: a large bf16 or fp16 product by cuBLAS; fp32 lanes: a large fp32 product without TF32.
    """
    small = quick or device.emulated
    words, side, fp32_side = (1 << 18, 96, 96) if device.emulated else (1 << 26 if small else 1 << 28, 8192, 4096)
    source = torch.zeros(words, dtype=torch.float32, device=device.place)
    target = torch.empty_like(source)
    calls: dict[str, Callable[[], Any]] = {"copy": lambda: target.copy_(source), "read": lambda: source.sum()}
    work = {"copy": 8.0 * words, "read": 4.0 * words}
    matrices: dict[str, Sequence[torch.Tensor]] = {}
    for name, n in (("bf16", side), ("fp16", side), ("fp32", fp32_side)):
        matrices[name] = [torch.randn(n, n, device=device.place).to(TORCH[name]) for _ in range(2)]
        work[name] = 2.0 * n**3
        calls[name] = _product(*matrices[name])
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        found = in_turns(device, calls, seconds=seconds)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    rates = {name: work[name] / samples.summary()["median"] for name, samples in found.items()}
    roof = Roof("this device", max(rates["copy"], rates["read"]), max(rates["bf16"], rates["fp16"]), rates["fp32"])
    details = {
        "copy_bytes_per_second": rates["copy"], "read_bytes_per_second": rates["read"],
        **{f"{name}_product_flops_per_second": rates[name] for name in ("bf16", "fp16", "fp32")},
        "product_side": side, "fp32_product_side": fp32_side,
        "seconds": {name: samples.summary() for name, samples in found.items()},
    }  # fmt: skip
    return Measured(roof, details)


def _product(a: torch.Tensor, b: torch.Tensor) -> Callable[[], Any]:
    return lambda: a @ b
