"""Going on with a run: from any step, with other batches, from the state before the last, or by `auto`."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ebmhybrid as eh
from ebmhybrid.errors import CheckpointError, UsageError
from ebmhybrid.training import engine
from ebmhybrid.training.checkpoint import load_state, weights_digest
from ebmhybrid.training.optimization import lr_factor
from ebmhybrid.training.step import train_step

OPTIONS = ["training.batch_size=128", "training.max_steps=null", "training.epochs=2", "training.log_every=3"]


class StoppedError(BaseException):
    """The process is gone, as far as the run can tell."""


def recipe(*overrides: str) -> Any:
    return eh.load_recipe("smoke", [*OPTIONS, *overrides])


def stopped_at(monkeypatch: pytest.MonkeyPatch, step: int, out: Path, *overrides: str, **arguments: Any) -> Path:
    """A run that dies before it takes this step, without any chance to save."""

    def dying(parts: Any, *args: Any) -> Any:
        if parts.progress.step == step:
            raise StoppedError
        return train_step(parts, *args)

    with monkeypatch.context() as patch:
        patch.setattr(engine, "train_step", dying)
        with pytest.raises(StoppedError):
            eh.train(recipe(*overrides), out, progress=False, **arguments)
    return out


def state_of(run: Path) -> dict[str, Any]:
    return load_state(run / "checkpoints" / "last.state.pt")["parts"]


def rows_of(run: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "images_per_second"} for row in rows]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return eh.train(recipe(), tmp_path_factory.mktemp("runs") / "whole", progress=False).folder


def same_run(first: Path, second: Path) -> None:
    assert weights_digest(eh.load_model(first)) == weights_digest(eh.load_model(second))
    ours, theirs = state_of(first), state_of(second)
    for part in ("model", "objective", "optimizer", "random", "progress"):
        torch.testing.assert_close(plain(ours[part]), plain(theirs[part]), rtol=0, atol=0)
    assert rows_of(first) == rows_of(second)


def plain(value: Any) -> Any:
    """Without None and text, which torch does not compare."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items() if not (item is None or isinstance(item, str))}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value if not (item is None or isinstance(item, str))]
    return value


@pytest.mark.parametrize(
    ("step", "options"), [(2, []), (5, ["training.save_every=2"]), (12, ["training.save_every=1"])]
)
def test_a_run_that_died_goes_on_from_what_it_saved_last(step, options, whole, tmp_path, monkeypatch) -> None:
    """Its rows are those of the undisturbed run too: an epoch's means are of all of its steps."""
    run = stopped_at(monkeypatch, step, tmp_path / "run", *options)
    saved_last = state_of(run)["progress"]["step"]
    assert saved_last == {2: 0, 5: 4, 12: 12}[step]
    eh.train(resume=run, progress=False)
    same_run(run, whole)


def test_a_run_without_a_state_begins_at_step_0(whole, tmp_path, monkeypatch, capsys) -> None:
    run = stopped_at(monkeypatch, 2, tmp_path / "run")
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").mkdir()
    eh.train(resume=run)
    assert "nothing was saved before it stopped: it begins at step 0" in capsys.readouterr().err
    same_run(run, whole)


def test_a_damaged_state_gives_way_to_the_one_before(whole, tmp_path, monkeypatch, capsys) -> None:
    run = stopped_at(monkeypatch, 9, tmp_path / "run", "training.save_every=2")
    path = run / "checkpoints" / "last.state.pt"
    path.write_bytes(path.read_bytes()[:-1000])
    eh.train(resume=run)
    said = capsys.readouterr().err
    assert "last.state.pt: cannot be read" in said
    assert "going on from previous.state.pt of step 7" in said  # the epoch's end
    same_run(run, whole)


def test_batches_of_another_size_go_on_at_the_same_place(whole, tmp_path, monkeypatch, capsys) -> None:
    run = stopped_at(monkeypatch, 5, tmp_path / "run", "training.save_every=5", "training.ema=0.9")
    before = state_of(run)
    restored: list[Any] = []
    step = train_step

    def watched(parts: Any, *args: Any) -> Any:
        if not restored:
            rate = parts.optimizer.param_groups[0]["lr"]
            bank = parts.objective.hdge.bank.rows.clone()
            restored.append((parts.progress.step, parts.progress.step_in_epoch, rate, bank, parts.meter.images))
        return step(parts, *args)

    monkeypatch.setattr(engine, "train_step", watched)
    done = eh.train(resume=run, overrides=["training.batch_size=48"])
    ((at, within, rate, bank, images),) = restored
    # 885 images are 7 batches of 128 (the last of 117) and 19 of 48 (the last of 21): 5 x 128 = 640 = 13 x 48 + 16
    assert (at, within, images) == (13, 13, 640)
    assert rate == pytest.approx(0.1 * lr_factor(13, recipe().schedule, 38, 19))
    assert torch.equal(bank, before["objective"]["hdge.bank.rows"])
    said = capsys.readouterr().err
    assert "batches of 128 images are now of 48: step 5 of 7 an epoch is step 13 of 19" in said
    assert "16 images of this epoch come again" in said
    validation = [row for row in rows_of(run) if row["split"] == "validation"]
    assert [row["step"] for row in validation] == [19, 38]
    assert done.metrics["step"] in (19, 38)
    assert eh.load_recipe(run / "config.yaml").training.batch_size == 48
    cycle = stopped_at(monkeypatch, 2, tmp_path / "cycle", "schedule={name: one_cycle}")
    with pytest.raises(CheckpointError, match="one_cycle schedule cannot be made longer"):
        eh.train(resume=cycle, overrides=["training.batch_size=48"], progress=False)


def test_rows_of_epochs_in_other_batches_are_kept(tmp_path, monkeypatch) -> None:
    run = stopped_at(monkeypatch, 8, tmp_path / "run")
    former = [row for row in rows_of(run) if row["epoch"] == 0]
    eh.train(resume=run, overrides=["training.batch_size=256"], progress=False)
    assert rows_of(run)[: len(former)] == former
    assert [row["step"] for row in rows_of(run) if row["split"] == "validation"] == [7, 8]


def test_the_random_states_of_numpy_and_python_are_the_runs_own(tmp_path, monkeypatch) -> None:
    """A user's model may draw from them; what it draws is the same after a resume, and the caller notices nothing."""
    drawn: list[tuple[float, float]] = []

    def drawing(parts: Any, *args: Any) -> Any:
        drawn.append((random.random(), float(np.random.rand())))  # noqa: NPY002
        return train_step(parts, *args)

    monkeypatch.setattr(engine, "train_step", drawing)
    before = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    eh.train(recipe("training.max_steps=4"), tmp_path / "a", progress=False)
    eh.train(recipe("training.max_steps=2"), tmp_path / "b", progress=False)
    eh.train(resume=tmp_path / "b", overrides=["training.max_steps=4"], progress=False)
    assert drawn[:4] == drawn[4:]
    assert len(set(drawn)) == 4
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before  # noqa: NPY002


def test_auto_goes_on_with_the_run_in_out_or_begins_it(whole, tmp_path, monkeypatch) -> None:
    run = tmp_path / "run"
    again = {"out": run, "resume": "auto", "progress": False}
    stopped_at(monkeypatch, 9, run, resume="auto")
    eh.train(recipe(), **again)
    same_run(run, whole)
    finished = eh.train(recipe(), **again)  # nothing is left to do
    assert finished.metrics["step"] in (7, 14)
    with pytest.raises(CheckpointError, match=r"cannot change on resuming: seed is 0, not 1"):
        eh.train(recipe("seed=1"), **again)
    with pytest.raises(UsageError, match="either a recipe"):
        eh.train(resume="auto")


def test_auto_without_out_takes_the_newest_unfinished_run_of_the_recipe(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    first = eh.train(recipe("training.max_steps=2"), resume="auto", progress=False).folder
    second = eh.train(recipe("training.max_steps=2"), resume="auto", progress=False).folder
    assert first != second  # the first was finished

    def dying(*args: Any) -> Any:
        raise StoppedError

    with monkeypatch.context() as patch:
        patch.setattr(engine, "train_step", dying)
        with pytest.raises(StoppedError):
            eh.train(recipe("training.max_steps=2"), resume="auto", progress=False)
    runs = set(Path("runs", "smoke").iterdir())
    third = eh.train(recipe("training.max_steps=2"), resume="auto", progress=False).folder
    assert set(Path("runs", "smoke").iterdir()) == runs
    assert len(runs) == 3
    assert third not in (first, second)


@pytest.mark.parametrize("parts_of_a_batch", [2, 3])
def test_accumulated_gradients_are_those_of_the_whole_batch(parts_of_a_batch: int, tmp_path) -> None:
    """Of a loss that looks at one image at a time; the meter and the number of updates know of batches only."""
    options = ["objective.hdge=null", "objective.ce.weight=1.0", "model.norm=none", "training.batch_size=96"]
    options += ["optimizer.lr=0.01"]
    runs = [
        eh.train(recipe(*options, f"training.accumulate={parts}"), tmp_path / str(parts), progress=False)
        for parts in (1, parts_of_a_batch)
    ]
    first, second = (state_of(run.folder) for run in runs)
    torch.testing.assert_close(first["model"], second["model"], rtol=1e-3, atol=1e-4)
    assert first["progress"]["step"] == second["progress"]["step"] == 20
    for one, other in zip(*(rows_of(run.folder) for run in runs), strict=True):
        assert one["step"] == other["step"]
        assert one.get("loss", 0) == pytest.approx(other.get("loss", 0), rel=1e-3)


def test_what_is_contrasted_is_within_a_part_of_the_batch(tmp_path) -> None:
    options = ["objective.hdge.negatives=batch", "training.max_steps=1", "training.log_every=1", "model.norm=none"]
    losses = {}
    for parts in (1, 4):
        run = eh.train(recipe(*options, f"training.accumulate={parts}"), tmp_path / str(parts), progress=False)
        losses[parts] = rows_of(run.folder)[0]
    assert losses[1]["ce"] == pytest.approx(losses[4]["ce"], rel=1e-5)
    # Against a quarter of the images: log 4 less where all score alike.
    assert losses[1]["contrastive"] - losses[4]["contrastive"] == pytest.approx(np.log(4), abs=0.1)


def test_a_recipe_that_was_cut_or_edited_is_refused(whole, tmp_path) -> None:
    """Defaults would fill what is missing, and an edited value would not be the one the run was begun with."""
    run = shutil.copytree(whole, tmp_path / "run")
    config = run / "config.yaml"
    text = config.read_text()
    for changed in (text[: len(text) // 2], text.replace("lr: 0.1", "lr: 0.7"), ""):
        config.write_text(changed)
        with pytest.raises(CheckpointError, match=r"config\.yaml: is not as the run wrote it"):
            eh.train(resume=run, progress=False)
    config.write_text(text)
    assert eh.train(resume=run, progress=False).metrics


def test_a_run_whose_state_is_gone_does_not_begin_over_its_own_weights(whole, tmp_path) -> None:
    run = shutil.copytree(whole, tmp_path / "run")
    for state in (run / "checkpoints").glob("*.state.pt"):
        state.unlink()
    with pytest.raises(CheckpointError, match="its training state is gone"):
        eh.train(resume=run, progress=False)
    assert weights_digest(eh.load_model(run)) == weights_digest(eh.load_model(whole))


def test_another_way_to_accumulate_is_said(tmp_path, monkeypatch, capsys) -> None:
    run = stopped_at(monkeypatch, 3, tmp_path / "run", "training.save_every=2")
    eh.train(resume=run, overrides=["training.accumulate=2"])
    assert "a batch was taken in 1 parts and now is in 2" in capsys.readouterr().err
