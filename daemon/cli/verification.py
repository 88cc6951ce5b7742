"""`perdure verify`: the chain, the anchor, the payloads, the projections, and a slot for every firing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from perdure.daemon.cli.invocation import Invocation, with_invocation, with_json
from perdure.daemon.cli.progress import counting
from perdure.daemon.cli.spans import Span
from perdure.daemon.cli.words import DAY, MINUTE, count, full_moment, iso, short_digest
from perdure.daemon.layout import LEDGER
from perdure.errors import PerdureError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from perdure.state.reading import LedgerReader
    from perdure.state.verification import Finding, Report

# A firing is accounted for within moments of its time; a running daemon gets this long.
GRACE = MINUTE
SHOWN_MAX = 20
SLOT_KINDS = frozenset({"slot-gap", "slot-count", "slot-unexpected"})
TABLE_KINDS = frozenset({"older-schema", "projection-differs", "place-differs"})
TRUTH = ("table events ", "table payloads ", "table ownership ")  # what no events lead to


@click.command()
@click.argument("path", required=False, type=click.Path(path_type=Path, exists=True))
@click.option(
    "--since", type=Span(), default="30d", show_default=True, help="How far back every firing must have its slot."
)
@click.option(
    "--no-parity", is_flag=True, help="Do not replay the events to compare sessions, slots, actions and questions."
)
@click.option(
    "--public-key", help="Check the anchor's signatures with this key (`ed25519:` and base64), not the recorded one."
)
@with_json
@with_invocation
def verify(invocation: Invocation, path: Path | None, since: int, no_parity: bool, public_key: str | None) -> None:
    """Prove that the ledger is whole and that every slot is accounted for.

    Checks the chain of hashes from the first event, the anchor kept beside the ledger, every payload, the tables against
    the events, and the slots against the schedules. Exits 1 and names each place where something is wrong.

    With PATH, a file or directory that `perdure backup` wrote, it checks that backup by itself; no workspace is needed.
    """
    if path is not None:
        _verify_backup(invocation, path, public_key)
    from perdure.state.verification import verify as verify_ledger

    if not invocation.has_ledger():
        hint = "If there was one, put a backup in its place with `perdure restore PATH`"
        raise PerdureError("verify", str(invocation.state_dir / LEDGER), "there is no such file, nor an anchor", hint)
    with counting(invocation, "verifying") as progress:
        report = verify_ledger(invocation.state_dir, progress=progress, parity=not no_parity, public_key=public_key)
    findings = list(report.findings)
    checked_until: int | None = None
    if _can_be_asked(findings):
        checked_until = accounted_until(invocation)
        findings += slot_findings(invocation, checked_until - since, checked_until)
    invocation.verdict = 1 if any(finding.grave for finding in findings) else 0
    if invocation.as_json:
        _emit(invocation, report, findings, checked_until)
    else:
        _print(invocation, report, findings, since, checked_until)
    invocation.conclude()


def _can_be_asked(findings: list[Finding]) -> bool:
    """Whether the tables of slots and tasks are there to be read."""
    return not any(
        finding.kind in ("unreadable", "corrupt", "older-schema")
        or (finding.kind == "schema-changed" and finding.detail.startswith("table "))
        for finding in findings
    )


def _verify_backup(invocation: Invocation, path: Path, public_key: str | None) -> None:
    """Check a backup, print, and exit."""
    with counting(invocation, "verifying") as progress:
        if path.is_dir():
            from perdure.state.unsealing import verify_segments

            report = verify_segments(path, progress=progress, public_key=public_key)
        else:
            from perdure.state.backup import verify_copy

            report = verify_copy(path, progress=progress, public_key=public_key)
    invocation.verdict = 0 if report.ok else 1
    if invocation.as_json:
        _emit(invocation, report, report.findings, None)
    else:
        _print(invocation, report, report.findings, 0, None, backup=path)
    invocation.conclude()


def _emit(invocation: Invocation, report: Report, findings: list[Finding], checked_until: int | None) -> None:
    head = report.head
    value = {
        "ok": not any(finding.grave for finding in findings),
        "events": report.events,
        "payloads": report.payloads,
        "erased": report.erased,
        "epoch": report.epoch,
        "head": {"seq": head.seq, "hash": head.hash, "at": iso(head.at) if head.at else None},
        "anchored": report.anchored,
        "slots_checked_until": None if checked_until is None else iso(checked_until),
        "findings": [{"seq": f.seq, "kind": f.kind, "detail": f.detail, "grave": f.grave} for f in findings],
    }
    invocation.emit("verification", value)


def _print(
    invocation: Invocation,
    report: Report,
    findings: list[Finding],
    since: int,
    checked_until: int | None,
    *,
    backup: Path | None = None,
) -> None:
    for finding in findings[:SHOWN_MAX]:
        sign, style = ("✗", "bad") if finding.grave else ("•", "warn")
        where = f" at #{finding.seq}" if finding.seq else ""
        invocation.say((f"{sign} {finding.kind}", style), (where, "name"), f": {finding.detail}")
    if len(findings) > SHOWN_MAX:
        invocation.say((f"… and {len(findings) - SHOWN_MAX:,} more (--json lists all)", "faint"))
    if not any(finding.grave for finding in findings):
        words = f": {count(report.events, 'event')}, {count(report.payloads, 'payload')}"
        words += f" ({report.erased:,} erased)" if report.erased else ""
        words += f", epoch {report.epoch}, head #{report.head.seq} "
        digest = (short_digest(report.head.hash), "faint")
        invocation.say(("✓ OK", "good"), words, digest, f", anchored up to #{report.anchored}")
        if checked_until == 0:
            invocation.say(("• slots", "faint"), ": no daemon has run here yet, so no firing was expected")
        elif checked_until is not None:
            invocation.say(("✓ slots", "good"), f": every firing of the last {since / DAY:g} days up to "
                           f"{full_moment(checked_until, invocation.zone)} is accounted for")  # fmt: skip
        return
    if backup is not None:
        invocation.say(("✗ the backup does not verify", "bad"), ": take another copy of it, or another backup")
        return
    invocation.say(("✗ the ledger does not verify", "bad"), ". ", next_step(invocation, findings))


def next_step(invocation: Invocation, findings: list[Finding]) -> str:
    """What to do about a ledger in which this was found."""
    grave = [finding for finding in findings if finding.grave]
    kinds = {finding.kind for finding in grave}
    restore = f"`{invocation.command} restore PATH` goes back to a backup"
    if all(_made_by_rebuild(finding) for finding in grave):
        return (
            f"Its events are sound: stop the daemon, then `{invocation.command} ledger rebuild` makes the tables anew"
        )
    if kinds <= SLOT_KINDS:
        return "Its events are sound, but no firing may be without its slot: report it, with the ledger"
    if kinds == {"unreadable"}:  # which says itself what to do
        return "The file is left as it is"
    return f"Keep the file as it is: it shows what was done. {restore}, beside which it is kept"


def _made_by_rebuild(finding: Finding) -> bool:
    return finding.kind in TABLE_KINDS or (finding.kind == "schema-changed" and not finding.detail.startswith(TRUTH))


def accounted_until(invocation: Invocation) -> int:
    """Up to when firings can be expected to have their slots: just now while a daemon runs, else when the last one ended
    (what was missed since is accounted for when the next one starts)."""
    from perdure.state import projections
    from perdure.state.ownership import holder

    if holder(invocation.state_dir) is not None:
        return invocation.now() - GRACE
    reader = invocation.ledger
    for event in reader.events(types=("daemon.stopped", "daemon.started"), newest_first=True, limit=1):
        if event.type == "daemon.stopped":
            # From the wish to stop to the end of what still ran, no slot was opened: the next start accounts for those.
            last = (projections.last_slot(reader, row.task, "scheduled") for row in projections.tasks(reader))
            accounted = max((slot.last_due or slot.due for slot in last if slot is not None), default=0)
            return min(event.at, max(accounted, event.at - GRACE))
        # It crashed: its last account of a schedule is what can be held against it.
        return max((slot_at for slot_at in _accounts(reader, event.seq)), default=event.at)
    return 0


def _accounts(reader: LedgerReader, after: int) -> Iterator[int]:
    for event in reader.events(types=("slot.opened", "slot.closed"), after=after):
        if event.body["kind"] == "scheduled":
            yield int(event.body.get("last_due", event.body["due"]))


def slot_findings(invocation: Invocation, since: int, until: int) -> list[Finding]:
    """Firings without a slot, slots without a firing."""
    from perdure.daemon.schedule import schedule_from_text
    from perdure.state import projections
    from perdure.state.accounting import verify_slots

    reader, zone = invocation.ledger, invocation.zone
    first_loaded = {row.task: row.first_loaded for row in projections.tasks(reader)}

    def expected(task: str, text: str, after: int, until: int) -> Iterator[int]:
        return schedule_from_text(text, first_loaded.get(task, 0)).between(after, until)

    found = verify_slots(reader, expected, since=since, until=until, moment=lambda at: full_moment(at, zone))
    return list(found)
