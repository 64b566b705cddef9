"""Rewriting of methods: each block here is run against itself, with the same samples kept.

Two kinds: blocks that are rewritten, whose branches must then see the kept samples only; and blocks that must stay as
they are, or be rewritten with care, since a careless rewriting would compute something else.
"""
# The ways in which others write their methods.
# ruff: noqa: N806, RET504, RUF005, SIM108, TRY301

import copy
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_dropout.conversion import branches
from lightning_dropout.conversion.branches import rewrite
from lightning_dropout.conversion.converted import _names as converted_names
from lightning_dropout.nn import DropPath

BATCH, KEPT, TOKENS, DIM = 5, 3, 3, 4


class Counted(nn.Linear):
    """Remembers for how many samples it ran."""

    ran: ClassVar[list[int]] = []

    def forward(self, x: Tensor, *others: Any) -> Tensor:
        self.ran.append(len(x))
        output = super().forward(x)
        for other in others:
            if isinstance(other, Tensor):
                output = output + (other.mean((1, 3)).unsqueeze(-1) if other.ndim == 4 else other)
        return output


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.f, self.g = nn.LayerNorm(DIM), Counted(DIM, DIM), nn.Linear(DIM, DIM)
        self.down, self.act = nn.Linear(DIM, DIM), nn.GELU()
        self.gamma = nn.Parameter(torch.rand(DIM))
        for name in ("drop_path", "drop_path1", "drop_path2"):
            setattr(self, name, DropPath(0.4, "subset"))
        self.use_shortcut = True
        self.steps = nn.ModuleList(nn.Linear(DIM, DIM) for _ in range(3))

    def second(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.f(x)
        return y, y * 2


PATHS = ["drop_path", "drop_path1", "drop_path2"]


def names_of(method: Any) -> set[str]:
    return converted_names(method.__code__)


def rewritten(block: nn.Module) -> tuple[nn.Module, branches.Rewriting]:
    cls = type(block)
    found = rewrite(cls.forward, [path for path in PATHS if path in names_of(cls.forward)] or PATHS[:1])
    converted = copy.deepcopy(block)
    if found.function is not None:
        converted.__class__ = type(cls.__name__, (cls,), {"forward": found.function})
    return converted, found


def batch() -> Tensor:
    return torch.randn(BATCH, TOKENS, DIM, generator=torch.Generator().manual_seed(0))


class PreNorm(Block):
    def forward(self, x):
        x = x + self.drop_path1(self.f(self.norm(x)))
        x = x + self.drop_path2(self.g(self.norm(x)))
        return x


class PostNorm(Block):
    def forward(self, x):
        x = x + self.drop_path(self.norm(self.f(x)))
        return self.g(x)


class ScaleInside(Block):
    def forward(self, x):
        return x + self.drop_path(self.gamma * self.f(x))


class ScaleOutside(Block):
    def forward(self, x):
        return x + self.gamma * self.drop_path(self.f(x))


class BranchFirst(Block):
    def forward(self, x):
        return self.drop_path(self.f(x)) + x


class BranchFirstComputedShortcut(Block):
    def forward(self, x):
        return self.drop_path(self.f(x)) + self.down(x)


class Three(Block):
    def forward(self, x):
        return self.down(x) + x + self.drop_path(self.f(x)) + self.g(x)


class Minus(Block):
    def forward(self, x):
        return x - self.drop_path(self.f(x))


class Statements(Block):
    def forward(self, x):
        shortcut = x
        x = self.norm(x)
        x = self.f(x)
        x = self.act(x)
        x = shortcut + self.drop_path(x)
        return x


class Returned(Block):
    def forward(self, x):
        y = self.f(x)
        y = self.g(y)
        return x + self.drop_path(y)


class InPlaceSum(Block):
    def forward(self, x):
        y = self.norm(x)
        x = x * 1
        x += self.drop_path(self.f(y))
        return x


class StatementsInPlaceSum(Block):
    def forward(self, x):
        shortcut = self.down(x)
        x = self.f(x)
        shortcut += self.drop_path(x)
        return shortcut


class AddedAfterwards(Block):
    def forward(self, x):
        shortcut = x
        x = self.f(x)
        x = self.drop_path(x)
        x = x + shortcut
        return x


class IsNotNone(Block):
    def forward(self, x):
        shortcut = x
        x = self.f(x)
        x = self.norm(x)
        if self.drop_path is not None:
            x = self.drop_path(x)
        x = x + shortcut
        return x


class Nested(Block):
    def forward(self, x):
        shortcut = x
        x = self.f(x)
        x = self.norm(x)
        if self.use_shortcut:
            if self.drop_path is not None:
                x = self.drop_path(x)
            x = x + shortcut
        return x


class UseShortcut(Block):
    def forward(self, x):
        shortcut = x
        x = self.f(x)
        if self.use_shortcut:
            x = self.drop_path(x) + shortcut
        return x


class ShortcutInBetween(Block):
    def forward(self, x):
        shortcut = x
        x = self.f(x)
        shortcut = self.down(shortcut)
        x = self.norm(x)
        return shortcut + self.drop_path(x)


class DownsampleAfter(Block):
    def forward(self, x):
        x = x + self.drop_path(self.f(x))
        if self.down is not None:
            x = self.down(x)
        return x


class Conditional(Block):
    def forward(self, x):
        y = self.f(x)
        if self.use_shortcut:
            y = self.g(y)
        else:
            y = self.down(y)
        return x + self.drop_path(y)


class Conditionally(Block):
    def forward(self, x):
        y = x
        if self.use_shortcut:
            y = self.f(y)
        return x + self.drop_path(y)


class Appends(Block):
    def forward(self, x):
        shortcut = x
        x = self.f(x)
        parts = []
        for step in self.steps:
            x = step(x)
            parts.append(x)
        x = torch.cat(parts, -1)
        x = x.unflatten(-1, (3, 4)).mean(-2)
        return shortcut + self.drop_path(x)


class CalledTwice(Block):
    def forward(self, x):
        x = x + self.drop_path(self.f(x))
        y = self.norm(x)
        y = self.f(y)
        return x + self.drop_path(y)


class Comprehension(Block):
    def forward(self, x):
        x = x + self.drop_path(self.f(torch.stack([x[:, i] for i in range(x.shape[1])], 1)))
        return x


class SameNameInComprehension(Block):
    def forward(self, x):
        y = self.norm(x)
        return x + self.drop_path(self.f(torch.cat([y * 2 for y in y.split(1, 1)], 1)))


class SizesInside(Block):
    def forward(self, x):
        shortcut = x
        B, N, C = x.shape
        x = self.f(x).view(B, C, N)
        x = x.transpose(1, 2).reshape(B, N, C)
        return shortcut + self.drop_path(x)


class Tokens(Block):
    def forward(self, x):
        N = x.shape[1]
        return x + self.drop_path(self.f(x).view(-1, N, 4))


class ValueOfTuple(Block):
    def forward(self, x):
        y, _ = self.second(x)
        return x + self.drop_path(y)


class PositionalOnly(Block):
    def forward(me, x, /):  # noqa: N805
        return x + me.drop_path(me.f(x))


class InLoop(Block):
    def forward(self, x):
        for _ in range(2):
            y = self.f(x)
            y = self.norm(y)
            x = x + self.drop_path(y)
        return x


class InWith(Block):
    def forward(self, x):
        with torch.enable_grad():
            y = self.f(x)
            x = x + self.drop_path(y)
        return x


class InPlaceWithin(Block):
    def forward(self, x):
        y = self.f(x)
        y += 1
        y = self.g(y)
        return x + self.drop_path(y)


class OddName(Block):
    def forward(self, _x):
        x = self.norm(_x)
        return _x + self.drop_path(self.f(x))


class LiteralShift(Block):
    def forward(self, x):
        return x * (1 + self.drop_path(self.f(x)))


class Broadcast(Block):
    def forward(self, x):
        return x + self.drop_path(self.f(x.mean(1, keepdim=True)))


class WeightsAsTable(Block):
    def __init__(self) -> None:
        super().__init__()
        self.scales = nn.Parameter(torch.rand(BATCH, 1, 1))

    def forward(self, x):
        scales = torch.exp(self.scales).view(BATCH, 1, 1)
        x = x + self.drop_path1(scales[0] * self.f(x))
        return x + self.drop_path2(scales[4] * self.f(x))


REWRITTEN = [
    PreNorm,
    PostNorm,
    ScaleInside,
    ScaleOutside,
    BranchFirst,
    BranchFirstComputedShortcut,
    Three,
    Minus,
    Statements,
    Returned,
    InPlaceSum,
    StatementsInPlaceSum,
    AddedAfterwards,
    IsNotNone,
    Nested,
    UseShortcut,
    ShortcutInBetween,
    DownsampleAfter,
    Conditional,
    Appends,
    CalledTwice,
    Comprehension,
    SameNameInComprehension,
    SizesInside,
    Tokens,
    ValueOfTuple,
    PositionalOnly,
    InWith,
    InPlaceWithin,
    OddName,
    LiteralShift,
    Broadcast,
    WeightsAsTable,
]


@pytest.mark.parametrize("kind", REWRITTEN, ids=lambda kind: kind.__name__)
def test_a_branch_runs_for_the_kept_samples_and_nothing_else_changes(
    kind: type[Block], agree: Callable[..., Any]
) -> None:
    torch.manual_seed(0)
    block = kind()
    converted, found = rewritten(block)
    assert found.done == names_of(kind.forward).intersection(PATHS)
    assert not found.left
    agree(block, converted, batch())
    Counted.ran.clear()
    converted.train()(batch())
    assert {*Counted.ran} == {KEPT}
    assert type(converted).forward.__name__ == "forward"


@pytest.mark.parametrize("kind", [UseShortcut, Nested, Conditional, Conditionally], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("switch", [True, False])
def test_both_ways_of_a_switch(kind: type[Block], switch: bool, agree: Callable[..., Any]) -> None:
    block = kind()
    block.use_shortcut = switch
    agree(block, rewritten(block)[0], batch())


@pytest.mark.parametrize("kind", [IsNotNone, Nested], ids=lambda kind: kind.__name__)
def test_without_a_drop_path(kind: type[Block], agree: Callable[..., Any]) -> None:
    block = kind()
    block.drop_path = None
    agree(block, rewritten(block)[0], batch())


def test_switches_are_told() -> None:
    assert rewritten(UseShortcut())[1].switches == {"drop_path": {"use_shortcut"}}
    assert rewritten(PreNorm())[1].switches == {"drop_path1": set(), "drop_path2": set()}


class Masked(Block):
    def forward(self, x, mask=None, rope=None, size=0):
        return x + self.drop_path(self.f(self.norm(x), mask, rope, size))


class MaskedStatements(Block):
    def forward(self, x, mask=None, rope=None, size=0):
        y = self.norm(x)
        y = self.f(y, mask, rope)
        return x + self.drop_path(y)


INPUTS: dict[str, tuple[Any, ...]] = {
    "none": (),
    "mask": (torch.randn(BATCH, 1, TOKENS, TOKENS),),
    "one mask": (torch.randn(1, 1, TOKENS, TOKENS),),
    "table": (None, torch.randn(TOKENS, DIM), 3),
    "int": (None, None, 3),
}


@pytest.mark.parametrize("kind", [Masked, MaskedStatements], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("others", INPUTS.values(), ids=INPUTS)
def test_extra_inputs(kind: type[Block], others: tuple[Any, ...], agree: Callable[..., Any]) -> None:
    block = kind()
    converted, found = rewritten(block)
    assert found.done == {"drop_path"}
    agree(block, converted, batch(), *others)


@pytest.mark.parametrize("kind", [Masked, MaskedStatements], ids=lambda kind: kind.__name__)
def test_a_table_of_positions_with_as_many_rows_as_samples(kind: type[Block], agree: Callable[..., Any]) -> None:
    block = kind()
    x = torch.randn(BATCH, BATCH, DIM)
    agree(block, rewritten(block)[0], x, None, torch.randn(BATCH, DIM))


class Rotated(Block):
    def forward(self, x, position_embeddings):
        return x + self.drop_path(self.f(x) * self.mixed(*position_embeddings))

    def mixed(self, cos, sin):
        return cos.mean(0) + sin.mean(0) if cos.ndim == 2 else cos + sin


@pytest.mark.parametrize("shape", [(BATCH, DIM), (BATCH, TOKENS, DIM)], ids=["one table", "one per sample"])
def test_a_pair_of_tables_with_as_many_rows_as_samples(shape: tuple[int, ...], agree: Callable[..., Any]) -> None:
    block = Rotated()
    agree(block, rewritten(block)[0], batch(), (torch.randn(shape), torch.randn(shape)))


# fmt: off
class FurtherLeft(Block):
    def forward(self, x):
        text = """Text
that begins further to the left.
"""
        y = self.f(x)
# Further to the left.
        return x + self.drop_path(y) * len(text[:1])
# fmt: on


def test_comments_and_texts_may_begin_further_to_the_left(agree: Callable[..., Any]) -> None:
    block = FurtherLeft()
    converted, found = rewritten(block)
    assert found.done
    agree(block, converted, batch())


# What must not be rewritten, and why.


class BatchSize(Block):
    def forward(self, x):
        B, N, C = x.shape
        y = self.f(x).reshape(B, N, C)
        y = y + x.new_zeros(B, 1, 1)
        return (x + self.drop_path(self.g(y.reshape(B, N, C)))).reshape(B, N, C)


class BatchSizeByPairs(Block):
    def forward(self, x):
        B, N = x.shape[0], x.shape[1]
        return (x + self.drop_path(self.f(x).view(B, N, 4))) * B


class BatchSizeReckoned(Block):
    def forward(self, x):
        B = x.shape[0]
        rows = B * 3
        return x + self.drop_path(self.f(x).view(rows, 4).view(B, 3, 4))


class BatchSizeOnItsWay(Block):
    def forward(self, x):
        rows = x.shape[0] * x.shape[1]
        return (x + self.drop_path(self.f(x).view(rows, 4).view(x.shape))) * (rows / rows)


class SizeAttribute(Block):
    def forward(self, x):
        self.rows = x.shape[0]
        return x + self.drop_path(self.f(x).view(self.rows, -1, 4))


class AttributeOfSamples(Block):
    def forward(self, x):
        self.context = self.norm(x)
        return x + self.drop_path(self.f(x) + self.context)


class ReadLater(Block):
    def forward(self, x):
        y = self.f(x)
        x = x + self.drop_path(y)
        return x, y


class ReadInSum(Block):
    def forward(self, x):
        y = self.f(x)
        return x + y + self.drop_path(y)


class ReadInNextIteration(Block):
    def forward(self, x):
        y = x
        for _ in range(3):
            x = x + y
            y = self.f(x)
            x = x + self.drop_path(y)
        return x


class ReadAfterContinue(Block):
    def forward(self, x):
        y = x
        for i in range(3):
            x = x + y
            y = self.f(x)
            x = x + self.drop_path(y)
            if i == 0:
                continue
            y = x
        return x


class ReadAfterBreak(Block):
    def forward(self, x):
        y = x
        while True:
            y = self.f(x)
            x = x + self.drop_path(y)
            if x.shape[1] > 1:
                break
            y = x
        return x + y


class ReadByTest(Block):
    def forward(self, x):
        y = x
        while y is x:
            y = self.f(x)
            x = x + self.drop_path(y)
        return x


class ReadAfterIf(Block):
    def forward(self, x):
        y = self.f(x)
        if self.use_shortcut:
            x = x + self.drop_path(y)
        return x + y


class Deleted(Block):
    def forward(self, x):
        y = self.f(x)
        x = x + self.drop_path(y)
        del y
        return x


class ReadByInnerFunction(Block):
    def forward(self, x):
        def late():
            return y

        y = self.f(x)
        x = x + self.drop_path(y)
        return x + late()


class ReadByLambda(Block):
    def forward(self, x):
        late = lambda: y  # noqa: E731
        y = self.f(x)
        x = x + self.drop_path(y)
        return x + late()


class PrivateName(Block):
    def forward(self, x):
        return x + self.drop_path(self.__f(x))

    def __f(self, x):
        return self.f(x)


class CallsSuper(PreNorm):
    def forward(self, x):
        return super().forward(x) + self.drop_path(self.f(x))


def without_a_trace(method: Any) -> Any:
    def run(self: Any, x: Tensor) -> Tensor:
        result: Tensor = method(self, x)
        return result * 2

    return run


class Decorated(Block):
    @torch.no_grad()
    def forward(self, x):
        return x + self.drop_path(self.f(x))


class InLambda(Block):
    def forward(self, x):
        return (lambda y: x + self.drop_path(self.f(y)))(x)


class InComprehension(Block):
    def forward(self, x):
        return sum(x + self.drop_path(step(x)) for step in self.steps)


class InInnerFunction(Block):
    def forward(self, x):
        def inner(x):
            y = self.f(x)
            return x + self.drop_path(y)

        return inner(x)


class Keyword(Block):
    def forward(self, x):
        return x + self.drop_path(x=self.f(x))


class Unpacked(Block):
    def forward(self, x):
        return x + self.drop_path(*[self.f(x)])


class TwoInOne(Block):
    def forward(self, x):
        return x + self.drop_path1(self.f(x + self.drop_path2(self.g(x))))


class NoModule(Block):
    def forward(self, x):
        return x + self.drop_path(x * 2)


class Walrus(Block):
    def forward(self, x):
        x = x + self.drop_path(self.f(y := self.norm(x)))
        return x + y


class WalrusInSum(Block):
    def forward(self, x):
        x = (y := self.down(x)) + self.drop_path(self.f(x))
        return x + y


class WalrusInTest(Block):
    def forward(self, x):
        y = x
        z = self.f(y)
        if (y := x * 2) is not None:
            x = y + self.drop_path(z)
        return x


class Tried(Block):
    def forward(self, x):
        y = x
        try:
            y = self.f(x)
            x = x + self.drop_path(y)
            raise KeyError
        except KeyError:
            return x + y


class Matched(Block):
    def forward(self, x):
        y = x
        match x.ndim:
            case 3:
                y = self.f(x)
                x = x + self.drop_path(self.g(y))
        return x


class Locals(Block):
    def forward(self, x):
        y = self.f(x)
        x = x + self.drop_path(y)
        return x + locals()["y"]


SEEN: Any = None


class GlobalName(Block):
    def forward(self, x):
        global SEEN
        SEEN = self.f(x)
        x = x + self.drop_path(SEEN)
        return x + globals()["SEEN"]


class OtherSelf(Block):
    def forward(self, x):
        self = copy.copy(self)
        return x + self.drop_path(self.f(x))


class GrowsWhatItIsGiven(Block):
    def forward(self, x, found):
        found.append(x)
        return x + self.drop_path(self.f(torch.stack(found).sum(0)))


class TakesFromWhatItIsGiven(Block):
    def forward(self, x, found):
        found = found + [x, x]
        x = x + self.drop_path(self.f(found.pop()))
        return x, *found


class AliasInPlace(Block):
    def forward(self, x):
        y = x
        y += 1
        return x + self.drop_path(self.f(y))


class ShortcutInPlace(Block):
    def forward(self, x):
        shortcut = x
        x += 1
        return shortcut + self.drop_path(self.f(x))


class ViewInPlace(Block):
    def forward(self, x):
        shortcut = x
        x = x.view(x.shape)
        x = x.mul_(2)
        x = self.f(x)
        return shortcut + self.drop_path(x)


class FunctionInPlace(Block):
    def forward(self, x):
        shortcut = x
        x = F.relu(x, inplace=True)
        x = self.f(x)
        return shortcut + self.drop_path(x)


class InPlaceInBetween(Block):
    def forward(self, x):
        x = x * 1
        y = x * 2
        shortcut = x
        shortcut += 1
        return shortcut + self.drop_path(self.f(y))


class InPlaceInSum(Block):
    def forward(self, x):
        x = x * 1
        return self.drop_path(self.f(x * 2) * 2) + x.add_(2)


class OutlivesIfNotStored(Block):
    def forward(self, x):
        y = self.f(x)
        if x.ndim == 4:
            y = x
        else:
            x = x + self.drop_path(y)
        return x if x.ndim == 4 else x + y


class LoopElse(Block):
    def forward(self, x):
        z = self.norm(x)
        y = self.f(x)
        for step in self.steps:
            y = step(y)
        else:
            y = y + z
        return x + self.drop_path(y) + z


class Number(Block):
    def forward(self, x, n=2):
        y = self.pick(n)(x)
        return x + self.drop_path(y)

    def pick(self, n):
        return self.f


class OneQuery(Block):
    def forward(self, x, query):
        return self.gamma * self.drop_path(self.attend(query, x))

    def attend(self, query, x):
        return self.f(query + x)


class OneQuerySum(Block):
    def forward(self, x, query):
        return query + self.drop_path(self.attend(query, x))

    def attend(self, query, x):
        return self.f(query + x)


class NumberFirst(Block):
    def forward(self, x, n):
        y = self.scaled(n, x)
        return self.gamma * self.drop_path(y)

    def scaled(self, n, x):
        return self.f(x) * n


class MaybeUndefined(Block):
    def forward(self, x):
        if x.ndim == 3:
            y = self.f(x)
        if x.ndim == 3:
            x = x + self.drop_path(self.g(y))
        return x


class ShadowedInInnerFunction(Block):
    def forward(self, x):
        y = self.f(x)

        def late():
            return (lambda y: y)(y)

        x = x + self.drop_path(y)
        return x + late()


class Remembers(nn.Linear):
    seen: Any = None

    def forward(self, x):
        y = super().forward(x)
        self.seen = y.detach().abs().mean()
        return y


class StateInBetween(Block):
    def __init__(self) -> None:
        super().__init__()
        self.f = Remembers(DIM, DIM)
        self.f.seen = torch.zeros(())

    def forward(self, x):
        y = self.f(x)
        seen = self.f.seen
        x = x + self.drop_path(y)
        return x * seen


class StateBefore(StateInBetween):
    def forward(self, x):
        y = self.f(x)
        return self.f.seen * x + self.drop_path(y)


class NotAlways(Block):
    def forward(self, x):
        y = self.f(x)
        return x + self.drop_path(y) if self.use_shortcut else x


class FunctionNamedInPlace(Block):
    def forward(self, x):
        return x + self.drop_path(self.f(torch.relu_(x)))


class OldSize(Block):
    def forward(self, x):
        rows = x.size()[0]
        return (x + self.drop_path(self.f(x).view(rows, 3, 4))) * rows


class SizesByKeyword(Block):
    def forward(self, x):
        rows = x.size(dim=0)
        return (x + self.drop_path(self.f(x).view(rows, 3, 4))) * rows


class OldSizes(Block):
    def forward(self, x):
        rows, n = x.size()[:2]
        return (x + self.drop_path(self.f(x).view(rows, n, 4))) * rows


class ListOfSizes(Block):
    def forward(self, x):
        shape = list(x.shape)
        return (x + self.drop_path(self.f(x).view(shape))).view(shape)


LEFT = {
    StateInBetween: "told apart",
    StateBefore: "told apart",
    NotAlways: "told apart",
    FunctionNamedInPlace: "in place",
    OldSize: "number of samples",
    OldSizes: "number of samples",
    SizesByKeyword: "number of samples",
    ListOfSizes: "number of samples",
    BatchSizeOnItsWay: "number of samples",
    BatchSizeByPairs: "number of samples",
    SizeAttribute: "attribute that its method sets",
    AttributeOfSamples: "attribute that its method sets",
    ReadLater: "told apart",
    ReadInSum: "told apart",
    ReadInNextIteration: "told apart",
    ReadAfterContinue: "told apart",
    ReadAfterBreak: "told apart",
    ReadByTest: "told apart",
    ReadAfterIf: "told apart",
    Deleted: "told apart",
    ReadByInnerFunction: "told apart",
    ReadByLambda: "told apart",
    ShadowedInInnerFunction: "told apart",
    PrivateName: "private names",
    CallsSuper: "decorated or calls `super",
    Decorated: "decorated or calls `super",
    InLambda: "called in a way",
    InComprehension: "called in a way",
    InInnerFunction: "called in a way",
    Keyword: "called in a way",
    Unpacked: "called in a way",
    NoModule: "told apart",
    Walrus: "written in a way",
    WalrusInSum: "written in a way",
    WalrusInTest: "written in a way",
    Tried: "written in a way",
    Matched: "written in a way",
    Locals: "written in a way",
    GlobalName: "written in a way",
    OtherSelf: "another value",
    TakesFromWhatItIsGiven: "in place",
    OutlivesIfNotStored: "told apart",
    Conditionally: "told apart",
    InLoop: "told apart",  # by what is looked at: the next round stores before it reads
}

# Something of them may be rewritten, as long as nothing changes.
HOSTILE: dict[type[Block], tuple[Any, ...]] = {
    BatchSize: (),
    BatchSizeReckoned: (),
    TwoInOne: (),
    GrowsWhatItIsGiven: ([],),
    TakesFromWhatItIsGiven: ([],),
    AliasInPlace: (),
    ShortcutInPlace: (),
    ViewInPlace: (),
    FunctionInPlace: (),
    InPlaceInBetween: (),
    InPlaceInSum: (),
    LoopElse: (),
    Number: (),
    OneQuery: (torch.randn(1, TOKENS, DIM),),
    OneQuerySum: (torch.randn(1, TOKENS, DIM),),
    NumberFirst: (3,),
    MaybeUndefined: (),
}


@pytest.mark.parametrize("kind", LEFT, ids=lambda kind: kind.__name__)
def test_what_is_not_certain_stays_as_it_is(kind: type[Block], agree: Callable[..., Any]) -> None:
    block = kind()
    converted, found = rewritten(block)
    assert not found.done
    assert found.function is None
    assert type(converted) is kind
    assert found.left
    assert all(LEFT[kind] in reason for reason in found.left.values())


@pytest.mark.parametrize("kind", HOSTILE, ids=lambda kind: kind.__name__)
def test_hostile_methods_compute_what_they_did(kind: type[Block], agree: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    block = kind()
    agree(block, rewritten(block)[0], batch(), *HOSTILE[kind])


def test_what_a_method_does_to_a_list_is_done() -> None:
    block, found = rewritten(GrowsWhatItIsGiven())[0].train(), []
    block(batch(), found)
    assert [len(each) for each in found] == [BATCH]


def test_source_that_is_not_at_hand() -> None:
    names: dict[str, Any] = {}
    exec("def forward(self, x): return x + self.drop_path(self.f(x))", names)
    assert rewrite(names["forward"], ["drop_path"]).left == {"drop_path": "its source code is not at hand"}


def test_source_that_has_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    new = ["    def forward(self, x):\n", "        return x + self.drop_path(self.g(x))\n"]
    monkeypatch.setattr(branches.inspect, "getsourcelines", lambda _: (new, 1))
    assert rewrite(BranchFirst.forward, ["drop_path"]).left == {
        "drop_path": "its source code was changed since it was loaded"
    }


def test_signature_defaults_and_marks_stay() -> None:
    class Kept(Block):
        def forward(self, x: Tensor, *, scale: float = 2.0, shift: float = 1.0) -> Tensor:
            """Text."""
            return x * scale + shift + self.drop_path(self.f(x))

    Kept.forward.mark = 3  # type: ignore[attr-defined]
    function: Any = rewrite(Kept.forward, ["drop_path"]).function
    for name in ("__name__", "__qualname__", "__module__", "__doc__", "__kwdefaults__", "__annotations__", "mark"):
        assert getattr(function, name) == getattr(Kept.forward, name)


def planted(monkeypatch: pytest.MonkeyPatch, name: str, change: Callable[[Any], Any]) -> None:
    """Let a method of the editor return something else."""
    original = getattr(branches.Editor, name)
    monkeypatch.setattr(branches.Editor, name, lambda self, *args: change(original(self, *args)))


@pytest.mark.parametrize(
    ("name", "change", "kind"),
    [
        ("region", lambda found: found[2:], Statements),  # a statement too few: saves less
        ("region", lambda found: found[:-1], Statements),
        ("inputs", lambda found: found[:1], Masked),  # an input forgotten
        ("_obstacle", lambda found: None, BatchSizeByPairs),
        ("_obstacle", lambda found: None, AliasInPlace),
    ],
)
def test_planted_bugs_are_found(
    name: str, change: Callable[[Any], Any], kind: type[Block], agree: Callable[..., Any], monkeypatch: Any
) -> None:
    planted(monkeypatch, name, change)
    block = kind()
    converted, _ = rewritten(block)

    def check() -> None:
        agree(block, converted, batch(), *INPUTS["mask"][: kind is Masked])
        Counted.ran.clear()
        converted.train()(batch())
        assert {*Counted.ran} == {KEPT}

    with pytest.raises((AssertionError, RuntimeError, ValueError)):
        check()


def test_a_statement_too_many_is_found(agree: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(branches, "is_read", lambda *_: False)
    block = ReadLater()
    converted, found = rewritten(block)
    assert found.done
    with pytest.raises((AssertionError, NameError)):
        agree(block, converted, batch())


def test_tracebacks_point_at_the_original_line() -> None:
    class Failing(Block):
        def forward(self, x: Tensor) -> Tensor:
            y = self.f(x)
            y = self.missing(y)
            return x + self.drop_path(y)

    converted, found = rewritten(Failing())
    assert found.done
    with pytest.raises(AttributeError) as error:
        converted(batch())
    places = [(entry.path, entry.lineno) for entry in error.traceback]
    first = Failing.forward.__code__.co_firstlineno
    assert any(str(path) == __file__ and line == first + 1 for path, line in places)
