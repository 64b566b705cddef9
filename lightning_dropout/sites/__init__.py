"""Where a model drops, whoever wrote it: finding sites and teaching the package new layers."""

from lightning_dropout.sites.adapters import register_adapter
from lightning_dropout.sites.site import Kind, Site, find_sites, matches, sites_of

__all__ = ["Kind", "Site", "find_sites", "matches", "register_adapter", "sites_of"]
