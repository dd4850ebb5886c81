"""The row kernel, the hybrid loss and the linear energy, each against the obvious torch code, forward and backward.

    python -m benchmarks.kernel                  # a minute on one core; on a GPU larger shapes too
    python -m benchmarks.kernel --no-compile     # without the torch.compile row, whose compiling takes the longest
    python -m benchmarks.kernel --device cpu

First table: log-sum-exp, label's logit, sum and sum of squares of each row of logits, with a gradient through all four.
Second: the whole of `HDGELoss` in three settings. Third: `linear_energy`, which never makes the N x C logits. Values
and gradients must agree before anything is timed. On a GPU times are CUDA events with a cold cache (Triton's do_bench),
and a column says what share of a large copy's bandwidth one read forward and one read and one write backward make.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import harness
from ebmhybrid import HDGELoss, kernels
from ebmhybrid.kernels import operator, reference

OURS = "auto (ebmhybrid)"
SHAPES = [(64, 10), (128, 100), (512, 1000), (256, 21841)]
GPU_SHAPES = [(8192, 1000), (8192, 32768), (4096, 128256)]
LOSS_SHAPES = [(64, 10), (128, 100), (512, 1000)]
QUEUE = 4096
Function = Callable[[], Sequence[Tensor]]


def obvious(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    """What one writes without a kernel."""
    return x.logsumexp(1), x.gather(1, y[:, None]).squeeze(1), x.sum(1), (x * x).sum(1)


def with_gradient(function: Function, inputs: Sequence[Tensor]) -> Callable[[], tuple[Tensor, ...]]:
    """A call that runs forward and backward, with a gradient of 1/N through every output."""

    def call() -> tuple[Tensor, ...]:
        outputs = list(function())
        return torch.autograd.grad(outputs, inputs, [torch.full_like(out, 1 / max(1, out.numel())) for out in outputs])

    return call


def agree(functions: dict[str, Function], inputs: Sequence[Tensor]) -> None:
    """Every rival gives the values and gradients of the first."""
    expected = None
    for name, function in functions.items():
        values, gradients = [out.detach() for out in function()], with_gradient(function, inputs)()
        expected = expected or (values, gradients)
        # A sum of 20,000 logits that nearly cancel keeps few digits.
        torch.testing.assert_close(values, expected[0], rtol=1e-4, atol=1e-3, msg=f"{name}: other values")
        torch.testing.assert_close(gradients, expected[1], rtol=1e-3, atol=1e-6, msg=f"{name}: another gradient")


def timed(functions: dict[str, Function], inputs: Sequence[Tensor], args: argparse.Namespace) -> dict[str, list[float]]:
    agree(functions, inputs)
    calls = {name: with_gradient(function, inputs) for name, function in functions.items()}
    timer = gpu_seconds if args.device == "cuda" else harness.stopwatch
    return harness.in_turn(calls, args.repeats, timer=timer)


def gpu_seconds(call: harness.Call) -> float:
    from triton.testing import do_bench

    return 1e-3 * do_bench(call, warmup=5, rep=30, return_mode="median")


def copy_bandwidth() -> float:
    """Bytes a second, read and written, of copying a gigabyte on the GPU."""
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / gpu_seconds(lambda: target.copy_(source))


def compiled(x: Tensor, y: Tensor, report: harness.Report) -> Function | None:
    """torch.compile of the obvious code, compiled already; None with a note where there is no compiler."""
    torch._dynamo.reset()  # after eight shapes of one function it would quietly stay uncompiled
    function = torch.compile(obvious, dynamic=False)
    try:
        with_gradient(lambda: function(x, y), [x])()
    except Exception as error:  # inductor fails in as many ways as there are compilers
        report.say(f"torch.compile cannot be used here ({type(error).__name__}): its row is left out.")
        return None
    return lambda: function(x, y)


def rows(report: harness.Report, shapes: list[tuple[int, int]], compiling: bool) -> None:
    """The first table."""
    args = report.args
    bandwidth = copy_bandwidth() if args.device == "cuda" else None
    for n, classes in shapes:
        x = torch.randn(n, classes, device=args.device).requires_grad_()
        y = torch.randint(classes, (n,), device=args.device)
        functions: dict[str, Function] = {
            OURS: lambda x=x, y=y: kernels.row_stats(x, y),
            "composite": lambda x=x, y=y: reference.row_stats(x, y, 1.0),
            "operator": lambda x=x, y=y: operator.row_stats(x, y, 1.0),
            "eager": lambda x=x, y=y: obvious(x, y),
        }
        fused = compiled(x, y, report) if compiling else None
        compiling = fused is not None
        if fused:
            functions["torch.compile"] = fused
        times = timed(functions, [x], args)
        more = {name: {"copy bandwidth %": share(x, seconds, bandwidth)} for name, seconds in times.items()}
        report.add("rows", {"N": n, "C": classes}, times, OURS, more if bandwidth else None)
    report.say("### Row statistics")
    report.table("rows")


def share(x: Tensor, seconds: list[float], bandwidth: float | None) -> float | None:
    """Percent of the copy's bandwidth that the least traffic makes: two reads and one write of the logits."""
    return 100 * 3 * x.nbytes / min(seconds) / bandwidth if bandwidth else None


def released_scores(x: Tensor) -> Tensor:
    return torch.log(torch.exp(F.normalize(x, dim=1)) + (x.shape[1] - 1)) / 0.1


def settings(x: Tensor, y: Tensor) -> dict[str, dict[str, Function]]:
    """setting -> rival -> the hybrid loss; the bank and the queue begin with the same vectors."""
    classes = x.shape[1]
    positive = y[:, None]
    queue, pointer = torch.randn(QUEUE, classes, device=x.device), 0
    still, moving = (HDGELoss(classes, bank_size=QUEUE).to(x.device) for _ in range(2))
    paper = HDGELoss(classes, form="paper", negatives="batch", normalize="none", temperature=1.0)
    for loss in (still, moving):
        loss.fill_bank(queue)
    still.eval()
    log_sums = still.bank.log_sum() + math.log(classes) / 0.1  # our scores leave out the constant log C / T

    def from_sums() -> list[Tensor]:
        own = released_scores(x).gather(1, positive).squeeze(1)
        return [F.cross_entropy(x, y) + F.softplus(log_sums[y] - own).mean()]

    def from_queue() -> list[Tensor]:
        nonlocal pointer
        own = released_scores(x).gather(1, positive).squeeze(1)
        loss = F.cross_entropy(x, y) + F.softplus(released_scores(queue).logsumexp(0)[y] - own).mean()
        queue[pointer : pointer + len(x)] = x.detach()
        pointer = (pointer + len(x)) % QUEUE
        return [loss]

    def from_batch() -> list[Tensor]:
        return [F.cross_entropy(x, y) + (x.logsumexp(0)[y] - x.gather(1, positive).squeeze(1)).mean()]

    return {
        "released, bank as it is": {"HDGELoss": lambda: [still(x, y)], "eager": from_sums},
        f"released, K = {QUEUE}": {"HDGELoss": lambda: [moving(x, y)], "eager": from_queue},
        "paper, live": {"HDGELoss": lambda: [paper(x, y)], "eager": from_batch},
    }


def losses(report: harness.Report, shapes: list[tuple[int, int]]) -> None:
    """The second table."""
    for n, classes in shapes:
        x = torch.randn(n, classes, device=report.args.device).requires_grad_()
        y = torch.randint(classes, (n,), device=report.args.device)
        for setting, functions in settings(x, y).items():
            report.add(
                "losses", {"setting": setting, "N": n, "C": classes}, timed(functions, [x], report.args), "HDGELoss"
            )
    report.say("### The hybrid loss")
    report.table("losses")


def linear(report: harness.Report, n: int, width: int, classes: int) -> None:
    """The third table."""
    device = report.args.device
    features = torch.randn(n, width, device=device).requires_grad_()
    weight = (torch.randn(classes, width, device=device) / math.sqrt(width)).requires_grad_()
    y = torch.randint(classes, (n,), device=device)

    def whole() -> list[Tensor]:
        logits = F.linear(features, weight)
        return [logits.logsumexp(1), logits.gather(1, y[:, None]).squeeze(1)]

    functions: dict[str, Function] = {
        "linear_energy": lambda: kernels.linear_energy(features, weight, targets=y),
        "F.linear, logsumexp, gather": whole,
    }
    times = timed(functions, [features, weight], report.args)
    calls = {name: with_gradient(function, [features, weight]) for name, function in functions.items()}
    more = {name: {"peak MB": harness.peak_bytes(call, device) / 1e6} for name, call in calls.items()}
    report.add("linear", {"N": n, "D": width, "C": classes}, times, "linear_energy", more)
    report.say(f"### The linear energy; its peak includes the weight's gradient of {weight.nbytes / 1e6:.3g} MB")
    report.table("linear")


def main(argv: list[str] | None = None) -> None:
    on_gpu = torch.cuda.is_available()
    options = harness.parser(__doc__, repeats=25, threads=1)
    options.add_argument("--device", default="cuda" if on_gpu else "cpu", choices=("cpu", "cuda"))
    options.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    args = harness.parse(options, argv)
    torch.manual_seed(0)
    report = harness.Report("kernel", "Row kernel, hybrid loss and linear energy, forward and backward", args)
    shapes = [(4, 3), (2, 40)] if args.quick else SHAPES + (GPU_SHAPES if args.device == "cuda" else [])
    rows(report, shapes, compiling=not (args.quick or args.no_compile))
    losses(report, [(8, 5)] if args.quick else LOSS_SHAPES)
    linear(report, *(4, 3, 50) if args.quick else (128, 256, 21841))
    report.write()


if __name__ == "__main__":
    main()
