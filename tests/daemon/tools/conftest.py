"""A real workspace with real tools on a real ledger."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from perdure.daemon.clock import SystemClock
from perdure.daemon.config import Config, load_config
from perdure.daemon.notifications import Notifier
from perdure.daemon.tools.model import Call, Prepared, Result, Tool
from perdure.daemon.tools.registry import build_tools
from perdure.state.ledger import Ledger


class NoMemory:
    """Memory is its own room's to test: here it knows nothing."""

    async def recall(self, scope, query, limit):
        return []

    async def facts(self, scope, **_):
        return []


@dataclass
class Workspace:
    """`do` prepares and runs one action; `path` is the directory."""

    path: Path
    config: Config
    ledger: Ledger
    tools: dict[str, Tool]
    counter: itertools.count = field(default_factory=lambda: itertools.count(1))
    last: str = ""

    def call(self, action=None, *, attempt=1, seconds=30.0) -> Call:
        self.last = action or f"ACTION{next(self.counter):04}"
        return Call(action=self.last, session="SESSION", attempt=attempt, seconds_max=seconds)

    def prepare(self, tool, /, **args) -> Prepared:
        return self.tools[tool].prepare(args)

    async def do(self, tool, /, *, action=None, attempt=1, **args) -> Result:
        return await self.tools[tool].run(self.prepare(tool, **args), self.call(action, attempt=attempt))

    async def happened(self, tool, /, *, action=None, **args) -> bool | None:
        return await self.tools[tool].probe(self.prepare(tool, **args), self.call(action or self.last))


@pytest.fixture
def make_workspace(tmp_path):
    """Makes a workspace with the given `perdure.toml`; its state has a control token, as a running daemon's has."""
    ledgers = []

    def make(toml: str = "", memory=None) -> Workspace:
        path = tmp_path / "workspace"
        for name in ("state", "policies", "tasks", "inbox", "reports"):
            (path / name).mkdir(parents=True, exist_ok=True)
        (path / "perdure.toml").write_text(toml)
        (path / "state" / "control.token").write_text("the-token-that-answers-questions")
        config = load_config(path)
        ledger_path = config.state_dir / "ledger.db"
        clock = SystemClock()
        if not ledgers:
            Ledger.create(ledger_path, now=clock.now, workspace="test").close()
            ledgers.append(Ledger.open(ledger_path, now=clock.now, fence=1))
        (ledger,) = ledgers
        notifier = Notifier(config, ledger, clock=clock)
        tools = build_tools(config, memory=memory or NoMemory(), notifier=notifier)
        return Workspace(path=path, config=config, ledger=ledger, tools=tools)

    yield make
    for ledger in ledgers:
        ledger.close()


@pytest.fixture
def workspace(make_workspace) -> Workspace:
    return make_workspace()
