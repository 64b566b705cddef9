"""Sites: the places where a model drops, found whoever wrote them.

The only room that knows layer classes; everything above asks for sites and sets their ``rate``. Finding reads a model
and never changes it.
"""

import difflib
import numbers
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, get_args

from torch import nn

from lightning_dropout.probability import check_probability
from lightning_dropout.sites.adapters import adapters_of, is_known
from lightning_dropout.sites.adapters import own as _own  # noqa: F401  (registers)
from lightning_dropout.sites.adapters import torch as _torch  # noqa: F401  (registers)
from lightning_dropout.sites.adapters.registry import Kind

__all__ = ["Kind", "Site", "find_sites", "matches", "sites_of"]

# Wrappers put these between a module and its children; nobody writes them into a pattern.
_WRAPPER_NAMES = frozenset({"_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_orig_mod"})
_WRAPPERS_BY_CHILD = (nn.DataParallel, nn.parallel.DistributedDataParallel)  # their only child is called "module"

# torch itself is known class by class; a metric never drops; a parent of ours keeps its rates in its layers.
_TRUSTED_LIBRARIES = frozenset({"torch", "torchmetrics", "lightning_dropout"})
# Here a child Dropout often only stores the rate of a fused attention, whose own flag decides: no adapter, no trust.
_LIBRARIES_WITH_FUSED_ATTENTION = frozenset({"timm", "torchvision", "transformers"})
_RATE_LIKE = re.compile(r"p|prob|.*drop.*|.*(keep|survival)_prob", re.IGNORECASE)


@dataclass(eq=False)
class Site:
    """One place that drops.

    Args:
        name: Dotted name of the module in the model, without the names that wrappers insert.
        kind: ``"dropout"``, ``"attention"``, ``"recurrent"``, ``"drop_path"`` or ``"layer_drop"``.
        holder: The object on which the rate lives.
        attribute: The holder's attribute that is the rate.
        owners: The modules whose ``training`` flags turn the drop on; all of them must be set.
    """

    name: str
    kind: Kind
    holder: Any
    attribute: str
    owners: tuple[nn.Module, ...]

    @property
    def rate(self) -> float:
        """Probability of dropping, in [0, 1], as the next train-mode forward will use it."""
        return float(getattr(self.holder, self.attribute))

    @rate.setter
    def rate(self, value: float) -> None:
        setattr(self.holder, self.attribute, check_probability(value, f"rate of {self.name or 'the model'}"))

    @property
    def effective_rate(self) -> float:
        """The rate, or 0 while one of the owners is in eval mode."""
        return self.rate if all(owner.training for owner in self.owners) else 0.0

    @property
    def key(self) -> tuple[int, str]:
        """Identity of the place: equal for two sites that are the same number in the same object."""
        return id(self.holder), self.attribute


def find_sites(
    model: nn.Module,
    include: str | Sequence[str] = "*",
    exclude: str | Sequence[str] = (),
    kinds: Kind | Sequence[Kind] | None = None,
) -> list[Site]:
    """Return every place where ``model`` drops, in the order of its modules.

    Independent of train and eval mode: a site with rate 0 or a sleeping owner is a site. A module that several parents
    share is one site, named where it is met first.

    Args:
        model: Any module.
        include: Glob pattern or patterns on dotted names; a pattern may begin at any dot, so ``"blocks.*"`` finds
            ``"net.blocks.0.drop"``.
        exclude: Patterns to leave out; they win over ``include``.
        kinds: Kinds to keep; ``None`` keeps all.

    Raises:
        ValueError: If nothing matches (the message names what comes close), if a module of another library holds what
            looks like a rate and no adapter tells how it drops, or if an adapter's attribute holds no probability.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.1), nn.ReLU(), nn.Dropout(0.5))
        >>> [(site.name, site.rate) for site in find_sites(model)]
        [('1', 0.1), ('3', 0.5)]
        >>> find_sites(model, "3")[0].rate = 0.2
        >>> model[3]
        Dropout(p=0.2, inplace=False)
    """
    wanted = get_args(Kind) if kinds is None else (kinds,) if isinstance(kinds, str) else tuple(kinds)
    unknown = [kind for kind in wanted if kind not in get_args(Kind)]
    if unknown:
        raise ValueError(f"Expected `kinds` among {', '.join(get_args(Kind))}, but got {', '.join(map(str, unknown))}.")
    found = [site for site in sites_of(model, include, exclude) if site.kind in wanted]
    if not found:
        raise ValueError(_nothing_found(model, include, exclude, wanted))
    return found


def sites_of(
    model: nn.Module, include: str | Sequence[str] = "*", exclude: str | Sequence[str] = (), *, strict: bool = True
) -> list[Site]:
    """Return the matching sites of all kinds, possibly none; for callers that have their own word for an empty list.

    With ``strict=False`` modules that may drop in an unknown way are passed over instead of refused.
    """
    sites = []
    for name, module, ancestors in _walk(model):
        if not matches(name, include) or matches(name, exclude):
            continue
        if strict:
            _refuse_unknown(name, module)
        for adapter in adapters_of(module):
            if adapter.applies(module):
                assert adapter.attribute is not None  # noqa: S101  (adapters_of leaves those out)
                check_probability(getattr(module, adapter.attribute, None), f"{name}.{adapter.attribute}".lstrip("."))
                owners = adapter.owners(module, ancestors)
                sites.append(Site(name, adapter.kind, module, adapter.attribute, owners))
    return sites


def matches(name: str, patterns: str | Sequence[str]) -> bool:
    """Tell whether a dotted name matches one of the glob patterns, each of which may begin at any dot.

    Example:
        >>> matches("net.blocks.0.drop", "blocks.*"), matches("net.blocks.0.drop", "locks.*")
        (True, False)
    """
    patterns = (patterns,) if isinstance(patterns, str) else patterns
    return any(fnmatchcase(name, pattern) or fnmatchcase(name, f"*.{pattern}") for pattern in patterns)


def _walk(model: nn.Module) -> Iterator[tuple[str, nn.Module, list[nn.Module]]]:
    """Yield (canonical name, module, ancestors nearest first), each module once."""
    seen: set[int] = set()

    def visit(module: nn.Module, path: tuple[str, ...], ancestors: list[nn.Module]) -> Iterator[Any]:
        if id(module) in seen:
            return
        seen.add(id(module))
        yield ".".join(path), module, ancestors
        for child_name, child in module.named_children():
            wraps = child_name in _WRAPPER_NAMES or isinstance(module, _WRAPPERS_BY_CHILD)
            yield from visit(child, path if wraps else (*path, child_name), [module, *ancestors])

    yield from visit(model, (), [])


def _refuse_unknown(name: str, module: nn.Module) -> None:
    """Raise for a module that may drop in a way that no adapter describes: better no run than a silent zero."""
    library = type(module).__module__.partition(".")[0]
    if library in _TRUSTED_LIBRARIES or is_known(module):
        return
    attributes = {key: value for part in (*reversed(type(module).__mro__), module) for key, value in vars(part).items()}
    if library == "transformers":  # its layers may read a rate from the shared config at every forward
        attributes |= {f"config.{key}": value for key, value in vars(getattr(module, "config", object)).items()}
    for attribute, value in attributes.items():
        if _RATE_LIKE.fullmatch(attribute) and _is_fraction(value):
            raise ValueError(_unknown(name, module, f"`{attribute}={value}` looks like a rate"))
    if library in _LIBRARIES_WITH_FUSED_ATTENTION and "attention" in type(module).__name__.lower():
        for child_name, child in module.named_children():
            if any(getattr(child, str(adapter.attribute)) > 0 for adapter in adapters_of(child)):
                raise ValueError(_unknown(name, module, f"it may use the rate of `{child_name}` without calling it"))


def _is_fraction(value: object) -> bool:
    """Tell whether ``value`` may be a rate: whole numbers count things and booleans switch them."""
    return isinstance(value, numbers.Real) and not isinstance(value, numbers.Integral) and 0.0 < float(value) <= 1.0


def _unknown(name: str, module: nn.Module, reason: str) -> str:
    cls = type(module)
    where = f"`{name}` ({cls.__module__}.{cls.__qualname__})" if name else f"{cls.__module__}.{cls.__qualname__}"
    return (
        f"Expected only layers whose dropping is known, but got {where}: {reason}; call "
        f'`register_adapter({cls.__qualname__}, "<attribute>", owner=..., kind=...)`, or with `None` as attribute if '
        f'it drops nothing of its own, or leave it out with `exclude="{name}"`.'
    )


def _nothing_found(
    model: nn.Module, include: str | Sequence[str], exclude: str | Sequence[str], kinds: tuple[str, ...]
) -> str:
    everything = sites_of(model, strict=False)
    wanted = f"sites={include!r}" + (f", exclude={exclude!r}" if exclude else "")
    wanted += f", kinds={kinds}" if kinds != get_args(Kind) else ""
    if not everything:
        return (
            f"Expected {type(model).__name__} to drop somewhere, but got no site in it ({wanted}); build it with "
            "dropout layers, or teach the package your own with `register_adapter`."
        )
    names = [site.name for site in everything]
    patterns = (include,) if isinstance(include, str) else tuple(include)
    near = [hit for pattern in patterns for hit in difflib.get_close_matches(pattern, names, n=3, cutoff=0.4)]
    shown = ", ".join(dict.fromkeys(near or names[:5]))
    others = {site.kind for site in everything if matches(site.name, include) and not matches(site.name, exclude)}
    hint = f"; what matches is of kind {', '.join(sorted(others))}" if others else ""
    counts = ", ".join(f"{count} {kind}" for kind, count in sorted(Counter(site.kind for site in everything).items()))
    return (
        f"Expected a site that matches, but got none for {wanted}; the model has {len(everything)} "
        f"({counts}), {'closest' if near else 'e.g.'}: {shown}{hint}."
    )
