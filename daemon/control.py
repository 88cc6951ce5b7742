"""The control socket: how the CLI asks the running daemon, and how it asks the ledger itself where no daemon runs.

A request carries the secret of `state/control.token`, which no tool process can read, and the kernel says who asks.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import os
import secrets
import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from perdure.errors import PerdureError
from perdure.state.events import JSON, Event

REQUEST_BYTES_MAX = 1_000_000
TOKEN_BYTES = 32
ANSWER_SECONDS_MAX = 30.0
STATUS_SECONDS_MAX = 5.0
LONG = frozenset(
    {"session.run", "session.retry", "undo", "tools.discover", "context.preview", "reload"}
)  # take their time
SOCKET_NAME = "control.sock"
TOKEN_NAME = "control.token"  # noqa: S105 - a file's name, not a secret

Operate = Callable[[str, dict[str, Any], int], Awaitable[JSON]]


class NoDaemon(PerdureError):
    """Nobody listens on the control socket."""


class Silent(PerdureError):
    """The daemon is there and says nothing."""


class Remote(PerdureError):
    """The daemon's own refusal, with the exit code it asked for."""

    def __init__(self, operation: str, object: str, cause: str, hint: str, exit_code: int) -> None:
        super().__init__(operation, object, cause, hint)
        self.exit_code = exit_code


def token(state_dir: Path) -> str:
    """The secret that answers need; made on first use, readable by the owner only. One that a crash or a full disk cut short
    is no secret: it is made anew."""
    path = state_dir / TOKEN_NAME
    with suppress(FileNotFoundError):
        held = path.read_text(errors="replace").strip()
        if len(held) == 2 * TOKEN_BYTES:
            return held
    made = secrets.token_hex(TOKEN_BYTES)
    unborn = path.with_name(f"{TOKEN_NAME}.new")
    unborn.unlink(missing_ok=True)
    handle = os.open(unborn, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    with os.fdopen(handle, "w") as file:
        file.write(made)
        file.flush()
        os.fsync(file.fileno())
    unborn.rename(path)
    return made


class ControlServer:
    """Serves requests, each one line of JSON, answered by one line."""

    def __init__(self, state_dir: Path, operate: Operate) -> None:
        self._path = state_dir / SOCKET_NAME
        self._token = token(state_dir)
        self._operate = operate
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen. A socket file that a crash left is replaced: the workspace lock says that nobody else listens."""
        self._path.unlink(missing_ok=True)
        before = os.umask(0o177)
        try:
            with _short(self._path) as address:
                self._server = await asyncio.start_unix_server(self._serve, address, limit=REQUEST_BYTES_MAX)
        finally:
            os.umask(before)

    async def stop(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()
        self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            reply = await self._reply(reader, writer)
            writer.write(json.dumps(reply).encode() + b"\n")
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _reply(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> dict[str, JSON]:
        try:
            request = json.loads(await reader.readline())
            given = str(request["token"])
            operation, params = str(request["operation"]), dict(request["params"])
        except (ValueError, KeyError, TypeError):
            return _refusal("read", "the request", "it is not one line of JSON with token, operation and params")
        if not hmac.compare_digest(given.encode(), self._token.encode()):
            return _refusal("accept", "the request", "its token is not that of state/control.token")
        try:
            return {"ok": True, "result": await self._operate(operation, params, _peer_uid(writer))}
        except PerdureError as error:
            return {
                "ok": False,
                "error": [error.operation, error.object, error.cause, error.hint],
                "exit_code": error.exit_code,
            }
        except TypeError as error:
            return _refusal("do", operation, f"its parameters do not fit: {error}")


def ask(state_dir: Path, operation: str, params: dict[str, Any]) -> Any:
    """Ask the running daemon. Raises NoDaemon where none listens, Silent where it hangs, and the daemon's own refusal as
    Remote."""
    seconds_max = None if operation in LONG else STATUS_SECONDS_MAX if operation == "status" else ANSWER_SECONDS_MAX
    try:
        secret = (state_dir / TOKEN_NAME).read_text().strip()
        with socket.socket(socket.AF_UNIX) as connection, _short(state_dir / SOCKET_NAME) as address:
            connection.settimeout(seconds_max)
            connection.connect(address)
            request = {"token": secret, "operation": operation, "params": params}
            connection.sendall(json.dumps(request).encode() + b"\n")
            with connection.makefile("rb") as answers:
                line = answers.readline()
    except PermissionError as error:
        hint = "Run the command as the daemon's user, for example with sudo -u perdure"
        raise PerdureError("reach", "the daemon", f"no permission: {error.filename or state_dir}", hint) from error
    except TimeoutError as error:
        hint = "`perdure doctor` says whether it hangs, and how to end it. It may still do what was asked"
        raise Silent("reach", "the daemon", f"it does not answer within {seconds_max:g} seconds", hint) from error
    except (FileNotFoundError, ConnectionError) as error:
        raise NoDaemon("reach", "the daemon", "none is running here", "Start it with `perdure run`") from error
    if not line:
        raise PerdureError("reach", "the daemon", "it stopped before it answered", "See `perdure status` and its log")
    reply = json.loads(line)
    if not reply["ok"]:
        operation_said, about, cause, hint = reply["error"]
        raise Remote(operation_said, about, cause, hint, reply["exit_code"])
    return reply["result"]


def perform(
    workspace: Path, operation: str, *, on_event: Callable[[tuple[Event, ...]], None] | None = None, **params: Any
) -> Any:
    """Do what a person asks: through the running daemon, or, where none runs, under the workspace's lock in this process;
    `on_event` then sees what is written."""
    from perdure.daemon.config import load_config
    from perdure.daemon.service import operate_alone
    from perdure.state.ownership import holder

    config = load_config(workspace)
    try:
        return ask(config.state_dir, operation, params)
    except NoDaemon as error:
        if (pid := holder(config.state_dir)) is not None:
            cause = f"process {pid} owns this workspace and takes no requests"
            hint = "It starts or stops, or another command is at work: repeat this in a moment, or ask `perdure doctor`"
            raise PerdureError("do", operation, cause, hint) from error
        return asyncio.run(operate_alone(workspace, operation, params, on_event=on_event))


def _peer_uid(writer: asyncio.StreamWriter) -> int:
    peer = writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", peer)[1])


def _refusal(operation: str, about: str, cause: str) -> dict[str, JSON]:
    return {
        "ok": False,
        "error": [operation, about, cause, "Use the perdure command of the same version"],
        "exit_code": 1,
    }


class _short:  # noqa: N801 - used like a function
    """A socket address that fits into 107 bytes, however deep the state directory lies: by way of its descriptor."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._directory = -1

    def __enter__(self) -> str:
        if len(os.fsencode(self._path)) < 100:
            return str(self._path)
        self._directory = os.open(self._path.parent, os.O_PATH | os.O_DIRECTORY)
        return f"/proc/self/fd/{self._directory}/{self._path.name}"

    def __exit__(self, *_: object) -> None:
        if self._directory >= 0:
            os.close(self._directory)
