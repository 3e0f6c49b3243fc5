"""Moves the patch series to another llama.cpp, and reports what came of it.

    python ci/rebase.py --upstream https://github.com/ggml-org/llama.cpp            as every night
    python ci/rebase.py --upstream ~/llama.cpp --ref master --stage apply           only whether the series applies
    python ci/rebase.py --upstream llama_cpp_python.tar.gz --ref origin/master      from a source archive
    python ci/rebase.py --upstream URL --write                                      where all is well, move the pin too
    python ci/rebase.py --upstream URL --stage apply --find-break                   which commit broke the series

The stages are apply, build, abi and test; the first that fails ends the run, and report.json and report.md in --out say
what it met. docs/rebase.md describes both. Everything happens in a scratch folder in --out; only --write changes the
project, at the very end.

Exit codes: 0 every stage passed; 1 a stage failed, and the report says which; 2 bad arguments, or upstream cannot be
had: then there is no report.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from ci.project import Project
from ci.rebasing import arguments, breaking, markdown, moved, upstream
from ci.rebasing.session import Session
from ci.steps import Lock, Report, exit_code, remove, sweep, temporary, write_json, write_text


def main(given: list[str] | None = None, project: Project | None = None) -> int:
    args = arguments.parse(given, __doc__)
    args.out = args.out.resolve()
    project, report = project or Project(), Report()

    def work() -> int:
        if args.write:
            moved.refuse_dirty(project)
        with Lock(args.out / ".lock", report):
            return _run(project, args, report)

    return exit_code(work, "nothing was changed")


def _run(project: Project, args, report: Report) -> int:
    sweep(args.out)
    # a report of an earlier run must not be taken for one of this run
    for name in ("report.json", "report.md"):
        remove(args.out / name)
    scratch = temporary(args.out / "work")
    try:
        scratch.mkdir(parents=True)
        store = upstream.open_store(project, project.pin(), args.upstream, args.ref, scratch, report)
        session = Session(project, store, args, scratch, report)
        found = session.run()
        if args.find_break and (stage := found["failed_stage"]) in args.stage:
            found["break"] = breaking.find(project, store, args, scratch, stage, report)
        if args.write and found["result"] == "passed":
            found["written"] = moved.write(project, session.moved)
            report.line("written", ", ".join(found["written"]) or "nothing: the project stands there already")
        session.publish_tree()
        _publish(found, args.out)
        return 0 if found["result"] == "passed" else 1
    finally:
        remove(scratch)


def _publish(found: dict, out: Path) -> None:
    write_text(out / "report.md", markdown.render(found))
    # last: where it is, the run came to its end
    write_json(out / "report.json", found)


if __name__ == "__main__":
    sys.exit(main())
