"""undo: bring back what a file tool overwrote, moved, appended to or deleted. Itself an action, and itself undoable."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from perdure.daemon.tools import schemas
from perdure.daemon.tools.digests import action_digest
from perdure.daemon.tools.model import Call, Prepared, Result, ToolInterrupted, ToolRefused, ToolSpec
from perdure.daemon.tools.roots import Roots
from perdure.daemon.tools.stash import MANIFEST, Change, Planned, Stash
from perdure.daemon.tools.versions import current, hash_of, parts, put, remove, sha256
from perdure.state.events import JSON

UNDO = ToolSpec(
    name="undo",
    description="Bring back the files that an earlier action overwrote, moved, appended to or deleted.",
    args_schema=schemas.args(
        "action",
        action=schemas.text("The action's id", pattern="^[0-9A-Za-z]{1,64}$"),
        force=schemas.flag("Also where a file has been changed since (what is there now is kept)"),
    ),
    effect="idempotent",
)


@dataclass(frozen=True, slots=True)
class Undo:
    """Restores from the stash. The digest binds the manifest: exactly these versions come back."""

    roots: Roots
    stash: Stash
    spec: ToolSpec = UNDO

    def prepare(self, args: Mapping[str, JSON]) -> Prepared:
        action = str(args["action"])
        changes = self._changes(action)
        for change in changes:
            self.roots.check(change.path, "write")
        manifest = sha256((self.stash.place(action) / MANIFEST).read_bytes())
        paths = {"action": tuple(str(change.path) for change in changes)}
        return Prepared(
            spec=self.spec,
            args=args,
            paths=paths,
            digest=action_digest(self.spec, args, paths=paths, also={"manifest": manifest}),
        )

    async def run(self, prepared: Prepared, call: Call) -> Result:
        undone = str(prepared.args["action"])
        try:
            restored = await asyncio.to_thread(
                self._restore, undone, call.action, bool(prepared.args.get("force", False))
            )
        except ToolRefused as error:
            return Result(ok=False, value=None, error=str(error))
        except OSError as error:
            cause = error.strerror or str(error)
            raise ToolInterrupted(
                "finish", f"undoing {undone}", cause, "It can be tried again: nothing is lost"
            ) from None
        return Result(ok=True, value={"action": undone, "restored": restored}, undo=True)

    async def probe(self, prepared: Prepared, call: Call) -> bool | None:
        return None

    def _changes(self, action: str) -> tuple[Change, ...]:
        changes = self.stash.load(action)
        if changes is None:
            raise ToolRefused(
                "undo",
                f"the action {action}",
                "nothing of it is stashed: it changed no file through a file tool",
                "Look with `perdure ledger show SESSION`",
            )
        return changes

    def _restore(self, undone: str, action: str, force: bool) -> list[JSON]:
        changes = self._changes(undone)
        if not force:
            for change in changes:
                self._check_unchanged(undone, change)
        for change in changes:
            self._check_own_beginning(undone, change)
        planned = [
            Planned(
                path=change.path,
                after=change.before.sha256 if change.before else None,
                after_size=change.before.size if change.before else 0,
            )
            for change in changes
        ]
        self.stash.keep(action, "undo", planned)
        place = self.stash.place(undone)
        return [
            {"path": self.roots.shown(change.path), "is": self._bring_back(place, change, action)} for change in changes
        ]

    def _check_unchanged(self, undone: str, change: Change) -> None:
        now = current(self.roots, change.path)
        found = now.sha256 if now else None
        if found not in (change.after, change.before.sha256 if change.before else None):
            is_now = f"its SHA-256 is {found}" if found else "it is gone"
            expected = change.after or "no file"
            raise ToolRefused(
                "undo",
                f"the action {undone}",
                f"{self.roots.shown(change.path)} has been changed since ({is_now}, expected {expected})",
                "Force it (`perdure undo ACTION --force`, force: true): what is there now is stashed first and can be brought back",
            )

    def _check_own_beginning(self, undone: str, change: Change) -> None:
        """What an append changed is brought back from the file itself, which must still begin as it did."""
        if change.file is not None or change.before is None:
            return
        if (
            current(self.roots, change.path) is None
            or hash_of(self.roots, change.path, change.before.size) != change.before.sha256
        ):
            raise ToolRefused(
                "undo",
                f"the action {undone}",
                f"{self.roots.shown(change.path)} no longer begins with its old content, of which an append keeps no copy",
                "Undo the later change first, or take the file from a backup",
            )

    def _bring_back(self, place: Path, change: Change, action: str) -> str:
        if change.before is None:
            if current(self.roots, change.path) is not None:
                remove(self.roots, change.path)
            return "absent, as before"
        now = current(self.roots, change.path)
        if now is not None and now.sha256 == change.before.sha256:
            return "as before"
        content = self._own_beginning(change) if change.file is None else _stashed(place / change.file)
        put(self.roots, change.path, content, like=change.before, name=action)
        restored = current(self.roots, change.path)
        if restored is None or restored.sha256 != change.before.sha256:
            raise ToolRefused(
                "undo",
                str(change.path),
                "what was brought back is not what was stashed",
                "The file's present content is in the undo's own stash",
            )
        return "as before"

    def _own_beginning(self, change: Change) -> Iterator[bytes]:
        assert change.before is not None
        descriptor = self.roots.open_file(change.path)
        try:
            yield from parts(descriptor, change.before.size)
        finally:
            os.close(descriptor)


def _stashed(file: Path) -> Iterator[bytes]:
    descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield from parts(descriptor)
    finally:
        os.close(descriptor)
