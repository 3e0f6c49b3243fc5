"""Ctrl-C at any moment: the call ends soon, with KeyboardInterrupt or with what it has, and the next one has the bits of a
model that was never interrupted."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import interp
import models
from ci import sanitize

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="sends itself signals")

ROOT = Path(__file__).resolve().parent.parent
TOKENS, OTHER = [11, 4711, 300, 9, 1024, 77], [11, 4711, 301, 9, 1024, 77]

#: at every moment: minutes
LONG = bool(os.environ.get("LLAMA_INTERP_TEST_LONG"))

#: moments that are tried of each call
POINTS = 10**9 if LONG else 20

#: seconds within which a call of a small model has to end
SOON = 20.0 if sanitize.ACTIVE else 2.0

#: whose functions Ctrl-C reaches at their first line, which is one of the places where Python looks for signals
_TRACED = (str(ROOT / "interp"), contextlib.__file__)


def _is_cleaning(frame) -> bool:
    """Whether Python lets go of an object or of half a generator, where it prints what is raised and goes on."""
    if frame.f_code.co_name == "<genexpr>":
        return True
    while frame is not None and frame.f_code.co_name != "__del__":
        frame = frame.f_back
    return frame is not None


class Pressed:
    """Ctrl-C at the n-th call of a function of ours; ``seen``: how many calls there were."""

    def __init__(self, at: int):
        self._at, self.seen = at, 0

    def _trace(self, frame, event: str, _arg) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(_TRACED) and not _is_cleaning(frame):
            self.seen += 1
            if self.seen == self._at:
                # what it does is done here, and what it raises leaves the function that was called
                signal.raise_signal(signal.SIGINT)

    def __enter__(self) -> Pressed:
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_exc) -> None:
        sys.settrace(None)


def interrupted(call: Callable[[], object], at: int) -> object:
    """What a call gives that is interrupted there: its result, or the string ``"interrupted"``."""
    # half a generator that the interruption before left behind would else be let go of in the middle of this call
    gc.collect()
    try:
        with Pressed(at):
            return call()
    except KeyboardInterrupt:
        return "interrupted"


def is_complete(result) -> bool:
    return getattr(result, "complete", True)


@pytest.fixture(scope="module")
def calls(tiny, tmp_path_factory) -> Iterator[dict[str, Callable[[], object]]]:
    """What runs a model, by name."""
    folder, metric = tmp_path_factory.mktemp("signals"), interp.logit_diff(500, 700)
    run = tiny.run(TOKENS, capture=["l_out", "attn_scores"])
    with tiny.prefix(TOKENS):
        tiny.save_state(folder / "prefix.safetensors")
    doubled, raised = interp.edit("l_out-2", lambda x: x * 2), interp.edit_host("ffn_inp-1", lambda x: x + 1)
    edits = [interp.ablate([(1, 2)]), doubled, raised]

    def prefixed() -> None:
        with tiny.load_state(folder / "prefix.safetensors"):
            tiny.run(OTHER)

    def load() -> None:
        interp.Model(models.tiny("llama"), n_ctx=64, n_threads=1).close()

    # collecting garbage is quick when it leaves out what is here already
    gc.freeze()
    yield {
        "load": load,
        "run": lambda: tiny.run(TOKENS, capture=["l_out", interp.at("z", heads=1)], edits=edits),
        "generate": lambda: tiny.generate(TOKENS, max_tokens=4, edits=edits),
        "stream": lambda: list(tiny.stream(TOKENS, max_tokens=4)),
        "resume": lambda: tiny.resume(run["l_out", 1], 2, TOKENS),
        "unembed": lambda: tiny.unembed(run["l_out", 1]),
        "lens": lambda: interp.logit_lens(run),
        "attention": lambda: interp.attention(run),
        "prefix": prefixed,
        "graph": lambda: tiny.graph(TOKENS),
        "stats": lambda: interp.stats(tiny, [TOKENS, OTHER], "l_out", n_top=1),
        "patch sweep": lambda: interp.patch_sweep(tiny, TOKENS, OTHER, metric=metric, layers=[0, 2]),
        "ablation, serial": lambda: interp.ablation_sweep(tiny, TOKENS, metric, layers=[1], method="serial"),
        "ablation, batched": lambda: interp.ablation_sweep(tiny, TOKENS, metric, layers=[1]),
    }  # fmt: skip
    gc.unfreeze()


def test_ctrl_c_at_any_function_ends_a_call_and_leaves_the_model_as_it_was(calls, tiny, tried):
    with interp.Model(models.tiny("llama"), n_ctx=256, kv_type="f32", flash_attn=False, n_threads=1) as fresh:
        expected = fresh.run(TOKENS, capture="l_out-3")
    outcomes = set()
    for name, call in calls.items():
        call()
        with Pressed(0) as counted:
            call()
        points = range(1, counted.seen + 1, max(1, counted.seen // POINTS))
        for at in points:
            started = time.monotonic()
            found = interrupted(call, at)
            assert time.monotonic() - started < SOON, f"{name}, call {at}"
            # after its last cell a sweep is whole, whatever is pressed
            is_whole = at > 0.9 * counted.seen and getattr(found, "complete", False)
            assert isinstance(found, str) or not is_complete(found) or is_whole, f"{name}, call {at}: Ctrl-C was lost"
            outcomes.add("interrupted" if isinstance(found, str) else "a part")
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler, f"{name}, call {at}"
            tiny.prefix(None)  # one that came in force stays so
            again = tiny.run(TOKENS, capture="l_out-3")
            assert np.array_equal(again.logits, expected.logits), f"{name}, call {at}"
            assert np.array_equal(again["l_out", 3], expected["l_out", 3]), f"{name}, call {at}"
            tried("Ctrl-C in the middle of a call")
    assert outcomes == {"interrupted", "a part"}


# // while the library is at work


@contextlib.contextmanager
def pressed_after(seconds: float):
    """Ctrl-C from another thread, so many seconds from now."""
    pressing = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT))
    pressing.start()
    try:
        yield
    finally:
        pressing.cancel()
        pressing.join()


def test_ctrl_c_ends_a_long_run_at_the_next_node_and_not_at_its_end(tried):
    """Ten seconds and more in one call of the library."""
    with interp.Model(n_ctx=2048, n_threads=1) as model:
        before = model.run(TOKENS).logits
        with pressed_after(0.3):
            started = time.monotonic()
            with pytest.raises(KeyboardInterrupt):
                model.run([7] * 2000, logits="last")
        assert time.monotonic() - started < 0.3 + SOON
        assert np.array_equal(model.run(TOKENS).logits, before)
        tried("Ctrl-C in the middle of a call")


def test_ctrl_c_between_functions_that_the_library_calls_is_never_lost(tiny, tried):
    """It arrives while the library computes, and Python would raise it before the first line of the next function: out
    of its sight, which left the values of that function as they were."""
    edits = [interp.edit_host("l_out", lambda x: x + 1), interp.edit_host("ffn_inp", lambda x: x * 2)]
    prompt = [7] * 200
    started = time.monotonic()
    expected = tiny.run(prompt, edits=edits, logits="last").logits
    seconds = time.monotonic() - started
    ended = 0
    for i in range(200 if LONG else 40):
        found = None
        try:
            with pressed_after(seconds * i / (200 if LONG else 40)):
                found = tiny.run(prompt, edits=edits, logits="last").logits
                time.sleep(0.001)
        except KeyboardInterrupt:
            ended += 1
        assert found is None or np.array_equal(found, expected)
        tried("Ctrl-C in the middle of a call")
    assert ended > 5


def test_a_handler_of_the_users_is_called_and_the_run_goes_on(tiny):
    called = []
    before = signal.signal(signal.SIGINT, lambda *_: called.append(1))
    try:
        expected = tiny.run(TOKENS).logits
        with pressed_after(0.0):
            found = [tiny.run(TOKENS).logits for _ in range(20)]
            time.sleep(0.05)
    finally:
        signal.signal(signal.SIGINT, before)
    assert called == [1] and all(np.array_equal(one, expected) for one in found)


# // the shell


COMMANDS = {
    "run": ["-p", "a text", "-n", "2"],
    "lens": ["lens", "-p", "a text", "--json"],
    "sweep": ["sweep", "-p", "one two", "--corrupted", "one three", "--answer", "a", "--instead", "b", "--layers", "0"],
}


def ended(work: Callable[[], object]) -> tuple[int, str]:
    """The exit code of a fork that did some work, and what it said on stderr."""
    said = os.memfd_create("said")
    pid = os.fork()
    if pid == 0:
        status = 99
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(said, 2)
        sys.stdout, sys.stderr = (os.fdopen(os.dup(fd), "w", errors="backslashreplace") for fd in (1, 2))
        try:
            status = work() or 0
        except SystemExit as err:
            status = err.code or 0
        except BaseException:  # noqa: BLE001 - told to the test
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    with os.fdopen(said, "rb") as file:
        file.seek(0)
        return os.waitstatus_to_exitcode(status), file.read().decode()


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="forks as Linux has them")
def test_ctrl_c_ends_a_command_with_130_and_one_line(name, tried):
    from interp.cli import cli

    arguments = [*COMMANDS[name], "-m", str(models.tiny("llama"))]

    def command(at: int, count: bool = False) -> int:
        with Pressed(at) as pressed:
            try:
                cli(arguments, prog_name="llama-interp")
            finally:
                if count:
                    print(pressed.seen, file=sys.stderr)

    code, said = ended(lambda: command(0, count=True))
    assert code == 0, said
    seen = int(said.split()[-1])
    # the first are those of the command itself, whose first lines come after them
    for at in range(10, seen, max(1, seen // (200 if LONG else 5))):
        code, said = ended(lambda: command(at))
        # after its last cell a sweep is whole, whatever is pressed
        is_whole = (code, said) == (0, "") and (name == "sweep" or at > 0.9 * seen)
        # before an empty line, where it comes between two functions of click
        assert (code, said.lstrip("\n")) == (130, "error: interrupted\n") or is_whole, f"call {at} of {seen}: {code} {said}"
        tried("Ctrl-C in the middle of a command")


# // a build


def test_ctrl_c_at_any_moment_of_a_build_and_the_next_one_is_whole(project, clone, monkeypatch, tried):
    import build
    import upstream
    from ci import library
    from ci.steps import Report, exit_code
    from test_build import call, pretend_built

    monkeypatch.setattr(library, "compile", lambda one, *_: pretend_built(one))
    traced = (str(ROOT / "ci"), str(ROOT / "build.py"))
    monkeypatch.setattr(sys.modules[__name__], "_TRACED", traced)

    def make(at: int, count: bool = False) -> int:
        def work() -> int:
            with Pressed(at) as pressed:
                call(project, Report(), "--source", str(clone))
            if count:
                print(pressed.seen, file=sys.stderr)
            return 0

        return exit_code(work, "nothing is lost")

    def forget() -> None:
        with contextlib.suppress(OSError):
            build.remove(project.build)

    code, said = ended(lambda: make(0, count=True))
    assert code == 0, said
    seen = int(said.split()[-1])
    for at in range(1, seen, max(1, seen // (300 if LONG else 5))):
        forget()
        code, said = ended(lambda: make(at))
        is_told = code == 130 and said.splitlines()[-1] == "interrupted: nothing is lost"
        assert is_told or code == 0, f"call {at}: {code} {said}"
        build.clean_up(project, everything=False)
        call(project, Report(), "--source", str(clone))
        assert (project.build / "cpu/lib/libllama.so").read_text() == "library"
        assert not [path for path in project.build.rglob("*.tmp") if ".git" not in path.parts]
        tree = next(project.src.glob("[!.]*-patched"))
        assert (tree / "src/llama.cpp").read_text() == upstream.FILES["src/llama.cpp"]
        tried("Ctrl-C in the middle of a build")
