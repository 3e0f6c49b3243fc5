"""``Link``: messages between two processes over a socket."""

from __future__ import annotations

import pickle
import socket
import struct
from collections.abc import Sequence

#: numbers of messages that are no function's of :mod:`.border`
RETURN, RAISED, READY = -1, -2, -3

_HEAD = struct.Struct("<I")

#: bytes that are read at once, and that one end may send before the other reads, where the system allows as many
_BUFFER, _ON_THE_WAY = 1 << 16, 1 << 22


class Ended(Exception):
    """The other end is closed."""


class Link:
    """One end of a socket. A message is a number, a value, and parts: memory that follows as it is.

    All methods raise :class:`Ended`. Values are pickled: both ends trust each other.
    """

    def __init__(self, connection: socket.socket):
        if connection.family == socket.AF_INET:  # what Windows makes a pair of
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _ON_THE_WAY)
        self._socket = connection
        self._reader = connection.makefile("rb", buffering=_BUFFER)

    def send(self, number: int, value, parts: Sequence = ()) -> None:
        sizes = [memoryview(part).nbytes for part in parts]
        body = pickle.dumps((number, value, sizes), pickle.HIGHEST_PROTOCOL)
        try:
            self._send([_HEAD.pack(len(body)), body, *parts])
        except OSError as err:
            raise Ended from err

    def _send(self, parts: Sequence) -> None:
        if not hasattr(self._socket, "sendmsg"):  # Windows
            self._socket.sendall(b"".join(parts))
            return
        # at once, so that the other end is woken once
        done = self._socket.sendmsg(parts)
        for part in parts:
            view = memoryview(part)
            if done < view.nbytes:
                self._socket.sendall(view[done:])
            done = max(0, done - view.nbytes)

    def receive(self) -> tuple[int, object, list[int]]:
        """The next message: number, value, and the sizes of its parts, each of which :meth:`fill` is to read now."""
        (size,) = _HEAD.unpack(self._read(_HEAD.size))
        return pickle.loads(self._read(size))

    def _read(self, size: int) -> bytes:
        try:
            data = self._reader.read(size)
        except OSError as err:
            raise Ended from err
        if len(data) < size:
            raise Ended
        return data

    def fill(self, target) -> None:
        """Read a part into memory of its size."""
        view = memoryview(target)
        done, size = 0, view.nbytes
        while done < size:
            try:
                count = self._reader.readinto(view[done:])
            except OSError as err:
                raise Ended from err
            if not count:
                raise Ended
            done += count

    def forget(self) -> None:
        """Let go of the socket without its locks: of a process that was just forked, other threads may hold them."""
        fd = self._socket.detach()
        if fd >= 0:
            socket.close(fd)

    def close(self) -> None:
        self._reader.close()
        self._socket.close()
