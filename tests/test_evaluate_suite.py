"""The suite: one pass a set, results that any parser reads, a page that needs nothing, and all-or-nothing writing."""

from __future__ import annotations

import csv
import importlib.metadata
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ebmhybrid.evaluate import (
    evaluate,
    evaluate_calibration,
    evaluate_corruptions,
    evaluate_ood,
    evaluate_predictions,
    files,
    predict,
    report,
    suite,
)
from ebmhybrid.evaluate.cache import PredictionCache
from ebmhybrid.evaluate.detectors import DETECTORS
from ebmhybrid.evaluate.feature_detectors import knn
from ebmhybrid.evaluate.features import head_of
from ebmhybrid.evaluate.reference_rows import REFERENCE_TABLES
from ebmhybrid.evaluate.results import PARTS
from ebmhybrid.evaluate.scores import MODEL_SCORES, SCORES


class Set(list[tuple[torch.Tensor, torch.Tensor]]):
    notes: tuple[str, ...] = ()
    name = "set"

    def digest(self) -> str:
        return f"sha256 of {self.name}"


def _set(name: str, n: int, seed: int, level: float = 1.0, batch: int = 16) -> Set:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(n, 1, 2, 2, generator=generator) * level
    labels = torch.where(torch.rand(n, generator=generator) < 0.7, images.flatten(1).argmax(1), 0)
    found = Set(zip(images.split(batch), labels.split(batch), strict=True))
    found.name = name
    found.notes = (f"{n} images",)
    return found


class Counting(nn.Module):
    """Logits proportional to pixels, and the number of images seen."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(5.0))
        self.seen = 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.seen += len(images)
        return self.scale * images.flatten(1)


@pytest.fixture(scope="module")
def sets() -> dict[str, Any]:
    return {
        "test_set": _set("digits:0-3/test", 70, 0),
        "validation": _set("digits:0-3/validation", 50, 1),
        "ood_sets": {"noise": _set("noise", 30, 2, 0.4), "<script>alert(1)</script> $x$": _set("b", 20, 3, 0.7)},
    }


@pytest.fixture(scope="module")
def full(sets: dict[str, Any]) -> suite.SuiteResult:
    context = {"model": "a <script>bad()</script> model", "config": {"data": {"train": "digits:0-3"}}, "nan": np.nan}
    scores = ("energy", "msp", "max_logit", "entropy", "grad_norm")
    given = {**sets, "scores": scores, "attacks": ("fgsm", "pgd"), "steps": 2, "sanity": False}
    return evaluate(Counting(), **given, context=context)


def test_each_image_is_seen_once_for_all_figures_of_logits(sets: dict[str, Any]) -> None:
    model = Counting()
    evaluate(
        model,
        **sets,
        scores=("energy", "msp", "max_logit", "entropy", "gen", "temperature", "hdge"),
        train_set=_set("t", 9, 4),
    )
    assert model.seen == 70 + 50 + 30 + 20 + 9


def test_all_is_what_the_arguments_suffice_for(sets: dict[str, Any]) -> None:
    images = _set("digits:0-3/test", 40, 0)
    of_logits = ["energy", "msp", "max_logit", "entropy", "gen", "grad_norm", "odin"]
    assert evaluate(Counting(), images, scores="all").settings["scores"] == of_logits
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 4))
    torch.manual_seed(0)
    found = evaluate(model, **sets, train_set=_set("digits:0-3/train", 60, 5), scores="all")
    assert set(found.settings["scores"]) == {*SCORES, *DETECTORS, *MODEL_SCORES} - {"joint_energy"}
    assert found.ood is not None
    assert {row["score"] for row in found.ood.rows} == set(found.settings["scores"])
    assert [row["role"] for row in found.sets] == ["test", "validation", "train", "ood", "ood"]


def test_what_a_score_needs_is_said_before_the_first_pass(sets: dict[str, Any]) -> None:
    model = Counting()
    with pytest.raises(ValueError, match="'knn' needs the training set"):
        evaluate(model, **sets, scores=["energy", "knn"])
    with pytest.raises(ValueError, match=r"'mahalanobis' needs features .* ends in a linear layer"):
        evaluate(model, **sets, scores=["mahalanobis"], train_set=sets["test_set"])
    with pytest.raises(ValueError, match="'temperature' needs validation images"):
        evaluate(model, sets["test_set"], scores=["temperature"])
    with pytest.raises(ValueError, match="no OOD set was given"):
        evaluate(model, sets["test_set"], attack_detector=True)
    with pytest.raises(ValueError, match="attack_detector needs one of the scores"):
        evaluate(model, **sets, scores=["grad_norm"], attack_detector=True)
    assert model.seen == 0


def test_sets_and_models_that_cannot_serve_are_said_at_once(sets: dict[str, Any]) -> None:
    model = Counting()
    batches = list(sets["test_set"])
    with pytest.raises(ValueError, match="can be read only once"):
        evaluate(model, iter(batches))
    with pytest.raises(ValueError, match="'far': can be read only once"):
        evaluate(model, batches, ood_sets={"far": (one for one in batches)})
    with pytest.raises(ValueError, match="can be read only once"):
        evaluate_corruptions(model, iter(batches))
    with pytest.raises(ValueError, match="can be read only once"):
        evaluate_ood(model, batches, {"far": iter(batches)})
    assert model.seen == 0
    with pytest.raises(ValueError, match="sides of at least 8"):
        evaluate(model, batches, corruptions=True, attacks=["pgd"])
    with pytest.raises(ValueError, match=r"must yield batches \(images, labels\), got Tensor"):
        evaluate(model, [images for images, _ in batches])
    with pytest.raises(ValueError, match="must be an iterable"):
        evaluate(model, None)
    with pytest.raises(ValueError, match=r"'macro mean'.* is the name of a mean"):
        evaluate(model, batches, ood_sets={"macro mean": batches})
    before = [images.clone() for images, _ in batches]
    with pytest.raises(ValueError, match="in place"):
        evaluate(lambda images: images.mul_(0.5).flatten(1), [(images.clone(), labels) for images, labels in batches])
    assert all(torch.equal(images, kept) for (images, _), kept in zip(batches, before, strict=True))


def test_all_leaves_out_features_where_the_head_does_not_end_the_model(images: dict[str, Any]) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Small()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * self.net(x)

    found = evaluate(Scaled(), images["test"], train_set=images["train"], scores="all")
    assert found.settings["scores"] == ["energy", "msp", "max_logit", "entropy", "gen", "hdge", "grad_norm", "odin"]
    with pytest.raises(ValueError, match="last linear layer returns"):
        evaluate(Scaled(), images["test"], train_set=images["train"], scores="knn")


def test_a_detector_that_cannot_be_fitted_is_noted(images: dict[str, Any]) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    nn.init.zeros_(model[1].weight)  # all logits negative: ViM has no positive scale
    nn.init.constant_(model[1].bias, -1.0)
    found = evaluate(model, images["test"], train_set=images["train"], scores="all", context={"notes": ["mine"]})
    assert "vim" not in found.settings["scores"]
    assert found.context["notes"][0] == "mine"
    assert found.context["notes"][1].startswith("vim left out of all scores")


class Small(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 4))


@pytest.fixture(scope="module")
def images() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    found = {}
    for name, n in (("test", 24), ("validation", 20), ("train", 30), ("noise", 12), ("far", 8)):
        pixels = torch.rand(n, 1, 8, 8, generator=generator)
        found[name] = Set(zip(pixels.split(7), torch.randint(4, (n,), generator=generator).split(7), strict=True))
        found[name].name = name
    return found


def test_every_part_at_once_equals_the_parts_alone(images: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Small()
    ood_sets, groups = {"noise": images["noise"], "far": images["far"]}, {"noise": "near", "far": "far"}
    found = evaluate(
        model,
        images["test"],
        images["validation"],
        ood_sets,
        ["energy", "knn"],
        attacks="pgd",
        eps=[4 / 255, 8 / 255],
        steps=20,
        train_set=images["train"],
        groups=groups,
        corruptions=True,
        severities=[1, 5],
        attack_detector=True,
        refine=True,
        limit=10,
        cache=PredictionCache(tmp_path / "cache", "weights"),
        journal=tmp_path / "journal.jsonl",
    )
    assert found.ood is not None
    assert {row["group"] for row in found.ood.rows} == {"near", "far", None}
    assert {row["ood_set"] for row in found.ood.rows} == {"noise", "far", "near mean", "far mean", "macro mean"}
    train, far = (predict(model, images[name], features=True, limit=10) for name in ("train", "far"))
    expected = knn(train.features)(far.features)
    np.testing.assert_array_equal(found.ood.ood_scores["far"]["knn"], expected)
    assert found.selective is not None
    assert found.refined is not None
    assert {row["inference"] for row in found.refined.rows} == {"plain", "refined"}
    assert found.calibration is not None
    temperature = found.calibration.rows[1]["temperature"]
    corrupted = evaluate_corruptions(model, images["test"], severities=[1, 5], temperature=temperature, limit=10)
    assert found.corruptions is not None
    assert found.corruptions.rows == corrupted.rows
    assert found.robustness is not None
    assert sorted({row["eps"] for row in found.robustness.rows}) == [0.0, 4 / 255, 8 / 255]
    assert found.sanity is not None
    assert found.sanity.settings["eps"] == found.settings["eps"] == 4 / 255
    assert found.detector_robustness is not None
    assert {row["score"] for row in found.detector_robustness.rows} == {"energy"}
    assert (tmp_path / "journal.jsonl").is_file()
    content = json.loads((found.save(tmp_path / "out") / "results.json").read_text())
    run = set(PARTS) - {"generation", "representation"}  # which need samples and encoders
    assert all(content[part]["rows"] for part in run)
    assert content["generation"] is content["representation"] is None
    assert {row["section"] for row in found.rows} == run
    page = _Page()
    page.feed((tmp_path / "out" / "report.html").read_text())
    assert len(page.ids) == len(set(page.ids))


def test_the_ood_part_alone_takes_fitted_detectors_too(images: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model, ood_sets = Small(), {"far": images["far"]}
    held = {"train_set": images["train"], "validation": images["validation"]}
    whole = evaluate(model, images["test"], ood_sets=ood_sets, scores="all", **held)
    alone = evaluate_ood(model, images["test"], ood_sets, iter(["all"]), **held)
    assert whole.ood is not None
    assert alone.rows == whole.ood.rows
    with pytest.raises(ValueError, match="'knn' needs the training set"):
        evaluate_ood(model, images["test"], ood_sets, ["knn"])


def test_logits_alone_give_what_the_model_gives(images: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = Small()
    scores = ["energy", "temperature", "hdge", "mahalanobis", "vim", "react"]
    given = {"validation": images["validation"], "scores": scores, "train_set": images["train"]}
    whole = evaluate(model, images["test"], ood_sets={"far": images["far"]}, **given)
    seen = {name: predict(model, data, features=True) for name, data in images.items()}
    alone = evaluate_predictions(
        seen["test"],
        validation=seen["validation"],
        train=seen["train"],
        ood={"far": seen["far"]},
        head=head_of(model),
        scores=scores,
    )
    assert alone.rows == whole.rows
    assert alone.robustness is alone.corruptions is alone.sanity is None
    with pytest.raises(ValueError, match="'odin' needs the model and the images"):
        evaluate_predictions(seen["test"], scores=["odin"])


def test_suite_equals_its_parts_whatever_the_batches(sets: dict[str, Any], full: suite.SuiteResult) -> None:
    calibration = evaluate_calibration(Counting(), sets["test_set"], sets["validation"])
    assert full.calibration is not None
    assert full.calibration.rows == calibration.rows
    ood = evaluate_ood(Counting(), sets["test_set"], sets["ood_sets"], full.settings["scores"])
    assert full.ood is not None
    assert full.ood.rows == ood.rows
    other: dict[str, Any] = {
        "test_set": _set("digits:0-3/test", 70, 0, batch=70),
        "validation": _set("digits:0-3/validation", 50, 1, batch=3),
        "ood_sets": {
            name: _set(data.name, len(torch.cat([x for x, _ in data])), seed, level, batch=11)
            for (name, data), seed, level in zip(sets["ood_sets"].items(), (2, 3), (0.4, 0.7), strict=True)
        },
    }
    given = {**other, "scores": full.settings["scores"], "attacks": ("fgsm", "pgd"), "steps": 2, "sanity": False}
    again = evaluate(Counting(), **given)
    for mine, theirs in zip(full.rows, again.rows, strict=True):
        assert mine == theirs or mine["metric"] == "seconds"


def test_rows_are_long_and_every_figure_has_its_n(full: suite.SuiteResult) -> None:
    assert {row["section"] for row in full.rows} == {"accuracy", "calibration", "selective", "ood", "robustness"}
    assert all(row["n"] == 70 for row in full.rows)
    assert {row["n_ood"] for row in full.rows if row["section"] == "ood"} == {30, 20, 50}
    robust = [row for row in full.rows if row["metric"] == "robust_accuracy"]
    assert len(robust) == 1 + 2 * 4 + 4
    assert all(row["low"] <= row["value"] <= row["high"] for row in robust)


def test_curve_has_a_quarter_to_twice_eps_and_stays_possible(sets: dict[str, Any], full: suite.SuiteResult) -> None:
    assert full.robustness is not None
    eps = [row["eps"] * 255 for row in full.robustness.rows if row["attack"] == "pgd"]
    assert eps == pytest.approx([2, 4, 8, 16])
    wide = evaluate(Counting(), sets["test_set"], attacks=["fgsm"], eps=0.6, calibration=False, sanity=False)
    assert wide.robustness is not None
    assert [row["eps"] for row in wide.robustness.rows] == pytest.approx([0, 0.15, 0.3, 0.6])


def test_table_is_short_and_names_what_matters(full: suite.SuiteResult) -> None:
    lines = full.table().splitlines()
    assert len(lines) == 1 + 4 + 3 + 3 + 8 + 4
    assert re.match(r"accuracy +\d+\.\d\d % \[\d+\.\d\d, \d+\.\d\d\] +n=70$", lines[0])
    (noise,) = [line for line in lines if line.startswith("OOD AUROC noise")]
    assert re.search(r"energy 0\.\d{4} +msp 0\.\d{4}", noise)
    assert any(line.startswith("pgd linf 8/255") for line in lines)


def test_parts_not_asked_for_are_absent(sets: dict[str, Any], tmp_path: Path) -> None:
    result = evaluate(lambda images: images.flatten(1), sets["test_set"], calibration=False)
    assert result.calibration is result.ood is result.robustness is None
    assert len(result.table().splitlines()) == 1 + 3
    content = json.loads((result.save(tmp_path / "out") / "results.json").read_text())
    assert content["ood"] is None
    html = (tmp_path / "out" / "report.html").read_text()
    assert "Robustness</h2>" not in html
    assert "No published figures" in html


def test_mistakes_are_found_before_the_first_pass(sets: dict[str, Any]) -> None:
    model = Counting()
    wrong: tuple[dict[str, Any], ...] = (
        {"scores": ["energi"]},
        {"attacks": ["pgdd"]},
        {"attacks": ["pgd"], "eps": 8.0},
    )
    for kwargs in wrong:
        with pytest.raises(ValueError, match=r"energi|pgdd|at most 1"):
            evaluate(model, **{**sets, **kwargs})
    assert model.seen == 0


def test_saved_files_say_the_same(full: suite.SuiteResult, tmp_path: Path) -> None:
    folder = full.save(tmp_path / "deep" / "out")
    assert sorted(path.name for path in folder.iterdir()) == sorted(files.OURS)

    def no_constant(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    content = json.loads((folder / "results.json").read_text(), parse_constant=no_constant)
    assert content["schema_version"] == "2"
    assert content["context"]["nan"] is None
    assert content["sets"][0] == {
        "role": "test",
        "name": "digits:0-3/test",
        "n": 70,
        "notes": ["70 images"],
        "digest": "sha256 of digits:0-3/test",
    }
    assert [row["role"] for row in content["sets"]] == ["test", "validation", "ood", "ood"]
    assert content["versions"]["torch"] == importlib.metadata.version("torch")
    assert content["ood"]["rows"][0]["auroc"] == full.ood.rows[0]["auroc"]  # type: ignore[union-attr]
    with (folder / "results.csv").open() as stream:
        table = list(csv.DictReader(stream))
    assert len(table) == len(full.rows)
    assert float(table[0]["value"]) == full.accuracy.rows[0]["accuracy"]
    with np.load(folder / "scores.npz") as arrays:
        assert len(arrays["test.energy"]) == 70
        assert len(arrays["ood-noise.grad_norm"]) == 30
    figures = {path.stem for path in (folder / "figures").iterdir()}
    assert figures >= {"reliability-raw", "reliability-temperature", "scores-noise-msp", "roc-noise", "robustness"}
    assert len(figures) == 4 + 1 + 2 * 6 + 1


class _Page(HTMLParser):
    """Collects what a browser would load, ids, and tags."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.unscoped: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append(tag)
        self.ids += [found["id"] or ""] if "id" in found else []
        self.links += [found[name] or "" for name in ("src", "href", "xlink:href", "data") if name in found]
        if tag == "th" and "scope" not in found:
            self.unscoped.append(str(found))


def test_page_is_self_contained_escaped_and_has_unique_ids(full: suite.SuiteResult, tmp_path: Path) -> None:
    text = (full.save(tmp_path / "out") / "report.html").read_text()
    page = _Page()
    page.feed(text)
    assert not re.search(r"https?:|@import|url\((?!#)", text)
    assert all(link.startswith("#") and link[1:] in page.ids for link in page.links)
    assert len(page.ids) == len(set(page.ids))
    assert page.tags.count("script") == 1
    assert "a &lt;script&gt;bad()&lt;/script&gt; model" in text
    assert not page.unscoped
    assert page.tags.count("h1") == 1
    assert page.tags.count("svg") == 4 + 1 + 2 * 6 + 1
    for section in ("Accuracy", "Calibration", "OOD detection", "Robustness", "Data", "Recipe and versions"):
        assert f">{section}</h2>" in text


@pytest.fixture(scope="module")
def brief(sets: dict[str, Any]) -> suite.SuiteResult:
    return evaluate(Counting(), sets["test_set"])


def test_saved_twice_the_page_is_the_same(brief: suite.SuiteResult, tmp_path: Path) -> None:
    pages = [(brief.save(tmp_path / name) / "report.html").read_text() for name in ("a", "b")]
    assert pages[0] == pages[1]


def test_published_figures_stand_only_beside_their_data(sets: dict[str, Any], tmp_path: Path) -> None:
    result = evaluate(Counting(), **sets, context={"config": {"data": {"train": "cifar100"}}})
    html = (result.save(tmp_path / "out") / "report.html").read_text()
    assert "HDGE paper" in html
    assert ">80.9<" in html
    assert ">96.7<" not in html  # CIFAR-10's
    assert report.trained_on(result) == "cifar100"
    assert all(len(row) == len(table.columns) + 1 for table in REFERENCE_TABLES for row in table.rows)


def test_a_failure_in_the_middle_leaves_the_former_evaluation(
    brief: suite.SuiteResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = brief.save(tmp_path / "out")
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}

    def fail(*_: Any) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(report, "render", fail)
    with pytest.raises(ValueError, match=r"cannot write the evaluation to .*out: No space left on device"):
        brief.save(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_evaluation_is_replaced_and_nothing_else_is(brief: suite.SuiteResult, tmp_path: Path) -> None:
    folder = brief.save(tmp_path / "out")
    (folder / "results.json").write_text("old")
    brief.save(folder)
    assert (folder / "results.json").read_text() != "old"
    (folder / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match=r"holds 'thesis.tex'"):
        brief.save(folder)
    assert (folder / "thesis.tex").read_text() == "precious"
    with pytest.raises(ValueError, match="not a folder"):
        brief.save(folder / "thesis.tex")
    with pytest.raises(ValueError, match="Not a directory"):
        brief.save(folder / "thesis.tex" / "out")


def test_limit_is_told(sets: dict[str, Any]) -> None:
    result = evaluate(Counting(), **sets, limit=25, attacks=["fgsm"])
    assert [row["n"] for row in result.sets] == [25, 25, 25, 20]
    assert result.robustness is not None
    assert {row["n"] for row in (*result.accuracy.rows, *result.robustness.rows)} == {25}
    assert result.settings["limit"] == 25


def test_a_protocols_id_side_serves_ood_detection_alone(images: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model, ood_sets = Small(), {"far": images["far"]}
    given = {"scores": ["energy", "grad_norm"], "ood_sets": ood_sets, "attack_detector": True, "steps": 2}
    found = evaluate(model, images["test"], ood_test=images["noise"], **given)
    alone = evaluate_ood(model, images["noise"], ood_sets, ["energy", "grad_norm"])
    assert found.ood is not None
    assert found.ood.rows == alone.rows
    assert found.accuracy.rows[0]["n"] == len(found.test_scores["energy"]) == 24
    assert found.detector_robustness is not None
    assert {row["n_id"] for row in found.detector_robustness.rows} == {12}
    assert [(row["role"], row["n"]) for row in found.sets] == [("test", 24), ("ood id", 12), ("ood", 8)]


def test_without_the_sweep_one_radius_is_run(sets: dict[str, Any]) -> None:
    given = {"attacks": ["fgsm"], "eps": 0.1, "calibration": False, "sanity": False}
    found = evaluate(Counting(), sets["test_set"], sweep=False, **given)
    assert found.robustness is not None
    assert [row["eps"] for row in found.robustness.rows] == [0.0, 0.1]
