"""What stands between YAML and objects: checks, allowlist, readable errors, redaction.

Imports neither torch nor Lightning, so that ``--help`` is quick; targets are imported when they are checked.
"""

from lightning_dropout.configuration.allowlist import ALLOWED_TARGETS, allow_targets
from lightning_dropout.configuration.build import build, build_each
from lightning_dropout.configuration.console import quiet_lightning, quiet_trainer, say_idle_gpus
from lightning_dropout.configuration.entry import run_main
from lightning_dropout.configuration.errors import ConfigError
from lightning_dropout.configuration.explain import explain
from lightning_dropout.configuration.fill import fill_missing
from lightning_dropout.configuration.paths import check_name, check_output_dir
from lightning_dropout.configuration.redaction import redact, refuse_secrets
from lightning_dropout.configuration.run import check_run, fill_from_data
from lightning_dropout.configuration.run_folder import checkpoint_to_resume, command_to_resume, exclusive_folder
from lightning_dropout.configuration.seed import check_seed
from lightning_dropout.configuration.stored import config_of_checkpoint
from lightning_dropout.configuration.targets import check_targets

__all__ = [
    "ALLOWED_TARGETS",
    "ConfigError",
    "allow_targets",
    "build",
    "build_each",
    "check_name",
    "check_output_dir",
    "check_run",
    "check_seed",
    "check_targets",
    "checkpoint_to_resume",
    "command_to_resume",
    "config_of_checkpoint",
    "exclusive_folder",
    "explain",
    "fill_from_data",
    "fill_missing",
    "quiet_lightning",
    "quiet_trainer",
    "redact",
    "refuse_secrets",
    "run_main",
    "say_idle_gpus",
]
