"""Sequences for ``sequence_child.py``: a hypothesis strategy of calls of one model, good and bad, all of them plain JSON."""

from __future__ import annotations

from hypothesis import strategies as st

from abuse_programs import HEAD_SITES, PLAIN_SITES, array_fills, edits, mostly, selectors
from gguf_fuzz import FEW
from sequence_child import MODELS, N_CTX

tokens = st.lists(st.integers(0, FEW - 1), min_size=2, max_size=8)
#: those that fill the context, or are longer, and others that are none
edges = st.integers(N_CTX - 2, N_CTX + 1).flatmap(lambda n: st.lists(st.integers(0, FEW - 1), min_size=n, max_size=n))
prompts = mostly(tokens | st.sampled_from(["a bc", "1 2 3", "\u00fc"]), edges | st.sampled_from([[], "", [FEW], [-1], "\ud800"]), 5)

#: what changes the residual stream, heads or the cache, also to no number at all
strong = st.one_of(
    st.builds(
        lambda kind, site, value: {"kind": kind, "at": site, "value": value},
        st.sampled_from(["scale", "add", "replace"]),
        st.sampled_from([*PLAIN_SITES, *HEAD_SITES, "k-0", "v-1"]),
        st.sampled_from([0, 0.5, -1, 3, "nan", "inf", 1e38]),
    ),
    edits(),
)
some_edits = st.lists(strong, max_size=2)
captures = st.lists(selectors(), max_size=2)
inner = {"capture": captures, "edits": some_edits}
layers = st.integers(0, 2)


def residuals(prompt):
    n = len(prompt) if isinstance(prompt, list) else 2
    return st.tuples(st.just([n, 64]), array_fills).map(list)


def _call(name: str, **given):
    return st.fixed_dictionaries({"call": st.just(name), **given})


runs = _call("run", prompt=prompts, **inner, logits=st.sampled_from(["all", "last", None]), stop_after=mostly(st.none(), layers, 3))
batches = st.lists(st.tuples(tokens, some_edits), min_size=1, max_size=3).flatmap(
    lambda pairs: _call("batch", prompts=st.just([p for p, _ in pairs]), per_prompt=st.just([e for _, e in pairs]), capture=captures)
)
failures = _call(
    "fail", prompt=tokens, **inner, at=st.sampled_from(["l_out-0", "l_out-1", "z-1"]), after=st.integers(1, 3),
    kind=st.sampled_from(["Raised", "KeyboardInterrupt"]),
)  # fmt: skip
options = st.fixed_dictionaries(
    {"max_tokens": st.sampled_from([1, 3, N_CTX, 0])},
    optional={"temperature": st.sampled_from([0.5, 2, -1]), "seed": st.integers(0, 3), "stop": st.sampled_from(["a", ["", "b"]])},
)
generations = _call("generate", prompt=prompts, **inner, options=options)
interrupted = _call("interrupt", prompt=tokens, **inner, after=st.integers(1, 3))
streams = _call(
    "stream", prompt=tokens, **inner, pieces=st.integers(0, 3), ends=st.sampled_from(["close", "read", "drop"]), inside=runs
)  # fmt: skip
resumed = prompts.flatmap(lambda p: _call("resume", prompt=st.just(p), resid=residuals(p), from_layer=st.integers(-1, 3), **inner))
halves = _call("halves", prompt=tokens, layer=layers, **inner)
unembedded = _call("unembed", resid=st.tuples(st.sampled_from([[64], [3, 64], [2, 2, 64], [40, 64], [63]]), array_fills).map(list))
prefixes = _call("prefix", tokens=mostly(tokens, edges | st.sampled_from([None, None, None, [], [FEW]]), 1))
saved = _call("save_load")
stats = _call(
    "stats", corpus=st.lists(st.lists(st.integers(0, FEW - 1), max_size=12), max_size=3), sites=st.sampled_from([["l_out"], ["z", "mlp_out"], ["attn_scores"]]),
    chunk=st.sampled_from([2, 5, N_CTX]), edits=some_edits,
)  # fmt: skip
sweeps = tokens.flatmap(
    lambda p: _call(
        "sweep", kind=st.sampled_from(["patch", "heads", "ablation", "knockout", "paths"]), prompt=st.just(p),
        corrupted=st.just([(p[0] + 1) % FEW, *p[1:]]), metric=st.sampled_from(["diff", "diff", "runs", "raises"]),
        method=st.sampled_from([None, "serial", "batched"]),
    )
)  # fmt: skip
looks = _call("look", what=st.sampled_from(["lens", "attention", "graph", "weight", "sites"]), prompt=tokens)

calls = st.one_of(
    runs, runs, runs, batches, failures, generations, interrupted, streams, resumed, halves, unembedded, prefixes, prefixes,
    saved, stats, sweeps, sweeps, looks,
)  # fmt: skip

sequences = st.fixed_dictionaries({"model": st.sampled_from(MODELS), "calls": st.lists(calls, min_size=1, max_size=8)})
