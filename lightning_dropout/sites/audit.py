"""The audit: one forward in train mode, and what it really dropped beside what the sites say.

A rate that no forward uses, or a drop that no site knows, is found here and nowhere else. This file borrows the model,
its inputs and the random generators, and gives them back.
"""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_map

from lightning_dropout.randomness import isolated_randomness
from lightning_dropout.sites.comparison import compare
from lightning_dropout.sites.find import sites_of
from lightning_dropout.sites.findings import Audit
from lightning_dropout.sites.observation import Observer
from lightning_dropout.sites.site import Site

__all__ = ["Audit", "audit", "compare"]

# Small enough to change nothing, far above the spacing of floats: 1 - rate still tells them apart.
_STEP = 1e-7
# So small that no layer is skipped: what a skipped layer does would go unseen.
_LAYER_DROP_FACTOR = 1e-6


def audit(model: nn.Module, *args: Any, **kwargs: Any) -> Audit:
    """Run ``model(*args, **kwargs)`` once in train mode and say what dropped, what did not, and what nobody knew of.

    Every place is found and firing, found but silent (and why), firing but unregistered (and the line that registers
    it), or a draw of unknown kind. During the forward each site holds a rate of its own, different in the seventh
    digit, so that a rate seen in a function of torch proves which site it came from. Rates of layer drop are next to 0
    meanwhile, so that no layer is skipped. Modes, rates, attributes, buffers and random generators are given back as
    they were, also after an error (but not the contents of a list or dictionary that the forward fills); the inputs are
    copied; nothing is differentiated.

    Args:
        model: Any module; a compiled one runs eagerly here.
        args: What it is called with.
        kwargs: What it is called with.

    Raises:
        ValueError: If ``model`` is no module or holds a rate that is none; and whatever the forward raises.

    Example:
        >>> class Net(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.drop, self.spare = nn.Dropout(0.1), nn.Dropout(0.2)
        ...
        ...     def forward(self, x):
        ...         return nn.functional.dropout(self.drop(x), 0.5, self.training)
        >>> report = audit(Net(), torch.ones(2, 3))
        >>> [row.name for row in report.firing], [(row.name, row.reason) for row in report.silent]
        (['drop'], [('spare', 'never reached by this forward')])
        >>> [(row.operation, row.rate) for row in report.unregistered]
        [('dropout', 0.5)]
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"Expected `model` to be a module, but got {type(model).__name__}; pass the network itself.")
    sites = sites_of(model, strict=False)
    observer = Observer(model)
    # Without inference mode gradients are on, too, whatever the caller has chosen.
    with isolated_randomness(model), _given_back(model), _eagerly(), torch.inference_mode(False):
        args, kwargs = _copied((args, kwargs))
        model.train()
        with _lent(sites) as rates, observer:
            model(*args, **kwargs)
        return compare(model, sites, observer, rates)


# What an audit borrows.


def _copied(inputs: Any) -> Any:
    """Return ``inputs`` with other tensors: dropout that works in place would write into the caller's batch."""
    copies: dict[int, Tensor] = {}  # `key is value` stays true

    def copied(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        if id(leaf) not in copies:
            copies[id(leaf)] = leaf.clone()
        return copies[id(leaf)]

    return tree_map(copied, inputs)


@contextmanager
def _lent(sites: Iterable[Site]) -> Iterator[list[float]]:
    """Give each site that can drop a rate that no other has; yields the rates of all."""
    borrowed = [(site, site.held) for site in sites if site.rate > 0.0]
    try:
        for number, (site, _) in enumerate(borrowed, start=1):
            factor = _LAYER_DROP_FACTOR if site.kind == "layer_drop" else 1.0
            if site.rate * factor < 1.0:
                site.rate *= factor * (1.0 - _STEP * number)
        yield [site.rate for site in sites]
    finally:
        for site, held in borrowed:
            site.give_back(held)


@contextmanager
def _given_back(model: nn.Module) -> Iterator[None]:
    """Give back what a forward may change in the modules: modes, attributes, buffers and their values."""
    modules = [module for module in model.modules() if not isinstance(module, torch.jit.ScriptModule)]
    flags = [(module, module.training) for module in model.modules()]
    values = [(buffer, buffer.clone()) for buffer in model.buffers() if not (is_lazy(buffer) or buffer.is_meta)]
    # Wrappers of the distributed kind keep books elsewhere, too.
    kept = [_remember(module) for module in modules if not type(module).__module__.startswith(_BOOKKEEPERS)]
    try:
        yield
    finally:
        for module, flag in flags:
            if type(module).train is not nn.Module.train and module.training is not flag:
                module.train(flag)  # it may do more than to set the flag, such as to merge weights
        with torch.no_grad():
            for buffer, copy in values:
                if not torch.equal(buffer, copy):
                    buffer.copy_(copy)
        for give_back in kept:
            give_back()
        for module, flag in flags:
            module.training = flag


_BOOKKEEPERS = ("torch.distributed.", "torch.nn.parallel.")
_REGISTRIES = ("_parameters", "_buffers", "_modules")


def _remember(module: nn.Module) -> Callable[[], None]:
    """Return what gives ``module`` the attributes again that it has now."""
    cls = type(module)
    books = [(book, dict(book)) for book in (vars(module), *(getattr(module, name) for name in _REGISTRIES))]
    hidden_buffers = set(module._non_persistent_buffers_set)

    def give_back() -> None:
        if type(module) is not cls:  # a lazy module that now knows its shapes
            return
        for book, entries in books:
            if book.keys() != entries.keys() or any(book[key] is not value for key, value in entries.items()):
                book.clear()
                book.update(entries)
        module._non_persistent_buffers_set = hidden_buffers

    return give_back


def _eagerly() -> AbstractContextManager[object]:
    if "torch._dynamo" not in sys.modules:  # importing it takes a second, and nothing is compiled yet
        return nullcontext()
    stance: AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
    return stance
