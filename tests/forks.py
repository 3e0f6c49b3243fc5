"""Forks of the tests' process: what becomes of a function there."""

from __future__ import annotations

import atexit
import gc
import os
import signal
import time
import warnings
from collections.abc import Callable

import interp


def fork_with_models() -> int:
    """As ``os.fork``, but the fork goes on with the models: on the CPU, with one thread, nothing of them is left behind."""
    owned = list(interp.forks._owned)
    interp.forks._owned.clear()
    pid = os.fork()
    for thing in owned:
        interp.forks.own(thing)
    return pid


#: what a fork is told of something of its parent's
FOREIGN = "belongs to the process that this one was forked from. Load it after the fork"


def forked(work: Callable[[], object], seconds: float = 20) -> tuple[int, str]:
    """What became of a function in a fork of this process: the status that the fork ended with, and what it said.

    The fork ends as Python does, with all that it then takes down.
    """
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads
        pid = os.fork()
    if pid == 0:
        status = 1
        try:
            try:
                said = repr(work())
            except interp.InterpError as err:
                said = f"{type(err).__name__}: {err}"
            os.write(writing, said.encode())
            status = 0
        finally:
            # not sys.exit: pytest would go on in the fork
            gc.collect()
            atexit._run_exitfuncs()
            os._exit(status)
    os.close(writing)
    end = time.monotonic() + seconds
    while os.waitpid(pid, os.WNOHANG)[0] == 0:
        if time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return -1, "it hangs"
        time.sleep(0.01)
    with open(reading) as file:
        return 0, file.read()
