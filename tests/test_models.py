"""Models: sizes, options, normalisation, foreign backbones, released checkpoints."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import ebmhybrid as eh
from ebmhybrid.errors import CheckpointError, RecipeError
from ebmhybrid.models import NormalizedClassifier, build_model, import_released
from ebmhybrid.models.normalize import Normalize


def small(**options) -> eh.WideResNet:
    return eh.WideResNet(**{"depth": 10, "width": 1, "num_classes": 4, **options})


def test_wrn_28_10_has_36_5_million_parameters() -> None:
    with torch.device("meta"):
        count = sum(p.numel() for p in eh.WideResNet(depth=28, width=10).parameters())
    assert round(count / 1e6, 1) == 36.5


@pytest.mark.parametrize("size", [8, 28, 32, 64])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_image_size_from_8_to_64(size: int, channels: int) -> None:
    model = small(in_channels=channels).eval()
    images = torch.rand(2, channels, size, size)
    assert model(images).shape == (2, 4)
    torch.testing.assert_close(model.head(model.features(images)), model(images))


@pytest.mark.parametrize("norm", ["none", "batch", "layer", "instance"])
@pytest.mark.parametrize("activation", ["leaky_relu", "relu", "silu", "gelu", "softplus"])
def test_every_norm_and_activation_gives_finite_gradients(norm, activation) -> None:
    model = small(norm=norm, activation=activation, dropout=0.1)
    model(torch.rand(4, 3, 16, 16)).square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    kinds = {type(m).__name__ for m in model.modules()}
    expected = {"none": None, "batch": "BatchNorm2d", "layer": "GroupNorm", "instance": "InstanceNorm2d"}[norm]
    assert expected is None or expected in kinds
    assert not (kinds & {"BatchNorm2d", "GroupNorm", "InstanceNorm2d"}) - {expected}


def test_without_batch_norm_an_image_does_not_see_the_others() -> None:
    images = torch.rand(4, 3, 8, 8)
    for norm in ("none", "layer", "instance"):
        model = small(norm=norm)
        torch.testing.assert_close(model(images)[:1], model(images[:1]), rtol=1e-4, atol=1e-5)


def test_the_model_owns_its_normalisation() -> None:
    images = torch.rand(2, 3, 8, 8)
    plain, shifted = small(mean=0.0, std=1.0).eval(), small(mean=[0.1, 0.2, 0.3], std=[0.5, 0.4, 0.3]).eval()
    shifted.load_state_dict(plain.state_dict())
    by_hand = (images - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)
    torch.testing.assert_close(shifted(images), plain(by_hand))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 12}, "depth must be 6 n"),
        ({"depth": 4}, "depth must be 6 n"),
        ({"width": 0}, "at least 1"),
        ({"norm": "group"}, "norm must be one of none, batch, layer, instance, got 'group'"),
        ({"activation": "tanh"}, "activation must be one of"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\), got 1"),
        ({"mean": [0.5, 0.5]}, "mean must be 1 or 3 finite numbers"),
        ({"std": 0.0}, "std must be positive"),
    ],
)
def test_wrong_options_are_named(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        small(**options)


@pytest.mark.parametrize("shape", [(2, 1, 8, 8), (2, 3, 4, 8), (3, 8, 8)])
def test_wrong_images_are_named(shape) -> None:
    with pytest.raises(ValueError, match=r"images must be \(N, 3, H, W\)"):
        small()(torch.zeros(shape))


def test_torchvision_and_timm_classifiers_by_name() -> None:
    vision = build_model("torchvision/resnet18", num_classes=7)
    assert vision(torch.rand(2, 3, 32, 32)).shape == (2, 7)
    assert isinstance(vision, NormalizedClassifier)
    assert vision.normalize.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    pytest.importorskip("timm")
    timm = build_model("timm/resnet10t", num_classes=5, in_channels=1, mean=0.5, std=0.25)
    assert timm(torch.rand(2, 1, 32, 32)).shape == (2, 5)
    assert isinstance(timm, NormalizedClassifier)
    assert isinstance(timm.normalize, Normalize)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("wide_resnt", {}, "did you mean 'wide_resnet'"),
        ("torchvision/resnet19", {"num_classes": 2}, "no such classifier, did you mean 'resnet18'"),
        (
            "torchvision/resnet18",
            {"num_classes": 2, "in_channels": 1},
            r"takes 3 channels, got 1: set data\.channels=3",
        ),
        ("torchvision/resnet18", {"num_classes": 2, "colour": 1}, "unexpected keyword argument 'colour'"),
        ("wide_resnet", {"depth": 9}, "depth must be"),
        ("timm/no_such_net", {"num_classes": 2}, "no such model|needs timm"),
    ],
)
def test_names_that_there_are_none_of(name, options, message) -> None:
    with pytest.raises(RecipeError, match=message):
        build_model(name, **options)


# --- released checkpoints -----------------------------------------------------------------------------------------


class ReleasedBlock(nn.Module):
    """A block of the released network, from its published description: names and stride positions as there."""

    def __init__(self, channels: int, out: int, stride: int, norm: str | None) -> None:
        super().__init__()
        make = nn.BatchNorm2d if norm == "batch" else lambda c: nn.Identity()
        self.bn1, self.bn2 = make(channels), make(out)
        self.conv1 = nn.Conv2d(channels, out, 3, padding=1)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, stride=stride)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels != out:
            self.shortcut.append(nn.Conv2d(channels, out, 1, stride=stride))

    def forward(self, x):
        act = nn.LeakyReLU(0.2)
        return self.conv2(act(self.bn2(self.conv1(act(self.bn1(x)))))) + self.shortcut(x)


class ReleasedNet(nn.Module):
    def __init__(self, depth: int, width: int, norm: str | None) -> None:
        super().__init__()
        n, widths = (depth - 4) // 6, [16, 16 * width, 32 * width, 64 * width]
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1)
        for i in (1, 2, 3):
            first = ReleasedBlock(widths[i - 1], widths[i], 1 if i == 1 else 2, norm)
            rest = [ReleasedBlock(widths[i], widths[i], 1, norm) for _ in range(n - 1)]
            setattr(self, f"layer{i}", nn.Sequential(first, *rest))
        self.bn1 = nn.BatchNorm2d(widths[3]) if norm == "batch" else nn.Identity()
        self.linear = nn.Linear(widths[3], 10)

    def forward(self, x):
        out = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        return nn.functional.avg_pool2d(nn.LeakyReLU(0.2)(self.bn1(out)), 8).flatten(1)


class ReleasedModel(nn.Module):
    def __init__(self, depth: int, width: int, norm: str | None) -> None:
        super().__init__()
        self.f = ReleasedNet(depth, width, norm)
        self.energy_output = nn.Linear(64 * width, 1)
        self.class_output = nn.Linear(64 * width, 10)

    def forward(self, x):
        return self.class_output(self.f(x))


@pytest.mark.parametrize("norm", [None, "batch"])
@pytest.mark.parametrize(("depth", "width"), [(10, 2), (16, 1)])
def test_released_checkpoints_give_the_same_logits(norm, depth, width, tmp_path) -> None:
    theirs = ReleasedModel(depth, width, norm).eval()
    if norm:
        for module in theirs.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.running_mean, -0.1, 0.1)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
                nn.init.uniform_(module.weight, 0.5, 1.5)
    path = tmp_path / "ckpt.pt"
    torch.save({"model_state_dict": theirs.state_dict(), "replay_buffer": torch.zeros(2, 3, 32, 32)}, path)
    ours = import_released(path)
    images = torch.rand(3, 3, 32, 32)
    torch.testing.assert_close(ours(images), theirs(2 * images - 1))
    torch.save({f"module.{k}": v for k, v in theirs.state_dict().items()}, path)
    torch.testing.assert_close(import_released(path)(images), theirs(2 * images - 1))


def test_what_is_no_released_checkpoint_is_named(tmp_path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read as weights"):
        import_released(tmp_path / "missing.pt")
    torch.save({"model_state_dict": {"a": torch.zeros(1)}}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="no released JEM or HDGE model"):
        import_released(tmp_path / "other.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match="holds a list"):
        import_released(tmp_path / "list.pt")
    state = ReleasedModel(10, 1, None).state_dict()
    torch.save({**state, "f.layer9.0.conv1.weight": torch.zeros(1)}, tmp_path / "more.pt")
    with pytest.raises(CheckpointError, match=r"1 weights do not fit.*stages\.8"):
        import_released(tmp_path / "more.pt")
    torch.save({**state, "f.bn1.weight": torch.zeros(64), "f.bn1.bias": torch.zeros(64)}, tmp_path / "ln.pt")
    with pytest.raises(CheckpointError, match="look alike"):
        import_released(tmp_path / "ln.pt")


def test_a_checkpoint_is_never_executed(tmp_path) -> None:
    class Payload:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    torch.save({"model_state_dict": Payload()}, tmp_path / "evil.pt")
    with pytest.raises(CheckpointError, match="cannot be read as weights"):
        import_released(tmp_path / "evil.pt")
    assert not (tmp_path / "owned").exists()


def test_an_activation_in_place_never_shows() -> None:
    """In place behind a norm layer, and only there: not where it was taken out, or someone looks at its output."""
    images = torch.rand(2, 1, 8, 8)
    model = eh.WideResNet(depth=10, width=1, num_classes=3, in_channels=1).eval()
    plain = copy.deepcopy(model)
    for module in plain.modules():
        if hasattr(module, "in_place"):
            module.in_place = False
    assert torch.equal(model(images), plain(images))
    seen = []
    model.norm.register_forward_hook(lambda module, given, out: seen.append(out))
    model.norm.register_full_backward_hook(lambda *args: None)
    model(images).sum().backward()
    assert (seen[0] < 0).any()
    for network in (model, plain):
        for module in network.modules():
            if hasattr(module, "norm1"):
                module.norm1 = module.norm2 = torch.nn.Identity()
    assert torch.equal(model(images), plain(images))
