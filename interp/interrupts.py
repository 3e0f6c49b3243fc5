"""``Interrupts``: what Ctrl-C does while the library is at work, in this process or in another one."""

from __future__ import annotations

import _signal  # the functions of signal without their conversions to enums, which take longer than a call that crosses
import threading
from collections.abc import Callable
from signal import SIGINT, default_int_handler


class Interrupts:
    """Ctrl-C waits until the library has returned: an exception that is raised where the library calls one of our
    functions, before its first line, would be lost, and half an answer of another process would spoil the next.

    ``with`` such an object it waits; at the end of the block the handler that was there is called. Meanwhile
    :attr:`is_wanted` tells the library, which asks, to stop. Python calls handlers in the main thread only, so that in
    other threads nothing of this happens.

    Args:
        give_up: called at a second Ctrl-C.
    """

    def __init__(self, give_up: Callable[[], None] = lambda: None):
        self._give_up = give_up
        self._handler: Callable | None = None
        self._depth = self._count = 0
        self._is_open = False

    def __enter__(self) -> None:
        if threading.get_ident() != threading.main_thread().ident:
            return
        self._depth += 1
        if self._depth == 1:
            handler = _signal.getsignal(SIGINT)
            if callable(handler):
                self._count, self._handler = 0, handler
                _signal.signal(SIGINT, self._note)

    def __exit__(self, *_exc) -> None:
        if threading.get_ident() != threading.main_thread().ident:
            return
        self._depth -= 1
        if self._depth == 0 and self._handler is not None:
            handler, self._handler = self._handler, None
            _signal.signal(SIGINT, handler)
            if self._count:
                handler(SIGINT, None)

    @property
    def is_wanted(self) -> bool:
        """Ctrl-C was pressed, and will be a KeyboardInterrupt. A handler of the user's may mean anything else, and waits
        until the library is done."""
        return self._count > 0 and self._handler is default_int_handler

    def _note(self, number: int, frame) -> None:
        if self._is_open:
            self._handler(number, frame)
            return
        self._count += 1
        if self._count > 1:
            self._give_up()

    def open_to(self, fn: Callable, *args):
        """Call a function that Ctrl-C reaches at once: it is the user's, and runs here."""
        self._is_open = True
        try:
            return fn(*args)
        except KeyboardInterrupt:
            # just before or after the function, which keeps its own
            self._count += 1
            return None
        finally:
            self._is_open = False
