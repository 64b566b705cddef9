"""The audit of the first training forward that drops: what it says, what it leaves behind, what it costs."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from lightning_dropout.callbacks import DropoutScheduler, StochasticDepthScheduler
from lightning_dropout.nn import DropPath
from lightning_dropout.schedules import Linear

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")

MakeTrainer = Callable[..., Any]
MakeRecorder = Callable[..., Any]
Loader = DataLoader[Any]
RAMP = Linear(0.0, 0.75)


class Literal(nn.Module):
    """Drops at a rate that stands in the code alone, so no site holds it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(x, 0.25, self.training)


def with_literal() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5), Literal(), DropPath(0.2), nn.Dropout(0.0))


@pytest.mark.parametrize("ramp", [0.5, RAMP], ids=["at once", "from the second step"])
def test_the_first_forward_that_drops_is_observed(
    make_trainer: MakeTrainer,
    make_recorder: MakeRecorder,
    loader: Loader,
    ramp: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    module = make_recorder(with_literal())
    forwards: list[int] = []
    module.net.register_forward_hook(lambda *_: forwards.append(1) if module.training else None)
    scheduler = DropoutScheduler(rate=ramp, sites="net.1", audit=True)
    make_trainer(scheduler, max_epochs=1).fit(module, loader)
    findings = scheduler.findings
    assert findings is not None
    assert [row.name for row in findings.firing] == ["net.1", "net.3"]
    assert [(row.name, row.reason) for row in findings.silent] == [("net.4", "rate 0")]
    assert [(row.name, row.rate) for row in findings.unregistered] == [("net.2", 0.25)]
    assert capsys.readouterr().out.count("unregistered") >= 1
    assert len(forwards) == 3  # nothing ran in addition


def test_the_observer_is_gone_after_its_step_and_changes_no_weight(
    make_trainer: MakeTrainer, make_recorder: MakeRecorder, loader: Loader
) -> None:
    weights = []
    for audit in (False, True):
        torch.manual_seed(0)
        module = make_recorder()
        hooks = len(nn.modules.module._global_forward_hooks)
        make_trainer(DropoutScheduler(rate=0.5, audit=audit), max_epochs=2).fit(module, loader)
        assert len(nn.modules.module._global_forward_hooks) == hooks
        assert torch.overrides._get_current_function_mode_stack() == []
        weights.append(torch.cat([p.detach().flatten() for p in module.parameters()]))
    assert torch.equal(*weights)


def test_an_error_in_the_observed_step_leaves_no_observer(
    make_trainer: MakeTrainer, make_recorder: MakeRecorder, loader: Loader
) -> None:
    module = make_recorder()
    module.net.register_forward_hook(lambda *_: 1 / 0)
    scheduler = DropoutScheduler(rate=0.5, audit=True)
    with pytest.raises(ZeroDivisionError):
        make_trainer(scheduler, max_epochs=1, num_sanity_val_steps=0).fit(module, loader)
    assert scheduler.findings is None
    assert torch.overrides._get_current_function_mode_stack() == []


def test_one_of_several_schedulers_observes(
    make_trainer: MakeTrainer, make_recorder: MakeRecorder, loader: Loader, capsys: pytest.CaptureFixture[str]
) -> None:
    both = [DropoutScheduler(rate=0.5, audit=True), StochasticDepthScheduler(rate=0.1, audit=True)]
    make_trainer(*both, max_epochs=1).fit(make_recorder(), loader)
    assert [scheduler.findings is None for scheduler in both] == [False, True]
    assert capsys.readouterr().out.count("firing,") == 1


def test_compiled_code_is_not_observed_and_that_is_said(
    make_trainer: MakeTrainer, make_recorder: MakeRecorder, loader: Loader, caplog: pytest.LogCaptureFixture
) -> None:
    module = make_recorder()
    module.net = torch.compile(module.net, backend="eager")
    scheduler = DropoutScheduler(rate=0.5, audit=True)
    with caplog.at_level("INFO"):
        make_trainer(scheduler, max_epochs=1).fit(module, loader)
    assert scheduler.findings is None
    assert "compiled code cannot be observed" in caplog.text
