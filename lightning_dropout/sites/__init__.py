"""Where a model drops, whoever wrote it: finding sites, teaching the package new layers, checking the result."""

from lightning_dropout.sites.adapters import register_adapter
from lightning_dropout.sites.audit import Audit, audit, compare
from lightning_dropout.sites.find import empty_slots, find_sites, matches, selected, sites_of
from lightning_dropout.sites.observation import Observer
from lightning_dropout.sites.site import Kind, Site, User

__all__ = [
    "Audit",
    "Kind",
    "Observer",
    "Site",
    "User",
    "audit",
    "compare",
    "empty_slots",
    "find_sites",
    "matches",
    "register_adapter",
    "selected",
    "sites_of",
]
