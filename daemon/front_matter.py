"""What the head of a task file, and a playbook's steps, may say: the shapes that files are checked against."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Final, Literal, TypeAlias

from pydantic import Field, JsonValue, PlainValidator, WithJsonSchema, field_validator, model_validator

from perdure.daemon.proofs import PostconditionEntry
from perdure.daemon.quantities import Duration, duration_seconds, duration_text
from perdure.daemon.schedule import Cron, Watch
from perdure.daemon.setting_types import ZoneName
from perdure.daemon.validation import Strict

_TASK_NAME = re.compile(r"[a-z0-9](?:[a-z0-9_-]{0,62}[a-z0-9])?", re.ASCII)

RUN_ALL_MAX: Final = 1000


@dataclass(frozen=True, slots=True)
class IfMissed:
    """What becomes of firings that nobody was there for: `max` belongs to run-all, `within` (seconds) to run-if-within."""

    mode: Literal["run-once", "skip", "run-all", "run-if-within"] = "run-once"
    max: int | None = None
    within: float | None = None

    @property
    def text(self) -> str:
        """As the file says it, in one line."""
        if self.max is not None:
            return f"{self.mode} (at most {self.max})"
        if self.within is not None:
            return f"{self.mode} {duration_text(self.within)}"
        return self.mode


def _if_missed(value: object) -> IfMissed:
    match value:
        case IfMissed():
            return value
        case "run-once" | "skip" | "run-all":
            return IfMissed(value)
        case {"run-all": {"max": int(most), **unknown}, **others} if (
            not others and not unknown and 1 <= most <= RUN_ALL_MAX
        ):
            return IfMissed("run-all", max=most)
        case {"run-if-within": within, **others} if not others:
            return IfMissed("run-if-within", within=duration_seconds(within))
    raise ValueError("run-once, skip, run-all, {run-all: {max: N}} with N up to 1000, or {run-if-within: 2h}")


IfMissedField: TypeAlias = Annotated[
    IfMissed, PlainValidator(_if_missed), WithJsonSchema({"type": ["string", "object"]})
]


def _pattern(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("a pattern inside the workspace, such as inbox/*.log")  # pydantic wants a ValueError
    return Watch(value).pattern


Pattern: TypeAlias = Annotated[str, PlainValidator(_pattern), WithJsonSchema({"type": "string"})]


class ScheduleEntry(Strict):
    """`schedule:`, one of cron, every and watch."""

    cron: str | None = None
    timezone: ZoneName | None = None
    every: Duration | None = None
    watch: Pattern | None = None
    if_missed: IfMissedField | None = None

    @field_validator("cron")
    @classmethod
    def _is_cron(cls, expression: str | None) -> str | None:
        if expression is not None:
            Cron(expression, "UTC")
        return expression

    @field_validator("every")
    @classmethod
    def _is_long_enough(cls, seconds: float | None) -> float | None:
        if seconds is not None and seconds < 1:
            raise ValueError("a period of at least one second")
        return seconds

    @model_validator(mode="after")
    def _one_of_them(self) -> ScheduleEntry:
        given = [name for name in ("cron", "every", "watch") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"exactly one of cron, every and watch ({' and '.join(given) or 'none'} given)")
        if self.timezone is not None and self.cron is None:
            raise ValueError("`timezone` only together with `cron`")
        return self


class OnlyIf(Strict):
    """The gate before a session, which costs no tokens."""

    files_changed: Pattern


class Bounds(Strict):
    """Hard limits of a session: `context` is tokens of one model call, tool schemas included; `tokens` of all together."""

    steps: Annotated[int, Field(ge=1, le=1000)] = 20
    context: Annotated[int, Field(ge=256, le=2_000_000)] = 8000
    tokens: Annotated[int, Field(ge=256)] = 120_000
    minutes: Annotated[float, Field(gt=0, le=7 * 24 * 60)] = 10.0
    cost_usd: Annotated[float, Field(ge=0)] = 0.50

    @model_validator(mode="after")
    def _one_call_fits(self) -> Bounds:
        if self.context > self.tokens:
            raise ValueError(f"`tokens` of at least `context` ({self.context}), or not even one model call fits")
        return self


class FrontMatter(Strict):
    """The head of a task file."""

    name: str
    planner: Literal["playbook", "model"]
    schedule: ScheduleEntry | None = None
    if_missed: IfMissedField | None = None
    only_if: OnlyIf | None = None
    tools: tuple[str, ...] = ()
    bounds: Bounds = Bounds()
    memory: Literal["task", "workspace"] = "task"
    stale_memory: Literal["refuse", "use"] = "refuse"
    retries: Annotated[int, Field(ge=0, le=10)] = 0
    while_parked: Literal["hold", "run"] = "hold"
    postconditions: tuple[PostconditionEntry, ...] = ()

    @field_validator("name")
    @classmethod
    def _is_name(cls, name: str) -> str:
        if _TASK_NAME.fullmatch(name) is None:
            raise ValueError("a name of small letters, digits, - and _, such as log-triage, of at most 64 characters")
        if name == "workspace":
            raise ValueError("another name than workspace, which is the memory that tasks share")
        return name

    @model_validator(mode="after")
    def _parts_agree(self) -> FrontMatter:
        if self.if_missed is not None and self.schedule is not None and self.schedule.if_missed is not None:
            raise ValueError("`if_missed` once, either beside `schedule` or in it")
        if self.if_missed is not None and self.schedule is None:
            raise ValueError("a `schedule` beside `if_missed`")
        if self.planner == "model" and not self.tools:
            raise ValueError("`tools`: a model may use only the tools that its task lists")
        if len(set(self.tools)) != len(self.tools):
            raise ValueError("each tool once under `tools`")
        return self


class StepEntry(Strict):
    """One step of a playbook."""

    do: str
    args: dict[str, JsonValue] = Field(default_factory=dict)
    when: str | None = None
    for_each: str | list[JsonValue] | None = None
    save: str | None = None
    on_escalate: Literal["park", "continue"] = "park"
    on_error: Literal["stop", "continue"] = "stop"


class Playbook(Strict):
    """The first block of a playbook's body."""

    steps: Annotated[tuple[StepEntry, ...], Field(min_length=1, max_length=200)]
