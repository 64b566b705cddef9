"""One row per sample: predictions and their uncertainties as a table, in CSV or Parquet.

Takes what ``trainer.predict`` returns under ``MCDropout(return_uncertainty=True)``; runs no model.
"""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["prediction_table", "write_table"]

_FORMATS = (".csv", ".parquet")


def prediction_table(batches: Sequence[Mapping[str, Tensor]]) -> dict[str, list[float]]:
    """Join the batches and name a column for every number of a sample.

    Args:
        batches: For each batch the predictions by name, each ``(batch, ...)``; vectors become numbered columns. What
            the step itself returned (``prediction``) is left out: the mean says it.

    Returns:
        Columns by name: ``sample``; ``class`` of the greatest mean where classes exclude each other (one entropy a
        sample); ``mean_0``, ``mean_1``, ..., ``std_0``, ..., ``entropy``, ....

    Raises:
        ValueError: If there are no batches, if they are no dictionaries of predictions (a list of lists comes from
            several loaders), or if the predictions of a batch differ in length.

    Example:
        >>> batch = {"mean": torch.tensor([[0.25, 0.75]]), "entropy": torch.tensor([0.5])}
        >>> prediction_table([batch, batch])
        {'sample': [0, 1], 'class': [1, 1], 'mean_0': [0.25, 0.25], 'mean_1': [0.75, 0.75], 'entropy': [0.5, 0.5]}
    """
    if not batches:
        raise ValueError("Expected at least one batch of predictions, but got none; is the predict loader empty?")
    if not all(isinstance(batch, Mapping) and "mean" in batch for batch in batches):
        raise ValueError(
            f"Expected batches of predictions by name, but got {type(batches[0]).__name__}; pass "
            "`return_uncertainty=True` to MCDropout, and the predictions of one loader at a time."
        )
    columns: dict[str, list[float]] = {}
    for name in batches[0]:
        if name == "prediction":
            continue
        values = torch.cat([batch[name].detach().cpu() for batch in batches]).double()
        one_of_several = values.ndim == 2 and values.shape[1] > 1 and batches[0].get("entropy", values).ndim == 1
        if name == "mean" and one_of_several:
            columns["class"] = values.argmax(1).tolist()
        values = values.reshape(len(values), -1)
        for index in range(values.shape[1]):
            columns[f"{name}_{index}" if values.shape[1] > 1 else name] = values[:, index].tolist()
    lengths = {len(column) for column in columns.values()}
    if len(lengths) > 1:
        raise ValueError(f"Expected one row a sample, but got columns of {sorted(lengths)} rows.")
    return {"sample": list(range(lengths.pop())), **columns}


def write_table(columns: Mapping[str, Sequence[float]], path: str | Path) -> Path:
    """Write a table; the name's ending says how.

    Args:
        columns: Equally long columns by name.
        path: ``*.csv``, or ``*.parquet`` where pyarrow is installed.

    Returns:
        The path.

    Raises:
        ValueError: For another ending.
        ImportError: If pyarrow is needed and missing.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_table({"sample": [0, 1], "std": [0.5, 0.25]}, f"{folder}/table.csv").read_text().split()
        ['sample,std', '0,0.5', '1,0.25']
    """
    path = Path(path)
    check_format(path)
    if path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows(zip(*columns.values(), strict=True))
        return path
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table(dict(columns)), path)
    return path


def check_format(path: str | Path) -> None:
    """Raise at once, not after the predictions, if a table cannot be written to ``path``."""
    suffix = Path(path).suffix
    if suffix not in _FORMATS:
        raise ValueError(f"Expected `output` to end in {' or '.join(_FORMATS)}, but got {str(path)!r}.")
    if suffix == ".parquet":
        try:
            import pyarrow  # noqa: F401
        except ImportError as error:
            raise ImportError("Parquet needs pyarrow: `pip install pyarrow`, or write CSV.") from error
