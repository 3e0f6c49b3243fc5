"""Read and change what a transformers decoder holds, at sites as `interp` names them.

The changes are functions of numpy arrays, so that only this file touches torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

#: from what a site holds to what takes its place: (n_tokens, n_embd), at `z` (n_tokens, n_head, d_head)
Change = Callable[[np.ndarray], np.ndarray]


@contextmanager
def changed(model: Any, site: str, layer: int, change: Change) -> Iterator[None]:
    """Within the context, put ``change`` of what a site holds in its place.

    Args:
        model: as `make.load_model` gives it, run by `passed`.
        site: `resid_pre`, `resid_post`, `attn_out`, `mlp_out` or `z`.
        change: takes a copy, which it may write to and return.
    """
    block = model.get_decoder().layers[layer]

    def apply(x):
        held = x[0].numpy().copy()
        if site == "z":
            held = held.reshape(len(held), model.config.num_attention_heads, -1)
        return x.new_tensor(change(held)).reshape(x.shape)

    def before(_module, inputs):
        return apply(inputs[0]), *inputs[1:]

    def after(_module, _inputs, output):
        return (apply(output[0]), *output[1:]) if isinstance(output, tuple) else apply(output)

    handle = {
        "resid_pre": lambda: block.register_forward_pre_hook(before),
        "resid_post": lambda: block.register_forward_hook(after),
        "attn_out": lambda: block.self_attn.register_forward_hook(after),
        "mlp_out": lambda: block.mlp.register_forward_hook(after),
        "z": lambda: block.self_attn.o_proj.register_forward_pre_hook(before),
    }[site]()
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def read(model: Any, site: str, layers: Iterable[int]) -> Iterator[dict[int, np.ndarray]]:
    """A dictionary that a pass within the context fills: layer -> what the site holds."""
    held: dict[int, np.ndarray] = {}

    def keep(layer: int) -> Change:
        def change(x: np.ndarray) -> np.ndarray:
            held[layer] = x
            return x

        return change

    with ExitStack() as stack:
        for layer in layers:
            stack.enter_context(changed(model, site, layer, keep(layer)))
        yield held


@contextmanager
def unseen(
    model: Any, layer: int, queries: Sequence[int], keys: Sequence[int], heads: Sequence[int] | None = None
) -> Iterator[None]:
    """Within the context, the mask hides these keys from these queries, in these heads (None: all)."""
    n_head = model.config.num_attention_heads
    where = np.ix_(range(n_head) if heads is None else heads, queries, keys)

    def before(_module, inputs, kwargs):
        mask = kwargs["attention_mask"].repeat(1, n_head, 1, 1)
        mask[0][where] = float(np.finfo(np.float32).min)
        return inputs, {**kwargs, "attention_mask": mask}

    handle = model.get_decoder().layers[layer].self_attn.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def passed(model: Any, tokens: list[int], **options: Any) -> Any:
    """What transformers returns for one pass over a prompt."""
    import torch

    with torch.no_grad():
        return model(torch.tensor([tokens]), use_cache=False, **options)
