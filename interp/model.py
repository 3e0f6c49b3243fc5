"""``Model``: the public face: load a GGUF file, run it with captures and edits, generate, chat, resume, unembed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from . import chat, devices, generate, load, native, parts, state, weights
from .errors import RunError
from .inspect import Graph
from .program import as_list
from .run import Generation, Run
from .session import Context
from .sites import Site
from .state import Prefix


class Model(Context):
    """A GGUF model with hooks on every named tensor of its graph.

    Args:
        path: a GGUF file; None: the default model (SmolLM2-135M-Instruct).
        n_ctx: tokens that a prompt and what follows may have; models with learned positions may have fewer.
        device: where the layers run: ``"cpu"``; ``"cuda"``, ``"cuda:0"``, ``"metal"``, ``"vulkan:0"``, where the library
            was built for it; ``"rpc://HOST:PORT"``, another machine (``llama-interp rpc-server``); several, as a list or
            with commas between them, share the layers by their free memory; None: llama.cpp's own choice, all GPUs of
            this machine. ``llama-interp devices`` lists what there is.
        n_gpu_layers: so many of the last layers run on the devices, the others on the CPU; -1: all. One more than the
            model has: the output head as well.
        kv_type: type of the KV cache: ``"f16"``, ``"f32"`` or ``"q8_0"`` (with flash attention only).
        flash_attn: faster and leaner; off for comparisons with other software at full precision.
        n_threads: CPU threads; None: as many as this process may use.
        repack: let the CPU backend rearrange quantised weights for speed; :meth:`weight` reads those from the file.
        isolated: keep the model in a process of its own, which may die without ours: llama.cpp aborts where memory
            runs out or a device fails. Everything works as without; what it costs: docs/backends.md. There is a method
            more, ``kill()``, which ends a run that hangs from another thread, and an attribute, ``pid``.

    Threads that share a model wait for each other; a forked process has to load its own.

    Raises:
        ModelError: the file is missing, no GGUF, damaged, or of an unknown architecture.
        DeviceError: a device that does not exist, an RPC server that does not answer, or too little memory for the layers.
        LibraryError: the compiled library is missing or does not match.
        ProcessError: the process of an isolated model ended; from any method. The next call starts another one.
    """

    def __new__(cls, *_args, isolated: bool = False, **_options):
        if isolated:
            from .isolated.model import Isolated

            if not issubclass(Isolated, cls):
                raise RunError(f"isolated=True is for interp.Model itself, not for {cls.__name__}.")
            cls = Isolated
        return super().__new__(cls)

    def __init__(
        self,
        path=None,
        *,
        n_ctx: int = 2048,
        device=None,
        n_gpu_layers: int = -1,
        kv_type: str = "f16",
        flash_attn: bool = True,
        n_threads: int | None = None,
        repack: bool = True,
        isolated: bool = False,
    ):
        kv_type, n_ctx, found = load.as_kv_type(kv_type), load.as_n_ctx(n_ctx), load.find_file(path)
        self._open = partial(
            load.open_file, path=found, n_ctx=n_ctx, device=device, n_gpu_layers=n_gpu_layers, kv_type=kv_type,
            flash_attn=flash_attn, n_threads=n_threads, repack=repack,
        )  # fmt: skip
        lib = self._library()
        handle, servers = self._open(lib)
        self._adopt(lib, handle, found, kv_type, n_ctx, servers)

    def _library(self) -> native.Library:
        return native.load()

    def __reduce_ex__(self, _protocol):
        raise RunError("A model cannot be pickled or copied. Give its path to the other process and load it there.")

    def __repr__(self) -> str:
        return f"Model({self.name!r}, {self.arch}, {self.n_layer} layers, {self.n_head} heads, n_embd {self.n_embd})"

    def __enter__(self) -> "Model":
        return self

    def __exit__(self, *_exc) -> None:
        self.close()

    @property
    def devices(self) -> devices.Devices:
        """What the model has where: a list of :class:`interp.Device`, which prints as a table.

        Raises:
            RunError: an RPC server of the model went away.
        """
        with self._locked() as handle:
            return devices.used(self._lib, handle, self.n_layer)

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

    def sites(self) -> list[Site]:
        """Every named tensor of the graph, in graph order."""
        self._check_open()
        return list(self._table.sites)

    def weight(self, name: str) -> np.ndarray:
        """A weight of the model, dequantised.

        Args:
            name: as in the GGUF: ``"token_embd.weight"``, ``"blk.0.attn_output.weight"``, …

        Returns:
            float32; a matrix is ``(n_out, n_in)``, of experts ``(n_expert, n_out, n_in)``.

        Raises:
            ModelError: there is no such weight (the nearest names are listed); or it was repacked for speed, and the file
                has gone or changed, or is Q1_0, which gguf does not dequantise: load with ``repack=False``.
        """
        with self._locked() as handle:
            return weights.read(self._lib, handle, name, self.n_layer, self.path)

    def _has_weight(self, name: str) -> bool:
        with self._locked() as handle:
            return weights.has(self._lib, handle, name)

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
        self._watching.functions = [graphs.append]
        try:
            self.run(prompt, capture, edits)
        finally:
            del self._watching.functions
        return graphs[0]

    # runs

    def run(self, prompt, capture=(), edits=(), logits="all", stop_after: int | None = None):
        """Run a prompt once.

        Args:
            prompt: a text, token ids, or a list of those; a list gives a list of runs. It continues the
                :meth:`prefix` in force: then a text gets no begin token, and captures, logits and positions are those
                of its own tokens only; attention has the keys of the prefix in front.
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
        stop = None if stop_after is None else self._residual(stop_after)
        n_prefix = self.n_prefix
        return self._run(self._prompt(prompt, n_prefix), capture, edits, logits, stop, prompt, n_prefix=n_prefix)

    def _run(
        self, tokens: list[int], capture, edits, logits: str | None, stop=None, prompt=None, keep: bool = False,
        n_prefix: int | None = None,
    ) -> Run:  # fmt: skip
        """``keep``: leave the tokens in the cache, for whoever runs next."""
        last_layer = stop.layer if stop else None
        program = self._program(capture, edits, len(tokens), last_layer=last_layer, n_prefix=n_prefix)
        outputs = self._outputs(program, len(tokens), "all" if stop is not None else logits)
        with self._session(program, stop, keep=keep) as handle:
            if logits != "all" and stop is None:
                self._choose_logits(program, handle, outputs, len(tokens) - 1 if logits else None)
            read = self._decode(program, handle, tokens, 0, outputs, logits if stop is None else None)
            return self._as_run(program, tokens, read, handle, prompt)

    # generation

    def generate(
        self, prompt, max_tokens: int = 64, edits=(), capture=(), temperature: float = 0.0, seed: int = 0, *,
        top_k: int = 0, top_p: float = 1.0, stop=(), on_text=None,
    ) -> Generation:  # fmt: skip
        """Continue a prompt, with edits and captures in effect for the prompt and for every token generated.

        Args:
            prompt: a text or token ids, as in :meth:`run`.
            max_tokens: at most that many; fewer where the model ends or the context is full.
            edits: as in :meth:`run`; ``positions="generated"`` spares the prompt.
            capture: as in :meth:`run`.
            temperature: 0 takes the likeliest token; above, tokens are drawn from ``softmax(logits / temperature)``.
            seed: of the draws.
            top_k: draw from that many of the likeliest tokens only; 0: from all.
            top_p: of those, draw from the likeliest whose probabilities reach this sum. Method: Holtzman et al., "The
                Curious Case of Neural Text Degeneration" (arXiv:1904.09751).
            stop: a text or several; the generation ends where one appears, and ``.text`` ends before it.
            on_text: called with each new piece of text, always whole characters. What it raises ends the generation.

        Raises:
            RunError: as :meth:`run`, an option out of range, or the model is an encoder.
        """
        options = generate.Options.checked(max_tokens, temperature, seed, top_k, top_p, stop, on_text)
        n_prefix = self.n_prefix
        tokens = self._prompt(prompt, n_prefix)
        steps = self._steps(prompt, tokens, options, edits, capture, n_prefix, on_text is not None)
        return generate.finish(steps, on_text)

    def stream(
        self, prompt, max_tokens: int = 64, edits=(), capture=(), temperature: float = 0.0, seed: int = 0, *,
        top_k: int = 0, top_p: float = 1.0, stop=(),
    ) -> generate.Stream:  # fmt: skip
        """The same as an iterator of pieces of text; afterwards its ``generation`` is what :meth:`generate` returns.

        ``for piece in model.stream(prompt): print(piece, end="")``. Until it ends or is closed, the model runs nothing
        else. Arguments and errors as in :meth:`generate`.
        """
        options = generate.Options.checked(max_tokens, temperature, seed, top_k, top_p, stop)
        n_prefix = self.n_prefix
        tokens = self._prompt(prompt, n_prefix)
        return generate.Stream(self, self._steps(prompt, tokens, options, edits, capture, n_prefix))

    def _steps(
        self, prompt, tokens: list[int], options: generate.Options, edits, capture, n_prefix: int, is_heard: bool = True,
    ):  # fmt: skip
        text = prompt if isinstance(prompt, str) else None
        return generate.steps(self, tokens, options, edits, capture, text, n_prefix, is_heard)

    def chat(
        self, messages, max_tokens: int = 64, edits=(), capture=(), temperature: float = 0.0, seed: int = 0, *,
        top_k: int = 0, top_p: float = 1.0, stop=(), on_text=None,
    ) -> Generation:  # fmt: skip
        """Answer a conversation, written as the model's own chat template has it.

        Args:
            messages: a list of ``{"role": "user", "content": "…"}``, or a text: one message of the user's. The roles
                are those of the template: mostly ``system``, ``user`` and ``assistant``.

        The other arguments are those of :meth:`generate`.

        Raises:
            ModelError: the model has no chat template.
            RunError: malformed messages, or the template refuses them; and as :meth:`generate`.
        """
        options = generate.Options.checked(max_tokens, temperature, seed, top_k, top_p, stop, on_text)
        prompt, n_prefix = self.chat_prompt(messages), self.n_prefix
        tokens = chat.tokens_of(self, prompt, n_prefix)
        self._check_length(tokens, n_prefix)
        steps = self._steps(prompt, tokens, options, edits, capture, n_prefix, on_text is not None)
        return generate.finish(steps, on_text)

    def chat_prompt(self, messages, add_generation_prompt: bool = True) -> str:
        """The text of a conversation, as the chat template in the model's file (``tokenizer.chat_template``) has it.

        Args:
            messages: as in :meth:`chat`.
            add_generation_prompt: end with the beginning of the assistant's answer.

        Raises:
            ModelError, RunError: as :meth:`chat`.
        """
        self._check_open()
        return chat.render(self, messages, add_generation_prompt)

    # a prefix that is computed once

    def prefix(self, prompt) -> Prefix | None:
        """Compute the cache of a prompt once; every run, generation and stream from here on continues it.

        ``with model.prefix(long_text): model.run(" and then")`` gives the logits of the second text's tokens, computed
        as the end of both. With quantised weights that agrees to the noise of the kernels, which treat batches of other
        sizes differently. The cache of the prefix itself is not touched by what edits do to a run.

        Args:
            prompt: a text or token ids; None ends the prefix in force. A new one takes the place of the old.

        Returns:
            The :class:`Prefix`, in force until it is closed or its ``with`` block is left; None for None.

        Raises:
            RunError: as :meth:`run`; or the prompt fills the context, or the model is an encoder.
        """
        self._check_open()
        if prompt is None:
            self._end_prefix()
            return None
        tokens = self.vocab.tokens(prompt) if isinstance(prompt, str) else self.vocab.check(prompt)
        if not tokens:
            raise RunError("The prefix is empty: give a text or at least one token. None ends the one in force.")
        return state.begin(self, tokens)

    def save_state(self, path):
        """Write the prefix in force to a ``.safetensors`` file: the cache as bytes, and what it belongs to as texts.

        Where a model's sliding window is shorter than the prefix, the file holds its tokens only.

        Returns:
            The path.

        Raises:
            RunError: no prefix is in force.
            FileError: another suffix, or it cannot be written; nothing half-written is left.
        """
        self._check_open()
        return state.save(self, path)

    def load_state(self, path) -> Prefix:
        """Put a prefix in force that :meth:`save_state` wrote, here or in another process.

        Raises:
            FileError: no such file, damaged, or saved from another model, build of llama.cpp, ``kv_type`` or
                ``flash_attn``; the message says which.
            RunError: it fills the context.
        """
        self._check_open()
        return state.load(self, path)

    # parts of a model

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
            RunError: another shape of ``resid``, or layer 0, which starts from tokens: edit ``resid_pre`` instead; or a
                prefix is in force.
        """
        return parts.resume(self, resid, from_layer, tokens, edits, capture, logits)

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
        return parts.unembed(self, resid)


def is_batch(prompt) -> bool:
    """A list of prompts, not a list of tokens."""
    several = isinstance(prompt, (list, tuple)) and len(prompt) > 0
    # no generator: Ctrl-C while a short-cut closes one is lost
    return several and all([isinstance(p, (str, list, tuple)) for p in prompt])
