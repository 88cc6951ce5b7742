"""One standing connection to a server: it lives in a task of its own, is asked from any other, and ends loudly or on request."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any, Final, cast

import mcp_types as types
from mcp import Client, MCPError

import perdure
from perdure.daemon.mcp.definitions import Definition, NoToolError, definition
from perdure.daemon.mcp.traffic import Streams, Traffic
from perdure.errors import PerdureError

PAGES_MAX: Final = 20
TOOLS_MAX: Final = 500
LIST_SECONDS: Final = 10.0
CLOSE_SECONDS: Final = 20.0
_NO_REPLY: Final = frozenset({types.CONNECTION_CLOSED, types.REQUEST_TIMEOUT})

# What the SDK has to say about a hostile server's messages is said once, by us, when the connection ends.
for _name in ("mcp", "client"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)


class Unreachable(PerdureError):
    """The server cannot be asked; nothing was sent."""


class NoReply(PerdureError):
    """The call was sent, and how it ended is not known."""


class Refusal(PerdureError):
    """The server answered that it does not do it."""


class Listing:
    """What a server lists: its tools by name, and what it listed that cannot be a tool, with the reason."""

    def __init__(self) -> None:
        self.tools: dict[str, Definition] = {}
        self.refused: dict[str, str] = {}


class Connection:
    """A client that stands until `close` or until the server's traffic ends it."""

    def __init__(
        self, server: str, transport: Callable[[Traffic], AbstractAsyncContextManager[Streams]], traffic: Traffic
    ) -> None:
        self.server = server
        self.traffic = traffic
        self._transport = transport
        self._client: Client | None = None
        self._closing = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def ended(self) -> bool:
        return self._task is None or self._task.done() or self.traffic.ended.is_set()

    @property
    def protocol(self) -> str:
        """The version of the protocol that both speak."""
        return self._standing().protocol_version

    @property
    def says(self) -> str | None:
        """The name and version that the server claims."""
        info = self._standing().server_info
        return None if info is None else f"{info.name} {info.version}"[:200]

    async def open(self, seconds: float) -> None:
        """Connect and agree on the protocol. Raises Unreachable."""
        ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._live(ready), name=f"mcp {self.server}")
        try:
            done, _ = await asyncio.wait({ready}, timeout=seconds)
        except BaseException:
            await self.close()
            raise
        if not done:
            await self.close()
            raise self._unreachable(f"it did not answer within {seconds:g} s")
        error = ready.exception()
        if error is not None:
            await self.close()
            raise self._unreachable(str(error) if isinstance(error, PerdureError) else self._why(error))

    async def close(self) -> None:
        """End it, and whatever was started for it."""
        self._closing.set()
        if self._task is None:
            return
        done, _ = await asyncio.wait({self._task}, timeout=CLOSE_SECONDS if self._client is not None else 0.05)
        if not done:
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=CLOSE_SECONDS)

    async def listing(self) -> Listing:
        """The tools as the server lists them now. Raises Unreachable."""
        client, listing = self._standing(), Listing()
        cursor: str | None = None
        self.traffic.begin_call()
        try:
            async with asyncio.timeout(LIST_SECONDS):
                for _ in range(PAGES_MAX):
                    params = types.PaginatedRequestParams(cursor=cursor) if cursor is not None else None
                    page = await client.session.list_tools(params=params)
                    self._take(page.tools, listing)
                    cursor = page.next_cursor
                    if cursor is None:
                        return listing
        except TimeoutError:
            raise self._unreachable(f"it did not list its tools within {LIST_SECONDS:g} s") from None
        except Exception as error:
            raise self._unreachable(self._why(error)) from error
        raise self._unreachable(f"its list of tools has more than {PAGES_MAX} pages")

    async def call(
        self, tool: str, arguments: Mapping[str, Any], seconds: float, meta: Mapping[str, str]
    ) -> types.CallToolResult | types.InputRequiredResult:
        """Send one call, once. Raises Unreachable (nothing was sent), NoReply and Refusal."""
        client = self._standing()
        self.traffic.begin_call()
        try:
            answer: types.CallToolResult | types.InputRequiredResult = await client.session.call_tool(
                tool,
                dict(arguments),
                read_timeout_seconds=seconds,
                meta=cast("types.RequestParamsMeta", dict(meta)),  # its TypedDict has no place for other keys
                allow_input_required=True,
            )
        except MCPError as error:
            if error.code in _NO_REPLY:
                cause = f"no answer within {seconds:g} s" if error.code == types.REQUEST_TIMEOUT else self._why(error)
                raise self._no_reply(tool, cause) from error
            said = f"it answered with error {error.code}: {error.message[:1_000]}"
            raise Refusal(
                "call", f"{tool} of the MCP server {self.server}", said, "See `perdure tools` for its schema"
            ) from error
        except Exception as error:
            raise self._no_reply(tool, self._why(error)) from error
        return answer

    async def _live(self, ready: asyncio.Future[None]) -> None:
        """Hold the client open: the SDK wants it entered and left by one task."""
        try:
            async with self._client_of() as client:
                client.session.validate_tool_result = _unchecked  # type: ignore[method-assign]  # the SDK has no switch
                self._client = client
                if not ready.done():
                    ready.set_result(None)
                waiting = [asyncio.ensure_future(event.wait()) for event in (self._closing, self.traffic.ended)]
                try:
                    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for each in waiting:
                        each.cancel()
                    await asyncio.wait(waiting)
        except Exception as error:  # noqa: BLE001 - whatever a server's end raises, it is that server's end
            if not ready.done():
                ready.set_exception(_innermost(error))
            self.traffic.end(str(_innermost(error))[:500])
        finally:
            self.traffic.end("it was ended")
            if not ready.done():
                ready.cancel()
            with suppress(asyncio.CancelledError, Exception):
                ready.exception()  # heard, also where nobody waits any more

    def _client_of(self) -> Client:
        info = types.Implementation(name="perdure", version=perdure.__version__)
        return Client(self._transport(self.traffic), mode="auto", client_info=info, cache=None)

    def _take(self, tools: list[types.Tool], listing: Listing) -> None:
        for tool in tools:
            if len(listing.tools) + len(listing.refused) >= TOOLS_MAX:
                raise ValueError(f"it lists more than {TOOLS_MAX} tools")
            try:
                found = definition(tool.model_dump(by_alias=True, mode="json", exclude_none=True))
            except NoToolError as error:
                listing.refused[tool.name[:80]] = str(error)
                continue
            if found.tool in listing.tools:
                listing.refused[found.tool] = "it is listed twice"
                continue
            listing.tools[found.tool] = found
        for name in listing.refused:
            listing.tools.pop(name, None)

    def _standing(self) -> Client:
        if self._client is None or self.ended:
            raise self._unreachable(self.traffic.fault or "it is not connected")
        return self._client

    def _why(self, error: BaseException) -> str:
        innermost = _innermost(error)
        return self.traffic.fault or f"{str(innermost)[:500] or type(innermost).__name__}"

    def _unreachable(self, cause: str) -> Unreachable:
        hint = f"Its standard error is in state/mcp/{self.server}.stderr; `perdure tools accept {self.server}` tries it"
        return Unreachable("reach", f"the MCP server {self.server}", cause, hint)

    def _no_reply(self, tool: str, cause: str) -> NoReply:
        return NoReply(
            "finish", f"{tool} of the MCP server {self.server}", cause, "What it did until then is not known"
        )


async def _unchecked(name: str, result: types.CallToolResult) -> None:
    """Instead of the SDK's check of a result against the server's own output schema: the pattern of a stranger can cost
    exponential time on the loop, and what a server has answered is an answer, whether it keeps its own promise or not."""


def _innermost(error: BaseException) -> BaseException:
    """The first real cause inside the groups that task groups raise."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
