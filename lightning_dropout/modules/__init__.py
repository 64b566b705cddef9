"""The LightningModules :class:`Classifier` and :class:`Regressor` around any net; a learning-rate schedule; FSDP."""

from lightning_dropout.modules.classifier import Classifier
from lightning_dropout.modules.fully_sharded import FullyShardedStrategy
from lightning_dropout.modules.learning_rate import warmup_cosine
from lightning_dropout.modules.regressor import Regressor

__all__ = ["Classifier", "FullyShardedStrategy", "Regressor", "warmup_cosine"]
