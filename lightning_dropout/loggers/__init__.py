"""Loggers for Lightning trainers. Importing this room imports no wandb: that happens when a run starts."""

from lightning_dropout.loggers.csv import ResumableCSVLogger
from lightning_dropout.loggers.fail_safe import FailSafeWandbLogger
from lightning_dropout.loggers.wandb import wandb_logger
from lightning_dropout.loggers.wandb_process import finish_wandb
from lightning_dropout.loggers.workspace import save_workspace

__all__ = ["FailSafeWandbLogger", "ResumableCSVLogger", "finish_wandb", "save_workspace", "wandb_logger"]
