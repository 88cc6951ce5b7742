"""The command line: `perdure`. Commands are imported only when they are called, so that `perdure status` answers at once."""

from __future__ import annotations

__all__ = ["main"]


def main() -> None:
    """Run the command line on the process's arguments; exits with the command's code."""
    from perdure.daemon.cli.app import perdure

    perdure.main(prog_name="perdure")
