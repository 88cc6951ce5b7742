"""Canonical JSON (RFC 8785) and digests over it: equal values always become equal bytes."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from json import encoder as _json
from typing import Any, Final

import rfc8785

from perdure.errors import PerdureError
from perdure.state.events import JSON

INTEGER_MAX = 2**53 - 1  # beyond it a JSON number is no longer one exact value to every reader (RFC 8785, 3.2.2.3)
DEPTH_MAX = 100  # levels of nesting that a payload keeps; json itself gives up at about 990


class CannotEncode(PerdureError):
    """The value has no canonical JSON: NaN, an integer beyond 2^53, a lone surrogate, a key that is no string."""

    def __init__(self, cause: str) -> None:
        super().__init__("encode", "a value as canonical JSON", cause, "Pass text instead, or leave the value out")


class _Uncommon(Exception):
    """The value needs the full RFC 8785 encoder (keys outside ASCII, floats with an exponent)."""


def _writer() -> Callable[[Any, int], Sequence[str]]:
    """What `json.dumps` runs in C, without being made anew for each value: half of its time."""
    make = getattr(_json, "c_make_encoder", None)
    if make is not None:
        written: Callable[[Any, int], Sequence[str]] = make(
            None, None, _json.encode_basestring, None, ":", ",", True, False, False
        )
        return written
    encode = json.JSONEncoder(ensure_ascii=False, check_circular=False, sort_keys=True, separators=(",", ":")).encode
    return lambda value, _: (encode(value),)


_written: Final = _writer()
_quoted: Final = _json.encode_basestring


def canonical(value: Any) -> bytes:
    """The RFC 8785 bytes of `value` (JSON types, mappings and sequences). Raises CannotEncode.

    What has ASCII keys and no exponents is written by `json`, whose text is then the same, at a tenth of the time that
    `rfc8785` takes; everything else goes through `rfc8785`.
    """
    try:
        try:
            return "".join(_written(_plain(value), 0)).encode()
        except _Uncommon:
            return rfc8785.dumps(_converted(value))
    except UnicodeEncodeError as error:
        raise CannotEncode("it holds text that is not UTF-8 (a lone surrogate)") from error
    except rfc8785.CanonicalizationError as error:
        raise CannotEncode(str(error)) from error
    except RecursionError as error:
        raise CannotEncode("it is nested too deeply") from error


def canonical_object(names: Sequence[str], values: Sequence[Any]) -> tuple[dict[str, Any], str]:
    """(the object of these names and values, without those that are None, as it will be read back; its canonical text).
    `names` are ASCII and sorted. Raises CannotEncode."""
    held: dict[str, Any] = {}
    parts = []
    try:
        for name, value in zip(names, values, strict=True):
            kind = type(value)
            if kind is str:
                parts.append(f'"{name}":{_quoted(value)}')
            elif value is None:
                continue
            elif kind is int and -INTEGER_MAX <= value <= INTEGER_MAX:
                parts.append(f'"{name}":{value}')
            else:
                value = _plain(value)
                parts.append(f'"{name}":{"".join(_written(value, 0))}')
            held[name] = value
        text = f"{{{','.join(parts)}}}"
        if not text.isascii():
            text.encode()
    except (_Uncommon, UnicodeEncodeError, RecursionError):
        text = canonical({name: value for name, value in zip(names, values, strict=True) if value is not None}).decode()
        held = json.loads(text)
    return held, text


def digest(value: Any) -> str:
    """`sha256:` and the hex SHA-256 of the canonical bytes."""
    return digest_bytes(canonical(value))


def digest_bytes(data: bytes) -> str:
    """`sha256:` and the hex SHA-256 of `data`."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def presentable(value: Any, depth_max: int = DEPTH_MAX) -> JSON:
    """The nearest value that has canonical JSON, for records of what the world said: bytes and text that are not UTF-8
    become `{"base64": …}`, integers beyond 2^53 and NaN their text, nesting below `depth_max` a note."""
    match value:
        case None | bool():
            return value
        case str():
            return _text(value)
        case int():
            return value if -INTEGER_MAX <= value <= INTEGER_MAX else str(value)
        case float():
            return value if value - value == 0 else repr(value)  # inf - inf and nan - nan are nan
        case bytes() | bytearray() | memoryview():
            return _bytes(bytes(value))
        case _ if depth_max == 0:
            return "(nested too deeply to keep)"
        case Mapping():
            return {_key(key): presentable(item, depth_max - 1) for key, item in value.items()}
        case Sequence() | set() | frozenset():
            return [presentable(item, depth_max - 1) for item in value]
        case _:
            return str(value).encode("utf-8", "replace").decode()


def _plain(value: Any) -> Any:
    """A copy of `value` of which `json` writes what RFC 8785 does, and which is what will be read back from that. Raises
    _Uncommon where there is none."""
    kind = type(value)
    if kind is dict:
        try:
            ascii_keys = "".join(value).isascii()
        except TypeError:
            raise CannotEncode(
                f"the key {next(key for key in value if not isinstance(key, str))!r} is not a string"
            ) from None
        if not ascii_keys:  # code points and UTF-16 units sort differently
            raise _Uncommon
        return {name: item if type(item) is str else _plain(item) for name, item in value.items()}
    if kind is str or kind is bool or value is None:
        return value
    if kind is int:
        if -INTEGER_MAX <= value <= INTEGER_MAX:
            return value
        raise CannotEncode(f"the integer {value} is beyond 2^53")
    if kind is float:
        if value.is_integer() and -INTEGER_MAX <= value <= INTEGER_MAX:
            return int(value)  # ECMAScript prints 1.0 as 1
        if not 1e-4 <= abs(value) < 1e15:  # from here Python and ECMAScript differ in when they use exponents
            raise _Uncommon
        return value
    if kind is list:
        return [item if type(item) is str else _plain(item) for item in value]
    if isinstance(value, Mapping):
        return _plain(dict(value))
    if isinstance(value, (str, int, float)):  # subclasses, such as enumerations
        return _plain(_base(value))
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray, memoryview)):
        return [_plain(item) for item in value]
    raise CannotEncode(f"{kind.__name__} is not a JSON type")


def _converted(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _converted(item) for key, item in value.items()}
    if value is None or type(value) in (str, bool, int, float):
        return value
    if isinstance(value, (str, int, float)):
        return _base(value)
    if isinstance(value, Sequence) and not isinstance(value, bytes):
        return [_converted(item) for item in value]
    raise CannotEncode(f"{type(value).__name__} is not a JSON type")


def _base(value: str | float) -> str | int | float:
    if isinstance(value, str):
        return str.__str__(value)
    return int(value) if isinstance(value, int) else float(value)


def _text(value: str) -> JSON:
    try:
        value.encode()
    except UnicodeEncodeError:
        try:
            return _bytes(value.encode("utf-8", "surrogateescape"))  # what os.fsdecode made of a file name
        except UnicodeEncodeError:
            return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return str.__str__(value)


def _bytes(value: bytes) -> JSON:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(value).decode()}


def _key(key: Any) -> str:
    return str(key).encode("utf-8", "replace").decode()
