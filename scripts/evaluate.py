"""Test or predict with a checkpoint: ``python scripts/evaluate.py ckpt_path=outputs/<run>/checkpoints/best.ckpt``.

``stage=predict`` writes one row a sample, with the mean, spread and entropies of the passes. One process does it unless
``+run.trainer.devices=2`` asks for more, which share the samples out.
"""

import json
import os
import time

import hydra
from omegaconf import DictConfig, OmegaConf

from lightning_dropout.configuration import (
    ConfigError,
    build,
    build_each,
    check_name,
    check_output_dir,
    check_run,
    check_seed,
    config_of_checkpoint,
    fill_from_data,
    quiet_lightning,
    run_main,
)

os.environ.setdefault("LIGHTNING_DROPOUT_STAMP", time.strftime("%Y-%m-%d_%H-%M-%S"))


def config_of_run(cfg: DictConfig) -> DictConfig:
    """Return the config that the checkpoint was trained with, with the changes asked for."""
    run = config_of_checkpoint(cfg.ckpt_path)
    run.trainer.update({"devices": 1, "num_nodes": 1, "strategy": "auto"})  # whatever it was trained on
    for name in ("learning_rate", "checkpoint", "last_checkpoint"):
        run.callbacks[name] = None  # only for training
    changes = {"output_dir": cfg.output_dir}
    passes = {key: cfg[key] for key in ("num_samples", "rates") if cfg[key] is not None}
    if run.callbacks.get("mc_dropout"):  # empty: callbacks/mc_dropout=none
        passes["return_uncertainty"] = cfg.stage == "predict"
        changes["callbacks"] = {"mc_dropout": passes}
    elif passes or cfg.stage == "predict":
        raise ConfigError(
            "Expected a run with Monte-Carlo dropout, but its config has no callbacks.mc_dropout; train with "
            "callbacks/mc_dropout=multiclass.",
            "ckpt_path",
            cfg.ckpt_path,
        )
    return OmegaConf.merge(run, changes, cfg.run)


@hydra.main(version_base="1.3", config_path="../conf", config_name="evaluate")
def main(cfg: DictConfig) -> None:
    """Run one evaluation."""
    if cfg.stage not in ("test", "predict"):
        raise ConfigError("Expected test or predict.", "stage", cfg.stage)
    run = config_of_run(cfg)
    check_run(run)
    folder = check_output_dir(cfg.output_dir)

    from lightning.pytorch import seed_everything  # only now: wrong words answer at once

    from lightning_dropout.callbacks import gather_predictions
    from lightning_dropout.reports.predictions import check_format, prediction_table, write_table

    check_format(check_name(cfg.output, "output"))
    quiet_lightning()
    seed_everything(check_seed(run.seed), workers=True, verbose=False)
    data = build(run, "data")
    fill_from_data(run, data)
    module = build(run, "module", net=build(run, "model"))
    trainer = build(run, "trainer", callbacks=build_each(run, "callbacks"), logger=False)
    if cfg.stage == "test":
        metrics = {
            key: value
            for loader in trainer.test(module, data, ckpt_path=cfg.ckpt_path)
            for key, value in loader.items()
        }
        if trainer.is_global_zero:
            (folder / "evaluation.json").write_text(json.dumps(metrics, indent=2, sort_keys=True) + "\n")
            print(f"Metrics: {folder / 'evaluation.json'}")
    else:
        batches = trainer.predict(module, data, ckpt_path=cfg.ckpt_path)
        samples = gather_predictions(trainer, batches)
        if trainer.is_global_zero:
            print(f"Predictions: {write_table(prediction_table([samples]), folder / cfg.output)}")


if __name__ == "__main__":
    run_main(main)
