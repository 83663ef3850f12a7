"""Contenders in processes of their own that run one at a time: A B C A B C.

A worker waits on a pipe, which costs nothing, and runs one burst of calls when it is told to. So thread pools that know
nothing of each other (OpenMP, TBB, a rival's own) never hold a processor at the same time, and each contender may
have its own Python, packages and environment variables. One JSON object a line in both directions; nothing but the
standard library is imported here, so that any rival's Python can.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import resource
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Any, ClassVar, NamedTuple

PAUSE_SECONDS = 0.02  # before each burst: until the threads of the last contender have stopped spinning
LEAST_BURSTS = 5
LONG_CALL_SECONDS = 0.005  # reading how long threads waited costs 0.1 ms, little against such a call


class WorkerError(RuntimeError):
    """The worker's own sentence about what it could not do."""


class Worker:
    """A child process that answers requests; see `serve`."""

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        self.name = name
        self._process = subprocess.Popen(
            list(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, **(environment or {})},
        )  # fmt: skip

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        """What the worker's handler `do` returned. Raises WorkerError where it raised or the process ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        line = ""
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps({"do": do, **request}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        if not line:
            raise WorkerError(f"{self.name} ended with exit code {self._process.wait()}")
        reply: dict[str, Any] = json.loads(line)
        if "refused" in reply:
            raise WorkerError(f"{self.name}: {reply['refused']}")
        return reply

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def close(self) -> None:
        """Ends the process."""
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


def serve(handlers: Mapping[str, Callable[..., dict[str, Any]]]) -> None:
    """The worker's side: answers requests until its input ends. What libraries print goes to stderr."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            reply = handlers[request.pop("do")](**request)
        except Exception as error:
            if os.environ.get("RIVALS_DEBUG"):
                traceback.print_exc()
            reply = {"refused": f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"}
        print(json.dumps(reply), file=replies, flush=True)


class Burst:
    """One burst after the other of a list of calls, gone round from where the last burst ended."""

    _slept_from: ClassVar[float | None] = None

    def __init__(self, calls: Sequence[Callable[[], Any]]) -> None:
        self._calls = calls
        self._turn = 0
        self._longest = 0.0

    @classmethod
    def forget_pause(cls) -> None:
        """What this process does up to its next burst is no idling."""
        cls._slept_from = None

    def call(self) -> Any:
        """The next of the calls."""
        self._turn += 1
        return self._calls[self._turn % len(self._calls)]()

    def run(self, seconds: float) -> dict[str, Any]:
        """Calls for `seconds`, one at least, after one that is not timed (left out where a call outlasts a burst).

        times: seconds a call. interrupted: calls that lost a hundredth of their time or more because a thread had to
        wait for a processor. idle: processor seconds this process spent since the last burst of any list.
        """
        idle = 0.0 if Burst._slept_from is None else time.process_time() - Burst._slept_from
        if self._longest < seconds:
            self.call()
        times: list[float] = []
        interrupted: list[int] = []
        end = time.perf_counter() + seconds
        switches, waited = _switches(), waited_seconds()
        while not times or time.perf_counter() < end:
            begin = time.perf_counter()
            self.call()
            times.append(time.perf_counter() - begin)
            if _switches() != switches or times[-1] > LONG_CALL_SECONDS:
                before, switches, waited = waited, _switches(), waited_seconds()
                if waited - before > 0.01 * times[-1]:
                    interrupted.append(len(times) - 1)
        self._longest = max(times)
        Burst._slept_from = time.process_time()
        return {"times": times, "interrupted": interrupted, "idle": idle}


def _switches() -> int:
    """How often a thread of this process lost its processor: a cheap sign that waited_seconds may have risen."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def waited_seconds() -> float:
    """Seconds that the threads of this process were ready to run and had no processor."""
    total = 0
    for file in Path("/proc/self/task").glob("*/schedstat"):
        with contextlib.suppress(OSError):  # a thread that has just ended
            total += int(file.read_text(encoding="ascii").split()[1])
    return total * 1e-9


class Samples:
    """Of one contender: seconds a call, and the median of each burst (None where every call was disturbed)."""

    def __init__(self) -> None:
        self.clean: list[float] = []
        self.disturbed: list[float] = []
        self.rounds: list[float | None] = []
        self.idle = 0.0

    def add(self, burst: dict[str, Any]) -> None:
        """What `Burst.run` returned."""
        interrupted = set(burst["interrupted"])
        clean = [t for i, t in enumerate(burst["times"]) if i not in interrupted]
        self.clean += clean
        self.disturbed += [t for i, t in enumerate(burst["times"]) if i in interrupted]
        self.rounds.append(median(clean) if clean else None)
        self.idle += burst["idle"]

    @property
    def trusted(self) -> bool:
        """Whether at least half of the calls ran undisturbed; then only those count."""
        return len(self.clean) >= max(3, len(self.disturbed))

    def summary(self) -> dict[str, Any]:
        """Median and quartiles, in seconds."""
        times = self.clean if self.trusted else self.clean + self.disturbed
        q1, middle, q3 = quartiles(times)
        return {
            "median": middle, "q1": q1, "q3": q3, "calls": len(times), "disturbed": not self.trusted,
            "interrupted": len(self.disturbed), "rounds": len(self.rounds), "idle_cpu_seconds": self.idle,
        }  # fmt: skip


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """(first quartile, median, third quartile)."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    q1, middle, q3 = quantiles(values, n=4, method="inclusive")
    return q1, middle, q3


def ratio(rival: Samples, ours: Samples) -> dict[str, float] | None:
    """Rival's time over ours, round by round, so that what slowed the machine in a round slowed both.

    None where fewer than LEAST_BURSTS rounds ran undisturbed, or most calls of either did not.
    """
    both = [a / b for a, b in zip(rival.rounds, ours.rounds, strict=True) if a is not None and b is not None]
    if len(both) < LEAST_BURSTS or not (rival.trusted and ours.trusted):
        return None
    q1, middle, q3 = quartiles(both)
    return {"median": middle, "q1": q1, "q3": q3, "rounds": len(both)}


class Turn(NamedTuple):
    """When contenders are measured: under which lock, and whether before everything else (which takes root's rights).

    realtime is for a machine that is never idle. Linux lets such threads run for 95 % of each second, so that pauses
    grow with the bursts; a single call of more than a second is stopped for a twentieth of its time, and counts as
    disturbed.
    """

    lock: Path | None = None
    realtime: bool = False


def alternate(
    bursts: Mapping[str, Callable[[], dict[str, Any]]],
    workers: Iterable[Worker],
    *,
    seconds: float,
    turn: Turn = Turn(),  # noqa: B008 (immutable)
) -> dict[str, Samples]:
    """Each contender's burst in turn, until every one had `seconds` on average, and LEAST_BURSTS rounds.

    On a busy machine up to twice as long, for LEAST_BURSTS rounds in which each contender ran undisturbed.
    """
    samples = {name: Samples() for name in bursts}
    with holding(turn.lock), first_in_line(workers, turn.realtime):
        begin = time.perf_counter()
        rounds, lasted = 0, 0.0
        while True:
            for name, burst in bursts.items():
                time.sleep(max(PAUSE_SECONDS, 0.08 * lasted if turn.realtime else 0.0))
                started = time.perf_counter()
                samples[name].add(burst())
                lasted = time.perf_counter() - started
            rounds += 1
            spent, budget = time.perf_counter() - begin, seconds * len(bursts)
            undisturbed = min(sum(r is not None for r in found.rounds) for found in samples.values())
            if spent > budget and (undisturbed >= LEAST_BURSTS or (rounds >= LEAST_BURSTS and spent > 2 * budget)):
                return samples


@contextlib.contextmanager
def holding(lock: Path | None) -> Iterator[None]:
    """An advisory lock (as of flock(1)) while measuring, so that benchmarks on one machine take turns."""
    if lock is None:
        yield
        return
    with lock.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)


@contextlib.contextmanager
def first_in_line(workers: Iterable[Worker], realtime: bool) -> Iterator[None]:
    """All threads of all workers before everything else that wants a processor (SCHED_FIFO); afterwards as before."""
    folders = [Path(f"/proc/{worker.pid}/task") for worker in workers] if realtime else []

    def give(policy: int, priority: int) -> None:
        for folder in folders:
            for thread in folder.iterdir():
                with contextlib.suppress(ProcessLookupError):  # it has just ended
                    os.sched_setscheduler(int(thread.name), policy, os.sched_param(priority))

    give(os.SCHED_FIFO, 1)
    try:
        yield
    finally:
        give(os.SCHED_OTHER, 0)


def machine() -> str:
    """The processor in words: name, family, model, number of processors."""
    fields: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip(), value.strip())
    name, family, model = (fields.get(key, "?") for key in ("model name", "cpu family", "model"))
    return f"{name} (family {family}, model {model}), {len(os.sched_getaffinity(0))} processors"
