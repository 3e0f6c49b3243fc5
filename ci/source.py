"""The unpatched and the patched source tree: from an archive, a clone, or the network, verified by commit id."""

from __future__ import annotations

import hashlib
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from . import repo, series
from .project import BuildError, Package, Pin, Project
from .steps import Report, publish_folder, read_json, remove, run, sha256, temporary, write_json

#: where the source archive of the bindings keeps the git repository of llama.cpp
VENDORED = PurePosixPath(".git/modules/vendor/llama.cpp")

#: what a git repository needs to be fetched from; its configuration names folders of another machine
_VENDORED_PARTS = ("objects", "refs", "HEAD", "packed-refs", "shallow")


@dataclass(frozen=True)
class Origin:
    """Where a source tree comes from.

    Attributes:
        kind: ``sdist``, ``git``, ``clone``, or, with no history to verify by, ``archive`` or ``folder``.
        path: the archive or folder; None for what is downloaded.
        base: identity of the content: the commit, or a hash of files that have none.
    """

    kind: str
    path: Path | None
    base: str

    @property
    def verified(self) -> bool:
        return self.kind not in ("archive", "folder")

    @property
    def name(self) -> str:
        return self.base[:8] if self.verified else f"plain-{self.base[:8]}"


def resolve(pin: Pin, source: str) -> Origin:
    """Finds out what ``--source`` names, without fetching or unpacking anything.

    Raises:
        BuildError: the path does not exist, or holds no llama.cpp that can be used.
    """
    if source in ("sdist", "git"):
        return Origin(source, None, pin.commit)
    path = Path(source).expanduser().resolve()
    if not path.exists():
        raise BuildError(f"--source {source}: no such file or folder. Give sdist, git, or a clone or archive.")
    return _resolve_archive(path, pin) if path.is_file() else _resolve_folder(path, pin)


def _resolve_folder(path: Path, pin: Pin) -> Origin:
    repositories = [folder for folder in (path, path / VENDORED) if repo.is_repository(folder)]
    for folder in repositories:
        if repo.has_commit(folder, pin.commit):
            return Origin("clone", folder, pin.commit)
    if repositories:
        raise BuildError(
            f"{path} does not have the pinned commit {pin.commit}. "
            f"Fetch it with: git -C {path} fetch {pin.repository} {pin.commit}"
        )
    if not (path / "src" / "llama.cpp").is_file():
        raise BuildError(f"{path} is neither a git repository nor a source tree of llama.cpp.")
    return Origin("folder", path, _hash_folder(path))


def _resolve_archive(path: Path, pin: Pin) -> Origin:
    head = VENDORED / "HEAD"
    try:
        vendored = any(name == head for name, _ in entries(path))
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError) as error:
        raise BuildError(f"{path} is not a .tar.gz or .zip that can be read ({error}).") from error
    return Origin("sdist", path, pin.commit) if vendored else Origin("archive", path, sha256(path))


def place(project: Project, origin: Origin, patched: bool) -> Path:
    """Where a tree lies, or will."""
    return project.src / (f"{origin.name}-patched" if patched else origin.name)


def unpatched_tree(project: Project, pin: Pin, origin: Origin, report: Report) -> Path:
    """The tree as upstream published it; fetched once, and there under its name only when it is whole."""
    tree = place(project, origin, patched=False)
    if tree.exists():
        _refuse_changes(project, tree)
        return tree
    with report.step("source") as step:
        scratch = temporary(tree)
        repo.init(scratch)
        _FETCH[origin.kind](project, pin, origin, scratch)
        publish_folder(scratch, tree)
        step.result = f"llama.cpp {pin.commit[:9]}, every object verified by its git id"
        if not origin.verified:
            step.result = f"{origin.path}: a tree without history, so nothing verifies that it is {pin.commit[:9]}"
    return tree


def patched_tree(project: Project, origin: Origin, unpatched: Path, report: Report) -> Path:
    """The tree with the series applied. Its path and its unchanged files stay, so that a build is incremental.

    Raises:
        BuildError: a patch does not apply, or somebody worked in the tree.
    """
    tree = place(project, origin, patched=True)
    stamp, wanted = stamp_of(tree), {"series": series.digest(project.patches)}
    if tree.exists() and read_json(stamp) == wanted:
        _refuse_changes(project, tree)
        return tree
    names = series.read(project.patches)
    with report.step("patches") as step:
        scratch = temporary(tree)
        repo.copy_base(unpatched, scratch)
        series.apply(scratch, project.patches)
        _move_to(tree, scratch)
        write_json(stamp, wanted)
        step.result = f"{len(names)} applied" if names else "the series is empty"
    return tree


def stamp_of(tree: Path) -> Path:
    """The file that says which series a patched tree holds, written when it holds all of it."""
    return tree / ".git" / "llama-interp.json"


def _move_to(tree: Path, scratch: Path) -> None:
    if not tree.exists():
        scratch.rename(tree)
        return
    # from here to the new stamp a killed build leaves a mixed tree, which the old stamp must not vouch for
    stamp_of(tree).unlink(missing_ok=True)
    (tree / ".git" / "index.lock").unlink(missing_ok=True)
    repo.fetch(tree, scratch, repo.head(scratch))
    # git would rewrite, and ninja recompile, each file whose recorded time is not its own, as after a copy
    repo.asks(tree, "update-index", "-q", "--refresh")
    repo.git(tree, "reset", "-q", "--hard", "FETCH_HEAD")
    repo.git(tree, "clean", "-ffdxq")
    repo.git(tree, "update-ref", repo.BASE_REF, repo.git(scratch, "rev-parse", repo.BASE_REF).strip())
    remove(scratch)


def _refuse_changes(project: Project, tree: Path) -> None:
    if changed := repo.changes(tree):
        raise BuildError(
            f"{tree} was changed by hand ({changed[0].strip()}). Builds use only what the pin and the series give: work "
            f"in {project.src / 'work'} instead (made by: python -m ci.series work), and delete {tree}."
        )


# // fetching


def _fetch_sdist(project: Project, pin: Pin, origin: Origin, tree: Path) -> None:
    archive = origin.path or download(project, pin.sdist)
    unpacked = temporary(tree.with_name("unpacked"))
    try:
        unpack_repository(archive, unpacked)
        # the pin moves every night, and the archive of the bindings only when they are released
        if origin.path is None and not repo.has_commit(unpacked, pin.commit):
            _fetch_git(project, pin, origin, tree)
            return
        repo.fetch(tree, unpacked, pin.commit)
    finally:
        remove(unpacked)
    repo.checkout_base(tree, pin.commit)


def _fetch_git(project: Project, pin: Pin, origin: Origin, tree: Path) -> None:
    try:
        import git
    except ImportError as error:
        raise BuildError(f"--source git needs GitPython ({error}). Install it with: pip install GitPython") from error
    try:
        remote = git.Repo(tree).create_remote("origin", pin.repository)
        remote.fetch(pin.commit, depth=1, no_tags=True)
    except git.GitCommandError as error:
        raise BuildError(
            f"cannot fetch {pin.commit[:9]} from {pin.repository}: {str(error.stderr).strip()}\n"
            "Without a network, give a clone or an archive: python3 build.py --source PATH"
        ) from error
    repo.checkout_base(tree, pin.commit)


def _fetch_clone(project: Project, pin: Pin, origin: Origin, tree: Path) -> None:
    repo.fetch(tree, origin.path, pin.commit)
    repo.checkout_base(tree, pin.commit)


def _fetch_archive(project: Project, pin: Pin, origin: Origin, tree: Path) -> None:
    unpack(origin.path, tree)
    _commit_plain(origin, tree)


def _fetch_folder(project: Project, pin: Pin, origin: Origin, tree: Path) -> None:
    for path in files(origin.path):
        _write(tree / path.relative_to(origin.path), path.read_bytes())
    _commit_plain(origin, tree)


def _commit_plain(origin: Origin, tree: Path) -> None:
    if not (tree / "src" / "llama.cpp").is_file():
        raise BuildError(f"{origin.path} holds no source tree of llama.cpp.")
    repo.commit_all(tree, f"llama.cpp, {origin.base}")
    repo.checkout_base(tree, "HEAD")


_FETCH = {
    "sdist": _fetch_sdist,
    "git": _fetch_git,
    "clone": _fetch_clone,
    "archive": _fetch_archive,
    "folder": _fetch_folder,
}


def download(project: Project, package: Package) -> Path:
    """The file of a pinned package, from the download folder or the package index, its hash checked.

    Raises:
        BuildError: it cannot be fetched, or has another hash.
    """
    folder = project.downloads / package.sha256
    for file in folder.glob("*"):
        if sha256(file) == package.sha256:
            return file
    scratch = temporary(folder)
    kind = "--only-binary" if package.wheel else "--no-binary"
    run(
        [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--disable-pip-version-check", "--no-input",
         kind, package.name, *_wheel_options(package), "-d", scratch, f"{package.name}=={package.version}"],
        fail=f"cannot download {package.name} {package.version} (without a network, give a clone or an archive of "
        "llama.cpp: python3 build.py --source PATH)",
    )
    (file,) = scratch.iterdir()
    if (found := sha256(file)) != package.sha256:
        remove(scratch)
        raise BuildError(
            f"{file.name} has the hash {found}, but {package.sha256} is pinned. "
            "It is not used: look at what the package index serves."
        )
    publish_folder(scratch, folder)
    return folder / file.name


def _wheel_options(package: Package) -> list[str]:
    """The options of pip that choose one wheel, also one of another platform: of it we only read."""
    # one for every platform is chosen anyway, and pip would take "py3" for Python 3.0
    if not package.wheel or package.wheel.endswith("-any"):
        return []
    python, abi, platform = package.wheel.split("-")
    return ["--python-version", python[2:], "--implementation", python[:2], "--abi", abi, "--platform", platform]


# // archives and folders


def entries(archive: Path):
    """Yields the regular files of an archive as (path below its single top folder, function that reads it)."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as packed:
            for info in packed.infolist():
                if not info.is_dir():
                    yield _below_top(info.filename), lambda info=info: packed.read(info)
    else:
        with tarfile.open(archive, "r:*") as packed:
            for info in packed:
                if info.isfile():
                    yield _below_top(info.name), lambda info=info: packed.extractfile(info).read()


def _below_top(name: str) -> PurePosixPath:
    parts = PurePosixPath(name).parts
    # an absolute name or ".." would write outside the folder that we unpack into
    if name.startswith("/") or "\\" in name or ".." in parts:
        raise BuildError(f"the archive holds the unsafe name {name!r}, so it is not unpacked.")
    return PurePosixPath(*parts[1:])


def unpack(archive: Path, folder: Path, below: PurePosixPath = PurePosixPath(), parts: tuple[str, ...] = ()) -> None:
    """Unpacks what lies below a path of an archive, all of it or only its parts of these names."""
    for name, read in entries(archive):
        if name.is_relative_to(below) and (not parts or name.relative_to(below).parts[0] in parts):
            _write(folder / name.relative_to(below), read())


def unpack_repository(archive: Path, folder: Path) -> None:
    """Unpacks the git repository of llama.cpp that a source archive of the bindings holds, as a bare one."""
    unpack(archive, folder, VENDORED, _VENDORED_PARTS)
    (folder / "config").write_text("[core]\n\trepositoryformatversion = 0\n\tbare = true\n")


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def files(folder: Path) -> list[Path]:
    """Every file of a folder but git's own, sorted."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and ".git" not in path.relative_to(folder).parts)


def _hash_folder(folder: Path) -> str:
    total = hashlib.sha256()
    for path in files(folder):
        total.update(f"{path.relative_to(folder).as_posix()}\0{sha256(path)}\n".encode())
    return total.hexdigest()
