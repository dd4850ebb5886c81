"""Training: a recipe in, a run directory out."""

from ebmhybrid.training.checkpoint import load_model
from ebmhybrid.training.engine import Run, train

__all__ = ["Run", "load_model", "train"]
