"""The series on real snapshots of llama.cpp, older and newer than the pin, as source archives on PyPI hold them."""

from __future__ import annotations

import json

import pytest

from ci import rebase, source
from ci.project import BuildError, Package, Project

OLDER = Package("llama-cpp-python", "0.3.35", "1139dbb54509074b70893fab8554e3b079aa9f4d312058ce4018ef0019e3de12")
NEWER = Package("xllamacpp", "2026.10.11549", "c17ee1163006f70726abb9f72137830818f3d8cb60bfc34cb232d08428eaa22b")

#: name -> archive (None: the pinned one), ref, and what the report must say of the commit
SNAPSHOTS = {
    "the day's master beside the pin": (None, "origin/master", "git"),
    "six weeks older": (OLDER, "4df29be4f", "git"),
    "that day's master": (OLDER, "origin/master", "git"),
    "build 11549, without history": (NEWER, None, "plain"),
}


@pytest.mark.network
@pytest.mark.slow
@pytest.mark.parametrize("name", SNAPSHOTS)
def test_the_series_applies_without_a_conflict(name, tmp_path):
    package, ref, kind = SNAPSHOTS[name]
    project = Project()
    try:
        archive = source.download(project, package or project.pin().sdist)
        source.download(project, project.pin().sdist)
    except BuildError as error:
        if "cannot download" not in str(error):  # a file with another hash is no missing network
            raise
        pytest.skip(f"the archive cannot be had: {str(error).splitlines()[0]}")
    given = ["--upstream", str(archive), "--out", str(tmp_path), "--stage", "apply", *(["--ref", ref] if ref else [])]
    code = rebase.main(given)
    report = json.loads((tmp_path / "report.json").read_text())
    results = {patch["name"]: patch["result"] for patch in report["patches"]}
    assert code == 0 and set(results.values()) <= {"clean", "merged"}, results
    assert report["new"]["kind"] == kind
    # the same kinds of facts that a person looks for, found in the real tree
    assert report["changes"]["commits_unknown"] and report["range_diff"]
    patched = {file["file"] for file in report["changes"]["patched_files"]}
    assert patched >= {"src/llama-graph.cpp", "src/llama-context.cpp"}
