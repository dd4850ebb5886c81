"""Each setting of a recipe reaches what it names: one test a setting that fails if the engine ignores it."""

from __future__ import annotations

import csv
import json

import pytest
import torch
from torch import nn

import ebmhybrid as eh
from ebmhybrid.training import build, classify, engine
from ebmhybrid.training.build import build_parts, load_data
from ebmhybrid.training.checkpoint import load_state
from ebmhybrid.training.log import RunLog
from ebmhybrid.training.setup import Parts

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def splits():
    return load_data(eh.load_recipe("smoke"), "data", False)


def parts_of(splits, *overrides: str) -> Parts:
    return build_parts(eh.load_recipe("smoke", list(overrides)), splits, CPU)


def step_of(parts: Parts, n: int = 32) -> dict[str, torch.Tensor]:
    """One training step; returns what the network was given and what it gave."""
    seen: dict[str, torch.Tensor] = {}

    def forward(images: torch.Tensor) -> torch.Tensor:
        seen["images"] = images
        seen["logits"] = parts.model(images)
        return seen["logits"]

    train = parts.splits.train
    engine.train_step(parts, forward, train.images[:n].float() / 255, train.labels[:n])
    return seen


def test_augmentation_reaches_the_images(splits) -> None:
    plain = step_of(parts_of(splits))["images"]
    assert torch.equal(plain, splits.train.images[:32].float() / 255)
    for option in ("pad=2", "flip=true", "noise_std=0.1"):
        changed = step_of(parts_of(splits, f"data.augment.{option}"))["images"]
        assert changed.shape == plain.shape
        assert not torch.equal(changed, plain), option


def test_mixup_mixes_images_and_targets(splits, monkeypatch) -> None:
    parts = parts_of(splits, "data.augment.mixup_alpha=1.0")
    targets = []
    monkeypatch.setattr(type(parts.objective), "forward", _recording(type(parts.objective).forward, targets))
    images = step_of(parts)["images"]
    assert not torch.equal(images, splits.train.images[:32].float() / 255)
    assert targets[0].shape == (32, 7)
    assert ((targets[0] > 0).sum(1) == 2).any()


def _recording(forward, targets):
    def wrapper(self, logits, y, *others, **more):
        targets.append(y)
        return forward(self, logits, y, *others, **more)

    return wrapper


@pytest.mark.parametrize(("fraction", "extra"), [(0.5, 16), (1.25, 40)])
def test_reference_images_share_the_forward_pass_and_enter_the_columns(splits, fraction, extra) -> None:
    parts = parts_of(splits, f"reference={{families: [inversions], fraction: {fraction}}}")
    seen = step_of(parts)
    assert seen["images"].shape[0] == 32 + extra
    logits = seen["logits"].detach()
    y = splits.train.labels[:32]
    hdge = parts.objective.hdge
    assert hdge is not None
    hdge.eval()
    _, terms = hdge(logits[:32], y, reference=logits[32:], return_terms=True)
    _, without = hdge(logits[:32], y, return_terms=True)
    assert terms["contrastive"] > without["contrastive"]


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_precision_is_that_of_the_convolutions(splits, precision, dtype) -> None:
    parts = parts_of(splits, f"training.precision={precision}")
    dtypes = set()
    for module in parts.model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda m, i, out: dtypes.add(out.dtype))
    step_of(parts)
    assert dtypes == {dtype}
    assert all(p.dtype == torch.float32 for p in parts.model.parameters())


def test_fp16_scales_the_gradients(splits) -> None:
    assert parts_of(splits, "training.precision=fp16").scaler.is_enabled()
    assert not parts_of(splits, "training.precision=bf16").scaler.is_enabled()


def test_channels_last_is_the_layout_of_images_and_weights() -> None:
    rgb = load_data(eh.load_recipe("smoke", ["data.channels=3"]), "data", False)
    parts = parts_of(rgb, "training.channels_last=true")
    images = step_of(parts)["images"]
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert not images.is_contiguous()
    weight = parts.model.stages[0][0].conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)


def test_clipping_bounds_the_gradient_norm(splits) -> None:
    norms = {}
    for clip in ("null", "0.01"):
        parts = parts_of(splits, f"training.grad_clip={clip}")
        step_of(parts)
        norms[clip] = torch.stack([p.grad.norm() for p in parts.model.parameters() if p.grad is not None]).norm()
    assert norms["null"] > 0.1
    assert norms["0.01"] == pytest.approx(0.01, rel=1e-3)


def test_the_average_is_the_exponential_one_and_is_what_is_kept(splits) -> None:
    parts = parts_of(splits, "training.ema=0.75")
    assert parts.average is not None
    step_of(parts)
    first = parts.model.head.weight.detach().clone()
    step_of(parts)
    second = parts.model.head.weight.detach().clone()
    assert parts.deployed is parts.average.module
    torch.testing.assert_close(parts.deployed.head.weight.detach(), 0.75 * first + 0.25 * second)
    assert parts_of(splits).deployed is not None


def test_optimizers_get_their_own_options(splits) -> None:
    adam = parts_of(splits, "optimizer={name: adam, lr: 0.01, betas: [0.5, 0.9], weight_decay: 0.1}").optimizer
    adamw = parts_of(splits, "optimizer={name: adamw, lr: 0.02}").optimizer
    sgd = parts_of(splits, "optimizer={name: sgd, lr: 0.3, momentum: 0.6, nesterov: true}").optimizer
    assert type(adam) is torch.optim.Adam
    assert (adam.param_groups[0]["betas"], adam.param_groups[0]["weight_decay"]) == ((0.5, 0.9), 0.1)
    assert type(adamw) is torch.optim.AdamW
    assert adamw.param_groups[0]["lr"] == 0.02
    assert type(sgd) is torch.optim.SGD
    assert (sgd.param_groups[0]["momentum"], sgd.param_groups[0]["nesterov"]) == (0.6, True)
    one_cycle = parts_of(splits, "schedule={name: one_cycle}", "optimizer.momentum=0.5")
    step_of(one_cycle)
    assert one_cycle.optimizer.param_groups[0]["momentum"] == 0.5


def test_cross_entropy_term_uses_its_weight_and_smoothing(splits) -> None:
    logits, y = torch.randn(8, 7), torch.arange(7).repeat(2)[:8]
    objective = parts_of(splits, "objective={ce: {weight: 2.0, label_smoothing: 0.2}}").objective
    loss, terms = objective(logits, y)
    torch.testing.assert_close(terms["ce"], nn.functional.cross_entropy(logits, y, label_smoothing=0.2))
    torch.testing.assert_close(loss, 2 * terms["ce"])


def run(tmp_path, *overrides: str) -> eh.training.Run:
    options = ["training.max_steps=null", "training.batch_size=128", "training.log_every=1", *overrides]
    return eh.train(eh.load_recipe("smoke", options), tmp_path / "run", progress=False)


def rows_of(finished: eh.training.Run, split: str) -> list[dict]:
    rows = [json.loads(line) for line in (finished.folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["split"] == split]


def test_the_learning_rate_follows_the_schedule(tmp_path) -> None:
    finished = run(tmp_path, "schedule={name: step, milestones: [1], gamma: 0.1, warmup_steps: 2}", "optimizer.lr=0.2")
    rates = [row["lr"] for row in rows_of(finished, "train")]  # after each step: the next one's rate
    assert rates == pytest.approx([0.2] * 6 + [0.02] * 8)
    with (finished.folder / "metrics.csv").open() as file:
        assert [float(row["lr"]) for row in csv.DictReader(file) if row["lr"]] == pytest.approx(rates)


def test_best_is_the_best_epoch_and_not_the_last(tmp_path, monkeypatch) -> None:
    figures = iter([{"accuracy": 0.5, "nll": 1.0}, {"accuracy": 0.7, "nll": 0.9}, {"accuracy": 0.7, "nll": 0.8}])
    later = iter([{"accuracy": 0.7, "nll": 0.85}, {"accuracy": 0.6, "nll": 0.1}])
    monkeypatch.setattr(classify, "validate", lambda *args: next(figures, None) or next(later))
    finished = run(tmp_path, "training.epochs=5")
    assert finished.metrics == {"accuracy": 0.7, "nll": 0.8, "step": 21}
    best, last = (eh.load_model(finished.folder / "checkpoints" / f"{n}.safetensors") for n in ("best", "last"))
    assert not torch.equal(best.state_dict()["head.weight"], last.state_dict()["head.weight"])


def test_tensorboard_holds_the_same_figures(tmp_path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    finished = run(tmp_path)
    events = EventAccumulator(str(finished.folder / "tb")).Reload()
    for key in ("loss", "lr", "accuracy"):
        ours = [row[key] for row in rows_of(finished, "train")]
        assert [event.value for event in events.Scalars(f"train/{key}")] == pytest.approx(ours)
    assert [event.step for event in events.Scalars("validation/nll")] == [7, 14]


def test_a_terminal_gets_a_bar_with_the_parts_and_the_log_no_escape(tmp_path, monkeypatch) -> None:
    import io

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    eh.train(eh.load_recipe("smoke", ["training.log_every=1"]), tmp_path / "run")
    shown = terminal.getvalue()
    assert "6/6" in shown
    for word in ("loss=", "contrastive=", "accuracy=", "images/s=", "step/s"):
        assert word in shown
    assert "\r" not in (tmp_path / "run" / "train.log").read_text()


def test_compile_wraps_the_forward_pass(tmp_path, monkeypatch) -> None:
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda module: compiled.append(module) or module)
    run(tmp_path, "training.compile=true", "training.epochs=1")
    assert len(compiled) == 1


def test_a_half_written_metrics_line_does_not_keep_a_run_from_resuming(tmp_path) -> None:
    finished = run(tmp_path)
    with (finished.folder / "metrics.jsonl").open("a") as file:
        file.write('{"split": "train", "st')
    resumed = eh.train(resume=finished.folder, overrides=["training.epochs=3"], progress=False)
    assert [row["step"] for row in rows_of(resumed, "validation")] == [7, 14, 21]


def test_a_signal_at_the_very_last_step_still_validates(tmp_path, monkeypatch) -> None:
    import signal

    step = engine.train_step

    def interrupted(parts, *args):
        if parts.progress.step == 3:
            signal.raise_signal(signal.SIGTERM)
        return step(parts, *args)

    monkeypatch.setattr(engine, "train_step", interrupted)
    finished = run(tmp_path, "training.max_steps=4")
    assert finished.metrics["step"] == 4
    assert (finished.folder / "checkpoints" / "best.safetensors").is_file()


def test_a_second_signal_ends_at_once() -> None:
    import signal

    from ebmhybrid.training.interrupt import Interrupt

    with Interrupt() as interrupt:
        signal.raise_signal(signal.SIGINT)
        assert interrupt.signal == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_second_signal_that_a_launcher_passes_on_is_the_first_one(monkeypatch) -> None:
    import signal

    from ebmhybrid.training import interrupt

    now = [100.0]
    monkeypatch.setattr(interrupt.time, "monotonic", lambda: now[0])
    with interrupt.Interrupt(patience=5.0) as asked:
        signal.raise_signal(signal.SIGTERM)
        now[0] = 104.9
        signal.raise_signal(signal.SIGINT)
        assert asked.signal == signal.SIGTERM
        now[0] = 105.1
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_run_log_forgets_rows_that_will_be_taken_again(tmp_path) -> None:
    lines = [json.dumps({"split": "train", "step": s, "epoch": 0}) for s in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    log = RunLog(tmp_path, 5, 0, 2, False)
    log.close()
    assert [row["step"] for row in log.rows] == [1, 2]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2
    # Of earlier epochs all stay: their steps may have been counted in batches of another size.
    later = RunLog(tmp_path, 5, 1, 1, False)
    later.close()
    assert [row["step"] for row in later.rows] == [1, 2]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optimizer.lr=0.001"], r"cannot change on resuming: optimizer\.lr is 0\.1, not 0\.001"),
        (["training.batch_size=256"], r"max_steps counts batches of 128, so training\.batch_size cannot change"),
        (["seed=3"], "seed is 0, not 3"),
        (["model.width=2"], r"model\.width is 1, not 2"),
        (["data.split_seed=1"], r"data\.split_seed"),
        (["objective.hdge.temperature=0.5"], r"temperature is 1\.0, not 0\.5"),
    ],
)
def test_what_would_have_no_effect_on_a_resumed_run_is_refused(overrides, message, tmp_path) -> None:
    finished = run(tmp_path, "training.max_steps=1")
    config = (finished.folder / "config.yaml").read_text()
    with pytest.raises(eh.errors.CheckpointError, match=message):
        eh.train(resume=finished.folder, overrides=overrides, progress=False)
    assert (finished.folder / "config.yaml").read_text() == config


def test_a_one_cycle_run_cannot_be_stretched_and_another_device_is_named(tmp_path) -> None:
    finished = run(tmp_path, "schedule={name: one_cycle}", "training.max_steps=3")
    with pytest.raises(eh.errors.CheckpointError, match="one_cycle schedule cannot be made longer"):
        eh.train(resume=finished.folder, overrides=["training.max_steps=5"], progress=False)
    path = finished.folder / "checkpoints" / "last.state.pt"
    torch.save({**load_state(path), "device": "cuda"}, path)
    with pytest.raises(eh.errors.CheckpointError, match="made on cuda"):
        eh.train(resume=finished.folder, progress=False)
    torch.save({**load_state(path), "data": "other", "device": "cpu"}, path)
    with pytest.raises(eh.errors.CheckpointError, match="training data is not that of the run"):
        eh.train(resume=finished.folder, progress=False)
    torch.save(
        {**load_state(path), "data": build.load_data(eh.load_recipe("smoke"), "data", False).train.digest()}, path
    )
    torch.save({**load_state(path), "parts": {}}, path)
    with pytest.raises(eh.errors.CheckpointError, match="does not fit its recipe"):
        eh.train(resume=finished.folder, progress=False)


def test_padding_that_does_not_fit_is_refused_before_anything_is_written(tmp_path) -> None:
    with pytest.raises(eh.errors.RecipeError, match=r"data\.augment\.pad = 8: must be less than the image size 8"):
        run(tmp_path, "data.augment.pad=8")
    assert not (tmp_path / "run").exists()
