"""A seeded part of the soak: a simulated week with every kind of fault, twice, and the same ledger both times.

`make soak` runs the whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from .firings import expected
from .outside import BrokenPromise
from .promises import Promises

pytestmark = pytest.mark.timeout(600)  # of wall time on a machine that does other things as well
REPOSITORY = Path(__file__).resolve().parents[2]
HOUR = 3_600_000_000


def simulate(directory: Path, hash_seed: str, days: int) -> dict:
    """A process of its own, so that neither the order of a set nor anything left from before can be the same by chance."""
    command = [sys.executable, "-m", "tests.simulation", "--json", "--days", str(days), "--directory", str(directory)]
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=290, check=False
    )
    assert done.returncode == 0, done.stderr[-6_000:]
    return json.loads(done.stdout)


def test_every_invariant_holds_through_a_week_of_faults_and_the_same_seed_makes_the_same_ledger(tmp_path: Path) -> None:
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="perdure-", dir=memory if memory.is_dir() else tmp_path) as directory:
        report = simulate(Path(directory) / "workspace", "1", 8)
        again = simulate(Path(directory) / "workspace", "2", 8)
    assert report["lives"] > 4, "nothing crashed"
    assert report["sessions"] > 60
    assert report["effects"] > 60
    assert again["hash"] == report["hash"]


@pytest.mark.parametrize(
    ("kind", "body", "invariant"),
    [
        ("daemon.started", {"fence": 0}, "5"),
        ("action.intended", {"action": "a", "digest": "d", "tool": "pay", "attempt": 2, "session": "s"}, "2"),
        ("action.ended", {"action": "a", "attempt": 1, "status": "succeeded"}, "2"),
        ("escalation.answered", {"escalation": "q", "answer": "approve"}, "3"),
        ("escalation.opened", {"escalation": "b", "action": "", "task": "guard"}, "3"),
        ("escalation.opened", {"escalation": "b", "action": "never proposed", "task": "guard"}, "this model"),
        ("session.opened", {"session": "t", "task": "guard", "slot": "none", "fence": 1, "bounds": {}}, "5"),
        ("slot.closed", {"slot": "x", "task": "guard", "kind": "scheduled", "due": 1, "outcome": "skipped"}, "6"),
    ],
)
def test_the_model_of_the_promises_sees_a_broken_one(kind: str, body: dict, invariant: str) -> None:
    from perdure.state.events import Event

    from .promises import Action, Question, Session

    promises = Promises({}, payload=lambda seq: {}, happened=lambda action: False)
    promises.fence = 1
    promises.sessions["s"] = Session("guard", "slot", {"steps": 3}, None)
    promises.open_sessions["guard"] = "s"
    promises.actions["a"] = Action("guard", "s", "pay", "once", "d", 1.0, {}, decision="auto")
    promises.questions["q"] = Question("a", "guard", "d", expires=5, opened=1, on_expiry="deny", parks=True)
    with pytest.raises(BrokenPromise) as broken:
        promises.saw((Event(1, 10, kind, body, None, "h"),))
    assert broken.value.promise.startswith(f"{invariant}:")


def test_firings_are_reckoned_through_the_change_to_summer_time() -> None:
    schedule = '{"cron":"15 2 * * *","timezone":"Europe/Berlin"}'
    march_27 = 1_806_105_600_000_000  # midnight UTC, 2027-03-27
    found = list(expected(schedule, 0, march_27, march_27 + 72 * HOUR))
    hours = [(due - march_27) / HOUR for due in found]
    assert hours == [1.25, 25.0, 48.25]  # 02:15 CET, 03:00 CEST in the place of 02:15, 02:15 CEST
