"""Where things lie, what is pinned, and the one error that ends a build with a plain message."""

from __future__ import annotations

import os
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


class BuildError(Exception):
    """A failure that the user can act on: its text names the cause and the next step, so no traceback is shown."""


@dataclass(frozen=True)
class Package:
    """A file of the package index that we accept by its hash alone.

    Attributes:
        wheel: the tags of the wheel that is wanted, whatever this machine is; empty: the source is.
    """

    name: str
    version: str
    sha256: str
    wheel: str = ""


@dataclass(frozen=True)
class Pin:
    """The content of ``patches/upstream.toml``."""

    repository: str
    commit: str
    tag: str
    sdist: Package
    model: Package


@dataclass(frozen=True)
class Project:
    """The folders of one checkout. A class, so that tests can run everything in a folder of their own."""

    root: Path = ROOT

    @property
    def patches(self) -> Path:
        return self.root / "patches"

    @property
    def native(self) -> Path:
        return self.patches / "native"

    @property
    def build(self) -> Path:
        return self.root / "build"

    @property
    def src(self) -> Path:
        return self.build / "src"

    @property
    def shared_cache(self) -> Path | None:
        """Set by ``LLAMA_INTERP_CACHE``: lets several clones share downloads and finished libraries."""
        given = os.environ.get("LLAMA_INTERP_CACHE")
        return Path(given).expanduser().resolve() if given else None

    @property
    def downloads(self) -> Path:
        return (self.shared_cache or self.build) / "downloads"

    def pin(self) -> Pin:
        """Reads the pin.

        Raises:
            BuildError: the file is missing or incomplete.
        """
        path = self.patches / "upstream.toml"
        try:
            data = tomllib.loads(path.read_text(encoding="utf-8"))
            return Pin(**data["llama_cpp"], sdist=Package(**data["sdist"]), model=Package(**data["model"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BuildError(f"{path} cannot be used ({error}). Restore it with: git checkout -- {path}") from error
