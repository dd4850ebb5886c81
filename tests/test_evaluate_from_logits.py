"""Logits from a file: what is read is what was written, and each array that does not fit is named."""

from __future__ import annotations

import traceback
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ebmhybrid.errors import EbmhybridError
from ebmhybrid.evaluate.accuracy import accuracy_of
from ebmhybrid.evaluate.calibration import calibration_of
from ebmhybrid.evaluate.from_logits import LogitSets, predictions_of, read_logits, sets_of
from ebmhybrid.evaluate.ood import compare
from ebmhybrid.evaluate.scores import energy


def arrays(n: int = 12, classes: int = 4, width: int = 5, seed: int = 0) -> dict[str, np.ndarray]:
    """Every array there can be; logits are what the head makes of the features."""
    rng = np.random.default_rng(seed)
    weight, bias = rng.normal(size=(classes, width)), rng.normal(size=classes)
    made: dict[str, np.ndarray] = {"head_weight": weight, "head_bias": bias}
    for role, count in (("test", n), ("validation", n + 1), ("train", n + 2), ("ood_svhn", n + 3), ("ood_a_b", 1)):
        made[f"{role}_features"] = rng.normal(size=(count, width))
        made[f"{role}_logits"] = made[f"{role}_features"] @ weight.T + bias
        if not role.startswith("ood"):
            made[f"{role}_labels"] = rng.integers(0, classes, count)
    return made


def saved(folder: Path, content: dict[str, np.ndarray]) -> Path:
    path = folder / "logits.npz"
    np.savez(path, **content)
    return path


def test_every_array_comes_back_in_its_place(tmp_path) -> None:
    made = arrays()
    sets = read_logits(saved(tmp_path, made))
    for role, found in (("test", sets.test), ("validation", sets.validation), ("train", sets.train)):
        assert found is not None
        assert found.name == role
        np.testing.assert_array_equal(found.logits, made[f"{role}_logits"])
        np.testing.assert_array_equal(found.labels, made[f"{role}_labels"])
        np.testing.assert_array_equal(found.features, made[f"{role}_features"])
    assert list(sets.ood) == ["svhn", "a_b"]
    assert [(ood.name, len(ood), set(ood.labels)) for ood in sets.ood.values()] == [
        ("svhn", 15, {-1}),
        ("a_b", 1, {-1}),
    ]
    assert sets.head is not None
    np.testing.assert_allclose(sets.head(sets.ood["svhn"].features), made["ood_svhn_logits"], rtol=1e-12)


def test_logits_and_labels_alone_will_do(tmp_path) -> None:
    made = arrays()
    short = {"logits": made["test_logits"].astype(np.float32), "labels": made["test_labels"].astype(np.uint8)}
    sets = read_logits(saved(tmp_path, short))
    assert sets == LogitSets(sets.test)
    assert (sets.test.logits.dtype, sets.test.labels.dtype) == (np.float64, np.int64)
    assert accuracy_of(sets.test).rows[0]["accuracy"] == np.mean(short["logits"].argmax(axis=1) == short["labels"])


def test_the_figures_are_those_of_the_arrays(tmp_path) -> None:
    made = arrays(200)
    sets = read_logits(saved(tmp_path, made))
    assert sets.validation is not None
    right = made["test_logits"].argmax(axis=1) == made["test_labels"]
    assert accuracy_of(sets.test).rows[0]["accuracy"] == right.mean()
    assert calibration_of(sets.test, sets.validation).rows
    found = compare("test", {"energy": energy(sets.test.logits)}, {"svhn": {"energy": energy(sets.ood["svhn"].logits)}})
    a, b = (np.log(np.exp(made[f"{role}_logits"]).sum(axis=1)) for role in ("test", "ood_svhn"))
    assert found.rows[0]["auroc"] == pytest.approx(np.mean(a[:, None] > b[None, :]), abs=1e-12)


def test_the_digest_is_of_the_content_alone() -> None:
    made = arrays()
    one = predictions_of(made["test_logits"], made["test_labels"], "a").digest
    assert (
        one == predictions_of(np.asfortranarray(made["test_logits"]), made["test_labels"].astype(np.int16), "b").digest
    )
    changed = made["test_logits"].copy()
    changed[3, 1] += 1e-12
    others = [
        predictions_of(changed, made["test_labels"]),
        predictions_of(made["test_logits"], 3 - made["test_labels"]),
        predictions_of(made["test_logits"], made["test_labels"], features=made["test_features"]),
        predictions_of(made["test_logits"].reshape(24, 2), None),
    ]
    assert len({one, *(other.digest for other in others)}) == 5
    zeros, labels = np.zeros((2, 2)), np.zeros(2, int)
    wide = predictions_of(np.zeros((2, 4)), labels, features=zeros).digest
    assert wide != predictions_of(zeros, labels, features=np.zeros((2, 4))).digest


def test_half_precision_is_raised_and_noted() -> None:
    made = arrays()
    half = predictions_of(made["test_logits"].astype(np.float16), made["test_labels"])
    assert half.logits.dtype == np.float64
    assert half.notes == ("logits came in half precision",)
    assert predictions_of(made["test_logits"].astype(np.float32), made["test_labels"]).notes == ()


def test_log_probabilities_are_noted() -> None:
    logits = arrays()["test_logits"]
    logs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    assert predictions_of(logs).notes == ("log-probabilities: the energy score is 0 for every image",)
    assert predictions_of(logs + 1e-2).notes == ()


def test_large_offsets_stay_exact() -> None:
    logits = arrays()["test_logits"] + 1e4
    np.testing.assert_array_equal(predictions_of(logits).logits, logits)


def test_one_class_is_no_probability() -> None:
    assert len(predictions_of(np.ones((3, 1)), np.zeros(3, dtype=int))) == 3


def test_a_head_without_bias_and_features_in_half_precision_fit() -> None:
    made = arrays()
    del made["head_bias"]
    made["test_features"] = made["test_features"].astype(np.float16)
    made["test_logits"] = made["test_features"].astype(np.float64) @ made["head_weight"].T
    head = sets_of(made).head
    assert head is not None
    assert head.bias.tolist() == [0.0] * 4
    made["test_logits"] = made["test_logits"].astype(np.float16)
    sets_of(made)


def test_validation_needs_no_features() -> None:
    made = arrays()
    del made["validation_features"]
    assert sets_of(made).validation is not None


def changed(**changes: Any) -> dict[str, np.ndarray]:
    """The arrays with some replaced, or removed where the change is None, or made from the old one by a function."""
    made = arrays()
    for name, change in changes.items():
        made[name] = change(made.get(name)) if callable(change) else change
    return {name: array for name, array in made.items() if array is not None}


def at(row: int, column: int, value: float) -> Any:
    def put(array: np.ndarray) -> np.ndarray:
        array[row, column] = value
        return array

    return put


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no test logits": ({"test_logits": None}, "'test_logits' is missing; there are: head_weight"),
    "no test labels": ({"test_labels": None}, "'test_labels' is missing"),
    "a slip": ({"validation_logit": np.zeros(3)}, "unknown array 'validation_logit': did you mean 'validation_logits'"),
    "another name": ({"x": np.zeros(3)}, "unknown array 'x': valid: .*ood_NAME_logits"),
    "OOD labels": ({"ood_svhn_labels": np.zeros(15, int)}, "unknown array 'ood_svhn_labels'"),
    "an OOD set without a name": ({"ood__logits": np.zeros((2, 4))}, "unknown array 'ood__logits'"),
    "twice": ({"logits": np.zeros((2, 4))}, "arrays 'logits' and 'test_logits' are the same thing"),
    "above 1e100": (
        {"test_logits": at(2, 1, -1.1e100)},
        "test logits must be at most 1e.100 in .*got -1.1e.100 in row 2",
    ),
    "beyond float64": (
        {"test_logits": lambda x: at(2, 1, np.longdouble("1e4000"))(x.astype(np.longdouble))},
        "test logits must be at most 1e.100 in magnitude, got 1e.4000 in row 2, column 1",
    ),
    "inf beyond float64": (
        {"test_logits": lambda x: at(2, 1, np.longdouble("inf"))(x.astype(np.longdouble))},
        "test logits must be finite, got inf in row 2, column 1",
    ),
    "huge features": ({"train_features": at(0, 4, 1e101)}, "train features must be at most 1e.100"),
    "huge head": ({"head_weight": at(0, 4, 1e101)}, "head_weight must be at most 1e.100"),
    "huge bias": ({"head_bias": np.full(4, 1e101)}, r"head_bias must be \(4,\) finite numbers of at most 1e.100"),
    "validation without labels": ({"validation_labels": None}, "'validation_labels' is missing"),
    "train without labels": ({"train_labels": None}, "'train_labels' is missing"),
    "labels alone": ({"train_logits": None}, "'train_logits' is missing: train_features alone"),
    "features alone": ({"ood_svhn_logits": None}, "'ood_svhn_logits' is missing: ood_svhn_features alone"),
    "NaN": ({"test_logits": at(3, 2, np.nan)}, "test logits must be finite, got nan in row 3, column 2"),
    "inf": ({"ood_svhn_logits": at(14, 0, -np.inf)}, "svhn logits must be finite, got -inf in row 14, column 0"),
    "NaN features": ({"train_features": at(0, 4, np.nan)}, "train features must be finite, got nan in row 0, column 4"),
    "integers": ({"test_logits": lambda x: x.astype(int)}, r"test logits must be floating .*got int64 \(12, 4\)"),
    "complex": ({"test_logits": lambda x: x.astype(complex)}, "got complex128"),
    "text": ({"test_logits": lambda x: x.astype(str)}, "got <U"),
    "a vector": ({"test_logits": lambda x: x[:, 0]}, r"got float64 \(12,\)"),
    "no image": ({"ood_svhn_logits": np.zeros((0, 4))}, r"not empty, got float64 \(0, 4\)"),
    "no class": ({"test_logits": np.zeros((12, 0))}, "not empty"),
    "labels of floats": ({"test_labels": lambda y: y.astype(float)}, r"test labels must be integers .*got float64"),
    "labels of bools": ({"test_labels": lambda y: y > 0}, "got bool"),
    "too few labels": ({"test_labels": lambda y: y[:-1]}, r"integers of shape \(12,\), got int64 \(11,\)"),
    "one-hot labels": ({"test_labels": lambda y: np.eye(4, dtype=int)[y]}, r"got int64 \(12, 4\)"),
    "label 4 of 4": ({"test_labels": lambda y: np.full_like(y, 4)}, r"'test': labels must lie in \[0, 4\), got 4"),
    "label -1": ({"train_labels": lambda y: y - 4}, r"'train': labels must lie in \[0, 4\)"),
    "huge label": ({"test_labels": np.full(12, 2**64 - 1, np.uint64)}, "got 18446744073709551615"),
    "other classes": ({"ood_svhn_logits": lambda x: x[:, :3]}, "ood_svhn_logits are of 3 classes, test_logits of 4"),
    "other width": ({"train_features": lambda x: x[:, :3]}, "train_features are 3 wide, test_features 5"),
    "other count": ({"train_features": lambda x: x[1:]}, "train features are of 13 images, its logits of 14"),
    "features of some": ({"ood_svhn_features": None}, "'ood_svhn_features' is missing: features are for all sets"),
    "no test features": ({"test_features": None}, "'test_features' is missing: features are for all sets"),
    "bias alone": ({"head_weight": None}, "'head_weight' is missing"),
    "bias of another length": ({"head_bias": np.zeros(5)}, r"head_bias must be \(4,\) finite numbers"),
    "bias of NaN": ({"head_bias": np.full(4, np.nan)}, "head_bias must be"),
    "transposed head": ({"head_weight": np.zeros((5, 4)), "head_bias": None}, r"\(C, D\) = \(4, 5\), got \(5, 4\)"),
    "another layer's features": ({"test_features": lambda x: x + 1}, "are not test_logits .*last linear layer"),
    "another bias": ({"head_bias": lambda b: b + 1}, "are not test_logits"),
}


@pytest.mark.parametrize("case", WRONG)
def test_an_array_that_does_not_fit_is_named(case: str, tmp_path) -> None:
    changes, message = WRONG[case]
    path = saved(tmp_path, changed(**changes))
    with pytest.raises(EbmhybridError, match=message) as caught:
        read_logits(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_head_without_features_is_refused() -> None:
    made = {name: array for name, array in arrays().items() if not name.endswith("features")}
    with pytest.raises(EbmhybridError, match="test_features is missing"):
        sets_of(made)


def test_probabilities_are_no_logits() -> None:
    logits = arrays()["test_logits"]
    exponentials = np.exp(logits)
    probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
    with pytest.raises(EbmhybridError, match="test logits are probabilities"):
        predictions_of(probabilities.astype(np.float16))
    predictions_of(2 * probabilities)
    predictions_of(probabilities - 1 / 4)  # sums to 0


def test_a_value_of_1e100_still_passes_and_gives_finite_figures() -> None:
    logits = np.array([[1e100, -1e100], [0.0, 1.0]])
    found = predictions_of(logits, [1, 1])
    np.testing.assert_array_equal(found.logits, logits)
    assert np.isfinite(energy(found.logits)).all()
    assert np.isfinite(found.probabilities).all()


@pytest.mark.parametrize("order", [("logits", "test_logits"), ("test_logits", "logits")])
def test_the_same_array_twice_is_named_by_both_names(order: tuple[str, str]) -> None:
    with pytest.raises(EbmhybridError, match=r"^arrays 'logits' and 'test_logits' are the same thing"):
        sets_of({name: np.eye(2) + 1 for name in order} | {"labels": np.array([0, 1])})


def test_lists_and_tensors_are_arrays_too() -> None:
    made = arrays()
    logits, labels, features = (made[f"test_{part}"] for part in ("logits", "labels", "features"))
    expected = predictions_of(logits, labels, features=features)
    tensor = torch.from_numpy(logits).requires_grad_()
    for found in (
        predictions_of(logits.tolist(), labels.tolist(), features=features.tolist()),
        predictions_of(tensor, torch.from_numpy(labels), features=torch.from_numpy(features)),
        sets_of({"logits": tensor, "labels": labels.tolist(), "features": features.tolist()}).test,
        sets_of(
            {"logits": logits, "labels": labels, "features": features}
            | {"head_weight": made["head_weight"].tolist(), "head_bias": torch.from_numpy(made["head_bias"])}
        ).test,
    ):
        assert found.digest == expected.digest
        np.testing.assert_array_equal(found.logits, expected.logits)
        np.testing.assert_array_equal(found.labels, expected.labels)
        np.testing.assert_array_equal(found.features, features)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_tensors_in_half_precision_are_noted(dtype: torch.dtype) -> None:
    logits = torch.from_numpy(arrays()["test_logits"]).to(dtype)
    found = predictions_of(logits)
    np.testing.assert_array_equal(found.logits, logits.double().numpy())
    assert found.notes == ("logits came in half precision",)
    assert predictions_of(logits.float()).notes == ()


class Broken:
    def __array__(self, *args: Any, **options: Any) -> np.ndarray:
        raise RuntimeError("cannot")


@pytest.mark.parametrize(
    ("logits", "message"),
    [
        ([[1.0, 2.0], [1.0]], "test logits must be an array, got list that is none"),
        (Broken(), "test logits must be an array, got Broken that is none"),
        (torch.eye(2).to_sparse(), "test logits must be an array, got Tensor that is none"),
        (None, r"test logits must be floating point .* got object \(\)"),
        ("text", r"test logits must be floating point .* got <U4 \(\)"),
        ([], r"not empty, got float64 \(0,\)"),
        ([[1, 2]], "test logits must be floating point .* got int64"),
    ],
)
def test_what_is_no_array_is_named(logits: Any, message: str) -> None:
    with pytest.raises(EbmhybridError, match=message):
        predictions_of(logits)


@pytest.mark.parametrize("labels", [[[0], [1, 2]], Broken()])
def test_labels_that_are_no_array_are_named(labels: Any) -> None:
    with pytest.raises(EbmhybridError, match="test labels must be an array, got"):
        predictions_of([[1.0, 2.0]], labels)


@pytest.mark.parametrize("member", ["logits", "test_logits", "notes.txt", "a/b"])
def test_a_member_that_is_no_array_is_named(member: str, tmp_path) -> None:
    path = saved(tmp_path, {})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(member, b"text")
    with pytest.raises(
        EbmhybridError, match=rf"logits\.npz: '{member}' is no array: it must be a zip archive of arrays"
    ):
        read_logits(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_member_that_is_there_twice_is_named(tmp_path) -> None:
    path = saved(tmp_path, {"logits": np.eye(2) + 1, "labels": np.zeros(2, int)})
    with zipfile.ZipFile(path) as archive:
        content = archive.read("logits.npy")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("logits.npy", content)
    with pytest.raises(EbmhybridError, match="array 'logits' is there twice"):
        read_logits(path)


def test_a_damaged_member_is_named(tmp_path) -> None:
    path = saved(tmp_path, arrays())
    raw = bytearray(path.read_bytes())
    raw[raw.index(b"test_logits.npy") + 200] ^= 1
    path.write_bytes(raw)
    with pytest.raises(EbmhybridError, match=r"logits\.npz: array 'test_logits' cannot be read, it is damaged"):
        read_logits(path)


def test_numpys_advice_is_never_passed_on(tmp_path) -> None:
    """An array, a text, an array that ends in a zip archive, objects: numpy says how to unpickle these."""
    np.save(tmp_path / "a.npy", np.zeros((2, 2)))
    (tmp_path / "b.txt").write_text("1 2\n3 4\n")
    archive = saved(tmp_path, {"x": np.zeros(2)}).read_bytes()
    (tmp_path / "c.npz").write_bytes((tmp_path / "a.npy").read_bytes() + archive)
    (tmp_path / "d.npz").write_bytes(b"PK\x03\x04" + bytes(100))
    np.savez(tmp_path / "e.npz", logits=np.array([[{}]], dtype=object))
    for name in ("a.npy", "b.txt", "c.npz", "d.npz", "e.npz"):
        with pytest.raises(EbmhybridError) as caught:
            read_logits(tmp_path / name)
        shown = "".join(traceback.format_exception(caught.value))
        assert "allow_pickle=" not in shown.split("EbmhybridError")[-1]
        assert "allow_pickle=True" not in shown
        assert "unpickle" not in str(caught.value)
    for name in ("a.npy", "b.txt", "d.npz"):
        with pytest.raises(EbmhybridError, match=r"must be a zip archive of arrays, as numpy\.savez\(path"):
            read_logits(tmp_path / name)


def test_an_empty_archive_has_no_arrays(tmp_path) -> None:
    with pytest.raises(EbmhybridError, match="'test_logits' is missing; there are: none"):
        read_logits(saved(tmp_path, {}))


def test_a_file_that_may_not_be_read_is_named(tmp_path, monkeypatch) -> None:
    path = saved(tmp_path, arrays())

    def denied(*args: Any, **options: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(EbmhybridError, match=r"logits\.npz: cannot be read: Permission denied"):
        read_logits(path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04" + bytes(40), b"no zip"])
def test_a_damaged_file_is_named(content: bytes, tmp_path) -> None:
    path = tmp_path / "x.npz"
    path.write_bytes(content)
    with pytest.raises(EbmhybridError, match=r"x\.npz: cannot be read as \.npz"):
        read_logits(path)


def test_other_files_are_named(tmp_path) -> None:
    with pytest.raises(EbmhybridError, match=r"none\.npz: there is no such file"):
        read_logits(tmp_path / "none.npz")
    with pytest.raises(EbmhybridError, match="there is no such file"):
        read_logits(tmp_path)
    np.save(tmp_path / "array.npy", np.zeros((2, 2)))
    with pytest.raises(EbmhybridError, match=r"array\.npy: cannot be read as \.npz"):
        read_logits(tmp_path / "array.npy")
    whole = saved(tmp_path, arrays())
    whole.write_bytes(whole.read_bytes()[:-100])
    with pytest.raises(EbmhybridError, match="cannot be read as"):
        read_logits(whole)


def test_nothing_in_a_file_is_run(tmp_path) -> None:
    class Planted:
        def __reduce__(self) -> Any:
            return (tmp_path.joinpath("ran").write_text, ("x",))

    np.savez(tmp_path / "x.npz", logits=np.array([[Planted()]], dtype=object), labels=np.zeros(1, int))
    with pytest.raises(EbmhybridError, match="array 'logits' cannot be read, it is damaged or holds Python objects"):
        read_logits(tmp_path / "x.npz")
    assert not (tmp_path / "ran").exists()
