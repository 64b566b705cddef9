"""A site: one place that drops, with the number that says how often and the modules that switch it on.

Values only. How sites are found is ``find.py``'s business, which classes have them that of ``adapters/``.
"""

import inspect
from dataclasses import dataclass
from typing import Any

from torch import nn

from lightning_dropout.nn.rate import Rate
from lightning_dropout.probability import check_probability
from lightning_dropout.sites.adapters.registry import Kind

__all__ = ["Kind", "Site", "User"]


@dataclass(frozen=True)
class User:
    """One place in a model whose code drops at a site's rate.

    Args:
        name: Dotted name of the place, without the names that wrappers insert.
        owners: The modules whose ``training`` flags turn this place on: all of them must be set. Empty: it always
            drops, in evaluation too.
        module: The module whose code drops there.
    """

    name: str
    owners: tuple[nn.Module, ...]
    module: nn.Module

    @property
    def awake(self) -> bool:
        """Whether every owner is in train mode."""
        return all(owner.training for owner in self.owners)


@dataclass(eq=False)
class Site:
    """One rate, and every place that drops by it.

    Mostly one place; a Dropout shared by twelve blocks, or a number in a configuration that all layers read, is one
    site with many users.

    Args:
        name: Dotted name of the first user.
        kind: ``"dropout"``, ``"attention"``, ``"recurrent"``, ``"drop_path"`` or ``"layer_drop"``.
        holder: The object on which the rate lives: a module, or a configuration that modules share.
        attribute: The holder's attribute that is the rate.
        users: The places that drop by it.
        below_one: Whether the layer divides by its keep probability, so that a rate of 1 would give NaN.
    """

    name: str
    kind: Kind
    holder: Any
    attribute: str
    users: tuple[User, ...]
    below_one: bool = False

    @property
    def rate(self) -> float:
        """Probability of dropping, in [0, 1], as the next train-mode forward will use it."""
        return float(getattr(self.holder, self.attribute))

    @rate.setter
    def rate(self, value: float) -> None:
        number = check_probability(value, f"rate of {self.name or 'the model'}")
        if self.below_one and number == 1.0:
            raise ValueError(
                f"Expected `rate of {self.name or 'the model'}` to be below 1, since this layer divides by 1 - rate, "
                "but got 1.0; use a smaller rate."
            )
        try:
            setattr(self.holder, self.attribute, number)
        except Exception as error:  # a frozen dataclass, a property without a setter, a read-only configuration
            raise ValueError(
                f"Expected `{type(self.holder).__name__}.{self.attribute}` (the rate of {self.name or 'the model'}) to "
                f"be writable, but got {type(error).__name__}: {error}; leave it out with "
                f'`exclude="{self.name}"`, or hold the rate in an attribute that can be set.'
            ) from error

    @property
    def held(self) -> Any:
        """What the holder holds, as it is: to be given back by :meth:`give_back` when a borrowed rate is returned."""
        return getattr(self.holder, self.attribute)

    def give_back(self, held: Any) -> None:
        """Put back what :attr:`held` was, unchecked: also an ``int``, or a rate that nobody may set."""
        setattr(self.holder, self.attribute, held)

    @property
    def slot(self) -> tuple[dict[str, Any], str] | None:
        """Where writing a rate in [0, 1] is all that setting it does: a dictionary and its key; else ``None``.

        For who sets a hundred rates before every batch: ``nn.Module.__setattr__`` costs twenty times as much.
        """
        cls: Any = type(self.holder)
        name = self.attribute
        on_class = inspect.getattr_static(cls, name, None)
        if (
            self.below_one
            or cls.__setattr__ is not nn.Module.__setattr__  # nor is a configuration's
            or name not in vars(self.holder)
            or (hasattr(type(on_class), "__set__") and not isinstance(on_class, Rate))
        ):
            return None
        return vars(self.holder), name

    @property
    def owners(self) -> tuple[nn.Module, ...]:
        """Every module that must be in train mode for all users to drop, each once."""
        return tuple({id(owner): owner for user in self.users for owner in user.owners}.values())

    @property
    def effective_rate(self) -> float:
        """The rate, or 0 while no user has all of its owners in train mode."""
        return self.rate if any(user.awake for user in self.users) else 0.0

    @property
    def key(self) -> tuple[int, str]:
        """Identity of the place: equal for two sites that are the same number in the same object."""
        return id(self.holder), self.attribute
