"""build.py --sanitize: what is asked for, and that a process started as it says sees an error in a library."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import build
from ci import sanitize
from ci.project import BuildError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="--sanitize is for Linux")

#: one error for each sanitizer, and a call without one
SOURCE = """
#include <pthread.h>
#include <stdlib.h>
static int shared;
static void * add(void * p) { for (int i = 0; i < 10000; ++i) shared++; return p; }
extern "C" int right(int n) { return n + 1; }
extern "C" int address(int n) { char * p = (char *) malloc(n); char c = p[n]; free(p); return c; }
extern "C" int undefined(int n) { return 0x7fffffff + n; }
extern "C" int thread(int n) {
    pthread_t one, two;
    pthread_create(&one, 0, add, 0); pthread_create(&two, 0, add, 0);
    pthread_join(one, 0); pthread_join(two, 0);
    return n + shared;
}
"""

SAID = {"address": "heap-buffer-overflow", "undefined": "signed integer overflow", "thread": "data race"}


def test_kinds_come_in_one_order_and_wrong_ones_are_named():
    assert sanitize.parse("undefined,address") == sanitize.parse("address,undefined") == ("address", "undefined")
    for wrong, said in {"adress": "'adress' is no sanitizer", "thread,address": "does not go together", "": "''"}.items():
        with pytest.raises(ValueError, match=said):
            sanitize.parse(wrong)


def test_the_flags_reach_both_of_upstreams_projects_and_the_users_win():
    found = sanitize.settings(("address",), {"CMAKE_C_FLAGS_RELEASE": "-O2"})
    assert found["GGML_SANITIZE_ADDRESS"] == found["LLAMA_SANITIZE_ADDRESS"] == "ON" and "GGML_SANITIZE_THREAD" not in found
    assert found["CMAKE_C_FLAGS_RELEASE"] == "-O2" and "-O1" in found["CMAKE_CXX_FLAGS_RELEASE"]
    assert found["GGML_NATIVE"] == "OFF" and sanitize.settings(("address",), {"GGML_NATIVE": "ON"})["GGML_NATIVE"] == "ON"


def test_a_backend_without_sanitizers_is_refused_in_one_line(capsys):
    with pytest.raises(BuildError, match="code of the CPU, and this builds for vulkan"):
        sanitize.check("vulkan")
    for words in (["--sanitize", "thread", "wheel"], ["--sanitize", "thread", "--tools"], ["--sanitize", "x"]):
        with pytest.raises(SystemExit):
            build.parse(words)
        assert "--sanitize" in capsys.readouterr().err.splitlines()[-1]


def test_behind_the_verb_test_it_is_still_ours():
    for words in (["--sanitize", "thread", "test", "-x"], ["test", "--sanitize", "thread", "-x"], ["test", "--sanitize=thread", "-x"]):
        args = build.parse(words)
        assert (args.sanitize, args.verb, args.pytest) == (("thread",), "test", ["-x"]), words


@pytest.mark.parametrize("kinds", [("address", "undefined"), ("thread",)], ids=",".join)
def test_an_error_ends_the_process_and_says_where(kinds, cxx, tmp_path):
    (tmp_path / "errors.cpp").write_text(SOURCE)
    flags = ["-shared", "-fPIC", "-g", "-O0", *(f"-fsanitize={kind}" for kind in kinds)]
    subprocess.run([cxx, *flags, "-o", "liberrors.so", "errors.cpp"], cwd=tmp_path, check=True)
    env = os.environ | sanitize.environment(kinds, tmp_path)

    def call(function: str) -> subprocess.CompletedProcess:
        code = f"import ctypes; print(ctypes.CDLL('./liberrors.so').{function}(7))"
        return subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)

    assert call("right").stdout == "8\n"
    for kind in kinds:
        done = call(kind)
        assert done.returncode < 0 and SAID[kind] in done.stderr and "errors.cpp" in done.stderr, done


def test_the_users_options_come_last(monkeypatch):
    monkeypatch.setenv("ASAN_OPTIONS", "detect_leaks=1")
    assert sanitize.environment(("address",), Path("lib"))["ASAN_OPTIONS"].endswith(":detect_leaks=1")


def test_numpys_threads_do_not_run_where_races_are_looked_for():
    found = {kind: sanitize.environment((kind,), Path("lib")) for kind in sanitize.RUNTIMES}
    assert [kind for kind in found if found[kind].get("OPENBLAS_NUM_THREADS") == "1"] == ["thread"]


def test_a_compiler_without_the_library_is_named(monkeypatch):
    monkeypatch.setattr(sanitize, "RUNTIMES", {"address": "libnothing.so"})
    with pytest.raises(BuildError, match=r"has no libnothing\.so"):
        sanitize.environment(("address",), Path("lib"))
