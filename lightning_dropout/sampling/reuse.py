"""Prefix reuse: what runs before the first random draw of a pass is the same in every pass, so it runs once.

The first pass of a batch is watched until its first draw. What its modules and functions have returned by then is given
out again in the later passes, in the same order, while the code between them runs as always. Nothing here knows what
an output means. Where a replay cannot be shown to equal a pass that runs in full, the pass runs in full.
"""

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.module import (
    _global_forward_hooks,
    _global_forward_pre_hooks,
)
from torch.utils._pytree import tree_flatten

from lightning_dropout.randomness import OwnGenerator
from lightning_dropout.sampling.record import PLAIN, DivergedError, Knowledge, Record
from lightning_dropout.sampling.witness import same_values
from lightning_dropout.sites import Site

__all__ = ["PrefixReuse", "Reuse", "communicates", "obstacle_of"]

# Layers that draw inside one call, though they have children or several functions in them.
_DRAWING_LAYERS = (nn.MultiheadAttention, nn.RNNBase)
_MAX_SIGNATURES = 64  # of one model: more means that its control flow never repeats
_MAX_WATCHED = 3  # passes of one batch: to see that something drew unseen, to find where, and to stop there
_DISTRIBUTED = ("torch.nn.parallel.distributed", "torch.distributed.")  # modules whose forward talks to other ranks


@dataclass(frozen=True)
class Reuse:
    """What prefix reuse has saved in one prediction.

    Args:
        share: Part of a full pass's time that was spent before its first random draw, in [0, 1].
        passes: How many passes were spared that part.
        seconds: Time that they would have spent there.
        note: Why passes ran in full; empty if nothing stood in the way.
    """

    share: float = 0.0
    passes: int = 0
    seconds: float = 0.0
    note: str = ""


# By the model, and there by the layers that draw.
_KNOWLEDGE: "weakref.WeakKeyDictionary[nn.Module, dict[frozenset[int], Knowledge]]" = weakref.WeakKeyDictionary()


def obstacle_of(model: nn.Module, compiled: bool) -> str:
    """Return why the passes of ``model``, of which something is ``compiled``, must run in full, or nothing."""
    if compiled:
        return "compiled code cannot be watched"
    if any(isinstance(part, nn.DataParallel) for part in model.modules()):
        return "DataParallel runs the model on several threads"
    if communicates(model):
        return "the ranks of a distributed model must run the same passes"
    return ""


def communicates(model: nn.Module) -> bool:
    """Tell whether a forward of ``model`` waits for other ranks, so that all must run the same number of passes."""
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return False
    wrapped = any(type(part).__module__.startswith(_DISTRIBUTED) for part in model.modules())
    return wrapped or any(hasattr(parameter, "device_mesh") for parameter in model.parameters())


class PrefixReuse:
    """The passes of one batch: the first in full, the others from their first draw on.

    Args:
        model: Whose passes they are.
        sites: The places that draw, with the rates that they have in these passes.
        generators: torch's global generators that the model may draw from.
        own: Generators that its modules hold.

    Example:
        >>> from lightning_dropout.sites import find_sites
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Dropout(0.5))
        >>> reuse = PrefixReuse(model, find_sites(model), [torch.default_generator])
        >>> x = torch.ones(1, 2)
        >>> for seed in range(4):
        ...     _ = reuse.run(lambda: torch.manual_seed(seed), lambda: model(x))
        >>> reuse.report.passes, reuse.report.note  # one was watched, one ran in full and was compared
        (2, '')
    """

    def __init__(
        self,
        model: nn.Module,
        sites: Sequence[Site],
        generators: Sequence[torch.Generator],
        own: Sequence[OwnGenerator] = (),
    ) -> None:
        users = [user for site in sites if site.rate > 0.0 for user in site.users]
        # Entering one of these is the first draw, also where it moves no global state: it may have its own generator.
        self._drawing = frozenset(
            id(user.module)
            for user in users
            if isinstance(user.module, _DRAWING_LAYERS) or next(user.module.children(), None) is None
        )
        self._knowledge = _KNOWLEDGE.setdefault(model, {}).setdefault(self._drawing, Knowledge())
        self._generators, self._own = generators, own
        self._note = ""
        self._record: Record | None = None
        self._compared = False
        self._watched = self._replayed = 0
        self._seconds = self._prefix_seconds = 0.0

    @property
    def report(self) -> Reuse:
        """What was saved so far."""
        note = self._knowledge.note or self._note
        if not self._replayed:
            return Reuse(note=note)
        share = self._prefix_seconds / self._seconds
        return Reuse(share, self._replayed, self._prefix_seconds * self._replayed, note)

    @property
    def compared(self) -> bool | None:
        """Whether in this batch a pass in full and its replay were equal; ``None`` if the next pass will show it."""
        return None if self._record is not None and not self._record.verified else self._compared

    def run(self, prepare: Callable[[], object], forward: Callable[[], Any]) -> Any:
        """Return the output of one pass.

        Args:
            prepare: Seeds all generators for the pass; called twice where a pass is repeated.
            forward: Calls the model.
        """
        record, self._record = self._record, None
        failure: Exception | None = None
        if record is not None and record.verified:
            try:
                prepare()
                output = record.replay(forward)
            except Exception as error:
                failure = error
            else:
                self._replayed += 1
                self._record = record if record.usable else None
                return output
        if record is not None and not record.verified:
            return self._verify(record, prepare, forward)
        prepare()
        if failure is None and not self._knowledge.note and self._watched < _MAX_WATCHED:
            return self._watch(forward)
        output = forward()
        if failure is not None:  # an error of the model's own has come again by now
            self._give_up(failure)
        return output

    def _watch(self, forward: Callable[[], Any]) -> Any:
        if _global_forward_hooks or _global_forward_pre_hooks:
            self._note = "hooks on all modules run in every pass"
            return forward()
        self._watched += 1
        record = Record(self._drawing, self._generators, self._own, self._knowledge)
        output = record.watch(forward)
        self._seconds, self._prefix_seconds = record.seconds, record.prefix_seconds
        if record.usable:
            self._record = record
        return output

    def _verify(self, record: "Record", prepare: Callable[[], object], forward: Callable[[], Any]) -> Any:
        """Run a pass in full, and compare it with the same pass replayed."""
        prepare()
        output = forward()
        try:
            prepare()
            self._require_equal(output, record.replay(forward))
        except Exception as error:
            self._give_up(error)
        else:
            record.accept()
            self._record, self._compared = record, True
        return output

    def _require_equal(self, output: Any, again: Any) -> None:
        if not _same(output, again):
            raise DivergedError("the outputs of a replayed pass were others")
        if len(self._knowledge.changed) >= _MAX_SIGNATURES:
            raise DivergedError("passes begin in too many different ways")

    def _give_up(self, error: Exception) -> None:
        reason = (str(error).splitlines() or [""])[0]
        reason = reason if isinstance(error, DivergedError) else f"{type(error).__name__}: {reason}"
        self._knowledge.note = f"reusing what comes before the first draw failed: {reason}"


def _same(one: Any, other: Any) -> bool:
    """Tell whether two outputs are equal in everything that they hold."""
    (leaves, spec), (others, other_spec) = tree_flatten(one), tree_flatten(other)
    return spec == other_spec and all(_same_leaf(leaf, twin) for leaf, twin in zip(leaves, others, strict=True))


def _same_leaf(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, Tensor):
        return same_values(one, other)
    if isinstance(one, PLAIN):
        return repr(one) == repr(other)  # so NaN equals NaN
    if isinstance(one, np.ndarray):
        return np.array_equal(one, other)
    return one is other or (bool(vars(one)) and _same(vars(one), vars(other)))
