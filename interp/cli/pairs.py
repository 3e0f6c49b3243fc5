"""Files of prompt pairs: `.jsonl`, an object in each line, or `.csv` with a header."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import click

from .. import files
from ..errors import FileError

_JSON, _CSV = (".jsonl", ".ndjson"), (".csv",)


@dataclass(frozen=True)
class Pair:
    """Two prompts, and what is measured of them: the probability of `answer`, or its logit minus that of `instead`."""

    clean: str
    corrupted: str
    answer: str
    instead: str | None = None

    def metric(self):
        import interp

        if self.instead is None:
            return interp.probability(self.answer)
        return interp.logit_diff(self.answer, self.instead)


_NAMES = [field.name for field in fields(Pair)]
_NEEDED = _NAMES[:3]


class Pairs(click.ParamType):
    """A file of pairs, as a list of `Pair`. It is read at once, so that a mistake is found before a model is loaded."""

    name = "pairs"

    def convert(self, value, param, ctx):
        if isinstance(value, list):
            return value
        path = files.as_path(value)
        if path.suffix.lower() not in (*_JSON, *_CSV):
            self.fail(f"{value!r} must end in {', '.join((*_JSON, *_CSV))}", param, ctx)
        return read_pairs(path)


def read_pairs(path: Path) -> list[Pair]:
    """The pairs of a file, at least one.

    Raises:
        FileError: it cannot be read, or a line is not as it should be; the message says which.
    """
    files.checked(path)
    read = _csv if path.suffix.lower() in _CSV else _json
    pairs: list[Pair] = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for line, row in read(path, file):
                pair = _pair(path, line, row)
                if pairs and (pair.instead is None) != (pairs[0].instead is None):
                    some = "only some pairs have instead; a probability and a difference of logits have no mean"
                    raise _wrong(path, line, some)
                pairs.append(pair)
    except UnicodeDecodeError as err:
        raise FileError(f"cannot read {path}: it is no text in UTF-8; save it as one") from err
    if not pairs:
        raise FileError(f"cannot read {path}: it holds no pair; write {_example()} in each line")
    return pairs


def _json(path: Path, file) -> Iterator[tuple[int, dict]]:
    for line, text in enumerate(file, 1):
        if text.strip():
            try:
                yield line, json.loads(text)
            except (ValueError, RecursionError) as err:
                raise _wrong(path, line, f"it is no JSON; write one object, {_example()}") from err


def _csv(path: Path, file) -> Iterator[tuple[int, dict]]:
    rows = csv.reader(file, strict=True)
    header: list[str] | None = None
    try:
        for row in rows:
            if not row:
                continue
            if header is None:
                header = row
                if len(set(header)) < len(header):
                    raise _wrong(path, rows.line_num, f"a column is named twice; name them {', '.join(_NAMES)}")
                _check_names(path, rows.line_num, header)
                continue
            if len(row) != len(header):
                quoted = "; a text with a comma stands in quotes"
                raise _wrong(path, rows.line_num, f"{len(row)} fields, but the header has {len(header)}{quoted}")
            # an empty field of a table is one that is not there
            yield rows.line_num, {name: text for name, text in zip(header, row) if text or name != "instead"}
    except csv.Error as err:
        raise _wrong(path, rows.line_num, f"it is no CSV ({err})") from err


def _pair(path: Path, line: int, row) -> Pair:
    if not isinstance(row, dict):
        raise _wrong(path, line, f"it is no object; write {_example()}")
    row = {name: value for name, value in row.items() if value is not None}
    _check_names(path, line, row)
    for name, value in row.items():
        if not isinstance(value, str) or not value:
            raise _wrong(path, line, f"{name} is {value!r}; give a text")
    return Pair(**row)


def _check_names(path: Path, line: int, names) -> None:
    for name in names:
        if name not in _NAMES:
            raise _wrong(path, line, f"{name!r} is not known; the names are {', '.join(_NAMES)}")
    missing = [name for name in _NEEDED if name not in names]
    if missing:
        raise _wrong(path, line, f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing")


def _wrong(path: Path, line: int, what: str) -> FileError:
    return FileError(f"cannot read {path}: line {line}: {what}")


def _example() -> str:
    return "{" + ", ".join(f'"{name}": "…"' for name in _NEEDED) + "}"
