"""The comparison of what a forward did with what the sites say it should do.

Reads the events of an observer and the sites of a model, runs and changes nothing. Whatever it cannot attribute it
reports as such: neither a drop that nobody knows of nor a rate that nobody uses may pass as found.
"""

import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import nn

from lightning_dropout.sites.adapters.method import RATE_NAME
from lightning_dropout.sites.adapters.registry import Kind, adapters_of, is_rate, is_registered
from lightning_dropout.sites.findings import Audit, Row
from lightning_dropout.sites.names import walk
from lightning_dropout.sites.observation import HIDDEN_FROM_TORCH, Event, Observer
from lightning_dropout.sites.site import Site
from lightning_dropout.sites.slots import empty_slots

__all__ = ["compare"]

# These hand their rate to a function of torch, which shows it; a draw beside them is not theirs.
_SHOWN_KINDS = ("attention", "recurrent")
_LAYER_KINDS = ("layer_drop", "drop_path")
_KIND_OF_OPERATION: dict[str, Kind] = {
    "scaled_dot_product_attention": "attention",
    "multi_head_attention_forward": "attention",
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), "recurrent"),
}


def compare(model: nn.Module, sites: Sequence[Site], observer: Observer, rates: Sequence[float] | None = None) -> Audit:
    """Compare what ``observer`` saw with ``sites``; runs and changes nothing.

    To be called while the model is still in the modes of the observed forward. Where two sites of one module hold the
    same rate and only one is used, both count as firing: :func:`audit` tells them apart, as it lends them other rates.

    Args:
        model: What was observed.
        sites: All sites of ``model``.
        observer: Has seen one forward or more.
        rates: The rate of each site in that forward; ``None`` for those that they hold.
    """
    return _Comparison(model, sites, observer, rates).result()


class _Comparison:
    def __init__(
        self, model: nn.Module, sites: Sequence[Site], observer: Observer, rates: Sequence[float] | None
    ) -> None:
        self.sites = sites
        self.events = observer.events
        self.reached = observer.called | {id(event.module) for event in observer.events}
        self.rates = (
            {site.key: site.rate for site in sites}
            if rates is None
            else {site.key: rate for site, rate in zip(sites, rates, strict=True)}
        )
        modules = {name: module for name, module, _ in walk(model)}
        self.model = modules[""]  # without its wrappers
        self.names = {id(module): name for name, module in reversed(modules.items())}  # the first name wins
        self.near: dict[int, list[Site]] = defaultdict(list)  # by the modules whose code may use the site
        for site in sites:
            users = [module for user in site.users for module in (*user.owners, user.module)]
            for key in {id(module) for module in (site.holder, *users)}:
                self.near[key].append(site)
        self.fired: dict[tuple[int, str], Counter[str]] = defaultdict(Counter)

    def result(self) -> Audit:
        others = [event for event in self.events if not self._names_a_site(event)]
        named = frozenset(self.fired)
        strangers = [self._stranger(event) for event in others if not self._draws_for_a_site(event, named)]
        rows = (*(self._row(site) for site in self.sites), *strangers)
        return Audit(type(self.model).__name__, rows, tuple(empty_slots(self.model)))

    def _names_a_site(self, event: Event) -> bool:
        """Book an event for the sites whose rate it shows."""
        found = [site for site in self.near[id(event.module)] if self._is_rate_of(site, event)]
        self._book(found, event)
        return bool(found)

    def _is_rate_of(self, site: Site, event: Event) -> bool:
        rate = self.rates[site.key]
        if event.rate is None or rate == 0.0:
            return False
        return event.rate == rate or (_draws_kept(event) and event.rate == 1.0 - rate)

    def _draws_for_a_site(self, event: Event, named: frozenset[tuple[int, str]]) -> bool:
        """Book a draw for the sites that it may belong to: those of its module that no rate has shown."""
        if event.rate is not None and not _draws_kept(event):
            return False
        found = [site for site in self.near[id(event.module)] if site.key not in named and self._may_draw(site, event)]
        self._book([site for site in found if site.kind in _LAYER_KINDS] or found, event)
        # `bernoulli` at 0 or 1 draws nothing, and is often given something computed from the rate.
        return bool(found) or event.rate in (0.0, 1.0) or (event.rate is None and _drops_nothing(event.module))

    def _book(self, sites: Iterable[Site], event: Event) -> None:
        for site in sites:
            self.fired[site.key][event.operation] += self.events[event]

    def _may_draw(self, site: Site, event: Event) -> bool:
        return site.effective_rate > 0.0 and (site.kind not in _SHOWN_KINDS or event.operation == HIDDEN_FROM_TORCH)

    def _row(self, site: Site) -> Row:
        place = site.name, site.kind, site.rate, len(site.users)
        if operations := self.fired.get(site.key):
            return Row("firing", *place, operation=", ".join(operations), count=operations.total())
        reason, cure = self._silence(site)
        return Row("silent", *place, reason=reason, cure=cure)

    def _silence(self, site: Site) -> tuple[str, str]:
        if site.rate == 0.0:
            return "rate 0", "set a rate above 0, or build the model with one"
        if site.effective_rate == 0.0:
            sleeping = [owner for owner in site.owners if not owner.training]
            layer = next((owner for owner in sleeping if isinstance(owner, nn.TransformerEncoderLayer)), None)
            name, ending = self._name(layer or sleeping[0]), " (fast path)" if layer else ""
            return f"`{name or 'the model'}` is in eval mode{ending}", "put it into train mode"
        if not any(all(id(owner) in self.reached for owner in user.owners) for user in site.users):
            if self._may_be_skipped(site):
                return "skipped by layer drop in this forward", "observe another forward"
            return "never reached by this forward", "call the model in a way that reaches it, or leave it out"
        return "reached, but this forward did not use the rate", "correct its adapter, or leave it out"

    def _may_be_skipped(self, site: Site) -> bool:
        skipping = [
            owner
            for other in self.sites
            if other.kind == "layer_drop" and other.key in self.fired
            for owner in other.owners
        ]
        return any(site.name.startswith(f"{self._name(owner)}.") for owner in skipping)

    def _stranger(self, event: Event) -> Row:
        """Return the row of what belongs to no site."""
        cls = type(event.module).__name__
        seen: dict[str, Any] = {
            "name": self._name(event.module),
            "operation": event.operation,
            "count": self.events[event],
            "location": _location(event),
        }
        if event.rate is None:
            cure = f'if it drops, `register_adapter({cls}, "<attribute>")`; if not, `register_adapter({cls}, None)`'
            return Row("unknown", **seen, reason="draws at random", cure=cure)
        site = next((site for site in self.sites if self._is_rate_of(site, event)), None)
        rate, path = _path_of_rate(event, site)
        kind = _KIND_OF_OPERATION.get(event.operation)
        line = f'`register_adapter({cls}, "{path or "<attribute>"}"' + (f', kind="{kind}")`' if kind else ")`")
        if path is None:
            reason, cure = "its rate is a literal or computed", f"make it an attribute of {cls}, then {line}"
        else:
            reason, cure = f"no site knows that it drops at `{path}`", line
        return Row("unregistered", **seen, kind=kind or "dropout", rate=rate, reason=reason, cure=cure)

    def _name(self, module: nn.Module) -> str:
        while id(module) not in self.names:  # a wrapper
            module = next(module.children())
        return self.names[id(module)]


def _draws_kept(event: Event) -> bool:
    """Tell whether the rate of ``event`` may be that of keeping."""
    return event.operation.startswith("bernoulli")


def _drops_nothing(module: nn.Module) -> bool:
    """Tell whether somebody has registered that the class draws without dropping."""
    return not adapters_of(module) and any(is_registered(base) for base in type(module).__mro__)


def _path_of_rate(event: Event, site: Site | None) -> tuple[float, str | None]:
    """Return the rate of an event, and a guess of where its module, a child or a configuration holds it.

    During an audit the number in the event is lent, and ``site`` is the one that it was lent to.
    """
    assert event.rate is not None  # noqa: S101  (asked about drops only)
    rates = [event.rate if site is None else site.rate]
    if site is None and _draws_kept(event):
        rates.append(1.0 - event.rate)
    found = []
    for prefix, holder in _holders(event.module):
        for attribute, value in _attributes(holder).items():
            if is_rate(value) and float(value) in rates:
                public = attribute.lstrip("_")
                name = public if hasattr(type(holder), public) else attribute
                is_site = site is not None and site.key == (id(holder), name)
                found.append((not is_site, not RATE_NAME.fullmatch(public), f"{prefix}{name}", float(value)))
    return (min(found)[3], min(found)[2]) if found else (rates[0], None)


def _holders(module: nn.Module) -> Iterator[tuple[str, object]]:
    yield "", module
    for name, child in module.named_children():
        yield f"{name}.", child
    for name, value in vars(module).items():
        if hasattr(value, "__dict__") and "config" in name:
            yield f"{name}.", value


def _attributes(holder: object) -> dict[str, Any]:
    parts = (*reversed(type(holder).__mro__), holder)
    return {name: value for part in parts for name, value in getattr(part, "__dict__", {}).items()}


def _location(event: Event) -> str:
    """Return ``file:line``, the file from the folder that it is imported from."""
    folders = [f"{folder}/" for folder in sys.path if folder and event.file.startswith(f"{folder}/")]
    return f"{event.file.removeprefix(max(folders, key=len, default=''))}:{event.line}" if event.file else ""
