"""Whatever is asked wrongly ends in an error that names the cause and the next step, and the model still works."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

import interp
import models
from interp import EditError, RunError, SiteError, at, native

N_TOKENS = 6
TOKENS = [11, 4711, 300, 9, 1024, 77]


@pytest.fixture(scope="module")
def gpt2():
    """Learned positions: its context ends at 256 tokens, whatever is asked for."""
    with interp.Model(models.tiny("gpt2"), n_ctx=1024, n_threads=1) as model:
        yield model


@pytest.fixture(autouse=True)
def unharmed(tiny):
    """After whatever a test did to the model, a plain run gives the bits that it gave before."""
    before = tiny.run(TOKENS).logits
    yield
    assert np.array_equal(tiny.run(TOKENS).logits, before), "an error left something behind"


def fails(kind: type[Exception], *words: str):
    """An error of a kind, whose message holds all the words in this order."""
    return pytest.raises(kind, match="(?s)" + ".*".join(words))


# Sites, layers, heads, positions


def test_an_unknown_site_names_the_nearest_ones(tiny):
    with fails(SiteError, "no site 'l_uot'", "nearest: .*l_out", r"model\.sites\(\)"):
        tiny.run(TOKENS, capture="l_uot")
    with fails(SiteError, "no site 'resid_pots'", "resid_post"):
        tiny.run(TOKENS, edits=interp.scale("resid_pots", 0.0))


def test_an_unknown_name_that_resembles_nothing_lists_the_aliases(tiny):
    with fails(SiteError, "no site 'zzzz'", "Aliases: .*resid_post", r"model\.sites\(\)"):
        tiny.run(TOKENS, capture="zzzz")


@pytest.mark.parametrize("given", ["l_out-4", at("l_out", layers=4), at("l_out", layers=-5), at("l_out", layers=2**70), "blocks.9.hook_resid_post"])
def test_a_layer_out_of_range_names_the_range(tiny, given):
    with fails(SiteError, "Layer", "out of range", "0 to 3"):
        tiny.run(TOKENS, capture=given)
    with fails(SiteError, "Layer", "out of range", "0 to 3"):
        tiny.run(TOKENS, edits=interp.scale(given, 0.0))


def test_an_occurrence_that_is_not_there_points_to_the_list(tiny):
    with fails(SiteError, "no occurrence #7", r"model\.sites\(\)"):
        tiny.run(TOKENS, capture="l_out-1#7")


@pytest.mark.parametrize("layer", [4, -5, 2**70])
def test_every_argument_that_is_a_layer_is_checked(tiny, layer):
    resid = np.zeros((N_TOKENS, tiny.n_embd))
    with fails(SiteError, "Layer", "out of range", "0 to 3"):
        tiny.run(TOKENS, stop_after=layer)
    with fails(SiteError, "Layer", "out of range", "0 to 3"):
        tiny.resume(resid, layer, TOKENS)
    for kind in (True, 1.5, "1", [1]):
        with fails(SiteError, "no layer", "integer"):
            tiny.run(TOKENS, stop_after=kind)


@pytest.mark.parametrize("head", [4, -5, 2**31])
@pytest.mark.parametrize("site", ["z", "attn_scores", "q"])
def test_a_head_out_of_range_names_the_range(tiny, site, head):
    selector = at(site, layers=1, heads=head)
    with fails(SiteError, f"Head {head}", "out of range", "heads 0 to 3 in layer 1"):
        tiny.run(TOKENS, capture=selector)
    with fails(SiteError, f"Head {head}", "out of range", "heads 0 to 3 in layer 1"):
        tiny.run(TOKENS, edits=interp.scale(selector, 0.0))


def test_a_head_of_fewer_key_heads_is_out_of_range(tiny):
    with fails(SiteError, "Head 2", "heads 0 to 1"):
        tiny.run(TOKENS, capture=at("k", layers=1, heads=2))


def test_heads_of_a_site_without_heads_name_sites_that_have_them(tiny):
    with fails(SiteError, "l_out-0", "no heads", "z, q, k, v, attn_scores"):
        tiny.run(TOKENS, capture=at("l_out", heads=0))


@pytest.mark.parametrize("position", [N_TOKENS, -N_TOKENS - 1, 2**31, 2**70])
def test_a_position_out_of_range_names_the_length_of_the_prompt(tiny, position):
    for selector in (at("l_out", positions=position), at("attn_scores", queries=[0, position])):
        with fails(SiteError, f"Position {position}", f"{N_TOKENS} tokens"):
            tiny.run(TOKENS, capture=selector)
        with fails(SiteError, f"Position {position}", f"{N_TOKENS} tokens"):
            tiny.run(TOKENS, edits=interp.scale(selector, 0.0))


@pytest.mark.parametrize("given", [[], 1.5, True, [True], [None], "first", {}, [[1]]])
def test_a_selector_of_the_wrong_kind_is_refused_when_it_is_made(given):
    with fails(SiteError, "positions", "give"):
        at("l_out", positions=given)
    with fails(SiteError, "layers|heads"):
        at("l_out", layers=given)


@pytest.mark.parametrize("site", [None, 3, "", 1.5, [], b"l_out"])
def test_a_site_that_is_no_name_is_refused(tiny, site):
    with fails(SiteError, "A site is a name like 'l_out'"):
        interp.scale(site, 0.0)
    with pytest.raises((SiteError, RunError), match="A site is a name|neither str nor At"):
        tiny.run(TOKENS, capture=[site])


def test_one_site_captured_twice_in_different_parts_is_refused(tiny):
    with fails(SiteError, "l_out-1", "captured twice", "once"):
        tiny.run(TOKENS, capture=[at("l_out", 1, positions=0), at("l_out", 1, positions=1)])


def test_heads_may_come_in_any_order_and_twice(tiny):
    """Found by abuse: heads that do not ascend were counted as further rows, and written behind the array."""
    whole = tiny.run(TOKENS, capture=("attn_scores", "z"))
    for heads in ([2, 2, 3], [3, 1], [-1, 0, 3, 0]):
        some = tiny.run(TOKENS, capture=[at("attn_scores", heads=heads), at("z", heads=heads)])
        ascending = sorted({head % tiny.n_head for head in heads})
        for layer in range(tiny.n_layer):
            assert np.allclose(some["attn_scores", layer], whole["attn_scores", layer][ascending], atol=1e-6), (heads, layer)
            assert np.array_equal(some["z", layer], whole["z", layer][:, ascending]), (heads, layer)


def test_what_a_partial_run_does_not_compute_cannot_be_captured_or_edited(tiny):
    """Found by abuse: a tensor before the start of a resumed run was read although nothing had computed it."""
    resid = np.zeros((N_TOKENS, tiny.n_embd))
    for site in ("resid_pre-0", "embd", "inp_pos", "l_out-0", "attn_scores-0"):
        with fails(SiteError, "not computed", "from layer 1 to layer 3"):
            tiny.resume(resid, 1, TOKENS, capture=site)
    with fails(SiteError, "not computed", "from layer 0 to layer 1"):
        tiny.run(TOKENS, capture="final_norm", stop_after=1)
    with fails(RunError, "result_norm", "no tensor of this graph"):
        tiny.run(TOKENS, capture="final_norm", stop_after=3)
    with fails(SiteError, "not computed", "from layer 2 to layer 3"):
        tiny.resume(resid, 2, TOKENS, edits=interp.scale("l_out-1", 0.0))


# Prompts


@pytest.mark.parametrize("prompt", ["", [], ()])
def test_an_empty_prompt_asks_for_a_token(tiny, prompt):
    for call in (tiny.run, tiny.generate):
        with fails(RunError, "empty", "at least one token"):
            call(prompt)


@pytest.mark.parametrize("token", [-1, 49152, 2**31, 2**64])
def test_a_token_that_does_not_exist_names_the_range(tiny, token):
    for call in (tiny.run, tiny.generate, tiny.pieces, tiny.text):
        with fails(RunError, f"Token {token}", "0 to 49151"):
            call([1, token])


@pytest.mark.parametrize("token", [True, 1.0, None, "1", np.float32(1)])
def test_a_token_of_another_kind_is_refused(tiny, token):
    with fails(RunError, "no token id", "list of integers"):
        tiny.run([1, token])


@pytest.mark.parametrize("prompt", [None, 5, 1.5, True])
def test_a_prompt_of_another_kind_is_refused(tiny, prompt):
    with fails(RunError, "text or a list of token ids"):
        tiny.run(prompt)


def test_a_text_that_is_no_unicode_is_refused(tiny):
    with fails(RunError, "lone surrogate at 3"):
        tiny.run("abc\ud800")


def test_a_prompt_longer_than_the_context_says_how_to_load(tiny):
    with fails(RunError, "257 tokens", "context holds 256", "n_ctx=257"):
        tiny.run([5] * 257)
    assert tiny.run([5] * 256, logits="last").logits.shape == (1, tiny.n_vocab)
    with fails(RunError, "257 tokens", "context holds 256"):
        tiny.generate([5] * 257)
    assert len(tiny.generate([5] * 256, max_tokens=4).tokens) == 1, "no room for a second one"


def test_learned_positions_limit_the_context(gpt2):
    assert gpt2.n_ctx == 256
    with fails(RunError, "257 tokens", "context holds 256"):
        gpt2.run([5] * 257)
    with fails(RunError, "300 tokens", "context holds 256"):
        gpt2.resume(np.zeros((300, gpt2.n_embd)), 1, [5] * 300)
    assert gpt2.run([5] * 256, logits="last").logits.shape == (1, gpt2.n_vocab)
    assert gpt2.unembed(np.ones((300, gpt2.n_embd))).shape == (300, gpt2.n_vocab), "the head has no positions"


def test_a_context_smaller_than_the_list_of_sites_needs_still_runs():
    with interp.Model(models.tiny("llama"), n_ctx=2, n_threads=1) as model:
        assert model.run([1, 2], capture="l_out")["l_out"].shape == (4, 2, 64)
        with fails(RunError, "3 tokens", "context holds 2"):
            model.run([1, 2, 3])


# Edits


@pytest.mark.parametrize("fn", [lambda x: x[0], lambda x: x.concat(x), lambda x: x[:, :32], lambda x: x.sum(), lambda x: x.reshape(-1)])
def test_an_edit_of_another_shape_names_both_shapes(tiny, fn):
    with fails(EditError, "l_out-1", "returned shape", r"keep the shape \(6, 64\)"):
        tiny.run(TOKENS, edits=interp.edit("l_out-1", fn))


@pytest.mark.parametrize("value", [None, 1.5, np.zeros((N_TOKENS, 64), np.float32), "x", True, [1.0]])
def test_an_edit_that_returns_no_tensor_says_what_it_returned(tiny, value):
    with fails(EditError, "l_out-1", f"returned {type(value).__name__}", r"tensor of shape \(6, 64\)"):
        tiny.run(TOKENS, edits=interp.edit("l_out-1", lambda x: value))


def test_a_tensor_of_another_edit_or_run_is_refused(tiny):
    kept = []

    def keep(x):
        kept.append(x)
        return x * 2.0

    def use(x):
        return kept[0] + x

    edits = [interp.edit("l_out-1", keep), interp.edit("l_out-2", use)]
    for _ in range(2):
        with pytest.raises(EditError, match="(?s)(edit that has returned|another edit|different edits)"):
            tiny.run(TOKENS, edits=edits)
    kept[1:] = []
    for fn in (use, lambda x: kept[0], lambda x: x + kept[0], lambda x: x.concat(kept[0], 0)):
        with pytest.raises(EditError, match="(?s)(edit that has returned|another edit|different edits)"):
            tiny.run(TOKENS, edits=interp.edit("l_out-1", fn))
    with fails(EditError, "edit that has returned", "capture the site"):
        kept[0] + 1.0


def test_an_exception_in_an_edit_is_the_cause_of_the_error(tiny):
    def broken(x):
        return {}["nothing"]

    for call in (tiny.run, tiny.generate):
        with fails(EditError, "raised KeyError: 'nothing'") as caught:
            call(TOKENS, edits=interp.edit("l_out-1", broken))
        assert isinstance(caught.value.__cause__, KeyError)
        assert any(entry.name == "broken" for entry in caught.traceback) or "broken" in str(caught.value.__cause__.__traceback__.tb_next.tb_frame) or caught.value.__cause__.__traceback__ is not None


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_an_interrupt_in_an_edit_passes_through_as_itself(tiny, kind):
    def interrupted(x):
        raise kind

    with pytest.raises(kind):
        tiny.run(TOKENS, edits=interp.edit("l_out-1", interrupted))


def test_a_comparison_in_an_edit_is_refused(tiny):
    with fails(EditError, "no values while the graph is built", "if"):
        tiny.run(TOKENS, edits=interp.edit("l_out-1", lambda x: x if x else x * 2.0))
    with fails(EditError, "no values while the graph is built"):
        tiny.run(TOKENS, edits=interp.edit("l_out-1", lambda x: np.asarray(x)))


BAD_EXPRESSIONS = {
    "do not fit": lambda x: x + np.zeros(63, np.float32),
    "cannot be multiplied": lambda x: x @ np.zeros((63, 64), np.float32),
    "cannot be reshaped": lambda x: x.reshape(5, 64),
    "no order of the 2 axes": lambda x: x.transpose(0, 0),
    "out of range for an axis of length 6": lambda x: x[6],
    "only slices with step 1": lambda x: x[::2],
    "too many axes": lambda x: x[0, 0, 0],
    "cannot be joined along axis 2": lambda x: x.concat(x, 2),
    "cannot be joined": lambda x: x.concat(x[:, :3], 0),
    "cannot be expanded": lambda x: x.expand(6, 128),
    "at most 4 dimensions": lambda x: x + np.zeros((1, 1, 1, 6, 64), np.float32),
    "is empty": lambda x: x + np.zeros((0, 64), np.float32),
    "not a finite number": lambda x: x * float("inf"),
    "Division by zero": lambda x: x / 0.0,
    "no array of numbers": lambda x: x + "a",
    "lower bound": lambda x: x.clamp(1.0, -1.0),
    "epsilon": lambda x: x.norm(-1.0),
    r"Only \*\* 2": lambda x: x**3,
    "cannot index": lambda x: x[None],
    "is no shape": lambda x: x.reshape(1.5, 2),
}


@pytest.mark.parametrize("words", BAD_EXPRESSIONS)
def test_an_expression_that_cannot_be_is_refused_with_its_reason(tiny, words):
    with fails(EditError, words):
        tiny.run(TOKENS, edits=interp.edit("l_out-1", BAD_EXPRESSIONS[words]))


def test_numbers_out_of_range_are_computed_and_harm_no_later_run(tiny):
    """Found by abuse: infinities stayed in the KV cache, where a later run multiplied them by a weight of zero."""
    for value in (np.inf, -np.inf, np.nan, 1e38):
        for site in ("l_out-0", "k-1", "v-1", "attn_logits-1"):
            bad = np.full(1, value, np.float32)
            run = tiny.run([5] * 40, edits=interp.replace(site, bad))
            assert run.logits.shape == (40, tiny.n_vocab)
            tiny.resume(np.full((40, tiny.n_embd), value), 1, [5] * 40)
        # `unharmed` looks again at the end; here each value by itself
        assert np.isfinite(tiny.run(TOKENS).logits).all(), value


def test_generation_from_logits_that_are_no_numbers_is_an_error(tiny):
    for temperature in (0.0, 1.0):
        with fails(RunError, "No token can be chosen", "not finite", "edit"):
            tiny.generate(TOKENS, edits=interp.replace("l_out-3", np.nan), temperature=temperature)


def test_an_edit_that_reaches_nothing_is_an_error(tiny):
    """A later edit that drops what it is given leaves the earlier one without effect."""
    dropped = interp.edit("l_out-1", lambda x: x * 2.0)
    replaced = interp.replace("l_out-1", 1.0)
    with fails(EditError, "l_out-1", "no effect"):
        tiny.run(TOKENS, edits=[dropped, replaced])


@pytest.mark.parametrize("given", [None, 3, "l_out", {}, [None], [3], ["l_out"], [[]]])
def test_edits_and_captures_of_another_kind_are_refused(tiny, given):
    if given is None or given == {}:
        assert tiny.run(TOKENS, edits=[]).logits is not None
    else:
        with pytest.raises(interp.InterpError, match="no edit|neither Edit"):
            tiny.run(TOKENS, edits=given)


def test_things_that_are_no_functions_are_refused_as_edits():
    with fails(EditError, "function", "int"):
        interp.edit("l_out", 3)


@pytest.mark.parametrize("value", ["a", [[1], [1, 2]], object()])
def test_values_that_are_no_numbers_are_refused(tiny, value):
    with fails(EditError, "no array of numbers"):
        interp.replace("l_out", value)
    with fails(EditError, "no array of numbers"):
        tiny.run(TOKENS, edits=interp.add("l_out-1", value))


@pytest.mark.parametrize("site", ["inp_tokens", "inp_pos"])
def test_an_input_of_the_graph_cannot_be_edited(tiny, site):
    with fails(EditError, site, "input of the graph", "'embd'"):
        tiny.run(TOKENS, edits=interp.edit(site, lambda x: x))


def test_a_run_inside_an_edit_is_refused(tiny):
    def nested(x):
        tiny.run(TOKENS)
        return x

    for call in (lambda x: tiny.run(TOKENS), lambda x: tiny.generate(TOKENS), lambda x: tiny.unembed(np.zeros(64))):
        with fails(RunError, "An edit cannot run the model", "before the run"):
            tiny.run(TOKENS, edits=interp.edit("l_out-1", call))


# Other arguments


def test_arguments_of_run_and_generate_are_checked(tiny):
    with fails(RunError, "logits='first'", '"all", "last" or None'):
        tiny.run(TOKENS, logits="first")
    for name, value in {"max_tokens": 0, "temperature": -1.0, "seed": -1}.items():
        with fails(RunError, f"{name}={value}", "at least"):
            tiny.generate(TOKENS, **{name: value})
    for name, value in {"max_tokens": "3", "temperature": "hot", "seed": 1.5}.items():
        with fails(RunError, f"{name}={value!r}", "give"):
            tiny.generate(TOKENS, **{name: value})
    with fails(RunError, "2 lists of edits for 1 prompts"):
        tiny.run([TOKENS], edits=[[], []])


def test_residuals_of_another_shape_are_refused(tiny):
    for shape in ((), (63,), (0, 64), (2, 65)):
        with fails(RunError, r"\(…, 64\)"):
            tiny.unembed(np.zeros(shape))
    with fails(RunError, "shape", r"\(6, 64\)"):
        tiny.resume(np.zeros((5, 64)), 1, TOKENS)
    with fails(RunError, "Layer 0", "replace"):
        tiny.resume(np.zeros((6, 64)), 0, TOKENS)


def test_a_closed_model_says_so():
    model = interp.Model(models.tiny("llama"), n_ctx=32, n_threads=1)
    run = model.run(TOKENS)
    model.close()
    model.close()
    calls = [
        lambda: model.run(TOKENS), lambda: model.generate(TOKENS), lambda: model.unembed(np.zeros(64)), lambda: model.tokens("a"),
        lambda: model.pieces([1]), lambda: model.text([1]), lambda: model.sites(), lambda: run.top(),
    ]  # fmt: skip
    for call in calls:
        with fails(RunError, "closed"):
            call()


# Several models, several threads


def test_two_models_at_once_do_not_disturb_each_other(tiny, gpt2):
    capture, edit = ("l_out", "attn_scores"), interp.scale("l_out-1", 0.5)
    alone = [m.run(TOKENS, capture=capture, edits=edit) for m in (tiny, gpt2)]
    generated = [m.generate(TOKENS, max_tokens=3).tokens for m in (tiny, gpt2)]
    for _ in range(2):
        for m, expected, tokens in zip((tiny, gpt2), alone, generated):
            found = m.run(TOKENS, capture=capture, edits=edit)
            assert np.array_equal(found.logits, expected.logits)
            for site in capture:
                assert np.array_equal(found[site], expected[site])
            assert m.generate(TOKENS, max_tokens=3).tokens == tokens


def test_an_edit_may_run_another_model(tiny, gpt2):
    vector = gpt2.run(TOKENS, capture="l_out")["l_out", 1]
    expected = tiny.run(TOKENS, edits=interp.add("l_out-1", vector)).logits
    nested = interp.edit("l_out-1", lambda x: x + gpt2.run(TOKENS, capture="l_out")["l_out", 1])
    assert np.array_equal(tiny.run(TOKENS, edits=nested).logits, expected)


def test_threads_on_one_model_wait_for_each_other(tiny):
    factors = [0.0, 0.5, 2.0, 3.0]
    expected = {f: tiny.run(TOKENS, edits=interp.scale("l_out-1", f)).logits for f in factors}
    wrong: list = []

    def slowly(x, factor):
        time.sleep(0.005)  # long enough for the other threads to come in between, were they let
        return x * factor

    def work(factor):
        for _ in range(3):
            try:
                found = tiny.run(TOKENS, edits=interp.edit("l_out-1", lambda x: slowly(x, factor))).logits
                if not np.array_equal(found, expected[factor]):
                    wrong.append(f"other logits with {factor}")
            except Exception as err:
                wrong.append(repr(err))

    threads = [threading.Thread(target=work, args=(factor,)) for factor in factors]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# What llama.cpp says of them


def test_of_many_errors_the_log_keeps_the_last_lines_whole(tiny):
    """32 KB at most: a long session with errors holds no more of it than a short one."""

    def fail(_x):
        raise ValueError

    library, size = native.load(), 32 * 1024
    library.take_log()
    said = []
    for n in (1, size // 100):
        for _ in range(n):
            with pytest.raises(EditError):
                tiny.run(TOKENS, edits=interp.edit("l_out-0", fail))
        said.append(library.take_log())
    once, kept = said
    assert set(kept) == set(once) and kept[-1] == once[-1]
    assert size / 2 - 200 < sum(len(line) + 1 for line in kept) <= size
