"""Samples from a log density: Langevin dynamics, where its chains start, and the buffer that keeps them."""

from ebmhybrid.sampling.buffer import ReplayBuffer
from ebmhybrid.sampling.langevin import Bounds, LogDensity, langevin_step, sgld
from ebmhybrid.sampling.proximal import proximal_sgld
from ebmhybrid.sampling.starts import GaussianStart, UniformStart

__all__ = [
    "Bounds",
    "GaussianStart",
    "LogDensity",
    "ReplayBuffer",
    "UniformStart",
    "langevin_step",
    "proximal_sgld",
    "sgld",
]
