"""Lightning's CSV logger, except that a resumed run goes on with its file: the original begins by deleting it.

What was logged after the checkpoint that a run goes on from is logged again by it, so these rows are left out.
"""

import csv
import io
import itertools
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

__all__ = ["ResumableCSVLogger"]


class ResumableCSVLogger(CSVLogger):
    """Lightning's CSV logger for runs that may be killed and go on: ``metrics.csv`` holds each row once.

    With a new folder it does what ``CSVLogger`` does. In a folder with a ``metrics.csv``, its rows before the first
    step that is logged now are kept; they are on disk as soon as a checkpoint is, and at no moment without a copy. If
    that leaves none, the old file stays beside the new one, as ``metrics.1.csv``.

    Args:
        save_dir: As in ``CSVLogger``.
        name: As in ``CSVLogger``.
        version: As in ``CSVLogger``; a word, so that a resumed run finds the same folder.
        prefix: As in ``CSVLogger``.
        flush_logs_every_n_steps: As in ``CSVLogger``.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> for step in (0, 1):  # the second one goes on with the file of the first one
        ...     logger = ResumableCSVLogger(folder, name="csv", version="")
        ...     logger.log_metrics({"loss": 0.5}, step=step)
        ...     logger.save()
        >>> print(Path(folder, "csv", "metrics.csv").read_text())
        loss,step
        0.5,0
        0.5,1
        <BLANKLINE>
    """

    def __init__(
        self,
        save_dir: str | Path,
        name: str | None = "lightning_logs",
        version: int | str | None = None,
        prefix: str = "",
        flush_logs_every_n_steps: int = 100,
    ) -> None:
        super().__init__(save_dir, name, version, prefix, flush_logs_every_n_steps)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """What writes the file, made at the first use; on ranks other than zero a stand-in that ignores everything."""
        if self._experiment is None:
            Path(self.root_dir).mkdir(parents=True, exist_ok=True)
            self._experiment = _Writer(log_dir=self.log_dir)
        return self._experiment

    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        """Write what is logged so far: a run that goes on from this checkpoint does not log it again."""
        super().after_save_checkpoint(checkpoint_callback)
        self.save()


class _Writer(ExperimentWriter):
    def __init__(self, log_dir: str) -> None:
        super().__init__(log_dir=log_dir)
        self._path = Path(self.metrics_file_path)
        self._goes_on = self._path.is_file()
        self._first: int | None = None  # step of the first row of this run, if it goes on with a file

    def _check_log_dir_exists(self) -> None:
        """Delete nothing, unlike the original."""

    def log_metrics(self, metrics_dict: dict[str, float], step: int | None = None) -> None:
        at = step or 0
        if self._goes_on:
            self._goes_on, self._first = False, at
        if self._first == at:
            self.save()
            self._drop_from(at, {*metrics_dict} - {"epoch"})
        super().log_metrics(metrics_dict, step)

    def _drop_from(self, step: int, again: set[str]) -> None:
        """Drop later rows, and of this step those that are logged again: its training is not if its validation is."""
        whole, newline, _ = self._path.read_text().rpartition("\n")  # behind it: cut short by a kill
        reader = csv.DictReader(io.StringIO(whole + newline))
        rows = [*reader]
        kept = [row for row in rows if (at := int(row["step"])) < step or (at == step and not again & _filled(row))]
        if rows and not kept:  # no run that goes on, but another one in the same folder
            shutil.copyfile(self._path, _free(self._path))
        self.metrics_keys = [*(reader.fieldnames or ())]
        self._replace(kept)

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        """Write the file anew with more columns; unlike the original with the old one in place until it is done."""
        with self._path.open(newline="") as file:
            self._replace(list(csv.DictReader(file)))

    def _replace(self, rows: Iterable[Mapping[str, Any]]) -> None:
        beside = self._path.with_suffix(".new")
        with beside.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=self.metrics_keys)
            writer.writeheader()
            writer.writerows(rows)
        beside.replace(self._path)


def _filled(row: Mapping[str, str]) -> set[str]:
    return {name for name, value in row.items() if value}


def _free(path: Path) -> Path:
    names = (path.with_name(f"{path.stem}.{number}{path.suffix}") for number in itertools.count(1))
    return next(name for name in names if not name.exists())
