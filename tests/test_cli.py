"""The command line as a user types it: what works, and each wrong input in one line with the right exit status."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import urllib.error
from pathlib import Path

import data_files
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from torchvision import models

import ebmhybrid as eh
from ebmhybrid.cli import main
from ebmhybrid.evaluate import suite
from ebmhybrid.training.checkpoint import save_weights

QUICK = ["--recipe", "smoke", "training.max_steps=2", "training.batch_size=64", "--quiet"]


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "runs" / "smoke" / "a"
    result = call("train", *QUICK, "--out", folder)
    assert result.exit_code == 0, result.output
    torch.manual_seed(0)
    torch.save(models.shufflenet_v2_x0_5(num_classes=3).state_dict(), folder.parent / "w.pth")
    np.savez(folder.parent / "logits.npz", **logits())
    return folder


def logits(n: int = 60, classes: int = 3) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, classes, n)
    return {
        "test_logits": rng.normal(size=(n, classes)) + 2 * np.eye(classes)[labels],
        "test_labels": labels,
        "ood_far_logits": rng.normal(size=(n // 2, classes)),
    }


def tree(folder: Path) -> set[str]:
    """The files and folders inside but for the cache, which is no result."""
    found = {p.relative_to(folder) for p in folder.rglob("*")}
    return {str(p) for p in found if "cache" not in p.parts}


def test_train_says_where_the_run_is(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = call("train", *QUICK)
    assert result.exit_code == 0
    match = re.search(r"best validation accuracy [\d.]+ % at step 2, run: (runs/smoke/\d{8}-\d{6})\n", result.output)
    assert match
    assert (tmp_path / match[1] / "checkpoints" / "best.safetensors").is_file()


def test_train_prints_the_resolved_recipe_and_writes_nothing(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = call("train", "--recipe", "cifar10_wrn28", "optimizer.lr=0.05", "--set", "seed=7", "--print-config")
    assert result.exit_code == 0
    (tmp_path / "r.yaml").write_text(result.output)
    recipe = eh.load_recipe(tmp_path / "r.yaml")
    assert (recipe.optimizer.lr, recipe.seed, recipe.model.depth) == (0.05, 7, 28)
    assert tree(tmp_path) == {"r.yaml"}


def test_the_default_recipe_is_digits_hdge() -> None:
    assert call("train", "--print-config").output.startswith("name: digits_hdge\n")


def test_eval_of_the_newest_run_against_svhn(run, tmp_path, monkeypatch) -> None:
    """`ebmhybrid eval --ood svhn` as it stands: the newest run, the data folder, a report."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run, tmp_path / "runs" / "smoke" / "old")
    newest = tmp_path / "runs" / "smoke" / "new"
    shutil.copytree(run, newest)
    for path in (tmp_path / "runs" / "smoke" / "old").rglob("*"):
        os.utime(path, (1, 1))
    data_files.make_svhn(tmp_path / "data")
    result = call("eval", "--ood", "svhn")
    assert result.exit_code == 0, result.output
    assert "OOD AUROC svhn" in result.output
    report = Path(re.search(r"report: (\S+)", result.output)[1])
    assert newest.name in report.parts
    content = json.loads((report.parent / "results.json").read_text())
    assert {"results.json", "results.csv", "report.html", "figures", "scores.npz"} <= tree(report.parent)
    adapted = next(s for s in content["sets"] if s["name"] == "svhn")
    assert any("resized 32x32 -> 8x8" in note for note in adapted["notes"])
    assert any("gray" in note for note in adapted["notes"])


def test_eval_with_everything_and_as_json(run, tmp_path) -> None:
    out = tmp_path / "report"
    result = call(
        *("eval", run, "--ood", "digits:7-9", "--ood", "noise", "--score", "energy", "--score", "grad_norm"),
        *("--attack", "fgsm", "--attack", "pgd", "--eps", "8/255", "--norm", "l2", "--limit", "8"),
        *("--steps", "5", "--attack-detector", "--corruptions", "--severity", "2"),
        *("--out", out, "--json"),
    )
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    assert printed == json.loads((out / "results.json").read_text())
    assert printed["context"]["config"]["name"] == "smoke"
    assert len(printed["context"]["weights"]["sha256"]) == 64
    assert {row["n"] for row in printed["sets"]} == {8}
    assert {row["norm"] for row in printed["robustness"]["rows"]} == {"l2"}
    for part in ("sanity", "detector_robustness", "corruptions"):
        assert printed[part]["rows"], part
    text = (out / "report.html").read_text()
    assert "digits:7-9" in text
    assert "<svg" in text


def test_eval_of_a_weight_file_without_calibration(run, tmp_path) -> None:
    weights = shutil.copy(run / "checkpoints" / "best.safetensors", tmp_path / "w.safetensors")
    result = call("eval", weights, "--ood", "noise", "--no-calibration", "--limit", "30")
    assert result.exit_code == 0, result.output
    assert "ECE" not in result.output
    assert list((tmp_path / "eval").glob("*/report.html"))


def test_recipes_list_show_copy(tmp_path) -> None:
    listed = call("recipes")
    assert listed.output == call("recipes", "list").output
    assert "digits_hdge" in listed.output
    shown = call("recipes", "show", "smoke").output
    assert "Hardware:" in shown
    assert call("recipes", "copy", "smoke", tmp_path / "mine.yaml").exit_code == 0
    assert (tmp_path / "mine.yaml").read_text() == shown
    assert call("train", "--recipe", tmp_path / "mine.yaml", "--print-config").output.startswith("name: mine")


def test_doctor_and_help() -> None:
    doctor = call("doctor")
    assert doctor.exit_code == 0
    assert torch.__version__.split("+")[0] in doctor.output
    for command in ("train", "eval", "compare"):
        shown = call(command, "--help")
        assert f"\nExamples:\n  ebmhybrid {command}" in shown.output
    bare = call()
    assert bare.exit_code == 0
    assert "Commands:" in bare.output


def npz(path: Path, x: np.ndarray, y: np.ndarray) -> str:
    np.savez(path, x=x, y=y)
    return f"npz:{path}"


def images(n: int = 40, channels: tuple[int, ...] = (), classes: int = 7) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (n, 8, 8, *channels), dtype=np.uint8), np.arange(n) % classes


def pictures(tmp: Path, *names: str) -> str:
    """A folder of pictures, one sub-folder a class."""
    rng = np.random.default_rng(len(names))
    for name in names:
        (tmp / "classes" / name).mkdir(parents=True)
        for number in range(3):
            picture = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8))
            picture.save(tmp / "classes" / name / f"{number}.png")
    return f"folder:{tmp / 'classes'}"


def write(path: Path, content: bytes = b"") -> Path:
    path.write_bytes(content)
    return path


def truncated(run: Path, tmp: Path) -> Path:
    copy = shutil.copytree(run, tmp / "cut")
    weights = copy / "checkpoints" / "best.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    return copy


def no_record(run: Path, tmp: Path) -> Path:
    copy = shutil.copytree(run, tmp / "record")
    (copy / "env.json").write_text('{"data": {"test": 3}}')
    return copy


def not_a_number(run: Path, tmp: Path) -> Path:
    copy = shutil.copytree(run, tmp / "nan")
    model = eh.load_model(copy)
    torch.nn.init.constant_(model.head.weight, float("nan"))
    save_weights(copy / "checkpoints" / "best.safetensors", model, model.metadata)
    return copy


def folder_of(tmp: Path, *names: str) -> str:
    for name in names:
        (tmp / "pics" / name).mkdir(parents=True)
        write(tmp / "pics" / name / "a.png", b"no picture")
    (tmp / "pics").mkdir(exist_ok=True)
    return f"folder:{tmp / 'pics'}"


def external(run: Path, *more: str | Path) -> list[str | Path]:
    return ["eval", "--model", "torchvision/shufflenet_v2_x0_5", "--weights", run.parent / "w.pth", *more]


def numbers(run: Path, *more: str | Path) -> list[str | Path]:
    return ["eval", "--logits", f"npz:{run.parent / 'logits.npz'}", *more]


def not_logits(tmp: Path, **arrays: np.ndarray) -> list[str]:
    np.savez(tmp / "x.npz", **arrays)
    return ["eval", "--logits", f"npz:{tmp / 'x.npz'}"]


def no_results(tmp: Path) -> Path:
    (tmp / "nothing").mkdir()
    return tmp / "nothing"


TRAIN = ("train", *QUICK)
# Each: exit status, what the one line must name, and the arguments, given (a good run, an empty folder).
WRONG = {
    "unknown command": (2, "No such command 'trian'. Did you mean 'train'", lambda r, t: ["trian"]),
    "unknown option": (2, "--recip", lambda r, t: ["train", "--recip", "smoke"]),
    "unknown recipe": (2, "no recipe 'smok'.*did you mean 'smoke'", lambda r, t: ["train", "--recipe", "smok"]),
    "missing recipe file": (2, "x.yaml: cannot be read", lambda r, t: ["train", "--recipe", "x.yaml"]),
    "recipe is no YAML": (2, "not valid YAML at line 1", lambda r, t: ["train", "--recipe", write(t / "r.yaml", b"[")]),
    "unknown recipe key": (2, "optimizer.lrr.*did you mean 'optimizer.lr'", lambda r, t: [*TRAIN, "optimizer.lrr=1"]),
    "wrong type": (2, "training.epochs = 'many'.*integer", lambda r, t: [*TRAIN, "training.epochs=many"]),
    "negative lr": (2, "optimizer.lr = -0.1.*greater than 0", lambda r, t: [*TRAIN, "optimizer.lr=-0.1"]),
    "not KEY=VALUE": (2, "'optimizer.lr': must be KEY=VALUE", lambda r, t: [*TRAIN, "optimizer.lr"]),
    "unknown model": (
        2,
        "'wide_resnt'.*keys of wide_resnet|wide_resnt",
        lambda r, t: [*TRAIN, "model={name: wide_resnt}"],
    ),
    "unknown data set": (1, "'digitz', did you mean 'digits'", lambda r, t: [*TRAIN, "data.train=digitz"]),
    "data absent, no download": (
        1,
        "cifar-10-python.tar.gz",
        lambda r, t: [*TRAIN, "data.train=cifar10", "--no-download", "--data-dir", t / "none"],
    ),
    "NaN images": (
        1,
        "x must be uint8.*float.*NaN",
        lambda r, t: [*TRAIN, "data.train=" + npz(t / "n.npz", np.full((40, 8, 8), np.nan), images()[1])],
    ),
    "one class": (
        1,
        "at least 2 classes",
        lambda r, t: [*TRAIN, "data.train=" + npz(t / "o.npz", images()[0], np.zeros(40, int))],
    ),
    "wrong channels": (
        1,
        "channels|C = 1 or 3|\\(N, H, W",
        lambda r, t: [*TRAIN, "data.train=" + npz(t / "c.npz", *images(channels=(2,)))],
    ),
    "negative label": (
        1,
        "labels|y must",
        lambda r, t: [*TRAIN, "data.train=" + npz(t / "l.npz", images()[0], images()[1] - 1)],
    ),
    "label out of range": (
        1,
        "has 9 classes, the train set digits:0-6 7",
        lambda r, t: [*TRAIN, "data.train=digits:0-6", "data.test=" + npz(t / "m.npz", *images(classes=9))],
    ),
    "class filter out of range": (
        1,
        "classes must be rising and lie in 0..9, got '0-12'",
        lambda r, t: [*TRAIN, "data.train=digits:0-12"],
    ),
    "empty folder": (1, "pics.*sub-folder", lambda r, t: [*TRAIN, "data.train=" + folder_of(t)]),
    "corrupt picture": (1, "a.png", lambda r, t: [*TRAIN, "data.train=" + folder_of(t, "cat", "dog")]),
    "truncated npz": (
        1,
        "z.npz",
        lambda r, t: [*TRAIN, f"data.train=npz:{write(t / 'z.npz', b'PK' + bytes(50))}"],
    ),
    "missing npz": (1, "none.npz", lambda r, t: [*TRAIN, f"data.train=npz:{t / 'none.npz'}"]),
    "out is a used directory": (1, "not an empty directory", lambda r, t: [*TRAIN, "--out", r]),
    "out cannot be made": (1, "cannot be made", lambda r, t: [*TRAIN, "--out", write(t / "file") / "run"]),
    "unknown device": (1, "device 'gpu9'", lambda r, t: [*TRAIN, "--device", "gpu9"]),
    "resume of nothing": (1, "none: no run to resume", lambda r, t: ["train", "--resume", t / "none"]),
    "resume with a recipe": (2, "leave out --recipe", lambda r, t: ["train", "--resume", r, "--recipe", "smoke"]),
    "missing run": (1, "none: no such run", lambda r, t: ["eval", t / "none"]),
    "no run at all": (1, "runs: no run there; make one with `ebmhybrid train`", lambda r, t: ["eval"]),
    "truncated checkpoint": (1, "best.safetensors: cannot be read", lambda r, t: ["eval", truncated(r, t)]),
    "unknown OOD set": (1, "'svnh', did you mean 'svhn'", lambda r, t: ["eval", r, "--ood", "svnh"]),
    "unknown score": (2, "'enrgy'.*did you mean 'energy'", lambda r, t: ["eval", r, "--score", "enrgy"]),
    "unknown attack": (2, "'pdg'.*did you mean 'pgd'", lambda r, t: ["eval", r, "--attack", "pdg"]),
    "eps is no number": (2, "'8//255' is not a positive number", lambda r, t: ["eval", r, "--eps", "8//255"]),
    "eps is negative": (2, "'-1' is not a positive number", lambda r, t: ["eval", r, "--eps", "-1"]),
    "unknown norm": (2, "'l1' is not one of", lambda r, t: ["eval", r, "--norm", "l1"]),
    "limit is zero": (2, "0 is not in the range", lambda r, t: ["eval", r, "--limit", "0"]),
    "eps without an attack": (2, "add --attack", lambda r, t: ["eval", r, "--eps", "4/255"]),
    "attack typo before a download": (2, "'pdg'", lambda r, t: ["eval", r, "--ood", "svhn", "--attack", "pdg"]),
    "eps wider than the box": (2, "eps must be at most 1", lambda r, t: ["eval", r, "--attack", "pgd", "--eps", "2"]),
    "padding too wide": (2, "data.augment.pad = 8", lambda r, t: [*TRAIN, "data.augment.pad=8"]),
    "unknown reference family": (2, "'smoth'", lambda r, t: [*TRAIN, "reference={families: [smoth]}"]),
    "out on a file system that takes no files": (
        1,
        "/proc/run: cannot be made",
        lambda r, t: [*TRAIN, "--out", "/proc/run"],
    ),
    "used out before a download": (
        1,
        "not an empty directory",
        lambda r, t: ["train", "--recipe", "cifar10_wrn28", "--out", r],
    ),
    "resume with another lr": (
        1,
        "cannot change on resuming",
        lambda r, t: ["train", "--resume", r, "optimizer.lr=1.0"],
    ),
    "test set that was trained on": (
        1,
        "digits:0-6: 1264 of its 1264 images are also in digits:0-6",
        lambda r, t: [*TRAIN, "data.test=digits:0-6"],
    ),
    "test set of other classes": (1, "noise: its classes", lambda r, t: [*TRAIN, "data.test=noise"]),
    "device without data": (1, "device 'meta' cannot be used", lambda r, t: [*TRAIN, "--device", "meta"]),
    "empty recipe name": (2, "--recipe is empty", lambda r, t: ["train", "--recipe", ""]),
    "empty run": (2, "RUN is empty", lambda r, t: ["eval", ""]),
    "report at the root": (1, "name a folder", lambda r, t: ["eval", r, "--out", "/"]),
    "a record that is none": (
        1,
        "env.json: cannot be read as a run's record .KeyError.; without the file",
        lambda r, t: ["eval", no_record(r, t)],
    ),
    "NaN weights": (
        1,
        "digits:0-6.*logits|logits.*finite",
        lambda r, t: ["eval", not_a_number(r, t), "--ood", "noise"],
    ),
    "report cannot be made": (
        1,
        "cannot write the evaluation to .*file/report",
        lambda r, t: ["eval", r, "--ood", "noise", "--limit", "20", "--out", write(t / "file") / "report"],
    ),
    "a score that needs what it cannot have": (
        2,
        "score 'knn' needs the training set",
        lambda r, t: external(r, "--data", pictures(t, "a", "b", "c"), "--score", "knn"),
    ),
    "steps without an attack": (2, "steps: without effect.*add --attack", lambda r, t: ["eval", r, "--steps", "5"]),
    "sanity without an attack": (2, "sanity: without effect", lambda r, t: ["eval", r, "--sanity"]),
    "steps is zero": (2, "--steps.*0 is not in the range", lambda r, t: ["eval", r, "--attack", "pgd", "--steps", "0"]),
    "restarts is no number": (2, "--restarts.*'x' is not a valid integer", lambda r, t: ["eval", r, "--restarts", "x"]),
    "eot is negative": (2, "--eot.*-1 is not in the range", lambda r, t: ["eval", r, "--eot", "-1"]),
    "seed is negative": (2, "--seed.*-1 is not in the range", lambda r, t: ["eval", r, "--seed", "-1"]),
    "severity without corruptions": (2, "add --corruptions", lambda r, t: ["eval", r, "--severity", "3"]),
    "severity is 6": (
        2,
        "--severity.*6 is not in the range 1<=x<=5",
        lambda r, t: ["eval", r, "--corruptions", "--severity", "6"],
    ),
    "one eps of several is wrong": (
        2,
        "eps must be at most 1",
        lambda r, t: ["eval", r, "--attack", "pgd", "--eps", "0.1", "--eps", "3"],
    ),
    "eps of the detector's attack": (
        2,
        "eps must be at most 1",
        lambda r, t: ["eval", r, "--ood", "noise", "--attack-detector", "--eps", "3"],
    ),
    "cw in linf": (2, "cw.*l2", lambda r, t: ["eval", r, "--attack", "cw"]),
    "openood for digits": (
        2,
        "openood-v1.5 is for models of cifar10 and cifar100, and this one is tested on digits:0-6",
        lambda r, t: ["eval", r, "--ood", "openood-v1.5"],
    ),
    "openood slip": (1, "unknown data set 'openood-v1.6'", lambda r, t: ["eval", r, "--ood", "openood-v1.6"]),
    "a run and a model": (
        2,
        "RUN and --model exclude each other",
        lambda r, t: [*external(r, "--data", "digits"), r],
    ),
    "a run and logits": (2, "RUN and --logits exclude each other", lambda r, t: numbers(r, r)),
    "a model and logits": (
        2,
        "--model and --logits exclude each other",
        lambda r, t: numbers(r, "--model", "torchvision/resnet18"),
    ),
    "weights of a run": (2, "--weights belongs to --model NAME", lambda r, t: ["eval", r, "--weights", "w.pt"]),
    "data of a run": (2, "--data belongs to --model NAME", lambda r, t: ["eval", "--data", "digits"]),
    "validation of a run": (2, "--validation belongs to", lambda r, t: ["eval", r, "--validation", "digits"]),
    "mean of a run": (2, "--mean belongs to --model NAME", lambda r, t: ["eval", r, "--mean", "0.5"]),
    "a model without weights": (2, "--model needs --weights", lambda r, t: ["eval", "--model", "torchvision/resnet18"]),
    "a model without data": (2, "--model needs --data", lambda r, t: external(r)),
    "empty model": (2, "--model is empty", lambda r, t: ["eval", "--model", "", "--weights", "x", "--data", "digits"]),
    "a model of no library": (
        2,
        "model 'resnet18' must be torchvision/NAME or timm/NAME",
        lambda r, t: ["eval", "--model", "resnet18", "--weights", r.parent / "w.pth", "--data", "digits"],
    ),
    "model slip": (
        2,
        "'torchvision/resnet19'.*did you mean 'resnet18'",
        lambda r, t: ["eval", "--model", "torchvision/resnet19", "--weights", r.parent / "w.pth", "--data", "digits"],
    ),
    "missing weights": (
        1,
        "none.pt: no such weight file",
        lambda r, t: ["eval", "--model", "timm/resnet10t", "--weights", t / "none.pt", "--data", "digits"],
    ),
    "weights that are none": (
        1,
        "w.pt: cannot be read as weights",
        lambda r, t: ["eval", "--model", "torchvision/resnet18", "--weights", write(t / "w.pt"), "--data", "digits"],
    ),
    "weights of another model": (
        1,
        "w.pth: not the weights of torchvision/resnet18 .*missing: conv1.weight",
        lambda r, t: ["eval", "--model", "torchvision/resnet18", "--weights", r.parent / "w.pth", "--data", "digits"],
    ),
    "another number of classes": (
        1,
        "its weights are for 3 classes, not for num_classes = 4",
        lambda r, t: external(r, "--data", "digits", "--num-classes", "4"),
    ),
    "data of other classes": (
        1,
        r"has 2 classes \(cat, dog\), the weights of \S+ have 3",
        lambda r, t: external(r, "--data", pictures(t, "cat", "dog")),
    ),
    "unknown data of a model": (1, "'digitz', did you mean 'digits'", lambda r, t: external(r, "--data", "digitz")),
    "mean of two channels": (
        2,
        r"mean must be 1 or 3 finite numbers, got \(0.1, 0.2\)",
        lambda r, t: external(r, "--data", "digits", "--mean", "0.1,0.2"),
    ),
    "mean is no number": (
        2,
        "'0.1;0.2' is not numbers such as 0.485,0.456,0.406",
        lambda r, t: external(r, "--data", "digits", "--mean", "0.1;0.2"),
    ),
    "std is zero": (2, "'0,1,1' is not positive", lambda r, t: external(r, "--data", "digits", "--std", "0,1,1")),
    "two channels": (2, "--channels.*'2' is not one of", lambda r, t: external(r, "--data", "x", "--channels", "2")),
    "gray for torchvision": (2, "takes 3 channels", lambda r, t: external(r, "--data", "digits", "--channels", "1")),
    "the test set as validation": (
        2,
        "is the test set itself",
        lambda r, t: external(r, "--data", pictures(t, "a", "b", "c"), "--validation", f"folder:{t / 'classes'}"),
    ),
    "logits of no file": (1, "none.npz: there is no such file", lambda r, t: ["eval", "--logits", "npz:none.npz"]),
    "logits of another kind": (2, "--logits must be npz:PATH, got 'x.csv'", lambda r, t: ["eval", "--logits", "x.csv"]),
    "logits without a path": (2, "--logits must be npz:PATH, got 'npz:'", lambda r, t: ["eval", "--logits", "npz:"]),
    "logits that are none": (
        1,
        "z.npz: cannot be read",
        lambda r, t: ["eval", "--logits", f"npz:{write(t / 'z.npz', b'PK')}"],
    ),
    "logits of NaN": (
        1,
        "test logits must be finite, got nan in row 0, column 0",
        lambda r, t: not_logits(t, logits=np.full((2, 2), np.nan), labels=np.zeros(2, int)),
    ),
    "probabilities for logits": (
        1,
        "test logits are probabilities",
        lambda r, t: not_logits(t, logits=np.full((4, 2), 0.5), labels=np.zeros(4, int)),
    ),
    "logits without labels": (1, "'test_labels' is missing", lambda r, t: not_logits(t, logits=np.zeros((2, 2)))),
    "logits with an attack": (2, "--attack does not go with --logits", lambda r, t: numbers(r, "--attack", "pgd")),
    "logits with an OOD set": (2, "--ood does not go with --logits", lambda r, t: numbers(r, "--ood", "noise")),
    "logits with a limit": (2, "--limit does not go with --logits", lambda r, t: numbers(r, "--limit", "5")),
    "logits with weights": (2, "--weights does not go with --logits", lambda r, t: numbers(r, "--weights", "w.pt")),
    "a score of images for logits": (2, "score 'grad_norm' needs", lambda r, t: numbers(r, "--score", "grad_norm")),
    "score slip for logits": (2, "'mps'.*did you mean 'msp'", lambda r, t: numbers(r, "--score", "mps")),
    "nothing to compare": (2, "RUN RUN", lambda r, t: ["compare"]),
    "one run to compare": (2, "at least two.*got 1", lambda r, t: ["compare", write(t / "a.json", b"{")]),
    "compare a missing run": (1, "none: no such", lambda r, t: ["compare", t / "none", t / "none2"]),
    "compare what was not evaluated": (
        1,
        "nothing: no evaluation there.*ebmhybrid eval",
        lambda r, t: ["compare", no_results(t), t / "nothing"],
    ),
    "compare what is no result": (
        1,
        "a.json: not the results of an evaluation",
        lambda r, t: ["compare", write(t / "a.json", b"{"), write(t / "b.json", b"{"), "--out", t / "out"],
    ),
    "compare a run with itself": (
        2,
        "a.json is given twice",
        lambda r, t: ["compare", write(t / "a.json", b"{"), t / "a.json"],
    ),
    "compare with an empty name": (2, "RUN is empty", lambda r, t: ["compare", "", r]),
    "copy over a file": (1, "exists", lambda r, t: ["recipes", "copy", "smoke", write(t / "a.yaml")]),
    "copy to no recipe file": (2, "must end in .yaml", lambda r, t: ["recipes", "copy", "smoke", t / "a.txt"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_each_wrong_input_gives_one_line_and_leaves_nothing(case: str, run: Path, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    status, message, make = WRONG[case]
    arguments = make(run, tmp_path)
    before, before_run = tree(tmp_path), tree(run)
    result = call(*arguments)
    assert result.exit_code == status, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("Error: ")
    assert re.search(message, lines[0]), lines[0]
    assert (tree(tmp_path), tree(run)) == (before, before_run)


def test_l2_radii_wider_than_the_box_are_left_out(run, tmp_path) -> None:
    result = call(
        *("eval", run, "--attack", "fgsm", "--norm", "l2", "--eps", "5", "--limit", "3", "--no-sanity"),
        *("--out", tmp_path, "--json"),
    )
    assert [row["eps"] for row in json.loads(result.stdout)["robustness"]["rows"]] == [0.0, 1.25, 2.5, 5.0]


def test_training_goes_on_without_anyone_reading(tmp_path) -> None:
    """A closed stderr, and a pipe whose reader has gone."""
    base = f"{sys.executable} -m ebmhybrid train --recipe smoke training.max_steps=2 --out {tmp_path}"
    for name, tail in (("closed", "2>&-"), ("gone", "2>&1 | true")):
        subprocess.run(f"{base}/{name} {tail}", shell=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})
        assert (tmp_path / name / "checkpoints" / "best.safetensors").is_file(), name


def test_changed_test_data_are_noticed(tmp_path) -> None:
    data = npz(tmp_path / "d.npz", *images(140))
    assert call(*TRAIN, f"data.train={data}", "--out", tmp_path / "a").exit_code == 0
    npz(tmp_path / "d.npz", images(140)[0] ^ 1, images(140)[1])
    result = call("eval", tmp_path / "a", "--ood", "noise")
    assert result.exit_code == 1
    assert "not those the run was made with" in result.stderr


def test_wrn_28_10_trains_two_steps_on_a_cifar_10_archive(tmp_path) -> None:
    """cifar-10-python.tar.gz in its real layout (fewer images a batch), and the real network for two steps."""
    data_files.make_cifar10(tmp_path / "data", n_per_batch=40, archive=True)
    assert [p.name for p in (tmp_path / "data").iterdir()] == ["cifar-10-python.tar.gz"]
    result = call(
        *("train", "--recipe", "cifar10_wrn28", "training.max_steps=2", "training.batch_size=4"),
        *("--data-dir", tmp_path / "data", "--out", tmp_path / "x", "--no-download"),
    )
    assert result.exit_code == 0, result.output
    model = eh.load_model(tmp_path / "x")
    assert sum(p.numel() for p in model.parameters()) == 36_489_290
    assert model.metadata["classes"][0] == "airplane"


def test_cifar_10_without_files_or_network_is_one_message_and_no_run(tmp_path, monkeypatch) -> None:
    def unreachable(*args, **kwargs):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    monkeypatch.chdir(tmp_path)
    result = call("train", "--recipe", "cifar10_wrn28", "--out", "x")
    assert result.exit_code == 1
    assert re.fullmatch(
        r"Error: cifar10: .*the download failed.*fetch cifar-10-python\.tar\.gz from https://\S+ and put it at .*\n",
        result.stderr,
    )
    assert tree(tmp_path) == set()


def test_eval_uses_the_runs_own_splits_and_its_recipes_settings(tmp_path) -> None:
    settings = "evaluation={ood: [noise, digits:7-9], scores: [msp], attacks: [fgsm], norm: l2, eps: 0.5}"
    assert call(*TRAIN, settings, "--out", tmp_path / "a").exit_code == 0
    by_recipe = json.loads(call("eval", tmp_path / "a", "--no-sanity", "--json").stdout)
    recorded = json.loads((tmp_path / "a" / "env.json").read_text())["data"]
    found = {row["role"]: row["digest"] for row in by_recipe["sets"] if row["role"] != "ood"}
    assert found == {role: recorded[role]["sha256"] for role in ("test", "validation")}
    assert [row["name"] for row in by_recipe["sets"] if row["role"] == "ood"] == ["noise", "digits:7-9"]
    assert {row["score"] for row in by_recipe["ood"]["rows"]} == {"msp"}
    rows = [row for row in by_recipe["robustness"]["rows"] if row["attack"] != "none"]
    assert [(row["attack"], row["norm"], row["eps"]) for row in rows] == [
        ("fgsm", "l2", eps) for eps in (0.125, 0.25, 0.5, 1.0)
    ]
    by_option = json.loads(
        call(
            *("eval", tmp_path / "a", "--json", "--ood", "photos", "--score", "energy"),
            *("--attack", "pgd", "--norm", "linf", "--eps", "4/255", "--limit", "20", "--no-sanity"),
        ).stdout
    )
    assert [row["name"] for row in by_option["sets"] if row["role"] == "ood"] == ["photos"]
    assert {row["score"] for row in by_option["ood"]["rows"]} == {"energy"}
    assert {(r["attack"], r["norm"]) for r in by_option["robustness"]["rows"]} == {("none", "linf"), ("pgd", "linf")}
    assert 4 / 255 in [row["eps"] for row in by_option["robustness"]["rows"]]


def test_interrupting_the_process_saves_and_exits_130(tmp_path) -> None:
    """A real process and a real SIGINT; then --resume finishes the run."""
    out = tmp_path / "a"
    arguments = ["--recipe", "smoke", "training.max_steps=null", "training.epochs=500", "training.log_every=1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "ebmhybrid", "train", *arguments, "--out", str(out)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stderr is not None
        watchdog = threading.Timer(120, process.kill)  # a silent child would hold the suite for ever
        watchdog.start()
        for line in process.stderr:
            if line.startswith("epoch 2/"):
                process.send_signal(2)
                break
        process.stderr.read()
        watchdog.cancel()
        assert process.wait(60) == 130
    step = eh.training.checkpoint.load_state(out / "checkpoints" / "last.state.pt")["parts"]["progress"]["step"]
    last = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["step"] == step
    result = call("train", "--resume", out, f"training.max_steps={step + 2}", "--quiet")
    assert result.exit_code == 0, result.output


def test_help_is_quick_and_light() -> None:
    code = (
        "import sys; sys.argv = ['ebmhybrid', '--help']\n"
        "from ebmhybrid.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print('HEAVY', sorted({'torch', 'numpy', 'pydantic', 'yaml', 'scipy'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "HEAVY []" in out


@pytest.fixture
def asked(monkeypatch):
    """What the suite is asked for; it goes on with a small part of it."""
    found: dict = {}
    original = suite.evaluate

    def evaluate(model, test_set, **settings):
        found.update(settings)
        few = {"attacks": (), "corruptions": False, "sanity": None, "attack_detector": False, "train_set": None}
        few["refine"] = False
        return original(model, test_set, **settings | few | {"scores": ["msp"], "cache": None, "journal": None})

    monkeypatch.setattr(suite, "evaluate", evaluate)
    return found


def test_every_option_reaches_the_suite(run, tmp_path, asked) -> None:
    result = call(
        *("eval", run, "--ood", "noise", "--score", "all", "--attack", "apgd-ce", "--attack", "square", "--norm", "l2"),
        *(
            "--eps",
            "1/2",
            "--eps",
            "1",
            "--steps",
            "7",
            "--restarts",
            "2",
            "--eot",
            "3",
            "--queries",
            "50",
            "--no-sweep",
            "--no-sanity",
        ),
        *(
            "--attack-detector",
            "--refine",
            "--corruptions",
            "--severity",
            "1",
            "--severity",
            "4",
            "--seed",
            "9",
            "--limit",
            "30",
        ),
        *("--no-calibration", "--no-cache", "--out", tmp_path / "report"),
    )
    assert result.exit_code == 0, result.output
    expected = {
        "scores": ("all",),
        "attacks": ("apgd-ce", "square"),
        "norm": "l2",
        "eps": (0.5, 1.0),
        "steps": 7,
        "restarts": 2,
        "eot": 3,
        "queries": 50,
        "sweep": False,
        "sanity": False,
        "attack_detector": True,
        "refine": True,
        "corruptions": True,
        "severities": (1, 4),
        "limit": 30,
        "calibration": False,
        "cache": None,
        "journal": None,
        "groups": None,
        "corruption_sets": None,
    }
    assert {name: asked[name] for name in expected} == expected
    assert asked["generator"].initial_seed() == 9


def test_without_options_the_recipe_decides(run, tmp_path, asked) -> None:
    assert call("eval", run, "--out", tmp_path / "report").exit_code == 0
    recipe = eh.load_recipe(run / "config.yaml")
    for name in ("scores", "attacks", "norm", "eps"):
        assert asked[name] == getattr(recipe.evaluation, name), name
    assert (asked["sanity"], asked["attack_detector"], asked["corruptions"], asked["limit"]) == (
        None,
        False,
        False,
        None,
    )
    assert asked["generator"].initial_seed() == recipe.seed
    assert asked["cache"].folder == run / "cache"
    record = json.loads((run / "env.json").read_text())["data"]
    assert asked["train_set"].digest() == record["train"]["sha256"]
    assert asked["validation"].digest() == record["validation"]["sha256"]


def test_one_eps_is_a_curve_and_several_are_themselves(run, tmp_path, asked) -> None:
    call("eval", run, "--attack", "pgd", "--eps", "8/255", "--limit", "20", "--out", tmp_path / "report")
    assert asked["eps"] == 8 / 255
    assert asked["journal"].parent == run / "cache"
    call("eval", run, "--attack", "pgd", "--eps", "1/4", "--eps", "1/2", "--limit", "20", "--out", tmp_path / "report")
    assert asked["eps"] == (0.25, 0.5)


def test_a_lone_weight_file_keeps_its_cache_beside_it(run, tmp_path, asked) -> None:
    weights = shutil.copy(run / "checkpoints" / "best.safetensors", tmp_path / "w.safetensors")
    assert call("eval", weights, "--limit", "20").exit_code == 0
    assert asked["cache"].folder == tmp_path / "cache"
    assert call("eval", run / "checkpoints" / "best.safetensors", "--out", tmp_path / "x").exit_code == 0
    assert asked["cache"].folder == run / "cache"


def test_a_model_from_elsewhere_end_to_end(run, tmp_path) -> None:
    result = call(
        *external(run, "--data", pictures(tmp_path, "a", "b", "c"), "--image-size", "32", "--ood", "noise"),
        *("--limit", "9", "--out", tmp_path / "report"),
    )
    assert result.exit_code == 0, result.output
    assert "note: images are normalised by mean 0.485" in result.output
    assert "note: no temperature was fitted, which takes held-out images: --validation NAME" in result.output
    content = json.loads((tmp_path / "report" / "results.json").read_text())
    assert content["context"]["model"] == "torchvision/shufflenet_v2_x0_5"
    assert content["accuracy"]["rows"][0]["n"] == 9


def test_logits_end_to_end(run, tmp_path) -> None:
    folder = shutil.copytree(run.parent, tmp_path / "x", ignore=lambda *_: ["a"])
    result = call("eval", "--logits", f"npz:{folder / 'logits.npz'}", "--score", "msp")
    assert result.exit_code == 0, result.output
    assert "note: no temperature was fitted" in result.output
    (report,) = folder.glob("eval/*/results.json")
    content = json.loads(report.read_text())
    made = logits()
    right = made["test_logits"].argmax(axis=1) == made["test_labels"]
    assert content["accuracy"]["rows"][0]["accuracy"] == right.mean()
    assert (content["ood"]["rows"][0]["ood_set"], content["ood"]["rows"][0]["score"]) == ("far", "msp")


def test_compare_writes_a_page(run, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        np.savez(tmp_path / f"{name}.npz", **logits())
        assert call("eval", "--logits", f"npz:{name}.npz", "--out", f"{name}.eval").exit_code == 0
    result = call("compare", "a.eval", tmp_path / "b.eval" / "results.json")
    assert result.exit_code == 0, result.output
    page = Path(re.search(r"page: (\S+)", result.output)[1])
    assert page.parts[:2] == ("runs", "compare")
    assert "<html" in page.read_text()
    assert call("compare", "a.eval", "b.eval", "--out", "here").exit_code == 0
    assert (tmp_path / "here" / "compare.html").is_file()


def test_openood_and_cifar_10_c_where_they_lie(tmp_path) -> None:
    """The protocol's sets, groups and own test set; the fifteen corruptions, each read when asked for."""
    from ebmhybrid.errors import DataError, UsageError
    from ebmhybrid.eval_sets import CIFAR10C_KINDS, Source, cifar10c_sets, load_strangers

    data_files.make_cifar10(tmp_path)
    data_files.make_svhn(tmp_path)
    source = Source(tmp_path, False, (3, 32, 32), 7)
    strangers = load_strangers(["openood-v1.5", "noise"], "cifar10", source)
    assert strangers.groups["svhn"] == "far"
    assert list(strangers.sets)[-1] == "noise"
    assert strangers.test is not None
    assert {images.batch_size for images in (strangers.test, *strangers.sets.values())} == {7}
    with pytest.raises(UsageError, match=r"'svhn' is one of openood-v1\.5 already"):
        load_strangers(["svhn", "openood-v1.5"], "cifar10", source)
    assert cifar10c_sets("cifar10", source) is None
    folder = tmp_path / "CIFAR-10-C"
    folder.mkdir()
    for number, kind in enumerate((*CIFAR10C_KINDS, "labels")):
        array = np.full((10, 32, 32, 3), number, np.uint8)
        np.save(folder / f"{kind}.npy", array if kind != "labels" else np.arange(10))
    assert cifar10c_sets("cifar100", source) is None
    sets = cifar10c_sets("cifar10", source)
    assert sets is not None
    assert list(sets) == list(CIFAR10C_KINDS)
    assert list(sets["frost"]) == [1, 2, 3, 4, 5]
    found = sets["frost"][2]
    assert (found.labels.tolist(), int(found.images.max())) == ([2, 3], CIFAR10C_KINDS.index("frost"))
    assert 6 not in sets["fog"]
    (folder / "frost.npy").unlink()
    with pytest.raises(DataError, match=r"frost\.npy is missing, 1 of the 15 corruptions"):
        cifar10c_sets("cifar10", source)
