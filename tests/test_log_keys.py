"""The logging keys are an interface: dashboards and checkpoints' ``monitor`` spell them out."""

from lightning_dropout import log_keys
from lightning_dropout.log_keys import comparison_key, rate_key


def test_keys_are_spelt_as_documented() -> None:
    keys = {name: getattr(log_keys, name) for name in log_keys.__all__ if name.isupper()}
    assert (
        keys.items()
        >= {
            "DROPOUT": "dropout",
            "DROP_PATH": "drop_path",
            "RATE_PLAN": "rates/plan",
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
