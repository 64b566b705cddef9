"""Where a model drops, whoever wrote it: finding sites, teaching the package new layers, checking the result."""

from lightning_dropout.sites.adapters import register_adapter
from lightning_dropout.sites.audit import Audit, audit, compare
from lightning_dropout.sites.compilation import (
    TensorRates,
    allow_graphs,
    compiled_roots,
    draws_on_host,
    has_tensor_form,
)
from lightning_dropout.sites.find import find_sites, selected, sites_of
from lightning_dropout.sites.names import check_patterns, matches
from lightning_dropout.sites.observation import Observer
from lightning_dropout.sites.site import Kind, Site, User
from lightning_dropout.sites.slots import Slot, empty_slots, fill_paths, path_slots

__all__ = [
    "Audit",
    "Kind",
    "Observer",
    "Site",
    "Slot",
    "TensorRates",
    "User",
    "allow_graphs",
    "audit",
    "check_patterns",
    "compare",
    "compiled_roots",
    "draws_on_host",
    "empty_slots",
    "fill_paths",
    "find_sites",
    "has_tensor_form",
    "matches",
    "path_slots",
    "register_adapter",
    "selected",
    "sites_of",
]
