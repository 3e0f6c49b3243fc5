"""``direct_logit_attribution``: what each head, MLP and the embedding add to a logit; and ``Attribution``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from . import plot
from .errors import ModelError, RunError, SiteError
from .grid import Grid
from .run import Run
from .sites import at
from .prompts import around
from .vocab import one_token

if TYPE_CHECKING:
    from .model import Model

#: what a run must have captured; those of the second row are needed for heads only
SITES = ("resid_pre", "hook_attn_out", "hook_mlp_out", "l_out", "final_norm")
HEAD_SITES = ("z", "attn_out")

#: the parts must sum to the residual stream to this share of it: float32 sums in another order do
_SUM = 1e-3

#: heads through the weights must give the attention's output to this share: quantised kernels round what they multiply
_HEADS = 0.1


def direct_logit_attribution(
    run_or_model: Run | Model, prompt=None, a: str | int | None = None, b: str | int | None = None, position: int = -1,
) -> Attribution:
    """What each component adds to the logit of ``a``, minus that of ``b``, along the residual stream alone.

    The last residual stream is the sum of the embedding and of what each attention and each MLP adds; the final norm's
    scale, which depends on all of them, is held at its value in this run; then the logits are linear in the parts.
    This is what TransformerLens documents for ``ActivationCache.logit_attrs`` and ``apply_ln_to_stack``; the method is
    that of Elhage et al., "A Mathematical Framework for Transformer Circuits" (2021). Where a norm stands behind
    attention (Gemma 2, OLMo 2), its scale is held likewise, and what is added is what counts.

    Args:
        run_or_model: a model, which then runs ``prompt``; or a run of all layers:
            ``capture=("resid_pre", "hook_attn_out", "hook_mlp_out", "l_out", "final_norm", "z", "attn_out")``, the last
            two for heads.
        prompt: a text or token ids; with a model only.
        a, b: tokens, as ids or texts that are one token; b None: the logit of ``a`` alone.
        position: at which logits are explained; of the prompt, negative ones count from the end.

    Returns:
        An :class:`Attribution`, in logits. Where the model caps its logits (Gemma 2), in logits before the cap.

    Raises:
        RunError: no prompt or token, or a run without logits there.
        SiteError: a position out of range, or a run that captured too little.
        ModelError: the residual stream of this architecture is no plain sum of the parts that its graph names, its
            head is not one norm and one matrix, or a weight cannot be read (:meth:`Model.weight`).
    """
    if a is None:
        raise RunError('direct_logit_attribution needs a token: direct_logit_attribution(model, prompt, " Paris")')
    run, position = _run_of(run_or_model, prompt, position)
    model = run.model
    chosen = [one_token(model, token) for token in (a, b) if token is not None]
    if len(set(chosen)) < len(chosen):
        raise RunError(f"{a!r} and {b!r} are the same token; give two.")

    rows = _Rows(run, position)
    n_layer = model.n_layer
    parts = {name: rows.all(f"hook_{name}_out") for name in ("attn", "mlp")}
    embedding, resid = rows("resid_pre", 0), rows("l_out", n_layer - 1)
    total = embedding + sum(parts["attn"].values()) + sum(parts["mlp"].values())
    off = _distance(total, resid)
    if off > _SUM:
        raise ModelError(
            f"The residual stream of the architecture {model.arch} is no plain sum of what its graph names as "
            f"attention and MLP outputs: they miss {off:.1%} of it. Its components cannot be attributed."
        )
    head = _Head(model, resid, rows("final_norm", -1), chosen, _logits(run, position))
    heads = {layer: _heads(model, rows, layer, vector) for layer, vector in parts["attn"].items()}
    n_head = max((len(found) for found in heads.values() if found is not None), default=0)
    values = np.full((n_layer, n_head + 2), np.nan)
    for layer, found in heads.items():
        if found is not None:
            values[layer, : len(found)] = head(found)
    for column, found in zip((-2, -1), parts.values()):
        values[:, column] = [head(found[layer]) if layer in found else 0.0 for layer in range(n_layer)]
    names = [plot.visible(piece) for piece in model.pieces(chosen)]
    return Attribution(
        values=values, metric=f"logit of {names[0]}" if b is None else f"logit difference {' − '.join(names)}",
        model=model.name, layers=list(range(n_layer)), complete=True, heads=list(range(n_head)),
        embedding=float(head(embedding)), bias=head.bias, total=head.total, position=position,
        tokens=list(run.tokens), pieces=list(run.pieces),
    )


def _run_of(run_or_model, prompt, position: int) -> tuple[Run, int]:
    if isinstance(run_or_model, Run):
        if prompt is not None:
            raise RunError("direct_logit_attribution(run, None, …) takes no prompt: the run has one.")
        if run_or_model.model is None:
            raise RunError("A run from a file has no model, whose weights are needed; pass a model and the prompt.")
        return run_or_model, _place(position, len(run_or_model.tokens))
    if prompt is None:
        raise RunError("direct_logit_attribution(model, prompt, …) needs a prompt.")
    tokens = run_or_model._prompt(prompt)
    position = _place(position, len(tokens))
    # What follows the position does not reach it, so that it can be the last: one row of logits is enough.
    capture = [at(site, positions=-1) for site in SITES[1:]] + [at("resid_pre", layers=0, positions=-1)]
    for site in HEAD_SITES:
        try:
            run_or_model._table.find(site)
        except SiteError:
            continue
        capture.append(at(site, positions=-1))
    return run_or_model.run(tokens[: position + 1], capture=capture, logits="last"), position


def _place(position: int, n: int) -> int:
    position = plot.whole(position, "position")
    if not -n <= position < n:
        raise SiteError(f"Position {position} is out of range: the prompt has {n} tokens, 0 to {n - 1}.")
    return position % n


class _Rows:
    """What a run holds at one position, float64."""

    def __init__(self, run: Run, position: int):
        self._run, self._position = run, position

    def __call__(self, site: str, layer: int) -> np.ndarray:
        array, held = self._run[site, layer], self._run.positions(site, layer)
        if held is None or self._position not in held:
            raise SiteError(f"The run did not capture {site!r} at position {self._position}; it holds {held}.")
        return array[held.index(self._position)].astype(np.float64)

    def all(self, site: str) -> dict[int, np.ndarray]:
        """By layer, of all layers that have the site."""
        found = {}
        for layer in range(self._run.model.n_layer):
            try:
                self._run.model._table.find(site, layer)
            except SiteError:
                continue
            found[layer] = self(site, layer)
        return found

    def has(self, site: str, layer: int) -> bool:
        return layer in self._run.layers(site)

    def is_same(self, one: str, other: str, layer: int) -> bool:
        return self._run._choose(one, layer) == self._run._choose(other, layer)


def _logits(run: Run, position: int) -> np.ndarray:
    if run.logits is None:
        raise RunError("This run has no logits; make it without stop_after.")
    first = len(run.tokens) - len(run.logits)
    if position < first:
        raise RunError(f"This run has logits from position {first} on, not at {position}; make it with logits='all'.")
    return run.logits[position - first].astype(np.float64)


def _distance(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.abs(found - wanted).max() / max(np.abs(wanted).max(), 1e-30))


# // the end of the model


class _Norm:
    """A norm with its scale held at what it is for one residual stream."""

    def __init__(self, model: Model, weight: str, x: np.ndarray, result: np.ndarray):
        self.weight, self.bias = _given(model, f"{weight}.weight", 1.0), _given(model, f"{weight}.bias", 0.0)
        off = []
        for kind, self.is_centred in (("layer_norm_rms_epsilon", False), ("layer_norm_epsilon", True)):
            epsilon = model._meta(f"{model.arch}.attention.{kind}")
            if not epsilon:
                continue
            self.scale = 1.0 / np.sqrt(np.mean(self._centred(x) ** 2) + float(epsilon))
            off.append(_distance(self(x) + self.bias, result))
            if off[-1] <= _SUM:
                return
        raise ModelError(f"{weight} of the architecture {model.arch} is neither an RMSNorm nor a LayerNorm.")

    def _centred(self, x: np.ndarray) -> np.ndarray:
        return x - x.mean(axis=-1, keepdims=True) if self.is_centred else x

    def __call__(self, part: np.ndarray) -> np.ndarray:
        """Of one part (…, n_embd) of what is normed; its bias belongs to none of them."""
        return self._centred(part) * self.scale * self.weight


def _given(model: Model, name: str, otherwise: float) -> np.ndarray | float:
    return model.weight(name).astype(np.float64) if model._has_weight(name) else otherwise


class _Head:
    """From parts of the residual stream to the logit of one token, or of one minus another."""

    def __init__(self, model: Model, resid: np.ndarray, normed: np.ndarray, tokens: list[int], logits: np.ndarray):
        self._norm = _Norm(model, "output_norm", resid, normed)
        matrix = model.weight("output.weight" if model._has_weight("output.weight") else "token_embd.weight")
        rows = matrix[tokens].astype(np.float64)
        bias = model.weight("output.bias")[tokens].astype(np.float64) if model._has_weight("output.bias") else 0.0
        found = normed @ rows.T + bias
        wanted = logits[tokens]
        cap = float(model._meta(f"{model.arch}.final_logit_softcapping") or 0)
        given = float(model._meta(f"{model.arch}.logit_scale") or 1)
        # Some architectures multiply by this number, others divide.
        scales = [1.0] if given in (0.0, 1.0) else [given, 1 / given]
        ends = [cap * np.tanh(s * found / cap) if cap else s * found for s in scales]
        off = [float(np.abs(end - wanted).max()) for end in ends]
        scale = scales[int(np.argmin(off))]
        # Quantised kernels round the vector that they multiply, by about a hundredth of its length.
        noise = 0.02 * scale * np.linalg.norm(normed) * np.linalg.norm(rows, axis=1).max() + 1e-3
        if min(off) > noise:
            raise ModelError(
                f"The head of the architecture {model.arch} is more than a norm and a matrix: its logits differ by "
                f"{min(off):.3g}. Its components cannot be attributed."
            )
        sign = np.array([1.0, -1.0])[: len(tokens)]
        self._direction = scale * sign @ rows
        self.bias = float(self._norm.bias @ self._direction) if np.ndim(self._norm.bias) else 0.0
        self.bias += float(scale * np.sum(sign * bias))
        self.total = float(scale * sign @ found)

    def __call__(self, part: np.ndarray) -> np.ndarray:
        return self._norm(part) @ self._direction


def _heads(model: Model, rows: _Rows, layer: int, added: np.ndarray) -> np.ndarray | None:
    """What each head adds to the residual stream, (n_head, n_embd); None where attention is no sum of them."""
    name = f"blk.{layer}.attn_output"
    if not (rows.has("z", layer) and rows.has("attn_out", layer) and model._has_weight(f"{name}.weight")):
        return None
    z, out, matrix = rows("z", layer), rows("attn_out", layer), model.weight(f"{name}.weight")
    if z.ndim != 2 or matrix.shape != (len(out), z.size):
        return None
    found = np.einsum("hd,ehd->he", z, matrix.reshape(len(out), *z.shape).astype(np.float64))
    if _distance(found.sum(axis=0) + _given(model, f"{name}.bias", 0.0), out) > _HEADS:
        return None
    if rows.is_same("hook_attn_out", "attn_out", layer):
        return found
    return _Norm(model, f"blk.{layer}.post_attention_norm", out, added)(found)


# // the result


class Share(NamedTuple):
    """What one component adds; ``part`` is embedding, head, attention, MLP or bias."""

    part: str
    layer: int | None
    head: int | None
    value: float


@dataclass(eq=False, repr=False)
class Attribution(Grid):
    """What :func:`direct_logit_attribution` found, in logits.

    The embedding, all attention outputs, all MLP outputs and the bias sum to :attr:`total`.

    Attributes:
        values: (n_layer, n_head + 2) float64: of each head, then of the attention output as a whole, then of the MLP
            output. Heads are NaN where attention is no sum of them through one matrix. Heads and the bias of the
            output matrix sum to attention, with quantised weights to the noise of the kernels.
        embedding: what the tokens' embedding adds, with learned positions where the model has them.
        bias: what the biases of the final norm and of the head add.
        total: the logit, or the difference of the two, before a soft-cap.
        position, tokens, pieces: where, in which prompt.
        metric, model, layers, heads: names, and what rows and columns are.
    """

    heads: list[int]
    embedding: float
    bias: float
    total: float
    position: int
    tokens: list[int]
    pieces: list[str]

    baseline = 0.0

    _FORMAT = "llama-interp attribution 1"
    _KIND = "attribution"

    @property
    def by_head(self) -> np.ndarray:
        """(n_layer, n_head)"""
        return self.values[:, :-2]

    @property
    def attn(self) -> np.ndarray:
        """(n_layer,): of each attention output."""
        return self.values[:, -2]

    @property
    def mlp(self) -> np.ndarray:
        """(n_layer,): of each MLP output."""
        return self.values[:, -1]

    def top(self, k: int = 10) -> list[Share]:
        """The k components that add or take most, largest first: heads, where attention is a sum of them, and what
        they leave of it; all of them sum to :attr:`total`."""
        if plot.whole(k, "k") < 1:
            raise RunError(f"k must be at least 1, not {k}")
        found = [Share("embedding", None, None, self.embedding), Share("bias", None, None, self.bias)]
        for layer, (heads, attn, mlp) in enumerate(zip(self.by_head, self.attn, self.mlp)):
            known = [(head, float(v)) for head, v in enumerate(heads) if not np.isnan(v)]
            found += [Share("head", layer, head, value) for head, value in known]
            rest = float(attn) - sum(value for _, value in known)
            found += [Share("attention's rest" if known else "attention", layer, None, rest)]
            found += [Share("MLP", layer, None, float(mlp))]
        return sorted(found, key=lambda share: -abs(share.value))[:k]

    def _shape(self) -> tuple[int, int]:
        return len(self.layers), len(self.heads) + 2

    def _title(self) -> str:
        return self._with_state(f"direct attribution of the {self.metric}")

    def _summary(self) -> str:
        return f"total {self.total:+.3f}, of which embedding {self.embedding:+.3f}, bias {self.bias:+.3f}"

    def _lines(self, width: int) -> list[str]:
        shown = self.pieces[: self.position + 1]
        return [around(shown, len(shown) - 1, width), self._summary()]

    def _columns(self) -> list[str]:
        return [*map(str, self.heads), "A", "M"]

    def _across(self) -> str:
        return "head; A: attention as a whole, M: MLP"

    def _measure(self) -> str:
        return "logits added"

    def _header(self) -> tuple[str, ...]:
        return "part", "layer", "head", "value"

    def _texts(self, cell: Share) -> list[str]:
        return [cell.part, *("" if n is None else str(n) for n in (cell.layer, cell.head)), f"{cell.value:+.3f}"]

    def _cell(self, row: int, column: int) -> Share:
        n_head, value = len(self.heads), float(self.values[row, column])
        if column < n_head:
            return Share("head", row, column, value)
        return Share("attention" if column == n_head else "MLP", row, None, value)

    def _hover(self, cell: Share) -> str:
        what = f"head {cell.head}" if cell.head is not None else cell.part
        return f"layer {cell.layer}, {what}\nadds {cell.value:+.4f}"
