#!/usr/bin/env python3
"""Fetches the pinned llama.cpp, applies the patches, compiles it, and sets up whatever its use needs.

examples:
  python3 build.py                       build for what this machine has
  python3 build.py demo                  set everything up and show what a small model thinks at every layer
  python3 build.py test -k lens -x       set everything up and run tests; what follows "test" goes to pytest
  python3 build.py wheel                 make a wheel with the library inside, for machines without a compiler
  python3 build.py doctor                say what is there and what is missing; changes nothing
  python3 build.py --cuda                build for NVIDIA's GPUs; needs no CUDA toolkit (docs/backends.md)
  python3 build.py --cuda --cuda-arch 90,86
  python3 build.py --cuda --dry-run      print the call of CMake; fetch, install and change nothing
  python3 build.py --source ~/llama.cpp  from a clone that has the pinned commit: needs no network for the source
  python3 build.py --unpatched           the same commit without the patches, for comparison
  python3 build.py --tools               also llama.cpp's own programs: llama-cli, llama-server, llama-bench, ...
  python3 build.py --sanitize address,undefined test tests/test_edits.py

Everything is made in build/ and, outside an active virtual environment, in .venv/. Steps that are done are skipped
by content, and an interrupted call goes on where it stopped. LLAMA_INTERP_CACHE=DIR shares downloads and finished
libraries between clones. CC, CXX and CUDACXX choose the compilers.
"""

import sys

if sys.version_info < (3, 11):
    sys.exit("error: Python 3.11 or newer is needed, and this is %d.%d." % sys.version_info[:2])

import argparse
import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from ci import cuda, environment, library, nvidia, plan, programs, sanitize, source, toolchain, vulkan, wheel
from ci.project import BuildError, Project
from ci.steps import Lock, Report, exit_code, remove, sweep

VERBS = ("demo", "test", "wheel", "doctor")


def main(arguments: list[str]) -> int:
    """Runs one call; returns the exit code."""
    args = parse(arguments)
    project, report = Project(), Report()

    def call() -> int:
        if args.verb == "doctor":
            return doctor(project, args)
        check_tools(project, args)
        if args.dry_run:
            return dry_run(project, args)
        if not environment.active():
            return enter_environment(project, report, arguments)
        return work(project, args, report)

    return exit_code(call, "the same call goes on from here", failure=1)


def parse(arguments: list[str]) -> argparse.Namespace:
    """Reads the command line. What follows ``test`` is pytest's, except the flags that choose a backend."""
    ours, theirs = split_at_test(arguments)
    parser = argparse.ArgumentParser(
        prog="build.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("verb", nargs="?", choices=VERBS, help="demo, test [pytest arguments], wheel, doctor; default: build")
    backend = parser.add_mutually_exclusive_group()
    for name in toolchain.BACKENDS:
        backend.add_argument(f"--{name}", dest="backend", action="store_const", const=name, help=f"build for {name}")
    parser.add_argument("--jobs", "-j", type=positive, default=default_jobs(), metavar="N",
                        help="compilers at a time (%(default)s)")
    parser.add_argument("-D", dest="defines", action="append", type=define, default=[], metavar="NAME=VALUE",
                        help="a CMake setting; repeatable")
    parser.add_argument("--cuda-arch", type=architectures, metavar="90,86",
                        help="with --cuda: the GPUs to compile for, or native, all-major, all; default: those that are "
                        "here, and without one a choice for GPUs since 2018")
    parser.add_argument("--dry-run", action="store_true",
                        help="print the exact call of CMake, quoted for a shell, and do nothing else: nothing is "
                        "fetched, installed or written, so what the call names may not be there before a build")
    parser.add_argument("--source", default="sdist", metavar="sdist|git|PATH",
                        help="where llama.cpp comes from: the pinned archive of the package index, its git repository, "
                        "or a local clone or archive")
    parser.add_argument("--unpatched", action="store_true", help="build without the patches, in a folder of its own")
    parser.add_argument("--tools", action="store_true",
                        help="also build llama.cpp's own programs, into bin beside the library's folder")
    parser.add_argument("--sanitize", type=sanitizers, default=(), metavar="address,undefined",
                        help="build with sanitizers, or with thread, in a folder of its own; with test: run the tests on it")
    parser.add_argument("--clean", action="store_true", help="delete all of build/ but the downloads first")
    parser.add_argument("--json", action="store_true", help="with doctor: print JSON")
    args = parser.parse_args(ours)
    if args.verb == "wheel" and (args.tools or args.unpatched):
        parser.error("a wheel holds the patched library and no programs: leave out --tools and --unpatched")
    if args.sanitize and (args.verb in ("wheel", "demo") or args.tools or args.unpatched):
        parser.error("--sanitize is for the patched library and its tests: leave out wheel, demo, --tools and --unpatched")
    args.defines = dict(args.defines)
    args.pytest = theirs
    return args


def split_at_test(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Splits at the verb ``test``, so that pytest's own options need no ``--`` before them."""
    takes_value = {"-D", "--jobs", "-j", "--source", "--sanitize"}
    before_it = ["", *arguments]
    places = [i for i, word in enumerate(arguments) if word == "test" and before_it[i] not in takes_value]
    if not places:
        return arguments, []
    ours, theirs = arguments[: places[0] + 1], []
    words = iter(arguments[places[0] + 1 :])
    for word in words:
        if word in ("--cuda-arch", "--sanitize"):
            ours += [word, next(words, "")]
        elif word.startswith(("--cuda-arch=", "--sanitize=")) or word in [f"--{name}" for name in toolchain.BACKENDS]:
            ours.append(word)
        else:
            theirs.append(word)
    return ours, theirs


def positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def architectures(text: str) -> list[str]:
    try:
        return nvidia.parse_architectures(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def sanitizers(text: str) -> tuple[str, ...]:
    try:
        return sanitize.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def define(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    # CMake's own NAME:TYPE=VALUE names the same setting
    return name.partition(":")[0], value


def default_jobs() -> int:
    # in a container the cores that may be used are fewer than those that exist
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_tools(project: Project, args: argparse.Namespace) -> None:
    """Raises:
        BuildError: the machine lacks tools; the message names all of them and how to install them.
    """
    backend = toolchain.choose(args.backend).backend
    if lacking := toolchain.missing(backend, needs_venv=not environment.ready(project)):
        raise BuildError(toolchain.explain_missing(lacking))
    toolchain.check_backend(backend)
    if args.cuda_arch and backend != "cuda":
        raise BuildError(f"--cuda-arch is for --cuda, and this builds for {backend}. Give both, or neither")
    if args.sanitize:
        sanitize.check(backend)


def dry_run(project: Project, args: argparse.Namespace) -> int:
    """Prints the call of CMake that a build would make."""
    choice, origin = toolchain.choose(args.backend), source.resolve(project.pin(), args.source)
    one = planned(project, args, choice.backend, not args.unpatched, origin.base)
    print(plan.command(project, one, origin))
    return 0


def enter_environment(project: Project, report: Report, arguments: list[str]) -> int:
    """Runs the same call again with the Python of ``.venv``, which is made first if need be."""
    if not environment.ready(project):
        with Lock(project.build / ".lock", report):
            if not environment.ready(project):
                environment.create(project, report)
    command = [str(environment.python(environment.prefix(project))), os.path.abspath(__file__), *arguments]
    sys.stdout.flush()
    if sys.platform == "win32":
        return subprocess.call(command)
    os.execv(command[0], command)


def work(project: Project, args: argparse.Namespace, report: Report) -> int:
    """Builds what the verb needs, then does what the verb says."""
    started = time.monotonic()
    choice = toolchain.choose(args.backend)
    report.line("backend", f"{choice.backend} ({choice.why})")
    with Lock(project.build / ".lock", report):
        clean_up(project, args.clean)
        # the tests make a wheel as well
        extras = {"test": {"test", "wheel"}, "wheel": {"wheel"}}.get(args.verb, set())
        environment.ensure_requirements(project, {"build"} | extras, report)
        if args.verb in ("demo", "test"):
            environment.ensure_model(project, report)
        if choice.backend == "cuda":
            cuda.ensure(project, environment.prefix(project), report)
        if args.verb == "wheel":
            wheel.make(current(project, args, choice.backend, True, report)[0], report)
            return 0
        both = [True] if args.sanitize else [True, False]
        made = [
            build(project, args, choice.backend, patched, report)
            for patched in {None: [not args.unpatched], "demo": [True], "test": both}[args.verb]
        ]
        if args.verb == "test" or (args.verb is None and args.source == "sdist"):
            environment.ensure_bindings(project, report)
    report.line("ready", f"{', '.join(made)} ({time.monotonic() - started:.1f} s)")
    python = str(environment.python(environment.prefix(project)))
    if args.verb == "demo":
        return subprocess.call([python, "-m", "interp.demo"], cwd=project.root)
    if args.verb == "test":
        return subprocess.call([python, "-m", "pytest", *args.pytest], cwd=project.root, env=test_environment(project, args))
    return 0


def test_environment(project: Project, args: argparse.Namespace) -> dict[str, str]:
    if not args.sanitize:
        return dict(os.environ)
    lib = project.build / library.name("cpu", True, "-".join(args.sanitize)) / "lib"
    return os.environ | sanitize.environment(args.sanitize, lib)


def clean_up(project: Project, everything: bool) -> None:
    """Removes what killed calls left half-done and, where asked, everything but downloads."""
    for folder in (project.build, project.src, *(folder for folder in project.build.glob("*") if folder.is_dir())):
        sweep(folder)
    if everything:
        for path in project.build.glob("*"):
            if path.name != "downloads":
                remove(path)


def build(project: Project, args: argparse.Namespace, backend: str, patched: bool, report: Report) -> str:
    """Makes one library current, and where asked its programs; returns its name."""
    target, tree = current(project, args, backend, patched, report)
    # a sanitized one ends a process that was not started for it
    if patched and not args.sanitize:
        library.activate(target)
    if args.tools:
        programs.make(target, tree, args.clean, args.jobs, report)
    else:
        programs.warn_if_stale(target, report)
    return f"{target.name}: {library.short(target.lib)}"


def planned(
    project: Project, args: argparse.Namespace, backend: str, patched: bool, base: str
) -> library.Target:
    """The library that a call is about, whether it is there or not.

    Args:
        base: identity of the source without the series.
    """
    variant, defines = "", args.defines
    if args.verb == "wheel":
        # for other machines too, in a folder of its own
        variant, defines = "portable", wheel.settings(defines)
    if args.sanitize:
        variant, defines = "-".join(args.sanitize), sanitize.settings(args.sanitize, defines)
    prefix = environment.prefix(project)
    return plan.target(project, backend, patched, base, prefix, defines, args.cuda_arch, variant)


def current(
    project: Project, args: argparse.Namespace, backend: str, patched: bool, report: Report
) -> tuple[library.Target, Callable[[], Path]]:
    """Makes one library current.

    Returns:
        The library, and what gives the source that it is compiled from.
    """
    pin = project.pin()
    origin = source.resolve(pin, args.source)
    target = planned(project, args, backend, patched, origin.base)

    def tree() -> Path:
        unpatched = source.unpatched_tree(project, pin, origin, report)
        return source.patched_tree(project, origin, unpatched, report) if patched else unpatched

    if target.state() != "current" and (args.clean or not library.from_cache(target, report)):
        if backend == "cuda":
            cuda.check_compilers(cuda.find(project, environment.prefix(project)))
        if backend == "vulkan":
            vulkan.ensure(project, args.defines, report)
        library.compile(target, tree(), args.jobs, report)
    library.link_runtime(target)
    library.share(target, report)
    return target, tree


def doctor(project: Project, args: argparse.Namespace) -> int:
    from ci.doctor import examine, show

    found = examine(project, args.backend, args.defines, args.cuda_arch)
    print(json.dumps(found, indent=2) if args.json else show(found))
    return 0 if found["ok"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
