r"""Stochastic gradient Langevin dynamics on a log density (Welling & Teh 2011), as JEM and its followers use it.

    x_{k+1} = clamp( x_k + a_k clip(d log p(x_k) / dx) + s_k z_k ),   z_k ~ N(0, I)

Langevin dynamics proper has s = sqrt(2 a), and p for the density of its samples as a -> 0. Models trained as JEM use a
far smaller s (Grathwohl et al. 2020: a = 1, s = 0.01 on images in [-1, 1]), which is p^(2a/s^2), a density at a low
temperature: step and noise are therefore two arguments. On images in [0, 1] the same walk has a quarter of the step and
half of the noise, since a gradient is twice as large there and a distance half as long: a = 0.25, s = 0.005.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Integral, Real

import torch
from torch import Tensor

from ebmhybrid.errors import EbmhybridError

LogDensity = Callable[[Tensor], Tensor]
Bounds = tuple[float, float]


def langevin_step(
    log_density: LogDensity,
    x: Tensor,
    step_size: float | Tensor,
    noise: Tensor | float,
    *,
    clamp: Bounds | None = None,
    clip: float | None = None,
    through: bool = False,
) -> Tensor:
    """clamp(x + step_size clip(d log p(x) / dx) + noise): one step, one gradient for the whole batch.

    It traces under `torch.compile(fullgraph=True)`, without a derivative `through` it.

    Arguments:
        log_density: x (N, ...) -> (N,), a row's value depending on no other row.
        x: (N, ...) floating point.
        step_size: a, a number or a tensor that broadcasts with x.
        noise: of the shape of x, scaled already, or 0.
        clamp: (low, high) that x is kept in; a clamped element has derivative 0.
        clip: largest absolute value of an element of the gradient.
        through: whether the result can be differentiated by x, which needs second derivatives.

    Returns:
        Of the shape of x; detached unless `through`.

    Raises:
        EbmhybridError: a density that is not one value a row, or that cannot be differentiated by x.

    >>> langevin_step(lambda x: -(x - 0.5).square().sum(1), torch.tensor([[0.9]]), 0.25, 0.0)
    tensor([[0.7000]])
    """
    start = x if through else x.detach()
    return moved(start, slope_of(log_density, start, through), step_size, noise, clamp, clip)


def slope_of(log_density: LogDensity, x: Tensor, through: bool = False) -> Tensor:
    """d log p(x) / dx, of the shape of x; differentiable itself with `through`."""
    if torch.compiler.is_compiling():  # tracing needs a function's gradient, and cannot ask what a tensor depends on
        slope = torch.func.grad(lambda inputs: log_density(inputs).sum())(x)
        return slope if through else slope.detach()  # else it would depend on the parameters
    with torch.enable_grad():
        inputs = x if x.requires_grad else x.detach().requires_grad_()
        return gradients(log_density(inputs), [inputs], through)[0]


def gradients(values: Tensor, of: Sequence[Tensor], through: bool = False) -> Sequence[Tensor]:
    """d values / d of, row by row, or an EbmhybridError that says why the values (N,) are no density to climb."""
    if not isinstance(values, Tensor) or values.shape != of[0].shape[:1]:
        what = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise EbmhybridError(f"a log density must be one value a row, ({len(of[0])},), got {what}")
    found: Sequence[Tensor | None] = [None]
    if values.requires_grad and all(tensor.requires_grad for tensor in of):
        found = torch.autograd.grad(values.sum(), of, create_graph=through, allow_unused=True)
    slopes = [slope for slope in found if slope is not None]
    if len(slopes) < len(of):
        raise EbmhybridError("Langevin dynamics needs a log density that can be differentiated by x; this one cannot")
    return slopes


def moved(
    x: Tensor,
    slope: Tensor,
    step_size: float | Tensor,
    noise: Tensor | float,
    clamp: Bounds | None = None,
    clip: float | None = None,
) -> Tensor:
    """clamp(x + step_size clip(slope) + noise)."""
    if clip is not None:
        slope = slope.clamp(-clip, clip)
    x = x + step_size * slope + noise
    return x if clamp is None else x.clamp(*clamp)


def sgld(
    log_density: LogDensity,
    x0: Tensor,
    steps: int = 20,
    step_size: float = 0.25,
    noise_std: float = 0.005,
    *,
    generator: torch.Generator | None = None,
    clamp: Bounds | None = None,
    clip: float | None = None,
    anneal: float = 1.0,
    precondition: float | None = None,
    damping: float = 1e-5,
    on_step: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Samples by stochastic gradient Langevin dynamics: chains that start at x0 and climb a log density with noise.

        x_{k+1} = clamp( x_k + a_k clip(d log p(x_k) / dx) + s_k z_k ),   z_k ~ N(0, I),   k = 0 .. K - 1

    Source: Welling & Teh 2011; the defaults are JEM's, turned to images in [0, 1] (Grathwohl et al. 2020). A model
    stays in the mode that it is in: call `model.eval()` first, so that BatchNorm and dropout do not mix the chains.
    Its parameters gather no gradient.

    With `precondition` = b it is pSGLD (Li et al. 2016, algorithm 1), element by element, g being the clipped slope:

        V_k = b V_{k-1} + (1 - b) g_k^2,  V_0 = g_1^2,   G = 1 / (damping + sqrt V_k)
        x_{k+1} = clamp( x_k + a G g_k + s sqrt(G) z_k )

    so that steep and flat directions move alike; a is then a length, as in RMSprop, and not a length squared. Their
    V_0 = 0 makes the first steps 1 / sqrt(1 - b) times as long. Their drift term Gamma, the sum of dG/dx, is left out:
    the limit is right where 1 / (1 - b) steps are many times what a chain takes to forget where it was.

    Arguments:
        log_density: x (N, ...) -> (N,), such as `lambda x: log_density(model(x))`; a row depends on no other.
        x0: (N, ...) floating point, one chain a row; it is left as it is. N may be 0.
        steps: K >= 0.
        step_size, noise_std: a and s, >= 0, on the scale of x. s = sqrt(2 a) is Langevin dynamics proper.
        generator: the source of the noise, torch's default one if None. On the CPU it gives the same noise on every
            device.
        clamp: (low, high) that every x_k is kept in.
        clip: largest absolute value of an element of the gradient, > 0.
        anneal: in (0, 1]. The step shrinks geometrically to `anneal` times its size at the last step, the noise with
            its square root.
        precondition: decay b in [0, 1); theirs is 0.99. None: plain SGLD.
        damping: > 0, what bounds G where the density is flat; of `precondition` alone.
        on_step: called with k = 1 .. K and x_k, to watch a chain.

    Returns:
        x_K, of the shape, dtype and device of x0, detached.

    Raises:
        EbmhybridError: arguments out of range, or a log density of another shape or without derivative.

    >>> g = torch.Generator().manual_seed(0)
    >>> x = sgld(lambda x: -x.square().sum(1) / 2, torch.zeros(4000, 2), 50, 0.2, 0.4**0.5, generator=g)
    >>> [round(float(v), 1) for v in x.var(0)]  # 1 / (1 - a / 2) for steps of a
    [1.1, 1.1]
    """
    check_settings(steps, step_size, noise_std, clamp=clamp, clip=clip, anneal=anneal)
    if precondition is not None:
        check_number("precondition", precondition, "lie in [0, 1)", lambda v: 0 <= v < 1)
    check_number("damping", damping, "be above 0 and finite", lambda v: 0 < v < math.inf)
    with torch.inference_mode(False):  # no gradient could be taken in it
        x, squares = start_of(x0), None
        for k in range(steps if len(x) else 0):
            factor = anneal ** (k / max(1, steps - 1))
            step: float | Tensor = factor * step_size
            noise = normal(x, math.sqrt(factor) * noise_std, generator)
            slope = slope_of(log_density, x)
            if precondition is not None:
                square = (slope if clip is None else slope.clamp(-clip, clip)).square()
                squares = square if squares is None else torch.lerp(square, squares, precondition)
                scale = 1 / (damping + squares.sqrt())
                step, noise = step * scale, scale.sqrt() * noise
            x = moved(x, slope, step, noise, clamp, clip)
            if on_step is not None:
                on_step(k + 1, x)
    return x


def start_of(x0: Tensor) -> Tensor:
    """A detached copy of the starts, or an EbmhybridError that says what came."""
    if not isinstance(x0, Tensor) or not x0.is_floating_point() or x0.dim() < 1:
        what = f"{x0.dtype} {tuple(x0.shape)}" if isinstance(x0, Tensor) else type(x0).__name__
        raise EbmhybridError(f"x0 must be floating point of shape (N, ...), got {what}")
    return x0.detach().clone()


def normal(like: Tensor, std: float, generator: torch.Generator | None) -> Tensor | float:
    """Noise of this standard deviation, drawn where the generator lives; a plain 0 needs none."""
    if std == 0:
        return 0.0
    device = like.device if generator is None else generator.device
    return std * torch.randn(like.shape, generator=generator, device=device, dtype=like.dtype).to(like.device)


def check_settings(
    steps: int,
    step_size: float,
    noise_std: float,
    *,
    clamp: Bounds | None = None,
    clip: float | None = None,
    anneal: float = 1.0,
) -> None:
    """An EbmhybridError that names what is out of range."""
    check_count("steps", steps)
    for name, value in (("step_size", step_size), ("noise_std", noise_std)):
        check_number(name, value, "be at least 0 and finite", lambda v: 0 <= v < math.inf)
    if clamp is not None:
        numbers = isinstance(clamp, Sequence) and len(clamp) == 2 and all(isinstance(v, Real) for v in clamp)
        if not (numbers and clamp[0] < clamp[1]):
            raise EbmhybridError(f"clamp must be (low, high) with low < high, got {clamp!r}")
    if clip is not None:
        check_number("clip", clip, "be above 0", lambda v: v > 0)
    check_number("anneal", anneal, "lie in (0, 1]", lambda v: 0 < v <= 1)


def check_count(name: str, value: int) -> None:
    """Whole numbers from 0 on, those of numpy too."""
    if not isinstance(value, Integral) or value < 0:
        raise EbmhybridError(f"{name} must be a whole number from 0 on, got {value!r}")


def check_number(name: str, value: float, where: str, fits: Callable[[float], bool]) -> None:
    if not isinstance(value, Real) or not fits(value):
        raise EbmhybridError(f"{name} must {where}, got {value!r}")
