"""What the command line refuses: each mistake gives one line that says what to do, and the right exit code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest

import interp
from cli_calls import OTHER, PROMPT, call, loaded  # noqa: F401  a fixture
from interp.cli import cli

USAGE, FAILURE = 2, 1


def refused(code: int, part: str, *args) -> None:
    """A call fails with a code, one line on stderr that holds a part, nothing on stdout, and no traceback."""
    result = call(*args)
    shown = f"{' '.join(map(str, args))}\n{result.output}"
    assert result.exit_code == code, shown
    assert result.stdout == "" and result.stderr.count("\n") == 1 and result.stderr.startswith("error: "), shown
    assert isinstance(result.exception, SystemExit) and "not expected" not in result.stderr, shown
    assert part in result.stderr, shown


@pytest.fixture(scope="module")
def files(tiny: interp.Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of files of every kind, good and bad."""
    folder = tmp_path_factory.mktemp("files")
    run = tiny.run(OTHER, capture=("l_out", "z", "attn_scores"))
    run.save(folder / "run.npz")
    run.save(folder / "run.safetensors")
    run["l_out", 1].tofile(folder / "dump.bin")
    np.zeros(7, np.float32).tofile(folder / "odd.bin")
    (folder / "bytes.bin").write_bytes(b"12345")
    (folder / "empty.npz").touch()
    (folder / "empty.bin").touch()
    (folder / "folder.npz").mkdir()
    (folder / "text.npz").write_text("no archive")
    (folder / "text.gguf").write_text("GGUF or so")
    (folder / "corpus.txt").write_text("a corpus")
    (folder / "pairs.jsonl").write_text('{"clean": "a cat", "corrupted": "a dog", "answer": " the"}')
    for name in ("run.npz", "run.safetensors"):
        whole = (folder / name).read_bytes()
        (folder / f"cut-{name}").write_bytes(whole[: len(whole) // 2])
    for what, value in (("n_embd", 128), ("arch", "gpt2"), ("n_layer", 99)):
        other = tiny.run(OTHER, capture="l_out")
        other.info[what] = value
        other.save(folder / f"other-{what}.npz")
    np.save(folder / "wide.npy", np.zeros(128, np.float32))
    np.save(folder / "vector.npy", np.ones(64, np.float32))
    np.save(folder / "nan.npy", np.full(64, np.nan, np.float32))
    np.save(folder / "zero.npy", np.zeros(64, np.float32))
    np.save(folder / "several.npy", np.eye(2, 64, dtype=np.float32))
    np.save(folder / "words.npy", np.array(["a", "b"]))
    interp.ControlVector({1: np.ones(64)}, "llama").save(folder / "vector.gguf")
    interp.ControlVector({1: np.ones(128)}, "llama").save(folder / "wide.gguf")
    interp.ControlVector({9: np.ones(64)}, "llama").save(folder / "deep.gguf")
    return folder


# Flags with the wrong number and kind of values. `F` stands for the folder of files.

_ALL = [(name, command) for name, command in cli.commands.items() if name not in ("doctor", "sites", "show", "stats")]


@pytest.mark.parametrize(
    ("code", "part", "args"),
    [
        (USAGE, "no such option '--nonsense'", "--nonsense"),
        (USAGE, "no such option '-x'", "-x"),
        (USAGE, "'lnes' is neither a command", "lnes"),
        (USAGE, "neither a command", "-p x 3"),
        (USAGE, "missing the prompt", "-n 3"),
        (USAGE, "missing the prompt", "-a 1.2"),
        (USAGE, "missing the prompt", "--json"),
        (USAGE, "requires an argument", "-p"),
        (USAGE, "requires an argument", "-p x -m"),
        (USAGE, "come after the command", "-p x sites"),
        (USAGE, "come after the command", "-n 3 doctor"),
        (USAGE, "come after the command", "--json sites"),
        # the lens
        (USAGE, "requires an argument", "-p x --ll"),
        (USAGE, "'none' is neither", "-p x --ll l_out none"),
        (USAGE, "no site 'l_ot'. The nearest: l_out", "-p x --ll l_ot"),
        (USAGE, "Layer 9 of 'l_out-9' is out of range", "-p x --ll l_out-9"),
        (USAGE, "residual-shaped", "-p x --ll ffn_up"),
        (USAGE, "comes after the final norm", "-p x --ll result_norm"),
        (USAGE, "comes after the final norm", "lens -p x final_norm"),
        (USAGE, "needs a lens", "-p x --ll-topk 3"),
        *[(USAGE, "at least 1", f"-p x --ll l_out --ll-topk {bad}") for bad in ("0", "-1", "x", "1.5", "1e3", "")],
        (USAGE, "requires an argument", "-p x --ll l_out --ll-topk"),
        # drawing and saving
        (USAGE, "requires an argument", "-p x -d"),
        (USAGE, "must end in .png", "-p x -d F/a.gif"),
        (USAGE, "must end in .png", "-p x -d F/a"),
        (USAGE, "requires 2 arguments", "-p x --save l_out"),
        (USAGE, "neither a command", "-p x --save l_out F/a.npz F/b.npz"),
        (USAGE, "must end in .safetensors or .npz", "-p x --save l_out F/a.bin"),
        (USAGE, "no site 'nothing'", "-p x --save nothing F/a.npz"),
        # heads
        (USAGE, "requires an argument", "-p x -a"),
        *[(USAGE, "is no head", f"-p x -a {bad}") for bad in ("x", "1.x", "1.2.3", "-5", "1.2,", "1.5e2", "1.2;1.3")],
        (USAGE, "heads 0 to 15, 4 in each layer", "-p x -a 16"),
        (USAGE, "heads 0 to 15", "-p x -a 999999999"),
        (USAGE, "is no head", "-p x -a 99999999999999999999"),
        (USAGE, "Layer 4 of '--ablate 4.0' is out of range", "-p x -a 4.0"),
        (USAGE, "Layer -5", "-p x -a -5.0"),
        (USAGE, "layer 1 has heads 0 to 3", "-p x -a 1.0,1.4"),
        (USAGE, "layer 1 has heads 0 to 3", "-p x -a 1.-5"),
        (USAGE, "requires 2 arguments", "-p x -s 1"),
        (USAGE, "neither a command", "-p x -s 1 2 3"),
        *[(USAGE, "is no integer", f"-p x -s {bad}") for bad in ("x 1", "1 x", "1.0 2", "1 2.5")],
        (USAGE, "is out of range", "-p x -s 4 0"),
        (USAGE, "heads 0 to 3", "-p x -s 0 4"),
        # patching
        (USAGE, "requires 4 arguments", "-p x --patch l_out-1 F/run.npz 0"),
        (USAGE, "neither a command", "-p x --patch l_out-1 F/run.npz 0 0 0"),
        (USAGE, "'-n' is no position", "-p x --patch l_out-1 F/run.npz 0 -n 3"),
        *[(USAGE, "is no position", f"-p x --patch z-1 F/run.npz {bad}") for bad in ("x 0", "0 x", "0.5 0", "0 1,a")],
        (USAGE, "both all, or both positions", "-p x --patch z-1 F/run.npz all 1"),
        (USAGE, "2 rows FROM for 3 positions TO", "-p x --patch z-1 F/run.npz 0,1 0,1,2"),
        (USAGE, "Head 9 is out of range", "-p x --patch z-1.9 F/run.npz 0 0"),
        (USAGE, "of which layer? Name it, l_out-3", "-p x --patch l_out F/run.npz 0 0"),
        (USAGE, "of which layer?", "-p x --patch resid_post F/run.npz 0 0"),
        (USAGE, "no site 'l_ot-1'", "-p x --patch l_ot-1 F/run.npz 0 0"),
        (USAGE, "Layer 9", "-p x --patch l_out-9 F/run.npz 0 0"),
        (USAGE, "Position 99", "-p x --patch l_out-1 F/run.npz 99 0"),
        (USAGE, "Position -99", "-p x --patch l_out-1 F/run.npz -99 0"),
        (USAGE, "Position 99", "-p x --patch l_out-1 F/run.npz 0 99"),
        (USAGE, "Position -99", "-p x --patch l_out-1 F/run.npz 0 -99"),
        (USAGE, "requires 5 arguments", "-p x --patch-avg l_out-1 F/run.npz F/run.npz 0"),
        (USAGE, "neither a command", "-p x --patch-avg l_out-1 F/run.npz F/run.npz 0 0 0"),
        (USAGE, "is no position", "-p x --patch-avg l_out-1 F/run.npz F/run.npz 0 x"),
        (USAGE, "of which layer?", "-p x --patch-avg l_out F/run.npz F/run.npz 0 0"),
        (USAGE, "position 99 is out of range", "-p x --patch-avg l_out-1 F/run.npz F/run.npz 99 0"),
        # generating
        *[(USAGE, "integer of at least 1", f"-p x -n {bad}") for bad in ("0", "-1", "x", "1.5", "99999999999")],
        (USAGE, "requires an argument", "-p x -n"),
        *[(USAGE, "out of range", f"generate -p x {bad}") for bad in ("--temperature -1", "--top-p 0", "--top-p 1.1")],
        *[(USAGE, "is no number", f"generate -p x --temperature {bad}") for bad in ("x", "nan", "inf")],
        *[(USAGE, "integer of at least 0", f"generate -p x {bad}") for bad in ("--top-k -1", "--seed -1", "--seed x")],
        (USAGE, "missing option '-p'", "generate"),
        (USAGE, "leave --load-state out", "generate -p x --load-state F/run.npz --save-state F/s.safetensors"),
        (USAGE, "must end in .safetensors", "generate -p x --save-state F/s.bin"),
        # edits of the subcommands
        (USAGE, "requires 4 arguments", "run -p x --steer l_out 1 F/vector.npy"),
        (USAGE, "unexpected extra argument", "run -p x --steer l_out 1 F/vector.npy 1 2"),
        *[(USAGE, "is no number", f"run -p x --steer z 1 F/vector.npy {bad}") for bad in ("x", "nan", "inf", "1,5")],
        *[
            (USAGE, "names no layers", f"run -p x --steer l_out {bad} F/vector.npy 1")
            for bad in ("x", "1.5", "3-1", "1,", "0-99999999")
        ],
        (USAGE, "Layer 4", "run -p x --steer l_out 4 F/vector.npy 1"),
        (USAGE, "the name says layer 1", "run -p x --steer l_out-1 2 F/vector.npy 1"),
        (USAGE, "no site 'l_ot'", "run -p x --steer l_ot 2 F/vector.npy 1"),
        (USAGE, "no one width", "run -p x --steer attn_scores 2 F/vector.npy 1"),
        (USAGE, "requires 3 arguments", "run -p x --project-out l_out 1"),
        (USAGE, "must be independent and not zero", "run -p x --project-out l_out 1 F/zero.npy"),
        (USAGE, "names no positions", "run -p x --knockout 1 x 0"),
        (USAGE, "requires 3 arguments", "run -p x --knockout 1 0"),
        (USAGE, "Layer 9", "run -p x --knockout 9 0 0"),
        (USAGE, "Layer 9", "run -p x --knockout 9.0 0 0"),
        (USAGE, "is no head", "run -p x --knockout 1.x 0 0"),
        (USAGE, "leaves query 0 no key", "run -p x --knockout 1 0 0"),
        (USAGE, "Position 99", "run -p x --knockout 1 99 0"),
        (USAGE, "would leave no edge", "run -p x --knockout 1 0 all"),
        (USAGE, "no site 'l_ot'", "run -p x --scale l_ot 1"),
        (USAGE, "is no number", "run -p x --scale l_out x"),
        (USAGE, "nothing is generated here", "run -p x -a 1.2 --positions generated"),
        (USAGE, "nothing is generated here", "lens -p x --knockout 1 generated 0"),
        (USAGE, "needs an edit", "run -p x --positions 0"),
        (USAGE, "Position 99", "run -p x -a 1.2 --positions 99"),
        (USAGE, "needs heads", "run -p x --ablate-mode mean --ablate-from F/run.npz"),
        (USAGE, "needs --ablate-from", "run -p x -a 1.2 --ablate-mode mean"),
        (USAGE, "needs --ablate-mode", "run -p x -a 1.2 --ablate-from F/run.npz"),
        (USAGE, "'median' is not one of", "run -p x -a 1.2 --ablate-mode median"),
        (USAGE, "The source holds 10 positions", "run -p x -a 1.2 --ablate-mode resample --ablate-from F/run.npz"),
        (USAGE, "integer of at least 1", "run -p x --topk 0"),
        # lens and attention
        (USAGE, "no site 'l_ot'", "lens -p x l_ot"),
        (USAGE, "--position: position 9 is out of range, the prompt has 1 token: 0 x", "lens -p x --position 9"),
        (USAGE, "is no position", "lens -p x --position x"),
        (USAGE, "is 3 tokens, not one", "lens -p x --token Colosseum"),
        (USAGE, "an empty text", "lens -p x --token="),
        (USAGE, "take one site", "lens -p x l_out ffn_out --png F/a.png"),
        (USAGE, "cannot both be written", "run -p x --save-state F/a.safetensors --save l_out F/a.safetensors"),
        (USAGE, "Layer 4", "attention -p x --layer 4"),
        (USAGE, "head", "attention -p x --layer 1 --head 4"),
        (USAGE, "needs its layer", "attention -p x --head 1"),
        (USAGE, "shows one head", "attention -p x --layer 1 --html F/a.html"),
        (USAGE, "--queries: position 9", "attention -p x --queries 9"),
        (USAGE, "nothing is generated", "attention -p x --queries generated"),
        (USAGE, "names no positions", "attention -p x --queries x"),
        # sweeps; one answer that every model has
        *[(USAGE, "missing option '--answer'", f"{name} -p x") for name in ("ablation", "knockout", "attribution")],
        *[(USAGE, "missing option '--corrupted'", f"{name} -p x --answer a") for name in ("sweep", "paths")],
        *[
            (USAGE, "is 3 tokens, not one", f"{name} -p x --keys 0 --answer Colosseum".replace(other, ""))
            for name, other in (("knockout", ""), ("ablation", " --keys 0"), ("attribution", " --keys 0"))
        ],
        (USAGE, "are the same token", "ablation -p x --answer a --instead a"),
        (USAGE, "are the same token", "attribution -p x --answer a --instead a"),
        (USAGE, "no site 'l_ot'", "ablation -p x --answer a --site l_ot"),
        (USAGE, "cannot be swept", "ablation -p x --answer a --site attn_scores"),
        (USAGE, "Layer 9", "ablation -p x --answer a --layers 9"),
        (USAGE, "names no layers", "ablation -p x --answer a --layers 3-1"),
        (USAGE, "integer of at least 1", "ablation -p x --answer a --topk 0"),
        (USAGE, "the prompt is empty", "ablation --answer a -p "),
        *[(USAGE, "names no positions", f"knockout -p x --answer a --keys {bad}") for bad in ("x", "a=", "1=b", "1.5")],
        (USAGE, "has no name", "knockout -p x --answer a --keys =1"),
        (USAGE, "--keys 1: given twice", "knockout -p x --answer a --keys 1 --keys 1=0"),
        (USAGE, "nothing is generated", "knockout -p x --answer a --keys generated"),
        (USAGE, "nothing is generated", "knockout -p x --answer a --keys 0 --queries generated"),
        (USAGE, "which tokens are no longer seen? --keys POS; the prompt has 1 token: 0 x", "knockout -p x --answer a"),
        (USAGE, "--keys a: position 9 is out of range, the prompt has 1 token", "knockout -p x --answer a --keys a=9"),
        (USAGE, "--queries: position -9", "knockout -p x --answer a --keys 0 --queries -9"),
        (USAGE, "no key to look at", "knockout -p x --answer a --keys all"),
        (USAGE, "integer of at least 1", "knockout -p x --answer a --keys 0 --window 0"),
        (USAGE, "Layer 9", "knockout -p x --answer a --keys 0 --layers 9"),
        (USAGE, "the same number", "paths -p x --corrupted Colosseum --answer a"),
        (USAGE, "are the same", "paths -p x --corrupted x --answer a"),
        *[
            (USAGE, "receives nothing", f"paths -p x --corrupted y --answer a --receivers {bad}")
            for bad in ("1.0", "1.0:z", "1:q", "logit", "1.0:q,", "1.0:qk")
        ],
        (USAGE, "Layer 9", "paths -p x --corrupted y --answer a --receivers 9.0:q"),
        (USAGE, "Head 4 is out of range", "paths -p x --corrupted y --answer a --receivers 1.4:q"),
        (USAGE, "Nothing lies before layer 0", "paths -p x --corrupted y --answer a --receivers 0.0:q"),
        (USAGE, "has no path", "paths -p x --corrupted y --answer a --receivers 1.0:q --senders 1.0"),
        (USAGE, "--senders 1.4: layer 1 has heads 0 to 3", "paths -p x --corrupted y --answer a --senders 1.4"),
        (USAGE, "is no head", "paths -p x --corrupted y --answer a --senders 1:4"),
        (USAGE, "is not one of", "paths -p x --corrupted y --answer a --direction back"),
        (USAGE, "--position: position 9", "attribution -p x --answer a --position 9"),
        (USAGE, "is no position", "attribution -p x --answer a --position last"),
        (USAGE, "no such option '-p'", "induction -p x"),
        *[(USAGE, "integer of at least 2", f"induction --tokens {bad}") for bad in ("1", "-3", "x", "2.5")],
        (USAGE, "the vocabulary has", "induction --tokens 1000000"),
        (USAGE, "integer of at least 1", "induction --batch 0"),
        (USAGE, "integer of at least 0", "induction --seed -1"),
        (USAGE, "must end in .png", "induction --png F/a.npz"),
        (USAGE, "must end in .safetensors or .npz", "attribution -p x --answer a --out F/a.png"),
        (USAGE, "and run.npz holds none", "show F/run.npz --png F/a.png"),
        (USAGE, "and dump.bin holds none", "show F/dump.bin --html F/a.html"),
        # the others
        (USAGE, "disagree", "graph -p x --dot --out F/g.json"),
        (USAGE, "must end in .txt or .json or .dot", "graph -p x --out F/g.png"),
        (USAGE, "unexpected extra argument", "sites x"),
        (USAGE, "unexpected extra argument", "doctor x"),
        (USAGE, "missing argument 'FILE'", "show"),
        (USAGE, "is no shape", "show F/dump.bin --shape 2,x"),
        (USAGE, "says its shape itself", "show F/run.npz --shape 2,3"),
        (USAGE, "give --to OUT", "show F/dump.bin --site l_out-1"),
        (USAGE, "must end in", "show F/dump.bin --to F/a.bin"),
        (USAGE, "missing argument 'TEXTFILE'", "stats"),
        (USAGE, "integer of at least 0 and at most 4096", "stats F/corpus.txt --top 5000"),
        (USAGE, "show one site", "stats F/corpus.txt --site l_out --site z --png F/a.png"),
        (USAGE, "names one", "stats F/corpus.txt --site l_out-1 --layers 1"),
        # sweeps
        (USAGE, "missing option '-p', or --pairs FILE", "sweep"),
        (USAGE, "missing option '--corrupted'", "sweep -p x --answer y"),
        (USAGE, "missing option '--answer'", "sweep -p x --corrupted y"),
        (USAGE, "leave -p, --instead out", "sweep -p x --instead y --pairs F/pairs.jsonl"),
        (USAGE, "must end in .jsonl, .ndjson, .csv", "sweep --pairs F/corpus.txt"),
        (USAGE, "nothing is generated here", "sweep --pairs F/pairs.jsonl --positions generated"),
        (USAGE, "Layer 9", "sweep --pairs F/pairs.jsonl --layers 9"),
        (USAGE, "no heads", "sweep --pairs F/pairs.jsonl --per-head"),
    ],
)
def test_a_mistake_in_the_arguments(files: Path, code: int, part: str, args: str):
    refused(code, part, *[arg.replace("F/", f"{files}/") for arg in args.split(" ")])
    assert not [name for name in os.listdir(files) if name.startswith((".", "a."))]


# Files to read


_READERS = [
    ("-p", "x", "--patch", "l_out-1", "FILE", "0", "0"),
    ("-p", "x", "--patch-avg", "l_out-1", "FILE", "GOOD", "0", "0"),
    ("-p", "x", "--patch-avg", "l_out-1", "GOOD", "FILE", "0", "0"),
    ("run", "-p", "x", "-a", "1.2", "--ablate-mode", "resample", "--ablate-from", "FILE"),
    ("lens", "-p", "x", "--steer", "l_out", "1", "FILE", "1"),
    ("generate", "-p", "x", "--project-out", "l_out", "1", "FILE"),
    ("attention", "-p", "x", "--control-vector", "FILE"),
    ("ablation", "-p", "x", "--answer", "a", "--mean", "FILE"),
    ("show", "FILE"),
]


@pytest.mark.parametrize("args", _READERS, ids=lambda args: " ".join(args))
@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("missing.npz", "there is no such file"), ("missing.bin", "there is no such file"),
        ("empty.npz", "it is empty"), ("empty.bin", "it is empty"), ("folder.npz", "it is a folder"),
        ("run.npz/x.npz", "Not a directory"), ("cut-run.npz", "cannot read"), ("cut-run.safetensors", "cannot read"),
        ("text.npz", "cannot read"), ("bytes.bin", ""), ("text.gguf", ""),
    ],
)
def test_a_file_that_cannot_be_read(files: Path, args: tuple[str, ...], name: str, part: str):
    refused(FAILURE, part, *[{"FILE": files / name, "GOOD": files / "run.npz"}.get(arg, arg) for arg in args])


_ROW = '{"clean": "a cat", "corrupted": "a dog", "answer": " the"}'
_DIFF = '{"clean": "a cat", "corrupted": "a dog", "answer": " the", "instead": " a"}'
_HEAD = "clean,corrupted,answer"


@pytest.mark.parametrize(
    ("name", "text", "part"),
    [
        ("a.jsonl", None, "there is no such file"), ("a.csv", None, "there is no such file"),
        ("a.jsonl", "", "it is empty"), ("a.csv", "", "it is empty"),
        ("a.jsonl", "\n \n", "it holds no pair"), ("a.csv", "\n", "it holds no pair"), ("a.csv", _HEAD, "holds no pair"),
        ("a.jsonl", "\udcff", "no text in UTF-8"), ("a.csv", _HEAD + "\n\udcff,b,c", "no text in UTF-8"),
        ("a.jsonl", _ROW + "\n{", "line 2: it is no JSON"), ("a.jsonl", _HEAD, "line 1: it is no JSON"),
        ("a.jsonl", "[" * 100_000, "line 1: it is no JSON"), ("a.jsonl", _ROW + "\n\n[1]", "line 3: it is no object"),
        ("a.jsonl", "{}", "line 1: clean, corrupted, answer are missing"),
        ("a.jsonl", '{"clean": "x", "corrupted": "y"}', "answer is missing"),
        ("a.jsonl", _ROW.replace('" the"', "5"), "line 1: answer is 5; give a text"),
        ("a.jsonl", _ROW.replace('" the"', '""'), "answer is ''"),
        ("a.jsonl", _ROW.replace('" the"', "null"), "line 1: answer is missing"),
        ("a.jsonl", _ROW.replace("answer", "anwser"), "'anwser' is not known; the names are clean, corrupted"),
        ("a.jsonl", f"{_ROW}\n{_DIFF}", "line 2: only some pairs have instead"),
        ("a.csv", f"{_HEAD},instead\na cat,a dog, the, a\na cat,a dog, the,", "line 3: only some pairs have instead"),
        ("a.csv", "clean,corrupted\nx,y", "line 1: answer is missing"), ("a.csv", "x,y\n1,2", "'x' is not known"),
        ("a.csv", f"{_HEAD},clean\nx,y,z,x", "named twice"),
        ("a.csv", f"{_HEAD}\nx,y", "line 2: 2 fields, but the header has 3"),
        ("a.csv", f"{_HEAD}\nx, with a comma,y,z", "stands in quotes"), ("a.csv", f"{_HEAD}\nx,,z", "corrupted is ''"),
        ("a.csv", f'{_HEAD}\n"x,y,z', "it is no CSV"),
        # what only the model knows
        ("a.jsonl", _ROW + "\n" + _ROW.replace("a dog", "a dog too"), "from 0 ('a cat'): The clean prompt has"),
        ("a.jsonl", _ROW + "\n" + _ROW.replace("a dog", "a cat"), "Pair 1, counted from 0 ('a cat'): The"),
        ("a.jsonl", _ROW.replace(" the", "antidisestablishment"), "Pair 0, counted from 0 ('a cat'): 'anti"),
        ("a.jsonl", _ROW + "\n" + _ROW.replace("cat", "cat too").replace("dog", "dog too"), "positions=[-1]"),
    ],
)
def test_a_file_of_pairs_that_cannot_be_swept(tmp_path: Path, name: str, text: str | None, part: str):
    if text is not None:
        (tmp_path / name).write_bytes(text.encode(errors="surrogateescape"))
    refused(FAILURE, part, "sweep", "--pairs", tmp_path / name)


@pytest.mark.parametrize(
    ("part", "args"),
    [
        ("its n_embd is 128, that of", "-p x --patch l_out-1 F/other-n_embd.npz 0 0"),
        ("its arch is gpt2", "-p x --patch l_out-1 F/other-arch.npz 0 0"),
        ("its n_layer is 99", "-p x --patch-avg l_out-1 F/run.npz F/other-n_layer.npz 0 0"),
        ("does not hold ffn_out-1#1: it holds", "-p x --patch ffn_out-1 F/run.npz 0 0"),
        ("holds 7 float32", "-p x --patch l_out-1 F/odd.bin 0 0"),
        ("whose rows are tokens", "-p x --patch attn_scores-1 F/dump.bin 0 0"),
        ("holds 128 values", "-p x --patch l_out-1 F/wide.npy 0 0"),
        ("its n_embd is 128", "run -p x -a 1.2 --ablate-mode resample --ablate-from F/other-n_embd.npz"),
        ("does not hold kqv_out-1#0", "run -p x -a 1.2 --ablate-mode mean --ablate-from F/other-ok.npz"),
        ("its n_embd is 128", "ablation -p x --answer a --mean F/other-n_embd.npz"),
        ("does not hold kqv_out-0#0", "ablation -p x --answer a --mean F/other-ok.npz"),
        ("holds neither a run nor statistics", "ablation -p x --answer a --mean F/vector.npy"),
        ("holds no run", "run -p x -a 1.2 --ablate-mode resample --ablate-from F/vector.npy"),
        ("holds 128 values; a direction here has 64", "run -p x --steer l_out 1 F/wide.npy 1"),
        ("holds 2 directions", "run -p x --steer l_out 1 F/several.npy 1"),
        ("not finite", "run -p x --steer l_out 1 F/nan.npy 1"),
        ("holds no numbers", "run -p x --steer l_out 1 F/words.npy 1"),
        ("not for 2", "run -p x --steer l_out 2 F/vector.gguf 1"),
        ("a direction here has 64", "run -p x --project-out l_out 1 F/wide.npy"),
        ("128 wide, the model 64", "run -p x --control-vector F/wide.gguf"),
        ("steers layer 9", "run -p x --control-vector F/deep.gguf 2"),
        ("it is a text", "show F/corpus.txt"),
        ("which is not (3, 64)", "show F/dump.bin --shape 3,64"),
        ("cannot read", "generate -p x --load-state F/run.npz"),
    ],
)
def test_a_file_of_another_model(tiny: interp.Model, files: Path, part: str, args: str):
    if "other-ok" in args:
        tiny.run(OTHER, capture="l_out").save(files / "other-ok.npz")
    refused(FAILURE, part, *[arg.replace("F/", f"{files}/") for arg in args.split(" ")])


def test_a_model_that_cannot_be_loaded(files: Path, monkeypatch: pytest.MonkeyPatch):
    from interp.model import Model

    monkeypatch.setattr(interp, "Model", Model)
    for name, part in (
        ("missing.gguf", "does not exist"), ("folder.npz", "is a folder"), ("empty.bin", "no GGUF"),
        ("text.npz", "no GGUF"), ("text.gguf", ""), ("vector.gguf", ""),
    ):
        refused(FAILURE, part, "-m", files / name, "-p", "x")
        refused(FAILURE, part, "sites", "-m", files / name)


# Files to write

_WRITERS = [
    ("-p", "x", "-d", "a.png"), ("-p", "x", "--save", "l_out", "a.npz"), ("-p", "x", "--save", "z", "a.safetensors"),
    ("lens", "-p", "x", "--png", "a.png"), ("lens", "-p", "x", "--html", "a.html"), ("lens", "-p", "x", "--out", "a"),
    ("attention", "-p", "x", "--png", "a.png"), ("graph", "-p", "x", "--out", "a.dot"),
    ("attention", "-p", "x", "--layer", "0", "--head", "0", "--html", "a.html"),
    ("run", "-p", "x", "--save", "l_out", "a.npz"), ("generate", "-p", "x", "--save-state", "a.safetensors"),
    ("show", "F/run.npz", "--to", "a.npz"), ("stats", "F/corpus.txt", "--out", "a.npz"),
    ("ablation", "-p", "x", "--answer", "a", "--out", "a.npz"), ("induction", "--png", "a.png"),
    ("knockout", "-p", "x", "--answer", "a", "--keys", "0", "--html", "a.html"), ("induction", "--out", "a.npz"),
    ("stats", "F/corpus.txt", "--png", "a.png"), ("stats", "F/corpus.txt", "--html", "a.html"),
]


@pytest.mark.parametrize("args", _WRITERS, ids=lambda args: " ".join(args))
def test_a_place_that_cannot_be_written_is_found_before_the_model_is_loaded(
    files: Path, tmp_path: Path, loaded: list, args: tuple[str, ...],  # noqa: F811
):
    *rest, name = [arg.replace("F/", f"{files}/") for arg in args]
    (tmp_path / "file").touch()
    refused(FAILURE, "does not exist", *rest, tmp_path / "missing" / name)
    refused(FAILURE, "is a file, not a folder", *rest, tmp_path / "file" / name)
    refused(FAILURE, "cannot be written", *rest, f"/proc/{name}")
    if args[-2] != "--out" or args[0] != "lens":
        (tmp_path / name).mkdir()
        refused(FAILURE, "a folder has that name", *rest, tmp_path / name)
    else:
        refused(FAILURE, "is a file", *rest, tmp_path / "file")
    assert loaded == [] and set(os.listdir(tmp_path)) <= {"file", name}


def test_a_failure_after_the_run_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    (tmp_path / "a.npz").write_text("old")
    monkeypatch.setattr(os, "replace", full)
    refused(FAILURE, "No space left", "-p", PROMPT, "--save", "l_out", tmp_path / "a.npz")
    assert os.listdir(tmp_path) == ["a.npz"] and (tmp_path / "a.npz").read_text() == "old"


# Layers that differ in their heads


def test_an_index_is_refused_where_layers_differ_in_their_heads(tiny: interp.Model, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("interp.cli.names.n_heads_of", lambda model: {0: 4, 1: 2, 2: 4, 3: 4})
    refused(USAGE, "differ in their heads; write LAYER.HEAD", "-p", "x", "-a", "5")
    refused(USAGE, "layer 1 has heads 0 to 1", "-p", "x", "-a", "1.2")
    monkeypatch.setattr("interp.cli.names.n_heads_of", lambda model: {0: 4, 2: 4})
    refused(USAGE, "differ in their heads", "-p", "x", "-a", "5")
    refused(USAGE, "layer 1 has no attention heads", "-p", "x", "-a", "1.2")


# What nobody expects


def test_even_a_bug_is_one_line(monkeypatch: pytest.MonkeyPatch):
    errors = {"ValueError: oh": ValueError("oh"), "not enough memory": MemoryError(), "Recursion": RecursionError()}
    for part, error in errors.items():
        def load(path=None, error=error, **_):
            raise error

        monkeypatch.setattr(interp, "Model", load)
        result = call("-p", "x")
        assert result.exit_code == FAILURE and part in result.stderr and result.stderr.count("\n") == 1


def test_every_option_is_tried_with_nothing_after_it():
    """No option that takes a value lets itself be given without one, in any command."""
    for name, command in [("", cli), *cli.commands.items()]:
        for option in (param for param in command.params if isinstance(param, click.Option) and not param.is_flag):
            if option.flag_value is None or option.nargs > 1:
                for flag in option.opts:
                    refused(USAGE, "requires", *([name] if name else []), flag)


def test_ctrl_c_ends_with_one_line(model: interp.Model):
    process = subprocess.Popen(
        [sys.executable, "-m", "interp.cli", "-p", PROMPT, "-n", "2000"], stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, cwd=Path(interp.__file__).parent.parent,
        # a shell that starts the tests in the background has them ignore the signal, and children inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    # on a busy machine a fixed time would meet the imports, or a model that is being read
    assert process.stdout.read(len(PROMPT) + 1).startswith(PROMPT)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err == "error: interrupted\n"
