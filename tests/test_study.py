"""The study's objectives, settings, families, figures, runs, tuning and command, at tiny sizes on digits."""

from __future__ import annotations

import doctest
import json
import multiprocessing
import os
import pickle
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import benchmarks.study.__main__ as command
from benchmarks.study import columns, cost, families, measure, objectives, rows, tune
from benchmarks.study import run as runs
from benchmarks.study.objectives import OBJECTIVES, Objective
from benchmarks.study.rows import Row
from benchmarks.study.run import Bench, Job, missing, row_of
from benchmarks.study.settings import SETTINGS, Place, Setting
from benchmarks.study.tables import TABLES, TUNING_SEEDS, Table, tuning_jobs
from ebmhybrid.data import FAMILIES, ImageSet, load_set
from ebmhybrid.errors import CheckpointError, DataError, UsageError
from ebmhybrid.evaluate import evaluate
from ebmhybrid.evaluate.corruption_sets import corrupted
from ebmhybrid.recipe import load_recipe
from ebmhybrid.runs import open_run
from ebmhybrid.training import engine
from ebmhybrid.training.build import load_data

TUNED = ("digits", "fashion", "cifar10")
CHANGES = "training.epochs=2"
JOB = Job("digits", CHANGES, 0)
TOY = {"toy": Table("digits", "Toy", {"cross-entropy": CHANGES}, 1)}
OUTSIDE = 150  # images of an OOD set
SCORES = ("energy", "msp", "knn", "grad_norm")


def jobs_of(name: str) -> list[Job]:
    """The jobs of a table, or of tuning on data; of a table of times those that it would be."""
    if name.startswith("tuning_"):
        return list(tuning_jobs(name.removeprefix("tuning_")))
    table = TABLES[name]
    return [Job(table.setting, text, seed) for text in table.lines.values() for seed in range(table.seeds)]


EVERYTHING = [*TABLES, *(f"tuning_{data}" for data in TUNED)]


# Objectives and tables


def parts_of(text: str) -> dict[str, Any]:
    """KEY=JSON overrides, with nothing between them but a space."""
    found = {}
    for override in text.split(" ") if text else []:
        key, equals, value = override.partition("=")
        assert equals
        assert key not in found
        found[key] = json.loads(value)
    return found


@pytest.mark.parametrize("name", EVERYTHING)
def test_a_text_splits_into_its_overrides_and_is_made_of_them_again(name: str) -> None:
    for text in {job.changes for job in jobs_of(name)}:
        parts = parts_of(text)
        assert list(parts)[:1] == ["objective"] or "objective" not in parts
        objective = parts.pop("objective", {"ce": {}})
        assert objectives.changes(objective, **parts) == text


def test_doctests() -> None:
    failed, attempted = doctest.testmod(objectives)
    assert attempted > 1
    assert not failed


MAY_CHANGE = {*objectives.WITHOUT_NORM, "training.batch_size", "objective", "reference"}


@pytest.mark.parametrize("name", EVERYTHING)
def test_every_recipe_is_valid_and_differs_in_what_its_text_names_alone(name: str) -> None:
    for job in dict.fromkeys(Job(job.setting, job.changes, 3) for job in jobs_of(name)):
        parts = parts_of(job.changes)
        assert parts.keys() <= MAY_CHANGE
        setting = SETTINGS[job.setting]
        found = setting.recipe(job.changes, job.seed, Place())
        assert (found.seed, found.name) == (3, f"study_{job.setting}")
        assert found.data.train == setting.train
        plain = setting.recipe("", 3, Place())
        assert (found == plain) == (not parts)
        base, kept = plain.model_dump(), found.model_dump()
        for key in parts:
            section, _, field = key.partition(".")
            for one in (base, kept):
                del one[section]
                if field:
                    one[section] = None
        assert kept.keys() == base.keys()
        for section in kept:
            assert kept[section] == base[section], (job.changes, section)


@pytest.mark.parametrize("name", TABLES)
def test_a_table_compares_different_runs_and_has_its_control(name: str) -> None:
    table = TABLES[name]
    assert len(set(table.lines.values())) == len(table.lines)
    assert table.control is None or table.control in table.lines
    assert 0 <= table.whole <= table.seeds
    assert not SETTINGS[table.setting].tuning
    assert not set(TUNING_SEEDS) & set(range(table.seeds))


def test_a_table_goes_seed_by_seed_and_measures_its_first_seeds_whole() -> None:
    table = Table("digits", "Toy", {"cross-entropy": "", "A": "seed=1"}, 3, whole=2)
    whole = [True, True, True, True, False, False]
    assert [job.whole for job in table.jobs()] == whole
    assert [(job.seed, job.changes) for job in table.jobs()] == [(s, c) for s in range(3) for c in ("", "seed=1")]
    assert not list(Table("digits", "Toy", {"A": ""}, 3, timed=True).jobs())


@pytest.mark.parametrize("data", TUNED)
def test_tuning_runs_each_candidate_once_on_the_data_of_its_setting(data: str) -> None:
    jobs = list(tuning_jobs(data))
    assert len({job.changes for job in jobs}) == len(jobs)
    assert {job.setting for job in jobs} == {f"tuning_{data}"}
    assert SETTINGS[f"tuning_{data}"].train == SETTINGS[data].train
    labels = [label for label, one in OBJECTIVES.items() if len(one.candidates) > 1]
    for label in labels:
        texts = {OBJECTIVES[label].text(**values) for values in OBJECTIVES[label].tried(data)}
        wanted = data != "cifar10" or OBJECTIVES[label].references
        assert (texts <= {job.changes for job in jobs}) == wanted
    assert "" in {job.changes for job in jobs}


def test_an_objective_sees_references_where_it_says_so() -> None:
    for one in OBJECTIVES.values():
        for values in one.tried("fashion"):
            assert ("reference" in parts_of(one.text(**values))) == one.references


@pytest.fixture
def choices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file of choices of the test's own."""
    path = tmp_path / "chosen.json"
    monkeypatch.setattr(objectives, "CHOSEN", path)
    monkeypatch.setattr(tune, "CHOSEN", path)
    objectives._choices.cache_clear()
    yield path
    objectives._choices.cache_clear()


def test_values_are_those_of_the_data_else_the_common_ones_else_the_first(choices: Path) -> None:
    one = OBJECTIVES["outlier exposure"]
    assert one.values("digits") == one.candidates[0]
    given = {"elsewhere": 6.0, "fashion": 7.0, "cifar10": 8.0}
    choices.write_text(json.dumps({data: {"outlier exposure": {"weight": weight}} for data, weight in given.items()}))
    objectives._choices.cache_clear()
    assert one.values("digits") == one.values("cost_fashion") == {"weight": 6.0}
    assert one.values("fashion") == one.values("fashion_held_out") == {"weight": 7.0}
    assert one.values("cifar10_held_out") == {"weight": 8.0}
    assert [one.tuned(data) for data in ("digits", "fashion", "cifar10")] == [False, True, True]
    assert parts_of(one.chosen("cifar10"))["objective"]["outlier_exposure"] == {"weight": 8.0}
    assert OBJECTIVES["LogitNorm"].values("fashion") == OBJECTIVES["LogitNorm"].candidates[0]


def test_what_was_chosen_is_one_of_the_candidates() -> None:
    assert objectives._choices().keys() == {*TUNED, "elsewhere"}
    for data, chosen in objectives._choices().items():
        for label, values in chosen.items():
            one = OBJECTIVES[label]
            assert one.text(**values) in {one.text(**each) for each in one.tried(data)}


def test_what_is_tried_further_lies_beyond_the_end_that_was_chosen() -> None:
    further = {label: one.further for label, one in OBJECTIVES.items() if one.further}
    chosen = objectives._choices()["elsewhere"]
    assert {data for tried in further.values() for data in tried} == {"fashion"}
    for label, tried in further.items():
        end = min(one["weight"] for one in OBJECTIVES[label].candidates)
        assert chosen[label]["weight"] == end
        assert all({**chosen[label], "weight": one["weight"]} == one for one in tried["fashion"])
        assert all(one["weight"] < end for one in tried["fashion"])


# Settings and families


def test_reference_families_validation_families_and_ood_sets_are_apart() -> None:
    judges = set(tune.JUDGES)
    assert not judges & set(FAMILIES)
    for setting in SETTINGS.values():
        tested = {*setting.ood, *(data.partition(":")[0] for data in setting.ood.values())}
        assert not tested & (judges | set(FAMILIES))
        assert set(setting.near) <= set(setting.ood)
        assert set(setting.near) | set(setting.far) == set(setting.ood)
        assert not (setting.tuning and setting.ood)


def test_a_table_that_tests_on_means_of_two_images_says_who_was_trained_on_such() -> None:
    for table in TABLES.values():
        seen = {
            name
            for text in table.lines.values()
            for name in parts_of(text).get("reference", {"families": []})["families"]
        }
        if "mixtures" in seen and "interp" in SETTINGS[table.setting].ood:
            assert "mixtures" in table.note
            assert "interp" in table.note


def test_names_in_a_place() -> None:
    assert Place().name("cifar10:0-6", 0) == "cifar10:0-6"
    place = Place(npz="sets")
    names = {
        ("fashion_mnist", 0): "npz:sets/fashion_train.npz",
        ("fashion_mnist", 1): "npz:sets/fashion_test.npz",
        ("cifar10:0-6", 0): "npz:sets/cifar10_train.npz:0-6",
        ("interp:cifar10", 1): "interp:npz:sets/cifar10_test.npz",
        ("mnist", 1): "npz:sets/mnist_5k.npz",
        ("digits:7-9", 1): "digits:7-9",
        ("photos", 1): "photos",
    }
    assert {key: place.name(*key) for key in names} == names


def test_arrays_of_a_folder_stand_for_downloads(tmp_path: Path) -> None:
    """Image i of the training file is i + 1 everywhere, of the test file i + 101."""
    for file, first in (("fashion_train", 1), ("fashion_test", 101)):
        values = np.arange(first, first + 100, dtype=np.uint8)
        np.savez(tmp_path / f"{file}.npz", x=np.tile(values[:, None, None], (1, 28, 28)), y=np.arange(100) % 10)
    place = Place(str(tmp_path / "no downloads"), str(tmp_path))
    splits = load_data(SETTINGS["fashion_held_out"].recipe("", 0, place), place.data_dir, False)

    def values(part: ImageSet) -> list[int]:
        return part.images.amax((1, 2, 3)).tolist()

    known = [i for i in range(100) if i % 10 < 7]
    assert values(splits.test) == [i + 101 for i in known]
    assert sorted(values(splits.train) + values(splits.validation)) == [i + 1 for i in known]
    assert splits.train.num_classes == 7


def images(n: int = 64, shape: tuple[int, int, int] = (3, 16, 16)) -> torch.Tensor:
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(1))


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(2)


def test_gratings_are_one_wave_in_all_colours() -> None:
    given = images(200)
    made = families.gratings(given, generator())
    assert made.shape == given.shape
    assert 0 <= made.min() < 0.05
    assert 0.95 < made.max() <= 1
    flat = made.flatten(2)
    assert ((flat.amax(2) - flat.amin(2)) > 0.15).all()  # contrast
    for one in flat[((flat > 0) & (flat < 1)).all(2).all(1)]:  # what is not clipped
        assert np.abs(np.corrcoef(one.double().numpy()) - 1).max() < 1e-4
    spectrum = torch.fft.fft2(made - made.mean((2, 3), keepdim=True)).abs().square()
    largest = spectrum.flatten(2).topk(8).values.sum(2) / spectrum.sum((2, 3))
    assert largest.median() > 0.8  # uniform noise has 0.09 there
    peaks = spectrum[:, 0].flatten(1).argmax(1).unique()
    assert len(peaks) > 20  # directions and wavelengths


def test_superpositions_are_the_lighter_of_two_images() -> None:
    given = images(12)
    made = families.superpositions(given, generator())
    pairs = [[j for j in range(12) if torch.equal(made[i], torch.maximum(given[i], given[j]))] for i in range(12)]
    assert all(len(found) == 1 for found in pairs)
    assert sorted(found[0] for found in pairs) == list(range(12))
    assert (made >= given).all()


def turned(image: torch.Tensor, left: bool) -> torch.Tensor:
    """A quarter turn, pixel by pixel."""
    size = image.shape[1]
    made = torch.empty_like(image)
    for r in range(size):
        for c in range(size):
            made[:, r, c] = image[:, c, size - 1 - r] if left else image[:, size - 1 - c, r]
    return made


def test_rotations_are_quarter_turns_to_either_side() -> None:
    given = images(30, (1, 8, 8))
    sides = []
    for before, after in zip(given, families.rotations(given, generator()), strict=True):
        left, right = torch.equal(after, turned(before, True)), torch.equal(after, turned(before, False))
        assert left != right
        sides.append(left)
    assert 5 < sum(sides) < 25


def test_strangers_are_made_of_validation_images_and_are_the_same_every_time() -> None:
    pixels = (255 * images(20, (1, 8, 8))).byte()
    validation = ImageSet("own", pixels, torch.arange(20) % 2, ("a", "b"))
    made = families.strangers(validation)
    assert set(made) == set(tune.JUDGES)
    for name, found in made.items():
        assert found.shape == (1, 8, 8)
        assert found.images.dtype == torch.uint8
        assert len(found) == families.COUNT
        assert torch.equal(found.images, families.strangers(validation)[name].images)
        assert not torch.equal(found.images, families.strangers(validation, seed=1)[name].images)
    own = {bytes(turned(image, left).flatten().tolist()) for image in pixels for left in (True, False)}
    assert {bytes(image.flatten().tolist()) for image in made["rotations"].images} == own
    pairs = {bytes(torch.maximum(a, b).flatten().tolist()) for a in pixels for b in pixels}
    assert {bytes(image.flatten().tolist()) for image in made["superpositions"].images} <= pairs


# Figures


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Bench, Row]]:
    """Two epochs on digits, measured on few images of each OOD set but for attacks and corruptions; its run is kept."""
    folder = tmp_path_factory.mktemp("study")
    bench = Bench(folder / "rows", folder / "runs", Place(str(folder / "data")), "cpu")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(measure, "STRANGERS", OUTSIDE)
        yield bench, row_of(JOB, bench)


def promised(setting: Setting, whole: bool = False) -> set[str]:
    """The figures of a row."""
    own = {"val_accuracy", "val_nll", "seconds", "rollbacks"}
    sets = tune.JUDGES if setting.tuning else setting.ood
    prefix = "val_" if setting.tuning else ""
    own |= {f"{prefix}{kind}/{score}/{name}" for kind in ("auroc", "fpr95") for score in SCORES for name in sets}
    if not setting.tuning:
        own |= {"accuracy", "nll", "nll_after", "brier", "ece", "ece_after", "temperature", "aurc", "n_test"}
    if whole:
        own |= {f"{attack}/{eps}" for attack in ("pgd50", "apgd") for eps in setting.eps} | {"sanity", "corrupted"}
    return own


def evaluated(bench: Bench, **options: Any) -> Any:
    """The fixture's run by the library's own evaluation, on sets built here."""
    opened = open_run(bench.runs / JOB.folder, "cpu")
    splits = load_data(opened.recipe, "data", False)
    shape, names = splits.test.shape, SETTINGS["digits"].ood
    sets = {name: load_set(data, shape=shape).take(OUTSIDE) for name, data in names.items()}
    test = splits.test.take(options.pop("take", len(splits.test)))
    options = {"scores": SCORES, "train_set": splits.train, "ood_sets": sets, "sanity": False} | options
    return evaluate(opened.model, test, splits.validation, **options), opened.model, test


def test_a_row_has_every_figure_and_agrees_with_the_evaluation(trained) -> None:
    bench, row = trained
    assert set(row.figures) == promised(SETTINGS["digits"])
    for name in row.figures:
        columns.column(name)
    result, _, test = evaluated(bench)
    raw, scaled = result.calibration.rows[0], result.calibration.rows[1]
    assert (raw["variant"], scaled["variant"]) == ("raw", "temperature")
    confidence = {one["score"]: one for one in result.selective.rows}
    wanted = {
        "n_test": len(test),
        "accuracy": result.accuracy.rows[0]["accuracy"],
        "brier": result.accuracy.rows[0]["brier"],
        "nll": raw["nll"],
        "ece": raw["ece_15"],
        "nll_after": scaled["nll"],
        "ece_after": scaled["ece_15"],
        "temperature": scaled["temperature"],
        "aurc": confidence["msp"]["aurc"],
    }
    of_few, _, _ = evaluated(bench, take=OUTSIDE, scores=["grad_norm"], calibration=False)
    of_all = [one for one in result.ood.rows if one["score"] != "grad_norm"]
    for one in [*of_all, *of_few.ood.rows]:
        if one["ood_set"] in SETTINGS["digits"].ood:  # and no mean of several
            wanted[f"auroc/{one['score']}/{one['ood_set']}"] = one["auroc"]
            wanted[f"fpr95/{one['score']}/{one['ood_set']}"] = one["fpr95_id_positive"]
    assert set(wanted) == set(row.figures) - {"val_accuracy", "val_nll", "seconds", "rollbacks"}
    for name, value in wanted.items():
        assert row.figures[name] == pytest.approx(value, abs=1e-12, rel=0), name
    metrics = [json.loads(line) for line in (bench.runs / JOB.folder / "metrics.jsonl").read_text().splitlines()]
    validated = [one["accuracy"] for one in metrics if one.get("split") == "validation"]
    assert row.figures["val_accuracy"] == pytest.approx(max(validated))
    assert row.figures["seconds"] > 0
    assert row.facts["device"] == "CPU"
    assert set(row.facts) == set(rows.FACTS)


def test_a_whole_row_has_attacks_and_corruptions_too(trained, monkeypatch) -> None:
    bench, row = trained
    small = {"ATTACKED": 8, "STEPS": 2, "CORRUPTED": 7, "SEVERITIES": (1, 5), "CORRUPTIONS": ("fog", "contrast")}
    for name, value in small.items():
        monkeypatch.setattr(measure, name, value)
    measure._corruptions.cache_clear()
    asked: list[float] = []

    def panel(model: Any, images: Any, *, eps: float, **more: Any) -> SimpleNamespace:
        asked.append(eps)
        return SimpleNamespace(warnings=("one", "two"))

    monkeypatch.setattr(measure, "sanity_panel", panel)
    setting = SETTINGS["digits"]
    found = measure.figures(bench.runs / JOB.folder, setting, bench.place, "cpu", True)
    measure._corruptions.cache_clear()
    assert set(found) | {"seconds", "rollbacks"} == promised(setting, whole=True)
    assert found.items() >= {name: row.figures[name] for name in row.figures.keys() & found.keys()}.items()
    eps = [4 / 255, 8 / 255, 16 / 255, 32 / 255]
    attack = {"attacks": ["pgd", "apgd-ce"], "eps": eps, "steps": 2, "generator": torch.Generator().manual_seed(0)}
    result, model, _ = evaluated(bench, take=8, ood_sets={}, scores=("energy",), **attack)
    robust = {(one["attack"], one["eps"]): one["robust_accuracy"] for one in result.robustness.rows}
    for short, name in (("pgd50", "pgd"), ("apgd", "apgd-ce")):
        for over, radius in zip((4, 8, 16, 32), eps, strict=True):
            assert found[f"{short}/{over}/255"] == robust[name, radius]
    assert (found["sanity"], asked) == (2.0, [32 / 255])
    test, right = measure.splits_of("digits", bench.place).test.take(7), []
    for kind in ("fog", "contrast"):
        for severity in (1, 5):
            for batch, labels in corrupted(test, kind, severity):
                with torch.no_grad():
                    right += (model((255 * batch).round() / 255).argmax(1) == labels).tolist()
    assert len(right) == 28
    assert found["corrupted"] == pytest.approx(sum(right) / 28)


def test_a_setting_for_tuning_looks_at_validation_images_alone(trained, monkeypatch) -> None:
    bench, row = trained
    splits = measure.splits_of("tuning_digits", bench.place)

    def seen(model: Any, data: Any, *more: Any, **options: Any) -> Any:
        assert data is not splits.test
        return predict(model, data, *more, **options)

    predict = measure.predict
    monkeypatch.setattr(measure, "predict", seen)
    monkeypatch.setattr(families, "COUNT", 40)
    monkeypatch.setattr(measure, "_ood_sets", None)
    setting = SETTINGS["tuning_digits"]
    found = measure.figures(bench.runs / JOB.folder, setting, bench.place, "cpu", False)
    assert set(found) == promised(setting) - {"seconds", "rollbacks"}
    assert found["val_accuracy"] == row.figures["val_accuracy"]
    sets = families.strangers(splits.validation)
    result = evaluate(
        open_run(bench.runs / JOB.folder, "cpu").model, splits.validation, ood_sets=sets, scores=["energy"]
    )
    for one in result.ood.rows[: len(tune.JUDGES)]:
        assert found[f"val_auroc/energy/{one['ood_set']}"] == pytest.approx(one["auroc"], abs=1e-12)


# Runs


def test_missing_are_the_jobs_without_a_row_or_without_a_whole_one(tmp_path: Path) -> None:
    whole = {"accuracy": 0.5, "corrupted": 0.4}
    for changes, seed, found in (("a", 0, whole), ("a", 1, {"accuracy": 0.5}), ("b", 0, {})):
        rows.append(tmp_path, Row("digits", changes, seed, found, {}))

    def asked(*given: tuple[str, int, bool]) -> list[tuple[str, int, bool]]:
        return [(job.changes, job.seed, job.whole) for job in missing((Job("digits", *one) for one in given), tmp_path)]

    assert asked(("a", 0, True), ("a", 0, False), ("a", 1, False), ("b", 0, False)) == []
    assert asked(("a", 1, True), ("b", 0, True)) == [("a", 1, True), ("b", 0, True)]
    assert asked(("c", 0, False), ("a", 0, False), ("c", 1, True)) == [("c", 0, False), ("c", 1, True)]
    assert asked(("c", 0, False), ("d", 0, False), ("c", 0, True)) == [("c", 0, True), ("d", 0, False)]
    assert asked(("c", 0, True), ("c", 0, False)) == [("c", 0, True)]
    assert missing([Job("fashion", "a", 0)], tmp_path) == [Job("fashion", "a", 0)]
    assert missing([Job("digits", "a", 0)], tmp_path / "nowhere") == [Job("digits", "a", 0)]


def test_jobs_have_folders_of_their_own() -> None:
    jobs = {job for name in EVERYTHING for job in jobs_of(name)}
    folders = {job.folder for job in jobs}
    assert len(folders) == len(jobs) > 100
    assert all(re.fullmatch(r"[a-z0-9_-]+", folder) for folder in folders)
    bench = Bench(Path("rows"), Path("runs"), Place())
    assert pickle.loads(pickle.dumps((JOB, bench))) == (JOB, bench)  # as it reaches a worker


def same(first: Row, second: Row) -> bool:
    def timeless(row: Row) -> dict[str, float]:
        return {name: value for name, value in row.figures.items() if name != "seconds"}

    return (first.setting, first.changes, first.seed, timeless(first)) == (
        second.setting,
        second.changes,
        second.seed,
        timeless(second),
    )


@pytest.mark.parametrize("fatal", [0, 1])
def test_a_run_that_broke_off_goes_on_to_the_same_figures(fatal: int, trained, tmp_path, monkeypatch) -> None:
    """Killed as it writes its first state, or the one after its first epoch but for the log."""
    undisturbed = trained[1]
    bench = Bench(tmp_path / "rows", tmp_path / "runs", trained[0].place, "cpu")
    steps: list[int] = []
    check, save = engine.check, engine.save

    def counted(loss: Any, terms: Any, parts: Any, folder: Path) -> None:
        steps.append(parts.progress.step)
        if fatal and len(steps) == 15:
            raise KeyboardInterrupt
        check(loss, terms, parts, folder)

    def unsaved(parts: Any, folder: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(engine, "check", counted)
        if not fatal:
            patched.setattr(engine, "save", unsaved)
        with pytest.raises(KeyboardInterrupt):
            runs.run([JOB], bench)
    assert rows.read(bench.rows) == []
    assert (bench.runs / JOB.folder / "config.yaml").is_file()
    assert (bench.runs / JOB.folder / "checkpoints" / "last.state.pt").is_file() == bool(fatal)
    fatal, first, steps[:] = 0, len(steps), []
    monkeypatch.setattr(engine, "check", counted)
    assert engine.save is save
    assert runs.run([JOB], bench) == []
    (row,) = rows.read(bench.rows)
    assert same(row, undisturbed)
    assert len(steps) == (24 if first == 0 else 12), (first, steps)
    assert not (bench.runs / JOB.folder).exists()
    assert missing([JOB], bench.rows) == []


def test_a_finished_run_is_measured_and_one_of_another_recipe_is_not(trained, tmp_path, monkeypatch) -> None:
    bench = Bench(tmp_path / "rows", tmp_path / "runs", trained[0].place, "cpu")
    shutil.copytree(trained[0].runs / JOB.folder, bench.runs / JOB.folder)
    other = Job("digits", "training.epochs=3", 0)
    shutil.copytree(trained[0].runs / JOB.folder, bench.runs / other.folder)
    monkeypatch.setattr(engine, "check", None)  # no step is taken
    with pytest.raises(CheckpointError, match=f"{other.folder}: holds a run of another recipe; remove it"):
        row_of(other, bench)
    assert runs.run([JOB], bench) == []
    assert same(rows.read(bench.rows)[0], trained[1])
    with pytest.raises(UsageError, match=r"setting 'digit' is unknown; did you mean 'digits'\?"):
        row_of(Job("digit", "", 0), bench)


def told_row(job: Job, bench: Bench) -> Row:
    """In the place of a training."""
    (bench.runs / job.folder).mkdir(parents=True)
    if job.changes == "broken":
        raise RuntimeError("a fault\nof two lines")
    if job.changes == "impossible":
        raise DataError("no such data")
    return Row(job.setting, job.changes, job.seed, {"accuracy": 0.5}, {})


FORK = multiprocessing.get_context("fork")  # whose processes see what a test has replaced


def in_threads(workers: int, mp_context: object, initializer: object) -> ThreadPoolExecutor:
    """In the place of processes, which would not see what a test has replaced."""
    return ThreadPoolExecutor(workers)


@pytest.mark.parametrize("workers", [1, 3])
def test_what_fails_is_told_and_stops_nothing_else(workers: int, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(runs, "row_of", told_row)
    monkeypatch.setattr(runs, "ProcessPoolExecutor", in_threads)
    bench = Bench(tmp_path / "rows", tmp_path / "runs", Place(), "cpu")
    jobs = [Job("digits", changes, 0) for changes in ("broken", "a", "impossible", "b")]
    failed = sorted(runs.run(jobs, bench, workers))
    assert len(failed) == 2
    assert failed[0].startswith("digits [broken] seed 0: Traceback")
    assert failed[0].endswith("of two lines\n")
    assert failed[1] == "digits [impossible] seed 0: no such data"
    assert [row.changes for row in rows.read(bench.rows)] == ["a", "b"]
    assert missing(jobs, bench.rows) == [jobs[0], jobs[2]]
    assert {path.name for path in bench.runs.iterdir()} == {jobs[0].folder, jobs[2].folder}
    told = capsys.readouterr()
    assert len(told.out.splitlines()) == 4
    assert "RuntimeError: a fault" in told.err
    assert re.search(r"^\[\d/4, 0\.0 min\] digits \[impossible\] seed 0: no such data$", told.out, re.MULTILINE)
    assert re.search(r"^\[\d/4, 0\.0 min\] digits \[broken\] seed 0: of two lines$", told.out, re.MULTILINE)


@pytest.mark.parametrize("workers", [1, 2])
def test_no_run_is_begun_after_the_deadline_and_none_of_these_failed(
    workers: int, tmp_path, monkeypatch, capsys
) -> None:
    def slow(job: Job, bench: Bench) -> Row:
        time.sleep(0.3)
        return told_row(job, bench)

    monkeypatch.setattr(runs, "row_of", slow)
    monkeypatch.setattr(runs, "ProcessPoolExecutor", in_threads)
    bench = Bench(tmp_path / "rows", tmp_path / "runs", Place(), "cpu", deadline=time.time() + 0.2)
    assert runs.run([Job("digits", changes, 0) for changes in "abcde"], bench, workers) == []
    assert len(rows.read(bench.rows)) == workers
    assert capsys.readouterr().out.splitlines()[-1] == f"not begun, the time is over: {5 - workers} runs"


def test_a_worker_ended_from_outside_is_told_and_what_it_left_is_begun_again(tmp_path, monkeypatch, capsys) -> None:
    def killed(job: Job, bench: Bench) -> Row:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    table = Table("digits", "Toy", {changes: changes for changes in ("seed=0", "seed=1", "seed=2")}, 1)
    monkeypatch.setattr(command, "TABLES", {"toy": table})
    monkeypatch.setattr(runs, "row_of", killed)
    monkeypatch.setattr(runs.multiprocessing, "get_context", lambda kind: FORK)
    arguments = ["run", "toy", "--rows", str(tmp_path / "rows"), "--runs", str(tmp_path / "runs"), "--workers", "2"]
    assert command.main(arguments) == 1
    assert "a worker process was ended from outside" in capsys.readouterr().err
    assert rows.read(tmp_path / "rows") == []
    monkeypatch.setattr(runs, "row_of", told_row)
    assert command.main(arguments) == 0
    assert len(rows.read(tmp_path / "rows")) == 3


def lives(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def until(fact: Callable[[], bool], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not fact():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_workers_of_a_killed_command_keep_their_state_and_end(tmp_path) -> None:
    folders = ["--rows", str(tmp_path / "rows"), "--runs", str(tmp_path / "runs")]
    line = [sys.executable, "-m", "benchmarks.study", "run", "digits", "--workers", "2", "--device", "cpu", *folders]
    parent = subprocess.Popen(line, cwd=Path(__file__).parent.parent, stdout=subprocess.DEVNULL)
    until(lambda: len(list(tmp_path.glob("runs/*/metrics.jsonl"))) == 2)
    until(lambda: all(path.stat().st_size for path in tmp_path.glob("runs/*/metrics.jsonl")))
    found = Path("/proc").glob("[0-9]*/stat")
    workers = [int(stat.parent.name) for stat in found if parent_of(stat) == parent.pid]
    assert len(workers) >= 2
    parent.terminate()
    assert parent.wait() == -signal.SIGTERM
    until(lambda: not any(map(lives, workers)))
    kept = {path.parent.parent.name for path in tmp_path.glob("runs/*/checkpoints/last.state.pt")}
    assert kept == {path.name for path in (tmp_path / "runs").iterdir()}
    assert rows.read(tmp_path / "rows") == []


def parent_of(stat: Path) -> int:
    try:
        return int(stat.read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0


@pytest.mark.parametrize("workers", [1, 2])
def test_after_a_signal_no_run_is_begun(workers: int, tmp_path, monkeypatch, capsys) -> None:
    begun = []

    def stopped(job: Job, bench: Bench) -> Row:
        begun.append(job)
        time.sleep(0.1)  # until the other has begun too
        raise KeyboardInterrupt

    table = Table("digits", "Toy", {text: text for text in ("seed=0", "seed=1", "seed=2", "seed=3")}, 1)
    monkeypatch.setattr(command, "TABLES", {"toy": table})
    monkeypatch.setattr(runs, "row_of", stopped)
    monkeypatch.setattr(runs, "ProcessPoolExecutor", in_threads)
    arguments = ["run", "toy", "--rows", str(tmp_path / "rows"), "--runs", str(tmp_path), "--workers", str(workers)]
    assert command.main(arguments) == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert len(begun) == workers


def test_times_of_steps_have_a_row_a_round(trained, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(cost, "WARM_UP", 1)
    monkeypatch.setattr(cost, "STEPS", 1)
    bench = Bench(tmp_path, tmp_path / "runs", trained[0].place, "cpu")
    lines = {"cross-entropy": "", "marginal NCE": OBJECTIVES["marginal NCE"].chosen("digits")}
    monkeypatch.setattr(command, "TABLES", {"toy": Table("digits", "Toy", lines, 2, timed=True)})
    assert command.main(["run", "toy", "--rows", str(tmp_path), "--data-dir", bench.place.data_dir]) == 0
    found = rows.read(tmp_path)
    assert {(row.changes, row.seed) for row in found} == {(text, seed) for text in lines.values() for seed in (0, 1)}
    assert all(row.figures.keys() == {"step_ms"} and row.figures["step_ms"] > 0 for row in found)
    assert command.main(["run", "toy", "--rows", str(tmp_path)]) == 0
    assert rows.read(tmp_path) == found  # not measured again
    assert command.main(["check", "toy", "--rows", str(tmp_path)]) == 1  # no run to make again


# Tuning


def judged(changes: str, accuracy: float, areas: list[float], seed: int = 100) -> Row:
    found = {f"val_auroc/energy/{name}": area for name, area in zip(tune.JUDGES, areas, strict=True)}
    return Row("tuning_digits", changes, seed, {"val_accuracy": accuracy} | found, {})


def literal_choice(objective: Objective, given: list[Row]) -> dict[str, Any]:
    """Of the candidates at most 0.005 below the best accuracy, that of the highest mean AUROC; the first of equals."""
    table = []
    for values in objective.candidates:
        own = [row for row in given if row.changes == objective.text(**values)]
        accuracy = sum(row.figures["val_accuracy"] for row in own) / len(own)
        area = 0.0
        for row in own:
            for name in ("gratings", "shapes", "superpositions", "rotations"):
                area += row.figures[f"val_auroc/energy/{name}"] / (4 * len(own))
        table.append((accuracy, area, values))
    best = max(accuracy for accuracy, _, _ in table)
    chosen: tuple[float, dict[str, Any]] = (-1.0, {})
    for accuracy, area, values in table:
        if accuracy >= best - 0.005 and area > chosen[0]:
            chosen = area, values
    return chosen[1]


@pytest.mark.parametrize("seed", range(20))
def test_the_choice_is_the_best_detector_among_the_accurate(seed: int) -> None:
    draw = random.Random(seed)
    objective = OBJECTIVES["energy margins"]
    given = []
    for values in objective.candidates:
        for run in (100, 101):
            accuracy, areas = draw.uniform(0.93, 0.945), [draw.random() for _ in tune.JUDGES]
            given.append(judged(objective.text(**values), accuracy, areas, run))
    found: dict[str, list[Row]] = {}
    for row in given:
        found.setdefault(row.changes, []).append(row)
    assert tune.choose(objective, objective.candidates, found) == literal_choice(objective, given)


def test_detection_may_cost_half_a_point_of_accuracy_and_no_more() -> None:
    objective = OBJECTIVES["outlier exposure"]
    texts = [objective.text(**values) for values in objective.candidates]

    def choice(lost: float) -> dict[str, Any]:
        given = {text: [judged(text, 0.9, [0.2] * 4)] for text in texts}
        given[texts[0]] = [judged(texts[0], 0.95, [0.5] * 4)]
        given[texts[1]] = [judged(texts[1], 0.95 - lost, [0.9, 0.9, 0.9, 0.1])]
        return tune.choose(objective, objective.candidates, given)

    assert choice(0.0049) == objective.candidates[1]
    assert choice(0.0051) == objective.candidates[0]


def test_choices_are_of_objectives_with_all_their_rows_and_are_kept(tmp_path, choices, capsys) -> None:
    folder = tmp_path / "rows"
    whole, part = OBJECTIVES["LogitNorm"], OBJECTIVES["SupCon"]
    assert command.main(["choose", "digits", "--rows", str(folder)]) == 1
    assert "no objective has all its candidates' rows" in capsys.readouterr().err
    assert not choices.exists()
    choices.write_text('{"fashion": {"LogitNorm": {"temperature": 9.0}}}')
    for number, values in enumerate(whole.candidates):
        rows.append(folder, judged(whole.text(**values), 0.9, [0.1 * number] * 4))
    for values in part.candidates[1:]:
        rows.append(folder, judged(part.text(**values), 0.9, [0.5] * 4))
    rows.append(folder, judged(part.text(**part.candidates[0]), 0.9, [0.5] * 4, seed=0))  # of no tuning seed
    assert command.main(["choose", "digits", "--rows", str(folder)]) == 0
    kept = json.loads(choices.read_text())
    assert kept == {"digits": {"LogitNorm": {"temperature": 1.0}}, "fashion": {"LogitNorm": {"temperature": 9.0}}}


def test_what_is_tried_further_is_chosen_on_its_data_alone(tmp_path, choices) -> None:
    objective, common = OBJECTIVES["outlier exposure"], OBJECTIVES["outlier exposure"].candidates
    every = common + objective.further["fashion"]
    for data in ("digits", "fashion"):
        for number, values in enumerate(every):
            row = judged(objective.text(**values), 0.9, [0.1 * number] * 4)
            rows.append(tmp_path, replace(row, setting=f"tuning_{data}"))
        assert command.main(["choose", data, "--rows", str(tmp_path)]) == 0
    kept = {data: found["outlier exposure"] for data, found in json.loads(choices.read_text()).items()}
    assert kept == {"digits": common[-1], "elsewhere": common[-1], "fashion": every[-1]}


# The command


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Options for a study of one small table."""
    monkeypatch.setattr(command, "TABLES", TOY)
    return ["toy", "--device", "cpu", "--rows", str(tmp_path / "rows"), "--runs", str(tmp_path / "runs")]


def test_the_check_trains_again_from_the_start(trained, toy, tmp_path, monkeypatch, capsys) -> None:
    bench, row = trained
    rows.append(tmp_path / "rows", row)
    stale = tmp_path / "runs" / JOB.folder
    stale.mkdir(parents=True)
    (stale / "config.yaml").write_text("not looked at")
    assert command.main(["check", *toy, "--data-dir", bench.place.data_dir, "--seed", "1"]) == 0
    assert "1 of 1 runs agree" in capsys.readouterr().out
    assert [path.name for path in stale.iterdir()] == ["config.yaml"]
    worse = Row(row.setting, row.changes, row.seed, row.figures | {"accuracy": 0.1}, row.facts)
    monkeypatch.setattr(command, "row_of", lambda job, bench: worse)
    assert command.main(["check", *toy]) == 1
    told = capsys.readouterr().out
    assert len(re.findall("^accuracy .* OUTSIDE$", told, re.MULTILINE)) == told.count("OUTSIDE") == 1


def test_runs_that_have_rows_are_left_and_failures_end_with_status_one(
    trained, toy, tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(runs, "row_of", told_row)
    assert command.main(["run", *toy, "--skip", "epochs"]) == 0
    assert capsys.readouterr().out == "0 runs, 0 of them without a row\n"
    assert command.main(["run", *toy]) == 0
    assert "1 runs, 1 of them without a row" in capsys.readouterr().out
    assert command.main(["run", *toy, "--minutes", "1"]) == 0
    assert capsys.readouterr().out == "1 runs, 0 of them without a row\n"
    monkeypatch.undo()
    lines = {"cross-entropy": "training.epochs=none"}
    monkeypatch.setattr(command, "TABLES", {"toy": Table("digits", "Toy", lines, 1)})
    assert command.main(["run", *toy]) == 1
    told = capsys.readouterr()
    assert "training.epochs" in told.err
    assert "Traceback" not in told.err


def test_a_stop_ends_in_a_line(toy, monkeypatch, capsys) -> None:
    def stopped(job: Job, bench: Bench) -> Row:
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "row_of", stopped)
    assert command.main(["run", *toy]) == 130
    assert capsys.readouterr().err == "benchmarks.study: stopped; the same command goes on\n"


def test_arrays_that_are_not_in_the_folder_are_told(toy, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(command, "TABLES", {"toy": Table("fashion", "Toy", {"cross-entropy": ""}, 1)})
    assert command.main(["run", *toy, "--npz", str(tmp_path)]) == 1
    assert f"npz:{tmp_path}/fashion_train.npz" in capsys.readouterr().err


WRONG = {
    "run digts": "nothing to run is called 'digts'; did you mean 'digits'?",
    "tune weight": "nothing to tune is called 'weight'; valid: cifar10, digits, fashion",
    "walk": "invalid choice: 'walk'",
    "run --workers 0": "'0' is no whole number of at least 1",
    "run --workers many": "'many' is no whole number",
    "run --threads -1": "--threads",
    "run --minutes=-1": "'-1' is no number above 0",
    "run --minutes nan": "'nan' is no number above 0",
    "run --minutes soon": "'soon' is no number above 0",
    "run --npz nowhere": "there is no folder nowhere",
    "run --rows FILE": "is no folder",
    "check --runs FILE": "is no folder",
    "write --docs FILE": "is no folder",
}


@pytest.mark.parametrize("line", WRONG)
def test_mistakes_in_the_command_end_with_status_two_and_say_what_is_right(line, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(command, "do", None)  # nothing is begun
    monkeypatch.setattr(cost, "measure", None)
    (tmp_path / "file").touch()
    try:
        status = command.main(line.replace("FILE", str(tmp_path / "file")).split())
    except SystemExit as end:
        status = end.code
    assert status == 2
    assert WRONG[line] in capsys.readouterr().err


def test_rows_that_cannot_be_read_end_with_status_one(tmp_path, capsys) -> None:
    (tmp_path / "digits.csv").write_text("what\n")
    for what in ("run", "check", "choose", "write"):
        assert command.main([what, "--rows", str(tmp_path), "--docs", str(tmp_path / "docs")]) == 1
        assert re.search(r"^benchmarks.study: .*digits.csv: the first columns are", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("name", "setting"), [("digits_nce", "digits"), ("fashion_mnist_nce", "fashion"), ("cifar10_nce", "cifar10")]
)
def test_the_packaged_recipes_are_lines_of_the_tables(name: str, setting: str) -> None:
    packaged = load_recipe(name)
    studied = SETTINGS[setting].recipe(OBJECTIVES["marginal NCE"].chosen(setting), 0, Place())
    assert packaged.model_copy(update={"name": studied.name, "evaluation": studied.evaluation}) == studied
    assert len(packaged.evaluation.ood) == len(SETTINGS[setting].ood)
