"""The world around the daemon: what tools do to it, what a model says, and the independent record of every effect."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from tests.wrapped_tool import WrappedTool

from perdure.daemon.planners.moves import Finish, Malformed, Move, Proposal, Reply, Request, Usage, View
from perdure.daemon.tools.model import Call, Prepared, Result, ToolInterrupted, ToolSpec

from .virtual_time import Crash, VirtualClock

if TYPE_CHECKING:
    from perdure.state.events import JSON


class BrokenPromise(SystemExit):
    """An invariant does not hold. Nothing in the daemon may handle it."""

    def __init__(self, promise: str) -> None:
        super().__init__(promise)
        self.promise = promise


@dataclass(frozen=True)
class Effect:
    """Something that really happened."""

    tool: str
    action: str
    attempt: int
    args: dict[str, Any]
    at: int


@dataclass
class Fuse:
    """The process dies when something of this kind happens for the `left`th time."""

    kind: str
    left: int


@dataclass
class Outside:
    """The world. `life` counts the daemon's processes: a dead one can do nothing any more."""

    clock: VirtualClock
    random: Random
    ledger: Path
    effects: list[Effect] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    life: int = 0
    fuse: Fuse | None = None
    connection: sqlite3.Connection | None = None

    def burn(self, kind: str) -> None:
        """Die here, if that is what was planned."""
        if self.fuse is not None and self.fuse.kind == kind:
            self.fuse.left -= 1
            if self.fuse.left <= 0:
                self.fuse = None
                self.counts[f"crash {kind}"] += 1
                raise Crash(kind)

    def watch_ledger(self) -> None:
        """Look at the file through a connection of our own: what it does not show is not durable."""
        self.stop_watching()
        self.connection = sqlite3.connect(f"file:{self.ledger}?mode=ro", uri=True)

    def stop_watching(self) -> None:
        if self.connection is not None:
            self.connection.close()
            self.connection = None

    def happens(self, life: int, tool: str, prepared: Prepared, call: Call) -> None:
        """The effect itself. It is only possible with a durable intent of exactly this attempt, which has not ended."""
        if life != self.life:
            raise Crash("a dead process")
        self.burn("before effect")
        assert self.connection is not None
        rows = self.connection.execute(
            "SELECT type, body FROM events WHERE action = ? AND type IN ('action.intended', 'action.ended') ORDER BY seq",
            (call.action,),
        ).fetchall()
        last_type, last_body = (rows[-1][0], json.loads(rows[-1][1])) if rows else ("nothing", {})
        if last_type != "action.intended" or last_body["attempt"] != call.attempt:
            raise BrokenPromise(
                f"1: {tool} {call.action} attempt {call.attempt} acts after {last_type}, without its intent"
            )
        if last_body["digest"] != prepared.digest or last_body["tool"] != tool:
            raise BrokenPromise(f"3: {call.action} does something else than its intent says")
        if any(one.action == call.action and one.attempt == call.attempt for one in self.effects[-200:]):
            raise BrokenPromise(f"2: {call.action} attempt {call.attempt} happens twice")
        self.effects.append(Effect(tool, call.action, call.attempt, dict(prepared.args), self.clock.wall()))
        self.counts[f"effect {tool}"] += 1
        self.burn("after effect")

    def has_happened(self, action: str) -> bool:
        return any(effect.action == action for effect in reversed(self.effects))


@dataclass(frozen=True)
class SimulatedTool(WrappedTool):
    """An operator's tool: what it does is ours."""

    outside: Outside
    life: int

    def prepare(self, args: Mapping[str, JSON]) -> Prepared:
        return replace(self.real.prepare(args), sandboxed=True)

    async def run(self, prepared: Prepared, call: Call) -> Result:
        draw, clock = self.outside.random, self.outside.clock
        fate = draw.random()
        slow = draw.uniform(100.0, 5_000.0) if draw.random() < 0.02 else draw.expovariate(1.0)
        before = draw.random() * slow
        await clock.sleep(before)
        if fate < 0.04:
            return self._told("said no", Result(ok=False, value=None, error="the other side said no"))
        if fate < 0.06:
            self.outside.counts["tool cut off before"] += 1
            raise ToolInterrupted("finish", self.spec.name, "the line went dead", "It will be settled")
        self.outside.happens(self.life, self.spec.name, prepared, call)
        await clock.sleep(slow - before)
        if fate < 0.08:
            self.outside.counts["tool cut off after"] += 1
            raise ToolInterrupted("finish", self.spec.name, "the line went dead", "It will be settled")
        if fate < 0.09:
            self.outside.counts["tool defect"] += 1
            raise ValueError("a defect of the tool, after it did its work")
        return Result(ok=True, value={"stdout": f"{self.spec.name} {draw.randrange(1000)}"})

    async def probe(self, prepared: Prepared, call: Call) -> bool | None:
        if not self.spec.probeable:
            return None
        return None if self.outside.random.random() < 0.1 else self.outside.has_happened(call.action)

    def _told(self, what: str, result: Result) -> Result:
        self.outside.counts[f"tool {what}"] += 1
        return result


@dataclass(frozen=True)
class ObservedTool(WrappedTool):
    """A real tool of Perdure on real files, watched."""

    outside: Outside
    life: int

    async def run(self, prepared: Prepared, call: Call) -> Result:
        if self.outside.random.random() < 0.5:
            result = await self.real.run(prepared, call)
            self.outside.happens(self.life, self.spec.name, prepared, call)
            return result
        self.outside.happens(self.life, self.spec.name, prepared, call)
        return await self.real.run(prepared, call)


class SimulatedModel:
    """A planner as a language model is one: mostly sensible, sometimes garbage, sometimes silent."""

    name = "model"
    model: str | None = "simulated-1"
    factor = 1.0

    def __init__(self, outside: Outside, tools: Sequence[str]) -> None:
        self._outside = outside
        self._tools = tools
        self._wanted = outside.random.randint(1, 7)
        self._obsessed = outside.random.random() < 0.04
        self._finished = 0

    def overhead(self, tools: Sequence[ToolSpec]) -> int:
        return 60 * len(tools)

    def request(self, view: View) -> Request | None:
        prompt = view.context.tokens + 120 * len(view.taken) + 60
        return Request(
            model="simulated-1",
            prompt_tokens=prompt,
            completion_cap=200,
            usd_max=(prompt + 400) / 1e6,
            body={"step": view.step},
        )

    async def propose(self, view: View, request: Request | None, seconds_max: float) -> Reply:
        assert request is not None
        draw = self._outside.random
        await self._outside.clock.sleep(min(seconds_max, draw.expovariate(1 / 3.0)))
        self._outside.burn("in planner")
        fate = draw.random()
        if fate < 0.02:
            self._outside.counts["model timeout"] += 1
            await self._outside.clock.sleep(min(seconds_max, 120.0))
            return Reply(move=Malformed(reason="provider-timeout", detail="no answer"), failed="timeout")
        if fate < 0.04:
            self._outside.counts["model refused"] += 1
            return Reply(
                move=Malformed(reason="provider-failed", detail="no"),
                failed="failed",
                usage=Usage(input_tokens=0, output_tokens=0),
            )
        used: int | None = draw.randint(1, request.completion_cap)
        counted = (
            request.prompt_tokens if fate > 0.06 else request.prompt_tokens + 500
        )  # a provider that counts otherwise
        if fate > 0.99:
            used = None
        move = self._move(view, draw)
        if isinstance(move, Malformed):
            self._outside.counts["garbage"] += 1
        return Reply(
            move=move,
            usage=Usage(input_tokens=counted, output_tokens=used),
            usd=counted / 1e6,
            raw={"said": str(move)[:500]},
        )

    def _move(self, view: View, draw: Random) -> Move:
        if self._obsessed:
            return self._proposal("peek", {"key": "again"}, draw)
        fate = draw.random()
        if fate < 0.05:
            reason = draw.choice(["empty", "garbage", "too-long", "bad-arguments"])
            return Malformed(
                reason=reason, detail="\x00\ud83d".encode("utf-8", "replace").decode() + "x" * draw.randint(0, 3000)
            )
        if fate < 0.07:
            return self._proposal("rm_rf", {"path": "/"}, draw)
        if fate < 0.09:
            return self._proposal("pay", {"amount": "all", "to": "me"}, draw)
        if self._finished >= self._wanted or fate < 0.12:
            return Finish(says="done", saved={"count": len(view.taken)} if draw.random() < 0.5 else {})
        self._finished += 1
        tool = draw.choice(list(self._tools))
        return self._proposal(tool, ARGUMENTS[tool](draw), draw)

    def _proposal(self, tool: str, args: dict[str, JSON], draw: Random) -> Proposal:
        return Proposal(
            tool=tool,
            args=args,
            provenance={name: ["model"] for name in args},
            confidence=round(draw.uniform(0.5, 1.0), 3),
            says="because",
            on_escalate=draw.choice(["park", "continue"]),
            on_error=draw.choice(["stop", "continue"]),
        )


ARGUMENTS: dict[str, Callable[[Random], dict[str, Any]]] = {
    "peek": lambda draw: {"key": draw.choice(["disk", "load", "bill"])},
    "put": lambda draw: {"key": draw.choice("abc"), "value": draw.randrange(1000)},
    "block": lambda draw: {"ip": f"10.0.0.{draw.randrange(1, 40)}"},
    "pay": lambda draw: {"amount": draw.randrange(1, 120)},
    "remember": lambda draw: {"subject": draw.choice(["gate", "road"]), "attribute": "state", "value": draw.choice(["open", "shut"])},
    "recall": lambda draw: {"query": draw.choice(["gate", "what was paid", ""]) or "x"},
    "write_file": lambda draw: {
        "path": draw.choice(["reports/audit.md", "reports/audit.md", "reports/other.md", "elsewhere.md"]),
        "text": draw.choice(["audited", "audited twice", "lies"]),
    },
}  # fmt: skip
