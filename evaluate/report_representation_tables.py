"""The tables of a report on representations."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from .formats import percent
from .sections import Cell, Column, Table, bounded

if TYPE_CHECKING:
    from .representation_result import RepresentationResult, Row

MODEL = "the model itself"
LIKELIHOOD = bounded("log_likelihood", "log-likelihood", digits=2, stacked=True)
BITS = bounded("bits_per_dimension", "bits per dimension", digits=3, stacked=True)
MSE = bounded("mse", "mean square error", digits=5, stacked=True)
NAME, N = Column("representation", "representation", "text"), Column("n", "n", "count")
_N_TRAIN = Column("n_train", "n train", "count")


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
        NAME,
        bounded("accuracy", "linear probe", "percent", stacked=True),
        *(bounded(f"knn{k}", f"kNN, k = {k}", "percent", stacked=True) for k in neighbours),
        Column("nll", "NLL"),
        Column("ece_15", "ECE, 15 bins"),
        N,
        _N_TRAIN,
        Column("dimension", "features", "count"),
        Column("C", "C", "given"),
    )
    caption = (
        "Accuracy of multinomial logistic regression on standardised features, with the C that validation images chose "
        "(1 without any), and of k nearest neighbours by cosine. In brackets 95 % Wilson intervals. NLL, ECE and C "
        "are the linear probe's."
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
    columns = (NAME, *(Column(f"labels{n}", f"{n} a class") for n in sizes), N)
    draws = rows[0]["draws"] if rows else 0
    caption = (
        f"Accuracy of the linear probe on so many labelled training examples a class: mean and standard deviation over "
        f"{draws} draws, the same for every representation."
    )
    return Table("Few labels", caption, columns, tuple(found.values()))


def ridge_table(result: RepresentationResult) -> Table:
    """A row a representation."""
    columns = (
        NAME,
        Column("r2", "R²"),
        Column("mae", "MAE"),
        Column("rmse", "RMSE"),
        Column("alpha", "alpha", "given"),
        N,
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
        NAME,
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
        NAME,
        Column("clean", "clean", "percent"),
        *(Column(name, name, "percent") for name in families),
        N,
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
        Column("likelihood", "likelihood", "text"),
        LIKELIHOOD,
        BITS,
        Column("reconstruction", "reconstruction", "text"),
        MSE,
        N,
    )
    caption = (
        "Log-likelihood in nats, a sum over an image's dimensions, as the model defines it; mean square error a value "
        "in [0, 1]. Means with 95 % intervals by the normal approximation."
    )
    return Table("Reconstruction", caption, columns, result.of("reconstruction"))
