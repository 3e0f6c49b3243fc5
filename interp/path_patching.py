"""``path_patch``: what a head does through chosen heads, or straight to the logits; and ``PathPatch``."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from . import plot
from .batched import batched, check_method, chosen_method, partition, run_cells, run_group
from .cells import Cell, Plain, Rows, serial
from .errors import RunError, SiteError
from .grid import Grid, check_metric, measured, metric_name
from .mean_sweep import MeanSweep
from .prompts import read_pair, two_prompts
from .run import Run
from .several import averaged
from .sites import At, Key, Site, SiteTable, at
from .sweep import Plan, plan_of

if TYPE_CHECKING:
    from .model import Model

_KINDS = ("q", "k", "v")

Receiver = tuple[int, int, str]


@averaged("clean", "corrupted")
def path_patch(
    model: Model, clean, corrupted, sender=None, receivers="logits", metric: Callable[[Run], float] | None = None,
    freeze_mlp: bool = False, direction: str = "denoise", progress: bool | None = None, method: str | None = None,
) -> PathPatch | MeanSweep:
    """Patch what a head sends along the direct paths to its receivers, and nothing else that it does.

    Method: path patching, Wang et al., "Interpretability in the Wild" (arXiv:2211.00593), and Goldowsky-Dill et al.
    (arXiv:2304.05969), exactly, in two runs for each sender. In the first, the sender has its value of the clean
    prompt, and every other head that of the corrupted prompt, so that only the residual stream and the MLPs carry what
    it sends; what the receivers then take in is kept. In the second, the corrupted prompt runs with just that taken in
    by the receivers, and the metric is measured. To the logits, the first run is all.

    Args:
        model: the model.
        clean, corrupted: two prompts of as many tokens, texts or token ids; or two lists of as many prompts, whose mean
            comes back. Pairs may differ in length.
        sender: ``(layer, head)``, several of those, or None: every head from which there is a path.
        receivers: ``(layer, head, "q")``, or ``"k"`` or ``"v"`` (there the head is one of the keys' heads, of which
            a model may have fewer), or several of those; or ``"logits"``.
        metric: a function of a :class:`Run` with the logits of the last position: such as :func:`interp.logit_diff`.
            For lists of prompts, one for all or a list of as many, all of one kind.
        freeze_mlp: hold the MLPs at their values of the corrupted prompt too: then only the residual stream carries
            what is sent. As in the papers, they are computed anew by default.
        direction: ``"denoise"``: as above; ``"noise"``: with the two prompts exchanged, as Wang et al. do it.
        progress: a bar on the standard error; None: where that is a terminal.
        method: as in :func:`interp.patch_sweep`.

    Returns:
        A :class:`PathPatch`, of lists a :class:`MeanSweep`. After Ctrl-C one with what was finished by then, and
        ``complete`` False.

    Raises:
        RunError: prompts of different lengths, no metric, or one that gives no finite number.
        SiteError: a layer or head that does not exist, a sender without a path to any receiver, or a model with layers
            in which no head can be frozen.
    """
    check_metric(metric, "path_patch")
    check_method(method)
    tokens, pieces, into = read_pair(model, clean, corrupted, direction)
    plan = plan_of(model, len(tokens[into]), "z", True, None, None)
    if len(plan.sites) < model.n_layer:
        without = next(layer for layer in range(model.n_layer) if layer not in plan.sites)
        raise SiteError(f"Layer {without} has no heads, 'z': what it mixes between positions cannot be held.")
    taken = _receivers(model._table, receivers)
    senders = _senders(plan, model, sender, taken)

    frozen = ["z", "mlp_out"] if freeze_mlp else ["z"]
    source = model.run(tokens[1 - into], capture="z", logits="last")
    starts = plan.starts(model) | {layer for layer, *_ in taken or ()}
    with Plain(model, tokens[into], frozen, starts) as plain:
        ends = [measured(metric, run, f"the {name} prompt") for name, run in (("patched", plain.run), ("other", source))]
        layers, heads = (sorted({pair[i] for pair in senders}) for i in (0, 1))
        found = PathPatch(
            values=np.full((len(layers), len(heads)), np.nan), metric=metric_name(metric), model=model.name,
            layers=layers, complete=False, heads=heads, receivers=taken, freeze_mlp=bool(freeze_mlp),
            direction=direction, tokens=plain.tokens, clean_pieces=pieces[0], corrupted_pieces=pieces[1],
            clean=ends[into], corrupted=ends[1 - into],
        )
        paths = _Paths(plain, source, plan.sites, taken, frozen)
        cells = [paths.sent(*pair, (layers.index(pair[0]), heads.index(pair[1]))) for pair in senders]
        runs = paths.runs(cells, chosen_method(plain, cells, method), metric)
        with contextlib.closing(runs):
            values = ((cell.index, measured(metric, run, cell.where)) for cell, run in runs)
            found.fill(values, progress, "patching paths", len(senders))
    return found


class _Paths:
    """The two runs of each sender; one where the receivers are the logits."""

    def __init__(self, plain: Plain, source: Run, sites: dict[int, Site], receivers: list[Receiver] | None, frozen):
        self._plain, self._source, self._sites, self._frozen = plain, source, sites, frozen
        self._receivers, self._n = receivers, len(plain.tokens)
        self._end = max(layer for layer, *_ in receivers) if receivers else plain.model.n_layer
        # Without attention no position reads another: for the logits the last one is all that counts.
        moved = (i for i, pair in enumerate(zip(plain.tokens, source.tokens)) if pair[0] != pair[1])
        self._first = next(moved) if receivers else self._n - 1

    def sent(self, layer: int, head: int, index: tuple[int, int]) -> Cell:
        """The first run: what a head sends goes through the residual stream and the MLPs alone."""
        everywhere = range(self._n)
        changes = [Rows(at("z", layers=layer), self._sites[layer], self._source["z", layer], everywhere, [head])]
        for site in self._frozen:
            # heads of the sender's own layer do not see it; its MLP may
            for later in range(layer + (site == "z"), self._end):
                tensor = self._plain.model._table.find(site, later)[0]
                changes.append(Rows(at(site, layers=later), tensor, self._plain.run[site, later], everywhere))
        return Cell(index, f"sender layer {layer}, head {head}", layer, self._first, tuple(changes))

    def runs(self, cells: list[Cell], method: str, metric) -> Iterator[tuple[Cell, Run]]:
        """The runs whose metric is that of the paths."""
        if self._receivers is None:
            yield from run_cells(self._plain, cells, method, metric)
        elif method == "serial":
            for cell in cells:
                ((_, run),) = serial(self._plain, [cell], self._capture([cell]))
                yield from serial(self._plain, [self._taken_in(cell, run._arrays)])
        else:
            for group in partition(self._plain, cells):
                captured = run_group(self._plain, group, self._capture(group), self._end)[1]
                yield from batched(self._plain, [self._taken_in(*pair) for pair in zip(group, captured)], metric)

    def _reached(self, layer: int) -> dict[tuple[str, int], list[int]]:
        """The heads of each site that take in what a layer sends."""
        found: dict[tuple[str, int], list[int]] = {}
        for later, head, kind in self._receivers:
            if later > layer:
                found.setdefault((kind, later), []).append(head)
        return found

    def _capture(self, cells: Sequence[Cell]) -> list[At]:
        return [at(kind, layers=later) for kind, later in self._reached(min(cell.layer for cell in cells))]

    def _taken_in(self, cell: Cell, captured: dict[Key, np.ndarray]) -> Cell:
        """The second run: the receivers take in what arrived in the first, of which this was captured."""
        changes, reached = [], self._reached(cell.layer)
        for (kind, later), heads in reached.items():
            tensor = self._plain.model._table.find(kind, later)[0]
            arrived = captured[tensor.key]
            values = np.zeros((self._n, *arrived.shape[1:]), np.float32)
            values[self._n - len(arrived) :] = arrived
            places = range(self._n - len(arrived), self._n)
            changes.append(Rows(at(kind, layers=later), tensor, values, places, heads))
        return replace(cell, layer=min(later for _, later in reached), changes=tuple(changes))


def _receivers(table: SiteTable, given) -> list[Receiver] | None:
    """In order, counted from 0; None for the logits."""
    if isinstance(given, str) and given == "logits":
        return None
    wrong = SiteError(f'receivers={given!r}: give (layer, head, "q"), or "k" or "v", a list of those, or "logits".')
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise wrong
    given = list(given)
    found = set()
    for receiver in [tuple(given)] if len(given) == 3 and isinstance(given[2], str) else given:
        try:
            layer, head, kind = receiver
        except (TypeError, ValueError):
            raise wrong from None
        if kind not in _KINDS:
            raise wrong
        layer = table.layer_index(plot.whole(layer, "layer"))
        found.add((layer, _head(table, kind, layer, head), kind))
    if not found:
        raise wrong
    return sorted(found)


def _senders(plan: Plan, model: Model, given, receivers: list[Receiver] | None) -> list[tuple[int, int]]:
    table = model._table
    end = model.n_layer if receivers is None else max(layer for layer, *_ in receivers)
    if given is None:
        found = [(layer, head) for layer in range(end) for head in range(plan.sites[layer].n_head)]
        if not found:
            raise SiteError("Nothing lies before layer 0: no head has a path to these receivers.")
        return found
    found = set()
    try:
        given = list(given)
        pairs = [(layer, head) for layer, head in ([given] if len(given) == 2 and np.ndim(given[0]) == 0 else given)]
    except (TypeError, ValueError):
        raise SiteError(f"sender={given!r}: give (layer, head), a list of those, or None for all.") from None
    for layer, head in pairs:
        layer = table.layer_index(plot.whole(layer, "layer"))
        head = _head(table, "z", layer, head)
        if layer >= end:
            raise SiteError(
                f"Head {head} of layer {layer} has no path to the receivers, of which the last is in layer {end}: what "
                "a head adds is read by later layers only."
            )
        found.add((layer, head))
    if not found:
        raise SiteError("sender=[]: give (layer, head), a list of those, or None for all.")
    return sorted(found)


def _head(table: SiteTable, site: str, layer: int, head) -> int:
    n_head, head = table.find(site, layer)[0].n_head, plot.whole(head, "head")
    if not -n_head <= head < n_head:
        raise SiteError(f"Head {head} is out of range: {site!r} of layer {layer} has heads 0 to {n_head - 1}.")
    return head % n_head


@dataclass(eq=False, repr=False)
class PathPatch(Grid):
    """What :func:`path_patch` measured.

    Attributes:
        values: (n_layers, n_heads) float64, of each sender: the metric with its paths patched, in the metric's unit;
            NaN for heads that were not asked for, or not reached before Ctrl-C.
        layers, heads: of the senders: what rows and columns are.
        receivers: ``(layer, head, "q")`` each; None for the logits.
        clean, corrupted: the metric of the two plain runs.
        freeze_mlp, direction: as given.
        tokens: of the run that was patched.
        clean_pieces, corrupted_pieces: of both prompts.
        metric, model, complete: as in every sweep.
    """

    heads: list[int]
    receivers: list[Receiver] | None
    freeze_mlp: bool
    direction: str
    tokens: list[int]
    clean_pieces: list[str]
    corrupted_pieces: list[str]
    clean: float
    corrupted: float

    _FORMAT = "llama-interp path patch 1"
    _KIND = "path patch"

    def __post_init__(self):
        # files have lists for tuples
        self.receivers = None if self.receivers is None else [tuple(receiver) for receiver in self.receivers]

    @property
    def value(self) -> float:
        """The only value, of a single sender.

        Raises:
            RunError: there are several.
        """
        if self.values.size != 1:
            raise RunError(f"There are values of {self.values.size} heads; see values, (layer, head).")
        return float(self.values[0, 0])

    @property
    def baseline(self) -> float:
        """The metric of the run that is patched, without a patch."""
        return self.corrupted if self.direction == "denoise" else self.clean

    def _shape(self) -> tuple[int, int]:
        return len(self.layers), len(self.heads)

    def _title(self) -> str:
        into = "clean into corrupted" if self.direction == "denoise" else "corrupted into clean"
        named = [f"{layer}.{head} {kind}" for layer, head, kind in self.receivers or ()]
        to = "the logits" if self.receivers is None else ", ".join(named[:4]) + (", …" if len(named) > 4 else "")
        held = ", MLPs held" if self.freeze_mlp else ""
        return self._with_state(f"paths from each head to {to}, {into}{held}")

    def _summary(self) -> str:
        return f"{self.metric}: clean {self.clean:.3f}, corrupted {self.corrupted:.3f}"

    def _lines(self, width: int) -> list[str]:
        return two_prompts((self.clean_pieces, self.corrupted_pieces), (self.clean, self.corrupted), width)

    def _columns(self) -> list[str]:
        return list(map(str, self.heads))
