"""Make the W&B dashboard of a project: ``python scripts/dashboard.py entity=me project=digits``.

The same as ``lightning-dropout dashboard``, which says more with ``--help``.
"""

import sys

from lightning_dropout import cli


def main() -> None:
    """Run the command with the words of this one."""
    cli.main(["dashboard", *sys.argv[1:]])


if __name__ == "__main__":
    main()
