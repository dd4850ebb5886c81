"""The report's sections on confidence: calibration and selective classification."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from .formats import count, interval, number, variant_name
from .sections import Card, Column, Drawing, Line, Section, Table, bounded

if TYPE_CHECKING:
    from .calibration_metrics import ReliabilityBins
    from .results import SuiteResult

Row = Mapping[str, Any]
_FAMILY = {
    "ece_15": "ECE, equal width",
    "smooth_ece": "smooth ECE",
    "equal_mass_ece_15": "ECE, equal mass",
    "classwise_ece_15": "classwise ECE",
    "mce_15": "MCE",
}
_ECE = (
    "ECE is the mean gap between confidence and accuracy; lower is better. On a finite set it is above 0 unless every "
    "confidence is 1: “perfect model” is what a perfectly calibrated model with the same confidences would show here."
)


def calibration_section(calibration: Any, result: SuiteResult) -> Section:
    """ECE and its family for each variant, likelihoods, reliability diagrams."""
    rows: tuple[Row, ...] = calibration.rows
    drawings = (
        Drawing(
            f"reliability-{row['variant']}",
            f"Reliability diagram, {_heading(row['variant'], doubted(rows))}: accuracy over confidence, on the "
            f"diagonal for a calibrated model. ECE {number(row['ece_15'])}.",
            partial(_draw_reliability, calibration.diagrams[row["variant"]], row),
            partial(_bins_table, calibration.diagrams[row["variant"]]),
        )
        for row in rows
    )
    return Section(
        "calibration",
        "Calibration",
        (f"{_ECE} {_fitted(rows)}",),
        tuple(_unidentified(row) for row in rows if row.get("temperature_unidentified")),
        (_family_table(rows), _likelihood_table(rows)),
        tuple(drawings),
        tuple(_line(row, doubted(rows)) for row in rows),
        _card(rows),
    )


def _fitted(rows: tuple[Row, ...]) -> str:
    """What was fitted on held-out data."""
    if len(rows) == 1:
        return "No held-out data was given, so nothing was fitted to it."
    what = "The temperature was" if len(rows) == 2 else "Temperature and the other scalings were"
    return f"{what} fitted on {count(rows[1]['n_validation'])} held-out images."


def doubted(rows: Iterable[Row]) -> frozenset[str]:
    """The variants that rest on a temperature which the held-out images do not identify.

    Vector scaling starts from that temperature.

    >>> sorted(doubted([{"variant": "raw"}, {"variant": "temperature", "temperature_unidentified": True}]))
    ['temperature', 'vector']
    """
    return frozenset(("temperature", "vector") if any(row.get("temperature_unidentified") for row in rows) else ())


def _unidentified(row: Row) -> str:
    """Why the fit of a temperature says nothing."""
    if row["temperature"] < 1:
        why = (
            "with hardly an error among the held-out images, any sharper softmax fits them as well or better. Trust "
            "the figures as trained."
        )
    else:
        why = "the flattest softmax of the search fits best, so these logits mislead and no temperature mends them."
    return f"The temperature is not identified, and vector scaling starts from it: {why}"


def _family_table(rows: tuple[Row, ...]) -> Table:
    """A row a figure, a column a variant; what a perfect model shows, for the model as trained."""
    doubt = doubted(rows)
    columns = (
        Column("figure", "figure", "text"),
        *(bounded(row["variant"], _heading(row["variant"], doubt)) for row in rows),
        Column("perfect", "perfect model, as trained"),
    )
    body = tuple(_figure(key, title, rows) for key, title in _FAMILY.items() if key in rows[0])
    caption = (
        f"15 bins; lower is better; in brackets 95 % bootstrap intervals; n = {count(rows[0]['n'])}. Last column: a "
        "perfectly calibrated model with the confidences of this one as trained."
    )
    return Table("Calibration", caption, columns, body)


def _heading(variant: str, doubt: Container[str]) -> str:
    return variant_name(variant) + (" (T not identified)" if variant in doubt else "")


def _figure(key: str, title: str, rows: tuple[Row, ...]) -> Row:
    """One figure of all variants, with intervals."""
    found: dict[str, Any] = {"figure": title, "perfect": rows[0].get(f"{key}_perfect")}
    for row in rows:
        found |= {f"{row['variant']}{end}": row.get(f"{key}{end}") for end in ("", "_low", "_high")}
    return found


def _likelihood_table(rows: tuple[Row, ...]) -> Table:
    columns = (
        Column("name", "variant", "text"),
        Column("temperature", "T", digits=3),
        Column("accuracy", "accuracy", "percent"),
        Column("nll", "NLL"),
        Column("brier", "Brier"),
        Column("ece_20", "ECE, 20 bins"),
        Column("netcal_ece_15", "ECE by netcal"),
        Column("n_validation", "n held out", "count"),
        Column("decisions_changed", "decisions changed", "count"),
    )
    body = tuple(dict(row) | {"name": variant_name(row["variant"])} for row in rows)
    caption = "Temperature, likelihood, and ECE by other ways: 20 bins as in HDGE's code, and netcal's."
    return Table("Likelihood", caption, columns, body)


def _draw_reliability(table: ReliabilityBins, row: Row) -> Any:
    from .plots import reliability_figure
    from .plots_calibration import reliability_title

    return reliability_figure(table, reliability_title(row))


def _bins_table(table: ReliabilityBins) -> Table:
    columns = (
        Column("low", "confidence from", digits=3),
        Column("high", "to", digits=3),
        Column("count", "images", "count"),
        Column("confidence", "mean confidence"),
        Column("accuracy", "accuracy"),
    )
    values = zip(table.edges[:-1], table.edges[1:], table.count, table.confidence, table.accuracy, strict=True)
    keys = [column.key for column in columns]
    rows = tuple(dict(zip(keys, (value.item() for value in row), strict=True)) for row in values)
    return Table("Numbers of the figure", "Bins are closed on the right.", columns, rows)


def _line(row: Row, doubt: Container[str]) -> Line:
    variant = row["variant"]
    scaled = f"at T={row['temperature']:.3g}" if variant == "temperature" else variant_name(variant)
    # Without an error on the validation images any smaller T lowers their NLL: the fit says nothing.
    unknown = ", T not identified" if variant in doubt else ""
    return Line(
        "ECE-15" if variant == "raw" else f"ECE-15 {scaled}",
        interval(row["ece_15"], row["ece_15_low"], row["ece_15_high"]),
        f"perfect model {number(row['ece_15_perfect'])}, NLL {number(row['nll'])}, n={row['n']}{unknown}",
    )


def _card(rows: tuple[Row, ...]) -> Card:
    """ECE as trained and at the temperature, where that is one to rely on."""
    row, doubt = rows[0], doubted(rows)
    after = "".join(
        f"; {number(one['ece_15'])} at temperature {one['temperature']:.3g}"
        for one in rows
        if one["variant"] == "temperature" and "temperature" not in doubt
    )
    note = f"as trained{after}; a perfect model shows {number(row['ece_15_perfect'])}, n = {count(row['n'])}"
    return Card("ECE, 15 bins", number(row["ece_15"]), note)


def selective_section(selective: Any, result: SuiteResult) -> Section:
    """Risk over coverage when the least confident images are left undecided."""
    columns = (
        Column("score", "confidence", "text"),
        bounded("aurc", "AURC x 1000", digits=2, scale=1000),
        bounded("augrc", "AUGRC x 1000", digits=2, scale=1000),
        Column("e_aurc", "E-AURC x 1000", digits=2, scale=1000),
        *(bounded(f"risk_at_{share}", f"risk at {share} % coverage", "percent") for share in (80, 90, 95)),
        Column("coverage_at_1", "coverage at 1 % risk", "percent"),
        Column("n", "n", "count"),
    )
    rows: tuple[Row, ...] = selective.rows
    caption = (
        "In brackets 95 % bootstrap intervals. Areas (x 1000) and risks: lower is better; coverage: higher is better."
    )
    text = (
        "A selective classifier decides only where it is confident. Risk is the share of errors among the images "
        "decided, coverage the share of images decided. AURC is the area under risk over coverage, E-AURC its "
        "excess over the best possible ordering with the same errors, AUGRC the area under errors as a share of all "
        "images. The areas are shown times 1000."
    )
    area, general, excess = columns[1:4]
    lines = [
        Line(
            f"AURC x 1000 {row['score']}",
            area.cell(row).text,
            f"E-AURC x 1000 {excess.cell(row).text}, AUGRC x 1000 {general.cell(row).text}, n={row['n']}",
        )
        for row in rows
    ]
    return Section(
        "selective",
        "Selective classification",
        (text,),
        tables=(Table("Selective classification", caption, columns, rows),),
        drawings=(_risk_coverage(selective),),
        lines=tuple(lines),
    )


def _risk_coverage(selective: Any) -> Drawing:
    caption = "Share of errors among the most confident images, over the share of images decided; lower is better."
    return Drawing("risk-coverage", caption, partial(_draw_risk, selective), partial(risk_table, selective.curves))


def _draw_risk(selective: Any) -> Any:
    from .plots_selective import risk_coverage_figure

    return risk_coverage_figure(selective)


def risk_table(curves: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Table:
    """The risk at the lowest coverage that is at least each level, a column for each confidence function."""
    rows = []
    for level in (i / 20 for i in range(1, 21)):
        # 0.05 * 20 may exceed 1 by rounding
        places = {score: np.searchsorted(coverage, level - 1e-9) for score, (coverage, _) in curves.items()}
        rows.append({"coverage": level} | {score: curves[score][1][place].item() for score, place in places.items()})
    columns = (Column("coverage", "coverage", digits=2), *(Column(score, score) for score in curves))
    return Table("Numbers of the figure", "Risk at the first point with at least this coverage.", columns, tuple(rows))
