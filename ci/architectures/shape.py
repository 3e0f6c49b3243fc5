"""What a small model is made of: sizes, where its modules lie in transformers, and what is peculiar to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

N_VOCAB = 400
N_EMBD = 96
N_FF = 160
N_LAYER = 4
N_HEAD = 6
N_HEAD_KV = 3
#: wider than n_embd / n_head = 16, for architectures that allow it
D_HEAD = 24
WINDOW = 16
N_CTX = 128
N_EXPERT, N_USED = 5, 2
N_FF_EXPERT = 56


@dataclass(frozen=True)
class Modules:
    """Where transformers keeps things: paths from the model, or from a block; empty: there is no such module.

    Attributes:
        blocks: the list of layers.
        final_norm: what the head takes comes out of it.
        attention: computes softmax; only the layers that have it are compared in attention.
        z: takes the heads' outputs side by side.
        mlp: its input is `mlp_in`.
        mlp_out: its output is `mlp_out`.
        mlp_last: its input is `mlp_act`; of experts transformers has no such module.
        mlp_norm: its input is `resid_mid`.
        mixer: what a recurrent layer has in place of attention, or beside it.
    """

    blocks: str = "model.layers"
    final_norm: str = "model.norm"
    attention: str = "self_attn"
    z: str = "self_attn.o_proj"
    mlp: str = "mlp"
    mlp_out: str = "mlp"
    mlp_last: str = "mlp.down_proj"
    mlp_norm: str = "post_attention_layernorm"
    mixer: str = ""


@dataclass(frozen=True)
class Shape:
    """One architecture.

    Attributes:
        name: the row of the page, and of the command line.
        model_type: transformers' name.
        config: of the model, over :data:`COMMON`.
        without: keys of :data:`COMMON` that this one calls by other names.
        modules: where things lie.
        about: what of it is in use here.
        rounding: what llama.cpp computes in another way, a key of :data:`~ci.architectures.bounds.ROUNDINGS`.
        mixer_site: the graph's name of what :attr:`Modules.mixer` returns.
        lacks: roles that transformers has and llama.cpp's graph names no tensor for -> why, for the page.
        dead_site: a name that llama.cpp gives after the tensor's use: it can be read, and editing it is an error.
        norm_shift: what its norms add to their weights, where transformers' own are made without regard to that.
        for_converter: keys of config.json as the converter expects them, where transformers 5 drops or renames them.
        options: of the converter.
    """

    name: str
    model_type: str
    about: str
    config: Mapping[str, Any] = field(default_factory=dict)
    modules: Modules = Modules()
    rounding: str = ""
    mixer_site: str = ""
    dead_site: str = ""
    lacks: Mapping[str, str] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    norm_shift: int = 0
    for_converter: Mapping[str, Any] = field(default_factory=dict)
    options: tuple[str, ...] = ()

    @property
    def settings(self) -> dict[str, Any]:
        """The configuration, complete."""
        common = {key: value for key, value in COMMON.items() if key not in self.without}
        return {**common, **self.config}


#: transformers' own names; architectures with others map them
COMMON: dict[str, Any] = {
    "vocab_size": N_VOCAB,
    "hidden_size": N_EMBD,
    "intermediate_size": N_FF,
    "num_hidden_layers": N_LAYER,
    "num_attention_heads": N_HEAD,
    "num_key_value_heads": N_HEAD_KV,
    "max_position_embeddings": N_CTX,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
