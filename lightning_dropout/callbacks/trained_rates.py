"""The rates that a run has trained with: into a checkpoint as plain values, and back into a model.

Rates are no part of a ``state_dict``, so a model that is loaded without its scheduler has those that it was built with.
"""

from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lightning_dropout.probability import check_probability
from lightning_dropout.sites import Site, fill_paths, sites_of

__all__ = ["check_rates", "rates_of", "restore_rates", "trained_sites"]

_METADATA = "meta.pt"  # beside the shards of a checkpoint that Lightning writes as a folder


def rates_of(sites: Iterable[Site]) -> dict[str, float]:
    """Return the rates as a checkpoint keeps them, by place."""
    return {_place(site): site.rate for site in sites}


def check_rates(rates: Mapping[Any, Any]) -> dict[str, float]:
    """Return what a checkpoint has kept, or raise if a value is no probability."""
    return {str(place): check_probability(rate, str(place)) for place, rate in rates.items()}


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
        ValueError: If the checkpoint holds no rates, or sites that the model lacks. No rate is changed then.

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
    checkpoint = torch.load(path / _METADATA if path.is_dir() else path, map_location="cpu", weights_only=True)
    states = checkpoint.get("callbacks", {}).items()
    kept = {
        key: state["rates"] for key, state in states if isinstance(state, dict) and {"version", "rates"} <= {*state}
    }
    rates = check_rates({place: rate for each in kept.values() for place, rate in each.items()})
    if not rates:
        raise ValueError(
            f"Expected a checkpoint with the state of a rate scheduler, but got {str(path)!r} with "
            f"{', '.join(map(str, states)) or 'no callbacks'}; it was written without one, so "
            "the model's own rates are those that it was trained with."
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
