"""Path patching, against the same definition computed by hand: in closed form, and with a Llama of a page of numpy."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from PIL import Image

import interp
import models
from interp.cells import Plain

CLEAN = "When Mary and John went to the store, John gave a drink to"
CORRUPTED = "When Mary and John went to the store, Mary gave a drink to"
METRIC = interp.logit_diff(" Mary", " John")

#: one run for each cell; the batched method has tests of its own
path_patch = functools.partial(interp.path_patch, method="serial")

N_HEAD, N_KV, D = 4, 2, 16


class Llama:
    """The tiny Llama in float64. ``hook(site, layer, array) -> array`` sees what may be replaced."""

    def __init__(self, model: interp.Model):
        self.n_layer, self._model, self._read = model.n_layer, model, {}
        self.a, self.b = (model.tokens(" " + name)[-1] for name in ("Mary", "John"))

    def weight(self, name: str) -> np.ndarray:
        if name not in self._read:
            self._read[name] = self._model.weight(f"{name}.weight").astype(np.float64)
        return self._read[name]

    def norm(self, x: np.ndarray, name: str) -> np.ndarray:
        return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-5) * self.weight(name)

    @staticmethod
    def rotated(x: np.ndarray) -> np.ndarray:
        angles = np.arange(len(x))[:, None] * 10000.0 ** (-np.arange(0, D, 2) / D)
        cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
        even, odd = x[..., 0::2], x[..., 1::2]
        return np.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1).reshape(x.shape)

    def run(self, tokens: list[int], hook=lambda site, layer, x: x) -> float:
        x, n = self.weight("token_embd")[tokens], len(tokens)
        for layer in range(self.n_layer):
            def w(name, layer=layer):
                return self.weight(f"blk.{layer}.{name}")

            normed = self.norm(x, f"blk.{layer}.attn_norm")
            q, k, v = ((normed @ w(f"attn_{kind}").T).reshape(n, -1, D) for kind in "qkv")
            q, k, v = hook("q", layer, self.rotated(q)), hook("k", layer, self.rotated(k)), hook("v", layer, v)
            k, v = (np.repeat(part, N_HEAD // N_KV, axis=1) for part in (k, v))
            scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(D)
            scores = np.where(np.tri(n, dtype=bool), scores, -np.inf)
            scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
            scores /= scores.sum(axis=-1, keepdims=True)
            z = hook("z", layer, np.einsum("hqk,khd->qhd", scores, v))
            x = x + z.reshape(n, -1) @ w("attn_output").T
            normed = self.norm(x, f"blk.{layer}.ffn_norm")
            gate, up = normed @ w("ffn_gate").T, normed @ w("ffn_up").T
            x = x + hook("mlp_out", layer, (gate / (1 + np.exp(-gate)) * up) @ w("ffn_down").T)
        logits = self.norm(x[-1], "output_norm") @ self.weight("output").T
        return float(logits[self.a] - logits[self.b])

    def recorded(self, tokens: list[int], hook=lambda site, layer, x: x) -> tuple[float, dict]:
        seen = {}

        def record(site, layer, x):
            seen[site, layer] = hook(site, layer, x)
            return seen[site, layer]

        return self.run(tokens, record), seen

    def path_patched(self, source, base, sender, receivers, freeze_mlp) -> float:
        """The definition: everything frozen but the sender; then what the receivers take in, alone."""
        there, here = self.recorded(source)[1], self.recorded(base)[1]

        def frozen(site, layer, x):
            if site == "z":
                x = here["z", layer].copy()
                if layer == sender[0]:
                    x[:, sender[1]] = there["z", layer][:, sender[1]]
            return here["mlp_out", layer] if site == "mlp_out" and freeze_mlp else x

        value, sent = self.recorded(base, frozen)
        if receivers == "logits":
            return value

        def received(site, layer, x):
            x = x.copy()
            for il, head, kind in receivers:
                if (kind, il) == (site, layer):
                    x[:, head] = sent[site, layer][:, head]
            return x

        return self.run(base, received)


@pytest.fixture(scope="module")
def llama(tiny) -> Llama:
    return Llama(tiny)


@pytest.mark.parametrize("freeze_mlp", [False, True])
@pytest.mark.parametrize("direction", ["denoise", "noise"])
@pytest.mark.parametrize(
    "receivers", ["logits", [(2, 3, "q")], [(3, 1, "k"), (2, 0, "v")], [(3, 0, "q"), (3, 2, "q"), (1, 1, "v")]]
)
def test_paths_are_those_of_the_definition(tiny, llama, receivers, direction, freeze_mlp):
    clean, corrupted = tiny.tokens(CLEAN), tiny.tokens(CORRUPTED)
    assert llama.run(clean) == pytest.approx(METRIC(tiny.run(CLEAN)), abs=1e-4), "the model of numpy is the model"
    made = path_patch(tiny, CLEAN, CORRUPTED, [(0, 1), (1, 3)], receivers, METRIC, freeze_mlp, direction)
    source, base = (clean, corrupted) if direction == "denoise" else (corrupted, clean)
    for sender in ((0, 1), (1, 3)):
        wanted = llama.path_patched(source, base, sender, receivers, freeze_mlp)
        value = made.values[made.layers.index(sender[0]), made.heads.index(sender[1])]
        assert value == pytest.approx(wanted, abs=2e-5)
        assert abs(wanted - made.baseline) > 4e-4, "there is something to see"
    assert np.isnan(made.values).sum() == 2 and made.complete


@pytest.mark.parametrize("arch", ["llama", "gpt2", "qwen3", "falcon", "mixtral"])
def test_to_the_logits_with_all_else_held_the_stream_moves_by_what_the_head_adds(arch):
    with interp.Model(models.tiny(arch), n_ctx=256, kv_type="f32", flash_attn=False, n_threads=1) as model:
        clean, corrupted = (model.run(prompt, capture=("z", "l_out")) for prompt in (CLEAN, CORRUPTED))
        made = path_patch(model, CLEAN, CORRUPTED, metric=METRIC, freeze_mlp=True)
        assert made.values.shape == (model.n_layer, 4) and made.receivers is None
        a, b = (model.tokens(" " + name)[-1] for name in ("Mary", "John"))
        for layer in range(model.n_layer):
            matrix = model.weight(f"blk.{layer}.attn_output.weight")
            change = (clean["z", layer] - corrupted["z", layer])[-1]
            matrix = matrix.reshape(len(matrix), *change.shape)
            for head in range(4):
                logits = model.unembed(corrupted["l_out", -1][-1] + matrix[:, head] @ change[head])
                assert made.values[layer, head] == pytest.approx(logits[a] - logits[b], abs=1e-4)
        assert made.corrupted == pytest.approx(METRIC(corrupted), abs=1e-4) and made.baseline == made.corrupted
        with pytest.raises(interp.RunError, match="heads; see values"):
            made.value


def test_runs_that_start_in_the_middle_and_whole_runs_give_the_same(tiny, monkeypatch):
    arguments = (tiny, CLEAN, CORRUPTED, (1, 2), (3, 0, "q"), METRIC)
    quick = path_patch(*arguments)
    assert quick.value == quick.values[0, 0] and (quick.layers, quick.heads) == ([1], [2])
    monkeypatch.setattr(Plain, "can_start", False)
    assert path_patch(*arguments).value == quick.value


def test_every_head_below_the_receivers_sends_by_default(tiny):
    made = path_patch(tiny, CLEAN, CORRUPTED, receivers=(-2, -1, "q"), metric=METRIC)
    assert made.receivers == [(2, 3, "q")] and made.layers == [0, 1] and not np.isnan(made.values).any()
    one = path_patch(tiny, CLEAN, CORRUPTED, (1, -1), (2, 3, "q"), METRIC)
    assert one.value == made.values[1, 3]


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ({"metric": None}, interp.RunError, "path_patch needs a metric"),
        ({"clean": CLEAN + " the"}, interp.RunError, "15 tokens"),
        ({"direction": "up"}, interp.RunError, "noise"),
        ({"sender": (4, 0)}, interp.SiteError, "4"),
        ({"sender": (0, 4)}, interp.SiteError, "'z' of layer 0 has heads 0 to 3"),
        ({"sender": 3}, interp.SiteError, "layer, head"),
        ({"sender": []}, interp.SiteError, "layer, head"),
        ({"sender": (2, 0)}, interp.SiteError, "no path to the receivers.* layer 2"),
        ({"receivers": (2, 2, "k")}, interp.SiteError, "'k' of layer 2 has heads 0 to 1"),
        ({"receivers": (2, 2, "z")}, interp.SiteError, 'or "logits"'),
        ({"receivers": "resid"}, interp.SiteError, 'or "logits"'),
        ({"receivers": []}, interp.SiteError, 'or "logits"'),
        ({"receivers": (0, 2, "q"), "sender": None}, interp.SiteError, "before layer 0"),
    ],
)
def test_what_cannot_be_patched_is_said(tiny, given, error, says):
    arguments = {"clean": CLEAN, "corrupted": CORRUPTED, "sender": (0, 1), "receivers": (2, 3, "q"), "metric": METRIC}
    with pytest.raises(error, match=says):
        path_patch(tiny, **{**arguments, **given})


def test_ctrl_c_returns_the_finished_part_and_results_are_drawn_and_saved(tiny, tmp_path, capsys):
    whole = path_patch(tiny, CLEAN, CORRUPTED, None, [(2, 3, "q"), (2, 1, "v")], METRIC)
    calls = []

    def interrupted(run):
        calls.append(run)
        if len(calls) == 2 + 4:
            raise KeyboardInterrupt
        return METRIC(run)

    part = path_patch(tiny, CLEAN, CORRUPTED, None, whole.receivers, interrupted, progress=False)
    done = ~np.isnan(part.values)
    assert not part.complete and done.sum() == 3 and np.array_equal(part.values[done], whole.values[done])
    whole.print(2)
    assert "paths from each head to 2.1 v, 2.3 q" in capsys.readouterr().out
    for shown in (part, whole):
        shown.plot(tmp_path / "a.png")
        with Image.open(tmp_path / "a.png") as image:
            assert min(image.size) > 100
        shown.html(tmp_path / "a.html")
        again = interp.PathPatch.load(shown.save(tmp_path / "a.safetensors"))
        assert np.array_equal(again.values, shown.values, equal_nan=True) and again.receivers == shown.receivers
