"""A workspace whose task a model plans, and a server that such a model can be."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.daemon.drawing import CONFIG, TASK
from tests.daemon.planners import scripted_server
from tests.daemon.stage import Stage

from perdure.daemon.planners import providers


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    """One task, `report`, that a model plans; tests of other things make their own."""
    stage = Stage(tmp_path / "workspace")
    stage.write("perdure.toml", CONFIG)
    stage.write("tasks/report.md", TASK)
    return stage


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[scripted_server.ScriptedServer]:
    """A model's server that answers as its script says; what it refuses is tried again at once."""
    monkeypatch.setattr(providers, "PAUSES_SECONDS", (0.01, 0.01))
    with scripted_server.serving() as running:
        yield running
