"""Generation: choosing tokens, and the loop that turns them into text as it becomes available."""

from __future__ import annotations

import codecs
import math
import threading
import weakref
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from .errors import RunError
from .load import as_count
from .run import Generation
from .session import Context
from .vocab import Vocab

#: logits that are asked for at once
_BLOCK_BYTES = 1 << 25


@dataclass(frozen=True)
class Options:
    """How to continue a prompt, checked; :meth:`interp.Model.generate` says what each means."""

    max_tokens: int
    temperature: float
    seed: int
    top_k: int
    top_p: float
    stop: tuple[str, ...]

    @classmethod
    def checked(cls, max_tokens=64, temperature=0.0, seed=0, top_k=0, top_p=1.0, stop=(), on_text=None) -> "Options":
        """
        Raises:
            RunError: an option of the wrong kind or out of range.
        """
        if _is_no_number(temperature) or not 0.0 <= temperature < 1e9:
            raise RunError(f"temperature={temperature!r}: give a number of at least 0; 1 is the model's own.")
        if _is_no_number(top_p) or not 0.0 < top_p <= 1.0:
            raise RunError(f"top_p={top_p!r}: give a number above 0 and at most 1; 1 is all tokens.")
        if on_text is not None and not callable(on_text):
            raise RunError(f"on_text={on_text!r}: give a function of a text.")
        stop = (stop,) if isinstance(stop, str) else stop
        if not isinstance(stop, (list, tuple)) or not all(isinstance(text, str) and text for text in stop):
            raise RunError(f"stop={stop!r}: give a text or a list of texts, none of them empty.")
        return cls(
            max_tokens=as_count(max_tokens, "max_tokens", 1),
            temperature=float(temperature),
            seed=as_count(seed, "seed", 0),
            top_k=as_count(top_k, "top_k", 0),
            top_p=float(top_p),
            stop=tuple(stop),
        )


def _is_no_number(value) -> bool:
    return isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating))


class Sampler:
    """Chooses the next token from logits; the same seed chooses the same."""

    def __init__(self, options: Options):
        self._options = options
        self._draw = np.random.default_rng(options.seed)

    def __call__(self, logits: np.ndarray) -> int:
        """
        Args:
            logits: ``(n_vocab,)``.

        Raises:
            RunError: they are not finite.
        """
        options = self._options
        best = int(logits.argmax())
        # NaN counts as the largest
        if not math.isfinite(logits[best]):
            raise RunError("No token can be chosen: the logits are not finite. An edit drove them to infinity or NaN.")
        if options.temperature == 0.0 or options.top_k == 1:
            return best
        with np.errstate(over="ignore"):
            weights = np.exp((logits.astype(np.float64) - logits[best]) / options.temperature)
        if options.top_k or options.top_p < 1.0:
            weights = self._likeliest(weights)
        return int(self._draw.choice(len(weights), p=weights / weights.sum()))

    def _likeliest(self, weights: np.ndarray) -> np.ndarray:
        """The weights with those set to zero that top_k and then top_p leave out."""
        order = np.argsort(-weights, kind="stable")
        order = order[: self._options.top_k or None]
        shares = np.cumsum(weights[order]) / weights[order].sum()
        order = order[: np.searchsorted(shares, self._options.top_p) + 1]
        kept = np.zeros_like(weights)
        kept[order] = weights[order]
        return kept


class Text:
    """The text of tokens as they come: whole characters only, and nothing that a stop text may take back.

    Where nobody listens and no text can stop it, the tokens are kept and become a text at the end.

    Attributes:
        text: all of it, up to the stop text.
        stopped: a stop text was met.
    """

    def __init__(self, vocab: Vocab, stop: tuple[str, ...] = (), is_heard: bool = True):
        self._vocab, self._stop = vocab, stop
        self._tokens: list[int] | None = None if is_heard or stop else []
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._longest = max(map(len, stop), default=0)
        self._shown = 0
        self.text, self.stopped = "", False

    def add(self, token: int) -> str:
        """What can be shown after one more token; often nothing."""
        if self._tokens is not None:
            self._tokens.append(token)
            return ""
        return self._append(self._decoder.decode(self._vocab.bytes_of(token)))

    def end(self) -> str:
        """What is left when no more tokens come."""
        if self._tokens:
            self.text = self._vocab.text(self._tokens)
        piece = "" if self.stopped else self._append(self._decoder.decode(b"", final=True))
        return piece + self._show(len(self.text))

    def _append(self, new: str) -> str:
        searched = max(0, len(self.text) - self._longest + 1)
        self.text += new
        found = [at for at in (self.text.find(stop, searched) for stop in self._stop) if at >= 0]
        if found:
            self.text, self.stopped = self.text[: min(found)], True
        return self._show(len(self.text) - (0 if self.stopped else self._held_back()))

    def _held_back(self) -> int:
        """How much at the end may be the beginning of a stop text."""
        for n in range(min(self._longest - 1, len(self.text)), 0, -1):
            if any(len(stop) > n and stop.startswith(self.text[-n:]) for stop in self._stop):
                return n
        return 0

    def _show(self, end: int) -> str:
        piece = self.text[self._shown : end]
        self._shown = max(self._shown, end)
        return piece


class Rows:
    """Logits of one step after the other, ``(n, n_vocab)`` in all.

    Memory is asked for in blocks: pages that come one row at a time cost more than computing a row of argmax.
    """

    def __init__(self, n_vocab: int, most: int):
        self._n_vocab, self._most = n_vocab, most
        self._per_block = max(1, _BLOCK_BYTES // (4 * n_vocab))
        self._blocks: list[np.ndarray] = []
        self._n = 0

    def next(self) -> tuple[np.ndarray, int]:
        """Room for one more row, ``(n_vocab,)``, and its address."""
        row = self._n % self._per_block
        if row == 0:
            self._blocks.append(np.empty((min(self._per_block, self._most - self._n), self._n_vocab), np.float32))
            self._address = self._blocks[-1].ctypes.data
        self._n += 1
        return self._blocks[-1][row], self._address + row * self._n_vocab * 4

    def all(self) -> np.ndarray:
        """What was filled."""
        used = self._n - self._per_block * (len(self._blocks) - 1)
        parts = [*self._blocks[:-1], self._blocks[-1][:used]]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def steps(
    context: Context, tokens: list[int], options: Options, edits, capture, prompt: str | None, n_prefix: int,
    is_heard: bool,
) -> Generator[str, None, Generation]:  # fmt: skip
    """Generate, yielding text as it becomes available; the result is the :class:`Generation`.

    Everything is checked at once; the model is locked from the first step to the last.

    Args:
        prompt: the text that the tokens came from, if they did.
        n_prefix: tokens of the prefix that the prompt was made for.
        is_heard: somebody wants the text piece by piece; else it may come all at the end.

    Raises:
        RunError: the model is an encoder.
        SiteError, EditError: as :meth:`interp.Model.run`.
    """
    if not context._can_generate:
        raise RunError(f"A model of architecture {context.arch} is an encoder: it cannot generate.")
    program = context._program(capture, edits, len(tokens), n_prefix=n_prefix)
    return _steps(context, tokens, options, program, prompt, is_heard)


def _steps(context: Context, tokens, options: Options, program, prompt, is_heard) -> Generator[str, None, Generation]:
    choose, text, vocab = Sampler(options), Text(context.vocab, options.stop, is_heard), context.vocab
    outputs = context._outputs(program, len(tokens), "last")
    room = context.n_ctx - program.offset - len(tokens)
    new: list[int] = []
    rows = Rows(context.n_vocab, min(options.max_tokens, room + 1))
    with context._session(program) as handle:
        context._choose_logits(program, handle, outputs, len(tokens) - 1)
        step = context._stepper(program, handle)
        row, address = rows.next()
        context._decode(program, handle, tokens, 0, outputs)
        context._read_logits(handle, address, 1)
        while True:
            new.append(choose(row))
            ended = vocab.is_end(new[-1])
            piece = "" if ended else text.add(new[-1])
            ended = ended or text.stopped or len(new) == options.max_tokens or len(new) > room
            piece += text.end() if ended else ""
            if piece:
                # still locked, but no edit is running; a context manager that Ctrl-C ends at its first line would stay so
                context._is_paused = True
                try:
                    yield piece
                    if context._is_foreign:
                        raise RunError(context._closed)
                finally:
                    # the next piece may be asked for by another thread
                    context._is_paused, context._owner = False, threading.get_ident()
            if ended:
                break
            row, address = rows.next()
            step(new[-1], len(tokens) + len(new) - 1, address)
        run = context._as_run(program, tokens + new[:-1], rows.all(), handle, prompt)
    return Generation(text.text, new, run)


def finish(pieces: Generator[str, None, Generation], on_text: Callable[[str], object] | None) -> Generation:
    """Run a generation to its end, handing its text to a function on the way."""
    try:
        while True:
            try:
                piece = next(pieces)
            except StopIteration as end:
                return end.value
            if on_text is not None:
                on_text(piece)
    finally:
        pieces.close()


class Stream:
    """Text of a generation, piece by piece; made by :meth:`interp.Model.stream`.

    The model belongs to the stream from its first piece to its last: to leave earlier, ``close`` it, or write
    ``with model.stream(…) as stream``. A stream that nobody holds any more closes itself.
    """

    def __init__(self, context: Context, pieces: Generator[str, None, Generation]):
        self._context, self._pieces, self._generation = context, pieces, None
        self._reading = threading.Lock()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        with self._alone():
            self._context._stream = weakref.ref(self)
            try:
                return next(self._pieces)
            except StopIteration as end:
                self._generation = self._generation or end.value
                raise

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if not self._reading.acquire(blocking=False):
            raise RunError("This stream is being read, by another thread or by an edit: one at a time.")
        try:
            yield
        finally:
            self._reading.release()

    @property
    def generation(self) -> Generation:
        """What :meth:`interp.Model.generate` would have returned.

        Raises:
            RunError: the stream was not read to its end.
        """
        if self._generation is None:
            raise RunError("This stream was not read to its end, so there is no generation yet: list(stream) reads it.")
        return self._generation

    def close(self) -> None:
        """End the generation where it is, and let go of the model."""
        with self._alone():
            self._pieces.close()

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_exc) -> None:
        self.close()
