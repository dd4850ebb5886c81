"""A file of sequences as train, validation and test parts."""

from __future__ import annotations

from ebmhybrid.data.splits import Splits, stratified_split
from ebmhybrid.data.text import load_text
from ebmhybrid.data.tokens import TokenSet
from ebmhybrid.errors import DataError


def load_text_splits(
    train: str, *, test: str | None, validation_fraction: float, test_fraction: float, seed: int, max_length: int
) -> Splits:
    """What :func:`ebmhybrid.data.load_splits` is for images: parts that share no line of `text:PATH`.

    Of lines that say the same the first is kept, so that none is both trained and tested on. The vocabulary and the
    length are those of the whole file; a test file of its own is read with them.

    Arguments:
        max_length: of a row of tokens, the end token counted; longer lines are dropped, and counted in the notes.

    Raises:
        DataError: a file that cannot be used, shares that leave nothing to train on, or numbers to regress on in one
            file alone.
    """
    whole = _without_repetitions(load_text(_path(train), max_length))
    shares = {"train": 1 - validation_fraction, "validation": validation_fraction}
    if test is None:
        shares |= {"train": 1 - validation_fraction - test_fraction, "test": test_fraction}
        if shares["train"] <= 0:
            raise DataError(
                f"{train}: validation_fraction {validation_fraction} and test_fraction {test_fraction} leave nothing "
                "to train on"
            )
    try:
        indices = stratified_split(whole.labels, list(shares.values()), seed)
    except DataError as error:
        raise DataError(f"{train}: {len(whole)} sequences are too few for {len(shares)} parts") from error
    parts = {
        part: whole.select(index).noted(f"{part}: {len(index)} of {len(whole)} sequences, seed {seed}")
        for part, index in zip(shares, indices, strict=True)
    }
    if test is not None:
        parts["test"] = load_text(_path(test), whole.shape[0], whole.vocabulary)
        has, lacks = (train, test) if parts["test"].targets is None else (test, train)
        if (whole.targets is None) != (parts["test"].targets is None):
            raise DataError(f"{has} has numbers to regress on, {lacks} has none")
    return Splits(**parts)  # type: ignore[arg-type]


def _without_repetitions(whole: TokenSet) -> TokenSet:
    first: dict[bytes, int] = {}
    for index, row in enumerate(whole.tokens.numpy()):
        first.setdefault(row.tobytes(), index)
    if len(first) == len(whole):
        return whole
    return whole.select(list(first.values())).noted(f"{len(whole) - len(first)} repeated lines left out")


def _path(name: str) -> str:
    kind, _, path = name.partition(":")
    if kind != "text" or not path:
        raise DataError(f"{name}: sequences are read from text:PATH")
    return path
