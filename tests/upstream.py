"""A llama.cpp of three files, for tests of the tools that fetch, patch and build the real one."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

from ci import repo, series
from ci.project import Project
from ci.source import Origin
from ci.steps import remove

FILES = {
    "LICENSE": "a licence\n",
    "src/llama.cpp": "".join(f"line {i}\n" for i in range(30)),
    "src/other.cpp": "untouched\n",
}

PIN = """
[llama_cpp]
repository = "https://example.invalid/llama.cpp"
commit = "{commit}"
tag = "b1"
[sdist]
name = "llama-cpp-python"
version = "9.9"
sha256 = "{sha}"
[model]
name = "some-model"
version = "1.0"
sha256 = "{sha}"
"""

MESSAGE = "{subject}\n\nWhy: a test.\n\nUpstream: no.\n\nDrop-when: never.\n"


def write(tree: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text)


def make_clone(folder: Path) -> Path:
    """A repository with two commits; the second is the one to pin."""
    folder.mkdir(parents=True)
    repo.init(folder)
    write(folder, FILES | {"src/other.cpp": "older\n"})
    repo.commit_all(folder, "first")
    write(folder, FILES)
    repo.commit_all(folder, "second")
    return folder


def make_project(root: Path, clone: Path, names: tuple[str, ...] = ()) -> Project:
    """A project pinned to the clone; each name of the series is a patch that changes a line of its own."""
    project = Project(root)
    write(root, {
        "patches/upstream.toml": PIN.format(commit=repo.head(clone), sha="0" * 64),
        "patches/series": "# order\n" + "".join(f"{name}\n" for name in names),
        "patches/native/build.cmake": "# shared\n",
        "patches/native/code.cpp": "// ours\n",
        "pyproject.toml": (Path(__file__).parent.parent / "pyproject.toml").read_text(),
    })
    patching = root / "patching"
    repo.init(patching)
    repo.fetch(patching, clone, repo.head(clone))
    repo.checkout_base(patching, repo.head(clone))
    for i, name in enumerate(names):
        line, path = f"line {3 + 10 * i}", patching / "src/llama.cpp"
        path.write_text(path.read_text().replace(f"{line}\n", f"{line}, hooked\n"))
        repo.commit_all(patching, MESSAGE.format(subject=name.removesuffix(".patch")))
        (project.patches / name).write_text(series.format_patch(patching, "HEAD"))
    remove(patching)
    return project


def make_sdist(path: Path, clone: Path) -> Path:
    """An archive that holds the clone where the source archive of the bindings does."""
    with tarfile.open(path, "w:gz") as packed:
        for file in sorted((clone / ".git").rglob("*")):
            if file.is_file():
                packed.add(file, f"top/.git/modules/vendor/llama.cpp/{file.relative_to(clone / '.git').as_posix()}")
    return path


def make_plain_archive(path: Path, files: dict[str, str] = FILES, top: str = "llama.cpp-1") -> Path:
    with tarfile.open(path, "w:gz") as packed:
        for name, text in files.items():
            info = tarfile.TarInfo(f"{top}/{name}")
            info.size = len(text)
            packed.addfile(info, io.BytesIO(text.encode()))
    return path


def origin(project: Project, clone: Path) -> Origin:
    return Origin("clone", clone, project.pin().commit)


def make(folder: Path, names: tuple[str, ...] = ()) -> Path:
    """A clone, in ``folder/clone``, and a project pinned to it, in ``folder/project``."""
    make_project(folder / "project", make_clone(folder / "clone"), names)
    return folder
