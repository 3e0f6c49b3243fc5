"""The edits that are made on both sides: each as a user of ``interp`` makes it, and as transformers' hooks apply it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

import interp


@dataclass(frozen=True, eq=False)
class Edit(ABC):
    """One edit on both sides."""

    layer: int

    @abstractmethod
    def ours(self) -> interp.Edit:
        """As a user makes it."""

    def changed(self, role: str, layer: int, x: np.ndarray) -> np.ndarray:
        """What takes the place of what a role holds in a layer."""
        return x

    def cut(self, layer: int, shape: tuple[int, ...]) -> np.ndarray | None:
        """Which edges of attention are cut: a mask of the scores' shape ``(n_head, n_query, n_key)``; None: none."""
        return None


@dataclass(frozen=True, eq=False)
class ZeroHead(Edit):
    """What a head hands to the output matrix is zero."""

    head: int

    def ours(self) -> interp.Edit:
        return interp.ablate([(self.layer, self.head)])

    def changed(self, role, layer, x):
        if (role, layer) != ("z", self.layer):
            return x
        x = x.copy()
        x[:, self.head] = 0
        return x


@dataclass(frozen=True, eq=False)
class ZeroMixer(Edit):
    """What a recurrent layer adds to the residual stream is zero."""

    site: str

    def ours(self) -> interp.Edit:
        return interp.scale(f"{self.site}-{self.layer}", 0.0)

    def changed(self, role, layer, x):
        return np.zeros_like(x) if (role, layer) == ("mixer_out", self.layer) else x


@dataclass(frozen=True, eq=False)
class Patch(Edit):
    """The residual stream behind a layer is what it is in another run, at some positions.

    ``source`` is ``(n_tokens, n_embd)``, which each side computes for itself.
    """

    source: np.ndarray
    positions: tuple[int, ...]

    def ours(self) -> interp.Edit:
        return interp.patch("resid_post", self.layer, self.source, positions=list(self.positions))

    def changed(self, role, layer, x):
        if (role, layer) != ("resid_post", self.layer):
            return x
        x, rows = x.copy(), list(self.positions)
        x[rows] = self.source[rows]
        return x


@dataclass(frozen=True, eq=False)
class Knockout(Edit):
    """Queries do not see keys, in some heads."""

    queries: tuple[int, ...]
    keys: tuple[int, ...]
    heads: tuple[int, ...]

    def ours(self) -> interp.Edit:
        return interp.knockout(self.layer, self.queries, self.keys, self.heads)

    def cut(self, layer, shape):
        if layer != self.layer:
            return None
        where = np.zeros(shape, bool)
        where[np.ix_(self.heads, self.queries, self.keys)] = True
        return where
