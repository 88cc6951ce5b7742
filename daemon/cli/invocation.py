"""One call of the command line: where its workspace is, how it prints, what time it is; and what every command shares."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import sys
import time
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar
from zoneinfo import ZoneInfo

import click

from perdure.daemon.cli.terminal import SafeConsole, console_for, line
from perdure.daemon.layout import CONFIG_NAME, LEDGER, TASKS
from perdure.errors import PerdureError, WorkspaceMissing

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import tzinfo

    from perdure.state.reading import LedgerReader

Command = TypeVar("Command", bound=Callable[..., Any])


def find_workspace(given: Path | None) -> Path:
    """The workspace's directory: the one given, or the nearest one from here upwards that holds a perdure.toml."""
    if given is not None:
        root = given.resolve()
        if (root / CONFIG_NAME).is_file():
            return root
        cause = f"there is no {CONFIG_NAME} in it" if root.is_dir() else "there is no such directory"
        raise WorkspaceMissing("open the workspace", str(given), cause, f"`perdure init {given}` makes one")
    here = Path.cwd()
    for directory in (here, *here.parents):
        if (directory / CONFIG_NAME).is_file():
            return directory
    raise WorkspaceMissing(
        "find a workspace at or above",
        str(here),
        f"no {CONFIG_NAME} there",
        "Go to a workspace, name one with --workspace DIR or PERDURE_WORKSPACE, or make one with `perdure init DIR`",
    )


@dataclass
class Invocation:
    """What the global options said. `now` and the streams are replaced in tests."""

    given: Path | None = None
    as_json: bool = False
    colour: bool = True
    now: Callable[[], int] = field(default=lambda: time.time_ns() // 1_000)
    verdict: int | None = (
        None  # the exit code, from when it is known: it stands also where nobody reads what is printed
    )

    @cached_property
    def out(self) -> SafeConsole:
        """The console on standard output."""
        return console_for(sys.stdout, colour=self.colour)

    @cached_property
    def err(self) -> SafeConsole:
        """The console on standard error."""
        return console_for(sys.stderr, colour=self.colour)

    @cached_property
    def workspace(self) -> Path:
        """The workspace's root."""
        return find_workspace(self.given)

    @cached_property
    def program(self) -> str:
        """How this program is called from here: by name where the shell finds it, else by its path."""
        beside = Path(sys.executable).with_name("perdure")
        if shutil.which("perdure") or not beside.exists():
            return "perdure"
        with contextlib.suppress(ValueError):
            return shlex.quote(str(beside.relative_to(Path.cwd())))
        return shlex.quote(str(beside))

    @cached_property
    def command(self) -> str:
        """How to call Perdure for this workspace from here: with --workspace only where it would not be found without, and by
        the shorter of its names."""
        try:
            found = find_workspace(None) == self.workspace
        except PerdureError:
            found = False
        in_environment = os.environ.get("PERDURE_WORKSPACE")
        if found or (in_environment and Path(in_environment).resolve() == self.workspace):
            return self.program
        here = Path.cwd()
        where = self.workspace.relative_to(here) if self.workspace.is_relative_to(here) else self.workspace
        return f"{self.program} -w {shlex.quote(str(where))}"

    @cached_property
    def settings(self) -> Mapping[str, Any]:
        """perdure.toml as it stands, unchecked, for the few values that reading the ledger needs. A broken file gives an
        empty mapping: people must be able to look at a ledger while they mend the configuration."""
        try:
            return tomllib.loads((self.workspace / CONFIG_NAME).read_text("utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
            return {}

    @cached_property
    def state_dir(self) -> Path:
        """Where the ledger lies: `state` of perdure.toml, else `state/` in the workspace."""
        text = self.settings.get("state")
        return (self.workspace / Path(text if isinstance(text, str) else "state").expanduser()).resolve()

    @cached_property
    def zone(self) -> tzinfo | None:
        """The workspace's time zone; None (the machine's) where it names none that exists."""
        text = self.settings.get("timezone")
        try:
            return ZoneInfo(text) if isinstance(text, str) and text else None
        except (KeyError, ValueError, OSError):
            return None

    def has_ledger(self) -> bool:
        """Whether anything has run here yet. Raises PerdureError where a ledger was there and is gone."""
        if (self.state_dir / LEDGER).exists():
            return True
        from perdure.state.anchor import last_anchor
        from perdure.state.opening import missing

        if last_anchor(self.state_dir) is not None:
            raise missing(self.state_dir / LEDGER)
        return False

    @cached_property
    def ledger(self) -> LedgerReader:
        """The ledger, opened to be read; a daemon may be writing it at the same time."""
        from perdure.state.reading import LedgerReader

        path = self.state_dir / LEDGER
        if not self.has_ledger():
            raise PerdureError(
                "read the ledger of",
                str(self.workspace),
                f"{path} does not exist: nothing has run here yet",
                "`perdure run` starts the daemon, `perdure session run TASK` runs one session",
            )
        return LedgerReader.open(path)

    def known_task(self, task: str) -> str:
        """`task`, where the ledger has seen one of that name or a file of it lies in the workspace. Raises PerdureError for any
        other: what is asked of a misspelt name would find nothing, or be for nobody."""
        from perdure.state import projections

        known = {path.stem for path in (self.workspace / TASKS).glob("*.md")}
        if self.has_ledger():
            known |= {row.task for row in projections.tasks(self.ledger)}
        if task not in known:
            hint = f"Tasks here: {', '.join(sorted(known)) or 'none yet'}"
            raise PerdureError("find", f"the task {task}", "there is no such task", hint)
        return task

    def perform(self, operation: str, *, on_event: Any = None, **params: Any) -> dict[str, Any]:
        """Have the daemon do it, or do it here under the workspace's lock where none runs; `on_event` then sees it."""
        from perdure.daemon.control import perform

        return dict(perform(self.workspace, operation, on_event=on_event, **params))

    def conclude(self) -> NoReturn:
        """End the command with its verdict."""
        click.get_current_context().exit(self.verdict or 0)

    def emit(self, kind: str, value: Mapping[str, Any]) -> None:
        """Print one JSON object, `format` first (`perdure/KIND/1`), in plain ASCII: nothing in it can move a cursor."""
        click.echo(json.dumps({"format": f"perdure/{kind}/1", **value}, ensure_ascii=True, default=str))

    def say(self, *parts: Any) -> None:
        """Print one line for a person."""
        self.out.print(line(*parts), soft_wrap=True)


def _remember_workspace(context: click.Context, _: click.Parameter, value: Path | None) -> None:
    if value is not None:
        context.ensure_object(Invocation).given = value


def _remember_json(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        context.ensure_object(Invocation).as_json = True


def _remember_no_colour(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        context.ensure_object(Invocation).colour = False


def _known_task(context: click.Context, _: click.Parameter, value: str | None) -> str | None:
    return None if value is None else context.ensure_object(Invocation).known_task(value)


def task_option(words: str) -> Callable[[Command], Command]:
    """The option --task, for a task that there is."""
    return click.option("--task", callback=_known_task, help=words)


task_argument = click.argument("task", required=False, callback=_known_task)


def everywhere(command: Command, *, hidden: bool = True) -> Command:
    """The options that may stand before or after a command's name: --workspace and --no-color."""
    workspace = click.option(
        "-w",
        "--workspace",
        type=click.Path(path_type=Path, file_okay=False),
        envvar=None if hidden else "PERDURE_WORKSPACE",
        metavar="DIR",
        expose_value=False,
        is_eager=True,
        hidden=hidden,
        callback=_remember_workspace,
        help="The workspace (PERDURE_WORKSPACE); default: from here upwards, the first directory with a perdure.toml.",
    )
    colour = click.option(
        "--no-color",
        is_flag=True,
        expose_value=False,
        is_eager=True,
        hidden=hidden,
        callback=_remember_no_colour,
        help="No colours (NO_COLOR does the same).",
    )
    # Said here and not in the context's settings: click would remember whichever context came first.
    return workspace(colour(click.help_option("-h", "--help")(command)))


def with_json(command: Command, *, top: bool = False) -> Command:
    """The options above, and --json."""
    as_json = click.option(
        "--json",
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=_remember_json,
        help="Print JSON for programs (docs/json.md) instead of text for people.",
    )
    return everywhere(as_json(command), hidden=not top)


with_invocation = click.make_pass_decorator(Invocation, ensure=True)
