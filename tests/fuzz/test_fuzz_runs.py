"""Files of runs damaged at random: they load with the values that were saved, or are refused in one line.

Weights, states and caches have checksums, so that other values never come of them; torch's own files of others have
none, and what comes of them must still be tensors that are where they say.
"""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import attempt, damaged, edits, fuzz
from fake_suite import fake_suite
from hypothesis import strategies as st
from safetensors.torch import save

import ebmhybrid as eh
from ebmhybrid.errors import CheckpointError
from ebmhybrid.evaluate import cache
from ebmhybrid.evaluate.compare_runs import compare_results
from ebmhybrid.evaluate.files import dumps
from ebmhybrid.evaluate.predictions import Predictions
from ebmhybrid.evaluate.robust_journal import Cell, Journal
from ebmhybrid.external import read_state_dict
from ebmhybrid.models import architecture_of
from ebmhybrid.models.released import import_released
from ebmhybrid.tensor_files import check_dense
from ebmhybrid.training.checkpoint import FORMAT, load_model, load_state, save_state, save_weights
from ebmhybrid.training.log import _row

pytestmark = pytest.mark.filterwarnings("ignore")  # torch warns of what it then refuses


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    path: Path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    torch.manual_seed(0)
    facts = {"num_classes": 3, "in_channels": 1, "image_size": 8}
    metadata = {
        "architecture": architecture_of("wide_resnet", facts, {"depth": 10, "width": 1}),
        "classes": ["a", "b", "c"],
        "image_shape": [1, 8, 8],
        "normalisation": {"mean": 0.5, "std": 0.5},
        "recipe": "seed: 1\n",
    }
    save_weights(path, eh.WideResNet(depth=10, width=1, num_classes=3, in_channels=1), metadata)
    return path


HEAD = 6000  # bytes of weights that are names and numbers; what follows is values, of which few are tried


@pytest.mark.parametrize("part", ["head", "all"])
@fuzz(20, 150, changes=edits)
def test_weights(tmp_path, weights, part, changes) -> None:
    content, right, path = weights.read_bytes(), load_model(weights), tmp_path / "w.safetensors"
    at = HEAD if part == "head" else len(content)
    path.write_bytes(damaged(content[:at], changes) + content[at:])
    found = attempt(lambda: load_model(path), CheckpointError)
    if found is not None:
        equal = [torch.equal(found.state_dict()[name], value) for name, value in right.state_dict().items()]
        assert all(equal)
        assert found.metadata == right.metadata


STATE = {
    "format": FORMAT,
    "parts": {"bank": torch.arange(600.0), "step": 7, "random": (3, (1, 2**31), None), "flags": torch.tensor([True])},
}


@fuzz(60, 300, changes=edits)
def test_states(tmp_path, changes) -> None:
    path = tmp_path / "s.pt"
    save_state(path, STATE)  # most bytes are of the bank
    path.write_bytes(damaged(path.read_bytes(), changes))
    found = attempt(lambda: load_state(path), CheckpointError)
    if found is not None:
        parts = found["parts"]
        assert torch.equal(parts.pop("bank"), STATE["parts"]["bank"])
        assert torch.equal(parts.pop("flags"), STATE["parts"]["flags"])
        assert parts == {"step": 7, "random": (3, (1, 2**31), None)}


def saved(content: object, zipped: bool) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


TENSORS = {"module.a": torch.arange(4.0), "module.b": torch.ones(2, 3).t(), "step": 3}
FILES = {
    "zip.pt": saved(TENSORS, zipped=True),
    "legacy.pt": saved(TENSORS, zipped=False),
    "x.safetensors": save({"a": torch.arange(4.0), "b": torch.ones(3)}),
}


@fuzz(80, 400, changes=edits, name=st.sampled_from(sorted(FILES)))
def test_weights_of_others(tmp_path, changes, name) -> None:
    path = tmp_path / name
    path.write_bytes(damaged(FILES[name], changes))
    found = attempt(lambda: read_state_dict(path), CheckpointError)
    for tensor in (found or {}).values():
        check_dense(tensor)
    if path.suffix == ".pt":
        assert attempt(lambda: import_released(path), CheckpointError) is None


PREDICTIONS = Predictions(
    np.arange(6.0).reshape(3, 2), np.array([0, 1, 0]), "x", ("note",), "digest", (1, 2, 2), np.ones((3, 4))
)


@fuzz(40, 200, changes=edits)
def test_kept_predictions(tmp_path, changes) -> None:
    path = tmp_path / "c.npz"
    cache._write(path, PREDICTIONS)
    path.write_bytes(damaged(path.read_bytes(), changes))
    found = cache._read(path, "x", "digest", features=True)
    if found is not None:
        for name in ("logits", "labels", "features"):
            assert np.array_equal(getattr(found, name), getattr(PREDICTIONS, name))
        assert (found.notes, found.image_shape) == (("note",), (1, 2, 2))


@pytest.fixture(scope="module")
def results() -> bytes:
    return dumps(fake_suite().as_dict()).encode()


@fuzz(20, 150, changes=edits)
def test_results(tmp_path, results, changes) -> None:
    (tmp_path / "good.json").write_bytes(results)
    (tmp_path / "bad.json").write_bytes(damaged(results, changes))
    found = attempt(lambda: compare_results([tmp_path / "good.json", tmp_path / "bad.json"]))
    if found is not None:
        assert found.rows


ROW = json.dumps({"split": "train", "step": 4, "epoch": 1, "loss": 0.5})


@fuzz(60, 300, changes=edits)
def test_rows_of_metrics(changes) -> None:
    row = _row(damaged(ROW.encode(), changes).decode("utf-8", "replace"))
    assert row is None or isinstance(row["step"], int)


@fuzz(40, 200, changes=edits)
def test_journals(tmp_path, changes) -> None:
    path = tmp_path / "j.jsonl"
    path.unlink(missing_ok=True)
    cell = Cell("101", 0.1, 0, 0, 1.0, ("note",))
    Journal(path, {"seed": 1}).add(0, "pgd", 0.1, "images", cell)
    path.write_bytes(damaged(path.read_bytes(), changes))
    found = attempt(lambda: Journal(path, {"seed": 1}).get(0, "pgd", 0.1, "images"))
    assert found in (None, cell)
