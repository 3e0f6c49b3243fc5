"""Calls of the command line inside this process, on a model that is loaded once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import interp
from interp.cli import cli
from interp.cli.output import likeliest

PROMPT = "The Eiffel Tower is located in the city of"
OTHER = "The Colosseum is located in the city of"


def call(*args) -> Result:
    return CliRunner().invoke(cli, [str(a) for a in args], prog_name="llama-interp")


def output_of(*args) -> str:
    """What a call that succeeds prints."""
    result = call(*args)
    assert result.exit_code == 0, result.output
    assert result.stderr == "" and "\x1b" not in result.stdout
    return result.stdout


def json_of(*args) -> dict:
    """The JSON object that a call prints, and nothing else."""
    text = output_of(*args, "--json")
    assert text.count("\n") == 1
    return json.loads(text)


@pytest.fixture(autouse=True)
def loaded(tiny: interp.Model, monkeypatch: pytest.MonkeyPatch) -> list:
    """No call loads a model: it gets the tiny one. The list holds the paths and options that were asked for."""
    asked = []

    def load(path=None, **options):
        asked.append((path, options))
        return tiny

    monkeypatch.setattr(interp, "Model", load)
    return asked


@pytest.fixture
def default(model: interp.Model, monkeypatch: pytest.MonkeyPatch) -> interp.Model:
    """The default model instead."""
    monkeypatch.setattr(interp, "Model", lambda path=None, **_: model)
    return model


@pytest.fixture
def rome(tiny: interp.Model, tmp_path: Path) -> Path:
    """The residual stream of another prompt, as the command saves it."""
    output_of("-p", OTHER, "--save", "l_out", tmp_path / "rome.npz")
    return tmp_path / "rome.npz"


def same_results(a: dict, b: dict) -> bool:
    """Whether two calls found the same; what edits were in force, and what was without them, is not compared."""
    left_out = ("edits", "top_without_edits", "files")
    return {k: v for k, v in a.items() if k not in left_out} == {k: v for k, v in b.items() if k not in left_out}


def top_of(model: interp.Model, edits: list, k: int = 10, prompt: str = PROMPT) -> list[dict]:
    """The likeliest tokens as the JSON objects hold them."""
    return likeliest(model.run(prompt, edits=edits), k)


def saved_of(site: str, folder: Path, prompt: str = OTHER) -> Path:
    path = folder / f"{site}.safetensors"
    output_of("-p", prompt, "--save", site, path)
    return path
