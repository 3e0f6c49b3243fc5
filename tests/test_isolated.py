"""A model in a process of its own gives the same bits and errors as one in ours, and its death is an error."""

from __future__ import annotations

import copy
import ctypes as ct
import gc
import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import interp
import models
from interp import at, header, native
from interp.isolated import border
from interp.isolated.library import Library
from interp.isolated.model import Isolated

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="kills processes with signals")

ROOT = Path(__file__).resolve().parent.parent

OPTIONS = {"n_ctx": 256, "kv_type": "f32", "flash_attn": False, "n_threads": 1}

TOKENS, OTHER = [11, 4711, 300, 9, 1024, 77], [11, 4711, 301, 9, 1024, 77]

A, B = 500, 700


@pytest.fixture(scope="module")
def isolated():
    with interp.Model(models.tiny("llama"), **OPTIONS, isolated=True) as model:
        yield model


@pytest.fixture
def mortal():
    """One that may die."""
    with interp.Model(models.tiny("llama"), **OPTIONS, isolated=True) as model:
        yield model


def is_gone(pid: int) -> bool:
    """Ended, and reaped."""
    for _ in range(100):
        if not Path(f"/proc/{pid}").exists():
            return True
        time.sleep(0.05)
    return False


# The border


def test_the_memory_behind_every_argument_of_the_interface_is_known():
    """Whoever adds a function to the interface finds out here that :mod:`interp.isolated.border` has to know it."""
    # addresses of the other process, and what functions of ours are called with
    opaque = {("op", 2), ("op", 3), ("host", 1), ("tensor_get_info", 1)} | {(name, 2) for name in border.CALLING}
    texts = {("init", 0)} | {
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


def bits(found):
    """Whatever a model gives, in a form that compares every bit of it."""
    if isinstance(found, np.ndarray):
        return found.dtype.str, found.shape, found.tobytes()
    if isinstance(found, interp.Model):
        return "a model"
    if isinstance(found, (list, tuple)):
        return [bits(part) for part in found]
    if isinstance(found, dict):
        return {str(key): bits(part) for key, part in found.items()}
    if isinstance(found, float):
        return found.hex()
    if found is None or isinstance(found, (str, int, bytes, range)):
        return found
    return type(found).__name__, {name: bits(part) for name, part in vars(found).items()}


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
    "everything captured": lambda m: m.run(TOKENS, capture=["l_out", "attn_scores", "attn_logits", "q", "k", "v", "z", "mlp_act", "inp_tokens"]),
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
    with pytest.raises(interp.RunError, match="cannot be pickled"):
        copy.copy(run)  # a run holds its model
        copy.deepcopy(run)


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
    listed = subprocess.run(["pgrep", "-P", str(os.getpid()), "-f", "isolated/child.py"], capture_output=True, text=True)
    return [int(pid) for pid in listed.stdout.split() if int(pid) not in held]


# Death


def dies(model, how: Callable[[], object], *words: str) -> None:
    with pytest.raises(interp.ProcessError, match=".*".join(["^The model's process ended", *words, "The next call"])):
        how()
    with pytest.warns(RuntimeWarning, match="process ended.*loaded again") as told:
        model.tokens("anything")
    assert len(told) == 1 and told[0].filename == __file__


def test_a_death_in_the_middle_is_an_error_and_the_next_run_has_the_bits_of_before(mortal):
    before, first = mortal.run(TOKENS, "l_out"), mortal.pid

    def dying(x):
        os.kill(mortal.pid, signal.SIGKILL)
        return x * 1.0

    for make in (interp.edit, interp.edit_host):
        dies(mortal, lambda: mortal.run(TOKENS, edits=make("l_out-1", dying)), "SIGKILL, as when memory runs out")
    dies(mortal, lambda: mortal.generate(TOKENS, on_text=dying), "SIGKILL")
    dies(mortal, lambda: [dying(1.0) for _ in mortal.stream(TOKENS)], "SIGKILL")
    metric = interp.logit_diff(A, B)
    dies(mortal, lambda: interp.ablation_sweep(mortal, TOKENS, lambda run: dying(metric(run)), method="serial"), "SIGKILL")
    assert bits(mortal.run(TOKENS, "l_out")) == bits(before)
    assert mortal.pid != first and is_gone(first)


def test_what_it_said_last_is_in_the_error(mortal):
    def failing(x):
        Path(f"/proc/{mortal.pid}/fd/2").write_text("\n/src/ggml.c:7: GGML_ASSERT(rows > 0) failed\n")
        os.kill(mortal.pid, signal.SIGABRT)
        return x

    dies(mortal, lambda: mortal.run(TOKENS, edits=interp.edit("l_out-1", failing)), "SIGABRT", r"/src/ggml.c:7: GGML_ASSERT\(rows > 0\) failed")


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="limits the memory of another process as only Linux can")
def test_an_abort_in_the_library_is_an_error(mortal):
    """Memory for the answer but not for the weight itself: C++ gives up."""
    pages = int(Path(f"/proc/{mortal.pid}/statm").read_text().split()[0])
    weight = "token_embd.weight"
    size = 4 * mortal.n_vocab * mortal.n_embd
    resource.prlimit(mortal.pid, resource.RLIMIT_AS, (pages * resource.getpagesize() + size * 3 // 2, -1))
    dies(mortal, lambda: mortal.weight(weight), "SIGABRT", "bad_alloc")
    assert mortal.weight(weight).nbytes == size


def test_a_death_between_two_calls_is_told_once_and_costs_no_call(mortal):
    before = mortal.run(TOKENS).logits
    os.kill(mortal.pid, signal.SIGKILL)
    assert is_gone(mortal.pid)
    with pytest.warns(RuntimeWarning, match="SIGKILL.*loaded again"):
        assert np.array_equal(mortal.run(TOKENS).logits, before)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mortal.run(TOKENS)


def test_a_prefix_outlives_the_process(mortal):
    with mortal.prefix(OTHER) as prefix:
        before = mortal.run(TOKENS).logits
        mortal.kill()
        with pytest.warns(RuntimeWarning, match=r"kill\(\)"):
            assert np.array_equal(mortal.run(TOKENS).logits, before)
        assert prefix.is_in_force
    assert not np.array_equal(mortal.run(TOKENS).logits, before)


def test_a_file_that_changed_is_not_loaded_again_in_silence(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(models.tiny("llama").read_bytes())
    with interp.Model(path, **OPTIONS, isolated=True) as model:
        os.utime(path, (1, 1))
        model.kill()
        for _ in range(2):
            with pytest.raises(interp.ModelError, match="has changed since it was loaded"):
                model.run(TOKENS)


def test_kill_ends_a_run_that_hangs_in_another_thread(mortal):
    reached, ended, found = threading.Event(), threading.Event(), []

    def hang(x):
        reached.set()
        ended.wait(20)
        return x

    def run():
        with pytest.raises(interp.ProcessError, match=r"kill\(\)") as err:
            mortal.run(TOKENS, edits=interp.edit_host("l_out-1", hang))
        found.append(err)

    thread = threading.Thread(target=run)
    thread.start()
    assert reached.wait(20)
    mortal.kill()
    ended.set()
    thread.join(20)
    assert found


# Ctrl-C


def interrupted(after: float, times: int = 1) -> threading.Thread:
    """Ctrl-C, from another thread."""

    def press():
        for _ in range(times):
            time.sleep(after)
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    return thread


@pytest.fixture(scope="module")
def slow():
    """Half a second for a run."""
    with interp.Model(models.tiny("llama"), n_ctx=4096, n_threads=1, isolated=True) as model:
        yield model


def test_ctrl_c_ends_a_call_and_leaves_the_model_usable(slow):
    before, handler, pid = slow.run(TOKENS).logits, signal.getsignal(signal.SIGINT), slow.pid
    for run in (lambda: slow.run([7] * 4000, logits=None), lambda: slow.generate(TOKENS, max_tokens=4000)):
        thread = interrupted(0.1)
        with pytest.raises(KeyboardInterrupt):
            run()
        thread.join()
        assert np.array_equal(slow.run(TOKENS).logits, before)
    assert slow.pid == pid and signal.getsignal(signal.SIGINT) is handler


def test_ctrl_c_reaches_a_function_of_the_users(slow):
    before = slow.run(TOKENS).logits
    thread, start = interrupted(0.1), time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        slow.run(TOKENS, edits=interp.edit_host("l_out-1", lambda x: time.sleep(20)))
    assert time.monotonic() - start < 10
    thread.join()
    assert np.array_equal(slow.run(TOKENS).logits, before)


def test_ctrl_c_twice_does_not_wait(slow):
    before, pid = slow.run(TOKENS).logits, slow.pid
    os.kill(pid, signal.SIGSTOP)  # a device that hangs
    thread = interrupted(0.2, times=2)
    with pytest.raises(KeyboardInterrupt):
        slow.run(TOKENS)
    thread.join()
    assert is_gone(pid)
    with pytest.warns(RuntimeWarning, match="second Ctrl-C"):
        assert np.array_equal(slow.run(TOKENS).logits, before)


def test_ctrl_c_ends_a_sweep_with_what_it_has(isolated):
    cells = []

    def metric(run) -> float:
        cells.append(run)
        if len(cells) == 4:
            signal.raise_signal(signal.SIGINT)
        return float(run.logits[-1, A])

    found = interp.ablation_sweep(isolated, TOKENS, metric, method="serial")
    assert not found.complete and np.isfinite(found.values).sum() == 2


# The end of things


def test_nothing_is_left_of_a_model_that_was_closed_or_forgotten():
    before = len(os.listdir("/proc/self/fd")), threading.active_count()
    model = interp.Model(models.tiny("llama"), **OPTIONS, isolated=True)
    closed = model.pid
    model.close()
    model.close()
    assert is_gone(closed)
    for call in (lambda: model.run(TOKENS), lambda: model.tokens("x"), lambda: model.vocab.tokens("x"), model.sites):
        with pytest.raises(interp.RunError, match="closed"):
            call()

    model = interp.Model(models.tiny("llama"), **OPTIONS, isolated=True)
    forgotten = model.pid
    model.run(TOKENS)
    del model
    gc.collect()
    assert is_gone(forgotten)

    with interp.Model(models.tiny("llama"), **OPTIONS, isolated=True) as model:
        os.kill(model.pid, signal.SIGKILL)
    assert is_gone(model.pid)
    gc.collect()
    assert (len(os.listdir("/proc/self/fd")), threading.active_count()) == before


SCRIPT = """
import sys, interp
model = interp.Model(sys.argv[1], n_ctx=64, n_threads=1, isolated=True)
run = model.run([11, 4711, 300], edits=interp.edit_host("l_out-1", lambda x: x * 2))
print(model.pid, float(run.logits.sum()), flush=True)
if len(sys.argv) > 2:
    model.run([11] * 60, edits=interp.edit_host("l_out-1", lambda x: __import__("time").sleep(60)))
"""


def script(tmp_path: Path, *args: str) -> subprocess.Popen:
    """A user's script, without a guard for its main part."""
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    command = [sys.executable, str(path), str(models.tiny("llama")), *args]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=environment)


def test_a_script_needs_no_main_guard_and_leaves_nothing_behind(tmp_path):
    with script(tmp_path) as process:
        said, errors = process.communicate(timeout=60)
    assert process.returncode == 0 and not errors, errors
    pid, total = said.split()
    edit = interp.edit_host("l_out-1", lambda x: x * 2)
    with interp.Model(models.tiny("llama"), n_ctx=64, n_threads=1) as model:
        assert float(total) == float(model.run([11, 4711, 300], edits=edit).logits.sum())
    assert is_gone(int(pid))


def test_it_ends_with_the_process_that_started_it_even_in_the_middle_of_a_run(tmp_path):
    with script(tmp_path, "hang") as process:
        pid = int(process.stdout.readline().split()[0])
        assert Path(f"/proc/{pid}").exists()
        process.kill()
    assert is_gone(pid)


def test_a_fork_is_told_that_the_model_is_not_its_own(isolated):
    before = isolated.run(TOKENS).logits
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads
        forked = os.fork()
    if forked == 0:
        said = b"nothing"
        try:
            isolated.run(TOKENS)
        except interp.RunError as err:
            said = str(err).encode()
        try:
            isolated.close()
        finally:
            os.write(writing, said)
            os._exit(0)
    os.waitpid(forked, 0)
    assert b"forked from" in os.read(reading, 1000)
    os.close(reading), os.close(writing)
    assert np.array_equal(isolated.run(TOKENS).logits, before)


def test_threads_take_turns(isolated):
    wanted = [bits(isolated.run(TOKENS, "l_out")), bits(isolated.generate(OTHER, max_tokens=4)), isolated.tokens("one two")]
    wrong = []

    def work():
        for _ in range(5):
            found = [bits(isolated.run(TOKENS, "l_out")), bits(isolated.generate(OTHER, max_tokens=4)), isolated.tokens("one two")]
            wrong.extend([found] if found != wanted else [])

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_one_isolated_model_may_be_used_inside_a_run_of_another(isolated, mortal):
    added = interp.edit_host("l_out-1", lambda x: x + mortal.run(TOKENS, "l_out", logits=None)["l_out", 0][: len(x)])
    alone = mortal.run(TOKENS, "l_out")["l_out", 0]
    assert bits(isolated.run(TOKENS, edits=added).logits) == bits(isolated.run(TOKENS, edits=interp.edit_host("l_out-1", lambda x: x + alone)).logits)


LOADED = """
import sys, interp
print("interp.isolated" in sys.modules)
model = interp.Model(sys.argv[1], n_threads=1, isolated=True)
model.run([1])
print("libllama" in open("/proc/self/maps").read(), "interp.isolated" in sys.modules)
"""


def test_only_the_other_process_loads_the_library_and_only_isolated_models_load_the_border():
    command = [sys.executable, "-c", LOADED, str(models.tiny("llama"))]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.stdout.split() == ["False", "False", "True"], done.stderr


def test_a_class_of_ones_own_is_refused():
    class Own(interp.Model):
        pass

    with pytest.raises(interp.RunError, match="for interp.Model itself, not for Own"):
        Own(models.tiny("llama"), isolated=True)


def test_a_handle_of_a_process_that_died_never_reaches_the_next(mortal):
    old = mortal._handle
    mortal.kill()
    with pytest.warns(RuntimeWarning):
        mortal.run(TOKENS)
    with pytest.raises(interp.ProcessError, match="while this run waited"):
        mortal._lib.node_count(old)
    assert isinstance(mortal._lib, Library) and mortal._lib.node_count(mortal._handle) >= 0
