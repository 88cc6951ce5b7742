"""A backup by sealed segments holds what the ledger held, tells what was done to it, and no kill leaves it in doubt."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import gzip
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from perdure.errors import PerdureError
from perdure.state import backup as b
from perdure.state import events as e
from perdure.state.ledger import Ledger
from perdure.state.ownership import Owner
from perdure.state.reading import LedgerReader
from perdure.state.retention import erase
from perdure.state.sealing import seal
from perdure.state.segments import read_manifest
from perdure.state.signing import Signer
from perdure.state.unsealing import verify_segments
from perdure.state.verification import verify

DRIVERS = Path(__file__).parent / "drivers"


@pytest.fixture
def sealed(story, tmp_path):
    """A story with a directory of segments of seven events each, the last of them shorter."""
    story.live()
    seal(story.directory, tmp_path / "backup", segment_events=7)
    return story


def files(directory):
    return [segment.file for segment in read_manifest(directory).segments]


def findings(directory, **options):
    return [(finding.kind, finding.seq) for finding in verify_segments(directory, **options).findings]


def truth(path):
    with LedgerReader.open(path) as reader:
        return [(event, reader.payload(event.seq) if event.payload_hash else None) for event in reader.events()]


def restore(story, directory, **options):
    story.close()
    with Owner.acquire(story.directory) as owner:
        return b.restore(directory, story.directory, owner=owner, now=story.now, version="0", **options)


def test_only_what_is_new_is_written_and_all_of_it_verifies(sealed, tmp_path):
    directory = tmp_path / "backup"
    before = {file: (directory / file).read_bytes() for file in files(directory)}
    assert len(before) == -(-sealed.ledger.head.seq // 7)
    assert seal(sealed.directory, directory, segment_events=7).files == 0
    sealed.session("later")
    done = seal(sealed.directory, directory, segment_events=7)
    assert (done.head, done.files, done.events) == (sealed.ledger.head, 1, 2)
    assert {file: (directory / file).read_bytes() for file in before} == before
    report = verify_segments(directory)
    assert (report.findings, report.head, report.anchored) == ([], sealed.ledger.head, sealed.ledger.head.seq)
    assert report.payloads == sealed.verify().payloads


def test_a_ledger_made_of_segments_is_the_one_that_was_sealed(sealed, tmp_path):
    head, held = sealed.ledger.head, truth(sealed.path)
    sealed.session("not sealed")
    restored = restore(sealed, tmp_path / "backup")
    assert (restored.head, restored.epoch) == (head, 2)
    assert sealed.verify().ok
    assert truth(sealed.path)[:-1] == held
    seal(sealed.directory, tmp_path / "backup")  # it holds the beginning of this epoch, too
    assert findings(tmp_path / "backup") == []
    assert verify_segments(tmp_path / "backup").epoch == 2


def test_a_branch_that_a_restore_gave_up_and_another_workspace_are_refused(sealed, tmp_path):
    b.backup(sealed.directory, tmp_path / "early.db")
    sealed.ledger.commit(e.AlarmRaised(code="given up"))
    seal(sealed.directory, tmp_path / "backup")
    restore(sealed, tmp_path / "early.db")
    with pytest.raises(PerdureError, match="is another one in this ledger"):
        seal(sealed.directory, tmp_path / "backup")
    Ledger.create(tmp_path / "other" / "ledger.db", now=sealed.now, workspace="other").close()
    with pytest.raises(PerdureError, match="another workspace"):
        seal(tmp_path / "other", tmp_path / "backup")


@pytest.mark.parametrize("at", [0, 1, -1])
def test_a_missing_segment_is_named(sealed, tmp_path, at):
    directory = tmp_path / "backup"
    segment = read_manifest(directory).segments[at]
    (directory / segment.file).unlink()
    assert ("segment-missing", segment.first) in findings(directory)
    assert not [kind for kind, _ in findings(directory) if kind in ("edited", "impossible", "payload-deleted")]
    with pytest.raises(PerdureError, match=segment.file):
        restore(sealed, directory)


def test_swapped_segments_are_named(sealed, tmp_path):
    directory = tmp_path / "backup"
    one, other = read_manifest(directory).segments[1:3]
    (directory / one.file).rename(directory / "aside")
    (directory / other.file).rename(directory / one.file)
    (directory / "aside").rename(directory / other.file)
    assert {("segment-swapped", one.first), ("segment-swapped", other.first)} <= set(findings(directory))


def rewritten(path, change):
    lines = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    change(lines)
    path.write_bytes(gzip.compress(b"".join(json.dumps(line).encode() + b"\n" for line in lines)))


@pytest.mark.parametrize(
    ("change", "kind", "offset"),
    [
        (lambda lines: lines[3].update(body=lines[3]["body"].replace("S1", "S9")), "edited", 3),
        (lambda lines: lines[3].update(at=lines[3]["at"] + 1), "edited", 3),
        (lambda lines: lines.pop(3), "deleted", 3),
        (lambda lines: lines.insert(2, lines.pop(3)), "deleted", 2),
        (lambda lines: lines.pop(), "segment-edited", 6),
        (lambda lines: lines[4].update(seq="x"), "segment-damaged", 4),
        (lambda lines: [line.update(payload='"other"') for line in lines if "payload" in line], "payload-changed", 1),
    ],
)  # fmt: skip
def test_an_edited_segment_is_named_with_the_event(sealed, tmp_path, change, kind, offset):
    directory = tmp_path / "backup"
    segment = read_manifest(directory).segments[1]
    rewritten(directory / segment.file, change)
    found = findings(directory)
    assert ("segment-edited", segment.first) in found
    assert (kind, segment.first + offset) in found
    with pytest.raises(PerdureError, match=segment.file):
        restore(sealed, directory)


@pytest.mark.parametrize("keep", [0, 9, 100])
def test_a_torn_segment_and_a_torn_manifest_are_told(sealed, tmp_path, keep):
    directory = tmp_path / "backup"
    segment = read_manifest(directory).segments[1]
    (directory / segment.file).write_bytes((directory / segment.file).read_bytes()[:keep])
    assert {kind for kind, _ in findings(directory)} >= {"segment-edited"}
    manifest = directory / "manifest.json"
    manifest.write_bytes(manifest.read_bytes()[:keep])
    with pytest.raises(PerdureError, match="damaged"):
        verify_segments(directory)
    with pytest.raises(PerdureError, match="damaged"):
        seal(sealed.directory, directory)
    manifest.unlink()
    with pytest.raises(PerdureError, match=r"manifest\.json is gone"):
        seal(sealed.directory, directory)
    assert (directory / segment.file).exists()


def test_what_was_erased_since_does_not_come_back(sealed, tmp_path):
    directory = tmp_path / "backup"
    reader = sealed.ledger.reader
    (session,) = (event.seq for event in reader.events(types=["session.opened"]))
    erase(sealed.ledger, [session], reason="asked for")
    assert seal(sealed.directory, directory).held == 1
    report = verify_segments(directory)
    assert [(finding.kind, finding.seq, finding.grave) for finding in report.findings] == [
        ("erased-since", session, False)
    ]
    secret = b"Read the logs."
    assert any(secret in gzip.decompress((directory / file).read_bytes()) for file in files(directory))
    restore(sealed, directory)
    assert sealed.verify().ok
    with LedgerReader.open(sealed.path) as restored:
        assert restored.erased(session)
        assert restored.payload(session) is None
    assert secret not in sealed.path.read_bytes()


def test_resealing_takes_what_was_erased_out_of_old_segments(sealed, tmp_path):
    directory = tmp_path / "backup"
    (session,) = (event.seq for event in sealed.ledger.reader.events(types=["session.opened"]))
    erase(sealed.ledger, [session], reason="asked for")
    before = files(directory)
    done = seal(sealed.directory, directory, reseal=True, segment_events=7)
    assert (done.resealed, done.held) == (1, 0)
    assert sum(file in before for file in files(directory)) == len(before) - 1
    assert sorted(path.name for path in directory.iterdir()) == sorted([*files(directory), "manifest.json"])
    report = verify_segments(directory)
    assert (report.findings, report.erased) == ([], 1)
    assert not any(b"Read the logs." in gzip.decompress((directory / file).read_bytes()) for file in files(directory))
    restore(sealed, directory)
    assert sealed.verify().ok


def test_what_does_not_verify_is_not_sealed(sealed, tmp_path):
    sealed.close()
    with sqlite3.connect(sealed.path) as db:
        db.execute("DROP TRIGGER events_are_never_updated")
        db.execute("UPDATE events SET at = at + 1 WHERE seq = 9")
    with pytest.raises(PerdureError, match="event 9"):
        seal(sealed.directory, tmp_path / "new", segment_events=7)
    assert read_manifest(tmp_path / "new").segments == ()


def test_a_signed_ledger_has_signed_heads_in_its_segments(story, tmp_path):
    sign = Signer(base64.b64encode(bytes(range(32))).decode())
    other = Signer(base64.b64encode(bytes(32)).decode())
    story.create().close()
    ledger = story.open(sign=sign)
    ledger.commit(e.ConfigurationLoaded(kind="signing-key", digest=sign.public_key, files={}))
    ledger.commit(e.AlarmRaised(code="x"))
    seal(story.directory, tmp_path / "backup")
    assert read_manifest(tmp_path / "backup").segments[-1].anchored.signature
    assert findings(tmp_path / "backup") == []
    assert findings(tmp_path / "backup", public_key=sign.public_key) == []
    assert {kind for kind, _ in findings(tmp_path / "backup", public_key=other.public_key)} == {
        "key-differs",
        "signature-wrong",
    }
    restore(story, tmp_path / "backup", sign=sign)
    assert verify(story.directory, public_key=sign.public_key).ok
    manifest = tmp_path / "backup" / "manifest.json"
    manifest.write_text(manifest.read_text().replace(',"signature"', ',"sig"'))
    with pytest.raises(PerdureError, match="damaged"):
        verify_segments(tmp_path / "backup")


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_a_machine_that_lost_everything_gets_a_ledger_of_many_owners_back(story, tmp_path, kind):
    story.create().close()
    for fence in (2, 3, 9):
        story.open(fence).commit(e.DaemonStarted(pid=1, fence=fence, version="0", host="h"))
        story.close()
    target = tmp_path / "saved"
    (b.backup if kind == "file" else seal)(story.directory, target)
    shutil.rmtree(story.directory)
    story.directory.mkdir()
    assert restore(story, target).epoch == 2
    assert story.verify().ok
    with Owner.acquire(story.directory) as owner:
        assert owner.fence > 9


def test_two_backups_at_once_are_refused(sealed, tmp_path):
    handle = os.open(tmp_path / "backup", os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with pytest.raises(PerdureError, match="another backup"):
            seal(sealed.directory, tmp_path / "backup")
    finally:
        os.close(handle)


def test_a_kill_anywhere_leaves_a_directory_that_verifies_and_is_completed(sealed, tmp_path):
    """Killed at every single thing that it does to a file, while another process writes the ledger."""
    sealed.close()
    directory = tmp_path / "backup"
    with started("writer", sealed.directory) as writer, started("sealer", sealed.directory, directory) as sealer:
        fcntl.fcntl(writer.stdout, fcntl.F_SETPIPE_SZ, 4096)  # it writes no further ahead than we read
        codes = [-signal.SIGKILL]
        while codes[-1] != 0:
            before = read_manifest(directory)
            sealer.stdin.write(b"\n")
            sealer.stdin.flush()
            for _ in range(20):
                writer.stdout.readline()
            codes.append(int(sealer.stdout.readline()))
            assert not [finding for finding in verify_segments(directory).findings if finding.grave]
            assert read_manifest(directory).segments[: len(before.segments)] == before.segments
            assert codes[-1] in (0, -signal.SIGKILL)
    assert len(codes) > 12
    restore(sealed, directory)
    assert sealed.verify().ok


@contextlib.contextmanager
def started(driver, *arguments):
    command = [sys.executable, str(DRIVERS / f"{driver}.py"), *map(str, arguments)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()
