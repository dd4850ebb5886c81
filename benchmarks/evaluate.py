"""The evaluation suite against a pass of the model for each metric, and against the bare forward passes.

    python -m benchmarks.evaluate                    # WRN-10-2 and WRN-16-4, some three minutes on two cores
    python -m benchmarks.evaluate --images 1000 --repeats 9
    python -m benchmarks.evaluate --only bare        # what the figures cost beside the forward passes

Both rivals of the first table measure accuracy, calibration, and OOD scores of one test set against three others. One
pass per metric means: one forward pass of the test set for the accuracy, one for the calibration, and for each score
one pass of each set, with plain torch and scikit-learn. (The released script makes more: it passes over the test set
again for each OOD set.) Ours makes one pass of each set, beside the gradient norm's own, and also computes what the
rival does not: intervals by bootstrap, four more OOD metrics, a calibration family. Accuracy, ECE and AUROCs must agree
before anything is timed.

The second table sets accuracy, calibration with its fits, selective classification and every detector that logits
suffice for, over a test set and two others, against the bare forward passes over the same images, the validation and
training images that fits need included.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from benchmarks import harness
from ebmhybrid import WideResNet
from ebmhybrid.data import ImageSet, load_set
from ebmhybrid.evaluate import evaluate

OURS = "evaluate: one pass a set"
RIVAL = "one pass per metric"
FROM_LOGITS = ("energy", "msp", "max_logit", "entropy")
FROM_PREDICTIONS = (*FROM_LOGITS, "gen", "temperature", "hdge")
OOD_SETS = ("noise", "photos", "interp:shapes")


def logits_of(model: nn.Module, data: ImageSet) -> tuple[Tensor, Tensor]:
    """A forward pass over a set, with its labels."""
    with torch.no_grad():
        parts = [(model(images).double(), labels) for images, labels in data]
    logits, labels = zip(*parts, strict=True)
    return torch.cat(logits), torch.cat(labels)


def gradient_norm(model: nn.Module, data: ImageSet) -> Tensor:
    """-||d log p(x) / dx|| by a pass of its own."""
    norms = []
    for images, _ in data:
        images.requires_grad_()
        (gradient,) = torch.autograd.grad(model(images).logsumexp(1).sum(), images)
        norms.append(-gradient.double().flatten(1).norm(dim=1))
    return torch.cat(norms)


LOGIT_SCORES: dict[str, Callable[[Tensor], Tensor]] = {
    "energy": lambda logits: logits.logsumexp(1),
    "msp": lambda logits: logits.softmax(1).amax(1),
    "max_logit": lambda logits: logits.amax(1),
    "entropy": lambda logits: (logits.softmax(1) * logits.log_softmax(1)).sum(1),
}


def score(name: str, model: nn.Module, data: ImageSet) -> Tensor:
    return gradient_norm(model, data) if name == "grad_norm" else LOGIT_SCORES[name](logits_of(model, data)[0])


def accuracy(model: nn.Module, data: ImageSet) -> float:
    logits, labels = logits_of(model, data)
    return float((logits.argmax(1) == labels).double().mean())


def expected_calibration_error(model: nn.Module, data: ImageSet, bins: int = 20) -> float:
    logits, labels = logits_of(model, data)
    confidence, guess = logits.softmax(1).max(1)
    index = (confidence * bins).ceil().long().clamp(1, bins) - 1
    gaps = torch.zeros(bins, dtype=torch.float64).index_add_(0, index, (guess == labels).double() - confidence)
    return float(gaps.abs().sum() / len(labels))


def pass_per_metric(
    model: nn.Module, test: ImageSet, strangers: dict[str, ImageSet], scores: tuple[str, ...]
) -> dict[str, Any]:
    found: dict[str, Any] = {"accuracy": accuracy(model, test), "ece": expected_calibration_error(model, test)}
    for name in scores:
        inside = score(name, model, test)
        for where, data in strangers.items():
            outside = score(name, model, data)
            is_test = torch.cat([torch.ones(len(inside)), torch.zeros(len(outside))])
            found[f"{name} {where}"] = float(roc_auc_score(is_test, torch.cat([inside, outside])))
    return found


def one_pass(
    model: nn.Module, test: ImageSet, strangers: dict[str, ImageSet], scores: tuple[str, ...]
) -> dict[str, Any]:
    result = evaluate(model, test, ood_sets=strangers, scores=scores)
    assert result.calibration is not None
    assert result.ood is not None
    found = {"accuracy": result.accuracy.rows[0]["accuracy"], "ece": result.calibration.rows[0]["ece_20"]}
    aurocs = {f"{row['score']} {row['ood_set']}": row["auroc"] for row in result.ood.rows if "n_sets" not in row}
    return found | aurocs


def bare(report: harness.Report, depth: int, width: int, shape: tuple[int, int, int], count: int) -> None:
    """All that logits give against nothing but the logits."""
    data = load_set("shapes", shape=shape)
    size = min(count, len(data) // 3)
    parts = [data.select(range(start * size, (start + 1) * size)) for start in range(3)]
    test, validation, train = parts
    strangers = {name: load_set(name, shape=shape).take(size) for name in OOD_SETS[:2]}
    model = WideResNet(depth=depth, width=width, num_classes=test.num_classes).eval()
    sets = [test, validation, train, *strangers.values()]

    def passes() -> None:
        with torch.inference_mode():
            for one in sets:
                for images, _ in one:
                    model(images)

    def figures() -> None:
        evaluate(model, test, validation, strangers, FROM_PREDICTIONS, train_set=train)

    times = harness.in_turn({"forward passes alone": passes, OURS: figures}, report.args.repeats)
    case = {"net": f"WRN-{depth}-{width}", "images": sum(map(len, sets))}
    report.add("bare", case, times, "forward passes alone")
    report.say("### Everything that logits give, against the forward passes alone")
    report.table("bare")


def main(argv: list[str] | None = None) -> None:
    options = harness.parser(__doc__, repeats=5, threads=torch.get_num_threads())
    options.add_argument("--images", type=int, default=150, help="of each set, at most")
    options.add_argument("--only", choices=("rivals", "bare"), help="one of the two tables")
    args = harness.parse(options, argv)
    torch.manual_seed(0)
    report = harness.Report("evaluate", "The evaluation suite", args)
    if args.only != "bare":
        rivals(report)
    if args.only != "rivals":
        bare(report, *((10, 1, (3, 8, 8), 20) if args.quick else (16, 4, (3, 32, 32), 300)))
    report.write()


def rivals(report: harness.Report) -> None:
    """A pass for each metric against one pass for all."""
    args = report.args
    shape, count, width = ((3, 8, 8), 20, 1) if args.quick else ((3, 32, 32), args.images, 2)
    test = load_set("shapes", shape=shape).take(count)
    strangers = {name: load_set(name, shape=shape).take(count) for name in OOD_SETS}
    model = WideResNet(depth=10, width=width, num_classes=test.num_classes).eval()
    for title, scores in (("4 of the logits", FROM_LOGITS), ("and grad_norm", (*FROM_LOGITS, "grad_norm"))):
        given = (model, test, strangers, scores)
        ours, theirs = one_pass(*given), pass_per_metric(*given)
        assert ours.keys() == theirs.keys()
        worst = max(abs(ours[name] - theirs[name]) for name in ours)
        assert worst < 1e-6, {name: (ours[name], theirs[name]) for name in ours}
        calls = {OURS: partial(one_pass, *given), RIVAL: partial(pass_per_metric, *given)}
        times = harness.in_turn(calls, args.repeats, warmup=0)  # the check was the warm-up
        case = {"net": f"WRN-10-{width}", "scores": title, "images": sum(map(len, [test, *strangers.values()]))}
        report.add("suite", case, times, OURS)
    report.say("### Accuracy, calibration and OOD scores of one test set against three others")
    report.table("suite")


if __name__ == "__main__":
    main()
