"""Sends a workspace of wandb-workspaces to W&B, within a bounded time and in one line if that fails.

May not ask a question: whether there is a key at all is for the caller to find out (``login_problem``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_dropout.loggers.wandb_process import hushed, in_one_line, within

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

__all__ = ["save_workspace"]

_LONGEST = 10.0  # seconds; wandb gives its check of the key 20, and what it then sends more than that


def save_workspace(workspace: Workspace) -> str:
    """Save a workspace as a new view of its project, and return the view's address.

    Args:
        workspace: What is to be seen there.

    Raises:
        RuntimeError: If the server cannot be reached, refuses, or takes more than 10 s.

    Example:
        ::

            url = save_workspace(dashboard_workspace(dashboard_panels(), entity="me", project="digits"))
    """

    def save() -> str:
        workspace.save()  # type: ignore[no-untyped-call]
        return str(workspace.url)

    try:
        with hushed():
            return within(_LONGEST, save)
    except Exception as error:
        raise RuntimeError(
            f"Expected W&B to save the workspace in {workspace.entity}/{workspace.project}, but got "
            f"{in_one_line(error)}; are the names right, and is the server there?"
        ) from error
