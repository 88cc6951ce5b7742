"""How a failure is told: what, on what, why and what to do next; in JSON where JSON was asked for."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from perdure.daemon.cli.terminal import harmless, line
from perdure.errors import PerdureError, Problem, Problems

if TYPE_CHECKING:
    from perdure.daemon.cli.terminal import SafeConsole

# sysexits.h: a defect in the program itself.
DEFECT = 70


def in_json(error: PerdureError) -> str:
    """The failure as one JSON object, for --json (on standard error)."""
    value: dict[str, Any] = {
        "format": "perdure/error/1",
        "operation": error.operation,
        "object": error.object,
        "cause": error.cause,
        "hint": error.hint,
        "exit_code": error.exit_code,
    }
    if isinstance(error, Problems):
        value["problems"] = [
            {"file": p.file, "line": p.line, "column": p.column, "found": p.found, "expected": p.expected}
            for p in error.problems
        ]
    return json.dumps(value, ensure_ascii=True)


def tell_or_emit(error: PerdureError, console: SafeConsole, *, as_json: bool) -> None:
    """The failure on standard error, for a person or for a program."""
    if as_json:
        console.file.write(in_json(error) + "\n")
    else:
        tell(error, console)


def tell(error: PerdureError, console: SafeConsole) -> None:
    """Print the failure for a person: all problems at once, each with its place and a caret."""
    console.print(
        line(("perdure: ", "bad"), f"cannot {error.operation} ", (error.object, "name"), f": {error.cause}"),
        soft_wrap=True,
    )
    if isinstance(error, Problems):
        for problem in error.problems:
            _tell_problem(problem, console)
        console.print()
    if error.hint:
        console.print(line(("  next: ", "faint"), error.hint), soft_wrap=True)


def _tell_problem(problem: Problem, console: SafeConsole) -> None:
    console.print()
    place = _near(problem.file) + (f":{problem.line}:{problem.column}" if problem.line else "")
    console.print(line(("  " + place, "name")), soft_wrap=True)
    source = problem.source_line.rstrip("\n").replace("\t", " ")
    if source.strip() and problem.column:
        # Escapes made visible before the caret lengthen the line: the caret moves along.
        before = len(harmless(source[: problem.column - 1]))
        console.print(Text("    " + harmless(source)), soft_wrap=True)
        console.print(Text("    " + " " * before + "^", style="bad"), soft_wrap=True)
    console.print(line(("  found     ", "faint"), problem.found), soft_wrap=True)
    console.print(line(("  expected  ", "faint"), problem.expected), soft_wrap=True)


def _near(file: str) -> str:
    """The file as seen from here, where it is below; otherwise whole."""
    path = Path(file)
    try:
        return str(path.relative_to(Path.cwd())) if path.is_absolute() else file
    except (ValueError, OSError):
        return file


def tell_defect(error: BaseException, console: SafeConsole) -> None:
    """Print what a defect of Perdure itself says; the traceback only where PERDURE_DEBUG asks for it (by the caller)."""
    console.print(
        line(
            ("perdure: ", "bad"),
            "this is a defect in Perdure, not a mistake of yours: ",
            f"{type(error).__name__}: {error}",
        ),
        soft_wrap=True,
    )
    console.print(
        line(
            ("  next: ", "faint"),
            "run it again with ",
            ("PERDURE_DEBUG=1", "command"),
            " for the traceback, and report it",
        ),
        soft_wrap=True,
    )


def debugging() -> bool:
    """Whether a developer asked for tracebacks."""
    return os.environ.get("PERDURE_DEBUG", "") not in ("", "0")
