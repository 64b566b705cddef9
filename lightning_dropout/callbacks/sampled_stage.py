"""One sampled stage, from its start to its end: which calls are sampled, what the step gets, what is logged and said.

Everything that a stage borrows or remembers lives in one object, so that nothing of it can survive the stage. Decisions
that the ranks must share follow from sums over all of them, made at the end of the epoch, where every rank arrives.
"""

import functools
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torchmetrics import Metric

from lightning_dropout import log_keys
from lightning_dropout.callbacks.any_callback import release_of
from lightning_dropout.callbacks.comparison import Comparison
from lightning_dropout.callbacks.ood_scores import OODScores, has_ood_scores, ood_names
from lightning_dropout.callbacks.pass_progress import PassProgress
from lightning_dropout.callbacks.pass_report import PassReport
from lightning_dropout.callbacks.patched_forward import PatchedForwards
from lightning_dropout.callbacks.repeated_rows import first_rows, unrepeated_rows
from lightning_dropout.callbacks.sampled_rates import base_rates
from lightning_dropout.callbacks.validation_temperature import at_temperature
from lightning_dropout.sampling.activation import resting
from lightning_dropout.sampling.inputs import copied
from lightning_dropout.sampling.outputs import select
from lightning_dropout.sampling.prediction import MCPrediction, of_one_pass
from lightning_dropout.sampling.sample import Sampler
from lightning_dropout.sites import Site, find_sites

if TYPE_CHECKING:
    from lightning_dropout.callbacks.mc_dropout import MCDropout

__all__ = ["SampledStage", "Stage", "sampled_modules", "uncompiled"]

Stage = Literal["test", "predict", "validate"]
_STEPS: dict[Stage, str] = {"test": "test_step", "predict": "predict_step", "validate": "validation_step"}
_BATCHES: dict[Stage, str] = {
    "test": "num_test_batches",
    "predict": "num_predict_batches",
    "validate": "num_val_batches",
}
_LOADERS: dict[Stage, str] = {
    "test": "test_dataloaders",
    "predict": "predict_dataloaders",
    "validate": "val_dataloaders",
}
_DEV_RUN_RATE = 0.1
_FIRST_TO_LOG_KEYS_OF_LOADERS = (2, 5, 3)  # before, `log` refused a key that names its loader; what it calls did not


def sampled_modules(pl_module: Any, sites: Sequence[Site], module: str) -> list[nn.Module]:
    """Return those of which the outermost call of a step is sampled.

    Raises:
        ValueError: If ``module`` names none that drops.
    """
    places = {id(user.module) for site in sites for user in site.users}
    dropping = {
        name: part for name, part in pl_module.named_modules() if any(id(inner) in places for inner in part.modules())
    }
    children = {name: child for name, child in pl_module.named_children() if name in dropping}
    if module == "auto":
        return [pl_module, *children.values()]
    if module not in dropping:
        raise ValueError(
            f"Expected `module` to name a part of {type(pl_module).__name__} that drops, but got {module!r}; "
            f'those that do are: {", ".join(children)} ("" is the module itself).'
        )
    return [dropping[module]]


def uncompiled(pl_module: Any, stage: Stage) -> Any:
    """Return the step of a stage that ``torch.compile`` has taken whole, as it was before; None if it has not."""
    return getattr(vars(pl_module).get(_STEPS[stage]), "_torchdynamo_orig_callable", None)


class SampledStage:
    """A stage in which ``pl_module`` is sampled.

    Args:
        settings: The callback, whose arguments say how.
        trainer: Runs the stage.
        pl_module: The user's module.
        stage: Which one.
        temperature: What the logits of the plain forward are divided by, in a third column. None: no such column; NaN:
            neither, since the validation gave none.

    Raises:
        ValueError: If no site matches, or ``ood`` does not fit the loaders.
    """

    def __init__(
        self, settings: "MCDropout", trainer: Any, pl_module: Any, stage: Stage, temperature: float | None = None
    ) -> None:
        self.settings, self.trainer, self.pl_module, self.stage = settings, trainer, pl_module, stage
        self._undetermined = temperature is not None and math.isnan(temperature)
        self.temperature = None if self._undetermined else temperature
        self.sites = find_sites(pl_module, settings.sites, settings.exclude, settings.kinds)
        self.samplers: list[Sampler] = []  # one for each module whose call may be sampled
        self.comparison = self._comparison()
        self.ood = ood_names(trainer, settings.ood) if stage == "test" else ()  # of the loaders after the first
        self.ood_scores = self._ood_scores()
        self.report = PassReport()
        self._progress = PassProgress(trainer.progress_bar_callback, settings.num_samples * sum(self._batches))
        self._forwards = PatchedForwards()
        self._step: tuple[int, int, int] | None = None  # rank, dataloader, batch; None outside a step
        self._outermost: nn.Module | None = None  # what the step has called
        self._calls: list[dict[str, MCPrediction]] = []  # of the step, by side
        self._guarded: set[int] = set()  # dataloaders whose first batch has been checked
        self._mistaken = False  # whether a guess took something else for labels

    def begin(self) -> None:
        """Patch the forwards, and the predict step if it is to return uncertainty.

        Raises:
            ValueError: If ``settings.module`` names nothing that drops, or passes of it cannot be folded.
        """
        self._uncompile_step()
        targets = sampled_modules(self.pl_module, self.sites, self.settings.module)
        self.samplers = [self._sampler(target) for target in targets]
        for sampler in self.samplers:
            self._forwards.patch(sampler.model, functools.partial(self._sample, sampler))
        if self.settings.module == "auto":
            for child in self.pl_module.children():
                if child not in targets and not isinstance(child, Metric) and any(True for _ in child.parameters()):
                    self._forwards.patch(child, functools.partial(self._pass_by, child))
        if self.stage == "predict" and self.settings.return_uncertainty:
            self._forwards.lend(self.pl_module, "predict_step", self._uncertain(self.pl_module.predict_step))
        if self.stage != "predict":
            self._say(
                f"the {self.stage} metrics of {type(self.pl_module).__name__} describe the mean of "
                f"{self.settings.num_samples} stochastic passes over {len(self.sites)} sites."
            )
            if self._undetermined:
                self._say(
                    f"no {self.stage}/temperature/*: the validation samples determine no temperature (none of them, or "
                    "all, are right; or they have no labels)."
                )

    def end(self) -> None:
        """Give everything back."""
        self._forwards.give_back()
        self._progress.end()

    # --- what is sampled --------------------------------------------------------------------------------------------

    def _sampler(self, target: nn.Module) -> Sampler:
        parts = {id(part) for part in target.modules()}
        sampler = Sampler(
            target,
            [site for site in self.sites if any(id(user.module) in parts for user in site.users)],
            num_samples=self.settings.num_samples,
            task=self.settings.task,
            class_dim=self.settings.class_dim,
            masks=self.settings.masks,
            chunk_size=self.settings.chunk_size,
            output=self.settings.output,
        )
        compiler: Any = getattr(self.pl_module, "_compiler_ctx", None)  # Lightning's, of `torch.compile(module)`
        if compiler and not sampler.obstacle and self.settings.masks == "independent":
            # A child, which the compiled step would have taken in.
            self._forwards.lend(target, "forward", compiler["dynamo_ctx"](target.forward))
            sampler.look_at_compilation()
        return sampler

    def _uncompile_step(self) -> None:
        """Take compiled code from around the sampled calls, where it would break at each."""
        original = uncompiled(self.pl_module, self.stage)
        if original is not None:
            self._forwards.lend(self.pl_module, _STEPS[self.stage], original)

    # --- inside a step ----------------------------------------------------------------------------------------------

    def enter_step(self, rank: int, dataloader_idx: int, batch_idx: int) -> None:
        """Begin to sample calls."""
        self._step, self._outermost, self._calls = (rank, dataloader_idx, batch_idx), None, []

    def _sample(
        self, sampler: Sampler, original: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        if self._step is None:
            return original(*args, **kwargs)
        if self._outermost not in (None, sampler.model):
            self._refuse_second(sampler.model)
        self._outermost = sampler.model
        _, dataloader_idx, _ = self._step
        settings, sides = self.settings, {}
        if settings.compare and self.comparison is not None:
            with resting(sampler.sites):
                own_args, own_kwargs = copied((args, kwargs))
                plain = original(*own_args, **own_kwargs)
            outputs = select(plain, settings.output, settings.task, settings.class_dim)
            sides["det"] = of_one_pass(outputs, settings.task, settings.class_dim)
            if self.temperature is not None and isinstance(outputs, Tensor):
                scaled = at_temperature(outputs, self.temperature, settings.task, settings.class_dim)
                sides["temperature"] = of_one_pass(scaled, settings.task, settings.class_dim)
        sides["mc"] = prediction = sampler.sample(
            original,
            args,
            kwargs,
            seed=(settings.seed, *self._step, len(self._calls)),
            rates=self._rates(sampler.sites),
            guarded=dataloader_idx not in self._guarded,
            on_pass=self._progress.advance,
        )
        self._guarded.add(dataloader_idx)
        self._calls.append(sides)
        return prediction.predictive

    def _pass_by(
        self, child: nn.Module, original: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """Call a child that drops nothing: behind the sampled one it would go on with the mean of its features."""
        if self._step is not None and self._outermost not in (None, self.pl_module):
            self._refuse_second(child)
        return original(*args, **kwargs)

    def _refuse_second(self, second: nn.Module) -> None:
        first, other = (
            next((name for name, part in self.pl_module.named_modules() if part is module), "")
            for module in (self._outermost, second)
        )
        raise ValueError(
            f'Expected one module to be called in a step, but got `module="{first}"` and then `module="{other}"`; put '
            "both into `forward` and call that in the step, or name the one whose output is the prediction with "
            '`module=` in MCDropout ("" is the module itself).'
        )

    def _rates(self, sites: Sequence[Site]) -> list[float] | None:
        # Asked at each call: a scheduler that comes later in the list brings the trained rates back after our start.
        rates = self.settings.rates
        if isinstance(rates, float):
            return [rates] * len(sites)
        if rates == "trained" and any(site.rate for site in sites):
            return None
        base = base_rates(self.trainer, sites)
        if rates == "trained":
            if not any(base) and not self.trainer.fast_dev_run:
                return None  # refused by the sampler, which names the sites
            # A late start, and the best epoch before it; or one step into a schedule that starts at 0.
            self._say("the trained rates are all 0 here; sampling at the rates the model was built with.")
        return base if any(base) or rates == "base" else [_DEV_RUN_RATE] * len(sites)

    def leave_step(self, batch: Any) -> None:
        """Take what was sampled into the metrics.

        Raises:
            ValueError: If no call was sampled, or ``labels`` leads to something else.
        """
        if self._step is None:
            return
        _, dataloader_idx, batch_idx = self._step
        self._step = None
        if not self._calls:
            sites = ", ".join(site.name for site in self.sites[:3]) + (", ..." if len(self.sites) > 3 else "")
            raise ValueError(
                f"Expected the {self.stage} step of {type(self.pl_module).__name__} to call the module itself or one "
                "of its children, but got no call that could be sampled; name the part that the step calls with "
                f"`module=` in MCDropout (what drops: {sites})."
            )
        batch = self._forget_repeats(dataloader_idx, batch_idx, batch)
        for sides in self._calls:
            self.report.add(dataloader_idx, sides["mc"])
        if self.comparison is not None and self._calls:
            foreign = dataloader_idx > 0 and bool(self.ood)  # whose labels, if any, are of other classes
            labels = None if foreign else self._labels(self.comparison, batch)
            for sides in self._calls:
                self.comparison.update(dataloader_idx, sides, labels)
                if self.ood_scores is not None:
                    self.ood_scores.update(dataloader_idx, sides)
                for observe in self.settings.observers:
                    observe(dataloader_idx, batch, sides, labels)

    def _forget_repeats(self, dataloader_idx: int, batch_idx: int, batch: Any) -> Any:
        """Leave the samples out of calls and batch that another rank has, too; return the batch."""
        mean = self._calls[0]["mc"].mean
        rows = len(mean) if mean.ndim else 0
        loader = tree_leaves(getattr(self.trainer, _LOADERS[self.stage]))[dataloader_idx]
        count = unrepeated_rows(loader, batch_idx, rows)
        if count == rows:
            return batch
        self._calls = first_rows(self._calls, rows, count) if count else []
        return first_rows(batch, rows, count)

    def _labels(self, comparison: Comparison, batch: Any) -> Tensor | None:
        if len(self._calls) > 1:
            self._say("the module is called several times in a step; keys that need labels are left out.")
            return None
        try:
            labels = comparison.labels(batch, self._calls[0]["mc"])
        except ValueError as error:
            if comparison.where != "auto":
                raise
            if not self._mistaken:  # each batch holds another one
                self._say(f"keys that need labels are left out. {error}")
            self._mistaken = True
            return None
        if labels is None and comparison.where is not None and self.settings.task != "raw":
            self._say("found no labels in the batch; pass `labels=` for accuracy and calibration.")
        return labels

    # --- what comes out ---------------------------------------------------------------------------------------------

    @property
    def _batches(self) -> list[float]:
        """How many batches each loader has; infinity where nobody knows."""
        batches: list[float] = getattr(self.trainer, _BATCHES[self.stage])
        return batches

    def _comparison(self) -> Comparison | None:
        if self.stage == "predict":
            return None
        return Comparison(
            self.settings.task,
            self.settings.class_dim,
            passes=self._passes,
            labels=self.settings.labels,
            num_loaders=len(self._batches),
            device=self.pl_module.device,
        )

    def _ood_scores(self) -> OODScores | None:
        if not self.ood or not has_ood_scores(self.settings.task):
            return None
        return OODScores(self.ood, self.settings.class_dim, passes=self._passes, device=self.pl_module.device)

    @property
    def _passes(self) -> dict[str, int]:
        """Number of passes by side."""
        passes = {"mc": self.settings.num_samples}
        if self.settings.compare:
            passes |= {"det": 1} if self.temperature is None else {"det": 1, "temperature": 1}
        return passes

    def conclude(self) -> None:
        """Log the metrics and say what the passes were like; every rank calls it."""
        self._progress.end()
        report = self.report
        if self.comparison is not None:  # nothing else makes the ranks of a prediction wait for each other
            values = list(self.comparison.compute())
            report = report.over_ranks(self.trainer)
            for dataloader_idx, count in report.invalid.items():
                values += [(dataloader_idx, "mc", "num_invalid", torch.tensor(float(count)))] * (count > 0)
            for value in values:
                self._log(*value)
        for key, number, problem in self.ood_scores.compute() if self.ood_scores is not None else ():
            self._log_key(key, number)
            if problem is not None:
                self._say(problem)
        for line in report.lines():
            self._say(line)
        if any(report.invalid.values()):
            warn = warnings.warn if self.comparison is None else rank_zero_warn  # of this rank alone, or of all
            warn(
                f"MCDropout: {int(sum(report.invalid.values()))} of {report.outputs} outputs held NaN or infinity; the "
                "results of their samples are NaN.",
                stacklevel=2,
            )

    def _log(self, dataloader_idx: int, side: str, name: str, value: Tensor) -> None:
        stage = "val" if self.stage == "validate" else self.stage
        self._log_key(log_keys.comparison_key(stage, side, name, dataloader_idx), value, dataloader_idx)

    def _log_key(self, key: str, value: Tensor, dataloader_idx: int = 0) -> None:
        log = self.pl_module.log
        if dataloader_idx and release_of(self.trainer) < _FIRST_TO_LOG_KEYS_OF_LOADERS:
            log = functools.partial(self.trainer._results.log, self.pl_module._current_fx_name)
        # equal on all ranks, since the metric has synced; the key says which loader
        log(key, value, sync_dist=True, batch_size=1, add_dataloader_idx=False)

    def _uncertain(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)  # the loop reads the signature
        def predict_step(*args: Any, **kwargs: Any) -> dict[str, Any]:
            outputs = original(*args, **kwargs)
            if not self._calls:
                return {"prediction": outputs}  # leaving the step raises
            if len(self._calls) > 1:
                raise ValueError(
                    f"Expected one call in a predict step, whose uncertainty it returns, but got {len(self._calls)}; "
                    "call the module once, or leave `return_uncertainty` out."
                )
            prediction = self._calls[0]["mc"]
            return {"prediction": outputs, "mean": prediction.mean, "std": prediction.std} | prediction.uncertainties()

        return predict_step

    def _say(self, line: str) -> None:
        """Say a line once per stage, on one rank."""
        if line not in self.report.said:
            self.report.said.add(line)
            self._progress.hide()
            rank_zero_info(f"MCDropout: {line}")
