r"""Vocabularies: from lines of text such as SMILES to tokens, ids and back.

A line is cut by SMILES' own units (Weininger 1988; OpenSMILES): a bracket atom, `Cl`, `Br` and a ring closure `%NN` are
one token each, every other character is a token by itself. So no line fails, and the tokens of a line, joined, are that
line.

    id   0 padding   1 start   2 end   3 unknown   4, 5, ... the tokens of the vocabulary

A row of ids is the tokens of a line, the end token, and padding up to a common length.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ebmhybrid.errors import DataError

PADDING, START, END, UNKNOWN, SPECIALS = range(5)
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

_TOKEN = re.compile(r"\[[^\[\]]*\]|Cl|Br|%[0-9][0-9]|.", re.DOTALL)


def split_tokens(line: str) -> list[str]:
    """The tokens of a line, which joined are the line.

    >>> split_tokens("C[C@@H](Cl)C%10=O")
    ['C', '[C@@H]', '(', 'Cl', ')', 'C', '%10', '=', 'O']
    """
    return _TOKEN.findall(line)


def content(tokens: Tensor) -> Tensor:
    """Where a row says something: up to and including its first end token, and never at padding; bool, (N, L).

    >>> content(torch.tensor([[4, 2, 0], [4, 5, 4]])).int().tolist()
    [[1, 1, 0], [1, 1, 1]]
    """
    ends = tokens == END
    return (ends.cumsum(1) - ends.long() == 0) & (tokens != PADDING)


@dataclass(frozen=True)
class Vocabulary:
    """Tokens with ids; as plain data it is its list of tokens, `list(vocabulary.tokens)`.

    Arguments:
        tokens: different and not empty; the first has id 4.

    Raises:
        DataError: tokens of another form.

    >>> vocabulary = Vocabulary(["C", "O"])
    >>> vocabulary.encode(["CCO", "CN"])
    tensor([[4, 4, 5, 2],
            [4, 3, 2, 0]])
    >>> vocabulary.decode(torch.tensor([[4, 4, 5, 2], [5, 2, 0, 0]]))
    ['CCO', 'O']
    """

    tokens: tuple[str, ...]

    def __init__(self, tokens: Sequence[str]) -> None:
        if isinstance(tokens, str) or not all(isinstance(token, str) and token for token in tokens):
            raise DataError(f"a vocabulary is a list of strings that are not empty, got {_shown(tokens)}")
        if len(set(tokens)) < len(tokens):
            twice = next(token for position, token in enumerate(tokens) if token in tokens[:position])
            raise DataError(f"the tokens of a vocabulary must differ, {twice!r} stands twice")
        object.__setattr__(self, "tokens", tuple(tokens))

    @classmethod
    def of_lines(cls, lines: Iterable[str]) -> Vocabulary:
        """The tokens that occur in the lines, sorted: their order does not depend on that of the lines.

        >>> Vocabulary.of_lines(["CCO", "CBr"]).tokens
        ('Br', 'C', 'O')
        """
        return cls(sorted({token for line in lines for token in split_tokens(line)}))

    def __len__(self) -> int:
        """The number of ids, the four special ones included."""
        return SPECIALS + len(self.tokens)

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {token: number for number, token in enumerate(self.tokens, SPECIALS)}

    def id_of(self, token: str) -> int:
        """The id of a token; one that is not in the vocabulary is unknown."""
        return self._ids.get(token, UNKNOWN)

    def ids(self, line: str) -> list[int]:
        """The ids of a line's tokens, and that of the end."""
        return [*map(self.id_of, split_tokens(line)), END]

    def encode(self, lines: Sequence[str], max_length: int | None = None) -> Tensor:
        """Lines as rows of ids, int64 (N, L), L the length of the longest with its end token.

        Arguments:
            lines: N >= 1 of them.
            max_length: of a row, the end token counted.

        Raises:
            DataError: no lines, or one that is longer.
        """
        if isinstance(lines, str) or not len(lines):
            raise DataError(f"lines must be a list of at least one string, got {_shown(lines)}")
        rows = [self.ids(line) for line in lines]
        longest = max(rows, key=len)
        if max_length is not None and len(longest) > max_length:
            raise DataError(
                f"{_shown(lines[rows.index(longest)])} has {len(longest)} tokens with its end, at most {max_length} fit"
            )
        return torch.tensor([row + [PADDING] * (len(longest) - len(row)) for row in rows])

    def decode(self, tokens: Tensor) -> list[str]:
        """Rows of ids, int64 (N, L), as lines: each up to its end token, unknown tokens as U+FFFD.

        Raises:
            DataError: another shape, or ids that there are none of.
        """
        if tokens.dim() != 2 or tokens.dtype != torch.int64:
            raise DataError(f"tokens must be int64 (N, L), got {tokens.dtype} {tuple(tokens.shape)}")
        if tokens.numel() and not (int(tokens.min()) >= 0 and int(tokens.max()) < len(self)):
            raise DataError(f"tokens must lie in 0..{len(self) - 1}, got {int(tokens.min())}..{int(tokens.max())}")
        texts = ["", "", "", REPLACEMENT, *self.tokens]
        rows = tokens.masked_fill(~content(tokens), PADDING).tolist()
        return ["".join(texts[number] for number in row) for row in rows]


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
