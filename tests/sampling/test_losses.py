"""A model's loss, found again from its value: every kind and reduction, and nothing that only looks like one."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_dropout.sampling import Task
from lightning_dropout.sampling import losses as losses_file
from lightning_dropout.sampling.losses import find_loss

FIXED = torch.Generator().manual_seed(0)


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=FIXED)


CLASSES, SEQUENCE, MAP, ONE = draw(6, 5), draw(6, 7, 5), draw(2, 5, 3, 4), draw(6, 1)
OF_CLASSES, OF_SEQUENCE = torch.arange(6) % 5, (torch.arange(42) % 5).reshape(6, 7)
OF_MAP = (torch.arange(24) % 5).reshape(2, 3, 4)
SOME = OF_SEQUENCE.masked_fill(OF_SEQUENCE == 3, -100)
Case = tuple[Callable[..., Tensor], Tensor, Tensor, Task, int]

CASES: dict[str, Case] = {
    "classes": (F.cross_entropy, CLASSES, OF_CLASSES, "multiclass", 1),
    "short integers": (lambda x, y, **how: F.cross_entropy(x, y.long(), **how), CLASSES, OF_CLASSES.int(), "raw", -1),
    "labels in a column": (
        lambda x, y, **how: F.cross_entropy(x, y[:, 0], **how), CLASSES, OF_CLASSES[:, None], "multiclass", 1,
    ),
    "maps": (F.cross_entropy, MAP, OF_MAP, "multiclass", 1),
    "sequences, class last": (
        lambda x, y, **how: F.cross_entropy(x.movedim(2, 1), y, **how), SEQUENCE, SOME, "multiclass", 2,
    ),
    "next tokens": (
        lambda x, y, **how: F.cross_entropy(x[:, :-1].movedim(2, 1), y[:, 1:], **how), SEQUENCE, SOME, "multiclass", -1,
    ),
    "probabilities": (
        lambda x, y, **how: F.nll_loss(x.log(), y, **how), CLASSES.softmax(1), OF_CLASSES, "probabilities", 1,
    ),
    "log-probabilities": (F.nll_loss, CLASSES.log_softmax(1), OF_CLASSES, "multiclass", 1),
    "binary": (F.binary_cross_entropy_with_logits, ONE, (ONE > 0.3).float(), "binary", 1),
    "binary, integers in a row": (
        lambda x, y, **how: F.binary_cross_entropy_with_logits(x[:, 0], y.float(), **how),
        ONE, torch.arange(6) % 2, "binary", 1,
    ),
    "multilabel, booleans": (
        lambda x, y, **how: F.binary_cross_entropy_with_logits(x, y.float(), **how),
        CLASSES, draw(6, 5) > 0, "multilabel", 1,
    ),
    "values": (F.mse_loss, CLASSES, draw(6, 5), "regression", 1),
    "values in a row": (lambda x, y, **how: F.mse_loss(x[:, 0], y, **how), ONE, draw(6), "regression", 1),
}  # fmt: skip


def check_found(case: Case, reduction: str, dtype: torch.dtype) -> None:
    """What is found from one prediction gives the model's loss for another."""
    loss, values, labels, task, class_dim = case
    values = values.to(dtype)
    others = [torch.tensor([1.5]), torch.arange(6) % 4, draw(6, 5), torch.arange(6) - 50, torch.empty(6, device="meta")]
    found = find_loss(loss(values, labels, reduction=reduction), values, [*others, labels], task, class_dim)
    assert found is not None
    prediction = values.flip(0).to(torch.promote_types(dtype, torch.float32))  # statistics leave in no less
    expected = loss(prediction, labels, reduction=reduction)
    tolerance = 1e-2 if dtype == torch.bfloat16 else 1e-6  # probabilities of bfloat16 do not sum to 1
    torch.testing.assert_close(found(prediction), expected, rtol=tolerance, atol=1e-6, check_dtype=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("name", CASES)
def test_every_loss_is_found(name: str, reduction: str, dtype: torch.dtype) -> None:
    check_found(CASES[name], reduction, dtype)


@pytest.mark.parametrize(
    ("name", "replaced"),
    [
        ("next tokens", "_next_token_cross_entropy"),
        ("classes", "_cross_entropy"),
        ("binary", "_binary_cross_entropy"),
        ("values", "_squared_error"),
    ],
)
def test_nothing_else_is_taken_for_it(name: str, replaced: str, monkeypatch: pytest.MonkeyPatch) -> None:
    others = tuple(criterion for criterion in losses_file._CRITERIA if criterion.__name__ != replaced)
    assert len(others) == 3
    monkeypatch.setattr(losses_file, "_CRITERIA", others)
    with pytest.raises(AssertionError):
        check_found(CASES[name], "mean", torch.float32)


def test_the_best_fit_wins_where_precision_lets_several_pass() -> None:
    """At the start of training all cross entropies lie near ln C, closer than bfloat16 can tell."""
    logits, tokens = 0.05 * draw(4, 30, 10).bfloat16(), torch.randint(0, 10, (4, 30), generator=FIXED)
    shifted = F.cross_entropy(logits.float()[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    plain = F.cross_entropy(logits.float().flatten(0, 1), tokens.flatten())
    assert shifted.sub(plain).abs() < 0.01 * shifted, "they differ, so the test shows nothing"
    for own, kind in ((shifted, "_next_token_cross_entropy"), (plain, "_cross_entropy")):
        for seen in (own, own.bfloat16()):
            found: Any = find_loss(seen, logits, [tokens], "multiclass", 2)
            if seen is own or abs(own - seen.float()) < 0.4 * abs(shifted - plain):
                assert found.args[1].__name__ == kind


@pytest.mark.parametrize(
    "own",
    [
        F.cross_entropy(CLASSES, OF_CLASSES) * 1.001,
        F.cross_entropy(CLASSES, OF_CLASSES, label_smoothing=0.01),
        F.cross_entropy(CLASSES, OF_CLASSES, weight=torch.arange(1.0, 6.0)),
        F.cross_entropy(CLASSES, (OF_CLASSES + 1) % 5),
        torch.tensor(math.nan),
        torch.tensor(math.inf),
        torch.zeros(()),
        F.cross_entropy(CLASSES, OF_CLASSES, reduction="none")[:5],
    ],
)
def test_what_is_another_loss_is_not_found(own: Tensor) -> None:
    assert find_loss(own, CLASSES, [OF_CLASSES, draw(6, 5)], "multiclass", 1) is None


def test_labels_are_needed_and_values_in_one_piece() -> None:
    own = F.cross_entropy(CLASSES, OF_CLASSES)
    assert find_loss(own, CLASSES, [], "multiclass", 1) is None
    assert find_loss(own, (CLASSES, CLASSES), [OF_CLASSES], "gaussian", 1) is None


def test_a_diverged_pass_keeps_its_loss() -> None:
    values = CLASSES.clone()
    values[0, 0] = math.nan
    found = find_loss(F.cross_entropy(values, OF_CLASSES), values, [OF_CLASSES], "multiclass", 1)
    assert found is not None
    assert found(values).isnan()


def test_labels_out_of_range_are_never_looked_up() -> None:
    """On a GPU that ends the process, so torch must not be asked."""
    for wrong in (OF_CLASSES + 1, OF_CLASSES - 1, torch.full((6,), 10**6)):
        assert find_loss(torch.tensor(1.0), CLASSES, [wrong], "multiclass", 1) is None


def test_the_shape_of_the_loss_is_kept() -> None:
    for shape in [(1,), (1, 1)]:
        own = F.cross_entropy(CLASSES, OF_CLASSES).reshape(shape)
        found = find_loss(own, CLASSES, [OF_CLASSES], "multiclass", 1)
        assert found is not None
        assert found(CLASSES).shape == shape
