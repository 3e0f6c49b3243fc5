"""The CUDA toolkit of a build: which one is taken and why, what is installed where there is none, for which GPUs.

A toolkit of the system is used as it is; where it came without cuBLAS, that one package comes from the package index.
Without any, NVIDIA's compiler and libraries come from the package index, all of them, into the project's environment.
The folder that CMake takes for a toolkit is made of links to them, ``build/cuda-toolkit``: the packages are laid out a
little differently, and nothing of theirs is changed.
"""

from __future__ import annotations

import fnmatch
import os
import platform
import re
import sys
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

from . import environment, nvidia, toolchain
from .project import BuildError, Project
from .steps import Report, publish_folder, read_json, temporary, write_json

#: compiled for where no GPU is there to ask; upstream's own choice for machines that it does not know
DEFAULT_ARCHITECTURES = ("75-virtual", "80-virtual", "86-real", "89-real", "90-virtual", "120a-real")

#: the extra of pyproject.toml that lists the packages, and their versions
EXTRA = "cuda"

#: where distributions spread a toolkit that they package themselves
SYSTEM = Path("/usr")

#: what a library that was built for CUDA loads when it is loaded
RUNTIME = ("cudart", "cublasLt", "cublas")


@dataclass(frozen=True)
class Toolkit:
    """A CUDA toolkit, there or yet to be installed.

    Attributes:
        system: whether the compiler is the system's; cuBLAS may still come from the package index.
        nvcc: the compiler, as CMake gets it.
        identity: what the compiler says of itself; None while it is not installed.
        release: major and minor version.
        root: the folder that CMake searches; None where CMake finds the toolkit from the compiler alone.
        packages: requirements that it takes from the package index; empty for a whole toolkit of the system.
        lacks: those of them that are not installed yet.
        why: what it is and where it comes from, in words.
    """

    system: bool
    nvcc: str
    identity: str | None
    release: tuple[int, int]
    root: Path | None
    packages: tuple[str, ...]
    lacks: tuple[str, ...]
    why: str

    @property
    def version(self) -> str:
        return "{}.{}".format(*self.release)

    @property
    def runtime(self) -> list[str]:
        """The files that the finished library needs, in an order in which they can be loaded."""
        return [] if sys.platform != "linux" else [f"lib{name}.so.{self.release[0]}" for name in RUNTIME]


# // which toolkit


def find(project: Project, env: Path) -> Toolkit:
    """The toolkit that a build would take; nothing is installed or changed.

    Raises:
        BuildError: CUDACXX names no compiler, or there is none and none can be installed here.
    """
    given = os.environ.get("CUDACXX")
    nvcc = toolchain.nvcc()
    if nvcc:
        return _system(project, env, nvcc)
    if given:
        raise BuildError(f"CUDACXX is {given}, which is no program. Correct it, or unset it: --cuda needs no toolkit")
    if sys.platform != "linux" or platform.libc_ver()[0] != "glibc":
        raise BuildError(
            "--cuda needs nvcc, which is neither in PATH nor in CUDACXX, and NVIDIA's packages of it are for Linux "
            "with glibc. Install the CUDA toolkit, or build without CUDA: python3 build.py --cpu"
        )
    return _packaged(project, env)


def _system(project: Project, env: Path, nvcc: str) -> Toolkit:
    identity = toolchain.version(nvcc)
    release = re.search(r"release (\d+)\.(\d+)", identity or "")
    if not release:
        raise BuildError(f"{nvcc} does not say its version, so it is no nvcc that works. Set CUDACXX to another")
    major, minor = int(release[1]), int(release[2])
    root, why = _root_of(nvcc), f"nvcc {major}.{minor} at {nvcc}"
    if _has_cublas(root):
        return Toolkit(True, nvcc, identity, (major, minor), _searchable(root), (), (), why)
    if major < 12:
        raise BuildError(f"{why} lacks cuBLAS, which cannot be added to a toolkit before CUDA 12. Install it there")
    wanted = (f"nvidia-cublas{'' if major >= 13 else f'-cu{major}'}=={major}.{minor}.*",)
    why += ", without cuBLAS: that is taken from the package index"
    return Toolkit(True, nvcc, identity, (major, minor), _searchable(root), wanted, _missing(env, wanted), why)


def _packaged(project: Project, env: Path) -> Toolkit:
    wanted = _matching(environment.extra(project, EXTRA), env)
    compiler = next(one for one in wanted if one.startswith("nvidia-cuda-nvcc=="))
    release = re.search(r"==(\d+)\.(\d+)", compiler)
    # asked where it is installed, for the links to it may not be made yet
    installed = _files(env, ("nvidia-cuda-nvcc",)).get("bin/nvcc")
    identity = toolchain.version(str(installed)) if installed else None
    root, why = folder(project), f"no nvcc on this machine: NVIDIA's packages, {release[1]}.{release[2]}"
    nvcc, release = str(root / "bin" / "nvcc"), (int(release[1]), int(release[2]))
    return Toolkit(False, nvcc, identity, release, root, wanted, _missing(env, wanted), why)


def _matching(wanted: tuple[str, ...], env: Path) -> tuple[str, ...]:
    """The packages of the version whose run-time library is there already: other packages may depend on it."""
    pinned = re.search(r"nvidia-cuda-runtime==((\d+)\.\d+)\.\*", " ".join(wanted))
    there = environment.installed(env, "nvidia-cuda-runtime")
    found = re.match(r"(\d+)\.\d+", there.version) if there else None
    if not found or found[1] != pinned[2]:
        return wanted
    return tuple(one.replace(f"=={pinned[1]}.", f"=={found[0]}.") for one in wanted)


def _missing(env: Path, wanted: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(one for one in wanted if not _is_met(env, one))


def _is_met(env: Path, requirement: str) -> bool:
    name, _, pattern = requirement.partition("==")
    there = environment.installed(env, name)
    if there and "cublas" in name:
        # any of a major version serves, and torch asks for one of its own
        pattern = f"{pattern.partition('.')[0]}.*"
    return there is not None and fnmatch.fnmatchcase(there.version, pattern)


def folder(project: Project) -> Path:
    """Where the links to the packages lie."""
    return project.build / "cuda-toolkit"


@lru_cache
def _root_of(nvcc: str) -> Path:
    """The folder of a toolkit, which nvcc itself knows: what is in PATH may be a script or a link."""
    done = nvidia.output([nvcc, "-v", "__none__"])[0]
    top = re.search(r"^#\$ TOP=(.+)$", done, re.M)
    return Path(top[1].strip()).resolve() if top else Path(nvcc).resolve().parent.parent


def _folders(root: Path, *names: str) -> list[Path]:
    """The folders of these names that belong to a toolkit, wherever its distributor put them."""
    bases = [root, *sorted(root.glob("targets/*-linux")), SYSTEM]
    within = [base / name for base in bases for name in names]
    return [*within, SYSTEM / "lib" / f"{platform.machine()}-linux-gnu"]


def _has_cublas(root: Path) -> bool:
    headers = any((path / "cublas_v2.h").exists() for path in _folders(root, "include"))
    libraries = any((path / "libcublas.so").exists() for path in _folders(root, "lib64", "lib", "lib/x64"))
    windows = any((path / "cublas.lib").exists() for path in _folders(root, "lib/x64"))
    return headers and (libraries or windows)


def _searchable(root: Path) -> Path | None:
    # distributions spread a toolkit over the system, and CMake knows how: a folder that is not whole would mislead it
    return root if (root / "bin" / "nvcc").exists() and (root / "include" / "cuda_runtime.h").exists() else None


# // making it ready


def ensure(project: Project, env: Path, report: Report) -> Toolkit:
    """Installs what the toolkit lacks and makes the folder of links.

    Raises:
        BuildError: the driver is too old for it, or it cannot be installed.
    """
    kit = find(project, env)
    check_driver(kit)
    if kit.lacks:
        with report.step("cuda") as step:
            step.progress(f"installing {', '.join(kit.lacks)}: up to 0.5 GB to fetch, 0.9 GB on the disk")
            environment.install(project, env, kit.lacks, f"cannot install {kit.lacks[0]} and its kin")
            step.result = f"installed in {env}: {', '.join(kit.lacks)}"
        kit = find(project, env)
    if kit.packages:
        _link_packages(project, env, kit)
    report.line("cuda", kit.why)
    return kit


def _files(env: Path, names: tuple[str, ...]) -> dict[str, Path]:
    """What some packages of NVIDIA installed, by its place in a toolkit."""
    found = {}
    for name in names:
        package = environment.installed(env, name)
        for file in (package.files or ()) if package else ():
            parts = PurePosixPath(file).parts
            # nvidia/cu13/include/…, and before CUDA 13 nvidia/cublas/include/…
            if len(parts) > 3 and parts[0] == "nvidia" and parts[2] in ("bin", "include", "lib", "nvvm"):
                found["/".join(parts[2:])] = Path(package.locate_file(file))
    return found


def _names(kit: Toolkit) -> tuple[str, ...]:
    return tuple(one.partition("==")[0] for one in kit.packages)


def _link_packages(project: Project, env: Path, kit: Toolkit) -> None:
    """Makes the folder of links: what the packages hold, under the names that nvcc and CMake look for."""
    place, files = folder(project), _files(env, _names(kit))
    wanted = {"files": {name: str(path) for name, path in sorted(files.items())}}
    if read_json(place / "links.json") == wanted:
        return
    scratch = temporary(place)
    for name, path in files.items():
        link = scratch / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path)
        plain = link.with_name(re.sub(r"\.so\.\d+$", ".so", link.name))
        if plain.name != link.name and not plain.is_symlink():
            # the linker looks for the name without a version
            plain.symlink_to(link.name)
    (scratch / "lib64").symlink_to("lib")
    write_json(scratch / "links.json", wanted)
    publish_folder(scratch, place)


def settings_here(project: Project, kit: Toolkit) -> dict[str, str]:
    """The CMake settings that say where the toolkit lies on this machine; they decide nothing of what is compiled."""
    here = {"CMAKE_CUDA_COMPILER": kit.nvcc}
    if kit.root:
        here["CUDAToolkit_ROOT"] = str(kit.root)
    if kit.system and kit.packages:
        include, lib = folder(project) / "include", folder(project) / "lib"
        here |= {
            "CUDAToolkit_CUBLAS_INCLUDE_DIR": str(include),
            "CUDA_cublas_LIBRARY": str(lib / "libcublas.so"),
            "CUDA_cublasLt_LIBRARY": str(lib / "libcublasLt.so"),
            # the target that CMake makes of them does not name the headers
            "CMAKE_CUDA_STANDARD_INCLUDE_DIRECTORIES": str(include),
        }
    return here


def settings(kit: Toolkit) -> dict[str, str]:
    """The CMake settings that decide what is compiled; no path of this machine is in them."""
    major = kit.release[0]
    packages = [f"cu{major}"] if major >= 13 else ["cuda_runtime", "cublas"]
    rpath = ["$ORIGIN", "$ORIGIN/../runtime", *(f"$ORIGIN/../../nvidia/{name}/lib" for name in packages)]
    return {
        # beside the library: the links that library.link_runtime makes; in site-packages: what NVIDIA's packages install
        "CMAKE_INSTALL_RPATH": ";".join(rpath),
    }


def runtime(env: Path, kit: Toolkit) -> dict[str, Path | None]:
    """The files that a finished library loads, and where they are; None for what the loader finds by itself."""
    places = {path.name: path for path in _files(env, _names(kit)).values()}
    if kit.root:
        # the loader does not look into a toolkit, but it does into the system's folders
        folders = [path for path in _folders(kit.root, "lib64", "lib") if kit.root in path.parents]
        theirs = [folder / name for name in kit.runtime for folder in folders]
        places = {path.name: path for path in reversed(theirs) if path.exists()} | places
    return {name: places.get(name) for name in kit.runtime}


# // for which GPUs, and what cannot work


def for_architectures(kit: Toolkit, asked: list[str] | None) -> dict[str, str]:
    """The setting that says what to compile for."""
    return {"CMAKE_CUDA_ARCHITECTURES": ";".join(architectures(kit, asked))}


def architectures(kit: Toolkit, asked: list[str] | None) -> list[str]:
    """What to compile for: what was asked for, else the GPUs of this machine, else :data:`DEFAULT_ARCHITECTURES`.

    Raises:
        BuildError: ``native`` without a GPU, or the compiler does not know an architecture.
    """
    known = _known(kit)
    present = nvidia.capabilities() if asked in (None, ["native"]) else []
    if asked == ["native"] and not present:
        raise BuildError("--cuda-arch native: nvidia-smi shows no GPU. Give numbers instead: --cuda-arch 90,86")
    if asked is None and not present:
        return [one for one in DEFAULT_ARCHITECTURES if not known or nvidia.number(one) in known]
    chosen = present or asked
    unknown = [] if chosen[0] in nvidia.GROUPS else [one for one in chosen if known and nvidia.number(one) not in known]
    if unknown:
        raise BuildError(
            f"nvcc {kit.version} does not compile for architecture {', '.join(unknown)}; it knows "
            f"{', '.join(map(str, sorted(known)))}. Set CUDACXX to the nvcc of another toolkit, or give --cuda-arch"
        )
    return chosen


@lru_cache
def _known(kit: Toolkit) -> frozenset[int]:
    """The architectures of a compiler; empty while it is not installed."""
    listed = nvidia.output([kit.nvcc, "--list-gpu-arch"])[0] if kit.identity else ""
    return frozenset(int(number) for number in re.findall(r"compute_(\d+)", listed))


def check_driver(kit: Toolkit) -> None:
    """Raises:
        BuildError: programs of this toolkit do not run with the driver. Within a major version they do.
    """
    driver = nvidia.driver_release()
    if driver is None or kit.release[0] <= driver[0]:
        return
    other = f"an nvcc of CUDA {driver[0]}"
    raise BuildError(
        f"the toolkit is CUDA {kit.version}, but the driver of this machine supports CUDA {driver[0]}.{driver[1]}. "
        f"Update the driver, or set CUDACXX to {other}"
    )


def check_compilers(kit: Toolkit) -> None:
    """Compiles an empty file, which shows in a second what CMake would show in a page.

    Raises:
        BuildError: nvcc does not work together with the C++ compiler that it finds.
    """
    host = os.environ.get("CUDAHOSTCXX")
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "empty.cu"
        source.write_text("")
        command = [kit.nvcc, *(["-ccbin", host] if host else []), "-c", str(source), "-o", f"{scratch}/empty.o"]
        said, code = nvidia.output(command)
    if code == 0:
        return
    compiler = host or "g++"
    if "unsupported GNU version" in said or "unsupported clang version" in said:
        limit = re.search(r"(?:gcc|clang) versions? [^!]*", said)
        raise BuildError(
            f"nvcc {kit.version} does not support {toolchain.version(toolchain.which(compiler)) or compiler}"
            f"{f' ({limit[0]})' if limit else ''}. Set CUDAHOSTCXX to an older compiler, as /usr/bin/g++-12"
        )
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    first = next((line for line in lines if re.search(r"error|fatal|not found|No such", line)), "no output")
    raise BuildError(f"nvcc {kit.version} cannot compile an empty file: {first}. Look at: {kit.nvcc} -c any.cu")
