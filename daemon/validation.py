"""From pydantic's errors to problems that a person can mend: the place in the file, what was found, what was expected."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError

from perdure.errors import Problem

Path: TypeAlias = tuple[str | int, ...]

FOUND_CHARACTERS_MAX: Final = 80


class Strict(BaseModel):
    """A part of a configuration file: unknown keys are errors, nothing is coerced, nothing changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, validate_default=True)


class ShownSecretError(ValueError):
    """What was found looks like a secret: the message must show neither it nor its line."""


class Source:
    """A configuration file's name and text, from which problems are made. `name` is relative to the workspace."""

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.lines = text.splitlines()

    def problem(self, place: tuple[int, int], found: str, expected: str) -> Problem:
        """The problem at `place` (line, column; 0, 0 where there is none), with the source line."""
        line, column = place
        source_line = self.lines[line - 1] if 0 < line <= len(self.lines) else ""
        return Problem(self.name, line, column, found, expected, source_line)


def nearest(name: str, known: Iterable[str]) -> str:
    """What to expect instead of the unknown `name`: the nearest of `known` if one is near, else all of them."""
    names = sorted(known)
    close = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.6)
    if close:
        return f"`{close[0]}`, the nearest known"
    if not names:
        return "nothing here"
    return "one of " + ", ".join(f"`{each}`" for each in names)


def shown(value: object) -> str:
    """`value` as a short piece of JSON for an error message."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= FOUND_CHARACTERS_MAX else text[: FOUND_CHARACTERS_MAX - 1] + "…"


Model = TypeVar("Model", bound=BaseModel)


def validate(
    model: type[Model],
    data: Mapping[str, object],
    source: Source,
    place: Callable[[Path, bool], tuple[int, int]],
    *,
    context: object = None,
    hidden: Sequence[str] = (),
) -> tuple[Model | None, list[Problem]]:
    """`data` as a `model`, or all its problems. `place(path, key)` is where the key (or the value) at `path` stands;
    `hidden` are fields that the loader fills in and no file may set."""
    text = json.dumps(data, default=str)  # JSON mode is strict and still takes arrays for tuples and texts for paths
    try:
        return model.model_validate_json(text, context=context), []
    except ValidationError as error:
        details = _without_consequences(error.errors(include_url=False))
        return None, [_problem(model, detail, source, place, hidden) for detail in details]


def _without_consequences(details: Sequence[Any]) -> list[Any]:
    """The errors without those that only follow from others: of a union's other members, where one member got further into
    the value; and that a list is too short, where elements of it are wrong."""
    inner = {detail["loc"][:depth] for detail in details for depth in range(1, len(detail["loc"]))}
    deep = {detail["loc"][:depth] for detail in details for depth in range(1, len(detail["loc"]) - 1)}
    return [
        detail
        for detail in details
        if not (detail["loc"][:-1] in deep and detail["loc"][-1:] in _TYPE_MEMBERS)
        and not (detail["type"] == "too_short" and detail["loc"] in inner)
    ]


_TYPE_MEMBERS: Final = (("str",), ("int",), ("float",), ("bool",))


def _problem(
    model: type[BaseModel],
    detail: Any,
    source: Source,
    place: Callable[[Path, bool], tuple[int, int]],
    hidden: Sequence[str],
) -> Problem:
    kind: str = detail["type"]
    path: Path = detail["loc"]
    if kind == "extra_forbidden":
        known = [key for key in known_keys(model, path[:-1]) if key not in hidden]
        return source.problem(place(path, True), f"the unknown key `{path[-1]}`", nearest(str(path[-1]), known))
    if kind == "missing":
        return source.problem(place(path[:-1], True), f"no `{path[-1]}` here", f"the key `{path[-1]}`")
    key = path[-1:] == ("[key]",)
    path = path[:-1] if key else path
    if isinstance(detail.get("ctx", {}).get("error"), ShownSecretError):
        hidden_line = Source(source.name, "")
        return hidden_line.problem(place(path, key), "what looks like a secret", _expected(kind, detail))
    return source.problem(place(path, key), shown(detail["input"]), _expected(kind, detail))


_EXPECTED: Final = {
    "string_type": "a text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "dict_type": "a table of keys and values",
    "model_type": "a table of keys and values",
    "model_attributes_type": "a table of keys and values",
    "tuple_type": "a list",
    "list_type": "a list",
    "path_type": "a path",
    "finite_number": "a finite number",
}
_EXPECTED_WITH_LIMIT: Final = {
    "greater_than": "a number greater than {gt}",
    "greater_than_equal": "a number of at least {ge}",
    "less_than": "a number less than {lt}",
    "less_than_equal": "a number of at most {le}",
    "literal_error": "{expected}",
    "too_short": "at least {min_length} of them",
    "too_long": "at most {max_length} of them",
    "string_too_short": "a text of at least {min_length} characters",
    "string_too_long": "a text of at most {max_length} characters",
    "string_pattern_mismatch": "a text that matches {pattern}",
}


def _expected(kind: str, detail: Any) -> str:
    context: dict[str, object] = detail.get("ctx", {})
    if kind == "value_error":
        return str(context["error"])
    if kind in _EXPECTED:
        return _EXPECTED[kind]
    if kind in _EXPECTED_WITH_LIMIT:
        return _EXPECTED_WITH_LIMIT[kind].format(**context)
    message: str = detail["msg"]
    return message[:1].lower() + message[1:]


def known_keys(model: type[BaseModel], path: Path) -> list[str]:
    """The keys that the part of `model` at `path` may have, as the file spells them."""
    models = {model}
    free = False  # the next part of the path is a table's free key or a list's index
    for part in path:
        if free or isinstance(part, int):
            free = False
            continue
        fields = [
            field for each in models for name, field in each.model_fields.items() if (field.alias or name) == part
        ]
        if not fields:
            continue
        models = {found for field in fields for found in _models_in(field.annotation)}
        free = any(_is_table(field.annotation) for field in fields)
    return sorted({field.alias or name for each in models for name, field in each.model_fields.items()})


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)


def _is_table(annotation: Any) -> bool:
    origin = get_origin(annotation)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return True
    return any(_is_table(argument) for argument in get_args(annotation))
