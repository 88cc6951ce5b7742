"""Tasks read by the real loader, and views as the session loop hands them to planners."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from perdure.daemon.planners.moves import Finish, Malformed, Move, Proposal, Taken, View
from perdure.daemon.planners.playbook import PlaybookPlanner
from perdure.daemon.tasks import Task, read_task
from perdure.daemon.tools.model import ToolSpec
from perdure.memory.context import Context, Section

KNOWN = ("offenders", "block_ip", "write_file", "read_file", "list_files", "notify", "recall", "count", "http_request")


@pytest.fixture
def task_from(tmp_path: Path) -> Callable[..., Task]:
    """A task from its file's text; the text of a playbook may be its steps alone."""

    def make(text: str, name: str = "tasks/t.md") -> Task:
        if not text.startswith("---"):
            text = f"---\nname: t\nplanner: playbook\n---\n{text}"
        task, problems = read_task(name, text.encode(), known_tools=KNOWN, timezone="UTC", workspace=tmp_path)
        assert not problems, problems
        assert task is not None
        return task

    return make


@pytest.fixture
def view_of() -> Callable[..., View]:
    """A view with the given parts."""

    def make(**parts: Any) -> View:
        sections = parts.pop("sections", ())
        context = Context(
            sections=tuple(sections),
            text="\n\n".join(section.text for section in sections),
            tokens=0,
            budget=8000,
            factor=1.0,
            digest="",
            manifest=(),
            left_out=(),
        )
        whole: dict[str, Any] = {
            "session": "S",
            "task": "t",
            "step": 1,
            "context": context,
            "tools": (),
            "taken": (),
            "recorded": {},
            "slot": {
                "date": "2026-11-22",
                "time": "10:15",
                "due": "2026-11-22T10:15:00+00:00",
                "kind": "scheduled",
                "id": "t/x",
            },
            "last": {},
            "rejected": None,
            "steps_left": 20,
            "tokens_left": 100_000,
        } | parts
        return View(**whole)

    return make


@pytest.fixture
def section() -> Callable[..., Section]:
    """A section of a context."""
    return lambda name, text, stable=False: Section(name=name, text=text, tokens=0, stable=stable)


@pytest.fixture
def spec() -> Callable[..., ToolSpec]:
    """A tool's specification with string arguments unless a schema says otherwise."""

    def make(name: str, required: tuple[str, ...] = (), **parts: Any) -> ToolSpec:
        properties = parts.pop("properties", {argument: {"type": "string"} for argument in required})
        schema = {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}
        return ToolSpec(name=name, description=f"The tool {name}.", args_schema=schema, effect="read", **parts)

    return make


@pytest.fixture
def taken() -> Callable[..., Taken]:
    """A step as it was taken."""

    def make(
        proposal: Proposal, result: Any = None, *, status: Any = "succeeded", decision: Any = "auto", **parts: Any
    ) -> Taken:
        action = parts.pop("action", f"A{proposal.key}")
        return Taken(
            step=1,
            proposal=proposal,
            action=action,
            decision=decision,
            reason=parts.pop("reason", ""),
            status=status,
            result=result,
            **parts,
        )

    return make


@pytest.fixture
def play(view_of: Callable[..., View], taken: Callable[..., Taken]) -> Callable[..., tuple[list[Proposal], Move]]:
    """Run a playbook to its end against answers by tool: a result, or a callable that gets the proposal and returns
    (decision, status, result)."""

    def run(task: Task, answers: Mapping[str, Any], **parts: Any) -> tuple[list[Proposal], Move]:
        planner = PlaybookPlanner(task)
        done: list[Taken] = list(parts.pop("before", ()))
        proposals: list[Proposal] = []
        for _ in range(200):
            move = asyncio.run(planner.propose(view_of(taken=tuple(done), **parts), None, 1.0)).move
            if isinstance(move, Finish | Malformed):
                return proposals, move
            proposals.append(move)
            answer = answers.get(move.tool)
            decision, status, result = answer(move) if callable(answer) else ("auto", "succeeded", answer)
            done.append(
                taken(move, result, status=status, decision=decision, error="boom" if status == "failed" else None)
            )
        raise AssertionError("the playbook does not end")

    return run
