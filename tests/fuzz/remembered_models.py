"""The stock code's part of a load, answered from memory where its input was seen before: most mutations leave
config.json alone, and reading it and building the class of it takes three quarters of the time of a load.

What this project does with the answers is not remembered: it runs for every directory.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

_MOST = 64  # configurations: those of the corpus, and the first garbled ones


def remember_stock_models() -> None:
    """Replaces AutoConfig.from_pretrained and AutoModelForCausalLM.from_config for the rest of this process."""
    from transformers import AutoConfig, AutoModelForCausalLM

    read, build = AutoConfig.from_pretrained, AutoModelForCausalLM.from_config
    configurations: dict[bytes, Any] = {}
    models: dict[tuple[int, Any, bool], nn.Module] = {}

    def remembered_configuration(path: Path, **settings: Any) -> Any:
        data = (Path(path) / "config.json").read_bytes()
        if data in configurations:
            return configurations[data]
        config = read(path, **settings)
        if len(configurations) < _MOST:
            configurations[data] = config
        return config

    def remembered_model(config: Any, **settings: Any) -> nn.Module:
        key = (id(config), settings.get("dtype"), torch.empty(0).is_meta)
        if not any(config is known for known in configurations.values()):
            return build(config, **settings)
        if key not in models:
            models[key] = build(config, **settings)
        return _copy(models[key])

    AutoConfig.from_pretrained = remembered_configuration
    AutoModelForCausalLM.from_config = remembered_model


def _copy(module: nn.Module) -> nn.Module:
    """A module of its own, with the tensors of the other: loading replaces tensors and modules, it writes to none."""
    made: nn.Module = type(module).__new__(type(module))
    made.__dict__.update(module.__dict__)
    for name, value in module.__dict__.items():
        if type(value).__name__ in ("dict", "OrderedDict", "set"):
            made.__dict__[name] = value.copy()
    for name, child in module._modules.items():
        made._modules[name] = None if child is None else _copy(child)
    return made
