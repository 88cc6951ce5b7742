"""The crash matrix: a fault at every state-changing call, then recovery (which may itself be cut off), then checks."""

from __future__ import annotations

import mmap
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
from perdure.errors import PerdureError

from .agents import Agent, Observer
from .checks import violations
from .shim import MODES, Shim

STOPPED = 3  # exit status of an agent that stopped because the ledger said so
ROOT = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else Path(tempfile.gettempdir())


@dataclass(frozen=True)
class Scenario:
    """Faults in order: (call, mode) of the first run, then of the recovery, and so on. `fresh`: begins without a ledger."""

    faults: tuple[tuple[int, str], ...]
    fresh: bool = False


@dataclass
class Tally:
    """What came of the scenarios. Only those whose faults really happened count."""

    scenarios: int = 0
    not_fired: int = 0
    cells: dict[tuple[str, str], Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    failures: list[str] = field(default_factory=list)


class Matrix:
    """Runs scenarios of one agent in forked children of this (preloaded) process, on a memory file system."""

    def __init__(self, agent: type[Agent]) -> None:
        self.agent = agent
        self.shim = Shim()
        self.root = Path(tempfile.mkdtemp(prefix="perdure-crash-", dir=ROOT))
        self.phase = mmap.mmap(-1, 4096)  # shared with the children: where a killed one was
        self.template = self.root / "template"
        self.template.mkdir()
        status, _, _ = self._child(self.template / "state", self.template / "observer", 0, "kill", create_only=True)
        assert status == 0

    def close(self) -> None:
        shutil.rmtree(self.root)

    def count(self, *, fresh: bool) -> int:
        """How many calls a run makes that no fault disturbs."""
        directory = self._directory(fresh)
        status, calls, _ = self._child(directory / "state", directory / "observer", 0, "kill")
        assert status == 0
        shutil.rmtree(directory)
        return calls

    def every(self, *, modes: Iterable[str] = MODES, fresh: bool = False) -> Iterator[Scenario]:
        """Every call × every mode, once."""
        for call in range(1, self.count(fresh=fresh) + 1):
            for mode in modes:
                yield Scenario(((call, mode),), fresh)

    def every_pair(
        self,
        *,
        first_modes: Iterable[str] = ("kill-after",),
        modes: Iterable[str] = ("kill", "torn", "disk-full"),
        stride: int = 1,
    ) -> Iterator[Scenario]:
        """A crash, and then a fault at every call of the recovery from it."""
        for call in range(1, self.count(fresh=False) + 1, stride):
            for first in first_modes:
                directory = self._directory(fresh=False)
                self._child(directory / "state", directory / "observer", call, first)
                _, recovery_calls, _ = self._child(directory / "state", directory / "observer", 0, "kill")
                shutil.rmtree(directory)
                for again in range(1, recovery_calls + 1):
                    for mode in modes:
                        yield Scenario(((call, first), (again, mode)))

    def run(self, scenarios: Iterable[Scenario], *, parity_every: int = 10, failures_max: int = 0) -> Tally:
        """Run them all, or until `failures_max` promises were broken (0: all)."""
        tally = Tally()
        for number, scenario in enumerate(scenarios):
            self._one(scenario, tally, parity=number % parity_every == 0)
            if failures_max and len(tally.failures) >= failures_max:
                break
        return tally

    def _one(self, scenario: Scenario, tally: Tally, *, parity: bool) -> None:
        directory = self._directory(scenario.fresh)
        state, log = directory / "state", directory / "observer"
        phase = "start"
        try:
            for call, mode in scenario.faults:
                status, _, fired = self._child(state, log, call, mode)
                if not fired:
                    tally.not_fired += 1
                    return
                phase = self.phase[:100].split(b"\0")[0].decode()
                if status not in (-signal.SIGKILL, STOPPED, 0):
                    tally.failures.append(f"{scenario}: ended with status {status} in {phase}")
            tally.scenarios += 1
            cell = tally.cells[_cell(phase)]
            cell["crashed"] += 1
            status, _, _ = self._child(state, log, 0, "kill")
            found = [] if status == 0 else [f"the recovery itself ended with status {status}"]
            observer = Observer(log)
            found += violations(state, observer, parity=parity) if status == 0 else []
            observer.close()
            for text in found:
                cell[_kind(text)] += 1
                tally.failures.append(f"{scenario}: {text} (cut off in: {phase})")
            if not found:
                cell["recovered"] += 1
        finally:
            shutil.rmtree(directory)

    def _directory(self, fresh: bool) -> Path:
        directory = Path(tempfile.mkdtemp(dir=self.root))
        if fresh:
            (directory / "state").mkdir()
            (directory / "observer").touch()
        else:
            shutil.copytree(self.template / "state", directory / "state")
            shutil.copy(self.template / "observer", directory / "observer")
        return directory

    def _child(
        self, state: Path, log: Path, call: int, mode: str, *, create_only: bool = False
    ) -> tuple[int, int, bool]:
        """Run the agent once in a child; returns its status, its number of calls and whether the fault happened."""
        result = mmap.mmap(-1, 16)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                code = self._in_child(state, log, call, mode, create_only)
                result[0:8] = self.shim.calls.to_bytes(8, "little")
                result[8:9] = b"\1" if self.shim.fired else b"\0"
            except BaseException:  # noqa: BLE001
                import traceback

                traceback.print_exc()
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        code = os.waitstatus_to_exitcode(status)
        calls, fired = int.from_bytes(result[0:8], "little"), result[8:9] == b"\1" or code == -signal.SIGKILL
        result.close()
        return code, calls, fired

    def _in_child(self, state: Path, log: Path, call: int, mode: str, create_only: bool) -> int:
        def phase(text: str) -> None:
            self.phase[:100] = text.encode().ljust(100, b"\0")

        state.mkdir(exist_ok=True)
        agent = self.agent(state, Observer(log), phase)
        if create_only:
            agent.work = lambda fence: None  # type: ignore[method-assign]
        self.shim.arm(state, call, mode)
        try:
            agent.run()
        except (PerdureError, OSError) as error:
            if not self.shim.fired:
                raise
            del error
            return STOPPED
        finally:
            self.shim.disarm()
        return 0


def seeded(scenarios: Iterable[Scenario], count: int, seed: int) -> list[Scenario]:
    """A sample that the seed alone decides."""
    everything = list(scenarios)
    return everything if len(everything) <= count else random.Random(seed).sample(everything, count)


def table(tally: Tally) -> str:
    """The matrix as text: per boundary and effect class, what was counted."""
    columns = (
        "crashed",
        "recovered",
        "acknowledged lost",
        "silently repeated",
        "unrecorded",
        "unknown dropped",
        "other",
    )
    lines = [f"{'boundary':<16}{'effect':<12}" + "".join(f"{column:>19}" for column in columns)]
    for (boundary, effect), cell in sorted(tally.cells.items()):
        lines.append(f"{boundary:<16}{effect:<12}" + "".join(f"{cell[column]:>19}" for column in columns))
    total = sum(tally.cells.values(), Counter())
    lines.append(f"{'total':<28}" + "".join(f"{total[column]:>19}" for column in columns))
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
    return "other"
