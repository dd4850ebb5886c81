"""The command line: it parses, calls and prints. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from ebmhybrid._version import __version__
from ebmhybrid.terminal import Examples, Number, OneLineErrors, bar, guarded

data_options = [
    click.option(
        "--data-dir",
        default="data",
        show_default=True,
        envvar="EBMHYBRID_DATA",
        show_envvar=True,
        help="Where data sets lie.",
    ),
    click.option("--no-download", is_flag=True, help="Fail rather than fetch a missing data set."),
    click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N."),
]


def with_data_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(data_options):
        command = option(command)
    return command


@click.group(cls=OneLineErrors, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__, prog_name="ebmhybrid")
def main() -> None:
    """Hybrid energy-based classifiers: train them, and test their calibration, OOD detection and robustness.

    Start with `ebmhybrid train`, then `ebmhybrid eval`.
    """


@main.command(
    cls=Examples,
    epilog="""
    ebmhybrid train
    ebmhybrid train --recipe fashion_mnist_hdge training.epochs=5 seed=1
    ebmhybrid train --recipe my.yaml --out runs/mine --data-dir /data
    ebmhybrid train --recipe cifar10_wrn28 --print-config
    ebmhybrid train --resume runs/mine training.epochs=20
    """,
)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--recipe", metavar="NAME|FILE.yaml", help="A packaged recipe or a file.  [default: digits_hdge]")
@click.option("--set", "more", multiple=True, metavar="KEY=VALUE", help="The same as KEY=VALUE without the option.")
@click.option("--out", type=click.Path(), metavar="DIR", help="Run directory.  [default: runs/RECIPE/DATE-TIME]")
@click.option("--resume", type=click.Path(), metavar="DIR", help="Go on with this run from its last saved step.")
@click.option("--print-config", is_flag=True, help="Print the recipe with every default, and stop.")
@click.option("--quiet", is_flag=True, help="No progress.")
@with_data_options
def train(
    overrides: tuple[str, ...],
    recipe: str | None,
    more: tuple[str, ...],
    out: str | None,
    resume: str | None,
    print_config: bool,
    quiet: bool,
    data_dir: str,
    no_download: bool,
    device: str,
) -> None:
    """Train what a recipe describes.

    KEY=VALUE are dotted changes to the recipe, such as optimizer.lr=0.05.
    """
    for name, value in (("--recipe", recipe), ("--out", out), ("--resume", resume)):
        if value == "":
            raise click.UsageError(f"{name} is empty")
    if resume and (recipe or out):
        raise click.UsageError("--resume takes the run's own recipe and directory: leave out --recipe and --out")
    changes = [*overrides, *more]

    def work() -> None:
        from ebmhybrid.recipe import load_recipe

        source = Path(resume) / "config.yaml" if resume else "digits_hdge" if recipe is None else recipe
        if print_config:
            click.echo(load_recipe(source, changes).to_yaml(), nl=False)
            return
        loaded = None if resume else load_recipe(source, changes)
        from ebmhybrid.training import train as run_training

        run = run_training(
            loaded,
            out,
            resume=resume,
            overrides=changes if resume else None,
            data_dir=data_dir,
            download=not no_download,
            device=device,
            progress=not quiet,
        )
        if run.signal:
            sys.exit(128 + run.signal)
        best = run.metrics
        click.echo(
            f"best validation accuracy {100 * best['accuracy']:.2f} % at step {best['step']:.0f}, run: {run.folder}"
        )

    guarded(work)


@main.command(
    "eval",
    cls=Examples,
    epilog="""
    ebmhybrid eval --ood svhn
    ebmhybrid eval runs/mine --ood digits:7-9 --ood noise --score energy --score msp
    ebmhybrid eval --attack fgsm --attack pgd --eps 8/255 --limit 500
    ebmhybrid eval runs/mine --json > results.json
    """,
)
@click.argument("run", required=False, type=click.Path())
@click.option("--ood", multiple=True, metavar="NAME", help="An OOD data set, repeatable.  [default: the recipe's]")
@click.option(
    "--score",
    "scores",
    multiple=True,
    metavar="NAME",
    help="An OOD score, repeatable: energy, msp, max_logit, entropy, grad_norm.",
)
@click.option("--calibration/--no-calibration", default=True, show_default=True)
@click.option("--attack", "attacks", multiple=True, metavar="NAME", help="An attack, repeatable: fgsm, pgd.")
@click.option(
    "--eps",
    type=Number(),
    help="Attack radius, pixels in [0, 1]; 1/4, 1/2 and 2 times it are run too.  [default: the recipe's, 8/255]",
)
@click.option("--norm", type=click.Choice(["linf", "l2"]), help="The attack's norm.  [default: the recipe's, linf]")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="At most N images of each set.")
@click.option("--out", type=click.Path(), metavar="DIR", help="Report directory.  [default: RUN/eval/DATE-TIME]")
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON instead of a table.")
@with_data_options
def evaluate(
    run: str | None,
    ood: tuple[str, ...],
    scores: tuple[str, ...],
    calibration: bool,
    attacks: tuple[str, ...],
    eps: float | None,
    norm: str | None,
    limit: int | None,
    out: str | None,
    as_json: bool,
    data_dir: str,
    no_download: bool,
    device: str,
) -> None:
    """Evaluate a run: accuracy, calibration, OOD detection and robustness, as a table and a report.

    RUN is a run directory or a weight file; left out, the newest run under runs/.
    """
    for name, value in (("RUN", run), ("--out", out)):
        if value == "":
            raise click.UsageError(f"{name} is empty")

    def work() -> None:
        from ebmhybrid.evaluate.files import check_replaceable
        from ebmhybrid.runs import evaluate_run, evaluation_folder, newest_run

        chosen = newest_run() if run is None else Path(run)
        if out is not None:
            check_replaceable(Path(out).absolute())  # before the work whose results it would lose
        result = evaluate_run(
            chosen,
            ood=ood or None,
            scores=scores or None,
            calibration=calibration,
            attacks=attacks or None,
            norm=norm,
            eps=eps,
            limit=limit,
            data_dir=data_dir,
            download=not no_download,
            device=device,
            progress=bar,
        )
        if not as_json:
            click.echo(result.table())  # first: should saving fail, the figures are not lost
        folder = result.save(out or evaluation_folder(chosen))
        if as_json:
            click.echo((folder / "results.json").read_text(encoding="utf-8"), nl=False)
        else:
            click.echo(f"\nrun: {chosen}\nreport: {folder / 'report.html'}")

    guarded(work)


@main.group(invoke_without_command=True)
@click.pass_context
def recipes(ctx: click.Context) -> None:
    """The recipes that come with ebmhybrid."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_recipes)


@recipes.command("list")
def list_recipes() -> None:
    """Their names, each with its first line."""
    from ebmhybrid.recipe import recipe_names, recipe_text

    for name in recipe_names():
        click.echo(f"{name:<24} {recipe_text(name).splitlines()[0].lstrip('# ')}")


@recipes.command("show")
@click.argument("name")
def show_recipe(name: str) -> None:
    """Print the recipe NAME with its heading: command, hardware, expected result."""
    from ebmhybrid.recipe import recipe_text

    click.echo(guarded(lambda: recipe_text(name)), nl=False)


@recipes.command("copy")
@click.argument("name")
@click.argument("file", type=click.Path())
def copy_recipe(name: str, file: str) -> None:
    """Write the recipe NAME to FILE, to be changed and trained with --recipe FILE."""
    from ebmhybrid.recipe import recipe_text

    text, path = guarded(lambda: recipe_text(name)), Path(file)
    if path.suffix not in (".yaml", ".yml"):
        raise click.UsageError(f"{file}: a recipe file must end in .yaml or .yml")
    if path.exists():
        raise click.ClickException(f"{file}: exists; take another name")
    guarded(lambda: path.write_text(text, encoding="utf-8"))
    click.echo(f"wrote {file}")


@main.command()
def doctor() -> None:
    """What this installation has: versions, devices, precision, extras."""
    from ebmhybrid.runs import doctor as lines

    def work() -> None:
        for name, value in lines():
            click.echo(f"{name:<18} {value}")

    guarded(work)
