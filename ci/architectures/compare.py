"""Both sides of a shape: how far they are apart, whether edits do the same, and what must hold bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import interp
from reference.values import relative_error

from .bounds import ROUNDINGS
from .edits import Edit, Knockout, Patch, ZeroHead, ZeroMixer
from .reference import Pass, Reference
from .result import GROUPS, Effect, Result, problems, unexpected
from .shape import N_VOCAB, Shape

#: tokens of each prompt; the windows are of 16
LENGTHS = (24, 60)


def prompts() -> list[list[int]]:
    """A prompt of each length, and one more of the last length, which patches are taken from."""
    rng = np.random.default_rng(7)
    return [rng.integers(20, N_VOCAB, n).tolist() for n in (*LENGTHS, LENGTHS[-1])]


def compare(shape: Shape, path: Path) -> Result:
    """Run a shape on both sides.

    Args:
        path: its GGUF file.
    """
    reference = Reference(shape)
    with interp.Model(path, n_ctx=128, kv_type="f32", flash_attn=False, n_threads=1) as model:
        return Comparison(shape, reference, model).result()


class Comparison:
    """One shape, loaded on both sides."""

    def __init__(self, shape: Shape, reference: Reference, model: interp.Model):
        self.shape, self.reference, self.model = shape, reference, model
        *self.prompts, self.other = prompts()
        self.plain = [reference.run(tokens) for tokens in self.prompts]
        self.attention_layers = sorted(self.plain[0].held.get("attn_scores", {}))
        self.lacks: dict[str, str] = {}
        self.sites = self._sites()
        self.runs = [model.run(tokens, capture=list(self.sites.values())) for tokens in self.prompts]

    def result(self) -> Result:
        shape, model = self.shape, self.model
        found = Result(shape.name, model.arch, shape.about, shape.rounding, model.n_layer, self.attention_layers)
        found.errors = self.errors(self.plain)
        if shape.rounding:
            found.imitated = self.errors([self.imitated(run) for run in self.runs])
        found.edits = self.effects()
        found.exact = self.exact()
        found.peak = self.peak()
        found.n_arrays = len(self.sites) * len(self.runs)
        found.lacks = self.lacks | self.refusals()
        found.problems = problems(found) + unexpected(self.lacks, shape.lacks)
        return found

    # // what is compared

    def _sites(self) -> dict[tuple[str, int], interp.At]:
        """(role, layer) -> the site, for all that transformers has and this graph names."""
        sites = {}
        for role, layers in self.plain[0].held.items():
            name = self.shape.mixer_site if role == "mixer_out" else role
            for layer in layers:
                try:
                    sites[role, layer] = self._site(name, layer)
                except interp.SiteError as error:
                    # what is added is lacking only where what the module returns is
                    if not role.startswith("hook_"):
                        self.lacks[role] = str(error)
        return sites

    def _site(self, name: str, layer: int) -> interp.At:
        layers = None if layer < 0 else layer
        self.model._table.find(name, layers)
        return interp.at(name, layers=layers)

    def errors(self, passes: list[Pass]) -> dict[str, float]:
        """The largest error of each group, over prompts and layers."""
        found: dict[str, list[float]] = {group: [] for group in (*GROUPS, "logits")}
        for run, theirs in zip(self.runs, passes):
            found["logits"].append(_largest(run.logits, theirs.logits))
            for role, layer in self.sites:
                group = next(name for name, roles in GROUPS.items() if role in roles)
                found[group].append(_error(role, self._read(run, role, layer), theirs.held[role][layer]))
        # NaN is larger than every number here, and max() would lose it
        return {group: float(np.max(values)) for group, values in found.items() if values}

    def _read(self, run: interp.Run, role: str, layer: int) -> np.ndarray:
        site = self.sites[role, layer].site
        return run[site] if layer < 0 else run[site, layer]

    def peak(self) -> float | None:
        """See ``bounds.PEAKED``; of the shortest prompt, where windows leave out least."""
        patterns = [self.plain[0].held["attn_scores"][layer] for layer in self.attention_layers]
        if not patterns:
            return None
        stacked = np.stack(patterns)
        return float((stacked.max(axis=-1) * (stacked > 0).sum(axis=-1))[..., 4:].mean())

    # // edits

    def effects(self) -> dict[str, Effect]:
        """Each edit, and the same at a wrong place, on the longest prompt."""
        tokens, ours = self.prompts[-1], self.runs[-1].logits
        sources = self.model.run(self.other, capture="l_out", logits=None)
        ours_under = edits(self.shape, self.attention_layers, sources["l_out"])
        theirs_under = edits(self.shape, self.attention_layers, _residual(self.reference.run(self.other)))
        found = {}
        for name, (right, wrong) in ours_under.items():
            got = self.model.run(tokens, list(self.sites.values()), right.ours())
            other = self.model.run(tokens, edits=wrong.ours()).logits
            edit, _ = theirs_under[name]
            found[name] = Effect(
                effect=_largest(got.logits, ours),
                error=_largest(got.logits, self.reference.run(tokens, (edit,)).logits),
                imitated=_largest(got.logits, self.imitated(got, right).logits) if self.shape.rounding else None,
                wrong=_largest(other, got.logits),
            )
        return found

    def imitated(self, run: interp.Run, *edits: Edit) -> Pass:
        """The reference on a run's prompt, with what llama.cpp rounds otherwise taken from there."""
        rounding = ROUNDINGS[self.shape.rounding]
        given = {
            role: {layer: self._read(run, role, layer) for name, layer in self.sites if name == role}
            for role in rounding.given
        }
        with rounding.imitated(self.reference.model):
            return self.reference.run(run.tokens, edits, given)

    # // bit for bit

    def exact(self) -> dict[str, bool]:
        """What must hold bit for bit, on every prompt and at every layer."""
        found = {"captures": True, "resume": True, "stop": True, "unembed": True}
        layers = range(self.model.n_layer)
        for tokens, run in zip(self.prompts, self.runs):
            whole = self.model.run(tokens, capture="l_out")
            found["captures"] &= np.array_equal(self.model.run(tokens).logits, run.logits)
            found["unembed"] &= np.array_equal(self.model.unembed(whole["l_out", -1]), run.logits)
            for layer in layers[1:]:
                resumed = self.model.resume(whole["l_out", layer - 1], layer, tokens, capture="l_out")
                found["resume"] &= np.array_equal(resumed.logits, run.logits)
                found["resume"] &= all(np.array_equal(resumed["l_out", k], whole["l_out", k]) for k in layers[layer:])
            for layer in layers:
                stopped = self.model.run(tokens, capture=interp.at("l_out", layers=layer), stop_after=layer)
                found["stop"] &= stopped.logits is None
                found["stop"] &= np.array_equal(stopped["l_out", layer], whole["l_out", layer])
        return {name: bool(value) for name, value in found.items()}

    # // what is lacking

    def refusals(self) -> dict[str, str]:
        """What a recurrent layer has no tensor for, or none that is used -> the error that a user gets."""
        tokens, asked = self.prompts[0], {}
        if recurrent := [layer for layer in range(self.model.n_layer) if layer not in self.attention_layers]:
            layer = recurrent[0]
            asked = {
                "attention": lambda: self.model.run(tokens, capture=interp.at("attn_scores", layers=layer)),
                "head ablation": lambda: self.model.run(tokens, edits=interp.ablate([(layer, 0)])),
                "knockout": lambda: self.model.run(tokens, edits=interp.knockout(layer, -1, 3)),
            }
        if dead := self.shape.dead_site:
            asked[f"edits of {dead}"] = lambda: self.model.run(tokens, edits=interp.scale(dead, 0.0))
        return {what: _refusal(ask) for what, ask in asked.items()}


def _refusal(ask: Callable[[], Any]) -> str:
    """The error that a user gets; empty where there is none."""
    try:
        ask()
    except (interp.SiteError, interp.EditError) as error:
        return str(error)
    return ""


def _error(role: str, ours: np.ndarray, theirs: np.ndarray) -> float:
    if ours.shape != theirs.shape:
        return float("inf")
    if role == "attn_scores":
        return float(np.abs(ours - theirs).max())
    return float(relative_error(*(x.reshape(len(x), -1) for x in (ours, theirs))).max())


def _residual(found: Pass) -> np.ndarray:
    """The residual stream behind every layer: ``(n_layer, n_tokens, n_embd)``."""
    held = found.held["resid_post"]
    return np.stack([held[layer] for layer in range(len(held))])


def _largest(value: np.ndarray, reference: np.ndarray) -> float:
    return float(relative_error(value, reference).max())


def edits(shape: Shape, attention_layers: list[int], source: np.ndarray) -> dict[str, tuple[Edit, Edit]]:
    """Each edit, and the same at a wrong place.

    Args:
        source: ``(n_layer, n_tokens, n_embd)``, the residual stream that patches are taken from.
    """
    n_layer = len(source)
    middle = n_layer // 2
    rows = (5, 37)
    found: dict[str, tuple[Edit, Edit]] = {
        "patch": (Patch(middle, source[middle], rows), Patch(middle, source[middle], (6, 37)))
    }
    if attention_layers:
        layer = attention_layers[len(attention_layers) // 2]
        found["zero head"] = ZeroHead(layer, 1), ZeroHead(layer, 2)
        queries, heads = (20, 21, 22), (0, 4)
        cut, other = range(8, 20), range(6, 18)
        found["knockout"] = Knockout(layer, queries, tuple(cut), heads), Knockout(layer, queries, tuple(other), heads)
    if shape.mixer_site and shape.mixer_site != shape.dead_site:
        recurrent = [k for k in range(n_layer) if k not in attention_layers] or list(range(n_layer))
        layer = recurrent[-1]
        found["zero mixer"] = ZeroMixer(layer, shape.mixer_site), ZeroMixer(recurrent[0], shape.mixer_site)
    return found
