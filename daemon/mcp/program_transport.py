"""A server that is a program: started by the launcher in its sandbox, spoken to over its pipes, ended with all it started."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import anyio
from mcp.shared.message import SessionMessage

from perdure.daemon.mcp.traffic import Streams, Traffic
from perdure.daemon.sandbox.programs import Orders, converse, hang_up, start_launcher, told_to
from perdure.daemon.sandbox.strays import end_strays
from perdure.daemon.secrets import redact

_SECONDS_TO_LEAVE: Final = 2.0  # after its input has closed, before it is killed
_SECONDS_TO_END: Final = 8.0
_READ_BYTES: Final = 65_536


class KeptStderr:
    """The end of what a server says on standard error: a file of at most twice `bytes_max`, secrets replaced."""

    def __init__(self, path: Path, bytes_max: int, secrets: Mapping[str, str]) -> None:
        self.path = path
        self._max, self._secrets = bytes_max, secrets
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)

    def add(self, text: str) -> None:
        """Append, and let go of the older half when there is too much."""
        data = redact(text, self._secrets).encode(errors="replace")[-self._max :]
        with contextlib.suppress(OSError):  # a full disk must not end the server; the ledger says so itself
            size = self.path.stat().st_size if self.path.exists() else 0  # another of us may have written since
            if size + len(data) > 2 * self._max:
                self.path.write_bytes(self.path.read_bytes()[-self._max :])
            handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            with os.fdopen(handle, "ab") as file:
                file.write(data)


@asynccontextmanager
async def program_transport(
    orders: Orders, traffic: Traffic, stderr: KeptStderr, *, state_dir: Path, mark: str, message_bytes_max: int
) -> AsyncGenerator[Streams, None]:
    """Start the program and yield the SDK's pair of streams. Leaving ends it and everything that it started."""
    ours, theirs = socket.socketpair()
    with ours:
        ours.setblocking(False)
        with theirs:
            process = await start_launcher(theirs, state_dir=state_dir, action=mark, limit=message_bytes_max)
        report = asyncio.ensure_future(converse(ours, told_to(orders, state_dir, mark)))
        arriving_in, arriving = anyio.create_memory_object_stream[SessionMessage | Exception](0)
        leaving, leaving_out = anyio.create_memory_object_stream[SessionMessage](0)
        try:
            async with arriving, leaving, leaving_out, anyio.create_task_group() as group:
                group.start_soon(_read, process, traffic, arriving_in, report, message_bytes_max)
                group.start_soon(_write, process, leaving_out)
                group.start_soon(_keep, process, stderr)
                try:
                    yield arriving, leaving
                finally:
                    group.cancel_scope.cancel()
        finally:
            arriving_in.close()
            with anyio.CancelScope(shield=True):
                await _end(process, ours, report, state_dir, mark)


async def _read(
    process: asyncio.subprocess.Process, traffic: Traffic, arriving: Any, report: asyncio.Future[Any], bytes_max: int
) -> None:
    assert process.stdout is not None
    try:
        async with arriving:
            while not traffic.ended.is_set():
                try:
                    line = await process.stdout.readuntil(b"\n")
                except asyncio.IncompleteReadError:
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(asyncio.shield(report), _SECONDS_TO_LEAVE)
                    traffic.end(_how(report))
                    return
                except asyncio.LimitOverrunError:
                    traffic.end(f"a message of more than {bytes_max} bytes")
                    return
                message = traffic.parse(line)
                if message is not None and traffic.passes(message):
                    await arriving.send(message)
    except (anyio.BrokenResourceError, anyio.ClosedResourceError):
        pass
    finally:
        traffic.end("the connection was closed")


def _how(report: asyncio.Future[Any]) -> str:
    told = report.result() if report.done() and not report.cancelled() else None
    if told is None:
        return "it closed its output"
    if "refused" in told:
        return f"it could not be started: {told['refused']}"
    return f"it was killed by signal {told['signal']}" if "signal" in told else f"it ended with exit {told.get('exit')}"


async def _write(process: asyncio.subprocess.Process, leaving: Any) -> None:
    assert process.stdin is not None
    with contextlib.suppress(ConnectionError, anyio.ClosedResourceError):  # the reader hears how it ended
        async for item in leaving:
            text = item.message.model_dump_json(by_alias=True, exclude_unset=True)
            process.stdin.write(text.encode() + b"\n")
            await process.stdin.drain()


async def _keep(process: asyncio.subprocess.Process, stderr: KeptStderr) -> None:
    """In whole lines, so that no secret is cut in two where a read ends."""
    assert process.stderr is not None
    begun = b""
    try:
        while part := await process.stderr.read(_READ_BYTES):
            lines, end, begun = (begun + part).rpartition(b"\n")
            if end:
                stderr.add((lines + end).decode(errors="replace"))
            if len(begun) > _READ_BYTES:
                stderr.add(begun.decode(errors="replace"))
                begun = b""
    finally:
        if begun:
            stderr.add(begun.decode(errors="replace"))


async def _end(
    process: asyncio.subprocess.Process, ours: socket.socket, report: asyncio.Future[Any], state_dir: Path, mark: str
) -> None:
    """Close its input and give it a moment to leave; then the launcher ends it and all its descendants."""
    assert process.stdin is not None
    with contextlib.suppress(ConnectionError):
        process.stdin.close()
    for pipe in (process.stdout, process.stderr):
        # What it still writes must not keep it from leaving; nobody reads it any more.
        assert pipe is not None
    drains = [asyncio.ensure_future(_drain(pipe)) for pipe in (process.stdout, process.stderr) if pipe is not None]
    await asyncio.wait([report], timeout=_SECONDS_TO_LEAVE)
    hang_up(ours)
    ending = asyncio.ensure_future(process.wait())
    await asyncio.wait([ending], timeout=_SECONDS_TO_END)
    if not ending.done():
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    await asyncio.to_thread(end_strays, state_dir, mark)
    for task in (*drains, report):
        task.cancel()
    await asyncio.wait([ending, report, *drains], timeout=_SECONDS_TO_END)
    with contextlib.suppress(ConnectionError):
        await process.stdin.wait_closed()


async def _drain(pipe: asyncio.StreamReader) -> None:
    with contextlib.suppress(RuntimeError, ConnectionError):
        while await pipe.read(_READ_BYTES):
            pass
