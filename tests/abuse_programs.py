"""Programs for ``abuse_child.py``: a hypothesis strategy of valid and invalid arguments, all of them plain JSON."""

from __future__ import annotations

import math

from hypothesis import strategies as st

from abuse_child import MODELS, N_CTX

#: on every tiny model, in every layer
PLAIN_SITES = [
    "l_out", "l_out-1", "resid_pre", "resid_mid", "resid_post", "attn_norm-0", "mlp_in", "mlp_out", "attn_proj", "attn_out",
    "ffn_inp", "final_norm", "result_norm", "blocks.1.hook_resid_post", "ffn_norm-1#0",
]  # fmt: skip
HEAD_SITES = ["q", "k", "v", "z", "kqv_out-1", "attn_scores", "attn_scores-1", "attn_logits-2", "blocks.1.attn.hook_pattern"]
#: on some of the models, or not editable, or of other shapes
ODD_SITES = [
    "Qcur", "Qcur-1#0", "Qcur#0", "Kcur-1", "Vcur-2#0", "q_pre", "k_pre", "ffn_out", "mlp_act", "result_output", "embd", "inp_embd",
    "inp_tokens", "inp_pos", "inp_out_ids", "kq", "kq_soft_max", "kqv", "kq_mask", "attn_inp_kq_mask", "k_cache_view",
    "ffn_moe_out", "ffn_moe_topk-1", "ffn_moe_logits", "ffn_moe_probs", "ffn_moe_weights", "ffn_moe_weighted", "ffn_moe_gate",
]  # fmt: skip
BAD_SITES = ["", "l_uot", "l_out-9", "l_out#7", "#", "-1", "l_out-1#-1", "blocks.99.hook_q", "é" * 70]

UNARY = "exp log sqrt relu gelu silu tanh sigmoid step softmax sum mean norm rms_norm".split()
BINARY = "add sub mul truediv matmul".split()

small = st.integers(-6, 6)
lengths = st.sampled_from([0, 1, 1, 2, 3, 4, 7, 16, 32, 64, 64, 128, 5])
shapes = st.lists(lengths, max_size=5).filter(lambda shape: math.prod(shape) < 1e5)
numbers = st.sampled_from([0, 1, -1, 0.5, 2, 1e-30, 1e30, 1e38, 1e39, -1e300, "nan", "inf", "-inf", 3]) | st.floats(-10, 10)
array_fills = st.sampled_from(["random", "random", "random", 0, 1, "nan", "inf", 1e38])
arrays = st.tuples(shapes, array_fills).map(list)
wide = st.tuples(st.sampled_from([[64], [1, 64], [64, 64], [64, 3], [1], [4, 1], [4, 16], [2, 16]]), array_fills).map(list)


def _grow(inner):
    """Larger expressions from smaller ones."""
    axes = st.lists(st.integers(-1, 4), max_size=5)
    part = small | st.just("...") | st.lists(st.none() | small, min_size=2, max_size=3)
    dims = st.lists(st.sampled_from([-1, 0, 1, 2, 4, 16, 64, 128, 2**31, 2**40, 2**64, 2**64 + 1, 3, 1.5, "a"]), max_size=5)
    call = st.one_of(
        st.tuples(st.sampled_from(UNARY), st.just([])),
        st.tuples(st.sampled_from(["norm", "rms_norm", "__pow__"]), st.lists(numbers, max_size=2)),
        st.tuples(st.just("clamp"), st.lists(numbers, min_size=2, max_size=2)),
        st.tuples(st.just("filled"), st.lists(numbers, min_size=1, max_size=1)),
        st.tuples(st.sampled_from(["__neg__", "__abs__", "__bool__"]), st.just([])),
    )
    return st.one_of(
        inner.map(lambda e: ["fit", e]),
        st.tuples(inner, call).map(lambda t: ["call", t[0], t[1][0], t[1][1]]),
        st.tuples(st.sampled_from(BINARY), inner, inner).map(lambda t: ["binary", *t]),
        st.tuples(inner, inner, st.integers(-5, 5)).map(lambda t: ["concat", *t]),
        st.tuples(inner, st.sampled_from(["reshape", "expand"]), dims).map(lambda t: ["shape", *t]),
        st.tuples(inner, st.just("transpose"), axes).map(lambda t: ["shape", *t]),
        st.tuples(inner, st.lists(part, max_size=5)).map(lambda t: ["slice", *t]),
    )


x = st.just(["x"])
leaves = st.one_of(
    x, x, x,
    numbers.map(lambda n: ["number", n]),
    wide.map(lambda a: ["array", *a]),
    arrays.map(lambda a: ["array", *a]),
    st.sampled_from([["kept"], ["raise"], ["none"], ["text"], ["truth"]]),
)  # fmt: skip
#: whatever comes, with any mistake
expressions = st.recursive(leaves, _grow, max_leaves=6)
#: an expression of x and arrays, brought to its shape at the end: likely to be computed and not only refused
fitting = st.one_of(
    st.recursive(x, _grow, max_leaves=4),
    st.recursive(x | wide.map(lambda a: ["array", *a]), _grow, max_leaves=4),
).map(lambda e: ["fit", e])  # fmt: skip


def mostly(good, bad, rare: int = 20):
    """Valid arguments nearly always: a program of nothing but mistakes ends at the first."""
    return st.integers(0, rare).flatmap(lambda i: bad if i == rare else good)


rows = st.one_of(st.integers(-3, 2), st.lists(st.integers(-3, 2), min_size=1, max_size=3), st.sampled_from(["last", "generated"]))
bad_rows = st.sampled_from([[], 99, -99, 2**31, 2**70, "first", 1.5, True, [True], [None], [1.5], {}, [[1]]])
indices = st.integers(-2, 2) | st.lists(st.integers(-2, 2), min_size=1, max_size=3)
bad_sites = st.sampled_from(BAD_SITES) | st.text(max_size=5) | st.sampled_from([None, 3, [], 1.5])


@st.composite
def selectors(draw):
    headed = draw(st.integers(0, 2)) == 0
    good = st.sampled_from(HEAD_SITES if headed else PLAIN_SITES)
    site = draw(mostly(mostly(good, st.sampled_from(ODD_SITES), 4), bad_sites))
    found = {"site": site}
    if isinstance(site, str) and "-" not in site and "blocks" not in site and draw(st.booleans()):
        found["layers"] = draw(mostly(indices, bad_rows))
    if draw(st.integers(0, 2 if headed else 30)) == 0:
        found["heads"] = draw(mostly(indices, bad_rows))
    if draw(st.integers(0, 2)) == 0:
        found[draw(st.sampled_from(["positions", "positions", "queries"]))] = draw(mostly(rows, bad_rows))
    if draw(st.integers(0, 50)) == 0:
        found |= {"positions": draw(rows), "queries": draw(rows)}
    return site if len(found) == 1 else found


@st.composite
def edits(draw):
    kind = draw(mostly(st.sampled_from(["edit", "edit", "edit", "edit", "scale", "add", "replace"]), st.just("other")))
    if kind == "other":
        return {"kind": kind, "value": draw(st.sampled_from([None, 3, "l_out", [], {}]))}
    if kind == "edit":
        return {"kind": kind, "at": draw(selectors()), "fn": draw(mostly(fitting, expressions, 3))}
    return {"kind": kind, "at": draw(selectors()), "value": draw(mostly(numbers | st.just([[1], "random"]), wide | arrays, 3))}


tokens = st.lists(st.integers(0, 49151), min_size=3, max_size=12)
bad_prompts = st.one_of(
    st.sampled_from(["", [], [[]], None, 5, 1.5, True, {}, [-1], [49152], [2**31], [2**64], [1.5], [True], [None], ["a", 1], "\ud800"]),
    st.lists(st.integers(0, 10), min_size=N_CTX - 1, max_size=N_CTX + 2),
    st.lists(tokens, max_size=2),
    st.text(max_size=60),
    st.lists(st.integers(0, 49151), min_size=1, max_size=2),
)
layers = mostly(st.integers(0, 2), st.sampled_from([-1, -2, -9, 3, 4, 99, 2**40, True, 1.5, "1", [1]]))
max_tokens = mostly(st.integers(1, 3), st.sampled_from([0, -1, True, 1.5, None, "3"]))


@st.composite
def programs(draw):
    """One call of a model, as plain data."""
    call = draw(st.sampled_from(["run", "run", "run", "run", "generate", "generate", "resume", "unembed"]))
    found = {"model": draw(st.sampled_from(MODELS)), "call": call}
    if call == "unembed":
        right = st.tuples(st.tuples(lengths, st.just(64)), array_fills).map(list)
        return found | {"resid": draw(mostly(right, arrays, 3))}
    prompt = draw(mostly(tokens, bad_prompts, 9))
    found |= {"prompt": prompt, "capture": draw(st.lists(selectors(), max_size=2)), "edits": draw(st.lists(edits(), max_size=2))}
    if call == "generate":
        options = {"max_tokens": draw(max_tokens)}
        if draw(st.integers(0, 3)) == 0:
            options["temperature"] = draw(mostly(st.sampled_from([0.5, 2, 1e-9, 1e30]), numbers | st.sampled_from([None, True, "hot"]), 3))
            options["seed"] = draw(mostly(st.integers(0, 5), st.sampled_from([-1, 2**70, "a", None, 1.5]), 5))
        return found | {"options": options}
    if call == "resume":
        right = st.tuples(st.just([len(prompt) if isinstance(prompt, list) else 1, 64]), array_fills).map(list)
        return found | {"resid": draw(mostly(right, arrays)), "from_layer": draw(mostly(st.sampled_from([1, 2, -1]), layers))}
    logits = draw(mostly(st.sampled_from(["all", "last", None]), st.sampled_from(["first", 1, [], True])))
    return found | {"logits": logits, "stop_after": draw(mostly(st.none(), layers, 2))}
