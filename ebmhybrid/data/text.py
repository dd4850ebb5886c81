"""A user's own lines of text, such as SMILES: text:PATH, one sequence a line, and in every line a number or in none."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from ebmhybrid.data.tokens import TokenSet
from ebmhybrid.errors import DataError
from ebmhybrid.vocabulary import END, PADDING, UNKNOWN, Vocabulary, split_tokens

LARGEST_FILE = 2**30  # bytes
LARGEST_LINE = 2**20  # characters
LARGEST_COUNT = 10_000_000  # lines
LARGEST_TABLE = 2**28  # ids: 2 GiB
LARGEST_VOCABULARY = 2**15


def load_text(path: str, max_length: int | None = None, vocabulary: Vocabulary | None = None) -> TokenSet:
    """A UTF-8 file of one sequence a line, or of a sequence, a tab and a number to regress on in every line.

    Lines that are empty or blank are passed over, and counted in the notes like lines that are too long and tokens that
    are not in a given vocabulary. White space around a sequence is no part of it.

    Arguments:
        max_length: of a row of tokens, the end token counted; longer lines are dropped. None: the longest line's.
        vocabulary: of a trained model; None: the tokens of the file itself, of every line that is kept.

    Raises:
        DataError: a file that is absent, empty, too large or not UTF-8, a number that is none, or no line that fits.
    """
    name, file = f"text:{path}", Path(path).expanduser()
    if max_length is not None and max_length < 2:
        raise DataError(f"{name}: max_length must be at least 2, a token and the end, got {max_length}")
    lines = _Lines(name, max_length)
    for number, line in _read(name, file):
        lines.add(number, line)
    return lines.as_set(vocabulary)


def _read(name: str, file: Path) -> Iterator[tuple[int, str]]:
    """The numbered lines of a file, without their ends."""
    number = 0
    try:
        if not file.is_file():
            reason = f"{file} is not a regular file" if file.exists() else f"there is no file {file}"
            raise DataError(f"{name}: {reason}")
        if file.stat().st_size > LARGEST_FILE:
            raise DataError(f"{name}: has {file.stat().st_size} bytes, at most {LARGEST_FILE} are read")
        with file.open("rb") as opened:
            for number, raw in enumerate(opened, 1):
                # Windows' editors begin a file with a byte order mark.
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                yield number, line.rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{name}: line {number} is not UTF-8 ({error.reason})") from error
    except OSError as error:
        raise DataError(f"{name}: cannot be read ({error.strerror})") from error


class _Lines:
    """The lines read so far, as flat ids in the order of their tokens' first appearance: millions fit in memory."""

    def __init__(self, name: str, max_length: int | None) -> None:
        self.name, self.max_length = name, max_length
        self.seen: dict[str, int] = {}
        self.ids, self.lengths, self.targets = array("i"), array("i"), array("d")
        self.blank = self.dropped = self.longest = 0
        self.with_targets: bool | None = None

    def add(self, number: int, line: str) -> None:
        """Take over a line, or count why not."""
        where = f"{self.name}: line {number}"
        if not line.strip():
            self.blank += 1
            return
        text, tab, target = line.partition("\t")
        text = text.strip()
        if not text:
            raise DataError(f"{where} has no sequence before its tab")
        if "\t" in target:
            raise DataError(f"{where} has {line.count(tab) + 1} columns, at most 2 are read: a sequence and a number")
        if self.with_targets not in (None, bool(tab)):
            has, others = ("a", "none") if tab else ("no", "one")
            raise DataError(f"{where} has {has} second column, the lines before it have {others}")
        self.with_targets = bool(tab)
        value = _number(target, where) if tab else None
        if len(line) > LARGEST_LINE:
            raise DataError(f"{where} has {len(line)} characters, at most {LARGEST_LINE} are read")
        tokens = split_tokens(text)
        if self.max_length is not None and len(tokens) >= self.max_length:
            self.dropped += 1
            return
        self.ids.extend([self.seen.setdefault(token, len(self.seen)) for token in tokens])
        self.lengths.append(len(tokens))
        self.longest = max(self.longest, len(tokens) + 1)
        if value is not None:
            self.targets.append(value)
        self._check_size(where)

    def _check_size(self, where: str) -> None:
        count = len(self.lengths)
        if count > LARGEST_COUNT:
            raise DataError(f"{where}: there may be at most {LARGEST_COUNT} lines")
        if count * self.longest > LARGEST_TABLE:
            raise DataError(
                f"{where}: {count} rows as long as the longest, {self.longest} tokens, are more than {LARGEST_TABLE} "
                "ids: leave out the longest lines"
            )
        if len(self.seen) > LARGEST_VOCABULARY:
            raise DataError(f"{where}: there are more than {LARGEST_VOCABULARY} different tokens")

    def as_set(self, vocabulary: Vocabulary | None) -> TokenSet:
        """The lines as a table of ids."""
        if not self.lengths:
            long = f"all {self.dropped} lines are longer than max_length = {self.max_length}, the end token counted"
            raise DataError(f"{self.name}: {long if self.dropped else 'holds no lines'}")
        notes = [f"vocabulary of {len(self.seen)} tokens, of the whole file"] if vocabulary is None else []
        if vocabulary is None:
            vocabulary = Vocabulary(sorted(self.seen))
        ids = np.array([vocabulary.id_of(token) for token in self.seen])[np.asarray(self.ids)]
        columns, lengths = np.arange(self.longest), np.asarray(self.lengths)[:, None]
        tokens = np.full((len(lengths), self.longest), PADDING, dtype=np.int64)
        tokens[columns < lengths] = ids
        tokens[columns == lengths] = END
        counts = (self.dropped, f"dropped, longer than {self.max_length} tokens with the end"), (self.blank, "blank")
        notes += [f"{count} of the file's lines {what}" for count, what in counts if count]
        if unknown := int((ids == UNKNOWN).sum()):
            notes.append(f"{unknown} of {len(ids)} tokens are not in the vocabulary")
        targets = torch.tensor(self.targets, dtype=torch.float32) if self.with_targets else None
        return TokenSet(self.name, torch.from_numpy(tokens), vocabulary, notes=tuple(notes), targets=targets)


def _number(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise DataError(f"{where}: {text!r} after the tab is no number; a line of headings must be left out") from None
    if not abs(value) <= torch.finfo(torch.float32).max:
        raise DataError(f"{where}: the number after the tab must be finite in float32, got {text}")
    return value
