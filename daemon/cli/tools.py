"""`perdure tools`: what a planner may propose here, and which rules are about it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
from rich.table import Table
from rich.text import Text

from perdure.daemon.cli.invocation import Invocation, with_invocation, with_json
from perdure.daemon.cli.page_parts import rules_table
from perdure.daemon.cli.terminal import line, one_line
from perdure.errors import PerdureError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from perdure.daemon.tools.model import ToolSpec
    from perdure.daemon.workspace import LoadedWorkspace


@click.command()
@click.argument("name", required=False)
@with_json
@with_invocation
def tools(invocation: Invocation, name: str | None) -> None:
    """List the tools, or show one with its arguments and the rules that can be about it."""
    from perdure.daemon.workspace import load_workspace

    loaded = load_workspace(invocation.workspace)
    specs = loaded.specs
    if name is not None:
        if name not in specs:
            raise PerdureError(
                "show", f"the tool {name}", "there is no such tool", f"Tools here: {', '.join(sorted(specs))}"
            )
        specs = {name: specs[name]}
    if invocation.as_json:
        invocation.emit("tools", {"tools": [_tool_json(loaded, spec) for spec in specs.values()]})
        return
    if name is not None:
        _print_one(invocation, loaded, specs[name])
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="faint", show_edge=False)
    for title in ("tool", "from", "effect", "output", "rules", "used by", "what it does"):
        table.add_column(title, overflow="fold")
    for spec in specs.values():
        used = [task.name for task in loaded.tasks.values() if spec.name in task.tools]
        table.add_row(
            Text(one_line(spec.name), "name"),
            one_line(spec.source),
            Text(spec.effect, "faint" if spec.effect == "read" else ""),
            Text("trusted", "good") if spec.trusted else Text("untrusted", "faint"),
            str(len(_rules(loaded, spec.name))) if _rules(loaded, spec.name) else Text("none: asks", "ask"),
            one_line(", ".join(used)),
            Text(one_line(spec.description.split(". ")[0], 90), "faint"),
        )
    invocation.out.print(table)


def _rules(loaded: LoadedWorkspace, tool: str) -> list[dict[str, Any]]:
    """The rules whose `tools` name this one, as they are cited everywhere."""
    hits = [bound.hit for bound in loaded.policies.bound(tool)]
    return [{"name": hit.name, "file": hit.file, "line": hit.line, "decide": hit.decide} for hit in hits]


def _tool_json(loaded: LoadedWorkspace, spec: ToolSpec) -> dict[str, Any]:
    return {
        "tool": spec.name,
        "source": spec.source,
        "effect": spec.effect,
        "trusted": spec.trusted,
        "probeable": spec.probeable,
        "description": spec.description,
        "args_schema": dict(spec.args_schema),
        "paths": dict(spec.paths),
        "rules": _rules(loaded, spec.name),
        "tasks": [task.name for task in loaded.tasks.values() if spec.name in task.tools],
    }


def _print_one(invocation: Invocation, loaded: LoadedWorkspace, spec: ToolSpec) -> None:
    trust = "what it returns is trusted" if spec.trusted else "what it returns is untrusted"
    invocation.say(
        (spec.name, "name"), f"  {spec.source}, {spec.effect}, {trust}", ", has a probe" if spec.probeable else ""
    )
    invocation.say(spec.description)
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
