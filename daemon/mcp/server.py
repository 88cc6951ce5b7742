"""One configured server: started when it is needed, listed before every call, restarted with growing pauses when it fails."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from perdure.daemon.mcp.connection import Connection, Listing, Unreachable
from perdure.daemon.mcp.definitions import Definition, tool_name
from perdure.daemon.mcp.http_transport import http_transport
from perdure.daemon.mcp.program_transport import KeptStderr, program_transport
from perdure.daemon.mcp.settings import McpServer
from perdure.daemon.mcp.traffic import Streams, Traffic
from perdure.daemon.sandbox.programs import Orders, confinement_available
from perdure.daemon.secrets import credential, known_secrets
from perdure.daemon.tools.executables import Executed, executed_by, search_path
from perdure.daemon.tools.roots import declared_roots
from perdure.daemon.tools.running import Limits, Runner
from perdure.errors import PerdureError
from perdure.state import projections
from perdure.state.canonical import digest
from perdure.state.events import (
    JSON,
    Draft,
    McpRefused,
    McpServerEnded,
    McpServerStarted,
    McpToolGone,
    McpToolListed,
)

if TYPE_CHECKING:
    from perdure.daemon.clock import Clock
    from perdure.daemon.config import Config
    from perdure.state.ledger import Ledger
    from perdure.state.outside_tools import OutsideToolRow

PAUSE_SECONDS_MIN: Final = 0.25
PAUSE_SECONDS_MAX: Final = 60.0
RELIST_SECONDS_MIN: Final = 2.0  # a server that announces changes all the time is listed no more often
CHANGES_MAX: Final = 20  # of one tool since a person accepted it; from then on ...
CHANGES_PAUSE_US: Final = 3_600_000_000  # ... it has to stand for an hour before the next is taken up
STRANGERS_MAX: Final = 1_000  # tools on record that no person has accepted: names may be new every time
REFUSED_MAX: Final = 1_000  # refused tools on record since the daemon's start
REQUEST_SHOWN_MAX: Final = 2_000
_FOR_YEARS: Final = 10 * 366 * 86_400.0


class Changed(PerdureError):
    """The tool is no longer what was decided on; nothing was sent."""


class Server:
    """`changed` is called whenever the ledger gained a change of its tools."""

    def __init__(
        self, name: str, settings: McpServer, config: Config, ledger: Ledger, clock: Clock, changed: Callable[[], None]
    ) -> None:
        self.name, self.settings = name, settings
        self.refused: dict[str, str] = {}  # tools of the last listing that cannot be one here, and why
        self._config, self._ledger, self._clock, self._on_change = config, ledger, clock, changed
        self._runner = _runner(config)
        self._connection: Connection | None = None
        self._starting = asyncio.Lock()
        self._failures = 0
        self._not_before = 0.0
        self._asked: Counter[str] = Counter()
        self._asked_first: dict[str, JSON] = {}
        self._refused_on_record = 0
        self._relist = asyncio.Event()
        self._watching: asyncio.Task[None] | None = None
        self._closed = False
        self._listed = {  # what the ledger holds, or will before the next turn of the loop
            row.tool: row.listed_hash for row in projections.outside_tools(ledger.reader, name) if row.listed_hash
        }

    # -- what decides what a call does ------------------------------------------------------------------------------

    def identity(self) -> dict[str, JSON]:
        """How the server is reached, without secrets; part of every action's digest."""
        settings = self.settings
        headers = {
            name: value if isinstance(value, str) else [value.prefix, {"secret": value.secret}]
            for name, value in settings.headers.items()
        }
        return {
            "server": self.name,
            "command": None if settings.command is None else list(settings.command),
            "url": settings.url,
            "env": dict(settings.env),
            "credentials": dict(settings.credentials),
            "headers": headers,  # type: ignore[dict-item]  # lists of texts and objects are JSON
            "sandbox": settings.sandbox,
            "network": settings.network,
            "paths": [*map(str, settings.read), "", *map(str, settings.write)],
        }

    def executed(self) -> Executed | None:
        """The files that starting it executes. Raises ToolRefused where there is no such program."""
        if self.settings.command is None:
            return None
        where = search_path(self._environment())
        return executed_by(self.settings.command, search_path=where, cwd=self._config.workspace)

    # -- asking it --------------------------------------------------------------------------------------------------

    async def list_now(self, seconds: float) -> Listing:
        """Its tools as it lists them now; what differs from before is in the ledger. Raises Unreachable."""
        _, listing = await self._listed_anew(self._clock.monotonic() + seconds)
        return listing

    async def call(
        self,
        tool: str,
        expected: str,
        arguments: Mapping[str, JSON],
        *,
        seconds: float,
        within: float,
        meta: Mapping[str, str],
    ) -> Any:
        """Call `tool` if it still is the definition with the hash `expected`. The call takes at most `seconds`; with a start of
        the server, which has a bound of its own, all of it takes at most `within`.

        Raises Unreachable and Changed (nothing was sent), NoReply (nobody knows), Refusal."""
        deadline = self._clock.monotonic() + within
        connection, listing = await self._listed_anew(deadline)
        now = listing.tools.get(tool)
        if now is None or now.hash != expected:
            cause = "the server no longer lists it" if now is None else "its server has changed its definition"
            hint = f"`perdure tools accept {self.name}` shows the change and accepts it"
            raise Changed("call", tool_name(self.name, tool), f"{cause} since this was decided", hint)
        left = min(seconds, deadline - self._clock.monotonic())
        if left <= 0:
            raise self._unreachable("starting it took all the time there was", "Give the task more minutes")
        try:
            answer = await connection.call(tool, arguments, left, meta)
        finally:
            await self._record_requests()
        self._failures = 0
        return answer

    async def close(self) -> None:
        """End it; it does not start again."""
        self._closed = True
        async with self._starting:  # whoever is ending a connection now ends it whole
            connection, self._connection = self._connection, None
            if connection is not None:
                await connection.close()
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait({self._watching})

    async def refuse(self, what: str, request: JSON) -> None:
        """Record something that the server asked for in its answer."""
        self._heard(what, request)
        await self._record_requests()

    # -- connecting -------------------------------------------------------------------------------------------------

    async def _listed_anew(self, deadline: float) -> tuple[Connection, Listing]:
        """A connection that has just listed its tools; one that no longer answers is replaced once."""
        connection = await self._connected(deadline)
        try:
            listing = await connection.listing()
        except Unreachable:
            await connection.close()
            connection = await self._connected(deadline)
            listing = await connection.listing()
        await self._compare(listing)
        return connection, listing

    async def _connected(self, deadline: float) -> Connection:
        async with self._starting:
            if self._connection is not None and not self._connection.ended:
                return self._connection
            if self._closed:
                raise self._unreachable("the daemon is stopping", "Ask again once it runs")
            await self._settle_end()
            pause = self._not_before - self._clock.monotonic()
            if pause > 0:
                if pause > deadline - self._clock.monotonic():
                    hint = f"See state/mcp/{self.name}.stderr and `perdure ledger tail`"
                    raise self._unreachable(f"it failed {self._failures} times; next try in {pause:.0f} s", hint)
                await self._clock.sleep(pause)
            traffic = Traffic(refused=self._heard, changed=self._relist.set, logged=self._stderr().add)
            connection = Connection(self.name, self._transport, traffic)
            try:
                await connection.open(min(self.settings.start_timeout, max(1.0, deadline - self._clock.monotonic())))
                listing = await connection.listing()
            except PerdureError as error:
                await connection.close()
                await self._failed(error.cause)
                raise
            except BaseException:
                await connection.close()
                raise
            self._connection = connection
            started = McpServerStarted(
                server=self.name,
                identity=digest(self.identity()),
                protocol=connection.protocol,
                tools=len(listing.tools),
                says=connection.says,
            )
            await self._ledger.write(started)
            await self._compare(listing)
            self._watching = asyncio.create_task(self._watch(connection), name=f"mcp watch {self.name}")
            return connection

    async def _watch(self, connection: Connection) -> None:
        """Record its end at once, and list it anew when it says that its tools have changed."""
        ended = asyncio.ensure_future(connection.traffic.ended.wait())
        try:
            while not ended.done():
                announced = asyncio.ensure_future(self._relist.wait())
                await asyncio.wait({ended, announced}, return_when=asyncio.FIRST_COMPLETED)
                announced.cancel()
                await asyncio.wait({announced})
                if not ended.done():
                    await self._clock.sleep(RELIST_SECONDS_MIN)
                    self._relist.clear()
                    with suppress(Unreachable):
                        await self._compare(await connection.listing())
            async with self._starting:
                if self._connection is connection:  # else a call has noticed before us
                    await self._settle_end()
        finally:
            ended.cancel()
            await asyncio.wait({ended})

    async def _settle_end(self) -> None:
        """Record that a connection ended by itself, once."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()
            await self._record_requests()
            if not self._closed:
                await self._failed(connection.traffic.fault or "the connection was closed")

    async def _failed(self, reason: str) -> None:
        self._failures += 1
        pause = min(PAUSE_SECONDS_MAX, PAUSE_SECONDS_MIN * 2 ** (self._failures - 1))
        self._not_before = self._clock.monotonic() + pause
        await self._ledger.write(McpServerEnded(server=self.name, reason=reason[:1_000], failures=self._failures))

    def _unreachable(self, cause: str, hint: str) -> Unreachable:
        return Unreachable("reach", f"the MCP server {self.name}", cause, hint)

    # -- what goes into the ledger ------------------------------------------------------------------------------------

    async def _compare(self, listing: Listing) -> None:
        """Record every tool that is new, different or gone."""
        drafts: list[Draft] = []
        rows = {row.tool: row for row in projections.outside_tools(self._ledger.reader, self.name)}
        room = STRANGERS_MAX - sum(row.accepted_hash is None for row in rows.values())
        for tool, found in listing.tools.items():
            row = rows.get(tool)
            if self._listed.get(tool) == found.hash or (row is not None and self._restless(row)):
                continue
            if row is None:
                room -= 1
            if row is not None or room >= 0:
                drafts.append(self._listing_of(found))
                self._listed[tool] = found.hash
        gone = [tool for tool in rows if tool not in listing.tools and self._listed.pop(tool, None) is not None]
        drafts += [McpToolGone(server=self.name, tool=tool) for tool in gone]
        refused = [
            McpRefused(server=self.name, what="tool", reason=f"{tool}: {why}")
            for tool, why in listing.refused.items()
            if self.refused.get(tool) != why
        ][: REFUSED_MAX - self._refused_on_record]
        self._refused_on_record += len(refused)
        drafts += refused
        self.refused = listing.refused
        if drafts:
            await self._ledger.write(*drafts)
            self._on_change()

    def _restless(self, row: OutsideToolRow) -> bool:
        """Whether the tool has changed, or come and gone, so often of late that the ledger keeps no more of it for now."""
        return row.changes >= CHANGES_MAX and self._clock.now() - row.listed_at < CHANGES_PAUSE_US

    def _listing_of(self, found: Definition) -> McpToolListed:
        name = tool_name(self.name, found.tool)
        payload: dict[str, JSON] = {"definition": dict(found.raw)}
        return McpToolListed(server=self.name, tool=found.tool, name=name, hash=found.hash, payload=payload)

    def _heard(self, method: str, params: JSON) -> None:
        """The server asked something of us; the SDK answers that we do not do that."""
        method = method[:80]
        self._asked[method] += 1
        self._asked_first.setdefault(method, str(params)[:REQUEST_SHOWN_MAX])

    async def _record_requests(self) -> None:
        asked, self._asked = self._asked, Counter()
        first, self._asked_first = self._asked_first, {}
        drafts = [
            McpRefused(
                server=self.name,
                what=method,
                reason="Perdure does not do this for servers",
                count=count,
                payload={"request": first.get(method)},
            )
            for method, count in list(asked.items())[:10]
        ]
        if drafts:
            await self._ledger.write(*drafts)

    # -- starting it --------------------------------------------------------------------------------------------------

    def _transport(self, traffic: Traffic) -> AbstractAsyncContextManager[Streams]:
        return http_transport(self.settings, traffic) if self.settings.command is None else self._program(traffic)

    @asynccontextmanager
    async def _program(self, traffic: Traffic) -> AsyncGenerator[Streams, None]:
        """The program, in a scratch directory of its own that goes with it."""
        scratch = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="perdure-mcp-"))
        try:
            async with program_transport(
                self._orders(scratch),
                traffic,
                self._stderr(),
                state_dir=self._config.state_dir,
                mark=f"mcp:{self.name}",
                message_bytes_max=self.settings.message_bytes_max,
            ) as streams:
                yield streams
        finally:
            await asyncio.to_thread(shutil.rmtree, scratch, ignore_errors=True)

    def _orders(self, scratch: Path) -> Orders:
        settings, executed = self.settings, self.executed()
        assert executed is not None
        assert settings.command is not None
        confined = settings.sandbox == "landlock"
        if confined and not confinement_available(network=settings.network):
            hint = f'This kernel cannot confine it. mcp.{self.name}.sandbox = "none" starts it without a sandbox'
            raise self._unreachable("it may only run confined", hint)
        limits = Limits(
            seconds_max=_FOR_YEARS,
            output_bytes_max=0,
            memory_bytes_max=settings.memory_bytes_max,
            network=settings.network,
            read=settings.read,
            write=settings.write,
        )
        secrets = {variable: credential(name) for name, variable in settings.credentials.items()}
        return Orders(
            program=str(executed.program),
            argv=settings.command,
            env={"HOME": str(scratch), **self._environment(), **secrets, "TMPDIR": str(scratch)},
            cwd=str(self._config.workspace),
            grants=self._runner.grants(executed, limits, scratch) if confined else None,
            network=settings.network,
            stdin=b"",
            seconds_max=_FOR_YEARS,
            output_bytes_max=0,
            memory_bytes_max=settings.memory_bytes_max,
        )

    def _environment(self) -> dict[str, str]:
        return self._runner.base_environment(self.settings.env)

    def _stderr(self) -> KeptStderr:
        path = self._config.state_dir / "mcp" / f"{self.name}.stderr"
        return KeptStderr(path, self.settings.stderr_bytes_max, known_secrets(self._config))


def _runner(config: Config) -> Runner:
    """A runner that grants no more than what a server's own settings name: other people's programs get no workspace."""
    commands = config.commands.model_copy(update={"env": {}, "read": (), "write": ()})
    roots = replace(declared_roots(config), read=(), write=())
    return Runner(config.model_copy(update={"commands": commands}), roots)
