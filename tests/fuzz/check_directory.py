"""The verdict on one directory: `restorelcc.load` refuses it in a sentence, or gives a model that is safe to run.

    accepted    every packed weight passes its validation, and two tokens go through the model
    refused     ValueError (OSError where the system refuses): one printable line that names a file or the directory
    unusable    loaded, but the stock class cannot run with what config.json says: an exception of its own code

The C ABI opens the directory too (restorelcc/model.h): it opens what load accepts and hands out the same weights, and
its refusal is such a sentence. JSON is read more strictly there: what only that refuses is no failure.

Anything else is a failure: another exception, a file read outside of the directory, a connection, a started program,
a question asked at the terminal, more than 512 MB.
"""

from __future__ import annotations

import os
import re
import resource
import shutil
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
from model_corpus import FILES, Directory, write_directory
from remembered_models import remember_stock_models

import restorelcc
from restorelcc.sparse_linear import SparseLinear

sys.path.append(str(Path(__file__).resolve().parents[1] / "runtime"))
from c_model import CModel

MOST_MEMORY = 512 << 20
HERE = Path(__file__).parent
LONGEST_SENTENCE = 1000  # characters, beside the directory's own name
_STRICTER = re.compile(r"stands twice|not JSON|is not a file|cannot be used")  # in C
_TOKENS = torch.tensor([[1, 2]])
_EVENTS = ("socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.system", "os.posix_spawn", "os.exec",
           "os.fork", "builtins.input", "os.remove", "os.rename", "os.symlink", "shutil.rmtree")  # fmt: skip


class _Watch:
    """What the load did that it should not have: opened a file elsewhere, connected, started a program."""

    def __init__(self) -> None:
        self.directory: str | None = None
        self.found: list[str] = []
        known = (sys.prefix, sys.base_prefix, Path(restorelcc.__file__).parent, HERE, "/proc", "/sys", "/dev/null")
        self._allowed = tuple(os.path.realpath(path) for path in known)
        sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.directory is None:
            return
        if event in _EVENTS:
            self.found.append(f"{event} {arguments[:1]!r}")
        elif event == "open" and isinstance(arguments[0], str | bytes):
            path = os.path.realpath(os.fsdecode(arguments[0]))
            # Beside the directory lies nothing but it; a link inside may lead out, and that is its writer's business.
            if not path.startswith((self.directory, *self._allowed)) and not self._linked(path):
                self.found.append(f"open {path!r}")

    def _linked(self, path: str) -> bool:
        places = [Path(str(self.directory)) / name for name in FILES]
        return any(place.is_symlink() and os.path.realpath(place) == path for place in places)


class Checker:
    """Loads one directory after the other in this process."""

    def __init__(self, workplace: Path, *, most_memory: int = MOST_MEMORY) -> None:
        torch.set_num_threads(1)
        self._workplace, self._most = workplace, most_memory
        self._watch = _Watch()
        self._base = 0
        remember_stock_models()

    def warm_up(self, corpus: dict[str, Directory]) -> None:
        """Every directory of the corpus has to be accepted; afterwards the memory in use is the base line."""
        for kind, directory in corpus.items():
            verdict, why = self.check(directory)
            if verdict != "accepted":
                raise RuntimeError(f"{kind} of the corpus is {verdict} as it is: {why}")
        self._base = _peak_memory()

    def check(self, directory: Directory) -> tuple[str, str]:
        """("accepted" | "refused" | "unusable" | "failed", sentence)."""
        place = self._workplace / "model"
        write_directory(directory, place)
        self._watch.found.clear()
        self._watch.directory = os.path.realpath(place)
        try:
            verdict, why = self._judge(place)
        finally:
            self._watch.directory = None
            shutil.rmtree(place)
        if self._watch.found:
            return "failed", f"{verdict}, but there was {self._watch.found[0]}"
        grown = _peak_memory() - self._base
        if self._base and grown > self._most:
            return "failed", f"{verdict}, but memory grew by {grown >> 20} MB"
        return verdict, why

    def _judge(self, place: Path) -> tuple[str, str]:
        try:
            model = restorelcc.load(place)
        except (ValueError, OSError) as error:
            verdict = _sentence(error, place)
            return verdict if verdict[0] == "failed" else _opened_from_c(place, None) or verdict
        except Exception as error:
            return "failed", f"load raised {_where(error)}"
        packed = {name: module for name, module in model.named_modules() if isinstance(module, SparseLinear)}
        try:
            for module in packed.values():
                module.packed.validate()
        except Exception as error:
            return "failed", f"a weight of the loaded model is not valid: {_where(error)}"
        failure = _opened_from_c(place, packed)
        if failure is not None:
            return failure
        try:
            with torch.no_grad():
                model(input_ids=_TOKENS)
        except Exception as error:
            frames = traceback.extract_tb(error.__traceback__)
            ours = any("restorelcc" in Path(frame.filename).parts for frame in frames)
            return "failed" if ours else "unusable", f"the forward pass raised {_where(error)}"
        return "accepted", ""


def _opened_from_c(place: Path, packed: dict[str, SparseLinear] | None) -> tuple[str, str] | None:
    """("failed", why), or None where C does as it should. packed: of the loaded model; None where load refuses it."""
    try:
        with CModel(place) as found:
            found.config(), found.tensors(), found.compensations()
            weights = found.weights()
    except ValueError as error:
        verdict = _sentence(error, place)
        if verdict[0] == "refused" and packed is not None and not _STRICTER.search(verdict[1]):
            return "failed", f"load accepts it, C does not: {verdict[1]}"
        return verdict if verdict[0] == "failed" else None
    if packed is not None:
        if set(weights) != set(packed):
            return "failed", f"C hands out {len(weights)} weights, load {len(packed)}"
        for name, weight in weights.items():
            if not torch.equal(weight["dense"].nan_to_num(), packed[name].packed.unpack().nan_to_num()):
                return "failed", f"C hands out another weight {name}"
    return None


def _sentence(error: Exception, place: Path) -> tuple[str, str]:
    text = str(error)
    if str(place) not in text:
        return "failed", f"the refusal names no file: {_where(error)}"
    rest = text.replace(str(place), "")
    if not text.isprintable():
        return "failed", f"the refusal is not one printable line: {_where(error)}"
    if len(rest) > LONGEST_SENTENCE:
        return "failed", f"the refusal has {len(rest)} characters: {_where(error)}"
    return "refused", rest


def _where(error: BaseException) -> str:
    """Type, place and message; the place tells one failure from another."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "restorelcc" in Path(frame.filename).parts] or frames
    last = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "?"
    return f"{type(error).__name__} at {last}: {ascii(str(error))[:300]}"


def _peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
