"""Edits from flags: one decorator gives a command all of them, and hands it what they ask for."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np

from .. import edits, patching
from ..errors import FileError
from ..sites import at
from .arguments import Head, Heads, Integer, Layers, LayersOrHeads, Number, Positions, Rows, Source
from .base import EditOption
from .names import as_pair, layers_and_width, n_heads_of, place, rows_of, split_heads
from .sources import Sources

if TYPE_CHECKING:
    from ..edits import Edit
    from ..model import Model

_TEXT = click.STRING

#: the flags of the main command, and those that subcommands have beside them: names, type, metavar, what they do
_FIRST = (
    (("-a", "--ablate"), Heads(), "L.H,…", "Zero heads; or INDEX = layer*n_head+head."),
    (("-s", "--select"), (Integer(), Integer()), "LAYER HEAD", "Keep one head of a layer, zero its others."),
    (("--patch",), (_TEXT, Source(), Rows(), Rows()), "SITE FILE FROM TO",
     "Put row FROM of FILE at TO, or all at all."),
    (("--patch-avg",), (_TEXT, Source(), Source(), Rows(), Rows()), "SITE F1 F2 FROM TO",
     "The same with the mean of two files."),
)
_MORE = (
    (("--steer",), (_TEXT, Layers(), Source(), Number()), "SITE LAYER FILE COEF",
     "Add COEF times the direction in FILE: .npy, .npz, .safetensors, a control vector, or raw float32."),
    (("--project-out",), (_TEXT, Layers(), Source()), "SITE LAYERS FILE", "Remove the direction in FILE, or several."),
    (("--knockout",), (LayersOrHeads(), Positions(), Positions()), "LAYERS QUERIES KEYS",
     "Cut attention from queries to keys; LAYERS may be heads, L.H,L.H."),
    (("--scale",), (_TEXT, Number()), "SITE FACTOR", "Multiply a site, in all layers or, l_out-5, in one."),
    (("--control-vector",), (Source(), Number()), "FILE [COEF]", "Steer by a control vector of llama.cpp."),
)
_NAMES = {"--project-out": "project_out", "--patch-avg": "patch_avg", "--control-vector": "control_vector"}


def edit_options(full: bool = True, generates: bool = False):
    """Gives a command the flags of edits; it receives them as one argument `edits`, an :class:`Edits`.

    Args:
        full: also those that the main command does not have.
        generates: the command generates; in others edits of generated tokens would change nothing.
    """

    def decorate(command):
        rows = (*_FIRST, *(_MORE if full else ()))

        @wraps(command)
        def call(*args, **kwargs):
            given = {name: kwargs.pop(name) for name in [_name(names) for names, *_ in rows]}
            if full:
                for name in ("ablate_mode", "ablate_from", "positions"):
                    given[name] = kwargs.pop(name)
            found = Edits(**given)
            if not generates:
                found.refuse_generated()
            found.read()
            return command(*args, edits=found, **kwargs)

        options = [
            click.option(*names, _name(names), cls=EditOption, type=kind, multiple=True, metavar=metavar, help=text)
            for names, kind, metavar, text in rows
        ]
        if full:
            options[1:1] = [
                click.option(
                    "--ablate-mode", cls=EditOption, type=click.Choice(["zero", "mean", "resample"]), default="zero",
                    show_default=True, help="What an ablated head gives instead.",
                ),
                click.option(
                    "--ablate-from", cls=EditOption, type=Source(), metavar="FILE",
                    help="For mean and resample: a run saved with --save z, or, for mean, statistics of z.",
                ),
            ]
            options.append(
                click.option(
                    "--positions", cls=EditOption, type=Positions(), metavar="POS",
                    help="Where all of these but patches and --knockout hold: 3,7, 0-4, -1, last or generated; without "
                    "it everywhere.",
                )
            )
        for option in reversed(options):
            call = option(call)
        return call

    return decorate


def _check_pairs(first: tuple[int, ...] | None, to: tuple[int, ...] | None, option: str) -> None:
    """Rows and the positions that they go to come in pairs; one row may go to several positions."""
    if (first is None) != (to is None):
        raise click.UsageError(f"{option}: FROM and TO are both all, or both positions")
    if first is not None and len(first) not in (1, len(to)):
        raise click.UsageError(f"{option}: {len(first)} rows FROM for {len(to)} positions TO; give as many, or one row")


def _name(names: tuple[str, ...]) -> str:
    return _NAMES.get(names[-1], names[-1].lstrip("-"))


@dataclass
class Edits:
    """The edits that a call asks for, as they were written."""

    ablate: tuple = ()
    select: tuple = ()
    patch: tuple = ()
    patch_avg: tuple = ()
    steer: tuple = ()
    project_out: tuple = ()
    knockout: tuple = ()
    scale: tuple = ()
    control_vector: tuple = ()
    ablate_mode: str = "zero"
    ablate_from: Path | None = None
    positions: tuple[int, ...] | str | None = None

    def __bool__(self) -> bool:
        return any((
            self.ablate, self.select, self.patch, self.patch_avg, self.steer, self.project_out, self.knockout,
            self.scale, self.control_vector,
        ))

    def refuse_generated(self) -> None:
        """An edit that would change nothing, because it holds for generated tokens only and there will be none."""
        if self.positions == "generated" or any("generated" in values[1:] for values in self.knockout):
            raise click.UsageError("nothing is generated here, so an edit of generated tokens would change nothing")

    def read(self) -> None:
        """Reads the files and refuses flags that miss their partner; before the model is loaded."""
        self._check()
        self._sources = Sources()
        for _, path, *_ in self.patch:
            self._sources.read(path)
        for _, *paths, _, _ in self.patch_avg:
            for path in paths:
                self._sources.read(path)
        if self.ablate_from is not None:
            self._sources.read(self.ablate_from)
        for path, _ in self.control_vector:
            self._sources.read_vector(path)

    def _check(self) -> None:
        if self.ablate_mode != "zero" and not self.ablate:
            raise click.UsageError(f"--ablate-mode {self.ablate_mode} needs heads: --ablate L.H,…")
        if self.ablate_mode != "zero" and self.ablate_from is None:
            raise click.UsageError(f"--ablate-mode {self.ablate_mode} needs --ablate-from FILE")
        if self.ablate_mode == "zero" and self.ablate_from is not None:
            raise click.UsageError("--ablate-from FILE needs --ablate-mode mean or resample")
        if self.positions is not None and not any((
            self.ablate, self.select, self.steer, self.project_out, self.scale, self.control_vector
        )):
            raise click.UsageError("--positions needs an edit that it limits, such as --ablate or --steer")

    def build(self, model: Model) -> list[Edit]:
        """The edits, checked against a model.

        Raises:
            UsageError, SiteError, EditError: sites, layers or heads that are not there.
            FileError: values of another model.
        """
        found: list[Edit] = []
        heads = [head for several in self.ablate for head in several]
        if heads:
            found.append(self._ablate(model, [as_pair(model, head, "--ablate") for head in heads]))
        found += self._select(model)
        found += [self._patch(model, *values) for values in self.patch]
        found += [self._patch_avg(model, *values) for values in self.patch_avg]
        for several, make in (
            (self.steer, self._steer), (self.project_out, self._project_out), (self.knockout, self._knockout)
        ):
            found += [edit for values in several for edit in make(model, *values)]
        found += [self._scale(model, *values) for values in self.scale]
        for path, coef in self.control_vector:
            vector = self._sources.read_vector(path)
            vector.check(model)
            found += vector.steer(coef, positions=self.positions)
        return found

    def _ablate(self, model: Model, pairs: list[tuple[int, int]]) -> Edit:
        source = None if self.ablate_from is None else self._ablation_source(model, pairs)
        how = {"mean": source} if self.ablate_mode == "mean" else {"source": source}
        return patching.ablate(pairs, mode=self.ablate_mode, positions=self.positions, **how)

    def _ablation_source(self, model: Model, pairs: list[tuple[int, int]]):
        layers = {layer for layer, _ in pairs}
        if self.ablate_mode == "resample" and self._sources.run(self.ablate_from, model) is None:
            raise FileError(f"{self.ablate_from} holds no run: make one with --save z FILE")
        return self._sources.means(self.ablate_from, model, "z", layers)

    def _select(self, model: Model) -> list[Edit]:
        kept: dict[int, set[int]] = defaultdict(set)
        for layer, head in self.select:
            layer, head = as_pair(model, Head(layer, head), "--select")
            kept[layer].add(head)
        if len(self.select) == 1 and self.positions is None:
            return [patching.keep_only(layer, *heads) for layer, heads in kept.items()]
        n_heads = n_heads_of(model) if kept else {}
        return [
            patching.ablate([(layer, h) for h in range(n_heads[layer]) if h not in heads], positions=self.positions)
            for layer, heads in kept.items()
        ]

    def _patch(self, model: Model, text: str, path: Path, first, to) -> Edit:
        _check_pairs(first, to, "--patch")
        text, heads = split_heads(text)
        text, layer, site = place(model, text, "--patch")
        source = self._sources.values(path, model, text, layer, site)
        return patching.patch(text, layer, source, positions=to, from_positions=first, heads=heads)

    def _patch_avg(self, model: Model, text: str, path: Path, other: Path, first, to) -> Edit:
        _check_pairs(first, to, "--patch-avg")
        text, heads = split_heads(text)
        text, layer, site = place(model, text, "--patch-avg")
        axis = site.axes.index("n_query") if "n_query" in site.axes else 0
        rows = []
        for file in (path, other):
            source = self._sources.values(file, model, text, layer, site)
            array, held, n = source, None, 0
            if not isinstance(source, np.ndarray):
                array, held, n = source[text, layer], source.positions(text, layer), len(source.tokens)
            if first is None and held is not None and len(held) != n:
                raise FileError(f"{file} holds {len(held)} of {n} positions of {site.key}: say which, instead of all")
            rows.append(array if first is None else np.take(array, rows_of(file, first, array.shape[axis], held, n), axis))
        if rows[0].shape != rows[1].shape:
            shapes = f"{rows[0].shape} and {rows[1].shape}"
            raise FileError(f"{path} and {other} hold {shapes} of {site.key}: there is no mean of both")
        mean = (rows[0] + rows[1]) / 2
        taken = None if first is None else range(mean.shape[axis])
        return patching.patch(text, layer, mean, positions=to, from_positions=taken, heads=heads)

    def _steer(self, model: Model, text: str, layers, path: Path, coef: float) -> list[Edit]:
        return [
            edits.steer(text, several, vector, coef, positions=self.positions)
            for several, vector in self._directions(model, text, layers, path, "--steer", 1)
        ]

    def _project_out(self, model: Model, text: str, layers, path: Path) -> list[Edit]:
        return [
            edits.project_out(text, several, vector, positions=self.positions)
            for several, vector in self._directions(model, text, layers, path, "--project-out", 1 << 30)
        ]

    def _directions(self, model: Model, text: str, layers, path: Path, option: str, most: int):
        """Layers and what goes into them: a control vector has a direction of its own for each."""
        layers, width = layers_and_width(model, text, layers, option)
        parts = [[layer] for layer in layers] if path.suffix.lower() == ".gguf" else [layers]
        found = [(part, self._sources.vector(path, model, part[0], width)) for part in parts]
        for _, vector in found:
            if vector.ndim > 1 and len(vector) > most:
                raise FileError(f"{path} holds {len(vector)} directions: {option} adds one")
        return found

    @staticmethod
    def _knockout(model: Model, layers, queries, keys) -> list[Edit]:
        if not (layers and isinstance(layers[0], Head)):
            return [edits.knockout(layers, queries, keys)]
        heads: dict[int, list[int]] = defaultdict(list)
        for head in layers:
            layer, index = as_pair(model, head, "--knockout")
            heads[layer].append(index)
        return [edits.knockout(layer, queries, keys, heads=chosen) for layer, chosen in heads.items()]

    def _scale(self, model: Model, text: str, factor: float) -> Edit:
        model._table.find(text)
        return edits.scale(at(text, positions=self.positions), factor)
