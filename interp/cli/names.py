"""What names of sites, layers and heads mean in a model."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import RunError, SiteError
from ..plot import visible
from ..sites import parse
from .arguments import Head

if TYPE_CHECKING:
    from ..model import Model
    from ..sites import Site


_WITH_HEADS = re.compile(r"(.+-\d+)\.(\d+(?:,\d+)*)", re.ASCII)


def place(model: Model, text: str, option: str) -> tuple[str, int, Site]:
    """The one tensor that a name means: name, layer (-1: outside of the layers), and what it is.

    Raises:
        UsageError: the name means tensors of several layers.
        SiteError: no such site or layer.
    """
    layer = parse(text)[1]
    found = model._table.find(text)
    if layer is None and any(site.layer >= 0 for site in found):
        last = found[-1].layer
        raise click.UsageError(
            f"{option} {text}: of which layer? Name it, {text}-{last}: without one {len(found)} layers would be meant"
        )
    return text, -1 if layer is None else layer, found[-1]


def residual_sites(model: Model) -> list[str]:
    """The names of the per-layer sites that are as wide as the residual stream, in graph order."""
    wide = (s.name for s in last_of_each(model) if s.layer >= 0 and s.shape == (None, model.n_embd))
    found = list(dict.fromkeys(wide))
    if not found:
        raise RunError("this model names no site of the residual stream's shape: see llama-interp sites")
    return found


def last_of_each(model: Model) -> list[Site]:
    """The sites that a bare name picks: of tensors with one name in one layer the last."""
    return [s for s in model.sites() if s.occurrence == s.n_occurrences - 1]


def n_heads_of(model: Model) -> dict[int, int]:
    """The number of heads of each layer that has attention."""
    return {site.layer: site.n_head for site in model._table.sites if site.name == "attn_scores"}


def as_pair(model: Model, head: Head, option: str) -> tuple[int, int]:
    """Layer and head from 0.

    Raises:
        UsageError: a number, where layers have different numbers of heads.
        SiteError: out of range.
    """
    n_heads = n_heads_of(model)
    layer, index = head.layer, head.head
    if layer is None:
        if len(n_heads) != model.n_layer or len(set(n_heads.values())) != 1:
            raise click.UsageError(f"{option} {head}: the layers of this model differ in their heads; write LAYER.HEAD")
        n_head = n_heads[0]
        if index >= n_head * model.n_layer:
            last = n_head * model.n_layer - 1
            raise SiteError(f"{option} {head}: the model has heads 0 to {last}, {n_head} in each layer")
        return divmod(index, n_head)
    layer = model._table.layer_index(layer, f"{option} {head}")
    if layer not in n_heads:
        raise SiteError(f"{option} {head}: layer {layer} has no attention heads")
    if not -n_heads[layer] <= index < n_heads[layer]:
        raise SiteError(f"{option} {head}: layer {layer} has heads 0 to {n_heads[layer] - 1}")
    return layer, index % n_heads[layer]


def layers_and_width(model: Model, text: str, layers, option: str) -> tuple[list[int], int]:
    """The layers in which a site is meant, and the length of its last axis."""
    named = parse(text)[1]
    if named is not None and layers is not None and {model._table.layer_index(il) for il in layers} != {named}:
        said = ", ".join(map(str, layers))
        raise click.UsageError(f"{option} {text}: the name says layer {named}, LAYER says {said}")
    if layers is None:
        sites = model._table.find(text)
    else:
        sites = [site for layer in layers for site in model._table.find(text, layer)]
        layers = [model._table.layer_index(layer) for layer in layers]
    widths = {site.shape[-1] for site in sites}
    if len(widths) != 1 or None in widths:
        raise SiteError(f"{option} {text}: it has no one width that a direction could have")
    return layers or sorted({site.layer for site in sites}), int(widths.pop())


def numbered(model: Model, prompt: str) -> str:
    """A prompt's tokens with their positions, in one line; of many the first and the last."""
    pieces = model.pieces(model.tokens(prompt))
    shown = [f"{i} {visible(piece, 20)}" for i, piece in enumerate(pieces)]
    listed = shown if len(shown) <= 60 else [*shown[:50], "…", *shown[-9:]]
    return f"{len(pieces)} token{'s' * (len(pieces) != 1)}: {', '.join(listed)}"


def check_positions(model: Model, prompt: str, positions: Iterable[int] | None, option: str) -> None:
    """Whether a prompt has these positions; None stands for all.

    Raises:
        UsageError: it has not; the message numbers its tokens.
    """
    n = len(model.tokens(prompt))
    for position in positions or ():
        if not -n <= position < n:
            raise click.UsageError(
                f"{option}: position {position} is out of range, the prompt has {numbered(model, prompt)}"
            )


def rows_of(path: Path, positions: Iterable[int], n_rows: int, held: list[int] | None, n_tokens: int) -> list[int]:
    """Which rows of an array belong to positions."""
    n = n_tokens if held is not None else n_rows
    rows = []
    for position in positions:
        if not -n <= position < n:
            raise SiteError(f"position {position} is out of range: {path} has {n}")
        if held is not None and position % n not in held:
            raise SiteError(f"{path} does not hold position {position}; it holds {', '.join(map(str, held))}")
        rows.append(position % n if held is None else held.index(position % n))
    return rows


def split_heads(text: str) -> tuple[str, list[int] | None]:
    """`z-24.3,5` as the site `z-24` and heads 3 and 5; without heads None, for all."""
    match = _WITH_HEADS.fullmatch(text)
    return (match[1], [int(head) for head in match[2].split(",")]) if match else (text, None)
