"""``Interrupts``: what Ctrl-C does while another process is at work."""

from __future__ import annotations

import _signal  # the functions of signal without their conversions to enums, which take longer than a call that crosses
import threading
from collections.abc import Callable
from signal import SIGINT


class Interrupts:
    """Ctrl-C waits until the other process has answered, as it does while the library runs in this one: half an answer
    would spoil the next. A second one does not wait.

    ``with`` such an object they are deferred; at the end of the block the handler that was there is called.

    Args:
        give_up: ends the other process.
    """

    def __init__(self, give_up: Callable[[], None]):
        self._give_up = give_up
        self._handler: Callable | None = None
        self._depth = self._count = 0
        self._is_open = False

    def __enter__(self) -> None:
        self._depth += 1
        # other threads get no signals
        if self._depth == 1 and threading.get_ident() == threading.main_thread().ident:
            handler = _signal.getsignal(SIGINT)
            if callable(handler):
                self._count, self._handler = 0, handler
                _signal.signal(SIGINT, self._note)

    def __exit__(self, *_exc) -> None:
        self._depth -= 1
        if self._depth == 0 and self._handler is not None:
            handler, self._handler = self._handler, None
            _signal.signal(SIGINT, handler)
            if self._count:
                handler(SIGINT, None)

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
