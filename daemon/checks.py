"""Looking whether a condition holds: by reading files, asking databases, programs and servers; never by a planner's word."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import sqlite3
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from jsonschema import Draft202012Validator
from referencing import Registry
from referencing.exceptions import Unresolvable

from perdure.daemon import python_check
from perdure.daemon.planners import expressions
from perdure.daemon.planners.expressions import ExpressionFault, Missing
from perdure.daemon.proofs import (
    CommandSucceeds,
    EffectsThere,
    FileContains,
    FileExists,
    HttpAnswers,
    JsonSchema,
    Postcondition,
    PythonSays,
    SqlReturns,
    Unchanged,
)
from perdure.daemon.tools.executables import executed_by, search_path
from perdure.daemon.tools.model import Call, ToolRefused
from perdure.daemon.tools.roots import declared_roots
from perdure.daemon.tools.running import Limits, Runner
from perdure.state.events import JSON

if TYPE_CHECKING:
    from perdure.daemon.config import Config
    from perdure.daemon.planners.moves import Taken

FILE_BYTES_MAX = 50_000_000
SQL_ROUNDS_MAX = 20_000  # of _SQL_STEPS instructions of SQLite's machine each: some seconds
PYTHON_SECONDS_MAX = 60.0
PYTHON_OUTPUT_BYTES_MAX = 64_000
_SQL_ALLOWED = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, 33}  # 33: SQLITE_RECURSIVE
_SQL_STEPS = 10_000

Act = Callable[[str, dict[str, JSON]], Awaitable["Taken"]]
There = Callable[[str], Awaitable[list[str]]]


class Failed(Exception):
    """The condition does not hold, and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What looking gave. `path` and `digest` (SHA-256) are those of the file that the condition is about."""

    passed: bool
    detail: str
    path: str | None = None
    digest: str | None = None


@dataclass(slots=True, kw_only=True)
class Checks:
    """Looks at conditions of one session. `variables` fill `${…}`; `act` carries out a program or request as an action under
    the policies; `there` says which effects of a tool are gone; `before` are digests that `unchanged` compares with."""

    config: Config
    variables: Mapping[str, JSON]
    act: Act
    there: There
    before: dict[str, str] = field(default_factory=dict)

    async def look(self, condition: Postcondition) -> Found:
        """Whether the condition holds now."""
        try:
            return await self._look(condition)
        except (Failed, ToolRefused, ExpressionFault, OSError, ValueError, sqlite3.Error) as error:
            return Found(passed=False, detail=str(error))

    async def _look(self, condition: Postcondition) -> Found:
        match condition:
            case FileExists() | FileContains() | JsonSchema():
                path = self.path(condition.path)
                content = await asyncio.to_thread(self.content, path)
                detail = _file_holds(condition, self.text(condition.path), content, self)
                return Found(passed=True, detail=detail, path=str(path), digest=hashlib.sha256(content).hexdigest())
            case Unchanged():
                name = self.text(condition.path)
                if self.digest(condition.path) != self.before.get(condition.path):
                    raise Failed(f"{name} is not what it was when the session opened")
                return Found(passed=True, detail=f"{name} is what it was")
            case CommandSucceeds():
                words: list[JSON] = [self.text(word) for word in condition.command]
                taken = await self.act("run_command", {"command": words})
                if taken.status != "succeeded":
                    raise Failed(taken.error or taken.reason)
                return Found(passed=True, detail="exit status 0")
            case HttpAnswers():
                url = self.text(condition.url)
                contains = self.text(condition.contains) if condition.contains is not None else None
                taken = await self.act("http_request", {"method": "GET", "url": url})
                return Found(passed=True, detail=_answer(taken, condition, url, contains))
            case SqlReturns():
                return Found(passed=True, detail=await asyncio.to_thread(self._query, condition))
            case PythonSays():
                return Found(passed=True, detail=await self._python(condition))
            case EffectsThere():
                gone = [words for tool in condition.tools for words in await self.there(tool)]
                if gone:
                    raise Failed("; ".join(gone))
                return Found(passed=True, detail=f"what {', '.join(condition.tools)} did is there")

    # -- files --------------------------------------------------------------------------------------------------------

    def text(self, text: str) -> str:
        """The text with its `${…}` filled. Raises Failed where one has no value."""
        value = expressions.filled(text, self.variables)
        if isinstance(value, Missing):
            raise Failed(f"{text} has no value")
        return str(value)

    def filled(self, value: Any) -> Any:
        """A condition's values with every `${…}` filled."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {key: self.filled(each) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [self.filled(each) for each in value]
        return value

    def path(self, text: str) -> Path:
        """The file that `text` leads to. Raises Failed where there is none, ToolRefused outside the declared roots."""
        path = declared_roots(self.config).resolve(self.text(text), "read")
        if not path.is_file():
            raise Failed(f"there is no file {self.text(text)}")
        return path

    def content(self, path: Path) -> bytes:
        """All bytes of the file. Raises Failed for one that is too large."""
        descriptor = declared_roots(self.config).open_file(path)
        with os.fdopen(descriptor, "rb") as file:
            content = file.read(FILE_BYTES_MAX + 1)
        if len(content) > FILE_BYTES_MAX:
            raise Failed(f"{path} is larger than {FILE_BYTES_MAX} bytes")
        return content

    def digest(self, text: str) -> str:
        """The digest of the file, or in words why there is none."""
        try:
            return hashlib.sha256(self.content(self.path(text))).hexdigest()
        except (Failed, ToolRefused, OSError) as error:
            return str(error)

    # -- a database, and the operator's own code ------------------------------------------------------------------------

    def _query(self, condition: SqlReturns) -> str:
        path = self.path(condition.database)
        query = self.text(condition.query)
        rounds = iter(range(SQL_ROUNDS_MAX))

        def overdue() -> int:
            return 0 if next(rounds, None) is not None else 1

        database = sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)
        try:
            database.set_authorizer(_only_reading)
            database.set_progress_handler(overdue, _SQL_STEPS)
            row = database.execute(query).fetchone()
        finally:
            database.close()
        if row is None:
            raise Failed(f"no row: {query}")
        if condition.returns is not None and row[0] != condition.returns:
            raise Failed(f"{query} returned {row[0]!r}, expected {condition.returns!r}")
        return f"{query} returned {row[0]!r}"

    async def _python(self, condition: PythonSays) -> str:
        roots = declared_roots(self.config)
        file = self.path(condition.file)
        runner = _reading_only(self.config)
        if not runner.confines(network=False):
            raise Failed("a Python check runs only where Landlock confines it, so that it can change nothing")
        environment = runner.base_environment()
        argv = (sys.executable, "-I", python_check.__file__, str(file), condition.function)
        told = {"args": self.filled(condition.args), **self.variables}
        ended = await runner.run(
            argv,
            executed_by(argv, search_path=search_path(environment), cwd=roots.workspace),
            environment,
            Limits(
                seconds_max=PYTHON_SECONDS_MAX,
                output_bytes_max=PYTHON_OUTPUT_BYTES_MAX,
                memory_bytes_max=self.config.commands.memory_bytes_max,
                network=False,
            ),
            Call(action="check", session="check", attempt=1, seconds_max=PYTHON_SECONDS_MAX),
            cwd=roots.workspace,
            stdin=json.dumps(told).encode(),
        )
        name = f"{self.text(condition.file)}:{condition.function}"
        if ended.exit != 0:
            said = ended.stderr.text.strip().splitlines()
            raise Failed(f"{name}: {ended.cut or ended.refused or (said[-1] if said else f'exit {ended.exit}')}")
        objection = json.loads(ended.stdout.text)["objection"]
        if objection is not None:
            raise Failed(f"{name}: {objection}")
        return f"{name} has no objection"


def _file_holds(condition: FileExists | FileContains | JsonSchema, name: str, content: bytes, checks: Checks) -> str:
    match condition:
        case FileExists():
            if not content:
                raise Failed(f"{name} is empty")
            return f"{name} has {len(content)} bytes"
        case FileContains():
            wanted = checks.text(condition.text)
            if wanted not in content.decode(errors="replace"):
                raise Failed(f"{name} does not contain {wanted!r}")
            return f"{name} contains {wanted!r}"
        case JsonSchema():
            _fits(condition.json_schema, name, content)
            return f"{name} fits the schema"


def _fits(schema: dict[str, Any], name: str, content: bytes) -> None:
    """Nothing where the schema accepts the file. What a `$ref` names is looked for in the schema alone, never on the network."""
    try:
        value = json.loads(content)
    except RecursionError:
        raise Failed(f"{name} is nested too deeply to be looked at") from None
    except ValueError as error:
        raise Failed(f"{name} is not JSON: {error}") from None
    try:
        fault = next(Draft202012Validator(schema, registry=Registry()).iter_errors(value), None)
    except Unresolvable as unresolvable:
        where = f"the schema names {unresolvable.ref!r}, which is not in it"
        raise Failed(f"{name} cannot be checked: {where}") from None
    except RecursionError:
        raise Failed(f"{name} cannot be checked: the schema or the file goes round in circles or too deep") from None
    if fault is not None:
        raise Failed(f"{name}: {fault.message} at {fault.json_path}")


def _only_reading(action: int, _: str | None, second: str | None, *__: object) -> int:
    if action == sqlite3.SQLITE_FUNCTION and second == "load_extension":
        return sqlite3.SQLITE_DENY
    return sqlite3.SQLITE_OK if action in _SQL_ALLOWED else sqlite3.SQLITE_DENY


def _reading_only(config: Config) -> Runner:
    """A runner whose programs may read what the workspace's may, and write nothing."""
    roots = declared_roots(config)
    commands = config.commands.model_copy(update={"write": ()})
    only_read = replace(roots, read=(*roots.read, *roots.write), write=())
    return Runner(config.model_copy(update={"commands": commands}), only_read)


def _answer(taken: Taken, condition: HttpAnswers, url: str, contains: str | None) -> str:
    value = taken.result if isinstance(taken.result, dict) else {}
    status = value.get("status")
    if status != condition.status:
        raise Failed(taken.error or f"{url} answered {status}, expected {condition.status}")
    if contains is not None and not any(contains in body for body in _spellings(value)):
        raise Failed(f"the body of {url} does not contain {contains!r}")
    return f"{url} answered {status}"


def _spellings(answer: Mapping[str, JSON]) -> list[str]:
    """The body of an answer as text: that of JSON in each of its usual spellings."""
    if "json" in answer:
        body = answer["json"]
        return [json.dumps(body, ensure_ascii=False), json.dumps(body, ensure_ascii=False, separators=(",", ":"))]
    if "base64" in answer:
        return [base64.b64decode(str(answer["base64"])).decode(errors="replace")]
    return [str(answer.get("text", ""))]
