"""``Lease``: a handle of the library that several threads use at once, and that is freed when none does."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from .errors import RunError


class Lease:
    """For functions that only read a model, beside whatever else runs.

    Args:
        handle: the library's.
    """

    def __init__(self, handle: int):
        self._handle: int | None = handle
        self._reason = ""
        self._users: list[int] = []
        self._changed = threading.Condition(threading.RLock())

    @contextmanager
    def used(self) -> Iterator[int]:
        """The handle; it is there until the block is left.

        Raises:
            RunError: it was given back.
        """
        with self._changed:
            if self._handle is None:
                raise RunError(self._reason)
            handle, user = self._handle, threading.get_ident()
            self._users.append(user)
        try:
            yield handle
        finally:
            with self._changed:
                self._users.remove(user)
                self._changed.notify_all()

    def end(self, reason: str) -> None:
        """Nobody gets the handle any more, and no other thread has it.

        Args:
            reason: what is said to whoever wants it.
        """
        this = threading.get_ident()
        with self._changed:
            self._handle, self._reason = None, reason
            self._changed.wait_for(lambda: all(user == this for user in self._users))

    def forget(self, reason: str) -> None:
        """:meth:`end` in a fork, where the other threads are not."""
        self._users, self._changed = [], threading.Condition(threading.RLock())
        self.end(reason)
