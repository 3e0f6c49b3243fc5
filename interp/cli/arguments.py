"""What the flags take: heads, layers, positions, files to read and files to write.

Only the spelling is checked here, and whether files can be read and written, so that a mistyped path is found before
a model is loaded. What needs the model is checked in `edits`.
"""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from .. import files
from ..errors import FileError

_NUMBER = re.compile(r"[+-]?\d{1,9}", re.ASCII)
_RANGE = re.compile(r"(\d{1,9})-(\d{1,9})", re.ASCII)
_HEAD = re.compile(r"([+-]?\d{1,9})\.([+-]?\d{1,9})", re.ASCII)
_RECEIVER = re.compile(rf"{_HEAD.pattern}:([qkv])", re.ASCII)

#: a range longer than this is a slip of the finger; no model has as many layers, and no prompt as many tokens
_LONGEST = 1 << 20


def _numbers(text: str) -> tuple[int, ...] | None:
    """`3`, `-1`, `2,5` and `0-7` in any mixture; None: something else."""
    found: list[int] = []
    for part in text.split(","):
        part = part.strip()
        span = _RANGE.fullmatch(part)
        if span:
            first, last = int(span[1]), int(span[2])
            if not first <= last < first + _LONGEST:
                return None
            found += range(first, last + 1)
        elif _NUMBER.fullmatch(part):
            found.append(int(part))
        else:
            return None
    return tuple(found)


class Layers(click.ParamType):
    """Layers: `5`, `3,7`, `0-11`, `-1` or `all`; as a tuple, None for all."""

    name = "layers"

    def convert(self, value, param, ctx):
        if value is None or isinstance(value, tuple):
            return value
        if value == "all":
            return None
        found = _numbers(value)
        if found is None:
            self.fail(f"{value!r} names no layers: write 5, 3,7, 0-11, -1 or all", param, ctx)
        return found


class Positions(click.ParamType):
    """Positions: `5`, `3,7`, `0-4`, `-1`, `last`, `generated` or `all`; as `interp.at` takes them.

    Where nothing is generated, with `generated` False, they are a tuple of integers, or None for all.
    """

    name = "positions"

    def __init__(self, generated: bool = True):
        self._generated = generated

    def convert(self, value, param, ctx):
        if value is None or isinstance(value, tuple):
            return value
        if value in ("last", "generated") and self._generated:
            return value
        if value == "generated":
            self.fail("nothing is generated here", param, ctx)
        if value == "all":
            return None
        found = (-1,) if value == "last" else _numbers(value)
        if found is None:
            known = "5, 3,7, 0-4, -1, last, generated or all" if self._generated else "5, 3,7, 0-4, -1, last or all"
            self.fail(f"{value!r} names no positions: write {known}", param, ctx)
        return found


class Keys(click.ParamType):
    """A set of positions with a name: `subject=1-3`; of `1-3` alone, that is its name."""

    name = "keys"

    def convert(self, value, param, ctx):
        if not isinstance(value, str):
            return value
        name, equals, positions = value.rpartition("=")
        name = (name if equals else positions).strip()
        if not name:
            self.fail(f"{value!r} has no name: write NAME=POS, such as subject=1-3, or POS alone", param, ctx)
        return name, Positions(generated=False).convert(positions.strip(), param, ctx)


@dataclass(frozen=True)
class Head:
    """A head as it was written: `layer` and `head`, or, with `layer` None, the number of the head in the model."""

    layer: int | None
    head: int

    def __str__(self) -> str:
        return str(self.head) if self.layer is None else f"{self.layer}.{self.head}"


class Heads(click.ParamType):
    """Heads: `5.1,6.3`, or, if `numbered`, also `46`, which is layer * n_head + head."""

    name = "heads"

    def __init__(self, numbered: bool = True):
        self._numbered = numbered

    def convert(self, value, param, ctx):
        if not isinstance(value, str):
            return value
        found = []
        for part in value.split(","):
            part = part.strip()
            pair = _HEAD.fullmatch(part)
            if pair:
                found.append(Head(int(pair[1]), int(pair[2])))
            elif self._numbered and _NUMBER.fullmatch(part) and int(part) >= 0:
                found.append(Head(None, int(part)))
            else:
                also = ", or 46 for layer * n_head + head" if self._numbered else ""
                self.fail(f"{part!r} is no head: write LAYER.HEAD, such as 5.1{also}", param, ctx)
        return tuple(found)


class Receivers(click.ParamType):
    """Where paths end: `5.1:q,6.3:v` as triples of layer, head and letter, or `logits`."""

    name = "receivers"

    def convert(self, value, param, ctx):
        if not isinstance(value, str) or value == "logits":
            return value
        found = []
        for part in value.split(","):
            match = _RECEIVER.fullmatch(part.strip())
            if match is None:
                known = "LAYER.HEAD:q, :k or :v, such as 5.1:q, or logits"
                self.fail(f"{part!r} receives nothing: write {known}", param, ctx)
            found.append((int(match[1]), int(match[2]), match[3]))
        return found


class LayersOrHeads(click.ParamType):
    """Layers, or heads of layers as `5.1,5.3`."""

    name = "layers"

    def convert(self, value, param, ctx):
        if isinstance(value, str) and "." in value:
            return Heads(numbered=False).convert(value, param, ctx)
        return Layers().convert(value, param, ctx)


class Position(click.ParamType):
    """One position; negative ones count from the end."""

    name = "position"

    def convert(self, value, param, ctx):
        if isinstance(value, int):
            return value
        if not _NUMBER.fullmatch(value):
            self.fail(f"{value!r} is no position: give an integer; -1 is the last", param, ctx)
        return int(value)


class Rows(click.ParamType):
    """Positions that rows come from or go to: `5`, `3,7`, `0-4`, `-1` or `all`; as a tuple, None for all."""

    name = "positions"

    def convert(self, value, param, ctx):
        if value is None or isinstance(value, tuple):
            return value
        if value == "all":
            return None
        found = _numbers(value)
        if found is None:
            self.fail(f"{value!r} is no position: give an integer, -1 for the last, 3,7, 0-4 or all", param, ctx)
        return found


class Integer(click.ParamType):
    """A layer or a head by its number."""

    name = "integer"

    def convert(self, value, param, ctx):
        if isinstance(value, int):
            return value
        if not _NUMBER.fullmatch(value):
            self.fail(f"{value!r} is no integer", param, ctx)
        return int(value)


class Count(click.ParamType):
    """An integer of at least `least`, and of at most `most`."""

    name = "count"

    def __init__(self, least: int = 0, most: int = 10**9 - 1):
        self._least, self._most = least, most

    def convert(self, value, param, ctx):
        if isinstance(value, int):
            return value
        if not _NUMBER.fullmatch(value) or not self._least <= int(value) <= self._most:
            most = "" if self._most > 10**8 else f" and at most {self._most}"
            self.fail(f"{value!r}: give an integer of at least {self._least}{most}", param, ctx)
        return int(value)


class Number(click.ParamType):
    """A finite number; infinities and NaN would only show up later, as logits that are not finite."""

    name = "number"

    def convert(self, value, param, ctx):
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            self.fail(f"{value!r} is no number", param, ctx)
        return number


class Shape(click.ParamType):
    """The shape of an array without a header: `10,576`; one length may be -1."""

    name = "shape"

    def convert(self, value, param, ctx):
        if not isinstance(value, str):
            return value
        parts = [part.strip() for part in value.split(",")]
        if not all(_NUMBER.fullmatch(part) for part in parts):
            self.fail(f"{value!r} is no shape: write N,M, where one length may be -1", param, ctx)
        return tuple(map(int, parts))


class Source(click.ParamType):
    """A file to read. That it exists and holds something is checked at once."""

    name = "file"

    def convert(self, value, param, ctx):
        return value if isinstance(value, Path) else files.checked(value)


class Output(click.ParamType):
    """A file to write: its suffix is one of some, and its folder exists and can be written to."""

    name = "file"

    def __init__(self, *suffixes: str):
        self.suffixes: Sequence[str] = suffixes

    def convert(self, value, param, ctx):
        if isinstance(value, Path):
            return value
        path = files.as_path(value)
        if path.suffix.lower() not in self.suffixes:
            self.fail(f"{value!r} must end in {' or '.join(self.suffixes)}", param, ctx)
        check_place(path)
        return path


class Folder(click.ParamType):
    """A folder to write into; it is made where only its parent exists."""

    name = "folder"

    def convert(self, value, param, ctx):
        if isinstance(value, Path):
            return value
        path = files.as_path(value)
        if path.exists() and not path.is_dir():
            raise FileError(f"cannot write into {path}: it is a file, not a folder; choose another place")
        check_place(path / "x" if path.is_dir() else path)
        return path


def check_place(path: Path) -> None:
    """Whether a file can be made at a path.

    Raises:
        FileError: it cannot, and why.
    """
    folder = path.parent
    try:
        if path.is_dir():
            raise FileError(f"cannot write {path}: a folder has that name; choose another")
        if not folder.is_dir():
            what = "is a file, not a folder; choose" if folder.exists() else "does not exist; create it, or choose"
            raise FileError(f"cannot write {path}: {folder} {what} another place")
        # Permissions say too little: for root, for read-only disks, for /proc.
        with tempfile.TemporaryFile(dir=folder):
            pass
    except FileError:
        raise
    except OSError as err:
        raise FileError(f"cannot write {path}: {folder} cannot be written to ({err.strerror}); choose another") from err
