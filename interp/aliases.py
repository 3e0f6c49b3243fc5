"""Aliases and TransformerLens' names: which tensor of an architecture's graph has which role.

Aliases hold on every architecture that names such a tensor; ``docs/sites.md`` lists what they are on some of them.

- ``resid_pre``, ``resid_mid``, ``resid_post``: the residual stream at a layer's start, between attention and MLP, and
  at its end. ``resid_mid`` is missing where attention and MLP read the same residual stream.
- ``q``, ``k``, ``v``: as they enter attention, rotated and, where the model scales queries by a named step, scaled.
- ``q_pre``, ``k_pre``: what the rotation takes; the same as ``q`` and ``k`` where nothing is rotated.
- ``z``: values weighted by attention, one row for each head, before the output matrix.
- ``attn_out``, ``mlp_out``: what the modules return, before a norm or scale that some models put behind them.
- ``mlp_in``: what the MLP takes, so after the norm. ``mlp_act``: what its last matrix takes; of experts, with one row
  for each expert that is used.
- ``final_norm``: what the head takes.

TransformerLens' names mean what they mean there, of a model whose weights are not folded, centred or reordered:

- ``hook_attn_out`` and ``hook_mlp_out`` are what is added to the residual stream: after the norm behind the module
  where there is one. Granite multiplies them by a number on the way, after which its graph names no tensor.
- ``attn.hook_q`` and ``attn.hook_k`` are the projections with their bias: before norm, rotation and scale.
  ``attn.hook_rot_q`` and ``attn.hook_rot_k`` are the rotated ones, not yet scaled.
- ``mlp.hook_pre`` is what the activation function takes (of a gated MLP, the gate), ``mlp.hook_pre_linear`` what the
  gate is multiplied with, ``mlp.hook_post`` is ``mlp_act``.
- ``hook_embed`` includes the scale that Gemma puts on its embeddings, and the norm that BLOOM does.
- ``ln_final.hook_normalized`` is ``final_norm``, with the norm's weights: folding would move them into the head.

Within a head, some GGUF files hold the dimensions of queries and keys in another order than transformers (Llama,
Mistral, Mixtral, Granite). Their products are the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

ATTN_SCORES, ATTN_LOGITS, ATTN_PROJ = "attn_scores", "attn_logits", "attn_proj"

_PARSE = re.compile(r"^(?P<name>.+?)(?:-(?P<layer>\d+))?(?:#(?P<occurrence>\d+))?$")
_BLOCK = re.compile(r"^blocks\.(?P<layer>\d+)\.(?P<hook>.+)$")

ALIASES = (
    "resid_pre",
    "resid_mid",
    "resid_post",
    "q",
    "k",
    "v",
    "q_pre",
    "k_pre",
    "z",
    "attn_out",
    "mlp_in",
    "mlp_act",
    "mlp_out",
    "final_norm",
)

#: TransformerLens' names in a block -> alias, site, or a role of their own where no alias means the same
_BLOCK_HOOKS = {
    "hook_resid_pre": "resid_pre",
    "hook_resid_mid": "resid_mid",
    "hook_resid_post": "resid_post",
    "hook_attn_out": "hook_attn_out",
    "hook_mlp_out": "hook_mlp_out",
    "attn.hook_q": "attn.hook_q",
    "attn.hook_k": "attn.hook_k",
    "attn.hook_v": "v",
    "attn.hook_rot_q": "attn.hook_rot_q",
    "attn.hook_rot_k": "attn.hook_rot_k",
    "attn.hook_attn_scores": ATTN_LOGITS,
    "attn.hook_pattern": ATTN_SCORES,
    "attn.hook_z": "z",
    "mlp.hook_pre": "mlp.hook_pre",
    "mlp.hook_pre_linear": "mlp.hook_pre_linear",
    "mlp.hook_post": "mlp_act",
}

#: and outside of the blocks
_MODEL_HOOKS = {
    "hook_embed": "hook_embed",
    "hook_pos_embed": "hook_pos_embed",
    "ln_final.hook_normalized": "final_norm",
}

HOOKS = (*(f"blocks.0.{hook}" for hook in _BLOCK_HOOKS), *_MODEL_HOOKS)

_OWN = tuple(role for hook, role in (_BLOCK_HOOKS | _MODEL_HOOKS).items() if hook == role)

#: all that :func:`resolve` knows
ROLES = (*ALIASES, *_OWN)

#: what a layer without attention has none of
OF_ATTENTION = frozenset({
    ATTN_SCORES, ATTN_LOGITS, ATTN_PROJ, "z", "q", "k", "v", "q_pre", "k_pre",
    *(role for role in _BLOCK_HOOKS.values() if role.startswith("attn.")),
})  # fmt: skip

_COPY = "it is a copy of the residual stream that only one branch reads, and the graph makes none"
_NORMALIZED = "there it is before or after the norm's weights, by the kind of norm; attn_norm and ffn_norm are after"

#: TransformerLens' names for what no graph here names, and why
_WITHOUT_TENSOR = {
    "hook_mlp_in": f"{_COPY}; read resid_mid, or edit mlp_in, which is after the norm",
    "hook_attn_in": f"{_COPY}; read resid_pre, or edit attn_norm, which is after the norm",
    "hook_q_input": f"{_COPY}; read resid_pre, or edit q_pre",
    "hook_k_input": f"{_COPY}; read resid_pre, or edit k_pre",
    "hook_v_input": f"{_COPY}; read resid_pre, or edit v",
    "attn.hook_result": "heads are summed within one product; multiply z of a head with its part of the output matrix",
    "ln1.hook_normalized": _NORMALIZED,
    "ln2.hook_normalized": _NORMALIZED,
}

#: role -> candidates, the first that the layer has wins; ``#k`` picks an occurrence, no ``#`` the last
_CANDIDATES: dict[str, tuple[str, ...]] = {
    "resid_mid": ("ffn_inp", "sa_out", "attn_residual"),
    "resid_post": ("l_out",),
    "z": ("attn_gated", "kqv_out"),
    "attn_out": (ATTN_PROJ, "linear_attn_out", "attn_output", "attn_out"),
    "mlp_in": ("ffn_norm",),
    "mlp_act": (
        "ffn_moe_swiglu_oai",
        "ffn_moe_swiglu_limited",
        "ffn_moe_swiglu",
        "ffn_moe_geglu",
        "ffn_moe_reglu",
        "ffn_moe_relu_sqr",
        "ffn_moe_gelu",
        "ffn_moe_silu",
        "ffn_moe_relu",
        # what may follow an activation function stands before it
        "ffn_gate_par",
        "ffn_act",
        "ffn_sqr(relu)",
        "ffn_swiglu_oai",
        "ffn_swiglu_limited",
        "ffn_swiglu",
        "ffn_geglu",
        "ffn_reglu",
        "ffn_gelu",
        "ffn_silu",
        "ffn_relu",
        "ffn_xielu",
    ),
    "mlp_out": ("ffn_moe_out#0", "ffn_out#0"),
}

#: where an architecture's names mean something else; no candidates: it names no such tensor
_CANDIDATES_BY_ARCH: dict[tuple[str, str], tuple[str, ...]] = {
    # one norm for attention and MLP
    ("falcon", "mlp_in"): ("attn_norm",),
    ("command-r", "mlp_in"): ("attn_norm",),
    ("cohere2", "mlp_in"): ("attn_norm",),
    ("cohere2moe", "mlp_in"): ("attn_norm",),
    ("phi2", "mlp_in"): ("attn_norm",),
    ("plamo", "mlp_in"): ("attn_norm",),
    # norms behind the modules only
    ("olmo2", "mlp_in"): ("ffn_inp",),
    ("exaone4", "mlp_in"): ("ffn_inp",),
    # the MLP's norm under the name that others give to a norm behind attention
    ("gpt-oss", "mlp_in"): ("attn_post_norm",),
    ("seed_oss", "mlp_in"): ("attn_post_norm",),
    ("qwen3next", "mlp_in"): ("attn_post_norm",),
    ("qwen35", "mlp_in"): ("attn_post_norm",),
    ("qwen35moe", "mlp_in"): ("attn_post_norm",),
    ("glm4moe", "mlp_in"): ("post_attn_norm",),
    ("dbrx", "mlp_in"): ("attn_out_norm",),
    ("lfm2", "mlp_in"): ("model.layers.{}.ffn_norm",),
    ("lfm2moe", "mlp_in"): ("model.layers.{}.ffn_norm",),
    # ffn_out comes once, and is what the residual stream is after it
    ("apertus", "mlp_out"): ("ffn_down",),
    ("cogvlm", "mlp_out"): (),
    ("nemotron", "mlp_out"): (),
    ("pangu-embedded", "mlp_out"): (),
    # the sum of experts and of what all tokens share
    ("glm4moe", "mlp_out"): ("ffn_out#0",),
    ("hunyuan-moe", "mlp_out"): ("ffn_out#0",),
    ("hy_v3", "mlp_out"): ("ffn_out#0",),
    ("step35", "mlp_out"): ("ffn_out#0",),
    ("llama4", "mlp_out"): ("ffn_moe_out_merged", "ffn_out#0"),
    ("grovemoe", "mlp_out"): ("ffn_final_moe_out",),
    ("grok", "mlp_out"): ("ffn_out#1", "ffn_moe_out#0"),
    # called ffn_inp, but it is attention's output, and replacing it does nothing
    ("jamba", "resid_mid"): (),
    ("glm4", "hook_attn_out"): ("post_attn_norm",),
    ("glm4", "hook_mlp_out"): ("post_mlp_norm",),
}

#: norms behind the modules
_POST_NORMS = {"hook_attn_out": ("attn_post_norm", "attn_out_norm"), "hook_mlp_out": ("ffn_post_norm",)}

#: what becomes of queries, keys and values on their way into attention, the letter left out
_STEPS = (
    "{}cur",
    "{}cur_clamped",
    "{}cur_normed",
    "{}cur_norm",
    "{}cur_rope",
    "{}cur_pos",
    "{}cur-post-rope",
    "{}cur_scaled",
    "{}cur_attn_temp_scaled",
)

#: positions are learned, or in the softmax, or in other layers
_NOT_ROTATED = {
    "gpt2", "gptj", "mpt", "refact", "bloom", "jamba", "jais", "nemotron_h", "nemotron_h_moe", "kimi-linear"
}

#: the query's scale has no name of its own
_SCALED_LAST = {"phi3", "phimoe"}

#: queries and keys are normed after they are rotated
_NORMED_LAST = {"llama4", "hunyuan-moe", "hunyuan-dense", "hunyuan_vl", "maincoder", "talkie"}

#: what the activation function takes, by whether experts have it: gates, and what they are multiplied with
_GATES = {True: ("ffn_moe_gate_biased", "ffn_moe_gate"), False: ("ffn_gate_b", "ffn_gate")}
_UPS = {True: ("ffn_moe_up_biased", "ffn_moe_up"), False: ("ffn_up_b", "ffn_up")}


def parse(text: str) -> tuple[str, int | None, int | None]:
    """``"Qcur-5#0"`` as ``("Qcur", 5, 0)``; TransformerLens' names as the alias, site or role that they mean.

    Without ``blocks.5.`` they mean every layer.
    """
    block = _BLOCK.match(text)
    hook = block["hook"] if block else text
    if hook in _BLOCK_HOOKS:
        return _BLOCK_HOOKS[hook], int(block["layer"]) if block else None, None
    if text in _MODEL_HOOKS:
        return _MODEL_HOOKS[text], None, None
    match = _PARSE.match(text)
    name, layer, occurrence = match["name"], match["layer"], match["occurrence"]
    return name, None if layer is None else int(layer), None if occurrence is None else int(occurrence)


def why_without_tensor(text: str) -> str | None:
    """Why a name of TransformerLens means no tensor here; None for any other name."""
    block = _BLOCK.match(text)
    return _WITHOUT_TENSOR.get(block["hook"] if block else text)


def resolve(table, role: str, layer: int):
    """The site that has a role in a layer (-1: outside of the layers), or None.

    Args:
        table: a :class:`interp.sites.SiteTable`.
        role: one of :data:`ROLES`.
    """
    if role == "final_norm":
        return _first(table, ("result_norm",), -1) if layer == -1 else None
    if role == "hook_embed":
        # of BLOOM it is after the norm behind them
        names = ("inp_norm",) if table.arch == "bloom" else ("inp_scaled", "embd")
        return _first(table, names, 0 if table.arch == "bloom" else -1) if layer == -1 else None
    if role == "hook_pos_embed":
        return _first(table, ("pos_embd",), -1) if layer == -1 else None
    if layer < 0:
        return None
    if role == "resid_pre":
        return table.embedding if layer == 0 else _first(table, ("l_out",), layer - 1)
    if (table.arch, role) in _CANDIDATES_BY_ARCH:
        return _first(table, _CANDIDATES_BY_ARCH[table.arch, role], layer)
    special = _SPECIAL.get(role)
    return special(table, layer) if special else _first(table, _CANDIDATES[role], layer)


def _first(table, candidates: Iterable[str], layer: int):
    for candidate in candidates:
        name, _, occurrence = parse(candidate)
        found = table.named(name, layer, occurrence)
        if found:
            return found
    return None


def _mlp_in(table, layer: int):
    # what llama4 calls ffn_norm in a layer of experts is what attention returned
    is_other = table.arch == "llama4" and table.has("ffn_moe_out_merged", layer)
    return None if is_other else _first(table, _CANDIDATES["mlp_in"], layer)


def _mlp_out(table, layer: int):
    # experts that all tokens share are added to the chosen ones, and the sum has the other name
    return _first(table, ("ffn_out#0",) if table.has("ffn_shexp", layer) else _CANDIDATES["mlp_out"], layer)


def _added(role: str, module: str):
    def find(table, layer: int):
        norms = [name for name in _POST_NORMS[role] if name not in _CANDIDATES_BY_ARCH.get((table.arch, "mlp_in"), ())]
        return _first(table, norms, layer) or resolve(table, module, layer)

    return find


def _steps(table, letter: str, layer: int) -> list:
    names = {step.format(letter) for step in _STEPS}
    return [site for site in table.in_layer(layer) if site.name in names]


def _last(letter: str):
    def find(table, layer: int):
        steps = _steps(table, letter, layer)
        return steps[-1] if steps else None

    return find


def _projection(letter: str):
    """The first one split into heads: bias and clamp are in, norm and rotation are not."""

    def find(table, layer: int):
        steps = _steps(table, letter, layer)
        found = next((site for site in steps if site.name == f"{letter}cur" and site.head_axis is not None), None)
        rotated = _rotated(letter)(table, layer)
        return None if found is not None and found is rotated else found

    return find


def _rotated(letter: str):
    def find(table, layer: int):
        if table.arch in _NOT_ROTATED or table.arch in _NORMED_LAST:
            return None
        steps = [site for site in _steps(table, letter, layer) if not site.name.endswith("_scaled")]
        if letter == "Q" and table.arch in _SCALED_LAST:
            steps.pop()
        return steps[-1] if steps else None

    return find


def _before_rotation(letter: str):
    def find(table, layer: int):
        if table.arch in _NOT_ROTATED:
            return _last(letter)(table, layer)
        if table.arch in _NORMED_LAST:
            return _projection(letter)(table, layer)
        steps, rotated = _steps(table, letter, layer), _rotated(letter)(table, layer)
        place = steps.index(rotated) if rotated else 0
        before = steps[place - 1] if place else None
        return before if before and before.shape == rotated.shape else None

    return find


def _gate(table, layer: int):
    act = resolve(table, "mlp_act", layer)
    found = act and _first(table, _GATES[act.name.startswith("ffn_moe")], layer)
    return found if found and found.shape == act.shape else None


def _up(table, layer: int):
    act = resolve(table, "mlp_act", layer)
    found = act and _first(table, _UPS[act.name.startswith("ffn_moe")], layer)
    # one matrix for both gives a tensor of twice the width
    return found if found and found.shape == act.shape else None


_SPECIAL = {
    "q": _last("Q"),
    "k": _last("K"),
    "v": _last("V"),
    "q_pre": _before_rotation("Q"),
    "k_pre": _before_rotation("K"),
    "mlp_in": _mlp_in,
    "mlp_out": _mlp_out,
    "hook_attn_out": _added("hook_attn_out", "attn_out"),
    "hook_mlp_out": _added("hook_mlp_out", "mlp_out"),
    "attn.hook_q": _projection("Q"),
    "attn.hook_k": _projection("K"),
    "attn.hook_rot_q": _rotated("Q"),
    "attn.hook_rot_k": _rotated("K"),
    "mlp.hook_pre": lambda table, layer: _gate(table, layer) or _up(table, layer),
    "mlp.hook_pre_linear": lambda table, layer: _up(table, layer) if _gate(table, layer) else None,
}
