"""Sessions that run at once on one real ledger, with votes, retries, time-outs, failures and refunds in any order: what is
reserved and charged passes no bound and no cap at any moment, and a restart knows the same."""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from tests.daemon.drawing import CONFIG, TASK, VOTES, DrawingPlanner, write
from tests.daemon.stage import Stage

from perdure.daemon import operations, slot_runner
from perdure.daemon.budget import WINDOW_US
from perdure.daemon.planners.moves import Finish, Malformed, Move, Reply, Request, Usage, View
from perdure.daemon.runtime import Runtime
from perdure.daemon.slot_runner import SlotRunner
from perdure.state import projections

NAMES = ("one", "two", "three")
ENDS = (*["replied"] * 8, "timeout", "failed", "unprocessed", "nonsense")


@dataclass(frozen=True)
class Limits:
    session: int
    hour: int
    day: int
    month: int
    one_per_day: int


class HurriedPlanner(DrawingPlanner):
    """Each call takes its turns of the event loop and ends as drawn; its provider counts at most what was reserved. What one task
    draws does not depend on how the others are interleaved with it."""

    def __init__(self, random: Random) -> None:
        super().__init__(self._move, prompt_tokens=random.randint(1, 1_500), completion_cap=random.randint(1, 500))
        self.random = random

    def _move(self, view: View) -> Move:
        return write(f"{len(view.taken)}.md") if self.random.random() < 0.85 else Finish(says="")

    async def propose(self, view: View, request: Request | None, seconds_max: float) -> Reply:
        assert request is not None
        end = self.random.choice(ENDS)
        for _ in range(self.random.randint(0, 40)):
            await asyncio.sleep(0)
        failure = Malformed(reason="provider-timeout" if end == "timeout" else "provider-failed", detail=end)
        if end in ("timeout", "failed"):  # nobody knows what they cost
            return Reply(move=failure, failed="timeout" if end == "timeout" else "failed")
        if end == "unprocessed":
            return Reply(move=failure, usage=Usage(input_tokens=0, output_tokens=0), failed="failed")
        counted = Usage(
            input_tokens=self.random.randint(0, request.prompt_tokens),
            output_tokens=self.random.randint(0, request.completion_cap),
        )
        nonsense = Malformed(reason="garbage", detail="x")
        return Reply(move=nonsense if end == "nonsense" else self._move(view), usage=counted)


def furnish(directory: Path, limits: Limits) -> Stage:
    stage = Stage(directory)
    budgets = (
        f"[budgets]\ntokens_per_hour = {limits.hour}\ntokens_per_day = {limits.day}\ntokens_per_month = {limits.month}\n"
        f"[budgets.tasks.one]\ntokens_per_day = {limits.one_per_day}\n"
    )
    stage.write("perdure.toml", CONFIG.replace("[memory]", budgets + "[memory]"))
    stage.write("policies/policy.yaml", VOTES)
    for name in NAMES:
        task = TASK.replace("name: report", f"name: {name}\nretries: 1").replace("20000", str(limits.session))
        stage.write(f"tasks/{name}.md", task)
    return stage


async def run_at_once(runtime: Runtime, seed: str) -> None:
    """A session of each task, all at the same time."""
    planners = {name: HurriedPlanner(Random(f"{seed} {name}")) for name in NAMES}
    runtime.plan = lambda task: planners[task.name]
    runner = SlotRunner(runtime, stop=pytest.fail)
    names = [operations.ask_for_session(runtime.ledger, runtime.now(), 0, task=name) for name in NAMES]
    slots = [projections.slot(runtime.ledger.reader, name) for name in names]
    await asyncio.gather(*(runner.run_slot(slot) for slot in slots if slot is not None))


def check(runtime: Runtime, limits: Limits) -> Counter[str]:
    """From the events alone, at every request: what its session, and every window of every cap, had used and reserved."""
    calls: dict[str, tuple[int, str, str, int]] = {}  # moment, task, session, tokens
    caps = [("hour", None, limits.hour), ("day", None, limits.day), ("month", None, limits.month)]
    caps.append(("day", "one", limits.one_per_day))
    found: Counter[str] = Counter()
    open_calls: set[str] = set()
    for event in runtime.ledger.reader.events(types=("model.requested", "model.replied", "session.closed")):
        body = event.body
        if event.type == "model.replied":
            at, task, session, reserved = calls[body["call"]]
            assert body["charged_tokens"] <= reserved
            calls[body["call"]] = (at, task, session, body["charged_tokens"])
            open_calls.remove(body["call"])
            found[body["status"]] += 1
            continue
        if event.type == "session.closed":
            assert body["tokens"] == sum(call[3] for call in calls.values() if call[2] == body["session"])
            found["refused" if body["status"] == "limited" else "closed"] += 1
            continue
        calls[body["call"]] = (event.at, body["task"], body["session"], body["reserved_tokens"])
        open_calls.add(body["call"])
        found["at once"] += len(open_calls) > 1
        assert sum(call[3] for call in calls.values() if call[2] == body["session"]) <= limits.session
        for window, task, most in caps:
            since = event.at - WINDOW_US[window]
            assert sum(call[3] for call in calls.values() if call[0] > since and task in (None, call[1])) <= most
    assert not open_calls
    return found


def test_no_interleaving_passes_a_bound_or_a_cap() -> None:
    seen: Counter[str] = Counter()

    async def live(stage: Stage, limits: Limits, seed: int) -> None:
        for hours in (0, 2, 25):  # each time in a daemon of its own, that knows what was used from the ledger
            stage.clock.forward(hours * 3_600)
            async with stage.runtime() as runtime:
                await run_at_once(runtime, f"{seed} {hours}")
                seen.update(check(runtime, limits))

    # the examples are seeds: there is nothing in them to make smaller
    @settings(max_examples=4, deadline=None, phases=[Phase.generate])
    @given(
        limits=st.builds(
            Limits,
            session=st.integers(4_000, 12_000),
            hour=st.integers(3_000, 10_000),
            day=st.integers(4_000, 12_000),
            month=st.integers(5_000, 15_000),
            one_per_day=st.integers(2_000, 8_000),
        ),
        seed=st.integers(0, 2**32),
    )
    def interleaved(limits: Limits, seed: int) -> None:
        with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patched:
            patched.setattr(slot_runner, "BACKOFF_SECONDS", 0.0)
            asyncio.run(live(furnish(Path(directory) / "workspace", limits), limits, seed))

    interleaved()
    # every way to end was there, and calls of several sessions were open at once
    assert min(seen[end] for end in ("replied", "timeout", "failed", "refused", "at once")) >= 5, seen
