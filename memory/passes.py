"""What passes of compaction leave in the ledger: receipts, and the stop after two that were of no use."""

from __future__ import annotations

import json

from perdure.memory.rows import Receipt
from perdure.state.events import CompactionFinished, Event
from perdure.state.reading import LedgerReader

PASSES_MAX = 2  # ineffective ones in a row; compaction loops elsewhere have burnt hundreds of millions of tokens
LOOKED_AT_MAX = 20  # events, newest first: more ineffective passes than that cannot have been let happen
RESUME = "Mend the cause, then let it go on: perdure memory resume"

_PASSES = ("compaction.finished", "compaction.failed", "compaction.resumed")


def draft(receipt: Receipt) -> CompactionFinished:
    """A receipt as the ledger keeps it."""
    made = json.loads(receipt.detail)
    return CompactionFinished(
        session=receipt.session, task=receipt.task, after=receipt.after, until=receipt.until, events=receipt.events,
        records=receipt.records, facts=receipt.facts, summaries=receipt.summaries, tokens_before=receipt.tokens_before,
        tokens_after=receipt.tokens_after, duration_us=receipt.duration_us, left_out=receipt.left_out,
        ineffective=True if receipt.ineffective else None, model_stopped=True if receipt.model_stopped else None,
        payload={"summaries": made} if made else None,
    )  # fmt: skip


def nothing_new(task: str, session: str | None, mark: int) -> CompactionFinished:
    """What compacting came to where the ledger had gained nothing; the ledger does not keep it."""
    return CompactionFinished(
        session=session, task=task, after=mark, until=mark, events=0, records=0, facts=0, summaries=0, tokens_before=0,
        tokens_after=0, duration_us=0, left_out=0,
    )  # fmt: skip


def stopped(reader: LedgerReader) -> Event | None:
    """The event that stopped compaction, while it holds."""
    for event in reader.events(types=("compaction.stopped", *_PASSES), newest_first=True, limit=LOOKED_AT_MAX):
        if event.type != "compaction.stopped":
            return None
        if event.body["what"] == "compaction":
            return event
    return None


def ineffective_in_a_row(reader: LedgerReader) -> list[str]:
    """Why each of the last passes was ineffective, newest first, back to one that was not. A pass is ineffective that failed
    (nothing was written although new events wait) or whose summaries are no smaller than what they were made from."""
    found: list[str] = []
    failed = False
    for event in reader.events(types=_PASSES, newest_first=True, limit=LOOKED_AT_MAX):
        body = event.body
        if event.type == "compaction.failed":
            found.append(str(body["reason"]))
            failed = True
        elif event.type == "compaction.finished" and body.get("ineffective"):
            found.append(f"summaries of {body['tokens_after']} tokens were made from {body['tokens_before']}")
            failed = False
        elif event.type == "compaction.resumed" or failed or body["summaries"]:
            break  # a pass that had no period to close says nothing about summaries
    return found
