"""AutoAttack is the official composition, what it finds is what pyautoattack finds, and it leaves nothing behind."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from naive_attacks import LinearClasses, RowClasses, distances, grey, labelled
from torch import nn

from ebmhybrid.errors import UsageError
from ebmhybrid.evaluate import autoattack, evaluate_robustness
from ebmhybrid.evaluate.attacked_model import AttackedModel
from ebmhybrid.evaluate.attacks import seed_of

pyautoattack = pytest.importorskip("pyautoattack")

BOTH = pytest.mark.parametrize("norm", ["linf", "l2"])


def _shorten(attack: Any) -> Any:
    """The same attacks with few steps each."""
    attack.apgd.n_iter = attack.apgd_targeted.n_iter = attack.fab.n_iter = 6
    attack.square.n_queries = 20
    return attack


@pytest.fixture(autouse=True)
def tracing() -> Iterator[None]:
    """pyautoattack, called directly, ends all tracing, and with it the measuring of coverage."""
    before = sys.gettrace()
    yield
    sys.settrace(before)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    original = autoattack.standard
    monkeypatch.setattr(autoattack, "standard", lambda *args: _shorten(original(*args)))


@BOTH
def test_the_composition_is_the_official_one(norm: str) -> None:
    ours = autoattack.standard(nn.Flatten(), 10, norm, 0.1, 7, torch.device("cpu"))
    theirs = pyautoattack.AutoAttack(nn.Flatten(), norm={"linf": "Linf", "l2": "L2"}[norm], eps=0.1, seed=7)
    assert ours.attacks_to_run == ["apgd-ce", "apgd-t", "fab-t", "square"]
    for part in ("apgd", "apgd_targeted", "fab", "square"):
        mine, official = (
            {
                key: value
                for key, value in vars(getattr(attack, part)).items()
                if isinstance(value, int | float | str) and key != "device"
            }
            for attack in (ours, theirs)
        )
        assert mine == official
        assert mine["eps"] == 0.1
    assert [ours.apgd.n_iter, ours.apgd_targeted.n_iter, ours.fab.n_iter, ours.square.n_queries] == [
        100,
        100,
        100,
        5000,
    ]
    assert ours.apgd_targeted.n_target_classes == ours.fab.n_target_classes == 9


@BOTH
def test_it_finds_what_pyautoattack_called_directly_finds(short: None, norm: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(25, 12), nn.Tanh(), nn.Linear(12, 10)).eval()
    images, eps = grey(16), 0.11 if norm == "linf" else 0.48
    [(_, labels)] = data = labelled(net, images)
    found = evaluate_robustness(net, data, ["aa"], norm, eps)
    direct = pyautoattack.AutoAttack(net, norm={"linf": "Linf", "l2": "L2"}[norm], eps=eps, seed=seed_of(0, 0, 0))
    with torch.random.fork_rng(devices=[]):
        _, predicted = _shorten(direct).run_standard_evaluation(images, labels, batch_size=16)
    np.testing.assert_array_equal(found.survivors["aa", eps], (predicted == labels).numpy())
    assert 0 < found.rows[1]["robust_accuracy"] < 1
    assert (found.rows[1]["steps"], found.rows[1]["restarts"]) == (100, 1)


@BOTH
def test_the_unshortened_attack_crosses_the_boundary_as_soon_as_it_can(norm: str) -> None:
    model, images = RowClasses(4), grey(6, side=4)
    eps = float(distances(model, images, norm).max()) * 1.02
    found = evaluate_robustness(model, labelled(model, images), ["aa"], norm, eps)
    assert not found.survivors["aa", eps].any()
    assert found.rows[1]["max_delta"] <= eps + 1e-6


@BOTH
@pytest.mark.parametrize("classes", range(2, 11))
def test_any_number_of_classes(short: None, norm: str, classes: int) -> None:
    model, images = LinearClasses(classes), grey(5)
    known = distances(model, images, norm)
    eps = float(np.sort(known)[3] + np.sort(known)[4]) / 2
    found = evaluate_robustness(model, labelled(model, images), ["aa"], norm, eps)
    assert found.survivors["aa", eps][known > eps].all()
    assert found.survivors["aa", eps].sum() < 5
    assert any("targeted APGD is left out" in note for note in found.notes) is (classes < 4)


def test_warnings_about_the_model_become_notes(short: None, caplog: pytest.LogCaptureFixture) -> None:
    model = LinearClasses(5)

    def random(images: torch.Tensor) -> torch.Tensor:
        logits = model(images)
        return logits + torch.randn_like(logits)

    logger = logging.getLogger("auto-attack")
    before = list(logger.handlers), logger.propagate
    data = labelled(model, grey(8))
    found = evaluate_robustness(random, data * 2, ["aa"], "linf", [0.01, 0.02], batch_size=8)
    assert [note for note in found.notes if "randomized defense" in note]
    assert len(set(found.notes)) == len(found.notes)
    assert found.as_dict()["notes"] == list(found.notes)
    assert (list(logger.handlers), logger.propagate) == before
    assert not caplog.records


@BOTH
@pytest.mark.parametrize("hidden", [False, True])
def test_it_leaves_the_model_the_random_state_and_the_trace_alone(
    short: None, norm: str, hidden: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    net = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(25), nn.Linear(25, 4))
    net.train(not hidden)
    net[1].eval()
    net[2].bias.requires_grad_(False)
    rng, modes = torch.get_rng_state(), [module.training for module in net.modules()]
    state = {key: value.clone() for key, value in net.state_dict().items()}

    def trace(*args: Any) -> None:
        return None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        model = (lambda images: net(images)) if hidden else net
        evaluate_robustness(model, [(grey(4), torch.arange(4))], ["aa"], norm, 0.02)
        after = sys.gettrace()
    finally:
        sys.settrace(before)
    assert after is trace
    assert torch.equal(torch.get_rng_state(), rng)
    assert [module.training for module in net.modules()] == modes
    assert all(parameter.grad is None for parameter in net.parameters())
    assert [parameter.requires_grad for parameter in net.parameters()] == [True, True, True, False]
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert capsys.readouterr().out == ""


@BOTH
def test_one_image_no_right_image_and_float64(short: None, norm: str) -> None:
    model, images = LinearClasses(4).double(), grey(3).double()
    [(_, labels)] = labelled(model, images)
    single = evaluate_robustness(model, [(images[:1], labels[:1])], ["aa"], norm, [1e-4, 0.9]).rows
    assert [row["robust_accuracy"] for row in single] == [1, 1, 0]
    wrong = evaluate_robustness(model, [(images, (labels + 1) % 4)], ["aa"], norm, 0.5).rows
    assert [row["robust_accuracy"] for row in wrong] == [0, 0]


def test_it_sees_the_models_own_logits(short: None) -> None:
    """Scaled logits would help the attack, and the figure would not be AutoAttack's."""
    model = LinearClasses(4, scale=1e4)
    own = autoattack.OwnLogits(AttackedModel(model, None))
    torch.testing.assert_close(own(grey(2)), model(grey(2)))
    assert own(grey(2)).dtype == torch.float32


def test_the_official_figure_has_no_second_try(short: None) -> None:
    model, images = LinearClasses(4, scale=1e4), grey(4)
    rows = evaluate_robustness(model, labelled(model, images), ["aa", "pgd"], eps=1e-6).rows
    assert [(row["attack"], row["doubtful"], row["rechecked"]) for row in rows[1:3]] == [("aa", 4, 0), ("pgd", 4, 4)]


def test_random_models_and_a_missing_package_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = LinearClasses(4), grey(2)
    with pytest.raises(UsageError, match="'aa' is for models that do not draw at random: eot must be 1, got 20"):
        evaluate_robustness(model, labelled(model, images), ["aa"], eot=20)
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    with pytest.raises(UsageError, match=r"'aa' needs pyautoattack: pip install 'ebmhybrid\[autoattack\]'"):
        evaluate_robustness(model, labelled(model, images), ["aa"])
