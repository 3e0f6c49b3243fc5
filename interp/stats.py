"""Statistics of activations over a corpus: means, variances, outliers, top values and where they occur, in one pass."""

from __future__ import annotations

import ctypes as ct
import math
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from . import header
from .channels import Channels, Outlier, Stats, Top
from .corpus import Corpus
from .edits import Edit
from .errors import RunError, SiteError
from .program import Program, as_list
from .sites import At, Key, Site, as_at
from .trace import END

if TYPE_CHECKING:
    from .model import Model

__all__ = ["Channels", "Outlier", "Stats", "Top", "stats"]

# The place of a top value is one number of 64 bits: its document, and the token of it.
_DOCUMENT = 36

_MAX_TOP = 4096


def stats(
    model: Model, corpus, sites=("l_out",), *, layers=None, n_top: int = 10, threshold: float = 0.01,
    chunk: int | None = None, skip_first: bool = False, max_tokens: int | None = None, edits=(),
    progress: bool | None = None,
) -> Stats:
    """Statistics of every channel of some sites over a text file or many documents, in one pass.

    A document is cut into chunks, and each is run as a context of its own, with the begin token first where the model
    wants one. What is kept does not grow with the corpus: about 140 bytes for each channel and as many for each of
    its top values. No head is computed unless a site after it is asked for.

    Args:
        corpus: the path of a text file in UTF-8, which is read piece by piece; or an iterable of documents, each a
            text or token ids. The model is in use while the iterable is read, which therefore cannot run it.
        sites: names or selectors with layers (:func:`interp.at`) of sites with one row for each token.
        layers: of the sites that name none themselves; None: all.
        n_top: how many values of the largest magnitude are kept of each channel, with the tokens around them.
        threshold: values of at most this magnitude count as zero for :meth:`Stats.sparsity`.
        chunk: tokens of a context; None: 512, or ``n_ctx`` where that is less.
        skip_first: leave out the first token of each chunk, on which attention sinks and their outliers sit.
        max_tokens: end after so many tokens of the documents.
        edits: in effect in every chunk; positions count from its start.
        progress: a bar on stderr; None: where stderr is a terminal.

    Returns:
        :class:`Stats`; after Ctrl-C that of the chunks before, with ``complete`` False.

    Raises:
        FileError: the file does not exist, cannot be read, or is no text.
        RunError: an empty corpus, or an argument of the wrong kind.
        SiteError: an unknown site, or one that has no channels.
        EditError: as in :meth:`Model.run <interp.Model.run>`.
    """
    chunk = _whole(chunk, "chunk", 1, model.n_ctx) if chunk is not None else min(model.n_ctx, 512)
    if isinstance(threshold, bool) or not isinstance(threshold, (int, float)) or not 0 <= threshold < math.inf:
        raise RunError(f"threshold={threshold!r}: give a magnitude, a number of at least 0.")
    n_top = _whole(n_top, "n_top", 0, _MAX_TOP)
    max_tokens = None if max_tokens is None else _whole(max_tokens, "max_tokens", 1)
    model._check_open()
    if getattr(model, "n_prefix", 0):
        raise RunError("A prefix is in force, but each chunk of a corpus is a context of its own: leave it first.")
    text = Corpus(model.vocab, corpus, chunk, max_tokens)
    if chunk <= len(text.begin):
        raise RunError(f"chunk={chunk} has room for the begin token only: give at least {len(text.begin) + 1}.")

    selectors = _selectors(sites, layers)
    last = _last(model, Program(model._table, selectors, (), chunk).captures)
    # what follows the last layer needs all of them
    within = last.layer >= 0 or not model._table.is_after_layers(last.key)
    program = _Statistics(
        model._table, selectors, _checked(edits), chunk, last_layer=max(last.layer, 0) if within else None,
        threshold=threshold, n_top=n_top, skip_first=skip_first,
    )
    complete = True
    with model._session(program, last.key) as handle:
        try:
            with _Progress(progress, text) as bar:
                for part in text.chunks():
                    model._lib.memory_clear(handle)
                    model._lib.stats_set_offset(handle, (part.document << _DOCUMENT) + part.first)
                    model._decode(program, handle, part.tokens, 0, np.ones(len(part.tokens), np.int8))
                    bar.advance(part.n_own)
        except KeyboardInterrupt:
            if program.count(model._lib, handle) == 0:
                raise
            complete = False
        n_tokens = program.count(model._lib, handle)
        if n_tokens == 0:
            hint = " skip_first leaves one out of each chunk." if skip_first else ""
            raise RunError(f"The corpus holds no token to count.{hint}")
        channels = program.read_all(model._lib, handle)
    info = {
        "model": model.name, "arch": model.arch, "n_layer": model.n_layer, "corpus": text.name, "n_tokens": n_tokens,
        "chunk": chunk, "n_begin": len(text.begin), "skip_first": bool(skip_first), "threshold": float(threshold),
        "n_top": n_top, "complete": complete, "document_shift": _DOCUMENT,
    }
    return Stats(channels, {key: model._table.labels(key) for key in channels}, _pieces(model, channels), info)


def _whole(value, name: str, least: int, most: int | None = None) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__") or int(value) < least:
        raise RunError(f"{name}={value!r}: give an integer of at least {least}.")
    if most is not None and int(value) > most:
        raise RunError(f"{name}={value!r}: give an integer of at most {most}.")
    return int(value)


def _selectors(sites, layers) -> list[At]:
    if not isinstance(sites, (str, At)):
        sites = as_list(sites, (str, At))
        if len(sites) == 2 and isinstance(sites[0], str) and hasattr(sites[1], "__index__"):
            sites = [tuple(sites)]  # (site, layer)
    found = []
    for selector in map(as_at, as_list(sites, (str, At))):
        if selector.heads is not None or selector.rows is not None:
            raise SiteError(
                f"Statistics are of all heads and positions of {selector.site!r}: leave heads and positions out. "
                "Heads are the first axis of what comes back; skip_first=True leaves out the first position."
            )
        if layers is not None and selector.layers is None:
            selector = replace(selector, layers=as_at((selector.site, layers)).layers)
        found.append(selector)
    if not found:
        raise SiteError('No sites: name at least one, sites=("l_out",).')
    return found


def _last(model: Model, captures) -> Site:
    """The last of the sites in graph order, with which the graph can end."""
    for captured in captures:
        site = captured.site
        if site.is_attention or site.shape[0] is not None or None in site.shape[1:] or site.dtype != "float32":
            raise SiteError(
                f"{site.key} has axes {site.axes} of {site.dtype}: there are no statistics of it, because it does not "
                "hold one row of float channels for each token. l_out, z, q, mlp_act, … do."
            )
    order = {site.key: i for i, site in enumerate(model._table.sites)}
    return max((captured.site for captured in captures), key=lambda site: order[site.key])


def _checked(edits) -> list[Edit]:
    """Edits whose positions mean the same in every chunk, whatever its length."""
    edits = as_list(edits, (Edit,))
    for edit in edits:
        for change in getattr(edit, "changes", ()):
            rows = change.at.rows
            if isinstance(rows, str) or any(row < 0 for row in rows or ()):
                raise RunError(
                    f"The edit at {change.at.site!r} has positions {rows!r}: over a corpus chunks differ in length, "
                    "so positions are given from the start of a chunk, 0 or more, or left out."
                )
    return edits


class _Statistics(Program):
    """A program whose captures keep statistics instead of rows."""

    def __init__(self, *args, threshold: float, n_top: int, skip_first: bool, **kwargs):
        super().__init__(*args, **kwargs)
        self._threshold, self._n_top = threshold, n_top
        if skip_first:
            self.captures = [replace(captured, ranges=((1, END),)) for captured in self.captures]

    def _kind(self, site: Site) -> int:
        return header.CAPTURE_STATS

    def install(self, lib, handle):
        callbacks = super().install(lib, handle)
        for i in range(len(self.captures)):
            if lib.stats_set(handle, i, self._threshold, self._n_top) != 0:
                raise RunError(lib.reason(handle))
        return callbacks

    def count(self, lib, handle) -> int:
        """Tokens that every site has counted so far."""
        counts = [_read(lib, handle, i, header.STATS_N_ROWS, np.int64, (1,)) for i in range(len(self.captures))]
        return int(min(counts)[0])

    def read_all(self, lib, handle) -> dict[Key, Channels]:
        sites = [captured.site for captured in self.captures]
        return {site.key: self._read_one(lib, handle, i, site) for i, site in enumerate(sites)}

    def _read_one(self, lib, handle, index: int, site: Site) -> Channels:
        shape = tuple(site.shape[1:])
        top = (*shape, self._n_top)

        def read(field: int, dtype, shape=shape) -> np.ndarray:
            return _read(lib, handle, index, field, dtype, shape)

        return Channels(
            mean=read(header.STATS_MEAN, np.float64),
            mean_square=read(header.STATS_MEAN_SQ, np.float64),
            var=read(header.STATS_VAR, np.float64),
            min=read(header.STATS_MIN, np.float32),
            max=read(header.STATS_MAX, np.float32),
            n_small=read(header.STATS_N_SMALL, np.int64),
            top=read(header.STATS_TOP, np.float32, top),
            top_row=read(header.STATS_TOP_ROW, np.int64, top),
            top_tokens=read(header.STATS_TOP_TOKENS, np.int32, (*top, header.STATS_CONTEXT)),
        )


def _read(lib, handle, index: int, field: int, dtype, shape: tuple[int, ...]) -> np.ndarray:
    array = np.zeros(shape, dtype)
    # before the first token there is only the number of tokens
    if array.size and lib.stats_read(handle, index, field, array.ctypes.data_as(ct.c_void_p), array.nbytes) != 0:
        raise RunError(f"Statistics {index} cannot be read.")
    return array


def _pieces(model: Model, channels: dict[Key, Channels]) -> dict[int, str]:
    """The texts of all tokens that were kept: a file of statistics has no model to ask."""
    seen = np.zeros(model.n_vocab + 1, bool)
    for found in channels.values():
        seen[found.top_tokens] = True  # -1, no token, is the last
    tokens = np.flatnonzero(seen[:-1]).tolist()
    return dict(zip(tokens, model.vocab.pieces(tokens)))


class _Progress:
    """A bar on stderr; it redraws itself only when a chunk is done, without a thread that would take a core."""

    def __init__(self, wanted: bool | None, corpus: Corpus):
        self._wanted, self._corpus, self._bar = sys.stderr.isatty() if wanted is None else wanted, corpus, None

    def __enter__(self) -> "_Progress":
        if not self._wanted:
            return self
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        name, count = TextColumn("{task.description}"), TextColumn("{task.fields[count]}")
        columns = [name, BarColumn(), TaskProgressColumn(), count]
        if self._corpus.total:
            columns.append(TimeRemainingColumn())
        self._bar = Progress(*columns, console=Console(stderr=True), auto_refresh=False, transient=True)
        self._task = self._bar.add_task(self._corpus.name, total=self._corpus.total or None, count="")
        self._start = self._shown = time.monotonic()
        self._n_tokens = 0
        self._bar.start()
        return self

    def advance(self, n_tokens: int) -> None:
        if self._bar is None:
            return
        self._n_tokens += n_tokens
        now = time.monotonic()
        if now - self._shown > 0.1:
            self._shown = now
            rate = self._n_tokens / (now - self._start)
            count = f"{self._n_tokens} tokens, {rate:.0f}/s"
            self._bar.update(self._task, completed=self._corpus.done, count=count, refresh=True)

    def __exit__(self, *_exc) -> None:
        if self._bar is not None:
            self._bar.stop()
