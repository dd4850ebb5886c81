"""The sampling phase of a JEM training step, ours against the released procedure, and where the factor comes from.

    python -m benchmarks.sgld                  # WRN-16-4 and WRN-28-10, some four minutes on two cores
    python -m benchmarks.sgld --nets 16-4      # the small net alone, part by part from ours to the released procedure

A phase draws a batch of chains from the replay buffer, moves them by K steps of SGLD on log p(x) and puts them back.
The released procedure (Grathwohl et al. 2020, their code) is written out: float32, contiguous, images in [-1, 1], a
buffer in the CPU's memory, and each step's graph kept until the next step's is there. Ours is the training's `Sampler`:
the buffer on the device, channels last, and bfloat16 under one autocast for all steps, so that weights are cast once.
Neither computes gradients of the parameters. Both run the same network, without norm layers as theirs, and a step takes
the same time whatever K is, so that a few steps are enough.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks import harness
from ebmhybrid.models import WideResNet
from ebmhybrid.sampling import ReplayBuffer, UniformStart
from ebmhybrid.schema import JEMTerm
from ebmhybrid.training.engine import pick_device
from ebmhybrid.training.sampler import Sampler

CLASSES, CAPACITY = 10, 10_000
STEP, NOISE, REINIT = 1.0, 0.01, 0.05  # theirs, for images in [-1, 1]
OURS = "ours: Sampler, bf16, channels last"
RELEASED = "released procedure"
LADDER: dict[str, tuple[torch.dtype, torch.memory_format]] = {
    "ours, bf16, contiguous": (torch.bfloat16, torch.contiguous_format),
    "ours, fp32, channels last": (torch.float32, torch.channels_last),
    "ours, fp32, contiguous": (torch.float32, torch.contiguous_format),
}


def network(net: str, device: torch.device, mean: float = 0.5, std: float = 0.5) -> WideResNet:
    """The same first weights for every rival."""
    torch.manual_seed(0)
    depth, width = map(int, net.split("-"))
    return WideResNet(depth, width, CLASSES, norm="none", mean=mean, std=std).to(device)


def our_phase(
    model: WideResNet,
    buffer: ReplayBuffer,
    batch: int,
    steps: int,
    precision: torch.dtype = torch.bfloat16,
    layout: torch.memory_format = torch.channels_last,
) -> Callable[[], Tensor]:
    """A call of the training's sampler on images in [0, 1]."""
    device = buffer.images.device
    model = model.to(memory_format=layout)
    term = JEMTerm(steps=steps, step_size=STEP / 4, noise_std=NOISE / 2, reinit=REINIT, clamp=False)
    sampler, labels = Sampler(term, buffer, layout), torch.zeros(batch, dtype=torch.int64, device=device)
    generator = torch.Generator(device).manual_seed(0)

    def phase() -> Tensor:
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            return sampler(model, model, labels, generator)

    return phase


def released_phase(model: WideResNet, images: Tensor, batch: int, steps: int) -> Callable[[], Tensor]:
    """A call of the released procedure on images in [-1, 1]; `images` is its buffer, in the CPU's memory."""
    device = model.head.weight.device

    def phase() -> Tensor:
        model.eval()
        slots = torch.randint(0, len(images), (batch,))
        fresh = torch.empty(batch, *images.shape[1:]).uniform_(-1, 1)
        choose = (torch.rand(batch) < REINIT).float()[:, None, None, None]
        x = (choose * fresh + (1 - choose) * images[slots]).to(device).requires_grad_()
        for _ in range(steps):
            slope = torch.autograd.grad(model(x).logsumexp(1).sum(), [x], retain_graph=True)[0]
            x.data += STEP * slope + NOISE * torch.randn_like(x)
        model.train()
        samples = x.detach()
        images[slots] = samples.cpu()
        return samples

    return phase


def rivals(
    net: str, batch: int, steps: int, capacity: int, size: int, ladder: bool, device: torch.device
) -> dict[str, Callable[[], Tensor]]:
    """Every rival with a network and a buffer of its own."""

    def ours(*settings: Any) -> Callable[[], Tensor]:
        buffer = ReplayBuffer(capacity, UniformStart((3, size, size)), num_classes=CLASSES, pooled=True).to(device)
        return our_phase(network(net, device), buffer, batch, steps, *settings)

    calls = {OURS: ours()}
    if ladder:
        calls |= {name: ours(*settings) for name, settings in LADDER.items()}
    images = 2 * torch.rand(capacity, 3, size, size) - 1
    return calls | {RELEASED: released_phase(network(net, device, 0.0, 1.0), images, batch, steps)}


def speed(times: dict[str, list[float]], work: int) -> dict[str, dict[str, float]]:
    """One image moved by one step counts as one image."""
    return {name: {"images/s": work / statistics.median(seconds)} for name, seconds in times.items()}


def main(argv: list[str] | None = None) -> None:
    options = harness.parser(__doc__, repeats=5, threads=torch.get_num_threads())
    options.add_argument("--nets", nargs="+", default=["16-4", "28-10"], metavar="DEPTH-WIDTH")
    options.add_argument("--batch", type=harness.positive, default=64)
    options.add_argument("--steps", type=harness.positive, default=2, help="K (default: %(default)s)")
    options.add_argument("--device", default="auto", help="auto, cpu, cuda ... (default: %(default)s)")
    args = harness.parse(options, argv)
    nets, batch, capacity, size = args.nets, args.batch, CAPACITY, 32
    if args.quick:
        nets, batch, capacity, size = ["10-1"], 4, 20, 8

    report = harness.Report("sgld", "The sampling phase of a JEM training step", args)
    work = batch * args.steps
    for net in nets:
        calls = rivals(net, batch, args.steps, capacity, size, net != "28-10", pick_device(args.device))
        times = harness.in_turn(calls, args.repeats)
        report.add("phase", {"net": f"WRN-{net}", "batch": batch, "K": args.steps}, times, OURS, speed(times, work))
        del calls  # the next net needs the memory
    report.say("### Phases of K SGLD steps, in images moved by one step a second, and the parts of the difference")
    report.table("phase")
    report.write()


if __name__ == "__main__":
    main()
