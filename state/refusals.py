"""The two ways in which the ledger says no: an invariant forbids the event, or the disk does not take it."""

from __future__ import annotations

from perdure.errors import PerdureError


class LedgerRefused(PerdureError):
    """An invariant forbids this event; nothing of its transaction was written. `rule` is a stable word for machines."""

    def __init__(
        self, rule: str, object: str, cause: str, hint: str = "Nothing was written; read the current state first"
    ) -> None:
        super().__init__("record", object, cause, hint)
        self.rule = rule


class LedgerUnwritable(PerdureError):
    """The ledger cannot be written (full disk, read-only, locked, I/O error). It stays closed for writing: no intent, no
    action, until it has been opened anew."""
