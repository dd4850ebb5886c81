"""The report: sections as data, formats, the page that needs nothing, and the numbers behind each figure."""

from __future__ import annotations

import csv
import json
import math
import re
from fractions import Fraction
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_suite import HOSTILE, SCORES, FakeSuite, Part, fake_suite

from ebmhybrid.evaluate import files, tables
from ebmhybrid.evaluate.formats import count, in_255, interval, number, percent, shortened
from ebmhybrid.evaluate.ood import compare
from ebmhybrid.evaluate.reference_rows import REFERENCE_TABLES, reference_tables
from ebmhybrid.evaluate.report import sortable
from ebmhybrid.evaluate.report_confidence import risk_table
from ebmhybrid.evaluate.report_ood import DRAWN, accepted
from ebmhybrid.evaluate.report_sections import sections_of
from ebmhybrid.evaluate.sections import Cell, Column, Line, Section, Table, bounded, lines_as_text

EVERY = (
    *("accuracy", "calibration", "selective", "ood", "corruptions", "robustness", "sanity", "refined"),
    *("detector_robustness", "generation", "published", "data", "recipe"),
)


@pytest.fixture(scope="module")
def full() -> FakeSuite:
    return fake_suite(f"a {HOSTILE} model")


@pytest.fixture(scope="module")
def folder(full: FakeSuite, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return full.save(tmp_path_factory.mktemp("report") / "out")


@pytest.fixture(scope="module")
def sections(full: FakeSuite) -> dict[str, Section]:
    return {section.key: section for section in sections_of(full)}  # type: ignore[arg-type]


# Formats and tables


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (number(0.00005), "0.0001"),  # a half rounds to what its float is nearest
        (number(math.inf), "inf"),
        (number(-math.inf), "-inf"),
        (number(-0.0), "0.0000"),
        (number(-0.00004999), "0.0000"),
        (number(-0.000051), "-0.0001"),
        (number(-10.0, 0), "-10"),
        (interval(-1e-17, -1e-17, -0.0), "0.0000 [0.0000, 0.0000]"),
        (interval(-1e-17, -0.5, 0.1, 2), "0.00 [-0.50, 0.10]"),
        (percent(-1e-9, -1e-9, -0.01), "0.00 % [0.00, -1.00]"),
        (interval(0.0, 0.0, 0.1, 2), "0.00 [0.00, 0.10]"),  # bounds of 0 are bounds
        (interval(None, 0.0, 0.1), "–"),
        (percent(0.0, 0.0, 0.0), "0.00 % [0.00, 0.00]"),
        (percent(math.nan, 0.1, 0.2), "–"),
        (count(0), "0"),
        (in_255(0.0), "0"),
        (in_255(2 / 255), "2/255"),
        (shortened("x" * 28), "x" * 28),
        (len(shortened("x" * 500)), 28),
    ],
)
def test_formats_at_their_edges(shown: object, expected: object) -> None:
    assert shown == expected


@pytest.mark.parametrize(
    ("column", "row", "cell"),
    [
        (Column("a", "a"), {}, Cell("–")),
        (Column("a", "a"), {"a": None}, Cell("–")),
        (Column("a", "a"), {"a": math.nan}, Cell("–")),
        (Column("a", "a"), {"a": 0}, Cell("0.0000", 0.0)),
        (Column("a", "a"), {"a": -math.inf}, Cell("-inf", -math.inf)),
        (Column("a", "a"), {"a": "many"}, Cell("many")),
        (Column("a", "a"), {"a": True}, Cell("True")),
        (Column("a", "a", digits=1), {"a": 0.25, "a_low": 0.0, "a_high": 1.0}, Cell("0.2", 0.25)),
        (bounded("a", "a", digits=1), {"a": 0.25, "a_low": 0.0, "a_high": 1.0}, Cell("0.2 [0.0, 1.0]", 0.25)),
        (bounded("a", "a", digits=1), {"a": 0.25, "a_low": None, "a_high": 1.0}, Cell("0.2", 0.25)),
        (bounded("a", "a", "percent"), {"a": 0.25}, Cell("25.00 %", 0.25)),
        (Column("a", "a", digits=2, scale=1000), {"a": 0.0123456}, Cell("12.35", 0.0123456)),
        (
            bounded("a", "a", digits=1, scale=1000),
            {"a": 0.0125, "a_low": 0.0, "a_high": 0.02},
            Cell("12.5 [0.0, 20.0]", 0.0125),
        ),
        (bounded("a", "a", digits=1, scale=1000), {"a": 0.002, "a_low": None, "a_high": 0.02}, Cell("2.0", 0.002)),
        (Column("a", "a"), {"a": -1e-9}, Cell("0.0000", -1e-9)),
        (Column("a", "a", "count"), {"a": 12345}, Cell("12,345", 12345.0)),
        (Column("a", "a", "eps"), {"a": 8 / 255}, Cell("8/255", 8 / 255)),
        (Column("a", "a", "given"), {"a": 96}, Cell("96", 96.0)),
        (Column("a", "a", "text"), {"a": 3}, Cell("3")),
        (Column("a", "a"), {"a": Cell("made", 2.0, True)}, Cell("made", 2.0, True)),
    ],
)
def test_a_cell_shows_what_the_row_has_and_sorts_by_its_number(column: Column, row: dict[str, Any], cell: Cell) -> None:
    assert column.cell(row) == cell


def test_a_column_that_no_row_speaks_of_is_left_out_and_the_first_never() -> None:
    columns = (Column("name", "name", "text"), Column("a", "a"), Column("b", "b"), Column("c", "c"))
    table = Table("t", "", columns, ({"a": 0}, {}), ({"c": 1.0},))
    assert [column.key for column in table.shown] == ["name", "a", "c"]
    assert [[cell.text for cell in line] for line in table.cells(table.rows)] == [["–", "0.0000", "–"], ["–"] * 3]
    assert [column.key for column in Table("t", "", columns, ()).shown] == ["name"]


def test_a_table_as_text_has_numbers_to_the_right() -> None:
    table = Table(
        "t", "", (Column("a", "name", "text"), Column("b", "n", "count")), ({"a": "x", "b": 1000},), ({"a": "mean"},)
    )
    assert table.as_text() == "name      n\nx     1,000\nmean      –"


def test_lines_are_aligned_and_a_long_one_pushes_nothing() -> None:
    text = lines_as_text([Line("a", "1", "n=1"), Line("bb", "22"), Line("c", "x" * 60, "n=2")])
    assert text.splitlines() == ["a   1   n=1", "bb  22", f"c   {'x' * 60}  n=2"]
    assert lines_as_text([]) == ""


@pytest.mark.parametrize(("value", "digits"), [(None, ""), (0.0, "0.0"), (-math.inf, "-Infinity"), (1e-9, "1e-09")])
def test_the_script_can_read_what_it_sorts_by(value: float | None, digits: str) -> None:
    assert sortable(Cell("", value)) == digits


# The long table


def test_long_rows_hold_every_figure_once_with_its_bounds_and_sizes(full: FakeSuite) -> None:
    rows = full.rows
    # "representation" is the part of a probe, which has no other
    assert {row["section"] for row in rows} == set(EVERY) - {"published", "data", "recipe"}
    assert set(tables.SHAPES) - {"representation"} == {row["section"] for row in rows}
    assert all(tuple(row) == tables.COLUMNS for row in rows)
    assert len({(row["section"], row["set"], row["name"], row["metric"]) for row in rows}) == len(rows)
    assert all(row["n"] for row in rows)
    pgd = next(row for row in rows if row["metric"] == "robust_accuracy" and row["name"].startswith("pgd"))
    wide = next(row for row in full.robustness.rows if row["attack"] == "pgd")
    assert (pgd["value"], pgd["low"], pgd["high"]) == (wide["robust_accuracy"], wide["robust_low"], wide["robust_high"])
    assert pgd["name"] == "pgd linf eps=0.00784314 steps=20 restarts=1 eot=1"
    ood = [row for row in rows if (row["section"], row["metric"], row["set"]) == ("ood", "auroc", "macro mean")]
    assert [row["n_ood"] for row in ood] == [600] * len(SCORES)
    assert all(row["low"] < row["value"] < row["high"] for row in ood)
    assert all(row["low"] is None for row in rows if row["metric"] == "seconds")


def test_verdicts_are_numbers_in_the_long_table(full: FakeSuite) -> None:
    passed = {row["name"]: row["value"] for row in full.rows if row["metric"] == "passed"}
    assert passed == {"more steps": 1, "black box": 0, "unusually robust": None, "stochastic": None}


def test_a_metric_that_a_row_lacks_has_no_long_row() -> None:
    accuracy = {"set": "t", "n": 5, "accuracy": 0.5}
    rows = tables.long_of({"accuracy": [accuracy], "sanity": [{"check": "c", "status": "warn"}]})
    assert [(row["metric"], row["value"], row["n"], row["set"]) for row in rows] == [
        ("accuracy", 0.5, 5, "t"),
        ("passed", 0, 5, "t"),
    ]


# Sections


def test_every_part_that_ran_has_a_section_and_no_other(full: FakeSuite, sections: dict[str, Section]) -> None:
    assert tuple(sections) == EVERY
    some = FakeSuite(**{**vars(full), **dict.fromkeys(set(tables.SHAPES) - {"accuracy"})})
    assert [section.key for section in sections_of(some)] == ["accuracy", "published", "data", "recipe"]  # type: ignore[arg-type]


def test_every_row_of_a_part_stands_in_a_table_and_means_stand_apart(
    full: FakeSuite, sections: dict[str, Section]
) -> None:
    for key in ("ood", "corruptions", "robustness", "sanity", "refined", "detector_robustness", "selective"):
        (table,) = sections[key].tables
        assert len(table.rows) + len(table.means) == len(getattr(full, key).rows), key
    assert {row["ood_set"] for row in sections["ood"].tables[0].means} == {"near mean", "far mean", "macro mean"}
    assert len(sections["corruptions"].tables[0].means) == 5 + 3 + 1
    assert {row["attack"] for row in sections["robustness"].tables[0].means} == {"worst"}
    assert not any(row["attack"] == "worst" for row in sections["robustness"].tables[0].rows)


def test_the_card_shows_the_worst_attack_at_the_radius_asked_for(full: FakeSuite) -> None:
    def card(eps: Any) -> tuple[str, str]:
        result = FakeSuite(**{**vars(full), "settings": {**full.settings, "eps": eps}})
        (found,) = (s.card for s in sections_of(result) if s.key == "robustness")  # type: ignore[arg-type]
        assert found is not None
        return found.value, found.note

    clean = full.robustness.rows[0]["clean_accuracy"]
    assert card(2 / 255) == (percent(clean * 0.28), "worst case, linf, eps 2/255, n = 200")
    assert card(8 / 255)[0] == percent(clean * 0.04)
    assert card([1 / 255, 16 / 255])[1].endswith("eps 16/255, n = 200")


def test_what_should_be_doubted_is_set_off(full: FakeSuite, sections: dict[str, Section]) -> None:
    assert "3 of 200 images" in sections["robustness"].warnings[0]
    assert len(sections["sanity"].warnings) == 1
    assert sections["sanity"].warnings[0].startswith("black box: gradients are masked")
    rows = [dict(row) | {"temperature_unidentified": row["variant"] == "temperature"} for row in full.calibration.rows]
    for temperature, words in ((0.01, "sharper softmax"), (100.0, "flattest softmax")):
        rows[1]["temperature"] = temperature
        part = Part(rows=tuple(rows), diagrams=full.calibration.diagrams)
        result = FakeSuite(**{**vars(full), "calibration": part})
        (section,) = (s for s in sections_of(result) if s.key == "calibration")  # type: ignore[arg-type]
        assert words in section.warnings[0]
        marks = [line.note.endswith(", T not identified") for line in section.lines]
        assert marks == [False, True, True, False]
        headings = [column.heading for column in section.tables[0].columns]
        assert [heading.endswith(" (T not identified)") for heading in headings[1:5]] == marks
        assert section.card is not None
        assert section.card.note.startswith("as trained; a perfect model shows ")
        assert "It is not identified" in _section(result, "corruptions").text[0]
    assert "T not identified" not in tables.text_table(full)  # type: ignore[arg-type]
    card = sections["calibration"].card
    assert card is not None
    assert f" at temperature {full.calibration.rows[1]['temperature']:.3g}; a perfect" in card.note
    assert "not identified" not in sections["corruptions"].text[0]


def _section(result: FakeSuite, key: str) -> Section:
    (section,) = (section for section in sections_of(result) if section.key == key)  # type: ignore[arg-type]
    return section


def test_calibration_is_a_row_a_figure_and_a_column_a_variant(full: FakeSuite, sections: dict[str, Section]) -> None:
    table = sections["calibration"].tables[0]
    variants = [row["variant"] for row in full.calibration.rows]
    assert [column.key for column in table.shown] == ["figure", *variants, "perfect"]
    keys = ("ece_15", "smooth_ece", "equal_mass_ece_15", "classwise_ece_15", "mce_15")
    for key, cells in zip(keys, table.cells(table.rows), strict=True):
        shown = [interval(row[key], row[f"{key}_low"], row[f"{key}_high"]) for row in full.calibration.rows]
        assert [cell.text for cell in cells[1:]] == [*shown, number(full.calibration.rows[0][f"{key}_perfect"])]


def test_areas_are_shown_times_1000_and_kept_as_they_are(full: FakeSuite, sections: dict[str, Section]) -> None:
    section, row = sections["selective"], full.selective.rows[0]
    assert [column.heading for column in section.tables[0].shown][1:4] == [
        "AURC x 1000",
        "AUGRC x 1000",
        "E-AURC x 1000",
    ]
    cell = section.tables[0].cells(section.tables[0].rows)[0][1]
    assert cell.text == interval(1000 * row["aurc"], 1000 * row["aurc_low"], 1000 * row["aurc_high"], 2)
    assert cell.value == row["aurc"]
    assert section.lines[0].name == f"AURC x 1000 {row['score']}"
    assert section.lines[0].value == cell.text
    assert f"AUGRC x 1000 {1000 * row['augrc']:.2f} [" in section.lines[0].note
    assert {"aurc", "augrc", "e_aurc"} <= {row["metric"] for row in full.rows}
    (kept,) = (one for one in full.rows if (one["metric"], one["name"]) == ("aurc", row["score"]))
    assert (kept["value"], kept["low"]) == (row["aurc"], row["aurc_low"])
    (drawing,) = section.drawings
    (legend,) = (axes.get_legend() for axes in drawing.draw().axes)
    assert legend.get_title().get_text() == "confidence (AURC x 1000)"
    assert f"{row['score']} ({1000 * row['aurc']:.2f})" in [text.get_text() for text in legend.get_texts()]


def test_what_is_no_attack_of_its_own_has_no_settings(full: FakeSuite, sections: dict[str, Section]) -> None:
    (table,) = sections["robustness"].tables
    places = [i for i, column in enumerate(table.shown) if column.key in ("steps", "restarts", "eot")]
    assert len(places) == 3
    for cells in table.cells(table.means):
        assert [cells[i].text for i in places] == ["–"] * 3
    assert [table.cells(table.rows[:1])[0][i].text for i in places] == ["–", "–", "1"]
    assert [table.cells(table.rows[1:2])[0][i].text for i in places] == ["20", "1", "1"]
    assert full.robustness.rows[-1]["steps"] == 0  # the rows themselves stay


def test_the_detector_under_attack_has_intervals(sections: dict[str, Section]) -> None:
    section = sections["detector_robustness"]
    (drawing,) = section.drawings
    for table in (section.tables[0], drawing.numbers()):
        place = [column.key for column in table.shown].index("auroc")
        assert table.cells((*table.rows, *table.means))[0][place].text == "0.9000 [0.8600, 0.9400]"
    assert section.lines[0].value == "AUROC 0.1000 [0.0600, 0.1400]"


def test_the_caption_of_the_robustness_figure_promises_no_fall_on_small_images(sections: dict[str, Section]) -> None:
    (drawing,) = sections["robustness"].drawings
    assert "should fall" not in drawing.caption
    assert "8/255 (linf) on natural images of 32 x 32 pixels; on digits of 8 x 8 it need not" in drawing.caption


@pytest.mark.parametrize(("scores", "sets"), [(1, 1), (2, 2), (4, 1), (5, 2)])
def test_ood_with_few_scores_has_intervals_on_the_terminal(full: FakeSuite, scores: int, sets: int) -> None:
    names = list(full.ood.ood_scores)[:sets]
    inside = {score: full.ood.id_scores[score] for score in SCORES[:scores]}
    outside = {name: {score: full.ood.ood_scores[name][score] for score in inside} for name in names}
    ood = compare("digits", inside, outside, resamples=20)
    section = _section(FakeSuite(**{**vars(full), "ood": ood}), "ood")
    rows = [row for row in ood.rows if row["ood_set"] == "svhn"]
    shown = [
        f"{row['score']} "
        + (interval(row["auroc"], row["auroc_low"], row["auroc_high"]) if scores <= 4 else number(row["auroc"]))
        for row in rows
    ]
    per_line = 2 if scores <= 4 else 5
    lines = section.lines[: math.ceil(scores / per_line)]
    assert [line.value for line in lines] == ["  ".join(shown[i : i + per_line]) for i in range(0, scores, per_line)]
    assert lines[0].name == "OOD AUROC svhn"

    row = next(row for row in ood.rows if row["ood_set"] == ("macro mean" if sets > 1 else "svhn"))
    where, n = ("mean of 2 sets", 600) if sets > 1 else ("on svhn", 300)
    first = f"; first of {scores} scores" if scores > 1 else ""
    assert section.card is not None
    assert section.card.value == number(row["auroc"])
    bounds = f"95 % interval {number(row['auroc_low'])} to {number(row['auroc_high'])}"
    assert section.card.note == f"energy, {where}, {bounds}, n = 200 and {n}{first}"


def test_autoattack_is_named_only_where_it_ran(full: FakeSuite, sections: dict[str, Section]) -> None:
    assert "official composition" in sections["robustness"].text[0]
    rows = tuple(row for row in full.robustness.rows if row["attack"] != "aa")
    result = FakeSuite(**{**vars(full), "robustness": Part(rows=rows)})
    (section,) = (s for s in sections_of(result) if s.key == "robustness")  # type: ignore[arg-type]
    assert "they are not AutoAttack" in section.text[0]


def test_generated_corruptions_are_not_called_by_the_name_of_the_files(
    full: FakeSuite, sections: dict[str, Section]
) -> None:
    assert "they are not CIFAR-10-C" in sections["corruptions"].text[0]
    rows = tuple(dict(row) | {"source": "files"} for row in full.corruptions.rows)
    result = FakeSuite(**{**vars(full), "corruptions": Part(rows=rows)})
    (section,) = (s for s in sections_of(result) if s.key == "corruptions")  # type: ignore[arg-type]
    assert "CIFAR-10-C" not in section.text[0]
    assert section.lines[-1].note.endswith("n=200, 15 cells, from files")


def test_the_terminal_has_a_line_for_each_main_figure(full: FakeSuite) -> None:
    text = tables.text_table(full)  # type: ignore[arg-type]
    assert re.match(r"accuracy +\d+\.\d\d % \[\d+\.\d\d, \d+\.\d\d\] +n=200\n", text)
    assert re.search(r"^ECE-15 at T=\S+ +0\.\d{4} \[", text, re.MULTILINE)
    assert re.search(
        r"^OOD AUROC macro mean +energy 0\.\d{4}  msp .* n=200 and 600\n +knn 0\.\d{4}", text, re.MULTILINE
    )
    checks = dict(re.findall(r"^check (.+?)  +(.+)$", text, re.MULTILINE))
    assert {name: " ".join(said.split()) for name, said in checks.items()} == {
        "more steps": "pass 1.00 %",
        "black box": "warn 25.00 %, n=190, gradients are masked: Square finds what PGD does not",
        "unusually robust": "info 40.00 %, n=190, more robust than networks trained without attacks are",
        "stochastic": "not run one pass was asked for",
    }
    corruptions = re.findall(r"^(corruptions, .+?)  +\d.*(n=.*)$", text, re.MULTILINE)
    assert corruptions == [
        *((f"corruptions, severity {level}", "n=200, 3 cells, generated") for level in range(1, 6)),
        *((f"corruptions, {family}", "n=200, 5 cells, generated") for family in ("noise", "blur", "digital")),
        ("corruptions, mean", "n=200, 15 cells, generated"),
    ]
    assert re.search(r"^refined eot linf 8/255 ", text, re.MULTILINE)
    assert "\x1b" not in text


# Numbers behind figures


def _numbers(sections: dict[str, Section], name: str) -> Table:
    (drawing,) = (drawing for section in sections.values() for drawing in section.drawings if drawing.name == name)
    return drawing.numbers()


def test_the_numbers_of_a_histogram_count_every_image(full: FakeSuite, sections: dict[str, Section]) -> None:
    rows = _numbers(sections, "scores-svhn-energy").rows
    inside = full.ood.id_scores["energy"]
    assert sum(row["id"] for row in rows) == len(inside)
    assert sum(row["ood"] for row in rows) == 300
    for row in rows[:-1]:  # the last bin is closed on the right
        assert row["id"] == ((inside >= row["low"]) & (inside < row["high"])).sum()


def test_the_numbers_of_a_roc_curve_against_a_loop_over_thresholds(
    full: FakeSuite, sections: dict[str, Section]
) -> None:
    table = _numbers(sections, "roc-svhn")
    assert len(table.columns) == 1 + DRAWN
    inside, outside = full.ood.id_scores["msp"], full.ood.ood_scores["svhn"]["msp"]
    for row in table.rows:
        enough = [t for t in inside if sum(inside >= t) >= round(row["level"] * len(inside), 9)]
        assert row["msp"] == pytest.approx(sum(outside >= max(enough)) / len(outside), abs=1e-12)


@pytest.mark.parametrize("n", [1, 3, 7, 20, 200, 300])
def test_a_share_of_images_is_a_count_rounded_up_and_never_by_rounding_error(n: int) -> None:
    ranks = np.arange(n, dtype=np.float64)
    shares = accepted(ranks, ranks)  # of the same scores as many are accepted on both sides
    expected = [math.ceil(Fraction(i, 20) * n) / n for i in range(1, 20)]
    assert shares[:19] == pytest.approx(expected, abs=1e-12)
    assert shares[-1] == 1.0
    rows = risk_table({"s": (np.arange(1, n + 1) / n, ranks)}).rows
    assert [row["s"] for row in rows] == [math.ceil(Fraction(i, 20) * n) - 1 for i in range(1, 21)]


def test_the_numbers_of_risk_over_coverage_against_a_loop(full: FakeSuite, sections: dict[str, Section]) -> None:
    for row in _numbers(sections, "risk-coverage").rows:
        coverage, risk = full.selective.curves["margin"]
        expected = next(r for c, r in zip(coverage, risk, strict=True) if c >= row["coverage"] - 1e-9)
        assert row["margin"] == expected


def test_the_numbers_of_the_robustness_curve_start_at_the_clean_accuracy(
    full: FakeSuite, sections: dict[str, Section]
) -> None:
    table = _numbers(sections, "robustness")
    clean, *rest = table.rows
    assert clean["eps"] == 0.0
    assert {clean[name] for name in ("fgsm", "aa", "worst")} == {full.robustness.rows[0]["robust_accuracy"]}
    assert [row["eps"] * 255 for row in rest] == pytest.approx([2, 4, 8, 16])
    assert table.cells([rest[0]])[0][2].text.startswith(f"{100 * rest[0]['pgd']:.2f} % [")


def test_the_numbers_of_the_reliability_diagram_are_its_bins(full: FakeSuite, sections: dict[str, Section]) -> None:
    table, bins = _numbers(sections, "reliability-raw"), full.calibration.diagrams["raw"]
    assert [row["count"] for row in table.rows] == bins.count.tolist()
    empty = [i for i, row in enumerate(table.rows) if not row["count"]]
    assert all(table.cells([table.rows[i]])[0][-1].text == "–" for i in empty)


def test_the_numbers_of_severity_curves_are_the_mean_rows(full: FakeSuite, sections: dict[str, Section]) -> None:
    table = _numbers(sections, "corruptions-ece-15")
    assert [column.heading for column in table.columns][-2:] == ["mean", "mean, temperature-scaled"]
    assert [row["severity"] for row in table.rows] == [0, 1, 2, 3, 4, 5]
    curve = {row["severity"]: row["mean"] for row in _numbers(sections, "corruptions-accuracy").rows}
    means = {row["severity"]: row["accuracy"] for row in full.corruptions.rows if row["corruption"] == "mean"}
    assert all(curve[level] == means[level] for level in range(1, 6))


def test_of_many_scores_the_first_are_drawn_and_all_are_listed(sections: dict[str, Section]) -> None:
    names = [drawing.name for drawing in sections["ood"].groups["svhn"]]
    assert names == [*(f"scores-svhn-{score}" for score in SCORES[:DRAWN]), "roc-svhn", "auroc-svhn"]
    assert [row["score"] for row in _numbers(sections, "auroc-svhn").rows] == list(SCORES)


# The page


class _Page(HTMLParser):
    """What a browser would load, ids, tags, and whether each figure is followed by its numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.cells = 0
        self.widths: list[int] = []
        self.unscoped = 0
        self.labels: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append(tag)
        self.ids += [found["id"] or ""] if "id" in found else []
        self.labels += [found["aria-label"] or ""] if "aria-label" in found else []
        self.links += [found[name] or "" for name in ("src", "href", "xlink:href", "data") if name in found]
        self.unscoped += tag == "th" and "scope" not in found
        if tag == "tr":
            self.cells = 0
        self.cells += tag in ("td", "th")

    def handle_endtag(self, tag: str) -> None:
        if tag == "tr":
            self.widths.append(self.cells)
        if tag == "table":
            assert len(set(self.widths)) == 1, "rows of one table have different numbers of cells"
            self.widths = []


def test_the_page_needs_nothing_and_escapes_everything(folder: Path, full: FakeSuite) -> None:
    text = (folder / "report.html").read_text(encoding="utf-8")
    page = _Page()
    page.feed(text)
    assert not re.search(r"https?:|@import|url\((?!#)|<link|<img|javascript:", text)
    links = [link for link in page.links if not link.startswith("data:image/png;base64,")]  # pictures of samples
    assert len(page.links) - len(links) == 3
    assert all(link.startswith("#") and link[1:] in page.ids for link in links)
    assert len(page.ids) == len(set(page.ids))
    assert page.tags.count("script") == 1
    assert not page.unscoped
    assert page.tags.count("h1") == page.tags.count("main") == page.tags.count("nav") == 1
    assert f"{HOSTILE}: distribution of energy." in page.labels
    assert "&lt;script&gt;alert(1)&lt;/script&gt; $x$ &amp; " in text
    assert "<script>alert" not in text
    for key in EVERY:
        assert f'id="{key}"' in text


def test_each_figure_is_followed_by_its_numbers_and_saved_as_a_file(folder: Path, full: FakeSuite) -> None:
    text = (folder / "report.html").read_text(encoding="utf-8")
    figures = re.findall(r"<figure>.*?</figure>", text, re.DOTALL)
    names = {drawing.name for section in sections_of(full) for drawing in section.drawings}  # type: ignore[arg-type]
    assert {path.stem for path in (folder / "figures").iterdir()} == names
    assert len(figures) == len(names) == 4 + 1 + 2 * (DRAWN + 2) + 2 + 1 + 1 + 4
    for figure in figures:
        assert re.search(r"</svg></div>\s*<figcaption>.+?</figcaption>\s*<details.*?<table>.*?<td", figure, re.DOTALL)
        assert figure.count("<svg") == 1


def test_dollars_in_a_figure_are_no_mathematics(folder: Path) -> None:
    (path,) = (folder / "figures").glob("scores-script-*-energy.svg")
    assert "$x$" in path.read_text(encoding="utf-8")


def test_a_number_is_written_beside_its_text_for_sorting(folder: Path, full: FakeSuite) -> None:
    text = (folder / "report.html").read_text(encoding="utf-8")
    auroc = full.ood.rows[0]["auroc"]
    assert f'<td data-value="{auroc!r}">{auroc:.4f} [' in text
    assert '<td data-value="0.03137254901960784">8/255</td>' in text
    assert 'data-value="">' not in text


def test_saved_files_keep_their_formats(folder: Path, full: FakeSuite) -> None:
    assert sorted(path.name for path in folder.iterdir()) == sorted(files.OURS)
    content = json.loads((folder / "results.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert content["ood"]["rows"][0]["auroc"] == full.ood.rows[0]["auroc"]
    with (folder / "results.csv").open(encoding="utf-8") as stream:
        table = list(csv.DictReader(stream))
    assert len(table) == len(full.rows)
    with np.load(folder / "scores.npz") as arrays:
        np.testing.assert_array_equal(arrays["ood-svhn.vim"], full.ood.ood_scores["svhn"]["vim"])


# Published figures


def test_published_figures_stand_beside_their_data_alone(folder: Path, full: FakeSuite) -> None:
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert ">96.7<" in text  # CIFAR-10's
    assert ">80.9<" not in text  # CIFAR-100's
    assert "no figure above is directly comparable" in text
    result = FakeSuite(**{**vars(full), "context": {"config": {"data": {"train": "digits"}}}})
    (section,) = (s for s in sections_of(result) if s.key == "published")  # type: ignore[arg-type]
    assert not section.tables
    assert section.text[0].endswith("trained on digits.")


def test_reference_rows_fit_their_columns_and_lie_in_range() -> None:
    for table in REFERENCE_TABLES:
        assert all(len(row) == len(table.columns) + 1 for row in table.rows)
        assert len({row[0] for row in table.rows}) == len(table.rows)
        assert all(value is None or 0 <= float(value) <= 100 for row in table.rows for value in row[1:])
    openood = {
        table.data: {str(row[0]): row[1:] for row in table.rows}
        for table in REFERENCE_TABLES
        if "OpenOOD" in table.source
    }
    assert len(openood["cifar10"]) == 16
    assert len(openood["cifar100"]) == 6
    assert openood["cifar10"]["CombOOD"] == (91.13, 94.65)
    assert openood["cifar100"]["OE (trained with outliers)"] == (88.30, 81.41)
    assert {table.section for table in reference_tables("cifar10")} == {
        *("accuracy", "OOD", "calibration", "corruptions", "robustness"),
    }
