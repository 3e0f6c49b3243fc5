"""``Prefix``: the cache of a prompt, computed once, that later prompts continue; and its files."""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from . import files
from .errors import FileError, RunError
from .program import decode

if TYPE_CHECKING:
    from .session import Context

FORMAT = "llama-interp state 1"

_SUFFIX = ".safetensors"

#: of either end of a model's file goes into its fingerprint
_SAMPLE = 1 << 20

#: what must be the same when a state is loaded, and how a message calls it
_SAME = {
    "architecture": "another model: its architecture is",
    "n_params": "another model: its number of parameters is",
    "file_size": "another model: the size of its file is",
    "sha256_of_ends": "another model of the same size: the hash of its file's first and last MiB is",
    "library": "another build of llama.cpp: its commit is",
    "kv_type": "another type of the KV cache: kv_type is",
    "flash_attn": "another way of attention: flash_attn is",
}


class Prefix:
    """The cache of a prompt that is in force; made by :meth:`interp.Model.prefix`.

    Leaving a ``with`` block, :meth:`close` and ``model.prefix(None)`` end it.

    Attributes:
        tokens: its token ids.
        n_tokens: their number.
        text: their text.
    """

    def __init__(self, context: Context, tokens: list[int], state: np.ndarray | None):
        self._context, self._state = context, state
        self.tokens, self.n_tokens = list(tokens), len(tokens)
        self.text = context.vocab.text(tokens)

    def __repr__(self) -> str:
        return f"<Prefix of {self.n_tokens} tokens, {'in force' if self.is_in_force else 'closed'}>"

    @property
    def is_in_force(self) -> bool:
        return self._context._prefix is self

    def close(self) -> None:
        """Later prompts start from nothing again. A prefix that is not in force any more may be closed again."""
        self._context._end_prefix(self)

    def __enter__(self) -> "Prefix":
        return self

    def __exit__(self, *_exc) -> None:
        self.close()

    def restore(self, handle: int) -> None:
        """Put it into an empty cache."""
        if self._state is None:
            compute(self._context, handle, self.tokens)
        else:
            write_state(self._context, handle, self._state)


def begin(context: Context, tokens: list[int]) -> Prefix:
    """Compute the cache of a prompt and put it in force.

    Raises:
        RunError: the model has no cache, or the prompt leaves no room in it.
    """
    check_room(context, tokens)
    with context._locked():
        context._prefix = None
    context._state_sizes  # measured before the cache is in use
    with context._locked() as handle:
        context._prefix = None  # another thread's
        with context._memory(handle):
            compute(context, handle, tokens)
            prefix = context._prefix = Prefix(context, tokens, read_state(context, handle, len(tokens)))
    return prefix


def check_room(context: Context, tokens: list[int]) -> None:
    if not context._can_generate:
        raise RunError(f"A model of architecture {context.arch} has no cache that a prompt could continue.")
    if len(tokens) >= context.n_ctx:
        raise RunError(
            f"The prefix has {len(tokens)} tokens and leaves no room for a prompt: the context holds {context.n_ctx}. "
            f"Load the model with n_ctx={len(tokens) + 1} or more, where its architecture allows that."
        )


def compute(context: Context, handle: int, tokens: list[int]) -> None:
    """Run a prompt for what it leaves in the cache only."""
    outputs = np.zeros(len(tokens), np.int8)
    outputs[-1] = 1
    for first in range(0, len(tokens), context._n_batch):
        part = tokens[first : first + context._n_batch]
        reason = decode(context._lib, handle, part, first, outputs[first : first + len(part)])
        if reason is not None:
            raise RunError(reason)


# // the cache as bytes


def measure(context: Context, handle: int) -> tuple[int, int]:
    """Bytes that the state of one token takes, and those of each token more."""
    sizes = []
    context._lib.memory_clear(handle)
    for position in range(2):
        reason = decode(context._lib, handle, [0], position, np.ones(1, np.int8))
        if reason is not None:
            raise RunError(reason)
        sizes.append(context._lib.state_size(handle, 0))
    context._lib.memory_clear(handle)
    return sizes[0], sizes[1] - sizes[0]


def read_state(context: Context, handle: int, n_tokens: int) -> np.ndarray | None:
    """What the cache holds; None where llama.cpp leaves out what a sliding window hides: the keys that are missing
    would shift the others, so such a prefix is computed again."""
    size = context._lib.state_size(handle, 0)
    first, more = context._state_sizes
    if size != first + (n_tokens - 1) * more:
        return None
    state = np.empty(size, np.uint8)
    if context._lib.state_get(handle, 0, state.ctypes.data, size) != size:
        reason = context._lib.reason(handle, "memory may be short")
        raise RunError(f"The cache cannot be read: {reason}.")
    return state


def write_state(context: Context, handle: int, state: np.ndarray) -> None:
    """Fill an empty cache."""
    if context._lib.state_set(handle, 0, state.ctypes.data, state.size) != state.size:
        reason = context._lib.reason(handle, "it is of another size, or memory is short")
        raise RunError(f"The cache does not take the state of the prefix: {reason}.")


# // files


def save(context: Context, path) -> Path:
    """Write the prefix in force; :meth:`interp.Model.save_state`."""
    prefix = context._prefix
    if prefix is None:
        raise RunError("No prefix is in force, so there is nothing to save: model.prefix(prompt) makes one.")
    state = prefix._state if prefix._state is not None else np.empty(0, np.uint8)
    texts = {"format": FORMAT, "tokens": json.dumps(prefix.tokens), "text": prefix.text, **identity(context)}
    return files.write_arrays(_checked(path, "write"), {"state": state}, texts)


def load(context: Context, path) -> Prefix:
    """Put a saved prefix in force; :meth:`interp.Model.load_state`."""
    with files.opened(_checked(path, "read")) as file, files.refusing(file.path):
        if file.format != FORMAT:
            raise ValueError("it holds no state that this package saved")
        for name, found in identity(context).items():
            saved = file.texts.get(name)
            if saved != found:
                raise FileError(
                    f"cannot use {file.path}: it is from {_SAME[name]} {saved}, here {found}. Load the model that it "
                    "was saved from with the same options, or compute the prefix again: model.prefix(prompt)."
                )
        tokens = context.vocab.check(json.loads(file.texts["tokens"]))
        check_room(context, tokens)
        state = file["state"]
        if not tokens or state.dtype != np.uint8 or state.ndim != 1:
            raise ValueError("it holds no cache")
    with context._locked() as handle:
        context._prefix = None
        with context._memory(handle):
            prefix = Prefix(context, tokens, np.ascontiguousarray(state) if state.size else None)
            prefix.restore(handle)
            context._prefix = prefix
    return prefix


def _checked(path, what: str) -> Path:
    path = files.as_path(path)
    if path.suffix.lower() != _SUFFIX:
        raise FileError(f"cannot {what} {path.name!r}: the name of a state must end in {_SUFFIX}")
    return path


def identity(context: Context) -> dict[str, str]:
    """What a state belongs to, under the names that stand in its file."""
    try:
        status = context.path.stat()
    except OSError as err:
        raise FileError(f"{context.path}, the model's file, cannot be read any more: {err.strerror or err}") from err
    return {
        "architecture": context.arch,
        "n_params": str(context.n_params),
        "file_size": str(status.st_size),
        "sha256_of_ends": _sha256_of_ends(context.path, status.st_size, status.st_mtime_ns),
        "library": _commit(context._lib.path),
        "kv_type": context.kv_type,
        "flash_attn": "on" if context.flash_attn else "off",
    }


@lru_cache(maxsize=16)
def _sha256_of_ends(path: Path, size: int, _mtime_ns: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        digest.update(file.read(_SAMPLE))
        file.seek(max(0, size - _SAMPLE))
        digest.update(file.read(_SAMPLE))
    return digest.hexdigest()


def _commit(library: Path) -> str:
    """The commit of llama.cpp, which ``build.py`` notes beside the library."""
    try:
        found = json.loads((library.parent / "manifest.json").read_text())["commit"]
    except (OSError, ValueError, KeyError, TypeError):
        return "unknown"
    return str(found)
