"""`perdure run`: the daemon in the foreground, with the live view."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import click

from perdure.daemon.cli.invocation import Invocation, everywhere, with_invocation
from perdure.daemon.layout import LEDGER

if TYPE_CHECKING:
    from perdure.state.events import JSON


@click.command()
@click.option("--sessions", "sessions_max", type=click.IntRange(min=1), metavar="N", help="Stop after N sessions.")
@click.option(
    "-q", "--quiet", is_flag=True, help="No live view; the log goes on. Default where systemd's journal listens."
)
@everywhere
@with_invocation
def run(invocation: Invocation, sessions_max: int | None, quiet: bool) -> None:
    """Be the daemon, in the foreground.

    Loads everything, runs what is due, reloads policies and tasks when they change. SIGTERM or Ctrl-C stops cleanly after
    the running step; a second one at once.
    """
    from perdure.daemon.service import serve

    live = not (quiet or os.environ.get("JOURNAL_STREAM"))
    if not live:
        click.get_current_context().exit(asyncio.run(serve(invocation.workspace, sessions_max=sessions_max)))
    from perdure.daemon.cli.live import LiveView

    view = LiveView(
        invocation.out, zone=invocation.zone, payload=payload_reader(invocation), command=invocation.command
    )
    try:
        code = asyncio.run(serve(invocation.workspace, on_event=view, sessions_max=sessions_max))
    finally:
        view.close()
    click.get_current_context().exit(code)


class payload_reader:  # noqa: N801 - used like a function
    """Reads payloads over a connection of its own, opened at the first call: by then there is a ledger."""

    def __init__(self, invocation: Invocation) -> None:
        self._invocation = invocation

    def __call__(self, seq: int) -> JSON:
        """The payload of this event; None where it has none or cannot be read."""
        if not (self._invocation.state_dir / LEDGER).exists():
            return None
        return self._invocation.ledger.payload(seq)
