"""Rates that are no layers: read off the source code of a class, since nowhere else it is written how it drops.

Half of today's models drop without a dropout layer: ``F.dropout(x, p=self.dropout, training=self.training)``,
``scaled_dot_product_attention(dropout_p=self.attn_drop.p if self.training else 0.0)``, ``torch.rand([]) <
self.layerdrop``. This file puts together what the methods of a class say (``method.py`` reads one) and makes an adapter
of each rate, so that one rule serves hundreds of classes, and an attribute that is only called like a rate stays
untouched. It reads classes, never runs them; what it cannot explain it reports.
"""

import dis
import inspect
import re
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache

from torch import nn

from lightning_dropout.sites.adapters.method import (
    DROP_PATH,
    IS_NONE,
    RATE_NAME,
    Facts,
    Reading,
    may_drop,
    mentions,
    names_in,
    read_method,
)
from lightning_dropout.sites.adapters.registry import (
    Adapter,
    Kind,
    generation,
    is_rate,
    is_registered,
    resolve,
    unused_children,
)

__all__ = ["ClassSource", "source_of"]

# Their base classes drop nothing that is not registered class by class.
_TRUSTED = ("torch.", "torchmetrics.", "lightning.", "pytorch_lightning.", "lightning_dropout.")
_TRUSTED_PARTS = ("torchvision.transforms.",)  # random, but they change data and drop nothing
# Methods that build or print; what they read is not what a forward uses.
_NOT_RUN = re.compile(r"__(?!call__)\w+__|extra_repr|setup|configure_\w+|to_dict|get_config")
_SURGERY = re.compile(r"_?(prune|reset|set|init|load|fuse|unfuse|merge|unmerge|convert|switch|enable|disable|freeze)_")
_MISSING = object()


@dataclass(frozen=True)
class ClassSource:
    """What the methods of a class say together.

    Args:
        readings: The rates that they use.
        unexplained: Paths that look like rates and are read in a way that is not understood.
        methods: What was read, for questions about children.
        unused: Children that no method mentions, and that somebody has registered as never called.
    """

    readings: tuple[Reading, ...]
    unexplained: frozenset[str]
    methods: tuple[types.FunctionType, ...] = field(repr=False)
    unused: frozenset[str] = frozenset()

    @cached_property
    def adapters(self) -> tuple[Adapter, ...]:
        """One adapter for each rate, whatever the number of its readings."""
        paths = dict.fromkeys(reading.path for reading in self.readings)
        return tuple(self._adapter([reading for reading in self.readings if reading.path == path]) for path in paths)

    def _adapter(self, readings: Sequence[Reading]) -> Adapter:
        def applies(module: nn.Module) -> bool:
            return is_rate(resolve(module, readings[0].path)) and any(self._reached(module, each) for each in readings)

        def owners(module: nn.Module, ancestors: Sequence[nn.Module]) -> tuple[nn.Module, ...]:
            found = [each.owner for each in readings if self._reached(module, each)]
            if None in found:
                return ()
            return tuple(dict.fromkeys(resolve(module, path) if path else module for path in found if path is not None))

        kinds = [reading.kind for reading in readings]
        kind: Kind = next((kind for kind in kinds if kind != "dropout"), "dropout")
        return Adapter(readings[0].path, kind, owners, applies, below_one=any(each.own_mask for each in readings))

    @cached_property
    def kinds(self) -> dict[str, Kind]:
        """What the children drop whose ``p`` the code reads, also where a switch makes it call them instead."""
        paths = {adapter.attribute: adapter.kind for adapter in self.adapters}
        return {path.removesuffix(".p"): kind for path, kind in paths.items() if path and path.endswith(".p")}

    def asleep(self, module: nn.Module) -> frozenset[str]:
        """Return the names of children that the code never calls in ``module``.

        The child Dropout of an attention that runs fused is one: its rate is read, and a call of it stands nowhere, or
        only behind a switch that is off.
        """
        return self.unused | {
            child
            for child, places in self._conditional.items()
            if not any(self._holds(module, where) and self._runs(module, method) for method, where in places)
        }

    @cached_property
    def _conditional(self) -> dict[str, list[tuple[str, Facts]]]:
        """Where the code mentions the children that may be asleep: in which method, under which switches."""
        places: dict[str, list[tuple[str, Facts]]] = {child: [] for child in self.kinds}
        for method in self.methods:
            for child, where in mentions(method):
                if may_drop(child):
                    places.setdefault(child, []).append((method.__name__, where))
        return {
            child: found for child, found in places.items() if child in self.kinds or any(where for _, where in found)
        }

    @cached_property
    def _calls(self) -> dict[str, list[Facts]]:
        """Under which switches the methods call each other: ``self._fused(x) if self.fused else ...``."""
        calls: dict[str, list[Facts]] = {method.__name__: [] for method in self.methods}
        for method in self.methods:
            for name, where in mentions(method):
                if name in calls:
                    calls[name].append(where)
        return calls

    def _reached(self, module: nn.Module, reading: Reading) -> bool:
        return self._holds(module, reading.conditions) and self._runs(module, reading.method)

    def _runs(self, module: nn.Module, method: str) -> bool:
        """Tell whether a method is called, as far as the others say."""
        calls = self._calls[method]
        return not calls or any(self._holds(module, where) for where in calls)

    def _holds(self, module: nn.Module, conditions: Facts) -> bool:
        return all(self._may_be(module, switch, wanted) for switch, wanted in conditions)

    def _may_be(self, module: nn.Module, switch: str, wanted: bool) -> bool:
        name = switch.removesuffix(IS_NONE)
        if name in self._set_by_methods:  # computed on the way: says nothing about the next forward
            return True
        places = (vars(module), module._modules, module._parameters, module._buffers, vars(type(module)))
        value = next((place[name] for place in places if name in place), _MISSING)
        if name != switch:
            return value is _MISSING or (value is None) is wanted
        return not isinstance(value, bool) or value is wanted

    @cached_property
    def _set_by_methods(self) -> frozenset[str]:
        # Surgery such as timm's `prune_to_tap` comes before a forward, and what it has set stands.
        methods = (method for method in self.methods if not _SURGERY.match(method.__name__))
        instructions = (instruction for method in methods for instruction in dis.get_instructions(method))
        return frozenset(str(each.argval) for each in instructions if each.opname == "STORE_ATTR")


def source_of(cls: type) -> ClassSource:
    """Return what the methods of ``cls`` say about rates, except for base classes that are known by themselves.

    Example:
        >>> class Head(nn.Linear):
        ...     def forward(self, x):
        ...         return nn.functional.dropout(super().forward(x), self.drop_rate, self.training)
        >>> source_of(nn.Linear).readings
        ()
    """
    return _source_of(cls, generation())


@lru_cache(maxsize=4096)
def _source_of(cls: type, generation: object) -> ClassSource:
    methods = tuple(_methods(cls))
    sources = [read_method(method) for method in methods]
    named = [
        replace(reading, kind=_kind_by_class(reading, cls), method=method.__name__)
        for method, source in zip(methods, sources, strict=True)
        for reading in source.readings
    ]
    readings = tuple(dict.fromkeys(named))
    explained = {reading.path for reading in readings}
    unexplained = frozenset(
        path
        for method, source in zip(methods, sources, strict=True)
        for path in source.unexplained
        if not _is_rate_property(cls, method.__name__)
    )
    mentioned = {name for method in methods for name, _ in mentions(method)}
    unused = frozenset(child for base in cls.__mro__ for child in unused_children(base)) - mentioned
    return ClassSource(readings, unexplained - explained, methods, unused)


def _is_rate_property(cls: type, name: str) -> bool:
    # What it computes its rate of is no rate: the code reads the property.
    return RATE_NAME.fullmatch(name) is not None and isinstance(inspect.getattr_static(cls, name, None), property)


def is_trusted(cls: type | types.FunctionType) -> bool:
    """Tell whether ``cls`` itself is of a library whose dropping classes are all registered."""
    return f"{cls.__module__}.".startswith(_TRUSTED + _TRUSTED_PARTS)


def _methods(cls: type) -> Iterator[types.FunctionType]:
    """Yield the methods that an instance runs, those of base classes that ``super()`` may reach included."""
    hidden: set[str] = set()
    known: set[type] = set()
    bases = {base.__name__ for base in cls.__mro__[1:] if not is_trusted(base)}
    for base in cls.__mro__:
        if is_registered(base):
            known.update(base.__mro__)
        passed_over = base in known or is_trusted(base) or _is_machinery(base)
        shown = set()
        for name, value in vars(base).items():
            function = value.fget if isinstance(value, property) else value
            function = inspect.unwrap(function) if callable(function) else function
            if not isinstance(function, types.FunctionType) or _NOT_RUN.fullmatch(name) or name in hidden:
                continue
            if not passed_over:
                yield function
                yield from _taking_the_module(function)
            # `super().forward(x)`, `Base.forward(self, x)`
            if {"super", *bases}.isdisjoint({*names_in(function.__code__), *function.__code__.co_freevars}):
                shown.add(name)
        hidden |= shown


def _taking_the_module(method: types.FunctionType) -> Iterator[types.FunctionType]:
    """Yield the functions that a method hands its module, and what a decorator hides: ``attend(self, ...)``."""
    functions = [method.__globals__.get(name) for name in names_in(method.__code__)]
    decorated = [cell.cell_contents for cell in method.__closure__ or () if cell != types.CellType()]
    for function in (*functions, *decorated):
        if isinstance(function, types.FunctionType) and not is_trusted(function):
            function = inspect.unwrap(function)
            if function.__code__.co_varnames[:1] in (("module",), ("self",)):
                yield function


def _is_machinery(cls: type) -> bool:
    # Loading, generation and checkpointing: hundreds of methods, no layer.
    return cls.__module__.startswith("transformers.") and not cls.__module__.startswith("transformers.models.")


def _kind_by_class(reading: Reading, cls: type) -> Kind:
    if reading.kind != "dropout":
        return reading.kind
    if reading.own_mask and DROP_PATH.search(cls.__name__):
        return "drop_path"
    return reading.kind
