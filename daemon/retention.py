"""What does not stay: texts of model calls older than `payloads.keep`, and the stash behind what a person had erased."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from perdure.daemon.clock import MICROSECONDS
from perdure.daemon.tools.stash import drop
from perdure.state.events import PayloadErased
from perdure.state.ledger import Ledger
from perdure.state.reading import LedgerReader
from perdure.state.retention import BATCH, expired, scrub

if TYPE_CHECKING:
    from perdure.daemon.runtime import Runtime

REASON = "payloads.keep"


async def expire_payloads(runtime: Runtime) -> int:
    """Erase requests and replies of models older than `payloads.keep`, each with its tombstone; returns how many. Sessions go
    on meanwhile: the search runs beside the loop, and the erasures share their commits."""
    ledger, keep = runtime.ledger, int(runtime.config.payloads.keep * MICROSECONDS)
    seqs = await asyncio.to_thread(_expired, ledger.path, runtime.now() - keep)
    for start in range(0, len(seqs), BATCH):
        await ledger.write(*(PayloadErased(erased=seq, reason=REASON) for seq in seqs[start : start + BATCH]))
    if seqs:
        scrub(ledger)
    return len(seqs)


def drop_stashes(ledger: Ledger, seqs: Iterable[int]) -> list[str]:
    """Let go of the old file contents kept to undo the actions that these events are about; returns those actions, which can
    no longer be undone."""
    events = [event for seq in seqs if (event := ledger.reader.event(seq)) is not None]
    actions = dict.fromkeys(str(event.body["action"]) for event in events if "action" in event.body)
    return [action for action in actions if drop(ledger.path.parent, action)]


def _expired(path: Path, before: int) -> list[int]:
    with contextlib.closing(LedgerReader.open(path)) as reader:
        return expired(reader, before)
