"""The process of an isolated model: it serves the library over a socket until its standard input closes.

``python interp/isolated/child.py LIBRARY [SOCKET]``, started by :mod:`interp.isolated.process` only.
"""

from __future__ import annotations

import ctypes as ct
import functools
import math
import os
import signal
import socket
import sys
import threading
import traceback
import types
from collections.abc import Callable
from pathlib import Path

# the border is all that is needed of this package: its __init__ would take most of the start
_package = types.ModuleType("interp")
_package.__path__ = [str(Path(__file__).resolve().parents[1])]
sys.modules["interp"] = _package

from interp import header, native  # noqa: E402
from interp.errors import InterpError  # noqa: E402
from interp.isolated import border  # noqa: E402
from interp.isolated.border import CROSSINGS, OWN, Crossing, room  # noqa: E402
from interp.isolated.link import RAISED, READY, RETURN, Ended, Link  # noqa: E402

_KEPT = 1 << 22

_BY_NUMBER = {crossing.number: crossing for crossing in CROSSINGS.values()}


def main(library: str, *descriptor: str) -> None:
    # the process that started this one says when to stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    link = Link(_connection(*descriptor))
    threading.Thread(target=_end_with_input, daemon=True).start()
    try:
        found = native.load(Path(library))
    except InterpError as err:
        link.send(RAISED, err)
        return
    link.send(READY, None)
    Server(link, found).serve()


def _connection(descriptor: str | None = None) -> socket.socket:
    if descriptor is not None:
        return socket.socket(fileno=int(descriptor))
    size = int.from_bytes(os.read(0, 4), "little")
    return socket.fromshare(os.read(0, size))


def _end_with_input() -> None:
    """End when nobody holds the other end any more, even in the middle of a run."""
    while os.read(0, 1):
        pass
    os._exit(0)


class Server:
    """Runs the functions that messages name."""

    def __init__(self, link: Link, library: native.Library):
        self._link, self._library = link, library
        self._kept = room(0)
        self._callbacks = {
            "set_edit_fn": header.EDIT_FN(_vital(self._on_edit)),
            "set_host_fn": header.HOST_FN(_vital(self._on_host)),
            "set_graph_fn": header.GRAPH_FN(_vital(self._on_graph)),
            "set_poll_fn": header.POLL_FN(_vital(self._on_poll)),
        }

    def serve(self, into=None):
        """Until the other side is gone; within a callback until it returns: its result, and its memory ``into``."""
        while True:
            number, value, sizes = self._link.receive()
            if number == RETURN:
                if sizes:
                    self._link.fill(into)
                return value
            parts = [room(size) for size in sizes]
            for part in parts:
                self._link.fill(part)
            self._run(_BY_NUMBER[number], value, parts)

    def _run(self, crossing: Crossing, args: list, parts: list[ct.Array]) -> None:
        try:
            filled = self._place(crossing, args, parts)
            result = getattr(self._library, crossing.name)(*args)
        except Exception as err:
            if not crossing.is_answered:
                raise
            self._link.send(RAISED, err)
            return
        if crossing.is_answered:
            self._link.send(RETURN, result, filled)

    def _place(self, crossing: Crossing, args: list, parts: list[ct.Array]) -> list[ct.Array]:
        """Put memory and functions into the arguments; the result is the memory that goes back."""
        if crossing.name in self._callbacks:
            args += [self._callbacks[crossing.name], None]
        if crossing.name == border.BATCH:
            args[1] = ct.byref(border.batch_of(args[1], parts))
        following, filled = iter(parts), []
        for index, _ in crossing.given:
            if args[index] is not None:
                texts, args[index] = args[index], border.pointer(next(following), crossing.kinds[index])
                for field, text in texts.items():
                    setattr(args[index].contents, field, text)
        for index, size in crossing.filled:
            if args[index] is True:
                filled.append(next(following))
            elif size is OWN:
                filled.append(room(args[index]))
            else:
                filled.append(self._scratch(size(self._library, args)))
            args[index] = border.pointer(filled[-1], crossing.kinds[index])
        return filled

    def _scratch(self, size: int) -> ct.Array:
        """Memory until the answer is sent; what a step of a generation needs is kept for the next one."""
        if size > _KEPT:
            return room(size)
        if len(self._kept) < size:
            self._kept = room(size)
        return border.memory(border.address_of(self._kept), size)

    # what the library calls

    def _on_edit(self, _data, edit: int, tensor: int, result) -> None:
        self._link.send(CROSSINGS["set_edit_fn"].number, (edit, tensor))
        result[0] = self.serve()

    def _on_host(self, _data, edit: int, data, ne, done) -> None:
        shape = ne[:4]
        values = border.memory(border.address_of(data), 4 * math.prod(shape))
        self._link.send(CROSSINGS["set_host_fn"].number, (edit, shape), [values])
        done[0] = self.serve(into=values)

    def _on_graph(self, _data, done) -> None:
        self._link.send(CROSSINGS["set_graph_fn"].number, ())
        done[0] = self.serve()

    def _on_poll(self, _data, stop) -> None:
        self._link.send(CROSSINGS["set_poll_fn"].number, ())
        stop[0] = self.serve()


def _vital(fn: Callable) -> Callable:
    """A callback whose failure ends the process: no exception may cross into C, and the messages are out of step."""

    @functools.wraps(fn)
    def guarded(*args):
        try:
            return fn(*args)
        except Ended:
            os._exit(0)
        except BaseException:  # noqa: BLE001 - as above
            traceback.print_exc()
            os._exit(1)

    return guarded


if __name__ == "__main__":
    status = 0
    try:
        main(*sys.argv[1:])
    except Ended:
        pass
    except BaseException:  # noqa: BLE001 - its text is what the other side shows
        traceback.print_exc()
        status = 1
    # without the library's own end, which could hang while the other side waits for ours
    os._exit(status)
