"""A real HTTP server on loopback that speaks the OpenAI chat format and answers as its script says."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[[BaseHTTPRequestHandler, dict[str, Any]], None]


class ScriptedServer(ThreadingHTTPServer):
    """Gives the answers of `script` in order, the last one again and again; keeps what it was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script: list[Answer] = []
        self.asked: list[dict[str, Any]] = []
        self.headers_seen: list[dict[str, str]] = []
        self.released = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up early is part of the script."""


class _Handler(BaseHTTPRequestHandler):
    server: ScriptedServer
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.asked.append(body)
        self.server.headers_seen.append({name.lower(): value for name, value in self.headers.items()})
        script = self.server.script
        answer = script.pop(0) if len(script) > 1 else script[0]
        answer(self, body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def serving() -> Iterator[ScriptedServer]:
    """A server that runs until the block ends."""
    server = ScriptedServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        server.server_close()
        thread.join()


def raw(status: int, body: bytes, **headers: str) -> Answer:
    """An answer with exactly this body."""

    def answer(handler: BaseHTTPRequestHandler, _: dict[str, Any]) -> None:
        handler.send_response(status)
        for name, value in {"content-type": "application/json", "content-length": str(len(body)), **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def message(
    content: Any = None, calls: Any = None, *, finish: str = "stop", usage: Any = "told", **parts: Any
) -> Answer:
    """A chat completion; `calls` are (name, arguments as text) or whole call objects."""
    wire = [
        {"id": f"c{n}", "type": "function", "function": {"name": call[0], "arguments": call[1]}}
        if isinstance(call, tuple)
        else call
        for n, call in enumerate(calls or [])
    ]
    reply: dict[str, Any] = {"role": "assistant", "content": content}
    if calls is not None:
        reply["tool_calls"] = wire
    body = {
        "id": "x",
        "object": "chat.completion",
        "created": 1,
        "model": "scripted",
        "choices": [{"index": 0, "message": reply, "finish_reason": finish}],
        "usage": {"prompt_tokens": 300, "completion_tokens": 20, "total_tokens": 320} if usage == "told" else usage,
        **parts,
    }
    return raw(200, json.dumps(body).encode())


def silence(handler: BaseHTTPRequestHandler, _: dict[str, Any]) -> None:
    """No answer until the test is over."""
    handler.server.released.wait()  # type: ignore[attr-defined]


def endless(handler: BaseHTTPRequestHandler, _: dict[str, Any]) -> None:
    """An answer that never ends."""
    handler.send_response(200)
    handler.send_header("content-type", "application/json")
    handler.send_header("transfer-encoding", "chunked")
    handler.end_headers()
    chunk = b" " * 65_536
    while True:
        handler.wfile.write(b"10000\r\n" + chunk + b"\r\n")


def hang_up(handler: BaseHTTPRequestHandler, _: dict[str, Any]) -> None:
    """The connection breaks in the middle of the answer."""
    handler.send_response(200)
    handler.send_header("content-length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"id": "x", "choi')
    handler.wfile.flush()
    handler.close_connection = True
    handler.connection.close()


def answers(*calls: tuple[str, str]) -> Answer:
    """A chat completion with an answer for each call, as a server gives that knows `n`; the prompt is counted once."""
    choices = [
        {
            "index": number,
            "message": {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"id": f"c{number}", "type": "function", "function": {"name": name, "arguments": arguments}}
                ],
            },
            "finish_reason": "stop",
        }
        for number, (name, arguments) in enumerate(calls)
    ]
    tokens = 20 * len(calls)
    usage = {"prompt_tokens": 300, "completion_tokens": tokens, "total_tokens": 300 + tokens}
    return message(choices=choices, usage=usage)
