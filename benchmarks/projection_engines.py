"""The contenders of projection_rivals.py, as a worker process: `python projection_engines.py ENGINE`.

An engine makes, for a kind of values and a case, a list of calls on distinct weights, and reads a call's result. Each
imports its library only when it is chosen, so that this file runs in any rival's Python.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from alternating import Burst, serve
from projection_problem import Array, Case, Problem, problem


class Prepared(NamedTuple):
    """calls: the product on one weight each. read: what a call returned, as float32 [M, ...]. nbytes: of one weight."""

    calls: list[Callable[[], Any]]
    read: Callable[[Any], Array]
    nbytes: int
    x_kind: str


class Torch:
    """Dense F.linear with the folded bias, torch's CSR product, and grad_y W.

    "native": without oneDNN, by ATen's own kernels, of which that for one row of bf16 can be the faster one.
    """

    def __init__(self, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        self.torch = torch
        self.dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

    def about(self) -> dict[str, str]:
        capability = self.torch.backends.cpu.get_cpu_capability()
        return {"torch": self.torch.__version__, "torch's instruction set": str(capability)}

    def prepare(self, kind: str, given: Problem) -> Prepared:
        linear = self.torch.nn.functional.linear
        values, _, layout = kind.partition(" ")
        dtype = self.dtypes[values]
        x, bias = self.tensor(given.given, dtype), self.tensor(given.bias, dtype)
        weight = self.tensor(given.weight, dtype)

        def read(y: Any) -> Array:
            found: Array = y.float().numpy()
            return found

        def without_onednn(w: Any) -> Any:
            self.torch._C._set_mkldnn_enabled(False)
            y = linear(x, w, bias)
            self.torch._C._set_mkldnn_enabled(True)
            return y

        def product(w: Any) -> Callable[[], Any]:
            if given.case.op == "grad_x":
                return lambda: x @ w
            if layout == "csr":
                return lambda: linear(x, w) + bias
            if layout == "native":
                return lambda: without_onednn(w)
            return lambda: linear(x, w, bias)

        if layout == "csr":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # "beta state"
                wide = weight.to_sparse_csr()
                indices = (wide.crow_indices().int(), wide.col_indices().int())  # 32 bits: faster than its default 64
                weight = self.torch.sparse_csr_tensor(*indices, wide.values(), wide.shape)
            nbytes = sum(part.nbytes for part in (*indices, wide.values()))
        else:
            nbytes = weight.nbytes
        return Prepared([product(weight.clone()) for _ in range(given.case.copies(nbytes))], read, nbytes, values)

    def tensor(self, values: Array, dtype: Any) -> Any:
        return self.torch.from_numpy(np.ascontiguousarray(values)).to(dtype)


class Ours(Torch):
    """restorelcc's ops on torch tensors; int8 values have bf16 x."""

    def about(self) -> dict[str, str]:
        import restorelcc

        info = restorelcc.build_info()
        return {"restorelcc": info["versions"]["restorelcc"], "our instruction set": info["isa"]}

    def prepare(self, kind: str, given: Problem) -> Prepared:
        import restorelcc
        from restorelcc.ops import compensation_rows, sparse_linear_native

        case, values = given.case, kind.split()[0]
        x_kind = "bf16" if values == "int8" else values
        dtype = self.dtypes[x_kind]
        x, bias = self.tensor(given.given, dtype), self.tensor(given.bias, dtype)
        dense = self.tensor(given.weight, self.torch.float32 if values == "int8" else dtype)
        first = restorelcc.pack(dense, values="int8" if values == "int8" else None)
        rows = index = None
        if case.groups:
            rows, index, bias = compensation_rows(self.tensor(given.comp, self.torch.float32), first), None, None
            index = self.torch.from_numpy(given.index)

        def product(w: Any) -> Callable[[], Any]:
            if case.op == "grad_x":
                grad_x = self.torch.ops.restorelcc.sparse_linear_grad_x.default
                return lambda: grad_x(x, *w.tensors, True)
            if case.groups:
                return lambda: sparse_linear_native(x, w.tensors, rows, index, None, trusted=True)
            return lambda: restorelcc.ops.sparse_linear(x, w, bias=bias)

        weights = [first]
        while len(weights) < case.copies(first.nbytes):
            weights.append(
                restorelcc.PackedWeight.from_tensors({name: t.clone() for name, t in first.to_tensors().items()})
            )

        def read(y: Any) -> Array:
            found: Array = y.float().numpy()
            return found

        return Prepared([product(w) for w in weights], read, first.nbytes, x_kind)


class NumPy:
    """Dense x W + bias by numpy's BLAS (OpenBLAS in PyPI's wheels), W laid out [K, N], the faster way round."""

    def __init__(self, threads: int) -> None:
        self.threads = threads  # OpenBLAS reads OMP_NUM_THREADS

    def about(self) -> dict[str, str]:
        blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
        return {"numpy": np.__version__, "numpy's BLAS": f"{blas['name']} {blas['version']}"}

    def prepare(self, kind: str, given: Problem) -> Prepared:
        weight = np.ascontiguousarray(given.weight.T, dtype=np.float32)
        x, bias = np.ascontiguousarray(given.given, np.float32), given.bias.astype(np.float32)

        def product(w: Any) -> Callable[[], Any]:
            return lambda: x @ w + bias

        copies = given.case.copies(weight.nbytes)
        return Prepared([product(weight.copy()) for _ in range(copies)], lambda y: y, weight.nbytes, kind)


class OpenVINO:
    """A compiled MatMul with constant weights and the bias; x and y are float32.

    int8: per output row, weights only, decompressed inside the product, as NNCF's INT8_SYM does; "int8 dynamic": x is
    rounded to 8 bits in groups as well.
    """

    def __init__(self, threads: int) -> None:
        import openvino

        self.openvino, self.threads = openvino, threads
        self.core = openvino.Core()

    def about(self) -> dict[str, str]:
        capabilities = self.core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        return {"openvino": self.openvino.get_version(), "openvino's capabilities": ", ".join(capabilities)}

    def prepare(self, kind: str, given: Problem) -> Prepared:
        values = kind.split()[0]
        config = {
            "INFERENCE_PRECISION_HINT": "bf16" if values == "bf16" else "f32",
            "INFERENCE_NUM_THREADS": str(self.threads), "NUM_STREAMS": "1", "PERFORMANCE_HINT": "LATENCY",
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": "128" if kind.endswith("dynamic") else "0",
        }  # fmt: skip
        if values == "bf16":
            del config["DYNAMIC_QUANTIZATION_GROUP_SIZE"]
        nbytes = given.weight.size * {"fp32": 4, "bf16": 2, "int8": 1}[values]
        requests = []
        for i in range(given.case.copies(nbytes)):
            compiled = self.core.compile_model(self.model(values, given.given, *given.turned(i)), "CPU", config)
            request = compiled.create_infer_request()
            request.set_input_tensor(self.openvino.Tensor(np.ascontiguousarray(given.given)))
            requests.append(request)

        def product(i: int) -> Callable[[], Any]:
            infer = requests[i].infer

            def run() -> Any:
                infer()
                return i

            return run

        def read(i: int) -> Array:
            return np.roll(np.array(requests[i].get_output_tensor().data, dtype=np.float32), -i, axis=1)

        x_kind = "bf16" if values == "bf16" else "fp32"
        return Prepared([product(i) for i in range(len(requests))], read, nbytes, x_kind)

    def model(self, values: str, given: Array, dense: Array, bias: Array) -> Any:
        from openvino import Type
        from openvino import opset13 as ops

        x = ops.parameter(list(given.shape), Type.f32)
        if values == "int8":
            scale = np.maximum(np.abs(dense).max(1, keepdims=True), 1e-30) / 127
            whole = np.clip(np.round(dense / scale), -127, 127).astype(np.int8)
            weight = ops.multiply(ops.convert(ops.constant(whole), Type.f32), ops.constant(scale.astype(np.float32)))
        else:
            weight = ops.constant(dense)
        y = ops.matmul(x, weight, False, True)
        return self.openvino.Model([ops.add(y, ops.constant(bias[None, :]))], [x], "projection")


class DeepSparse:
    """An ONNX Gemm (transB) of float32 weights with their zeros."""

    def __init__(self, threads: int) -> None:
        import deepsparse

        self.deepsparse, self.threads = deepsparse, threads

    def about(self) -> dict[str, str]:
        return {"deepsparse": self.deepsparse.__version__}

    def prepare(self, kind: str, given: Problem) -> Prepared:
        nbytes = 4 * int((given.weight != 0).sum())  # it keeps the survivors
        engines = []
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "projection.onnx"
            for i in range(given.case.copies(nbytes)):
                file.write_bytes(self.model(given.case, *given.turned(i)))
                engines.append(self.deepsparse.Engine(str(file), batch_size=given.case.rows, num_cores=self.threads))
        x = [np.ascontiguousarray(given.given)]

        def product(i: int) -> Callable[[], Any]:
            run = engines[i].run
            return lambda: (i, run(x, val_inp=False)[0])

        def read(y: Any) -> Array:
            return np.roll(np.asarray(y[1], dtype=np.float32), -y[0], axis=1)

        return Prepared([product(i) for i in range(len(engines))], read, nbytes, "fp32")

    def model(self, case: Case, weight: Array, bias: Array) -> bytes:
        from onnx import TensorProto, helper, numpy_helper

        node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1)
        graph = helper.make_graph(
            [node], "projection",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [case.rows, case.inputs])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [case.rows, case.outputs])],
            [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")],
        )  # fmt: skip
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
        model.ir_version = 8
        found: bytes = model.SerializeToString()
        return found


ENGINES: dict[str, Any] = {"ours": Ours, "torch": Torch, "numpy": NumPy, "openvino": OpenVINO, "deepsparse": DeepSparse}


class Contenders:
    """What a worker does when it is told to."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._engine: Any = None
        self._bursts: dict[str, Burst] = {}

    def handlers(self) -> dict[str, Callable[..., dict[str, Any]]]:
        return {"start": self.start, "prepare": self.prepare, "burst": self.burst, "drop": self.drop}

    def start(self, threads: int) -> dict[str, str]:
        """Imports the library; {what: version}."""
        self._engine = ENGINES[self._name](threads)
        about: dict[str, str] = self._engine.about()
        return about

    def prepare(self, kind: str, key: str, case: dict[str, Any]) -> dict[str, Any]:
        """Makes the calls of one kind, to be known as `key`, and checks two of them against float64."""
        begin = time.perf_counter()
        given = problem(Case(**case))
        prepared = self._engine.prepare(kind, given)
        burst = Burst(prepared.calls)
        report: dict[str, Any] = {}
        for _ in range(2):
            report = given.check(prepared.read(burst.call()), kind, prepared.x_kind)
        self._bursts[key] = burst
        return {
            **report, "weights": len(prepared.calls), "weight_bytes": prepared.nbytes,
            "prepare_seconds": time.perf_counter() - begin,
        }  # fmt: skip

    def burst(self, key: str, seconds: float) -> dict[str, Any]:
        return self._bursts[key].run(seconds)

    def drop(self) -> dict[str, Any]:
        self._bursts.clear()
        Burst.forget_pause()  # the next case is prepared in it
        return {}


def main() -> None:
    os.environ.setdefault("NM_DISABLE_ANALYTICS", "1")  # of DeepSparse
    serve(Contenders(sys.argv[1]).handlers())


if __name__ == "__main__":
    main()
