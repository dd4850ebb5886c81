"""Training: the loop, its options, its files, interruption and resuming."""

from __future__ import annotations

import json
import math
import signal
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import SafetensorError, safe_open

import ebmhybrid as eh
from ebmhybrid.data import load_set
from ebmhybrid.errors import CheckpointError, DataError, EbmhybridError, RecipeError, TrainingError
from ebmhybrid.schema import Optimizer, Schedule
from ebmhybrid.training import build, classify, engine
from ebmhybrid.training.checkpoint import load_state, save_weights, weights_digest, write_atomically
from ebmhybrid.training.optimization import build_optimizer, build_scheduler, lr_factor
from ebmhybrid.training.records import fresh_folder, locked

SMALL = ["training.batch_size=128", "training.max_steps=null", "training.epochs=2", "training.log_every=3"]


def recipe(*overrides: str):
    return eh.load_recipe("smoke", [*SMALL, *overrides])


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> eh.training.Run:
    return eh.train(recipe(), tmp_path_factory.mktemp("runs") / "a", progress=False)


def test_a_run_directory_holds_what_the_contract_names(finished) -> None:
    folder = finished.folder
    files = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and p.parent.name != "tb"}
    assert files == {
        "config.yaml",
        "env.json",
        "train.log",
        "metrics.jsonl",
        "metrics.csv",
        "checkpoints/last.safetensors",
        "checkpoints/best.safetensors",
        "checkpoints/last.state.pt",
        "checkpoints/previous.state.pt",
    }
    assert list((folder / "tb").glob("events*"))
    assert eh.load_recipe(folder / "config.yaml") == recipe()
    environment = json.loads((folder / "env.json").read_text())
    assert environment["packages"]["torch"] == torch.__version__.split("+")[0]
    assert sum(part["n"] for part in environment["data"].values()) == len(load_set("digits:0-6"))
    assert all(len(part["sha256"]) == 64 for part in environment["data"].values())


def test_metrics_are_the_same_in_jsonl_and_csv_and_best_is_the_best_validation(finished) -> None:
    rows = [json.loads(line) for line in (finished.folder / "metrics.jsonl").read_text().splitlines()]
    validation = [row for row in rows if row["split"] == "validation"]
    assert [row["epoch"] for row in validation] == [0, 1]
    assert finished.metrics["accuracy"] == max(row["accuracy"] for row in validation)
    train_rows = [row for row in rows if row["split"] == "train"]
    assert {"loss", "ce", "contrastive", "accuracy", "images_per_second", "lr"} <= train_rows[-1].keys()
    assert all(math.isclose(row["loss"], row["ce"] + row["contrastive"], rel_tol=1e-5) for row in train_rows)
    assert len((finished.folder / "metrics.csv").read_text().splitlines()) == len(rows) + 1


def test_load_model_gives_the_network_that_was_validated(finished) -> None:
    model = eh.load_model(finished.folder)
    assert not model.training
    splits = build.load_data(recipe(), "data", False)
    figures = classify.validate(model, splits.validation, torch.device("cpu"))
    assert figures["accuracy"] == pytest.approx(finished.metrics["accuracy"])
    assert figures["nll"] == pytest.approx(finished.metrics["nll"])
    same = eh.load_model(finished.folder / "checkpoints" / "best.safetensors")
    images = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(same(images), model(images))


def test_the_digest_of_weights_is_that_of_their_values(finished, tmp_path) -> None:
    model = eh.load_model(finished.folder)
    digest = weights_digest(model)
    save_weights(tmp_path / "w.safetensors", model, {**model.metadata, "more": "metadata"})
    assert weights_digest(eh.load_model(tmp_path / "w.safetensors")) == digest
    torch.nn.init.zeros_(model.head.bias)
    assert weights_digest(model) != digest


def test_weights_carry_their_metadata(finished) -> None:
    with safe_open(finished.folder / "checkpoints" / "best.safetensors", framework="pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata["architecture"])["depth"] == 10
    assert json.loads(metadata["classes"]) == [str(i) for i in range(7)]
    assert json.loads(metadata["image_shape"]) == [1, 8, 8]
    assert json.loads(metadata["normalisation"]) == {"mean": [0.5], "std": [0.5]}
    assert yaml.safe_load(metadata["recipe"])["name"] == "smoke"
    assert metadata["version"] == eh.__version__


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(finished, tmp_path) -> None:
    again = eh.train(recipe(), tmp_path / "b", progress=False)
    other = eh.train(recipe("seed=1"), tmp_path / "c", progress=False)
    state = eh.load_model(finished.folder).state_dict()
    for name, value in eh.load_model(again.folder).state_dict().items():
        torch.testing.assert_close(value, state[name], rtol=0, atol=0)
    assert not torch.equal(eh.load_model(other.folder).state_dict()["conv.weight"], state["conv.weight"])


def test_training_leaves_the_global_random_state_alone(tmp_path) -> None:
    before = torch.get_rng_state()
    eh.train(recipe("training.max_steps=1"), tmp_path / "a", progress=False)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("stop_at", [3, 7])
def test_an_interrupted_run_resumes_to_the_same_bits(stop_at: int, tmp_path, monkeypatch) -> None:
    """SIGINT within the first epoch and exactly at its end; dropout, noise, EMA and bank must go on as they were."""
    options = recipe("model.dropout=0.2", "data.augment.noise_std=0.1", "data.augment.pad=1", "training.ema=0.9")
    whole = eh.train(options, tmp_path / "whole", progress=False)
    step, calls = engine.train_step, []

    def interrupted(*args):
        calls.append(1)
        if len(calls) == stop_at:
            signal.raise_signal(signal.SIGINT)
        return step(*args)

    monkeypatch.setattr(engine, "train_step", interrupted)
    part = eh.train(options, tmp_path / "part", progress=False)
    assert part.signal == signal.SIGINT
    assert len(calls) == stop_at
    assert f"ebmhybrid train --resume {part.folder}" in (part.folder / "train.log").read_text()
    monkeypatch.setattr(engine, "train_step", step)
    resumed = eh.train(resume=part.folder, progress=False)
    assert resumed.signal is None
    assert resumed.metrics == whole.metrics
    ours, theirs = (load_state(run.folder / "checkpoints" / "last.state.pt")["parts"] for run in (resumed, whole))
    for part_name in ("model", "average", "objective"):
        for name, value in theirs[part_name].items():
            if isinstance(value, torch.Tensor):
                torch.testing.assert_close(ours[part_name][name], value, rtol=0, atol=0, msg=f"{part_name}.{name}")
    assert torch.equal(ours["random"][0]["generator"], theirs["random"][0]["generator"])
    kept, undisturbed = (
        [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
        for run in (resumed, whole)
    )
    assert [r["step"] for r in kept if r["split"] == "validation"] == [7, 14]
    # The figures of an epoch are those of all its steps.
    timeless = [
        [{key: value for key, value in row.items() if key != "images_per_second"} for row in rows]
        for rows in (kept, undisturbed)
    ]
    assert timeless[0] == timeless[1]


def test_resume_takes_more_epochs_and_needs_a_run(finished, tmp_path) -> None:
    import shutil

    folder = shutil.copytree(finished.folder, tmp_path / "copy")
    longer = eh.train(resume=folder, overrides=["training.epochs=3"], progress=False)
    assert eh.load_recipe(folder / "config.yaml").training.epochs == 3
    assert longer.metrics["accuracy"] >= finished.metrics["accuracy"]
    with pytest.raises(CheckpointError, match="nothing: no run to resume"):
        eh.train(resume=tmp_path / "nothing", progress=False)
    for wrong in ({}, {"recipe": recipe(), "resume": folder}, {"recipe": "smoke"}):
        with pytest.raises(EbmhybridError, match="either a recipe, as load_recipe returns it, or a run"):
            eh.train(**wrong)
    with pytest.raises(EbmhybridError, match="overrides belong to resume"):
        eh.train(recipe(), overrides=["seed=5"])


@pytest.mark.parametrize(
    "options",
    [
        ["optimizer={name: adam, lr: 1e-3}", "training.grad_clip=1.0"],
        ["optimizer={name: adamw, lr: 1e-3}", "optimizer.decay_norm_and_bias=false"],
        [
            "schedule={name: step, milestones: [1], gamma: 0.1}",
            "training.precision=bf16",
            "training.channels_last=true",
        ],
        ["schedule={name: one_cycle}", "training.precision=fp16"],
        ["objective={ce: {label_smoothing: 0.1}}", "data.augment.mixup_alpha=0.5", "schedule={name: constant}"],
        ["reference={families: [smooth, inversions], fraction: 0.5}"],
        ["data.train=shapes", "data.image_size=16", "model={name: torchvision/resnet18}"],
        ["data.train=digits", "data.channels=3", "data.image_size=16", "data.augment.flip=true"],
    ],
)
def test_options_train_and_learn(options, tmp_path) -> None:
    run = eh.train(recipe(*options, "training.max_steps=8", "training.epochs=9"), tmp_path / "a", progress=False)
    rows = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    train_rows = [row for row in rows if row["split"] == "train"]
    assert train_rows[-1]["step"] == 8
    assert all(math.isfinite(row["loss"]) for row in train_rows)
    model = eh.load_model(run.folder)
    shape = model.metadata["image_shape"]
    assert model(torch.rand(2, *shape)).shape == (2, len(model.metadata["classes"]))


def test_compiled_training_equals_eager(finished, tmp_path, monkeypatch) -> None:
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))  # inductor takes half a minute
    run = eh.train(recipe("training.compile=true"), tmp_path / "a", progress=False)
    assert run.metrics["nll"] == pytest.approx(finished.metrics["nll"], rel=1e-3)


def test_progress_lines_tell_parts_accuracy_speed_and_time_left(tmp_path, capsys) -> None:
    eh.train(recipe("training.max_steps=7"), tmp_path / "a")
    err = capsys.readouterr().err
    for word in ("epoch 1/1", "loss", "ce ", "contrastive", "validation", "images/s", "left 0m"):
        assert word in err


def test_a_non_finite_loss_stops_with_a_clear_error_and_keeps_the_last_good_weights(tmp_path, monkeypatch) -> None:
    step = engine.train_step

    def poisoned(parts, *args):
        loss, terms, correct = step(parts, *args)
        if parts.progress.step == 9:
            return loss * math.nan, terms, correct
        return loss, terms, correct

    monkeypatch.setattr(engine, "train_step", poisoned)
    with pytest.raises(
        TrainingError, match=r"not finite at step 10, epoch 2 \(ce = .*last\.safetensors.*optimizer\.lr"
    ):
        eh.train(recipe(), tmp_path / "a", progress=False)
    assert eh.load_model(tmp_path / "a" / "checkpoints" / "last.safetensors") is not None
    with pytest.raises(TrainingError, match=r"not finite.*no weights were saved yet"):
        eh.train(recipe("optimizer.lr=1e6", "schedule.name=constant"), tmp_path / "b", progress=False)


def test_nothing_is_written_when_the_data_or_the_model_cannot_be_used(tmp_path) -> None:
    for options, error in (
        (["data.train=cifar10"], DataError),
        (["data.train=digitz"], DataError),
        (["data.train=noise"], DataError),
        (["data.validation_fraction=0.5", "data.test_fraction=0.5"], DataError),
        (["model={name: torchvision/vit_b_16}"], RecipeError),
        (["model={name: torchvision/resnet1}"], RecipeError),
    ):
        with pytest.raises(error):
            eh.train(recipe(*options), tmp_path / "a", data_dir=tmp_path / "none", download=False, progress=False)
        assert list(tmp_path.iterdir()) == []
    with pytest.raises(EbmhybridError, match="device 'gpu9' cannot be used"):
        eh.train(recipe(), tmp_path / "a", device="gpu9")


def test_a_used_directory_is_never_written_into(tmp_path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="exists and is not an empty directory"):
        eh.train(recipe(), tmp_path / "a", progress=False)
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["notes.txt"]
    with pytest.raises(CheckpointError, match=r"cannot be made \(Not a directory\)"):
        eh.train(recipe(), tmp_path / "a" / "notes.txt" / "run", progress=False)


def test_damaged_and_foreign_weights_are_named(finished, tmp_path) -> None:
    good = (finished.folder / "checkpoints" / "best.safetensors").read_bytes()
    bad = tmp_path / "x.safetensors"
    for content in (b"", good[: len(good) // 2], b"\xff" * 64):
        bad.write_bytes(content)
        with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
            eh.load_model(bad)
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, bad)
    with pytest.raises(CheckpointError, match="names no ebmhybrid format"):
        eh.load_model(bad)
    save_file({"a": torch.zeros(1)}, bad, metadata={"format": "1", "architecture": '{"name": "wide_resnet"}'})
    with pytest.raises(CheckpointError, match="do not fit together"):
        eh.load_model(bad)
    with safe_open(finished.folder / "checkpoints" / "best.safetensors", framework="pt") as file:
        texts = file.metadata()
    for key, value in (("recipe", None), ("image_shape", None), ("image_shape", "[1]"), ("classes", "{")):
        changed = {k: v for k, v in {**texts, key: value}.items() if v is not None}
        save_file(eh.load_model(finished.folder).state_dict(), bad, metadata=changed)
        with pytest.raises(CheckpointError, match="do not fit together"):
            eh.load_model(bad)
    save_file({"a": torch.zeros(1)}, bad, metadata={"format": "1", "architecture": "{"})
    with pytest.raises(CheckpointError, match="do not fit together"):
        eh.load_model(bad)
    for missing in (tmp_path, tmp_path / "none"):
        with pytest.raises(CheckpointError, match=r"no run|no such"):
            eh.load_model(missing)
    with pytest.raises(CheckpointError, match="no training state, so nothing to resume"):
        load_state(tmp_path / "none.pt")
    torch.save({"format": "0"}, tmp_path / "old.pt")
    with pytest.raises(CheckpointError, match="no training state of format"):
        load_state(tmp_path / "old.pt")
    (tmp_path / "cut.pt").write_bytes(b"PK\x03\x04")
    with pytest.raises(CheckpointError, match="cannot be read as a training state"):
        load_state(tmp_path / "cut.pt")


def test_a_failed_write_leaves_the_former_file(tmp_path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("former")

    for kind in (OSError, SafetensorError, RuntimeError):

        def fail(temporary: Path, kind: type[Exception] = kind) -> None:
            temporary.write_text("half")
            raise kind("disk full")

        with pytest.raises(CheckpointError, match=r"a\.txt: cannot be written \(disk full\)"):
            write_atomically(path, fail)
        assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
        assert path.read_text() == "former"


def test_one_process_at_a_time_trains_in_a_directory(tmp_path, monkeypatch) -> None:
    step, refused = engine.train_step, []

    def meanwhile(*args):
        if not refused:
            with (
                pytest.raises(CheckpointError, match="another process is training there") as caught,
                locked(tmp_path / "a"),
            ):
                pass
            refused.append(caught)
        return step(*args)

    monkeypatch.setattr(engine, "train_step", meanwhile)
    eh.train(recipe("training.max_steps=2"), tmp_path / "a", progress=False)
    assert refused
    with locked(tmp_path / "a"):
        pass
    assert not (tmp_path / "a" / ".lock").exists()


def test_a_run_cut_short_by_max_steps_goes_on_within_its_epoch(tmp_path) -> None:
    options = ["schedule.name=constant", "training.epochs=1"]
    whole = eh.train(recipe(*options, "training.max_steps=6"), tmp_path / "whole", progress=False)
    part = eh.train(recipe(*options, "training.max_steps=2"), tmp_path / "part", progress=False)
    again = eh.train(resume=part.folder, overrides=["training.max_steps=6"], progress=False)
    ours, theirs = (
        eh.load_model(run.folder / "checkpoints" / "last.safetensors").state_dict() for run in (again, whole)
    )
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=0, atol=0)


def test_default_folders_of_the_same_second_differ(tmp_path, monkeypatch) -> None:
    assert len({fresh_folder(tmp_path) for _ in range(5)}) == 5


@pytest.mark.parametrize(
    "damage",
    [
        lambda state: state.pop("device"),
        lambda state: state.pop("data"),
        lambda state: state.update(parts=[1]),
        lambda state: state["parts"].update(model=3),
        lambda state: state["parts"]["random"][0].update(generator=torch.zeros(3)),
        lambda state: state["parts"].update(batch_sizes=[1]),
        lambda state: state["parts"]["meter"].update(sums=3),
        lambda state: state["parts"]["progress"].update(more=1),
    ],
)
def test_a_damaged_training_state_is_one_message(damage, finished, tmp_path) -> None:
    import shutil

    folder = shutil.copytree(finished.folder, tmp_path / "copy")
    state = load_state(folder / "checkpoints" / "last.state.pt")
    damage(state)
    torch.save(state, folder / "checkpoints" / "last.state.pt")
    with pytest.raises(CheckpointError, match="does not fit its recipe"):
        eh.train(resume=folder, progress=False)


def test_learning_rate_schedules() -> None:
    step = Schedule(name="step", milestones=[2, 3], gamma=0.1, warmup_steps=4)
    factors = [lr_factor(s, step, 40, 10) for s in (0, 3, 4, 19, 20, 30)]
    assert factors == pytest.approx([0.25, 1, 1, 1, 0.1, 0.01])
    cosine = [lr_factor(s, Schedule(name="cosine"), 100, 10) for s in (0, 50, 100)]
    assert cosine == pytest.approx([1, 0.5, 0])
    weights = torch.nn.Linear(2, 2)
    optimizer = build_optimizer(weights, Optimizer(lr=0.2, decay_norm_and_bias=False))
    assert [group["weight_decay"] for group in optimizer.param_groups] == [5e-4, 0.0]
    scheduler = build_scheduler(optimizer, Schedule(name="one_cycle"), [20], 10)
    rates = []
    for _ in range(20):
        optimizer.step()
        scheduler.step()
        rates.append(optimizer.param_groups[0]["lr"])
    assert max(rates) == pytest.approx(0.2, rel=0.02)
    assert rates[-1] < 1e-3
