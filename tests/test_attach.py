"""A Llama of llama-cpp-python, looked into: the same values, and a Llama that notices nothing."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import attach_child
import models
from interp import native

ROOT = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("llama_cpp") is None,
    reason="llama-cpp-python is not installed: CMAKE_ARGS=-DLLAMA_BUILD=OFF pip install llama-cpp-python",
)

CHECKS = [name for name in vars(attach_child) if name.startswith("check_")]


def child(*arguments: str, lib: Path | None = None) -> None:
    env = {key: value for key, value in os.environ.items() if key != "LLAMA_CPP_LIB_PATH"}
    env |= {"PYTHONPATH": str(ROOT), "LLAMA_INTERP_LIB": str(native.find_library())}
    if lib is not None:
        env["LLAMA_CPP_LIB_PATH"] = str(lib)
    done = subprocess.run([sys.executable, attach_child.__file__, *arguments], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "error" not in done.stderr.lower(), done.stderr[-3000:]


@pytest.mark.parametrize("name", [name for name in CHECKS if "another_library" not in name])
def test_attached(name, tmp_path):
    path = str(models.tiny("gemma2" if "window" in name else "llama"))
    if "goes_on" in name:
        child("plain", path, str(tmp_path / "plain.npz"), lib=native.find_library().parent)
        child(name, path, str(tmp_path / "plain.npz"))
    else:
        child(name, path)


def test_another_library_is_refused(tmp_path):
    shutil.copytree(native.find_library().parent, tmp_path / "lib", symlinks=True)
    child("check_another_library_is_refused", str(models.tiny("llama")), lib=tmp_path / "lib")
