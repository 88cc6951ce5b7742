"""A message reaches the inbox file and the log always, the configured channels when asked, and each outcome is recorded."""

import asyncio
import http.server
import json
import threading
from pathlib import Path

import pytest

from perdure.daemon.clock import SystemClock
from perdure.daemon.config import load_config
from perdure.daemon.notifications import INBOX, Notifier
from perdure.errors import PerdureError
from perdure.state.ledger import Ledger


@pytest.fixture
def make_notifier(tmp_path):
    ledgers = []

    def make(toml=""):
        (tmp_path / "state").mkdir(exist_ok=True)
        (tmp_path / "perdure.toml").write_text(toml)
        config = load_config(tmp_path)
        clock = SystemClock()
        Ledger.create(tmp_path / "state/ledger.db", now=clock.now, workspace="test").close()
        ledger = Ledger.open(tmp_path / "state/ledger.db", now=clock.now, fence=1)
        ledgers.append(ledger)
        return Notifier(config, ledger, clock=clock), ledger

    yield make
    for ledger in ledgers:
        ledger.close()


@pytest.fixture
def hook():
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.server.seen.append((dict(self.headers), json.loads(body)))
            self.send_response(self.server.statuses.pop(0) if self.server.statuses else 200)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.seen, server.statuses = [], []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.url = f"http://127.0.0.1:{server.server_address[1]}/hook"
    yield server
    server.shutdown()
    server.server_close()


def recorded(ledger):
    return {event.body["channel"]: event.body["status"] for event in ledger.reader.events(types=("notification.sent",))}


async def test_inbox_and_log_always(make_notifier, tmp_path):
    notifier, ledger = make_notifier()
    assert await notifier.notify("ESC1", "a question", "may I?", kind="question") == {"inbox": None, "log": None}
    (line,) = (tmp_path / "state" / INBOX).read_text().splitlines()
    message = json.loads(line)
    assert (message["about"], message["title"], message["text"], message["kind"]) == (
        "ESC1",
        "a question",
        "may I?",
        "question",
    )
    assert (tmp_path / "state" / INBOX).stat().st_mode & 0o077 == 0
    assert recorded(ledger) == {"inbox": "delivered", "log": "delivered"}


async def test_the_command_gets_the_message_as_json_and_no_word_of_it_as_an_argument(make_notifier, tmp_path):
    notifier, ledger = make_notifier(
        f'notify = {{command = ["/bin/sh", "-c", "cat > {tmp_path}/got; env > {tmp_path}/env; echo $# >> {tmp_path}/env"]}}'
    )
    assert (await notifier.notify("X", "t", "$(touch /tmp/evil)"))["command"] is None
    assert json.loads((tmp_path / "got").read_text())["text"] == "$(touch /tmp/evil)"
    assert (tmp_path / "env").read_text().splitlines()[-1] == "0"
    assert recorded(ledger)["command"] == "delivered"


async def test_a_failing_command_is_tried_twice_recorded_and_does_not_stop_the_others(make_notifier, tmp_path, hook):
    notifier, ledger = make_notifier(
        f'[notify]\ncommand = ["/bin/sh", "-c", "echo x >> {tmp_path}/tries; echo broken >&2; exit 3"]\nwebhook = "{hook.url}"'
    )
    outcomes = await notifier.notify("X", "t", "text")
    assert "exit 3: broken" in outcomes["command"]
    assert outcomes["webhook"] is None
    assert (tmp_path / "tries").read_text() == "x\nx\n"
    assert recorded(ledger) == {"inbox": "delivered", "log": "delivered", "command": "failed", "webhook": "delivered"}


async def test_a_webhook_that_fails_once_is_reached_by_the_retry_with_the_same_key(make_notifier, hook):
    notifier, _ = make_notifier(f'notify = {{webhook = "{hook.url}"}}')
    hook.statuses = [503]
    assert (await notifier.notify("X", "t", "text", key="K1"))["webhook"] is None
    assert [headers["Idempotency-Key"] for headers, _ in hook.seen] == ["K1", "K1"]
    assert hook.seen[1][1]["text"] == "text"


async def test_a_secret_webhook_address_stands_in_no_error(make_notifier, monkeypatch):
    monkeypatch.setenv("HOOK_ADDRESS", "http://127.0.0.1:1/very-secret-path")
    notifier, ledger = make_notifier('notify = {webhook = {secret = "HOOK_ADDRESS"}}')
    outcomes = await notifier.notify("X", "t", "text")
    assert outcomes["webhook"] is not None
    assert "very-secret-path" not in str([event.body for event in ledger.reader.events()]) + outcomes["webhook"]


async def test_a_command_that_hangs_is_given_up_and_ended(make_notifier, tmp_path):
    (tmp_path / "pids").touch()  # on a busy machine it may be ended before its first word
    notifier, ledger = make_notifier(
        f'notify = {{command = ["/bin/sh", "-c", "echo $$ >> {tmp_path}/pids; sleep 700"], timeout = "300ms"}}'
    )
    outcomes = await notifier.notify("X", "t", "text")
    assert outcomes["command"] == "not done within 0.3 s"
    for pid in (tmp_path / "pids").read_text().split():
        assert not Path("/proc", pid).exists()
    assert recorded(ledger)["command"] == "failed"


async def test_kinds_that_were_not_asked_for_stay_inside(make_notifier, hook):
    notifier, _ = make_notifier(f'notify = {{webhook = "{hook.url}", on = ["question"]}}')
    assert "webhook" not in await notifier.notify("S", "closed", "well", kind="closed")
    assert "webhook" in await notifier.notify("E", "asked", "?", kind="question")
    assert len(hook.seen) == 1


async def test_a_ledger_that_cannot_be_written_does_not_silence_the_alarm(make_notifier, tmp_path, hook):
    notifier, _ = make_notifier(f'notify = {{webhook = "{hook.url}"}}')

    class Unwritable:
        async def write(self, *drafts):
            raise PerdureError("write", "the ledger", "the disk is full", "Make room")

    deaf = Notifier(notifier._config, Unwritable(), clock=SystemClock())
    assert (await deaf.notify("ledger-unwritable", "ledger unwritable", "the disk is full", kind="alarm"))[
        "webhook"
    ] is None
    assert len(hook.seen) == 1


async def test_an_inbox_that_cannot_be_written_is_a_failed_channel(make_notifier, tmp_path):
    notifier, ledger = make_notifier()
    (tmp_path / "state" / INBOX).mkdir()
    outcomes = await notifier.notify("X", "t", "text")
    assert outcomes["inbox"] is not None
    assert recorded(ledger) == {"inbox": "failed", "log": "delivered"}


async def test_many_messages_at_once_are_whole_lines(make_notifier, tmp_path):
    notifier, _ = make_notifier()
    await asyncio.gather(*(notifier.notify(f"N{number}", "t", "x" * 5000) for number in range(20)))
    lines = (tmp_path / "state" / INBOX).read_text().splitlines()
    assert {json.loads(line)["about"] for line in lines} == {f"N{number}" for number in range(20)}
