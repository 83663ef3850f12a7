"""Lies in JSON: of any value in a tree, and of the text itself."""

from __future__ import annotations

import json
from random import Random
from typing import Any

HUGE = (2**31, 2**31 - 1, 2**32, 2**53, 2**62, 2**63 - 1, 2**63, 2**64, 10**9, 10**12, 10**15, 10**30)
_STRINGS = (
    "", " ", "../../../etc/passwd", "/etc/passwd", "..", ".", "~", "a/../../b", "C:\\x", "none", "model", "law", "tax",
    "lm_head", "\x00", "a\nb", "\x1b[2J", "\u202e", "\ud800", "x" * 300, "{}", "%s%n", "__class__", "model.norm",
    "model.layers.0.self_attn.o_proj", "model.layers.0.self_attn.q_proj", "int8", "bf16", "fp32", "float32",
)  # fmt: skip
_NUMBERS = (0, 1, -1, 2, 3, 7, 8, 16, 31, 33, 63, 64, 65, 0.0, -0.0, 0.5, 1e-320, 1e308, -1e308, float("nan"),
            float("inf"), -float("inf"), -(2**63), *HUGE)  # fmt: skip
_OTHERS = (None, True, False, [], {}, [[]], [None], {"": None}, [0], [[1, 2], [3]], {"name": 1})

# Keys of the stock configuration that decide sizes, classes, or what else is read and run.
_CONFIG_LIES: dict[str, tuple[Any, ...]] = {
    "hidden_size": (0, -32, 16, 64, 33, *HUGE), "intermediate_size": (0, 71, 144, *HUGE),
    "vocab_size": (0, 1, 63, 65, *HUGE), "num_hidden_layers": (0, -1, 2, 3, 7, 8, *HUGE),
    "num_attention_heads": (0, -4, 1, 2, 3, 8, 32, 64, *HUGE), "num_key_value_heads": (0, 1, 3, 4, -2, *HUGE),
    "head_dim": (0, 1, 2, 4, 7, 16, -8, *HUGE), "max_position_embeddings": (0, -1, 1, *HUGE),
    "rms_norm_eps": (-1.0, 0.0, 1e300, "1"), "hidden_act": ("relu", "gelu", "quick_gelu", "none", "", "exec"),
    "model_type": ("opt", "gpt_neox", "mistral", "qwen2", "qwen3", "gemma2", "llama", "gpt2", "mamba", "", "../x"),
    "architectures": (["Qwen2ForCausalLM"], ["os.system"], [], "LlamaForCausalLM", None),
    "auto_map": ({"AutoConfig": "x--y.Z", "AutoModelForCausalLM": "x--y.Z"}, {"AutoConfig": "evil.Config"},
                 {"AutoModelForCausalLM": "evil.Model"}, [], "x"),
    "attn_implementation": ("kernels-community/flash-attn2", "flash_attention_2", "eager", "flex_attention", "x", 3),
    "_attn_implementation": ("kernels-community/flash-attn2", "paged|sdpa", "eager"),
    "experts_implementation": ("grouped_mm", "x"), "quantization_config": ({"quant_method": "bitsandbytes"}, {}, 3),
    "dtype": ("float64", "float8_e4m3fn", "int8", "load", "os", "", 3), "torch_dtype": ("float16", "nothing"),
    "rope_parameters": ({"rope_type": "default", "rope_theta": 0.0}, {"rope_type": "yarn"}, {"rope_type": "none"},
                        {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1e9},
                        {"rope_type": "linear", "rope_theta": 1e4, "factor": 0.0},
                        {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0, "partial_rotary_factor": 1e10},
                        {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 1e300},
                        {"rope_type": "longrope", "rope_theta": 1e4, "factor": 2.0, "short_factor": [1.0] * 4,
                         "long_factor": [1.0] * 4, "original_max_position_embeddings": 1},
                        {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0,
                         "high_freq_factor": 1.0, "original_max_position_embeddings": 64}),
    "rope_scaling": ({"type": "yarn", "factor": 1e9}, {"rope_type": "linear", "factor": -1.0}, "x"),
    "attention_bias": (True,), "mlp_bias": (True,), "tie_word_embeddings": (True, False, 1, "no"),
    "pad_token_id": (64, -1, 10**9, [0]), "use_cache": ("x", False), "output_attentions": (True,),
    "output_hidden_states": (True,), "return_dict": (False,), "is_encoder_decoder": (True,), "chunk_size_feed_forward":
    (10**9, -1), "pruned_heads": ({"0": [0]},), "layer_types": (["full_attention"], ["none"], ["sliding_attention"]),
    "sliding_window": (0, 1, -1, *HUGE), "use_sliding_window": (True,), "pretraining_tp": (0, 2, 10**9),
    "num_labels": HUGE, "id2label": ({"0": "x"}, 3), "problem_type": ("x",), "transformers_version": (3, "99.0.0"),
    "_name_or_path": ("../../x", 3), "name_or_path": ("../../x",), "text_config": ({}, {"model_type": "llama"}, 3),
    "base_model_tp_plan": ({"*": "x"},), "attribute_map": ({"hidden_size": "vocab_size"}, {"a": "a"}),
    "sub_configs": ({"x": 1},), "_commit_hash": ("../x",), "gradient_checkpointing": (True,), "attention_dropout": (7,),
}  # fmt: skip


def any_value(random: Random) -> Any:
    """Something that is seldom right: a string, a number, another type, or deep or long."""
    kind = random.random()
    if kind < 0.35:
        return random.choice(_NUMBERS)
    if kind < 0.7:
        return random.choice(_STRINGS)
    if kind < 0.95:
        return random.choice(_OTHERS)
    deep: Any = 0
    for _ in range(random.choice((3, 60, 300))):
        deep = [deep] if random.random() < 0.8 else {"x": deep}
    return deep


def garble_text(data: bytes, random: Random) -> bytes:
    """What no JSON writer makes: other encodings, numbers without end, brackets that never close, two of one key."""
    tricks = (
        b"", b"null", b"[]", b"{}", b"3", b'"x"', b"[" * 100_000, b'{"a":' * 50_000, b"1" * 5000, b"\xff\xfe" + data,
        b"\xef\xbb\xbf" + data, data.decode("utf-8").encode("utf-16"), data + data, data + b"\x00", b" " * 4096 + data,
        data.replace(b": 0", b": " + b"9" * 5000, 1), data.replace(b"1", b"1e999", 1), data.replace(b"{", b"{{", 1),
        data.replace(b'"', b"'"), data.replace(b",", b",,", 1), b"{" + data[1:] + b"}", data.replace(b"}", b",}", 1),
        data.replace(b"{", b'{"version": 2, "format": "x", "values": "int8", ', 1),
        data[:-2].rstrip() + b', "version": 7, "packed": 3, "hidden_size": 64}\n',
    )  # fmt: skip
    return random.choice(tricks)


def garble_tree(data: bytes, random: Random) -> bytes:
    """One value somewhere in the tree replaced, removed, doubled, or exchanged with another."""
    tree = json.loads(data)
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        _garble_node(tree, random)
    return json.dumps(tree).encode()


def _garble_node(tree: Any, random: Random) -> None:
    holder: Any = tree
    while holder:
        keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        key = random.choice(keys)
        if isinstance(holder[key], dict | list) and holder[key] and random.random() < 0.8:
            holder = holder[key]
            continue
        kind = random.random()
        other = random.choice(keys)
        if kind < 0.5:
            holder[key] = any_value(random)
        elif kind < 0.6 and isinstance(holder[key], int | float):
            holder[key] = random.choice((holder[key] + 1, -holder[key], holder[key] * 2, str(holder[key])))
        elif kind < 0.75:
            del holder[key]
        elif kind < 0.85:
            holder[key], holder[other] = holder[other], holder[key]
        elif isinstance(holder, list):
            holder.insert(random.randrange(len(holder) + 1), holder[key])
        else:
            holder[random.choice(_STRINGS)] = holder[key]
        return


def garble_config(data: bytes, random: Random) -> bytes:
    """config.json with one to three entries that decide something."""
    config = json.loads(data)
    for key in random.sample(sorted(_CONFIG_LIES), random.choice((1, 1, 1, 2, 3))):
        config[key] = random.choice(_CONFIG_LIES[key])
    return json.dumps(config).encode()


def garble_rope(data: bytes, random: Random) -> bytes:
    """config.json with lies about the tables of the positions."""
    config = json.loads(data)
    rope = dict(config.get("rope_parameters") or {})
    rope[random.choice(("rope_type", "rope_theta", "factor", "partial_rotary_factor", "attention_factor"))] = any_value(
        random
    )
    config["rope_parameters"] = rope
    if random.random() < 0.3:
        config["head_dim"] = random.choice((8, 10**8, 10**9, 2**31))
    return json.dumps(config).encode()
