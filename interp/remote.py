"""RPC servers: asking one whether it is there, the connection that models share, and what happens when it breaks.

llama.cpp's client waits for ever where a server is silent, and gives up where it is gone. So an endpoint is asked here
first, with a time limit; a connection is watched while the library works; and a model whose server went away ends each
call with one error. Nothing of the library's memory has to be given up for that: see ``patches/lost-rpc-servers.patch``.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import struct
import threading
import time
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING

from . import forks, header, native
from .errors import DeviceError, RunError

if TYPE_CHECKING:
    from .session import Context

#: seconds that a server may take to accept a connection and to answer the first request
ANSWER_SECONDS = 10.0

#: seconds that one call of the library may take before the connection is cut; a batch of a large model takes long.
#: loading has no such limit: weights may go over a slow line for hours
_CALL_SECONDS = "LLAMA_INTERP_RPC_TIMEOUT", 600.0

#: the first request of every connection, and the size of what both sides say in it: the same in all versions
_HELLO, _CAPABILITIES = 14, 24

#: a machine that is switched off says nothing: seconds until the system asks, between its questions, and their number
_KEEP_ALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPALIVE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4}

#: functions of the library that a server may have a part in
_GUARDED = (
    "decode scan weight_read state_size state_get state_set memory_clear memory_rewind memory_seq_rm memory_seq_cp "
    "program_clear logits_read devices_used"
).split()


# // asking


def probe(host: str, port: int, seconds: float = ANSWER_SECONDS) -> None:
    """Connect to an RPC server and greet it.

    Raises:
        DeviceError: nobody answers in time, or something else does.
    """
    where = f"{host}:{port}"
    start = "Start one there: llama-interp rpc-server"
    end = time.monotonic() + seconds
    try:
        address = socket.getaddrinfo(host, port, socket.AF_INET, socket.SOCK_STREAM)[0][4]
        connection = socket.create_connection(address, timeout=seconds)
    except TimeoutError:
        raise DeviceError(f"No RPC server at {where}: no answer within {seconds:g} s. Check host and firewall.") from None
    except socket.gaierror as err:
        raise DeviceError(f"No RPC server at {where}: the host is unknown ({err.strerror}).") from None
    except OSError as err:
        raise DeviceError(f"No RPC server at {where}: {(err.strerror or str(err)).lower()}. {start}.") from None
    with connection:
        try:
            connection.sendall(struct.pack("<BQ", _HELLO, _CAPABILITIES) + bytes(_CAPABILITIES))
            answer = _receive(connection, 8 + 4 + _CAPABILITIES, end)
        except TimeoutError:
            raise DeviceError(
                f"What listens at {where} did not answer as an RPC server within {seconds:g} s. A server serves one "
                "program at a time: end the other one, or start a second server on another port."
            ) from None
        except OSError as err:
            raise DeviceError(f"What listens at {where} is no RPC server: {(err.strerror or str(err)).lower()}.") from None
    if len(answer) < 9 or struct.unpack("<Q", answer[:8])[0] != 4 + _CAPABILITIES:
        raise DeviceError(f"What listens at {where} is no RPC server: it answers something else. {start}.")


def _receive(connection: socket.socket, size: int, end: float) -> bytes:
    """What comes until the size or the other side's end is reached."""
    parts = b""
    while len(parts) < size:
        connection.settimeout(max(0.001, end - time.monotonic()))
        part = connection.recv(size - len(parts))
        if not part:
            break
        parts += part
        # what starts like a length that no RPC server sends need not be waited for
        if len(parts) >= 8 and struct.unpack("<Q", parts[:8])[0] != size - 8:
            break
    return parts


# // a connection


class Connection:
    """The connection of this process with a server, for all models that use it.

    Attributes:
        endpoint: ``"host:port"``.
        devices: the server's, as :class:`interp.header.Device`.
        lost: what the server did, if the connection can be used no more; None: it can.
    """

    #: by library, of which each isolated model has its own, and endpoint
    _all: "weakref.WeakValueDictionary[tuple[int, str], Connection]" = weakref.WeakValueDictionary()
    _making = threading.Lock()

    #: those of the process that this one was forked from: the library would speak on its sockets
    _foreign: set[tuple[int, str]] = set()

    def __init__(self, lib: native.Library, host: str, port: int):
        self.endpoint, self.lost = f"{host}:{port}", None
        self._lib, self._sock, self._is_open = lib, None, False
        self.users: "weakref.WeakSet[Context]" = weakref.WeakSet()
        self._n_lost = lib.rpc_n_lost()
        before = _sockets(port)
        devices = (header.Device * 64)(*(header.Device() for _ in range(64)))
        count = lib.rpc_connect(self.endpoint.encode(), devices, len(devices))
        if count < 0:
            raise DeviceError(f"The RPC server at {self.endpoint} cannot be used: {lib.reason()}.")
        self._is_open = True
        forks.own(self)
        self.devices = list(devices[: min(count, len(devices))])
        self._watch(next((fd for fd in _sockets(port) if fd not in before), None))

    @classmethod
    def to(cls, lib: native.Library, host: str, port: int) -> "Connection":
        """The connection in use, or a new one.

        Raises:
            DeviceError: no server answers there.
        """
        if (id(lib), f"{host}:{port}") in cls._foreign:
            raise DeviceError(f"The connection with the RPC server {host}:{port} {forks.REASON}")
        with cls._making:
            found = cls._all.get((id(lib), f"{host}:{port}"))
            if found is not None and not found.is_lost():
                return found
            if found is not None:
                found.bury()
            probe(host, port)
            made = cls._all[id(lib), f"{host}:{port}"] = cls(lib, host, port)
            return made

    def _watch(self, fd: int | None) -> None:
        """Keep a second handle of the library's socket: to look whether it is alive, and to cut it."""
        if fd is None:
            return
        self._sock = socket.socket(fileno=os.dup(fd))
        # a default time limit of Python's would make the library's socket one that does not wait
        self._sock.setblocking(True)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEP_ALIVE.items():
            if hasattr(socket, name):
                self._sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def is_lost(self) -> bool:
        """Whether the server went away; one system call."""
        if self.lost is None and not self._is_alive():
            self.lost = "went away"
        return self.lost is not None

    def _is_alive(self) -> bool:
        if not self._is_open:
            return False
        if self._sock is None:
            return self._lib.rpc_n_lost() == self._n_lost
        try:
            return self._sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) != b""
        except BlockingIOError:
            return True
        except OSError:
            return False

    def cut(self, reason: str) -> None:
        """End the connection under the library's hands: what it waits for fails."""
        self.lost = self.lost or reason
        if self._sock is None and hasattr(self._lib, "kill"):
            # the socket is in the process of an isolated model
            self._lib.kill(f"the RPC server {self.endpoint} {self.lost}")
        elif self._sock is not None:
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)

    def bury(self) -> None:
        """Free all models that used it, so that the library connects anew.

        Raises:
            DeviceError: one of them is still at work.
        """
        for user in list(self.users):
            if not user._bury(f"the RPC server {self.endpoint} {self.lost}"):
                raise DeviceError(
                    f"A model that used {self.endpoint} before the server went away still runs or has an open stream. "
                    "Close it, then load the model again."
                )
        self._close()

    def _close(self) -> None:
        """Once: another one may have the endpoint by the time that the last model lets go of this one."""
        if self._is_open:
            self._is_open = False
            self._lib.rpc_disconnect(self.endpoint.encode())
            if self._sock is not None:
                self._sock.close()

    def _disown(self) -> None:
        Connection._making = threading.Lock()
        Connection._foreign.add((id(self._lib), self.endpoint))
        self._is_open = False
        if self._sock is not None:
            self._sock.close()

    def __del__(self):
        self._close()


def _sockets(port: int) -> set[int]:
    """This process' sockets that are connected with a port."""
    found = set()
    folder = "/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"
    for name in os.listdir(folder) if os.path.isdir(folder) else ():
        with contextlib.suppress(OSError, ValueError):
            fd = int(name)
            if stat.S_ISSOCK(os.fstat(fd).st_mode):
                sock = socket.socket(fileno=fd)
                try:
                    if sock.family == socket.AF_INET and sock.getpeername()[1] == port:
                        found.add(fd)
                finally:
                    sock.detach()
    return found


# // a model's servers


class Servers:
    """The connections of one model, and the limit of a call."""

    def __init__(self, connections: list[Connection]):
        self.connections = connections
        self._seconds = _call_seconds()
        # now, because a model may be freed when Python ends and starts no more threads
        self._watchdog = _Watchdog.get()

    def reason(self) -> str | None:
        """Why the model cannot go on; None: it can."""
        lost: dict[str, list[str]] = {}
        for connection in self.connections:
            if connection.is_lost():
                lost.setdefault(connection.lost, []).append(connection.endpoint)
        return " and ".join(f"the RPC server {', '.join(where)} {what}" for what, where in lost.items()) or None

    def check(self) -> None:
        reason = self.reason()
        if reason:
            raise RunError(
                f"A part of the model is lost: {reason}. Start it again where need be (llama-interp rpc-server), and load "
                "the model again."
            )

    @contextlib.contextmanager
    def limited(self) -> Iterator[None]:
        """A call of the library; it fails where a server is silent for too long."""
        end = time.monotonic() + self._seconds
        key = self._watchdog.enter(end, self)
        try:
            yield
        finally:
            self._watchdog.leave(key)

    def cut(self) -> None:
        for connection in self.connections:
            connection.cut(f"did not answer for {self._seconds:g} s ({_CALL_SECONDS[0]} is the limit)")

    def guard(self, lib: native.Library) -> "GuardedLibrary":
        return GuardedLibrary(lib, self)


def _call_seconds() -> float:
    name, seconds = _CALL_SECONDS
    given = os.environ.get(name, seconds)
    try:
        seconds = float(given)
    except ValueError:
        seconds = 0
    if not seconds > 0:
        raise DeviceError(f"{name}={given}: give a number of seconds above 0.")
    return seconds


class GuardedLibrary:
    """The library for a model on servers: what needs one of them and finds it gone is a :class:`RunError`."""

    def __init__(self, lib: native.Library, servers: Servers):
        vars(self).update(vars(lib))
        self.plain, self._servers = lib, servers
        for name in _GUARDED:
            setattr(self, name, self._guarded(getattr(lib, name)))
        self.free = self._limited(lib.free)

    def _guarded(self, function):
        servers = self._servers

        def call(*args):
            servers.check()
            with servers.limited():
                result = function(*args)
            servers.check()
            return result

        return call

    def _limited(self, function):
        # a function that held self would keep the connection until Python looks for cycles
        servers = self._servers

        def call(*args):
            with servers.limited():
                return function(*args)

        return call

    def take_log(self) -> list[str]:
        return native.Library.take_log(self)

    def reason(self, handle: int | None = None, default: str = "no reason is given") -> str:
        return native.Library.reason(self, handle, default)


class _Watchdog:
    """A thread that cuts the connections of calls that take too long; the library itself has no time limit."""

    _one: "_Watchdog | None" = None
    _lock = threading.Lock()

    def __init__(self):
        self._calls: dict[object, tuple[float, Servers]] = {}
        self._wake = threading.Event()
        threading.Thread(target=self._run, name="llama-interp rpc", daemon=True).start()

    @classmethod
    def get(cls) -> "_Watchdog":
        with cls._lock:
            if cls._one is None:
                cls._one = cls()
            return cls._one

    def enter(self, end: float, servers: Servers) -> object:
        key = object()
        self._calls[key] = end, servers
        self._wake.set()
        return key

    def leave(self, key: object) -> None:
        self._calls.pop(key, None)

    def _run(self) -> None:
        while True:
            # asleep while nothing runs
            self._wake.wait()
            time.sleep(0.5)
            self._wake.clear()
            calls = list(self._calls.items())
            if calls:
                self._wake.set()
            for key, (end, servers) in calls:
                if time.monotonic() > end:
                    servers.cut()
                    self._calls.pop(key, None)
