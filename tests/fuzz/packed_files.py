"""Garbled packed models on disk through `restorelcc.load`: thousands of directories, each with a lie in it.

    python tests/fuzz/packed_files.py --mutations 100000 --workers 2

Every mutation has a generator of its own, seeded with its number, so one can be repeated alone. They run in worker
processes: one that crashes, hangs or grows is told from its neighbours, and the run goes on.
"""

from __future__ import annotations

import argparse
import collections
import faulthandler
import os
import re
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO

from model_corpus import Directory, build_corpus, from_text, to_text
from mutate_directory import mutate

HANG_SECONDS = 10.0  # of the worker's own CPU time: a busy machine is no hang
_WAIT_SECONDS = 60.0  # of the clock: it waits for something that does not come
_START_SECONDS = 300.0  # of a worker: imports and the corpus, on a busy machine
_RESTART_EVERY = 20_000  # mutations: what one leaves behind does not add up
_MOST_KINDS = 20  # of failures: then something is wrong with more than one input

Failure = tuple[int, str]  # number, what happened


def main() -> int:
    """The command line; 0 when nothing was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutations", type=int, default=1000, help="how many (1000)")
    parser.add_argument("--seed", type=int, default=1, help="of the mutations (1)")
    parser.add_argument("--from", type=int, default=0, dest="first", help="number of the first (0)")
    parser.add_argument("--workers", type=int, default=1, help="processes (1)")
    parser.add_argument("--save", type=Path, default=Path("."), help="folder for the inputs that fail (.)")
    parser.add_argument("--replay", type=Path, help="run one saved input and exit")
    parser.add_argument("--worker", nargs=2, type=int, metavar=("FIRST", "END"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        return _work(options.seed, *options.worker)
    if options.replay is not None:
        return _replay(options.replay)
    return _Run(options.seed, options.first, options.first + options.mutations, options.workers, options.save).run()


# ---- a worker: numbers on its standard output, "17 begin" before and "17 refused" after ----


def _work(seed: int, first: int, end: int) -> int:
    from check_directory import Checker

    faulthandler.enable()
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever a library prints is no answer
    corpus = build_corpus()
    with tempfile.TemporaryDirectory(dir=_fast_folder()) as folder:
        checker = Checker(Path(folder))
        checker.warm_up(corpus)
        for number in range(first, end):
            print(number, "begin", file=out)
            verdict, why = checker.check(mutate(corpus, seed, number)[1])
            print(number, verdict, ascii(why), file=out)
            if "memory grew" in why:
                break  # its peak says nothing about the next one
    return 0


def _fast_folder() -> str | None:
    """A folder in memory where there is one and no other was asked for."""
    shared = Path("/dev/shm")
    return None if "TMPDIR" in os.environ or not os.access(shared, os.W_OK) else str(shared)


def _replay(file: Path) -> int:
    from check_directory import Checker

    faulthandler.enable()
    with tempfile.TemporaryDirectory(dir=_fast_folder()) as folder:
        checker = Checker(Path(folder))
        checker.warm_up({"llama_bf16": build_corpus()["llama_bf16"]})
        verdict, why = checker.check(from_text(file.read_text()))
    print(f"{verdict} {why}")
    return int(verdict == "failed")


# ---- the parent: gives out numbers, listens, and starts a new worker where one ended ----


class _Worker:
    """A process that works through numbers [first, end)."""

    def __init__(self, seed: int, first: int, end: int) -> None:
        self.next, self.end, self.busy = first, end, False
        self.errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        command = [sys.executable, __file__, "--seed", str(seed), "--worker", str(first), str(end)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self.errors, env=environment
        )
        self.rest = b""
        self.hear()

    @property
    def output(self) -> IO[bytes]:
        assert self.process.stdout is not None
        return self.process.stdout

    def hear(self) -> None:
        """It has said something, or was not listened to: its time begins again."""
        self.heard, self.used = time.monotonic(), self._cpu_seconds()

    def overdue(self) -> bool:
        waited = time.monotonic() - self.heard
        if not self.busy:
            return waited > _START_SECONDS
        return waited > _WAIT_SECONDS or (waited > HANG_SECONDS and self._cpu_seconds() - self.used > HANG_SECONDS)

    def _cpu_seconds(self) -> float:
        """Of the process so far; the clock where the system does not tell."""
        try:
            fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return time.monotonic()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def abort(self) -> None:
        """Ends it, with its last words where it can still say them."""
        self.process.send_signal(signal.SIGABRT)
        try:
            self.process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self.process.kill()

    def last_words(self) -> str:
        """Of its standard error: the place where it crashed."""
        self.errors.seek(0)
        lines = self.errors.read().decode(errors="replace").splitlines()
        wanted = [line.strip() for line in lines if line.startswith(("Fatal", "  File", "Error", "Runtime"))]
        return " | ".join(wanted[:4] or lines[-3:])[:600]


class _Run:
    def __init__(self, seed: int, first: int, end: int, workers: int, save: Path) -> None:
        self.seed, self.first, self.end, self.save = seed, first, end, save
        self.counts: collections.Counter[str] = collections.Counter()
        self.kinds: dict[str, list[Failure]] = {}
        self.selector = selectors.DefaultSelector()
        share = min(-(-(end - first) // workers), _RESTART_EVERY) if end > first else 1
        self.waiting = [(begin, min(begin + share, end)) for begin in range(first, end, share)][::-1]
        self.most_workers = workers
        self.corpus: dict[str, Directory] = {}
        self.running = 0
        self.broken = ""

    def run(self) -> int:
        began = said = time.monotonic()
        while (self.waiting or self.running) and len(self.kinds) < _MOST_KINDS and not self.broken:
            while self.waiting and self.running < self.most_workers:
                self._start(*self.waiting.pop())
            for key, _ in self.selector.select(timeout=1.0):
                self._listen(key.data)
            for key in list(self.selector.get_map().values()):
                if key.data.overdue():
                    key.data.abort()
                    self._ended(key.data, f"hangs: {HANG_SECONDS:g} seconds of work, or {_WAIT_SECONDS:g} of waiting")
            if time.monotonic() - said > 60:
                said = time.monotonic()
                print(f"packed_files: {self.counts.total()} in {said - began:.0f} s", file=sys.stderr, flush=True)
        for key in list(self.selector.get_map().values()):
            key.data.process.kill()
            key.data.process.wait()
        return self._report(time.monotonic() - began)

    def _start(self, first: int, end: int) -> None:
        worker = _Worker(self.seed, first, end)
        self.selector.register(worker.output, selectors.EVENT_READ, worker)
        self.running += 1

    def _listen(self, worker: _Worker) -> None:
        data = os.read(worker.output.fileno(), 1 << 16)
        worker.hear()
        *lines, worker.rest = (worker.rest + data).split(b"\n")
        for line in lines:
            number, verdict, *why = line.decode().split(" ", 2)
            worker.next, worker.busy = int(number), verdict == "begin"
            if verdict != "begin":
                self.counts[verdict] += 1
                worker.next += 1
                if verdict == "failed":
                    self._failed(int(number), why[0])
        if not data:
            status = worker.process.wait()
            self._ended(worker, f"ends the process with status {status}" if worker.busy or status else "")

    def _ended(self, worker: _Worker, failure: str) -> None:
        """Forgets the worker; what it left undone goes to another."""
        self.selector.unregister(worker.output)
        self.running -= 1
        worker.process.wait()
        if failure and not worker.busy:
            self.broken = f"a worker {failure} before its first mutation: {worker.last_words()}"
            return
        if failure:
            self.counts["failed"] += 1
            self._failed(worker.next, f"{failure}; {worker.last_words()}")
            worker.next += 1
        if worker.next < worker.end:
            self.waiting.append((worker.next, worker.end))

    def _failed(self, number: int, why: str) -> None:
        """The first of each kind is saved; a kind is what stays of the sentence without its numbers and names."""
        kind = re.sub(r"(: ['\"].*)|\d{2,}|0x\w+", "", why.split(" | ")[0])[:160]
        self.kinds.setdefault(kind, []).append((number, why))
        if len(self.kinds[kind]) > 1:
            return
        self.corpus = self.corpus or build_corpus()
        done, directory = mutate(self.corpus, self.seed, number)
        file = self.save / f"packed_files_failure_{self.seed}_{number}.json"
        file.write_text(to_text(directory))
        print(f"packed_files: FAILED ({done}): {why}\n  --replay {file}, or --seed {self.seed} --from {number} "
              "--mutations 1", file=sys.stderr, flush=True)  # fmt: skip
        for key in self.selector.get_map().values():  # they were not listened to for some seconds
            key.data.hear()

    def _report(self, seconds: float) -> int:
        counts = ", ".join(f"{self.counts[name]:,} {name}" for name in ("accepted", "refused", "unusable", "failed"))
        print(f"packed_files: {self.counts.total():,} mutations in {seconds:.0f} s: {counts}")
        for kind, found in sorted(self.kinds.items(), key=lambda item: -len(item[1])):
            print(f"  {len(found)} x {kind}")
        if self.broken:
            print(f"packed_files: {self.broken}", file=sys.stderr)
        total = self.counts.total()
        # A mutator that breaks everything would test the refusals alone.
        rare = min(self.counts["accepted"], self.counts["refused"]) * 20 < total
        if rare and total >= 1000:
            print("packed_files: FAILED: less than a twentieth accepted, or refused", file=sys.stderr)
        return int(bool(self.kinds or self.broken or (rare and total >= 1000)))


if __name__ == "__main__":
    sys.exit(main())
