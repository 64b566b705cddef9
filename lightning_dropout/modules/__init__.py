"""The LightningModules: :class:`Classifier` and :class:`Regressor` around any net, and a learning-rate schedule."""

from lightning_dropout.modules.classifier import Classifier
from lightning_dropout.modules.learning_rate import warmup_cosine
from lightning_dropout.modules.regressor import Regressor

__all__ = ["Classifier", "Regressor", "warmup_cosine"]
