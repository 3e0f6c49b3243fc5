"""``patch_sweep``: which layer, position or head carries what makes the answer; and ``Sweep``, what it returns."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from . import plot
from .batched import check_method, run_cells
from .cells import Cell, Plain, Rows, first_layer
from .errors import SiteError
from .grid import Grid, check_metric, measured, metric_name
from .mean_sweep import MeanSweep
from .prompts import read_pair, two_prompts
from .run import Run
from .several import averaged
from .sites import At, Site, SiteTable, at, parse

if TYPE_CHECKING:
    from .model import Model

@averaged("clean", "corrupted")
def patch_sweep(
    model: Model, clean, corrupted, site: str = "l_out", metric: Callable[[Run], float] | None = None,
    per_head: bool = False, layers=None, positions=None, direction: str = "denoise", progress: bool | None = None,
    method: str | None = None, prune: bool = True,
) -> Sweep | MeanSweep:
    """Patch every layer at every position, or every head, and measure each time what the model answers.

    Method: activation patching, Meng et al. (arXiv:2202.05262) and Wang et al. (arXiv:2211.00593); for the choice of
    direction and metric see Heimersheim and Nanda, "How to use and interpret activation patching" (arXiv:2404.15255).
    Every cell is what a run of its own gives: ``metric(model.run(corrupted, edits=interp.patch(site, layer, clean_run,
    positions=position), logits="last"))``; with the serial method bit for bit, with the batched one to the rounding of
    kernels that multiply other shapes.

    Args:
        model: the model.
        clean, corrupted: two prompts of as many tokens, texts or token ids: one in which the model does what is
            studied, and one in which it does not. Or two lists of as many prompts: each pair is swept by itself, and
            the mean comes back. Pairs may differ in length where the columns mean the same in all: heads, or positions
            such as ``[-1]``.
        site: any editable site with a token axis: ``l_out``, ``resid_pre``, ``resid_mid``, ``attn_out``, ``mlp_out``,
            ``z``, ``q``, ``k``, ``v``, …
        metric: a function of a :class:`Run`, which has the logits of the last position and no captures: such as
            :func:`interp.logit_diff`, :func:`interp.probability` or :func:`interp.kl_divergence`. For lists of
            prompts, one for all or a list of as many, all of one kind.
        per_head: each head at all positions together, of sites with heads, instead of each position.
        layers: which layers; None: all that have the site.
        positions: which positions; None: all. With ``per_head``, those that are patched together.
        direction: ``"denoise"``: the corrupted prompt is run and gets values of the clean one, which shows what
            suffices to restore the answer; ``"noise"``: the other way round, which shows what is needed for it.
        progress: a bar on the standard error; None: where that is a terminal.
        method: ``"batched"``: many cells are sequences of one decode; ``"serial"``: each is a run of its own; None:
            batched where the model can. In F32 the two agree within 1e-4 of a logit. Quantised weights are multiplied
            with quantised activations, and these may round to another step: on the default model, up to half a logit.
        prune: leave out the cells that are known to change nothing, as all before the first token that differs.

    Returns:
        A :class:`Sweep`, of lists a :class:`MeanSweep`. After Ctrl-C one with what was finished by then, and
        ``complete`` False.

    Raises:
        RunError: prompts of different lengths, no metric, or one that gives no finite number. Of lists, all errors name
            the pair.
        SiteError: an unknown site, layer or position, or a site without heads or tokens.
    """
    check_metric(metric, "patch_sweep")
    check_method(method)
    tokens, pieces, into = read_pair(model, clean, corrupted, direction)
    plan = plan_of(model, len(tokens[into]), site, per_head, layers, positions)

    source = model.run(tokens[1 - into], [plan.selector], logits="last")
    with Plain(model, tokens[into], [plan.selector], plan.starts(model)) as plain:
        base = plain.run
        ends = [measured(metric, run, f"the {name} prompt") for name, run in (("patched", base), ("other", source))]
        sweep = Sweep(
            values=np.full((len(plan.sites), len(plan.columns)), np.nan), site=site, direction=direction,
            metric=metric_name(metric), model=model.name, layers=list(plan.sites), positions=plan.positions,
            heads=plan.heads, tokens=plain.tokens, pieces=pieces[into], clean_pieces=pieces[0],
            corrupted_pieces=pieces[1], clean=ends[into], corrupted=ends[1 - into], complete=False,
        )
        every = list(_cells(plan, plain, source))
        cells = list(_pruned(plan, plain, source, every)) if prune else every
        runs = run_cells(plain, cells, method, metric)

        def values() -> Iterator[tuple[tuple[int, ...], float]]:
            run_alone = {cell.index for cell in cells}
            yield from ((cell.index, ends[0]) for cell in every if cell.index not in run_alone)
            for cell, run in runs:
                yield cell.index, measured(metric, run, cell.where)

        with contextlib.closing(runs):
            sweep.fill(values(), progress, f"patching {site}", len(every))
    return sweep


def _cells(plan: Plan, plain: Plain, source: Run) -> Iterator[Cell]:
    """Layer by layer. A head that a layer lacks is left out."""
    for row, (layer, tensor) in enumerate(plan.sites.items()):
        new = source[plan.site, layer]
        for column, chosen in enumerate(plan.columns):
            if plan.heads is not None and chosen >= tensor.n_head:
                continue
            where = f"layer {layer}, {'position' if plan.heads is None else 'head'} {chosen}"
            places, heads = ([chosen], None) if plan.heads is None else (plan.positions, [chosen])
            rows = Rows(at(plan.site, layers=layer), tensor, new, places, heads)
            yield Cell((row, column), where, first_layer(plain.model, tensor), places[0], (rows,))


def _pruned(plan: Plan, plain: Plain, source: Run, cells: list[Cell]) -> Iterator[Cell]:
    """The cells with only the positions that they change; those whose run is known to be the plain one are left out."""
    last = len(plain.tokens) - 1
    moved = {layer: _differ(plain.run[plan.site, layer], source[plan.site, layer]) for layer in plan.sites}
    for cell in cells:
        (rows,) = cell.changes
        differs = moved[rows.at.layers[0]] if rows.heads is None else moved[rows.at.layers[0]][:, rows.heads]
        # what follows the last layer, norm and head, takes each position by itself
        seen = [p for p in rows.positions if p == last] if cell.layer == plain.model.n_layer else rows.positions
        kept = [p for p in seen if differs[p].any()]
        if kept:
            yield replace(cell, first=kept[0], changes=(replace(rows, positions=kept),))


def _differ(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Whether two arrays differ in any bit, without the last axis."""
    return (np.ascontiguousarray(a).view(np.int32) != np.ascontiguousarray(b).view(np.int32)).any(axis=-1)


@dataclass(frozen=True)
class Plan:
    """Which parts of a site a sweep changes.

    Attributes:
        site: its name.
        sites: the tensor that the name means in each layer.
        positions: ascending; with heads, those that are changed together.
        heads: ascending; None: each position is a column.
    """

    site: str
    sites: dict[int, Site]
    positions: list[int]
    heads: list[int] | None

    @property
    def columns(self) -> list[int]:
        return self.positions if self.heads is None else self.heads

    @property
    def selector(self) -> At:
        return at(self.site, layers=list(self.sites))

    def starts(self, model: Model) -> set[int]:
        """The first layers that a change of each site changes."""
        return {first_layer(model, tensor) for tensor in self.sites.values()}


def plan_of(model: Model, n: int, site: str, per_head: bool, layers, positions) -> Plan:
    """What of a prompt of ``n`` tokens is swept; a site's name, layers and positions as the user gave them."""
    chosen = at(site, layers=layers, positions=positions)
    if isinstance(chosen.positions, str):
        raise SiteError(f"positions={positions!r}: give integers; of a prompt alone, the last is -1.")
    for position in chosen.positions or ():
        if not -n <= position < n:
            raise SiteError(f"Position {position} is out of range: the prompts have {n} tokens, 0 to {n - 1}.")
    sites = _sites(model._table, site, chosen.layers)
    heads = None
    if per_head:
        without = [tensor for tensor in sites.values() if tensor.n_head is None]
        if without:
            raise SiteError(f"{without[0].key} has axes {without[0].axes}, no heads. Sites with heads: z, q, k, v.")
        heads = list(range(max(tensor.n_head for tensor in sites.values())))
    places = sorted({p % n for p in chosen.positions}) if chosen.positions else list(range(n))
    return Plan(site, sites, places, heads)


def _sites(table: SiteTable, name: str, layers: tuple[int, ...] | None) -> dict[int, Site]:
    """The tensor that a name means in each layer.

    Raises:
        SiteError: it has no layers, no token axis, or cannot be edited.
    """
    table.find(name)  # an unknown name is refused here, with the nearest ones
    named = parse(name)[1]
    if layers is None:
        layers = range(table.n_layer) if named is None else (named,)
    elif named is None:
        layers = sorted({table.layer_index(layer) for layer in layers})
    sites = {}
    for layer in layers:
        with contextlib.suppress(SiteError) if isinstance(layers, range) else contextlib.nullcontext():
            sites[layer] = table.find(name, layer)[0]
    for site in sites.values():
        if site.layer < 0 and parse(name)[0] != "resid_pre":
            raise SiteError(f"{name!r} lies outside of the layers: there is nothing to sweep over. Try 'resid_pre'.")
        if site.axes[0] != "n_tokens" or not site.editable:
            raise SiteError(
                f"{site.key} has axes {site.axes} and cannot be swept: name an editable site whose first axis is the "
                "tokens, such as l_out, resid_pre, resid_mid, attn_out, mlp_out, z, q, k or v."
            )
    return sites


class Effect(NamedTuple):
    """One cell of a sweep: ``position`` or ``head`` is None, the token and ``piece`` belong to the position."""

    layer: int
    position: int | None
    head: int | None
    piece: str | None
    value: float
    effect: float
    normalized: float


@dataclass(eq=False)
class Sweep(Grid):
    """What :func:`patch_sweep` measured.

    Attributes:
        values: (n_layers, n_positions), or (n_layers, n_heads) for a sweep over heads, float64: the metric of each
            patched run, in the metric's unit; NaN where a sweep was interrupted, or a layer lacks that head.
        clean, corrupted: the metric of the two plain runs.
        site, direction: as given.
        metric, model: their names.
        layers, positions, heads: what rows and columns are; heads is None in a sweep over positions.
        tokens, pieces: of the run that was patched.
        clean_pieces, corrupted_pieces: of both prompts.
        complete: False if the sweep was interrupted.
    """

    site: str
    direction: str
    positions: list[int]
    heads: list[int] | None
    tokens: list[int]
    pieces: list[str]
    clean_pieces: list[str]
    corrupted_pieces: list[str]
    clean: float
    corrupted: float

    _FORMAT = "llama-interp sweep 1"

    def __repr__(self) -> str:
        n_rows, n_columns = self.values.shape
        columns = "positions" if self.heads is None else "heads"
        part = "" if self.complete else ", interrupted"
        return f"<Sweep of {self.site} ({self.direction}): {n_rows} layers, {n_columns} {columns}{part}>"

    @property
    def baseline(self) -> float:
        """The metric of the run that is patched, without a patch."""
        return self.corrupted if self.direction == "denoise" else self.clean

    @property
    def normalized(self) -> np.ndarray:
        """The values on a scale on which the corrupted run is 0 and the clean one 1; NaN where both are the same."""
        whole = self.clean - self.corrupted
        return (self.values - self.corrupted) / whole if whole else np.full(self.values.shape, np.nan)

    def _shape(self) -> tuple[int, int]:
        return len(self.layers), len(self.positions if self.heads is None else self.heads)

    def _cell(self, row: int, column: int) -> Effect:
        position = self.positions[column] if self.heads is None else None
        return Effect(
            self.layers[row], position, None if self.heads is None else self.heads[column],
            None if position is None else self.pieces[position], float(self.values[row, column]),
            float(self.effects[row, column]), float(self.normalized[row, column]),
        )

    # tables and pictures

    def _header(self) -> tuple[str, ...]:
        return ("layer", *(("position", "token") if self.heads is None else ("head",)), "value", "effect", "normalized")

    def _texts(self, cell: Effect) -> list[str]:
        where = [str(cell.position), self._label(cell.position)] if self.heads is None else [str(cell.head)]
        return [str(cell.layer), *where, f"{cell.value:.3f}", f"{cell.effect:+.3f}", f"{cell.normalized:.2f}"]

    def _summary(self) -> str:
        return f"{self.metric}: clean {self.clean:.3f}, corrupted {self.corrupted:.3f}"

    def _label(self, position: int) -> str:
        """A position's token; where the prompts differ, the clean one and the corrupted one."""
        clean, corrupted = (plot.visible(part[position], 12) for part in (self.clean_pieces, self.corrupted_pieces))
        return clean if clean == corrupted else f"{clean}→{corrupted.removeprefix('␣')}"

    def _title(self) -> str:
        into = "clean into corrupted" if self.direction == "denoise" else "corrupted into clean"
        return self._with_state(f"patching {self.site}{'' if self.heads is None else ' of each head'}, {into}")

    def _lines(self, width: int) -> list[str]:
        pair = self.clean_pieces, self.corrupted_pieces
        return two_prompts(pair, (self.clean, self.corrupted), width)

    def _columns(self) -> list[str]:
        return list(map(str, self.heads)) if self.heads is not None else [self._label(p) for p in self.positions]

    def _across(self) -> str:
        return "head" if self.heads is not None else "token and position"

    def _positions(self) -> list[int] | None:
        return None if self.heads is not None else self.positions

    def _hover(self, cell: Effect) -> str:
        where = f"head {cell.head}" if self.heads else f"position {cell.position}: {self._label(cell.position)}"
        return (
            f"layer {cell.layer}, {where}\n{self.metric} {cell.value:.4f}\n"
            f"effect {cell.effect:+.4f}\nnormalized {cell.normalized:.3f}"
        )
