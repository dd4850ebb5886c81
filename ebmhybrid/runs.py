"""From a run directory to its evaluation or its samples: find the run, rebuild its data, hand both on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml

from ebmhybrid.data import Splits
from ebmhybrid.errors import CheckpointError, DataError
from ebmhybrid.eval_sets import Source
from ebmhybrid.evaluate import suite
from ebmhybrid.evaluate.generation_features import InceptionWeights
from ebmhybrid.generation.files import SampleResult
from ebmhybrid.generation.generate import Subject, generate, judge_of
from ebmhybrid.generation.settings import Settings
from ebmhybrid.generation.settings import choose as choose_samples
from ebmhybrid.generation.starts import has_buffer
from ebmhybrid.measures import choose, measure
from ebmhybrid.recipe import parse_recipe
from ebmhybrid.training.build import load_data
from ebmhybrid.training.checkpoint import find_weights, load_model, weights_digest
from ebmhybrid.training.engine import pick_device
from ebmhybrid.training.order import last_written
from ebmhybrid.training.records import fresh_folder

if TYPE_CHECKING:
    from ebmhybrid.schema import Recipe


def newest_run(root: str | Path = "runs") -> Path:
    """The run under `root` whose weights were written last, as :func:`ebmhybrid.training.order.last_written` has it.

    Raises:
        CheckpointError: no run there.
    """
    weights = Path(root).rglob("checkpoints/last.safetensors")
    times = {path.parent.parent: path.stat().st_mtime for path in weights}
    if not times:
        raise CheckpointError(f"{root}: no run there; make one with `ebmhybrid train`, or name a run directory")
    return last_written(times)


def evaluate_run(
    run: str | Path,
    *,
    data_dir: str | Path = "data",
    download: bool = True,
    strict: bool = False,
    device: str = "auto",
    cache: bool = True,
    progress: suite.Progress | None = None,
    **measured: Any,
) -> suite.SuiteResult:
    """Evaluate a run on its own test split, calibrated on its validation split, against OOD sets by name.

    Arguments:
        run: a run directory or a .safetensors file.
        data_dir, download, strict: as in :func:`ebmhybrid.data.load_set`.
        cache: whether predictions are kept in RUN/cache, and interrupted attacks go on from there.
        measured: what to measure, the fields of :class:`ebmhybrid.measures.Measures`. What is left out or None is what
            the run's recipe says under `evaluation`, the seed the recipe's.

    Raises:
        EbmhybridError: a run, a set or a name that cannot be used.
    """
    opened = _open_classifier(run, device)
    recipe = opened.recipe
    # before any data set is fetched
    measures = choose({"seed": recipe.seed} | measured, recipe.evaluation)
    settings = opened.settings(num=measures.samples or None, seed=measures.seed)
    splits = splits_of(recipe, opened.weights, data_dir, download, strict)
    source = replace(opened.source(data_dir, download), strict=strict)

    def samples() -> SampleResult:
        return _sampled(opened, home_of(run), splits, settings, source, progress, limit=measures.limit)

    return measure(
        opened.model,
        splits.test,
        measures,
        source,
        id_name=recipe.data.test or recipe.data.train,
        # The recipe too: activation and normalisation decide the predictions, and are no part of the weights.
        weights=f"{opened.digest} {hashlib.sha256(opened.config.encode()).hexdigest()}",
        cache=home_of(run) / "cache" if cache else None,
        validation=splits.validation,
        train=splits.train,
        context=opened.context(),
        device=opened.device,
        progress=progress,
        samples=samples,
    )


def sample_run(
    run: str | Path,
    *,
    judge: str | Path | None = None,
    inception: str | Path | None = None,
    data_dir: str | Path = "data",
    download: bool = True,
    device: str = "auto",
    progress: suite.Progress | None = None,
    **asked: Any,
) -> SampleResult:
    """Draw samples from a run's model by Langevin dynamics and measure them.

    Arguments:
        run: a run directory or a .safetensors file.
        judge: a run of the same classes and shape, in whose features and by whose labels samples are measured; "none"
            leaves these figures out, and None is a small classifier trained once and kept in RUN/cache.
        inception: a file of the Inception network's weights, for FID, KID and Inception score.
        asked: what to draw, the arguments of :func:`ebmhybrid.generation.settings.choose`: num, classes, start ...

    Raises:
        EbmhybridError: a run, a set, a name or a value that cannot be used.
    """
    opened = _open_classifier(run, device)
    settings = opened.settings(**asked)
    if inception is not None:
        InceptionWeights.read(inception).network()  # a file that does not fit is said now, not after sampling
    splits = splits_of(opened.recipe, opened.weights, data_dir, download)
    source = opened.source(data_dir, download)
    return _sampled(opened, home_of(run), splits, settings, source, progress, judge=judge, inception=inception)


def _sampled(
    opened: OpenedRun,
    home: Path,
    splits: Splits,
    settings: Settings,
    source: Source,
    progress: suite.Progress | None,
    judge: str | Path | None = None,
    **measured: Any,
) -> SampleResult:
    subject = Subject(opened.model, opened.weights, opened.recipe, splits, opened.device)
    find_judge = partial(judge_of, subject, judge, home / "cache", progress)
    return generate(subject, settings, find_judge, source.load, context=opened.context(), progress=progress, **measured)


@dataclass(frozen=True, eq=False)
class OpenedRun:
    """A run's model on its device, with what its weight file says of it."""

    model: torch.nn.Module
    device: torch.device
    weights: Path
    digest: str
    recipe: Recipe
    config: str  # the recipe as text
    classes: list[str]
    shape: tuple[int, ...]  # (C, H, W) of images, (L,) of token sequences

    def settings(self, **asked: Any) -> Settings:
        """How it is sampled: as asked, and else by its recipe."""
        buffer = has_buffer(self.recipe, self.weights)
        return choose_samples(self.recipe, self.classes, has_buffer=buffer, **asked)

    def source(self, data_dir: str | Path, download: bool) -> Source:
        """Where sets for the model come from: images in its shape, in batches of the recipe's evaluation."""
        channels, height, width = self.shape
        return Source(data_dir, download, (channels, height, width), self.recipe.evaluation.batch_size)

    def context(self) -> dict[str, Any]:
        """What results say of the model."""
        return {
            "model": self.recipe.name,
            "weights": {"path": str(self.weights), "sha256": self.digest},
            "config": yaml.safe_load(self.config),
        }


def open_run(run: str | Path, device: str = "auto") -> OpenedRun:
    """The model of a run directory or a .safetensors file, a classifier or an encoder-decoder, in evaluation mode.

    Raises:
        EbmhybridError: a run or a device that cannot be used.
    """
    where = pick_device(device)
    # The layout in which convolutions are faster; values differ by rounding alone.
    model = load_model(run, where).to(memory_format=torch.channels_last)
    weights = find_weights(run)
    metadata: dict[str, Any] = model.metadata  # type: ignore[assignment]
    config, classes = metadata["recipe"], metadata["classes"]
    recipe, shape = parse_recipe(config, str(weights)), tuple(metadata["image_shape"])
    return OpenedRun(model, where, weights, weights_digest(model), recipe, config, classes, shape)


def _open_classifier(run: str | Path, device: str) -> OpenedRun:
    opened = open_run(run, device)
    if opened.recipe.model.learns_codes:
        kind = opened.recipe.model.name
        raise CheckpointError(f"{run}: an encoder-decoder ({kind}) and no classifier; use `ebmhybrid probe {run}`")
    return opened


def home_of(path: str | Path) -> Path:
    """The folder that an evaluation's files go to: the run directory, or where a lone file lies."""
    path = Path(path)
    base = path if path.is_dir() else path.parent
    return base.parent if base.name == "checkpoints" else base


def evaluation_folder(path: str | Path) -> Path:
    """Make the folder of an evaluation: <run>/eval/<date-time>, or beside a lone file."""
    return fresh_folder(home_of(path) / "eval")


def samples_root(path: str | Path) -> Path:
    """Where the folders of samples are made: <run>/samples, or beside a lone file."""
    return home_of(path) / "samples"


def probes_root(path: str | Path) -> Path:
    """Where the folders of probes are made: <run>/probe, or beside a lone file."""
    return home_of(path) / "probe"


def save_samples(result: SampleResult, run: str | Path, out: str | Path | None = None) -> Path:
    """Write samples to `out`, else to <run>/samples/<date-time>, which is gone again should that fail."""
    return result.save(out) if out is not None else save_fresh(result.save, samples_root(run))


def save_fresh(save: Callable[[Path], Path], root: Path) -> Path:
    """Write into a new folder <root>/<date-time>, which is gone again should that fail."""
    folder = fresh_folder(root)
    try:
        return save(folder)
    except BaseException:
        with suppress(OSError):
            folder.rmdir()
            folder.parent.rmdir()
        raise


def splits_of(recipe: Recipe, weights: Path, data_dir: str | Path, download: bool, strict: bool = False) -> Splits:
    """The run's splits; where the run recorded their hashes, another test set under the same name is an error."""
    splits = load_data(recipe, str(data_dir), download, strict)
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
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        why = type(error).__name__
        raise CheckpointError(
            f"{record}: cannot be read as a run's record ({why}); without the file the run is evaluated all the same, "
            "and nobody checks that the images are those it was made with"
        ) from error
