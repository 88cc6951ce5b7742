"""What a planner was shown, and what asking its model cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from perdure.state.events.drafts import Draft


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
