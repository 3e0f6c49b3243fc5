"""``Stats``: what :func:`interp.stats` found out about each channel; tables, pictures and files of it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from . import files, header, plot
from .errors import RunError, SiteError
from .sites import Key, parse

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_FORMAT = "llama-interp stats 1"


@dataclass(frozen=True)
class Channels:
    """Statistics of one tensor: arrays in the shape of a token's row, with further axes for the top values."""

    mean: np.ndarray
    mean_square: np.ndarray
    var: np.ndarray
    min: np.ndarray
    max: np.ndarray
    n_small: np.ndarray
    top: np.ndarray  # (…, n_top), largest magnitude first
    top_row: np.ndarray  # document and token of it in one number; -1: there are fewer tokens
    top_tokens: np.ndarray  # (…, n_top, tokens around it)


_FIELDS = tuple(field.name for field in fields(Channels))


@dataclass(frozen=True)
class Top:
    """One of the largest activations.

    Attributes:
        value: with its sign.
        layer, channel: where; a channel of a site with heads is ``(head, channel)``.
        token, piece: the token at which it occurred, and its text.
        before, after: texts of the up to 15 tokens before and 4 after it in its chunk.
        document: from 0.
        offset: of the token in its document, counted without begin tokens; -1 for a begin token.
        position: in its chunk, begin token included.
    """

    value: float
    layer: int
    channel: int | tuple[int, ...]
    token: int
    piece: str
    before: tuple[str, ...]
    after: tuple[str, ...]
    document: int
    offset: int
    position: int


@dataclass(frozen=True)
class Outlier:
    """A channel that is larger than its kin.

    Attributes:
        layer, channel: where; a channel of a site with heads is ``(head, channel)``.
        rms: root of the mean square over all tokens.
        ratio: of the rms to the median rms of the layer's channels.
    """

    layer: int
    channel: int | tuple[int, ...]
    rms: float
    ratio: float


class Stats:
    """Statistics of the channels of some sites, as :func:`interp.stats` returns them.

    ``mean``, ``var``, ``std``, ``mean_square``, ``rms``, ``min``, ``max`` and ``sparsity`` take a site and a layer and
    give an array in the shape of a token's row: ``(n_channels,)``, or ``(n_head, d_head)`` for z, q, k and v; without
    a layer those of all layers, layer axis first. So ``stats.mean("z", 3)`` is what a mean ablation puts in.

    Attributes:
        n_tokens: tokens counted.
        threshold: magnitude up to which a value counts as zero for ``sparsity``.
        n_top: top values kept of each channel.
        complete: False if Ctrl-C ended it before the corpus did.
        info: these, and how they were made: model, corpus, chunk length.
    """

    def __init__(self, channels: dict[Key, Channels], labels: dict[Key, list], pieces: dict[int, str], info: dict):
        self._channels, self._labels, self._pieces, self.info = channels, labels, pieces, dict(info)
        self.n_tokens: int = info["n_tokens"]
        self.threshold: float = info["threshold"]
        self.n_top: int = info["n_top"]
        self.complete: bool = info["complete"]

    def __repr__(self) -> str:
        end = "" if self.complete else ", interrupted"
        return f"<Stats of {', '.join(self.sites)} over {self.n_tokens} tokens{end}>"

    # names

    @property
    def sites(self) -> list[str]:
        """The graph's names of what was measured, as asked for; aliases of them work too."""
        return list(dict.fromkeys(self._name(key) for key in self._channels))

    def _name(self, key: Key) -> str:
        names = [name for name, _ in self._labels[key]]
        return key.name if key.name in names else f"{key.name}#{key.occurrence}"

    def layers(self, site: str) -> list[int]:
        """The layers in which a site was measured, ascending; -1: outside of the layers."""
        return sorted(self._find(site))

    def _find(self, site: str) -> dict[int, Key]:
        if not isinstance(site, str):
            raise SiteError(f"{site!r} names no site; one of {', '.join(self.sites)} does.")
        name, layer, occurrence = parse(site)
        label = name if occurrence is None else f"{name}#{occurrence}"
        found = {il: key for key in self._channels for text, il in self._labels[key] if text == label}
        if layer is not None:
            found = {il: key for il, key in found.items() if il == layer}
        if not found:
            raise SiteError(f"There are no statistics of {site!r}, but of {', '.join(self.sites)}.")
        return found

    def _one(self, site: str, layer: int | None) -> tuple[int, Channels]:
        found = self._find(site)
        if layer is None and len(found) == 1:
            layer = next(iter(found))
        if layer is None:
            raise SiteError(f"{site!r} was measured in layers {plot.spans(sorted(found))}: name one.")
        at = plot.whole(layer, "layer")
        at = at + self.info["n_layer"] if at < 0 and at not in found else at
        if at not in found:
            raise SiteError(f"{site!r} was measured in layers {plot.spans(sorted(found))}, not in layer {layer}.")
        return at, self._channels[found[at]]

    # values

    def _values(self, get, site: str, layer: int | None) -> np.ndarray:
        if layer is not None or len(self._find(site)) == 1:
            return get(self._one(site, layer)[1])
        arrays = [get(self._one(site, il)[1]) for il in self.layers(site)]
        if len({array.shape for array in arrays}) > 1:
            raise SiteError(f"{site!r} has other shapes in other layers; ask for one layer.")
        return np.stack(arrays)

    def mean(self, site: str, layer: int | None = None) -> np.ndarray:
        """Mean over all tokens, float64."""
        return self._values(lambda c: c.mean, site, layer)

    def var(self, site: str, layer: int | None = None) -> np.ndarray:
        """Variance over all tokens, divided by their number, float64."""
        return self._values(lambda c: c.var, site, layer)

    def std(self, site: str, layer: int | None = None) -> np.ndarray:
        """Standard deviation over all tokens, float64."""
        return np.sqrt(self.var(site, layer))

    def mean_square(self, site: str, layer: int | None = None) -> np.ndarray:
        """Mean of the squares, float64."""
        return self._values(lambda c: c.mean_square, site, layer)

    def rms(self, site: str, layer: int | None = None) -> np.ndarray:
        """Root of the mean square, float64."""
        return np.sqrt(self.mean_square(site, layer))

    def min(self, site: str, layer: int | None = None) -> np.ndarray:
        """Smallest value, float32."""
        return self._values(lambda c: c.min, site, layer)

    def max(self, site: str, layer: int | None = None) -> np.ndarray:
        """Largest value, float32."""
        return self._values(lambda c: c.max, site, layer)

    def sparsity(self, site: str, layer: int | None = None) -> np.ndarray:
        """Share of the values whose magnitude is at most ``threshold``, float64 from 0 to 1."""
        return self._values(lambda c: c.n_small / self.n_tokens, site, layer)

    def top(self, site: str, layer: int | None = None, channel=None, k: int | None = None) -> list[Top]:
        """The values of the largest magnitude of a channel, or of all channels together, largest first.

        Args:
            channel: an index into the token's row, ``(head, channel)`` for sites with heads; None: all channels.
            k: how many; None: ``n_top``, which is also the most there are.

        Raises:
            SiteError: no such site, layer or channel.
            RunError: more than were kept.
        """
        k = self.n_top if k is None else plot.whole(k, "k")
        if not 1 <= k <= self.n_top:
            raise RunError(f"k={k}: {self.n_top} top values were kept of each channel; stats(…, n_top={max(k, 1)})")
        layer, found = self._one(site, layer)
        if channel is not None:
            index = self._index(found, channel)
            return [self._top(layer, found, (*index, i)) for i in range(k) if found.top_row[(*index, i)] >= 0]
        # of equal magnitudes the first token, then the lowest channel
        kept = np.flatnonzero(found.top_row >= 0)
        order = np.lexsort((kept, found.top_row.ravel()[kept], -np.abs(found.top.ravel()[kept])))
        return [self._top(layer, found, np.unravel_index(i, found.top.shape)) for i in kept[order[:k]]]

    @staticmethod
    def _index(found: Channels, channel) -> tuple[int, ...]:
        shape = found.mean.shape
        index = tuple(plot.whole(i, "channel") for i in (channel if isinstance(channel, tuple) else (channel,)))
        if len(index) != len(shape) or not all(-n <= i < n for i, n in zip(index, shape)):
            raise SiteError(f"channel {channel} is not there: the channels of a token have shape {shape}.")
        return tuple(i % n for i, n in zip(index, shape))

    def _top(self, layer: int, found: Channels, index) -> Top:
        row, tokens = int(found.top_row[index]), found.top_tokens[index].tolist()
        shift, chunk, n_begin = (self.info[name] for name in ("document_shift", "chunk", "n_begin"))
        # every chunk of a document but its last is full
        number, position = divmod(row & ((1 << shift) - 1), chunk)
        around = [None if token < 0 else self._pieces[token] for token in tokens]
        own = header.STATS_BEFORE
        return Top(
            value=float(found.top[index]), layer=layer, channel=_channel(index[:-1]),
            token=tokens[own], piece=around[own],
            before=tuple(piece for piece in around[:own] if piece is not None),
            after=tuple(piece for piece in around[own + 1 :] if piece is not None), document=row >> shift,
            offset=-1 if position < n_begin else number * (chunk - n_begin) + position - n_begin, position=position,
        )

    def ratio(self, site: str, layer: int | None = None) -> np.ndarray:
        """The rms relative to the median rms of the layer's channels, float64."""
        return self._values(_ratio, site, layer)

    def outliers(self, site: str, k: int = 20) -> list[Outlier]:
        """The channels with the largest rms relative to the median of their layer, over all layers, largest first.

        Such channels are few and the same in most layers; Dettmers et al., "LLM.int8()" (2022), and Sun et al.,
        "Massive Activations in Large Language Models" (2024).
        """
        ratio, _, layers = self._ratios(site, k)
        order = np.argsort(-ratio, axis=None, kind="stable")[:k]
        return [self._outlier(site, layers[i], channel) for i, channel in zip(*np.unravel_index(order, ratio.shape))]

    def _outlier(self, site: str, layer: int, flat: int) -> Outlier:
        found = self._one(site, layer)[1]
        index = np.unravel_index(flat, found.mean.shape)
        return Outlier(layer, _channel(index), float(np.sqrt(found.mean_square[index])), float(_ratio(found)[index]))

    # showing

    def table(self, site: str | None = None, k: int = 20) -> Table:
        """The outlier channels, each in the layer where it stands out most: size, range, and where it was largest."""
        from rich import box
        from rich.table import Table
        from rich.text import Text

        site = self._site(site)
        table = Table(
            title=Text(self._title(site, f"the {k} largest channels")), box=box.SIMPLE_HEAD, title_justify="left",
            title_style="bold", show_edge=False, pad_edge=False, padding=(0, 1, 0, 0),
        )
        for name in ("layer", "channel", "rms", "of median", "min", "max", "small", "largest at"):
            table.add_column(name, justify="left" if name == "largest at" else "right", no_wrap=True)
        ratio, chosen, layers = self._ratios(site, k)
        for outlier in (self._outlier(site, layers[ratio[:, flat].argmax()], flat) for flat in chosen):
            found, at = self._one(site, outlier.layer)[1], outlier.channel
            values = [f"{outlier.rms:.3g}", f"{outlier.ratio:.1f}x", f"{found.min[at]:.3g}", f"{found.max[at]:.3g}"]
            context = Text()
            for top in self.top(site, outlier.layer, at, 1) if self.n_top else []:
                before, after = ("".join(pieces) for pieces in (top.before, top.after))
                context.append(plot.visible(before)[-24:] if before else "", "dim")
                context.append(plot.visible(top.piece), "bold")
                context.append(plot.visible(after)[:12] if after else "", "dim")
            small = f"{100 * found.n_small[at] / self.n_tokens:.1f} %"
            table.add_row(str(outlier.layer), _written(at), *values, small, context)
        return table

    def print(self, site: str | None = None, k: int = 20, console: Console | None = None) -> None:
        """Prints the table."""
        from rich.console import Console

        console = console or Console()
        if not console.is_terminal:
            # A pipe has no width: cut nothing there.
            console = Console(file=console.file, width=1000, no_color=True)
        table = self.table(site, k)
        # As part of the table the title would be wrapped to the width of its columns.
        title, table.title = table.title, None
        console.print(title, style="bold", soft_wrap=True)
        console.print(table)

    def plot(self, path: str | os.PathLike, site: str | None = None, k: int = 40) -> None:
        """Draws the k largest channels of all layers as PNG, and below how all channels compare."""
        site = self._site(site)
        ratio, chosen, layers = self._ratios(site, k)
        plot.stats_png(path, ratio, self._names(site), chosen, layers, self._title(site, "rms of the largest channels"))

    def html(self, path: str | os.PathLike, site: str | None = None, k: int = 100) -> None:
        """Writes the k largest channels of all layers as a page that works offline; hovering tells range and tokens."""
        site = self._site(site)
        ratio, chosen, layers = self._ratios(site, k)
        names = self._names(site)
        hover = [[self._hover(site, layer, channel) for channel in chosen] for layer in layers]
        title = self._title(site, "rms of the largest channels")
        plot.stats_html(path, ratio[:, chosen], [names[i] for i in chosen], layers, hover, title)

    def _names(self, site: str) -> list[str]:
        shape = self._one(site, self.layers(site)[0])[1].mean.shape
        return [_written(_channel(index)) for index in np.ndindex(shape)]

    def _ratios(self, site: str, k: int) -> tuple[np.ndarray, list[int], list[int]]:
        """Ratios (n_layers, n_channels), the k channels with the largest, and the layers."""
        if plot.whole(k, "k") < 1:
            raise RunError(f"k={k}: ask for at least one channel.")
        layers = self.layers(site)
        ratio = self.ratio(site).reshape(len(layers), -1)
        return ratio, np.argsort(-ratio.max(axis=0), kind="stable")[:k].tolist(), layers

    def _hover(self, site: str, layer: int, flat: int) -> str:
        found = self._one(site, layer)[1]
        at = np.unravel_index(flat, found.mean.shape)
        lines = [
            f"layer {layer}, channel {_written(_channel(at))}",
            f"rms {np.sqrt(found.mean_square[at]):.4g}, {_ratio(found)[at]:.1f} times the median",
            f"mean {found.mean[at]:.4g}, from {found.min[at]:.4g} to {found.max[at]:.4g}",
            f"{100 * found.n_small[at] / self.n_tokens:.1f} % at most {self.threshold:g}",
        ]
        for top in self.top(site, layer, _channel(at), min(3, self.n_top)) if self.n_top else []:
            before, after = ("".join(pieces) for pieces in (top.before[-8:], top.after))
            lines.append(f"{top.value:10.4g}  {before!r} [{top.piece!r}] {after!r}")
        return "\n".join(lines)

    def _site(self, site: str | None) -> str:
        if site is None and len(self.sites) > 1:
            raise SiteError(f"There are statistics of {', '.join(self.sites)}: name one.")
        return self.sites[0] if site is None else site

    def _title(self, site: str, what: str) -> str:
        self._find(site)
        part = "" if self.complete else " of an interrupted run"
        first = ", without the first of each chunk" if self.info["skip_first"] else ""
        return f"{site}: {what}\n{self.info['model']} on {self.info['corpus']}, {self.n_tokens} tokens{part}{first}"

    # files

    def save(self, path: str | os.PathLike) -> Path:
        """Writes everything to a file that plain safetensors or numpy can read as well.

        Arrays lie there as ``l_out-5#0/mean`` (name, layer, occurrence, statistic).

        Args:
            path: a name in ``.safetensors`` or ``.npz``, in a folder that exists; an old file is replaced.

        Raises:
            FileError: another suffix, or it cannot be written; nothing half-written is left.
        """
        arrays = {f"{key}/{name}": getattr(found, name) for key, found in self._channels.items() for name in _FIELDS}
        sites = {str(key): [(key.name, key.layer, key.occurrence), self._labels[key]] for key in self._channels}
        described = {"info": self.info, "sites": sites, "pieces": list(self._pieces.items())}
        texts = {name: json.dumps(value, ensure_ascii=False) for name, value in described.items()}
        return files.write_arrays(path, arrays, {"format": _FORMAT, **texts})

    @classmethod
    def load(cls, path: str | os.PathLike) -> Stats:
        """Reads what :meth:`save` wrote.

        Raises:
            FileError: no such file, no statistics, or damaged ones.
        """
        with files.opened(path) as file, files.refusing(file.path):
            if file.format != _FORMAT:
                raise ValueError("it holds no statistics of this package")
            info, sites, pieces = (json.loads(file.texts[name]) for name in ("info", "sites", "pieces"))
            channels, labels = {}, {}
            for parts, names in sites.values():
                key = Key(*parts)
                channels[key] = Channels(**{name: file[f"{key}/{name}"] for name in _FIELDS})
                labels[key] = [tuple(label) for label in names]
            return cls(channels, labels, dict(pieces), info)


def _ratio(found: Channels) -> np.ndarray:
    rms = np.sqrt(found.mean_square)
    # a median of 0, where most channels are silent, must not make every other infinite
    return rms / max(float(np.median(rms)), np.finfo(np.float32).tiny)


def _channel(index) -> int | tuple[int, ...]:
    index = tuple(int(i) for i in index)
    return index[0] if len(index) == 1 else index


def _written(channel: int | tuple[int, ...]) -> str:
    return ".".join(map(str, channel)) if isinstance(channel, tuple) else str(channel)
