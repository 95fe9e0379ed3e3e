"""`meta-transformer`: from a folder of files to a trained, evaluated and shared model, without writing code.

Each file holds the commands of one group and the work behind them; `docs/command_line.md` shows them.
"""

import sys

from ..extras import needs

__all__ = ["main"]


def main() -> None:
    """Run the command line that the process was called with."""
    try:
        with needs("typer and rich for the command line", "cli"):
            from .app import app
    except ImportError as error:
        sys.exit(str(error))
    app()
