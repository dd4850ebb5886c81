"""`ebmhybrid sample` and `eval --samples` as a user types them."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

import ebmhybrid as eh
from ebmhybrid.cli import main
from ebmhybrid.data import load_set, load_splits
from ebmhybrid.errors import UsageError
from ebmhybrid.eval_sets import Source
from ebmhybrid.evaluate import suite
from ebmhybrid.evaluate.generation_features import InceptionWeights
from ebmhybrid.evaluate.generation_result import GenerationResult
from ebmhybrid.generation import files as sample_files
from ebmhybrid.generation import generate as generating
from ebmhybrid.generation import judge
from ebmhybrid.measures import choose, measure
from ebmhybrid.runs import sample_run
from ebmhybrid.training import load_model
from ebmhybrid.training.checkpoint import load_state

QUICK = ["--recipe", "smoke", "training.max_steps=2", "--quiet"]
JEM = "objective={ce: {}, jem: {chains: class, steps: 2, buffer_size: 70}}"
FILES = {"samples.npz", "samples.png", "chains.png", "results.json", "report.html"}


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def tree(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*")}


@pytest.fixture(autouse=True, scope="module")
def _quick_judge():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judge, "STEPS", 3)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Runs `jem`, whose judge is there, and `ce`, which has none."""
    folder = tmp_path_factory.mktemp("cli") / "runs"
    for name, changes in (("ce", ("objective={ce: {}}", "evaluation.samples=3")), ("jem", (JEM,))):
        result = call("train", *QUICK, *changes, "--out", folder / name)
        assert result.exit_code == 0, result.output
    assert call("sample", folder / "jem", "--num", "2", "--steps", "0").exit_code == 0
    shutil.rmtree(folder / "jem" / "samples")
    return folder


@pytest.fixture(scope="module")
def run(folder) -> Path:
    return folder / "jem"


def content(folder: Path) -> tuple[dict, np.ndarray, np.ndarray]:
    with np.load(folder / "samples.npz") as arrays:
        return json.loads((folder / "results.json").read_text()), arrays["x"], arrays["y"]


def test_samples_of_the_newest_run(run, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    copy = shutil.copytree(run, tmp_path / "runs" / "jem")
    result = call("sample", "--num", "15")
    assert result.exit_code == 0, result.output
    assert "labels as asked" in result.output
    out = Path(re.search(r"report: (\S+)", result.output)[1]).parent
    assert out.parent.relative_to(copy.relative_to(tmp_path)) == Path("samples")
    assert {path.name for path in out.iterdir()} == FILES
    assert {str(out / name) for name in FILES - {"results.json"}} <= set(result.output.split())
    found, x, y = content(out)
    assert (x.shape, x.dtype, y.tolist()) == ((15, 8, 8), np.uint8, [0, 0, 0, *np.repeat(range(1, 7), 2)])
    assert found["settings"] == {
        "num": 15,
        "classes": list(range(7)),
        "start": "buffer",
        "steps": 4,
        "step_size": 0.25,
        "noise_std": 0.005,
        "clip": None,
        "clamp": True,
        "seed": 0,
    }
    model = load_model(copy)
    assert found["context"]["weights"]["sha256"] == eh.training.checkpoint.weights_digest(model)
    assert found["context"]["config"]["name"] == "smoke"
    assert re.fullmatch(r"WRN-10-2, cross-entropy, [\d.]+ % on the test split", found["context"]["judge"])
    assert found["labels"] == "asked for"
    assert found["class_counts"]["0"] == 3
    assert found["notes"] == []
    groups = {row["group"] for row in found["generation"]["rows"]}
    assert {"labels", "distances", "neighbours", "diversity", "log_density"} <= groups
    page = (out / "report.html").read_text()
    assert "15 samples: 4 Langevin steps on log p(x, y) of a class each, step 0.25 and noise 0.005, from the" in page
    assert "<svg" in page
    assert found["context"]["judge"] in page
    for name in ("samples.png", "chains.png"):
        with Image.open(out / name) as picture:
            assert min(picture.size) > 100
    given = load_set(f"npz:{out / 'samples.npz'}")
    assert given.shape == (1, 8, 8)
    assert tree(tmp_path / "runs" / "jem") - tree(run) == {
        "samples",
        f"samples/{out.name}",
        *(f"samples/{out.name}/{name}" for name in FILES),
    }


def test_samples_are_the_chains_of_the_run(run, tmp_path) -> None:
    """From the weights and the buffer of the run, without noise, by hand."""
    result = call("sample", run, "--num", "70", "--noise-std", "0", "--steps", "2", "--out", tmp_path / "a")
    assert result.exit_code == 0, result.output
    model = load_model(run)
    buffer = load_state(run / "checkpoints" / "last.state.pt")["parts"]["sampler"]["buffer.images"]
    x, y = buffer.clone(), torch.arange(70) // 10
    for _ in range(2):
        x.requires_grad_()
        (slope,) = torch.autograd.grad(model(x)[torch.arange(70), y].sum(), x)
        x = (x.detach() + 0.25 * slope).clamp(0, 1)
    expected = (255 * x[:, 0]).round().numpy().astype(int)
    _, found, labels = content(tmp_path / "a")
    assert labels.tolist() == y.tolist()
    for label in range(7):  # each slot once, in an order of its own
        of = slice(10 * label, 10 * label + 10)
        gaps = np.abs(found[of, None].astype(int) - expected[None, of]).max((2, 3))
        assert sorted(gaps.argmin(1)) == list(range(10))
        assert gaps.min(1).max() <= 1


def test_the_same_seed_gives_the_same_samples(run) -> None:
    asked = {"num": 8, "start": "uniform", "steps": 2, "judge": "none"}
    first, same, other = (sample_run(run, seed=seed, **asked).drawn.images for seed in (1, 1, 2))
    assert torch.equal(first, same)
    assert (first != other).float().mean() > 0.5


def test_every_option_is_heard_and_json_is_all_of_stdout(run, tmp_path) -> None:
    result = call(
        *("sample", run, "--num", "6", "--class", "5", "--class", "2", "--steps", "3", "--step-size", "0.1"),
        *("--noise-std", "0.02", "--start", "gaussian", "--seed", "9", "--judge", "none", "--json"),
        *("--out", tmp_path / "a"),
    )
    assert result.exit_code == 0, result.output
    printed = json.loads(result.stdout)
    found, _, y = content(tmp_path / "a")
    assert printed == found
    assert y.tolist() == [5, 5, 5, 2, 2, 2]
    asked = {"num": 6, "classes": [5, 2], "steps": 3, "step_size": 0.1, "noise_std": 0.02, "start": "gaussian"}
    assert printed["settings"] == asked | {"seed": 9, "clip": None, "clamp": True}
    assert printed["context"]["judge"] is None
    train = load_splits("digits:0-6", test_fraction=0.2).train
    (near,) = (row for row in printed["generation"]["rows"] if (row["group"], row["of"]) == ("neighbours", "samples"))
    assert near["n_reference"] == int(((train.labels == 5) | (train.labels == 2)).sum())
    assert printed["generation"]["about"]["sets"][1]["notes"][-1:] == ["of the classes asked for alone: 5, 2"]
    assert not {"labels", "distances"} & {row["group"] for row in printed["generation"]["rows"]}


def test_a_run_that_was_not_trained_with_samples(folder, tmp_path) -> None:
    result = call(
        "sample", folder / "ce", "--num", "5", "--steps", "2", "--judge", folder / "jem", "--out", tmp_path / "a"
    )
    assert result.exit_code == 0, result.output
    assert "note: the run was not trained with samples" in result.output
    found, x, y = content(tmp_path / "a")
    assert (found["settings"]["classes"], found["settings"]["start"], found["labels"]) == (None, "uniform", "predicted")
    images = torch.from_numpy(x)[:, None].float() / 255
    with torch.no_grad():
        assert load_model(folder / "ce")(images).argmax(1).tolist() == y.tolist()
    assert found["context"]["judge"].startswith("WRN-10-1, cross-entropy + JEM, ")
    assert not (folder / "ce" / "cache").exists()


def test_a_lone_weight_file_has_no_buffer(run, tmp_path) -> None:
    weights = shutil.copy(run / "checkpoints" / "best.safetensors", tmp_path / "w.safetensors")
    result = call("sample", weights, "--num", "4", "--steps", "1", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["settings"]["start"] == "uniform"
    assert {path.name for path in tmp_path.iterdir()} == {"w.safetensors", "samples", "cache"}


def test_images_of_a_file_go_on_as_chains(run, tmp_path) -> None:
    x, y = np.random.default_rng(0).integers(0, 256, (6, 8, 8), dtype=np.uint8), np.arange(6)
    np.savez(tmp_path / "x.npz", x=x, y=y)
    options = ("--start", f"npz:{tmp_path / 'x.npz'}", "--steps", "0", "--judge", "none")
    assert call("sample", run, *options, "--out", tmp_path / "a").exit_code == 0
    found, same, labels = content(tmp_path / "a")
    assert (same == x).all()
    assert labels.tolist() == y.tolist()
    assert found["settings"]["num"] == 6


def test_inception_weights_are_passed_on(run, tmp_path, monkeypatch) -> None:
    seen = []
    monkeypatch.setattr(InceptionWeights, "read", classmethod(lambda cls, path: cls("w", "0" * 64, {})))
    monkeypatch.setattr(InceptionWeights, "network", lambda self: seen.append("network"))
    original = generating.evaluate_generation

    def evaluate(*args, inception, **given):
        seen.append(inception)
        return original(*args, **given)

    monkeypatch.setattr(generating, "evaluate_generation", evaluate)
    options = ("--num", "4", "--steps", "0", "--judge", "none", "--inception", "w.pth")
    assert call("sample", run, *options, "--out", tmp_path / "a").exit_code == 0
    assert seen == ["network", "w.pth"]


def nothing(tmp: Path) -> Path:
    (tmp / "used").mkdir()
    for name in ("results.json", "chains.png"):
        (tmp / "used" / name).write_text("{}")
    return tmp / "used"


def samples_in_the_way(run: Path, tmp: Path) -> Path:
    copy = shutil.copytree(run, tmp / "copy")
    (copy / "samples").write_text("")
    return copy


def without_y(tmp: Path) -> str:
    np.savez(tmp / "x.npz", x=np.zeros((6, 8, 8), np.uint8))
    return f"npz:{tmp / 'x.npz'}"


def without_buffer(run: Path, tmp: Path) -> Path:
    copy = shutil.copytree(run, tmp / "copy")
    state = load_state(copy / "checkpoints" / "last.state.pt")
    del state["parts"]["sampler"]["buffer.images"]
    torch.save(state, copy / "checkpoints" / "last.state.pt")
    return copy


def damaged(run: Path, tmp: Path) -> Path:
    copy = shutil.copytree(run, tmp / "copy")
    (copy / "checkpoints" / "last.state.pt").write_bytes(b"no state")
    return copy


def npz(tmp: Path, n: int = 6, classes: int = 7) -> str:
    np.savez(tmp / "x.npz", x=np.zeros((n, 8, 8), np.uint8), y=np.arange(n) % classes)
    return f"npz:{tmp / 'x.npz'}"


# Each: exit status, what the one line must name, and the arguments, given (a good run, an empty folder).
WRONG = {
    "no run at all": (1, "runs: no run there; make one with `ebmhybrid train`", lambda r, t: []),
    "missing run": (1, "none: no such run", lambda r, t: [t / "none"]),
    "empty run": (2, "RUN is empty", lambda r, t: [""]),
    "unknown option": (2, "--nun", lambda r, t: [r, "--nun", "5"]),
    "none": (2, "0 is not in the range 2<=x<=10000000", lambda r, t: [r, "--num", "0"]),
    "one": (2, "1 is not in the range 2<=x<=10000000", lambda r, t: [r, "--num", "1"]),
    "too many": (2, "--num.*000 is not in the range 2<=x<=10000000", lambda r, t: [r, "--num", "1000000000000"]),
    "far too many": (2, "--num.*999 is not in the range", lambda r, t: [r, "--num", "99999999999999999999"]),
    "num is no number": (2, "--num.*'x' is not a valid integer", lambda r, t: [r, "--num", "x"]),
    "negative steps": (2, "--steps.*-1 is not in the range x>=0", lambda r, t: [r, "--steps", "-1"]),
    "negative step": (2, "--step-size.*-1.0 is not in the range", lambda r, t: [r, "--step-size", "-1"]),
    "step is NaN": (2, "step_size must be at least 0 and finite, got nan", lambda r, t: [r, "--step-size", "nan"]),
    "noise is infinite": (2, "noise_std must be .* got inf", lambda r, t: [r, "--noise-std", "inf"]),
    "negative seed": (2, "--seed.*-1 is not in the range", lambda r, t: [r, "--seed", "-1"]),
    "unknown class": (2, r"'9' is neither .* number in 0\.\.6: valid: 0, 1, 2", lambda r, t: [r, "--class", "9"]),
    "class below 0": (2, r"'-1' is neither .* in 0\.\.6: did you mean '1'\?", lambda r, t: [r, "--class", "-1"]),
    "empty class": (2, "--class is empty", lambda r, t: [r, "--class", ""]),
    "unknown start": (2, "start 'unifrom': did you mean 'uniform'", lambda r, t: [r, "--start", "unifrom"]),
    "empty start": (2, "--start is empty", lambda r, t: [r, "--start", ""]),
    "buffer of a run without": (
        2,
        "start 'buffer': the run keeps no replay buffer",
        lambda r, t: [r.parent / "ce", "--start", "buffer"],
    ),
    "buffer that is gone": (1, "holds no replay buffer", lambda r, t: [without_buffer(r, t), "--judge", "none"]),
    "state that is none": (1, "last.state.pt: cannot be read", lambda r, t: [damaged(r, t), "--judge", "none"]),
    "missing file": (
        1,
        "none.npz: there is no file",
        lambda r, t: [r.parent / "ce", "--start", f"npz:{t / 'none.npz'}"],
    ),
    "file without y": (1, r"arrays x and y are needed, y is not", lambda r, t: [r, "--start", without_y(t)]),
    "more than the file has": (2, "num = 7: .*x.npz holds 6", lambda r, t: [r, "--start", npz(t), "--num", "7"]),
    "one image in the file": (1, "at least 2 images, it holds 1", lambda r, t: [r, "--start", npz(t, 1)]),
    "labels of other classes": (1, r"go up to 7, .*0\.\.6", lambda r, t: [r, "--start", npz(t, 8, 8)]),
    "a class and a file": (
        2,
        "class does not go with start npz:",
        lambda r, t: [r, "--start", "npz:x", "--class", "0"],
    ),
    "out is used": (
        1,
        "Error: cannot write samples to .*used: it is not empty; choose a new",
        lambda r, t: [r, "--out", nothing(t)],
    ),
    "out is a file": (
        1,
        "Error: cannot write samples to .*w: it is not a folder",
        lambda r, t: [r, "--out", shutil.copy(r / "env.json", t / "w")],
    ),
    "out in a file": (
        1,
        "Error: cannot write samples to .*w/a: Not a directory",
        lambda r, t: [r, "--out", Path(shutil.copy(r / "env.json", t / "w")) / "a"],
    ),
    "out at the root": (1, "Error: cannot write samples to /: name a folder", lambda r, t: [r, "--out", "/"]),
    "run takes no samples": (
        1,
        "Error: cannot write samples to .*copy/samples/new: Not a directory",
        lambda r, t: [samples_in_the_way(r, t), "--judge", "none"],
    ),
    "empty out": (2, "--out is empty", lambda r, t: [r, "--out", ""]),
    "missing judge": (1, "nobody: no such run", lambda r, t: [r, "--judge", "nobody"]),
    "judge is the model": (2, "is the sampled model itself", lambda r, t: [r, "--judge", r]),
    "empty judge": (2, "--judge is empty", lambda r, t: [r, "--judge", ""]),
    "missing inception": (1, "none.pth", lambda r, t: [r, "--inception", "none.pth"]),
    "unknown device": (1, "device 'gpu9'", lambda r, t: [r, "--device", "gpu9"]),
    "chains that blow up": (
        1,
        "no longer finite",
        lambda r, t: [not_a_number(r, t), "--start", "uniform", "--judge", "none"],
    ),
}


def not_a_number(run: Path, tmp: Path) -> Path:
    copy = shutil.copytree(run, tmp / "nan")
    model = load_model(copy)
    torch.nn.init.constant_(model.head.weight, float("nan"))
    metadata = {key: value for key, value in model.metadata.items() if key not in ("format", "version")}
    eh.training.checkpoint.save_weights(copy / "checkpoints" / "best.safetensors", model, metadata)
    return copy


@pytest.mark.parametrize("case", WRONG)
def test_each_wrong_input_gives_one_line_and_leaves_nothing(case: str, run: Path, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    status, message, make = WRONG[case]
    arguments = make(run, tmp_path)
    before, before_run = tree(tmp_path), tree(run.parent)
    result = call("sample", *arguments)
    assert result.exit_code == status, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("Error: ")
    assert re.search(message, lines[0]), lines[0]
    assert result.stdout == ""  # said before the work, not after it
    assert (tree(tmp_path), tree(run.parent)) == (before, before_run)


@pytest.mark.parametrize("given", [True, False])
def test_a_failed_save_leaves_nothing_half_written(run, tmp_path, monkeypatch, given) -> None:
    def fails(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sample_files, "film", fails)
    before = tree(run)
    out = ("--out", tmp_path / "a") if given else ()
    result = call("sample", run, "--num", "4", "--steps", "0", "--judge", "none", *out)
    assert result.exit_code == 1
    assert re.fullmatch(r"Error: cannot write samples to \S+: No space left on device\n", result.stderr)
    assert "nearest training image" in result.stdout  # the figures are not lost
    assert not list(tmp_path.iterdir())
    assert tree(run) == before


def test_a_reader_who_has_gone_costs_no_samples(run, tmp_path, monkeypatch) -> None:
    def gone(*args):
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(GenerationResult, "table", gone)
    result = call("sample", run, "--num", "4", "--steps", "0", "--judge", "none", "--out", tmp_path / "a")
    assert result.exit_code == 1
    assert {path.name for path in (tmp_path / "a").iterdir()} == FILES
    monkeypatch.setattr(suite.SuiteResult, "table", gone)
    assert call("eval", run, "--limit", "20", "--no-calibration", "--out", tmp_path / "b").exit_code == 1
    assert (tmp_path / "b" / "report.html").is_file()


def test_a_judge_of_the_users_own_stays(folder, tmp_path) -> None:
    run = shutil.copytree(folder / "ce", tmp_path / "ce")
    shutil.copytree(folder / "jem", run / "judge")
    (run / "judge" / "thesis.txt").write_text("mine")
    before = tree(run / "judge")
    assert call("sample", run, "--num", "4", "--steps", "0", "--out", tmp_path / "a").exit_code == 0
    assert tree(run / "judge") == before


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (MemoryError("Unable to allocate 7.28 TiB for an array"), "not enough memory: 7.28 TiB were asked for at once"),
        (MemoryError(), "not enough memory; ask for fewer images"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0"), ": 20.00 GiB were asked"),
        (lambda: torch.empty(2**45), "not enough memory: 140737488355328 bytes were asked for at once; ask for fewer"),
        (lambda: torch.empty(2**62, 2**62), "not enough memory; ask for fewer images, or smaller batches"),
    ],
)
@pytest.mark.parametrize("command", ["train", "sample"])
def test_want_of_memory_is_one_line(run, tmp_path, monkeypatch, error, line, command) -> None:
    def fails(*args, **settings):
        if callable(error):
            error()
        raise error

    monkeypatch.setattr("ebmhybrid.training.train", fails)
    monkeypatch.setattr("ebmhybrid.runs.sample_run", fails)
    result = call("train", *QUICK, "--out", tmp_path / "t") if command == "train" else call("sample", run)
    assert result.exit_code == 1, result.output
    assert len(result.stderr.splitlines()) == 1
    assert line in result.stderr


def test_an_error_of_ours_is_none_of_memory(run, monkeypatch) -> None:
    def fails(*args, **settings):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr("ebmhybrid.runs.sample_run", fails)
    assert isinstance(call("sample", run).exception, RuntimeError)


def test_help_shows_examples() -> None:
    shown = call("sample", "--help").output
    assert "\nExamples:\n  ebmhybrid sample" in shown


def test_an_interrupt_leaves_neither_samples_nor_half_a_judge(folder, tmp_path, monkeypatch) -> None:
    """A real SIGINT while the judge is trained."""
    run = shutil.copytree(folder / "ce", tmp_path / "ce")
    before, original = tree(run), judge.build_parts

    def build_parts(*args):
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
        return original(*args)

    monkeypatch.setattr(judge, "STEPS", 3000)
    monkeypatch.setattr(judge, "build_parts", build_parts)
    result = call("sample", run, "--num", "4")
    assert result.exit_code == 130, result.output
    assert result.stderr.strip() == "Error: interrupted"
    assert tree(run) == before


# eval --samples


def test_eval_measures_samples_too(run, tmp_path) -> None:
    options = ("--samples", "14", "--limit", "60", "--seed", "3", "--ood", "noise", "--no-calibration")
    result = call("eval", run, *options, "--out", tmp_path / "a")
    assert result.exit_code == 0, result.output
    assert "labels as asked" in result.output
    found = json.loads((tmp_path / "a" / "results.json").read_text())
    assert found["settings"]["samples"]["num"] == 14
    assert found["settings"]["samples"]["seed"] == 3
    samples = [row for row in found["generation"]["rows"] if row["of"] == "samples"]
    assert {row["n"] for row in samples if row.get("class") is None} == {14}
    (near,) = (row for row in samples if row["group"] == "neighbours")
    assert near["n_reference"] == 885  # the limit leaves the training images whole: copies are sought among all
    assert "Samples" in (tmp_path / "a" / "report.html").read_text()
    assert "generation,samples" in (tmp_path / "a" / "results.csv").read_text()
    same = call("sample", run, "--num", "14", "--seed", "3", "--out", tmp_path / "b", "--json")
    density = next(row for row in json.loads(same.stdout)["generation"]["rows"] if row["group"] == "log_density")
    assert density["log_density_mean"] in [row.get("log_density_mean") for row in samples]


def test_the_recipe_says_how_many_samples_and_zero_is_none(folder, tmp_path) -> None:
    """And of a run that was not trained with samples the evaluation says so."""
    run = shutil.copytree(folder / "ce", tmp_path / "ce")
    result = call("eval", run, "--limit", "20", "--no-calibration", "--out", tmp_path / "a")
    assert result.exit_code == 0, result.output
    assert "note: the run was not trained with samples" in result.output
    found = json.loads((tmp_path / "a" / "results.json").read_text())
    assert found["settings"]["samples"]["num"] == 3
    recipe = eh.load_recipe(run / "config.yaml")
    assert (choose({}, recipe.evaluation).samples, choose({"samples": 0}, recipe.evaluation).samples) == (3, 0)


def test_samples_that_fail_cost_no_other_figures(run, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(suite, "evaluate", lambda *args, **settings: pytest.fail("evaluated first"))
    assert call("eval", damaged(run, tmp_path), "--samples", "5").exit_code == 1


@pytest.mark.parametrize(
    ("status", "message", "options"),
    [
        (2, "--samples.*-1 is not in the range", ("--samples", "-1")),
        (2, "--samples must be 0 or at least 2, which figures need, got 1", ("--samples", "1")),
        (2, "--samples.*99999999999 is not in the range 0<=x<=10000000", ("--samples", "99999999999")),
        (1, "digits:0-6: .* at least 2 test images, got 1, and the limit is 1", ("--samples", "3", "--limit", "1")),
    ],
)
def test_wrong_numbers_of_samples(run, status, message, options, monkeypatch) -> None:
    monkeypatch.setattr(generating, "draw", lambda *args, **settings: pytest.fail("sampled first"))
    before = tree(run)
    result = call("eval", run, *options)
    assert result.exit_code == status, result.output
    assert re.search(message, result.stderr), result.stderr
    assert tree(run) == before


def test_samples_need_a_run(tmp_path) -> None:
    torch.save(torch.nn.Linear(1, 1).state_dict(), tmp_path / "w.pt")
    np.savez(tmp_path / "l.npz", test_logits=np.eye(3), test_labels=np.arange(3))
    result = call("eval", "--logits", f"npz:{tmp_path / 'l.npz'}", "--samples", "5")
    assert result.exit_code == 2
    assert "--samples does not go with --logits" in result.stderr
    digits = load_set("digits")
    source = Source(tmp_path, False, (1, 8, 8))
    asked = choose({"samples": 5})
    with pytest.raises(UsageError, match="samples are drawn from a run"):
        measure(torch.nn.Identity(), digits, asked, source, id_name="digits", weights="", cache=None)
    with pytest.raises(UsageError, match=r"samples must be 0 or a whole number of at least 2, got 2\.5"):
        choose({"samples": 2.5})
