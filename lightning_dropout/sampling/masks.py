"""Masks: how the sites of a model draw inside a pass. Each sample its own, cheaply, or one thinned network for all.

Modules are lent a ``forward`` of their instance, which is given back. Here it is decided what is drawn, never how often
or by whom: rates, flags and passes are the business of ``activation.py`` and ``sample.py``.
"""

import hashlib
import math
import weakref
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.rnn import PackedSequence
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_dropout.nn import Dropout, functional
from lightning_dropout.randomness import all_states, derive_seed, generators_of, own_generators_of
from lightning_dropout.sampling.activation import lend_forward
from lightning_dropout.sites import Site, compiled_roots

__all__ = ["Masks", "SharedMasks", "check_masks", "fast_masks"]

Masks = Literal["independent", "shared"]

# By the layer and the number of its draw in a pass: the dimension that follows the size of the batch, if any does.
_Dims = dict[int, dict[int, int | None]]
# By the model and the kind of call.
_LEARNED: "weakref.WeakKeyDictionary[nn.Module, dict[Hashable, _Dims]]" = weakref.WeakKeyDictionary()


def check_masks(masks: object) -> None:
    """Raise ``ValueError`` unless ``masks`` is one of the two kinds."""
    if masks not in get_args(Masks):
        raise ValueError(
            f"Expected `masks` to be one of {get_args(Masks)}, but got {masks!r}; "
            '"independent" draws for each sample, "shared" one thinned network for each pass.'
        )


@contextmanager
def fast_masks(sites: Sequence[Site]) -> Iterator[None]:
    """Let the plain ``nn.Dropout`` among ``sites`` draw as this package's own layers do, until the block is left.

    The same law for a fraction of the time on a CPU. Not for models with anything compiled in them: another ``forward``
    costs them their graphs.

    Example:
        >>> from lightning_dropout.sites import find_sites
        >>> model = nn.Sequential(nn.Dropout(0.5))
        >>> with fast_masks(find_sites(model)):
        ...     sorted(set(model(torch.ones(5000)).tolist()))
        [0.0, 2.0]
        >>> vars(model[0]).get("forward")
    """
    layers = {id(site.holder): site.holder for site in sites if _runs_code_of(site.holder, nn.Dropout)}
    with ExitStack() as stack:
        for layer in layers.values():
            if not compiled_roots(layer):
                lend_forward(stack, layer, _fast_forward(layer))
        yield


def _runs_code_of(module: object, *classes: type) -> bool:
    return type(module) in classes and "forward" not in vars(module)


def _fast_forward(layer: nn.Dropout) -> Callable[[Tensor], Tensor]:
    def forward(input: Tensor) -> Tensor:
        if layer.training and functional.takes_16_bits(layer.p, input.numel()) and functional.is_plain(input):
            return functional.dropout(input, layer.p)
        return nn.Dropout.forward(layer, input)

    return forward


_Fill = Callable[[Tensor, torch.Generator], Tensor]  # draws into a tensor


def _uniform(small: Tensor, generator: torch.Generator) -> Tensor:
    return small.uniform_(generator=generator)


@dataclass(frozen=True)
class _Split:
    """Where the samples of a tensor stand: dimension ``dim`` holds ``folds`` times ``size`` times ``rest``."""

    dim: int
    folds: int
    size: int
    rest: int  # what else is folded in, behind the samples

    def of_one_sample(self, shape: Sequence[int]) -> list[int]:
        return [*shape[: self.dim], min(self.rest, shape[self.dim]), *shape[self.dim + 1 :]]

    def beside(self, x: Tensor, draws: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return views of ``x`` and of what the single passes draw that broadcast."""
        if self.folds == self.rest == 1:
            return x, draws[0]
        parts = torch.unflatten(x, self.dim, (self.folds, self.size, self.rest))
        return parts, torch.stack(list(draws), self.dim).unsqueeze(self.dim + 1)


class SharedMasks:
    """One thinned network for each pass: inside, what the sites draw is the same for all samples.

    It follows from the seed, the number of the pass, the name of the module that draws, how often that has drawn in the
    pass, and the shape without the batch dimension. So it is bit-equal for every batch size, order of the batches,
    number of workers and of processes.

    Where the batch stands in what a layer draws, :meth:`learn` finds out. Without, it is taken for dimension 0, also
    where windows or heads are folded into it behind the samples; dimension 1 inside recurrent layers and in Transformer
    layers with ``batch_first=False``; else the only dimension of that size. The sites must be awake. Compiled models
    run uncompiled inside, fused attention and recurrent layers unfused.

    Args:
        model: What is sampled.
        sites: The places that draw.
        seed: What the masks follow from.

    Raises:
        ValueError: If the model runs on several threads; during a pass, if what a site draws has no batch dimension.

    Example:
        >>> from lightning_dropout.sites import find_sites
        >>> model = nn.Sequential(nn.Dropout(0.5))
        >>> with SharedMasks(model, find_sites(model), seed=0) as masks:
        ...     masks.begin(0, batch_size=3)
        ...     y = model(torch.ones(3, 100))
        ...     masks.check()
        >>> bool((y == y[0]).all()), y.unique().tolist()
        (True, [0.0, 2.0])
    """

    def __init__(self, model: nn.Module, sites: Sequence[Site], seed: int) -> None:
        if any(isinstance(part, nn.DataParallel) for part in model.modules()):
            raise ValueError(
                'Expected a model on one thread for `masks="shared"`, but got DataParallel, whose replicas cannot '
                "share a mask; sample the module inside it."
            )
        self.seed = seed
        self._compiled = bool(compiled_roots(model))
        self._users = {id(user.module): user.module for site in sites for user in site.users}
        # The first of a module's places, since it may have several.
        self._names = {
            id(user.module): user.name or type(model).__name__
            for site in reversed(sites)
            for user in reversed(site.users)
        }
        self._attention = {id(user.module) for site in sites if site.kind == "attention" for user in site.users}
        self._tosses_for_layers = any(site.kind == "layer_drop" for site in sites)
        self._batch_dims = _known_batch_dims(model)
        # Whoever hands batches around with time in front has a layer that says so.
        self._time_may_lead = any(getattr(part, "batch_first", True) is False for part in model.modules())
        self._known = _LEARNED.setdefault(model, {})
        self.expect(None)
        self._learning = False
        self._generators, self._own = generators_of(model.modules()), own_generators_of(model.modules())
        self._on_cpu = len(self._generators) == 1
        self._drawing: dict[torch.device, torch.Generator] = {}
        self._running: list[nn.Module] = []
        self._redraw = _Redraw(self)

    def __enter__(self) -> "SharedMasks":
        with ExitStack() as stack:
            if self._compiled:
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            for module in self._users.values():
                drops = isinstance(module, nn.Dropout | Dropout) and _runs_code_of(module, nn.Dropout, Dropout)
                lend_forward(stack, module, self._dropping(module) if drops else self._watched(module))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def begin(self, number: int, batch_size: int, folds: int = 1) -> None:
        """Start a pass, or several that are folded into the batch; the generators must be seeded by now.

        Args:
            number: Of the pass, or of the first of them.
            batch_size: How many samples there are.
            folds: How many passes; the first ``batch_size`` rows are pass ``number``, the next ones the one after it.
        """
        self._passes, self._size = range(number, number + folds), batch_size
        self._calls: Counter[int] = Counter()
        self._shapes: dict[tuple[int, int], Sequence[int]] = {}  # of the draws, by layer and their number there
        self._unknown: dict[str, None] = {}
        self._states = all_states(self._generators, self._own)

    def expect(self, signature: Hashable) -> None:
        """Say what kind of call comes next: each may take another way through the model."""
        self._learned = self._known.setdefault(signature, {})

    def learn(self, run: Callable[[int], object], sizes: tuple[int, int]) -> None:
        """Find out, for this model, this kind of call and for good, where the samples stand in what its layers draw.

        Args:
            run: Runs a pass on so many samples; it calls :meth:`begin`.
            sizes: Two sizes of the batch, which differ.
        """
        self._learning, shapes = True, []
        try:
            for size in sizes:
                run(size)
                shapes.append(self._shapes)
        finally:
            self._learning = False
        one, other = shapes
        for module, call in one.keys() & other.keys():
            shape, twin = one[module, call], other[module, call]
            if len(shape) == len(twin):
                dims = [dim for dim in range(len(shape)) if shape[dim] != twin[dim]]
                if not dims or (len(dims) == 1 and shape[dims[0]] * sizes[1] == twin[dims[0]] * sizes[0]):
                    self._learned.setdefault(module, {})[call] = dims[0] if dims else None

    def check(self) -> None:
        """Raise ``RuntimeError`` if anything has drawn since :meth:`begin` that is not shared."""
        moved = [
            name
            for name, before, after in zip(
                ("torch", "numpy", "random", "a generator of a module"),
                self._states,
                all_states(self._generators, self._own),
                strict=True,
            )
            # Layer drop may toss its coins in plain Python: one for all samples, in a pass that is seeded.
            if before != after and (name not in ("numpy", "random") or not self._tosses_for_layers)
        ]
        if moved:
            candidates = [*self._unknown] or [
                self._names[key] for key, user in self._users.items() if not type(user).__module__.startswith("torch.")
            ]
            raise RuntimeError(
                f"Expected every draw of a pass to be shared, but something drew from {' and '.join(moved)} by itself: "
                f"{', '.join([*candidates[:5], 'a module that is no site'])} (`audit` tells which); use "
                '`masks="independent"`.'
            )

    # --- what is lent -----------------------------------------------------------------------------------------------

    def _watched(self, module: nn.Module) -> Callable[..., Any]:
        own = module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            inputs = (*args, *kwargs.values())
            if isinstance(module, nn.RNNBase) and any(isinstance(value, PackedSequence) for value in inputs):
                raise ValueError(
                    f"Expected batches that are not packed, but got a PackedSequence at `{self._name(module)}`, where "
                    'each step has another batch and samples cannot share a mask; pad it, or use `masks="independent"`.'
                )
            with self._inside(module):
                return own(*args, **kwargs)

        forward.__wrapped__ = own  # type: ignore[attr-defined]  # for who reads its signature
        return forward

    @contextmanager
    def _inside(self, module: nn.Module) -> Iterator[None]:
        """Redraw for all samples what ``module`` draws; the innermost module that runs is the one that draws."""
        with ExitStack() as stack:
            stack.callback(self._running.pop)
            self._running.append(module)
            if len(self._running) == 1:
                stack.enter_context(self._redraw)
            if not self._on_cpu and id(module) in self._attention:  # fused kernels draw where nobody can see it
                stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            if not self._on_cpu and isinstance(module, nn.RNNBase):
                stack.enter_context(torch.backends.cudnn.flags(enabled=False))
            yield

    def _dropping(self, layer: Any) -> Callable[[Tensor], Tensor]:
        own = self._watched(layer)

        def forward(input: Tensor) -> Tensor:
            if not layer.training or layer.p == 0.0:
                return input
            if type(input) not in (Tensor, nn.Parameter) or not input.is_floating_point():
                output: Tensor = own(input)
                return output
            with torch._C._DisableTorchDispatch():  # a module around this one may be watched, which takes time
                return self._dropped(layer, input)

        return forward

    def _dropped(self, layer: Any, x: Tensor) -> Tensor:
        coins = list(x.shape)
        if getattr(layer, "granularity", "") == "channel":
            coins[2:] = [1] * (x.ndim - 2)
        if getattr(layer, "shared_over_batch", False):
            coins[0] = 1
        values, noise = self._draw(layer, x, coins, torch.float32, _uniform)
        if not values.is_contiguous():  # the layout of the output is that of the mask
            lay = values.detach()[tuple(slice(size) for size in noise.shape)]
            noise = torch.empty_like(lay, dtype=noise.dtype).copy_(noise)
        return _keep(values, noise, float(layer.p)).reshape(x.shape)

    # --- drawing ----------------------------------------------------------------------------------------------------

    def fill(self, target: Tensor, fill: _Fill) -> Tensor:
        """Draw ``target`` anew for the module that runs."""
        whole, draws = self._draw(self._running[-1], target, list(target.shape), target.dtype, fill)
        whole.copy_(draws)
        return target

    def suspect(self, operation: str) -> None:
        """Note that the module that runs calls what may draw and cannot be shared."""
        self._unknown[f"`{self._name(self._running[-1])}` ({operation})"] = None

    def _draw(
        self, module: nn.Module, x: Tensor, coins: Sequence[int], dtype: torch.dtype, fill: _Fill
    ) -> tuple[Tensor, Tensor]:
        """Return a view of ``x``, and draws for it that broadcast; ``coins`` is its shape, 1 where they are shared."""
        split = self._split(module, x.shape)
        shape = coins if split is None else split.of_one_sample(coins)
        self._calls[id(module)] += 1
        name = int.from_bytes(hashlib.blake2b(self._name(module).encode(), digest_size=8).digest(), "big")
        if x.device not in self._drawing:
            self._drawing[x.device] = torch.Generator(x.device)
        generator = self._drawing[x.device]
        draws = []
        for number in self._passes:
            generator.manual_seed(derive_seed(self.seed, number, name, self._calls[id(module)], *shape))
            draws.append(fill(torch.empty(shape, dtype=dtype, device=x.device), generator))
        return (x, draws[0]) if split is None else split.beside(x, draws)

    def _split(self, module: nn.Module, shape: Sequence[int]) -> _Split | None:
        """Return where the samples stand in ``shape``; ``None`` if one draw is for all of them anyway."""
        folds = len(self._passes)
        rows = max(folds * self._size, 1)
        learned = self._learned.get(id(module), {})
        call = self._calls[id(module)]
        self._shapes[id(module), call] = tuple(shape)
        if call in learned or len(set(learned.values())) == 1:  # longer sequences may take more calls
            dim = learned.get(call, next(iter(learned.values())))
        else:
            dim = self._likely_dim(module, shape, rows)
        if dim is not None and 0 <= dim < len(shape) and shape[dim] % rows == 0:
            return _Split(dim, folds, max(self._size, 1), shape[dim] // rows)
        if self._learning or (dim is None and folds == 1):
            return None
        samples, cure = f"{self._size} samples", "use batches of another size"
        if folds > 1:
            samples, cure = f"{folds} times {samples}", "leave `chunk_size` out"
        raise ValueError(
            f"Expected `{self._name(module)}` to draw for {samples}, but got a shape of {tuple(shape)}, in which no "
            f'dimension need be the batch; {cure}, or use `masks="independent"`.'
        )

    def _likely_dim(self, module: nn.Module, shape: Sequence[int], rows: int) -> int | None:
        """Return the dimension that looks like the batch, ``None`` if one draw is for all samples, or -1 in doubt."""
        known = self._batch_dims.get(id(module), -1)
        if 0 <= known < len(shape) and shape[known] % rows == 0:
            return known
        leads = len(shape) > 0 and shape[0] % rows == 0
        others = [dim for dim in range(1, len(shape)) if shape[dim] == rows]
        if leads and not (others and self._time_may_lead and rows > 1):
            return 0
        if not leads and (len(others) == 1 or (1 in others and self._time_may_lead)):
            return others[0]
        return None if not others and (not shape or shape[0] == 1) else -1

    def _name(self, module: nn.Module) -> str:
        return self._names[id(module)]


def _keep(x: Tensor, noise: Tensor, p: float) -> Tensor:
    return functional.keep_above(x, noise, _threshold(p), 1.0 / (1.0 - p) if p < 1.0 else 1.0)


def _threshold(p: float) -> float:
    """Return the largest of the 2**24 numbers in [0, 1) that may be drawn below ``p``."""
    return (math.ceil(p * 2**24) - 1) / 2**24


def _known_batch_dims(model: nn.Module) -> dict[int, int]:
    """Return the dimension of the batch for the modules that fix it, by their identity."""
    dims: dict[int, int] = {}
    for part in model.modules():
        layer = isinstance(part, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer)
        if layer and not getattr(part.self_attn, "batch_first", True):
            dims |= {id(child): 1 for child in part.modules()}
    for part in model.modules():
        if isinstance(part, nn.RNNBase):  # inside, time always leads
            dims[id(part)] = 1
        elif isinstance(part, nn.MultiheadAttention):  # the heads of a sample lie side by side
            dims[id(part)] = 0
    return dims


class _Redraw(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Replaces what operations draw: a mode of dispatch, since fused layers call no function that could be seen."""

    def __init__(self, masks: SharedMasks) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._masks = masks

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        name = func._overloadpacket.__name__
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), _COMPOSITE):
            # Made of operations which only now can be seen: in inference mode they come as one.
            with self:
                return func._op_dk(_COMPOSITE, *args, **kwargs)
        if torch.Tag.nondeterministic_seeded not in func.tags and name != "random_":
            return func(*args, **kwargs)
        schema = func._schema.arguments
        values = {argument.name: value for argument, value in zip(schema, args, strict=False)} | kwargs
        kwargs.pop("generator", None)
        if name == "bernoulli_" and isinstance(values.get("p"), Tensor):
            return values["self"].copy_(self._uniform_like(values["self"]) < values["p"])
        if name in _IN_PLACE:
            return self._masks.fill(values["self"], lambda small, own: func(small, *args[1:], generator=own, **kwargs))
        if name in _FILLS and "out" not in values:
            return self._masks.fill(_empty(name, values), lambda small, own: _FILLS[name](small, own, values))
        if name == "normal" and "out" not in values:
            noise = self._masks.fill(_empty(name, values), lambda small, own: small.normal_(generator=own))
            return values.get("mean", 0.0) + values.get("std", 1.0) * noise
        if name == "bernoulli" and "out" not in values:
            return (self._uniform_like(args[0]) < values.get("p", args[0])).to(args[0].dtype)
        if name == "native_dropout" and values["train"]:
            noise = self._uniform_like(values["input"])
            return _keep(values["input"], noise, values["p"]), noise > _threshold(values["p"])
        self._masks.suspect(name)
        return func(*args, **kwargs)

    def _uniform_like(self, x: Tensor) -> Tensor:
        return self._masks.fill(torch.empty_like(x, dtype=torch.float32), _uniform)


def _empty(name: str, values: Mapping[str, Any]) -> Tensor:
    """Return a new tensor like the one that a function would fill."""
    options = {key: values[key] for key in ("dtype", "layout", "device") if values.get(key) is not None}
    if "size" in values:
        return torch.empty(values["size"], **({"dtype": torch.int64} if name == "randint" else {}) | options)
    like = values.get("mean", 0.0) + 0.0 * values.get("std", 1.0) if name == "normal" else values["self"]
    return torch.empty_like(like, **options)


_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd
_IN_PLACE = frozenset(
    ["bernoulli_", "cauchy_", "exponential_", "geometric_", "log_normal_", "normal_", "random_", "uniform_"]
)
_FILLS: Mapping[str, Callable[[Tensor, torch.Generator, Mapping[str, Any]], Tensor]] = {
    **dict.fromkeys(("rand", "rand_like"), lambda small, own, values: small.uniform_(generator=own)),
    **dict.fromkeys(("randn", "randn_like"), lambda small, own, values: small.normal_(generator=own)),
    **dict.fromkeys(
        ("randint", "randint_like"),
        lambda small, own, values: small.random_(values.get("low", 0), values["high"], generator=own),
    ),
}
