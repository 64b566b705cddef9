"""Fully sharded training (FSDP2): the strategy, and which parts of a net hold their weights together.

One strategy for GPUs and, over gloo, for the CPU, where it can be tried out. Checkpoints are single files, as of any
other strategy, so they can be evaluated, or gone on from, on any number of processes.
"""

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn

__all__ = ["FullyShardedStrategy", "blocks_of", "shard"]

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


class FullyShardedStrategy(ModelParallelStrategy):
    """Lightning's ``ModelParallelStrategy`` with all processes, of all nodes, in one group of data.

    By default that strategy splits layers over the GPUs of a node, and can be told otherwise with numbers only that
    follow from the trainer. The module shards itself in ``configure_model``; :class:`Classifier` and :class:`Regressor`
    do.

    Args:
        timeout: Seconds after which a process that waits for the others in vain ends with an error, above 0.

    Raises:
        ValueError: If ``timeout`` is not above 0.

    Source:
        Zhao et al., "PyTorch FSDP" (2023), arXiv:2304.11277; here per parameter (``fully_shard``).

    Example:
        >>> FullyShardedStrategy(timeout=600.0)._timeout
        datetime.timedelta(seconds=600)
    """

    def __init__(self, timeout: float = 1800.0) -> None:
        if not timeout > 0:
            raise ValueError(f"Expected `timeout` to be seconds above 0, but got {timeout!r}; the default is 1800.")
        super().__init__(save_distributed_checkpoint=False, timeout=timedelta(seconds=timeout))

    def setup_environment(self) -> None:
        self._data_parallel_size, self._tensor_parallel_size = self.num_nodes * self.num_processes, 1
        super().setup_environment()


def blocks_of(net: nn.Module) -> Iterator[nn.Module]:
    """Yield the parts of ``net`` that are gathered and freed one by one: the entries of its outermost containers.

    Containers are ``Sequential``, ``ModuleList`` and ``ModuleDict``; one within another is looked into (stages of
    blocks). Entries without parameters are left out.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)))
        >>> list(blocks_of(net))
        [Linear(in_features=2, out_features=2, bias=True), Linear(in_features=2, out_features=3, bias=True), ...]
    """
    for child in net.children():
        if isinstance(net, _CONTAINERS) and not isinstance(child, _CONTAINERS):
            if any(True for _ in child.parameters()):
                yield child
        else:
            yield from blocks_of(child)


def shard(net: nn.Module, mesh: Any) -> None:
    """Shard the blocks of ``net`` and then what is left of it, in place; a net that is sharded already stays as it is.

    Each part is gathered when it is called, so containers whose entries are used without a call do not work.

    Args:
        net: Every process has the same weights in it.
        mesh: The device mesh of a Lightning strategy.
    """
    from torch.distributed.fsdp import FSDPModule, fully_shard

    if not isinstance(net, FSDPModule):
        for part in (*blocks_of(net), net):
            if not isinstance(part, FSDPModule):  # one block in several places
                fully_shard(part, mesh=mesh["data_parallel"])
