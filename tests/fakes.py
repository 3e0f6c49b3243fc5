"""A model and its runs in numpy, small enough to check every number by hand."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

PIECES = [
    " the", " Paris", "Paris", " a", "\n", "$x$", "<b>", " <br>", "\t", "é", "中文", "", "\ufffd", "\x00", "&amp;",
    "antidisestablishmentarianism", "^2", " of", " city", "Tower",
]


class FakeModel:
    """A head of random weights over PIECES; unembed notes how many rows it is given."""

    name, arch = "fake", "fake"
    n_embd, n_head, n_vocab = 8, 3, len(PIECES)

    def __init__(self, n_layer: int = 4):
        self.n_layer = n_layer
        self.head = np.random.default_rng(0).normal(size=(self.n_embd, self.n_vocab)).astype(np.float32)
        self.rows: list[int] = []

    def sites(self) -> list[SimpleNamespace]:
        shape = (self.n_head, None, None)
        return [SimpleNamespace(name="attn_scores", layer=layer, shape=shape) for layer in range(self.n_layer)]

    def unembed(self, resid: np.ndarray) -> np.ndarray:
        self.rows.append(len(resid))
        # Row by row, because BLAS gives other last bits for other numbers of rows.
        return np.stack([row @ self.head for row in resid])

    def pieces(self, tokens) -> list[str]:
        return [PIECES[t] for t in tokens]

    def tokens(self, text: str) -> list[int]:
        found = []
        while text:
            piece = max((p for p in PIECES if p and text.startswith(p)), key=len, default=None)
            found.append(PIECES.index(piece) if piece else 0)
            text = text[len(piece or " ") :]
        return found

    def run(self, prompt, capture=(), logits="all", **_) -> FakeRun:
        tokens = self.tokens(prompt) if isinstance(prompt, str) else list(prompt)
        return FakeRun(self, tokens, capture)


class FakeRun:
    """Random captures of every layer, the same for the same model and prompt."""

    def __init__(self, model: FakeModel, tokens: list[int], capture):
        self.model, self.tokens, self.pieces = model, tokens, model.pieces(tokens)
        self.info = {"model": model.name, "n_layer": model.n_layer}
        rng, n, self._values = np.random.default_rng(len(tokens)), len(tokens), {}
        for layer in range(model.n_layer):
            self._values["l_out", layer] = rng.normal(size=(n, model.n_embd)).astype(np.float32)
            self._values["ffn_up", layer] = rng.normal(size=(n, 2 * model.n_embd)).astype(np.float32)
            scores = np.tril(rng.random((model.n_head, n, n), np.float32) + 0.01)
            self._values["attn_scores", layer] = scores / scores.sum(-1, keepdims=True)
        names = {getattr(site, "site", site) for site in capture}
        self._values = {key: value for key, value in self._values.items() if key[0] in names}
        for site in capture:
            if not isinstance(site, str):
                heads = slice(None) if site.heads is None else list(site.heads)
                layers = range(model.n_layer) if site.layers is None else [n % model.n_layer for n in site.layers]
                for key in [key for key in self._values if key[0] == site.site]:
                    value = self._values.pop(key)
                    if key[1] in layers:
                        self._values[key] = value[heads]
        last = rng.normal(size=(n, model.n_embd)).astype(np.float32)
        self.logits = model.unembed(self._values.get(("l_out", model.n_layer - 1), last))

    def __getitem__(self, key) -> np.ndarray:
        return self._values[key]

    def layers(self, site: str) -> list[int]:
        return sorted(layer for name, layer in self._values if name == site)

    def positions(self, site: str, layer: int) -> list[int]:
        return list(range(len(self.tokens)))

    def top(self, k: int = 5, position: int = -1) -> list[tuple[str, float]]:
        e = np.exp(self.logits[position].astype(np.float64))
        ids = np.argsort(-e)[:k]
        return [(PIECES[i], float(e[i] / e.sum())) for i in ids]
