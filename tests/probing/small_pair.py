"""A random tiny model, a pruned copy, and the files that the steps before the probe leave; made anew where asked."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from restorelcc.components import lost_components
from restorelcc.models import prunable_linears, save_checkpoint
from restorelcc.moments import collect_moments
from restorelcc.text import TokenSet
from restorelcc.training import closed_form

LAYERS, HEADS, WORDS, ROWS = 2, 4, 96, 20


@dataclass(frozen=True)
class SmallPair:
    """Everything that `restorelcc probe` may be pointed at."""

    dense: Path
    pruned: Path
    moments: Path
    text: Path
    pairs: Path
    compensation: Path

    @property
    def arguments(self) -> tuple[str, ...]:
        """The options that every call needs."""
        return ("--pruned", str(self.pruned), "--moments", str(self.moments), "--quiet")


def small_pair(folder: Path) -> SmallPair:
    """2 layers of 4 heads (2 of keys and values), 96 words; 20 rows of 8 to 15 tokens; 12 pairs."""
    torch.manual_seed(5)
    config = LlamaConfig(
        vocab_size=WORDS, hidden_size=32, intermediate_size=48, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        num_key_value_heads=2, max_position_embeddings=64, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.normal_(std=0.2)
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(WORDS)}, unk_token="w3"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="w1", eos_token="w2", pad_token="w0")
    made = SmallPair(
        folder / "dense", folder / "pruned", folder / "m.safetensors", folder / "m.text.safetensors",
        folder / "pairs.jsonl", folder / "c.safetensors",
    )  # fmt: skip
    save_checkpoint(model, tokenizer, made.dense)
    for _, linear in prunable_linears(model):
        groups = linear.weight.data.view(linear.out_features, -1, 4)
        groups.scatter_(-1, groups.abs().argsort(dim=-1)[..., :2], 0.0)
    save_checkpoint(model, tokenizer, made.pruned)
    lengths = torch.arange(ROWS) % 8 + 8
    text = TokenSet(torch.randint(3, WORDS, (ROWS, 15)), lengths, torch.ones(ROWS, dtype=torch.long), "words")
    text.save(made.text)
    moments = collect_moments(made.dense, made.pruned, text, out=made.moments)
    heads = torch.ones(LAYERS, HEADS, dtype=torch.bool)
    found = closed_form(model, text, lost_components(moments), heads, scales=(0.0, 0.5)).compensation
    type(found)(torch.randn_like(found.vectors) * 0.1, heads, found.sites).save(made.compensation)
    lines = [{"text": sentence(4), "label": " " + sentence(3)} for _ in range(12)]
    made.pairs.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return made


def sentence(words: int) -> str:
    """Random words of the small model."""
    return " ".join(f"w{int(i)}" for i in torch.randint(3, WORDS, (words,)))
