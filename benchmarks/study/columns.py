"""How a figure of the rows is called, in which unit and with how many digits it is written, and which way is better."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ebmhybrid.errors import UsageError, nearest
from ebmhybrid.evaluate.formats import fixed

SCORES = {"energy": "energy", "msp": "msp", "knn": "kNN", "grad_norm": "gradient norm"}
ATTACKS = {"pgd50": "PGD-50", "apgd": "APGD"}


@dataclass(frozen=True)
class Column:
    """A figure for a reader: `better` is 1 where more is better, -1 where less is, 0 where neither."""

    title: str
    digits: int
    better: int
    scale: float = 1.0

    def text(self, value: float) -> str:
        return fixed(self.scale * value, self.digits)

    def signed(self, value: float) -> str:
        """With its sign, for differences.

        >>> Column("accuracy %", 2, 1, 100).signed(0.0123)
        '+1.23'
        """
        text = self.text(value)
        return text if text.startswith("-") or not text.strip("0.") else f"+{text}"


_PLAIN = {
    "accuracy": Column("accuracy %", 2, 1, 100),
    "nll": Column("NLL", 3, -1),
    "nll_after": Column("NLL after T", 3, -1),
    "brier": Column("Brier", 4, -1),
    "ece": Column("ECE %", 2, -1, 100),
    "ece_after": Column("ECE after T %", 2, -1, 100),
    "temperature": Column("T", 2, 0),
    "aurc": Column("AURC %", 2, -1, 100),
    "sanity": Column("warnings", 1, 0),
    "corrupted": Column("corrupted %", 2, 1, 100),
    "step_ms": Column("ms a step", 1, 0),
    "step_ratio": Column("step time", 2, 0),
    "seconds": Column("seconds", 0, 0),
    "rollbacks": Column("rollbacks", 1, 0),
    "n_test": Column("test images", 0, 0),
}


def column(figure: str) -> Column:
    """The column of a figure by its name in the rows, or of one that :mod:`benchmarks.study.summary` derives.

    >>> column("auroc/energy/mnist").title, column("apgd/2/255").title
    ('mnist', 'APGD 2/255')
    >>> column("val_accuracy").title
    'validation accuracy %'
    >>> column("fpr95/msp/far").better
    -1

    Raises:
        UsageError: there is no such figure.
    """
    if figure in _PLAIN:
        return _PLAIN[figure]
    if figure.startswith("val_"):
        own = column(figure.removeprefix("val_"))
        return replace(own, title=f"validation {own.title}")
    kind, _, rest = figure.partition("/")
    if kind in ATTACKS and rest:
        return Column(f"{ATTACKS[kind]} {rest}", 1, 1, 100)
    score, _, name = rest.partition("/")
    if kind in ("auroc", "fpr95") and score in SCORES and name:
        return Column(name, 3, 1) if kind == "auroc" else Column(name, 3, -1)
    known = [*_PLAIN, "auroc/SCORE/SET", "fpr95/SCORE/SET", *(f"{attack}/EPS" for attack in ATTACKS)]
    raise UsageError(f"figure {figure!r} is unknown; {nearest(figure, known)}")
