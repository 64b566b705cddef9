"""What ``torch.compile`` makes of a rate: which modules it runs, and layers that read theirs from a tensor.

A float that changes is a new constant, hence a new graph at every step, and after eight of them none at all. So known
layers are lent a class of their own whose ``forward`` reads a scalar tensor. That tensor is rebound, never filled:
activation checkpointing and backward still hold the old one. It is no buffer either: averaging weights, casting the
model or saving it must not touch it. The layer's own attribute keeps the float, for everyone who asks.
"""

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from lightning_dropout.nn import Dropout, DropPath, functional
from lightning_dropout.probability import check_probability
from lightning_dropout.sites.site import Site

__all__ = ["TensorRates", "allow_graphs", "compiled_roots", "draws_on_host", "has_tensor_form"]

_SLOT = "_rate_as_tensor"  # in the layer's __dict__
_ALIGNED = 4  # floats in 16 bytes: what a compiled kernel takes without copying it to an aligned place first


def compiled_roots(model: nn.Module) -> list[nn.Module]:
    """Return the modules of ``model`` that were given to ``torch.compile``: wrapped, in place, or a method of theirs.

    A function that was compiled and is called from an eager method leaves no trace in the model.

    Example:
        >>> layers = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
        >>> layers[1].compile()
        >>> compiled_roots(layers)
        [Dropout(p=0.5, inplace=False)]
    """
    parts = [*model.modules()]
    compiled = {cls: _has_compiled_method(cls) for cls in set(map(type, parts))}
    return [part for part in parts if compiled[type(part)] or _is_compiled(part)]


def _is_compiled(module: nn.Module) -> bool:
    return (
        "_orig_mod" in module._modules  # the wrapper that torch.compile(module) returns
        or getattr(module, "_compiled_call_impl", None) is not None
        # Such as `self.forward = torch.compile(self.forward)`, and what Lightning does to a compiled LightningModule;
        # not any function that is kept in the module, such as a compiled loss.
        or any(
            callable(value) and _is_compiled_function(value) and hasattr(type(module), name)
            for name, value in vars(module).items()
        )
    )


def _has_compiled_method(cls: type) -> bool:
    own = (base for base in cls.__mro__ if base not in (nn.Module, object))
    return any(callable(value) and _is_compiled_function(value) for base in own for value in vars(base).values())


def _is_compiled_function(value: object) -> bool:
    # `torch.compiler.disable` leaves the same mark.
    return hasattr(value, "_torchdynamo_orig_callable") and not getattr(value, "_torchdynamo_disable", False)


def allow_graphs(number: int) -> None:
    """Let ``torch.compile`` keep ``number`` more graphs of one function than it does.

    Beyond its limit (eight) it runs that function uncompiled, or raises under ``fullgraph=True``. Graphs are kept until
    the process ends, so taking the allowance back would hurt whatever is compiled next.
    """
    config: Any = torch._dynamo.config
    config.recompile_limit += number


def has_tensor_form(site: Site) -> bool:
    """Tell whether every place that drops by ``site`` can read its rate from a tensor."""
    cls: type = type(site.holder)
    if "forward" in getattr(site.holder, "__dict__", {}):  # somebody's own, which would hide ours
        return False
    return all(user.module is site.holder for user in site.users) and _form_of(cls) is not None


class TensorRates:
    """Layers that read their rates from tensors, from construction until :meth:`give_back`.

    Whoever sets the rate of such a site by itself (``site.rate = 0.1``) sets the tensor, too.

    Args:
        sites: Sites that have a tensor form.
        device: Where the model computes.

    Example:
        >>> from lightning_dropout.sites import find_sites
        >>> model = nn.Sequential(nn.Dropout(0.5))
        >>> tensors = TensorRates(find_sites(model), torch.device("cpu"))
        >>> tensors.set([1.0])
        >>> model(torch.ones(3)), model[0].p
        (tensor([0., 0., 0.]), 1.0)
        >>> tensors.give_back()
        >>> model
        Sequential(
          (0): Dropout(p=1.0, inplace=False)
        )
    """

    def __init__(self, sites: Sequence[Site], device: torch.device) -> None:
        self._device = device
        self._layers = [(site.holder, site.attribute) for site in sites]
        try:
            self.set([site.rate for site in sites])
            for layer, _ in self._layers:
                cls: type = type(layer)
                layer.__class__ = _lent_class(cls)
        except BaseException:  # the device may refuse, and the user interrupt
            self.give_back()
            raise

    def set(self, rates: Sequence[float]) -> None:
        """Give each layer its rate, in the order of the sites; one copy to the device for all of them."""
        with torch.inference_mode(False), torch.no_grad():
            rows = torch.zeros(len(rates), _ALIGNED, dtype=torch.float32)  # whatever the default dtype
            rows[:, 0] = torch.tensor(rates, dtype=torch.float32)
            tensors = rows.to(self._device, non_blocking=True)[:, 0].unbind()
        for (layer, attribute), rate, tensor, row in zip(self._layers, rates, tensors, rows, strict=True):
            held = vars(layer)
            held[attribute] = rate
            held[_SLOT] = row[0] if draws_on_host(layer) else tensor

    def give_back(self) -> None:
        """Make the layers what they were, with the floats that they hold now."""
        for layer, _ in self._layers:
            if isinstance(layer, _ReadsTensor):
                layer.__class__ = _own_class(type(layer))
            vars(layer).pop(_SLOT, None)
        self._layers = []


def draws_on_host(layer: nn.Module) -> bool:
    """Tell whether ``layer`` must know its rate, since it decides how many samples run; there the graph is cut in two.

    Example:
        >>> draws_on_host(DropPath(0.1)), draws_on_host(DropPath(0.1, mode="subset"))
        (False, True)
    """
    return isinstance(layer, DropPath) and layer.mode != "row"


class _ReadsTensor:
    """Mixed into the class that a layer is lent: a copy of the layer, or a pickle, is of its own class again."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        own = _own_class(type(self))
        return own.__new__, (own,), {key: value for key, value in vars(self).items() if key != _SLOT}


def _own_class(lent: type) -> type:
    return lent.__bases__[1]


@cache  # one for each class, since another type is another graph
def _lent_class(cls: type) -> type:
    form = _form_of(cls)
    assert form is not None  # noqa: S101  (has_tensor_form has been asked)
    attribute, forward = form

    def get_rate(layer: Any) -> float:
        return float(vars(layer)[attribute])

    def set_rate(layer: Any, value: float) -> None:
        held = vars(layer)
        held[attribute] = check_probability(value, attribute)
        with torch.inference_mode(False):
            held[_SLOT] = torch.full_like(held[_SLOT], held[attribute])

    members = {"forward": forward, attribute: property(get_rate, set_rate), "__module__": __name__}
    return type(cls.__name__, (_ReadsTensor, cls), members)


# The forwards, by layer. The names of their arguments are those of the layer's own.


def _forward_element(self: Any, input: Tensor) -> Tensor:
    if not self.training:
        return input
    return _in_place(self, input, functional.dropout(input, self._rate_as_tensor))


def _forward_channel(self: Any, input: Tensor) -> Tensor:
    if not self.training:
        return input
    # Without a batch dimension the channels come first. Two-dimensional dropout takes three dimensions for a batch of
    # sequences, as torch does.
    dims = {"Dropout1d": 2, "Dropout3d": 4}.get(_own_class(type(self)).__name__)
    batch = input.unsqueeze(0) if input.ndim == dims else input
    output = functional.dropout(batch, self._rate_as_tensor, granularity="channel")
    return _in_place(self, input, output.view_as(input))


def _forward_alpha(self: Any, input: Tensor) -> Tensor:
    if not self.training:
        return input
    by_channel = _own_class(type(self)).__name__ == "FeatureAlphaDropout"
    ones = input.new_ones(input.shape[:2] + (1,) * (input.ndim - 2) if by_channel else input.shape)
    rate = self._rate_as_tensor
    kept = functional.dropout(ones, rate) > 0.0
    return _in_place(self, input, _alpha(input, kept, rate))


def _alpha(x: Tensor, kept: Tensor, rate: Tensor) -> Tensor:
    """Put the value at which SELU saturates where ``kept`` is False, then restore mean 0 and variance 1."""
    saturation = -1.7580993408473766
    spread = (1.0 - rate) * (1.0 + rate * saturation**2)
    scale = torch.where(rate < 1.0, spread.clamp_min(torch.finfo(rate.dtype).tiny).rsqrt(), 0.0)
    wide = torch.where(kept, x.to(torch.promote_types(x.dtype, rate.dtype)), saturation)
    return (scale * (wide - saturation * rate)).to(x.dtype)


def _in_place(layer: Any, x: Tensor, output: Tensor) -> Tensor:
    return x.copy_(output) if layer.inplace and output is not x else output


def _forward_own(self: Any, x: Tensor) -> Tensor:
    output: Tensor = self.forward_at(self._rate_as_tensor, x)
    return output


def _forward_own_path(self: Any, x: Tensor, branch: Any = None, shortcut: Any = None, **options: Any) -> Tensor:
    output: Tensor = self.forward_at(self._rate_as_tensor, x, branch, shortcut, **options)
    return output


def _forward_timm_path(self: Any, x: Tensor) -> Tensor:
    if not self.training:
        return x
    return functional.drop_path(x, self._rate_as_tensor, scale_by_keep=self.scale_by_keep)


def _forward_torchvision_path(self: Any, input: Tensor) -> Tensor:
    return functional.drop_path(input, self._rate_as_tensor, mode=self.mode) if self.training else input


def _forward_transformers_path(self: Any, hidden_states: Tensor) -> Tensor:
    return functional.drop_path(hidden_states, self._rate_as_tensor) if self.training else hidden_states


_Form = tuple[str, Callable[..., Tensor]]  # the attribute that holds the rate, and the forward
# By the very class: a subclass may do something else. By name, so that nothing is imported.
_FORMS: dict[type | str, _Form] = {
    nn.Dropout: ("p", _forward_element),
    nn.Dropout1d: ("p", _forward_channel),
    nn.Dropout2d: ("p", _forward_channel),
    nn.Dropout3d: ("p", _forward_channel),
    nn.AlphaDropout: ("p", _forward_alpha),
    nn.FeatureAlphaDropout: ("p", _forward_alpha),
    Dropout: ("p", _forward_own),
    DropPath: ("drop_prob", _forward_own_path),
    "timm.layers.drop.DropPath": ("drop_prob", _forward_timm_path),
    "torchvision.ops.stochastic_depth.StochasticDepth": ("p", _forward_torchvision_path),
    "transformers.models.*DropPath": ("drop_prob", _forward_transformers_path),
}


@cache
def _form_of(cls: type) -> _Form | None:
    if cls in _FORMS:
        return _FORMS[cls]
    name = f"{cls.__module__}.{cls.__qualname__}"
    return next((form for key, form in _FORMS.items() if isinstance(key, str) and fnmatchcase(name, key)), None)
