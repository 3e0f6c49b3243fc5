"""The patch series: the real one is good, a bad one is refused, and applying and exporting lose nothing."""

from __future__ import annotations

import re
import subprocess

import pytest

import upstream
from ci import check_patches, repo, series, source
from ci.project import ROOT, BuildError, Project
from ci.series import __main__ as series_command
from ci.steps import Report


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A clone and a project with its unpatched tree, made once: every test copies it."""
    folder = upstream.make(tmp_path_factory.mktemp("made"), ("first-hook.patch", "second-hook.patch"))
    project = Project(folder / "project")
    source.unpatched_tree(project, project.pin(), upstream.origin(project, folder / "clone"), Report())
    return folder


@pytest.fixture
def tree(project):
    return project.src / project.pin().commit[:8]


# // the real series


def test_the_real_series_is_good():
    have_tree = (Project().src / Project().pin().commit[:8]).exists()
    assert check_patches.main([] if have_tree else ["--offline"]) == 0


def test_no_type_of_ours_can_meet_one_of_upstreams():
    """Two of a name in one process are one to the loader: the server of ggml's RPC was once ended by our destructor."""
    types, local = [], re.compile(r"^namespace \{$.*?^\} // namespace$", re.MULTILINE | re.DOTALL)
    for path in Project().native.glob("*.cpp"):
        types += re.findall(r"^(?:struct|class|enum|union)\s+(\w+)[^;\n]*\{", local.sub("", path.read_text(encoding="utf-8")), re.MULTILINE)
    assert [name for name in types if not name.startswith("llama_interp")] == []


@pytest.mark.parametrize("value", ["commit", "tag", "sdist.version", "sdist.sha256", "model.sha256"])
def test_nothing_repeats_the_pin(value):
    text = Project().pin()
    for part in value.split("."):
        text = getattr(text, part)
    found = subprocess.run(
        # a short commit is a repetition too; binary files hold no text that anybody maintains
        ["git", "grep", "-lIF", "--untracked", text[:9] if value == "commit" else text],
        cwd=ROOT, capture_output=True, text=True,
    )
    if found.returncode > 1:
        pytest.skip("not in a git checkout")
    assert set(found.stdout.split()) <= {"patches/upstream.toml"}


# // the checker


def test_a_good_series_has_no_faults(project):
    assert check_patches.check_files(project.patches) == []


def test_an_unlisted_patch_is_refused(project):
    (project.patches / "series").write_text("first-hook.patch\n")
    assert check_patches.check_files(project.patches) == ["second-hook.patch: in patches/ but not in patches/series"]


def test_a_patch_listed_twice_is_refused(project):
    (project.patches / "series").write_text("first-hook.patch\nsecond-hook.patch\nfirst-hook.patch\n")
    assert check_patches.check_files(project.patches) == ["first-hook.patch: listed 2 times in patches/series"]


def test_a_listed_patch_that_is_missing_is_refused(project):
    (project.patches / "second-hook.patch").unlink()
    assert check_patches.check_files(project.patches) == ["second-hook.patch: in patches/series but not in patches/"]


@pytest.mark.parametrize("field", check_patches.FIELDS)
def test_a_missing_header_is_refused(project, field):
    path = project.patches / "first-hook.patch"
    path.write_text(path.read_text().replace(f"\n{field}: ", "\n"))
    assert check_patches.check_files(project.patches) == [f"first-hook.patch: no line '{field}: ...' in its message"]


def test_non_ascii_is_refused_with_its_line(project):
    path = project.patches / "first-hook.patch"
    path.write_text(path.read_text().replace("Why: a test.", "Why: a t\u00e9st."), encoding="utf-8")
    (fault,) = check_patches.check_files(project.patches)
    assert fault.startswith("first-hook.patch: line ") and fault.endswith("is not ASCII")


def test_a_numbered_name_is_refused(project):
    (project.patches / "first-hook.patch").rename(project.patches / "0001-hook.patch")
    (project.patches / "series").write_text("0001-hook.patch\nsecond-hook.patch\n")
    (fault,) = check_patches.check_files(project.patches)
    assert "not named by what it does" in fault


def test_a_series_over_budget_is_refused(project, monkeypatch):
    monkeypatch.setattr(check_patches, "BUDGET", 3)
    (fault,) = check_patches.check_files(project.patches)
    assert fault.startswith("the series changes 4 lines of existing files, and 3 are allowed")


def test_lines_of_new_files_are_not_in_the_budget():
    new = "diff --git a/x b/x\nnew file mode 100644\n--- /dev/null\n+++ b/x\n@@ -0,0 +1,2 @@\n+one\n+two\n"
    old = "diff --git a/y b/y\n--- a/y\n+++ b/y\n@@ -1,2 +1,2 @@\n-- dashes\n+++ pluses\n"
    assert check_patches.changed_lines(new + old) == 2


# // applying and exporting


def test_export_of_an_applied_series_gives_the_same_bytes(project, tree):
    assert series.roundtrip(tree, project.patches, project.src / "scratch") == []


def test_the_same_series_gives_the_same_commits(project, tree):
    heads = []
    for name in ("one", "two"):
        repo.copy_base(tree, project.src / name)
        series.apply(project.src / name, project.patches)
        heads.append(repo.head(project.src / name))
    assert heads[0] == heads[1]


def test_a_patch_that_was_not_exported_is_seen(project, tree):
    path = project.patches / "second-hook.patch"
    path.write_text(path.read_text().replace("Subject: [PATCH]", "Subject: [PATCH 2/2]"))
    assert series.roundtrip(tree, project.patches, project.src / "scratch") == ["second-hook.patch"]


def test_a_dirty_tree_is_refused(project, tree):
    (tree / "src/llama.cpp").write_text("mine\n")
    with pytest.raises(BuildError, match="not pristine"):
        series.apply(tree, project.patches)
    assert (tree / "src/llama.cpp").read_text() == "mine\n"


def test_a_conflict_names_the_patch_the_files_and_the_way_out(project, clone, tree):
    repo.lend_objects(clone, series.working_copy(project, tree, Report()))
    rewritten = upstream.FILES["src/llama.cpp"].replace("line 13\n", "line 13, rewritten\n")
    upstream.write(clone, {"src/llama.cpp": rewritten})
    pinned = repo.head(clone)
    repo.commit_all(clone, "rewrite line 13")
    repo.git(clone, "update-ref", repo.BASE_REF, "HEAD")
    with pytest.raises(series.ApplyError) as error:
        series.apply(clone, project.patches, since=pinned)
    text = str(error.value)
    assert error.value.conflicts == ["src/llama.cpp"]
    assert "second-hook.patch (2/2) does not apply" in text
    assert "rewrite line 13" in text and " second\n" not in text
    assert all(f"    {i}. " in text for i in (1, 2, 3))


def test_a_working_copy_is_exported_with_its_names_kept(project, tree):
    work = series.working_copy(project, tree, Report())
    upstream.write(work, {"src/other.cpp": "hooked\n"})
    repo.commit_all(work, upstream.MESSAGE.format(subject="third: a Hook, at last"))
    repo.git(work, "reset", "-q", "--hard", "HEAD")
    names = ["first-hook.patch", "second-hook.patch", "third-a-hook-at-last.patch"]
    assert series.export(work, project.patches) == names
    assert series.read(project.patches) == names
    assert (project.patches / "series").read_text().startswith("# order\n")
    assert check_patches.check_files(project.patches) == []


def test_a_dropped_commit_removes_its_patch(project, tree):
    work = series.working_copy(project, tree, Report())
    repo.git(work, "reset", "-q", "--hard", "HEAD~1")
    assert series.export(work, project.patches) == ["first-hook.patch"]
    assert not (project.patches / "second-hook.patch").exists()


def test_a_working_copy_is_never_replaced(project, tree):
    series.working_copy(project, tree, Report())
    with pytest.raises(BuildError, match="was not exported"):
        series.working_copy(project, tree, Report())


def test_without_a_working_copy_the_command_says_how_to_make_one(project, capsys):
    (project.src / "work").mkdir(parents=True)
    assert series_command.main(["export"], project) == 1
    assert "no working copy. Make one with: python -m ci.series work" in capsys.readouterr().err


def test_uncommitted_work_is_not_exported_in_silence(project, tree):
    work = series.working_copy(project, tree, Report())
    upstream.write(work, {"src/other.cpp": "hooked\n"})
    with pytest.raises(BuildError, match="commit them first"):
        series.export(work, project.patches)
