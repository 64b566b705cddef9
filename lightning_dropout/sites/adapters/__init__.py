"""Adapters: how each known layer class drops, one file per library.

An adapter names a class, the attribute that holds its rate and the modules whose ``training`` flags turn the drop on.
Adapters of optional libraries are keyed by the class's dotted name, so that nothing is imported that the user did not.
"""

from lightning_dropout.sites.adapters.registry import Adapter, adapters_of, register_adapter

__all__ = ["Adapter", "adapters_of", "register_adapter"]
