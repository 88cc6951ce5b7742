"""`perdure doctor`: what is wrong with this installation, and how to mend it."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import click

from perdure.daemon.cli.diagnosis import Diagnosis, Verdict
from perdure.daemon.cli.invocation import Invocation, with_invocation, with_json
from perdure.daemon.cli.units import unit_drift
from perdure.daemon.cli.words import DAY, MINUTE, SECOND, count, duration, size
from perdure.daemon.layout import CONFIG_NAME, LEDGER, STOP_FILE
from perdure.errors import PerdureError, Problems

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SIGNS: dict[Verdict, str] = {"good": "✓", "warn": "•", "bad": "✗"}
FREE_BYTES_BAD = 100_000_000
FREE_BYTES_WARN = 1_000_000_000
FREE_INODES_BAD = 1_000
WAL_BYTES_WARN = 64_000_000
CLOCK_BEHIND_MAX = MINUTE
FINDINGS_SHOWN_MAX = 5
SILENT_SECONDS_MAX = 60.0  # as the watchdog of the unit allows
CLOCK_UNSYNCHRONISED = 5  # TIME_ERROR of adjtimex(2)


@click.command()
@click.option("--quick", is_flag=True, help="Do not verify the whole ledger, only that it opens.")
@with_json
@with_invocation
def doctor(invocation: Invocation, quick: bool) -> None:
    """Look at disk space, permissions, integrity, slots, clock, locks and units, and say how to mend what is wrong.

    Changes nothing. Exits 1 where something is wrong.
    """
    looks: list[Callable[[Invocation], Iterator[Diagnosis]]] = [
        _configuration,
        _disk,
        _permissions,
        _opening if quick else _integrity,
        _owner,
        _belonging,
        _leftovers,
        _memory,
        _clock,
        _sandbox,
        lambda _: unit_drift(),
    ]
    found = [diagnosis for look in looks for diagnosis in look(invocation)]
    bad = any(diagnosis.verdict == "bad" for diagnosis in found)
    invocation.verdict = 1 if bad else 0
    if invocation.as_json:
        values = [{"about": d.about, "verdict": d.verdict, "found": d.found, "mend": d.mend or None} for d in found]
        invocation.emit("doctor", {"ok": not bad, "diagnoses": values})
    else:
        for diagnosis in found:
            sign = SIGNS[diagnosis.verdict]
            invocation.say((f"{sign} {diagnosis.about:<14}", diagnosis.verdict), diagnosis.found)
            if diagnosis.mend:
                invocation.say((" " * 16 + "mend: ", "faint"), diagnosis.mend)
        invocation.say()
        invocation.say(_summary(found))
    invocation.conclude()


def _summary(found: list[Diagnosis]) -> tuple[str, Verdict]:
    wrong = sum(1 for diagnosis in found if diagnosis.mend and diagnosis.verdict == "bad")
    minor = sum(1 for diagnosis in found if diagnosis.mend and diagnosis.verdict == "warn")
    if wrong:
        more = f", and {minor:,} could be better" if minor else ""
        return f"{count(wrong, 'thing needs', 'things need')} mending{more}.", "bad"
    if minor:
        return f"Nothing is broken; {count(minor, 'thing', 'things')} could be better.", "warn"
    return "Nothing needs mending.", "good"


def _configuration(invocation: Invocation) -> Iterator[Diagnosis]:
    from perdure.daemon.workspace import load_workspace

    try:
        loaded = load_workspace(invocation.workspace)
    except Problems as problems:
        yield Diagnosis(
            "configuration", "bad", count(len(problems.problems), "problem"), f"`{invocation.command} check` lists them"
        )
    except PerdureError as error:
        yield Diagnosis("configuration", "bad", str(error), error.hint)
    else:
        yield Diagnosis("configuration", "good", f"{count(len(loaded.tasks), 'task')}, policies and {CONFIG_NAME} load")
    if (invocation.workspace / STOP_FILE).exists():
        yield Diagnosis(
            "STOP file", "warn", "while it lies there, nothing runs", f"rm {invocation.workspace / STOP_FILE}"
        )


def _disk(invocation: Invocation) -> Iterator[Diagnosis]:
    directory = _existing(invocation.state_dir)
    usage = shutil.disk_usage(directory)
    inodes = os.statvfs(directory)
    free = f"{size(usage.free)} free of {size(usage.total)} at {directory}"
    mend = "Free space there: a ledger that cannot be written stops all actions"
    if usage.free < FREE_BYTES_BAD:
        yield Diagnosis("disk space", "bad", free, mend)
    elif usage.free < FREE_BYTES_WARN:
        yield Diagnosis("disk space", "warn", free, mend)
    else:
        yield Diagnosis("disk space", "good", free)
    if inodes.f_files and inodes.f_favail < FREE_INODES_BAD:
        yield Diagnosis("disk inodes", "bad", f"{inodes.f_favail:,} left", "Delete small files there")
    wal = invocation.state_dir / (LEDGER + "-wal")
    if wal.exists() and wal.stat().st_size > WAL_BYTES_WARN:
        mend = "A reader that never ends keeps it from being emptied: end it, then restart the daemon"
        yield Diagnosis("write-ahead log", "warn", f"{size(wal.stat().st_size)} large", mend)


def _existing(path: Path) -> Path:
    return next(candidate for candidate in (path, *path.parents) if candidate.exists())


def _permissions(invocation: Invocation) -> Iterator[Diagnosis]:
    """Whoever can write policies decides what runs; whoever can read the token can answer questions."""
    state = invocation.state_dir
    wrong = list(_too_open(invocation.workspace, state))
    if state.exists() and not os.access(state, os.R_OK | os.W_OK | os.X_OK):
        owner = state.stat().st_uid
        hint = f"Run the command as the user with uid {owner}"
        wrong.append(Diagnosis("permissions", "warn", f"{state} is not yours to write", hint))
    ledger = state / LEDGER
    if ledger.exists() and state.stat().st_uid != ledger.stat().st_uid:
        found = f"{ledger} belongs to uid {ledger.stat().st_uid}, its directory to uid {state.stat().st_uid}"
        wrong.append(Diagnosis("permissions", "bad", found, f"chown --reference={state} {ledger}*"))
    yield from wrong or [Diagnosis("permissions", "good", "state, policies and tasks are written by their owner only")]


def _too_open(workspace: Path, state: Path) -> Iterator[Diagnosis]:
    watched = [
        workspace / CONFIG_NAME,
        workspace / "policies",
        workspace / "tasks",
        *sorted((workspace / "policies").glob("*.yaml")),
        *sorted((workspace / "tasks").glob("*.md")),
        state,
        *(state / name for name in (LEDGER, "anchor", "lock")),
    ]
    for path in watched:
        if path.exists() and path.stat().st_mode & stat.S_IWOTH:
            yield Diagnosis("permissions", "bad", f"anybody may write {path}", f"chmod o-w {path}")
    token = state / "control.token"
    if token.exists() and token.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        yield Diagnosis("permissions", "bad", f"others may read {token}, which answers questions", f"chmod 600 {token}")


def _opening(invocation: Invocation) -> Iterator[Diagnosis]:
    try:
        if invocation.has_ledger():
            found = f"opens, {count(invocation.ledger.head().seq, 'event')} (not verified)"
        else:
            found = "there is none yet: nothing has run"
    except PerdureError as error:
        yield Diagnosis("ledger", "bad", error.cause, error.hint)
    else:
        yield Diagnosis("ledger", "good", found)


def _integrity(invocation: Invocation) -> Iterator[Diagnosis]:
    from perdure.daemon.cli.progress import counting
    from perdure.daemon.cli.verification import accounted_until, next_step, slot_findings
    from perdure.state.verification import verify

    if not (invocation.state_dir / LEDGER).exists():
        yield from _opening(invocation)
        return
    with counting(invocation, "verifying") as progress:
        report = verify(invocation.state_dir, progress=progress)
    for finding in report.findings[:FINDINGS_SHOWN_MAX]:
        yield Diagnosis("integrity", "bad" if finding.grave else "warn", str(finding))
    if not report.ok:
        more = len(report.findings) - FINDINGS_SHOWN_MAX
        found = "the ledger does not verify" + (f", in {count(more, 'more place')}" if more > 0 else "")
        yield Diagnosis("integrity", "bad", found, next_step(invocation, report.findings))
    else:
        yield Diagnosis(
            "integrity", "good", f"chain, anchor, payloads and tables of {count(report.events, 'event')} agree"
        )
        until = accounted_until(invocation)
        gaps = slot_findings(invocation, until - 30 * DAY, until)
        for gap in gaps[:5]:
            yield Diagnosis("slots", "bad", gap.detail, "Report it, with the ledger: no firing may be without its slot")
        if not gaps:
            yield Diagnosis("slots", "good", "every firing of the last 30 days is accounted for")


def _owner(invocation: Invocation) -> Iterator[Diagnosis]:
    from perdure.daemon.control import SOCKET_NAME
    from perdure.state import projections
    from perdure.state.ownership import holder

    pid = holder(invocation.state_dir)
    if pid is not None:
        yield _holding(invocation.state_dir, pid)
        return
    words = "nobody holds the workspace's lock: no daemon runs"
    if (invocation.state_dir / SOCKET_NAME).exists():
        words += " (it left its socket behind, which the next one replaces)"
    yield Diagnosis("owner", "good", words)
    if (invocation.state_dir / LEDGER).exists():
        try:
            open_actions = len(projections.open_intents(invocation.ledger))
        except PerdureError:
            return
        if open_actions:
            found = f"{count(open_actions, 'action has', 'actions have')} no outcome: the daemon was cut off"
            yield Diagnosis(
                "open actions", "warn", found, "The next start settles each by its effect class: `perdure run`"
            )


def _holding(state_dir: Path, pid: int) -> Diagnosis:
    """The lock is held: by a daemon that lives, by one that hangs, or by something that outlived it."""
    from perdure.daemon.service import HEARTBEAT
    from perdure.daemon.supervision import seconds_since_beat
    from perdure.state.ownership import NAME

    if not Path(f"/proc/{pid}").exists():
        held = processes_with(state_dir / NAME)
        found = f"process {pid} took the workspace's lock and is gone, but the lock is still held"
        others = " ".join(str(other) for other in held)
        mend = f"kill {others}" if held else f"fuser -v {state_dir / NAME}, as root, says by whom"
        return Diagnosis("owner", "bad", found + (f" by {others}" if held else ""), mend)
    silent = seconds_since_beat(state_dir / HEARTBEAT, pid)  # None: no daemon's, or of one that is still starting
    if silent is not None and silent > SILENT_SECONDS_MAX:
        found = f"process {pid} holds the workspace's lock, but its heart has not beaten for {duration(int(silent * SECOND))}"
        mend = f"It hangs or is stopped: kill -ABRT {pid} (-KILL where that does nothing); the next start recovers"
        return Diagnosis("owner", "bad", found, mend)
    return Diagnosis("owner", "good", f"process {pid} holds the workspace's lock")


def processes_with(path: Path) -> list[int]:
    """The processes that have this file open, as far as we may look."""
    found = []
    for descriptors in Path("/proc").glob("[0-9]*/fd"):
        with contextlib.suppress(OSError):
            if any(link.exists() and link.samefile(path) for link in descriptors.iterdir()):
                found.append(int(descriptors.parent.name))
    return sorted(found)


def _belonging(invocation: Invocation) -> Iterator[Diagnosis]:
    from perdure.daemon.belonging import as_seen_from_state, other_workspace, recorded_owner
    from perdure.daemon.config import load_config

    if not (invocation.state_dir / LEDGER).exists():
        return
    try:
        config, owner = load_config(invocation.workspace), recorded_owner(invocation.ledger)
    except PerdureError:
        return  # told of above
    if owner is not None and owner != as_seen_from_state(config):
        mend = f"another `state` in {CONFIG_NAME}; or, if it takes over for good: `{invocation.command} ledger adopt`"
        yield Diagnosis("workspace", "bad", f"{config.state_dir}: {other_workspace(config, owner)}", mend)


def _leftovers(invocation: Invocation) -> Iterator[Diagnosis]:
    for path in sorted(invocation.state_dir.glob("restore-*")):
        yield Diagnosis(
            "left over", "warn", f"{path}: a restore was cut off", f"rm -r {path}, then restore again if you meant to"
        )
    for path in sorted(invocation.state_dir.glob(f"{LEDGER}.replaced-*")):
        yield Diagnosis("left over", "good", f"{path} ({size(path.stat().st_size)}) is what a restore replaced")


def _memory(invocation: Invocation) -> Iterator[Diagnosis]:
    """Whether what it embeds texts with is there and is what it should be: without, sessions search by words alone."""
    from perdure.memory import embedding

    memory = invocation.settings.get("memory")
    if isinstance(memory, dict) and memory.get("embedding") == "none":
        return
    try:
        embedding.checked(embedding.model_path(), embedding.MODEL_SHA256)
        embedding.checked(embedding.tokenizer_path(), embedding.TOKENIZER_SHA256)
    except embedding.EmbeddingUnavailable as error:
        yield Diagnosis("memory", "warn", f"{error.object}: {error.cause}", error.hint)
    else:
        yield Diagnosis("memory", "good", f"the embedding model is there: {embedding.MODEL_ID}")


def _clock(invocation: Invocation) -> Iterator[Diagnosis]:
    if (invocation.state_dir / LEDGER).exists():
        try:
            behind = invocation.ledger.head().at - invocation.now()
        except PerdureError:
            behind = 0
        if behind > CLOCK_BEHIND_MAX:
            found = f"the ledger's last event lies {duration(behind)} in the future: the clock was set back"
            yield Diagnosis(
                "clock",
                "bad",
                found,
                "Set the clock right (timedatectl). If it is right and ran ahead before: what was due until then was accounted for "
                "and does not run again by itself; `perdure session run TASK` does it",
            )
            return
    if clock_synchronised() is False:
        yield Diagnosis(
            "clock", "warn", "it is not synchronised", "systemctl enable --now systemd-timesyncd (or chrony)"
        )
    else:
        yield Diagnosis("clock", "good", "it is not behind the ledger")


def clock_synchronised() -> bool | None:
    """Whether the kernel says that a time service keeps the clock; None where it does not say (some containers)."""
    libc = ctypes.CDLL(None, use_errno=True)
    state = libc.adjtimex(ctypes.create_string_buffer(512))  # modes 0: only asks
    return None if state < 0 else state != CLOCK_UNSYNCHRONISED


def _sandbox(_: Invocation) -> Iterator[Diagnosis]:
    from perdure.daemon.sandbox import landlock

    version = landlock.abi()
    if version:
        yield Diagnosis("sandbox", "good", f"Landlock ABI {version}")
        return
    mend = 'Boot with lsm=landlock,… in the kernel\'s arguments, or say sandbox = "none" under [commands] and mean it'
    yield Diagnosis("sandbox", "warn", "this kernel has no Landlock: every command is asked about", mend)
