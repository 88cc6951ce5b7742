"""Tasks, pauses and slots: which firings were expected, and how each ended."""

from __future__ import annotations

from dataclasses import dataclass

from perdure.state.escalations import task_goes_on
from perdure.state.events import Event, SlotKind, SlotOutcome
from perdure.state.reading import LedgerReader
from perdure.state.refusals import LedgerRefused
from perdure.state.schema import Executor


@dataclass(frozen=True, slots=True)
class TaskRow:
    """A task as last loaded. `schedule_since` is when its present schedule was first loaded (microseconds UTC); `timezone`
    the zone that its memory tells days in (None: UTC)."""

    task: str
    digest: str
    schedule: str | None
    first_loaded: int
    loaded_at: int
    schedule_since: int
    timezone: str | None
    removed_at: int | None


@dataclass(frozen=True, slots=True)
class SlotRow:
    """One expected firing, or a range of `count` closed together (`due` first, `last_due` last). `outcome` None: open.
    `session` is the latest that ran for it. `resumes` is the session that a resume slot goes on from."""

    slot: str
    task: str
    kind: SlotKind
    due: int
    last_due: int
    count: int
    outcome: SlotOutcome | None
    session: str | None
    rule: str | None
    cause: str | None
    resumes: str | None
    dry_run: int | None
    opened_at: int | None
    closed_at: int | None
    seq_opened: int | None
    seq_closed: int | None


def tasks(reader: LedgerReader) -> list[TaskRow]:
    """Every task ever loaded, by name; `removed_at` says which are gone."""
    return [TaskRow(*row) for row in reader.rows("SELECT * FROM tasks ORDER BY task")]


def task_first_loaded(reader: LedgerReader, task: str) -> int | None:
    """When the task was loaded for the first time ever: `every` counts from here."""
    return next((row[0] for row in reader.rows("SELECT first_loaded FROM tasks WHERE task = ?", task)), None)


def configuration(reader: LedgerReader) -> dict[str, str]:
    """The digest of each kind of configuration (config, policies) that was last brought into force."""
    return dict(reader.rows("SELECT kind, digest FROM configuration"))


def paused(reader: LedgerReader, task: str) -> str | None:
    """Why this task starts no sessions, or None where it may. A pause of all tasks counts."""
    sql = "SELECT reason FROM pauses WHERE task IN (?, '') ORDER BY task DESC LIMIT 1"
    return next((row[0] for row in reader.rows(sql, task)), None)


def last_resumed(reader: LedgerReader, task: str) -> int:
    """The event by which a person last let this task, or all tasks, go on; 0: never."""
    return int(reader.rows("SELECT COALESCE(MAX(seq), 0) FROM resumptions WHERE task IN (?, '')", task)[0][0])


def slots(
    reader: LedgerReader, task: str | None = None, open_only: bool = False, limit: int | None = None
) -> list[SlotRow]:
    """Slots, newest due first; with `open_only` those without an outcome, oldest due first (the order in which they run)."""
    where = ["outcome IS NULL"] if open_only else []
    parameters: list[object] = []
    if task is not None:
        where.append(
            "+task = ?" if open_only else "task = ?"
        )  # +: the few open ones are looked through, not all of a task
        parameters.append(task)
    sql = "SELECT * FROM slots" + (f" WHERE {' AND '.join(where)}" if where else "")  # noqa: S608 - only fixed words are put together
    sql += " ORDER BY due, slot" if open_only else " ORDER BY due DESC, slot DESC"
    return [SlotRow(*row) for row in reader.rows(sql + " LIMIT ?", *parameters, -1 if limit is None else limit)]


def slot(reader: LedgerReader, id: str) -> SlotRow | None:
    """The slot with this id."""
    return next((SlotRow(*row) for row in reader.rows("SELECT * FROM slots WHERE slot = ?", id)), None)


def last_slot(reader: LedgerReader, task: str, kind: str) -> SlotRow | None:
    """The slot of this task and kind that is due last: the next expected firing comes after its `last_due`."""
    sql = "SELECT * FROM slots WHERE task = ? AND kind = ? ORDER BY due DESC LIMIT 1"
    return next((SlotRow(*row) for row in reader.rows(sql, task, kind)), None)


# -- how events change the tables -------------------------------------------------------------------------------------


def configuration_loaded(db: Executor, event: Event) -> None:
    """Another version of configuration, policies or tasks is in force."""
    body = event.body
    db.execute(
        "INSERT INTO configuration VALUES (?1, ?2, ?3) ON CONFLICT (kind) DO UPDATE SET digest = ?2, seq = ?3",
        (body["kind"], body["digest"], event.seq),
    )


def task_loaded(db: Executor, event: Event) -> None:
    """A task file is in force; a changed schedule begins to count from here."""
    body = event.body
    schedule = body.get("schedule")
    db.execute(
        "INSERT INTO tasks VALUES (?1, ?2, ?3, ?4, ?4, ?4, ?5, NULL) ON CONFLICT (task) DO UPDATE SET digest = ?2, loaded_at = ?4,"
        " schedule_since = CASE WHEN schedule IS ?3 AND removed_at IS NULL THEN schedule_since ELSE ?4 END,"
        " schedule = ?3, timezone = ?5, removed_at = NULL",
        (body["task"], body["digest"], schedule, event.at, body.get("timezone")),
    )


def task_removed(db: Executor, event: Event) -> None:
    """A task file is gone; its slots and sessions stay on record."""
    changed = db.execute(
        "UPDATE tasks SET removed_at = ? WHERE task = ? AND removed_at IS NULL", (event.at, event.body["task"])
    )
    if changed.rowcount == 0:
        raise LedgerRefused("no-such-task", f"the removal of {event.body['task']}", "no such task is loaded")


def was_paused(db: Executor, event: Event) -> None:
    """A task, or every task, starts no more sessions."""
    body = event.body
    db.execute(
        "INSERT INTO pauses VALUES (?1, ?2, ?3, ?4) ON CONFLICT (task) DO UPDATE SET by = ?2, reason = ?3, at = ?4",
        (body.get("task", ""), body["by"], body["reason"], event.at),
    )


def was_resumed(db: Executor, event: Event) -> None:
    """The pause of the same name ends."""
    task = event.body.get("task", "")
    db.execute("DELETE FROM pauses WHERE task = ?", (task,))
    task_goes_on(db, task, event.at)
    db.execute("INSERT INTO resumptions VALUES (?1, ?2) ON CONFLICT (task) DO UPDATE SET seq = ?2", (task, event.seq))


def slot_opened(db: Executor, event: Event) -> None:
    """A firing became due, once."""
    body = event.body
    _refuse_known(db, body["slot"], body["task"], body["kind"], body["due"], body["due"])
    db.execute(
        "INSERT INTO slots VALUES (?, ?, ?, ?, ?, 1, NULL, NULL, NULL, ?, ?, ?, ?, NULL, ?, NULL)",
        (
            body["slot"], body["task"], body["kind"], body["due"], body["due"], body.get("cause"), body.get("resumes"),
            1 if body.get("dry_run") else None, event.at, event.seq,
        ),
    )  # fmt: skip


def slot_closed(db: Executor, event: Event) -> None:
    """A firing, or a range of them, got its one outcome."""
    body = event.body
    slot_id, count = body["slot"], body.get("count", 1)
    last_due = body.get("last_due", body["due"])
    if last_due < body["due"] or count < 1 or (count == 1) != (last_due == body["due"]):
        raise LedgerRefused(
            "slot-range", f"the end of slot {slot_id}", f"{count} firings from {body['due']} to {last_due} is no range"
        )
    row = db.execute("SELECT outcome, task, kind, due FROM slots WHERE slot = ?", (slot_id,)).fetchone()
    ending = (body["outcome"], body.get("session"), body.get("rule"), event.at, event.seq)
    if row is None:
        _refuse_known(db, slot_id, body["task"], body["kind"], body["due"], last_due)
        db.execute(
            "INSERT INTO slots (slot, task, kind, due, last_due, count, outcome, session, rule, closed_at, seq_closed)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (slot_id, body["task"], body["kind"], body["due"], last_due, count, *ending),
        )
        return
    if row[0] is not None:
        raise LedgerRefused("slot-closed", f"the end of slot {slot_id}", f"it has already ended as {row[0]}")
    if row[1:] != (body["task"], body["kind"], body["due"]):
        raise LedgerRefused("slot-mismatch", f"the end of slot {slot_id}", "task, kind or due time are not the slot's")
    if last_due != body["due"]:
        _refuse_known(db, None, body["task"], body["kind"], body["due"] + 1, last_due)
    db.execute(
        "UPDATE slots SET outcome = ?, session = ?, rule = ?, closed_at = ?, seq_closed = ?, last_due = ?, count = ?"
        " WHERE slot = ?",
        (*ending, last_due, count, slot_id),
    )


def _refuse_known(db: Executor, slot_id: str | None, task: str, kind: str, due: int, last_due: int) -> None:
    if slot_id is not None and db.execute("SELECT 1 FROM slots WHERE slot = ?", (slot_id,)).fetchone():
        raise LedgerRefused(
            "slot-known", f"slot {slot_id}", "this firing already has its slot", "A slot is opened once"
        )
    if kind != "scheduled":  # only a schedule promises one firing per moment; two manual runs may share one
        return
    overlapping = db.execute(
        "SELECT slot FROM slots WHERE task = ? AND kind = ? AND due <= ? ORDER BY due DESC LIMIT 1",
        (task, kind, last_due),
    ).fetchone()
    if (
        overlapping
        and db.execute("SELECT 1 FROM slots WHERE slot = ? AND last_due >= ?", (overlapping[0], due)).fetchone()
    ):
        raise LedgerRefused(
            "slot-overlap",
            f"slot {slot_id or task}",
            f"the firings {due}..{last_due} are covered by slot {overlapping[0]}",
        )
