"""recall and remember: what the agent may ask of its memory and tell it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from perdure.daemon.clock import iso
from perdure.daemon.tools import schemas
from perdure.daemon.tools.digests import prepare
from perdure.daemon.tools.model import Call, Prepared, Result, ToolSpec
from perdure.errors import PerdureError
from perdure.state.events import JSON

RECALLED_DEFAULT, RECALLED_MAX = 10, 100


class FactView(Protocol):
    """A fact as the tool shows it; times are microseconds UTC."""

    @property
    def subject(self) -> str: ...
    @property
    def attribute(self) -> str: ...
    @property
    def value(self) -> str: ...
    @property
    def valid_from(self) -> int: ...
    @property
    def valid_to(self) -> int | None: ...
    @property
    def source(self) -> str: ...
    @property
    def standing(self) -> str: ...
    @property
    def speaker(self) -> str: ...


class RecordView(Protocol):
    """A record that recall found; `at` is microseconds UTC."""

    @property
    def text(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def at(self) -> int: ...
    @property
    def untrusted(self) -> bool: ...
    @property
    def standing(self) -> str | None: ...


class MemoryView(Protocol):
    """The part of memory that tools may use."""

    def recall(self, scope: str, query: str, limit: int) -> Awaitable[Sequence[RecordView]]: ...

    @property
    def facts(self) -> Callable[..., Awaitable[Sequence[FactView]]]: ...


RECALL = ToolSpec(
    name="recall",
    description=(
        "Ask memory. With subject or attribute: facts, newest first, past values included. With query: records of earlier "
        "sessions that are near it in meaning; standing superseded: no longer so, disputed: a person said otherwise."
    ),
    args_schema=schemas.args(
        query=schemas.text("What to look for", minLength=1, maxLength=2_000),
        subject=schemas.text("Facts about this", minLength=1, maxLength=500),
        attribute=schemas.text("Facts with this attribute", minLength=1, maxLength=500),
        limit=schemas.number(f"At most so many of each; default {RECALLED_DEFAULT}", 1, RECALLED_MAX),
    ),
    effect="read",
)

REMEMBER = ToolSpec(
    name="remember",
    description="Keep a fact for later sessions: an attribute of a subject. A newer value replaces the older one.",
    args_schema=schemas.args(
        "subject",
        "attribute",
        "value",
        subject=schemas.text("What it is about", pattern=r"\S", maxLength=400),
        attribute=schemas.text("Which of its properties", pattern=r"\S", maxLength=400),
        value=schemas.text("The value", pattern=r"\S", maxLength=4_000),
    ),
    effect="idempotent",
    free_text=("value",),
)


@dataclass(frozen=True, slots=True)
class Recall:
    """`{"facts": [{"subject", "attribute", "value", "valid_from", "valid_to", "standing", "said_by", "source"}],
    "records": [{"text", "at", "source", "untrusted", "standing"}]}`: a fact stands `current`, `superseded` or `disputed` (an
    agent's word against a person's), and so does a record that tells one; of another record it is null."""

    memory: MemoryView
    spec: ToolSpec = RECALL

    def prepare(self, args: Mapping[str, JSON]) -> Prepared:
        return prepare(self.spec, args)

    async def run(self, prepared: Prepared, call: Call) -> Result:
        args = prepared.args
        limit = args.get("limit", RECALLED_DEFAULT)
        assert isinstance(limit, int)
        facts: list[JSON] = []
        records: list[JSON] = []
        try:
            if "subject" in args or "attribute" in args or "query" not in args:
                found = await self.memory.facts(
                    call.scope, subject=args.get("subject"), attribute=args.get("attribute"), current=False, limit=limit
                )
                facts = [_fact(fact) for fact in sorted(found, key=lambda fact: -fact.valid_from)]
            if "query" in args:
                near = await self.memory.recall(call.scope, str(args["query"]), limit)
                records = [
                    {
                        "text": record.text,
                        "at": iso(record.at),
                        "source": record.source,
                        "untrusted": record.untrusted,
                        "standing": record.standing,
                    }
                    for record in near
                ]
        except PerdureError as error:
            return Result(ok=False, value={"facts": facts, "records": records}, error=str(error))
        return Result(ok=True, value={"facts": facts, "records": records})

    async def probe(self, prepared: Prepared, call: Call) -> bool | None:
        return None


@dataclass(frozen=True, slots=True)
class Remember:
    """The outcome's event is the memory: compaction makes a fact of it. So there is nothing to do but to say it."""

    spec: ToolSpec = REMEMBER

    def prepare(self, args: Mapping[str, JSON]) -> Prepared:
        return prepare(self.spec, args)

    async def run(self, prepared: Prepared, call: Call) -> Result:
        return Result(ok=True, value={name: prepared.args[name] for name in ("subject", "attribute", "value")})

    async def probe(self, prepared: Prepared, call: Call) -> bool | None:
        return None


def _fact(fact: FactView) -> JSON:
    return {
        "subject": fact.subject,
        "attribute": fact.attribute,
        "value": fact.value,
        "valid_from": iso(fact.valid_from),
        "valid_to": iso(fact.valid_to) if fact.valid_to is not None else None,
        "standing": fact.standing,
        "said_by": fact.speaker,
        "source": fact.source,
    }
