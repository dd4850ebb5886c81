"""Text to tokens: the tokeniser's laws, vocabularies, sets of sequences, and what a file may look like."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ebmhybrid.data import stratified_split, text
from ebmhybrid.data.text import load_text
from ebmhybrid.data.text_splits import load_text_splits
from ebmhybrid.data.tokens import TokenSet
from ebmhybrid.errors import DataError
from ebmhybrid.vocabulary import Vocabulary, content, split_tokens

SMILES_LIKE = st.text(alphabet="CNOBrlcnos[]@H+-()=#%0123456789/\\.", max_size=30)
ANYTHING = st.one_of(SMILES_LIKE, st.text(max_size=20))


# the tokeniser


@pytest.mark.parametrize(
    ("line", "tokens"),
    [
        ("CCO", "C C O"),
        ("ClCBr", "Cl C Br"),
        ("BCOB(C)I", "B C O B ( C ) I"),  # C and O beside each other, and a B that is no bromine
        ("FC(F)(F)S(=O)(=O)P", "F C ( F ) ( F ) S ( = O ) ( = O ) P"),
        ("c1ccsc1-n2ccpo2", "c 1 c c s c 1 - n 2 c c p o 2"),
        ("Sc1ccccc1", "S c 1 c c c c c 1"),  # no scandium outside brackets
        ("C%12CC%12%345", "C %12 C C %12 %34 5"),
        ("C%1C%", "C % 1 C %"),
        ("N[C@@H](C)C(=O)[O-].[Na+]", "N [C@@H] ( C ) C ( = O ) [O-] . [Na+]"),
        ("[13CH3:12]C#N", "[13CH3:12] C # N"),
        ("F/C=C\\F", "F / C = C \\ F"),
        ("[C[N]", "[ C [N]"),  # an unclosed bracket is a character
        ("C]C[]", "C ] C []"),
        ("C%٣٤", "C % ٣ ٤"),  # digits of another script close no ring
        ("C\u0301o\n", "C \u0301 o \n"),
        ("", ""),
    ],
)
def test_lines_are_cut_by_the_units_of_smiles(line, tokens):
    assert split_tokens(line) == (tokens.split(" ") if tokens else [])


@given(ANYTHING)
@settings(deadline=None)
def test_the_tokens_of_a_line_joined_are_the_line(line):
    tokens = split_tokens(line)
    assert "".join(tokens) == line
    assert all(
        len(token) == 1 or token in ("Cl", "Br") or re.fullmatch(r"%[0-9][0-9]|\[.*\]", token, re.S) for token in tokens
    )


@given(st.lists(ANYTHING, min_size=1, max_size=5))
@settings(deadline=None)
def test_the_vocabulary_of_lines_gives_them_back(lines):
    vocabulary = Vocabulary.of_lines(lines)
    tokens = vocabulary.encode(lines)
    assert vocabulary.decode(tokens) == lines
    assert (tokens == 2).sum(1).tolist() == [1] * len(lines)
    assert not ((tokens == 1) | (tokens == 3)).any()
    assert content(tokens).sum(1).tolist() == [len(split_tokens(line)) + 1 for line in lines]
    assert Vocabulary.of_lines(reversed(lines)) == vocabulary


# vocabularies


def test_a_vocabulary_goes_through_json_and_copies():
    vocabulary = Vocabulary.of_lines(["C[Na+]", 'é"'])
    again = Vocabulary(json.loads(json.dumps(list(vocabulary.tokens))))
    assert again == vocabulary
    assert vocabulary.encode(["C"]).tolist() == [[5, 2]]  # '"' comes before 'C'
    for twin in (copy.deepcopy(vocabulary), pickle.loads(pickle.dumps(vocabulary))):
        assert twin == vocabulary
        assert twin.encode(["é"]).tolist() == vocabulary.encode(["é"]).tolist()
    assert len(vocabulary) == 4 + 4


def test_what_is_not_in_the_vocabulary_is_unknown_and_shown_so():
    vocabulary = Vocabulary(["C"])
    tokens = vocabulary.encode(["CClC"])
    assert tokens.tolist() == [[4, 3, 4, 2]]
    assert vocabulary.decode(tokens) == ["C\ufffdC"]


def test_reading_stops_at_the_first_end_and_passes_over_padding_and_start():
    vocabulary = Vocabulary(["C", "O"])
    assert vocabulary.decode(torch.tensor([[1, 4, 0, 5, 2, 4, 2], [4, 4, 4, 4, 4, 4, 4], [2, 4, 0, 0, 0, 0, 0]])) == [
        "CO",
        "CCCCCCC",
        "",
    ]
    assert vocabulary.decode(torch.zeros(0, 3, dtype=torch.int64)) == []
    assert vocabulary.decode(torch.zeros(2, 0, dtype=torch.int64)) == ["", ""]


def test_a_line_just_fits():
    vocabulary = Vocabulary(["C"])
    assert vocabulary.encode(["CC", ""], max_length=3).tolist() == [[4, 4, 2], [2, 0, 0]]
    with pytest.raises(DataError, match=r"^'CC' has 3 tokens with its end, at most 2 fit$"):
        vocabulary.encode(["C", "CC"], max_length=2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Vocabulary("CO"), "a vocabulary is a list of strings that are not empty, got 'CO'"),
        (lambda: Vocabulary(["C", ""]), "strings that are not empty, got ['C', '']"),
        (lambda: Vocabulary(["C", 4]), "strings that are not empty, got ['C', 4]"),  # type: ignore[list-item]
        (lambda: Vocabulary(["C", "O", "C"]), "must differ, 'C' stands twice"),
        (lambda: Vocabulary(["C"]).encode([]), "a list of at least one string, got []"),
        (lambda: Vocabulary(["C"]).encode("CC"), "a list of at least one string, got 'CC'"),
        (lambda: Vocabulary(["C"]).decode(torch.zeros(3, dtype=torch.int64)), "int64 (N, L), got torch.int64 (3,)"),
        (lambda: Vocabulary(["C"]).decode(torch.zeros(3, 1)), "int64 (N, L), got torch.float32 (3, 1)"),
        (lambda: Vocabulary(["C"]).decode(torch.tensor([[5]])), "must lie in 0..4, got 5..5"),
        (lambda: Vocabulary(["C"]).decode(torch.tensor([[-1]])), "must lie in 0..4, got -1..-1"),
    ],
)
def test_vocabularies_refuse_in_one_line(call, message):
    with pytest.raises(DataError) as error:
        call()
    assert message in str(error.value)
    assert "\n" not in str(error.value)


# sets


VOCABULARY = Vocabulary(["C", "O"])


def make_set(n: int = 10, **extra) -> TokenSet:
    tokens = VOCABULARY.encode(["C" * (1 + i % 3) + "O" for i in range(n)])
    fields = {"labels": torch.arange(n) % 2, "classes": ("a", "b"), "targets": torch.arange(n).float()}
    return TokenSet("toy", tokens, VOCABULARY, **(fields | extra))


def test_iterating_gives_every_row_once_in_order():
    rows = make_set(10, batch_size=4)
    cut = list(rows)
    assert [len(labels) for _, labels in cut] == [4, 4, 2]
    tokens, labels = (torch.cat(part) for part in zip(*cut, strict=True))
    assert tokens.dtype == labels.dtype == torch.int64
    assert torch.equal(tokens, rows.tokens)
    assert torch.equal(labels, rows.labels)
    assert rows.images is rows.tokens
    assert (len(rows), rows.shape, rows.num_classes) == (10, (5,), 2)


def test_without_labels_there_is_one_class():
    rows = TokenSet("toy", VOCABULARY.encode(["C", "O"]), VOCABULARY)
    assert (rows.labels.tolist(), rows.classes, rows.targets) == ([0, 0], ("text",), None)
    assert [len(part) for part in stratified_split(make_set(20).labels * 0, [0.7, 0.1, 0.2], seed=0)] == [14, 2, 4]


ROWS = torch.tensor([[4, 2, 0], [4, 5, 2]])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": ROWS.int()}, "toy: tokens must be int64 (N, L) with N, L >= 1, got torch.int32 (2, 3)"),
        ({"tokens": ROWS[0]}, "got torch.int64 (3,)"),
        ({"tokens": ROWS[:0]}, "got torch.int64 (0, 3)"),
        ({"tokens": ROWS + 2}, "toy: tokens must lie in 0..5, got 2..7"),
        ({"tokens": ROWS - 5}, "toy: tokens must lie in 0..5, got -5..0"),
        ({"tokens": torch.tensor([[4, 2, 0], [4, 5, 4]])}, "row 1 is not"),  # no end
        ({"tokens": torch.tensor([[4, 2, 0], [4, 2, 2]])}, "row 1 is not"),  # two
        ({"tokens": torch.tensor([[4, 2, 0], [2, 4, 0]])}, "row 1 is not"),  # a token behind it
        ({"tokens": torch.tensor([[4, 0, 2], [4, 5, 2]])}, "row 0 is not"),  # padding before it
        ({"tokens": torch.tensor([[0, 4, 2], [4, 5, 2]])}, "row 0 is not"),
        ({"tokens": torch.tensor([[0, 0, 0], [4, 5, 2]])}, "row 0 is not"),
        ({"tokens": torch.tensor([[4, 5, 2], [1, 4, 2]])}, "row 1 is not"),  # the start token
        ({"labels": torch.zeros(2)}, "labels must be int64 of shape (2,), got torch.float32 (2,)"),
        ({"labels": torch.zeros(3).long()}, "labels must be int64 of shape (2,), got torch.int64 (3,)"),
        ({"labels": torch.tensor([0, 1])}, "labels must lie in 0..0, got 0..1"),
        ({"targets": torch.zeros(2).double()}, "targets must be float32 of shape (2,), got torch.float64 (2,)"),
        ({"targets": torch.zeros(3)}, "targets must be float32 of shape (2,), got torch.float32 (3,)"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
    ],
)
def test_malformed_sets_are_refused_in_one_line(changes, message):
    with pytest.raises(DataError) as error:
        TokenSet(**({"name": "toy", "tokens": ROWS, "vocabulary": VOCABULARY} | changes))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_batches_are_fetched_by_their_rows():
    rows = make_set(10)
    chunks = [torch.tensor([9, 0]), torch.tensor([3, 3, 4])]
    for index, (tokens, labels) in zip(chunks, rows.fetch(chunks), strict=True):
        assert torch.equal(tokens, rows.tokens[index])
        assert torch.equal(labels, rows.labels[index])


def test_selected_rows_keep_their_labels_and_targets():
    rows = make_set(10)
    some = rows.select([7, 2], "some").noted("two of them")
    assert (some.name, some.notes, some.shape) == ("some", ("two of them",), rows.shape)
    assert torch.equal(some.tokens, rows.tokens[[7, 2]])
    assert (some.labels.tolist(), some.targets.tolist()) == ([1, 0], [7.0, 2.0])
    assert make_set(4, targets=None).select([0]).targets is None
    with pytest.raises(DataError, match=r"toy: indices must lie in 0\.\.9, got 0\.\.10"):
        rows.select([0, 10])
    with pytest.raises(DataError, match=r"got -1\.\.0"):
        rows.select([0, -1])


@given(st.integers(1, 40), st.integers(1, 45))
@settings(deadline=None)
def test_taking_keeps_the_shares_of_the_classes(n, limit):
    rows = make_set(n, labels=(torch.arange(n) % 4 > 0).long())  # the classes lie mixed
    taken = rows.take(limit)
    assert len(taken) == min(n, limit)
    assert taken.targets.tolist() == sorted(taken.targets.tolist())  # in the order of the set
    expected = len(taken) * (rows.labels == 0).float().mean()
    assert abs((taken.labels == 0).sum() - expected) <= 1
    assert bool(taken.notes) == (limit < n)


def test_taking_nothing_is_refused():
    with pytest.raises(DataError, match="toy: limit must be at least 1, got 0"):
        make_set().take(0)


def test_the_digest_is_that_of_the_content_and_of_nothing_else():
    rows = make_set(3)
    by_hand = hashlib.sha256(b"((3, 5), ('C', 'O'))")
    for values, kind in ((rows.tokens, "<i8"), (rows.labels, "<i8"), (rows.targets, "<f4")):
        by_hand.update(np.array(values.tolist(), dtype=kind).tobytes())
    assert rows.digest() == by_hand.hexdigest()
    assert rows.noted("note").select([0, 1, 2], "other").digest() == rows.digest()
    others = [
        make_set(3, labels=torch.tensor([0, 1, 1])),
        make_set(3, targets=torch.zeros(3)),
        make_set(3, targets=None),
        TokenSet("toy", rows.tokens, Vocabulary(["C", "N"]), rows.labels, ("a", "b"), targets=rows.targets),
        rows.select([0, 2, 1]),
    ]
    assert len({rows.digest(), *(other.digest() for other in others)}) == 1 + len(others)


def test_a_set_goes_to_a_device_whole():
    rows = make_set(4, notes=("note",), batch_size=3)
    moved = rows.to("cpu")
    assert moved.digest() == rows.digest()
    assert (moved.name, moved.classes, moved.notes, moved.batch_size) == ("toy", ("a", "b"), ("note",), 3)


# files


def write(folder: Path, content: str | bytes, name: str = "lines.txt") -> str:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def test_a_file_of_lines(tmp_path):
    path = write(tmp_path, "CCO\nC[Na+]Br\n")
    rows = load_text(path)
    assert rows.name == f"text:{path}"
    assert rows.vocabulary.tokens == ("Br", "C", "O", "[Na+]")
    assert rows.tokens.tolist() == [[5, 5, 6, 2], [5, 7, 4, 2]]
    assert rows.notes == ("vocabulary of 4 tokens, of the whole file",)
    assert (rows.classes, rows.labels.tolist(), rows.targets) == (("text",), [0, 0], None)
    assert rows.vocabulary.decode(rows.tokens) == ["CCO", "C[Na+]Br"]


@given(
    st.lists(ANYTHING.map(lambda line: re.sub(r"[\r\n\t\ufeff]", "_", line)).filter(str.strip), min_size=1, max_size=6)
)
@settings(max_examples=50, deadline=None)
def test_every_line_of_a_file_comes_back(tmp_path_factory, lines):
    path = write(tmp_path_factory.mktemp("files"), "\n".join(lines))
    rows = load_text(path)
    assert rows.vocabulary.decode(rows.tokens) == [line.strip() for line in lines]
    assert rows.vocabulary == Vocabulary.of_lines(rows.vocabulary.decode(rows.tokens))


def test_line_ends_byte_order_marks_and_blank_lines(tmp_path):
    rows = load_text(write(tmp_path, b"\xef\xbb\xbfCC\r\n\r\n  \n CO \n\xc3\xa9\n"))
    assert rows.vocabulary.decode(rows.tokens) == ["CC", "CO", "é"]
    assert rows.notes[1:] == ("2 of the file's lines blank",)


def test_a_second_column_is_a_number_to_regress_on(tmp_path):
    rows = load_text(write(tmp_path, "CC\t1.5\n\nCO\t-2e3\nC\t 7\r\n"))
    assert rows.targets.dtype == torch.float32
    assert rows.targets.tolist() == [1.5, -2000.0, 7.0]
    assert rows.vocabulary.tokens == ("C", "O")


def test_long_lines_are_dropped_with_their_numbers_and_their_tokens(tmp_path):
    rows = load_text(write(tmp_path, "CCN\t1\nCC\t2\nC\t3\nCBrCC\t4\n"), max_length=3)
    assert rows.vocabulary.decode(rows.tokens) == ["CC", "C"]
    assert rows.targets.tolist() == [2.0, 3.0]
    assert (rows.shape, rows.vocabulary.tokens) == ((3,), ("C",))
    assert rows.notes == (
        "vocabulary of 1 tokens, of the whole file",
        "2 of the file's lines dropped, longer than 3 tokens with the end",
    )


def test_rows_are_as_long_as_the_longest_whatever_would_be_allowed(tmp_path):
    assert load_text(write(tmp_path, "CC\nC"), max_length=100).shape == (3,)


def test_with_a_vocabulary_what_it_lacks_is_unknown_and_counted(tmp_path):
    rows = load_text(write(tmp_path, "CN\nNN\n"), vocabulary=VOCABULARY)
    assert rows.tokens.tolist() == [[4, 3, 2], [3, 3, 2]]
    assert rows.vocabulary is VOCABULARY
    assert rows.notes == ("3 of 4 tokens are not in the vocabulary",)
    assert load_text(write(tmp_path, "CO\n"), vocabulary=VOCABULARY).notes == ()


def test_the_home_folder_is_known(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path, "C\n")
    assert len(load_text("~/lines.txt")) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no lines"),
        (b"\n \r\n", "holds no lines"),
        (b"C\nO\nC\xffO\n", "line 3 is not UTF-8 (invalid start byte)"),
        (b"C\t1\nO\n", "line 2 has no second column, the lines before it have one"),
        (b"C\n\nO\t1\n", "line 3 has a second column, the lines before it have none"),
        (b"C\t1\n\t2\n", "line 2 has no sequence before its tab"),
        (b"C\t1\n \t2\n", "line 2 has no sequence before its tab"),
        (b"smiles\tmass\nC\t1\n", "line 1: 'mass' after the tab is no number; a line of headings must be left out"),
        (b"C\t1\t2\n", "line 1 has 3 columns, at most 2 are read: a sequence and a number"),
        (b"C\t\n", "line 1: '' after the tab is no number"),
        (b"C\tnan\n", "line 1: the number after the tab must be finite in float32, got nan"),
        (b"C\tinf\n", "must be finite in float32, got inf"),
        (b"C\t1e39\n", "must be finite in float32, got 1e39"),
    ],
)
def test_files_are_refused_by_their_line(tmp_path, content, message):
    path = write(tmp_path, content)
    with pytest.raises(DataError) as error:
        load_text(path)
    assert str(error.value).startswith(f"text:{path}: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_files_that_are_none(tmp_path):
    with pytest.raises(DataError, match="there is no file"):
        load_text(str(tmp_path / "absent.txt"))
    os.mkfifo(tmp_path / "pipe")  # reading one would wait for ever
    for path in (tmp_path, tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(DataError, match=f"{path} is not a regular file"):
            load_text(str(path))
    with pytest.raises(DataError, match=r"x: cannot be read \(File name too long\)"):
        load_text("x" * 300)


def test_a_file_that_cannot_be_read(tmp_path, monkeypatch):
    path = write(tmp_path, "C\n")

    def denied(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(DataError, match=r"lines\.txt: cannot be read \(Permission denied\)"):
        load_text(path)


def test_lengths_that_leave_nothing(tmp_path):
    path = write(tmp_path, "CCC\nCCO\n")
    with pytest.raises(DataError, match=r"all 2 lines are longer than max_length = 3, the end token counted"):
        load_text(path, max_length=3)
    assert len(load_text(path, max_length=4)) == 2
    with pytest.raises(DataError, match="max_length must be at least 2, a token and the end, got 1"):
        load_text(path, max_length=1)


@pytest.mark.parametrize(
    ("limit", "value", "message"),
    [
        ("LARGEST_FILE", 10, "has 11 bytes, at most 10 are read"),
        ("LARGEST_LINE", 3, "line 3 has 4 characters, at most 3 are read"),
        ("LARGEST_COUNT", 2, "line 3: there may be at most 2 lines"),
        ("LARGEST_TABLE", 14, "line 3: 3 rows as long as the longest, 5 tokens, are more than 14 ids"),
        ("LARGEST_VOCABULARY", 2, "line 3: there are more than 2 different tokens"),
    ],
)
def test_sizes_are_bounded(tmp_path, monkeypatch, limit, value, message):
    path = write(tmp_path, "CC\nCO\nCNOO\n")
    monkeypatch.setattr(text, limit, value + 1)
    assert len(load_text(path)) == 3
    monkeypatch.setattr(text, limit, value)
    with pytest.raises(DataError) as error:
        load_text(path)
    assert message in str(error.value)


# parts


def parts_of(train: str, test: str | None = None, max_length: int = 512):
    test = None if test is None else f"text:{test}"
    shares = {"validation_fraction": 0.2, "test_fraction": 0.2, "seed": 0}
    return load_text_splits(f"text:{train}", test=test, max_length=max_length, **shares)


def test_lines_that_say_the_same_are_kept_once_with_the_first_ones_number(tmp_path):
    lines = ["C" * n for n in range(1, 11)]
    path = write(tmp_path, "".join(f"{line}\t{n}\n" for n, line in enumerate([*lines, *lines, "C "])))
    splits = parts_of(path)
    parts = (splits.train, splits.validation, splits.test)
    assert [len(part) for part in parts] == [6, 2, 2]
    numbers = {
        line: n
        for part in parts
        for line, n in zip(part.vocabulary.decode(part.tokens), part.targets.tolist(), strict=True)
    }
    assert numbers == {line: float(n) for n, line in enumerate(lines)}
    for part in parts:
        assert "11 repeated lines left out" in part.notes
    assert "repeated" not in str(parts_of(write(tmp_path, "\n".join(lines))).train.notes)


def test_a_line_beyond_the_length_does_not_stretch_the_others(tmp_path):
    path = write(tmp_path, "".join("C" * n + "\n" for n in range(1, 61)) + "C" * 20_000)
    splits = parts_of(path)
    assert splits.train.shape == splits.test.shape == (61,)
    assert "1 of the file's lines dropped, longer than 512 tokens with the end" in splits.train.notes
    assert parts_of(path, max_length=20_001).train.shape == (20_001,)


@pytest.mark.parametrize("swapped", [False, True])
def test_numbers_in_one_of_two_files_are_not_dropped(tmp_path, swapped):
    lines = ["C" * n for n in range(1, 11)]
    bare = write(tmp_path, "\n".join(lines), "bare.txt")
    numbered = write(tmp_path, "".join(f"{line}\t1\n" for line in lines), "numbered.txt")
    train, test = (bare, numbered) if swapped else (numbered, bare)
    with pytest.raises(DataError) as error:
        parts_of(train, test)
    assert str(error.value) == f"text:{numbered} has numbers to regress on, text:{bare} has none"
    assert parts_of(numbered, numbered).test.targets is not None
    assert parts_of(bare, bare).test.targets is None


def test_content_ends_with_the_first_end():
    def slow(row: list[int]) -> list[bool]:
        ended, said = False, []
        for token in row:
            said.append(not ended and token != 0)
            ended |= token == 2
        return said

    rows = torch.randint(0, 5, (200, 6), generator=torch.Generator().manual_seed(0))
    assert content(rows).tolist() == [slow(row) for row in rows.tolist()]
    assert len(content(rows).sum(1).unique()) > 3  # of many lengths
