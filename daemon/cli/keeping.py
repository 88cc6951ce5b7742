"""`perdure backup`, `perdure restore`."""

from __future__ import annotations

from pathlib import Path

import click

from perdure.daemon.cli.invocation import Invocation, with_invocation, with_json
from perdure.daemon.cli.words import count, full_moment, short_digest, size


@click.command()
@click.argument("file", required=False, type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--to",
    "directory",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Add what is new since the last time to this directory of sealed segments.",
)
@click.option(
    "--reseal",
    is_flag=True,
    help="With --to: also write older segments anew without the payloads that were erased since.",
)
@with_json
@with_invocation
def backup(invocation: Invocation, file: Path | None, directory: Path | None, reseal: bool) -> None:
    """Back the ledger up, also while the daemon runs: whole, or what is new.

    FILE gets a whole copy and FILE.anchor its anchor; nothing is overwritten. `--to DIR` adds one or more segments, which are
    never changed afterwards. `perdure verify PATH` checks either, `perdure restore PATH` goes back to it.
    """
    if (file is None) == (directory is None) or (reseal and directory is None):
        raise click.UsageError("Name either FILE, or --to DIR (with --reseal or without).")
    if directory is not None:
        _seal(invocation, directory, reseal=reseal)
    elif file is not None:
        _copy(invocation, file)


def _copy(invocation: Invocation, file: Path) -> None:
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


def _seal(invocation: Invocation, directory: Path, *, reseal: bool) -> None:
    from perdure.daemon.cli.progress import counting
    from perdure.state.sealing import seal

    with counting(invocation, "sealing") as progress:
        done = seal(invocation.state_dir, directory, reseal=reseal, progress=progress)
    if invocation.as_json:
        value = {
            "directory": str(directory),
            "head": {"seq": done.head.seq, "hash": done.head.hash},
            "events": done.events,
            "segments": done.files,
            "bytes": done.bytes,
            "resealed": done.resealed,
            "erased_since": done.held,
        }
        invocation.emit("backup", value)
        return
    new = f"{count(done.events, 'event')} in {count(done.files, 'segment')} ({size(done.bytes)})"
    invocation.say(
        ("✓ backed up", "good"),
        f" to {directory}: {new if done.files else 'nothing is new'}, head #{done.head.seq} ",
        (short_digest(done.head.hash), "faint"),
    )
    if done.resealed:
        invocation.say(
            ("✓ resealed", "good"), f": {count(done.resealed, 'older segment')}, without what was erased since"
        )
    if done.held:
        invocation.say(
            ("• erased since", "warn"),
            f": {count(done.held, 'payload')} in older segments. A restore leaves them out; ",
            (f"{invocation.command} backup --to {directory} --reseal", "command"),
            " takes them out here",
        )


@click.command()
@click.argument("path", type=click.Path(path_type=Path, exists=True))
@click.option("--accept-unanchored", is_flag=True, help="Take a backup whose .anchor file is lost.")
@click.option("--yes", is_flag=True, help="Do not ask whether this is meant.")
@with_json
@with_invocation
def restore(invocation: Invocation, path: Path, accept_unanchored: bool, yes: bool) -> None:
    """Put a backup in the ledger's place: a file, or a directory of segments. The daemon must not be running.

    The backup is verified first; the ledger that it replaces is kept beside it; a new epoch begins, which ledger and
    anchor both show. Actions done since the backup are then unknown to Perdure.
    """
    import perdure
    from perdure.daemon.anchoring import signer
    from perdure.daemon.cli.progress import counting
    from perdure.daemon.config import load_config
    from perdure.state.backup import restore as put_back
    from perdure.state.ownership import Owner

    if not yes:
        click.confirm(f"Put {path} in the place of the ledger in {invocation.state_dir}?", abort=True)
    sign = signer(load_config(invocation.workspace))
    with Owner.acquire(invocation.state_dir) as owner, counting(invocation, "restoring") as progress:
        restored = put_back(
            path,
            invocation.state_dir,
            owner=owner,
            now=invocation.now,
            version=perdure.__version__,
            accept_unanchored=accept_unanchored,
            sign=sign,
            progress=progress,
        )
    if invocation.as_json:
        replaced = None if restored.replaced is None else str(restored.replaced)
        invocation.emit("restored", {"head": restored.head.seq, "epoch": restored.epoch, "replaced": replaced})
        return
    at = full_moment(restored.head.at, invocation.zone)
    invocation.say(("✓ restored", "good"), f" to event #{restored.head.seq} of {at}; epoch {restored.epoch} begins")
    if restored.replaced is not None:
        invocation.say(f"  the ledger that it replaced is kept as {restored.replaced}")
