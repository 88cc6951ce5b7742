"""A tool of a server behind Perdure's own protocol: what it does is bound to the definition that a person accepted."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import mcp_types as types
from cel_expr_python import cel

from perdure.daemon.mcp.catalog import OutsideTool, standing_of
from perdure.daemon.mcp.connection import NoReply, Refusal, Unreachable
from perdure.daemon.mcp.results import result_of, text_of, too_many
from perdure.daemon.mcp.server import Changed, Server
from perdure.daemon.mcp.settings import McpProbe
from perdure.daemon.tools.digests import action_digest
from perdure.daemon.tools.model import Call, Prepared, Result, ToolInterrupted, ToolRefused, ToolSpec
from perdure.daemon.tools.roots import Roots
from perdure.errors import PerdureError
from perdure.state import projections
from perdure.state.canonical import digest
from perdure.state.events import JSON
from perdure.state.outside_tools import OutsideToolRow
from perdure.state.reading import LedgerReader

KEY = "io.perdure/idempotency-key"  # in the call's _meta, for servers that look for it
_WHOLE = re.compile(r"\$\{args\.([A-Za-z_][A-Za-z0-9_]*)\}")
_TYPES = {"ok": cel.Type.BOOL, "text": cel.Type.STRING, "structured": cel.Type.DYN, "args": cel.Type.DYN}

Expects = Callable[[bool, str, JSON, Mapping[str, JSON]], bool | None]


@dataclass(frozen=True, slots=True)
class McpTool:
    """One tool of one server at work."""

    known: OutsideTool
    server: Server
    reader: LedgerReader
    roots: Roots

    @property
    def spec(self) -> ToolSpec:
        return self.known.spec

    def prepare(self, args: Mapping[str, JSON]) -> Prepared:
        row = self._row()
        executed = self.server.executed()
        paths = {
            name: (str(self.roots.resolve(str(args[name]), use)),)
            for name, use in self.known.settings.paths.items()
            if args.get(name)
        }
        files = executed.files if executed is not None else {}
        also: dict[str, JSON] = {
            "server": digest(self.server.identity()),
            "listed": row.listed_hash,
            "accepted": row.accepted_hash,
        }
        return Prepared(
            spec=self.spec,
            args=args,
            paths=paths,
            executed=files,
            unmet=self._unmet(row),
            digest=action_digest(self.spec, args, paths=paths, executed=files, also=also),
        )

    async def run(self, prepared: Prepared, call: Call) -> Result:
        row = self._row()
        settings = self.known.settings
        arguments = dict(prepared.args)
        arguments |= {name: found[0] for name, found in prepared.paths.items()}  # what was decided on is what it gets
        if settings.idempotency_key is not None:
            arguments[settings.idempotency_key] = call.action
        try:
            answer = await self.server.call(
                self.known.tool,
                row.listed_hash or "",
                arguments,
                seconds=settings.timeout or self.server.settings.timeout,
                within=call.seconds_max,
                meta={KEY: call.action},
            )
        except (Unreachable, Changed) as error:
            return Result(ok=False, value=None, error=f"{error}. Nothing was sent")
        except Refusal as error:
            return Result(ok=False, value=None, error=str(error))
        except NoReply as error:
            return self._interrupted(error)
        if isinstance(answer, types.InputRequiredResult):
            requests = (answer.input_requests or {}).values()
            wanted = sorted({str(request.method) for request in requests}) or ["another round"]
            for method in wanted:
                await self.server.refuse(method, str(answer.input_requests)[:1_000])
            return Result(
                ok=False, value=None, error=f"the server asked for {', '.join(wanted)}, which it does not get"
            )
        limits = self.server.settings
        return result_of(answer, shown_bytes_max=limits.result_bytes_max, kept_bytes_max=limits.kept_bytes_max)

    async def probe(self, prepared: Prepared, call: Call) -> bool | None:
        probe = self.known.settings.probe
        row = None if probe is None else projections.outside_tool(self.reader, self.known.server, probe.tool)
        if probe is None or row is None or standing_of(row) != "accepted":
            return None  # a tool that no person has accepted as it is does not run, not even to look
        arguments = {name: filled(value, prepared.args) for name, value in probe.args.items()}
        own = self.server.settings.tools.get(probe.tool)
        try:
            for name, use in own.paths.items() if own is not None else ():
                if arguments.get(name):  # no probe looks where its own tool may not
                    arguments[name] = str(self.roots.resolve(str(arguments[name]), use))
            answer = await self.server.call(
                probe.tool,
                row.listed_hash or "",
                arguments,
                seconds=probe.timeout,
                within=call.seconds_max,
                meta={},
            )
        except PerdureError:
            return None
        if not isinstance(answer, types.CallToolResult) or too_many(answer.structured_content):
            return None
        expects = expectation(probe)
        return expects(not answer.is_error, text_of(answer), answer.structured_content, prepared.args)

    def _row(self) -> OutsideToolRow:
        """How the tool stands now. Raises ToolRefused where that is not what this specification was made from."""
        row = projections.outside_tool(self.reader, self.known.server, self.known.tool)
        if row is None or row.listed_hash is None:
            raise ToolRefused(
                "call",
                self.spec.name,
                "its server no longer lists it",
                f"`perdure tools accept {self.known.server}` asks it",
            )
        if self.known.basis not in (row.accepted_hash, row.listed_hash if row.accepted_hash is None else None):
            raise ToolRefused("call", self.spec.name, "its definition has just been replaced", "Propose it again")
        return row

    def _unmet(self, row: OutsideToolRow) -> tuple[str, ...]:
        command = f"`perdure tools accept {self.known.server}/{self.known.tool}`"
        match standing_of(row):
            case "accepted":
                return ()
            case "new":
                return (f"no person has accepted this tool of the MCP server {self.known.server} yet: {command}",)
            case _:
                return (
                    f"the MCP server {self.known.server} has changed this tool since a person accepted it: {command}",
                )

    def _interrupted(self, error: NoReply) -> Result:
        if self.spec.effect == "read":
            return Result(ok=False, value=None, error=str(error))
        raise ToolInterrupted(error.operation, error.object, error.cause, error.hint) from error


def filled(value: Any, args: Mapping[str, JSON]) -> JSON:
    """A probe's argument with the action's own in place; one that is nothing but `${args.NAME}` keeps its type."""
    if isinstance(value, str):
        whole = _WHOLE.fullmatch(value)
        if whole:
            return args.get(whole[1])
        return _WHOLE.sub(lambda use: _text(args.get(use[1])), value)
    if isinstance(value, list):
        return [filled(each, args) for each in value]
    if isinstance(value, dict):
        return {str(key): filled(each, args) for key, each in value.items()}
    plain: JSON = value
    return plain


def _text(value: JSON) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def expectation(probe: McpProbe) -> Expects:
    """The probe's condition. Raises ValueError where it does not compile."""
    try:
        compiled = cel.NewEnv(variables=_TYPES).compile(probe.expect)
    except Exception as error:  # noqa: BLE001 - the library raises RuntimeError and others
        raise ValueError(str(error).strip().splitlines()[0]) from None

    def expects(ok: bool, text: str, structured: JSON, args: Mapping[str, JSON]) -> bool | None:
        data = {"ok": ok, "text": text.replace("\0", "\ufffd"), "structured": structured, "args": dict(args)}
        try:
            value = compiled.eval(data=data).value()
        except Exception:  # noqa: BLE001 - an expression that fails has told nothing
            return None
        return value if isinstance(value, bool) else None

    return expects
