"""``Run``: what a run returns, and its files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from . import files
from .errors import RunError, SiteError
from .sites import Key, Part, parse

FORMAT = "llama-interp run 1"

#: what a file keeps of ``Run.info``
_TEXTS, _NUMBERS = ("model", "arch", "prompt"), ("n_layer", "n_embd", "n_prefix")


class Run:
    """Tokens, logits and captured activations of one prompt.

    Attributes:
        tokens: the token ids that were run.
        pieces: their texts.
        logits: ``(n_tokens, n_vocab)`` float32; ``(1, n_vocab)`` for ``logits="last"``; None after ``stop_after``.
        model: the model that made it; None for a run loaded from a file.
        info: ``model`` (its name), ``arch``, ``n_layer``, ``n_embd``, ``prompt`` if a text was given, and
            ``n_prefix`` if a prefix was in force.
    """

    def __init__(
        self, tokens, pieces, logits, arrays: dict[Key, np.ndarray], labels: dict, model=None, info=None,
        parts: dict[Key, Part] | None = None,
    ):
        self.tokens: list[int] = list(tokens)
        self.pieces: list[str] = list(pieces)
        self.logits: np.ndarray | None = logits
        self.model = model
        self.info: dict = dict(info or {})
        self._arrays, self._labels = arrays, labels
        self._parts = parts or {}

    def __repr__(self) -> str:
        names = sorted({key.name for key in self._arrays})
        return f"Run({len(self.tokens)} tokens, captured: {', '.join(names) or 'nothing'})"

    @property
    def prompt(self) -> str | None:
        """The text that was run; None if tokens were given."""
        return self.info.get("prompt")

    @property
    def n_prefix(self) -> int:
        """Tokens of :meth:`Model.prefix <interp.Model.prefix>` that came before; attention has a key for each, in
        front of those of :attr:`tokens`."""
        return self.info.get("n_prefix", 0)

    @property
    def keys(self) -> list[Key]:
        """The sites captured, in graph order."""
        return list(self._arrays)

    def layers(self, site: str) -> list[int]:
        """The layers in which a site was captured, ascending."""
        name, layer, occurrence = parse(site)
        found = self._find(name, occurrence)
        return sorted(il for il in found if layer is None or il == layer)

    def _find(self, name: str, occurrence: int | None) -> dict[int, Key]:
        label = name if occurrence is None else f"{name}#{occurrence}"
        return {layer: key for key in self._arrays for text, layer in self._labels[key] if text == label}

    def __getitem__(self, site) -> np.ndarray:
        """``run["l_out", 5]``: one layer's array; ``run["l_out"]``: all captured layers stacked, layer axis first.

        Raises:
            SiteError: not captured.
        """
        text, layer = site if isinstance(site, tuple) and len(site) == 2 else (site, None)
        found = self._choose(text, layer)
        return self._stack(text, found) if isinstance(found, dict) else self._arrays[found]

    def _choose(self, text: str, layer: int | None) -> Key | dict[int, Key]:
        """The tensor that a name means in a layer; without a layer, those of all layers that were captured."""
        if not isinstance(text, str):
            raise SiteError(f"{text!r} names no site; write run['l_out', 5] or run['l_out'].")
        name, named_layer, occurrence = parse(text)
        layer = named_layer if layer is None else layer
        found = self._find(name, occurrence)
        if not found:
            labels = {label for key in self._arrays for label, _ in self._labels[key]}
            captured = sorted(label for label in labels if "#" not in label and "hook_" not in label)
            raise SiteError(
                f"{text!r} was not captured. Captured: {', '.join(captured) or 'nothing'}. "
                f"Ask for it with model.run(prompt, capture=({text!r},))."
            )
        if layer is None:
            return found
        n_layer = self.info.get("n_layer", max(found) + 1)
        layer = layer + n_layer if layer < 0 and layer not in found else layer
        if layer not in found and -1 in found and named_layer is None:
            layer = -1
        if layer not in found:
            layers = ", ".join(map(str, sorted(found)))
            raise SiteError(f"{text!r} was captured in layers {layers}, not in layer {layer}.")
        return found[layer]

    def _stack(self, text: str, found: dict[int, Key]) -> np.ndarray:
        arrays = [self._arrays[found[layer]] for layer in sorted(found)]
        if list(found) == [-1]:
            return arrays[0]
        shapes = {array.shape for array in arrays}
        if len(shapes) > 1:
            raise SiteError(f"{text!r} has other shapes in other layers ({sorted(shapes)}); ask for one layer.")
        return np.stack(arrays)

    # what the arrays hold

    def _one(self, site: str, layer: int | None) -> Key:
        found = self._choose(site, layer)
        if isinstance(found, Key):
            return found
        parts = {self._parts.get(key) for key in found.values()}
        if len(parts) > 1:
            raise SiteError(f"{site!r} was captured with other axes, heads or positions in other layers; name a layer.")
        return next(iter(found.values()))

    def axes(self, site: str, layer: int | None = None) -> tuple[str, ...]:
        """What each axis of ``run[site, layer]`` counts, such as ``("n_tokens", "n_embd")``.

        Args:
            site: as in ``run[site]``.
            layer: may be left out where all captured layers have the same.

        Raises:
            SiteError: not captured, or not the same in all layers.
        """
        return self._part(self._one(site, layer)).axes

    def heads(self, site: str, layer: int | None = None) -> list[int] | None:
        """Which heads ``run[site, layer]`` holds along its axis ``n_head``, ascending; None without such an axis.

        Raises:
            SiteError: as :meth:`axes`.
        """
        key = self._one(site, layer)
        part = self._part(key)
        return _held(part.head_axis, part.heads, self._arrays[key].shape)

    def positions(self, site: str, layer: int | None = None) -> list[int] | None:
        """Which tokens ``run[site, layer]`` holds along its axis ``n_tokens`` or ``n_query``, ascending from 0; None
        without such an axis. With ``run.positions("l_out", 5)[2] == 7``, row 2 belongs to ``run.tokens[7]``.

        Raises:
            SiteError: as :meth:`axes`.
        """
        key = self._one(site, layer)
        part = self._part(key)
        return _held(part.token_axis, part.positions, self._arrays[key].shape)

    def _part(self, key: Key) -> Part:
        if key not in self._parts:
            raise SiteError(f"This run does not know the axes of {key}.")
        return self._parts[key]

    def top(self, k: int = 5, position: int = -1) -> list[tuple[str, float]]:
        """The likeliest next tokens after a position.

        Returns:
            ``(piece, probability)``, the likeliest first.

        Raises:
            RunError: the run has no logits there, or no model to name tokens.
        """
        if self.logits is None:
            raise RunError("This run has no logits; make it without stop_after.")
        if self.model is None:
            raise RunError("A run from a file has no model to name tokens; use run.logits.")
        if not -len(self.logits) <= position < len(self.logits):
            raise RunError(f"Position {position} is out of range: there are logits for {len(self.logits)} positions.")
        if k < 1:
            raise RunError(f"k={k}: ask for at least one token.")
        logits = self.logits[position].astype(np.float64)
        probabilities = np.exp(logits - logits.max())
        probabilities /= probabilities.sum()
        order = np.argsort(-probabilities, kind="stable")[:k]
        return list(zip(self.model.pieces(order.tolist()), probabilities[order].tolist()))

    # files

    def save(self, path) -> Path:
        """Write everything but the model to a file that plain safetensors or numpy can read as well.

        Arrays lie there as ``l_out-5#0`` (name, layer, occurrence) and ``logits``. The description has an entry each
        for ``model``, ``arch``, ``n_layer``, ``n_embd``, ``prompt``, and, as JSON, ``tokens``, ``pieces`` and
        ``sites``: axes, heads, positions and other names of every array.

        Args:
            path: a name in ``.safetensors`` or ``.npz``, in a folder that exists; an old file is replaced.

        Raises:
            FileError: another suffix, or it cannot be written; nothing half-written is left.
        """
        arrays = {str(key): array for key, array in self._arrays.items()}
        if self.logits is not None:
            arrays["logits"] = self.logits
        return files.write_arrays(path, arrays, self._texts())

    def _texts(self) -> dict[str, str]:
        sites = {}
        for key in self._arrays:
            part = self._part(key)
            sites[str(key)] = {
                "key": (key.name, key.layer, key.occurrence),
                "axes": part.axes,
                "heads": "all" if part.heads is None else part.heads,
                "positions": "all" if part.positions is None else part.positions,
                "names": self._labels[key],
            }
        return {
            "format": FORMAT,
            **{name: str(self.info[name]) for name in (*_TEXTS, *_NUMBERS) if name in self.info},
            "tokens": json.dumps(self.tokens),
            "pieces": json.dumps(self.pieces, ensure_ascii=False),
            "sites": json.dumps(sites, ensure_ascii=False),
        }

    @classmethod
    def load(cls, path) -> "Run":
        """Read what :meth:`save` wrote. The run has no model: ``top`` and lenses need one.

        Raises:
            FileError: no such file, no run, or a damaged one.
        """
        with files.opened(path) as file:
            run = cls.described(file)
            with files.refusing(file.path):
                run._arrays = {key: file[str(key)] for key in run._arrays}
                run.logits = file["logits"] if "logits" in file.names else None
                run._check()
        return run

    @classmethod
    def described(cls, file: files.ArrayFile) -> "Run":
        """A run without its arrays, from an open file: names, tokens, axes.

        Raises:
            FileError: the file holds no run.
        """
        with files.refusing(file.path):
            texts = file.texts
            if file.format != FORMAT:
                raise ValueError("it holds no run of this package")
            keys, labels, parts = {}, {}, {}
            for site in json.loads(texts["sites"]).values():
                name, layer, occurrence = site["key"]
                key = Key(str(name), int(layer), int(occurrence))
                keys[key], labels[key] = None, [(str(name), int(layer)) for name, layer in site["names"]]
                parts[key] = Part(tuple(map(str, site["axes"])), _chosen(site["heads"]), _chosen(site["positions"]))
            info = {name: texts[name] for name in _TEXTS if name in texts}
            info |= {name: int(texts[name]) for name in _NUMBERS if name in texts}
            tokens = [int(token) for token in json.loads(texts["tokens"])]
            pieces = [str(piece) for piece in json.loads(texts["pieces"])]
            return cls(tokens, pieces, None, keys, labels, info=info, parts=parts)

    def _check(self) -> None:
        """Whether description and arrays belong together."""
        if len(self.tokens) != len(self.pieces):
            raise ValueError(f"it has {len(self.tokens)} tokens and {len(self.pieces)} pieces")
        for key, array in self._arrays.items():
            part = self._parts[key]
            if len(part.axes) != array.ndim:
                raise ValueError(f"{str(key)!r} has shape {array.shape}, but axes {part.axes}")
            for axis, chosen in ((part.head_axis, part.heads), (part.token_axis, part.positions)):
                if chosen is not None and (axis is None or len(chosen) != array.shape[axis]):
                    raise ValueError(f"{str(key)!r} has shape {array.shape}, but {len(chosen)} heads or positions")


def _chosen(described) -> tuple[int, ...] | None:
    return None if described == "all" else tuple(map(int, described))


def _held(axis: int | None, chosen: tuple[int, ...] | None, shape: tuple[int, ...]) -> list[int] | None:
    if axis is None:
        return None
    return list(range(shape[axis])) if chosen is None else list(chosen)


class Generation:
    """What :meth:`Model.generate <interp.Model.generate>` returns.

    Attributes:
        text: what was generated, without the prompt.
        tokens: its token ids.
        run: all tokens that were run with what was captured; ``run.logits`` has one row for each token generated,
            the row it was chosen from.
    """

    def __init__(self, text: str, tokens: list[int], run: Run):
        self.text, self.tokens, self.run = text, tokens, run

    def __repr__(self) -> str:
        return f"Generation({self.text!r})"
