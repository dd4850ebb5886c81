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
from ebmhybrid.losses.code_contrast import contrastive_log_prob, infonce_log_prob
from ebmhybrid.losses.contrastive import class_scores, contrastive_loss
from ebmhybrid.losses.gcrl import gcrl_loss
from ebmhybrid.losses.hdge import HDGELoss
from ebmhybrid.losses.jem import jem_log_density, jem_loss
from ebmhybrid.losses.mim import (
    cmim_loss,
    cvae_loss,
    infonce_loss,
    infonce_mim_loss,
    mim_loss,
    vae_loss,
)
from ebmhybrid.losses.nce import NCELoss, nce_loss

__all__ = [
    "Bank",
    "HDGELoss",
    "LogitNormLoss",
    "NCELoss",
    "ProjectionHead",
    "SupConLoss",
    "class_scores",
    "cmim_loss",
    "contrastive_log_prob",
    "contrastive_loss",
    "cvae_loss",
    "energy_margin_loss",
    "gcrl_loss",
    "infonce_log_prob",
    "infonce_loss",
    "infonce_mim_loss",
    "jem_log_density",
    "jem_loss",
    "logit_norm_loss",
    "mim_loss",
    "nce_loss",
    "outlier_exposure_loss",
    "supcon_loss",
    "vae_loss",
]
