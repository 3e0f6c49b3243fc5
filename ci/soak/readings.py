"""What a process holds, as Linux and its allocators tell it: memory, threads, file handles, child processes."""

from __future__ import annotations

import ctypes as ct
import gc
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Reading:
    """What a process held after some work.

    Attributes:
        done: units of work until then.
        resident: bytes of memory that stay with the process once what is free was given back to the system.
        heap: bytes that malloc handed out and that were not freed; None where the C library does not tell.
        blocks: Python's own blocks in use.
        child: resident bytes of the model's process; None where the model lives in this one.
        threads, handles, processes: of this process; of the last, its children.
        changed: plain runs whose logits were not those of the first, bit for bit.
    """

    done: int
    resident: int
    heap: int | None
    blocks: int
    threads: int
    handles: int
    processes: int
    child: int | None = None
    changed: int = 0


def read(done: int, child: int | None = None, changed: int = 0) -> Reading:
    """A reading of this process, after garbage was collected, caches were filled, and free memory given back.

    Args:
        done: units of work so far.
        child: the id of the process that the model lives in, where it is another one.
        changed: as in `Reading`.
    """
    gc.collect()
    _fill_caches()
    _give_back()
    return Reading(
        done, resident(os.getpid()), _heap(), sys.getallocatedblocks(), _count("/proc/self/task"),
        # the listing itself holds one
        _count("/proc/self/fd") - 1, len(children()), None if child is None else resident(child), changed,
    )  # fmt: skip


def resident(pid: int) -> int:
    """Resident memory of a process in bytes, mapped files included (VmRSS)."""
    status = Path(f"/proc/{pid}/status").read_text()
    return 1024 * int(status.split("VmRSS:")[1].split()[0])


def children() -> list[int]:
    """Ids of the processes that this one started and that are still there, zombies included."""
    tasks = Path("/proc/self/task").iterdir()
    return [int(pid) for task in tasks for pid in (task / "children").read_text().split()]


def _count(folder: str) -> int:
    return len(os.listdir(folder))


#: numpy keeps so many freed blocks of each number of bytes below the other (numpy/_core/src/multiarray/alloc.c)
_NUMPY_KEEPS, _NUMPY_SMALL = 7, 1024

#: more names than Python's table of interned ones has room for
_N_NAMES = 100_000


def _fill_caches() -> None:
    """What would else be filled bit by bit, whenever an array is of another length than all before, or at some moment,
    when names that came and went have used up the table of interned ones and it is made anew, for three times as many.
    """
    for size in range(1, _NUMPY_SMALL):
        # all of them are there before the first one goes
        _ = [np.empty(size, np.uint8) for _ in range(_NUMPY_KEEPS)]
    for i in range(_N_NAMES):
        sys.intern(f"name {i}")


# // glibc


class _MallInfo(ct.Structure):
    # struct mallinfo2, <malloc.h>
    _fields_ = [
        (name, ct.c_size_t)
        for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
    ]


_libc = ct.CDLL(None)


def _give_back() -> None:
    """What malloc keeps for later would else look like a leak, and its size depends on the order of all frees."""
    if hasattr(_libc, "malloc_trim"):
        # int malloc_trim(size_t pad)
        _libc.malloc_trim(ct.c_size_t(0))


def _heap() -> int | None:
    """Bytes in use in all arenas, and in blocks so large that they are mapped."""
    if not hasattr(_libc, "mallinfo2"):
        return None
    _libc.mallinfo2.restype = _MallInfo
    found = _libc.mallinfo2()
    return found.uordblks + found.hblkhd
