"""``averaged``: sweeps that take lists of prompts as well, run for each of them and averaged."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Iterator, Mapping

import numpy as np

from .errors import InterpError, RunError
from .grid import Grid, check_metric, progress_bar
from .mean_sweep import MeanSweep, shared_positions
from .metrics import LogitDiff, Probability
from .model import is_batch
from .prompts import check_pair
from .run import Run
from .sites import at


def averaged(*prompts: str):
    """A decorator of sweeps: lists of prompts give a :class:`MeanSweep` instead of a single result.

    ``metric``, and ``keys`` of a sweep that has them, may then be lists too. All that can be checked without a run is
    checked before the first one: the last of two hundred prompts would otherwise fail after hours.

    Args:
        prompts: the names of the arguments that may be lists.

    Raises (of the sweep):
        RunError: lists of different lengths; or what a single sweep raises, with the place of the prompt in the list.
    """

    def decorate(sweep):
        signature = inspect.signature(sweep)

        @functools.wraps(sweep)
        def one_or_several(*args, **kwargs):
            bound = signature.bind(*args, **kwargs)
            for name in prompts:
                if isinstance(bound.arguments[name], (list, tuple)) and not bound.arguments[name]:
                    raise RunError(f"{name} is an empty list: give a text, tokens, or a list of at least one of those.")
            if not any(is_batch(bound.arguments[name]) for name in prompts):
                return sweep(*args, **kwargs)
            bound.apply_defaults()
            return _mean(sweep, bound.arguments, prompts)

        return one_or_several

    return decorate


def _mean(sweep, given: dict, prompts: tuple[str, ...]) -> MeanSweep:
    noun = "Pair" if len(prompts) > 1 else "Prompt"
    cases = _cases(sweep, given, prompts, noun)
    results: list[Grid] = []
    label = f"{len(cases)} {noun.lower()}s"
    with contextlib.suppress(KeyboardInterrupt), progress_bar(given["progress"], label, len(cases)) as advance:
        for i, case in enumerate(cases):
            with _saying(noun, i, given, prompts):
                result = sweep(**{**given, **case, "progress": advance})
            if result.complete or not results:
                results.append(result)
            if not result.complete:
                break
    if not results:
        raise KeyboardInterrupt
    return MeanSweep.of(results, len(cases))


def _cases(sweep, given: dict, prompts: tuple[str, ...], noun: str) -> list[dict]:
    """The arguments that differ from prompt to prompt, for each."""
    model, lists = given["model"], {name: given[name] for name in prompts}
    if isinstance(given["metric"], (list, tuple)):
        lists["metric"] = given["metric"]
    keys = given.get("keys")
    if isinstance(keys, (list, tuple)) and any(isinstance(part, Mapping) for part in keys):
        lists["keys"] = keys
    _check_lengths(lists, prompts)
    cases = [dict(zip(lists, row)) for row in zip(*lists.values())]
    for i, case in enumerate(cases):
        with _saying(noun, i, given, prompts):
            metric = case.get("metric", given["metric"])
            check_metric(metric, sweep.__name__)
            case |= {name: model._prompt(case[name]) for name in prompts}
            if len(prompts) > 1:
                pair = [case[name] for name in prompts]
                check_pair(*pair, *map(model.pieces, pair))
            _check_tokens(model, metric)
    if len({tuple(case["keys"]) for case in cases if "keys" in case}) > 1:
        raise RunError("keys= holds dictionaries of different names: a line of the mean needs keys in every prompt.")
    if "positions" in given and not given["per_head"]:
        _check_columns([len(case[prompts[0]]) for case in cases], given["positions"], noun)
    return cases


def _check_lengths(lists: dict, prompts: tuple[str, ...]) -> None:
    first = next(name for name in prompts if is_batch(lists[name]))
    n = len(lists[first])
    for name, value in lists.items():
        if name in prompts and not is_batch(value):
            parts = value if isinstance(value, (list, tuple)) else []
            odd = [part for part in parts if not isinstance(part, (str, list, tuple))]
            if odd and len(odd) < len(parts):
                raise RunError(f"{name} holds {odd[0]!r} among its prompts: each is a text or a list of tokens.")
            raise RunError(f"{first} is a list of {n} prompts and {name} is one: give a list of {n} there too.")
        if len(value) != n:
            one = " One for all may stand alone." if name == "metric" else ""
            raise RunError(f"{first} has {n} entries and {name} has {len(value)}: give as many.{one}")


def _check_tokens(model, metric) -> None:
    """Whether the words of one of our metrics are tokens; a function of the user's waits for its run."""
    if isinstance(metric, (LogitDiff, Probability)):
        metric(Run([], [], np.zeros((1, model.n_vocab), np.float32), {}, {}, model))


def _check_columns(lengths: list[int], positions, noun: str) -> None:
    chosen = at("l_out", positions=positions).positions
    if isinstance(chosen, str):
        return  # an error of the first sweep
    columns = [sorted({p % n for p in chosen if -n <= p < n}) if chosen else list(range(n)) for n in lengths]
    shared_positions(columns, lengths, noun)


@contextlib.contextmanager
def _saying(noun: str, i: int, given: dict, prompts: tuple[str, ...]) -> Iterator[None]:
    """Errors say which prompt they are of."""
    prompt = given[prompts[0]][i]
    start = f" ({prompt if len(prompt) <= 40 else prompt[:39] + '…'!r})" if isinstance(prompt, str) else ""
    where = f"{noun} {i}, counted from 0{start}"
    try:
        yield
    except InterpError as err:
        raise type(err)(f"{where}: {err}") from err
    except Exception as err:
        err.add_note(where)
        raise
