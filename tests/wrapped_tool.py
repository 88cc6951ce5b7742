"""A real tool for tests that change one thing about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from perdure.daemon.tools.model import Call, Prepared, Result, Tool, ToolSpec
from perdure.state.events import JSON


@dataclass(frozen=True)
class WrappedTool:
    """Specification, checks and digests are those of `real`, and so is whatever a test does not put in their place."""

    real: Tool

    @property
    def spec(self) -> ToolSpec:
        return self.real.spec

    def prepare(self, args: Mapping[str, JSON]) -> Prepared:
        return self.real.prepare(args)

    async def run(self, prepared: Prepared, call: Call) -> Result:
        return await self.real.run(prepared, call)

    async def probe(self, prepared: Prepared, call: Call) -> bool | None:
        return await self.real.probe(prepared, call)
