"""The little of Lightning that serves without a Trainer: who speaks, how processes began, whose random numbers."""

from lightning.fabric.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from lightning.pytorch.utilities.seed import isolate_rng

__all__ = [
    "LightningEnvironment",
    "SLURMEnvironment",
    "TorchElasticEnvironment",
    "isolate_rng",
    "rank_zero_info",
    "rank_zero_only",
]
