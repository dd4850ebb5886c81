"""A model as attacks want it, and views of it for attacks with needs of their own.

Attack libraries leave gradients on the model's parameters, add constants to gradients that are smaller than those, and
have losses that saturate. Hence the gradient reaches the images only, logits are kept from saturating, and where a
direction is all that an attack uses its length is 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ebmhybrid.errors import EbmhybridError

from .predictions import Model

WIDEST_GAP = 25.0


def gaps(logits: Tensor) -> Tensor:
    """The distance of the two largest logits, (N,), in the logits' dtype; 0 for a single class.

    >>> gaps(torch.tensor([[3.0, 0.0, 1.0]]))
    tensor([2.])
    """
    if logits.shape[1] < 2:
        return logits.new_zeros(len(logits))
    top = logits.topk(2, dim=1).values
    return top[:, 0] - top[:, 1]


def unsaturated(logits: Tensor) -> Tensor:
    """Logits in float64 whose two largest are at most 25 apart, an image's logits being scaled where they are not.

    The gradient of the cross-entropy at the label's logit is p - 1: exactly 0 in float32 beyond a gap of 17, in float64
    beyond 37, and wrong by a thousandth at 30. An attack that cannot see the slope reports robustness that is not
    there. The scale is a constant of the image: decisions stay, and below a gap of 25 so does the loss.

    >>> unsaturated(torch.tensor([[300.0, 0.0], [9.0, 0.0]]))
    tensor([[25.,  0.],
            [ 9.,  0.]], dtype=torch.float64)
    """
    logits = logits.double()
    return logits / (gaps(logits.detach()) / WIDEST_GAP).clamp_min(1)[:, None]


def float_dtype(model: Model) -> torch.dtype | None:
    """The dtype of a Module's first floating point parameter, None where there is none."""
    parameters = model.parameters() if isinstance(model, nn.Module) else ()
    return next((parameter.dtype for parameter in parameters if parameter.is_floating_point()), None)


class _ToImages(torch.autograd.Function):
    """compute(images), whose gradient flows to the images and to nothing else.

    FAB and others call `.backward()`, which would leave gradients on the parameters of the model, also of one that
    a plain function hides.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
        with torch.enable_grad():
            ctx.inputs = images.detach().requires_grad_(True)
            ctx.outputs = compute(ctx.inputs)
        return ctx.outputs.detach()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        if not ctx.outputs.requires_grad:
            raise EbmhybridError("attacks need a model whose logits can be differentiated by the image")
        # a caller that retains the graph asks again
        (gradient,) = torch.autograd.grad(ctx.outputs, ctx.inputs, gradients, retain_graph=True)
        return gradient, None


class AttackedModel(nn.Module):
    """A model as attacks want it: a Module with a parameter, logits that do not saturate, no autocast.

    Arguments:
        model: images -> logits (N, C).
        device: where its images lie.
        eot: logits are the mean of so many calls, for models that draw anew at each call. The gradient is then that
            of the mean: expectation over transformation (Athalye et al. 2018).

    A Module in float64 is given float64 images, whatever the attack makes of them.
    """

    def __init__(self, model: Model, device: torch.device | str | None, eot: int = 1) -> None:
        super().__init__()
        # torchattacks reads the device off the first parameter
        self.device_marker = nn.Parameter(torch.empty(0, device=device), requires_grad=False)
        # in a list, so that an attack's eval() and train() do not reach the model's modules
        self._model: list[Model] = [model]
        self.eot, self.double_images = eot, float_dtype(model) == torch.float64
        self.training = False

    def _draws(self, images: Tensor) -> Tensor:
        """The logits, or the mean of `eot` of them."""
        images = images.double() if self.double_images else images
        with torch.autocast(images.device.type, enabled=False):
            draws = [self._model[0](images) for _ in range(self.eot)]
        return draws[0] if self.eot == 1 else torch.stack(draws).mean(dim=0)

    def logits(self, images: Tensor) -> Tensor:
        """The model's own logits, saturating or not."""
        if torch.is_grad_enabled() and images.requires_grad:
            outputs: Tensor = _ToImages.apply(images, self._draws)
            return outputs
        with torch.no_grad():
            return self._draws(images)

    def forward(self, images: Tensor) -> Tensor:
        logits = self.logits(images)
        return unsaturated(logits) if isinstance(logits, Tensor) and logits.dim() == 2 else logits

    def vanished(self, images: Tensor, labels: Tensor) -> Tensor:
        """Which images have a cross-entropy gradient of exactly 0, bool (N,)."""
        with torch.enable_grad():
            inputs = images.detach().clone().requires_grad_(True)
            loss = nn.functional.cross_entropy(self(inputs), labels, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, inputs)
        return (gradient.flatten(1) == 0).all(dim=1)

    def zero_gradients(self, images: Tensor, labels: Tensor) -> int:
        """How many images have a cross-entropy gradient of exactly 0, or a ValueError where there is no gradient."""
        return int(self.vanished(images, labels).sum())


class _UnitGradient(torch.autograd.Function):
    """The identity; its gradient has L2 norm 1 for each image, or 0 where it was 0."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        rows = gradients[0].double().flatten(1)
        # in two steps, so that squares of small numbers do not vanish
        rows = rows / rows.abs().amax(dim=1, keepdim=True).clamp_min(1e-300)
        rows = rows / rows.norm(dim=1, keepdim=True).clamp_min(1)
        return rows.reshape_as(gradients[0]).to(gradients[0].dtype)


class Directions(nn.Module):
    """A model for attacks that use a gradient's direction alone: an image's gradient has length 1, however flat it is.

    torchattacks adds up to 1e-10 to a gradient's norm, which shortens L2 steps on confident images.
    """

    def __init__(self, target: AttackedModel) -> None:
        super().__init__()
        self.target = target
        self.training = False

    def forward(self, images: Tensor) -> Tensor:
        unit: Callable[[Tensor], Tensor] = _UnitGradient.apply
        return unit(self.target(unit(images)))


class Differences(nn.Module):
    """A model for attacks that need float32 logits and use differences of them: the largest logit is 0."""

    def __init__(self, target: AttackedModel) -> None:
        super().__init__()
        self.target = target
        self.training = False

    def forward(self, images: Tensor) -> Tensor:
        logits = self.target(images)
        return (logits - logits.detach().amax(dim=1, keepdim=True)).float()
