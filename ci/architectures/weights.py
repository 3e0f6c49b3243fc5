"""A transformers model of a shape, with random weights under which attention is not flat and every edit counts."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np

from .shape import Shape

#: scales of what is not a matrix: (part of the name, mean, deviation), the first that fits
_VECTORS = (
    ("A_log", 0.5, 0.3),
    ("dt_bias", 0.0, 0.5),
    ("e_score_correction_bias", 0.0, 0.2),
    ("sinks", 1.0, 0.5),
    (".D", 1.0, 0.2),
    ("bias", 0.0, 0.2),
)

#: matrices that make queries and keys, and their gain: the products should tell keys apart
_SHARP = ("q_proj", "k_proj", "q_b_proj", "kv_b_proj", "qkv_proj", "query_key_value", "Wqkv", "c_attn")
_SHARP_GAIN = 1.2


def made(shape: Shape) -> Any:
    """The model: float32, eager attention, the same weights every time."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(shape.model_type, **shape.settings)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    parameters = {**dict(model.named_parameters()), **_chosen_buffers(model)}
    with torch.no_grad():
        for name, parameter in parameters.items():
            mean = float(parameter.mean()) - shape.norm_shift
            parameter.copy_(torch.from_numpy(_values(name, tuple(parameter.shape), mean)))
    return model


def _chosen_buffers(model: Any) -> dict[str, Any]:
    """Buffers that are weights: DeepSeek's correction of the experts' scores."""
    return {name: buffer for name, buffer in model.named_buffers() if name.endswith("e_score_correction_bias")}


def _values(name: str, shape: tuple[int, ...], mean: float) -> np.ndarray:
    """Random values for a parameter; ``mean`` is that of transformers' own, 1 or 0 for the weights of a norm."""
    rng = np.random.default_rng(zlib.crc32(f"{name}{shape}".encode()))
    values = rng.standard_normal(shape).astype(np.float32)
    for part, centre, deviation in _VECTORS:
        if part in name and (len(shape) == 1 or part != "bias"):
            return np.float32(centre) + np.float32(deviation) * values
    if len(shape) == 1:
        return np.float32(round(mean)) + np.float32(0.2) * values
    if any(part in name for part in ("embed", "wte", "wpe")):
        return np.float32(0.7) * values
    gain = _SHARP_GAIN if any(part in name for part in _SHARP) else 1.0
    return np.float32(gain / np.sqrt(min(shape[-1], 160))) * values
