"""Whether readings of a process tell of a leak: a line through each quantity, and a bound on its slope."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .readings import Reading

#: the share of all work that fills caches and finds the largest buffers; readings before its end do not count
WARM_UP = 0.25

#: a slope must stay below its bound by so many standard errors: then not seeing a leak means that there is none
N_ERRORS = 2.0

#: what must not grow, by unit of work
GROWING = ("resident", "child", "heap", "blocks")

#: what must be the same at the end as after the warm-up
CONSTANT = ("threads", "handles", "processes")


@dataclass(frozen=True)
class Slope:
    """Growth by unit of work, and its standard error; both infinite for fewer than three readings."""

    value: float
    error: float

    @property
    def upper(self) -> float:
        return self.value + N_ERRORS * self.error


def slope(done: Sequence[int], values: Sequence[float]) -> Slope:
    """Of the straight line that fits best, by least squares."""
    if len(done) < 3:
        return Slope(math.inf, math.inf)
    x, y = np.asarray(done, float) - np.mean(done), np.asarray(values, float) - np.mean(values)
    value = (x @ y) / (x @ x)
    rest = y - value * x
    return Slope(float(value), float(np.sqrt(rest @ rest / (len(x) - 2) / (x @ x))))


def counted(readings: Sequence[Reading]) -> list[Reading]:
    """Those after the warm-up."""
    return [reading for reading in readings if reading.done >= WARM_UP * readings[-1].done]


def slopes(readings: Sequence[Reading]) -> dict[str, Slope]:
    """The growth of each quantity that every reading has."""
    found, kept = {}, counted(readings)
    for name in GROWING:
        values = [getattr(reading, name) for reading in kept]
        if None not in values:
            found[name] = slope([reading.done for reading in kept], values)
    return found


def complaints(readings: Sequence[Reading], bounds: dict[str, float]) -> list[str]:
    """What is wrong, one line each; none: nothing was left behind.

    Args:
        readings: in the order of the work.
        bounds: the largest growth by unit of work, for each of `GROWING` that is there.
    """
    wrong = []
    for name, found in slopes(readings).items():
        if not found.upper <= bounds[name]:
            wrong.append(
                f"{name} grows by {found.value:.3g} +/- {found.error:.2g} for each unit of work; with {N_ERRORS:g} "
                f"errors added it must stay below {bounds[name]:g}"
            )
    first, last = counted(readings)[0], readings[-1]
    for name in CONSTANT:
        before, after = getattr(first, name), getattr(last, name)
        if after > before:
            wrong.append(f"{name}: {before} after the warm-up, {after} at the end")
    if changed := sum(reading.changed for reading in readings):
        wrong.append(f"logits of {changed} plain runs are not those of the first")
    return wrong
