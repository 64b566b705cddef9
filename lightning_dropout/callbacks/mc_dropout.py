"""Monte-Carlo dropout at test and predict time, around any LightningModule, without a change to it.

The module's ``forward`` is replaced on the instance for the length of a stage; inside a step its outermost call is
sampled, and the user's step receives the mean predictive in the form of the model's own output. Training flags flip
inside each call only (``sampling``), so no hook, exception or interrupt can leave them wrong.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, Union, cast, get_args

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torchmetrics import Metric

from lightning_dropout import log_keys
from lightning_dropout.callbacks.any_callback import AnyCallback, release_of
from lightning_dropout.callbacks.batch_labels import labels_of
from lightning_dropout.callbacks.rate_scheduler import schedulers_of
from lightning_dropout.metrics.predictive import PredictiveMetrics
from lightning_dropout.probability import check_probability
from lightning_dropout.randomness import derive_seed
from lightning_dropout.sampling.prediction import MCPrediction, Statistics, Task, check_outputs, check_task
from lightning_dropout.sampling.sample import DEFAULT_KINDS, check_num_samples, draw_passes
from lightning_dropout.sites import Kind, Site, find_sites

__all__ = ["MCDropout"]

Stage = Literal["test", "predict", "validate"]
_ABSENT = object()
_DEV_RUN_RATE = 0.1
_FIRST_TO_LOG_KEYS_OF_LOADERS = (2, 5, 3)  # before, `log` refused a key that names its loader; what it calls did not


class MCDropout(AnyCallback):
    """Let ``trainer.test`` and ``trainer.predict`` see the mean of T stochastic passes.

    Training: nothing, except that a schedule which ends at 0 is refused at once, since sampling would find nothing.
    Test and predict: the outermost call of the module (or of one of its direct children) in each step runs T times with
    dropout on; the step receives the mean predictive (log-probabilities for classes, a logit for binary), so its own
    metrics and logs describe it unchanged. Beside them stand ``test/mc/*`` and, with ``compare``, ``test/det/*`` of the
    same batches without dropout.

    Args:
        num_samples: T, the number of passes, at least 1.
        task: What the model's outputs are: logits of ``"binary"``, ``"multiclass"`` or ``"multilabel"``, values of
            ``"regression"``, mean and log-variance of ``"gaussian"``, ``"probabilities"``, or ``"raw"``.
        stages: Where to sample, among ``"test"``, ``"predict"`` and ``"validate"`` (a ``trainer.validate`` of its own,
            never the validation inside a fit).
        module: ``"auto"``, or the dotted name of the one submodule whose call is sampled (``""``: the module itself).
        labels: Where a batch holds its labels: ``"auto"`` (``batch[1]``, or the keys labels, label, y, target), a
            dotted path such as ``"1"`` or ``"target.class"``, or a function of the batch. If a batch has none, only
            the keys that need none are logged.
        rates: ``"trained"``: the rates at the end of training or of the loaded checkpoint, unless these are all 0;
            ``"base"``: those that the
            model was built with; a number: one probability for every site.
        compare: Whether to run each batch once without dropout, for ``det/*``.
        sites: Glob pattern or patterns of the sites to sample.
        exclude: Patterns of sites, or of modules unknown to the package, to leave alone.
        kinds: Kinds of sites to sample; ``"drop_path"`` and ``"layer_drop"`` join if named.
        class_dim: The dimension of the classes.
        seed: What the masks follow from, with the rank, the loader, the batch and the pass.
        return_uncertainty: Whether ``predict_step`` returns a dictionary of its own result (``prediction``) and
            ``mean``, ``std``, ``entropy`` and ``mutual_information`` where the task defines them.

    Raises:
        ValueError: At construction for impossible arguments; at the start of a fit or stage if no site matches or
            sampling would find only rates of 0; in the first step if no call, or two different ones, could be sampled.

    Source:
        Gal & Ghahramani (2016), "Dropout as a Bayesian Approximation", arXiv:1506.02142.

    Example:
        >>> MCDropout(num_samples=30, task="multiclass").num_samples
        30
    """

    def __init__(
        self,
        num_samples: int = 30,
        *,
        task: Task,
        stages: Sequence[Stage] = ("test", "predict"),
        module: str = "auto",
        labels: Union[str, Callable[[Any], Any]] = "auto",  # noqa: UP007  (jsonargparse reads it)
        rates: Union[Literal["trained", "base"], float] = "trained",  # noqa: UP007
        compare: bool = True,
        sites: Union[str, Sequence[str]] = "*",  # noqa: UP007
        exclude: Union[str, Sequence[str]] = (),  # noqa: UP007
        kinds: Sequence[Kind] = DEFAULT_KINDS,
        class_dim: int = 1,
        seed: int = 0,
        return_uncertainty: bool = False,
    ) -> None:
        super().__init__()
        check_num_samples(num_samples)
        check_task(task)
        derive_seed(seed)  # raises unless it is a whole number
        if isinstance(stages, str) or not stages or set(stages) - set(get_args(Stage)):
            raise ValueError(
                f"Expected `stages` to list some of {', '.join(get_args(Stage))}, but got {stages!r}; "
                'e.g. `stages=["test"]`.'
            )
        self.num_samples = num_samples
        self.task = task
        self.stages = tuple(stages)
        self.module = module
        self.labels = labels
        self.rates = rates if rates in ("trained", "base") else check_probability(rates, "rates")
        if self.rates == 0.0:
            raise ValueError(f"Expected `rates` above 0, where passes differ, but got {rates!r}; e.g. `rates=0.1`.")
        self.compare = compare
        self.sites = sites
        self.exclude = exclude
        self.kinds = cast(tuple[Kind, ...], (kinds,) if isinstance(kinds, str) else tuple(kinds))
        self.class_dim = class_dim
        self.seed = seed
        self.return_uncertainty = return_uncertainty
        self._stage: Stage | None = None  # None outside a sampled stage
        self._patched: list[tuple[nn.Module, str, Any]] = []
        self._found: list[Site] = []
        self._base_rate: Callable[[Site], float] | None = None
        self._dev_run = False
        self._step: tuple[int, int, int] | None = None  # rank, dataloader, batch; None outside a step
        self._sampling = False
        self._outermost: nn.Module | None = None
        self._calls: list[tuple[MCPrediction, MCPrediction | None]] = []
        self._guarded: set[int] = set()  # dataloaders whose first batch has been checked
        self._metrics: dict[int, dict[str, PredictiveMetrics]] = {}
        self._said: set[str] = set()

    # --- where a stage begins and ends ------------------------------------------------------------------------------

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        found = find_sites(pl_module, self.sites, self.exclude, self.kinds)
        if self.rates == "trained" and not any(_final_rate(trainer, site) for site in found):
            raise ValueError(
                f"Expected rates above 0 at the end of training, but got 0 at all {len(found)} sites, where "
                'Monte-Carlo dropout would sample nothing; pass `rates="base"` or e.g. `rates=0.1` to MCDropout '
                "(callbacks.mc_dropout.rates=base)."
            )
        if self.rates == "base" and not any(_base_rate(trainer, site) for site in found):
            raise ValueError(
                f"Expected a model built with rates above 0, but got 0 at all {len(found)} sites, where Monte-Carlo "
                'dropout would sample nothing; pass `rates="trained"` or e.g. `rates=0.1` to MCDropout '
                "(callbacks.mc_dropout.rates=0.1), or leave it out (callbacks/mc_dropout=none)."
            )

    def on_test_start(self, trainer: Any, pl_module: Any) -> None:
        self._begin(trainer, pl_module, "test")

    def on_predict_start(self, trainer: Any, pl_module: Any) -> None:
        self._begin(trainer, pl_module, "predict")

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.state.fn == "validate":
            self._begin(trainer, pl_module, "validate")

    def on_test_end(self, trainer: Any, pl_module: Any) -> None:
        self._end()

    def on_predict_end(self, trainer: Any, pl_module: Any) -> None:
        self._end()

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self._end()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._end()

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self._end()

    def _begin(self, trainer: Any, pl_module: Any, stage: Stage) -> None:
        self._end()
        if stage not in self.stages:
            return
        self._found = find_sites(pl_module, self.sites, self.exclude, self.kinds)
        # Asked at each call, not now: a scheduler that comes later in the list has yet to bring the trained rates back.
        self._base_rate = functools.partial(_base_rate, trainer)
        self._dev_run = bool(trainer.fast_dev_run)
        targets = self._targets(pl_module)
        for target in targets:
            self._patch_forward(target, self._sampled_forward(trainer, pl_module, target))
        if self.module == "auto":
            for child in pl_module.children():
                if child not in targets and not isinstance(child, Metric) and any(True for _ in child.parameters()):
                    self._patch_forward(child, self._refusing_forward(trainer, pl_module, child))
        if stage == "predict" and self.return_uncertainty:
            self._patch(pl_module, "predict_step", self._uncertain_predict_step(pl_module.predict_step))
        self._stage = stage
        if stage != "predict":
            self._say(
                f"MCDropout: the {stage} metrics of {type(pl_module).__name__} describe the mean of {self.num_samples} "
                f"stochastic passes over {len(self._found)} sites."
            )

    def _end(self) -> None:
        for owner, name, before in reversed(self._patched):
            if before is _ABSENT:
                owner.__dict__.pop(name, None)
            else:
                owner.__dict__[name] = before
        self._patched, self._found, self._calls = [], [], []
        self._stage, self._step, self._outermost, self._sampling = None, None, None, False
        self._base_rate = None
        self._guarded, self._metrics, self._said = set(), {}, set()

    def _targets(self, pl_module: Any) -> list[nn.Module]:
        places = {id(user.module) for site in self._found for user in site.users}
        dropping = {
            name: part
            for name, part in pl_module.named_modules()
            if any(id(inner) in places for inner in part.modules())
        }
        children = {name: child for name, child in pl_module.named_children() if name in dropping}
        if self.module == "auto":
            return [pl_module, *children.values()]
        if self.module not in dropping:
            raise ValueError(
                f"Expected `module` to name a part of {type(pl_module).__name__} that drops, but got {self.module!r}; "
                f'those that do are: {", ".join(children)} ("" is the module itself).'
            )
        return [dropping[self.module]]

    def _patch_forward(self, owner: nn.Module, forward: Callable[..., Any]) -> None:
        # Around compiled code, never part of it: the compiler can follow neither seeds nor flags.
        self._patch(owner, "forward", torch.compiler.disable(forward))  # type: ignore[no-untyped-call]

    def _patch(self, owner: nn.Module, name: str, value: Callable[..., Any]) -> None:
        self._patched.append((owner, name, owner.__dict__.get(name, _ABSENT)))
        owner.__dict__[name] = value

    # --- inside a step ----------------------------------------------------------------------------------------------

    def on_test_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._enter_step(trainer, batch_idx, dataloader_idx)

    def on_predict_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._enter_step(trainer, batch_idx, dataloader_idx)

    def on_validation_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._enter_step(trainer, batch_idx, dataloader_idx)

    def on_test_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._leave_step(pl_module, batch)

    def on_predict_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._leave_step(pl_module, batch)

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._leave_step(pl_module, batch)

    def _enter_step(self, trainer: Any, batch_idx: int, dataloader_idx: int) -> None:
        if self._stage is not None:
            self._step = (trainer.global_rank, dataloader_idx, batch_idx)
            self._calls, self._outermost = [], None

    def _sampled_forward(self, trainer: Any, pl_module: nn.Module, target: nn.Module) -> Callable[..., Any]:
        original = target.forward
        parts = {id(part) for part in target.modules()}

        def forward(*args: Any, **kwargs: Any) -> Any:
            # No functools.wraps: it would copy a compiled forward's markers, and the compiler would pass us by.
            if not self._samples(trainer):
                return original(*args, **kwargs)
            if self._outermost not in (None, target):
                self._refuse_second(pl_module, target)
            self._outermost = target
            sites = [site for site in self._found if any(id(user.module) in parts for user in site.users)]
            self._sampling = True
            try:
                return self._sample(pl_module, sites, functools.partial(original, *args, **kwargs), (args, kwargs))
            finally:
                self._sampling = False

        return forward

    def _refusing_forward(self, trainer: Any, pl_module: nn.Module, child: nn.Module) -> Callable[..., Any]:
        """Wrap a child that drops nothing: behind the sampled one it would go on with the mean of its features."""
        original = child.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            if self._samples(trainer) and self._outermost not in (None, pl_module):
                self._refuse_second(pl_module, child)
            return original(*args, **kwargs)

        return forward

    def _samples(self, trainer: Any) -> bool:
        """Tell whether a call is one of the step's own; after an error that another callback made worse, none is."""
        return self._step is not None and not self._sampling and not trainer.interrupted

    def _refuse_second(self, pl_module: nn.Module, second: nn.Module) -> None:
        raise ValueError(
            f"Expected one module to be called in a step, but got {_name(pl_module, self._outermost)} and then "
            f"{_name(pl_module, second)}; put both into `forward` and call that in the step, or name the one whose "
            'output is the prediction with `module=` in MCDropout ("" is the module itself).'
        )

    def _sample(self, pl_module: nn.Module, sites: Sequence[Site], call: Callable[[], Any], inputs: Any) -> Any:
        assert self._step is not None  # noqa: S101  (the wrapper has looked)
        _, dataloader_idx, _ = self._step
        plain = None
        if self.compare and self._stage != "predict":
            outputs = check_outputs(call(), self.task, self.class_dim)
            statistics = Statistics(self.task, self.class_dim)
            statistics.update(outputs)
            plain = statistics.result(outputs)
        prediction = draw_passes(
            call,
            pl_module,
            sites,
            num_samples=self.num_samples,
            task=self.task,
            class_dim=self.class_dim,
            rates=self._rates(sites),
            seed=(self.seed, *self._step, len(self._calls)),
            inputs=inputs,
            guarded=dataloader_idx not in self._guarded,
        )
        self._guarded.add(dataloader_idx)
        self._calls.append((prediction, plain))
        return prediction.predictive

    def _rates(self, sites: Sequence[Site]) -> list[float] | None:
        assert self._base_rate is not None  # noqa: S101  (a stage has begun)
        if self.rates == "trained" and any(site.rate for site in sites):
            return None
        base = [self._base_rate(site) for site in sites]
        if self.rates == "trained" and (any(base) or self._dev_run):
            # A late start, and the best epoch before it; or one step into a schedule that starts at 0.
            self._say("MCDropout: the trained rates are all 0 here; sampling at the rates the model was built with.")
            return base if any(base) else [_DEV_RUN_RATE] * len(sites)
        if self.rates == "trained":
            return None  # refused by the sampler, which names the sites
        if self.rates == "base":
            return base
        return [float(self.rates)] * len(sites)

    def _leave_step(self, pl_module: Any, batch: Any) -> None:
        if self._step is None:
            return
        _, dataloader_idx, _ = self._step
        self._step = None
        if not self._calls:
            sites = ", ".join(site.name for site in self._found[:3]) + (", ..." if len(self._found) > 3 else "")
            raise ValueError(
                f"Expected the {self._stage} step of {type(pl_module).__name__} to call the module itself or one of "
                "its children, but got no call that could be sampled; name the part that the step calls with "
                f"`module=` in MCDropout (what drops: {sites})."
            )
        if self._stage != "predict":
            labels = self._labels(batch) if len(self._calls) == 1 else None
            if len(self._calls) > 1:
                self._say(
                    "MCDropout: the module is called several times in a step; keys that need labels are left out."
                )
            for prediction, plain in self._calls:
                for side, one in (("mc", prediction), ("det", plain)):
                    if one is not None:
                        metrics = self._metrics.setdefault(dataloader_idx, {})
                        if side not in metrics:
                            metrics[side] = PredictiveMetrics(self.task, self.class_dim).to(pl_module.device)
                        metrics[side].update(one, labels)

    def _labels(self, batch: Any) -> Tensor | None:
        if self._calls[0][0].task == "raw":
            return None
        found = labels_of(batch, self.labels)
        if isinstance(found, Tensor) and PredictiveMetrics.fits(self._calls[0][0], found, self.class_dim):
            return found
        if self.labels != "auto":
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(
                f'Expected `labels` to lead to the targets of task="{self.task}", but got {shape} for predictions of '
                f'shape {tuple(self._calls[0][0].mean.shape)}; pass a path such as "1" or a function of the batch.'
            )
        self._say("MCDropout: found no labels in the batch; pass `labels=` for accuracy and calibration.")
        return None

    # --- what comes out ---------------------------------------------------------------------------------------------

    def on_test_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self._log(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self._log(trainer, pl_module)

    def _log(self, trainer: Any, pl_module: Any) -> None:
        if self._stage is None:
            return
        stage = "val" if self._stage == "validate" else self._stage
        for dataloader_idx, sides in self._metrics.items():
            for side, metrics in sides.items():
                for name, value in metrics.compute().items():
                    key = log_keys.comparison_key(stage, side, name, dataloader_idx)
                    log = pl_module.log
                    if dataloader_idx and release_of(trainer) < _FIRST_TO_LOG_KEYS_OF_LOADERS:
                        log = functools.partial(trainer._results.log, pl_module._current_fx_name)
                    # equal on all ranks, since the metric has synced; the key says which loader
                    log(key, value, sync_dist=True, batch_size=1, add_dataloader_idx=False)

    def _uncertain_predict_step(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)  # the loop reads the signature
        def predict_step(*args: Any, **kwargs: Any) -> dict[str, Any]:
            outputs = original(*args, **kwargs)
            if not self._calls:
                return {"prediction": outputs}  # on_predict_batch_end raises
            if len(self._calls) > 1:
                raise ValueError(
                    f"Expected one call in a predict step, whose uncertainty it returns, but got {len(self._calls)}; "
                    "call the module once, or leave `return_uncertainty` out."
                )
            prediction = self._calls[0][0]
            return {"prediction": outputs, "mean": prediction.mean, "std": prediction.std} | prediction.uncertainties()

        return predict_step

    def _say(self, line: str) -> None:
        """Say a line once per stage, on one rank."""
        if line not in self._said:
            self._said.add(line)
            rank_zero_info(line)


def _name(root: nn.Module, module: nn.Module | None) -> str:
    name = next((name for name, other in root.named_modules() if other is module), "")
    return f'`module="{name}"`'


def _final_rate(trainer: Any, site: Site) -> float:
    planned = (scheduler.final_rate(trainer, site) for scheduler in schedulers_of(trainer))
    return next((rate for rate in planned if rate is not None), site.rate)


def _base_rate(trainer: Any, site: Site) -> float:
    borrowed = (scheduler.base_rate(site) for scheduler in schedulers_of(trainer))
    return next((rate for rate in borrowed if rate is not None), site.rate)
