"""The crash matrix: a fault at every state-changing call, then recovery (which may itself be cut off), then checks."""

from __future__ import annotations

import itertools
import logging
import mmap
import multiprocessing
import os
import random
import shutil
import signal
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import perdure.state.migrations  # noqa: F401 - imported here once, not in every child

from .agents import Agent, Observer
from .checks import judge
from .children import CRASHED, STOPPED, Child
from .progress import Progress
from .shim import MODES

ROOT = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else Path(tempfile.gettempdir())
PARITY_EVERY = 10  # scenarios: the others are judged without replaying all events
COLUMNS = (
    "crashed",
    "acknowledged lost",
    "silently repeated",
    "unrecorded",
    "unknown dropped",
    "otherwise broken",
    "unknown, settled",
    "recovered",
)


@dataclass(frozen=True)
class Scenario:
    """Faults in order: (call, mode) of the first run, then of the recovery, and so on. `fresh`: begins without a ledger."""

    faults: tuple[tuple[int, str], ...]
    fresh: bool = False


@dataclass(frozen=True)
class Outcome:
    """What came of one scenario: whether its faults happened, how the last one ended (`killed`, `stopped`, `went on`) and
    where; every broken promise; how many outcomes became unknown on the way."""

    scenario: Scenario
    fired: bool
    ended: str = ""
    phase: str = ""
    failures: tuple[str, ...] = ()
    unknown: int = 0


@dataclass
class Tally:
    """What came of the scenarios. Only those that really crashed count; the others are checked as well."""

    scenarios: int = 0
    not_fired: int = 0
    went_on: int = 0
    cells: dict[tuple[str, str], Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    faults: Counter[tuple[str, str]] = field(default_factory=Counter)  # (mode, once or again) -> crashed
    failures: list[str] = field(default_factory=list)
    cut_short: bool = False  # by Ctrl-C

    def add(self, outcome: Outcome) -> None:
        scenario = outcome.scenario
        if not outcome.fired:
            self.not_fired += 1
            return
        cell = self.cells[_cell(outcome.phase)]
        if outcome.ended == "went on":
            self.went_on += 1
        else:
            self.scenarios += 1
            self.faults[scenario.faults[-1][1], "once" if len(scenario.faults) == 1 else "again"] += 1
            cell["crashed"] += 1
            cell["unknown, settled"] += outcome.unknown > 0
            cell["recovered"] += not outcome.failures
        cell.update({_kind(text) for text in outcome.failures})
        self.failures += [f"{scenario}: {text} (cut off in: {outcome.phase})" for text in outcome.failures]

    def join(self, other: Tally) -> None:
        """Add what another run counted."""
        self.scenarios += other.scenarios
        self.not_fired += other.not_fired
        self.went_on += other.went_on
        for place, cell in other.cells.items():
            self.cells[place].update(cell)
        self.faults.update(other.faults)
        self.failures += other.failures
        self.cut_short |= other.cut_short


class Bench:
    """Where one process runs one agent in forked children, on a memory file system, with the shim preloaded."""

    def __init__(self, agent: type[Agent], root: Path) -> None:
        self.agent = agent
        self.root = Path(tempfile.mkdtemp(dir=root))
        self.phase = mmap.mmap(-1, 4096)  # shared with the children: where a killed one was
        self.template = self.root / "template"
        self.template.mkdir()
        status, _, _ = self.child(self.template / "state", self.template / "observer", 0, "kill", create_only=True)
        assert status == 0

    def calls(self, first: tuple[int, str] | None = None, *, fresh: bool = False) -> int:
        """How many calls a run makes that no fault disturbs; or the recovery from this fault (0: it was no crash)."""
        directory = self.directory(fresh)
        state, log = directory / "state", directory / "observer"
        calls = 0
        if first is None or self.child(state, log, *first)[0] in CRASHED:
            status, calls, _ = self.child(state, log, 0, "kill")
            assert status == 0
        shutil.rmtree(directory)
        return calls

    def one(self, scenario: Scenario, *, parity: bool) -> Outcome:
        """Crash, recover, judge."""
        directory = self.directory(scenario.fresh)
        state, log = directory / "state", directory / "observer"
        failures: list[str] = []
        try:
            for call, mode in scenario.faults:
                status, _, fired = self.child(state, log, call, mode)
                if not fired:
                    return Outcome(scenario, fired=False)
                phase = self.phase[:100].split(b"\0")[0].decode()
                ended = {-signal.SIGKILL: "killed", STOPPED: "stopped", 0: "went on"}.get(status)
                if ended is None:
                    failures.append(f"ended with status {status}")
            # The recovery that no fault disturbs is run here: nothing of it differs in a process of its own.
            observer = Observer(log)
            try:
                self.agent(state, observer).run()
            except Exception as error:  # noqa: BLE001 - whatever stops a recovery is a finding
                failures.append(f"the recovery itself failed: {type(error).__name__}: {error}")
                return Outcome(scenario, True, ended or "stopped", phase, tuple(failures))
            verdict = judge(state, observer, parity=parity)
            observer.close()
            return Outcome(
                scenario, True, ended or "stopped", phase, (*failures, *verdict.failures), verdict.unknown
            )  # fmt: skip
        finally:
            shutil.rmtree(directory)

    def directory(self, fresh: bool) -> Path:
        """A new copy of what every scenario begins with."""
        directory = Path(tempfile.mkdtemp(dir=self.root))
        if fresh:
            (directory / "state").mkdir()
            (directory / "observer").touch()
        else:
            shutil.copytree(self.template / "state", directory / "state")
            shutil.copy(self.template / "observer", directory / "observer")
        return directory

    def child(
        self, state: Path, log: Path, call: int, mode: str, *, create_only: bool = False
    ) -> tuple[int, int, bool]:
        """Run the agent once in a child. Returns its exit status, its number of calls and whether the fault happened."""

        def phase(text: str) -> None:
            self.phase[:100] = text.encode().ljust(100, b"\0")

        state.mkdir(exist_ok=True)
        agent = self.agent(state, Observer(log), phase)
        if create_only:
            agent.work = lambda fence: None  # type: ignore[method-assign]
        try:
            return Child(agent.run, state, call, mode).wait()
        finally:
            agent.observer.close()


class Matrix:
    """All scenarios of one agent, shared among `jobs` processes that each have a bench of their own."""

    def __init__(self, agent: type[Agent], *, jobs: int = 1) -> None:
        self.agent = agent
        self.jobs = jobs
        self.root = Path(tempfile.mkdtemp(prefix="perdure-crash-", dir=ROOT))
        logging.disable(logging.CRITICAL)  # that a disk failed is what is wanted here
        self._bench = Bench(agent, self.root)

    def close(self) -> None:
        logging.disable(logging.NOTSET)
        shutil.rmtree(self.root, ignore_errors=True)

    def every(self, *, modes: Iterable[str] = MODES, fresh: bool = False) -> Iterator[Scenario]:
        """Every call × every mode, once."""
        for call in range(1, self._bench.calls(fresh=fresh) + 1):
            for mode in modes:
                yield Scenario(((call, mode),), fresh)

    def every_pair(self, *, modes: Iterable[str] = MODES, stride: int = 1) -> Iterator[Scenario]:
        """A crash at every `stride`-th call, of each mode in turn, and then every fault at every call of the recovery from it."""
        turns = itertools.cycle(MODES)
        for call in range(1, self._bench.calls() + 1, stride):
            # The first of the modes, from the one whose turn it is, that makes this call a crash.
            firsts = ((call, next(turns)) for _ in MODES)
            first, calls = next(((each, calls) for each in firsts if (calls := self._bench.calls(each))), (None, 0))
            for again in range(1, calls + 1):
                for mode in modes:
                    yield Scenario((first, (again, mode)))

    def run(self, scenarios: Iterable[Scenario], *, progress: Progress, failures_max: int = 0) -> Tally:
        """Run them all, or until `failures_max` promises were broken (0: all) or somebody presses Ctrl-C."""
        numbered = list(enumerate(scenarios))
        tally = Tally()
        context = multiprocessing.get_context("fork")
        with context.Pool(self.jobs, _begin, (self.agent, self.root)) as pool:
            try:
                for outcome in progress.over(pool.imap_unordered(_one, numbered, chunksize=4), len(numbered)):
                    tally.add(outcome)
                    progress.broken = len(tally.failures)
                    if failures_max and len(tally.failures) >= failures_max:
                        break
            except KeyboardInterrupt:
                tally.cut_short = True
        return tally


_bench: Bench  # of a process of the pool


def _begin(agent: type[Agent], root: Path) -> None:
    global _bench  # noqa: PLW0603 - a pool has no other place for what its processes keep
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _bench = Bench(agent, root)


def _one(numbered: tuple[int, Scenario]) -> Outcome:
    number, scenario = numbered
    return _bench.one(scenario, parity=number % PARITY_EVERY == 0)


def seeded(scenarios: Iterable[Scenario], count: int, seed: int) -> list[Scenario]:
    """A sample that the seed alone decides."""
    everything = list(scenarios)
    return everything if len(everything) <= count else random.Random(seed).sample(everything, count)


def table(tally: Tally) -> str:
    """The matrix as text: per boundary and effect class, what was counted; and per fault, how many crashed."""
    lines = [f"{'boundary':<16}{'effect':<12}" + "".join(f"{column:>19}" for column in COLUMNS)]
    for (boundary, effect), cell in sorted(tally.cells.items()):
        lines.append(f"{boundary:<16}{effect:<12}" + "".join(f"{cell[column]:>19,}" for column in COLUMNS))
    total = sum(tally.cells.values(), Counter())
    lines.append(f"{'total':<28}" + "".join(f"{total[column]:>19,}" for column in COLUMNS))
    lines += ["", f"{'fault':<16}{'crashed once':>19}{'and in recovery':>19}"]
    for mode in MODES:
        lines.append(f"{mode:<16}{tally.faults[mode, 'once']:>19,}{tally.faults[mode, 'again']:>19,}")
    lines.append(
        f"Not counted: {tally.not_fired:,} whose fault had nothing to hit (a torn write needs a write), and"
        f" {tally.went_on:,} that went on after the fault; these were checked as well."
    )
    return "\n".join(lines)


def _cell(phase: str) -> tuple[str, str]:
    words = phase.split()
    return (
        (words[0], words[1])
        if len(words) == 2 and words[1] in ("read", "idempotent", "probeable", "once")
        else (phase, "-")
    )


def _kind(text: str) -> str:
    if "acknowledged" in text:
        return "acknowledged lost"
    if "times" in text:
        return "silently repeated"
    if "no durable intent" in text or "never happened" in text or "and happened" in text:
        return "unrecorded"
    if "nobody was asked" in text or "no end" in text:
        return "unknown dropped"
    return "otherwise broken"
