"""``load_array`` and ``save_array``: one array from or to a file, to patch, compare or plot it."""

from __future__ import annotations

import math
import operator
from collections import defaultdict
from pathlib import Path

import numpy as np

from . import files
from .errors import FileError, SiteError
from .plot import spans
from .run import FORMAT, Run
from .sites import Key, Part, parse


def load_array(path, *, shape=None, site: str | None = None, layer: int | None = None) -> np.ndarray:
    """Read one array.

    The kind of file follows from the name: ``.safetensors`` and ``.npz`` of :meth:`Run.save <interp.Run.save>`,
    :func:`save_array` or any other software, ``.npy``, and under any other name the raw float32 dump of Llama.MIA's
    ``--save``, which has no header: there ``shape`` is needed. (That tool overwrote its file at every step, so a dump
    that was made while it generated holds the last step's single row.)

    Args:
        path: the file.
        shape: what the array must have; one length may be -1: as many as there are. For dumps usually
            ``(-1, n_embd)``.
        site: which array of a file that holds several, by any name that it had in the run; in files of other software
            the name that stands there. ``"logits"`` are the run's.
        layer: of the site, where it was saved in several layers.

    Returns:
        float32 or what the file has; a dump as ``(n_tokens, n_embd)``, in the model's token order.

    Raises:
        FileError: no such file, a damaged one, another shape, or a choice that is not there; the message lists what is.
    """
    path, wanted = files.as_path(path), _as_shape(shape)
    suffix = path.suffix.lower()
    if suffix in files.SUFFIXES:
        with files.opened(path) as file:
            array = file[_name(file, site, layer)]
    elif site is not None or layer is not None:
        raise FileError(f"{path} holds one array without a name; site and layer are for .safetensors and .npz")
    elif suffix == ".npy":
        files.checked(path)
        with files.refusing(path):
            array = np.load(path, allow_pickle=False)
            if not isinstance(array, np.ndarray):
                raise ValueError("it is no single array")
    else:
        return _load_dump(path, wanted)
    if wanted is not None and not _fits(array.shape, wanted):
        raise FileError(f"{path} holds an array of shape {array.shape}, not {_shown(wanted)}; give shape={array.shape}")
    return array


def save_array(
    path, array, *, site: str, layer: int, axes=None, heads=None, positions=None, run: Run | None = None
) -> Path:
    """Write one array as a run file, which :func:`load_array` and :meth:`Run.load <interp.Run.load>` read.

    Args:
        path: a name in ``.safetensors`` or ``.npz``, in a folder that exists.
        array: float32 or int32; other floats become float32.
        site: the name to keep it under.
        layer: from 0; -1 for a site outside of the layers, or, with a run that holds the site, its last layer.
        axes: what each axis counts, ``("n_tokens", "n_embd")``; None: as the run has them.
        heads: which heads the axis ``n_head`` holds; None: as in the run, where the shape is the same, else 0, 1, ….
        positions: the same for the axis ``n_tokens`` or ``n_query``.
        run: the run that the array belongs to: its tokens and the model's name go into the file.

    Raises:
        FileError: it cannot be written.
        SiteError: axes, heads or positions that do not fit the array.
    """
    array = np.asarray(array)
    if array.dtype.kind not in "fiu" or array.ndim == 0:
        raise SiteError(f"save_array takes an array of numbers, not {array.dtype} of shape {array.shape}")
    array = array.astype(np.float32 if array.dtype.kind == "f" else np.int32)
    name, named_layer, occurrence = parse(site)
    if not hasattr(layer, "__index__") or layer < -1:
        raise SiteError(f"layer={layer!r}: give an integer from 0 on, or -1 for a site outside of the layers")
    if named_layer not in (None, layer):
        raise SiteError(f"{site!r} names layer {named_layer}, but layer={layer}")
    found = _keys(run, site, layer) if run is not None else []
    known = found[0] if found else None
    part = run._parts.get(known) if known else None
    if axes is None and part is None:
        raise SiteError(f"what does each axis of {site!r} count? Give axes, such as ('n_tokens', 'n_embd')")
    same = part is not None and run._arrays[known].shape == array.shape
    part = Part(
        part.axes if axes is None else tuple(map(str, axes)),
        part.heads if heads is None and same else _as_ints(heads, "heads"),
        part.positions if positions is None and same else _as_ints(positions, "positions"),
    )
    key = known or Key(name, int(layer), occurrence or 0)
    labels = run._labels[known] if known else [(f"{name}#{key.occurrence}", key.layer), (name, key.layer)]
    kept = (run.tokens, run.pieces, run.info) if run is not None else ((), (), {})
    saved = Run(kept[0], kept[1], None, {key: array}, {key: labels}, info=kept[2], parts={key: part})
    try:
        saved._check()
    except ValueError as err:
        raise SiteError(f"{site!r} cannot be saved: {err}") from err
    return saved.save(path)


def _name(file: files.ArrayFile, site: str | None, layer: int | None) -> str:
    """The name in the file of the one array that is meant."""
    if file.format == FORMAT:
        if site == "logits" and layer is None and "logits" in file.names:
            return "logits"
        run = Run.described(file)
        found, held = _keys(run, site, layer), _listed(run)
    else:
        wanted = site if site is None or layer is None else f"{site}-{layer}"
        found = file.names if wanted is None and layer is None else [name for name in file.names if name == wanted]
        held = ", ".join(sorted(file.names)[:20]) + (", …" if len(file.names) > 20 else "")
    if len(found) == 1:
        return str(found[0])
    asked = "which array" if site is None else repr(site)
    asked += "" if layer is None else f" in layer {layer}"
    which = "say which" if site is None else f"say which layer of {site!r}"
    problem = which if found else f"{asked} is not among them"
    raise FileError(f"{file.path} holds {held or 'no arrays'}; {problem}: load_array(path, site=…, layer=…)")


def _keys(run: Run, site: str | None, layer: int | None) -> list[Key]:
    """Of what a run file holds, all that the choice fits."""
    if site is None:
        return [key for key in run.keys if layer in (None, key.layer)]
    try:
        found = run._choose(site, layer)
    except SiteError:
        return []
    return [found] if isinstance(found, Key) else list(found.values())


def _listed(run: Run) -> str:
    """What a run file holds, in few words."""
    layers = defaultdict(list)
    for key in run.keys:
        # the graph's own name, if a run holds the tensor that a bare name means
        numbered = f"{key.name}#{key.occurrence}"
        layers[next((name for name, _ in run._labels[key] if "#" not in name), numbered)].append(key.layer)
    return "; ".join(
        name if found == [-1] else f"{name} in layer{'s' * (len(found) > 1)} {spans(sorted(found))}"
        for name, found in sorted(layers.items())
    )


# // shapes and dumps


def _as_shape(shape) -> tuple[int, ...] | None:
    try:
        wanted = _as_ints(shape, "shape")
    except SiteError:
        wanted = ()
    if wanted is None or (wanted and min(wanted) >= -1 and wanted.count(-1) <= 1):
        return wanted
    raise FileError(f"shape={shape!r}: give the length of every axis; one of them may be -1, such as (-1, 576)")


def _as_ints(values, what: str) -> tuple[int, ...] | None:
    if values is None:
        return None
    try:
        return tuple(map(operator.index, (values,) if hasattr(values, "__index__") else values))
    except TypeError:
        raise SiteError(f"{what}={values!r}: give integers, or None") from None


def _fits(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    return len(shape) == len(wanted) and all(w in (-1, n) for n, w in zip(shape, wanted))


def _shown(shape: tuple[int, ...]) -> str:
    return f"({', '.join('…' if n == -1 else str(n) for n in shape)}{',' * (len(shape) == 1)})"


def _load_dump(path: Path, wanted: tuple[int, ...] | None) -> np.ndarray:
    files.checked(path)
    if wanted is None:
        raise FileError(
            f"{path} is read as a raw dump of float32, which has no header: give shape=(n_tokens, n_embd), one may be "
            "-1. Other kinds of file must end in .safetensors, .npz or .npy"
        )
    with files.refusing(path):
        size = path.stat().st_size
        if size % 4:
            raise ValueError(f"{size} bytes are no whole number of float32: it is cut off, or no dump")
    count, last = size // 4, wanted[-1]
    rest = math.prod(n for n in wanted if n != -1)
    if rest == 0 or (count % rest if -1 in wanted else count != rest):
        raise FileError(f"{path} holds {count} float32, which is not {_shown(wanted)}. {_fitting(count, last)}")
    with files.refusing(path):
        # ascontiguous of '<f4' is a copy only on a big-endian machine
        return np.fromfile(path, "<f4").astype(np.float32, copy=False).reshape(wanted)


def _fitting(count: int, last: int) -> str:
    """Which shapes a dump may have, for the width that was given."""
    if last > 0 and count % last == 0:
        return f"With {last} as the last length it is ({count // last}, {last})"
    widths = [n for n in range(16, min(count, 1 << 16) + 1) if count % n == 0]
    usual = [n for n in widths if n % 64 == 0] or widths
    shapes = ", ".join(f"({count // n}, {n})" for n in usual[:8])
    return f"No number of rows of {last} fits. Shapes that would: {shapes or f'({count},)'}"
