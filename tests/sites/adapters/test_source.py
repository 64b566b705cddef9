"""Reading rates off code: what users write, in all the ways in which they write it.

Every class here is a row: the reader finds its rate and who owns it, or refuses it by name, or knows that it is none.
"""

import asyncio
import contextlib
import dataclasses
import functools
import random
import re
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from weakref import WeakKeyDictionary

import lightning.pytorch
import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor, bernoulli, nn
from torch.nn.functional import dropout as torchs_dropout
from torch.nn.functional import scaled_dot_product_attention

from lightning_dropout.sites import Site, find_sites
from lightning_dropout.sites.adapters import method, source
from lightning_dropout.sites.adapters.source import source_of

# Name of the site, its kind, who owns it ("self", a child, or nobody), whether it must stay below 1.
Claim = tuple[str, str, tuple[str, ...], bool]
FOUND: dict[str, tuple[type[nn.Module], Claim]] = {}
REFUSED: dict[str, tuple[type[nn.Module], str]] = {}
PASSED_OVER: dict[str, type[nn.Module]] = {}


def found(name: str = "p", kind: str = "dropout", owners: str = "self", *, below_one: bool = False) -> Any:
    """The class below drops at this rate, and nowhere else."""

    def add(cls: type[nn.Module]) -> type[nn.Module]:
        FOUND[cls.__name__] = cls, (name, kind, tuple(owners.split()), below_one)
        return cls

    return add


def refused(path: str = "p") -> Any:
    """The class below may drop at this rate; nobody can know how."""

    def add(cls: type[nn.Module]) -> type[nn.Module]:
        REFUSED[cls.__name__] = cls, path
        return cls

    return add


def passed_over(cls: type[nn.Module]) -> type[nn.Module]:
    """The class below drops only in its child ``drop``, whatever its attributes are called."""
    PASSED_OVER[cls.__name__] = cls
    return cls


class Base(nn.Module):
    """Something with a rate called ``p``."""

    def __init__(self, p: float = 0.25) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.p = p


class WithChild(Base):
    """Something with a rate called ``p``, and a layer."""

    def __init__(self, p: float = 0.25) -> None:
        super().__init__(p)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.fc(x))


# Ways to call a function of torch.


@found()
class Functional(Base):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.fc(x), self.p, self.training)


@found()
class ByKeyword(Base):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.fc(x), p=float(self.p), training=self.training, inplace=False)


@found()
class OfTorchItself(Base):
    def forward(self, x: Tensor) -> Tensor:
        return torch.dropout(self.fc(x), self.p, train=self.training)


@found()
class UnderAnotherName(Base):
    def forward(self, x: Tensor) -> Tensor:
        return torchs_dropout(self.fc(x), self.p, self.training)


@found()
class UnderALocalName(Base):
    def forward(self, x: Tensor) -> Tensor:
        drop = F.dropout
        return drop(self.fc(x), self.p, self.training)


@found("ratio")
class WithoutAWordOfDropping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ratio = 0.25

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.ratio, self.training)


@found()
class InANestedFunction(Base):
    def forward(self, x: Tensor) -> Tensor:
        def branch(x: Tensor) -> Tensor:
            return F.dropout(self.fc(x), self.p, self.training)

        return branch(x)


@found()
class InALambda(Base):
    def forward(self, x: Tensor) -> Tensor:
        branch = lambda x: F.dropout(self.fc(x), self.p, self.training)  # noqa: E731
        return branch(x)


@found()
class UnderACheckpoint(Base):
    def forward(self, x: Tensor) -> Tensor:
        def branch(x: Tensor) -> Tensor:
            return F.dropout(self.fc(x), self.p, self.training)

        return torch.utils.checkpoint.checkpoint(branch, x, use_reentrant=False)


@found()
class AsAPartial(Base):
    def forward(self, x: Tensor) -> Tensor:
        return functools.partial(F.dropout, p=self.p, training=self.training)(x)


@found()
class WithADictionary(Base):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, **dict(p=self.p, training=self.training))  # noqa: C408  (the point)


@found()
class InAComprehension(Base):
    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([F.dropout(each, self.p, self.training) for each in x])


@found()
class BetweenTheLines(Base):
    def forward(self, x: Tensor) -> Tensor:
        with contextlib.suppress(KeyError):
            for _ in range(1):
                try:
                    x = F.dropout(x, self.p, self.training)
                finally:
                    x = x + 0
        return x


@found()
class InACase(Base):
    mode = "drop"

    def forward(self, x: Tensor) -> Tensor:
        match self.mode:
            case "drop":
                return F.dropout(x, self.p, self.training)
            case _:
                return x


@found("rate", "drop_path")
class ByAFunctionOfALibrary(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rate = 0.25

    def forward(self, x: Tensor) -> Tensor:
        return stochastic_depth(x, self.rate, "row", self.training)


def stochastic_depth(x: Tensor, p: float, mode: str, training: bool = True) -> Tensor:
    """What torchvision calls so."""
    return x * F.dropout(torch.ones(len(x), 1), p, training)


@found()
class ByAFunctionThatIsToldTheMode(Base):
    def forward(self, x: Tensor) -> Tensor:
        return my_dropout(x, self.p, self.training)


def my_dropout(x: Tensor, rate: float, on: bool = True) -> Tensor:
    """A user's own."""
    return F.dropout(x, rate, on)


# Ways to write the rate and the flag.


@found()
class LocalNames(Base):
    def forward(self, x: Tensor) -> Tensor:
        training = self.training
        p = self.p
        return F.dropout(x, p, training)


@found()
class ATupleOfNames(Base):
    def forward(self, x: Tensor) -> Tensor:
        p, on = self.p, self.training
        return F.dropout(x, p=p, training=on)


@found()
class AWalrus(Base):
    def forward(self, x: Tensor) -> Tensor:
        if (p := self.p) > 0:
            x = F.dropout(x, p, self.training)
        return x


@found()
class ZeroInEvaluation(Base):
    def forward(self, x: Tensor) -> Tensor:
        p = self.p if self.training else 0.0
        return F.dropout(x, p, True)


@found()
class ZeroUnlessTraining(Base):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0 if not self.training else self.p)


@found()
class ADefaultArgument(Base):
    def forward(self, x: Tensor, p: float | None = None) -> Tensor:
        p = self.p if p is None else p
        return F.dropout(x, p, self.training)


@found()
class AnotherNameForSelf(Base):
    def forward(module, x: Tensor) -> Tensor:  # noqa: N805
        me = module
        return F.dropout(x, me.p, me.training)


@found()
class SelfByPositionOnly(Base):
    def forward(self, /, x: Tensor) -> Tensor:
        return F.dropout(x, self.p, self.training)


@found()
class NamesThatGoRound(Base):
    def forward(self, x: Tensor) -> Tensor:
        x = x if x.ndim else x.flatten()
        y = x
        y = y.view(y.shape)
        return F.dropout(y, self.p, self.training)


@found("drop_rate")
class TheWholeNumber0(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.drop_rate = 0

    def forward(self, x: Tensor) -> Tensor:
        if self.drop_rate > 0:
            x = F.dropout(x, self.drop_rate, training=self.training)
        return x


@found()
class OnlyIfThereIsARate(Base):
    def forward(self, x: Tensor) -> Tensor:
        if not self.p:
            return x
        return F.dropout(x, self.p, self.training)


# Under a question.


@found()
class OnlyInTraining(Base):
    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            x = F.dropout(x, self.p)
        return x


@found()
class OnlyInTrainingWithARate(Base):
    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.p > 0:
            x = F.dropout(x, self.p, training=True)
        return x


@found()
class NotInEvaluation(Base):
    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0.0:
            return x
        return F.dropout(x, self.p)


@found()
class InTheOtherBranch(Base):
    def forward(self, x: Tensor) -> Tensor:
        return x if not self.training else my_dropout(x, self.p)


@found()
class ComparedWithTrue(Base):
    def forward(self, x: Tensor) -> Tensor:
        if self.training is True:
            x = F.dropout(x, self.p)
        return x


# Always on.


@found(owners="")
class WithoutAFlag(Base):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.p)


@found(owners="")
class WithAFlagThatIsTrue(Base):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.p, training=True)


@found(owners="")
class ANewLayerEveryTime(Base):
    def forward(self, x: Tensor) -> Tensor:
        return nn.Dropout(self.p)(x)


@found(owners="")
class ANewLayerWithAName(Base):
    def forward(self, x: Tensor) -> Tensor:
        drop = nn.Dropout(p=self.p)
        return drop(x)


@found()
class ANewLayerInTraining(Base):
    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            x = nn.Dropout(self.p)(x)
        return x


@found("p", "attention", "")
class AttentionThatForgotTheFlag(Base):
    def forward(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x, x, dropout_p=self.p)


@found(owners="")
class OnceInTrainingAndOnceAlways(Base):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(F.dropout(x, self.p, self.training), self.p)


# Where the class gets it from.


@found()
class FromItsBase(Functional):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


@found()
class FromItsBaseByName(Functional):
    def forward(self, x: Tensor) -> Tensor:
        return Functional.forward(self, x) + 1


class Mixin:
    def dropped(self: Any, x: Tensor) -> Tensor:
        return F.dropout(x, self.p, self.training)


@found()
class FromAMixin(Mixin, Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.dropped(x)


@found()
class FromAMixinBehindModule(Base, Mixin):
    def forward(self, x: Tensor) -> Tensor:
        return self.dropped(x)


@found()
class FromAStaticMethod(Base):
    @staticmethod
    def dropped(x: Tensor, p: float, on: bool) -> Tensor:
        return F.dropout(x, p, on)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropped(x, self.p, self.training)


@found()
class FromAFunctionOfTheFile(Base):
    def forward(self, x: Tensor) -> Tensor:
        return dropped_by(self, x)


def dropped_by(module: Any, x: Tensor) -> Tensor:
    return F.dropout(x, module.p, module.training)


def politely(function: Any) -> Any:
    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapped


def rudely(function: Any) -> Any:
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapped


@found()
class Decorated(Base):
    @politely
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.p, self.training)


@found()
class DecoratedByTheRude(Base):
    @rudely
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.p, self.training)


@found()
class DecoratedByTorch(Base):
    @torch.no_grad()
    @torch.autocast("cpu", enabled=False)
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.p, self.training)


@found()
class CalledAsync(Base):
    async def later(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.p, self.training)

    def forward(self, x: Tensor) -> Tensor:
        return asyncio.run(self.later(x))


def forward_of_nobody(self: Any, x: Tensor) -> Tensor:
    return F.dropout(x, self.p, self.training)


@found()
class WithAForwardFromElsewhere(Base):
    forward = forward_of_nobody


@found()
class WithAPartialMethod(Base):
    def at(self, x: Tensor, times: int) -> Tensor:
        return F.dropout(x, self.p, self.training) * times

    forward = functools.partialmethod(at, times=1)


@found()
@dataclasses.dataclass(eq=False)
class AsADataclass(nn.Module):
    p: float = 0.25

    def __post_init__(self) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.p, self.training)


@found()
class WithSlots(nn.Module):
    __slots__ = ("p",)

    def __init__(self) -> None:
        super().__init__()
        self.p = 0.25

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.p, self.training)


@found()
class OnTheClass(nn.Module):
    p = 0.25

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.p, self.training)


@found("drop_rate")
class BehindAProperty(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self._drop_rate = 0.25

    @property
    def drop_rate(self) -> float:
        return self._drop_rate

    @drop_rate.setter
    def drop_rate(self, value: float) -> None:
        self._drop_rate = value

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.drop_rate, self.training)


@found("drop_rate")
class BehindAPropertyThatComputes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self._drop_rate = 0.25  # percent

    @property
    def drop_rate(self) -> float:
        return self._drop_rate / 100

    @drop_rate.setter
    def drop_rate(self, value: float) -> None:
        self._drop_rate = value * 100

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.drop_rate, self.training)


# Where the rate lives.


@found("config.dropout")
class InAConfiguration(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(dropout=0.25)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.config.dropout, self.training)


@found("config.text.dropout")
class DeepInAConfiguration(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(text=SimpleNamespace(dropout=0.25))

    def forward(self, x: Tensor) -> Tensor:
        text = self.config.text
        return F.dropout(x, text.dropout, self.training)


@found("hparams.p")
class InHyperparameters(lightning.pytorch.LightningModule):
    def __init__(self, p: float = 0.25) -> None:
        super().__init__()
        self.save_hyperparameters()

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.hparams.p, self.training)

    def training_step(self, batch: Tensor) -> Tensor:
        self.log("p", self.hparams.p)
        return self(batch).sum()


@found("drop")
class OnAChildThatIsNotCalled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.25)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.drop.p, self.training)


@found("drop", owners="drop")
class OnAChildWhoseModeCounts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.25)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.drop.p, self.drop.training)


@found("drop", owners="drop")
class OnAChildThatIsAskedFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.25)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(x) if self.drop.p > 0 else x


# Attention.


@found("attn_drop", "attention")
class FusedAttention(nn.Module):
    fused = True

    def __init__(self) -> None:
        super().__init__()
        self.attn_drop = nn.Dropout(0.25)

    def forward(self, x: Tensor) -> Tensor:
        if self.fused:
            return scaled_dot_product_attention(x, x, x, dropout_p=self.attn_drop.p if self.training else 0.0)
        return self.attn_drop(x @ x.mT) @ x


@found("attn_drop", "attention", "attn_drop")
class PlainAttention(FusedAttention):
    fused = False


@found("dropout", "attention")
class AttentionWithANumberAndAnIdleChild(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.flash = True
        self.dropout = 0.25
        self.attn_dropout = nn.Dropout(0.25)

    def forward(self, x: Tensor) -> Tensor:
        if self.flash:
            return F.scaled_dot_product_attention(x, x, x, dropout_p=self.dropout if self.training else 0)
        return self.attn_dropout((x @ x.mT).softmax(-1)) @ x


@found("attn_drop", "attention", "attn_drop")
class AttentionThatIsCalledPlainly(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fused = False
        self.attn_drop = nn.Dropout(0.25)

    def forward(self, x: Tensor) -> Tensor:
        if not self.fused:
            return self.attn_drop(x @ x.mT) @ x
        dropout_p = self.attn_drop.p if self.training and torch.is_grad_enabled() else 0.0
        return F.scaled_dot_product_attention(x, x, x, None, dropout_p)


@found("rate")
class ByTheKeywordOfAMethod(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rate = 0.25

    def attend(self, x: Tensor, dropout_p: float) -> Tensor:
        return F.scaled_dot_product_attention(x, x, x, dropout_p=dropout_p)

    def forward(self, x: Tensor) -> Tensor:
        attend = {"fused": self.attend}["fused"]
        return attend(x, dropout_p=self.rate if self.training else 0.0)


# Masks that are drawn by hand.


@found(below_one=True)
class AMask(Base):
    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            x = x * (torch.rand_like(x) > self.p) / (1 - self.p)
        return x


@found(below_one=True)
class AMaskOfBernoulli(Base):
    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0.0:
            return x
        keep = 1 - self.p
        return x * x.new_empty(len(x), 1).bernoulli_(keep).div_(keep)


@found(below_one=True)
class AMaskOfADistribution(Base):
    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            x = x * torch.distributions.Bernoulli(1 - self.p).sample(x.shape)
        return x


@found(below_one=True)
class AMaskThatIsRoundedDown(Base):
    def forward(self, x: Tensor) -> Tensor:
        if self.p == 0.0 or not self.training:
            return x
        keep_prob = 1.0 - self.p
        return x.div(keep_prob) * torch.floor(keep_prob + torch.rand_like(x))


@found(below_one=True)
class AFactorOfGauss(Base):
    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            x = x * (1 + torch.randn_like(x) * (self.p / (1 - self.p)) ** 0.5)
        return x


@found("drop_prob", "drop_path", below_one=True)
class MyDropPath(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.drop_prob = 0.25

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            mask = torch.rand(len(x), 1) >= self.drop_prob
            x = x * mask / (1 - self.drop_prob)
        return x


@found("layerdrop", "layer_drop")
class SkipsLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layerdrop = 0.25
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            skip = self.training and torch.rand([]) < self.layerdrop
            x = x if skip else layer(x)
        return x


@found("layerdrop", "layer_drop")
class SkipsLayersByPythonsDice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layerdrop = 0.25
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        random.seed(torch.initial_seed())
        for layer in self.layers:
            if self.training and random.random() < self.layerdrop:
                continue
            x = layer(x)
        return x


@found("layer_dropout")
class ALayersDropoutIsNoLayerDrop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer_dropout = 0.25

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.layer_dropout, self.training)


# Refused: read by the code, and nobody knows how.


@refused()
class HandedOn(Base):
    def forward(self, x: Tensor) -> Tensor:
        return my_dropout(x, self.p)


@refused()
class HandedToAChild(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x, self.p)


@refused()
class HandedOnInTraining(Base):
    def forward(self, x: Tensor) -> Tensor:
        return mixed_up(x, self.p) if self.training else x


def mixed_up(x: Tensor, p: float) -> Tensor:
    return x.flip(0) if torch.rand([]) < p else x


@refused()
class Scaled(Base):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.p * 0.5, self.training)


@refused()
class OnWhenAsked(Base):
    def forward(self, x: Tensor, sample: bool = False) -> Tensor:
        return F.dropout(x, self.p, self.training or sample)


@refused()
class OnInTrainingOrWhenAsked(Base):
    sampling = False

    def forward(self, x: Tensor) -> Tensor:
        if self.training or self.sampling:
            x = F.dropout(x, self.p)
        return x


@refused()
class Raised(Base):
    def forward(self, x: Tensor) -> Tensor:
        rate = self.p
        rate += 0.1
        return F.dropout(x, rate, self.training)


@refused()
class OnWhenTheCallerSaysSo(Base):
    def dropped(self, x: Tensor, training: bool) -> Tensor:
        if training:
            x = F.dropout(x, self.p)
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.dropped(x, self.training)


@refused()
class WithALambdaForForward(Base):
    forward = lambda self, x: F.dropout(x, self.p, self.training)  # noqa: E731


@refused()
class AMaskWithoutAScale(Base):
    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            x = x * (torch.rand_like(x) > self.p)
        return x


@refused()
class AMaskThatIsAlwaysOn(Base):
    def forward(self, x: Tensor) -> Tensor:
        return x * (torch.rand_like(x) > self.p) / (1 - self.p)


# Refused: what is kept, not what is dropped. Driven as a rate it would be inverted, without a word.


@refused()
class Kept(Base):
    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            x = x * (torch.rand_like(x) < self.p) / self.p
        return x


@refused()
class KeptAboveTheComplement(Base):
    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            x = x * (torch.rand_like(x) > 1 - self.p)
        return x


@refused()
class KeptAboveALocalComplement(Base):
    def forward(self, x: Tensor) -> Tensor:
        drop = 1 - self.p
        if self.training:
            x = x * (drop < torch.rand_like(x)) * self.p**-1
        return x


@refused()
class KeptByBernoulli(Base):
    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            x = x * torch.empty_like(x).bernoulli_(self.p) / self.p
        return x


@refused()
class KeptByBernoulliWithoutAScale(Base):
    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            x = x * torch.bernoulli(torch.full_like(x, self.p))
        return x


@refused("drop_share")
class KeptByAnImportedDraw(nn.Module):
    drop_share = 0.25

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            x = x * bernoulli(x, self.drop_share)
        return x


@refused()
class KeptByADistribution(Base):
    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            x = x * torch.distributions.Bernoulli(self.p).sample(x.shape)
        return x


@refused()
class AllKeptInEvaluation(Base):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.bernoulli(torch.full_like(x, self.p if self.training else 1.0))


@refused("keep_prob")
class KeptByName(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.keep_prob = 0.75

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.keep_prob, self.training)


@refused("survival_prob")
class Surviving(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.survival_prob = 0.75

    def forward(self, x: Tensor) -> Tensor:
        if self.training and torch.rand([]) > self.survival_prob:
            return x * 0
        return x / (1 - self.survival_prob)


# Passed over: called like rates, and no forward uses them.


@passed_over
class NeverRead(WithChild):
    def __init__(self) -> None:
        super().__init__()
        self._drop_prob = self.keep_prob = self.p


@passed_over
class Printed(WithChild):
    def extra_repr(self) -> str:
        return f"p={self.p}"

    def __repr__(self) -> str:
        return str(self.p)

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        if x.isnan().any():
            print(self.p, f"{self.p:.2f}", "%s" % round(self.p))  # noqa: UP031
        return x


@passed_over
class Checked(WithChild):
    def forward(self, x: Tensor) -> Tensor:
        assert 0 <= self.p < 1, f"{self.p} is no rate"
        if self.p < 0:
            raise ValueError("rate", self.p)
        return super().forward(x)


@passed_over
class Shown(WithChild):
    @property
    def dropout_rate(self) -> float:
        return self.drop.p


@passed_over
class Compared(WithChild):
    def forward(self, x: Tensor) -> Tensor:
        if self.p > 0 and self.drop is not None:
            x = self.drop(x)
        return x if self.p else self.drop(x)


@passed_over
class Saved(WithChild):
    def to_dict(self) -> dict[str, float]:
        return {"p": self.p}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "rate": self.p * 1}


@passed_over
class Overridden(Functional):
    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(x)


@passed_over
class Logged(lightning.pytorch.LightningModule):
    def __init__(self, p: float = 0.25) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.p = p
        self.drop = nn.Dropout(p)

    def configure_model(self) -> None:
        self.drop = build(p=self.hparams.p)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1 * (1 - self.p))

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(x)

    def training_step(self, batch: Tensor) -> Tensor:
        self.log("p", self.p)
        self.log_dict({"rate": self.hparams.p})
        self.logger.experiment.add_scalar("p", self.p, self.global_step)
        return self(batch).sum()


@passed_over
class AskingATrainerThatIsNotThere(lightning.pytorch.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.25)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(x)

    def training_step(self, batch: Tensor) -> Tensor:
        return self(batch).sum() * self.trainer.datamodule.drop_last


def build(p: float) -> nn.Dropout:
    return nn.Dropout(p)


@passed_over
class RebuiltByItself(WithChild):
    def widen(self) -> None:
        self.drop = nn.Dropout(self.p)


@passed_over
class ANorm(WithChild):
    def __init__(self) -> None:
        super().__init__(p=3.0)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / x.norm(p=self.p)


@passed_over
class ASwitch(WithChild):
    def __init__(self) -> None:
        super().__init__()
        self.token_dropout = True
        self.num_dropped = 1

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.token_dropout + self.num_dropped


# The rows.


@pytest.fixture(autouse=True)
def _read_anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a wrong reader read stays in its test."""
    monkeypatch.setattr(method, "_cache", WeakKeyDictionary())
    source._source_of.cache_clear()
    yield
    source._source_of.cache_clear()


def claimed(sites: list[Site], model: nn.Module) -> list[Claim]:
    names = {id(None): "None"} | {id(module): name or "self" for name, module in model.named_modules()}
    return [(site.name, site.kind, tuple(names[id(owner)] for owner in site.owners), site.below_one) for site in sites]


def run(model: nn.Module) -> Tensor:
    output: Tensor = model(torch.linspace(-2, 2, 32).view(8, 4))
    return output


@pytest.mark.parametrize("row", FOUND)
def test_it_is_found_and_it_drops(row: str, check: Any) -> None:
    cls, claim = FOUND[row]
    model = cls()
    sites = find_sites(model)
    assert claimed(sites, model) == [claim]
    check(model, run, sites)()


@pytest.mark.parametrize("row", REFUSED)
def test_it_is_refused_by_name(row: str) -> None:
    cls, path = REFUSED[row]
    model = nn.Sequential(nn.Dropout(0.1), cls())
    with pytest.raises(
        ValueError, match=rf"got `1` \([\w.]+{row}\): it reads `{path}=0\.\d+`, which looks like a rate"
    ):
        find_sites(model)


@pytest.mark.parametrize("row", PASSED_OVER)
def test_it_is_passed_over(row: str, check: Any) -> None:
    model = PASSED_OVER[row]()
    sites = find_sites(model)
    assert claimed(sites, model) == [("drop", "dropout", ("drop",), False)]
    check(model, run, sites)()


def test_the_kept_ones_are_kept() -> None:
    """The rows that are refused as inverted do drop less at a higher number."""
    x = torch.ones(1000, 4)
    for cls in (Kept, KeptAboveTheComplement, KeptAboveALocalComplement, KeptByBernoulli, KeptByADistribution):
        layer = cls()
        shares = []
        for layer.p in (0.1, 0.9):
            shares.append((layer(x) == 0).float().mean())
        assert shares[0] > 0.85 > 0.15 > shares[1], cls


# Classes whose source cannot be read.


def typed(forward: str, **scope: Any) -> Any:
    """A class that is typed at a prompt, with this expression for a forward."""
    code = f"class Typed(nn.Module):\n    p = 0.3\n    def forward(self, x):\n        return {forward}"
    exec(code, scope := {"nn": nn, "F": F, **scope})
    return scope["Typed"]


@pytest.mark.parametrize("scope", [{"__name__": "nowhere"}, {}], ids=["a module", "no module"])
def test_a_class_without_source_is_refused_if_it_reads_a_rate(scope: Any) -> None:
    with pytest.raises(ValueError, match=r"Typed: it reads `p=0\.3`, which looks like a rate"):
        find_sites(typed("F.dropout(x, self.p, self.training)", **scope)())
    harmless = typed("F.dropout(x, 0.0, self.training)", **scope)
    assert [site.name for site in find_sites(nn.Sequential(harmless(), nn.Dropout(0.1)))] == ["1"]


def test_a_class_without_source_is_no_obstacle_if_it_reads_none() -> None:
    layer = typed("self.drop(x)")()
    layer.drop = nn.Dropout(0.1)
    assert [site.name for site in find_sites(layer)] == ["drop"]


# Switches.


class Switched(nn.Module):
    """A layer behind a switch."""

    def __init__(self, on: bool) -> None:
        super().__init__()
        self.on = on
        self.drop = nn.Dropout(0.25)
        self.always = nn.Dropout(0.25)

    def forward(self, x: Tensor) -> Tensor:
        return self.always(self.drop(x) if self.on else x)


class SwitchedOnTheWay(Switched):
    """A switch that the forward itself turns."""

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        self.on = True
        return x


class SwitchedByAProperty(Switched):
    """A switch that is computed, at a price."""

    @property
    def on(self) -> bool:
        raise AssertionError("finding runs no code of the model")

    @on.setter
    def on(self, value: bool) -> None:
        pass


@pytest.mark.parametrize(
    ("cls", "on", "expected"),
    [
        (Switched, True, ["drop", "always"]),
        (Switched, False, ["always"]),
        (SwitchedOnTheWay, False, ["drop", "always"]),
        (SwitchedByAProperty, False, ["drop", "always"]),
    ],
)
def test_a_layer_behind_a_switch_is_a_site_unless_the_switch_is_off_for_good(
    cls: Any, on: bool, expected: list[str]
) -> None:
    assert [site.name for site in find_sites(cls(on))] == expected


class TwoWays(nn.Module):
    """Two methods, of which one is called."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.fused = fused
        self.attn_drop = nn.Dropout(0.25)
        self.out_drop = nn.Dropout(0.25)

    def quickly(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x, x, dropout_p=self.attn_drop.p if self.training else 0.0)

    def plainly(self, x: Tensor) -> Tensor:
        return self.attn_drop(x @ x.mT) @ x

    def forward(self, x: Tensor) -> Tensor:
        return self.out_drop(self.quickly(x) if self.fused else self.plainly(x))


@pytest.mark.parametrize(("fused", "owner"), [(True, "self"), (False, "attn_drop")])
def test_a_method_that_a_switch_leaves_out_does_not_run(fused: bool, owner: str, check: Any) -> None:
    model = TwoWays(fused=fused)
    sites = find_sites(model)
    assert claimed(sites, model)[0] == ("attn_drop", "attention", (owner,), False)
    check(model, run, sites)()


# What the reader says.


def test_a_source_says_what_was_read() -> None:
    read = source_of(FusedAttention)
    assert {(reading.path, reading.kind, reading.owner) for reading in read.readings} == {
        ("attn_drop.p", "attention", "")
    }
    assert {reading.conditions for reading in read.readings} == {(("fused", True),)}
    assert [adapter.attribute for adapter in read.adapters] == ["attn_drop.p"]
    assert source_of(HandedOn).unexplained == {"p"}
    assert source_of(nn.Linear).readings == source_of(nn.Dropout).readings == ()


def test_one_rate_that_is_read_twice_is_one_adapter() -> None:
    class Twice(Base):
        def forward(self, x: Tensor) -> Tensor:
            x = F.dropout(x, self.p, self.training)
            return F.scaled_dot_product_attention(x, x, x, dropout_p=self.p if self.training else 0.0)

    (adapter,) = source_of(Twice).adapters
    assert (adapter.attribute, adapter.kind) == ("p", "attention")


def test_a_rate_of_two_owners_needs_both() -> None:
    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout(0.25)

        def forward(self, x: Tensor) -> Tensor:
            x = F.dropout(x, self.drop.p, self.drop.training)
            return F.dropout(x, self.drop.p, self.training)

    model = Nested()
    (site,) = find_sites(model)
    assert {id(owner) for owner in site.owners} == {id(model), id(model.drop)}


def test_a_known_layer_may_have_a_mixin_behind_it() -> None:
    class Scattering:
        def scattered(self: Any, x: Tensor) -> Tensor:
            return F.dropout(x, self.word_drop, self.training)

    class Known(nn.Dropout, Scattering):
        word_drop = 0.25

        def forward(self, x: Tensor) -> Tensor:
            return self.scattered(super().forward(x))

    model = nn.Sequential(Known(0.5))
    assert [(site.name, site.attribute) for site in find_sites(model)] == [("0", "p"), ("0.word_drop", "word_drop")]


def test_a_property_that_cannot_be_set_says_so_when_it_is() -> None:
    class Computed(Base):
        @property
        def drop_rate(self) -> float:
            return self.p * 2

        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(x, self.drop_rate, self.training)

    (site,) = find_sites(Computed())
    assert site.rate == 0.5
    with pytest.raises(ValueError, match=r"`Computed\.drop_rate` \(the rate of drop_rate\) to be writable"):
        site.rate = 0.1


# What no reader can see is the audit's business; nobody shall think that it is found here.


class Literal(WithChild):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.dropout(x, 0.5, self.training))


class OfAList(WithChild):
    def __init__(self) -> None:
        super().__init__()
        self.rates = [0.1, 0.2]

    def forward(self, x: Tensor) -> Tensor:
        for rate in self.rates:
            x = F.dropout(x, rate, self.training)
        return super().forward(x)


class OnTheInstance(WithChild):
    def __init__(self) -> None:
        super().__init__()
        self.act: Callable[[Tensor], Tensor] = lambda x: F.dropout(x, self.p, self.training)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.act(x))


@pytest.mark.parametrize("cls", [Literal, OfAList, OnTheInstance])
def test_a_rate_that_is_no_attribute_of_the_code_is_missed(cls: Any, check: Any) -> None:
    model = cls()
    sites = find_sites(model)
    assert [site.name for site in sites] == ["drop"]
    with pytest.raises(AssertionError, match="something drops that is no site"):
        check(model, run, sites)()


# Wrong readers.


def verdicts() -> dict[str, Any]:
    """What the reader makes of every row."""

    def verdict(cls: type[nn.Module]) -> Any:
        model = cls()
        try:
            return claimed(find_sites(model), model)
        except ValueError:
            return "refused"

    rows = {**{row: cls for row, (cls, _) in (FOUND | REFUSED).items()}, **PASSED_OVER}
    return {row: verdict(cls) for row, cls in rows.items()}


def never(self: Any, *args: Any) -> None:
    return None


MUTANTS: dict[str, tuple[Any, str, Any, set[str]]] = {
    "knows layers only": (
        source.ClassSource,
        "adapters",
        (),
        {"Functional", "FusedAttention", "AMask", "InAConfiguration"},
    ),
    "does not ask on the way": (
        method._Reader,
        "_facts",
        lambda self, test: ((), ()),
        {"OnlyInTraining", "NotInEvaluation", "ZeroInEvaluation", "AttentionWithANumberAndAnIdleChild"},
    ),
    "ignores switches": (
        source.ClassSource,
        "_holds",
        lambda self, module, conditions: True,
        {"PlainAttention", "AttentionWithANumberAndAnIdleChild"},
    ),
    "wakes every child": (
        source.ClassSource,
        "asleep",
        lambda self, module: set(),
        {"FusedAttention", "OnAChildThatIsNotCalled"},
    ),
    "takes a child as the owner": (
        method,
        "_asked",
        lambda known: "fc" if ("training", True) in known else None,
        {"OnlyInTraining", "ZeroInEvaluation"},
    ),
    "does not follow names": (
        method._Reader,
        "_meaning",
        lambda self, node: node,
        {"LocalNames", "ATupleOfNames", "AWalrus", "DeepInAConfiguration"},
    ),
    "sees no complement": (method._Reader, "_complement", never, {"AMask", "MyDropPath"}),
    "does not look which way a comparison goes": (
        method._Reader,
        "visit_Compare",
        method._Reader.generic_visit,
        {"KeptAboveTheComplement", "KeptAboveALocalComplement", "SkipsLayers"},
    ),
    "takes what is kept for what is dropped": (method, "_keeps", lambda path: False, {"KeptByName", "Surviving"}),
    "reads what does not run": (source, "_NOT_RUN", re.compile("__init__"), {"Saved", "Logged"}),
    "takes logging for use": (method, "_HARMLESS_CALLS", frozenset(), {"Logged", "Printed"}),
    "knows rates by their names alone": (method, "_argument", never, {"WithoutAWordOfDropping"}),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_wrong_reader_fails_the_rows(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = verdicts()
    where, name, wrong, killed_by = MUTANTS[mutant]
    method._cache.clear()
    source._source_of.cache_clear()
    monkeypatch.setattr(where, name, wrong)
    changed = {row for row, verdict in verdicts().items() if verdict != right[row]}
    assert killed_by <= changed
