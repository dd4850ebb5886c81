"""Where the time of a training step goes: phases, kinds of operators, the longest operators, waits for the device.

    python -m benchmarks.profile_step --recipe digits_hdge
    python -m benchmarks.profile_step --recipe cifar10_wrn28 --set data.train=shapes model.depth=16 model.width=4

Two runs of the engine's own `train_step` on the recipe's data: a plain one, whose phases are timed, and one under
torch's profiler, which slows it down but tells the operators. A phase here waits for the device at its end. The two
tables need not agree: the kinds are of operators, wherever they ran.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from itertools import chain, islice, repeat
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks import harness
from ebmhybrid import load_recipe
from ebmhybrid.data import batches
from ebmhybrid.training import classify, engine
from ebmhybrid.training.build import build_parts, load_data
from ebmhybrid.training.setup import Parts

# The first kind with a word in the operator's name; names are torch's, the same on every device.
KINDS = {
    "convolution": ("conv",),
    "norm layer": ("batch_norm", "layer_norm", "group_norm"),
    "activation": ("leaky_relu", "relu", "silu", "gelu", "softplus", "threshold"),
    "dropout": ("dropout", "bernoulli"),
    "optimiser": ("_fused_", "_foreach_", "Optimizer."),
    "matrix product": ("addmm", "aten::mm", "bmm", "linear"),
    "random numbers": ("normal_", "randn", "random_", "randint", "uniform_"),
    "copies and casts": ("copy_", "_to_copy", "clone", "contiguous", "fill_", "zero_"),
    "sums and softmaxes": ("sum", "mean", "logsumexp", "softmax", "nll_loss", "amax", "aminmax"),
}
WAIT = "aten::_local_scalar_dense"


def kind_of(operator: str) -> str:
    """The kind of an operator by its name.

    >>> kind_of("aten::mkldnn_convolution"), kind_of("aten::gather")
    ('convolution', 'other')
    """
    return next((kind for kind, words in KINDS.items() if any(word in operator for word in words)), "other")


@contextmanager
def phases(parts: Parts, forward: Callable[[Tensor], Tensor]) -> Iterator[tuple[Counter[str], Callable[..., Tensor]]]:
    """Seconds of each phase of the steps taken inside, and the forward function that has to be given to them."""
    spent: Counter[str] = Counter()

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            start = now(parts.device)
            result = function(*args, **kwargs)
            spent[name] += now(parts.device) - start
            return result

        return call

    with ExitStack() as stack:
        for name, owner, attribute in (
            ("augmentation", classify, "prepare"),
            ("loss", parts.objective, "forward"),
            ("backward", torch.Tensor, "backward"),
            ("optimiser", parts.optimizer, "step"),
        ):
            stack.enter_context(patch.object(owner, attribute, timed(name, getattr(owner, attribute))))
        yield spent, timed("forward", forward)


def now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def run(parts: Parts, forward: Callable[[Tensor], Tensor], steps: int) -> float:
    """Seconds of so many steps over the training set, begun again where it ends."""
    train, size = parts.splits.train.to(parts.device), parts.recipe.training.batch_size
    generator = torch.Generator().manual_seed(0)
    epochs = (batches(train.images, train.labels, size, generator=generator) for _ in repeat(None))
    start = now(parts.device)
    for batch in islice(chain.from_iterable(epochs), steps):
        engine.train_step(parts, forward, *batch)
    return now(parts.device) - start


def report_phases(parts: Parts, forward: Callable[[Tensor], Tensor], steps: int) -> None:
    with phases(parts, forward) as (spent, timed_forward):
        total = run(parts, timed_forward, steps)
    spent["rest"] = total - sum(spent.values())
    rows = [{"phase": name, "ms a step": 1e3 * s / steps, "%": 100 * s / total} for name, s in spent.most_common()]
    print(f"{1e3 * total / steps:.3g} ms a step\n\n{harness.markdown(rows)}\n")


def report_operators(parts: Parts, forward: Callable[[Tensor], Tensor], steps: int, top: int = 10) -> None:
    on_gpu = parts.device.type == "cuda"
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu
    with profile(activities=activities) as trace:
        run(parts, forward, steps)
    # On a GPU an operator has the time of its kernels, which are listed again under their own names.
    found = [event for event in trace.key_averages() if event.device_type == DeviceType.CPU]
    own = {event.key: event.self_device_time_total if on_gpu else event.self_cpu_time_total for event in found}
    total = sum(own.values())
    kinds: Counter[str] = Counter()
    for name, microseconds in own.items():
        kinds[kind_of(name)] += microseconds
    print(harness.markdown({"kind": name, "%": 100 * value / total} for name, value in kinds.most_common()), end="\n\n")
    calls = {event.key: event.count / steps for event in found}
    rows = [
        {"operator": name, "%": 100 * value / total, "calls a step": calls[name]}
        for name, value in Counter(own).most_common(top)
    ]
    print(f"{harness.markdown(rows)}\n\nwaits for a value ({WAIT}): {calls.get(WAIT, 0.0):.3g} a step")


def main(argv: list[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--recipe", default="digits_hdge")
    options.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", dest="changes")
    options.add_argument("--steps", type=int, default=10)
    options.add_argument("--threads", type=int, default=torch.get_num_threads())
    options.add_argument("--device", default="auto")
    args = options.parse_args(argv)
    torch.set_num_threads(args.threads)
    recipe = load_recipe(args.recipe, args.changes)
    device = engine.pick_device(args.device)
    splits = load_data(recipe, "data", download=False)
    parts = build_parts(recipe, splits, device)
    forward = torch.compile(parts.model) if recipe.training.compile else parts.model
    parts.model.train()
    run(parts, forward, 2)  # memory and kernels are chosen in the first steps
    print(f"{recipe.name} on {device}, {args.threads} threads, batches of {recipe.training.batch_size}\n")
    report_phases(parts, forward, args.steps)
    report_operators(parts, forward, args.steps)


if __name__ == "__main__":
    main()
