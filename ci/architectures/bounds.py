"""How far the two sides may be apart, and what llama.cpp computes in another way than transformers.

That this is all is shown, not said: a row of the page whose architecture has such a thing is compared twice, with
transformers as it is, within a wider bound, and with transformers that has this one thing from llama.cpp, within the
bound that all others keep.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from reference.values import ATTENTION_BOUND, RESIDUAL_BOUND


@dataclass(frozen=True)
class Bounds:
    """How far the sides may be apart.

    Attributes:
        attention: absolute.
        residual: relative to the largest entry of a position's row.
        other: the same, of everything else: what modules return in the middle of a layer, and logits.
    """

    attention: float
    residual: float
    other: float

    def of(self, group: str) -> float:
        """The bound of one of ``compare.GROUPS``, or of the logits."""
        return {"attention": self.attention, "residual": self.residual}.get(group, self.other)


#: where nothing rounds otherwise: both sides add up in F32, in different orders
EXACT = Bounds(ATTENTION_BOUND, RESIDUAL_BOUND, 3e-5)

#: an edit moves the logits by this many bounds at least, and the same edit elsewhere is so far from it
CLEAR = 10

#: the largest weight of each row of attention, in multiples of what an even row would have: below, it is flat
PEAKED = 1.5


@dataclass(frozen=True)
class Rounding:
    """One such difference.

    Attributes:
        name: for the page.
        bounds: against transformers as it is.
        given: roles whose values transformers takes from llama.cpp's run, each layer its own.
        why: what differs, for the page.
    """

    name: str
    bounds: Bounds
    given: tuple[str, ...]
    why: str

    def imitated(self, model: Any) -> AbstractContextManager:
        """Within the context, transformers computes as llama.cpp does what :attr:`given` does not cover."""
        return nullcontext() if self.given else _whole_yarn(model)


@contextmanager
def _whole_yarn(model: Any) -> Iterator[None]:
    """ggml's YaRN (``ggml_rope_yarn_corr_dims``): the range between the two rotations in whole dimensions."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = model.config
    parameters = config.rope_parameters
    exact = [(module, module.inv_freq.clone()) for module in model.modules() if hasattr(module, "inv_freq")]
    config.rope_parameters = {**parameters, "truncate": True}
    try:
        for module, frequencies in exact:
            frequencies_of_ggml, _ = ROPE_INIT_FUNCTIONS["yarn"](config, frequencies.device)
            module.inv_freq.copy_(frequencies_of_ggml)
        yield
    finally:
        config.rope_parameters = parameters
        for module, frequencies in exact:
            module.inv_freq.copy_(frequencies)


ROUNDINGS = {
    "gelu": Rounding(
        "GELU, F16 table",
        Bounds(2e-3, 1e-3, 2e-3),
        ("mlp_act",),
        "ggml's CPU kernel of GELU is a table: argument and result are rounded to F16 (`GGML_GELU_FP16` in "
        "`ggml-cpu/vec.h`), and it holds the tanh form, also where transformers computes the exact one.",
    ),
    "yarn": Rounding(
        "YaRN, whole dimensions",
        Bounds(2e-2, 2e-2, 2e-2),
        (),
        "ggml always rounds the range of YaRN to whole dimensions (`ggml_rope_yarn_corr_dims`); gpt-oss was released "
        "with `truncate: false`. So some dimensions of queries and keys turn at another speed.",
    ),
}


def bounds(rounding: str) -> Bounds:
    """What a row keeps against transformers as it is."""
    return ROUNDINGS[rounding].bounds if rounding else EXACT
