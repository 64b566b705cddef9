"""The installed command: ``lightning-dropout audit timm/vit_tiny_patch16_224``, or ``audit model=vit data=digits``.

For people who never clone the repository. Arguments are read before anything is imported, so that ``--help`` answers at
once; what a subcommand does lies in the rooms above.
"""

import argparse
import contextlib
import functools
import json
import sys
from collections.abc import Sequence
from typing import Any, Literal, NoReturn

__all__ = ["main"]

_RATE = 0.1  # of timm/, tv/, hf/: most constructors' own rates are 0, with which every site is silent
_STATES = ("silent", "unregistered", "unknown")
_CHECK_FAILED = 1
_AUDIT = """\
Run one forward pass in train mode, and show what drops in it, what could and does not, and what no adapter knows.

  lightning-dropout audit timm/vit_tiny_patch16_224      a model of timm, torchvision (tv/resnet18) or
                                                         transformers (hf/bert), with random weights
  lightning-dropout audit model=vit data=digits          what scripts/train.py would train with these words,
                                                         on its first training batch
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command.

    Args:
        argv: The arguments; None takes those of the process.

    Raises:
        SystemExit: With 1 if ``--check`` finds something, with 2 and one line on stderr if an argument is wrong.

    Example:
        >>> main(["audit", "model=net", "data=digits", "--json"])  # doctest: +ELLIPSIS
        {
          ...
    """
    parser = _Parser(prog="lightning-dropout", description="Find every place where a model drops something.")
    commands = parser.add_subparsers(title="commands")
    audit = commands.add_parser(
        "audit",
        help="show what drops in one forward pass of a model",
        description=_AUDIT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    audit.add_argument("what", nargs="+", help="library/name of a model, or words of scripts/train.py (key=value)")
    audit.add_argument(
        "--rate",
        type=_rate,
        help=f"of library/name: a number in [0, 1] for every rate that the constructor takes (default: {_RATE}), or "
        "own for the library's own rates",
    )
    audit.add_argument("--json", action="store_true", help="print JSON instead of a table")
    audit.add_argument("--check", action="store_true", help="exit with 1 unless every place is found and firing")
    audit.add_argument(
        "--allow", action="append", default=[], choices=_STATES, help="a state that --check passes over, such as silent"
    )
    audit.set_defaults(run=_audit)

    arguments, rest = parser.parse_known_args(argv)
    if "run" not in arguments:
        parser.print_help()
        return
    if any(word.startswith("-") for word in rest):
        audit.error(f"unrecognized arguments: {' '.join(rest)}")
    arguments.what += rest  # words after an option, which argparse sets aside

    from lightning_dropout.configuration import run_main

    run_main(functools.partial(arguments.run, arguments))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Say it in one line, as the scripts do."""
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")


def _rate(text: str) -> float | Literal["own"]:
    from lightning_dropout.probability import check_probability

    try:
        return "own" if text == "own" else check_probability(float(text), "rate")
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected a number in [0, 1] or own, but got {text!r}") from error


def _audit(arguments: argparse.Namespace) -> None:
    from lightning_dropout.sites.audit import audit

    is_config = any("=" in word or word.startswith("~") for word in arguments.what)
    with contextlib.redirect_stdout(sys.stderr):  # what libraries and data print is no part of the answer
        title, model, inputs = (_of_config if is_config else _of_library)(arguments)
        result = audit(model, **inputs) if isinstance(inputs, dict) else audit(model, inputs)
    if arguments.json:
        print(json.dumps(result.to_dict(), indent=2))
    else:
        print(title)
        result.show()
    if arguments.check or arguments.allow:
        try:
            result.check(arguments.allow)
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(_CHECK_FAILED)


def _of_library(arguments: argparse.Namespace) -> tuple[str, Any, Any]:
    from lightning_dropout import zoo
    from lightning_dropout.configuration import ConfigError

    name, *more = arguments.what
    if more:
        raise ConfigError(f"Expected one model, or words such as model=vit, but got {' '.join(arguments.what)}.")
    if arguments.rate == "own":
        rate, rates = None, "the library's own rates"
    else:
        rate = _RATE if arguments.rate is None else arguments.rate
        rates = f"rate {rate:g} wherever the constructor takes one (--rate)"
    return f"{name}: random weights, {rates}", *zoo.build(name, rate)


def _of_config(arguments: argparse.Namespace) -> tuple[str, Any, Any]:
    from hydra import compose, initialize_config_module

    from lightning_dropout.configuration import ConfigError, build, check_run, fill_from_data

    if arguments.rate is not None:
        raise ConfigError("Expected no --rate, since a config has rates of its own; pass model.p=... instead.")
    with initialize_config_module("lightning_dropout.conf", version_base="1.3"):
        cfg = compose("train", arguments.what)
    check_run(cfg)
    data = build(cfg, "data")
    data.prepare_data()
    data.setup("fit")
    fill_from_data(cfg, data)
    model = build(cfg, "model")
    inputs, _ = next(iter(data.train_dataloader()))
    return (
        f"{' '.join(arguments.what)}: rates as the model is built, a training batch {tuple(inputs.shape)}",
        model,
        inputs,
    )
