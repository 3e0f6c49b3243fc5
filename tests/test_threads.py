"""Threads that share a model, and forks of a process that holds one: the bits of one thread alone, or a clear error."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

import gguf_fuzz
import interp
from forks import FOREIGN, forked
from isolation import bits

TOKENS, OTHER, LONG = [11, 47, 300, 9, 102, 77], [12, 5, 7], list(range(40, 60))

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="forks, and looks at processes")


def load(arch: str, **options) -> interp.Model:
    return interp.Model(gguf_fuzz.small_file(arch), **{"n_ctx": 64, "n_threads": 1, **options})


@pytest.fixture(params=[False, True], ids=["", "isolated"])
def model(request):
    with load("llama", isolated=request.param) as model:
        yield model


#: calls whose result depends on the cache, on the program that is installed, or on both
CALLS: dict[str, Callable[[interp.Model], object]] = {
    "run": lambda m: m.run(TOKENS, capture=("l_out", "attn_scores"), edits=interp.scale("l_out-1", 0.5)),
    "batch": lambda m: m.run([TOKENS, OTHER], "z", [[], [interp.add("mlp_out-0", 1.0)]]),
    "stop": lambda m: m.run(LONG, "l_out", stop_after=1),
    "last": lambda m: m.run(LONG, logits="last"),
    "generate": lambda m: m.generate(TOKENS, 5, capture="l_out"),
    "stream": lambda m: [list(stream := m.stream(OTHER, 4)), stream.generation],
    "resume": lambda m: m.resume(np.ones((6, 64)), 2, TOKENS, capture="l_out"),
    "unembed": lambda m: m.unembed(np.ones((3, 64))),
    "host": lambda m: m.run(TOKENS, edits=interp.edit_host("l_out-2", lambda x: x * 2)),
    "sweep": lambda m: interp.patch_sweep(m, TOKENS, [99, *TOKENS[1:]], metric=interp.logit_diff(1, 2), layers=[1], progress=False),
    "stats": lambda m: interp.stats(m, [TOKENS, LONG], n_top=2, progress=False),
    "graph": lambda m: [node.name for node in m.graph(OTHER).nodes],
    "text": lambda m: [m.tokens("some words \u00fc"), m.pieces(range(m.n_vocab)), m.text(LONG)],
}  # fmt: skip


def at_once(*works: Callable[[], None]) -> list[str]:
    """Run functions in a thread each; what they raised."""
    wrong: list[str] = []

    def guarded(work):
        try:
            work()
        except Exception as err:
            wrong.append(f"{type(err).__name__}: {err}")

    threads = [threading.Thread(target=guarded, args=(work,)) for work in works]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # threads come between each other's lines
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    finally:
        sys.setswitchinterval(interval)
    assert not any(thread.is_alive() for thread in threads), "a thread waits for ever"
    return wrong


def compare(what: str, call: Callable[[], object], wanted) -> None:
    assert bits(call()) == wanted, f"{what} gave other bits beside other threads"


def test_threads_on_one_model_get_the_bits_of_one_thread_alone(model, tried):
    wanted = {name: bits(call(model)) for name, call in CALLS.items()}

    def work(first: int):
        names = list(CALLS)
        for name in names[first:] + names[:first]:
            compare(name, lambda: CALLS[name](model), wanted[name])
            tried("calls in threads that share a model")

    assert not at_once(*(lambda first=first: work(first) for first in (0, 4, 9)))
    compare("afterwards", lambda: CALLS["run"](model), wanted["run"])


def test_two_models_in_two_threads_do_not_disturb_each_other(tried):
    with load("gpt2") as a, load("gemma2", isolated=True) as b, load("mixtral", flash_attn=False) as c:
        wanted = {(m, name): bits(CALLS[name](m)) for m in (a, b, c) for name in CALLS}

        def work(m):
            for name in CALLS:
                compare(name, lambda: CALLS[name](m), wanted[m, name])
                tried("calls in threads with a model each")

        assert not at_once(*(lambda m=m: work(m) for m in (a, b, c)))


def test_a_prefix_that_comes_and_goes_in_another_thread_is_there_or_not(model, tried):
    alone = [bits(model.run("abc", "l_out")), bits(model.generate("abc", 3))]
    with model.prefix(OTHER):
        behind = [bits(model.run("abc", "l_out")), bits(model.generate("abc", 3))]
    stop, refused = threading.Event(), []

    def change():
        try:
            for _ in range(25):
                with model.prefix(OTHER):
                    time.sleep(0.002)
        finally:
            stop.set()

    def use():
        while not stop.is_set():
            for i, call in enumerate((lambda: model.run("abc", "l_out"), lambda: model.generate("abc", 3))):
                tried("calls beside a thread that changes the prefix")
                try:
                    assert bits(call()) in (alone[i], behind[i])
                except interp.RunError as err:
                    assert "prefix was changed" in str(err)
                    refused.append(err)

    assert not at_once(change, use, use)
    compare("afterwards", lambda: model.run("abc", "l_out"), alone[0])


def test_two_threads_with_a_prefix_of_their_own_get_one_of_them(model):
    wanted = []
    for tokens in (TOKENS, OTHER):
        with model.prefix(tokens):
            wanted.append(bits(model.run(LONG).logits))
    wanted.append(bits(model.run(LONG).logits))

    def work(tokens):
        for _ in range(10):
            with model.prefix(tokens):
                try:
                    assert bits(model.run(LONG).logits) in wanted
                except interp.RunError as err:
                    assert "prefix was changed" in str(err)

    assert not at_once(lambda: work(TOKENS), lambda: work(OTHER))
    compare("afterwards", lambda: model.run(LONG).logits, wanted[2])


@pytest.mark.parametrize("isolated", [False, True], ids=["", "isolated"])
def test_a_model_closed_by_another_thread_ends_each_call_well_or_in_an_error(isolated, tried):
    """Found by abuse: a text was tokenized by the library while another thread freed the model under it; and a process
    that a close had ended was taken for one that died, and started again."""
    for trial in range(8 if isolated else 30):
        model = load("llama", isolated=isolated)
        wanted, text = bits(model.run(TOKENS).logits), "some long text " * 300
        calls = [
            lambda: bits(model.run(TOKENS).logits) == wanted, lambda: len(model.tokens(text)) > 1000,
            lambda: model.pieces(range(model.n_vocab)), lambda: model.generate(TOKENS, 4).tokens,
            lambda: model.weight("output_norm.weight").shape, lambda: model._meta("general.architecture"),
        ]  # fmt: skip

        def work(call):
            while True:
                tried("calls beside a thread that closes the model")
                try:
                    assert call()
                except interp.RunError as err:
                    assert "closed" in str(err)
                    return

        def close():
            time.sleep(0.002 * (trial % 8))
            model.close()

        assert not at_once(close, *(lambda call=call: work(call) for call in calls))


class Slow:
    """A library whose functions leave room for other threads before their answer is looked at."""

    def __init__(self, lib, *names: str):
        self._lib, self._names = lib, names

    def __getattr__(self, name):
        function = getattr(self._lib, name)
        if name not in self._names:
            return function
        return lambda *args: (function(*args), time.sleep(0.001))[0]


def test_pieces_asked_for_by_two_threads_are_their_own(model, monkeypatch):
    """Found by abuse: the library wrote the text of both tokens to one place."""
    wanted = model.pieces(range(model.n_vocab))
    model.vocab._bytes.clear()
    monkeypatch.setattr(model.vocab, "_lib", Slow(model._lib, "token_to_piece"))
    found = {}

    def ask(tokens):
        found[tokens] = model.pieces(tokens)

    assert not at_once(lambda: ask(range(40, 80)), lambda: ask(range(80, 40, -1)))
    assert all(pieces == [wanted[token] for token in tokens] for tokens, pieces in found.items())


def test_a_prefix_stays_until_a_run_behind_it_is_over(model, monkeypatch):
    """Found by abuse: it could end between a run's look at it and the cache's."""
    prefix, memory = model.prefix(OTHER), model._memory
    wanted = bits(model.run(TOKENS).logits)
    closing = threading.Thread(target=prefix.close)

    def memory_later(*args):
        closing.start()
        closing.join(0.2)
        return memory(*args)

    monkeypatch.setattr(model, "_memory", memory_later)
    assert bits(model.run(TOKENS).logits) == wanted
    closing.join(20)
    assert not prefix.is_in_force


@pytest.mark.parametrize("call", ["run", "generate", "chat"])
def test_a_text_whose_prefix_ends_before_it_runs_is_refused(model, monkeypatch, call):
    """Found by abuse: a text that was to continue a prefix, and so had no begin token, was run without either."""
    prefix, tokens = model.prefix(OTHER), model.vocab.tokens
    monkeypatch.setattr(model, "chat_prompt", lambda messages: messages)

    def tokens_before(text, special=True):
        found = tokens(text, special)
        prefix.close()
        return found

    monkeypatch.setattr(model.vocab, "tokens", tokens_before)
    with pytest.raises(interp.RunError, match="prefix was changed"):
        getattr(model, call)("abc")


def test_a_stream_is_read_by_one_thread_at_a_time(model):
    whole = model.generate(TOKENS, 30)
    pieces: list[str] = []
    refused: list[str] = []
    with model.stream(TOKENS, 30) as stream:

        def read():
            while True:
                try:
                    pieces.append(next(stream))
                except StopIteration:
                    return
                except interp.RunError as err:
                    refused.append(str(err))

        assert not at_once(read, read, read)
    assert stream.generation.tokens == whole.tokens and sorted(pieces) == sorted(p for p in model.stream(TOKENS, 30))
    assert all("one at a time" in text for text in refused)


def test_a_stream_that_reads_itself_is_refused(model):
    with model.stream(TOKENS, 3, edits=interp.edit_host("l_out-1", lambda x: next(stream) and x)) as stream:
        with pytest.raises(interp.RunError, match="being read"):
            next(stream)
    assert model.run(TOKENS).logits.shape == (6, model.n_vocab)


def test_graphs_asked_for_by_two_threads_are_their_own(model):
    """Found by abuse: a run of another thread showed its graph to whoever asked for one."""
    wanted = {n: [node.shape for node in model.graph(LONG[:n]).nodes] for n in (3, 9)}
    stop = threading.Event()

    def ask(n):
        for _ in range(15):
            assert [node.shape for node in model.graph(LONG[:n]).nodes] == wanted[n]

    def both():
        try:
            assert not at_once(lambda: ask(3), lambda: ask(9))
        finally:
            stop.set()

    def run():
        while not stop.is_set():
            model.run(LONG)

    assert not at_once(both, run)
    assert model._graph_functions == []


# Forks


def test_a_fork_is_told_that_the_model_is_not_its_own(model, tried):
    before = bits(model.run(TOKENS).logits)
    run, prefix, path = model.run(TOKENS), model.prefix(OTHER), model.path
    stream = model.stream(TOKENS, 20)
    next(stream)
    calls = {
        **CALLS, "next": lambda m: next(stream), "top": lambda m: run.top(), "weight": lambda m: m.weight("output_norm.weight"),
        "devices": lambda m: m.devices, "sites": lambda m: m.sites(), "chat": lambda m: m.chat("Hello"),
        "prefix": lambda m: m.prefix(TOKENS), "end prefix": lambda m: [m.prefix(None), m.run(TOKENS)],
    }  # fmt: skip
    for name, call in calls.items():
        status, said = forked(lambda: call(model))
        assert status == 0 and FOREIGN in said, f"{name}: {status} {said}"
        tried("calls of a model in a fork")
    for name, quiet in {"close": model.close, "leave": lambda: model.__exit__(), "stream": stream.close, "prefix": prefix.close}.items():
        assert forked(quiet) == (0, "None"), name
        tried("calls of a model in a fork")
    # a model of its own is no matter of the parent's
    status, said = forked(lambda: float(interp.Model(path, n_ctx=64, n_threads=1).run(TOKENS).logits.sum()))
    assert (status, said) == (0, repr(float(run.logits.sum())))
    assert len(list(stream)) > 2
    prefix.close()
    assert bits(model.run(TOKENS).logits) == before


def test_a_fork_in_the_middle_of_another_threads_run_does_not_wait_for_it(model):
    before, reached, go_on = bits(model.run(TOKENS).logits), threading.Event(), threading.Event()

    def hold(x):
        reached.set()
        go_on.wait(60)
        return x

    thread = threading.Thread(target=lambda: model.run(TOKENS, edits=interp.edit_host("l_out-1", hold)))
    thread.start()
    assert reached.wait(60)
    try:
        for call in (CALLS["run"], CALLS["text"], lambda m: m.weight("output_norm.weight"), lambda m: m.prefix(None) or m.run(OTHER)):
            status, said = forked(lambda: call(model))
            assert status == 0 and FOREIGN in said, said
        assert forked(model.close) == (0, "None")
    finally:
        go_on.set()
        thread.join(60)
    assert bits(model.run(TOKENS).logits) == before


def test_a_fork_that_runs_on_is_no_harm_to_a_model_of_two_threads():
    with load("llama", n_threads=2) as model:
        before = bits(model.run(LONG).logits)
        status, said = forked(lambda: float(load("llama", n_threads=2).run(LONG).logits.sum()))
        assert status == 0 and said.startswith(("-", *"0123456789")), said
        assert bits(model.run(LONG).logits) == before
