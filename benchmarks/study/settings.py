"""What the study trains on and tests against: data, network and budget of each setting, the same for all objectives."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import ebmhybrid as eh
from ebmhybrid.schema import Recipe

# Official set -> the files of an npz folder that stand for its training and its test split
FILES = {
    "fashion_mnist": ("fashion_train.npz", "fashion_test.npz"),
    "cifar10": ("cifar10_train.npz", "cifar10_test.npz"),
    "mnist": ("mnist_5k.npz", "mnist_5k.npz"),
}


@dataclass(frozen=True)
class Place:
    """Where sets come from: downloads under `data_dir`, or the files of `npz`, plain arrays of the same sets."""

    data_dir: str = "data"
    npz: str | None = None

    def name(self, data: str, split: int = 1) -> str:
        """The data name under which a set's training (0) or test split (1) is found here."""
        own, colon, classes = data.partition(":")
        if self.npz is None or own not in FILES:
            return f"interp:{self.name(classes)}" if own == "interp" else data
        return f"npz:{Path(self.npz, FILES[own][split])}{colon}{classes}"


@dataclass(frozen=True)
class Setting:
    """A data set with its network and budget.

    Arguments:
        file: the recipe beside this module that each run changes.
        train: data name.
        ood: what a figure calls an OOD set -> data name. Only digits, photos and noise need no download.
        near: those of them that resemble the training images; the others are far.
        eps: radii of the attacks, as a figure names them.
        tuning: measures validation images against families that are no OOD test set, and nothing else.
    """

    name: str
    title: str
    file: str
    train: str
    ood: dict[str, str]
    near: tuple[str, ...]
    eps: tuple[str, ...] = ("1/255", "2/255", "4/255", "8/255")
    changes: tuple[str, ...] = ()
    tuning: bool = False

    @property
    def far(self) -> tuple[str, ...]:
        """OOD sets that are not near."""
        return tuple(name for name in self.ood if name not in self.near)

    @cached_property
    def radii(self) -> list[float]:
        """The radii as numbers."""
        return [int(above) / int(below) for above, _, below in (eps.partition("/") for eps in self.eps)]

    def recipe(self, changes: str, seed: int, place: Place) -> Recipe:
        """The recipe of a run: the setting's, changed."""
        data = [f"data.train={place.name(self.train, 0)}"]
        if data[0] != f"data.train={self.train}":
            data.append(f"data.test={place.name(self.train)}")
        overrides = [*data, *self.changes, *changes.split(), f"seed={seed}", f"name=study_{self.name}"]
        return eh.load_recipe(Path(__file__).parent / "settings" / f"{self.file}.yaml", overrides)


_SMALL = {"photos": "photos", "noise": "noise"}
_FASHION = {"mnist": "mnist", **_SMALL, "interp": "interp:fashion_mnist"}
_CIFAR = {"mnist": "mnist", "fashion_mnist": "fashion_mnist", **_SMALL, "interp": "interp:cifar10"}

SETTINGS = {
    setting.name: setting
    for setting in (
        Setting(
            "digits",
            "8x8 digits 0-6 (scikit-learn), WRN-10-1",
            "digits",
            "digits:0-6",
            {"held_out": "digits:7-9", **_SMALL},
            ("held_out",),
            ("4/255", "8/255", "16/255", "32/255"),
        ),
        Setting("fashion", "Fashion-MNIST, WRN-10-2", "fashion", "fashion_mnist", _FASHION, ("interp",)),
        Setting(
            "fashion_held_out",
            "Fashion-MNIST, seven classes, WRN-10-2",
            "fashion",
            "fashion_mnist:0-6",
            {"held_out": "fashion_mnist:7-9"},
            ("held_out",),
        ),
        Setting("cifar10", "CIFAR-10, WRN-16-2", "cifar10", "cifar10", _CIFAR, ("interp",)),
        Setting(
            "cifar10_held_out",
            "CIFAR-10, seven classes, WRN-16-2",
            "cifar10",
            "cifar10:0-6",
            {"held_out": "cifar10:7-9"},
            ("held_out",),
        ),
        Setting("cost_fashion", "The time of a step, Fashion-MNIST", "fashion", "fashion_mnist", {}, ()),
        Setting("tuning_digits", "8x8 digits", "digits", "digits:0-6", {}, (), tuning=True),
        Setting(
            "tuning_fashion",
            "Fashion-MNIST, 5 epochs, batches of 128",
            "fashion",
            "fashion_mnist",
            {},
            (),
            changes=("training.epochs=5", "training.batch_size=128"),
            tuning=True,
        ),
        Setting(
            "tuning_cifar10",
            "CIFAR-10, 7 epochs",
            "cifar10",
            "cifar10",
            {},
            (),
            changes=("training.epochs=7",),
            tuning=True,
        ),
    )
}
