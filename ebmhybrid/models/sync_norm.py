r"""Batch normalisation by the statistics of all processes, so that several train as one with the whole batch.

Of each channel process r has n_r values with mean m_r and sum of squared deviations S_r. Over all processes

    n = sum_r n_r,    m = sum_r n_r m_r / n,    S = sum_r ( S_r + n_r (m_r - m)^2 ),    variance S / n

where nothing cancels that does not cancel in one process (Chan, Golub & LeVeque 1983). With y = w (x - m) / s + b the
gradient of x needs the sums over all processes of g = dL/dy and of g (x - m) / s. Each pass exchanges two numbers a
channel. For CUDA torch has such a layer; it refuses CPUs, for which there is one here.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from ebmhybrid.messages import all_parts, all_reduced, processes


def synchronize_batch_norm(model: nn.Module, *, on_cpu: bool) -> nn.Module:
    """The model, with its BatchNorm layers replaced by ones that in training take the statistics of all processes.

    Parameters, buffers and their names stay, so that weights fit either. Without other processes, and in evaluation,
    the layers do what they did before. A model that is a BatchNorm layer itself is returned replaced.

    Arguments:
        on_cpu: whether the model will train on the CPU; else torch.nn.SyncBatchNorm is put in.

    >>> model = synchronize_batch_norm(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), on_cpu=True)
    >>> type(model[1]).__name__, list(model.state_dict())[2:4]
    ('SyncedBatchNorm', ['1.weight', '1.bias'])
    """
    if not on_cpu:
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return converted
    if isinstance(model, _BatchNorm):
        return SyncedBatchNorm.of(model)
    for name, child in model.named_children():
        setattr(model, name, synchronize_batch_norm(child, on_cpu=on_cpu))
    return model


class SyncedBatchNorm(_BatchNorm):
    """nn.BatchNorm for (N, C, ...) over the batches of all processes, which may differ in N; on any device.

    All processes must call it, and go backward, in the same order. The gradient cannot be differentiated again.

    Raises:
        ValueError: fewer than two dimensions; in training, on all processes, less than two values a channel.
    """

    @classmethod
    def of(cls, norm: _BatchNorm) -> SyncedBatchNorm:
        """A layer that holds the other's own parameters and buffers."""
        layer = cls(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        layer.weight, layer.bias = norm.weight, norm.bias
        layer.running_mean, layer.running_var = norm.running_mean, norm.running_var
        layer.num_batches_tracked = norm.num_batches_tracked
        return layer.train(norm.training)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"the input must be (N, C, ...), got {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        several = processes() > 1
        if not (self.training and several):
            return super().forward(input)
        self._check_input_dim(input)
        out, mean, variance, count = _Normalized.apply(input, self.weight, self.bias, self.eps)
        if self.track_running_stats:
            self._follow(mean, variance * (count / (count - 1)))
        return out

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics, as torch does by the unbiased variance."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_(variance.to(self.running_var.dtype), momentum)


def shared_statistics(x: Tensor) -> tuple[Tensor, Tensor, float]:
    """Mean and biased variance of each channel over all processes, in float32 or wider, and the number of values."""
    dims = [d for d in range(x.dim()) if d != 1]
    shape = [1, -1] + [1] * (x.dim() - 2)
    n = x.numel() // x.shape[1]
    mean = x.sum(dims) / max(n, 1)
    squares = (x - mean.view(shape)).square().sum(dims)
    own = torch.cat([mean, squares, mean.new_tensor([n])])
    parts = all_parts(own)
    means, squares, counts = torch.stack(parts).split([len(mean), len(mean), 1], dim=1)
    count = float(counts.sum())
    if count < 2:  # on every process
        raise ValueError(f"BatchNorm needs two values a channel or more to train, got {count:g} on all processes")
    mean = (counts * means).sum(0) / count
    return mean, (squares + counts * (means - mean).square()).sum(0) / count, count


class _Normalized(torch.autograd.Function):
    """The normalised input, with what its running statistics need: mean, biased variance, and number of values."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, float]:
        wide = x if x.dtype == torch.float64 else x.float()
        mean, variance, count = shared_statistics(wide)
        ctx.save_for_backward(x, weight, mean, variance)
        ctx.has_bias, ctx.eps, ctx.count = bias is not None, eps, count
        ctx.mark_non_differentiable(mean, variance)
        out = F.batch_norm(wide, mean, variance, weight, bias, training=False, eps=eps)
        return out.to(x.dtype), mean, variance, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
        x, weight, mean, variance = ctx.saved_tensors
        dims = [d for d in range(x.dim()) if d != 1]
        shape = [1, -1] + [1] * (x.dim() - 2)
        grad, scale = grad.to(mean.dtype), (variance + ctx.eps).rsqrt()
        unit = (x.to(mean.dtype) - mean.view(shape)) * scale.view(shape)
        own = torch.stack([grad.sum(dims), (grad * unit).sum(dims)])
        shared = own.clone()
        all_reduced(shared)
        along, tilt = (shared / ctx.count).view(2, *shape)
        factor = scale if weight is None else scale * weight
        inner = factor.view(shape) * (grad - along - unit * tilt)
        return inner.to(x.dtype), None if weight is None else own[1], own[0] if ctx.has_bias else None, None
