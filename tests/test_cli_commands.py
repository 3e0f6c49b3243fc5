"""The subcommands of `llama-interp`: what they compute, print and write."""

# ruff: noqa: F811  fixtures that are imported

from __future__ import annotations

import contextlib
import csv
import dataclasses
import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import interp
from cli_calls import OTHER, PROMPT, call, default, json_of, loaded, output_of, rome, same_results, saved_of, top_of
from interp.cli.output import _plain

def test_lens_finds_a_token_over_layers_and_draws(tiny: interp.Model, tmp_path: Path):
    png, html = tmp_path / "a.png", tmp_path / "a.html"
    args = ("lens", "-p", PROMPT, "--token", " Paris", "--position", 2, "--png", png, "--html", html, "--topk", 2)
    text = output_of(*args)
    lens = interp.logit_lens(tiny, PROMPT)
    assert "at position 2" in text and text.endswith(f"wrote {png}\nwrote {html}\n")
    rows = [line.split() for line in text.split("rank and probability of ␣Paris")[1].splitlines()[3 : 3 + tiny.n_layer]]
    assert [int(row[1]) for row in rows] == (lens.rank(" Paris")[:, 2] + 1).tolist()
    found = json_of(*args)["logit_lens"][0]["tokens"][0]
    assert found["token"] == " Paris" and np.array_equal(found["prob"], lens.prob(" Paris"))
    Image.open(png).verify()


def test_lens_writes_every_site_into_a_new_folder(tmp_path: Path):
    output_of("lens", "-p", PROMPT, "l_out", "ffn_out-1", "--out", tmp_path / "o")
    assert sorted(os.listdir(tmp_path / "o")) == [
        "lens-ffn_out-1.html", "lens-ffn_out-1.png", "lens-l_out.html", "lens-l_out.png",
    ]


def test_attention_lists_the_strongest_looks_and_holds_every_weight(tiny: interp.Model, tmp_path: Path):
    run = tiny.run(PROMPT, capture="attn_scores")
    result = json_of("attention", "-p", PROMPT, "--layer", 1, "--topk", 3, "--first")
    for pattern in result["attention"]:
        weights = run["attn_scores", 1][pattern["head"]]
        assert pattern["layer"] == 1 and np.array_equal(np.array(pattern["weights"], np.float32), weights)
    assert len(result["attention"]) == tiny.n_head and len(result["edges"]) == 3
    best = result["edges"][0]
    weights = run["attn_scores", 1]
    assert best["weight"] == weights[:, 1:].max() == weights[best["head"], best["query"], best["key"]]
    assert all(edge["key"] > 0 for edge in json_of("attention", "-p", PROMPT)["edges"])
    text = output_of("attention", "-p", PROMPT, "--layer", -1, "--head", 0, "--queries", "last")
    assert "strongest looks" in text and "␣of" in text


def test_attention_draws_a_head_a_grid_and_everything(tmp_path: Path):
    for i, flags in enumerate((
        [], ["--layer", 1], ["--layer", 1, "--head", 2, "--html", tmp_path / "a.html"],
        ["--layer", 1, "--head", 2, "--queries", "3,-1"],
    )):
        path = tmp_path / f"{i}.png"
        assert f"wrote {path}" in output_of("attention", "-p", PROMPT, "--png", path, *flags)
        Image.open(path).verify()


def test_sites_are_grouped_over_layers_and_aliases_follow(tiny: interp.Model):
    result = json_of("sites")
    rows = {row["name"]: row for row in result["sites"]}
    layers = list(range(tiny.n_layer))
    assert rows["l_out"] == {
        "name": "l_out", "layers": layers, "axes": ["n_tokens", "n_embd"], "shape": [None, tiny.n_embd],
        "occurrences": 1,
    }
    aliases = {row["name"]: row for row in result["aliases"]}
    assert aliases["z"] == {"name": "z", "layers": layers, "is": "kqv_out"}
    assert aliases["resid_pre"]["is"] == "l_out of the layer before, embd"
    assert aliases["final_norm"]["is"] == "result_norm"
    text = output_of("sites")
    line = next(line for line in text.splitlines() if line.startswith("l_out"))
    assert "0-3" in line and "n_tokens, n_embd" in line and f"n x {tiny.n_embd}" in line


def test_graph_shows_what_edits_added_in_three_forms(tmp_path: Path):
    text = output_of("graph", "-p", PROMPT, "-a", "1.2")
    assert "added by zero ablation" in text and text == output_of("graph", "-p", PROMPT, "-a", "1.2", "--text")
    assert "added by" not in output_of("graph", "-p", PROMPT)
    nodes = json.loads(output_of("graph", "-p", PROMPT, "-a", "1.2", "--json"))["nodes"]
    assert len(nodes) == len(text.splitlines())
    dot = output_of("graph", "-p", PROMPT, "--dot")
    output_of("graph", "-p", PROMPT, "--out", tmp_path / "g.dot")
    assert (tmp_path / "g.dot").read_text() == dot


def test_show_tells_what_files_hold(tiny: interp.Model, rome: Path, tmp_path: Path):
    text = output_of("show", rome)
    assert OTHER in text and "Col" in text and "l_out#0   0-3" in text
    result = json_of("show", rome)
    assert result["kind"] == "run" and result["tokens"] == tiny.tokens(OTHER) and len(result["arrays"]) == tiny.n_layer
    interp.ControlVector({2: np.ones(64)}, "llama").save(tmp_path / "v.gguf")
    assert json_of("show", tmp_path / "v.gguf")["arrays"] == [
        {"name": "direction.2", "shape": [64], "type": "float32", "length": 8.0}
    ]
    np.savez(tmp_path / "x.npz", a=np.zeros((2, 3)))
    assert json_of("show", tmp_path / "x.npz")["arrays"] == [{"name": "a", "shape": [2, 3], "type": "float64"}]


def test_a_raw_dump_is_shown_by_shape_and_converted(tiny: interp.Model, tmp_path: Path):
    run, dump, to = tiny.run(OTHER, capture="l_out"), tmp_path / "l_out-2.bin", tmp_path / "a.safetensors"
    run["l_out", 2].tofile(dump)
    row = json_of("show", dump, "--shape", "-1,64", "--to", to)["arrays"][0]
    assert row["shape"] == list(run["l_out", 2].shape) and row["max"] == run["l_out", 2].max()
    assert json_of("show", dump)["arrays"][0]["shape"] == [run["l_out", 2].size]
    assert np.array_equal(interp.load_array(to, site="l_out", layer=2), run["l_out", 2])
    # The converted file serves as well as the dump.
    assert same_results(*(json_of("-p", PROMPT, "--patch", "l_out-2", file, 1, -1) for file in (dump, to)))


def test_a_run_file_is_converted_whole(rome: Path, tmp_path: Path):
    output_of("show", rome, "--to", tmp_path / "a.safetensors")
    a, b = interp.Run.load(rome), interp.Run.load(tmp_path / "a.safetensors")
    assert a.tokens == b.tokens and np.array_equal(a["l_out"], b["l_out"])


def test_doctor_finds_library_and_model(model: interp.Model):
    library, default = output_of("doctor").splitlines()
    assert library.split()[:3] == ["native", "library", "ok"] and default.split()[:3] == ["default", "model", "ok"]
    assert default.endswith(".gguf") and json_of("doctor")["default model"]["ok"]


def test_doctor_names_a_missing_library(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("interp.native.abi_status", lambda: {"ok": False, "detail": "no library: run build.py"})
    result = call("doctor")
    assert result.exit_code == 1 and "missing" in result.output and "no library: run build.py" in result.output


# What goes to the model, whatever it does with it


class Recorder:
    """A model, or a result, that notes what it is called with."""

    path, name, arch, n_layer, n_head, n_embd, n_vocab = "a.gguf", "a", "llama", 2, 2, 8, 16

    def __init__(self):
        self.calls: list[tuple] = []

    def tokens(self, text: str) -> list[int]:
        return [1] * len(text)

    def _generation(self, name: str, given, options: dict):
        on_text = options.pop("on_text", None)
        self.calls.append((name, given, options))
        for piece in (" so", " it", " goes") if on_text else ():
            on_text(piece)
        return SimpleNamespace(text=" so it goes", tokens=[1, 2, 3])

    def generate(self, prompt, **options):
        return self._generation("generate", prompt, options)

    def chat(self, messages, **options):
        return self._generation("chat", messages, options)

    def prefix(self, prompt):
        self.calls.append(("prefix", prompt))
        return contextlib.nullcontext()

    def save_state(self, path):
        self.calls.append(("save_state", path))

    def load_state(self, path):
        self.calls.append(("load_state", path))


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    made = Recorder()
    monkeypatch.setattr(interp, "Model", lambda path=None, **_: made)
    return made


def test_every_option_of_a_generation_reaches_the_model(recorder: Recorder, tmp_path: Path):
    plain = {"max_tokens": 64, "edits": [], "temperature": 0.0, "seed": 0, "top_k": 0, "top_p": 1.0, "stop": ()}
    flags = "--temperature 0.5 --seed 3 --top-k 4 --top-p 0.9 -n 7 --stop a --stop b".split()
    chosen = {"max_tokens": 7, "edits": [], "temperature": 0.5, "seed": 3, "top_k": 4, "top_p": 0.9, "stop": ("a", "b")}
    assert output_of("generate", "-p", "Hi,") == "Hi, so it goes\n"
    assert output_of("generate", "-p", "Hi", "--chat", *flags) == " so it goes\n"
    assert json_of("generate", "-p", "Hi", *flags)["text"] == " so it goes"
    messages = [{"role": "user", "content": "Hi"}]
    assert recorder.calls == [("generate", "Hi,", plain), ("chat", messages, chosen), ("generate", "Hi", chosen)]


def test_a_state_is_saved_before_and_loaded_before_the_generation(recorder: Recorder, tmp_path: Path):
    path = tmp_path / "s.safetensors"
    output_of("generate", "-p", "Hi", "--save-state", path)
    assert [call[0] for call in recorder.calls] == ["prefix", "save_state", "generate"]
    path.write_text("a state")
    recorder.calls.clear()
    output_of("generate", "-p", "Hi", "--load-state", path)
    assert [call[0] for call in recorder.calls] == ["load_state", "generate"] and recorder.calls[0][1] == path


# Generation and states


def test_generate_takes_every_option_of_the_model(tiny: interp.Model):
    options = {"temperature": 0.8, "seed": 3, "top_k": 40, "top_p": 0.9}
    flags = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", value)]
    wanted = tiny.generate(PROMPT, 12, edits=interp.ablate([(1, 2)]), **options)
    found = json_of("generate", "-p", PROMPT, "-n", 12, "-a", "1.2", *flags)
    assert found["text"] == wanted.text and found["tokens"] == wanted.tokens and found["prompt"] == PROMPT
    assert output_of("generate", "-p", PROMPT, "-n", 12, "-a", "1.2", *flags) == PROMPT + wanted.text + "\n"
    assert json_of("generate", "-p", PROMPT, "-n", 12, *flags)["tokens"] != wanted.tokens


def test_edits_of_generated_tokens_alone_leave_the_first_one(default: interp.Model):
    flags = ["-a", ",".join(f"{layer}.{head}" for layer in range(30) for head in range(9)), "--positions", "generated"]
    text = output_of("generate", "-p", PROMPT, "-n", 4, *flags)
    assert text.startswith(PROMPT + " Paris") and text != output_of("generate", "-p", PROMPT, "-n", 4)


def test_generate_ends_before_a_stop_text(default: interp.Model):
    assert output_of("generate", "-p", PROMPT, "--stop", ",") == PROMPT + " Paris\n"


def test_chat_puts_the_prompt_into_the_models_template(default: interp.Model):
    question = "What is the capital of France?"
    wanted = default.chat(question, max_tokens=8)
    assert output_of("generate", "--chat", "-p", question, "-n", 8) == wanted.text + "\n"


def test_a_state_is_saved_and_continued(tiny: interp.Model, tmp_path: Path):
    state, (first, second) = tmp_path / "s.safetensors", ("The Eiffel Tower is", " located in the city of")
    assert f"wrote {state}" in output_of("run", "-p", first, "--save-state", state)
    try:
        with tiny.prefix(first):
            wanted = top_of(tiny, [], 5, second)
        result = json_of("run", "-p", second, "--load-state", state)
        assert result["top"] == wanted and result["tokens"] == tiny.vocab.tokens(second, special=False)
        assert json_of("show", state)["kind"] == "state"
        tokens = json_of("generate", "-p", second, "-n", 3, "--load-state", state)["tokens"]
        tiny.prefix(None)
        output_of("generate", "-p", first, "-n", 1, "--save-state", state)
        assert json_of("generate", "-p", second, "-n", 3, "--load-state", state)["tokens"] == tokens
    finally:
        tiny.prefix(None)


# Statistics


def test_stats_are_those_of_the_package(tiny: interp.Model, tmp_path: Path):
    corpus, out, png, html = (tmp_path / name for name in ("c.txt", "s.npz", "s.png", "s.html"))
    corpus.write_text(f"{PROMPT} Paris. {OTHER} Rome. " * 20)
    flags = ["--site", "z", "--layers", "0-2", "--top", 3, "--skip-first", "--max-tokens", 200]
    wanted = interp.stats(tiny, corpus, sites="z", layers=[0, 1, 2], n_top=3, skip_first=True, max_tokens=200)
    result = json_of("stats", corpus, *flags, "--out", out, "--png", png, "--html", html, "--topk", 4)
    assert result["info"] == wanted.info and result["files"] == [str(out), str(png), str(html)]
    (site, rows), = result["outliers"].items()
    assert site == "kqv_out" and len(rows) == 4
    outlier = wanted.outliers("z", 4)[0]
    assert rows[0]["channel"] == list(outlier.channel) and rows[0]["rms"] == outlier.rms
    assert np.array_equal(interp.Stats.load(out).mean("z", 1), wanted.mean("z", 1))
    assert json_of("show", out)["kind"] == "stats" and str(wanted.n_tokens) in output_of("show", out)
    Image.open(png).verify()
    text = output_of("stats", corpus, *flags)
    assert "the 20 largest channels" in text and "c.txt" in text
    mean = json_of("run", "-p", PROMPT, "-a", "1.2", "--ablate-mode", "mean", "--ablate-from", out)
    assert mean["top"] == top_of(tiny, [interp.ablate([(1, 2)], mode="mean", mean=wanted)], 5)
    missing = call("run", "-p", PROMPT, "-a", "3.2", "--ablate-mode", "mean", "--ablate-from", out)
    assert missing.exit_code == 1 and "does not hold kqv_out-3#0" in missing.stderr


# Sweeps


def test_a_sweep_is_that_of_the_package(tiny: interp.Model, tmp_path: Path):
    clean, corrupted = "The Eiffel Tower is in", "The Eiffel Bridge is in"
    assert len(tiny.tokens(clean)) == len(tiny.tokens(corrupted))
    out, png, html = (tmp_path / name for name in ("s.npz", "s.png", "s.html"))
    args = ["sweep", "-p", clean, "--corrupted", corrupted, "--answer", " Paris"]
    metric = interp.logit_diff(" Paris", " Rome")
    wanted = interp.patch_sweep(tiny, clean, corrupted, "resid_pre", metric=metric, layers=[0, 2], positions=[-2, -1])
    flags = ["--instead", " Rome", "--site", "resid_pre", "--layers", "0,2", "--positions", "-2,-1"]
    result = json_of(*args, *flags, "--out", out, "--png", png, "--html", html)
    assert np.array_equal(result["values"], wanted.values) and result["clean"] == wanted.clean
    assert result["top"][0]["layer"] == wanted.top(1)[0].layer and json_of("show", out)["kind"] == "sweep"
    Image.open(png).verify()
    heads = json_of(*args, "--site", "z", "--per-head", "--layers", 1, "--direction", "noise")
    assert heads["heads"] == [0, 1, 2, 3] and heads["metric"] == "probability of ␣Paris"
    assert "patching l_out" in output_of(*args, "--layers", 0, "--topk", 3)
    assert json_of(*args, "--layers", 0, "--positions", "last")["positions"] == [len(tiny.tokens(clean)) - 1]
    for flags, part in (
        (["--corrupted", clean], "the same"), (["--corrupted", "x"], "the same number"), (["--layers", 9], "Layer 9"),
        (["--answer", "Eiffel Tower"], "not one"), (["--per-head"], "no heads"),
        (["--positions", "0,9"], "position 9 is out of range, the prompt has 6 tokens: 0 The, 1 ␣E, 2 "),
        (["--positions", "generated"], "nothing is generated"), (["--instead", " Paris"], "the same token"),
    ):
        failed = call(*args, *flags)
        assert failed.exit_code == 2 and part in failed.stderr and failed.stderr.count("\n") == 1


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_a_file_of_pairs_gives_their_mean(tiny: interp.Model, tmp_path: Path, suffix: str):
    rows = [
        ("The Eiffel Tower is in", "The Eiffel Bridge is in", " Paris", " Rome"),
        ("A Tower, it is in", "A Bridge, it is in", " Rome", " Paris"),
    ]
    names, file = ("clean", "corrupted", "answer", "instead"), tmp_path / f"pairs.{suffix}"
    with file.open("w", encoding="utf-8-sig", newline="") as opened:
        if suffix == "csv":
            csv.writer(opened).writerows([names, *rows])
        else:
            opened.write("\n\n".join(json.dumps(dict(zip(names, row))) for row in rows))
    clean, corrupted, *tokens = map(list, zip(*rows))
    metric = [interp.logit_diff(*pair) for pair in zip(*tokens)]
    wanted = interp.patch_sweep(tiny, clean, corrupted, "resid_pre", metric=metric, layers=[0, 2], positions=[-1])
    flags = ["--pairs", file, "--site", "resid_pre", "--layers", "0,2", "--positions", "last"]
    out, png, html = (tmp_path / name for name in ("s.npz", "s.png", "s.html"))
    result = json_of("sweep", *flags, "--out", out, "--png", png, "--html", html)
    assert np.array_equal(result["values"], wanted.values) and np.array_equal(result["each"], wanted.each)
    assert np.array_equal([result["low"], result["high"]], wanted.interval()) and result["n_given"] == 2
    assert result["top"][0] == wanted.top(1)[0]._asdict() and result["site"] == "resid_pre"
    assert json_of("show", out)["kind"] == "mean sweep" and "mean of 2 pairs" in output_of("show", out)
    Image.open(png).verify()
    assert "mean of 2 pairs" in output_of("sweep", *flags) and interp.MeanSweep.load(out).complete


def given(made) -> dict:
    """What a result holds, as a JSON object has it."""
    held = {field.name: getattr(made, field.name) for field in dataclasses.fields(made) if field.name != "model"}
    return _plain({**held, "effects": made.effects, "top": [cell._asdict() for cell in made.top(10)]})


def check_result(made, args: list, folder: Path) -> None:
    """A command gives, prints, draws and saves what the package finds, and `show` reads it again."""
    out, png, html, again = (folder / name for name in ("r.npz", "r.png", "r.html", "again.png"))
    result = json_of(*args, "--out", out, "--png", png, "--html", html)
    assert {name: result[name] for name in given(made)} == given(made)
    assert result["files"] == [str(out), str(png), str(html)] and "<html>" in html.read_text()[:100]
    assert given(type(made).load(out)) == given(made)
    table = output_of(*args, "--topk", 3)
    assert made._title() in table and len(table.splitlines()) == 2 + 2 + 3
    shown = output_of("show", out, "--topk", 3, "--png", again)
    assert shown.endswith(f"{table}wrote {again}\n") and type(made)._KIND in shown
    assert np.array_equal(Image.open(again), Image.open(png))
    shown = json_of("show", out, "--topk", 2)
    assert shown["kind"] == type(made)._KIND and shown["top"] == result["top"][:2]
    assert shown["values"] == result["values"]


PAIR = "The Eiffel Tower is in", "The Eiffel Bridge is in"
_METRIC = interp.logit_diff(" Paris", " Rome")
_ANSWER = ["--answer", " Paris", "--instead", " Rome"]


def test_an_ablation_is_that_of_the_package(tiny: interp.Model, tmp_path: Path):
    args = ["ablation", "-p", PAIR[0], *_ANSWER]
    check_result(interp.ablation_sweep(tiny, PAIR[0], _METRIC), args, tmp_path)
    made = interp.ablation_sweep(tiny, PAIR[0], interp.probability(" Paris"), "mlp_out", layers=[0, 1, 3])
    check_result(made, [*args[:-2], "--site", "mlp_out", "--layers", "0-1,-1"], tmp_path)


def test_an_ablation_takes_means_of_runs_and_of_statistics(tiny: interp.Model, tmp_path: Path):
    args, file, corpus = ["ablation", "-p", PAIR[0], *_ANSWER, "--layers", 1], tmp_path / "s.npz", tmp_path / "c.txt"
    run, saved = tiny.run(OTHER, capture="z"), saved_of("z", tmp_path)
    wanted = interp.ablation_sweep(tiny, PAIR[0], _METRIC, mode="mean", mean=run, layers=1)
    assert json_of(*args, "--mean", saved)["values"] == wanted.values.tolist() != json_of(*args)["values"]
    corpus.write_text(OTHER * 9)
    output_of("stats", corpus, "--site", "mlp_out", "--layers", "0,1", "--out", file)
    means = interp.ablation_sweep(tiny, PAIR[0], _METRIC, "mlp_out", "mean", interp.Stats.load(file), layers=1)
    result = json_of(*args, "--site", "mlp_out", "--mean", file)
    assert result["values"] == means.values.tolist() and result["mode"] == "mean"
    for flags, part in ((["--layers", 2], "does not hold ffn_out-2"), (["--site", "attn_out"], "does not hold")):
        failed = call(*args, "--site", "mlp_out", "--mean", file, *flags)
        assert failed.exit_code == 1 and part in failed.stderr


def test_a_knockout_is_that_of_the_package(tiny: interp.Model, tmp_path: Path):
    args, last = ["knockout", "-p", PAIR[0], *_ANSWER], len(tiny.tokens(PAIR[0])) - 1
    made = interp.knockout_sweep(tiny, PAIR[0], _METRIC, keys={"name": [2, 3], "4": [4]}, window=3, layers=[0, 2])
    check_result(made, [*args, "--keys", "name=2-3", "--keys", 4, "--window", 3, "--layers", "0,2"], tmp_path)
    made = interp.knockout_sweep(tiny, PAIR[0], _METRIC, range(last + 1), {"a=b": [1, 2]})
    check_result(made, [*args, "--keys", "a=b=1-2", "--queries", "all"], tmp_path)
    text = output_of(*args, "--keys", "name=2-3", "--keys", "4", "--keys", "-2", "--window", 1, "--layers", 1)
    pieces = tiny.pieces(tiny.tokens(PAIR[0]))
    assert f"name, 2-3: {''.join(pieces[2:4]).strip()} " in text
    assert f"\n4: {pieces[4].strip()} " in text and f"\n-2, {last - 1}: {pieces[-2].strip()} " in text


def test_a_knockout_without_keys_numbers_the_tokens(tiny: interp.Model):
    failed = call("knockout", "-p", "The Eiffel Tower is in", "--answer", " Paris")
    pieces = [f"{i} {piece.replace(' ', '␣')}" for i, piece in enumerate(tiny.pieces(tiny.tokens(PAIR[0])))]
    assert failed.exit_code == 2 and f"the prompt has {len(pieces)} tokens: {', '.join(pieces)} (see" in failed.stderr
    failed = call("knockout", "-p", "x " * 90, "--answer", " Paris", "--keys", 500)
    assert "…" in failed.stderr and len(failed.stderr) < 1000


def test_paths_are_those_of_the_package(tiny: interp.Model, tmp_path: Path):
    args = ["paths", "-p", PAIR[0], "--corrupted", PAIR[1], *_ANSWER]
    check_result(interp.path_patch(tiny, *PAIR, metric=_METRIC), args, tmp_path)
    receivers, senders = [(2, 1, "q"), (3, 0, "v")], [(0, 1), (1, 3)]
    made = interp.path_patch(tiny, *PAIR, senders, receivers, _METRIC, True, "noise")
    flags = ["--receivers", "2.1:q,-1.0:v", "--senders", "0.1,7", "--freeze-mlp", "--direction", "noise", "--topk", 10]
    assert {name: json_of(*args, *flags)[name] for name in given(made)} == given(made)


def test_attribution_is_that_of_the_package(tiny: interp.Model, tmp_path: Path):
    args = ["attribution", "-p", PAIR[0], "--answer", " Paris"]
    check_result(interp.direct_logit_attribution(tiny, PAIR[0], " Paris"), args, tmp_path)
    made = interp.direct_logit_attribution(tiny, PAIR[0], " Paris", " Rome", position=3)
    check_result(made, [*args, "--instead", " Rome", "--position", 3], tmp_path)


def test_induction_scores_are_those_of_the_package(tiny: interp.Model, tmp_path: Path):
    args = ["induction", "--tokens", 9, "--batch", 2, "--seed", 3]
    check_result(interp.induction_scores(tiny, 9, 2, 3), args, tmp_path)


def test_induction_asks_for_a_context_that_holds_its_tokens(loaded: list):
    call("induction", "--tokens", 1200)
    assert loaded[0][1]["n_ctx"] >= 2401


def test_an_interrupted_sweep_says_so_and_is_saved(tiny: interp.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    values = iter([1.0, 2.0, 3.0])

    def metric(run) -> float:
        try:
            return next(values)
        except StopIteration:
            raise KeyboardInterrupt from None

    monkeypatch.setattr("interp.probability", lambda token: metric)
    text = output_of("ablation", "-p", PAIR[0], "--answer", " Paris", "--out", tmp_path / "part.npz")
    assert "(interrupted)" in text and "interrupted: this is what was measured until then\nwrote" in text
    assert "interrupted: this is" in output_of("show", tmp_path / "part.npz")
    made = interp.AblationSweep.load(tmp_path / "part.npz")
    assert not made.complete and np.isfinite(made.values).sum() == 2


def test_a_patch_takes_several_rows_all_of_them_or_chosen_heads(tiny: interp.Model, tmp_path: Path):
    other = tiny.run("The Colosseum is located in the city of", capture=("l_out", "z"))
    file = tmp_path / "other.safetensors"
    other.save(file)

    def found(*patch: str) -> dict:
        return json_of("run", "-p", PROMPT, "--patch", *patch[:1], file, *patch[1:])["top"]

    def wanted(*args, **kwargs) -> dict:
        return top_of(tiny, [interp.patch(*args, **kwargs)], 5)

    assert found("l_out-1", "all", "all") == wanted("l_out", 1, other)
    assert found("l_out-1", "0-2,-1", "1-3,-1") == wanted("l_out", 1, other, positions=[1, 2, 3, -1], from_positions=[0, 1, 2, -1])
    assert found("l_out-1", "4", "1,2") == wanted("l_out", 1, other, positions=[1, 2], from_positions=[4])
    assert found("z-1.2", "all", "all") == wanted("z", 1, other, heads=[2])
    assert found("z-1.0,3", "-1", "-1") == wanted("z", 1, other, heads=[0, 3], positions=[-1], from_positions=[-1])
    mean = (other["z", 1] + tiny.run(PROMPT, capture="z")["z", 1]) / 2
    tiny.run(PROMPT, capture="z").save(tmp_path / "own.npz")
    result = json_of("run", "-p", PROMPT, "--patch-avg", "z-1.2", file, tmp_path / "own.npz", "all", "all")
    assert result["top"] == wanted("z", 1, mean, heads=[2])
