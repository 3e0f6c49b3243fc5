"""The command `llama-interp` and the demo: what the main flags and edits do. Subcommands: test_cli_commands.py."""

# ruff: noqa: F811  fixtures that are imported

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import interp
from cli_calls import OTHER, PROMPT, call, default, json_of, loaded, output_of, rome, same_results, saved_of, top_of
from interp import demo
from interp.cli import cli

# The help


def test_without_a_prompt_the_help_is_shown_and_fits_one_screen():
    text = output_of()
    assert text == output_of("--help") == output_of("-h")
    lines = text.splitlines()
    assert lines[0].startswith("Usage: llama-interp") and len(lines) <= 48 and max(map(len, lines)) <= 80
    flags = (
        "--logit-lens --ll --logit-lens-topk --ll-topk --draw -d --ablate -a --select -s --save --patch --patch-avg "
        "--print-cgraph -n -m --device -ngl --n-gpu-layers -p --json --version --help"
    )
    assert set(flags.split()) <= set(text.replace(",", " ").split())
    assert sum(line.startswith("  llama-interp ") for line in lines) == 3
    assert output_of("--version").startswith("llama-interp, version ")


@pytest.mark.parametrize("command", sorted(cli.commands))
def test_every_command_has_a_help_with_one_line_for_the_list(command: str):
    assert output_of(command, "--help").startswith(f"Usage: llama-interp {command}")
    line = next(line for line in output_of("-h").splitlines() if line.startswith(f"  {command} "))
    assert line.endswith(".") and not line.endswith("...")


def test_the_model_is_named_before_or_after_the_command(loaded: list):
    output_of("-m", "a.gguf", "-p", "x")
    output_of("-m", "a.gguf", "sites")
    output_of("sites", "-m", "b.gguf")
    output_of("sites")
    assert [path for path, _ in loaded] == ["a.gguf", "a.gguf", "b.gguf", None]


def test_a_long_prompt_gets_a_context_that_holds_it(loaded: list):
    call("-p", "word " * 1000)
    assert loaded[0][1]["n_ctx"] >= 5000


# The main command


def test_a_prompt_alone_prints_the_likeliest_tokens(tiny: interp.Model):
    lines = output_of("-p", PROMPT).splitlines()
    piece, prob = tiny.run(PROMPT).top(1)[0]
    assert len(lines) == 5 and lines[0] == f"{100 * prob:6.2f} %  {piece!r}"


def test_a_lens_is_printed_with_as_many_tokens_as_asked_for(tiny: interp.Model):
    text = output_of("-p", PROMPT, "--ll", "l_out", "--ll-topk", 3)
    assert "logit lens of l_out at position" in text and " 3." in text and " 4." not in text
    result = json_of("-p", PROMPT, "--logit-lens", "l_out-2", "--logit-lens-topk", 3)
    lens = interp.logit_lens(tiny, PROMPT, "l_out-2")
    top = result["logit_lens"][0]["positions"][-1]["layers"][0]
    assert top == {"layer": 2, "top": [{"piece": piece, "prob": prob} for piece, prob in lens.top(2)[:3]]}


def test_all_reads_the_residual_shaped_sites_once():
    text = output_of("-p", PROMPT, "--logit-lens", "all", "--ll", "l_out", "--ll-topk", 1)
    for site in ("l_out", "ffn_inp", "attn_out", "ffn_out"):
        assert text.count(f"logit lens of {site} ") == 1
    for site in ("Qcur", "kqv_out", "ffn_up"):
        assert f"logit lens of {site} " not in text


def test_everything_in_one_call_is_in_one_json_object(rome: Path, tmp_path: Path):
    picture, saved = tmp_path / "a.png", tmp_path / "z.safetensors"
    result = json_of(
        "-p", PROMPT, "--ll", "l_out", "--ll", "ffn_out", "-d", picture, "-a", "1.2", "-s", 2, 1, "--save", "z", saved,
        "--patch", "l_out-1", rome, -1, -1, "--patch-avg", "ffn_out-2", *[saved_of("ffn_out", tmp_path)] * 2, 0, 0,
        "--print-cgraph", "-n", 3,
    )
    assert set(result) == {
        "model", "prompt", "tokens", "pieces", "edits", "top", "top_without_edits", "logit_lens", "graph", "generated",
        "files",
    }
    assert result["prompt"] == PROMPT and len(result["edits"]) == 4 and len(result["generated"]["tokens"]) <= 3
    assert [lens["site"] for lens in result["logit_lens"]] == ["l_out", "ffn_out"]
    assert result["files"] == [str(saved), str(picture)]
    assert {node["added_by"] for node in result["graph"]["nodes"]} >= {"zero ablation", "keep_only", "patch"}
    Image.open(picture).verify()
    # What is saved is what was there after the edits.
    assert not interp.Run.load(saved)["z", 1][:, 2].any()


def test_text_comes_in_one_order_too(tmp_path: Path):
    path = tmp_path / "a.png"
    text = output_of("-p", PROMPT, "-d", path, "-n", 2, "--ll", "l_out", "--print-cgraph")
    parts = [text.index(part) for part in ("inp_tokens", "logit lens of", f"wrote {path}", f"\n{PROMPT}")]
    assert parts == sorted(parts)


def test_several_sites_are_saved_each_into_its_file(tiny: interp.Model, tmp_path: Path):
    one, both = tmp_path / "one.npz", tmp_path / "both.safetensors"
    output_of(
        "-p", PROMPT, "--save", "blocks.1.hook_resid_post", one, "--save", "resid_mid", both, "--save", "z-3", both,
    )
    run = tiny.run(PROMPT, capture=("l_out", "ffn_inp", "z"))
    first, second = interp.Run.load(one), interp.Run.load(both)
    assert np.array_equal(first["l_out", 1], run["l_out", 1]) and first.layers("l_out") == [1] and len(first.keys) == 1
    assert np.array_equal(second["resid_mid"], run["resid_mid"]) and second.layers("z") == [3]
    assert first.tokens == run.tokens and first.prompt == PROMPT


# Edits


def test_an_index_means_the_same_head_as_layer_and_head(tiny: interp.Model):
    index = 2 * tiny.n_head + 1
    by_index, by_pair = (json_of("-p", PROMPT, "-a", text) for text in (index, "2.1"))
    assert by_index == by_pair
    assert by_index["top"] != by_index["top_without_edits"] == json_of("-p", PROMPT)["top"]
    both = json_of("-p", PROMPT, "-a", f"2.1,{index + 1}")
    assert both["top"] == json_of("-p", PROMPT, "-a", "2.1", "-a", "2.2")["top"]
    assert both["top"] == json_of("-p", PROMPT, "--ablate", "-2.-3,2.2")["top"]
    assert both["top"] == top_of(tiny, [interp.ablate([(2, 1), (2, 2)])])


def test_select_keeps_one_head_or_several(tiny: interp.Model):
    one = json_of("-p", PROMPT, "-s", 1, 2)
    assert one["top"] == top_of(tiny, [interp.keep_only(1, 2)])
    two = json_of("-p", PROMPT, "-s", 1, 2, "--select", 1, 0)
    assert two["top"] == top_of(tiny, [interp.ablate([(1, 1), (1, 3)])])


def test_with_edits_alone_both_sides_are_printed():
    head, _, first = output_of("-p", PROMPT, "-a", "1.2").splitlines()[:3]
    assert "without edits" in head and "with edits" in head and first.count("%") == 2


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_a_runs_own_values_patched_in_change_nothing(tmp_path: Path, suffix: str):
    file = tmp_path / f"own{suffix}"
    plain = json_of("-p", PROMPT, "--save", "l_out", file, "--ll", "l_out")
    flags = ("--patch", "l_out-2", file, -1, -1, "--patch", "l_out-1", file, 3, 3)
    patched = json_of("-p", PROMPT, "--ll", "l_out", *flags)
    assert same_results(plain, patched) and patched["top"] == patched["top_without_edits"]


def test_every_patch_counts_and_comes_from_the_position_given(tiny: interp.Model, rome: Path):
    source = tiny.run(OTHER, capture="l_out")
    edits = [
        interp.patch("l_out", 1, source, positions=[2], from_positions=[4]),
        interp.patch("l_out", 2, source, positions=[-1], from_positions=[-1]),
    ]
    flags = [["--patch", "l_out-1", rome, 4, 2], ["--patch", "blocks.2.hook_resid_post", rome, -1, -1]]
    found = json_of("-p", PROMPT, *flags[0], *flags[1])["top"]
    assert found == top_of(tiny, edits)
    assert all(json_of("-p", PROMPT, *flag)["top"] != found for flag in flags)


@pytest.mark.parametrize("site", ["l_out-2", "z-2", "attn_scores-2", "result_norm", "resid_pre-0"])
def test_patch_avg_puts_the_mean_of_two_files(tiny: interp.Model, tmp_path: Path, site: str):
    files, name = [tmp_path / "a.npz", tmp_path / "b.npz"], site.split("-")[0]
    # Attention has keys as well: both prompts must have as many tokens.
    prompts = PROMPT, " ".join(reversed(PROMPT.split(" ")))
    runs = [tiny.run(prompt, capture=site) for prompt in prompts]
    assert len(runs[0].tokens) == len(runs[1].tokens)
    for file, prompt in zip(files, prompts):
        output_of("-p", prompt, "--save", site, file)
    arrays = [run[site] if name == "result_norm" else run[site, int(site[-1])] for run in runs]
    axis = 1 if name == "attn_scores" else 0
    mean = (np.take(arrays[0], [3], axis) + np.take(arrays[1], [3], axis)) / 2
    layer = -1 if name == "result_norm" else int(site[-1])
    edit = interp.patch(name, layer, mean, positions=[5], from_positions=[0])
    result = json_of("-p", PROMPT, "--patch-avg", site, *files, 3, 5)
    assert result["top"] == top_of(tiny, [edit])


def test_a_raw_dump_is_as_wide_as_the_model_says(tiny: interp.Model, tmp_path: Path):
    run = tiny.run(OTHER, capture=("l_out", "z"))
    for name in ("l_out", "z"):
        dump = tmp_path / f"{name}-2.bin"
        run[name, 2].tofile(dump)
        edit = interp.patch(name, 2, run, positions=[-1], from_positions=[-1])
        assert json_of("-p", PROMPT, "--patch", f"{name}-2", dump, -1, -1)["top"] == top_of(tiny, [edit])


def test_mean_and_resample_ablation_take_a_saved_run(tiny: interp.Model, tmp_path: Path):
    prompt = " ".join(reversed(PROMPT.split(" ")))
    file, source = saved_of("z", tmp_path, prompt), tiny.run(prompt, capture="z")
    assert len(source.tokens) == len(tiny.tokens(PROMPT))
    mean = json_of("run", "-p", PROMPT, "-a", "1.2", "--ablate-mode", "mean", "--ablate-from", file, "--topk", 10)
    assert mean["top"] == top_of(tiny, [interp.ablate([(1, 2)], mode="mean", mean=source)])
    other = json_of("run", "-p", PROMPT, "-a", "1.2", "--ablate-mode", "resample", "--ablate-from", file, "--topk", 10)
    assert other["top"] == top_of(tiny, [interp.ablate([(1, 2)], mode="resample", source=source)])


def test_directions_knockout_and_scale(tiny: interp.Model, tmp_path: Path, rng: np.random.Generator):
    vector = rng.normal(size=tiny.n_embd).astype(np.float32)
    path, gguf, raw = tmp_path / "v.npy", tmp_path / "v.gguf", tmp_path / "v.bin"
    np.save(path, vector)
    vector.tofile(raw)
    control = interp.ControlVector({1: vector, 2: -vector})
    control.save(gguf)
    for flags, edits in (
        (["--steer", "l_out", "1,-1", path, 4], [interp.steer("l_out", [1, -1], vector, 4)]),
        (["--steer", "l_out", 2, raw, -4], [interp.steer("l_out", 2, vector, -4)]),
        (["--steer", "l_out-2", 2, gguf, 4], [interp.steer("l_out", 2, -vector, 4)]),
        (["--steer", "l_out", "1,2", gguf, 3], control.steer(3)),
        (["--project-out", "l_out", "all", path], [interp.project_out("l_out", None, vector)]),
        (["--knockout", "0-2", -1, "1,2"], [interp.knockout([0, 1, 2], [-1], [1, 2])]),
        (["--knockout", "1.0,1.2", "last", 1], [interp.knockout(1, "last", [1], heads=[0, 2])]),
        (["--scale", "l_out-1", 0.5], [interp.scale("l_out-1", 0.5)]),
        (["--scale", "mlp_out", 0, "--positions", "-1"], [interp.scale(interp.at("mlp_out", positions=-1), 0)]),
        (["--control-vector", gguf], control.steer()),
        (["--control-vector", gguf, -2, "--positions", "last"], control.steer(-2, positions="last")),
        (["-a", "1.2", "--positions", "0-3"], [interp.ablate([(1, 2)], positions=[0, 1, 2, 3])]),
    ):
        result = json_of("run", "-p", PROMPT, "--topk", 10, *flags)
        assert result["top"] == top_of(tiny, edits), flags
        assert result["top"] != result["top_without_edits"], flags


# The default model


def test_generation_of_the_default_model(default: interp.Model):
    first_layer = ",".join(f"0.{head}" for head in range(9))
    plain, ablated = (output_of("-p", PROMPT, "-n", 4, *flags) for flags in ([], ["-a", first_layer]))
    assert plain.startswith(PROMPT + " Paris") and ablated.startswith(PROMPT) and plain != ablated


def test_a_patch_moves_the_tower_to_rome(default: interp.Model, tmp_path: Path):
    file = tmp_path / "rome.safetensors"
    output_of("-p", OTHER, "--save", "l_out-24", file)
    result = json_of("-p", PROMPT, "--patch", "l_out-24", file, -1, -1)
    assert result["top"][0]["piece"] == " Rome" and result["top_without_edits"][0]["piece"] == " Paris"
    assert "␣Rome" in output_of("-p", PROMPT, "--patch", "l_out-24", file, -1, -1).splitlines()[2]


def test_a_runs_own_values_change_nothing_in_the_default_model(default: interp.Model, tmp_path: Path):
    file = tmp_path / "own.npz"
    plain = json_of("-p", PROMPT, "--save", "l_out-9", file, "--ll", "l_out")
    patched = json_of("-p", PROMPT, "--ll", "l_out", "--patch", "l_out-9", file, 4, 4)
    assert same_results(plain, patched)


def test_the_demo_writes_its_three_files_and_names_the_answer(
    default: interp.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture,
):
    monkeypatch.chdir(tmp_path)
    assert demo.main() == 0
    out = capsys.readouterr().out
    assert sorted(os.listdir("out/demo")) == ["attention.png", "lens.html", "lens.png"]
    for name in ("attention.png", "lens.png"):
        Image.open(Path("out/demo") / name).verify()
        assert f"out/demo/{name}" in out
    assert out.split("likeliest next tokens")[1].splitlines()[1].endswith("' Paris'")
    assert {str(i) for i in range(default.n_layer)} <= {line.split()[0] for line in out.splitlines() if line.strip()}
    assert max(map(len, out.splitlines())) <= 100


def test_the_command_runs_as_a_program_and_a_closed_pipe_is_no_error(model: interp.Model):
    folder = Path(interp.__file__).parent.parent
    command = f'"{sys.executable}" -m interp.cli -p "{PROMPT}"'
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=120, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].endswith("' Paris'") and done.stderr == ""
    done = subprocess.run(
        f"{command} --print-cgraph | head -n 1", shell=True, capture_output=True, text=True, timeout=120, cwd=folder
    )
    assert done.stderr == "" and done.stdout.count("\n") == 1
