"""Names: the graph's own, the aliases, TransformerLens' names; selectors."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

import interp
import models
from conftest import PROMPT
from interp.sites import ALIASES, Site, SiteTable, parse

LENS_NAMES = {
    "blocks.1.hook_resid_pre": "resid_pre",
    "blocks.1.hook_resid_mid": "resid_mid",
    "blocks.1.hook_resid_post": "resid_post",
    "blocks.1.hook_attn_out": "attn_out",
    "blocks.1.hook_mlp_out": "mlp_out",
    "blocks.1.attn.hook_q": "q_pre",
    "blocks.1.attn.hook_rot_q": "q",
    "blocks.1.attn.hook_z": "z",
    "blocks.1.attn.hook_pattern": "attn_scores",
    "blocks.1.attn.hook_attn_scores": "attn_logits",
    "blocks.1.mlp.hook_post": "mlp_act",
}


@pytest.fixture(params=["llama", "gpt2", "qwen3", "gemma2", "mixtral"], scope="module")
def each_tiny(request):
    with interp.Model(models.tiny(request.param), n_ctx=256, kv_type="f32", flash_attn=False, n_threads=1) as model:
        yield model


def test_names_are_read_as_written():
    assert parse("l_out") == ("l_out", None, None)
    assert parse("Qcur-5#0") == ("Qcur", 5, 0)
    assert parse("ffn_moe_out#1") == ("ffn_moe_out", None, 1)
    assert parse("blocks.11.attn.hook_z") == ("z", 11, None)


def test_sites_list_every_occurrence_in_graph_order(tiny):
    sites = tiny.sites()
    assert len({site.key for site in sites}) == len(sites)
    queries = [site for site in sites if site.name == "Qcur" and site.layer == 1]
    assert [site.occurrence for site in queries] == [0, 1, 2]
    assert {site.n_occurrences for site in queries} == {3}
    order = [str(site.key) for site in sites]
    assert order.index("attn_norm-1#0") < order.index("kqv_out-1#0") < order.index("l_out-1#0") < order.index("result_norm#0")


def test_a_name_without_an_occurrence_is_the_last_one(tiny):
    run = tiny.run(PROMPT, capture=["Qcur-1#0", "Qcur-1#2", "Qcur-1"])
    assert np.array_equal(run["Qcur-1"], run["Qcur-1#2"])
    assert run["Qcur-1#0"].shape == (len(run.tokens), tiny.n_embd)
    assert run["Qcur", 1].shape == (len(run.tokens), tiny.n_head, tiny.n_embd // tiny.n_head)


def test_aliases_hold_on_every_architecture(each_tiny):
    held = [alias for alias in ALIASES if alias not in ("q_pre", "k_pre")]
    run = each_tiny.run(PROMPT, capture=held)
    n, d = len(run.tokens), each_tiny.n_embd
    for alias in ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_in", "mlp_out"):
        assert run[alias].shape == (each_tiny.n_layer, n, d), alias
    for alias, heads in (("q", each_tiny.n_head), ("k", each_tiny.n_head_kv), ("v", each_tiny.n_head_kv), ("z", each_tiny.n_head)):
        assert run[alias, 1].shape[:2] == (n, heads), alias
    assert run["final_norm"].shape == (n, d)
    assert np.array_equal(run["resid_pre", 1], run["resid_post", 0])
    assert np.array_equal(run["l_out", 1], run["resid_post", 1])


def test_the_residual_stream_adds_up(each_tiny):
    """What attention and MLP write is what the residual stream gains; a norm after them stands in between in Gemma 2."""
    if each_tiny.arch == "gemma2":
        run = each_tiny.run(PROMPT, capture=("resid_pre", "resid_mid", "attn_post_norm"))
        written = run["attn_post_norm"]
    else:
        run = each_tiny.run(PROMPT, capture=("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out"))
        written = run["attn_out"]
        assert np.allclose(run["resid_mid"] + run["mlp_out"], run["resid_post"], atol=1e-4)
    assert np.allclose(run["resid_pre"] + written, run["resid_mid"], atol=1e-4)


def test_z_is_the_weighted_sum_of_values(tiny):
    run = tiny.run(PROMPT, capture=("z", "v", "attn_scores"))
    share = tiny.n_head // tiny.n_head_kv
    for layer in range(tiny.n_layer):
        values = np.repeat(run["v", layer], share, axis=1)
        expected = np.einsum("hqk,khd->qhd", run["attn_scores", layer], values)
        assert np.allclose(run["z", layer], expected, atol=1e-5), layer


@pytest.mark.parametrize("name", LENS_NAMES)
def test_transformer_lens_names_mean_the_alias(tiny, name):
    run = tiny.run(PROMPT, capture=[name])
    assert np.array_equal(run[name], run[LENS_NAMES[name], 1])


def test_an_unknown_name_lists_the_nearest(tiny):
    for wrong, near in (("l_ouy", "l_out"), ("resid_pots", "resid_post"), ("atn_scores", "attn_scores"), ("QCUR", "Qcur")):
        with pytest.raises(interp.SiteError, match=near):
            tiny.run(PROMPT, capture=wrong)


def test_a_name_is_matched_whole_never_in_part(tiny):
    with pytest.raises(interp.SiteError, match="no site 'out'"):
        tiny.run(PROMPT, capture="out")


def test_selectors_pick_layers_heads_and_positions(tiny):
    whole = tiny.run(PROMPT, capture=("z", "attn_scores"))
    part = tiny.run(PROMPT, capture=[interp.at("z", layers=[0, -1], heads=[2, 0], positions=[-1, 0]), interp.at("attn_scores", layers=1, heads=[3, 1])])
    assert part.layers("z") == [0, tiny.n_layer - 1]
    assert np.array_equal(part["z", -1], whole["z", -1][[0, len(whole.tokens) - 1]][:, [0, 2]])
    assert np.array_equal(part["attn_scores", 1], whole["attn_scores", 1][[1, 3]])


def test_asking_a_run_for_what_it_does_not_hold_says_what_it_holds(tiny):
    run = tiny.run(PROMPT, capture=interp.at("l_out", layers=[0, 2]))
    assert run["l_out"].shape[0] == 2
    with pytest.raises(interp.SiteError, match="layers 0, 2, not in layer 1"):
        run["l_out", 1]
    with pytest.raises(interp.SiteError, match="Captured: l_out"):
        run["z", 0]


# architectures that no small model here has: their tables by hand


def table_of(arch: str, names: list[tuple[str, int]], n_layer: int = 2) -> SiteTable:
    """A table with these names and layers, in this order, each a residual stream of width 8."""
    sites, seen = [], Counter()
    for name, layer in names:
        sites.append(Site(name, layer, ("n_tokens", "n_embd"), (None, 8), seen[name, layer], 1, rows_axis=1))
        seen[name, layer] += 1
    return SiteTable(sites, arch, n_layer, 8)


def layered(*names: str) -> list[tuple[str, int]]:
    return [(name, layer) for layer in range(2) for name in names]


def test_what_enters_layer_0_is_after_the_norm_of_the_embeddings():
    bloom = table_of("bloom", [("embd", -1), ("inp_norm", 0), *layered("attn_norm", "Qcur", "kqv_out", "l_out")])
    for name in ("resid_pre-0", "blocks.0.hook_resid_pre", "hook_embed"):
        assert [str(site.key) for site in bloom.find(name)] == ["inp_norm-0#0"], name
    llama = table_of("llama", [("embd", -1), *layered("attn_norm", "Qcur", "kqv_out", "l_out")])
    assert str(llama.find("resid_pre-0")[0].key) == str(llama.find("hook_embed")[0].key) == "embd#0"


@pytest.mark.parametrize("name", ["attn_scores", "attn_logits", "z", "q", "k_pre", "blocks.1.attn.hook_pattern"])
def test_a_model_without_attention_says_so(name):
    mamba = table_of("mamba2", [("embd", -1), *layered("attn_norm", "mamba_out", "l_out")])
    with pytest.raises(interp.SiteError, match="mamba2 has no attention"):
        mamba.find(name)
    with pytest.raises(interp.SiteError, match="names no tensor for 'mlp_out'"):
        mamba.find("mlp_out", 0)


@pytest.mark.parametrize("name", ["attn_scores", "z"])
def test_a_layer_without_attention_says_so_and_where_there_is_some(name):
    names = [("embd", -1), ("z", 0), ("l_out", 0), ("Qcur", 1), ("attn_scores", 1), ("kqv_out", 1), ("l_out", 1)]
    hybrid = table_of("qwen3next", names)  # its recurrent layers have a z of their own
    assert [site.layer for site in hybrid.find(name)] == [1]
    with pytest.raises(interp.SiteError, match=rf"Layer 0 has no attention, so no '{name}'; layers that have it: 1\."):
        hybrid.find(name, 0)
    assert str(hybrid.find("z-0#0")[0].key) == "z-0#0"


@pytest.mark.parametrize(
    ("arch", "names", "role", "key"),
    [
        # one ffn_out, behind the addition: the residual stream, not what the MLP returns
        ("nemotron", ["ffn_norm", "ffn_out", "l_out"], "mlp_out", None),
        ("nemotron", ["ffn_norm", "ffn_out", "l_out"], "hook_mlp_out", None),
        ("apertus", ["ffn_norm", "ffn_xielu", "ffn_down", "ffn_out", "l_out"], "mlp_out", "ffn_down-1#0"),
        ("apertus", ["ffn_norm", "ffn_xielu", "ffn_down", "ffn_out", "l_out"], "mlp_act", "ffn_xielu-1#0"),
        # the shared expert goes by another name
        ("glm4moe", ["post_attn_norm", "ffn_moe_out", "ffn_shexp_out", "ffn_out", "l_out"], "mlp_out", "ffn_out-1#0"),
        ("glm4moe", ["post_attn_norm", "ffn_moe_out", "ffn_shexp_out", "ffn_out", "l_out"], "mlp_in", "post_attn_norm-1#0"),
        ("llama4", ["ffn_norm", "ffn_moe_out", "ffn_moe_out_merged", "ffn_out"], "mlp_out", "ffn_moe_out_merged-1#0"),
        ("llama4", ["ffn_norm", "ffn_moe_out", "ffn_moe_out_merged", "ffn_out"], "mlp_in", None),
        ("llama4", ["ffn_norm", "ffn_out", "ffn_out"], "mlp_in", "ffn_norm-1#0"),
        ("llama4", ["ffn_norm", "ffn_out", "ffn_out"], "mlp_out", "ffn_out-1#0"),
        ("grok", ["ffn_norm", "ffn_moe_out", "ffn_out", "ffn_out", "ffn_out"], "mlp_out", "ffn_out-1#1"),
        ("grok", ["ffn_norm", "ffn_moe_out", "ffn_out"], "mlp_out", "ffn_moe_out-1#0"),
        ("phi2", ["attn_norm", "ffn_out", "l_out"], "mlp_in", "attn_norm-1#0"),
        ("lfm2", ["model.layers.{}.ffn_norm", "l_out"], "mlp_in", "model.layers.{}.ffn_norm-1#0"),
        # and as most have it
        ("llama", ["ffn_norm", "ffn_out", "ffn_out", "l_out"], "mlp_out", "ffn_out-1#0"),
    ],
)
def test_the_mlp_is_what_its_architecture_calls_so(arch, names, role, key):
    table = table_of(arch, [("embd", -1), *layered(*names)])
    if key is None:
        with pytest.raises(interp.SiteError, match=f"{arch} names no tensor for '{role}'"):
            table.find(role, 1)
    else:
        assert [str(site.key) for site in table.find(role, 1)] == [key]
