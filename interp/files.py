"""Files: written whole or not at all, and arrays with their description in ``.safetensors`` or ``.npz``.

Every file of arrays that this package writes holds named arrays and a description of texts: as separate entries of
a safetensors file's metadata, and as one JSON text named ``metadata`` in an ``.npz``. Checksums over both tell a
damaged file from a whole one.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import json
import os
import secrets
import shutil
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path

import numpy as np

from .errors import FileError, InterpError

#: the first choice first
SUFFIXES = (".safetensors", ".npz")

_ARRAY_SUMS, _TEXT_SUM = "crc32", "crc32_of_metadata"

#: seconds without a write after which an unfinished file is nobody's
_ABANDONED = 3600

#: how files begin, for messages about a wrong suffix
_KINDS = {b"PK\x03\x04": "an .npz file", b"\x93NUMPY": "a .npy file", b"GGUF": "a GGUF file", b"\x89PNG": "a picture"}

_NEXT_STEPS = {
    errno.EACCES: "choose a folder that you may write to",
    errno.EPERM: "choose a folder that you may write to",
    errno.EROFS: "choose a folder that can be written to",
    errno.ENOSPC: "free some space, or choose another disk",
    errno.ENAMETOOLONG: "choose a shorter name",
}


def as_path(path) -> Path:
    """A path from what a user gives.

    Raises:
        FileError: it is none.
    """
    if not isinstance(path, (str, os.PathLike)) or not isinstance(os.fspath(path), str) or "\0" in os.fspath(path):
        raise FileError(f"{path!r} is no path; give one as a text or a pathlib.Path")
    return Path(path)


# // writing


@contextlib.contextmanager
def written(path: str | os.PathLike, suffixes: Sequence[str], *, make_folders: bool = False) -> Iterator[Path]:
    """Yields a temporary path; a normal exit renames it to ``path``, any other leaves nothing.

    It lies in a folder of its own beside ``path``, with whatever a library that writes it puts there. A process that is
    killed leaves that folder; writing the same file an hour later removes it.

    Args:
        path: the file to write. One that is there already is replaced.
        suffixes: what its name may end in.
        make_folders: create the folders above it; otherwise a missing one is an error, so that a mistyped path is
            found at once.

    Raises:
        FileError: another suffix, or the place cannot be written.
    """
    path = as_path(path)
    if path.suffix.lower() not in suffixes:
        raise FileError(f"cannot write {path.name!r}: the name must end in {' or '.join(suffixes)}")
    folder = None
    try:
        if make_folders:
            path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise FileError(f"cannot write {path}: a folder has that name; choose another")
        if not path.parent.is_dir():
            what = "is a file, not a folder; choose" if path.parent.exists() else "does not exist; create it, or choose"
            raise FileError(f"cannot write {path}: {path.parent} {what} another place")
        _sweep(path)
        folder = path.with_name(f".{path.name[:40]}.{secrets.token_hex(4)}.unfinished")
        folder.mkdir()
        temporary = folder / path.name
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        # safetensors makes files that only their owner may read; ours are for anyone the umask allows
        temporary.chmod(mode)
        os.replace(temporary, path)
    except FileError:
        raise
    except OSError as err:
        step = _NEXT_STEPS.get(err.errno, "choose another place")
        raise FileError(f"cannot write {path}: {err.strerror or err}; {step}") from err
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _sweep(path: Path) -> None:
    """Remove what killed processes left of a file; what was touched of late may be another process's at work."""
    for folder in path.parent.glob(f".{glob.escape(path.name[:40])}.{'[0-9a-f]' * 8}.unfinished"):
        with contextlib.suppress(OSError):
            touched = max(part.stat().st_mtime for part in (folder, *folder.iterdir()))
            if time.time() - touched > _ABANDONED:
                shutil.rmtree(folder, ignore_errors=True)


def write_arrays(path: str | os.PathLike, arrays: Mapping[str, np.ndarray], texts: Mapping[str, str]) -> Path:
    """Write arrays and what describes them.

    Args:
        path: a name that ends in ``.safetensors`` or ``.npz``.
        arrays: numbers of any shape, under the names that a reader of the file sees.
        texts: the description, ``format`` among it.

    Raises:
        FileError: the place cannot be written.
    """
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    texts = {**texts, "written_by": f"llama-interp {_version()}"}
    texts[_ARRAY_SUMS] = json.dumps({name: _sum_of_array(array) for name, array in arrays.items()})
    texts[_TEXT_SUM] = str(_sum_of_texts(texts))
    path = as_path(path)
    with written(path, SUFFIXES) as temporary:
        if path.suffix.lower() == ".npz":
            with temporary.open("wb") as file:
                np.savez(file, metadata=np.array(json.dumps(texts, indent=1)), **arrays)
        else:
            from safetensors import SafetensorError
            from safetensors.numpy import save_file

            try:
                save_file(arrays, str(temporary), metadata=texts)
            except SafetensorError as err:
                raise FileError(f"cannot write {path}: {err}") from err
    return path


def _version() -> str:
    try:
        return metadata.version("llama-interp")
    except metadata.PackageNotFoundError:
        return "(not installed)"


def _sum_of_array(array: np.ndarray) -> int:
    head = f"{array.dtype.str} {array.shape}".encode()
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8), zlib.crc32(head))


def _sum_of_texts(texts: Mapping[str, str]) -> int:
    return zlib.crc32(json.dumps(sorted((k, v) for k, v in texts.items() if k != _TEXT_SUM)).encode())


# // reading


class ArrayFile:
    """An open file of arrays, made by :func:`opened`; each array is read when it is asked for.

    Attributes:
        path: the file.
        names: the arrays' names.
        texts: the description; empty where the file has none.
    """

    def __init__(self, path: Path, names: Sequence[str], texts: dict[str, str], read):
        self.path, self.names, self.texts, self._read = path, list(names), texts, read
        # files of other software have no sums
        self._sums = None
        if self.format is not None:
            if self.texts.get(_TEXT_SUM) != str(_sum_of_texts(self.texts)):
                raise ValueError("its description was changed")
            self._sums = json.loads(self.texts[_ARRAY_SUMS])
            if set(self._sums) != set(self.names):
                raise ValueError("it does not hold the arrays that were saved")

    @property
    def format(self) -> str | None:
        """What this package wrote into the file; None for a file of other software."""
        found = self.texts.get("format", "")
        return found if found.startswith("llama-interp ") else None

    def __getitem__(self, name: str) -> np.ndarray:
        """
        Raises:
            FileError: there is no such array, or it is damaged.
        """
        with refusing(self.path):
            if name not in self.names:
                raise ValueError(f"it holds no {name!r}")
            array = self._read(name)
            if not isinstance(array, np.ndarray):  # numpy gives the bytes of what is no array of its own
                raise ValueError(f"{name!r} is no array")
            if self._sums is not None and self._sums.get(name) != _sum_of_array(array):
                raise ValueError(f"{name!r} was changed since it was saved")
            return array


@contextlib.contextmanager
def opened(path: str | os.PathLike) -> Iterator[ArrayFile]:
    """A file of arrays, open for reading, of this package or of any other software.

    Raises:
        FileError: missing, empty, cut off, damaged, or another kind of file.
    """
    path = checked(path)
    if path.suffix.lower() not in SUFFIXES:
        raise FileError(f"cannot read {path}: the name must end in {' or '.join(SUFFIXES)}")
    with contextlib.ExitStack() as stack:
        with refusing(path):
            file = (_open_npz if path.suffix.lower() == ".npz" else _open_safetensors)(path, stack)
        yield file


def _open_safetensors(path: Path, stack: contextlib.ExitStack) -> ArrayFile:
    from safetensors import safe_open

    file = stack.enter_context(safe_open(str(path), framework="numpy"))
    return ArrayFile(path, file.keys(), dict(file.metadata() or {}), file.get_tensor)


def _open_npz(path: Path, stack: contextlib.ExitStack) -> ArrayFile:
    # numpy leaves a file open that it opened itself and could not read
    file = np.load(stack.enter_context(path.open("rb")), allow_pickle=False)
    if not isinstance(file, np.lib.npyio.NpzFile):
        raise ValueError("it is no archive of arrays")
    stack.enter_context(file)
    texts = {}
    if "metadata" in file.files and file["metadata"].dtype.kind == "U":
        texts = {str(key): str(text) for key, text in json.loads(file["metadata"].item()).items()}
    return ArrayFile(path, [name for name in file.files if not (texts and name == "metadata")], texts, file.__getitem__)


def checked(path: str | os.PathLike) -> Path:
    """A path at which a file with something in it can be read.

    Raises:
        FileError: there is none.
    """
    path = as_path(path)
    try:
        if path.is_dir():
            raise FileError(f"cannot read {path}: it is a folder; give a file in it")
        with path.open("rb") as file:
            if not file.read(1):
                raise FileError(f"cannot read {path}: it is empty; save it again")
    except FileNotFoundError as err:
        raise FileError(f"cannot read {path}: there is no such file; check the path, from {Path.cwd()}") from err
    except FileError:
        raise
    except OSError as err:
        raise FileError(f"cannot read {path}: {err.strerror or err}; check its permissions") from err
    return path


@contextlib.contextmanager
def refusing(path: Path) -> Iterator[None]:
    """Whatever a parser meets in a foreign or damaged file becomes a :class:`FileError`."""
    try:
        yield
    except InterpError:
        raise
    # the parsers were not made for damaged files and raise anything, from SyntaxError to RuntimeError
    except Exception as err:
        raise FileError(
            f"cannot read {path}: {err or type(err).__name__}. {_kind(path)}Check that the file was copied whole, "
            "or save it again."
        ) from err


def _kind(path: Path) -> str:
    """What a file is whose suffix says something else."""
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError:
        return ""
    kind = next((kind for magic, kind in _KINDS.items() if head.startswith(magic)), None)
    if kind is None and head[8:10] == b'{"':
        kind = "a .safetensors file"
    return f"It begins like {kind}. " if kind and path.suffix.lower() not in kind else ""
