"""What a server sends, watched: floods and nonsense end the connection, and what it asks of us is counted and refused.

Streams carry the SDK's `SessionMessage`; a message that is not passed on never reaches the SDK."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final

import anyio
import mcp_types
from mcp.shared.message import SessionMessage

from perdure.state.events import JSON

MESSAGES_MAX: Final = 10_000  # since the last call began; a server that sends more is ended
BYTES_MAX: Final = 64_000_000
NONSENSE_MAX: Final = 100  # lines that are no message: some servers greet on standard output
REQUESTS_MAX: Final = 100

_CHANGED: Final = "notifications/tools/list_changed"
_LOGGED: Final = "notifications/message"
_DROPPED: Final = frozenset({"notifications/progress", _LOGGED})

Streams = tuple[Any, Any]  # the SDK's own name for its pair of streams is private


class Traffic:
    """The messages of one connection. `fault` is why it must end, once that is known; then `ended` is set."""

    def __init__(
        self, *, refused: Callable[[str, JSON], None], changed: Callable[[], None], logged: Callable[[str], None]
    ) -> None:
        self.ended = asyncio.Event()
        self.fault: str | None = None
        self._refused, self._changed, self._logged = refused, changed, logged
        self._nonsense = 0
        self.begin_call()

    def begin_call(self) -> None:
        """Count anew: a call may bring its own messages."""
        self._messages = self._bytes = self._requests = 0

    def end(self, why: str) -> None:
        """The connection is over; the first reason counts."""
        self.fault = self.fault or why
        self.ended.set()

    def parse(self, line: bytes) -> SessionMessage | None:
        """The message in a line, or None where it is none."""
        self.received(len(line))
        self._count_message()
        try:
            message = mcp_types.jsonrpc_message_adapter.validate_json(line, by_name=False)
        except (ValueError, RecursionError):
            if line.strip():
                self._nonsense += 1
            if self._nonsense > NONSENSE_MAX:
                self.end(f"more than {NONSENSE_MAX} lines that are no message of the protocol")
            return None
        return SessionMessage(message)

    def passes(self, item: SessionMessage | Exception) -> bool:
        """Whether the SDK shall see this."""
        if isinstance(item, Exception):
            return False
        message = item.message
        if isinstance(message, mcp_types.JSONRPCRequest):
            if message.method != "ping":
                self._requests += 1
                self._refused(message.method, message.params)
            if self._requests > REQUESTS_MAX:
                self.end(f"more than {REQUESTS_MAX} requests in one call")
        elif isinstance(message, mcp_types.JSONRPCNotification):
            if message.method == _CHANGED:
                self._changed()
            elif message.method == _LOGGED and message.params is not None:
                self._logged(str(message.params.get("data"))[:1_000])
            return message.method not in _DROPPED
        return True

    def received(self, size: int) -> None:
        """So many bytes have come, whatever they may mean."""
        self._bytes += size
        if self._bytes > BYTES_MAX:
            self.end(f"more than {BYTES_MAX} bytes in one call")

    def _count_message(self) -> None:
        self._messages += 1
        if self._messages > MESSAGES_MAX:
            self.end(f"more than {MESSAGES_MAX} messages in one call")

    @asynccontextmanager
    async def watching(self, transport: AbstractAsyncContextManager[Streams]) -> AsyncGenerator[Streams, None]:
        """The same transport with everything that arrives taken through here."""
        give, take = anyio.create_memory_object_stream[SessionMessage | Exception](0)

        async def pump(arriving: Any) -> None:
            async with give:
                async for item in arriving:
                    self._count_message()
                    if self.ended.is_set():
                        return
                    if self.passes(item):
                        await give.send(item)

        async with transport as (arriving, leaving), take, anyio.create_task_group() as group:
            group.start_soon(self._until_broken, pump, arriving)
            try:
                yield take, leaving
            finally:
                group.cancel_scope.cancel()

    async def _until_broken(self, pump: Callable[[Any], Any], arriving: Any) -> None:
        try:
            await pump(arriving)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            pass
        finally:
            self.end("the connection was closed")
