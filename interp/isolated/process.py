"""``Process``: the process that a model lives in, as the one that started it sees it."""

from __future__ import annotations

import io
import os
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections import deque
from pathlib import Path

from ..errors import LibraryError
from .link import Link

_CHILD = Path(__file__).with_name("child.py")

#: lines of its standard error that are kept, how many an error shows, and how much of each
_KEPT, _SHOWN, _WIDTH = 30, 3, 240

#: seconds that it gets to end
_PATIENCE = 5.0


class Process:
    """A Python process that serves the library; see :mod:`interp.isolated.child`.

    Its standard input is a pipe that nothing is written to: when it closes, because we closed it or died, the process
    ends at once, whatever it is doing. Ctrl-C of a terminal does not reach it.

    Args:
        library: the path of the compiled library.

    Attributes:
        link: the messages.
        is_foreign: this is a fork of the process that started it.

    Raises:
        LibraryError: no process can be started.
    """

    _started: weakref.WeakSet[Process] = weakref.WeakSet()

    def __init__(self, library: Path):
        if not sys.executable or getattr(sys, "frozen", False):
            raise LibraryError("isolated=True has to start Python, and sys.executable names none in this program.")
        ours, theirs = socket.socketpair()
        self.is_foreign = False
        try:
            with theirs:
                self._popen = _start(theirs, library)
        except OSError as err:
            ours.close()
            raise LibraryError(f"No process can be started for the model: {err}.") from err
        self.link = Link(ours)
        self._said: deque[str] = deque(maxlen=_KEPT)
        listening = threading.Thread(target=_listen, args=(self._popen, self._said), daemon=True, name="interp-stderr")
        listening.start()
        self._listening = listening
        self._finalizer = weakref.finalize(self, _end, self._popen, self.link, listening)
        Process._started.add(self)

    @property
    def pid(self) -> int:
        return self._popen.pid

    def is_alive(self) -> bool:
        return self._finalizer.alive and self._popen.poll() is None

    def kill(self) -> None:
        """End it at once, from any thread; whoever waits for an answer gets none."""
        if not self.is_foreign:
            self._popen.kill()

    def end(self) -> None:
        """End it and leave nothing behind; no matter whether it has ended already."""
        self._finalizer()

    def last_words(self) -> str:
        """How it ended and what it said last, in one line; it is ended, if it did not do so by itself."""
        self.end()
        said = "; ".join(line[:_WIDTH] for line in list(self._said)[-_SHOWN:])
        return f"{_status(self._popen.wait())}{f' ({said})' if said else ''}"

    def forget(self) -> None:
        """What a forked process does with the process of its parent: it lets go of it."""
        self.is_foreign = True
        if self._finalizer.detach():
            self.link.forget()
            self._popen.stdin.close()
            self._popen.returncode = 0  # it is no child of this process, and not to be waited for


def _start(theirs: socket.socket, library: Path) -> subprocess.Popen:
    is_windows = sys.platform == "win32"
    # -P: modules of this folder do not take the place of others
    command = [sys.executable, "-P", str(_CHILD), str(library)]
    popen = subprocess.Popen(
        command if is_windows else [*command, str(theirs.fileno())],
        bufsize=0, stdin=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        # an abort says why, without a stack of C functions
        env={"GGML_NO_BACKTRACE": "1", **os.environ},
        pass_fds=() if is_windows else (theirs.fileno(),),
    )  # fmt: skip
    if is_windows:
        shared = theirs.share(popen.pid)
        popen.stdin.write(len(shared).to_bytes(4, "little") + shared)
    return popen



def _listen(popen: subprocess.Popen, said: deque[str]) -> None:
    """Keep what it says, show it where a log was asked for, and reap it when it is gone."""
    shown = os.environ.get("LLAMA_INTERP_LOG", "0") not in ("", "0")
    with io.TextIOWrapper(io.BufferedReader(popen.stderr), errors="replace") as lines:
        for line in lines:
            if line.strip():
                said.append(line.strip())
            if shown and sys.stderr is not None:
                sys.stderr.write(line)
    popen.wait()


def _end(popen: subprocess.Popen, link: Link, listening: threading.Thread) -> None:
    popen.stdin.close()
    try:
        popen.wait(_PATIENCE)
    except subprocess.TimeoutExpired:
        popen.kill()
        popen.wait()
    link.close()
    if listening is not threading.current_thread():
        listening.join(_PATIENCE)


def _status(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"{name}, as when memory runs out" if name == "SIGKILL" else name


def _forked() -> None:
    for process in list(Process._started):
        process.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
