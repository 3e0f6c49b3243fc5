"""``Library``: the compiled library in another process, with the attributes of :class:`interp.native.Library`."""

from __future__ import annotations

import ctypes as ct
import functools
import threading
from collections.abc import Callable
from itertools import count
from pathlib import Path

from .. import forks, native
from ..errors import InterpError, ProcessError, RunError
from ..interrupts import Interrupts
from . import border
from .border import CROSSINGS, OWN, Crossing, address_of, memory
from .link import RAISED, RETURN, Ended
from .process import Process

#: structs of a series that are asked for at once: the answers must not fill the socket before they are read
_AHEAD = 64

_handles = count(1)


class Library(native.Library):
    """Calls cross one at a time: a thread waits for another one's.

    A model's handle is a number of our own, so that one of a process that died can never reach the next process.
    Functions without a result are not waited for. What the library calls meanwhile, such as an edit while a graph is
    built, runs here, in the thread that waits, and may call the library in turn.

    Args:
        path: of the library.

    Attributes:
        n_embd: of the model, once ``get_info`` was called.

    Raises:
        LibraryError: as in :func:`interp.native.load`, or no process can be started.
        ProcessError: the process died at its start.
    """

    def __init__(self, path: Path):
        self.path, self.n_embd = path, 0
        self.cause: str | None = None
        self._is_closed = self._is_loaded = False
        self._killed_by = ""
        self._handle = self._real_handle = None
        self._functions: dict[int, Callable] = {}
        self._ahead: dict[tuple[str, int], tuple[int, bytes]] = {}
        self._turn = threading.RLock()
        self.interrupts, self.poll = Interrupts(self.kill), None
        for name, crossing in CROSSINGS.items():
            setattr(self, name, functools.partial(self._next if name in border.SERIES else self._call, crossing))
        self.init, self.get_info = self._init, self._get_info
        self.program_clear, self.capture_take = self._program_clear, self._capture_take
        self._process = Process(path)
        number, value = self._exchange(lambda: self._process.link.receive()[:2])
        if number == RAISED:
            self.close()
            raise value

    # functions that cross in a way of their own

    def _init(self, path: bytes, params) -> int | None:
        self._real_handle = self._call(CROSSINGS["init"], path, params)
        self._handle = next(_handles) if self._real_handle else None
        return self._handle

    def _get_info(self, handle: int, info) -> int:
        status = self._call(CROSSINGS["get_info"], handle, info)
        self.n_embd, self._is_loaded = info._obj.n_embd, True
        return status

    def _program_clear(self, handle: int) -> None:
        self._functions.clear()
        self._call(CROSSINGS["program_clear"], handle)

    def _capture_take(self, *_args) -> None:
        """Nothing: memory of another process cannot be taken over, so that it is read."""

    # lifetime

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    @property
    def lost(self) -> InterpError | None:
        """Why nothing can be called any more; None: all is well."""
        if self._process.is_foreign:
            return RunError(f"This isolated model {forks.REASON}")
        if self._is_closed:
            return RunError("This model is closed.")
        if self.cause is None and (self._killed_by or not self._process.is_alive()):
            with self._turn:  # whoever is in the middle of a call finds out by itself
                self._lose()
        if self.cause is None:
            return None
        then = "The next call starts another one and loads the model again." if self._is_loaded else "Nothing was loaded."
        return ProcessError(f"The model's process ended: {self.cause}. {then}")

    def _lose(self) -> None:
        if self.cause is None:
            cause = self._process.last_words()
            self.cause = self._killed_by or cause

    def kill(self, why: str = "kill() or a second Ctrl-C") -> None:
        """End the process at once, from any thread: a call in progress raises a :class:`ProcessError`."""
        self._killed_by = why
        self._process.kill()

    def close(self) -> None:
        """End the process."""
        self._is_closed = True
        if not self._process.is_foreign:
            self._process.end()

    # calls

    def _exchange(self, messages: Callable):
        """Messages that belong together, while the other process belongs to this thread."""
        with self._turn, self.interrupts:
            try:
                return messages()
            except Ended:
                self._lose()
            except BaseException as err:
                # half an answer is left, and would be taken for the next one
                self._process.kill()
                self._process.end()
                self.cause = self.cause or f"its answer was lost, {type(err).__name__}"
                raise
        raise self.lost

    def _call(self, crossing: Crossing, *args):
        if self.cause is not None or self._is_closed or self._process.is_foreign:
            # what cleans up after a run that failed has nothing to clean any more
            if crossing.is_answered:
                raise self.lost
            return None
        self._ahead.clear()
        sent, parts, targets = self._packed(crossing, args)

        def messages() -> tuple[int, object]:
            self._process.link.send(crossing.number, sent, parts)
            return self._answer(targets) if crossing.is_answered else (RETURN, None)

        number, value = self._exchange(messages)
        if number == RAISED:
            raise value
        return value

    def _next(self, crossing: Crossing, handle: int, index: int, info) -> int:
        """One struct of a series; those after it are fetched with it."""
        if (crossing.name, index) not in self._ahead:
            if self.lost is not None:
                raise self.lost
            structs = [type(info._obj)() for _ in range(_AHEAD)]
            calls = [self._packed(crossing, (handle, index + i, ct.byref(struct))) for i, struct in enumerate(structs)]

            def messages() -> list[int]:
                for sent, parts, _ in calls:
                    self._process.link.send(crossing.number, sent, parts)
                return [self._answer(targets)[1] for _, _, targets in calls]

            statuses = self._exchange(messages)
            self._ahead = {
                (crossing.name, index + i): (status, bytes(struct))
                for i, (status, struct) in enumerate(zip(statuses, structs))
            }
        status, data = self._ahead[crossing.name, index]
        ct.memmove(info, data, len(data))
        return status

    def _packed(self, crossing: Crossing, args: tuple) -> tuple[list, list, list[int]]:
        """Arguments as they cross, the memory that follows them, and the addresses of what the answer fills.

        In the place of memory stands what the other side needs. Of what is read: the texts of a struct, which may be
        none; None: no memory. Of what is filled: True: it follows; a number: so much; None: as the rule says.
        """
        sent, parts, targets = list(args), [], []
        if crossing.of_model and sent[0] is not None:
            if sent[0] != self._handle:
                raise ProcessError("The model's process ended while this run waited. Run it again.")
            sent[0] = self._real_handle
        if crossing.name in border.CALLING:
            self._functions[crossing.number] = args[1]
            del sent[1:]
        if crossing.name == border.BATCH:
            batch = args[1]._obj
            sent[1], parts = batch.n_tokens, border.batch_parts(batch)
        for index, size in crossing.given:
            value = args[index]
            if value is not None:
                sent[index] = border.texts_of(value)
                length = border.own_size(value) if size is OWN else size(self, args)
                parts.append(memory(address_of(value), length))
        for index, size in crossing.filled:
            value = args[index]
            targets.append(address_of(value))
            if border.is_struct(value):
                sent[index] = True
                parts.append(memory(targets[-1], border.own_size(value)))
            else:
                sent[index] = border.own_size(value) if size is OWN else None
        return sent, parts, targets

    def _answer(self, targets: list[int]) -> tuple[int, object]:
        """The answer to a call, its memory filled; until then, the functions that the library calls are run."""
        link = self._process.link
        while True:
            number, value, sizes = link.receive()
            if number in (RETURN, RAISED):
                for address, size in zip(targets, sizes):
                    link.fill(memory(address, size))
                return number, value
            self._run(number, value, sizes)

    def _run(self, number: int, value: tuple, sizes: list[int]) -> None:
        """Call a function of ours for the library."""
        link = self._process.link
        if number == CROSSINGS["set_poll_fn"].number:
            link.send(RETURN, int(self.interrupts.is_wanted))
            return
        fn, done = self._functions[number], ct.c_int32()
        if number == CROSSINGS["set_host_fn"].number:
            edit, ne = value
            data = (ct.c_float * (sizes[0] // 4))()
            link.fill(data)
            fn(None, edit, border.pointer(data, ct.POINTER(ct.c_float)), (ct.c_int64 * 4)(*ne), ct.byref(done))
            link.send(RETURN, done.value, [data])
            return
        if number == CROSSINGS["set_edit_fn"].number:
            done = ct.c_void_p()
        fn(None, *value, ct.byref(done))
        link.send(RETURN, done.value)
