"""What a process holds and its forks must not touch: a model's threads, devices and connections are not in the fork."""

from __future__ import annotations

import os
import weakref
from typing import Protocol

#: said to whoever uses something of the parent's
REASON = (
    "belongs to the process that this one was forked from. Load it after the fork, or start processes by other means, "
    "such as multiprocessing's spawn."
)


class Owned(Protocol):
    def _disown(self) -> None:
        """Let go of what is the parent's, without a call of the library; in the fork, before all else."""


_owned: weakref.WeakSet[Owned] = weakref.WeakSet()


def own(thing: Owned) -> None:
    """From now on a fork of this process lets go of it."""
    _owned.add(thing)


def _forked() -> None:
    for thing in list(_owned):
        thing._disown()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
