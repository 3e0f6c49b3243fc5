"""``ControlVector``: directions that steer a model, in llama.cpp's own file format.

The format is that of llama.cpp's ``--control-vector`` and of repeng: a GGUF file of architecture ``controlvector`` with
a float32 tensor ``direction.N`` for every layer N that is steered. llama.cpp adds it to what leaves layer N, the site
``l_out-N``, at every position. There is none for layer 0. Files of llama.cpp's own ``cvector-generator`` call
``direction.N`` what was measured at the end of layer N-1; they are read, and added at layer N, as llama.cpp does it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from . import files
from .edits import Edit, add
from .errors import EditError, ModelError, RunError, SiteError
from .plot import spans
from .run import Run
from .sites import at

_ARCH = "controlvector"

#: as std::stoi reads what follows the dot: "direction.5" and "direction.5.b" are both of layer 5, and are added up
_NAME = re.compile(r"^direction\.\s*\+?(\d+)")


class ControlVector:
    """One direction for each of some layers.

    Args:
        directions: layer -> ``(n_embd,)``, all of one width; layers from 1, as llama.cpp's files have them.
        model_hint: the architecture that it was made for; for whoever reads the file.

    Attributes:
        directions: layer -> ``(n_embd,)`` float32, by ascending layer.
        n_embd: their width.
        model_hint: as given.

    Raises:
        EditError: no directions, several widths, or numbers that are not finite.
        SiteError: a layer that cannot be steered.
    """

    def __init__(self, directions: Mapping[int, np.ndarray], model_hint: str = ""):
        if not isinstance(directions, Mapping) or not directions:
            raise EditError("A control vector needs a direction: ControlVector({12: array of (n_embd,)}).")
        found = {_as_layer(layer): _as_direction(layer, value) for layer, value in directions.items()}
        self.directions: dict[int, np.ndarray] = dict(sorted(found.items()))
        widths = sorted({len(direction) for direction in found.values()})
        if len(widths) > 1:
            raise EditError(f"The directions have different widths: {', '.join(map(str, widths))}.")
        self.n_embd, self.model_hint = widths[0], str(model_hint)

    def __repr__(self) -> str:
        hint = f", for {self.model_hint}" if self.model_hint else ""
        return f"ControlVector(layers {', '.join(map(str, self.layers))}, n_embd {self.n_embd}{hint})"

    @property
    def layers(self) -> list[int]:
        """The layers that have a direction, ascending."""
        return list(self.directions)

    @classmethod
    def from_runs(
        cls, positive: Run | Sequence[Run], negative: Run | Sequence[Run], site: str = "l_out", layers=None,
        position: str | int = "last", normalize: bool = False,
    ) -> ControlVector:
        """The difference of the mean activations of two sets of runs.

        Method: contrastive activation addition (Rimsky et al., "Steering Llama 2 via Contrastive Activation
        Addition", 2023, arXiv:2312.06681): the mean over prompts that show a behaviour, minus the mean over prompts
        that do not, at one position of each.

        Args:
            positive, negative: runs that captured ``site``; they may differ in number and in length.
            site: of shape ``(n_tokens, n_embd)``. Whatever it is, its directions are added at ``l_out`` of the same
                layer.
            layers: which; None: all from 1 on that every run captured.
            position: which token of each run: ``"last"``, an index, negative ones from the end; or ``"mean"`` over all
                tokens that the run holds.
            normalize: scale every direction to length 1; otherwise ``coef=1`` in :meth:`steer` moves by the distance of
                the means.

        Raises:
            RunError: no runs on a side, or nothing that differs, where a length of 1 was asked for.
            SiteError: site, layer or position was not captured.
            EditError: the site is not of that shape.
        """
        sides = [_as_runs(positive, "positive"), _as_runs(negative, "negative")]
        runs = [run for side in sides for run in side]
        if layers is None:
            chosen = sorted(set.intersection(*({il for il in run.layers(site) if il >= 1} for run in runs)))
            if not chosen:
                raise SiteError(f"The runs have no layer of {site!r} from 1 on in common; capture it in all of them.")
        else:
            chosen = _as_list(layers)
        directions = {}
        for layer in map(_as_layer, chosen):
            means = [np.mean([_row(run, site, layer, position) for run in side], axis=0) for side in sides]
            if means[0].shape != means[1].shape:
                widths = " and ".join(str(len(mean)) for mean in means)
                raise EditError(f"{site!r} has different widths in positive and negative runs: {widths}.")
            direction = means[0] - means[1]
            length = np.linalg.norm(direction)
            if normalize and length == 0.0:
                raise RunError(f"Positive and negative runs are the same at {site!r} in layer {layer}: no direction.")
            directions[layer] = direction / length if normalize else direction
        return cls(directions, runs[0].info.get("arch", ""))

    def check(self, model) -> None:
        """Whether it fits a model.

        Raises:
            ModelError: another width, fewer layers, or an architecture without ``l_out``.
        """
        hint = f" It was made for {self.model_hint}." if self.model_hint else ""
        if self.n_embd != model.n_embd:
            raise ModelError(f"The control vector is {self.n_embd} wide, the model {model.n_embd}.{hint}")
        if self.layers[-1] >= model.n_layer:
            raise ModelError(
                f"The control vector steers layer {self.layers[-1]}; "
                f"the model has layers 0 to {model.n_layer - 1}.{hint}"
            )
        named = {found.layer for found in model.sites() if found.name == "l_out"}
        if missing := [layer for layer in self.layers if layer not in named]:
            raise ModelError(f"The model names no l_out in layer {missing[0]}: it cannot be steered there.")

    def steer(self, coef: float = 1.0, layers=None, positions=None) -> list[Edit]:
        """Edits that add ``coef`` times each direction to ``l_out`` of its layer.

        ``model.run(prompt, edits=vector.steer(4))``. The default is what ``--control-vector`` of llama.cpp does.

        Args:
            coef: negative: away from it.
            layers: only these; None: all that have a direction.
            positions: as in :func:`interp.at`; None: all.

        Raises:
            SiteError: a layer without a direction.
            EditError: a coefficient that is no finite number.
        """
        if isinstance(coef, bool) or not isinstance(coef, (int, float, np.number)) or not math.isfinite(coef):
            raise EditError(f"coef={coef!r}: give a finite number.")
        chosen = self.layers if layers is None else _as_list(layers)
        for layer in chosen:
            if not hasattr(layer, "__index__") or layer not in self.directions:
                raise SiteError(f"No direction for layer {layer!r}; there are: {', '.join(map(str, self.layers))}.")
        return [
            add(at("l_out", layers=int(layer), positions=positions), np.float32(coef) * self.directions[layer])
            for layer in chosen
        ]

    # files

    def save(self, path) -> Path:
        """Write a GGUF file for llama.cpp's ``--control-vector``.

        Raises:
            FileError: the name does not end in ``.gguf``, or it cannot be written.
        """
        from gguf import GGUFWriter

        with files.written(path, (".gguf",)) as temporary:
            writer = GGUFWriter(temporary, _ARCH)
            writer.add_string(f"{_ARCH}.model_hint", self.model_hint)
            writer.add_int32(f"{_ARCH}.layer_count", len(self.directions))
            for layer, direction in self.directions.items():
                writer.add_tensor(f"direction.{layer}", direction)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
        return Path(path)

    @classmethod
    def load(cls, path) -> ControlVector:
        """Read a control vector of this package, of llama.cpp or of repeng.

        Raises:
            FileError: no such file, a damaged one, or a GGUF file of another kind.
        """
        from gguf import GGMLQuantizationType, GGUFReader

        path = files.checked(path)
        # numbers of a damaged file may be any, and its offsets overflow
        with files.refusing(path), np.errstate(all="ignore"):
            reader = GGUFReader(path)
            arch = _field(reader, "general.architecture")
            if arch != _ARCH:
                raise ValueError(f"it is a GGUF file of architecture {arch!r}, no control vector")
            directions: dict[int, np.ndarray] = {}
            for tensor in reader.tensors:
                match = _NAME.match(tensor.name)
                if not match or int(match[1]) == 0:
                    raise ValueError(f"tensor {tensor.name!r} is no direction of a layer from 1 on")
                kind, shape = tensor.tensor_type, tensor.data.shape
                if kind != GGMLQuantizationType.F32 or len(shape) != 1:
                    raise ValueError(f"{tensor.name!r} is {kind.name} of shape {shape}, not F32 of (n_embd,)")
                layer = int(match[1])
                directions[layer] = directions.get(layer, np.float32(0)) + np.array(tensor.data, np.float32)
            if not directions:
                raise ValueError("it has no directions")
            try:
                return cls(directions, _field(reader, f"{_ARCH}.model_hint") or "")
            except (EditError, SiteError) as err:
                raise ValueError(str(err)) from err


def _field(reader, name: str) -> str | None:
    field = reader.get_field(name)
    return str(field.contents()) if field is not None else None


def _as_runs(runs, which: str) -> list[Run]:
    runs = [runs] if isinstance(runs, Run) else list(runs) if isinstance(runs, Iterable) else []
    if not runs or not all(isinstance(run, Run) for run in runs):
        raise RunError(f"{which}: give a run, or a list of at least one.")
    return runs


def _as_layer(layer) -> int:
    if isinstance(layer, bool) or not hasattr(layer, "__index__") or int(layer) < 0:
        raise SiteError(f"{layer!r} is no layer of a control vector: give integers from 1 on.")
    if int(layer) == 0:
        raise SiteError("llama.cpp's control vectors have no layer 0. To steer there: interp.add('l_out-0', vector).")
    return int(layer)


def _as_list(layers) -> list:
    if hasattr(layers, "__index__"):
        return [layers]
    if isinstance(layers, str) or not isinstance(layers, Iterable):
        raise SiteError(f"layers={layers!r}: give an integer, a list of integers, or None for all.")
    return list(layers)


def _as_direction(layer: int, value) -> np.ndarray:
    try:
        direction = np.array(value, np.float32)
    except (TypeError, ValueError) as err:
        raise EditError(f"The direction of layer {layer} is no array of numbers: {err}") from err
    if direction.ndim != 1 or not direction.size:
        raise EditError(f"The direction of layer {layer} has shape {direction.shape}; it must be (n_embd,).")
    if not np.isfinite(direction).all():
        raise EditError(f"The direction of layer {layer} has numbers that are not finite.")
    return direction


def _row(run: Run, site: str, layer: int, position: str | int) -> np.ndarray:
    """One run's activation, in double precision, because means of many are taken."""
    array, held = run[site, layer], run.positions(site, layer)
    axes = run.axes(site, layer)
    if len(axes) != 2 or axes[0] != "n_tokens":
        raise EditError(f"{site!r} has axes {axes}; a direction comes from (n_tokens, n_embd).")
    if position == "mean":
        if not held:
            raise SiteError(f"{site!r} holds no position of {run!r}.")
        return array.mean(axis=0, dtype=np.float64)
    n = len(run.tokens)
    wanted = n - 1 if position == "last" else position
    if isinstance(wanted, bool) or not hasattr(wanted, "__index__"):
        raise SiteError(f'position={position!r}: give "last", "mean" or an integer.')
    wanted = int(wanted) + n if int(wanted) < 0 else int(wanted)
    if wanted not in held:
        has = spans(held) or "none"
        raise SiteError(f"Position {position} was not captured: the run has {n} tokens, {site!r} holds {has}.")
    return array[held.index(wanted)].astype(np.float64)
