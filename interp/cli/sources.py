"""Values that edits take from files: runs of this package, single arrays, and raw dumps of Llama.MIA."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .. import files
from ..arrays import load_array
from ..control import ControlVector
from ..errors import FileError, SiteError
from ..run import FORMAT, Run

if TYPE_CHECKING:
    from ..model import Model
    from ..sites import Site


class Sources:
    """The files of one call, each read once, and before the model is."""

    def __init__(self) -> None:
        self._runs: dict[Path, Run | None] = {}
        self._stats: dict = {}
        self._vectors: dict[Path, ControlVector] = {}

    def read(self, path: Path) -> None:
        """Reads a file of values. Dumps have no header: they wait for the model, which knows how wide they are.

        Raises:
            FileError: a damaged file.
        """
        if path in self._runs or path.suffix.lower() not in files.SUFFIXES:
            return
        with files.opened(path) as file:
            kind = file.format or ""
        self._runs[path] = Run.load(path) if kind == FORMAT else None
        if kind.startswith("llama-interp stats "):
            import interp

            self._stats[path] = interp.Stats.load(path)

    def read_vector(self, path: Path) -> ControlVector:
        """A control vector.

        Raises:
            FileError: it is none.
        """
        if path not in self._vectors:
            self._vectors[path] = ControlVector.load(path)
        return self._vectors[path]

    def run(self, path: Path, model: Model) -> Run | None:
        """The run in a file; None where the file holds none.

        Raises:
            FileError: it is of another model.
        """
        run = self._runs.get(path)
        if run is not None:
            _check_model(path, run.info, model)
        return run

    def means(self, path: Path, model: Model, text: str, layers: set[int]):
        """A run or statistics that hold means of a site with heads.

        Raises:
            FileError: neither, of another model, or without the site.
        """
        if self.run(path, model) is None and path not in self._stats:
            raise FileError(f"{path} holds neither a run nor statistics: make one with --save {text} FILE")
        for layer in layers:
            site = model._table.find(text, layer)[0]
            if path not in self._stats:
                self.values(path, model, text, layer, site)
                continue
            stats = self._stats[path]
            _check_model(path, stats.info, model)
            try:
                mean = stats.mean(text, layer)
            except SiteError as err:
                raise FileError(f"{path} does not hold {site.key}: {err}") from err
            self._check(path, mean[None], site)
        return self._stats.get(path) or self._runs[path]

    def values(self, path: Path, model: Model, text: str, layer: int, site: Site) -> Run | np.ndarray:
        """What a file holds of a site: a run that captured it, or an array in its axes.

        Raises:
            FileError: the file is of another model or does not hold the site.
        """
        run = self.run(path, model)
        if run is not None:
            try:
                array = run[text, layer]
            except SiteError as err:
                raise FileError(f"{path} does not hold {site.key}: {_held(run)}") from err
            self._check(path, array, site)
            # a single array that was saved without its run has no tokens to count positions by
            return run if run.tokens else array
        if path.suffix.lower() in files.SUFFIXES:
            array = load_array(path, site=self._name(path, text))
        elif path.suffix.lower() == ".npy":
            array = load_array(path)
        else:
            array = self._dump(path, site)
        array = _as_numbers(path, array)
        self._check(path, array, site)
        return array

    @staticmethod
    def _name(path: Path, text: str) -> str | None:
        """Of a file of other software: the array with the site's name, else the only one."""
        with files.opened(path) as file:
            return text if text in file.names or len(file.names) != 1 else None

    @staticmethod
    def _dump(path: Path, site: Site) -> np.ndarray:
        if site.is_attention or site.shape[0] is not None or None in site.shape[1:]:
            raise FileError(
                f"{path} is read as a raw dump, whose rows are tokens; {site.key} has axes {', '.join(site.axes)}. "
                "Save it with --save SITE FILE.safetensors"
            )
        return load_array(path, shape=(-1, int(np.prod(site.shape[1:])))).reshape(-1, *site.shape[1:])

    @staticmethod
    def _check(path: Path, array: np.ndarray, site: Site) -> None:
        """Whether an array has the site's lengths where they do not follow the prompt; heads may be a selection."""
        fits = array.ndim == len(site.shape) and all(
            want is None or have == want or (axis == site.head_axis and have < want)
            for axis, (have, want) in enumerate(zip(array.shape, site.shape))
        )
        if not fits:
            shape = " x ".join("n" if want is None else str(want) for want in site.shape)
            raise FileError(
                f"{path} holds {' x '.join(map(str, array.shape))} values; {site.key} of this model is {shape}: "
                "it is of another model, or of another site"
            )

    def vector(self, path: Path, model: Model, layer: int | None, width: int) -> np.ndarray:
        """A direction, or several as rows: from a control vector its direction of a layer, else the array of a file.

        Raises:
            FileError: it has another width.
        """
        if path.suffix.lower() == ".gguf":
            found = self.read_vector(path).directions
            if layer not in found:
                raise FileError(f"{path} has directions for layers {', '.join(map(str, found))}, not for {layer}")
            array = found[layer]
        elif path.suffix.lower() in (*files.SUFFIXES, ".npy"):
            array = load_array(path)
        else:
            array = load_array(path, shape=(-1, width))
        array = _as_numbers(path, array)
        array = array[0] if array.ndim == 2 and len(array) == 1 else array
        if array.ndim not in (1, 2) or array.shape[-1] != width:
            raise FileError(
                f"{path} holds {' x '.join(map(str, array.shape))} values; a direction here has {width}: it is of "
                "another model or of another site"
            )
        return array


def _check_model(path: Path, info: dict, model: Model) -> None:
    for what, ours in (("n_embd", model.n_embd), ("n_layer", model.n_layer), ("arch", model.arch)):
        theirs = info.get(what, ours)
        if theirs != ours:
            raise FileError(
                f"{path} was saved from another model, {info.get('model', 'of another shape')}: its {what} is "
                f"{theirs}, that of {model.name} is {ours}"
            )


def _as_numbers(path: Path, array: np.ndarray) -> np.ndarray:
    if array.dtype.kind not in "fiu" or array.size == 0:
        raise FileError(f"{path} holds no numbers: {array.dtype} of shape {array.shape}")
    array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise FileError(f"{path} holds numbers that are not finite")
    return array


def _held(run: Run) -> str:
    from ..arrays import _listed

    return f"it holds {_listed(run) or 'nothing'}"
