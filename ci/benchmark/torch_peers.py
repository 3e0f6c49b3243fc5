"""Cases that run on torch: transformers, TransformerLens and nnsight, all on the GGUF that transformers loads.

Each function loads a model in the process that calls it and returns ``{case: function}``. Nothing is downloaded: the
other two take the loaded transformers model, and the tokenizer comes from the GGUF as well.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from .libraries import Cases, named
from .prompts import LAYER, N_BEGIN, N_GENERATE, prompt, vector


def transformers(path: str, threads: int, subject: str) -> Cases:
    """transformers with eager attention, which alone gives the attention patterns."""
    torch, model, _ = _load(path, threads)
    tokens, begin, added = _inputs(torch, model.config.hidden_size)

    def passed(**options: Any) -> Any:
        with torch.no_grad():
            return model(tokens, use_cache=False, **options)

    def generate(**options: Any) -> Any:
        return model.generate(begin, **_greedy(), **options)

    def steered() -> Any:
        hook = model.model.layers[LAYER].register_forward_hook(lambda _module, _inputs, output: output + added)
        try:
            return generate()
        finally:
            hook.remove()

    return named(
        subject,
        prefill=passed,
        prefill_resid=lambda: passed(output_hidden_states=True),
        prefill_attention=lambda: passed(output_attentions=True),
        generate=generate,
        generate_resid=lambda: generate(output_hidden_states=True, return_dict_in_generate=True),
        generate_steer=steered,
    )


def transformer_lens(path: str, threads: int, subject: str) -> Cases:
    """TransformerLens' bridge as it boots: the weights as they are, which is also its quicker mode."""
    from reference import sweeps

    torch, hf, tokenizer = _load(path, threads)
    model = sweeps.bridge(hf, tokenizer)
    tokens, begin, added = _inputs(torch, hf.config.hidden_size)

    def cached(hook: str) -> Any:
        with torch.no_grad():
            return model.run_with_cache(tokens, names_filter=lambda name: name.endswith(hook))

    def passed() -> Any:
        with torch.no_grad():
            return model(tokens, return_type="logits")

    def generate() -> Any:
        with torch.no_grad():
            return model.generate(
                begin, max_new_tokens=N_GENERATE, do_sample=False, stop_at_eos=False, verbose=False,
                return_type="tokens",
            )

    def hooked(hooks: list) -> Any:
        with model.hooks(fwd_hooks=hooks):
            return generate()

    def reading() -> list:
        held: list = []
        keep = [(f"blocks.{layer}.hook_resid_post", lambda x, hook: held.append(x.clone()))
                for layer in range(hf.config.num_hidden_layers)]
        hooked(keep)
        return held

    def steered() -> Any:
        return hooked([(f"blocks.{LAYER}.hook_resid_post", lambda x, hook: x + added)])

    pair = sweeps.pair(tokenizer)
    return named(
        subject,
        prefill=passed,
        prefill_resid=lambda: cached("hook_resid_post"),
        prefill_attention=lambda: cached("hook_pattern"),
        generate=generate,
        generate_resid=reading,
        generate_steer=steered,
        sweep_resid=lambda: sweeps.theirs(model, "resid_pre", pair),
        sweep_z=lambda: sweeps.theirs(model, "z", pair),
    )


def nnsight(path: str, threads: int, subject: str) -> Cases:
    """nnsight's traces around the same transformers model."""
    import nnsight as library

    torch, hf, tokenizer = _load(path, threads)
    model = library.TransformersModel(hf, task="text-generation", tokenizer=tokenizer)
    tokens, begin, added = _inputs(torch, hf.config.hidden_size)
    greedy = _greedy()

    # A trace runs the source of its block elsewhere, so each stands in a function of its own and saves what it made.

    def passed() -> Any:
        with torch.no_grad():
            with model.trace(tokens):
                logits = model.output.logits.save()
        return logits

    def residual() -> Any:
        with torch.no_grad():
            with model.trace(tokens):
                held = library.save([])
                for layer in model.model.layers:
                    held.append(layer.output)
        return held

    def attention() -> Any:
        with torch.no_grad():
            with model.trace(tokens):
                held = library.save([])
                for layer in model.model.layers:
                    held.append(layer.self_attn.output[1])
        return held

    def generate() -> Any:
        with model.generate(begin, **greedy) as tracer:
            result = tracer.result.save()
        return result

    def reading() -> Any:
        with model.generate(begin, **greedy) as tracer:
            held = library.save([])
            for _step in tracer.iter[:N_GENERATE]:
                for layer in model.model.layers:
                    held.append(layer.output)
        return held

    def steered() -> Any:
        with model.generate(begin, **greedy) as tracer:
            for _step in tracer.iter[:N_GENERATE]:
                model.model.layers[LAYER].output[:] += added
            result = tracer.result.save()
        return result

    return named(
        subject,
        prefill=passed,
        prefill_resid=residual,
        prefill_attention=attention,
        generate=generate,
        generate_resid=reading,
        generate_steer=steered,
    )


def _load(path: str, threads: int) -> tuple[Any, Any, Any]:
    """torch, and transformers' model and tokenizer of the GGUF."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    import torch
    from reference.make import load_model
    from transformers import AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(threads)
    file = Path(path)
    return torch, load_model(file), AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)


def _inputs(torch: Any, n_embd: int) -> tuple[Any, Any, Any]:
    tokens = torch.tensor([prompt()])
    return tokens, tokens[:, :N_BEGIN], torch.from_numpy(vector(n_embd))


def _greedy() -> dict[str, Any]:
    """Options of transformers' generate: the likeliest token each time, and all of them."""
    return {"max_new_tokens": N_GENERATE, "min_new_tokens": N_GENERATE, "do_sample": False}
