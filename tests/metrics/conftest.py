"""Predictions for the metric tests, and a stand-in for the exchange between ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torchmetrics import Metric


def _draw(task: str, n: int = 500, classes: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    if task == "multiclass":
        probabilities = (2 * torch.randn(n, classes, generator=generator, dtype=torch.float64)).softmax(1)
        return probabilities, torch.randint(classes, (n,), generator=generator)
    shape = (n,) if task == "binary" else (n, classes)
    probabilities = (2 * torch.randn(shape, generator=generator, dtype=torch.float64)).sigmoid()
    return probabilities, torch.randint(2, shape, generator=generator)


@pytest.fixture
def draw() -> Callable[..., tuple[Tensor, Tensor]]:
    """Draw float64 probabilities and unrelated targets: ``draw(task, n, classes, seed)``."""
    return _draw


@pytest.fixture
def as_ranks() -> Callable[[list[Metric]], list[Metric]]:
    """Make metrics believe that each lives on its own rank of one process group."""

    def connect(metrics: list[Metric]) -> list[Metric]:
        def states(metric: Metric) -> dict[str, Tensor]:
            kept = {name for name, state in metric.metric_state.items() if isinstance(state, list)}
            return {name: metric._kept(name) if name in kept else state for name, state in metric.metric_state.items()}

        def gather_for(rank: int) -> Callable[[Tensor, Any], list[Tensor]]:
            local = [states(metric) for metric in metrics]
            names = iter(())

            def gather(tensor: Tensor, group: Any = None) -> list[Tensor]:
                # torchmetrics gathers the states one after another, in the order of their registration
                nonlocal names
                name = next(names, None)
                if name is None:
                    names = iter(local[rank])
                    name = next(names)
                own = local[rank][name]
                assert (tensor.dtype, tensor.shape) == (own.dtype, own.shape)  # what real ranks must have in common
                assert torch.equal(tensor, own)
                return [state[name] for state in local]

            return gather

        for rank, metric in enumerate(metrics):
            metric.distributed_available_fn = lambda: True
            metric.dist_sync_fn = gather_for(rank)
        return metrics

    return connect
