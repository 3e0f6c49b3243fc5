"""The manners of every step: how it reports, runs a command, waits for its turn, and publishes what it made."""

from __future__ import annotations

import glob
import hashlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

from .project import BuildError

try:
    import fcntl
except ImportError:
    fcntl = None


_COUNT = itertools.count()


class Step:
    """One line of the report, rewritten in place while it runs in a terminal."""

    def __init__(self, title: str, stream, live: bool):
        self._title, self._stream, self._live = title, stream, live
        self._start = time.monotonic()
        self.result = "done"

    @property
    def live(self) -> bool:
        return self._live

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._start

    def progress(self, text: str) -> None:
        """Shows where the step is: over the same line in a terminal, as a line of its own in a log."""
        if not self._live:
            print(f"{self._title:<12} {text}", file=self._stream, flush=True)
            return
        width = shutil.get_terminal_size().columns - 1
        self._stream.write("\r" + f"{self._title:<12} {text}"[:width].ljust(width))
        self._stream.flush()

    def finish(self) -> None:
        line = f"{self._title:<12} {self.result} ({self.seconds:.1f} s)"
        if self._live:
            self._stream.write("\r\033[K")
        print(line, file=self._stream, flush=True)

    def abandon(self) -> None:
        if self._live:
            self._stream.write("\n")


class Report:
    """What the user reads while a build runs."""

    def __init__(self, stream=None):
        self._stream = stream or sys.stdout
        self._live = self._stream.isatty() and os.environ.get("TERM") != "dumb"

    def line(self, title: str, text: str) -> None:
        print(f"{title:<12} {text}", file=self._stream, flush=True)

    @contextmanager
    def step(self, title: str):
        """Runs the body as one step; the body sets ``result`` on the step that it is given."""
        step = Step(title, self._stream, self._live)
        if step.live:
            step.progress("...")
        try:
            yield step
        except BaseException:
            step.abandon()
            raise
        step.finish()


def run(command, *, cwd=None, env=None, fail: str, stdin: str | None = None) -> str:
    """Runs a command and returns what it printed.

    Args:
        fail: what could not be done, for the message; the end of the command's output follows it.

    Raises:
        BuildError: the command is missing or failed.
    """
    try:
        done = subprocess.run(
            [str(part) for part in command], cwd=cwd, env=env, input=stdin, text=True,
            encoding="utf-8", errors="replace", stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL if stdin is None else None, **child_options(),
        )
    except OSError as error:
        raise BuildError(f"{fail}: {error}") from error
    if done.returncode:
        raise BuildError(f"{fail}:\n{tail(done.stdout, 15)}")
    return done.stdout


def tail(text: str, lines: int) -> str:
    """The last lines of a long output, indented."""
    return "\n".join(f"    {line}" for line in text.rstrip().splitlines()[-lines:])


def child_options() -> dict:
    """Options of subprocess that end a child with us: a killed build must leave nothing that writes into its folders.

    The lock is inherited as well: should a child, or a child of its own, still live, the next build waits for it.
    """
    return {} if sys.platform == "win32" else {"preexec_fn": _die_with_parent, "pass_fds": tuple(Lock.held)}


def _die_with_parent() -> None:
    if sys.platform == "linux":
        import ctypes

        PR_SET_PDEATHSIG = 1
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class Lock:
    """Lets one build at a time work in a folder."""

    held: list[int] = []

    def __init__(self, path: Path, report: Report):
        self._path, self._report, self.fd = path, report, -1

    def __enter__(self) -> Lock:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self.fd = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        if not self._try():
            self._report.line("waiting", f"another build works in {self._path.parent}; this one goes on after it")
            while not self._try():
                time.sleep(0.2)
        self.held.append(self.fd)
        return self

    def __exit__(self, *exc) -> None:
        self.held.remove(self.fd)
        os.close(self.fd)

    def _try(self) -> bool:
        try:
            if fcntl:
                fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            else:
                import msvcrt

                msvcrt.locking(self.fd, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True


def temporary(path: Path) -> Path:
    """A fresh sibling of a path, to be filled and then renamed: what has the right name is always whole."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}-{next(_COUNT)}.tmp")
    remove(scratch)
    scratch.parent.mkdir(parents=True, exist_ok=True)
    return scratch


def sweep(folder: Path) -> None:
    """Removes what killed builds left behind. Call it only while the lock of that folder is held."""
    for leftover in folder.glob(".*.tmp"):
        remove(leftover)


def remove(path: Path) -> None:
    """Removes a file or a folder, read-only files of git included, if it is there."""

    def retry(function, name, _error):
        os.chmod(name, 0o700)
        function(name)

    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, onerror=retry)
    elif path.exists() or path.is_symlink():
        path.unlink()


def publish_folder(scratch: Path, path: Path) -> None:
    """Gives a finished folder its name. Killed between the two renames, the old one is gone and nothing is half."""
    old = temporary(path)
    if path.exists():
        path.rename(old)
    try:
        scratch.rename(path)
    except OSError:
        # folders named by content are shared by builds that do not share a lock: whoever came first made the same
        if not path.exists():
            raise
        remove(scratch)
    remove(old)


def write_text(path: Path, text: str) -> None:
    """Writes a file: killed meanwhile, it is as it was, or whole. What was left then goes with a write an hour later."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        if time.time() - leftover.stat().st_mtime > 3600:
            remove(leftover)
    scratch = temporary(path)
    scratch.write_bytes(text.encode())
    os.replace(scratch, path)


def write_json(path: Path, data) -> None:
    write_text(path, json.dumps(data, indent=2) + "\n")


def read_json(path: Path) -> dict:
    """The object in a file, or an empty one where the file is missing or was not written by us."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def digest(*parts) -> str:
    """One hash over values of any JSON type; order counts."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def exit_code(work: Callable[[], int], interrupted: str, failure: int = 2) -> int:
    """What a command ends with: what ``work`` returns, or one line of what was wrong and ``failure``.

    Args:
        work: the command, without arguments.
        interrupted: what Ctrl-C leaves behind, for whoever pressed it; the code is then 130, as a shell has it.
    """
    try:
        return work()
    except (BuildError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return failure
    except KeyboardInterrupt:
        print(f"\ninterrupted: {interrupted}", file=sys.stderr)
        return 130
