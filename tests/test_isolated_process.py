"""The process of an isolated model dies, is interrupted, forked, shared and ended: always one clear error, and nothing left."""

from __future__ import annotations

import gc
import os
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
from interp.isolated.library import Library
from isolation import A, B, OPTIONS, OTHER, TOKENS, bits, is_gone

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="looks at processes as only Linux shows them")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def isolated():
    with interp.Model(models.tiny("llama"), **OPTIONS, isolated=True) as model:
        yield model


@pytest.fixture
def mortal():
    """One that may die."""
    with interp.Model(models.tiny("llama"), **OPTIONS, isolated=True) as model:
        yield model


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


def test_a_lack_of_memory_there_is_an_error_of_the_call_alone(mortal):
    pages, pid = int(Path(f"/proc/{mortal.pid}/statm").read_text().split()[0]), mortal.pid
    weight = "token_embd.weight"
    size = 4 * mortal.n_vocab * mortal.n_embd
    resource.prlimit(pid, resource.RLIMIT_AS, (pages * resource.getpagesize() + size // 2, -1))
    with pytest.raises(MemoryError, match=f"{size} bytes in the model's process"):
        mortal.weight(weight)
    resource.prlimit(pid, resource.RLIMIT_AS, (-1, -1))
    assert mortal.weight(weight).nbytes == size and mortal.pid == pid


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
