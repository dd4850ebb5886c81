"""Models that ebmhybrid never trained: their logits against the bare network, their files, their data."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision import models

from ebmhybrid.errors import CheckpointError, EbmhybridError, UsageError
from ebmhybrid.evaluate import suite
from ebmhybrid.evaluate.predictions import predict
from ebmhybrid.evaluations import evaluate_external, evaluate_logits
from ebmhybrid.external import load_external, read_state_dict

NAME = "torchvision/shufflenet_v2_x0_5"
CLASSES = 3
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(scope="module")
def bare() -> nn.Module:
    """The network without our wrapper, its batch norms fitted to data so that the logits depend on the image."""
    torch.manual_seed(1)
    network = models.shufflenet_v2_x0_5(num_classes=CLASSES)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    network(torch.rand(16, 3, 32, 32))
    return network.eval()


@pytest.fixture(scope="module")
def weights(bare: nn.Module, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "w.pth"
    torch.save(bare.state_dict(), path)
    return path


def by_hand(bare: nn.Module, images: Tensor, mean: Any = MEAN, std: Any = STD) -> Tensor:
    with torch.no_grad():
        return bare((images - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1))


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}{name}": value for name, value in state.items()}


FORMS = {
    "plain": lambda state: state,
    "DataParallel": lambda state: prefixed(state, "module."),
    "compiled DataParallel": lambda state: prefixed(state, "_orig_mod.module."),
    "nested": lambda state: {"epoch": 3, "state_dict": state, "optimizer": {"state": {}}},
    "nested, DataParallel": lambda state: {"state_dict": prefixed(state, "module.")},
    "under model": lambda state: {"model": state, "ema": None},
    "under model_state_dict": lambda state: {"model_state_dict": state},
    "our wrapper's": lambda state: prefixed(state, "backbone."),
    "without counters": lambda state: {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")},
    "in float64": lambda state: {k: v.double() if v.is_floating_point() else v for k, v in state.items()},
}


def check_logits(path: Path, bare: nn.Module) -> None:
    images = torch.rand(4, 3, 32, 32)
    model = load_external(NAME, path)
    assert not model.training
    assert model.num_classes == CLASSES
    with torch.no_grad():
        torch.testing.assert_close(model(images), by_hand(bare, images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_weights_in_every_form_give_the_bare_networks_logits(form, bare, tmp_path) -> None:
    torch.save(FORMS[form](bare.state_dict()), tmp_path / "w.pth")
    check_logits(tmp_path / "w.pth", bare)


@pytest.mark.parametrize("form", ["plain", "compiled DataParallel", "without counters"])
def test_safetensors_give_the_bare_networks_logits(form, bare, tmp_path) -> None:
    save_file(FORMS[form](bare.state_dict()), tmp_path / "w.safetensors")
    check_logits(tmp_path / "w.safetensors", bare)


def test_the_given_normalisation_is_used(bare, weights) -> None:
    images = torch.rand(2, 3, 32, 32)
    for mean, std in (([0.5], [0.25]), ([0.1, 0.2, 0.3], [0.9, 0.8, 0.7])):
        with torch.no_grad():
            found = load_external(NAME, weights, mean=mean, std=std)(images)
        torch.testing.assert_close(found, by_hand(bare, images, mean, std), rtol=1e-4, atol=1e-4)
        assert not torch.allclose(found, by_hand(bare, images), atol=1e-2)


@pytest.mark.parametrize(
    ("name", "classes"),
    [("squeezenet1_1", 2), ("squeezenet1_1", 1000), ("mobilenet_v3_small", 2), ("shufflenet_v2_x0_5", 1000)],
)
def test_the_classes_are_read_from_any_head(name, classes, tmp_path) -> None:
    """A convolution, two layers, one layer; and the number of classes that the network was built for."""
    network = models.get_model(name, num_classes=classes).eval()
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    model = load_external(f"torchvision/{name}", tmp_path / "w.safetensors")
    assert model.num_classes == classes
    images = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        assert model(images).shape == (1, classes)
        torch.testing.assert_close(model(images), by_hand(network, images), rtol=1e-4, atol=1e-4)


def test_timm_models_in_one_channel_and_another_size(tmp_path) -> None:
    timm = pytest.importorskip("timm")
    network = timm.create_model("test_vit", num_classes=5, in_chans=1, img_size=32).eval()
    torch.save({"state_dict": prefixed(network.state_dict(), "module.")}, tmp_path / "w.pt")
    model = load_external("timm/test_vit", tmp_path / "w.pt", channels=1, mean=0.0, std=1.0, img_size=32)
    images = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(images), network(images))
    with pytest.raises(CheckpointError, match=r"of another shape: patch_embed\.proj\.weight \(64, 1.* for \(64, 3"):
        load_external("timm/test_vit", tmp_path / "w.pt", img_size=32)


def test_another_number_of_classes_is_named(weights) -> None:
    assert load_external(NAME, weights, 3).num_classes == 3
    with pytest.raises(CheckpointError, match=r"w\.pth: its weights are for 3 classes, not for num_classes = 7"):
        load_external(NAME, weights, 7)


def test_weights_of_another_network_are_named(bare, weights, tmp_path) -> None:
    with pytest.raises(
        CheckpointError, match=r"not the weights of torchvision/resnet18 \(\d+ missing: conv1\.weight, "
    ):
        load_external("torchvision/resnet18", weights)
    with pytest.raises(
        CheckpointError, match=r"\(268 of another shape: stage2\.0\.branch1\.2\.weight \(24, .*, \.\.\.\)"
    ):
        load_external("torchvision/shufflenet_v2_x1_0", weights)
    state = dict(bare.state_dict())
    state["extra.weight"] = torch.zeros(1)
    del state["fc.bias"]
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=r"\(1 missing: fc\.bias; 1 unexpected: extra\.weight\)"):
        load_external(NAME, tmp_path / "w.pt", 3)
    state = bare.state_dict() | {"fc.bias": torch.zeros(4)}
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=r"of another shape: fc\.weight"):
        load_external(NAME, tmp_path / "w.pt")


@pytest.mark.parametrize("name", ["resnet18", "", "torchvision/", "timm", "wide_resnet", "keras/resnet50"])
def test_a_name_of_no_library_is_refused(name, weights) -> None:
    with pytest.raises(UsageError, match=f"model '{name}' must be torchvision/NAME or timm/NAME"):
        load_external(name, weights)


def test_wrong_names_and_options_are_named(weights) -> None:
    for changes, message in (
        ({"model": "torchvision/shufflenet_v2_x0_6"}, "did you mean 'shufflenet_v2_x0_5'"),
        ({"channels": 1}, "takes 3 channels, got 1"),
        ({"mean": (0.5, 0.5)}, "mean must be 1 or 3 finite numbers"),
        ({"std": 0.0}, "std must be positive"),
        ({"colour": 1}, "unexpected keyword argument 'colour'"),
    ):
        with pytest.raises(UsageError, match=message):
            load_external(**({"model": NAME, "weights": weights} | changes))


class Planted:
    """What a hostile file would hold: unpickling it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (self.path.write_text, ("ran",))


def test_nothing_in_a_weight_file_is_executed(bare, tmp_path) -> None:
    torch.save({"state_dict": bare.state_dict(), "args": Planted(tmp_path / "ran")}, tmp_path / "hostile.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Planted(tmp_path / "ran")))
    torch.save(bare, tmp_path / "whole.pt")
    for name in ("hostile", "plain", "whole"):
        with pytest.raises(CheckpointError, match=r"\.pt: ") as caught:
            load_external(NAME, tmp_path / f"{name}.pt")
        assert "\n" not in str(caught.value)
    assert "a pickled torchvision.models.shufflenetv2.ShuffleNetV2, and nothing in a weight file" in str(caught.value)
    assert "torch.save(model.state_dict(), 'weights.pt')" in str(caught.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.filterwarnings("ignore")
def test_a_torchscript_program_is_not_run(tmp_path) -> None:
    torch.jit.script(nn.Linear(2, 2)).save(tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=r"a TorchScript program, .*state_dict\(\)"):
        load_external(NAME, tmp_path / "w.pt")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("w.pt", b"", "cannot be read as weights"),
        ("w.pt", b"no weights", "cannot be read as weights"),
        ("w.safetensors", b"", "cannot be read as weights"),
        ("w.safetensors", b"\xff" * 64, "cannot be read as weights"),
    ],
)
def test_damaged_files_are_named(name, content, message, tmp_path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"w\..*: {message}") as caught:
        read_state_dict(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_files_without_a_state_dict_are_named(weights, tmp_path) -> None:
    cut = tmp_path / "cut.pth"
    cut.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"cut\.pth: cannot be read as weights"):
        read_state_dict(cut)
    for content, message in (
        ([torch.zeros(1)], "holds a list, not a state dict"),
        ({"epoch": 1, "loss": 0.5}, "holds epoch, loss, and no state dict there or under state_dict,"),
        ({}, "holds nothing, and no state dict"),
    ):
        torch.save(content, tmp_path / "x.pt")
        with pytest.raises(CheckpointError, match=message):
            read_state_dict(tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="no such weight file"):
        read_state_dict(tmp_path)


# --- a whole evaluation


def pictures(folder: Path, names: tuple[str, ...] = ("ant", "bee", "cat"), n: int = 4, seed: int = 0) -> str:
    """A folder of random pictures, one sub-folder a class."""
    rng = np.random.default_rng(seed)
    for name in names:
        (folder / name).mkdir(parents=True)
        for number in range(n):
            pixels = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return f"folder:{folder}"


@pytest.fixture
def asked(monkeypatch) -> dict[str, Any]:
    """What the suite is asked for, in place of its work."""
    found: dict[str, Any] = {}

    def evaluate(model: nn.Module, test: Any, **settings: Any) -> None:
        found.update(settings, model=model, test=test)

    monkeypatch.setattr(suite, "evaluate", evaluate)
    return found


def test_what_the_suite_is_asked_for(asked, bare, weights, tmp_path) -> None:
    data, other, train = (pictures(tmp_path / part, seed=seed) for seed, part in enumerate("abc"))
    evaluate_external(
        NAME,
        weights,
        data,
        validation=other,
        train_data=train,
        image_size=32,
        device="cpu",
        ood=["noise"],
        scores=["msp"],
        attacks=["pgd"],
        eps=[0.1, 0.2],
        steps=3,
        seed=5,
    )
    assert asked["test"].shape == (3, 32, 32)
    assert asked["test"].classes == ("ant", "bee", "cat")
    assert [asked[part].name for part in ("test", "validation", "train_set")] == [data, other, train]
    assert list(asked["ood_sets"]) == ["noise"]
    assert asked["ood_sets"]["noise"].shape == (3, 32, 32)
    expected = {"scores": ["msp"], "attacks": ["pgd"], "eps": [0.1, 0.2], "steps": 3, "norm": "linf", "sanity": None}
    assert {name: asked[name] for name in expected} == expected
    assert asked["generator"].initial_seed() == 5
    assert asked["cache"].folder == weights.parent / "cache"
    assert asked["journal"].parent == asked["cache"].folder
    assert asked["context"]["model"] == NAME
    assert asked["context"]["notes"] == [
        "images are normalised by mean 0.485, 0.456, 0.406 and std 0.229, 0.224, 0.225, by default ImageNet's;"
        " --mean and --std set others"
    ]
    logits = predict(asked["model"], asked["test"]).logits
    images = torch.cat([images for images, _ in asked["test"]])
    np.testing.assert_allclose(logits, by_hand(bare, images).numpy(), rtol=1e-4, atol=1e-4)


def test_pictures_are_224_wide_and_without_validation_there_is_no_temperature(asked, weights, tmp_path) -> None:
    evaluate_external(NAME, weights, pictures(tmp_path / "a", n=1), mean=0.5, std=0.5, cache=False)
    assert asked["test"].shape == (3, 224, 224)
    assert asked["validation"] is None
    assert asked["train_set"] is None
    assert (asked["cache"], asked["journal"]) == (None, None)
    assert asked["context"]["notes"] == ["no temperature was fitted, which takes held-out images: --validation NAME"]


def test_named_data_keep_their_size(asked, tmp_path) -> None:
    torch.save(models.shufflenet_v2_x0_5(num_classes=10).state_dict(), tmp_path / "w.pt")
    evaluate_external(NAME, tmp_path / "w.pt", "digits:0-6", calibration=False, limit=5)
    assert asked["test"].shape == (3, 8, 8)
    assert asked["test"].notes[-1] == "gray -> RGB"
    assert asked["limit"] == 5
    assert len(asked["context"]["notes"]) == 1


WRONG: dict[str, tuple[str, Any]] = {
    "more classes": (r"has 4 classes \(a, b, c, \.\.\.\), the weights .* have 3", {"data": "abcd"}),
    "fewer classes": (r"has 2 classes \(a, b\), the weights .* have 3; .*order of its sub-folders", {"data": "ab"}),
    "some digits": (r"digits:7-8: has 2 classes \(7, 8\)", {"data": "digits:7-8"}),
    "more digits": (r"digits:0-4: has 5 classes \(0, 1, 2, \.\.\.\), the weights", {"data": "digits:0-4"}),
    "validation of other classes": ("its classes are not those of .*, 'd' stands for 'c'", {"validation": "abd"}),
    "validation of more classes": ("has 4 classes", {"validation": "abcd"}),
    "training set of other classes": ("'d' stands for 'c'", {"train_data": "abd"}),
    "validation is the test set": ("is the test set itself", {"validation": "abc"}),
    "training set is the test set": ("is the test set itself", {"train_data": "abc"}),
    "no such data": ("unknown data set 'digitz', did you mean 'digits'", {"data": "digitz"}),
    "no such folder": ("there is no folder", {"data": "folder:none"}),
    "no such device": ("device 'gpu9'", {"device": "gpu9"}),
    "no such score": ("unknown score 'enrgy'", {"scores": ["enrgy"]}),
    "no training set": ("score 'knn' needs the training set", {"scores": ["knn"]}),
    "no held-out set": ("score 'temperature' needs ", {"scores": ["temperature"]}),
    "no attack": ("eps: without effect, for no attack was asked for", {"eps": 0.1}),
    "no attack for sanity": ("sanity: without effect", {"sanity": True}),
    "no OOD set to attack": ("attack_detector needs OOD images", {"attack_detector": True}),
    "no corruptions": ("severities belong to corruptions", {"severities": [1]}),
    "openood": (
        "openood-v1.5 is for models of cifar10 and cifar100, and this one is tested on folder:abc",
        {"ood": ["openood-v1.5"]},
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_named(case, asked, weights, tmp_path, monkeypatch) -> None:
    """In the cases letters are the sub-folders of a folder of pictures, the same letters the same folder."""
    monkeypatch.chdir(tmp_path)
    for letters in ("ab", "abc", "abd", "abcd"):
        pictures(tmp_path / letters, tuple(letters), n=1)
    message, changes = WRONG[case]
    arguments = {"data": "abc", "image_size": 32} | changes
    for name in ("data", "validation", "train_data"):
        if (tmp_path / str(arguments.get(name))).is_dir():
            arguments[name] = f"folder:{arguments[name]}"
    with pytest.raises(EbmhybridError, match=message) as caught:
        evaluate_external(NAME, weights, **arguments)
    assert "\n" not in str(caught.value)
    assert not asked


def test_a_size_that_the_model_cannot_take_is_one_line(asked, tmp_path) -> None:
    torch.save(models.squeezenet1_1(num_classes=3).state_dict(), tmp_path / "w.pt")
    with pytest.raises(UsageError, match=r"cannot take images of \(3, 4, 4\): .*too small.*; --image-size"):
        evaluate_external("torchvision/squeezenet1_1", tmp_path / "w.pt", pictures(tmp_path / "a", n=1), image_size=4)
    assert not asked


def test_pictures_of_no_square_shape_need_a_size(asked, weights, tmp_path) -> None:
    np.savez(tmp_path / "x.npz", x=np.zeros((3, 8, 9, 3), np.uint8), y=np.arange(3))
    with pytest.raises(UsageError, match="its images are 8x9, not square: add --image-size N"):
        evaluate_external(NAME, weights, f"npz:{tmp_path / 'x.npz'}")
    evaluate_external(NAME, weights, f"npz:{tmp_path / 'x.npz'}", image_size=16)
    assert asked["test"].shape == (3, 16, 16)


def test_another_normalisation_has_other_predictions_and_another_journal(asked, weights, tmp_path) -> None:
    """The weights are the same, and so a cache by weights alone would give the figures of the first."""
    data = pictures(tmp_path / "a", n=1)
    models, journals = set(), set()
    for changes in ({}, {"mean": 0.5}, {"std": 0.5}):
        evaluate_external(NAME, weights, data, image_size=32, attacks=["fgsm"], **changes)
        models.add(asked["cache"].weights)
        journals.add(asked["journal"])
    assert len(models) == len(journals) == 3


def test_a_journal_is_of_its_settings_alone(asked, weights, tmp_path) -> None:
    data = pictures(tmp_path / "a", n=2)
    names = []
    for changes in ({}, {}, {"eps": 0.1}, {"steps": 3}, {"seed": 1}, {"limit": 2}, {"norm": "l2"}, {"eot": 2}):
        evaluate_external(NAME, weights, data, image_size=32, **({"attacks": ["pgd"]} | changes))
        names.append(asked["journal"])
    assert names[0] == names[1]
    assert len(set(names)) == len(names) - 1
    evaluate_external(NAME, weights, data, image_size=32)
    assert asked["journal"] is None


def test_unknown_measures_are_refused_before_anything_is_read() -> None:
    with pytest.raises(TypeError, match="'attack'"):
        evaluate_external(NAME, "none.pt", "none", attack="pgd")


def test_logits_reach_the_suite(monkeypatch, tmp_path) -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(6, 3)), rng.integers(0, 3, 6)
    np.savez(tmp_path / "x.npz", logits=logits, labels=labels, ood_far_logits=logits[:2])
    found: dict[str, Any] = {}
    monkeypatch.setattr(suite, "evaluate_predictions", lambda test, **s: found.update(s, test=test), raising=False)
    evaluate_logits(tmp_path / "x.npz", scores=["msp"])
    np.testing.assert_array_equal(found["test"].logits, logits)
    assert list(found["ood"]) == ["far"]
    assert (found["validation"], found["train"], found["head"], found["scores"]) == (None, None, None, ["msp"])
    assert found["context"]["notes"] == [
        "no temperature was fitted, which takes held-out images: validation_logits and validation_labels"
    ]
    evaluate_logits(tmp_path / "x.npz", calibration=False)
    assert found["context"]["notes"] == []


def test_a_missing_file_of_logits_is_named() -> None:
    with pytest.raises(EbmhybridError, match=r"none\.npz: there is no such file"):
        evaluate_logits("none.npz")
