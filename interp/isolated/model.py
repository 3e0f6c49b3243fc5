"""``Isolated``: a :class:`interp.Model` whose library runs in another process."""

from __future__ import annotations

import ctypes as ct
import os
import sys
import threading
import warnings
from pathlib import Path

from .. import header, native
from ..errors import ModelError, ProcessError
from ..model import Model
from ..remote import Servers
from ..vocab import Vocab
from .library import Library

_PACKAGE = str(Path(__file__).resolve().parents[1])


class Isolated(Model):
    """What ``interp.Model(path, isolated=True)`` gives: a model in a process of its own.

    Where the library ends that process, or the system does, the call in progress raises a
    :class:`interp.ProcessError`, and the next one starts another process, with a warning. The model is loaded again as
    it was, and a prefix in force is put back.

    Attributes:
        pid: of the process.
    """

    #: the library in the process that is in use
    _remote: Library | None = None
    _given_handle: int | None = None
    _is_closed = False
    #: RPC servers that it is connected with
    _servers: Servers | None = None

    def __init__(self, *args, **kwargs):
        self._restarting = threading.RLock()
        try:
            super().__init__(*args, **kwargs)
        except BaseException:
            self._free()
            raise

    def _library(self) -> Library:
        self._remote = Library(native.find_library())
        return self._remote

    def _adopt(
        self, lib: Library, handle: int, path: Path, kv_type: str, n_ctx: int | None = None,
        servers: Servers | None = None,
    ) -> None:  # fmt: skip
        super()._adopt(lib, handle, path, kv_type, n_ctx, servers)
        self._stamp, self._servers = _stamp(path), servers

    @property
    def pid(self) -> int:
        return self._remote.pid

    # a handle of a process that is gone is none

    @property
    def _handle(self) -> int | None:
        return None if self._remote is None or self._remote.lost is not None else self._given_handle

    @_handle.setter
    def _handle(self, handle: int | None) -> None:
        self._given_handle = handle

    # the next process

    def _check_open(self) -> None:
        with self._restarting:
            if not self._is_closed:
                self._revive()
        super()._check_open()

    def _revive(self) -> None:
        reason = self._remote.lost
        if reason is None and self._servers is not None and (gone := self._servers.reason()):
            # the library has no way back to a server that it lost
            self._remote.kill(gone)
            reason = self._remote.lost
        if isinstance(reason, ProcessError):
            self._restart()
        elif reason is not None:
            raise reason

    def _restart(self) -> None:
        """Another process, with the model and the prefix as they were; or an error, and the next call tries again."""
        if _stamp(self.path) != self._stamp:
            raise ModelError(f"{self.path} has changed since it was loaded. Load it anew: interp.Model(path).")
        before = self._remote, self._lib, self.vocab
        try:
            lib, info = self._library(), header.Info()
            handle, servers = self._open(lib)
            self._lib = lib if servers is None else servers.guard(lib)
            self._lib.get_info(handle, ct.byref(info))
            self.vocab = Vocab(self._lib, handle, info)
            if self._prefix is not None:
                self._prefix.restore(handle)
        except BaseException:
            failed, (self._remote, self._lib, self.vocab) = self._remote, before
            if failed is not self._remote:
                failed.close()
            raise
        self._n_rewinds += 1
        self._handle, self._servers = handle, servers
        warnings.warn(
            f"The model's process ended: {before[0].cause}. Another one was started, and the model loaded again.",
            RuntimeWarning, stacklevel=_stacklevel(),
        )  # fmt: skip

    def _restore_prefix(self, handle: int) -> None:
        prefix = self._prefix
        try:
            super()._restore_prefix(handle)
        except ProcessError:
            self._prefix = prefix  # the next process gets it
            raise

    # lifetime

    def _disown(self) -> None:
        """In a fork: the library knows by itself that its process is the parent's; locks may be held by its threads."""
        self._lock, self._owner, self._restarting = threading.Lock(), None, threading.RLock()

    def kill(self) -> None:
        """End the process at once, from any thread, in the middle of whatever it does: for a run that hangs. The call
        in progress raises a :class:`interp.ProcessError`; the next one starts another process."""
        self._remote.kill()

    def close(self) -> None:
        super().close()
        self._free()

    def _free(self) -> None:
        # a thread that finds the process gone must not take that for a death, and start another one that nobody closes
        with self._restarting:
            self._is_closed = True
            if self._remote is not None:
                self._let_go()
                self._remote.close()


def _stamp(path: Path) -> tuple[int, int] | None:
    """What a change of a file changes."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def _stacklevel() -> int:
    """Of the line outside of this package that is the cause of a warning, counted from whoever asks."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame, level = frame.f_back, level + 1
    return level
