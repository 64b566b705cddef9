"""The rates that a run has trained with: into a checkpoint as plain values, and back into a model.

Rates are no part of a ``state_dict``, so a model that is loaded without its scheduler has those that it was built with.
"""

import re
from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lightning_dropout.probability import check_probability
from lightning_dropout.sites import Site, fill_paths, sites_of

__all__ = ["rates_in", "rates_of", "restore_rates", "state_of", "trained_sites"]

_VERSION = 1
_LONGEST_WORDS = 200  # characters of another library's message that are repeated
_METADATA = "meta.pt"  # beside the shards of a checkpoint that Lightning writes as a folder


def rates_of(sites: Iterable[Site]) -> dict[str, float]:
    """Return the rates as a checkpoint keeps them, by place."""
    return {_place(site): site.rate for site in sites}


def state_of(rates: Mapping[str, float]) -> dict[str, Any]:
    """Return the state of a scheduler, as a checkpoint keeps it."""
    return {"version": _VERSION, "rates": dict(rates)}


def rates_in(state: Mapping[str, Any]) -> dict[str, float]:
    """Return the rates of a state.

    Raises:
        ValueError: If a later release wrote it, or if a rate is no probability.
    """
    if state["version"] > _VERSION:
        raise ValueError(
            f"Expected a state of version {_VERSION} at most, but got {state['version']}; "
            "upgrade lightning-dropout to the version that wrote the checkpoint."
        )
    return {str(place): check_probability(rate, str(place)) for place, rate in state["rates"].items()}


def trained_sites(model: nn.Module, rates: Mapping[str, float], whose: str) -> list[tuple[Site, float]]:
    """Return the sites of ``model`` that were trained, each with its rate.

    Raises:
        ValueError: If the model lacks one of them.
    """
    sites = {_place(site): site for site in sites_of(model, strict=False)}
    missing = sorted(set(rates) - set(sites))
    if missing:
        raise ValueError(
            f"Expected the sites that {whose} has trained, but got a model without {', '.join(missing[:5])}; "
            "use the model that the checkpoint belongs to (built as it was, with `fill_identity` if it was trained so)."
        )
    return [(sites[place], rate) for place, rate in rates.items()]


def restore_rates(model: nn.Module, ckpt_path: str | PathLike[str], *, fill_identity: bool = False) -> dict[str, float]:
    """Set the rates of ``model`` to those that the schedulers of a checkpoint had trained with when it was written.

    For a model that is used outside a trainer, such as for Monte-Carlo dropout: ``load_from_checkpoint`` brings the
    weights back, not the rates. Training: a new fit starts from these rates as if the model were built with them.
    Evaluation: they are what sampling drops with.

    Args:
        model: The LightningModule, or the part of it that holds all the sites.
        ckpt_path: What Lightning wrote: a file, or the folder of a sharded checkpoint. Read with ``weights_only=True``.
        fill_identity: Whether the schedulers ran with ``fill_identity=True``; puts the layers there for good.

    Returns:
        The rates by place, as they were set.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no checkpoint that holds plain values only, or holds no rates, or sites that the model
            lacks. No rate is changed then.

    Example:
        >>> import tempfile
        >>> model = nn.Sequential(nn.Dropout(0.5))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     state = {"version": 1, "rates": {"0:p": 0.25}}
        ...     torch.save({"callbacks": {"DropoutScheduler": state}}, f"{folder}/last.ckpt")
        ...     restore_rates(model, f"{folder}/last.ckpt")
        {'0:p': 0.25}
        >>> model
        Sequential(
          (0): Dropout(p=0.25, inplace=False)
        )
    """
    path = Path(ckpt_path)
    states = _load(path / _METADATA if path.is_dir() else path).get("callbacks", {})
    kept = {
        key: rates_in(state)
        for key, state in states.items()
        if isinstance(state, dict) and {"version", "rates"} <= {*state}
    }
    rates = {place: rate for each in kept.values() for place, rate in each.items()}
    if not rates:
        names = ", ".join(str(key).partition("{")[0] for key in states) or "no callbacks"
        raise ValueError(
            f"Expected a checkpoint with the rates of a scheduler, but got {str(path)!r} with {names}, which has none: "
            "it was written without a scheduler, or before the first batch; the model's own rates are then those that "
            "it was trained with."
        )
    slots = fill_paths(model) if fill_identity else []
    try:
        found = trained_sites(model, _as_named_in(model, rates), " and ".join(kept))
    except ValueError:
        for slot in slots:
            slot.give_back()
        raise
    for site, rate in found:
        site.rate = rate
    return rates_of(site for site, _ in found)


def _load(path: Path) -> dict[str, Any]:
    cure = "pass a file that Lightning wrote, or the folder of a sharded checkpoint"
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:_LONGEST_WORDS]}"
        if "Weights only load failed" in str(error):
            # The text of torch would have the user run what is in the file.
            found = re.search(r"GLOBAL (\S+)", str(error))
            reason = f"objects that are no plain values{f' ({found[1]})' if found else ''}, such as hyper-parameters"
            cure = "if you trust them, call this inside `torch.serialization.safe_globals([...])` with their classes"
        raise ValueError(
            f"Expected `ckpt_path` to be a checkpoint, but got {str(path)!r}: {reason}; {cure}."
        ) from error
    if not isinstance(checkpoint, dict):
        raise ValueError(
            f"Expected `ckpt_path` to be a checkpoint, but got {str(path)!r}: a {type(checkpoint).__name__}; {cure}."
        )
    return checkpoint


def _as_named_in(model: nn.Module, rates: Mapping[str, float]) -> Mapping[str, float]:
    """Return the rates by the names that they have in ``model``, a part of the module that was trained."""
    places = {_place(site) for site in sites_of(model, strict=False)}
    shorter = dict(rates)
    while shorter and not set(shorter) <= places:
        heads = {place.partition(":")[0].partition(".")[0] for place in shorter}
        if len(heads) > 1 or any("." not in place.partition(":")[0] for place in shorter):
            return rates
        shorter = {place.partition(".")[2]: rate for place, rate in shorter.items()}
    return shorter


def _place(site: Site) -> str:
    return f"{site.name}:{site.attribute}"
