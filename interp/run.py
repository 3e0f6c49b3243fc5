"""``Run``: what a run returns, and its files."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np

from .errors import FileError, RunError, SiteError
from .sites import Key, parse

_FORMAT = "llama-interp run 1"


class Run:
    """Tokens, logits and captured activations of one prompt.

    Attributes:
        tokens: the token ids that were run.
        pieces: their texts.
        logits: ``(n_tokens, n_vocab)`` float32; ``(1, n_vocab)`` for ``logits="last"``; None after ``stop_after``.
        model: the model that made it; None for a run loaded from a file.
        info: what a file keeps beside the arrays: model name, architecture, number of layers.
    """

    def __init__(self, tokens, pieces, logits, arrays: dict[Key, np.ndarray], labels: dict, model=None, info=None):
        self.tokens: list[int] = list(tokens)
        self.pieces: list[str] = list(pieces)
        self.logits: np.ndarray | None = logits
        self.model = model
        self.info: dict = dict(info or {})
        self._arrays, self._labels = arrays, labels

    def __repr__(self) -> str:
        names = sorted({key.name for key in self._arrays})
        return f"Run({len(self.tokens)} tokens, captured: {', '.join(names) or 'nothing'})"

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
        if not isinstance(text, str):
            raise SiteError(f"{site!r} names no site; write run['l_out', 5] or run['l_out'].")
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
            return self._stack(text, found)
        n_layer = self.info.get("n_layer", max(found) + 1)
        layer = layer + n_layer if layer < 0 and layer not in found else layer
        if layer not in found and -1 in found and named_layer is None:
            layer = -1
        if layer not in found:
            raise SiteError(f"{text!r} was captured in layers {', '.join(map(str, sorted(found)))}, not in layer {layer}.")
        return self._arrays[found[layer]]

    def _stack(self, text: str, found: dict[int, Key]) -> np.ndarray:
        arrays = [self._arrays[found[layer]] for layer in sorted(found)]
        if list(found) == [-1]:
            return arrays[0]
        shapes = {array.shape for array in arrays}
        if len(shapes) > 1:
            raise SiteError(f"{text!r} has other shapes in other layers ({sorted(shapes)}); ask for one layer.")
        return np.stack(arrays)

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
        """Write a safetensors file: arrays under their site's name, everything else in its metadata.

        Raises:
            FileError: it cannot be written, or the name does not end in ``.safetensors``.
        """
        from safetensors.numpy import save_file

        path = Path(path)
        if path.suffix != ".safetensors":
            raise FileError(f"{path}: a run is saved as .safetensors")
        arrays = {str(key): np.ascontiguousarray(array) for key, array in self._arrays.items()}
        if self.logits is not None:
            arrays["logits"] = np.ascontiguousarray(self.logits)
        described = {
            "format": _FORMAT,
            "tokens": self.tokens,
            "pieces": self.pieces,
            "info": self.info,
            "keys": [[key.name, key.layer, key.occurrence] for key in self._arrays],
            "labels": [self._labels[key] for key in self._arrays],
        }
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(arrays, str(temporary), metadata={"llama-interp": json.dumps(described)})
            os.replace(temporary, path)
        except OSError as err:
            raise FileError(f"{path} cannot be written: {err}") from err
        finally:
            temporary.unlink(missing_ok=True)
        return path

    @classmethod
    def load(cls, path) -> "Run":
        """Read what :meth:`save` wrote. The run has no model: ``top`` and lenses need one.

        Raises:
            FileError: there is no such file, or it is no run.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), framework="numpy") as file:
                described = json.loads((file.metadata() or {}).get("llama-interp", "{}"))
                if described.get("format") != _FORMAT:
                    raise FileError(f"{path} holds no run of this package.")
                keys = [Key(*key) for key in described["keys"]]
                arrays = {key: file.get_tensor(str(key)) for key in keys}
                logits = file.get_tensor("logits") if "logits" in file.keys() else None
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as err:
            if isinstance(err, FileError):
                raise
            raise FileError(f"{path} cannot be read as a run: {err}") from err
        labels = {key: [tuple(label) for label in found] for key, found in zip(keys, described["labels"])}
        return cls(described["tokens"], described["pieces"], logits, arrays, labels, info=described["info"])


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
