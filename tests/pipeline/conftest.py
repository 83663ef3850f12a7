"""A tiny real model where the development data is at hand, and random ones of the architectures that are not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from development_data import shared
from random_models import RANDOM_MODELS, SIZES, VOCABULARY
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast


@pytest.fixture(scope="session")
def stories_path() -> Path:
    """A real Llama of 260k parameters: 5 layers, 8 heads, 4 key-value heads, head size 8."""
    return shared("data", "models", "stories260k-hf")


@pytest.fixture
def stories(stories_path: Path) -> Any:
    """That model and its tokenizer, loaded anew: a test may prune it."""
    from restorelcc.models import load_model

    torch.set_num_threads(1)  # a model so small only waits for more; put back by the fixture of all tests
    return load_model(stories_path)


@pytest.fixture
def random_model() -> Callable[[str], Any]:
    """name -> a model of that architecture with weights that depend on the name only."""

    torch.set_num_threads(1)

    def build(name: str) -> Any:
        settings = {**SIZES, **RANDOM_MODELS[name]}
        config = AutoConfig.for_model(settings.pop("model_type"), **settings)
        config.pad_token_id = 0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(len(name))
            model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(std=0.2)
        return model

    return build


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """Words w3 ... w60 and three special ones; no end is added, no beginning."""
    words = {"<pad>": 0, "<s>": 1, "</s>": 2, **{f"w{i}": i for i in range(3, VOCABULARY)}}
    stock = Tokenizer(WordLevel(words, unk_token="<pad>"))
    stock.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=stock, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


@pytest.fixture
def token_set() -> Callable[..., Any]:
    """(rows, width) -> a TokenSet of random ids; ragged: rows of falling length."""
    from restorelcc.text import TokenSet

    def build(rows: int = 6, width: int = 16, *, ragged: bool = False, vocabulary: int = VOCABULARY) -> TokenSet:
        ids = torch.randint(3, vocabulary, (rows, width), generator=torch.Generator().manual_seed(rows * width))
        lengths = torch.full((rows,), width)
        if ragged:
            lengths = (width - torch.arange(rows) * 2).clamp(min=2)
            ids = torch.where(torch.arange(width) < lengths[:, None], ids, 0)
        return TokenSet(ids, lengths, torch.ones(rows, dtype=torch.long), "random")

    return build
