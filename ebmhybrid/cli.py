"""The command line: it parses, calls and prints. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from ebmhybrid._version import __version__
from ebmhybrid.cli_eval import evaluate
from ebmhybrid.cli_probe import probe
from ebmhybrid.cli_sample import sample
from ebmhybrid.terminal import Examples, OneLineErrors, data_options, guarded, is_main, strict_option


@click.group(cls=OneLineErrors, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__, prog_name="ebmhybrid")
def main() -> None:
    """Hybrid energy-based classifiers: train them, and test their calibration, OOD detection and robustness.

    Start with `ebmhybrid train`, then `ebmhybrid eval`; models from elsewhere: `ebmhybrid eval --model` or `--logits`.
    """


@main.command(
    cls=Examples,
    epilog="""
    ebmhybrid train
    ebmhybrid train --recipe fashion_mnist_hdge training.epochs=5 seed=1
    ebmhybrid train --recipe my.yaml --out runs/mine --data-dir /data
    ebmhybrid train --recipe cifar10_wrn28 --print-config
    ebmhybrid train --resume runs/mine training.epochs=20
    ebmhybrid train --recipe my.yaml --out runs/mine --resume auto
    torchrun --nproc-per-node 4 -m ebmhybrid train --recipe cifar10_wrn28
    """,
)
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--recipe", metavar="NAME|FILE.yaml", help="A packaged recipe or a file.  [default: digits_hdge]")
@click.option("--set", "more", multiple=True, metavar="KEY=VALUE", help="The same as KEY=VALUE without the option.")
@click.option("--out", type=click.Path(), metavar="DIR", help="Run directory.  [default: runs/RECIPE/DATE-TIME]")
@click.option(
    "--resume",
    type=click.Path(),
    metavar="DIR|auto",
    help="Go on with this run from its last saved step; auto: with the run in --out, or the newest unfinished one of "
    "the recipe, if there is one.",
)
@strict_option
@click.option("--print-config", is_flag=True, help="Print the recipe with every default, and stop.")
@click.option("--quiet", is_flag=True, help="No progress.")
@data_options
def train(
    overrides: tuple[str, ...],
    recipe: str | None,
    more: tuple[str, ...],
    out: str | None,
    resume: str | None,
    strict: bool,
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
    if resume not in (None, "auto") and (recipe or out):
        raise click.UsageError("--resume takes the run's own recipe and directory: leave out --recipe and --out")
    named = resume not in (None, "auto")
    changes = [*overrides, *more]

    def work() -> None:
        # Before torch is loaded: its own warnings and stacks of several processes would hide our line.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        from ebmhybrid.recipe import load_recipe

        source = Path(str(resume)) / "config.yaml" if named else "digits_hdge" if recipe is None else recipe
        if print_config:
            click.echo(load_recipe(source, changes).to_yaml(), nl=False)
            return
        loaded = None if named else load_recipe(source, changes)
        from ebmhybrid.training import train as run_training

        run = run_training(
            loaded,
            out,
            resume=resume,
            overrides=changes if named else None,
            data_dir=data_dir,
            download=not no_download,
            strict=strict,
            device=device,
            progress=not quiet,
        )
        if run.signal:
            sys.exit(128 + run.signal)
        if not is_main():
            return
        best = run.metrics
        reached = f"accuracy {100 * best['accuracy']:.2f} %" if "accuracy" in best else f"loss {best['loss']:.4f}"
        rollbacks = f", {run.rollbacks} rollback{'s' if run.rollbacks > 1 else ''}" if run.rollbacks else ""
        click.echo(f"best validation {reached} at step {best['step']:.0f}{rollbacks}, run: {run.folder}")

    guarded(work)


main.add_command(evaluate)
main.add_command(sample)
main.add_command(probe)


@main.command(
    cls=Examples,
    epilog="""
    ebmhybrid compare runs/a runs/b
    ebmhybrid compare runs/a runs/b/eval/20260101-120000 other/results.json --out comparison
    """,
)
@click.argument("runs", nargs=-1, required=True, metavar="RUN RUN...")
@click.option("--out", metavar="DIR", help="Where compare.html goes.  [default: runs/compare/DATE-TIME]")
def compare(runs: tuple[str, ...], out: str | None) -> None:
    """Compare evaluations: the same figures side by side, as a table and a page.

    RUN is a run directory, which stands for its newest evaluation or probe, the folder of one, or its results.json.
    """
    if "" in runs:
        raise click.UsageError("RUN is empty")
    if out == "":
        raise click.UsageError("--out is empty")

    def work() -> None:
        from ebmhybrid.evaluate.compare_runs import compare_results
        from ebmhybrid.training.records import fresh_folder

        comparison = compare_results([Path(run) for run in runs])
        click.echo(comparison.table())
        page = comparison.save(Path(out) if out else fresh_folder(Path("runs") / "compare"))
        click.echo(f"\npage: {page}")

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

    def write() -> None:
        try:
            path.write_text(text, encoding="utf-8")
        except OSError:
            path.unlink(missing_ok=True)  # half a recipe would be another one
            raise

    guarded(write)
    click.echo(f"wrote {file}")


@main.command()
def doctor() -> None:
    """What this installation has: versions, devices, precision, extras."""
    from ebmhybrid.doctor import doctor as lines

    def work() -> None:
        for name, value in lines():
            click.echo(f"{name:<18} {value}")

    guarded(work)
