"""What must be true at the end of a session, and what was proven by earlier ones, checked by the daemon itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from perdure.daemon.checks import Checks, Failed, Found
from perdure.daemon.planners.moves import Proposal, Taken
from perdure.daemon.proofs import Postcondition, Provable, Unchanged
from perdure.daemon.resumption import recorded_proposal
from perdure.daemon.standing import Proof, keep_copy, last_touch, wrote_unseen
from perdure.daemon.steps import Parked, Rejected, memory_scope
from perdure.daemon.tools.model import Call, ToolRefused
from perdure.state import projections
from perdure.state.canonical import canonical, digest
from perdure.state.events import JSON, Draft, PostconditionChecked

if TYPE_CHECKING:
    from perdure.daemon.runtime import Runtime
    from perdure.daemon.steps import Steps
    from perdure.daemon.tasks import Task
    from perdure.state.projections import SessionRow

PROBE_SECONDS = 60.0
DAY_US = 86_400_000_000
CHECKING_TOOLS = frozenset({"run_command", "http_request"})
_SHAPES: dict[str, Any] = {shape.kind: shape for shape in Provable.__subclasses__()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One postcondition as it was found."""

    index: int
    kind: str
    passed: bool
    detail: str


class Postconditions:
    """The postconditions of one session of `task`; made when the session opens, so that `unchanged` knows from what: from what
    was there when the first of `earlier` opened, whose work this one carries on with."""

    def __init__(
        self,
        runtime: Runtime,
        task: Task,
        session: str,
        slot: Mapping[str, str],
        earlier: Sequence[SessionRow] = (),
    ) -> None:
        self._runtime, self._task = runtime, task
        self._session, self._sessions = session, [*(row.session for row in earlier), session]
        self._variables: dict[str, JSON] = {f"slot.{name}": value for name, value in slot.items()}
        self.before: dict[str, str] = {}  # of each file that must not change: its digest, for the ledger
        looking, known = self._checks(None), _recorded_before(runtime, earlier)
        for condition in task.postconditions:
            if isinstance(condition, Unchanged):
                path = condition.path
                self.before[path] = known[path] if path in known else looking.digest(path)

    async def check(self, steps: Steps) -> list[Check]:
        """Check all and record each; then look again at what earlier sessions proved. Programs and requests run as actions
        of the session, under the policies."""
        checks: list[Check] = []
        drafts: list[Draft] = []
        done: list[str] = []
        for index, condition in enumerate(self._task.postconditions):
            looking = self._checks(steps, key=f"postcondition {index + 1}")
            found = await looking.look(condition)
            checks.append(Check(index=index, kind=condition.kind, passed=found.passed, detail=found.detail))
            draft, name = self._draft(index, condition, found, looking)
            drafts.append(draft)
            done.append(name)
        await self._runtime.ledger.write(*drafts)
        await self._look_again(steps, done)
        return checks

    def _checks(self, steps: Steps | None, key: str = "postcondition") -> Checks:
        async def act(tool: str, args: dict[str, JSON]) -> Taken:
            if steps is None:
                raise Failed("nothing can be run here")
            return await carry_out_check(steps, tool, args, key)

        async def there(tool: str) -> list[str]:
            return await effects_gone(self._runtime, self._task, self._sessions, tool)

        return Checks(config=self._runtime.config, variables=self._variables, act=act, there=there, before=self.before)

    def _draft(self, index: int, condition: Postcondition, found: Found, looking: Checks) -> tuple[Draft, str]:
        words: JSON = {condition.kind: condition.model_dump(mode="json", by_alias=True, exclude_none=True)}
        payload: dict[str, JSON] = {"condition": words, "detail": found.detail}
        name, keep_until = "", None
        if condition.keep is not None and found.passed:
            fields = condition.model_dump(
                mode="json", by_alias=True, exclude={"keep", "json_schema"}, exclude_none=True
            )
            resolved: dict[str, JSON] = looking.filled(fields)
            if condition.kind == "json_schema":
                resolved["schema"] = condition.model_dump(mode="json", by_alias=True)["schema"]
            payload["resolved"] = resolved
            name = digest({condition.kind: resolved})
            if self._strayed(name, found):
                name = ""  # not proven anew, but looked at once more with what earlier sessions proved
            else:
                keep_until = self._runtime.now() + int(condition.keep * 1_000_000)
                self._keep(found, looking)
        draft = PostconditionChecked(
            session=self._session,
            task=self._task.name,
            index=index,
            kind=condition.kind,
            passed=found.passed,
            condition=name or None,
            keep_until=keep_until,
            path=found.path if keep_until else None,
            digest=found.digest if keep_until else None,
            payload=payload,
        )
        return draft, name

    def _strayed(self, name: str, found: Found) -> bool:
        """Whether an earlier session proved the condition for other contents, and the task is not known to have changed them."""
        now, reader = self._runtime.now(), self._runtime.ledger.reader
        proof = self._runtime.standing.proof(self._task.name, name, now)
        if proof is None or self._verdict(proof, found)[0] is None:
            return False
        return not wrote_unseen(reader, self._task.name, proof.latest)

    def _keep(self, found: Found, looking: Checks) -> None:
        if found.path is not None and found.digest is not None:
            content, needed = looking.content(Path(found.path)), self._runtime.standing.digests(self._runtime.now())
            keep_copy(self._runtime.config.state_dir, content, found.digest, needed)

    # -- what earlier sessions proved ---------------------------------------------------------------------------------

    async def _look_again(self, steps: Steps, done: Sequence[str]) -> None:
        now = self._runtime.now()
        for proof in self._runtime.standing.due(self._task.name, now, done):
            payload = self._runtime.ledger.reader.payload(proof.latest)
            resolved = payload.get("resolved") if isinstance(payload, dict) else None
            if not isinstance(payload, dict) or not isinstance(resolved, dict):
                continue  # erased: nobody knows any more what was proven
            condition: Postcondition = TypeAdapter(_SHAPES[proof.kind]).validate_json(canonical(_literal(resolved)))
            found = await self._checks(steps, key=f"standing {proof.seq}").look(condition)
            broken, same = self._verdict(proof, found)
            if proof.broken and broken is not None:
                continue  # a person was told
            if broken is None and same and not proof.broken and now - self._last_seen(proof) < DAY_US:
                continue  # as it was, and said so not long ago
            checked = PostconditionChecked(
                session=self._session,
                task=self._task.name,
                index=proof.index,
                kind=proof.kind,
                passed=broken is None,
                condition=proof.condition,
                keep_until=proof.keep_until if broken is None else None,
                path=found.path or proof.path,
                digest=found.digest if broken is None else proof.digest,
                standing=proof.seq,
                payload={"condition": payload["condition"], "resolved": resolved, "detail": broken or found.detail},
            )
            if broken is None:
                await self._runtime.ledger.write(checked)
                continue
            text = f"{self._task.name}: what event {proof.seq} proved no longer holds: {broken}"
            await self._runtime.alarm("standing-broken", text, about=proof.path or self._task.name, drafts=(checked,))

    def _last_seen(self, proof: Proof) -> int:
        event = self._runtime.ledger.reader.event(proof.latest)
        return event.at if event is not None else 0

    def _verdict(self, proof: Proof, found: Found) -> tuple[str | None, bool]:
        """Why the proof is broken, in words with how to restore what was proven (None: it is not), and whether everything is
        as it was."""
        same = proof.digest is None or proof.digest == found.digest
        if found.passed and same:
            return None, True
        touch = last_touch(self._runtime.ledger.reader, proof.path, proof.latest) if proof.path is not None else None
        if found.passed and touch is not None and touch.task == proof.task:
            return None, False  # its own task wrote a newer version, and the condition holds for that too
        what = found.detail if not found.passed else f"{proof.path} has changed since it was proven"
        if touch is not None:
            how = f"changed by {touch.tool} of task {touch.task}: perdure undo {touch.action} brings the old state back"
            return f"{what}; {how}", False
        if proof.digest is None:
            return what, False
        kept = self._runtime.config.state_dir / "kept" / proof.digest
        rest = f"; the proven version is kept: cp {kept} {proof.path}" if kept.exists() else ""
        return f"{what}; no action of Perdure's did that{rest}", False


async def carry_out_check(steps: Steps, tool: str, args: dict[str, JSON], key: str) -> Taken:
    """Run a check's program or request as an action of the session. Raises Failed where the policies do not let it run on
    its own."""
    proposal = Proposal(
        tool=tool,
        args=args,
        provenance={name: ["config"] for name in args},
        confidence=1.0,
        key=key,
        on_escalate="continue",
    )
    try:
        taken = await steps.take(0, proposal)
    except (Rejected, Parked) as error:
        raise Failed(str(error)) from error
    if taken.status is None:
        raise Failed(f"the policies do not let the check run on its own ({taken.decision}: {taken.reason})")
    return taken


def _recorded_before(runtime: Runtime, earlier: Sequence[SessionRow]) -> dict[str, str]:
    """The digests that the first of these sessions that opened with any recorded then."""
    for row in earlier:
        payload = runtime.ledger.reader.payload(row.seq_opened)
        before = payload.get("unchanged") if isinstance(payload, dict) else None
        if isinstance(before, dict):
            return {path: str(digest) for path, digest in before.items()}
    return {}


async def effects_gone(runtime: Runtime, task: Task, sessions: Sequence[str], name: str) -> list[str]:
    """In words, each successful action of the tool in these sessions, the last of which looks, whose effect its probe does not
    find."""
    gone: list[str] = []
    tool, reader = runtime.tools.get(name), runtime.ledger.reader
    rows = [row for session in sessions for row in projections.actions(reader, session=session) if row.tool == name]
    for row in (row for row in rows if row.status == "succeeded"):
        call = Call(
            action=row.action,
            session=sessions[-1],
            attempt=row.attempt,
            seconds_max=PROBE_SECONDS,
            scope=memory_scope(task),
        )
        try:
            prepared = tool.prepare(recorded_proposal(reader, row).args) if tool is not None else None
            there = await tool.probe(prepared, call) if tool is not None and prepared is not None else None
        except ToolRefused:
            there = None
        if there is not True:
            said = "is not there" if there is False else "cannot be asked for"
            gone.append(f"the effect of {name} ({row.action}, step {row.step}) {said}")
    return gone


def _literal(value: JSON) -> JSON:
    """Texts as they are: what was filled in once is not filled in again."""
    if isinstance(value, str):
        return value.replace("${", "$${")
    if isinstance(value, list):
        return [_literal(each) for each in value]
    if isinstance(value, dict):
        return {key: each if key == "schema" else _literal(each) for key, each in value.items()}
    return value


def failures(checks: Sequence[Check]) -> str:
    """The failed checks in words; empty where all passed."""
    failed = [check for check in checks if not check.passed]
    return "; ".join(f"postcondition {check.index + 1} ({check.kind}): {check.detail}" for check in failed)
