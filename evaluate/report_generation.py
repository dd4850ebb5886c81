"""The report's section on samples, and a page of it alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from .formats import count, interval, number, percent
from .generation_rows import COPY, NAMES, SAMPLES, TEST
from .report_generation_figures import drawings_of
from .sections import Card, Column, Line, Section, Table, bounded

if TYPE_CHECKING:
    from .generation_result import GenerationResult
    from .generation_rows import Row
    from .results import SuiteResult

_TEXT = (
    "Images drawn from the model by Langevin dynamics, measured beside real ones. No figure alone tells good samples: "
    "labels say nothing of variety, distances little of copies, and a model that repeats its training images does well "
    "in all but the nearest-neighbour check."
)
_OF = Column("images", "images", "text")
_N = Column("n", "n", "count")
_SCORES = {
    "frechet_distance": Column("frechet_distance", "Fréchet distance", digits=3),
    "fid": Column("fid", "FID", digits=2),
    "kernel_distance": bounded("kernel_distance", "kernel distance x 1000", digits=2, scale=1000),
    "kid": bounded("kid", "KID x 1000", digits=2, scale=1000),
    "label_score": Column("label_score", "label score", digits=2),
    "inception_score": Column("inception_score", "Inception score", digits=2),
}


def generation_section(generation: GenerationResult, result: SuiteResult | None = None) -> Section:
    """Labels, distances, neighbours, variety and log density of samples, with pictures."""
    tables = (_labels(generation), _distances(generation), _neighbours(generation), _diversity(generation))
    return Section(
        "generation",
        "Samples",
        (_TEXT, *filter(None, [result and result.context.get("samples")])),
        tuple(_warnings(generation)),
        tuple(table for table in (*tables, _densities(generation)) if table.rows or table.means),
        tuple(drawings_of(generation)),
        tuple(_lines(generation)),
        _card(generation),
    )


def report_of_generation(result: GenerationResult, title: str, lead: str = "") -> str:
    """A page of its own for a set of samples, as HTML that needs nothing else.

    Arguments:
        title: names the samples, such as the run they were drawn from.
        lead: a sentence below it; by default how many samples were measured against what.
    """
    from .plots import to_svg
    from .report import render_page
    from .report_sections import data_section

    sets = result.about["sets"]
    lead = lead or f"{count(sets[0]['n'])} samples, measured against {sets[1]['name']}, {count(sets[1]['n'])} images."
    whole = result.section
    pictures = replace(whole, key="samples", tables=(), card=None)  # here they are what one comes for
    figures = replace(whole, title="Quality", text=(), warnings=(), drawings=())
    drawn = {drawing.name: to_svg(drawing.draw(), drawing.name) for drawing in whole.drawings}
    return render_page(f"{title}: samples", title, lead, (pictures, figures, data_section(tuple(sets))), drawn)


def _with_names(rows: Iterable[Row]) -> tuple[Row, ...]:
    """The rows with what they are about in a reader's words."""
    return tuple(dict(row) | {"images": NAMES[row["of"]]} for row in rows)


def _group(generation: GenerationResult, group: str) -> tuple[Row, ...]:
    return _with_names(row for row in generation.rows if row["group"] == group)


def _judge(generation: GenerationResult) -> str:
    return str(generation.about["judge"])


def _labels(generation: GenerationResult) -> Table:
    """A row a class, samples beside test images; all classes together below."""
    found: dict[str | None, dict[str, Any]] = {}
    for row in generation.rows:
        if row["group"] == "labels":
            key = "label_agreement" if "label_agreement" in row else "judged_share"
            values = {f"{row['of']}{end}": row[f"{key}{end}"] for end in ("", "_low", "_high")}
            line = found.setdefault(row["class"], {"class": row["class"] or "all"})
            line |= values | {f"n_{row['of']}": row["n"]}
    asked = None in found
    columns = (
        Column("class", "class asked for" if asked else "judged as", "text"),
        *(bounded(of, NAMES[of], "percent") for of in (SAMPLES, TEST)),
        *(Column(f"n_{of}", f"n {NAMES[of]}", "count") for of in (SAMPLES, TEST)),
    )
    told = "that it calls by the class asked for; of test images, by their label" if asked else "that it gives a class"
    caption = f"Judge: {_judge(generation)}. Share of samples {told}. In brackets 95 % Wilson intervals."
    rows = tuple(line for name, line in found.items() if name is not None)
    return Table("Labels", caption, columns, rows, tuple(line for name, line in found.items() if name is None))


def _distances(generation: GenerationResult) -> Table:
    columns = (_OF, Column("features", "features of", "text"), *_SCORES.values(), _N)
    caption = (
        "Distances to the test images; lower is better, and training images in as great a number show what a perfect "
        "sampler would get. Figures of another n or other features do not compare. Scores: higher is better, at most "
        "the number of classes. In brackets 95 % intervals, by the jackknife."
    )
    return Table(
        "Distances", caption, (*columns, Column("n_reference", "n test", "count")), _group(generation, "distances")
    )


def _neighbours(generation: GenerationResult) -> Table:
    columns = (
        _OF,
        Column("nearest_mean", "mean distance", digits=3),
        Column("nearest_median", "median distance", digits=3),
        bounded("share_nearer", "suspiciously near", "percent"),
        Column("copies", "copies", "count"),
        _N,
        Column("n_reference", "n training", "count"),
    )
    rows = _group(generation, "neighbours")
    mark = f"{rows[0]['mark']:.3f}, the 1st percentile of the test images' distances" if rows else ""
    caption = (
        "Euclidean distance in pixels, in [0, 1], to the nearest training image. Far below the test images' means "
        f"copies. Suspiciously near: below {mark}. Copies: a root mean square difference below {255 * COPY:g}/255."
    )
    return Table("Nearest training images", caption, columns, rows)


def _diversity(generation: GenerationResult) -> Table:
    columns = (
        _OF,
        Column("other_mean", "mean distance", digits=3),
        bounded("near_duplicates", "near duplicates", "percent"),
        _N,
    )
    caption = (
        "Distance to the nearest other image of the same set, in pixels; far below the test images' means little "
        f"variety. Near duplicates: the share within a root mean square difference of {255 * COPY:g}/255 of another."
    )
    return Table("Variety", caption, columns, _group(generation, "diversity"))


def _densities(generation: GenerationResult) -> Table:
    columns = (
        _OF,
        Column("log_density_mean", "mean", digits=3),
        Column("log_density_5", "5 %", digits=3),
        Column("log_density_50", "median", digits=3),
        Column("log_density_95", "95 %", digits=3),
        bounded("auroc", "AUROC, test images above these", digits=3),
        _N,
    )
    caption = (
        "The model's own log density, up to a constant. AUROC: the probability that a test image has a higher one than "
        "an image of the row; 0.5 is best. Below it samples have too much density, above it chains ended too early or "
        "the model knows its samples from data. In brackets 95 % bootstrap intervals."
    )
    return Table("Log density", caption, columns, _group(generation, "log_density"))


def _warnings(generation: GenerationResult) -> Iterable[str]:
    """Copies, and an Inception network that is not FID's."""
    for row in generation.of("neighbours"):
        if row["copies"]:
            yield f"{count(row['copies'])} of {count(row['n'])} samples are copies of training images."
        if row["share_nearer_low"] > 0.01:
            share = percent(row["share_nearer"], row["share_nearer_low"], row["share_nearer_high"])
            yield f"{share} of the samples are nearer to a training image than 99 % of the test images are."
    weights = generation.about.get("inception")
    if weights and not weights["published"]:
        yield (
            f"The Inception weights {weights['file']} are not the published ones: distances in their features are no "
            "FID and no KID."
        )


def _lines(generation: GenerationResult) -> Iterable[Line]:
    """The main figures, samples first and then real images; the judge is named once."""
    told: set[str] = set()
    real = {row["group"]: row for row in generation.rows if row["of"] == TEST and row.get("class") is None}
    for row in generation.of("labels"):
        if row["class"] is None:
            shown = percent(row["label_agreement"], row["label_agreement_low"], row["label_agreement_high"])
            note = f"test images {percent(real['labels']['label_agreement'])}, by {_judge(generation)}, n={row['n']}"
            told.add(_judge(generation))
            yield Line("labels as asked", shown, note)
    for row in (row for row in generation.rows if row["group"] == "distances"):
        yield from _distance_lines(row, told)
    for row in generation.of("neighbours"):
        near = f"{count(row['copies'])} copies of {count(row['n_reference'])}, "
        near += f"test images {number(real['neighbours']['nearest_mean'], 3)}"
        yield Line("nearest training image", number(row["nearest_mean"], 3), f"{near}, n={row['n']}")
    for row in generation.of("diversity"):
        note = f"test images {number(real['diversity']['other_mean'], 3)}, " if "diversity" in real else ""
        yield Line("nearest other sample", number(row["other_mean"], 3), f"{note}n={row['n']}")
    for row in generation.of("log_density"):
        shown = interval(row["auroc"], row["auroc_low"], row["auroc_high"], 3)
        yield Line("log density AUROC", shown, f"test images above samples, n={row['n_reference']} and {row['n']}")


def _distance_lines(row: Row, told: set[str]) -> Iterable[Line]:
    """Both distances and the score, each on a line of its own; features named before are `the same`."""
    for key, column in _SCORES.items():
        if key in row:
            sizes = f"n={row['n']}" + (f" and {row['n_reference']}" if "score" not in key else "")
            features = f"features of {'the same' if row['features'] in told else row['features']}"
            told.add(row["features"])
            yield Line(f"{column.heading}, {NAMES[row['of']]}", column.cell(row).text, f"{features}, {sizes}")


def _card(generation: GenerationResult) -> Card | None:
    """Agreement with the class asked for; else the first distance; nothing where there is neither."""
    for row in generation.of("labels"):
        if row["class"] is None:
            shown = f"95 % interval {100 * row['label_agreement_low']:.2f} to {100 * row['label_agreement_high']:.2f}"
            note = f"{shown}, n = {count(row['n'])}; judged by {_judge(generation)}"
            return Card("Samples as asked", percent(row["label_agreement"]), note)
    for row in generation.of("distances"):
        for key, column in _SCORES.items():
            if key in row:
                note = f"features of {row['features']}, n = {count(row['n'])}"
                return Card(column.heading, number(row[key], column.digits), note)
    return None
