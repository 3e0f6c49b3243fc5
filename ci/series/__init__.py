"""The patch series: reading, applying and exporting it. ``python -m ci.series`` is what a developer changes it with.

A patch file is named by what it does, because numbers collide and say nothing: it keeps its name while the subject
of its commit stays, and a new one is named by its subject. Exported files do not depend on who exports them or when:
a re-export of an applied series gives the same bytes.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from .. import repo
from ..project import BuildError, Project
from ..steps import Report, remove, temporary, write_text


class ApplyError(BuildError):
    """A patch that does not apply.

    Attributes:
        name: its file name.
        conflicts: the files in conflict.
    """

    def __init__(self, message: str, name: str, conflicts: list[str]):
        super().__init__(message)
        self.name, self.conflicts = name, conflicts


def read(patches: Path) -> list[str]:
    """The file names in ``patches/series``, in order."""
    try:
        lines = (patches / "series").read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise BuildError(f"{patches / 'series'} cannot be read ({error}).") from error
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def digest(patches: Path) -> str:
    """Identity of the series: the names, their order, and the bytes of each patch."""
    total = hashlib.sha256()
    for name in read(patches):
        total.update(f"{name}\0{hashlib.sha256(_bytes(patches, name)).hexdigest()}\n".encode())
    return total.hexdigest()


def _bytes(patches: Path, name: str) -> bytes:
    try:
        return (patches / name).read_bytes()
    except OSError as error:
        raise BuildError(f"patches/series lists {name}, which cannot be read ({error}).") from error


def _text(patches: Path, name: str) -> str:
    return _bytes(patches, name).decode(errors="replace")


def apply(tree: Path, patches: Path, report: Report | None = None, since: str | None = None) -> None:
    """Applies the series on a pristine tree, one commit for each patch.

    On another commit than the pinned one, a patch that does not fit is merged. For that git needs the files that the
    patch was made on, which are nowhere but in a tree that has the series: see ``repo.lend_objects``.

    Args:
        since: a commit on which the series is known to apply; on a conflict, the upstream commits after it are named.

    Raises:
        ApplyError: a patch does not apply. The tree is left at the conflict, for ``git am --continue``.
        BuildError: the tree is not pristine.
    """
    if changed := repo.changes(tree):
        raise BuildError(f"{tree} is not pristine, so no patch is applied to it:\n    " + "\n    ".join(changed[:5]))
    names = read(patches)
    for i, name in enumerate(names, start=1):
        if report:
            report.line("applying", f"{name} ({i}/{len(names)})")
        apply_one(tree, patches, name, f"{i}/{len(names)}", since)


def apply_one(tree: Path, patches: Path, name: str, place: str, since: str | None) -> None:
    """Applies one patch as a commit; ``place`` says which of how many it is. For the rest see :func:`apply`."""
    _bytes(patches, name)
    try:
        # -3 falls back on a merge when the context moved; --keep-cr and --whitespace keep the bytes as they are
        repo.git(tree, "am", "-q", "-3", "--keep-cr", "--whitespace=nowarn", patches / name)
    except BuildError as error:
        conflicts = repo.git(tree, "diff", "--name-only", "--diff-filter=U").split()
        # a patch that lacks the blobs for a merge leaves no file in conflict: name those that it wanted
        files = conflicts or touched(_text(patches, name))
        upstream = _upstream_commits(tree, files, since)
        raise ApplyError(_explain(name, place, files, upstream, str(error)), name, conflicts) from error


def touched(patch: str) -> list[str]:
    """The files that a patch changes."""
    return re.findall(r"^diff --git a/\S+ b/(\S+)$", patch, re.M)


def _explain(name: str, place: str, files: list[str], upstream: list[str], cause: str) -> str:
    return "\n".join([
        f"{name} ({place}) does not apply.",
        "  Files in conflict:",
        *(f"    {file}" for file in files),
        "  Upstream commits that touched them:",
        *(f"    {line}" for line in upstream),
        f"  git said: {cause.splitlines()[-1].strip()}",
        "  To recover:",
        "    1. python -m ci.series work     (applies the series in build/src/work and stops at this conflict)",
        "    2. resolve the files there, then: git add -A && git am --continue",
        "    3. python -m ci.series export && python ci/check_patches.py",
    ])


def _upstream_commits(tree: Path, files: list[str], since: str | None) -> list[str]:
    """The commits that moved the files away from what the series expects, as far as the tree's history reaches."""
    if len(repo.git(tree, "rev-list", "-n", "2", repo.BASE_REF).split()) < 2:
        return ["(the history here is one commit deep, so they cannot be listed)"]
    span = f"{since}..{repo.BASE_REF}" if since and repo.has_commit(tree, since) else repo.BASE_REF
    log = repo.git(tree, "log", "-n", "10", "--format=%h %as %s", span, "--", *files)
    return log.splitlines() or ["(none)"]


def export(tree: Path, patches: Path) -> list[str]:
    """Writes the commits above the base as the series, and returns their file names.

    Raises:
        BuildError: the tree is not pristine, holds a merge, or two commits have the same subject.
    """
    if changed := repo.changes(tree):
        raise BuildError(f"{tree} has changes that no commit holds: commit them first.\n    " + "\n    ".join(changed))
    commits, known = commits_of(tree), {subject(_text(patches, name)): name for name in read(patches)}
    texts = [format_patch(tree, commit) for commit in commits]
    written = {known.get(subject(text)) or slug(subject(text)): text for text in texts}
    if len(written) < len(commits):
        raise BuildError(f"two commits in {tree} have the same subject, so their patches would have the same name.")
    for stale in set(read(patches)) - set(written):
        (patches / stale).unlink(missing_ok=True)
    for name, text in written.items():
        write_text(patches / name, text)
    _write_series(patches, list(written))
    return list(written)


def _write_series(patches: Path, names: list[str]) -> None:
    path = patches / "series"
    comments = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    write_text(path, "\n".join([*comments, *names]) + "\n")


def format_patch(tree: Path, commit: str) -> str:
    """One commit as a patch file, free of everything that changes from one export to the next."""
    text = repo.git(
        tree,
        # how a diff reads must not depend on git's defaults, which have changed before
        "-c", "diff.algorithm=myers", "-c", "diff.indentHeuristic=true", "-c", "diff.context=3",
        "format-patch", "--stdout", "-1", commit,
        "--zero-commit",     # the commit's own id changes whenever one below it changes
        "--full-index",      # git am -3 needs whole blob ids, and short ones grow with the repository
        "--no-signature",    # the signature is git's version
        "--no-stat",
        "--no-renames",
        "--no-numbered",     # "1/3" would change in every patch when one is added
        "--no-attach", "--no-thread", "--no-ext-diff", "--no-color", "--src-prefix=a/", "--dst-prefix=b/",
    )
    if not text.strip():
        raise BuildError(f"commit {commit[:9]} in {tree} is a merge or empty, and cannot be a patch.")
    return text


def commits_of(tree: Path) -> list[str]:
    """The commits above the base, the first one first."""
    return repo.git(tree, "rev-list", "--reverse", f"{repo.BASE_REF}..HEAD").split()


def subject(patch: str) -> str | None:
    """The subject of a patch, its folded lines joined; None if it has none."""
    found = re.search(r"^Subject: \[PATCH\] (.*(?:\n .*)*)", patch, re.M)
    return found[1].replace("\n", "") if found else None


def slug(text: str) -> str:
    """The file name of a new patch with this subject."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") + ".patch"


def working_copy(project: Project, unpatched: Path, report: Report) -> Path:
    """Makes ``build/src/work`` with the series applied; refuses to replace one that exists.

    Raises:
        ApplyError: the series stops at a conflict; the working copy stays there.
    """
    work = project.src / "work"
    if work.exists():
        raise BuildError(
            f"{work} exists, and may hold work that was not exported. Export it (python -m ci.series export), "
            f"then delete it: rm -r {work}"
        )
    scratch = temporary(work)
    repo.copy_base(unpatched, scratch)
    name, email = repo.IDENTITY
    # commits that a developer makes here must not carry their own configuration into the exported patches
    for key, value in (("user.name", name), ("user.email", email), ("core.autocrlf", "false")):
        repo.git(scratch, "config", key, value)
    scratch.rename(work)
    apply(work, project.patches, report)
    return work


def roundtrip(unpatched: Path, patches: Path, scratch: Path) -> list[str]:
    """Applies the series in a scratch tree, exports it again, and names the patches whose bytes differ."""
    try:
        repo.copy_base(unpatched, scratch)
        apply(scratch, patches)
        again = [format_patch(scratch, commit).encode() for commit in commits_of(scratch)]
        return [name for name, text in zip(read(patches), again, strict=True) if text != _bytes(patches, name)]
    finally:
        remove(scratch)
