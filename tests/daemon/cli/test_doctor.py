"""`perdure doctor`: each thing that can be wrong is made wrong, found, and told with what mends it."""

from __future__ import annotations

import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from perdure.daemon import control
from perdure.daemon.cli import doctor, units
from perdure.memory import embedding
from perdure.state.ownership import Owner


@pytest.fixture
def sound(parked):
    """A workspace in which nothing is wrong."""
    (parked.root / "policies").mkdir(exist_ok=True)
    (parked.root / "policies" / "all.yaml").write_text(
        "version: 1\nrules:\n  - {name: all, tools: [read_file], decide: auto}\n"
    )
    (parked.root / "tasks").mkdir(exist_ok=True)
    return parked


def test_doctor_names_what_others_may_read_or_write_and_how_to_mend_it(parked):
    token = parked.state / "control.token"
    token.write_text("secret")
    token.chmod(0o644)
    (parked.root / "policies").mkdir()
    (parked.root / "policies").chmod(0o777)
    result = parked.call("doctor")
    assert result.exit_code == 1
    assert f"chmod 600 {token}" in result.stdout
    assert f"chmod o-w {parked.root / 'policies'}" in result.stdout
    assert "chain, anchor, payloads and tables" in result.stdout


def test_doctor_sees_a_clock_that_was_set_back(parked, story):
    result = parked.call("doctor", "--quick", now=story.START - 24 * story.HOUR)
    assert result.exit_code == 1
    assert "the clock was set back" in result.stdout


def test_a_daemon_that_does_not_answer_is_not_waited_for(parked, monkeypatch):
    monkeypatch.setattr(control, "STATUS_SECONDS_MAX", 0.1)
    monkeypatch.setattr(control, "ANSWER_SECONDS_MAX", 0.1)
    monkeypatch.chdir(parked.state)
    control.token(parked.state)
    with Owner.acquire(parked.state), socket.socket(socket.AF_UNIX) as listener:
        listener.bind(control.SOCKET_NAME)
        listener.listen()  # as the kernel does for a process that is stopped
        assert "does not answer" in parked.text("status")
        assert parked.json("status")["daemon"]["answers"] is False
        result = parked.call("pause", "log-triage", "--reason", "x")
        assert result.exit_code == 1
        assert "perdure doctor" in result.stderr


def test_an_owner_that_does_not_listen_yet_is_not_said_to_answer(parked):
    with Owner.acquire(parked.state):
        told = parked.json("status")["daemon"]
        assert told["pid"] == os.getpid()
        assert told["running"]
        assert not told["answers"]
        assert "busy" in parked.text("status")
        result = parked.call("pause", "log-triage", "--reason", "x")
        assert result.exit_code == 1
        assert f"process {os.getpid()} owns this workspace and takes no requests" in result.stderr


def beat(sound, seconds_ago):
    (sound.state / "heartbeat").write_text(f"{os.getpid()} {time.monotonic_ns() - seconds_ago * 10**9}\n")


def test_doctor_tells_a_daemon_that_lives_from_one_that_hangs(sound):
    with Owner.acquire(sound.state):
        beat(sound, 5)
        assert f"process {os.getpid()} holds the workspace's lock" in sound.text("doctor", "--quick")
        beat(sound, 300)
        hung = sound.text("doctor", "--quick", code=1)
        assert "has not beaten for 5 min" in hung
        assert f"kill -ABRT {os.getpid()}" in hung
        # A command that holds the lock has no heart, whatever the daemon before it left behind.
        (sound.state / "heartbeat").write_text(f"1 {time.monotonic_ns() - 10**12}\n")
        sound.text("doctor", "--quick")


def test_doctor_names_who_still_holds_the_lock_of_a_daemon_that_is_gone(sound):
    with subprocess.Popen(["sleep", "60"]) as gone:
        gone.kill()
    with Owner.acquire(sound.state):
        lock = sound.state / "lock"
        lock.write_text(lock.read_text().replace(f'"pid":{os.getpid()}', f'"pid":{gone.pid}'))
        text = sound.text("doctor", "--quick", code=1)
    assert f"process {gone.pid} took the workspace's lock and is gone" in text
    assert f"kill {os.getpid()}" in text
    sound.text("doctor", "--quick")


def test_doctor_says_what_is_only_not_as_good_as_it_could_be(sound):
    (sound.root / "STOP").touch()
    text = sound.text("doctor", "--quick")
    assert "Nothing is broken; " in text
    assert "Nothing needs mending" not in text


@pytest.mark.parametrize("wrong", ["missing", "another"])
def test_doctor_names_an_embedding_model_that_is_missing_or_another(sound, tmp_path, monkeypatch, wrong):
    assert "the embedding model is there" in sound.text("doctor", "--quick")
    path = tmp_path / "tokenizer.json"
    if wrong == "another":
        path.write_text("{}")
    monkeypatch.setattr(embedding, "tokenizer_path", lambda: path)
    (said,) = [each for each in sound.json("doctor", "--quick")["diagnoses"] if each["about"] == "memory"]
    assert said["verdict"] == "warn"
    assert str(path) in said["found"]
    assert ("No such file" if wrong == "missing" else "SHA-256") in said["found"]
    assert "searches by words alone" in said["mend"]
    (sound.root / "perdure.toml").write_text('timezone = "UTC"\n[memory]\nembedding = "none"\n')
    assert "memory" not in [each["about"] for each in sound.json("doctor", "--quick")["diagnoses"]]


def test_doctor_sees_tables_that_say_other_than_the_events_and_how_to_make_them_anew(sound):
    with closing(sqlite3.connect(sound.state / "ledger.db", isolation_level=None)) as db:
        db.execute("UPDATE slots SET outcome = 'skipped' WHERE outcome IS NOT NULL")
    text = sound.text("doctor", code=1)
    assert "outcome is 'skipped' and should be" in text
    assert "ledger rebuild" in text
    sound.text("ledger", "rebuild")
    sound.text("doctor")


def test_what_a_rebuild_mends_needs_no_backup_and_what_it_does_not_mend_does(sound):
    def alter(*statements):
        with closing(sqlite3.connect(sound.state / "ledger.db", isolation_level=None)) as db:
            for statement in statements:
                db.execute(statement)

    alter("DROP TRIGGER events_are_never_updated", "DROP INDEX slots_due", "ALTER TABLE sessions ADD COLUMN mine ANY")
    for command in ("verify", "doctor"):
        text = sound.text(command, code=1)
        assert "trigger events_are_never_updated is missing" in text
        assert "table sessions was changed" in text
        assert "ledger rebuild" in text
        assert "restore" not in text
    sound.text("ledger", "rebuild")
    sound.text("verify")
    alter("ALTER TABLE payloads ADD COLUMN mine ANY")
    text = sound.text("verify", code=1)
    assert "restore" in text
    assert "ledger rebuild" not in text


def test_doctor_looks_at_the_program_that_a_drop_in_names(monkeypatch, tmp_path):
    shipped = Path(units.__file__).resolve().parents[2] / "systemd"
    etc, lib = tmp_path / "etc", tmp_path / "lib"
    monkeypatch.setattr(units, "DIRECTORIES", (etc, lib))
    (etc / "perdure.service.d").mkdir(parents=True)
    (lib / "perdure.service.d").mkdir(parents=True)
    (lib / "perdure.service").write_text((shipped / "perdure.service").read_text())
    drop_in = etc / "perdure.service.d" / "mine.conf"

    def missing():
        return [d.found for d in units.unit_drift() if "is not there" in d.found]

    (there,) = missing()  # the shipped one names a place where nothing is installed
    assert str(lib) in there
    drop_in.write_text(f"[Service]\nExecStart=\nExecStart={sys.executable} -m perdure run\n")
    assert missing() == []
    (lib / "perdure.service.d" / "mine.conf").write_text("[Service]\nExecStart=\nExecStart=/gone/hidden run\n")
    assert missing() == []  # of two of one name the first directory's counts
    (lib / "perdure.service.d" / "zz.conf").write_text("[Service]\nExecStart=\nExecStart=-/gone/perdure run\n")
    (found,) = missing()
    assert "zz.conf starts /gone/perdure" in found


def test_a_page_that_is_damaged_is_told_as_that_and_gets_into_no_backup(sound, tmp_path):
    ledger = sound.state / "ledger.db"
    with closing(sqlite3.connect(ledger)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (page,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'slots_due'").fetchone()
        (size,) = db.execute("PRAGMA page_size").fetchone()
    with ledger.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xff" * size)
    for command in (
        ["verify"],
        ["status"],
        ["schedule", "show"],
        ["backup", f"{tmp_path}/copy.db"],
    ):
        result = sound.call(*command)
        assert result.exit_code == 1, command
        assert "corrupt" in result.output, command
        assert " restore " in result.output, command
    assert not (tmp_path / "copy.db").exists()


def test_an_event_that_is_no_json_is_told_as_that(sound):
    with closing(sqlite3.connect(sound.state / "ledger.db", isolation_level=None)) as db:
        db.execute("DROP TRIGGER events_are_never_updated")
        db.execute("UPDATE events SET body = 'garbage' WHERE seq = 3")
    result = sound.call("ledger", "tail")
    assert result.exit_code == 1
    assert "event 3: its body is not a JSON object" in result.output
    assert "perdure verify" in result.output


def test_doctor_sees_a_disk_that_is_nearly_full(parked, monkeypatch):
    monkeypatch.setattr(doctor, "FREE_BYTES_BAD", shutil.disk_usage(parked.state).free + 10**12)
    text = parked.text("doctor", "--quick", code=1)
    assert "✗ disk space" in text
    assert "Free space there" in text


def test_doctor_names_units_that_are_not_of_this_version(parked, monkeypatch, tmp_path):
    shipped = Path(units.__file__).resolve().parents[2] / "systemd"
    monkeypatch.setattr(units, "DIRECTORIES", (tmp_path,))
    assert list(units.unit_drift()) == []
    text = (shipped / "perdure.service").read_text()
    program = re.search(r"^ExecStart=(\S+)", text, re.MULTILINE).group(1)
    here = text.replace(program, sys.executable)
    (tmp_path / "perdure.service").write_text(here)
    (tmp_path / "perdure.service.d").mkdir()
    drop_in = (shipped / "drop-ins" / "logs.conf").read_text()
    (tmp_path / "perdure.service.d" / "logs.conf").write_text(drop_in)
    told = [(d.verdict, d.found) for d in units.unit_drift() if str(tmp_path) in d.found]
    assert [verdict for verdict, _ in told] == ["warn", "good"]  # the path of the program; the drop-in
    (tmp_path / "perdure.service").write_text(text.replace("WatchdogSec=60", "WatchdogSec=600"))
    (tmp_path / "perdure.service.d" / "logs.conf").write_text(drop_in + "Nice=5\n")
    found = [d for d in units.unit_drift() if str(tmp_path) in d.found]
    assert "WatchdogSec=" in found[0].found
    assert "daemon-reload" in found[0].mend
    assert [d.verdict for d in found if "is not there" in d.found] == ["bad"]
    assert "Nice=5" in found[-1].found
