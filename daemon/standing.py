"""Standing postconditions: what was once proven is looked at again by later sessions, so that outputs do not rot unnoticed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from perdure.state.events import Event
    from perdure.state.ledger import LedgerReader

CHECKS_MAX = 50  # per session, those that were looked at longest ago first
KEPT_BYTES_MAX = 10_000_000  # files up to this size are kept as they were when they were proven
TOUCHED_EVENTS_MAX = 20_000  # how far back a change is traced to the action that made it


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What was proven: `seq` is the event that said so first, `latest` the one that said so last. `broken`: it was found not to
    hold since; a person was told, and it is looked at until it holds again or its time is over."""

    seq: int
    latest: int
    task: str
    kind: str
    condition: str
    index: int
    keep_until: int
    path: str | None
    digest: str | None
    broken: bool = False


class Standing:
    """The proofs whose time is not over, by task. Feed it every `postcondition.checked`, in order."""

    def __init__(self) -> None:
        self._held: dict[str, dict[str, Proof]] = {}

    def feed(self, events: Iterable[Event]) -> None:
        """Take note of events."""
        for event in events:
            body = event.body
            if event.type != "postcondition.checked" or "condition" not in body:
                continue
            held = self._held.setdefault(body["task"], {})
            if not body["passed"]:
                proof = held.get(body["condition"])
                if body.get("standing") is not None and proof is not None:
                    held[proof.condition] = replace(proof, broken=True)
                continue
            if body.get("keep_until") is None:
                continue
            held[body["condition"]] = Proof(
                seq=body.get("standing") or event.seq,
                latest=event.seq,
                task=body["task"],
                kind=body["kind"],
                condition=body["condition"],
                index=body["index"],
                keep_until=body["keep_until"],
                path=body.get("path"),
                digest=body.get("digest"),
            )

    def proof(self, task: str, condition: str, now: int) -> Proof | None:
        """What is held of a condition, where its time is not over."""
        proof = self._held.get(task, {}).get(condition)
        return proof if proof is not None and proof.keep_until > now else None

    def due(self, task: str, now: int, besides: Iterable[str] = ()) -> list[Proof]:
        """What a session of the task looks at again, `besides` those conditions that it has just checked; what is known to be
        broken comes last."""
        held, done = self._held.get(task, {}), set(besides)
        for condition in [name for name, proof in held.items() if proof.keep_until <= now]:
            del held[condition]
        waiting = [proof for proof in held.values() if proof.condition not in done]
        return sorted(waiting, key=lambda proof: (proof.broken, proof.latest))[:CHECKS_MAX]

    def digests(self, now: int) -> set[str]:
        """The digests of all files that are still kept: also of those that broke, which a person may want back."""
        proofs = [proof for held in self._held.values() for proof in held.values() if proof.keep_until > now]
        return {proof.digest for proof in proofs if proof.digest is not None}


@dataclass(frozen=True, slots=True)
class Touch:
    """The last recorded action that changed a file."""

    action: str
    task: str
    tool: str


def last_touch(reader: LedgerReader, path: str, after: int) -> Touch | None:
    """Who changed the file after event `after`, as far as the ledger knows."""
    ended = {"succeeded", "unknown"}
    proposals = reader.events(after=after, types=("action.proposed",), newest_first=True, limit=TOUCHED_EVENTS_MAX)
    for event in proposals:
        if event.body["effect"] == "read":
            continue
        payload = reader.payload(event.seq)
        paths = payload.get("paths") if isinstance(payload, dict) else None
        resolved = (
            [one for group in paths.values() if isinstance(group, list) for one in group]
            if isinstance(paths, dict)
            else []
        )
        if path not in resolved:
            continue
        action = event.body["action"]
        if any(end.body["status"] in ended for end in reader.events(action=action, types=("action.ended",))):
            return Touch(action, event.body["task"], event.body["tool"])
    return None


def wrote_unseen(reader: LedgerReader, task: str, after: int) -> bool:
    """Whether the task did something after event `after` of which the ledger does not say which files it wrote."""
    for event in reader.events(after=after, types=("action.intended",), task=task, limit=TOUCHED_EVENTS_MAX):
        if event.body["effect"] == "read":
            continue
        (proposed,) = reader.events(action=event.body["action"], types=("action.proposed",))
        payload = reader.payload(proposed.seq)
        if not (isinstance(payload, dict) and payload.get("paths")):
            return True
    return False


def keep_copy(state_dir: Path, content: bytes, digest: str, still_needed: set[str]) -> None:
    """Keep a file as it was proven, under `state/kept/SHA256`; copies that nothing stands on any more go."""
    place = state_dir / "kept"
    place.mkdir(mode=0o700, exist_ok=True)
    for old in place.iterdir():
        if old.name not in still_needed and old.name != digest:
            with contextlib.suppress(OSError):
                old.unlink()
    target = place / digest
    if len(content) > KEPT_BYTES_MAX or target.exists():
        return
    partial = place / f".{digest}"
    partial.write_bytes(content)
    partial.chmod(0o600)
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.rename(target)
