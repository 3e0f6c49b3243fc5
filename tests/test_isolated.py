"""A model in a process of its own gives the same bits and errors as one in ours."""

from __future__ import annotations

import copy
import ctypes as ct
import gc
import os
import pickle
import subprocess
from collections.abc import Callable

import numpy as np
import pytest

import interp
import models
from interp import at, header, native
from interp.isolated import border
from interp.isolated.model import Isolated
from isolation import A, B, OPTIONS, OTHER, TOKENS, bits


@pytest.fixture(scope="module")
def isolated():
    with interp.Model(models.tiny("llama"), **OPTIONS, isolated=True) as model:
        yield model


# The border


def test_the_memory_behind_every_argument_of_the_interface_is_known():
    """Whoever adds a function to the interface finds out here that :mod:`interp.isolated.border` has to know it."""
    # addresses of the other process, and what functions of ours are called with
    opaque = {("op", 2), ("op", 3), ("host", 1), ("tensor_get_info", 1)} | {(name, 2) for name in border.CALLING}
    texts = {(name, 0) for name in ("init", "devices_needed", "rpc_connect", "rpc_disconnect")} | {
        (name, 1) for name in "meta tokenize weight_info weight_read capture_add edit_add start_set stop_set".split()
    }
    for name, (_, kinds) in header.PROTOTYPES.items():
        if name in border.NOT_HERE:
            continue
        for index, kind in enumerate(kinds):
            is_known = index in border.GIVEN.get(name, {}) or index in border.FILLED.get(name, {})
            if kind in (ct.c_int32, ct.c_int64, ct.c_size_t, ct.c_float):
                assert not is_known, f"{name}, argument {index} is a number"
            elif (index, name in border.WITHOUT_MODEL) == (0, False):
                assert kind is ct.c_void_p, f"{name} does not begin with the model"
            elif index == 1 and (name in border.CALLING or name == border.BATCH):
                assert not is_known
            else:
                assert is_known or (name, index) in opaque | texts, f"{name}, argument {index}: {kind}"


class Named(header._Sized):
    """A struct that points to a text."""

    _fields_ = [("size", ct.c_uint32), ("name", ct.c_char_p), ("other", ct.c_char_p)]


def test_texts_that_a_struct_points_to_cross_with_it():
    struct = Named(name=b"cpu")
    assert border.texts_of(ct.byref(struct)) == {"name": b"cpu", "other": None}
    assert border.texts_of((ct.c_int32 * 2)()) == {}
    assert border.is_struct(ct.byref(struct)) and border.is_struct((Named * 2)())
    assert not border.is_struct((ct.c_int32 * 2)()) and not border.is_struct(ct.byref(ct.c_int64()))
    assert border.memory(border.address_of(ct.byref(struct)), 4).raw == bytes(ct.c_uint32(ct.sizeof(Named)))


# The same bits


def seen_graphs(model) -> list:
    seen = []
    model.on_graph(lambda graph: seen.append(graph.text()))
    model.run(TOKENS)
    model.on_graph(None)
    return seen


def streamed(model) -> list:
    with model.stream(TOKENS, max_tokens=5) as stream:
        pieces = list(stream)
    return [pieces, stream.generation]


def heard(model) -> list:
    said: list[str] = []
    return [model.generate(TOKENS, max_tokens=5, on_text=said.append, temperature=0.7, seed=3), said]


def with_prefix(model) -> list:
    with model.prefix(OTHER) as prefix:
        return [prefix.text, model.n_prefix, model.run(TOKENS, capture=("l_out", "attn_scores")), model.unembed(np.ones(64))]


def changed_on_host(model) -> list:
    """A closure that changes something here: it runs in this process."""
    shapes = []

    def fn(x: np.ndarray) -> np.ndarray:
        shapes.append(x.shape)
        return np.tanh(x) * 2

    return [model.run(TOKENS, edits=interp.edit_host(at("l_out", 1, positions=2), fn)), shapes]


def own_metric(run) -> float:
    return float(run.logits[-1, A] - run.logits[-1].mean())


def patched(model):
    source = model.run(OTHER, capture=("l_out", "z"))
    return model.run(TOKENS, edits=[interp.patch("l_out", 1, source, positions=2), interp.ablate([(2, 1)], "z", "mean", mean=source)])


def looked_at(model) -> list:
    lens = interp.logit_lens(model, TOKENS, k=3)
    return [lens.top(2), lens.rank(A), lens.logits(1), interp.attention(model, TOKENS).pattern(2)]


FEATURES: dict[str, Callable] = {
    "attributes": lambda m: [m.arch, m.name, str(m.path), m.n_layer, m.n_head, m.n_head_kv, m.n_embd, m.n_vocab, m.n_ctx, m.n_params, m.n_threads, repr(m)],
    "text": lambda m: [m.tokens("The Eiffel Tower ☃"), m.pieces(TOKENS), m.text(TOKENS)],
    "sites": lambda m: m.sites(),
    "weight": lambda m: [m.weight("blk.1.attn_q.weight"), m.weight("output_norm.weight")],
    "everything captured": lambda m: m.run(TOKENS, capture="l_out attn_scores attn_logits q k v z mlp_act inp_tokens".split()),
    "parts captured": lambda m: m.run(TOKENS, capture=[at("z", 1, heads=[3, 0], positions=[1, -1]), at("attn_scores", 2, heads=1, queries="last")], logits="last"),
    "a batch of prompts": lambda m: m.run([TOKENS, OTHER], edits=[[interp.scale("l_out-1", 0.5)], []], logits=None),
    "stop": lambda m: m.run(TOKENS, "l_out", stop_after=1),
    "resume": lambda m: m.resume(m.run(TOKENS, "resid_pre")["resid_pre", 2], 2, TOKENS, capture="l_out"),
    "unembed": lambda m: m.unembed(np.linspace(-1, 1, 3 * 64).reshape(3, 1, 64)),
    "edits": lambda m: m.run(TOKENS, edits=[
        interp.add("l_out-0", np.ones(64)), interp.steer("resid_post", 1, np.arange(64) / 64.0, positions="last"), interp.keep_only(2, 1),
        interp.project_out("l_out", 2, np.ones(64)), interp.knockout(3, -1, [1, 2]), interp.edit(at("mlp_out", 1, positions=[0, 2]), lambda x: x @ np.eye(64) - x.mean()),
    ]),
    "patches": patched,
    "edit on the host": changed_on_host,
    "generate": lambda m: m.generate(TOKENS, max_tokens=6, capture="l_out", edits=interp.scale(at("z", 1, positions="generated"), 0.0)),
    "on_text": heard,
    "stream": streamed,
    "prefix": with_prefix,
    "graph": lambda m: m.graph(TOKENS, "l_out", interp.scale("l_out-1", 2.0)).text(),
    "on_graph": seen_graphs,
    "lens and attention": looked_at,
    "patch_sweep": lambda m: interp.patch_sweep(m, TOKENS, OTHER, metric=interp.logit_diff(A, B)),
    "patch_sweep, serial": lambda m: interp.patch_sweep(m, TOKENS, OTHER, "z", own_metric, per_head=True, method="serial"),
    "several pairs": lambda m: interp.patch_sweep(m, [TOKENS, OTHER], [OTHER, TOKENS], metric=own_metric, layers=[1]),
    "ablation_sweep": lambda m: interp.ablation_sweep(m, TOKENS, interp.kl_divergence(m.run(TOKENS))),
    "knockout_sweep": lambda m: interp.knockout_sweep(m, TOKENS, interp.probability(A), keys={"one": 1, "two": [2, 3]}, window=2),
    "path_patch": lambda m: interp.path_patch(m, TOKENS, OTHER, [(3, 1)], metric=interp.logit_diff(A, B)),
    "direct_logit_attribution": lambda m: interp.direct_logit_attribution(m, TOKENS, A, B),
    "induction_scores": lambda m: interp.induction_scores(m, 8, 2),
    "stats": lambda m: interp.stats(m, [TOKENS * 5, OTHER * 9], ("l_out", "z"), n_top=3),
}


@pytest.mark.parametrize("feature", FEATURES)
def test_every_feature_gives_the_bits_of_a_model_in_this_process(tiny, isolated, feature):
    assert isinstance(isolated, interp.Model) and isolated.pid != os.getpid()
    assert bits(FEATURES[feature](isolated)) == bits(FEATURES[feature](tiny))


def test_files_go_both_ways(tiny, isolated, tmp_path):
    path = tmp_path / "prefix.safetensors"
    with isolated.prefix(OTHER):
        isolated.save_state(path)
        wanted = isolated.run(TOKENS).logits
    with tiny.load_state(path):
        assert np.array_equal(tiny.run(TOKENS).logits, wanted)
    run = isolated.run(TOKENS, "l_out")
    assert bits(interp.Run.load(run.save(tmp_path / "run.npz"))["l_out"]) == bits(run["l_out"])
    with pytest.raises(interp.RunError, match="cannot be pickled.*path"):
        pickle.dumps(isolated)
    assert copy.copy(run).model is isolated
    with pytest.raises(interp.RunError, match="cannot be pickled"):
        copy.deepcopy(run)  # with its model


def test_chat_speaks_the_template_in_the_file(model):
    with interp.Model(n_ctx=512, n_threads=1, isolated=True) as other:
        assert other.chat_prompt("Hello") == model.chat_prompt("Hello")
        assert bits(other.chat("Hello", max_tokens=3)) == bits(model.chat("Hello", max_tokens=3))


# The same errors

MISTAKES: dict[str, Callable] = {
    "site": lambda m: m.run(TOKENS, "l_uot"),
    "token": lambda m: m.run([10**9]),
    "length": lambda m: m.run([1] * 300),
    "shape": lambda m: m.run(TOKENS, edits=interp.edit("l_out-1", lambda x: x[:, :3])),
    "an edit that raises": lambda m: m.run(TOKENS, edits=interp.edit("l_out-1", lambda x: 1 / 0)),
    "an edit on the host that raises": lambda m: m.run(TOKENS, edits=interp.edit_host("l_out-1", lambda x: x[99])),
    "the library's own": lambda m: m.run(TOKENS, capture="final_norm", stop_after=3),
    "weight": lambda m: m.weight("blk.1.attn_k.bias"),
    "an edit that runs the model": lambda m: m.run(TOKENS, edits=interp.edit_host("l_out-1", lambda x: m.run(TOKENS))),
    "on_text": lambda m: m.generate(TOKENS, on_text=lambda text: 1 / 0),
    "metric": lambda m: interp.ablation_sweep(m, TOKENS, lambda run: "much"),
    "corpus": lambda m: interp.stats(m, "nowhere.txt"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_errors_are_those_of_a_model_in_this_process_and_leave_nothing_behind(tiny, isolated, mistake):
    with pytest.raises(Exception) as wanted:
        MISTAKES[mistake](tiny)
    with pytest.raises(type(wanted.value)) as found:
        MISTAKES[mistake](isolated)
    assert type(found.value) is type(wanted.value) and str(found.value) == str(wanted.value)
    assert np.array_equal(isolated.run(TOKENS).logits, tiny.run(TOKENS).logits)


def test_what_cannot_be_loaded_says_why_and_leaves_no_process(tmp_path, monkeypatch):
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(models.tiny("llama").read_bytes()[:5000])
    messages = []
    for isolated in (False, True):
        with pytest.raises(interp.ModelError) as found:
            interp.Model(damaged, isolated=isolated)
        messages.append(str(found.value))
    assert messages[0] == messages[1]

    library = tmp_path / native.find_library().name
    library.write_text("no library")
    monkeypatch.setenv("LLAMA_INTERP_LIB", str(library))
    with pytest.raises(interp.LibraryError) as wanted:
        native.load(library)
    with pytest.raises(interp.LibraryError) as found:
        interp.Model(models.tiny("llama"), isolated=True)
    assert str(found.value) == str(wanted.value)
    assert not _children()


def _children() -> list[int]:
    """Processes that serve a model for this one, but for those of fixtures."""
    held = {model.pid for model in gc.get_objects() if isinstance(model, Isolated) and model._remote is not None}
    command = ["pgrep", "-P", str(os.getpid()), "-f", "isolated/child.py"]
    # a sanitizer's library (build.py --sanitize) is for Python alone
    env = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    listed = subprocess.run(command, capture_output=True, text=True, env=env)
    return [int(pid) for pid in listed.stdout.split() if int(pid) not in held]
