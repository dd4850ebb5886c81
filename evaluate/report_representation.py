"""The report's part on representations: probes, few labels, OOD detection, corruptions, reconstruction."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from .formats import count, number, percent
from .report_representation_figures import drawings_of
from .sections import Card, Cell, Column, Line, Section, Table, bounded

if TYPE_CHECKING:
    from .representation_result import RepresentationResult, Row
    from .results import SuiteResult

_TEXT = (
    "Features of a frozen encoder, measured by what simple predictors make of them: nothing of the encoder is trained "
    "here. Probes are fitted on the training set, and every figure is one of the test set."
)
_NAME = Column("representation", "representation", "text")
_N, _N_TRAIN = Column("n", "n", "count"), Column("n_train", "n train", "count")
_LIKELIHOOD = bounded("log_likelihood", "log-likelihood", digits=2)
_BITS = bounded("bits_per_dimension", "bits per dimension", digits=3)
_MSE = bounded("mse", "mean square error", digits=5)
MODEL = "the model itself"


def representation_section(result: RepresentationResult, suite: SuiteResult | None = None) -> Section:
    """Tables and pictures of all that was measured."""
    made = (probe_table, few_label_table, ridge_table, ood_table, corruption_table, reconstruction_table)
    tables = (build(result) for build in made)
    notes = dict.fromkeys([*result.notes, *((suite.context.get("notes") or ()) if suite else ())])
    return Section(
        "representation",
        "Representations",
        (_TEXT,),
        tuple(f"{note[0].upper()}{note[1:]}." for note in notes),
        tuple(table for table in tables if table.rows or table.means),
        tuple(drawings_of(result)),
        tuple(_lines(result)),
        _card(result),
    )


def named(rows: Iterable[Row]) -> tuple[Row, ...]:
    """The rows under a name for a reader: figures that need no features are the model's own."""
    return tuple(row | {"representation": row["representation"] or MODEL} for row in rows)


def probe_table(result: RepresentationResult) -> Table:
    """A row a representation: the linear probe and kNN for each k."""
    found: dict[str, dict[str, Any]] = {}
    neighbours: list[int] = []
    for row in result.of("probe"):
        line = found.setdefault(row["representation"], {})
        if row["probe"] == "linear":
            line |= row
        else:
            neighbours += [row["k"]] if row["k"] not in neighbours else []
            line |= {f"knn{row['k']}{end}": row[f"accuracy{end}"] for end in ("", "_low", "_high")}
    columns = (
        _NAME,
        Column("dimension", "features", "count"),
        bounded("accuracy", "linear probe", "percent"),
        Column("nll", "NLL"),
        Column("ece_15", "ECE, 15 bins"),
        Column("C", "C", "given"),
        *(bounded(f"knn{k}", f"kNN, k = {k}", "percent") for k in neighbours),
        _N,
        _N_TRAIN,
    )
    caption = (
        "Accuracy of multinomial logistic regression on standardised features, with the C that validation images chose "
        "(1 without any), and of k nearest neighbours by cosine. In brackets 95 % Wilson intervals."
    )
    return Table("Probes", caption, columns, tuple(found.values()))


def few_label_table(result: RepresentationResult) -> Table:
    """A row a representation, a column for each number of labels."""
    found: dict[str, dict[str, Any]] = {}
    for row in result.of("few_labels"):
        line = found.setdefault(row["representation"], {"representation": row["representation"], "n": row["n"]})
        text = f"{percent(row['accuracy'])} ± {100 * row['accuracy_std']:.2f}"
        line[f"labels{row['labels_per_class']}"] = Cell(text, row["accuracy"])
    rows = result.of("few_labels")
    sizes = dict.fromkeys(row["labels_per_class"] for row in rows)
    columns = (_NAME, *(Column(f"labels{n}", f"{n} a class") for n in sizes), _N)
    draws = rows[0]["draws"] if rows else 0
    caption = (
        f"Accuracy of the linear probe on so many labelled training examples a class: mean and standard deviation over "
        f"{draws} draws, the same for every representation."
    )
    return Table("Few labels", caption, columns, tuple(found.values()))


def ridge_table(result: RepresentationResult) -> Table:
    """A row a representation."""
    columns = (
        _NAME,
        Column("r2", "R²"),
        Column("mae", "MAE"),
        Column("rmse", "RMSE"),
        Column("alpha", "alpha", "given"),
        _N,
        _N_TRAIN,
    )
    caption = (
        "Ridge regression of the target on standardised features. R²: 1 is perfect, 0 as good as the mean of the test "
        "targets. MAE and RMSE in the target's unit. Alpha is chosen by leaving each training example out in turn."
    )
    return Table("Regression", caption, columns, result.of("ridge"))


def ood_table(result: RepresentationResult) -> Table:
    """A row for each OOD set, representation and score; the means over sets below."""
    columns = (
        Column("ood_set", "OOD set", "text"),
        _NAME,
        Column("score", "score", "text"),
        bounded("auroc", "AUROC"),
        bounded("fpr95_ood_positive", "FPR95, OOD positive"),
        bounded("fpr95_id_positive", "FPR95, ID positive"),
        Column("n_id", "n ID", "count"),
        Column("n_ood", "n OOD", "count"),
    )
    caption = (
        "kNN: distance to the 50th nearest training feature, by cosine. Mahalanobis: distance to one Gaussian of all "
        "training features, without classes. Log-likelihood: the model's own; low for OOD. In brackets 95 % bootstrap "
        "intervals."
    )
    rows = named(result.of("ood"))
    order = list(dict.fromkeys(row["ood_set"] for row in rows))
    rows = tuple(sorted(rows, key=lambda row: order.index(row["ood_set"])))
    sets, means = (tuple(row for row in rows if ("n_sets" in row) is apart) for apart in (False, True))
    return Table("OOD detection", caption, columns, sets, means)


def corruption_table(result: RepresentationResult) -> Table:
    """A row for each representation: clean images, the means of the families, the mean over all."""
    found: dict[str, dict[str, Any]] = {}
    families: dict[str, None] = {}
    for row in result.of("corruptions"):
        line = found.setdefault(row["representation"], {"representation": row["representation"], "n": row["n"]})
        if row["corruption"] == "none":
            line["clean"] = row["accuracy"]
        elif row["severity"] is None:
            families[row["corruption"]] = None
            line[row["corruption"]] = row["accuracy"]
    columns = (
        _NAME,
        Column("clean", "clean", "percent"),
        *(Column(name, name, "percent") for name in families),
        _N,
    )
    caption = (
        "Accuracy on corrupted test images of the linear probe that was fitted on clean ones: unweighted means over "
        "corruptions and severities 1 to 5."
    )
    return Table("Corruptions", caption, columns, tuple(found.values()))


def reconstruction_table(result: RepresentationResult) -> Table:
    """One row: the model's likelihood of the test set and how near its reconstructions come."""
    columns = (
        Column("set", "set", "text"),
        _LIKELIHOOD,
        _BITS,
        _MSE,
        _N,
    )
    caption = (
        "Log-likelihood in nats, a sum over an image's dimensions, as the model defines it; mean square error a value "
        "in [0, 1]. Means with 95 % intervals by the normal approximation."
    )
    return Table("Reconstruction", caption, columns, result.of("reconstruction"))


def _lines(result: RepresentationResult) -> Iterable[Line]:
    """The main figures: a line for each question and representation."""
    for name in result.about["representations"]:
        yield from _probe_lines(result, name)
    for row in result.of("ridge"):
        note = f"MAE {number(row['mae'])}, RMSE {number(row['rmse'])}, n={row['n']}"
        yield Line(f"R², {row['representation']}", number(row["r2"]), note)
    rows = named(result.of("ood"))
    for row in [row for row in rows if "n_sets" in row] or rows:  # of several sets the means
        note = f"{row['representation']}, n={row['n_id']} and {row['n_ood']}"
        yield Line(f"AUROC {row['score']}, {row['ood_set']}", bounded("auroc", "").cell(row).text, note)
    for row in result.of("corruptions"):
        if row["corruption"] == "mean" and row["severity"] is None:
            note = f"linear probe, mean of {row['cells']} cells, n={row['n']}"
            yield Line(f"corruptions, {row['representation']}", percent(row["accuracy"]), note)
    for row in result.of("reconstruction"):
        for column in (_LIKELIHOOD, _BITS, _MSE):
            if row.get(column.key) is not None:
                yield Line(column.heading, column.cell(row).text, f"n={row['n']}")


def _probe_lines(result: RepresentationResult, name: str) -> Iterable[Line]:
    """The linear probe, kNN and few labels of one representation."""
    rows = result.of("probe", name)
    for row in rows[:1]:
        note = f"NLL {number(row['nll'])}, ECE {number(row['ece_15'])}, C={row['C']:g}, n={row['n']}"
        yield Line(f"linear probe, {name}", percent(row["accuracy"], row["accuracy_low"], row["accuracy_high"]), note)
        shown = ", ".join(f"{row['k']}: {percent(row['accuracy'])}" for row in rows[1:])
        yield Line(f"kNN by k, {name}", shown, f"cosine, n={row['n']}")
    few = result.of("few_labels", name)
    for row in few[:1]:
        shown = ", ".join(f"{row['labels_per_class']}: {percent(row['accuracy'])}" for row in few)
        yield Line(f"labels a class, {name}", shown, f"linear probe, means of {row['draws']} draws, n={row['n']}")


def _card(result: RepresentationResult) -> Card | None:
    """The best linear probe, named as such."""
    rows = [row for row in result.of("probe") if row["probe"] == "linear"]
    if not rows:
        return None
    row = max(rows, key=lambda row: float(row["accuracy"]))
    which = f"{row['representation']}, the best of {len(rows)}" if len(rows) > 1 else row["representation"]
    shown = f"95 % interval {100 * row['accuracy_low']:.2f} to {100 * row['accuracy_high']:.2f}, n = {count(row['n'])}"
    return Card("Linear probe", percent(row["accuracy"]), f"{which}; {shown}")
