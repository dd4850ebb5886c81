"""Drawing from a model: settings, starts, chains, the judge, and what is kept of them."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import naive_samples
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import ebmhybrid as eh
from ebmhybrid import runs
from ebmhybrid.data import ImageSet, Splits, load_set, load_splits
from ebmhybrid.errors import CheckpointError, DataError, EbmhybridError, TrainingError, UsageError
from ebmhybrid.generation import judge
from ebmhybrid.generation.chains import Drawn, draw, equal_shares
from ebmhybrid.generation.files import arrays, check_empty, film, grid, tiles
from ebmhybrid.generation.judge import given_judge, judge_recipe, own_judge
from ebmhybrid.generation.settings import Settings, choose
from ebmhybrid.generation.starts import has_buffer, read_buffer, start_chains
from ebmhybrid.recipe import Recipe
from ebmhybrid.training import load_model
from ebmhybrid.training.checkpoint import FORMAT, save_state, save_weights

CPU = torch.device("cpu")
WIDTH = 0.5


def recipe(**jem) -> Recipe:
    return Recipe.model_validate({"objective": {"ce": {}, "jem": jem}, "seed": 5})


def settings(**changed) -> Settings:
    return dataclasses.replace(Settings(6, None, "uniform", 4, 0.2, 0.01, clip=None, clamp=True, seed=0), **changed)


class Mixture(nn.Module):
    """The model of `naive_samples`."""

    def __init__(self, means: Tensor) -> None:
        super().__init__()
        self.means = nn.Parameter(means)

    def forward(self, images: Tensor) -> Tensor:
        return -(images[:, None] - self.means).square().flatten(2).sum(2) / (2 * WIDTH)


# Settings


def test_a_run_with_samples_decides_its_own_settings() -> None:
    run = recipe(chains="class", step_size=0.1, noise_std=0.02, clip=3.0, clamp=False, steps=30, start="gaussian")
    assert choose(run, "abc", has_buffer=True) == Settings(
        100, (0, 1, 2), "buffer", 60, 0.1, 0.02, clip=3.0, clamp=False, seed=5
    )
    fresh = choose(run, "abc", has_buffer=False)
    assert (fresh.start, fresh.steps) == ("gaussian", 150)
    assert choose(recipe(steps=5), "abc", has_buffer=False).steps == 100
    assert choose(recipe(steps=5), "abc", has_buffer=True).steps == 10


def test_a_run_without_samples_has_jems_settings() -> None:
    assert choose(Recipe(), "abc", has_buffer=False) == Settings(
        100, None, "uniform", 100, 0.25, 0.005, clip=None, clamp=True, seed=0
    )


@pytest.mark.parametrize(
    ("jem", "classes"),
    [
        ({}, None),
        ({"chains": "class"}, (0, 1, 2)),
        ({"target": "conditional"}, (0, 1, 2)),
    ],
)
def test_classes_are_asked_for_where_chains_have_one(jem, classes) -> None:
    assert choose(recipe(**jem), "abc", has_buffer=False).classes == classes
    assert choose(recipe(**jem), "abc", has_buffer=False, classes=["c"]).classes == (2,)


def test_given_values_win() -> None:
    given = {"num": 7, "start": "uniform", "steps": 0, "step_size": 0.0, "noise_std": 0.0, "seed": 0}
    chosen = choose(recipe(), "abc", has_buffer=True, **given)
    assert {name: getattr(chosen, name) for name in given} == given


def test_a_class_is_a_name_and_else_a_number_and_counts_once() -> None:
    assert choose(Recipe(), ("7", "8", "9"), has_buffer=False, classes=["8", "0", 8, "1"]).classes == (1, 0)


def test_a_file_gives_all_its_images() -> None:
    chosen = choose(recipe(chains="class"), "abc", has_buffer=True, start="npz:x.npz")
    assert (chosen.num, chosen.file, chosen.classes, chosen.steps) == (None, "npz:x.npz", (0, 1, 2), 100)
    assert choose(Recipe(), "abc", has_buffer=False, start="npz:x.npz", num=3).num == 3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"classes": ["catt"]}, r"class 'catt' is neither a name nor a number in 0\.\.1: did you mean 'cat'\?$"),
        ({"classes": ["2"]}, r"class '2' is neither a name nor a number in 0\.\.1: valid: cat, dog$"),
        ({"classes": ["-1"]}, "class '-1' is neither"),
        ({"start": "bufer"}, "start 'bufer': did you mean 'buffer'"),
        ({"start": "npz:"}, "start 'npz:'"),
        ({"start": "digits"}, "start 'digits'"),
        ({"start": "buffer"}, "keeps no replay buffer; take uniform or gaussian"),
        ({"start": "npz:a", "classes": ["cat"]}, "a class does not go with start npz:a"),
        ({"num": 1}, r"num must be a whole number in 2\.\.10000000, got 1"),
        ({"num": 2.5}, r"num must be a whole number in 2\.\.10000000, got 2.5"),
        ({"num": 10**12}, r"num must be a whole number in 2\.\.10000000, got 1000000000000"),
        ({"steps": -1}, r"steps must be a whole number in 0\.\.10000000, got -1"),
        ({"seed": -1}, r"seed must be a whole number in 0\.\.\d+, got -1"),
        ({"seed": 2**63}, r"seed must be a whole number in 0\.\.9223372036854775807, got"),
        ({"step_size": -0.1}, "step_size must be at least 0 and finite, got -0.1"),
        ({"step_size": float("nan")}, "step_size must be at least 0 and finite, got nan"),
        ({"noise_std": float("inf")}, "noise_std must be at least 0 and finite, got inf"),
    ],
)
def test_wrong_settings_are_named(given, message) -> None:
    with pytest.raises(UsageError, match=message):
        choose(Recipe(), ("cat", "dog"), has_buffer=False, **given)


@pytest.mark.parametrize("num", [2, 6, 7, 100])
@pytest.mark.parametrize("classes", [(0,), (3, 1), (2, 0, 5)])
def test_shares_are_equal_and_class_after_class(num, classes) -> None:
    labels = equal_shares(classes, num).tolist()
    counts = [labels.count(label) for label in classes]
    assert sum(counts) == num
    assert max(counts) - min(counts) <= 1
    assert labels == sorted(labels, key=classes.index)


# Chains


@pytest.mark.parametrize("labels", [None, [0, 0, 1, 1, 2, 2]])
@pytest.mark.parametrize("changed", [{}, {"clip": 0.3}, {"clamp": False, "noise_std": 0.5}, {"noise_std": 0.0}])
@pytest.mark.parametrize("batch_size", [4, 100])
def test_chains_are_those_written_out(labels, changed, batch_size) -> None:
    means, start = 2 * torch.rand(3, 1, 2, 2).double() - 0.5, torch.rand(6, 1, 2, 2).double()
    asked = settings(**changed)
    generator = torch.Generator().manual_seed(1)
    noise = [torch.randn(6, 1, 2, 2, generator=generator, dtype=torch.float64).numpy() for _ in range(asked.steps)]
    targets = None if labels is None else torch.tensor(labels)
    found = draw(Mixture(means), asked, start, targets, torch.Generator().manual_seed(1), batch_size=batch_size)
    for i in range(6):
        states = naive_samples.chain(
            start[i].numpy(),
            np.stack([asked.noise_std * of_step[i] for of_step in noise]),
            means.numpy(),
            WIDTH,
            None if labels is None else labels[i],
            asked.step_size,
            asked.clip,
            asked.clamp,
        )
        last = np.clip(states[-1], 0, 1)
        np.testing.assert_allclose(found.images[i].numpy(), np.round(255 * last) / 255, rtol=0, atol=1e-12)
        if i in found.watched:
            watched = found.chains[:, found.watched.index(i)].numpy()
            expected = [np.clip(states[k], 0, 1) for k in found.moments]
            np.testing.assert_allclose(watched, expected, rtol=0, atol=1e-12)


def test_the_network_gives_the_same_samples_in_batches_of_any_size() -> None:
    model, start = eh.WideResNet(10, 1, 3, 1).eval(), torch.rand(7, 1, 8, 8)
    found = [
        draw(model, settings(), start, None, torch.Generator().manual_seed(2), batch_size=size).images
        for size in (1, 3, 7)
    ]
    for other in found[1:]:
        assert (other - found[0]).abs().max() <= 1 / 255 + 1e-6  # a rounding may tip over


def test_drawing_changes_nothing_but_what_it_returns() -> None:
    model, start = eh.WideResNet(10, 1, 3, 1).eval(), torch.rand(5, 1, 8, 8)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    copy, state = start.clone(), torch.get_rng_state()
    draw(model, settings(), start, torch.tensor([0, 0, 1, 1, 2]), torch.Generator())
    assert torch.equal(start, copy)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_no_steps_leave_the_start() -> None:
    start = torch.rand(3, 1, 2, 2)
    found = draw(Mixture(torch.rand(3, 1, 2, 2)), settings(steps=0), start, None, torch.Generator())
    assert (found.images - start).abs().max() <= 0.5 / 255 + 1e-6
    assert found.moments == (0,)
    assert torch.equal(found.chains[0], start)


def test_moments_rise_to_the_last_step_and_a_chain_a_class_is_watched() -> None:
    model = Mixture(torch.rand(3, 1, 2, 2))
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    found = draw(model, settings(steps=23), torch.rand(6, 1, 2, 2), labels, torch.Generator())
    assert found.moments == (0, 1, 2, 5, 10, 20, 23)
    assert found.watched == (0, 1, 2, 3, 4, 5)
    twos = torch.tensor([0] * 20 + [1] * 20 + [2] * 20)
    found = draw(model, settings(steps=0), torch.rand(60, 1, 2, 2), twos, torch.Generator())
    assert found.watched == (0, 6, 13, 20, 26, 33, 40, 46, 53)
    assert draw(model, settings(steps=20), torch.rand(6, 1, 2, 2), None, torch.Generator()).moments[-2:] == (10, 20)
    many = draw(model, settings(steps=1), torch.rand(50, 1, 2, 2), None, torch.Generator())
    assert many.watched == (0, 5, 10, 15, 20, 25, 30, 35, 40, 45)
    assert many.chains.shape == (2, 10, 1, 2, 2)


def test_samples_are_whole_steps_of_8_bits() -> None:
    found = draw(Mixture(torch.rand(3, 1, 2, 2)), settings(), torch.rand(6, 1, 2, 2), None, torch.Generator())
    assert torch.equal(found.images, torch.from_numpy(arrays(found.images))[:, None].float() / 255)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_chains_that_leave_the_finite_end_it(bad) -> None:
    model = Mixture(torch.full((3, 1, 2, 2), bad))
    with pytest.raises(EbmhybridError, match=r"no longer finite after 1 steps: .*smaller step_size than 0\.2"):
        draw(model, settings(clamp=False), torch.rand(6, 1, 2, 2), torch.tensor([0, 0, 1, 1, 2, 2]), torch.Generator())


def test_the_bar_counts_steps() -> None:
    seen = []

    def progress(steps, text):
        seen.append((list(steps), text))
        return steps

    draw(
        Mixture(torch.rand(3, 1, 2, 2)), settings(), torch.rand(6, 1, 2, 2), None, torch.Generator(), progress=progress
    )
    assert seen == [([1, 2, 3, 4], "sampling")]


# Starts


def train_set(per_class: int = 8, classes: int = 3) -> ImageSet:
    """Images that tell their class: its number in every pixel, but for a little noise."""
    labels = torch.arange(per_class * classes) % classes
    images = 80 * labels[:, None, None, None] + torch.randint(0, 8, (len(labels), 1, 2, 2), generator=torch.Generator())
    return ImageSet("t", images.to(torch.uint8), labels, tuple("abcdefgh"[:classes]))


def write_state(folder: Path, images: Tensor | None, **more) -> Path:
    sampler = {} if images is None else {"buffer.images": images}
    save_state(folder / "last.state.pt", {"format": FORMAT, "parts": {"sampler": sampler}, **more})
    return folder / "best.safetensors"


def started(asked: Settings, weights: Path = Path("x"), load=None, seed: int = 0, **jem):
    generator = torch.Generator().manual_seed(seed)
    return start_chains(asked, recipe(**jem), train_set(), weights, load, generator)


def buffer_of(slots: int) -> Tensor:
    """Slot k holds k / slots everywhere."""
    return (torch.arange(slots) / slots)[:, None, None, None].expand(-1, 1, 2, 2).clone()


def test_a_buffer_of_classes_gives_each_chain_a_slot_of_its_class_once(tmp_path) -> None:
    weights = write_state(tmp_path, buffer_of(12))
    asked = settings(num=10, classes=(2, 0), start="buffer")
    start = started(asked, weights, chains="class")
    slots = (12 * start.images[:, 0, 0, 0]).round().long()
    assert start.labels.tolist() == [2] * 5 + [0] * 5
    asked = settings(num=8, classes=(2, 0), start="buffer")
    start = started(asked, weights, chains="class")
    slots = (12 * start.images[:, 0, 0, 0]).round().long().tolist()
    assert sorted(slots[:4]) == [8, 9, 10, 11]
    assert sorted(slots[4:]) == [0, 1, 2, 3]
    assert start.notes == ()
    assert slots != (12 * started(asked, weights, seed=1, chains="class").images[:, 0, 0, 0]).round().long().tolist()


def test_more_chains_than_slots_start_from_the_same_and_say_so(tmp_path) -> None:
    weights = write_state(tmp_path, buffer_of(12))
    start = started(settings(num=10, classes=(2, 0), start="buffer"), weights, chains="class")
    slots = (12 * start.images[:, 0, 0, 0]).round()
    assert set(slots[:5].tolist()) <= {8, 9, 10, 11}
    assert start.notes == (
        "the replay buffer holds 4 images of a class and 5 chains were asked for: several start from the same",
    )
    pooled = started(settings(num=13, start="buffer"), weights)
    assert "holds 12 images and 13 chains" in pooled.notes[0]


@pytest.mark.parametrize("classes", [None, (1,)])
def test_a_pooled_buffer_gives_every_slot_once(tmp_path, classes) -> None:
    weights = write_state(tmp_path, buffer_of(12))
    start = started(settings(num=12, classes=classes, start="buffer"), weights)
    assert sorted((12 * start.images[:, 0, 0, 0]).round().long().tolist()) == list(range(12))
    assert start.labels is None if classes is None else start.labels.tolist() == [1] * 12


@pytest.mark.parametrize(
    ("images", "found"),
    [
        (None, "found none"),
        ([0.5], "found none"),
        (torch.rand(4, 1, 3, 3), r"found images \(4, 1, 3, 3\), float32 strided"),
        (torch.rand(0, 1, 2, 2), r"found images \(0, 1, 2, 2\)"),
        (torch.rand(2, 1, 2, 2), r"found images \(2, 1, 2, 2\)"),
        (torch.ones(4, 1, 2, 2, dtype=torch.uint8), "uint8 strided"),
        (torch.ones(4, 1, 2, 2, dtype=torch.complex64), "complex64 strided"),
        (torch.full((4, 1, 2, 2), float("nan")), r"found NaN or infinity among images \(4, 1, 2, 2\)"),
        (torch.full((4, 1, 2, 2), float("-inf")), "found NaN or infinity among images"),
    ],
)
def test_a_state_without_a_fitting_buffer_is_named(tmp_path, images, found) -> None:
    write_state(tmp_path, images)
    message = r"last\.state\.pt: holds no replay buffer of at least 3 images \(1, 2, 2\) .*"
    with pytest.raises(CheckpointError, match=message + found):
        read_buffer(tmp_path / "last.state.pt", (1, 2, 2), 3)


def test_a_buffer_of_classes_has_an_image_of_each(tmp_path) -> None:
    weights = write_state(tmp_path, buffer_of(2))
    asked = settings(num=2, classes=(0,), start="buffer")
    with pytest.raises(CheckpointError, match="at least 3 images"):
        started(asked, weights, chains="class")
    assert len(started(asked, weights).images) == 2


def test_a_buffer_that_was_not_clamped_is(tmp_path) -> None:
    write_state(tmp_path, 4 * torch.rand(9, 1, 2, 2) - 2)
    images = read_buffer(tmp_path / "last.state.pt", (1, 2, 2))
    assert (images.min(), images.max()) == (0, 1)


def test_only_a_run_with_samples_and_its_state_has_a_buffer(tmp_path) -> None:
    weights = tmp_path / "best.safetensors"
    assert not has_buffer(recipe(), weights)
    write_state(tmp_path, buffer_of(3))
    assert has_buffer(recipe(), weights)
    assert not has_buffer(Recipe(), weights)


def test_uniform_and_gaussian_starts() -> None:
    uniform = started(settings(num=300))
    assert uniform.labels is None
    assert uniform.images.shape == (300, 1, 2, 2)
    assert abs(float(uniform.images.mean()) - 0.5) < 5 / (12 * 1200) ** 0.5
    gaussian = started(settings(num=9, start="gaussian", classes=(2, 0, 1)))
    assert (255 * gaussian.images.mean((1, 2, 3)) / 80).round().tolist() == [2, 2, 2, 0, 0, 0, 1, 1, 1]
    marginal = started(settings(num=9, start="gaussian"))
    assert marginal.labels is None
    assert (255 * marginal.images.mean((1, 2, 3)) / 80).round().tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert torch.equal(marginal.images, started(settings(num=9, start="gaussian")).images)


def test_chains_from_a_file() -> None:
    given = train_set(2)
    whole = started(settings(num=None, start="npz:x"), load=lambda name: given)
    assert torch.equal(whole.images, given.images.float() / 255)
    assert whole.labels is None
    some = started(settings(num=3, start="npz:x", classes=(0, 1, 2)), load=lambda name: given)
    assert some.labels.tolist() == [0, 1, 2]
    assert some.notes == ("3 of 6 images",)


def test_files_that_cannot_start_chains_are_named() -> None:
    asked = settings(num=None, start="npz:x", classes=(0, 1, 2))
    with pytest.raises(DataError, match=r"t: its labels go up to 3, and the model has classes 0\.\.2"):
        started(asked, load=lambda name: train_set(2, 4))
    with pytest.raises(UsageError, match="num = 7: t holds 6 images"):
        started(settings(num=7, start="npz:x"), load=lambda name: train_set(2))
    with pytest.raises(DataError, match="t: figures need at least 2 images, it holds 1"):
        started(settings(num=None, start="npz:x"), load=lambda name: train_set(2).select([0]))


# Files


@pytest.mark.parametrize("channels", [1, 3])
def test_arrays_read_back_as_a_set(tmp_path, channels) -> None:
    images = torch.randint(0, 256, (5, channels, 4, 6)).float() / 255
    x = arrays(images)
    assert x.shape == ((5, 4, 6) if channels == 1 else (5, 4, 6, 3))
    np.savez(tmp_path / "a.npz", x=x, y=np.arange(5))
    back = load_set(f"npz:{tmp_path / 'a.npz'}")
    assert torch.equal(back.images.float() / 255, images)
    assert back.labels.tolist() == [0, 1, 2, 3, 4]


def test_tiles_stand_where_they_belong_enlarged_by_whole_pixels() -> None:
    images = torch.rand(2, 3, 1, 8, 8)
    picture = np.asarray(tiles(tuple(images)))
    expected = (255 * images).round().to(torch.uint8).numpy()
    for i in range(2):
        for j in range(3):
            tile = picture[6 + 50 * i :, 6 + 50 * j :][:48, :48]
            assert (tile == tile[..., :1]).all()
            np.testing.assert_array_equal(tile[::6, ::6, 0], expected[i, j, 0])
            np.testing.assert_array_equal(tile[5::6, 5::6, 0], expected[i, j, 0])
    assert picture.shape == (6 + 2 * 50 + 6, 6 + 3 * 50 + 6, 3)
    assert (picture[:6] == 255).all()


def test_large_images_keep_their_size() -> None:
    assert tiles([torch.rand(1, 3, 64, 64)]).size == (6 + 66 + 6, 6 + 66 + 6)


def test_the_grid_has_rows_of_a_class_and_at_most_a_hundred_images() -> None:
    plain = grid(torch.rand(250, 1, 8, 8), None, "abc")
    assert plain.size == (12 + 500, 12 + 500)
    labels = equal_shares([0, 1, 2], 250)
    images = torch.zeros(250, 1, 8, 8)
    images[labels == 2] = 1
    picture = grid(images, labels, "abc")
    assert picture.height == 12 + 9 * 50  # three rows for each of three classes
    pixels = np.asarray(picture)
    assert (pixels[6 + 5 * 50 + 24, -50] == 0).all()
    assert (pixels[6 + 6 * 50 + 24, -50] == 255).all()
    assert (pixels[6 + 24, :12] < 128).any()  # a name stands beside the first row of its class
    assert (pixels[56 + 24, :12] == 255).all()
    assert (pixels[6 + 3 * 50 + 24, :12] < 128).any()


def test_the_film_has_a_row_a_chain_and_a_column_a_moment() -> None:
    chains = torch.zeros(4, 2, 1, 8, 8)
    chains[3] = 1
    drawn = Drawn(torch.zeros(6, 1, 8, 8), torch.tensor([0, 0, 0, 1, 1, 1]), chains, (0, 1, 2, 3), (0, 3))
    picture = np.asarray(film(drawn, ("cat", "dog")))
    assert picture.shape[0] == 12 + 16 + 2 * 50
    assert (picture[22 + 24, -40] == 255).all()
    assert (picture[22 + 24, -90] == 0).all()
    unlabelled = film(dataclasses.replace(drawn, labels=None), ("cat", "dog"))
    assert unlabelled.width == 12 + 4 * 50


def test_samples_go_into_a_new_or_an_empty_folder_alone(tmp_path) -> None:
    check_empty(tmp_path / "new")
    check_empty(tmp_path)
    (tmp_path / "results.json").write_text("{}")  # also of an evaluation, which `eval --out` would replace
    with pytest.raises(EbmhybridError, match="is not empty; choose a new or an empty folder"):
        check_empty(tmp_path)
    with pytest.raises(EbmhybridError, match="not a folder"):
        check_empty(tmp_path / "results.json")


# The judge


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> tuple[Path, Recipe, Splits]:
    """A run of two steps."""
    folder = tmp_path_factory.mktemp("runs") / "a"
    made = eh.load_recipe("smoke", ["training.max_steps=2"])
    eh.train(made, folder, progress=False)
    return folder, made, load_splits("digits:0-6", test_fraction=0.2)


@pytest.fixture
def quick(monkeypatch):
    """A judge of few steps, and the recipes of those that were trained."""
    calls = []
    original = judge.build_parts

    def build_parts(*args):
        calls.append(args[0])
        return original(*args)

    monkeypatch.setattr(judge, "STEPS", 3)
    monkeypatch.setattr(judge, "build_parts", build_parts)
    return calls


def kept_in(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def test_the_judge_is_a_small_network_on_the_runs_own_images(base) -> None:
    _, made, splits = base
    changed = made.model_copy(update={"data": made.data.model_copy(update={"split_seed": 3})})
    wanted = judge_recipe(changed, splits)
    assert wanted.data.model_dump() == {**changed.data.model_dump(), "channels": 1}
    assert (wanted.model.depth, wanted.model.width, wanted.model.norm) == (10, 2, "batch")
    assert wanted.objective.model_dump(exclude_none=True) == {"ce": {"weight": 1.0, "label_smoothing": 0.0}}
    assert (wanted.training.max_steps, wanted.training.batch_size) == (600, 64)
    steps_an_epoch = -(-len(splits.train) // 64)
    assert wanted.training.epochs * steps_an_epoch >= 600


def test_the_judge_is_trained_once_and_kept(base, quick, tmp_path) -> None:
    _, made, splits = base
    first = own_judge(tmp_path / "cache", made, splits, device=CPU)
    again = own_judge(tmp_path / "cache", made, splits, device=CPU)
    assert len(quick) == 1
    assert first.name == again.name
    assert first.name.startswith("WRN-10-2, cross-entropy, ")
    assert first.name.endswith(" % on the test split")
    assert not first.model.training
    assert torch.equal(first.model.head.weight, again.model.head.weight)
    images = splits.test.images.float() / 255
    with torch.no_grad():
        accuracy = (first.model(images).argmax(1) == splits.test.labels).float().mean()
    assert f" {100 * accuracy:.1f} %" in first.name
    assert re.fullmatch(r"judge-[0-9a-f]{16}\.safetensors", kept_in(tmp_path / "cache").name)
    with pytest.raises(CheckpointError, match="no run there"):  # it is none
        runs.newest_run(tmp_path)


def test_training_the_judge_leaves_the_global_generator_alone(base, quick) -> None:
    _, made, splits = base
    state = torch.get_rng_state()
    judge._trained(judge_recipe(made, splits), splits, CPU, None)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_judge_learns_in_the_steps_it_has_and_shows_them(base, monkeypatch, tmp_path) -> None:
    """Also over several epochs of few images, without validating or writing after each."""
    _, made, splits = base
    monkeypatch.setattr(judge, "STEPS", 40)
    monkeypatch.setattr(judge, "BATCH", 16)
    few = dataclasses.replace(splits, train=splits.train.take(100))
    seen, written, validated = [], [], []
    save, check = judge.save_weights, judge.validate
    monkeypatch.setattr(judge, "save_weights", lambda *args: written.append(args) or save(*args))
    monkeypatch.setattr(judge, "validate", lambda *args: validated.append(args) or check(*args))

    def progress(steps, text):
        for step in steps:
            seen.append((step, text))
            yield step

    found = own_judge(tmp_path, made, few, device=CPU, progress=progress)
    assert seen == [(step, "training the judge") for step in range(40)]
    assert (len(written), len(validated)) == (1, 1)
    assert judge.validate(found.model, splits.test, CPU)["accuracy"] > 0.5


def test_a_judge_of_other_images_or_another_recipe_is_not_used(base, quick, tmp_path) -> None:
    _, made, splits = base
    own_judge(tmp_path, made, splits, device=CPU)
    inverted = dataclasses.replace(splits.train, images=255 - splits.train.images)
    own_judge(tmp_path, made, dataclasses.replace(splits, train=inverted), device=CPU)
    assert len(quick) == 2
    augment = made.data.augment.model_copy(update={"pad": 1})
    augmented = made.model_copy(update={"data": made.data.model_copy(update={"augment": augment})})
    own_judge(tmp_path, augmented, splits, device=CPU)
    assert len(quick) == 3
    own_judge(tmp_path, made, splits, device=CPU)
    assert len(quick) == 3
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("content", [b"", b"cut off", None])
def test_a_judge_that_cannot_be_read_is_trained_anew(base, quick, tmp_path, content) -> None:
    _, made, splits = base
    first = own_judge(tmp_path, made, splits, device=CPU)
    path = kept_in(tmp_path)
    path.write_bytes(path.read_bytes()[:-100] if content is None else content)
    again = own_judge(tmp_path, made, splits, device=CPU)
    assert len(quick) == 2
    assert torch.equal(first.model.head.weight, again.model.head.weight)
    own_judge(tmp_path, made, splits, device=CPU)
    assert len(quick) == 2


@pytest.mark.parametrize("key", ["recipe", "train_images"])
def test_other_weights_in_the_judges_place_are_neither_used_nor_replaced(base, quick, tmp_path, key) -> None:
    folder, made, splits = base
    own_judge(tmp_path, made, splits, device=CPU)
    path, other = kept_in(tmp_path), load_model(folder)
    metadata = {**load_model(path).metadata, "architecture": other.metadata["architecture"], key: "another"}
    save_weights(path, other, {name: value for name, value in metadata.items() if name not in ("format", "version")})
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match=r"judge-\w+\.safetensors: holds other weights than the run's judge"):
        own_judge(tmp_path, made, splits, device=CPU)
    assert path.read_bytes() == before
    assert len(quick) == 1


def test_no_folder_and_no_link_gives_way_to_the_judge(base, quick, tmp_path) -> None:
    _, made, splits = base
    own_judge(tmp_path, made, splits, device=CPU)
    path = kept_in(tmp_path)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="goes there and it is no file; move it"):
        own_judge(tmp_path, made, splits, device=CPU)
    path.unlink()
    (path / "mine").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="goes there and it is no file; move it"):
        own_judge(tmp_path, made, splits, device=CPU)
    assert (path / "mine").is_dir()
    assert len(quick) == 1  # said before the work


def test_interrupting_the_judge_leaves_nothing(base, monkeypatch, tmp_path) -> None:
    _, made, splits = base

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(judge, "train_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        own_judge(tmp_path / "cache", made, splits, device=CPU)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_takes_no_judge_is_named_before_the_work(base, quick, tmp_path) -> None:
    _, made, splits = base
    (tmp_path / "file").write_text("")
    with pytest.raises(EbmhybridError, match=r"cannot write the judge to .*file/cache/judge-\w+.*: Not a directory"):
        own_judge(tmp_path / "file" / "cache", made, splits, device=CPU)
    assert quick == []


def test_a_judge_whose_loss_is_lost_is_not_kept(base, quick, monkeypatch, tmp_path) -> None:
    _, made, splits = base
    monkeypatch.setattr(judge, "train_step", lambda *_: (torch.tensor(float("nan")), {}, 0))
    with pytest.raises(TrainingError, match="judge's training loss is not finite; name another judge"):
        own_judge(tmp_path / "cache", made, splits, device=CPU)
    assert not list(tmp_path.iterdir())


def test_a_given_judge_is_another_model_of_the_same_classes_and_shape(base, tmp_path) -> None:
    folder, _, splits = base
    model, weights = load_model(folder), folder / "checkpoints" / "best.safetensors"
    for same in (folder, weights.with_name("last.safetensors")):
        with pytest.raises(UsageError, match="is the sampled model itself"):
            given_judge(same, model, weights, splits, CPU)
    with torch.no_grad():
        other = load_model(folder)
        other.head.bias.add_(1.0)
    with pytest.raises(UsageError, match="is the sampled model itself"):  # other weights of the run are no other model
        given_judge(folder, other, weights, splits, CPU)
    eh.train(
        eh.load_recipe("smoke", ["training.max_steps=1", "seed=1", "objective={ce: {}}"]),
        tmp_path / "b",
        progress=False,
    )
    found = given_judge(tmp_path / "b", model, weights, splits, CPU)
    assert found.name.startswith("WRN-10-1, cross-entropy, ")
    assert given_judge(folder, found.model, tmp_path / "b", splits, CPU).name.startswith("WRN-10-1, HDGE, ")
    for changes, what in ((["data.train=digits:0-5"], "classes"), (["data.image_size=16"], "image_shape")):
        out = tmp_path / what
        eh.train(eh.load_recipe("smoke", ["training.max_steps=1", *changes]), out, progress=False)
        with pytest.raises(CheckpointError, match=f"{out}: cannot judge, its {what} are "):
            given_judge(out, model, weights, splits, CPU)
    with pytest.raises(CheckpointError, match="no such run"):
        given_judge(tmp_path / "none", model, weights, splits, CPU)
