"""`perdure context show SESSION`: what the planner saw, item by item, and what was left out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
from rich.table import Table
from rich.text import Text

from perdure.daemon.cli.invocation import Invocation, everywhere, with_invocation, with_json
from perdure.daemon.cli.ledger import session_id
from perdure.daemon.cli.terminal import bar, harmless, line, one_line
from perdure.daemon.cli.words import count, short
from perdure.errors import PerdureError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@click.group()
@everywhere
def context() -> None:
    """What planners see."""


@context.command()
@click.argument("session", required=False)
@click.option("--text", is_flag=True, help="The whole text as the planner got it, instead of the manifest.")
@with_json
@with_invocation
def show(invocation: Invocation, session: str | None, text: bool) -> None:
    """Show what SESSION's planner saw (default: the last session): every item, its tokens, why it is in; what stayed out."""
    from perdure.daemon.cli.account import account_of, public

    name = session_id(invocation, session)
    contexts = account_of(invocation.ledger, name)["contexts"]
    if not contexts:
        raise PerdureError(
            "show",
            f"the context of session {short(name)}",
            "none was assembled",
            f"`perdure ledger show {short(name)}` says why",
        )
    if invocation.as_json:
        invocation.emit("context", {"session": name, "contexts": public(contexts)})
        return
    for shown in contexts:
        _show(invocation, shown, (short(name), "id"), text=text)


@context.command()
@click.argument("task")
@click.option("--text", is_flag=True, help="The whole text as the planner would get it, instead of the manifest.")
@with_json
@with_invocation
def preview(invocation: Invocation, task: str, text: bool) -> None:
    """Show what the next session of TASK would see, as memory stands now. Nothing runs, and nothing is written."""
    shown = invocation.perform("context.preview", task=task)
    if invocation.as_json:
        invocation.emit("context", {"session": None, "contexts": [shown]})
        return
    _show(invocation, shown, ("preview", "id"), text=text)


def _show(invocation: Invocation, shown: Mapping[str, Any], name: tuple[str, str], *, text: bool) -> None:
    if text:
        invocation.out.print(Text(harmless(shown["text"] or "(erased)")), soft_wrap=True)
        return
    words = line("session ", name, f"  {shown['tokens']:,} of {shown['budget']:,} tokens  ")
    words.append_text(bar(shown["tokens"], shown["budget"], 20))
    where = f"  #{shown['seq']}" if "seq" in shown else ""
    words.append_text(line((f"  factor {shown['factor']:g}{where}", "faint")))
    invocation.out.print(words)
    invocation.say()
    invocation.out.print(_items(shown["manifest"]))
    if shown["left_out"]:
        invocation.say()
        invocation.say((f"left out: {count(len(shown['left_out']), 'item')}", "heading"))
        invocation.out.print(_items(shown["left_out"]))


def _items(items: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="faint", show_edge=False)
    table.add_column("tokens", justify="right")
    for title in ("kind", "why", "id", "source"):
        table.add_column(title, overflow="fold")
    for item in items:
        cells = (one_line(str(item.get(key, ""))) for key in ("kind", "why", "id", "source"))
        table.add_row(f"{int(item.get('tokens', 0)):,}", *cells)
    return table
