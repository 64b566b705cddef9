"""Monte-Carlo dropout at test and predict time, around any LightningModule, without a change to it.

The module's ``forward`` is replaced on the instance for the length of a stage; inside a step its outermost call is
sampled, and the user's step receives the mean predictive in the form of the model's own output. Training flags flip
inside each call only (``sampling``), so no hook, exception or interrupt can leave them wrong. Arguments and hooks stand
here, what happens in a stage in ``sampled_stage.py``.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Union, cast, get_args

from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lightning_dropout import log_keys
from lightning_dropout.callbacks.any_callback import load_missed_state
from lightning_dropout.callbacks.borrower import Borrower
from lightning_dropout.callbacks.ood_scores import has_ood_scores
from lightning_dropout.callbacks.sampled_rates import check_final_rates, check_rates
from lightning_dropout.callbacks.sampled_stage import SampledStage, Stage, sampled_modules, uncompiled
from lightning_dropout.callbacks.validation_temperature import ValidationTemperature, fingerprint, has_temperature
from lightning_dropout.randomness import derive_seed
from lightning_dropout.sampling.folding import check_chunk_size
from lightning_dropout.sampling.masks import Masks, check_masks
from lightning_dropout.sampling.prediction import MCPrediction, Task, check_task
from lightning_dropout.sampling.sample import DEFAULT_KINDS, check_num_samples
from lightning_dropout.sites import Kind, find_sites

__all__ = ["MCDropout"]

Observer = Callable[[int, Any, Mapping[str, MCPrediction], Tensor | None], None]

_TEMPERATURES = "lightning_dropout_temperatures"  # in a checkpoint: by the logits that they are of


class MCDropout(Borrower):
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
            dotted path such as ``"1"`` or ``"target.class"``, a function of the batch, or ``None`` if ``batch[1]`` is
            something else. If a batch has none, only the keys that need none are logged. Classes of -100, which
            torch's losses ignore, count in none of those that need labels.
        rates: ``"trained"``: the rates at the end of training or of the loaded checkpoint, unless these are all 0;
            ``"base"``: those that the
            model was built with; a number: one probability for every site.
        compare: Whether to run each batch once without dropout, for ``det/*``.
        temperature: Whether to compare with one temperature, too, for ``temperature/*``, where the outputs are logits
            of classes: the plain forward, its logits divided by the number that made the last validation most likely.
            It is fitted on the first loader of each validation, also of ``trainer.validate``, so test on other data;
            and kept in checkpoints with what tells the weights that it is of. The forwards of the module and its
            children are wrapped for the length of a validation: leave it out where a function that was compiled with
            ``fullgraph=True``, or is scripted, calls them.
        masks: ``"independent"``: a mask for each sample and pass. ``"shared"``: one thinned network for each pass, the
            same for the whole data set.
        chunk_size: How many passes run at a time, folded into the batch, at least 1. On a CPU more than 1 is slower, on
            a GPU with small batches faster.
        output: Where in the model's output the tensor to average stands, if it returns more than that: a dotted path
            such as ``"logits"`` or ``"1"``. The step receives the whole output, with the mean predictive in that place
            and ``None`` for what cannot be averaged (a decoder's key-value cache, lists of boxes); if left out, that is
            an error.
        sites: Glob pattern or patterns of the sites to sample.
        exclude: Patterns of sites, or of modules unknown to the package, to leave alone.
        kinds: Kinds of sites to sample; ``"drop_path"`` and ``"layer_drop"`` join if named.
        class_dim: The dimension of the classes.
        ood: Names of the test loaders after the first, if they are out-of-distribution: how well the passes, and with
            ``compare`` the plain forward, tell each from the first is then logged as ``test/ood/auroc/*`` and
            ``test/ood/fpr95/*``, by the highest probability, the entropy and the mutual information. Labels of these
            loaders are not looked at. ``"auto"``: the ``ood_names`` of the data module, if it has some; empty: none is.
        seed: What the masks follow from; see below.
        return_uncertainty: Whether ``predict_step`` returns a dictionary of its own result (``prediction``) and
            ``mean``, ``std``, ``entropy`` and ``mutual_information`` where the task defines them.

    Reproducibility: independent masks follow from ``seed``, rank, loader, number of the batch, of the call in its step
    and of the pass. They repeat between runs, whatever the global seed and the number of workers, and change with the
    batch size, the order of the data, the number of ranks and ``chunk_size``. Shared masks follow from ``seed`` and the
    pass alone: they are bit-equal for all of these, and outputs differ by rounding only.

    Raises:
        ValueError: At construction for impossible arguments; at the start of a fit or stage if no site matches or
            sampling would find only rates of 0; at the start of a test if ``ood`` does not name each further loader;
            in the first step if no call, or two different ones, could be sampled, or if the outputs do not fit ``task``
            or cannot be averaged; where a label at a place that you named is no class.
        RuntimeError: In the first step of a loader if passes change a buffer or the input, do not differ, or do not
            give the same again from the same seed.

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
        labels: Union[str, Callable[[Any], Any], None] = "auto",  # noqa: UP007  (jsonargparse reads it)
        rates: Union[Literal["trained", "base"], float] = "trained",  # noqa: UP007
        compare: bool = True,
        temperature: bool = True,
        masks: Masks = "independent",
        chunk_size: int = 1,
        output: Union[str, None] = None,  # noqa: UP007
        sites: Union[str, Sequence[str]] = "*",  # noqa: UP007
        exclude: Union[str, Sequence[str]] = (),  # noqa: UP007
        kinds: Sequence[Kind] = DEFAULT_KINDS,
        class_dim: int = 1,
        ood: Union[Literal["auto"], Sequence[str]] = "auto",  # noqa: UP007
        seed: int = 0,
        return_uncertainty: bool = False,
    ) -> None:
        super().__init__()
        check_num_samples(num_samples)
        check_task(task)
        check_masks(masks)
        check_chunk_size(chunk_size)
        derive_seed(seed)  # raises unless it is a whole number
        if isinstance(stages, str) or not stages or set(stages) - set(get_args(Stage)):
            raise ValueError(
                f"Expected `stages` to list some of {', '.join(get_args(Stage))}, but got {stages!r}; "
                'e.g. `stages=["test"]`.'
            )
        if output is not None and (not isinstance(output, str) or not output):
            raise ValueError(
                f"Expected `output` to be a dotted path into the model's output, but got {output!r}; e.g. "
                '`output="logits"`, or None if the output is what is averaged.'
            )
        names: Literal["auto"] | tuple[str, ...] = "auto" if ood == "auto" else log_keys.check_ood_names(ood)
        if names and names != "auto" and not has_ood_scores(task):
            raise ValueError(
                f'Expected `ood` to be empty or "auto" for task="{task}", whose outputs have no entropy to tell data '
                f"sets apart by, but got {list(names)}; leave it out."
            )
        self.num_samples = num_samples
        self.task = task
        self.stages = tuple(stages)
        self.module = module
        self.labels = labels
        self.rates = check_rates(rates)
        self.compare = compare
        self.temperature = temperature
        self.masks = masks
        self.chunk_size = chunk_size
        self.output = output
        self.sites = sites
        self.exclude = exclude
        self.kinds = cast(tuple[Kind, ...], (kinds,) if isinstance(kinds, str) else tuple(kinds))
        self.class_dim = class_dim
        self.ood = names
        self.seed = seed
        self.return_uncertainty = return_uncertainty
        self.observers: list[Observer] = []
        """Called with each sampled call of a step: number of the loader, batch, predictions by side, labels or None."""
        self._running: SampledStage | None = None  # None outside a sampled stage
        self._watching: ValidationTemperature | None = None  # None outside a validation that fits the temperature
        self._temperature: float | None = None  # of the last validation; NaN if it had none
        self._weights: float | None = None  # fingerprint of those that it was fitted for

    # Not as the state of a callback, whose keys must differ: there may be one for each stage, and at a test another
    # than in the training.

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        if self._temperature is not None:
            found = checkpoint.setdefault(_TEMPERATURES, {})
            if self._logits not in found or not math.isnan(self._temperature):  # another one of us may have labels
                found[self._logits] = self._temperature, self._weights

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        # a checkpoint without it, of weights alone, takes nothing away: the fingerprint says whether it still holds
        self._temperature, self._weights = checkpoint.get(_TEMPERATURES, {}).get(
            self._logits, (self._temperature, self._weights)
        )

    @property
    def _logits(self) -> str:
        """Which of a module's logits it is about."""
        return f"{self.module}:{self.output or ''}"

    # --- where a stage begins and ends ------------------------------------------------------------------------------

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        check_final_rates(trainer, find_sites(pl_module, self.sites, self.exclude, self.kinds), self.rates)

    def on_test_start(self, trainer: Any, pl_module: Any) -> None:
        self._begin(trainer, pl_module, "test")

    def on_predict_start(self, trainer: Any, pl_module: Any) -> None:
        self._begin(trainer, pl_module, "predict")

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.state.fn == "validate" and "validate" in self.stages:
            self._begin(trainer, pl_module, "validate")
        elif (
            self.compare
            and self.temperature
            and has_temperature(self.task)
            and not (trainer.sanity_checking or uncompiled(pl_module, "validate"))
        ):
            self._watch(trainer, pl_module)

    def on_test_end(self, trainer: Any, pl_module: Any) -> None:
        self.give_back()

    def on_predict_end(self, trainer: Any, pl_module: Any) -> None:
        self.give_back()

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self.give_back()

    def _begin(self, trainer: Any, pl_module: Any, stage: Stage) -> None:
        self.give_back()
        if stage in self.stages:
            if any(isinstance(other, MCDropout) and other._running is not None for other in trainer.callbacks):
                raise ValueError(
                    f'Expected one MCDropout for the stage "{stage}", but got two, of which one would sample the means '
                    "of the other; give them different `stages`, or leave one out."
                )
            load_missed_state(self, trainer)
            self._running = SampledStage(self, trainer, pl_module, stage, self._temperature_of(trainer, pl_module))
            self._running.begin()

    def _temperature_of(self, trainer: Any, pl_module: Any) -> float | None:
        """Return the temperature, if it is of the weights at hand; every rank calls it."""
        if self._temperature is None or not self.temperature:
            return None
        if trainer.strategy.broadcast(fingerprint(pl_module) == self._weights):
            return self._temperature
        rank_zero_info("MCDropout: no temperature/*: these are not the weights that the last validation was of.")
        return None

    def _watch(self, trainer: Any, pl_module: Any) -> None:
        self.give_back()
        try:
            sites = find_sites(pl_module, self.sites, self.exclude, self.kinds)
            targets = sampled_modules(pl_module, sites, self.module)
        except ValueError:  # the test says it, whose matter it is
            return
        self._watching = ValidationTemperature(self, trainer)
        self._watching.begin(targets)

    def give_back(self) -> None:
        for borrowing in (self._running, self._watching):
            if borrowing is not None:
                borrowing.end()
        self._running = self._watching = None

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
        if self._watching is not None and dataloader_idx == 0:
            self._watching.enter_step()

    def on_test_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._leave_step(batch)

    def on_predict_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._leave_step(batch)

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._leave_step(batch)
        if self._watching is not None and dataloader_idx == 0:
            self._watching.leave_step(batch)

    def _enter_step(self, trainer: Any, batch_idx: int, dataloader_idx: int) -> None:
        if self._running is not None:
            self._running.enter_step(trainer.global_rank, dataloader_idx, batch_idx)

    def _leave_step(self, batch: Any) -> None:
        if self._running is not None:
            self._running.leave_step(batch)

    # --- what comes out ---------------------------------------------------------------------------------------------

    def on_test_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self._conclude()

    def on_predict_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self._conclude()

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self._conclude()
        if self._watching is not None:
            self._temperature, self._weights = self._watching.temperature(), self._watching.weights

    def _conclude(self) -> None:
        if self._running is not None:
            self._running.conclude()
