"""Reads what is new in log files and the journal since the last run, through rotation, within bounds."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

from log_lines import Entry, classify, read_line

BYTES_PER_FILE_MAX = 8_000_000  # what is more waits for the next run
BYTES_AT_FIRST_MAX = 4_000_000  # of a log that is new to us only the end is read
BYTES_PER_RUN_MAX = 32_000_000
FILES_MAX = 200
HEAD_BYTES = 1024  # by which a file is known again after log rotation
JOURNAL_LINES_MAX = 20_000


@dataclass(slots=True)
class Source:
    """One log and what is new in it; `error` says why it could not be read."""

    name: str
    entries: list[Entry] = field(default_factory=list)
    rotated: bool = False
    error: str | None = None


def head_of(file: BinaryIO, length: int) -> str:
    """A digest of the first `length` bytes, by which a file is the same although it was renamed."""
    file.seek(0)
    return hashlib.sha256(file.read(length)).hexdigest()[:16]


def new_lines(path: Path, known: Mapping[str, Any] | None) -> tuple[list[str], dict[str, Any], bool]:
    """The complete lines in `path` after the known place: (lines, the place now, whether the log was rotated).

    After a rotation the rest of the old file is read from `path`.1 first.
    """
    rotated, lines = False, []
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        offset = known["offset"] if known else start_of_last_lines(file, size)
        if known and (size < offset or head_of(file, known["head_bytes"]) != known["head"]):
            rotated, offset = True, 0
            lines += rest_of_rotated(path.with_name(path.name + ".1"), known)
        found, offset = complete_lines(file, offset)
        length = min(HEAD_BYTES, offset)
        place = {"offset": offset, "head_bytes": length, "head": head_of(file, length)}
    return lines + found, place, rotated


def start_of_last_lines(file: BinaryIO, size: int) -> int:
    """Where to begin in a log that is new to us: at its beginning, or at a line not far from the end of a large one."""
    if size <= BYTES_AT_FIRST_MAX:
        return 0
    file.seek(size - BYTES_AT_FIRST_MAX)
    file.readline(BYTES_AT_FIRST_MAX)
    return file.tell()


def rest_of_rotated(path: Path, known: Mapping[str, Any]) -> list[str]:
    """What was written to the old file after the known place, if `path` is that file."""
    try:
        with path.open("rb") as file:
            if head_of(file, known["head_bytes"]) != known["head"]:
                return []
            return complete_lines(file, known["offset"], to_the_end=True)[0]
    except OSError:
        return []


def complete_lines(file: BinaryIO, offset: int, *, to_the_end: bool = False) -> tuple[list[str], int]:
    """The lines from `offset` on, and the offset after them. A line without its end waits for the next run."""
    file.seek(offset)
    data = file.read(BYTES_PER_FILE_MAX)
    end = data.rfind(b"\n") + 1
    if to_the_end or (end == 0 and len(data) == BYTES_PER_FILE_MAX):  # a "line" that long is skipped, not waited for
        end = len(data)
    text = data[:end].decode("utf-8", "replace")
    return [line for line in text.split("\n") if line], offset + end


def journal_entries(known: Mapping[str, Any] | None) -> tuple[list[Entry], dict[str, Any]]:
    """Entries of the journal after the known cursor, and the cursor now. Nothing where there is no journal."""
    cursor = str((known or {}).get("cursor", ""))
    command = ["journalctl", "--output=json", "--no-pager", f"--lines={JOURNAL_LINES_MAX}"]
    command += [f"--after-cursor={cursor}"] if cursor else []
    try:
        done = subprocess.run(command, capture_output=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return [], {"cursor": cursor}
    entries = []
    for line in done.stdout.decode("utf-8", "replace").splitlines():
        try:
            record = json.loads(line)
            at = datetime.fromtimestamp(int(record["__REALTIME_TIMESTAMP"]) / 1e6).astimezone()
            program = str(record.get("SYSLOG_IDENTIFIER") or record.get("_COMM") or "unknown")
            entries.append(classify(program, str(record.get("MESSAGE") or ""), at))
            cursor = str(record["__CURSOR"])
        except (ValueError, KeyError, TypeError, OverflowError):
            entries.append(Entry("unrecognised", detail=line))
    return entries, {"cursor": cursor}


def read_sources(
    patterns: Sequence[str], known: Mapping[str, Any], now: datetime
) -> tuple[list[Source], dict[str, Any]]:
    """What is new in each log that a pattern matches, and the places now."""
    sources, places = [], dict(known)
    names: list[str] = []
    for pattern in patterns:
        names += ["journal"] if pattern == "journal" else sorted(glob.glob(pattern))
    left = BYTES_PER_RUN_MAX
    for name in list(dict.fromkeys(names))[:FILES_MAX]:
        source = Source(name)
        try:
            if left < BYTES_PER_FILE_MAX:
                source.error = "left for the next run"
            elif name == "journal":
                source.entries, places[name] = journal_entries(places.get(name))
            else:
                lines, places[name], source.rotated = new_lines(Path(name), places.get(name))
                left -= sum(map(len, lines))
                source.entries = [read_line(line, now) for line in lines]
        except OSError as error:
            source.error = error.strerror
        sources.append(source)
    return sources, places
