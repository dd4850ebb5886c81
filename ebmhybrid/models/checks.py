"""Numbers that a model is given, checked before anything is made of them: each mistake is an error that names it."""

from __future__ import annotations

from ebmhybrid.errors import EbmhybridError

MOST_SAMPLES = 10**7
TEMPERATURES = 1e-6, 1e6  # logits divided by less overflow in float32
# A network far above these takes minutes and tens of gigabytes to make.
LARGEST = {
    "width": 1024,
    "latent": 2**16,
    "projection": 2**16,
    "memory": 1024,
    "dim": 2**13,
    "heads": 2**13,
    "layers": 1024,
    "patch": 256,
    "image_size": 256,
    "max_length": 2**21,
}


def check_sizes(**sizes: object) -> None:
    """An error unless each is a whole number from 1 to the largest that an option of this name may be."""
    for name, value in sizes.items():
        check_whole(name, value, 1, LARGEST[name])


def check_whole(name: str, value: object, least: int, most: int) -> None:
    """An error unless the value is a whole number from `least` to `most`; True and 1.0 are none."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise EbmhybridError(f"{name} must be a whole number from {least} to {most}, got {value!r}")


def check_number(name: str, value: object, least: float, most: float, below: bool = False) -> None:
    """An error unless the value is a number in [least, most], with `below` in [least, most); True and NaN are none."""
    fits = isinstance(value, (int, float)) and not isinstance(value, bool) and least <= value <= most
    if not fits or (below and value == most):
        end = ")" if below else "]"
        raise EbmhybridError(f"{name} must lie in [{least:g}, {most:g}{end}, got {value!r}")
