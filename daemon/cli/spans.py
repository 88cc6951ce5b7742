"""Spans of time on the command line: `30d`, `12h`, `45m`, `90s`."""

from __future__ import annotations

import re
from typing import Any

import click

from perdure.daemon.cli.words import DAY, HOUR, MINUTE, SECOND

_UNITS = {"s": SECOND, "m": MINUTE, "h": HOUR, "d": DAY, "w": 7 * DAY}
_PATTERN = re.compile(r"(\d{1,6})\s*([smhdw])", re.ASCII)


class Span(click.ParamType[int]):
    """A span of time, in microseconds."""

    name = "span"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """`30d` as microseconds; a usage error that says what is expected otherwise."""
        if isinstance(value, int):
            return value
        match = _PATTERN.fullmatch(str(value).strip())
        if match is None:
            self.fail(
                f"{value!r} is no span of time; expected a number and one of s, m, h, d, w, such as 30d", param, ctx
            )
        return int(match.group(1)) * _UNITS[match.group(2)]
