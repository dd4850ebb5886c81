"""What an evaluation measures, whatever the model: options checked against each other, then one call of the suite."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import torch

from ebmhybrid._version import __version__
from ebmhybrid.data import ImageSet
from ebmhybrid.errors import UsageError
from ebmhybrid.eval_sets import Source, cifar10c_sets, load_strangers
from ebmhybrid.evaluate import suite
from ebmhybrid.evaluate.attacks import QUERIES
from ebmhybrid.evaluate.cache import PredictionCache


@dataclass(frozen=True)
class Measures:
    """What to measure; the arguments of :func:`ebmhybrid.evaluate.evaluate`, with OOD sets by name.

    Arguments:
        ood: names of data sets, or `openood-v1.5`.
        scores: OOD scores, or `all`.
        calibration: whether to measure it.
        attacks, norm, steps, restarts, eot, queries: see :func:`ebmhybrid.evaluate.evaluate_robustness`.
        eps, sweep: one radius, run at 1/4, 1/2, 1 and 2 times, without `sweep` alone; or several, run as they are.
        sanity: the signs of masked gradients; None is where an attack runs.
        attack_detector, refine: whether to attack the OOD score, and SGLD-refined inference, too.
        corruptions, severities: whether to corrupt the test images, and how far, 1 to 5.
        samples: how many images to draw from the model and to measure; of runs alone.
        limit: at most so many images of each set.
        seed: of the attacks' random starts.
    """

    ood: Sequence[str] = ()
    scores: Sequence[str] = ("energy", "msp")
    calibration: bool = True
    attacks: Sequence[str] = ()
    norm: str = "linf"
    eps: float | Sequence[float] = 8 / 255
    steps: int = 20
    restarts: int = 1
    eot: int = 1
    queries: int = QUERIES
    sweep: bool = True
    sanity: bool | None = None
    attack_detector: bool = False
    refine: bool = False
    corruptions: bool = False
    severities: Sequence[int] = (1, 2, 3, 4, 5)
    samples: int = 0
    limit: int | None = None
    seed: int = 0


class Sampled(Protocol):
    """Samples of the model as an evaluation takes them, such as :class:`ebmhybrid.generation.files.SampleResult`."""

    @property
    def figures(self) -> Any: ...
    @property
    def settings(self) -> Any: ...
    @property
    def notes(self) -> tuple[str, ...]: ...
    def lead(self) -> str:
        """How they came about, in sentences."""
        ...


_OF_ATTACKS = ("norm", "eps", "steps", "restarts")
_OF_ACCURACY_ATTACKS = ("eot", "sanity")


def choose(given: Mapping[str, Any], defaults: Any = None) -> Measures:
    """The measures of what is given, where that is not None, and else of the attributes that `defaults` has.

    Raises:
        UsageError: a name or a radius that cannot be used, or an option without the one it belongs to.

    >>> choose({"scores": ["msp"], "seed": None}).scores
    ['msp']
    """
    given = {name: value for name, value in given.items() if value is not None}
    own = {field.name: getattr(defaults, field.name, field.default) for field in fields(Measures)}
    measures = Measures(**{**own, **given})
    attacked = bool(measures.attacks or measures.attack_detector or measures.refine)
    idle = [name for name in given if name in _OF_ATTACKS and not attacked]
    idle += [name for name in _OF_ACCURACY_ATTACKS if given.get(name) and not measures.attacks]
    if idle:
        raise UsageError(f"{' and '.join(idle)}: without effect, for no attack was asked for; add --attack pgd")
    if "queries" in given and "square" not in measures.attacks:
        raise UsageError("queries are Square's, which was not asked for: add --attack square")
    if measures.attack_detector and not measures.ood:
        raise UsageError("attack_detector needs OOD images: add --ood NAME")
    if "severities" in given and not measures.corruptions:
        raise UsageError("severities belong to corruptions, and none were asked for: add --corruptions")
    attacks = measures.attacks or (["pgd"] if attacked else [])
    effort = (measures.steps, measures.restarts, measures.eot, measures.queries)
    if not isinstance(measures.samples, int) or measures.samples < 0 or measures.samples == 1:
        raise UsageError(f"samples must be 0 or a whole number of at least 2, got {measures.samples!r}")
    suite.check(measures.scores, attacks, measures.norm, measures.eps, *effort)
    return measures


def measure(
    model: torch.nn.Module,
    test: ImageSet,
    measures: Measures,
    source: Source,
    *,
    id_name: str,
    weights: str,
    cache: Path | None,
    validation: ImageSet | None = None,
    train: ImageSet | None = None,
    context: Mapping[str, Any] | None = None,
    device: torch.device | str | None = None,
    progress: suite.Progress | None = None,
    samples: Callable[[], Sampled] | None = None,
) -> suite.SuiteResult:
    """Load the sets that the measures name, and evaluate the model.

    Arguments:
        id_name: the data name of the test set, which decides on OpenOOD's lists and CIFAR-10-C.
        weights: what identifies the model, in whatever decides its predictions.
        cache: a folder for predictions and for what attacks have found so far; None keeps neither.
        samples: draws and measures as many as the measures say; None where the model has no recipe to do so by.
    """
    if measures.samples and samples is None:
        raise UsageError("samples are drawn from a run, whose recipe says how, and this model has none")
    strangers = load_strangers(measures.ood, id_name, source)
    ood_test = strangers.test
    if ood_test is not None and ood_test.digest() == test.digest():
        test, ood_test = ood_test, None  # the same images, with the protocol's notes
    test = source.prepared(test)
    passed = asdict(measures)
    del passed["ood"], passed["seed"], passed["samples"]
    # First: should they fail, the figures of long attacks are not lost.
    sampled = samples() if samples is not None and measures.samples else None
    journal = None
    if cache and measures.attacks:
        asked = [passed[name] for name in (*_OF_ATTACKS, "attacks", "eot", "queries", "sweep", "limit")]
        journal = cache / f"attacks-{_digest(weights, test.digest(), str(device), asked, measures.seed)}.jsonl"
    result = suite.evaluate(
        model,
        test,
        validation=source.prepared(validation) if validation else None,
        train_set=source.prepared(train) if train else None,
        ood_sets=strangers.sets,
        groups=strangers.groups or None,
        ood_test=source.prepared(ood_test) if ood_test else None,
        corruption_sets=cifar10c_sets(id_name, source) if measures.corruptions else None,
        generator=torch.Generator().manual_seed(measures.seed),
        cache=PredictionCache(cache, weights) if cache else None,
        journal=journal,
        progress=progress,
        context=context,
        device=device,
        **passed,
    )
    return result if sampled is None else _with_samples(result, sampled)


def _with_samples(result: suite.SuiteResult, sampled: Sampled) -> suite.SuiteResult:
    notes = [*result.context.get("notes", ()), *sampled.notes]
    return replace(
        result,
        generation=sampled.figures,
        settings={**result.settings, "samples": asdict(sampled.settings)},
        context={**result.context, "notes": notes, "samples": sampled.lead()},
    )


def _digest(*parts: Any) -> str:
    """Names a journal: an attack goes on only where every figure of it would be the same."""
    versions = [__version__, torch.__version__, version("torchattacks")]
    return hashlib.sha256(json.dumps([*versions, *parts]).encode()).hexdigest()[:16]
