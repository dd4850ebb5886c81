"""From a run directory to its evaluation: find the run, rebuild its data, hand both to the evaluation suite."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml

from ebmhybrid.data import Splits
from ebmhybrid.errors import CheckpointError, DataError
from ebmhybrid.eval_sets import Source
from ebmhybrid.evaluate import suite
from ebmhybrid.measures import choose, measure
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
    data_dir: str | Path = "data",
    download: bool = True,
    device: str = "auto",
    cache: bool = True,
    progress: suite.Progress | None = None,
    **measured: Any,
) -> suite.SuiteResult:
    """Evaluate a run on its own test split, calibrated on its validation split, against OOD sets by name.

    Arguments:
        run: a run directory or a .safetensors file.
        cache: whether predictions are kept in RUN/cache, and interrupted attacks go on from there.
        measured: what to measure, the fields of :class:`ebmhybrid.measures.Measures`. What is left out or None is what
            the run's recipe says under `evaluation`, the seed the recipe's.

    Raises:
        EbmhybridError: a run, a set or a name that cannot be used.
    """
    where = pick_device(device)
    # The layout in which convolutions are faster; values differ by rounding alone.
    model = load_model(run, where).to(memory_format=torch.channels_last)
    weights, digest = find_weights(run), weights_digest(model)
    metadata: dict[str, Any] = model.metadata  # type: ignore[assignment]
    recipe = parse_recipe(metadata["recipe"], str(weights))
    # before any data set is fetched
    measures = choose({"seed": recipe.seed} | measured, recipe.evaluation)
    splits = _splits(recipe, weights, data_dir, download)
    channels, size, _ = metadata["image_shape"]
    return measure(
        model,
        splits.test,
        measures,
        Source(data_dir, download, (channels, size, size), recipe.evaluation.batch_size),
        id_name=recipe.data.test or recipe.data.train,
        # The recipe too: activation and normalisation decide the predictions, and are no part of the weights.
        weights=f"{digest} {hashlib.sha256(metadata['recipe'].encode()).hexdigest()}",
        cache=home_of(run) / "cache" if cache else None,
        validation=splits.validation,
        train=splits.train,
        context={
            "model": recipe.name,
            "weights": {"path": str(weights), "sha256": digest},
            "config": yaml.safe_load(metadata["recipe"]),
        },
        device=where,
        progress=progress,
    )


def home_of(path: str | Path) -> Path:
    """The folder that an evaluation's files go to: the run directory, or where a lone file lies."""
    path = Path(path)
    base = path if path.is_dir() else path.parent
    return base.parent if base.name == "checkpoints" else base


def evaluation_folder(path: str | Path) -> Path:
    """Make the folder of an evaluation: <run>/eval/<date-time>, or beside a lone file."""
    return fresh_folder(home_of(path) / "eval")


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
