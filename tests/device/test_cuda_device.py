"""What of gpu.py only a GPU runs, with torch.cuda played by a few lines: asking, capturing, flushing, reporting."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "benchmarks"))

import gpu  # noqa: E402
from on_device import build, device  # noqa: E402
from on_device.abi import Library  # noqa: E402
from on_device.device import CudaDevice, NoDeviceError, Queue  # noqa: E402
from on_device.linear_cases import problems  # noqa: E402
from on_device.problem import check  # noqa: E402
from on_device.verdict import Verdict  # noqa: E402

EMULATOR = Path(
    os.environ.get("RLCC_SIMT_LIBRARY", ROOT / "build" / "simt" / "tests" / "device" / "librlcc_cuda_simt.so")
)


class Log:
    """What happened, in order; and the calls that a graph holds."""

    events: ClassVar[list[str]] = []
    capturing: ClassVar[list[Callable[[], Any]] | None] = None


class Event:
    def __init__(self, *, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        Log.events.append("record")

    def synchronize(self) -> None:
        Log.events.append("wait for event")

    def elapsed_time(self, end: Event) -> float:
        assert end is not self
        return 2.5  # ms


class Graph:
    def capture_begin(self, *, capture_error_mode: str) -> None:
        assert capture_error_mode == "thread_local"
        self.held: list[Callable[[], Any]] = []
        Log.capturing = self.held

    def capture_end(self) -> None:
        Log.capturing = None

    def replay(self) -> None:
        for call in self.held:
            call()


class Stream:
    cuda_stream = 0

    def __init__(self, place: Any = None) -> None:
        pass

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """torch as device.py sees it; its device is the CPU. Properties are of no card."""
    Log.events = []
    properties = SimpleNamespace(
        name="played", major=9, minor=0, multi_processor_count=4, total_memory=1 << 30, L2_cache_size=1 << 20
    )

    def summed(*_: Any, **__: Any) -> None:
        Log.events.append("flush")

    cuda = SimpleNamespace(
        is_available=lambda: True, current_device=lambda: 0, get_device_properties=lambda _: properties, Event=Event,
        CUDAGraph=Graph, Stream=Stream, stream=lambda stream: stream, current_stream=lambda _: Stream(),
        synchronize=lambda _: Log.events.append("wait"),
    )  # fmt: skip
    fake = SimpleNamespace(
        cuda=cuda, device=lambda *_: torch.device("cpu"), zeros=lambda *_, **__: torch.zeros(()), sum=summed,
        float32=torch.float32, float64=torch.float64, full=torch.full, version=SimpleNamespace(cuda="13.0"),
        properties=properties,
    )  # fmt: skip
    monkeypatch.setattr(device, "torch", fake)
    return fake


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    """The emulator; while a graph is captured its calls are held, not made."""
    if not EMULATOR.exists() and "RLCC_CUDA_LANE" not in os.environ:
        pytest.skip(f"the emulator's library is not built ({EMULATOR.name}: make test-cuda, or RLCC_SIMT_LIBRARY)")
    made = Library.call

    def call(self: Library, name: str, *arguments: Any) -> None:
        if Log.capturing is not None:
            Log.capturing.append(lambda: made(self, name, *arguments))
        else:
            made(self, name, *arguments)

    monkeypatch.setattr(Library, "call", call)
    return Library(EMULATOR)


def test_times_lie_between_events_behind_a_flush(played: SimpleNamespace) -> None:
    found = CudaDevice()
    assert found.architecture == "90"
    assert found.stream == 0
    assert found.describe()["compute_capability"] == "9.0"
    assert found.seconds(lambda: Log.events.append("call"), cold=True) == 0.0025
    assert Log.events == ["flush", "record", "call", "record", "wait for event"]
    Log.events.clear()
    found.seconds(lambda: None, cold=False)
    assert "flush" not in Log.events
    assert CudaDevice(graphs=False).captured(lambda: None) is None


def test_old_and_absent_devices(played: SimpleNamespace) -> None:
    played.properties.major = 7
    with pytest.raises(NoDeviceError, match=r"played has compute capability 7\.0, and the kernels need 8\.0"):
        CudaDevice()
    played.cuda.is_available = lambda: False
    with pytest.raises(NoDeviceError, match="finds no CUDA device"):
        CudaDevice()


def test_a_graph_that_forgets_its_work_is_found(
    played: SimpleNamespace, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue, verdict = Queue(library, CudaDevice()), Verdict()
    problem = next(p for p in (make() for make in problems(library, "sparse_linear", True)) if "M=17" in p.case)
    check(problem, queue, verdict)
    assert verdict.passed
    monkeypatch.setattr(Graph, "replay", lambda self: None)
    check(problem, queue, verdict)
    assert verdict.problems[0][2] == "y: a captured graph gives other bits"


def test_the_command_on_a_played_device(
    played: SimpleNamespace, library: Library, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Built for its architecture, checked with graphs, timed."""
    built: list[str] = []

    def pretend(folder: Path, architecture: str) -> build.Libraries:
        built.append(architecture)
        return build.Libraries(EMULATOR, EMULATOR)

    monkeypatch.setattr(build, "build", pretend)
    monkeypatch.setattr("on_device.times.LAYERS", (("SmolLM2-135M", "kv_proj"),))
    monkeypatch.setattr("on_device.times.contests", lambda queue, quick: iter(()))
    arguments = ["--quick", "--only", "instructions", "--only", "ops", "--only", "times", "--op", "moments"]
    monkeypatch.setattr(
        "gpu.measured_roof", lambda *_, **__: SimpleNamespace(roof=SimpleNamespace(name=""), details={})
    )
    assert gpu.main([*arguments, "--seconds", "0"]) == 0
    assert built == ["90"]
    printed = capsys.readouterr().out
    assert '"name": "played"' in printed
    assert "head_moments: 12 of 12 checks passed" in printed
