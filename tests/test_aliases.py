"""Aliases and TransformerLens' names on every architecture: which tensor they mean, and that it is the right one.

The tables say which; the invariants, recomputed with numpy from the recipes' weights, fail for any other tensor.
"""

from __future__ import annotations

import numpy as np
import pytest

import interp
import models
import recipes
import site_docs
from interp import at
from interp.aliases import _WITHOUT_TENSOR, ALIASES, HOOKS, ROLES
from site_docs import LAYER, found

# Twice the sliding window, so that it cuts keys off.
TOKENS = np.random.default_rng(3).integers(10, recipes.N_VOCAB - 10, 2 * recipes.WINDOW).tolist()
N = len(TOKENS)

PARALLEL = ("gptneox", "falcon", "command-r")
# With the name of the weights that experts are summed with.
EXPERTS = {"mixtral": "ffn_moe_weights_norm", "olmoe": "ffn_moe_weights", "gpt-oss": "ffn_moe_weights_softmax"}
POST_NORMED = ("gemma2", "gemma3")
WINDOWED = ("gemma2", "gemma3", "gpt-oss")
GELU = ("gpt2", "gemma2", "gemma3", "gptneox", "falcon", "starcoder2")

# ggml's CPU GELU is a table in half precision.
GELU_TOLERANCE = {"atol": 5e-3, "rtol": 2e-3}


def steps(letter: str, *numbers) -> list[str]:
    return [f"{letter}cur-1#{number}" if isinstance(number, int) else f"{letter}cur_{number}-1#0" for number in numbers]


def row(q: tuple, k: tuple, v: int, gate: str | None, up: str | None, **others: str | None) -> dict[str, str | None]:
    """Keys in layer 1 by role. `q` and `k`: projection, before rotation, rotated, as it enters attention."""
    common = {
        "resid_pre": "l_out-0#0",
        "resid_mid": "ffn_inp-1#0",
        "resid_post": "l_out-1#0",
        "v": f"Vcur-1#{v}",
        "z": "kqv_out-1#0",
        "attn_out": "attn_proj-1#0",
        "mlp_in": "ffn_norm-1#0",
        "mlp_act": "ffn_swiglu-1#0",
        "mlp_out": "ffn_out-1#0",
        "final_norm": "result_norm#0",
        "mlp.hook_pre": f"{gate or up}-1#0" if gate or up else None,
        "mlp.hook_pre_linear": f"{up}-1#0" if gate and up else None,
        "hook_embed": "embd#0",
        "hook_pos_embed": None,
    }
    for letter, numbers in (("q", q), ("k", k)):
        roles = (f"attn.hook_{letter}", f"{letter}_pre", f"attn.hook_rot_{letter}", letter)
        common |= dict(zip(roles, steps(letter.upper(), *numbers)))
    common |= {role: name if name is None or "#" in name else f"{name}-1#0" for role, name in others.items()}
    return {"hook_attn_out": common["attn_out"], "hook_mlp_out": common["mlp_out"]} | common


def alike(*numbers) -> dict[str, tuple]:
    """The same steps for queries and keys: projection, before rotation, rotated and last."""
    return {"q": (*numbers, numbers[-1]), "k": (*numbers, numbers[-1])}


MOE = {"gate": "ffn_moe_gate", "up": "ffn_moe_up", "mlp_act": "ffn_moe_swiglu", "mlp_out": "ffn_moe_out"}
GATED = {"gate": "ffn_gate", "up": "ffn_up"}
PLAIN = {"gate": None, "up": "ffn_up_b", "mlp_act": "ffn_gelu"}
GEMMA = GATED | {
    "mlp_act": "ffn_geglu",
    "resid_mid": "sa_out",
    "hook_embed": "inp_scaled#0",
    "hook_attn_out": "attn_post_norm",
}

KEYS: dict[str, dict[str, str | None]] = {
    "llama": row(**alike(1, 1, 2), v=2, **GATED),
    "gpt2": row(**alike(0, 0, 0), v=0, **PLAIN, hook_pos_embed="pos_embd#0")
    | {"attn.hook_rot_q": None, "attn.hook_rot_k": None},
    "qwen3": row(**alike(1, "normed", 2), v=2, **GATED),
    "gemma2": row(**alike(1, 1, 2), v=2, **GEMMA, hook_mlp_out="ffn_post_norm#1"),
    "mixtral": row(**alike(1, 1, 2), v=2, **MOE),
    "qwen2": row(**alike(2, 2, 3), v=3, **GATED),
    "gemma3": row(**alike(1, "normed", 2), v=2, **GEMMA, hook_mlp_out="ffn_post_norm"),
    "phi3": row(q=(0, 0, 1, 2), k=(0, 0, 1, 1), v=1, gate=None, up=None, resid_mid=None),
    "olmoe": row(**alike(0, "normed", 1), v=1, **MOE),
    "gptneox": row(**alike(0, 0, 1), v=1, **PLAIN, resid_mid=None),
    "falcon": row(**alike(0, 0, 1), v=1, **PLAIN | {"up": "ffn_up"}, resid_mid=None, mlp_in="attn_norm"),
    "starcoder2": row(**alike(2, 2, 3), v=3, **PLAIN),
    "command-r": row(**alike(1, 1, 2), v=2, **GATED, resid_mid=None, mlp_in="attn_norm"),
    "gpt-oss": row(
        **alike(2, 2, 3),
        v=3,
        **MOE | {"gate": "ffn_moe_gate_biased", "up": "ffn_moe_up_biased", "mlp_act": "ffn_moe_swiglu_oai"},
        mlp_in="attn_post_norm",
    ),
}

# TransformerLens' names -> what they mean here; the roles of their own have their own row in KEYS.
LENS = {
    "blocks.1.hook_resid_pre": "resid_pre",
    "blocks.1.hook_resid_mid": "resid_mid",
    "blocks.1.hook_resid_post": "resid_post",
    "blocks.1.hook_attn_out": "hook_attn_out",
    "blocks.1.hook_mlp_out": "hook_mlp_out",
    "blocks.1.attn.hook_q": "attn.hook_q",
    "blocks.1.attn.hook_k": "attn.hook_k",
    "blocks.1.attn.hook_v": "v",
    "blocks.1.attn.hook_rot_q": "attn.hook_rot_q",
    "blocks.1.attn.hook_rot_k": "attn.hook_rot_k",
    "blocks.1.attn.hook_z": "z",
    "blocks.1.mlp.hook_pre": "mlp.hook_pre",
    "blocks.1.mlp.hook_pre_linear": "mlp.hook_pre_linear",
    "blocks.1.mlp.hook_post": "mlp_act",
    "hook_embed": "hook_embed",
    "hook_pos_embed": "hook_pos_embed",
    "ln_final.hook_normalized": "final_norm",
}


class Loaded:
    """A small model, its recipe's weights, and one run in which every role was captured."""

    def __init__(self, arch: str):
        self.arch, self.recipe = arch, recipes.RECIPES[arch]()
        self.model = interp.Model(models.tiny(arch), n_ctx=64, kv_type="f32", flash_attn=False, n_threads=1)
        held = [role for role in ROLES if any(found(self.model._table, role, layer) for layer in self.layers)]
        self.run = self.model.run(TOKENS, capture=(*held, "embd", "attn_norm", "attn_scores", "attn_logits"))

    @property
    def layers(self) -> range:
        return range(self.model.n_layer)

    def weight(self, name: str, layer: int | None = None) -> np.ndarray | None:
        name = name if layer is None else f"blk.{layer}.{name}"
        normal = self.recipe.tensors.get(name)
        return None if normal is None else normal.draw(self.recipe.seed, name)

    def linear(self, x: np.ndarray, name: str, layer: int, rows: slice = slice(None)) -> np.ndarray:
        """A matrix of the model, with its bias where it has one, on the last axis."""
        y = x @ self.weight(f"{name}.weight", layer)[rows].T
        bias = self.weight(f"{name}.bias", layer)
        return y if bias is None else y + bias[rows]


_LOADED: dict[str, Loaded] = {}


def loaded(arch: str) -> Loaded:
    if arch not in _LOADED:
        _LOADED[arch] = Loaded(arch)
    return _LOADED[arch]


@pytest.fixture(params=recipes.RECIPES)
def tiny(request) -> Loaded:
    return loaded(request.param)


@pytest.fixture(scope="module", autouse=True)
def _close():
    yield
    while _LOADED:
        _LOADED.popitem()[1].model.close()


# which tensor


def test_every_role_is_the_tensor_of_the_table(tiny: Loaded):
    assert KEYS[tiny.arch].keys() == set(ROLES)
    keys = {role: site and str(site.key) for role in ROLES for site in [found(tiny.model._table, role, LAYER)]}
    assert keys == KEYS[tiny.arch]


def test_a_role_without_a_tensor_is_an_error_that_names_architecture_and_role(tiny: Loaded):
    for role, key in KEYS[tiny.arch].items():
        if key is None:
            with pytest.raises(interp.SiteError, match=f"architecture {tiny.model.arch} names no tensor for '{role}'"):
                tiny.model.run(TOKENS, capture=at(role, layers=LAYER))


@pytest.mark.parametrize("name", LENS)
def test_transformer_lens_names_read_the_tensor_of_the_table(tiny: Loaded, name: str):
    key = KEYS[tiny.arch][LENS[name]]
    if key is None:
        with pytest.raises(interp.SiteError, match="names no tensor"):
            tiny.model.run(TOKENS, capture=name)
    else:
        run = tiny.model.run(TOKENS, capture=name)
        assert [str(k) for k in run.keys] == [key]
        assert np.array_equal(run[name], run[key])


def test_the_names_of_this_file_are_all_that_transformer_lens_has_here():
    assert {hook.replace("blocks.0.", "blocks.1.") for hook in HOOKS} == {
        *LENS,
        "blocks.1.attn.hook_pattern",
        "blocks.1.attn.hook_attn_scores",
    }


def test_transformer_lens_names_of_attention_are_its_scores_and_logits(tiny: Loaded):
    assert np.array_equal(tiny.run["blocks.1.attn.hook_pattern"], tiny.run["attn_scores", 1])
    assert np.array_equal(tiny.run["blocks.1.attn.hook_attn_scores"], tiny.run["attn_logits", 1])


def test_a_name_without_a_block_means_every_layer(tiny: Loaded):
    run = tiny.model.run(TOKENS, capture=("hook_resid_post", "attn.hook_q", "hook_mlp_out"))
    assert np.array_equal(run["hook_resid_post"], tiny.run["resid_post"])
    for name in ("attn.hook_q", "hook_mlp_out"):
        assert run.layers(name) == list(tiny.layers)
        assert np.array_equal(run[name], tiny.run[name])


@pytest.mark.parametrize("hook", _WITHOUT_TENSOR)
def test_a_hook_for_which_no_graph_has_a_tensor_says_why(tiny: Loaded, hook: str):
    with pytest.raises(interp.SiteError, match=r"no tensor for TransformerLens' .*; |heads are summed"):
        tiny.model.run(TOKENS, capture=f"blocks.1.{hook}")


def test_a_misspelt_hook_is_told_the_nearest():
    with interp.Model(models.tiny("llama"), n_ctx=64, n_threads=1) as model:
        with pytest.raises(interp.SiteError, match=r"blocks\.0\.hook_resid_post"):
            model.run(TOKENS, capture="blocks.1.hook_resid_pots")


def test_the_page_on_sites_is_up_to_date():
    assert site_docs.PAGE.read_text(encoding="utf-8") == site_docs.page(), "write it anew: python tests/site_docs.py"


# norms that carry the layer -1 inside a layer


def test_a_norm_without_a_layer_belongs_to_the_layer_in_which_it_lies():
    gemma = loaded("gemma2")
    run = gemma.model.run(TOKENS, capture="ffn_post_norm")
    assert [str(key) for key in run.keys] == [f"ffn_post_norm#{layer}" for layer in gemma.layers]
    for layer in gemma.layers:
        assert np.array_equal(run["ffn_post_norm", layer], gemma.run["hook_mlp_out", layer])
        one = gemma.model.run(TOKENS, capture=f"ffn_post_norm-{layer}")
        assert np.array_equal(one["ffn_post_norm", layer], run["ffn_post_norm", layer])


@pytest.mark.parametrize("arch", POST_NORMED)
def test_parts_of_a_run_read_the_norms_of_their_own_layers(arch: str):
    tiny = loaded(arch)
    stopped = tiny.model.run(TOKENS, capture="hook_mlp_out", stop_after=1)
    resumed = tiny.model.resume(tiny.run["resid_pre", 2], 2, TOKENS, capture="hook_mlp_out")
    assert stopped.layers("hook_mlp_out") == [0, 1] and resumed.layers("hook_mlp_out") == [2, 3]
    assert np.array_equal(np.concatenate([stopped["hook_mlp_out"], resumed["hook_mlp_out"]]), tiny.run["hook_mlp_out"])
    with pytest.raises(interp.SiteError, match="not computed"):
        tiny.model.run(TOKENS, capture="blocks.2.hook_mlp_out", stop_after=1)


# the residual stream


def test_the_residual_stream_is_the_sum_of_what_is_added(tiny: Loaded):
    run = tiny.run
    total = run["resid_pre"] + run["hook_attn_out"] + run["hook_mlp_out"]
    assert np.allclose(total, run["resid_post"], atol=1e-4)
    assert np.array_equal(run["resid_pre"][1:], run["resid_post"][:-1])
    if KEYS[tiny.arch]["resid_mid"]:
        assert np.allclose(run["resid_pre"] + run["hook_attn_out"], run["resid_mid"], atol=1e-4)
        assert np.allclose(run["resid_mid"] + run["hook_mlp_out"], run["resid_post"], atol=1e-4)


def test_a_parallel_mlp_does_not_read_what_attention_writes(tiny: Loaded):
    """So that there is no residual stream between them: without attention, the MLP of the layer stays as it was."""
    cut = tiny.model.run(TOKENS, capture="mlp_out", edits=interp.scale("attn_out-1", 0.0))
    assert np.array_equal(cut["mlp_out", 1], tiny.run["mlp_out", 1]) == (tiny.arch in PARALLEL)


def test_the_norm_behind_a_module_is_all_that_is_between_its_output_and_what_is_added(tiny: Loaded):
    parts = (("attn_out", "hook_attn_out", "post_attention_norm"), ("mlp_out", "hook_mlp_out", "post_ffw_norm"))
    for module, added, norm in parts:
        for layer in tiny.layers:
            x = tiny.run[module, layer]
            if tiny.arch in POST_NORMED:
                x = x / np.sqrt(np.square(x).mean(-1, keepdims=True) + 1e-6) * tiny.weight(f"{norm}.weight", layer)
            assert np.allclose(tiny.run[added, layer], x, atol=1e-4), (added, layer)


def test_the_stream_starts_with_the_embedding_and_ends_in_the_logits(tiny: Loaded):
    embd = tiny.weight("token_embd.weight")
    scaled = embd[TOKENS] * (8.0 if tiny.arch in POST_NORMED else 1.0)
    positions = tiny.weight("position_embd.weight")
    assert np.allclose(tiny.run["hook_embed"], scaled, atol=1e-5)
    start = scaled if positions is None else scaled + positions[:N]
    assert np.allclose(tiny.run["resid_pre", 0], start, atol=1e-5)

    head = tiny.weight("output.weight")
    logits = tiny.run["final_norm"] @ (embd if head is None else head).T
    if tiny.arch == "gemma2":
        logits = 5.0 * np.tanh(logits / 5.0)
    if tiny.arch == "command-r":
        logits = 0.5 * logits
    assert np.allclose(logits, tiny.run.logits, atol=1e-4)


# attention


def heads_of(tiny: Loaded, letter: str, layer: int) -> np.ndarray:
    """Queries, keys or values projected from the norm before attention, (n_tokens, heads, d_head)."""
    d_head, n_kv = tiny.run["q", layer].shape[2], tiny.run["k", layer].shape[1]
    x = tiny.run["attn_norm", layer]
    if tiny.weight("attn_qkv.weight", layer) is None:
        flat = tiny.linear(x, f"attn_{letter}", layer)
    else:
        n_q, n_k = recipes.N_HEAD * d_head, n_kv * d_head
        rows = {"q": slice(0, n_q), "k": slice(n_q, n_q + n_k), "v": slice(n_q + n_k, n_q + 2 * n_k)}
        flat = tiny.linear(x, "attn_qkv", layer, rows[letter])
    return flat.reshape(N, -1, d_head)


def test_projections_are_those_of_the_norm_before_attention(tiny: Loaded):
    for layer in tiny.layers:
        for letter, name in (("q", "attn.hook_q"), ("k", "attn.hook_k"), ("v", "v")):
            assert np.allclose(heads_of(tiny, letter, layer), tiny.run[name, layer], atol=1e-4), (name, layer)


@pytest.mark.parametrize("letter", ["q", "k"])
def test_what_the_rotation_takes_is_the_normed_projection(tiny: Loaded, letter: str):
    eps = tiny.recipe.metadata.get("attention.layer_norm_rms_epsilon")
    for layer in tiny.layers:
        x, weight = tiny.run[f"attn.hook_{letter}", layer], tiny.weight(f"attn_{letter}_norm.weight", layer)
        if weight is not None:
            # OLMoE norms all heads at once
            flat = x.reshape(N, -1) if weight.size > x.shape[-1] else x
            flat = flat / np.sqrt(np.square(flat).mean(-1, keepdims=True) + eps) * weight
            x = flat.reshape(x.shape)
        assert x.shape == tiny.run[f"{letter}_pre", layer].shape
        assert np.allclose(tiny.run[f"{letter}_pre", layer], x, atol=1e-4), layer


@pytest.mark.parametrize("letter", ["q", "k"])
def test_the_rotation_turns_later_tokens_and_stretches_none(tiny: Loaded, letter: str):
    for layer in tiny.layers:
        before, after = tiny.run[f"{letter}_pre", layer], tiny.run[letter, layer]
        if tiny.arch == "gpt2":
            assert np.array_equal(before, after)
            continue
        rotated = tiny.run[f"attn.hook_rot_{letter}", layer]
        assert np.allclose(rotated[0], before[0], atol=1e-5)
        assert np.allclose(np.linalg.norm(rotated, axis=-1), np.linalg.norm(before, axis=-1), rtol=1e-4)
        assert np.abs(rotated[1:] - before[1:]).max(axis=(1, 2)).min() > 0.01
        if tiny.arch == "gptneox":
            # half of the dimensions are left alone
            assert np.array_equal(rotated[..., 8:], before[..., 8:])
        scale = 16**-0.5 if (tiny.arch, letter) == ("phi3", "q") else 1.0
        assert np.allclose(after, scale * rotated, atol=1e-6)


def test_queries_differ_before_and_after_the_rotation(tiny: Loaded):
    run = tiny.model.run(TOKENS, capture=("q_pre", "q"))
    assert run["q_pre"].shape == run["q"].shape
    assert np.array_equal(run["q_pre"], run["q"]) == (tiny.arch == "gpt2")


def expected_logits(tiny: Loaded, layer: int) -> tuple[np.ndarray, np.ndarray]:
    """Attention before the softmax, (n_head, n_query, n_key) in double precision, and which keys a query sees."""
    q, k = (tiny.run[name, layer].astype(np.float64) for name in ("q", "k"))
    k = np.repeat(k, q.shape[1] // k.shape[1], axis=1)
    logits = np.einsum("qhd,khd->hqk", q, k) * (1.0 if tiny.arch == "phi3" else q.shape[-1] ** -0.5)
    if tiny.arch == "gemma2":
        logits = 4.0 * np.tanh(logits / 4.0)
    seen = np.tri(N, dtype=bool)
    if tiny.arch in WINDOWED and layer % 2 == 0:
        seen &= ~np.tri(N, k=-recipes.WINDOW, dtype=bool)
    return logits, seen


def test_scores_are_the_softmax_of_queries_and_keys(tiny: Loaded):
    for layer in tiny.layers:
        logits, seen = expected_logits(tiny, layer)
        assert np.allclose(tiny.run["attn_logits", layer][:, seen], logits[:, seen], atol=1e-4), layer
        weights = np.where(seen, np.exp(logits), 0.0)
        total = weights.sum(-1, keepdims=True)
        sinks = tiny.weight("attn_sinks.weight", layer)
        if sinks is not None:
            total = total + np.exp(sinks.astype(np.float64))[:, None, None]
        assert np.abs(tiny.run["attn_scores", layer] - weights / total).max() <= 1e-5, layer


def test_z_is_the_weighted_sum_of_values_and_its_product_the_output(tiny: Loaded):
    for layer in tiny.layers:
        scores, v = tiny.run["attn_scores", layer], tiny.run["v", layer]
        z = np.einsum("hqk,khd->qhd", scores, np.repeat(v, scores.shape[0] // v.shape[1], axis=1))
        assert np.allclose(tiny.run["z", layer], z, atol=1e-4), layer
        out = tiny.linear(tiny.run["z", layer].reshape(N, -1), "attn_output", layer)
        assert np.allclose(tiny.run["attn_out", layer], out, atol=1e-4), layer


# the MLP


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3)))


def swiglu_oai(gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    gate, up = np.minimum(gate, 7.0), np.clip(up, -7.0, 7.0)
    return gate / (1 + np.exp(-1.702 * gate)) * (up + 1)


def expected_act(tiny: Loaded, gate: np.ndarray, up: np.ndarray | None) -> np.ndarray:
    if tiny.arch == "gpt-oss":
        return swiglu_oai(gate, up)
    act = gelu(gate) if tiny.arch in GELU else silu(gate)
    return act if up is None else act * up


def test_a_dense_mlp_goes_from_its_input_to_its_output(tiny: Loaded):
    if tiny.arch in EXPERTS:
        return
    tolerance = GELU_TOLERANCE if tiny.arch in GELU else {"atol": 1e-4}
    for layer in tiny.layers:
        x, act = tiny.run["mlp_in", layer], tiny.run["mlp_act", layer]
        if tiny.arch == "phi3":
            gate, up = np.split(tiny.linear(x, "ffn_up", layer), 2, axis=-1)
        else:
            gate = up = tiny.linear(x, "ffn_up", layer)
            if tiny.weight("ffn_gate.weight", layer) is None:
                up = None
            else:
                gate = tiny.linear(x, "ffn_gate", layer)
                assert np.allclose(tiny.run["mlp.hook_pre_linear", layer], up, atol=1e-4), layer
            assert np.allclose(tiny.run["mlp.hook_pre", layer], gate, atol=1e-4), layer
        assert np.allclose(act, expected_act(tiny, gate, up), **tolerance), layer
        assert np.allclose(tiny.run["mlp_out", layer], tiny.linear(act, "ffn_down", layer), atol=1e-4), layer


def test_experts_go_from_their_input_to_their_weighted_sum(tiny: Loaded):
    if tiny.arch not in EXPERTS:
        return
    last = EXPERTS[tiny.arch]
    run = tiny.model.run(TOKENS, capture=("ffn_moe_topk", last))

    def products(x: np.ndarray, name: str, layer: int, chosen: np.ndarray) -> np.ndarray:
        matrices = tiny.weight(f"{name}.weight", layer)[chosen]
        y = np.einsum("ni,neoi->neo" if x.ndim == 2 else "nei,neoi->neo", x, matrices)
        bias = tiny.weight(f"{name}.bias", layer)
        return y if bias is None else y + bias[chosen]

    for layer in tiny.layers:
        chosen, weights = run["ffn_moe_topk", layer], run[last, layer].reshape(N, 2)
        x, act = tiny.run["mlp_in", layer], tiny.run["mlp_act", layer]
        gate, up = (products(x, f"ffn_{name}_exps", layer, chosen) for name in ("gate", "up"))
        assert np.allclose(tiny.run["mlp.hook_pre", layer], gate, atol=1e-4), layer
        assert np.allclose(tiny.run["mlp.hook_pre_linear", layer], up, atol=1e-4), layer
        assert np.allclose(act, expected_act(tiny, gate, up), atol=1e-4), layer
        total = (weights[..., None] * products(act, "ffn_down_exps", layer, chosen)).sum(1)
        assert np.allclose(tiny.run["mlp_out", layer], total, atol=1e-4), layer


# reading changes nothing, editing does


@pytest.mark.parametrize("flash_attn", [False, True], ids=["plain", "flash"])
def test_capturing_everything_changes_no_bit_and_a_head_less_does(tiny: Loaded, flash_attn: bool):
    with interp.Model(models.tiny(tiny.arch), n_ctx=64, kv_type="f32", flash_attn=flash_attn, n_threads=1) as model:
        plain = model.run(TOKENS)
        everything = model.run(TOKENS, capture=[str(site.key) for site in model.sites()])
        assert len(everything.keys) == len(model.sites())
        assert np.array_equal(everything.logits, plain.logits)
        assert np.array_equal(model.unembed(everything["l_out", -1]), plain.logits)
        for layer in range(model.n_layer):
            edited = model.run(TOKENS, edits=interp.scale(at("z", layers=layer, heads=1), 0.0))
            assert np.abs(edited.logits - plain.logits).max() > 1e-3, layer


def test_every_role_can_be_written_with_its_own_value_and_no_bit_changes(tiny: Loaded):
    edits = [interp.replace(at(role, layers=LAYER), tiny.run[role, LAYER]) for role in ALIASES if KEYS[tiny.arch][role]]
    for edit in edits:
        assert np.array_equal(tiny.model.run(TOKENS, edits=edit).logits, tiny.run.logits), edit
