"""The names under which the package logs: an interface that dashboards, sweeps and checkpoints' ``monitor`` rely on.

Every room that logs or reads a log takes its keys from here; a literal key elsewhere is a mistake. Topmost room.
"""

import re
from collections.abc import Iterable

__all__ = [
    "ACCURACY",
    "ACCURACY_AT_90",
    "ALEATORIC_VARIANCE",
    "AUGRC",
    "AURC",
    "AUROC",
    "BRIER",
    "DET",
    "DET_ENTROPY",
    "DET_MAX_PROBABILITY",
    "DROPOUT",
    "DROP_PATH",
    "ECE",
    "ENTROPY",
    "EPISTEMIC_VARIANCE",
    "FPR95",
    "GLOBAL_STEP",
    "LEARNING_RATE",
    "MAE",
    "MAX_PROBABILITY",
    "MC",
    "MUTUAL_INFORMATION",
    "NLL",
    "RATE_PLAN",
    "REPORT_ENTROPY",
    "REPORT_GAP",
    "REPORT_INTERVAL_CALIBRATION",
    "REPORT_MOST_UNCERTAIN",
    "REPORT_OOD_ENTROPY",
    "REPORT_RATES",
    "REPORT_REGRESSION_BAND",
    "REPORT_RELIABILITY",
    "REPORT_RISK_COVERAGE",
    "REPORT_SAMPLES",
    "RMSE",
    "STD",
    "TEMPERATURE",
    "TEST_ACCURACY",
    "TEST_LOSS",
    "TEST_RMSE",
    "TRAIN_ACCURACY",
    "TRAIN_LOSS",
    "VAL_ACCURACY",
    "VAL_GAP",
    "VAL_LOSS",
    "VAL_RMSE",
    "check_ood_names",
    "comparison_key",
    "ood_key",
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
LEARNING_RATE = "lr-"  # Lightning's LearningRateMonitor: lr-AdamW, lr-AdamW/pg1, ...
GLOBAL_STEP = "trainer/global_step"  # what Lightning's W&B logger sends beside every value: the x-axis

# The sides of a comparison: without dropout, without dropout and with one fitted temperature, the mean of the passes.
DET, TEMPERATURE, MC = "det", "temperature", "mc"
# Their metrics, as the last part of `comparison_key`.
ACCURACY, NLL, BRIER, ECE = "accuracy", "nll", "brier", "ece"
AURC, AUGRC, ACCURACY_AT_90 = "aurc", "augrc", "accuracy_at_90"  # the last: of the 90 % that the model is surest of
RMSE, MAE = "rmse", "mae"
ENTROPY, MUTUAL_INFORMATION = "entropy", "mutual_information"
ALEATORIC_VARIANCE, EPISTEMIC_VARIANCE, STD = "aleatoric_variance", "epistemic_variance", "std"
# In- against out-of-distribution, as parts of `ood_key`: what is computed, from which score.
AUROC, FPR95 = "auroc", "fpr95"
MAX_PROBABILITY = "max_probability"  # the other scores of the passes are ENTROPY and MUTUAL_INFORMATION
DET_MAX_PROBABILITY, DET_ENTROPY = "det_max_probability", "det_entropy"  # of the plain forward, to compare with

_NAME = r"[\w.-]+"

# Images of the end of a run. A key is also the place of the PNG in the run folder, without its ending.
REPORT_RATES = "report/rates"
REPORT_GAP = "report/gap"
REPORT_RELIABILITY = "report/reliability"
REPORT_INTERVAL_CALIBRATION = "report/interval_calibration"
REPORT_REGRESSION_BAND = "report/regression_band"
REPORT_ENTROPY = "report/entropy"
REPORT_RISK_COVERAGE = "report/risk_coverage"
REPORT_OOD_ENTROPY = "report/ood_entropy"
REPORT_MOST_UNCERTAIN = "report/most_uncertain"
REPORT_SAMPLES = "report/most_uncertain_samples"  # a table


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


def ood_key(stage: str, metric: str, score: str, dataset: str = "") -> str:
    """Return the key of how well ``score`` tells a data set from the in-distribution one, which is the first loader.

    Args:
        stage: Such as ``"test"``.
        metric: ``AUROC`` or ``FPR95``.
        score: ``MAX_PROBABILITY``, ``ENTROPY`` or ``MUTUAL_INFORMATION`` of the passes, ``DET_MAX_PROBABILITY`` or
            ``DET_ENTROPY`` of the plain forward.
        dataset: Name of the out-of-distribution data set where there are several; "" for the only one.

    Raises:
        ValueError: If ``dataset`` holds anything but letters, digits, ``_``, ``-`` and ``.``.

    Example:
        >>> ood_key("test", AUROC, ENTROPY), ood_key("test", FPR95, MAX_PROBABILITY, "svhn")
        ('test/ood/auroc/entropy', 'test/ood/fpr95/max_probability/svhn')
    """
    if dataset and not re.fullmatch(_NAME, dataset, re.ASCII):
        raise ValueError(
            f"Expected `dataset` to be a name of letters, digits, _, - and ., but got {dataset!r}; it is one part of a "
            "logging key."
        )
    return "/".join([stage, "ood", metric, score, *([dataset] if dataset else [])])


def check_ood_names(names: Iterable[str]) -> tuple[str, ...]:
    """Return the names of out-of-distribution data sets, if each can be a part of its keys.

    Raises:
        ValueError: If ``names`` is no list, a name is empty or holds what :func:`ood_key` refuses, or two are equal.

    Example:
        >>> check_ood_names(["svhn", "cifar-100"])
        ('svhn', 'cifar-100')
    """
    listed = tuple(names) if isinstance(names, Iterable) and not isinstance(names, str) else ("",)
    good = all(isinstance(name, str) and re.fullmatch(_NAME, name, re.ASCII) for name in listed)
    if not good or len(set(listed)) < len(listed):
        raise ValueError(
            "Expected `ood` to list different names of letters, digits, _, - and ., each a part of logging keys, but "
            f'got {names!r}; e.g. `ood=["svhn"]`.'
        )
    return listed
