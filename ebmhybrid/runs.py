"""From a run directory to its evaluation: find the run, rebuild its data, hand both to the evaluation suite."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml

from ebmhybrid.data import ImageSet, Splits, load_set
from ebmhybrid.errors import CheckpointError, DataError, UsageError
from ebmhybrid.evaluate import suite
from ebmhybrid.recipe import parse_recipe
from ebmhybrid.training.checkpoint import find_weights, load_model, weights_digest
from ebmhybrid.training.engine import pick_device
from ebmhybrid.training.records import fresh_folder
from ebmhybrid.training.setup import load_data, pick_precision

if TYPE_CHECKING:
    from ebmhybrid.schema import Recipe


def newest_run(root: str | Path = "runs") -> Path:
    """The run under `root` whose weights were written last.

    Raises:
        CheckpointError: no run there.
    """
    weights = list(Path(root).rglob("checkpoints/last.safetensors"))
    if not weights:
        raise CheckpointError(f"{root}: no run there; make one with `ebmhybrid train`, or name a run directory")
    return max(weights, key=lambda path: path.stat().st_mtime_ns).parent.parent


def evaluate_run(
    run: str | Path,
    *,
    ood: Sequence[str] | None = None,
    scores: Sequence[str] | None = None,
    calibration: bool = True,
    attacks: Sequence[str] | None = None,
    norm: str | None = None,
    eps: float | None = None,
    limit: int | None = None,
    data_dir: str | Path = "data",
    download: bool = True,
    device: str = "auto",
    progress: suite.Progress | None = None,
) -> suite.SuiteResult:
    """Evaluate a run on its own test split, calibrated on its validation split, against OOD sets by name.

    Arguments:
        run: a run directory or a .safetensors file.
        ood, scores, attacks, norm, eps: None takes what the run's recipe says under `evaluation`.
        limit: at most so many images of each set.

    Raises:
        EbmhybridError: a run, a set or a name that cannot be used.
    """
    where = pick_device(device)
    # The layout in which convolutions are faster; values differ by rounding alone.
    model = load_model(run, where).to(memory_format=torch.channels_last)
    weights = find_weights(run)
    metadata: dict[str, Any] = model.metadata  # type: ignore[assignment]
    recipe = parse_recipe(metadata["recipe"], str(weights))
    defaults = recipe.evaluation
    names = list(dict.fromkeys(defaults.ood if ood is None else ood))
    scores = defaults.scores if scores is None else scores
    attacks = defaults.attacks if attacks is None else attacks
    if not attacks and (eps is not None or norm is not None):
        raise UsageError("eps and norm belong to an attack, and none was asked for: add --attack pgd")
    norm, eps = norm or defaults.norm, defaults.eps if eps is None else eps
    suite.check(scores, attacks, norm, eps)  # before any data set is fetched
    splits = _splits(recipe, weights, data_dir, download)
    channels, size, _ = metadata["image_shape"]

    def prepared(images: ImageSet) -> ImageSet:
        return replace(images, batch_size=defaults.batch_size)

    ood_sets = {
        name: prepared(load_set(name, data_dir=data_dir, download=download, shape=(channels, size, size)))
        for name in names
    }
    return suite.evaluate(
        model,
        prepared(splits.test),
        validation=prepared(splits.validation),
        ood_sets=ood_sets,
        scores=scores,
        calibration=calibration,
        attacks=attacks,
        norm=norm,
        eps=eps,
        generator=torch.Generator().manual_seed(recipe.seed),
        limit=limit,
        progress=progress,
        context={
            "model": recipe.name,
            "weights": {"path": str(weights), "sha256": weights_digest(model)},
            "config": yaml.safe_load(metadata["recipe"]),
        },
        device=where,
    )


def evaluation_folder(run: str | Path) -> Path:
    """Make the folder of a run's evaluation: <run>/eval/<date-time>, or beside a lone weight file."""
    run = Path(run)
    base = run if run.is_dir() else run.parent
    return fresh_folder((base.parent if base.name == "checkpoints" else base) / "eval")


def _splits(recipe: Recipe, weights: Path, data_dir: str | Path, download: bool) -> Splits:
    """The run's splits; where the run recorded their hashes, another test set under the same name is an error."""
    splits = load_data(recipe, str(data_dir), download)
    record = weights.parent.parent / "env.json"
    if record.is_file():
        recorded = _recorded(record)
        for part in ("validation", "test"):
            if recorded[part] != getattr(splits, part).digest():
                raise DataError(
                    f"{recipe.data.train}: its {part} images are not those the run was made with (their sha256 "
                    f"differs from {record})"
                )
    return splits


def _recorded(record: Path) -> dict[str, str]:
    try:
        data = json.loads(record.read_text(encoding="utf-8"))["data"]
        return {part: str(data[part]["sha256"]) for part in ("validation", "test")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{record}: cannot be read as a run's record ({type(error).__name__})") from error


def doctor() -> Iterator[tuple[str, str]]:
    """What this installation has, as (name, value) lines: versions, devices, precision, optional extras."""
    import platform
    from importlib import metadata
    from importlib.util import find_spec

    from ebmhybrid._version import __version__

    yield "ebmhybrid", __version__
    yield "python", f"{platform.python_version()} on {platform.platform()}"
    for name in ("torch", "torchvision", "numpy", "scipy", "scikit-learn", "torchattacks", "netcal"):
        yield name, metadata.version(name)
    from ebmhybrid.kernels import describe

    auto = pick_precision("auto", pick_device("auto"))
    yield "precision", f"training.precision=auto is {str(auto).removeprefix('torch.')} here"
    yield "kernels", describe()
    yield "threads", str(torch.get_num_threads())
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            yield f"cuda:{index}", torch.cuda.get_device_name(index)
    else:
        yield "cuda", "not available: runs use the CPU"
    yield "timm models", "yes" if find_spec("timm") else "no: pip install 'ebmhybrid[timm]', or '.[timm]' in the source"
