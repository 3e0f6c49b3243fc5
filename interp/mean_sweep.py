"""``MeanSweep``: one sweep of several prompts, averaged, with a bootstrap interval over the prompts."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

from . import files
from .errors import RunError
from .grid import Grid, LayerGrid

#: what tables and pictures show
_LEVEL = 0.95

#: cells that are resampled at once: more would only take more memory
_BLOCK = 1024


class MeanCell(NamedTuple):
    """One cell of a mean. What a kind of sweep does not have is None; ``piece`` too where the prompts differ in it.

    ``low`` and ``high`` are the 95 % interval of the effect, NaN of one prompt alone.
    """

    keys: str | None
    layer: int
    position: int | None
    piece: str | None
    head: int | None
    value: float
    effect: float
    low: float
    high: float
    normalized: float | None


@dataclass(eq=False, repr=False)
class MeanSweep(LayerGrid):
    """The mean of a sweep over several prompts, or pairs of them.

    Attributes:
        values: float64, shaped like those of one sweep: the mean of each cell, in the metric's unit.
        results: the single sweeps, in the order of the prompts.
        n_given: how many prompts were given; after Ctrl-C there are fewer results.
        positions, heads: what the columns are, or None. Positions that prompts of different lengths have in common from
            the end are negative.
        metric: where the prompts' metrics differ, the words that their names share.
        model, layers: as in every sweep.
        complete: False if the sweep was interrupted. Then ``results`` are those that were finished; if none was, what
            there is of the first.
    """

    results: list[Grid]
    n_given: int

    _FORMAT = "llama-interp mean sweep 1"
    _KIND = "mean of sweeps"

    @classmethod
    def of(cls, results: Sequence[Grid], n_given: int | None = None) -> MeanSweep:
        """The mean of results of one kind.

        Args:
            results: what one sweep function returned for several prompts.
            n_given: of how many prompts; None: as many as results.

        Raises:
            RunError: no results, or some whose rows and columns differ.
        """
        results = list(results)
        if not results:
            raise RunError("There are no results to average: give at least one.")
        first = results[0]
        for i, result in enumerate(results):
            if type(result) is not type(first) or (result.layers, result._shape()) != (first.layers, first._shape()):
                raise RunError(f"Result {i} has other rows or columns than the first: {result!r}, {first!r}.")
        n_given = len(results) if n_given is None else n_given
        return cls(
            values=np.mean([result.values for result in results], axis=0), model=first.model, layers=first.layers,
            metric=in_common([result.metric for result in results]), results=results, n_given=n_given,
            complete=len(results) == n_given and all(result.complete for result in results),
        )

    def __post_init__(self):
        singles = self.results
        self.positions = None
        if self.heads is None and hasattr(singles[0], "positions"):
            self.positions = shared_positions([r.positions for r in singles], [len(r.tokens) for r in singles])

    def __repr__(self) -> str:
        return f"<MeanSweep, {self.count}, of {self._title()}, values {self.values.shape}>"

    # numbers

    @property
    def each(self) -> np.ndarray:
        """The values of the single sweeps, (n_results, …)."""
        return np.array([result.values for result in self.results])

    @cached_property
    def baseline(self) -> float:
        """The mean of what the single values are compared with."""
        return float(np.mean([result.baseline for result in self.results]))

    @property
    def clean(self) -> float:
        """The mean metric of the clean prompts; of sweeps over pairs only, as :attr:`corrupted`."""
        return float(np.mean([result.clean for result in self.results]))

    @property
    def corrupted(self) -> float:
        return float(np.mean([result.corrupted for result in self.results]))

    @cached_property
    def normalized(self) -> np.ndarray:
        """The mean of the single patch sweeps' scales, on each of which its corrupted run is 0 and its clean one 1.

        NaN if for one pair both are the same. A pair whose two runs hardly differ weighs much: see ``effects`` then.
        """
        return np.mean([result.normalized for result in self.results], axis=0)

    def interval(
        self, level: float = _LEVEL, n_resamples: int = 2000, seed: int = 0, of: str = "effects"
    ) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
        """Where the mean of each cell over all prompts of this kind lies, as far as these prompts tell.

        Method: the percentile bootstrap, Efron, "Bootstrap Methods: Another Look at the Jackknife" (1979): as many
        prompts are drawn from these, with replacement, and averaged; the bounds are quantiles of those means. The
        draws are ``numpy.random.default_rng(seed).integers(n, size=(n_resamples, n))``. The bounds are of each cell
        by itself, not of all together, and for fewer than about ten prompts they are too narrow.

        Args:
            level: the share of means between the bounds, above 0 and below 1.
            n_resamples: how many means.
            seed: of the draws.
            of: ``"effects"``, each prompt's beside its own baseline; ``"values"``; or, of patch sweeps,
                ``"normalized"``.

        Returns:
            ``(low, high)``, shaped like ``values``; NaN if there is one result only, which says nothing of others.

        Raises:
            RunError: an argument out of range.
        """
        known = ("effects", "values", *(("normalized",) if hasattr(self.results[0], "normalized") else ()))
        if of not in known:
            raise RunError(f"of={of!r}: give one of {', '.join(known)}.")
        return bootstrap(np.array([getattr(result, of) for result in self.results]), level, n_resamples, seed)

    @cached_property
    def _bounds(self) -> tuple[np.ndarray, np.ndarray]:
        return self.interval()

    @property
    def excludes_zero(self) -> np.ndarray:
        """Whether the 95 % interval of each cell's effect lies on one side of 0; False where there is none."""
        low, high = self._bounds
        return (low > 0) | (high < 0)

    # what rows and columns are

    @property
    def count(self) -> str:
        """How many prompts, in words."""
        n, noun = len(self.results), "pair" if self._has_pairs else "prompt"
        of = "" if n == self.n_given else f" of {self.n_given}"
        return f"mean of {n}{of} {noun}{'s' * (self.n_given > 1)}"

    @property
    def heads(self) -> list[int] | None:
        return getattr(self.results[0], "heads", None)

    @property
    def _has_pairs(self) -> bool:
        return hasattr(self.results[0], "clean")

    @property
    def _is_map(self) -> bool:
        return self.heads is not None or self.positions is not None

    def _shape(self) -> tuple[int, ...]:
        return self.results[0]._shape()

    def _columns(self) -> list[str]:
        """What all prompts have in common there; texts that differ are left out."""
        return [_same(names, "") for names in zip(*(result._columns() for result in self.results))]

    def _names(self) -> list[str]:
        bare = list(getattr(self.results[0], "keys", [""]))
        return [_same(names, name) for name, names in zip(bare, zip(*(result._names() for result in self.results)))]

    def _positions(self) -> list[int] | None:
        return self.positions

    def _across(self) -> str:
        return self.results[0]._across()

    # tables and pictures

    def _title(self) -> str:
        return in_common([replace(result, complete=self.complete)._title() for result in self.results])

    def _ends(self) -> str:
        """What values are compared with."""
        if self._has_pairs:
            return f"clean {self.clean:.3f}, corrupted {self.corrupted:.3f}"
        return f"{self.baseline:.3f} without"

    def _summary(self) -> str:
        return f"{self.metric}, {self.count}: {self._ends()}"

    def _lines(self, width: int) -> list[str]:
        how = "dots" if self._is_map else "shaded"
        mark = f"{how}: the 95 % interval over them{' excludes 0' if self._is_map else ''}"
        return [
            f"{self.count}: {self._ends()}" + (f"; {mark}" if len(self.results) > 1 else ""),
            *(f"first {line}" if self._has_pairs else f"first: {line}" for line in self.results[0]._lines(width - 7)),
        ]

    def _cell(self, *index: int) -> MeanCell:
        single = self.results[0]._cell(*index)._asdict()
        column, position, piece = index[-1], None, None
        if self.positions is not None:
            position = self.positions[column]
            piece = _same([result.pieces[result.positions[column]] for result in self.results], None)
        low, high = self._bounds
        normalized = float(self.normalized[index]) if "normalized" in single else None
        return MeanCell(
            single.get("keys"), single["layer"], position, piece, single.get("head"), float(self.values[index]),
            float(self.effects[index]), float(low[index]), float(high[index]), normalized,
        )

    def _header(self) -> tuple[str, ...]:
        *where, value, effect = (name for name in self.results[0]._header() if name != "normalized")
        scale = ("normalized",) if hasattr(self.results[0], "normalized") else ()
        return (*where, value, effect, "95 % interval", *scale)

    def _texts(self, cell: MeanCell) -> list[str]:
        where = [cell.keys, str(cell.layer), None if cell.head is None else str(cell.head)]
        if cell.position is not None:
            where += [str(cell.position), self._columns()[self.positions.index(cell.position)]]
        interval = "" if np.isnan(cell.low) else f"{cell.low:+.3f} … {cell.high:+.3f}"
        scale = [] if cell.normalized is None else [f"{cell.normalized:.2f}"]
        where = [text for text in where if text is not None]
        return [*where, f"{cell.value:.3f}", f"{cell.effect:+.3f}", interval, *scale]

    def _hover(self, cell: MeanCell) -> str:
        where = [] if cell.keys is None else [f"keys {cell.keys}"]
        where.append(f"layer {cell.layer}")
        where += [f"{name} {getattr(cell, name)}" for name in ("position", "head") if getattr(cell, name) is not None]
        interval = "" if np.isnan(cell.low) else f"\n95 % {cell.low:+.4f} … {cell.high:+.4f}"
        scale = "" if cell.normalized is None else f"\nnormalized {cell.normalized:.3f}"
        return f"{', '.join(where)}\n{self.metric} {cell.value:.4f}\neffect {cell.effect:+.4f}{interval}{scale}"

    def _marked(self) -> np.ndarray:
        return self.excludes_zero

    def _band(self) -> tuple[np.ndarray, np.ndarray]:
        low, high = self._bounds
        return low + self.baseline, high + self.baseline

    def plot(self, path: str | os.PathLike) -> None:
        """Draws the means as PNG as one sweep is drawn: maps with a dot in each cell whose 95 % interval excludes 0,
        lines with that interval around them."""
        (Grid if self._is_map else LayerGrid).plot(self, path)

    def html(self, path: str | os.PathLike) -> None:
        """Writes the same as an HTML page that works offline; hovering names the cell and its interval."""
        (Grid if self._is_map else LayerGrid).html(self, path)

    # files

    def _parts(self) -> tuple[dict, dict]:
        described = [{name: getattr(r, name) for name in r._described()} for r in self.results]
        # the first four texts are for readers of the file alone
        texts = {name: getattr(self, name) for name in ("metric", "model", "layers", "complete", "n_given")}
        texts |= {"of": self.results[0]._FORMAT, "results": described}
        return {"values": self.values, "each": self.each}, texts

    @classmethod
    def _of_parts(cls, file: files.ArrayFile) -> MeanSweep:
        made = cls.kinds[json.loads(file.texts["of"])]
        each, described = file["each"], json.loads(file.texts["results"])
        results = [made(values=values, **rest) for values, rest in zip(each, described, strict=True)]
        return cls.of(results, json.loads(file.texts["n_given"]))


# // over prompts


def bootstrap(values: np.ndarray, level: float, n_resamples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The percentile bootstrap of a mean over the first axis; see :meth:`MeanSweep.interval`."""
    if isinstance(level, bool) or not isinstance(level, (int, float)) or not 0 < level < 1:
        raise RunError(f"level={level!r}: give a number above 0 and below 1, such as 0.95.")
    for name, number, least in (("n_resamples", n_resamples, 1), ("seed", seed, 0)):
        if isinstance(number, bool) or not hasattr(number, "__index__") or number < least:
            raise RunError(f"{name}={number!r}: give an integer of at least {least}.")
    n, shape = len(values), values.shape[1:]
    if n == 1:
        return np.full(shape, np.nan), np.full(shape, np.nan)
    drawn = np.random.default_rng(seed).integers(n, size=(n_resamples, n))
    # how often each prompt was drawn: all means are then one product
    counts = np.bincount((drawn + n * np.arange(n_resamples)[:, None]).ravel(), minlength=n_resamples * n)
    weights, cells = counts.reshape(n_resamples, n) / n, values.reshape(n, -1)
    bounds = np.full((2, cells.shape[1]), np.nan)
    for start in range(0, cells.shape[1], _BLOCK):
        block = slice(start, start + _BLOCK)
        bounds[:, block] = np.quantile(weights @ cells[:, block], [(1 - level) / 2, (1 + level) / 2], axis=0)
    return bounds[0].reshape(shape), bounds[1].reshape(shape)


def shared_positions(positions: Sequence[Sequence[int]], lengths: Sequence[int], noun: str = "Pair") -> list[int]:
    """The columns of sweeps over positions of several prompts: the same from the front, or from the end (negative).

    Raises:
        RunError: they differ; the message names the pair.
    """
    for i, chosen in enumerate(positions):
        if len(chosen) != len(positions[0]):
            raise _unlike(i, lengths, noun)
    found = []
    for from_front in zip(*positions):
        from_end = [p - length for p, length in zip(from_front, lengths)]
        same = _same(from_front, _same(from_end, None))
        if same is None:
            raise _unlike(next((i for i, n in enumerate(lengths) if n != lengths[0]), 1), lengths, noun)
        found.append(same)
    return found


def _unlike(i: int, lengths: Sequence[int], noun: str) -> RunError:
    return RunError(
        f"{noun} {i} has {lengths[i]} tokens and the first {lengths[0]}: position by position they cannot be averaged. "
        "Sweep over positions that mean the same in all, such as positions=[-1], or over heads (per_head=True), or "
        "take prompts of one length."
    )


def in_common(texts: Sequence[str]) -> str:
    """A text whose words are those that all have in the same place, and … for the others."""
    if len(set(texts)) == 1:
        return texts[0]
    words = [text.split(" ") for text in texts]
    if len(set(map(len, words))) > 1:
        return f"{texts[0]}, …"
    return " ".join(_same(word, "…") for word in zip(*words))


def _same(values: Sequence, otherwise):
    """What all are, or something else."""
    first, *rest = values
    return first if all(value == first for value in rest) else otherwise
