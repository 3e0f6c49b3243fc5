"""Small random models of many architectures do what transformers does, and `docs/architectures.md` says so.

`ci/architectures` holds the models and the comparison. The tests marked `reference` make sixteen of them, and all where
LLAMA_INTERP_ALL_ARCHITECTURES is set.
"""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ci.architectures import shapes, table
from ci.architectures.bounds import CLEAR, EXACT, bounds
from ci.architectures.result import Effect, Result, problems, unexpected

#: each with something that the others lack
CHOSEN = (
    "llama", "nemotron", "apertus", "gemma2", "gpt2", "falcon-40b", "mixtral", "glm4-moe", "llama4", "gpt-oss",
    "deepseek3", "bloom", "mamba2", "jamba", "granite-hybrid", "lfm2",
)  # fmt: skip
NAMES = tuple(shapes.BY_NAME) if os.environ.get("LLAMA_INTERP_ALL_ARCHITECTURES") else CHOSEN


# // against transformers


@pytest.fixture(scope="module")
def files() -> Iterator[dict[str, Path]]:
    for package in ("torch", "transformers"):
        pytest.importorskip(package, reason=f"{package} is missing: pip install 'llama-interp[reference]'")
    import torch

    from ci.architectures import convert

    threads = torch.get_num_threads()
    # for models so small, waiting for other threads takes longer than computing
    torch.set_num_threads(1)
    yield convert.files(shapes.BY_NAME[name] for name in NAMES)
    torch.set_num_threads(threads)


@pytest.mark.reference
@pytest.mark.parametrize("name", NAMES)
def test_an_architecture_does_what_transformers_does(files, name: str, tried: Callable):
    from ci.architectures import compare

    found = compare.compare(shapes.BY_NAME[name], files[name])
    assert not found.problems, "\n".join(found.problems)
    tried("arrays of small models compared with transformers", found.n_arrays)
    tried("edits of small models compared with transformers", len(found.edits))


@pytest.mark.reference
def test_another_layer_head_or_weight_is_noticed(files, monkeypatch):
    from ci.architectures import compare
    from ci.architectures.reference import Reference

    shape, path = shapes.BY_NAME["llama"], files["llama"]
    read = compare.Comparison._read
    def problems_with(wrong: Callable) -> set[str]:
        """What is found where the comparison reads ours through a function that errs."""
        monkeypatch.setattr(compare.Comparison, "_read", wrong)
        return {found.split(":")[0] for found in compare.compare(shape, path).problems}

    def another_layer(self, run, role: str, layer: int):
        return read(self, run, role, 0 if layer > 0 else layer)

    def another_head(self, run, role: str, layer: int):
        held = read(self, run, role, layer)
        return held[:, ::-1] if role == "z" else held

    assert problems_with(another_layer) >= {"attention", "residual", "z", "modules", "activation"}
    assert problems_with(another_head) == {"z"}
    monkeypatch.setattr(compare.Comparison, "_read", read)
    made = Reference.__init__

    def other(self, shape) -> None:
        made(self, shape)
        self.blocks[-1].mlp.down_proj.weight.data[0, 0] += 0.01

    monkeypatch.setattr(Reference, "__init__", other)
    assert any(found.startswith("residual") for found in compare.compare(shape, path).problems)


@pytest.mark.reference
def test_the_command_fails_where_a_bound_does_not_hold(files, monkeypatch, capsys):
    from ci.architectures import __main__ as command
    from ci.architectures import compare

    result = good()
    monkeypatch.setattr(compare, "compare", lambda *_: result)
    monkeypatch.setattr(sys, "argv", ["ci.architectures", "llama"])
    assert command.main() == 0
    result.problems = ["attention: 1e-04 > 1e-05"]
    assert command.main() == 1
    assert result.problems[0] in capsys.readouterr().out


# // what counts as a problem


def good(rounding: str = "") -> Result:
    """A result in which every bound holds."""
    errors = {"attention": 1e-6, "residual": 1e-6, "z": 1e-6, "modules": 1e-6, "activation": 1e-6, "logits": 1e-6}
    return Result(
        "made up", "made-up", "", rounding, 4, [0, 1, 2, 3], errors, dict(errors) if rounding else None,
        {"patch": Effect(0.5, 1e-6, 1e-6 if rounding else None, 0.5)},
        {"captures": True, "resume": True, "stop": True, "unembed": True}, {"resid_mid": "names no tensor"}, 5.0,
    )  # fmt: skip


def spoil(path: str, value: float | str | bool) -> Result:
    """The good result of a model that rounds, with one value changed."""
    found = copy.deepcopy(good("gelu"))
    holder, _, key = path.rpartition("/")
    if not holder:
        setattr(found, key, value)
    elif holder == "edits":
        setattr(found.edits["patch"], key, value)
    else:
        getattr(found, holder)[key] = value
    return found


def test_a_good_result_has_no_problem():
    assert problems(good()) == problems(good("gelu")) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("errors/attention", 2.1e-3), ("errors/residual", 1.1e-3), ("errors/logits", 2.1e-3),
        ("errors/z", float("nan")), ("imitated/attention", 1.1e-5), ("imitated/residual", 1.1e-5),
        ("imitated/modules", 3.1e-5), ("imitated/activation", 2.1e-3), ("exact/resume", False),
        ("exact/captures", False), ("lacks/resid_mid", ""), ("edits/effect", 0.01), ("edits/wrong", 0.01),
        ("edits/error", 2.1e-3), ("edits/imitated", 3.1e-5), ("peak", 1.2),
    ],
)  # fmt: skip
def test_each_thing_that_does_not_hold_is_one_problem(path: str, value):
    assert len(problems(spoil(path, value))) == 1


def test_without_a_rounding_the_narrow_bounds_hold():
    found = good()
    found.errors |= {"attention": 1.1e-5, "residual": 1.1e-5, "z": 3.1e-5}
    assert [problem.split(":")[0] for problem in problems(found)] == ["attention", "residual", "z"]


def test_what_is_lacking_unexpectedly_is_a_problem_and_so_is_what_no_longer_lacks():
    assert unexpected(["resid_mid"], {"resid_mid": "why"}) == []
    assert unexpected(["z"], {}) == ["no tensor for z"]
    assert unexpected([], {"resid_mid": "why"}) == ["a tensor for resid_mid, which was said to be lacking"]


# // the page

RECURRENT = ("mamba2", "jamba", "granite-hybrid", "bamba", "lfm2", "qwen3-next")


@pytest.fixture(scope="module")
def page() -> dict[str, list[dict[str, str]]]:
    return table.read()


def number(cell: str) -> float:
    return 0.0 if cell == "–" else float(cell)


def test_the_page_has_a_line_for_every_architecture(page):
    for title in (table.READING, table.EDITING):
        assert [line["architecture"] for line in page[title]] == list(shapes.BY_NAME), title
    rounded = [shape.name for shape in shapes.SHAPES if shape.rounding]
    assert [line["architecture"] for line in page[table.ALIKE]] == rounded
    assert {line["architecture"]: line["in use"] for line in page[table.READING]} == {
        shape.name: shape.about for shape in shapes.SHAPES
    }


def test_the_bounds_hold_on_the_page(page):
    for line in page[table.READING]:
        kept = bounds(shapes.BY_NAME[line["architecture"]].rounding)
        assert line["bit for bit"] == "yes", line
        for group, column in table.GROUPS.items():
            assert number(line[column]) <= kept.of(group), line
        assert number(line["residual stream"]) > 0 and number(line["logits"]) > 0, line
    for line in page[table.ALIKE]:
        for group, column in table.GROUPS.items():
            assert group == "activation" or number(line[column]) <= EXACT.of(group), line


def test_every_edit_on_the_page_is_clear(page):
    for line in page[table.EDITING]:
        kept = bounds(shapes.BY_NAME[line["architecture"]].rounding)
        cells = [line[name] for name in table.EDITS if line[name] != "–"]
        assert len(cells) >= 2, line
        for effect, error, wrong in (map(float, cell.split(" / ")) for cell in cells):
            assert error <= EXACT.other and min(effect, wrong) >= CLEAR * kept.other, line


def test_what_is_lacking_has_a_reason_and_an_error(page):
    lacking = {(line["architecture"], line["what"]) for line in page[table.LACKING]}
    assert lacking >= {(shape.name, role) for shape in shapes.SHAPES for role in shape.lacks}
    assert {name for name, what in lacking if what == "attention"} == {*RECURRENT}
    for line in page[table.LACKING]:
        assert line["what a user is told"], line
        asks_for_attention = line["what"] in ("attention", "head ablation", "knockout")
        assert asks_for_attention == (line["why"] == table.RECURRENT), line
