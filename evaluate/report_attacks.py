"""The report's sections on attacks: on the classifier, on its refined form, on the detector; signs that they failed."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from .formats import attack_name, count, in_255, interval, percent, shortened
from .report_ood import is_mean
from .sections import Card, Column, Drawing, Line, Section, Table, bounded

if TYPE_CHECKING:
    from .results import SuiteResult

Row = Mapping[str, Any]
_ATTACK_COLUMNS = (
    Column("attack", "attack", "text"),
    Column("eps", "eps", "eps"),
    Column("robust_accuracy", "accuracy", "percent", low="robust_low", high="robust_high"),
    Column("n", "n", "count"),
    Column("norm", "norm", "text"),
    Column("steps", "steps", "count"),
    Column("restarts", "restarts", "count"),
    Column("eot", "EOT draws", "count"),
    Column("max_delta", "largest perturbation", digits=5),
    Column("doubtful", "doubtful in float32", "count"),
    Column("rechecked", "attacked again in float64", "count"),
    Column("recheck_fell", "of these fell", "count"),
    Column("seconds", "seconds", digits=1),
)


def robustness_section(robustness: Any, result: SuiteResult) -> Section:
    """Accuracy under each attack and radius, and in the worst case of all."""
    rows: tuple[Row, ...] = robustness.rows
    clean = rows[0]
    official = any(row["attack"] == "aa" for row in rows)
    what = "“aa” is AutoAttack, the official composition" if official else "they are not AutoAttack"
    text = f"Untargeted attacks. They bound robust accuracy from above; {what}. Measured on {count(clean['n'])} images."
    caption = "Interval: Wilson, 95 %. Every perturbation was checked to stay within eps and every pixel within [0, 1]."
    drawing = Drawing(
        "robustness",
        "Accuracy over the size of the perturbation, with 95 % intervals. A model that is not trained against attacks "
        "falls to about 0 % at 8/255 (linf) on natural images of 32 x 32 pixels; on digits of 8 x 8 it need not.",
        partial(_draw, rows),
        partial(_curve_table, rows),
    )
    single, worst = (tuple(row for row in rows if (row["attack"] == "worst") is apart) for apart in (False, True))
    return Section(
        "robustness",
        "Robustness",
        (text,),
        (*((_blind(clean),) if clean.get("zero_gradients") else ()), *getattr(robustness, "notes", ())),
        (Table("Robustness", caption, _ATTACK_COLUMNS, *(tuple(map(_own, some)) for some in (single, worst))),),
        (drawing,),
        tuple(_line(row) for row in rows if row["attack"] != "none"),
        _card(rows, result.settings.get("eps")),
    )


def _own(row: Row) -> Row:
    """The row without the settings it does not have; clean images too are decided by several draws where asked."""
    unset = {"none": ("steps", "restarts"), "worst": ("steps", "restarts", "eot")}.get(row["attack"], ())
    return {**row, **dict.fromkeys(unset)}


def _blind(row: Row) -> str:
    return (
        f"For {row['zero_gradients']} of {row['n']} images the gradient of the loss is exactly 0: an attack by "
        "gradients cannot move them, and the figures below make the model look more robust than it is."
    )


def _draw(rows: tuple[Row, ...]) -> Any:
    from . import plots

    return plots.robustness_curve(rows)


def _curve_table(rows: tuple[Row, ...]) -> Table:
    """Accuracy over eps, a column for each attack."""
    names = [name for name in dict.fromkeys(row["attack"] for row in rows) if name != "none"]
    of_eps: dict[float, dict[str, Any]] = {}
    for row in rows:
        for name in names if row["attack"] == "none" else [row["attack"]]:
            bounds = {f"{name}_low": row.get("robust_low"), f"{name}_high": row.get("robust_high")}
            of_eps.setdefault(row["eps"], {"eps": row["eps"]}).update({name: row["robust_accuracy"]} | bounds)
    columns = (Column("eps", "eps", "eps"), *(bounded(name, name, "percent") for name in names))
    caption = "Accuracy under each attack, with 95 % Wilson intervals."
    return Table("Numbers of the figure", caption, columns, tuple(of_eps[eps] for eps in sorted(of_eps)))


def _line(row: Row, before: str = "") -> Line:
    blind = f", no gradient for {row['zero_gradients']}" if row.get("zero_gradients") else ""
    return Line(
        f"{before}{attack_name(row['attack'])} {row['norm']} {in_255(row['eps'])}",
        percent(row["robust_accuracy"], row["robust_low"], row["robust_high"]),
        f"n={row['n']}{blind}",
    )


def _card(rows: tuple[Row, ...], asked: Any) -> Card:
    """The worst row at the radius asked for, at the largest of several."""
    attacked = [row for row in rows if row["attack"] != "none"]
    radii = [row["eps"] for row in attacked]
    eps = asked if asked in radii else max(radii)
    worst = min((row for row in attacked if row["eps"] == eps), key=lambda row: row["robust_accuracy"])
    note = f"{attack_name(worst['attack'])}, {worst['norm']}, eps {in_255(eps)}, n = {count(worst['n'])}"
    return Card("Robust accuracy", percent(worst["robust_accuracy"]), note)


def sanity_section(sanity: Any, result: SuiteResult) -> Section:
    """Signs that an attack failed rather than that the model is robust."""
    columns = (
        Column("check", "check", "text"),
        Column("status", "verdict", "text"),
        Column("value", "value", "percent"),
        Column("measures", "what is measured", "text", wrap=True),
        Column("detail", "detail", "text", wrap=True),
        Column("meaning", "what a warning says", "text", wrap=True),
        Column("n", "n", "count"),
    )
    rows: tuple[Row, ...] = sanity.rows
    text = (
        "Signs that an attack failed rather than that the model withstood it: masked gradients, saturated losses, "
        "attacks too short. A pass is no proof; a warning is a reason to distrust the figure."
    )
    return Section(
        "sanity",
        "Can the robust accuracy be trusted?",
        (text,),
        tuple(f"{row['check']}: {row['meaning']}" for row in rows if row["status"] == "warn"),
        (Table("Sanity checks of the attacks", "One row a check.", columns, rows),),
        lines=tuple(_verdict(row) for row in rows),
    )


def _verdict(row: Row) -> Line:
    """A check for the terminal: what a verdict other than a pass says, and why a check was not run."""
    said = {"pass": percent(row["value"]), "not run": row["detail"]}
    full = f"{percent(row['value'])}, n={row['n']}, {row['meaning']}"
    return Line(f"check {row['check']}", row["status"], said.get(row["status"], full))


def refined_section(refined: Any, result: SuiteResult) -> Section:
    """Accuracy of SGLD-refined inference under the attacks that such a defence has to face, the plain net first."""
    inference = Column("inference", "inference", "text")
    text = (
        "The plain net first, then the net whose input is refined by SGLD steps on log p(x): attacked by transfer from "
        "the plain net, through all steps averaged over the noise (eot), and with the refinement taken for the "
        "identity in the backward pass (bpda). None of them is AutoAttack."
    )
    rows: tuple[Row, ...] = refined.rows
    table = Table("SGLD-refined inference", "Interval: Wilson, 95 %.", (inference, *_ATTACK_COLUMNS), rows)
    lines = (_line(row, f"{row['inference']} ") for row in rows if row["attack"] != "none")
    return Section("refined", "SGLD-refined inference", (text,), tables=(table,), lines=tuple(lines))


def detector_section(detector: Any, result: SuiteResult) -> Section:
    """AUROC when the images are moved within a ball to mislead the detector."""
    columns = (
        Column("ood_set", "OOD set", "text"),
        Column("score", "score", "text"),
        Column("attacked", "attacked", "text"),
        Column("eps", "eps", "eps"),
        bounded("auroc", "AUROC"),
        Column("aupr_in", "AUPR, ID positive"),
        Column("aupr_out", "AUPR, OOD positive"),
        Column("fpr95_id_positive", "FPR95, ID positive"),
        Column("fpr95_ood_positive", "FPR95, OOD positive"),
        Column("norm", "norm", "text"),
        Column("steps", "steps", "count"),
        Column("restarts", "restarts", "count"),
        Column("zero_gradients", "without gradient", "count"),
        Column("n_id", "n ID", "count"),
        Column("n_ood", "n OOD", "count"),
        Column("seconds", "seconds", digits=1),
    )
    rows: tuple[Row, ...] = detector.rows
    text = (
        "Within eps of each image, OOD images are moved towards a higher score and ID images towards a lower one. A "
        "gradient attack bounds the AUROC from above: a better attack may find less."
    )
    lines = tuple(
        Line(
            f"detector {row['score']} {row['norm']} {in_255(row['eps'])}",
            f"AUROC {interval(row['auroc'], row.get('auroc_low'), row.get('auroc_high'))}",
            f"{shortened(row['ood_set'])}, both sides attacked, n={row['n_id']} and {row['n_ood']}",
        )
        for row in rows
        if row["attacked"] == "both"
    )
    caption = (
        "AUROC with ID as the positive class, in brackets 95 % bootstrap intervals; 0.5 is chance, below it the "
        "detector is turned round."
    )
    sets, means = (tuple(row for row in rows if is_mean(row) is apart) for apart in (False, True))
    return Section(
        "detector_robustness",
        "Attacks on the detector",
        (text,),
        tables=(Table("Attacks on the detector", caption, columns, sets, means),),
        drawings=(_detector_drawing(rows, means),),
        lines=lines,
    )


def _detector_drawing(rows: tuple[Row, ...], means: tuple[Row, ...]) -> Drawing:
    """AUROC over eps, of the mean where there are several sets."""
    shown = means or rows
    caption = f"AUROC over the size of the perturbation, {shown[0]['ood_set']}; below 0.5 is worse than chance."
    columns = (Column("attacked", "attacked", "text"), Column("eps", "eps", "eps"), bounded("auroc", "AUROC"))
    table = Table("Numbers of the figure", f"OOD: {shown[0]['ood_set']}.", columns, shown)
    return Drawing("detector-robustness", caption, partial(_draw_detector, rows), lambda: table)


def _draw_detector(rows: tuple[Row, ...]) -> Any:
    from .plots_checks import detector_curve

    return detector_curve(rows)
