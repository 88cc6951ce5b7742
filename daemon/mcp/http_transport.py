"""A server behind a URL: streamable HTTP with our own headers, bounds on every body, and no environment's proxies."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager

import httpx2
from mcp.client.streamable_http import streamable_http_client

from perdure.daemon.mcp.settings import McpServer
from perdure.daemon.mcp.traffic import Streams, Traffic
from perdure.daemon.secrets import credential


@asynccontextmanager
async def http_transport(settings: McpServer, traffic: Traffic) -> AsyncGenerator[Streams, None]:
    """Yield the SDK's pair of streams. Raises PerdureError where a secret is missing."""
    assert settings.url is not None
    bounded = _Bounded(httpx2.AsyncHTTPTransport(), settings.message_bytes_max, traffic)
    timeout = httpx2.Timeout(settings.start_timeout, read=settings.timeout + 5.0)
    async with httpx2.AsyncClient(
        headers={"accept-encoding": "identity", **header_values(settings)},
        timeout=timeout,
        transport=bounded,
        trust_env=False,
    ) as client:
        inner = streamable_http_client(settings.url, http_client=client, max_sse_event_size=settings.message_bytes_max)
        async with traffic.watching(inner) as streams:
            yield streams


def header_values(settings: McpServer) -> Mapping[str, str]:
    """The operator's headers, secrets filled in."""
    return {
        name: value if isinstance(value, str) else value.prefix + credential(value.secret)
        for name, value in settings.headers.items()
    }


class _Bounded(httpx2.AsyncBaseTransport):
    """Ends the connection where a body is compressed (a small one could be any size) or too long: longer than one message, or,
    for an event stream, than all that may come in one call."""

    def __init__(self, inner: httpx2.AsyncHTTPTransport, bytes_max: int, traffic: Traffic) -> None:
        self._inner, self._max, self._traffic = inner, bytes_max, traffic

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        response = await self._inner.handle_async_request(request)
        if response.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
            await response.aclose()
            self._traffic.end("a compressed answer, which was not asked for")
            raise httpx2.ReadError("the answer is compressed")
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        events = response.headers.get("content-type", "").startswith("text/event-stream")
        response.stream = _BoundedStream(response.stream, None if events else self._max, self._traffic)
        return response

    async def aclose(self) -> None:
        await self._inner.aclose()


class _BoundedStream(httpx2.AsyncByteStream):
    """`bytes_max` is None for an event stream, which has no end of its own."""

    def __init__(self, inner: httpx2.AsyncByteStream, bytes_max: int | None, traffic: Traffic) -> None:
        self._inner, self._max, self._traffic = inner, bytes_max, traffic

    async def __aiter__(self) -> AsyncIterator[bytes]:
        total = 0
        async for part in self._inner:
            total += len(part)
            self._traffic.received(len(part))
            if self._max is not None and total > self._max:
                self._traffic.end(f"a message of more than {self._max} bytes")
            if self._traffic.ended.is_set():
                raise httpx2.ReadError("the answer is too long")
            yield part

    async def aclose(self) -> None:
        await self._inner.aclose()
