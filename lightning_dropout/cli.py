"""The installed command: ``lightning-dropout audit timm/resnet18``, ``... plot model=vit``, ``... dashboard ...``.

For people who never clone the repository. Arguments are read before anything is imported, so that ``--help`` answers at
once; what a subcommand does lies in the rooms above.
"""

import argparse
import contextlib
import functools
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from lightning_dropout.clock import RunLength
    from lightning_dropout.reports import RateCurve

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
_PLOT = """\
Draw the rate of every group of sites over a run before it starts: what scripts/train.py would do with these words.
Nothing is trained or logged, no weights are fetched, and the figure is all that is written.

  lightning-dropout plot model=vit data=digits callbacks/dropout=late
  lightning-dropout plot experiment=vit_digits callbacks/stochastic_depth=linear --output vit.pdf
"""
_DASHBOARD = """\
Make a W&B dashboard of what the callbacks log: rates, fit, calibration, uncertainty, selective prediction, OOD data,
samples. It is saved as a new view of the project, and its address is printed. Without an API key, with
WANDB_MODE=offline or with output=FILE it is written as JSON instead.

  lightning-dropout dashboard entity=me project=digits
  lightning-dropout dashboard entity=me project=digits val/loss=valid_loss val/accuracy=valid_acc
                                                         a project whose metrics have other names: ours=theirs

words:
  entity=NAME, project=NAME     as in the address that a run prints: .../<entity>/<project>/runs/<id>
  task=classification           or regression: whose metrics are shown
  datasets=svhn,cifar100        the out-of-distribution data sets, where there are several
  output=FILE                   write JSON there and send nothing
"""
_DASHBOARD_WORDS = ("entity", "project", "task", "datasets", "output")
_DASHBOARD_FILE = "dashboard.json"
# One process on the CPU that prints nothing and writes nothing, whatever the config says.
_TO_PLAN = {
    "accelerator": "cpu",
    "devices": 1,
    "num_nodes": 1,
    "strategy": "auto",
    "precision": "32-true",
    "plugins": None,
    "sync_batchnorm": False,
    "profiler": None,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "logger": False,
}


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
    parser = _Parser(
        prog="lightning-dropout",
        description="Find every place where a model drops something; see its rates in advance, and what they did.",
    )
    commands = parser.add_subparsers(title="commands")
    _add_audit(commands)
    _add_plot(commands)
    _add_dashboard(commands)

    arguments, rest = parser.parse_known_args(argv)
    if "run" not in arguments:
        parser.print_help()
        return
    if any(word.startswith("-") for word in rest):
        arguments.parser.error(f"unrecognized arguments: {' '.join(rest)}")
    arguments.what += rest  # words after an option, which argparse sets aside

    from lightning_dropout.configuration import run_main

    run_main(functools.partial(arguments.run, arguments))


def _add_audit(commands: Any) -> None:
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
    audit.set_defaults(run=_audit, parser=audit)


def _add_plot(commands: Any) -> None:
    plot = commands.add_parser(
        "plot",
        help="draw the rates of a run before it starts",
        description=_PLOT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    plot.add_argument("what", nargs="+", help="words of scripts/train.py (key=value)")
    plot.add_argument(
        "--output",
        type=_figure_path,
        default="rates.png",
        metavar="PATH",
        help="the file to write; its ending says how: png, pdf, svg, ... (default: %(default)s)",
    )
    plot.set_defaults(run=_plot, parser=plot)


def _add_dashboard(commands: Any) -> None:
    dashboard = commands.add_parser(
        "dashboard",
        help="make a W&B dashboard of what the callbacks log",
        description=_DASHBOARD,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    dashboard.add_argument("what", nargs="+", metavar="key=value", help="see above")
    dashboard.set_defaults(run=_dashboard, parser=dashboard)


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


def _figure_path(text: str) -> Path:
    from matplotlib.backend_bases import FigureCanvasBase

    path = Path(text)
    if path.suffix[1:].lower() not in (formats := FigureCanvasBase.get_supported_filetypes()):
        raise argparse.ArgumentTypeError(f"expected an ending such as .png ({', '.join(formats)}), but got {text!r}")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"expected a file in a folder that exists, but got {text!r}")
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"expected a file, but got the folder {text!r}")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"expected a file that may be written, but got {text!r}")
    return path


def _audit(arguments: argparse.Namespace) -> None:
    from lightning_dropout.sites.audit import audit

    is_config = any(_is_of_config(word) for word in arguments.what)
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


def _is_of_config(word: str) -> bool:
    return "=" in word or word.startswith("~")


def _of_config(arguments: argparse.Namespace) -> tuple[str, Any, Any]:
    from lightning_dropout.configuration import ConfigError, build

    if arguments.rate is not None:
        raise ConfigError("Expected no --rate, since a config has rates of its own; pass model.p=... instead.")
    cfg = _composed(arguments.what)
    data = _filled(cfg)
    model = build(cfg, "model")
    inputs, _ = next(iter(data.train_dataloader()))
    return (
        f"{' '.join(arguments.what)}: rates as the model is built, a training batch {tuple(inputs.shape)}",
        model,
        inputs,
    )


def _composed(words: list[str]) -> "DictConfig":
    from hydra import compose, initialize_config_module

    from lightning_dropout.configuration import check_run

    with initialize_config_module("lightning_dropout.conf", version_base="1.3"):
        cfg = compose("train", words)
    check_run(cfg)
    return cfg


def _filled(cfg: "DictConfig") -> Any:
    """Return the data of a config, and write what they know into it."""
    from lightning_dropout.configuration import build, fill_from_data

    data = build(cfg, "data")
    data.prepare_data()
    data.setup("fit")
    fill_from_data(cfg, data)
    return data


def _plot(arguments: argparse.Namespace) -> None:
    from omegaconf import OmegaConf

    from lightning_dropout.configuration import ConfigError, quiet_lightning, quiet_trainer
    from lightning_dropout.reports import draw_rates, rate_table

    if no_words := [word for word in arguments.what if not _is_of_config(word)]:
        raise ConfigError(f"Expected words of scripts/train.py such as model=vit, but got {no_words[0]!r}.")
    cfg = _composed(arguments.what)
    quiet_lightning()
    with contextlib.redirect_stdout(sys.stderr), tempfile.TemporaryDirectory() as folder, quiet_trainer():
        cfg.output_dir = folder  # where a run writes; this one leaves before it does
        if OmegaConf.select(cfg, "model.pretrained"):
            cfg.model.pretrained = False  # no rate is among the weights
        curves, length = _planned(cfg)
    words = " ".join(arguments.what)
    draw_rates(curves, steps=length.steps, epochs=length.epochs, title=words).savefig(arguments.output)
    print(f"{words}: {_lengths(cfg, length)}")
    print(rate_table(curves))
    print(arguments.output)


def _planned(cfg: "DictConfig") -> "tuple[list[RateCurve], RunLength]":
    from lightning_dropout.callbacks.rate_plan import plan
    from lightning_dropout.configuration import build, build_each

    data = _filled(cfg)
    module = build(cfg, "module", net=build(cfg, "model"))
    return plan(build(cfg, "trainer", callbacks=build_each(cfg, "callbacks"), **_TO_PLAN), module, data)


def _lengths(cfg: "DictConfig", length: "RunLength") -> str:
    counts = {"epochs": length.epochs, "optimizer steps": length.steps}
    known = [f"{round(float(count), 3):,.12g} {unit}" for unit, count in counts.items() if count is not None]
    asked = {key: cfg.trainer.get(key, 1) for key in ("devices", "num_nodes")}
    several = " ".join(f"trainer.{key}={count}" for key, count in asked.items() if count not in (1, "1"))
    return ", ".join([*known, *([f"counted for one process instead of {several}"] if several else [])])


def _dashboard(arguments: argparse.Namespace) -> None:
    from lightning_dropout.reports import dashboard_json, dashboard_panels, dashboard_workspace

    words = _dashboard_words(arguments.what)
    choices = {word: words.pop(word) for word in _DASHBOARD_WORDS if word in words}
    panels: dict[str, Any] = {"names": words}
    if "task" in choices:
        panels["task"] = choices["task"]
    if "datasets" in choices:
        panels["datasets"] = choices["datasets"].split(",")
    workspace = dashboard_workspace(
        dashboard_panels(**panels), entity=choices.get("entity", ""), project=choices.get("project", "")
    )
    path = Path(choices.get("output", _DASHBOARD_FILE))
    if reason := f"output={path}" if "output" in choices else _why_offline():
        _write(path, dashboard_json(workspace))
        print(f"W&B: nothing sent ({reason}); the dashboard is in {path}")
        return

    from lightning_dropout.loggers import save_workspace

    try:
        print(f"W&B: {save_workspace(workspace)}")
    except RuntimeError as error:
        _write(path, dashboard_json(workspace))
        raise RuntimeError(f"{error} Its JSON is in {path}.") from error


def _write(path: Path, text: str) -> None:
    from lightning_dropout.configuration import ConfigError

    try:
        path.write_text(text + "\n")
    except OSError as error:
        raise ConfigError(
            f"Expected a file that can be written, but got {error.strerror}; choose another with output=FILE.",
            "output",
            path,
        ) from error


def _dashboard_words(words: Sequence[str]) -> dict[str, str]:
    """Return the words as a dictionary; those with a slash or a star are keys of the dashboard."""
    from lightning_dropout.configuration import ConfigError

    pairs = {}
    for word in words:
        key, is_pair, value = word.partition("=")
        if not is_pair or (key not in _DASHBOARD_WORDS and not {"/", "*"} & {*key}):
            raise ConfigError(
                f"Expected {', '.join(f'{known}=...' for known in _DASHBOARD_WORDS)} or a key of the dashboard such as "
                f"val/loss=..., but got {word!r}."
            )
        pairs[key] = value
    return pairs


def _why_offline() -> str:
    """Return why nothing may or can be sent to W&B, "" if something can."""
    from lightning_dropout.loggers.wandb_process import login_problem, mode_of_environment

    mode = mode_of_environment()
    return f"WANDB_MODE={mode}" if mode in ("offline", "disabled") else login_problem()
