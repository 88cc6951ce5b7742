"""`perdure tools`: what a planner may propose here, and which rules are about it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
from rich.table import Table
from rich.text import Text

from perdure.daemon.cli.accepting import STANDING_WORDS, accept, print_claims
from perdure.daemon.cli.invocation import Invocation, with_invocation, with_json
from perdure.daemon.cli.page_parts import rules_table
from perdure.daemon.cli.terminal import WIDE, line, one_line
from perdure.errors import PerdureError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from perdure.daemon.mcp.catalog import OutsideTool
    from perdure.daemon.tools.model import ToolSpec
    from perdure.daemon.workspace import LoadedWorkspace


class _Tools(click.Group):
    """What is no command is a tool's name: `perdure tools read_file`."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            return "show", self.commands["show"], args
        return super().resolve_command(ctx, args)


@click.group(cls=_Tools, invoke_without_command=True, subcommand_metavar="[NAME | COMMAND]")
@with_json
@click.pass_context
def tools(context: click.Context) -> None:
    """List the tools, show the one called NAME, or accept those of an MCP server."""
    if context.invoked_subcommand is None:
        _list_or_show(context.ensure_object(Invocation), None)


@tools.command()
@click.argument("name")
@with_json
@with_invocation
def show(invocation: Invocation, name: str) -> None:
    """Show one tool with its arguments and the rules that can be about it (`perdure tools NAME` does the same)."""
    _list_or_show(invocation, name)


tools.add_command(accept)


def _list_or_show(invocation: Invocation, name: str | None) -> None:
    from perdure.daemon.mcp.catalog import outside_tools_of
    from perdure.daemon.workspace import load_workspace

    loaded = load_workspace(invocation.workspace)
    outside = outside_tools_of(loaded.config)
    specs = loaded.specs
    if name is not None:
        if name not in specs:
            raise PerdureError(
                "show", f"the tool {name}", "there is no such tool", f"Tools here: {', '.join(sorted(specs))}"
            )
        specs = {name: specs[name]}
    if invocation.as_json:
        invocation.emit(
            "tools", {"tools": [_tool_json(loaded, spec, outside.get(spec.name)) for spec in specs.values()]}
        )
        return
    if name is not None:
        _print_one(invocation, loaded, specs[name], outside.get(name))
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="faint", show_edge=False)
    wide = invocation.out.width >= WIDE
    for title in ("tool", "from", "effect", "output", "rules"):
        table.add_column(title, no_wrap=title in ("tool", "effect"), overflow="fold")
    table.add_column("used by", overflow="fold")
    if wide:  # it takes what the other columns leave
        table.expand = True
        table.add_column("what it does", overflow="ellipsis", no_wrap=True, ratio=1)
    for spec in specs.values():
        used = [task.name for task in loaded.tasks.values() if spec.name in task.tools]
        rules = len(_rules(loaded, spec.name))
        cells = [
            Text(one_line(spec.name), "name"),
            _source(spec, outside.get(spec.name)),
            Text(spec.effect, "faint" if spec.effect == "read" else ""),
            _trust(spec),
            Text(f"{rules}") if rules else Text("none: asks", "ask"),
            Text(one_line(", ".join(used))),
        ]
        if wide:
            cells.append(Text(one_line(spec.description.split(". ")[0]), "faint"))
        table.add_row(*cells)
    invocation.out.print(table)


def _trust(spec: ToolSpec) -> Text:
    if spec.trusted_fields:
        return Text(f"trusted: {', '.join(spec.trusted_fields)}", "good")
    return Text("trusted", "good") if spec.trusted else Text("untrusted", "faint")


def _source(spec: ToolSpec, outside: OutsideTool | None) -> Text:
    if outside is None or outside.standing == "accepted":
        return Text(one_line(spec.source))
    words, style = STANDING_WORDS[outside.standing]
    return line(one_line(spec.source), " ", (words, style))


def _rules(loaded: LoadedWorkspace, tool: str) -> list[dict[str, Any]]:
    """The rules whose `tools` name this one, as they are cited everywhere."""
    hits = [bound.hit for bound in loaded.policies.bound(tool)]
    return [{"name": hit.name, "file": hit.file, "line": hit.line, "decide": hit.decide} for hit in hits]


def _tool_json(loaded: LoadedWorkspace, spec: ToolSpec, outside: OutsideTool | None) -> dict[str, Any]:
    more = {} if outside is None else {"standing": outside.standing, "claims": dict(outside.claims)}
    return {
        "tool": spec.name,
        "source": spec.source,
        "effect": spec.effect,
        "trusted": list(spec.trusted_fields) or spec.trusted,
        "probeable": spec.probeable,
        "description": spec.description,
        "args_schema": dict(spec.args_schema),
        "paths": dict(spec.paths),
        "rules": _rules(loaded, spec.name),
        "tasks": [task.name for task in loaded.tasks.values() if spec.name in task.tools],
        **more,
    }


def _print_one(invocation: Invocation, loaded: LoadedWorkspace, spec: ToolSpec, outside: OutsideTool | None) -> None:
    trust = "what it returns is trusted" if spec.trusted else "what it returns is untrusted"
    if spec.trusted_fields:
        trust = f"what it returns is untrusted but for {', '.join(spec.trusted_fields)}"
    invocation.say(
        (spec.name, "name"), f"  {spec.source}, {spec.effect}, {trust}", ", has a probe" if spec.probeable else ""
    )
    invocation.say(one_line(spec.description, 2_000) if outside is not None else spec.description)
    if outside is not None:
        invocation.say(STANDING_WORDS[outside.standing])
        print_claims(invocation, dict(outside.claims))
    properties: Mapping[str, Any] = spec.args_schema.get("properties", {})
    required = spec.args_schema.get("required", ())
    if properties:
        invocation.say()
        table = Table.grid(padding=(0, 2))
        for _ in range(3):
            table.add_column(overflow="fold")
        for name, schema in properties.items():
            kind = schema.get("type", "any value") if isinstance(schema, dict) else "any value"
            kind = " or ".join(kind) if isinstance(kind, list) else str(kind)
            words = (
                kind
                + ("" if name in required else ", optional")
                + (f", a path to {spec.paths[name]}" if name in spec.paths else "")
            )
            description = schema.get("description", "") if isinstance(schema, dict) else ""
            table.add_row(
                Text("  " + one_line(name), "name"), one_line(words), Text(one_line(str(description)), "faint")
            )
        invocation.out.print(table)
    invocation.say()
    rules = _rules(loaded, spec.name)
    if not rules:
        invocation.out.print(line(("No rule is about it: every call is asked about.", "ask")))
        return
    invocation.say(("Rules that can be about it", "heading"))
    invocation.out.print(rules_table(rules, str(loaded.config.workspace)))
