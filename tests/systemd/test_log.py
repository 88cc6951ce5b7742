from __future__ import annotations

import json
import logging
import os
import pty
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from perdure.daemon.log import JournalHandler, journal_datagram, shown_together

WRITER = """
import logging, sys
import structlog
from perdure.daemon import log
log.configure(redact=lambda value: value.replace("hunter2", "[secret]") if isinstance(value, str) else value)
line = structlog.get_logger("perdure.session")
line.info("session opened", task="log-triage", session="01ABC", token="hunter2")
line.debug("not at this level")
logging.getLogger("other.package").warning("disk is %s, key hunter2", "full")
logging.getLogger("httpx").info("chatter")
try:
    raise ValueError("with hunter2 inside")
except ValueError:
    line.exception("tool failed", task="log-triage")
"""


def fields(datagram: bytes) -> dict[str, str]:
    """Reads systemd's native journal protocol back, as journald does."""
    found = {}
    while datagram:
        name, _, rest = datagram.partition(b"\n")
        if b"=" in name:
            key, _, value = name.partition(b"=")
            datagram = rest
        else:
            key, length = name, int.from_bytes(rest[:8], "little")
            value, datagram = rest[8 : 8 + length], rest[9 + length :]
        found[key.decode()] = value.decode()
    return found


def test_lines_are_json_where_nobody_watches_and_hold_no_secret() -> None:
    written = subprocess.run([sys.executable, "-c", WRITER], capture_output=True, text=True, check=True).stderr
    opened, library, failed = [json.loads(line) for line in written.splitlines()]
    assert opened["event"] == "session opened"
    assert (opened["task"], opened["level"], opened["token"]) == ("log-triage", "info", "[secret]")
    assert library["event"] == "disk is full, key [secret]"
    assert "ValueError: with [secret] inside" in failed["exception"]
    assert "hunter2" not in written


def test_a_person_at_a_terminal_reads_lines_not_json() -> None:
    primary, replica = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", WRITER], stderr=replica, env={**os.environ, "NO_COLOR": "1"}
    ) as writer:
        os.close(replica)
        text = b""
        try:
            while chunk := os.read(primary, 4096):
                text += chunk
        except OSError:  # Linux says EIO when the last writer has gone
            pass
        os.close(primary)
        assert writer.wait() == 0
    first = text.decode().splitlines()[0]
    assert "session opened" in first
    assert "task=log-triage" in first
    assert "hunter2" not in text.decode()


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "journal"))
        listener.settimeout(10)
        yield listener


def emit(address: Path, event: dict[str, str]) -> None:
    handler = JournalHandler(str(address))
    handler.emit(logging.LogRecord("perdure.session", logging.WARNING, "", 0, json.dumps(event), None, None))
    handler.close()


def test_the_journal_gets_native_fields(journal: socket.socket, tmp_path: Path) -> None:
    emit(tmp_path / "journal", {"event": "opened", "level": "warning", "task": "t", "session-id": "two\nlines"})
    assert fields(journal.recv(65536)) == {
        "MESSAGE": "opened task=t session-id=two\nlines",
        "PRIORITY": "4",
        "SYSLOG_IDENTIFIER": "perdure",
        "PERDURE_LOGGER": "perdure.session",
        "PERDURE_TASK": "t",
        "PERDURE_SESSION_ID": "two\nlines",
    }


def test_a_journal_that_is_away_loses_no_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    emit(tmp_path / "nobody", {"event": "kept"})
    assert json.loads(capsys.readouterr().err) == {"event": "kept"}


def test_a_forged_line_cannot_add_fields() -> None:
    datagram = journal_datagram(
        {"event": "x\nPRIORITY=0\n_SYSTEMD_UNIT=ssh.service", "level": "info", "a b\n": "v"}, logger="perdure"
    )
    found = fields(datagram)
    assert found["PRIORITY"] == "6"
    assert set(found) == {"MESSAGE", "PRIORITY", "SYSLOG_IDENTIFIER", "PERDURE_LOGGER", "PERDURE_A_B_"}


def test_lines_and_live_view_are_told_apart_where_they_go_apart(tmp_path: Path) -> None:
    with (
        (tmp_path / "one").open("w") as one,
        (tmp_path / "one").open("a") as again,
        (tmp_path / "two").open("w") as two,
    ):
        assert shown_together(one, again)
        assert not shown_together(one, two)
