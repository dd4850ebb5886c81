"""The command `sample`: images drawn from a model, and how good they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ebmhybrid.terminal import Examples, bar, data_options, guarded

NUM = click.IntRange(2, 10_000_000)
FROM_ZERO = click.IntRange(min=0)
AT_LEAST_0 = click.FloatRange(min=0)


@click.command(
    cls=Examples,
    epilog="""
    ebmhybrid sample
    ebmhybrid sample runs/mine --num 70
    ebmhybrid sample runs/mine --num 100 --class 3 --class 5 --start uniform --steps 400
    ebmhybrid sample runs/mine --judge runs/other --inception pt_inception-2015-12-05-6726825d.pth
    ebmhybrid sample runs/mine --start npz:images.npz --steps 10
    """,
)
@click.argument("run", required=False)
@click.option("--num", type=NUM, metavar="N", help="How many.  [default: 100; all images of --start npz:PATH]")
@click.option(
    "--class",
    "classes",
    multiple=True,
    metavar="C",
    help="A class by name or number, repeatable.  [default: all, for chains of a class; else log p(x)]",
)
@click.option(
    "--start",
    metavar="NAME",
    help="buffer, uniform, gaussian or npz:PATH.  [default: buffer, where the run keeps one; else the recipe's]",
)
@click.option(
    "--steps", type=FROM_ZERO, metavar="K", help="[default: 2 times the recipe's from its buffer, else 5 times or 100]"
)
@click.option("--step-size", type=AT_LEAST_0, metavar="A", help="Pixels in [0, 1].  [default: the recipe's, 0.25]")
@click.option("--noise-std", type=AT_LEAST_0, metavar="S", help="Likewise.  [default: the recipe's, 0.005]")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), metavar="N", help="[default: the recipe's]")
@click.option(
    "--judge", metavar="RUN|none", help="Classifier that judges the samples.  [default: one trained once for the run]"
)
@click.option("--inception", metavar="FILE", help="Weights of the Inception network, for FID, KID and IS.")
@click.option("--out", metavar="DIR", help="A new or empty folder.  [default: samples/DATE-TIME in the run]")
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON instead of a table.")
@data_options
@click.pass_context
def sample(ctx: click.Context, run: str | None, out: str | None, as_json: bool, **given: Any) -> None:
    """Draw images from a run's model by Langevin dynamics, and measure them.

    RUN is a run directory or a weight file; left out, the newest run under runs/. Any classifier can be sampled; one
    that was trained with samples (objective.jem) has a density to sample from.
    """
    for parameter in ctx.command.params:
        value = ctx.params[parameter.name or ""]
        if value == "" or (parameter.multiple and "" in value):
            raise click.UsageError(f"{parameter.opts[0] if parameter.name != 'run' else 'RUN'} is empty")

    def work() -> None:
        from ebmhybrid.generation.files import check_empty
        from ebmhybrid.runs import newest_run, sample_run, samples_root, save_samples

        chosen = newest_run() if run is None else Path(run)
        check_empty(Path(out) if out is not None else samples_root(chosen) / "new")  # before work that would be lost
        asked = {name: value for name, value in given.items() if value not in (None, ())}
        result = sample_run(chosen, download=not asked.pop("no_download"), progress=bar, **asked)
        try:
            folder = save_samples(result, chosen, out)
        finally:
            if not as_json:
                click.echo(result.figures.table())  # also where saving fails: the figures are not lost
        if as_json:
            click.echo((folder / "results.json").read_text(encoding="utf-8"), nl=False)
            return
        click.echo("".join(f"\nnote: {note}" for note in result.notes), nl=False)
        files = "".join(f"\n{name}: {folder / file}" for name, file in _FILES.items())
        click.echo(f"\nsampled: {chosen}{files}")

    guarded(work)


_FILES = {"images": "samples.npz", "picture": "samples.png", "chains": "chains.png", "report": "report.html"}
