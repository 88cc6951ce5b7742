"""`perdure grants`: standing answers, listed and revoked."""

from __future__ import annotations

import click
from rich.table import Table
from rich.text import Text

from perdure.daemon.cli.invocation import Invocation, everywhere, task_option, with_invocation, with_json
from perdure.daemon.cli.page_parts import who
from perdure.daemon.cli.terminal import exact, one_line
from perdure.daemon.cli.words import from_now, iso, short


@click.group()
@everywhere
def grants() -> None:
    """Standing answers that people gave with `approve --always`. Rules that deny beat them."""


@grants.command("list")
@click.option("--all", "everything", is_flag=True, help="Also the revoked ones.")
@task_option("Only this task's.")
@with_json
@with_invocation
def list_grants(invocation: Invocation, everything: bool, task: str | None) -> None:
    """List the grants in force."""
    from perdure.state import projections

    rows = projections.grants(invocation.ledger, task=task, active_only=not everything)
    if invocation.as_json:
        values = [
            {
                "grant": row.grant,
                "task": row.task,
                "tool": row.tool,
                "rule": row.rule,
                "pattern": row.pattern,
                "given_by_uid": row.uid,
                "given_at": iso(row.given_at),
                "revoked_at": None if row.revoked_at is None else iso(row.revoked_at),
                "seq": row.seq,
            }
            for row in rows
        ]
        invocation.emit("grants", {"grants": values})
        return
    if not rows:
        invocation.say(("No grants are in force.", "faint"))
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="faint", show_edge=False)
    for title in ("grant", "task", "tool", "for", "rule", "given"):
        table.add_column(title, overflow="fold", no_wrap=title in ("grant", "task", "tool"))
    for row in rows:
        given = f"{from_now(row.given_at, invocation.now())} by {who(row.uid)}"
        if row.revoked_at is not None:
            given += ", revoked"
        pattern = (
            "(erased: fits nothing)"
            if row.pattern is None
            else ", ".join(f"{k}={exact(v)}" for k, v in row.pattern.items())
        )
        cells = (one_line(row.task), one_line(row.tool), one_line(pattern), one_line(row.rule), given)
        table.add_row(Text(short(row.grant), "id"), *cells)
    invocation.out.print(table)


@grants.command()
@click.argument("grant")
@with_json
@with_invocation
def revoke(invocation: Invocation, grant: str) -> None:
    """Take a grant back: from now on the action is asked about again."""
    result = invocation.perform("grants.revoke", grant=grant)
    if invocation.as_json:
        invocation.emit("revoked", result)
        return
    invocation.say(("Revoked", "warn"), ": grant ", (short(str(result["grant"])), "id"))
