"""Training by samples: the chains, what they leave alone, and the way back when training runs away."""

from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner

import ebmhybrid as eh
from ebmhybrid.cli import main
from ebmhybrid.errors import CheckpointError, RecipeError, TrainingError
from ebmhybrid.losses.jem import jem_log_density
from ebmhybrid.sampling import langevin_step, proximal_sgld
from ebmhybrid.schema import Guard
from ebmhybrid.training import classify, engine, guard, step
from ebmhybrid.training.build import build_parts, load_data
from ebmhybrid.training.checkpoint import load_state, save_state
from ebmhybrid.training.sampler import Sampler
from ebmhybrid.training.setup import Parts

CPU = torch.device("cpu")
PLAIN = ["model={depth: 10, width: 1, norm: none, activation: silu}", "optimizer={name: adam, lr: 0.001}"]
JEM = "objective={{ce: {{}}, jem: {{steps: 2, buffer_size: 70{}}}}}"


def recipe(*options: str, jem: str = ""):
    return eh.load_recipe("smoke", [*PLAIN, JEM.format(jem and ", " + jem), *options])


@pytest.fixture(scope="module")
def splits():
    return load_data(recipe(), "data", False)


def parts_of(splits, *options: str, jem: str = "") -> Parts:
    return build_parts(recipe(*options, jem=jem), splits, CPU)


def batch_of(parts: Parts, n: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    train = parts.splits.train
    return train.images[:n].float() / 255, train.labels[:n]


@pytest.mark.parametrize("jem", ["reinit: 0.5", "chains: class", "target: conditional", "clip: 0.1, clamp: false"])
def test_chains_are_langevin_steps_from_the_buffer_by_the_recipes_settings(splits, jem: str) -> None:
    parts = parts_of(splits, jem=jem)
    sampler, term = parts.sampler, parts.sampler.term
    labels = torch.arange(14) % 7
    twin = torch.Generator().manual_seed(5)
    start, slots = sampler.buffer.draw(labels, twin)
    x = start
    classes = labels if "class" in jem or "conditional" in jem else None
    for _ in range(2):
        noise = term.noise_std * torch.randn(x.shape, generator=twin)
        bounds = (0.0, 1.0) if term.clamp else None
        density = lambda images: jem_log_density(parts.model(images), classes)  # noqa: E731
        x = langevin_step(density, x, 0.5 * term.step_size, noise, clip=term.clip, clamp=bounds)
    found = sampler(parts.model, parts.model, labels, torch.Generator().manual_seed(5), scale=0.5)
    torch.testing.assert_close(found, x)
    assert torch.equal(sampler.buffer.images[slots[-1]], found[-1])
    assert (sampler.buffer.reinit, len(sampler.buffer)) == (0.5 if "reinit" in jem else 0.05, 70)
    assert not found.requires_grad
    assert all(weight.grad is None for weight in parts.model.parameters())


def test_inner_steps_are_proximal_ones_through_the_nets_first_layer(splits) -> None:
    parts = parts_of(splits, jem="inner_steps: 2, inner_step_size: 0.3, clip: 0.5")
    labels, term = torch.arange(14) % 7, parts.sampler.term
    start, _ = parts.sampler.buffer.draw(labels, twin := torch.Generator().manual_seed(5))
    wanted = proximal_sgld(
        parts.model.stem,
        lambda u: jem_log_density(parts.model.after_stem(u)),
        start,
        term.steps,
        term.step_size / 2,
        term.noise_std,
        inner_steps=2,
        inner_step_size=0.15,
        clip=0.5,
        generator=twin,
    )
    found = parts.sampler(parts.model, parts.model, labels, torch.Generator().manual_seed(5), scale=0.5)
    torch.testing.assert_close(found, wanted)


def test_the_first_filling_is_the_runs_own(splits) -> None:
    first, again = parts_of(splits).sampler.buffer.images, parts_of(splits).sampler.buffer.images
    assert torch.equal(first, again)
    wider = parts_of(splits, "model={depth: 10, width: 2, norm: none}")  # draws other weights, and the same starts
    assert torch.equal(first, wider.sampler.buffer.images)
    assert not torch.equal(first, parts_of(splits, "seed=1").sampler.buffer.images)


def test_class_chains_stay_in_their_classes_and_pooled_ones_go_anywhere(splits) -> None:
    labels = torch.full((200,), 3)
    by_class, pooled = (parts_of(splits, jem=jem).sampler.buffer for jem in ("chains: class", ""))
    assert set((by_class.draw(labels)[1] // 10).tolist()) == {3}
    assert len(set((pooled.draw(labels)[1] // 10).tolist())) == 7


def test_labels_are_the_batchs_own_for_a_conditional_target_and_uniform_otherwise(splits) -> None:
    labels = torch.zeros(700, dtype=torch.int64)
    assert torch.equal(parts_of(splits, jem="target: conditional").sampler.labels_for(labels, None), labels)
    counts = parts_of(splits).sampler.labels_for(labels, torch.Generator().manual_seed(0)).bincount(minlength=7)
    assert counts.min() > 60


def test_the_net_samples_in_evaluation_mode_and_goes_on_in_the_one_it_was_in(splits) -> None:
    parts = parts_of(splits, "model={depth: 10, width: 1, norm: batch, dropout: 0.5}")
    before, modes = parts.model.state_dict(), []
    before = {name: value.clone() for name, value in before.items()}

    def forward(images: torch.Tensor) -> torch.Tensor:
        modes.append(parts.model.training)
        return parts.model(images)

    parts.model.train()
    parts.sampler(parts.model, forward, torch.zeros(4, dtype=torch.int64), None)
    assert modes == [False, False]
    assert parts.model.training
    assert all(torch.equal(value, before[name]) for name, value in parts.model.state_dict().items())


def test_gaussian_starts_look_like_their_class(splits) -> None:
    buffer = parts_of(splits, jem="start: gaussian, chains: class").sampler.buffer
    images, labels = splits.train.images.float() / 255, splits.train.labels
    means = torch.stack([images[labels == c].mean(0) for c in range(7)]).flatten(1)
    nearest = torch.cdist(buffer.images.flatten(1), means).argmin(1)
    assert (nearest == buffer.labels).float().mean() > 0.8


def test_the_term_compares_samples_with_the_data_as_the_net_sees_it(splits, monkeypatch) -> None:
    """Augmented by default, as it is with augment: false."""
    for jem, plain in (("", False), ("augment: false", True)):
        parts = parts_of(splits, "data.augment={noise_std: 0.2}", jem=jem)
        seen = []

        def forward(images, parts=parts, seen=seen):
            seen.append(images.detach())
            return parts.model(images)

        x, y = batch_of(parts)
        _, terms, _ = step.train_step(parts, forward, x, y)
        batches = seen[2:]  # the chains' two steps come first
        assert len(batches) == 2 + plain
        assert torch.equal(batches[1], x) is plain
        assert not torch.equal(batches[0], x)
        assert {"ce", "jem", "log_density_data", "log_density_samples", "grad_norm"} == set(terms)


def test_the_gradient_norm_is_that_of_the_step(splits) -> None:
    parts = parts_of(splits)
    x, y = batch_of(parts)
    _, terms, _ = step.train_step(parts, parts.model, x, y)
    norm = sum((w.grad**2).sum() for w in parts.model.parameters()) ** 0.5
    torch.testing.assert_close(terms["grad_norm"], norm)


def test_a_resumed_run_goes_on_with_its_chains_bit_by_bit(tmp_path) -> None:
    whole, halved = tmp_path / "whole", tmp_path / "halved"
    options, jem = ["schedule.name=constant"], "chains: class, reinit: 0.3"
    eh.train(recipe(*options, jem=jem), whole, progress=False)
    eh.train(recipe(*options, "training.max_steps=4", jem=jem), halved, progress=False)
    eh.train(resume=halved, overrides=["training.max_steps=6"], progress=False)
    first, second = (load_state(run / "checkpoints" / "last.state.pt")["parts"] for run in (whole, halved))
    assert torch.equal(first["sampler"]["buffer.images"], second["sampler"]["buffer.images"])
    assert all(torch.equal(value, second["model"][name]) for name, value in first["model"].items())


class Poison:
    """A training step whose samples' log density runs away at some steps."""

    def __init__(self, *at: int, value: float = 1e3) -> None:
        self.at, self.value, self.calls, self.scales = at, value, 0, []

    def __call__(self, parts, forward, images, labels, total):
        self.calls += 1
        self.scales.append((parts.progress.rollbacks, parts.optimizer.param_groups[0]["lr"]))
        loss, terms, correct = step.train_step(parts, forward, images, labels, total)
        if self.calls in self.at:
            terms["log_density_samples"] = terms["log_density_samples"] + self.value
        return loss, terms, correct


def rows_of(folder, split: str):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["split"] == split]


def test_a_divergence_goes_back_to_the_last_good_state_slower_and_elsewhere(tmp_path, monkeypatch, capsys) -> None:
    poison = Poison(16)
    monkeypatch.setattr(engine, "train_step", poison)
    options = ["training={epochs: 2, batch_size: 64, max_steps: 20, log_every: 1}", "schedule.name=constant"]
    run = eh.train(recipe(*options), tmp_path / "a")
    assert run.rollbacks == 1
    # 14 steps are an epoch of the 885 images; the 16th runs away, so that steps 15 and 16 are taken again
    assert poison.calls == 20 + 2
    assert [rate for _, rate in poison.scales[:16]] == [0.001] * 16
    assert poison.scales[16:] == [(1, 0.0005)] * 6
    (row,) = rows_of(tmp_path / "a", "rollback")
    assert (row["step"], row["diverged_at"], row["rollbacks"]) == (14, 16, 1)
    assert [row["step"] for row in rows_of(tmp_path / "a", "train")] == list(range(1, 21))
    said = capsys.readouterr().err
    assert "diverged at step 16: data is" in said
    assert "nats below samples, guard.max_gap = 30; rollback 1 of 3 to step 14" in said


def test_before_the_first_epoch_ends_it_goes_back_to_the_start(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(engine, "train_step", Poison(3, value=float("nan")))
    run = eh.train(recipe("training.max_steps=4", "guard.max_gap=5"), tmp_path / "a", progress=False)
    assert run.rollbacks == 1
    assert rows_of(tmp_path / "a", "rollback")[0]["step"] == 0


def test_each_rollback_halves_the_langevin_step_and_the_learning_rate(tmp_path, monkeypatch) -> None:
    poison, scales = Poison(2, 4), []
    monkeypatch.setattr(engine, "train_step", poison)
    walk = Sampler.forward
    monkeypatch.setattr(Sampler, "forward", lambda self, *args: scales.append(args[-1]) or walk(self, *args))
    eh.train(recipe("training.max_steps=3", "schedule.name=constant"), tmp_path / "a", progress=False)
    assert scales == [1, 1, 0.5, 0.5, 0.25, 0.25, 0.25]
    assert [rate for _, rate in poison.scales] == [0.001, 0.001, 0.0005, 0.0005, 0.00025, 0.00025, 0.00025]


def test_weights_that_an_update_ruined_are_never_saved(tmp_path, monkeypatch) -> None:
    """The loss of a step is that of the weights before it: a stop right after it must not keep what it led to."""
    calls = []

    def ruining(parts, *args):
        found = step.train_step(parts, *args)
        calls.append(1)
        if len(calls) == 14:  # the epoch's last
            with torch.no_grad():
                parts.model.head.bias.add_(1e3)
        return found

    monkeypatch.setattr(engine, "train_step", ruining)
    run = eh.train(recipe("training={epochs: 2, batch_size: 64, max_steps: 15}"), tmp_path / "a", progress=False)
    assert run.rollbacks == 1
    assert rows_of(tmp_path / "a", "rollback")[0]["diverged_at"] == 14
    assert eh.load_model(tmp_path / "a").head.bias.abs().max() < 1


def test_a_validation_that_is_not_finite_is_a_divergence_too(tmp_path, monkeypatch) -> None:
    found = iter([float("nan"), 1.0])
    monkeypatch.setattr(classify, "validate", lambda *_: {"accuracy": 0.5, "nll": next(found)})
    run = eh.train(recipe("training.max_steps=3"), tmp_path / "a", progress=False)
    assert (run.rollbacks, run.metrics["nll"]) == (1, 1.0)


def test_rollbacks_are_bounded_also_over_a_resume(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(engine, "train_step", Poison(*range(1, 100)))
    with pytest.raises(TrainingError, match=r"diverged at step 1 \(data .*\), after 2 rollbacks; the last good .*last"):
        eh.train(recipe("guard.max_rollbacks=2"), tmp_path / "a", progress=False)
    assert len(rows_of(tmp_path / "a", "rollback")) == 2
    with pytest.raises(TrainingError, match="after 2 rollbacks"):
        eh.train(resume=tmp_path / "a", progress=False)
    assert len(rows_of(tmp_path / "a", "rollback")) == 2
    with pytest.raises(
        CheckpointError, match="holds no checkpoints"
    ):  # not one step was good: there is nothing to keep
        eh.load_model(tmp_path / "a")


def test_a_langevin_step_a_hundred_times_too_large_ends_with_exit_status_1(tmp_path) -> None:
    """Planted for real: the recipe as it is but for the step, and nothing is stubbed."""
    out = tmp_path / "run"
    result = CliRunner().invoke(
        main, ["train", "--recipe", "digits_jem", "--out", str(out), "objective.jem.step_size=25"]
    )
    assert result.exit_code == 1
    for count in (1, 2, 3):
        assert f"rollback {count} of 3" in result.output
    assert "Error: training diverged at step" in result.output
    assert str(out / "checkpoints" / "last.safetensors") in result.output
    assert eh.load_model(out) is not None


def watched(data: float = 0.0, samples: float = 0.0, norm: float = 1.0) -> dict[str, torch.Tensor]:
    values = {"log_density_data": data, "log_density_samples": samples, "grad_norm": norm}
    return {name: torch.tensor(value) for name, value in values.items()}


@pytest.mark.parametrize(
    ("loss", "terms", "reason"),
    [
        (0.0, watched(), None),
        (0.0, watched(data=29.0), None),
        (0.0, watched(data=-31.0), "data is 31 nats below samples"),
        (0.0, watched(data=31.0), "data is 31 nats above samples"),
        (0.0, watched(data=500.0, samples=490.0), None),
        (0.0, watched(norm=1.1e4), "the gradient's norm is 1.1e+04"),
        (0.0, watched(norm=float("nan")), "the gradient's norm is nan"),
        (0.0, watched(data=float("nan")), "data is nan nats"),
        (float("inf"), watched(), "the loss is not finite"),
    ],
)
def test_what_counts_as_a_divergence(loss, terms, reason) -> None:
    found = guard.divergence(torch.tensor(loss), terms, Guard())
    assert found is None if reason is None else found.startswith(reason)


def test_another_seed_follows_a_rollback(splits) -> None:
    parts = parts_of(splits)
    states = []
    for count in (0, 1, 2):
        parts.progress.rollbacks = count
        guard.slow_down(parts)
        states.append((parts.generator.get_state(), torch.get_rng_state()))
    assert len({tuple(state.tolist()) for state, _ in states}) == 3
    assert not torch.equal(states[0][1], states[1][1])


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("objective.jem={steps: 0}", "objective.jem.steps = 0"),
        ("objective.jem={reinit: 1.5}", "objective.jem.reinit = 1.5"),
        ("objective.jem={inner_steps: 2}", "inner_steps need clip"),
        ("objective.jem={inner_step_size: 0.2}", "inner_step_size belongs to inner_steps"),
        ("schedule.name=one_cycle", "no rollback can slow down"),
        ("training.precision=fp16", "fp16 has too small a range"),
        ("data.augment.mixup_alpha=0.2", "mixup needs objective.jem.augment=false"),
        ("optimizer.sam_adaptive=true", "sam_adaptive needs sam_rho > 0"),
        ("objective.supcon={}", "does not go with ce, jem"),
        ("objective.energy_margin={}", "needs reference images"),
        ("objective.energy_margin={inside: 1.0, outside: 1.0}", "inside must be less than outside"),
        ("reference={set: noise}", "reference images enter live columns, energy_margin, outlier_exposure or nce"),
        ("objective.jem={buffer_size: 16777216, start: gaussian, steps: 0}", "objective.jem.steps = 0"),
        ("evaluation.samples=1", "samples = 1: their figures need 2"),
        ("objective.outlier_exposure={}", "objective.outlier_exposure needs reference images"),
        ("reference={set: noise, families: [smooth]}", "either families .* or a set"),
        ("reference={}", "either families .* or a set"),
    ],
)
def test_what_does_not_go_together_is_refused(option: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        recipe(option)
    with pytest.raises(RecipeError, match="guard watches training by samples"):
        eh.load_recipe("smoke", ["guard.max_gap=5"])


def test_a_buffer_smaller_than_the_classes_is_refused_before_anything_is_written(tmp_path) -> None:
    with pytest.raises(RecipeError, match=r"objective.jem.buffer_size = 3: must be at least the 7 classes"):
        eh.train(recipe("objective.jem.buffer_size=3"), tmp_path / "a", progress=False)
    options = ["data.image_size=512", "objective.jem.start=gaussian"]
    with pytest.raises(RecipeError, match=r"start = gaussian: takes 1,792 GiB for 7 classes of \(1, 512, 512\)"):
        eh.train(recipe(*options), tmp_path / "a", progress=False)
    with pytest.raises(RecipeError, match=r"buffer_size = 16777216: takes 16,384 GiB"):
        eh.train(recipe(options[0], "objective.jem.buffer_size=16777216"), tmp_path / "a", progress=False)
    assert not (tmp_path / "a").exists()


def test_a_run_starts_from_the_weights_of_another(tmp_path, splits) -> None:
    eh.train(recipe("training.max_steps=2"), tmp_path / "a", progress=False)
    begun = parts_of(splits, f"model.init={tmp_path / 'a'}").model.state_dict()
    assert all(torch.equal(value, begun[name]) for name, value in eh.load_model(tmp_path / "a").state_dict().items())
    with pytest.raises(RecipeError, match=r"model\.init = .*do not fit the model"):
        parts_of(splits, "model={depth: 10, width: 2, norm: none, init: %s}" % (tmp_path / "a"))
    with pytest.raises(CheckpointError, match=r"model\.init = .*none'.*no such run directory"):
        parts_of(splits, "model={depth: 10, width: 1, norm: none, init: %s}" % (tmp_path / "none"))


def test_a_run_goes_on_when_the_run_it_started_from_is_gone(tmp_path) -> None:
    eh.train(recipe("training.max_steps=2"), tmp_path / "a", progress=False)
    model = "model={depth: 10, width: 1, norm: none, activation: silu, init: %s}" % (tmp_path / "a")
    eh.train(recipe(model, "training.max_steps=3"), tmp_path / "b", progress=False)
    (tmp_path / "a").rename(tmp_path / "elsewhere")
    assert eh.train(resume=tmp_path / "b", overrides=["training.max_steps=5"], progress=False).metrics["step"] > 0


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda parts: parts["sampler"]["buffer.images"].fill_(float("nan")), "replay buffer holds values"),
        (lambda parts: parts["sampler"]["buffer.images"].mul_(255), "replay buffer holds values"),
        (lambda parts: parts["progress"].update(rollbacks=-1), "its progress makes no sense"),
        (lambda parts: parts["progress"].update(step="x"), "its progress makes no sense"),
        (lambda parts: parts["progress"].update(step_in_epoch=99), "its progress makes no sense"),
        (lambda parts: parts["progress"].update(best=["a"]), "its progress makes no sense"),
    ],
)
def test_a_state_that_cannot_be_gone_on_from_is_refused(tmp_path, damage, message) -> None:
    eh.train(recipe("training.max_steps=3"), tmp_path / "a", progress=False)
    path = tmp_path / "a" / "checkpoints" / "last.state.pt"
    state = load_state(path)
    damage(state["parts"])
    save_state(path, state)
    with pytest.raises(CheckpointError, match=message):
        eh.train(resume=tmp_path / "a", progress=False)


def test_samples_never_share_a_forward_pass_with_data(splits) -> None:
    parts, sizes = parts_of(splits, "reference={families: [smooth]}", "objective.energy_margin={}"), []
    x, y = batch_of(parts)
    step.train_step(parts, lambda images: sizes.append(len(images)) or parts.model(images), x, y)
    assert sizes == [16, 16, 24, 16]  # two Langevin steps, data with reference images, samples
