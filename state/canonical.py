"""Canonical JSON (RFC 8785) and digests over it: equal values always become equal bytes."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import rfc8785

from perdure.errors import PerdureError
from perdure.state.events import JSON

_quoted = json.encoder.encode_basestring  # in C where there is an accelerator; escapes what RFC 8785 does, and no more

INTEGER_MAX = 2**53 - 1  # beyond it a JSON number is no longer one exact value to every reader (RFC 8785, 3.2.2.3)
DEPTH_MAX = 100  # levels of nesting that a payload keeps; json itself gives up at about 990


class CannotEncode(PerdureError):
    """The value has no canonical JSON: NaN, an integer beyond 2^53, a lone surrogate, a key that is no string."""

    def __init__(self, cause: str) -> None:
        super().__init__("encode", "a value as canonical JSON", cause, "Pass text instead, or leave the value out")


class _Uncommon(Exception):
    """The value needs the full RFC 8785 encoder (keys outside ASCII, floats with an exponent)."""


def canonical(value: Any) -> bytes:
    """The RFC 8785 bytes of `value` (JSON types, mappings and sequences). Raises CannotEncode.

    Written here in one pass for all that has ASCII keys and no exponents, at a tenth of the time that `rfc8785` takes;
    everything else goes through `rfc8785`.
    """
    try:
        try:
            return _written(value).encode()
        except _Uncommon:
            return rfc8785.dumps(_converted(value))
    except UnicodeEncodeError as error:
        raise CannotEncode("it holds text that is not UTF-8 (a lone surrogate)") from error
    except rfc8785.CanonicalizationError as error:
        raise CannotEncode(str(error)) from error
    except RecursionError as error:
        raise CannotEncode("it is nested too deeply") from error


def canonical_copy(value: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """(`value` as it will be read back from its canonical text, this text). Raises CannotEncode."""
    text = canonical(value).decode()
    copy: dict[str, Any] = {}
    for name, item in value.items():
        kind = type(item)
        if kind is str or kind is int or kind is bool:
            copy[name] = item
        elif kind is float:  # ECMAScript, and so the text, has whole numbers without a point up to 1e21
            copy[name] = int(item) if item.is_integer() and abs(item) < 1e21 else item
        else:
            copy[name] = json.loads(canonical(item))
    return copy, text


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


def _written(value: Any) -> str:
    kind = type(value)
    if kind is str:
        return _quoted(value)
    if kind is int or kind is float:
        return _number(value)
    if value is None:
        return "null"
    if kind is bool:
        return "true" if value else "false"
    if kind is dict or isinstance(value, Mapping):
        return _object(value)
    if isinstance(value, (str, int, float)):  # subclasses, such as enumerations
        return _written(_base(value))
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray, memoryview)):
        return f"[{','.join([_written(item) for item in value])}]"
    raise CannotEncode(f"{kind.__name__} is not a JSON type")


def _object(value: Mapping[Any, Any]) -> str:
    parts = []
    for key in value:
        if type(key) is not str:
            raise CannotEncode(f"the key {key!r} is not a string")
        if not key.isascii():  # code points and UTF-16 units sort differently
            raise _Uncommon
    for key in sorted(value):
        item = value[key]
        parts.append(f"{_quoted(key)}:{_quoted(item) if type(item) is str else _written(item)}")
    return f"{{{','.join(parts)}}}"


def _number(value: float) -> str:
    if type(value) is int:
        if -INTEGER_MAX <= value <= INTEGER_MAX:
            return str(value)
        raise CannotEncode(f"the integer {value} is beyond 2^53")
    if value.is_integer() and -INTEGER_MAX <= value <= INTEGER_MAX:
        return str(int(value))  # ECMAScript prints 1.0 as 1
    if not 1e-4 <= abs(value) < 1e15:  # from here Python and ECMAScript differ in when they use exponents
        raise _Uncommon
    return repr(value)


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
