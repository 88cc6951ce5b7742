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
from typing import TypeAlias

import perdure.state.migrations  # noqa: F401 - imported here once, not in every child

from .agents import Agent, Observer
from .checks import judge
from .children import CRASHED, STOPPED, Child
from .progress import Progress
from .shim import MODES, NEEDS, NO_DATA
from .tables import table

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


Fault: TypeAlias = tuple[int, str]  # the call that it hits, counted from 1 (0: none), and how
NO_FAULT: Fault = (0, "kill")


@dataclass(frozen=True)
class Scenario:
    """One fault, or one and then another in the recovery from it. `fresh`: begins without a ledger."""

    faults: tuple[Fault, ...]
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


class Bench:
    """Where one process runs one agent in forked children, on a memory file system, with the shim preloaded."""

    def __init__(self, agent: type[Agent], root: Path) -> None:
        self.agent = agent
        self.root = Path(tempfile.mkdtemp(dir=root))
        self.phase = mmap.mmap(-1, 4096)  # shared with the children: where a killed one was
        self._starts: dict[Fault | None, dict[str, bytes] | None] = {}

    def calls(self, first: Fault | None = None, *, fresh: bool = False) -> bytes:
        """The calls of a run that no fault disturbs; or of the recovery from this fault (none: it was no crash)."""
        directory = self._begun(first, fresh=fresh)
        if directory is None:
            return b""
        status, calls, _ = self._child(directory)
        assert status == 0
        shutil.rmtree(directory)
        return calls

    def one(self, scenario: Scenario, *, parity: bool) -> Outcome:
        """Crash, recover, judge."""
        *earlier, fault = scenario.faults
        directory = self._begun(earlier[0] if earlier else None, fresh=scenario.fresh)
        assert directory is not None
        state, log = directory / "state", directory / "observer"
        failures: list[str] = []
        try:
            status, _, fired = self._child(directory, fault)
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

    def _begun(self, first: Fault | None, *, fresh: bool) -> Path | None:
        """A new directory with nothing, with a ledger that has just been made, or with what this first crash left; None where
        that fault is no crash. The first crash of a pair is had once, and all recoveries from it begin with its copy."""
        directory = Path(tempfile.mkdtemp(dir=self.root))
        (directory / "state").mkdir()
        if fresh:
            (directory / "observer").touch()
            return directory
        if first not in self._starts:
            with tempfile.TemporaryDirectory(dir=self.root) as name:
                self._starts[first] = self._start(Path(name), first)
        contents = self._starts[first]
        if contents is None:
            shutil.rmtree(directory)
            return None
        for name, content in contents.items():
            (directory / name).write_bytes(content)
        return directory

    def _start(self, directory: Path, first: Fault | None) -> dict[str, bytes] | None:
        """The files after the making of a ledger, and then after this crash."""
        if first is None:
            status, _, _ = self._child(directory, create_only=True)
            assert status == 0
        else:
            shutil.rmtree(directory)
            begun = self._begun(None, fresh=False)
            assert begun is not None
            begun.rename(directory)
            if self._child(directory, first)[0] not in CRASHED:
                return None
        files = [*(directory / "state").iterdir(), directory / "observer"]
        return {str(path.relative_to(directory)): path.read_bytes() for path in files}

    def _child(self, directory: Path, fault: Fault = NO_FAULT, *, create_only: bool = False) -> tuple[int, bytes, bool]:
        """Run the agent once in a child. Returns its exit status, its calls and whether the fault happened."""

        def phase(text: str) -> None:
            self.phase[:100] = text.encode().ljust(100, b"\0")

        state = directory / "state"
        state.mkdir(exist_ok=True)
        agent = self.agent(state, Observer(directory / "observer"), phase)
        if create_only:
            agent.work = lambda fence: None  # type: ignore[method-assign]
        try:
            return Child(agent.run, state, *fault).wait()
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
        yield from (Scenario((fault,), fresh) for fault in every_fault(self._bench.calls(fresh=fresh), modes))

    def every_pair(self, *, stride: int = 1) -> Iterator[Scenario]:
        """A crash at every `stride`-th call, of each mode in turn, and then every fault at every call of the recovery from it."""
        turns = itertools.cycle(MODES)
        for call in range(1, len(self._bench.calls()) + 1, stride):
            # The first of the modes, from the one whose turn it is, that makes this call a crash.
            firsts = ((call, next(turns)) for _ in MODES)
            first, calls = next(((each, calls) for each in firsts if (calls := self._bench.calls(each))), (None, b""))
            yield from (Scenario((first, again)) for again in every_fault(calls) if first is not None)

    def run(self, scenarios: Iterable[Scenario], *, progress: Progress, failures_max: int = 0) -> Tally:
        """Run them all, or until `failures_max` promises were broken (0: all)."""
        numbered = list(enumerate(scenarios))
        random.Random(len(numbered)).shuffle(numbered)  # what is cut short is an even sample of the whole
        tally = Tally()
        context = multiprocessing.get_context("fork")
        with context.Pool(self.jobs, _begin, (self.agent, self.root)) as pool:
            for outcome in progress.over(pool.imap_unordered(_one, numbered, chunksize=4), len(numbered)):
                tally.add(outcome)
                progress.broken = len(tally.failures)
                if failures_max and len(tally.failures) >= failures_max:
                    break
        return tally


_bench: Bench  # of a process of the pool


def _begin(agent: type[Agent], root: Path) -> None:
    global _bench  # noqa: PLW0603 - a pool has no other place for what its processes keep
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _bench = Bench(agent, root)


def _one(numbered: tuple[int, Scenario]) -> Outcome:
    number, scenario = numbered
    return _bench.one(scenario, parity=number % PARITY_EVERY == 0)


def every_fault(calls: bytes, modes: Iterable[str] = MODES) -> Iterator[Fault]:
    """Every call × every mode that can hit it: only a write can be torn."""
    modes = tuple(modes)
    for call, does in enumerate(calls, 1):
        yield from ((call, mode) for mode in modes if does >= NEEDS.get(mode, NO_DATA))


def seeded(scenarios: Iterable[Scenario], count: int, seed: int) -> list[Scenario]:
    """A sample that the seed alone decides."""
    everything = list(scenarios)
    return everything if len(everything) <= count else random.Random(seed).sample(everything, count)


def in_words(tally: Tally) -> str:
    """The matrix as text: per boundary and effect class, what was counted; and per fault, how many crashed."""
    cells = [*sorted(tally.cells.items()), (("total", ""), sum(tally.cells.values(), Counter()))]
    rows = [(*place, *(cell[column] for column in COLUMNS)) for place, cell in cells]
    faults = [(mode, tally.faults[mode, "once"], tally.faults[mode, "again"]) for mode in MODES]
    return "\n".join(
        [
            table(("boundary", "effect", *COLUMNS), rows, left=2, total=True),
            "",
            table(("fault", "crashed once", "and in recovery"), faults),
            f"Not counted: {tally.went_on:,} that went on after the fault (checked as well), and {tally.not_fired:,} whose fault"
            " did not happen.",
        ]
    )


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
