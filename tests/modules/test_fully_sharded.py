"""Which parts are sharded, and the strategy; real processes are in tests/distributed."""

from typing import Any

import pytest
import torch
from torch import nn

from lightning_dropout.models import MLP, ResNet, ViT
from lightning_dropout.modules import Classifier, FullyShardedStrategy
from lightning_dropout.modules.fully_sharded import blocks_of, shard


@pytest.mark.parametrize(
    ("net", "expected"),
    [
        (ViT((1, 8, 8), 10, preset="digits", depth=3), ["EncoderBlock"] * 3),
        (MLP((4,), 3, dim=8, depth=2), ["ResidualBlock"] * 2),
        (nn.Sequential(nn.Linear(2, 2), nn.ReLU()), ["Linear"]),
        (nn.Linear(2, 2), []),
    ],
)
def test_blocks_are_the_entries_of_the_outermost_containers(net: nn.Module, expected: list[str]) -> None:
    assert [type(block).__name__ for block in blocks_of(net)] == expected


def test_stages_are_looked_into_and_blocks_are_not() -> None:
    stages = nn.Sequential(*(nn.Sequential(nn.Conv2d(1, 1, 1), ResNet((3, 8, 8), 2)) for _ in range(2)))
    assert [type(block).__name__ for block in blocks_of(nn.ModuleDict({"stages": stages}))] == ["Conv2d", "ResNet"] * 2


@pytest.mark.filterwarnings("ignore")
def test_sharding_twice_changes_nothing() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor

    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1, 1), mesh_dim_names=("data_parallel", "tensor_parallel"))
        block = nn.Linear(2, 2)
        net = nn.Sequential(block, nn.ReLU(), nn.ModuleDict({"again": nn.Sequential(block)}), nn.BatchNorm1d(2))
        shard(net, mesh)
        states = [module for module in net.modules() if isinstance(module, FSDPModule)]
        assert {type(state).__name__ for state in states} == {"FSDPSequential", "FSDPLinear", "FSDPBatchNorm1d"}
        assert all(isinstance(weight, DTensor) for weight in net.parameters())
        weights = list(net.parameters())
        shard(net, mesh)
        assert all(one is other for one, other in zip(weights, net.parameters(), strict=True))
    finally:
        torch.distributed.destroy_process_group()


def test_without_a_mesh_nothing_is_sharded() -> None:
    module = Classifier(nn.Sequential(nn.Linear(2, 2)), num_classes=2)
    kinds = [type(part) for part in module.modules()]
    module.configure_model()
    assert [type(part) for part in module.modules()] == kinds


def test_all_processes_are_one_group_of_data(monkeypatch: pytest.MonkeyPatch) -> None:
    strategy: Any = FullyShardedStrategy()
    strategy.num_nodes, strategy.parallel_devices = 3, [torch.device("cpu")] * 2
    monkeypatch.setattr(FullyShardedStrategy.__base__, "setup_environment", lambda self: None)
    strategy.setup_environment()
    assert (strategy._data_parallel_size, strategy._tensor_parallel_size) == (6, 1)


@pytest.mark.parametrize("timeout", [0, -1.0, float("nan")])
def test_a_timeout_is_above_zero(timeout: float) -> None:
    with pytest.raises(ValueError, match="Expected `timeout` to be seconds above 0, but got"):
        FullyShardedStrategy(timeout)
