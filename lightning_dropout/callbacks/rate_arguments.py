"""What users may write under ``rate=`` and ``scale=``, and what it means: which patterns follow which schedule.

Reads arguments, knows no model: everything that is wrong by itself is refused when a scheduler is built.
"""

import numbers
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Union

from lightning_dropout.probability import check_probability
from lightning_dropout.schedules import Constant, Schedule
from lightning_dropout.sites import check_patterns

__all__ = ["Assignment", "Rates", "read_rates"]

Rates = Union[float, Schedule, Mapping[str, Union[float, Schedule]], None]  # noqa: UP007  (jsonargparse reads it)
_FACTORS = "a factor or a schedule of factors"
_OVERALL = ("mean", "min", "max")  # logged over all sites, so no group may be called so


@dataclass(frozen=True)
class Assignment:
    """The sites of some patterns, and the schedule that they follow.

    Args:
        name: What the logs call them; ``None`` has no line of its own.
        pattern: One glob pattern or several.
        schedule: Of probabilities or of factors.
    """

    name: str | None
    pattern: str | Sequence[str]
    schedule: Schedule


def read_rates(
    rate: Rates, scale: Rates, sites: str | Sequence[str], name: str | None, prefix: str
) -> tuple[Literal["rate", "scale"], list[Assignment]]:
    """Return which of the two was given, and what it assigns.

    Args:
        rate: Probabilities, or ``None``.
        scale: Factors, or ``None``.
        sites: The patterns of a single schedule.
        name: The group of a single schedule.
        prefix: Under which all of it is logged.

    Raises:
        ValueError: If not exactly one was given, if a schedule leaves its range, or if two groups would share a key.

    Example:
        >>> read_rates(0.1, None, "*", None, "dropout")
        ('rate', [Assignment(name=None, pattern='*', schedule=Constant(value=0.1))])
    """
    if (rate is None) == (scale is None):
        both = "neither" if rate is None else "both"
        raise ValueError(
            f"Expected exactly one of `rate` (probabilities) and `scale` (factors of the model's own rates), "
            f"but got {both}; e.g. `rate=0.1` or `scale=Linear(0.0, 1.0)`."
        )
    check_patterns(sites, "sites")
    if name is not None and not re.fullmatch(r"[A-Za-z0-9_]+", name):
        raise ValueError(f"Expected `name` to consist of letters, digits and underscores, but got {name!r}.")
    argument: Literal["rate", "scale"] = "scale" if rate is None else "rate"
    given = scale if rate is None else rate
    if not isinstance(given, Mapping):
        assignments = [Assignment(name, sites, _schedule(given, argument))]
    elif sites != "*":
        raise ValueError(
            f"Expected `sites` to be left out where `{argument}` maps patterns to schedules, but got {sites!r}; "
            "write it into the keys."
        )
    elif not given:
        raise ValueError(f"Expected `{argument}` to map at least one pattern, but got an empty mapping.")
    else:
        assignments = [
            Assignment(_group_name(str(key)), str(key), _schedule(value, argument)) for key, value in given.items()
        ]
    groups = [assignment.name for assignment in assignments]
    taken = [group for group in groups if group in _OVERALL or (group and groups.count(group) > 1)]
    if taken:
        raise ValueError(
            f"Expected a log key of its own for each group, but `{prefix}/{taken[0]}` would be taken twice; "
            "choose another `name` or pattern."
        )
    return argument, assignments


def _schedule(value: object, argument: Literal["rate", "scale"]) -> Schedule:
    if not isinstance(value, Schedule):
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            meant = "a probability of dropping or a schedule of them" if argument == "rate" else _FACTORS
            raise ValueError(
                f"Expected `{argument}` to be {meant}, alone or by patterns of names, but got {value!r}; "
                f"e.g. `{argument}=Linear(0.0, {'0.1' if argument == 'rate' else '1.0'})`, or a `Schedule` of your own."
            )
        return Constant(check_probability(value, "rate") if argument == "rate" else float(value))
    if argument == "rate":
        for progress, sample in value.samples():
            if sample > 1.0:
                raise ValueError(
                    f"Expected `rate` to give probabilities in [0, 1], but got {sample} from {value!r} at "
                    f"progress {progress:g}; use `scale` for factors."
                )
    return value


def _group_name(pattern: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "_", pattern).strip("_") or "all"
