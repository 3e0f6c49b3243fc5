"""Fixtures: the default model and the small random ones, loaded once; a project and a machine that are made up."""

from __future__ import annotations

import os
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import cuda_machine
import interp
import models
import unpatched
import upstream
from ci import toolchain
from ci.project import Project

#: every model that a test loads in its own process runs there, unless the test says where: "cuda:0",
#: "rpc://127.0.0.1:50052,rpc://127.0.0.1:50053", with so many layers
for option, variable in {"device": "LLAMA_INTERP_TEST_DEVICE", "n_gpu_layers": "LLAMA_INTERP_TEST_GPU_LAYERS"}.items():
    if given := os.environ.get(variable):
        interp.Model.__init__.__kwdefaults__[option] = given if option == "device" else int(given)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What holds on the CPU only is skipped where another device was asked for."""
    if given := os.environ.get("LLAMA_INTERP_TEST_DEVICE"):
        for item in items:
            if "cpu_only" in item.keywords:
                item.add_marker(pytest.mark.skip(reason=f"holds on the CPU only, not on {given}"))


PROMPT = "The Eiffel Tower is located in the city of"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--isolated", action="store_true", help="run the tests with every model in a process of its own")


def pytest_configure(config: pytest.Config) -> None:
    # a shell starts what it puts into the background with Ctrl-C ignored, and tests press it
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if config.getoption("--isolated"):
        made = interp.Model.__new__
        interp.Model.__new__ = lambda cls, *args, **options: made(cls, *args, **{"isolated": True} | options)


@pytest.fixture(scope="session")
def cxx() -> str:
    """The C++ compiler: an installed wheel needs none. Where the library was compiled there is one, and in .ci/run a skip
    is a failure."""
    if (found := toolchain.cxx()) is None:
        pytest.skip("there is no C++ compiler, and this test compiles a file of its own: install g++ or Clang")
    return found


@pytest.fixture(scope="session")
def model() -> interp.Model:
    """The default model with the options that a user gets, but one thread: others may share the cores."""
    return interp.Model(n_ctx=512, n_threads=1)


@pytest.fixture(scope="session")
def tiny() -> interp.Model:
    """A random Llama of four layers, F32, without flash attention: exact and quick."""
    return interp.Model(models.tiny("llama"), n_ctx=256, kv_type="f32", flash_attn=False, n_threads=1)


@pytest.fixture(scope="module")
def f32_model() -> Iterator[interp.Model]:
    """The default model dequantised to F32, as it is compared with transformers. Closed soon: it is 540 MB."""
    with interp.Model(models.f32_default(), n_ctx=64, kv_type="f32", flash_attn=False, n_threads=1) as model:
        yield model


@pytest.fixture
def transformers() -> None:
    """For tests that compute with torch and transformers: skips where they are not installed."""
    for package in ("torch", "transformers"):
        pytest.importorskip(package, reason=f"{package} is missing: pip install 'llama-interp[reference]'")


@pytest.fixture(scope="module")
def made(request, tmp_path_factory) -> Path:
    """A made-up llama.cpp and a project with the module's ``PATCHES``, made once: each test gets a copy of its own."""
    return upstream.make(tmp_path_factory.mktemp("made"), getattr(request.module, "PATCHES", ()))


@pytest.fixture
def clone(made, tmp_path) -> Path:
    return shutil.copytree(made / "clone", tmp_path / "clone")


@pytest.fixture
def project(made, tmp_path, monkeypatch) -> Project:
    monkeypatch.delenv("LLAMA_INTERP_CACHE", raising=False)
    return Project(shutil.copytree(made / "project", tmp_path / "project"))


@pytest.fixture
def machine(tmp_path, monkeypatch) -> cuda_machine.Machine:
    """A machine without a toolkit, a driver or packages; the test gives it what it has."""
    return cuda_machine.lonely(tmp_path, monkeypatch)


@pytest.fixture(scope="session")
def accelerator(record_testsuite_property) -> interp.Device:
    """The device that hooks are tested on where memory is not the host's: the first that is neither CPU nor RPC.

    ggml leaves out a Vulkan device that is a CPU, such as Mesa's llvmpipe, unless it is named.
    """
    if unpatched.backend() == "cpu":
        pytest.skip("the library is built for the CPU only: python3 build.py --cuda test -m gpu (or --metal, --vulkan)")
    os.environ.setdefault("GGML_VK_VISIBLE_DEVICES", "0")
    for device in interp.devices.available():
        if device.kind in ("gpu", "igpu") and not device.name.startswith("rpc"):
            record_testsuite_property("device", f"{device.name}, {device.description}")
            return device
    pytest.skip("no GPU is in sight. For Vulkan, Mesa has one that needs none: apt-get install mesa-vulkan-drivers")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


TRIED = pytest.StashKey[Counter[str]]()


@pytest.fixture
def tried(request) -> Callable[..., None]:
    """``tried("files cut short")`` or ``tried("programs", 400)``: counts what tests of abuse tried, for the end of the
    report."""
    counts = request.config.stash.setdefault(TRIED, Counter())

    def count(what: str, number: int = 1) -> None:
        counts[what] += number

    return count


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    """What was tried against the library, in numbers."""
    if counts := config.stash.get(TRIED, None):
        terminalreporter.section("tried")
        for what, number in sorted(counts.items()):
            terminalreporter.write_line(f"{number:9,}  {what}")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Where everything is set up (`.ci/run` says so), a test that skips is a failure."""
    if not os.environ.get("LLAMA_INTERP_CI"):
        return
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = [report.nodeid for report in reporter.stats.get("skipped", [])]
    if skipped and exitstatus == 0:
        reporter.write_line(f"skipped, but everything that they need should be here: {', '.join(skipped)}", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
