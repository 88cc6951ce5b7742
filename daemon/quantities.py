"""Durations ("10s", "15m", "12h", "30d") and sizes ("64MB") as configuration files write them."""

from __future__ import annotations

import re
from typing import Annotated, Final, TypeAlias

from pydantic import BeforeValidator, WithJsonSchema

DURATION_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}
SIZE_UNITS: Final = {"B": 1, "KB": 1000, "MB": 1000**2, "GB": 1000**3, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}

DURATION_SECONDS_MAX: Final = 100 * 366 * 86_400.0
SIZE_BYTES_MAX: Final = 1024**5

_DURATION_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|[smhdw])", re.ASCII)
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?(B|KB|MB|GB|KiB|MiB|GiB)", re.ASCII)

_DURATION_EXPECTED = 'a duration such as "10s", "15m", "12h", "30d" or "1h30m"'
_SIZE_EXPECTED = 'a size such as "512KB", "64MB" or "2GiB"'


def duration_seconds(value: object) -> float:
    """Seconds of `value`: a text such as "1h30m", or a number, which counts seconds. Raises ValueError with what was expected."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(_DURATION_EXPECTED)
    if isinstance(value, str):
        parts = _DURATION_PART.findall(value)
        if not parts or "".join(number + unit for number, unit in parts) != value:
            raise ValueError(_DURATION_EXPECTED)
        seconds = sum(float(number) * DURATION_UNITS[unit] for number, unit in parts)
    else:
        seconds = float(value)
    if not 0 < seconds <= DURATION_SECONDS_MAX:
        raise ValueError(f"{_DURATION_EXPECTED}, more than nothing and at most 100 years")
    return seconds


def size_bytes(value: object) -> int:
    """Bytes of `value`: a text such as "64MB" (decimal) or "64MiB" (binary), or a number of bytes. Raises ValueError."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(_SIZE_EXPECTED)
    if isinstance(value, str):
        match = _SIZE.fullmatch(value)
        if match is None:
            raise ValueError(_SIZE_EXPECTED)
        size = int(float(match[1]) * SIZE_UNITS[match[2]])
    else:
        size = value
    if not 0 < size <= SIZE_BYTES_MAX:
        raise ValueError(f"{_SIZE_EXPECTED}, more than nothing and at most 1 PiB")
    return size


def duration_text(seconds: float) -> str:
    """`seconds` in the largest unit that leaves no fraction: 900 is "15m"."""
    for unit in ("w", "d", "h", "m", "s", "ms"):
        count = round(seconds / DURATION_UNITS[unit], 6)
        if count >= 1 and count == int(count):
            return f"{int(count)}{unit}"
    return f"{seconds:g}s"


Duration: TypeAlias = Annotated[
    float, BeforeValidator(duration_seconds), WithJsonSchema({"type": ["string", "number"], "examples": ["10s", "15m"]})
]
Size: TypeAlias = Annotated[
    int, BeforeValidator(size_bytes), WithJsonSchema({"type": ["string", "integer"], "examples": ["64MB"]})
]
