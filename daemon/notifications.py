"""Reaching a person: the inbox file and the log always, and what `[notify]` says besides. Each attempt is recorded."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import stamina
import structlog

from perdure.daemon.clock import Clock
from perdure.daemon.config import Config, NotifyAbout, SecretReference
from perdure.daemon.secrets import credential
from perdure.errors import PerdureError
from perdure.state.events import Draft, NotificationSent

INBOX = "notifications.jsonl"
_TEXT_MAX = 10_000
_ATTEMPTS = 2
_ERROR_MAX = 300
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Recorder(Protocol):
    """The part of the ledger that is used here."""

    async def write(self, *drafts: Draft) -> object: ...


class Undelivered(PerdureError):
    """A channel did not take the message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """What a person is told. `about` is the id of a question, session, slot or action, or an alarm's code; `key` is the
    same at every attempt to send it."""

    about: str
    title: str
    text: str
    kind: NotifyAbout | None
    at: int
    key: str

    def as_json(self) -> dict[str, str | int | None]:
        return {
            "about": self.about,
            "kind": self.kind,
            "title": self.title,
            "text": self.text,
            "at": self.at,
            "key": self.key,
        }


class Notifier:
    """Sends over every channel. A channel that fails is recorded in `ledger` and does not stop the others."""

    def __init__(self, config: Config, ledger: Recorder, *, clock: Clock) -> None:
        self._config = config
        self._ledger = ledger
        self._clock = clock
        self._log = structlog.get_logger("perdure.notifications")

    async def notify(
        self, about: str, title: str, text: str, *, kind: NotifyAbout | None = None, key: str | None = None
    ) -> Mapping[str, str | None]:
        """Tell a person. Returns each channel tried with its error, None where it took the message. Never raises for a
        channel's failure. `kind` decides whether the command and the webhook are used (`notify.on`); None: they are."""
        now = self._clock.now()
        message = Message(
            about=about, title=title[:200], text=text[:_TEXT_MAX], kind=kind, at=now, key=key or f"{about}/{now}"
        )
        outcomes: dict[str, str | None] = {}
        outcomes["inbox"] = await _tried(
            lambda: asyncio.to_thread(self._to_inbox, message), self._config.notify.timeout
        )
        self._log.warning(message.title, about=about, text=message.text, notification=message.kind or "message")
        outcomes["log"] = None
        channels = self._outside(message)
        errors = await asyncio.gather(*(_tried(send, self._config.notify.timeout) for send in channels.values()))
        outcomes.update(zip(channels, errors, strict=True))
        await self._record(about, outcomes)
        return outcomes

    def _outside(self, message: Message) -> dict[str, Callable[[], Awaitable[None]]]:
        notify = self._config.notify
        if message.kind is not None and message.kind not in notify.on:
            return {}
        channels: dict[str, Callable[[], Awaitable[None]]] = {}
        if notify.command is not None:
            channels["command"] = lambda: self._by_command(message)
        if notify.webhook is not None:
            channels["webhook"] = lambda: self._by_webhook(message)
        return channels

    async def _record(self, about: str, outcomes: Mapping[str, str | None]) -> None:
        drafts: list[Draft] = [
            NotificationSent(channel=channel, about=about, status="failed" if error else "delivered", error=error)
            for channel, error in outcomes.items()
        ]
        for channel, error in outcomes.items():
            if error:
                self._log.error("a notification did not get through", channel=channel, about=about, error=error)
        try:
            await self._ledger.write(*drafts)
        except PerdureError as error:  # the alarm itself needs no ledger: it may be the ledger that it is about
            self._log.error("a notification could not be recorded", about=about, error=str(error))

    def _to_inbox(self, message: Message) -> None:
        """One JSON line in `state/notifications.jsonl`, which no tool can reach; durable."""
        path = self._config.state_dir / INBOX
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, json.dumps(message.as_json(), ensure_ascii=False).encode() + b"\n")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    async def _by_command(self, message: Message) -> None:
        """The operator's own program, with the message as JSON on its standard input. It is not confined: mailers need
        set-user-id helpers; it gets neither a shell nor any word chosen by a tool or model as an argument."""
        assert self._config.notify.command is not None
        environment = {"PATH": _PATH, "LANG": "C.UTF-8", **self._config.commands.env}
        process = await asyncio.create_subprocess_exec(
            *self._config.notify.command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env=environment,
            cwd=self._config.workspace,
            start_new_session=True,
        )
        try:
            _, said = await process.communicate(json.dumps(message.as_json(), ensure_ascii=False).encode() + b"\n")
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, 9)
                await process.wait()
        if process.returncode:
            cause = f"exit {process.returncode}: {said.decode(errors='replace').strip()[-_ERROR_MAX:]}"
            raise Undelivered("notify by", Path(self._config.notify.command[0]).name, cause, "Try the command by hand")

    async def _by_webhook(self, message: Message) -> None:
        import httpx

        webhook = self._config.notify.webhook
        url = credential(webhook.secret) if isinstance(webhook, SecretReference) else str(webhook)
        async with httpx.AsyncClient(
            trust_env=False, follow_redirects=False, timeout=self._config.notify.timeout
        ) as client:
            try:
                async with client.stream(
                    "POST", url, json=message.as_json(), headers={"Idempotency-Key": message.key}
                ) as response:
                    status = response.status_code
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                # Without the message: it may hold the address, which may be a secret.
                raise Undelivered("notify by", "the webhook", type(error).__name__, "Check notify.webhook") from None
        if status >= 300:
            raise Undelivered("notify by", "the webhook", f"status {status}", "Check notify.webhook")


async def _tried(send: Callable[[], Awaitable[None]], seconds: float) -> str | None:
    """Send, at most twice; the error in words, or None."""
    try:
        async for attempt in stamina.retry_context(
            on=(PerdureError, OSError, TimeoutError), attempts=_ATTEMPTS, timeout=None, wait_initial=0.5, wait_max=2.0
        ):
            with attempt:
                async with asyncio.timeout(seconds):
                    await send()
    except TimeoutError:
        return f"not done within {seconds:g} s"
    except (PerdureError, OSError) as error:
        return str(error)[:_ERROR_MAX]
    return None
