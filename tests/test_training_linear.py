"""Training without N x C logits: the same losses and gradients as with them, in memory that does not grow with N C."""

from __future__ import annotations

import json
import math

import naive
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ebmhybrid as eh
from benchmarks.harness import peak_bytes
from ebmhybrid.data import ImageSet, Splits
from ebmhybrid.errors import EbmhybridError
from ebmhybrid.terms import Objective
from ebmhybrid.training import classify
from ebmhybrid.training.build import build_parts, load_data
from ebmhybrid.training.linear import layer_stats, linear_losses, only_logit
from ebmhybrid.training.objective import CombinedLoss, Contrast
from ebmhybrid.training.step import train_step

CPU = torch.device("cpu")
N, C = 6, 11
# Terms, how many reference images, whether jem has data of its own
CASES = {
    "ce": ({"ce": {}}, 0, False),
    "smoothed": ({"ce": {"weight": 0.7, "label_smoothing": 0.1}, "z_loss": {"weight": 0.3}}, 0, False),
    "jem": ({"ce": {}, "jem": {"weight": 2.0, "l2": 0.1}}, 0, False),
    "jem alone, of plain images": ({"jem": {"augment": False}}, 0, True),
    "energy margin": ({"ce": {}, "energy_margin": {"inside": -3.0, "outside": -2.0}}, 3, False),
    "outlier exposure": ({"ce": {"label_smoothing": 0.2}, "outlier_exposure": {}}, 5, False),
    "nce": ({"ce": {}, "nce": {"weight": 0.6, "offset": 0.4, "reference_weight": 3.0}}, 4, False),
    "all": ({"ce": {}, "z_loss": {}, "jem": {}, "energy_margin": {}, "outlier_exposure": {}, "nce": {}}, 1, True),
}


def net(classes: int = C, norm: str = "layer") -> nn.Module:
    return eh.WideResNet(depth=10, width=1, num_classes=classes, in_channels=1, norm=norm)


def gradients(loss: Tensor, model: nn.Module) -> list[Tensor]:
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return [torch.zeros(()) if gradient is None else gradient for gradient in found]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_loss_parts_and_gradients_are_those_of_the_logits(case: str, norm: str) -> None:
    given, references, own = CASES[case]
    terms, model = Objective.model_validate(given), net(norm=norm).double()
    images, y = torch.rand(N + references, 1, 8, 8, dtype=torch.float64), torch.randint(C, (N,))
    plain = torch.rand(N, 1, 8, 8, dtype=torch.float64) if own else None
    samples = torch.rand(4, 1, 8, 8, dtype=torch.float64) if terms.jem else None

    ours, parts = linear_losses(terms, model, images, y, plain, samples)
    logits = model(images)
    contrast = None
    if samples is not None:
        data = logits[:N] if plain is None else model(plain)
        contrast = Contrast(data, model(samples), y, y[:4])
    reference = logits[N:] if references else None
    whole, expected = CombinedLoss(terms, C)(logits[:N], y, reference, contrast=contrast)

    assert parts.keys() == expected.keys()
    for name, value in parts.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(ours, whole, rtol=1e-10, atol=1e-10)
    for gradient, other in zip(gradients(ours, model), gradients(whole, model), strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-10, atol=1e-10)


def test_the_three_numbers_of_a_row_equal_the_loops() -> None:
    layer, x, y = nn.Linear(5, 7).double(), torch.randn(3, 5, dtype=torch.float64), torch.tensor([0, 6, 3])
    literal = naive.row_stats(layer(x), y)
    for found, expected in zip(layer_stats(x, layer, y, total=True)[:3], literal, strict=False):
        torch.testing.assert_close(found, expected)
    assert layer_stats(x, layer)[1:] == (None, None, None)


def test_chains_climb_the_same_density_and_leave_the_last_layer_alone() -> None:
    model, images = net().double(), torch.rand(3, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    ours, whole = eh.log_density(only_logit(model, images)), eh.log_density(model(images))
    torch.testing.assert_close(ours, whole)
    torch.testing.assert_close(*(torch.autograd.grad(density.sum(), images)[0] for density in (ours, whole)))
    eh.log_density(only_logit(model, images)).sum().backward()
    assert model.head.weight.grad is None


def test_under_autocast_the_error_is_that_of_bfloat16() -> None:
    terms, model = Objective.model_validate({"ce": {"label_smoothing": 0.1}, "z_loss": {"weight": 1.0}}), net()
    images, y = torch.rand(N, 1, 8, 8), torch.randint(C, (N,))
    exact = linear_losses(terms, model, images, y)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = linear_losses(terms, model, images, y)[0]
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, exact, rtol=2e-2, atol=0)


def test_an_infinite_logit_is_an_infinite_loss_and_not_a_wrong_one() -> None:
    model = net()
    nn.init.constant_(model.head.bias, math.inf)
    loss, _ = linear_losses(Objective.model_validate({"ce": {}}), model, torch.rand(2, 1, 8, 8), torch.tensor([0, 1]))
    assert not loss.isfinite()


@pytest.fixture(scope="module")
def splits() -> Splits:
    return load_data(eh.load_recipe("smoke"), "data", False)


STEPS = {
    "ce": ["objective={ce: {label_smoothing: 0.1}, z_loss: {}}"],
    "jem": ["objective={ce: {}, jem: {steps: 2, buffer_size: 70, augment: false}}", "data.augment={noise_std: 0.1}"],
    "reference": ["objective={ce: {}, outlier_exposure: {}}", "reference={families: [smooth]}"],
}


@pytest.mark.parametrize("overrides", STEPS.values(), ids=STEPS)
def test_steps_of_training_go_the_same_way(splits: Splits, overrides: list[str]) -> None:
    """Augmentation, chains, references and updates included, from the same seed."""
    images, labels = next(iter(splits.train))
    images, labels = images[:32], labels[:32]
    found = []
    for linear in ("true", "false"):
        parts = build_parts(eh.load_recipe("smoke", [*overrides, f"training.linear_energy={linear}"]), splits, CPU)
        parts.model.train()
        found.append([train_step(parts, parts.model, images, labels) for _ in range(3)])
    for (loss, parts_found, correct), (whole, expected, counted) in zip(*found, strict=True):
        torch.testing.assert_close(loss, whole, rtol=1e-4, atol=1e-5)
        assert parts_found.keys() == expected.keys()
        assert correct is None
        assert counted is not None


def test_a_run_says_no_training_accuracy_and_validates_as_ever(tmp_path) -> None:
    changes = ["objective={ce: {}}", "training.linear_energy=true"]
    run = eh.train(eh.load_recipe("smoke", changes), tmp_path / "run", progress=False)
    assert {"accuracy", "nll"} <= run.metrics.keys()
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    kinds = {"accuracy" in line for line in lines if "nll" not in line}
    assert kinds == {False}
    assert "train " not in classify.said({"loss": 1.0}, {"accuracy": 0.5, "nll": 1.0})
    assert "train 25.00 %" in classify.said({"accuracy": 0.25}, {"accuracy": 0.5, "nll": 1.0})
    again = eh.train(resume=run.folder, overrides=["training.max_steps=8", "training.epochs=2"], progress=False)
    assert again.folder == run.folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["objective={hdge: {}}"], "objective.hdge: its negatives are whole rows"),
        (["objective={logit_norm: {}}"], "objective.logit_norm: it divides"),
        (["objective={supcon: {head_epochs: 0}}", "training.max_steps=null"], "objective.supcon"),
        (["objective={ce: {}, jem: {target: conditional}}"], "objective.jem of classes"),
        (["objective={ce: {}, jem: {chains: class}}"], "objective.jem of classes"),
        (["objective={ce: {}, jem: {inner_steps: 2, clip: 1.0}}"], "inner_steps"),
        (["objective={ce: {}}", "data.augment.mixup_alpha=0.4"], "mixup_alpha: its targets are N x C"),
        (["objective={ce: {}}", "optimizer.sam_rho=0.1"], "sam_rho"),
        (["objective={ce: {}}", "training.compile=true"], "training.compile"),
    ],
)
def test_what_needs_whole_logits_is_refused_with_the_reason(changes: list[str], message: str) -> None:
    with pytest.raises(EbmhybridError, match=r"training\.linear_energy computes no N x C logits") as refused:
        eh.load_recipe("smoke", ["training.linear_energy=true", *changes])
    assert message in str(refused.value)


def test_a_model_whose_features_are_not_known_is_refused() -> None:
    with pytest.raises(EbmhybridError, match=r"needs model\.name=wide_resnet.*got timm/resnet18"):
        eh.load_recipe("cifar10_wrn28_ce", ["model={name: timm/resnet18}", "training.linear_energy=true"])


def _kept(call) -> int:
    """The elements that autograd keeps of a call for its backward pass, each storage once, parameters aside."""
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if not tensor.is_leaf or not tensor.requires_grad:
            seen[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes() // tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = call()
    del kept
    return sum(seen.values())


def test_memory_does_not_grow_with_the_logits_of_200_000_classes() -> None:
    n, classes = 256, 200_000
    terms, y = Objective.model_validate({"ce": {"label_smoothing": 0.1}, "z_loss": {}}), torch.randint(classes, (n,))
    model, images = net(classes), torch.rand(n, 1, 8, 8)
    body = _kept(lambda: model.features(images))
    assert _kept(lambda: F.cross_entropy(model(images), y)) - body >= n * classes  # else this could not fail
    assert _kept(lambda: linear_losses(terms, model, images, y)[0]) - body < n * classes / 500

    def step() -> None:
        linear_losses(terms, model, images, y)[0].backward()
        model.zero_grad()

    weight, logits = 4 * model.head.weight.numel(), 4 * n * classes
    # Beside chunks of 8 MB there are at most the weight's gradient, that of its sum, and what the body keeps.
    assert peak_bytes(step) < 2.2 * weight + 4 * body + 60e6 < 1.2 * logits


def test_very_many_classes_train(tmp_path) -> None:
    classes = tuple(str(number) for number in range(20_000))
    images = torch.randint(256, (16, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    data = ImageSet("wide", images, torch.arange(16) * 1250 + 7, classes)
    recipe = eh.load_recipe("smoke", ["objective={ce: {}}", "training.linear_energy=true", "optimizer.lr=0.05"])
    parts = build_parts(recipe, Splits(data, data, data), CPU)
    parts.model.train()
    x, y = next(iter(data))
    losses = [train_step(parts, parts.model, x, y)[0].item() for _ in range(5)]
    assert losses[0] == pytest.approx(math.log(20_000), rel=0.1)
    assert losses[-1] < losses[0]
