"""The sets of an evaluation by name: strangers, OpenOOD's protocol, CIFAR-10-C."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ebmhybrid.data import ImageSet, load_set
from ebmhybrid.data.cifar10c import SEVERITIES
from ebmhybrid.data.openood import GROUPS, load_openood
from ebmhybrid.errors import DataError, UsageError

OPENOOD = "openood-v1.5"
# The fifteen whose mean is published; the files hold four more, meant for validation (Hendrycks & Dietterich 2019).
CIFAR10C_KINDS = (
    *("gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    *("snow", "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression"),
)


@dataclass(frozen=True)
class Source:
    """Where sets come from and how a model wants them: (C, H, W), images a batch; `strict` as in `load_set`."""

    data_dir: str | Path
    download: bool
    shape: tuple[int, int, int]
    batch_size: int = 256
    strict: bool = False

    def load(self, name: str) -> ImageSet:
        """The set of that name in the model's shape."""
        where = {"data_dir": self.data_dir, "download": self.download, "strict": self.strict}
        return self.prepared(load_set(name, shape=self.shape, **where))  # type: ignore[arg-type]

    def prepared(self, images: ImageSet) -> ImageSet:
        """The set in batches of this size."""
        return replace(images, batch_size=self.batch_size)


@dataclass(frozen=True)
class Strangers:
    """OOD sets by name, the groups ("near", "far") of those that have one, and a protocol's own test set."""

    sets: Mapping[str, ImageSet]
    groups: Mapping[str, str] = field(default_factory=dict)
    test: ImageSet | None = None


def load_strangers(names: Sequence[str], id_name: str, source: Source) -> Strangers:
    """The OOD sets of that name; `openood-v1.5` is several, with a test set of its own.

    Raises:
        UsageError: `openood-v1.5` for anything but cifar10 and cifar100, or one of its sets asked for twice.
        DataError: a set that cannot be had.
    """
    names = list(dict.fromkeys(names))
    if OPENOOD not in names:
        return Strangers({name: source.load(name) for name in names})
    if id_name not in GROUPS:
        raise UsageError(f"{OPENOOD} is for models of {' and '.join(GROUPS)}, and this one is tested on {id_name}")
    test, sets, groups = load_openood(id_name, source.data_dir, source.shape, download=source.download)
    others = [name for name in names if name != OPENOOD]
    if twice := sorted(set(others) & set(sets)):
        raise UsageError(f"OOD set {twice[0]!r} is one of {OPENOOD} already: leave out one of them")
    found = {name: source.prepared(images) for name, images in sets.items()}
    return Strangers(found | {name: source.load(name) for name in others}, groups, source.prepared(test))


def cifar10c_sets(id_name: str, source: Source) -> Mapping[str, Mapping[int, ImageSet]] | None:
    """corruption -> severity -> set of CIFAR-10-C, each read when asked for; None where its files do not apply.

    All of them at once would take 2.3 GB.

    Raises:
        DataError: the folder is there and one of the fifteen corruptions is not: their mean would be another figure.
    """
    folder = Path(source.data_dir).expanduser() / "CIFAR-10-C"
    if id_name != "cifar10" or not folder.is_dir():
        return None
    absent = [kind for kind in CIFAR10C_KINDS if not (folder / f"{kind}.npy").is_file()]
    if absent:
        raise DataError(f"{folder}: {absent[0]}.npy is missing, {len(absent)} of the {len(CIFAR10C_KINDS)} corruptions")
    return {kind: _Severities(kind, source) for kind in CIFAR10C_KINDS}


@dataclass(frozen=True)
class _Severities(Mapping[int, ImageSet]):
    kind: str
    source: Source

    def __getitem__(self, severity: int) -> ImageSet:
        if severity not in range(1, SEVERITIES + 1):
            raise KeyError(severity)
        return self.source.load(f"cifar10c/{self.kind}/{severity}")

    def __iter__(self) -> Iterator[int]:
        return iter(range(1, SEVERITIES + 1))

    def __len__(self) -> int:
        return SEVERITIES
