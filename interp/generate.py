"""Generation: choosing tokens, and the loop that turns them into text as it becomes available."""

from __future__ import annotations

import codecs
import weakref
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass

import numpy as np

from .errors import RunError
from .load import as_count
from .run import Generation
from .session import Context
from .vocab import Vocab


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
        # NaN anywhere makes the maximum NaN
        if not np.isfinite(logits.max()):
            raise RunError("No token can be chosen: the logits are not finite. An edit drove them to infinity or NaN.")
        if options.temperature == 0.0 or options.top_k == 1:
            return int(logits.argmax())
        with np.errstate(over="ignore"):
            weights = np.exp((logits.astype(np.float64) - logits.max()) / options.temperature)
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

    Attributes:
        text: all of it, up to the stop text.
        stopped: a stop text was met.
    """

    def __init__(self, vocab: Vocab, stop: tuple[str, ...] = ()):
        self._vocab, self._stop = vocab, stop
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._longest = max(map(len, stop), default=0)
        self._shown = 0
        self.text, self.stopped = "", False

    def add(self, token: int) -> str:
        """What can be shown after one more token; often nothing."""
        return self._append(self._decoder.decode(self._vocab.bytes_of(token)))

    def end(self) -> str:
        """What is left when no more tokens come."""
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


def steps(
    context: Context, tokens: list[int], options: Options, edits, capture, prompt: str | None
) -> Generator[str, None, Generation]:
    """Generate, yielding text as it becomes available; the result is the :class:`Generation`.

    Everything is checked at once; the model is locked from the first step to the last.

    Raises:
        RunError: the model is an encoder.
        SiteError, EditError: as :meth:`interp.Model.run`.
    """
    if not context._can_generate:
        raise RunError(f"A model of architecture {context.arch} is an encoder: it cannot generate.")
    return _steps(context, tokens, options, context._program(capture, edits, len(tokens)), prompt)


def _steps(context: Context, tokens, options: Options, program, prompt) -> Generator[str, None, Generation]:
    choose, text, vocab = Sampler(options), Text(context.vocab, options.stop), context.vocab
    one = np.ones(1, np.int8)
    outputs = context._outputs(program, len(tokens), "last")
    room = context.n_ctx - program.offset - len(tokens)
    new: list[int] = []
    rows: list[np.ndarray] = []
    with context._session(program) as handle:
        context._choose_logits(program, handle, outputs, len(tokens) - 1)
        rows.append(context._decode(program, handle, tokens, 0, outputs, "last"))
        while True:
            new.append(choose(rows[-1][0]))
            ended = vocab.is_end(new[-1])
            piece = "" if ended else text.add(new[-1])
            ended = ended or text.stopped or len(new) == options.max_tokens or len(new) > room
            piece += text.end() if ended else ""
            if piece:
                with context._paused():
                    yield piece
            if ended:
                break
            rows.append(context._decode(program, handle, new[-1:], len(tokens) + len(new) - 1, one, "last"))
        run = context._as_run(program, tokens + new[:-1], np.concatenate(rows), handle, prompt)
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

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        self._context._stream = weakref.ref(self)
        try:
            return next(self._pieces)
        except StopIteration as end:
            self._generation = self._generation or end.value
            raise

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
        self._pieces.close()

    def __enter__(self) -> "Stream":
        return self

    def __exit__(self, *_exc) -> None:
        self.close()
