"""The logging keys are an interface: dashboards and checkpoints' ``monitor`` spell them out."""

from typing import Any

import pytest

from lightning_dropout import log_keys
from lightning_dropout.log_keys import check_ood_names, comparison_key, ood_key, rate_key


def test_keys_are_spelt_as_documented() -> None:
    keys = {name: getattr(log_keys, name) for name in log_keys.__all__ if name.isupper()}
    assert (
        keys.items()
        >= {
            "DROPOUT": "dropout",
            "DROP_PATH": "drop_path",
            "DET_ENTROPY": "det_entropy",
            "DET_MAX_PROBABILITY": "det_max_probability",
            "RATE_PLAN": "rates/plan",
            "REPORT_RELIABILITY": "report/reliability",
            "REPORT_SAMPLES": "report/most_uncertain_samples",
            "TEST_ACCURACY": "test/accuracy",
            "TEST_LOSS": "test/loss",
            "TEST_RMSE": "test/rmse",
            "TRAIN_ACCURACY": "train/accuracy",
            "TRAIN_LOSS": "train/loss",
            "VAL_ACCURACY": "val/accuracy",
            "VAL_GAP": "val/gap",
            "VAL_LOSS": "val/loss",
            "VAL_RMSE": "val/rmse",
        }.items()
    )


def test_built_keys() -> None:
    assert rate_key(log_keys.DROP_PATH, "max") == "drop_path/max"
    assert comparison_key("test", "det", "nll") == "test/det/nll"
    assert comparison_key("val", "mc", "nll", 2) == "val/mc/nll/dataloader_idx_2"
    assert comparison_key("test", log_keys.TEMPERATURE, log_keys.ACCURACY_AT_90) == "test/temperature/accuracy_at_90"
    assert ood_key("test", log_keys.AUROC, log_keys.ENTROPY) == "test/ood/auroc/entropy"
    assert ood_key("test", log_keys.FPR95, log_keys.MAX_PROBABILITY, "cifar-10.1") == (
        "test/ood/fpr95/max_probability/cifar-10.1"
    )


@pytest.mark.parametrize("dataset", ["a/b", "two words", "é", "\n"])
def test_a_data_set_is_one_part_of_its_key(dataset: str) -> None:
    with pytest.raises(ValueError, match="`dataset` to be a name"):
        ood_key("test", log_keys.AUROC, log_keys.ENTROPY, dataset)


def test_names_of_data_sets() -> None:
    assert check_ood_names({"svhn": "/data", "cifar-10.1": "/more"}) == ("svhn", "cifar-10.1")
    assert check_ood_names([]) == ()


@pytest.mark.parametrize("names", ["svhn", ["a", "a"], [""], ["a/b"], ["é"], [3], [["a"]], None])
def test_impossible_names_of_data_sets(names: Any) -> None:
    with pytest.raises(ValueError, match=r"Expected `ood` to list different names .*; e.g. `ood=\[\"svhn\"\]`"):
        check_ood_names(names)
