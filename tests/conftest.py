"""Fixtures: the default model and the small random ones, loaded once."""

from __future__ import annotations

import numpy as np
import pytest

import interp
import models

PROMPT = "The Eiffel Tower is located in the city of"


@pytest.fixture(scope="session")
def model() -> interp.Model:
    """The default model with the options that a user gets, but one thread: others may share the cores."""
    return interp.Model(n_ctx=512, n_threads=1)


@pytest.fixture(scope="session")
def tiny() -> interp.Model:
    """A random Llama of four layers, F32, without flash attention: exact and quick."""
    return interp.Model(models.tiny("llama"), n_ctx=256, kv_type="f32", flash_attn=False, n_threads=1)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
