"""The ledger itself, the daemon, what it has loaded, and what it tells people."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from perdure.state.events.drafts import Draft


@dataclass(slots=True, kw_only=True, eq=False)
class LedgerOpened(Draft):
    """The first event of a ledger, or of a new epoch after a restore (`restored_from`: the head it was restored to)."""

    type: ClassVar[str] = "ledger.opened"
    workspace: str
    epoch: int
    schema: int
    version: str
    restored_from: str | None = None


@dataclass(slots=True, kw_only=True, eq=False)
class DaemonStarted(Draft):
    type: ClassVar[str] = "daemon.started"
    pid: int
    fence: int
    version: str
    host: str


@dataclass(slots=True, kw_only=True, eq=False)
class DaemonStopped(Draft):
    type: ClassVar[str] = "daemon.stopped"
    fence: int
    reason: str


@dataclass(slots=True, kw_only=True, eq=False)
class ConfigurationLoaded(Draft):
    """`kind` is `config` or `policies`, and `files` maps each file to its SHA-256; or `signing-key`, with the public key as
    `digest`; or `workspace`, with its path seen from the state directory."""

    type: ClassVar[str] = "configuration.loaded"
    kind: str
    digest: str
    files: Mapping[str, str]


@dataclass(slots=True, kw_only=True, eq=False)
class ConfigurationRejected(Draft):
    """A broken edit: the last good version stays in force. The payload holds the problems as text."""

    type: ClassVar[str] = "configuration.rejected"
    kind: str
    problems: int


@dataclass(slots=True, kw_only=True, eq=False)
class TaskLoaded(Draft):
    """A task as it is now in force; the payload is the file's text. `schedule` is the schedule's canonical JSON text;
    `timezone` is the zone whose days, weeks and months its memory tells of (absent: UTC)."""

    type: ClassVar[str] = "task.loaded"
    task: str
    digest: str
    schedule: str | None = None
    timezone: str | None = None


@dataclass(slots=True, kw_only=True, eq=False)
class TaskRemoved(Draft):
    type: ClassVar[str] = "task.removed"
    task: str


@dataclass(slots=True, kw_only=True, eq=False)
class Paused(Draft):
    """One task, or all of them when `task` is None, starts no more sessions until resumed. `by` is who (uid or `breaker`)."""

    type: ClassVar[str] = "paused"
    task: str | None = None
    by: str
    reason: str


@dataclass(slots=True, kw_only=True, eq=False)
class Resumed(Draft):
    type: ClassVar[str] = "resumed"
    task: str | None = None
    by: str


@dataclass(slots=True, kw_only=True, eq=False)
class AlarmRaised(Draft):
    """Something a person must know; `code` is stable for machines, the payload says it in words with the next step."""

    type: ClassVar[str] = "alarm.raised"
    code: str
    about: str | None = None


@dataclass(slots=True, kw_only=True, eq=False)
class NotificationSent(Draft):
    """One attempt to reach a person over `channel` (inbox, log, command, webhook) `about` an id, and how it went."""

    type: ClassVar[str] = "notification.sent"
    channel: str
    about: str
    status: Literal["delivered", "failed"]
    error: str | None = None
