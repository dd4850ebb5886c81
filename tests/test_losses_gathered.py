"""Losses of several processes against one process with the whole batch, and what they do where there are no others.

Two processes, then three, run all cases in one go; the tests compare what they have saved.
"""

from __future__ import annotations

import math
from datetime import timedelta
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import ebmhybrid as eh
from ebmhybrid.losses import SupConLoss, gcrl_loss, supcon_loss
from ebmhybrid.losses.gathered import gathered, own_mean, row_counts, shared_log_sum
from ebmhybrid.messages import processes, rank

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch was built without torch.distributed")

DOUBLE = torch.float64
CLASSES, STEPS = 3, {"hard": 20, "smoothed": 4, "soft": 4}
# Images and reference images of each process, step by step in turn.
SHARES = {
    2: [((4, 4), (2, 2)), ((5, 3), (0, 3)), ((1, 6), (1, 1)), ((6, 6), (0, 0))],
    3: [((3, 3, 3), (1, 1, 1)), ((1, 4, 2), (2, 0, 1)), ((2, 1, 1), (0, 0, 3))],
}


def fits(form: str, negatives: str, normalize: str, kind: str, reference: bool) -> bool:
    return not (negatives == "bank" and reference) and not (
        form == "released" and kind == "soft" and "bank" in negatives
    )


CASES = [
    case
    for case in product(
        ("released", "paper"),
        ("bank", "batch", "bank+batch"),
        ("l2", "none"),
        ("hard", "smoothed", "soft"),
        (False, True),
    )
    if fits(*case)
]


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def targets(kind: str, n: int, seed: int) -> Tensor:
    if kind == "soft":
        return torch.softmax(2 * drawn(n, CLASSES, seed=seed), 1)
    return torch.randint(CLASSES, (n,), generator=torch.Generator().manual_seed(seed))


def build(case: tuple, gather: bool) -> eh.HDGELoss:
    form, negatives, normalize, kind, reference = case
    torch.manual_seed(0)
    return eh.HDGELoss(
        CLASSES,
        form=form,
        negatives=negatives,
        normalize=normalize,
        weight=0.7,
        temperature=0.5,
        label_smoothing=0.1 if kind == "smoothed" else 0.0,
        bank_size=40,
        bank_block=3 if normalize == "l2" else None,
        reference_weight=2.5 if reference and normalize == "none" else 1.0,
        gather=gather,
    ).double()


def hdge_run(case: tuple, shares: list, who: int | None) -> dict[str, Any]:
    """Steps of one process (`who`) or of one with the whole batch: weighted losses, gradients and the bank."""
    loss_fn = build(case, gather=who is not None)
    found: dict[str, Any] = {"losses": [], "gradients": []}
    for step in range(STEPS[case[3]]):
        images, references = shares[step % len(shares)]
        logits = 2 * drawn(sum(images), CLASSES, seed=step)
        y = targets(case[3], sum(images), seed=step)
        reference = 2 * drawn(sum(references), CLASSES, seed=100 + step) if case[4] else None
        weight = 1.0
        if who is not None:
            logits, y = logits.split(images)[who], y.split(images)[who]
            reference = None if reference is None else reference.split(references)[who]
            weight = len(images) * len(logits) / sum(images)
        if reference is not None and not len(reference) and step % 2:
            reference = None  # a process without reference images may say it either way
        at = [logits.requires_grad_(), *([] if reference is None else [reference.requires_grad_()])]
        loss = weight * loss_fn(logits, y, reference=reference)
        # At the logits a process finds R times what one process does: DistributedDataParallel takes the mean.
        gradients = torch.autograd.grad(loss, at)
        found["losses"].append(loss.detach())
        found["gradients"].append([*gradients, torch.zeros(0, CLASSES, dtype=DOUBLE)][:2])
    found["bank"] = {} if loss_fn.bank is None else loss_fn.bank.state_dict()
    return found


def not_finite(who: int) -> list[dict[str, Tensor]]:
    """The bank before and after a step in which one process has a NaN or an infinity."""
    found = []
    for bad in (math.nan, math.inf, -math.inf):
        loss_fn = build(("paper", "bank+batch", "none", "hard", False), gather=True)
        loss_fn(drawn(4, CLASSES, seed=who), targets("hard", 4, seed=0))
        found.append({k: v.clone() for k, v in loss_fn.bank.state_dict().items()})
        logits = drawn(4, CLASSES, seed=who)
        logits[2, 1] = bad if who == 1 else 0.0
        loss_fn(logits, targets("hard", 4, seed=0))
        found.append(loss_fn.bank.state_dict())
    return found


def held_and_pushed() -> list[dict[str, Tensor]]:
    """The bank after a call, and after a call with the bank at rest and a push."""
    states = []
    for at_rest in (False, True):
        loss_fn = build(("paper", "bank+batch", "l2", "hard", True), gather=True)
        logits, reference = drawn(3 + rank(), CLASSES, seed=rank()), drawn(2, CLASSES, seed=9 + rank())
        loss_fn.bank.train(not at_rest)
        loss_fn(logits, targets("hard", len(logits), seed=0), reference=reference)
        if at_rest:
            assert int(loss_fn.bank.count()) == 0
            loss_fn.push(logits, reference)
        states.append(loss_fn.bank.state_dict())
    return states


VIEWS = [(2, (2, 3)), (3, (0, 4)), (1, (3, 4)), (1, (0, 5)), (1, (1, 1))]


def views_run(views: int, counts: tuple[int, ...], who: int | None) -> tuple[Tensor, Tensor]:
    """Supervised contrast of one process or of the whole batch: weighted loss, and gradient at the projections."""
    z, y = drawn(sum(counts), views, 4, seed=views), torch.tensor([0, 1, 2, 0, 3, 2, 0])[: sum(counts)]
    weight = 1.0
    if who is not None:
        z, y = z.split(counts)[who], y.split(counts)[who]
        weight = len(counts) * len(z) / sum(counts)
    loss = supcon_loss(z.requires_grad_(), y, 0.5, gather=who is not None)
    (gradient,) = torch.autograd.grad(weight * loss, z)
    return weight * loss.detach(), gradient


def gcrl_run(counts: tuple[int, ...], who: int | None) -> tuple[Tensor, Tensor]:
    views, weight = drawn(2, sum(counts), 4, seed=1), 1.0
    if who is not None:
        views = views.split(counts, dim=1)[who]
        weight = len(counts) * views.shape[1] / sum(counts)
    views = views.contiguous().requires_grad_()
    loss = gcrl_loss(views[0].sum(1), 2, views[0], views[1], 0.3, gather=who is not None)
    (gradient,) = torch.autograd.grad(weight * loss, views)
    return weight * loss.detach(), gradient


def refusals(who: int) -> dict[str, str]:
    """What each process says where one holds nothing, or where a gradient is differentiated."""
    found = {}
    leaf = torch.ones(2, CLASSES, dtype=DOUBLE, requires_grad=True)
    calls = {
        "hdge": lambda: eh.HDGELoss(CLASSES, negatives="batch", gather=True)(leaf[:who], torch.zeros(who, dtype=int)),
        "gathered": lambda: gathered(leaf[:0]),
        "supcon": lambda: supcon_loss(leaf[:who, None], torch.zeros(who, dtype=torch.int64), gather=True),
        "gathered twice": lambda: gathered(leaf)[0].square().sum(),
        "log-sum twice": lambda: shared_log_sum(leaf).square().sum(),
    }
    for name, call in calls.items():
        try:
            (gradient,) = torch.autograd.grad(call(), leaf, create_graph=True)
            gradient.sum().backward()
        except (ValueError, RuntimeError) as error:
            found[name] = str(error)
    return found


def alone_in_evaluation() -> bool:
    """One process calls losses in evaluation mode, while the others are elsewhere."""
    logits, y = drawn(4, CLASSES, seed=0), targets("hard", 4, seed=0)
    same = []
    for negatives in ("bank", "batch", "bank+batch"):
        case = ("paper", negatives, "l2", "hard", False)
        same.append(build(case, gather=True).eval()(logits, y) == build(case, gather=False).eval()(logits, y))
    same.append(SupConLoss(gather=True).eval()(logits[:, None], y) == supcon_loss(logits[:, None], y))
    return all(same)


def run_all(who: int, world: int, cases: list) -> dict[str, Any]:
    found: dict[str, Any] = {"hdge": [hdge_run(case, SHARES[world], who) for case in cases]}
    if world == 2:
        found["not finite"] = not_finite(who)
        found["held"] = held_and_pushed()
        found["supcon"] = [views_run(*how, who) for how in VIEWS]
        found["supcon module"] = SupConLoss(0.5, gather=True)(drawn(2, 2, 4, seed=who), torch.tensor([0, 1]))
        found["gcrl"] = gcrl_run((2, 3), who)
        found["refusals"] = refusals(who)
        own = torch.full((2,), -math.inf).requires_grad_()
        found["no rows"] = torch.autograd.grad(shared_log_sum(own).sum(), own)[0]
        found["counts"] = row_counts(torch.device("cpu"), who, 7)
        if who == 0:
            found["evaluation"] = alone_in_evaluation()
    return found


def one_process(who: int, folder: str) -> None:
    torch.set_num_threads(1)
    for world, cases in ((2, CASES), (3, CASES[::7])):
        if who < world:
            dist.init_process_group(
                "gloo",
                init_method=f"file://{folder}/meet{world}",
                rank=who,
                world_size=world,
                timeout=timedelta(minutes=2),
            )
            torch.save(run_all(who, world, cases), f"{folder}/{world}-{who}.pt")
            dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, Any]]]:
    """What the processes found, by their number and rank."""
    folder = tmp_path_factory.mktemp("processes")
    torch.multiprocessing.spawn(one_process, (str(folder),), nprocs=3)
    return {world: [torch.load(folder / f"{world}-{who}.pt") for who in range(world)] for world in (2, 3)}


def close(value: Any, expected: Any) -> None:
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("world", [2, 3])
def test_processes_have_the_loss_the_gradients_and_the_bank_of_one(found, world: int) -> None:
    for index, case in enumerate(CASES if world == 2 else CASES[::7]):
        whole, parts = hdge_run(case, SHARES[world], None), [part["hdge"][index] for part in found[world]]
        close(torch.stack([torch.stack(part["losses"]) for part in parts]).mean(0), torch.stack(whole["losses"]))
        for step, gradients in enumerate(whole["gradients"]):
            for kind, gradient in enumerate(gradients):
                close(torch.cat([part["gradients"][step][kind] for part in parts]) / world, gradient)
        for name, value in whole["bank"].items():
            close(parts[0]["bank"][name], value)
            assert all(torch.equal(parts[0]["bank"][name], part["bank"][name]) for part in parts)


def test_the_cases_cover_the_options_and_tell_processes_from_halves() -> None:
    """All that may go together; and alone, each on its half, processes would find something else."""
    assert len(CASES) == 54
    images, _ = SHARES[2][0]
    for case in CASES:
        whole, halves = build(case, gather=False), [build(case, gather=False) for _ in images]
        for step in range(3):
            logits, y = 2 * drawn(8, CLASSES, seed=step), targets(case[3], 8, seed=step)
            one = whole(logits, y)
            two = (
                sum(half(*part) for half, *part in zip(halves, logits.split(images), y.split(images), strict=True)) / 2
            )
        assert (two - one).abs() > 1e-6


def test_one_non_finite_score_leaves_the_batch_out_everywhere(found) -> None:
    for part in found[2]:
        states = part["not finite"]
        for before, after in zip(states[::2], states[1::2], strict=True):
            assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_bank_at_rest_takes_the_batch_by_a_push(found) -> None:
    for part in found[2]:
        by_call, by_push = part["held"]
        assert by_call["counts"].sum() == 3 + 4 + 2 + 2
        assert all(torch.equal(by_call[name], by_push[name]) for name in by_call)


def test_supervised_contrast_and_gcrl_equal_those_of_one_process(found) -> None:
    runs = [(views_run(*how, None), [part["supcon"][i] for part in found[2]], 0) for i, how in enumerate(VIEWS)]
    runs.append((gcrl_run((2, 3), None), [part["gcrl"] for part in found[2]], 1))
    for (loss, gradient), parts, images in runs:
        close(sum(part[0] for part in parts) / 2, loss)
        close(torch.cat([part[1] for part in parts], dim=images) / 2, gradient)
    everything = torch.cat([drawn(2, 2, 4, seed=who) for who in range(2)])
    module = sum(part["supcon module"] for part in found[2]) / 2
    close(module, supcon_loss(everything, torch.tensor([0, 1, 0, 1]), 0.5))


def test_what_cannot_be_is_said_on_every_process(found) -> None:
    for part in found[2]:
        said = part["refusals"]
        assert said["hdge"] == "every process must hold one image or more, got [0, 1]"
        assert said["gathered"] == "some process must hold at least one row, got [0, 0]"
        assert said["supcon"] == "projections must be two views or more in all, got 1 on all processes"
        assert "once_differentiable" in said["gathered twice"]
        assert "once_differentiable" in said["log-sum twice"]
        assert part["no rows"].tolist() == [0, 0]
        assert part["counts"] == ((0, 7), (1, 7))
    assert found[2][0]["evaluation"]


# One process


@pytest.mark.parametrize("grouped", [False, True])
def test_alone_nothing_is_exchanged_and_nothing_changes(grouped: bool, tmp_path: Path, monkeypatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a collective was called")

    if grouped:
        dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    for name in ("all_gather", "all_reduce", "broadcast"):
        monkeypatch.setattr(dist, name, refuse)
    try:
        for case in CASES:
            gathering, plain = build(case, gather=True), build(case, gather=False)
            for step in range(3):
                logits, y = drawn(4, CLASSES, seed=step).requires_grad_(), targets(case[3], 4, seed=step)
                reference = drawn(2, CLASSES, seed=9) if case[4] else None
                pairs = [loss_fn(logits, y, reference=reference) for loss_fn in (gathering, plain)]
                assert torch.equal(*pairs)
                assert torch.equal(*(torch.autograd.grad(loss, logits)[0] for loss in pairs))
            for name, value in plain.state_dict().items():
                assert name.startswith("_") or torch.equal(gathering.state_dict()[name], value)
        z = drawn(3, 2, 4, seed=0)
        assert torch.equal(supcon_loss(z, torch.arange(3), gather=True), supcon_loss(z, torch.arange(3)))
        assert (processes(), rank()) == (1, 0)
        assert gathered(z) == (z, 0)
        assert shared_log_sum(z) is z
        assert row_counts(z.device, 3, 4) == ((3, 4),)
    finally:
        if grouped:
            dist.destroy_process_group()


def test_the_mean_of_no_rows_is_zero_with_a_gradient() -> None:
    rows = torch.zeros(0, requires_grad=True)
    assert own_mean(rows) == 0
    assert torch.autograd.grad(own_mean(rows), rows)[0].shape == (0,)
    values = drawn(5, seed=0)
    assert torch.equal(own_mean(values), values.mean())


def test_supcon_with_gather_counts_the_views_with_a_positive() -> None:
    """Of three images two share a class: alone, the mean over these two, with and without gathering."""
    z, y = drawn(3, 1, 4, seed=0), torch.tensor([0, 1, 0])
    close(supcon_loss(z, y, gather=True), supcon_loss(z, y))
    assert supcon_loss(z, torch.arange(3), gather=True) == 0
    with pytest.raises(ValueError, match=r"two views or more in all, got torch\.float64 \(1, 1, 4\)"):
        supcon_loss(z[:1], y[:1])
    with pytest.raises(ValueError, match="two views or more in all, got 1 on all processes"):
        supcon_loss(z[:1], y[:1], gather=True)
