"""Evaluations side by side: what is compared, what is marked, what is said, and what is refused."""

from __future__ import annotations

import copy
import itertools
import json
import os
import random
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_suite import HOSTILE, SCORES, fake_suite

from ebmhybrid.errors import EbmhybridError, UsageError
from ebmhybrid.evaluate import tables
from ebmhybrid.evaluate.compare_runs import Comparison, compare_results, labels
from ebmhybrid.evaluate.compare_sections import MARKS, comparison_sections, marked
from ebmhybrid.evaluate.files import dumps
from ebmhybrid.evaluate.formats import number as four_digits
from ebmhybrid.evaluate.sections import Cell

Change = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def contents() -> dict[str, dict[str, Any]]:
    """Two results.json as they are read back; "b" is the better model."""
    made = {"a": fake_suite("a", 0, 1.0), "b": fake_suite(f"b {HOSTILE}", 1, 3.0)}
    return {name: json.loads(dumps(result.as_dict())) for name, result in made.items()}


@pytest.fixture
def written(contents: dict[str, dict[str, Any]], tmp_path: Path) -> Callable[..., list[Path]]:
    """Write both evaluations, the second one changed; returns their folders."""

    def write(change: Change | None = None) -> list[Path]:
        folders = []
        for name, content in contents.items():
            content = copy.deepcopy(content)
            if change and name == "b":
                change(content)
            folder = tmp_path / name / "evaluation"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "results.json").write_text(json.dumps(content), encoding="utf-8")
            folders.append(folder)
        return folders

    return write


def _rows(comparison: Comparison, key: str, table: int = 0) -> list[dict[str, Any]]:
    (section,) = (section for section in comparison.sections if section.key == key)
    found = section.tables[table]
    return [dict(row) for row in (*found.rows, *found.means)]


def _marks(comparison: Comparison, key: str, table: int = 0) -> dict[tuple[str, str, str], str]:
    """(figure, name, set) -> which of the runs has which mark, as in "b★"."""
    return {
        (row["figure"], row["name"], row["set"]): "".join(
            f"{name}{row[column].text[-1]}"
            for name, column in (("a", "run0"), ("b", "run1"))
            if column in row and row[column].text[-1] in "★☆"
        )
        for row in _rows(comparison, key, table)
    }


def test_every_figure_stands_under_its_run(
    written: Callable[..., list[Path]], contents: dict[str, dict[str, Any]]
) -> None:
    comparison = compare_results(written())
    assert [run.label for run in comparison.runs] == ["a", f"b {HOSTILE}"]
    assert comparison.notes == ()
    sections = [section.key for section in comparison.sections]
    parts = ("accuracy", "calibration", "selective", "ood", "corruptions", "robustness", "refined")
    assert sections == ["runs", *parts, "detector_robustness", "generation", "sanity", "published"]
    for number, name in enumerate(contents):
        rows = contents[name]["ood"]["rows"]
        shown = {(row["set"], row["name"]): row[f"run{number}"].value for row in _rows(comparison, "ood")}
        assert shown == {(row["ood_set"], row["score"]): row["auroc"] for row in rows}
        fpr = {(row["set"], row["name"]): row[f"run{number}"].value for row in _rows(comparison, "ood", 1)}
        assert fpr == {(row["ood_set"], row["score"]): row["fpr95_ood_positive"] for row in rows}
        robust = {row["name"]: row[f"run{number}"].value for row in _rows(comparison, "robustness")}
        assert len(robust) == len(contents[name]["robustness"]["rows"])
        assert robust["pgd linf 8/255, 20 steps, 1 restarts"] == pytest.approx(
            0.09 * contents[name]["accuracy"]["rows"][0]["accuracy"]
        )


def test_corruptions_are_compared_by_their_means_alone(written: Callable[..., list[Path]]) -> None:
    names = {row["name"] for row in _rows(compare_results(written()), "corruptions")}
    assert names == {"mean", "noise mean", "blur mean", "digital mean", *(f"mean, severity {i}" for i in range(1, 6))}


def test_rows_are_the_long_tables_of_the_runs(
    written: Callable[..., list[Path]], contents: dict[str, dict[str, Any]]
) -> None:
    comparison = compare_results(written())
    parts = {name: contents["a"][name]["rows"] for name in tables.SHAPES if name != "representation"}
    mine = [row for row in comparison.rows if row.pop("run") == "a"]
    assert mine == tables.long_of(parts)
    assert json.loads(json.dumps(comparison.as_dict()))["runs"][0]["label"] == "a"


def test_the_better_run_is_marked_whichever_direction_is_better(written: Callable[..., list[Path]]) -> None:
    comparison = compare_results(written())
    accuracy = _marks(comparison, "accuracy")
    assert [accuracy[key, "", "cifar10/test"] for key in ("accuracy", "NLL", "Brier")] == ["b★", "b☆", "b☆"]
    assert _marks(comparison, "selective")["AURC x 1000", "msp", "cifar10/test"] == "b★"
    assert _marks(comparison, "ood")["AUROC", "energy", "macro mean"] == "b★"
    assert _marks(comparison, "ood", 1)["FPR95, OOD positive", "energy", "svhn"] == "b★"
    best = next(row["run1"] for row in _rows(comparison, "accuracy") if row["figure"] == "accuracy")
    assert best.best
    assert not any(row["run0"].best for row in _rows(comparison, "accuracy"))


def _naive_marks(figures: dict[int, Any], higher: bool) -> dict[int, str]:
    """The definition, run by run."""
    found = {}
    for i, (value, low, high) in figures.items():
        others = [other for j, other in figures.items() if j != i]
        beaten = [value > other[0] if higher else value < other[0] for other in others]
        equal = [f"{value:.4f}" == f"{other[0]:.4f}" for other in others]
        if others and all(beaten) and not any(equal):
            known = None not in (low, high) and all(None not in other for other in others)
            apart = known and all(low > other[2] if higher else high < other[1] for other in others)
            found[i] = "★" if apart else "☆"
    return found


@pytest.mark.parametrize("higher", [True, False])
def test_marks_against_their_definition(higher: bool) -> None:
    choices = [(0.5, 0.4, 0.6), (0.7, 0.65, 0.8), (0.7, None, None), (0.9, 0.8, 1.0), (0.9, 0.85, 1.0), (0.1, 0.0, 0.2)]
    choices += [(0.90001, 0.88, 0.99), (0.09999, 0.0, 0.15)]  # printed as 0.9 and 0.1 are
    for size in (1, 2, 3):
        for some in itertools.product(choices, repeat=size):
            figures = dict(enumerate(some))
            assert marked(figures, higher, four_digits) == _naive_marks(figures, higher), (figures, higher)


def test_areas_are_compared_times_1000(written: Callable[..., list[Path]], contents: dict[str, dict[str, Any]]) -> None:
    comparison = compare_results(written())
    raw = next(row for row in contents["a"]["selective"]["rows"] if row["score"] == "msp")
    for heading, key in (("AURC x 1000", "aurc"), ("AUGRC x 1000", "augrc")):
        row = next(row for row in _rows(comparison, "selective") if (row["figure"], row["name"]) == (heading, "msp"))
        low, high = 1000 * raw[f"{key}_low"], 1000 * raw[f"{key}_high"]
        assert row["run0"].text == f"{1000 * raw[key]:.2f} [{low:.2f}, {high:.2f}]"
        assert row["figures"][0] == (1000 * raw[key], low, high)  # what is drawn
    kept = [row["value"] for row in comparison.rows if (row["run"], row["metric"], row["name"]) == ("a", "aurc", "msp")]
    assert kept == [raw["aurc"]]


def test_what_reads_the_same_has_no_mark(
    written: Callable[..., list[Path]], contents: dict[str, dict[str, Any]]
) -> None:
    theirs = contents["a"]["accuracy"]["rows"][0]

    def change(content: dict[str, Any]) -> None:
        content["accuracy"]["rows"][0].update(nll=theirs["nll"] + 1e-9, brier=round(theirs["brier"], 4) - 0.0001)

    marks = _marks(compare_results(written(change)), "accuracy")
    assert marks["NLL", "", "cifar10/test"] == ""
    assert marks["Brier", "", "cifar10/test"] == "b☆"


def test_a_temperature_that_is_not_identified_has_no_mark(written: Callable[..., list[Path]]) -> None:
    def change(content: dict[str, Any]) -> None:
        for row in content["calibration"]["rows"]:
            row["temperature_unidentified"] = row["variant"] == "temperature"

    before, comparison = compare_results(written()), compare_results(written(change))
    sure, doubtful = (_marks(one, "calibration") for one in (before, comparison))
    scaled = {key for key in sure if key[1] in ("temperature-scaled", "vector-scaled")}
    assert len(scaled) == 6
    assert all(sure[key] for key in scaled)
    assert doubtful == {key: "" if key in scaled else mark for key, mark in sure.items()}
    sure, doubtful = (_marks(one, "corruptions") for one in (before, comparison))
    at_temperature = {key for key in sure if key[0] == "ECE, temperature-scaled"}
    assert at_temperature
    assert all(sure[key] for key in at_temperature)
    assert all(not doubtful[key] for key in at_temperature)
    assert all(doubtful[key] == mark for key, mark in sure.items() if key not in at_temperature)
    assert comparison.notes[0].startswith(f"The temperature is not identified by the held-out images of b {HOSTILE}: ")
    assert comparison.table().startswith(comparison.notes[0])


def _set(role: str, index: int = 0, **change: Any) -> Change:
    def apply(content: dict[str, Any]) -> None:
        [row for row in content["sets"] if row["role"] == role][index].update(change)

    return apply


def test_no_mark_where_the_images_differ_and_the_page_says_so(written: Callable[..., list[Path]]) -> None:
    comparison = compare_results(written(_set("test", digest="other images")))
    for key in ("accuracy", "calibration", "selective", "ood", "robustness"):
        assert set(_marks(comparison, key).values()) == {""}
    assert "The test set cifar10/test does not hold the same images" in comparison.notes[0]


def test_no_mark_where_nobody_knows_whether_the_images_are_the_same(
    contents: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    paths = []
    for name, content in contents.items():
        content = copy.deepcopy(content)
        _set("test", digest=None)(content)
        paths.append(tmp_path / f"{name}.json")
        paths[-1].write_text(json.dumps(content))
    comparison = compare_results(paths)
    assert set(_marks(comparison, "accuracy").values()) == {""}
    assert "is unknown: no digest" in comparison.notes[0]


def test_another_ood_set_costs_its_own_marks_and_the_means(written: Callable[..., list[Path]]) -> None:
    comparison = compare_results(written(_set("ood", 0, digest="other images")))
    marks = _marks(comparison, "ood")
    assert marks["AUROC", "energy", "svhn"] == marks["AUROC", "energy", "macro mean"] == ""
    assert marks["AUROC", "energy", HOSTILE] == "b★"
    assert comparison.notes == ("The ood set svhn does not hold the same images in all runs (digest or n differs).",)


def test_a_mean_over_other_sets_is_not_compared(written: Callable[..., list[Path]]) -> None:
    def add(content: dict[str, Any]) -> None:
        content["sets"].append({"role": "ood", "name": "mnist", "n": 5, "notes": [], "digest": "d"})

    marks = _marks(compare_results(written(add)), "ood")
    assert marks["AUROC", "energy", "macro mean"] == ""
    assert marks["AUROC", "energy", "svhn"] == "b★"


def test_another_n_is_said_and_costs_the_mark(written: Callable[..., list[Path]]) -> None:
    def shrink(content: dict[str, Any]) -> None:
        content["accuracy"]["rows"][0]["n"] = 100

    comparison = compare_results(written(shrink))
    assert set(_marks(comparison, "accuracy").values()) == {""}
    assert "another number of images. a: cifar10/test, n = 200; b <script>" in comparison.notes[0]
    assert comparison.table().startswith(comparison.notes[0])


def test_another_set_or_training_set_is_said_and_has_rows_of_its_own(written: Callable[..., list[Path]]) -> None:
    def move(content: dict[str, Any]) -> None:
        content["accuracy"]["rows"][0]["set"] = "cifar100/test"
        content["context"]["config"]["data"]["train"] = "cifar100"

    comparison = compare_results(written(move))
    assert len(_rows(comparison, "accuracy")) == 6
    assert [set(row) >= {"run0", "run1"} for row in _rows(comparison, "accuracy")] == [False] * 6
    assert "trained on different data. a: cifar10; b" in comparison.notes[1]
    published = comparison.sections[-1]
    assert {table.caption.rpartition(" ")[2] for table in published.tables} == {"cifar10.", "cifar100."}


def test_a_part_that_one_run_lacks_leaves_a_dash(written: Callable[..., list[Path]]) -> None:
    def drop(content: dict[str, Any]) -> None:
        content["ood"] = None
        del content["sanity"]

    comparison = compare_results(written(drop))
    (ood,) = (section for section in comparison.sections if section.key == "ood")
    assert [column.heading for column in ood.tables[0].shown] == ["OOD set", "score", "a"]
    (checks,) = (section for section in comparison.sections if section.key == "sanity")
    assert len(checks.tables[0].rows) == 4
    assert set(_marks(comparison, "ood").values()) == {""}


def test_a_figure_that_is_null_is_no_figure(written: Callable[..., list[Path]]) -> None:
    def blank(content: dict[str, Any]) -> None:
        content["accuracy"]["rows"][0].update(nll=None, brier="high")

    rows = _rows(compare_results(written(blank)), "accuracy")
    assert [row.get("run1", Cell("–")).text for row in rows][1:] == ["–", "–"]


def test_the_text_has_all_figures_and_no_published_ones(written: Callable[..., list[Path]]) -> None:
    text = compare_results(written()).table()
    assert re.search(r"^svhn +energy +0\.\d{4} \[.*\] +0\.\d{4} \[.*\] ★$", text, re.MULTILINE)
    assert re.search(r"^black box +warn +warn$", text, re.MULTILINE)
    titles = [
        "Accuracy: accuracy, higher is better; the others, lower is better",
        "Calibration: lower is better",
        "Selective classification: lower is better",
        "OOD detection: AUROC, higher is better",
        "OOD detection: FPR95, OOD positive, lower is better",
        "Corruptions, means: accuracy, higher is better; the others, lower is better",
        "Robustness: accuracy, higher is better",
        "SGLD-refined inference: accuracy, higher is better",
        "Attacks on the detector: AUROC, higher is better",
        "Samples: labels as asked, higher is better; the others, lower is better",
    ]
    lines = text.splitlines()
    assert [line for line in lines if line.endswith("is better")] == titles
    assert [line for line in lines if line.startswith("★") or "☆ best" in line] == [MARKS]
    assert lines[0] == MARKS
    assert re.search(r"^worst linf 8/255 +", text[text.index("Robustness:") :], re.MULTILINE) is None  # figure first
    assert re.search(r"^accuracy +worst linf 8/255  +cifar10/test", text, re.MULTILINE)
    assert "CombOOD" not in text


def test_the_page_is_written_whole_and_escaped(written: Callable[..., list[Path]], tmp_path: Path) -> None:
    comparison = compare_results(written())
    page = comparison.save(tmp_path / "new" / "folder")
    assert page == tmp_path / "new" / "folder" / "compare.html"
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"https?:|@import|url\((?!#)|<script>alert", text)
    assert "b &lt;script&gt;alert(1)&lt;/script&gt; $x$" in text
    assert text.count("<svg") == sum(len(section.drawings) for section in comparison.sections) == 9
    assert text.count("<h2") == len(comparison.sections)
    assert "Published, OOD: OpenOOD v1.5" in text
    assert "<strong>" in text
    ids = re.findall(r'\sid="([^"]*)"', text)
    assert len(ids) == len(set(ids))
    comparison.save(tmp_path / "new" / "folder")  # once more in its place
    assert [path.name for path in page.parent.iterdir()] == ["compare.html"]


def test_a_figure_has_no_more_lines_than_fit_and_prefers_means(written: Callable[..., list[Path]]) -> None:
    sections = {section.key: section for section in comparison_sections(compare_results(written()).runs)}
    (drawing,) = sections["ood"].drawings
    numbers = drawing.numbers()
    assert not numbers.rows
    assert len(numbers.means) == 12 < 3 * len(SCORES)


def test_a_folder_that_cannot_be_written_is_named(written: Callable[..., list[Path]], tmp_path: Path) -> None:
    comparison = compare_results(written())
    (tmp_path / "file").write_text("precious")
    with pytest.raises(EbmhybridError, match=r"cannot write .*file/compare\.html: "):
        comparison.save(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "precious"


def test_a_run_stands_for_its_newest_evaluation(
    written: Callable[..., list[Path]], contents: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    folder = written()[0]
    run = tmp_path / "run"
    for number, name in enumerate(("new", "old")):  # by time, not by name
        file = run / "eval" / name / "results.json"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(contents["b"]))
        os.utime(file, ns=(10**18 - number * 10**12,) * 2)
    comparison = compare_results([folder / "results.json", str(run)])
    assert comparison.runs[1].path == run / "eval" / "new" / "results.json"


@pytest.mark.parametrize(
    ("paths", "models", "expected"),
    [
        (["runs/a/eval/1", "runs/b/eval/1"], ["m", "m"], ["a", "b"]),
        (["runs/a/1", "runs/b/2"], ["m", "m"], ["a/1", "b/2"]),
        (["runs/a", "runs/b"], ["x", "y"], ["x", "y"]),
        (["runs/a", "runs/b"], ["x", ""], ["a", "b"]),
        (["runs/a", "runs/a/eval/1"], ["m", "m"], ["runs/a", "eval/1"]),
        (["a/x/x", "a/x"], ["", ""], ["x", "a/x"]),
        (["a", "b", "c"], ["m", "m", "n"], ["a", "b", "c"]),
    ],
)
def test_labels_tell_runs_apart(paths: list[str], models: list[str], expected: list[str]) -> None:
    assert labels([Path(path) for path in paths], models) == expected


def test_fewer_than_two_or_one_twice_is_refused(written: Callable[..., list[Path]]) -> None:
    folder = written()[0]
    with pytest.raises(UsageError, match="at least two evaluations to compare, got 1"):
        compare_results([folder])
    with pytest.raises(UsageError, match="at least two evaluations to compare, got 0"):
        compare_results([])
    with pytest.raises(UsageError, match=r"results\.json is given twice"):
        compare_results([folder, folder / "results.json"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"not the results of an evaluation \(JSONDecodeError\)"),
        (b"\xff\xfe\x00", r"not the results of an evaluation \(UnicodeDecodeError\)"),
        (b"[" * 100_000, r"not the results of an evaluation \(RecursionError\)"),
        (b"[]", "it has no schema_version"),
        (b"{}", "it has no schema_version"),
        (b'{"schema_version": "3"}', "schema_version is '3', .* reads 1 and 2; evaluate again"),
        (b'{"schema_version": 2}', "'context' is missing or of the wrong type"),
        (b'{"schema_version": null}', "schema_version is None"),
    ],
)
def test_a_file_that_holds_no_results_is_named(
    written: Callable[..., list[Path]], tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "bad.json").write_bytes(content)
    with pytest.raises(EbmhybridError, match=rf"^{re.escape(str(tmp_path))}/bad\.json: .*{message}"):
        compare_results([written()[0], tmp_path / "bad.json"])


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.update(sets={}),
        lambda content: content.update(accuracy={"rows": []}),
        lambda content: content.update(ood={"rows": [1]}),
        lambda content: content.update(ood=[]),
        lambda content: content.update(robustness={"rows": [{"norm": "linf"}]}),
        lambda content: content.update(robustness={"rows": [{"attack": "pgd", "norm": "linf", "eps": "wide"}]}),
        lambda content: content.update(sanity={"rows": [{"status": "warn"}]}),
        lambda content: content.update(corruptions={"rows": [{"accuracy": 0.5}]}),
    ],
)
def test_damaged_results_are_named(written: Callable[..., list[Path]], change: Change) -> None:
    with pytest.raises(EbmhybridError, match=r"b/evaluation/results\.json: damaged results"):
        compare_results(written(change))


def test_what_sample_found_is_told_from_an_evaluation(tmp_path: Path) -> None:
    for name in ("a.json", "b.json"):
        (tmp_path / name).write_text('{"schema_version": "1", "generation": {"rows": []}}')
    with pytest.raises(EbmhybridError, match=r"a\.json: what `ebmhybrid sample` found.*eval RUN --samples N"):
        compare_results([tmp_path / "a.json", tmp_path / "b.json"])


def test_the_second_schema_is_read_too(written: Callable[..., list[Path]]) -> None:
    assert compare_results(written(lambda content: content.update(schema_version="2"))).notes == ()


def test_a_run_stands_for_the_newest_of_its_evaluations_and_probes(
    written: Callable[..., list[Path]], tmp_path: Path
) -> None:
    first, second = written()
    for time, kind in enumerate(("eval", "probe", "probe", "eval")):
        folder = tmp_path / "run" / kind / str(time)
        folder.mkdir(parents=True)
        file = shutil.copy(second / "results.json", folder)
        os.utime(file, ns=(time, time))
        assert compare_results([first, tmp_path / "run"]).runs[1].path == Path(file)


def test_paths_that_lead_nowhere_are_named(written: Callable[..., list[Path]], tmp_path: Path) -> None:
    with pytest.raises(EbmhybridError, match=r"nowhere: no such file or folder"):
        compare_results([written()[0], tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        EbmhybridError, match=r"empty: no evaluation there, neither results\.json nor eval/\*/ nor probe/"
    ):
        compare_results([written()[0], tmp_path / "empty"])


def _places(content: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = (
        content.items() if isinstance(content, dict) else enumerate(content[:1]) if isinstance(content, list) else ()
    )
    for key, value in items:
        yield (*place, key)
        yield from _places(value, (*place, key))


def test_whatever_stands_in_a_file_the_error_is_one_of_ours(
    contents: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    first = next(iter(contents.values()))
    files = [tmp_path / name / "results.json" for name in ("a", "b")]
    for file in files:
        file.parent.mkdir()
        file.write_text(json.dumps(first))
    places = sorted(_places(first), key=repr)
    draw = random.Random(0)
    for place in draw.sample(places, 60):
        broken = copy.deepcopy(first)
        holder: Any = broken
        for key in place[:-1]:
            holder = holder[key]
        holder[place[-1]] = draw.choice([10**400, float("nan"), float("inf"), None, [], {}, "x", [1], -1])
        files[1].write_text(json.dumps(broken))
        try:
            compare_results(files).table()
        except EbmhybridError as error:
            message = str(error)
        else:
            message = str(files[1])  # a change that a comparison can live with
        assert str(files[1]) in message, place
