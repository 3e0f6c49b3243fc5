"""A process that is killed while it writes a file leaves the old one, the whole new one, or none: at every moment."""

from __future__ import annotations

import ast
import contextlib
import os
import re
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import interp
from ci import series, steps
from forks import fork_with_models
from interp import files

pytestmark = pytest.mark.skipif(not hasattr(os, "fork") or sys.platform == "darwin", reason="kills forks of this process")

ROOT = Path(__file__).resolve().parent.parent

#: every kind of picture as well: minutes
LONG = bool(os.environ.get("LLAMA_INTERP_TEST_LONG"))

TOKENS, OTHER = [11, 4711, 300, 9, 1024, 77], [11, 4711, 301, 9, 1024, 77]

#: what changes files, as Python tells before it does it
_EVENTS = {f"os.{name}" for name in "rename remove mkdir rmdir chmod truncate link symlink".split()} | {"subprocess.Popen"}
_WRITABLE = os.O_WRONLY | os.O_RDWR | os.O_CREAT


# // killing


def in_fork(work: Callable[[], object]) -> int:
    """The status of a fork that did some work."""
    pid = fork_with_models()
    if pid == 0:
        status = 1
        try:
            # what it says of its failure is of no interest
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitpid(pid, 0)[1]


def killed_at_event(write: Callable[[], object], event: int) -> bool:
    """Run a writer in a process that is killed just before its n-th change of a file; False: there are fewer."""
    left = event

    def count(name: str, args: tuple) -> None:
        nonlocal left
        if name in _EVENTS or name == "open" and isinstance(args[2], int) and args[2] & _WRITABLE:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def work() -> None:
        sys.addaudithook(count)
        write()

    status = in_fork(work)
    assert status in (0, signal.SIGKILL), "it failed by itself"
    return status != 0


def killed_at_byte(write: Callable[[], object], byte: int) -> bool:
    """The same where a file would grow beyond so many bytes, as in the middle of a write."""

    def work() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (byte, byte))
        write()

    status = in_fork(work)
    assert status & 0x7F in (0, signal.SIGXFSZ) and status >> 8 == 0, "it failed by itself"
    return status != 0


OLD = b"what was there before"


def content(path: Path) -> bytes | dict | None:
    """Of a file, as far as it is the same each time: safetensors orders its metadata, and plotly names its parts, anew."""
    if not path.exists():
        return None
    if path.suffix == ".safetensors" and path.read_bytes() != OLD:
        with files.opened(path) as file:
            return {**file.texts, **{name: file[name].tobytes() for name in file.names}}
    return re.sub(rb"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", b"", path.read_bytes())


def check_writer(write: Callable[[Path], object], path: Path, befores=(None, OLD)) -> int:
    """Kill a writer everywhere, over nothing and over an old file; the result is the number of times."""
    write(path)
    new, size, kills = content(path), path.stat().st_size, 0
    for before in befores:
        bytes_before = [0, size // 3, size - 1]
        for kill, points in ((killed_at_event, iter(range(1, 100))), (killed_at_byte, iter(bytes_before))):
            for point in points:
                path.unlink(missing_ok=True)
                if before is not None:
                    path.write_bytes(before)
                if not kill(lambda: write(path), point):
                    assert content(path) == new
                    break
                kills += 1
                assert content(path) in (before, new), f"{kill.__name__} {point} left a part of {path.name}"
    write(path)
    assert content(path) == new
    # what the killed ones left is swept once nobody can be at work on it
    for leftover in path.parent.rglob("*"):
        os.utime(leftover, (time.time() - 7200,) * 2)
    write(path)
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    return kills


# // the package's files


@pytest.fixture(scope="module")
def writers(tiny) -> dict[str, Callable[[Path], object]]:
    """Everything of the package that writes a file, by the name of the file."""
    metric = interp.logit_diff(500, 700)
    run = tiny.run(TOKENS, capture=["l_out", "attn_scores"])
    sweep = interp.patch_sweep(tiny, TOKENS, OTHER, metric=metric, layers=[0])
    mean = interp.patch_sweep(tiny, [TOKENS, OTHER], [OTHER, TOKENS], metric=[metric, metric], layers=[0])
    stats = interp.stats(tiny, [TOKENS, OTHER], "l_out", n_top=1)
    lens = interp.logit_lens(run)
    attention = interp.attention(run)
    vector = interp.ControlVector({1: np.ones(tiny.n_embd, np.float32)}, model_hint=tiny.arch)
    graph = tiny.graph(TOKENS)

    def save_state(path: Path) -> None:
        with tiny.prefix(TOKENS):
            tiny.save_state(path)

    return {
        "run.safetensors": run.save, "run.npz": run.save, "state.safetensors": save_state,
        "array.npz": lambda path: interp.save_array(path, run["l_out", 1], site="l_out", layer=1, run=run),
        "sweep.safetensors": sweep.save, "sweep.png": sweep.plot, "sweep.html": sweep.html,
        "mean.npz": mean.save, "mean.png": mean.plot, "stats.safetensors": stats.save, "stats.png": stats.plot,
        "stats.html": stats.html, "lens.png": lens.plot, "lens.html": lens.html,
        "head.png": lambda path: attention.plot(path, 1, 2), "head.html": lambda path: attention.html(path, 1, 2),
        "vector.gguf": vector.save, "graph.txt": graph.save, "graph.json": graph.save, "graph.dot": graph.save,
    }  # fmt: skip


def test_a_killed_writer_of_the_package_leaves_a_whole_file_or_none(writers, tmp_path, tried):
    for name, write in writers.items():
        # each kill draws a picture: two of them stand for all, which go through one function
        is_picture = name.endswith((".png", ".html"))
        if is_picture and name not in ("head.png", "head.html") and not LONG:
            continue
        folder = tmp_path / name
        folder.mkdir()
        kills = check_writer(write, folder / name, (OLD,) if is_picture and not LONG else (None, OLD))
        assert kills >= 8, f"{name}: {kills} kills are no test"
        tried("writers of files killed on their way", kills)


def test_a_file_that_somebody_is_writing_is_not_swept(tmp_path):
    with files.written(tmp_path / "x.npz", (".npz",)) as first:
        with files.written(tmp_path / "x.npz", (".npz",)) as second:
            assert first != second and first.exists()


# // the tools' files


def test_a_killed_writer_of_the_tools_leaves_a_whole_file_or_none(tmp_path, tried):
    writers = {
        "page.md": lambda path: steps.write_text(path, "a line\n" * 5000),
        "state.json": lambda path: steps.write_json(path, list(range(5000))),
    }
    for name, write in writers.items():
        folder = tmp_path / name
        folder.mkdir()
        tried("writers of files killed on their way", check_writer(write, folder / name))


def test_a_folder_whose_publishing_is_killed_is_whole_or_absent(tmp_path, tried):
    def publish(folder: Path, text: str) -> None:
        scratch = steps.temporary(folder)
        scratch.mkdir()
        for name in "abc":
            (scratch / name).write_text(text)
        steps.publish_folder(scratch, folder)

    folder = tmp_path / "lib"
    for event in range(1, 100):
        publish(folder, "old")
        if not killed_at_event(lambda: publish(folder, "new"), event):
            break
        found = {path.name: path.read_text() for path in folder.iterdir()} if folder.exists() else None
        assert found in (None, dict.fromkeys("abc", "old"), dict.fromkeys("abc", "new")), f"event {event}"
        steps.sweep(tmp_path)
        tried("writers of files killed on their way")
    assert event > 5 and (folder / "a").read_text() == "new"


PATCHES = ("first-hook.patch", "second-hook.patch")


def test_a_killed_export_leaves_patches_that_are_whole(project, clone, tried):
    from ci import repo

    tree = project.root / "tree"
    series.read(project.patches)
    repo.init(tree)
    repo.fetch(tree, clone, project.pin().commit)
    repo.checkout_base(tree, project.pin().commit)
    for i, name in enumerate(PATCHES):
        (tree / "src/other.cpp").write_text(f"{i}\n")
        repo.commit_all(tree, f"{name.removesuffix('.patch')}\n\nWhy: a test.\n\nUpstream: no.\n\nDrop-when: never.\n")
    names = [*PATCHES, "series"]
    old = {name: (project.patches / name).read_bytes() for name in names}
    series.export(tree, project.patches)
    new = {name: (project.patches / name).read_bytes() for name in names}
    assert all(old[name] != new[name] for name in PATCHES)
    for event in range(1, 200):
        for name in names:
            (project.patches / name).write_bytes(old[name])
        was_killed = killed_at_event(lambda: series.export(tree, project.patches), event)
        for name in names:
            assert (project.patches / name).read_bytes() in (old[name], new[name]), f"event {event}: {name}"
        if not was_killed:
            break
        tried("writers of files killed on their way")
    assert event > 5


def test_a_build_killed_at_any_moment_is_made_whole_by_the_next_one(project, clone, monkeypatch, tried):
    import build
    import upstream
    from ci import library
    from test_build import call, pretend_built

    monkeypatch.setattr(library, "compile", lambda one, *_: pretend_built(one))

    def make() -> None:
        call(project, steps.Report(), "--source", str(clone))

    step = 1 if LONG else 14
    for event in range(1, 1000, step):
        with contextlib.suppress(FileNotFoundError):
            steps.remove(project.build)
        if not killed_at_event(make, event):
            break
        built = project.build / "cpu/lib/libllama.so"
        assert not built.exists() or built.read_text() == "library"
        build.clean_up(project, everything=False)
        make()
        # that of a stamp in .git goes when it is written after an hour
        left = [path for path in project.build.rglob("*.tmp") if ".git" not in path.parts]
        assert built.read_text() == "library" and not left
        tree = next(project.src.glob("[!.]*-patched"))
        assert "hooked" in (tree / "src/llama.cpp").read_text()
        assert (tree / "src/other.cpp").read_text() == upstream.FILES["src/other.cpp"]
        tried("builds killed on their way")
    assert event > 3 * step


# // nobody else writes


#: calls that write to the path that they are given first, or are called on
_WRITING = {"write_text", "write_bytes", "savefig", "save_file", "savez", "copyfile", "copy2", "GGUFWriter"}

#: what a path is called that has no name yet, or lies in a folder that nobody else sees
_UNFINISHED = {"temporary", "unfinished", "scratch", "stage", "lib", "file"}

#: files of a folder of their own, and logs, which grow while they are read
_SPARED = {
    "ci/repo.py", "ci/source.py", "ci/library.py", "ci/programs/__init__.py", "ci/gpu.py", "ci/cuda.py", "ci/estimate.py",
    "ci/rebasing/breaking.py", "ci/rebasing/layouts.py", "ci/rebasing/moved.py", "ci/rebasing/upstream.py",
    "ci/architectures/convert.py", "ci/benchmark/harness.py", "ci/benchmark/programs.py", "interp/cli/rpc_server.py",
}  # fmt: skip


def writes(tree: ast.AST) -> list[ast.Call]:
    """Calls in a module that write a file under a name that is no unfinished one's."""
    found = []
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = getattr(call.func, "attr", getattr(call.func, "id", ""))
        strings = [a.value for a in [*call.args, *(k.value for k in call.keywords)] if isinstance(a, ast.Constant)]
        if name not in _WRITING and not (name == "open" and any(s in ("w", "wb", "a", "ab", "x", "xb") for s in strings)):
            continue
        if isinstance(call.func, ast.Name) and name == "write_text":
            continue  # that of ci.steps
        mentioned = {node.id for node in ast.walk(call) if isinstance(node, ast.Name)}
        if not mentioned & _UNFINISHED:
            found.append(call)
    return found


def test_no_other_writer_writes_under_a_final_name():
    assert len(writes(ast.parse("path.write_text('x')\nopen(name, 'w')\ntemporary.write_text('x')"))) == 2
    for path in [*ROOT.glob("interp/**/*.py"), *ROOT.glob("ci/**/*.py"), ROOT / "build.py"]:
        name = path.relative_to(ROOT).as_posix()
        if name not in _SPARED:
            lines = [call.lineno for call in writes(ast.parse(path.read_text(encoding="utf-8")))]
            assert not lines, f"{name}, lines {lines}: write through files.written or steps.write_text"
