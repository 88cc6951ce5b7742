"""Where log lines go: native fields of the journal under systemd, colours for a person at a terminal, JSON lines otherwise.
Every line, also one from a library, passes the redaction first."""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import sys
from collections.abc import Callable, Mapping
from typing import Any, Final, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

JOURNAL: Final = "/run/systemd/journal/socket"
FIELD_BYTES_MAX: Final = 32 * 1024  # a datagram of the journal holds about 200 KB
HANDLER: Final = "perdure"
PRIORITIES: Final = {"critical": 2, "error": 3, "exception": 3, "warning": 4, "info": 6, "debug": 7}
QUIET: Final = (
    "apscheduler",
    "chromadb",
    "httpcore",
    "httpx",
    "anthropic",
    "openai",
    "watchfiles",
)  # debug and info of libraries


def configure(
    *, redact: Callable[[Any], Any] = lambda value: value, level: str = "info", stream: TextIO | None = None
) -> None:
    """Set up structlog and the standard library's logging, once, at start. `redact` is given every value of every line
    and returns it without secrets."""
    stream = stream or sys.stderr
    threshold = getattr(logging, level.upper())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        _redaction(redact),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        cache_logger_on_first_use=False,
    )
    to_journal = goes_to_journal(stream)
    to_person = not to_journal and stream.isatty()
    handler = JournalHandler() if to_journal else logging.StreamHandler(stream)
    last = (
        structlog.dev.ConsoleRenderer(colors="NO_COLOR" not in os.environ)
        if to_person
        else structlog.processors.JSONRenderer()
    )
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, last]
        )
    )
    root = logging.getLogger()
    for earlier in [each for each in root.handlers if each.name == HANDLER]:
        root.removeHandler(earlier)
        earlier.close()
    handler.name = HANDLER
    root.addHandler(handler)
    root.setLevel(threshold)
    for name in QUIET:
        logging.getLogger(name).setLevel(max(threshold, logging.WARNING))


def goes_to_journal(stream: TextIO) -> bool:
    """Whether `stream` is connected to the journal: systemd says so in JOURNAL_STREAM, by device and inode."""
    device_inode = os.environ.get("JOURNAL_STREAM", "")
    try:
        found = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return device_inode == f"{found.st_dev}:{found.st_ino}"


def shown_together(view: TextIO, lines: TextIO) -> bool:
    """Whether log lines would stand between those of a live view: both go to a terminal, or to the same file or pipe."""
    try:
        ends = [os.fstat(stream.fileno()) for stream in (view, lines)]
    except (OSError, ValueError):
        return False
    same = (ends[0].st_dev, ends[0].st_ino) == (ends[1].st_dev, ends[1].st_ino)
    return same or (view.isatty() and lines.isatty())


def _redaction(redact: Callable[[Any], Any]) -> Processor:
    def process(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        return {key: value if key.startswith("_") else redact(value) for key, value in event.items()}

    return process


class JournalHandler(logging.Handler):
    """Sends each line to journald as one datagram of fields, so that `journalctl PERDURE_TASK=log-triage` finds it. Its
    formatter makes JSON: where the journal cannot take a line, that goes to stderr, which systemd also keeps."""

    def __init__(self, address: str = JOURNAL) -> None:
        super().__init__()
        self._address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.setblocking(False)

    def emit(self, record: logging.LogRecord) -> None:
        """One line to the journal."""
        line = self.format(record)
        try:
            self._socket.sendto(journal_datagram(json.loads(line), logger=record.name), self._address)
        except OSError:
            sys.stderr.write(f"{line}\n")

    def close(self) -> None:
        self._socket.close()
        super().close()


def journal_datagram(event: Mapping[str, Any], *, logger: str) -> bytes:
    """systemd's native journal protocol: `KEY=value` lines; a value with a line break as KEY, its length in 8 bytes
    (little endian), and the value."""
    fields = {
        "MESSAGE": _sentence(event),
        "PRIORITY": str(PRIORITIES.get(str(event.get("level", "info")), 6)),
        "SYSLOG_IDENTIFIER": "perdure",
        "PERDURE_LOGGER": logger,
    }
    for key, value in event.items():
        if key not in {"event", "level", "timestamp"}:
            fields["PERDURE_" + re.sub(r"[^A-Z0-9_]", "_", key.upper())[:50]] = str(value)
    parts = []
    for name, text in fields.items():
        value = text.encode(errors="backslashreplace")[:FIELD_BYTES_MAX]
        if b"\n" in value:
            parts.append(name.encode() + b"\n" + len(value).to_bytes(8, "little") + value + b"\n")
        else:
            parts.append(name.encode() + b"=" + value + b"\n")
    return b"".join(parts)


def _sentence(event: Mapping[str, Any]) -> str:
    """The line as plain `journalctl` shows it: what happened, then the facts."""
    facts = " ".join(
        f"{key}={value}" for key, value in event.items() if key not in {"event", "level", "timestamp", "exception"}
    )
    text = str(event.get("event", ""))
    return f"{text} {facts}".rstrip() + (f"\n{event['exception']}" if event.get("exception") else "")
