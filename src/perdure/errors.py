"""The one root of Perdure's errors: every message says what failed, on what, why, and what to do next."""

from __future__ import annotations

from dataclasses import dataclass


class PerdureError(Exception):
    """An error for a person: `operation` failed on `object` because of `cause`; `hint` says what to do next."""

    exit_code = 1

    def __init__(self, operation: str, object: str, cause: str, hint: str) -> None:
        super().__init__(operation, object, cause, hint)
        self.operation = operation
        self.object = object
        self.cause = cause
        self.hint = hint

    def __str__(self) -> str:
        return f"cannot {self.operation} {self.object}: {self.cause}. {self.hint}"


class WorkspaceMissing(PerdureError):
    """There is no workspace where one was looked for: a mistake of configuration, like a broken file."""

    exit_code = 2


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One mistake in a configuration file, with its place (line and column count from 1; 0 where there is none)."""

    file: str
    line: int
    column: int
    found: str
    expected: str
    source_line: str = ""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        text = f"{place}: found {self.found}; expected {self.expected}"
        if self.source_line and self.column:
            line = self.source_line.rstrip("\n").replace("\t", " ")
            text += f"\n    {line}\n    {' ' * (self.column - 1)}^"
        return text


class Problems(PerdureError):
    """All the mistakes found in the configuration, reported together; nothing was loaded."""

    exit_code = 2

    def __init__(self, operation: str, problems: list[Problem]) -> None:
        self.problems = sorted(set(problems))
        count = len(self.problems)
        super().__init__(
            operation,
            "the workspace",
            f"{count} problem{'s' if count != 1 else ''}",
            "Mend each place listed and run `perdure check` again",
        )

    def __str__(self) -> str:
        return "\n".join([super().__str__(), *(str(problem) for problem in self.problems)])
