"""`perdure demo`: the log-triage example at work, with a real daemon on its own schedule, in under a minute."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from perdure.daemon.cli.invocation import Invocation, everywhere, with_invocation
from perdure.daemon.layout import LEDGER
from perdure.errors import PerdureError

if TYPE_CHECKING:
    from collections.abc import Sequence

TASK: Final = "log-triage"
EVERY: Final = "6s"
SESSIONS: Final = 3
SECONDS_MAX: Final = 55.0  # for the sessions; a machine too slow for that is told so
STOP_SECONDS_MAX: Final = 30.0
LOOK_SECONDS: Final = 0.1


@click.command()
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False), default=Path("perdure-demo"))
@everywhere
@with_invocation
def demo(invocation: Invocation, directory: Path) -> None:
    """Run the log-triage example on this machine's logs.

    Makes a workspace in DIRECTORY (default: perdure-demo; where a workspace is there already, the next free name), runs the
    daemon until it has done three sessions, lets new log lines arrive between them, and shows what came of it.
    """
    from perdure.daemon.init import init_workspace

    workspace = _free(directory)
    _heading(invocation, f"A workspace in {workspace}")
    if workspace != directory:
        invocation.say((f"{directory} is left as it is: there is a workspace in it.", "faint"))
    done = init_workspace(workspace, example="log-triage", every=EVERY)
    invocation.say(f"{len(done.created)} files: perdure.toml, policies/, tasks/, tools/, logs/ …  ", ("(perdure init", "faint"),
                   (f" {workspace} --example log-triage)", "faint"))  # fmt: skip
    invocation.given = workspace
    _heading(invocation, f"The daemon: {TASK} every {EVERY}, until {SESSIONS} sessions are done")
    finished = _run_daemon(invocation)
    _heading(invocation, "What it did")
    command = invocation.command
    _show(invocation, ["session", "list"])
    _heading(invocation, "What it may not do without you")
    _show(invocation, ["inbox"])
    _heading(invocation, "Is the record whole?")
    proven = _show(invocation, ["verify"]) == 0
    reports = sorted((workspace / "reports").glob("*.md"))
    invocation.say()
    for words, text in (
        ("The report", str(reports[-1]) if reports else "none"),
        ("Every step", f"{command} ledger show SESSION"),
        ("Go on", f"{command} run"),
    ):
        invocation.say((f"{words:<12}", "faint"), (text, "command"))
    if not finished or not proven:
        click.get_current_context().exit(1)


def _free(directory: Path) -> Path:
    """The directory, or the first `DIRECTORY-N` in which there is no workspace."""
    from perdure.daemon.init import is_workspace

    number, free = 1, directory
    while is_workspace(free):
        number += 1
        free = directory.with_name(f"{directory.name}-{number}")
    return free


def _heading(invocation: Invocation, words: str) -> None:
    invocation.say()
    invocation.say((f"── {words} ", "bold"))


def _cli(invocation: Invocation, arguments: Sequence[str]) -> list[str]:
    colour = [] if invocation.colour else ["--no-color"]
    return [sys.executable, "-m", "perdure.daemon.cli", "-w", str(invocation.workspace), *colour, *arguments]


def _show(invocation: Invocation, arguments: Sequence[str]) -> int:
    """Run a command as a person would, and its exit code."""
    sys.stdout.flush()
    return subprocess.run(_cli(invocation, arguments), check=False).returncode


def _run_daemon(invocation: Invocation) -> bool:
    """Run the daemon until it has closed so many sessions; whether it came to that and then stopped cleanly."""
    sys.stdout.flush()
    daemon = subprocess.Popen(_cli(invocation, ["run"]))
    try:
        finished = _attend(invocation, daemon)
    except KeyboardInterrupt:  # a terminal sends it to the daemon as well, which then stops by itself
        daemon.wait(STOP_SECONDS_MAX)
        raise
    finally:
        if daemon.poll() is None:
            daemon.send_signal(signal.SIGTERM)
            try:
                daemon.wait(STOP_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
    if daemon.returncode != 0:
        raise PerdureError(
            "run", "the daemon", f"it ended with exit code {daemon.returncode}", "Its last lines above say why"
        )
    return finished


def _attend(invocation: Invocation, daemon: subprocess.Popen[bytes]) -> bool:
    """Bring the next instalment of the logs after each session, until there have been enough."""
    deadline = time.monotonic() + SECONDS_MAX
    brought = 1
    while daemon.poll() is None:
        closed = _closed_sessions(invocation)
        if closed >= SESSIONS:
            return True
        if closed >= brought:
            brought += 1
            lines = _bring(invocation.workspace, brought)
            if lines:
                invocation.say((f"   ⇢ meanwhile {lines} new lines arrive in logs/", "faint"))
        if time.monotonic() > deadline:
            invocation.say((f"Only {closed} of {SESSIONS} sessions were done in {SECONDS_MAX:.0f} seconds.", "warn"))
            return False
        time.sleep(LOOK_SECONDS)
    return False


def _closed_sessions(invocation: Invocation) -> int:
    from perdure.state import projections

    if not (invocation.state_dir / LEDGER).exists():
        return 0
    try:
        rows = projections.sessions(invocation.ledger, task=TASK, limit=SESSIONS + 1)
    except PerdureError:  # the daemon is just making it
        invocation.__dict__.pop("ledger", None)
        return 0
    return sum(1 for row in rows if row.status is not None)


def _bring(workspace: Path, instalment: int) -> int:
    """Append an instalment of the example's logs, as what writes logs would; how many lines it has."""
    lines = 0
    for source in sorted((workspace / "feed" / str(instalment)).glob("*.log")):
        with source.open("rb") as new, (workspace / "logs" / source.name).open("ab") as log:
            shutil.copyfileobj(new, log)
        lines += source.read_bytes().count(b"\n")
    return lines
