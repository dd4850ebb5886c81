"""report.html: one self-contained page, readable on a phone, in light and dark, and without a network."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from importlib import resources
from typing import TYPE_CHECKING

from . import plots
from .files import dumps, slugs
from .ood import MACRO_MEAN, METRICS
from .reference_rows import reference_tables
from .tables import in_255, percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from .suite import SuiteResult


def figures_of(result: SuiteResult) -> dict[str, Figure]:
    """File name without ending -> figure, one panel each so that they stay legible on a narrow page."""
    figures: dict[str, Figure] = {}
    if result.calibration:
        for row in result.calibration.rows:
            table = result.calibration.diagrams[row["variant"]]
            figures[f"reliability-{row['variant']}"] = plots.reliability_figure(table, plots.reliability_title(row))
    if result.ood:
        inside = result.ood.id_scores
        for name, part in slugs(list(result.ood.ood_scores)).items():
            outside, names = result.ood.ood_scores[name], (result.ood.id_set, name)
            for score, values in inside.items():
                figures[f"scores-{part}-{score}"] = plots.histogram_figure(values, outside[score], score, names)
            pairs = {score: (values, outside[score]) for score, values in inside.items()}
            figures[f"roc-{part}"] = plots.roc_figure(pairs, names)
    if result.robustness:
        figures["robustness"] = plots.robustness_curve(result.robustness.rows)
    return figures


def render(result: SuiteResult, figures: Mapping[str, str]) -> str:
    """The page; `figures` are SVG documents under the names of :func:`figures_of`, put into the page itself."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    text = resources.files(__package__).joinpath("report.html.jinja").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"percent": percent, "in_255": in_255, "number": number}
    names = slugs(list(result.ood.ood_scores)) if result.ood else {}
    return environment.from_string(text).render(
        result=result,
        title=str(result.context.get("model") or "Evaluation"),
        cards=_cards(result),
        figures={name: Markup(inline(svg)) for name, svg in figures.items()},
        panels={name: _panels(part, result) for name, part in names.items()},
        metrics=list(METRICS),
        macro_mean=MACRO_MEAN,
        trained_on=trained_on(result),
        references=reference_tables(trained_on(result)),
        context=dumps(result.context).strip() if result.context else "",
        settings=json.dumps(dict(result.settings), indent=2),
    )


def trained_on(result: SuiteResult) -> str:
    """The data set trained on, as the recipe says, else the test set's name."""
    config = result.context.get("config")
    data = config.get("data") if isinstance(config, Mapping) else None
    train = data.get("train") if isinstance(data, Mapping) else data
    return str(train or result.accuracy.rows[0]["set"])


def number(value: float | None, digits: int = 4) -> str:
    """A figure with fixed digits, a dash where there is none.

    >>> number(0.5), number(None)
    ('0.5000', '–')
    """
    return "–" if value is None else f"{value:.{digits}f}"


def inline(svg: str) -> str:
    """An SVG document as a part of an HTML page: no XML head, no namespaces, no metadata, hidden from screen readers.

    The figure around it has the text alternative. HTML knows the namespaces of SVG itself.
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg, count=2)
    return svg.replace("<svg", '<svg aria-hidden="true" focusable="false"', 1).strip()


def _panels(part: str, result: SuiteResult) -> list[tuple[str, str]]:
    """(figure name, caption) of one OOD set's figures."""
    shown = [
        (f"scores-{part}-{score}", f"Distribution of {score}: {plots.SCORE_LABELS.get(score, score)}")
        for score in result.settings["scores"]
    ]
    return [*shown, (f"roc-{part}", "ROC curves, in-distribution as the positive class")]


def _cards(result: SuiteResult) -> list[dict[str, str]]:
    """The figures at the top: name, value and what stands behind it."""
    row = result.accuracy.rows[0]
    interval = f"95 % interval {100 * row['accuracy_low']:.2f} to {100 * row['accuracy_high']:.2f}, n = {row['n']:,}"
    cards = [{"name": "Accuracy", "value": f"{100 * row['accuracy']:.2f} %", "note": interval}]
    if result.calibration:
        row, *scaled = result.calibration.rows
        after = "".join(f"; {one['ece_15']:.4f} at temperature {one['temperature']:.3g}" for one in scaled)
        note = f"as trained{after}; a perfect model shows {row['ece_15_perfect']:.4f}, n = {row['n']:,}"
        cards.append({"name": "ECE, 15 bins", "value": f"{row['ece_15']:.4f}", "note": note})
    if result.ood:
        score, count = next(iter(result.ood.id_scores)), len(result.ood.ood_scores)
        note = f"{score}, " + (f"mean of {count} sets" if count > 1 else f"on {next(iter(result.ood.ood_scores))}")
        cards.append({"name": "OOD AUROC", "value": f"{result.ood.mean(score):.4f}", "note": note})
    if result.robustness:
        at_eps = [row for row in result.robustness.rows if row["eps"] == result.settings["eps"]]
        worst = min(at_eps, key=lambda row: row["robust_accuracy"])
        note = f"{worst['attack']}, {worst['norm']}, eps {in_255(worst['eps'])}, n = {worst['n']:,}"
        cards.append({"name": "Robust accuracy", "value": f"{100 * worst['robust_accuracy']:.2f} %", "note": note})
    return cards
