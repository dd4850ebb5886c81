"""Objectives: in each module the pure functions come first and a thin Module that holds their state second."""

from ebmhybrid.losses.bank import Bank
from ebmhybrid.losses.contrastive import class_scores, contrastive_loss
from ebmhybrid.losses.hdge import HDGELoss

__all__ = ["Bank", "HDGELoss", "class_scores", "contrastive_loss"]
