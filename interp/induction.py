"""``induction_scores``: which heads look back to what followed a token the last time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .errors import RunError, SiteError
from .grid import Grid
from .sites import at

if TYPE_CHECKING:
    from .model import Model

SITE = "attn_scores"


def induction_scores(
    model: Model, n_tokens: int = 50, n_batch: int = 4, seed: int = 0, progress: bool | None = None,
) -> InductionScores:
    """How much each head attends, in a repeated random sequence, to the token after the first occurrence of its own.

    Method: Olsson et al., "In-context Learning and Induction Heads" (arXiv:2209.11895), prefix matching: random tokens
    are given twice, and the attention from each token of the second copy to the one after the same token in the first
    copy is averaged. A head that copies what followed has nearly 1.

    Args:
        model: the model.
        n_tokens: of one copy, drawn from the whole vocabulary, each at most once. In front stands the begin token
            where the model wants one.
        n_batch: sequences that are averaged.
        seed: of the draws.
        progress: a bar on the standard error; None: where that is a terminal.

    Returns:
        :class:`InductionScores`, whose ``values`` are (n_layer, n_head). After Ctrl-C, those of the sequences finished
        by then, with ``complete`` False.

    Raises:
        RunError: numbers below 1 (of tokens, 2), or two copies that do not fit the context.
        SiteError: the model has no attention.
    """
    for name, value, least in (("n_tokens", n_tokens, 2), ("n_batch", n_batch, 1), ("seed", seed, 0)):
        if isinstance(value, bool) or not hasattr(value, "__index__") or value < least:
            raise RunError(f"{name}={value!r}: give an integer of at least {least}.")
    if n_tokens > model.n_vocab:
        raise RunError(f"n_tokens={n_tokens}: the vocabulary has {model.n_vocab} tokens.")
    if model.n_prefix:
        raise RunError("A prefix is in force, but each sequence is a context of its own: model.prefix(None) ends it.")
    sites = model._table.find(SITE)
    if not sites:
        raise SiteError(f"The model {model.name} has no attention.")
    begin = model.tokens("")
    rng = np.random.default_rng(seed)
    prompts = []
    for _ in range(n_batch):
        drawn = rng.choice(model.n_vocab, n_tokens, replace=False).tolist()
        prompts.append(model._prompt([*begin, *drawn, *drawn]))
    n_head = max(site.shape[site.head_axis] for site in sites)
    found = InductionScores(
        values=np.full((len(sites), n_head), np.nan), metric="induction score", model=model.name,
        layers=[site.layer for site in sites], complete=False, heads=list(range(n_head)), n_tokens=int(n_tokens),
        n_batch=0, seed=int(seed),
    )
    second = np.arange(n_tokens) + len(begin) + n_tokens
    sums = np.zeros(found.values.shape)

    def cells() -> Iterator[tuple[tuple, np.ndarray]]:
        for prompt in prompts:
            run = model.run(prompt, capture=at(SITE, queries=second.tolist()), logits=None)
            for row, layer in enumerate(found.layers):
                pattern = run[SITE, layer]
                scores = pattern[:, np.arange(n_tokens), second - n_tokens + 1].mean(axis=1, dtype=np.float64)
                sums[row, : len(scores)] += scores
                sums[row, len(scores) :] = np.nan
            found.n_batch += 1
            yield (), sums / found.n_batch

    found.fill(cells(), progress, "repeating tokens", n_batch)
    if not found.n_batch:
        raise KeyboardInterrupt
    return found


@dataclass(eq=False, repr=False)
class InductionScores(Grid):
    """What :func:`induction_scores` measured.

    Attributes:
        values: (n_layers, n_heads) float64, from 0 to 1; NaN where a layer lacks that head.
        layers, heads: what rows and columns are: all layers with attention.
        n_tokens, seed: as given.
        n_batch: how many sequences were averaged.
        model, complete: as in every sweep.
    """

    heads: list[int]
    n_tokens: int
    n_batch: int
    seed: int

    baseline = 0.0

    _FORMAT = "llama-interp induction scores 1"
    _KIND = "induction scores"
    _SIGNED = False

    def _shape(self) -> tuple[int, int]:
        return len(self.layers), len(self.heads)

    def _title(self) -> str:
        return self._with_state("induction scores")

    def _summary(self) -> str:
        return f"{self.n_tokens} random tokens twice, mean of {self.n_batch}"

    def _lines(self, _width: int) -> list[str]:
        return [self._summary()]

    def _columns(self) -> list[str]:
        return list(map(str, self.heads))

    def _measure(self) -> str:
        return "attention to what followed"

    def _header(self) -> tuple[str, ...]:
        return "layer", "head", "score"

    def _texts(self, cell) -> list[str]:
        return [str(cell.layer), str(cell.head), f"{cell.value:.3f}"]

    def _hover(self, cell) -> str:
        return f"layer {cell.layer}, head {cell.head}\ninduction score {cell.value:.4f}"
