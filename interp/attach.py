"""``attach``: the hooks on a ``llama_cpp.Llama`` of llama-cpp-python that already exists."""

from __future__ import annotations

import ctypes as ct
import os
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from . import native
from .errors import LibraryError, RunError
from .load import KV_TYPES
from .model import Model
from .program import Program
from .run import Run
from .scan import MIN_BATCH

_VARIABLE = "LLAMA_CPP_LIB_PATH"


def use_with_llama_cpp() -> Path:
    """Make llama-cpp-python load the library of this package; to be called before the first ``import llama_cpp``.

    Sets ``LLAMA_CPP_LIB_PATH`` in this process, which a shell can do as well. llama-cpp-python itself is then needed
    without a library of its own: ``CMAKE_ARGS=-DLLAMA_BUILD=OFF pip install --no-cache-dir llama-cpp-python``, in the
    version whose source this package's library was built from; others read its structs wrongly.

    Returns:
        The folder that the variable names.

    Raises:
        LibraryError: there is no library yet, or llama_cpp was imported already with another one.
    """
    path = native.find_library()
    if "llama_cpp" in sys.modules:
        _check_library(sys.modules["llama_cpp"], path)
    os.environ[_VARIABLE] = str(path.parent)
    return path.parent


def attach(llm) -> "Attached":
    """Use a ``llama_cpp.Llama`` as a :class:`Model`: the same weights and context, nothing loaded twice.

    Around everything that is run here the Llama's own cache is put aside and back again, and so are the logits of its
    last token: what it generates next is, bit for bit, what it would have been. (One exception: a sliding window with
    ``swa_full=False`` that has begun to slide may be refilled in another order, which changes last bits.) While a
    stream of the Model is open, the Llama must not be used, and at no time by two threads at once.

    Args:
        llm: a ``llama_cpp.Llama``, imported after :func:`use_with_llama_cpp`.

    Returns:
        A :class:`Model`. ``detach()``, ``close()`` and leaving a ``with`` block take the hooks off and leave the Llama
        as it is; closing the Llama detaches as well.

    Raises:
        LibraryError: llama_cpp is not there, or uses another library.
        RunError: something else than a Llama, one that is closed, has a Model already, or makes embeddings.
    """
    path = native.find_library()
    cpp = sys.modules.get("llama_cpp")
    if cpp is None or not isinstance(llm, cpp.Llama):
        raise RunError(f"attach takes a llama_cpp.Llama, not {type(llm).__name__}. To load a file: interp.Model(path).")
    _check_library(cpp, path)
    if llm._ctx.ctx is None:
        raise RunError("This Llama is closed. Make a new one.")
    if llm.context_params.embeddings:
        raise RunError("This Llama was made with embedding=True. Make one without it.")
    lib = native.load()
    # our library keeps the log for messages about files; this process has someone who reads it
    cpp.llama_log_set(cpp._logger.llama_log_callback, ct.c_void_p(0))
    handle = lib.attach(llm._ctx.ctx)
    if not handle:
        reason = lib.reason()
        raise RunError(f"No Model can be attached to this Llama: {reason}. Detach the one that it has: model.detach().")
    lib.set_poll_fn(handle, lib.poll, None)
    return Attached(lib, handle, cpp, llm)


def _check_library(cpp, path: Path) -> None:
    """Whether llama_cpp runs on this library. Nothing is loaded: two libraries of one name spoil each other."""
    module = sys.modules.get("llama_cpp.llama_cpp", cpp)
    theirs = Path(str(getattr(module._lib, "_name", "")))
    try:
        is_same = theirs.samefile(path)
    except OSError:
        is_same = False
    if is_same:
        address = ct.cast(native.load()._lib.llama_decode, ct.c_void_p).value
        is_same = address == ct.cast(module._lib.llama_decode, ct.c_void_p).value
    if not is_same:
        raise LibraryError(
            f"llama_cpp was imported with another library ({theirs}). Start Python anew and call "
            f"interp.use_with_llama_cpp() before the first import of llama_cpp, or set {_VARIABLE}={path.parent}"
        )


class Attached(Model):
    """A :class:`Model` on somebody else's context; made by :func:`attach`."""

    _llm = None

    def __init__(self, lib: native.Library, handle: int, cpp, llm):
        self._cpp, self._llm = cpp, llm
        names, params = {number: name for name, number in KV_TYPES.items()}, llm.context_params
        kinds = [names.get(int(kind), str(int(kind))) for kind in (params.type_k, params.type_v)]
        self._adopt(lib, handle, Path(llm.model_path), kinds[0] if kinds[0] == kinds[1] else "/".join(kinds))
        # the Llama may be closed while we hold it: our handle has to go before the context does
        this = weakref.ref(self)
        llm._ctx._exit_stack.callback(lambda: this() is not None and this().detach())
        if llm.n_batch < MIN_BATCH or self._n_ubatch < MIN_BATCH:
            self.detach()
            raise RunError(f"The Llama takes too few tokens at once. Make it with n_batch and n_ubatch of {MIN_BATCH}.")

    def detach(self) -> None:
        """Take the hooks off the Llama, which stays as it is; the same as :meth:`close`."""
        self.close()

    def _free(self) -> None:
        handle = self._let_go()
        llm, self._llm = self._llm, None
        if handle and llm is not None and llm._ctx.ctx is not None:
            self._lib.free(handle)

    def _check_open(self) -> None:
        if self._is_foreign:
            raise RunError(self._closed)
        if not self._handle:
            raise RunError("This model is closed: it was detached, or its Llama was closed. See interp.attach(llm).")

    #: the cache is the Llama's
    _can_keep = False

    @contextmanager
    def _memory(self, handle: int, _keep: bool = False) -> Iterator[None]:
        """The Llama's cache put aside, and back again at the end."""
        state, logits = self._put_aside()
        self._lib.memory_clear(handle)
        try:
            if self._prefix is not None:
                self._restore_prefix(handle)
            yield
        finally:
            if self._handle:
                self._put_back(handle, state, logits)

    def _put_aside(self) -> tuple[np.ndarray, np.ndarray | None]:
        cpp, ctx = self._cpp, self._llm._ctx.ctx
        state = np.empty(cpp.llama_state_get_size(ctx), np.uint8)
        if cpp.llama_state_get_data(ctx, _bytes(state), state.size) != state.size:
            raise RunError("The cache of the Llama cannot be put aside; nothing was run.")
        # before its first token there are none, and asking for them is an error in its log
        row = cpp.llama_get_logits_ith(ctx, -1) if self._llm.n_tokens else None
        return state, np.ctypeslib.as_array(row, (self.n_vocab,)).copy() if row else None

    def _put_back(self, handle: int, state: np.ndarray, logits: np.ndarray | None) -> None:
        cpp, ctx = self._cpp, self._llm._ctx.ctx
        self._lib.memory_clear(handle)
        if cpp.llama_state_set_data(ctx, _bytes(state), state.size) != state.size:
            raise RunError("The cache of the Llama could not be put back. Call its reset() before you use it again.")
        if logits is not None:
            row = cpp.llama_get_logits_ith(ctx, -1)
            if row:
                np.ctypeslib.as_array(row, (self.n_vocab,))[:] = logits

    def _as_run(self, program: Program, tokens: list[int], logits, handle: int, prompt=None) -> Run:
        run = super()._as_run(program, tokens, logits, handle, prompt)
        if not self._llm.context_params.swa_full:
            n_key = program.offset + len(tokens)
            for captured in program.captures:
                shape = run[str(captured.site.key)].shape
                if captured.site.is_attention and shape[1] and shape[2] != n_key:
                    raise RunError(
                        f"{captured.site.key} cannot be read: the Llama's cache keeps only {shape[2]} of the {n_key} "
                        "keys of this layer. Make the Llama with swa_full=True."
                    )
        return run


def _bytes(array: np.ndarray):
    return array.ctypes.data_as(ct.POINTER(ct.c_uint8))
