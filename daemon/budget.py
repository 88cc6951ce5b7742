"""Budgets are reserved, not observed: what a model call may cost at most is set aside before it is made.

Pure accounting in whole tokens and whole nano-dollars; no I/O, no clock of its own. The session loop writes the events."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from perdure.daemon.planners.moves import Reply, Request
from perdure.state.events import JSON

NANO = 1_000_000_000
MICROSECONDS_PER_MINUTE = 60_000_000

Window = Literal["hour", "day", "month"]
WINDOW_US: Mapping[Window, int] = {"hour": 3_600_000_000, "day": 86_400_000_000, "month": 30 * 86_400_000_000}
WINDOW_WORDS: Mapping[Window, str] = {"hour": "60 minutes", "day": "24 hours", "month": "30 days"}
WARN_AT = 0.8  # a cap that is used up this far is worth an alarm
PASSES_A_CAP = "would pass the cap of"  # in the reason of a session that a cap of [budgets] ended, and in no other


class Limits(Protocol):
    """The bounds of a session, as a task declares them. None means: no such bound."""

    @property
    def steps(self) -> int: ...
    @property
    def context(self) -> int: ...
    @property
    def tokens(self) -> int: ...
    @property
    def minutes(self) -> float: ...
    @property
    def cost_usd(self) -> float | None: ...


class Used(Protocol):
    """What an earlier session of the same run has used."""

    @property
    def steps(self) -> int | None: ...
    @property
    def tokens(self) -> int | None: ...
    @property
    def cost_usd(self) -> float | None: ...
    @property
    def duration_us(self) -> int | None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Charged:
    """What a settled call cost. `returned` tokens go back to the budget; `over` is how many more tokens the provider
    counted than were reserved (0 but for a provider whose count is higher than ours)."""

    tokens: int
    usd: float
    returned: int = 0
    over: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cap:
    """A limit over many sessions: of one task, or of all when `task` is None, in any stretch of time of that length."""

    window: Window
    task: str | None = None
    tokens: int | None = None
    usd: float | None = None

    def words(self) -> str:
        """Which cap this is, for a person."""
        return f"{f'task {self.task}' if self.task else 'all tasks'} in any {WINDOW_WORDS[self.window]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Charge:
    """One thing that was paid for, at `at` (microseconds UTC)."""

    at: int
    task: str
    tokens: int
    usd: float


@dataclass(slots=True)
class _Tally:
    tokens: int = 0
    nano_usd: int = 0


class Caps:
    """The caps of the workspace, shared by all its sessions. `history` is what the ledger says was charged (oldest first;
    an open reservation of a crashed daemon counts in full), so that caps survive a restart. A call is charged at the moment
    of its request, as the ledger has it: a restart moves nothing from one window to another."""

    def __init__(self, caps: Sequence[Cap], *, now: Callable[[], int], history: Iterable[Charge] = ()) -> None:
        self._caps = tuple(caps)
        self.now = now
        self._charges: deque[tuple[int, str, int, int]] = deque()
        self._open: dict[str, _Tally] = {}
        for charge in history:
            self._charges.append((charge.at, charge.task, charge.tokens, _nano_up(charge.usd)))

    def reserve(self, task: str, tokens: int, nano_usd: int) -> str | None:
        """Set aside, or say which cap forbids it."""
        for cap in self._caps:
            if cap.task not in (None, task):
                continue
            used = self._used(cap)
            if cap.tokens is not None and used.tokens + tokens > cap.tokens:
                return (
                    f"{tokens} tokens more {PASSES_A_CAP} {cap.tokens} for {cap.words()}: "
                    f"{used.tokens} are used or reserved"
                )
            if cap.usd is not None and used.nano_usd + nano_usd > _nano_down(cap.usd):
                return (
                    f"{nano_usd / NANO:.4f} USD more {PASSES_A_CAP} {cap.usd:g} USD for {cap.words()}: "
                    f"{used.nano_usd / NANO:.4f} are used or reserved"
                )
        tally = self._open.setdefault(task, _Tally())
        tally.tokens += tokens
        tally.nano_usd += nano_usd
        return None

    def settle(self, task: str, reserved: tuple[int, int], charged: tuple[int, int], *, at: int) -> None:
        """Replace a reservation (tokens, nano-dollars) made at the moment `at` by what it cost."""
        tally = self._open[task]
        tally.tokens -= reserved[0]
        tally.nano_usd -= reserved[1]
        if tally.tokens < 0 or tally.nano_usd < 0:
            raise AssertionError("more was settled than reserved")
        self._charges.append((at, task, *charged))

    def warnings(self) -> list[str]:
        """The caps that are used up to 80 % or more, in words."""
        return [words for cap in self._caps for words in self.warnings_of(cap, self._used(cap))]

    @staticmethod
    def warnings_of(cap: Cap, used: _Tally) -> list[str]:
        """What is used up to 80 % or more of one cap, in words."""
        found = []
        if cap.tokens is not None and used.tokens >= WARN_AT * cap.tokens:
            found.append(f"{used.tokens} of {cap.tokens} tokens for {cap.words()} are used")
        if cap.usd is not None and used.nano_usd >= WARN_AT * _nano_down(cap.usd):
            found.append(f"{used.nano_usd / NANO:.4f} of {cap.usd:g} USD for {cap.words()} are used")
        return found

    def near(self, task: str) -> list[tuple[str, int, str]]:
        """As `warnings`, of the caps that are about the task: which cap, its window in microseconds, and the words."""
        return [
            (cap.words(), WINDOW_US[cap.window], words)
            for cap in self._caps
            if cap.task in (None, task)
            for words in self.warnings_of(cap, self._used(cap))
        ]

    def used_up(self, task: str) -> str | None:
        """In words, the cap that leaves the task nothing at all; None where there is none."""
        for cap in self._caps:
            if cap.task not in (None, task):
                continue
            used = self._used(cap)
            if cap.tokens is not None and used.tokens >= cap.tokens:
                return f"{used.tokens} of {cap.tokens} tokens for {cap.words()} are used"
            if cap.usd is not None and used.nano_usd >= _nano_down(cap.usd):
                return f"{used.nano_usd / NANO:.4f} of {cap.usd:g} USD for {cap.words()} are used"
        return None

    def _used(self, cap: Cap) -> _Tally:
        now = self.now()
        horizon = now - WINDOW_US["month"]
        while self._charges and self._charges[0][0] <= horizon:
            self._charges.popleft()
        since = now - WINDOW_US[cap.window]
        used = _Tally()
        for at, task, tokens, nano_usd in self._charges:
            if at > since and cap.task in (None, task):
                used.tokens += tokens
                used.nano_usd += nano_usd
        for task, tally in self._open.items():
            if cap.task in (None, task):
                used.tokens += tally.tokens
                used.nano_usd += tally.nano_usd
        return used


@dataclass(frozen=True, slots=True)
class _Reservation:
    request: Request
    tokens: int
    nano_usd: int
    at: int


class Budget:
    """What one session may still use. Every amount is taken off when it is reserved, and what was not used comes back when
    the call is settled; a call whose end nobody knows is charged in full."""

    def __init__(self, bounds: Limits, *, caps: Caps | None = None, task: str = "", spent: Iterable[Used] = ()) -> None:
        self._limits = bounds
        self._caps = caps
        self._task = task
        rows = list(spent)
        self._earlier_steps = sum(row.steps or 0 for row in rows)
        self._earlier_tokens = sum(row.tokens or 0 for row in rows)
        self._earlier_nano = sum(_nano_up(row.cost_usd or 0.0) for row in rows)
        self._earlier_us = sum(row.duration_us or 0 for row in rows)
        self._steps = 0
        self._tokens = 0
        self._nano = 0
        self._open: list[_Reservation] = []

    @classmethod
    def remaining(cls, bounds: Limits, earlier: Iterable[Used], *, caps: Caps | None = None, task: str = "") -> Budget:
        """The budget of a session that goes on from `earlier` ones: it keeps what they left."""
        return cls(bounds, caps=caps, task=task, spent=earlier)

    def bounds(self) -> dict[str, JSON]:
        """What this session may still use, as the ledger records it at the opening."""
        return {
            "steps": self.steps_left,
            "context": self._limits.context,
            "tokens": self.tokens_left,
            "minutes": self.minutes_left,
            "cost_usd": self.usd_left,
        }

    @property
    def steps_used(self) -> int:
        """Steps of this session alone."""
        return self._steps

    @property
    def steps_left(self) -> int:
        return max(0, self._limits.steps - self._earlier_steps - self._steps)

    @property
    def tokens_used(self) -> int:
        """Tokens charged to this session alone; open reservations count in full."""
        return self._tokens + self._reserved_tokens

    @property
    def tokens_left(self) -> int:
        return max(0, self._limits.tokens - self._earlier_tokens - self.tokens_used)

    @property
    def usd_used(self) -> float:
        """USD charged to this session alone; open reservations count in full."""
        return (self._nano + self._reserved_nano) / NANO

    @property
    def usd_left(self) -> float | None:
        return None if self._limits.cost_usd is None else self._nano_left(self._limits.cost_usd) / NANO

    @property
    def minutes_left(self) -> float:
        """Minutes left when this session began; its own time is the session's to measure."""
        return max(0.0, self._limits.minutes - self._earlier_us / MICROSECONDS_PER_MINUTE)

    def use_step(self) -> None:
        """Count one step of this session."""
        self._steps += 1

    def reserve(self, request: Request) -> str | None:
        """Set aside what the call may cost at most. None: done; else why not, with both numbers, and nothing changed."""
        tokens = request.prompt_tokens + request.completion_cap
        nano_usd = _nano_up(request.usd_max)
        if request.prompt_tokens > self._limits.context:
            return f"the prompt has {request.prompt_tokens} tokens; the bound on one call (context) is {self._limits.context}"
        if tokens > self.tokens_left:
            return (
                f"the next call may take {tokens} tokens ({request.prompt_tokens} prompt + {request.completion_cap} "
                f"answer); {self.tokens_left} of {self._limits.tokens} are left"
            )
        limit = self._limits.cost_usd
        if limit is not None and nano_usd > self._nano_left(limit):
            left = self._nano_left(limit) / NANO
            return f"the next call may cost {request.usd_max:.4f} USD; {left:.4f} of {limit:g} USD are left"
        if self._caps is not None and (refusal := self._caps.reserve(self._task, tokens, nano_usd)) is not None:
            return refusal
        self._open.append(_Reservation(request, tokens, nano_usd, at=0 if self._caps is None else self._caps.now()))
        return None

    def settle(self, reply: Reply, request: Request | None = None) -> Charged:
        """Charge what the call really cost and give the rest back. `request` names the reservation where several are open;
        without it the oldest is meant. A call whose provider gave no count (it failed, it timed out) is charged in full."""
        reservation = self._take(request)
        usage = reply.usage
        if usage is not None and usage.input_tokens is not None and usage.output_tokens is not None:
            tokens, nano_usd = usage.input_tokens + usage.output_tokens, _nano_up(reply.usd)
        else:
            tokens, nano_usd = reservation.tokens, reservation.nano_usd
        return self._charge(reservation, tokens, nano_usd)

    def _take(self, request: Request | None) -> _Reservation:
        for index, reservation in enumerate(self._open):
            if request is None or reservation.request is request:
                return self._open.pop(index)
        raise AssertionError("a call was settled that was never reserved")

    def _charge(self, reservation: _Reservation, tokens: int, nano_usd: int) -> Charged:
        self._tokens += tokens
        self._nano += nano_usd
        if self._caps is not None:
            reserved = (reservation.tokens, reservation.nano_usd)
            self._caps.settle(self._task, reserved, (tokens, nano_usd), at=reservation.at)
        return Charged(
            tokens=tokens,
            usd=nano_usd / NANO,
            returned=max(0, reservation.tokens - tokens),
            over=max(0, tokens - reservation.tokens),
        )

    def _nano_left(self, limit: float) -> int:
        return max(0, _nano_down(limit) - self._earlier_nano - self._nano - self._reserved_nano)

    @property
    def _reserved_tokens(self) -> int:
        return sum(reservation.tokens for reservation in self._open)

    @property
    def _reserved_nano(self) -> int:
        return sum(reservation.nano_usd for reservation in self._open)


def _nano_up(usd: float) -> int:
    """Nano-dollars, rounded so that a charge never counts for less than it is."""
    return math.ceil(round(usd * NANO, 3))


def _nano_down(usd: float) -> int:
    """Nano-dollars, rounded so that a limit never counts for more than it is."""
    return math.floor(round(usd * NANO, 3))
