"""What llama.cpp makes of a GGUF file, as a process of its own: `python llama_cpp_logits.py JOB.json`.

The job says which file, which rows of token ids and which texts; the answer is one .npy of logits [T, V] float32 a row,
and the ids of the texts. Imports llama-cpp-python and numpy alone, so that it runs in any environment that has them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np


def answer(job: dict[str, Any]) -> dict[str, Any]:
    """job: model, rows, texts, threads, float32_cache (keys and values; else llama.cpp's default, float16), out."""
    import llama_cpp

    cache = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32} if job["float32_cache"] else {}
    longest = max(len(row) for row in job["rows"])
    model: Any = llama_cpp.Llama(
        model_path=job["model"], n_ctx=longest, n_batch=longest, n_ubatch=longest, n_threads=job["threads"],
        n_threads_batch=job["threads"], logits_all=True, flash_attn=False, n_gpu_layers=0, verbose=False, **cache,
    )  # fmt: skip
    for number, row in enumerate(job["rows"]):
        model.reset()
        model.eval(row)
        np.save(Path(job["out"]) / f"{number}.npy", np.asarray(model.scores[: len(row)], dtype=np.float32))
    texts = [list(model.tokenize(text.encode(), add_bos=False, special=False)) for text in job["texts"]]
    return {"version": llama_cpp.__version__, "texts": texts}


if __name__ == "__main__":
    said = answer(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    Path(sys.argv[1]).with_suffix(".answer.json").write_text(json.dumps(said), encoding="utf-8")
