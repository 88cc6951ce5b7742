"""http_request against real servers on loopback."""

import asyncio
import contextlib
import gzip
import http.server
import json
import shutil
import socket
import ssl
import subprocess
import threading

import pytest

from perdure.daemon.tools.addresses import is_public, parsed, pin
from perdure.daemon.tools.model import ToolInterrupted, ToolRefused


class Server(http.server.BaseHTTPRequestHandler):
    """Answers by path and remembers what it was asked."""

    protocol_version = "HTTP/1.1"

    def answer(self):
        length = int(self.headers.get("Content-Length", 0))
        self.server.seen.append((self.command, self.path, dict(self.headers), self.rfile.read(length)))
        status, headers, body = self.server.answers.get(self.path, (200, {"Content-Type": "text/plain"}, b"hello"))
        if body is None:  # never answers
            self.server.released.wait(30)
            self.close_connection = True
            return
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            with contextlib.suppress(ConnectionError):  # the client may have had enough
                self.wfile.write(body)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = answer  # noqa: N815 - the names http.server calls

    def log_message(self, *_):
        pass


@pytest.fixture
def make_server():
    servers = []

    def make(context=None):
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
        server.daemon_threads = True
        server.seen, server.answers, server.released = [], {}, threading.Event()
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        server.url = f"http{'s' if context else ''}://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return server

    yield make
    for server in servers:
        server.released.set()
        server.shutdown()
        server.server_close()


@pytest.fixture
def server(make_server):
    return make_server()


async def test_a_get_is_a_read_and_returns_status_and_text(workspace, server):
    prepared = workspace.prepare("http_request", url=f"{server.url}/a?b=c#d")
    assert (prepared.effect, prepared.method, prepared.url) == ("read", "GET", f"{server.url}/a?b=c")
    # policy files' own tests take it from the schema, and must decide as the daemon does
    assert prepared.spec.args_schema["properties"]["method"]["default"] == prepared.method
    result = await workspace.tools["http_request"].run(prepared, workspace.call())
    assert result.ok
    assert result.value["status"] == 200
    assert result.value["text"] == "hello"
    assert result.value["address"] == "127.0.0.1"
    assert result.value["private"] is True
    command, path, headers, _ = server.seen[0]
    assert (command, path) == ("GET", "/a?b=c")
    assert "Idempotency-Key" not in headers
    assert headers["Host"] == server.url.removeprefix("http://")


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
async def test_every_other_method_is_once_and_carries_the_action_as_its_key(workspace, server, method):
    prepared = workspace.prepare("http_request", url=f"{server.url}/x", method=method, json={"a": [1, "ü"]})
    assert prepared.effect == "once"
    assert (await workspace.tools["http_request"].run(prepared, workspace.call("ACT7"))).ok
    _, _, headers, body = server.seen[0]
    assert headers["Idempotency-Key"] == "ACT7"
    assert json.loads(body) == {"a": [1, "ü"]}


async def test_json_comes_back_parsed_and_binary_as_base64(workspace, server):
    server.answers["/json"] = (200, {"Content-Type": "application/json"}, b'{"a": 1}')
    server.answers["/binary"] = (200, {}, b"\0\1")
    server.answers["/charset"] = (200, {"Content-Type": "text/plain; charset=no-such"}, b"a")
    assert (await workspace.do("http_request", url=f"{server.url}/json")).value["json"] == {"a": 1}
    assert (await workspace.do("http_request", url=f"{server.url}/binary")).value["base64"] == "AAE="
    assert (await workspace.do("http_request", url=f"{server.url}/charset")).value["text"] == "a"


async def test_an_error_status_is_a_failure_with_its_body(workspace, server):
    server.answers["/gone"] = (410, {}, b"no more")
    result = await workspace.do("http_request", url=f"{server.url}/gone")
    assert not result.ok
    assert "410" in result.error
    assert result.value["text"] == "no more"


async def test_bytes_are_bounded(make_workspace, server):
    workspace = make_workspace("http = {bytes_max = 1000}")
    server.answers["/big"] = (200, {}, b"x" * 5_000_000)
    result = await workspace.do("http_request", url=f"{server.url}/big")
    assert result.truncated
    assert len(result.value["text"]) == 1000


async def test_a_compressed_bomb_is_bounded_too(make_workspace, server):
    workspace = make_workspace("http = {bytes_max = 1000}")
    server.answers["/bomb"] = (200, {"Content-Encoding": "gzip"}, gzip.compress(b"\n" * 50_000_000))
    result = await workspace.do("http_request", url=f"{server.url}/bomb")
    assert len(result.value["text"]) == 1000


async def test_redirects_are_followed_on_the_same_host_only(workspace, server, make_server):
    other = make_server()
    server.answers["/here"] = (302, {"Location": "/there"}, b"")
    server.answers["/away"] = (302, {"Location": f"{other.url}/secret"}, b"")
    server.answers["/round"] = (302, {"Location": "/round"}, b"")
    assert (await workspace.do("http_request", url=f"{server.url}/here")).value["url"] == f"{server.url}/there"
    away = await workspace.do("http_request", url=f"{server.url}/away")
    assert not away.ok
    assert "another host" in away.error
    assert other.seen == []
    assert "more than 5" in (await workspace.do("http_request", url=f"{server.url}/round")).error
    posted = await workspace.do("http_request", url=f"{server.url}/here", method="POST", body="x")
    assert posted.value["status"] == 302


async def test_no_answer_to_a_read_is_a_failure_and_to_a_post_is_unknown(workspace, server):
    server.answers["/slow"] = (200, {}, None)
    result = await workspace.do("http_request", url=f"{server.url}/slow", seconds=0.3)
    assert not result.ok
    assert "no answer in time" in result.error
    with pytest.raises(ToolInterrupted, match="may have acted"):
        await workspace.do("http_request", url=f"{server.url}/slow", method="POST", body="x", seconds=0.3)


async def test_a_connection_that_was_never_made_is_a_failure_even_for_a_post(workspace):
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    result = await workspace.do("http_request", url=f"http://127.0.0.1:{port}/", method="POST", body="x")
    assert not result.ok


async def test_a_connection_lost_after_the_request_is_unknown(workspace):
    async def slam(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.close()

    listening = await asyncio.start_server(slam, "127.0.0.1", 0)
    async with listening:
        url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/"
        with pytest.raises(ToolInterrupted):
            await workspace.do("http_request", url=url, method="POST", body="x")
        assert not (await workspace.do("http_request", url=url)).ok


SECRET = 'http = {secrets = {HOOK_KEY = ["127.0.0.1"]}}'


async def test_a_secret_is_filled_in_only_when_the_request_is_sent(make_workspace, server, monkeypatch):
    monkeypatch.setenv("HOOK_KEY", "hook-secret-1")
    workspace = make_workspace(SECRET)
    args = {
        "url": f"{server.url}/x",
        "method": "POST",
        "headers": {"Authorization": {"secret": "HOOK_KEY", "prefix": "Bearer "}},
        "json": {"key": {"secret": "HOOK_KEY"}},
    }
    prepared = workspace.prepare("http_request", **args)
    assert "hook-secret-1" not in repr(prepared)
    result = await workspace.tools["http_request"].run(prepared, workspace.call())
    assert "hook-secret-1" not in repr(result)
    _, _, headers, body = server.seen[0]
    assert headers["Authorization"] == "Bearer hook-secret-1"
    assert json.loads(body) == {"key": "hook-secret-1"}


def test_a_secret_goes_only_where_the_configuration_says(make_workspace, monkeypatch):
    monkeypatch.setenv("HOOK_KEY", "hook-secret-1")
    workspace = make_workspace(SECRET)
    for url, name, said in (
        ("https://example.org/", "HOOK_KEY", "it may go to 127.0.0.1"),
        ("http://127.0.0.1/", "OTHER", "it may go to no host"),
    ):
        with pytest.raises(ToolRefused, match=said):
            workspace.prepare("http_request", url=url, headers={"X": {"secret": name}})
    with pytest.raises(ToolRefused, match="HOOK_KEY"):
        workspace.prepare("http_request", url="http://127.0.0.1/?k=hook-secret-1")


def test_a_secret_does_not_go_over_a_connection_in_the_clear(make_workspace):
    workspace = make_workspace('http = {secrets = {HOOK_KEY = ["example.org"]}}')
    with pytest.raises(ToolRefused, match="not be encrypted"):
        workspace.prepare("http_request", url="http://example.org/", headers={"X": {"secret": "HOOK_KEY"}})


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.org/", "file:///etc/passwd", "//example.org", "example.org", "http://", "http:///x", "http://user@example.org/", "http://a:b@example.org/",
        "http://example.org\\@evil.org/", "http://exa mple.org/", "http://example.org:99999/", "http://[::1", "http://example.org./",
        "http://ex\u00e4mple.org/", "http://example.org/\r\nX: y", "\thttp://example.org", "http://example.org/\0", "javascript:alert(1)", "http://[fe80::1%25eth0]/",
    ],
)  # fmt: skip
def test_urls_that_two_readers_could_read_differently_are_refused(workspace, url):
    with pytest.raises(ToolRefused):
        workspace.prepare("http_request", url=url)


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.org"},
        {"content-length": "3"},
        {"X": "a\r\nY: b"},
        {"X Y": "a"},
        {"Idempotency-Key": "mine"},
        {"X": 3},
        {"X": {"secret": "A", "more": 1}},
    ],
)
def test_headers_that_would_change_the_request_are_refused(workspace, headers):
    with pytest.raises(ToolRefused):
        workspace.prepare("http_request", url="http://127.0.0.1/", headers=headers)


async def test_a_name_that_resolves_to_the_inside_is_refused_unless_named(workspace):
    name = socket.gethostname()
    try:
        addresses = {entry[4][0] for entry in socket.getaddrinfo(name, 80)}
    except OSError:
        pytest.skip("this machine does not resolve its own name")
    if any(is_public(str(address)) for address in addresses):
        pytest.skip("this machine's own name has a public address")
    with pytest.raises(ToolRefused, match="private_hosts"):
        await pin(parsed(f"http://{name}/"), ())
    assert (await pin(parsed(f"http://{name}/"), (name,))).private
    assert (await pin(parsed("http://localhost/"), ())).private


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.215.14", True), ("10.0.0.1", False), ("127.0.0.1", False), ("169.254.169.254", False), ("100.64.0.1", False), ("0.0.0.0", False),
        ("::1", False), ("::ffff:10.0.0.1", False), ("64:ff9b::a00:1", False), ("2002:a00:1::", False), ("fe80::1%eth0", False), ("fd00::1", False),
        ("2606:2800:21f:cb07:6820:80da:af6b:8b2c", True), ("224.0.0.1", False), ("255.255.255.255", False),
    ],
)  # fmt: skip
def test_what_counts_as_public(address, public):
    assert is_public(address) is public


@pytest.fixture
def certificate(tmp_path):
    """A certificate for localhost and its key."""
    if not shutil.which("openssl"):
        pytest.skip("openssl makes the certificate")
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    name = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    new = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    subprocess.run([*new, *name, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    return certificate, key


async def test_over_tls_the_certificate_is_checked_against_the_name_not_the_pinned_address(
    workspace, make_server, certificate, monkeypatch
):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    server = make_server(context)
    port = server.server_address[1]
    untrusted = await workspace.do("http_request", url=f"https://localhost:{port}/")
    assert "CERTIFICATE_VERIFY_FAILED" in untrusted.error
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    assert (await workspace.do("http_request", url=f"https://localhost:{port}/")).value["text"] == "hello"
    assert "CERTIFICATE_VERIFY_FAILED" in (await workspace.do("http_request", url=f"https://127.0.0.1:{port}/")).error
