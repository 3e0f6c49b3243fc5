"""What ``interp.attach`` does to a ``llama_cpp.Llama``: run as a child process, because a process loads one libllama.

    python attach_child.py NAME MODEL
    python attach_child.py plain MODEL OUT.npz      without interp at all: what a Llama does that nobody looks into

NAME is one of the functions ``check_…``. Exit code 0: it holds.
"""

from __future__ import annotations

import gc
import os
import sys

import numpy as np

TOKENS = [504, 414, 46682, 18669, 314, 3807, 282]
MORE = [260, 2240, 282, 7042]
N_CTX = 256


def make(path: str, **options):
    import llama_cpp

    given = {"n_ctx": N_CTX, "n_batch": N_CTX, "n_threads": 1, "n_threads_batch": 1, "logits_all": True, "seed": 1}
    return llama_cpp.Llama(path, verbose=False, **given | options)


def conversation(llm, between=lambda: None) -> dict[str, np.ndarray]:
    """A conversation in several steps, with a chance for others in between; all that it computes."""
    llm.reset()
    llm._sampler = None  # a completion leaves its own behind
    between()
    llm.eval(TOKENS)
    between()
    sampled = [llm.sample(temp=0.0)]
    for _ in range(4):
        llm.eval(sampled[-1:])
        between()
        sampled.append(llm.sample(temp=0.0))
    scores = llm.scores[: llm.n_tokens].copy()
    between()
    text = llm.create_completion(TOKENS + MORE, max_tokens=6, temperature=0.8, seed=7)["choices"][0]["text"]
    more = llm.scores[: llm.n_tokens].copy()
    return {"sampled": np.array(sampled), "scores": scores, "more": more, "text": np.array(text)}


def check_runs_equal_those_of_a_model(path: str) -> None:
    import interp

    for flash in (False, True):
        llm = make(path, flash_attn=flash)
        own = interp.Model(path, n_ctx=N_CTX, flash_attn=flash, n_threads=1)
        attached = interp.attach(llm)
        assert (attached.n_layer, attached.arch, attached.n_ctx) == (own.n_layer, own.arch, own.n_ctx)
        assert isinstance(attached, interp.Model) and attached.tokens("Hello you") == own.tokens("Hello you")
        sites = ("l_out", "z", "attn_scores", "mlp_out")
        edits = [interp.scale(interp.at("l_out", 1, positions=[2]), 0.5), interp.scale(interp.at("z", 2, heads=1), 0.0)]
        for given in ({}, {"edits": edits}, {"stop_after": 1}):
            a, b = (m.run(TOKENS, capture=sites, **given) for m in (attached, own))
            assert (a.logits is None) == (b.logits is None)
            assert a.logits is None or np.array_equal(a.logits, b.logits)
            assert all(np.array_equal(a[str(key)], b[str(key)]) for key in b.keys) and a.keys == b.keys
        assert not np.array_equal(attached.run(TOKENS, edits=edits).logits, attached.run(TOKENS).logits)
        resid = own.run(TOKENS, capture="l_out")["l_out", 1]
        assert np.array_equal(attached.resume(resid, 2, TOKENS).logits, own.resume(resid, 2, TOKENS).logits)
        assert np.array_equal(attached.unembed(resid), own.unembed(resid))
        assert attached.generate(TOKENS, 6).tokens == own.generate(TOKENS, 6).tokens
        with attached.prefix(TOKENS), own.prefix(TOKENS):
            for _ in range(2):
                assert np.array_equal(attached.run(MORE).logits, own.run(MORE).logits)
                attached.run(MORE, edits=interp.scale("l_out-0", 1e38))
        attached.detach()
        llm.close()


def check_the_llama_goes_on_as_if_nobody_had_looked(path: str) -> None:
    import interp

    expected = dict(np.load(sys.argv[3]))
    for flash in (False, True):
        llm = make(path, flash_attn=flash)
        model = interp.attach(llm)

        def look():
            model.run(MORE * 4, capture=("l_out", "attn_scores"))
            model.run(TOKENS, edits=interp.scale("l_out-0", 1e38), logits="last")
            model.run(TOKENS, capture="l_out", stop_after=1)
            model.generate(MORE, 3)
            for _ in model.stream(MORE, 3):
                break
            with model.prefix(MORE):
                model.run(TOKENS)
            metric = interp.logit_diff(MORE[0], TOKENS[0])
            sweep = interp.patch_sweep(model, TOKENS, TOKENS[:-1] + MORE[:1], metric=metric, layers=[0, 2])
            assert sweep.complete and np.isfinite(sweep.values).all()

        for between in (lambda: None, look):
            same(conversation(llm, between), expected, flash)
        model.detach()
        same(conversation(llm), expected, flash)
        # attached in the middle, and gone again
        llm.reset()
        llm.eval(TOKENS)
        with interp.attach(llm) as other:
            other.run(MORE)
        assert llm.sample(temp=0.0) == expected[f"sampled {int(flash)}"][0]
        llm.eval(MORE)
        fresh = make(path, flash_attn=flash)
        fresh.eval(TOKENS)
        fresh.eval(MORE)
        assert np.array_equal(llm.scores[: llm.n_tokens], fresh.scores[: fresh.n_tokens])


def same(found: dict, expected: dict, flash: bool) -> None:
    for name, value in found.items():
        assert np.array_equal(value, expected[f"{name} {int(flash)}"]), name


def plain(path: str, out: str) -> None:
    results = {}
    for flash in (False, True):
        results |= {f"{name} {int(flash)}": value for name, value in conversation(make(path, flash_attn=flash)).items()}
    assert "interp" not in sys.modules
    np.savez(out, **results)


def check_a_prompt_longer_than_a_batch_is_run_in_pieces(path: str) -> None:
    import interp

    llm = make(path, n_batch=16, logits_all=False)
    own = interp.Model(path, n_ctx=N_CTX, flash_attn=False, n_threads=1)
    prompt = (TOKENS + MORE) * 4
    with interp.attach(llm) as model:
        a, b = (m.run(prompt, capture=("l_out", "attn_scores")) for m in (model, own))
        assert a.logits.shape == b.logits.shape and np.allclose(a.logits, b.logits, atol=1e-3)
        for site in ("l_out", "attn_scores"):
            assert a[site].shape == b[site].shape and np.allclose(a[site], b[site], atol=1e-3), site
        assert np.allclose(model.run(prompt, logits="last", capture="l_out").logits, b.logits[-1:], atol=1e-3)
        assert model.generate(prompt, 3).tokens == own.generate(prompt, 3).tokens
        resid = b["l_out", 1]
        assert np.allclose(model.resume(resid, 2, prompt).logits, own.resume(resid, 2, prompt).logits, atol=1e-3)
        assert np.allclose(model.unembed(b["l_out", -1]), b.logits, atol=1e-3)
        with model.prefix(prompt), own.prefix(prompt):
            assert np.allclose(model.run(prompt).logits, own.run(prompt).logits, atol=1e-3)
        refused(lambda: model.run(prompt * 7), interp.RunError, "context holds 256")


def check_a_sliding_window_that_forgets_keys_refuses_to_show_them(path: str) -> None:
    import interp

    own = interp.Model(path, n_ctx=1024, flash_attn=False, n_threads=1)
    prompt = (TOKENS * 100)[:700]
    b = own.run(prompt, capture=("l_out", "attn_scores"))
    with interp.attach(make(path, n_ctx=1024, n_batch=128, swa_full=False)) as model:
        assert np.allclose(model.run(prompt, capture="l_out")["l_out"], b["l_out"], atol=1e-2)
        short = prompt[:20]
        assert model.run(short, capture="attn_scores")["attn_scores"].shape[-1] == 20
        refused(lambda: model.run(prompt, capture="attn_scores"), interp.RunError, "swa_full=True")
    with interp.attach(make(path, n_ctx=1024, n_batch=128)) as model:
        assert np.allclose(model.run(prompt, capture="attn_scores")["attn_scores"], b["attn_scores"], atol=1e-3)


def check_whoever_goes_first_nothing_crashes(path: str) -> None:
    import interp

    llm = make(path)
    model = interp.attach(llm)
    expected = model.run(TOKENS).logits
    del llm  # the model holds it
    gc.collect()
    assert np.array_equal(model.run(TOKENS).logits, expected)
    model.close()
    model.close()
    del model
    gc.collect()

    llm = make(path)
    model = interp.attach(llm)
    llm.close()
    for call in (lambda: model.run(TOKENS), lambda: model.tokens("a"), lambda: model.prefix(TOKENS)):
        refused(call, interp.RunError, "its Llama was closed")
    model.detach()
    refused(lambda: interp.attach(llm), interp.RunError, "closed")

    llm = make(path)
    model = interp.attach(llm)
    stream = model.stream(TOKENS, 5)
    next(stream)
    llm.close()
    assert list(stream) == []

    llm = make(path)
    model = interp.attach(llm)
    llm.cycle = model
    del llm, model
    gc.collect()

    llm = make(path)
    model = interp.attach(llm)
    del model
    gc.collect()
    again = interp.attach(llm)
    refused(lambda: interp.attach(llm), interp.RunError, "a handle already.*detach")
    assert np.array_equal(again.run(TOKENS).logits, expected)
    interp.attach(make(path))  # both dropped at once
    # left open at exit


def check_a_state_moves_between_an_attached_and_an_own_model(path: str) -> None:
    import tempfile

    import interp

    own = interp.Model(path, n_ctx=N_CTX, flash_attn=False, n_threads=1)
    with interp.attach(make(path)) as model, tempfile.TemporaryDirectory() as folder:
        with model.prefix(TOKENS):
            expected = model.run(MORE).logits
            model.save_state(f"{folder}/state.safetensors")
        with own.load_state(f"{folder}/state.safetensors"):
            assert np.array_equal(own.run(MORE).logits, expected)
            own.save_state(f"{folder}/back.safetensors")
        with model.load_state(f"{folder}/back.safetensors"):
            assert np.array_equal(model.run(MORE).logits, expected)


def check_what_is_no_llama_is_refused(path: str) -> None:
    import interp

    for given in (None, 3, path):
        refused(lambda: interp.attach(given), interp.RunError, "takes a llama_cpp.Llama")
    refused(lambda: interp.attach(make(path, embedding=True)), interp.RunError, "embedding=True")
    refused(lambda: interp.attach(make(path, n_batch=8, logits_all=False)), interp.RunError, "n_batch")


def check_another_library_is_refused(path: str) -> None:
    """Runs with LLAMA_CPP_LIB_PATH on a copy of the library."""
    import interp

    llm = make(path)
    refused(lambda: interp.attach(llm), interp.LibraryError, "use_with_llama_cpp.*before.*LLAMA_CPP_LIB_PATH=")
    refused(interp.use_with_llama_cpp, interp.LibraryError, "Start Python anew")


def refused(call, kind: type, what: str) -> None:
    import re

    try:
        call()
    except kind as err:
        assert re.search(what, str(err)), str(err)
    else:
        raise AssertionError(f"no {kind.__name__}")


if __name__ == "__main__":
    name, model_path = sys.argv[1:3]
    if name == "plain":
        plain(model_path, sys.argv[3])
    else:
        if "LLAMA_CPP_LIB_PATH" not in os.environ:
            import interp

            interp.use_with_llama_cpp()
        globals()[name](model_path)
