"""A shape in transformers: what each role holds in one pass, and what edits make of the logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from operator import attrgetter
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from . import weights
from .edits import Edit
from .shape import N_HEAD, Shape

_SOFTMAX = (torch.nn.functional.softmax, torch.softmax, torch.Tensor.softmax)

#: role -> layer -> values that take the place of transformers' own
Given = Mapping[str, Mapping[int, np.ndarray]]


@dataclass
class Pass:
    """One pass over a prompt, float32.

    Attributes:
        logits: (n_tokens, n_vocab).
        held: role -> layer -> (n_tokens, width); `z` (n_tokens, n_head, d_head); `attn_scores` (n_head, n_tokens,
            n_tokens). `final_norm` is of layer -1.
    """

    logits: np.ndarray = field(default_factory=lambda: np.empty(0))
    held: dict[str, dict[int, np.ndarray]] = field(default_factory=dict)

    def keep(self, role: str, layer: int, value: np.ndarray) -> None:
        self.held.setdefault(role, {})[layer] = value


class Reference:
    """A transformers model, with hooks on the roles of :class:`~ci.architectures.shape.Modules`."""

    def __init__(self, shape: Shape):
        self.shape = shape
        self.model = weights.made(shape)
        self.blocks = list(attrgetter(shape.modules.blocks)(self.model))
        for name, path in asdict(shape.modules).items():
            within = name not in ("blocks", "final_norm")
            if within and path and all(_part(block, path) is None for block in self.blocks):
                raise ValueError(f"{shape.name}: no block of {type(self.model).__name__} has {name} {path!r}")

    def run(self, tokens: list[int], edits: tuple[Edit, ...] = (), given: Given = MappingProxyType({})) -> Pass:
        """One pass, with edits in effect; what is kept of a site is its value before anything else takes its place."""
        found, softmax = Pass(), _Softmax(tokens, edits)
        with ExitStack() as stack:
            for layer, block in enumerate(self.blocks):
                self._watch(stack, layer, block, found, softmax, edits, given)
            final_norm = attrgetter(self.shape.modules.final_norm)(self.model)
            stack.enter_context(_after(final_norm, lambda x: found.keep("final_norm", -1, x)))
            stack.enter_context(torch.no_grad())
            stack.enter_context(softmax)
            out = self.model(torch.tensor([tokens]), use_cache=False)
        found.logits = out.logits[0].numpy()
        for layer, pattern in softmax.patterns.items():
            found.keep("attn_scores", layer, pattern)
        self._keep_added(found)
        return found

    def _keep_added(self, found: Pass) -> None:
        """What attention and the MLP add to the residual stream, where that is the difference of two of its points."""
        # Granite scales it on the way, and no tensor of llama.cpp's is named after that
        if getattr(self.model.config, "residual_multiplier", 1.0) != 1.0:
            return
        held = found.held
        for layer, middle in held.get("resid_mid", {}).items():
            if layer in held.get("z", {}) and layer not in held.get("mixer_out", {}):
                found.keep("hook_attn_out", layer, middle - held["resid_pre"][layer])
            found.keep("hook_mlp_out", layer, held["resid_post"][layer] - middle)

    def _watch(self, stack: ExitStack, layer: int, block: Any, found: Pass, softmax: _Softmax, edits, given) -> None:
        def kept(role: str):
            def see(x: np.ndarray):
                if role == "z":
                    x = x.reshape(len(x), N_HEAD, -1)
                found.keep(role, layer, x.copy())
                x = given.get(role, {}).get(layer, x)
                for edit in edits:
                    x = edit.changed(role, layer, x)
                return x

            return see

        modules = self.shape.modules
        stack.enter_context(_before(block, kept("resid_pre")))
        stack.enter_context(_after(block, kept("resid_post")))
        if attention := _part(block, modules.attention):
            stack.enter_context(softmax.within(attention, layer))
            stack.enter_context(_before(_part(block, modules.z), kept("z")))
            stack.enter_context(_after(_part(block, modules.z), kept("attn_out")))
        if mlp := _part(block, modules.mlp):
            stack.enter_context(_before(mlp, kept("mlp_in")))
        if mlp_out := _part(block, modules.mlp_out):
            stack.enter_context(_after(mlp_out, kept("mlp_out")))
        if last := _part(block, modules.mlp_last):
            stack.enter_context(_before(last, kept("mlp_act")))
        if norm := _part(block, modules.mlp_norm):
            stack.enter_context(_before(norm, kept("resid_mid")))
        if mixer := _part(block, modules.mixer):
            stack.enter_context(_after(mixer, kept("mixer_out")))


class _Softmax(TorchFunctionMode):
    """The softmax of attention, whatever module calls it: its result is the pattern, in its argument edges are cut.

    Masks, windows, position biases, soft-caps and scales are all in the argument by then, so that one hook serves every
    architecture. Attention sinks stand behind the keys.
    """

    def __init__(self, tokens: list[int], edits: tuple[Edit, ...]):
        super().__init__()
        self.n_tokens, self.edits = len(tokens), edits
        self.layer: int | None = None
        self.patterns: dict[int, np.ndarray] = {}

    @contextmanager
    def within(self, module: Any, layer: int) -> Iterator[None]:
        """Within the context, the softmax that this module calls is this layer's."""

        def enter(*_):
            self.layer = layer

        def leave(*_):
            self.layer = None

        handles = [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if self.layer is None or func not in _SOFTMAX:
            return func(*args, **kwargs or {})
        scores, *rest = args
        if scores.shape[-2] != self.n_tokens or scores.ndim != 4:
            return func(*args, **kwargs or {})
        for edit in self.edits:
            if (cut := edit.cut(self.layer, scores.shape[1:])) is not None:
                scores = scores.masked_fill(torch.from_numpy(cut), -float("inf"))
        pattern = func(scores, *rest, **kwargs or {})
        self.patterns[self.layer] = pattern[0, ..., : self.n_tokens].float().numpy().copy()
        return pattern


# // hooks


def _part(block: Any, path: str) -> Any:
    """A module of a block; None where this block, or this architecture, has none."""
    for name in path.split("."):
        block = getattr(block, name, None)
    return block


def _applied(x, see: Callable[[np.ndarray], np.ndarray | None]):
    # one prompt: some modules take its tokens without the axis of prompts
    changed = see(x.detach().reshape(-1, x.shape[-1]).numpy())
    return x if changed is None else torch.from_numpy(np.ascontiguousarray(changed)).reshape(x.shape)


@contextmanager
def _before(module: Any, see) -> Iterator[None]:
    """Within the context, ``see`` is given what the module takes, and what it returns takes its place."""

    def hook(_module, inputs, kwargs):
        if inputs:
            return (_applied(inputs[0], see), *inputs[1:]), kwargs
        return inputs, {**kwargs, "hidden_states": _applied(kwargs["hidden_states"], see)}

    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _after(module: Any, see) -> Iterator[None]:
    """The same with what the module returns: the tensor, or the first of a tuple."""

    def hook(_module, _inputs, output):
        return (_applied(output[0], see), *output[1:]) if isinstance(output, tuple) else _applied(output, see)

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
