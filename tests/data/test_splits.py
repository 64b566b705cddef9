"""Splits: exact shares, disjoint, the same rows for the same seed, every row with the same chance."""

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import Tensor

from lightning_dropout.data import splits

LABELS = torch.cat([torch.full((count,), label) for label, count in enumerate((7, 31, 100, 1, 62))])


def check_shares(module: ModuleType) -> None:
    for count in (0, 1, 20, 67, 100, 200, 201):
        rows = module.stratified_subset(LABELS, count, seed=3)
        assert len(rows) == count
        assert torch.equal(rows, torch.tensor(sorted(set(rows.tolist())), dtype=torch.long))
        for label in range(5):
            exact = LABELS.eq(label).sum().item() * count / len(LABELS)
            assert abs((LABELS[rows] == label).sum().item() - exact) < 1


def check_chances(module: ModuleType) -> None:
    """Over many seeds every row is chosen equally often, so the first rows of a file are not favoured."""
    draws, count = 600, 50
    strata = torch.zeros(100)
    times = torch.zeros(100)
    for seed in range(draws):
        times[module.stratified_subset(strata, count, seed)] += 1
    # Negatively correlated counts (their sum is fixed): the statistic is close to chi-square with 99 degrees.
    statistic = ((times - draws * 0.5) ** 2 / (draws * 0.25)).sum() * 99 / 100
    assert 40 < statistic < 180  # both ends beyond 1e-6: a regular pattern is as wrong as a favourite


def test_shares_are_exact() -> None:
    check_shares(splits)


def test_every_row_has_the_same_chance() -> None:
    check_chances(splits)


def test_planted_bugs_are_caught(mutate: Callable[..., ModuleType]) -> None:
    ordered = "shuffled[torch.argsort(strata[shuffled], stable=True)]"
    with pytest.raises(AssertionError):
        check_shares(mutate(splits, (ordered, "shuffled")))
    taken = "(position + 1) * count // total > position"
    with pytest.raises(AssertionError):
        check_shares(mutate(splits, (taken, taken.replace("1", "2"))))
    drawn = "torch.randperm(total, generator=torch.Generator().manual_seed(seed))"
    with pytest.raises(AssertionError):
        check_chances(mutate(splits, (drawn, "torch.arange(total)")))


def test_parts_are_disjoint_and_complete() -> None:
    parts = splits.stratified_split(LABELS, (0.2, 0.1), seed=0)
    assert [len(part) for part in parts] == [40, 20, 141]
    assert torch.cat(parts).sort().values.equal(torch.arange(201))


def test_first_part_does_not_move_when_a_later_share_changes() -> None:
    first = splits.stratified_split(LABELS, (0.2, 0.1), seed=0)[0]
    assert first.equal(splits.stratified_split(LABELS, (0.2, 0.7), seed=0)[0])


def test_split_follows_its_own_seed_only() -> None:
    def split(seed: int, global_seed: int) -> Tensor:
        torch.manual_seed(global_seed)
        return splits.stratified_split(LABELS, (0.2,), seed)[0]

    assert split(0, 1).equal(split(0, 2))
    assert not split(0, 1).equal(split(1, 1))
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    splits.stratified_subset(LABELS, 50, seed=0)
    assert torch.random.get_rng_state().equal(before)


def test_bad_counts() -> None:
    with pytest.raises(ValueError, match="Expected `count` to lie between 0 and the 201 rows, but got 202"):
        splits.stratified_subset(LABELS, 202, seed=0)
    with pytest.raises(ValueError, match="add up to at most 1"):
        splits.stratified_split(LABELS, (0.7, 0.7), seed=0)
