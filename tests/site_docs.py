"""`docs/sites.md`: what each alias is on each architecture that the tests have a small model of.

Write it anew: python tests/site_docs.py
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "sites.md"

if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

import interp
import models
from interp.sites import Site, SiteTable
from recipes import RECIPES

# A layer that is neither the first nor the last.
LAYER = 1

INTRO = """\
# What aliases are

Every tensor that llama.cpp's graph names can be read and edited under its own name. Those names differ by
architecture, so there are aliases: `resid_post`, `q`, `z`, `mlp_out`, … name a role, and mean whatever tensor has that
role in the loaded model. A role that an architecture gives no name is an error, never another tensor. TransformerLens'
names (`blocks.5.hook_resid_post`) work too; without `blocks.5.` they mean every layer. What each of them promises is
written at the head of [`interp/aliases.py`](../interp/aliases.py).

The names of a model, in graph order, with axes and shapes: `model.sites()`, or `llama-interp -m MODEL sites`.

Below, names stand without their layer, `#k` is the occurrence where a name comes several times in a layer, and – means
that the graph names no such tensor. `attn_proj` is the tensor that this package names behind the output matrix of every
attention. `attn_scores` and `attn_logits` are the same everywhere. `mixtral` is a Llama with experts.

This page is made by `python tests/site_docs.py` from small random models, and a test compares it.
"""

TABLES = {
    "Residual stream": ("resid_pre", "resid_mid", "resid_post", "final_norm"),
    "Attention": ("q_pre", "k_pre", "q", "k", "v", "z", "attn_out"),
    "MLP": ("mlp_in", "mlp_act", "mlp_out"),
    "TransformerLens' names with a meaning of their own": (
        "hook_attn_out",
        "hook_mlp_out",
        "attn.hook_q",
        "attn.hook_k",
        "attn.hook_rot_q",
        "attn.hook_rot_k",
        "mlp.hook_pre",
        "mlp.hook_pre_linear",
        "hook_embed",
        "hook_pos_embed",
    ),
}


def found(table: SiteTable, name: str, layer: int | None = None) -> Site | None:
    """The site that a name means in a layer; None where the architecture names none."""
    try:
        return table.find(name, layer)[0]
    except interp.SiteError:
        return None


def _cell(table: SiteTable, name: str) -> str:
    if name == "resid_pre":
        return f"`{found(table, name, 0).name}`, then `{found(table, name, LAYER).name}` of the layer before"
    site = found(table, name, LAYER)
    if site is None:
        return "–"
    if site.layer < 0:
        # inside a layer these have one occurrence for each layer, and outside of the layers one only
        return f"`{site.name}`" + (", numbered by layer" if table.place(site.key) == LAYER else "")
    return f"`{site.name}`" if site.n_occurrences == 1 else f"`{site.name}#{site.occurrence}`"


def page() -> str:
    """The whole page, as Markdown."""
    rows: dict[str, dict[str, str]] = {}
    for arch in RECIPES:
        with interp.Model(models.tiny(arch), n_ctx=64, n_threads=1) as model:
            rows[arch] = {name: _cell(model._table, name) for names in TABLES.values() for name in names}
    parts = [INTRO]
    for title, names in TABLES.items():
        lines = [f"| | {' | '.join(f'`{name}`' for name in names)} |", "|---" * (len(names) + 1) + "|"]
        lines += [f"| {arch} | {' | '.join(cells[name] for name in names)} |" for arch, cells in rows.items()]
        parts.append(f"## {title}\n\n" + "\n".join(lines) + "\n")
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
