"""What the tests ask of OpenVINO, in a Python that has it: openvino_worker.py JOB.json.

JOB: the task, the extension, and what the task takes; arrays are .npy files by their path. Only "stock" needs torch.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

Array = NDArray[Any]
EXACT = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}


class Model:
    """A converted model, one request."""

    def __init__(self, job: dict[str, Any]) -> None:
        core = ov.Core()
        core.add_extension(job["extension"])
        model = core.read_model(Path(job["model"]) / "openvino_model.xml")
        self.request = core.compile_model(model, "CPU", {**EXACT, **job.get("config", {})}).create_infer_request()

    def __call__(self, ids: Array, mask: Array, positions: Array) -> Array:
        """Logits [B, T, V] of ids [B, T] behind what the state holds; mask [B, S] covers both."""
        beams = np.arange(len(ids), dtype=np.int32)
        asked = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, "beam_idx": beams}
        return np.array(self.request.infer(asked)["logits"])


def logits(job: dict[str, Any]) -> None:
    """[T, V] of one text, for each batch size in `batches`: OUT.<batch>.npy"""
    model, ids = Model(job), np.array([job["ids"]])
    for batch in job["batches"]:
        model.request.reset_state()
        found = []
        for at in range(0, ids.shape[1], batch):
            some = ids[:, at : at + batch]
            all_tokens = at + some.shape[1]
            found.append(model(some, np.ones((1, all_tokens), np.int64), np.arange(at, all_tokens)[None])[0])
        np.save(f"{job['out']}.{batch}.npy", np.concatenate(found))


def padded(job: dict[str, Any]) -> None:
    """[T, V] of each of two texts that run side by side, the shorter padded on its left: OUT.0.npy, OUT.1.npy"""
    model, texts = Model(job), job["texts"]
    longest = max(map(len, texts))
    mask = np.array([[0] * (longest - len(text)) + [1] * len(text) for text in texts])
    ids = np.array([[0] * (longest - len(text)) + text for text in texts])
    found = model(ids, mask, np.maximum(mask.cumsum(axis=1) - 1, 0))
    for row, text in enumerate(texts):
        np.save(f"{job['out']}.{row}.npy", found[row, longest - len(text) :])


def product(job: dict[str, Any]) -> None:
    """y of the operation alone for each of `cases`, its weight as `constants` or `inputs`: OUT.<number>.<which>.npy"""
    from openvino import opset13 as ops
    from openvino.utils.node_factory import NodeFactory

    factory = NodeFactory()
    factory.add_extension(job["extension"])
    core = ov.Core()
    core.add_extension(job["extension"])
    for number, case in enumerate(job["cases"]):
        parts = [np.load(path) for path in case["parts"]]
        for which in case["as"]:
            x = ops.parameter([-1, -1, case["attributes"]["columns"]], np.float32)
            given = [] if which == "constants" else [ops.parameter(list(part.shape), part.dtype) for part in parts]
            weight = given or [ops.constant(part) for part in parts]
            node = factory.create("RlccSparseLinear", [one.output(0) for one in (x, *weight)], case["attributes"])
            model = ov.Model([ops.result(node.output(0))], [x, *given], "product")
            request = core.compile_model(model, "CPU", {**EXACT, **case.get("config", {})}).create_infer_request()
            found = request.infer([np.load(case["x"]), *(parts if given else [])])
            np.save(f"{job['out']}.{number}.{which}.npy", found[0])


def stock(job: dict[str, Any]) -> None:
    """[T, V] of a stock checkpoint by OpenVINO's conversion of torch models, without the extension: OUT.stock.npy"""
    import torch
    from transformers import AutoModelForCausalLM

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model: Any = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32).eval()

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.model(input_ids, attention_mask=attention_mask, use_cache=False).logits
            return found

    # With a mask, since without one transformers looks for joined texts by aten::diff, which OpenVINO cannot convert.
    ids = torch.tensor([job["ids"]])
    given = (ids, torch.ones_like(ids))
    with torch.no_grad():
        model = ov.convert_model(Logits(), example_input=given)
    np.save(f"{job['out']}.stock.npy", ov.compile_model(model, "CPU", EXACT)([one.numpy() for one in given])[0][0])


if __name__ == "__main__":
    asked = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    {"logits": logits, "padded": padded, "product": product, "stock": stock}[asked["task"]](asked)
