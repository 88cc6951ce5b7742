"""`perdure backup`, `perdure restore`."""

from __future__ import annotations

from pathlib import Path

import click

from perdure.daemon.cli.invocation import Invocation, with_invocation, with_json
from perdure.daemon.cli.words import full_moment, short_digest, size


@click.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@with_json
@with_invocation
def backup(invocation: Invocation, file: Path) -> None:
    """Copy the ledger to FILE and its anchor to FILE.anchor, also while the daemon runs. Nothing is overwritten."""
    from perdure.state.backup import backup as copy_to

    head = copy_to(invocation.state_dir, file)
    if invocation.as_json:
        invocation.emit("backup", {"file": str(file), "head": {"seq": head.seq, "hash": head.hash}})
        return
    invocation.say(
        ("✓ backed up", "good"),
        f" to {file} ({size(file.stat().st_size)}), head #{head.seq} ",
        (short_digest(head.hash), "faint"),
    )
    invocation.say(("Keep FILE and FILE.anchor together, on another machine.", "faint"))


@click.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@click.option("--accept-unanchored", is_flag=True, help="Take a backup whose .anchor file is lost.")
@click.option("--yes", is_flag=True, help="Do not ask whether this is meant.")
@with_json
@with_invocation
def restore(invocation: Invocation, file: Path, accept_unanchored: bool, yes: bool) -> None:
    """Put a backup in the ledger's place. The daemon must not be running.

    The backup is verified first; the ledger that it replaces is kept beside it; a new epoch begins, which ledger and
    anchor both show. Actions done since the backup are then unknown to Perdure.
    """
    import perdure
    from perdure.state.backup import restore as put_back
    from perdure.state.ownership import Owner

    if not yes:
        click.confirm(f"Put {file} in the place of the ledger in {invocation.state_dir}?", abort=True)
    with Owner.acquire(invocation.state_dir) as owner:
        restored = put_back(
            file,
            invocation.state_dir,
            owner=owner,
            now=invocation.now,
            version=perdure.__version__,
            accept_unanchored=accept_unanchored,
        )
    if invocation.as_json:
        replaced = None if restored.replaced is None else str(restored.replaced)
        invocation.emit("restored", {"head": restored.head.seq, "epoch": restored.epoch, "replaced": replaced})
        return
    at = full_moment(restored.head.at, invocation.zone)
    invocation.say(("✓ restored", "good"), f" to event #{restored.head.seq} of {at}; epoch {restored.epoch} begins")
    if restored.replaced is not None:
        invocation.say(f"  the ledger that it replaced is kept as {restored.replaced}")
