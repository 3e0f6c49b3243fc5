"""The project as it will be: a copy in the scratch folder with the pin moved and the series exported from upstream."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from ci import repo, series
from ci.project import BuildError, Project
from ci.rebasing.upstream import Store
from ci.steps import temporary

#: where a nightly run commits what --write wrote
BRANCH = "rebase/nightly"


def refuse_dirty(project: Project) -> None:
    """Raises:
        BuildError: the project is no git checkout, or has changes that no commit holds.
    """
    if not repo.is_repository(project.root):
        raise BuildError(f"--write needs a git checkout, and {project.root} is none.")
    if changed := repo.changes(project.root):
        raise BuildError(
            f"--write needs a clean tree, and {project.root} has changes ({changed[0].strip()}). "
            "Commit them, or drop them with: git stash -u"
        )


def copy(project: Project, store: Store, scratch: Path) -> Project:
    """Copies the project's files, without what is built, and moves the copy to upstream's head.

    The series must be applied in the store's tree.
    """
    moved = Project(scratch / "project")
    for name in repo.git(project.root, "ls-files", "-co", "--exclude-standard").splitlines():
        # a file may be deleted and not committed
        if (project.root / name).is_file():
            (moved.root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(project.root / name, moved.root / name)
    series.export(store.tree, moved.patches)
    move_pin(moved, store.head.commit, store.head.tag)
    return moved


def move_pin(project: Project, commit: str, tag: str | None) -> None:
    """Writes commit and tag into ``patches/upstream.toml``; every other byte stays."""
    path = project.patches / "upstream.toml"
    text = path.read_text(encoding="utf-8")
    for key, value in (("commit", commit), ("tag", tag or f"untagged-{commit[:9]}")):
        text, count = re.subn(rf'^{key} = ".*"$', f'{key} = "{value}"', text, flags=re.M)
        if count != 1:
            raise BuildError(f"{path} has {count} lines '{key} = ...', so the pin cannot be moved.")
    path.write_text(text, encoding="utf-8", newline="\n")
    project.pin()


def write(project: Project, moved: Project) -> list[str]:
    """Gives the project the patches and the pin of the moved copy; returns what changed.

    Each file is replaced as a whole, the pin last: killed in between, ``git checkout -- patches`` undoes it.

    Raises:
        BuildError: somebody changed the project meanwhile.
    """
    refuse_dirty(project)
    made = []
    for name in [*series.read(moved.patches), "series", "upstream.toml"]:
        old, new = project.patches / name, (moved.patches / name).read_bytes()
        if not (old.is_file() and old.read_bytes() == new):
            # all of them are made before the first gets its name, in a folder that git does not look at
            scratch = temporary(project.build / name)
            scratch.write_bytes(new)
            made.append((scratch, old))
    for scratch, old in made:
        os.replace(scratch, old)
    return [f"patches/{old.name}" for _, old in made]
