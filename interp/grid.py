"""``Grid``: what every sweep returns, numbers over layers and something else, as tables, pictures and files; and how
each number is measured."""

from __future__ import annotations

import contextlib
import json
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np

from . import files, plot
from .errors import RunError
from .run import Run

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


# // metrics


def check_metric(metric, caller: str) -> None:
    """
    Raises:
        RunError: it is none.
    """
    if metric is None:
        raise RunError(
            f"{caller} needs a metric, a function of a run that says how much of the answer is there: "
            'metric=interp.logit_diff(" Mary", " John"), or interp.probability, or your own.'
        )
    if not callable(metric):
        raise RunError(f"metric={metric!r} is no function of a run; such as interp.logit_diff(a, b), or your own.")


def measured(metric: Callable[[Run], float], run: Run, where: str) -> float:
    """What a metric says of a run.

    Raises:
        RunError: no finite number; ``where`` says of what.
    """
    found = metric(run)
    try:
        value = float(found) if np.ndim(found) == 0 and not isinstance(found, (str, bytes)) else None
    except (TypeError, ValueError):
        value = None
    if value is None:
        kind = f"an array of shape {np.shape(found)}" if np.ndim(found) else repr(found)
        raise RunError(f"The metric returned {kind} for {where}; it must return one number, such as float(x[-1]).")
    if not math.isfinite(value):
        raise RunError(f"The metric returned {value} for {where}; it must return a finite number.")
    return value


def metric_name(metric) -> str:
    name = getattr(metric, "name", None) or getattr(metric, "__name__", "metric")
    return name if isinstance(name, str) and name != "<lambda>" else "metric"


@contextlib.contextmanager
def progress_bar(progress: bool | None | Callable, label: str, total: int) -> Iterator[Callable[..., None]]:
    """Yields a function that says that one more of ``total``, or a share of one, is finished.

    Args:
        progress: None: shown on a terminal. What another bar yielded: no bar, but one step of that one.
        label, total: what is counted, and how much there is of it.
    """
    if callable(progress):
        # a little more than the share, so that all of them are no less than one step
        yield lambda: progress((1 + 1e-9) / total)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not (console.is_terminal if progress is None else progress):
        yield lambda share=1: None
        return
    shown = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*shown, console=console, transient=True) as bar:
        task = bar.add_task(label, total=total)
        yield lambda share=1: bar.advance(task, share)


# // results

#: heads of a table whose columns hold texts, not numbers
_TEXTS = ("token", "keys", "part")

class Cell(NamedTuple):
    """One number of a grid over heads, or over layers: then ``head`` is None."""

    layer: int
    head: int | None
    value: float
    effect: float


@dataclass(eq=False)
class Grid(ABC):
    """What the results of all sweeps share. Each adds what its rows and columns are.

    Attributes:
        values: float64, NaN where nothing was measured.
        metric: the name of what was measured, with its unit where it has one.
        model: the model's name.
        layers: those that were swept, ascending.
        complete: False if the sweep was interrupted.
    """

    values: np.ndarray
    metric: str
    model: str
    layers: list[int]
    complete: bool

    #: how its files begin, and what messages call it
    _FORMAT: ClassVar[str]

    #: the classes by their format: what a file may hold
    kinds: ClassVar[dict[str, type[Grid]]] = {}

    def __init_subclass__(cls):
        if "_FORMAT" in vars(cls):
            cls.kinds[cls._FORMAT] = cls

    _KIND: ClassVar[str] = "sweep"

    #: whether effects may be negative
    _SIGNED: ClassVar[bool] = True

    def __repr__(self) -> str:
        return f"<{self._title()}, values {self.values.shape}>"

    # what each result says of itself

    #: what values are compared with
    baseline: ClassVar[float]

    @abstractmethod
    def _shape(self) -> tuple[int, ...]:
        """Of the values."""

    @abstractmethod
    def _title(self) -> str:
        """What was measured, of which model."""

    def _lines(self, _width: int) -> list[str]:
        """What stands below the title of a picture, in lines of so many characters."""
        return []

    def _summary(self) -> str:
        """The line above the table."""
        return f"{self.metric}: {self.baseline:.3f} without a change"

    def _cell(self, *index: int) -> NamedTuple:
        """One number by its place in the values."""
        layer, *head = index
        head = self._columns()[head[0]] if head else None
        value, effect = float(self.values[index]), float(self.effects[index])
        return Cell(self.layers[layer], None if head is None else int(head), value, effect)

    def _header(self) -> tuple[str, ...]:
        """Of the table."""
        return ("layer", *(("head",) if self.values.ndim == 2 else ()), "value", "effect")

    def _texts(self, cell) -> list[str]:
        """A cell as its row of the table."""
        found = [str(cell.layer)] if cell.head is None else [str(cell.layer), str(cell.head)]
        return [*found, f"{cell.value:.3f}", f"{cell.effect:+.3f}"]

    @abstractmethod
    def _columns(self) -> list[str]:
        """Their names, across."""

    def _across(self) -> str:
        """What the columns are."""
        return "head"

    def _positions(self) -> list[int] | None:
        """The columns' positions, if they are tokens."""
        return None

    def _measure(self) -> str:
        """What colours and lines show."""
        return f"change of {self.metric}"

    def _marked(self) -> np.ndarray | None:
        """Which cells of a picture get a dot."""
        return None

    def _hover(self, cell) -> str:
        where = f"layer {cell.layer}" if cell.head is None else f"layer {cell.layer}, head {cell.head}"
        return f"{where}\n{self.metric} {cell.value:.4f}\neffect {cell.effect:+.4f}"

    # numbers

    @property
    def effects(self) -> np.ndarray:
        """What each cell changes: values minus :attr:`baseline`."""
        return self.values - self.baseline

    def top(self, k: int = 10) -> list:
        """The k cells with the largest effects, whatever their sign, largest first."""
        if plot.whole(k, "k") < 1:
            raise RunError(f"k must be at least 1, not {k}")
        order = np.argsort(-np.nan_to_num(np.abs(self.effects), nan=-1.0), axis=None, kind="stable")
        cells = [tuple(map(int, np.unravel_index(i, self.values.shape))) for i in order]
        return [self._cell(*index) for index in cells if not np.isnan(self.values[index])][:k]

    def fill(self, cells: Iterable[tuple[tuple, float]], progress: bool | None, label: str, total=None) -> None:
        """Enters values as they come, ``(index, value)``; Ctrl-C ends that, with what is there by then.

        ``total``: how many come; None: one for each value.
        """
        total = self.values.size if total is None else total
        with contextlib.suppress(KeyboardInterrupt), progress_bar(progress, label, total) as advance:
            for index, value in cells:
                self.values[index] = value
                advance()
            self.complete = True

    # tables and pictures

    def table(self, k: int = 10) -> Table:
        """The k largest effects, largest first."""
        from rich import box
        from rich.table import Table
        from rich.text import Text

        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
        for name in self._header():
            table.add_column(name, justify="left" if name in _TEXTS else "right", no_wrap=True)
        for cell in self.top(k):
            table.add_row(*map(Text, self._texts(cell)))
        return table

    def print(self, k: int = 10, console: Console | None = None) -> None:
        """Prints what was measured and the table."""
        from rich.console import Console

        console = console or Console(highlight=False)
        console.print(self._title(), style="bold", soft_wrap=True, markup=False)
        console.print(self._summary(), soft_wrap=True, markup=False)
        console.print(self.table(k))

    def _with_state(self, title: str) -> str:
        return f"{title}: {self.model}{'' if self.complete else ' (interrupted)'}"

    def plot(self, path: str | os.PathLike) -> None:
        """Draws the effects as PNG: layers up, the columns across, white where nothing changes, grey without value."""
        plot.sweep_png(
            path, self.effects, self.layers, self._columns(), self._positions(), self._measure(),
            lambda width: "\n".join([self._title(), *self._lines(width)]), across=self._across(), signed=self._SIGNED,
            marked=self._marked(),
        )

    def html(self, path: str | os.PathLike) -> None:
        """Writes the same as an HTML page that works offline; hovering names the cell, its value and effect."""
        rows, columns = range(self.values.shape[0]), range(self.values.shape[1])
        hover = [[self._hover(self._cell(row, column)) for column in columns] for row in rows]
        plot.sweep_html(
            path, self.effects, self.layers, self._columns(), self._positions(), self._measure(), hover,
            "\n".join([self._title(), *self._lines(110)]), across=self._across(), signed=self._SIGNED,
            marked=self._marked(),
        )

    # files

    def save(self, path) -> Path:
        """Writes everything to a file that plain safetensors or numpy can read as well; :meth:`load` reads it.

        Args:
            path: a name in ``.safetensors`` or ``.npz``, in a folder that exists; an old file is replaced.

        Raises:
            FileError: another suffix, or it cannot be written; nothing half-written is left.
        """
        arrays, described = self._parts()
        texts = {name: json.dumps(value, ensure_ascii=False) for name, value in described.items()}
        return files.write_arrays(path, arrays, {"format": self._FORMAT, **texts})

    def _parts(self) -> tuple[dict, dict]:
        """The arrays of a file, and what describes them, both by name."""
        return {"values": self.values}, {name: getattr(self, name) for name in self._described()}

    @classmethod
    def _of_parts(cls, file: files.ArrayFile):
        return cls(values=file["values"], **{name: json.loads(file.texts[name]) for name in cls._described()})

    @classmethod
    def _described(cls) -> list[str]:
        return [f.name for f in fields(cls) if f.name != "values"]

    @classmethod
    def load(cls, path):
        """Reads what :meth:`save` wrote.

        Raises:
            FileError: no such file, another kind of file, or a damaged one.
        """
        with files.opened(path) as file, files.refusing(file.path):
            if file.format != cls._FORMAT:
                raise ValueError(f"it holds no {cls._KIND} of this package")
            made = cls._of_parts(file)
            if made.values.shape != made._shape():
                raise ValueError(f"it has values of shape {made.values.shape}, not {made._shape()}")
            return made


class LayerGrid(Grid):
    """A grid whose values have layers on the last axis: drawn as lines over the layers."""

    def _columns(self) -> list[str]:
        return list(map(str, self.layers))

    def _names(self) -> list[str]:
        """Of the lines."""
        return [""]

    def _band(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Low and high, between which lines are shaded."""
        return None

    def plot(self, path: str | os.PathLike) -> None:
        """Draws a line for each row as PNG: layers across, the metric up; dashed, what it is without a change."""
        values, title = np.atleast_2d(self.values), "\n".join([self._title(), *self._lines(110)])
        plot.lines_png(path, values, self.layers, self._names(), self.baseline, self.metric, title, self._band())

    def html(self, path: str | os.PathLike) -> None:
        """Writes the same as an HTML page that works offline; hovering names the point and its effect."""
        values, indices = np.atleast_2d(self.values), np.ndindex(self.values.shape)
        hover = np.array([self._hover(self._cell(*index)) for index in indices], object).reshape(values.shape)
        title = "\n".join([self._title(), *self._lines(110)])
        plot.lines_html(
            path, values, self.layers, self._names(), self.baseline, self.metric, hover.tolist(), title, self._band()
        )
