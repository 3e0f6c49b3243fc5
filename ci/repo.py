"""The few git operations that everything here is made of, independent of how the user's git is configured."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from .project import BuildError
from .steps import run

#: marks the commit that a series is applied on, whatever the tree's origin
BASE_REF = "refs/llama-interp/base"

IDENTITY = ("llama-interp", "llama-interp@localhost")

_FIXED_DATE = "2000-01-01T00:00:00+0000"

_CONFIG = {
    # a checkout must have the bytes of the commit on every platform
    "core.autocrlf": "false",
    "core.fileMode": "false",
    # packing in the background would race with the renames of a finished tree
    "gc.auto": "0",
    "maintenance.auto": "false",
    "advice.detachedHead": "false",
    "commit.gpgSign": "false",
    "init.defaultBranch": "main",
}


def environment() -> dict[str, str]:
    """An environment in which commits of equal content get equal ids, and no configuration of the user's applies."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    name, email = IDENTITY
    env |= {
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_COMMITTER_NAME": name,
        "GIT_COMMITTER_EMAIL": email,
        "GIT_COMMITTER_DATE": _FIXED_DATE,
        "GIT_TERMINAL_PROMPT": "0",
        "LC_ALL": "C",
    }
    env["GIT_CONFIG_COUNT"] = str(len(_CONFIG) + 1)
    # a clone that another user owns (a mounted folder, a container) is still only read
    for i, (key, value) in enumerate([*_CONFIG.items(), ("safe.directory", "*")]):
        env[f"GIT_CONFIG_KEY_{i}"], env[f"GIT_CONFIG_VALUE_{i}"] = key, value
    return env


def git(tree: Path, *args, fail: str | None = None, **kwargs) -> str:
    """Runs git in a tree and returns what it printed; ``fail`` says what could not be done."""
    return run(["git", "-C", tree, *args], env=environment(), fail=fail or f"git {args[0]} failed in {tree}", **kwargs)


def asks(tree: Path, *args) -> bool:
    """Whether a git command succeeds, for commands that answer by their exit code."""
    command = ["git", "-C", str(tree), *args]
    return subprocess.run(command, env=environment(), capture_output=True, stdin=subprocess.DEVNULL).returncode == 0


def init(tree: Path) -> None:
    # without a template no hook of the user's can run in our trees
    run(["git", "init", "-q", "--template=", tree], env=environment(), fail=f"cannot make a repository in {tree}")


def fetch(tree: Path, origin: Path, commit: str) -> None:
    """Fetches one commit from a local repository. git computes each object's id anew, so the content is verified.

    Raises:
        BuildError: the repository lacks the commit, or its objects are damaged.
    """
    git(
        tree, "fetch", "-q", "--no-tags", "--depth=1",
        # git clears the configuration of the other side: it must allow any commit, and a clone of another owner
        "--upload-pack", "git -c uploadpack.allowAnySHA1InWant=true -c safe.directory=* upload-pack",
        Path(origin).resolve().as_uri(), commit, fail=f"cannot fetch commit {commit[:9]} from {origin}",
    )


def lend_objects(tree: Path, lender: Path) -> None:
    """Lets git find a lender's objects as if they were the tree's own, but no commit of it; the lender must stay."""

    def objects(folder: Path) -> Path:
        return (folder / git(folder, "rev-parse", "--git-path", "objects").strip()).resolve()

    with (objects(tree) / "info" / "alternates").open("a", encoding="utf-8", newline="\n") as file:
        file.write(f"{objects(lender).as_posix()}\n")


def checkout_base(tree: Path, commit: str) -> None:
    """Checks out a commit that was fetched, and marks it as what the series is applied on."""
    git(tree, "checkout", "-q", "--detach", commit, fail=f"cannot check out {commit[:9]} in {tree}")
    git(tree, "update-ref", BASE_REF, "HEAD")
    if head(tree) != git(tree, "rev-parse", f"{commit}^{{commit}}").strip():
        raise BuildError(f"{tree} is not at {commit}. Start over with: python3 build.py --clean")


def copy_base(tree: Path, scratch: Path) -> None:
    """Makes a second, independent checkout of a tree's base commit."""
    base = git(tree, "rev-parse", BASE_REF).strip()
    init(scratch)
    fetch(scratch, tree, base)
    checkout_base(scratch, base)


def commit_all(tree: Path, message: str) -> None:
    name, email = IDENTITY
    git(tree, "add", "-A", "-f", ".")
    git(tree, "-c", f"user.name={name}", "-c", f"user.email={email}",
        "commit", "-q", "--allow-empty", "--no-verify", "--date", _FIXED_DATE, "-m", message)


def head(tree: Path) -> str:
    return git(tree, "rev-parse", "HEAD").strip()


def is_repository(path: Path) -> bool:
    """Whether the folder itself is a repository, bare or not, rather than a folder inside one."""
    return ((path / ".git").exists() or (path / "HEAD").is_file()) and asks(path, "rev-parse", "--git-dir")


def has_commit(path: Path, commit: str) -> bool:
    return asks(path, "cat-file", "-e", f"{commit}^{{commit}}")


def changes(tree: Path) -> list[str]:
    """What differs from HEAD, one line of ``git status`` for each file; empty for a pristine tree."""
    return git(tree, "status", "--porcelain", "--untracked-files=normal").splitlines()
