"""What the tests of isolated models share."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

import interp

OPTIONS = {"n_ctx": 256, "kv_type": "f32", "flash_attn": False, "n_threads": 1}

TOKENS, OTHER = [11, 4711, 300, 9, 1024, 77], [11, 4711, 301, 9, 1024, 77]

#: two tokens whose logits are compared
A, B = 500, 700


def is_gone(pid: int) -> bool:
    """Ended, and reaped."""
    for _ in range(100):
        if not Path(f"/proc/{pid}").exists():
            return True
        time.sleep(0.05)
    return False


def bits(found):
    """Whatever a model gives, in a form that compares every bit of it."""
    if isinstance(found, np.ndarray):
        return found.dtype.str, found.shape, found.tobytes()
    if isinstance(found, interp.Model):
        return "a model"
    if isinstance(found, (list, tuple)):
        return [bits(part) for part in found]
    if isinstance(found, dict):
        return {str(key): bits(part) for key, part in found.items()}
    if isinstance(found, float):
        return found.hex()
    if found is None or isinstance(found, (str, int, bytes, range)):
        return found
    return type(found).__name__, {name: bits(part) for name, part in vars(found).items()}
