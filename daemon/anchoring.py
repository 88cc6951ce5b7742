"""The ledger's anchor beyond its file: signed with the operator's key, and noted in the journal, which the daemon's own user
cannot rewrite."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import structlog

from perdure.daemon.clock import MICROSECONDS
from perdure.daemon.log import goes_to_journal
from perdure.daemon.secrets import credential
from perdure.state import projections
from perdure.state.events import ConfigurationLoaded

if TYPE_CHECKING:
    from perdure.daemon.config import Config
    from perdure.state.anchor import Anchored
    from perdure.state.ledger import Ledger
    from perdure.state.signing import Signer

log = structlog.get_logger(__name__)
NOTED_EVERY_US = 60 * MICROSECONDS  # a journal is no place for a line per action


def signer(config: Config) -> Signer | None:
    """What signs anchored heads, if perdure.toml names a key. Raises PerdureError where the key is missing or is none."""
    name = config.ledger.signing_key
    if name is None:
        return None
    from perdure.state.signing import Signer

    return Signer(credential(name))


def record_key(ledger: Ledger, sign: Signer | None) -> None:
    """Record the public key that heads are signed with from now on, where it changed."""
    if sign is None:
        return
    from perdure.state.signing import KIND

    if projections.configuration(ledger.reader).get(KIND) != sign.public_key:
        ledger.commit(ConfigurationLoaded(kind=KIND, digest=sign.public_key, files={}))


def journal_note() -> Callable[[Anchored], None] | None:
    """What notes heads in the journal, about once a minute; None where the log does not go there.

    `journalctl PERDURE_ANCHOR_SEQ=…` finds them.
    """
    if not goes_to_journal(sys.stderr):
        return None
    noted_at: int | None = None

    def note(head: Anchored) -> None:
        nonlocal noted_at
        if noted_at is None or not 0 <= head.at - noted_at < NOTED_EVERY_US:
            noted_at = head.at
            log.info(
                "ledger anchored",
                anchor_epoch=head.epoch,
                anchor_seq=head.seq,
                anchor_hash=head.hash,
                anchor_signature=head.signature,
            )

    return note
