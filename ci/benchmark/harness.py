"""Child processes that hold a model each, and rounds in which every case runs once."""

from __future__ import annotations

import gc
import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]

#: case -> round -> seconds
Seconds = dict[str, dict[int, float]]


@dataclass(frozen=True)
class Case:
    """One measured thing: the process that runs it, and whether it is too slow for every round."""

    key: str
    worker: str
    slow: bool = False


@dataclass(frozen=True)
class Memory:
    """Peak resident memory of a process in bytes; None where the system does not tell.

    Attributes:
        whole: since it began, loading included. Files that are mapped count as far as they were read.
        used: since the model was loaded.
    """

    whole: int | None
    used: int | None


@dataclass
class Worker:
    """A process that holds one library and one model.

    Attributes:
        name: how cases call it.
        build: runs in the process: loads the model and returns what each case calls. A function of a module.
        args: for ``build``.
        missing: which package it lacks.
    """

    name: str
    build: Callable[..., dict[str, Callable[[], Any]]]
    args: tuple = ()
    missing: str | None = None
    _pipe: Any = field(default=None, repr=False)
    _process: Any = field(default=None, repr=False)

    def start(self) -> None:
        """Starts it and waits until the model is loaded, so that two loads do not fight for memory."""
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self.build, self.args), daemon=True)
        self._process.start()
        theirs.close()
        answer = self._ask()
        if isinstance(answer, str):
            sys.exit(f"{self.name} could not be started:\n{answer}")
        self.missing = answer.package if answer else None

    def run(self, case: str) -> float:
        """Seconds that a case takes."""
        self._pipe.send(case)
        answer = self._ask()
        if isinstance(answer, str):
            sys.exit(f"{self.name} failed in {case!r}:\n{answer}")
        return answer

    def stop(self) -> Memory | None:
        """Ends it; its peak memory."""
        if self._process is None:
            return None
        memory = None
        if self.missing is None:
            self._pipe.send(None)
            memory = self._ask()
        self._process.join()
        return memory

    def _ask(self) -> Any:
        try:
            return self._pipe.recv()
        except EOFError:
            self._process.join()
            return f"the process ended with exit code {self._process.exitcode}"


@dataclass(frozen=True)
class _Missing:
    """What a process answers where a package is not installed."""

    package: str


def _serve(pipe, build: Callable, args: tuple) -> None:
    try:
        cases = build(*args)
    except ImportError as error:
        pipe.send(_Missing(error.name or str(error)))
        return
    except Exception:
        pipe.send(traceback.format_exc())
        return
    whole = _peak()
    _reset_peak()
    pipe.send(None)
    while (case := pipe.recv()) is not None:
        gc.collect()
        start = time.perf_counter()
        try:
            cases[case]()
        except Exception:
            pipe.send(traceback.format_exc())
        else:
            pipe.send(time.perf_counter() - start)
    used = _peak()
    pipe.send(Memory(max(whole, used) if whole and used else None, used))


def _peak() -> int | None:
    """VmHWM of this process, in bytes."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)


def _reset_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass  # then the peak after loading includes loading


def measure(
    workers: Iterable[Worker], cases: list[Case], rounds: int, slow_rounds: int, say: Callable[[str], None]
) -> tuple[Seconds, dict[str, Memory]]:
    """Runs all cases in every round, one after the other, after one round that does not count.

    Args:
        workers: those that have cases are started here and stopped at the end. Where one's package is not installed,
            its cases are left out.
        cases: in the order in which they run.
        rounds: that count.
        slow_rounds: so many for slow cases, which have no round before: they repeat one thing many times anyway.
        say: told what happens.

    Returns:
        Seconds of every case by round, and the peak memory of each worker.
    """
    needed = {case.worker for case in cases}
    by_name = {worker.name: worker for worker in workers if worker.name in needed}
    for worker in by_name.values():
        worker.start()
        say(f"{worker.name}: {f'left out, {worker.missing} is missing' if worker.missing else 'loaded'}")
    cases = [case for case in cases if by_name[case.worker].missing is None]
    seconds: Seconds = {case.key: {} for case in cases}
    for number in range(rounds + 1):
        for case in cases:
            if case.slow and not 1 <= number <= slow_rounds:
                continue
            spent = by_name[case.worker].run(case.key)
            if number:
                seconds[case.key][number] = spent
        say(f"round {number} of {rounds}")
    memory = {worker.name: worker.stop() for worker in by_name.values()}
    return seconds, {name: peak for name, peak in memory.items() if peak is not None}


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
