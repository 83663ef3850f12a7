"""The seam between a GPU and the emulator: memory, streams, clocks. Everything else of gpu.py is the same for both."""

from __future__ import annotations

import ctypes
import platform
import shutil
import subprocess
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from on_device.abi import Library

NVIDIA_SMI_FIELDS = (
    "name", "driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem", "power.limit",
    "temperature.gpu", "clocks_throttle_reasons.active", "memory.total", "ecc.mode.current", "persistence_mode",
)  # fmt: skip


class NoDeviceError(RuntimeError):
    """There is no GPU to run on; the message is one sentence that says so."""


class DeviceLostError(RuntimeError):
    """A kernel broke the device's context (an illegal access, say): nothing of this process runs on it any more."""


class Device(ABC):
    """Where kernels run. place: of torch's tensors."""

    place: torch.device
    emulated: bool

    @property
    @abstractmethod
    def stream(self) -> int | None:
        """A cudaStream_t; None where there are none."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What the JSON says of it: name, driver, clocks, sizes."""

    @abstractmethod
    def wait(self) -> None:
        """Until everything queued is done; raises what went wrong on the way."""

    @abstractmethod
    def seconds(self, call: Callable[[], Any], *, cold: bool) -> float:
        """What one call takes on the device, between two events; cold: with nothing of it in the second-level cache."""

    @abstractmethod
    def captured(self, call: Callable[[], Any]) -> Callable[[], Any] | None:
        """A graph that does what the call did when it was captured; None where there are no graphs."""


class CudaDevice(Device):
    """The current CUDA device of torch."""

    emulated = False

    def __init__(self, *, graphs: bool = True) -> None:
        if not torch.cuda.is_available():
            raise NoDeviceError(why_no_device())
        self.place = torch.device("cuda", torch.cuda.current_device())
        self.properties = torch.cuda.get_device_properties(self.place)
        if self.properties.major < 8:
            raise NoDeviceError(
                f"{self.properties.name} has compute capability {self.properties.major}.{self.properties.minor}, "
                "and the kernels need 8.0 or later."
            )
        # Four times the cache. It is read, not written: lines that wait to be written back would be while the clock
        # runs. Reading it takes longer than queueing a call, so the device never waits for the host between the two
        # events.
        flushing = max(4 * self.properties.L2_cache_size, 256 << 20)
        self._flushing = torch.zeros(flushing // 4, dtype=torch.float32, device=self.place)
        self._flushed = torch.zeros((), dtype=torch.float32, device=self.place)
        self._capturing = torch.cuda.Stream(self.place) if graphs else None  # type: ignore[no-untyped-call]

    @property
    def stream(self) -> int | None:
        """Torch's current one, which a capture replaces."""
        return int(torch.cuda.current_stream(self.place).cuda_stream)

    @property
    def architecture(self) -> str:
        """As CMake takes it: "90"."""
        return f"{self.properties.major}{self.properties.minor}"

    def describe(self) -> dict[str, Any]:
        p = self.properties
        return {
            "name": p.name,
            "compute_capability": f"{p.major}.{p.minor}",
            "multiprocessors": p.multi_processor_count,
            "memory_bytes": p.total_memory,
            "l2_bytes": p.L2_cache_size,
            "emulated": False,
            "nvidia_smi": ask_nvidia_smi(self.place.index or 0),
        }

    def wait(self) -> None:
        torch.cuda.synchronize(self.place)

    def seconds(self, call: Callable[[], Any], *, cold: bool) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        if cold:
            torch.sum(self._flushing, dim=0, out=self._flushed)
        begin.record()
        call()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) * 1e-3

    def captured(self, call: Callable[[], Any]) -> Callable[[], Any] | None:
        if self._capturing is None:
            return None
        # Not torch.cuda.graph(), which collects garbage and empties caches each time.
        graph = torch.cuda.CUDAGraph()
        with warnings.catch_warnings(), torch.cuda.stream(self._capturing):
            warnings.simplefilter("ignore")  # that a graph is empty, where there is nothing to do
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                call()
            finally:
                graph.capture_end()
        return graph.replay


class EmulatedDevice(Device):
    """The emulator of tests/simt behind the same C ABI: host memory is its memory, and its times mean nothing."""

    emulated = True

    def __init__(self, library: Path, *, order: int = 3, seed: int = 1, multiprocessors: int = 4) -> None:
        self.place = torch.device("cpu")
        self._functions = ctypes.CDLL(str(library))
        self.emulate(order=order, seed=seed, multiprocessors=multiprocessors)

    @property
    def stream(self) -> int | None:
        return None

    def emulate(self, *, order: int = 3, seed: int = 1, eager_copies: bool = False, multiprocessors: int = 4) -> None:
        """How the next kernels run: which warp goes on, when cp.async arrives, how many multiprocessors plans see."""
        self._functions.rlcc_test_emulate(order, ctypes.c_ulonglong(seed), int(eager_copies), multiprocessors)

    def statistics(self) -> dict[str, int]:
        """What ran since the last call."""
        names = ("launches", "copies", "mma", "mma_sp", "ldmatrix")
        taken = (ctypes.c_ulonglong * len(names))()
        self._functions.rlcc_test_take_statistics(taken)
        return dict(zip(names, taken, strict=True))

    def describe(self) -> dict[str, Any]:
        return {"name": "emulator (times mean nothing)", "processor": platform.machine(), "emulated": True}

    def wait(self) -> None:
        pass

    def seconds(self, call: Callable[[], Any], *, cold: bool) -> float:
        begin = time.perf_counter()
        call()
        return time.perf_counter() - begin

    def captured(self, call: Callable[[], Any]) -> Callable[[], Any] | None:
        return None


def why_no_device() -> str:
    """One sentence."""
    if torch.version.cuda is None:
        return (
            f"There is no GPU to run on: torch {torch.__version__} was built without CUDA; install a CUDA wheel of "
            "torch on a machine with an NVIDIA GPU, or pass --emulator to try this script out."
        )
    return (
        "There is no GPU to run on: torch finds no CUDA device (is the driver installed, and recent enough for CUDA "
        f"{torch.version.cuda}? nvidia-smi says); pass --emulator to try this script out."
    )


def ask_nvidia_smi(index: int) -> dict[str, str]:
    """Clocks and the like at this moment; empty where nvidia-smi is absent or silent."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return {}
    asked = subprocess.run(
        [program, f"--id={index}", f"--query-gpu={','.join(NVIDIA_SMI_FIELDS)}", "--format=csv,noheader"],
        capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip
    answers = [answer.strip() for answer in asked.stdout.strip().split(",")]
    return dict(zip(NVIDIA_SMI_FIELDS, answers, strict=False)) if asked.returncode == 0 else {}


class Queue:
    """Ops of the C ABI on a device, with scratch of the device's memory."""

    def __init__(self, library: Library, device: Device) -> None:
        self.library, self.device = library, device

    def prepared(self, op: str, *structs: ctypes.Structure) -> Callable[[], None]:
        """A call of rlcc_cuda_OP with its workspace already there. The structs must point into the device's memory."""
        addresses = [ctypes.byref(struct) for struct in structs]
        needed = ctypes.c_size_t(0)
        self.library.call(f"rlcc_cuda_{op}_workspace", *addresses, ctypes.byref(needed))
        # NaN, so that scratch that is read before it is written shows.
        scratch = torch.full((needed.value // 8 + 1,), float("nan"), dtype=torch.float64, device=self.device.place)

        def call() -> None:
            self.library.call(
                f"rlcc_cuda_{op}", *addresses, scratch.data_ptr(), needed.value, self.device.stream
            )  # fmt: skip

        return call


def on(device: Device, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies in the device's memory, laid out alike."""
    return {name: tensor.to(device.place, copy=True) for name, tensor in tensors.items()}
