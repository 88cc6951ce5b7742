"""Conditions in CEL: which names they may use, checked against each tool's schema at load; evaluated without raising.

cel-expr-python (measured, 0.1.3) answers errors and missing values as ERROR values, raises on lone surrogates and on more than
10,000 iterations, and cuts every string at its first NUL. So whatever is not exactly true or false counts as an error here, and
arguments that it would read differently from the tool make every condition an error. Its regular expressions are RE2: linear."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cel_expr_python import cel

from perdure.policies.documents import nearest
from perdure.policies.model import Facts, ProposedAction, ToolSignature


@dataclass(frozen=True, slots=True)
class Fact:
    """A documented fact: its CEL type, the field of Facts that holds it, and what it says."""

    type: str
    field: str
    says: str


# The names that `when:` may use beside the arguments, and `given:` in tests may set.
FACTS: Mapping[str, Fact] = {
    "task": Fact("string", "task", "the task's name"),
    "planner": Fact("string", "planner", "playbook or model"),
    "confidence": Fact("double", "confidence", "0.0 to 1.0; a playbook's is 1.0"),
    "session.confidence": Fact(
        "double", "session_confidence", "0.0 to 1.0: the product over what the session has done and nobody verified"
    ),
    "votes_ahead": Fact("int", "votes_ahead", "by how many votes the proposal leads"),
    "tainted": Fact("bool", "tainted", "whether this session has read anything untrusted"),
    "hour": Fact("int", "hour", "0 to 23, in the workspace's zone"),
    "minute": Fact("int", "minute", "0 to 59"),
    "weekday": Fact("string", "weekday", "mon, tue, wed, thu, fri, sat or sun"),
    "session.steps": Fact("int", "session_steps", "steps of this session so far"),
    "session.tokens": Fact("int", "session_tokens", "tokens of this session so far"),
    "session.cost_usd": Fact("double", "session_cost_usd", "cost of this session so far"),
    "last_hour.tokens": Fact("int", "hour_tokens", "tokens of all sessions in the last hour"),
    "last_hour.cost_usd": Fact("double", "hour_cost_usd", "cost of all sessions in the last hour"),
    "last_hour.calls": Fact("int", "tool_calls_hour", "calls of this tool in the last hour"),
    "last_day.tokens": Fact("int", "day_tokens", "tokens of all sessions in the last 24 hours"),
    "last_day.cost_usd": Fact("double", "day_cost_usd", "cost of all sessions in the last 24 hours"),
    "last_day.calls": Fact("int", "tool_calls_day", "calls of this tool in the last 24 hours"),
    "success_rate": Fact(
        "double", "success_rate", "verified success rate of this tool in this task; -1.0: no record yet"
    ),
}
# Known of the action itself, so that tests set them through `args`.
ACTION_VARIABLES: Mapping[str, str] = {"tool": "string", "effect": "string", "host": "string", "method": "string"}
ABOUT_CERTAINTY = (
    "confidence",
    "session.confidence",
    "votes_ahead",
)  # what obligations may not depend on: they decide about them

_TYPES: Mapping[str, Any] = {
    "string": cel.Type.STRING,
    "int": cel.Type.INT,
    "double": cel.Type.DOUBLE,
    "bool": cel.Type.BOOL,
}
_SCHEMA_TYPES = {"string": "string", "integer": "int", "number": "double", "boolean": "bool"}
_CEL_WORDS = frozenset(
    [
        "as",
        "break",
        "const",
        "continue",
        "else",
        "false",
        "for",
        "function",
        "if",
        "import",
        "in",
        "let",
        "loop",
        "null",
        "package",
        "namespace",
        "return",
        "true",
        "var",
        "void",
        "while",
    ]
)
_PLACE = re.compile(r"<input>:(-?[0-9]+):(-?[0-9]+): (.*)")
_MATCHES = re.compile(r"""\bmatches\s*\((?:[^()'"]*,)?\s*(r?(?:'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*"))\s*\)""")
_UNREADABLE = re.compile("[\0\ud800-\udfff]")


def variable(name: str) -> str:
    """An argument's name as conditions spell it: what CEL cannot read becomes `_`, and CEL's own words get a `_`."""
    plain = re.sub(r"[^A-Za-z0-9_]", "_", name)
    if plain in _CEL_WORDS or not plain:
        return plain + "_"
    return "_" + plain if plain[0].isdigit() else plain


class ConditionMistake(Exception):
    """Why a condition does not compile. `line` and `column` count from 1 within the condition."""

    def __init__(self, line: int, column: int, found: str, expected: str) -> None:
        super().__init__(line, column, found, expected)
        self.line = line
        self.column = column
        self.found = found
        self.expected = expected


class Condition:
    """A compiled condition of one rule for one tool."""

    __slots__ = ("_evaluate", "text")

    def __init__(self, text: str, evaluate: Callable[[Any], Any]) -> None:
        self.text = text
        self._evaluate = evaluate

    def holds(self, activation: Any) -> bool | str:
        """True, False, or in words why it could not be evaluated. Never raises."""
        try:
            value = self._evaluate(activation).value()
        except Exception as error:  # noqa: BLE001 (the library raises RuntimeError, TypeError and more; none may loosen anything)
            return _first_line(str(error))
        return value if value is True or value is False else _first_line(str(value))


class Vocabulary:
    """The names and types that conditions about one tool may use, and the way to compile them."""

    def __init__(self, signature: ToolSignature) -> None:
        self.signature = signature
        self._names: dict[str, str] = {}  # variable -> argument
        properties = signature.args_schema.get("properties") or {}
        types: dict[str, Any] = {}
        ambiguous: set[str] = set()
        for argument, schema in properties.items():
            name = variable(argument)
            if name in self._names:
                ambiguous.add(name)
            self._names[name] = argument
            types[f"args.{name}"] = _cel_type(schema)
            types[f"given.{name}"] = cel.Type.BOOL
            types[f"provenance.{name}"] = cel.Type.List(cel.Type.STRING)
        for name in ambiguous:  # two arguments that only differ in what CEL cannot spell: neither can be named
            for prefix in ("args", "given", "provenance"):
                types.pop(f"{prefix}.{name}", None)
            self._names.pop(name)
        for name, fact in FACTS.items():
            types[name] = _TYPES[fact.type]
        for name, kind in ACTION_VARIABLES.items():
            types[name] = _TYPES[kind]
        self.types = types
        self._env = cel.NewEnv(variables=types)
        self._env_obligations = cel.NewEnv(
            variables={name: kind for name, kind in types.items() if name not in ABOUT_CERTAINTY}
        )
        self._used: set[str] = set()

    def compile(self, text: str, *, obligation: bool) -> Condition:
        """The condition, or ConditionMistake."""
        env = self._env_obligations if obligation else self._env
        try:
            expression = env.compile(text)
        except Exception as error:  # noqa: BLE001 (the library says everything with RuntimeError)
            raise self._mistake(text, str(error), obligation) from None
        if expression.return_type() != cel.Type.BOOL or "has(" in text:
            hint = (
                "`given.NAME` for whether an optional argument was given"
                if "has(" in text
                else "a condition that is true or false"
            )
            raise ConditionMistake(
                1,
                1,
                f"a value of type {expression.return_type().name().lower()}" if "has(" not in text else "has()",
                hint,
            )
        for literal in _MATCHES.finditer(text):
            self._check_pattern(text, literal)
        self._used |= {name for name in self.types if name in text}
        return Condition(text, expression.eval)

    def compile_any(self, texts: Sequence[str], *, obligation: bool) -> Condition | None:
        """One condition that is certainly false only where each of these is; None where they do not compile together."""
        env = self._env_obligations if obligation else self._env
        text = " || ".join(f"(\n{text}\n)" for text in texts)
        try:
            return Condition(text, env.compile(text).eval)
        except Exception:  # noqa: BLE001 (too deep, too long: then each is asked on its own)
            return None

    def activation(self, action: ProposedAction, facts: Facts) -> Any:
        """The values of one question, shared by all conditions. Only names that some condition uses are handed over.
        Raises ValueError where CEL would read an argument differently from the tool."""
        values: dict[str, Any] = {}
        for name in self._used:
            prefix, _, rest = name.partition(".")
            if prefix == "args":
                argument = self._names[rest]
                if argument in action.args:
                    values[name] = readable(action.args[argument])
            elif prefix == "given":
                values[name] = self._names[rest] in action.args
            elif prefix == "provenance":
                values[name] = list(action.provenance.get(self._names[rest], ()))
            elif name in FACTS:
                values[name] = getattr(facts, FACTS[name].field)
            else:
                value = getattr(action, name)
                if value is not None:
                    values[name] = readable(value)
        return self._env.Activation(values)

    def _check_pattern(self, text: str, literal: re.Match[str]) -> None:
        value = self._env.compile(f"''.matches({literal[1]})").eval(self._env.Activation({})).value()
        if not isinstance(value, bool):
            before = text[: literal.start(1)]
            place = before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1
            raise ConditionMistake(
                *place, f"the pattern {literal[1]}", f"a regular expression of RE2 ({_first_line(str(value))})"
            )

    def _mistake(self, text: str, message: str, obligation: bool) -> ConditionMistake:
        placed = _PLACE.search(message)
        line, column, said = (int(placed[1]), int(placed[2]), placed[3]) if placed else (1, 1, _first_line(message))
        line, column = max(line, 1), max(column, 1)
        said = re.sub(r" \(in container ''\)| \[INVALID_ARGUMENT\]|^found ", "", said)
        unknown = re.search(r"undeclared reference to '([^']*)'", said)
        if not unknown:
            return ConditionMistake(
                line,
                column,
                said,
                f"a condition in CEL over the arguments of {self.signature.name} and the documented facts",
            )
        word = unknown[1]
        if word in ("args", "given", "provenance", "session", "last_hour", "last_day"):
            full = re.search(rf"\b{word}\.[A-Za-z_0-9]+", text)
            word = full[0] if full else word
        start = (
            text.splitlines()[line - 1].rfind(word.split(".", maxsplit=1)[0], 0, column)
            if line <= len(text.splitlines())
            else -1
        )
        if obligation and word in ABOUT_CERTAINTY:
            return ConditionMistake(
                line,
                max(start, 0) + 1,
                f"{word!r} in a rule that requires",
                "no word about confidence or votes: obligations are what decides about them",
            )
        known = (
            [name for name in self.types if name.startswith(word.partition(".")[0] + ".")]
            if "." in word
            else list(self.types)
        )
        hint = nearest(word, known) or nearest(word, list(self.types))
        expected = f"an argument of {self.signature.name} or a documented fact{hint}"
        return ConditionMistake(line, max(start, 0) + 1, f"the unknown name {word!r}", expected)


def readable(value: Any) -> Any:
    """`value`, or ValueError where it holds text that CEL would cut (NUL) or cannot take (surrogates)."""
    if isinstance(value, str):
        if not value.isascii() or "\0" in value:
            found = _UNREADABLE.search(value)
            if found:
                raise ValueError(f"an argument holds U+{ord(found[0]):04X}")
    elif isinstance(value, Mapping):
        return {readable(key): readable(item) for key, item in value.items()}
    elif isinstance(value, list | tuple):
        return [readable(item) for item in value]
    return value


def _cel_type(schema: Any) -> Any:
    if not isinstance(schema, Mapping):
        return cel.Type.DYN
    kind = schema.get("type")
    if isinstance(kind, str):
        if kind in _SCHEMA_TYPES:
            return _TYPES[_SCHEMA_TYPES[kind]]
        if kind == "array":
            return cel.Type.List(_cel_type(schema.get("items")))
        if kind == "object":
            return cel.Type.Map(cel.Type.STRING, cel.Type.DYN)
    return cel.Type.DYN


_NOT_GIVEN = re.compile(r'No value with name "args\.(\w+)" found')


def _first_line(message: str) -> str:
    if found := _NOT_GIVEN.search(message):
        return f"args.{found[1]} was not given; `given.{found[1]} &&` before it says what is meant then"
    return message.strip().splitlines()[0].removesuffix(" [INTERNAL]")[:200] if message.strip() else "no reason given"
