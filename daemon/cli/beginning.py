"""`perdure init`: a commented workspace to begin with."""

from __future__ import annotations

from pathlib import Path

import click

from perdure.daemon.cli.invocation import Invocation, everywhere, with_invocation
from perdure.daemon.cli.words import count


@click.command()
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@click.option("--example", metavar="NAME", help="Begin with an example that works: log-triage.")
@click.option(
    "--planner", type=click.Choice(["local"]), help="Set up a planner: a local model, served by Perdure on loopback."
)
@click.option(
    "--model",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="The model file (GGUF) of --planner local.",
)
@click.option(
    "--timezone",
    metavar="ZONE",
    help="The zone of schedules and reports, such as Europe/Berlin; default: the machine's.",
)
@everywhere
@with_invocation
def init(
    invocation: Invocation,
    directory: Path,
    example: str | None,
    planner: str | None,
    model: Path | None,
    timezone: str | None,
) -> None:
    """Write a commented workspace into DIRECTORY: perdure.toml, policies/, tasks/. Overwrites nothing, and says what it kept."""
    from perdure.daemon.init import init_workspace

    if (planner is None) != (model is None):
        raise click.UsageError("--planner local and --model FILE.gguf go together.")
    done = init_workspace(
        directory, example=example, planner="local" if planner == "local" else None, model=model, timezone=timezone
    )
    for name in done.created:
        invocation.say(("  + ", "good"), name)
    for name in done.kept:
        invocation.say(("  = ", "warn"), name, ("  was there already: left as it is", "faint"))
    words = f"{count(len(done.created), 'file')} written into {done.workspace}"
    invocation.say(("✓ " if done.created else "• ", "good" if done.created else "warn"), words)
    invocation.given = done.workspace
    invocation.say()
    task = next((Path(name).stem for name in (*done.created, *done.kept) if name.startswith("tasks/")), "TASK")
    dry_run = f"session run {task} --dry-run"
    for text, meaning in (
        ("check", "loads and tests everything"),
        (dry_run, "shows what the task would do"),
        ("run", "starts the daemon"),
    ):
        gap = " " * (len(dry_run) - len(text))
        invocation.say((f"  {invocation.command} {text}", "command"), (f"{gap}   {meaning}", "faint"))
