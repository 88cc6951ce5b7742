"""A read whose outcome nobody saw, twice: nothing happened that a person could be asked about, and it has an end all the same."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.daemon.stage import Stage, events
from tests.wrapped_tool import WrappedTool

from perdure.daemon.tools.model import Call, Prepared, Result, ToolInterrupted
from perdure.state import projections


@dataclass(frozen=True)
class CutOff(WrappedTool):
    """A real tool whose answer never arrives."""

    async def run(self, prepared: Prepared, call: Call) -> Result:
        raise ToolInterrupted("finish", self.spec.name, "the line went dead", "It will be settled")


async def test_a_read_that_is_cut_off_twice_ends_as_failed(tmp_path: Path) -> None:
    stage = Stage(tmp_path / "workspace")
    stage.write("inbox/one.log", "a line\n")
    stage.playbook("look", "\n  - {do: list_files, args: {path: inbox}}\n", tools="list_files")
    async with stage.runtime() as runtime:
        runtime.tools = {**runtime.tools, "list_files": CutOff(runtime.tools["list_files"])}
        ending = await stage.run(runtime, "look")
        assert "is not the last one" not in ending.reason
        assert [event.body["status"] for event in events(runtime, "action.ended")] == ["unknown", "unknown", "failed"]
        assert not projections.unknown_actions(runtime.ledger.reader)
