"""What the metrics of an order share: every sample's score and yes or no are kept, and a reason is given for a NaN.

No formula of a metric stands here. The order of all samples cannot be had from sums: memory grows with the samples.
"""

from typing import Any

import torch
from torch import Tensor

from lightning_dropout.metrics.exact_metric import ExactMetric, check_shapes

__all__ = ["RankedMetric"]


class RankedMetric(ExactMetric):
    """Base of the metrics that compare the scores of samples; subclasses add ``update`` and ``_value``.

    Nine bytes are kept per sample. The result is NaN, with the reason as a warning, where it is not defined: without
    samples, and where a score is NaN, which has no rank.

    Args:
        kwargs: Of ``torchmetrics.Metric``.
    """

    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._add_kept("scores")
        self._add_kept("flags", torch.bool)

    def compute(self) -> Tensor:
        """Return the value of all samples so far, float32; NaN, and a warning that says why, if there is none."""
        scores, flags = self._kept("scores"), self._kept("flags")
        reason = self._why_undefined(scores, flags)
        return self._value(scores, flags).float() if reason is None else self._undefined(reason)

    def why_undefined(self) -> str | None:
        """Return why the value of all samples so far is NaN; None if it is not. Every rank calls it."""
        with self._over_ranks():
            return self._why_undefined(self._kept("scores"), self._kept("flags"))

    def _why_undefined(self, scores: Tensor, flags: Tensor) -> str | None:
        if len(scores) == 0:
            return "there are no samples"
        nans = int(scores.isnan().sum())
        return f"{nans} of {len(scores)} scores are NaN, which have no rank" if nans else None

    def _value(self, scores: Tensor, flags: Tensor) -> Tensor:
        raise NotImplementedError

    def _take(self, **pair: Tensor) -> None:
        """Check and keep the scores and the flags, which are named as the user knows them."""
        (score, scores), (flag, flags) = pair.items()
        if not scores.is_floating_point():
            raise ValueError(f"Expected `{score}` to be of a floating dtype, but got {scores.dtype}.")
        check_shapes(**pair)

        def check(flags: Tensor) -> None:
            wrong = flags[(flags != 0) & (flags != 1)]
            if wrong.numel():
                raise ValueError(
                    f"Expected `{flag}` to be a yes or no, 1 or 0, for each sample, but got {wrong[0].item()}."
                )

        self._check_first(check, flags)
        self._keep("scores", scores)
        self._keep("flags", flags)
