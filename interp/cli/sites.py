"""`llama-interp sites`: where a model can be read and edited, and what the aliases mean there."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import click

from .. import plot
from ..errors import SiteError
from ..sites import ALIASES
from . import output
from .base import json_option, load, model_option
from .names import last_of_each
from .output import print_json, shape_text
from .root import cli

if TYPE_CHECKING:
    from ..model import Model
    from ..sites import Site


@cli.command()
@model_option
@json_option
def sites(path: str | None, as_json: bool) -> None:
    """List the places where a model can be read and edited."""
    model = load(path)
    found, aliases = _rows(last_of_each(model)), _aliases(model)
    if as_json:
        print_json({"sites": found, "aliases": aliases})
        return
    made = output.table("site", "layers", "axes", "shape", ">times")
    for row in found:
        layers = plot.spans(row["layers"]) or "-"
        made.add_row(row["name"], layers, ", ".join(row["axes"]), shape_text(row["shape"]), str(row["occurrences"]))
    output.show(made)
    click.echo()
    made = output.table("alias", "layers", "is")
    for row in aliases:
        made.add_row(row["name"], plot.spans(row["layers"]) or "-", row["is"] or "not named by this architecture")
    output.show(made)
    click.echo("\nA name may carry its layer, l_out-5, and which of several in a layer, Qcur-5#0; without # the last.")


def _rows(found: list[Site]) -> list[dict]:
    groups: dict[tuple, list[Site]] = defaultdict(list)
    for site in found:
        groups[site.name, site.axes, site.shape, site.n_occurrences].append(site)
    return [
        {
            "name": name, "layers": sorted(s.layer for s in group if s.layer >= 0), "axes": list(axes),
            "shape": list(shape), "occurrences": times,
        }
        for (name, axes, shape, times), group in groups.items()
    ]


def _aliases(model: Model) -> list[dict]:
    """Each alias, the layers that have it, and the names of the tensors that it means, most layers first."""
    rows = []
    for alias in ALIASES:
        names: dict[str, int] = defaultdict(int)
        layers = []
        for layer in range(-1, model.n_layer):
            # outside of the layers an alias is asked for without one
            if layer < 0 and alias != "final_norm":
                continue
            try:
                site = model._table.find(alias, None if layer < 0 else layer)[0]
            except SiteError:
                continue
            if layer >= 0 and not (alias == "final_norm"):
                layers.append(layer)
            elif layer >= 0:
                continue
            names[_called(site, layer)] += 1
        named = sorted(names, key=lambda name: -names[name])
        rows.append({"name": alias, "layers": layers, "is": ", ".join(named) or None})
    return rows


def _called(site: Site, layer: int) -> str:
    name = site.name if site.occurrence == site.n_occurrences - 1 else f"{site.name}#{site.occurrence}"
    return f"{name} of the layer before" if 0 <= site.layer < layer else name
