"""``build.py wheel``: a wheel that holds the compiled library as ``interp/lib``, for machines without a compiler.

    build/portable-<backend>   the library: for every processor of the kind, not for this one alone
    out/wheels                 the wheel

The same sources, compiler and versions of the packaging tools give the same bytes: every file in the wheel carries the
date of the commit, or SOURCE_DATE_EPOCH where that is set.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import sys
import zipfile
from pathlib import Path

from .. import environment, library, toolchain
from ..project import BuildError, Project
from ..steps import Report, read_json, remove, run, temporary, write_json

#: on x86-64: CMake setting -> the flag in /proc/cpuinfo. Every processor since 2013 or so has them; without them,
#: quantised kernels are several times slower
X86 = {
    "GGML_SSE42": "sse4_2",
    "GGML_AVX": "avx",
    "GGML_AVX2": "avx2",
    "GGML_BMI2": "bmi2",
    "GGML_FMA": "fma",
    "GGML_F16C": "f16c",
}

#: what the user may ask for beyond them
_MORE_X86 = {
    "GGML_AVX_VNNI": "avx_vnni",
    "GGML_AVX512": "avx512f",
    "GGML_AVX512_VBMI": "avx512vbmi",
    "GGML_AVX512_VNNI": "avx512_vnni",
    "GGML_AVX512_BF16": "avx512_bf16",
}

#: the first moment that a zip file can name
_ZIP_EPOCH = 315532800

_SOURCES = rb"c|cc|cpp|cxx|h|hpp|cu|cuh"

#: a source file by the absolute path that it had where it was compiled; the system's own headers are everywhere alike
_BUILD_PATH = re.compile(rb"(?<![\w.+/-])/(?!usr/)(?:[\w.+-]+/)+[\w.+-]+\.(?:" + _SOURCES + rb")(?![\w.+-])")


def settings(given: dict[str, str]) -> dict[str, str]:
    """The CMake settings of a portable library; ``-D`` of the user's wins over them.

    Args:
        given: the user's.

    Raises:
        BuildError: with those the library would run on processors like this one only.
    """
    if toolchain.is_on(given.get("GGML_NATIVE", "OFF")):
        raise BuildError(
            "a library with GGML_NATIVE runs on processors like this one only, and a wheel goes elsewhere. Leave it out, "
            "or name instructions: -D GGML_AVX512=ON"
        )
    chosen = {
        "GGML_NATIVE": "OFF",
        # wheels hold no links, so each library is one file under the name that the others know it by
        "CMAKE_PLATFORM_NO_VERSIONED_SONAME": "ON",
    }
    return chosen | (dict.fromkeys(X86, "ON") if _is_x86() else {}) | given


def make(target: library.Target, report: Report) -> Path:
    """Packs a finished library and the package, and checks what came out.

    Returns:
        The wheel, in ``out/wheels``.

    Raises:
        BuildError: the packaging tools failed, or the wheel would not work elsewhere.
    """
    project = target.project
    folder = project.root / "out" / "wheels"
    with report.step("wheel") as step:
        stage = temporary(target.folder / "wheel")
        try:
            _stage(target, stage)
            packed = _pack(target, stage)
            check(packed)
            wheel = folder / packed.name
            folder.mkdir(parents=True, exist_ok=True)
            os.replace(packed, wheel)
        finally:
            remove(stage)
        step.result = f"{library.short(wheel)}, {wheel.stat().st_size / 1e6:.1f} MB"
    needs = needed_by(target.settings)
    report.line("", f"runs on {platform.machine()}{' with ' + ', '.join(needs) if needs else ''}")
    report.line("", f"install it anywhere: pip install {library.short(wheel)}")
    return wheel


def needed_by(flags: dict[str, str]) -> list[str]:
    """What a processor must be able to do for a library of these settings, as /proc/cpuinfo calls it."""
    return [feature for name, feature in (X86 | _MORE_X86).items() if toolchain.is_on(flags.get(name, "OFF"))]


def _is_x86() -> bool:
    return platform.machine().lower() in ("x86_64", "amd64")


def _stage(target: library.Target, stage: Path) -> None:
    """Lays out what goes into the wheel, and nothing else of the checkout."""
    root = target.project.root
    shutil.copytree(root / "interp", stage / "interp", ignore=shutil.ignore_patterns("__pycache__", "lib"))
    for name in ("README.md", "LICENSE"):
        shutil.copyfile(root / name, stage / name)
    shutil.copyfile(Path(__file__).with_name("setup.py"), stage / "setup.py")
    (stage / "pyproject.toml").write_text(_pyproject(root, target.backend), encoding="utf-8")
    lib = stage / "interp" / "lib"
    lib.mkdir()
    for path in sorted(target.lib.iterdir()):
        if path.name != "manifest.json" and not path.is_symlink():
            shutil.copyfile(path, lib / path.name)
    about = read_json(target.lib / "manifest.json")
    # it differs from build to build
    about.pop("compile_seconds", None)
    write_json(lib / "manifest.json", about | {"needs": needed_by(target.settings)})
    for path in stage.rglob("*"):
        # the permissions of this checkout are no part of the wheel
        path.chmod(0o755 if path.is_dir() or path.suffix in (".so", ".dylib") else 0o644)


def _pyproject(root: Path, backend: str) -> str:
    """The project's own; a wheel with another backend than the CPU's says so in its version."""
    text = (root / "pyproject.toml").read_text(encoding="utf-8")
    return text if backend == "cpu" else re.sub(r'^version = "(.+)"$', rf'version = "\1+{backend}"', text, flags=re.M)


def _pack(target: library.Target, stage: Path) -> Path:
    python, made = environment.python(target.prefix), stage / "made"
    env = os.environ | {"SOURCE_DATE_EPOCH": _date(target.project), "PYTHONHASHSEED": "0"}
    command = [python, "-m", "build", "--wheel", "--no-isolation", "--outdir", made, stage]
    run(command, cwd=stage, env=env, fail="cannot make the wheel")
    wheel = next(made.glob("*.whl"))
    if sys.platform != "linux":
        return wheel
    tag = _linux_tag(python, wheel)
    if wheel.stem.endswith(tag):
        return wheel
    run([python, "-m", "wheel", "tags", "--remove", "--platform-tag", tag, wheel], cwd=made, env=env,
        fail="cannot name the wheel for its platform")
    return next(made.glob("*.whl"))


def _linux_tag(python: Path, wheel: Path) -> str:
    """The platform that a wheel runs on: the oldest glibc that has what its libraries ask for, where that is all that
    they need; ``linux_…`` says nothing of what must be there."""
    shown = run([python, "-m", "auditwheel", "show", "--json", wheel], cwd=wheel.parent, fail="cannot audit the wheel")
    try:
        return json.loads(shown[shown.index("{"):])["overall_tag"]
    except (ValueError, KeyError) as error:
        raise BuildError(f"auditwheel's answer cannot be read ({error}):\n{shown[:500]}") from error


def _date(project: Project) -> str:
    """SOURCE_DATE_EPOCH: the user's, else the commit's."""
    given = os.environ.get("SOURCE_DATE_EPOCH")
    if given:
        return given
    try:
        return run(["git", "-C", project.root, "log", "-1", "--format=%ct"], fail="no commit").strip()
    except BuildError:
        # an unpacked archive has none
        return str(_ZIP_EPOCH)


# // what a wheel must not hold


def check(wheel: Path) -> None:
    """Raises:
        BuildError: a file does not belong into a wheel, a link is missing, or a library holds a path of this machine.
    """
    with zipfile.ZipFile(wheel) as packed:
        names = packed.namelist()
        faults = [f"{name} does not belong into it" for name in names
                  if not re.match(r"interp/|llama_interp-[^/]+\.dist-info/", name)]
        libraries = [name for name in names if re.match(r"interp/lib/.*\.(so|dylib|dll)\b", name)]
        if not any("llama" in Path(name).name for name in libraries):
            faults.append("interp/lib holds no libllama")
        if "interp/lib/LICENSE.llama.cpp" not in names:
            faults.append("interp/lib lacks llama.cpp's licence")
        for name in libraries:
            faults += [f"{name}: {fault}" for fault in check_library(packed.read(name))]
    if faults:
        raise BuildError(f"the wheel would not work elsewhere: {'; '.join(faults[:5])}")


def check_library(content: bytes) -> list[str]:
    """Which paths of the machine that compiled it a library holds."""
    faults = sorted({f"it holds the path {found.decode()}" for found in _BUILD_PATH.findall(content)})
    return faults + [f"it looks for libraries in {path}" for path in run_paths(content) if not path.startswith("$ORIGIN")]


def run_paths(content: bytes) -> list[str]:
    """Where an ELF file looks for the libraries that it needs; nothing for other kinds."""
    if not content.startswith(b"\x7fELF"):
        return []
    import io

    from elftools.elf.dynamic import DynamicSection
    from elftools.elf.elffile import ELFFile

    tags = (tag for section in ELFFile(io.BytesIO(content)).iter_sections() if isinstance(section, DynamicSection)
            for tag in section.iter_tags())
    paths = [getattr(tag, "runpath", None) or getattr(tag, "rpath", None) for tag in tags
             if tag.entry.d_tag in ("DT_RUNPATH", "DT_RPATH")]
    return [part for path in paths for part in path.split(":") if part]
