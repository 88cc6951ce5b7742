"""What passes between the session loop and a planner: the view it gets, and the move it makes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

from perdure.daemon.tools.model import ToolSpec
from perdure.state.events import JSON, ActionStatus, Decided, EffectClass

if TYPE_CHECKING:
    from perdure.daemon.provenance import Said
    from perdure.memory.context import Context


def _nothing(_: int) -> Sequence[Said]:
    return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """The next action a planner wants. `provenance` maps each argument to where its value came from (`instruction`,
    `person`, `config`, `memory`, `tool:NAME`, `model`), least trusted included. `key` names the step in the plan, stable
    across sessions; a resumed session finds recorded results by it."""

    tool: str
    args: Mapping[str, JSON]
    provenance: Mapping[str, Sequence[str]]
    confidence: float
    key: str | None = None
    says: str = ""
    on_escalate: Literal["park", "continue"] = "park"
    on_error: Literal["stop", "continue"] = "stop"
    stated: float | None = None  # what the planner said, once `confidence` is the calibrated number


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """The planner is done. `saved` is what `last.*` shows to the next session. `provenance` is where telling parts of both came
    from, by source; None: nobody looked."""

    says: str = ""
    saved: Mapping[str, JSON] = field(default_factory=dict)
    provenance: Mapping[str, Sequence[str]] | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Malformed:
    """What the planner said cannot be a proposal. `reason` is a code: empty, garbage, unknown-tool, bad-arguments,
    too-long, plan-error, provider-timeout, provider-failed; `detail` is told to the planner once, and `provenance` is where
    telling parts of it came from, by source."""

    reason: str
    detail: str
    provenance: Mapping[str, Sequence[str]] = field(default_factory=dict, compare=False)


Move: TypeAlias = Proposal | Finish | Malformed


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """A step already taken (in this session or recorded by the one it resumes). `result` is what the tool returned;
    for a refused or escalated step, `status` is None and `decision` and `reason` tell why. `digest` is the action's; it is
    empty where the step became none."""

    step: int
    proposal: Proposal
    action: str
    decision: Decided
    reason: str
    status: ActionStatus | None
    result: JSON = None
    error: str | None = None
    digest: str = ""
    effect: EffectClass | None = None  # None: it became no action
    files: Mapping[str, str] = field(default_factory=dict)  # file -> digest of what it then held, of those it named

    @property
    def changed(self) -> bool:
        """Whether it did something other than look."""
        return self.status == "succeeded" and self.effect != "read"

    @classmethod
    def refused(cls, step: int, proposal: Proposal, why: str) -> Taken:
        """A step that never became an action, for a plan that goes on without it."""
        return cls(step=step, proposal=proposal, action="", decision="deny", reason=why, status="failed", error=why)


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """All that a planner may know. `taken` is in order; `rejected` is the last malformed move's detail, if the planner's
    last move was one. `draw` is 0 for the ordinary proposal and n for the n-th independent draw of a vote: then the planner
    samples instead of giving its one likeliest answer. `last` is what the previous session saved. `slot` is `{"date",
    "time", "due", "kind", "id"}` in the task's zone. `recorded` maps step keys to what the parked session had done. `draws`
    is how many independent answers to this one view are wanted; a planner may give fewer. `behind` is what stood in a ledger
    event that memory tells of, with its sources."""

    session: str
    task: str
    step: int
    context: Context
    tools: Sequence[ToolSpec]
    taken: Sequence[Taken]
    recorded: Mapping[str, Taken]
    slot: Mapping[str, str]
    last: Mapping[str, JSON]
    rejected: str | None
    steps_left: int
    tokens_left: int
    behind: Callable[[int], Sequence[Said]] = _nothing
    draw: int = 0
    draws: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A model call before it is made: what the reservation is computed from. `prompt_tokens` counts everything that goes
    over the wire, tool schemas included, times the model's factor, rounded up. `completion_cap` is for all of its `draws`
    answers together. `body` goes into the ledger (no key)."""

    model: str
    prompt_tokens: int
    completion_cap: int
    usd_max: float
    body: JSON
    draws: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What the provider says it counted (None: it did not say)."""

    input_tokens: int | None
    output_tokens: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A planner's answer. `usage`, `usd` and `raw` are None for planners that call no model. `failed` is None, or how the
    call itself failed (`timeout`, `failed`), in which case `move` is Malformed; it is charged in full unless `usage` says
    that the provider did nothing (a refused connection, a rate limit). `others` are the further answers of a call that asked
    for several."""

    move: Move
    others: Sequence[Move] = ()
    usage: Usage | None = None
    usd: float = 0.0
    raw: JSON = None
    failed: Literal["timeout", "failed"] | None = None


class Planner(Protocol):
    """Proposes the next action. It has no effects of its own beyond the model call it reserved."""

    name: str  # "playbook" or "model"
    model: str | None
    factor: float  # how much more the model may count than we do

    def overhead(self, tools: Sequence[ToolSpec]) -> int:
        """Tokens of every call besides the context's sections and the session's steps (tool schemas, framing), times
        the factor, rounded up. 0 where no model is called."""
        ...

    def request(self, view: View) -> Request | None:
        """The model call that `propose` would make for this view; None where none is needed. Deterministic."""
        ...

    async def propose(self, view: View, request: Request | None, seconds_max: float) -> Reply:
        """The next move. Never raises for what a model said; only for mistakes of the workspace (PerdureError)."""
        ...
