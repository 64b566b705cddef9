"""The names under which the package logs: an interface that dashboards, sweeps and checkpoints' ``monitor`` rely on.

Every room that logs or reads a log takes its keys from here; a literal key elsewhere is a mistake. Topmost room.
"""

__all__ = [
    "DROPOUT",
    "DROP_PATH",
    "RATE_PLAN",
    "TEST_ACCURACY",
    "TEST_LOSS",
    "TEST_RMSE",
    "TRAIN_ACCURACY",
    "TRAIN_LOSS",
    "VAL_ACCURACY",
    "VAL_GAP",
    "VAL_LOSS",
    "VAL_RMSE",
    "comparison_key",
    "rate_key",
]

TRAIN_LOSS = "train/loss"
TRAIN_ACCURACY = "train/accuracy"
VAL_LOSS = "val/loss"
VAL_ACCURACY = "val/accuracy"
VAL_GAP = "val/gap"  # validation minus training loss, both in eval mode: positive is overfitting
VAL_RMSE = "val/rmse"
TEST_LOSS = "test/loss"  # what the module itself logs: under MCDropout it describes the mean of the passes
TEST_ACCURACY = "test/accuracy"
TEST_RMSE = "test/rmse"
DROPOUT = "dropout"  # dropout/mean, dropout/min, dropout/max, dropout/<group>
DROP_PATH = "drop_path"
RATE_PLAN = "rates/plan"  # an image: every group's rate over the run that is about to start


def rate_key(prefix: str, group: str) -> str:
    """Return the key of a group's effective rate.

    Example:
        >>> rate_key(DROPOUT, "mean")
        'dropout/mean'
    """
    return f"{prefix}/{group}"


def comparison_key(stage: str, side: str, metric: str, dataloader_idx: int = 0) -> str:
    """Return the key of a metric of the Monte-Carlo (``mc``) or the deterministic (``det``) side.

    Example:
        >>> comparison_key("test", "mc", "accuracy"), comparison_key("test", "det", "nll", dataloader_idx=1)
        ('test/mc/accuracy', 'test/det/nll/dataloader_idx_1')
    """
    key = f"{stage}/{side}/{metric}"
    return key if dataloader_idx == 0 else f"{key}/dataloader_idx_{dataloader_idx}"
