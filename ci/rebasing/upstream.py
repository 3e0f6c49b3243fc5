"""The pin and upstream's head in one object store: from a URL, a repository, a plain tree, or an archive of either."""

from __future__ import annotations

import re
import shutil
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ci import repo, source
from ci.project import BuildError, Pin, Project
from ci.steps import Report, remove

_URL = re.compile(r"^([a-z+]+://|[\w.-]+@[\w.-]+:)")

#: what makes a tree llama.cpp's
_MARKS = ("src/llama.cpp", "include/llama.h")


@dataclass(frozen=True)
class Head:
    """Upstream's commit in the store.

    Attributes:
        kind: ``git``, or ``plain`` for a tree without history, of which a commit was made.
        commit: its id; of a plain tree it says only that the files are the same.
        tag: its name upstream, None where none is known.
    """

    kind: str
    commit: str
    tag: str | None


@dataclass(frozen=True)
class Store:
    """A repository in the scratch folder that holds both commits, and a checkout in which the series is applied."""

    tree: Path
    pin: str
    head: Head


def open_store(project: Project, pin: Pin, upstream: str, ref: str | None, scratch: Path, report: Report) -> Store:
    """Fetches the pinned commit and upstream's head.

    Raises:
        BuildError: upstream does not answer, is not llama.cpp, lacks the ref, or the pinned tree cannot be had.
    """
    tree = scratch / "tree"
    repo.init(tree)
    with report.step("upstream") as step:
        location = upstream if _URL.match(upstream) else _locate(Path(upstream), scratch)
        head = _fetch_plain(tree, location, ref) if isinstance(location, _Plain) else _fetch_git(tree, location, ref)
        if missing := [mark for mark in _MARKS if not repo.asks(tree, "cat-file", "-e", f"{head.commit}:{mark}")]:
            raise BuildError(f"{upstream} is not llama.cpp: at {ref or 'HEAD'} it has no {missing[0]}.")
        step.result = f"{head.kind}, {head.commit[:9]}{f', {head.tag}' if head.tag else ''}"
    if not repo.has_commit(tree, pin.commit):
        _fetch_pin(project, pin, location, tree, scratch)
    return Store(tree, pin.commit, head)


# // a repository


def _fetch_git(tree: Path, location: str | Path, ref: str | None) -> Head:
    url = location.resolve().as_uri() if isinstance(location, Path) else location
    names = _remote_names(tree, url)
    commit, wanted = _find(names, location, ref)
    # all the history there is, but from a host only the contents that are looked at
    options = [] if isinstance(location, Path) else ["--filter=blob:none"]
    repo.git(tree, "remote", "add", "upstream", url)
    repo.git(
        tree, "fetch", "-q", "--no-tags", "--update-shallow", *options, "--upload-pack",
        "git -c uploadpack.allowAnySHA1InWant=true -c safe.directory=* upload-pack", "upstream", wanted,
        fail=f"cannot fetch {ref or 'HEAD'} from {location}",
    )
    commit = commit or repo.git(tree, "rev-parse", "FETCH_HEAD^{commit}").strip()
    return Head("git", commit, _tag(names, commit))


def _remote_names(tree: Path, url: str) -> dict[str, str]:
    """Every name that a repository publishes, with its object."""
    try:
        lines = repo.git(tree, "ls-remote", url).splitlines()
    except BuildError as error:
        said = str(error).splitlines()[1].strip()
        raise BuildError(f"{url} does not answer as a git repository ({said}). Is --upstream right?") from error
    return {name: commit for commit, name in (line.split("\t") for line in lines if "\t" in line)}


def _find(names: dict[str, str], location: str | Path, ref: str | None) -> tuple[str | None, str]:
    """The commit of a ref, where it is known before the fetch, and what to ask for."""
    ref = ref or "HEAD"
    for name in (ref, f"refs/tags/{ref}", f"refs/heads/{ref}", f"refs/remotes/{ref}", f"refs/remotes/origin/{ref}"):
        if name in names:
            return names.get(f"{name}^{{}}", names[name]), name
    if isinstance(location, Path) and repo.has_commit(location, ref):
        commit = repo.git(location, "rev-parse", f"{ref}^{{commit}}").strip()
        return commit, commit
    if re.fullmatch(r"[0-9a-f]{40}", ref):
        return ref, ref
    raise BuildError(f"{location} has no branch, tag or commit {ref!r}. Give --ref one of: git ls-remote {location}")


def _tag(names: dict[str, str], commit: str) -> str | None:
    tags = [name for name, at in names.items() if at == commit and name.startswith("refs/tags/")]
    return min((name.removeprefix("refs/tags/").removesuffix("^{}") for name in tags), key=len, default=None)


def _fetch_pin(project: Project, pin: Pin, location: str | Path | _Plain, tree: Path, scratch: Path) -> None:
    """The pinned commit, which is not in the head's history: from where upstream is, a built tree, or the archive."""
    for folder in (location, project.src / pin.commit[:8]):
        if isinstance(folder, Path) and repo.has_commit(folder, pin.commit):
            repo.fetch(tree, folder, pin.commit)
            return
    if location == pin.repository:
        repo.git(tree, "fetch", "-q", "--no-tags", "--depth=1", "upstream", pin.commit,
                 fail=f"cannot fetch the pinned commit {pin.commit[:9]} from {location}")
        return
    unpacked = scratch / "pinned"
    source.unpack_repository(source.download(project, pin.sdist), unpacked)
    repo.fetch(tree, unpacked, pin.commit)
    remove(unpacked)


# // files without history


@dataclass(frozen=True)
class _Plain:
    """A source tree of llama.cpp that lies below a folder or in an archive."""

    path: Path
    below: PurePosixPath


def _locate(path: Path, scratch: Path) -> Path | _Plain:
    """The repository at a path, unpacked where it is in an archive, or else the plain tree there."""
    path = path.expanduser()
    if not path.exists():
        raise BuildError(f"--upstream {path}: no such file or folder, and no URL.")
    return _locate_in_archive(path, scratch) if path.is_file() else _locate_in_folder(path, scratch)


def _locate_in_archive(path: Path, scratch: Path) -> Path | _Plain:
    try:
        names = [name for name, _ in source.entries(path)]
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError) as error:
        raise BuildError(f"--upstream {path}: not a .tar.gz or .zip that can be read ({error}).") from error
    if source.VENDORED / "HEAD" not in names:
        return _Plain(path, _root(names, path))
    unpacked = scratch / "upstream"
    source.unpack_repository(path, unpacked)
    return unpacked


def _locate_in_folder(path: Path, scratch: Path) -> Path | _Plain:
    if repo.is_repository(path) and not repo.is_repository(path / source.VENDORED):
        return path
    if repo.is_repository(path / source.VENDORED):
        # its configuration names a work tree of another machine
        unpacked = scratch / "upstream"
        shutil.copytree(path / source.VENDORED, unpacked, ignore=shutil.ignore_patterns("config", "hooks", "index"))
        (unpacked / "config").write_text("[core]\n\trepositoryformatversion = 0\n\tbare = true\n")
        return unpacked
    names = [PurePosixPath(file.relative_to(path).as_posix()) for file in source.files(path)]
    return _Plain(path, _root(names, path))


def _root(names: list[PurePosixPath], path: Path) -> PurePosixPath:
    """The folder of llama.cpp among files: the one nearest to the top."""
    present = set(names)
    roots = [name.parent.parent for name in names if str(name).endswith(_MARKS[0]) and name.parent.name == "src"]
    roots = [root for root in roots if all(root / mark in present for mark in _MARKS)]
    if not roots:
        raise BuildError(f"{path} holds neither a git repository nor a source tree of llama.cpp.")
    return min(roots, key=lambda root: len(root.parts))


def _fetch_plain(tree: Path, plain: _Plain, ref: str | None) -> Head:
    if ref:
        raise BuildError(f"{plain.path} is a tree without history, so it has no ref {ref!r}. Leave --ref out.")
    if plain.path.is_file():
        source.unpack(plain.path, tree, plain.below)
    else:
        shutil.copytree(plain.path / plain.below, tree, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".git"))
    repo.commit_all(tree, "a source tree without history")
    return Head("plain", repo.head(tree), None)
