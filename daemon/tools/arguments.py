"""Checking proposed arguments against a tool's schema, and keeping secrets out of them."""

from __future__ import annotations

import datetime as dt
import ipaddress
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar
from urllib.parse import urlsplit

from jsonschema import Draft202012Validator, FormatChecker
from jsonschema.exceptions import ValidationError

from perdure.daemon.secrets import holds_secret
from perdure.daemon.tools.model import ToolRefused
from perdure.state.canonical import CannotEncode, canonical, digest
from perdure.state.events import JSON

ARGUMENTS_BYTES_MAX = 2_000_000
_PROBLEMS_SHOWN_MAX = 5
_SHOWN_MAX = 80
_HOSTNAME = re.compile(
    r"(?=.{1,253}\Z)[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*",
    re.ASCII,
)

# Only what is checked here counts as a format: jsonschema passes formats that it does not know, or for which a package is
# not there, without a word.
formats = FormatChecker(formats=())

_Check = TypeVar("_Check", bound=Callable[[object], bool])


def _format(name: str) -> Callable[[_Check], _Check]:
    return formats.checks(name, raises=ValueError)


@_format("ipv4")
def _ipv4(value: object) -> bool:
    return not isinstance(value, str) or ipaddress.IPv4Address(value) is not None


@_format("ipv6")
def _ipv6(value: object) -> bool:
    return not isinstance(value, str) or ("%" not in value and ipaddress.IPv6Address(value) is not None)


@_format("cidr")
def _cidr(value: object) -> bool:
    return not isinstance(value, str) or ("/" in value and ipaddress.ip_network(value) is not None)


@_format("hostname")
def _hostname(value: object) -> bool:
    return not isinstance(value, str) or _HOSTNAME.fullmatch(value) is not None


@_format("email")
def _email(value: object) -> bool:
    return not isinstance(value, str) or re.fullmatch(r"[^\s@]+@[^\s@]+", value) is not None


@_format("uri")
def _uri(value: object) -> bool:
    return not isinstance(value, str) or bool(urlsplit(value).scheme and re.search(r"\s", value) is None)


@_format("date")
def _date(value: object) -> bool:
    return not isinstance(value, str) or (len(value) == 10 and dt.date.fromisoformat(value) is not None)


@_format("date-time")
def _date_time(value: object) -> bool:
    return not isinstance(value, str) or ("T" in value.upper() and dt.datetime.fromisoformat(value).tzinfo is not None)


@_format("uuid")
def _uuid(value: object) -> bool:
    return (
        not isinstance(value, str)
        or re.fullmatch(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", value) is not None
    )


def unknown_formats(schema: Any) -> list[str]:
    """The formats that a schema asks for and nothing here checks: a promise that would not be kept."""
    found: set[str] = set()
    for part in _parts(schema):
        if isinstance(part, Mapping) and isinstance(part.get("format"), str) and part["format"] not in formats.checkers:
            found.add(part["format"])
    return sorted(found)


class Arguments:
    """Checks the arguments of one tool. `secrets` maps names to values that must not stand in any argument."""

    def __init__(self, tool: str, schema: Mapping[str, Any], secrets: Mapping[str, str]) -> None:
        self._tool = tool
        self._validator = Draft202012Validator(schema, format_checker=formats)
        self._secrets = secrets
        self._hint = f"The arguments of {tool} are: {', '.join(schema.get('properties', {})) or 'none'}"
        self.schema_digest = digest(schema)

    def check(self, args: Mapping[str, JSON]) -> None:
        """Raises ToolRefused with every mistake, each with the argument's name."""
        try:
            size = len(canonical(args))
        except CannotEncode as error:
            raise self._refused(error.cause) from None
        if size > ARGUMENTS_BYTES_MAX:
            raise self._refused(f"they are {size} bytes long, more than {ARGUMENTS_BYTES_MAX}")
        for text in _texts(args):
            if "\0" in text:
                raise self._refused("there is a NUL byte in them")
            if (name := holds_secret(text, self._secrets)) is not None:
                raise ToolRefused(
                    "accept",
                    f"the arguments of {self._tool}",
                    f"the value of the secret {name} stands in them",
                    f"Pass secrets by reference, {{secret: {name}}}, where the tool takes them",
                )
        errors = sorted(
            self._validator.iter_errors(args), key=lambda error: [str(part) for part in error.absolute_path]
        )
        if errors:
            mistakes = list(dict.fromkeys(in_words(error) for error in errors))  # there is one error per missing name
            said = "; ".join(mistakes[:_PROBLEMS_SHOWN_MAX])
            more = f"; and {len(mistakes) - _PROBLEMS_SHOWN_MAX} more" if len(mistakes) > _PROBLEMS_SHOWN_MAX else ""
            raise self._refused(said + more)

    def _refused(self, cause: str) -> ToolRefused:
        return ToolRefused("accept", f"the arguments of {self._tool}", cause, self._hint)


def in_words(error: ValidationError) -> str:
    """A mistake as a person says it, with the place of the value in the arguments."""
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.absolute_path).lstrip(".")
    schema: Any = error.schema
    wanted: Any = error.validator_value
    given: Any = error.instance
    match error.validator:
        case "additionalProperties":
            known = set(schema.get("properties", {}))
            return f"unknown: {', '.join(sorted(set(given) - known))}"
        case "required":
            return f"{f'in {place} ' if place else ''}missing: {', '.join(sorted(set(wanted) - set(given)))}"
        case "type":
            return f"{place} must be {wanted}, not {_shown(given)}"
        case "format":
            return f"{place} must be in the format {wanted}, not {_shown(given)}"
        case "enum":
            return f"{place} must be one of {', '.join(map(repr, wanted))}, not {_shown(given)}"
        case _:
            return f"{place}: {error.message[:200]}"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_MAX else text[:_SHOWN_MAX] + "…"


def _parts(value: Any) -> Iterator[Any]:
    yield value
    if isinstance(value, Mapping):
        for item in value.values():
            yield from _parts(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _parts(item)


def _texts(value: Any) -> Iterator[str]:
    for part in _parts(value):
        if isinstance(part, str):
            yield part
        elif isinstance(part, Mapping):
            yield from (key for key in part if isinstance(key, str))
