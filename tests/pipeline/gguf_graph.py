"""What llama.cpp computes for architecture "llama", from the GGUF file alone, in float64.

    n = x / sqrt(mean(x²) + eps) · w_norm
    q, k, v = W n + b;   q, k: rows 2i, 2i + 1 of a head turned together by  pos · scale · base^(−2i/D) / factor_i
    x = x + W_o softmax(q kᵀ / sqrt(D), causal) v + b_o
    x = x + W_down (silu(W_gate n + b_gate) · (W_up n + b_up)) + b_down

Every bias is optional. Written from that description: it shares nothing with the export but the gguf package's reader.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import torch
from torch import Tensor


class GgufFile:
    """Fields and dequantised tensors of a file. Tensors have their rows first, as in torch."""

    def __init__(self, path: Path) -> None:
        reader: Any = gguf.GGUFReader(path)
        self.fields = {key: field.contents() for key, field in reader.fields.items()}
        self.types = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
        self.tensors = {
            tensor.name: torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy())
            for tensor in reader.tensors
        }

    def number(self, name: str) -> Any:
        return self.fields[f"llama.{name}"]

    def product(self, name: str, x: Tensor) -> Tensor:
        """W x + b, the bias where there is one."""
        y = x @ self.tensors[f"{name}.weight"].double().T
        bias = self.tensors.get(f"{name}.bias")
        return y if bias is None else y + bias.double()

    def norm(self, name: str, x: Tensor) -> Tensor:
        mean = x.pow(2).mean(-1, keepdim=True)
        eps = self.number("attention.layer_norm_rms_epsilon")
        return x / (mean + eps).sqrt() * self.tensors[f"{name}.weight"].double()

    def turned(self, x: Tensor) -> Tensor:
        """x [T, H, D], neighbouring dimensions turned by the position."""
        size = x.shape[-1]
        angle = self.number("rope.freq_base") ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
        if "rope_freqs.weight" in self.tensors:
            angle = angle / self.tensors["rope_freqs.weight"].double()
        if self.fields.get("llama.rope.scaling.type") == "linear":
            angle = angle / self.number("rope.scaling.factor")
        angles = torch.arange(len(x), dtype=torch.float64)[:, None, None] * angle
        first, second = x[..., 0::2], x[..., 1::2]
        real, imaginary = (
            first * angles.cos() - second * angles.sin(),
            first * angles.sin() + second * angles.cos(),
        )
        return torch.stack([real, imaginary], -1).flatten(-2)

    def logits(self, ids: Tensor) -> Tensor:
        """[T, V] float64 of one row of ids [T]."""
        heads, shared = self.number("attention.head_count"), self.number("attention.head_count_kv")
        size = self.number("attention.key_length")
        x = self.tensors["token_embd.weight"].double()[ids]
        count = len(ids)
        later = torch.ones(count, count, dtype=torch.bool).triu(1)
        for layer in range(self.number("block_count")):
            block = f"blk.{layer}"
            n = self.norm(f"{block}.attn_norm", x)
            q = self.turned(self.product(f"{block}.attn_q", n).view(count, heads, size))
            k = self.turned(self.product(f"{block}.attn_k", n).view(count, shared, size))
            v = self.product(f"{block}.attn_v", n).view(count, shared, size)
            k, v = (part.repeat_interleave(heads // shared, dim=1) for part in (k, v))
            scores = torch.einsum("thd,shd->hts", q, k) / size**0.5
            weights = scores.masked_fill(later, -torch.inf).softmax(-1)
            z = torch.einsum("hts,shd->thd", weights, v).flatten(1)
            x = x + self.product(f"{block}.attn_output", z)
            n = self.norm(f"{block}.ffn_norm", x)
            gate = torch.nn.functional.silu(self.product(f"{block}.ffn_gate", n))
            x = x + self.product(f"{block}.ffn_down", gate * self.product(f"{block}.ffn_up", n))
        head = "output.weight" if "output.weight" in self.tensors else "token_embd.weight"
        return self.norm("output_norm", x) @ self.tensors[head].double().T
