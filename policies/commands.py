"""What a command would run. (Being built: until then nothing is known of any command, so none is automatic.)"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Analysis:
    """Every program that would run, as written; every file that a redirection writes; and what could not be told."""

    programs: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


def analyse(argv: Sequence[str] | None, script: str | None) -> Analysis:
    """The analysis of an argument list or a shell script."""
    return Analysis(programs=tuple(argv[:1]) if argv else (), unknown=("not analysed",))
