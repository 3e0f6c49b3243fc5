"""`llama-interp show`: what a file holds, and conversion between kinds of files."""

from __future__ import annotations

import json
import re
from pathlib import Path

import click
import numpy as np

from .. import files, plot
from ..arrays import load_array, save_array
from ..control import ControlVector
from ..errors import FileError
from ..grid import Grid
from ..run import FORMAT, Run
from ..sites import parse
from . import output
from .arguments import Output, Shape, Source
from .base import check_outputs
from .output import print_json, shape_text
from .results import Results, result_options
from .root import cli

_LONGEST = 100

_CHECKSUMS = ("crc32", "crc32_of_metadata")

#: names with a layer: `l_out-5#0`, `l_out-5#0/mean`, `direction.5`
_LAYER = re.compile(r"(.+?)[-.](\d+)(#.*|)")


@cli.command()
@click.argument("path", type=Source(), metavar="FILE")
@click.option("--shape", type=Shape(), metavar="N,M", help="Of a raw dump of float32, without a header; one may be -1.")
@click.option("--site", metavar="SITE", help="What a raw dump, .npy or foreign file is of, such as l_out-15; for --to.")
@click.option("--to", type=Output(*files.SUFFIXES), metavar="OUT", help="Convert to .safetensors or .npz.")
@result_options(saves=False)
def show(path: Path, shape: tuple[int, ...] | None, site: str | None, to: Path | None, results: Results) -> None:
    """What a file holds; and conversion of files.

    A run, the result of a sweep, statistics, a state, a control vector, an array, or a raw dump. --topk, --png and
    --html are for results of sweeps.

    Raw dumps are what the --save of Llama.MIA wrote: floats without a header, so --shape tells their lengths.
    """
    suffix = path.suffix.lower()
    if shape is not None and suffix in (*files.SUFFIXES, ".npy", ".gguf"):
        raise click.UsageError(f"--shape is for raw dumps; {path.name} says its shape itself")
    if site is not None and to is None:
        raise click.UsageError("--site names what is converted: give --to OUT")
    made = _result(path)
    if made is None and (results.png or results.html):
        raise click.UsageError(f"--png and --html draw results of sweeps, and {path.name} holds none")
    check_outputs(to, results.png, results.html)
    if suffix == ".gguf":
        found = _control_vector(path, to)
    elif suffix in files.SUFFIXES:
        found = _arrays(path, to, site)
    else:
        found = _array(path, shape, to, site)
    if made is not None:
        found["files"] = [*found.get("files", []), *results.write(made)]
    if results.as_json:
        print_json(found if made is None else {**found, **results.numbers(made)})
        return
    if made is not None:
        # a table says what its file describes
        _print({**found, "metadata": {}})
        click.echo()
        results.show(made)
    else:
        _print(found)
    output.wrote(found.get("files", ()))


def _result(path: Path) -> Grid | None:
    """The result of a sweep; None where the file holds something else."""
    if path.suffix.lower() not in files.SUFFIXES:
        return None
    with files.opened(path) as file:
        kind = Grid.kinds.get(file.format)
    return None if kind is None else kind.load(path)


def _arrays(path: Path, to: Path | None, site: str | None) -> dict:
    with files.opened(path) as file:
        run = Run.described(file) if file.format == FORMAT else None
        if site is not None and file.format is not None:
            raise click.UsageError("--site is for raw dumps and foreign files: this one names its sites itself")
        arrays = {name: file[name] for name in file.names}
        texts = dict(file.texts)
    found: dict = {"file": path, "kind": _kind(texts.get("format"))}
    rows = [{"name": name, "shape": list(a.shape), "type": str(a.dtype)} for name, a in arrays.items()]
    if run is not None:
        described = json.loads(texts["sites"])
        for row in rows:
            part = described.get(row["name"], {})
            row |= {key: part[key] for key in ("axes", "heads", "positions") if key in part}
        found |= {**run.info, "tokens": run.tokens, "pieces": run.pieces}
    else:
        found["metadata"] = {name: _decoded(text) for name, text in texts.items() if name not in _CHECKSUMS}
    found["arrays"] = rows
    if to is not None:
        _convert(path, arrays, texts, run, to, site)
        found["files"] = [to]
    return found


def _convert(path: Path, arrays: dict, texts: dict, run: Run | None, to: Path, site: str | None) -> None:
    if site is not None:
        if len(arrays) != 1:
            raise click.UsageError(f"{path} holds {len(arrays)} arrays; --site names the only one of a file")
        _save(to, next(iter(arrays.values())), site)
    elif run is not None:
        Run.load(path).save(to)
    else:
        files.write_arrays(to, arrays, texts)


def _array(path: Path, shape: tuple[int, ...] | None, to: Path | None, site: str | None) -> dict:
    """A raw dump, or a .npy."""
    if path.suffix.lower() != ".npy" and shape is None:
        count, rest = divmod(path.stat().st_size, 4)
        with path.open("rb") as file:
            head = file.read(256)
        is_text = head.isascii() and 0 not in head
        if rest or is_text:
            why = "it is a text" if is_text else f"{path.stat().st_size} bytes are no whole number of float32"
            raise FileError(
                f"cannot read {path}: {why}, so it is no raw dump, and its name ends in none of .safetensors, "
                ".npz, .npy and .gguf"
            )
        shape = (count,)
        note = "read as raw float32 of one row; --shape N,M gives it the form of its site"
    else:
        note = None
    array = load_array(path, shape=shape)
    found = {"file": path, "kind": "one array" if path.suffix.lower() == ".npy" else "raw dump of float32"}
    if note:
        found["note"] = note
    row = {"name": "", "shape": list(array.shape), "type": str(array.dtype)}
    if array.size and array.dtype.kind in "fiu":
        row |= {"min": array.min(), "mean": array.mean(), "max": array.max()}
    found["arrays"] = [row]
    if to is not None:
        _save(to, array, site or path.stem)
        found["files"] = [to]
    return found


def _save(to: Path, array, site: str) -> None:
    layer = parse(site)[1]
    axes = {1: ("n_tokens",), 2: ("n_tokens", "n_embd"), 3: ("n_tokens", "n_head", "d_head")}
    if array.ndim not in axes:
        raise FileError(f"an array of shape {array.shape} is of no site; 1 to 3 axes are")
    save_array(to, array, site=site, layer=-1 if layer is None else layer, axes=axes[array.ndim])


def _control_vector(path: Path, to: Path | None) -> dict:
    vector = ControlVector.load(path)
    arrays = {f"direction.{layer}": direction for layer, direction in vector.directions.items()}
    found: dict = {"file": path, "kind": "control vector", "made for": vector.model_hint or "not said"}
    found["arrays"] = [
        {"name": name, "shape": list(a.shape), "type": str(a.dtype), "length": float(np.linalg.norm(a.astype("f8")))}
        for name, a in arrays.items()
    ]
    if to is not None:
        files.write_arrays(to, arrays, {"made_for": vector.model_hint})
        found["files"] = [to]
    return found


def _kind(format: str | None) -> str:
    if not (format or "").startswith("llama-interp "):
        return "arrays of other software"
    return format.removeprefix("llama-interp ").rstrip(" 0123456789")


def _print(found: dict) -> None:
    from rich.text import Text

    for name, value in found.items():
        if name in ("arrays", "files", "metadata", "tokens"):
            continue
        if name == "pieces":
            name, value = f"{len(value)} tokens", "|".join(value)
        click.echo(f"{name:<10}  {_short(value)}")
    described = dict(found.get("metadata", {}))
    described |= described.pop("info", {}) if isinstance(described.get("info"), dict) else {}
    for name, value in described.items():
        if name not in ("format", "written_by") and not isinstance(value, (dict, list, type(None))):
            click.echo(f"{name:<10}  {_short(value)}")
    click.echo()
    rows = _grouped(found["arrays"])
    known = ("axes", "heads", "positions", "length", "min", "mean", "max")
    columns = [key for key in known if any(key in row for row in rows)]
    made = output.table("array", "layers", "shape", "type", *columns)
    for row in rows:
        cells = (row["name"] or "-", plot.spans(row["layers"]) or "-", shape_text(row["shape"]), row["type"])
        made.add_row(*map(Text, cells), *[Text(_value(row.get(column))) for column in columns])
    output.show(made)


def _decoded(text: str):
    """What a text of a description says, where it is JSON and not a number or a word as it is."""
    if not text.startswith(("{", "[", '"')) and text not in ("true", "false", "null"):
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text


def _grouped(rows: list[dict]) -> list[dict]:
    """What layers have in common in one row: a file may hold dozens of layers of many sites."""
    groups: dict[str, dict] = {}
    for row in rows:
        match = _LAYER.fullmatch(row["name"])
        head, layer, tail = match.groups() if match else (row["name"], None, "")
        same = json.dumps({**row, "name": (head, tail)}, default=str)
        group = groups.setdefault(same, {**row, "name": head + tail, "layers": []})
        group["layers"] += [] if layer is None else [int(layer)]
    return [{**group, "layers": sorted(group["layers"])} for group in groups.values()]


def _value(value) -> str:
    if value is None:
        return "-"
    if isinstance(value, list):
        return plot.spans(value) if all(isinstance(v, int) for v in value) else ", ".join(map(str, value))
    return value if isinstance(value, str) else f"{value:.4g}"


def _short(value) -> str:
    text = " ".join(part and plot.visible(part) for part in str(value).split(" "))
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
