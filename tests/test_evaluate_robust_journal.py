"""An evaluation that is killed anywhere goes on where it was, and ends with the figures of one that was not."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from naive_attacks import LinearClasses, distances, grey, labelled
from torch import nn

from ebmhybrid.errors import EbmhybridError
from ebmhybrid.evaluate import evaluate_robustness, robust_cells
from ebmhybrid.evaluate.robust_journal import Cell, Journal, _checksum, weights_digest

MODEL = LinearClasses(3)
IMAGES = grey(20)
SET = labelled(MODEL, IMAGES)
RADIUS = float(distances(MODEL, IMAGES, "linf").mean())


def _run(journal: Path | None, model: Any = MODEL, data: Any = SET, **options: Any) -> Any:
    asked: dict[str, Any] = {"attacks": ["fgsm", "pgd"], "eps": [RADIUS, 1.5 * RADIUS], "steps": 2, "batch_size": 8}
    return evaluate_robustness(model, data, journal=journal, **(asked | options))


def _rewritten(journal: Path, number: int, **changes: Any) -> None:
    """Change fields of a line (counted from 1) and make its checksum anew, as someone who means to deceive would."""
    lines = journal.read_text().splitlines()
    entry = json.loads(lines[number - 1]) | changes
    del entry["checksum"]
    lines[number - 1] = json.dumps(entry | {"checksum": _checksum(entry)})
    journal.write_text("\n".join(lines) + "\n")


def _figures(result: Any) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in result.rows]


class _Killed(BaseException):
    pass


def _attacks_until(monkeypatch: pytest.MonkeyPatch, stop: float) -> list[str]:
    """Attacks raise from the stop-th call on; the list grows by each attack made."""
    made: list[str] = []
    original = robust_cells.attack_batch

    def attack(target: Any, images: Any, labels: Any, row: Any, *rest: Any) -> Any:
        if len(made) >= stop:
            raise _Killed
        made.append(row["attack"])
        return original(target, images, labels, row, *rest)

    monkeypatch.setattr(robust_cells, "attack_batch", attack)
    return made


@pytest.mark.parametrize("stop", [0, 1, 5, 11])
def test_a_killed_evaluation_goes_on_and_ends_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    whole = _run(None)
    journal = tmp_path / "new" / "attacks.jsonl"
    with monkeypatch.context() as patch:
        _attacks_until(patch, stop)
        with pytest.raises(_Killed):
            _run(journal)
    assert len(journal.read_text().splitlines()) == 1 + stop
    with monkeypatch.context() as patch:
        made = _attacks_until(patch, math.inf)
        resumed = _run(journal)
        assert len(made) == 3 * 4 - stop
        made.clear()
        again = _run(journal)
        assert made == []
    assert _figures(whole) == _figures(resumed) == _figures(again)
    assert all((whole.survivors[key] == resumed.survivors[key]).all() for key in whole.survivors)
    assert resumed.rows == again.rows


def test_a_file_cut_off_anywhere_is_mended(tmp_path: Path) -> None:
    journal = tmp_path / "attacks.jsonl"
    whole = _figures(_run(journal))
    content = journal.read_bytes()
    first = content.index(b"\n") + 1
    for cut in (0, 1, first - 1, first, first + 1, len(content) // 2, len(content) - 1):
        journal.write_bytes(content[:cut])
        assert _figures(_run(journal)) == whole
        assert len(journal.read_bytes().splitlines()) == len(content.splitlines())
        assert all(json.loads(line) for line in journal.read_bytes().splitlines())


def test_seconds_add_up_over_runs(tmp_path: Path) -> None:
    journal = tmp_path / "attacks.jsonl"
    _run(journal)
    for number in range(2, 14):
        _rewritten(journal, number, seconds=100.0)
    journal.write_text("".join(journal.read_text().splitlines(keepends=True)[:-1]))
    seconds = [row["seconds"] for row in _run(journal).rows]
    assert seconds[:4] == [0, 300, 300, 300]
    assert 200 < seconds[4] < 300


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"eps": [0.1]}, "attacks"),
        ({"attacks": ["pgd"]}, "attacks"),
        ({"steps": 3}, "attacks"),
        ({"restarts": 2}, "attacks"),
        ({"norm": "l2"}, "attacks"),
        ({"batch_size": 4}, "batch_size"),
        ({"limit": 4}, "limit"),
        ({"eot": 2}, "eot"),
        ({"generator": torch.Generator().manual_seed(1)}, "seed"),
        ({"model": LinearClasses(3, scale=2)}, "weights"),
        ({"weights": "another"}, "weights"),
    ],
)
def test_a_journal_of_another_evaluation_is_refused(tmp_path: Path, options: dict[str, Any], key: str) -> None:
    journal = tmp_path / "attacks.jsonl"
    _run(journal)
    before = journal.read_bytes()
    with pytest.raises(EbmhybridError, match=f"is of another evaluation: {key} is .* there and .* here"):
        _run(journal, **options)
    assert journal.read_bytes() == before


def test_other_images_are_noticed(tmp_path: Path) -> None:
    journal = tmp_path / "attacks.jsonl"
    _run(journal)
    images, labels = SET[0][0].clone(), SET[0][1]
    images[15, 0, 0, 0] += 1e-4
    with pytest.raises(EbmhybridError, match="batch 1 was made of other images, labels or predictions than these"):
        _run(journal, data=[(images, labels)])


def test_functions_are_told_apart_by_what_the_caller_says(tmp_path: Path) -> None:
    journal = tmp_path / "attacks.jsonl"
    _run(journal, model=MODEL.forward, weights="a")
    assert _figures(_run(journal, model=MODEL.forward, weights="a")) == _figures(_run(None))
    with pytest.raises(EbmhybridError, match="weights is 'a' there and 'b' here"):
        _run(journal, model=MODEL.forward, weights="b")


@pytest.mark.parametrize("content", ["notes of mine", "notes\nof mine\n", '{"a": 1}\n', "[1]\n"])
def test_a_file_that_is_no_journal_is_left_alone(tmp_path: Path, content: str) -> None:
    journal = tmp_path / "notes.txt"
    journal.write_text(content)
    with pytest.raises(EbmhybridError, match="is not a journal of a robustness evaluation"):
        _run(journal)
    assert journal.read_text() == content


def test_a_journal_of_an_older_format_is_named(tmp_path: Path) -> None:
    journal = tmp_path / "attacks.jsonl"
    _run(journal)
    journal.write_text(journal.read_text().replace("journal 2", "journal 1", 1))
    with pytest.raises(EbmhybridError, match="format is 'ebmhybrid robustness journal 1' there"):
        _run(journal)


def test_a_header_without_its_end_is_no_journal(tmp_path: Path) -> None:
    journal = tmp_path / "attacks.jsonl"
    _run(journal)
    header = journal.read_text().splitlines()[0].replace(": ", ":")
    journal.write_text(header)
    with pytest.raises(EbmhybridError, match="is not a journal"):
        _run(journal)
    assert journal.read_text() == header


DAMAGE: dict[str, dict[str, Any]] = {
    "other signs": {"survivors": "1111111x"},
    "number": {"survivors": 5},
    "no survivors": {"survivors": None},
    "list": {"survivors": ["1", "0"]},
    "delta beyond the radius": {"max_delta": 99.0},
    "delta a little beyond the radius": {"max_delta": RADIUS + 1e-5},
    "delta of text": {"max_delta": "a"},
    "no delta": {"max_delta": None},
    "delta NaN": {"max_delta": math.nan},
    "delta below 0": {"max_delta": -1e-9},
    "no seconds": {"seconds": None},
    "seconds inf": {"seconds": math.inf},
    "seconds NaN": {"seconds": math.nan},
    "seconds too long for a float": {"seconds": 10**400},
    "seconds below 0": {"seconds": -1.0},
    "seconds True": {"seconds": True},
    "fell of text": {"recheck_fell": "x"},
    "fell of a float": {"rechecked": 1.0},
    "fell below 0": {"recheck_fell": -1},
    "more fell than were rechecked": {"survivors": "0" * 8, "rechecked": 0, "recheck_fell": 1},
    "more fell than did": {"survivors": "1" * 8, "rechecked": 1, "recheck_fell": 1},
    "more rechecked than there are": {"rechecked": 9},
    "notes of numbers": {"notes": [1, {}]},
    "notes of text": {"notes": "text"},
    "no notes": {"notes": None},
    "batch of text": {"batch": "0"},
    "batch below 0": {"batch": -1},
    "batch True": {"batch": True},
    "attack of a list": {"attack": ["fgsm"]},
    "no eps": {"eps": None},
    "eps inf": {"eps": math.inf},
    "images of a number": {"images": 3},
    "a field too many": {"source": "elsewhere"},
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_field_that_no_attack_makes_is_refused_though_the_checksum_fits(tmp_path: Path, case: str) -> None:
    journal = tmp_path / "attacks.jsonl"
    _run(journal)
    assert len(json.loads(journal.read_text().splitlines()[1])["survivors"]) == 8
    _rewritten(journal, 2, **DAMAGE[case])
    before = journal.read_bytes()
    with pytest.raises(EbmhybridError, match=r"attacks\.jsonl: line 2 is damaged; delete the file to attack anew$"):
        _run(journal)
    assert journal.read_bytes() == before


@pytest.mark.parametrize("number", [2, 13])
@pytest.mark.parametrize("count", [0, 1, 3, 7, 9])
def test_survivors_of_another_number_of_images_are_refused(tmp_path: Path, count: int, number: int) -> None:
    journal = tmp_path / "attacks.jsonl"
    _run(journal)
    right = len(json.loads(journal.read_text().splitlines()[number - 1])["survivors"])
    assert right == {2: 8, 13: 4}[number]
    _rewritten(journal, number, survivors="1" * count)
    message = rf"line {number} is damaged: it is of {count} images, and {right} of .*; delete the file to attack anew"
    with pytest.raises(EbmhybridError, match=message):
        _run(journal)


def test_a_line_rewritten_as_it_was_is_still_read(tmp_path: Path) -> None:
    journal = tmp_path / "attacks.jsonl"
    whole, before = _figures(_run(journal)), journal.read_bytes()
    for number in range(2, 14):
        _rewritten(journal, number)
    assert journal.read_bytes() == before
    _rewritten(journal, 2, seconds=7, max_delta=RADIUS)
    assert _figures(_run(journal)) == whole


@pytest.mark.parametrize("field", ["survivors", "max_delta", "seconds", "batch", "eps", "images", "checksum"])
def test_an_edited_value_is_noticed(tmp_path: Path, field: str) -> None:
    journal = tmp_path / "attacks.jsonl"
    _run(journal)
    lines = journal.read_text().splitlines()
    entry = json.loads(lines[4])
    old = entry[field]
    if isinstance(old, str):
        entry[field] = old[:-1] + ("1" if old[-1] == "0" else "0")
    else:
        entry[field] = old + 1 if field == "batch" else old * 0.99
    assert entry[field] != old
    lines[4] = json.dumps(entry)
    journal.write_text("\n".join(lines) + "\n")
    with pytest.raises(EbmhybridError, match="line 5 is damaged; delete the file"):
        _run(journal)


@pytest.mark.parametrize("cell", [Cell("101", 0.1, 3, 1, 2.5, ("a", "b\n\u2028")), Cell("0", 0, 0, 0, 0)])
def test_a_cell_comes_back_as_it_was_written_and_knows_its_line(tmp_path: Path, cell: Cell) -> None:
    path = tmp_path / "attacks.jsonl"
    Journal(path, {}).add(3, "pgd", 0.1, "digest", cell)
    found = Journal(path, {}).get(3, "pgd", 0.1, "digest")
    assert found == cell
    assert found is not None
    assert found.source == f"journal {path}: line 2"


def test_a_line_is_damaged_though_the_last_one_was_cut_off(tmp_path: Path) -> None:
    journal = tmp_path / "attacks.jsonl"
    _run(journal)
    content = journal.read_bytes().replace(b'"survivors"', b'"survivers"', 1)[:-3]
    journal.write_bytes(content)
    with pytest.raises(EbmhybridError, match="line 2 is damaged"):
        _run(journal)
    assert journal.read_bytes() == content


@pytest.mark.parametrize(
    "line", ["garbage", "[]", '{"batch": 0}', "", "\r", "null", "[" * 100_000, "9" * 5000, "\udc80"]
)
def test_a_damaged_line_is_named(tmp_path: Path, line: str) -> None:
    journal = tmp_path / "attacks.jsonl"
    _run(journal)
    lines = journal.read_text().splitlines()
    lines[2] = line
    journal.write_bytes(("\n".join(lines) + "\n").encode(errors="surrogateescape"))
    with pytest.raises(EbmhybridError, match="line 3 is damaged"):
        _run(journal)


def test_buffers_and_names_are_part_of_the_weights() -> None:
    net = nn.Sequential(nn.BatchNorm2d(1))
    before = weights_digest(net)
    assert before == weights_digest(net)
    net[0].running_mean += 1
    assert weights_digest(net) != before
    assert weights_digest(nn.Linear(2, 1, bias=False)) != weights_digest(nn.Bilinear(1, 2, 1, bias=False))
    assert weights_digest(lambda images: images) is None
