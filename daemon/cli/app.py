"""The command `perdure`: its options, its commands by purpose, and how it ends."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NoReturn

import click

from perdure.daemon.cli import failures
from perdure.daemon.cli.invocation import Invocation, with_json
from perdure.daemon.cli.terminal import be_printable
from perdure.errors import PerdureError

HERE = "perdure.daemon.cli"
READER_GONE = 141  # what a shell says of any program that ended so (128 + SIGPIPE): what was asked for is not all there

# Purpose -> command -> (module:attribute, what it does in a line). The help page needs no module of theirs.
COMMANDS: Mapping[str, Mapping[str, tuple[str, str]]] = {
    "Begin": {
        "init": ("beginning:init", "Write a commented workspace."),
        "demo": ("demo:demo", "Run the log-triage example on this machine's logs."),
        "check": ("checking:check", "Load and test everything in the workspace."),
        "run": ("running:run", "Be the daemon, in the foreground."),
    },
    "Watch": {
        "status": ("status:status", "The daemon, next slots, open questions, last sessions."),
        "session": ("sessions:session", "List sessions, run one now, retry a slot."),
        "schedule": ("schedules:schedule", "What will run when, and what did."),
        "context": ("contexts:context", "What a session's planner saw."),
        "tools": ("tools:tools", "The tools a planner may propose."),
    },
    "Decide": {
        "inbox": ("inbox:inbox", "The questions that wait for a person."),
        "approve": ("inbox:approve", "Let one action run, once."),
        "deny": ("inbox:deny", "Refuse one action."),
        "grants": ("grants:grants", "Standing answers: list and revoke."),
        "policy": ("policies:policy", "Check, explain and replay policy files."),
        "pause": ("steering:pause", "Start no more sessions of a task, or of any."),
        "resume": ("steering:resume", "Let a paused task run again."),
        "undo": ("steering:undo", "Bring back what an action overwrote, moved or deleted."),
    },
    "Audit": {
        "ledger": ("ledger:ledger", "Tail, show, search and export what happened."),
        "verify": ("verification:verify", "Prove that the ledger is whole and every slot accounted for."),
        "report": ("report:report", "What the ledger adds up to: calibration."),
        "memory": ("memory:memory", "Why it remembers what; pin, correct, forget."),
    },
    "Keep": {
        "backup": ("keeping:backup", "Copy the ledger while it runs."),
        "restore": ("keeping:restore", "Go back to a backup; begins a new epoch."),
        "doctor": ("doctor:doctor", "Find what is wrong with this installation, and how to mend it."),
    },
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All commands, in the order of their purposes."""
        return [name for commands in COMMANDS.values() for name in commands]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command, or None where there is none of that name."""
        for commands in COMMANDS.values():
            if cmd_name in commands:
                module, _, attribute = commands[cmd_name][0].partition(":")
                found = getattr(importlib.import_module(f"{HERE}.{module}"), attribute)
                assert isinstance(found, click.Command)
                return found
        return None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command, or a usage error that names the nearest one."""
        known = self.list_commands(ctx)
        if args and args[0] not in known and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], known, n=1)
            hint = f" Did you mean `perdure {near[0]}`?" if near else " `perdure --help` lists them."
            ctx.fail(f"There is no command {args[0]!r}.{hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The commands, by purpose."""
        for purpose, commands in COMMANDS.items():
            with formatter.section(purpose):
                formatter.write_dl([(name, words) for name, (_, words) in commands.items()], col_max=12)

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> NoReturn:
        """Run and exit. People see what failed and what to do next; never a traceback, unless PERDURE_DEBUG is set."""
        be_printable()
        invocation = extra.setdefault("obj", Invocation())
        code: Any
        try:
            code = super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
            sys.stdout.flush()
        except click.exceptions.Exit as ending:
            code = ending.exit_code
        except click.ClickException as mistake:
            code = mistake.exit_code
            _to_whoever_reads(mistake.show)
        except (click.Abort, KeyboardInterrupt):
            code = 130
        except (BrokenPipeError, _ReaderGone):
            _be_quiet()
            code = READER_GONE if invocation.verdict is None else invocation.verdict
        except PerdureError as error:
            if failures.debugging():
                raise
            code = error.exit_code
            _to_whoever_reads(partial(failures.tell_or_emit, error, invocation.err, as_json=invocation.as_json))
        except Exception as error:
            if failures.debugging():
                raise
            code = failures.DEFECT
            _to_whoever_reads(partial(failures.tell_defect, error, invocation.err))
        sys.exit(code if isinstance(code, int) else 0)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command. click itself would call it a failure when nobody reads what is printed."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise _ReaderGone from error


class _ReaderGone(Exception):
    """Whoever read our output has seen enough (`| head`)."""


def _to_whoever_reads(tell: Callable[[], None]) -> None:
    """Tell of a failure; that nobody listens does not change how we end."""
    try:
        tell()
    except BrokenPipeError:
        _be_quiet()


def _be_quiet() -> None:
    """Nobody reads our output any more: keep Python from complaining of it while it exits."""
    import os

    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(nowhere, stream.fileno())


def _version(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        from perdure import __version__

        click.echo(f"perdure {__version__}")
        context.exit()


@click.group(cls=LazyGroup)
@click.option("--version", is_flag=True, expose_value=False, is_eager=True, callback=_version, help="Show the version.")
@partial(with_json, top=True)
def perdure() -> None:
    """Perdure: an agent daemon that you can leave alone.

    It runs scheduled, bounded sessions; policy files decide which of their actions run, which wait for you and which
    never happen; and everything is in the ledger before it is done.
    """
