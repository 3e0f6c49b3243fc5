"""``Context``: one loaded model and its cache: one run at a time, a program installed, tokens decoded, logits read."""

from __future__ import annotations

import contextlib
import ctypes as ct
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import numpy as np

from . import forks, header, native, state
from .errors import RunError, SiteError
from .inspect import Graph
from .program import Batch, Program, allocate, decode
from .remote import Servers
from .run import Run
from .scan import scan
from .sites import Key, SiteTable
from .trace import END
from .vocab import Vocab

#: of a batch on a recurrent memory: each has four times the room of the one before
_TRIES = 5


class Context:
    """What :class:`interp.Model` is made of: everything that happens between a prompt and a :class:`Run`."""

    _handle: int | None = None

    #: whether what a run has put into the cache may stay there until the next one
    _can_keep = True

    #: what is said to whoever uses it then
    _closed = "This model is closed."

    #: this is a fork of the process that loaded it
    _is_foreign = False

    def _adopt(
        self, lib: native.Library, handle: int, path: Path, kv_type: str, n_ctx: int | None = None,
        servers: Servers | None = None,
    ) -> None:  # fmt: skip
        """Take a handle of the library over and read from it what is to be known of the model."""
        self._lib = lib if servers is None else servers.guard(lib)
        for connection in servers.connections if servers else ():
            connection.users.add(self)
        self._lock = threading.Lock()
        self._owner: int | None = None
        self._is_paused = False
        self._stream: weakref.ref | None = None
        self._prefix: state.Prefix | None = None
        self._graph_functions: list[Callable[[Graph], None]] = []
        #: of each thread that wants the graphs of its own runs
        self._watching = threading.local()
        #: tells whoever left something in the cache whether it is still there
        self._n_rewinds = 0
        #: what the first layer of a partial run gave: whether its logits are those of the whole run
        self._exact_starts: dict[int, bool] = {}

        info = header.Info()
        lib.get_info(handle, ct.byref(info))
        self.path, self.kv_type = path, kv_type
        self.n_ctx = info.n_ctx if n_ctx is None else min(n_ctx, info.n_ctx)
        self.n_layer, self.n_head, self.n_head_kv = info.n_layer, info.n_head, info.n_head_kv
        self.n_embd, self.n_vocab = info.n_embd, info.n_vocab
        self.n_params, self.flash_attn, self.n_threads = info.n_params, bool(info.flash_attn), info.n_threads
        self._n_bytes = info.n_bytes
        self._n_batch, self._n_ubatch, self._n_seq_max = info.n_batch, info.n_ubatch, info.n_seq_max
        self._is_recurrent = bool(info.is_recurrent)
        self._can_generate = bool(info.has_memory) and not info.has_encoder
        self.vocab = Vocab(lib, handle, info)
        self._handle = handle
        forks.own(self)
        self.arch = self._meta("general.architecture")
        self.name = path.stem  # what the user knows it by; general.name is often a training label

    # lifetime

    def close(self) -> None:
        """Free the model's memory; every later call is a :class:`RunError`. An open stream ends.

        Raises:
            RunError: called from an edit or from ``on_text``.
        """
        if not self._handle:
            return
        if self._owner == threading.get_ident() and self._is_paused and self._stream is not None and self._stream():
            self._stream().close()
        if self._owner == threading.get_ident():
            raise RunError("An edit, and what on_text calls, cannot close the model that they are part of.")
        with self._lock:
            self._free()

    def _free(self) -> None:
        handle = self._let_go()
        if handle:
            self._lib.free(handle)
            # with its last open model a connection to an RPC server ends, and another program's turn comes
            self._lib = getattr(self._lib, "plain", self._lib)

    def _bury(self, reason: str) -> bool:
        """Free a model whose RPC server went away; False: it is at work."""
        if not self._lock.acquire(timeout=1):
            return False
        try:
            self._closed = f"This model is closed: {reason}. Load it again."
            self._free()
        finally:
            self._lock.release()
        return True

    def _let_go(self) -> int | None:
        """The handle, which nothing here uses any more."""
        handle, self._handle = self._handle, None
        if handle:
            self.vocab.lease.end(self._closed)
        return handle

    def _disown(self) -> None:
        """In a fork: the model is the parent's, and a thread that is not here may have been in the middle of a run."""
        self._is_foreign, self._closed = True, f"This model {forks.REASON}"
        self._lock, self._owner, self._handle = threading.Lock(), None, None
        self.vocab.lease.forget(self._closed)

    def __del__(self):
        # nothing can run: a run or a stream would hold the model
        self._free()

    def _check_open(self) -> None:
        if not self._handle:
            raise RunError(self._closed)

    @contextmanager
    def _locked(self) -> Iterator[int]:
        """One run at a time: threads wait for each other, an edit that starts a run is refused."""
        if self._owner == threading.get_ident():
            if self._is_paused:
                raise RunError(
                    "A stream of this model is still open: read it to its end, or close it (stream.close(), or "
                    "with model.stream(…) as stream), before the model runs anything else. on_text cannot run the "
                    "model either."
                )
            raise RunError("An edit cannot run the model that it is part of. Compute what it needs before the run.")
        with self._lock:
            self._check_open()
            self._owner = threading.get_ident()
            try:
                yield self._handle
            finally:
                self._owner = None

    # what is known of the model

    def _meta(self, key: str) -> str:
        """A value of the GGUF's header as a text; empty where there is none."""
        room = 256
        while True:
            buf = ct.create_string_buffer(room)
            with self.vocab.lease.used() as handle:
                n = self._lib.meta(handle, key.encode(), buf, room)
            if n < room:
                return buf.value.decode(errors="replace") if n >= 0 else ""
            room = n + 1

    @cached_property
    def _table(self) -> SiteTable:
        with self._locked() as handle:
            return SiteTable(scan(self._lib, handle, self.n_embd, self.n_vocab), self.arch, self.n_layer, self.n_embd)

    def _residual(self, layer) -> Key:
        return self._table.find("l_out", as_layer(layer))[0].key

    # the prompt

    @property
    def n_prefix(self) -> int:
        """Tokens of the prefix in force, which every prompt continues; 0 without one."""
        return self._prefix.n_tokens if self._prefix is not None else 0

    def _prompt(self, prompt, n_prefix: int | None = None) -> list[int]:
        """The tokens of a prompt, which continues a prefix.

        Args:
            n_prefix: tokens of the prefix; None: of the one in force. Whoever makes a program of the prompt gives both
                the same number: another thread may end the prefix between the two.
        """
        self._check_open()
        n_prefix = self.n_prefix if n_prefix is None else n_prefix
        is_text = isinstance(prompt, str)
        tokens = self.vocab.tokens(prompt, special=not n_prefix) if is_text else self.vocab.check(prompt)
        self._check_length(tokens, n_prefix)
        return tokens

    def _check_length(self, tokens: list[int], n_prefix: int) -> None:
        if not tokens:
            raise RunError("The prompt is empty: give a text or at least one token.")
        total = n_prefix + len(tokens)
        if total > self.n_ctx:
            after = f" after a prefix of {n_prefix}" if n_prefix else ""
            raise RunError(
                f"The prompt has {len(tokens)} tokens{after}, but the context holds {self.n_ctx}. "
                f"Load the model with n_ctx={total} or more, where its architecture allows that."
            )

    def _program(
        self, captures, edits, n_prompt: int, first_layer: int = 0, last_layer: int | None = None,
        n_prefix: int | None = None,
    ) -> Program:  # fmt: skip
        offset = self.n_prefix if n_prefix is None else n_prefix
        return Program(self._table, captures, edits, n_prompt, first_layer, last_layer, offset=offset)

    # the cache

    def _end_prefix(self, prefix: state.Prefix | None = None) -> None:
        """No prefix is in force, once what runs in another thread is over.

        Args:
            prefix: only this one; None: any.
        """
        with contextlib.nullcontext() if self._owner == threading.get_ident() else self._lock:
            if prefix in (None, self._prefix):
                self._prefix = None

    @contextmanager
    def _memory(self, handle: int, keep: bool = False) -> Iterator[None]:
        """The cache as a run finds it, holding the prefix or nothing, and the same again at the end.

        ``keep``: what went well stays there, until the next run.
        """
        self._rewind(handle)
        try:
            yield
        except BaseException:
            keep = False
            raise
        finally:
            if self._handle and not keep:
                self._rewind(handle)

    def _rewind(self, handle: int) -> None:
        self._n_rewinds += 1
        if self._lib.memory_rewind(handle, self.n_prefix) == 1:
            self._restore_prefix(handle)

    @cached_property
    def _state_sizes(self) -> tuple[int, int]:
        with self._locked() as handle, self._memory(handle):
            return state.measure(self, handle)

    def _restore_prefix(self, handle: int) -> None:
        try:
            self._prefix.restore(handle)
        except BaseException:
            # what the cache holds now is unknown: better no prefix than a wrong one
            self._prefix = None
            self._lib.memory_clear(handle)
            raise

    # a run

    @contextmanager
    def _session(
        self, program: Program, stop: Key | None = None, start: tuple[Key, np.ndarray] | None = None,
        keep: bool = False,
    ) -> Iterator[int]:  # fmt: skip
        """The program installed and the cache holding the prefix only; both as before at the end, if not ``keep``."""
        with self._locked() as handle:
            if program.offset != self.n_prefix:
                raise RunError("The prefix was changed while this run waited for another one. Run it again.")
            with self._memory(handle, keep):
                callbacks = self._install(program, handle)
                try:
                    if stop is not None:
                        self._lib.stop_set(handle, stop.name.encode(), stop.layer, stop.occurrence)
                    if start is not None:
                        key, rows = start
                        name = key.name.encode()
                        self._lib.start_set(handle, name, key.layer, key.occurrence, _floats(rows), None, None, len(rows))
                    yield handle
                finally:
                    # a stream may be collected after the model that it belongs to
                    if self._handle:
                        self._lib.program_clear(handle)
                    del callbacks

    def _install(self, program: Program, handle: int) -> tuple[Callable, ...]:
        """Hand a program to the library, and its graphs to whoever asked for them; see :meth:`Program.install`."""
        callbacks = program.install(self._lib, handle)
        functions = getattr(self._watching, "functions", self._graph_functions)
        if functions:
            callbacks += (program.show_graphs(self._lib, handle, functions),)
        return callbacks

    def _decode(
        self,
        program: Program,
        handle: int,
        tokens: list[int],
        first: int,
        outputs: np.ndarray,
        logits: str | None = None,
    ) -> np.ndarray | None:
        """Run tokens from position ``first`` on, counted from the end of the prefix.

        Returns:
            Logits of ``"all"`` of them or of the ``"last"``; None reads none.
        """
        rows = []
        for begin in range(0, len(tokens), self._n_batch):
            part = tokens[begin : begin + self._n_batch]
            program.check(self._decode_part(program, handle, part, first + begin, outputs[begin : begin + len(part)]))
            if logits == "all":
                rows.append(self._logits(handle, len(part)))
        if logits == "last":
            return self._logits(handle, 1)
        return rows[0] if len(rows) == 1 else np.concatenate(rows) if rows else None

    def _decode_part(self, program: Program, handle: int, tokens: list[int], first: int, outputs) -> str | None:
        """What one batch takes; None, or the reason why not."""
        for _ in range(_TRIES):
            reason = decode(self._lib, handle, tokens, program.offset + first, outputs)
            if reason is None or program.exception is not None or first or not (program.offset and self._is_recurrent):
                break
            # a graph that proves too small is built again with more room, but what it left in a recurrent memory cannot
            # be taken back: the library gives up where it would run the batch a second time
            self._lib.capture_clear(handle)
            self._lib.memory_clear(handle)
            self._prefix.restore(handle)
        return reason

    def _logits(self, handle: int, rows: int) -> np.ndarray:
        """The last rows of logits of the last decode: of the vocabulary, or of the tokens that were chosen."""
        shape = rows, self._lib.logits_width(handle)
        out = allocate(shape, np.float32, f"the logits of {rows} tokens", 'run fewer, or with logits="last"')
        self._read_logits(handle, out.ctypes.data, rows)
        return out

    def _read_logits(self, handle: int, address: int, rows: int) -> None:
        if self._lib.logits_read(handle, address, -rows, rows) != 0:
            raise RunError(self._lib.reason(handle, "no logits"))

    def _stepper(self, program: Program, handle: int) -> Callable[[int, int, int], None]:
        """What runs one token at a position and writes its logits to an address: :meth:`_decode` for a generation."""
        batch = Batch(1)
        batch.output[0] = 1

        def step(token: int, position: int, address: int) -> None:
            batch.token[0], batch.pos[0] = token, program.offset + position
            program.check(batch.run(self._lib, handle))
            self._read_logits(handle, address, 1)

        return step

    @staticmethod
    def _outputs(program: Program, n: int, logits: str | None) -> np.ndarray:
        """Which tokens are outputs: the last layer keeps only their rows, and whoever looks inside wants all."""
        outputs = np.full(n, logits == "all" or not program.is_empty, np.int8)
        outputs[-1] = 1
        return outputs

    def _choose_logits(self, program: Program, handle: int, outputs: np.ndarray, first: int | None) -> None:
        """Spare the head where all rows of the last layer are kept but only some logits are wanted: those from
        position ``first`` of the prompt on, or none."""
        named = self._table.has("result_norm", -1)
        if program.is_within_layers and named and (first is None or outputs[:-1].any()) and outputs.all():
            ranges = [] if first is None else [header.Range(program.offset + first, END)]
            self._lib.logits_set(handle, (header.Range * len(ranges))(*ranges), len(ranges))

    def _as_run(self, program: Program, tokens: list[int], logits, handle: int, prompt=None) -> Run:
        arrays = {captured.site.key: array for captured, array in program.read(self._lib, handle)}
        labels = {key: self._table.labels(key) for key in arrays}
        parts = {captured.site.key: captured.part(len(tokens)) for captured in program.captures}
        info = {"model": self.name, "arch": self.arch, "n_layer": self.n_layer, "n_embd": self.n_embd}
        if isinstance(prompt, str):
            info["prompt"] = prompt
        if program.offset:
            info["n_prefix"] = program.offset
        return Run(tokens, self.vocab.pieces(tokens), logits, arrays, labels, self, info, parts)


def as_layer(layer) -> int:
    """
    Raises:
        SiteError: it is no integer.
    """
    if isinstance(layer, bool) or not hasattr(layer, "__index__"):
        raise SiteError(f"{layer!r} is no layer: give an integer.")
    return int(layer)


def _floats(array: np.ndarray):
    return array.ctypes.data_as(ct.POINTER(ct.c_float))
