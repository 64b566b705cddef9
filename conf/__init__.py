"""The Hydra groups, shipped in the wheel as ``lightning_dropout.conf`` (search path ``pkg://lightning_dropout.conf``)."""
