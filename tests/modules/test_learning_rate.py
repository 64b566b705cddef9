"""The learning-rate schedule against its formula."""

import math
import warnings

import pytest
import torch
from torch import nn

from lightning_dropout.modules import warmup_cosine


def walk(total_steps: int, peaks: tuple[float, ...] = (1.0,), beyond: int = 0, **arguments: float) -> list[list[float]]:
    """Return for each parameter group its rate at every step."""
    parameters = [nn.Parameter(torch.zeros(1)) for _ in peaks]
    groups = [{"params": [parameter], "lr": peak} for parameter, peak in zip(parameters, peaks, strict=True)]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    scheduler = warmup_cosine(optimizer, total_steps, **arguments)
    rates: list[list[float]] = [[] for _ in peaks]
    for _ in range(total_steps + beyond):
        for group, trace in zip(optimizer.param_groups, rates, strict=True):
            trace.append(group["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("total_steps", [1, 2, 3, 10, 97])
@pytest.mark.parametrize("warmup_fraction", [0.0, 0.1, 0.5, 0.99])
@pytest.mark.parametrize("final_fraction", [0.0, 0.1, 1.0])
def test_closed_form(total_steps: int, warmup_fraction: float, final_fraction: float) -> None:
    warmup = round(warmup_fraction * total_steps)
    expected = [(step + 1) / warmup for step in range(warmup)]
    for step in range(total_steps - warmup):
        cosine = (1 + math.cos(math.pi * step / (total_steps - warmup))) / 2
        expected.append(final_fraction + (1 - final_fraction) * cosine)
    (rates,) = walk(total_steps, warmup_fraction=warmup_fraction, final_fraction=final_fraction)
    assert rates == pytest.approx(expected, abs=1e-12)


def test_every_group_has_its_own_peak_and_end() -> None:
    """With one end for all, a group with a small rate would rise to that of another."""
    big, small = walk(20, peaks=(1.0, 0.01), final_fraction=0.1)
    assert small == pytest.approx([rate / 100 for rate in big])
    assert max(small) == pytest.approx(0.01)


def test_it_stays_at_its_end() -> None:
    (rates,) = walk(10, beyond=10, final_fraction=0.25)
    assert rates[10:] == pytest.approx([0.25] * 10)


def test_torch_has_nothing_to_warn_about() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        walk(10)


def test_it_goes_on_from_its_state() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = warmup_cosine(optimizer, 10)
    for _ in range(4):
        optimizer.step()
        scheduler.step()
    other_optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    other = warmup_cosine(other_optimizer, 10)
    other.load_state_dict(scheduler.state_dict())
    other_optimizer.step()
    other.step()
    assert other.get_last_lr() == pytest.approx([walk(10)[0][5]])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"total_steps": 0}, "Expected `total_steps` to be a whole number of at least 1, but got 0; set `max_epochs`"),
        ({"total_steps": 2.5}, r"Expected `total_steps`.*got 2\.5"),
        (
            {"total_steps": 9, "warmup_fraction": 1.0},
            r"Expected `warmup_fraction` to be a fraction in \[0, 1\), .* 1\.0",
        ),
        ({"total_steps": 9, "warmup_fraction": -0.1}, "Expected `warmup_fraction`"),
        ({"total_steps": 9, "final_fraction": 1.1}, r"Expected `final_fraction` to be a fraction in \[0, 1\], .* 1\.1"),
        ({"total_steps": 9, "final_fraction": math.nan}, "Expected `final_fraction`"),
    ],
)
def test_impossible_arguments(arguments: dict[str, float], message: str) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    with pytest.raises(ValueError, match=message):
        warmup_cosine(optimizer, **arguments)  # type: ignore[arg-type]
