"""Running one program through the launcher: bounded in time and output, ended with everything that it started."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import perdure
from perdure.daemon.sandbox import landlock, seccomp
from perdure.daemon.sandbox.grants import Grants
from perdure.daemon.sandbox.strays import end_strays, marks

_BOOTSTRAP = (
    "import sys; sys.path.append(sys.argv.pop(1)); "
    "from perdure.daemon.sandbox.launcher import main; main(int(sys.argv[1]))"
)
_READ_BYTES = 65_536
_FLOOD_BYTES = 64 * 1024**2  # so much output, and the program is ended: reading more would starve the daemon
_SECONDS_TO_END = 8.0
_OPEN_FILES_MAX = 4_096
_FILE_BYTES_MAX = 4 * 1024**3
_PROCESSES_MAX = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """What to run and how. `program` is the resolved file; `env` is the whole environment but for the marks. `grants` None
    runs it unconfined (limits in time, memory and output still hold)."""

    program: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: str
    grants: Grants | None
    network: bool
    stdin: bytes
    seconds_max: float
    output_bytes_max: int
    memory_bytes_max: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """What a program wrote: `text` is the beginning and the end where `total` bytes were too many."""

    text: str
    total: int
    truncated: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a program ended: exactly one of `exit`, `signal`, `refused` (it never started) and `cut` (why we ended it)."""

    exit: int | None = None
    signal: int | None = None
    refused: str | None = None
    cut: str | None = None
    stdout: Output
    stderr: Output


def confinement_available(*, network: bool) -> bool:
    """Whether this kernel can confine a program as promised: files by Landlock, and no network unless `network`."""
    return landlock.abi() >= 1 and (network or seccomp.available())


async def run_program(orders: Orders, *, state_dir: Path, action: str) -> Ended:
    """Run it to its end, or to its bounds. When cancelled, ends it first."""
    ours, theirs = socket.socketpair()
    with ours:
        ours.setblocking(False)
        with theirs:
            process = await start_launcher(theirs, state_dir=state_dir, action=action, limit=_READ_BYTES)
        work = asyncio.ensure_future(_attend(process, ours, orders, state_dir, action))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            hang_up(ours)
            await asyncio.wait([work], timeout=_SECONDS_TO_END)
            raise
        finally:
            work.cancel()
            await asyncio.wait([work])


async def start_launcher(
    theirs: socket.socket, *, state_dir: Path, action: str, limit: int
) -> asyncio.subprocess.Process:
    """The launcher, waiting for its orders on the other end of `theirs`; `limit` is that of its pipes' readers."""
    arguments = ("-I", "-S", "-c", _BOOTSTRAP, str(Path(perdure.__file__).parent.parent), str(theirs.fileno()))
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=marks(state_dir, action),
        cwd="/",
        pass_fds=(theirs.fileno(),),
        start_new_session=True,
        limit=limit,
    )


async def _attend(
    process: asyncio.subprocess.Process, ours: socket.socket, orders: Orders, state_dir: Path, action: str
) -> Ended:
    assert process.stdout is not None
    assert process.stderr is not None
    flood = asyncio.Event()
    stdout, stderr = _Kept(orders.output_bytes_max, flood), _Kept(orders.output_bytes_max, flood)
    report = asyncio.ensure_future(converse(ours, told_to(orders, state_dir, action)))
    flooded = asyncio.ensure_future(flood.wait())
    pipes = asyncio.gather(stdout.fill(process.stdout), stderr.fill(process.stderr), _feed(process, orders.stdin))
    try:
        await asyncio.wait([report, flooded], timeout=orders.seconds_max, return_when=asyncio.FIRST_COMPLETED)
        cut = None
        if not report.done():
            cut = (
                f"more than {_FLOOD_BYTES} bytes of output"
                if flood.is_set()
                else f"no end after {orders.seconds_max:g} s"
            )
            hang_up(ours)
        elif not report.result():
            cut = "its launcher was killed"
            await asyncio.to_thread(end_strays, state_dir, action)
        ending = asyncio.gather(report, pipes, process.wait())
        try:
            async with asyncio.timeout(_SECONDS_TO_END):
                await ending
        except TimeoutError:
            await asyncio.to_thread(end_strays, state_dir, action)
            cut = cut or "its processes did not end"
        told = report.result() if report.done() and not report.cancelled() else {}
        return Ended(
            exit=told.get("exit") if cut is None else None,
            signal=told.get("signal") if cut is None else None,
            refused=told.get("refused") if cut is None else None,
            cut=cut,
            stdout=stdout.output(),
            stderr=stderr.output(),
        )
    finally:
        flooded.cancel()
        report.cancel()
        pipes.cancel()
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        await asyncio.gather(report, pipes, flooded, return_exceptions=True)


def hang_up(ours: socket.socket) -> None:
    """Tell the launcher to end everything."""
    with contextlib.suppress(OSError):
        ours.shutdown(socket.SHUT_WR)


def told_to(orders: Orders, state_dir: Path, action: str) -> bytes:
    """The orders as the launcher reads them."""
    limits = {
        "DATA": orders.memory_bytes_max,
        "CPU": int(orders.seconds_max) + 1,
        "FSIZE": _FILE_BYTES_MAX,
        "NOFILE": _OPEN_FILES_MAX,
        "CORE": 0,
    }
    if os.getuid() != 0:  # counted over all processes of the user; the kernel does not hold root to it
        limits["NPROC"] = _processes_of(os.getuid()) + _PROCESSES_MAX
    told = {
        "program": orders.program,
        "argv": orders.argv,
        "env": {**orders.env, **marks(state_dir, action)},
        "cwd": orders.cwd,
        "grants": orders.grants,
        "network": orders.network,
        "daemon": os.getpid(),
        "limits": {name: value for name, value in limits.items() if hasattr(resource, f"RLIMIT_{name}")},
    }
    return json.dumps(told).encode()


def _processes_of(uid: int) -> int:
    count = 0
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            with contextlib.suppress(OSError):
                count += process.stat().st_uid == uid
    return count


async def converse(ours: socket.socket, told: bytes) -> dict[str, Any]:
    """Give the launcher its orders; its report once the program has ended (empty: the launcher itself was killed)."""
    loop = asyncio.get_running_loop()
    parts = bytearray()
    with contextlib.suppress(ConnectionError, BrokenPipeError):
        await loop.sock_sendall(ours, len(told).to_bytes(8, "big") + told)
        while part := await loop.sock_recv(ours, _READ_BYTES):
            parts += part
    report: dict[str, Any] = json.loads(parts) if parts else {}
    return report


async def _feed(process: asyncio.subprocess.Process, data: bytes) -> None:
    assert process.stdin is not None
    with contextlib.suppress(ConnectionError, BrokenPipeError):
        process.stdin.write(data)
        await process.stdin.drain()
        process.stdin.close()
        await process.stdin.wait_closed()


class _Kept:
    """The first and the last half of a stream, within `bytes_max`."""

    def __init__(self, bytes_max: int, flood: asyncio.Event) -> None:
        self._half = bytes_max // 2
        self._flood = flood
        self._head, self._tail = bytearray(), bytearray()
        self._total = 0

    async def fill(self, stream: asyncio.StreamReader) -> None:
        while part := await stream.read(_READ_BYTES):
            self._total += len(part)
            room = self._half - len(self._head)
            self._head += part[:room]
            self._tail += part[room:]
            if len(self._tail) > self._half + _READ_BYTES:
                del self._tail[: -self._half]
            if self._total > _FLOOD_BYTES:
                self._flood.set()

    def output(self) -> Output:
        left_out = self._total - len(self._head) - min(len(self._tail), self._half)
        tail = bytes(self._tail[-self._half :]) if self._half else b""
        if left_out <= 0:
            return Output(text=(bytes(self._head) + tail).decode(errors="replace"), total=self._total, truncated=False)
        text = (
            f"{self._head.decode(errors='replace')}\n[… {left_out} bytes left out …]\n{tail.decode(errors='replace')}"
        )
        return Output(text=text, total=self._total, truncated=True)
