"""Objectives: in each module the pure functions come first and a thin Module that holds their state second."""

from ebmhybrid.losses.bank import Bank
from ebmhybrid.losses.baselines import (
    LogitNormLoss,
    ProjectionHead,
    SupConLoss,
    energy_margin_loss,
    logit_norm_loss,
    outlier_exposure_loss,
    supcon_loss,
)
from ebmhybrid.losses.contrastive import class_scores, contrastive_loss
from ebmhybrid.losses.hdge import HDGELoss
from ebmhybrid.losses.jem import jem_log_density, jem_loss

__all__ = [
    "Bank",
    "HDGELoss",
    "LogitNormLoss",
    "ProjectionHead",
    "SupConLoss",
    "class_scores",
    "contrastive_loss",
    "energy_margin_loss",
    "jem_log_density",
    "jem_loss",
    "logit_norm_loss",
    "outlier_exposure_loss",
    "supcon_loss",
]
