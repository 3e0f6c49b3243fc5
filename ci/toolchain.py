"""What the machine compiles with: compilers, the backend, the CMake settings, and what is missing."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from .project import BuildError

BACKENDS = ("cpu", "cuda", "metal", "vulkan")

#: where NVIDIA's installer puts a toolkit, and not into PATH
CUDA = "/usr/local/cuda"

#: both the patched and the unpatched library are built with these, so that they can be compared bit for bit
COMMON = {
    "BUILD_SHARED_LIBS": "ON",
    "CMAKE_BUILD_TYPE": "Release",
    # the finished folder is moved and copied, so its libraries must find each other wherever they lie
    "CMAKE_BUILD_WITH_INSTALL_RPATH": "ON",
    "CMAKE_INSTALL_RPATH": "@loader_path" if sys.platform == "darwin" else "$ORIGIN",
    "GGML_RPC": "ON",
    # ggml's own threads: no second runtime beside torch's, and a process may fork
    "GGML_OPENMP": "OFF",
    "LLAMA_BUILD_APP": "OFF",
    "LLAMA_BUILD_COMMON": "OFF",
    "LLAMA_BUILD_EXAMPLES": "OFF",
    "LLAMA_BUILD_SERVER": "OFF",
    "LLAMA_BUILD_TESTS": "OFF",
    "LLAMA_BUILD_TOOLS": "OFF",
}

_BACKEND_FLAGS = {
    "cpu": {"GGML_METAL": "OFF"},
    # without virtual memory management the library needs no driver to be linked or loaded, and runs on the CPU there;
    # NCCL, for several GPUs, would be linked where it happens to be installed, and needed wherever the library goes
    "cuda": {"GGML_CUDA": "ON", "GGML_CUDA_NO_VMM": "ON", "GGML_CUDA_NCCL": "OFF"},
    "metal": {"GGML_METAL": "ON", "GGML_METAL_EMBED_LIBRARY": "ON"},
    "vulkan": {"GGML_VULKAN": "ON"},
}

#: variables that CMake and the compilers read
_VARIABLES = ("CC", "CXX", "CUDACXX", "CUDAHOSTCXX", "CFLAGS", "CXXFLAGS", "CUDAFLAGS", "LDFLAGS")

#: tool -> package, for each installer that a system may have
_PACKAGES = {
    "apt-get": {"c++": "g++", "git": "git", "venv": "python3-venv", "glslc": "glslc spirv-headers",
                "libvulkan": "libvulkan-dev"},
    "dnf": {"c++": "gcc-c++", "git": "git", "venv": "python3", "glslc": "glslc spirv-headers-devel",
            "libvulkan": "vulkan-devel"},
    "pacman": {"c++": "gcc", "git": "git", "venv": "python", "glslc": "shaderc spirv-headers",
               "libvulkan": "vulkan-icd-loader vulkan-headers"},
    "zypper": {"c++": "gcc-c++", "git": "git", "venv": "python3", "glslc": "shaderc spirv-headers",
               "libvulkan": "vulkan-devel"},
    "apk": {"c++": "g++", "git": "git", "venv": "python3", "glslc": "shaderc spirv-headers",
            "libvulkan": "vulkan-loader-dev"},
    "brew": {"glslc": "shaderc spirv-headers", "libvulkan": "vulkan-loader vulkan-headers"},
}

_INSTALL = {"pacman": "pacman -S", "apk": "apk add"}


@dataclass(frozen=True)
class Choice:
    """A backend and the reason for it, in words."""

    backend: str
    why: str


def which(name: str) -> str | None:
    return shutil.which(name)


def compiler(variable: str, names: tuple[str, ...]) -> str | None:
    """The compiler that CMake will take: the environment's, else the first of these names."""
    given = os.environ.get(variable)
    if given:
        return which(shlex.split(given)[0])
    return next((path for path in map(which, names) if path), None)


def cxx() -> str | None:
    return compiler("CXX", ("c++", "g++", "clang++"))


def cc() -> str | None:
    return compiler("CC", ("cc", "gcc", "clang"))


def nvcc() -> str | None:
    return compiler("CUDACXX", ("nvcc", f"{CUDA}/bin/nvcc"))


def glslc() -> str | None:
    """The shader compiler that CMake will take."""
    sdk = os.environ.get("VULKAN_SDK")
    return sdk and shutil.which("glslc", path=str(Path(sdk, "bin"))) or which("glslc")


def vulkan_loader() -> str | None:
    """The file of the Vulkan loader that a library is linked with, as the compiler finds it.

    ``libvulkan.so.1`` where only the run-time package is installed: it links as well.
    """
    names = {"darwin": ["libvulkan.dylib"], "win32": ["vulkan-1.lib"]}.get(sys.platform, ["libvulkan.so", "libvulkan.so.1"])
    given = [os.environ.get("VULKAN_SDK"), os.environ.get("HOMEBREW_PREFIX", "/opt/homebrew")]
    for folder in (Path(one, below) for one in given if one for below in ("lib", "Lib")):
        if path := next((folder / name for name in names if (folder / name).exists()), None):
            return str(path)
    for name in names:
        command = [*shlex.split(os.environ.get("CXX") or cxx() or "c++"), f"-print-file-name={name}"]
        try:
            path = subprocess.run(command, capture_output=True, text=True, timeout=30).stdout.strip()
        except (OSError, subprocess.TimeoutExpired):
            return None
        # what the compiler does not find it answers with the bare name
        if os.path.isabs(path) and os.path.exists(path):
            return os.path.normpath(path)
    return None


@lru_cache
def version(tool: str | None) -> str | None:
    """What a tool says of itself: the line that holds its version."""
    if tool is None:
        return None
    try:
        done = subprocess.run([tool, "--version"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = [line for line in done.stdout.splitlines() if any(c.isdigit() for c in line)]
    # nvcc's first lines are its name and a copyright
    return next((line for line in lines if "release" in line or "version" in line), lines[0] if lines else None)


def choose(asked: str | None) -> Choice:
    """The backend to build for: the one asked for, else the best that the machine has."""
    if asked:
        return Choice(asked, "asked for")
    if sys.platform == "darwin":
        return Choice("metal", "macOS")
    gpu, compiler_ = nvidia_gpu(), nvcc()
    if gpu and compiler_:
        return Choice("cuda", f"{gpu}, and nvcc at {compiler_}")
    if gpu:
        return Choice("cpu", f"{gpu} is there, but no nvcc: --cuda alone installs NVIDIA's (1 GB) and builds with it")
    return Choice("cpu", "no GPU found that this build can use by itself; --cuda, --vulkan ask for one")


@lru_cache
def nvidia_gpu() -> str | None:
    """The first NVIDIA GPU by name, if the driver sees one."""
    smi = which("nvidia-smi")
    if smi:
        try:
            done = subprocess.run([smi, "-L"], capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            return None
        first = done.stdout.splitlines()[:1]
        # without a driver nvidia-smi may still exit with 0 and an explanation
        return first[0].split(" (UUID")[0] if first and first[0].startswith("GPU ") else None
    return "an NVIDIA GPU" if Path("/dev/nvidia0").exists() else None


def missing(backend: str, needs_venv: bool) -> list[str]:
    """The tools without which a build cannot start, all of them at once."""
    wanted = {"c++": cxx() and cc(), "git": which("git")}
    if needs_venv:
        wanted["venv"] = _has_venv()
    if backend == "vulkan":
        wanted |= {"glslc": glslc(), "libvulkan": vulkan_loader()}
    return [name for name, found in wanted.items() if not found]


def _has_venv() -> bool:
    try:
        # Debian ships venv without ensurepip, and then venv fails half-way
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        return False
    return True


def explain_missing(tools: list[str]) -> str:
    """One line with the command that installs what is missing."""
    names = ", ".join({"c++": "g++", "venv": "python3-venv"}.get(tool, tool) for tool in tools)
    if sys.platform == "darwin" and set(tools) <= {"c++", "git"}:
        return f"missing: {names}. Install with: xcode-select --install"
    installer = next((name for name in _PACKAGES if which(name)), None)
    if installer is None:
        return f"missing: {names}. Install them with your system's package manager, or set CC and CXX to a compiler."
    packages = " ".join(_PACKAGES[installer].get(tool, tool) for tool in tools)
    sudo = "" if installer == "brew" or not hasattr(os, "geteuid") or os.geteuid() == 0 else "sudo "
    return f"missing: {names}. Install with: {sudo}{_INSTALL.get(installer, installer + ' install')} {packages}"


def check_backend(backend: str) -> None:
    """Raises:
        BuildError: the backend cannot be built on this machine.
    """
    if backend == "metal" and sys.platform != "darwin":
        raise BuildError("--metal needs macOS. Without it: python3 build.py --cpu")


def flags(backend: str, extra: dict[str, str]) -> dict[str, str]:
    """The CMake settings of a build, without any path; ``-D`` of the user's wins over ours."""
    return COMMON | _BACKEND_FLAGS[backend] | extra


def launcher() -> dict[str, str]:
    """The settings that let ccache keep and find objects, where it is installed. They change nothing of an object."""
    found = which("ccache")
    return {f"CMAKE_{language}_COMPILER_LAUNCHER": found for language in ("C", "CXX", "CUDA")} if found else {}


def fingerprint(settings: dict[str, str], nvcc: str | None) -> dict:
    """What, beside the sources and the settings, decides which code comes out of a build.

    Args:
        nvcc: what the CUDA compiler says of itself; None for a build without CUDA.
    """
    found = {
        "compilers": [version(cc()), version(cxx()), nvcc],
        "machine": [platform.system(), platform.machine(), *platform.libc_ver()],
        "environment": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
    }
    if is_on(settings.get("GGML_NATIVE", "ON")):
        found["cpu"] = cpu()
    return found


def is_on(value: str) -> bool:
    """What CMake takes a setting for."""
    return value.upper() not in ("OFF", "0", "FALSE", "NO")


@lru_cache
def cpu() -> str:
    """The processor and what it can do: native code of one does not run on every other."""
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace").split("\n\n")[0]
    except OSError:
        if sys.platform != "darwin":
            return platform.processor()
        brand = subprocess.run(["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True)
        return brand.stdout.strip()
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}
    names = ("vendor_id", "cpu family", "model", "model name", "flags", "Features", "CPU part")
    return "; ".join(f"{name}={fields[name]}" for name in names if name in fields)
