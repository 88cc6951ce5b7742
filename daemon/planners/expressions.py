"""`${…}` in texts and plain `when:` conditions: one expression language (CEL) over JSON values.

CEL reports run-time errors and missing values as ERROR and UNKNOWN *values*; here they become an `ExpressionFault`."""

from __future__ import annotations

import datetime as dt
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import rfc8785
from cel_expr_python import cel
from cel_expr_python.ext import ext_bindings, ext_math, ext_optional, ext_strings

from perdure.state.events import JSON

DEPTH_MAX = 64
# CEL's C++ side takes strings up to the first NUL, so a NUL in data would silently cut it. This noncharacter (never
# valid in interchanged text) stands in for it on the way in and is turned back on the way out.
_NUL_STAND_IN = "\U0010fffe"
_SURROGATES = re.compile("[\ud800-\udfff]")
_CEL_ERROR = re.compile(r"ERROR: <input>:(-?\d+):(-?\d+): (.*)")
_UNDECLARED = re.compile(r"undeclared reference to '\.?([^']+)'")
_CODE = re.compile(r"^[A-Z_]+: (?=\S)")
_RAW_PREFIX = re.compile(r"(?<![A-Za-z0-9_])(?:[rR][bB]?|[bB][rR])$")
_LAST_PATH = re.compile(r"\s*last((?:\.[A-Za-z_]\w*)+)\s*")

# Words that CEL keeps for itself, and type names that a variable of the same name would hide.
RESERVED = frozenset(
    (  # noqa: SIM905  # a list of forty one-word lines reads worse
        "as break const continue else false for function if import in let loop namespace null package return true var "
        "void while bool bytes cel double duration dyn int list map math null_type optional string strings timestamp "
        "type uint last slot item index args given"
    ).split()
)


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong with an expression; `line` and `column` count from 1 inside the expression's own source. `name`
    is the undeclared name, where that is what is wrong."""

    reason: str
    line: int = 1
    column: int = 1
    name: str | None = None


class ExpressionFault(Exception):
    """An expression does not compile, or has no JSON value for these variables. `faults` has at least one entry."""

    def __init__(self, source: str, faults: list[Fault]) -> None:
        super().__init__(f"`{_shown(source)}`: {'; '.join(fault.reason for fault in faults)}")
        self.source = source
        self.faults = faults


class Missing:
    """The value of `${last.…}` when nothing was saved there: the argument is left out."""


MISSING = Missing()


@dataclass(frozen=True, slots=True)
class Hole:
    """One `${…}`: the CEL source between the braces, and where it starts in the text it was found in."""

    source: str
    start: int


@dataclass(frozen=True, slots=True)
class Template:
    """A text with holes. Where the whole text is one hole, its value keeps its type; else values are written in."""

    text: str
    parts: tuple[str | Hole, ...]

    @property
    def holes(self) -> tuple[Hole, ...]:
        return tuple(part for part in self.parts if isinstance(part, Hole))

    @property
    def has_text(self) -> bool:
        return any(isinstance(part, str) and part for part in self.parts) or not self.parts

    @property
    def whole(self) -> Hole | None:
        return self.parts[0] if len(self.parts) == 1 and isinstance(self.parts[0], Hole) else None

    def value(self, variables: Mapping[str, JSON]) -> JSON | Missing:
        """The text with its holes filled. Raises ExpressionFault. MISSING only for a whole `${last.…}`."""
        if (hole := self.whole) is not None:
            path = _LAST_PATH.fullmatch(hole.source)
            return _at(variables.get("last"), path[1]) if path else evaluate(hole.source, variables)
        return "".join(
            part if isinstance(part, str) else _written(part.source, evaluate(part.source, variables))
            for part in self.parts
        )


@lru_cache(maxsize=4096)
def parse(text: str) -> Template:
    """Find the holes of a text; `$${` stands for a literal `${`. Raises ExpressionFault for an empty or open hole."""
    parts: list[str | Hole] = []
    literal = ""
    position = 0
    while (start := text.find("${", position)) >= 0:
        if start > 0 and text[start - 1] == "$" and start - 1 >= position:
            literal += text[position : start - 1] + "${"
            position = start + 2
            continue
        end = _closing_brace(text, start + 2)
        source = text[start + 2 : end] if end is not None else ""
        if end is None:
            raise ExpressionFault(text[start:], [Fault("`${` is never closed by `}`")])
        if not source.strip():
            raise ExpressionFault(text[start : end + 1], [Fault("nothing stands between `${` and `}`")])
        literal += text[position:start]
        if literal:
            parts.append(literal)
            literal = ""
        parts.append(Hole(source, start + 2))
        position = end + 1
    literal += text[position:]
    if literal:
        parts.append(literal)
    return Template(text, tuple(parts))


def _closing_brace(text: str, start: int) -> int | None:
    """Index of the `}` that closes a hole opened before `start`; braces in CEL strings and of map literals do not."""
    depth = 0
    position = start
    while position < len(text):
        char = text[position]
        if char in "\"'":
            quote = char * 3 if text.startswith(char * 3, position) else char
            raw = _RAW_PREFIX.search(text[max(start, position - 3) : position]) is not None
            position += len(quote)
            while position < len(text) and not text.startswith(quote, position):
                position += 2 if text[position] == "\\" and not raw else 1
            position += len(quote)
            continue
        if char == "{":
            depth += 1
        elif char == "}":
            if depth == 0:
                return position
            depth -= 1
        position += 1
    return None


def templates(value: JSON) -> Iterator[Template]:
    """Every text in a JSON value, as a template. Raises ExpressionFault for the first that cannot be parsed."""
    if isinstance(value, str):
        yield parse(value)
    elif isinstance(value, list):
        for element in value:
            yield from templates(element)
    elif isinstance(value, dict):
        for element in value.values():
            yield from templates(element)


def filled(value: JSON, variables: Mapping[str, JSON]) -> JSON | Missing:
    """The JSON value with all its templates filled, entries that are MISSING left out. Raises ExpressionFault."""
    if isinstance(value, str):
        return parse(value).value(variables)
    if isinstance(value, list):
        return [element for each in value if not isinstance(element := filled(each, variables), Missing)]
    if isinstance(value, dict):
        return {key: new for key, old in value.items() if not isinstance(new := filled(old, variables), Missing)}
    return value


@lru_cache(maxsize=4096)
def names(source: str) -> frozenset[str]:
    """The free variables of an expression (`slot.date` as itself): what CEL misses when none is declared."""
    found: set[str] = set()
    for fault in faults(source, frozenset()):
        if fault.name:
            root, _, rest = fault.name.partition(".")
            found.add(f"slot.{rest.partition('.')[0]}" if root == "slot" and rest else root)
    return frozenset(found)


def faults(source: str, declared: frozenset[str]) -> list[Fault]:
    """What is wrong with an expression, given the names it may use; empty when it compiles."""
    try:
        _compiled(source, declared)
    except ExpressionFault as fault:
        return fault.faults
    return []


def result_type(source: str, declared: frozenset[str]) -> str:
    """The type CEL infers: BOOL, STRING, LIST<…>, DYN … Raises ExpressionFault."""
    return str(_compiled(source, declared).return_type().name())


def evaluate(source: str, variables: Mapping[str, JSON]) -> JSON:
    """The JSON value of a CEL expression. Names with dots (`slot.date`) are texts, all else is dynamically typed.
    Raises ExpressionFault with the reason."""
    expression = _compiled(source, frozenset(variables))
    used = names(source)
    try:
        data = {name: _to_cel(value, DEPTH_MAX) for name, value in variables.items() if name in used}
        value = expression.eval(data=data)
        kind = value.type().name()
        plain = value.plain_value()
    except ExpressionFault as fault:
        raise ExpressionFault(source, fault.faults) from None
    except TypeError:
        raise ExpressionFault(source, [Fault("its value is an optional; end it with `.orValue(…)`")]) from None
    except Exception as error:  # noqa: BLE001  # the binding raises RuntimeError and others for what data makes of it
        raise ExpressionFault(source, [Fault(_reason(str(error)))]) from None
    if kind in ("ERROR", "UNKNOWN"):
        raise ExpressionFault(source, [Fault(_run_time_reason(str(plain), used, variables))])
    return _from_cel(plain, source)


@lru_cache(maxsize=256)
def _environment(declared: frozenset[str]) -> Any:
    variables = {name: cel.Type.STRING if "." in name else cel.Type.DYN for name in declared}
    extensions = [ext_strings.ExtStrings(), ext_math.ExtMath(), ext_optional.ExtOptional(), ext_bindings.ExtBindings()]
    return cel.NewEnv(variables=variables, extensions=extensions)


@lru_cache(maxsize=4096)
def _compiled(source: str, declared: frozenset[str]) -> Any:
    if "\x00" in source:
        raise ExpressionFault(source, [Fault("an expression cannot hold a NUL character")])
    try:
        return _environment(declared).compile(source)
    except RuntimeError as error:
        raise ExpressionFault(source, _compile_faults(source, str(error))) from None


def _compile_faults(source: str, message: str) -> list[Fault]:
    lines = source.split("\n")
    found = []
    for line_text, column_text, words in _CEL_ERROR.findall(message):
        line, column = int(line_text), int(column_text)
        if line < 1 or line > len(lines):
            continue
        words = words.removesuffix(" [INVALID_ARGUMENT]").replace(" (in container '')", "")
        undeclared = _UNDECLARED.search(words)
        name = undeclared[1] if undeclared else None
        if name and "." in name:
            # CEL points at the last dot; a person looks for the beginning of the name
            start = column - 1 - len(name.rpartition(".")[0])
            if start >= 0 and lines[line - 1].startswith(name.partition(".")[0], start):
                column = start + 1
        if name or "'*error*'" not in words:
            found.append(Fault(words, line, max(column, 1), name))
    return found or [Fault(_reason(message))]


def _reason(message: str) -> str:
    if "Iteration budget exceeded" in message:
        return "it goes over more than 10,000 elements, which is CEL's limit; let a tool do that and print JSON"
    first = message.partition("\n")[0]
    return _CODE.sub("", re.sub(r" \[[A-Z_]+\]$", "", first))


def _run_time_reason(message: str, used: frozenset[str], variables: Mapping[str, JSON]) -> str:
    reason = _reason(message)
    unset = sorted(name for name in used if name in variables and variables[name] is None)
    if unset:
        return f"{reason} (`{'`, `'.join(unset)}` is null: the step that saves it gave no result)"
    if "last" in used and reason.startswith("Key not found"):
        return f"{reason}; where the session before may have saved nothing, ask `has(last.NAME)` first"
    return reason


def _at(value: JSON, path: str) -> JSON | Missing:
    for key in path[1:].split("."):
        if not isinstance(value, dict) or key not in value:
            return MISSING
        value = value[key]
    return value


def _to_cel(value: JSON, depth: int) -> Any:
    """A copy that CEL takes over unchanged."""
    if isinstance(value, str):
        if _NUL_STAND_IN in value:
            raise ExpressionFault("", [Fault("the data holds U+10FFFE, which is no character of any text")])
        return _SURROGATES.sub("\ufffd", value.replace("\x00", _NUL_STAND_IN))
    if isinstance(value, list | tuple | dict):
        if depth == 0:
            raise ExpressionFault("", [Fault(f"the data is nested deeper than {DEPTH_MAX} levels")])
        if isinstance(value, dict):
            return {_to_cel(str(key), depth): _to_cel(element, depth - 1) for key, element in value.items()}
        return [_to_cel(element, depth - 1) for element in value]
    return value


def _from_cel(value: Any, source: str) -> JSON:
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        return value.replace(_NUL_STAND_IN, "\x00")
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ExpressionFault(source, [Fault(f"its value is {value}, which JSON cannot hold")])
        return value
    if isinstance(value, list):
        return [_from_cel(element, source) for element in value]
    if isinstance(value, dict):
        return {str(_from_cel(key, source)): _from_cel(element, source) for key, element in value.items()}
    if isinstance(value, dt.datetime):
        return value.astimezone(dt.UTC).isoformat().replace("+00:00", "Z")
    kind = type(value).__name__
    raise ExpressionFault(source, [Fault(f"its value is of type {kind}, which JSON cannot hold; use string(…)")])


def _written(source: str, value: JSON) -> str:
    """A value as it stands inside a text."""
    if isinstance(value, str):
        return value
    if value is None:
        raise ExpressionFault(source, [Fault("its value is null, which cannot stand inside a text")])
    if isinstance(value, float):
        return rfc8785.dumps(value).decode()  # 1.0 as "1", as CEL's own string() writes it
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _shown(source: str) -> str:
    line = " ".join(source.split())
    return line if len(line) <= 120 else line[:117] + "…"
