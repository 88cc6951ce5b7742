"""Which workspace a state directory belongs to: two that use one in turn would take each other's tasks, slots and questions
for their own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from perdure.errors import PerdureError
from perdure.state import projections
from perdure.state.events import ConfigurationLoaded

if TYPE_CHECKING:
    from perdure.daemon.config import Config
    from perdure.state.ledger import Ledger
    from perdure.state.reading import LedgerReader

KIND = "workspace"  # of the configuration.loaded event that records it


def keep_to_workspace(ledger: Ledger, config: Config, *, adopt: bool = False) -> None:
    """Record whose ledger this is, at its first use or to `adopt` it. Raises PerdureError where it is another workspace's."""
    here = as_seen_from_state(config)
    owner = recorded_owner(ledger.reader)
    if owner == here:
        return
    if owner is not None and not adopt:
        raise PerdureError(
            "use", str(config.state_dir), other_workspace(config, owner),
            "Give each workspace a `state` of its own in perdure.toml. If this is the same workspace in another place, or takes "
            "over for good: `perdure ledger adopt`",
        )  # fmt: skip
    ledger.commit(ConfigurationLoaded(kind=KIND, digest=here, files={}))


def recorded_owner(reader: LedgerReader) -> str | None:
    """Where the workspace of this ledger lies, seen from the state directory; None before the first use."""
    return projections.configuration(reader).get(KIND)


def as_seen_from_state(config: Config) -> str:
    """Where the workspace lies, seen from its state directory: moving both together, or into a container, changes nothing."""
    return os.path.relpath(config.workspace, config.state_dir)


def other_workspace(config: Config, owner: str) -> str:
    """In words, why a state directory that belongs to `owner` is not this workspace's."""
    return f"it belongs to the workspace {Path(os.path.normpath(config.state_dir / owner))}, not to {config.workspace}"
