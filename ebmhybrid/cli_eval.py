"""The command `eval`: what to evaluate, what to measure, where to write it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ebmhybrid.terminal import Examples, Number, Numbers, bar, data_options, guarded, options, strict_option

if TYPE_CHECKING:
    from ebmhybrid.evaluate.suite import SuiteResult

POSITIVE = click.IntRange(min=1)
SEED = click.IntRange(0, 2**63 - 1)

model_options = options(
    click.option("--model", metavar="NAME", help="A classifier of torchvision/NAME or timm/NAME instead of a run."),
    click.option("--weights", metavar="FILE", help="Its weights: .safetensors, or a state dict saved by torch."),
    click.option("--data", metavar="NAME", help="Its labelled test set, such as folder:PATH or cifar10."),
    click.option("--validation", metavar="NAME", help="Labelled images it was not trained on, for the temperature."),
    click.option("--train-data", metavar="NAME", help="Images it was trained on, for detectors that are fitted."),
    click.option("--num-classes", type=POSITIVE, metavar="N", help="[default: as the weights have]"),
    click.option("--channels", type=click.Choice(["1", "3"]), help="Of the images.  [default: 3]"),
    click.option("--image-size", type=POSITIVE, metavar="N", help="[default: the data's own; 224 for pictures]"),
    click.option("--mean", type=Numbers(), help="It was trained with, one or one a channel.  [default: ImageNet's]"),
    click.option("--std", type=Numbers(positive=True), help="Likewise.  [default: ImageNet's]"),
)
measure_options = options(
    click.option(
        "--ood",
        multiple=True,
        metavar="NAME",
        help="An OOD set, repeatable: svhn, noise, npz:PATH, digits:7-9 ... or openood-v1.5.",
    ),
    click.option(
        "--score",
        "scores",
        multiple=True,
        metavar="NAME",
        help="An OOD score, repeatable: energy, msp, knn, vim ... (docs/ood.md), or all.",
    ),
    click.option("--calibration/--no-calibration", default=True, show_default=True),
    click.option("--corruptions/--no-corruptions", default=None, help="Corrupted test images.  [default: no]"),
    click.option(
        "--severity",
        "severities",
        type=click.IntRange(1, 5),
        multiple=True,
        metavar="N",
        help="Of corruptions, repeatable.  [default: 1 to 5]",
    ),
    click.option(
        "--attack",
        "attacks",
        multiple=True,
        metavar="NAME",
        help="An attack, repeatable: fgsm, pgd, apgd-ce, apgd-dlr, fab, square, cw, aa.",
    ),
    click.option(
        "--eps",
        type=Number(),
        multiple=True,
        help="Attack radius, pixels in [0, 1], repeatable.  [default: 8/255]",
    ),
    click.option("--sweep/--no-sweep", default=None, help="One eps at 1/4, 1/2 and 2 times too.  [default: yes]"),
    click.option("--norm", type=click.Choice(["linf", "l2"]), help="The attack's norm.  [default: linf]"),
    click.option("--steps", type=POSITIVE, metavar="N", help="Of an attack by gradients.  [default: 20]"),
    click.option("--queries", type=POSITIVE, metavar="N", help="Of square, which is slow.  [default: 5000]"),
    click.option("--restarts", type=POSITIVE, metavar="N", help="Random starts of an attack.  [default: 1]"),
    click.option("--eot", type=POSITIVE, metavar="N", help="Draws of a stochastic model a step.  [default: 1]"),
    click.option("--sanity/--no-sanity", default=None, help="Signs of masked gradients.  [default: with an attack]"),
    click.option("--attack-detector", is_flag=True, default=None, help="Attack the OOD score too."),
    click.option("--refine", is_flag=True, default=None, help="Attack SGLD-refined inference too: very slow."),
    click.option(
        "--samples",
        type=click.IntRange(0, 10_000_000),
        metavar="N",
        help="Draw N images, 0 or at least 2, and measure them too, by a small judge trained once.",
    ),
    click.option("--seed", type=SEED, metavar="N", help="Of attacks and samples.  [default: the recipe's, 0]"),
    click.option(
        "--limit", type=POSITIVE, metavar="N", help="At most N images of each set, of those that are fitted on too."
    ),
)
output_options = options(
    click.option("--no-cache", is_flag=True, help="Keep no predictions for the next time, and use none."),
    click.option("--out", metavar="DIR", help="[default: eval/DATE-TIME in the run, or beside the weights or logits]"),
    click.option("--json", "as_json", is_flag=True, help="Print the results as JSON instead of a table."),
)

OF_MODEL = ("weights", "data", "validation", "train_data", "num_classes", "channels", "image_size", "mean", "std")
OF_LOGITS = ("logits", "scores", "calibration", "out", "as_json")


@click.command(
    "eval",
    cls=Examples,
    epilog="""
    ebmhybrid eval --ood svhn
    ebmhybrid eval runs/mine --ood digits:7-9 --ood noise --score energy --score msp
    ebmhybrid eval runs/mine --ood openood-v1.5 --score all --corruptions
    ebmhybrid eval --attack fgsm --attack pgd --eps 8/255 --limit 500
    ebmhybrid eval --attack apgd-ce --eps 2/255 --eps 8/255 --steps 50 --attack-detector --ood svhn
    ebmhybrid eval --model torchvision/resnet18 --weights resnet18.pth --data folder:pictures/test
    ebmhybrid eval --model timm/resnet10t --weights w.safetensors --data cifar10 --ood svhn --mean 0.5 --std 0.25
    ebmhybrid eval --logits npz:logits.npz --score msp --score energy
    ebmhybrid eval runs/mine --json > results.json
    """,
)
@click.argument("run", required=False)
@click.option("--logits", metavar="npz:PATH", help="Arrays of logits and labels instead of a run.")
@model_options
@measure_options
@output_options
@strict_option
@data_options
@click.pass_context
def evaluate(ctx: click.Context, run: str | None, out: str | None, as_json: bool, **given: Any) -> None:
    """Evaluate a run, any classifier, or logits: accuracy, calibration, OOD detection and robustness.

    RUN is a run directory or a weight file; left out, the newest run under runs/. What a run's recipe says under
    `evaluation` is the default of what is measured.
    """
    _check_combination(ctx)

    def work() -> None:
        from ebmhybrid.evaluate.files import check_replaceable
        from ebmhybrid.runs import evaluation_folder

        if out is not None:
            check_replaceable(Path(out).absolute())  # before the work whose results it would lose
        subject, result = _evaluated(run, given)
        try:
            folder = result.save(out or evaluation_folder(subject))
        finally:
            if not as_json:
                click.echo(result.table())  # also where saving fails: the figures are not lost
        if as_json:
            click.echo((folder / "results.json").read_text(encoding="utf-8"), nl=False)
            return
        click.echo("".join(f"\nnote: {note}" for note in result.context.get("notes", ())), nl=False)
        click.echo(f"\nevaluated: {subject}\nreport: {folder / 'report.html'}")

    guarded(work)


def _check_combination(ctx: click.Context) -> None:
    """A run, a model and logits exclude each other, and each leaves no option without effect."""
    typed = [name for name in ctx.params if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE]
    spelled = {parameter.name: parameter.opts[0] for parameter in ctx.command.params} | {"run": "RUN"}
    for name in typed:
        if ctx.params[name] == "":
            raise click.UsageError(f"{spelled[name]} is empty")
    if ctx.params["samples"] == 1:
        raise click.UsageError("--samples must be 0 or at least 2, which figures need, got 1")
    subjects = [spelled[name] for name in ("run", "model", "logits") if name in typed]
    if len(subjects) > 1:
        raise click.UsageError(f"{' and '.join(subjects)} exclude each other: evaluate one at a time")
    if "logits" in typed:
        if stray := [spelled[name] for name in typed if name not in OF_LOGITS]:
            raise click.UsageError(f"{stray[0]} does not go with --logits, which has neither a model nor images")
    elif "model" in typed:
        for name in ("weights", "data"):
            if name not in typed:
                raise click.UsageError(f"--model needs --{name}")
    elif stray := [spelled[name] for name in typed if name in OF_MODEL]:
        raise click.UsageError(f"{stray[0]} belongs to --model NAME, and a run has its own")


def _evaluated(run: str | None, given: dict[str, Any]) -> tuple[Path, SuiteResult]:
    """What was evaluated, and the result. Options that were left out are None."""
    from ebmhybrid.evaluations import evaluate_external, evaluate_logits
    from ebmhybrid.runs import evaluate_run, newest_run

    given = {name: value for name, value in given.items() if value not in (None, ())}
    if "logits" in given:
        kind, _, path = given["logits"].partition(":")
        if kind != "npz" or not path:
            raise click.UsageError(f"--logits must be npz:PATH, got {given['logits']!r}")
        return Path(path), evaluate_logits(path, scores=given.get("scores"), calibration=given["calibration"])
    given |= {"cache": not given.pop("no_cache"), "download": not given.pop("no_download"), "progress": bar}
    if len(given.get("eps", ())) == 1:
        (given["eps"],) = given["eps"]
    if "channels" in given:
        given["channels"] = int(given["channels"])
    if "model" in given:
        return Path(given["weights"]), evaluate_external(**given)
    chosen = newest_run() if run is None else Path(run)
    return chosen, evaluate_run(chosen, **given)
