"""Metrics: what an experiment measures of a run, as one number at the prompt's last position."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field

import numpy as np

from .errors import RunError
from .plot import visible
from .run import Run
from .vocab import one_token

#: the tokens of words, by model: a sweep asks for the same ones at every run
_words: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def logit_diff(a: str | int, b: str | int) -> LogitDiff:
    """The logit of token ``a`` minus that of token ``b``: by how much the model prefers ``a``.

    The usual metric of activation patching, because the residual stream moves it linearly up to the final norm: Wang
    et al., "Interpretability in the Wild" (arXiv:2211.00593).

    Args:
        a, b: token ids, or texts that are one token. Mind the space: in most vocabularies ``"Mary"`` and ``" Mary"``
            are two tokens, and the second continues a sentence. A text that is no token is tried with a space before.

    Returns:
        A function of a run, in logits; its ``name`` is for titles.

    Raises:
        RunError: when it is called: a text of several tokens, twice the same token, or a run without logits.
    """
    return LogitDiff(a, b)


def probability(token: str | int) -> Probability:
    """The probability of a token, from 0 to 1; arguments, result and errors as for :func:`logit_diff`."""
    return Probability(token)


def kl_divergence(reference: Run) -> Divergence:
    """How far a run's next-token distribution is from a reference: KL(reference || run), in nats; 0 where they agree.

    Args:
        reference: a run of the same model whose last position has logits.

    Raises:
        RunError: the reference has no logits. When it is called: a run with another vocabulary, or without logits.
    """
    if not isinstance(reference, Run):
        raise RunError(f"kl_divergence needs a run to compare with, not {type(reference).__name__}: model.run(prompt)")
    return Divergence(_log_softmax(_last(reference)))


@dataclass(frozen=True)
class LogitDiff:
    """``metric(run)``, made by :func:`logit_diff`."""

    a: str | int
    b: str | int

    @property
    def name(self) -> str:
        return f"logit difference {_shown(self.a)} − {_shown(self.b)}"

    def tokens(self, run: Run) -> list[int]:
        """The only tokens whose logits it reads: a sweep need not compute the others."""
        a, b = (_token(run, piece) for piece in (self.a, self.b))
        if a == b:
            raise RunError(f"logit_diff({self.a!r}, {self.b!r}) compares token {a} with itself; give two tokens")
        return [a, b]

    def __call__(self, run: Run) -> float:
        logits = _last(run)
        a, b = self.tokens(run)
        return float(np.float64(logits[a]) - np.float64(logits[b]))


@dataclass(frozen=True)
class Probability:
    """``metric(run)``, made by :func:`probability`."""

    token: str | int

    @property
    def name(self) -> str:
        return f"probability of {_shown(self.token)}"

    def __call__(self, run: Run) -> float:
        return float(np.exp(_log_softmax(_last(run))[_token(run, self.token)]))


@dataclass(frozen=True)
class Divergence:
    """``metric(run)``, made by :func:`kl_divergence`; it keeps the reference's log probabilities."""

    log_probs: np.ndarray = field(repr=False)

    name = "KL divergence"

    def __call__(self, run: Run) -> float:
        found = _log_softmax(_last(run))
        if found.shape != self.log_probs.shape:
            raise RunError(f"a run of {len(found)} tokens of vocabulary cannot be compared with {len(self.log_probs)}")
        # a token that the reference rules out counts nothing, although its logarithm is infinite
        possible = self.log_probs > -np.inf
        ours = self.log_probs[possible]
        return float(np.sum(np.exp(ours) * (ours - found[possible])))


def _shown(piece: str | int) -> str:
    return visible(piece) if isinstance(piece, str) else f"token {piece}"


def _last(run: Run) -> np.ndarray:
    if run.logits is None:
        raise RunError("this run has no logits; make it without stop_after, and not with logits=None")
    return run.logits[-1]


def _token(run: Run, piece: str | int) -> int:
    if run.model is None and isinstance(piece, str):
        raise RunError(f"a run from a file has no model to tell which token {piece!r} is; give its id")
    if run.model is None:
        if not hasattr(piece, "__index__") or not 0 <= piece < run.logits.shape[1]:
            raise RunError(f"token {piece!r} is not in the vocabulary: ids are 0 to {run.logits.shape[1] - 1}")
        return int(piece)
    if not isinstance(piece, str):
        return one_token(run.model, piece)
    known = _words.setdefault(run.model, {})
    if piece not in known:
        known[piece] = one_token(run.model, piece)
    return known[piece]


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    # float64: over 150 000 tokens a float32 sum loses the small probabilities
    logits = logits.astype(np.float64)
    logits -= logits.max()
    return logits - np.log(np.exp(logits).sum())
