"""What every part of the running daemon shares: the workspace as it is in force now, and the rooms below."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from perdure.state.events import JSON, AlarmRaised, Draft

if TYPE_CHECKING:
    from perdure.daemon.budget import Caps
    from perdure.daemon.clock import Clock, Identifiers
    from perdure.daemon.confidence import Calibration
    from perdure.daemon.config import Config
    from perdure.daemon.mcp.servers import Servers
    from perdure.daemon.notifications import Notifier
    from perdure.daemon.planners.circuits import Circuits
    from perdure.daemon.planners.moves import Planner
    from perdure.daemon.recent import Recent
    from perdure.daemon.standing import Standing
    from perdure.daemon.tasks import Task
    from perdure.daemon.tools.model import Tool
    from perdure.memory import Memory
    from perdure.policies.decisions import PolicySet
    from perdure.state.ledger import Ledger


@dataclass(slots=True, kw_only=True)
class Runtime:
    """`policies` and `tasks` are replaced as a whole when an edit is good; everything else stays for the process's life.
    `found` is the last event that there was when it was opened. `stopping` is set once: no new session starts, and running
    ones end after the step they are in."""

    config: Config
    clock: Clock
    identifiers: Identifiers
    ledger: Ledger
    memory: Memory
    tools: Mapping[str, Tool]
    notifier: Notifier
    plan: Callable[[Task], Planner]
    redact: Callable[[JSON], JSON]
    caps: Caps
    calibration: Calibration
    circuits: Circuits
    standing: Standing
    recent: Recent
    policies: PolicySet
    tasks: Mapping[str, Task]
    servers: Servers
    found: int
    stopping: bool = False
    warned: dict[str, int] = field(default_factory=dict)  # cap -> when its use was last warned about
    drifts: dict[str, float] = field(default_factory=dict)  # model -> how far its provider's count is from ours
    last_problems: dict[str, str] = field(default_factory=dict)

    def now(self) -> int:
        """Microseconds UTC."""
        return self.clock.now()

    async def alarm(self, code: str, text: str, *, about: str | None = None, drafts: tuple[Draft, ...] = ()) -> None:
        """Record what went wrong (with `drafts`, in one commit) and tell a person."""
        await self.ledger.write(*drafts, AlarmRaised(code=code, about=about, payload={"text": text}))
        await self.notifier.notify(about or code, code.replace("-", " "), text, kind="alarm")
