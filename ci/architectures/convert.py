"""GGUF files of the shapes: saved by transformers, converted to F32 by the pinned tree's ``convert_hf_to_gguf.py``.

Kept in the tests' cache of models, each under a hash of what decides its content: the shape, the code that makes it,
the vocabulary, the pinned commit, and transformers' version.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

import models
from ci import source
from ci.project import BuildError, Project
from ci.steps import Report, run, sha256

from . import weights
from .shape import N_VOCAB, Shape

#: the modules that decide what a file holds
_MAKERS = ("weights.py", "convert.py", "converter.py")


def files(shapes: Iterable[Shape]) -> dict[str, Path]:
    """The GGUF file of each shape, by its name; those that the cache lacks are made, in one go.

    Raises:
        BuildError: the converter failed; the message ends with what it said.
    """
    shapes = list(shapes)
    paths = {shape.name: _path(shape) for shape in shapes}
    if missing := [shape for shape in shapes if not paths[shape.name].exists()]:
        _convert({paths[shape.name]: shape for shape in missing})
    return paths


def tree() -> Path:
    """The pinned source tree, which holds the converter; unpacked if no build has done so."""
    project = Project()
    pin = project.pin()
    return source.unpatched_tree(project, pin, source.resolve(pin, "sdist"), Report(sys.stderr))


def _path(shape: Shape) -> Path:
    content = {
        "shape": dataclasses.asdict(shape) | {"about": ""},
        "made by": [sha256(Path(__file__).with_name(name)) for name in _MAKERS],
        "vocabulary": models.sha256_of(models.default_gguf()),
        "commit": Project().pin().commit,
        "transformers": version("transformers"),
    }
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return models.cache_dir() / f"arch-{shape.name}-{digest[:12]}.gguf"


def _convert(wanted: dict[Path, Shape]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        made = {path: Path(scratch) / shape.name / "model" for path, shape in wanted.items()}
        for path, shape in wanted.items():
            _save(shape, made[path])
        jobs = [_job(wanted[path], folder) for path, folder in made.items()]
        work = Path(scratch) / "jobs.json"
        work.write_text(json.dumps({"vocabulary": _vocabulary(), "jobs": jobs}), encoding="utf-8")
        converter = Path(__file__).with_name("converter.py")
        run([sys.executable, converter, tree(), work], fail="the converter failed")
        for path, folder in made.items():
            _publish(folder.parent / "model.gguf", path)


def _save(shape: Shape, folder: Path) -> None:
    weights.made(shape).save_pretrained(folder)
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | dict(shape.for_converter)), encoding="utf-8")
    # of Gemma 3 the converter cuts the embeddings to as many tokens as this file has
    stub = {"model": {"vocab": {str(token): token for token in range(N_VOCAB)}}, "added_tokens": []}
    (folder / "tokenizer.json").write_text(json.dumps(stub), encoding="utf-8")


def _job(shape: Shape, folder: Path) -> dict:
    """What ``converter.py`` is told of a model: it is written beside its folder."""
    options = ["--outtype", "f32", "--outfile", str(folder.parent / "model.gguf"), *shape.options]
    return {"arguments": [str(folder), *options], "config": dict(shape.for_converter)}


def _vocabulary() -> list:
    """The tokenizer's entries of the default model, of its first tokens only."""
    entries = models._first_tokens(models._vocabulary(models.default_gguf()), N_VOCAB)
    return [[key, value, int(kind), None if items is None else int(items)] for key, value, kind, items in entries]


def _publish(made: Path, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # two processes may make the same file at once, and the cache may lie on another disk
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    unfinished.write_bytes(made.read_bytes())
    os.replace(unfinished, path)
