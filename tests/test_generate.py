"""Generation: the same text however it is asked for, whole characters, and a model that stays usable."""

from __future__ import annotations

import gc
import threading

import numpy as np
import pytest

import interp
from conftest import PROMPT
from interp import RunError
from interp.generate import Options, Sampler, Text


class Bytes:
    """A vocabulary in which a token is a byte."""

    def bytes_of(self, token: int) -> bytes:
        return bytes([token])


def fed(data: bytes, stop=()) -> tuple[list[str], Text]:
    text = Text(Bytes(), tuple(stop))
    pieces = []
    for byte in data:
        pieces.append(text.add(byte))
        if text.stopped:
            break
    return [*pieces, text.end()], text


# // choosing


def test_the_same_seed_gives_the_same_text_and_another_seed_another(tiny):
    made = [tiny.generate(PROMPT, 12, temperature=1.5, seed=seed).tokens for seed in (1, 1, 2)]
    assert made[0] == made[1] != made[2]


def test_only_the_likeliest_token_equals_greedy(tiny):
    greedy = tiny.generate(PROMPT, 8)
    assert tiny.generate(PROMPT, 8, temperature=2.0, seed=3, top_k=1).tokens == greedy.tokens
    assert tiny.generate(PROMPT, 8, temperature=2.0, seed=3, top_p=1e-9).tokens == greedy.tokens


def test_draws_stay_within_top_k_and_top_p():
    logits = np.log(np.array([0.05, 0.5, 0.3, 0.15], np.float32))

    def drawn(**options) -> set[int]:
        choose = Sampler(Options.checked(temperature=1.0, **options))
        return {choose(logits) for _ in range(200)}

    assert drawn() == {0, 1, 2, 3}
    assert drawn(top_k=2) == {1, 2}
    assert drawn(top_p=0.7) == {1, 2}
    assert drawn(top_p=0.5) == {1}
    assert drawn(top_k=3, top_p=0.99) == {1, 2, 3}


def test_draws_follow_the_probabilities():
    choose = Sampler(Options.checked(temperature=0.5))
    weights = np.array([1.0, 2.0, 3.0]) ** 2
    counts = np.bincount([choose(np.log([1.0, 2.0, 3.0]).astype(np.float32)) for _ in range(4000)], minlength=3)
    assert np.allclose(counts / 4000, weights / weights.sum(), atol=0.03)


@pytest.mark.parametrize(
    "name, value",
    [("top_k", -1), ("top_k", 1.5), ("top_p", 0.0), ("top_p", 1.5), ("top_p", "all"), ("temperature", float("nan")),
     ("stop", ""), ("stop", [""]), ("stop", [3]), ("stop", 3), ("on_text", "print")],
)  # fmt: skip
def test_options_out_of_range_are_refused(tiny, name, value):
    with pytest.raises(RunError, match=f"{name}=.*give"):
        tiny.generate(PROMPT, **{name: value})
    if name != "on_text":
        with pytest.raises(RunError, match=f"{name}=.*give"):
            tiny.stream(PROMPT, **{name: value})


# // text


@pytest.mark.parametrize("text", ["héllo", "中文字", "a😀b", "e\u0301"])
def test_no_piece_ends_inside_a_character(text):
    pieces, found = fed(text.encode())
    assert "".join(pieces) == found.text == text
    assert "\ufffd" not in "".join(pieces)


def test_bytes_that_are_no_text_are_marked_as_in_the_whole_text():
    for data in (b"a\xffb", b"\xe4\xb8", b"\xe4a"):
        assert "".join(fed(data)[0]) == data.decode(errors="replace")


def test_a_stop_text_ends_the_text_and_no_part_of_it_is_shown():
    pieces, text = fed(b"one END two", ["END"])
    assert text.stopped and text.text == "one " and "".join(pieces) == "one "
    pieces, text = fed(b"one EN two", ["END"])
    assert not text.stopped and "".join(pieces) == "one EN two"
    pieces, text = fed(b"one EN", ["END"])
    assert "".join(pieces) == "one EN", "what was held back is shown at the end"
    assert fed(b"abcabd", ["abd", "cab"])[1].text == "ab"


def test_a_generation_ends_before_a_stop_text(model):
    whole = model.generate(PROMPT, 24)
    stop = whole.text[10:14]
    shown: list[str] = []
    made = model.generate(PROMPT, 24, stop=[stop, "never"], on_text=shown.append)
    assert made.text == whole.text[: whole.text.index(stop)] == "".join(shown)
    assert made.tokens == whole.tokens[: len(made.tokens)]
    assert len(made.run.logits) == len(made.tokens)


def test_pieces_of_a_stream_are_the_text_of_the_generation(model):
    whole = model.generate(PROMPT, 10, capture="l_out")
    stream = model.stream(PROMPT, 10, capture="l_out")
    pieces = list(stream)
    assert len(pieces) > 3 and "".join(pieces) == whole.text == stream.generation.text
    assert stream.generation.tokens == whole.tokens
    assert np.array_equal(stream.generation.run["l_out"], whole.run["l_out"])
    assert stream.generation.run.prompt == PROMPT
    assert list(stream) == [] and stream.generation.text == whole.text


# // a model that stays usable


def test_what_on_text_raises_reaches_the_caller_and_the_model_stays_usable(tiny):
    expected = tiny.run(PROMPT).logits

    def refuse(piece):
        raise KeyError("enough")

    def stop(piece):
        raise StopIteration

    for fn, kind in ((refuse, KeyError), (stop, StopIteration)):
        with pytest.raises(kind):
            tiny.generate(PROMPT, 8, edits=interp.scale("l_out-1", 2.0), on_text=fn)
        assert np.array_equal(tiny.run(PROMPT).logits, expected)


def test_the_model_runs_nothing_while_a_stream_is_open(tiny):
    expected = tiny.run(PROMPT).logits
    with tiny.stream(PROMPT, 8) as stream:
        next(stream)
        for call in (lambda: tiny.run(PROMPT), lambda: tiny.generate(PROMPT), lambda: tiny.prefix(PROMPT)):
            with pytest.raises(RunError, match="stream of this model is still open.*close"):
                call()
        with pytest.raises(RunError, match="not read to its end"):
            stream.generation
    assert np.array_equal(tiny.run(PROMPT).logits, expected)
    with pytest.raises(RunError, match="on_text"):
        tiny.generate(PROMPT, 4, on_text=lambda piece: tiny.run(PROMPT))
    with pytest.raises(RunError, match="An edit cannot run"):
        list(tiny.stream(PROMPT, 4, edits=interp.edit("l_out-1", lambda x: tiny.run(PROMPT))))
    assert np.array_equal(tiny.run(PROMPT).logits, expected)


def test_an_abandoned_stream_lets_go_of_the_model(tiny):
    expected = tiny.run(PROMPT).logits
    for _ in tiny.stream(PROMPT, 8):
        break
    assert np.array_equal(tiny.run(PROMPT).logits, expected)
    stream = tiny.stream(PROMPT, 8)
    next(stream)
    del stream
    assert np.array_equal(tiny.run(PROMPT).logits, expected)
    tiny.stream(PROMPT, 8)  # never started


def test_another_thread_waits_for_the_stream(tiny):
    expected, found = tiny.run(PROMPT).logits, []
    stream = tiny.stream(PROMPT, 6)
    next(stream)
    other = threading.Thread(target=lambda: found.append(tiny.run(PROMPT).logits))
    other.start()
    other.join(0.2)
    assert not found
    list(stream)
    other.join(30)
    assert np.array_equal(found[0], expected)


def test_another_thread_may_read_the_stream_on(tiny):
    whole = tiny.generate(PROMPT, 8)
    stream = tiny.stream(PROMPT, 8, edits=interp.edit("l_out-1", lambda x: x * 1.0))
    pieces = [next(stream)]
    other = threading.Thread(target=lambda: pieces.extend(stream))
    other.start()
    other.join(30)
    assert "".join(pieces) == whole.text
    assert tiny.generate(PROMPT, 8).text == whole.text


def test_closing_a_model_ends_its_stream(tiny):
    with interp.Model(tiny.path, n_ctx=64, n_threads=1) as model:
        stream = model.stream(PROMPT, 20)
        next(stream)
        model.close()
        assert list(stream) == []
        with pytest.raises(RunError, match="closed"):
            list(model.stream(PROMPT))
    model = interp.Model(tiny.path, n_ctx=64, n_threads=1)
    with pytest.raises(RunError, match="cannot close"):
        model.run(PROMPT, edits=interp.edit("l_out-1", lambda x: model.close()))
    with pytest.raises(RunError, match="cannot close"):
        model.generate(PROMPT, on_text=lambda piece: model.close())


def test_the_vocabulary_of_a_closed_model_is_refused(tiny):
    model = interp.Model(tiny.path, n_ctx=64, n_threads=1)
    vocab = model.vocab
    model.close()
    for call in (lambda: vocab.tokens("a"), lambda: vocab.pieces([1]), lambda: vocab.is_end(1)):
        with pytest.raises(RunError, match="closed"):
            call()


def test_a_model_and_its_open_stream_may_be_collected_together(tiny):
    model = interp.Model(tiny.path, n_ctx=64, n_threads=1)
    stream = model.stream(PROMPT, 20)
    next(stream)
    model.cycle = stream
    del model, stream
    gc.collect()


def test_a_generation_ends_where_the_context_does(tiny):
    with interp.Model(tiny.path, n_ctx=20, n_threads=1) as model:
        made = model.generate([5] * 18, max_tokens=10)
        assert len(made.run.tokens) == 20 and len(made.tokens) == 3
