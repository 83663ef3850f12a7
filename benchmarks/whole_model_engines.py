"""The contenders of whole_model_rivals.py, as a worker process: `python whole_model_engines.py ENGINE`.

An engine loads a model, sums the NLL of given rows of token ids, and continues a prompt of token ids greedily. Another
way to run a model is one more class here, and a line in `contenders` of whole_model_rivals.py. Imports its library only
when it is chosen, so that this file runs in any rival's Python.
"""

from __future__ import annotations

import ctypes
import itertools
import math
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from alternating import serve, waited_seconds

QUANTISED_AS = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "BF16": 32}  # llama_ftype of llama.h
CONTEXT = 1024


class Engine(Protocol):
    """step: what continues a text; called with new token ids, it returns the likeliest next one."""

    def about(self) -> dict[str, str]: ...
    def row_nll(self, ids: list[int]) -> float: ...
    def generate(self, prompt: list[int], new_tokens: int) -> tuple[list[int], list[float]]: ...


class Stock:
    """`restorelcc.load` and stock transformers: generate() in eager mode, for dense checkpoints and packed ones."""

    def __init__(self, path: str, threads: int, dtype: str | None) -> None:
        import torch
        import transformers

        import restorelcc
        from restorelcc.models import load_model

        torch.set_num_threads(threads)
        self.torch, self.transformers = torch, transformers
        self.info = restorelcc.build_info()
        loaded = restorelcc.load(path) if dtype is None else load_model(path, dtype=getattr(torch, dtype)).model
        self.model: Any = loaded
        self.model.generation_config.eos_token_id = None  # so many tokens, whatever they are

    def about(self) -> dict[str, str]:
        return {
            "torch": self.torch.__version__, "transformers": self.transformers.__version__,
            "restorelcc": self.info["versions"]["restorelcc"], "our instruction set": str(self.info["isa"]),
        }  # fmt: skip

    def row_nll(self, ids: list[int]) -> float:
        from restorelcc.evaluation import token_nll
        from restorelcc.token_set import TokenSet

        rows = TokenSet.from_rows([ids], pad=0, name="")
        return float(token_nll(self.model, rows, batch=1).nll_sum.sum())

    def generate(self, prompt: list[int], new_tokens: int) -> tuple[list[int], list[float]]:
        from restorelcc.models import quiet_transformers

        clock = _Clock()
        ids = self.torch.tensor([prompt])
        with quiet_transformers():
            out = self.model.generate(
                input_ids=ids, attention_mask=self.torch.ones_like(ids), max_new_tokens=new_tokens, do_sample=False,
                num_beams=1, temperature=None, top_k=None, top_p=None, pad_token_id=0, streamer=clock,
            )  # fmt: skip
        return out[0, len(prompt) :].tolist(), clock.times[1:]


class Compiled(Stock):
    """The same model decoded by `restorelcc.compile_decode`, its weights in huge pages where the system has them."""

    def __init__(self, path: str, threads: int, dtype: str | None) -> None:
        super().__init__(path, threads, dtype)
        import restorelcc

        self.model = restorelcc.load(path, huge_pages=True)
        self.decoder = restorelcc.compile_decode(self.model)

    def generate(self, prompt: list[int], new_tokens: int) -> tuple[list[int], list[float]]:
        clock = _Clock()
        out = self.decoder.generate(self.torch.tensor([prompt]), max_new_tokens=new_tokens, streamer=clock)
        return out[0, len(prompt) :].tolist(), clock.times[1:]


class _Clock:
    """The streamer that generate() is given: the prompt first, then a token at a time."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Any) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        pass


class Llama:
    """llama.cpp by its C API, as llama-cpp-python binds it: no sampling chain, numpy's argmax over the logits."""

    def __init__(self, path: str, threads: int, dtype: str | None) -> None:
        import llama_cpp

        self.api: Any = llama_cpp
        _quiet(llama_cpp)
        model = self.api.llama_model_default_params()
        model.use_mmap, model.n_gpu_layers = True, 0
        self._model = self.api.llama_model_load_from_file(path.encode(), model)
        if not self._model:
            raise ValueError(f"llama.cpp cannot load {path}")
        context = self.api.llama_context_default_params()
        context.n_ctx = context.n_batch = context.n_ubatch = CONTEXT
        context.n_threads = context.n_threads_batch = threads
        self._context = self.api.llama_init_from_model(self._model, context)
        self._size = self.api.llama_vocab_n_tokens(self.api.llama_model_get_vocab(self._model))

    def about(self) -> dict[str, str]:
        system = self.api.llama_print_system_info().decode()
        return {"llama-cpp-python": self.api.__version__, "llama.cpp": " ".join(system.split())}

    def row_nll(self, ids: list[int]) -> float:
        self._forget()
        batch = self.api.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, i, 1, 1
            batch.seq_id[i][0] = 0
        self._decode(batch)
        total = 0.0
        for i, target in enumerate(ids[1:]):
            logits = self._logits(i).astype(np.float64)
            top = float(logits.max())
            total += top + math.log(float(np.exp(logits - top).sum())) - float(logits[target])
        self.api.llama_batch_free(batch)
        return total

    def generate(self, prompt: list[int], new_tokens: int) -> tuple[list[int], list[float]]:
        self._forget()
        fed, new, times = prompt, [], []
        while len(new) < new_tokens:
            ids = (self.api.llama_token * len(fed))(*fed)
            self._decode(self.api.llama_batch_get_one(ids, len(fed)))
            new.append(int(self._logits(-1).argmax()))
            times.append(time.perf_counter())
            fed = new[-1:]
        return new, times

    def _forget(self) -> None:
        self.api.llama_memory_clear(self.api.llama_get_memory(self._context), True)

    def _decode(self, batch: Any) -> None:
        status = self.api.llama_decode(self._context, batch)
        if status != 0:
            raise ValueError(f"llama_decode returned {status}")

    def _logits(self, place: int) -> Any:
        return np.ctypeslib.as_array(self.api.llama_get_logits_ith(self._context, place), (self._size,))


ENGINES: dict[str, Callable[[str, int, str | None], Engine]] = {"stock": Stock, "compiled": Compiled, "llama": Llama}
_log: Any = None  # llama.cpp keeps the pointer


def _quiet(llama_cpp: Any) -> None:
    global _log
    _log = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(_log, ctypes.c_void_p(0))


def quantise(source: str, out: str, kind: str, threads: int) -> dict[str, Any]:
    """llama.cpp's own quantiser, its defaults, no importance matrix; the source may be quantised already."""
    import llama_cpp

    _quiet(llama_cpp)
    how = llama_cpp.llama_model_quantize_default_params()
    how.ftype, how.nthread, how.allow_requantize = QUANTISED_AS[kind], threads, True
    status = llama_cpp.llama_model_quantize(source.encode(), out.encode(), ctypes.byref(how))
    if status != 0:
        raise ValueError(f"llama_model_quantize of {source} to {kind} returned {status}")
    return {}


class Model:
    """What a worker does when it is told to."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._engine: Any = None

    def handlers(self) -> dict[str, Callable[..., dict[str, Any]]]:
        return {"start": self.start, "nll": self.nll, "generate": self.generate, "quantise": quantise}

    def start(self, path: str, threads: int, dtype: str | None = None) -> dict[str, str]:
        self._engine = ENGINES[self._name](path, threads, dtype)
        about: dict[str, str] = self._engine.about()
        return about

    def nll(self, ids: list[int]) -> dict[str, Any]:
        """Nats of ids[1:], each given what stands before it in the row."""
        return {"nll": self._engine.row_nll(ids)}

    def generate(self, prompt: list[int], new_tokens: int) -> dict[str, Any]:
        """One sample: seconds a token, after the first, and of each; disturbed where threads waited for a hundredth."""
        waited, idle = waited_seconds(), time.process_time()
        new, times = self._engine.generate(prompt, new_tokens)
        if len(new) != new_tokens or len(times) != new_tokens:
            raise ValueError(f"{len(new)} new tokens and {len(times)} times, not {new_tokens}")
        seconds = times[-1] - times[0]
        disturbed = waited_seconds() - waited > 0.01 * seconds
        return {
            "times": [seconds / (new_tokens - 1)], "interrupted": [0] if disturbed else [], "idle": 0.0, "new": new,
            "steps": [after - before for before, after in itertools.pairwise(times)],
            "cpu_seconds": time.process_time() - idle,
        }  # fmt: skip


def main() -> None:
    serve(Model(sys.argv[1]).handlers())


if __name__ == "__main__":
    main()
