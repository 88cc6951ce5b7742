"""The tool `follow_up`: proposing that a task runs again later. It starts nobody: it opens a slot, within bounds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from perdure.daemon.clock import MICROSECONDS, iso
from perdure.daemon.quantities import duration_seconds
from perdure.daemon.resumption import chain
from perdure.daemon.scheduler import free, opened
from perdure.daemon.tools import schemas
from perdure.daemon.tools.digests import prepare
from perdure.daemon.tools.model import Call, Prepared, Result, ToolRefused, ToolSpec
from perdure.state import projections
from perdure.state.events import JSON

if TYPE_CHECKING:
    from perdure.daemon.config import Config
    from perdure.state.ledger import Ledger, LedgerReader

AFTER_SECONDS_MAX = 366 * 86_400

FOLLOW_UP = ToolSpec(
    name="follow_up",
    description="Have a task run once more, later, as a session of its own. A person's policies decide whether it may.",
    args_schema=schemas.args(
        "task",
        task=schemas.text("The task's name"),
        after=schemas.text("How long from now, such as 30m, 2h or 1d; at once where it is left out"),
        why=schemas.text("What it is for, for the people who read the ledger"),
    ),
    effect="probeable",
    probeable=True,
    free_text=("why",),
)


@dataclass(frozen=True, slots=True)
class FollowUp:
    """Opens slots of kind `follow-up` whose cause is the action."""

    config: Config
    ledger: Ledger | None
    now: Callable[[], int]

    @property
    def spec(self) -> ToolSpec:
        return FOLLOW_UP

    def prepare(self, args: Mapping[str, JSON]) -> Prepared:
        name = str(args["task"])
        rows = projections.tasks(self.ledger.reader) if self.ledger is not None else []
        known = {row.task for row in rows if row.removed_at is None}
        if self.ledger is not None and name not in known:
            raise ToolRefused(
                "follow up with", name, "there is no such task", f"Tasks here: {', '.join(sorted(known))}"
            )
        _seconds(args)
        return prepare(self.spec, args)

    async def run(self, prepared: Prepared, call: Call) -> Result:
        if self.ledger is None:
            raise AssertionError("a tool without a ledger was run")
        reader = self.ledger.reader
        existing = _opened_by(reader, prepared, call.action)
        if existing is not None:
            return Result(ok=True, value=_told(existing, call.action))
        limits = self.config.limits
        siblings = [
            row
            for session in chain(reader, call.session)  # a question in between brings no further share
            for row in projections.actions(reader, session=session.session)
            if row.tool == self.spec.name and row.status == "succeeded"
        ]
        if len(siblings) >= limits.follow_ups:
            return Result(
                ok=False, value=None, error=f"this session has already opened {len(siblings)} follow-ups, the most"
            )
        depth = depth_of(reader, call.session) + 1
        if depth > limits.follow_up_depth:
            said = f"this session is itself follow-up number {depth - 1} of a chain, and {limits.follow_up_depth} is the most"
            return Result(ok=False, value=None, error=said)
        task = str(prepared.args["task"])
        due = free(reader, task, "follow-up", self.now() + int(_seconds(prepared.args) * MICROSECONDS))
        slot = opened(task, "follow-up", due, cause=call.action)
        await self.ledger.write(slot)
        return Result(ok=True, value=_told(slot.slot, call.action) | {"due": iso(due), "depth": depth})

    async def probe(self, prepared: Prepared, call: Call) -> bool | None:
        return self.ledger is not None and _opened_by(self.ledger.reader, prepared, call.action) is not None


def depth_of(reader: LedgerReader, session: str) -> int:
    """How many follow-ups led to this session, one from another."""
    depth, known = 0, {session}
    while (row := projections.session(reader, session)) is not None:
        slot = projections.slot(reader, row.slot)
        if slot is None:
            break
        if slot.kind == "follow-up" and slot.cause is not None:
            depth += 1
            action = projections.action(reader, slot.cause)
            before = action.session if action is not None else None
        else:
            before = row.resumes
        if before is None or before in known:
            break
        session = before
        known.add(before)
    return depth


def _opened_by(reader: LedgerReader, prepared: Prepared, action: str) -> str | None:
    for event in reader.events(types=("slot.opened",), task=str(prepared.args["task"]), newest_first=True, limit=1_000):
        if event.body.get("cause") == action:
            return str(event.body["slot"])
    return None


def _told(slot: str, action: str) -> dict[str, JSON]:
    return {"slot": slot, "cause": action}


def _seconds(args: Mapping[str, JSON]) -> float:
    text = str(args.get("after") or "")
    if not text:
        return 0.0
    try:
        seconds = duration_seconds(text)
    except ValueError as error:
        raise ToolRefused("follow up after", text, str(error), "Give a length such as 30m, 2h or 1d") from None
    if not 0 <= seconds <= AFTER_SECONDS_MAX:
        raise ToolRefused("follow up after", text, "it is more than a year", "Give a shorter time")
    return seconds
