"""Makes sequences of calls, which are plain data, and compares each with the same call on a model that made none before.

A question for ``child.Child`` is ``{"model": …, "calls": [call, …]}``, as ``sequences`` in ``call_sequences.py`` makes
them. The answer is a list of what became of the calls, ``"ok"`` or the name of an error each; or a text, ``"WRONG …"``
where a call gave other bits or another error than on the fresh model, ``"BUG …"`` where it raised what is no error of
this package.

Bits are those of all that a call returns: tokens, logits, captures, tables. What may hold from one call to the next is
the prefix in force and nothing else, so the fresh model gets the prefix first.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import sys
import traceback
from pathlib import Path

import numpy as np

import gguf_fuzz
import interp
from abuse_child import Raised, array, number, selector
from abuse_child import edits as made_of
from child import serve
from isolation import bits

N_CTX = 24

#: names of models: architecture, whether flash attention is on
MODELS = [f"{arch}{suffix}" for arch in ("llama", "gpt2", "gemma2", "mixtral") for suffix in ("", "-flash")]

#: tokens whose logits sweeps compare
A, B = 50, 70


def fresh(name: str) -> interp.Model:
    arch, flash = name.removesuffix("-flash"), name.endswith("-flash")
    return interp.Model(gguf_fuzz.small_file(arch), n_ctx=N_CTX, flash_attn=flash, n_threads=1)


class Calls:
    """The calls by name, on one model; each gives what it returns."""

    def __init__(self, model: interp.Model, folder: Path):
        self.model, self._folder = model, folder

    def make(self, call: dict):
        given = dict(call)
        given |= {"capture": [selector(s) for s in call.get("capture", ())], "edits": made_of(call.get("edits", ()), [])}
        return getattr(self, given.pop("call"))(**given)

    # runs

    def run(self, prompt, capture, edits, logits="all", stop_after=None):
        return self.model.run(prompt, capture, edits, logits, stop_after)

    def batch(self, prompts, per_prompt, capture, **_):
        return self.model.run(prompts, capture, [made_of(given, []) for given in per_prompt])

    def fail(self, prompt, capture, edits, at, after, kind):
        """A run that a function of the user's ends in the middle."""
        calls = []

        def failing(x):
            calls.append(1)
            if len(calls) == after:
                raise {"Raised": Raised, "KeyboardInterrupt": KeyboardInterrupt}[kind]("on purpose")
            return x * 0.5

        return self.model.generate(prompt, 3, [*edits, interp.edit_host(at, failing)], capture)

    def generate(self, prompt, capture, edits, options):
        return self.model.generate(prompt, edits=edits, capture=capture, **{k: number(v) for k, v in options.items()})

    def interrupt(self, prompt, capture, edits, after):
        """A generation that ``on_text`` ends."""
        pieces = []

        def hear(piece):
            pieces.append(piece)
            if len(pieces) == after:
                raise Raised("on purpose")

        return self.model.generate(prompt, 4, edits, capture, on_text=hear), pieces

    def stream(self, prompt, capture, edits, pieces, ends, inside):
        """A generation that is left in the middle, with a call meanwhile, which is refused."""
        stream = self.model.stream(prompt, 5, edits, capture)
        found = [piece for piece, _ in zip(stream, range(pieces))]
        try:
            found.append(bits(self.make(inside)))
        except interp.InterpError as err:
            found.append(type(err).__name__)
        if ends == "close":
            stream.close()
        elif ends == "read":
            found += [list(stream), stream.generation]
        return found

    # parts

    def resume(self, resid, from_layer, prompt, capture, edits, logits="all"):
        return self.model.resume(array(*resid), from_layer, prompt, edits, capture, logits)

    def halves(self, prompt, layer, capture, edits):
        """A run in two halves, and the whole."""
        first = self.model.run(prompt, "l_out", edits, stop_after=layer)
        second = self.model.resume(first["l_out", layer], layer + 1, prompt, capture=capture)
        return first, second, self.model.unembed(self.model.run(prompt, "l_out")["l_out", -1])

    def unembed(self, resid, **_):
        return self.model.unembed(array(*resid))

    # the prefix

    def prefix(self, tokens, **_):
        found = self.model.prefix(tokens)
        return None if found is None else found.tokens

    def save_load(self, **_):
        path = self.model.save_state(self._folder / "state.safetensors")
        self.model.prefix(None)
        return self.model.load_state(path).tokens

    # analyses

    def stats(self, corpus, sites, chunk, edits, **_):
        return interp.stats(self.model, corpus, sites, chunk=chunk, edits=edits, n_top=2, progress=False)

    def _metric(self, name):
        if name == "diff":
            return interp.logit_diff(A, B)
        seen = []

        def metric(run):
            seen.append(run)
            if name == "raises" and len(seen) == 3:
                raise Raised("on purpose")
            other = self.model.run([7, len(seen) % 3], logits="last").logits if name == "runs" else run.logits
            return float(run.logits[-1, A] - other[-1, B])

        return metric

    def sweep(self, kind, prompt, corrupted, metric, method, **_):
        options = {"metric": self._metric(metric), "method": method, "progress": False}
        if kind == "patch":
            return interp.patch_sweep(self.model, prompt, corrupted, layers=[0, 2], **options)
        if kind == "heads":
            return interp.patch_sweep(self.model, prompt, corrupted, site="z", per_head=True, layers=[1], **options)
        if kind == "ablation":
            return interp.ablation_sweep(self.model, prompt, layers=[0, 1], **options)
        if kind == "knockout":
            return interp.knockout_sweep(self.model, prompt, keys=[0], window=2, **options)
        return interp.path_patch(self.model, prompt, corrupted, sender=[(0, 1), (1, 2)], **options)

    def look(self, what, prompt, **_):
        if what == "lens":
            lens = interp.logit_lens(self.model, prompt, k=3)
            return [lens.logits(layer) for layer in range(self.model.n_layer)]
        if what == "attention":
            return interp.attention(self.model, prompt, layers=1)
        if what == "graph":
            return [(node.name, node.op, tuple(node.shape)) for node in self.model.graph(prompt)]
        if what == "weight":
            return self.model.weight("output_norm.weight")
        return [str(site) for site in self.model.sites()]


def done(model: interp.Model, call: dict, folder: Path) -> tuple[str, str, list[int]]:
    """What became of a call: "ok" or the name of the error, a hash of what it gave, and the prefix then in force."""
    gave = None
    try:
        with np.errstate(all="ignore"):
            gave, became = Calls(model, folder).make(call), "ok"
    except interp.InterpError as err:
        became = type(err).__name__ if str(err) and "GGML_ASSERT" not in str(err) else f"BUG {err!r}"
    except (Raised, KeyboardInterrupt) as err:
        became = type(err).__name__
    except Exception:
        became = f"BUG {traceback.format_exc()}"
    prefix = model._prefix.tokens if model._prefix is not None else []
    return became, hashlib.sha256(pickle.dumps(bits(gave))).hexdigest(), prefix


class Comparison:
    """Sequences, each on a model of its own, and what their calls give on fresh ones, which is kept."""

    def __init__(self, folder: Path):
        self._folder, self._kept = folder, {}

    def _alone(self, name: str, prefix: list[int], call: dict):
        key = json.dumps([name, prefix, call])
        if key not in self._kept:
            with fresh(name) as model:
                if prefix:
                    model.prefix(prefix)
                self._kept[key] = done(model, call, self._folder)
        return self._kept[key]

    def answer(self, question: dict):
        name, became, prefix = question["model"], [], []
        with fresh(name) as model:
            for index, call in enumerate(question["calls"]):
                found, wanted = done(model, call, self._folder), self._alone(name, prefix, call)
                if found[0].startswith("BUG"):
                    return f"call {index}: {found[0]}"
                if found != wanted:
                    return f"WRONG: call {index} with prefix {prefix} gave {found}, alone {wanted}"
                became.append(found[0])
                prefix = found[2]
        return became


if __name__ == "__main__":
    serve(Comparison(Path(sys.argv[1])).answer)
