"""A server behind a URL: the operator's headers and no others, secrets by name, bodies bounded, redirects not followed away."""

from __future__ import annotations

import contextlib
import gzip
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tests.daemon.mcp.outside import POLICY, accept_all, ended
from tests.daemon.stage import Stage, events

from perdure.daemon.mcp import traffic

TOOLS = [{"name": "whoami", "inputSchema": {"type": "object", "properties": {}}}]


class Handler(BaseHTTPRequestHandler):
    """The older protocol with plain JSON bodies; `server.mode` says what goes wrong."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append(dict(self.headers))
        if "id" not in request:
            self._say(202, b"")
            return
        match request["method"]:
            case "initialize":
                info = {"name": "web", "version": "1"}
                result = {"protocolVersion": "2025-06-18", "capabilities": {"tools": {}}, "serverInfo": info}
            case "tools/list":
                result = {"tools": TOOLS}
            case "tools/call" if self.server.mode == "redirect":
                self.send_response(307)
                self.send_header("Location", f"http://127.0.0.1:{self.server.elsewhere}/mcp")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            case "tools/call" if self.server.mode == "endless stream":
                self._stream()
                return
            case "tools/call":
                text = "x" * 5_000_000 if self.server.mode == "huge" else str(self.headers["Authorization"])
                result = {"content": [{"type": "text", "text": text}]}
            case _:
                body = {"jsonrpc": "2.0", "id": request["id"], "error": {"code": -32601, "message": "no"}}
                self._say(200, json.dumps(body).encode())
                return
        body = json.dumps({"jsonrpc": "2.0", "id": request["id"], "result": result}).encode()
        if self.server.mode == "gzip" and request["method"] == "tools/call":
            self._say(200, gzip.compress(body + b" " * 50_000_000, 1), encoding="gzip")
        else:
            self._say(200, body)

    def do_GET(self) -> None:
        self._say(405, b"")

    do_DELETE = do_GET  # noqa: N815 — the name that the standard library looks for

    def _stream(self) -> None:
        """Events that are none, for as long as somebody listens."""
        self.close_connection = True
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            for _ in range(20_000):
                self.wfile.write(b": " + b"x" * 1_000 + b"\n\n")
            return
        self.server.hung_up.set()

    def _say(self, status: int, body: bytes, encoding: str = "identity") -> None:
        with contextlib.suppress(ConnectionError):
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Content-Encoding", encoding)
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@contextlib.contextmanager
def serving(mode: str = "normal") -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.seen, server.mode, server.elsewhere = [], mode, 0
    server.hung_up = threading.Event()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


async def staged(directory: Path, server: ThreadingHTTPServer) -> Stage:
    stage = Stage(directory)
    stage.write(
        "perdure.toml",
        f"""
timezone = "UTC"
[memory]
embedding = "none"
[mcp.web]
url = "http://127.0.0.1:{server.server_port}/mcp"
headers = {{Authorization = {{secret = "WEB_SECRET", prefix = "Bearer "}}, X-Team = "ops"}}
message_bytes_max = "1MB"
timeout = "60s"
""",
    )
    stage.write("policies/outside.yaml", POLICY)
    await accept_all(stage, "web")
    stage.playbook("work", "\n  - {do: web__whoami, on_error: continue}\n", tools="web__whoami")
    return stage


@pytest.fixture(autouse=True)
def _secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEB_SECRET", "hunter2-hunter2")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # the environment's proxies are not ours


async def test_headers_carry_secrets_that_never_come_back(tmp_path: Path) -> None:
    with serving() as server:
        stage = await staged(tmp_path / "w", server)
        async with stage.runtime() as runtime:
            await stage.run(runtime, "work")
            (end,) = ended(runtime)
            assert end["result"] == {"text": "Bearer {secret: WEB_SECRET}"}
        assert all(seen["Authorization"] == "Bearer hunter2-hunter2" for seen in server.seen)
        assert all(seen["X-Team"] == "ops" for seen in server.seen)
    for path in (stage.directory / "state").rglob("*"):
        assert not path.is_file() or b"hunter2" not in path.read_bytes(), path


@pytest.mark.parametrize(("mode", "says"), [("huge", "message of more than 1000000 bytes"), ("gzip", "compressed")])
async def test_a_body_that_is_too_much_ends_the_connection(tmp_path: Path, mode: str, says: str) -> None:
    with serving() as server:
        stage = await staged(tmp_path / "w", server)
        server.mode = mode
        async with stage.runtime() as runtime:
            await stage.run(runtime, "work")
            (end,) = ended(runtime)
            assert end["status"] == "unknown"
            assert says in str(end["error"])
            assert events(runtime, "mcp.server-ended")
        assert {seen["accept-encoding"] for seen in server.seen} == {"identity"}


async def test_an_event_stream_without_end_ends_the_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traffic, "BYTES_MAX", 3_000_000)
    with serving() as server:
        stage = await staged(tmp_path / "w", server)
        server.mode = "endless stream"
        async with stage.runtime() as runtime:
            await stage.run(runtime, "work")
            (end,) = ended(runtime)
            assert end["status"] == "unknown"
            assert "more than 3000000 bytes in one call" in str(end["error"])
        assert server.hung_up.wait(timeout=60)


async def test_a_redirect_to_another_origin_gets_neither_call_nor_secret(tmp_path: Path) -> None:
    with serving() as server, serving() as other:
        stage = await staged(tmp_path / "w", server)
        server.mode, server.elsewhere = "redirect", other.server_port
        async with stage.runtime() as runtime:
            await stage.run(runtime, "work")
            assert ended(runtime)[0]["status"] in ("failed", "unknown")
        assert other.seen == []


async def test_without_its_secret_the_server_is_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving() as server:
        stage = await staged(tmp_path / "w", server)
        monkeypatch.delenv("WEB_SECRET")
        before = len(server.seen)
        async with stage.runtime() as runtime:
            await stage.run(runtime, "work")
            (end,) = ended(runtime)
            assert end["status"] == "failed"
            assert "WEB_SECRET" in str(end["error"])
        assert len(server.seen) == before
