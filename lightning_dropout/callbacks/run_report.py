"""What a run leaves to look at, without a line of the user's: figures, the numbers behind them, a table at the end.

A thin shell: what is collected and what is drawn stands in other files. Nothing here may cost a run its results: a
figure that fails is one line.
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Union

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lightning_dropout import log_keys
from lightning_dropout.callbacks.batch_labels import inputs_of, labels_of
from lightning_dropout.callbacks.borrower import Borrower
from lightning_dropout.callbacks.least_sure import LeastSure
from lightning_dropout.callbacks.log_figure import log_figure, log_table
from lightning_dropout.callbacks.mc_dropout import MCDropout
from lightning_dropout.callbacks.ood_scores import ood_names
from lightning_dropout.callbacks.run_history import RunHistory
from lightning_dropout.callbacks.sample_table import SampleScores
from lightning_dropout.reports.baseline import baseline_rows, baseline_table
from lightning_dropout.reports.evaluation import Drawn, draw_evaluation
from lightning_dropout.reports.fit_figures import Curve, draw_fit
from lightning_dropout.reports.predictions import write_table
from lightning_dropout.reports.rates import draw_rates
from lightning_dropout.reports.realised_rates import realised_rates
from lightning_dropout.reports.sample_sheet import draw_samples
from lightning_dropout.reports.saving import json_of, plain, save_figure
from lightning_dropout.sampling.prediction import MCPrediction

__all__ = ["RunReport"]

_MOST_TRAINING_SAMPLES = 2000  # of a regression of one input, for its figure
_SIDES = (log_keys.DET, log_keys.TEMPERATURE, log_keys.MC)


class RunReport(Borrower):
    """Write figures of what dropout did in a run, and the numbers behind them, and show them in the loggers.

    Training: the rates that were logged, the losses and the gap between them. Test with ``MCDropout``: reliability,
    risk and coverage, entropy of right and wrong predictions, with and without dropout; of a regression of one input
    the band, and the calibration of its intervals; a table of the passes beside the plain forward and one with a fitted
    temperature, with paired intervals. Where the test has out-of-distribution loaders (``ood`` of ``MCDropout``), their
    entropies beside those of the first. Everything is a PNG with a CSV or JSON beside it, and an image under
    ``report/`` in W&B and TensorBoard. Of a regression of one input these hold its samples, too; of other data only
    scores, unless ``samples`` asks for more. Nothing of it changes what is trained or tested.

    Args:
        folder: Where to; made if missing. None: ``report`` in the folder of the first logger, or in the trainer's root.
        samples: How many of the samples that the model is least sure of are shown, at least 0: in a table, and in a
            sheet if they are images; on several ranks those of the first. They are data of the user's, and go to the
            loggers, too: 0 shows none.
        class_names: By class, for this sheet. None: the ``classes`` of the data module, if it has any.

    Raises:
        ValueError: If ``samples`` is no whole number of at least 0.

    Example:
        >>> RunReport("outputs/report", samples=20).samples
        20
    """

    def __init__(
        self,
        folder: Union[str, None] = None,  # noqa: UP007  (jsonargparse reads it)
        *,
        samples: int = 0,
        class_names: Union[Sequence[str], None] = None,  # noqa: UP007
    ) -> None:
        super().__init__()
        if isinstance(samples, bool) or not isinstance(samples, int) or samples < 0:
            raise ValueError(f"Expected `samples` to be a whole number of at least 0, but got {samples!r}.")
        self.folder = folder
        self.samples = samples
        self.class_names = None if class_names is None else tuple(class_names)
        self._history = RunHistory()
        self._train: dict[str, list[Tensor]] = {"input": [], "label": []}
        self._scores: SampleScores | None = None
        self._foreign: tuple[str, ...] = ()  # names of the loaders after the first
        self._watched: list[MCDropout] = []
        self._least_sure = LeastSure(samples)

    def state_dict(self) -> dict[str, Any]:
        """Return what was logged so far, so that the figures of a resumed run begin where it began."""
        return {"history": self._history.state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what was logged before a checkpoint."""
        self._history.load(state_dict["history"])

    # --- training ---------------------------------------------------------------------------------------------------

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        self._train = {"input": [], "label": []}

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.current_epoch == 0 and sum(map(len, self._train["input"])) < _MOST_TRAINING_SAMPLES:
            self._keep_training_samples(batch)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        step = max(0, trainer.global_step - 1)  # 0 optimizer steps are done while gradients of the first accumulate
        if step % max(1, trainer.log_every_n_steps) == 0 or step + 1 == trainer.max_steps:
            self._history.add(trainer.callback_metrics, step, RunHistory.rates)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._history.add(trainer.callback_metrics, trainer.current_epoch, RunHistory.validation)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self._history.add(trainer.callback_metrics, trainer.current_epoch, RunHistory.training)

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        self._show(trainer, lambda folder: self._fit_figures(trainer))

    # --- test -------------------------------------------------------------------------------------------------------

    def on_test_start(self, trainer: Any, pl_module: Any) -> None:
        self.give_back()
        for callback in trainer.callbacks:
            if isinstance(callback, MCDropout) and "test" in callback.stages:
                self._foreign = ood_names(trainer, callback.ood)
                self._scores = SampleScores(callback.class_dim)
                self._watched.append(callback)
                callback.observers.append(self._observe)

    def on_test_end(self, trainer: Any, pl_module: Any) -> None:
        scores, names, least_sure = self._scores, self._foreign, self._least_sure
        self.give_back()
        if scores is not None:
            try:
                scores = scores.over_ranks(trainer)
            except Exception as error:
                self._say(error)
                return
            self._show(
                trainer,
                lambda folder: itertools.chain(
                    self._test_figures(scores, names), self._least_sure_figures(trainer, least_sure, folder)
                ),
            )
            self._compare(trainer, scores)

    def give_back(self) -> None:
        for callback in self._watched:
            if self._observe in callback.observers:
                callback.observers.remove(self._observe)
        self._watched, self._scores, self._foreign, self._least_sure = [], None, (), LeastSure(self.samples)

    def _observe(
        self, dataloader_idx: int, batch: Any, sides: Mapping[str, MCPrediction], labels: Tensor | None
    ) -> None:
        if self._scores is None or self._scores.error is not None:
            return
        try:
            found = self._scores.add(dataloader_idx, batch, sides, labels).get(log_keys.MC, {})
            if dataloader_idx == 0 and "entropy" in found:
                self._least_sure.add(batch, found)
        except Exception as error:  # said at the end, by the rank that speaks
            self._scores.error = error

    def _keep_training_samples(self, batch: Any) -> None:
        x, y = inputs_of(batch), labels_of(batch, "auto")
        if (
            isinstance(x, Tensor)
            and isinstance(y, Tensor)
            and x.ndim > 0
            and x.numel() == y.numel() == len(x)
            and x.is_floating_point()
        ):
            for name, values in (("input", x), ("label", y)):
                self._train[name].append(values.detach().to("cpu", torch.float32, copy=True).flatten())

    # --- what comes out ---------------------------------------------------------------------------------------------

    def _fit_figures(self, trainer: Any) -> Iterator[Drawn]:
        logged = self._history.values
        curves = realised_rates(
            {key: column for key, column in logged.items() if RunHistory.rates(key)}, steps=max(1, trainer.global_step)
        )
        if curves:
            figure = draw_rates(curves, steps=trainer.global_step, epochs=None, title="Rates of the run, as logged")
            yield Drawn(log_keys.REPORT_RATES, figure, curves)
        names = {log_keys.TRAIN_LOSS: "train", log_keys.VAL_LOSS: "validation"}
        losses = {name: Curve.of(*logged[key]) for key, name in names.items() if key in logged}
        if losses:
            gap = Curve.of(*logged[log_keys.VAL_GAP]) if log_keys.VAL_GAP in logged else None
            yield Drawn(log_keys.REPORT_GAP, draw_fit(losses, gap), {"losses": losses, "gap": gap})

    def _test_figures(self, scores: SampleScores, names: Sequence[str]) -> Iterator[Drawn]:
        train = {name: torch.cat(batches) for name, batches in self._train.items() if batches}
        own, *others = ({side: scores.columns(loader, side) for side in _SIDES} for loader in range(1 + len(names)))
        yield from draw_evaluation(own, dict(zip(names, others, strict=True)), train)

    def _least_sure_figures(self, trainer: Any, least_sure: LeastSure, folder: Path) -> Iterator[Drawn]:
        table, images = least_sure.table(), least_sure.images()
        if images:
            names = self.class_names or getattr(trainer.datamodule, "classes", None)
            yield Drawn(log_keys.REPORT_MOST_UNCERTAIN, draw_samples(images, table, class_names=names), table)
        elif len(least_sure):
            write_table(plain(table), folder / "most_uncertain.csv")
        if len(least_sure):
            log_table(trainer, log_keys.REPORT_SAMPLES, plain(table))

    def _show(self, trainer: Any, draw: Callable[[Path], Iterator[Drawn]]) -> None:
        """Save and log what is drawn; every rank calls it."""
        try:
            folder, count = self._folder(trainer), 0
            if not self._writes(trainer):
                return
            folder.mkdir(parents=True, exist_ok=True)
            for key, figure, numbers in draw(folder):
                save_figure(figure, numbers, folder, key.rpartition("/")[2])
                log_figure(trainer, key, functools.partial(_as_it_is, figure))
                count += 1
            if count:
                rank_zero_info(f"RunReport: {count} figure{'s' if count > 1 else ''} in {folder}")
        except Exception as error:
            self._say(error)

    def _compare(self, trainer: Any, scores: SampleScores) -> None:
        try:
            folder = self._folder(trainer)
            if not self._writes(trainer):
                return
            columns = {side: scores.columns(0, side) for side in _SIDES}
            rows = baseline_rows({side: each for side, each in columns.items() if each})
            if rows:
                from rich.console import Console

                metrics = {key: float(value) for key, value in trainer.callback_metrics.items()}
                report = {"metrics": metrics, "paired": {row.score: row for row in rows}}
                folder.mkdir(parents=True, exist_ok=True)
                (folder / "comparison.json").write_text(json_of(report) + "\n", encoding="utf-8")
                Console().print(baseline_table(rows))
        except Exception as error:
            self._say(error)

    @staticmethod
    def _writes(trainer: Any) -> bool:
        return trainer.is_global_zero and not trainer.fast_dev_run

    def _folder(self, trainer: Any) -> Path:
        if self.folder:
            return Path(self.folder)
        # `log_dir` is sent from the first rank to all: every rank has to ask for it.
        return Path(trainer.log_dir or trainer.default_root_dir) / "report"

    def _say(self, error: Exception) -> None:
        reason = " ".join(str(error).split()) or type(error).__name__
        rank_zero_info(f"RunReport: the report could not be finished ({reason}); the run goes on.")


def _as_it_is(figure: Any) -> Any:
    return figure
