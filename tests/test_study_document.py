"""The study's rows, statistics, document, figures and check, on rows made up for it."""

from __future__ import annotations

import doctest
import math
import random
import re
import statistics
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import naive_study
import numpy as np
import pytest

from benchmarks.study import blocks, check, columns, document, figures, markdown, quoted, rows, summary, tried
from benchmarks.study.objectives import OBJECTIVES
from benchmarks.study.rows import Row
from benchmarks.study.settings import Setting
from benchmarks.study.tables import TUNING_SEEDS, Table
from ebmhybrid.errors import DataError, UsageError

ROOT = Path(__file__).parents[1]
SETTING = Setting("toy", "Toy data", "digits", "digits:0-6", {"held": "a", "far1": "b", "far2": "c"}, ("held",))
SETTINGS = {"toy": SETTING}
MAIN = Table("toy", "Objectives", {"cross-entropy": "", "A | a": "a=1", "B": "b=1", "C": "c=1"}, 3, "A note.", whole=3)
SWEEP = Table("toy", "Weights", {"cross-entropy": "", "B, weight 0.1": "b=2", "B, weight 1": "b=1"}, 2, sweep="weight")
TABLES = {"main": MAIN, "the-sweep": SWEEP}


@pytest.mark.parametrize("module", [columns, summary, markdown, figures, check, tried])
def test_doctests(module) -> None:
    failed, attempted = doctest.testmod(module)
    assert attempted
    assert not failed


def row(changes: str = "", seed: int = 0, setting: str = "toy", **figures: float) -> Row:
    return Row(setting, changes, seed, figures, {"device": "CPU", "threads": "1"})


def made_up(base: Mapping[str, float], spread: float = 0.01) -> dict[tuple[str, int], Row]:
    """Rows of all tables but C's, with everything measured; accuracy is `base` with some noise."""
    found = {}
    for table in TABLES.values():
        for changes in table.lines.values():
            for seed in range(table.seeds if changes in base else 0):
                drawn = random.Random(f"{changes} {seed}")
                values = {"accuracy": base[changes] + drawn.uniform(-spread, spread), "n_test": 1000.0}
                values |= {name: drawn.random() for name in ("nll", "ece", "ece_after", "aurc", "corrupted")}
                values |= {"step_ms": drawn.uniform(10, 20), "sanity": float(seed), "temperature": 1.1}
                values |= {f"{attack}/{eps}/255": drawn.random() for attack in ("pgd50", "apgd") for eps in (8, 2)}
                for kind in ("auroc", "fpr95"):
                    for score in columns.SCORES:
                        values |= {f"{kind}/{score}/{name}": drawn.random() for name in SETTING.ood}
                found[changes, seed] = row(changes, seed, **values)
    return found


BASE = {"": 0.8, "a=1": 0.9, "b=1": 0.7, "b=2": 0.75}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("rows")
    for one in made_up(BASE).values():
        rows.append(place, one)
    return place


# Rows


def test_rows_come_back_as_they_were(tmp_path) -> None:
    values = [0.1 + 0.2, 1e-300, -0.0, float("inf"), float(np.float32(0.1)), np.float64(1 / 3), 3]
    first = row('a={"b":"c, d"} e=1', 1, **{f"auroc/energy/{i}": value for i, value in enumerate(values)})
    second = row("", 12, accuracy=0.5)
    for one in (first, second):
        rows.append(tmp_path, one)
    assert rows.read(tmp_path) == [second, first]
    assert str(rows.read(tmp_path)[1].figures["auroc/energy/2"]) == "-0.0"
    assert math.isnan(_again(tmp_path, row("n", 0, nll=math.nan)).figures["nll"])
    assert rows.read(tmp_path / "nowhere") == []


def _again(folder: Path, one: Row) -> Row:
    rows.append(folder, one)
    return next(found for found in rows.read(folder) if (found.changes, found.seed) == (one.changes, one.seed))


def test_a_file_has_one_order_whatever_the_order_of_the_runs(tmp_path) -> None:
    runs = [row("b", 10, nll=1.0), row("b", 9, nll=1.0, brier=2.0), row("", 3, accuracy=0.5), row("a", 0)]
    texts = []
    for name, order in (("x", runs), ("y", runs[::-1])):
        for one in order:
            rows.append(tmp_path / name, one)
        texts.append((tmp_path / name / "toy.csv").read_text())
    assert texts[0] == texts[1]
    lines = texts[0].splitlines()
    assert lines[0] == "setting,changes,seed,device,torch,precision,threads,commit,accuracy,brier,nll"
    assert lines[1:] == [
        "toy,,3,CPU,,,1,,0.5,,",
        "toy,a,0,CPU,,,1,,,,",
        "toy,b,9,CPU,,,1,,,2.0,1.0",
        "toy,b,10,CPU,,,1,,,,1.0",
    ]


def test_a_row_of_the_same_run_is_replaced_and_settings_have_files_of_their_own(tmp_path) -> None:
    for one in (row("a", 1, nll=1.0, brier=3.0), row("a", 1, nll=2.0), row("a", 1, "other", nll=3.0)):
        rows.append(tmp_path, one)
    assert [found.figures for found in rows.read(tmp_path)] == [{"nll": 3.0}, {"nll": 2.0}]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.csv", "toy.csv"]
    assert "brier" not in (tmp_path / "toy.csv").read_text()


def test_workers_append_at_the_same_time_and_no_row_is_lost(tmp_path) -> None:
    runs = [row(f"a={i}", seed, **{f"auroc/energy/{i}": 0.5}) for i in range(6) for seed in range(5)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda one: rows.append(tmp_path, one), runs))
    assert rows.read(tmp_path) == runs
    assert [path.name for path in tmp_path.iterdir()] == ["toy.csv"]


HEADER = "setting,changes,seed,device,torch,precision,threads,commit"
MALFORMED = {
    "": "the first columns are []",
    "setting,seed,changes\n": "the first columns are",
    f"{HEADER},nll,nll\n": "a column has no name or that of another one",
    f"{HEADER},\n": "a column has no name",
    f"{HEADER},seed\n": "that of another one",
    f"{HEADER},nll\ntoy,,0,,,,,\n": "row 2: 8 cells under 9 columns",
    f"{HEADER},nll\ntoy,,0,,,,,,low\n": "row 2: could not convert string to float: 'low'",
    f"{HEADER}\ntoy,,1.5,,,,,\n": "row 2: invalid literal for int",
    f"{HEADER}\ntoy,,1,,,,,\ndigits,,1,,,,,\n": "row 3: setting 'digits' in a file of 'toy'",
    f"{HEADER}\ntoy,a,1,,,,,\ntoy,a,1,,,,,\n": "row 3: a second row of seed 1 of 'a'",
    f'{HEADER}\ntoy,"a,1,,,,,\n': "cannot be read as CSV",
    f"{HEADER}\ntoy,\xff,1,,,,,\n": "cannot be read as CSV",
}


@pytest.mark.parametrize("text", MALFORMED)
def test_a_malformed_file_is_told_of_and_left_as_it_is(text, tmp_path) -> None:
    path = tmp_path / "toy.csv"
    path.write_bytes(text.encode("latin-1"))
    for act in (lambda: rows.read(tmp_path), lambda: rows.append(tmp_path, row("b", 2))):
        with pytest.raises(DataError, match=re.escape(MALFORMED[text])) as caught:
            act()
        assert str(caught.value).startswith(str(path))
    assert path.read_bytes() == text.encode("latin-1")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (row(setting="../toy"), "setting '../toy' names no file"),
        (Row("toy", "", 0, {"seed": 1.0}, {}), "figures ['seed']"),
        (Row("toy", "", 0, {"": 1.0}, {}), "figures ['']"),
        (Row("toy", "", 0, {}, {"host": "a"}), "facts ['host'] are unknown; valid: device"),
    ],
)
def test_a_row_that_no_file_could_hold_is_refused(wrong, message, tmp_path) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        rows.append(tmp_path / "new", wrong)
    assert not (tmp_path / "new").exists()


# Statistics


def test_the_paired_test_and_its_interval_against_the_literal_one() -> None:
    drawn = random.Random(0)
    for n in (2, 3, 5, 9):
        ours, theirs = ([drawn.gauss(i, 1) for _ in range(n)] for i in (0.7, 0))
        found = summary.difference(dict(enumerate(ours)), dict(enumerate(theirs)))
        assert found.n == n
        assert found.mean == pytest.approx(statistics.fmean(ours) - statistics.fmean(theirs))
        assert found.p == pytest.approx(naive_study.paired_p(ours, theirs), abs=1e-6)
        for bound in (found.low, found.high):  # where a two-sided test just rejects
            assert naive_study.paired_p(ours, theirs, bound) == pytest.approx(0.05, abs=1e-6)
        assert found.low < found.mean < found.high


def test_pairs_are_of_common_seeds_only() -> None:
    ours, theirs = {0: 1.0, 1: 3.0, 4: 2.0, 7: 9.0}, {1: 1.0, 4: 1.5, 0: 0.0, 5: 7.0}
    assert summary.difference(ours, theirs) == summary.difference({0: 1.0, 1: 3.0, 4: 2.0}, {0: 0.0, 1: 1.0, 4: 1.5})
    assert summary.difference({0: 1.0, 1: 2.0}, {1: 1.0, 2: 1.0}) is None
    assert summary.difference({0: 1.0, 1: math.inf}, {0: 1.0, 1: 1.0}) is None
    assert summary.difference({0: 1.0, 1: 1.0}, {0: 1.0, 1: math.nan}) is None


THREE = {
    "same": {0: 0.3, 1: 0.7, 2: 0.6},
    "higher": {0: 0.4, 1: 0.8, 2: 0.7},
    "noisy": {0: 0.4, 1: 0.802, 2: 0.699},
}


def test_differences_without_spread() -> None:
    same = {0: 0.3, 1: 0.7, 2: 0.9}
    assert summary.difference(same, same) == summary.Difference(0.0, 0.0, 0.0, 1.0, 3)
    higher = summary.difference({seed: value + 0.1 for seed, value in same.items()}, same)
    assert all(map(math.isnan, (higher.p, higher.low, higher.high)))
    assert higher.mean == pytest.approx(0.1)
    runs = {label: {seed: {"accuracy": value} for seed, value in values.items()} for label, values in THREE.items()}
    told = markdown.comparison(runs, "same", {"accuracy": "accuracy"})
    assert [line.count(markdown.BETTER) for line in told.splitlines()[2:]] == [0, 0, 1]  # spread, and p < .05
    assert "| higher | 3 | +10.00 in every pair |" in markdown.differences(runs, "same", {"accuracy": "accuracy"})
    assert summary.against_control(runs, "same", "accuracy")["noisy"][1] == pytest.approx(
        naive_study.paired_p(list(THREE["noisy"].values()), list(THREE["same"].values())), rel=1e-4
    )  # adjusted for itself alone


def test_holm_rejects_what_the_procedure_rejects() -> None:
    drawn = random.Random(1)
    for count in (1, 2, 5, 8):
        p_values = {str(i): drawn.random() ** 3 for i in range(count)} | {"tie": 0.01, "too": 0.01}
        adjusted = summary.holm(p_values)
        assert list(adjusted) == list(p_values)
        for alpha in np.linspace(0.001, 0.999, 97):
            assert {name for name, p in adjusted.items() if p <= alpha} == naive_study.holm_rejects(p_values, alpha)
    assert summary.holm({}) == {}
    assert summary.holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}


def test_a_summary_is_of_the_sample() -> None:
    values = [0.2, 0.4, 0.9]
    found = summary.summarize(values)
    assert (found.mean, found.n) == (pytest.approx(0.5), 3)
    assert found.std == pytest.approx(math.sqrt(sum((value - 0.5) ** 2 for value in values) / 2))
    assert summary.summarize([]) is None
    assert math.isnan(summary.summarize([1.0]).std)
    assert summary.summarize([1.0, math.inf]).mean == math.inf
    assert math.isnan(summary.summarize([1.0, math.nan]).mean)


def test_runs_of_a_table_are_its_settings_its_seeds_and_its_changes() -> None:
    given = [row("", 3, nll=9.0), row("", 1, nll=1.0), row("", 0, nll=0.0), row("", 0, "other", nll=5.0)]
    given += [row("a=1", 2, nll=2.0), row("z=1", 0, nll=7.0)]
    runs = summary.runs_of(MAIN, given)
    assert runs == {
        "cross-entropy": {0: {"nll": 0.0}, 1: {"nll": 1.0}},
        "A | a": {2: {"nll": 2.0}},
        "B": {},
        "C": {},
    }
    assert list(runs["cross-entropy"]) == [0, 1]


def test_derived_figures_are_means_of_whole_groups_and_ratios_of_the_same_seed() -> None:
    areas = {"auroc/energy/held": 0.5, "auroc/energy/far1": 0.8, "auroc/energy/far2": 0.9, "fpr95/msp/far1": 0.1}
    given = [row("", 0, step_ms=10.0, **areas), row("", 1, step_ms=20.0), row("a=1", 1, step_ms=30.0)]
    given += [row("a=1", 2, step_ms=30.0, **{"auroc/energy/far1": 0.1})]
    runs = summary.runs_of(MAIN, given, SETTING.near, SETTING.far)
    found = runs["cross-entropy"][0]
    assert found["auroc/energy/near"] == 0.5
    assert found["auroc/energy/far"] == pytest.approx(0.85)
    assert found["auroc/energy/all"] == pytest.approx(2.2 / 3)
    assert "fpr95/msp/far" not in found
    assert runs["A | a"][1] == {"step_ms": 30.0, "step_ratio": 1.5}
    assert "step_ratio" not in runs["A | a"][2]
    assert "auroc/energy/far" not in runs["A | a"][2]
    assert "step_ratio" not in summary.runs_of(SWEEP, given)["B, weight 1"]


# Tables


def test_a_table_marks_the_best_and_what_differs_and_says_what_is_missing() -> None:
    up, down = (0.1, 0.2, 0.3), (0.3, 0.2, 0.1)
    given = [row("", i, accuracy=0.5 + 0.01 * up[i], nll=1.0 + 0.01 * down[i]) for i in range(3)]
    given += [row("a=1", i, accuracy=0.6 + 0.012 * up[i], nll=2.0 + 0.012 * down[i]) for i in range(3)]
    given += [row("b=1", i, accuracy=0.6 + 0.012 * up[i], **({"nll": 1.0} if i == 0 else {})) for i in range(3)]
    runs = summary.runs_of(MAIN, given)
    text = markdown.comparison(runs, "cross-entropy", {"accuracy": "acc", "nll": "NLL", "brier": "Brier"})
    assert text.splitlines() == [
        "| objective | n | acc | NLL | Brier |",
        "|---|--:|--:|--:|--:|",
        "| cross-entropy | 3 | 50.20 ± 0.10 | 1.002 ± 0.001 | – |",
        "| A \\| a | 3 | **60.24 ± 0.12** ▲ | 2.002 ± 0.001 ▼ | – |",
        "| B | 3 | **60.24 ± 0.12** ▲ | **1.000** (1) | – |",
        "| C | 0 | not run | not run | not run |",
    ]
    without = markdown.comparison(runs, None, {"accuracy": "acc"})
    assert "▲" not in without
    assert "**60.24 ± 0.12** |" in without


def test_marks_are_by_the_adjusted_p_value() -> None:
    """Of one rival the difference is significant, beside a second that is far from it no longer."""
    noise = (0.0, 0.011, 0.02)
    given = [row("", i, accuracy=0.5) for i in range(3)]
    given += [row("a=1", i, accuracy=0.515 + noise[i]) for i in range(3)]
    alone = summary.runs_of(MAIN, given)
    given += [row("b=1", i, accuracy=0.5 + (0.0, 0.02, -0.01)[i]) for i in range(3)]
    beside = summary.runs_of(MAIN, given)
    p = summary.against_control(alone, "cross-entropy", "accuracy")["A | a"][1]
    assert 0.025 < p < 0.05
    assert summary.against_control(beside, "cross-entropy", "accuracy")["A | a"][1] == pytest.approx(2 * p)
    shown = [markdown.comparison(runs, "cross-entropy", {"accuracy": "acc"}).count("▲") for runs in (alone, beside)]
    assert shown == [1, 0]


def test_differences_are_paired_and_leave_out_what_has_no_pairs() -> None:
    given = [row("", i, accuracy=0.5 + 0.01 * i, nll=1.0) for i in range(3)]
    given += [row("a=1", i, accuracy=0.52 + 0.011 * i) for i in range(3)] + [row("b=1", 0, accuracy=0.9)]
    runs = summary.runs_of(MAIN, given)
    apart, p = summary.against_control(runs, "cross-entropy", "accuracy")["A | a"]
    half = 4.302653 * 0.001 / math.sqrt(3)  # t of 2 degrees of freedom; the differences are .020, .021, .022
    assert (apart.low, apart.high) == pytest.approx((0.021 - half, 0.021 + half), abs=1e-8)
    assert 0.0005 < p < 0.001
    assert markdown.differences(runs, "cross-entropy", {"accuracy": "acc", "nll": "NLL"}).splitlines() == [
        "| objective | pairs | acc | NLL |",
        "|---|--:|--:|--:|",
        f"| A \\| a | 3 | +2.10 [+{100 * (0.021 - half):.2f}, +{100 * (0.021 + half):.2f}], p < 0.001 | – |",
    ]


def test_a_group_of_one_set_is_named_by_it_and_shown_once() -> None:
    setting = Setting("toy", "Toy", "digits", "digits:0-6", {"held": "a"}, ("held",))
    given = made_up(BASE).values()
    kept = [row(one.changes, one.seed, **{f"auroc/{s}/held": 0.5 for s in columns.SCORES}) for one in given]
    found = dict(blocks.blocks(summary.runs_of(MAIN, kept, setting.near, setting.far), MAIN, setting))
    assert found["AUROC by energy"].startswith("| objective | n | held |\n")
    assert found["AUROC by other scores"].startswith(
        "| objective | n | msp: held | kNN: held | gradient norm: held |\n"
    )
    assert found["Differences to cross-entropy"].startswith("| objective | pairs | AUROC held |\n")
    assert list(found) == ["AUROC by energy", "AUROC by other scores", "Differences to cross-entropy"]


def test_figures_without_a_better_side_are_neither_bold_nor_marked() -> None:
    given = [row(changes, i, temperature=1 + len(changes) + 0.001 * i) for changes in ("", "a=1") for i in range(3)]
    text = markdown.comparison(summary.runs_of(MAIN, given), "cross-entropy", {"temperature": "T"})
    assert not set("*▲▼") & set(text)


def test_a_run_that_diverged_is_said_to_be_not_finite() -> None:
    runs = summary.runs_of(MAIN, [row("", 0, nll=1.0), row("", 1, nll=math.inf), row("a=1", 0, nll=3.0)])
    text = markdown.comparison(runs, "cross-entropy", {"nll": "NLL"})
    assert "| cross-entropy | 2 | not finite |" in text
    assert "| 3.000 |" in text  # the only finite one is not the best of several


def test_unknown_figures_are_refused() -> None:
    for name in ("acuracy", "auroc/energy", "auroc/enrgy/mnist", "pgd50", "pgd/8/255", "fpr95", ""):
        with pytest.raises(UsageError, match="is unknown"):
            columns.column(name)


# Quotations


def test_quoted_figures_are_those_of_the_tables(folder) -> None:
    given = rows.read(folder)
    said = quoted.Quoted(given, TABLES, SETTINGS)
    ours, base = ([100 * one.figures["accuracy"] for one in given if one.changes == text] for text in ("a=1", ""))
    assert said.mean("main", "A | a", "accuracy") == f"{statistics.fmean(ours):.2f}"
    assert said.std("main", "A | a", "accuracy") == f"{statistics.stdev(ours):.2f}"
    assert said.n("main", "A | a") == 3
    assert said.n("the-sweep", "B, weight 1") == 2
    assert said.value("main", "A | a", "accuracy") == pytest.approx(statistics.fmean(ours) / 100)
    apart = statistics.fmean(ours) - statistics.fmean(base)
    assert said.diff("main", "A | a", "accuracy") == f"+{apart:.2f}"
    assert said.diff("main", "cross-entropy", "accuracy", "A | a") == f"-{apart:.2f}"
    found, p = said.apart("main", "A | a", "accuracy")
    assert said.interval("main", "A | a", "accuracy") == f"[+{100 * found.low:.2f}, +{100 * found.high:.2f}]"
    assert said.p("main", "A | a", "accuracy") == f"= {p:.3f}"
    assert p == pytest.approx(summary.holm({"a": found.p, "b": said.apart("main", "B", "accuracy")[0].p})["a"])
    assert said.apart("main", "A | a", "accuracy", "B")[1] == said.apart("main", "A | a", "accuracy", "B")[0].p
    assert said.verdict("main", "A | a", "accuracy") == "better"
    assert said.verdict("main", "B", "accuracy", "A | a") == "worse"
    far = [(one.figures["auroc/knn/far1"] + one.figures["auroc/knn/far2"]) / 2 for one in given if one.changes == "b=1"]
    assert said.far("main", "B", "knn") == f"{statistics.fmean(far):.3f}"
    assert said.near("main", "B") == said.mean("main", "B", "auroc/energy/held")


def test_spans_are_from_the_least_to_the_largest(folder) -> None:
    given = rows.read(folder)
    said = quoted.Quoted(given, TABLES, SETTINGS)
    values = {text: [100 * one.figures["accuracy"] for one in given if one.changes == text] for text in ("", "b=1")}
    ends = [f"{statistics.fmean(values[text]):.2f}" for text in ("b=1", "")]
    assert said.span("main", "accuracy", "cross-entropy", "B", "C") == f"{ends[0]} (B) to {ends[1]} (cross-entropy)"
    assert said.span("main", "accuracy").startswith(f"{ends[0]} (B) to ")
    assert said.span("main", "accuracy").endswith(" (A | a)")
    low, high = sorted(statistics.stdev(found) for found in values.values())
    assert said.std_span("main", "accuracy", "cross-entropy", "B") == f"{low:.2f} to {high:.2f}"
    assert said.span("main", "accuracy", "C") == said.std_span("main", "accuracy", "C") == "not run"
    assert said.seeds("main") == "3"
    one = quoted.Quoted([*given, row("c=1", 0, nll=1.0)], TABLES, SETTINGS)
    assert (one.seeds("main"), one.std_span("main", "nll", "C")) == ("1 to 3", "not run")
    with pytest.raises(UsageError, match="label 'D' is unknown"):
        said.span("main", "accuracy", "D")


def test_moves_are_absolute_and_over_common_seeds() -> None:
    of = {"a=1": {0: 0.5, 1: 0.7, 2: 0.9}, "b=1": {0: 0.6, 1: 0.6, 3: 0.1}}
    given = [row(changes, seed, nll=value) for changes, found in of.items() for seed, value in found.items()]
    said = quoted.Quoted(given, TABLES, SETTINGS)
    assert said.moved("main", "A | a", "nll", "B") == "0.100"  # the differences are -0.1 and 0.1
    assert said.moved("main", "A | a", "nll", "C") == "not run"
    with pytest.raises(UsageError, match="label 'D' is unknown"):
        said.moved("main", "A | a", "nll", "D")


def test_what_was_not_run_is_quoted_as_that(folder) -> None:
    said = quoted.Quoted(rows.read(folder), TABLES, SETTINGS)
    assert said.mean("main", "C", "accuracy") == said.std("main", "C", "accuracy") == "not run"
    assert said.verdict("main", "C", "accuracy") == "not run"
    assert (
        said.diff("main", "C", "accuracy")
        == said.interval("main", "C", "accuracy")
        == said.p("main", "C", "nll")
        == "–"
    )
    assert math.isnan(said.value("main", "C", "accuracy"))
    assert said.n("main", "C") == 0
    one = quoted.Quoted([row("", 0, nll=1.0)], TABLES, SETTINGS)
    assert one.std("main", "cross-entropy", "nll") == "–"


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("man", "B", "nll"), "table 'man' is unknown; did you mean 'main'?"),
        (("main", "b", "nll"), "label 'b' is unknown"),
        (("main", "B", "nl"), "figure 'nl' is unknown; did you mean 'nll'?"),
        (("main", "B", "nll", "D"), "label 'D' is unknown"),
    ],
)
def test_quotations_of_what_there_is_not_are_refused(asked, message, folder) -> None:
    said = quoted.Quoted(rows.read(folder), TABLES, SETTINGS)
    with pytest.raises(UsageError, match=re.escape(message)):
        said.diff(*asked)


# The document


def test_the_document_shows_every_table_and_the_prose(folder, tmp_path) -> None:
    prose = tmp_path / "findings.jinja"
    prose.write_text(
        "{% macro opening() %}\nAccuracy {{ mean('main', 'A | a', 'accuracy') }} %.\n{% endmacro %}\n"
        "{% macro the_sweep() %}\nOf the sweep: {{ n('the-sweep', 'B, weight 1') }} runs.\n{% endmacro %}\n"
    )
    text = document.text(rows.read(folder), TABLES, SETTINGS, prose)
    said = quoted.Quoted(rows.read(folder), TABLES, SETTINGS)
    assert f"\nAccuracy {said.mean('main', 'A | a', 'accuracy')} %.\n" in text
    assert text.index("### Weights") < text.index("Of the sweep: 2 runs.")
    assert text.index("## Toy data") < text.index("### Objectives") < text.index("## What the hyper-parameters do")
    assert "python -m benchmarks.study run main\n\nA note.\n" in text
    assert "python -m benchmarks.study run the-sweep\n" in text
    captions = re.findall(r"\*\*([A-Z].*)\*\*$", text, re.MULTILINE)
    assert captions == [
        "Accuracy, calibration and time",
        "AUROC by energy",
        "FPR95 by energy",
        "AUROC by other scores",
        "Robust accuracy %, and accuracy on corrupted images",
        "Differences to cross-entropy",
        "Accuracy, calibration and time",
        "AUROC by energy",
    ]
    assert "| objective | n | held | far1 | far2 | far | all |" in text
    assert "| msp: held | msp: far | kNN: held |" in text
    assert "| PGD-50 2/255 | PGD-50 8/255 | APGD 2/255 | APGD 8/255 | warnings | corrupted % |" in text
    assert re.search(r"\| C \| 0 \| not run", text)
    assert "Near sets: held. Far sets: far1, far2." in text
    assert "| toy | CPU |  |  | 1 | 11 |" in text
    assert "\n\n\n" not in text
    assert "{" not in text


def test_without_rows_the_document_says_so_and_makes_up_nothing(tmp_path) -> None:
    files = document.write(tmp_path / "none", tmp_path / "docs", TABLES, SETTINGS, tmp_path / "no prose")
    assert files == [tmp_path / "docs" / "study.md"]
    text = files[0].read_text()
    assert text.count("Not run.") == 2
    assert "±" not in text.partition("## Toy data")[2]
    assert "](study/" not in text


def test_the_same_rows_give_the_same_document_and_figures(folder, tmp_path) -> None:
    files = document.write(folder, tmp_path / "a", TABLES, SETTINGS, tmp_path / "no prose")
    for one in reversed(rows.read(folder)):
        rows.append(tmp_path / "again", one)
    again = document.write(tmp_path / "again", tmp_path / "b", TABLES, SETTINGS, tmp_path / "no prose")
    for ours, theirs in zip(files, again, strict=True):
        assert ours.read_bytes() == theirs.read_bytes()
    shown = re.findall(r"\]\((study/.*?\.png)\)", files[0].read_text())
    assert [tmp_path / "a" / name for name in shown] == files[1:]
    assert [path.stem for path in files[1:]] == ["main_far", "main_sets", "main_eps", "the-sweep_sweep"]


@pytest.mark.parametrize(
    ("prose", "message"),
    [
        ("{% macro sweep() %}{% endmacro %}", "macro 'sweep' has no place; did you mean 'the_sweep'?"),
        ("{% macro main() %}{{ mean('main', 'D', 'nll') }}{% endmacro %}", "label 'D' is unknown"),
        ("{% macro main() %}{{ men('main', 'B', 'nll') }}{% endmacro %}", "'men' is undefined"),
    ],
)
def test_prose_that_would_be_lost_or_names_nothing_is_refused(prose, message, folder, tmp_path) -> None:
    from jinja2 import UndefinedError

    path = tmp_path / "findings.jinja"
    path.write_text(prose)
    with pytest.raises((UsageError, UndefinedError), match=re.escape(message)):
        document.text(rows.read(folder), TABLES, SETTINGS, path)


def test_the_document_in_the_repository_is_that_of_its_rows() -> None:
    committed, given = ROOT / "docs" / "study.md", rows.read(document.HERE / "rows")
    if not committed.exists() or not given:
        pytest.skip("the study has no rows or no document yet")
    text = committed.read_text(encoding="utf-8")
    assert text == document.text(given), "write it again: python -m benchmarks.study write"
    for name in re.findall(r"\]\((study/.*?\.png)\)", text):
        assert (ROOT / "docs" / name).is_file()


def test_the_readme_begins_its_section_as_the_document_begins() -> None:
    readme, page = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/study.md"))
    assert document.with_claims(readme, page) == readme, "write it again: python -m benchmarks.study write"
    assert page.splitlines()[2] in readme
    page = "# Title\n\nIt [is](nce.md), [so](https://a.b).\n\nThis page and its figures are"
    mark = "<!-- the study's opening -->\n"
    found = document.with_claims(f"Before\n{mark}old\n<!-- end -->\nAfter\n", page)
    assert found == f"Before\n{mark}It [is](docs/nce.md), [so](https://a.b).\n<!-- end -->\nAfter\n"
    assert document.with_claims("without marks", page) == "without marks"


def test_attacks_belong_to_tables_that_have_them() -> None:
    given = [row("", 0, **{"pgd50/1/255": 0.5, "sanity": 0.0, "corrupted": 0.4, "accuracy": 0.9})]
    assert set(summary.runs_of(MAIN, given)["cross-entropy"][0]) == {"pgd50/1/255", "sanity", "corrupted", "accuracy"}
    assert set(summary.runs_of(SWEEP, given)["cross-entropy"][0]) == {"accuracy"}


def test_what_is_compared_is_every_objective_with_its_values() -> None:
    lines = tried.compared({"digits": "Digits", "cifar10": "C"}).splitlines()
    assert lines[:2] == ["| objective | what it is | Digits | C |", "|---|---|---|---|"]
    assert [line.split(" | ")[0].removeprefix("| ") for line in lines[2:]] == list(OBJECTIVES)
    found = {line.split(" | ")[0].removeprefix("| "): line.removesuffix(" |").split(" | ")[2:] for line in lines[2:]}
    assert found["cross-entropy"] == ["–", "–"]
    assert found["outlier exposure"] == ["weight 1", "weight 0.25"]  # both chosen there
    assert found["SupCon"] == ["temperature 0.2", "(temperature 0.1)"]


def test_what_was_tried_is_shown_with_what_was_chosen() -> None:
    objective = OBJECTIVES["label smoothing"]
    given, areas = [], [0.5, 0.7, 0.9, 0.6]
    for i, values in enumerate(objective.candidates):
        accuracy = 0.95 if i == 2 else 0.98  # the best AUROC is too dear
        found = {f"val_auroc/energy/{name}": areas[i] for name in ("gratings", "shapes", "superpositions", "rotations")}
        given += [
            Row("tuning_toy", objective.text(**values), s, {"val_accuracy": accuracy} | found, {}) for s in TUNING_SEEDS
        ]
    assert tried.tried("toy", given).splitlines()[2:] == [
        "| label smoothing | share 0.1; 0.02; 0.05; 0.2 | share 0.02 (least) | 98.00 | 0.700 | 0.500 to 0.900 |"
    ]
    assert tried.tried("toy", given[2:]) == ""
    assert tried.tried("other", given) == ""


# Figures


def test_each_kind_of_figure_is_drawn_where_there_is_enough_for_it() -> None:
    given = list(made_up(BASE).values())

    def kinds(*names: str, table: Table = MAIN) -> list[str]:
        kept = [Row(one.setting, one.changes, one.seed, {n: one.figures[n] for n in names}, {}) for one in given]
        return figures.kinds(summary.runs_of(table, kept, SETTING.near, SETTING.far), bool(table.sweep))

    far = ["auroc/energy/far1", "auroc/energy/far2"]
    assert kinds(*far, "accuracy") == ["far", "sets"]
    assert kinds(*far) == ["sets"]
    assert kinds(far[0], "accuracy", "apgd/2/255") == []
    assert kinds("apgd/8/255", "apgd/2/255") == ["eps"]
    assert kinds("accuracy", table=SWEEP) == ["sweep"]
    one = {"cross-entropy": {0: given[0].figures}}
    assert figures.kinds(one) == figures.kinds(one, True) == figures.kinds({}) == []


def test_figures_show_the_means_and_one_standard_deviation() -> None:
    given = list(made_up(BASE).values())
    styled = figures.styles(TABLES.values())
    runs = summary.runs_of(MAIN, given, SETTING.near, SETTING.far)

    def expected(label: str, name: str) -> summary.Summary:
        return summary.summarize([found[name] for found in runs[label].values()])

    (axes,) = figures.draw("far", runs, MAIN, styled).axes
    shown = {container.get_label(): container for container in axes.containers}
    assert list(shown) == ["cross-entropy", "A | a", "B"]
    for label, container in shown.items():
        point, bars = container.lines[0], container.lines[2]
        accuracy, far = expected(label, "accuracy"), expected(label, "auroc/energy/far")
        assert point.get_xydata()[0] == pytest.approx([100 * accuracy.mean, far.mean])
        low, high = bars[1].get_segments()[0][:, 1]
        assert (low, high) == pytest.approx((far.mean - far.std, far.mean + far.std))
    panels = figures.draw("eps", runs, MAIN, styled).axes
    assert [axes.get_title() for axes in panels] == ["APGD 2/255", "APGD 8/255"]
    means = [container.lines[0].get_xdata()[0] for container in panels[1].containers]
    assert means == pytest.approx(
        [100 * expected(label, "apgd/8/255").mean for label in ("cross-entropy", "A | a", "B")]
    )
    sets = figures.draw("sets", runs, MAIN, styled).axes
    assert [axes.get_title() for axes in sets] == ["far1", "far2", "held"]
    assert [text.get_text() for text in sets[0].get_yticklabels()] == ["cross-entropy", "A | a", "B"]


def test_a_sweep_shows_its_values_and_the_control() -> None:
    runs = summary.runs_of(SWEEP, made_up(BASE).values(), SETTING.near, SETTING.far)
    panels = figures.draw("sweep", runs, SWEEP, figures.styles(TABLES.values())).axes
    titles = [axes.get_title() for axes in panels]
    assert titles == ["accuracy %", "ECE after T %", "energy AUROC, far", "energy AUROC, near"]
    line = panels[0].containers[0].lines[0]
    mean = {label: 100 * statistics.fmean(one["accuracy"] for one in found.values()) for label, found in runs.items()}
    assert line.get_xydata() == pytest.approx(np.array([[0.1, mean["B, weight 0.1"]], [1.0, mean["B, weight 1"]]]))
    assert panels[0].lines[-1].get_ydata()[0] == pytest.approx(mean["cross-entropy"])
    assert [text.get_text() for text in panels[0].get_xticklabels()] == ["0.1", "1"]
    assert panels[0].get_xlabel() == "weight"


def test_a_sweep_has_panels_of_what_its_values_have_alone() -> None:
    given = [row("", 0, accuracy=0.5, ece_after=0.1)] + [row(f"b={i}", 0, accuracy=0.5) for i in (1, 2)]
    (axes,) = figures.draw("sweep", summary.runs_of(SWEEP, given), SWEEP, figures.styles(TABLES.values())).axes
    assert axes.get_title() == "accuracy %"
    others = [row("", 0, accuracy=0.5), *(row(f"b={i}", 0, nll=0.5) for i in (1, 2))]
    assert figures.kinds(summary.runs_of(SWEEP, others), True) == []


def test_an_objective_has_one_style_in_tables_and_sweeps() -> None:
    styled = figures.styles(TABLES.values())
    assert list(styled) == ["A | a", "B", "C", "cross-entropy"]
    looks = [tuple(style.values()) for style in styled.values()]
    assert len(set(looks)) == len(looks)


# The check


def again(table: Table, label: str, seed: int, **changed: float) -> Row:
    found = made_up(BASE)[table.lines[label], seed]
    return Row(found.setting, found.changes, found.seed, found.figures | changed, {})


def outside(lines: list[check.Line]) -> list[str]:
    return [line.figure for line in lines if not line.agrees]


def test_a_run_that_gives_the_same_agrees_and_times_are_not_judged(folder) -> None:
    given = rows.read(folder)
    assert outside(check.compare(MAIN, given, "B", again(MAIN, "B", 1))) == []
    lines = check.compare(MAIN, given, "B", again(MAIN, "B", 1, step_ms=1e6, temperature=99.0, accuracy=0.1))
    assert outside(lines) == ["accuracy"]
    assert not any(line.judged for line in lines if line.figure in ("step_ms", "temperature", "sanity", "n_test"))
    assert {line.figure for line in lines} == set(made_up(BASE)["b=1", 1].figures)


@pytest.mark.parametrize("sign", [-1, 1])
def test_three_standard_deviations_are_the_bound(sign) -> None:
    """Of NLL, by the label's own seeds where they spread most, by the table's pooled where they do not."""
    values = {"": (1.0, 1.2, 1.4), "a=1": (2.0, 2.0, 2.0), "b=1": (3.0, 3.4, 3.8)}
    given = [row(text, seed, nll=value) for text, own in values.items() for seed, value in enumerate(own)]
    pooled = math.sqrt((0.2**2 + 0 + 0.4**2) / 3)
    for label, text, spread, of in (
        ("B", "b=1", 0.4, "seeds of B"),
        ("A | a", "a=1", pooled, "seeds of the table"),
        ("cross-entropy", "", pooled, "seeds of the table"),
    ):
        for factor, expected in ((2.99, []), (3.01, ["nll"])):
            fresh = row(text, 1, nll=values[text][1] + sign * factor * spread)
            (line,) = check.compare(MAIN, given, label, fresh)
            assert line.of == of
            assert line.spread == pytest.approx(spread)
            assert outside([line]) == expected


def test_shares_have_a_sampling_error_where_the_number_of_images_is_known() -> None:
    given = [row("", seed, accuracy=0.9, n_test=400.0) for seed in range(3)]
    fresh = row("", 0, accuracy=0.94, n_test=400.0)
    line = check.compare(MAIN, given, "cross-entropy", fresh)[0]
    p = 361 / 402
    assert line.spread == pytest.approx(math.sqrt(p * (1 - p) / 400))
    assert (line.of, line.agrees) == ("sampling", True)
    unknown = [row("", seed, accuracy=0.9) for seed in range(3)]
    assert outside(check.compare(MAIN, unknown, "cross-entropy", fresh)) == ["accuracy"]
    assert check.sampling_error("apgd/8/255", 1.0, 10_000) > 0
    assert check.sampling_error("apgd/8/255", 0.5, 10_000) == pytest.approx(0.5 / 16)
    assert check.sampling_error("val_auroc/energy/x", 0.5, 100) == pytest.approx(0.05)
    assert check.sampling_error("auroc/energy/x", 0.5, 10_000) == pytest.approx(0.5 / math.sqrt(2000))


def test_a_single_run_must_come_back_exactly_where_no_spread_is_known() -> None:
    given = [row("", 0, nll=1.0)]
    assert outside(check.compare(MAIN, given, "cross-entropy", row("", 0, nll=1.0))) == []
    (line,) = check.compare(MAIN, given, "cross-entropy", row("", 0, nll=1.0 + 1e-12))
    assert (line.of, line.agrees) == ("no spread known", False)


def test_what_is_not_finite_agrees_with_the_same_alone() -> None:
    given = [row("", 0, nll=math.inf), row("", 1, nll=1.0)]
    assert outside(check.compare(MAIN, given, "cross-entropy", row("", 0, nll=math.inf))) == []
    assert outside(check.compare(MAIN, given, "cross-entropy", row("", 0, nll=1.0))) == ["nll"]
    assert outside(check.compare(MAIN, given, "cross-entropy", row("", 1, nll=math.nan))) == ["nll"]


def test_the_choice_is_of_runs_with_rows_one_for_each_table(folder) -> None:
    given = rows.read(folder)
    seen = set()
    for seed in range(60):
        chosen = check.choose(TABLES, given, seed)
        assert chosen == check.choose(TABLES, given[::-1], seed)
        assert [choice.table for choice in chosen] == ["main", "the-sweep"]
        seen |= set(chosen)
    runs = {("main", label, i) for label in ("cross-entropy", "A | a", "B") for i in range(3)}
    runs |= {("the-sweep", label, i) for label in SWEEP.lines for i in range(2)}
    assert seen == runs
    assert check.choose(TABLES, [], 0) == []


def test_the_check_trains_again_prints_and_fails_where_it_must(folder, capsys) -> None:
    given = rows.read(folder)
    assert check.check(TABLES, given, again, 5) == 0
    text = capsys.readouterr().out
    assert "--seed 5" in text
    assert "2 of 2 runs agree within 3 standard deviations" in text
    assert "OUTSIDE" not in text
    assert re.search(r"^accuracy +0\.\d+ +0\.\d+ +0 +0\.00 +(seeds of|sampling).* ok$", text, re.MULTILINE)

    def worse(table: Table, label: str, seed: int) -> Row:
        return again(table, label, seed, **({"accuracy": 0.0} if table is SWEEP else {}))

    assert check.check(TABLES, given, worse, 5) == 1
    text = capsys.readouterr().out
    assert text.count("OUTSIDE") == 1
    assert "1 of 2 runs agree" in text
    assert check.check({"main": MAIN}, given, lambda *_: Row("toy", "", 0, {}, {}), 1) == 1  # nothing to judge
    assert check.check(TABLES, [], again, 1) == 1
    assert "without rows: main, the-sweep" in capsys.readouterr().out
