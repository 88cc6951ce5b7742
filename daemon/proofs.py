"""What can be proven, as configuration says it: postconditions of tasks and checks of tool calls.

Texts may hold `${…}`; the daemon evaluates them, and never believes a planner's word."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, TypeAlias

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError
from pydantic import Field, JsonValue, field_validator, model_validator

from perdure.daemon.quantities import Duration
from perdure.daemon.validation import Strict


class Provable(Strict):
    """One condition. `keep` (seconds): once proven, later sessions of the task check it again for so long."""

    kind: ClassVar[str]
    keep: Duration | None = None


class FileExists(Provable):
    """A file is there and is not empty."""

    kind: ClassVar[str] = "file_exists"
    path: str


class FileContains(Provable):
    """A file holds a text."""

    kind: ClassVar[str] = "file_contains"
    path: str
    text: Annotated[str, Field(min_length=1)]


class JsonSchema(Provable):
    """A file is JSON that a schema (2020-12) accepts."""

    kind: ClassVar[str] = "json_schema"
    path: str
    json_schema: Annotated[dict[str, JsonValue], Field(alias="schema")]

    @field_validator("json_schema")
    @classmethod
    def _is_schema(cls, schema: dict[str, JsonValue]) -> dict[str, JsonValue]:
        try:
            Draft202012Validator.check_schema(schema)
        except SchemaError as error:
            raise ValueError(f"a JSON Schema: {error.message}") from None
        return schema


class CommandSucceeds(Provable):
    """A program (argument list, no shell) exits 0."""

    kind: ClassVar[str] = "command_succeeds"
    command: Annotated[tuple[str, ...], Field(min_length=1)]


class HttpAnswers(Provable):
    """A GET of `url` answers with `status` and, if given, with `contains` in its body."""

    kind: ClassVar[str] = "http"
    url: Annotated[str, Field(pattern=r"^https?://")]
    status: Annotated[int, Field(ge=100, le=599)] = 200
    contains: str | None = None


class Unchanged(Provable):
    """A file is, byte for byte, what it was when the session was opened."""

    kind: ClassVar[str] = "unchanged"
    path: str


class SqlReturns(Provable):
    """A query of a SQLite file (opened read-only) returns `returns` as its first value; without it, at least one row."""

    kind: ClassVar[str] = "sql"
    database: str
    query: Annotated[str, Field(min_length=1)]
    returns: str | int | float | None = None


class PythonSays(Provable):
    """A function of the operator's own returns true (or None: no objection); a text or false says what is wrong. It gets one
    mapping: `args`, and what is known of the slot. It runs in a process of its own that can read and change nothing."""

    kind: ClassVar[str] = "python"
    file: Annotated[str, Field(pattern=r"\.py$")]
    function: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] = "check"
    args: dict[str, JsonValue] = Field(default_factory=dict)


class EffectsThere(Provable):
    """What every successful action of these tools did in this session is still there, as the tools' own probes say."""

    kind: ClassVar[str] = "effects"
    tools: Annotated[tuple[str, ...], Field(min_length=1)]


Postcondition: TypeAlias = (
    FileExists
    | FileContains
    | JsonSchema
    | CommandSucceeds
    | HttpAnswers
    | Unchanged
    | SqlReturns
    | PythonSays
    | EffectsThere
)


class PostconditionEntry(Strict):
    """One entry under `postconditions:` or `verify`: exactly one condition, and optionally `keep` beside it."""

    file_exists: str | None = None
    file_contains: FileContains | None = None
    json_schema: JsonSchema | None = None
    command_succeeds: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    http: HttpAnswers | None = None
    unchanged: str | None = None
    sql: SqlReturns | None = None
    python: PythonSays | None = None
    effects: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    keep: Duration | None = None

    @model_validator(mode="after")
    def _one_of_them(self) -> PostconditionEntry:
        conditions = [name for name in type(self).model_fields if name != "keep"]
        given = [name for name in conditions if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"exactly one of {', '.join(conditions)}")
        if self.keep is not None and given[0] in ("unchanged", "effects"):
            raise ValueError(f"`keep` with another condition than {given[0]}, which is about one session")
        return self

    def postcondition(self) -> Postcondition:
        """The one that is given."""
        if self.file_exists is not None:
            return FileExists(path=self.file_exists, keep=self.keep)
        if self.unchanged is not None:
            return Unchanged(path=self.unchanged)
        if self.command_succeeds is not None:
            return CommandSucceeds(command=self.command_succeeds, keep=self.keep)
        if self.effects is not None:
            return EffectsThere(tools=self.effects)
        found = self.file_contains or self.json_schema or self.http or self.sql or self.python
        assert found is not None
        return found if self.keep is None else found.model_copy(update={"keep": self.keep})


def texts(value: object) -> list[str]:
    """All texts in a postcondition's values, where `${…}` may stand."""
    match value:
        case str():
            return [value]
        case Mapping():
            return [text for each in value.values() for text in texts(each)]
        case list() | tuple():
            return [text for each in value for text in texts(each)]
        case _:
            return []


def postcondition_texts(condition: Postcondition) -> list[str]:
    """The texts of a postcondition in which expressions count: not those of a JSON Schema."""
    fields: dict[str, Any] = condition.model_dump(exclude={"json_schema"})
    return texts(fields)
