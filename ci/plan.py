"""What a call of build.py would build: the target with all its settings, without making or fetching anything."""

from __future__ import annotations

import shlex
from pathlib import Path

from . import cuda, environment, library, source, toolchain, vulkan
from .project import Project


def target(
    project: Project, backend: str, patched: bool, base: str, prefix: Path, extra: dict[str, str],
    architectures: list[str] | None = None, variant: str = "",
) -> library.Target:
    """The library to build.

    Args:
        base: identity of the source without the series (``Origin.base``).
        extra: CMake settings of the user's, which win over ours.
        architectures: of CUDA, as ``--cuda-arch`` gave them; None for those of the GPUs that are there.
        variant: the beginning of its folder's name; what it means is in the settings.

    Raises:
        BuildError: the machine cannot build it.
    """
    if backend != "cuda":
        options = vulkan.target_options(project, backend, extra)
        return library.Target(project, backend, patched, base, toolchain.flags(backend, extra), prefix, variant=variant, **options)
    kit = cuda.find(project, prefix)
    chosen = {} if "CMAKE_CUDA_ARCHITECTURES" in extra else cuda.for_architectures(kit, architectures)
    settings = toolchain.flags(backend, cuda.settings(kit) | chosen | extra)
    return library.Target(
        project, backend, patched, base, settings, prefix, cuda.settings_here(project, kit), kit.identity,
        cuda.runtime(prefix, kit), variant=variant,
    )


def command(project: Project, one: library.Target, origin: source.Origin) -> str:
    """The exact call of CMake, quoted for a shell. Its program is there once a build has installed it."""
    folder = environment.scripts(one.prefix)
    tree = source.place(project, origin, one.patched)
    return shlex.join(library.configure_command(one, tree, str(folder / "cmake"), str(folder / "ninja")))
