"""The command `probe`: what a run's representations are worth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ebmhybrid.terminal import Examples, bar, data_options, guarded

POSITIVE = click.IntRange(min=1)


@click.command(
    cls=Examples,
    epilog="""
    ebmhybrid probe
    ebmhybrid probe runs/mine --ood digits:7-9 --ood noise
    ebmhybrid probe runs/mine --corruptions --limit 2000 --train-limit 10000
    ebmhybrid probe runs/mine --json > results.json
    """,
)
@click.argument("run", required=False)
@click.option(
    "--ood",
    multiple=True,
    metavar="NAME",
    help="An OOD set, repeatable: svhn, noise, npz:PATH, digits:7-9 ...  [default: the recipe's]",
)
@click.option(
    "--corruptions/--no-corruptions", default=None, help="Corrupted test images.  [default: the recipe's, no]"
)
@click.option("--limit", type=POSITIVE, metavar="N", help="At most N examples of each set but the training set.")
@click.option("--train-limit", type=POSITIVE, metavar="N", help="Fit on at most N training examples.")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), metavar="N", help="[default: the recipe's]")
@click.option("--out", metavar="DIR", help="[default: probe/DATE-TIME in the run, or beside the weights]")
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON instead of a table.")
@data_options
@click.pass_context
def probe(ctx: click.Context, run: str | None, out: str | None, as_json: bool, **given: Any) -> None:
    """Probe a run's representations: linear and kNN probes, few labels, OOD detection, reconstructions.

    RUN is a run directory or a weight file; left out, the newest run under runs/. Encoder-decoders are probed on their
    codes and on informative embeddings, classifiers on their features, and the raw pixels stand beside both.
    """
    for parameter in ctx.command.params:
        value = ctx.params[parameter.name or ""]
        if value == "" or (parameter.multiple and "" in value):
            raise click.UsageError(f"{parameter.opts[0] if parameter.name != 'run' else 'RUN'} is empty")

    def work() -> None:
        from ebmhybrid.evaluate.files import check_replaceable, check_writable
        from ebmhybrid.probing import probe_run
        from ebmhybrid.runs import newest_run, probes_root, save_fresh

        chosen = newest_run() if run is None else Path(run)
        # Before the work whose results a folder that cannot be written would lose.
        folder = Path(out).absolute() if out is not None else probes_root(chosen).absolute() / "new"
        check_replaceable(folder, "the probe")
        check_writable(folder, "the probe")
        asked = {name: value for name, value in given.items() if value not in (None, ())}
        result = probe_run(chosen, download=not asked.pop("no_download"), progress=bar, **asked)
        try:
            folder = result.save(folder) if out is not None else save_fresh(result.save, probes_root(chosen))
        finally:
            if not as_json:
                click.echo(result.table())  # also where saving fails: the figures are not lost
        if as_json:
            click.echo((folder / "results.json").read_text(encoding="utf-8"), nl=False)
            return
        click.echo("".join(f"\nnote: {note}" for note in result.context.get("notes", ())), nl=False)
        click.echo(f"\nprobed: {chosen}\nreport: {folder / 'report.html'}")

    guarded(work)
