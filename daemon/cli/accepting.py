"""`perdure tools accept`: see what the tools of an MCP server are, and let policies decide on exactly that."""

from __future__ import annotations

from typing import Any

import click

from perdure.daemon.cli.invocation import Invocation, with_invocation, with_json
from perdure.daemon.cli.terminal import exact, one_line
from perdure.errors import PerdureError

STANDING_WORDS = {
    "accepted": ("accepted", "good"),
    "changed": ("changed since it was accepted: asks", "bad"),
    "new": ("not accepted yet: asks", "ask"),
    "gone": ("no longer listed", "faint"),
}


@click.command()
@click.argument("what", metavar="SERVER[/TOOL]", nargs=-1, required=True)
@click.option("--yes", is_flag=True, help="Accept without asking. Only for what you have looked at.")
@with_json
@with_invocation
def accept(invocation: Invocation, what: tuple[str, ...], yes: bool) -> None:
    """Ask a server for its tools, show what is new or changed, and accept it.

    From then on the policies decide about a tool as it is accepted here; a call asks a person again as soon as its server
    changes name, description, schema or claims.
    """
    wanted = [each.partition("/")[::2] for each in what]
    told = invocation.perform("tools.discover", names=sorted({server for server, _ in wanted}))
    failed = [f"{each['server']}: {each['error']}" for each in told["servers"] if each["error"]]
    chosen = [tool for tool in told["tools"] if _is_wanted(tool, wanted)]
    for server, name in wanted:
        if name and not any(tool["server"] == server and tool["tool"] == name for tool in chosen) and not failed:
            known = ", ".join(sorted(tool["tool"] for tool in told["tools"] if tool["server"] == server)) or "none"
            raise PerdureError("accept", f"{server}/{name}", "the server lists no such tool", f"It lists: {known}")
    if failed:
        raise PerdureError("ask", "the MCP servers", "; ".join(failed), "Nothing was accepted")
    open_ones = [tool for tool in chosen if tool["standing"] in ("new", "changed")]
    hashes: dict[str, dict[str, str]] = {}
    for tool in open_ones:
        hashes.setdefault(tool["server"], {})[tool["tool"]] = tool["hash"]
    if not invocation.as_json:
        for tool in open_ones:
            print_definition(invocation, tool)
        _print_refused(invocation, told["servers"])
    if open_ones and not yes:
        if invocation.as_json:
            raise PerdureError("accept", ", ".join(what), "nobody was asked", "Give --yes together with --json")
        click.confirm(f"Accept {len(open_ones)} as shown?", abort=True)
    result = invocation.perform("tools.accept", tools=hashes) if hashes else {"accepted": []}
    if invocation.as_json:
        invocation.emit("tools-accepted", {**result, "servers": told["servers"]})
        return
    if not open_ones:
        invocation.say("All of it is accepted already.")
        return
    invocation.say(("Accepted", "good"), ": ", ", ".join(result["accepted"]))
    invocation.say(("What may run is for the policies; ", "faint"), (f"{invocation.command} tools", "command"),
                   (" shows which rules are about each", "faint"))  # fmt: skip


def print_definition(invocation: Invocation, tool: dict[str, Any]) -> None:
    """What a person accepts: the server's own words, each sign visible."""
    words, style = STANDING_WORDS[tool["standing"]]
    invocation.say((one_line(tool["name"]), "name"), "  ", (words, style),
                   (f"  {tool['effect']}, {_trust(tool['trusted'])} by perdure.toml", "faint"))  # fmt: skip
    if tool["problem"]:
        invocation.say("  cannot be used: ", (one_line(tool["problem"]), "bad"))
    print_listed(invocation, tool)
    invocation.say()


def _trust(trusted: bool | list[str]) -> str:
    return f"trusted: {', '.join(trusted)}" if isinstance(trusted, list) else "trusted" if trusted else "untrusted"


def print_listed(invocation: Invocation, tool: dict[str, Any]) -> None:
    """What the server says now: where that differs from what was accepted, or all of it; and its claims."""
    if tool["changes"]:
        for change in tool["changes"]:
            invocation.say("  ", (one_line(change["at"]), "name"))
            invocation.say("    was ", (exact(change["was"]), "faint"))
            invocation.say("    is  ", (exact(change["is"]), "warn"))
    else:
        definition = tool["definition"] or {}
        invocation.say("  says      ", exact(definition.get("description")))
        invocation.say("  arguments ", exact(definition.get("inputSchema")))
    print_claims(invocation, tool["claims"])


def print_claims(invocation: Invocation, claims: dict[str, Any]) -> None:
    """The server's annotations, as what they are."""
    if claims:
        said = ", ".join(f"{one_line(name)}: {one_line(str(value))}" for name, value in claims.items())
        invocation.say(("  claims    ", "faint"), said, ("  (the server's word; nothing follows from it)", "faint"))


def _print_refused(invocation: Invocation, servers: list[dict[str, Any]]) -> None:
    for server in servers:
        for tool, why in server["refused"].items():
            invocation.say(
                (f"{server['server']}/{one_line(tool)}", "name"), " cannot be a tool here: ", (one_line(why), "warn")
            )


def _is_wanted(tool: dict[str, Any], wanted: list[tuple[str, str]]) -> bool:
    return any(tool["server"] == server and name in ("", tool["tool"]) for server, name in wanted)
