"""All tools of a workspace: the built-in ones, the operator's own and those of MCP servers, each behind the same checks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from perdure.daemon.clock import SystemClock
from perdure.daemon.config import Config
from perdure.daemon.layout import CONFIG_NAME
from perdure.daemon.mcp.catalog import outside_tools_of
from perdure.daemon.notifications import Notifier
from perdure.daemon.secrets import known_secrets
from perdure.daemon.tools.arguments import Arguments
from perdure.daemon.tools.command import RUN_COMMAND, RunCommand
from perdure.daemon.tools.follow_up import FOLLOW_UP, FollowUp
from perdure.daemon.tools.http_request import HTTP_REQUEST, HttpRequest
from perdure.daemon.tools.memory_tools import RECALL, REMEMBER, MemoryView, Recall, Remember
from perdure.daemon.tools.model import Call, Prepared, Result, Tool, ToolRefused, ToolSpec
from perdure.daemon.tools.notify import NOTIFY, Notify
from perdure.daemon.tools.operator_tools import Operated, operator_spec, operator_tool_problems
from perdure.daemon.tools.reading import LIST_FILES, READ_FILE, SEARCH_FILES, reading_tools
from perdure.daemon.tools.roots import declared_roots
from perdure.daemon.tools.running import Runner
from perdure.daemon.tools.stash import Stash
from perdure.daemon.tools.undo import UNDO, Undo
from perdure.daemon.tools.writing import APPEND_FILE, DELETE_FILE, MOVE_FILE, WRITE_FILE, writing_tools
from perdure.errors import Problem, Problems
from perdure.state.events import JSON
from perdure.state.ledger import Ledger

if TYPE_CHECKING:
    from perdure.daemon.mcp.servers import Servers

_BUILT_IN = (
    LIST_FILES, READ_FILE, SEARCH_FILES, WRITE_FILE, APPEND_FILE, MOVE_FILE, DELETE_FILE,
    RUN_COMMAND, HTTP_REQUEST, NOTIFY, RECALL, REMEMBER, UNDO, FOLLOW_UP,
)  # fmt: skip


def tool_specs(config: Config) -> dict[str, ToolSpec]:
    """Every tool's specification, by name; those of MCP servers as the ledger knows them. Raises Problems where one of the
    operator's tools cannot work."""
    problems = [
        Problem(CONFIG_NAME, 0, 0, f"tools.{name}: {found}", expected)
        for name, tool in config.tools.items()
        for found, expected in operator_tool_problems(tool)
    ]
    if problems:
        raise Problems("load", problems)
    outside = {name: known.spec for name, known in outside_tools_of(config).items()}
    return outside | _own_specs(config)


def _own_specs(config: Config) -> dict[str, ToolSpec]:
    """The built-in tools and the operator's."""
    specs = {spec.name: spec for spec in _BUILT_IN}
    return specs | {name: operator_spec(name, tool) for name, tool in config.tools.items()}


def build_tools(
    config: Config,
    *,
    memory: MemoryView,
    notifier: Notifier,
    servers: Servers | None = None,
    ledger: Ledger | None = None,
    now: Callable[[], int] | None = None,
) -> dict[str, Tool]:
    """The tools themselves, by name; those of `servers` as the ledger knows them now. Raises Problems as `tool_specs` does.
    Without a ledger, `follow_up` can be prepared and not run."""
    specs = _own_specs(config)
    roots = declared_roots(config)
    stash, runner = Stash(config.state_dir, roots), Runner(config, roots)
    tools: Iterable[Tool] = (
        *reading_tools(roots),
        *writing_tools(roots, stash),
        RunCommand(runner),
        HttpRequest(config.http),
        Notify(notifier),
        Recall(memory),
        Remember(),
        Undo(roots, stash),
        FollowUp(config, ledger, now or SystemClock().now),
        *(Operated(specs[name], tool, runner) for name, tool in config.tools.items()),
        *(servers.tools(roots) if servers is not None else ()),
    )
    secrets = known_secrets(config)
    return {tool.spec.name: Checked(tool, Arguments(tool.spec.name, tool.spec.args_schema, secrets)) for tool in tools}


@dataclass(frozen=True, slots=True)
class Checked:
    """A tool behind the checks that all share: arguments against the schema and free of secrets before it is prepared, and
    prepared once more right before it runs, so that what was decided is what happens."""

    tool: Tool
    arguments: Arguments

    @property
    def spec(self) -> ToolSpec:
        return self.tool.spec

    def prepare(self, args: Mapping[str, JSON]) -> Prepared:
        self.arguments.check(args)
        return self.tool.prepare(args)

    async def run(self, prepared: Prepared, call: Call) -> Result:
        try:
            again = self.prepare(prepared.args)
        except ToolRefused as error:
            return Result(ok=False, value=None, error=str(error))
        if again.digest != prepared.digest or again.named != prepared.named:
            return Result(
                ok=False,
                value=None,
                error=f"{self.spec.name} was not run: {_difference(prepared, again)} since it was decided",
            )
        return await self.tool.run(again, call)

    async def probe(self, prepared: Prepared, call: Call) -> bool | None:
        return await self.tool.probe(prepared, call)


def _difference(prepared: Prepared, again: Prepared) -> str:
    if again.executed != prepared.executed:
        changed = {file for file, digest in {**prepared.executed, **again.executed}.items()
                   if prepared.executed.get(file) != again.executed.get(file)}  # fmt: skip
        return f"{', '.join(sorted(changed))} changed"
    if again.paths != prepared.paths:
        return "a path leads elsewhere"
    if again.named != prepared.named:
        before, now = prepared.named or {}, again.named or {}
        changed = {text for text in (*before, *now) if before.get(text) != now.get(text)}
        return f"where {', '.join(map(repr, sorted(changed)))} leads has changed"
    return "what it would do has changed"
