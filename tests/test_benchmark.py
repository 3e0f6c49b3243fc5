"""The benchmarks' own arithmetic, and a small run of what makes its models; nothing is timed here."""

from __future__ import annotations

import numpy as np
import pytest

from ci.benchmark import instructions, peers, report, scaling

MEASURED = {"machine": report.machine(1), "rounds": 3, "load": [0.1, None]}

PARTS = ("light", "peers", "instructions", "scaling")


# the page


@pytest.fixture
def page(tmp_path, monkeypatch):
    copy = tmp_path / "benchmarks.md"
    copy.write_text(report.PAGE.read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(report, "PAGE", copy)
    return copy


@pytest.mark.parametrize("name", PARTS)
def test_a_part_of_the_page_is_replaced_and_the_others_stay(page, name):
    before = page.read_text(encoding="utf-8")
    for number in ("0.125", "0.25"):
        table = report.Table("A title", ("case", "ratio"), [("a row", number)])
        report.write_page(name, [table], MEASURED, "measure it")
    start, _, rest = page.read_text(encoding="utf-8").partition(f"<!-- {name}: ")
    part, _, end = rest.partition(f"<!-- end of {name} -->")
    assert start == before.partition(f"<!-- {name}: ")[0] and end == before.partition(f"<!-- end of {name} -->")[2]
    # where lines break depends on which packages are there to be named
    said = " ".join(part.split())
    assert "```sh\nmeasure it\n```" in part and "3 rounds. Load of the machine before and after: 0.1. " in said
    assert part.endswith("| case | ratio |\n| --- | ---: |\n| a row | 0.25 |\n\n")
    assert list(page.parent.iterdir()) == [page]


def test_a_page_without_the_part_is_left_as_it_was(page):
    page.write_text("nothing\n")
    with pytest.raises(ValueError, match="<!-- light: "):
        report.write_page("light", [], MEASURED, "measure it")
    assert page.read_text() == "nothing\n"


# instructions


def test_counts_are_those_of_each_decode_in_order(tmp_path):
    for i in range(1, 2 + instructions.N_GENERATE + 1):
        (tmp_path / f"counts.{i}").write_text(f"events: Ir\nfn=(1) f\n1 2\ntotals: {i * 100}\n")
    (tmp_path / "counts").write_text("totals: 7\n")
    assert instructions.totals(tmp_path) == [100 * i for i in range(1, 11)]


def test_the_first_decode_does_not_count():
    theirs = [10**6, 1000, *range(100, 108)]
    rows = instructions.summarise(theirs, [2 * 10**6, 1500, *range(200, 216, 2)])
    assert [(row["unpatched"], row["patched"], row["ratio"]) for row in rows] == [(1000, 1500, 1.5), (828, 1656, 2.0)]
    assert instructions.table(rows).lines[0][1:] == ("1,000", "1,500", "1.50000")


# growth


@pytest.mark.parametrize("n_suffix", scaling.SUFFIXES)
def test_prompts_begin_alike_and_differ_in_the_whole_rest(n_suffix):
    clean, corrupted = (np.array(prompt) for prompt in scaling.pair(n_suffix, 30))
    assert len(clean) == len(corrupted) == scaling.N_COMMON + n_suffix
    assert (clean == corrupted).tolist() == [True] * scaling.N_COMMON + [False] * n_suffix
    assert 0 <= corrupted.min() and corrupted.max() < 30


def test_every_size_is_swept_in_every_round():
    shape = scaling.Shape(n_embd=64, n_head=4, n_head_kv=2, n_ff=128, n_vocab=512)
    said: list[str] = []
    seconds = scaling.measure(shape, (2, 3), (2, 4), threads=1, rounds=2, say=said.append)
    assert list(seconds) == ["2 layers, 2 tokens", "3 layers, 2 tokens", "2 layers, 4 tokens", "3 layers, 4 tokens"]
    assert all(list(spent) == [1, 2] and min(spent.values()) > 0 for spent in seconds.values())
    rows = scaling.summarise(seconds, (2, 3), (2, 4))
    assert [table.markdown().count("\n") for table in scaling.tables(rows)] == [7, 7]


def test_growth_is_compared_within_a_round():
    seconds = {
        "30 layers, 5 tokens": {1: 1.0, 2: 10.0},
        "30 layers, 10 tokens": {1: 4.0, 2: 40.0},
        "40 layers, 5 tokens": {1: 2.0, 2: 20.0},
        "40 layers, 10 tokens": {1: 6.0, 2: 60.0},
    }
    found = [row for row in scaling.summarise(seconds, (30, 40), (5, 10)) if "ratio" in row]
    assert [(row["case"], row["ratio"], row["ratio_low"], round(row["goal"], 2)) for row in found] == [
        ("5 to 10 tokens, 30 layers", 4.0, 4.0, 4.4),
        ("5 to 10 tokens, 40 layers", 3.0, 3.0, 4.4),
        ("30 to 40 layers, 5 tokens", 2.0, 2.0, 1.96),
        ("30 to 40 layers, 10 tokens", 1.5, 1.5, 1.96),
    ]


# peers


def test_an_ordinary_sweep_of_a_peer_is_measured_once_and_compared_twice():
    keys = [case.key for case in peers.cases()]
    assert len(keys) == len(set(keys)) and "sweep_resid_unpruned, TransformerLens" not in keys
    alone = [case.key for case in peers.cases(["sweep_resid_unpruned"])]
    assert alone == [f"sweep_resid_unpruned, {peers.OURS}", f"sweep_resid_unpruned, {peers.OURS_F32}", "sweep_resid, TransformerLens"]

    seconds = {f"sweep_resid, {peers.OURS_F32}": {1: 1.0, 2: 2.0}, f"sweep_resid_unpruned, {peers.OURS_F32}": {1: 4.0, 2: 4.0}}
    seconds["sweep_resid, TransformerLens"] = {1: 48.0}
    rows = {(row["row"], row["subject"]): row for row in peers.summarise(seconds, {})}
    assert rows["sweep_resid", "TransformerLens"]["ratio"] == [48.0] * 3
    assert rows["sweep_resid_unpruned", "TransformerLens"]["ratio"] == [12.0] * 3
    assert rows["sweep_resid", peers.OURS_F32]["goal"] is None


def test_tables_state_the_goals():
    seconds = {f"{row}, {name}": {1: 1.0} for row in peers.ROWS for name in (peers.OURS, peers.OURS_F32, "TransformerLens")}
    tables = peers.tables(peers.summarise(seconds, {}))[:-1]
    goals = [dict(zip(table.columns, table.lines[-1])).get("goal") for table in tables]
    assert goals == [None] * 6 + ["at least 40", "at least 10", "at least 20"]
    assert all(len(line) == len(table.columns) for table in tables for line in table.lines)
    assert tables[1].title.startswith("Prefill of 256 tokens, residual") and tables[7].title.startswith("Sweep of the residual stream")
