"""Finding the sites of a model: a walk over its modules, asking the adapters of each class.

Finding reads a model and never changes it. What it cannot explain it refuses by name: a site that is missed would be a
schedule that does nothing, or an uncertainty of zero.
"""

import difflib
import numbers
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import get_args

import torch
from torch import Tensor, nn

from lightning_dropout.probability import check_probability
from lightning_dropout.sites.adapters import own as _own  # noqa: F401  (registers)
from lightning_dropout.sites.adapters import timm as _timm  # noqa: F401  (registers)
from lightning_dropout.sites.adapters import torch as _torch  # noqa: F401  (registers)
from lightning_dropout.sites.adapters import torchvision as _torchvision  # noqa: F401  (registers)
from lightning_dropout.sites.adapters import transformers as _transformers  # noqa: F401  (registers)
from lightning_dropout.sites.adapters.registry import Adapter, adapters_of, is_rate, resolve
from lightning_dropout.sites.adapters.source import ClassSource, source_of
from lightning_dropout.sites.names import Patterns, check_patterns, join, matches, walk
from lightning_dropout.sites.site import Kind, Site, User
from lightning_dropout.sites.slots import empty_slots

__all__ = ["find_sites", "selected", "sites_of"]


def find_sites(
    model: nn.Module, include: Patterns = "*", exclude: Patterns = (), kinds: Kind | Sequence[Kind] | None = None
) -> list[Site]:
    """Return every place where ``model`` drops, in the order of its modules.

    Independent of train and eval mode: a site with rate 0 or a sleeping owner is a site. A rate that several places
    share is one site, named where it is met first, with a user for each place. A layer goes by its own name
    (``"head.drop"``), a rate that a module's code reads by that of the module and the attribute
    (``"layers.0.attention_dropout"``, ``"encoder.config.layerdrop"``).

    Args:
        model: Any module; wrappers such as DDP, FSDP, checkpointing and ``torch.compile`` leave no trace in the names.
        include: Glob pattern or patterns on dotted names; a pattern may begin at any dot, so ``"blocks.*"`` finds
            ``"net.blocks.0.drop"``. A shared site is found by the name of any of its users.
        exclude: Patterns to leave out; they win over ``include``. Each has to match a site of any kind, or a module.
        kinds: Kinds to keep; ``None`` keeps all.

    Raises:
        ValueError: If nothing matches, or a pattern of ``exclude`` matches nothing (the message names what comes
            close), if a module holds what looks like a rate and neither an adapter nor its source code tells how it
            drops, if it is TorchScript or quantised and drops, or if an adapter's attribute holds no probability.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.1), nn.ReLU(), nn.Dropout(0.5))
        >>> [(site.name, site.rate) for site in find_sites(model)]
        [('1', 0.1), ('3', 0.5)]
        >>> find_sites(model, "3")[0].rate = 0.2
        >>> model[3]
        Dropout(p=0.2, inplace=False)
    """
    several = isinstance(kinds, Sequence) and not isinstance(kinds, str)
    wanted = get_args(Kind) if kinds is None else tuple(kinds) if several else (kinds,)
    unknown = [kind for kind in wanted if kind not in get_args(Kind)]
    if unknown:
        raise ValueError(f"Expected `kinds` among {', '.join(get_args(Kind))}, but got {', '.join(map(str, unknown))}.")
    found = [site for site in sites_of(model, include, exclude) if site.kind in wanted]
    if not found:
        raise ValueError(_nothing_found(model, include, exclude, wanted))
    _refuse_idle(model, exclude)
    return found


def sites_of(model: nn.Module, include: Patterns = "*", exclude: Patterns = (), *, strict: bool = True) -> list[Site]:
    """Return the matching sites of all kinds, possibly none; for callers that have their own word for an empty list.

    With ``strict=False`` modules that may drop in an unknown way are passed over instead of refused.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"Expected `model` to be a module, but got {type(model).__name__}; pass the network itself.")
    check_patterns(include, "include")
    check_patterns(exclude, "exclude")
    classes: dict[type, tuple[list[Adapter], ClassSource]] = {}
    found: dict[tuple[int, str], Site] = {}
    users: dict[tuple[int, str], dict[User, None]] = defaultdict(dict)
    asleep: set[str] = set()  # children that their parent's code never calls
    kinds: dict[str, Kind] = {}  # of children whose rate their parent's code reads, too
    for name, module, ancestors in walk(model):
        cls = type(module)
        if cls not in classes:
            classes[cls] = adapters_of(module), source_of(cls)
        registered, source = classes[cls]
        asleep |= {join(name, child) for child in source.asleep(module)}
        kinds |= {join(name, child): kind for child, kind in source.kinds.items()}
        places = [name, *(join(name, path) for path in source.unexplained)]
        chosen = any(matches(each, include) for each in places) and not any(matches(each, exclude) for each in places)
        if strict and chosen:
            _refuse_frozen(name, module)
            _refuse_unexplained(name, module, source)
        for adapter in (*registered, *source.adapters):
            if not adapter.applies(module):
                continue
            holder, attribute = adapter.holder(module)
            is_layer = adapter in registered and len(registered) == 1 and holder is module
            place = name if is_layer else join(name, _place(adapter, holder))
            if is_layer and name in asleep:
                continue
            check_probability(getattr(holder, attribute, None), join(place, attribute) if is_layer else place)
            key = (id(holder), attribute)
            if key not in found:
                kind = kinds.get(place, adapter.kind)
                found[key] = Site(place, kind, holder, attribute, (), adapter.below_one)
            users[key][User(place, adapter.owners(module, ancestors), module)] = None
    for key, site in found.items():
        site.users = tuple(users[key])
    return [site for site in found.values() if selected(site, include, exclude)]


def selected(site: Site, include: Patterns, exclude: Patterns = ()) -> bool:
    """Tell whether a user of ``site`` matches ``include`` and none matches ``exclude``."""
    names = [user.name for user in site.users]
    return any(matches(name, include) for name in names) and not any(matches(name, exclude) for name in names)


def _place(adapter: Adapter, holder: object) -> str:
    """Return how the rate is called below its module: the child that holds it, else the path of the attribute."""
    path = str(adapter.attribute)
    return path.rpartition(".")[0] if isinstance(holder, nn.Module) and "." in path else path


def _refuse_frozen(name: str, module: nn.Module) -> None:
    """Raise for a module that drops and whose rate can no longer be set."""
    where = f"`{name or 'the model'}`"
    leave_out = f', or leave it out with `exclude="{name}"`' if name else ""
    if isinstance(module, torch.jit.ScriptModule):
        graph = str(getattr(module, "inlined_graph", ""))
        if any(word in graph for word in ("dropout", "bernoulli", "aten::rand")):
            raise ValueError(
                f"Expected eager modules, but got TorchScript at {where}, whose rates are baked in; find the sites "
                f"before `torch.jit` compiles it{leave_out}."
            )
    elif isinstance(module, torch.fx.GraphModule):
        if any(node.op == "call_function" and "dropout" in str(node.target) for node in module.graph.nodes):
            raise ValueError(
                f"Expected eager modules, but got a traced graph at {where}, whose rates are baked in; find the sites "
                f"before `torch.fx` traces it{leave_out}."
            )
    elif type(module).__module__.startswith("torch.ao.nn.") and any(
        is_rate(rate := getattr(module, attribute, None)) and rate > 0 for attribute in ("p", "dropout")
    ):
        raise ValueError(
            f"Expected float modules, but got a quantised {type(module).__name__} at {where}, which no longer drops; "
            f"use the model as it was before `convert`{leave_out}."
        )


def _refuse_unexplained(name: str, module: nn.Module, source: ClassSource) -> None:
    """Raise for a module that may drop in a way that no adapter describes: better no run than a silent zero."""
    cls = type(module)
    where = f"`{name}` ({cls.__module__}.{cls.__qualname__})" if name else f"{cls.__module__}.{cls.__qualname__}"
    leave_out = f'leave it out with `exclude="{name}"`'
    for path in sorted(source.unexplained):
        value = resolve(module, path)
        # Whole numbers count things and booleans switch them.
        if isinstance(value, numbers.Real) and not isinstance(value, numbers.Integral) and 0.0 < float(value) <= 1.0:
            raise ValueError(
                f"Expected only layers whose dropping is known, but got {where}: it reads `{path}={value}`, which "
                f'looks like a rate; call `register_adapter({cls.__qualname__}, "{path}", owner=..., kind=...)`, or '
                f"with `None` as attribute if it drops nothing of its own, or {leave_out}."
            )
    tensors = [each.attribute for each in source.adapters if isinstance(resolve(module, str(each.attribute)), Tensor)]
    if tensors:
        raise ValueError(
            f"Expected rates that are numbers, but got {where}: `{tensors[0]}` is a tensor; hold the rate in a float, "
            f"or call `register_adapter({cls.__qualname__}, None)` if it may stay as it is, or {leave_out}."
        )


def _refuse_idle(model: nn.Module, exclude: Patterns) -> None:
    """Raise for a pattern that leaves nothing out: what it was to spare would drop."""
    if not exclude:
        return
    sites = [user.name for site in sites_of(model, strict=False) for user in site.users]
    modules = [(name, module) for name, module, _ in walk(model)]
    known = [*sites, *(name for name, _ in modules), *empty_slots(model)]
    known += [join(name, path) for name, module in modules for path in source_of(type(module)).unexplained]
    for pattern in (exclude,) if isinstance(exclude, str) else exclude:
        if not any(matches(name, pattern) for name in known):
            known = [name for name in known if name]  # the model itself has none
            raise ValueError(
                f"Expected `exclude` to match sites or modules of {type(model).__name__}, but got {pattern!r}, which "
                f"matches none; leave it out, or name what is there, {_nearest(pattern, known)}."
            )


def _nearest(patterns: Patterns, names: Sequence[str]) -> str:
    """Return what of ``names`` comes close to the patterns, or the first few of them, and which of both it is."""
    patterns = (patterns,) if isinstance(patterns, str) else patterns
    near = [hit for pattern in patterns for hit in difflib.get_close_matches(pattern, names, n=3, cutoff=0.4)]
    return f"{'closest' if near else 'e.g.'}: {', '.join(dict.fromkeys(near or names[:5]))}"


def _nothing_found(model: nn.Module, include: Patterns, exclude: Patterns, kinds: tuple[str, ...]) -> str:
    everything = sites_of(model, strict=False)
    wanted = f"sites={include!r}" + (f", exclude={exclude!r}" if exclude else "")
    wanted += f", kinds={kinds}" if kinds != get_args(Kind) else ""
    slots = empty_slots(model)
    left = (
        f" {len(slots)} slots such as {slots[0]} are empty, since the model was built with a rate of 0: build it with "
        "a rate above 0."
        if slots
        else ""
    )
    if not everything:
        return (
            f"Expected {type(model).__name__} to drop somewhere, but got no site in it ({wanted}); build it with "
            f"dropout layers, or teach the package your own with `register_adapter`.{left}"
        )
    names = [site.name for site in everything if site.kind in kinds] or [site.name for site in everything]
    others = {site.kind for site in everything if selected(site, include, exclude)}
    hint = f"; what matches is of kind {', '.join(sorted(others))}" if others else ""
    counts = ", ".join(f"{count} {kind}" for kind, count in sorted(Counter(site.kind for site in everything).items()))
    return (
        f"Expected a site that matches, but got none for {wanted}; the model has {len(everything)} "
        f"({counts}), {_nearest(include, names)}{hint}.{left}"
    )
