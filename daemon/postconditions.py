"""What must be true at the end of a session, checked by the daemon itself and never by the planner's word."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jsonschema import Draft202012Validator

from perdure.daemon.front_matter import (
    CommandSucceeds,
    FileContains,
    FileExists,
    HttpAnswers,
    JsonSchema,
    Postcondition,
    Unchanged,
)
from perdure.daemon.planners import expressions
from perdure.daemon.planners.expressions import ExpressionFault, Missing
from perdure.daemon.planners.moves import Proposal, Taken
from perdure.daemon.steps import Parked, Rejected
from perdure.daemon.tools.model import ToolRefused
from perdure.daemon.tools.roots import Roots, declared_roots
from perdure.state.events import JSON, Draft, PostconditionChecked

if TYPE_CHECKING:
    from perdure.daemon.runtime import Runtime
    from perdure.daemon.steps import Steps
    from perdure.daemon.tasks import Task

FILE_BYTES_MAX = 50_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One postcondition as it was found."""

    index: int
    kind: str
    passed: bool
    detail: str


class Failed(Exception):
    """The condition does not hold, and why."""


class Postconditions:
    """The postconditions of one session of `task`; made when the session opens, so that `unchanged` knows from what."""

    def __init__(self, runtime: Runtime, task: Task, session: str, slot: Mapping[str, str]) -> None:
        self._runtime = runtime
        self._task = task
        self._session = session
        self._variables: dict[str, JSON] = {f"slot.{name}": value for name, value in slot.items()}
        self._roots = declared_roots(runtime.config)
        self._before = {
            index: self._digest(condition.path)
            for index, condition in enumerate(task.postconditions)
            if isinstance(condition, Unchanged)
        }

    async def check(self, steps: Steps) -> list[Check]:
        """Check all and record each. Programs and requests run as actions of the session, under the policies."""
        checks = [
            await self._checked(index, condition, steps) for index, condition in enumerate(self._task.postconditions)
        ]
        drafts: list[Draft] = [
            PostconditionChecked(
                session=self._session,
                task=self._task.name,
                index=check.index,
                kind=check.kind,
                passed=check.passed,
                payload={"condition": _words(self._task.postconditions[check.index]), "detail": check.detail},
            )
            for check in checks
        ]
        await self._runtime.ledger.write(*drafts)
        return checks

    async def _checked(self, index: int, condition: Postcondition, steps: Steps) -> Check:
        try:
            detail = await self._hold(index, condition, steps)
            return Check(index=index, kind=condition.kind, passed=True, detail=detail)
        except (Failed, ToolRefused, ExpressionFault, OSError, ValueError) as error:
            return Check(index=index, kind=condition.kind, passed=False, detail=str(error))

    async def _hold(self, index: int, condition: Postcondition, steps: Steps) -> str:
        match condition:
            case FileExists():
                size = self._path(condition.path).stat().st_size
                if size == 0:
                    raise Failed(f"{condition.path} is empty")
                return f"{self._text(condition.path)} has {size} bytes"
            case FileContains():
                wanted = self._text(condition.text)
                if wanted not in self._content(condition.path).decode(errors="replace"):
                    raise Failed(f"{self._text(condition.path)} does not contain {wanted!r}")
                return f"{self._text(condition.path)} contains {wanted!r}"
            case JsonSchema():
                error = next(
                    Draft202012Validator(condition.json_schema).iter_errors(json.loads(self._content(condition.path))),
                    None,
                )
                if error is not None:
                    raise Failed(f"{self._text(condition.path)}: {error.message} at {error.json_path}")
                return f"{self._text(condition.path)} fits the schema"
            case Unchanged():
                if self._digest(condition.path) != self._before[index]:
                    raise Failed(f"{self._text(condition.path)} is not what it was when the session opened")
                return f"{self._text(condition.path)} is what it was"
            case CommandSucceeds():
                words: list[JSON] = [self._text(word) for word in condition.command]
                taken = await self._act(index, "run_command", {"command": words}, steps)
                if taken.status != "succeeded":
                    raise Failed(taken.error or taken.reason)
                return "exit status 0"
            case HttpAnswers():
                taken = await self._act(
                    index, "http_request", {"method": "GET", "url": self._text(condition.url)}, steps
                )
                return _answer(taken, condition)

    async def _act(self, index: int, tool: str, args: dict[str, JSON], steps: Steps) -> Taken:
        proposal = Proposal(
            tool=tool,
            args=args,
            provenance={name: ["config"] for name in args},
            confidence=1.0,
            key=f"postcondition {index + 1}",
            on_escalate="continue",
        )
        try:
            taken = await steps.take(0, proposal)
        except (Rejected, Parked) as error:
            raise Failed(str(error)) from error
        if taken.status is None:
            raise Failed(f"the policies do not let the check run on its own ({taken.decision}: {taken.reason})")
        return taken

    def _text(self, text: str) -> str:
        value = expressions.filled(text, self._variables)
        if isinstance(value, Missing):
            raise Failed(f"{text} has no value")
        return str(value)

    def _path(self, text: str) -> Path:
        roots: Roots = self._roots
        path = roots.resolve(self._text(text), "read")
        if not path.is_file():
            raise Failed(f"there is no file {self._text(text)}")
        return path

    def _content(self, text: str) -> bytes:
        descriptor = self._roots.open_file(self._path(text))
        with os.fdopen(descriptor, "rb") as file:
            content = file.read(FILE_BYTES_MAX + 1)
        if len(content) > FILE_BYTES_MAX:
            raise Failed(f"{self._text(text)} is larger than {FILE_BYTES_MAX} bytes")
        return content

    def _digest(self, text: str) -> str:
        try:
            return hashlib.sha256(self._content(text)).hexdigest()
        except (Failed, ToolRefused, OSError) as error:
            return str(error)


def _answer(taken: Taken, condition: HttpAnswers) -> str:
    value = taken.result if isinstance(taken.result, dict) else {}
    status, body = value.get("status"), str(value.get("body", ""))
    if status != condition.status:
        raise Failed(taken.error or f"{condition.url} answered {status}, expected {condition.status}")
    if condition.contains is not None and condition.contains not in body:
        raise Failed(f"the body of {condition.url} does not contain {condition.contains!r}")
    return f"answered {status}"


def _words(condition: Postcondition) -> JSON:
    fields: dict[str, JSON] = condition.model_dump(mode="json", by_alias=True)
    return {condition.kind: fields}


def failures(checks: Sequence[Check]) -> str:
    """The failed checks in words; empty where all passed."""
    failed = [check for check in checks if not check.passed]
    return "; ".join(f"postcondition {check.index + 1} ({check.kind}): {check.detail}" for check in failed)
