"""How a figure is written for a reader: fixed digits, intervals, counts, radii; a dash where there is none."""

from __future__ import annotations

import math

DASH = "–"
VARIANTS = {
    "raw": "as trained",
    "temperature": "temperature-scaled",
    "vector": "vector-scaled",
    "isotonic": "isotonic",
}


def fixed(value: float, digits: int = 4) -> str:
    """A number with fixed digits; what rounds to 0 has no sign.

    >>> fixed(-0.00001), fixed(-0.0001), fixed(float("-inf"))
    ('0.0000', '-0.0001', '-inf')
    """
    text = f"{value:.{digits}f}"
    return text if text.strip("-0.") else text.lstrip("-")


def number(value: float | None, digits: int = 4) -> str:
    """A figure with fixed digits, a dash where there is none.

    >>> number(0.5), number(None), number(float("nan")), number(float("-inf"))
    ('0.5000', '–', '–', '-inf')
    """
    return DASH if value is None or math.isnan(value) else fixed(value, digits)


def interval(value: float | None, low: float | None, high: float | None, digits: int = 4) -> str:
    """A figure with its interval, where it has one.

    >>> interval(0.5, 0.25, 0.75, 2), interval(0.5, None, None, 2)
    ('0.50 [0.25, 0.75]', '0.50')
    """
    bounds = "" if value is None or low is None or high is None else f" [{fixed(low, digits)}, {fixed(high, digits)}]"
    return number(value, digits) + bounds


def percent(value: float | None, low: float | None = None, high: float | None = None) -> str:
    """A share in percent, with its interval where it has one.

    >>> percent(0.5, 0.25, 0.75), percent(0.5), percent(None)
    ('50.00 % [25.00, 75.00]', '50.00 %', '–')
    """
    if value is None or math.isnan(value):
        return DASH
    bounds = "" if low is None or high is None else f" [{fixed(100 * low, 2)}, {fixed(100 * high, 2)}]"
    return f"{fixed(100 * value, 2)} %{bounds}"


def count(value: float | None) -> str:
    """A whole number with its thousands apart.

    >>> count(10000), count(None)
    ('10,000', '–')
    """
    return DASH if value is None else f"{round(value):,}"


def in_255(eps: float) -> str:
    """eps in units of 1/255 where that is short, otherwise as a decimal.

    >>> in_255(8 / 255), in_255(0.3)
    ('8/255', '0.3')
    """
    steps = eps * 255
    short = 0 < steps <= 64 and abs(4 * steps - round(4 * steps)) < 1e-6
    return f"{steps:g}/255" if short else f"{eps:.4g}"


def shortened(name: str, width: int = 28) -> str:
    """A long name with its middle left out.

    >>> shortened("npz:/data/sets/a.npz", 12)
    'npz:...a.npz'
    """
    keep = (width - 3) // 2
    return name if len(name) <= width else f"{name[:keep]}...{name[-(width - keep - 3) :]}"


def attack_name(attack: str) -> str:
    """An attack for a reader; only the official composition is called AutoAttack.

    >>> attack_name("aa"), attack_name("pgd")
    ('AutoAttack', 'pgd')
    """
    return {"aa": "AutoAttack", "worst": "worst case"}.get(attack, attack)


def variant_name(variant: str) -> str:
    """A calibration variant for a reader; an unknown one as it is.

    >>> variant_name("raw"), variant_name("beta")
    ('as trained', 'beta')
    """
    return VARIANTS.get(variant, variant)
