"""The command `llama-interp` and the demo: what they print, write and refuse."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner, Result
from PIL import Image

import interp
from fakes import FakeModel
from interp import demo
from interp.cli import cli
from interp.errors import ModelError

PROMPT = "The Eiffel Tower is located in the city of"


def call(*args: str) -> Result:
    return CliRunner().invoke(cli, [str(a) for a in args], prog_name="llama-interp")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeModel:
    """`llama-interp` loads this model, and notes the path that it was given."""
    model = FakeModel()
    model.sites = lambda: [
        SimpleNamespace(name=name, layer=layer, axes=axes, shape=shape, occurrence=i, n_occurrences=len(shapes))
        for layer in range(model.n_layer)
        for name, axes, shapes in (
            ("l_out", ("n_tokens", "n_embd"), [(None, 8)]),
            ("ffn_up", ("n_tokens", "n_ff"), [(None, 16)]),
            ("Qcur", ("n_tokens", "n_head", "d_head"), [(None, 8), (None, 2, 4)]),
        )
        for i, shape in enumerate(shapes)
    ]
    model.generate = lambda prompt, max_tokens, temperature: SimpleNamespace(text=" of" * max_tokens)

    def load(path=None, **_):
        if path == "missing.gguf":
            raise ModelError("missing.gguf does not exist:\n  give another path")
        model.path = path
        return model

    monkeypatch.setattr(interp, "Model", load)
    return model


def test_without_a_prompt_the_help_is_shown():
    result = call()
    assert result.exit_code == 0 and result.output.startswith("Usage: llama-interp")
    for option in ("--logit-lens", "--ll", "--logit-lens-topk", "--ll-topk", "--draw", "-d", "-n", "--out"):
        assert option in result.output


@pytest.mark.parametrize("args", [["--nonsense"], ["nonsense"], ["-p", "x", "-n", "no"], ["-p", "x", "--ll-topk", "0"]])
def test_wrong_arguments_show_the_usage(args: list[str]):
    result = call(*args)
    assert result.exit_code == 2 and "Usage: llama-interp" in result.output and "Traceback" not in result.output


@pytest.mark.parametrize("args", ["--ll l_out", "-d a.png", "-n 3", "-p x --out d", "-p x sites", "-n 3 doctor"])
def test_options_that_miss_their_partner_are_refused(fake: FakeModel, args: str):
    assert call(*args.split()).exit_code == 2


def test_a_prompt_alone_prints_the_likeliest_tokens(fake: FakeModel):
    result = call("-p", " Paris of")
    lines = result.output.splitlines()
    best = fake.run(" Paris of").top(1)[0]
    assert result.exit_code == 0 and len(lines) == 5 and fake.path is None
    assert lines[0].split("%")[1].strip() == repr(best[0])


def test_a_lens_is_printed_and_written(fake: FakeModel, tmp_path: Path):
    result = call("-m", "my.gguf", "-p", " Paris of city", "--ll", "l_out", "--ll-topk", "3", "--out", tmp_path / "o")
    assert result.exit_code == 0, result.output
    assert fake.path == "my.gguf" and "logit lens of l_out at position" in result.output and "\x1b" not in result.output
    assert " 3." in result.output and " 4." not in result.output
    assert sorted(os.listdir(tmp_path / "o")) == ["lens-l_out.html", "lens-l_out.png"]
    Image.open(tmp_path / "o" / "lens-l_out.png").verify()


def test_all_reads_the_residual_shaped_sites_once(fake: FakeModel):
    result = call("-p", " Paris of", "--logit-lens", "all", "--ll", "l_out")
    assert result.exit_code == 0 and result.output.count("logit lens of") == 1


def test_drawing_and_generating_in_one_call(fake: FakeModel, tmp_path: Path):
    path = tmp_path / "a.png"
    result = call("-p", " Paris", "-d", path, "-n", "2", "--ll", "l_out", "--ll-position", "0")
    assert result.exit_code == 0, result.output
    assert f"wrote {path}" in result.output and " Paris of of" in result.output and "at position 0" in result.output
    Image.open(path).verify()


@pytest.mark.parametrize(
    ("args", "error"),
    [
        (["-m", "missing.gguf", "-p", "x"], "error: missing.gguf does not exist: give another path\n"),
        (["-m", "missing.gguf", "sites"], "error: missing.gguf does not exist: give another path\n"),
        (["-p", " Paris", "--ll", "ffn_up"], "error: a logit lens reads residual-shaped sites"),
        (["-p", " Paris", "--ll", "l_out", "--ll-position", "9"], "error: position 9 is out of range"),
        (["-p", " Paris", "-d", "a.gif"], "error: cannot write 'a.gif'"),
    ],
)
def test_an_error_is_one_line_without_a_traceback(fake: FakeModel, args: list[str], error: str):
    result = call(*args)
    assert result.exit_code == 1 and result.stderr.startswith(error)
    assert result.stderr.count("\n") == 1 and "\x1b" not in result.stderr and isinstance(result.exception, SystemExit)


def test_sites_are_grouped_over_layers(fake: FakeModel):
    rows = {row["name"]: row for row in json.loads(call("sites", "--json").stdout)}
    assert rows["l_out"] == {
        "name": "l_out", "layers": [0, 1, 2, 3], "axes": ["n_tokens", "n_embd"], "shape": [None, 8],
        "occurrences": 1,
    }
    # A bare name picks the last of several.
    assert rows["Qcur"]["occurrences"] == 2 and rows["Qcur"]["shape"] == [None, 2, 4]
    table = call("-m", "my.gguf", "sites")
    assert fake.path == "my.gguf"
    line = next(line for line in table.output.splitlines() if line.startswith("l_out"))
    assert "0-3" in line and "n_tokens, n_embd" in line and "n x 8" in line and "\x1b" not in table.output


# The default model


@pytest.fixture
def default(model: interp.Model, monkeypatch: pytest.MonkeyPatch) -> interp.Model:
    """The session's model, so that no call loads another."""
    monkeypatch.setattr(interp, "Model", lambda path=None, **_: model)
    return model


def test_doctor_finds_library_and_model(model: interp.Model):
    result = call("doctor")
    library, default = result.output.splitlines()
    assert result.exit_code == 0
    assert library.split()[:3] == ["native", "library", "ok"] and default.split()[:3] == ["default", "model", "ok"]
    assert default.endswith(".gguf")


def test_doctor_names_a_missing_library(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("interp.native.abi_status", lambda: {"ok": False, "detail": "no library: run build.py"})
    result = call("doctor")
    assert result.exit_code == 1 and "missing" in result.output and "no library: run build.py" in result.output


def test_all_covers_the_residual_sites_of_the_default_model(default: interp.Model):
    result = call("-p", "Paris is", "--ll", "all", "--ll-topk", "1")
    assert result.exit_code == 0, result.output
    for site in ("l_out", "ffn_inp", "attn_out", "ffn_out"):
        assert f"logit lens of {site} " in result.output
    for site in ("Qcur", "kqv_out", "ffn_up"):
        assert f"logit lens of {site} " not in result.output


def test_generation_of_the_default_model(default: interp.Model):
    result = call("-p", PROMPT, "-n", "3")
    assert result.exit_code == 0 and result.output.startswith(PROMPT + " Paris")


def test_sites_of_the_default_model(default: interp.Model):
    rows = {row["name"]: row for row in json.loads(call("sites", "--json").stdout)}
    assert rows["l_out"]["layers"] == list(range(default.n_layer)) and rows["l_out"]["shape"][-1] == default.n_embd


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


def test_the_command_runs_as_a_program(model: interp.Model):
    done = subprocess.run(
        [sys.executable, "-m", "interp.cli", "-p", PROMPT], capture_output=True, text=True, timeout=120,
        cwd=Path(interp.__file__).parent.parent,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].endswith("' Paris'") and done.stderr == ""
