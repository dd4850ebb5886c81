"""One training step, ours against the released procedure, and where the factor comes from.

    python -m benchmarks.train_step                  # WRN-16-4 and WRN-28-10, some four minutes on two cores
    python -m benchmarks.train_step --nets 16-4      # the small net alone, part by part from the released step to ours

The released procedure (Liu & Abbeel 2020, their code): float32, contiguous, two forward passes of the batch, one for
the cross-entropy and one for the contrast, the literal N x C x K loss on a queue of K logit vectors, torch's dropout,
no activation in place, and SGD that updates one parameter at a time. It trains the same network on the same sizes, and
gets its images ready-made: their code augments image by image in worker processes, which is timed apart. Ours is the
engine's `train_step`, augmentation included.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import harness
from benchmarks.loss import literal
from ebmhybrid import HDGELoss, load_recipe
from ebmhybrid.data import ImageSet, Splits, augment
from ebmhybrid.training.build import build_parts
from ebmhybrid.training.engine import pick_device, train_step
from ebmhybrid.training.setup import Parts

CLASSES = 10
OURS = "ours: train_step of cifar10_wrn28"
RELEASED = "released procedure"
LADDER: dict[str, list[str]] = {
    "ours, bf16, contiguous": ["training.precision=bf16", "training.channels_last=false"],
    "ours, fp32, channels last": ["training.precision=fp32"],
    "ours, fp32, contiguous": ["training.precision=fp32", "training.channels_last=false"],
}


def build(net: str, bank: int, batch: int, overrides: list[str], images: ImageSet, device: torch.device) -> Parts:
    """The parts of cifar10_wrn28 for another net, without a download: the images stand in for CIFAR-10's."""
    depth, width = net.split("-")
    changes = [f"model.depth={depth}", f"model.width={width}", f"training.batch_size={batch}"]
    changes += [f"objective.hdge.bank_size={bank}", f"model.dropout={0.3 if net == '28-10' else 0.0}"]
    recipe = load_recipe("cifar10_wrn28", [*changes, *overrides])
    parts = build_parts(recipe, Splits(images, images, images), device)
    parts.model.train()
    return parts


def our_step(parts: Parts, images: Tensor, labels: Tensor) -> Callable[[], Tensor]:
    """A call of the engine's step on one batch of [0, 1] images."""
    return lambda: train_step(parts, parts.model, images, labels)[0]


class Queue:
    """The released contrast: K raw logit vectors, the literal loss, and the batch put in the place of the oldest."""

    def __init__(self, size: int, device: torch.device) -> None:
        self.vectors, self.pointer = torch.randn(size, CLASSES, device=device), 0

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        loss = literal(logits, labels, self.vectors)
        self.vectors[self.pointer : self.pointer + len(logits)] = logits.detach()
        self.pointer = (self.pointer + len(logits)) % len(self.vectors)
        return loss


def as_released(model: nn.Module) -> nn.Module:
    """The same network with torch's own dropout, and activations that keep their inputs, as in the released code."""
    for module in list(model.modules()):
        if hasattr(module, "in_place"):
            module.in_place = False
        if isinstance(getattr(module, "dropout", None), nn.Dropout):
            module.dropout = nn.Dropout(module.dropout.p)
    return model


def released_step(
    parts: Parts, contrast: Callable[[Tensor, Tensor], Tensor], images: Tensor, labels: Tensor
) -> Callable[[], Tensor]:
    """A call of the released procedure's step on a batch that is augmented already."""
    model = as_released(parts.model)
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}
    optimizer = torch.optim.SGD(model.parameters(), **options, foreach=False, fused=False)

    def step() -> Tensor:
        loss = F.cross_entropy(model(images), labels) + contrast(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def rivals(
    net: str, batch: int, bank: int, images: ImageSet, ladder: bool, device: torch.device
) -> dict[str, Callable[[], Tensor]]:
    """Every rival on a network of its own, all with the same first weights."""
    x, y = images.images[:batch].to(device).float() / 255, images.labels[:batch].to(device)

    def built(*overrides: str) -> Parts:
        return build(net, bank, batch, list(overrides), images, device)

    plain = ("training.precision=fp32", "training.channels_last=false")
    calls = {OURS: our_step(built(), x, y)}
    if ladder:
        calls |= {name: our_step(built(*overrides), x, y) for name, overrides in LADDER.items()}
        ring = HDGELoss(CLASSES, bank_size=bank, ce_weight=0.0).to(device)
        calls["released procedure, ring loss"] = released_step(built(*plain), ring, x, y)
    return calls | {RELEASED: released_step(built(*plain), Queue(bank, device), x, y)}


def augmentation(report: harness.Report, images: ImageSet, batch: int) -> None:
    """Their augmentation, one image at a time, against ours of the whole batch; only ours is part of a step above."""
    from torchvision import transforms as T

    size = images.shape[1]
    theirs = T.Compose(
        [
            T.Pad(4, padding_mode="reflect"),
            T.RandomCrop(size),
            T.RandomHorizontalFlip(),
            T.ToTensor(),
            T.Normalize((0.5,) * 3, (0.5,) * 3),
            lambda image: image + 0.03 * torch.randn_like(image),
        ]
    )
    pictures = [T.functional.to_pil_image(image) for image in images.images[:batch]]
    x = images.images[:batch].float() / 255
    calls = {
        "ours: one batch": lambda: augment(x, pad=4, flip=True, noise_std=0.015),
        "released: torchvision, image by image": lambda: torch.stack([theirs(picture) for picture in pictures]),
    }
    times = harness.in_turn(calls, report.args.repeats)
    report.add("augmentation", {"batch": batch}, times, "ours: one batch", speed(times, batch))
    report.say("### Augmentation of a batch: pad, crop, flip, noise")
    report.table("augmentation")


def speed(times: dict[str, list[float]], batch: int) -> dict[str, dict[str, float]]:
    return {name: {"images/s": batch / statistics.median(seconds)} for name, seconds in times.items()}


def main(argv: list[str] | None = None) -> None:
    options = harness.parser(__doc__, repeats=5, threads=torch.get_num_threads())
    options.add_argument("--nets", nargs="+", default=["16-4", "28-10"], metavar="DEPTH-WIDTH")
    options.add_argument("--batch", type=int, default=64)
    options.add_argument("--device", default="auto", help="auto, cpu, cuda ... (default: %(default)s)")
    args = harness.parse(options, argv)
    nets, batch, bank, size = args.nets, args.batch, 65536, 32
    if args.quick:
        nets, batch, bank, size = ["10-1"], 4, 64, 8
    torch.manual_seed(0)
    pixels = torch.randint(256, (2 * batch, 3, size, size), dtype=torch.uint8)
    classes = tuple(str(label) for label in range(CLASSES))
    images = ImageSet("random", pixels, torch.randint(CLASSES, (2 * batch,)), classes)

    report = harness.Report("train_step", "One training step", args)
    for net in nets:
        calls = rivals(net, batch, bank, images, ladder=net != "28-10", device=pick_device(args.device))
        times = harness.in_turn(calls, args.repeats)
        report.add("step", {"net": f"WRN-{net}", "batch": batch}, times, OURS, speed(times, batch))
        del calls  # the next net needs the memory
    report.say(f"### Steps at K = {bank}, and the parts that make the difference")
    report.table("step")
    augmentation(report, images, batch)
    report.write()


if __name__ == "__main__":
    main()
