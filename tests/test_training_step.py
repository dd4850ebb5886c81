"""The training step as an accelerator sees it: nothing waits, one kernel updates, the graph can be captured whole."""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext

import pytest
import torch
from torch import nn

import ebmhybrid as eh
from ebmhybrid.data import Splits
from ebmhybrid.schema import Optimizer
from ebmhybrid.training import build, engine
from ebmhybrid.training.build import build_parts, load_data
from ebmhybrid.training.optimization import build_optimizer
from ebmhybrid.training.setup import pick_precision


@pytest.fixture(scope="module")
def splits() -> Splits:
    return load_data(eh.load_recipe("smoke"), "data", False)


class NoGenerator:
    """There are no generators on the meta device: draws come from its default."""

    def __init__(self, device: torch.device) -> None:
        pass

    def manual_seed(self, seed: int) -> None:
        return None


OBJECTIVES = {
    "released": ["objective.hdge={form: released, bank_size: 64}"],
    "paper": ["objective.hdge={form: paper, negatives: batch, normalize: none}"],
    "re-weighted": ["objective.hdge={form: paper, negatives: bank+batch, label_smoothing: 0.1, bank_size: 64}"],
    "mixup": ["objective.hdge={form: paper, negatives: batch}", "data.augment.mixup_alpha=0.4"],
    "reference": [
        "objective.hdge={form: paper, negatives: batch}",
        "reference={families: [smooth, patches, inversions]}",
    ],
    "z_loss": ["objective={ce: {label_smoothing: 0.1}, z_loss: {}}"],
    "jem": ["objective={ce: {}, jem: {steps: 2, buffer_size: 70, chains: class}}"],
    "jem++": [
        "objective={ce: {}, jem: {steps: 2, buffer_size: 70, inner_steps: 2, clip: 1.0, start: gaussian}}",
    ],
    "sada-jem": [
        "objective={ce: {}, jem: {steps: 2, buffer_size: 70, augment: false, clip: 2.0, start: gaussian}}",
        "optimizer={sam_rho: 2.0, sam_adaptive: true}",
    ],
    "conditional": ["objective={ce: {}, jem: {steps: 2, buffer_size: 70, target: conditional, l2: 0.1}}"],
    "logit_norm": ["objective={logit_norm: {}}"],
    "supcon": ["objective={supcon: {head_epochs: 0}}", "training.max_steps=null"],
    "head": ["objective={supcon: {head_epochs: 1}}", "training.max_steps=null", "training.epochs=2"],
    "energy_margin": ["objective={ce: {}, energy_margin: {}}", "reference={families: [smooth]}"],
    "nce": ["objective={ce: {}, nce: {learn_offset: true}}", "reference={families: [smooth]}"],
    "climbing references": [
        "objective={ce: {}, outlier_exposure: {}}",
        "reference={families: [collages, spectral, warps, mixtures], ascent_steps: 2}",
    ],
    "weighted reference": [
        "objective.hdge={form: paper, negatives: bank+batch, bank_size: 64, reference_weight: 5.0}",
        "reference={families: [smooth]}",
    ],
}


@pytest.mark.parametrize("overrides", OBJECTIVES.values(), ids=OBJECTIVES)
def test_a_step_reads_no_value_back(splits, overrides: list[str], monkeypatch) -> None:
    """On the meta device `.item()`, `int(tensor)`, `.cpu()` and any choice by value raise: it has no values."""
    recipe = eh.load_recipe(
        "smoke",
        [
            "data.augment={pad: 1, flip: true, noise_std: 0.1}",
            "training.grad_clip=1.0",
            "training.ema=0.9",
            "training.channels_last=true",
            *overrides,
        ],
    )
    monkeypatch.setattr(build.torch, "Generator", NoGenerator)
    monkeypatch.setattr(build, "_metadata", lambda *parts: {})  # reads the normalisation, once and before training
    parts = build_parts(recipe, splits, torch.device("meta"))
    parts.device = torch.device("cpu")  # the scaler knows no meta device, and autocast neither
    monkeypatch.setattr(torch, "autocast", lambda *args, **options: nullcontext())
    parts.progress.epoch = recipe.training.epochs - 1  # where supcon may train the head alone
    images, labels = torch.rand(32, 1, 8, 8, device="meta"), torch.zeros(32, dtype=torch.int64, device="meta")
    loss, terms, correct = engine.train_step(parts, parts.model, images, labels)
    assert {value.device.type for value in (loss, correct, *terms.values())} == {"meta"}
    with pytest.raises(RuntimeError):
        loss.item()


@pytest.mark.parametrize(
    "recipe",
    [
        {"name": "sgd", "nesterov": True, "weight_decay": 0.01},
        {"name": "adam", "lr": 0.01, "weight_decay": 0.01},
        {"name": "adamw", "lr": 0.01, "weight_decay": 0.1, "decay_norm_and_bias": False},
    ],
    ids=lambda recipe: recipe["name"],
)
def test_the_fused_update_is_the_plain_one(recipe) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.SELU(), nn.Conv2d(8, 4, 3)).to(memory_format=torch.channels_last)
    weights = []
    for fused in (False, True):
        torch.manual_seed(0)
        copy = nn.Sequential(nn.Conv2d(3, 8, 3), nn.SELU(), nn.Conv2d(8, 4, 3)).to(memory_format=torch.channels_last)
        copy.load_state_dict(model.state_dict())
        optimizer = build_optimizer(copy, Optimizer.model_validate(recipe), fused=fused)
        assert bool(optimizer.defaults["fused"]) == fused
        for _ in range(5):
            optimizer.zero_grad()
            copy(torch.rand(2, 3, 8, 8).contiguous(memory_format=torch.channels_last)).square().mean().backward()
            optimizer.step()
        weights.append([p.detach().clone() for p in copy.parameters()])
    for plain, fused_weight in zip(*weights, strict=True):
        torch.testing.assert_close(fused_weight, plain, rtol=1e-5, atol=1e-6)
    assert any(not torch.equal(a, b) for a, b in zip(weights[1], model.parameters(), strict=True))


def test_recipes_train_with_the_fused_update(splits) -> None:
    parts = build_parts(eh.load_recipe("smoke"), splits, torch.device("cpu"))
    assert parts.optimizer.defaults["fused"]


def test_precision_auto_is_bf16_where_the_device_has_it(monkeypatch, tmp_path) -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert pick_precision("auto", cpu) == torch.bfloat16
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert pick_precision("auto", cpu) == torch.float32
    assert pick_precision("bf16", cpu) == torch.bfloat16
    for capability, dtype in (((9, 0), torch.bfloat16), ((8, 0), torch.bfloat16), ((7, 5), torch.float32)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, value=capability: value)
        assert pick_precision("auto", gpu) == dtype
    assert pick_precision("auto", torch.device("meta")) == torch.float32
    run = eh.train(eh.load_recipe("smoke", ["training.precision=auto"]), tmp_path / "run", progress=False)
    assert json.loads((run.folder / "env.json").read_text())["precision"] == "float32"


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile's default backend needs a C++ compiler")
def test_the_loss_with_its_bank_compiles_whole_for_graph_capture() -> None:
    """reduce-overhead is what captures CUDA graphs: one graph, no break, the bank's pointer a tensor inside it."""
    torch._dynamo.reset()
    loss_fn, eager = eh.HDGELoss(10, bank_size=48), eh.HDGELoss(10, bank_size=48)
    eager.load_state_dict(loss_fn.state_dict())
    compiled = torch.compile(loss_fn, fullgraph=True, mode="reduce-overhead")
    for _ in range(4):  # 4 x 16 examples go round a bank of 48
        logits, y = torch.randn(16, 10, requires_grad=True), torch.randint(10, (16,))
        torch.testing.assert_close(compiled(logits, y), eager(logits, y))
        torch.testing.assert_close(loss_fn.bank.state_dict(), eager.bank.state_dict())
    torch._dynamo.reset()
