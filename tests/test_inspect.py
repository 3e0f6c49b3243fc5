"""The graph of a run can be looked at: what the model computes, what edits added, and where it runs."""

from __future__ import annotations

import json

import pytest

import interp
from conftest import PROMPT


@pytest.mark.cpu_only
def test_a_graph_lists_what_the_model_computes(tiny):
    graph = tiny.graph(PROMPT)
    assert graph.n_tokens == len(tiny.tokens(PROMPT)) and not graph.added
    (l_out,) = graph.find("l_out-2")
    assert l_out.op == "ADD" and l_out.type == "f32" and l_out.shape == (graph.n_tokens, 64) and l_out.backend == "CPU"
    assert all(source < node.index for node in graph for source in node.inputs), "inputs come before what uses them"
    used = {source for node in graph for source in node.inputs}
    assert graph.find("output_norm.weight")[0].index in used and graph.find("output_norm.weight")[0].is_leaf


@pytest.mark.cpu_only
def test_a_graph_shows_what_edits_and_captures_added(tiny):
    edits = [interp.steer("l_out", 1, [1.0] * 64), interp.ablate([(2, 0)])]
    plain, edited = tiny.graph(PROMPT), tiny.graph(PROMPT, edits=edits)
    assert {node.added_by for node in edited.added} == {"steer", "zero ablation"}
    computed = [node for node in edited.added if not node.is_leaf]
    assert len(edited.nodes) - len(plain.nodes) == len(edited.added) and computed
    sum_ = next(node for node in computed if node.added_by == "steer" and node.op == "ADD")
    assert sum_.name == "l_out-1"
    side = interp.Model(tiny.path, n_ctx=256, n_threads=1).graph(PROMPT, capture="attn_scores")
    assert {node.added_by for node in side.added} == {"capture"} and any(node.op == "SOFT_MAX" for node in side.added)


def test_every_form_holds_every_node(tiny, tmp_path):
    graph = tiny.graph(PROMPT, edits=interp.scale("l_out-1", 2.0))
    assert len(graph.text().splitlines()) == len(graph) and "added by scale" in graph.text()
    data = json.loads(graph.json())
    assert len(data["nodes"]) == len(graph) and data["n_tokens"] == graph.n_tokens
    assert graph.dot().startswith("digraph") and graph.dot().count("fillcolor") == len(graph.added)
    for suffix in (".txt", ".json", ".dot"):
        graph.save(tmp_path / f"graph{suffix}")
        assert (tmp_path / f"graph{suffix}").stat().st_size > 1000
    with pytest.raises(interp.FileError, match=".dot"):
        graph.save(tmp_path / "graph.pdf")


def test_a_function_sees_each_graph_that_is_built_before_it_runs(tiny):
    graphs = []
    tiny.on_graph(graphs.append)
    try:
        tiny.generate(PROMPT, max_tokens=6)
        assert [graph.n_tokens for graph in graphs] == [len(tiny.tokens(PROMPT)), 1], "one graph serves all later tokens"
    finally:
        tiny.on_graph(None)
    tiny.run(PROMPT)
    assert len(graphs) == 2


def test_an_error_in_the_function_reaches_the_caller(tiny):
    tiny.on_graph(lambda graph: 1 / 0)
    try:
        with pytest.raises(interp.EditError, match="ZeroDivisionError"):
            tiny.run(PROMPT)
    finally:
        tiny.on_graph(None)
    with pytest.raises(interp.RunError, match="function"):
        tiny.on_graph(5)
    assert tiny.run(PROMPT).logits is not None
