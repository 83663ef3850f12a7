"""A Llama as an OpenVINO model whose packed matrices are the operation RlccSparseLinear.

    h   = embedding[token]                                             per layer:
    h  += W_o attention(rope(W_q x), rope(W_k x), W_v x) + P + b       x = rms_norm(h)
    h  += W_down (silu(W_gate x) · W_up x) + P' + b                    x = rms_norm(h)
    logits = W_head rms_norm(h)

Inputs, as OpenVINO's tools for language models give them: input_ids, attention_mask, position_ids (int64 [B, T], [B, S]
and [B, T]; S counts the tokens in the state too), beam_idx (int32 [B]). Output: logits f32 [B, T, V]. Keys and values
of earlier calls are the request's state, [B, key-value heads, S, D] a layer each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as ops
from openvino.op import assign, read_value
from openvino.op.util import Variable, VariableInfo
from openvino.utils.node_factory import NodeFactory
from packed_directory import Array, PackedDirectory, PackedWeight, RefusedError

__all__ = ["build"]

_STORED = {"fp32": ov.Type.f32, "bf16": ov.Type.bf16, "fp16": ov.Type.f16}
_LOWEST = float(np.finfo(np.float32).min)


def build(packed: PackedDirectory, extension: Path, compensation: str | None) -> ov.Model:
    """The model of a directory; compensation: a name, or None for none. Refuses what is no Llama, in a sentence."""
    return _Llama(packed, extension, compensation).model()


class _Llama:
    def __init__(self, packed: PackedDirectory, extension: Path, compensation: str | None) -> None:
        config = packed.config
        if config.get("model_type") != "llama" or config.get("architectures") != ["LlamaForCausalLM"]:
            raise RefusedError(
                f"the model is of the type {config.get('model_type')!r}; this builds LlamaForCausalLM alone"
            )
        if config.get("hidden_act", "silu") != "silu":
            raise RefusedError(f"the model's activation is {config['hidden_act']!r}; this knows silu")
        self.packed, self.config, self.compensation = packed, config, compensation
        self.width: int = config["hidden_size"]
        self.heads: int = config["num_attention_heads"]
        self.kv_heads: int = config.get("num_key_value_heads") or self.heads
        self.head_dim: int = config.get("head_dim") or self.width // self.heads
        if self.kv_heads < 1 or self.heads % self.kv_heads != 0 or self.head_dim < 2 or self.head_dim % 2 != 0:
            raise RefusedError(
                f"the model has {self.heads} heads of size {self.head_dim} and {self.kv_heads} key-value heads; the "
                "size must be even, and the heads a multiple of the key-value heads"
            )
        self.factory = NodeFactory()
        self.factory.add_extension(str(extension))
        self.parameters = {
            "input_ids": ops.parameter([-1, -1], np.int64, name="input_ids"),
            "attention_mask": ops.parameter([-1, -1], np.int64, name="attention_mask"),
            "position_ids": ops.parameter([-1, -1], np.int64, name="position_ids"),
            "beam_idx": ops.parameter([-1], np.int32, name="beam_idx"),
        }
        for name, parameter in self.parameters.items():
            parameter.output(0).get_tensor().set_names({name})
        self.states: list[Any] = []

    def model(self) -> ov.Model:
        ids = self.parameters["input_ids"]
        hidden = ops.gather(self._dense("model.embed_tokens.weight"), ids, _integers(0))
        angles = self._angles()
        mask = self._mask()
        for layer in range(self.config["num_hidden_layers"]):
            name = f"model.layers.{layer}"
            normed = self._norm(hidden, f"{name}.input_layernorm")
            hidden = ops.add(hidden, self._attention(normed, layer, angles, mask))
            normed = self._norm(hidden, f"{name}.post_attention_layernorm")
            gate, up = self._project(normed, [f"{name}.mlp.gate_proj", f"{name}.mlp.up_proj"])
            (down,) = self._project(ops.multiply(ops.swish(gate), up), [f"{name}.mlp.down_proj"], layer)
            hidden = ops.add(hidden, down)
        normed = self._norm(hidden, "model.norm")
        own = self.packed.weight("lm_head") is not None or self.packed.has("lm_head.weight")
        (logits,) = self._project(normed, ["lm_head" if own else "model.embed_tokens"])
        result = ops.result(logits, name="logits")
        result.output(0).get_tensor().set_names({"logits"})
        return ov.Model([result], self.states, list(self.parameters.values()), "restored")

    # Constants.

    def _dense(self, name: str) -> Any:
        """A matrix as it is stored, widened to f32 where it is used."""
        array, kind = self.packed.tensor(name)
        if kind not in _STORED:
            raise RefusedError(f"{name} is of the type {kind}, must be fp32, bf16 or fp16")
        stored = ov.op.Constant(ov.Tensor(np.ascontiguousarray(array), ov.Shape(list(array.shape)), _STORED[kind]))
        stored.set_friendly_name(name)
        return stored if kind == "fp32" else ops.convert(stored, np.float32)

    def _bias(self, modules: Sequence[str]) -> Array | None:
        """[N] float32; None where no module has one, or all are zeros."""
        if not self.packed.has(f"{modules[0]}.bias"):
            return None
        bias = np.concatenate([self.packed.floats(f"{name}.bias") for name in modules])
        return bias if np.any(bias) else None

    # y = W x + bias + P, of modules that share x.

    def _project(self, x: Any, modules: Sequence[str], layer: int | None = None) -> list[Any]:
        """One output for each module. layer: of the compensation that its last projection adds."""
        found: dict[str, Any] = {}
        for module in modules:
            if module in found:
                continue
            weight = self.packed.weight(module)
            if weight is None:
                found[module] = self._dense_product(x, module)
                continue
            y = self._packed_product(x, weight, layer)
            parts = [y]
            if len(weight.modules) > 1:
                parts = ops.variadic_split(y, _integers(-1), _integers([rows for _, rows in weight.modules])).outputs()
            found.update(zip((name for name, _ in weight.modules), parts, strict=True))
        return [found[module] for module in modules]

    def _dense_product(self, x: Any, module: str) -> Any:
        y = ops.matmul(x, self._dense(f"{module}.weight"), False, True)
        bias = self._bias([module])
        return y if bias is None else ops.add(y, ops.constant(bias))

    def _packed_product(self, x: Any, weight: PackedWeight, layer: int | None) -> Any:
        # As bytes, which the CPU plugin leaves alone (sparse_linear_op.h).
        constants = [ops.constant(_bytes(weight.parts[part])) for part in ("mask", "values", "row_offsets")]
        if weight.values == "int8":
            constants.append(ops.constant(_bytes(weight.parts["scales"])))
        added = self._added(weight, layer)
        if added is not None:
            constants.append(ops.constant(_bytes(added)))
        attributes = {
            "rows": weight.rows, "columns": weight.columns, "values": weight.values, "module": weight.name,
        }  # fmt: skip
        node = self.factory.create("RlccSparseLinear", [x, *(one.output(0) for one in constants)], attributes)
        node.set_friendly_name(weight.name)
        return node.output(0)

    def _added(self, weight: PackedWeight, layer: int | None) -> Array | None:
        """[N] float32: bias + W c of heads, or bias + c of an FFN; summed in float64."""
        total = self._bias([name for name, _ in weight.modules])
        if self.compensation is None or layer is None:
            return total
        ffn = weight.name.endswith("down_proj")
        name = f"{'ffn_' if ffn else ''}compensation.{self.compensation}"
        if not self.packed.has(name):
            return total
        vector = self.packed.floats(name)[layer]
        added = vector.astype(np.float64) if ffn else weight.times(vector)
        return (added if total is None else added + total).astype(np.float32)

    # Between the products.

    def _norm(self, x: Any, module: str) -> Any:
        """x / sqrt(mean x² + eps) · weight"""
        square = ops.reduce_mean(ops.multiply(x, x), _integers([-1]), keep_dims=True)
        root = ops.sqrt(ops.add(square, _floats(self.config.get("rms_norm_eps", 1e-6))))
        return ops.multiply(ops.divide(x, root), ops.constant(self.packed.floats(f"{module}.weight")))

    def _angles(self) -> tuple[Any, Any]:
        """Cosines and sines [B, 1, T, D / 2] of the positions; the angle is rounded to fp32, as stock models do."""
        positions = ops.unsqueeze(ops.convert(self.parameters["position_ids"], np.float32), _integers([1, 3]))
        angles = ops.multiply(positions, ops.constant(_inverse_frequencies(self.config, self.head_dim)))
        return ops.cos(angles), ops.sin(angles)

    def _mask(self) -> Any:
        """[B, 1, T, S] f32: 0 where token t may look at s, else the lowest number."""
        tokens = _size(self.parameters["input_ids"], 1)
        all_tokens = _size(self.parameters["attention_mask"], 1)
        seen = ops.range(_integers(0), all_tokens, _integers(1), "i64")
        asking = ops.range(ops.subtract(all_tokens, tokens), all_tokens, _integers(1), "i64")
        causal = ops.less_equal(seen, ops.unsqueeze(asking, _integers(1)))
        real = ops.not_equal(self.parameters["attention_mask"], _integers(0))
        allowed = ops.logical_and(causal, ops.unsqueeze(real, _integers([1, 2])))
        return ops.select(allowed, _floats(0.0), _floats(_LOWEST))

    def _attention(self, x: Any, layer: int, angles: tuple[Any, Any], mask: Any) -> Any:
        name = f"model.layers.{layer}.self_attn"
        query, key, value = self._project(x, [f"{name}.{part}_proj" for part in "qkv"])
        query = _rotated(self._by_head(query, self.heads), angles)
        key = self._remembered(_rotated(self._by_head(key, self.kv_heads), angles), f"past_key_values.{layer}.key")
        value = self._remembered(self._by_head(value, self.kv_heads), f"past_key_values.{layer}.value")
        mixed = ops.scaled_dot_product_attention(
            query, self._repeated(key), self._repeated(value), mask, _floats(1 / math.sqrt(self.head_dim))
        )
        rows = ops.reshape(
            ops.transpose(mixed, _integers([0, 2, 1, 3])), _integers([0, 0, self.heads * self.head_dim]), True
        )
        return self._project(rows, [f"{name}.o_proj"], layer)[0]

    def _by_head(self, x: Any, heads: int) -> Any:
        """[B, T, heads · D] -> [B, heads, T, D]"""
        split = ops.reshape(x, _integers([0, 0, heads, self.head_dim]), True)
        return ops.transpose(split, _integers([0, 2, 1, 3]))

    def _remembered(self, new: Any, name: str) -> Any:
        """The state's tokens, of the beams that go on, and behind them the new ones."""
        shape = ov.PartialShape([-1, self.kv_heads, -1, self.head_dim])
        info = VariableInfo()
        info.data_shape, info.data_type, info.variable_id = shape, ov.Type.f32, name
        variable = Variable(info)
        batch = ops.unsqueeze(_size(self.parameters["input_ids"], 0), _integers(0))
        empty = ops.concat([batch, _integers([self.kv_heads, 0, self.head_dim])], 0)
        past = ops.gather(
            read_value(ops.broadcast(_floats(0.0), empty), variable), self.parameters["beam_idx"], _integers(0)
        )
        both = ops.concat([past, new], 2)
        self.states.append(assign(both, variable))
        return both

    def _repeated(self, x: Any) -> Any:
        """[B, key-value heads, S, D] -> [B, heads, S, D]: each for its group of query heads."""
        group = self.heads // self.kv_heads
        if group == 1:
            return x
        wide = ops.broadcast(
            ops.unsqueeze(x, _integers(2)), _integers([1, 1, group, 1, 1]), broadcast_spec="BIDIRECTIONAL"
        )
        return ops.reshape(wide, _integers([0, self.heads, -1, self.head_dim]), True)


def _rotated(x: Any, angles: tuple[Any, Any]) -> Any:
    """Each pair (x[i], x[i + D/2]) turned by the angle of its position."""
    cosines, sines = angles
    first, second = ops.split(x, _integers(-1), 2).outputs()
    return ops.concat(
        [
            ops.subtract(ops.multiply(first, cosines), ops.multiply(second, sines)),
            ops.add(ops.multiply(second, cosines), ops.multiply(first, sines)),
        ],
        -1,
    )


def _inverse_frequencies(config: dict[str, Any], head_dim: int) -> Array:
    """[D / 2] float32: theta^(-2i/D), stretched as the rotary positions' type says.

    Rounded where stock models round: an angle is a frequency times a position, so its last bit shows in the logits.
    """
    about = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = about.get("rope_type") or about.get("type") or "default"
    theta = about.get("rope_theta") or config.get("rope_theta") or 10000.0
    exponents = (np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)).astype(np.float64)
    found: Array = np.float32(1) / (float(theta) ** exponents).astype(np.float32)
    if kind == "default":
        return found
    if kind not in ("linear", "llama3"):
        raise RefusedError(f"the model's rotary positions are of type {kind!r}; this knows default, linear and llama3")

    def parameter(key: str) -> np.float32:
        value = about.get(key)
        if not isinstance(value, int | float) or not 0 < value < math.inf:
            raise RefusedError(f"the rotary positions of type {kind!r} have no {key} above 0 in config.json")
        return np.float32(value)

    stretched = found / parameter("factor")
    if kind == "linear":
        return stretched
    # Long waves are stretched by the factor, short ones left alone, those between interpolated.
    low, high = parameter("low_freq_factor"), parameter("high_freq_factor")
    if low >= high:
        raise RefusedError(f"high_freq_factor is {high}, must be above low_freq_factor, {low}")
    waves = parameter("original_max_position_embeddings") * found / np.float32(2 * math.pi)
    kept = np.clip((waves - low) / (high - low), np.float32(0), np.float32(1))
    return (1 - kept) * stretched + kept * found


def _size(node: Any, axis: int) -> Any:
    return ops.gather(ops.shape_of(node, "i64"), _integers(axis), _integers(0))


def _integers(values: int | Sequence[int]) -> Any:
    return ops.constant(np.array(values, dtype=np.int64))


def _floats(values: float) -> Any:
    return ops.constant(np.array(values, dtype=np.float32))


def _bytes(array: Array) -> Array:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
