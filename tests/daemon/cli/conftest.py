"""Workspaces with real ledgers, and a runner for the command line."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import CliRunner, Result

from perdure.daemon.cli.app import perdure
from perdure.daemon.cli.invocation import Invocation
from perdure.state.events import Draft
from perdure.state.ledger import Ledger
from perdure.state.ownership import Owner


def _load_stories() -> ModuleType:
    """The module beside this file, under a name of its own: the suite imports by path."""
    name = "perdure_cli_ledgers"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name("ledgers.py"))
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


stories = _load_stories()


class Place:
    """A workspace under test: its directory, its ledger, and how to call Perdure there."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.at = stories.START - 60_000_000
        self.called_at = stories.START + 9 * stories.MINUTE
        root.mkdir(parents=True, exist_ok=True)
        (root / "perdure.toml").write_text('timezone = "Europe/Berlin"\n')

    @property
    def state(self) -> Path:
        return self.root / "state"

    def _now(self) -> int:
        self.at += 100_000
        return self.at

    def write(self, commits: Iterable[tuple[Draft, ...]]) -> None:
        """Write these commits through the one real way."""
        self.state.mkdir(exist_ok=True)
        path = self.state / "ledger.db"
        with Owner.acquire(self.state) as owner:
            if not path.exists():
                Ledger.create(path, now=self._now, workspace="test").close()
            ledger = Ledger.open(path, now=self._now, fence=owner.fence)
            for drafts in commits:
                if any(draft.type == "slot.opened" for draft in drafts):
                    self.at = max(self.at, stories.START)
                ledger.commit(
                    *(replace(draft, fence=owner.fence) if hasattr(draft, "fence") else draft for draft in drafts)
                )
            ledger.close()

    def call(self, *args: str, now: int | None = None, **more: Any) -> Result:
        """Run the command line on this workspace at `called_at`, or at another time."""
        moment = self.called_at if now is None else now
        invocation = Invocation(given=self.root, now=lambda: moment)
        return CliRunner(env={"COLUMNS": "140", "NO_COLOR": "1"}).invoke(perdure, list(args), obj=invocation, **more)

    def text(self, *args: str, code: int = 0) -> str:
        """What it prints for people."""
        result = self.call(*args)
        assert result.exit_code == code, result.output
        return result.stdout

    def json(self, *args: str, code: int = 0) -> Any:
        """What it prints for programs."""
        result = self.call(*args, "--json")
        assert result.exit_code == code, result.output
        return json.loads(result.stdout)


@pytest.fixture
def story() -> ModuleType:
    return stories


@pytest.fixture
def empty(tmp_path: Path) -> Place:
    """A workspace in which nothing has run."""
    return Place(tmp_path / "workspace")


@pytest.fixture
def parked(empty: Place) -> Place:
    """A session has parked on a question."""
    empty.write(stories.until_the_question())
    return empty


@pytest.fixture
def answered(parked: Place) -> Place:
    """A person has said yes, and another session has done it."""
    parked.write(stories.the_answer_and_after())
    return parked


@pytest.fixture
def place_at() -> Callable[[Path], Place]:
    return Place
