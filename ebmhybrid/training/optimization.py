"""Optimiser, learning-rate schedule and weight average, as a recipe asks for them."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ebmhybrid.schema import Optimizer, Schedule


def build_optimizer(model: nn.Module, recipe: Optimizer, fused: bool = False) -> torch.optim.Optimizer:
    """SGD, Adam or AdamW. With `decay_norm_and_bias: false` vectors (biases, norm weights) are not decayed.

    Arguments:
        fused: one kernel for the whole update instead of several a parameter; with the fp16 scaler it also skips a
            step of overflown gradients without asking the device first.
    """
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    scalars = [p for p in model.parameters() if not p.dim()]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": vectors, "weight_decay": recipe.weight_decay if recipe.decay_norm_and_bias else 0.0},
    ]
    if scalars:  # an objective's own, as the offset of nce: never decayed
        groups.append({"params": scalars, "weight_decay": 0.0})
    how = fused or None  # None leaves the choice to torch, False would forbid its faster loops
    if recipe.name == "sgd":
        return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.nesterov, fused=how)
    kind = torch.optim.Adam if recipe.name == "adam" else torch.optim.AdamW
    return kind(groups, lr=recipe.lr, betas=(recipe.betas[0], recipe.betas[1]), fused=how)


def lr_factor(step: int, schedule: Schedule, total_steps: int, steps_per_epoch: int) -> float:
    """The learning rate's factor at a step: linear warm-up, then constant, step decay or a half cosine.

    >>> cosine = Schedule(name="cosine", warmup_steps=10)
    >>> [round(lr_factor(step, cosine, 110, 10), 2) for step in (0, 4, 10, 60, 110)]
    [0.1, 0.5, 1.0, 0.5, 0.0]
    """
    if step < schedule.warmup_steps:
        return (step + 1) / schedule.warmup_steps
    if schedule.name == "step":
        return schedule.gamma ** sum(step >= epoch * steps_per_epoch for epoch in schedule.milestones)
    if schedule.name == "cosine":
        done = (step - schedule.warmup_steps) / max(1, total_steps - schedule.warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    return 1.0


def build_scheduler(
    optimizer: torch.optim.Optimizer, schedule: Schedule, stages: list[int], steps_per_epoch: int
) -> LRScheduler:
    """A scheduler that is stepped once a training step, and begins anew with each stage of so many steps."""
    total_steps = sum(stages)
    if schedule.name == "one_cycle":
        peak = [group["lr"] for group in optimizer.param_groups]
        # One more than is taken: the scheduler is stepped after the last step too.
        return OneCycleLR(optimizer, max_lr=peak, total_steps=total_steps + 1, cycle_momentum=False)

    def factor(step: int) -> float:
        first = 0
        for length in stages[:-1]:
            if step < first + length:
                return lr_factor(step - first, schedule, length, steps_per_epoch)
            first += length
        return lr_factor(step - first, schedule, stages[-1], steps_per_epoch)

    return LambdaLR(optimizer, factor)


def build_average(model: nn.Module, decay: float | None) -> AveragedModel | None:
    """An exponential moving average of weights and buffers, w <- decay w + (1 - decay) new, or None."""
    if decay is None:
        return None
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
