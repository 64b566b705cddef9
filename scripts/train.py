"""Train, test the best checkpoint with Monte-Carlo dropout, log: ``python scripts/train.py model=vit``.

Every word of the command line is a group or a key of ``conf/``. The run folder gets checkpoints, metrics.json, a CSV of
all metrics and the W&B run. A run that was stopped goes on with the words that it was started with and
``hydra.run.dir=<its folder> resume=auto``. To build classes of your own project, copy this file and call
``lightning_dropout.configuration.allow_targets("my_project.")`` before ``run_main``.
"""

import json
import os
import time
from contextlib import nullcontext
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from lightning_dropout.configuration import (
    build,
    build_each,
    check_output_dir,
    check_run,
    check_seed,
    checkpoint_to_resume,
    command_to_resume,
    exclusive_folder,
    fill_from_data,
    quiet_lightning,
    redact,
    run_main,
    say_idle_gpus,
)

# Set before Hydra or a launcher starts anything: all ranks and all jobs of a sweep write into one folder.
os.environ.setdefault("LIGHTNING_DROPOUT_STAMP", time.strftime("%Y-%m-%d_%H-%M-%S"))


@hydra.main(version_base="1.3", config_path="../conf", config_name="train")
def main(cfg: DictConfig) -> None:
    """Run one job."""
    check_run(cfg)
    folder = check_output_dir(cfg.output_dir)
    hydra_cfg = HydraConfig.get()
    if cfg.run_group is None and hydra_cfg.mode is RunMode.MULTIRUN:
        cfg.run_group = Path(hydra_cfg.sweep.dir).name

    from lightning.pytorch.utilities import rank_zero_only  # only now: --help and wrong words answer at once

    quiet_lightning()
    with exclusive_folder(folder) if rank_zero_only.rank == 0 else nullcontext():
        run(cfg, folder)


def run(cfg: DictConfig, folder: Path) -> None:
    """Train and test, in a folder of its own."""
    import torch
    from lightning.pytorch import seed_everything
    from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

    from lightning_dropout.callbacks import GracefulStop
    from lightning_dropout.loggers import finish_wandb

    ckpt_path = checkpoint_to_resume(cfg, folder)
    seed_everything(check_seed(cfg.seed), workers=True, verbose=False)
    data = build(cfg, "data")
    if rank_zero_only.rank == 0:  # first: missing or corrupt data end the run before a model is built
        data.prepare_data()
        data.setup("fit")
    fill_from_data(cfg, data)
    module = build(cfg, "module", net=build(cfg, "model"))
    callbacks = build_each(cfg, "callbacks")
    for callback in callbacks:
        if isinstance(callback, GracefulStop) and callback.resume_command is None:
            callback.resume_command = command_to_resume(folder)
    trainer = build(cfg, "trainer", callbacks=callbacks, logger=build_each(cfg, "logger"))
    say_idle_gpus(torch.cuda.device_count(), trainer.num_devices)
    started = time.perf_counter()
    metrics: dict[str, object] = {}
    try:
        for logger in trainer.loggers:
            logger.log_hyperparams(redact(cfg))
        trainer.fit(module, data, ckpt_path=ckpt_path)
        best = Path(getattr(trainer.checkpoint_callback, "best_model_path", ""))
        if (moved := folder / "checkpoints" / best.name).is_file():  # with its folder, since it was saved
            best = moved
        last_epoch = {name: value.item() for name, value in trainer.callback_metrics.items()}
        metrics = {"epochs": trainer.current_epoch, "steps": trainer.global_step, "last_epoch": last_epoch}
        if not best.is_file():
            best = None
            rank_zero_info("No validation has chosen a best checkpoint: the last weights are tested.")
        for loader in trainer.test(module, data, ckpt_path=best):
            metrics |= loader
        metrics["checkpoint"] = best and os.path.relpath(best, folder)
    finally:
        finish_wandb()
        if rank_zero_only.rank == 0 and metrics:  # also of a test that failed: the training is done
            metrics["seconds"] = round(time.perf_counter() - started, 1)
            (folder / "metrics.json").write_text(json.dumps(metrics, indent=2, sort_keys=True) + "\n")
            rank_zero_info(f"Run folder: {folder}")


if __name__ == "__main__":
    run_main(main)
