"""The one forward pass: what it refuses, and that it leaves the model as it found it."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from ebmhybrid.evaluate import predict


def _images(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def _one(images: torch.Tensor, name: str = "set") -> list[tuple[torch.Tensor, torch.Tensor]]:
    class Named(list[tuple[torch.Tensor, torch.Tensor]]):
        pass

    data = Named([(images, torch.zeros(len(images), dtype=torch.int64))])
    data.name = name  # type: ignore[attr-defined]
    return data


def _flat(images: torch.Tensor) -> torch.Tensor:
    return images.flatten(1)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.tensor([[[[-2.1, 2.6]]]]), r"set 'svhn': images must lie in \[0, 1\], got \[-2.1, 2.6\]"),
        (torch.tensor([[[[0.0, 1.001]]]]), r"images must lie in \[0, 1\]"),
        (torch.tensor([[[[0.0, torch.nan]]]]), "images must be finite, got 1 NaN or inf"),
        (torch.zeros(1, 1, 1, 2, dtype=torch.uint8), "images must be floating point"),
        (torch.zeros(1, 2), "images must be floating point of shape"),
    ],
)
def test_unusable_images_are_refused_by_name(images: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        predict(_flat, _one(images, "svhn"))


@pytest.mark.parametrize(
    ("logits", "message"),
    [
        (torch.tensor([[0.0, 1.0], [torch.nan, 0.0]]), "logits must be finite, got nan at image 1, class 0"),
        (torch.tensor([[0.0, torch.inf], [0.0, 0.0]]), "logits must be finite, got inf at image 0, class 1"),
        (torch.zeros(2), "logits of shape"),
        (torch.zeros(2, 3, dtype=torch.int64), "floating point logits"),
        (torch.zeros(3, 2), r"made logits \(3, 2\) of 2 images"),
    ],
)
def test_unusable_logits_are_refused(logits: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        predict(lambda images: logits, _one(_images(2, 1, 2, 2)))


def test_position_of_a_bad_logit_counts_earlier_batches() -> None:
    data = [*_one(_images(5, 1, 1, 2)), *_one(torch.ones(1, 1, 1, 2))]
    with pytest.raises(ValueError, match="at image 5, class 0"):
        predict(lambda images: images.flatten(1) / (images.flatten(1) < 1), data)


def test_empty_sets_and_labels_of_another_length_are_refused() -> None:
    for data in ([], [(torch.zeros(0, 1, 1, 2), torch.zeros(0, dtype=torch.int64))]):
        with pytest.raises(ValueError, match="set 'test' is empty"):
            predict(_flat, data)
    with pytest.raises(ValueError, match="labels must be integers of shape"):
        predict(_flat, [(_images(2, 1, 1, 2), torch.zeros(3, dtype=torch.int64))])


def test_labels_matter_only_where_they_must() -> None:
    data = [(_images(2, 1, 1, 2), torch.tensor([0, 7]))]
    assert predict(_flat, data).labels.tolist() == [0, 7]
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 2\), got 7 at image 1"):
        predict(_flat, data, labelled=True)


def test_half_precision_logits_are_raised_and_noted() -> None:
    found = predict(lambda images: images.flatten(1).bfloat16(), _one(_images(3, 1, 1, 2)))
    assert found.logits.dtype == np.float64
    assert found.notes == ("logits came in half precision",)


def test_autocast_of_the_caller_does_not_reach_the_model() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    data = _one(_images(8, 1, 2, 2))
    plain = predict(net, data).logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        np.testing.assert_array_equal(predict(net, data).logits, plain)


def test_modes_are_restored_one_by_one_also_after_an_error() -> None:
    norm = nn.BatchNorm2d(2)
    net = nn.Sequential(nn.Conv2d(1, 2, 1), norm, nn.Flatten(), nn.Dropout(0.5))
    net.train()
    norm.eval()
    before = net.state_dict()["1.running_mean"].clone()
    first, second = (predict(net, _one(_images(4, 1, 2, 2))).logits for _ in range(2))
    np.testing.assert_array_equal(first, second)  # dropout is off
    with pytest.raises(ValueError, match="finite"):
        predict(net, _one(torch.full((1, 1, 2, 2), torch.nan)))
    assert [module.training for module in net.modules()] == [True, True, False, True, True]
    assert torch.equal(net.state_dict()["1.running_mean"], before)


def test_rounding_beyond_one_is_let_pass() -> None:
    predict(_flat, _one(torch.full((1, 1, 1, 2), 1 + 2e-7)))


def test_limit_counts_images_or_asks_the_set() -> None:
    data = [(_images(4, 1, 1, 2), torch.arange(4)), (_images(4, 1, 1, 2), torch.arange(4, 8))]
    assert predict(_flat, data, limit=6).labels.tolist() == list(range(6))
    with pytest.raises(ValueError, match="limit must be a whole number of at least 1"):
        predict(_flat, data, limit=0)

    class Subset(list[tuple[torch.Tensor, torch.Tensor]]):
        notes = ("all",)

        def take(self, limit: int) -> Subset:
            found = Subset([(images[:1], labels[:1]) for images, labels in self])
            found.notes = (f"{limit} chosen",)
            return found

    found = predict(_flat, Subset(data), limit=2)
    assert (found.labels.tolist(), found.notes) == ([0, 4], ("2 chosen",))


def test_progress_sees_every_batch() -> None:
    seen = []

    def progress(batches, text):  # type: ignore[no-untyped-def]
        for batch in batches:
            seen.append((text, len(batch[0])))
            yield batch

    predict(_flat, [*_one(_images(3, 1, 1, 2)), *_one(_images(2, 1, 1, 2))], progress=progress, name="x")
    assert seen == [("x", 3), ("x", 2)]


def test_import_is_light() -> None:
    code = (
        "import sys, ebmhybrid.evaluate as e; e.ood, e.calibration, e.robustness, e.scores, e.evaluate, e.predict;"
        "print({'torchattacks', 'netcal', 'matplotlib', 'sklearn', 'scipy', 'jinja2'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
