"""Event types of the ledger: what each records. The body is what the chain covers and projections read; anything that a
person may have to erase (arguments, results, texts) goes into the payload, which stands in a table of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Any, ClassVar, Literal, TypeAlias

JSON: TypeAlias = "None | bool | int | float | str | list[JSON] | dict[str, JSON]"

SlotKind = Literal["scheduled", "watch", "manual", "resume", "follow-up"]
SlotOutcome = Literal["ran", "late", "coalesced", "skipped", "missed", "refused", "held"]
SessionStatus = Literal["succeeded", "unverified", "failed", "parked", "limited", "interrupted"]
EffectClass = Literal["read", "idempotent", "probeable", "once"]
Decided = Literal["auto", "escalate", "deny"]
ActionStatus = Literal["succeeded", "failed", "unknown"]

RESUME_TASK = "resume_task"  # the tool of a question about a task that the circuit breaker stopped: may it go on?


@dataclass(frozen=True, slots=True)
class Event:
    """One row of the ledger as read back. `at` is microseconds UTC; `payload` is None when absent or erased."""

    seq: int
    at: int
    type: str
    body: Mapping[str, Any]
    payload_hash: str | None
    hash: str


@dataclass(slots=True, kw_only=True, eq=False)
class Draft:
    """An event before it is written; subclasses name the type and the body's fields (None fields are left out). Not frozen:
    that takes two thirds of this module's time to load, and of each draft's to be made."""

    type: ClassVar[str]
    payload: JSON = None

    def covered(self) -> tuple[tuple[str, ...], tuple[Any, ...]]:
        """(names, sorted; values) of what the chain covers: all but the payload."""
        kind = type(self)
        if kind not in _readers:
            names = tuple(sorted(field.name for field in fields(kind) if field.name != "payload"))
            one = len(names) == 1
            _readers[kind] = names, (lambda draft: (getattr(draft, names[0]),)) if one else attrgetter(*names)
        names, values = _readers[kind]
        return names, values(self)


_readers: dict[type[Draft], tuple[tuple[str, ...], Callable[[Any], tuple[Any, ...]]]] = {}


# -- the ledger and the daemon --------------------------------------------------------------------------------------


@dataclass(slots=True, kw_only=True, eq=False)
class LedgerOpened(Draft):
    """The first event of a ledger, or of a new epoch after a restore (`restored_from`: the head it was restored to)."""

    type: ClassVar[str] = "ledger.opened"
    workspace: str
    epoch: int
    schema: int
    version: str
    restored_from: str | None = None


@dataclass(slots=True, kw_only=True, eq=False)
class DaemonStarted(Draft):
    type: ClassVar[str] = "daemon.started"
    pid: int
    fence: int
    version: str
    host: str


@dataclass(slots=True, kw_only=True, eq=False)
class DaemonStopped(Draft):
    type: ClassVar[str] = "daemon.stopped"
    fence: int
    reason: str


@dataclass(slots=True, kw_only=True, eq=False)
class ConfigurationLoaded(Draft):
    """`kind` is `config` or `policies`, and `files` maps each file to its SHA-256; or `signing-key`, with the public key as
    `digest`; or `workspace`, with its path seen from the state directory."""

    type: ClassVar[str] = "configuration.loaded"
    kind: str
    digest: str
    files: Mapping[str, str]


@dataclass(slots=True, kw_only=True, eq=False)
class ConfigurationRejected(Draft):
    """A broken edit: the last good version stays in force. The payload holds the problems as text."""

    type: ClassVar[str] = "configuration.rejected"
    kind: str
    problems: int


@dataclass(slots=True, kw_only=True, eq=False)
class TaskLoaded(Draft):
    """A task as it is now in force; the payload is the file's text. `schedule` is the schedule's canonical JSON text;
    `timezone` is the zone whose days, weeks and months its memory tells of (absent: UTC)."""

    type: ClassVar[str] = "task.loaded"
    task: str
    digest: str
    schedule: str | None = None
    timezone: str | None = None


@dataclass(slots=True, kw_only=True, eq=False)
class TaskRemoved(Draft):
    type: ClassVar[str] = "task.removed"
    task: str


@dataclass(slots=True, kw_only=True, eq=False)
class Paused(Draft):
    """One task, or all of them when `task` is None, starts no more sessions until resumed. `by` is who (uid or `breaker`)."""

    type: ClassVar[str] = "paused"
    task: str | None = None
    by: str
    reason: str


@dataclass(slots=True, kw_only=True, eq=False)
class Resumed(Draft):
    type: ClassVar[str] = "resumed"
    task: str | None = None
    by: str


@dataclass(slots=True, kw_only=True, eq=False)
class AlarmRaised(Draft):
    """Something a person must know; `code` is stable for machines, the payload says it in words with the next step."""

    type: ClassVar[str] = "alarm.raised"
    code: str
    about: str | None = None


@dataclass(slots=True, kw_only=True, eq=False)
class NotificationSent(Draft):
    """One attempt to reach a person over `channel` (inbox, log, command, webhook) `about` an id, and how it went."""

    type: ClassVar[str] = "notification.sent"
    channel: str
    about: str
    status: Literal["delivered", "failed"]
    error: str | None = None


# -- slots and sessions ---------------------------------------------------------------------------------------------


@dataclass(slots=True, kw_only=True, eq=False)
class SlotOpened(Draft):
    """A firing became due. `slot` is `TASK/KIND/DUE` with DUE in ISO 8601 UTC; `cause` names the escalation, action or
    person behind a slot that no schedule made."""

    type: ClassVar[str] = "slot.opened"
    slot: str
    task: str
    kind: SlotKind
    due: int
    cause: str | None = None
    resumes: str | None = None  # the parked or interrupted session that a resume slot goes on from
    dry_run: bool | None = None


@dataclass(slots=True, kw_only=True, eq=False)
class SlotClosed(Draft):
    """How a slot ended. Where one event covers a range of `count` firings, `due` is the first and `last_due` the last."""

    type: ClassVar[str] = "slot.closed"
    slot: str
    task: str
    kind: SlotKind
    due: int
    outcome: SlotOutcome
    session: str | None = None
    rule: str | None = None
    last_due: int | None = None
    count: int = 1


@dataclass(slots=True, kw_only=True, eq=False)
class SessionOpened(Draft):
    """A bounded run begins. `bounds` are what this session may still use; `resumes` is the parked session it goes on from
    and `escalation` the answered question. The payload is the instruction's text."""

    type: ClassVar[str] = "session.opened"
    session: str
    task: str
    slot: str
    planner: str
    model: str | None = None
    bounds: Mapping[str, JSON]
    task_digest: str
    policies: str
    fence: int
    resumes: str | None = None
    escalation: str | None = None
    dry_run: bool | None = None


@dataclass(slots=True, kw_only=True, eq=False)
class SessionClosed(Draft):
    """How a session ended and what it used. The payload is `{"saved": …, "says": …}`: what `last.*` will show, and the
    planner's closing words. `saved`: it finished, and what it saved is what the next one sees."""

    type: ClassVar[str] = "session.closed"
    session: str
    task: str
    slot: str
    status: SessionStatus
    reason: str
    steps: int
    tokens: int
    cost_usd: float
    duration_us: int
    saved: bool | None = None


@dataclass(slots=True, kw_only=True, eq=False)
class CompactionFinished(Draft):
    """Memory's receipt: ledger events `after`..`until` became so many records, facts and summaries. `tokens_before` is what
    the summaries were made from and `tokens_after` what they have; `left_out` records are in no line of theirs. The payload
    is `{"summaries": [{"summary", "records", "left_out", "tokens_before", "tokens_after", "made_by"}]}`. An `ineffective`
    pass made nothing smaller; `model_stopped` says that no model is asked for summaries until a person lets it go on."""

    type: ClassVar[str] = "compaction.finished"
    session: str | None = None
    task: str
    after: int
    until: int
    events: int
    records: int
    facts: int
    summaries: int
    tokens_before: int
    tokens_after: int
    duration_us: int
    left_out: int | None = None
    ineffective: bool | None = None
    model_stopped: bool | None = None


@dataclass(slots=True, kw_only=True, eq=False)
class CompactionFailed(Draft):
    type: ClassVar[str] = "compaction.failed"
    session: str | None = None
    task: str
    reason: str


@dataclass(slots=True, kw_only=True, eq=False)
class CompactionStopped(Draft):
    """So many passes in a row were ineffective: no more of them until a person lets it go on. `what` is `compaction`, or
    `model-summaries` where only the model's answers were of no use."""

    type: ClassVar[str] = "compaction.stopped"
    what: Literal["compaction", "model-summaries"]
    passes: int
    reason: str


@dataclass(slots=True, kw_only=True, eq=False)
class CompactionResumed(Draft):
    type: ClassVar[str] = "compaction.resumed"
    uid: int


@dataclass(slots=True, kw_only=True, eq=False)
class SummaryMade(Draft):
    """A model's summary of a closed period (`start` to `end`, microseconds UTC) that passed every check; it takes the place of
    the extractive one. The payload is `{"text": …, "covers": [record…]}`: what it was made from, all of it."""

    type: ClassVar[str] = "summary.made"
    session: str
    task: str
    summary: str
    call: str
    model: str
    tokens_before: int
    tokens_after: int
    untrusted: bool


@dataclass(slots=True, kw_only=True, eq=False)
class SummaryRefused(Draft):
    """The extractive summary of this period stays: `reason` is budget (no call was made), too-much (what must stay does not fit;
    no call), provider, unusable (no text), or checks. The payload is `{"why": […]}`, in words."""

    type: ClassVar[str] = "summary.refused"
    session: str
    task: str
    summary: str
    reason: Literal["budget", "too-much", "provider", "unusable", "checks"]
    call: str | None = None


@dataclass(slots=True, kw_only=True, eq=False)
class ContextAssembled(Draft):
    """What the planner saw: `tokens` of at most `budget`. The payload is
    `{"text": …, "manifest": [item…], "left_out": [item…], "candidates": [record…],
    "candidates_by"}`: given the candidates of the vector search (`index`, `exact` or `nobody`), the assembly can be repeated."""

    type: ClassVar[str] = "context.assembled"
    session: str
    task: str
    tokens: int
    budget: int
    factor: float
    digest: str


@dataclass(slots=True, kw_only=True, eq=False)
class ModelRequested(Draft):
    """A model call's reservation, which is its intent. `purpose` is propose, vote or summarise; the payload is the request."""

    type: ClassVar[str] = "model.requested"
    session: str
    task: str
    call: str
    model: str
    purpose: str
    prompt_tokens: int
    completion_cap: int
    reserved_tokens: int
    reserved_usd: float


@dataclass(slots=True, kw_only=True, eq=False)
class ModelReplied(Draft):
    """What a model call really cost; `status` failed, timeout and crashed charge the reservation in full. The payload is
    the reply."""

    type: ClassVar[str] = "model.replied"
    session: str
    task: str
    call: str
    status: Literal["replied", "failed", "timeout", "crashed"]
    input_tokens: int | None = None
    output_tokens: int | None = None
    charged_tokens: int
    charged_usd: float
    error: str | None = None


@dataclass(slots=True, kw_only=True, eq=False)
class ContextShortened(Draft):
    """Receipt of compaction within a session: for this model call the results of `shortened` earlier actions were cut to
    references, and the `dropped` oldest steps only counted. Nothing pinned is ever cut. The payload is `{"actions": […]}`."""

    type: ClassVar[str] = "context.shortened"
    session: str
    task: str
    call: str
    shortened: int
    dropped: int
    prompt_tokens: int


@dataclass(slots=True, kw_only=True, eq=False)
class TokensDrifted(Draft):
    """A provider's count of a prompt differs from ours by more than 2 %, and by more than it did before. `factor` is what our
    counts of this model are multiplied with from now on."""

    type: ClassVar[str] = "tokens.drifted"
    session: str
    task: str
    call: str
    model: str
    counted: int
    reported: int
    factor: float


@dataclass(slots=True, kw_only=True, eq=False)
class ProviderCircuit(Draft):
    """A model's provider has failed `failures` times in a row: it is `open`, left alone until `until` (microseconds UTC), or
    `closed`, asked as always."""

    type: ClassVar[str] = "provider.circuit"
    model: str
    state: Literal["open", "closed"]
    failures: int
    until: int | None = None


# -- steps and actions ----------------------------------------------------------------------------------------------


@dataclass(slots=True, kw_only=True, eq=False)
class StepRejected(Draft):
    """A proposal that never became an action: malformed, unknown tool, arguments outside the schema, secret, over-long."""

    type: ClassVar[str] = "step.rejected"
    session: str
    task: str
    step: int
    reason: str


@dataclass(slots=True, kw_only=True, eq=False)
class ActionProposed(Draft):
    """One step. `key` is the planner's name for it (the playbook's step path), by which a resumed session finds it again.
    The payload is `{"args", "provenance", "paths", "cwd", "says"}`."""

    type: ClassVar[str] = "action.proposed"
    action: str
    session: str
    task: str
    step: int
    tool: str
    effect: EffectClass
    digest: str
    confidence: float
    key: str | None = None
    stated: float | None = None  # what the planner said of itself, where `confidence` is the calibrated number
    score: float | None = None  # what the calibration made `confidence` of
    voted: bool | None = None  # whether a vote was held


@dataclass(slots=True, kw_only=True, eq=False)
class VoteHeld(Draft):
    """Independent draws for one step, until one canonical action led by `ahead_by`, or could not within `draws_max`. `margin`
    is the leader's lead over the next; `flagged` draws were no valid proposal and counted for nothing. `action` is the one
    that was taken or asked about; it is absent where the vote was about ending the session. The payload is
    `{"candidates": [{"tool", "args", "votes"}]}`, most votes first."""

    type: ClassVar[str] = "vote.held"
    session: str
    task: str
    step: int
    ahead_by: int
    draws_max: int
    draws: int
    flagged: int
    margin: int
    won: bool
    action: str | None = None


@dataclass(slots=True, kw_only=True, eq=False)
class ActionDecided(Draft):
    """What the policies said: `rules` lists every rule that counted as `{"name", "file", "line", "decide"}`."""

    type: ClassVar[str] = "action.decided"
    action: str
    session: str
    task: str
    decision: Decided
    rules: Sequence[Mapping[str, JSON]]
    reason: str
    policies: str
    grant: str | None = None
    shadow: Decided | None = None  # what it would be with the shadow rules in force, where that differs
    facts: Mapping[str, JSON] | None = None  # those that conditions could see and that are not at their defaults


@dataclass(slots=True, kw_only=True, eq=False)
class ActionIntended(Draft):
    """Written before the effect. `approval` names the escalation that authorises this one attempt."""

    type: ClassVar[str] = "action.intended"
    action: str
    session: str
    task: str
    tool: str
    effect: EffectClass
    digest: str
    attempt: int
    approval: str | None = None


@dataclass(slots=True, kw_only=True, eq=False)
class ActionEnded(Draft):
    """How an intent ended. `unknown` may be settled later by another ActionEnded with `settles=True` (probe, person).
    The payload is `{"result": …, "error": …}`."""

    type: ClassVar[str] = "action.ended"
    action: str
    session: str
    task: str
    tool: str
    attempt: int
    status: ActionStatus
    duration_us: int
    error: str | None = None
    settles: bool | None = None
    undo: bool | None = None


@dataclass(slots=True, kw_only=True, eq=False)
class ActionVerified(Draft):
    """Something other than the planner looked at what an action did. `reliability` is how often this verifier is right, as
    declared."""

    type: ClassVar[str] = "action.verified"
    action: str
    session: str
    task: str
    verifier: str
    passed: bool
    reliability: float | None = None


@dataclass(slots=True, kw_only=True, eq=False)
class PostconditionChecked(Draft):
    """The payload is `{"condition": …, "detail": …}`. One with `keep_until` (microseconds UTC) stands: later sessions of the
    task check it again until then, and `standing` is the number of the event that proved it first. `digest` is that of the
    file at `path` when it was proven."""

    type: ClassVar[str] = "postcondition.checked"
    session: str
    task: str
    index: int
    kind: str
    passed: bool
    keep_until: int | None = None
    path: str | None = None
    digest: str | None = None
    standing: int | None = None
    condition: str | None = None


# -- people -----------------------------------------------------------------------------------------------------------


@dataclass(slots=True, kw_only=True, eq=False)
class EscalationOpened(Draft):
    """A question to a person about one action digest. The payload is `{"question": …}`: exactly what will run, where each
    argument came from and which rules counted. `action` is empty where the question is whether a task goes on that the circuit
    breaker has stopped (tool `resume_task`): then the payload says what was tried."""

    type: ClassVar[str] = "escalation.opened"
    escalation: str
    action: str
    digest: str
    session: str
    task: str
    tool: str
    expires: int
    on_expiry: Literal["deny", "approve"]
    parks: bool


@dataclass(slots=True, kw_only=True, eq=False)
class EscalationJoined(Draft):
    """A later proposal with the same open digest: no second question."""

    type: ClassVar[str] = "escalation.joined"
    escalation: str
    action: str
    session: str
    task: str


@dataclass(slots=True, kw_only=True, eq=False)
class EscalationAnswered(Draft):
    """The payload is `{"note": …}`. `uid` is the peer's, as the kernel says it."""

    type: ClassVar[str] = "escalation.answered"
    escalation: str
    task: str
    answer: Literal["approve", "deny"]
    uid: int
    via: str


@dataclass(slots=True, kw_only=True, eq=False)
class EscalationExpired(Draft):
    type: ClassVar[str] = "escalation.expired"
    escalation: str
    task: str
    default: Literal["deny", "approve"]


@dataclass(slots=True, kw_only=True, eq=False)
class GrantGiven(Draft):
    """A standing answer. The payload is `{"pattern": {argument: pattern}, "note": …}`."""

    type: ClassVar[str] = "grant.given"
    grant: str
    task: str
    tool: str
    rule: str
    uid: int


@dataclass(slots=True, kw_only=True, eq=False)
class GrantRevoked(Draft):
    type: ClassVar[str] = "grant.revoked"
    grant: str
    uid: int


# -- memory: what people ask of it ------------------------------------------------------------------------------------


@dataclass(slots=True, kw_only=True, eq=False)
class MemoryPinned(Draft):
    """A person's standing instruction; the payload is `{"text": …}`. `task` None: for every task."""

    type: ClassVar[str] = "memory.pinned"
    pin: str
    task: str | None = None
    uid: int


@dataclass(slots=True, kw_only=True, eq=False)
class MemoryUnpinned(Draft):
    type: ClassVar[str] = "memory.unpinned"
    pin: str
    uid: int


@dataclass(slots=True, kw_only=True, eq=False)
class MemoryCorrected(Draft):
    """A person corrects a fact; the payload is `{"subject", "attribute", "value"}`."""

    type: ClassVar[str] = "memory.corrected"
    task: str | None = None
    uid: int


@dataclass(slots=True, kw_only=True, eq=False)
class MemoryForgotten(Draft):
    """A tombstone: the record is never shown or rebuilt again. `record` is its id."""

    type: ClassVar[str] = "memory.forgotten"
    record: str
    uid: int


@dataclass(slots=True, kw_only=True, eq=False)
class PayloadErased(Draft):
    """A tombstone for the payload (and salt) of event `erased`; `reason` is a person's or `payloads.keep`."""

    type: ClassVar[str] = "payload.erased"
    erased: int
    reason: str
    uid: int | None = None


# -- tools from outside: MCP servers ------------------------------------------------------------------------------------


@dataclass(slots=True, kw_only=True, eq=False)
class McpServerStarted(Draft):
    """A connection to a server stands. `identity` is the digest of how perdure.toml says to reach it; `says` is the name and
    version that the server claims."""

    type: ClassVar[str] = "mcp.server-started"
    server: str
    identity: str
    protocol: str
    tools: int
    says: str | None = None


@dataclass(slots=True, kw_only=True, eq=False)
class McpServerEnded(Draft):
    """A connection ended without being asked to, or never came to stand; `failures` in a row decide how long we wait."""

    type: ClassVar[str] = "mcp.server-ended"
    server: str
    reason: str
    failures: int


@dataclass(slots=True, kw_only=True, eq=False)
class McpToolListed(Draft):
    """A server says what a tool is, for the first time or differently from before. The payload is `{"definition": …}`,
    verbatim."""

    type: ClassVar[str] = "mcp.tool-listed"
    server: str
    tool: str
    name: str
    hash: str


@dataclass(slots=True, kw_only=True, eq=False)
class McpToolGone(Draft):
    type: ClassVar[str] = "mcp.tool-gone"
    server: str
    tool: str


@dataclass(slots=True, kw_only=True, eq=False)
class McpToolAccepted(Draft):
    """A person accepts a tool as it was last listed: from now on policies decide about this schema. The payload is
    `{"definition": …}`."""

    type: ClassVar[str] = "mcp.tool-accepted"
    server: str
    tool: str
    hash: str
    uid: int


@dataclass(slots=True, kw_only=True, eq=False)
class McpRefused(Draft):
    """What a server asked of us or offered, and did not get: sampling, elicitation, roots, or a tool that cannot be one. The
    payload is `{"request": …}`, shortened."""

    type: ClassVar[str] = "mcp.refused"
    server: str
    what: str
    reason: str
    count: int = 1
