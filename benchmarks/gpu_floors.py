"""The calculated tables of docs/cuda.md: bytes, FLOPs, floors, limits on issue. Nothing here was measured.

python benchmarks/gpu_floors.py [--write docs/cuda.md] [--gate build/cuda/static_gate.md]

--gate also puts the static gate's table (make test-cuda writes it) in its place there.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from on_device import floors
from on_device.floors import CARDS, Cost
from shapes import SHAPES

LAYERS = (("Llama-2-7B", "q_proj"), ("Llama-2-7B", "gate_up_proj"), ("SmolLM2-135M", "gate_up_proj"))
LOSSES = (("Llama-2-7B", 2048, 32000, 4096), ("SmolLM2-135M", 2048, 49152, 576))  # rows, vocabulary, columns


def microseconds(seconds: float) -> str:
    value = seconds * 1e6
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def amount(value: float, units: tuple[str, str, str]) -> str:
    """With the largest unit (10^6, 10^9, 10^12) that leaves a digit before the point."""
    power = 2 if value >= 1e12 else 1 if value >= 1e9 else 0
    return f"{value / 10.0 ** (6 + 3 * power):.3g} {units[power]}"


def row(title: str, cost: Cost) -> str:
    cells = [title, amount(cost.bytes, ("MB", "GB", "TB")), amount(cost.flops, ("MFLOP", "GFLOP", "TFLOP"))]
    cells += [f"{microseconds(cost.seconds(card.roof))} ({cost.bound(card.roof)})" for card in CARDS]
    return "| " + " | ".join(cells) + " |"


def layer_rows(where: str, N: int, K: int) -> Iterator[str]:
    for m in (1, 16):
        for values in ("bf16", "int8"):
            yield row(f"`sparse_linear` {values}, {where}, M = {m}", floors.sparse_linear(N, K, m, values))
        yield row(f"dense bf16, {where}, M = {m}", floors.dense_linear(N, K, m))
    for m in (64, 2048):
        yield row(f"`sparse_linear` bf16, {where}, M = {m}", floors.sparse_linear(N, K, m))
        yield row(f"`sparse_linear_2to4` bf16, {where}, M = {m}", floors.sparse_linear_2to4(N, K, m))
        yield row(f"dense bf16, {where}, M = {m}", floors.dense_linear(N, K, m))
    yield row(f"`sparse_linear_grad_x` bf16, {where}, M = 2048", floors.sparse_linear_grad_x(N, K, 2048))
    yield row(f"`sparse_linear_grad_values` bf16, {where}, M = 2048", floors.sparse_linear_grad_values(N, K, 2048))
    cost = floors.sparse_linear_grad_comp(N, 2048, 4)
    yield row(f"`sparse_linear_grad_comp` bf16, {where}, M = 2048, G = 4", cost)


def loss_rows(where: str, M: int, V: int, E: int) -> Iterator[str]:
    yield row(f"`linear_cross_entropy`, {where}", floors.linear_cross_entropy(M, V, E, False))
    yield row(f"`linear_cross_entropy` and grad_h, {where}", floors.linear_cross_entropy(M, V, E, True))
    yield row(f"`linear_cross_entropy_backward`, {where}", floors.linear_cross_entropy_backward(M, V, E))


def floor_table() -> str:
    head = ["op, shape, rows", "bytes", "FLOPs", *(f"{card.roof.name}, µs" for card in CARDS)]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    shapes = {(shape.model, shape.layer): shape for shape in SHAPES}
    for model, layer in LAYERS:
        shape = shapes[model, layer]
        lines += layer_rows(f"{model} {shape.outputs} × {shape.inputs}", shape.outputs, shape.inputs)
    for model, M, V, E in LOSSES:
        lines += loss_rows(f"{model}, V = {V}, E = {E}, M = {M}", M, V, E)
    lines += [row("`head_contrast`, SmolLM2-135M, G = 9, M = 512", floors.head_contrast(9, 512, 49152, 576))]
    lines += [row("`head_moments` bf16, T = 4096, H = 32, D = 128", floors.head_moments(4096, 32, 128))]
    lines += [row("`head_moments` bf16, T = 4096, H = 9, D = 64", floors.head_moments(4096, 9, 64))]
    return "\n".join(lines)


def issue_table() -> str:
    head = ["values at 50 %", "bytes a dense weight", *(card.roof.name for card in CARDS)]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for values in ("bf16", "int8", "fp32"):
        each = 1 / 8 + 0.5 * floors.BYTES[values] + (2 / 128 if values == "int8" else 0)
        limits = (f"{card.lane_instructions_per_weight(each):.1f}" for card in CARDS)
        lines.append(f"| {values} | {each:.4g} | " + " | ".join(limits) + " |")
    return "\n".join(lines)


def roof_table() -> str:
    head = ["", "memory, TB/s", "16-bit tensor cores, TFLOP/s", "fp32 lanes, TFLOP/s", "multiprocessors", "clock, GHz"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for card in CARDS:
        roof = card.roof
        cells = [f"{roof.name} ({card.architecture})", f"{roof.bandwidth / 1e12:.3g}", f"{roof.tensor / 1e12:.0f}"]
        cells += [f"{roof.fma / 1e12:.3g}", str(card.multiprocessors), f"{card.clock / 1e9:.4g}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


TABLES = {"roofs": roof_table, "floors": floor_table, "issue": issue_table}


def with_table(text: str, name: str, table: str) -> str:
    """The text with `table` between `<!-- NAME: begin -->` and `<!-- NAME: end -->`."""
    begin, end = f"<!-- {name}: begin -->\n", f"<!-- {name}: end -->"
    if begin not in text or end not in text:
        raise ValueError(f"there is no place for the table {name}")
    before, _, rest = text.partition(begin)
    return f"{before}{begin}{table.strip()}\n{end}{rest.partition(end)[2]}"


def with_tables(text: str) -> str:
    """The text with all calculated tables made anew."""
    for name, table in TABLES.items():
        text = with_table(text, name, table())
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, help="Markdown whose tables are to be made anew")
    parser.add_argument("--gate", type=Path, help="what static_gate.py --table wrote")
    arguments = parser.parse_args()
    if arguments.write is None:
        print("\n\n".join(table() for table in TABLES.values()))
        return
    text = with_tables(arguments.write.read_text(encoding="utf-8"))
    if arguments.gate is not None:
        text = with_table(text, "gate", arguments.gate.read_text(encoding="utf-8"))
    arguments.write.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
